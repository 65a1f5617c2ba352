"""UperNet: pyramid pooling and a feature pyramid over four maps, its losses, and whole images window by window.

Xiao et al., Unified Perceptual Parsing for Scene Understanding, ECCV 2018. Names of parameters are mmsegmentation's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tenfold.shared.logging import TenfoldError
from tenfold.tinymim.segmentation_backbone import SegmentationBackbone

IGNORE_INDEX = 255
"""Label of pixels that neither teach nor count."""
POOLED_SIZES = (1, 2, 3, 6)
"""Sides of the pooled maps."""
AUXILIARY_LEVEL = 2
"""Which of the four maps the auxiliary head sees, from 0: the one at stride 16."""
AUXILIARY_WEIGHT = 0.4
"""Of the auxiliary head's loss."""
WINDOWS_AT_ONCE = 4
"""Of one image, as many as are segmented together."""


def resize(x: Tensor, size: Sequence[int]) -> Tensor:
    """Bilinear to height and width ``size``; corners are not aligned. [B, C, H, W] to [B, C, *size]."""
    return F.interpolate(x, tuple(size), mode="bilinear", align_corners=False)


class ConvNorm(nn.Module):
    """Convolution without bias, batch norm, ReLU; the map keeps its size."""

    def __init__(self, in_channels: int, channels: int, kernel: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, channels, kernel, padding=kernel // 2, bias=False)
        self.bn = nn.BatchNorm2d(channels)
        nn.init.kaiming_normal_(self.conv.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] to [B, channels, H, W]."""
        return F.relu(self.bn(self.conv(x)))


def _classifier(channels: int, num_classes: int) -> nn.Conv2d:
    """Logits of every place."""
    layer = nn.Conv2d(channels, num_classes, 1)
    nn.init.normal_(layer.weight, std=0.01)
    nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
    return layer


class UPerHead(nn.Module):
    """Logits at stride 4 from four maps.

    The smallest map is put beside its means over grids of 1, 2, 3 and 6 cells a side. From it down, each map is added
    to the next larger one, and all four are brought to the largest one's size and joined.

    Args:
        widths: of the maps.
        num_classes: of pixels.
        channels: of every layer.
        dropout: of whole channels before the last layer.
    """

    def __init__(
        self, widths: Sequence[int], num_classes: int, channels: int = 768, dropout: float = 0.1
    ) -> None:
        super().__init__()
        *larger, smallest = widths
        self.psp_modules = nn.ModuleList(
            nn.Sequential(nn.AdaptiveAvgPool2d(size), ConvNorm(smallest, channels, 1))
            for size in POOLED_SIZES
        )
        self.bottleneck = ConvNorm(smallest + len(POOLED_SIZES) * channels, channels, 3)
        self.lateral_convs = nn.ModuleList(ConvNorm(width, channels, 1) for width in larger)
        self.fpn_convs = nn.ModuleList(ConvNorm(channels, channels, 3) for _ in larger)
        self.fpn_bottleneck = ConvNorm(len(widths) * channels, channels, 3)
        self.dropout = nn.Dropout2d(dropout)
        self.conv_seg = _classifier(channels, num_classes)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Four maps, the largest first, to [B, classes, H / 4, W / 4].

        Raises:
            TenfoldError: it learns from a single image, whose mean alone has no variance.
        """
        *larger, smallest = maps
        if self.training and len(smallest) == 1:
            raise TenfoldError(
                "batch norm of pooled maps needs at least 2 images on a device: enlarge the batch"
            )
        pooled = [resize(module(smallest), smallest.shape[2:]) for module in self.psp_modules]
        above = self.bottleneck(torch.cat([smallest, *pooled], dim=1))
        levels = [above]
        for lateral, smooth, level in zip(
            reversed(self.lateral_convs), reversed(self.fpn_convs), reversed(larger), strict=True
        ):
            above = lateral(level) + resize(above, level.shape[2:])
            levels.insert(0, smooth(above))
        joined = torch.cat([resize(level, levels[0].shape[2:]) for level in levels], dim=1)
        return self.conv_seg(self.dropout(self.fpn_bottleneck(joined)))  # type: ignore[no-any-return]


class FCNHead(nn.Module):
    """The auxiliary head: one 3x3 convolution on the map at stride 16.

    Args:
        width: of that map.
        num_classes: of pixels.
        channels: of its layer.
        dropout: of whole channels before the last layer.
    """

    def __init__(self, width: int, num_classes: int, channels: int = 256, dropout: float = 0.1) -> None:
        super().__init__()
        self.convs = nn.Sequential(ConvNorm(width, channels, 3))
        self.dropout = nn.Dropout2d(dropout)
        self.conv_seg = _classifier(channels, num_classes)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Four maps, the largest first, to [B, classes, H / 16, W / 16]."""
        return self.conv_seg(self.dropout(self.convs(maps[AUXILIARY_LEVEL])))  # type: ignore[no-any-return]


class Segmentation(NamedTuple):
    """What a network says about every pixel."""

    logits: Tensor
    """[B, classes, H, W], float32, at the size of the images."""
    auxiliary: Tensor | None
    """The auxiliary head's, likewise; None at inference."""


class Segmenter(nn.Module):
    """Backbone, UperNet's head, and while it learns the auxiliary head.

    Args:
        backbone: of four maps.
        num_classes: of pixels.
        channels: of the head.
        auxiliary_channels: of the auxiliary head.
        dropout: of both.

    Shapes:
        images [B, 3, img_size, img_size] to :class:`Segmentation`.
    """

    def __init__(
        self,
        backbone: SegmentationBackbone,
        num_classes: int = 150,
        channels: int = 768,
        auxiliary_channels: int = 256,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.backbone = backbone
        self.decode_head = UPerHead(backbone.widths, num_classes, channels, dropout)
        width = backbone.widths[AUXILIARY_LEVEL]
        self.auxiliary_head = FCNHead(width, num_classes, auxiliary_channels, dropout)

    def forward(self, images: Tensor) -> Segmentation:
        """Logits are enlarged bilinearly from stride 4, the auxiliary head's from stride 16."""
        maps, size = self.backbone(images), images.shape[2:]
        logits = resize(self.decode_head(maps).float(), size)
        if not self.training:
            return Segmentation(logits, None)
        return Segmentation(logits, resize(self.auxiliary_head(maps).float(), size))


def with_synchronised_norms(segmenter: Segmenter) -> Segmenter:
    """Batch norms that see all GPUs; the first neck's only where the backbone asks for SyncBN."""
    fpn1_norm = segmenter.backbone.fpn1_norm
    for part in (segmenter.decode_head, segmenter.auxiliary_head, segmenter.backbone):
        if part is not segmenter.backbone or fpn1_norm == "SyncBN":
            # The heads and the backbone are no norms themselves, so they are changed in place.
            nn.SyncBatchNorm.convert_sync_batchnorm(part)
    return segmenter


def segmentation_loss(
    output: Segmentation, labels: Tensor, auxiliary_weight: float = AUXILIARY_WEIGHT
) -> Tensor:
    """Cross-entropy, and 0.4 times the auxiliary head's where there is one.

    The mean is over all pixels, as in the framework that the authors used: ignored ones add nothing to the sum, but
    count. So the mean over devices is the mean over the batch, and a batch without labels has a loss of 0.

    Args:
        output: of the network.
        labels: int64 [B, H, W], from 0; 255 is ignored.
        auxiliary_weight: of the auxiliary head's.
    """
    loss = _pixel_loss(output.logits, labels)
    if output.auxiliary is not None:
        loss = loss + auxiliary_weight * _pixel_loss(output.auxiliary, labels)
    return loss


def _pixel_loss(logits: Tensor, labels: Tensor) -> Tensor:
    total = F.cross_entropy(logits.float(), labels, ignore_index=IGNORE_INDEX, reduction="sum")
    return total / labels.numel()


def window_starts(side: int, window: int, stride: int) -> list[int]:
    """Where windows along a side begin; the last is moved back so that it ends with the side."""
    count = max(side - window + stride - 1, 0) // stride + 1
    return [max(min(number * stride, side - window), 0) for number in range(count)]


def sliding_logits(segmenter: nn.Module, image: Tensor, window: int, stride: int) -> Tensor:
    """Logits of a whole image: the mean over all windows that see a pixel.

    A side that is shorter than the window is filled up with the mean colour.

    Args:
        segmenter: in evaluation mode; returns ``.logits`` of images of the window's size.
        image: [3, H, W], normalised.
        window: side in pixels.
        stride: between two windows.

    Returns:
        [1, classes, H, W], float32.
    """
    height, width = image.shape[1:]
    image = F.pad(image, (0, max(window - width, 0), 0, max(window - height, 0)))
    places = [
        (slice(top, top + window), slice(left, left + window))
        for top in window_starts(image.shape[1], window, stride)
        for left in window_starts(image.shape[2], window, stride)
    ]
    total, counts = None, image.new_zeros(image.shape[1:])
    for first in range(0, len(places), WINDOWS_AT_ONCE):
        some = places[first : first + WINDOWS_AT_ONCE]
        logits = segmenter(torch.stack([image[:, rows, columns] for rows, columns in some])).logits
        if total is None:
            total = logits.new_zeros(logits.shape[1], *image.shape[1:])
        for (rows, columns), of_window in zip(some, logits, strict=True):
            total[:, rows, columns] += of_window
            counts[rows, columns] += 1
    assert total is not None
    mean: Tensor = total / counts
    return mean[None, :, :height, :width]
