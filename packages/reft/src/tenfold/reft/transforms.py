"""Large-scale jitter of images with their instances, and sizes for testing, after Mask2Former's recipe."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from pycocotools import mask as rle_masks
from torch import Tensor
from torch.nn import functional as nnf
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F

from tenfold.reft.annotations import run_lengths

PIXEL_MEAN = (123.675, 116.28, 103.53)
"""Of ImageNet's red, green and blue, from 0 to 255."""
PIXEL_STD = (58.395, 57.12, 57.375)
FILL = 128
"""Value of pixels outside the image, before they are normalised."""


@dataclass(frozen=True)
class Placement:
    """Where an image comes to lie in a square: mirrored, resized, cropped; what is left is at bottom and right."""

    original: tuple[int, int]
    """Height and width of the image."""
    resized: tuple[int, int]
    """Height and width before the crop."""
    corner: tuple[int, int]
    """Top and left of the crop in the resized image."""
    size: int
    """Side of the square."""
    flip: bool
    """Mirrored, left to right."""

    @property
    def visible(self) -> tuple[int, int]:
        """Height and width of the part of the square that the image covers."""
        return min(self.resized[0], self.size), min(self.resized[1], self.size)


def large_scale_jitter(
    original: tuple[int, int], size: int, jitter: tuple[float, float], flip: bool, generator: torch.Generator
) -> Placement:
    """A random placement: the image fits the square times a random scale, of which a random part is taken.

    As in Mask2Former's recipe, one number places the crop along both axes.

    Args:
        original: height and width of the image.
        size: side of the square, in pixels.
        jitter: range of the scale, drawn uniformly; equal ends and 1 only fit the image.
        flip: mirror half of the images.
        generator: of the three draws.
    """
    mirrored, position, along = torch.rand(3, generator=generator, dtype=torch.float64).tolist()
    scale = jitter[0] + (jitter[1] - jitter[0]) * position
    factor = min(size * scale / original[0], size * scale / original[1])
    height, width = (max(1, round(side * factor)) for side in original)
    top, left = round(max(height - size, 0) * along), round(max(width - size, 0) * along)
    return Placement(original, (height, width), (top, left), size, flip and mirrored < 0.5)


def place_image(image: Tensor, placement: Placement) -> Tensor:
    """An image in its square; :data:`FILL` outside it.

    Args:
        image: [3, H, W], uint8.
        placement: for images of this size.

    Returns:
        [3, size, size], uint8.
    """
    if placement.flip:
        image = image.flip(-1)
    if placement.resized != placement.original:
        image = F.resize(image, list(placement.resized), InterpolationMode.BILINEAR, antialias=True)
    (height, width), (top, left) = placement.visible, placement.corner
    image = image[:, top : top + height, left : left + width]
    return nnf.pad(image, (0, placement.size - width, 0, placement.size - height), value=FILL)


def place_masks(segmentations: Sequence[Any], placement: Placement) -> Tensor:
    """Masks of instances in the square of :func:`place_image`; empty where an instance is outside.

    Polygons are moved and rasterised there; run lengths are decoded, resized to the nearest pixel and cropped.

    Args:
        segmentations: polygons or run lengths in the image.
        placement: of the image.

    Returns:
        [n, size, size], bool.
    """
    masks = torch.zeros(len(segmentations), placement.size, placement.size, dtype=torch.bool)
    height, width = placement.visible
    decoded = [at for at, segmentation in enumerate(segmentations) if isinstance(segmentation, dict)]
    if decoded:
        masks[decoded, :height, :width] = _place_run_lengths([segmentations[at] for at in decoded], placement)
    for mask, segmentation in zip(masks, segmentations, strict=True):
        if isinstance(segmentation, list):
            mask[:height, :width] = _place_polygons(segmentation, placement)
    return masks


def _place_polygons(polygons: list[list[float]], placement: Placement) -> Tensor:
    factor_y, factor_x = (new / old for new, old in zip(placement.resized, placement.original, strict=True))
    top, left = placement.corner
    height, width = placement.visible
    moved = []
    for polygon in polygons:
        points = np.asarray(polygon, dtype=np.float64).reshape(-1, 2)
        x = placement.original[1] - points[:, 0] if placement.flip else points[:, 0]
        moved.append(np.stack([x * factor_x - left, points[:, 1] * factor_y - top], axis=1))
    # Far outside the square nothing is drawn, but every pixel of the outline would be walked along.
    seen = [
        points.ravel().tolist()
        for points in moved
        if (points.max(axis=0) > 0).all() and (points.min(axis=0) < (width, height)).all()
    ]
    if not seen:
        return torch.zeros(height, width, dtype=torch.bool)
    decoded = rle_masks.decode(rle_masks.merge(rle_masks.frPyObjects(seen, height, width)))
    return torch.from_numpy(decoded).bool()


def _place_run_lengths(lengths: Sequence[dict[str, Any]], placement: Placement) -> Tensor:
    compressed = [run_lengths(its_lengths, *placement.original) for its_lengths in lengths]
    masks = torch.from_numpy(rle_masks.decode(compressed)).permute(2, 0, 1)
    if placement.flip:
        masks = masks.flip(-1)
    if placement.resized != placement.original:
        masks = nnf.interpolate(masks[None].contiguous(), placement.resized, mode="nearest-exact")[0]
    (height, width), (top, left) = placement.visible, placement.corner
    return masks[:, top : top + height, left : left + width].bool()


def normalise(images: Tensor) -> Tensor:
    """Pixels less their mean, by their standard deviation.

    Args:
        images: [..., 3, H, W], from 0 to 255.

    Returns:
        The same shape, float32.
    """
    mean, std = (
        torch.tensor(values, device=images.device)[:, None, None] for values in (PIXEL_MEAN, PIXEL_STD)
    )
    return images.to(torch.float32).sub(mean).div_(std)


def denormalise(images: Tensor) -> Tensor:
    """The bytes of :func:`normalise`'s output, [..., 3, H, W]."""
    mean, std = (
        torch.tensor(values, device=images.device)[:, None, None] for values in (PIXEL_MEAN, PIXEL_STD)
    )
    return images.mul(std).add(mean).round().clamp(0, 255).to(torch.uint8)


def short_side_size(original: tuple[int, int], short: int, long: int) -> tuple[int, int]:
    """Height and width at which an image is tested: ``short`` by at most ``long``; 0 leaves it as it is."""
    if short == 0:
        return original
    factor = short / min(original)
    if long and max(original) * factor > long:
        factor = long / max(original)
    return max(1, int(original[0] * factor + 0.5)), max(1, int(original[1] * factor + 0.5))


def resize_short_side(image: Tensor, short: int, long: int) -> Tensor:
    """An image at its size for testing.

    Args:
        image: [3, H, W], uint8.
        short: of the new sides, in pixels; 0 leaves the image as it is.
        long: at most; 0 sets no limit.

    Returns:
        [3, h, w], uint8.
    """
    size = short_side_size((image.shape[-2], image.shape[-1]), short, long)
    if size == image.shape[-2:]:
        return image
    resized: Tensor = F.resize(image, list(size), InterpolationMode.BILINEAR, antialias=True)
    return resized


def pad_to_multiple(images: Tensor, multiple: int = 32) -> Tensor:
    """Zeros at bottom and right, so that both sides are multiples. Of normalised images, 0 is the mean.

    Args:
        images: [..., H, W].
        multiple: in pixels.
    """
    height, width = images.shape[-2:]
    return nnf.pad(images, (0, -width % multiple, 0, -height % multiple))
