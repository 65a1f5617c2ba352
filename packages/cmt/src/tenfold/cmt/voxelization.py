"""Hard voxelisation: points become the means of the voxels that they fall into."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from tenfold.shared.logging import TenfoldError


class Voxelized(NamedTuple):
    """Occupied voxels of one cloud, sorted by z, then y, then x."""

    features: Tensor
    """[N, F]: means of the points that were kept."""
    coordinates: Tensor
    """[N, 3]: z, y, x; int32."""
    num_points: Tensor
    """[N]: points that were kept, from 1 to the most allowed; int32."""


def voxelize(
    points: Tensor,
    voxel_size: tuple[float, float, float],
    point_range: tuple[float, float, float, float, float, float],
    max_points: int,
    max_voxels: int,
    cells: tuple[int, int, int] | None = None,
) -> Voxelized:
    """Average the points of every voxel; whoever comes first in ``points`` is kept.

    A point's voxel is ``floor((p - low) / size)`` in float32. A full voxel drops later points. Where there are too many
    voxels, those whose first point comes late are dropped, as are points outside the range or at no finite place.

    Args:
        points: [P, F], of which the first three columns are x, y, z in metres.
        voxel_size: along x, y, z, in metres.
        point_range: least x, y, z and greatest x, y, z, in metres.
        max_points: of a voxel.
        max_voxels: of the cloud.
        cells: voxels along x, y, z beyond which points are dropped; as many as the range holds by default.

    Raises:
        TenfoldError: ``max_points`` or ``max_voxels`` is less than 1.
    """
    if max_points < 1 or max_voxels < 1:
        raise TenfoldError("max_points and max_voxels are at least 1")
    low, high = points.new_tensor(point_range).float().view(2, 3)
    size = points.new_tensor(voxel_size).float()
    counts = ((high - low) / size).round() if cells is None else points.new_tensor(cells).float()
    xyz = points[:, :3].float()
    place = ((xyz - low) / size).floor()
    inside = ((xyz >= low) & (xyz < high) & (place < counts)).all(dim=1)
    points = points[inside]
    x, y, z = place[inside].long().unbind(dim=1)
    columns, rows = int(counts[0]), int(counts[1])

    keys, order = torch.sort((z * rows + y) * columns + x, stable=True)
    keys, voxel, totals = keys.unique_consecutive(return_inverse=True, return_counts=True)
    starts = totals.cumsum(0) - totals
    rank = torch.arange(len(order), device=order.device) - starts[voxel]
    kept = rank < max_points
    means = points.new_zeros(len(keys), points.shape[1]).index_add_(0, voxel[kept], points[order[kept]])
    totals = totals.clamp(max=max_points)
    means = means / totals[:, None]
    if len(keys) > max_voxels:
        early = order[starts].argsort()[:max_voxels].sort().values
        keys, means, totals = keys[early], means[early], totals[early]
    coordinates = torch.stack((keys // (rows * columns), keys // columns % rows, keys % columns), dim=1)
    return Voxelized(means, coordinates.int(), totals.int())
