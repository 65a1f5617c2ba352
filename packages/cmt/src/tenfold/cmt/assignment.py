"""Which query stands for which box: the Hungarian method on class and box costs, as in DETR."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from tenfold.cmt.config import LossConfig

MATCHED_COLUMNS = 8
"""Columns of a code that are compared: all but velocity."""
NO_NUMBER = 100.0
"""Cost instead of one that is no finite number."""
FOCAL_EPS = 1e-12


@cache
def column_weights(weights: tuple[float, ...], device: torch.device) -> Tensor:
    """Weights of the columns of a code, copied to a device once."""
    with torch.inference_mode(mode=False):
        return torch.tensor(weights, device=device)


def class_costs(logits: Tensor, labels: Tensor, alpha: float = 0.25, gamma: float = 2.0) -> Tensor:
    """Focal costs.

    Args:
        logits: [..., Q, C].
        labels: [..., G], not negative.
        alpha: weight of the class.
        gamma: exponent.

    Returns:
        [..., Q, G].
    """
    positive = logits.sigmoid()
    negative = 1 - positive
    found = -(positive + FOCAL_EPS).log() * alpha * negative**gamma
    missed = -(negative + FOCAL_EPS).log() * (1 - alpha) * positive**gamma
    return (found - missed).gather(-1, labels[..., None, :].expand(*logits.shape[:-1], -1))


def box_costs(codes: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    """L1 distances, [..., Q, G], of codes [..., Q, 10] and [..., G, 10], without velocity.

    Args:
        codes: predicted.
        targets: true.
        weights: [10], of the columns.
    """
    kept = weights[:MATCHED_COLUMNS]
    return torch.cdist(codes[..., :MATCHED_COLUMNS] * kept, targets[..., :MATCHED_COLUMNS] * kept, p=1)


def matching_costs(
    codes: Tensor, logits: Tensor, targets: Tensor, labels: Tensor, config: LossConfig
) -> Tensor:
    """Costs of all queries and boxes, of all decoder layers and samples at once.

    Args:
        codes: [L, B, Q, 10].
        logits: [L, B, Q, C].
        targets: [B, G, 10].
        labels: [B, G].
        config: weights.

    Returns:
        [L, B, Q, G]; columns behind the last box of a sample mean nothing.
    """
    weights = column_weights(config.code_weights, codes.device)
    labels = labels.clamp(min=0).expand(len(codes), -1, -1)
    targets = torch.nan_to_num(targets).expand(len(codes), -1, -1, -1)
    classes = class_costs(logits, labels, config.focal_alpha, config.focal_gamma)
    boxes = box_costs(codes, targets.to(codes.dtype), weights.to(codes.dtype))
    costs = config.match_class_weight * classes + config.match_box_weight * boxes
    return torch.nan_to_num(costs, nan=NO_NUMBER, posinf=NO_NUMBER, neginf=-NO_NUMBER)


@dataclass(frozen=True)
class Assignment:
    """The query of each box after each decoder layer."""

    queries: Tensor
    """[L, B, G]; 0 where there is no box."""
    matched: Tensor
    """[L, B, G]: whether there is one."""
    count: int
    """Matched boxes of a layer, all samples together."""


@cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(thread_name_prefix="assignment")


def _solve(costs: NDArray[np.float32]) -> NDArray[np.int64]:
    """The query of each box, [G], -1 for one left over."""
    found = np.full(costs.shape[1], -1, dtype=np.int64)
    queries, boxes = linear_sum_assignment(costs)
    found[boxes] = queries
    return found


@torch.no_grad()
def assign(costs: Tensor, counts: tuple[int, ...]) -> Assignment:
    """Solve all assignments of a batch. The costs' one copy to the host is all that a training step waits for.

    Args:
        costs: [L, B, Q, G].
        counts: boxes of each sample.
    """
    layers, batch, queries, most = costs.shape
    values = costs.cpu().numpy()
    problems = [
        values[layer, sample, :, : counts[sample]] for layer in range(layers) for sample in range(batch)
    ]
    found = np.full((layers * batch, most), -1, dtype=np.int64)
    for place, solution in enumerate(_pool().map(_solve, problems)):
        found[place, : len(solution)] = solution
    chosen = torch.from_numpy(found).view(layers, batch, most).to(costs.device, non_blocking=True)
    return Assignment(chosen.clamp(min=0), chosen >= 0, sum(min(count, queries) for count in counts))
