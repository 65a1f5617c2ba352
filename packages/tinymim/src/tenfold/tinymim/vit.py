"""The vision transformer of students, teachers and classifiers.

Pre-norm blocks: H = Attn(LN(F)), H' = F + H, H" = FFN(LN(H')), F' = H' + H". Names of parameters are the authors' own,
so that their files load as they are. Heads are no parameters: the same weights can be read with any number of heads
that divides the width, and pre-training reads the last block with as many as the teacher's target block has.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import torch
from timm.layers import DropPath
from torch import Tensor, nn
from torch.nn import functional as F

from tenfold.shared.logging import TenfoldError
from tenfold.tinymim.positions import sincos_pos_embed
from tenfold.tinymim.relations import relation

NORM_EPS = 1e-6
Signal = Literal["qkv", "attention", "attention_residual", "ffn", "ffn_residual", "output", "encoded"]
"""What can be read of a network. Of the target block: queries, keys and values; attention without and with the
residual; FFN without and with it. Of the last block: its output, before and after the final norm."""
AT_THE_END = frozenset({"output", "encoded"})


class QKV(NamedTuple):
    """Queries, keys and values, each [B, heads, N, d]."""

    q: Tensor
    k: Tensor
    v: Tensor

    @property
    def features(self) -> tuple[Tensor, Tensor, Tensor]:
        """The three with heads side by side, each [B, N, heads * d]."""
        q, k, v = (values.transpose(1, 2).flatten(2) for values in self)
        return q, k, v


class Readings(NamedTuple):
    """What was read of a network; None where it was not wanted."""

    qkv: QKV | None = None
    attention: Tensor | None = None
    attention_residual: Tensor | None = None
    ffn: Tensor | None = None
    ffn_residual: Tensor | None = None
    output: Tensor | None = None
    encoded: Tensor | None = None


@dataclass(frozen=True)
class ViTConfig:
    """Shape of a network."""

    img_size: int = 224
    """Side of the images in pixels."""
    patch_size: int = 16
    """Side of a patch in pixels."""
    embed_dim: int = 192
    """Width D."""
    depth: int = 12
    """Blocks L."""
    num_heads: int = 3
    """Of all blocks but the last in pre-training."""
    last_heads: int | None = None
    """Of the last block; by default as of the others."""
    target_block: int | None = None
    """The block that is imitated, from 1; by default the last."""
    mlp_ratio: float = 4.0
    """Width of the FFN's middle by D."""
    drop_path: tuple[float, ...] = ()
    """Stochastic depth of each block; none where it is empty."""
    num_classes: int | None = None
    """Of the classifier; without one, tokens end in the final norm."""
    global_pool: bool = True
    """Classify the mean of the patches (fc_norm), else CLS (norm)."""
    distillation_token: bool = False
    """A second token after CLS with a head of its own (TinyMIM*)."""
    projection: int | None = None
    """Width to which tokens go through norm, linear layer and GELU after the last block (TinyMIM*)."""

    def __post_init__(self) -> None:
        if min(self.img_size, self.patch_size, self.embed_dim, self.depth, self.num_heads) < 1:
            raise TenfoldError("image, patch, width, depth and heads are at least 1")
        if self.num_classes is not None and self.num_classes < 1:
            raise TenfoldError("a classifier has at least 1 class")
        if int(self.mlp_ratio * self.embed_dim) < 1:
            raise TenfoldError("the FFN's middle is at least 1 wide: raise mlp_ratio")
        if self.img_size % self.patch_size:
            raise TenfoldError(
                f"patches of {self.patch_size} pixels do not tile images of {self.img_size}: choose a divisor"
            )
        for heads in {self.num_heads, self.last_heads or self.num_heads}:
            check_heads(self.embed_dim, heads)
        if self.target_block is not None:
            check_block(self.target_block, self.depth)
        if self.drop_path and len(self.drop_path) != self.depth:
            raise TenfoldError(
                f"{len(self.drop_path)} rates of stochastic depth are not one for each of {self.depth} blocks"
            )
        if not all(0 <= rate < 1 for rate in self.drop_path):
            raise TenfoldError("stochastic depth is from 0 to below 1")

    @property
    def grid(self) -> int:
        """Patches along a side."""
        return self.img_size // self.patch_size

    @property
    def extra_tokens(self) -> int:
        """Tokens before those of patches."""
        return 1 + self.distillation_token

    @property
    def heads(self) -> tuple[int, ...]:
        """Of each block."""
        return (self.num_heads,) * (self.depth - 1) + (self.last_heads or self.num_heads,)


