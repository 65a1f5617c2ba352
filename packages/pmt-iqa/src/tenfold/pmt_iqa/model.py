"""PMT-IQA: multi-scale distortion features, and heads for quality level and score.

Pan et al., PMT-IQA: Progressive Multi-task Learning for Blind Image Quality Assessment, PRICAI 2023,
https://arxiv.org/abs/2301.01182.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tenfold.pmt_iqa.backbones import (
    BackboneName,
    ResNetStages,
    SmallStages,
    load_imagenet_weights,
    make_backbone,
)
from tenfold.shared.logging import TenfoldError

POOLED_SIZES = (8, 4, 2, 1)
"""Side of the pooled map of each stage."""


class Quality(NamedTuple):
    """What a network says about n crops."""

    score: Tensor
    """Predicted score y, [n], on the scale of the labels it was trained with."""
    level_logits: Tensor | None
    """z, [n, levels], before the softmax; None where a network has no level head."""
    features: Tensor
    """v, [n, feature_dim]."""


def full_precision(images: Tensor) -> torch.autocast:
    """Turns autocast off for the layers behind the features: in bf16 a score of 60 would be a multiple of 0.25."""
    return torch.autocast(images.device.type, enabled=False)


class LocalDistortion(nn.Module):
    """LDA: one stage's features, reduced, pooled to a small grid, and mapped to a few numbers.

    Args:
        channels: of the stage.
        pooled_size: side of the grid; 8, 4, 2, 1 for stages 1 to 4, which are windows of 7 x 7 at 224 pixels.
        outputs: L numbers; no activation follows.
        reduced: channels after the 1 x 1 convolution; None is none, as in stage 4.
    """

    def __init__(self, channels: int, pooled_size: int, outputs: int, reduced: int | None) -> None:
        super().__init__()
        self.reduce = nn.Identity() if reduced is None else nn.Conv2d(channels, reduced, 1, bias=False)
        self.pool = nn.AdaptiveAvgPool2d(pooled_size)
        self.linear = nn.Linear((reduced or channels) * pooled_size**2, outputs)
        nn.init.kaiming_normal_(self.linear.weight)
        if isinstance(self.reduce, nn.Conv2d):
            nn.init.kaiming_normal_(self.reduce.weight)

    def forward(self, stage: Tensor) -> Tensor:
        """[n, channels, H, W] to [n, outputs]."""
        pooled: Tensor = self.linear(self.pooled(stage).flatten(1))
        return pooled

    def pooled(self, stage: Tensor) -> Tensor:
        """What the linear layer sees, [n, reduced, size, size]."""
        found: Tensor = self.pool(self.reduce(stage))
        return found


class MultiScaleFeatures(nn.Module):
    """v = concat(LDA_1 .. LDA_4), or some of them.

    Args:
        backbone: shows its four stages.
        feature_dim: D, size of v.
        outputs: L of all scales but the last, which fills up to D.
        scales: stages that are used, of 1 to 4; ``(4,)`` is global average pooling and a linear layer.
    """

    def __init__(
        self,
        backbone: ResNetStages | SmallStages,
        feature_dim: int,
        outputs: int = 28,
        scales: tuple[int, ...] = (1, 2, 3, 4),
    ) -> None:
        super().__init__()
        last = feature_dim - outputs * (len(scales) - 1)
        if last < 1:
            raise TenfoldError(
                f"{len(scales)} scales with {outputs} numbers each need more than {feature_dim} features; raise "
                "--model.feature-dim or lower --model.lda-outputs"
            )
        self.backbone = backbone
        self.scales = scales
        widths = (16, 32, 64) if isinstance(backbone, ResNetStages) else (4, 8, 16)
        self.lda = nn.ModuleDict(
            {
                str(scale): LocalDistortion(
                    backbone.channels[scale - 1],
                    POOLED_SIZES[scale - 1],
                    last if scale == scales[-1] else outputs,
                    widths[scale - 1] if scale < 4 else None,
                )
                for scale in scales
            }
        )

    def forward(self, images: Tensor) -> Tensor:
        """Normalised images [n, 3, H, W] to [n, feature_dim]."""
        return self.of_stages(self.backbone(images))

    def of_stages(self, stages: tuple[Tensor, Tensor, Tensor, Tensor]) -> Tensor:
        """The backbone's four maps to [n, feature_dim]."""
        return torch.cat([self.lda[str(scale)](stages[scale - 1]) for scale in self.scales], dim=1)


