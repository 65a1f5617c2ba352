"""A profile's suite in three stages: teachers, their fake graphs, students. Each job leaves run records.

A job finds what it needs in the records of the stage before, so jobs of one stage can run in any order, in several
processes, and again after an interruption.
"""

from __future__ import annotations

import multiprocessing
import time
from dataclasses import dataclass, field, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor

from tenfold.gfkd.checkpoints import load_model, read_graphs
from tenfold.gfkd.config import GenerationConfig, TrainingConfig
from tenfold.gfkd.data import DATASETS, Dataset, load_dataset, split_indices
from tenfold.gfkd.evaluation import agreement, predict
from tenfold.gfkd.generation import GENERATION_METHODS, Learned
from tenfold.gfkd.graphs import GraphSet
from tenfold.gfkd.models import GraphClassifier, build_model
from tenfold.gfkd.profiles import Profile
from tenfold.gfkd.training import artifact, fit, labels_and_loss, teacher_and_loss
from tenfold.shared.accelerator import AcceleratorConfig, launch_fabric
from tenfold.shared.logging import get_logger, progress
from tenfold.shared.parallel import JobPool, available_cores
from tenfold.shared.runs import Run, RunKey, plain

logger = get_logger("gfkd")

PAPER = "gfkd"


@dataclass(frozen=True)
class Split:
    """One data set, split as the authors did."""

    dataset: Dataset
    train: GraphSet
    test: GraphSet


@dataclass(frozen=True)
class TeacherJob:
    """Train one teacher."""

    dataset: str
    teacher: str


@dataclass(frozen=True)
class GenerationJob:
    """Make the fake graphs of one or more seeds from one teacher, all in one batch."""

    dataset: str
    teacher: str
    method: str
    seeds: tuple[int, ...]


@dataclass(frozen=True)
class StudentJob:
    """Train one student, on real graphs or on the fake graphs of one generation seed."""

    dataset: str
    teacher: str
    student: str
    method: str
    generation_seed: int
    seed: int


Job = TeacherJob | GenerationJob | StudentJob


@dataclass(frozen=True)
class Suite:
    """A profile, and where and how its runs are done; only the profile decides what comes out."""

    name: str
    profile: Profile
    output: Path
    data_root: Path | None = None
    download: bool = False
    force: bool = False
    checkpoint_seconds: float = 15.0
    accelerator: AcceleratorConfig = field(default_factory=AcceleratorConfig)

    @property
    def fabric(self) -> Fabric:
        """The Fabric of this process, launched."""
        return launch_fabric(self.accelerator)

    def split(self, dataset: str) -> Split:
        """A data set of the profile, on the CPU."""
        return load_split(dataset, self.profile.split_seed, self.data_root, self.download)

    def generation(self, dataset: str, method: str) -> GenerationConfig | None:
        """The settings of a method on a data set; None for methods that use the real graphs."""
        changes = dict(self.profile.ablations).get(method)
        if method not in GENERATION_METHODS and changes is None:
            return None
        info, base = DATASETS[dataset], self.profile.generation
        config = replace(
            base,
            num_graphs=base.num_graphs or len(self.split(dataset).train),
            min_nodes=info.node_range[0],
            max_nodes=info.node_range[1],
            features=info.features,
            structure_lr=info.structure_lr,
            graphs_per_batch=base.graphs_per_batch or info.graphs_per_batch,
            iterations=0 if method == "RandG" else base.iterations,
        )
        return replace(config, **(changes or {}))  # type: ignore[arg-type]

    def run(self, job: TeacherJob | StudentJob) -> Run:
        """The record of one training."""
        recipe = self.profile.recipe
        config: dict[str, Any] = {
            "dataset": job.dataset,
            "split_seed": self.profile.split_seed,
            "teacher": job.teacher,
            "teacher_training": plain(self.profile.teacher),
            "backend": self.profile.backend,
        }
        if isinstance(job, TeacherJob):
            name = f"{job.dataset}-{job.teacher}-teacher"
            key = RunKey(PAPER, self.name, name, 0, job.dataset, f"{job.teacher} {recipe}", "Teacher")
            return self._open(key, config, "epoch")
        generation = self.generation(job.dataset, job.method)
        config |= {
            "student": job.student,
            "student_training": plain(self.profile.student),
            "method": job.method,
            "generation": None if generation is None else plain(generation),
            "generation_seed": None if generation is None else job.generation_seed,
            "student_seed": job.seed,
        }
        name = f"{job.dataset}-{job.teacher}-{job.student}-{_slug(job.method)}"
        setting = f"{job.teacher}-{job.student} {recipe}"
        return self._open(
            RunKey(PAPER, self.name, name, job.seed, job.dataset, setting, job.method), config, "epoch"
        )

    def generation_runs(self, job: GenerationJob) -> dict[int, Run]:
        """The records of one generation, by seed."""
        teacher = self.run(TeacherJob(job.dataset, job.teacher)).config
        generation = plain(self.generation(job.dataset, job.method))
        name = f"{job.dataset}-{job.teacher}-{_slug(job.method)}-graphs"
        setting = f"{job.teacher} {self.profile.recipe} generation"
        return {
            seed: self._open(
                RunKey(PAPER, self.name, name, seed, job.dataset, setting, job.method),
                {**teacher, "method": job.method, "generation": generation, "generation_seed": seed},
                "iteration",
            )
            for seed in job.seeds
        }

    def _open(self, key: RunKey, config: dict[str, Any], x_label: str) -> Run:
        writer = self.fabric.is_global_zero
        return Run(self.output, key, config, x_label, self.checkpoint_seconds, is_writer=writer)


