"""SECOND's convolutions on the map in bird's-eye view, and the neck that joins their two levels."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Second(nn.Module):
    """Two blocks of convolutions (Yan et al., 2018): the first keeps the resolution, the second halves it.

    Convolutions start with Kaiming's normal weights over the fan out, as in the released code.

    Args:
        in_channels: width of the map.
        channels: width of each block.
        layers: convolutions of a block after its first.
    """

    def __init__(self, in_channels: int, channels: Sequence[int] = (128, 256), layers: int = 5) -> None:
        super().__init__()
        self.blocks = nn.ModuleList()
        for level, width in enumerate(channels):
            modules = _unit(
                nn.Conv2d(in_channels, width, 3, stride=1 if level == 0 else 2, padding=1, bias=False)
            )
            for _ in range(layers):
                modules += _unit(nn.Conv2d(width, width, 3, padding=1, bias=False))
            self.blocks.append(nn.Sequential(*modules))
            in_channels = width
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, bev: Tensor) -> tuple[Tensor, ...]:
        """Map [B, C, H, W] to [B, 128, H, W] and [B, 256, H/2, W/2] at the paper's widths; halves round up."""
        levels = []
        for block in self.blocks:
            bev = block(bev)
            levels.append(bev)
        return tuple(levels)


class SecondFpn(nn.Module):
    """Brings both levels to the resolution of the first and joins their channels.

    The 1 x 1 convolution starts with torch's own weights, the transposed one with Kaiming's normal weights over the fan
    out, as in the released code.

    Args:
        in_channels: width of each of the two levels.
        out_channels: width that each of them brings to the result.
    """

    def __init__(self, in_channels: Sequence[int], out_channels: int) -> None:
        super().__init__()
        fine, coarse = in_channels
        upsampling = nn.ConvTranspose2d(coarse, out_channels, 2, stride=2, bias=False)
        nn.init.kaiming_normal_(upsampling.weight, mode="fan_out", nonlinearity="relu")
        self.deblocks = nn.ModuleList(
            (
                nn.Sequential(*_unit(nn.Conv2d(fine, out_channels, 1, bias=False))),
                nn.Sequential(*_unit(upsampling)),
            )
        )

    def forward(self, levels: Sequence[Tensor]) -> Tensor:
        """Levels [B, C0, H, W] and [B, C1, H/2, W/2] to [B, 2 * out_channels, H, W]."""
        fine = self.deblocks[0](levels[0])
        coarse = self.deblocks[1](levels[1])
        return torch.cat((fine, coarse[..., : fine.shape[-2], : fine.shape[-1]]), dim=1)


def _unit(convolution: nn.Conv2d | nn.ConvTranspose2d) -> list[nn.Module]:
    """A convolution with its batch norm and ReLU."""
    return [
        convolution,
        nn.BatchNorm2d(convolution.out_channels, eps=1e-3, momentum=0.01),
        nn.ReLU(inplace=True),
    ]
