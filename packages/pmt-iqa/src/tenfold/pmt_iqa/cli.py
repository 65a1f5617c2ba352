"""Command line: ``tenfold-pmt-iqa reproduce | train | evaluate | score | export | datasets``."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import pandas as pd
import torch
import tyro
from lightning_fabric import Fabric
from rich.console import Console
from rich.table import Table
from torch import Tensor

from tenfold.pmt_iqa.backbones import ResNetName, imagenet_file
from tenfold.pmt_iqa.checkpoints import load_official_state_dict
from tenfold.pmt_iqa.config import JudgeConfig, ModelConfig, RunConfig, TrainConfig
from tenfold.pmt_iqa.datasets import (
    DATASETS,
    MADE_OF_PHOTOGRAPHS,
    ImageSet,
    ScoreTable,
    csv_table,
    load,
    load_dataset,
    named_table,
)
from tenfold.pmt_iqa.evaluation import PlccFit, agreement
from tenfold.pmt_iqa.experiments import (
    MAIN_METRICS,
    PAPER,
    Suite,
    draw_outcome,
    finish,
    launch_fabric,
    reproduce,
)
from tenfold.pmt_iqa.export import export_onnx
from tenfold.pmt_iqa.figures import draw_report
from tenfold.pmt_iqa.model import build_model
from tenfold.pmt_iqa.pixels import read_picture
from tenfold.pmt_iqa.profiles import PROFILES, Profile
from tenfold.pmt_iqa.scoring import Score, Scorer, artifact, pictures_in
from tenfold.pmt_iqa.training import crops_to_judge, judge_crops, train
from tenfold.shared.accelerator import AcceleratorConfig
from tenfold.shared.comparison import load_reported, print_comparison
from tenfold.shared.logging import TenfoldError, errors_in_one_line, get_logger, progress, set_quiet
from tenfold.shared.runs import Run, RunKey, config_hash, load_checkpoint, plain, replaced, write_json

logger = get_logger("pmt-iqa")

Quiet = Annotated[bool, tyro.conf.arg(aliases=["-q"])]
Accelerator = Annotated[AcceleratorConfig, tyro.conf.arg(name="")]  # --device, not --accelerator.device


@dataclass(frozen=True)
class Reproduce:
    """Run a profile's suite, compare it with printed numbers, and fail if a claim does not hold."""

    profile: str = "quick"
    """Which suite; `--profile list` prints them."""
    seeds: tuple[int, ...] | None = None
    """Seeds instead of the profile's; each is one random split."""
    methods: tuple[str, ...] | None = None
    """Some of the profile's methods, by name."""
    output: Path = Path("runs")
    """Directory of all runs."""
    data_root: Path | None = None
    """Folder with further data; by default $TENFOLD_DATA, else ./data."""
    cache: Path | None = None
    """Folder for decoded images, several gigabytes for large data sets, which later commands then need not decode."""
    imagenet_weights: Path | None = None
    """torchvision's file of the backbone's ImageNet weights; by default the one in torch's cache."""
    download: bool = False
    """Fetch what is missing and can be fetched: ImageNet weights."""
    force: bool = False
    """Repeat runs that are finished."""
    workers: int | None = None
    """Processes that share the runs; by default one for each CPU core, eight at the most, and one on a GPU."""
    accelerator: Accelerator = field(default_factory=AcceleratorConfig)
    checkpoint_seconds: float = 15.0
    """Time between two checkpoints of a run; they are written between epochs."""
    quiet: Quiet = False
    """Only warnings, errors and the final tables."""

    def run(self) -> int:
        profile = _profile(self.profile)
        if self.seeds is not None:
            if not self.seeds or len(set(self.seeds)) < len(self.seeds):
                raise TenfoldError("give --seeds at least one number, each once")
            profile = replace(profile, seeds=self.seeds, fewer_seeds={})
        if self.methods is not None:
            unknown = [method for method in self.methods if method not in profile.methods]
            if unknown or not self.methods:
                raise TenfoldError(f"--methods takes some of {', '.join(profile.methods)}")
            profile = replace(profile, methods=self.methods)
        suite = Suite(
            self.profile,
            profile,
            self.output,
            _data_root(self.data_root),
            self.cache,
            self.imagenet_weights,
            self.download,
            self.force,
            self.checkpoint_seconds,
            self.accelerator,
        )
        results = reproduce(suite, self.workers, self.quiet)
        if not suite.fabric.is_global_zero:
            return 0
        verdicts = print_comparison(load_reported("tenfold.pmt_iqa"), results, self.profile, MAIN_METRICS)
        failed = [verdict.claim.id for verdict in verdicts if verdict.holds is False]
        if failed:
            logger.error("claims that do not hold: %s", ", ".join(failed))
        return 1 if failed else 0


