"""Every setting of a run: the network, the training, and how images are judged."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from tenfold.pmt_iqa.backbones import BackboneName
from tenfold.pmt_iqa.evaluation import PlccFit
from tenfold.pmt_iqa.pixels import CropRule
from tenfold.pmt_iqa.schedules import WeightSchedule
from tenfold.shared.logging import TenfoldError


@dataclass(frozen=True)
class ModelConfig:
    """The network. The defaults are the paper's."""

    kind: Literal["multitask", "plain", "hyper"] = "multitask"
    """PMT-IQA's heads; a plain regressor on pooled features; or HyperIQA's written network."""
    backbone: BackboneName = "resnet50"
    """resnet18 to resnet152, or small for the quick profile."""
    scales: tuple[int, ...] = (1, 2, 3, 4)
    """Stages whose features are used; (4,) is global average pooling."""
    lda_outputs: int = 28
    """L: numbers of each scale but the last, which fills up to feature_dim."""
    feature_dim: int = 112
    """D: size of the multi-scale vector v."""
    hidden_dim: int = 112
    """f1: width of the head's first layer."""
    embedding_dim: int = 14
    """f4: size of the head's output h."""
    levels: int = 10
    """K: quality levels."""
    pretrained: bool = True
    """Begin with ImageNet weights."""

    def __post_init__(self) -> None:
        if (
            not self.scales
            or set(self.scales) - {1, 2, 3, 4}
            or list(self.scales) != sorted(set(self.scales))
        ):
            raise TenfoldError(
                f"scales are some of 1 2 3 4 in this order, not {' '.join(map(str, self.scales))}"
            )
        if (
            min(self.lda_outputs, self.feature_dim, self.hidden_dim, self.embedding_dim) < 1
            or self.levels < 2
        ):
            raise TenfoldError("layers have at least 1 output, and there are at least 2 levels")
        if self.pretrained and self.backbone == "small":
            raise TenfoldError(
                "there are no ImageNet weights of the small network; give --model.no-pretrained"
            )


@dataclass(frozen=True)
class TrainConfig:
    """How a network learns. The defaults are the authors' with the progressive schedule, which the paper is about."""

    schedule: WeightSchedule = "progressive"
    """From classification to regression over the epochs; or other shapes, one task alone, fixed weights."""
    fixed_weights: tuple[float, float] = (1.0, 1.0)
    """lambda1 of regression and lambda2 of classification for the schedule "fixed"."""
    epochs: int = 30
    """T."""
    images_per_batch: int = 12
    """Images of a step."""
    crops_per_image: int = 4
    """Crops of each image in a step."""
    passes_per_epoch: int = 1
    """How often an epoch meets every image; 25 for HyperIQA."""
    crop_size: int = 224
    """Side of a crop."""
    optimizer: Literal["adam", "sgd"] = "adam"
    """Adam with L2 weight decay, or SGD with momentum 0.9 and none, as in the authors' code."""
    lr: float = 1.0933302953170044e-4
    """Learning rate, or the peak of "one-cycle"."""
    lr_schedule: Literal["official", "one-cycle", "constant", "hyperiqa"] = "official"
    """7 epochs, then a tenth every 6; or a cosine up and down over all steps; or HyperIQA's: constant for the features,
    official for the rest, which begins at ten times the rate."""
    weight_decay: float = 5e-4
    """Of Adam, added to the gradient."""
    reset_optimizer_each_epoch: bool = True
    """Forget the moments after every epoch, as in the authors' code."""
    start_at_mean: bool = False
    """Let predictions begin at the training labels' mean."""
    shuffle_labels: bool = False
    """A control: the training images' labels are permuted, so that there is nothing to learn."""

    def __post_init__(self) -> None:
        for name in ("epochs", "images_per_batch", "crops_per_image", "passes_per_epoch", "crop_size"):
            if getattr(self, name) < 1:
                raise TenfoldError(
                    f"--train.{name.replace('_', '-')} is at least 1, not {getattr(self, name)}"
                )
        for name in ("lr", "weight_decay"):
            if not 0 <= getattr(self, name) < math.inf:
                raise TenfoldError(f"--train.{name.replace('_', '-')} is at least 0 and finite")
        if min(self.fixed_weights) < 0 or sum(self.fixed_weights) == 0:
            raise TenfoldError("--train.fixed-weights are at least 0, and not both 0")
        if self.images_per_batch * self.crops_per_image < 2:
            raise TenfoldError(
                "a batch has at least 2 crops, which batch norm needs; raise --train.crops-per-image"
            )

    @property
    def learns_scores(self) -> bool:
        """Whether regression ever has a weight."""
        return self.schedule != "classification" and (self.schedule != "fixed" or self.fixed_weights[0] > 0)

    @property
    def learns_levels(self) -> bool:
        """Whether classification ever has a weight."""
        return self.schedule != "regression" and (self.schedule != "fixed" or self.fixed_weights[1] > 0)


@dataclass(frozen=True)
class JudgeConfig:
    """How images are judged."""

    crops: int = 25
    """Crops of each image whose predictions are averaged."""
    crop_rule: CropRule = "random"
    """Where they are: random places that depend on the image alone, an even grid, the corners, or the centre."""
    every_epoch: bool = True
    """Judge the test images after every epoch, and also report the best one, as the authors do; or after the last."""
    plcc_fit: PlccFit = "none"
    """none, as the authors; or logistic4 before PLCC and RMSE."""

    def __post_init__(self) -> None:
        if self.crops < 1:
            raise TenfoldError(f"--judge.crops is at least 1, not {self.crops}")


@dataclass(frozen=True)
class RunConfig:
    """One run: a network on one split of a data set."""

    dataset: str = "livec"
    """A data set of :data:`tenfold.pmt_iqa.datasets.DATASETS`, or ``csv``."""
    train_fraction: float = 0.8
    """Share of the groups that train; 1 trains on all and tests on none."""
    legacy_resize: bool = False
    """KonIQ-10k: swap height and width of the resized images, as the authors' code does."""
    clamp_levels: bool = True
    """Keep levels below the number of classes; without it some labels of CSIQ and BID have no class."""
    model: ModelConfig = field(default_factory=ModelConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    judge: JudgeConfig = field(default_factory=JudgeConfig)

    def __post_init__(self) -> None:
        if self.model.kind != "multitask" and self.train.schedule != "regression":
            raise TenfoldError(
                f"a {self.model.kind} network has no levels to classify; give --train.schedule regression"
            )
