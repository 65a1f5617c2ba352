"""The ViT as a backbone for ADE20K: a relative position bias in every block, layer scale, and four maps.

To the classifier's blocks it adds, of BEiT, a learned bias of every head for every offset between two patches, and a
learned scale of every channel of both residuals. Tokens after four blocks become maps at strides 4, 8, 16 and 32.
Names of parameters are the authors' own.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from timm.layers import DropPath
from torch import Tensor, nn
from torch.nn import functional as F

from tenfold.shared.logging import TenfoldError
from tenfold.tinymim.architectures import linear_drop_path
from tenfold.tinymim.checkpoints import check_shapes, unwrapped
from tenfold.tinymim.positions import resize_pos_embed
from tenfold.tinymim.vit import NORM_EPS, Mlp, PatchEmbed, check_heads

NormName = Literal["SyncBN", "BN"]
STAR_PROJECTION = 1280
"""Width of TinyMIM*'s projection after the last block."""
NOT_OF_THE_BACKBONE = ("norm.", "fc_norm.", "head.", "head_dist.")
"""Of a pre-trained network or a classifier."""
NEW = ("gamma_1", "gamma_2", "relative_position_bias_table")
"""What no pre-trained block has."""


def relative_position_index(grid: int, extra_tokens: int) -> Tensor:
    """Row of the bias table for every pair of a query and a key.

    The table has (2g - 1)^2 rows for offsets between patches, then three for a distillation token, where there is one,
    and three for CLS: from the token to all others, from all others to it, and to itself. CLS comes before the
    distillation token where the two meet.

    Args:
        grid: patches along a side g.
        extra_tokens: 1 for CLS, 2 for CLS and a distillation token.

    Returns:
        int64 [N, N] with N = extra + g * g; queries, then keys.
    """
    rows, columns = torch.arange(grid * grid) // grid, torch.arange(grid * grid) % grid
    down = rows[:, None] - rows + grid - 1
    right = columns[:, None] - columns + grid - 1
    index = F.pad(down * (2 * grid - 1) + right, (extra_tokens, 0, extra_tokens, 0))
    row = (2 * grid - 1) ** 2
    for token in reversed(range(extra_tokens)):
        index[token, :], index[:, token], index[token, token] = row, row + 1, row + 2
        row += 3
    return index


class BiasedAttention(nn.Module):
    """Self-attention whose scores get a learned bias: softmax(q k^T / sqrt(d) + bias) v.

    Args:
        dim: width D.
        heads: of it.
        offsets: rows of the bias table.
    """

    def __init__(self, dim: int, heads: int, offsets: int) -> None:
        super().__init__()
        check_heads(dim, heads)
        self.heads = heads
        self.relative_position_bias_table = nn.Parameter(torch.zeros(offsets, heads))
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, index: Tensor) -> Tensor:
        """[B, N, D], and the table's row for every pair of tokens [N, N], to [B, N, D]."""
        q, k, v = self.qkv(x).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind()
        bias = self.relative_position_bias_table.T[:, index].to(q.dtype)  # [heads, N, N]
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=bias[None])
        out: Tensor = self.proj(mixed.transpose(1, 2).flatten(2))
        return out


class ScaledBlock(nn.Module):
    """Attention and FFN, each after a norm, times a scale of each channel, and inside a residual."""

    def __init__(
        self, dim: int, heads: int, offsets: int, mlp_ratio: float, drop_path: float, init_values: float
    ) -> None:
        super().__init__()
        self.gamma_1 = nn.Parameter(torch.full((dim,), init_values))
        self.gamma_2 = nn.Parameter(torch.full((dim,), init_values))
        self.norm1 = nn.LayerNorm(dim, eps=NORM_EPS)
        self.attn = BiasedAttention(dim, heads, offsets)
        self.norm2 = nn.LayerNorm(dim, eps=NORM_EPS)
        self.mlp = Mlp(dim, int(mlp_ratio * dim))
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()

    def forward(self, x: Tensor, index: Tensor) -> Tensor:
        """[B, N, D] to the same shape; ``index`` as :func:`relative_position_index`."""
        x = x + self.drop_path(self.gamma_1 * self.attn(self.norm1(x), index))
        x = x + self.drop_path(self.gamma_2 * self.mlp(self.norm2(x)))
        return x  # noqa: RET504 - two lines alike


