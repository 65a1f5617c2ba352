"""Masked autoencoding: the decoder, random masks, and the loss on masked patches.

He et al., Masked Autoencoders Are Scalable Vision Learners, CVPR 2022. The encoder sees a quarter of the patches, the
decoder puts a mask token in the place of the others and predicts their pixels, normalised patch by patch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from tenfold.shared.logging import TenfoldError
from tenfold.tinymim.positions import sincos_pos_embed
from tenfold.tinymim.vit import NORM_EPS, Block, ViTConfig, check_heads, patchify

PIXEL_EPS = 1e-6
"""Added to the variance of a patch."""


@dataclass(frozen=True)
class DecoderConfig:
    """The decoder of masked autoencoding, which is thrown away afterwards."""

    embed_dim: int = 512
    """Its width."""
    depth: int = 8
    """Its blocks."""
    num_heads: int = 16
    """Of each block."""

    def __post_init__(self) -> None:
        if min(self.embed_dim, self.depth, self.num_heads) < 1:
            raise TenfoldError("the decoder's width, depth and heads are at least 1")
        check_heads(self.embed_dim, self.num_heads)


class Mask(NamedTuple):
    """Which patches are seen."""

    keep: Tensor
    """[B, n], indices of patches that are seen."""
    restore: Tensor
    """[B, patches], place of each patch in the order (seen, masked)."""


def random_mask(noise: Tensor, ratio: float) -> Mask:
    """Hide the patches with the largest noise, image by image.

    Args:
        noise: [B, patches], uniform.
        ratio: share of patches that is hidden.

    Raises:
        TenfoldError: no patch would be seen.
    """
    seen = int(noise.shape[1] * (1 - ratio))
    if not 0 < seen <= noise.shape[1]:
        raise TenfoldError(
            f"a mask of {ratio:.0%} leaves nothing of {noise.shape[1]} patches: lower the mask ratio"
        )
    order = noise.argsort(dim=1)
    return Mask(order[:, :seen], order.argsort(dim=1))


class MAEDecoder(nn.Module):
    """Pixels of all patches from the tokens of those that were seen.

    Args:
        encoder: shape of the encoder.
        config: shape of the decoder.
    """

    def __init__(self, encoder: ViTConfig, config: DecoderConfig) -> None:
        super().__init__()
        dim = config.embed_dim
        self.patch_size, self.extra_tokens = encoder.patch_size, encoder.extra_tokens
        self.decoder_embed = nn.Linear(encoder.embed_dim, dim)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, dim))
        table = sincos_pos_embed(dim, encoder.grid)
        self.register_buffer("decoder_pos_embed", table[None], persistent=False)
        self.decoder_blocks = nn.ModuleList(Block(dim, config.num_heads) for _ in range(config.depth))
        self.decoder_norm = nn.LayerNorm(dim, eps=NORM_EPS)
        self.decoder_pred = nn.Linear(dim, 3 * encoder.patch_size**2)
        nn.init.normal_(self.mask_token, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)

    def forward(self, encoded: Tensor, restore: Tensor) -> Tensor:
        """Predicted pixels [B, patches, 3 * size * size].

        Args:
            encoded: [B, extra + n, D], the encoder's tokens after its norm.
            restore: [B, patches], of the mask.
        """
        x = self.decoder_embed(encoded)
        first, seen = x[:, :1], x[:, self.extra_tokens :]
        hidden = self.mask_token.expand(len(x), restore.shape[1] - seen.shape[1], -1)
        patches = torch.cat((seen, hidden.to(seen.dtype)), dim=1)
        patches = patches.gather(1, restore[:, :, None].expand(-1, -1, patches.shape[2]))
        x = torch.cat((first, patches), dim=1) + self.decoder_pos_embed  # type: ignore[operator]
        for block in self.decoder_blocks:
            x = block(x)
        pixels: Tensor = self.decoder_pred(self.decoder_norm(x)[:, 1:])
        return pixels


def reconstruction_loss(predicted: Tensor, images: Tensor, mask: Mask, patch_size: int) -> Tensor:
    """Mean squared error of masked patches' pixels, which are normalised by the patch's mean and variance.

    Args:
        predicted: [B, patches, 3 * size * size].
        images: [B, 3, H, W].
        mask: which were seen.
        patch_size: side of a patch.
    """
    target = patchify(images, patch_size).float()
    variance, mean = torch.var_mean(target, dim=-1, keepdim=True)
    target = (target - mean) / (variance + PIXEL_EPS).sqrt()
    error = (predicted.float() - target).square().mean(dim=-1)
    hidden = (mask.restore >= mask.keep.shape[1]).float()
    return (error * hidden).sum() / hidden.sum()
