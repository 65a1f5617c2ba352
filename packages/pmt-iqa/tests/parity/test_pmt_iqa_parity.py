"""PMT-IQA against the reference implementation."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tenfold.pmt_iqa.checkpoints import load_official_state_dict, official_to_ours, ours_to_official
from tenfold.pmt_iqa.evaluation import median_over_runs, patch_average_metrics
from tenfold.pmt_iqa.levels import quality_level
from tenfold.pmt_iqa.losses import multitask_loss
from tenfold.pmt_iqa.model import MultiTaskNetwork, build_model, forward
from tenfold.pmt_iqa.schedules import official_learning_rate, progressive_weights


def make_model(case: Any) -> MultiTaskNetwork:
    model = build_model(case["backbone"], **case["constructor"])
    load_official_state_dict(model, case.state_dict())
    if "parameters" in case.fields:
        assert sum(value.numel() for value in model.parameters()) == case["parameters"]
    return model.train(case["mode"] == "train")


def run_forward(case: Any, model: MultiTaskNetwork, images: Tensor) -> dict[str, Tensor]:
    """The outputs, and the statistics of what each LDA's linear layer sees."""
    pooled: dict[str, Tensor] = {}
    hooks = [
        module.pool.register_forward_hook(lambda _, __, output, scale=scale: pooled.update({scale: output}))
        for scale, module in model.features.lda.items()
    ]
    found = forward(model, images)
    for hook in hooks:
        hook.remove()
    assert len(pooled) == 4
    for scale, value in pooled.items():
        if f"lda{scale}" in case.fields.get("lda_pool_shapes", {}):
            assert list(value.shape) == case["lda_pool_shapes"][f"lda{scale}"]
        value = value.detach().double()
        found[f"lda{scale}_pool_stats"] = torch.stack((value.mean(), value.std(correction=0), value.norm()))
    return {**found, "cls_logits": found["cls"], "multi_scale_vector": found["features"]}


def check_outputs(case: Any, found: dict[str, Any], model: MultiTaskNetwork) -> None:
    """Every stored output, by its name; those of running statistics by the end of their key."""
    buffers = {ours_to_official(key): value for key, value in model.state_dict().items()}
    for name in case.outputs:
        if name == "grad_norms":
            case.check(
                name, found[name], rtol=case["tolerance"]["grad_norms_rtol"], atol=case["tolerance"]["atol"]
            )
            continue
        if name not in found:
            plain = name if name.startswith("res") else f"res.{name}"
            found[name] = next(
                (
                    value
                    for key, value in buffers.items()
                    if re.sub(r"\W", "_", key) == re.sub(r"\W", "_", plain)
                ),
                None,
            )
            assert found[name] is not None, f"unknown output {name!r} in {case.path.name}"
        case.check(name, found[name], rtol=case["tolerance"]["rtol"], atol=case["tolerance"]["atol"])


def input_of(case: Any, fill: Any) -> Tensor:
    images: Tensor = fill({"fill_input_seed": case["input"]["seed"], "shape": case["input"]["shape"]})
    return images


def check_forward(case: Any, fill: Any) -> None:
    model = make_model(case)
    with torch.no_grad():
        check_outputs(case, run_forward(case, model, input_of(case, fill)), model)


def check_loss_gradients(case: Any, fill: Any) -> None:
    model = make_model(case)
    found = run_forward(case, model, input_of(case, fill))
    total, regression, classification = multitask_loss(
        found["mos"],
        found["cls"],
        torch.tensor(case["targets"]["mos"]),
        torch.tensor(case["targets"]["cls"]),
        case["weights"]["lambda1_regression"],
        case["weights"]["lambda2_classification"],
    )
    total.backward()
    gradients = {
        official_to_ours_inverse(key): value.grad
        for key, value in model.named_parameters()
        if value.grad is not None
    }

    def norm(group: str) -> float:
        chosen = [
            grad.double().square().sum()
            for key, grad in gradients.items()
            if group == "all" or key == group or key.startswith(f"{group}.")
        ]
        return float(torch.stack(chosen).sum().sqrt()) if chosen else 0.0

    found["losses_l1_ce_total"] = torch.stack((regression, classification, total))
    found["grad_norms"] = [norm(group) for group in case["grad_norm_groups"]]
    check_outputs(case, found, model)


def official_to_ours_inverse(key: str) -> str:
    official = ours_to_official(key)
    assert official_to_ours(official) == key
    return official


def check_schedules(case: Any, fill: Any) -> None:
    del fill
    for name, expected in case.outputs.items():
        kind, epochs = name.rsplit("_", 1)
        assert len(expected) == int(epochs)
        if kind == "progressive":
            found = [progressive_weights(epoch, int(epochs)) for epoch in range(int(epochs))]
        elif kind == "lr":
            base = case.fields.get("base_lr", 1e-4)
            found = [official_learning_rate(base, epoch) for epoch in range(int(epochs))]
        else:
            pytest.fail(f"unknown schedule {name!r} in {case.path.name}")
        np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-15)


def check_metrics(case: Any, fill: Any) -> None:
    del fill
    crops = case["patches_per_image"]
    predictions, targets = case.outputs["patch_predictions"], case.outputs["patch_targets"]
    np.testing.assert_allclose(
        patch_average_metrics(predictions, targets, crops), case.outputs["metrics"], rtol=1e-9
    )
    by_image = (values.reshape(-1, crops) for values in (predictions, targets))
    predicted, label = by_image
    count = len(case.outputs["runs_metrics"])
    runs = [patch_average_metrics(predicted[i::count], label[i::count], crops) for i in range(count)]
    np.testing.assert_allclose(runs, case.outputs["runs_metrics"], rtol=1e-9)
    np.testing.assert_allclose(median_over_runs(runs), case.outputs["median_of_runs"], rtol=1e-9)


def check_quality_levels(case: Any, fill: Any) -> None:
    del fill
    names = {name.removesuffix("_mos") for name in case.outputs if name.endswith("_mos")}
    assert names
    for name in names:
        labels, expected = case.outputs[f"{name}_mos"], case.outputs[f"{name}_cls"]
        np.testing.assert_array_equal(quality_level(name, labels, clamp=False), expected, err_msg=name)
        clamped = quality_level(name, labels, number_class=10)
        np.testing.assert_array_equal(clamped, np.minimum(expected, 9), err_msg=name)


CHECKS: dict[str, Callable[[Any, Any], None]] = {
    "forward": check_forward,
    "loss_gradients": check_loss_gradients,
    "schedules": check_schedules,
    "metrics": check_metrics,
    "quality_levels": check_quality_levels,
}


def test_parity(parity_case: Any, fill: Any) -> None:
    kind = parity_case["kind"]
    if kind not in CHECKS:
        pytest.fail(f"unknown kind {kind!r} in {parity_case.path.name}")
    CHECKS[kind](parity_case, fill)
