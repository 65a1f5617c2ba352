"""Doorping against the reference implementation.

Gradients are taken in double precision: a unit within float rounding of its kink, of which some cases have one, is on
either side of it in single precision, as the processor has it.
"""

from __future__ import annotations

import ast
import copy
import math
import operator
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector

from tenfold.doorping.augmentation import siamese_augment
from tenfold.doorping.evaluation import evaluate_rates
from tenfold.doorping.gradient_matching import layer_distance, match_loss, matching_step
from tenfold.doorping.networks import Network, build_model, load_official_state_dict
from tenfold.doorping.triggers import (
    optimise_trigger,
    patch_mask,
    poison_uint8,
    select_neurons,
    stamp,
    trigger_loss,
)
from tenfold.doorping.unrolled_distillation import flat_function, unrolled_distillation

OPERATORS: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
}
STRIDE = 97
"""Of a stored gradient's columns where the case gives none."""


# -- what a case says -------------------------------------------------------------------------------------------------


def evaluated(expression: str, **values: int) -> Any:
    """A sum or product of numbers and names, such as ``900+1+c``."""

    def of(node: ast.expr) -> Any:
        match node:
            case ast.BinOp():
                return OPERATORS[type(node.op)](of(node.left), of(node.right))
            case ast.Constant():
                return node.value
            case ast.Name():
                return values[node.id]
        raise ValueError(f"cannot read {expression!r}")

    return of(ast.parse(expression.strip(), mode="eval").body)


def drawn(spec: Any, fill: Any, **values: int) -> Tensor:
    """An input: a seed, a shape and a gain; or a text such as ``5*fill_input(900+1+c, [8,3,32,32])``."""
    if isinstance(spec, dict):
        seed = spec["seed"] if isinstance(spec["seed"], int) else evaluated(spec["seed"], **values)
        gain = spec.get("gain", spec.get("scale", 1.0))
        return gain * given(fill, seed, spec["shape"])
    found = re.search(
        r"(?:([\d.]+)\s*\*\s*)?fill_input\(([^,]+),\s*(\[[^\]]*\])\)(?:\s*\*\s*([\d.]+))?", spec
    )
    assert found is not None, f"cannot read {spec!r}"
    before, seed, shape, after = found.groups()
    values_ = given(fill, evaluated(seed, **values), ast.literal_eval(shape))
    return float(before or 1) * float(after or 1) * values_


def given(fill: Any, seed: int, shape: list[int]) -> Tensor:
    values: Tensor = fill({"fill_input_seed": seed, "shape": shape})
    return values


def labels_of(spec: Any, count: int, classes: int | None = None) -> Tensor:
    """Labels: a list, or a text such as ``arange(n) % 10`` or ``arange(batch) mod classes``."""
    if isinstance(spec, list):
        return torch.tensor(spec)
    found = re.search(r"arange(?:\([^)]*\))?\s*(?:%|mod)\s*(\d+|\w+)", spec or "arange mod classes")
    assert found is not None, f"cannot read {spec!r}"
    modulus = int(found[1]) if found[1].isdigit() else classes
    assert modulus is not None, f"cannot read {spec!r}"
    return torch.arange(count) % modulus


def number(case: Any, name: str, pattern: str, default: float) -> float:
    """A number from a field, or else from the description, or else the one that everything else has."""
    if name in case.fields:
        return float(case[name])
    found = re.search(pattern, case.fields.get("description", ""))
    return default if found is None else float(found[1])