class MultiTaskNetwork(nn.Module):
    """Features v, then h = LeakyReLU(W2 LeakyReLU(W1 v)); the score is linear in h, the level logits have two layers.

    Args:
        features: extractor of v.
        hidden_dim: f1, rows of W1.
        embedding_dim: f4, size of h.
        levels: K.
    """

    def __init__(
        self, features: MultiScaleFeatures, feature_dim: int, hidden_dim: int, embedding_dim: int, levels: int
    ):
        super().__init__()
        self.features = features
        self.head = nn.Sequential(
            nn.Linear(feature_dim, hidden_dim),
            nn.LeakyReLU(),
            nn.Linear(hidden_dim, embedding_dim),
            nn.LeakyReLU(),
        )
        self.score = nn.Linear(embedding_dim, 1)
        self.level = nn.Sequential(
            nn.Linear(embedding_dim, embedding_dim), nn.LeakyReLU(), nn.Linear(embedding_dim, levels)
        )

    def forward(self, images: Tensor) -> Quality:
        """Normalised images [n, 3, H, W]."""
        features = self.features(images)
        with full_precision(images):
            hidden = self.head(features.float())
            return Quality(self.score(hidden)[:, 0], self.level(hidden), features)

    def start_at(self, score: float) -> None:
        """Let the first predictions be near ``score``."""
        nn.init.constant_(self.score.bias, score)


class PlainNetwork(nn.Module):
    """The usual baseline: global average pooling of the last stage, and one linear layer."""

    def __init__(self, backbone: ResNetStages | SmallStages) -> None:
        super().__init__()
        self.backbone = backbone
        self.score = nn.Linear(backbone.channels[-1], 1)

    def forward(self, images: Tensor) -> Quality:
        """Normalised images [n, 3, H, W]."""
        features = self.backbone(images)[-1].mean(dim=(2, 3))
        with full_precision(images):
            return Quality(self.score(features.float())[:, 0], None, features)

    def start_at(self, score: float) -> None:
        """Let the first predictions be near ``score``."""
        nn.init.constant_(self.score.bias, score)


