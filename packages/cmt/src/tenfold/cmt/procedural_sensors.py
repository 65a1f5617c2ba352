"""A LiDAR and six cameras that look at solid boxes on a flat ground, by casting rays.

Everything is in the frame of the ego vehicle: x forward, y left, z up, the ground at z = 0. Solids are boxes
``(x, y, z of the bottom, length, width, height, yaw)`` in metres and radians. The sensors stand where they do on a
car of nuScenes, roughly.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tenfold.cmt.box_geometry import gravity_centres, rotation_matrices
from tenfold.cmt.config import CAMERAS, CLASSES

Array = NDArray[np.floating[Any]]
Rays = NDArray[np.float32]
Pixels = NDArray[np.uint8]

LIDAR = "LIDAR_TOP"
LIDAR_POSITION = (0.94, 0.0, 1.84)
"""In metres."""
LIDAR_YAW = -np.pi / 2
"""The sensor's x axis points right, its y axis forward."""
CAMERA_YAWS = dict(zip(CAMERAS, np.deg2rad([0.0, -55.0, 55.0, 180.0, 110.0, -110.0]).tolist(), strict=True))
"""Direction of view, counter-clockwise from forward."""

_LOWEST, _HIGHEST = np.deg2rad(-30.67), np.deg2rad(10.67)
_GREATEST_RANGE = 60.0
_RANGE_NOISE = 0.02
_DROPPED = 0.05
"""Part of the returns that are lost at random."""
_GROUND_INTENSITY = 8.0
_INTENSITY_NOISE = 2.0
_VEHICLE, _CYCLE, _PERSON, _REFLECTOR = 40.0, 30.0, 20.0, 70.0
_INTENSITIES = {
    "car": _VEHICLE,
    "truck": _VEHICLE,
    "construction_vehicle": _VEHICLE,
    "bus": _VEHICLE,
    "trailer": _VEHICLE,
    "barrier": _REFLECTOR,
    "motorcycle": _CYCLE,
    "bicycle": _CYCLE,
    "pedestrian": _PERSON,
    "traffic_cone": _REFLECTOR,
}
COLOURS = {
    "car": (200, 30, 30),
    "truck": (30, 60, 200),
    "construction_vehicle": (240, 200, 0),
    "bus": (30, 170, 60),
    "trailer": (230, 230, 230),
    "barrier": (255, 120, 20),
    "motorcycle": (120, 0, 160),
    "bicycle": (0, 200, 200),
    "pedestrian": (255, 150, 180),
    "traffic_cone": (120, 70, 20),
}
"""Red, green, blue of each class in full light."""
_SHADES = np.array([0.95, 0.75, 1.0], np.float32)
"""Of front and back, sides, bottom and top."""
_UPPER_SHADE, _UPPER_FROM = 0.55, 0.55
"""The body is darker above this part of its height."""
_SKY = np.array([150.0, 180.0, 220.0], np.float32)
_CHECKER_SIDE = 2.0
_CHECKER_GREYS = np.array([[85.0], [100.0]], np.float32)
_PIXEL_NOISE = 4.0

_CLASS_INTENSITY = np.array([_INTENSITIES[name] for name in CLASSES])
_CLASS_COLOUR = np.array([COLOURS[name] for name in CLASSES], np.float32)


@dataclass(frozen=True)
class Hits:
    """Where R rays end."""

    distance: NDArray[np.float32]
    """[R] in metres; infinite in the sky."""
    solid: NDArray[np.intp]
    """[R]: number of the solid that is hit, or -1 for ground and sky."""
    axis: NDArray[np.intp]
    """[R]: 0 for a front or back, 1 for a side, 2 for a bottom or top; 0 off the solids."""
    height: NDArray[np.float32]
    """[R]: where a solid is hit, from 0 at its bottom to 1 at its top; 0 off the solids."""


