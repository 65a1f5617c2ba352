"""How drummers play what a drumroll says: loudness and timing, learnt from Groove.

For each drum and each sixteenth of a measure: mean and spread of the velocity, and of the distance from the grid. What
is left over, in units of its spread, is in part common to neighbouring hits, since a drummer who rushes goes on to rush
for a while, and in part new with every hit::

    r_t = sqrt(share) w_t + sqrt(1 - share) e_t,    w_t = memory w_{t-1} + sqrt(1 - memory^2) n_t

with e and n standard normal and t in sixteenths, so that hits g sixteenths apart correlate by share * memory^g. There
is one such walk w for the timing of all drums, and one for the velocity of each drum.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.signal import lfilter

from tenfold.drum_gpt.corpus import Piece, groove_midi
from tenfold.drum_gpt.encoding import (
    DRUMS,
    MEASURE,
    TICKS_PER_QUARTER,
    Hit,
    Performance,
    columns_hit,
    read_midi,
)
from tenfold.shared.logging import TenfoldError
from tenfold.shared.runs import replaced

SHRINKAGE = 100.0
"""Hits that the drum as a whole counts for in each of its cells; of 20 and 100 the better on the dev split."""
FEWEST_PIECES = 10
"""Of a style that gets a feel of its own."""
ALL_STYLES = "all"
LONGEST_MEMORY = 0.999
STEP = TICKS_PER_QUARTER // 4

Floats = NDArray[np.float64]
Whole = NDArray[np.int64]
Table = tuple[tuple[float, ...], ...]
"""[6, 16]: drum and sixteenth of a measure."""


class Played(NamedTuple):
    """The loudest hit of every drum and sixteenth, which is what an ``o`` stands for; grace notes are left out."""

    pieces: Whole
    """Number of the performance, [n]."""
    steps: Whole
    """Sixteenth from the beginning, [n]."""
    columns: Whole
    """Drum, [n]."""
    velocities: Floats
    """1 to 127, [n]."""
    offsets: Floats
    """Distance from the grid in sixteenths, from -0.5 to below 0.5, positive is late, [n]."""

    @property
    def cells(self) -> Whole:
        """Drum and sixteenth of the measure as one number, below 96, [n]."""
        return self.columns * MEASURE + self.steps % MEASURE


class LogLikelihood(NamedTuple):
    """Mean log density of a hit, in nats."""

    velocity: float
    offset: float


@dataclass(frozen=True)
class Feel:
    """How one style, or all, are played. Velocities are 1 to 127; offsets are in sixteenths, positive is late."""

    velocity_mean: Table
    velocity_std: Table
    offset_mean: Table
    offset_std: Table
    counts: tuple[tuple[int, ...], ...]
    """Hits that were learnt from, [6, 16]."""
    velocity_share: float
    """Of the variance of a drum's velocities: what its neighbouring hits have in common."""
    velocity_memory: float
    """What is left of that after a sixteenth."""
    offset_share: float
    """The same of offsets, whatever the drum; hits of two drums at once correlate by it."""
    offset_memory: float

    @classmethod
    def fit(cls, performances: Iterable[Performance]) -> Feel:
        """Learn from performances.

        A cell's mean and mean square are drawn towards its drum's, by as much as 100 hits would, and a drum's towards
        those of all drums; so a cell that is never hit is played like the rest of its drum.

        Raises:
            TenfoldError: there is no hit, or a performance is not in 4/4.
        """
        played = played_hits(performances)
        velocity_mean, velocity_std = _cell_statistics(played.cells, played.velocities)
        offset_mean, offset_std = _cell_statistics(played.cells, played.offsets)
        velocities = _left_over(played, played.velocities, velocity_mean, velocity_std)
        offsets = _left_over(played, played.offsets, offset_mean, offset_std)
        velocity_share, velocity_memory = _share_and_memory(
            [piece[:, [column]] for piece in velocities for column in range(len(DRUMS))]
        )
        offset_share, offset_memory = _share_and_memory(offsets)
        counts = np.bincount(played.cells, minlength=velocity_mean.size).reshape(velocity_mean.shape)
        return cls(
            velocity_mean=_table(velocity_mean),
            velocity_std=_table(velocity_std),
            offset_mean=_table(offset_mean),
            offset_std=_table(offset_std),
            counts=tuple(tuple(int(count) for count in row) for row in counts),
            velocity_share=velocity_share,
            velocity_memory=velocity_memory,
            offset_share=offset_share,
            offset_memory=offset_memory,
        )

    @classmethod
    def load(cls, style: str | None = None) -> Feel:
        """The feel of Groove's training pieces in 4/4, of one style or of all.

        Raises:
            TenfoldError: there are fewer than ten pieces of the style.
        """
        feels = _bundled_feels()
        known = sorted(set(feels) - {ALL_STYLES})
        if style is not None and style not in known:
            raise TenfoldError(
                f"there is no feel of {style!r}; choose one of {', '.join(known)}, or leave it out"
            )
        return cls.from_plain(feels[style or ALL_STYLES])

    @classmethod
    def from_plain(cls, values: dict[str, Any]) -> Feel:
        """The inverse of :meth:`plain`.

        Raises:
            TenfoldError: a value is missing or one too many, or a table is not [6, 16].
        """
        if set(values) != {field.name for field in fields(cls)}:
            raise TenfoldError(f"a feel has the values {', '.join(field.name for field in fields(cls))}")
        tables = {name: value for name, value in values.items() if isinstance(value, list)}
        for name, table in tables.items():
            if [len(row) for row in table] != [MEASURE] * len(DRUMS):
                raise TenfoldError(f"{name} of a feel has {len(DRUMS)} rows of {MEASURE} values")
        return cls(**{**values, **{name: tuple(map(tuple, table)) for name, table in tables.items()}})

    def plain(self) -> dict[str, Any]:
        """Numbers and lists of lists, rounded to four decimals."""
        return {
            name: [[round(entry, 4) for entry in row] for row in value]
            if isinstance(value, tuple)
            else round(value, 4)
            for name, value in asdict(self).items()
        }

    def log_likelihood(self, performances: Iterable[Performance]) -> LogLikelihood:
        """How well performances are predicted, each hit by its cell alone: the walks are left out.

        Raises:
            TenfoldError: there is no hit, or a performance is not in 4/4.
        """
        played = played_hits(performances)
        return LogLikelihood(
            *(
                _mean_log_normal(
                    values, np.array(mean).ravel()[played.cells], np.array(std).ravel()[played.cells]
                )
                for values, mean, std in (
                    (played.velocities, self.velocity_mean, self.velocity_std),
                    (played.offsets, self.offset_mean, self.offset_std),
                )
            )
        )


