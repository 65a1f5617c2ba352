"""Command line: ``tenfold-emo reproduce | train | evaluate | classify | export | compare | latency``."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import tyro
from PIL import Image, UnidentifiedImageError
from rich.console import Console
from rich.table import Table
from torch import nn

from tenfold.emo.checkpoints import load_weights
from tenfold.emo.complexity import count_flops
from tenfold.emo.config import DataConfig, ModelConfig, RunConfig, TrainConfig
from tenfold.emo.data import image_folder, load_in_memory, testing_transform
from tenfold.emo.experiments import (
    MAIN_METRICS,
    PAPER,
    Suite,
    artifact,
    draw_cost,
    finish,
    reproduce,
)
from tenfold.emo.export import agreement, export_int8, export_onnx, export_program, trace
from tenfold.emo.figures import draw_layers, draw_pareto
from tenfold.emo.inference import reparameterize
from tenfold.emo.latency import measure_latency
from tenfold.emo.model import ARCHITECTURES, EMO, build_model
from tenfold.emo.networks import make_network
from tenfold.emo.peers import PEERS, UNPUBLISHED, measure_peers
from tenfold.emo.profiles import DENSE_PROFILES, PROFILES, DenseProfile, Profile
from tenfold.emo.training import judge, train
from tenfold.shared.accelerator import AcceleratorConfig, launch_fabric
from tenfold.shared.comparison import load_reported, print_comparison
from tenfold.shared.logging import TenfoldError, errors_in_one_line, get_logger, set_quiet
from tenfold.shared.runs import Run, RunKey, config_hash, load_checkpoint, plain, replaced

logger = get_logger("emo")

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
    backbone_weights: Path | None = None
    """File of a classifier, with which detectors and segmenters begin."""
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
            kept: Any = {name: profile.methods[name] for name in self.methods}
            profile = replace(profile, methods=kept)
        if isinstance(profile, DenseProfile) and self.backbone_weights is None:
            raise TenfoldError(
                "detectors and segmenters begin with weights from ImageNet: give --backbone-weights the authors' file, "
                "or model.pt of an ImageNet profile"
            )
        suite = Suite(
            self.profile,
            profile,
            self.output,
            _data_root(self.data_root),
            self.backbone_weights,
            self.download,
            self.force,
            profile.checkpoint_seconds if self.checkpoint_seconds is None else self.checkpoint_seconds,
            self.accelerator,
        )
        results = reproduce(suite, self.workers, self.quiet)
        if not suite.fabric.is_global_zero:
            return 0
        verdicts = print_comparison(load_reported("tenfold.emo"), results, self.profile, MAIN_METRICS)
        failed = [verdict.claim.id for verdict in verdicts if verdict.holds is False]
        if failed:
            logger.error("claims that do not hold: %s", ", ".join(failed))
        return 1 if failed else 0


@dataclass(frozen=True)
class Train:
    """Train one classifier, with every hyperparameter."""

    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    seed: int = 0
    """Seed of weights, order and augmentation; of the digits' split too."""
    output: Path = Path("runs")
    """Directory of all runs."""
    data_root: Path | None = None
    """Folder with further data; by default $TENFOLD_DATA, else ./data."""
    download: bool = False
    """Fetch what is missing and can be fetched."""
    accelerator: Accelerator = field(default_factory=AcceleratorConfig)
    checkpoint_seconds: float = 60.0
    """Time between two checkpoints; they are written after an epoch."""
    quiet: Quiet = False
    """Only warnings and errors."""

    def run(self) -> int:
        config = RunConfig(self.model, self.data, self.train)
        fabric = launch_fabric(self.accelerator)
        record = {**plain(config), "seed": self.seed}
        name = f"{self.model.name}-{config_hash(record)[:8]}"
        key = RunKey(PAPER, "single", name, self.seed, self.data.dataset, "single", self.model.name)
        run = Run(self.output, key, record, "epoch", self.checkpoint_seconds, fabric.is_global_zero)
        if run.is_finished:
            logger.info("this run is done already: %s", run.directory / "model.pt")
            return 0
        with run:
            trained = train(
                config,
                self.seed,
                fabric,
                run,
                _data_root(self.data_root),
                self.accelerator.compile,
                self.download,
            )
            path = run.save_artifact("model.pt", artifact(trained, config))
            draw_cost(run, trained.network, config)
            finish(run, trained, config)
        logger.info("network in %s", path)
        return 0


