"""Command line: ``tenfold-reliant reproduce | train | distill | evaluate | build-graph | datasets``."""

from __future__ import annotations

import os
import sys
import time
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro
from lightning_fabric import Fabric

from tenfold.reliant.backends import Backend
from tenfold.reliant.batches import FullBatches, NodeBatch
from tenfold.reliant.checkpoints import load_network, student_artifact, teacher_artifact, teacher_output
from tenfold.reliant.config import FRAMEWORKS, DistillationConfig, TeacherConfig
from tenfold.reliant.datasets import DATASETS, load_dataset, store_similarity_graph
from tenfold.reliant.experiments import PAPER, Suite, degenerate_runs, finish, reproduce
from tenfold.reliant.fairness_metrics import evaluate_predictions
from tenfold.reliant.graphs import FairGraph
from tenfold.reliant.label_propagation import LabelPropagationStudent
from tenfold.reliant.node_output import NodeOutput, as_node_output
from tenfold.reliant.profiles import PROFILES, Profile
from tenfold.reliant.training import all_metrics, distill, predict, train_teacher
from tenfold.shared.accelerator import AcceleratorConfig, launch_fabric
from tenfold.shared.comparison import load_reported, print_comparison
from tenfold.shared.logging import TenfoldError, errors_in_one_line, get_logger, set_quiet
from tenfold.shared.runs import Run, RunKey, config_hash, plain

logger = get_logger("reliant")

Quiet = Annotated[bool, tyro.conf.arg(aliases=["-q"])]

if TYPE_CHECKING:
    Student = DistillationConfig
else:  # `akd` or `cpf` on the command line, each with its own defaults
    Student = tyro.extras.subcommand_type_from_defaults(FRAMEWORKS)


@dataclass(frozen=True)
class DataArguments:
    """Where the graph comes from."""

    dataset: str = "recidivism-3000"
    """german, recidivism-3000, recidivism, credit, credit-recomputed, dblp, dblp-l, or a graph of your own saved by
    torch.save(data.to_dict(), "graph.pt")."""
    sensitive_column: int | None = None
    """Of a graph of your own: the column of x that holds the groups, where it has no field 'sensitive'."""
    data_root: Path | None = None
    """Folder with further data; by default $TENFOLD_DATA, else ./data."""
    download: bool = False
    """Fetch what is missing and can be fetched."""

    def load(self) -> FairGraph:
        return load_dataset(self.dataset, _data_root(self.data_root), self.download, self.sensitive_column)


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
        metrics = ("accuracy", "delta_sp", "delta_eo", "positive_rate")
        verdicts = print_comparison(load_reported("tenfold.reliant"), results, self.profile, metrics)
        failed = [verdict.claim.id for verdict in verdicts if verdict.holds is False]
        if failed:
            logger.error("claims that do not hold: %s", ", ".join(failed))
        claimed = {method for verdict in verdicts for method in (verdict.claim.better, verdict.claim.worse)}
        collapsed = degenerate_runs(results, claimed)
        if collapsed:
            logger.error(
                "nearly everyone gets the same answer, which is not fairness, in: %s", ", ".join(collapsed)
            )
        return 1 if failed or collapsed else 0


@dataclass(frozen=True)
class Train:
    """Train one teacher on the labels."""

    data: DataArguments = field(default_factory=DataArguments)
    teacher: TeacherConfig = field(default_factory=TeacherConfig)
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
        graph = self.data.load()
        fabric = launch_fabric(self.accelerator)
        config = {"graph": graph.digest(), "teacher": plain(self.teacher), "backend": self.backend}
        setting = f"{self.teacher.kind} single"
        run = _single_run(self, graph, f"{self.teacher.kind}-teacher", setting, "Teacher", config, fabric)
        if run.is_finished:
            logger.info("this teacher is trained already: %s", run.directory / "model.pt")
            return 0
        started = time.monotonic()
        with run:
            compiled = self.accelerator.compile
            trained = train_teacher(
                graph, self.teacher, self.seed, fabric, run, self.backend, compile_network=compiled
            )
            path = run.save_artifact("model.pt", teacher_artifact(self.teacher, graph, trained))
            finish(run, all_metrics(graph, trained), trained, started)
        logger.info("teacher in %s", path)
        return 0


@dataclass(frozen=True)
class Distill:
    """Train one student with RELIANT: `distill --teacher model.pt akd --alpha 100`; akd and cpf have more options."""

    teacher: Path | None = None
    """model.pt of a teacher's run; not needed with --learn-from labels."""
    data: DataArguments = field(default_factory=DataArguments)
    student: Student = field(default_factory=DistillationConfig)
    seed: int = 0
    """Seed of weights, proxies, dropout and order."""
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
        graph, student = self.data.load(), self.student
        if self.teacher is None and student.learn_from == "teacher":
            raise TenfoldError("name the teacher's model.pt with --teacher, or add --learn-from labels")
        teacher: NodeOutput | None = None if self.teacher is None else teacher_output(self.teacher, graph)
        fabric = launch_fabric(self.accelerator)
        config = {
            "graph": graph.digest(),
            "teacher": None if self.teacher is None else sha256(self.teacher.read_bytes()).hexdigest(),
            "student": plain(student),
            "seed": self.seed,
            "backend": self.backend,
        }
        method = _method_name(student)
        name = f"{student.framework}-{student.objective}-{method.lower().replace(' ', '-')}"
        setting = f"{student.framework} {student.objective} single"
        run = _single_run(self, graph, name, setting, method, config, fabric)
        if run.is_finished:
            logger.info("this student is trained already: %s", run.directory / "model.pt")
            return 0
        started = time.monotonic()
        with run:
            compiled = self.accelerator.compile
            distilled = distill(
                graph, teacher, student, self.seed, fabric, run, self.backend, compile_network=compiled
            )
            path = run.save_artifact("model.pt", student_artifact(student, graph, distilled, teacher))
            finish(run, all_metrics(graph, distilled, teacher), distilled, started)
        logger.info("student in %s", path)
        return 0


