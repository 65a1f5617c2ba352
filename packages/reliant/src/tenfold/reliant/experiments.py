"""A profile's suite in three stages: teachers, students, and the trade-off they show. Each job leaves a run record.

A job finds what it needs in the records of the stage before, so jobs of one stage can run in any order, in several
processes, and again after an interruption.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric

from tenfold.reliant.bias import Objective
from tenfold.reliant.checkpoints import student_artifact, teacher_artifact, teacher_output
from tenfold.reliant.config import Protocol
from tenfold.reliant.datasets import load_dataset
from tenfold.reliant.fairness_metrics import is_degenerate
from tenfold.reliant.figures import draw_sweep, draw_trade_off
from tenfold.reliant.graphs import FairGraph
from tenfold.reliant.profiles import Profile
from tenfold.reliant.teachers import TeacherKind
from tenfold.reliant.training import Trained, all_metrics, distill, train_teacher
from tenfold.shared.accelerator import AcceleratorConfig, launch_fabric
from tenfold.shared.logging import TenfoldError, get_logger, progress
from tenfold.shared.parallel import JobPool, available_cores
from tenfold.shared.runs import Run, RunKey, plain

logger = get_logger("reliant")

PAPER = "reliant"


@dataclass(frozen=True)
class TeacherJob:
    """Train one teacher."""

    dataset: str
    teacher: TeacherKind
    seed: int


@dataclass(frozen=True)
class StudentJob:
    """Train one student of a seed's teacher."""

    dataset: str
    teacher: TeacherKind
    framework: str
    objective: Objective
    protocol: Protocol
    method: str
    seed: int


@dataclass(frozen=True)
class TradeOffJob:
    """Compare the students of all methods and seeds."""

    dataset: str
    teacher: TeacherKind
    framework: str
    objective: Objective
    protocol: Protocol


Job = TeacherJob | StudentJob | TradeOffJob


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

    def graph(self, dataset: str) -> FairGraph:
        """A data set of the profile, on the CPU."""
        return _load_graph(dataset, self.data_root, self.download)

    def run(self, job: Job) -> Run:
        """The record of one job."""
        teacher = self.profile.teacher_config(job.teacher)
        config: dict[str, Any] = {
            "dataset": job.dataset,
            "teacher": plain(teacher),
            "backend": self.profile.backend,
        }
        if isinstance(job, TeacherJob):
            name = f"{job.dataset}-{job.teacher}-teacher"
            return self._open(job, name, job.seed, job.teacher, "Teacher", config)
        setting = f"{job.framework}-{job.teacher} {job.objective}"
        if job.protocol == "official":
            setting += " official"
        name = f"{job.dataset}-{setting.replace(' ', '-')}"
        if isinstance(job, TradeOffJob):
            config |= {
                "students": {
                    f"{s.method}, seed {s.seed}": self.run(s).config_hash for s in self.students(job)
                }
            }
            return self._open(job, f"{name}-trade-off", 0, f"{setting} trade-off", "RELIANT", config)
        student = self.profile.distillation_config(
            job.dataset, job.teacher, job.framework, job.objective, job.protocol, job.method
        )
        config |= {"student": plain(student), "seed": job.seed}
        slug = job.method.lower().replace(" ", "-").replace("=", "-")
        return self._open(job, f"{name}-{slug}", job.seed, setting, job.method, config)

    def students(self, job: TradeOffJob) -> list[StudentJob]:
        """The students that a trade-off compares."""
        where = (job.dataset, job.teacher, job.framework, job.objective, job.protocol)
        return [
            StudentJob(*where, method, seed)
            for method in self.profile.all_methods()
            for seed in self.profile.seeds
        ]

    def _open(self, job: Job, name: str, seed: int, setting: str, method: str, config: dict[str, Any]) -> Run:
        key = RunKey(PAPER, self.name, name, seed, job.dataset, setting, method)
        return Run(
            self.output, key, config, "epoch", self.checkpoint_seconds, is_writer=self.fabric.is_global_zero
        )


