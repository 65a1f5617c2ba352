"""Command line: ``tenfold-reft reproduce | train | finetune | evaluate | segment | compose | sample | convert``."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Literal

import tyro
from rich.console import Console
from rich.table import Table

from tenfold.reft.composed_digits import ComposeConfig
from tenfold.reft.config import (
    BackboneName,
    DataConfig,
    DistillConfig,
    LossConfig,
    NetworkConfig,
    ReferenceConfig,
    Setting,
    TrainConfig,
)
from tenfold.reft.experiments import do, judge, reproduce
from tenfold.reft.file_commands import Accelerator, Compose, Convert, ReftAccelerator, Sample, Segment
from tenfold.reft.network_files import load_network, load_released
from tenfold.reft.profiles import FEW_SHOT, PROFILES, few_shot_recipe
from tenfold.reft.sources import OwnData
from tenfold.reft.suite_runs import MAIN_METRICS, BaseJob, FewShotJob, Suite, with_seeds
from tenfold.reft.suites import BaseStage, Method, Profile
from tenfold.shared.comparison import load_reported, print_comparison
from tenfold.shared.logging import TenfoldError, errors_in_one_line, get_logger, set_quiet
from tenfold.shared.runs import write_json

logger = get_logger("reft")

Quiet = Annotated[bool, tyro.conf.arg(aliases=["-q"])]
SINGLE = "single"


@dataclass(frozen=True)
class Reproduce:
    """Run a profile's suite, compare it with printed numbers, and fail if a claim does not hold."""

    profile: str = "quick"
    """Which suite; `--profile list` prints them."""
    seeds: tuple[int, ...] | None = None
    """Seeds instead of the profile's, of the shots and of fine-tuning."""
    settings: tuple[Setting, ...] | None = None
    """Some of fsis, gfsis and ifsis."""
    shots: tuple[int, ...] | None = None
    """Some of the profile's numbers of shots."""
    methods: tuple[str, ...] | None = None
    """Some of the profile's methods, by name."""
    accumulate: int = 1
    """Parts that every batch is divided into, one after another, where memory is short."""
    output: Path = Path("runs")
    """Directory of all runs."""
    data_root: Path | None = None
    """Folder with data sets; by default $TENFOLD_DATA, else ./data."""
    shot_lists: Path | None = None
    """Folder `cocosplit` with the published few-shot lists; by default shots are sampled by the published rules."""
    imagenet_weights: Path | None = None
    """File of the backbone's ImageNet weights; by default the one in the library's cache."""
    download: bool = False
    """Fetch what is missing and can be fetched: ImageNet weights."""
    force: bool = False
    """Repeat runs that are finished."""
    workers: int | None = None
    """Processes that share the runs; by default one for each CPU core, eight at the most, and one on a GPU."""
    accelerator: Accelerator = field(default_factory=ReftAccelerator)
    checkpoint_seconds: float | None = None
    """Time between two checkpoints of a run, by default the profile's."""
    quiet: Quiet = False
    """Only warnings, errors and the final tables."""

    def run(self) -> int:
        profile = chosen(_profile(self.profile), self.settings, self.shots, self.methods, self.accumulate)
        if self.seeds is not None:
            if not self.seeds or len(set(self.seeds)) < len(self.seeds):
                raise TenfoldError("give --seeds at least one number, each once")
            profile = with_seeds(profile, self.seeds)
        suite = Suite(
            self.profile,
            profile,
            self.output,
            _data_root(self.data_root),
            self.shot_lists,
            self.imagenet_weights,
            download=self.download,
            force=self.force,
            checkpoint_seconds=(
                profile.checkpoint_seconds if self.checkpoint_seconds is None else self.checkpoint_seconds
            ),
            accelerator=self.accelerator,
        )
        results = reproduce(suite, self.workers, self.quiet)
        if not suite.fabric.is_global_zero:
            return 0
        verdicts = print_comparison(load_reported("tenfold.reft"), results, self.profile, MAIN_METRICS)
        failed = [verdict.claim.id for verdict in verdicts if verdict.holds is False]
        if failed:
            logger.error("claims that do not hold: %s", ", ".join(failed))
        return 1 if failed else 0


