"""Command line: ``tenfold-doorping reproduce | distill | train | evaluate | defend | audit | convert``."""

from __future__ import annotations

import os
import sys
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import tyro
from rich.console import Console
from rich.table import Table
from torch import Tensor

from tenfold.doorping.attacks import AttackConfig, Poison
from tenfold.doorping.audit import AuditConfig, audit
from tenfold.doorping.audit_figures import draw_audit
from tenfold.doorping.config import DefencesConfig, NetworkConfig, RunConfig
from tenfold.doorping.defences.examination import defenders_images, examine
from tenfold.doorping.evaluation import Ensemble, VictimConfig
from tenfold.doorping.experiments import (
    MAIN_METRICS,
    PAPER,
    Suite,
    finish,
    reproduce,
)
from tenfold.doorping.image_sets import DESCRIPTIONS, ImageSet, load_image_set
from tenfold.doorping.networks import load_official_state_dict, seeded
from tenfold.doorping.official_artifacts import DistilledSet, load_distilled, save_distilled, save_official
from tenfold.doorping.profiles import PROFILES, Profile
from tenfold.doorping.training import distil, judge, load_data, victims_of
from tenfold.shared.accelerator import AcceleratorConfig, launch_fabric
from tenfold.shared.comparison import load_reported, print_comparison
from tenfold.shared.logging import TenfoldError, errors_in_one_line, get_logger, set_quiet
from tenfold.shared.runs import Run, RunKey, config_hash, plain, save_atomically, write_json

logger = get_logger("doorping")

Quiet = Annotated[bool, tyro.conf.arg(aliases=["-q"])]
Accelerator = Annotated[AcceleratorConfig, tyro.conf.arg(name="")]  # --device, not --accelerator.device
PositionalFile = Annotated[Path, tyro.conf.Positional]


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
    checkpoint_seconds: float | None = None
    """Time between two checkpoints of a run, by default the profile's."""
    quiet: Quiet = False
    """Only warnings, errors and the final tables."""

    def run(self) -> int:
        profile = _profile(self.profile)
        if self.seeds is not None:
            if not self.seeds or len(set(self.seeds)) < len(self.seeds):
                raise TenfoldError("give --seeds at least one number, each once")
            profile = replace(profile, seeds=self.seeds)
        if self.methods is not None:
            unknown = [method for method in self.methods if method not in profile.methods]
            if unknown or not self.methods:
                raise TenfoldError(f"--methods takes some of {', '.join(profile.methods)}")
            profile = profile.only(self.methods)
        suite = Suite(
            self.profile,
            profile,
            self.output,
            _data_root(self.data_root),
            self.download,
            self.force,
            profile.checkpoint_seconds if self.checkpoint_seconds is None else self.checkpoint_seconds,
            self.accelerator,
        )
        results = reproduce(suite, self.workers, self.quiet)
        if not suite.fabric.is_global_zero:
            return 0
        verdicts = print_comparison(load_reported("tenfold.doorping"), results, self.profile, MAIN_METRICS)
        failed = [verdict.claim.id for verdict in verdicts if verdict.holds is False]
        if failed:
            logger.error("claims that do not hold: %s", ", ".join(failed))
        return 1 if failed else 0


@dataclass(frozen=True)
class Distill:
    """Poison and distil one data set, with every hyperparameter, and judge it by victims."""

    config: Annotated[RunConfig, tyro.conf.arg(name="")] = field(default_factory=RunConfig)
    seed: int = 0
    """Seed of everything random."""
    output: Path = Path("runs")
    """Directory of all runs."""
    data_root: Path | None = None
    """Folder with further data; by default $TENFOLD_DATA, else ./data."""
    download: bool = False
    """Fetch what is missing and can be fetched."""
    accelerator: Accelerator = field(default_factory=AcceleratorConfig)
    checkpoint_seconds: float = 60.0
    """Time between two checkpoints; they are written between iterations."""
    quiet: Quiet = False
    """Only warnings and errors."""

    def run(self) -> int:
        config = self.config
        if config.as_strong_as is not None:
            raise TenfoldError(
                "--as-strong-as is for suites, which know other runs; give --attack.bound the strength"
            )
        data = load_data(config, _data_root(self.data_root), self.download, self.seed)
        fabric = launch_fabric(self.accelerator)
        record = {**plain(config), "seed": self.seed}
        name = f"{config.dataset}-{config.attack.kind}-{config_hash(record)[:8]}"
        key = RunKey(PAPER, "single", name, self.seed, config.dataset, "single", config.attack.kind)
        run = Run(self.output, key, record, "iteration", self.checkpoint_seconds, fabric.is_global_zero)
        if run.is_finished:
            logger.info("this run is done already: %s", run.directory)
            return 0
        with run:
            started = time.monotonic()
            outcome = distil(config, self.seed, fabric, run, data)
            if fabric.is_global_zero:
                finish(run, outcome, config, time.monotonic() - started)
        logger.info("everything is in %s", run.directory)
        return 0


