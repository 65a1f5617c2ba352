"""A profile's suite in stages: base networks, then every few-shot method and seed, then their comparison.

Each job leaves a run record. Jobs of one stage can run in any order, in several processes, and again after an
interruption.
"""

from __future__ import annotations

import hashlib
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric

from tenfold.reft.backbones import load_imagenet_weights
from tenfold.reft.comparison_figures import draw_found, draw_pools
from tenfold.reft.config import TrainConfig
from tenfold.reft.episodes import Episodes
from tenfold.reft.evaluation import class_precisions, confidence_interval
from tenfold.reft.few_shot import FewShot, base_supports, begin_few_shot
from tenfold.reft.figures import draw_ablation, draw_bars, draw_per_class_gain
from tenfold.reft.inference import TOP_K
from tenfold.reft.instance_images import InstanceImages
from tenfold.reft.judging import detect, support_cache
from tenfold.reft.model import RefT
from tenfold.reft.network_files import StoredNetwork, inherit, load_network
from tenfold.reft.photographs import check_photographs
from tenfold.reft.references import References
from tenfold.reft.sources import OwnData, Source
from tenfold.reft.suites import BaseStage, Method, Profile
from tenfold.reft.support_pool import SupportPool
from tenfold.reft.training import train_stage
from tenfold.shared.accelerator import AcceleratorConfig, make_fabric
from tenfold.shared.logging import TenfoldError, get_logger, progress
from tenfold.shared.parallel import JobPool, available_cores
from tenfold.shared.runs import Run, RunKey, config_hash, plain
from tenfold.shared.seeding import seed_everything

logger = get_logger("reft")

PAPER = "reft"
MAIN_METRICS = ("segm_nAP", "segm_bAP", "bbox_nAP", "bbox_bAP")
"""What is compared."""
BASE_SETTING = "base classes"
DATASETS = {"coco": "COCO", "lvis": "LVIS", "digits": "composed digits", "own": "own data"}
BEFORE = ", before fine-tuning"
LVIS_TOP_K = 300
MOST_BARS = 6
"""Methods beside each other; more are drawn as a list."""
SUPPORT_SEED = 0
"""Of the support examples with which base classes are judged."""


@dataclass(frozen=True)
class BaseJob:
    """One base network."""

    name: str


@dataclass(frozen=True)
class FewShotJob:
    """One method with some shots and a seed; ``learns`` False judges it before fine-tuning."""

    method: str
    setting: str
    shots: int
    seed: int
    learns: bool = True


@dataclass(frozen=True)
class PhotographsJob:
    """Sampler, evaluation and pooling on bundled photographs."""


@dataclass(frozen=True)
class ComparisonJob:
    """All methods in pictures, and their paired differences to the first of each setting."""


Job = BaseJob | FewShotJob | PhotographsJob | ComparisonJob