def cast_rays(origin: Array, directions: Rays, solids: Array) -> Hits:
    """First hits of rays from one point with solids and the ground, by the slab method.

    Only the rays that pass a solid's bounding sphere are intersected with it.

    Args:
        origin: [3], above the ground and outside of all solids.
        directions: [R, 3], of length 1.
        solids: [N, 7].
    """
    with np.errstate(divide="ignore"):
        ground = np.where(directions[:, 2] < 0, -np.float32(origin[2]) / directions[:, 2], np.float32(np.inf))
    hits = Hits(
        ground.astype(np.float32),
        np.full(len(directions), -1, np.intp),
        np.zeros(len(directions), np.intp),
        np.zeros(len(directions), np.float32),
    )
    ray, solid = _near_pairs(origin, directions, solids)
    half = (solids[:, 3:6] / 2).astype(np.float32)
    turned = rotation_matrices(solids[:, 6])
    start = np.einsum("ni,nij->nj", origin - gravity_centres(solids), turned).astype(np.float32)
    step = np.einsum("pi,pij->pj", directions[ray], turned.astype(np.float32)[solid])
    step = np.where(np.abs(step) < 1e-9, np.float32(1e-9), step)
    one, other = (-half - start)[solid] / step, (half - start)[solid] / step
    entries = np.minimum(one, other)
    enter, leave = entries.max(axis=1), np.maximum(one, other).min(axis=1)
    kept = np.flatnonzero((enter <= leave) & (enter > 0))
    # Of several assignments to one ray the last stays, which is the nearest.
    kept = kept[np.argsort(-enter[kept], kind="stable")]
    ray, solid = ray[kept], solid[kept]
    z = start[solid, 2] + enter[kept] * step[kept, 2]
    hits.distance[ray] = enter[kept]
    hits.solid[ray] = solid
    hits.axis[ray] = entries[kept].argmax(axis=1)
    hits.height[ray] = (z / half[solid, 2] + 1) / 2
    return hits


def _near_pairs(origin: Array, directions: Rays, solids: Array) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Numbers of rays and of solids whose bounding sphere they pass."""
    centres = gravity_centres(solids) - origin
    radii = np.linalg.norm(solids[:, 3:6], axis=1) / 2
    nearest_cosine = (centres**2).sum(axis=1) - radii**2
    along = directions @ centres.T.astype(np.float32)
    near = (along > -radii.astype(np.float32)) & (along * along >= nearest_cosine.astype(np.float32) - 1e-3)
    ray, solid = np.nonzero(near)
    return ray, solid


def lidar_sweep(
    solids: Array, labels: NDArray[np.integer[Any]], beams: int, azimuths: int, generator: np.random.Generator
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """One turn of the LiDAR.

    Args:
        solids: [N, 7], in the ego frame.
        labels: [N], places in :data:`tenfold.cmt.config.CLASSES`.
        beams: elevations, from -30.67 to 10.67 degrees.
        azimuths: directions of a turn.
        generator: of the noise.

    Returns:
        Points [P, 5] in the LiDAR's frame (x, y, z in metres, intensity 0-255, number of the beam from below), and how
        many of them each solid reflects, [N].
    """
    rays = _lidar_rays(beams, azimuths)
    # Ego axes from the sensor's: forward is its y, left is its -x.
    hits = cast_rays(
        np.array(LIDAR_POSITION), np.stack((rays[:, 1], -rays[:, 0], rays[:, 2]), axis=1), solids
    )
    seen = (hits.distance <= _GREATEST_RANGE) & (generator.random(len(rays)) >= _DROPPED)
    place = np.flatnonzero(seen)
    solid = hits.solid[place]
    distance = hits.distance[place] + generator.normal(0.0, _RANGE_NOISE, len(place))
    intensity = np.where(solid < 0, _GROUND_INTENSITY, _CLASS_INTENSITY[labels[solid]])
    intensity = (intensity + generator.normal(0.0, _INTENSITY_NOISE, len(place))).clip(0, 255)
    points = np.column_stack((rays[place] * distance[:, None], intensity, place // azimuths))
    return points.astype(np.float32), np.bincount(solid[solid >= 0], minlength=len(solids))


@lru_cache(maxsize=2)
def _lidar_rays(beams: int, azimuths: int) -> Rays:
    """Directions [beams * azimuths, 3] in the LiDAR's frame."""
    elevation = np.linspace(_LOWEST, _HIGHEST, beams)[:, None]
    azimuth = (np.arange(azimuths) * (2 * np.pi / azimuths))[None]
    x, y = np.cos(elevation) * np.cos(azimuth), np.cos(elevation) * np.sin(azimuth)
    z = np.broadcast_to(np.sin(elevation), x.shape)
    return np.stack((x, y, z), axis=-1).reshape(-1, 3).astype(np.float32)


