"""Semantic segmentation: EMO as a backbone with the heads of DeepLabv3, PSPNet and Semantic FPN.

Chen et al., Rethinking Atrous Convolution, arXiv 1706.05587; Zhao et al., Pyramid Scene Parsing Network, CVPR 2017,
arXiv 1612.01105; Kirillov et al., Panoptic Feature Pyramid Networks, CVPR 2019, arXiv 1901.02446. Widths, losses and
recipes are those of EMO's authors for ADE20K. ``tenfold.emo.ade20k`` has the data, the loop and the metrics.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import AdamW

from tenfold.emo.checkpoints import load_weights
from tenfold.emo.model import EMO, build_model
from tenfold.shared.logging import TenfoldError

HeadName = Literal["deeplabv3", "pspnet", "semantic_fpn"]
IGNORE_INDEX = 255
"""Label of pixels that neither teach nor count."""
AUXILIARY_WEIGHT = 0.4
"""Of the auxiliary head's loss."""
DROPOUT = 0.1
"""Of whole channels before the last layer of every head."""
DILATIONS = (12, 24, 36)
"""Of DeepLabv3's 3x3 convolutions."""
POOLED_SIZES = (1, 2, 3, 6)
"""Sides of PSPNet's pooled maps."""


# -- heads ---------------------------------------------------------------------------------------------


def resize(x: Tensor, size: Sequence[int]) -> Tensor:
    """Bilinear to height and width ``size``; corners are not aligned. [B, C, H, W] to [B, C, *size]."""
    return F.interpolate(x, tuple(size), mode="bilinear", align_corners=False)