@dataclass(frozen=True)
class Source:
    """A distilled set that is not of this package, and what its file does not say."""

    dataset: str = ""
    """Name of the real data set; files of `distill` say it themselves."""
    trigger: Path | None = None
    """The authors' *_trigger.pth."""
    target: int | None = None
    """Class of the trigger."""
    network: NetworkConfig | None = None
    """Network of the victims; by default the one that the set was distilled with, else the paper's ConvNet."""

    def load(self, path: Path) -> DistilledSet:
        """The set in a file."""
        known: dict[str, Any] = {}
        if self.dataset and self.dataset not in DESCRIPTIONS:  # what needs no files to be known
            data = load_image_set(self.dataset)
            known = {"classes": data.classes, "mean": data.mean, "std": data.std}
        return load_distilled(path, dataset=self.dataset, trigger=self.trigger, target=self.target, **known)

    def victims(self, distilled: DistilledSet) -> NetworkConfig:
        """The network that victims train."""
        if self.network is not None:
            return self.network
        known = {
            name: distilled.network[name] for name in plain(NetworkConfig()) if name in distilled.network
        }
        return NetworkConfig(**known)


def _real_data(distilled: DistilledSet, root: Path, download: bool) -> ImageSet:
    """The real images behind a distilled set, normalised as it is."""
    if not distilled.dataset:
        raise TenfoldError("the file does not say which data it was distilled from; give --source.dataset")
    statistics: Literal["dc", "dd"] = "dc" if distilled.step_lrs is None else "dd"
    data = load_image_set(distilled.dataset, root, download, statistics)
    if data.channels != distilled.images.shape[1] or data.image_size != distilled.images.shape[-1]:
        raise TenfoldError(
            f"images of {distilled.dataset} are {data.channels} x {data.image_size} x {data.image_size}, those of the "
            f"file {' x '.join(map(str, distilled.images.shape[1:]))}; give the right --source.dataset"
        )
    return data


def _poison_of(distilled: DistilledSet, data: ImageSet) -> Poison:
    """The trigger of a set on test images; a white patch where the file has none."""
    kind: Literal["none", "invisible"] = (
        "invisible" if distilled.trigger is not None and distilled.mask is None else "none"
    )
    poison = Poison(data, AttackConfig(kind, portion=0.0, target=distilled.target or 0), 0)
    if distilled.trigger is not None:
        poison.load_state_dict({"trigger": distilled.trigger, "added": distilled.trigger})
        if distilled.mask is not None:
            poison.mask = distilled.mask.to(poison.mask.device)
    else:
        logger.warning(
            "the file has no trigger; a white patch stands for it, whose success is that of chance"
        )
    return poison


@dataclass(frozen=True)
class Train:
    """Train a victim's network on a distilled set and keep its weights."""

    distilled: PositionalFile
    """distilled.pt of a run, or vis_*.pth or res_*.pt of the authors."""
    output: Path
    """File to write: the weights, in the authors' key scheme."""
    source: Source = field(default_factory=Source)
    victim: VictimConfig = field(default_factory=VictimConfig)
    seed: int = 0
    """Seed of the first weights and the order of images."""
    data_root: Path | None = None
    """Folder with further data; by default $TENFOLD_DATA, else ./data."""
    accelerator: Accelerator = field(default_factory=AcceleratorConfig)
    quiet: Quiet = False
    """Only warnings and errors."""

    def run(self) -> int:
        distilled = self.source.load(self.distilled)
        data = _real_data(distilled, _data_root(self.data_root), download=False)
        device, config = launch_fabric(self.accelerator).device, replace(self.victim, networks=1)
        victims = victims_of(distilled, self.source.victims(distilled), data, config, self.seed, device)
        weights = {name: value.cpu() for name, value in victims[0].state_dict().items()}
        self.output.parent.mkdir(parents=True, exist_ok=True)
        save_atomically(self.output, weights)
        logger.info("weights in %s", self.output)
        return 0


