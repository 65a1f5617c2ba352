"""Views of self-supervision: zoomed and rotated images whose transform the pretext head has to name.

All images of a batch are transformed at once, on their device, from boxes and labels drawn on the host.
"""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from tenfold.shared.logging import TenfoldError

ViewKind = Literal["zoom-rotate", "scale-rotate", "rotate"]
ZOOM_AREA = 0.665
"""Middle of the area fractions (0.66 to 0.67) that the authors draw from; we round to one size, 26 of 32, 52 of 64."""


def view_classes(kind: ViewKind) -> int:
    """K: how many transforms there are to tell apart."""
    return 16 if kind == "scale-rotate" else 4


def common_side(kind: ViewKind, size: int) -> int | None:
    """Side of every box where all are squares of one size; None where they differ."""
    return {"zoom-rotate": round(size * math.sqrt(ZOOM_AREA)), "rotate": size, "scale-rotate": None}[kind]


def draw_pretext_labels(size: int, num_classes: int, generator: np.random.RandomState) -> np.ndarray:
    """[size]: each class as often as any other, to within one, in random order."""
    return generator.permutation(np.arange(size) % num_classes)


def draw_boxes(kind: ViewKind, labels: np.ndarray, size: int, generator: np.random.RandomState) -> np.ndarray:
    """The crop of every image.

    A zoom is a square of 0.665 of the area at a random place. The 16-way scales 1 and 2 are the centre crops to which
    torchvision's RandomResizedCrop falls back when it is asked for the whole area at another aspect ratio, which is
    what the authors' settings always lead to.

    Args:
        kind: zoom-rotate zooms every image; rotate none; scale-rotate does what ``labels // 4`` says: zoom, a tall
            crop, a wide crop, nothing.
        labels: [N] pretext labels.
        size: height and width of the images.
        generator: of the places of the zoomed crops.

    Returns:
        [N, 4] integers: top, left, height, width.
    """
    boxes = np.empty((len(labels), 4), dtype=np.int64)
    boxes[:] = (0, 0, size, size)
    zoomed = {"zoom-rotate": labels >= 0, "scale-rotate": labels // 4 == 0, "rotate": labels < 0}[kind]
    side = common_side("zoom-rotate", size)
    assert side is not None
    boxes[zoomed, :2] = generator.randint(0, size - side + 1, (int(zoomed.sum()), 2))
    boxes[zoomed, 2:] = side
    if kind == "scale-rotate":
        narrow, flat = round(size * 0.67), round(size / 1.32)
        boxes[labels // 4 == 1] = (0, (size - narrow) // 2, size, narrow)
        boxes[labels // 4 == 2] = ((size - flat) // 2, 0, flat, size)
    return boxes


def crop_and_rotate(images: Tensor, labels: Tensor, boxes: Tensor, side: int | None = None) -> Tensor:
    """Each image's box stretched over the whole image (bilinear, no antialiasing), then quarter turns clockwise.

    Args:
        images: [N, channels, S, S], as augmented and normalised; left as they are.
        labels: [N]; ``labels % 4`` is the number of quarter turns.
        boxes: [N, 4] integers: top, left, height, width.
        side: height and width of all boxes, where they are known to agree; saves time.

    Raises:
        TenfoldError: the images are not square.
    """
    size = images.shape[-1]
    if images.shape[-2] != size:
        raise TenfoldError(f"quarter turns need square images, not {images.shape[-2]} x {size}")
    top, left, height, width = boxes.unbind(dim=1)
    if side is None:
        views = _stretch(_stretch(images, left, width, dim=3), top, height, dim=2)
    elif side == size:
        views = images
    else:
        crops = _cut(_cut(images, left, side, dim=3), top, side, dim=2)
        views = interpolate(crops, size=(size, size), mode="bilinear", align_corners=False)
    turns = (labels % 4)[:, None, None, None]
    views = torch.where(turns % 2 == 1, views.transpose(2, 3), views)
    views = torch.where((turns == 2) | (turns == 3), views.flip(2), views)
    return torch.where((turns == 1) | (turns == 2), views.flip(3), views)


def _stretch(images: Tensor, start: Tensor, length: Tensor, dim: int) -> Tensor:
    """Resize the stretch ``start .. start + length`` of one dimension to the whole of it, a different one per image."""
    size = images.shape[dim]
    positions = (torch.arange(size, device=images.device) + 0.5) * (length[:, None] / size) - 0.5
    positions = positions.clamp(min=0)
    low = positions.long()
    high = torch.minimum(low + 1, length[:, None] - 1)
    shape = [len(images), 1, 1, 1]
    shape[dim] = size
    weight = (positions - low).to(images.dtype).view(shape)
    low, high = ((start[:, None] + index).view(shape).expand_as(images) for index in (low, high))
    return images.gather(dim, low) * (1 - weight) + images.gather(dim, high) * weight


def _cut(images: Tensor, start: Tensor, length: int, dim: int) -> Tensor:
    """The stretch ``start .. start + length`` of one dimension, at a different place in each image."""
    shape = [len(images), 1, 1, 1]
    shape[dim] = length
    index = (start[:, None] + torch.arange(length, device=images.device)).view(shape)
    cut_shape = list(images.shape)
    cut_shape[dim] = length
    return images.gather(dim, index.expand(cut_shape))


def zoom_rotate(
    images: Tensor,
    labels: Tensor,
    boxes: Tensor | None = None,
    generator: np.random.RandomState | None = None,
) -> Tensor:
    """The 4-way transform: zoom into every image, turn it ``labels`` times; boxes are drawn where absent."""
    return _transform("zoom-rotate", images, labels, boxes, generator)


def scale_rotate(
    images: Tensor,
    labels: Tensor,
    boxes: Tensor | None = None,
    generator: np.random.RandomState | None = None,
) -> Tensor:
    """The 16-way transform: one of four scales (``labels // 4``), and ``labels % 4`` turns; boxes are drawn where
    absent.
    """
    return _transform("scale-rotate", images, labels, boxes, generator)


def _transform(
    kind: ViewKind,
    images: Tensor,
    labels: Tensor,
    boxes: Tensor | None,
    generator: np.random.RandomState | None,
) -> Tensor:
    if boxes is not None:
        return crop_and_rotate(images, labels, boxes)
    size = images.shape[-1]
    drawn = draw_boxes(kind, labels.cpu().numpy(), size, generator or np.random.RandomState())
    return crop_and_rotate(images, labels, torch.from_numpy(drawn).to(images.device), common_side(kind, size))
