"""The jobs of a suite in their stages, and the record of each: what identifies a run, and where it is."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

from lightning_fabric import Fabric

from tenfold.reft.inference import TOP_K
from tenfold.reft.sources import OwnData, Source
from tenfold.reft.suites import Method, Profile
from tenfold.shared.accelerator import AcceleratorConfig, launch_fabric
from tenfold.shared.logging import TenfoldError
from tenfold.shared.runs import Run, RunKey, config_hash, plain

PAPER = "reft"
MAIN_METRICS = ("segm_nAP", "segm_bAP", "bbox_nAP", "bbox_bAP")
"""What is compared."""
BASE_SETTING = "base classes"
DATASETS = {"coco": "COCO", "lvis": "LVIS", "digits": "composed digits", "own": "own data"}
BEFORE = ", before fine-tuning"
LVIS_TOP_K = 300
MOST_BARS = 6
"""Methods beside each other; more are drawn as a list."""
SUPPORT_SEED = 0
"""Of the support examples with which base classes are judged."""


@dataclass(frozen=True)
class BaseJob:
    """One base network."""

    name: str


@dataclass(frozen=True)
class FewShotJob:
    """One method with some shots and a seed; ``learns`` False judges it before fine-tuning."""

    method: str
    setting: str
    shots: int
    seed: int
    learns: bool = True


@dataclass(frozen=True)
class PhotographsJob:
    """Sampler, evaluation and pooling on bundled photographs."""


@dataclass(frozen=True)
class ComparisonJob:
    """All methods in pictures, and their paired differences to the first of each setting."""


Job = BaseJob | FewShotJob | PhotographsJob | ComparisonJob


@dataclass(frozen=True)
class Suite:
    """A profile, and where and how its runs are done; only the profile and weights decide what comes out."""

    name: str
    profile: Profile
    output: Path
    data_root: Path = Path("data")
    shot_lists: Path | None = None
    """Folder with the published few-shot lists."""
    imagenet_weights: Path | None = None
    """File of the backbone's weights."""
    base_weights: Path | None = None
    """File of a base network that stands for all of the profile's."""
    own: OwnData = field(default_factory=OwnData)
    """Data of the user's."""
    download: bool = False
    force: bool = False
    checkpoint_seconds: float = 15.0
    accelerator: AcceleratorConfig = field(default_factory=AcceleratorConfig)

    @property
    def fabric(self) -> Fabric:
        """The Fabric of this process, launched."""
        return launch_fabric(self.accelerator)

    @property
    def source(self) -> Source:
        """The data, read once in a process."""
        return open_source(
            self.profile.data,
            self.data_root,
            self.output / PAPER,
            self.profile.compose,
            self.shot_lists,
            self.own,
        )

    @property
    def topk(self) -> int:
        """Most instances of an image."""
        return LVIS_TOP_K if self.profile.data.dataset == "lvis" else TOP_K

    def method(self, job: FewShotJob) -> Method:
        """The method of a job."""
        return next(
            method
            for method in self.profile.methods
            if method.name == job.method and method.setting == job.setting
        )

    def run(self, job: Job) -> Run:
        """The record of one job."""
        profile, writes = self.profile, self.fabric.is_global_zero
        dataset = DATASETS[profile.data.dataset]
        shared: dict[str, Any] = {"data": plain(replace(profile.data, workers=0))}
        if profile.compose is not None:  # every set has random numbers of its own, whatever others there are
            shared["compose"] = plain(replace(profile.compose, seeds=(), shots=()))
        if profile.data.dataset == "own":
            shared |= {"annotations": self.own.digest, "novel": list(self.own.novel)}
        if isinstance(job, ComparisonJob):
            key = RunKey(PAPER, self.name, "comparison", 0, dataset, "comparison", "RefT")
            runs = {str(other): self.run(other).config_hash for stage in self.jobs()[:-1] for other in stage}
            return Run(self.output, key, {"runs": runs}, is_writer=writes)
        if isinstance(job, PhotographsJob):
            key = RunKey(PAPER, self.name, "photographs", 0, "COCO photographs", "no training", "annotations")
            return Run(self.output, key, {"photographs": "bundled"}, is_writer=writes)
        if isinstance(job, BaseJob):
            stage = profile.stages[job.name]
            before = "none" if stage.begins_with is None else self.run(BaseJob(stage.begins_with)).config_hash
            config = {
                **shared,
                "network": plain(stage.shape(profile.network)),
                "losses": plain(profile.losses),
                **plain(stage),
                "base_shots": profile.base_shots,
                "seed": profile.base_seed,
                "origin": before,
            }
            if stage.pretrained and self.imagenet_weights is not None:
                config["imagenet_weights"] = file_digest(self.imagenet_weights)
            seed = profile.base_seed
            key = RunKey(PAPER, self.name, f"base-{slug(job.name)}", seed, dataset, BASE_SETTING, job.name)
        else:
            method = self.method(job)
            config = {
                **shared,
                "losses": plain(profile.losses),
                "distill": plain(method.distill) if method.distill else None,
                "setting": job.setting,
                "shots": job.shots,
                "seed": job.seed,
                "shot_lists": None if self.shot_lists is None else folder_digest(self.shot_lists),
                "train": plain(method.finetuning[job.shots]) if job.learns else None,
                "origin": self.origin_of(method),
            }
            name = method.name if job.learns else method.name + BEFORE
            folder = f"{job.setting}-{job.shots}-{slug(name)}"
            key = RunKey(PAPER, self.name, folder, job.seed, dataset, method.title(job.shots), name)
        return Run(self.output, key, config, "update", self.checkpoint_seconds, is_writer=writes)

    def origin_of(self, method: Method) -> str:
        """What identifies the base network of a method."""
        if self.base_weights is not None:
            return file_digest(self.base_weights)
        return self.run(BaseJob(method.base)).config_hash

    def arms(self, method: Method, shots: int, learns: bool = True) -> list[FewShotJob]:
        """A method with all seeds."""
        return [FewShotJob(method.name, method.setting, shots, seed, learns) for seed in self.profile.seeds]

    def jobs(self) -> list[list[Job]]:
        """The stages of the suite, the longest jobs first."""
        profile = self.profile
        stages: list[list[Job]] = [[] for _ in range(1 + max(map(profile.depth_of, profile.stages)))]
        for name in profile.stages:
            stages[profile.depth_of(name)].append(BaseJob(name))
        if profile.data.dataset == "digits":
            stages[0].append(PhotographsJob())
        learning: list[Job] = []
        for learns in (True, False) if profile.judge_before else (True,):
            for method in profile.methods:
                # Before fine-tuning a linear head knows nothing of the shots: the fewest stand for all.
                numbers = sorted(method.finetuning, reverse=True) if learns else [min(method.finetuning)]
                for shots in numbers:
                    learning.extend(self.arms(method, shots, learns))
        if learning:
            stages.append(learning)
        if len(profile.methods) > 1:
            stages.append([ComparisonJob()])
        return stages


def slug(name: str) -> str:
    """A name as part of a directory's."""
    kept = "".join(letter if letter.isalnum() else "-" for letter in name.lower().replace("+", "with"))
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
def folder_digest(folder: Path) -> str:
    """What identifies a folder of lists, by their names and sizes."""
    files = sorted(
        (path.relative_to(folder).as_posix(), path.stat().st_size) for path in folder.rglob("*.json")
    )
    return config_hash({"files": [list(file) for file in files]})


@cache
def open_source(*arguments: Any) -> Source:
    """A :class:`Source`, made once in a process."""
    return Source(*arguments)


def with_seeds(profile: Profile, seeds: tuple[int, ...]) -> Profile:
    """The same with other seeds, whose shots are composed too."""
    compose = profile.compose
    if compose is not None:
        compose = replace(compose, seeds=tuple(sorted({*compose.seeds, *seeds})))
    return replace(profile, seeds=seeds, compose=compose)
