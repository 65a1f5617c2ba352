"""RefT against the reference implementations: Mask2Former's, pycocotools', and the specification's definitions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from pycocotools import mask as coco_mask
from torch import Tensor, nn
from transformers import Mask2FormerConfig, Mask2FormerModel, ResNetConfig, SwinConfig
from transformers.models.mask2former.modeling_mask2former import (
    Mask2FormerPixelDecoder,
    Mask2FormerTransformerModule,
)

from tenfold.reft.annotations import load_annotations
from tenfold.reft.checkpoints import convert_released
from tenfold.reft.classifiers import CosineClassifier
from tenfold.reft.config import LossConfig
from tenfold.reft.distillation import base_distillation
from tenfold.reft.evaluation import evaluate
from tenfold.reft.few_shot_sampling import sample_k_shots
from tenfold.reft.inference import instance_inference
from tenfold.reft.losses import classification_loss, dice_loss, mask_bce_loss
from tenfold.reft.mask2former import backbone_maps, decode_pixels, decode_queries, project
from tenfold.reft.matching import assign, matching_cost, pairwise_bce, pairwise_dice
from tenfold.reft.references import FeatureReference, QueryReference, class_centres, masked_average_pool

BACKBONES = {"swin": SwinConfig, "resnet": ResNetConfig}


def drawn(fill: Any, seed: int, *shape: int) -> Tensor:
    values: Tensor = fill({"fill_input_seed": seed, "shape": list(shape)})
    return values


def tolerances(case: Any) -> dict[str, float]:
    return {"rtol": 0.0, **case["tolerance"]} if "tolerance" in case.fields else {}


def check(case: Any, name: str, found: Any) -> None:
    """Compare an output; ``*_strided`` and ``*_stats`` of it where the case has them."""
    found = torch.as_tensor(found).detach()
    tolerance = tolerances(case)
    if name in case.outputs:
        case.check(name, found, **tolerance)
    if f"{name}_stats" in case.outputs:
        case.check(f"{name}_stats", statistics(found, case.outputs[f"{name}_stats"].ndim), **tolerance)


def statistics(values: Tensor, dimensions: int) -> Tensor:
    rows = values.flatten(1).double() if dimensions == 2 else values.flatten()[None].double()
    found = torch.stack(
        (rows.mean(1), rows.std(1, correction=0), rows.norm(dim=1), rows.abs().amax(1)), dim=1
    )
    return found if dimensions == 2 else found[0]


def load_strictly(module: nn.Module, weights: dict[str, Tensor]) -> None:
    """All weights; buffers of whole numbers keep their values."""
    missing, unexpected = module.load_state_dict(weights, strict=False)
    kept = {name for name, value in module.state_dict().items() if not value.is_floating_point()}
    assert set(missing) <= kept
    assert not unexpected


def predict(
    decoder: Mask2FormerPixelDecoder,
    transformer: Mask2FormerTransformerModule,
    classifier: nn.Linear,
    maps: Sequence[Tensor],
) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
    """Class logits and mask logits of all layers, mask features and levels."""
    mask_features, levels = decode_pixels(decoder, maps, project(decoder, maps))
    queries, embeddings = decode_queries(transformer, levels, mask_features)
    masks = torch.einsum("lbqm,bmhw->lbqhw", embeddings, mask_features)
    return classifier(queries), masks, mask_features, levels


# -- the network -----------------------------------------------------------------------------------------


def check_mask2former_head(case: Any, fill: Any) -> None:
    given = case["arguments"]
    shared = {
        name: given[name] for name in ("feature_size", "mask_feature_size", "hidden_dim", "encoder_layers")
    }
    config = Mask2FormerConfig(
        **shared,
        encoder_feedforward_dim=given["encoder_feedforward_dim"],
        dim_feedforward=given["decoder_feedforward_dim"],
        decoder_layers=given["decoder_layers_excluding_initial"] + 1,
        num_queries=given["num_queries"],
        num_labels=given["num_classes"],
        num_attention_heads=given["encoder_heads"],
        dropout=0.0,
    )
    root = nn.Module()
    root.model, root.model.pixel_level_module = nn.Module(), nn.Module()
    decoder = Mask2FormerPixelDecoder(config, given["backbone_channels"])
    config = Mask2FormerConfig(**{**config.to_dict(), "num_attention_heads": given["decoder_heads"]})
    transformer = Mask2FormerTransformerModule(given["feature_size"], config)
    classifier = nn.Linear(given["hidden_dim"], given["num_classes"] + 1)
    root.model.pixel_level_module.decoder, root.model.transformer_module = decoder, transformer
    root.class_predictor = classifier
    load_strictly(root.eval(), convert_released(case.state_dict()))
    maps = [drawn(fill, spec["seed"], *spec["shape"]) for _, spec in sorted(case["inputs"].items())]
    with torch.no_grad():
        logits, masks, mask_features, levels = predict(decoder, transformer, classifier, maps)
    check(case, "pred_logits", logits[-1])
    check(case, "pred_masks", masks[-1])
    check(case, "pred_masks_strided", masks[-1][:, ::2, ::2, ::2])
    check(case, "mask_features", mask_features)
    check(case, "mask_features_strided", mask_features[:, ::8, ::2, ::2])
    check(case, "aux_logits", logits[:-1])
    check(case, "aux_masks", masks[:-1])
    for index, level in enumerate(levels):
        check(case, f"multi_scale_{index}", level)
        check(case, f"multi_scale_{index}_strided", level[:, ::4])


def check_mask2former_forward(case: Any, fill: Any) -> None:
    backbone = BACKBONES[case["backbone"]](**case["backbone_config"])
    arguments = case["arguments"]
    root = nn.Module()
    root.model = Mask2FormerModel(Mask2FormerConfig(backbone_config=backbone, dropout=0.0, **arguments))
    root.class_predictor = nn.Linear(arguments["hidden_dim"], arguments["num_labels"] + 1)
    load_strictly(root.eval(), case.state_dict())
    spec = case["inputs"]["pixel_values"]
    modules = root.model.pixel_level_module
    with torch.no_grad():
        maps = backbone_maps(root.model, drawn(fill, spec["seed"], *spec["shape"]))
        logits, masks, _, _ = predict(
            modules.decoder, root.model.transformer_module, root.class_predictor, maps
        )
    check(case, "class_logits", logits[-1])
    check(case, "mask_logits", masks[-1])
    check(case, "mask_logits_strided", masks[-1][:, ::2, ::2, ::2])
    check(case, "aux_class_logits", logits[:-1])


# -- losses and references -------------------------------------------------------------------------------


def check_mask2former_losses(case: Any, fill: Any) -> None:
    count, points, seed = case["N"], case["P"], case["seed"]
    config = LossConfig()
    logits = drawn(fill, seed, count, points).requires_grad_()
    labels = (drawn(fill, seed + 1, count, points) > 0.3).float()
    for name, function in (("dice", dice_loss), ("mask", mask_bce_loss)):
        loss = function(logits, labels, count + 3)
        check(case, name, loss)
        check(case, f"{name}_grad_norm", torch.autograd.grad(loss, logits)[0].norm())
    queries = 2 * drawn(fill, seed + 2, count + 4, points)
    class_logits = drawn(fill, seed + 3, count + 4, 11)
    classes = torch.arange(count) * 3 % 10
    check(case, "cost_mask", pairwise_bce(queries, labels))
    check(case, "cost_dice", pairwise_dice(queries, labels))
    check(case, "cost_class", -class_logits.softmax(-1)[:, classes])
    cost = matching_cost(class_logits, classes, queries, labels, config)
    check(case, "cost", cost)
    found = assign(cost[None, None])
    rows = found.queries[0, 0]
    order = rows.argsort()
    case.check("rows", rows[order], 0, 0)
    case.check("cols", order, 0, 0)
    logits = drawn(fill, seed + 4, 2, count + 4, 11).requires_grad_()
    targets = torch.full((2, count + 4), 10)
    targets[0, rows] = classes
    targets[1, :3] = torch.tensor((0, 4, 9))
    loss = classification_loss(logits, targets, config.no_object_weight)
    check(case, "classification", loss)
    check(case, "classification_grad_norm", torch.autograd.grad(loss, logits)[0].norm())


def check_cosine_classifier(case: Any, fill: Any) -> None:
    classifier = CosineClassifier(case["d"], case["C"], case["scale"])
    weight = case.weights_of({"cosine_classifier.weight": [[case["C"], case["d"]], "float32"]})
    classifier.weight = nn.Parameter(weight["cosine_classifier.weight"])
    queries = drawn(fill, case["seed"], case["B"], case["d"]).requires_grad_()
    logits = classifier(queries)
    check(case, "logits", logits)
    grads = torch.autograd.grad(logits.square().mean(), (queries, classifier.weight))
    check(case, "x_grad_norm", grads[0].norm())
    check(case, "w_grad_norm", grads[1].norm())


def check_masked_pooling(case: Any, fill: Any) -> None:
    count, width, height, breadth = case["M"], case["d"], case["h"], case["w"]
    features = drawn(fill, case["seed"], count, width, height, breadth)
    size = (height * case["stride"], breadth * case["stride"])
    coarse = (drawn(fill, case["seed"] + 1, count, 1, size[0] // 4, size[1] // 4) > 0.4).float()
    masks = F.interpolate(coarse, size, mode="nearest")[:, 0].bool()
    masks[2] = False
    pooled = masked_average_pool(features, masks)
    centres, counts = class_centres(pooled, torch.tensor(case["class_ids"]), case["num_classes"])
    check(case, "pooled", pooled)
    check(case, "centres", centres)
    case.check("present", counts, 0, 0)


def check_feature_reference(case: Any, fill: Any) -> None:
    mode = {"multiply": "reweight"}.get(
        case.fields.get("mode", "reweight"), case.fields.get("mode", "reweight")
    )
    reference = FeatureReference(case["d"], mode)
    prefix = "feature_reference."
    reference.load_state_dict({name.removeprefix(prefix): value for name, value in case.state_dict().items()})
    features = drawn(fill, case["seed"], case["B"], case["d"], case["h"], case["w"]).requires_grad_()
    centres = drawn(fill, case["seed"] + 1, case["C"], case["d"]).requires_grad_()
    present = torch.ones(case["C"], dtype=torch.bool)
    if (absent := case.fields.get("absent_class")) is not None:
        present[absent] = False
    out = reference(features, centres, present)
    check(case, "out", out)
    attention = reference.attention(features, centres, present)
    kept = case.outputs["attention"].shape[1]  # every third location, as far as the cases show
    check(case, "attention", attention[:, :: attention.shape[1] // kept][:, :kept])
    grads = torch.autograd.grad(out.square().mean(), (features, centres))
    check(case, "x_grad_norm", grads[0].norm())
    check(case, "centres_grad_norm", grads[1].norm())


def check_query_reference(case: Any, fill: Any) -> None:
    reference = QueryReference(case["d"], case["heads"])
    prefix = "query_reference."
    reference.load_state_dict({name.removeprefix(prefix): value for name, value in case.state_dict().items()})
    queries = drawn(fill, case["seed"], case["B"], case["Q"], case["d"]).requires_grad_()
    rows = drawn(fill, case["seed"] + 1, case["S"], case["d"]).requires_grad_()
    out = reference(queries, rows)
    check(case, "out", out)
    grads = torch.autograd.grad(out[:, 0].square().mean(-1).sum(), (queries, rows))
    check(case, "q_grad_norm", grads[0].norm())
    check(case, "s_grad_norm", grads[1].norm())


def check_base_distillation(case: Any, fill: Any) -> None:
    images, queries, base, novel = (case[name] for name in ("B", "Q", "Cb", "Cn"))
    teacher = 2 * drawn(fill, case["seed"], images, queries, base + 1)
    student = drawn(fill, case["seed"] + 1, images, queries, base + novel + 1).requires_grad_()
    matched = torch.zeros(images, queries, dtype=torch.bool)
    matched[:, :2] = True
    found = base_distillation(teacher, student, matched, base, case["T"])
    check(case, "loss", found.loss)
    check(case, "kl", found.divergence)
    check(case, "weight", found.weights)
    check(case, "student_grad_norm", torch.autograd.grad(found.loss, student)[0].norm())


# -- inference, evaluation, sampling ---------------------------------------------------------------------


def check_instance_inference(case: Any, fill: Any) -> None:
    queries, classes, height, width = (case[name] for name in ("Q", "K", "H", "W"))
    class_logits = 2 * drawn(fill, case["seed"], queries, classes + 1)
    coarse = 3 * drawn(fill, case["seed"] + 1, 1, queries, height // 8, width // 8)
    masks = F.interpolate(coarse, (height, width), mode="bilinear", align_corners=False)[0]
    found = instance_inference(class_logits, masks, case["topk"])
    check(case, "scores", found.scores)
    check(case, "class_scores", found.class_scores)
    case.check("labels", found.labels, 0, 0)
    case.check("query_index", found.query_index, 0, 0)
    case.check("mask_areas", found.masks.flatten(1).sum(1), 0, 0)


def check_few_shot_evaluation(case: Any, further: Path) -> None:
    truth = load_annotations(further / "reft" / "annotations" / "instances_val_small.json")
    stored = case.outputs
    detections = []
    for number, category, shift, score in zip(
        *(stored[name] for name in ("annotation_id", "category_id", "shift", "score")), strict=True
    ):
        instance = truth.anns[int(number)]
        image = truth.imgs[instance["image_id"]]
        dx, dy = (round(float(value), 2) for value in shift)
        polygons = [
            [value + (dy if place % 2 else dx) for place, value in enumerate(polygon)]
            for polygon in instance["segmentation"]
        ]
        x, y, width, height = instance["bbox"]
        parts = coco_mask.frPyObjects(polygons, image["height"], image["width"])
        detections.append(
            {
                "image_id": instance["image_id"],
                "category_id": int(category),
                "segmentation": coco_mask.merge(parts),
                "bbox": [x + dx, y + dy, width, height],
                "score": round(float(score), 4),
            }
        )
    base, novel = case["base_category_ids"], case["novel_category_ids"]
    groups = {"all": sorted(base + novel), "base": base, "novel": novel}
    found = evaluate(truth, detections, groups)
    for kind in ("segm", "bbox"):
        for group in groups:
            case.check(f"{kind}_{group}64", np.asarray(found[f"{kind}_{group}"]), **tolerances(case))


def check_k_shot_sampling(case: Any, further: Path) -> None:
    truth = load_annotations(further / "reft" / "annotations" / "instances_train_small.json")
    for seed in case["seeds"]:
        found = sample_k_shots(truth.dataset["annotations"], case["classes"], tuple(case["shots"]), seed)
        for category in case["classes"]:
            for shots in case["shots"]:
                expected = f"seed{seed}_class{category}_shot{shots}"
                case.check(expected, np.asarray(found[category][shots]), 0, 0)


OF_DRAWN_INPUTS: dict[str, Callable[[Any, Any], None]] = {
    "mask2former_head": check_mask2former_head,
    "mask2former_forward": check_mask2former_forward,
    "mask2former_losses": check_mask2former_losses,
    "cosine_classifier": check_cosine_classifier,
    "masked_pooling": check_masked_pooling,
    "feature_reference": check_feature_reference,
    "query_reference": check_query_reference,
    "base_distillation": check_base_distillation,
    "instance_inference": check_instance_inference,
}
OF_COCO_IMAGES: dict[str, Callable[[Any, Path], None]] = {
    "few_shot_evaluation": check_few_shot_evaluation,
    "k_shot_sampling": check_k_shot_sampling,
}


def test_parity(parity_case: Any, fill: Any, further_data: Path | None) -> None:
    kind = parity_case["kind"]
    if kind in OF_DRAWN_INPUTS:
        OF_DRAWN_INPUTS[kind](parity_case, fill)
    elif kind in OF_COCO_IMAGES:
        if further_data is None or not (further_data / "reft").is_dir():
            pytest.skip("needs the COCO images of the further data")
        OF_COCO_IMAGES[kind](parity_case, further_data)
    else:
        pytest.fail(f"no runner for parity cases of kind {kind!r}")
