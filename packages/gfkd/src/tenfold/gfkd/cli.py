"""Command line: ``tenfold-gfkd reproduce | train | generate | distill | evaluate | export``."""

from __future__ import annotations

import hashlib
import os
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Literal

import torch
import tyro

from tenfold.gfkd.backends import Backend
from tenfold.gfkd.checkpoints import load_model, read_fake_graphs, read_graphs
from tenfold.gfkd.config import GenerationConfig, TrainingConfig
from tenfold.gfkd.data import write_gin_text
from tenfold.gfkd.evaluation import accuracy, predict
from tenfold.gfkd.experiments import PAPER, Split, Suite, load_split, reproduce
from tenfold.gfkd.generation import GENERATION_METHODS, GraphGenerator, chunk_seed, chunk_sizes
from tenfold.gfkd.graphs import concatenate
from tenfold.gfkd.models import GraphClassifier, build_model
from tenfold.gfkd.profiles import PROFILES, Profile
from tenfold.gfkd.training import artifact, fit, labels_and_loss, teacher_and_loss
from tenfold.shared.accelerator import AcceleratorConfig, launch_fabric
from tenfold.shared.comparison import load_reported, print_comparison
from tenfold.shared.logging import TenfoldError, errors_in_one_line, get_logger, progress, set_quiet
from tenfold.shared.runs import Run, RunKey, plain, save_atomically

logger = get_logger("gfkd")

Quiet = Annotated[bool, tyro.conf.arg(aliases=["-q"])]


@dataclass(frozen=True)
class DataArguments:
    """Where the graphs come from."""

    dataset: str = "mutag"
    """mutag, ptc, ptc-mr, proteins, imdb-b, collab, reddit-b, or the path of a file in the GIN text format."""
    data_root: Path | None = None
    """Folder with further data; by default $TENFOLD_DATA, else ./data."""
    split_seed: int = 29
    """Seed of the 70 / 30 split."""
    download: bool = False
    """Fetch what is missing and can be fetched: a set of the TUDataset collection."""


@dataclass(frozen=True)
class Reproduce:
    """Run a profile's suite, compare it with printed numbers, and fail if a claim does not hold."""

    profile: str = "quick"
    """Which suite; `--profile list` prints them."""
    seeds: tuple[int, ...] | None = None
    """Generation seeds instead of the profile's."""
    methods: tuple[str, ...] | None = None
    """Some of the profile's methods, by name."""
    output: Path = Path("runs")
    """Directory of all runs."""
    data_root: Path | None = None
    """Folder with further data; by default $TENFOLD_DATA, else ./data."""
    download: bool = False
    """Fetch what is missing and can be fetched: sets of the TUDataset collection."""
    force: bool = False
    """Repeat runs that are finished."""
    workers: int | None = None
    """Processes that share the runs; by default one for each CPU core, eight at the most; a GPU they share."""
    accelerator: AcceleratorConfig = field(default_factory=AcceleratorConfig)
    checkpoint_seconds: float = 15.0
    """Time between two checkpoints of a run."""
    quiet: Quiet = False
    """Only warnings, errors and the final tables."""

    def run(self) -> int:
        profile = _profile(self.profile)
        if self.seeds is not None:
            if not self.seeds or len(set(self.seeds)) < len(self.seeds):
                raise TenfoldError("give --seeds at least one number, each once")
            profile = replace(profile, seeds=self.seeds)
        if self.methods is not None:
            known = profile.all_methods()
            if not self.methods or set(self.methods) - set(known):
                raise TenfoldError(f"--methods takes some of {', '.join(known)}")
            profile = profile.only(self.methods)
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
        metrics = ("test_accuracy", "best_test_accuracy", "final_loss")
        verdicts = print_comparison(load_reported("tenfold.gfkd"), results, self.profile, metrics)
        failed = [verdict.claim.id for verdict in verdicts if verdict.holds is False]
        if failed:
            logger.error("claims that do not hold: %s", ", ".join(failed))
        return 1 if failed else 0


@dataclass(frozen=True)
class Train:
    """Train one classifier on a data set's labels (a teacher, or a student for reference)."""

    model: str = "gcn5_64"
    """{gcn|gin}{layers}_{width}."""
    data: DataArguments = field(default_factory=DataArguments)
    training: TrainingConfig = field(default_factory=lambda: TrainingConfig(shuffle=True))
    seed: int = 0
    """Seed of weights, dropout and order."""
    backend: Backend = "pyg"
    """Message passing."""
    output: Path = Path("runs")
    """Directory of all runs."""
    accelerator: AcceleratorConfig = field(default_factory=AcceleratorConfig)
    checkpoint_seconds: float = 15.0
    """Time between two checkpoints."""
    quiet: Quiet = False
    """Only warnings and errors."""

    def run(self) -> int:
        return _train_one(
            self, teacher=None, graphs=None, name=f"{_stem(self.data.dataset)}-{self.model}-labels"
        )


