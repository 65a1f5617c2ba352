"""CoCa against the reference implementation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, mse_loss, normalize

from tenfold.coca.checkpoints import load_official_state_dict, official_key
from tenfold.coca.config import LearnerConfig
from tenfold.coca.losses import (
    collaborative_distillation_loss,
    der_loss,
    derpp_loss,
    ensemble_outputs,
    er_loss,
    relation_affinity,
    supervised_contrastive_loss,
)
from tenfold.coca.memory import ReservoirMemory
from tenfold.coca.methods import Replay, StepBatch, coca_step_loss
from tenfold.coca.metrics import (
    average_accuracy,
    average_incremental_accuracy,
    backward_transfer,
    class_task_accuracy,
    forgetting,
    forward_transfer,
)
from tenfold.coca.networks import ContinualNetwork, build_model
from tenfold.coca.pretext_views import scale_rotate, zoom_rotate


def make_model(name: str, case: Any) -> ContinualNetwork:
    constructor = dict(case["constructor"])
    if name == "mlp":
        constructor["image_shape"] = (1, 1, constructor.pop("input_dim"))
    model = build_model(name, **constructor)
    load_official_state_dict(model, case.state_dict())
    return model


def input_of(fill: Any, seed: int, *shape: int) -> Tensor:
    values: Tensor = fill({"fill_input_seed": seed, "shape": list(shape)})
    return values


def drawn_labels(case: Any, field: str, high: int, count: int, seed: int) -> Tensor:
    """The labels of a case, or those of the seed that it names."""
    if field in case.fields:
        return torch.tensor(case[field])
    return torch.randint(0, high, (count,), generator=torch.Generator().manual_seed(seed))


def check_forward(case: Any, fill: Any, name: str = "resnet18") -> None:
    model = make_model(name, case).eval()
    images = input_of(fill, case["input"]["seed"], *case["input"]["shape"])
    with torch.no_grad():
        output = model(images, full=True)
        for part in ("logits", "pretext", "projection", "embedding"):
            if part in case.outputs:
                case.check(part, getattr(output, part), atol=1e-5)
        if "features_no_stem_relu" in case.outputs:
            backbone = model.backbone
            hidden = backbone.bn1(backbone.conv1(images))
            hidden = backbone.layer4(backbone.layer3(backbone.layer2(backbone.layer1(hidden))))
            stored = case.outputs["features_no_stem_relu"].shape[1]
            case.check("features_no_stem_relu", hidden.mean(dim=(2, 3))[:, :stored], atol=1e-5)


def check_forward_mlp(case: Any, fill: Any) -> None:
    check_forward(case, fill, "mlp")


def check_supcon(case: Any, fill: Any) -> None:
    seed, shape = case["seed"], (case["n"], case["dim"])
    views = [normalize(input_of(fill, seed + which, *shape)).requires_grad_() for which in (0, 1)]
    labels = drawn_labels(case, "labels", case["classes"], case["n"], seed + 2)
    loss = supervised_contrastive_loss(*views, labels, case["temperature"])
    case.check("loss", loss, atol=1e-5)
    for name, gradient in zip(("grad_a", "grad_b"), torch.autograd.grad(loss, views), strict=True):
        case.check(name, gradient, atol=1e-5)
    scaled = supervised_contrastive_loss(*views, labels, case["temperature"], base_temperature=0.07)
    case.check("loss_base07", scaled, atol=1e-5)
    alone = supervised_contrastive_loss(*views, temperature=case["temperature"])
    case.check("loss_unsupervised", alone, atol=1e-5)


def check_distillation(case: Any, fill: Any) -> None:
    seed, size, classes = case["seed"], case["n"], case["classes"]
    projection = normalize(input_of(fill, seed, size, case["dim"]))
    outputs = 3 * input_of(fill, seed + 1, size, classes)
    reserved = 3 * input_of(fill, seed + 2, size, classes)
    omega, gamma, diagonal = case["omega"], case["gamma"], case["diagonal_penalty"]
    for suffix, kept in (("", diagonal), ("_masked", "mask")):
        case.check(f"affinity{suffix}", relation_affinity(projection, kept), atol=1e-5)
        case.check(f"ensemble{suffix}", ensemble_outputs(outputs, projection, omega, kept), atol=1e-5)
    target = (1 - gamma) * reserved + gamma * ensemble_outputs(outputs, projection, omega, diagonal)
    case.check("target", target, atol=1e-5)
    outputs.requires_grad_()
    loss = case["alpha"] * collaborative_distillation_loss(
        outputs, reserved, projection, omega, gamma, diagonal
    )
    case.check("loss", loss, atol=1e-5)
    case.check("grad_outputs", torch.autograd.grad(loss, outputs)[0], atol=1e-5)


def check_derpp(case: Any, fill: Any) -> None:
    seed, classes, width = case["seed"], case["classes"], case.fields.get("dim", 12)
    batch, draw = len(case["y"]), len(case["y2"])
    weight = input_of(fill, seed, classes, width).requires_grad_()
    bias = input_of(fill, seed + 1, classes).requires_grad_()
    labels, second_labels = torch.tensor(case["y"]), torch.tensor(case["y2"])

    def linear(which: int, size: int) -> Tensor:
        return input_of(fill, seed + which, size, width) @ weight.t() + bias

    stream, first, second = linear(2, batch), linear(4, draw), linear(6, draw)
    reserved = input_of(fill, seed + 5, draw, classes)
    alpha, beta = case["alpha"], case["beta"]
    case.check("ce", cross_entropy(stream, labels), atol=1e-5)
    case.check("mse_term", alpha * mse_loss(first, reserved), atol=1e-5)
    case.check("buffer_ce_term", beta * cross_entropy(second, second_labels), atol=1e-5)
    case.check("er", er_loss(stream, labels, second, second_labels), atol=1e-5)
    case.check("der", der_loss(stream, labels, first, reserved, alpha), atol=1e-5)
    loss = derpp_loss(stream, labels, first, reserved, second, second_labels, alpha, beta)
    case.check("derpp", loss, atol=1e-5)
    gradients = torch.autograd.grad(loss, (weight, bias))
    case.check("derpp_grad_weight", gradients[0], atol=1e-5)
    case.check("derpp_grad_bias", gradients[1], atol=1e-5)


def check_reservoir(case: Any, fill: Any) -> None:
    del fill
    memory = ReservoirMemory(case["size"], np.random.RandomState(case["seed"]))
    for items in torch.arange(case["items"]).split(32):  # batches decide as if items came one by one
        memory.insert({"id": items})
    full = torch.full((case["size"],), -1)
    full[: len(memory)] = memory["id"]
    np.testing.assert_array_equal(
        full[full >= 0], case.outputs["buffer"][case.outputs["buffer"] >= 0][: len(memory)]
    )
    for number, count in enumerate(case["draws"]):
        np.testing.assert_array_equal(memory.draw(count)["id"], case.outputs[f"draw_{number}"])


def check_pretext_view(case: Any, fill: Any) -> None:
    size, labels = case["size"], torch.tensor(case["labels"])
    images = input_of(fill, case["seed"], case["n"], case.fields.get("channels", 3), size, size)
    transform = {4: zoom_rotate, 16: scale_rotate}[case["pretext_classes"]]
    views = transform(images, labels, torch.tensor(case["boxes"]))
    case.check("views", views[:, :, ::3, ::3], atol=1e-5)
    case.check("mean", views.mean(dim=(1, 2, 3)), atol=1e-5)
    case.check("norm", views.flatten(1).norm(dim=1), rtol=1e-5)


def check_metrics(case: Any, fill: Any) -> None:
    del fill
    rows = case["rows"]
    values = {
        "average_accuracy": average_accuracy(rows),
        "backward_transfer": backward_transfer(rows),
        "forward_transfer": forward_transfer(rows, case["random"]),
        "forgetting_official": forgetting(rows, "official"),
        "forgetting_trained_only": forgetting(rows, "trained-only"),
        "average_incremental": average_incremental_accuracy(rows),
    }
    for name, value in values.items():
        case.check(name, torch.tensor(value, dtype=torch.float64), rtol=0, atol=1e-9)


def check_il_accuracy(case: Any, fill: Any) -> None:
    classes = case["tasks"] * case["per_task"]
    logits = input_of(fill, case["seed"], case["n"], classes)
    labels = drawn_labels(case, "labels", classes, case["n"], case["seed"] + 1)
    class_il, task_il = class_task_accuracy(logits, labels, case["per_task"])
    case.check("class_il", class_il, rtol=0, atol=1e-5)
    case.check("task_il", task_il, rtol=0, atol=1e-5)


def check_coca_step(case: Any, fill: Any) -> None:
    seed, batch, draw, task = case["seed"], case["batch"], case["minibatch"], case["task"]
    size = case.fields.get("size", 32)
    constructor = case["constructor"]
    classes = constructor["num_classes"]
    shape = (3, size, size)
    model = make_model("resnet18", case).train()
    draws = ()
    if task > 0:
        first, second = (input_of(fill, seed + which, draw, *shape) for which in (2, 4))
        reserved = input_of(fill, seed + 3, draw, classes)
        unused = torch.zeros(draw, dtype=torch.int64)
        draws = (Replay(first, unused, reserved), Replay(second, torch.tensor(case["y2"])))
    total = batch + (draw if draws else 0)
    boxes = torch.tensor(case.fields.get("box", [3, 3, 26, 26])).expand(total, 4)
    ways = constructor["pretext_classes"]
    label_range = torch.arange(classes)
    step_batch = StepBatch(
        input_of(fill, seed, batch, *shape),
        torch.tensor(case["y"]),
        draws,
        torch.arange(total) % ways,
        boxes,
        (label_range >= 2 * task) & (label_range < 2 * task + 2),
        label_range < 2 * task + 2,
    )
    config = LearnerConfig(alpha=case["alpha"], beta=case["beta"], task_boundaries=case["boundary"])
    step = coca_step_loss(model, step_batch, config)
    case.check("loss", step.loss, atol=1e-5)
    case.check("stream_logits", step.logits, atol=1e-5)
    step.loss.backward()
    parameters = dict(model.named_parameters())
    norms = [
        0.0 if (gradient := parameters[official_key(key)].grad) is None else gradient.norm()
        for key in case["grad_keys"]
    ]
    case.check("grad_norms", norms, rtol=1e-4, atol=1e-5)
    case.check("stem_running_mean", model.backbone.bn1.running_mean, atol=1e-5)
    case.check("stem_running_var", model.backbone.bn1.running_var, atol=1e-5)


CHECKS: dict[str, Callable[[Any, Any], None]] = {
    "forward": check_forward,
    "forward_mlp": check_forward_mlp,
    "supcon": check_supcon,
    "collaborative_distillation": check_distillation,
    "derpp": check_derpp,
    "reservoir": check_reservoir,
    "pretext_view": check_pretext_view,
    "metrics": check_metrics,
    "il_accuracy": check_il_accuracy,
    "coca_step": check_coca_step,
}


def test_parity(parity_case: Any, fill: Any) -> None:
    kind = parity_case["kind"]
    if kind not in CHECKS:
        pytest.fail(f"unknown kind {kind!r} in {parity_case.path.name}")
    CHECKS[kind](parity_case, fill)
