"""What a suite is made of: pre-trained networks, and the classifiers that they become."""

from __future__ import annotations

from dataclasses import dataclass, replace

from tenfold.shared.logging import TenfoldError
from tenfold.tinymim.config import DataConfig, FinetuneConfig, NetworkConfig, PretrainConfig
from tenfold.tinymim.segmentation_training import SegmentationConfig
from tenfold.tinymim.targets import TargetConfig
from tenfold.tinymim.teachers import HeadPolicy


@dataclass(frozen=True)
class Pretraining:
    """A network that is pre-trained without labels."""

    network: NetworkConfig
    """Its shape."""
    target: TargetConfig
    """What it imitates."""
    train: PretrainConfig
    """How it learns."""
    teacher: str | None = None
    """Another network of the profile, or one with weights from a file (a name of ours, or timm/...); none for masked
    autoencoding."""
    last_heads: int | None = None
    """Of its last block when it imitates relations; by default as many as its teacher's target block was trained with.
    For other targets all its blocks have as many."""
    head_policy: HeadPolicy = "student"
    """Whether the teacher's target block is read with the student's heads, or with those that it was trained with."""
    teacher_image_size: int | None = None
    """Side to which images are resized for a teacher from a file; by default they stay."""
    once: bool = False
    """With the first seed alone; all seeds share it."""


@dataclass(frozen=True)
class Finetuning:
    """A classifier that begins with a pre-trained network, or from scratch."""

    train: FinetuneConfig
    """How it learns."""
    pretrained: str | None = None
    """A pre-trained network of the profile; none is from scratch."""
    network: NetworkConfig | None = None
    """Its shape, where it is not the pre-trained network's; needed from scratch."""


@dataclass(frozen=True)
class Profile:
    """Pre-trained networks and the classifiers that they become."""

    description: str
    """One line for the list of profiles."""
    data: DataConfig
    pretrainings: dict[str, Pretraining]
    finetunings: dict[str, Finetuning]
    """By method; the first is compared with all others."""
    setting: str
    """Of its records."""
    seeds: tuple[int, ...] = (0, 1, 2)
    checkpoint_seconds: float = 15.0
    """Least time between two checkpoints of a run."""

    def __post_init__(self) -> None:
        for name, method in self.finetunings.items():
            if method.pretrained is not None and method.pretrained not in self.pretrainings:
                raise TenfoldError(
                    f"{name} begins with {method.pretrained}, which this profile does not pre-train"
                )

    def depth_of(self, name: str) -> int:
        """How many teachers of the profile come before a pre-trained network."""
        teacher = self.pretrainings[name].teacher
        return 0 if teacher not in self.pretrainings else 1 + self.depth_of(str(teacher))

    def accumulating(self, parts: int) -> Profile:
        """The same with every batch divided into parts, one after another."""
        return replace(
            self,
            pretrainings={
                name: replace(settings, train=replace(settings.train, accumulate=parts))
                for name, settings in self.pretrainings.items()
            },
            finetunings={
                name: replace(method, train=replace(method.train, accumulate=parts))
                for name, method in self.finetunings.items()
            },
        )

    def needed(self, methods: tuple[str, ...]) -> Profile:
        """The same with some of its methods and what they need."""
        finetunings = {name: self.finetunings[name] for name in methods}
        names: set[str] = set()
        waiting = [method.pretrained for method in finetunings.values()]
        while waiting:
            name = waiting.pop()
            if name in self.pretrainings and name not in names:
                names.add(name)
                waiting.append(self.pretrainings[name].teacher)
        kept = {name: value for name, value in self.pretrainings.items() if name in names}
        return replace(self, finetunings=finetunings, pretrainings=kept)


@dataclass(frozen=True)
class SegmentationProfile:
    """A segmenter on one of the networks."""

    description: str
    """One line for the list of profiles."""
    base: SegmentationConfig
    method: str
    """Of its record."""
    setting: str
    """Of its record."""
    seeds: tuple[int, ...] = (0,)
    checkpoint_seconds: float = 300.0
    """Least time between two checkpoints of a run."""


RELATION = TargetConfig()
FEATURE = TargetConfig("feature")
CLS = TargetConfig("cls")
FEATURES = {
    "output": FEATURE,
    "FFN": TargetConfig("feature", feature="ffn"),
    "FFN with residual": TargetConfig("feature", feature="ffn_residual"),
    "attention": TargetConfig("feature", feature="attention"),
    "attention with residual": TargetConfig("feature", feature="attention_residual"),
    "Q, K, V": TargetConfig("feature", feature="qkv"),
}
RELATIONS = {
    "QK+VV": RELATION,
    "QK+VV, no softmax": TargetConfig(softmax=False),
    "QQ+KK+VV": TargetConfig(pairs=("qq", "kk", "vv")),
    "QQ+KK+VV, no softmax": TargetConfig(pairs=("qq", "kk", "vv"), softmax=False),
}