@dataclass(frozen=True)
class Suite:
    """A profile, and where and how its runs are done; only the profile and weights decide what comes out."""

    name: str
    profile: Profile
    output: Path
    data_root: Path = Path("data")
    shot_lists: Path | None = None
    """Folder with the published few-shot lists."""
    imagenet_weights: Path | None = None
    """File of the backbone's weights."""
    base_weights: Path | None = None
    """File of a base network that stands for all of the profile's."""
    own: OwnData = field(default_factory=OwnData)
    """Data of the user's."""
    download: bool = False
    force: bool = False
    checkpoint_seconds: float = 15.0
    accelerator: AcceleratorConfig = field(default_factory=AcceleratorConfig)

    @property
    def fabric(self) -> Fabric:
        """The Fabric of this process, launched."""
        return launch_fabric(self.accelerator)

    @property
    def source(self) -> Source:
        """The data, read once in a process."""
        return open_source(
            self.profile.data,
            self.data_root,
            self.output / PAPER,
            self.profile.compose,
            self.shot_lists,
            self.own,
        )

    @property
    def topk(self) -> int:
        """Most instances of an image."""
        return LVIS_TOP_K if self.profile.data.dataset == "lvis" else TOP_K

    def method(self, job: FewShotJob) -> Method:
        """The method of a job."""
        return next(
            method
            for method in self.profile.methods
            if method.name == job.method and method.setting == job.setting
        )

    def run(self, job: Job) -> Run:
        """The record of one job."""
        profile, writes = self.profile, self.fabric.is_global_zero
        dataset = DATASETS[profile.data.dataset]
        shared: dict[str, Any] = {"data": plain(replace(profile.data, workers=0))}
        if profile.compose is not None:  # every set has random numbers of its own, whatever others there are
            shared["compose"] = plain(replace(profile.compose, seeds=(), shots=()))
        if profile.data.dataset == "own":
            shared |= {"annotations": self.own.digest, "novel": list(self.own.novel)}
        if isinstance(job, ComparisonJob):
            key = RunKey(PAPER, self.name, "comparison", 0, dataset, "comparison", "RefT")
            runs = {str(other): self.run(other).config_hash for stage in self.jobs()[:-1] for other in stage}
            return Run(self.output, key, {"runs": runs}, is_writer=writes)
        if isinstance(job, PhotographsJob):
            key = RunKey(PAPER, self.name, "photographs", 0, "COCO photographs", "no training", "annotations")
            return Run(self.output, key, {"photographs": "bundled"}, is_writer=writes)
        if isinstance(job, BaseJob):
            stage = profile.stages[job.name]
            before = "none" if stage.begins_with is None else self.run(BaseJob(stage.begins_with)).config_hash
            config = {
                **shared,
                "network": plain(stage.shape(profile.network)),
                "losses": plain(profile.losses),
                **plain(stage),
                "base_shots": profile.base_shots,
                "seed": profile.base_seed,
                "origin": before,
            }
            if stage.pretrained and self.imagenet_weights is not None:
                config["imagenet_weights"] = file_digest(self.imagenet_weights)
            seed = profile.base_seed
            key = RunKey(PAPER, self.name, f"base-{slug(job.name)}", seed, dataset, BASE_SETTING, job.name)
        else:
            method = self.method(job)
            config = {
                **shared,
                "losses": plain(profile.losses),
                "distill": plain(method.distill) if method.distill else None,
                "setting": job.setting,
                "shots": job.shots,
                "seed": job.seed,
                "shot_lists": None if self.shot_lists is None else folder_digest(self.shot_lists),
                "train": plain(method.finetuning[job.shots]) if job.learns else None,
                "origin": self.origin_of(method),
            }
            name = method.name if job.learns else method.name + BEFORE
            folder = f"{job.setting}-{job.shots}-{slug(name)}"
            key = RunKey(PAPER, self.name, folder, job.seed, dataset, method.title(job.shots), name)
        return Run(self.output, key, config, "update", self.checkpoint_seconds, is_writer=writes)

    def origin_of(self, method: Method) -> str:
        """What identifies the base network of a method."""
        if self.base_weights is not None:
            return file_digest(self.base_weights)
        return self.run(BaseJob(method.base)).config_hash

    def arms(self, method: Method, shots: int, learns: bool = True) -> list[FewShotJob]:
        """A method with all seeds."""
        return [FewShotJob(method.name, method.setting, shots, seed, learns) for seed in self.profile.seeds]

    def jobs(self) -> list[list[Job]]:
        """The stages of the suite, the longest jobs first."""
        profile = self.profile
        stages: list[list[Job]] = [[] for _ in range(1 + max(map(profile.depth_of, profile.stages)))]
        for name in profile.stages:
            stages[profile.depth_of(name)].append(BaseJob(name))
        if profile.data.dataset == "digits":
            stages[0].append(PhotographsJob())
        learning: list[Job] = []
        for learns in (True, False) if profile.judge_before else (True,):
            for method in profile.methods:
                # Before fine-tuning a linear head knows nothing of the shots: the fewest stand for all.
                numbers = sorted(method.finetuning, reverse=True) if learns else [min(method.finetuning)]
                for shots in numbers:
                    learning.extend(self.arms(method, shots, learns))
        if learning:
            stages.append(learning)
        if len(profile.methods) > 1:
            stages.append([ComparisonJob()])
        return stages


def slug(name: str) -> str:
    """A name as part of a directory's."""
    kept = "".join(letter if letter.isalnum() else "-" for letter in name.lower().replace("+", "with"))
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


@cache
def folder_digest(folder: Path) -> str:
    """What identifies a folder of lists, by their names and sizes."""
    files = sorted(
        (path.relative_to(folder).as_posix(), path.stat().st_size) for path in folder.rglob("*.json")
    )
    return config_hash({"files": [list(file) for file in files]})


