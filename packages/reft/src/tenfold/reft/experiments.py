"""A profile's suite in stages: base networks, then every few-shot method and seed, then their comparison.

Each job leaves a run record. Jobs of one stage can run in any order, in several processes, and again after an
interruption.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from tenfold.reft.backbones import load_imagenet_weights
from tenfold.reft.comparison import run_comparison
from tenfold.reft.comparison_figures import draw_found, draw_pools
from tenfold.reft.config import TrainConfig
from tenfold.reft.episodes import Episodes
from tenfold.reft.evaluation import class_precisions
from tenfold.reft.few_shot import FewShot, base_supports, begin_few_shot
from tenfold.reft.instance_images import InstanceImages
from tenfold.reft.judging import detect, support_cache
from tenfold.reft.model import RefT
from tenfold.reft.network_files import StoredNetwork, inherit, load_network
from tenfold.reft.photographs import check_photographs
from tenfold.reft.references import References
from tenfold.reft.suite_runs import (
    PAPER,
    SUPPORT_SEED,
    BaseJob,
    FewShotJob,
    Job,
    PhotographsJob,
    Suite,
)
from tenfold.reft.suites import BaseStage
from tenfold.reft.support_pool import SupportPool
from tenfold.reft.training import train_stage
from tenfold.shared.logging import get_logger, progress
from tenfold.shared.parallel import JobPool, available_cores
from tenfold.shared.runs import Run
from tenfold.shared.seeding import seed_everything

logger = get_logger("reft")


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
    if suite.fabric.is_global_zero:  # compose once, and miss data before anything is computed
        suite.source.check()
    suite.fabric.barrier()
    with JobPool(workers, quiet, "tenfold.reft.experiments") as pool:
        for stage in stages:
            unfinished = [job for job in stage if not suite.run(job).is_finished]
            suite.fabric.barrier()
            done = pool.run(partial(do, suite), unfinished)
            for _ in progress(done, f"{PAPER} {suite.name}", total=len(unfinished)):
                suite.fabric.barrier()
    return [suite.run(job).result or {} for stage in stages for job in stage]


def do(suite: Suite, job: Job) -> None:
    """Do one job."""
    if isinstance(job, BaseJob):
        run_base(suite, job)
    elif isinstance(job, FewShotJob):
        run_few_shot(suite, job)
    elif not suite.fabric.is_global_zero:
        return
    elif isinstance(job, PhotographsJob):
        with suite.run(job) as run:
            run.finish(check_photographs(run))
    else:
        run_comparison(suite, job)


# -- base networks ---------------------------------------------------------------------------------------


def run_base(suite: Suite, job: BaseJob) -> None:
    """Train a base network, judge it on base classes, and keep it with its support cache."""
    profile, fabric, source = suite.profile, suite.fabric, suite.source
    stage = profile.stages[job.name]
    with suite.run(job) as run:
        instances = source.base_instances
        supports = None
        if not stage.references.is_off:
            supports = SupportPool(instances, source.data, in_memory=source.in_memory)
        network = begin_base(suite, stage)
        episodes = make_episodes(
            suite, instances, supports, stage.train, profile.base_seed, profile.data.jitter
        )
        trained = train_stage(
            network,
            episodes,
            stage.train,
            profile.losses,
            fabric,
            run,
            compile_network=suite.accelerator.compile,
        )
        network.freeze_batch_norm()
        pool = base_supports(source, source.data, profile.base_shots, SUPPORT_SEED)
        base = source.split.categories("base")
        references = support_cache(network, pool, len(base), fabric)
        results = judge(suite, network, references, base)
        metrics = {**source.metrics(results, (), base), **trained.losses}
        run.save_artifact("model.pt", artifact(suite, network, base, references))
        draw_pools(run, pool, source, base)
        logger.info("%s: segm bAP %.1f", run.directory.name, metrics["segm_bAP"])
        run.finish(metrics, trained.images_per_second, "images/s")


def begin_base(suite: Suite, stage: BaseStage) -> RefT:
    """A base network as its training begins, on Fabric's device."""
    seed_everything(suite.profile.base_seed)
    shape = stage.shape(suite.profile.network)
    network = RefT(shape, stage.references, len(suite.source.split.base))
    if stage.train.batch_norm == "frozen":
        network.freeze_batch_norm()
    if stage.begins_with is not None:
        inherit(network, load_base(suite, stage.begins_with).network)
    elif stage.pretrained:
        encoder = network.model.pixel_level_module.encoder
        load_imagenet_weights(encoder, shape.backbone, suite.imagenet_weights, suite.download)
    return network.to(suite.fabric.device)


