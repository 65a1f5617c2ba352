"""RELIANT's differentiable measure of bias (statistical parity and equal opportunity).

A decision counts a node as positive when its probability passes 1/2. The measure replaces that step by a polynomial, so
that the difference between groups has a gradient.
"""

from __future__ import annotations

from itertools import combinations
from typing import Literal

import torch
from torch import Tensor

Objective = Literal["sp", "eo"]
StepSeries = Literal["paper", "legendre"]

_DEGREES = (1, 3, 5, 7, 9)
_PAPER_COEFFICIENTS = (1 / 2, -1 / 8, 1 / 16, -5 / 128, 7 / 256)


def step_polynomial(probabilities: Tensor, series: StepSeries = "paper") -> Tensor:
    """A polynomial h of degree 9 for the unit step at 1/2, elementwise on values in [0, 1].

    h(q) = 1/2 + sum of c_l P_l(2q - 1) over l = 1, 3, 5, 7, 9 with the Legendre polynomials P_l.

    Args:
        probabilities: any shape.
        series: ``paper`` takes the authors' coefficients 1/2, -1/8, 1/16, -5/128, 7/256, which give h(0) = 0.074
            and h(1) = 0.926; ``legendre`` those of the step's own series, larger by (2l + 1) / 2.
    """
    factors = [1.0 if series == "paper" else (2 * degree + 1) / 2 for degree in _DEGREES]
    weights = [c * factor for c, factor in zip(_PAPER_COEFFICIENTS, factors, strict=True)]
    x = 2 * probabilities - 1
    lower, upper = torch.ones_like(x), x
    total = 0.5 + weights[0] * x
    for degree in range(2, _DEGREES[-1] + 1):  # Bonnet's recursion
        lower, upper = upper, ((2 * degree - 1) * x * upper - (degree - 1) * lower) / degree
        if degree in _DEGREES:
            total = total + weights[_DEGREES.index(degree)] * upper
    return total


def group_averages(
    sensitive: Tensor,
    nodes: Tensor,
    labels: Tensor | None = None,
    num_groups: int | None = None,
    left_out: Tensor | None = None,
) -> Tensor:
    """Rows that average over each group: ``group_averages(...) @ values[nodes]`` are the groups' means.

    Args:
        sensitive: [N], group of each node, 0 .. G - 1.
        nodes: [k], the nodes that count.
        labels: [N]; where given, only nodes with label 1 count (equal opportunity).
        num_groups: G, by default the largest group of all nodes plus one.
        left_out: [N] bool, nodes that do not count after all.

    Returns:
        [G, k]; the row of a group without nodes is zero.
    """
    groups = int(sensitive.max()) + 1 if num_groups is None else num_groups
    member = torch.arange(groups, device=sensitive.device)[:, None] == sensitive[nodes]
    if labels is not None:
        member = member & (labels[nodes] == 1)
    if left_out is not None:
        member = member & ~left_out[nodes]
    return member.float() / member.sum(dim=1, keepdim=True).clamp(min=1)


def averaged_bias(probabilities: Tensor, averages: Tensor, series: StepSeries = "paper") -> Tensor:
    """Sum over pairs of groups and over classes of the squared difference of mean h.

    Pairs with a group that has no node do not count.

    Args:
        probabilities: [k, C].
        averages: [G, k], from :func:`group_averages`.
        series: of :func:`step_polynomial`.
    """
    means = averages @ step_polynomial(probabilities.float(), series)
    occupied = averages.sum(dim=1) > 0
    bias = means.new_zeros(())
    for first, second in combinations(range(len(averages)), 2):
        difference = (means[first] - means[second]).square().sum()
        bias = bias + torch.where(occupied[first] & occupied[second], difference, 0.0)
    return bias


def bias_surrogate(
    probabilities: Tensor,
    sensitive: Tensor,
    nodes: Tensor,
    labels: Tensor | None = None,
    series: StepSeries = "paper",
) -> Tensor:
    """B: how far the groups' soft decision rates are apart, summed over *all* classes.

    Args:
        probabilities: [N, C], softmax outputs.
        sensitive: [N], group of each node.
        nodes: [k], the nodes over which it is measured.
        labels: [N] for equal opportunity (only nodes with label 1 count); None for statistical parity.
        series: of :func:`step_polynomial`.

    Returns:
        A scalar; 0 where fewer than two groups have nodes.
    """
    averages = group_averages(sensitive, nodes, labels)
    return averaged_bias(probabilities[nodes], averages, series)