@dataclass(frozen=True)
class Evaluate:
    """Train victims on a distilled set, or take saved weights, and say CTA and ASR on the whole test set."""

    distilled: PositionalFile
    """distilled.pt of a run, or vis_*.pth or res_*.pt of the authors."""
    source: Source = field(default_factory=Source)
    victim: VictimConfig = field(default_factory=VictimConfig)
    weights: Path | None = None
    """Weights of `train` to judge instead of training victims."""
    seed: int = 0
    """Seed of the victims."""
    data_root: Path | None = None
    """Folder with further data; by default $TENFOLD_DATA, else ./data."""
    download: bool = False
    """Fetch what is missing and can be fetched."""
    accelerator: Accelerator = field(default_factory=AcceleratorConfig)

    def run(self) -> int:
        distilled = self.source.load(self.distilled)
        device = launch_fabric(self.accelerator).device
        data = _real_data(distilled, _data_root(self.data_root), self.download).to(device)
        poison = _poison_of(distilled, data)
        network = self.source.victims(distilled)
        if self.weights is None:
            victims = victims_of(distilled, network, data, self.victim, self.seed, device)
        else:
            victims = _saved(network, data, self.weights, device)
        _print_rates(f"{self.distilled.name}: {victims.size} networks on {data.name}", judge(victims, poison))
        return 0


def _saved(network: NetworkConfig, data: ImageSet, path: Path, device: torch.device) -> Ensemble:
    try:
        weights: dict[str, Tensor] = torch.load(path, weights_only=True, map_location="cpu")
    except Exception as error:
        raise TenfoldError(f"{path} holds no weights that can be read; make it with train") from error
    with seeded(0):
        made = network.make(data.channels, data.classes, data.image_size)
    load_official_state_dict(made, weights)
    return Ensemble([made.to(device)])


def _print_rates(title: str, rates: dict[str, float]) -> None:
    table = Table(title=title, title_justify="left")
    for column in ("rate", "mean", "std over networks", "95 % interval"):
        table.add_column(column, justify="left" if column == "rate" else "right")
    for name in ("cta", "asr_all", "asr_excluding_target", "robust_accuracy"):
        low, high = rates.get(f"{name}_low"), rates.get(f"{name}_high")
        table.add_row(
            name,
            f"{rates[name]:.4f}",
            f"{rates[f'{name}_std']:.4f}",
            "–" if low is None or high is None else f"{low:.4f} to {high:.4f}",
        )
    Console(width=None if Console().is_terminal else 120).print(table)


@dataclass(frozen=True)
class Defend:
    """Set every defence against victims of a distilled set whose trigger is known."""

    distilled: PositionalFile
    """distilled.pt of a run, or vis_*.pth or res_*.pt of the authors."""
    source: Source = field(default_factory=Source)
    victim: VictimConfig = field(default_factory=VictimConfig)
    defences: DefencesConfig = field(default_factory=DefencesConfig)
    seed: int = 0
    """Seed of victims and defences."""
    json: Path | None = None
    """File for all that was measured."""
    data_root: Path | None = None
    """Folder with further data; by default $TENFOLD_DATA, else ./data."""
    download: bool = False
    """Fetch what is missing and can be fetched."""
    accelerator: Accelerator = field(default_factory=AcceleratorConfig)
    quiet: Quiet = False
    """Only warnings and errors."""

    def run(self) -> int:
        distilled = self.source.load(self.distilled)
        device = launch_fabric(self.accelerator).device
        data = _real_data(distilled, _data_root(self.data_root), self.download).to(device)
        poison = _poison_of(distilled, data)
        images, labels = distilled.images.to(device), distilled.labels.to(device)
        victim = replace(self.victim, networks=min(self.victim.networks, self.defences.victims))
        network = self.source.victims(distilled)
        victims = victims_of(distilled, network, data, victim, self.seed, device)
        found = examine(victims, poison, images, labels, self.defences, self.seed, logger.info)
        table = Table(title=f"{self.distilled.name}: {victims.size} victims", title_justify="left")
        table.add_column("what")
        table.add_column("mean", justify="right")
        for name, value in found.items():
            if not name.endswith("_std"):
                table.add_row(name.replace("_", " "), f"{value:.3f}")
        Console(width=None if Console().is_terminal else 120).print(table)
        if self.json is not None:
            write_json(self.json, found)
        return 0


