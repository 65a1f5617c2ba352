"""Differentiable Siamese Augmentation: one random operation, the same for a real and a synthetic batch.

Source: Zhao and Bilen (Dataset Condensation with Differentiable Siamese Augmentation, ICML 2021), mode S: one operation
of a strategy is drawn, and all images of a batch share its parameters. An :class:`AugmentationPlan` is what was drawn.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from tenfold.shared.logging import TenfoldError

BRIGHTNESS = 1.0
"""Width of the interval around 0 that is added to all values."""
SATURATION = 2.0
"""Largest factor of a pixel's distance to the mean over its channels."""
CONTRAST = 0.5
"""Smallest factor of a value's distance to the image's mean; the largest is 1 more."""
CROP = 0.125
"""Largest shift, in sides of the image."""
CUTOUT = 0.5
"""Side of the square that is cut out, likewise."""
FLIP = 0.5
"""Probability of mirroring left and right."""
SCALE = 1.2
"""Largest factor of the sampling grid in each direction; the smallest is its reciprocal."""
ROTATION = 15.0
"""Largest angle in degrees."""


@dataclass(frozen=True)
class AugmentationPlan:
    """One operation and where its parameters come from; it may be applied to any number of batches."""

    operation: str
    """color, crop, cutout, flip, scale or rotate; none leaves images as they are."""
    seed: int
    """Of the first parameter; each further one has the next seed."""

    def parameters(self, height: int, width: int) -> tuple[float, ...]:
        """What the operation needs for images of a size.

        Args:
            height: of the images in pixels.
            width: likewise.

        Returns:
            color: what is added, and the factors of saturation and contrast; crop: the shift in rows and columns;
            cutout: the square's centre; flip: 1 or 0; scale and rotate: a 2x3 matrix, row by row; none: nothing.
        """
        draws = _Draws(self.seed)
        match self.operation:
            case "color":
                brightness, saturation, contrast = draws.uniform(), draws.uniform(), draws.uniform()
                return (brightness - 0.5) * BRIGHTNESS, saturation * SATURATION, contrast + CONTRAST
            case "crop":
                rows, columns = _part(height, CROP), _part(width, CROP)
                return draws.integer(-rows, rows + 1), draws.integer(-columns, columns + 1)
            case "cutout":
                rows, columns = _part(height, CUTOUT), _part(width, CUTOUT)
                return draws.integer(0, height + 1 - rows % 2), draws.integer(0, width + 1 - columns % 2)
            case "flip":
                return (float(draws.uniform() < FLIP),)
            case "scale":
                x, y = (draws.uniform() * (SCALE - 1 / SCALE) + 1 / SCALE for _ in range(2))
                return x, 0.0, 0.0, 0.0, y, 0.0
            case "rotate":
                angle = math.radians((draws.uniform() - 0.5) * 2 * ROTATION)
                cos, sin = math.cos(angle), math.sin(angle)
                return cos, -sin, 0.0, sin, cos, 0.0
        return ()


def draw_operation(strategy: str, seed: int) -> AugmentationPlan:
    """Draw one operation of a strategy, each with the same probability.

    Args:
        strategy: operations joined by ``_``, such as ``color_crop_cutout_flip_scale_rotate``; empty or ``none`` for no
            augmentation.
        seed: of the choice; the operation's parameters have the seeds that follow.

    Raises:
        TenfoldError: an operation is unknown, or the seed is negative.
    """
    operations = parse_strategy(strategy)
    if seed < 0:
        raise TenfoldError(f"the seed of an augmentation is at least 0, not {seed}")
    if not operations:
        return AugmentationPlan("none", seed)
    return AugmentationPlan(operations[int(_Draws(seed).integer(0, len(operations)))], seed + 1)


def parse_strategy(strategy: str) -> tuple[str, ...]:
    """The operations of a strategy, none of them where it is empty or ``none``.

    Raises:
        TenfoldError: one is unknown.
    """
    if strategy.lower() in ("", "none"):
        return ()
    operations = tuple(strategy.split("_"))
    for operation in operations:
        if operation not in OPERATIONS:
            raise TenfoldError(
                f"unknown augmentation {operation!r} in {strategy!r}; join some of {', '.join(OPERATIONS)} with '_', "
                "or choose none"
            )
    return operations


def siamese_augment(images: Tensor, strategy: str, seed: int) -> Tensor:
    """Apply one random operation of a strategy, with the same parameters to all images.

    Real and synthetic images that get the same seed are changed alike. It is differentiable. Under ``torch.func.vmap``
    all elements of the mapped axis share the operation; the map needs ``randomness="same"``, because draws are inside.

    Args:
        images: [B, C, H, W].
        strategy: operations joined by ``_``; empty or ``none`` returns the images.
        seed: at least 0; the choice has this seed and the operation's parameters those that follow, so that neither
            the global generator nor the device matters.

    Returns:
        [B, C, H, W].

    Raises:
        TenfoldError: an operation is unknown, or the seed is negative.
    """
    return apply(draw_operation(strategy, seed), images)


