"""The paper's one-cycle schedule: rates rise and fall along cosines, the first beta of Adam the other way."""

from __future__ import annotations

import math

from torch.optim import Optimizer

from tenfold.cmt.config import TrainConfig


def cycle(progress: float, start: float, peak: float, end: float, warm_part: float) -> float:
    """A value that goes from ``start`` to ``peak`` and on to ``end``.

    Args:
        progress: 0 to 1.
        start: at 0.
        peak: at ``warm_part``.
        end: at 1.
        warm_part: where the peak is.
    """
    if progress < warm_part:
        return _cosine(start, peak, progress / warm_part)
    return _cosine(peak, end, (progress - warm_part) / (1 - warm_part)) if warm_part < 1 else peak


def _cosine(first: float, last: float, part: float) -> float:
    return last + 0.5 * (first - last) * (1 + math.cos(math.pi * part))


class CyclicSchedule:
    """Sets rates and first betas before every update, from its number alone.

    Args:
        optimizer: whose groups begin with the rates they have now.
        train: ratios of the cycle.
        steps: updates of the whole cycle.
    """

    def __init__(self, optimizer: Optimizer, train: TrainConfig, steps: int) -> None:
        self.optimizer, self.train, self.steps = optimizer, train, steps
        self.first = [(group["lr"], group["betas"]) for group in optimizer.param_groups]

    def set(self, step: int) -> None:
        """Rates and betas of an update, from 0."""
        train, progress = self.train, step / self.steps
        rate = cycle(progress, 1.0, train.peak_ratio, train.final_ratio, train.warm_part)
        momentum = cycle(progress, 1.0, train.momentum_ratio, 1.0, train.warm_part)
        for group, (lr, (beta, other)) in zip(self.optimizer.param_groups, self.first, strict=True):
            group["lr"], group["betas"] = lr * rate, (beta * momentum, other)