@dataclass(frozen=True)
class Evaluate:
    """Utility and fairness of a saved teacher or student."""

    checkpoint: Path
    """model.pt of a run."""
    data: DataArguments = field(default_factory=DataArguments)
    split: Literal["train", "val", "test"] = "test"
    """Which nodes."""
    backend: Backend = "pyg"
    """Message passing."""

    def run(self) -> int:
        graph = self.data.load()
        network, proxies = load_network(self.checkpoint, graph)

        def forward(batch: NodeBatch) -> NodeOutput:
            inputs = batch.features if proxies is None else proxies.with_mean(batch.features)
            return as_node_output(network(inputs, batch.topology))

        if self.split == "train" and isinstance(network, LabelPropagationStudent):
            raise TenfoldError(
                "label propagation is given the labels of training nodes; choose --split val or test"
            )
        logits = predict(network, FullBatches(graph, self.backend), forward).logits
        nodes = getattr(graph, self.split)
        metrics = evaluate_predictions(logits[nodes], graph.labels[nodes], graph.sensitive[nodes])
        print(f"{graph.name}, {len(nodes)} {self.split} nodes")
        for name, value in metrics.items():
            print(f"  {name:14} {value:.4f}")
        return 0


@dataclass(frozen=True)
class BuildGraph:
    """Build the similarity graph of a table once and keep it beside the table."""

    dataset: Literal["recidivism", "credit-recomputed"] = "recidivism"
    """Whose table."""
    data_root: Path | None = None
    """Folder with further data; by default $TENFOLD_DATA, else ./data."""
    download: bool = False
    """Fetch what is missing and can be fetched: the table."""
    quiet: Quiet = False
    """Only warnings and errors."""

    def run(self) -> int:
        path = store_similarity_graph(self.dataset, _data_root(self.data_root), self.download)
        logger.info("similarity graph in %s", path)
        return 0


@dataclass(frozen=True)
class Datasets:
    """Print what is known of each data set that can be loaded here."""

    data_root: Path | None = None
    """Folder with further data; by default $TENFOLD_DATA, else ./data."""
    quiet: Quiet = False
    """Only warnings and errors."""

    def run(self) -> int:
        for name in DATASETS:
            try:
                graph = load_dataset(name, _data_root(self.data_root))
            except TenfoldError as error:
                print(f"{name:18} not here: {error}")
                continue
            sizes = (
                f"{graph.num_nodes} nodes, {graph.num_undirected_edges} edges, {graph.num_features} features"
            )
            splits = f"{len(graph.train)}/{len(graph.val)}/{len(graph.test)}"
            rates = [
                float(graph.labels[graph.sensitive == group].float().mean())
                for group in range(graph.num_groups)
            ]
            gap = ", ".join(f"{rate:.3f}" for rate in rates)
            print(f"{name:18} {sizes}, split {splits}, base rates {gap}\n{'':18} {graph.provenance}")
        return 0


Command = (
    Annotated[Reproduce, tyro.conf.subcommand("reproduce")]
    | Annotated[Train, tyro.conf.subcommand("train")]
    | Annotated[Distill, tyro.conf.subcommand("distill")]
    | Annotated[Evaluate, tyro.conf.subcommand("evaluate")]
    | Annotated[BuildGraph, tyro.conf.subcommand("build-graph")]
    | Annotated[Datasets, tyro.conf.subcommand("datasets")]
)


def main(arguments: list[str] | None = None) -> None:
    """Entry point of ``tenfold-reliant``; ends the process with the command's exit status."""
    with errors_in_one_line():
        command = tyro.cli(
            Command,
            prog="tenfold-reliant",
            description="Fair knowledge distillation for graph neural networks (Dong et al., SDM 2023).",
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


def _single_run(
    command: Train | Distill,
    graph: FairGraph,
    name: str,
    setting: str,
    method: str,
    config: dict[str, Any],
    fabric: Fabric,
) -> Run:
    """The record of one training; other settings have a directory of their own."""
    unique = f"{graph.name}-{name}-{config_hash(config)[:8]}"
    key = RunKey(PAPER, "single", unique, command.seed, graph.name, setting, method)
    return Run(
        command.output,
        key,
        config,
        checkpoint_seconds=command.checkpoint_seconds,
        is_writer=fabric.is_global_zero,
    )


def _method_name(student: DistillationConfig) -> str:
    """What a student's settings amount to."""
    base = "labels" if student.learn_from == "labels" else "KD"
    if student.use_proxies and student.alpha > 0:
        return "RELIANT" if base == "KD" else "RELIANT on labels"
    return base + (" with bias term" if student.alpha > 0 else " with proxies" if student.use_proxies else "")


def _data_root(given: Path | None) -> Path:
    if given is not None and not given.is_dir():
        raise TenfoldError(f"there is no data root {given}; create it or leave out --data-root")
    return given or Path(os.environ.get("TENFOLD_DATA", "data"))