def camera_position(name: str) -> Array:
    """Where a camera is, [3], in metres."""
    yaw = CAMERA_YAWS[name]
    return np.array([0.9 + 0.8 * np.cos(yaw), 0.6 * np.sin(yaw), 1.5])


def camera_rotation(name: str) -> Array:
    """Camera axes (x right, y down, z forward) as columns in the ego frame, [3, 3]."""
    cosine, sine = np.cos(CAMERA_YAWS[name]), np.sin(CAMERA_YAWS[name])
    return np.array([[sine, 0.0, cosine], [-cosine, 0.0, sine], [0.0, -1.0, 0.0]])


def camera_intrinsic(name: str, image_size: tuple[int, int]) -> Array:
    """Camera frame to pixels times depth, [3, 3], for images of a height and width."""
    height, width = image_size
    focal = (796.0 if name == "CAM_BACK" else 1266.0) / 1600.0 * width
    return np.array([[focal, 0.0, width / 2], [0.0, focal, 0.546 * height], [0.0, 0.0, 1.0]])


def render_image(
    solids: Array,
    labels: NDArray[np.integer[Any]],
    camera: str,
    image_size: tuple[int, int],
    ego_pose: tuple[float, float, float],
    generator: np.random.Generator,
) -> Pixels:
    """What a camera sees, [height, width, 3], red first.

    Args:
        solids: [N, 7], in the ego frame.
        labels: [N], places in :data:`tenfold.cmt.config.CLASSES`.
        camera: its name.
        image_size: height and width in pixels.
        ego_pose: x, y and heading in the world, where the pattern on the ground lies still.
        generator: of the noise.
    """
    rays = _camera_rays(camera, image_size)
    position = camera_position(camera)
    hits = cast_rays(position, rays, solids)
    image = np.broadcast_to(_SKY, rays.shape).copy()
    ground = np.flatnonzero((hits.solid < 0) & np.isfinite(hits.distance))
    image[ground] = _checker(position[:2] + rays[ground, :2] * hits.distance[ground, None], ego_pose)
    body = np.flatnonzero(hits.solid >= 0)
    shade = _SHADES[hits.axis[body]] * np.where(
        hits.height[body] > _UPPER_FROM, np.float32(_UPPER_SHADE), np.float32(1)
    )
    image[body] = _CLASS_COLOUR[labels[hits.solid[body]]] * shade[:, None]
    image += np.float32(_PIXEL_NOISE) * generator.standard_normal(image.shape, dtype=np.float32)
    return image.clip(0, 255).round().astype(np.uint8).reshape(*image_size, 3)


def _checker(ground: Array, ego_pose: tuple[float, float, float]) -> Rays:
    """Greys [P, 1] of points [P, 2] of the ground, given in the ego frame."""
    x, y, heading = ego_pose
    turned = ground @ rotation_matrices(np.array(heading))[:2, :2].T
    squares = np.floor((turned + np.array([x, y])) / _CHECKER_SIDE)
    return np.asarray(_CHECKER_GREYS[squares.sum(axis=1).astype(np.int64) % 2])


@lru_cache(maxsize=2 * len(CAMERAS))
def _camera_rays(name: str, image_size: tuple[int, int]) -> Rays:
    """Directions [height * width, 3] in the ego frame, through the middles of the pixels."""
    height, width = image_size
    rows, columns = np.mgrid[:height, :width] + 0.5
    pixels = np.stack((columns, rows, np.ones_like(rows)), axis=-1).reshape(-1, 3)
    rays = pixels @ np.linalg.inv(camera_intrinsic(name, image_size)).T @ camera_rotation(name).T
    return np.asarray((rays / np.linalg.norm(rays, axis=1, keepdims=True)).astype(np.float32))