def humanise(text: str, feel: Feel, seed: int, strength: float = 1.0) -> list[Hit]:
    """When and how loud each hit of a drumroll is played.

    What is drawn for a drum and a line does not depend on the other lines, nor on what they hit.

    Args:
        text: a drumroll; its sixteenths are counted in measures of 16 lines.
        feel: of drummers.
        seed: of what differs from hit to hit.
        strength: of everything in time, and of the spread of velocities around their means; 0 is on the grid, with
            the mean velocity of each drum and sixteenth.

    Returns:
        A hit for each ``o``, at 480 ticks a quarter note, never before the beginning, and never so far off that
        another sixteenth would be nearer; velocities 1 to 127.

    Raises:
        TenfoldError: the strength is negative or not finite.
    """
    if not 0 <= strength < np.inf:
        raise TenfoldError(f"the strength of a feel is a number from 0, not {strength:g}")
    lines = text.splitlines()
    places = [(step, column) for step, line in enumerate(lines) for column in columns_hit(line)]
    if not places:
        return []
    steps, columns = np.array(places).T
    cells = columns, steps % MEASURE
    drums = len(DRUMS)
    # One row of draws for each line: the walk of the timing, a walk for each drum, and what is new with each hit.
    draws = np.random.default_rng(seed).standard_normal((len(lines), 1 + 3 * drums))
    timing = _walk(draws[:, :1], feel.offset_memory)[steps, 0]
    loudness = _walk(draws[:, 1 : 1 + drums], feel.velocity_memory)[steps, columns]
    new_timing, new_loudness = draws[steps, 1 + drums + columns], draws[steps, 1 + 2 * drums + columns]
    timing = _mixed(timing, new_timing, feel.offset_share)
    loudness = _mixed(loudness, new_loudness, feel.velocity_share)
    offsets = strength * (np.array(feel.offset_mean)[cells] + np.array(feel.offset_std)[cells] * timing)
    spread = strength * np.array(feel.velocity_std)[cells] * loudness
    velocities = np.clip(np.round(np.array(feel.velocity_mean)[cells] + spread), 1, 127).astype(int)
    # The nearest sixteenth of tick t is (t + 60) // 120, so that 60 ticks early are still this one, 60 late the next.
    shifts = np.clip(np.round(offsets * STEP), -(STEP // 2), STEP // 2 - 1).astype(int)
    ticks = np.maximum(steps * STEP + shifts, 0)
    return [
        Hit(tick, column, velocity)
        for tick, column, velocity in zip(ticks.tolist(), columns.tolist(), velocities.tolist(), strict=True)
    ]


def fit_feels(pieces: Iterable[tuple[str, Performance]], fewest: int = FEWEST_PIECES) -> dict[str, Feel]:
    """A feel of all pieces, as ``all``, and one of each style that has enough of them.

    Args:
        pieces: style and performance.
        fewest: pieces of a style.
    """
    styles: dict[str, list[Performance]] = {}
    for style, performance in pieces:
        styles.setdefault(style, []).append(performance)
    everything = [performance for found in styles.values() for performance in found]
    return {ALL_STYLES: Feel.fit(everything)} | {
        style: Feel.fit(found) for style, found in sorted(styles.items()) if len(found) >= fewest
    }


def write_feels(folder: Path, target: Path) -> None:
    """Write the file that the package carries: the feels of Groove's training pieces in 4/4.

    Args:
        folder: Groove, see :func:`tenfold.drum_gpt.corpus.groove_midi`.
        target: JSON file to write, one line for each feel.
    """
    pieces = (
        (piece.style, read_midi(content))
        for name, split, content in groove_midi(folder)
        if (piece := Piece(name, split, "")).split == "train" and piece.metre == "4-4"
    )
    lines = [
        f"{json.dumps(style)}: {json.dumps(feel.plain(), separators=(',', ':'))}"
        for style, feel in fit_feels(pieces).items()
    ]
    with replaced(target) as temporary:
        temporary.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


def played_hits(performances: Iterable[Performance]) -> Played:
    """The loudest hit of every drum and sixteenth, by performance, sixteenth and drum.

    Raises:
        TenfoldError: there is no hit, or a performance is not in 4/4.
    """
    rows = np.array(list(_rows(performances)), dtype=np.float64).reshape(-1, 5)
    if not len(rows):
        raise TenfoldError("there is no hit to learn a feel from")
    places = rows[:, :3].astype(np.int64)
    order = np.lexsort((-rows[:, 3], places[:, 2], places[:, 1], places[:, 0]))
    rows, places = rows[order], places[order]
    loudest = np.r_[True, (np.diff(places, axis=0) != 0).any(axis=1)]
    return Played(*places[loudest].T, *rows[loudest, 3:].T)


def _rows(performances: Iterable[Performance]) -> Iterator[tuple[float, ...]]:
    for number, performance in enumerate(performances):
        if (performance.beats, performance.beat_unit) != (4, 4):
            raise TenfoldError(
                f"a feel is of pieces in 4/4, and performance {number + 1} is in "
                f"{performance.beats}/{performance.beat_unit}; leave it out"
            )
        for hit in performance.hits:
            step = performance.step_of(hit.tick)
            offset = hit.tick / (performance.ticks_per_quarter / 4) - step
            yield number, step, hit.column, hit.velocity, offset


@cache
def _bundled_feels() -> dict[str, dict[str, Any]]:
    file = resources.files("tenfold.drum_gpt").joinpath("data", "feel.json")
    feels: dict[str, dict[str, Any]] = json.loads(file.read_text(encoding="utf-8"))
    return feels


def _cell_statistics(cells: Whole, values: Floats) -> tuple[Floats, Floats]:
    """Mean and standard deviation [6, 16], drawn towards the drum's, and a drum's towards those of all hits."""
    size = len(DRUMS) * MEASURE
    counts, sums, squares = (
        np.bincount(cells, weights, size).astype(np.float64).reshape(len(DRUMS), MEASURE)
        for weights in (np.ones_like(values), values, values**2)
    )
    mean, square = (_drawn(counts, part) for part in (sums, squares))
    return mean, np.sqrt(np.maximum(square - mean**2, 1e-6))


def _drawn(counts: Floats, sums: Floats) -> Floats:
    of_all = sums.sum() / counts.sum()
    of_drum = (sums.sum(axis=1, keepdims=True) + SHRINKAGE * of_all) / (
        counts.sum(axis=1, keepdims=True) + SHRINKAGE
    )
    drawn: Floats = (sums + SHRINKAGE * of_drum) / (counts + SHRINKAGE)
    return drawn


def _left_over(played: Played, values: Floats, mean: Floats, std: Floats) -> list[Floats]:
    """What the cells leave over, in units of their spread: [steps, 6] of every piece, NaN where nothing is hit."""
    left = (values - mean.ravel()[played.cells]) / std.ravel()[played.cells]
    pieces = []
    for number in np.unique(played.pieces):
        chosen = played.pieces == number
        grid = np.full((played.steps[chosen].max() + 1, len(DRUMS)), np.nan)
        grid[played.steps[chosen], played.columns[chosen]] = left[chosen]
        pieces.append(grid)
    return pieces


def _share_and_memory(pieces: Sequence[Floats]) -> tuple[float, float]:
    """Share and memory of the walk by the correlation of all pairs of hits up to two measures apart.

    The mean correlation over the distances of the first measure (1 to 16) and over those of the second (17 to 32)
    differ by memory^16. Whole measures, as within them correlation goes up and down with the beat.

    Args:
        pieces: what is left over, of unit variance, [steps, drums], NaN where nothing is hit.
    """
    products, pairs = np.zeros(2 * MEASURE), np.zeros(2 * MEASURE)
    for piece in pieces:
        sums, hits = np.nansum(piece, axis=1), np.sum(~np.isnan(piece), axis=1)
        for distance in range(1, min(2 * MEASURE, len(piece) - 1) + 1):
            products[distance - 1] += sums[:-distance] @ sums[distance:]
            pairs[distance - 1] += hits[:-distance] @ hits[distance:]
    near, far = (
        products[part].sum() / max(pairs[part].sum(), 1)
        for part in (slice(0, MEASURE), slice(MEASURE, 2 * MEASURE))
    )
    if near <= 0:
        return 0.0, 0.0
    memory = float(np.clip(far / near, 0, LONGEST_MEMORY**MEASURE) ** (1 / MEASURE))
    weights = pairs[:MEASURE] / pairs[:MEASURE].sum()
    left = float(weights @ memory ** np.arange(1, MEASURE + 1))
    return (float(np.clip(near / left, 0, 1)), memory) if left else (0.0, 0.0)


def _walk(draws: Floats, memory: float) -> Floats:
    """A stationary first-order autoregression of unit variance down each column of standard normal draws."""
    steps = draws.copy()
    steps[1:] *= np.sqrt(1 - memory**2)
    walked: Floats = lfilter([1.0], [1.0, -memory], steps, axis=0)
    return walked


def _mixed(common: Floats, new: Floats, share: float) -> Floats:
    mixed: Floats = np.sqrt(share) * common + np.sqrt(1 - share) * new
    return mixed


def _mean_log_normal(values: Floats, mean: Floats, std: Floats) -> float:
    return float(np.mean(-0.5 * ((values - mean) / std) ** 2 - np.log(std * np.sqrt(2 * np.pi))))


def _table(values: Floats) -> Table:
    return tuple(tuple(row) for row in values.tolist())
