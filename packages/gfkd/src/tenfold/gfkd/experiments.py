"""A profile's suite: teachers, fake graphs of each method and seed, students, each a run with a record of its own."""

from __future__ import annotations

import time
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor

from tenfold.gfkd.config import GenerationConfig, Profile, TrainingConfig
from tenfold.gfkd.data import DATASETS, Dataset, load_dataset, split_indices
from tenfold.gfkd.evaluation import agreement, predict
from tenfold.gfkd.figures import draw_curve, draw_graphs
from tenfold.gfkd.generation import GENERATION_METHODS, GraphGenerator
from tenfold.gfkd.graphs import GraphSet, concatenate
from tenfold.gfkd.models import GraphClassifier, build_model
from tenfold.gfkd.training import artifact, fit, labels_and_loss, teacher_and_loss
from tenfold.shared.logging import get_logger, progress
from tenfold.shared.runs import Run, RunKey, load_checkpoint, plain

logger = get_logger("gfkd")

PAPER = "gfkd"
LOGGED_POINTS = 150
"""How many times a generation logs its objective."""


@dataclass(frozen=True)
class Workplace:
    """Where and how the runs of a suite are done; none of it changes their outcome."""

    output: Path
    fabric: Fabric
    force: bool = False
    checkpoint_seconds: float = 15.0
    compile: bool = False

    def run(self, key: RunKey, config: dict[str, Any], x_label: str = "epoch") -> Run:
        """The run of one configuration; with ``force`` an earlier record of it is removed."""
        writer = self.fabric.is_global_zero
        run = Run(self.output, key, config, x_label, self.checkpoint_seconds, is_writer=writer)
        if self.force and writer:
            run.clear()
        return run


@dataclass(frozen=True)
class Split:
    """One data set, split as the authors did."""

    dataset: Dataset
    train: GraphSet
    test: GraphSet


@dataclass(frozen=True)
class Teacher:
    """A trained teacher and what its students' records say of it."""

    name: str
    network: GraphClassifier
    config: dict[str, Any]
    known_degrees: Tensor | None


def load_split(name: str, seed: int, root: Path | None, download: bool = False) -> Split:
    """Load a data set and split it 70 / 30 by the authors' rule."""
    dataset = load_dataset(name, root, download=download)
    train, test = split_indices(len(dataset.graphs), seed)
    return Split(dataset, dataset.graphs.select(train), dataset.graphs.select(test))


def reproduce(
    profile_name: str, profile: Profile, data_root: Path | None, workplace: Workplace, download: bool = False
) -> list[dict[str, Any]]:
    """Do every run of a profile that is not finished yet; returns the results of all of them."""
    results = []
    for dataset_name in profile.datasets:
        split = load_split(dataset_name, profile.split_seed, data_root, download)
        for teacher_name in dict.fromkeys(teacher for teacher, _ in profile.pairs):
            teacher, result = train_teacher(profile_name, profile, split, teacher_name, workplace)
            results.append(result)
            students = [student for name, student in profile.pairs if name == teacher_name]
            for method, generation in methods_of(profile, dataset_name, len(split.train)):
                fake: dict[int, GraphSet] | None = None
                generated: list[dict[str, Any]] = []
                if generation is not None:
                    fake, generated = generate(
                        profile_name, profile, split, teacher, method, generation, workplace
                    )
                results += generated
                results += [
                    distill(
                        profile_name,
                        profile,
                        split,
                        teacher,
                        student,
                        method,
                        generation,
                        fake,
                        seed,
                        workplace,
                    )
                    for student in students
                    for seed in student_seeds(profile)
                ]
    return results


