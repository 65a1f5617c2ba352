"""The small dot plots of a claim as SVG coordinates: each seed's value of both methods, and their differences."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tenfold.benchmarks.evidence import Evidence
from tenfold.benchmarks.formatting import number
from tenfold.shared.comparison import Verdict

WIDTH, MARGIN = 320.0, 12.0


@dataclass(frozen=True)
class Axis:
    """A linear axis from ``low`` to ``high``, drawn between the margins."""

    low: float
    high: float

    def position(self, value: float) -> float:
        """The x coordinate of a value."""
        width = self.high - self.low
        if width == 0:
            return WIDTH / 2
        return round(MARGIN + (value - self.low) / width * (WIDTH - 2 * MARGIN), 1)

    def positions(self, values: Sequence[float]) -> list[float]:
        return [self.position(value) for value in values]


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


@dataclass(frozen=True)
class DifferencePlot:
    """Paired differences on one axis: dots, their mean, its interval (or None), and what the claim needs."""

    dots: tuple[tuple[float, str], ...]
    mean: float
    interval: tuple[float, float] | None
    needed: float
    zero: float | None
    low: str
    high: str


def strip_plot(verdict: Verdict) -> StripPlot | None:
    """The plot of a judged claim; None while one of the methods has no finished run."""
    sides = (("better", verdict.better), ("worse", verdict.worse))
    values = [value for _, side in sides if side for value in side.values]
    if verdict.better is None or verdict.worse is None:
        return None
    axis = Axis(min(values), max(values))
    strips = tuple(
        Strip(
            side.method,
            role,
            tuple(zip(axis.positions(side.values), map(number, side.values), strict=True)),
            axis.position(side.mean),
        )
        for role, side in sides
        if side is not None
    )
    return StripPlot(strips, number(axis.low), number(axis.high))


def difference_plot(evidence: Evidence, margin: float) -> DifferencePlot:
    """The plot of a claim's paired differences; the axis holds zero where that is near, and always the margin."""
    values = [difference for _, difference in evidence.pairs]
    ends = [*values, margin, *(evidence.interval or ())]
    low, high = min(ends), max(ends)
    if low > 0 and low < (high - low) * 2:
        low = 0.0
    axis = Axis(low, high)
    interval = evidence.interval
    return DifferencePlot(
        dots=tuple(
            (axis.position(difference), f"{where}: {number(difference, signed=True, digits=3)}")
            for where, difference in evidence.pairs
        ),
        mean=axis.position(evidence.mean),
        interval=None if interval is None else (axis.position(interval[0]), axis.position(interval[1])),
        needed=axis.position(margin),
        zero=axis.position(0.0) if low <= 0 <= high else None,
        low=number(low, digits=3),
        high=number(high, digits=3),
    )
