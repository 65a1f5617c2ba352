"""What a suite is made of: base networks, and the methods that learn new classes from few shots."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

from tenfold.reft.composed_digits import ComposeConfig
from tenfold.reft.config import (
    DataConfig,
    DistillConfig,
    LossConfig,
    NetworkConfig,
    ReferenceConfig,
    Setting,
    TrainConfig,
)
from tenfold.shared.logging import TenfoldError

TITLES: dict[Setting, str] = {"fsis": "FSIS", "gfsis": "gFSIS", "ifsis": "iFSIS"}
OFF = ReferenceConfig("off", query="off")
"""Mask2Former alone."""


@dataclass(frozen=True)
class BaseStage:
    """A network that learns the base classes."""

    train: TrainConfig
    """How it learns."""
    references: ReferenceConfig = field(default_factory=ReferenceConfig)
    """Which it has."""
    begins_with: str | None = None
    """Another stage of the profile whose weights it begins with; references that this one lacks begin at zero."""
    classifier: Literal["linear", "cosine"] = "linear"
    """Its head."""
    pretrained: bool = False
    """Without a stage before: begin with ImageNet's weights in the backbone, else at random."""

    def shape(self, network: NetworkConfig) -> NetworkConfig:
        """Its network."""
        return replace(network, classifier=self.classifier)


@dataclass(frozen=True)
class Method:
    """How new classes are learned from few shots."""

    name: str
    """In records."""
    base: str
    """Base stage that it begins with."""
    setting: Setting
    """FSIS, gFSIS or iFSIS."""
    finetuning: dict[int, TrainConfig]
    """How it learns, by the number of shots."""
    distill: DistillConfig | None = None
    """Distillation of the base model."""

    def title(self, shots: int) -> str:
        """Its setting in records."""
        return f"{TITLES[self.setting]}, {shots} shot{'s' if shots > 1 else ''}"


@dataclass(frozen=True)
class Profile:
    """Base networks and few-shot methods on one data set."""

    description: str
    """One line for the list of profiles."""
    data: DataConfig
    """Images and what is done to them."""
    network: NetworkConfig
    """Shape of all networks; the head is the stage's."""
    losses: LossConfig
    """Weights and points of the losses."""
    stages: dict[str, BaseStage]
    """By name; each after those it begins with."""
    methods: tuple[Method, ...]
    base_seed: int = 0
    """Of the base networks."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Of the shots, the new rows and the fine-tuning; base networks are trained once."""
    compose: ComposeConfig | None = None
    """Images to compose, for digits."""
    base_shots: int = 10
    """Support examples of each base class where base classes are judged, and in the cache of iFSIS."""
    judge_before: bool = True
    """Judge every method before fine-tuning too: what is found without having learned the new classes."""
    checkpoint_seconds: float = 15.0
    """Least time between two checkpoints of a run."""

    def __post_init__(self) -> None:
        known: set[str] = set()
        for name, stage in self.stages.items():
            if stage.begins_with is not None and stage.begins_with not in known:
                raise TenfoldError(f"{name} begins with {stage.begins_with}, which is no stage before it")
            known.add(name)
        for method in self.methods:
            if method.base not in known:
                raise TenfoldError(
                    f"{method.name} begins with {method.base}, which is no stage of this profile"
                )
        if (self.compose is None) == (self.data.dataset == "digits"):
            raise TenfoldError("digits, and they alone, are composed")

    def depth_of(self, name: str) -> int:
        """How many stages come before one."""
        before = self.stages[name].begins_with
        return 0 if before is None else 1 + self.depth_of(before)

    def needed(self, methods: tuple[Method, ...]) -> Profile:
        """The same with some of its methods and the stages that they need."""
        names: set[str] = set()
        waiting: list[str | None] = [method.base for method in methods]
        while waiting:
            name = waiting.pop()
            if name is not None and name not in names:
                names.add(name)
                waiting.append(self.stages[name].begins_with)
        kept = {name: stage for name, stage in self.stages.items() if name in names}
        return replace(self, stages=kept, methods=methods)
