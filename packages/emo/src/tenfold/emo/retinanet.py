"""RetinaNet on EMO: five levels of a feature pyramid, focal loss, images of at most 1333 x 800 pixels.

Lin et al., Focal Loss for Dense Object Detection, ICCV 2017, arXiv 1708.02002. Settings are those of EMO's authors.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.detection.retinanet import RetinaNetHead
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.ops import FeaturePyramidNetwork, sigmoid_focal_loss

from tenfold.emo.anchors import RETINANET_RATIOS, RETINANET_SCALES, retinanet_anchors
from tenfold.emo.detection import (
    IGNORED,
    NUM_CLASSES,
    Backbone,
    DetectionRecipe,
    Detector,
    Losses,
    Rules,
    build_backbone_model,
)
from tenfold.emo.model import EMO

SHORT_SIDE, LONG_SIDE = 800, 1333
"""Pixels: images get the one or the other, whichever makes them smaller."""
CHANNELS = 256
ANCHORS_PER_CELL = RETINANET_SCALES * len(RETINANET_RATIOS)
RECIPE = DetectionRecipe(epochs=12, repeats=1, batch_size=32, lr=2e-4)


class Pyramid(nn.Module):
    """Feature pyramid of three maps, and two more levels by convolutions of stride 2 that begin at the last map.

    Args:
        in_channels: of the maps.
        channels: of all levels.

    Shapes:
        Maps of strides 8, 16, 32 to levels [B, channels, H / stride, W / stride] of strides 8, 16, 32, 64, 128.
    """

    def __init__(self, in_channels: Sequence[int], channels: int = CHANNELS) -> None:
        super().__init__()
        self.fpn = FeaturePyramidNetwork(list(in_channels), channels)
        # Unlike torchvision's P6 and P7, there is no ReLU between them.
        self.extra = nn.Sequential(
            nn.Conv2d(in_channels[-1], channels, 3, stride=2, padding=1),
            nn.Conv2d(channels, channels, 3, stride=2, padding=1),
        )
        for name, parameter in self.named_parameters():
            if name.endswith(".bias"):
                nn.init.zeros_(parameter)
            else:
                nn.init.xavier_uniform_(parameter)

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        levels = list(self.fpn({str(number): level for number, level in enumerate(maps)}).values())
        sixth = self.extra[0](maps[-1])
        return [*levels, sixth, self.extra[1](sixth)]


def retinanet_loss(logits: Tensor, codes: Tensor, labels: Tensor, wanted: Tensor) -> Losses:
    """Focal loss of all anchors that are not ignored, and L1 of boxes, both divided by the positives.

    Args:
        logits: [B, anchors, classes].
        codes: [B, anchors, 4].
        labels: [B, anchors], classes, or -1 for the background, or -2 for what is ignored.
        wanted: codes of positive anchors, [positives, 4].
    """
    positive, counted = labels >= 0, labels != IGNORED
    positives = positive.sum().clamp(min=1)
    classes = torch.zeros_like(logits)
    classes[positive, labels[positive]] = 1.0
    focal = sigmoid_focal_loss(logits[counted], classes[counted], alpha=0.25, gamma=2.0, reduction="sum")
    return {
        "classification": focal / positives,
        "bbox_regression": F.l1_loss(codes[positive], wanted, reduction="sum") / positives,
    }


def make_retinanet(
    model: EMO,
    num_classes: int = NUM_CLASSES,
    short_side: int = SHORT_SIDE,
    long_side: int = LONG_SIDE,
    channels: int = CHANNELS,
) -> Detector:
    """RetinaNet on a network, which loses its norm and head.

    The stem and the first stage are frozen; batch norms of the network keep to their statistics.

    Args:
        model: of four stages.
        num_classes: there is no background.
        short_side: pixels that images are resized to, if their longer side allows it.
        long_side: at most this many pixels.
        channels: of the levels and the head.
    """
    backbone = Backbone(model, stages=(2, 3, 4), frozen_stages=1)
    rules = Rules(
        anchors=retinanet_anchors,
        deviations=(1.0, 1.0, 1.0, 1.0),
        positive_iou=0.5,
        negative_iou=0.4,
        all_ties=True,
        loss=retinanet_loss,
        scores=torch.sigmoid,
        min_score=0.05,
        nms_iou=0.5,
        detections=100,
    )
    return Detector(
        backbone,
        Pyramid(backbone.channels, channels),
        RetinaNetHead(channels, ANCHORS_PER_CELL, num_classes),
        GeneralizedRCNNTransform(short_side, long_side, IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD),
        rules,
        num_classes,
    )


def build_retinanet(
    name: str,
    num_classes: int = NUM_CLASSES,
    drop_path: float | None = None,
    weights: Path | None = None,
) -> Detector:
    """RetinaNet of the paper, with 10 x 10 windows on EMO-5M and 7 x 7 ones on the others.

    Args:
        name: emo_1m, emo_2m or emo_5m; emo_6m has no published settings and gets those of the small ones.
        num_classes: there is no background.
        drop_path: stochastic depth of the last block; by default the classifier's.
        weights: file of a network trained on ImageNet; by default weights are random.

    Raises:
        TenfoldError: there is no such network, or the file does not fit it.
    """
    return make_retinanet(build_backbone_model(name, drop_path, weights), num_classes)
