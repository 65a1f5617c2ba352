"""A profile's suite in stages: every arm and seed, frozen triggers as strong as others, defences, and what they show.

Each job leaves a run record. Jobs of one stage can run in any order, in several processes, and again after an
interruption.
"""

from __future__ import annotations

import math
import statistics
import time
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from scipy import stats

from tenfold.doorping.attacks import Poison
from tenfold.doorping.config import RunConfig
from tenfold.doorping.defences.examination import examine
from tenfold.doorping.figures import (
    draw_arms,
    draw_differences,
    draw_distilled,
    draw_stamped,
    draw_table,
    draw_triggers,
)
from tenfold.doorping.official_artifacts import DistilledSet, load_distilled, save_distilled
from tenfold.doorping.profiles import Profile
from tenfold.doorping.training import Outcome, distil, load_data, matched_attack, victims_of
from tenfold.shared.accelerator import AcceleratorConfig, launch_fabric
from tenfold.shared.logging import get_logger, progress
from tenfold.shared.parallel import JobPool, available_cores
from tenfold.shared.runs import Run, RunKey, plain

logger = get_logger("doorping")

PAPER = "doorping"
MAIN_METRICS = ("cta", "asr_all", "asr_excluding_target")
"""What is compared."""


@dataclass(frozen=True)
class ArmJob:
    """One arm, data set and seed."""

    method: str
    dataset: str
    seed: int


@dataclass(frozen=True)
class DefenceJob:
    """Every defence against the victims of one arm, data set and seed."""

    method: str
    dataset: str
    seed: int


@dataclass(frozen=True)
class ComparisonJob:
    """All arms of a data set in one picture, and their paired differences."""

    dataset: str


Job = ArmJob | DefenceJob | ComparisonJob


@dataclass(frozen=True)
class Suite:
    """A profile, and where and how its runs are done; only the profile decides what comes out."""

    name: str
    profile: Profile
    output: Path
    data_root: Path = Path("data")
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
        profile, dataset = self.profile, job.dataset
        suffix = f"-{dataset}" if len(profile.datasets) > 1 else ""
        if isinstance(job, ComparisonJob):
            first = next(iter(profile.methods))
            key = RunKey(PAPER, self.name, f"comparison{suffix}", 0, dataset, "comparison", first)
            runs = {f"{arm.method}, seed {arm.seed}": self.run(arm).config_hash for arm in self.arms(dataset)}
            return Run(self.output, key, {"runs": runs}, is_writer=writes)
        name = f"{slug(job.method)}{suffix}"
        if isinstance(job, DefenceJob):
            key = RunKey(PAPER, self.name, f"defences-{name}", job.seed, dataset, "defences", job.method)
            arm = self.run(ArmJob(job.method, dataset, job.seed))
            config = {"defences": plain(profile.defences), "run": arm.config_hash}
            return Run(self.output, key, config, is_writer=writes)
        key = RunKey(PAPER, self.name, name, job.seed, dataset, profile.setting, job.method)
        config = {**plain(profile.run_config(job.method, dataset)), "seed": job.seed}
        return Run(self.output, key, config, "iteration", self.checkpoint_seconds, is_writer=writes)

    def arms(self, dataset: str) -> list[ArmJob]:
        """Every arm and seed of a data set."""
        return [
            ArmJob(method, dataset, seed) for seed in self.profile.seeds for method in self.profile.methods
        ]

    @property
    def defended_seeds(self) -> tuple[int, ...]:
        """Seeds whose victims are examined; none where the profile has no defences."""
        profile = self.profile
        return () if profile.defences is None else profile.seeds[: profile.defended_seeds]

    def jobs(self) -> list[list[Job]]:
        """The stages of the suite."""
        arms = [arm for dataset in self.profile.datasets for arm in self.arms(dataset)]
        waits = {name for name, method in self.profile.methods.items() if method.run.get("as_strong_as")}
        free: list[Job] = [arm for arm in arms if arm.method not in waits]
        matched: list[Job] = [arm for arm in arms if arm.method in waits]
        defended: list[Job] = [
            DefenceJob(arm.method, arm.dataset, arm.seed)
            for arm in arms
            if arm.method in self.profile.defended and arm.seed in self.defended_seeds
        ]
        last: list[Job] = [ComparisonJob(dataset) for dataset in self.profile.datasets]
        stages = [free, matched, defended, last if len(self.profile.methods) > 1 else []]
        return [stage for stage in stages if stage]


