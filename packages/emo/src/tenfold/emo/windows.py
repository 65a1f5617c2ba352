"""Windows of a feature map: strided ones, as the released networks expect, or contiguous ones.

Pixel (i, j) of a map of n1 by n2 windows belongs to window (i mod n1, j mod n2) at place (i div n1, j div n2): a
window holds pixels from all over the map. Contiguous windows are the neighbouring ones of Swin. Where a map is one
window, both are the same.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

Windows = Literal["strided", "contiguous"]


def is_symbolic() -> bool:
    """Whether a trace, an export or a compiler records the program, which then has to fit other sizes as well."""
    return torch.jit.is_tracing() or torch.compiler.is_compiling()  # type: ignore[attr-defined]


def window_of(height: int, width: int, window_size: int) -> tuple[int, int]:
    """Height and width of a window; a size of 0 or less is the whole map."""
    return (window_size, window_size) if window_size > 0 else (height, width)


def pad_to_windows(x: Tensor, window: tuple[int, int]) -> Tensor:
    """Zeros at the right and the bottom until windows fit. [B, H, W, C] to [B, H', W', C]."""
    # Rounded up without negative numbers, which ONNX divides otherwise than Python.
    rows, columns = ((size + side - 1) // side for size, side in zip(x.shape[1:3], window, strict=True))
    bottom, right = rows * window[0] - x.shape[1], columns * window[1] - x.shape[2]
    return F.pad(x, (0, 0, 0, right, 0, bottom)) if is_symbolic() or bottom or right else x


def split_windows(x: Tensor, window: tuple[int, int], order: Windows) -> Tensor:
    """Tokens of every window.

    Args:
        x: [B, H, W, C], H and W multiples of the window.
        window: its height and width.
        order: of the pixels.

    Returns:
        [B * windows, tokens of a window, C].
    """
    batch, height, width, channels = x.shape
    rows, columns = height // window[0], width // window[1]
    if order == "strided":
        x = x.reshape(batch, window[0], rows, window[1], columns, channels).permute(0, 2, 4, 1, 3, 5)
    else:
        x = x.reshape(batch, rows, window[0], columns, window[1], channels).permute(0, 1, 3, 2, 4, 5)
    return _laid_out(x).reshape(batch * rows * columns, window[0] * window[1], channels)


def join_windows(x: Tensor, window: tuple[int, int], size: tuple[int, int], order: Windows) -> Tensor:
    """What ``split_windows`` was given, of height and width ``size``, which are multiples of the window."""
    rows, columns, channels = size[0] // window[0], size[1] // window[1], x.shape[-1]
    x = x.reshape(-1, rows, columns, window[0], window[1], channels)
    x = x.permute(0, 3, 1, 4, 2, 5) if order == "strided" else x.permute(0, 1, 3, 2, 4, 5)
    return _laid_out(x).reshape(-1, size[0], size[1], channels)


def _laid_out(x: Tensor) -> Tensor:
    """In the order of its dimensions, as a copy while recording: whether one is needed depends on the size of maps."""
    return x.clone(memory_format=torch.contiguous_format) if is_symbolic() else x
