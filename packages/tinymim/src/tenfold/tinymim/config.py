"""Every setting of a run, as plain values: networks, data, and the recipes of pre-training and fine-tuning."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

from tenfold.shared.logging import TenfoldError
from tenfold.tinymim.architectures import CLASSIFIERS, STUDENTS, TEACHERS
from tenfold.tinymim.augmentation import CropConfig
from tenfold.tinymim.vit import ViTConfig

DatasetName = Literal["digits", "clothing128", "cifar10", "imagenet"]


@dataclass(frozen=True)
class DataConfig:
    """Images and what pre-training does to them."""

    dataset: DatasetName = "imagenet"
    """digits (scikit-learn's), clothing128, cifar10, or imagenet (folders train and val)."""
    image_size: int = 224
    """Side of the images that networks see."""
    crop: CropConfig = field(default_factory=CropConfig)
    """Crops and flips of pre-training, and of fine-tuning from memory."""
    labelled: float = 1.0
    """Share of the training images whose labels fine-tuning sees, of sets in memory; pre-training sees all images."""
    workers: int = 10
    """Processes that decode image files, for each device."""

    def __post_init__(self) -> None:
        if self.image_size < 8:
            raise TenfoldError(f"images are at least 8 pixels a side, not {self.image_size}")
        if self.dataset == "imagenet" and self.labelled < 1:
            raise TenfoldError("a share of the labels is for sets in memory: leave out --data.labelled")
        if not 0 < self.labelled <= 1 or self.workers < 0:
            raise TenfoldError(
                "--data.labelled is a share from above 0 to 1, and --data.workers is not negative"
            )


@dataclass(frozen=True)
class PretrainConfig:
    """The recipe of distillation, and of masked autoencoding. The defaults are the paper's for ImageNet."""

    epochs: int = 300
    """Passes over the training images."""
    batch_size: int = 4096
    """Images of a step, on all devices together."""
    base_lr: float = 1.5e-4
    """For 256 images; the rate is this times batch size / 256."""
    min_lr: float = 0.0
    """Where the cosine ends."""
    warmup_epochs: float = 15.0
    """In which the rate rises from 0."""
    weight_decay: float = 0.05
    """Of AdamW, not for biases and what has one dimension."""
    betas: tuple[float, float] = (0.9, 0.95)
    """Of AdamW."""
    drop_path: float = 0.1
    """Of the student, the same in all blocks, none in the last."""
    teacher_drop_path: float = 0.0
    """Of the teacher; above 0 only in the paper's ablation."""
    jitter: float = 0.4
    """Largest change of brightness, contrast and saturation, of the student's view alone."""
    accumulate: int = 1
    """Parts that a batch is divided into, one after another."""
    probe_every: int = 0
    """Epochs between two looks at frozen features by k-NN, of sets in memory; 0 is none before the end."""

    def __post_init__(self) -> None:
        if min(self.epochs, self.batch_size, self.accumulate) < 1 or self.probe_every < 0:
            raise TenfoldError("epochs, batch size and its parts are at least 1, and looks are not negative")
        if not self.base_lr > 0 or min(self.min_lr, self.weight_decay, self.warmup_epochs) < 0:
            raise TenfoldError("the rate is positive; its end, weight decay and warm-up are not negative")
        if not self.warmup_epochs < self.epochs:
            raise TenfoldError(
                f"a warm-up of {self.warmup_epochs} epochs needs more than {self.epochs} epochs in all"
            )
        if not 0 <= self.jitter <= 1:
            raise TenfoldError("--train.jitter is from 0 to 1")
        if not (0 <= self.drop_path < 1 and 0 <= self.teacher_drop_path < 1):
            raise TenfoldError("stochastic depth is from 0 to below 1")

    @property
    def lr(self) -> float:
        """Peak of the learning rate."""
        return self.base_lr * self.batch_size / 256


@dataclass(frozen=True)
class FinetuneConfig:
    """The recipe of supervised learning, after pre-training or from scratch. The defaults are the paper's for ViT-B."""

    epochs: int = 100
    """Passes over the labelled images."""
    batch_size: int = 1024
    """Images of a step, on all devices together."""
    base_lr: float = 5e-4
    """For 256 images; the rate is this times batch size / 256."""
    min_lr: float = 1e-6
    """Where the cosine ends."""
    warmup_epochs: float = 5.0
    """In which the rate rises from 0."""
    weight_decay: float = 0.05
    """Of AdamW, not for tokens, positions, biases and what has one dimension."""
    layer_decay: float = 0.65
    """Rate of a block by that of the next."""
    drop_path: float = 0.2
    """Of the last block; linear from 0."""
    global_pool: bool = True
    """Classify the mean of the patches, else CLS."""
    keep_pretrain_heads: bool = False
    """Read the last block with the heads of pre-training, else with as many as the others."""
    mixup: float = 0.8
    """Of timm's Mixup; 0 is none."""
    cutmix: float = 1.0
    """Of timm's Mixup; 0 is none."""
    label_smoothing: float = 0.1
    """Share of the labels that is spread over all classes."""
    randaugment: str = "rand-m9-mstd0.5-inc1"
    """timm's RandAugment, of image files; none where it is empty."""
    erasing: float = 0.25
    """Probability of random erasing, of image files."""
    crop_scale: tuple[float, float] = (0.08, 1.0)
    """Share of the area of random crops of image files; sets in memory have --data.crop."""
    teacher: str | None = None
    """A classifier of timm whose classes the second head of TinyMIM* learns."""
    accumulate: int = 1
    """Parts that a batch is divided into, one after another."""
    evaluate_every: int = 1
    """Epochs between two looks at the test images; the last epoch is always looked at."""
    positions: Literal["learned", "sincos"] = "learned"
    """From scratch: positions begin at random, or as the fixed table. Both are trained."""

    def __post_init__(self) -> None:
        if min(self.epochs, self.batch_size, self.accumulate, self.evaluate_every) < 1:
            raise TenfoldError("epochs, batch size, its parts and looks are at least 1")
        if not self.base_lr > 0 or min(self.min_lr, self.weight_decay, self.warmup_epochs) < 0:
            raise TenfoldError("the rate is positive; its end, weight decay and warm-up are not negative")
        if not self.warmup_epochs < self.epochs:
            raise TenfoldError(
                f"a warm-up of {self.warmup_epochs} epochs needs more than {self.epochs} epochs in all"
            )
        if not 0 < self.layer_decay <= 1 or not 0 <= self.drop_path < 1 or not 0 <= self.label_smoothing < 1:
            raise TenfoldError(
                "layer decay is from above 0 to 1, stochastic depth and smoothing from 0 to below 1"
            )
        if min(self.mixup, self.cutmix, self.erasing) < 0 or self.erasing > 1:
            raise TenfoldError("mixup and cutmix are not negative, erasing is from 0 to 1")

    @property
    def lr(self) -> float:
        """Peak of the learning rate."""
        return self.base_lr * self.batch_size / 256


@dataclass(frozen=True)
class NetworkConfig:
    """A network by name, or of any shape."""

    name: str = ""
    """One of the paper's; the other fields count only where it is empty. "pretrained" is that of --checkpoint."""
    patch_size: int = 4
    """Side of a patch in pixels."""
    embed_dim: int = 64
    """Width."""
    depth: int = 6
    """Blocks."""
    num_heads: int = 8
    """Of each block."""

    def shape(self, image_size: int) -> ViTConfig:
        """Its shape for images of a size."""
        if not self.name:
            return ViTConfig(image_size, self.patch_size, self.embed_dim, self.depth, self.num_heads)
        known = {**TEACHERS, **STUDENTS, **CLASSIFIERS}
        if self.name not in known:
            raise TenfoldError(f"there is no network {self.name!r} here; choose one of {', '.join(known)}")
        return replace(known[self.name], img_size=image_size)
