"""The fixed two-dimensional position table, and how learned tables follow images of another size."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from tenfold.shared.logging import TenfoldError


def sincos_pos_embed(dim: int, grid: int, cls_token: bool = True) -> Tensor:
    """Sines and cosines of column and row, as MAE's.

    The first half of the channels encodes the column, the second the row; each half is [sin(p w_j), cos(p w_j)] with
    w_j = 10000^(-j / (dim / 4)).

    Args:
        dim: width D, a multiple of 4.
        grid: patches along a side g; tokens are row by row.
        cls_token: put a row of zeros before them.

    Returns:
        [1 + g * g, D] or [g * g, D], computed in float64 and returned in float32.

    Raises:
        TenfoldError: the width is no multiple of 4.
    """
    if dim % 4:
        raise TenfoldError(f"the position table needs a width that is a multiple of 4, not {dim}")
    frequencies = 10000.0 ** -(torch.arange(dim // 4, dtype=torch.float64) / (dim / 4))
    places = torch.arange(grid, dtype=torch.float64)[:, None] * frequencies
    half = torch.cat((places.sin(), places.cos()), dim=1)  # [g, D / 2]
    columns, rows = half.repeat(grid, 1), half.repeat_interleave(grid, 0)
    table = torch.cat((columns, rows), dim=1)
    if cls_token:
        table = torch.cat((table.new_zeros(1, dim), table))
    return table.float()


def resize_pos_embed(table: Tensor, new_grid: int, extra_tokens: int = 1) -> Tensor:
    """A position table for another number of patches: bicubic; rows of extra tokens stay as they are.

    Args:
        table: [1, extra + g * g, D].
        new_grid: patches along a side h.
        extra_tokens: rows before those of patches (CLS, and a distillation token).

    Returns:
        [1, extra + h * h, D].

    Raises:
        TenfoldError: its patches are no square.
    """
    extra, patches = table[:, :extra_tokens], table[:, extra_tokens:]
    grid = math.isqrt(patches.shape[1])
    if not grid or grid * grid != patches.shape[1]:
        raise TenfoldError(
            f"a position table of {table.shape[1]} rows is no square grid and {extra_tokens} further tokens"
        )
    if grid == new_grid:
        return table
    image = patches.unflatten(1, (grid, grid)).permute(0, 3, 1, 2)
    image = F.interpolate(image, (new_grid, new_grid), mode="bicubic", align_corners=False)
    return torch.cat((extra, image.flatten(2).transpose(1, 2)), dim=1)
