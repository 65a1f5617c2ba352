"""The terms of the objective, by their formulas."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tenfold.gfkd.losses import NodeGroups, batch_norm_distance, distillation_loss, one_hot_entropy


@pytest.mark.parametrize("temperature", [1.0, 2.0, 5.0])
def test_distillation_is_the_scaled_divergence_of_the_softened_teacher_from_the_student(
    temperature: float,
) -> None:
    torch.manual_seed(0)
    student, teacher = torch.randn(5, 3), 3 * torch.randn(5, 3)
    p, q = (teacher / temperature).softmax(dim=1), (student / temperature).softmax(dim=1)
    by_hand = temperature**2 * (p * (p / q).log()).sum(dim=1).mean()
    torch.testing.assert_close(distillation_loss(student, teacher, temperature), by_hand)
    official = temperature**2 * nn.KLDivLoss(reduction="batchmean")(q.log(), p)
    torch.testing.assert_close(distillation_loss(student, teacher, temperature), official)


def test_distillation_is_zero_for_equal_logits_and_finite_for_extreme_ones() -> None:
    logits = torch.tensor([[200.0, -200.0], [0.0, 1.0]])
    assert distillation_loss(logits, logits, 2.0) == 0
    assert torch.isfinite(distillation_loss(-logits, logits, 1.0))


def test_entropy_survives_underflow() -> None:
    logits = torch.tensor([[0.0, 0.0, 0.0], [500.0, 0.0, -500.0]], requires_grad=True)
    entropy = one_hot_entropy(logits)
    torch.testing.assert_close(entropy, torch.tensor([3.0, 1.0]).log())
    (gradient,) = torch.autograd.grad(entropy.sum(), logits)
    assert torch.isfinite(gradient).all()


def test_entropy_is_that_of_the_softmax() -> None:
    logits = torch.randn(6, 4, generator=torch.Generator().manual_seed(1))
    expected = torch.distributions.Categorical(logits=logits).entropy()
    torch.testing.assert_close(one_hot_entropy(logits), expected)


def test_group_statistics_are_those_of_each_group_alone() -> None:
    torch.manual_seed(0)
    sizes = [3, 1, 5]
    values = torch.randn(sum(sizes), 4)
    mean, variance = NodeGroups(torch.tensor(sizes)).statistics(values)
    for index, part in enumerate(values.split(sizes)):
        torch.testing.assert_close(mean[index], part.mean(dim=0))
        torch.testing.assert_close(variance[index], part.var(dim=0, unbiased=False))


def test_batch_norm_distance_sums_two_euclidean_norms_with_biased_variance() -> None:
    torch.manual_seed(0)
    norms = [nn.BatchNorm1d(3), nn.BatchNorm1d(5)]
    for norm in norms:
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 2)
    inputs = [torch.randn(8, 3), torch.randn(8, 5)]
    distance = batch_norm_distance(norms, inputs)
    assert distance.shape == (1, 2)
    for layer, (norm, values) in enumerate(zip(norms, inputs, strict=True)):
        mean = values.sum(dim=0) / 8
        variance = (values - mean).square().sum(dim=0) / 8
        expected = (norm.running_var - variance).square().sum().sqrt()
        expected = expected + (norm.running_mean - mean).square().sum().sqrt()
        torch.testing.assert_close(distance[0, layer], expected)
    grouped = batch_norm_distance(norms, inputs, NodeGroups(torch.tensor([2, 6])))
    torch.testing.assert_close(grouped[1], batch_norm_distance(norms, [values[2:] for values in inputs])[0])
