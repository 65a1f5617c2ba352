"""Every hyperparameter of a learner and its stream."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Literal

from tenfold.coca.losses import Diagonal
from tenfold.coca.networks import NetworkName
from tenfold.coca.pretext_views import ViewKind
from tenfold.shared.logging import TenfoldError

MethodName = Literal[
    "JOINT",
    "SGD",
    "ER",
    "ER-ACE",
    "A-GEM",
    "A-GEM-R",
    "GEM",
    "iCaRL",
    "FDR",
    "DER",
    "DER++",
    "CoCa",
    "OCD-Net",
]


@dataclass(frozen=True)
class NetworkConfig:
    """The network that every method of a comparison shares."""

    name: NetworkName = "resnet18"
    """resnet18, mlp, or convnet (two convolutions with group norm)."""
    width: int = 64
    """Channels of the ResNet's first stage, or of the convnet's first layer."""
    hidden: int = 100
    """Width of the MLP, or of the convnet's linear layer."""
    projection_dim: int = 64
    """Dimensions of the sphere of the contrastive loss."""
    classifier_bias: bool | None = None
    """By default none for the ResNet, as in the authors' code, and one for the others."""
    init: Literal["torch", "xavier"] = "torch"
    """torch's default, or Xavier uniform with zero biases for every linear layer."""


@dataclass(frozen=True)
class LearnerConfig:
    """A method and everything it is told. The defaults are CoCa's on Split CIFAR-10 with 200 images of memory."""

    method: MethodName = "CoCa"
    """How it learns."""
    lr: float = 0.03
    """Learning rate of SGD, constant."""
    weight_decay: float = 0.0
    """Of SGD."""
    memory_size: int = 200
    """Images that are remembered."""
    memory_batch_size: int = 32
    """m: images of one draw from memory."""
    alpha: float = 0.1
    """Weight of distillation: DER, DER++, CoCa, OCD-Net."""
    beta: float = 0.5
    """Weight of the cross-entropy on remembered images: DER++, CoCa, OCD-Net."""
    gamma: float = 0.01
    """CoCa: weight of the ensemble in the target; 0 turns collaborative distillation off."""
    omega: float = 0.1
    """CoCa: share of the outputs that images take over from each other, below 1."""
    diagonal: Diagonal = 0.1
    """CoCa: what is subtracted from an image's similarity to itself; "mask" leaves itself out."""
    affinity_temperature: float = 1.0
    """CoCa: below 1, images listen more to those that are most like them."""
    contrastive_weight: float = 0.3
    """CoCa, OCD-Net: lambda_c, weight of the supervised contrastive loss; 0 turns it off."""
    pretext_weight: float = 0.3
    """CoCa, OCD-Net: lambda_r, weight of naming a view's transform; 0 turns it off."""
    temperature: float = 0.07
    """CoCa, OCD-Net: tau of the contrastive loss."""
    views: ViewKind = "zoom-rotate"
    """CoCa, OCD-Net: 4 ways (zoom-rotate), 16 (scale-rotate, for 64 pixels), or 4 without zoom (rotate, for MNIST)."""
    task_boundaries: bool = False
    """CoCa: the variant that is told where tasks end, of which the authors published code."""
    merge_draws: bool = False
    """CoCa: stream and both draws in one pass, which share their batch statistics; faster, and another method."""
    half_logits: bool = False
    """Keep logits in half precision in a reservoir."""
    gem_margin: float = 0.5
    """GEM: how far past orthogonal the gradient is turned."""
    teacher_momentum: float = 0.999
    """OCD-Net: largest momentum of the averaged teacher."""
    teacher_update_rate: float = 0.2
    """OCD-Net: probability that a step updates the teacher."""

    def __post_init__(self) -> None:
        weights = {
            name: getattr(self, name)
            for name in (
                "lr",
                "weight_decay",
                "alpha",
                "beta",
                "gamma",
                "contrastive_weight",
                "pretext_weight",
            )
        }
        for name, value in weights.items():
            if not 0 <= value < math.inf:
                raise TenfoldError(f"{name} is at least 0 and finite, not {value:g}")
        if self.memory_size < 1 and self.method not in ("SGD", "JOINT"):
            raise TenfoldError(
                f"{self.method} needs a memory of at least 1 image, not {self.memory_size}; raise --memory-size, or "
                "use SGD to learn without one"
            )
        if self.memory_batch_size < 1:
            raise TenfoldError(f"a draw from memory has at least 1 image, not {self.memory_batch_size}")
        if not 0 <= self.omega < 1 or self.gamma > 1:
            raise TenfoldError(
                f"omega is from 0 to below 1 and gamma from 0 to 1, not {self.omega:g} and {self.gamma:g}"
            )
        if min(self.temperature, self.affinity_temperature) <= 0:
            raise TenfoldError("temperatures are above 0")
        if self.diagonal == "mask" and self.memory_batch_size < 2:
            raise TenfoldError('diagonal="mask" needs draws of at least 2 images')
        if not (0 <= self.teacher_update_rate <= 1 and 0 <= self.teacher_momentum <= 1):
            raise TenfoldError("the teacher's momentum and update rate are from 0 to 1")

    @property
    def uses_contrast(self) -> bool:
        return self.contrastive_weight > 0

    @property
    def uses_pretext(self) -> bool:
        return self.pretext_weight > 0

    @property
    def uses_views(self) -> bool:
        """Whether the fourth pass, over the views, is needed at all."""
        return self.uses_contrast or self.uses_pretext