class HyperNetwork(nn.Module):
    """HyperIQA (Su et al., CVPR 2020): the last stage writes, for each crop, the network that judges its features.

    Args:
        features: extractor of v, 224 numbers of 16 at each of the first three scales in the original.
        feature_dim: size of v.
        side: of the map that weights are read from; 7 in the original.
        hidden: f1 to f4, widths of the written network; products of neighbours must be multiples of ``side`` squared.
    """

    def __init__(
        self,
        features: MultiScaleFeatures,
        feature_dim: int = 224,
        side: int = 7,
        hidden: tuple[int, ...] = (112, 56, 28, 14),
        hyper_channels: int = 112,
    ) -> None:
        super().__init__()
        self.features = features
        self.sizes = tuple(zip((feature_dim, *hidden), hidden, strict=False))
        if any(before * after % side**2 for before, after in self.sizes):
            raise TenfoldError(
                f"matrices of {feature_dim} features cannot be read from maps of {side} x {side}; choose another "
                "--model.feature-dim, such as 224"
            )
        channels = features.backbone.channels[-1]
        between = (channels // 2, channels // 4)
        self.semantics = nn.Sequential(
            nn.Conv2d(channels, between[0], 1),
            nn.ReLU(),
            nn.Conv2d(between[0], between[1], 1),
            nn.ReLU(),
            nn.Conv2d(between[1], hyper_channels, 1),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(side),
        )
        self.weights = nn.ModuleList(
            nn.Conv2d(hyper_channels, before * after // side**2, 3, padding=1) for before, after in self.sizes
        )
        self.biases = nn.ModuleList(nn.Linear(hyper_channels, after) for _, after in self.sizes)
        self.last_weight = nn.Linear(hyper_channels, hidden[-1])
        self.last_bias = nn.Linear(hyper_channels, 1)
        for module in (*self.weights, *self.biases, self.last_weight, self.last_bias):
            nn.init.kaiming_normal_(module.weight)

    def forward(self, images: Tensor) -> Quality:
        """Normalised images [n, 3, H, W]."""
        stages = self.features.backbone(images)
        features = self.features.of_stages(stages)
        semantics = self.semantics(stages[-1])
        with full_precision(images):
            return Quality(self._judge(features.float(), semantics.float()), None, features)

    def _judge(self, hidden: Tensor, semantics: Tensor) -> Tensor:
        pooled = semantics.mean(dim=(2, 3))
        for (before, after), weight, bias in zip(self.sizes, self.weights, self.biases, strict=True):
            matrices = weight(semantics).reshape(-1, after, before)
            hidden = torch.sigmoid(
                torch.baddbmm(bias(pooled)[:, :, None], matrices, hidden[:, :, None])[:, :, 0]
            )
        score: Tensor = (self.last_weight(pooled) * hidden).sum(dim=1) + self.last_bias(pooled)[:, 0]
        return score

    def start_at(self, score: float) -> None:
        """Let the first predictions be near ``score``."""
        nn.init.constant_(self.last_bias.bias, score)


def build_model(
    backbone: BackboneName = "resnet50",
    lda_out_channels: int = 28,
    target_in_size: int = 112,
    target_fc1_size: int = 112,
    target_fc2_size: int = 56,
    target_fc3_size: int = 28,
    target_fc4_size: int = 14,
    number_class: int = 10,
    pretrained: bool | Path = False,
    scales: tuple[int, ...] = (1, 2, 3, 4),
) -> MultiTaskNetwork:
    """PMT-IQA's network, by the arguments of the authors' constructor.

    Args:
        backbone: resnet18 to resnet152, or small.
        lda_out_channels: L, numbers of each scale but the last.
        target_in_size: D, size of v.
        target_fc1_size: f1, rows of the head's first layer.
        target_fc2_size: has no effect, as in the authors' code.
        target_fc3_size: has no effect, as in the authors' code.
        target_fc4_size: f4, size of h.
        number_class: K, quality levels.
        pretrained: with ImageNet weights, from torch's cache or a file.
        scales: stages that are used; all four in the paper.

    Raises:
        TenfoldError: L does not leave room for the last scale, or weights are missing.
    """
    del target_fc2_size, target_fc3_size
    if min(lda_out_channels, target_fc1_size, target_fc4_size) < 1 or number_class < 2:
        raise TenfoldError("layers have at least 1 output, and there are at least 2 levels")
    stages = make_backbone(backbone)
    if pretrained:
        if not isinstance(stages, ResNetStages) or backbone == "small":
            raise TenfoldError(
                "there are no ImageNet weights of the small network; use --model.no-pretrained"
            )
        load_imagenet_weights(stages, backbone, pretrained if isinstance(pretrained, Path) else None)
    features = MultiScaleFeatures(stages, target_in_size, lda_out_channels, scales)
    return MultiTaskNetwork(features, target_in_size, target_fc1_size, target_fc4_size, number_class)


def forward(model: MultiTaskNetwork, images: Tensor) -> dict[str, Tensor]:
    """The network's outputs under the authors' names: mos [n, 1], cls [n, K], features [n, D]."""
    score, level_logits, features = model(images)
    return {"mos": score[:, None], "cls": level_logits, "features": features}


def verdict(
    output: Quality, level_scores: Tensor, learned_scores: bool = True, learned_levels: bool = True
) -> tuple[Tensor, Tensor | None]:
    """What a trained network says of crops; a head that was never trained says nothing.

    Args:
        output: of the network.
        level_scores: score that stands for each level, [K].
        learned_scores: without it the score is the mean one under the predicted distribution of levels.
        learned_levels: without it there are no levels.

    Returns:
        Scores [n], and probabilities of the levels [n, K] or None.
    """
    if output.level_logits is None or not learned_levels:
        return output.score.float(), None
    levels = F.softmax(output.level_logits.float(), dim=1)
    return output.score.float() if learned_scores else levels @ level_scores, levels