def apply(plan: AugmentationPlan, images: Tensor) -> Tensor:
    """Carry out a plan on images [B, C, H, W]; under ``torch.func.vmap`` with ``randomness="same"``."""
    return apply_batched((plan,), images[None])[0]


def apply_batched(plans: Sequence[AugmentationPlan], images: Tensor) -> Tensor:
    """Carry out one plan for every class; classes whose plans have the same operation are done together.

    Args:
        plans: K of them.
        images: [K, B, C, H, W].

    Returns:
        [K, B, C, H, W], equal to :func:`apply` class by class.

    Raises:
        TenfoldError: there are not as many plans as classes.
    """
    if len(plans) != len(images):
        raise TenfoldError(f"{len(images)} batches need as many augmentation plans, not {len(plans)}")
    groups: dict[str, list[int]] = {}
    for place, plan in enumerate(plans):
        groups.setdefault(plan.operation, []).append(place)
    if len(groups) == 1:
        return _apply_operation(plans, images)
    parts, found = images.unbind(), list(images.unbind())
    for places in groups.values():
        chosen = torch.stack([parts[place] for place in places])
        changed = _apply_operation([plans[place] for place in places], chosen).unbind()
        for place, part in zip(places, changed, strict=True):
            found[place] = part
    return torch.stack(found)


def _apply_operation(plans: Sequence[AugmentationPlan], images: Tensor) -> Tensor:
    """Plans of one operation on images [k, B, C, H, W]."""
    if plans[0].operation == "none":
        return images
    drawn = torch.tensor([plan.parameters(*images.shape[-2:]) for plan in plans], dtype=images.dtype)
    return OPERATIONS[plans[0].operation](images, drawn.to(images.device, non_blocking=True))


class _Draws:
    """A CPU generator that is seeded anew, with the next seed, before every draw."""

    def __init__(self, seed: int) -> None:
        self._seed, self._generator = seed, torch.Generator()

    def _next(self) -> torch.Generator:
        self._generator.manual_seed(self._seed)
        self._seed += 1
        return self._generator

    def uniform(self) -> float:
        return torch.rand(1, generator=self._next(), dtype=torch.float32).item()

    def integer(self, low: int, high: int) -> float:
        """From low to high - 1."""
        return float(torch.randint(low, high, (1,), generator=self._next()).item())


def _part(side: int, ratio: float) -> int:
    return int(side * ratio + 0.5)


# Each operation takes images [k, B, C, H, W] and its parameters [k, n], on the same device.


def _color(images: Tensor, drawn: Tensor) -> Tensor:
    """Brightness, then saturation, then contrast."""
    brightness, saturation, contrast = (value[:, None, None, None, None] for value in drawn.unbind(1))
    images = images + brightness
    grey = images.mean(dim=-3, keepdim=True)
    images = (images - grey) * saturation + grey
    mean = images.mean(dim=(-3, -2, -1), keepdim=True)
    return (images - mean) * contrast + mean


def _crop(images: Tensor, drawn: Tensor) -> Tensor:
    """Shift by whole pixels; what comes in from outside is 0."""
    for axis, shift in ((-2, drawn[:, 0]), (-1, drawn[:, 1])):
        side = images.shape[axis]
        source = torch.arange(side, device=images.device) + shift.long()[:, None]
        source = source[:, None, None, :, None] if axis == -2 else source[:, None, None, None, :]
        moved = images.gather(axis, source.clamp(0, side - 1).expand(images.shape))
        images = torch.where((source >= 0) & (source < side), moved, 0)
    return images


def _cutout(images: Tensor, drawn: Tensor) -> Tensor:
    """A black square; the part of it that lies outside is lost."""
    inside = []
    for side, centre in zip(images.shape[-2:], drawn.unbind(1), strict=True):
        size = _part(side, CUTOUT)
        place = torch.arange(side, device=images.device) - (centre[:, None] - size // 2)
        inside.append((place >= 0) & (place < size))
    return torch.where((inside[0][:, :, None] & inside[1][:, None, :])[:, None, None], 0, images)


def _flip(images: Tensor, drawn: Tensor) -> Tensor:
    return torch.where(drawn[:, :, None, None, None] > 0, images.flip(-1), images)


def _affine(images: Tensor, drawn: Tensor) -> Tensor:
    """Bilinear sampling at transformed places, 0 outside; images of a class are as channels of one."""
    count, (height, width) = len(images), images.shape[-2:]
    grid = F.affine_grid(drawn.reshape(count, 2, 3), [count, 1, height, width], align_corners=False)
    sampled = F.grid_sample(images.flatten(1, 2), grid, align_corners=False)
    return sampled.reshape(images.shape)


OPERATIONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "color": _color,
    "crop": _crop,
    "cutout": _cutout,
    "flip": _flip,
    "scale": _affine,
    "rotate": _affine,
}
