"""TinyMIM against the reference implementation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from tenfold.tinymim.architectures import build_classifier, build_student, build_teacher, make_classifier
from tenfold.tinymim.checkpoints import load_official_state_dict, transfer_pretrained
from tenfold.tinymim.optim import cosine_lr, layer_decay_groups, pretrain_decay_groups
from tenfold.tinymim.positions import resize_pos_embed, sincos_pos_embed
from tenfold.tinymim.relations import relation_loss
from tenfold.tinymim.robustness import mean_corruption_error
from tenfold.tinymim.segmentation_backbone import build_segmentation_backbone
from tenfold.tinymim.targets import cls_loss, feature_loss
from tenfold.tinymim.vit import VisionTransformer, ViTConfig

SHAPE = ("img_size", "patch_size", "embed_dim", "depth", "num_heads", "mlp_ratio")


def check(case: Any, name: str, found: Any) -> None:
    """Compare an output, which is a flat strided sample where it is large, and its statistics and shape."""
    found = torch.as_tensor(found).detach()
    tolerance = case["tolerance"]
    sample = found
    if f"{name}__flat_stride" in case.outputs:
        sample = found.flatten()[:: int(case.outputs[f"{name}__flat_stride"])]
    case.check(name, sample, **tolerance)
    if f"{name}__stats" in case.outputs:
        values = found.double()
        stats = torch.stack((values.mean(), values.std(correction=0), values.norm()))
        case.check(f"{name}__stats", stats, **tolerance)
    if f"{name}__shape" in case.outputs:
        case.check(f"{name}__shape", torch.tensor(found.shape), 0, 0)


def image_of(case: Any, fill: Any, name: str = "images") -> Tensor:
    spec = case["inputs"][name]
    values: Tensor = fill(
        {"fill_input_seed": spec["seed"], "shape": spec["shape"], "scale": spec.get("scale", 1.0)}
    )
    return values


def shape_of(constructor: dict[str, Any]) -> dict[str, Any]:
    return {name: constructor[name] for name in SHAPE if name in constructor}


def make_teacher(constructor: dict[str, Any], weights: dict[str, Tensor]) -> VisionTransformer:
    block = constructor.get("target_block", constructor.get("intermediate"))
    teacher = build_teacher(constructor.get("name"), target_block=block, **shape_of(constructor))
    load_official_state_dict(teacher, weights)
    return teacher


def make_student(constructor: dict[str, Any], weights: dict[str, Tensor]) -> VisionTransformer:
    changes = {name: constructor[name] for name in ("last_heads", "drop_path") if name in constructor}
    student = build_student(constructor.get("name"), **shape_of(constructor), **changes)
    load_official_state_dict(student, weights)
    return student.eval()


@torch.no_grad()
def check_teacher(case: Any, fill: Any) -> None:
    teacher = make_teacher(case["constructor"], case.state_dict())
    images = image_of(case, fill)
    for name, found in zip("qkv", teacher.target_qkv(images), strict=True):
        check(case, name, found)
    for name, found in zip(("qk_relation", "vv_relation"), teacher.relations(images), strict=True):
        check(case, name, found)


@torch.no_grad()
def check_student(case: Any, fill: Any) -> None:
    student = make_student(case["constructor"], case.state_dict())
    found = student.relations(image_of(case, fill))
    for name, values in zip(("qk_relation", "vv_relation"), found, strict=True):
        check(case, name, values)


def check_relation_loss(case: Any, fill: Any) -> None:
    teacher = make_teacher(case["constructor"]["teacher"], case.state_dict("teacher_state_dict"))
    student = make_student(case["constructor"]["student"], case.state_dict("student_state_dict"))
    target = teacher.target_qkv(image_of(case, fill, "teacher_images"))
    losses = relation_loss(student.target_qkv(image_of(case, fill, "student_images")), target)
    losses["total"].backward()
    for name, found in (("qk_loss", losses["qk"]), ("vv_loss", losses["vv"]), ("loss", losses["total"])):
        check(case, name, found)
    check_gradients(case, student)
    norms = [value.grad.double().norm() for value in student.parameters() if value.grad is not None]
    check(case, "total_grad_norm", torch.stack(norms).norm())


def check_gradients(case: Any, network: VisionTransformer) -> None:
    parameters = dict(network.named_parameters())
    for name, expected in case["gradient_norms"].items():
        gradient = parameters[name].grad
        if expected is None:
            assert gradient is None, name
        else:
            assert gradient is not None, name
            assert float(gradient.norm()) == pytest.approx(expected, rel=case["tolerance"]["rtol"]), name


def make_network(case: Any) -> VisionTransformer:
    constructor = case["constructor"]
    classes, pools = constructor.get("num_classes", 1000), constructor.get("global_pool", True)
    rate = constructor.get("drop_path_rate", 0.0)
    shape = shape_of(constructor)
    if set(shape) <= {"img_size"} or "name" in constructor:
        size = constructor.get("img_size", 224)
        return build_classifier(
            constructor["name"], num_classes=classes, global_pool=pools, drop_path_rate=rate, img_size=size
        )
    return make_classifier(ViTConfig(**shape), classes, pools, rate)


def check_classifier(case: Any, fill: Any) -> None:
    network = make_network(case)
    load_official_state_dict(network, case.state_dict())
    logits = network.eval()(image_of(case, fill))
    check(case, "logits", logits)
    labels = 3 * torch.arange(len(logits)) % logits.shape[1]
    targets = 0.9 * F.one_hot(labels, logits.shape[1]) + 0.1 / logits.shape[1]
    loss = F.cross_entropy(logits, targets)
    check(case, "soft_target_ce", loss)
    loss.backward()
    check_gradients(case, network)


def check_layer_decay(case: Any, fill: Any) -> None:
    found = layer_decay_groups(make_network(case), case["weight_decay"], case["layer_decay"])
    expected = case["groups"]
    assert found.keys() == expected.keys()
    for name, values in found.items():
        assert values == pytest.approx(tuple(expected[name]), rel=1e-12), name
    check(case, "n_params", len(found))
    check(case, "n_groups", len(set(found.values())))


def check_decay_groups(case: Any, fill: Any) -> None:
    constructor = case["constructor"]
    changes = {name: constructor[name] for name in ("last_heads",) if name in constructor}
    without, with_decay = pretrain_decay_groups(
        build_student(constructor.get("name"), **shape_of(constructor), **changes)
    )
    assert sorted(without) == sorted(case["no_decay"])
    assert sorted(with_decay) == sorted(case["decay"])
    check(case, "n_no_decay", len(without))
    check(case, "n_decay", len(with_decay))


def check_schedule(case: Any, fill: Any) -> None:
    rates = [cosine_lr(epoch, **case["arguments"]) for epoch in case.outputs["epoch"].tolist()]
    found = torch.tensor(rates, dtype=torch.float64)
    check(case, "lr", found)
    check(case, "lr_scaled", 0.5 * found)


def check_positions(case: Any, fill: Any) -> None:
    check(case, "pos_embed", sincos_pos_embed(case["dim"], case["grid"]))
    check(case, "interpolated", resize_pos_embed(image_of(case, fill, "table"), case["new_grid"]))


def check_transfer(case: Any, fill: Any) -> None:
    name, *options = case["constructor"]["finetune"].split()
    student = build_student(case["constructor"]["pretrain"])
    assert list(student.state_dict()) == case["pretrain_keys"]
    classifier = build_classifier(name, global_pool="global_pool" in options)
    missing, unexpected = transfer_pretrained(classifier, student.state_dict())
    assert sorted(missing) == sorted(case["missing_keys"])
    assert sorted(unexpected) == sorted(case["unexpected_keys"])
    check(case, "n_missing", len(missing))
    check(case, "n_unexpected", len(unexpected))


def check_loss_formulas(case: Any, fill: Any) -> None:
    batch, heads, tokens, dim, small = (case[name] for name in ("B", "H", "N", "D", "Ds"))

    def draw(number: int, *shape: int) -> Tensor:
        values: Tensor = fill({"fill_input_seed": case["seed"] + number, "shape": shape})
        return values

    teacher = [draw(number, batch, heads, tokens, dim) for number in range(3)]
    student = [draw(number, batch, heads, tokens, small).requires_grad_() for number in range(3, 6)]
    target = draw(6, batch, tokens, heads * dim)
    pred = draw(7, batch, tokens, heads * dim).requires_grad_()
    for pair in ("qk", "vv", "qq", "kk"):
        check(case, f"kl_{pair}", relation_loss(student, teacher, (pair,))["total"])
        check(case, f"logit_mse_{pair}", relation_loss(student, teacher, (pair,), softmax=False)["total"])
    for name, pairs in (("qk_vv", ("qk", "vv")), ("qq_kk_vv", ("qq", "kk", "vv"))):
        loss = relation_loss(student, teacher, pairs)["total"]  # type: ignore[arg-type]
        gradients = torch.autograd.grad(loss, student, allow_unused=True)
        norms = [torch.zeros(()) if gradient is None else gradient.norm() for gradient in gradients]
        check(case, f"{name}_grad_norms", torch.stack(norms))
    losses = {
        "feature": feature_loss(pred, target, case["beta"]),
        "cls": cls_loss(pred[:, 0], target[:, 0]),
    }
    for name, loss in losses.items():
        check(case, f"{name}_loss", loss)
        (gradient,) = torch.autograd.grad(loss, pred)
        check(case, f"{name}_grad_norm", gradient.norm())


def check_corruption(case: Any, fill: Any) -> None:
    mean, each = mean_corruption_error(case["errors"])
    check(case, "mce_percent", torch.tensor(mean, dtype=torch.float64))
    found = torch.tensor([each[name] for name in case["errors"]], dtype=torch.float64)
    check(case, "ce_percent", found)


@torch.no_grad()
def check_segmentation(case: Any, fill: Any) -> None:
    constructor = dict(case["constructor"])
    blocks = tuple(block + 1 for block in constructor.pop("out_indices", (3, 5, 7, 11)))
    for always in ("qkv_bias", "use_abs_pos_emb", "use_rel_pos_bias"):
        assert constructor.pop(always, True)
    backbone = build_segmentation_backbone(out_blocks=blocks, **constructor).eval()
    backbone.load_state_dict(case.state_dict())
    index = backbone.relative_position_index
    check(case, "relative_position_index", index[:40, :40])
    assert list(index.shape) == case["relative_position_index_shape"]
    assert int(index.sum()) == case["relative_position_index_sum"]
    for level, found in enumerate(backbone(image_of(case, fill))):
        check(case, f"level{level}", found)


CHECKS: dict[str, Callable[[Any, Any], None]] = {
    "teacher_forward": check_teacher,
    "student_forward": check_student,
    "relation_loss": check_relation_loss,
    "classifier_forward": check_classifier,
    "layer_decay_groups": check_layer_decay,
    "weight_decay_groups": check_decay_groups,
    "learning_rate": check_schedule,
    "position_embedding": check_positions,
    "transfer_keys": check_transfer,
    "loss_formulas": check_loss_formulas,
    "mean_corruption_error": check_corruption,
    "segmentation_backbone": check_segmentation,
}


def test_agrees_with_the_reference(parity_case: Any, fill: Any) -> None:
    kind = parity_case["kind"]
    if kind not in CHECKS:
        pytest.fail(f"{parity_case.path.stem}: no check for cases of kind {kind!r}")
    CHECKS[kind](parity_case, fill)
