"""Networks that EMO is compared with: inverted residuals as in MobileNetV2, a small ViT, and the iRMB inside DeiT."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from timm.layers import trunc_normal_
from torch import Tensor, nn
from torch.nn import functional as F

from tenfold.emo.blocks import EPS, InvertedResidualMobileBlock, LayerNorm2d


class InvertedResidual(nn.Module):
    """MobileNetV2's block: expand, depthwise 3x3, project, each with batch norm. [B, C, H, W] to [B, C', H', W']."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, expansion: float) -> None:
        super().__init__()
        middle = int(in_channels * expansion)
        self.has_skip = stride == 1 and in_channels == out_channels
        self.layers = nn.Sequential(
            nn.Conv2d(in_channels, middle, 1, bias=False),
            nn.BatchNorm2d(middle),
            nn.ReLU6(),
            nn.Conv2d(middle, middle, 3, stride, padding=1, groups=middle, bias=False),
            nn.BatchNorm2d(middle),
            nn.ReLU6(),
            nn.Conv2d(middle, out_channels, 1, bias=False),
            nn.BatchNorm2d(out_channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.layers(x)
        return x + found if self.has_skip else found


class InvertedResidualNetwork(nn.Module):
    """MobileNetV2's blocks in EMO's stages: same widths, depths and strides.

    Args:
        depths: blocks of every stage; the first has stride 2.
        widths: channels of every stage.
        stem: channels of the stem, which has stride 2.
        expansion: of every block.
        num_classes: of the head.
        in_chans: channels of images.
    """

    def __init__(
        self,
        depths: Sequence[int],
        widths: Sequence[int],
        stem: int,
        expansion: float,
        num_classes: int,
        in_chans: int = 3,
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = [
            nn.Sequential(
                nn.Conv2d(in_chans, stem, 3, 2, padding=1, bias=False), nn.BatchNorm2d(stem), nn.ReLU6()
            )
        ]
        channels = stem
        for depth, width in zip(depths, widths, strict=True):
            for number in range(depth):
                layers.append(InvertedResidual(channels, width, 1 if number else 2, expansion))
                channels = width
        self.features = nn.Sequential(*layers)
        self.head = nn.Linear(channels, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.head(self.features(x).mean(dim=(2, 3)))
        return found


class TransformerBlock(nn.Module):
    """Attention and MLP, each behind a layer norm with a residual of its own. [B, tokens, C] to the same."""

    def __init__(self, width: int, heads: int, mlp_ratio: float) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.project = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(
            nn.Linear(width, int(width * mlp_ratio)), nn.GELU(), nn.Linear(int(width * mlp_ratio), width)
        )

    def forward(self, x: Tensor) -> Tensor:
        qkv = self.qkv(self.norm1(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(*qkv.unbind()).transpose(1, 2).flatten(2)
        x = x + self.project(attended)
        found: Tensor = x + self.mlp(self.norm2(x))
        return found


class SmallViT(nn.Module):
    """A plain vision Transformer with learned positions and mean pooling.

    Args:
        image_size: side of images.
        patch: side of a patch.
        width: channels.
        depth: blocks.
        heads: of attention.
        mlp_ratio: of the MLP.
        num_classes: of the head.
        in_chans: channels of images.
    """

    def __init__(
        self,
        image_size: int,
        patch: int,
        width: int,
        depth: int,
        heads: int,
        mlp_ratio: float,
        num_classes: int,
        in_chans: int = 3,
    ) -> None:
        super().__init__()
        self.patches = nn.Conv2d(in_chans, width, patch, patch)
        self.positions = nn.Parameter(torch.zeros(1, (image_size // patch) ** 2, width))
        trunc_normal_(self.positions, std=0.02)
        self.blocks = nn.Sequential(*(TransformerBlock(width, heads, mlp_ratio) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patches(x).flatten(2).transpose(1, 2) + self.positions
        found: Tensor = self.head(self.norm(self.blocks(tokens)).mean(dim=1))
        return found


class DeiTWithMobileBlocks(nn.Module):
    """DeiT-Tiny whose every layer is one inverted residual mobile block over all tokens (the block swap of the paper).

    Windows are the whole map, kernels 3x3, heads 64 channels wide as DeiT's; tokens are averaged in the end.

    Args:
        num_classes: of the head.
        image_size: side of images, a multiple of the patch.
        patch: side of a patch.
        width: channels.
        depth: blocks.
        expansion: lambda of the blocks.
        drop_path: stochastic depth of the last block.
    """

    def __init__(
        self,
        num_classes: int,
        image_size: int = 224,
        patch: int = 16,
        width: int = 192,
        depth: int = 12,
        expansion: float = 4.0,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        side = image_size // patch
        self.patches = nn.Conv2d(3, width, patch, patch)
        self.positions = nn.Parameter(torch.zeros(1, width, side, side))
        trunc_normal_(self.positions, std=0.02)
        self.blocks = nn.Sequential(
            *(
                InvertedResidualMobileBlock(
                    width,
                    width,
                    exp_ratio=expansion,
                    norm_layer="ln_2d",
                    act_layer="gelu",
                    dim_head=64,
                    window_size=0,
                    qkv_bias=True,
                    drop_path=rate,
                    attn_pre=True,
                )
                for rate in torch.linspace(0, drop_path, depth).tolist()
            )
        )
        self.norm = LayerNorm2d(width, eps=EPS)
        self.head = nn.Linear(width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        tokens = (self.patches(x) + self.positions).contiguous(memory_format=torch.channels_last)
        found: Tensor = self.head(self.norm(self.blocks(tokens)).mean(dim=(2, 3)))
        return found