@dataclass(frozen=True)
class Audit:
    """Is a distilled set suspicious? Scores, thresholds and pictures, without knowing any trigger."""

    distilled: PositionalFile
    """distilled.pt of a run, or vis_*.pth or res_*.pt of the authors."""
    source: Source = field(default_factory=Source)
    victim: VictimConfig = field(default_factory=lambda: VictimConfig(3, 151, 76, 0.1))
    audit: AuditConfig = field(default_factory=AuditConfig)
    reference: bool = False
    """Also look at clean images of the real data set, where it is at hand."""
    seed: int = 0
    """Seed of the victims and of what is drawn."""
    pictures: Path | None = None
    """Folder for pictures."""
    json: Path | None = None
    """File for scores and thresholds."""
    data_root: Path | None = None
    """Folder with further data; by default $TENFOLD_DATA, else ./data."""
    accelerator: Accelerator = field(default_factory=AcceleratorConfig)
    quiet: Quiet = False
    """Only warnings and errors."""

    def run(self) -> int:
        distilled = self.source.load(self.distilled)
        device = launch_fabric(self.accelerator).device
        images, labels = None, None
        if self.reference:
            data = _real_data(distilled, _data_root(self.data_root), download=False).to(device)
            images, labels = defenders_images(Poison(data, AttackConfig("none"), self.seed), 0.2, self.seed)
        network = plain(self.source.victims(distilled))
        if not {"channels", "classes", "image_size"} <= distilled.network.keys() or self.source.network:
            network |= {
                "channels": distilled.images.shape[1],
                "classes": int(distilled.labels.max()) + 1,
                "image_size": distilled.images.shape[-1],
            }
            distilled = replace(distilled, network=network)
        report = audit(distilled, self.audit, self.victim, images, labels, self.seed, device)
        print("\n".join(report.lines()))
        if self.pictures is not None:
            self.pictures.mkdir(parents=True, exist_ok=True)
            for path in draw_audit(report, self.pictures):
                logger.info("picture in %s", path)
        if self.json is not None:
            write_json(self.json, report.as_dict())
        return 1 if report.suspicious else 0


@dataclass(frozen=True)
class Convert:
    """Read a distilled set of the authors or ours, and write it in another form."""

    distilled: PositionalFile
    """File to read."""
    output: Path
    """File to write."""
    form: Literal["ours", "vis", "trigger", "res", "results"] = "ours"
    """ours, or the authors' vis_*.pth, *_trigger.pth, res_*.pt, or results.pth of DD."""
    source: Source = field(default_factory=Source)
    quiet: Quiet = False
    """Only warnings and errors."""

    def run(self) -> int:
        distilled = self.source.load(self.distilled)
        if self.form == "ours":
            save_distilled(self.output, distilled)
        else:
            save_official(self.output, distilled, self.form)
        logger.info("%d images in %s", len(distilled.images), self.output)
        return 0


Command = (
    Annotated[Reproduce, tyro.conf.subcommand("reproduce")]
    | Annotated[Distill, tyro.conf.subcommand("distill")]
    | Annotated[Train, tyro.conf.subcommand("train")]
    | Annotated[Evaluate, tyro.conf.subcommand("evaluate")]
    | Annotated[Defend, tyro.conf.subcommand("defend")]
    | Annotated[Audit, tyro.conf.subcommand("audit")]
    | Annotated[Convert, tyro.conf.subcommand("convert")]
)


def main(arguments: list[str] | None = None) -> None:
    """Entry point of ``tenfold-doorping``; ends the process with the command's exit status."""
    with errors_in_one_line():
        command = tyro.cli(
            Command,
            prog="tenfold-doorping",
            description="Backdoor attacks against dataset distillation, and defences (Liu et al., NDSS 2023).",
            args=arguments,
        )
        set_quiet(getattr(command, "quiet", False))
        sys.exit(command.run())


def _profile(name: str) -> Profile:
    if name == "list":
        for known, profile in PROFILES.items():
            print(f"{known:28} {profile.description}")
        sys.exit(0)
    if name not in PROFILES:
        raise TenfoldError(f"unknown profile {name!r}; choose one of {', '.join(PROFILES)}")
    return PROFILES[name]


def _data_root(given: Path | None) -> Path:
    if given is not None and not given.is_dir():
        raise TenfoldError(f"there is no data root {given}; create it or leave out --data-root")
    return given or Path(os.environ.get("TENFOLD_DATA", "data"))
