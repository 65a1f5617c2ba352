"""What generated grooves are like, beside those of drummers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.stats import entropy, wasserstein_distance

from tenfold.drum_gpt.encoding import DRUMS, EMPTY_LINE, HIT, MEASURE, columns_hit, is_well_formed
from tenfold.drum_gpt.prompts import END, SEPARATOR, lines_of
from tenfold.drum_gpt.structure import (
    measure_occurrences,
    measure_stability,
    measures_of,
    structural_summary,
)

BACKBEATS = (4, 12)
"""The fifth and thirteenth sixteenth of a measure: beats two and four of 4/4."""
SNARE = next(column for column, drum in enumerate(DRUMS) if drum.name == "snare")


def describe_completions(completions: Sequence[str]) -> dict[str, float]:
    """Form of what was written.

    Returns:
        ``malformed_rate`` of lines that are not six characters of hit and rest; ``whole_measure_rate`` of measures of
        exactly sixteen lines; ``measures`` before the end; ``ended_rate`` of texts that come to an end.
    """
    lines = [line for completion in completions for line in lines_of(completion)]
    counts = [length for completion in completions for length in measure_lengths(completion)]
    return {
        "malformed_rate": float(np.mean([not is_well_formed(line) for line in lines])) if lines else 1.0,
        "whole_measure_rate": float(np.mean([count == MEASURE for count in counts])) if counts else 0.0,
        "measures": float(
            np.mean([sum(count > 0 for count in measure_lengths(completion)) for completion in completions])
        ),
        "ended_rate": float(np.mean([completion.split("\n")[-1] == END for completion in completions])),
    }


def measure_lengths(completion: str) -> list[int]:
    """Lines between the separators; one that is cut off by the length of the text does not count."""
    lengths, current = [], 0
    for line in completion.splitlines():
        if line in (SEPARATOR, END):
            lengths.append(current)
            current = 0
            if line == END:
                break
        else:
            current += 1
    return lengths


def describe_grooves(
    grooves: Sequence[str], human: Sequence[str], prompts: Sequence[str], training: Sequence[str]
) -> dict[str, float]:
    """Music of what was written.

    Args:
        grooves: drumrolls, with the measures that were given.
        human: what drummers played instead, cut to the same number of lines each.
        prompts: the two measures that were given, as drumrolls.
        training: the drumrolls that were learned from.

    Returns:
        The structural summary; the distance of its stability values from the drummers' (Wasserstein, in edits); rates
        of hits and of backbeats; entropy of the lines at each step of a measure in bits; how much is a copy of a
        measure of the prompt, and how much of a measure that was learned.
    """
    stability = [value for groove in grooves for value in measure_stability(groove)]
    played = [value for groove in human for value in measure_stability(groove)]
    written = [
        "".join(f"{line}\n" for line in groove.splitlines()[len(prompt.splitlines()) :])
        for groove, prompt in zip(grooves, prompts, strict=True)
    ]
    copied = [
        occurrences > 0
        for text, prompt in zip(written, prompts, strict=True)
        for occurrences in measure_occurrences([text], [prompt])
    ]
    learned = measure_occurrences(written, training)
    found = structural_summary(grooves)
    found["stability_distance"] = (
        wasserstein_distance(stability, played) if stability and played else float("nan")
    )
    found["copied_from_prompt_rate"] = _mean(copied)
    found["unseen_measure_rate"] = _mean([count == 0 for count in learned])
    return found | describe_lines(written)


def describe_lines(texts: Sequence[str]) -> dict[str, float]:
    """Hits for each line, of each drum too, backbeats, and the entropy of lines at each step of a measure."""
    lines = [line for text in texts for line in text.splitlines()]
    hits = np.zeros((len(lines), len(DRUMS)))
    for row, line in enumerate(lines):
        hits[row, columns_hit(line)] = 1
    found = {"hits_per_line": float(hits.sum(axis=1).mean()) if len(lines) else float("nan")}
    found |= {
        f"{drum.name}_rate": float(hits[:, column].mean()) if len(lines) else float("nan")
        for column, drum in enumerate(DRUMS)
    }
    measures = [measure for text in texts for measure in measures_of(text) if len(measure) == MEASURE]
    sounding = [m for m in measures if any(line.strip() != EMPTY_LINE for line in m)]
    found["backbeat_rate"] = _mean(
        [measure[step][SNARE : SNARE + 1] == HIT for measure in sounding for step in BACKBEATS]
    )
    found["entropy_per_step"] = _mean(
        [_entropy([measure[step].rstrip("\n") for measure in measures]) for step in range(MEASURE)]
    )
    return found


def _entropy(lines: Sequence[str]) -> float:
    """Of the empirical distribution, in bits."""
    return float(entropy(np.unique(lines, return_counts=True)[1], base=2)) if lines else float("nan")


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if values else float("nan")
