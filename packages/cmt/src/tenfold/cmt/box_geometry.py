"""Boxes as solids in the LiDAR frame: corners, points inside, projections into images.

A box is ``(x, y, z of the bottom, length, width, height, yaw, vx, vy)`` in metres, radians and m/s; yaw turns
counter-clockwise from the x axis (right), y points forward, z up.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.floating[Any]]

UNIT_CORNERS = np.array(
    [[x, y, z] for z in (0, 1) for x, y in ((-0.5, -0.5), (0.5, -0.5), (0.5, 0.5), (-0.5, 0.5))]
)
"""[8, 3]: four corners of the bottom in order around it, the first two and the last two being rear-right, front-right,
front-left and rear-left; then those of the top."""
_CELL = 2.0
"""Metres; side of the cells by which far points are passed over."""


def rotation_matrices(yaw: FloatArray) -> FloatArray:
    """Rotations about z, [..., 3, 3], for angles [...]."""
    cosine, sine = np.cos(yaw), np.sin(yaw)
    zero, one = np.zeros_like(cosine), np.ones_like(cosine)
    rows = [cosine, -sine, zero, sine, cosine, zero, zero, zero, one]
    return np.stack(rows, axis=-1).reshape(*np.shape(yaw), 3, 3)


def box_corners(boxes: FloatArray) -> FloatArray:
    """Corners, [N, 8, 3] in the order of :data:`UNIT_CORNERS`, of boxes [N, 7 or more]."""
    local = UNIT_CORNERS * boxes[:, None, 3:6]
    return np.asarray(local @ rotation_matrices(boxes[:, 6]).transpose(0, 2, 1) + boxes[:, None, :3])


def gravity_centres(boxes: FloatArray) -> FloatArray:
    """Middles, [N, 3], of boxes [N, 7 or more]."""
    centres = boxes[:, :3].copy()
    centres[:, 2] += boxes[:, 5] / 2
    return centres


def points_in_boxes(points: FloatArray, boxes: FloatArray) -> NDArray[np.bool_]:
    """Which points [P, 3 or more] are inside which boxes [N, 7 or more]: [P, N]."""
    local = points[:, None, :3].astype(np.float64) - gravity_centres(boxes)[None]
    local = np.einsum("pni,nij->pnj", local, rotation_matrices(boxes[:, 6].astype(np.float64)))
    return np.asarray((np.abs(local) <= boxes[None, :, 3:6] / 2).all(axis=-1))


def points_near_boxes(points: FloatArray, boxes: FloatArray) -> NDArray[np.int64]:
    """Numbers of the points [P, 3 or more] that may be in one of the boxes [N, 7 or more], in their order.

    They are those in cells of the ground that a box's outer circle meets; most far points are passed over.
    """
    if not len(boxes):
        return np.zeros(0, np.int64)
    centres = boxes[:, :2]
    reach = np.linalg.norm(boxes[:, 3:5], axis=1) / 2 + _CELL
    low = (centres - reach[:, None]).min(axis=0)
    columns, rows = np.ceil(((centres + reach[:, None]).max(axis=0) - low) / _CELL).astype(int)
    x = low[0] + _CELL * (np.arange(columns) + 0.5)
    y = low[1] + _CELL * (np.arange(rows) + 0.5)
    apart = (x[:, None, None] - centres[:, 0]) ** 2 + (y[None, :, None] - centres[:, 1]) ** 2
    met = (apart <= reach**2).any(axis=-1)
    cells = np.floor((points[:, :2] - low) / _CELL).astype(np.int64)
    within = ((cells >= 0) & (cells < (columns, rows))).all(axis=1)
    numbers = np.flatnonzero(within)
    return np.asarray(numbers[met[cells[numbers, 0], cells[numbers, 1]]])


def transform_points(points: FloatArray, matrix: FloatArray) -> FloatArray:
    """Points [..., 3] after a motion [4, 4]."""
    return np.asarray(points @ matrix[:3, :3].T + matrix[:3, 3])


def project(points: FloatArray, lidar2image: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Pixels [..., 2] and depths [...] in metres of points [..., 3]; pixels mean nothing where depth is not above 0."""
    homogeneous = transform_points(points, lidar2image)
    depth = homogeneous[..., 2]
    return homogeneous[..., :2] / np.where(np.abs(depth) < 1e-6, 1e-6, depth)[..., None], depth


def image_rectangles(
    boxes: FloatArray, lidar2image: FloatArray, size: tuple[int, int]
) -> tuple[NDArray[np.int64], FloatArray, NDArray[np.bool_]]:
    """Upright rectangles around boxes in images.

    Args:
        boxes: [N, 7 or more].
        lidar2image: [V, 4, 4], as :func:`project` takes them.
        size: height and width of the images in pixels.

    Returns:
        left, top, right and bottom, [V, N, 4], inside of the image; mean depths of the corners, [V, N]; and whether all
        corners are before the camera and the rectangle is more than a pixel wide and high, [V, N].
    """
    height, width = size
    corners = box_corners(boxes.astype(np.float64))
    projected = [project(corners, matrix) for matrix in lidar2image]
    pixels = np.stack([one for one, _ in projected])
    depths = np.stack([depth for _, depth in projected])
    clipped = np.clip(pixels, 0, (width, height))
    rectangles = np.concatenate((np.floor(clipped.min(axis=2)), np.ceil(clipped.max(axis=2))), -1).astype(
        np.int64
    )
    extent = clipped.max(axis=2) - clipped.min(axis=2)
    visible = (depths > 0).all(axis=-1) & (extent > 1).all(axis=-1)
    return rectangles, depths.mean(axis=-1), visible


def wrap_angle(angle: FloatArray) -> FloatArray:
    """Angles in [-pi, pi)."""
    return np.asarray((angle + np.pi) % (2 * np.pi) - np.pi)
