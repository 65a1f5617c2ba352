"""What a suite is made of: detectors with their recipes, their scenes, and the sensors they are judged with."""

from __future__ import annotations

from dataclasses import dataclass, field

from tenfold.cmt.config import AugmentConfig, DataConfig, LossConfig, NetworkConfig, TrainConfig
from tenfold.cmt.procedural_scenes import SceneConfig
from tenfold.cmt.sensor_conditions import CONDITIONS
from tenfold.shared.logging import TenfoldError


@dataclass(frozen=True)
class Method:
    """A detector and how it learns."""

    name: str
    """In records."""
    network: NetworkConfig
    train: TrainConfig
    augment: AugmentConfig
    losses: LossConfig = field(default_factory=LossConfig)
    conditions: tuple[str, ...] = ()
    """Further conditions of the sensors that it is judged under; with all sensors it always is."""

    def __post_init__(self) -> None:
        further = [name for name in CONDITIONS if name != "both"]
        if unknown := [name for name in self.conditions if name not in further]:
            raise TenfoldError(f"{unknown[0]!r} is no further condition; choose from {', '.join(further)}")
        if len(set(self.conditions)) < len(self.conditions):
            raise TenfoldError("give each condition once")
        if self.losses.denoising_groups and not self.network.head.guided_queries:
            raise TenfoldError("noised queries are points: set denoising_groups to 0 where queries are free")


@dataclass(frozen=True)
class Profile:
    """Methods on one data set."""

    description: str
    """One line for the list of profiles."""
    data: DataConfig
    methods: tuple[Method, ...]
    setting: str = "val"
    """In records."""
    scenes: SceneConfig | None = None
    """Scenes to generate, for procedural data."""
    seeds: tuple[int, ...] = (0,)
    """Of first weights, order, augmentation and noise."""
    checkpoint_seconds: float = 60.0
    """Least time between two checkpoints of a run."""

    def __post_init__(self) -> None:
        if (self.scenes is None) == (self.data.dataset == "procedural"):
            raise TenfoldError("procedural scenes, and they alone, are generated")
        names = [method.name for method in self.methods]
        if not names or len(set(names)) < len(names):
            raise TenfoldError("a profile has at least one method, and no two of one name")
