"""A profile's suite in two stages: the runs of every method and seed, and their paired comparison.

Each job leaves a run record. Jobs of one stage can run in any order, in several processes, and again after an
interruption.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from functools import cache, lru_cache, partial
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric

from tenfold.coca.config import StreamConfig, TrainConfig
from tenfold.coca.figures import draw_accuracy_matrix, draw_gains, draw_memory, draw_methods
from tenfold.coca.learner import launch_fabric
from tenfold.coca.paired import paired_difference
from tenfold.coca.profiles import Group, Profile
from tenfold.coca.streams import Stream, make_stream
from tenfold.coca.training import Learned, learn_stream, stream_metrics
from tenfold.shared.accelerator import AcceleratorConfig
from tenfold.shared.logging import get_logger, progress
from tenfold.shared.parallel import JobPool, available_cores
from tenfold.shared.runs import Run, RunKey, plain

logger = get_logger("coca")

PAPER = "coca"
MAIN_METRICS = ("class_il", "task_il", "domain_il", "accuracy")
"""What is compared with printed numbers; the first one that a run has is the one that decides."""


@dataclass(frozen=True)
class LearnJob:
    """One method learns the stream once."""

    group: str
    """Name of a :class:`~tenfold.coca.profiles.Group`; empty for the suite's own methods."""
    method: str
    memory_size: int
    """0 for methods without a memory."""
    seed: int


@dataclass(frozen=True)
class ComparisonJob:
    """Compare all methods of a group at one memory size, seed by seed."""

    group: str
    memory_size: int


Job = LearnJob | ComparisonJob


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
        return _launched(self.accelerator)

    def stream(self, config: StreamConfig) -> Stream:
        """A stream, on the CPU."""
        return _made_stream(config, self.data_root, self.download)

    def train_config(self, job: LearnJob) -> TrainConfig:
        """The settings of one run; what a benchmark draws follows the run's seed."""
        group = self.group(job.group)
        # Any row of the table of hyperparameters will do for methods without memory.
        config = self.profile.train_config(job.method, job.memory_size or group.memory_sizes[0], group)
        return config if config.stream.seed is not None else config.with_stream_seed(job.seed)

    def group(self, name: str) -> Group:
        """A group of the profile."""
        return next(group for group in self.profile.groups if group.name == name)

    def jobs_of(self, group: Group, memory_size: int) -> list[LearnJob]:
        """The runs that are compared at one memory size; those without memory belong to every one."""
        return [
            LearnJob(group.name, method, 0 if method in ("SGD", "JOINT") else memory_size, seed)
            for method in group.methods
            for seed in group.seeds
        ]

    def run(self, job: Job) -> Run:
        """The record of one job."""
        dataset = self.profile.dataset_name
        suffix = f" {job.group}" if job.group else ""
        if isinstance(job, ComparisonJob):
            compared = {
                f"{other.method}, seed {other.seed}": self.run(other).config_hash
                for other in self.jobs_of(self.group(job.group), job.memory_size)
            }
            setting = f"memory {job.memory_size}{suffix} comparison"
            name = f"{dataset}-{setting.removeprefix('memory ').replace(' ', '-')}"
            key = RunKey(PAPER, self.name, name, 0, dataset, setting, "CoCa")
            return Run(self.output, key, {"runs": compared}, is_writer=self.fabric.is_global_zero)
        setting = (f"memory {job.memory_size}" if job.memory_size else "no memory") + suffix
        slug = job.method.lower().replace("w/o", "without").replace("++", "pp").replace(" ", "-")
        name = (
            f"{dataset}-{slug}"
            + (f"-{job.memory_size}" if job.memory_size else "")
            + suffix.replace(" ", "-")
        )
        key = RunKey(PAPER, self.name, name, job.seed, dataset, setting, job.method)
        config = {**plain(self.train_config(job)), "seed": job.seed}
        return Run(
            self.output, key, config, "step", self.checkpoint_seconds, is_writer=self.fabric.is_global_zero
        )


def reproduce(suite: Suite, workers: int | None = 1, quiet: bool = False) -> list[dict[str, Any]]:
    """Do every run of the suite that is not finished yet.

    Args:
        suite: the profile and where its runs are.
        workers: processes that share the runs; None is one for each CPU core, eight at the most, and one on a GPU.
        quiet: whether workers keep silent.

    Returns:
        The results of all runs, finished before or now.
    """
    on_cpu = suite.fabric.device.type == "cpu"
    if on_cpu:
        torch.set_num_threads(1)
    if suite.fabric.world_size > 1:
        workers = 1
    stages = all_jobs(suite)
    first = next(job for job in stages[0] if isinstance(job, LearnJob))
    suite.stream(suite.train_config(first).stream)  # what is missing is said before anything is done
    if suite.force and suite.fabric.is_global_zero:
        for stage in stages:
            for job in stage:
                suite.run(job).clear()
    suite.fabric.barrier()
    workers = workers or (min(8, available_cores()) if on_cpu else 1)
    with JobPool(workers, quiet, "tenfold.coca.experiments") as pool:
        for stage in stages:
            unfinished = [job for job in stage if not is_done(suite, job)]
            suite.fabric.barrier()
            done = pool.run(partial(do, suite), unfinished)
            for _ in progress(done, f"{PAPER} {suite.name}", total=len(unfinished)):
                suite.fabric.barrier()
    return [suite.run(job).result or {} for stage in stages for job in stage]