def slug(method: str) -> str:
    """A method's name as part of a directory's."""
    return method.lower().replace(",", "").replace(".", "_").replace("±", "").replace(" ", "-")


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
    with JobPool(workers, quiet, "tenfold.doorping.experiments") as pool:
        for stage in stages:
            unfinished = [job for job in stage if not suite.run(job).is_finished]
            suite.fabric.barrier()
            done = pool.run(partial(do, suite), unfinished)
            for _ in progress(done, f"{PAPER} {suite.name}", total=len(unfinished)):
                suite.fabric.barrier()
    return [suite.run(job).result or {} for stage in stages for job in stage]


def do(suite: Suite, job: Job) -> None:
    """Do one job."""
    if isinstance(job, ArmJob):
        run_arm(suite, job)
    elif suite.fabric.is_global_zero:
        run_defences(suite, job) if isinstance(job, DefenceJob) else run_comparison(suite, job)


def run_arm(suite: Suite, job: ArmJob) -> None:
    """Poison, distil, train victims, and keep the distilled images."""
    config = suite.profile.run_config(job.method, job.dataset)
    if config.as_strong_as is not None:
        other = suite.run(ArmJob(config.as_strong_as, job.dataset, job.seed)).result or {}
        config = replace(config, attack=matched_attack(config.attack, other["metrics"]["trigger_max"]))
    with suite.run(job) as run:
        data = load_data(config, suite.data_root, suite.download, job.seed)
        started = time.monotonic()
        outcome = distil(config, job.seed, suite.fabric, run, data)
        if suite.fabric.is_global_zero:
            finish(run, outcome, config, time.monotonic() - started)


def finish(run: Run, outcome: Outcome, config: RunConfig, seconds: float) -> None:
    """Keep the distilled images, draw what happened, say it, and write the result."""
    if outcome.distilled is not None:
        save_distilled(run.directory / "distilled.pt", outcome.distilled)
        draw_outcome(run, outcome, outcome.distilled)
    shown = ", ".join(f"{name} {outcome.metrics[name]:.3f}" for name in MAIN_METRICS)
    logger.info("%s: %s (%.1f s)", run.directory.name, shown, seconds)
    done = config.condensation.iterations if config.distillation == "dc" else None
    rate = None if done is None or not seconds else done / seconds
    run.finish(outcome.metrics, rate, None if rate is None else "iterations/s")


def draw_outcome(run: Run, outcome: Outcome, distilled: DistilledSet) -> None:
    """Distilled images, the trigger on test images, and the trigger over time."""
    poison = outcome.poison
    data = poison.data
    with run.figure("distilled.png", f"What {run.key.method} distils {data.name} to") as path:
        draw_distilled(data.denormalise(distilled.images), distilled.labels, path)
    if poison.config.kind == "none":
        return
    chosen = torch.stack(
        [(data.test_labels == label).nonzero()[0, 0] for label in range(min(10, data.classes))]
    )
    clean = data.normalise(data.test_images[chosen])
    with run.figure(
        "triggered.png", "Test images without and with the trigger, cut off at black and white"
    ) as path:
        captions = [f"{label} to {poison.target}" for label in data.test_labels[chosen].tolist()]
        draw_stamped(data.denormalise(clean), data.denormalise(poison.apply(clean)), captions, path)
    if poison.is_optimised and len(outcome.triggers) > 1:
        with run.figure("trigger.png", "The trigger after some iterations") as path:
            draw_triggers(outcome.triggers, poison.mask.cpu(), path)


def run_defences(suite: Suite, job: DefenceJob) -> None:
    """Train victims on an arm's distilled images again, and set every defence against them."""
    arm = ArmJob(job.method, job.dataset, job.seed)
    config, defences = suite.profile.run_config(job.method, job.dataset), suite.profile.defences
    assert defences is not None
    with suite.run(job) as run:
        data = load_data(config, suite.data_root, suite.download, job.seed).to(suite.fabric.device)
        distilled = load_distilled(suite.run(arm).directory / "distilled.pt")
        poison = known_poison(config, job.seed, distilled, data)
        images, labels = distilled.images.to(suite.fabric.device), distilled.labels.to(suite.fabric.device)
        victim = replace(config.victim, networks=min(config.victim.networks, defences.victims))
        victims = victims_of(distilled, config.network, data, victim, job.seed, suite.fabric.device)
        found = examine(
            victims, poison, images, labels, defences, job.seed, lambda text: logger.debug("%s", text)
        )
        logger.info(
            "%s: Neural Cleanse %.2f, STRIP %.2f, fine-pruning leaves %.2f",
            run.directory.name,
            found["neural_cleanse_detected"],
            found["strip_auroc"],
            found["fine_pruning_asr_excluding_target"],
        )
        run.finish(found)


