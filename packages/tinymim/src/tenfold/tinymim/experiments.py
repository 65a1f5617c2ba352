"""A profile's suite in stages: teachers, their students, and the classifiers that those become.

Each job leaves a run record. Jobs of one stage can run in any order, in several processes, and again after an
interruption; a job's stage is the first in which all that it needs is done.
"""

from __future__ import annotations

import hashlib
import statistics
from dataclasses import asdict, dataclass, field, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric

from tenfold.shared.accelerator import AcceleratorConfig, launch_fabric
from tenfold.shared.logging import TenfoldError, get_logger, progress
from tenfold.shared.parallel import JobPool, available_cores
from tenfold.shared.runs import Run, RunKey, load_checkpoint, plain
from tenfold.tinymim.checkpoints import stored_shape, unwrapped
from tenfold.tinymim.diagnosis import compare_relations
from tenfold.tinymim.figures import (
    draw_accuracies,
    draw_curves,
    draw_divergences,
)
from tenfold.tinymim.pretraining import Pretrained, trained_weights
from tenfold.tinymim.segmentation_training import train_segmentation, weights_digest
from tenfold.tinymim.suites import Pretraining, Profile, SegmentationProfile
from tenfold.tinymim.teacher_files import AnyTeacher, load_student_as_teacher, load_teacher
from tenfold.tinymim.training import (
    Images,
    finetune_network,
    judge_frozen,
    load_images,
    make_finetuned_network,
    network_shape,
    pretrain_network,
    statistics_of,
)
from tenfold.tinymim.vit import VisionTransformer

logger = get_logger("tinymim")

PAPER = "tinymim"
MAIN_METRICS = ("top1", "best_top1", "miou")
"""What is compared."""


@dataclass(frozen=True)
class PretrainJob:
    """One network to pre-train."""

    name: str
    seed: int


@dataclass(frozen=True)
class FinetuneJob:
    """One classifier."""

    method: str
    seed: int


@dataclass(frozen=True)
class SegmentationJob:
    """One segmenter."""

    seed: int


@dataclass(frozen=True)
class ComparisonJob:
    """All methods in pictures, and their paired differences to the first."""


Job = PretrainJob | FinetuneJob | SegmentationJob | ComparisonJob


@dataclass(frozen=True)
class Suite:
    """A profile, and where and how its runs are done; only the profile and weights decide what comes out."""

    name: str
    profile: Profile | SegmentationProfile
    output: Path
    data_root: Path = Path("data")
    teacher_weights: Path | None = None
    """File of a teacher that the profile does not train."""
    backbone_weights: Path | None = None
    """File of a network with which segmenters begin."""
    download: bool = False
    force: bool = False
    checkpoint_seconds: float = 15.0
    accelerator: AcceleratorConfig = field(default_factory=AcceleratorConfig)

    @property
    def fabric(self) -> Fabric:
        """The Fabric of this process, launched."""
        return launch_fabric(self.accelerator)

    @property
    def classification(self) -> Profile:
        """The profile, which is one of classifiers."""
        assert isinstance(self.profile, Profile)
        return self.profile

    def run(self, job: Job) -> Run:
        """The record of one job."""
        writes = self.fabric.is_global_zero
        if isinstance(job, SegmentationJob):
            assert isinstance(self.profile, SegmentationProfile)
            profile = self.profile
            digest = weights_digest(self.backbone_weights)
            config = {**plain(replace(profile.base, backbone_digest=digest)), "seed": job.seed}
            key = RunKey(
                PAPER, self.name, slug(profile.method), job.seed, "ade20k", profile.setting, profile.method
            )
            return Run(self.output, key, config, "iteration", self.checkpoint_seconds, is_writer=writes)
        dataset, setting = self.classification.data.dataset, self.classification.setting
        if isinstance(job, ComparisonJob):
            first = next(iter(self.classification.finetunings))
            key = RunKey(PAPER, self.name, "comparison", 0, dataset, "comparison", first)
            runs = {f"{arm.method}, seed {arm.seed}": self.run(arm).config_hash for arm in self.arms()}
            return Run(self.output, key, {"runs": runs}, is_writer=writes)
        data = plain(self.classification.data)
        if isinstance(job, PretrainJob):
            settings = self.classification.pretrainings[job.name]
            name = f"pretrain-{slug(job.name)}"
            key = RunKey(PAPER, self.name, name, job.seed, dataset, "pre-training", job.name)
            config = {"data": data, **plain(settings), "origin": self.origin_of(job), "seed": job.seed}
        else:
            method = self.classification.finetunings[job.method]
            key = RunKey(PAPER, self.name, slug(job.method), job.seed, dataset, setting, job.method)
            before = self.pretraining_of(job)
            origin = "from scratch" if before is None else self.run(before).config_hash
            config = {"data": data, **plain(method), "origin": origin, "seed": job.seed}
        return Run(self.output, key, config, "epoch", self.checkpoint_seconds, is_writer=writes)

    def origin_of(self, job: PretrainJob) -> str:
        """What identifies the teacher of a run."""
        before = self.teacher_of(job)
        if before is not None:
            return self.run(before).config_hash
        if self.classification.pretrainings[job.name].teacher is None:
            return "no teacher"
        return file_digest(self.teacher_weights) if self.teacher_weights else "the library's weights"

    def pretraining(self, name: str, seed: int) -> PretrainJob:
        """The run that pre-trains a network for a seed."""
        settings = self.classification.pretrainings[name]
        return PretrainJob(name, self.profile.seeds[0] if settings.once else seed)

    def teacher_of(self, job: PretrainJob) -> PretrainJob | None:
        """The run whose network is the teacher, where the profile trains it."""
        teacher = self.classification.pretrainings[job.name].teacher
        return self.pretraining(teacher, job.seed) if teacher in self.classification.pretrainings else None

    def pretraining_of(self, job: FinetuneJob) -> PretrainJob | None:
        """The run whose network a classifier begins with."""
        name = self.classification.finetunings[job.method].pretrained
        return None if name is None else self.pretraining(name, job.seed)

    def arms(self) -> list[FinetuneJob]:
        """Every method and seed."""
        return [
            FinetuneJob(method, seed)
            for seed in self.profile.seeds
            for method in self.classification.finetunings
        ]

    def jobs(self) -> list[list[Job]]:
        """The stages of the suite."""
        if isinstance(self.profile, SegmentationProfile):
            return [[SegmentationJob(seed) for seed in self.profile.seeds]]
        profile = self.profile
        stages: list[list[Job]] = []

        def put(stage: int, job: Job) -> None:
            while len(stages) <= stage:
                stages.append([])
            if job not in stages[stage]:
                stages[stage].append(job)

        for seed in profile.seeds:
            for name in profile.pretrainings:
                put(profile.depth_of(name), self.pretraining(name, seed))
        for arm in self.arms():
            before = self.pretraining_of(arm)
            put(0 if before is None else profile.depth_of(before.name) + 1, arm)
        if len(profile.finetunings) > 1:
            put(len(stages), ComparisonJob())
        return stages


