"""How sure a claim is: its two methods compared seed by seed, with a bootstrap interval of the mean difference."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np
from scipy.stats import bootstrap

from tenfold.shared.comparison import Measurement, Verdict

CONFIDENCE = 0.95
RESAMPLES = 9999
Place = tuple[str, str, int]
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

    Runs are paired by data set, setting and seed. Methods that share no setting, as where one has no memory to size,
    are paired by data set and seed.
    """
    if verdict.better is None or verdict.worse is None:
        return None
    better, worse = _values(verdict.better), _values(verdict.worse)
    if not better.keys() & worse.keys():
        better, worse = _without_setting(better), _without_setting(worse)
    shared = sorted(better.keys() & worse.keys())
    if not shared:
        return None
    sign = 1 if verdict.claim.higher_is_better else -1
    varying = [part for part in (0, 1) if len({key[part] for key in shared}) > 1]
    pairs = tuple(
        (
            ", ".join([*(str(key[part]) for part in varying), f"seed {key[2]}"]),
            sign * (better[key] - worse[key]),
        )
        for key in shared
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


def _values(measurement: Measurement) -> dict[Place, float]:
    """Values by (data set, setting, seed), without those that several runs share."""
    return _single(list(zip(measurement.sources, measurement.values, strict=True)))


def _without_setting(values: dict[Place, float]) -> dict[Place, float]:
    return _single([((dataset, "", seed), value) for (dataset, _, seed), value in values.items()])


def _single(values: list[tuple[Place, float]]) -> dict[Place, float]:
    counts = Counter(place for place, _ in values)
    return {place: value for place, value in values if counts[place] == 1}
