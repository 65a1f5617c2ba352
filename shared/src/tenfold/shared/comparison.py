"""Reported numbers beside reproduced ones: ``reported.toml``, its join with run records, and claims.

A reproduced result joins a reported row by (dataset, setting, method, metric). A claim compares the mean
over seeds of two methods of one profile, and asks that they differ by at least a margin.
"""

from __future__ import annotations

import math
import statistics
import tomllib
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from tenfold.shared.logging import TenfoldError


@dataclass(frozen=True)
class ReportedRow:
    """One printed number of a paper; ``value`` is None where it is not known (``unavailable`` says why)."""

    table: str
    dataset: str
    setting: str
    method: str
    metric: str
    unit: str
    higher_is_better: bool
    source: str
    value: float | None = None
    std: float | None = None
    unavailable: str | None = None


@dataclass(frozen=True)
class Claim:
    """``mean(better) - mean(worse) >= margin`` of ``metric`` over the seeds of ``profile``.

    Where lower is better the difference is taken the other way round. ``dataset`` and ``setting`` restrict
    the claim to matching runs; None means that every run of the profile counts.
    """

    id: str
    text: str
    profile: str
    metric: str
    better: str
    worse: str
    margin: float
    higher_is_better: bool
    dataset: str | None = None
    setting: str | None = None


@dataclass(frozen=True)
class Reported:
    """The content of one ``reported.toml``."""

    paper: str
    title: str
    authors: str
    venue: str
    year: int
    link: str
    note: str
    rows: tuple[ReportedRow, ...]
    claims: tuple[Claim, ...]


@dataclass(frozen=True)
class Measurement:
    """The values of one metric over the seeds of one (dataset, setting, method)."""

    dataset: str
    setting: str
    method: str
    metric: str
    values: tuple[float, ...]
    sources: tuple[tuple[str, str, int], ...] = ()
    """(dataset, setting, seed) of each value."""

    @property
    def mean(self) -> float:
        return statistics.fmean(self.values)

    @property
    def std(self) -> float | None:
        """Sample standard deviation over seeds; None for a single seed."""
        return statistics.stdev(self.values) if len(self.values) > 1 else None


@dataclass(frozen=True)
class Comparison:
    """A reported row and the measurement that joins it (None where nothing was run)."""

    row: ReportedRow
    measurement: Measurement | None

    @property
    def difference(self) -> float | None:
        """Reproduced minus reported, in the row's unit."""
        if self.measurement is None or self.row.value is None:
            return None
        return self.measurement.mean - self.row.value


@dataclass(frozen=True)
class Verdict:
    """Whether a claim holds. ``holds`` is None while one of its two methods has no finished run."""

    claim: Claim
    better: Measurement | None
    worse: Measurement | None

    @property
    def difference(self) -> float | None:
        """By how much the better method is better, in the metric's unit; negative when it is worse."""
        if self.better is None or self.worse is None:
            return None
        difference = self.better.mean - self.worse.mean
        return difference if self.claim.higher_is_better else -difference

    @property
    def holds(self) -> bool | None:
        if self.difference is None:
            return None
        margin = self.claim.margin
        return self.difference >= margin or math.isclose(self.difference, margin, rel_tol=1e-9, abs_tol=1e-12)


def load_reported(source: Path | str) -> Reported:
    """Read a ``reported.toml``, from a path or from an importable package (``"tenfold.gfkd"``).

    Raises:
        TenfoldError: the file is missing, is not TOML, or lacks a field.
    """
    try:
        file = resources.files(source).joinpath("reported.toml") if isinstance(source, str) else source
        content = tomllib.loads(file.read_text(encoding="utf-8"))
        return Reported(
            **{key: content[key] for key in ("paper", "title", "authors", "venue", "year", "link")},
            note=content.get("note", ""),
            rows=tuple(ReportedRow(**row) for row in content["rows"]),
            claims=tuple(Claim(**claim) for claim in content["claims"]),
        )
    except KeyError as error:
        raise TenfoldError(f"the reported numbers of {source} lack the field {error}") from error
    except (ImportError, OSError, ValueError, TypeError) as error:
        raise TenfoldError(f"the reported numbers of {source} cannot be read: {error}") from error


