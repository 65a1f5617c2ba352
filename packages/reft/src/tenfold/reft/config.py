"""Every setting of a run, as plain values: network, references, data, and the recipes of all stages."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from tenfold.shared.logging import TenfoldError

BackboneName = Literal["resnet-18", "resnet-50", "resnet-101", "swin-t", "swin-s", "swin-b", "small"]
Setting = Literal["fsis", "gfsis", "ifsis"]
Selection = Literal["mask", "class", "product"]
Freeze = Literal["none", "backbone", "classifier", "incremental"]
"""What stays as it is: nothing, the backbone, all but the classifier, or what iFSIS keeps: all but the input
projections of the pixel decoder, both references, and the novel rows of the classifier."""
SHOTS = (1, 2, 3, 5, 10, 30)
"""Shots of the published splits."""


@dataclass(frozen=True)
class NetworkConfig:
    """Mask2Former. The defaults are the paper's."""

    backbone: BackboneName = "resnet-50"
    """Network of the images; "small" has four basic blocks of 32 to 128 channels."""
    hidden_dim: int = 256
    """Width of the pixel decoder, the queries and the mask features; a multiple of 32."""
    num_heads: int = 8
    """Heads of all attentions."""
    encoder_layers: int = 6
    """Layers of deformable attention in the pixel decoder."""
    encoder_ffn: int = 1024
    """Hidden width of their feed-forward networks."""
    decoder_layers: int = 9
    """Layers of the transformer decoder."""
    decoder_ffn: int = 2048
    """Hidden width of their feed-forward networks."""
    num_queries: int = 100
    """Object queries."""
    classifier: Literal["linear", "cosine"] = "linear"
    """Head of the classes."""
    cosine_scale: float = 20.0
    """Factor of the cosine classifier's similarities."""

    def __post_init__(self) -> None:
        if self.hidden_dim < 32 or self.hidden_dim % 32 or self.hidden_dim % self.num_heads:
            raise TenfoldError("--network.hidden-dim is a multiple of 32 and of the number of heads")
        if min(self.encoder_layers, self.decoder_layers, self.num_queries, self.num_heads) < 1:
            raise TenfoldError("layers, queries and heads are at least 1")
        if not self.cosine_scale > 0:
            raise TenfoldError("--network.cosine-scale is positive")


@dataclass(frozen=True)
class ReferenceConfig:
    """The two references; every field is a reading of the paper that can be changed."""

    feature: Literal["reweight", "add", "off"] = "reweight"
    """How the dynamic class centres act on the features of a query image."""
    query: Literal["last", "all", "off"] = "last"
    """After which decoder layers queries are linked with those of the supports."""
    top_k: int = 5
    """Queries of each support example that are kept."""
    selection: Selection = "mask"
    """By what: agreement of masks, probability of the class, or both."""
    max_rows: int = 512
    """Most support queries in all, evenly for each class, which keeps one at least."""
    class_embedding: bool = False
    """Add the classifier's row of a support's class to its queries."""
    detach_supports: bool = False
    """No gradients into the support branch."""

    def __post_init__(self) -> None:
        if min(self.top_k, self.max_rows) < 1:
            raise TenfoldError("--references.top-k and --references.max-rows are at least 1")

    @property
    def is_off(self) -> bool:
        """Whether this is Mask2Former alone."""
        return self.feature == "off" and self.query == "off"


@dataclass(frozen=True)
class LossConfig:
    """Weights and points of Mask2Former's losses, which are also those of the matching."""

    class_weight: float = 2.0
    """Of the cross-entropy."""
    mask_weight: float = 5.0
    """Of the binary cross-entropy of masks."""
    dice_weight: float = 5.0
    """Of the dice loss."""
    no_object_weight: float = 0.1
    """Of queries without an instance, in the cross-entropy."""
    num_points: int = 12544
    """Points at which masks are compared; 0 compares every cell of the mask features."""
    oversample_ratio: float = 3.0
    """Points that are drawn, for each point that is kept."""
    importance_ratio: float = 0.75
    """Share of the kept points that are the most uncertain."""

    def __post_init__(self) -> None:
        if self.num_points < 0 or self.oversample_ratio < 1 or not 0 <= self.importance_ratio <= 1:
            raise TenfoldError(
                "points are not negative, oversampling is at least 1, and the share of uncertain points from 0 to 1"
            )