def reproduce(suite: Suite, workers: int | None = 1, quiet: bool = False) -> list[dict[str, Any]]:
    """Do every run of the suite that is not finished yet.

    Args:
        suite: the profile and where its runs are.
        workers: processes that share the runs; None is one for each CPU core, eight at the most. On a GPU they share
            it, and the seeds of a generation run in one batch. With several devices each run is distributed instead.
        quiet: whether workers keep silent.

    Returns:
        The results of all runs, finished before or now.
    """
    on_cpu = suite.fabric.device.type == "cpu"
    if on_cpu:
        torch.set_num_threads(1)
    if suite.fabric.world_size > 1:
        workers = 1
    stages = all_jobs(suite, seeds_together=not on_cpu)
    if suite.force and suite.fabric.is_global_zero:
        for run in [run for stage in stages for job in stage for run in records(suite, job)]:
            run.clear()
    suite.fabric.barrier()
    with JobPool(workers or min(8, available_cores()), quiet, "tenfold.gfkd.generation_runs") as pool:
        for stage in stages:
            unfinished = [job for job in stage if not is_done(suite, job)]
            suite.fabric.barrier()
            done = pool.run(partial(do, suite), unfinished)
            for _ in progress(done, f"{PAPER} {suite.name}", total=len(unfinished)):
                suite.fabric.barrier()
    return [run.result or {} for stage in stages for job in stage for run in records(suite, job)]


def all_jobs(suite: Suite, seeds_together: bool) -> list[list[Job]]:
    """The stages of a suite and their jobs, those that take longest first."""
    profile = suite.profile
    methods = profile.all_methods()
    generated = [m for m in reversed(methods) if m in GENERATION_METHODS or m in dict(profile.ablations)]
    seed_groups = [profile.seeds] if seeds_together else [(seed,) for seed in profile.seeds]
    teachers = [(d, t) for d in profile.datasets for t in dict.fromkeys(pair[0] for pair in profile.pairs)]
    pairs = [(d, *pair) for d in profile.datasets for pair in profile.pairs]
    per_seed = profile.students_per_seed
    return [
        [TeacherJob(*teacher) for teacher in teachers],
        [
            GenerationJob(*teacher, method, seeds)
            for method in generated
            for teacher in teachers
            for seeds in seed_groups
        ],
        [
            StudentJob(*pair, method, seed, seed * per_seed + index)
            for pair in pairs
            for method in methods
            for seed in profile.seeds
            for index in range(per_seed)
        ],
    ]


def records(suite: Suite, job: Job) -> list[Run]:
    """The run records that a job leaves."""
    return list(suite.generation_runs(job).values()) if isinstance(job, GenerationJob) else [suite.run(job)]


def is_done(suite: Suite, job: Job) -> bool:
    """Whether a job's records are finished and hold what later jobs read."""
    needed = "graphs.pt" if isinstance(job, GenerationJob) else "model.pt"
    return all(run.is_finished and (run.directory / needed).exists() for run in records(suite, job))


