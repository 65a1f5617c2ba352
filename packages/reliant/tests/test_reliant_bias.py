"""The differentiable measure of bias."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.polynomial.legendre import legval

from tenfold.reliant.bias import bias_surrogate, step_polynomial


def test_the_polynomial_has_the_stated_values() -> None:
    values = step_polynomial(torch.tensor([0.0, 0.5, 1.0]))
    torch.testing.assert_close(values, torch.tensor([0.074, 0.5, 0.926]), rtol=0, atol=5e-4)


def test_both_series_are_legendre_series() -> None:
    q = np.linspace(0, 1, 41)
    paper = [0.5, 1 / 2, 0, -1 / 8, 0, 1 / 16, 0, -5 / 128, 0, 7 / 256]
    step = [0.5, 3 / 4, 0, -7 / 16, 0, 11 / 32, 0, -75 / 256, 0, 133 / 512]
    for series, coefficients in (("paper", paper), ("legendre", step)):
        ours = step_polynomial(torch.from_numpy(q), series)  # type: ignore[arg-type]
        np.testing.assert_allclose(ours.numpy(), legval(2 * q - 1, coefficients), atol=1e-12)


def test_the_legendre_series_is_the_projection_of_the_unit_step() -> None:
    x, weights = np.polynomial.legendre.leggauss(4000)
    error = step_polynomial(torch.from_numpy((x + 1) / 2), "legendre").numpy() - (x > 0)
    for degree in range(10):
        moment = (weights * error * legval(x, np.eye(10)[degree])).sum()
        assert moment == pytest.approx(0, abs=1e-3)


def random_case(seed: int, groups: int, classes: int) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    probabilities = torch.randn(50, classes, generator=generator, dtype=torch.float64).softmax(dim=1)
    sensitive = torch.randint(0, groups, (50,), generator=generator)
    labels = torch.randint(0, classes, (50,), generator=generator)
    return probabilities, sensitive, torch.randperm(50, generator=generator)[:30], labels


@pytest.mark.parametrize(("groups", "classes"), [(2, 2), (3, 4)])
@pytest.mark.parametrize("opportunity", [False, True])
def test_it_is_the_sum_of_squared_differences_of_group_means(
    groups: int, classes: int, opportunity: bool
) -> None:
    probabilities, sensitive, nodes, labels = random_case(1, groups, classes)
    chosen = [v for v in nodes.tolist() if not opportunity or labels[v] == 1]
    means = [
        torch.stack([step_polynomial(probabilities[v]) for v in chosen if sensitive[v] == g]).mean(dim=0)
        for g in range(groups)
    ]
    expected = sum(
        float(((means[a] - means[b]) ** 2).sum()) for a in range(groups) for b in range(a + 1, groups)
    )
    measured = bias_surrogate(probabilities, sensitive, nodes, labels if opportunity else None)
    assert float(measured) == pytest.approx(expected, rel=1e-5)


@given(seed=st.integers(0, 10_000))
@settings(max_examples=25, deadline=None)
def test_it_is_symmetric_in_the_groups_and_never_negative(seed: int) -> None:
    probabilities, sensitive, nodes, labels = random_case(seed, 2, 2)
    for of_labels in (None, labels):
        measured = float(bias_surrogate(probabilities, sensitive, nodes, of_labels))
        swapped = float(bias_surrogate(probabilities, 1 - sensitive, nodes, of_labels))
        assert measured >= 0
        assert swapped == pytest.approx(measured, rel=1e-5, abs=1e-9)


def test_nodes_outside_do_not_matter() -> None:
    probabilities, sensitive, nodes, labels = random_case(2, 2, 2)
    before = bias_surrogate(probabilities, sensitive, nodes, labels)
    outside = torch.ones(50, dtype=torch.bool)
    outside[nodes] = False
    probabilities[outside] = 0.5
    labels[outside] = 1 - labels[outside]
    sensitive[outside] = 1 - sensitive[outside]
    assert torch.equal(bias_surrogate(probabilities, sensitive, nodes, labels), before)


def test_a_group_without_nodes_gives_no_bias_and_no_nan() -> None:
    probabilities, sensitive, nodes, labels = random_case(3, 2, 2)
    probabilities = probabilities.requires_grad_()
    measured = bias_surrogate(probabilities, torch.where(sensitive >= 0, 1, 1), nodes, labels)
    (gradient,) = torch.autograd.grad(measured, probabilities, allow_unused=True)
    assert float(measured.detach()) == 0
    assert gradient is None or not gradient.any()


def test_descending_it_brings_the_groups_together() -> None:
    generator = torch.Generator().manual_seed(0)
    sensitive = torch.randint(0, 2, (200,), generator=generator)
    logits = torch.randn(200, 2, generator=generator)
    logits[:, 1] += 0.8 * sensitive
    offset = torch.zeros(2, 2, requires_grad=True)
    optimizer = torch.optim.SGD([offset], lr=5.0)

    def gap() -> float:
        rates = (logits + offset[sensitive]).argmax(dim=1).float()
        return abs(float(rates[sensitive == 0].mean() - rates[sensitive == 1].mean()))

    before = gap()
    for _ in range(200):
        loss = bias_surrogate((logits + offset[sensitive]).softmax(dim=1), sensitive, torch.arange(200))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert gap() < 0.3 * before