@dataclass(frozen=True)
class Csv:
    """Images and scores of your own."""

    table: Path | None = None
    """CSV file with the columns image, score and, for splits by group, group; use it with --dataset csv."""
    images: Path | None = None
    """Folder that the image names are below; by default the table's."""
    lower_is_better: bool = False
    """The scores are differences (DMOS)."""
    scale: tuple[float, float] | None = None
    """Ends of the scale; by default the lowest and highest score."""
    resize: tuple[int, int] | None = None
    """Height and width that all images get first."""

    def read(self) -> ScoreTable:
        """The table; no image is decoded."""
        if self.table is None:
            raise TenfoldError("--dataset csv needs the table: give --csv.table FILE")
        return csv_table(self.table, self.images, not self.lower_is_better, self.scale, self.resize)

    def load(self, cache: Path | None) -> ImageSet:
        """The images, decoded."""
        return load(self.read(), cache)


@dataclass(frozen=True)
class Train:
    """Train one network, with every hyperparameter."""

    dataset: str = "livec"
    """A data set (`tenfold-pmt-iqa datasets` lists them), or csv."""
    csv: Csv = field(default_factory=Csv)
    train_fraction: float = 0.8
    """Share of the images, or groups, that train; 1 trains on all and tests on none."""
    legacy_resize: bool = False
    """KonIQ-10k: swap height and width of the resized images, as the authors' code does."""
    clamp_levels: bool = True
    """Keep levels below the number of classes."""
    model: ModelConfig = field(default_factory=ModelConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    judge: JudgeConfig = field(default_factory=JudgeConfig)
    seed: int = 0
    """Seed of the split, the weights, the order and the crops."""
    output: Path = Path("runs")
    """Directory of all runs."""
    data_root: Path | None = None
    """Folder with further data; by default $TENFOLD_DATA, else ./data."""
    cache: Path | None = None
    """Folder for decoded images, which later commands then need not decode."""
    imagenet_weights: Path | None = None
    """torchvision's file of the backbone's ImageNet weights; by default the one in torch's cache."""
    download: bool = False
    """Fetch what is missing and can be fetched: ImageNet weights."""
    accelerator: Accelerator = field(default_factory=AcceleratorConfig)
    checkpoint_seconds: float = 15.0
    """Time between two checkpoints; they are written between epochs."""
    quiet: Quiet = False
    """Only warnings and errors."""

    def run(self) -> int:
        config = RunConfig(
            self.dataset,
            self.train_fraction,
            self.legacy_resize,
            self.clamp_levels,
            self.model,
            self.train,
            self.judge,
        )
        is_csv = self.dataset == "csv"
        root = _data_root(self.data_root)
        if is_csv:  # whatever is missing is said before images are decoded
            self.csv.read()
        elif self.dataset not in MADE_OF_PHOTOGRAPHS:
            named_table(self.dataset, root)
        if self.model.pretrained and self.model.backbone != "small":
            imagenet_file(self.model.backbone, self.imagenet_weights, self.download)
        images = (
            self.csv.load(self.cache)
            if is_csv
            else load_dataset(self.dataset, root, self.cache, self.legacy_resize)
        )
        config = replace(config, dataset=images.name)
        fabric = launch_fabric(self.accelerator)
        record = {**plain(config), "seed": self.seed, **({"images": images.digest()} if is_csv else {})}
        name = f"{images.name}-{self.train.schedule}-{config_hash(record)[:8]}"
        method = "PMT-IQA" if self.train.schedule == "progressive" else self.train.schedule
        key = RunKey(PAPER, "single", name, self.seed, images.name, "single", method)
        run = Run(self.output, key, record, "epoch", self.checkpoint_seconds, fabric.is_global_zero)
        if run.is_finished:
            logger.info("this run is done already: %s", run.directory / "model.pt")
            return 0
        started = time.monotonic()
        with run:
            trained = train(
                images,
                config,
                self.seed,
                fabric,
                run,
                self.accelerator.compile,
                self.imagenet_weights,
                self.download,
            )
            path = run.save_artifact("model.pt", artifact(trained, config, images))
            draw_outcome(run, trained, config, images)
            finish(run, trained, started)
        logger.info("network in %s", path)
        return 0


@dataclass(frozen=True)
class Evaluate:
    """Agreement of a network's scores with the labels of a whole data set, one it never saw for instance."""

    dataset: str
    """A data set, or csv."""
    checkpoint: Path | None = None
    """model.pt of a run, or weights in the authors' names with --official; by default the package's own network."""
    official: ResNetName | None = None
    """The file holds weights in the authors' names with this backbone."""
    csv: Csv = field(default_factory=Csv)
    plcc_fit: PlccFit = "none"
    """Map scores onto labels by a logistic curve of four parameters before PLCC and RMSE."""
    data_root: Path | None = None
    """Folder with further data; by default $TENFOLD_DATA, else ./data."""
    cache: Path | None = None
    """Folder for decoded images."""
    accelerator: Accelerator = field(default_factory=AcceleratorConfig)

    def run(self) -> int:
        fabric = launch_fabric(self.accelerator)
        weights: Mapping[str, Any] | None = None
        scorer: Scorer | None = None
        if self.official is None:  # what is wrong with the file is said before images are decoded
            scorer = Scorer.load(self.checkpoint, fabric)
        elif self.checkpoint is None:
            raise TenfoldError("--official needs the file of the weights: give --checkpoint")
        else:
            weights = load_checkpoint(self.checkpoint)
        if self.dataset == "csv":
            resize = self.csv.resize or (scorer.resize if scorer else None)
            images = replace(self.csv, resize=resize).load(self.cache)
        else:
            images = load_dataset(self.dataset, _data_root(self.data_root), self.cache)
        if scorer is None:
            assert weights is not None and self.official is not None
            scorer = _official_scorer(weights, self.official, images, fabric)
        images.pixels.check_size(scorer.config.train.crop_size, images.names)
        where = crops_to_judge(scorer.config, images, torch.arange(len(images.names)))
        store = images.pixels.to(fabric.device)
        judged = judge_crops(scorer.network, scorer.config, fabric, store, where, scorer.level_scores)
        # Scales of two data sets can differ, also in direction: both are compared as per cent.
        found = agreement(
            scorer.scale.percent(judged.scores.numpy(), clip=False),
            images.scale.percent(images.scores.numpy(), clip=False),
            self.plcc_fit,
        )
        table = Table(title=f"{images.name}: {len(images.names)} images", title_justify="left")
        for name in found:
            table.add_column(name, justify="right")
        table.add_row(*(f"{value:.4f}" for value in found.values()))
        if fabric.is_global_zero:
            Console().print(table)
        return 0


@dataclass(frozen=True)
class ScoreCommand:
    """Score pictures from 0 (worst) to 100 (best); a damaged or too small one is reported and left out."""

    path: Annotated[Path, tyro.conf.Positional]
    """A picture, or a folder of pictures."""
    checkpoint: Path | None = None
    """model.pt of a run; by default the package's own network, which learned a proxy and nobody's opinion."""
    csv: Path | None = None
    """Table to write: score, spread between crops, expected score and entropy of the levels, their probabilities."""
    json: Path | None = None
    """The same as JSON."""
    maps: Path | None = None
    """Folder for pictures of where quality is low."""
    accelerator: Accelerator = field(default_factory=AcceleratorConfig)
    quiet: Quiet = False
    """Only warnings and errors, no scores."""

    def run(self) -> int:
        paths = pictures_in(self.path)
        fabric = launch_fabric(self.accelerator)
        if fabric.world_size > 1:
            raise TenfoldError("pictures are scored by one process; leave out --devices and torchrun")
        scorer = Scorer.load(self.checkpoint, fabric)
        base = self.path if self.path.is_dir() else self.path.parent
        scores: list[Score] = []
        left_out = 0
        for path in progress(paths, "scoring"):
            try:
                score = replace(scorer.score(path), name=path.relative_to(base).as_posix())
                if self.maps is not None:
                    self._draw(scorer, path, score)
            except TenfoldError as error:
                left_out += 1
                logger.error("left out: %s", error)
                continue
            scores.append(score)
            if not self.quiet:
                unsure = "" if score.entropy is None else f", entropy {score.entropy:.2f}"
                print(f"{score.score:6.1f}  ± {score.spread:.1f} between crops{unsure}  {score.name}")
        rows = [score.row() for score in scores]
        if self.csv is not None:
            self.csv.parent.mkdir(parents=True, exist_ok=True)
            with replaced(self.csv) as temporary:
                pd.DataFrame(rows).to_csv(temporary, index=False)
        if self.json is not None:
            self.json.parent.mkdir(parents=True, exist_ok=True)
            write_json(self.json, {"learned_from": scorer.dataset, "scores": rows})
        if left_out:
            logger.error("%d of %d pictures were left out", left_out, len(paths))
        return 1 if left_out else 0

    def _draw(self, scorer: Scorer, path: Path, score: Score) -> None:
        assert self.maps is not None
        target = self.maps / f"{score.name.replace('/', '_')}.png"
        target.parent.mkdir(parents=True, exist_ok=True)
        picture = read_picture(path, scorer.resize)
        with replaced(target) as temporary:
            draw_report(
                picture,
                scorer.quality_map(picture),
                f"{score.name}: {score.score:.1f}",
                score.levels,
                temporary,
            )


@dataclass(frozen=True)
class Export:
    """Write a trained network as ONNX: crops as bytes in, scores from 0 to 100 and level probabilities out."""

    output: Path
    """File to write."""
    checkpoint: Path | None = None
    """model.pt of a run; by default the package's own network."""
    quiet: Quiet = False
    """Only warnings and errors."""

    def run(self) -> int:
        export_onnx(Scorer.load(self.checkpoint, launch_fabric(AcceleratorConfig(device="cpu"))), self.output)
        logger.info("network in %s", self.output)
        return 0


@dataclass(frozen=True)
class Datasets:
    """Print every data set and what is here of it."""

    data_root: Path | None = None
    """Folder with further data; by default $TENFOLD_DATA, else ./data."""

    def run(self) -> int:
        print("proxy         1500 images of 12 photographs, made from installed packages")
        for name, read in DATASETS.items():
            try:
                table = read(_data_root(self.data_root))
            except TenfoldError as error:
                print(f"{name:12}  not here: {error}")
                continue
            print(
                f"{name:12}  {len(table.paths)} images, {len(set(table.groups))} groups, labels from "
                f"{table.scores.min():g} to {table.scores.max():g}"
            )
        return 0


Command = (
    Annotated[Reproduce, tyro.conf.subcommand("reproduce")]
    | Annotated[Train, tyro.conf.subcommand("train")]
    | Annotated[Evaluate, tyro.conf.subcommand("evaluate")]
    | Annotated[ScoreCommand, tyro.conf.subcommand("score")]
    | Annotated[Export, tyro.conf.subcommand("export")]
    | Annotated[Datasets, tyro.conf.subcommand("datasets")]
)


def main(arguments: list[str] | None = None) -> None:
    """Entry point of ``tenfold-pmt-iqa``; ends the process with the command's exit status."""
    with errors_in_one_line():
        command = tyro.cli(
            Command,
            prog="tenfold-pmt-iqa",
            description="Blind image quality by progressive multi-task learning (Pan et al., PRICAI 2023).",
            args=arguments,
        )
        set_quiet(getattr(command, "quiet", False))
        sys.exit(command.run())


def _profile(name: str) -> Profile:
    if name == "list":
        for known, profile in PROFILES.items():
            print(f"{known:12} {profile.description}")
        sys.exit(0)
    if name not in PROFILES:
        raise TenfoldError(f"unknown profile {name!r}; choose one of {', '.join(PROFILES)}")
    return PROFILES[name]


def _official_scorer(
    content: Mapping[str, Any], backbone: ResNetName, images: ImageSet, fabric: Fabric
) -> Scorer:
    """A scorer around weights in the authors' names, its network built to match them."""
    weights: Mapping[str, Any] = content.get("state_dict", content)

    def rows(key: str, otherwise: int) -> int:
        value = weights.get(key)
        return len(value) if isinstance(value, Tensor) and value.ndim else otherwise

    hidden, levels = rows("fcs.0.bias", 112), rows("fc_cls.2.bias", 10)
    outputs, embedding = rows("res.lda1_fc.bias", 28), rows("fcs.2.bias", 14)
    features = 3 * outputs + rows("res.lda4_fc.bias", 28)
    network = build_model(backbone, outputs, features, hidden, target_fc4_size=embedding, number_class=levels)
    load_official_state_dict(network, weights)
    model = ModelConfig(
        "multitask", backbone, (1, 2, 3, 4), outputs, features, hidden, embedding, levels, False
    )
    config = RunConfig(images.name, model=model)
    level_scores = torch.linspace(images.scale.low, images.scale.high, levels)
    return Scorer(network, config, level_scores, images.scale, images.resize, images.name, fabric)


def _data_root(given: Path | None) -> Path:
    if given is not None and not given.is_dir():
        raise TenfoldError(f"there is no data root {given}; create it or leave out --data-root")
    return given or Path(os.environ.get("TENFOLD_DATA", "data"))
