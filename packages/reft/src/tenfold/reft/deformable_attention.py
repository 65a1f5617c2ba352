"""Multi-scale deformable attention (Zhu et al., 2021) without the copies of the usual formulation.

The usual formulation in PyTorch samples every level, stacks all samples, and multiplies the stack by the weights.
Here a level's samples are weighed and summed as soon as they are there, so only one level is ever held.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.models.mask2former.modeling_mask2former import (
    Mask2FormerPixelDecoderEncoderMultiscaleDeformableAttention as DeformableAttention,
)


def deformable_attention(
    value: Tensor, shapes: Sequence[tuple[int, int]], locations: Tensor, weights: Tensor
) -> Tensor:
    """``out_q = sum_lp w_qlp V_l(p_qlp)`` for each head, with bilinear sampling and zeros outside.

    Args:
        value: of all levels one after another, [B, N, heads, d].
        shapes: height and width of each level.
        locations: x and y from 0 to 1, [B, Q, heads, levels, points, 2].
        weights: [B, Q, heads, levels, points].

    Returns:
        [B, Q, heads * d].
    """
    batch, _, heads, width = value.shape
    channels_first = value.permute(0, 2, 3, 1).reshape(batch * heads, width, -1)
    grids = (2 * locations - 1).transpose(1, 2).flatten(0, 1)
    weights = weights.transpose(1, 2).flatten(0, 1)[:, None]
    levels = channels_first.split([height * width for height, width in shapes], dim=-1)
    output: Tensor | None = None
    for level, (shape, values) in enumerate(zip(shapes, levels, strict=True)):
        samples = F.grid_sample(values.unflatten(-1, shape), grids[:, :, level], align_corners=False)
        weighed = (samples * weights[:, :, :, level]).sum(-1)
        output = weighed if output is None else output + weighed
    assert output is not None
    return output.reshape(batch, heads * width, -1).transpose(1, 2)


def attend(
    attention: nn.Module,
    hidden: Tensor,
    positions: Tensor,
    shapes: Sequence[tuple[int, int]],
    reference: Tensor,
) -> Tensor:
    """Self-attention of a pixel decoder's layer.

    Args:
        attention: transformers' module, for its weights.
        hidden: features of all levels, [B, N, d].
        positions: added to what decides where to look, [1 or B, N, d].
        shapes: height and width of each level.
        reference: centres of the N cells, x and y from 0 to 1, [N, 2].

    Returns:
        [B, N, d].
    """
    assert isinstance(attention, DeformableAttention)
    batch, cells, _ = hidden.shape
    heads, levels, points = attention.n_heads, attention.n_levels, attention.n_points
    # In full precision: half a cell of a large map is lost in bf16.
    with torch.autocast(hidden.device.type, enabled=False):
        hidden = hidden.float()
        query = hidden + positions
        offsets = attention.sampling_offsets(query).view(batch, cells, heads, levels, points, 2)
        weights = attention.attention_weights(query).view(batch, cells, heads, levels * points).softmax(-1)
        sizes = level_sizes(tuple(shapes), hidden.device)
        locations = reference[None, :, None, None, None] + offsets / sizes[:, None]
        value = attention.value_proj(hidden).view(batch, cells, heads, -1)
        mixed = deformable_attention(
            value, shapes, locations, weights.view(batch, cells, heads, levels, points)
        )
        output: Tensor = attention.output_proj(mixed)
    return output


@lru_cache(maxsize=64)
def level_sizes(shapes: tuple[tuple[int, int], ...], device: torch.device) -> Tensor:
    """Width and height of each level, [levels, 2]; kept, since a copy to the device would make it wait."""
    with torch.inference_mode(mode=False):
        return torch.tensor([(width, height) for height, width in shapes], device=device, dtype=torch.float32)


def cell_centres(shapes: Sequence[tuple[int, int]], device: torch.device) -> Tensor:
    """Centres of all cells of all levels, x and y from 0 to 1, [N, 2]."""
    centres = []
    for height, width in shapes:
        y = (torch.arange(height, device=device) + 0.5) / height
        x = (torch.arange(width, device=device) + 0.5) / width
        centres.append(
            torch.stack((x.expand(height, width), y[:, None].expand(height, width)), dim=-1).flatten(0, 1)
        )
    return torch.cat(centres)
