"""How drummers play what a drumroll says: loudness and timing, learnt from Groove.

For each drum and each sixteenth of a measure: mean and spread of the velocity, and of the distance from the grid. What
is left over, in units of its spread, hangs together from hit to hit as a first-order autoregression, since a drummer
who rushes goes on to rush for a moment.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from functools import cache
from importlib import resources
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tenfold.drum_gpt.encoding import DRUMS, MEASURE, TICKS_PER_QUARTER, Hit, Performance, columns_hit
from tenfold.shared.logging import TenfoldError

SHRINKAGE = 20.0
"""Hits that the drum as a whole counts for in each of its cells."""
STEP = TICKS_PER_QUARTER // 4

Table = tuple[tuple[float, ...], ...]
"""[6, 16]: drum and sixteenth."""


@dataclass(frozen=True)
class Feel:
    """How one style, or all, are played. Velocities are 1 to 127; offsets are in sixteenths, positive is late."""

    velocity_mean: Table
    velocity_std: Table
    offset_mean: Table
    offset_std: Table
    velocity_memory: float
    """Correlation of the left-over velocities of consecutive hits of one drum."""
    offset_memory: float
    """The same of left-over offsets, of consecutive steps, whatever the drum."""

    @classmethod
    def fit(cls, performances: Iterable[Performance]) -> Feel:
        """Learn from performances.

        Raises:
            TenfoldError: there is no hit.
        """
        columns, steps, velocities, offsets, pieces = [], [], [], [], []
        for number, performance in enumerate(performances):
            for hit in performance.hits:
                step = performance.step_of(hit.tick)
                columns.append(hit.column)
                steps.append(step)
                velocities.append(hit.velocity)
                offsets.append(hit.tick / (performance.ticks_per_quarter / 4) - step)
                pieces.append(number)
        if not columns:
            raise TenfoldError("there is no hit to learn a feel from")
        cells = np.array(columns) * MEASURE + np.array(steps) % MEASURE
        velocity_mean, velocity_std = _cell_statistics(cells, np.array(velocities, dtype=np.float64))
        offset_mean, offset_std = _cell_statistics(cells, np.array(offsets))
        places = np.array([pieces, steps, columns])
        left_velocity = (np.array(velocities) - velocity_mean.flat[cells]) / velocity_std.flat[cells]
        left_offset = (np.array(offsets) - offset_mean.flat[cells]) / offset_std.flat[cells]
        return cls(
            _table(velocity_mean),
            _table(velocity_std),
            _table(offset_mean),
            _table(offset_std),
            velocity_memory=_memory(left_velocity, places, by_drum=True),
            offset_memory=_memory(left_offset, places, by_drum=False),
        )

    @classmethod
    def load(cls, style: str | None = None) -> Feel:
        """The feel of Groove's training pieces in 4/4, of one style or of all.

        Raises:
            TenfoldError: there are fewer than ten pieces of the style.
        """
        feels = _bundled_feels()
        if style is not None and style not in feels:
            known = ", ".join(sorted(set(feels) - {"all"}))
            raise TenfoldError(f"there is no feel of {style!r}; choose one of {known}, or leave it out")
        return cls.from_plain(feels[style or "all"])

    @classmethod
    def from_plain(cls, values: dict[str, Any]) -> Feel:
        """The inverse of :meth:`plain`."""
        tables = {name: _table(np.array(value)) for name, value in values.items() if isinstance(value, list)}
        return cls(**{**values, **tables})

    def plain(self) -> dict[str, Any]:
        """Plain values, rounded to four decimals."""
        return {
            name: round(value, 4)
            if isinstance(value, float)
            else [[round(x, 4) for x in row] for row in value]
            for name, value in asdict(self).items()
        }

    def log_likelihood(self, performances: Iterable[Performance]) -> tuple[float, float]:
        """Mean log density of velocities, and of offsets, each hit by itself (without memory)."""
        velocity, offset = [], []
        for performance in performances:
            for hit in performance.hits:
                step = performance.step_of(hit.tick)
                cell = hit.column, step % MEASURE
                shift = hit.tick / (performance.ticks_per_quarter / 4) - step
                velocity.append(_log_normal(hit.velocity, self.velocity_mean, self.velocity_std, cell))
                offset.append(_log_normal(shift, self.offset_mean, self.offset_std, cell))
        return float(np.mean(velocity)), float(np.mean(offset))


def humanise(text: str, feel: Feel, seed: int, strength: float = 1.0) -> list[Hit]:
    """When and how loud each hit of a drumroll is played.

    Args:
        text: a drumroll.
        feel: of drummers.
        seed: of what differs from hit to hit.
        strength: of everything in time, and of the spread of velocities; 0 is on the grid, with mean velocities.

    Returns:
        A hit for each ``o``, at 480 ticks a quarter note, never so far off that another sixteenth would be nearer.

    Raises:
        TenfoldError: the strength is negative.
    """
    if strength < 0:
        raise TenfoldError(f"the strength of a feel is at least 0, not {strength:g}")
    lines = text.splitlines()
    places = [(step, column) for step, line in enumerate(lines) for column in columns_hit(line)]
    if not places:
        return []
    steps, columns = np.array(places).T
    cells = columns, steps % MEASURE
    rng = np.random.default_rng(seed)
    timing = _walk(rng, len(lines), feel.offset_memory)[steps]
    loudness = np.stack([_walk(rng, len(lines), feel.velocity_memory) for _ in DRUMS])[columns, steps]
    offsets = strength * (np.array(feel.offset_mean)[cells] + np.array(feel.offset_std)[cells] * timing)
    velocities = (
        np.array(feel.velocity_mean)[cells] + strength * np.array(feel.velocity_std)[cells] * loudness
    )
    # The nearest sixteenth of tick t is (t + 60) // 120, so that 60 ticks early are still this one, 60 late the next.
    shifts = np.clip(np.round(offsets * STEP), -STEP // 2, STEP // 2 - 1).astype(int)
    ticks = np.maximum(steps * STEP + shifts, 0)
    loud = np.clip(np.round(velocities), 1, 127).astype(int)
    return [
        Hit(int(tick), int(column), int(velocity))
        for tick, column, velocity in zip(ticks, columns, loud, strict=True)
    ]


def fit_feels(pieces: Iterable[tuple[str, Performance]], fewest: int = 10) -> dict[str, Feel]:
    """A feel of all pieces, as ``all``, and one of each style that has enough of them.

    Args:
        pieces: style and performance.
        fewest: pieces of a style.
    """
    pieces = list(pieces)
    styles: dict[str, list[Performance]] = {}
    for style, performance in pieces:
        styles.setdefault(style, []).append(performance)
    feels = {"all": Feel.fit(performance for _, performance in pieces)}
    return feels | {style: Feel.fit(found) for style, found in sorted(styles.items()) if len(found) >= fewest}


@cache
def _bundled_feels() -> dict[str, dict[str, Any]]:
    file = resources.files("tenfold.drum_gpt").joinpath("data", "feel.json")
    feels: dict[str, dict[str, Any]] = json.loads(file.read_text(encoding="utf-8"))
    return feels


def _cell_statistics(
    cells: NDArray[np.int64], values: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean and standard deviation [6, 16], drawn towards the drum's, and a silent drum's towards all hits'."""
    size = len(DRUMS) * MEASURE
    counts, sums, squares = (
        np.bincount(cells, weights, size).reshape(len(DRUMS), MEASURE)
        for weights in (np.ones_like(values), values, values**2)
    )
    totals = [part.sum(axis=1, keepdims=True) for part in (counts, sums, squares)]
    every = [part.sum() for part in (counts, sums, squares)]
    drum_mean = (totals[1] + SHRINKAGE * every[1] / every[0]) / (totals[0] + SHRINKAGE)
    drum_square = (totals[2] + SHRINKAGE * every[2] / every[0]) / (totals[0] + SHRINKAGE)
    mean = (sums + SHRINKAGE * drum_mean) / (counts + SHRINKAGE)
    square = (squares + SHRINKAGE * drum_square) / (counts + SHRINKAGE)
    return mean, np.sqrt(np.maximum(square - mean**2, 1e-6))


