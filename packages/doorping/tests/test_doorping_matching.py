"""Gradient matching: all classes at once give what a loop over them gives, and the distances are the paper's."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import tenfold.doorping.gradient_matching as gradient_matching
from tenfold.doorping.gradient_matching import (
    GradientMatcher,
    Metric,
    layer_distance,
    match_loss,
    matching_step,
    padded,
)
from tenfold.doorping.networks import build_model, seeded
from tenfold.shared.logging import TenfoldError

METRICS: tuple[Metric, ...] = ("ours", "mse", "cos")


def noise(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


# -- distances, by plain arithmetic ---------------------------------------------------------------------------------


def row_distance(synthetic: list[float], real: list[float]) -> float:
    product = sum(a * b for a, b in zip(synthetic, real, strict=True))
    norms = [math.sqrt(sum(value * value for value in values)) for values in (synthetic, real)]
    return 1 - product / (norms[0] * norms[1] + 1e-6)


SHAPES = ((4, 3, 3, 3), (4,), (3, 5, 5), (6, 8), (6,))
SYNTHETIC = [noise(*shape, seed=10 + place, dtype=torch.float64) for place, shape in enumerate(SHAPES)]
REAL = [noise(*shape, seed=20 + place, dtype=torch.float64) for place, shape in enumerate(SHAPES)]


@pytest.mark.parametrize("place", range(len(SHAPES)))
def test_a_layers_distance_is_the_sum_of_one_minus_cosine_over_rows(place: int) -> None:
    synthetic, real = SYNTHETIC[place], REAL[place]
    rows = (
        zip(synthetic.flatten(1).tolist(), real.flatten(1).tolist(), strict=True)
        if synthetic.ndim > 1
        else ()
    )
    expected = sum(row_distance(a, b) for a, b in rows)
    assert float(layer_distance(synthetic, real)) == pytest.approx(expected, rel=1e-12)
    assert (expected == 0) == (synthetic.ndim == 1)


def test_the_three_distances_of_all_layers() -> None:
    flat = [torch.cat([value.flatten() for value in values]).tolist() for values in (SYNTHETIC, REAL)]
    expected = {
        "ours": sum(float(layer_distance(a, b)) for a, b in zip(SYNTHETIC, REAL, strict=True)),
        "mse": sum((a - b) ** 2 for a, b in zip(*flat, strict=True)),
        "cos": row_distance(*flat),
    }
    for metric in METRICS:
        assert float(match_loss(SYNTHETIC, REAL, metric)) == pytest.approx(expected[metric], rel=1e-12)


@pytest.mark.parametrize("metric", METRICS)
def test_the_distances_have_the_gradients_that_differences_show(metric: Metric) -> None:
    def distance(*values: Tensor) -> Tensor:
        return match_loss(values, REAL, metric)

    inputs = tuple(value.clone().requires_grad_() for value in SYNTHETIC)
    assert torch.autograd.gradcheck(distance, inputs)


@pytest.mark.parametrize("metric", METRICS)
def test_gradients_of_0_have_a_finite_distance_and_derivative(metric: Metric) -> None:
    silent = [torch.zeros_like(value).requires_grad_() for value in SYNTHETIC]
    distance = match_loss(silent, REAL, metric)
    found = torch.autograd.grad(distance, silent, allow_unused=True)
    assert math.isfinite(float(distance.detach()))
    assert all(value is None or bool(value.isfinite().all()) for value in found)


def test_what_cannot_be_compared_is_refused() -> None:
    with pytest.raises(
        TenfoldError, match=r"different shapes cannot be compared: \[1, 2, 3\] and \[1, 3, 2\]"
    ):
        layer_distance(torch.ones(2, 3), torch.ones(3, 2))
    with pytest.raises(TenfoldError, match="unknown distance 'dot'; choose ours, mse or cos"):
        match_loss(SYNTHETIC, REAL, "dot")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="argument 2 is shorter"):
        match_loss(SYNTHETIC, REAL[:-1])


# -- all classes at once ----------------------------------------------------------------------------------------------


def make(name: str = "ConvNet", channels: int = 3, **options: Any) -> nn.Module:
    options = {"width": 8, "depth": 2, "hidden": 12, "image_size": 12, **options}
    with seeded(1):
        model = build_model(name, channels, 4, **options)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean = noise(module.num_features, seed=3)
            module.running_var = noise(module.num_features, seed=4).abs() + 0.5
    return model.eval()


def plain_distance(synthetic: list[Tensor], real: list[Tensor], metric: Metric) -> Tensor:
    """Row by row."""
    if metric == "ours":
        total = torch.zeros((), dtype=synthetic[0].dtype)
        for a, b in zip(synthetic, real, strict=True):
            for row, other in zip(a, b, strict=True) if a.ndim > 1 else ():
                length = row.square().sum().clamp_min(1e-30).sqrt() * other.square().sum().sqrt()
                total = total + 1 - (row * other).sum() / (length + 1e-6)
        return total
    a, b = (torch.cat([value.flatten() for value in values]) for values in (synthetic, real))
    return ((a - b) ** 2).sum() if metric == "mse" else 1 - (a @ b) / ((a @ a).sqrt() * (b @ b).sqrt() + 1e-6)


def plain_step(
    model: nn.Module, synthetic: Tensor, real: list[Tensor], ipc: int, metric: Metric
) -> tuple[Tensor, Tensor]:
    """Class by class, as the authors do it."""
    images, parameters, losses = synthetic.clone().requires_grad_(), list(model.parameters()), []
    for label, batch in enumerate(real):
        loss = F.cross_entropy(model(batch), torch.full((len(batch),), label))
        wanted = list(torch.autograd.grad(loss, parameters))
        own = images[label * ipc : (label + 1) * ipc]
        loss = F.cross_entropy(model(own), torch.full((ipc,), label))
        found = list(torch.autograd.grad(loss, parameters, create_graph=True))
        losses.append(plain_distance(found, wanted, metric))
    (gradient,) = torch.autograd.grad(torch.stack(losses).sum(), images)
    return torch.stack(losses).detach(), gradient


def inputs(dtype: torch.dtype, channels: int = 3, size: int = 12) -> tuple[Tensor, list[Tensor]]:
    """Three synthetic images for each of four classes, and real ones of classes of different sizes."""
    real = [noise(count, channels, size, size, seed=30 + count, dtype=dtype) for count in (5, 3, 8, 1)]
    return noise(12, channels, size, size, seed=5, dtype=dtype), real


def close(found: Tensor, expected: Tensor, tolerance: float) -> None:
    assert expected.abs().max() > 0
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance * float(expected.abs().max()))


NETWORKS: list[tuple[str, dict[str, Any]]] = [
    ("ConvNet", {}),
    ("ConvNet", {"channels": 1, "activation": "leakyrelu", "pooling": "maxpooling"}),
    ("ConvNet", {"norm": "instancenorm", "activation": "sigmoid"}),
    ("ConvNet", {"norm": "groupnorm", "pooling": "none"}),
    ("ConvNet", {"norm": "layernorm"}),
    ("ConvNet", {"norm": "batchnorm"}),
    ("ConvNet_B", {}),
    ("AlexNet", {}),
]


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize(("name", "options"), NETWORKS)
def test_a_step_for_all_classes_is_that_of_a_loop_over_them(
    name: str, options: dict[str, Any], metric: Metric
) -> None:
    model = make(name, **options).double()
    synthetic, real = inputs(torch.float64, options.get("channels", 3))
    losses, gradient = matching_step(model, synthetic, real, 3, metric)
    expected_losses, expected_gradient = plain_step(model, synthetic, real, 3, metric)
    close(losses, expected_losses, 1e-9)
    close(gradient, expected_gradient, 1e-7)
    assert not losses.requires_grad and not gradient.requires_grad


@pytest.mark.parametrize(
    ("name", "options", "metric"),
    [
        *((*NETWORKS[place], metric) for place in (0, 2, 4) for metric in METRICS),
        *((*NETWORKS[-1], metric) for metric in METRICS[:2]),
    ],
)
def test_single_precision_is_enough_for_a_step(name: str, options: dict[str, Any], metric: Metric) -> None:
    model = make(name, **options)
    synthetic, real = inputs(torch.float32)
    found = matching_step(model, synthetic, real, 3, metric)
    real = [batch.double() for batch in real]
    expected = plain_step(model.double(), synthetic.double(), real, 3, metric)
    for one, exact in zip(found, expected, strict=True):
        assert float((one - exact).norm()) < 1e-5 * float(exact.norm())


def test_the_gradient_is_the_one_that_differences_show() -> None:
    model = make(activation="sigmoid", norm="groupnorm", image_size=6, depth=1, width=4).double()
    synthetic, real = inputs(torch.float64, size=6)
    matcher, labels = GradientMatcher(model), torch.arange(4)
    targets = matcher.real_gradients(*padded_with_labels(real))

    def losses(images: Tensor) -> Tensor:
        return matcher.losses(images.unflatten(0, (4, 3)), labels, targets)

    assert torch.autograd.gradcheck(losses, (synthetic.requires_grad_(),), fast_mode=True)


def padded_with_labels(real: list[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    images, weights = padded(real)
    return images, torch.arange(len(real)), weights


def test_padding_counts_nothing() -> None:
    real = inputs(torch.float64)[1]
    images, weights = padded(real)
    assert images.shape == (4, 8, 3, 12, 12)
    assert weights.sum(dim=1).tolist() == [5, 3, 8, 1]
    for own, batch, filled in zip(weights, real, images, strict=True):
        assert torch.equal(filled[own > 0], batch)
    matcher = GradientMatcher(make().double(), "mse")
    expected = matcher.gradients(images, torch.arange(4), weights)
    images[weights == 0] = 1e3
    for name, value in matcher.gradients(images, torch.arange(4), weights).items():
        torch.testing.assert_close(value, expected[name])


def test_batches_of_one_size_may_come_as_one_tensor() -> None:
    model, (synthetic, _) = make(), inputs(torch.float32)
    real = noise(4, 6, 3, 12, 12, seed=8)
    for one, other in zip(
        matching_step(model, synthetic, real, 3), matching_step(model, synthetic, list(real), 3), strict=True
    ):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize(("limit", "value"), [("IMAGES_AT_ONCE", 16), ("PIXELS_BY_CLASS", 1)])
def test_real_gradients_do_not_depend_on_how_many_are_taken_at_once(
    limit: str, value: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    matcher = GradientMatcher(make().double(), "mse")
    images, labels, weights = padded_with_labels(inputs(torch.float64)[1])
    expected = matcher.gradients(images, labels, weights)
    monkeypatch.setattr(gradient_matching, limit, value)
    found = matcher.real_gradients(images, labels, weights)
    assert found.keys() == expected.keys()
    for name in found:
        close(found[name], expected[name], 1e-10)


def test_gradients_that_the_distance_ignores_are_not_taken() -> None:
    model = make(norm="instancenorm")
    images, labels, weights = padded_with_labels(inputs(torch.float32)[1])
    names = {name for name, value in model.named_parameters() if value.ndim > 1}
    assert GradientMatcher(model).gradients(images, labels, weights).keys() == names
    everything = dict(model.named_parameters()).keys()
    assert GradientMatcher(model, "cos").gradients(images, labels, weights).keys() == everything


def test_a_step_changes_neither_network_nor_images() -> None:
    model = make(norm="batchnorm")
    synthetic, real = inputs(torch.float32)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    matching_step(model, synthetic, real, 3)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(value.grad is None for value in model.parameters())
    assert torch.equal(synthetic, inputs(torch.float32)[0]) and not synthetic.requires_grad


def test_following_the_gradient_brings_the_distance_down() -> None:
    model = make()
    images, real = inputs(torch.float32)
    found = []
    for _ in range(20):
        losses, gradient = matching_step(model, images, real, 3)
        images = images - 0.5 * gradient
        found.append(float(losses.sum()))
    assert found[-1] < 0.9 * found[0]
    assert sum(later < former for former, later in pairwise(found)) > 15


def test_other_numbers_of_images_are_refused() -> None:
    synthetic, real = inputs(torch.float32)
    with pytest.raises(TenfoldError, match="12 synthetic images are not 2 for each of 4 classes"):
        matching_step(make(), synthetic, real, 2)
