"""Random motions of a whole scene: points, boxes and the way into the cameras together.

In training a sample goes through these in order: objects are pasted, a modality is dropped, the scene is
rotated, scaled, shifted and mirrored, what left the range is dropped, points are shuffled, and images are moved last.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from tenfold.cmt.box_geometry import rotation_matrices, wrap_angle
from tenfold.cmt.config import AugmentConfig
from tenfold.cmt.samples import FloatArray, Sample

PointRange = tuple[float, float, float, float, float, float]


@dataclass(frozen=True)
class SceneDraws:
    """What is done to one scene."""

    drop_images: bool = False
    drop_points: bool = False
    angle: float = 0.0
    """Of the rotation about z, counter-clockwise, in radians."""
    scale: float = 1.0
    translation: tuple[float, float, float] = (0.0, 0.0, 0.0)
    """In metres."""
    flip_x: bool = False
    """Mirror x."""
    flip_y: bool = False
    """Mirror y."""
    legacy_reverse_rotation: bool = False
    """Turn boxes the other way."""


def draw_scene(config: AugmentConfig, generator: np.random.Generator) -> SceneDraws:
    """Draw what is done to a scene. The generator moves on by the same number of draws whatever the configuration."""
    modality = generator.random()
    images = bool(modality > 1 - config.drop_images)
    angle, scale = generator.uniform(*config.rotation), generator.uniform(*config.scale)
    x, y, z = generator.normal(0.0, config.translation, 3).tolist()
    return SceneDraws(
        drop_images=images,
        drop_points=not images and bool(modality > 1 - config.drop_images - config.drop_points),
        angle=angle,
        scale=scale,
        translation=(x, y, z),
        flip_x=bool(generator.random() < config.flip_x),
        flip_y=bool(generator.random() < config.flip_y),
        legacy_reverse_rotation=config.legacy_reverse_rotation,
    )


def is_fixed(config: AugmentConfig) -> bool:
    """Whether every scene is left as it is, but for dropped modalities and pasted objects."""
    return (
        config.rotation == (0.0, 0.0)
        and config.scale == (1.0, 1.0)
        and config.translation == config.flip_x == config.flip_y == 0
        and not config.shuffle
    )


def transform_scene(sample: Sample, draws: SceneDraws) -> Sample:
    """Drop a modality, rotate, scale and shift, then mirror."""
    sample = drop_modality(sample, draws.drop_images, draws.drop_points)
    sample = rotate_scale_translate(
        sample, draws.angle, draws.scale, draws.translation, draws.legacy_reverse_rotation
    )
    return flip(sample, draws.flip_x, draws.flip_y)


def drop_modality(sample: Sample, images: bool, points: bool) -> Sample:
    """Make images black, or all numbers of all points zero; nothing becomes empty."""
    if images and sample.images is not None:
        sample = replace(sample, images=np.zeros_like(sample.images))
    if points and sample.points is not None:
        sample = replace(sample, points=np.zeros_like(sample.points))
    return sample


def rotate_scale_translate(
    sample: Sample,
    angle: float,
    scale: float,
    translation: tuple[float, float, float],
    legacy_reverse_rotation: bool = False,
) -> Sample:
    """Rotate about z, then scale, then shift. Pixels of moved points are those of the points before.

    Args:
        sample: its boxes' sizes and velocities are scaled too.
        angle: counter-clockwise, in radians.
        scale: positive.
        translation: along x, y and z, in metres.
        legacy_reverse_rotation: turn boxes clockwise while points and cameras turn counter-clockwise, as the released
            camera configuration does by mistake.
    """
    rotation = rotation_matrices(np.asarray(angle))
    motion = np.eye(4)
    motion[:3, :3] = scale * rotation
    motion[:3, 3] = translation

    box_angle = -angle if legacy_reverse_rotation else angle
    box_rotation = rotation_matrices(np.asarray(box_angle))
    boxes = sample.boxes.astype(np.float64)
    boxes[:, :3] = scale * boxes[:, :3] @ box_rotation.T + motion[:3, 3]
    boxes[:, 3:6] *= scale
    boxes[:, 6] += box_angle
    boxes[:, 7:9] = scale * boxes[:, 7:9] @ box_rotation[:2, :2].T
    return _moved(sample, motion, boxes)


def flip(sample: Sample, axis_x: bool, axis_y: bool) -> Sample:
    """Mirror x, y or both. Cameras see what they saw, through a mirrored LiDAR frame."""
    signs = np.array([-1.0 if axis_x else 1.0, -1.0 if axis_y else 1.0, 1.0])
    boxes = sample.boxes.astype(np.float64)
    boxes[:, :3] *= signs
    boxes[:, 7:9] *= signs[:2]
    if axis_x:
        boxes[:, 6] = np.pi - boxes[:, 6]
    if axis_y:
        boxes[:, 6] = -boxes[:, 6]
    return _moved(sample, np.diag([*signs, 1.0]), boxes)


def _moved(sample: Sample, motion: FloatArray, boxes: FloatArray) -> Sample:
    """Points and cameras after a motion [4, 4] of the LiDAR frame, with boxes that were moved already."""
    points = sample.points
    if points is not None:
        points = points.copy()
        points[:, :3] = points[:, :3] @ motion[:3, :3].T.astype(np.float32) + motion[:3, 3].astype(np.float32)
    return replace(
        sample,
        points=points,
        lidar2camera=sample.lidar2camera @ np.linalg.inv(motion),
        boxes=boxes.astype(np.float32),
    )


def filter_range(sample: Sample, point_range: PointRange) -> Sample:
    """Keep points inside the range, and boxes with a centre inside its x and y; then put yaws into [-pi, pi).

    The borders are outside.
    """
    points = sample.points
    if points is not None:
        points = points[_inside(points[:, :3], point_range[:3], point_range[3:])]
    kept = _inside(sample.boxes[:, :2], point_range[:2], point_range[3:5])
    boxes = sample.boxes[kept]
    boxes[:, 6] = wrap_angle(boxes[:, 6])
    return replace(sample, points=points, boxes=boxes, labels=sample.labels[kept])


def _inside(
    places: NDArray[np.float32], low: tuple[float, ...], high: tuple[float, ...]
) -> NDArray[np.bool_]:
    bounds = np.array([low, high], dtype=places.dtype)
    return np.asarray(((places > bounds[0]) & (places < bounds[1])).all(axis=1))


def shuffle_points(sample: Sample, generator: np.random.Generator) -> Sample:
    """Put points into random order."""
    if sample.points is None:
        return sample
    return replace(sample, points=sample.points[generator.permutation(len(sample.points))])