class SegmentationBackbone(nn.Module):
    """Four maps of an image, at strides 4, 8, 16 and 32. Made by :func:`build_segmentation_backbone`.

    Shapes:
        images [B, 3, img_size, img_size] to four maps [B, widths[i], img_size / stride, img_size / stride].
    """

    relative_position_index: Tensor

    def __init__(
        self,
        img_size: int,
        embed_dim: int,
        depth: int,
        num_heads: int,
        star: bool,
        patch_size: int,
        mlp_ratio: float,
        drop_path_rate: float,
        out_blocks: Sequence[int],
        init_values: float,
        fpn1_norm: NormName,
    ) -> None:
        super().__init__()
        self.img_size, self.out_blocks, self.fpn1_norm = img_size, tuple(out_blocks), fpn1_norm
        self.grid, self.extra_tokens = img_size // patch_size, 2 if star else 1
        self.widths = (4 * embed_dim if star else embed_dim,) * 4
        self.cls_token = nn.Parameter(torch.zeros(1, 1, embed_dim))
        self.dist_token = nn.Parameter(torch.zeros(1, 1, embed_dim)) if star else None
        self.pos_embed = nn.Parameter(torch.zeros(1, self.extra_tokens + self.grid**2, embed_dim))
        self.patch_embed = PatchEmbed(patch_size, embed_dim)
        index = relative_position_index(self.grid, self.extra_tokens)
        self.register_buffer("relative_position_index", index, persistent=False)
        offsets = (2 * self.grid - 1) ** 2 + 3 * self.extra_tokens
        self.blocks = nn.ModuleList(
            ScaledBlock(embed_dim, num_heads, offsets, mlp_ratio, rate, init_values)
            for rate in linear_drop_path(depth, drop_path_rate)
        )
        self.conv1x1 = None  # the authors' name of the projection
        if star:  # its norm has PyTorch's eps, unlike all others
            self.conv1x1 = nn.Sequential(
                nn.LayerNorm(embed_dim), nn.Linear(embed_dim, STAR_PROJECTION), nn.GELU()
            )
        necks = _star_necks(embed_dim) if star else _necks(embed_dim, patch_size)
        self.fpn1, self.fpn2, self.fpn3, self.fpn4 = necks
        self._initialise()

    def _initialise(self) -> None:
        """Truncated normal with deviation 0.02; what ends a residual of block l is divided by sqrt(2 l)."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)
        nn.init.trunc_normal_(self.cls_token, std=0.02)
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        with torch.no_grad():
            for number, block in enumerate(self.blocks, start=1):
                block.attn.proj.weight.div_(math.sqrt(2 * number))  # type: ignore[union-attr, operator]
                block.mlp.fc2.weight.div_(math.sqrt(2 * number))  # type: ignore[union-attr, operator]

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """[B, 3, H, W] to the four maps.

        Raises:
            TenfoldError: images have another size.
        """
        size = self.img_size
        if images.shape[1:] != (3, size, size):
            raise TenfoldError(
                f"this backbone sees images of 3 x {size} x {size}, not {tuple(images.shape[1:])}"
            )
        tokens = (self.cls_token,) if self.dist_token is None else (self.cls_token, self.dist_token)
        first = torch.cat(tokens, dim=1).expand(len(images), -1, -1)
        x = torch.cat((first, self.patch_embed(images)), dim=1) + self.pos_embed
        maps = []
        for number, block in enumerate(self.blocks[: self.out_blocks[-1]], start=1):
            x = block(x, self.relative_position_index)
            if number in self.out_blocks:
                if self.conv1x1 is not None and number == self.out_blocks[-1]:
                    x = self.conv1x1(x)
                patches = x[:, self.extra_tokens :]
                maps.append(patches.transpose(1, 2).unflatten(2, (self.grid, self.grid)))
        necks = (self.fpn1, self.fpn2, self.fpn3, self.fpn4)
        return tuple(neck(level) for neck, level in zip(necks, maps, strict=True))


def _enlarge(width: int, new_width: int) -> nn.ConvTranspose2d:
    """Twice as many pixels a side."""
    return nn.ConvTranspose2d(width, new_width, 2, 2)


def _necks(width: int, patch_size: int) -> tuple[nn.Module, ...]:
    """Tokens of the four blocks to strides 4, 8, 16, 32; all as wide as the tokens."""
    if patch_size == 8:
        return nn.Sequential(_enlarge(width, width)), nn.Identity(), nn.MaxPool2d(2), nn.MaxPool2d(4)
    twice = nn.Sequential(_enlarge(width, width), nn.BatchNorm2d(width), nn.GELU(), _enlarge(width, width))
    return twice, nn.Sequential(_enlarge(width, width)), nn.Identity(), nn.MaxPool2d(2)


def _star_necks(width: int) -> tuple[nn.Module, ...]:
    """The same of TinyMIM*, which widen the tokens four times; the last has the projection's width before it."""
    twice = nn.Sequential(
        _enlarge(width, 2 * width), nn.BatchNorm2d(2 * width), nn.GELU(), _enlarge(2 * width, 4 * width)
    )
    halve = nn.Sequential(nn.Conv2d(STAR_PROJECTION, 4 * width, 3, stride=2, padding=1))
    return twice, nn.Sequential(_enlarge(width, 4 * width)), nn.Conv2d(width, 4 * width, 1), halve