def chosen(
    profile: Profile,
    settings: tuple[Setting, ...] | None,
    shots: tuple[int, ...] | None,
    methods: tuple[str, ...] | None,
    accumulate: int,
) -> Profile:
    """A profile with some of its methods and shots, and batches in parts."""
    kept = []
    for method in profile.methods:
        if (settings is None or method.setting in settings) and (methods is None or method.name in methods):
            lengths = {
                number: replace(recipe, accumulate=accumulate)
                for number, recipe in method.finetuning.items()
                if shots is None or number in shots
            }
            if lengths:
                kept.append(replace(method, finetuning=lengths))
    if not kept:
        known = ", ".join(
            dict.fromkeys(
                f"{one.name} ({one.setting}, {', '.join(map(str, one.finetuning))} shots)"
                for one in profile.methods
            )
        )
        raise TenfoldError(f"no method of the profile is left; it has {known}")
    profile = replace(
        profile,
        stages={
            name: replace(stage, train=replace(stage.train, accumulate=accumulate))
            for name, stage in profile.stages.items()
        },
    )
    everything = settings is None and shots is None and methods is None
    return replace(profile, methods=tuple(kept)) if everything else profile.needed(tuple(kept))


@dataclass(frozen=True)
class Train:
    """Train one base network, with every hyperparameter, and judge it on base classes."""

    network: NetworkConfig = field(default_factory=NetworkConfig)
    references: ReferenceConfig = field(default_factory=ReferenceConfig)
    losses: LossConfig = field(default_factory=LossConfig)
    data: DataConfig = field(default_factory=DataConfig)
    compose: ComposeConfig = field(default_factory=ComposeConfig)
    own: OwnData = field(default_factory=OwnData)
    train: TrainConfig = field(default_factory=TrainConfig)
    seed: int = 0
    """Seed of fresh weights, order, augmentation, supports and points."""
    pretrained: bool = True
    """Begin with ImageNet's weights in the backbone."""
    base_shots: int = 10
    """Support examples of each class in the support cache."""
    output: Path = Path("runs")
    """Directory of all runs."""
    data_root: Path | None = None
    """Folder with data sets; by default $TENFOLD_DATA, else ./data."""
    imagenet_weights: Path | None = None
    """File of the backbone's ImageNet weights; by default the one in the library's cache."""
    download: bool = False
    """Fetch what is missing and can be fetched: ImageNet weights."""
    accelerator: Accelerator = field(default_factory=ReftAccelerator)
    checkpoint_seconds: float = 60.0
    """Time between two checkpoints."""
    quiet: Quiet = False
    """Only warnings and errors."""

    def run(self) -> int:
        if self.data.dataset == "digits" and self.data.image_size != self.compose.image_size:
            raise TenfoldError(
                f"digits are composed at {self.compose.image_size} pixels: give --data.image-size as many, or run "
                "reproduce --profile quick, which knows their recipe"
            )
        stage = BaseStage(
            self.train, self.references, classifier=self.network.classifier, pretrained=self.pretrained
        )
        method = "Mask2Former" if self.references.is_off else "RefT"

        def suite_of(name: str) -> Suite:
            profile = _single(
                self.data,
                self.network,
                self.losses,
                {name: stage},
                (),
                self.compose,
                self.base_shots,
                self.seed,
            )
            return Suite(
                SINGLE,
                profile,
                self.output,
                _data_root(self.data_root),
                imagenet_weights=self.imagenet_weights,
                own=self.own,
                download=self.download,
                checkpoint_seconds=self.checkpoint_seconds,
                accelerator=self.accelerator,
            )

        # Other settings are another run, in another folder.
        name = f"{method} {suite_of(method).run(BaseJob(method)).config_hash[:8]}"
        return _do_once(suite_of(name), BaseJob(name))