def check_heads(width: int, heads: int) -> None:
    """Whether heads divide a width.

    Raises:
        TenfoldError: they do not.
    """
    if heads < 1 or width % heads:
        raise TenfoldError(
            f"a width of {width} cannot be divided among {heads} heads: choose a divisor of {width}"
        )


def check_block(block: int, depth: int) -> None:
    """Whether a network has a block, counted from 1.

    Raises:
        TenfoldError: it has not.
    """
    if not 1 <= block <= depth:
        raise TenfoldError(f"there is no target block {block}: this network has blocks 1 to {depth}")


class PatchEmbed(nn.Module):
    """Patches as tokens: a convolution as wide as its stride, computed as one matrix product."""

    def __init__(self, patch_size: int, embed_dim: int) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.proj = nn.Conv2d(3, embed_dim, patch_size, patch_size)

    def forward(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] to [B, patches, D], row by row."""
        return F.linear(patchify(images, self.patch_size), self.proj.weight.flatten(1), self.proj.bias)


def patchify(images: Tensor, size: int) -> Tensor:
    """Pixels of each patch, channel by channel: [B, C, H, W] to [B, patches, C * size * size]."""
    batch, channels, height, width = images.shape
    rows, columns = height // size, width // size
    pixels = images.reshape(batch, channels, rows, size, columns, size)
    return pixels.permute(0, 2, 4, 1, 3, 5).reshape(batch, rows * columns, channels * size * size)


class Attention(nn.Module):
    """Self-attention over all tokens.

    Args:
        dim: width D.
        heads: how many it computes with.
    """

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        check_heads(dim, heads)
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def split(self, x: Tensor, heads: int | None = None) -> QKV:
        """Queries, keys and values of tokens [B, N, D], by ``heads`` heads."""
        qkv: Tensor = self.qkv(x)
        return QKV(*qkv.unflatten(2, (3, heads or self.heads, -1)).permute(2, 0, 3, 1, 4).unbind())

    def forward(self, x: Tensor) -> Tensor:
        """[B, N, D] to the same shape."""
        mixed = F.scaled_dot_product_attention(*self.split(x))
        out: Tensor = self.proj(mixed.transpose(1, 2).flatten(2))
        return out


class Mlp(nn.Module):
    """Two linear layers with a GELU between them."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        """[B, N, D] to the same shape."""
        out: Tensor = self.fc2(F.gelu(self.fc1(x)))
        return out


class Block(nn.Module):
    """Attention and FFN, each after a norm and inside a residual."""

    def __init__(self, dim: int, heads: int, mlp_ratio: float = 4.0, drop_path: float = 0.0) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=NORM_EPS)
        self.attn = Attention(dim, heads)
        self.norm2 = nn.LayerNorm(dim, eps=NORM_EPS)
        self.mlp = Mlp(dim, int(mlp_ratio * dim))
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """[B, N, D] to the same shape."""
        x = x + self.drop_path(self.attn(self.norm1(x)))
        return x + self.drop_path(self.mlp(self.norm2(x)))  # type: ignore[no-any-return]

    def read(
        self, x: Tensor, wanted: Collection[Signal], heads: int | None = None, runs_on: bool = False
    ) -> tuple[Tensor, Readings]:
        """What happens on the way, computed no further than it is wanted.

        Args:
            x: [B, N, D].
            wanted: signals; those of other blocks are left to others.
            heads: of queries, keys and values.
            runs_on: whether the block's output is needed whatever is wanted.

        Returns:
            The output, or whatever was computed last where it is not needed; and the signals.
        """
        normed = self.norm1(x)
        found: dict[str, Any] = {}
        if "qkv" in wanted:
            found["qkv"] = self.attn.split(normed, heads)
        later = {"attention", "attention_residual", "ffn", "ffn_residual"}.intersection(wanted)
        if later or runs_on:
            found["attention"] = self.attn(normed)
            x = found["attention_residual"] = x + self.drop_path(found["attention"])
        if later & {"ffn", "ffn_residual"} or runs_on:
            found["ffn"] = self.mlp(self.norm2(x))
            x = found["ffn_residual"] = x + self.drop_path(found["ffn"])
        return x, Readings(**{name: value for name, value in found.items() if name in wanted})


class VisionTransformer(nn.Module):
    """A ViT, with a classifier or without.

    Args:
        config: its shape.
    """

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.config = config
        dim, drop_path = config.embed_dim, config.drop_path or (0.0,) * config.depth
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.dist_token = nn.Parameter(torch.zeros(1, 1, dim)) if config.distillation_token else None
        self.pos_embed = nn.Parameter(torch.zeros(1, config.extra_tokens + config.grid**2, dim))
        self.patch_embed = PatchEmbed(config.patch_size, dim)
        self.blocks = nn.ModuleList(
            Block(dim, heads, config.mlp_ratio, rate)
            for heads, rate in zip(config.heads, drop_path, strict=True)
        )
        self.conv1x1 = None  # the authors' name of the projection
        if config.projection is not None:
            norm = nn.LayerNorm(dim)  # with PyTorch's own eps, as in the authors' segmentation code
            self.conv1x1 = nn.Sequential(norm, nn.Linear(dim, config.projection), nn.GELU())
        last = config.projection or dim
        pools = config.num_classes is not None and config.global_pool
        self.norm = None if pools else nn.LayerNorm(last, eps=NORM_EPS)
        self.fc_norm = nn.LayerNorm(last, eps=NORM_EPS) if pools else None
        self.head = None if config.num_classes is None else nn.Linear(last, config.num_classes)
        has_second_head = config.num_classes is not None and config.distillation_token
        self.head_dist = nn.Linear(last, config.num_classes or 1) if has_second_head else None
        self.initialise()

    # -- how it begins ---------------------------------------------------------------------------------

    def initialise(self) -> None:
        """As pre-training begins: Xavier, CLS with deviation 0.02, the fixed position table, which is not learned."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        nn.init.xavier_uniform_(self.patch_embed.proj.weight.flatten(1))
        nn.init.normal_(self.cls_token, std=0.02)
        if self.dist_token is not None:
            nn.init.normal_(self.dist_token, std=0.02)
        table = sincos_pos_embed(self.config.embed_dim, self.config.grid, cls_token=False)
        with torch.no_grad():
            self.pos_embed.zero_()[:, self.config.extra_tokens :] = table
        self.pos_embed.requires_grad_(False)

    def initialise_classifier(self) -> None:
        """As supervised training begins: timm's truncated normal with deviation 0.02, positions learned."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)
        self.patch_embed.proj.reset_parameters()
        for tokens in (self.cls_token, self.dist_token, self.pos_embed):
            if tokens is not None:
                nn.init.trunc_normal_(tokens, std=0.02)
        self.pos_embed.requires_grad_(True)

    # -- forward ---------------------------------------------------------------------------------------

    @property
    def target_block(self) -> int:
        """The block that is imitated, from 1."""
        return self.config.target_block or self.config.depth

    def embed(self, images: Tensor, keep: Tensor | None = None) -> Tensor:
        """Tokens before the first block.

        Args:
            images: [B, 3, H, W].
            keep: [B, n], the patches that are seen; by default all.

        Returns:
            [B, extra + patches, D].
        """
        size = self.config.img_size
        if images.shape[1:] != (3, size, size):
            raise TenfoldError(
                f"this network sees images of 3 x {size} x {size}, not {tuple(images.shape[1:])}"
            )
        extra = self.config.extra_tokens
        patches = self.patch_embed(images) + self.pos_embed[:, extra:]
        if keep is not None:
            patches = patches.gather(1, keep[:, :, None].expand(-1, -1, patches.shape[2]))
        tokens = (
            self.cls_token if self.dist_token is None else torch.cat((self.cls_token, self.dist_token), 1)
        )
        first = (tokens + self.pos_embed[:, :extra]).expand(len(images), -1, -1)
        return torch.cat((first, patches), dim=1)

    def forward_features(self, images: Tensor, block: int | None = None) -> Tensor:
        """[B, 3, H, W] to the tokens after a block, by default the last, [B, N, D]; without the final norm."""
        x = self.embed(images)
        for layer in self.blocks[:block]:
            x = layer(x)
        return x

    def forward(self, images: Tensor) -> Any:
        """Logits [B, classes]; those of both heads while one with two heads learns, else their mean.

        Without classes: the tokens after the final norm, [B, N, D].
        """
        x = self.forward_features(images)
        if self.conv1x1 is not None:
            x = self.conv1x1(x)
        if self.head is None:
            return self.norm(x)  # type: ignore[misc]
        if self.head_dist is not None:
            x = (self.fc_norm or self.norm)(x[:, :2])  # type: ignore[misc]
            logits, distilled = self.head(x[:, 0]), self.head_dist(x[:, 1])
            return (logits, distilled) if self.training else (logits + distilled) / 2
        if self.fc_norm is not None:
            return self.head(self.fc_norm(x[:, self.config.extra_tokens :].mean(dim=1)))
        return self.head(self.norm(x)[:, 0])  # type: ignore[misc]

    def read(
        self,
        images: Tensor,
        wanted: Collection[Signal],
        keep: Tensor | None = None,
        heads: int | None = None,
    ) -> Readings:
        """What happens inside, computed no further than it is wanted.

        Args:
            images: [B, 3, H, W].
            wanted: signals.
            keep: [B, n], the patches that are seen; by default all.
            heads: of queries, keys and values; by default the target block's own.
        """
        x, target = self.embed(images, keep), self.target_block
        runs_on = not AT_THE_END.isdisjoint(wanted)
        for block in self.blocks[: target - 1]:
            x = block(x)
        x, found = self.blocks[target - 1].read(x, wanted, heads, runs_on)  # type: ignore[operator]
        if runs_on:
            for block in self.blocks[target:]:
                x = block(x)
            output = x if "output" in wanted else None
            encoded = self.norm(x) if "encoded" in wanted else None  # type: ignore[misc]
            found = found._replace(output=output, encoded=encoded)
        return found  # type: ignore[no-any-return]

    def target_qkv(self, images: Tensor, heads: int | None = None) -> QKV:
        """Queries, keys and values of the target block, each [B, heads, N, d]."""
        found = self.read(images, {"qkv"}, heads=heads).qkv
        assert found is not None
        return found

    def relations(self, images: Tensor, heads: int | None = None) -> tuple[Tensor, Tensor]:
        """Relations of the target block after the softmax: QK and VV, each [B, heads, N, N]."""
        q, k, v = self.target_qkv(images, heads)
        return relation(q, k), relation(v, v)

    def with_last_heads(self, heads: int) -> None:
        """Read the last block with another number of heads from now on."""
        check_heads(self.config.embed_dim, heads)
        self.blocks[-1].attn.heads = heads  # type: ignore[union-attr]
        self.config = replace(self.config, last_heads=heads)
