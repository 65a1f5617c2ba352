"""A profile's suite in two stages: every method and seed, and what they differ in.

Each job leaves a run record. Jobs of one stage can run in any order, in several processes, and again after an
interruption.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric

from tenfold.emo.complexity import count_flops, count_flops_by_layer
from tenfold.emo.config import RunConfig
from tenfold.emo.dense import DenseConfig, digest_of, train_dense
from tenfold.emo.figures import draw_accuracies, draw_layers, draw_pareto
from tenfold.emo.model import EMO
from tenfold.emo.networks import make_network, parameter_count
from tenfold.emo.profiles import DenseProfile, Profile
from tenfold.emo.training import Trained, train
from tenfold.shared.accelerator import AcceleratorConfig, launch_fabric
from tenfold.shared.comparison import load_reported
from tenfold.shared.logging import get_logger, progress
from tenfold.shared.parallel import JobPool, available_cores
from tenfold.shared.runs import Run, RunKey, plain

logger = get_logger("emo")

PAPER = "emo"
MAIN_METRICS = ("top1", "best_ema_top1", "best_ema_top5", "ap", "miou", "parameters_m", "flops_m")
"""What is compared."""


@dataclass(frozen=True)
class TrainJob:
    """One method and seed."""

    method: str
    seed: int


@dataclass(frozen=True)
class ComparisonJob:
    """All methods in one picture, and their paired differences to the first."""


Job = TrainJob | ComparisonJob


@dataclass(frozen=True)
class Suite:
    """A profile, and where and how its runs are done; only the profile decides what comes out."""

    name: str
    profile: Profile | DenseProfile
    output: Path
    data_root: Path = Path("data")
    backbone_weights: Path | None = None
    """File of a classifier, with which detectors and segmenters begin."""
    download: bool = False
    force: bool = False
    checkpoint_seconds: float = 15.0
    accelerator: AcceleratorConfig = field(default_factory=AcceleratorConfig)

    @property
    def fabric(self) -> Fabric:
        """The Fabric of this process, launched."""
        return launch_fabric(self.accelerator)

    def run(self, job: Job) -> Run:
        """The record of one job."""
        writes = self.fabric.is_global_zero
        dataset, setting = self.profile.dataset, self.profile.setting
        if isinstance(job, TrainJob):
            key = RunKey(PAPER, self.name, slug(job.method), job.seed, dataset, setting, job.method)
            config = {**plain(self.run_config(job.method)), "seed": job.seed}
            return Run(self.output, key, config, "epoch", self.checkpoint_seconds, is_writer=writes)
        first = next(iter(self.profile.methods))
        key = RunKey(PAPER, self.name, "comparison", 0, dataset, "comparison", first)
        runs = {
            f"{other.method}, seed {other.seed}": self.run(other).config_hash for other in self.train_jobs()
        }
        return Run(self.output, key, {"runs": runs}, is_writer=writes)

    def run_config(self, method: str) -> RunConfig | DenseConfig:
        """Every setting of a method, the backbone's first weights among them."""
        config = self.profile.run_config(method)
        if isinstance(config, DenseConfig):
            return replace(config, backbone_digest=digest_of(self.backbone_weights))
        return config

    def train_jobs(self) -> list[TrainJob]:
        """Every method and seed."""
        return [TrainJob(method, seed) for method in self.profile.methods for seed in self.profile.seeds]

    def jobs(self) -> list[list[Job]]:
        """The stages of the suite."""
        learning: list[Job] = [*self.train_jobs()]
        last: list[Job] = [ComparisonJob()] if len(self.profile.methods) > 1 else []
        return [stage for stage in (learning, last) if stage]


def slug(method: str) -> str:
    """A method's name as part of a directory's."""
    return method.lower().replace(",", "").replace(".", "").replace(" ", "-")


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
    workers = workers or (min(8, available_cores()) if on_cpu else 1)
    stages = suite.jobs()
    if suite.force and suite.fabric.is_global_zero:
        for stage in stages:
            for job in stage:
                suite.run(job).clear()
    suite.fabric.barrier()
    with JobPool(workers, quiet, "tenfold.emo.experiments") as pool:
        for stage in stages:
            unfinished = [job for job in stage if not suite.run(job).is_finished]
            suite.fabric.barrier()
            done = pool.run(partial(do, suite), unfinished)
            for _ in progress(done, f"{PAPER} {suite.name}", total=len(unfinished)):
                suite.fabric.barrier()
    return [suite.run(job).result or {} for stage in stages for job in stage]


def do(suite: Suite, job: Job) -> None:
    """Do one job."""
    if isinstance(job, TrainJob):
        run_training(suite, job)
    elif suite.fabric.is_global_zero:
        run_comparison(suite, job)


