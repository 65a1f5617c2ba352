"""What a procedural scene holds: an ego vehicle and objects, all moving straight at constant speed."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tenfold.cmt.box_geometry import rotation_matrices
from tenfold.cmt.config import CLASSES
from tenfold.shared.logging import TenfoldError

Array = NDArray[np.floating[Any]]
Labels = NDArray[np.int64]


@dataclass(frozen=True)
class ClassTraits:
    """How large the objects of a class are, and how they move."""

    size: tuple[float, float, float]
    """Mean width, length and height in metres."""
    moving: float
    """Probability of moving."""
    evaluated_within: float
    """Greatest distance from the ego in metres at which the benchmark counts the class."""
    speeds: tuple[float, float] = (1.0, 5.0)
    """Limits in m/s of those that move."""


# Truck and construction vehicle, bus and trailer, and the two cycles look alike to a LiDAR: images tell them apart.
TRAITS = {
    "car": ClassTraits((1.95, 4.62, 1.73), 0.5, 50.0),
    "truck": ClassTraits((2.5, 6.9, 2.84), 0.5, 50.0),
    "construction_vehicle": ClassTraits((2.6, 6.6, 2.9), 0.2, 50.0, (0.5, 1.0)),
    "bus": ClassTraits((2.9, 10.5, 3.5), 0.5, 50.0),
    "trailer": ClassTraits((2.9, 10.8, 3.6), 0.3, 50.0),
    "barrier": ClassTraits((2.5, 0.5, 0.98), 0.0, 30.0),
    "motorcycle": ClassTraits((0.77, 2.1, 1.47), 0.5, 40.0, (1.0, 4.0)),
    "bicycle": ClassTraits((0.6, 1.75, 1.35), 0.5, 40.0, (1.0, 4.0)),
    "pedestrian": ClassTraits((0.67, 0.73, 1.77), 0.7, 40.0, (0.5, 1.5)),
    "traffic_cone": ClassTraits((0.41, 0.41, 1.07), 0.0, 30.0),
}
_SIZE_SPREAD = 0.06
"""Standard deviation of the logarithm of a size."""
_EGO_CLEARANCE = 3.0
"""Least distance in metres from the ego's path to the circle around an object."""
_EGO_PLACES = (800.0, 1200.0)
_EGO_SPEEDS = (0.0, 5.0)
_CANDIDATES = 64
_ROUNDS = 32
"""Of candidates for one object, after which the whole layout is begun again."""
_LAYOUTS = 50


@dataclass(frozen=True)
class Layout:
    """Ego and N objects in the world. Times are in seconds from the middle of the scene."""

    ego_position: Array
    """[2]: in the middle of the scene, in metres."""
    ego_heading: float
    ego_speed: float
    """In m/s along the heading."""
    labels: Labels
    """[N]: places in :data:`tenfold.cmt.config.CLASSES`."""
    sizes: Array
    """[N, 3]: length, width, height in metres."""
    positions: Array
    """[N, 2]: in the middle of the scene."""
    yaws: Array
    """[N], in radians."""
    speeds: Array
    """[N], in m/s along the yaw; 0 for those that stand."""

    def ego_pose(self, time: float) -> tuple[float, float, float]:
        """x, y and heading in the world."""
        x, y = self.ego_position + self.ego_speed * time * _unit(np.array(self.ego_heading))
        return float(x), float(y), self.ego_heading

    def solids(self, time: float) -> Array:
        """Boxes [N, 7] in the world: x, y, z of the bottom, length, width, height, yaw."""
        places = self.positions + time * self.speeds[:, None] * _unit(self.yaws)
        return np.column_stack((places, np.zeros(len(places)), self.sizes, self.yaws))

    def solids_from_ego(self, time: float) -> Array:
        """The same boxes in the ego frame of that time."""
        x, y, heading = self.ego_pose(time)
        solids = self.solids(time)
        solids[:, :2] = (solids[:, :2] - (x, y)) @ rotation_matrices(np.array(heading))[:2, :2]
        solids[:, 6] -= heading
        return solids


def draw_layout(
    generator: np.random.Generator,
    labels: Labels,
    distances: tuple[float, float],
    span: tuple[float, float],
) -> Layout:
    """Draw ego and objects so that nothing meets anything during the scene.

    Objects are area-uniform in a ring around the ego's place in the middle of the scene. The circles around them never
    overlap, and stay 3 m clear of the ego's path.

    Args:
        generator: of everything that is drawn.
        labels: [N], classes of the objects.
        distances: inner and outer radius of the ring, in metres.
        span: first and last moment, in seconds from the middle of the scene.

    Raises:
        TenfoldError: there is no room for so many objects.
    """
    for _ in range(_LAYOUTS):
        sizes, speeds = _draw_bodies(generator, labels)
        position = generator.uniform(*_EGO_PLACES, 2)
        heading = float(generator.uniform(-np.pi, np.pi))
        empty = Layout(
            position,
            heading,
            float(generator.uniform(*_EGO_SPEEDS)),
            labels,
            sizes,
            np.empty((0, 2)),
            np.empty(0),
            speeds,
        )
        placed = _place(generator, empty, distances, span)
        if placed is not None:
            return placed
    raise TenfoldError(
        f"{len(labels)} objects find no room from {distances[0]:g} to {distances[1]:g} m around the ego; "
        "ask for fewer objects or a wider ring"
    )


