"""The small dot plot of a claim: each seed's value of the two methods on one axis, as SVG coordinates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tenfold.benchmarks.formatting import number
from tenfold.shared.comparison import Verdict

WIDTH, MARGIN = 320.0, 12.0


@dataclass(frozen=True)
class Strip:
    """The dots of one method: (x coordinate, value as text) per seed, and the x coordinate of their mean."""

    method: str
    role: str
    dots: tuple[tuple[float, str], ...]
    mean: float


@dataclass(frozen=True)
class StripPlot:
    """Two strips on one axis from ``low`` to ``high`` (texts)."""

    strips: tuple[Strip, ...]
    low: str
    high: str

    @property
    def description(self) -> str:
        """The same in words, for those who cannot see the dots."""
        return "; ".join(
            f"{strip.method}: {', '.join(text for _, text in strip.dots)}" for strip in self.strips
        )


def strip_plot(verdict: Verdict) -> StripPlot | None:
    """The plot of a judged claim; None while one of the methods has no finished run."""
    sides = (("better", verdict.better), ("worse", verdict.worse))
    values = [value for _, side in sides if side for value in side.values]
    if verdict.better is None or verdict.worse is None:
        return None
    low, high = min(values), max(values)
    strips = tuple(
        Strip(
            side.method,
            role,
            tuple(zip(_positions(side.values, low, high), map(number, side.values), strict=True)),
            _positions([side.mean], low, high)[0],
        )
        for role, side in sides
        if side is not None
    )
    return StripPlot(strips, number(low), number(high))


def _positions(values: Sequence[float], low: float, high: float) -> list[float]:
    width = high - low
    if width == 0:
        return [WIDTH / 2 for _ in values]
    return [round(MARGIN + (value - low) / width * (WIDTH - 2 * MARGIN), 1) for value in values]