def do(suite: Suite, job: Job) -> None:
    """Do one job."""
    if isinstance(job, TeacherJob):
        train_teacher(suite, job)
    elif isinstance(job, StudentJob):
        train_student(suite, job)
    elif suite.fabric.is_global_zero:
        from tenfold.gfkd.generation_runs import generate

        generate(suite, job)


def train_teacher(suite: Suite, job: TeacherJob) -> None:
    """Train a teacher on labels and keep the best test epoch, as in the released file."""
    split = suite.split(job.dataset)
    run = suite.run(job)
    targets, loss = labels_and_loss(split.train)
    started = time.monotonic()
    with run:
        network, fitted = fit(
            partial(build_model, job.teacher, split.train.num_features, split.train.num_classes),
            split.train,
            targets,
            loss,
            split.test,
            suite.profile.teacher,
            0,
            suite.fabric,
            run,
            suite.profile.backend,
            suite.accelerator.compile,
        )
        metrics = {"test_accuracy": fitted.last_accuracy, "best_test_accuracy": fitted.best_accuracy}
        content = artifact(job.teacher, network, fitted.best_state, known_degrees=split.dataset.known_degrees)
        run.save_artifact("model.pt", content)
        _finish(run, metrics, suite.profile.teacher, split.train, started)


def train_student(suite: Suite, job: StudentJob) -> None:
    """Train a student: on labels or by distillation, on the real graphs or on the fake ones of a seed."""
    split, device, backend = suite.split(job.dataset), suite.fabric.device, suite.profile.backend
    network, known_degrees = load_teacher(suite, job.dataset, job.teacher)
    if suite.generation(job.dataset, job.method) is None:
        graphs = split.train.to(device)
    else:
        generation = GenerationJob(job.dataset, job.teacher, job.method, (job.generation_seed,))
        source = suite.generation_runs(generation)[job.generation_seed]
        graphs = read_graphs(source.directory / "graphs.pt").to(device)
    if job.method == "Labels":
        targets, loss = labels_and_loss(graphs)
    else:
        targets, loss = teacher_and_loss(network, graphs, suite.profile.student.temperature, backend)
    run = suite.run(job)
    started = time.monotonic()
    with run:
        student, fitted = fit(
            partial(build_model, job.student, graphs.num_features, graphs.num_classes),
            graphs,
            targets,
            loss,
            split.test,
            suite.profile.student,
            job.seed,
            suite.fabric,
            run,
            backend,
            suite.accelerator.compile,
        )
        test = split.test.to(device)
        metrics = {
            "test_accuracy": fitted.last_accuracy,
            "best_test_accuracy": fitted.best_accuracy,
            "agreement": agreement(predict(student, test, backend), predict(network, test, backend)),
        }
        content = artifact(job.student, student, student.state_dict(), known_degrees=known_degrees)
        run.save_artifact("model.pt", content)
        _finish(run, metrics, suite.profile.student, graphs, started)


def load_teacher(suite: Suite, dataset: str, teacher: str) -> tuple[GraphClassifier, Tensor | None]:
    """A teacher of an earlier stage on this process's device, and the in-degrees behind its columns, if it has."""
    network, known_degrees = load_model(suite.run(TeacherJob(dataset, teacher)).directory / "model.pt")
    return network.to(suite.fabric.device), known_degrees


def learned_by(method: str) -> Learned:
    """What a method optimises; ablations are variants of GFKD."""
    return GENERATION_METHODS.get(method, GENERATION_METHODS["GFKD"])


def in_main_process() -> bool:
    """Whether this is no worker, so that a progress bar may be drawn."""
    return multiprocessing.parent_process() is None


@cache
def load_split(name: str, seed: int, root: Path | None, download: bool = False) -> Split:
    """Load a data set (once a process) and split it 70 / 30 by the authors' rule."""
    dataset = load_dataset(name, root, download=download)
    train, test = split_indices(len(dataset.graphs), seed)
    return Split(dataset, dataset.graphs.select(train), dataset.graphs.select(test))


def _finish(
    run: Run, metrics: dict[str, float], config: TrainingConfig, graphs: GraphSet, started: float
) -> None:
    seconds = time.monotonic() - started
    logger.info("%s: test accuracy %.2f %% (%.1f s)", run.directory.name, metrics["test_accuracy"], seconds)
    run.finish(metrics, config.epochs * len(graphs) / seconds, "graphs/s")


def _slug(method: str) -> str:
    return method.lower().replace(" ", "-")
