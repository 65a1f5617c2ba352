"""Command line: ``tenfold-cmt reproduce | prepare | train | evaluate | robustness | detect | ...``."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field, replace
from pathlib import Path

import tyro

from tenfold.cmt.config import AugmentConfig, DataConfig, LossConfig, NetworkConfig, TrainConfig
from tenfold.cmt.evaluation_commands import SINGLE, Evaluate, Robustness, print_scores
from tenfold.cmt.experiments import check_collected, collect_data, do, prepare_data, reproduce
from tenfold.cmt.file_commands import (
    Accelerator,
    Convert,
    Detect,
    GenerateScenes,
    Quiet,
    WriteInfos,
    data_root,
)
from tenfold.cmt.procedural_scenes import SceneConfig
from tenfold.cmt.profiles import PROFILES
from tenfold.cmt.suite_runs import MAIN_METRICS, Suite, TrainJob
from tenfold.cmt.suites import Method, Profile
from tenfold.shared.accelerator import AcceleratorConfig
from tenfold.shared.comparison import load_reported, print_comparison
from tenfold.shared.logging import TenfoldError, errors_in_one_line, get_logger, set_quiet

logger = get_logger("cmt")


@dataclass(frozen=True)
class Reproduce:
    """Run a profile's suite, compare it with printed numbers, and fail if a claim does not hold."""

    profile: str = "quick"
    """Which suite; `--profile list` prints them."""
    seeds: tuple[int, ...] | None = None
    """Seeds instead of the profile's."""
    methods: tuple[str, ...] | None = None
    """Some of the profile's methods, by name."""
    conditions: tuple[str, ...] | None = None
    """Conditions of the sensors instead of the methods'."""
    accumulate: int = 1
    """Parts that every batch is divided into, one after another, where memory is short."""
    output: Path = Path("runs")
    """Directory of all runs, of generated scenes, indices and objects to paste."""
    data_root: Path | None = None
    """Folder with data sets, nuScenes in `nuscenes`; by default $TENFOLD_DATA, else ./data."""
    image_weights: Path | None = None
    """File with the image backbone's first weights."""
    force: bool = False
    """Repeat runs that are finished."""
    workers: int | None = None
    """Processes that share the runs; by default one for each CPU core, eight at the most, and one on a GPU."""
    accelerator: Accelerator = field(default_factory=AcceleratorConfig)
    checkpoint_seconds: float | None = None
    """Time between two checkpoints of a run, by default the profile's."""
    quiet: Quiet = False
    """Only warnings, errors and the final tables."""

    def run(self) -> int:
        profile = chosen(find_profile(self.profile), self.methods, self.conditions, self.accumulate)
        if self.seeds is not None:
            if not self.seeds or len(set(self.seeds)) < len(self.seeds):
                raise TenfoldError("give --seeds at least one number, each once")
            profile = replace(profile, seeds=self.seeds)
        suite = Suite(
            self.profile,
            profile,
            self.output,
            data_root(self.data_root),
            self.image_weights,
            force=self.force,
            checkpoint_seconds=(
                profile.checkpoint_seconds if self.checkpoint_seconds is None else self.checkpoint_seconds
            ),
            accelerator=self.accelerator,
        )
        results = reproduce(suite, self.workers, self.quiet)
        if not suite.fabric.is_global_zero:
            return 0
        verdicts = print_comparison(load_reported("tenfold.cmt"), results, self.profile, MAIN_METRICS)
        failed = [verdict.claim.id for verdict in verdicts if verdict.holds is False]
        if failed:
            logger.error("claims that do not hold: %s", ", ".join(failed))
        return 1 if failed else 0


def find_profile(name: str) -> Profile:
    """A profile by its name; ``list`` prints all and ends."""
    if name == "list":
        for known, profile in PROFILES.items():
            print(f"{known:36} {profile.description}")
        sys.exit(0)
    if name not in PROFILES:
        raise TenfoldError(f"unknown profile {name!r}; choose one of {', '.join(PROFILES)}")
    return PROFILES[name]


def chosen(
    profile: Profile, names: tuple[str, ...] | None, conditions: tuple[str, ...] | None, accumulate: int
) -> Profile:
    """A profile with some of its methods and conditions, and batches in parts."""
    methods = [method for method in profile.methods if names is None or method.name in names]
    if not methods or (names is not None and len(methods) < len(set(names))):
        known = ", ".join(repr(method.name) for method in profile.methods)
        raise TenfoldError(f"--methods are some of the profile's: {known}")
    if accumulate < 1:
        raise TenfoldError(f"--accumulate is at least 1, not {accumulate}")
    if conditions is not None:
        methods = [replace(method, conditions=conditions) for method in methods]
    methods = [
        replace(method, train=replace(method.train, accumulate=accumulate)) if accumulate > 1 else method
        for method in methods
    ]
    return replace(profile, methods=tuple(methods))