@dataclass(frozen=True)
class Evaluate:
    """Top-1 and top-5 of a saved network, or of the authors' weights, on test images."""

    checkpoint: Path
    """model.pt of a run, or weights of the authors or of timm's scheme (with --model)."""
    model: Literal["emo_1m", "emo_2m", "emo_5m", "emo_6m"] | None = None
    """The network that the authors' weights are of."""
    images: Path | None = None
    """Folder with a folder of images for each class; by default the test images of the run's data set."""
    data_root: Path | None = None
    """Folder with further data; by default $TENFOLD_DATA, else ./data."""
    seed: int = 0
    """Seed of the digits' split."""
    accelerator: Accelerator = field(default_factory=AcceleratorConfig)

    def run(self) -> int:
        network, config = load_network(self.checkpoint, self.model)
        fabric = launch_fabric(self.accelerator)
        network = network.to(fabric.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        if self.images is not None or config.data.dataset == "imagenet":
            test: Any = self.images or _data_root(self.data_root) / "imagenet" / "val"
        else:
            test = load_in_memory(config.data, _data_root(self.data_root), self.seed).test.to(fabric.device)
        found = judge(network, test, config.data, fabric)
        if fabric.is_global_zero:
            print(f"top-1 {found['top1']:.3f} %, top-5 {found['top5']:.3f} %")
        return 0


@dataclass(frozen=True)
class Classify:
    """The likeliest classes of pictures."""

    pictures: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Image files."""
    checkpoint: Path
    """model.pt of a run, or weights of the authors (with --model)."""
    model: Literal["emo_1m", "emo_2m", "emo_5m", "emo_6m"] | None = None
    """The network that the authors' weights are of."""
    top: int = 5
    """How many classes."""

    def run(self) -> int:
        network, config = load_network(self.checkpoint, self.model)
        transform = testing_transform(config.data)
        for picture in self.pictures:
            try:
                image = Image.open(picture).convert("RGB")
            except (OSError, UnidentifiedImageError) as error:
                raise TenfoldError(f"{picture} is no picture that can be read") from error
            with torch.inference_mode():
                probabilities = network(transform(image)[None]).softmax(dim=1)[0]
            best = probabilities.topk(min(self.top, len(probabilities)))
            said = ", ".join(
                f"{label} ({value:.1%})" for value, label in zip(*map(torch.Tensor.tolist, best), strict=True)
            )
            print(f"{picture}: {said}")
        return 0


@dataclass(frozen=True)
class Export:
    """Write a network for other runtimes, with folded norms, for any batch and size of images; it is compared first."""

    output: Path
    """File to write."""
    checkpoint: Path | None = None
    """model.pt of a run, or weights of the authors (with --model); by default random weights."""
    model: Literal["emo_1m", "emo_2m", "emo_5m", "emo_6m"] | None = None
    """The network that weights are of."""
    format: Literal["onnx", "torch.export", "torchscript", "int8"] = "onnx"
    """onnx, a program of torch.export (.pt2), a trace of TorchScript, or such a program in int8 for single images."""
    images: Path | None = None
    """For int8: folder with a folder of images for each class; its ranges come from them."""
    count: int = 128
    """For int8: how many of them, half of which judge what was lost."""
    quiet: Quiet = False
    """Only warnings and errors."""

    def run(self) -> int:
        if self.checkpoint is None:
            config = RunConfig(ModelConfig(self.model or "emo_1m"))
            network: nn.Module = build_model(config.model.name).eval()
        else:
            network, config = load_network(self.checkpoint, self.model)
        if not isinstance(network, EMO):
            raise TenfoldError("only EMO is exported; timm has ways of its own for its models")
        self.output.parent.mkdir(parents=True, exist_ok=True)
        if self.format == "onnx":
            export_onnx(network, self.output)
        else:
            with replaced(self.output) as temporary:
                if self.format == "torchscript":
                    trace(network).save(str(temporary))
                elif self.format == "torch.export":
                    _save_program(export_program(network), temporary)
                else:
                    self._quantise(network, config, temporary)
        logger.info("%s in %s", self.format, self.output)
        return 0

    def _quantise(self, network: EMO, config: RunConfig, path: Path) -> None:
        if self.images is None or self.count < 2:
            raise TenfoldError(
                "int8 needs images for its ranges: give --images a folder, and --count at least 2"
            )
        pictures = image_folder(self.images, testing_transform(config.data))
        chosen = torch.linspace(0, len(pictures) - 1, min(self.count, len(pictures))).long().tolist()
        batches = [pictures[number][0][None] for number in chosen]
        quantised = export_int8(network, batches[::2])
        found = agreement(network, quantised, batches[1::2])
        print(f"the same class for {found.same_class:.1%} of {found.images} images")
        _save_program(torch.export.export(quantised, (batches[0],)), path)


def _save_program(program: torch.export.ExportedProgram, path: Path) -> None:
    with path.open("wb") as file:
        torch.export.save(program, file)


@dataclass(frozen=True)
class Compare:
    """EMO beside timm's mobile networks: parameters, multiply-accumulates, throughput here, published accuracy."""

    names: tuple[str, ...] = (*PEERS, *UNPUBLISHED)
    """Networks of this package and of timm."""
    batch_size: int = 1
    """Images of a pass."""
    size: int | None = None
    """Side of images for all; by default each network's own."""
    threads: int = 1
    """On the CPU."""
    device: Literal["cpu", "cuda"] = "cpu"
    """Where."""
    repeats: int = 5
    """Passes, of which the median counts."""
    picture: Path | None = None
    """PNG file for published accuracy against multiply-accumulates."""

    def run(self) -> int:
        if min(self.batch_size, self.threads, self.repeats) < 1:
            raise TenfoldError("--batch-size, --threads and --repeats are at least 1")
        if self.device == "cuda" and not torch.cuda.is_available():
            raise TenfoldError("this machine has no GPU; leave out --device")
        torch.set_num_threads(self.threads)
        found = measure_peers(self.names, self.batch_size, self.device, self.repeats, self.size)
        table = Table(title=f"batches of {self.batch_size} on {self.device}", title_justify="left")
        table.add_column("network")
        for column in ("px", "params M", "MACs M", "images/s", "top-1 published"):
            table.add_column(column, justify="right")
        for peer in found:
            table.add_row(
                peer.name,
                str(peer.size),
                f"{peer.parameters / 1e6:.2f}",
                f"{peer.flops / 1e6:.0f}",
                f"{peer.images_per_second:.1f}",
                "–" if peer.top1 is None else f"{peer.top1:.1f}",
            )
        Console().print(table)
        if self.picture is not None:
            points = {
                peer.name: (peer.flops / 1e6, peer.top1, peer.parameters / 1e6)
                for peer in found
                if peer.top1 is not None
            }
            if not points:
                raise TenfoldError(
                    "none of these networks has a published accuracy, so there is nothing to draw"
                )
            with replaced(self.picture) as temporary:
                ours = [name for name in points if name in ARCHITECTURES]
                draw_pareto(points, "multiply-accumulates in millions", temporary, ours)
        return 0


@dataclass(frozen=True)
class Latency:
    """Time and multiply-accumulates of every layer of EMO."""

    model: Literal["emo_1m", "emo_2m", "emo_5m", "emo_6m"] = "emo_1m"
    """Which."""
    size: int = 224
    """Side of images."""
    batch_size: int = 1
    """Images of a pass."""
    threads: int = 1
    """On the CPU."""
    fold: bool = True
    """With folded norms."""
    seconds: float = 0.2
    """For each layer."""
    picture: Path | None = None
    """PNG file with a bar for each layer."""

    def run(self) -> int:
        network = build_model(self.model).eval()
        found = measure_latency(
            reparameterize(network) if self.fold else network,
            self.size,
            self.batch_size,
            self.threads,
            seconds=self.seconds,
        )
        table = Table(title=f"{self.model}, {self.batch_size} x {self.size} px", title_justify="left")
        table.add_column("layer")
        for column in ("ms", "spread ms"):
            table.add_column(column, justify="right")
        for row in found:
            table.add_row(row.name, f"{1000 * row.seconds:.3f}", f"{1000 * row.spread:.3f}")
        Console().print(table)
        print(f"{count_flops(network, self.size)['total'] / 1e6:.0f} M multiply-accumulates an image")
        if self.picture is not None:
            with replaced(self.picture) as temporary:
                draw_layers(
                    {row.name: 1000 * row.seconds for row in found if row.name != "total"}, "ms", temporary
                )
        return 0


Command = (
    Annotated[Reproduce, tyro.conf.subcommand("reproduce")]
    | Annotated[Train, tyro.conf.subcommand("train")]
    | Annotated[Evaluate, tyro.conf.subcommand("evaluate")]
    | Annotated[Classify, tyro.conf.subcommand("classify")]
    | Annotated[Export, tyro.conf.subcommand("export")]
    | Annotated[Compare, tyro.conf.subcommand("compare")]
    | Annotated[Latency, tyro.conf.subcommand("latency")]
)


def main(arguments: list[str] | None = None) -> None:
    """Entry point of ``tenfold-emo``; ends the process with the command's exit status."""
    with errors_in_one_line():
        command = tyro.cli(
            Command,
            prog="tenfold-emo",
            description="Efficient attention-based mobile models (Zhang et al., ICCV 2023).",
            args=arguments,
        )
        set_quiet(getattr(command, "quiet", False))
        sys.exit(command.run())


def load_network(path: Path, model: str | None) -> tuple[nn.Module, RunConfig]:
    """A saved network at inference and the settings of its run; of the authors' weights, the paper's settings.

    Raises:
        TenfoldError: the file is missing, damaged, or of another network.
    """
    if model is not None:
        network = build_model(model)
        report = load_weights(network, path)
        if report.head == "new":
            raise TenfoldError(f"{path} has a head for other classes than ImageNet's 1000")
        return network.eval(), RunConfig(ModelConfig(model))
    content = load_checkpoint(path)
    if not {"config", "num_classes", "network"} <= content.keys():
        raise TenfoldError(f"{path} is not model.pt of a run; name the network of other weights with --model")
    config = RunConfig.from_plain(content["config"])
    found = make_network(config.model, content["num_classes"], config.data.image_size)
    found.load_state_dict(content["network"])
    return found.eval(), config


def _profile(name: str) -> Profile | DenseProfile:
    profiles: dict[str, Profile | DenseProfile] = {**PROFILES, **DENSE_PROFILES}
    if name == "list":
        for known, profile in profiles.items():
            print(f"{known:24} {profile.description}")
        sys.exit(0)
    if name not in profiles:
        raise TenfoldError(f"unknown profile {name!r}; choose one of {', '.join(profiles)}")
    return profiles[name]


def _data_root(given: Path | None) -> Path:
    if given is not None and not given.is_dir():
        raise TenfoldError(f"there is no data root {given}; create it or leave out --data-root")
    return given or Path(os.environ.get("TENFOLD_DATA", "data"))