@dataclass(frozen=True)
class Finetune:
    """Teach a base network new classes from few shots, and judge it. Recipes are those of its data's profiles."""

    checkpoint: Path
    """model.pt of a base network."""
    setting: Setting = "gfsis"
    """fsis: novel classes alone; gfsis: all classes; ifsis: novel classes beside base classes, without their data."""
    shots: int = 10
    """Of each class."""
    seed: int = 0
    """Seed of shots, new rows and fine-tuning."""
    steps: int = 0
    """Updates; 0 is the recipe's."""
    batch_size: int = 0
    """Images of an update, on all devices together; 0 is the recipe's."""
    lr: float = 0.0
    """Peak of the rate; 0 is the recipe's."""
    freeze: Literal["recipe", "none", "backbone", "classifier", "incremental"] = "recipe"
    """What is not trained: the recipe's, nothing, the backbone, all but the classifier, or what iFSIS keeps."""
    accumulate: int = 1
    """Parts that every batch is divided into, one after another."""
    records: Literal["merged", "per_annotation"] = "merged"
    """An image with all its shots, or one record for each shot."""
    losses: LossConfig = field(default_factory=LossConfig)
    own: OwnData = field(default_factory=OwnData)
    distill: bool = True
    """iFSIS: distil the base model."""
    distillation: DistillConfig = field(default_factory=DistillConfig)
    shot_lists: Path | None = None
    """Folder `cocosplit` with the published few-shot lists; by default shots are sampled by the published rules."""
    output: Path = Path("runs")
    """Directory of all runs."""
    data_root: Path | None = None
    """Folder with data sets; by default $TENFOLD_DATA, else ./data."""
    accelerator: Accelerator = field(default_factory=ReftAccelerator)
    checkpoint_seconds: float = 60.0
    """Time between two checkpoints."""
    quiet: Quiet = False
    """Only warnings and errors."""

    def run(self) -> int:
        stored = load_network(self.checkpoint)
        data = replace(stored.data, records=self.records)
        distill = self.distillation if self.distill and self.setting == "ifsis" else None
        recipe, network = self._recipe(data), stored.network.network
        stage = BaseStage(TrainConfig(), stored.network.references, classifier=network.classifier)
        compose_config = stored.compose
        if compose_config is not None:
            compose_config = replace(compose_config, shots=(self.shots,), seeds=(self.seed,))
        known = "Mask2Former + ft-full" if stored.network.references.is_off else "RefT"

        def suite_of(name: str) -> Suite:
            method = Method(name, "base", self.setting, {self.shots: recipe}, distill)
            profile = _single(data, network, self.losses, {"base": stage}, (method,), compose_config)
            return Suite(
                SINGLE,
                replace(profile, seeds=(self.seed,)),
                self.output,
                _data_root(self.data_root),
                self.shot_lists,
                base_weights=self.checkpoint,
                own=self.own,
                checkpoint_seconds=self.checkpoint_seconds,
                accelerator=self.accelerator,
            )

        def job_of(name: str) -> FewShotJob:
            return FewShotJob(name, self.setting, self.shots, self.seed)

        # Other settings are another run, in another folder.
        name = f"{known} {suite_of(known).run(job_of(known)).config_hash[:8]}"
        return _do_once(suite_of(name), job_of(name))

    def _recipe(self, data: DataConfig) -> TrainConfig:
        """The profiles' recipe with what was asked for by hand."""
        known = FEW_SHOT
        if data.dataset != "digits":
            known = few_shot_recipe(self.shots, 0.5 if self.setting == "ifsis" else 1.0)
        if self.setting == "ifsis":
            known = replace(known, freeze="incremental")
        steps = self.steps or known.steps
        return replace(
            known,
            steps=steps,
            milestones=tuple(round(steps * milestone / known.steps) for milestone in known.milestones),
            batch_size=self.batch_size or known.batch_size,
            lr=self.lr or known.lr,
            freeze=known.freeze if self.freeze == "recipe" else self.freeze,
            accumulate=self.accumulate,
        )