def slug(name: str) -> str:
    """A name as part of a directory's."""
    kept = "".join(letter if letter.isalnum() else "-" for letter in name.lower().replace("*", " star"))
    return "-".join(part for part in kept.split("-") if part)


@cache
def file_digest(path: Path) -> str:
    """What identifies a file of weights.

    Raises:
        TenfoldError: there is none.
    """
    if not path.is_file():
        raise TenfoldError(f"no weights at {path}; give the path of an existing file")
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


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
    with JobPool(workers, quiet, "tenfold.tinymim.experiments") as pool:
        for stage in stages:
            unfinished = [job for job in stage if not suite.run(job).is_finished]
            suite.fabric.barrier()
            done = pool.run(partial(do, suite), unfinished)
            for _ in progress(done, f"{PAPER} {suite.name}", total=len(unfinished)):
                suite.fabric.barrier()
    return [suite.run(job).result or {} for stage in stages for job in stage]


def do(suite: Suite, job: Job) -> None:
    """Do one job."""
    if isinstance(job, PretrainJob):
        run_pretraining(suite, job)
    elif isinstance(job, FinetuneJob):
        run_finetuning(suite, job)
    elif isinstance(job, SegmentationJob):
        run_segmentation(suite, job)
    elif suite.fabric.is_global_zero:
        run_comparison(suite, job)


# -- pre-training --------------------------------------------------------------------------------------


def run_pretraining(suite: Suite, job: PretrainJob) -> None:
    """Pre-train a network and keep it."""
    settings = suite.classification.pretrainings[job.name]
    with suite.run(job) as run:
        images = load_images(suite.classification.data, suite.fabric, suite.data_root, suite.download)
        teacher = find_teacher(suite, job, settings, images)
        trained = pretrain_network(settings, images, job.seed, run, teacher, suite.accelerator.compile)
        run.save_artifact("model.pt", artifact(trained.network, settings))
        finish_pretraining(run, trained, images, teacher, job.seed, job.seed == suite.profile.seeds[0])


def find_teacher(suite: Suite, job: PretrainJob, settings: Pretraining, images: Images) -> AnyTeacher | None:
    """The teacher of a run on Fabric's device: a network of the profile, or one with weights from a file.

    Raises:
        TenfoldError: its weights are missing or do not fit.
    """
    if settings.teacher is None:
        return None
    block, before = settings.target.target_block, suite.teacher_of(job)
    teacher: AnyTeacher
    if before is not None:
        teacher = load_student_as_teacher(suite.run(before).directory / "model.pt", target_block=block)
    else:
        mean, std = statistics_of(images)
        teacher = load_teacher(
            settings.teacher,
            suite.teacher_weights,
            target_block=block,
            img_size=settings.teacher_image_size or images.config.image_size,
            mean=mean,
            std=std,
            download=suite.download,
        )
    return teacher.to(suite.fabric.device)


