"""Support examples: one instance cut out with some context, and its mask, as a square."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as nnf
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F

from tenfold.reft.transforms import normalise
from tenfold.shared.logging import TenfoldError


def support_crop(
    image: Tensor, mask: Tensor, context: int, size: int, flip: bool = False
) -> tuple[Tensor, Tensor]:
    """One instance with its surroundings; the longer side of the crop fills the square.

    Args:
        image: [3, H, W], uint8.
        mask: [H, W], bool, of the instance.
        context: pixels around its box, as far as the image goes.
        size: side of the square, in pixels.
        flip: mirror it, left to right.

    Returns:
        The image [3, size, size], normalised, with zeros (the mean) at bottom or right; and the mask
        [size, size], bool, which is never empty.

    Raises:
        TenfoldError: the mask is empty.
    """
    rows, columns = torch.nonzero(mask.any(1)).flatten(), torch.nonzero(mask.any(0)).flatten()
    if len(rows) == 0:
        raise TenfoldError("the mask of a support example is empty; give one with at least a pixel")
    top, bottom = max(int(rows[0]) - context, 0), int(rows[-1]) + 1 + context
    left, right = max(int(columns[0]) - context, 0), int(columns[-1]) + 1 + context
    image, mask = image[:, top:bottom, left:right], mask[top:bottom, left:right]
    if flip:
        image, mask = image.flip(-1), mask.flip(-1)
    longest = max(mask.shape)
    height, width = (max(1, round(side * size / longest)) for side in mask.shape)
    resized = F.resize(image, [height, width], InterpolationMode.BILINEAR, antialias=True)
    padding = (0, size - width, 0, size - height)
    return nnf.pad(normalise(resized), padding), nnf.pad(_resize_mask(mask, height, width), padding)


def _resize_mask(mask: Tensor, height: int, width: int) -> Tensor:
    """Where at least half of a pixel is covered; where most is covered, if that is nowhere."""
    covered = nnf.interpolate(mask[None, None].float(), (height, width), mode="area")[0, 0]
    return covered >= covered.max().clamp(max=0.5)
