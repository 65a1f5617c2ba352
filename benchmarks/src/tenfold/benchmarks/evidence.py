"""How sure a claim is: its two methods compared seed by seed, with a bootstrap interval of the mean difference."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np
from scipy.stats import bootstrap

from tenfold.shared.comparison import Measurement, Verdict

CONFIDENCE = 0.95
RESAMPLES = 9999
FEW = 5
"""Below this many pairs a percentile interval is too narrow to be taken at its word."""


@dataclass(frozen=True)
class Evidence:
    """The paired differences of a claim, positive where the method that should be better is better.

    ``pairs`` holds (data set and seed as text, difference); ``interval`` is the percentile bootstrap interval of their
    mean at 95 %, None for a single pair.
    """

    pairs: tuple[tuple[str, float], ...]
    interval: tuple[float, float] | None

    @property
    def mean(self) -> float:
        return float(np.mean([difference for _, difference in self.pairs]))

    @property
    def wins(self) -> int:
        """Pairs in which the better method is ahead."""
        return sum(difference > 0 for _, difference in self.pairs)

    @property
    def is_thin(self) -> bool:
        return len(self.pairs) < FEW


def paired_evidence(verdict: Verdict) -> Evidence | None:
    """The evidence for a judged claim; None where no data set and seed occurs once on both sides.

    Runs are paired by data set and seed. Their settings may differ, as for a method that has no memory to size.
    """
    if verdict.better is None or verdict.worse is None:
        return None
    better, worse = _by_seed(verdict.better), _by_seed(verdict.worse)
    sign = 1 if verdict.claim.higher_is_better else -1
    shared = sorted(better.keys() & worse.keys())
    if not shared:
        return None
    several_sets = len({dataset for dataset, _ in shared}) > 1
    pairs = tuple(
        (f"{dataset}, seed {seed}" if several_sets else f"seed {seed}", sign * (better[key] - worse[key]))
        for key in shared
        for dataset, seed in [key]
    )
    return Evidence(pairs, mean_interval([difference for _, difference in pairs]))


def mean_interval(differences: list[float]) -> tuple[float, float] | None:
    """The percentile bootstrap interval of the mean at 95 %, the same at every call; None for fewer than two values."""
    if len(differences) < 2:
        return None
    if len(set(differences)) == 1:
        return differences[0], differences[0]
    found = bootstrap(
        (np.array(differences),),
        np.mean,
        n_resamples=RESAMPLES,
        confidence_level=CONFIDENCE,
        method="percentile",
        rng=np.random.default_rng(0),
    ).confidence_interval
    return float(found.low), float(found.high)


def _by_seed(measurement: Measurement) -> dict[tuple[str, int], float]:
    """Values by (data set, seed), without those that several runs share."""
    places = [(dataset, seed) for dataset, _, seed in measurement.sources]
    counts = Counter(places)
    return {
        place: value for place, value in zip(places, measurement.values, strict=True) if counts[place] == 1
    }