@dataclass(frozen=True)
class Prepare:
    """Read a profile's tables, generate its scenes and collect the objects it pastes, before many processes start."""

    profile: str
    """Which suite."""
    output: Path = Path("runs")
    """Directory of all runs, of generated scenes, indices and objects to paste."""
    data_root: Path | None = None
    """Folder with data sets, nuScenes in `nuscenes`; by default $TENFOLD_DATA, else ./data."""
    quiet: Quiet = False
    """Only warnings and errors."""

    def run(self) -> int:
        device = AcceleratorConfig(device="cpu")
        suite = Suite(
            self.profile,
            find_profile(self.profile),
            self.output,
            data_root(self.data_root),
            accelerator=device,
        )
        collect_data(suite)
        logger.info(
            "%d keyframes to learn, %d to be judged on", len(suite.train_index), len(suite.test_index)
        )
        return 0


@dataclass(frozen=True)
class Train:
    """Train one network, with every hyperparameter, and judge it with all its sensors."""

    network: NetworkConfig = field(default_factory=NetworkConfig)
    losses: LossConfig = field(default_factory=LossConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    data: DataConfig = field(default_factory=DataConfig)
    scenes: SceneConfig = field(default_factory=SceneConfig)
    """Of procedural data; version and splits are theirs, and classes are not balanced."""
    train: TrainConfig = field(default_factory=TrainConfig)
    seed: int = 0
    """Seed of first weights, order, augmentation and noise."""
    output: Path = Path("runs")
    """Directory of all runs."""
    data_root: Path | None = None
    """Folder with data sets, nuScenes in `nuscenes`; by default $TENFOLD_DATA, else ./data."""
    image_weights: Path | None = None
    """File with the image backbone's first weights."""
    accelerator: Accelerator = field(default_factory=AcceleratorConfig)
    checkpoint_seconds: float = 60.0
    """Time between two checkpoints."""
    quiet: Quiet = False
    """Only warnings and errors."""

    def run(self) -> int:
        data, scenes = self.data, None
        if data.dataset == "procedural":
            scenes = self.scenes
            data = replace(
                data,
                version=scenes.version,
                train_split=scenes.train_split,
                test_split=scenes.test_split,
                class_balanced=False,
            )

        def suite_of(name: str) -> Suite:
            method = Method(name, self.network, self.train, self.augment, self.losses)
            return Suite(
                SINGLE,
                Profile("one run", data, (method,), "one run", scenes, (self.seed,)),
                self.output,
                data_root(self.data_root),
                self.image_weights,
                checkpoint_seconds=self.checkpoint_seconds,
                accelerator=self.accelerator,
            )

        # Other settings are another run, in another folder.
        known = {"fusion": "CMT", "lidar": "CMT-L", "camera": "CMT-C"}[self.network.modality]
        name = f"{known} {suite_of(known).run(TrainJob(known, self.seed)).config_hash[:8]}"
        suite, job = suite_of(name), TrainJob(name, self.seed)
        run = suite.run(job)
        if suite.fabric.world_size > 1:
            check_collected(suite)
        if suite.fabric.is_global_zero:
            prepare_data(suite)
        suite.fabric.barrier()
        if not run.is_finished:
            do(suite, job)
        if suite.fabric.is_global_zero:
            print_scores({"all sensors": (suite.run(job).result or {"metrics": {}})["metrics"]}, name)
            logger.info("network in %s", run.directory / "model.pt")
        return 0


Commands = (
    Reproduce | Prepare | Train | Evaluate | Robustness | Detect | GenerateScenes | WriteInfos | Convert
)


def main(arguments: list[str] | None = None) -> None:
    """Entry point of ``tenfold-cmt``; ends the process with the command's exit status."""
    with errors_in_one_line():
        command = tyro.cli(
            Commands,
            prog="tenfold-cmt",
            description="3-D object detection with a cross-modal transformer (Yan et al., ICCV 2023).",
            args=arguments,
        )
        set_quiet(getattr(command, "quiet", False))
        sys.exit(command.run())
