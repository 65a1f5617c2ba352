"""Grid mask: hide squares of the images in training, the same ones in all images of a batch.

Chen et al., GridMask Data Augmentation, arXiv 2001.04086; as the released CMT code has it, without rotation: the union
of horizontal and vertical stripes is kept and the squares between them are set to zero.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from tenfold.shared.logging import TenfoldError


def draw_grid_mask(
    size: tuple[int, int], generator: np.random.Generator, probability: float
) -> tuple[int, int, int] | None:
    """Period, first row and first column of a grid for a batch of images.

    Args:
        size: height and width of the images, in pixels.
        generator: of the draws.
        probability: of a mask; otherwise None is returned.

    Returns:
        The period in [2, height) and the starts in [0, period), in pixels, as :func:`grid_mask` takes them.

    Raises:
        TenfoldError: the images are lower than 3 pixels.
    """
    height = size[0]
    if height < 3:
        raise TenfoldError(f"a grid needs images of 3 or more rows, unlike {height}; leave grid_mask at 0")
    if generator.random() >= probability:
        return None
    period = int(generator.integers(2, height))
    return period, int(generator.integers(period)), int(generator.integers(period))


def grid_mask(
    height: int,
    width: int,
    period: int,
    start_row: int,
    start_column: int,
    ratio: float = 0.5,
    device: torch.device | str | None = None,
) -> Tensor:
    """Which pixels are kept, bool [H, W].

    Stripes begin on a canvas 1.5 times the size of the image, whose middle is the image.

    Args:
        height: of the images, in pixels.
        width: of the images, in pixels.
        period: distance of stripes, in pixels.
        start_row: first row of the first stripe on the canvas.
        start_column: first column of the first stripe on the canvas.
        ratio: of a stripe's breadth to the period.
        device: where the mask is made.

    Raises:
        TenfoldError: the period is below 2.
    """
    if period < 2:
        raise TenfoldError(f"stripes of a grid are at least 2 pixels apart, unlike {period}")
    rows = _stripes(height, period, start_row, ratio, device)
    columns = _stripes(width, period, start_column, ratio, device)
    return rows[:, None] | columns[None, :]


def apply_grid_mask(images: Tensor, mask: Tensor) -> Tensor:
    """Normalised images [..., H, W] with zeros where the mask [H, W] is false."""
    return images * mask.to(images.dtype)


def _stripes(size: int, period: int, start: int, ratio: float, device: torch.device | str | None) -> Tensor:
    canvas = int(1.5 * size)
    margin = (canvas - size) // 2
    breadth = min(max(int(period * ratio + 0.5), 1), period - 1)
    place = torch.arange(margin - start, margin - start + size, device=device)
    is_on_a_stripe = (place >= 0) & (place < canvas // period * period)
    return is_on_a_stripe & (place % period < breadth)