@dataclass(frozen=True)
class Distill:
    """Train a student on a teacher's logits, on fake graphs or on the real training graphs."""

    teacher: Path
    """model.pt of a run, or a released .pth file."""
    graphs: Path | None = None
    """graphs.pt of a run, or fake graphs in the GIN text format; by default the real training graphs."""
    official_loops: bool = False
    """As the authors' reader, leave out the self loop of nodes without outgoing edges in a text file."""
    teacher_model: str = "gcn5_64"
    """The teacher's architecture, needed for a released .pth file only."""
    model: str = "gcn3_32"
    """The student, {gcn|gin}{layers}_{width}."""
    data: DataArguments = field(default_factory=DataArguments)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    seed: int = 0
    """Seed of weights and dropout."""
    backend: Backend = "pyg"
    """Message passing."""
    output: Path = Path("runs")
    """Directory of all runs."""
    accelerator: AcceleratorConfig = field(default_factory=AcceleratorConfig)
    checkpoint_seconds: float = 15.0
    """Time between two checkpoints."""
    quiet: Quiet = False
    """Only warnings and errors."""

    def run(self) -> int:
        name = f"{_stem(self.data.dataset)}-{self.model}-distilled"
        return _train_one(self, self.teacher, self.graphs, name, self.official_loops)


@dataclass(frozen=True)
class Generate:
    """Make fake graphs from a teacher alone."""

    teacher: Path
    """model.pt of a run, or a released .pth file."""
    output: Path = Path("graphs.pt")
    """File to write the fake graphs to."""
    method: Literal["GFKD", "DeepInvG", "RandG"] = "GFKD"
    """What is learned: features and structure, features only, or nothing."""
    teacher_model: str = "gcn5_64"
    """The teacher's architecture, needed for a released .pth file only."""
    generation: GenerationConfig = field(default_factory=lambda: GenerationConfig(num_graphs=131))
    seed: int = 0
    """Seed of sizes, labels, initial values and noise."""
    backend: Backend = "dense"
    """Message passing."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Where to compute."""
    quiet: Quiet = False
    """Only warnings and errors."""

    def run(self) -> int:
        if self.generation.num_graphs is None:
            raise TenfoldError("say how many fake graphs to make: --num-graphs 131")
        device = launch_fabric(AcceleratorConfig(device=self.device)).device
        network, known_degrees = load_model(self.teacher, self.teacher_model)
        if self.generation.features == "degree" and known_degrees is None:
            raise TenfoldError("this teacher reads node tags; degree features need one trained on degrees")
        if self.generation.features != "degree" and known_degrees is not None:
            raise TenfoldError("this teacher reads degrees; add --features degree")
        iterations = 0 if self.method == "RandG" else self.generation.iterations
        parts, losses = [], []
        for chunk, size in enumerate(chunk_sizes(self.generation)):
            seed = chunk_seed(self.seed, chunk)
            generator = GraphGenerator(
                network,
                replace(self.generation, num_graphs=size),
                GENERATION_METHODS[self.method],
                [seed],
                known_degrees,
                self.backend,
                device,
            )
            for _ in progress(range(iterations), self.method, iterations):
                generator.step()
            losses.append(float(generator.current_loss()))
            parts.append(generator.graphs(seed))
        self.output.parent.mkdir(parents=True, exist_ok=True)
        save_atomically(self.output, concatenate(parts).state_dict())
        final = sum(losses) / len(losses)
        logger.info("%d fake graphs in %s, objective %.3f", self.generation.num_graphs, self.output, final)
        return 0


@dataclass(frozen=True)
class Evaluate:
    """Test accuracy of a saved or a released network."""

    checkpoint: Path
    """model.pt of a run, or a released .pth file."""
    model: str = "gcn5_64"
    """The architecture, needed for a released .pth file only."""
    data: DataArguments = field(default_factory=DataArguments)
    backend: Backend = "pyg"
    """Message passing."""

    def run(self) -> int:
        network, _ = load_model(self.checkpoint, self.model)
        split = load_split(
            self.data.dataset, self.data.split_seed, _data_root(self.data.data_root), self.data.download
        )
        _check_fit(network, split)
        value = accuracy(predict(network, split.test, self.backend), split.test.labels)
        print(f"test accuracy {value:.2f} % on {len(split.test)} graphs of {split.dataset.name}")
        return 0


