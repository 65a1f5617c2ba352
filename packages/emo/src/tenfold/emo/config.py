"""Every setting of a run: the network, the data, and the recipe."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from tenfold.shared.logging import TenfoldError

DatasetName = Literal["digits", "cifar10", "imagenet"]


@dataclass(frozen=True)
class ModelConfig:
    """A classifier."""

    name: str = "emo_1m"
    """emo_1m, emo_2m, emo_5m, emo_6m, emo_digits, mobilenetv2_digits, vit_digits, deit_tiny_irmb, or one of timm's."""
    drop_path: float | None = None
    """Stochastic depth of the last block; by default the network's own."""
    attention: bool = True
    """EMO with its attention; without it stages 3 and 4 are convolutions alone."""
    depthwise: bool = True
    """EMO with its depthwise convolutions; without them only blocks with a stride have any."""
    windows: Literal["strided", "contiguous"] = "strided"
    """Which pixels share a window of EMO."""
    window_size: int | None = None
    """Side of all windows of EMO; 0 is the whole map, by default the network's own."""
    mask_padding: bool = False
    """Keep the zeros that fill up windows out of the softmax."""
    attention_first: bool = True
    """Attention before the expansion, as in the released networks."""
    grouped_expansion: bool = False
    """The expansion sees each head alone."""

    def __post_init__(self) -> None:
        if not self.name:
            raise TenfoldError("give --model.name a network")
        if self.drop_path is not None and not 0 <= self.drop_path < 1:
            raise TenfoldError("--model.drop-path is from 0 to below 1")


@dataclass(frozen=True)
class DataConfig:
    """Images and what is done to them."""

    dataset: DatasetName = "imagenet"
    """digits (scikit-learn's), cifar10, or imagenet (folders train and val)."""
    image_size: int = 224
    """Side of the images that networks see."""
    crop_pct: float = 0.875
    """ImageNet at test: the centre crop's share of the shorter side."""
    augmentation: Literal["none", "shift", "crop", "imagenet"] = "imagenet"
    """shift: a cyclic shift, one for each batch; crop: padded crops and flips on the device; imagenet: random resized
    crops, flips and RandAugment."""
    shift: int = 3
    """Largest shift in pixels, each way."""
    workers: int = 8
    """Processes that decode images of ImageNet, for each device."""

    def __post_init__(self) -> None:
        if self.image_size < 32:
            raise TenfoldError(f"images are at least 32 pixels a side, not {self.image_size}")
        if self.augmentation == "imagenet" and self.dataset != "imagenet":
            raise TenfoldError("RandAugment is for image files: --data.augmentation shift, crop or none")
        if not 0 < self.crop_pct <= 1 or self.shift < 0 or self.workers < 0:
            raise TenfoldError("the crop's share is from above 0 to 1, shift and workers are not negative")


@dataclass(frozen=True)
class TrainConfig:
    """The recipe. The defaults are the paper's for ImageNet."""

    epochs: int = 300
    """Passes over the training images."""
    batch_size: int = 2048
    """Images of a step, on all devices together."""
    lr: float = 6e-3
    """Peak of the learning rate: 1.5e-3 for 512 images."""
    min_lr: float = 1e-6
    """Where its cosine ends, and where its warm-up begins."""
    warmup_epochs: float = 20.0
    """In which it rises linearly; the cosine is over all epochs and not shifted by them."""
    noise_range: tuple[float, float] | None = None
    """Shares of the training between which the rate is noisy; (0.42, 0.9) in the authors' runs of EMO-1M and 2M."""
    weight_decay: float = 0.05
    """Of AdamW, on tensors of two and more dimensions but biases."""
    clip_norm: float = 5.0
    """Largest norm of the gradient."""
    label_smoothing: float = 0.1
    """Share of the mean over all classes in the loss."""
    ema_decay: float | None = 0.9998
    """Of the averaged weights; without it there are none."""
    teacher: str | None = None
    """A model of timm to distil from; none in the paper's main results."""
    distillation: Literal["soft", "hard"] = "soft"
    """Its distribution, or its class."""
    distillation_weight: float = 1.0
    """Of that loss beside the labels'."""
    tau: float = 1.0
    """Temperature of soft distillation."""
    evaluate_every: int = 5
    """Epochs between two looks at the test images, in the first two thirds; then every epoch."""
    drop_last: bool = True
    """Leave out the last batch of an epoch where it is not full."""

    def __post_init__(self) -> None:
        if min(self.epochs, self.batch_size, self.evaluate_every) < 1:
            raise TenfoldError("epochs, batch size and looks are at least 1")
        if not (self.lr > 0 and self.clip_norm > 0 and self.tau > 0):
            raise TenfoldError("--train.lr, --train.clip-norm and --train.tau are positive")
        if min(self.min_lr, self.weight_decay, self.distillation_weight, self.warmup_epochs) < 0:
            raise TenfoldError("rates, decay, weights and the warm-up are not negative")
        if not 0 <= self.label_smoothing < 1 or not (self.ema_decay is None or 0 <= self.ema_decay < 1):
            raise TenfoldError("label smoothing and the average's decay are from 0 to below 1")
        if self.noise_range is not None and not 0 <= self.noise_range[0] < self.noise_range[1] <= 1:
            raise TenfoldError("--train.noise-range are two shares of the training, the smaller first")


@dataclass(frozen=True)
class RunConfig:
    """One run."""

    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    train: TrainConfig = field(default_factory=TrainConfig)

    @classmethod
    def from_plain(cls, settings: Mapping[str, Any]) -> RunConfig:
        """The settings that a checkpoint or a record holds as plain values."""
        train = dict(settings["train"])
        if train["noise_range"] is not None:
            train["noise_range"] = tuple(train["noise_range"])
        return cls(ModelConfig(**settings["model"]), DataConfig(**settings["data"]), TrainConfig(**train))
