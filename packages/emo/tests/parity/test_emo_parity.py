"""EMO against the reference implementation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from tenfold.emo.anchors import retinanet_anchors, ssdlite_anchors
from tenfold.emo.blocks import InvertedResidualMobileBlock
from tenfold.emo.checkpoints import (
    load_official_block,
    load_official_state_dict,
    official_block_names,
    to_official,
)
from tenfold.emo.complexity import count_flops, count_parameters
from tenfold.emo.model import EMO, build_model, features
from tenfold.emo.recipe import (
    ExponentialMovingAverage,
    distillation_loss,
    label_smoothing_loss,
    learning_rate,
    parameter_groups,
    soft_target_loss,
    train_step,
)


def make_model(case: Any) -> EMO:
    model = build_model(
        case["model"].lower(),
        case.fields.get("num_classes", 1000),
        case.fields.get("drop_path"),
        case.fields.get("window_sizes"),
    )
    report = load_official_state_dict(model, case.state_dict())
    assert report.loaded == len(case["state_dict"])
    return model.eval()


def input_of(case: Any, fill: Any, name: str) -> Tensor:
    spec = case["inputs"][name]
    values: Tensor = fill(
        {"fill_input_seed": spec["seed"], "shape": spec["shape"], "scale": spec.get("scale", 1.0)}
    )
    return values


def statistics(values: Tensor) -> Tensor:
    values = values.detach().double()
    return torch.stack((values.mean(), values.std(correction=0), values.norm(), values.abs().max()))


@torch.no_grad()
def check_logits(case: Any, fill: Any) -> None:
    model = make_model(case)
    maps = model.forward_features(input_of(case, fill, "image"))
    logits = model.forward_head(maps)
    case.check("logits", logits, atol=1e-4)
    case.check("pooled_features", model.forward_head(maps, pre_logits=True), atol=1e-4)
    case.check("logits_stats", statistics(logits), atol=1e-4)


@torch.no_grad()
def check_features(case: Any, fill: Any) -> None:
    steps = (4, 4, 4, 2, 1)
    for number, found in enumerate(features(make_model(case), input_of(case, fill, "image"))):
        case.check(f"stage{number}", found[:, ::4, :: steps[number], :: steps[number]], atol=1e-4)
        case.check(f"stage{number}_stats", statistics(found), atol=1e-4)
        case.check(f"stage{number}_shape", torch.tensor(found.shape))


def check_block(case: Any, fill: Any) -> None:
    block = InvertedResidualMobileBlock(**case["constructor"]).eval()
    load_official_block(block, case.state_dict())
    x = input_of(case, fill, "x").requires_grad_()
    output = block(x)
    case.check("output", output, atol=1e-5)
    case.check("output_stats", statistics(output), atol=1e-5)
    (output * input_of(case, fill, "cotangent")).sum().backward()
    assert x.grad is not None
    gradients: dict[str, Any] = {"input": x.grad}
    parameters = dict(block.named_parameters())
    for official, ours in official_block_names(block).items():
        if ours in parameters:
            gradients[official] = parameters[ours].grad
    norms = torch.stack([gradients[name].double().norm() for name in case["gradient_names"]])
    case.check("grad_norms", norms, atol=1e-5)
    case.check("input_grad_stats", statistics(x.grad), atol=1e-5)


def check_parameters_flops(case: Any, fill: Any) -> None:
    parameters, flops = [], []
    for name, expected in case["table"].items():
        model = build_model(name.lower()).eval()
        assert len(model.state_dict()) == expected["state_dict_entries"]
        assert sum(value.numel() for value in model.buffers()) == expected["buffers"]
        head = count_parameters(model.head)  # type: ignore[arg-type]
        assert count_parameters(model) - head == expected["parameters_without_head"]
        by_module: dict[str, int] = {}
        for key, value in to_official(model).items():
            if not key.endswith(("running_mean", "running_var", "num_batches_tracked")):
                by_module[key.split(".")[0]] = by_module.get(key.split(".")[0], 0) + value.numel()
        assert by_module == expected["parameters_by_module"]
        for field, counts in expected.items():
            if field.startswith("flops_"):
                found = count_flops(model, int(field.removeprefix("flops_")))
                assert found.pop("total") == counts["total"], field
                assert found == counts["by_operator"], field
        parameters.append(count_parameters(model))
        flops.append(count_flops(model, 224)["total"])
    assert parameters == case.outputs["parameters"].tolist()
    assert flops == case.outputs["flops_224"].tolist()


def check_learning_rate(case: Any, fill: Any) -> None:
    arguments = dict(case["arguments"])
    noise = arguments.pop("noise", None)
    if isinstance(noise, dict):
        arguments |= {f"noise_{key}".replace("noise_noise", "noise"): value for key, value in noise.items()}
    elif noise is not None:
        arguments["noise_range"] = tuple(noise)
    found = [learning_rate(int(iteration), **arguments) for iteration in case.outputs["iteration"]]
    case.check("lr", torch.tensor(found, dtype=torch.float64), rtol=1e-9, atol=0)


def check_parameter_groups(case: Any, fill: Any) -> None:
    model = build_model(case["model"].lower())
    official = dict(zip(model.state_dict(), to_official(model), strict=True))
    groups = parameter_groups(model, case["groups"][1]["weight_decay"])
    for found, expected in zip(groups, case["groups"], strict=True):
        assert found["weight_decay"] == expected["weight_decay"]
        assert {official[name] for name in found["names"]} == set(expected["names"])
    counts = torch.tensor([len(group["params"]) for group in groups])
    if case.outputs["counts"].shape == (4,):
        counts = torch.cat(
            (counts, torch.tensor([sum(p.numel() for p in group["params"]) for group in groups]))
        )
    case.check("counts", counts)
    case.check("weight_decay", torch.tensor([group["weight_decay"] for group in groups], dtype=torch.float64))


def check_losses(case: Any, fill: Any) -> None:
    teacher = input_of(case, fill, "teacher")
    targets = torch.tensor(case["targets"])
    for name in case.outputs:
        if name.endswith("_grad_row0"):
            continue
        logits = input_of(case, fill, "logits").requires_grad_()
        if name.startswith("label_smoothing_"):
            loss = label_smoothing_loss(logits, targets, float(name.removeprefix("label_smoothing_")))
        elif name == "soft_target_ce":
            loss = soft_target_loss(logits, teacher.softmax(dim=1))
        elif name.startswith("distill_soft_tau"):
            loss = distillation_loss(logits, teacher, "soft", float(name.removeprefix("distill_soft_tau")))
        elif name == "distill_hard":
            loss = distillation_loss(logits, teacher, "hard")
        else:
            raise AssertionError(f"unknown loss {name!r} in {case.path.name}")
        loss.backward()  # type: ignore[no-untyped-call]
        assert logits.grad is not None
        case.check(name, torch.stack((loss.detach(), logits.grad.norm())), rtol=1e-5, atol=0)
        case.check(f"{name}_grad_row0", logits.grad[0], rtol=1e-5, atol=1e-8)


def check_train_steps(case: Any, fill: Any) -> None:
    model = make_model(case).double()
    official = dict(zip(model.state_dict(), to_official(model), strict=True))
    images, targets = input_of(case, fill, "image").double(), torch.tensor(case["targets"])
    label_smoothing_loss(model.train()(images), targets).backward()  # type: ignore[no-untyped-call]
    gradients = {
        official[name]: value.grad.norm()
        for name, value in model.named_parameters()
        if value.grad is not None
    }
    dead = [name for name in case["parameter_names"] if name == "stage0.0.convs.0.0.bias"]
    expected = torch.as_tensor(case.outputs["grad_norms"])
    for name, value in zip(case["parameter_names"], expected, strict=True):
        tolerance = {"rtol": 0, "atol": 1e-9} if name in dead else {"rtol": 1e-6, "atol": 0}
        torch.testing.assert_close(gradients[name], value, **tolerance)
    model = make_model(case).double()
    average = ExponentialMovingAverage(model, decay=0.9998)
    optimizer = torch.optim.AdamW(parameter_groups(model, 0.05), lr=1e-3, betas=(0.9, 0.999), eps=1e-8)
    results = [train_step(model, images, targets, optimizer, average=average) for _ in case.outputs["losses"]]
    case.check("losses", torch.stack([result.loss for result in results]), rtol=1e-6, atol=0)
    case.check(
        "grad_norm_before_clip", torch.stack([result.grad_norm for result in results]), rtol=1e-6, atol=0
    )
    for prefix, network in (("after", model), ("ema", average.model)):
        state = to_official(network)
        for name in case.outputs:
            if name.startswith(f"{prefix}."):
                value = state[name.removeprefix(f"{prefix}.")].flatten()[:64]
                case.check(name, value, rtol=1e-6, atol=1e-9)
    with torch.no_grad():
        case.check("ema_logits_eval", average.model(images), rtol=1e-6, atol=1e-9)


def check_ssdlite_anchors(case: Any, fill: Any) -> None:
    arguments = case["arguments"]
    found, base = ssdlite_anchors(
        320, arguments["strides"], arguments["ratios"], arguments["min_sizes"], arguments["max_sizes"]
    )
    case.check("anchors", found, rtol=0, atol=1e-3)
    case.check("base_anchors_level0", base[0], rtol=0, atol=1e-3)


def check_retinanet_anchors(case: Any, fill: Any) -> None:
    found = retinanet_anchors([tuple(size) for size in case["arguments"]["feature_sizes"]])
    case.check("anchors", found, rtol=0, atol=1e-3)


KINDS: dict[str, Callable[[Any, Any], None]] = {
    "logits": check_logits,
    "features": check_features,
    "block": check_block,
    "parameters_flops": check_parameters_flops,
    "learning_rate": check_learning_rate,
    "parameter_groups": check_parameter_groups,
    "losses": check_losses,
    "train_steps": check_train_steps,
    "ssdlite_anchors": check_ssdlite_anchors,
    "retinanet_anchors": check_retinanet_anchors,
}


def test_parity(parity_case: Any, fill: Any) -> None:
    kind = parity_case["kind"]
    if kind not in KINDS:
        pytest.fail(f"unknown kind {kind!r} in {parity_case.path.name}")
    KINDS[kind](parity_case, fill)