def load_base(suite: Suite, name: str) -> StoredNetwork:
    """A base network of the suite and its support cache, on Fabric's device."""
    path = suite.base_weights or suite.run(BaseJob(name)).directory / "model.pt"
    stored, device = load_network(path), suite.fabric.device
    stored.network.to(device)
    kept = None if stored.references is None else stored.references.to(device)
    return replace(stored, references=kept)


def artifact(
    suite: Suite, network: RefT, categories: Sequence[int], references: References | None
) -> dict[str, Any]:
    """What is needed to use a network."""
    names, profile = tuple(suite.source.names(categories)), suite.profile
    return StoredNetwork(
        network, references, tuple(categories), names, profile.data, profile.compose
    ).content()


def make_episodes(
    suite: Suite,
    instances: InstanceImages,
    supports: SupportPool | None,
    recipe: TrainConfig,
    seed: int,
    jitter: tuple[float, float],
) -> Episodes:
    """What every update of this process sees."""
    fabric = suite.fabric
    return Episodes(
        instances,
        supports,
        replace(suite.profile.data, jitter=jitter),
        recipe.batch_size,
        recipe.steps,
        seed,
        fabric.global_rank,
        fabric.world_size,
    )


def judge(
    suite: Suite, network: RefT, references: References | None, categories: Sequence[int]
) -> list[dict[str, Any]]:
    """Instances of all test images."""
    source = suite.source
    return detect(
        network,
        references,
        source.evaluation_images,
        categories,
        suite.fabric,
        batch_size=16 if source.in_memory else 1,
        workers=source.data.workers,
        topk=suite.topk,
    )


# -- few-shot learning -----------------------------------------------------------------------------------


def run_few_shot(suite: Suite, job: FewShotJob) -> None:
    """Learn new classes from few shots, or judge a method before it does."""
    profile, fabric, source, method = suite.profile, suite.fabric, suite.source, suite.method(job)
    with suite.run(job) as run:
        base = load_base(suite, method.base)
        seed_everything(job.seed)
        begun = begin_few_shot(
            base.network, base.references, source, method.setting, job.shots, job.seed, method.distill, fabric
        )
        metrics, speed = {}, None
        if job.learns:
            recipe = method.finetuning[job.shots]
            supports = None if begun.network.references.is_off else begun.pool
            episodes = make_episodes(
                suite, begun.instances, supports, recipe, job.seed, profile.data.few_shot_jitter
            )
            trained = train_stage(
                begun.network,
                episodes,
                recipe,
                profile.losses,
                fabric,
                run,
                begun.base_references,
                begun.teacher,
                begun.num_base,
                suite.accelerator.compile,
            )
            metrics, speed = trained.losses, trained.images_per_second
        references = begun.references(fabric)
        results = judge(suite, begun.network, references, begun.category_ids)
        finish_few_shot(suite, job, run, begun, references, results, metrics, speed)


def finish_few_shot(
    suite: Suite,
    job: FewShotJob,
    run: Run,
    begun: FewShot,
    references: References | None,
    results: list[dict[str, Any]],
    losses: dict[str, float],
    speed: float | None,
) -> None:
    """Judge detections, keep the network, draw what was found and write the result."""
    source = suite.source
    base = () if job.setting == "fsis" else source.split.categories("base")
    metrics = {**source.metrics(results, source.split.categories("fsis"), base), **losses}
    if source.data.dataset == "digits":
        names = dict(zip(begun.category_ids, source.names(begun.category_ids), strict=True))
        by_class = class_precisions(source.test, results, names)
        metrics |= {f"segm_AP of {name}": precision for name, precision in by_class.items()}
    if job.learns:
        content = artifact(suite, begun.network, begun.category_ids, references)
        run.save_artifact("model.pt", {**content, "shots": begun.manifest})
        if job.seed == suite.profile.seeds[0]:
            draw_found(run, begun, source, results)
    shown = ", ".join(f"{name} {metrics[name]:.1f}" for name in ("segm_nAP", "segm_bAP") if name in metrics)
    logger.info("%s: %s", run.directory.name, shown)
    run.finish(metrics, speed, "images/s")
