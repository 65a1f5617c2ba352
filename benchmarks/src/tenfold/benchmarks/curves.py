"""Learning curves: seed bands over the runs of one method, and thinning to a size that a page can carry."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

MOST_POINTS = 300


@dataclass(frozen=True)
class Band:
    """Mean, minimum and maximum over the seeds of one method, at each x; NaN where no seed has a value."""

    method: str
    seeds: int
    x: Floats
    mean: Floats
    low: Floats
    high: Floats

    @property
    def final(self) -> tuple[float, float, float, float] | None:
        """(x, mean, minimum, maximum) at the last x where a seed has a value."""
        finite = np.flatnonzero(np.isfinite(self.mean))
        if not len(finite):
            return None
        last = finite[-1]
        return float(self.x[last]), float(self.mean[last]), float(self.low[last]), float(self.high[last])


@dataclass(frozen=True)
class CurveFigure:
    """One learning-curve figure: a (dataset, setting, curve name) with a band per method."""

    dataset: str
    setting: str
    name: str
    x_label: str
    bands: tuple[Band, ...]


def curve_figures(results: Sequence[Mapping[str, Any]]) -> list[CurveFigure]:
    """The figures of a set of finished run records, methods in the order in which they appear."""
    groups: dict[tuple[str, str, str], dict[str, list[Mapping[str, Any]]]] = defaultdict(
        lambda: defaultdict(list)
    )
    for result in results:
        for name, curve in result["curves"].items():
            if curve["x"]:
                groups[result["dataset"], result["setting"], name][result["method"]].append(curve)
    return [
        CurveFigure(
            *key,
            x_label=next(iter(methods.values()))[0]["x_label"],
            bands=tuple(seed_band(method, curves) for method, curves in methods.items()),
        )
        for key, methods in groups.items()
    ]


def seed_band(method: str, curves: Sequence[Mapping[str, Any]]) -> Band:
    """Mean and range over seeds. Seeds logged at other x values are interpolated inside their own range."""
    seeds = [_sorted_curve(curve) for curve in curves]
    x = seeds[0][0]
    if not all(np.array_equal(x, other) for other, _ in seeds):
        x = np.unique(np.concatenate([other for other, _ in seeds]))
        seeds = [(x, _interpolate(x, *seed)) for seed in seeds]
    values = np.ma.masked_invalid(np.stack([y for _, y in seeds]))
    mean, low, high = (
        np.ma.filled(statistic.astype(float), np.nan)
        for statistic in (values.mean(axis=0), values.min(axis=0), values.max(axis=0))
    )
    kept = thinned(mean)
    return Band(method, len(seeds), x[kept], mean[kept], low[kept], high[kept])


def thinned(y: Floats, most: int = MOST_POINTS) -> NDArray[np.int64]:
    """Indices of at most ``most`` points and the two ends, keeping the extremes of each stretch of ``y``."""
    if len(y) <= most:
        return np.arange(len(y))
    kept = {0, len(y) - 1}
    for stretch in np.array_split(np.arange(len(y)), most // 2):
        finite = stretch[np.isfinite(y[stretch])]
        if len(finite):
            kept |= {int(finite[np.argmin(y[finite])]), int(finite[np.argmax(y[finite])])}
        else:
            kept.add(int(stretch[0]))
    return np.array(sorted(kept))


def thinned_curve(curve: Mapping[str, Any]) -> dict[str, Any]:
    """One run's curve as plain JSON, thinned and rounded."""
    x, y = _sorted_curve(curve)
    kept = thinned(y)
    return {"x": rounded(x[kept], digits=9), "y": rounded(y[kept]), "x_label": curve["x_label"]}


def rounded(values: Floats, digits: int = 5) -> list[float | None]:
    """``digits`` significant digits, whole numbers without decimals, None for NaN: what the pages carry."""
    short = [float(f"{value:.{digits}g}") if np.isfinite(value) else None for value in values]
    return [int(value) if value is not None and value.is_integer() else value for value in short]


def _sorted_curve(curve: Mapping[str, Any]) -> tuple[Floats, Floats]:
    x = np.array(curve["x"], dtype=float)
    y = np.array([np.nan if value is None else value for value in curve["y"]], dtype=float)
    order = np.argsort(x, kind="stable")
    return x[order], y[order]


def _interpolate(grid: Floats, x: Floats, y: Floats) -> Floats:
    finite = np.isfinite(y)
    if not finite.any():
        return np.full(len(grid), np.nan)
    return np.interp(grid, x[finite], y[finite], left=np.nan, right=np.nan)