def all_jobs(suite: Suite) -> list[list[Job]]:
    """The stages of a suite and their jobs; CoCa, which takes longest, first."""
    sizes = [(group, size) for group in suite.profile.groups for size in group.memory_sizes]
    found = dict.fromkeys(job for group, size in sizes for job in suite.jobs_of(group, size))
    learning: list[Job] = [*sorted(found, key=lambda job: not job.method.startswith(("CoCa", "OCD")))]
    comparisons: list[Job] = [
        ComparisonJob(group.name, size)
        for group, size in sizes
        if len(group.seeds) > 1 and "CoCa" in group.methods
    ]
    return [learning, comparisons]


def is_done(suite: Suite, job: Job) -> bool:
    """Whether a job's record is finished."""
    return suite.run(job).is_finished


def do(suite: Suite, job: Job) -> None:
    """Do one job."""
    if isinstance(job, LearnJob):
        run_learner(suite, job)
    else:
        run_comparison(suite, job)


def run_learner(suite: Suite, job: LearnJob) -> None:
    """Learn the stream and keep the learner; draw the accuracy matrix of the first seed, and CoCa's memory."""
    config = suite.train_config(job)
    stream = suite.stream(config.stream)
    started = time.monotonic()
    with suite.run(job) as run:
        learned = learn_stream(stream, config, job.seed, suite.fabric, run, suite.accelerator.compile)
        run.save_artifact("model.pt", {**learned.learner.artifact(), "stream": plain(config.stream)})
        if job.seed == suite.group(job.group).seeds[0]:
            draw_outcome(run, learned, job.method, with_memory=job.method == "CoCa")
        finish(run, learned, stream, started)


def draw_outcome(run: Run, learned: Learned, method: str, with_memory: bool = True) -> None:
    """The accuracy matrix that decides, where there is more than one row, and the memory where there is one."""
    kind = next(name for name in MAIN_METRICS if name in learned.rows)
    if len(learned.rows[kind]) > 1:
        with run.figure("accuracy_matrix.png", f"{method}: {kind} on every task after every task") as path:
            draw_accuracy_matrix(learned.rows[kind], f"{method}, {kind}", path)
    learner = learned.learner
    report = learner.memory_report()
    if with_memory and learner.memory is not None and report["images"]:
        images, labels = learner.memory["images"].cpu(), learner.memory["labels"].cpu()
        with run.figure("memory.png", f"{method}: what is remembered at the end of the stream") as path:
            draw_memory(images, labels, report["ages"], path)


def finish(run: Run, learned: Learned, stream: Stream, started: float) -> None:
    """Say how a run went and write its result."""
    seconds = time.monotonic() - started
    metrics = stream_metrics(learned, stream)
    shown = ", ".join(f"{name} {metrics[name]:.1f}" for name in MAIN_METRICS if name in metrics)
    logger.info("%s: %s (%.1f s)", run.directory.name, shown, seconds)
    run.finish(metrics, learned.images_here / seconds, "images/s")


def run_comparison(suite: Suite, job: ComparisonJob) -> None:
    """Paired differences of CoCa and its ablations to DER++, and all methods in one picture."""
    if not suite.fabric.is_global_zero:
        return
    values: dict[str, dict[int, float]] = {}
    metric = ""
    for other in suite.jobs_of(suite.group(job.group), job.memory_size):
        metrics = (suite.run(other).result or {})["metrics"]
        metric = next(name for name in MAIN_METRICS if name in metrics)
        if metrics[metric] is not None:
            values.setdefault(other.method, {})[other.seed] = metrics[metric]
    found: dict[str, float] = {}
    gains: dict[str, tuple[float, float, float]] = {}
    for method in values:
        for reference in ("DER++", "CoCa"):
            is_about_coca = (
                method.startswith("CoCa") if reference == "DER++" else method.startswith("CoCa w/o")
            )
            if not is_about_coca or reference not in values:
                continue
            first, second = (method, reference) if reference == "DER++" else (reference, method)
            difference = paired_difference(values[first], values[second])
            name = f"{first} - {second}"
            gains[name] = (difference.mean, difference.low, difference.high)
            found |= {
                f"{metric}: {name}": difference.mean,
                f"{metric}: {name}, low": difference.low,
                f"{metric}: {name}, high": difference.high,
                f"{metric}: {name}, p": difference.p_value,
            }
    with suite.run(job) as run:
        with run.figure("methods.png", f"{metric} of every method and seed") as path:
            draw_methods(values, metric, path)
        if gains:
            with run.figure("gains.png", f"Paired differences in {metric}, with 95 % intervals") as path:
                draw_gains(gains, metric, path)
        run.finish(found)


@lru_cache(maxsize=2)
def _made_stream(config: StreamConfig, root: Path | None, download: bool) -> Stream:
    return make_stream(config, root, download)


@cache
def _launched(config: AcceleratorConfig) -> Fabric:
    return launch_fabric(config)