@dataclass(frozen=True)
class Evaluate:
    """Judge a saved network, or released Mask2Former weights, on the test images."""

    checkpoint: Path
    """model.pt of a run, or with --released a file of Mask2Former's authors."""
    released: bool = False
    """The file is of Mask2Former's authors, for the 80 classes of COCO."""
    backbone: BackboneName = "resnet-50"
    """Of the released file."""
    own: OwnData = field(default_factory=OwnData)
    data_root: Path | None = None
    """Folder with data sets; by default $TENFOLD_DATA, else ./data."""
    output: Path = Path("runs")
    """Directory of all runs, used for composed digits alone; what is found goes to --results."""
    results: Path | None = None
    """File for the detections: a list in COCO's form, under "detections"."""
    accelerator: Accelerator = field(default_factory=ReftAccelerator)

    def run(self) -> int:
        stored = (
            load_released(self.checkpoint, self.backbone) if self.released else load_network(self.checkpoint)
        )
        network = stored.network
        profile = _single(
            stored.data,
            network.network,
            LossConfig(),
            {"base": BaseStage(TrainConfig(), network.references)},
            (),
            stored.compose,
        )
        suite = Suite(
            SINGLE,
            profile,
            self.output,
            _data_root(self.data_root),
            own=self.own,
            accelerator=self.accelerator,
        )
        source, fabric = suite.source, suite.fabric
        source.check()
        if missing := [number for number in stored.category_ids if number not in source.test.cats]:
            raise TenfoldError(
                f"the test annotations have no category {missing[0]}, which the network knows; give those of its data"
            )
        references = None if stored.references is None else stored.references.to(fabric.device)
        found = judge(suite, network.to(fabric.device), references, stored.category_ids)
        split = source.split
        novel, base = (
            [number for number in part if number in stored.category_ids] for part in (split.novel, split.base)
        )
        if fabric.is_global_zero:
            _print_metrics(source.metrics(found, novel, base), f"{self.checkpoint}")
            if self.results is not None:
                self.results.parent.mkdir(parents=True, exist_ok=True)
                write_json(self.results, {"detections": found})
        return 0


Command = (
    Annotated[Reproduce, tyro.conf.subcommand("reproduce")]
    | Annotated[Train, tyro.conf.subcommand("train")]
    | Annotated[Finetune, tyro.conf.subcommand("finetune")]
    | Annotated[Evaluate, tyro.conf.subcommand("evaluate")]
    | Annotated[Segment, tyro.conf.subcommand("segment")]
    | Annotated[Compose, tyro.conf.subcommand("compose")]
    | Annotated[Sample, tyro.conf.subcommand("sample")]
    | Annotated[Convert, tyro.conf.subcommand("convert")]
)


def main(arguments: list[str] | None = None) -> None:
    """Entry point of ``tenfold-reft``; ends the process with the command's exit status."""
    with errors_in_one_line():
        command = tyro.cli(
            Command,
            prog="tenfold-reft",
            description="Few-shot instance segmentation with references used twice (Han et al., TPAMI 2024).",
            args=arguments,
        )
        set_quiet(getattr(command, "quiet", False))
        sys.exit(command.run())


def _do_once(suite: Suite, job: BaseJob | FewShotJob) -> int:
    """Do one job unless it is done, and say where its network is."""
    suite.source.check()
    run = suite.run(job)
    if not run.is_finished:
        do(suite, job)
    if suite.fabric.is_global_zero:
        result = suite.run(job).result or {"metrics": {}}
        _print_metrics(result["metrics"], run.directory.name)
        logger.info("network in %s", run.directory / "model.pt")
    return 0


def _print_metrics(metrics: dict[str, float], title: str) -> None:
    table = Table(title=title, title_justify="left")
    for column in ("metric", "per cent"):
        table.add_column(column, justify="left" if column == "metric" else "right")
    for name, value in metrics.items():
        if name.startswith(("segm", "bbox")):
            table.add_row(name, f"{value:.1f}")
    Console().print(table)


def _single(
    data: DataConfig,
    network: NetworkConfig,
    losses: LossConfig,
    stages: dict[str, BaseStage],
    methods: tuple[Method, ...],
    compose_config: ComposeConfig | None,
    base_shots: int = 10,
    base_seed: int = 0,
) -> Profile:
    composed = compose_config if data.dataset == "digits" else None
    return Profile(
        "one run",
        data,
        network,
        losses,
        stages,
        methods,
        base_seed=base_seed,
        compose=composed,
        base_shots=base_shots,
        judge_before=False,
    )


def _profile(name: str) -> Profile:
    if name == "list":
        for known, profile in PROFILES.items():
            print(f"{known:14} {profile.description}")
        sys.exit(0)
    if name not in PROFILES:
        raise TenfoldError(f"unknown profile {name!r}; choose one of {', '.join(PROFILES)}")
    return PROFILES[name]


def _data_root(given: Path | None) -> Path:
    if given is not None and not given.is_dir():
        raise TenfoldError(f"there is no data root {given}; create it or leave out --data-root")
    return given or Path(os.environ.get("TENFOLD_DATA", "data"))
