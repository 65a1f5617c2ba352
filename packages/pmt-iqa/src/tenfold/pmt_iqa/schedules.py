"""From easy to hard: how the weights of the two tasks, and the learning rate, move over the epochs."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

from tenfold.shared.logging import TenfoldError

WeightSchedule = Literal[
    "progressive", "cosine", "sigmoid", "step", "reversed", "fixed", "regression", "classification"
]


def progressive_weights(epoch: int, epochs: int) -> tuple[float, float]:
    """The paper's schedule: lambda1 = t / (T - 1) of regression and lambda2 = 1 - lambda1 of classification.

    Epoch 0 is pure classification, the last one pure regression; a single epoch is regression.

    Args:
        epoch: t, from 0.
        epochs: T.

    Raises:
        TenfoldError: t is not in 0 .. T-1.
    """
    regression = _progress(epoch, epochs)
    return regression, 1 - regression


def _share(curve: Callable[[float], float]) -> Callable[[int, int], tuple[float, float]]:
    def weights(epoch: int, epochs: int) -> tuple[float, float]:
        regression = curve(_progress(epoch, epochs))
        return regression, 1 - regression

    return weights


def _sigmoid(progress: float, steepness: float = 10.0) -> float:
    """From 0 to 1 exactly, steep in the middle."""
    low = 1 / (1 + math.exp(steepness / 2))
    value = 1 / (1 + math.exp(-steepness * (progress - 0.5)))
    return min(max((value - low) / (1 - 2 * low), 0.0), 1.0)


_SHARES: dict[str, Callable[[int, int], tuple[float, float]]] = {
    "progressive": progressive_weights,
    "cosine": _share(lambda progress: (1 - math.cos(math.pi * progress)) / 2),
    "sigmoid": _share(_sigmoid),
    "step": _share(lambda progress: float(progress >= 0.5)),
    "reversed": _share(lambda progress: 1 - progress),
    "regression": _share(lambda _: 1.0),
    "classification": _share(lambda _: 0.0),
}


def task_weights(
    schedule: WeightSchedule, epoch: int, epochs: int, fixed: tuple[float, float] = (1.0, 1.0)
) -> tuple[float, float]:
    """lambda1 of regression and lambda2 of classification in one epoch.

    Args:
        schedule: the paper's ``progressive`` (linear), other shapes from classification to regression, ``reversed``
            from hard to easy, one task alone, or ``fixed``.
        epoch: from 0.
        epochs: in all.
        fixed: both weights of ``fixed``.

    Raises:
        TenfoldError: the schedule is unknown, or the epoch outside the training.
    """
    if schedule == "fixed":
        _progress(epoch, epochs)
        return fixed
    if schedule not in _SHARES:
        raise TenfoldError(f"unknown schedule {schedule!r}; choose one of {', '.join((*_SHARES, 'fixed'))}")
    return _SHARES[schedule](epoch, epochs)


def official_learning_rate(base: float, epoch: int) -> float:
    """The rate in force during an epoch: 7 epochs at ``base``, then a tenth every 6.

    The authors set the rate for the next epoch from the number of the one that ended, hence 7.
    """
    if epoch < 0:
        raise TenfoldError(f"epochs are counted from 0, not {epoch}")
    return base / 10.0 ** (max(epoch - 1, 0) // 6)


def hyperiqa_learning_rates(base: float, epoch: int) -> tuple[float, float]:
    """HyperIQA's rates of the features, which is constant, and of the rest: ten times the official one until epoch 9.

    Its published solver stops training the rest after the first epoch, because it hands an exhausted iterator to the
    second optimizer; that is not done here.
    """
    return base, official_learning_rate(base, epoch) * (10 if epoch < 10 else 1)


def one_cycle(progress: float, warm_up: float = 0.2, start: float = 1 / 25, end: float = 1e-4) -> float:
    """Factor of the peak rate: a cosine from ``start`` up to 1, and one down to ``end`` of the start.

    Args:
        progress: share of all steps that are done, 0 to 1.
        warm_up: share of the steps that go up.
        start: first factor.
        end: last factor, as a share of the first.
    """
    if progress < warm_up:
        return start + (1 - start) * (1 - math.cos(math.pi * progress / warm_up)) / 2
    down = (progress - warm_up) / (1 - warm_up)
    return start * end + (1 - start * end) * (1 + math.cos(math.pi * down)) / 2


def _progress(epoch: int, epochs: int) -> float:
    if not 0 <= epoch < epochs:
        raise TenfoldError(f"epoch {epoch} is not one of {epochs}, which are counted from 0")
    return epoch / (epochs - 1) if epochs > 1 else 1.0
