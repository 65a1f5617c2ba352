"""The losses against plain loops over their definitions."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from tenfold.coca.losses import (
    Diagonal,
    collaborative_distillation_loss,
    der_loss,
    derpp_loss,
    ensemble_outputs,
    er_loss,
    masked_cross_entropy,
    present_classes,
    relation_affinity,
    supervised_contrastive_loss,
)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def directions(count: int, seed: int = 0, size: int = 6) -> Tensor:
    return normalize(noise(count, size, seed=seed))


def contrast_by_loops(features: Tensor, labels: list[int], temperature: float) -> float:
    """Section 1: the mean over all anchors of minus the mean log-probability of their positives."""
    count = len(features)
    similarity = [
        [float(features[i] @ features[j]) / temperature for j in range(count)] for i in range(count)
    ]
    losses = []
    for i in range(count):
        others = [a for a in range(count) if a != i]
        largest = max(similarity[i])
        total = math.log(sum(math.exp(similarity[i][a] - largest) for a in others))
        positives = [j for j in others if labels[j] == labels[i]]
        losses.append(-sum(similarity[i][j] - largest - total for j in positives) / len(positives))
    return sum(losses) / count


@pytest.mark.parametrize("temperature", [0.07, 0.5])
@pytest.mark.parametrize("labels", [[0, 1, 0, 2, 1, 0, 3], [4, 4, 4, 4, 4, 4, 4]])
def test_contrast_is_that_of_a_double_loop(labels: list[int], temperature: float) -> None:
    view_a, view_b = directions(7), directions(7, seed=1)
    expected = contrast_by_loops(torch.cat([view_a, view_b]), labels * 2, temperature)
    measured = supervised_contrastive_loss(view_a, view_b, torch.tensor(labels), temperature)
    assert float(measured) == pytest.approx(expected, rel=1e-9)


def test_contrast_without_labels_joins_the_two_views_of_an_image_only() -> None:
    view_a, view_b = directions(5), directions(5, seed=1)
    expected = contrast_by_loops(torch.cat([view_a, view_b]), [0, 1, 2, 3, 4] * 2, 0.07)
    assert float(supervised_contrastive_loss(view_a, view_b)) == pytest.approx(expected, rel=1e-9)


def test_contrast_is_not_scaled_unless_a_base_temperature_is_given() -> None:
    view_a, view_b, labels = directions(6), directions(6, seed=1), torch.arange(6) % 2
    plain = supervised_contrastive_loss(view_a, view_b, labels, 0.2)
    scaled = supervised_contrastive_loss(view_a, view_b, labels, 0.2, base_temperature=0.05)
    torch.testing.assert_close(scaled, 4 * plain)


def test_contrast_is_finite_with_gradients_of_both_views_at_single_precision() -> None:
    views = [directions(8, seed=seed).float().requires_grad_() for seed in (0, 1)]
    loss = supervised_contrastive_loss(*views, labels=torch.arange(8) % 3, temperature=0.01)
    for gradient in torch.autograd.grad(loss, views):
        assert gradient.isfinite().all() and gradient.any()


@pytest.mark.parametrize("diagonal", [0.1, 0.0, "mask"])
@pytest.mark.parametrize("temperature", [1.0, 0.1])
def test_rows_of_the_affinity_sum_to_one(diagonal: Diagonal, temperature: float) -> None:
    affinity = relation_affinity(directions(9), diagonal, temperature)
    torch.testing.assert_close(affinity.sum(dim=1), torch.ones(9, dtype=torch.float64))


def test_the_affinity_lowers_the_similarity_to_itself_by_a_tenth() -> None:
    projection = directions(5)
    weights = [
        [math.exp(float(projection[i] @ projection[j]) - (0.1 if i == j else 0)) for j in range(5)]
        for i in range(5)
    ]
    expected = torch.tensor([[w / sum(row) for w in row] for row in weights], dtype=torch.float64)
    torch.testing.assert_close(relation_affinity(projection), expected)


def test_a_masked_affinity_leaves_the_image_itself_out() -> None:
    projection = directions(5)
    affinity = relation_affinity(projection, "mask")
    assert not affinity.diagonal().any()
    for i in range(5):
        others = [j for j in range(5) if j != i]
        expected = (projection[others] @ projection[i]).softmax(dim=0)
        torch.testing.assert_close(affinity[i, others], expected)


@pytest.mark.parametrize("diagonal", [0.1, "mask"])
@pytest.mark.parametrize("omega", [0.0, 0.1, 0.9])
def test_the_ensemble_is_where_passing_outputs_along_ends(omega: float, diagonal: Diagonal) -> None:
    projection, outputs = directions(8), noise(8, 4, seed=1)
    affinity = relation_affinity(projection, diagonal, 0.5)
    passed = outputs
    for _ in range(500):
        passed = omega * affinity @ passed + (1 - omega) * outputs
    torch.testing.assert_close(ensemble_outputs(outputs, projection, omega, diagonal, 0.5), passed)


def test_the_ensemble_of_equal_outputs_changes_nothing() -> None:
    outputs = noise(1, 4).expand(7, 4)
    torch.testing.assert_close(ensemble_outputs(outputs, directions(7), omega=0.6), outputs)


def test_distillation_is_the_mean_square_to_the_blended_target() -> None:
    outputs, reserved, projection = noise(6, 3), noise(6, 3, seed=1), directions(6, seed=2)
    target = 0.7 * reserved + 0.3 * ensemble_outputs(outputs, projection, 0.4, "mask")
    expected = sum(float(outputs[i, c] - target[i, c]) ** 2 for i in range(6) for c in range(3)) / 18
    measured = collaborative_distillation_loss(outputs, reserved, projection, 0.4, 0.3, "mask")
    assert float(measured) == pytest.approx(expected, rel=1e-9)


def test_distillation_has_a_gradient_through_the_outputs_alone() -> None:
    outputs, reserved, projection = noise(6, 3), noise(6, 3, seed=1), directions(6, seed=2)
    target = 0.5 * reserved + 0.5 * ensemble_outputs(outputs, projection, 0.5)
    leaves = [outputs.requires_grad_(), projection.requires_grad_()]
    loss = collaborative_distillation_loss(outputs, reserved, projection, omega=0.5, gamma=0.5)
    of_outputs, of_projection = torch.autograd.grad(loss, leaves, allow_unused=True)
    assert of_projection is None or not of_projection.any()
    torch.testing.assert_close(of_outputs, 2 * (outputs.detach() - target) / 18)


def test_distillation_without_gamma_is_the_distance_of_der() -> None:
    outputs, reserved = noise(6, 3), noise(6, 3, seed=1)
    measured = collaborative_distillation_loss(outputs, reserved, directions(6), gamma=0)
    logits, labels = noise(2, 3, seed=2), torch.tensor([0, 2])
    of_der = der_loss(logits, labels, outputs, reserved, 1.0) - cross_entropy(logits, labels)
    torch.testing.assert_close(measured, of_der)
    assert float(measured) == pytest.approx(float((outputs - reserved).square().sum()) / 18)


def test_masked_cross_entropy_is_that_of_the_classes_alone() -> None:
    logits, labels = noise(9, 6).requires_grad_(), torch.arange(9) % 2 + 2
    allowed = torch.tensor([False, False, True, True, False, False])
    masked = masked_cross_entropy(logits, labels, allowed)
    sliced = cross_entropy(logits[:, 2:4], labels - 2)
    torch.testing.assert_close(masked, sliced)
    gradients = [torch.autograd.grad(loss, logits)[0] for loss in (masked, sliced)]
    torch.testing.assert_close(*gradients)


def test_cross_entropy_without_a_mask_is_over_all_classes() -> None:
    logits, labels = noise(9, 6), torch.arange(9) % 6
    torch.testing.assert_close(masked_cross_entropy(logits, labels), cross_entropy(logits, labels))


def test_present_classes_are_those_that_occur() -> None:
    present = present_classes(torch.tensor([4, 1, 4, 0]), 6)
    assert present.tolist() == [True, True, False, False, True, False]


def mean_surprise(logits: Tensor, labels: Tensor) -> float:
    rows = zip(logits.tolist(), labels.tolist(), strict=True)
    losses = [math.log(sum(map(math.exp, row))) - row[label] for row, label in rows]
    return sum(losses) / len(losses)


def test_er_weighs_every_image_of_stream_and_memory_alike() -> None:
    stream, draw = noise(3, 4), noise(9, 4, seed=1)
    labels, draw_labels = torch.tensor([0, 1, 3]), torch.arange(9) % 4
    expected = (3 * mean_surprise(stream, labels) + 9 * mean_surprise(draw, draw_labels)) / 12
    assert float(er_loss(stream, labels, draw, draw_labels)) == pytest.approx(expected, rel=1e-9)


def test_der_and_derpp_add_their_weighted_terms() -> None:
    stream, first, second = noise(3, 4), noise(5, 4, seed=1), noise(5, 4, seed=2)
    reserved, labels, second_labels = noise(5, 4, seed=3), torch.tensor([0, 1, 3]), torch.arange(5) % 4
    square = sum(float(value) ** 2 for value in (first - reserved).flatten()) / 20
    der = mean_surprise(stream, labels) + 0.3 * square
    derpp = der + 0.5 * mean_surprise(second, second_labels)
    assert float(der_loss(stream, labels, first, reserved, 0.3)) == pytest.approx(der, rel=1e-9)
    measured = derpp_loss(stream, labels, first, reserved, second, second_labels, 0.3, 0.5)
    assert float(measured) == pytest.approx(derpp, rel=1e-9)
