"""Anchors of the two detectors, as the authors' configurations give them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

SSD_STRIDES = (16, 32, 64, 107, 160, 320)
SSD_RATIOS = (2, 3)
SSD_MIN_SIZES = (48, 100, 150, 202, 253, 304)
SSD_MAX_SIZES = (100, 150, 202, 253, 304, 320)
RETINANET_STRIDES = (8, 16, 32, 64, 128)
RETINANET_OCTAVE_BASE, RETINANET_SCALES = 4, 3
RETINANET_RATIOS = (0.5, 1.0, 2.0)


def ssdlite_anchors(
    size: int = 320,
    strides: Sequence[int] = SSD_STRIDES,
    ratios: Sequence[float] = SSD_RATIOS,
    min_sizes: Sequence[float] = SSD_MIN_SIZES,
    max_sizes: Sequence[float] = SSD_MAX_SIZES,
) -> tuple[Tensor, list[Tensor]]:
    """Anchors of SSDLite.

    In every cell: a square of the smallest size, one of the geometric mean of both sizes, then for each ratio a flat
    and a tall box of the smallest size's area.

    Args:
        size: side of the image.
        strides: of the levels; a level has size / stride cells a side, rounded up.
        ratios: of the longer to the shorter side.
        min_sizes: of the levels.
        max_sizes: of the levels.

    Returns:
        [anchors, 4], corners x1, y1, x2, y2 in pixels, not clipped, by level, row and column; and the boxes of one
        cell around its centre for each level, [boxes, 4].
    """
    found, base = [], []
    for stride, smallest, largest in zip(strides, min_sizes, max_sizes, strict=True):
        # height / width: flat ones have 1 / ratio, tall ones the ratio.
        shapes = [(smallest, smallest), (math.sqrt(smallest * largest),) * 2]
        for ratio in ratios:
            for height_by_width in (1 / ratio, ratio):
                root = math.sqrt(height_by_width)
                shapes.append((smallest / root, smallest * root))
        boxes = _around_centre(shapes, stride / 2)
        base.append(boxes)
        cells = math.ceil(size / stride)
        found.append(_on_grid(boxes, cells, cells, stride))
    return torch.cat(found), base


def retinanet_anchors(
    feature_sizes: Sequence[tuple[int, int]],
    strides: Sequence[int] = RETINANET_STRIDES,
    ratios: Sequence[float] = RETINANET_RATIOS,
) -> Tensor:
    """Anchors of RetinaNet: three ratios times three scales of four strides, neither rounded nor clipped.

    Args:
        feature_sizes: height and width of every level.
        strides: of the levels.
        ratios: height by width.

    Returns:
        [anchors, 4], corners x1, y1, x2, y2 in pixels, by level, row and column; in a cell by ratio, then by scale.
    """
    found = []
    for (height, width), stride in zip(feature_sizes, strides, strict=True):
        octaves = [2 ** (octave / RETINANET_SCALES) for octave in range(RETINANET_SCALES)]
        scales = [RETINANET_OCTAVE_BASE * stride * octave for octave in octaves]
        shapes = [(side / math.sqrt(ratio), side * math.sqrt(ratio)) for ratio in ratios for side in scales]
        found.append(_on_grid(_around_centre(shapes, 0.0), height, width, stride))
    return torch.cat(found)


def _around_centre(shapes: Sequence[tuple[float, ...]], centre: float) -> Tensor:
    """Corners of boxes of given width and height around (centre, centre)."""
    half = torch.tensor(shapes, dtype=torch.float64) / 2
    return torch.cat((centre - half, centre + half), dim=1).float()


def _on_grid(boxes: Tensor, rows: int, columns: int, stride: int) -> Tensor:
    """The boxes in every cell of a grid, row by row."""
    y, x = torch.meshgrid(torch.arange(rows) * stride, torch.arange(columns) * stride, indexing="ij")
    corners = torch.stack((x, y, x, y), dim=-1).reshape(-1, 1, 4)
    return (corners + boxes).reshape(-1, 4)