def reproduce(suite: Suite, workers: int | None = 1, quiet: bool = False) -> list[dict[str, Any]]:
    """Do every run of the suite that is not finished yet.

    Args:
        suite: the profile and where its runs are.
        workers: processes that share the runs; None is one for each CPU core, eight at the most. On a GPU they share
            it.
        quiet: whether workers keep silent.

    Returns:
        The results of all runs, finished before or now.

    Raises:
        TenfoldError: several processes were started together, but the suites train on whole graphs.
    """
    if suite.fabric.device.type == "cpu":
        torch.set_num_threads(1)
    if suite.fabric.world_size > 1:
        raise TenfoldError(
            "every run of the suites trains on a whole graph, in one process: leave out --devices and torchrun, and "
            "share the runs among processes with --workers"
        )
    stages = all_jobs(suite)
    for dataset in suite.profile.datasets:  # a missing data set is said before anything is done
        suite.graph(dataset)
    if suite.force and suite.fabric.is_global_zero:
        for stage in stages:
            for job in stage:
                suite.run(job).clear()
    suite.fabric.barrier()
    with JobPool(workers or min(8, available_cores()), quiet, "tenfold.reliant.experiments") as pool:
        for stage in stages:
            unfinished = [job for job in stage if not is_done(suite, job)]
            suite.fabric.barrier()
            done = pool.run(partial(do, suite), unfinished)
            for _ in progress(done, f"{PAPER} {suite.name}", total=len(unfinished)):
                suite.fabric.barrier()
    return [suite.run(job).result or {} for stage in stages for job in stage]


def all_jobs(suite: Suite) -> list[list[Job]]:
    """The stages of a suite and their jobs, those that take longest first."""
    profile = suite.profile
    teachers: list[Job] = [
        TeacherJob(dataset, teacher, seed)
        for dataset in profile.datasets
        for teacher in profile.teachers
        for seed in profile.seeds
    ]
    trade_offs = [
        TradeOffJob(dataset, teacher, framework, objective, protocol)
        for framework in sorted(profile.frameworks, reverse=True)
        for dataset in profile.datasets
        for teacher in profile.teachers
        for objective in profile.objectives
        for protocol in profile.protocols
    ]
    students: list[Job] = [student for trade_off in trade_offs for student in suite.students(trade_off)]
    return [teachers, students, list(trade_offs)]


def is_done(suite: Suite, job: Job) -> bool:
    """Whether a job's record is finished and holds what later jobs read."""
    run = suite.run(job)
    return run.is_finished and (isinstance(job, TradeOffJob) or (run.directory / "model.pt").exists())


def do(suite: Suite, job: Job) -> None:
    """Do one job."""
    if isinstance(job, TeacherJob):
        run_teacher(suite, job)
    elif isinstance(job, StudentJob):
        run_student(suite, job)
    else:
        run_trade_off(suite, job)


def run_teacher(suite: Suite, job: TeacherJob) -> None:
    """Train a teacher and keep its output on all nodes."""
    graph, config = suite.graph(job.dataset), suite.profile.teacher_config(job.teacher)
    started = time.monotonic()
    with suite.run(job) as run:
        compiled = suite.accelerator.compile
        trained = train_teacher(
            graph, config, job.seed, suite.fabric, run, suite.profile.backend, compile_network=compiled
        )
        run.save_artifact("model.pt", teacher_artifact(config, graph, trained))
        finish(run, all_metrics(graph, trained), trained, started)