def methods_of(
    profile: Profile, dataset: str, num_train: int
) -> Iterable[tuple[str, GenerationConfig | None]]:
    """Every method of a profile with the generation settings of a data set; None where real graphs are used."""
    info = DATASETS[dataset]
    base = replace(
        profile.generation,
        num_graphs=profile.generation.num_graphs or num_train,
        min_nodes=info.node_range[0],
        max_nodes=info.node_range[1],
        features=info.features,
        structure_lr=info.structure_lr,
        graphs_per_batch=profile.generation.graphs_per_batch or info.graphs_per_batch,
    )
    for method in profile.methods:
        if method not in GENERATION_METHODS:
            yield method, None
        elif method == "RandG":
            yield method, replace(base, iterations=0)
        else:
            yield method, base
    for name, changes in profile.ablations:
        yield name, replace(base, **changes)  # type: ignore[arg-type]


def student_seeds(profile: Profile) -> list[tuple[int, int]]:
    """(seed of the fake graphs, seed of the student) of every student."""
    return [
        (seed, seed * profile.students_per_seed + index)
        for seed in profile.seeds
        for index in range(profile.students_per_seed)
    ]


def train_teacher(
    profile_name: str, profile: Profile, split: Split, name: str, workplace: Workplace
) -> tuple[Teacher, dict[str, Any]]:
    """The teacher of a data set, trained or read back. The best test epoch is kept, as in the released file."""
    dataset = split.dataset.name
    config = {
        "dataset": dataset,
        "split_seed": profile.split_seed,
        "teacher": name,
        "teacher_training": plain(profile.teacher),
        "backend": profile.backend,
    }
    key = RunKey(
        PAPER, profile_name, f"{dataset}-{name}-teacher", 0, dataset, f"{name} {profile.recipe}", "Teacher"
    )
    run = workplace.run(key, config)
    graphs = split.train

    def build() -> GraphClassifier:
        return build_model(name, graphs.num_features, graphs.num_classes)

    path = run.directory / "model.pt"
    result = run.result if path.exists() else None
    if result is None:
        started = time.monotonic()
        with run:
            targets, loss = labels_and_loss(graphs)
            network, fitted = fit(
                build,
                graphs,
                targets,
                loss,
                split.test,
                profile.teacher,
                0,
                workplace.fabric,
                run,
                profile.backend,
                workplace.compile,
            )
            run.save_artifact(
                "model.pt",
                artifact(name, network, fitted.best_state, known_degrees=split.dataset.known_degrees),
            )
            metrics = {"test_accuracy": fitted.last_accuracy, "best_test_accuracy": fitted.best_accuracy}
            result = _finish(run, metrics, profile.teacher, graphs, started)
    workplace.fabric.barrier()
    network = build()
    network.load_state_dict(load_checkpoint(path)["state_dict"])
    return Teacher(name, network.eval(), config, split.dataset.known_degrees), result


def generate(
    profile_name: str,
    profile: Profile,
    split: Split,
    teacher: Teacher,
    method: str,
    config: GenerationConfig,
    workplace: Workplace,
) -> tuple[dict[int, GraphSet], list[dict[str, Any]]]:
    """The fake graphs of every seed, generated together or read back, and the results of their runs."""
    dataset = split.dataset.name
    runs: dict[int, Run] = {}
    for seed in profile.seeds:
        key = RunKey(
            PAPER,
            profile_name,
            f"{dataset}-{teacher.name}-{_slug(method)}-graphs",
            seed,
            dataset,
            f"{teacher.name} {profile.recipe} generation",
            method,
        )
        runs[seed] = workplace.run(
            key,
            {**teacher.config, "method": method, "generation": plain(config), "generation_seed": seed},
            "iteration",
        )
    unfinished = {
        seed: run
        for seed, run in runs.items()
        if not (run.is_finished and (run.directory / "graphs.pt").exists())
    }
    if unfinished and workplace.fabric.is_global_zero:
        _generate_unfinished(unfinished, split, teacher, method, config, workplace)
    workplace.fabric.barrier()
    fake = {seed: GraphSet(**load_checkpoint(run.directory / "graphs.pt")) for seed, run in runs.items()}
    return fake, [run.result or {} for run in runs.values()]


