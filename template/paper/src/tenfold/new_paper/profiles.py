"""The experiment suites, as data."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from tenfold.new_paper.config import TrainingConfig

Method = Literal["Teacher", "Student", "KD"]


@dataclass(frozen=True)
class Profile:
    """An experiment suite: methods × seeds."""

    description: str
    """One line for the list of profiles."""
    num_images: int
    """Labelled images that the students see, drawn anew for each seed."""
    teacher: TrainingConfig
    student: TrainingConfig
    methods: tuple[Method, ...] = ("Teacher", "Student", "KD")
    """In this order for each seed: KD needs the teacher of its seed."""
    seeds: tuple[int, ...] = (0, 1, 2)


_FEW_IMAGES = Profile(
    description="100 labelled images for the students, three seeds; half a minute on one core",
    num_images=100,
    teacher=TrainingConfig(hidden_dim=256, dropout=0.5, epochs=40, batch_size=100),
    student=TrainingConfig(),
)

PROFILES: dict[str, Profile] = {
    "smoke": replace(
        _FEW_IMAGES,
        description="seconds: every step of the suite, far too short to learn from",
        num_images=20,
        teacher=TrainingConfig(hidden_dim=16, dropout=0.5, epochs=2, batch_size=100),
        student=TrainingConfig(hidden_dim=8, epochs=2, batch_size=10),
        seeds=(0, 1),
    ),
    "quick": _FEW_IMAGES,
    "digits-all": replace(
        _FEW_IMAGES,
        description="all 1000 training images for the students, ten seeds",
        num_images=1000,
        seeds=tuple(range(10)),
    ),
}