def _memory(left: NDArray[np.float64], places: NDArray[np.int64], by_drum: bool) -> float:
    """Correlation for one step of time between what is left over of neighbouring hits, at most four steps apart."""
    pieces, steps, columns = places
    order = np.lexsort((columns, steps, columns if by_drum else np.zeros_like(steps), pieces))
    left, pieces, steps, columns = left[order], pieces[order], steps[order], columns[order]
    gaps = np.diff(steps)
    near = (np.diff(pieces) == 0) & (gaps >= 1) & (gaps <= 4)
    if by_drum:
        near &= np.diff(columns) == 0
    if near.sum() < 2:
        return 0.0
    correlation = float(np.mean(left[:-1][near] * left[1:][near]) / np.mean(left**2))
    return float(np.clip(correlation, 0.0, 0.99) ** (1 / np.mean(gaps[near])))


def _walk(rng: np.random.Generator, length: int, memory: float) -> NDArray[np.float64]:
    """A stationary first-order autoregression of unit variance."""
    fresh = rng.standard_normal(length)
    fresh[1:] *= np.sqrt(1 - memory**2)
    values = np.empty(length)
    state = 0.0
    for place, value in enumerate(fresh):
        state = memory * state + value
        values[place] = state
    return values


def _log_normal(value: float, mean: Table, std: Table, cell: tuple[int, int]) -> float:
    centre, spread = mean[cell[0]][cell[1]], std[cell[0]][cell[1]]
    return float(-0.5 * ((value - centre) / spread) ** 2 - np.log(spread * np.sqrt(2 * np.pi)))


def _table(values: NDArray[np.float64]) -> Table:
    return tuple(tuple(float(value) for value in row) for row in values)
