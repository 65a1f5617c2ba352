"""Random structures and the estimators of their gradient, against exact expectations."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from tenfold.gfkd.backends import NodeLayout
from tenfold.gfkd.structure import (
    arm_gradient,
    initial_structure,
    mirrored,
    reinforce_gradient,
    straight_through_gradient,
    threshold,
    with_self_loops,
)

DRAWS = 200_000
LOGITS = torch.tensor([[0.7, -0.4], [1.1, 0.2]])


def objective_of_pair(adjacency: Tensor) -> Tensor:
    """A function of the two edges of two-node graphs, [B], that is not additive in them."""
    first, second = adjacency[:, 0, 1].float(), adjacency[:, 1, 0].float()
    return 1.3 * first - 0.6 * second + 2.5 * first * second + 0.4


def exact_gradient(logits: Tensor, undirected: bool = False) -> Tensor:
    """d/d theta of the expected objective, by enumeration of all structures."""
    theta = logits.clone().requires_grad_()
    p, q = theta[0, 1].sigmoid(), theta[1, 0].sigmoid()
    expected = torch.zeros(())
    for first, second in itertools.product((0.0, 1.0), repeat=2):
        if undirected and first != second:
            continue
        probability = p if first else 1 - p
        if not undirected:
            probability = probability * (q if second else 1 - q)
        adjacency = torch.tensor([[[1.0, first], [second, 1.0]]])
        expected = expected + probability * objective_of_pair(adjacency)[0]
    return torch.autograd.grad(expected, theta)[0]


def check_unbiased(samples: Tensor, exact: Tensor) -> None:
    for j, k in ((0, 1), (1, 0)):
        values = samples[:, j, k]
        error = values.std() / len(values) ** 0.5
        assert abs(values.mean() - exact[j, k]) < 4 * error


def draw(shape: tuple[int, ...], undirected: bool) -> Tensor:
    noise = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    return mirrored(noise) if undirected else noise


@pytest.mark.parametrize("undirected", [False, True])
@pytest.mark.parametrize("estimator", [arm_gradient, reinforce_gradient])
def test_the_estimator_is_unbiased(estimator, undirected: bool) -> None:
    layout = NodeLayout(torch.full((DRAWS,), 2))
    logits = mirrored(LOGITS) if undirected else LOGITS
    shape = (DRAWS, 2, 2) if estimator is arm_gradient else (2, DRAWS, 2, 2)
    gradient = estimator(
        logits.expand(DRAWS, 2, 2),
        draw(shape, undirected),
        layout,
        lambda structures: [objective_of_pair(structure) for structure in structures],
    )
    exact = exact_gradient(logits, undirected)
    if undirected:
        torch.testing.assert_close(gradient, gradient.transpose(1, 2))
        exact = mirrored(exact)
    check_unbiased(gradient, exact)


def test_arm_is_its_formula_at_one_draw() -> None:
    layout = NodeLayout(torch.tensor([2]))
    uniform = torch.tensor([[[0.5, 0.45], [0.1, 0.9]]])
    p = LOGITS.sigmoid()
    first, second = uniform[0] > 1 - p, uniform[0] < p
    values = [objective_of_pair(edges[None]) for edges in (first, second)]
    gradient = arm_gradient(LOGITS[None], uniform, layout, lambda s: [objective_of_pair(a) for a in s])
    expected = (values[0] - values[1]) * (uniform - 0.5)
    torch.testing.assert_close(gradient, expected)


def test_straight_through_reaches_existing_pairs_only() -> None:
    layout = NodeLayout(torch.tensor([2, 3]))
    logits = torch.randn(2, 3, 3, generator=torch.Generator().manual_seed(2))
    weight = torch.arange(1.0, 19).view(2, 3, 3)
    gradient = straight_through_gradient(
        logits, torch.rand(2, 3, 3), layout, lambda s: [(a * weight).sum(dim=(1, 2)) for a in s]
    )
    assert (gradient[~layout.pairs] == 0).all()
    slope = logits.sigmoid() * (1 - logits.sigmoid())
    torch.testing.assert_close(gradient[layout.pairs], (weight * slope)[layout.pairs])


def test_gradients_are_zero_outside_the_graphs() -> None:
    layout = NodeLayout(torch.tensor([1, 3]))
    shape = (2, 3, 3)
    values = lambda structures: [structure.float().sum(dim=(1, 2)) for structure in structures]  # noqa: E731
    logits, outside = torch.randn(shape), ~(layout.pairs | layout.loops)
    assert (arm_gradient(logits, torch.rand(shape), layout, values)[outside] == 0).all()
    assert (reinforce_gradient(logits, torch.rand(2, *shape), layout, values)[outside] == 0).all()


def test_every_node_has_exactly_one_self_loop_whatever_its_logit() -> None:
    layout = NodeLayout(torch.tensor([2, 4, 1]), max_nodes=5)
    for extreme in (-50.0, 50.0):
        adjacency = threshold(torch.full((3, 5, 5), extreme), layout)
        assert torch.equal(adjacency.diagonal(dim1=1, dim2=2), layout.node_mask)
        counts = layout.node_counts
        pairs = counts * (counts - 1) if extreme > 0 else 0 * counts
        assert torch.equal(adjacency.sum(dim=(1, 2)), counts + pairs)
    floating = with_self_loops(torch.ones(3, 5, 5), layout)
    assert torch.equal(floating.bool(), layout.pairs | layout.loops) and floating.max() == 1


def test_the_diagonal_of_the_logits_does_not_matter() -> None:
    layout = NodeLayout(torch.tensor([3]))
    logits, noise = torch.randn(1, 3, 3), torch.rand(1, 3, 3)
    changed = logits + 9 * torch.eye(3)
    assert torch.equal(threshold(logits, layout), threshold(changed, layout))
    seen: list[Tensor] = []

    def values(structures: list[Tensor]) -> list[Tensor]:
        seen.extend(structures)
        return [structure.float().sum(dim=(1, 2)) for structure in structures]

    arm_gradient(logits, noise, layout, values)
    arm_gradient(changed, noise, layout, values)
    assert torch.equal(seen[0], seen[2]) and torch.equal(seen[1], seen[3])


def test_initial_probabilities_are_uniform() -> None:
    layout = NodeLayout(torch.full((50,), 30))
    probabilities = initial_structure(layout, torch.Generator().manual_seed(0)).sigmoid()
    histogram = probabilities.histc(10, 0, 1) / probabilities.numel()
    torch.testing.assert_close(histogram, torch.full((10,), 0.1), atol=0.01, rtol=0)


def test_mirrored_is_symmetric_and_keeps_the_upper_triangle() -> None:
    values = torch.rand(2, 4, 4)
    symmetric = mirrored(values)
    assert torch.equal(symmetric, symmetric.transpose(1, 2))
    assert torch.equal(symmetric.triu(), values.triu())


def test_a_layout_without_self_loops_leaves_the_diagonal_empty() -> None:
    layout = NodeLayout(torch.tensor([2, 3]), self_loops=False)
    adjacency = threshold(torch.full((2, 3, 3), 5.0), layout)
    assert not adjacency.diagonal(dim1=1, dim2=2).any()
    assert adjacency.sum(dim=(1, 2)).tolist() == [2, 6]
