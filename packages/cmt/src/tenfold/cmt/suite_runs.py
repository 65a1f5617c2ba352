"""The jobs of a suite in their stages, and the record of each: what identifies a run, and where it is."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

from lightning_fabric import Fabric

from tenfold.cmt.nuscenes_index import NuScenesIndex, load_index
from tenfold.cmt.procedural_scenes import generate_scenes
from tenfold.cmt.sensor_conditions import CONDITIONS
from tenfold.cmt.suites import Method, Profile
from tenfold.shared.accelerator import AcceleratorConfig, make_fabric
from tenfold.shared.logging import TenfoldError
from tenfold.shared.runs import Run, RunKey, plain

PAPER = "cmt"
MAIN_METRICS = ("mAP", "NDS", "share of mAP", "share of NDS")
"""What is compared."""
DATASETS = {"nuscenes": "nuScenes", "procedural": "procedural scenes"}
WORSE = "worse single sensor"
"""What a fusion network finds with one sensor alone, whichever is worse."""


@dataclass(frozen=True)
class TrainJob:
    """Train a method with one seed, and judge it with all its sensors."""

    method: str
    seed: int


@dataclass(frozen=True)
class ConditionJob:
    """Judge a trained method under a condition of the sensors, or name the worse single sensor."""

    method: str
    seed: int
    condition: str


@dataclass(frozen=True)
class ComparisonJob:
    """All methods and conditions in pictures."""


Job = TrainJob | ConditionJob | ComparisonJob


@dataclass(frozen=True)
class Suite:
    """A profile, and where and how its runs are done; only the profile and weights decide what comes out."""

    name: str
    profile: Profile
    output: Path
    data_root: Path = Path("data")
    image_weights: Path | None = None
    """File with the image backbone's first weights."""
    force: bool = False
    checkpoint_seconds: float = 60.0
    accelerator: AcceleratorConfig = field(default_factory=AcceleratorConfig)

    @property
    def fabric(self) -> Fabric:
        """The Fabric of this process, launched."""
        return launch_fabric(self.accelerator)

    @property
    def root(self) -> Path:
        """Folder of the data set; procedural scenes are generated where they are missing."""
        if self.profile.scenes is not None:
            return generate_scenes(self.profile.scenes, self.output / PAPER / "scenes")
        return self.data_root / "nuscenes"

    @property
    def train_index(self) -> NuScenesIndex:
        """Keyframes to learn."""
        data = self.profile.data
        return read_index(
            self.root, data.version, data.train_split, self.output / PAPER / "indices", data.sweeps
        )

    @property
    def test_index(self) -> NuScenesIndex:
        """Keyframes to be judged on."""
        data = self.profile.data
        return read_index(
            self.root, data.version, data.test_split, self.output / PAPER / "indices", data.sweeps
        )

    def method(self, name: str) -> Method:
        """A method by name."""
        return next(method for method in self.profile.methods if method.name == name)

    def run(self, job: Job) -> Run:
        """The record of one job."""
        profile, writes = self.profile, self.fabric.is_global_zero
        dataset = DATASETS[profile.data.dataset]
        if isinstance(job, ComparisonJob):
            key = RunKey(PAPER, self.name, "comparison", 0, dataset, f"{profile.setting}, comparison", "CMT")
            stages = self.jobs()
            runs = {str(other): self.run(other).config_hash for stage in stages[:-1] for other in stage}
            return Run(self.output, key, {"runs": runs}, is_writer=writes)
        method = self.method(job.method)
        folder, name = slug(job.method), job.method
        if isinstance(job, ConditionJob):
            trained = self.run(TrainJob(job.method, job.seed)).config_hash
            folder, name = f"{folder}-{slug(job.condition)}", f"{name}, {condition_title(job.condition)}"
            config: dict[str, Any] = {"condition": job.condition, "trained": trained, "seed": job.seed}
        else:
            config = {
                "data": plain(replace(profile.data, workers=0, in_memory=False)),
                "scenes": plain(profile.scenes) if profile.scenes is not None else None,
                "method": plain(replace(method, name="", conditions=())),
                "image_weights": None if self.image_weights is None else file_digest(self.image_weights),
                "seed": job.seed,
            }
        key = RunKey(PAPER, self.name, folder, job.seed, dataset, profile.setting, name)
        return Run(self.output, key, config, "update", self.checkpoint_seconds, is_writer=writes)

    def jobs(self) -> list[list[Job]]:
        """The stages of the suite, the longest jobs first."""
        profile = self.profile
        pairs = [(method, seed) for seed in profile.seeds for method in profile.methods]
        stages: list[list[Job]] = [[TrainJob(method.name, seed) for method, seed in pairs]]
        judged: list[Job] = [
            ConditionJob(method.name, seed, condition)
            for method, seed in pairs
            for condition in method.conditions
        ]
        worse: list[Job] = [
            ConditionJob(method.name, seed, WORSE)
            for method, seed in pairs
            if {"no-lidar", "no-cameras"} <= set(method.conditions)
        ]
        comparison: list[Job] = [ComparisonJob()]
        return [stage for stage in (*stages, judged, worse, comparison) if stage]


def condition_title(name: str) -> str:
    """A condition in records."""
    if name == WORSE:
        return WORSE
    condition = CONDITIONS[name]
    if condition.missing_cameras:
        return f"no {', '.join(condition.missing_cameras)}"
    if condition.beams is not None:
        return f"{condition.beams} beam{'s' if condition.beams > 1 else ''}"
    titles = {
        "both": "both sensors",
        "no-lidar": "no LiDAR",
        "no-cameras": "no cameras",
        "neither": "neither sensor",
    }
    return titles[name]


def slug(name: str) -> str:
    """A name as part of a directory's."""
    kept = "".join(letter if letter.isalnum() else "-" for letter in name.lower())
    return "-".join(part for part in kept.split("-") if part)


@cache
def file_digest(path: Path) -> str:
    """What identifies a file of weights.

    Raises:
        TenfoldError: there is none.
    """
    if not path.is_file():
        raise TenfoldError(f"no weights at {path}; give the path of an existing file")
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@cache
def read_index(root: Path, version: str, split: str, folder: Path, sweeps: int) -> NuScenesIndex:
    """An index of keyframes, read once in a process."""
    return load_index(root, version, split, folder, sweeps)


@cache
def launch_fabric(config: AcceleratorConfig) -> Fabric:
    """A Fabric, launched once in a process."""
    fabric = make_fabric(config)
    fabric.launch()
    return fabric
