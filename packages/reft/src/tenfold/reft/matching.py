"""Bipartite matching of queries with instances, for all images and prediction layers at once.

Every cost matrix is computed in one batch on the device; one copy brings them to the host, where scipy solves the
assignments, and one copy brings the solution back.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from tenfold.reft.config import LossConfig


@dataclass(frozen=True)
class Assignment:
    """Which query stands for which instance."""

    queries: Tensor
    """Query of every instance in every layer, [L, B, N]; 0 where there is none."""
    matched: Tensor
    """Where there is one, [L, B, N], bool."""
    images: Tensor
    """Images of all instances, [T]."""
    places: Tensor
    """Their places in these images, [T]."""

    def taken(self, layer: int, num_queries: int) -> Tensor:
        """Queries that stand for an instance in a layer, [B, Q], bool."""
        # One place more takes what is not matched, so that nothing is written twice.
        queries = self.queries[layer].masked_fill(~self.matched[layer], num_queries)
        nothing = torch.zeros(len(queries), num_queries + 1, dtype=torch.bool, device=queries.device)
        return nothing.scatter(1, queries, True)[:, :-1]


def pairwise_bce(point_logits: Tensor, point_labels: Tensor) -> Tensor:
    """Mean binary cross-entropy between every query's and every instance's points.

    Args:
        point_logits: [..., Q, P].
        point_labels: from 0 to 1, [..., N, P].

    Returns:
        [..., Q, N].
    """
    # -y log p - (1 - y) log(1 - p) = softplus(x) - y x
    positive = F.softplus(point_logits).sum(-1, keepdim=True)
    return (positive - point_logits @ point_labels.transpose(-1, -2)) / point_logits.shape[-1]


def pairwise_dice(point_logits: Tensor, point_labels: Tensor) -> Tensor:
    """``1 - (2 sum p t + 1) / (sum p + sum t + 1)`` between every query and every instance.

    Args:
        point_logits: [..., Q, P].
        point_labels: from 0 to 1, [..., N, P].

    Returns:
        [..., Q, N].
    """
    probabilities = point_logits.sigmoid()
    overlap = probabilities @ point_labels.transpose(-1, -2)
    total = probabilities.sum(-1)[..., :, None] + point_labels.sum(-1)[..., None, :]
    return 1 - (2 * overlap + 1) / (total + 1)


def matching_cost(
    class_logits: Tensor, labels: Tensor, point_logits: Tensor, point_labels: Tensor, config: LossConfig
) -> Tensor:
    """``2 (-p[class]) + 5 BCE + 5 dice`` of every query and instance, in full precision.

    Args:
        class_logits: [..., Q, classes + 1].
        labels: of the instances, [..., N]; what is negative is no instance, and its cost means nothing.
        point_logits: of the queries' masks, [..., Q, P].
        point_labels: of the instances' masks, [..., N, P].
        config: the weights.

    Returns:
        [..., Q, N]; what is no number any more costs as much as can be.
    """
    point_logits, point_labels = point_logits.float(), point_labels.float()
    probabilities = class_logits.float().softmax(-1)
    index = labels.clamp(min=0)[..., None, :].expand(*probabilities.shape[:-1], -1)
    cost = (
        config.mask_weight * pairwise_bce(point_logits, point_labels)
        - config.class_weight * probabilities.gather(-1, index)
        + config.dice_weight * pairwise_dice(point_logits, point_labels)
    )
    most = torch.finfo(torch.float32).max
    return cost.nan_to_num(nan=most, posinf=most, neginf=most)


def assign(cost: Tensor, present: Tensor | None = None) -> Assignment:
    """The cheapest assignment of every layer and image. The only place of a step that waits for the device.

    Args:
        cost: [L, B, Q, N].
        present: which instances there are, [B, N]; all by default.
    """
    if present is None:
        present = torch.ones(cost.shape[1], cost.shape[3], dtype=torch.bool, device=cost.device)
    layers, images, _, most = cost.shape
    host = cost.detach().masked_fill(~present[None, :, None], torch.nan).cpu().numpy()
    there = ~np.isnan(host[0, :, 0])  # [B, N]
    solution = np.full((layers, images, most), -1, dtype=np.int64)
    for image in range(images):
        places = np.flatnonzero(there[image])
        for layer in range(layers):
            rows, columns = linear_sum_assignment(host[layer, image][:, places])
            solution[layer, image, places[columns]] = rows
    where = np.stack(np.nonzero(there))
    returned = torch.from_numpy(np.concatenate((solution.ravel(), where.ravel())))
    if cost.device.type == "cuda":
        returned = returned.pin_memory()
    returned = returned.to(cost.device, non_blocking=True)
    queries = returned[: solution.size].view(solution.shape)
    instances = returned[solution.size :].view(where.shape)
    return Assignment(queries.clamp(min=0), queries >= 0, instances[0], instances[1])
