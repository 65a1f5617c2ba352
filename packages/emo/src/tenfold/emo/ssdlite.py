"""SSDLite on EMO: six levels, of which four are made by separable convolutions of stride 2, at 320 pixels.

Liu et al., SSD: Single Shot MultiBox Detector, ECCV 2016, arXiv 1512.02325; Sandler et al., MobileNetV2, CVPR 2018,
arXiv 1801.04381, for its light form. Settings are those of EMO's authors.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.detection.ssdlite import SSDLiteHead
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.ops import Conv2dNormActivation

from tenfold.emo.anchors import SSD_MAX_SIZES, SSD_MIN_SIZES, SSD_RATIOS, ssdlite_anchors
from tenfold.emo.detection import (
    NUM_CLASSES,
    Backbone,
    DetectionRecipe,
    Detector,
    Losses,
    Rules,
    Sizes,
    build_backbone_model,
)
from tenfold.emo.model import EMO
from tenfold.shared.logging import TenfoldError

SIZE = 320
"""Pixels of a side."""
EXTRA_CHANNELS = (512, 256, 256, 128)
ANCHORS_PER_CELL = 2 + 2 * len(SSD_RATIOS)
NEGATIVES_PER_POSITIVE = 3
DEVIATIONS = (0.1, 0.1, 0.2, 0.2)
RECIPE = DetectionRecipe(epochs=120, repeats=5, batch_size=192, lr=1.2e-3)

_NORM = partial(nn.BatchNorm2d, eps=1e-3, momentum=0.03)


class ExtraLevels(nn.Module):
    """Levels after the backbone's, each half as large as the one before.

    Args:
        in_channels: of the backbone's last map.
        channels: of the levels.

    Shapes:
        Maps of the backbone to these and one of [B, C, H / 2, W / 2], rounded up, for each level.

    Raises:
        TenfoldError: a batch to learn from has a single image.
    """

    def __init__(self, in_channels: int, channels: Sequence[int] = EXTRA_CHANNELS) -> None:
        super().__init__()
        self.levels = nn.ModuleList(
            separable_downsampling(before, after)
            for before, after in zip((in_channels, *channels), channels, strict=False)
        )
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.trunc_normal_(module.weight, std=0.03)

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        if self.training and len(maps[-1]) < 2:  # the last level has one cell, too little for batch norm
            raise TenfoldError(
                "SSDLite learns from at least 2 images at once on a device; raise the batch size"
            )
        levels = list(maps)
        for level in self.levels:
            levels.append(level(levels[-1]))
        return levels


def separable_downsampling(in_channels: int, channels: int) -> nn.Sequential:
    """1x1 to half the channels, depthwise 3x3 of stride 2, 1x1; each with batch norm and ReLU6."""
    conv = partial(Conv2dNormActivation, norm_layer=_NORM, activation_layer=nn.ReLU6)
    half = channels // 2
    return nn.Sequential(
        conv(in_channels, half, kernel_size=1),
        conv(half, half, kernel_size=3, stride=2, groups=half),
        conv(half, channels, kernel_size=1),
    )


def level_anchors(feature_sizes: Sizes, size: int = SIZE) -> Tensor:
    """Anchors of SSDLite for images of any size; their sides grow with it.

    Args:
        feature_sizes: height and width of every level, which are equal.
        size: side of the image.

    Returns:
        [anchors, 4], corners in pixels.
    """
    strides = [math.ceil(size / cells) for cells, _ in feature_sizes]
    min_sizes, max_sizes = (
        [side * size / SIZE for side in sides] for sides in (SSD_MIN_SIZES, SSD_MAX_SIZES)
    )
    return ssdlite_anchors(size, strides, SSD_RATIOS, min_sizes, max_sizes)[0]


def ssd_loss(logits: Tensor, codes: Tensor, labels: Tensor, wanted: Tensor) -> Losses:
    """Cross-entropy of positives and the hardest negatives, and smooth L1 of boxes, both divided by the positives.

    Args:
        logits: [B, anchors, classes + 1], the background last.
        codes: [B, anchors, 4].
        labels: [B, anchors], classes, or -1 for the background.
        wanted: codes of positive anchors, [positives, 4].
    """
    positive = labels >= 0
    positives = positive.sum().clamp(min=1)
    classes = labels.masked_fill(~positive, logits.shape[2] - 1)
    entropy = F.cross_entropy(logits.flatten(0, 1), classes.flatten(), reduction="none").view_as(classes)
    counted = positive | hard_negatives(entropy.detach(), positive)
    return {
        "classification": entropy[counted].sum() / positives,
        "bbox_regression": F.smooth_l1_loss(codes[positive], wanted, reduction="sum", beta=1.0) / positives,
    }


def hard_negatives(losses: Tensor, positive: Tensor, ratio: int = NEGATIVES_PER_POSITIVE) -> Tensor:
    """The negatives of an image with the largest losses, ``ratio`` for each positive of it.

    Args:
        losses: [B, anchors].
        positive: [B, anchors].
        ratio: negatives to a positive.

    Returns:
        [B, anchors], whether an anchor is among them.
    """
    order = losses.masked_fill(positive, -math.inf).argsort(dim=1, descending=True)
    rank = order.argsort(dim=1)
    return (rank < ratio * positive.sum(dim=1, keepdim=True)) & ~positive


def foreground_scores(logits: Tensor) -> Tensor:
    """Softmax without the background, which is last. [..., classes + 1] to [..., classes]."""
    return logits.softmax(dim=-1)[..., :-1]


def make_ssdlite(
    model: EMO,
    num_classes: int = NUM_CLASSES,
    size: int = SIZE,
    extra_channels: Sequence[int] = EXTRA_CHANNELS,
) -> Detector:
    """SSDLite on a network, which loses its norm and head. Batch norms of the network keep to their statistics.

    Args:
        model: of four stages.
        num_classes: without the background.
        size: side that images are resized to, a multiple of 32.
        extra_channels: of the four levels after the backbone's.

    Raises:
        TenfoldError: the size is no multiple of 32.
    """
    if size % 32 or size < 32:
        raise TenfoldError(f"SSDLite takes images whose sides are multiples of 32, not {size}")
    backbone = Backbone(model, stages=(3, 4))
    channels = [*backbone.channels, *extra_channels]
    head = SSDLiteHead(channels, [ANCHORS_PER_CELL] * len(channels), num_classes + 1, _NORM)
    for module in head.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.normal_(module.weight, std=0.001)
    transform = GeneralizedRCNNTransform(
        size, size, IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, size_divisible=1, fixed_size=(size, size)
    )
    rules = Rules(
        anchors=partial(level_anchors, size=size),
        deviations=DEVIATIONS,
        positive_iou=0.5,
        negative_iou=0.5,
        all_ties=False,
        loss=ssd_loss,
        scores=foreground_scores,
        min_score=0.02,
        nms_iou=0.45,
        detections=200,
    )
    neck = ExtraLevels(backbone.channels[-1], extra_channels)
    return Detector(backbone, neck, head, transform, rules, num_classes)


def build_ssdlite(
    name: str,
    num_classes: int = NUM_CLASSES,
    size: int = SIZE,
    drop_path: float | None = None,
    weights: Path | None = None,
) -> Detector:
    """SSDLite of the paper, with 10 x 10 windows on EMO-5M and 7 x 7 ones on the others.

    Args:
        name: emo_1m, emo_2m or emo_5m; emo_6m has no published settings and gets those of the small ones.
        num_classes: without the background.
        size: side that images are resized to, a multiple of 32; 320 in the paper.
        drop_path: stochastic depth of the last block; by default the classifier's.
        weights: file of a network trained on ImageNet; by default weights are random.

    Raises:
        TenfoldError: there is no such network, the file does not fit it, or the size is no multiple of 32.
    """
    return make_ssdlite(build_backbone_model(name, drop_path, weights), num_classes, size)