def _draw_bodies(generator: np.random.Generator, labels: Labels) -> tuple[Array, Array]:
    """Sizes [N, 3] as length, width, height, and speeds [N]."""
    traits = [TRAITS[CLASSES[label]] for label in labels]
    means = np.array([one.size for one in traits])[:, [1, 0, 2]]
    sizes = means * np.exp(generator.normal(0.0, _SIZE_SPREAD, means.shape))
    moving = generator.random(len(labels)) < [one.moving for one in traits]
    low, high = np.array([one.speeds for one in traits]).T
    return sizes, np.where(moving, generator.uniform(low, high), 0.0)


def _place(
    generator: np.random.Generator, layout: Layout, distances: tuple[float, float], span: tuple[float, float]
) -> Layout | None:
    """Give the objects positions and yaws one after another; None where one finds no room."""
    count = len(layout.labels)
    positions, yaws = np.empty((count, 2)), np.empty(count)
    radii = np.linalg.norm(layout.sizes[:, :2], axis=1) / 2
    first, last = (np.array(layout.ego_pose(time)[:2]) for time in span)
    for number in range(count):
        velocities = layout.speeds[:number, None] * _unit(yaws[:number])
        for _ in range(_ROUNDS):
            places, directions = _draw_places(generator, layout.ego_position, distances)
            velocity = layout.speeds[number] * _unit(directions)
            between = _least_gaps(places, velocity, positions[:number], velocities, span)
            free = (between >= radii[number] + radii[:number]).all(axis=1)
            starts, ends = (places + time * velocity for time in span)
            free &= _path_distance(starts, ends, first, last) >= radii[number] + _EGO_CLEARANCE
            if free.any():
                chosen = int(free.argmax())
                positions[number], yaws[number] = places[chosen], directions[chosen]
                break
        else:
            return None
    return replace(layout, positions=positions, yaws=yaws)


def _draw_places(
    generator: np.random.Generator, middle: Array, distances: tuple[float, float]
) -> tuple[Array, Array]:
    """Candidates: positions [C, 2] and yaws [C]."""
    radius = np.sqrt(generator.uniform(distances[0] ** 2, distances[1] ** 2, _CANDIDATES))
    bearing = generator.uniform(-np.pi, np.pi, _CANDIDATES)
    return middle + radius[:, None] * _unit(bearing), generator.uniform(-np.pi, np.pi, _CANDIDATES)


def _least_gaps(
    places: Array, velocities: Array, others: Array, other_velocities: Array, span: tuple[float, float]
) -> Array:
    """Least distances [C, M] during a span of C candidates and M others, all moving."""
    offset = places[:, None] - others[None]
    drift = velocities[:, None] - other_velocities[None]
    squared = (drift**2).sum(axis=-1)
    moment = -(offset * drift).sum(axis=-1) / np.where(squared > 0, squared, 1.0)
    return np.asarray(np.linalg.norm(offset + moment.clip(*span)[..., None] * drift, axis=-1))


def _path_distance(starts: Array, ends: Array, first: Array, last: Array) -> Array:
    """Least distances [C] from segments, given by ``starts`` and ``ends`` [C, 2], to one other segment."""
    nearest = np.minimum.reduce(
        [
            _distance_to_segment(starts, first, last),
            _distance_to_segment(ends, first, last),
            _distance_to_segment(first, starts, ends),
            _distance_to_segment(last, starts, ends),
        ]
    )
    sides = _side(starts, first, last) * _side(ends, first, last)
    other_sides = _side(first, starts, ends) * _side(last, starts, ends)
    return np.where((sides < 0) & (other_sides < 0), 0.0, nearest)


def _distance_to_segment(points: Array, starts: Array, ends: Array) -> Array:
    along = ends - starts
    length = (along**2).sum(axis=-1)
    part = ((points - starts) * along).sum(axis=-1) / np.where(length > 0, length, 1.0)
    return np.asarray(np.linalg.norm(points - starts - part.clip(0, 1)[..., None] * along, axis=-1))


def _side(points: Array, starts: Array, ends: Array) -> Array:
    """Positive left of the line from ``starts`` to ``ends``, negative right of it."""
    along, offset = ends - starts, points - starts
    return np.asarray(along[..., 0] * offset[..., 1] - along[..., 1] * offset[..., 0])


def _unit(angles: Array) -> Array:
    """Directions [..., 2] of angles [...]."""
    return np.stack((np.cos(angles), np.sin(angles)), axis=-1)