@cache
def open_source(*arguments: Any) -> Source:
    """A :class:`Source`, made once in a process."""
    return Source(*arguments)


@cache
def launch_fabric(config: AcceleratorConfig) -> Fabric:
    """A Fabric, launched once in a process."""
    fabric = make_fabric(config)
    fabric.launch()
    return fabric


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


# -- comparison ------------------------------------------------------------------------------------------


def run_comparison(suite: Suite, job: ComparisonJob) -> None:
    """NAP and bAP of all methods, and what the first of a setting has more than the others, seed by seed."""
    found: dict[str, float] = {}
    with suite.run(job) as run:
        settings = dict.fromkeys(
            (method.setting, shots) for method in suite.profile.methods for shots in method.finetuning
        )
        for setting, shots in settings:
            methods = [
                method
                for method in suite.profile.methods
                if method.setting == setting and shots in method.finetuning
            ]
            title = methods[0].title(shots)
            values = {method.name: values_of(suite, method, shots) for method in methods}
            found |= paired(title, values)
            floors = None
            if suite.profile.judge_before:
                before = [
                    values_of(suite, method, min(method.finetuning), learns=False)["nAP"]
                    for method in methods
                ]
                floors = {"nAP": statistics.fmean(statistics.fmean(seeds) for seeds in before)}
            name = f"{setting}-{shots}"
            with run.figure(f"{name}.png", f"{title}: AP of novel and base classes, all seeds") as path:
                if len(methods) > MOST_BARS:
                    draw_ablation(path, {title: values}, ("nAP", "bAP"))
                else:
                    draw_bars(path, values, title, floors)
            if len(methods) > 1 and suite.profile.data.dataset == "digits":
                with run.figure(
                    f"{name}-classes.png", f"{title}: {methods[0].name} less {methods[1].name}, by class"
                ) as path:
                    base, novel = class_gains(suite, methods[0], methods[1], shots)
                    draw_per_class_gain(path, base, novel, f"{methods[0].name} less {methods[1].name}")
        run.finish(found)


def results_of(suite: Suite, method: Method, shots: int, learns: bool = True) -> list[dict[str, float]]:
    """Metrics of a method, seed by seed."""
    return [
        (suite.run(arm).result or {"metrics": {}})["metrics"] for arm in suite.arms(method, shots, learns)
    ]


def values_of(suite: Suite, method: Method, shots: int, learns: bool = True) -> dict[str, list[float]]:
    """AP of the masks of novel and base classes, seed by seed."""
    results = results_of(suite, method, shots, learns)
    return {
        name: [metrics[f"segm_{name}"] for metrics in results]
        for name in ("nAP", "bAP")
        if all(f"segm_{name}" in metrics for metrics in results)
    }


def paired(title: str, values: dict[str, dict[str, list[float]]]) -> dict[str, float]:
    """Differences of the first method to the others, with half the width of a 95 % interval over seeds."""
    first, *others = values
    found = {}
    for other in others:
        for metric, theirs in values[other].items():
            gains = [mine - their for mine, their in zip(values[first][metric], theirs, strict=True)]
            name = f"{title}, {metric}: {first} - {other}"
            found[name] = statistics.fmean(gains)
            if len(gains) > 1:
                found[f"{name}, 95 % half width"] = confidence_interval(gains)[1]
    return found


def class_gains(
    suite: Suite, method: Method, other: Method, shots: int
) -> tuple[dict[str, float], dict[str, float]]:
    """Mean difference of two methods for each base and each novel class."""
    split, results = suite.source.split, [results_of(suite, one, shots) for one in (method, other)]

    def gains(categories: Sequence[int]) -> dict[str, float]:
        gained = {}
        for name in suite.source.names(categories):
            pairs = zip(*results, strict=True)
            key = f"segm_AP of {name}"
            differences = [mine[key] - theirs[key] for mine, theirs in pairs if key in mine and key in theirs]
            if differences:
                gained[name] = statistics.fmean(differences)
        return gained

    return gains(split.categories("base")), gains(split.categories("fsis"))


def with_seeds(profile: Profile, seeds: tuple[int, ...]) -> Profile:
    """The same with other seeds, whose shots are composed too."""
    compose = profile.compose
    if compose is not None:
        compose = replace(compose, seeds=tuple(sorted({*compose.seeds, *seeds})))
    return replace(profile, seeds=seeds, compose=compose)
