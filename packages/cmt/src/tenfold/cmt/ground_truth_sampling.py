"""Pasting annotated objects of other keyframes into a training sample, into points and images alike.

Each sample gets objects of every class until there are as many as :data:`GROUPS` says. Objects stay where they were
relative to the car, so they are seen from the same side, and leave out those that would overlap another.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tenfold.cmt.box_geometry import image_rectangles, points_in_boxes, points_near_boxes
from tenfold.cmt.object_database import ImageArray, IntArray, ObjectDatabase
from tenfold.cmt.samples import FloatArray, Sample

GROUPS = (2, 3, 7, 4, 6, 2, 6, 6, 2, 2)
"""Objects of each class that a sample has after pasting, in the order of :data:`tenfold.cmt.config.CLASSES`."""


def paste_objects(
    sample: Sample,
    database: ObjectDatabase,
    generator: np.random.Generator,
    groups: Sequence[int] = GROUPS,
    min_points: int = 5,
    mixup: float = 0.5,
) -> Sample:
    """Fill a sample up with objects.

    Args:
        sample: before any other change.
        database: where objects come from.
        generator: draws the objects.
        groups: how many of each class there are to be.
        min_points: objects with fewer are not pasted.
        mixup: weight of an object's pixels against those below.
    """
    chosen = _choose(sample, database, generator, groups, min_points)
    if not len(chosen):
        return sample
    added = database.boxes[chosen]
    contents = [database.content(number) for number in chosen]
    points = sample.points
    if points is not None:
        objects = [one + np.pad(box[:3], (0, 2)) for (one, _), box in zip(contents, added, strict=True)]
        points = np.concatenate((*objects, _outside(points, added)))
    images = _pasted_images(sample, added, [crop for _, crop in contents], mixup)
    return replace(
        sample,
        points=points,
        images=images,
        boxes=np.concatenate((sample.boxes, added)),
        labels=np.concatenate((sample.labels, database.labels[chosen])),
    )


def _choose(
    sample: Sample,
    database: ObjectDatabase,
    generator: np.random.Generator,
    groups: Sequence[int],
    min_points: int,
) -> IntArray:
    """Numbers of objects that overlap neither the sample's nor each other."""
    present = np.bincount(sample.labels, minlength=len(groups))
    boxes, chosen = sample.boxes, np.zeros(0, np.int64)
    for label, group in enumerate(groups):
        candidates = database.of_class(label, min_points)
        count = min(group - int(present[label]), len(candidates))
        if count <= 0:
            continue
        drawn = candidates[generator.choice(len(candidates), count, replace=False)]
        free = _free(database.boxes[drawn], boxes)
        boxes = np.concatenate((boxes, database.boxes[drawn[free]]))
        chosen = np.concatenate((chosen, drawn[free]))
    return chosen


def _free(drawn: NDArray[np.float32], boxes: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Which drawn boxes overlap none of the boxes, and no free one drawn before."""
    free = np.logical_not(bev_overlaps(drawn, boxes).any(axis=1))
    mutual = np.tril(bev_overlaps(drawn, drawn), -1)
    for place in range(1, len(drawn)):  # each depends on the outcome for those before; there are few
        free[place] &= not (mutual[place] & free).any()
    return free


def bev_overlaps(
    first: FloatArray | NDArray[np.float32], second: FloatArray | NDArray[np.float32]
) -> NDArray[np.bool_]:
    """Whether boxes [N, 7 or more] and [M, 7 or more] overlap seen from above: [N, M]. Touching is no overlap.

    Two rectangles are apart when they are along one of their four sides' directions.
    """
    axes, half = _sides(first)
    other_axes, other_half = _sides(second)
    between = second[None, :, :2].astype(np.float64) - first[:, None, :2]
    cosines = np.abs(np.einsum("nac,mbc->nmab", axes, other_axes))
    along = np.abs(np.einsum("nmc,nac->nma", between, axes))
    along_other = np.abs(np.einsum("nmc,mbc->nmb", between, other_axes))
    meet = along < half[:, None] + np.einsum("nmab,mb->nma", cosines, other_half)
    meet_other = along_other < other_half[None] + np.einsum("nmab,na->nmb", cosines, half)
    return np.asarray(meet.all(axis=-1) & meet_other.all(axis=-1))


def _sides(boxes: FloatArray | NDArray[np.float32]) -> tuple[FloatArray, FloatArray]:
    """Directions [N, 2, 2] of length and width, and their halves [N, 2]."""
    cosine, sine = np.cos(boxes[:, 6].astype(np.float64)), np.sin(boxes[:, 6].astype(np.float64))
    axes = np.stack((np.stack((cosine, sine), -1), np.stack((-sine, cosine), -1)), 1)
    return axes, boxes[:, 3:5].astype(np.float64) / 2


def _outside(points: NDArray[np.float32], boxes: NDArray[np.float32]) -> NDArray[np.float32]:
    near = points_near_boxes(points, boxes)
    outside = np.ones(len(points), dtype=bool)
    outside[near[points_in_boxes(points[near], boxes).any(axis=1)]] = False
    return points[outside]


def _pasted_images(
    sample: Sample, added: NDArray[np.float32], crops: Sequence[ImageArray | None], mixup: float
) -> ImageArray | None:
    """Images with all objects blended in, the far ones first; the sample's own with what was seen of them before."""
    if sample.images is None:
        return None
    own = len(sample.boxes)
    boxes = np.concatenate((sample.boxes, added))
    rectangles, depths, visible = image_rectangles(boxes, sample.lidar2image, sample.images.shape[1:3])
    visible[:, own:] &= np.array([crop is not None for crop in crops])
    images = sample.images.copy()
    for camera in np.flatnonzero(visible[:, own:].any(axis=1)):
        numbers = np.flatnonzero(visible[camera])
        for number in numbers[np.argsort(-depths[camera, numbers], kind="stable")]:
            left, top, right, bottom = rectangles[camera, number]
            crop = sample.images[camera, top:bottom, left:right] if number < own else crops[number - own]
            below = Image.fromarray(images[camera, top:bottom, left:right])
            above = Image.fromarray(crop).resize(below.size, Image.Resampling.BILINEAR)
            images[camera, top:bottom, left:right] = np.asarray(Image.blend(below, above, mixup))
    return images
