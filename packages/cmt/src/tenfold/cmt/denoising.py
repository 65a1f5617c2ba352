"""Point-based query denoising of the paper: noised centres of true boxes are queries too while the network learns."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from tenfold.cmt.config import LossConfig

BACKGROUND = -2
"""Label of a noised query too far from its box."""
EMPTY = -1
"""Label of a place without a query."""


@dataclass(frozen=True)
class Denoising:
    """Noised queries of a batch, in front of the learnt ones. S places: ``groups`` times the most boxes of a sample.

    The query of box j in group g is at place ``j + g * most``.
    """

    points: Tensor
    """[B, S, 3] in [0, 1]; 0 at empty places."""
    labels: Tensor
    """[B, S]: class, :data:`BACKGROUND` or :data:`EMPTY`."""
    boxes: Tensor
    """[B, S, 9]: the box that a query comes from."""
    groups: int
    total: int
    """Queries, without empty places."""

    @property
    def size(self) -> int:
        """S."""
        return self.points.shape[1]

    def allowed(self, queries: int) -> Tensor:
        """[S + queries, S + queries], True where a query (row) may look at another (column).

        Learnt queries see no noised one; a group sees itself and the learnt queries.
        """
        return _allowed(self.size, self.groups, queries, self.points.device)


@lru_cache(maxsize=32)
def _allowed(size: int, groups: int, queries: int, device: torch.device) -> Tensor:
    with torch.inference_mode(mode=False):
        number = torch.arange(size + queries, device=device)
        group = torch.where(number < size, number // (size // groups), groups)
        return (group[:, None] == group) | (group == groups)


def num_groups(counts: tuple[int, ...], queries: int, most_groups: int) -> int:
    """Groups for samples of so many boxes; 0 where there is no box, or more than queries."""
    most = max(counts, default=0)
    return min(most_groups, queries // most) if most else 0


def prepare_denoising(
    boxes: Tensor,
    labels: Tensor,
    counts: tuple[int, ...],
    queries: int,
    low: Tensor,
    extent: Tensor,
    config: LossConfig,
    noise: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Denoising | None:
    """Noised queries of a batch, without waiting for the device.

    Args:
        boxes: [B, G, 9], z of the bottom.
        labels: [B, G], negative behind the last box of a sample.
        counts: boxes of each sample.
        queries: learnt ones; so many noised ones at the most.
        low: [3], least x, y, z of the range by which points are normalised.
        extent: [3], its length along each axis.
        config: groups, noise and its split.
        noise: [groups, B, G, 3] in [0, 1) instead of random numbers.
        generator: of random numbers, on the boxes' device.

    Returns:
        None where there is no box, or no room for a group.
    """
    groups = num_groups(counts, queries, config.denoising_groups)
    if groups == 0:
        return None
    batch, most = labels.shape
    if noise is None:
        noise = torch.rand(groups, batch, most, 3, generator=generator, device=boxes.device)
    shift = 2 * noise - 1
    sizes = boxes[..., 3:6]
    centres = torch.cat((boxes[..., :2], boxes[..., 2:3] + sizes[..., 2:] / 2), dim=-1)
    noised = centres + shift * (sizes / 2 + config.noise_translation) * config.noise_scale
    points = ((noised - low) / extent).clamp(0, 1)
    known = labels >= 0
    far = shift.norm(dim=-1) > config.noise_split
    noised_labels = torch.where(far, BACKGROUND, labels)
    return Denoising(
        torch.where(known[..., None], points, 0).transpose(0, 1).flatten(1, 2),
        torch.where(known, noised_labels, EMPTY).transpose(0, 1).flatten(1, 2),
        boxes.repeat(1, groups, 1),
        groups,
        groups * sum(counts),
    )