def known_poison(config: RunConfig, seed: int, distilled: DistilledSet, data: Any) -> Poison:
    """The attack of a finished run, with the trigger that it ended with."""
    attack = config.attack
    if attack.kind == "frozen" and attack.bound is None and not attack.within_pixels:
        attack = replace(attack, bound=1.0)  # whatever it was, the trigger that was kept is what counts
    poison = Poison(data, attack, seed)
    if distilled.trigger is not None:
        poison.load_state_dict({"trigger": distilled.trigger, "added": distilled.trigger})
    return poison


def run_comparison(suite: Suite, job: ComparisonJob) -> None:
    """CTA and ASR of all arms, and the differences that say what a claim is worth."""
    profile = suite.profile
    metrics = {arm: (suite.run(arm).result or {"metrics": {}})["metrics"] for arm in suite.arms(job.dataset)}

    def values(method: str, name: str) -> list[float]:
        return [metrics[ArmJob(method, job.dataset, seed)][name] for seed in profile.seeds]

    found: dict[str, float] = {}
    differences: dict[str, tuple[float, float, float]] = {}
    for better, worse in profile.pairs:
        pair = f"{better} - {worse}"
        for name in ("asr_excluding_target", "cta"):
            mean, low, high = paired_difference(values(better, name), values(worse, name))
            found |= {f"{name}: {pair}": mean, f"{name}: {pair}, low": low, f"{name}: {pair}, high": high}
            if name == "asr_excluding_target":
                differences[pair] = (mean, low, high)
    with suite.run(job) as run:
        arms = {
            method: (values(method, "cta"), values(method, "asr_excluding_target"))
            for method in profile.methods
        }
        with run.figure("arms.png", f"Every arm and seed on {job.dataset}; bars are means") as path:
            draw_arms(arms, path)
        if differences and len(profile.seeds) > 1:
            with run.figure("differences.png", "Differences in attack success, seed by seed") as path:
                draw_differences(differences, "attack success", path)
        if profile.defences is not None and profile.defended:
            _draw_defences(suite, job.dataset, run)
        run.finish(found)


REPAIRS = {
    "no defence": "",
    "fine-pruning": "fine_pruning",
    "NAD": "nad",
    "de-noising": "denoising",
}
DETECTORS = {
    "Neural Cleanse": "neural_cleanse_detected",
    "ABS": "abs_detected",
    "STRIP, AUROC": "strip_auroc",
    "clusters, distilled": "clustering_distilled_detected",
    "clusters, real": "clustering_real_detected",
    "spectral, AUROC": "spectral_auroc",
}


def _draw_defences(suite: Suite, dataset: str, run: Run) -> None:
    """What detectors see of each arm, and what repairs leave of its attack and of its accuracy."""
    profile = suite.profile
    detected: dict[str, list[float]] = {}
    success: dict[str, list[float]] = {}
    accuracy: dict[str, list[float]] = {}
    for method in profile.defended:
        seeds = suite.defended_seeds
        records = [suite.run(DefenceJob(method, dataset, seed)).result or {} for seed in seeds]
        arms = [suite.run(ArmJob(method, dataset, seed)).result or {} for seed in seeds]

        def mean(name: str, results: list[dict[str, Any]]) -> float:
            known = [result["metrics"].get(name) for result in results]
            return math.nan if None in known or not known else statistics.fmean(known)

        detected[method] = [mean(name, records) for name in DETECTORS.values()]
        for table, rate in ((success, "asr_excluding_target"), (accuracy, "cta")):
            table[method] = [
                mean(f"{name}_{rate}" if name else rate, records if name else arms)
                for name in REPAIRS.values()
            ]
    captions = {
        "detectors.png": ("Share of victims in which the target is named, or AUROC", detected, DETECTORS),
        "repairs_asr.png": ("Attack success after repairs", success, REPAIRS),
        "repairs_cta.png": ("Clean accuracy after repairs", accuracy, REPAIRS),
    }
    for name, (caption, table, columns) in captions.items():
        with run.figure(name, caption) as path:
            draw_table(table, list(columns), path)


def paired_difference(first: list[float], second: list[float]) -> tuple[float, float, float]:
    """Mean of first - second over seeds, and Student's 95 % interval; without one for a single seed."""
    gains = [a - b for a, b in zip(first, second, strict=True)]
    mean = statistics.fmean(gains)
    if len(gains) < 2:
        return mean, mean, mean
    reach = float(stats.t.ppf(0.975, len(gains) - 1)) * statistics.stdev(gains) / math.sqrt(len(gains))
    return mean, mean - reach, mean + reach