def _generate_unfinished(
    runs: dict[int, Run],
    split: Split,
    teacher: Teacher,
    method: str,
    config: GenerationConfig,
    workplace: Workplace,
) -> None:
    """Generate for every seed whose run is unfinished; seeds that stand at the same point go on together."""
    with ExitStack() as stack:
        groups: dict[tuple[int, int], dict[int, dict[str, Any]]] = {}
        for seed, run in runs.items():
            state = stack.enter_context(run).resume() or {
                "chunk": 0,
                "done": [],
                "losses": [],
                "generator": None,
            }
            iteration = state["generator"]["iteration"] if state["generator"] else 0
            groups.setdefault((state["chunk"], iteration), {})[seed] = state
        for states in groups.values():
            _generate_together(
                {seed: runs[seed] for seed in states}, states, split, teacher, method, config, workplace
            )


def _generate_together(
    runs: dict[int, Run],
    states: dict[int, dict[str, Any]],
    split: Split,
    teacher: Teacher,
    method: str,
    config: GenerationConfig,
    workplace: Workplace,
) -> None:
    """Optimise the fake graphs of several seeds in one batch, chunk by chunk, and finish their runs."""
    assert config.num_graphs is not None
    sizes = [
        len(part)
        for part in torch.arange(config.num_graphs).split(config.graphs_per_batch or config.num_graphs)
    ]
    log_every = max(1, config.iterations // LOGGED_POINTS)
    started, steps = time.monotonic(), 0
    seeds = tuple(runs)
    for chunk in range(states[seeds[0]]["chunk"], len(sizes)):
        chunk_config = replace(config, num_graphs=sizes[chunk])
        learned = GENERATION_METHODS.get(method, GENERATION_METHODS["GFKD"])
        generator = GraphGenerator(
            teacher.network,
            chunk_config,
            learned,
            [chunk_seed(seed, chunk) for seed in seeds],
            teacher.known_degrees,
            device=workplace.fabric.device,
        )
        for seed, state in states.items():
            if state["generator"] is not None:
                generator.load_state_dict(chunk_seed(seed, chunk), state["generator"])
                state["generator"] = None
        remaining = range(generator.iteration, config.iterations)
        for iteration in progress(remaining, f"{method} {split.dataset.name}", total=len(remaining)):
            if any(run.is_checkpoint_due for run in runs.values()):
                for seed, run in runs.items():
                    current = {**states[seed], "generator": generator.state_dict(chunk_seed(seed, chunk))}
                    run.save_checkpoint(chunk * config.iterations + iteration, current)
            loss = generator.step()
            steps += 1
            if iteration % log_every == 0:
                for run, value in zip(runs.values(), loss.tolist(), strict=True):
                    run.log(chunk * config.iterations + iteration, loss=value)
        final = generator.current_loss().tolist()
        for seed, final_loss, best_loss in zip(seeds, final, generator.best_loss.tolist(), strict=True):
            runs[seed].log(chunk * config.iterations + config.iterations, loss=final_loss)
            states[seed]["done"].append(generator.graphs(chunk_seed(seed, chunk)).state_dict())
            states[seed]["losses"].append((final_loss, best_loss))
            states[seed]["chunk"] = chunk + 1

    rate = steps * sum(sizes) * len(seeds) / len(sizes) / (time.monotonic() - started) if steps else None
    for seed, run in runs.items():
        graphs = concatenate([GraphSet(**state) for state in states[seed]["done"]])
        run.save_artifact("graphs.pt", graphs.state_dict())
        if seed == min(runs):
            _draw(run, split, graphs, method)
        final_losses, best_losses = zip(*states[seed]["losses"], strict=True)
        metrics = {
            "final_loss": sum(final_losses) / len(final_losses),
            "best_loss": sum(best_losses) / len(best_losses),
            "edges_per_graph": float(graphs.edge_counts.float().mean()),
            "nodes_per_graph": float(graphs.node_counts.float().mean()),
        }
        run.finish(metrics, rate, "graph steps/s" if rate else None)
        logger.info("%s: objective %.3f", run.directory.name, metrics["final_loss"])


def chunk_seed(seed: int, chunk: int) -> int:
    """The seed of one chunk of fake graphs; the first chunk has the run's own."""
    return seed + 1_000_003 * chunk


def distill(
    profile_name: str,
    profile: Profile,
    split: Split,
    teacher: Teacher,
    student: str,
    method: str,
    generation: GenerationConfig | None,
    fake: dict[int, GraphSet] | None,
    seeds: tuple[int, int],
    workplace: Workplace,
) -> dict[str, Any]:
    """One student: on labels or by distillation, on the real graphs or on the fake ones of a seed."""
    dataset, (generation_seed, seed) = split.dataset.name, seeds
    config = {
        **teacher.config,
        "student": student,
        "student_training": plain(profile.student),
        "method": method,
        "generation": None if generation is None else plain(generation),
        "generation_seed": None if generation is None else generation_seed,
        "student_seed": seed,
    }
    name = f"{dataset}-{teacher.name}-{student}-{_slug(method)}"
    key = RunKey(
        PAPER, profile_name, name, seed, dataset, f"{teacher.name}-{student} {profile.recipe}", method
    )
    run = workplace.run(key, config)
    if (finished := run.result) is not None:
        return finished
    device, backend = workplace.fabric.device, profile.backend
    graphs = (split.train if fake is None else fake[generation_seed]).to(device)
    network = teacher.network.to(device)

    def build() -> GraphClassifier:
        return build_model(student, graphs.num_features, graphs.num_classes)

    started = time.monotonic()
    with run:
        if method == "Labels":
            targets, loss = labels_and_loss(graphs)
        else:
            targets, loss = teacher_and_loss(network, graphs, profile.student.temperature, backend)
        trained, fitted = fit(
            build,
            graphs,
            targets,
            loss,
            split.test,
            profile.student,
            seed,
            workplace.fabric,
            run,
            backend,
            workplace.compile,
        )
        test = split.test.to(device)
        metrics = {
            "test_accuracy": fitted.last_accuracy,
            "best_test_accuracy": fitted.best_accuracy,
            "agreement": agreement(predict(trained, test, backend), predict(network, test, backend)),
        }
        run.save_artifact(
            "model.pt", artifact(student, trained, trained.state_dict(), known_degrees=teacher.known_degrees)
        )
        return _finish(run, metrics, profile.student, graphs, started)


def _finish(
    run: Run, metrics: dict[str, float], config: TrainingConfig, graphs: GraphSet, started: float
) -> dict[str, Any]:
    seconds = time.monotonic() - started
    logger.info("%s: test accuracy %.2f %% (%.1f s)", run.directory.name, metrics["test_accuracy"], seconds)
    return run.finish(metrics, config.epochs * len(graphs) / seconds, "graphs/s")


def _draw(run: Run, split: Split, fake: GraphSet, method: str) -> None:
    """Fake graphs beside real ones. The real ones are only shown; the generator never saw them."""
    name = split.dataset.name.upper()
    rows = {f"real graphs of {name}, for comparison only": split.train, f"fake graphs by {method}": fake}
    with run.figure("fake_graphs.png", f"Real {name} graphs above, fake graphs by {method} below") as path:
        draw_graphs(rows, path)
    curve = [(row["step"], row["loss"]) for row in run.history() if row.get("loss") is not None]
    if len(curve) > 1:
        steps, values = zip(*curve, strict=True)
        with run.figure("objective.png", f"Objective of {method} over the iterations") as path:
            draw_curve(steps, values, "iteration", "objective L", path)


def _slug(method: str) -> str:
    return method.lower().replace(" ", "-").replace("=", "")