def conv_norm(in_channels: int, channels: int, kernel: int, dilation: int = 1) -> nn.Sequential:
    """Convolution without bias, batch norm, ReLU; the map keeps its size."""
    padding = dilation * (kernel // 2)
    conv = nn.Conv2d(in_channels, channels, kernel, padding=padding, dilation=dilation, bias=False)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    return nn.Sequential(conv, nn.BatchNorm2d(channels), nn.ReLU())


def pixel_classifier(channels: int, num_classes: int) -> nn.Sequential:
    """Dropout of channels, then logits of every place."""
    last = nn.Conv2d(channels, num_classes, 1)
    nn.init.normal_(last.weight, std=0.01)
    nn.init.zeros_(last.bias)  # type: ignore[arg-type]
    return nn.Sequential(nn.Dropout2d(DROPOUT), last)


class PooledFeatures(nn.Module):
    """Average over a grid of ``size`` x ``size``, 1x1 convolution, and back to the size of the map.

    Raises:
        TenfoldError: it trains on a single image, whose mean alone has no variance.
    """

    def __init__(self, in_channels: int, channels: int, size: int) -> None:
        super().__init__()
        self.size = size
        self.project = conv_norm(in_channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        if self.training and self.size == 1 and len(x) == 1:
            raise TenfoldError(
                "batch norm of pooled features needs at least 2 images on a device: enlarge the batch"
            )
        return resize(self.project(F.adaptive_avg_pool2d(x, self.size)), x.shape[2:])


class DeepLabV3Head(nn.Module):
    """Atrous spatial pyramid pooling on stage 4: dilations 1, 12, 24, 36 and the mean of the image.

    Maps of the four stages to logits at stride 32.
    """

    def __init__(self, widths: Sequence[int], num_classes: int, channels: int = 256) -> None:
        super().__init__()
        self.branches = nn.ModuleList(
            [PooledFeatures(widths[-1], channels, 1), conv_norm(widths[-1], channels, 1)]
            + [conv_norm(widths[-1], channels, 3, dilation) for dilation in DILATIONS]
        )
        self.bottleneck = conv_norm(len(self.branches) * channels, channels, 3)
        self.classifier = pixel_classifier(channels, num_classes)

    def forward(self, stages: Sequence[Tensor]) -> Tensor:
        x = torch.cat([branch(stages[-1]) for branch in self.branches], dim=1)
        return self.classifier(self.bottleneck(x))  # type: ignore[no-any-return]


class PSPHead(nn.Module):
    """Pyramid pooling on stage 4: the map beside its means over grids of 1, 2, 3 and 6 cells a side.

    Maps of the four stages to logits at stride 32.
    """

    def __init__(self, widths: Sequence[int], num_classes: int, channels: int = 256) -> None:
        super().__init__()
        self.pyramid = nn.ModuleList(PooledFeatures(widths[-1], channels, size) for size in POOLED_SIZES)
        self.bottleneck = conv_norm(widths[-1] + len(POOLED_SIZES) * channels, channels, 3)
        self.classifier = pixel_classifier(channels, num_classes)

    def forward(self, stages: Sequence[Tensor]) -> Tensor:
        x = torch.cat([stages[-1], *(level(stages[-1]) for level in self.pyramid)], dim=1)
        return self.classifier(self.bottleneck(x))  # type: ignore[no-any-return]


class FeaturePyramid(nn.Module):
    """FPN: 1x1 convolutions of all stages, added from the top down, then 3x3 convolutions; none has a norm."""

    def __init__(self, widths: Sequence[int], channels: int) -> None:
        super().__init__()
        self.laterals = nn.ModuleList(nn.Conv2d(width, channels, 1) for width in widths)
        self.outputs = nn.ModuleList(nn.Conv2d(channels, channels, 3, padding=1) for _ in widths)
        for conv in cast(list[nn.Conv2d], [*self.laterals, *self.outputs]):
            nn.init.xavier_uniform_(conv.weight)
            nn.init.zeros_(conv.bias)  # type: ignore[arg-type]

    def forward(self, stages: Sequence[Tensor]) -> list[Tensor]:
        maps = [lateral(stage) for lateral, stage in zip(self.laterals, stages, strict=True)]
        for level in range(len(maps) - 1, 0, -1):
            maps[level - 1] = maps[level - 1] + F.interpolate(
                maps[level], maps[level - 1].shape[2:], mode="nearest"
            )
        return [output(level) for output, level in zip(self.outputs, maps, strict=True)]


class SemanticFPNHead(nn.Module):
    """A feature pyramid whose levels are brought to stride 4 and added.

    Levels of stride 4 and 8 have one 3x3 convolution, those of stride 16 and 32 two and three. Every convolution of
    the levels above the first is followed by enlarging twice. Maps of the four stages to logits at stride 4.
    """

    def __init__(self, widths: Sequence[int], num_classes: int, channels: int = 256) -> None:
        super().__init__()
        self.pyramid = FeaturePyramid(widths, channels)
        self.scales = nn.ModuleList(
            self._scale(channels, channels // 2, level) for level in range(len(widths))
        )
        self.classifier = pixel_classifier(channels // 2, num_classes)

    @staticmethod
    def _scale(in_channels: int, channels: int, level: int) -> nn.Sequential:
        layers: list[nn.Module] = []
        for number in range(max(1, level)):
            layers.append(conv_norm(channels if number else in_channels, channels, 3))
            if level:
                layers.append(nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False))
        return nn.Sequential(*layers)

    def forward(self, stages: Sequence[Tensor]) -> Tensor:
        maps = [scale(level) for scale, level in zip(self.scales, self.pyramid(stages), strict=True)]
        total = maps[0]
        for enlarged in maps[1:]:  # a side that is no multiple of 32 makes it a little too large
            total = total + resize(enlarged, total.shape[2:])
        return self.classifier(total)  # type: ignore[no-any-return]


class FCNHead(nn.Module):
    """The auxiliary head: one 3x3 convolution on stage 3. Maps of the four stages to logits at stride 16."""

    def __init__(self, widths: Sequence[int], num_classes: int, channels: int = 256) -> None:
        super().__init__()
        self.conv = conv_norm(widths[-2], channels, 3)
        self.classifier = pixel_classifier(channels, num_classes)

    def forward(self, stages: Sequence[Tensor]) -> Tensor:
        return self.classifier(self.conv(stages[-2]))  # type: ignore[no-any-return]


HEADS: dict[HeadName, type[DeepLabV3Head | PSPHead | SemanticFPNHead]] = {
    "deeplabv3": DeepLabV3Head,
    "pspnet": PSPHead,
    "semantic_fpn": SemanticFPNHead,
}


# -- the network ---------------------------------------------------------------------------------------


class Segmentation(NamedTuple):
    """What a network says about every pixel of n images."""

    logits: Tensor
    """[n, classes, H, W], at the size of the images."""
    auxiliary: Tensor | None
    """The auxiliary head's, likewise; None at inference and for Semantic FPN."""


class Segmenter(nn.Module):
    """A backbone and a head; while training, for DeepLabv3 and PSPNet, an auxiliary head too.

    Args:
        backbone: is changed: it loses its last norm and its classifier.
        head: deeplabv3, pspnet or semantic_fpn.
        num_classes: of pixels.
        channels: of the head; Semantic FPN has half as many after its pyramid.

    Shapes:
        images [B, 3, H, W], of at least 32 pixels a side, to :class:`Segmentation`.

    Raises:
        TenfoldError: there is no such head.
    """

    def __init__(self, backbone: EMO, head: HeadName, num_classes: int = 150, channels: int = 256) -> None:
        super().__init__()
        if head not in HEADS:
            raise TenfoldError(f"there is no head {head}; choose one of {', '.join(HEADS)}")
        widths = backbone.architecture.widths
        backbone.prune_intermediate_layers(len(widths), prune_norm=True)
        self.num_classes = num_classes
        self.backbone = backbone
        self.head = HEADS[head](widths, num_classes, channels)
        self.auxiliary = None if head == "semantic_fpn" else FCNHead(widths, num_classes, channels)

    def forward(self, images: Tensor) -> Segmentation:
        stages = cast(list[Tensor], self.backbone.forward_intermediates(images, intermediates_only=True))
        size = images.shape[2:]
        logits = resize(self.head(stages).float(), size)
        if self.auxiliary is None or not self.training:
            return Segmentation(logits, None)
        return Segmentation(logits, resize(self.auxiliary(stages).float(), size))


def window_size(head: HeadName, name: str) -> int:
    """Side of the windows in which a published network segments."""
    if name != "emo_5m":
        return 7
    return 10 if head == "semantic_fpn" else 16


def build_segmenter(
    head: HeadName,
    name: str,
    num_classes: int = 150,
    weights: Path | None = None,
    drop_path: float | None = None,
) -> Segmenter:
    """One of the paper's networks for ADE20K.

    Args:
        head: deeplabv3, pspnet or semantic_fpn.
        name: emo_1m, emo_2m or emo_5m; emo_6m works too, but the paper has no such result.
        num_classes: of pixels.
        weights: file of a classifier's weights for the backbone; without it they are random.
        drop_path: stochastic depth of the last block; by default that of the classifier.

    Raises:
        TenfoldError: there is no such head or network, or the weights are of another one.
    """
    backbone = build_model(name, num_classes=0, drop_path=drop_path)
    backbone.set_window_sizes([window_size(head, name)] * len(backbone.stages))
    if weights is not None:
        load_weights(backbone, weights)
    return Segmenter(backbone, head, num_classes)


# -- the recipe ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SegmentationRecipe:
    """How a network is trained on ADE20K. The defaults are the paper's for DeepLabv3 and PSPNet."""

    iterations: int = 80_000
    """Updates."""
    batch_size: int = 32
    """Images of a step, on all devices together."""
    lr: float = 1.2e-4
    """Of the first update."""
    power: float = 0.9
    """Of the fall to 0."""
    weight_decay: float = 0.01
    """Of AdamW, on everything but norms; biases are decayed."""
    evaluate_every: int = 8_000
    """Updates between two looks at the validation images."""
    log_every: int = 50
    """Updates between two logged losses, which are also when a checkpoint may be written."""

    def __post_init__(self) -> None:
        if min(self.iterations, self.batch_size, self.evaluate_every, self.log_every) < 1:
            raise TenfoldError("iterations, batch size, looks and logged losses are at least 1")
        if not (self.lr > 0 and self.power > 0 and self.weight_decay >= 0):
            raise TenfoldError("learning rate and power are positive, and weight decay is not negative")


RECIPES: dict[HeadName, SegmentationRecipe] = {
    "deeplabv3": SegmentationRecipe(),
    "pspnet": SegmentationRecipe(),
    "semantic_fpn": SegmentationRecipe(iterations=160_000, weight_decay=0.05),
}
"""The authors' own; Semantic FPN's is the one published for EMOv2."""


def polynomial_rate(iteration: int, peak_lr: float, iterations: int, power: float = 0.9) -> float:
    """The rate of one update: peak_lr (1 - t/T)^power, from the first update on, without a warm-up.

    Args:
        iteration: t, from 0.
        peak_lr: rate of the first update.
        iterations: T, at which the rate is 0.
        power: of the fall.
    """
    return peak_lr * math.pow(max(0.0, 1 - iteration / iterations), power)


def decay_all_but_norms(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Weights and biases of norms without decay, then all other parameters, biases among them, with it.

    Each group has the ``names`` of its parameters beside them.
    """
    norms = (nn.BatchNorm2d, nn.SyncBatchNorm, nn.LayerNorm)
    of_norms = {
        id(parameter)
        for module in model.modules()
        if isinstance(module, norms)
        for parameter in module.parameters()
    }
    groups: tuple[dict[str, nn.Parameter], dict[str, nn.Parameter]] = ({}, {})
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups[id(parameter) not in of_norms][name] = parameter
    return [
        {"params": list(group.values()), "names": list(group), "weight_decay": decay}
        for group, decay in zip(groups, (0.0, weight_decay), strict=True)
    ]


def make_optimizer(model: nn.Module, recipe: SegmentationRecipe) -> AdamW:
    """AdamW with betas 0.9 and 0.999 and eps 1e-8; norms are not decayed."""
    groups = [
        {"params": group["params"], "weight_decay": group["weight_decay"]}
        for group in decay_all_but_norms(model, recipe.weight_decay)
    ]
    return AdamW(groups, lr=recipe.lr, betas=(0.9, 0.999), eps=1e-8, fused=True)


def segmentation_loss(output: Segmentation, labels: Tensor) -> Tensor:
    """Cross-entropy, and 0.4 times the auxiliary head's where there is one.

    The mean is over all pixels, as in the framework that the authors used: those of index 255 add nothing to the sum,
    but count. So the mean over devices is the mean over the batch, and a batch without labels has a loss of 0.

    Args:
        output: of the network.
        labels: int64 [B, H, W], from 0; 255 is ignored.
    """
    loss = _pixel_loss(output.logits, labels)
    if output.auxiliary is not None:
        loss = loss + AUXILIARY_WEIGHT * _pixel_loss(output.auxiliary, labels)
    return loss


def _pixel_loss(logits: Tensor, labels: Tensor) -> Tensor:
    total = F.cross_entropy(logits.float(), labels, ignore_index=IGNORE_INDEX, reduction="sum")
    return total / labels.numel()
