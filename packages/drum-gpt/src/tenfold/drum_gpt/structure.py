"""The paper's structural evaluation: how drum measures repeat and vary, and what to compare them with."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Literal, NamedTuple

import numpy as np
from rapidfuzz.distance import Levenshtein

from tenfold.drum_gpt.encoding import EMPTY_LINE, HIT, MEASURE, REST

MOST_MEASURES = 16
TwoMeansMethod = Literal["exact", "n_init=1", "n_init=10"]
"""The optimum; or scikit-learn's local optimum after so many starts: 10 was its default in 2022, 1 is now."""


class TwoMeans(NamedTuple):
    """Stability values as groove and fill."""

    gap: float
    """Distance between the two centres."""
    mean_distance: float
    """Mean distance of a value to its own centre."""


def levenshtein(a: str, b: str) -> int:
    """Insertions, deletions and substitutions between two texts."""
    return int(Levenshtein.distance(a, b))


def measures_of(text: str, trim_silence: bool = False) -> list[list[str]]:
    """Consecutive chunks of 16 lines, the last may be shorter.

    Args:
        text: a drumroll; every line keeps its newline.
        trim_silence: leave out empty measures at the end, with which human pieces are filled up.
    """
    lines = text.splitlines(keepends=True)
    measures = [lines[start : start + MEASURE] for start in range(0, len(lines), MEASURE)]
    while trim_silence and measures and is_empty(measures[-1]):
        measures.pop()
    return measures


def is_empty(measure: Iterable[str]) -> bool:
    """Whether nothing is hit."""
    return all(line.strip() in (EMPTY_LINE, "") for line in measure)


def measure_stability(text: str, trim_silence: bool = False) -> list[int]:
    """How far each inner measure is from the more similar of its neighbours.

    s_i = min(d(m_i, m_{i-1}), d(m_i, m_{i+1})) for 1 <= i <= n - 2, d the Levenshtein distance, of the first sixteen
    measures. 0 is a verbatim repeat; peaks are fills and variations.
    """
    measures = ["\n".join(measure) for measure in measures_of(text, trim_silence)[:MOST_MEASURES]]
    distances = [levenshtein(first, second) for first, second in pairwise(measures)]
    return [min(pair) for pair in pairwise(distances)]


def two_means(values: Sequence[float], method: TwoMeansMethod = "exact") -> TwoMeans:
    """Split values into two clusters with the least squared error.

    Args:
        values: stability of the measures of one piece.
        method: all cuts of the sorted values; or scikit-learn's KMeans as in the authors' code.

    Returns:
        Zeros where there are fewer than two different values.
    """
    found = np.sort(np.asarray(values, dtype=np.float64))
    if len(found) < 2 or found[0] == found[-1]:
        return TwoMeans(0.0, 0.0)
    if method == "exact":
        labels = np.arange(len(found)) >= _best_cut(found)
    else:
        from sklearn.cluster import KMeans  # takes seconds, which only the authors' way of clustering needs

        means = KMeans(n_clusters=2, random_state=0, n_init=int(method.removeprefix("n_init=")))
        labels = means.fit_predict(np.asarray(values, dtype=np.float64)[:, None]) == 1
        found = np.asarray(values, dtype=np.float64)
    low, high = found[~labels].mean(), found[labels].mean()
    distance = np.abs(found - np.where(labels, high, low)).mean()
    return TwoMeans(float(abs(high - low)), float(distance))


def _best_cut(ordered: np.ndarray) -> int:
    """Size of the lower cluster; the first of several equally good ones."""
    cuts = np.arange(1, len(ordered))
    sums = np.cumsum(ordered)[:-1]
    # The squared error is least where the squares that the means explain are most.
    explained = sums**2 / cuts + (ordered.sum() - sums) ** 2 / (len(ordered) - cuts)
    return int(cuts[explained.argmax()])


def structural_summary(
    texts: Iterable[str], method: TwoMeansMethod = "exact", trim_silence: bool = False
) -> dict[str, float]:
    """The paper's numbers of a set of pieces.

    Args:
        texts: drumrolls.
        method: see :func:`two_means`.
        trim_silence: leave out empty measures at the end.

    Returns:
        ``mean_stability`` over all measures; ``gap`` between groove and fill and ``own_centre_distance``, means over
        pieces; NaN without measures.
    """
    stability = [measure_stability(text, trim_silence) for text in texts]
    pooled = [value for values in stability for value in values]
    clusters = [two_means(values, method) for values in stability if values]
    return {
        "mean_stability": float(np.mean(pooled)) if pooled else float("nan"),
        "gap": float(np.mean([found.gap for found in clusters])) if clusters else float("nan"),
        "own_centre_distance": (
            float(np.mean([found.mean_distance for found in clusters])) if clusters else float("nan")
        ),
    }


def random_baseline(pieces: int, seed: int = 29) -> list[str]:
    """Pieces of 256 lines of six fair coins, in reading order from Python's generator."""
    coin = random.Random(seed)
    return [
        "".join(
            "".join(coin.choice((REST, HIT)) for _ in range(6)) + "\n" for _ in range(MOST_MEASURES * MEASURE)
        )
        for _ in range(pieces)
    ]


def repeat_baseline(text: str) -> str:
    """The first measure, then the second one fifteen times."""
    first, second = [*measures_of(text), [], []][:2]
    return "".join(first + second * (MOST_MEASURES - 1))


def measure_occurrences(texts: Iterable[str], reference_texts: Iterable[str]) -> list[int]:
    """How often each measure that is not empty stands, identically, in the reference; in order, repeats and all."""
    counts = Counter("".join(measure) for text in reference_texts for measure in measures_of(text))
    return [
        counts["".join(measure)] for text in texts for measure in measures_of(text) if not is_empty(measure)
    ]
