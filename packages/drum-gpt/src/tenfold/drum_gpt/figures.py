"""Pictures for the run records: piano rolls, likelihoods, stability."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np

mpl.use("agg")

from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from tenfold.drum_gpt.encoding import DRUMS, MEASURE, columns_hit

_GIVEN, _PLAYED = "0.6", "C0"


def draw_piano_rolls(rolls: Mapping[str, str], given_lines: int, path: Path) -> None:
    """One row for each drumroll: drums from bottom (kick) to top, time to the right, what was given in grey.

    Args:
        rolls: drumrolls by their titles.
        given_lines: of each; 0 where all was played.
        path: PNG to write.
    """
    figure, rows = plt.subplots(len(rolls), 1, figsize=(12, 1.5 * len(rolls) + 0.4), squeeze=False)
    order = [3, 2, 4, 5, 1, 0]  # kick, snare, hi-hat, toms, ride, crash
    for axes, (title, text) in zip(rows.flat, rolls.items(), strict=True):
        lines = text.splitlines()
        hits = [
            (step, order.index(column)) for step, line in enumerate(lines) for column in columns_hit(line)
        ]
        if hits:
            steps, heights = np.array(hits).T
            colours = [_GIVEN if step < given_lines else _PLAYED for step in steps]
            axes.scatter(steps + 0.5, heights, marker="s", s=9, c=colours, linewidths=0)
        for border in range(0, len(lines) + 1, MEASURE):
            axes.axvline(border, color="0.85", linewidth=0.6, zorder=0)
        axes.set_xlim(0, max(len(lines), MEASURE))
        axes.set_ylim(-0.7, len(DRUMS) - 0.3)
        axes.set_yticks(range(len(DRUMS)), [DRUMS[column].name for column in order], fontsize=7)
        axes.set_xticks(range(0, len(lines) + 1, MEASURE), range(len(lines) // MEASURE + 1), fontsize=7)
        axes.set_title(title, fontsize=8, loc="left")
    rows.flat[-1].set_xlabel("measure", fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def draw_likelihoods(values: Mapping[str, Sequence[float]], path: Path) -> None:
    """Nats for each line of unseen pieces, one point for each seed.

    Args:
        values: of each method.
        path: PNG to write.
    """
    figure, axes = plt.subplots(figsize=(7, 0.5 * len(values) + 1.2))
    _points(axes, values)
    axes.set_xlabel("nats per line of test pieces (less is better)")
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def draw_stability(values: Mapping[str, Sequence[float]], human: float, path: Path) -> None:
    """Mean stability of generated grooves, one point for each seed, and the drummers' as a line.

    Args:
        values: of each method.
        human: mean stability of the test pieces.
        path: PNG to write.
    """
    figure, axes = plt.subplots(figsize=(7, 0.5 * len(values) + 1.2))
    _points(axes, values)
    axes.axvline(human, color="black", linewidth=0.8)
    axes.annotate(
        "human",
        (human, 0.02),
        xycoords=("data", "axes fraction"),
        fontsize=8,
        xytext=(3, 0),
        textcoords="offset points",
    )
    axes.set_xlim(left=0)
    axes.set_xlabel("mean stability: edits to the more similar neighbour (0 is verbatim repetition)")
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _points(axes: Axes, values: Mapping[str, Sequence[float]]) -> None:
    for place, found in enumerate(values.values()):
        axes.plot(found, [place] * len(found), "o", color="C0", alpha=0.6)
        axes.plot([np.mean(found)], [place], "|", color="black", markersize=14, markeredgewidth=2)
    axes.set_yticks(range(len(values)), list(values))
    axes.invert_yaxis()
    axes.margins(y=0.15)
    axes.grid(axis="x", color="0.9")