def artifact(network: VisionTransformer, settings: Any) -> dict[str, Any]:
    """What is needed to use a network: its shape, weights, and the settings of its run."""
    return {"config": plain(settings), "shape": asdict(network.config), "network": trained_weights(network)}


def finish_pretraining(
    run: Run, trained: Pretrained, images: Images, teacher: AnyTeacher | None, seed: int, draws: bool
) -> None:
    """Judge frozen features, draw relations, say how it went and write the result."""
    metrics = {f"{name}_loss": value for name, value in trained.losses.items()}
    metrics |= judge_frozen(trained.network, images, seed)
    if teacher is not None and images.split is not None:
        metrics |= compare_relations(run, trained.network, teacher, images, draws)
    shown = ", ".join(f"{name} {value:.3f}" for name, value in metrics.items())
    logger.info("%s: %s", run.directory.name, shown)
    run.finish(metrics, trained.images_per_second, "images/s")


# -- fine-tuning ---------------------------------------------------------------------------------------


def run_finetuning(suite: Suite, job: FinetuneJob) -> None:
    """Train a classifier and keep it."""
    method = suite.classification.finetunings[job.method]
    recipe, before = method.train, suite.pretraining_of(job)
    with suite.run(job) as run:
        images = load_images(suite.classification.data, suite.fabric, suite.data_root, suite.download)
        weights, shape, heads = None, None, None
        if before is not None:
            content = load_checkpoint(suite.run(before).directory / "model.pt")
            weights, shape = unwrapped(content), stored_shape(content)
            heads = shape.heads[-1]
        shape = network_shape(method.network, shape, images.config.image_size)
        batches = images.batches(recipe, job.seed)
        classifier = make_finetuned_network(shape, recipe, batches.num_classes, job.seed, weights, heads)
        trained = finetune_network(
            recipe, classifier, batches, images, job.seed, run, suite.accelerator.compile, suite.download
        )
        run.save_artifact("model.pt", artifact(trained.network, method))
        parameters = sum(value.numel() for value in trained.network.parameters()) / 1e6
        metrics = {**trained.metrics, "parameters_m": parameters}
        shown = ", ".join(f"{name} {metrics[name]:.2f}" for name in ("top1", "best_top1"))
        logger.info("%s: %s", run.directory.name, shown)
        run.finish(metrics, trained.images_per_second, "images/s")


def run_segmentation(suite: Suite, job: SegmentationJob) -> None:
    """Train a segmenter and keep it."""
    assert isinstance(suite.profile, SegmentationProfile)
    config = replace(suite.profile.base, backbone_digest=weights_digest(suite.backbone_weights))
    with suite.run(job) as run:
        metrics = train_segmentation(
            config,
            job.seed,
            suite.fabric,
            run,
            suite.data_root,
            suite.backbone_weights,
            compile_network=suite.accelerator.compile,
        )
        logger.info("%s: mIoU %.2f", run.directory.name, metrics["miou"])
        run.finish(metrics)


def run_comparison(suite: Suite, job: ComparisonJob) -> None:
    """Accuracy of all methods, their curves, and what the first has more than each other, seed by seed."""
    seeds, methods = suite.profile.seeds, list(suite.classification.finetunings)
    results = {arm: suite.run(arm).result or {} for arm in suite.arms()}
    values = {
        method: [results[FinetuneJob(method, seed)]["metrics"]["top1"] for seed in seeds]
        for method in methods
    }
    first, *others = methods
    found = {}
    for other in others:
        gains = [mine - theirs for mine, theirs in zip(values[first], values[other], strict=True)]
        found[f"top1: {first} - {other}"] = statistics.fmean(gains)
        found[f"top1: {first} - {other}, least"] = min(gains)
    divergences: dict[str, dict[str, float]] = {}
    for name in suite.classification.pretrainings:
        runs = [
            (suite.run(suite.pretraining(name, seed)).result or {"metrics": {}})["metrics"] for seed in seeds
        ]
        if all("kl_qk" in metrics for metrics in runs):
            divergences[name] = {
                pair: statistics.fmean(metrics[f"kl_{pair.lower()}"] for metrics in runs)
                for pair in ("QK", "VV")
            }
    curves = {
        method: [results[FinetuneJob(method, seed)]["curves"]["top1"] for seed in seeds] for method in methods
    }
    with suite.run(job) as run:
        with run.figure("accuracies.png", "Test accuracy of every method and seed; bars are means") as path:
            draw_accuracies(values, path)
        with run.figure("curves.png", "Test accuracy while fine-tuning, lowest to highest seed") as path:
            draw_curves(curves, path)
        if divergences:
            with run.figure(
                "divergences.png", "Divergence from the teacher's relations on test images"
            ) as path:
                draw_divergences(divergences, path)
        run.finish(found)