def run_student(suite: Suite, job: StudentJob) -> None:
    """Train a student on the output of its seed's teacher."""
    graph, profile = suite.graph(job.dataset), suite.profile
    config = profile.distillation_config(
        job.dataset, job.teacher, job.framework, job.objective, job.protocol, job.method
    )
    teacher_run = suite.run(TeacherJob(job.dataset, job.teacher, job.seed))
    teacher = teacher_output(teacher_run.directory / "model.pt", graph)
    started = time.monotonic()
    with suite.run(job) as run:
        compiled = suite.accelerator.compile
        distilled = distill(
            graph, teacher, config, job.seed, suite.fabric, run, profile.backend, compile_network=compiled
        )
        run.save_artifact("model.pt", student_artifact(config, graph, distilled, teacher))
        finish(run, all_metrics(graph, distilled, teacher), distilled, started)


def run_trade_off(suite: Suite, job: TradeOffJob) -> None:
    """Draw utility against bias over all methods, and the sweep of alpha where there is one."""
    if not suite.fabric.is_global_zero:
        return
    profile = suite.profile
    results: dict[str, list[dict[str, float]]] = {}
    strengths: dict[float, list[dict[str, float]]] = {}
    for student in suite.students(job):
        stored = (suite.run(student).result or {})["metrics"]
        metrics = {name: math.nan if value is None else value for name, value in stored.items()}
        results.setdefault(student.method, []).append(metrics)
    where = (job.dataset, job.teacher, job.framework, job.objective, job.protocol)
    for method, seeds in results.items():
        config = profile.distillation_config(*where, method)
        if config.learn_from == "teacher" and (config.use_proxies or method == "Vanilla"):
            strengths.setdefault(config.alpha, []).extend([] if method == "Proxies" else seeds)
    with suite.run(job) as run:
        with run.figure(
            "trade_off.png", "Utility against bias of every method and seed, one-sigma ellipses"
        ) as path:
            draw_trade_off(results, path)
        if profile.alphas:
            with run.figure("alpha_sweep.png", "Bias and accuracy over the weight of the bias term") as path:
                draw_sweep(strengths, path)
        run.finish(reductions(results))


def reductions(results: dict[str, list[dict[str, float]]]) -> dict[str, float]:
    """By what share RELIANT's mean bias is below the plain student's, and what that costs in accuracy."""
    if not {"Vanilla", "RELIANT"} <= results.keys():
        return {}

    def mean(method: str, metric: str) -> float:  # NaN where a seed's fairness is not defined
        return statistics.fmean(seed[metric] for seed in results[method])

    shares = {
        f"{metric}_reduction": 1 - mean("RELIANT", metric) / mean("Vanilla", metric)
        for metric in ("delta_sp", "delta_eo")
        if mean("Vanilla", metric) > 0
    }
    return {**shares, "accuracy_cost": mean("Vanilla", "accuracy") - mean("RELIANT", "accuracy")}


def degenerate_runs(results: Sequence[dict[str, Any]], methods: AbstractSet[str]) -> list[str]:
    """Runs of some methods whose predictor gives nearly everyone the same answer; their fairness says nothing."""
    return [
        f"{result['name']}-seed{result['seed']}"
        for result in results
        if result.get("method") in methods
        and "minority_rate" in result["metrics"]
        and is_degenerate(result["metrics"])
    ]


def finish(run: Run, metrics: dict[str, float], trained: Trained, started: float) -> None:
    """Say how a training went and write its result."""
    seconds = time.monotonic() - started
    logger.info(
        "%s: accuracy %.3f, SP %.3f, EO %.3f, %.0f %% positive (%.1f s)",
        run.directory.name,
        metrics["accuracy"],
        metrics["delta_sp"],
        metrics["delta_eo"],
        100 * metrics["positive_rate"],
        seconds,
    )
    if is_degenerate(metrics):
        logger.warning(
            "%s gives nearly everyone the same answer; it is not fair but useless", run.directory.name
        )
    run.finish(metrics, trained.epochs_here / seconds, "epochs/s")


@cache
def _load_graph(name: str, root: Path | None, download: bool) -> FairGraph:
    return load_dataset(name, root, download)