@dataclass(frozen=True)
class StreamConfig:
    """A stream and how it is served. The defaults are Split CIFAR-10 of the paper."""

    name: str = "s-cifar-10"
    """A stream of :data:`tenfold.coca.streams.STREAMS`."""
    batch_size: int = 32
    """B: images that arrive at once."""
    epochs: int = 50
    """Passes over each task before the next one; 1 is a stream in the strict sense."""
    classes_per_task: int | None = None
    """By default the benchmark's."""
    drop_last: bool = False
    """Drop an incomplete batch at the end of a pass, as the authors' code does."""
    validation: bool = False
    """Hold out 10 per cent of the training images and test on those instead of the test set."""
    batches_per_epoch: int | None = None
    """Cut every pass short, to try things."""
    replacement: bool = True
    """MNIST-360: draw a digit's images with replacement inside a chunk, as the reference code does."""
    disjoint: float = 0.5
    """Blurry streams: share of the classes that occur in one phase only."""
    blur: float = 0.1
    """Blurry streams: share of the other classes' images that come outside their phase."""
    seed: int | None = None
    """Of what the benchmark itself draws: permutations, rotations, the order of MNIST-360, blurred phases. By default
    the run's seed."""

    def __post_init__(self) -> None:
        if self.batch_size < 1 or self.epochs < 1 or (self.batches_per_epoch or 1) < 1:
            raise TenfoldError(
                "batches have at least 1 image, and streams at least 1 pass of at least 1 batch"
            )
        if self.classes_per_task is not None and self.classes_per_task < 1:
            raise TenfoldError(f"a task has at least 1 class, not {self.classes_per_task}")
        if not (0 <= self.disjoint <= 1 and 0 <= self.blur < 1):
            raise TenfoldError("disjoint and blur are shares from 0 to 1")


@dataclass(frozen=True)
class TrainConfig:
    """One run: a learner on a stream."""

    learner: LearnerConfig = field(default_factory=LearnerConfig)
    stream: StreamConfig = field(default_factory=StreamConfig)
    network: NetworkConfig = field(default_factory=NetworkConfig)

    def with_stream_seed(self, seed: int) -> TrainConfig:
        """The same, with a seed for what the benchmark draws."""
        return replace(self, stream=replace(self.stream, seed=seed))
