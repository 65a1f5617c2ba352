"""Command line: ``tenfold-coca reproduce | train | evaluate | compare | memory | streams``."""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import tyro
from rich.console import Console
from rich.table import Table

from tenfold.coca.checkpoints import load_official_state_dict
from tenfold.coca.config import LearnerConfig, NetworkConfig, StreamConfig, TrainConfig
from tenfold.coca.experiments import MAIN_METRICS, PAPER, Suite, draw_outcome, finish, reproduce
from tenfold.coca.figures import draw_memory
from tenfold.coca.learner import Learner, launch_fabric
from tenfold.coca.paired import paired_difference
from tenfold.coca.profiles import PROFILES, Profile
from tenfold.coca.streams import STREAMS, make_stream
from tenfold.coca.training import learn_stream, measure_accuracies
from tenfold.shared.accelerator import AcceleratorConfig
from tenfold.shared.comparison import load_reported, print_comparison
from tenfold.shared.logging import TenfoldError, errors_in_one_line, get_logger, set_quiet
from tenfold.shared.runs import Run, RunKey, config_hash, load_checkpoint, plain, read_json

logger = get_logger("coca")

Quiet = Annotated[bool, tyro.conf.arg(aliases=["-q"])]
Accelerator = Annotated[AcceleratorConfig, tyro.conf.arg(name="")]  # --device, not --accelerator.device


@dataclass(frozen=True)
class Reproduce:
    """Run a profile's suite, compare it with printed numbers, and fail if a claim does not hold."""

    profile: str = "quick"
    """Which suite; `--profile list` prints them."""
    seeds: tuple[int, ...] | None = None
    """Seeds instead of the profile's."""
    methods: tuple[str, ...] | None = None
    """Some of the profile's methods, by name."""
    output: Path = Path("runs")
    """Directory of all runs."""
    data_root: Path | None = None
    """Folder with further data; by default $TENFOLD_DATA, else ./data."""
    download: bool = False
    """Fetch what is missing and can be fetched."""
    force: bool = False
    """Repeat runs that are finished."""
    workers: int | None = None
    """Processes that share the runs; by default one for each CPU core, eight at the most, and one on a GPU."""
    accelerator: Accelerator = field(default_factory=AcceleratorConfig)
    checkpoint_seconds: float = 15.0
    """Time between two checkpoints of a run."""
    quiet: Quiet = False
    """Only warnings, errors and the final tables."""

    def run(self) -> int:
        profile = _profile(self.profile)
        if self.seeds is not None:
            if not self.seeds or len(set(self.seeds)) < len(self.seeds):
                raise TenfoldError("give --seeds at least one number, each once")
            further = tuple(replace(group, seeds=self.seeds) for group in profile.further)
            profile = replace(profile, seeds=self.seeds, further=further)
        if self.methods is not None:
            unknown = [method for method in self.methods if method not in profile.methods]
            if unknown or not self.methods:
                raise TenfoldError(f"--methods takes some of {', '.join(profile.methods)}")
            further = tuple(
                replace(group, methods=tuple(name for name in group.methods if name in self.methods))
                for group in profile.further
            )
            profile = replace(profile, methods=self.methods, further=further)
        suite = Suite(
            self.profile,
            profile,
            self.output,
            _data_root(self.data_root),
            self.download,
            self.force,
            self.checkpoint_seconds,
            self.accelerator,
        )
        results = reproduce(suite, self.workers, self.quiet)
        if not suite.fabric.is_global_zero:
            return 0
        verdicts = print_comparison(load_reported("tenfold.coca"), results, self.profile, MAIN_METRICS)
        failed = [verdict.claim.id for verdict in verdicts if verdict.holds is False]
        if failed:
            logger.error("claims that do not hold: %s", ", ".join(failed))
        return 1 if failed else 0