@dataclass(frozen=True)
class DataConfig:
    """Images, their augmentation, and support crops. The defaults are those for COCO."""

    dataset: Literal["coco", "lvis", "digits", "own"] = "coco"
    """COCO 2017, LVIS v1, composed digits, or data of your own in COCO's form."""
    image_size: int = 1024
    """Side of the squares that are trained on."""
    jitter: tuple[float, float] = (0.1, 2.0)
    """Range of the scale relative to an image that just fits; equal ends switch jitter off."""
    few_shot_jitter: tuple[float, float] = (0.5, 2.0)
    """The same while new classes are learned from few shots."""
    flip: bool = True
    """Mirror half of the images."""
    test_short_side: int = 800
    """Of the images that judge; 0 leaves their size."""
    test_long_side: int = 1333
    """At most."""
    support_size: int = 320
    """Side of support crops."""
    support_context: int = 16
    """Pixels around the instance."""
    episode_classes: int = 20
    """Classes with a support in one step; all of the batch's classes are among them."""
    records: Literal["merged", "per_annotation"] = "merged"
    """Few-shot training records: an image with all its shots, or one record for each shot."""
    workers: int = 4
    """Processes that decode images, for each device."""

    def __post_init__(self) -> None:
        if self.image_size < 32 or self.image_size % 32:
            raise TenfoldError("--data.image-size is a multiple of 32")
        if any(not 0 < low <= high for low, high in (self.jitter, self.few_shot_jitter)):
            raise TenfoldError("--data.jitter are two positive numbers in ascending order")
        if self.support_size < 32 or self.support_context < 0 or self.episode_classes < 1:
            raise TenfoldError(
                "support crops have at least 32 pixels a side, context is not negative, and an episode has classes"
            )
        if min(self.test_short_side, self.test_long_side, self.workers) < 0:
            raise TenfoldError("test sizes and workers are not negative")


@dataclass(frozen=True)
class TrainConfig:
    """How one stage learns. The defaults are those of base training on COCO."""

    steps: int = 368_750
    """Updates."""
    batch_size: int = 16
    """Images of an update, on all devices together."""
    lr: float = 1e-4
    """Peak of the rate."""
    backbone_lr_factor: float = 0.1
    """Rate of the backbone by that of the rest."""
    classifier_lr_factor: float = 1.0
    """Rate of the classifier by that of the rest."""
    weight_decay: float = 0.05
    """Of AdamW; none for norms and embeddings."""
    clip: float = 0.01
    """Largest norm of the gradient."""
    schedule: Literal["steps", "one-cycle"] = "steps"
    """Rate times 0.1 at each milestone, or torch's one-cycle with 10 % warm-up."""
    milestones: tuple[int, ...] = (327_778, 355_092)
    """Updates after which the rate falls."""
    warmup: int = 10
    """Updates of warm-up."""
    warmup_factor: float = 1.0
    """Rate at their beginning by that at their end."""
    freeze: Freeze = "none"
    """What is not trained."""
    batch_norm: Literal["frozen", "trained"] = "frozen"
    """Of the backbone; trained only where it starts without ImageNet's statistics."""
    accumulate: int = 1
    """Parts that a batch is divided into, one after another."""
    log_every: int = 50
    """Updates between two lines of the log."""

    def __post_init__(self) -> None:
        if min(self.steps, self.batch_size, self.log_every, self.accumulate) < 1 or self.warmup < 0:
            raise TenfoldError("updates, batch size, its parts and steps between logs are at least 1")
        if (
            not self.lr > 0
            or not self.clip > 0
            or min(self.weight_decay, self.backbone_lr_factor, self.classifier_lr_factor, self.warmup_factor)
            < 0
        ):
            raise TenfoldError(
                "rate and clipping are positive; weight decay and factors of the rate are not negative"
            )


@dataclass(frozen=True)
class DistillConfig:
    """Class-enhanced distillation of the base model, in iFSIS."""

    class_weight: float = 2.0
    """Of the divergence of classes."""
    feature_weight: float = 0.1
    """Of the distance of the input projections."""
    temperature: float = 1.0
    """Of both models' logits."""

    def __post_init__(self) -> None:
        if min(self.class_weight, self.feature_weight) < 0 or not self.temperature > 0:
            raise TenfoldError("weights of distillation are not negative, its temperature is positive")
