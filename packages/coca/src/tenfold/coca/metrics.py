"""Accuracy after every task, and what it says about forgetting and transfer.

An accuracy matrix has a row for every task that was trained and a column for every task that is tested: ``R[i][j]`` in
per cent on task j after task i. Rows may be ragged (what was not measured is missing at their end), or full with NaN.
The numbers of Lopez-Paz and Ranzato 2017 and of Chaudhry et al. 2018.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torchmetrics.functional.classification import multiclass_accuracy

from tenfold.shared.logging import TenfoldError

AccuracyMatrix = Sequence[Sequence[float]] | np.ndarray


def accuracy_matrix(rows: AccuracyMatrix) -> np.ndarray:
    """[T, T] of ragged rows, NaN where nothing was measured.

    Raises:
        TenfoldError: there is no row, or one is longer than there are tasks.
    """
    if len(rows) == 0 or any(len(row) > len(rows) for row in rows):
        raise TenfoldError("an accuracy matrix has a row for every task, none longer than there are tasks")
    matrix = np.full((len(rows), len(rows)), np.nan)
    for row, values in zip(matrix, rows, strict=True):
        row[: len(values)] = values
    return matrix


def average_accuracy(rows: AccuracyMatrix) -> float:
    """Mean over tasks after the last one: mean_j R[T-1][j]."""
    return float(accuracy_matrix(rows)[-1].mean())


def average_incremental_accuracy(rows: AccuracyMatrix) -> float:
    """Mean over time of the mean over the tasks seen: mean_i mean_{j <= i} R[i][j]."""
    matrix = accuracy_matrix(rows)
    return float(np.mean([matrix[i, : i + 1].mean() for i in range(len(matrix))]))


def backward_transfer(rows: AccuracyMatrix) -> float:
    """What later tasks did to earlier ones: mean_{i < T-1} (R[T-1][i] - R[i][i]); NaN for a single task."""
    matrix = accuracy_matrix(rows)
    return _mean(matrix[-1, :-1] - matrix.diagonal()[:-1])


def forward_transfer(rows: AccuracyMatrix, untrained: Sequence[float]) -> float:
    """What earlier tasks did for later ones: mean_{i >= 1} (R[i-1][i] - b_i); NaN for a single task.

    Args:
        rows: each with the task that comes next.
        untrained: b, accuracy of the untrained network on every task.
    """
    matrix = accuracy_matrix(rows)
    return _mean(matrix.diagonal(1) - np.asarray(untrained, dtype=np.float64)[1:])


def forgetting(
    rows: AccuracyMatrix, definition: Literal["trained-only", "official"] = "trained-only"
) -> float:
    """How far below its best each task ended: mean_{i < T-1} (max_l R[l][i] - R[T-1][i]); NaN for a single task.

    Args:
        rows: the accuracy matrix.
        definition: "trained-only" takes the best since the task was trained, l >= i; "official" is what the authors'
            code
            computes: the measurement before training takes part, and what is missing counts as 0.
    """
    matrix = accuracy_matrix(rows)
    if definition == "trained-only":
        best = [matrix[i:, i].max() for i in range(len(matrix) - 1)]
    elif definition == "official":
        best = list(np.nan_to_num(matrix).max(axis=0)[:-1])
    else:
        raise TenfoldError(f"unknown definition {definition!r}; choose trained-only or official")
    return _mean(np.asarray(best) - matrix[-1, :-1])


def class_task_accuracy(
    logits: Tensor, labels: Tensor, classes_per_task: int | Sequence[Sequence[int]]
) -> tuple[list[float], list[float]]:
    """Class-IL and Task-IL accuracy in per cent of every task, from the same logits.

    Args:
        logits: [N, C].
        labels: [N].
        classes_per_task: the classes of every task; a number means that many consecutive ones.

    Returns:
        Over all classes; and with the classes of other tasks left out.

    Raises:
        TenfoldError: the classes cannot be divided evenly, a label belongs to no task, or a task has no image.
    """
    num_classes = logits.shape[1]
    if isinstance(classes_per_task, int) and num_classes % classes_per_task:
        raise TenfoldError(f"{num_classes} classes cannot be split into tasks of {classes_per_task}")
    if isinstance(classes_per_task, int):
        starts = range(0, num_classes, classes_per_task)
        classes_per_task = [range(start, start + classes_per_task) for start in starts]
    known = torch.zeros(num_classes, dtype=torch.bool, device=logits.device)
    known[[label for classes in classes_per_task for label in classes]] = True
    if len(labels) and (labels.max() >= num_classes or labels.min() < 0 or not known[labels].all()):
        raise TenfoldError("a test image is of a class that belongs to no task of the stream")
    class_il, task_il = [], []
    for classes in classes_per_task:
        members = torch.isin(labels, torch.tensor(list(classes), device=labels.device))
        if not members.any():
            raise TenfoldError(f"there is no test image of the classes {', '.join(map(str, classes))}")
        others = torch.ones(num_classes, dtype=torch.bool, device=logits.device)
        others[list(classes)] = False
        class_il.append(accuracy(logits[members], labels[members]))
        task_il.append(accuracy(logits[members].masked_fill(others, -torch.inf), labels[members]))
    return class_il, task_il


def accuracy(logits: Tensor, labels: Tensor) -> float:
    """Per cent of images whose largest logit is their label's.

    Raises:
        TenfoldError: there is no image.
    """
    if len(labels) == 0:
        raise TenfoldError("a test set has no image; give each task's classes some")
    predicted = logits.argmax(dim=1)
    return 100 * float(multiclass_accuracy(predicted, labels, num_classes=logits.shape[1], average="micro"))


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if len(values) else float("nan")