@dataclass(frozen=True)
class Train:
    """Let one learner meet one stream, with every hyperparameter."""

    learner: Annotated[LearnerConfig, tyro.conf.arg(name="")] = field(default_factory=LearnerConfig)
    stream: StreamConfig = field(default_factory=StreamConfig)
    network: NetworkConfig = field(default_factory=NetworkConfig)
    seed: int = 0
    """Seed of weights, order, augmentation and memory."""
    output: Path = Path("runs")
    """Directory of all runs."""
    data_root: Path | None = None
    """Folder with further data; by default $TENFOLD_DATA, else ./data."""
    download: bool = False
    """Fetch what is missing and can be fetched."""
    accelerator: Accelerator = field(default_factory=AcceleratorConfig)
    checkpoint_seconds: float = 15.0
    """Time between two checkpoints."""
    quiet: Quiet = False
    """Only warnings and errors."""

    def run(self) -> int:
        config = TrainConfig(self.learner, self.stream, self.network)
        if self.stream.seed is None:
            config = config.with_stream_seed(self.seed)
        stream = make_stream(config.stream, _data_root(self.data_root), self.download)
        fabric = launch_fabric(self.accelerator)
        record = {**plain(config), "seed": self.seed}
        slug = self.learner.method.lower().replace("++", "pp")
        name = f"{stream.name}-{slug}-{config_hash(record)[:8]}"
        setting = f"memory {self.learner.memory_size} single"
        key = RunKey(PAPER, "single", name, self.seed, stream.name, setting, self.learner.method)
        run = Run(self.output, key, record, "step", self.checkpoint_seconds, fabric.is_global_zero)
        if run.is_finished:
            logger.info("this run is done already: %s", run.directory / "model.pt")
            return 0
        started = time.monotonic()
        with run:
            learned = learn_stream(stream, config, self.seed, fabric, run, self.accelerator.compile)
            path = run.save_artifact(
                "model.pt", {**learned.learner.artifact(), "stream": plain(config.stream)}
            )
            draw_outcome(run, learned, self.learner.method)
            finish(run, learned, stream, started)
        logger.info("learner in %s", path)
        return 0


@dataclass(frozen=True)
class Evaluate:
    """Accuracy of a saved learner, or of weights in the authors' or mammoth's names, on every task of a stream."""

    checkpoint: Path
    """model.pt of a run, a file of Learner.save, or official weights (with --official)."""
    stream: str | None = None
    """Stream to test on; by default the one it learned."""
    official: Literal["resnet18", "mlp"] | None = None
    """The file holds official weights of this network."""
    data_root: Path | None = None
    """Folder with further data; by default $TENFOLD_DATA, else ./data."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Kind of device."""

    def run(self) -> int:
        content = load_checkpoint(self.checkpoint)
        stored = content.get("stream", {})
        name = self.stream or stored.get("name")
        if name is None:
            raise TenfoldError("this checkpoint does not say which stream it learned; name one with --stream")
        config = StreamConfig(name) if name != stored.get("name") else StreamConfig(**stored)
        stream = make_stream(config, _data_root(self.data_root))
        fabric = launch_fabric(AcceleratorConfig(device=self.device))
        if self.official is None:
            learner = Learner.load(self.checkpoint, fabric)
        else:
            weights = content.get("state_dict", content)
            learner = _official_learner(weights, self.official, stream.num_classes, stream.image_shape)
            learner.preprocessing = stream.preprocessing
        if learner.num_classes < stream.num_classes or learner.image_shape != stream.image_shape:
            raise TenfoldError(
                f"this learner knows {learner.num_classes} classes of images {list(learner.image_shape)}; "
                f"{stream.name} has {stream.num_classes} of {list(stream.image_shape)}"
            )
        found = measure_accuracies(learner, stream)
        table = Table(title=f"{stream.name}: accuracy in per cent", title_justify="left")
        table.add_column("task")
        for kind in found:
            table.add_column(kind, justify="right")
        for task, values in enumerate(zip(*found.values(), strict=True)):
            table.add_row(str(task + 1), *(f"{value:.2f}" for value in values))
        table.add_row("mean", *(f"{sum(values) / len(values):.2f}" for values in found.values()))
        Console().print(table)
        return 0


@dataclass(frozen=True)
class Compare:
    """Compare methods of finished runs seed by seed: mean difference, 95 % interval, Wilcoxon's p."""

    runs: Path = Path("runs/coca/quick")
    """Directory of a profile's runs."""
    method: str = "CoCa"
    """Whose gain is measured."""
    metric: str = "class_il"
    """Of which metric."""

    def run(self) -> int:
        values: dict[tuple[str, str], dict[int, float]] = {}
        for path in sorted(self.runs.glob("*/result.json")):
            result = read_json(path)
            if result and result.get("status") == "finished":
                value = result["metrics"].get(self.metric)
                if value is not None:
                    values.setdefault((result["setting"], result["method"]), {})[result["seed"]] = value
        own = {setting: seeds for (setting, method), seeds in values.items() if method == self.method}
        if not own:
            raise TenfoldError(
                f"there is no finished run of {self.method} with the metric {self.metric} in {self.runs}; give --runs "
                "the directory of a profile, such as runs/coca/quick"
            )
        table = Table(title=f"{self.metric} of {self.method} minus others", title_justify="left")
        for column in ("setting", "against"):
            table.add_column(column)
        for column in ("difference", "95 % interval", "p", "wins"):
            table.add_column(column, justify="right")
        for setting, seeds in own.items():
            without_memory = re.sub(r"^memory \d+", "no memory", setting)  # on the same network
            for (other_setting, method), others in values.items():
                if method == self.method or other_setting not in (setting, without_memory):
                    continue
                found = paired_difference(seeds, others)
                table.add_row(
                    setting,
                    method,
                    f"{found.mean:+.2f}",
                    f"{found.low:+.2f} to {found.high:+.2f}",
                    f"{found.p_value:.3f}",
                    f"{found.wins} of {found.seeds}",
                )
        Console(width=None if Console().is_terminal else 120).print(table)
        return 0