def measure(results: Iterable[Mapping[str, Any]]) -> dict[tuple[str, str, str, str], Measurement]:
    """Group finished records by (dataset, setting, method, metric), seeds in ascending order."""
    values: dict[tuple[str, str, str, str], list[tuple[int, float]]] = defaultdict(list)
    for result in results:
        if result["status"] != "finished":
            continue
        for metric, value in result["metrics"].items():
            if value is not None:
                key = (result["dataset"], result["setting"], result["method"], metric)
                values[key].append((result["seed"], value))
    return {
        (dataset, setting, method, metric): Measurement(
            dataset,
            setting,
            method,
            metric,
            values=tuple(value for _, value in sorted(seeds)),
            sources=tuple((dataset, setting, seed) for seed, _ in sorted(seeds)),
        )
        for (dataset, setting, method, metric), seeds in values.items()
    }


def compare(reported: Reported, results: Iterable[Mapping[str, Any]]) -> list[Comparison]:
    """Every reported row, in the file's order, beside the measurement that joins it."""
    measured = measure(results)
    return [
        Comparison(row, measured.get((row.dataset, row.setting, row.method, row.metric)))
        for row in reported.rows
    ]


def judge(claim: Claim, results: Iterable[Mapping[str, Any]]) -> Verdict:
    """Judge one claim on the finished runs of its profile."""
    matching = [
        result
        for result in results
        if result["status"] == "finished"
        and result["profile"] == claim.profile
        and claim.dataset in (None, result["dataset"])
        and claim.setting in (None, result["setting"])
    ]

    def pooled(method: str) -> Measurement | None:
        found = sorted(
            (result["seed"], result["metrics"][claim.metric], result["dataset"], result["setting"])
            for result in matching
            if result["method"] == method and result["metrics"].get(claim.metric) is not None
        )
        if not found:
            return None
        return Measurement(
            claim.dataset or "",
            claim.setting or "",
            method,
            claim.metric,
            values=tuple(value for _, value, _, _ in found),
            sources=tuple((dataset, setting, seed) for seed, _, dataset, setting in found),
        )

    return Verdict(claim, pooled(claim.better), pooled(claim.worse))


def print_comparison(
    reported: Reported,
    results: Sequence[Mapping[str, Any]],
    profile: str,
    metrics: Sequence[str],
    console: Console | None = None,
) -> list[Verdict]:
    """Print *paper / reproduced / difference* of ``metrics``, and ``profile``'s claims; return the verdicts."""
    console = console or Console(width=None if Console().is_terminal else 150)
    rows = {(row.dataset, row.setting, row.method, row.metric): row for row in reported.rows}
    table = Table(title=escape(f"{reported.paper}: {profile}"), title_justify="left")
    for column in ("dataset", "setting", "method", "metric"):
        table.add_column(column)
    for column in ("paper", "reproduced", "difference", "runs"):
        table.add_column(column, justify="right")
    for key, measurement in measure(results).items():
        if measurement.metric not in metrics:
            continue
        row = rows.get(key)
        comparison = Comparison(row, measurement) if row else None
        table.add_row(
            *map(escape, key),
            "–" if row is None or row.value is None else _number(row.value, row.std),
            _number(measurement.mean, measurement.std),
            "–" if comparison is None else _difference(comparison.difference, measurement.mean),
            str(len(measurement.values)),
        )
    console.print(table)

    verdicts = [judge(claim, results) for claim in reported.claims if claim.profile == profile]
    claims = Table(title="claims", title_justify="left")
    for column in ("claim", "better", "worse", "difference", "needed", "holds?"):
        claims.add_column(column, justify="left" if column in ("claim", "holds?") else "right")
    for verdict in verdicts:
        sides = (verdict.better, verdict.worse)
        claims.add_row(
            escape(verdict.claim.text),
            *("–" if side is None else _number(side.mean, side.std) for side in sides),
            "–" if verdict.difference is None else f"{verdict.difference:+.3g}",
            f"≥ {verdict.claim.margin:g}",
            {True: "[green]yes[/]", False: "[red]NO[/]", None: "[yellow]not run[/]"}[verdict.holds],
        )
    if verdicts:
        console.print(claims)
    return verdicts


def _number(mean: float, std: float | None) -> str:
    digits = _digits(mean)
    return f"{mean:.{digits}f}" + ("" if std is None else f" ± {std:.{digits}f}")


def _difference(difference: float | None, mean: float) -> str:
    return "–" if difference is None else f"{difference:+.{_digits(mean)}f}"


def _digits(mean: float) -> int:
    """Decimals that show a number of this size: 2 for percentages, more for fractions and small losses."""
    if abs(mean) >= 10:
        return 2
    return 3 if abs(mean) >= 0.1 or mean == 0 else min(3 - math.ceil(math.log10(abs(mean))), 9)
