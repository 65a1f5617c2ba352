"""A learner meets a stream: batch by batch, tested after every segment, resumable in the middle."""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor

from tenfold.coca.config import TrainConfig
from tenfold.coca.learner import Learner
from tenfold.coca.memory import host_to_device
from tenfold.coca.metrics import (
    accuracy,
    average_incremental_accuracy,
    backward_transfer,
    forgetting,
    forward_transfer,
)
from tenfold.coca.streams import Stream, batch_indices
from tenfold.shared.logging import TenfoldError, get_logger
from tenfold.shared.runs import Run

logger = get_logger("coca")

Accuracies = dict[str, list[float]]
"""Per cent on every test set, by kind of accuracy."""


@dataclass(frozen=True)
class Learned:
    """A learner at the end of its stream, and what it could do on the way."""

    learner: Learner
    rows: dict[str, list[list[float]]]
    """Accuracy matrices by kind: one row for each segment, one column for each test set."""
    untrained: Accuracies
    """Before anything was learned."""
    images_here: int
    """Images of the stream that were served since the run was resumed."""


def learn_stream(
    stream: Stream,
    config: TrainConfig,
    seed: int,
    fabric: Fabric,
    run: Run,
    compile_network: bool = False,
) -> Learned:
    """Learn a whole stream.

    Args:
        stream: segments and tests, on the CPU.
        config: learner, batches and network.
        seed: of weights, order, augmentation and memory; methods of one seed meet the same weights and order.
        fabric: launched.
        run: entered; goes on from its checkpoint.
        compile_network: compile it with torch.compile.

    Raises:
        TenfoldError: the method needs boundaries that the stream does not have, or larger batches.
    """
    if config.learner.method == "JOINT":
        stream = stream.joint()
    learner = Learner(
        config.learner,
        stream.num_classes,
        stream.image_shape,
        stream.preprocessing,
        config.network,
        seed,
        fabric,
        compile_network,
    )
    if not stream.has_boundaries and (learner.method.needs_boundaries or config.learner.task_boundaries):
        raise TenfoldError(
            f"{config.learner.method} must be told where tasks end, and {stream.name} does not say; choose a method "
            "without task boundaries"
        )
    smallest = learner.smallest_batch * fabric.world_size
    if config.stream.batch_size < smallest:
        raise TenfoldError(
            f"{config.learner.method} with this network learns from batches of at least {smallest} images, not "
            f"{config.stream.batch_size}; raise --stream.batch-size"
        )
    position = _Position()
    state = run.resume()
    if state is None:
        untrained = measure_accuracies(learner, stream)
        rows: dict[str, list[list[float]]] = defaultdict(list)
    else:
        learner.load_state_dict(state["learner"])
        position = _Position(**state["position"])
        untrained, rows = state["untrained"], defaultdict(list, state["rows"])

    seen_before = learner.images_seen
    for index in range(position.segment, len(stream.segments)):
        segment = stream.segments[index]
        train = segment.train.to(fabric.device)
        if stream.has_boundaries:
            learner.begin_task(segment.classes)
        for epoch in range(position.epoch, config.stream.epochs):
            batches = batch_indices(segment, config.stream, seed, index, epoch)
            for number in range(position.batch, len(batches)):
                batch = host_to_device(batches[number], fabric.device)
                learner.learn(train.images[batch], train.labels[batch])
                if run.is_writer and run.is_checkpoint_due:
                    position = _Position(index, epoch, number + 1)
                    run.save_checkpoint(learner.steps, _state(learner, position, untrained, rows))
            position = _Position(index, epoch + 1)
            _log_loss(learner, run)
        learner.end_task(train.images, train.labels)
        for kind, row in measure_accuracies(learner, stream).items():
            rows[kind].append(row)
        position = _Position(index + 1)
        _log_accuracies(learner, run, {kind: matrix[-1] for kind, matrix in rows.items()}, index)
    return Learned(learner, dict(rows), untrained, learner.images_seen - seen_before)


@torch.no_grad()
def measure_accuracies(learner: Learner, stream: Stream) -> Accuracies:
    """Accuracy on every test set, by every kind that the stream's scenario knows.

    Class-incremental streams give ``class_il`` over all classes and ``task_il`` over those of the image's task, from
    the same outputs; domain-incremental ones ``domain_il``; general ones ``accuracy``. Further test sets have their
    name in front.
    """
    found: Accuracies = {}
    for name, tests in {"": stream.tests, **stream.further_tests}.items():
        prefix = f"{name}_" if name else ""
        scores = [learner.predict(test.images) for test in tests]
        labels = [test.labels.to(learner.device) for test in tests]
        whole = [accuracy(score, label) for score, label in zip(scores, labels, strict=True)]
        if stream.scenario == "class":
            found[f"{prefix}class_il"] = whole
            found[f"{prefix}task_il"] = [
                accuracy(_among(score, classes), label)
                for score, label, classes in zip(scores, labels, stream.test_classes, strict=True)
            ]
        else:
            found[prefix + {"domain": "domain_il", "general": "accuracy"}[stream.scenario]] = whole
    return found


def stream_metrics(learned: Learned, stream: Stream) -> dict[str, float]:
    """Final average of every kind of accuracy, and for the main test sets forgetting and transfer.

    Args:
        learned: rows and untrained accuracies; JOINT has one row, and no forgetting.
        stream: as it was given to :func:`learn_stream`.
    """
    metrics: dict[str, float] = {}
    for kind, rows in learned.rows.items():
        metrics[kind] = sum(rows[-1]) / len(rows[-1])
        is_further = any(kind.startswith(f"{name}_") for name in stream.further_tests)
        if is_further or len(rows) != len(stream.tests) or len(rows) < 2:
            continue
        metrics |= {
            f"{kind}_incremental": average_incremental_accuracy(rows),
            f"{kind}_forgetting": forgetting(rows),
            # The authors measure the task that comes next, and none beyond it.
            f"{kind}_forgetting_official": forgetting(
                [row[: task + 2] for task, row in enumerate(rows)], "official"
            ),
            f"{kind}_backward_transfer": backward_transfer(rows),
            f"{kind}_forward_transfer": forward_transfer(rows, learned.untrained[kind]),
        }
    return metrics


@dataclass(frozen=True)
class _Position:
    """What comes next."""

    segment: int = 0
    epoch: int = 0
    batch: int = 0


def _state(
    learner: Learner, position: _Position, untrained: Accuracies, rows: dict[str, list[list[float]]]
) -> dict[str, Any]:
    return {
        "learner": learner.state_dict(),
        "position": vars(position),
        "untrained": untrained,
        "rows": dict(rows),
    }


def _among(scores: Tensor, classes: tuple[int, ...]) -> Tensor:
    """Scores with the classes of other tasks left out."""
    others = torch.ones(scores.shape[1], dtype=torch.bool, device=scores.device)
    others[list(classes)] = False
    return scores.masked_fill(others, -torch.inf)


def _log_loss(learner: Learner, run: Run) -> None:
    """Write down the mean loss of the steps since the last time; the only time a pass waits for the device."""
    loss_sum, steps = learner.method.read_loss()
    if steps == 0:
        return
    if not math.isfinite(loss_sum):
        logger.warning("%s: the loss is not finite any more; lower --lr", run.directory.name)
    run.log(learner.steps, loss=loss_sum / steps)


def _log_accuracies(learner: Learner, run: Run, rows: Accuracies, index: int) -> None:
    """Write down the averages over the tasks seen."""
    averages = {f"{kind}_seen": sum(row[: index + 1]) / len(row[: index + 1]) for kind, row in rows.items()}
    run.log(learner.steps, **averages)
