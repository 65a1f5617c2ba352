"""Fairness of decisions, in the definitions of the paper's tables, and their utility.

Where a group has no node the fairness metrics are NaN, with a warning: nothing was measured. A predictor that gives
nearly everyone the same answer is perfectly fair and useless, so its positive rate belongs beside each fairness number.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torchmetrics.functional.classification import (
    binary_auroc,
    binary_f1_score,
    multiclass_accuracy,
    multiclass_auroc,
    multiclass_f1_score,
)

from tenfold.shared.logging import get_logger

logger = get_logger("reliant")

DEGENERATE_BELOW = 0.01
"""A predictor is degenerate if fewer than this share get another than the commonest answer."""


def statistical_parity(predictions: Tensor, sensitive: Tensor) -> float:
    """Delta SP = |P(yhat = 1 | s = 0) - P(yhat = 1 | s = 1)|.

    With more than two groups, the largest difference between two of them, as fairlearn's
    ``demographic_parity_difference``; with more than two classes, the largest over classes.

    Args:
        predictions: [n], classes.
        sensitive: [n], groups.
    """
    return _largest_gap(predictions, sensitive, "statistical parity")


def equal_opportunity(predictions: Tensor, labels: Tensor, sensitive: Tensor) -> float:
    """Delta EO = |P(yhat = 1 | s = 0, y = 1) - P(yhat = 1 | s = 1, y = 1)|.

    More groups as in :func:`statistical_parity`; with more than two classes, the largest over classes c of the
    difference in P(yhat = c | s, y = c).

    Args:
        predictions: [n], classes.
        labels: [n], classes.
        sensitive: [n], groups.
    """
    all_groups = sensitive.unique()
    classes = _classes(predictions, labels)
    gaps = []
    for c in classes:
        of_class = labels == c
        gaps.append(_gap(predictions[of_class] == c, sensitive[of_class], all_groups, "equal opportunity"))
    return max(gaps) if not any(map(math.isnan, gaps)) else math.nan


def evaluate_predictions(logits: Tensor, labels: Tensor, sensitive: Tensor) -> dict[str, float]:
    """Utility and fairness of a network's decisions on some nodes; all as fractions.

    Args:
        logits: [n, C].
        labels: [n].
        sensitive: [n].

    Returns:
        ``accuracy``, ``f1`` and ``auroc`` (macro averages for more than two classes), ``delta_sp``, ``delta_eo``,
        ``positive_rate`` (share of class 1) and ``minority_rate`` (share that does not get the commonest answer).
    """
    num_classes = logits.shape[1]
    predictions = logits.argmax(dim=1)
    probabilities = logits.float().softmax(dim=1)
    if num_classes == 2:
        f1, auroc = binary_f1_score(predictions, labels), binary_auroc(probabilities[:, 1], labels)
    else:
        f1 = multiclass_f1_score(predictions, labels, num_classes)
        auroc = multiclass_auroc(probabilities, labels, num_classes)
    shares = torch.bincount(predictions, minlength=num_classes) / len(predictions)
    return {
        "accuracy": float(multiclass_accuracy(predictions, labels, num_classes, average="micro")),
        "f1": float(f1),
        "auroc": float(auroc),
        "delta_sp": statistical_parity(predictions, sensitive),
        "delta_eo": equal_opportunity(predictions, labels, sensitive),
        "positive_rate": float(shares[1]),
        "minority_rate": 1 - float(shares.max()),
    }


def is_degenerate(metrics: dict[str, float]) -> bool:
    """Whether nearly everyone got the same answer, so that fairness says nothing."""
    return metrics["minority_rate"] < DEGENERATE_BELOW


def _largest_gap(predictions: Tensor, sensitive: Tensor, name: str) -> float:
    groups = sensitive.unique()
    return max(_gap(predictions == c, sensitive, groups, name) for c in _classes(predictions))


def _classes(*values: Tensor) -> list[int]:
    """Class 1 alone where there are two classes, as the papers measure; else all."""
    largest = max(int(value.max()) for value in values)
    return [1] if largest <= 1 else list(range(largest + 1))


def _gap(chosen: Tensor, sensitive: Tensor, groups: Tensor, name: str) -> float:
    member = groups[:, None] == sensitive
    sizes = member.sum(dim=1)
    if len(groups) < 2 or int(sizes.min()) == 0:
        logger.warning("%s is not defined here: a sensitive group has no such node", name)
        return math.nan
    rates = (member & chosen).sum(dim=1).double() / sizes
    return float(rates.max() - rates.min())
