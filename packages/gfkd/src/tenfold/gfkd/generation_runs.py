"""One generation job: the fake graphs of one or more seeds from one teacher, with a run record a seed."""

from __future__ import annotations

import time
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

from tenfold.gfkd.experiments import GenerationJob, Split, Suite, in_main_process, learned_by, load_teacher
from tenfold.gfkd.figures import draw_curve, draw_graphs
from tenfold.gfkd.generation import GraphGenerator, chunk_seed, chunk_sizes
from tenfold.gfkd.graphs import GraphSet, concatenate
from tenfold.shared.logging import get_logger, progress
from tenfold.shared.runs import Run

logger = get_logger("gfkd")

LOGGED_POINTS = 150
"""How many times a generation logs its objective."""


def generate(suite: Suite, job: GenerationJob) -> None:
    """Generate for every seed that is unfinished; seeds that stand at the same point go on together."""
    runs = {
        seed: run
        for seed, run in suite.generation_runs(job).items()
        if not (run.is_finished and (run.directory / "graphs.pt").exists())
    }
    with ExitStack() as stack:
        groups: dict[tuple[int, int], dict[int, dict[str, Any]]] = {}
        for seed, run in runs.items():
            fresh: dict[str, Any] = {"chunk": 0, "done": [], "losses": [], "generator": None}
            state = stack.enter_context(run).resume() or fresh
            iteration = state["generator"]["iteration"] if state["generator"] else 0
            groups.setdefault((state["chunk"], iteration), {})[seed] = state
        for states in groups.values():
            _generate_together(suite, job, {seed: runs[seed] for seed in states}, states)


def _generate_together(
    suite: Suite, job: GenerationJob, runs: dict[int, Run], states: dict[int, dict[str, Any]]
) -> None:
    """Optimise the fake graphs of several seeds in one batch, chunk by chunk, and finish their runs."""
    config = suite.generation(job.dataset, job.method)
    assert config is not None
    network, known_degrees = load_teacher(suite, job.dataset, job.teacher)
    sizes, log_every = chunk_sizes(config), max(1, config.iterations // LOGGED_POINTS)
    first_chunk = next(iter(states.values()))["chunk"]
    started, graph_steps = time.monotonic(), 0
    for chunk in range(first_chunk, len(sizes)):
        generator = GraphGenerator(
            network,
            replace(config, num_graphs=sizes[chunk]),
            learned_by(job.method),
            [chunk_seed(seed, chunk) for seed in runs],
            known_degrees,
            device=suite.fabric.device,
        )
        for seed, state in states.items():
            if state["generator"] is not None:
                generator.load_state_dict(chunk_seed(seed, chunk), state["generator"])
                state["generator"] = None
        remaining = range(generator.iteration, config.iterations)
        for iteration in progress(remaining, job.method) if in_main_process() else remaining:
            loss = generator.step()
            step = chunk * config.iterations + iteration
            if iteration % log_every == 0:
                for run, value in zip(runs.values(), loss.tolist(), strict=True):
                    run.log(step, loss=value)
            if any(run.is_checkpoint_due for run in runs.values()):
                for seed, run in runs.items():
                    current = generator.state_dict(chunk_seed(seed, chunk))
                    run.save_checkpoint(step, {**states[seed], "generator": current})
        graph_steps += len(remaining) * sizes[chunk] * len(runs)
        final = generator.current_loss().tolist()
        for (seed, state), final_loss, best_loss in zip(
            states.items(), final, generator.best_loss.tolist(), strict=True
        ):
            runs[seed].log((chunk + 1) * config.iterations, loss=final_loss)
            state["done"].append(generator.graphs(chunk_seed(seed, chunk)).state_dict())
            state["losses"].append((final_loss, best_loss))
            state["chunk"] = chunk + 1

    rate = graph_steps / (time.monotonic() - started) if graph_steps else None
    for seed, run in runs.items():
        _finish(suite, job, run, states[seed], rate, draw=seed == suite.profile.seeds[0])


def _finish(
    suite: Suite, job: GenerationJob, run: Run, state: dict[str, Any], rate: float | None, draw: bool
) -> None:
    graphs = concatenate([GraphSet(**part) for part in state["done"]])
    run.save_artifact("graphs.pt", graphs.state_dict())
    if draw:
        _draw(run, suite.split(job.dataset), graphs, job.method)
    final_losses, best_losses = zip(*state["losses"], strict=True)
    metrics = {
        "final_loss": sum(final_losses) / len(final_losses),
        "best_loss": sum(best_losses) / len(best_losses),
        "edges_per_graph": float(graphs.edge_counts.float().mean()),
        "nodes_per_graph": float(graphs.node_counts.float().mean()),
    }
    run.finish(metrics, rate, "graph steps/s" if rate else None)
    logger.info("%s: objective %.3f", run.directory.name, metrics["final_loss"])


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