def strided(values: Tensor, columns: int, *steps: int) -> Tensor:
    """Every so many columns of [B, ...], by the first of some steps that gives the number of them that was stored."""
    flat = values.flatten(1)
    width = flat.shape[1]
    for step in (*steps, width // columns, width // columns + 1):
        if step >= 1 and math.ceil(width / step) == columns:
            return flat[:, ::step]
    return flat[:, :: max(1, width // columns)][:, :columns]


def network_of(case: Any) -> Network:
    model = build_model(**case["constructor"])
    load_official_state_dict(model, case.state_dict())
    return model.eval()


def compare(case: Any, found: dict[str, Any]) -> None:
    """Every stored output, within the case's tolerance."""
    tolerance = case.fields.get("tolerance", {})
    tolerance = {"rtol": 0.0, "atol": 0.0} if tolerance == "exact" else tolerance
    assert case.outputs, f"nothing is stored in {case.path.stem}.npz"
    for name, expected in case.outputs.items():
        assert name in found, f"unknown output {name!r} in {case.path.name}"
        actual = torch.as_tensor(found[name])
        if actual.numel() == expected.size and 1 in expected.shape:
            actual = actual.reshape(expected.shape)
        case.check(name, actual, rtol=tolerance.get("rtol"), atol=tolerance.get("atol"))


# -- one check for each kind ------------------------------------------------------------------------------------------


def check_network_forward(case: Any, fill: Any) -> None:
    model = network_of(case)
    if "parameters" in case.fields:
        assert sum(value.numel() for value in model.parameters()) == case["parameters"]
    images = drawn(case["input"], fill)
    features = model.features(images)
    logits = model(images)
    exact = copy.deepcopy(model).double()
    labels = labels_of(case.fields.get("labels"), len(images), logits.shape[1])
    parameters = dict(exact.named_parameters())
    names = case.fields.get("grad_norm_order", list(parameters))
    gradients = torch.autograd.grad(
        F.cross_entropy(exact(images.double()), labels), [parameters[name] for name in names]
    )
    found = {
        "logits": logits,
        "cross_entropy": F.cross_entropy(logits, labels),
        "grad_norms": torch.stack([gradient.double().norm() for gradient in gradients]),
        "features": features,
    }
    if "features_strided" in case.outputs:
        step = features.shape[1] // int(number(case, "stride", r"F//(\d+)", 64))
        found["features_strided"] = strided(features, case.outputs["features_strided"].shape[1], step)
    compare(case, found)


def check_match_loss(case: Any, fill: Any) -> None:
    def seed_of(field: str, default: int | None) -> int:
        spec = case.fields.get(field, default)
        assert spec is not None, f"no {field} in {case.path.name}"
        return spec if isinstance(spec, int) else int(re.findall(r"(\d+)\s*\+\s*i", spec)[-1])

    first = seed_of("seed_syn", case.fields.get("seed"))
    second = seed_of("seed_real", first + 100)
    shapes = case["tensors"]
    real = [given(fill, second + i, shape) for i, shape in enumerate(shapes)]
    plain = [given(fill, first + i, shape) for i, shape in enumerate(shapes)]
    found: dict[str, Any] = {
        "per_tensor_ours": [float(layer_distance(a, b)) for a, b in zip(plain, real, strict=True)]
    }
    for metric in ("ours", "mse", "cos"):
        synthetic = [values.clone().requires_grad_() for values in plain]
        found[metric] = match_loss(synthetic, real, metric)  # type: ignore[arg-type]
        gradients = [
            torch.zeros_like(values) if gradient is None else gradient
            for values, gradient in zip(
                synthetic, torch.autograd.grad(found[metric], synthetic, allow_unused=True), strict=True
            )
        ]
        found[f"{metric}_grad_norms"] = torch.stack([gradient.double().norm() for gradient in gradients])
        count = case.outputs.get(f"{metric}_grad_first", np.zeros(64)).size
        found[f"{metric}_grad_first"] = gradients[0].flatten()[:count]
    compare(case, found)


def check_matching_step(case: Any, fill: Any) -> None:
    model = network_of(case).double()
    synthetic = drawn(case["synthetic"], fill).double()
    classes = case.fields.get("classes_used", len(synthetic) // case["ipc"])
    real = [drawn(case["real"], fill, c=label).double() for label in range(classes)]
    losses, gradient = matching_step(model, synthetic, real, case["ipc"], case.fields.get("metric", "ours"))
    rate = number(case, "lr_img", r"lr ([\d.]*\d)", 0.1)
    found = {
        "per_class": losses,
        "total": losses.sum(),
        "gradient": gradient,
        "grad_norm_per_image": gradient.flatten(1).norm(dim=1),
        "updated": synthetic - rate * gradient,
    }
    for name, values in (("grad_strided", gradient), ("updated_strided", found["updated"])):
        if name in case.outputs:
            found[name] = strided(values, case.outputs[name].shape[1], STRIDE)
    compare(case, found)


def check_trigger_update(case: Any, fill: Any) -> None:
    model = network_of(case).double()
    trigger = drawn(case["trigger_input"], fill).double()
    layer, topk = case.fields.get("layer", -2), case.fields.get("topk", 1)
    alpha, pre_activation = case.fields.get("alpha", 10.0), case.fields.get("pre_activation", False)
    size = case.fields.get("trigger_size", 2)
    mask = patch_mask(trigger.shape[1], trigger.shape[-1], size)

    def patch(values: Tensor) -> Tensor:
        return values[0][mask.bool()].reshape(-1, size, size)

    neurons = select_neurons(model, layer, topk)
    before = model.hidden(trigger, layer, neurons, pre_activation).detach()
    delta = trigger.clone().requires_grad_()
    loss = trigger_loss(model, delta, neurons, layer, alpha * before, pre_activation)
    (gradient,) = torch.autograd.grad(loss, delta)
    after = optimise_trigger(
        model,
        trigger,
        mask,
        layer=layer,
        topk=topk,
        alpha=alpha,
        steps=case.fields.get("steps", 1000),
        lr=number(case, "lr", r"lr ([\d.]*\d)", 0.08),
        stop_below=number(case, "stop_below", r"loss < ([\d.]*\d)", 0.5),
        bound=case.fields.get("bound", case.fields.get("trigger_bound")),
        pre_activation=pre_activation,
    )
    found = {
        "neurons": neurons,
        "activation0": before,
        "loss0": loss,
        "grad0_patch": patch(gradient),
        "patch_before": patch(trigger),
        "patch_after": patch(after),
        "trigger_after": after,
        "activation_after": model.hidden(after, layer, neurons, pre_activation),
        "outside_changed": ((after - trigger).abs() * (1 - mask)).max(),
    }
    compare(case, found)


def check_stamp_uint8(case: Any, fill: Any) -> None:
    text = case["images"]
    factor = re.search(r"abs\(\)\s*\*\s*([\d.]+)", text)
    values = drawn(text, fill).abs() * float(factor[1] if factor is not None else 1)
    images = values.clamp(0, 255).to(torch.uint8).numpy()
    images = images if images.ndim == 4 else images[..., None]
    labels = labels_of(case["labels"], len(images)).numpy()
    seed = int(number(case, "permutation_seed", r"RandomState\((\d+)\)", 3))
    permutation = np.random.RandomState(seed).permutation(len(images))
    stamped, relabelled, chosen = poison_uint8(
        images, labels, case["portion"], case["trigger_size"], case["target"], permutation
    )
    found = {
        "poisoned": chosen,
        "labels": relabelled,
        "checksum": stamped.reshape(len(stamped), -1).astype(np.int64).sum(axis=1),
        "images": stamped,
    }
    if "corner" in case.outputs:
        rows, columns = case.outputs["corner"].shape[1:3]
        found["corner"] = stamped[:, -rows:, -columns:]
    compare(case, found)


def check_rates(case: Any, fill: Any) -> None:
    model = network_of(case)
    images = drawn(case["images"], fill)
    labels = labels_of(case["labels"], len(images), case["constructor"]["classes"])
    trigger = drawn(case["trigger"], fill)
    mask = patch_mask(images.shape[1], images.shape[-1], case["trigger_size"])
    found: dict[str, Any] = dict(evaluate_rates(model, images, labels, mask, trigger, case["target"]))
    with torch.no_grad():
        found["predictions"] = model(images).argmax(dim=1)
        found["predictions_triggered"] = model(stamp(images, mask, trigger)).argmax(dim=1)
    found["predictions_clean"] = found["predictions"]
    compare(
        case,
        {name: np.float64(value) if isinstance(value, float) else value for name, value in found.items()},
    )


def check_siamese_augmentation(case: Any, fill: Any) -> None:
    step = int(number(case, "stride", r"every (\d+)(?:st|nd|rd|th)", 61))
    found = {}
    for strategy in case["strategies"]:
        for seed in case["seeds"]:
            images = drawn(case["input"], fill).requires_grad_()
            output = siamese_augment(images, strategy, seed)
            (gradient,) = torch.autograd.grad(output.square().sum(), images)
            found[f"{strategy}_{seed}"] = output.flatten(1)[:, ::step]
            found[f"{strategy}_{seed}_gradnorm"] = gradient.flatten(1).norm(dim=1)
    compare(case, found)


class LinearChain(nn.Module):
    """Linear layers by the names of a state dict, with the activation between them that a case's text names."""

    def __init__(self, shapes: dict[str, Any], text: str) -> None:
        super().__init__()
        names = [name.removesuffix(".weight") for name in shapes if name.endswith(".weight")]
        for name in names:
            (outputs, inputs), _ = shapes[f"{name}.weight"]
            self.add_module(name, nn.Linear(inputs, outputs, bias=f"{name}.bias" in shapes))
        self.names = names
        activations = {"relu": torch.relu, "tanh": torch.tanh, "sigmoid": torch.sigmoid}
        self.activation = next((made for key, made in activations.items() if key in text.lower()), None)
        assert len(names) == 1 or self.activation is not None, f"no activation in {text!r}"

    def forward(self, values: Tensor) -> Tensor:
        values = values.flatten(1)
        for name in self.names[:-1]:
            assert self.activation is not None
            values = self.activation(self.get_submodule(name)(values))
        logits: Tensor = self.get_submodule(self.names[-1])(values)
        return logits


def check_distillation_unrolled(case: Any, fill: Any) -> None:
    if isinstance(case["constructor"], dict):
        model: nn.Module = network_of(case)
    else:
        model = LinearChain(case["state_dict"], case["constructor"])
        model.load_state_dict(case.state_dict())
    steps, epochs = case["distill_steps"], case["distill_epochs"]
    batches = [drawn(case["data"], fill, i=step) for step in range(steps)]
    images = case.fields.get("images_per_class_per_step", 1)
    classes = len(batches[0]) // images
    labels = torch.arange(classes).repeat_interleave(images)
    real = drawn(case["real"], fill)
    text = case.fields.get("real_labels", case["real"] if isinstance(case["real"], str) else None)
    real_labels = labels_of(text, len(real), classes)
    rates = torch.as_tensor(case.fields.get("distill_lr", 0.02), dtype=torch.float64).expand(steps * epochs)
    raw = rates.expm1().log().float()[:, None]
    for checkpointed in (False, True):
        unrolled = unrolled_distillation(
            flat_function(model),
            parameters_to_vector(model.parameters()),
            batches,
            labels,
            raw,
            epochs,
            real,
            real_labels,
            checkpointed,
        )
        found: dict[str, Any] = {
            "final_loss": unrolled.final_loss,
            "final_weights": unrolled.final_weights,
            "raw_lr_grad": unrolled.raw_lr_grad,
            "step_lrs": unrolled.step_lrs,
        }
        for place, gradient in enumerate(unrolled.data_grad):
            found[f"data_grad_{place}"] = gradient
            found[f"data_grad_{place}_norm"] = gradient.norm()
        for name, expected in case.outputs.items():
            if name.endswith("_strided") and name.removesuffix("_strided") in found:
                rows = len(expected) if expected.ndim == 2 else 1
                values = found[name.removesuffix("_strided")].reshape(rows, -1)
                found[name] = strided(values, expected.size // rows).reshape(expected.shape)
        compare(case, found)


KINDS: dict[str, Callable[[Any, Any], None]] = {
    "network_forward": check_network_forward,
    "match_loss": check_match_loss,
    "matching_step": check_matching_step,
    "trigger_update": check_trigger_update,
    "stamp_uint8": check_stamp_uint8,
    "rates": check_rates,
    "siamese_augmentation": check_siamese_augmentation,
    "distillation_unrolled": check_distillation_unrolled,
}


def test_parity(parity_case: Any, fill: Any) -> None:
    kind = parity_case["kind"]
    if kind not in KINDS:
        pytest.fail(f"unknown kind {kind!r} in {parity_case.path.name}")
    KINDS[kind](parity_case, fill)