@dataclass(frozen=True)
class Export:
    """Write fake graphs in a format that other programs read."""

    graphs: Path
    """graphs.pt of a run."""
    output: Path
    """File to write."""
    format: Literal["gin", "pyg", "dgl"] = "gin"
    """gin: compact text; pyg: torch_geometric data list (torch.save); dgl: DGL's binary format."""
    quiet: Quiet = False
    """Only warnings and errors."""

    def run(self) -> int:
        graphs = read_graphs(self.graphs)
        self.output.parent.mkdir(parents=True, exist_ok=True)
        if self.format == "gin":
            if graphs.nodes.is_floating_point():
                raise TenfoldError(
                    "the GIN text format holds node classes only; export these graphs with --format pyg"
                )
            write_gin_text(graphs, self.output)
        elif self.format == "pyg":
            torch.save(graphs.to_pyg(), self.output)
        else:
            dgl_graphs = graphs.to_dgl()
            import dgl

            dgl.save_graphs(str(self.output), dgl_graphs, {"labels": graphs.labels})
        logger.info("%d graphs in %s", len(graphs), self.output)
        return 0


Command = (
    Annotated[Reproduce, tyro.conf.subcommand("reproduce")]
    | Annotated[Train, tyro.conf.subcommand("train")]
    | Annotated[Generate, tyro.conf.subcommand("generate")]
    | Annotated[Distill, tyro.conf.subcommand("distill")]
    | Annotated[Evaluate, tyro.conf.subcommand("evaluate")]
    | Annotated[Export, tyro.conf.subcommand("export")]
)


def main(arguments: list[str] | None = None) -> None:
    """Entry point of ``tenfold-gfkd``; ends the process with the command's exit status."""
    with errors_in_one_line():
        command = tyro.cli(
            Command,
            prog="tenfold-gfkd",
            description="Graph-free knowledge distillation for graph neural networks (Deng and Zhang, IJCAI 2021).",
            args=arguments,
            config=(tyro.conf.OmitArgPrefixes,),
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


def _data_root(given: Path | None) -> Path:
    if given is not None and not given.is_dir():
        raise TenfoldError(f"there is no data root {given}; create it or leave out --data-root")
    return given or Path(os.environ.get("TENFOLD_DATA", "data"))


def _check_fit(network: GraphClassifier, split: Split) -> None:
    sizes, expected = (
        (network.input_dim, network.output_dim),
        (split.test.num_features, split.test.num_classes),
    )
    if sizes != expected:
        raise TenfoldError(
            f"the network reads {sizes[0]} features and knows {sizes[1]} classes, but {split.dataset.name} has "
            f"{expected[0]} and {expected[1]}; choose the --dataset it was trained on"
        )


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _stem(dataset: str) -> str:
    return Path(dataset).stem.lower()


def _train_one(
    arguments: Train | Distill,
    teacher: Path | None,
    graphs: Path | None,
    name: str,
    official_loops: bool = False,
) -> int:
    """Train one network on labels, or on a teacher's logits, with a run record of its own."""
    data, training = arguments.data, arguments.training
    fabric = launch_fabric(arguments.accelerator)
    split = load_split(data.dataset, data.split_seed, _data_root(data.data_root), data.download)
    train = split.train
    if graphs is not None:
        sizes = (split.train.num_features, split.train.num_classes)
        train = read_fake_graphs(graphs, *sizes, official_loops)
    if teacher is None:
        targets, loss = labels_and_loss(train)
    else:
        network, _ = load_model(teacher, arguments.teacher_model if isinstance(arguments, Distill) else "")
        _check_fit(network, split)
        targets, loss = teacher_and_loss(network, train, training.temperature, arguments.backend)
    config = {
        "dataset": split.dataset.name,
        "split_seed": data.split_seed,
        "model": arguments.model,
        "training": plain(training),
        "seed": arguments.seed,
        "teacher_sha256": None if teacher is None else _sha256(teacher),
        "graphs_sha256": None if graphs is None else _sha256(graphs),
        "official_loops": official_loops,
    }
    method = "Labels" if teacher is None else "KD" if graphs is None else "Fake graphs"
    key = RunKey(
        PAPER, "single", name, arguments.seed, split.dataset.name, f"{arguments.model} single", method
    )
    run = Run(
        arguments.output,
        key,
        config,
        checkpoint_seconds=arguments.checkpoint_seconds,
        is_writer=fabric.is_global_zero,
    )
    with run:
        network, fitted = fit(
            lambda: build_model(arguments.model, train.num_features, train.num_classes),
            train,
            targets,
            loss,
            split.test,
            training,
            arguments.seed,
            fabric,
            run,
            arguments.backend,
            arguments.accelerator.compile,
        )
        content = artifact(
            arguments.model, network, network.state_dict(), known_degrees=split.dataset.known_degrees
        )
        path = run.save_artifact("model.pt", content)
        run.finish({"test_accuracy": fitted.last_accuracy, "best_test_accuracy": fitted.best_accuracy})
    logger.info(
        "test accuracy %.2f %% (best epoch %.2f %%), network in %s",
        fitted.last_accuracy,
        fitted.best_accuracy,
        path,
    )
    return 0