@dataclass(frozen=True)
class Memory:
    """What a saved learner remembers: images of each class, their ages, and a picture of them."""

    checkpoint: Path
    """model.pt of a run, or a file of Learner.save."""
    picture: Path | None = None
    """PNG file to draw the memory to."""

    def run(self) -> int:
        learner = Learner.load(self.checkpoint, launch_fabric(AcceleratorConfig(device="cpu")))
        report = learner.memory_report()
        print(f"{report['images']} images after {learner.steps} steps of {learner.config.method}")
        for label, count in enumerate(report["per_class"]):
            print(f"  class {label:3}  {count:4}  {'#' * count if report['images'] <= 200 else ''}".rstrip())
        if report["ages"]:
            ages = torch.tensor(report["ages"], dtype=torch.float32)
            print(f"age in steps: {ages.min():.0f} to {ages.max():.0f}, median {ages.median():.0f}")
        if self.picture is not None:
            if learner.memory is None or not report["images"]:
                raise TenfoldError("this learner remembers nothing, so there is nothing to draw")
            draw_memory(learner.memory["images"], learner.memory["labels"], report["ages"], self.picture)
        return 0


@dataclass(frozen=True)
class Streams:
    """Print every stream and what it is made of, where its data is here."""

    data_root: Path | None = None
    """Folder with further data; by default $TENFOLD_DATA, else ./data."""

    def run(self) -> int:
        for name in STREAMS:
            try:
                stream = make_stream(StreamConfig(name), _data_root(self.data_root))
            except TenfoldError as error:
                print(f"{name:18} not here: {error}")
                continue
            sizes = [len(segment.train) for segment in stream.segments]
            images = f"{sum(sizes)} training images in {len(sizes)} parts"
            told = "boundaries known" if stream.has_boundaries else "no boundaries"
            print(f"{name:18} {stream.scenario:8} {stream.num_classes:3} classes, {images}, {told}")
        return 0


Command = (
    Annotated[Reproduce, tyro.conf.subcommand("reproduce")]
    | Annotated[Train, tyro.conf.subcommand("train")]
    | Annotated[Evaluate, tyro.conf.subcommand("evaluate")]
    | Annotated[Compare, tyro.conf.subcommand("compare")]
    | Annotated[Memory, tyro.conf.subcommand("memory")]
    | Annotated[Streams, tyro.conf.subcommand("streams")]
)


def main(arguments: list[str] | None = None) -> None:
    """Entry point of ``tenfold-coca``; ends the process with the command's exit status."""
    with errors_in_one_line():
        command = tyro.cli(
            Command,
            prog="tenfold-coca",
            description="General continual learning by complementary calibration (Ji et al., IEEE TIP 2023).",
            args=arguments,
        )
        set_quiet(getattr(command, "quiet", False))
        sys.exit(command.run())


def _profile(name: str) -> Profile:
    if name == "list":
        for known, profile in PROFILES.items():
            print(f"{known:20} {profile.description}")
        sys.exit(0)
    if name not in PROFILES:
        raise TenfoldError(f"unknown profile {name!r}; choose one of {', '.join(PROFILES)}")
    return PROFILES[name]


def _official_learner(
    weights: Mapping[str, Any], name: str, num_classes: int, image_shape: tuple[int, int, int]
) -> Learner:
    """A learner around official weights, its network built to match them."""
    conv, fc1 = weights.get("conv1.weight"), weights.get("fc1.weight")
    classifier_bias = "classifier.bias" in weights or "linear.bias" in weights
    network = NetworkConfig(
        "mlp" if name == "mlp" else "resnet18",
        width=64 if conv is None else len(conv),
        hidden=100 if fc1 is None else len(fc1),
        projection_dim=_last_size(weights, "inv_head.", 64),
        classifier_bias=classifier_bias,
    )
    pretext = _last_size(weights, "eq_head.", 4)
    config = LearnerConfig("SGD", memory_size=0, views="scale-rotate" if pretext == 16 else "zoom-rotate")
    learner = Learner(config, num_classes, image_shape, network=network)
    load_official_state_dict(learner.network, weights)
    return learner


def _last_size(weights: Mapping[str, Any], prefix: str, otherwise: int) -> int:
    """Outputs of the last layer of a head."""
    sizes = [len(value) for key, value in weights.items() if key.startswith(prefix) and value.ndim > 0]
    return sizes[-1] if sizes else otherwise


def _data_root(given: Path | None) -> Path:
    if given is not None and not given.is_dir():
        raise TenfoldError(f"there is no data root {given}; create it or leave out --data-root")
    return given or Path(os.environ.get("TENFOLD_DATA", "data"))
