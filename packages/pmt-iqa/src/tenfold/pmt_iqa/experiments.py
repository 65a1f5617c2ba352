"""A profile's suite in three stages: the runs of every method and split, their medians, and paired comparisons.

Each job leaves a run record. Jobs of one stage can run in any order, in several processes, and again after an
interruption.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from functools import cache, lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric
from lightning_fabric.strategies.single_device import SingleDeviceStrategy
from numpy.typing import NDArray

from tenfold.pmt_iqa import brisque
from tenfold.pmt_iqa.backbones import imagenet_file
from tenfold.pmt_iqa.config import RunConfig
from tenfold.pmt_iqa.datasets import DATASETS, ImageSet, load_dataset
from tenfold.pmt_iqa.evaluation import agreement, paired_difference, summarise
from tenfold.pmt_iqa.figures import (
    draw_differences,
    draw_methods,
    draw_quality_maps,
    draw_scatter,
    draw_schedules,
)
from tenfold.pmt_iqa.profiles import Profile
from tenfold.pmt_iqa.scoring import Scorer, artifact
from tenfold.pmt_iqa.splits import split_by_group
from tenfold.pmt_iqa.training import Trained, train
from tenfold.shared.accelerator import AcceleratorConfig, make_fabric
from tenfold.shared.logging import get_logger, progress
from tenfold.shared.parallel import JobPool, available_cores
from tenfold.shared.runs import Run, RunKey, plain

logger = get_logger("pmt-iqa")

PAPER = "pmt-iqa"
MAIN_METRICS = ("srcc", "plcc", "best_srcc", "best_plcc")
"""What is compared."""
SPLIT = "split"
"""Setting of single runs; medians over them carry another, which printed numbers join."""


@dataclass(frozen=True)
class TrainJob:
    """One method on one random split."""

    method: str
    seed: int


@dataclass(frozen=True)
class MedianJob:
    """The medians of one method over its splits."""

    method: str


@dataclass(frozen=True)
class ComparisonJob:
    """All methods, split by split."""


Job = TrainJob | MedianJob | ComparisonJob


@dataclass(frozen=True)
class Suite:
    """A profile, and where and how its runs are done; only the profile decides what comes out."""

    name: str
    profile: Profile
    output: Path
    data_root: Path = Path("data")
    cache: Path | None = None
    imagenet_weights: Path | None = None
    download: bool = False
    force: bool = False
    checkpoint_seconds: float = 15.0
    accelerator: AcceleratorConfig = field(default_factory=AcceleratorConfig)

    @property
    def fabric(self) -> Fabric:
        """The Fabric of this process, launched."""
        return launch_fabric(self.accelerator)

    @property
    def dataset(self) -> str:
        return self.profile.base.dataset

    def images(self) -> ImageSet:
        """The data set, on the CPU."""
        return _loaded(self.dataset, self.data_root, self.cache, self.profile.base.legacy_resize)

    def run(self, job: Job) -> Run:
        """The record of one job."""
        writes = self.fabric.is_global_zero
        if isinstance(job, TrainJob):
            key = RunKey(
                PAPER,
                self.name,
                f"{self.dataset}-{slug(job.method)}",
                job.seed,
                self.dataset,
                SPLIT,
                job.method,
            )
            config = {**plain(self.profile.run_config(job.method)), "method": job.method, "seed": job.seed}
            return Run(self.output, key, config, "epoch", self.checkpoint_seconds, is_writer=writes)
        methods = self.profile.methods if isinstance(job, ComparisonJob) else (job.method,)
        runs = {
            f"{other.method}, split {other.seed}": self.run(other).config_hash
            for other in self.jobs_of(methods)
        }
        if isinstance(job, ComparisonJob):
            key = RunKey(
                PAPER, self.name, f"{self.dataset}-comparison", 0, self.dataset, "comparison", "PMT-IQA"
            )
        else:
            setting = f"median of {len(self.profile.seeds_of(job.method))} splits"
            name = f"{self.dataset}-{slug(job.method)}-median"
            key = RunKey(PAPER, self.name, name, 0, self.dataset, setting, job.method)
        return Run(self.output, key, {"runs": runs}, is_writer=writes)

    def jobs_of(self, methods: tuple[str, ...]) -> list[TrainJob]:
        """The runs of some methods."""
        return [TrainJob(method, seed) for method in methods for seed in self.profile.seeds_of(method)]


def slug(method: str) -> str:
    """A method's name as part of a directory's."""
    return method.lower().replace("w/o", "without").replace(" ", "-")


def reproduce(suite: Suite, workers: int | None = 1, quiet: bool = False) -> list[dict[str, Any]]:
    """Do every run of the suite that is not finished yet.

    Args:
        suite: the profile and where its runs are.
        workers: processes that share the runs; None is one for each CPU core, eight at the most, and one on a GPU or
            where each would decode a whole data set.
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
    if any(not is_done(suite, job) for job in stages[0]) or suite.force:
        check_data(suite)  # what is missing is said before anything is done
    if suite.force and suite.fabric.is_global_zero:
        for stage in stages:
            for job in stage:
                suite.run(job).clear()
    suite.fabric.barrier()
    # Each process decodes images for itself, unless they are mapped from a cache.
    shares_images = suite.dataset not in DATASETS or suite.cache is not None
    workers = workers or (min(8, available_cores()) if on_cpu and shares_images else 1)
    with JobPool(workers, quiet, "tenfold.pmt_iqa.experiments") as pool:
        for stage in stages:
            unfinished = [job for job in stage if not is_done(suite, job)]
            suite.fabric.barrier()
            done = pool.run(partial(do, suite), unfinished)
            for _ in progress(done, f"{PAPER} {suite.name}", total=len(unfinished)):
                suite.fabric.barrier()
    return [suite.run(job).result or {} for stage in stages for job in stage]


