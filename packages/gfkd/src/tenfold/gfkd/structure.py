"""Bernoulli graph structures and the gradient of their logits.

Every ordered pair of nodes (j, k) of a fake graph is an edge with probability sigmoid(theta[j, k]). The network
is no function of a discrete edge that could be differentiated, so the gradient of the expected objective is
estimated from forward passes alone (ARM: Yin and Zhou, https://arxiv.org/abs/1807.11143).

All tensors are padded: theta and u are [B, n, n], ``layout`` says which slots hold nodes. The diagonal of theta
is ignored; every node has exactly one self loop.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from tenfold.gfkd.backends import NodeLayout

Estimator = Literal["arm", "reinforce", "straight-through"]
Objective = Callable[[list[Tensor]], list[Tensor]]
"""Adjacencies of several samples, each [B, n, n], to the per-graph objectives f_i of each, [B]."""


def initial_structure(layout: NodeLayout, generator: torch.Generator) -> Tensor:
    """Logits of uniform noise p: log((p + 1e-7) / (1 - p + 1e-7)), shape [B, n, n]."""
    shape = (layout.num_graphs, layout.max_nodes, layout.max_nodes)
    noise = torch.rand(shape, generator=generator, device=generator.device)
    return torch.log((noise + 1e-7) / (1 - noise + 1e-7))


def with_self_loops(edges: Tensor, layout: NodeLayout) -> Tensor:
    """Edge indicators [B, n, n] (boolean or floating point) to adjacencies of existing nodes, self loops added."""
    if edges.dtype == torch.bool:
        return (edges & layout.pairs) | layout.loops
    return edges * layout.pairs + layout.loops


def mirrored(values: Tensor) -> Tensor:
    """The upper triangle in both triangles, for undirected graphs; the diagonal stays."""
    upper = values.triu()
    return upper + values.triu(1).mT


def threshold(logits: Tensor, layout: NodeLayout) -> Tensor:
    """The most likely structure, [sigmoid(theta) >= 0.5] with self loops: boolean [B, n, n]."""
    return with_self_loops(logits.sigmoid() >= 0.5, layout)


def arm_gradient(logits: Tensor, uniform: Tensor, layout: NodeLayout, objective: Objective) -> Tensor:
    """ARM: (f(E1) - f(E2)) (u - 1/2) with E1 = [u > sigmoid(-theta)] and E2 = [u < sigmoid(theta)].

    Unbiased for d/dtheta of the expected f, with two forward passes and no backward pass.

    Args:
        logits: theta, [B, n, n].
        uniform: u ~ U(0, 1), [B, n, n].
        layout: which slots hold nodes.
        objective: f of both samples.

    Returns:
        [B, n, n], zero outside the graphs.
    """
    first = with_self_loops(uniform > (-logits).sigmoid(), layout)
    second = with_self_loops(uniform < logits.sigmoid(), layout)
    first_values, second_values = objective([first, second])
    return _inside((first_values - second_values)[:, None, None] * (uniform - 0.5), layout)


def reinforce_gradient(logits: Tensor, uniform: Tensor, layout: NodeLayout, objective: Objective) -> Tensor:
    """Score function with two samples that are each other's baseline: (f(A) - f(A')) (A - A') / 2, unbiased.

    Arguments and result as for :func:`arm_gradient`, but for ``uniform``, [2, B, n, n], the noise of both samples.
    """
    samples = uniform < logits.sigmoid()
    first, second = (with_self_loops(sample, layout) for sample in samples)
    first_values, second_values = objective([first, second])
    difference = samples[0].to(logits.dtype) - samples[1].to(logits.dtype)
    return _inside((first_values - second_values)[:, None, None] * difference / 2, layout)


def straight_through_gradient(
    logits: Tensor, uniform: Tensor, layout: NodeLayout, objective: Objective
) -> Tensor:
    """Backpropagation through a sampled structure as if sampling were the identity (biased).

    ``objective`` must be differentiable in the adjacency, which only the dense backend is. Arguments and result
    as for :func:`arm_gradient`.
    """
    with torch.enable_grad():
        logits = logits.detach().requires_grad_()
        probabilities = logits.sigmoid()
        hard = (uniform < probabilities).to(probabilities.dtype)
        relaxed = hard + probabilities - probabilities.detach()
        (values,) = objective([with_self_loops(relaxed, layout)])
        (gradient,) = torch.autograd.grad(values.sum(), logits)
    return _inside(gradient, layout)


ESTIMATORS: dict[Estimator, Callable[[Tensor, Tensor, NodeLayout, Objective], Tensor]] = {
    "arm": arm_gradient,
    "reinforce": reinforce_gradient,
    "straight-through": straight_through_gradient,
}
NOISE_SAMPLES: dict[Estimator, int] = {"arm": 1, "reinforce": 2, "straight-through": 1}


def _inside(gradient: Tensor, layout: NodeLayout) -> Tensor:
    return gradient * layout.inside
