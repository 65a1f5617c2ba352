"""Seed by seed comparison of two methods."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from scipy import stats

from tenfold.shared.logging import TenfoldError


@dataclass(frozen=True)
class PairedDifference:
    """Differences between two methods that met the same seeds."""

    mean: float
    low: float
    """Lower end of the 95 per cent confidence interval of the mean (Student's t)."""
    high: float
    p_value: float
    """Of Wilcoxon's signed-rank test."""
    wins: int
    """Seeds on which the first is better."""
    seeds: int


def paired_difference(first: Mapping[int, float], second: Mapping[int, float]) -> PairedDifference:
    """First minus second over the seeds that both have.

    Args:
        first: value by seed.
        second: value by seed.

    Raises:
        TenfoldError: they share fewer than two seeds.
    """
    seeds = sorted(first.keys() & second.keys())
    if len(seeds) < 2:
        raise TenfoldError(f"a paired comparison needs two seeds that both methods have, not {len(seeds)}")
    differences = np.array([first[seed] - second[seed] for seed in seeds])
    if np.ptp(differences) == 0:  # no spread, no interval
        low = high = float(differences[0])
        p_value = 1.0 if low == 0 else float(stats.wilcoxon(differences).pvalue)
    else:
        low, high = stats.ttest_1samp(differences, 0).confidence_interval(0.95)
        p_value = float(stats.wilcoxon(differences).pvalue)
    wins = int((differences > 0).sum())
    return PairedDifference(float(differences.mean()), float(low), float(high), p_value, wins, len(seeds))