def all_jobs(suite: Suite) -> list[list[Job]]:
    """The stages of a suite and their jobs; BRISQUE, which takes seconds, last."""
    profile = suite.profile
    learning = sorted(suite.jobs_of(profile.methods), key=lambda job: (job.method == "BRISQUE", job.seed))
    comparison: list[Job] = (
        [ComparisonJob()] if "PMT-IQA" in profile.methods and len(profile.methods) > 1 else []
    )
    return [[*learning], [MedianJob(method) for method in profile.methods], comparison]


def is_done(suite: Suite, job: Job) -> bool:
    """Whether a job's record is finished."""
    return suite.run(job).is_finished


def check_data(suite: Suite) -> None:
    """Say what is missing before anything is decoded: the data set, or a backbone's weights."""
    if suite.dataset in DATASETS:
        DATASETS[suite.dataset](suite.data_root)
    else:
        suite.images()
    for method in suite.profile.methods:
        model = suite.profile.run_config(method).model
        if method != "BRISQUE" and model.pretrained and model.backbone != "small":
            imagenet_file(model.backbone, suite.imagenet_weights, suite.download)


def do(suite: Suite, job: Job) -> None:
    """Do one job."""
    if isinstance(job, MedianJob):
        run_median(suite, job)
    elif isinstance(job, ComparisonJob):
        run_comparison(suite, job)
    elif job.method == "BRISQUE":
        run_brisque(suite, job)
    else:
        run_training(suite, job)


def run_training(suite: Suite, job: TrainJob) -> None:
    """Train on one split and keep the network."""
    images, config = suite.images(), suite.profile.run_config(job.method)
    started = time.monotonic()
    with suite.run(job) as run:
        trained = train(
            images,
            config,
            job.seed,
            suite.fabric,
            run,
            suite.accelerator.compile,
            suite.imagenet_weights,
            suite.download,
        )
        run.save_artifact("model.pt", artifact(trained, config, images))
        if job.seed == suite.profile.seeds_of(job.method)[0]:
            draw_outcome(run, trained, config, images, with_maps=job.method == "PMT-IQA")
        finish(run, trained, started)


def run_brisque(suite: Suite, job: TrainJob) -> None:
    """Fit the regression on features that learn nothing."""
    if not suite.fabric.is_global_zero:
        return
    images, config = suite.images(), suite.profile.run_config(job.method)
    with suite.run(job) as run:
        train_indices, test = split_by_group(images.groups, job.seed, config.train_fraction)
        features = _brisque_features(suite.dataset, suite.data_root, suite.cache, config.legacy_resize)
        scores = images.scores.double().numpy()
        predictions = brisque.fit_and_predict(
            features, scores, images.groups, train_indices.numpy(), test.numpy()
        )
        metrics = agreement(predictions, scores[test.numpy()], config.judge.plcc_fit)
        logger.info("%s: srcc %.3f", run.directory.name, metrics["srcc"])
        # It has no epochs to choose from; where others do, its one result stands beside their best.
        best = {f"best_{name}": value for name, value in metrics.items()} if config.judge.every_epoch else {}
        run.finish({**metrics, **best})