def run_training(suite: Suite, job: TrainJob) -> None:
    """Train a network and keep it."""
    config = suite.run_config(job.method)
    with suite.run(job) as run:
        if isinstance(config, DenseConfig):
            run_dense(suite, job, config, run)
            return
        trained = train(
            config, job.seed, suite.fabric, run, suite.data_root, suite.accelerator.compile, suite.download
        )
        run.save_artifact("model.pt", artifact(trained, config))
        if job.seed == suite.profile.seeds[0]:
            draw_cost(run, trained.network, config)
        finish(run, trained, config)


def run_dense(suite: Suite, job: TrainJob, config: DenseConfig, run: Run) -> None:
    """Train a detector or a segmenter and keep it."""
    found = train_dense(config, job.seed, suite.fabric, run, suite.data_root, suite.backbone_weights)
    weights = {name: value.cpu() for name, value in found.network.state_dict().items()}
    run.save_artifact("model.pt", {"config": plain(config), "network": weights})
    metrics = {**found.metrics, "parameters_m": parameter_count(found.network)}
    logger.info(
        "%s: %s", run.directory.name, ", ".join(f"{name} {value:.2f}" for name, value in metrics.items())
    )
    run.finish(metrics)


def artifact(trained: Trained, config: RunConfig) -> dict[str, Any]:
    """What is needed to use a network: its settings, classes and weights, the averaged ones where there are any."""
    return {
        "config": plain(config),
        "num_classes": trained.num_classes,
        "network": {name: value.cpu() for name, value in trained.network.state_dict().items()},
    }


def finish(run: Run, trained: Trained, config: RunConfig) -> None:
    """Say how a run went and write its result, with parameters and multiply-accumulates in millions."""
    fresh = make_network(config.model, trained.num_classes, config.data.image_size)
    metrics = {**trained.metrics, "parameters_m": parameter_count(fresh)}
    if isinstance(fresh, EMO):
        metrics["flops_m"] = count_flops(fresh, config.data.image_size)["total"] / 1e6
    shown = ", ".join(f"{name} {metrics[name]:.2f}" for name in MAIN_METRICS if name in metrics)
    logger.info("%s: %s", run.directory.name, shown)
    run.finish(metrics, trained.images_per_second, "images/s")


def draw_cost(run: Run, network: torch.nn.Module, config: RunConfig) -> None:
    """Multiply-accumulates of every layer of EMO."""
    if not isinstance(network, EMO) or not run.is_writer:
        return
    fresh = EMO(network.architecture, network.num_classes)
    layers = count_flops_by_layer(fresh, config.data.image_size)
    with run.figure(
        "layers.png", f"Multiply-accumulates of every layer at {config.data.image_size} px"
    ) as path:
        draw_layers({name: value / 1e6 for name, value in layers.items()}, "millions", path)


def run_comparison(suite: Suite, job: ComparisonJob) -> None:
    """Top-1 of every method, and the paired differences of the first to every other."""
    results = {other: (suite.run(other).result or {"metrics": {}})["metrics"] for other in suite.train_jobs()}
    values = {
        method: [results[TrainJob(method, seed)]["top1"] for seed in suite.profile.seeds]
        for method in suite.profile.methods
    }
    parameters = {
        method: results[TrainJob(method, suite.profile.seeds[0])]["parameters_m"] for method in values
    }
    first, *others = values
    found = {}
    for method in others:
        gains = np.subtract(values[first], values[method])
        found[f"top1: {first} - {method}"] = float(gains.mean())
        found[f"top1: {first} - {method}, least"] = float(gains.min())
    with suite.run(job) as run:
        with run.figure("accuracies.png", "Test accuracy of every method and seed") as path:
            draw_accuracies(values, parameters, path)
        with run.figure(
            "pareto.png", "What is printed: ImageNet accuracy against multiply-accumulates"
        ) as path:
            points = printed_networks()
            draw_pareto(
                points,
                "multiply-accumulates in millions, as printed",
                path,
                [n for n in points if "EMO" in n],
            )
        run.finish(found)


def printed_networks() -> dict[str, tuple[float, float, float]]:
    """Network to the multiply-accumulates in millions, top-1 and parameters in millions that are printed of it."""
    printed: dict[str, dict[str, float]] = {}
    for row in load_reported("tenfold.emo").rows:
        if row.table.startswith("ImageNet-1K") and row.value is not None:
            metric = "top1" if row.metric == "best_ema_top1" else row.metric
            printed.setdefault(row.method, {})[metric] = row.value
    needed = ("flops_m", "top1", "parameters_m")
    return {
        name: (found["flops_m"], found["top1"], found["parameters_m"])
        for name, found in printed.items()
        if all(metric in found for metric in needed)
    }
