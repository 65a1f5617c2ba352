"""Hard voxelisation against a loop over points."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tenfold.cmt.voxelization import Voxelized, voxelize
from tenfold.shared.logging import TenfoldError

SIZE = (0.5, 0.25, 1.0)
RANGE = (-1.0, 0.0, -2.0, 2.0, 1.5, 1.0)
GRID = (6, 6, 3)


def cloud(count: int = 400, seed: int = 0) -> Tensor:
    """Points inside and around :data:`RANGE`, five features each."""
    generator = torch.Generator().manual_seed(seed)
    points = torch.rand(count, 5, generator=generator)
    points[:, :3] = points[:, :3] * torch.tensor([4.0, 2.5, 4.0]) + torch.tensor([-1.5, -0.5, -2.5])
    return points


@dataclass(frozen=True)
class Looped:
    """Point numbers of each voxel (z, y, x), in the order of their first points."""

    members: dict[tuple[int, int, int], list[int]]
    points: Tensor

    def mean(self, voxel: tuple[int, int, int]) -> Tensor:
        return self.points[self.members[voxel]].double().mean(0)


def loop(
    points: Tensor,
    max_points: int,
    max_voxels: int,
    grid: tuple[int, int, int] = GRID,
    lidar: Any = (SIZE, RANGE),
) -> Looped:
    size, limits = (np.array(values, np.float32) for values in lidar)
    members: dict[tuple[int, int, int], list[int]] = {}
    for number, point in enumerate(points.numpy()):
        if not np.isfinite(point[:3]).all():
            continue
        if (point[:3] < limits[:3]).any() or (point[:3] >= limits[3:]).any():
            continue
        x, y, z = np.floor((point[:3] - limits[:3]) / size).astype(int).tolist()
        if x >= grid[0] or y >= grid[1] or z >= grid[2]:
            continue
        if (z, y, x) not in members:
            if len(members) == max_voxels:
                continue
            members[z, y, x] = []
        if len(members[z, y, x]) < max_points:
            members[z, y, x].append(number)
    return Looped(members, points)


def assert_same(found: Voxelized, expected: Looped) -> None:
    assert [tuple(place) for place in found.coordinates.tolist()] == sorted(expected.members)
    for row, place in enumerate(sorted(expected.members)):
        assert int(found.num_points[row]) == len(expected.members[place])
        torch.testing.assert_close(found.features[row].double(), expected.mean(place), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("max_points", "max_voxels"), [(10, 1000), (2, 1000), (1, 20), (3, 1), (400, 50)])
def test_voxels_are_those_of_a_loop_over_points(max_points: int, max_voxels: int) -> None:
    points = cloud()
    found = voxelize(points, SIZE, RANGE, max_points, max_voxels)
    assert_same(found, loop(points, max_points, max_voxels))


def test_the_order_of_points_decides_which_of_them_stay() -> None:
    points = cloud().flip(0)
    assert_same(voxelize(points, SIZE, RANGE, 2, 30), loop(points, 2, 30))


def test_coordinates_are_integers_of_32_bits_sorted_by_z_then_y_then_x() -> None:
    found = voxelize(cloud(), SIZE, RANGE, 10, 1000)
    places = [tuple(place) for place in found.coordinates.tolist()]
    assert found.coordinates.dtype == found.num_points.dtype == torch.int32
    assert places == sorted(set(places))


def test_a_dropped_voxel_is_one_whose_first_point_comes_late() -> None:
    points = torch.zeros(4, 5)
    points[:, 0] = torch.tensor([1.9, 0.1, 1.9, -0.9])
    found = voxelize(points, SIZE, RANGE, 10, 2)
    assert found.coordinates[:, 2].tolist() == [2, 5]
    assert found.num_points.tolist() == [1, 2]


def test_the_first_points_of_a_full_voxel_are_averaged() -> None:
    points = torch.zeros(4, 5)
    points[:, 3] = torch.tensor([1.0, 5.0, 100.0, 1000.0])
    found = voxelize(points, SIZE, RANGE, 2, 10)
    assert found.features[:, 3].tolist() == [3.0]
    assert found.num_points.tolist() == [2]


def test_the_lower_end_of_the_range_is_inside_and_the_upper_is_not() -> None:
    points = torch.zeros(4, 5)
    points[0, :3] = torch.tensor(RANGE[:3])
    points[1, 0], points[2, 1], points[3, 2] = RANGE[3], RANGE[4], RANGE[5]
    found = voxelize(points, SIZE, RANGE, 10, 10)
    assert found.coordinates.tolist() == [[0, 0, 0]]


def test_points_at_the_edges_of_the_papers_range_stay_on_its_grid() -> None:
    """54 m less a rounding error is cell 1440 of 1440 in single precision."""
    size, limits = (0.075, 0.075, 0.2), (-54.0, -54.0, -5.0, 54.0, 54.0, 3.0)
    edges = np.nextafter(np.array(limits[3:], np.float32), np.float32(0))
    points = torch.zeros(9, 5)
    for axis in range(3):
        points[axis, axis] = float(edges[axis])
        points[axis + 3, axis] = float(edges[axis]) - 0.01
        points[axis + 6, axis] = limits[axis]
    found = voxelize(points, size, limits, 10, 100)
    assert (found.coordinates < torch.tensor([40, 1440, 1440])).all()
    assert_same(found, loop(points, 10, 100, (1440, 1440, 40), (size, limits)))


def test_points_beyond_the_given_cells_are_dropped() -> None:
    points, cells = cloud(), (4, 5, 2)
    found = voxelize(points, SIZE, RANGE, 10, 1000, cells)
    assert (found.coordinates < torch.tensor([2, 5, 4])).all()
    assert_same(found, loop(points, 10, 1000, cells))


def test_more_cells_than_the_range_holds_change_nothing() -> None:
    points = cloud()
    wide, plain = (voxelize(points, SIZE, RANGE, 10, 1000, cells) for cells in ((9, 9, 9), None))
    assert torch.equal(wide.coordinates, plain.coordinates)
    torch.testing.assert_close(wide.features, plain.features)


@pytest.mark.parametrize("points", [torch.zeros(0, 5), torch.full((3, 5), 99.0)], ids=["none", "all outside"])
def test_a_cloud_without_a_point_inside_has_no_voxel(points: Tensor) -> None:
    found = voxelize(points, SIZE, RANGE, 10, 100)
    assert found.features.shape == (0, 5)
    assert found.coordinates.shape == (0, 3)
    assert found.num_points.shape == (0,)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_points_whose_place_is_not_finite_are_dropped(value: float, axis: int) -> None:
    points = cloud(60)
    points[::3, axis] = value
    found = voxelize(points, SIZE, RANGE, 10, 100)
    assert found.features.isfinite().all()
    assert_same(found, loop(points, 10, 100))


def test_a_masked_cloud_is_one_voxel_without_content() -> None:
    """Masked-modal training puts all points to the origin (section 3)."""
    found = voxelize(torch.zeros(500, 5), SIZE, RANGE, 10, 100)
    assert found.coordinates.tolist() == [[2, 0, 2]]
    assert found.num_points.tolist() == [10]
    assert not found.features.any()


def test_points_are_not_changed() -> None:
    points = cloud()
    before = points.clone()
    voxelize(points, SIZE, RANGE, 2, 10)
    assert torch.equal(points, before)


@pytest.mark.parametrize(("max_points", "max_voxels"), [(0, 10), (10, 0)])
def test_limits_below_one_are_refused(max_points: int, max_voxels: int) -> None:
    with pytest.raises(TenfoldError, match="at least 1"):
        voxelize(cloud(4), SIZE, RANGE, max_points, max_voxels)