def draw_outcome(
    run: Run, trained: Trained, config: RunConfig, images: ImageSet, with_maps: bool = True
) -> None:
    """Predictions against labels, and the quality maps of test images from bad to good."""
    if not len(trained.predictions) or not run.is_writer:
        return
    labels = images.scores[trained.test]
    with run.figure("scatter.png", f"Test images of {images.name}: prediction against label") as path:
        draw_scatter(trained.predictions.numpy(), labels.numpy(), f"{images.name}, {run.key.method}", path)
    if not with_maps:
        return
    chosen = trained.test[labels.argsort()[torch.linspace(0, len(labels) - 1, 5).long()]].tolist()
    alone = Fabric(strategy=SingleDeviceStrategy(torch.device("cpu")))  # whatever processes train together
    scorer = Scorer(trained.network, config, trained.level_scores, images.scale, fabric=alone)
    pictures = [images.pixels.picture(index) for index in chosen]
    with run.figure(
        "quality_maps.png", f"Test images of {images.name}, and where their quality is low"
    ) as path:
        captions = [
            f"{images.names[index]}\nlabel {images.scores[index]:.3g}, score {scorer.score(picture).raw_score:.3g}"
            for index, picture in zip(chosen, pictures, strict=True)
        ]
        draw_quality_maps(pictures, [scorer.quality_map(picture) for picture in pictures], captions, path)


def finish(run: Run, trained: Trained, started: float) -> None:
    """Say how a run went and write its result."""
    shown = ", ".join(
        f"{name} {trained.metrics[name]:.3f}" for name in MAIN_METRICS[:2] if name in trained.metrics
    )
    logger.info("%s: %s (%.1f s)", run.directory.name, shown or "no test images", time.monotonic() - started)
    run.finish(trained.metrics, trained.crops_per_second, "crops/s")


def run_median(suite: Suite, job: MedianJob) -> None:
    """Medians and their intervals over the splits of one method."""
    if not suite.fabric.is_global_zero:
        return
    runs = [_metrics(suite, other) for other in suite.jobs_of((job.method,))]
    with suite.run(job) as run:
        run.finish(summarise(runs))


def run_comparison(suite: Suite, job: ComparisonJob) -> None:
    """PMT-IQA minus every other method on the same splits, and all methods in one picture."""
    if not suite.fabric.is_global_zero:
        return
    profile = suite.profile
    values = {
        method: {seed: _metrics(suite, TrainJob(method, seed))["srcc"] for seed in profile.seeds_of(method)}
        for method in profile.methods
    }
    found: dict[str, float] = {}
    differences: dict[str, tuple[float, float, float]] = {}
    for method, others in values.items():
        shared = sorted(set(others) & set(values["PMT-IQA"]))
        if method == "PMT-IQA" or not shared:
            continue
        mean, low, high = paired_difference(
            [values["PMT-IQA"][seed] for seed in shared],
            [others[seed] for seed in shared],
            1 - profile.base.train_fraction,
        )
        name = f"PMT-IQA - {method}"
        if method != "shuffled labels":  # so far off that the others would be hard to tell apart
            differences[name] = (mean, low, high)
        found |= {f"srcc: {name}": mean, f"srcc: {name}, low": low, f"srcc: {name}, high": high}
    with suite.run(job) as run:
        with run.figure("methods.png", "SRCC of every method and split") as path:
            draw_methods({method: list(seeds.values()) for method, seeds in values.items()}, "SRCC", path)
        if differences:
            with run.figure(
                "differences.png",
                "Paired differences in SRCC, with 95 % intervals corrected for splits that share images",
            ) as path:
                draw_differences(differences, "SRCC", path)
        with run.figure("schedules.png", "How the weight of regression grows") as path:
            draw_schedules(
                ("progressive", "cosine", "sigmoid", "step", "reversed"), profile.base.train.epochs, path
            )
        run.finish(found)


def _metrics(suite: Suite, job: TrainJob) -> dict[str, float]:
    metrics: dict[str, float] = (suite.run(job).result or {})["metrics"]
    return {name: value for name, value in metrics.items() if value is not None}


@lru_cache(maxsize=2)
def _loaded(name: str, root: Path, cache_folder: Path | None, legacy_resize: bool) -> ImageSet:
    return load_dataset(name, root, cache_folder, legacy_resize)


@lru_cache(maxsize=2)
def _brisque_features(
    name: str, root: Path, cache_folder: Path | None, legacy_resize: bool
) -> NDArray[np.float64]:
    return brisque.features_of(_loaded(name, root, cache_folder, legacy_resize).pixels)


@cache
def launch_fabric(config: AcceleratorConfig) -> Fabric:
    """A Fabric, launched once in a process; running statistics are shared between epochs, not before every step."""
    fabric = make_fabric(config, broadcast_buffers=False)
    fabric.launch()
    return fabric
