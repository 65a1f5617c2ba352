"""Crops, flips and colours of a batch at once, on the device that holds it; random numbers come from the CPU.

Every image has its own crop, flip and colours, as with torchvision's transforms one by one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from tenfold.shared.logging import TenfoldError

GREY = (0.299, 0.587, 0.114)
"""Weights of red, green and blue."""
ATTEMPTS = 10
"""To find a crop that fits, before the largest at the centre is taken."""


@dataclass(frozen=True)
class CropConfig:
    """Random resized crops and flips."""

    scale: tuple[float, float] = (0.2, 1.0)
    """Share of the area."""
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    """Width by height."""
    flip: bool = True
    """Mirror half of them."""
    interpolation: Literal["bilinear", "bicubic"] = "bicubic"
    """How pixels are read."""

    def __post_init__(self) -> None:
        if not 0 < self.scale[0] <= self.scale[1] <= 1 or not 0 < self.ratio[0] <= self.ratio[1]:
            raise TenfoldError(
                "crops take a share of the area from above 0 to 1, at positive ratios, smaller first"
            )


class Crops(NamedTuple):
    """Boxes within images, as shares of their sides."""

    left: Tensor
    """[B]."""
    top: Tensor
    """[B]."""
    width: Tensor
    """[B]."""
    height: Tensor
    """[B]."""
    flips: Tensor
    """[B], 1 where they are mirrored, else 0."""

    def to(self, device: torch.device) -> Crops:
        """On a device, by one copy."""
        return Crops(*torch.stack(self).to(device, non_blocking=True))

    def part(self, chosen: slice) -> Crops:
        """Those of some images."""
        return Crops(*(values[chosen] for values in self))


class Colours(NamedTuple):
    """Changes of colours."""

    factors: Tensor
    """[B, 3], of brightness, contrast and saturation; 1 changes nothing."""
    order: Tensor
    """[B, 3], in which they are applied."""

    def to(self, device: torch.device) -> Colours:
        """On a device."""
        return Colours(*(values.to(device, non_blocking=True) for values in self))

    def part(self, chosen: slice) -> Colours:
        """Those of some images."""
        return Colours(*(values[chosen] for values in self))


def draw_crops(count: int, config: CropConfig, generator: torch.Generator) -> Crops:
    """Random boxes as torchvision's ``RandomResizedCrop`` draws them, for square images."""
    area = torch.empty(ATTEMPTS, count).uniform_(*config.scale, generator=generator)
    low, high = (math.log(value) for value in config.ratio)
    ratio = torch.empty(ATTEMPTS, count).uniform_(low, high, generator=generator).exp()
    width, height = (area * ratio).sqrt(), (area / ratio).sqrt()
    fits = (width <= 1) & (height <= 1)
    found, first = fits.any(dim=0), fits.int().argmax(dim=0)[None]
    widest, highest = min(1.0, config.ratio[1]), min(1.0, 1 / config.ratio[0])
    width = torch.where(found, width.gather(0, first)[0], widest)
    height = torch.where(found, height.gather(0, first)[0], highest)
    left, top, coin = torch.rand(3, count, generator=generator)
    left, top = (torch.where(found, place, 0.5) for place in (left, top))
    flips = (coin < 0.5).float() * config.flip
    return Crops(left * (1 - width), top * (1 - height), width, height, flips)


def crop(images: Tensor, crops: Crops, size: int, interpolation: str = "bicubic") -> Tensor:
    """The boxes of a batch, resized and some of them mirrored.

    Args:
        images: float [B, C, H, W].
        crops: one for each image, on the same device.
        size: side of the result.
        interpolation: bilinear or bicubic; without antialiasing, since crops are rarely larger than the result.

    Returns:
        [B, C, size, size].
    """
    left, top, width, height, flips = crops
    sign = 1 - 2 * flips
    zero = torch.zeros_like(left)
    across = torch.stack((sign * width, zero, 2 * left + width - 1), dim=1)
    down = torch.stack((zero, height, 2 * top + height - 1), dim=1)
    grid = F.affine_grid(
        torch.stack((across, down), dim=1), [len(images), 1, size, size], align_corners=False
    )
    return F.grid_sample(images, grid, interpolation, padding_mode="border", align_corners=False)


def draw_colours(count: int, strength: float, generator: torch.Generator) -> Colours:
    """Factors from 1 - strength to 1 + strength in a random order, as torchvision's ``ColorJitter`` without hue."""
    factors = torch.empty(count, 3).uniform_(max(0.0, 1 - strength), 1 + strength, generator=generator)
    return Colours(factors, torch.rand(count, 3, generator=generator).argsort(dim=1))


def jitter(images: Tensor, colours: Colours) -> Tensor:
    """Change brightness, contrast and saturation of each image.

    Each is a line from a base (black; the mean grey; each pixel's grey) through the image, cut off at 0 and 1.

    Args:
        images: [B, 3, H, W] from 0 to 1.
        colours: one for each image, on the same device.
    """
    factors, order = colours
    for turn in order.T:  # three turns; each image takes its own change in each
        which = turn[:, None, None, None]
        factor = factors.gather(1, turn[:, None])[:, :, None, None]
        red, green, blue = images.split(1, dim=1)
        grey = GREY[0] * red + GREY[1] * green + GREY[2] * blue
        base = torch.where(
            which == 0, 0.0, torch.where(which == 1, grey.mean(dim=(2, 3), keepdim=True), grey)
        )
        images = torch.lerp(base.expand_as(images), images, factor).clamp(0, 1)
    return images


class Normaliser:
    """(x - mean) / std for each channel of [B, C, H, W]; its numbers are moved to the device once.

    Args:
        mean: of each channel.
        std: of each channel.
        device: of the images.
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float], device: torch.device) -> None:
        self.mean, self.std = (torch.tensor(values, device=device)[:, None, None] for values in (mean, std))

    def __call__(self, images: Tensor) -> Tensor:
        return (images - self.mean) / self.std