def build_segmentation_backbone(
    img_size: int,
    embed_dim: int,
    depth: int,
    num_heads: int,
    star: bool = False,
    *,
    patch_size: int = 16,
    mlp_ratio: float = 4.0,
    drop_path_rate: float = 0.1,
    out_blocks: Sequence[int] = (4, 6, 8, 12),
    init_values: float = 1.0,
    fpn1_norm: NormName = "SyncBN",
) -> SegmentationBackbone:
    """A backbone with random weights.

    Args:
        img_size: side of images in pixels, at least 32 and a multiple of the patches'.
        embed_dim: width D.
        depth: blocks.
        num_heads: of every block.
        star: of TinyMIM*: a distillation token, a projection to 1,280 after the last block, maps of width 4 D.
        patch_size: side of a patch: 16, or 8 where it is no TinyMIM*.
        mlp_ratio: width of the FFN's middle by D.
        drop_path_rate: stochastic depth of the last block; linear from 0.
        out_blocks: the four blocks whose tokens become maps, counted from 1; blocks after the fourth are not computed.
        init_values: of the layer scale.
        fpn1_norm: of the first neck. The module is ``BatchNorm2d`` in both cases; training on several GPUs makes it
            see all of them where SyncBN is asked for.

    Raises:
        TenfoldError: sizes do not fit, or there are no such blocks or norm.
    """
    if patch_size not in ((16,) if star else (8, 16)):
        raise TenfoldError(
            f"there are no necks for patches of {patch_size} pixels: take 16{'' if star else ', or 8'}"
        )
    if img_size < 32 or img_size % patch_size:
        raise TenfoldError(
            f"images are at least 32 pixels a side and a multiple of the patches' {patch_size}, unlike {img_size}"
        )
    blocks = tuple(out_blocks)
    if len(blocks) != 4 or sorted(set(blocks)) != list(blocks) or not 1 <= blocks[0] <= blocks[-1] <= depth:
        raise TenfoldError(
            f"maps come from four blocks in ascending order, from 1 to {depth}, not from {blocks}: set out_blocks"
        )
    if fpn1_norm not in ("SyncBN", "BN"):
        raise TenfoldError(f"there is no norm {fpn1_norm!r} for the first neck; choose SyncBN or BN")
    if not 0 <= drop_path_rate < 1:
        raise TenfoldError(f"stochastic depth is from 0 to below 1, not {drop_path_rate}")
    return SegmentationBackbone(
        img_size,
        embed_dim,
        depth,
        num_heads,
        star,
        patch_size,
        mlp_ratio,
        drop_path_rate,
        blocks,
        init_values,
        fpn1_norm,
    )


def load_pretrained(backbone: SegmentationBackbone, state_dict: Mapping[str, Any]) -> None:
    """Begin with the weights of a pre-trained network or of a classifier.

    The position table is interpolated to the backbone's grid. Layer scale, bias tables and necks stay as they are; the
    last norm and heads are left out.

    Args:
        backbone: is changed.
        state_dict: by the authors' names, flat or a training checkpoint. TinyMIM* needs its own classifier's.

    Raises:
        TenfoldError: another tensor is missing or left over, or has another shape; it is named.
    """
    found = unwrapped(state_dict)
    found = {name: value for name, value in found.items() if not name.startswith(NOT_OF_THE_BACKBONE)}
    expected = {
        name: value
        for name, value in backbone.state_dict().items()
        if not name.startswith("fpn") and not name.endswith(NEW)
    }
    differing = sorted(expected.keys() ^ found.keys())
    if differing:
        state = "missing" if differing[0] in expected else "not expected"
        raise TenfoldError(
            f"{differing[0]} is {state}: is it a network of another depth, or is one of the two TinyMIM* and the "
            "other not?"
        )
    if found["pos_embed"].ndim == 3:
        table = resize_pos_embed(found["pos_embed"], backbone.grid, backbone.extra_tokens)
        found = {**found, "pos_embed": table}
    check_shapes(found, expected)
    backbone.load_state_dict(found, strict=False)
