"""What the pages show, as plain dataclasses: statuses, judged claims, joined tables, measured results."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tenfold.benchmarks.curves import CurveFigure, curve_figures
from tenfold.benchmarks.figures import Figure, figures_of
from tenfold.benchmarks.formatting import plural
from tenfold.benchmarks.records import Collection, Paper, Problem, RunRecord, Unfinished
from tenfold.benchmarks.run_sets import GPU, QUICK, SMOKE, RunSet, Status, run_sets
from tenfold.shared.comparison import (
    Claim,
    Comparison,
    Measurement,
    ReportedRow,
    Verdict,
    compare,
    judge,
    measure,
)

CLOSE, NEAR = 0.01, 0.05
"""Relative distances from the paper's number up to which a reproduced number counts as close or near."""


@dataclass(frozen=True)
class Cell:
    """One status of the overview, with the lines that say on what it rests."""

    status: Status
    label: str
    run_sets: tuple[RunSet, ...] = ()
    note: str = ""


@dataclass(frozen=True)
class JudgedClaim:
    """A claim with one verdict per run set; without any it was not run."""

    verdict_if_not_run: Verdict
    judged: tuple[tuple[RunSet, Verdict], ...]

    @property
    def claim(self) -> Claim:
        return self.verdict_if_not_run.claim

    @property
    def status(self) -> Status:
        outcomes = [verdict.holds for _, verdict in self.judged]
        if False in outcomes:
            return Status.FAILS
        if True in outcomes:
            return Status.HOLDS
        return Status.INCOMPLETE if outcomes else Status.NOT_RUN


@dataclass(frozen=True)
class Joined:
    """A reported row's reproduced number from one run set."""

    run_set: RunSet
    comparison: Comparison

    @property
    def measurement(self) -> Measurement:
        assert self.comparison.measurement is not None
        return self.comparison.measurement

    @property
    def distance(self) -> str:
        """``close``, ``near`` or ``far``; empty where the paper's value is unavailable.

        Close: within 1 % of the printed number or within one standard deviation (the larger of the printed
        one and ours). Near: within 5 % or two standard deviations.
        """
        difference, row = self.comparison.difference, self.comparison.row
        if difference is None or row.value is None:
            return ""
        deviation = max(row.std or 0.0, self.measurement.std or 0.0)
        for name, relative, deviations in (("close", CLOSE, 1), ("near", NEAR, 2)):
            allowed = max(relative * abs(row.value), deviations * deviation)
            if abs(difference) <= allowed or math.isclose(abs(difference), allowed):
                return name
        return "far"

    @property
    def direction(self) -> str:
        """``better`` or ``worse`` than printed, in the sense of the metric."""
        difference = self.comparison.difference
        if not difference:
            return ""
        return "better" if (difference > 0) == self.comparison.row.higher_is_better else "worse"


@dataclass(frozen=True)
class ReportedTable:
    """One printed table: its rows, each with the reproduced numbers that join it."""

    name: str
    rows: tuple[tuple[ReportedRow, tuple[Joined, ...]], ...]

    @property
    def reproduced(self) -> int:
        return sum(bool(joined) for _, joined in self.rows)

    @property
    def common_reason(self) -> str:
        """Why paper values are unavailable, where all that are have the same reason; else empty."""
        reasons = {row.unavailable for row, _ in self.rows if row.value is None}
        return (reasons.pop() or "") if len(reasons) == 1 else ""


@dataclass(frozen=True)
class RunView:
    """One run as its page shows it."""

    record: RunRecord
    config: dict[str, str]
    figures: tuple[Figure, ...]

    @property
    def key(self) -> str:
        """Identifies the run within its paper: ``<source>/<profile>/<name>-seed<k>``."""
        return f"{self.record.source}/{self.record.profile}/{self.record.label}"


@dataclass(frozen=True)
class ProfileView:
    """Everything measured in one run set."""

    run_set: RunSet
    measurements: tuple[Measurement, ...]
    curves: tuple[CurveFigure, ...]
    runs: tuple[RunView, ...]


@dataclass(frozen=True)
class PaperPage:
    """The content of one paper's page, and its row of the overview."""

    paper: Paper
    cells: Mapping[str, Cell]
    claims: tuple[JudgedClaim, ...]
    tables: tuple[ReportedTable, ...]
    profiles: tuple[ProfileView, ...]
    problems: tuple[Problem, ...]
    unfinished: tuple[Unfinished, ...]
    units: Mapping[str, str]

    @property
    def runs(self) -> list[RunView]:
        return [run for profile in self.profiles for run in profile.runs]

    @property
    def run_sets(self) -> list[RunSet]:
        return [profile.run_set for profile in self.profiles]

    @property
    def is_built(self) -> bool:
        return self.paper.reported is not None or bool(self.profiles or self.unfinished)


@dataclass(frozen=True)
class Totals:
    """The overview's headline numbers, counted over all papers."""

    papers: int
    built: int
    holding: int
    failing: int
    unjudged: int
    finished: int
    failed: int


def summarise(collection: Collection) -> tuple[PaperPage, ...]:
    """One page per paper, in the order of the papers."""
    return tuple(paper_page(paper, collection) for paper in collection.papers)


def paper_page(paper: Paper, collection: Collection) -> PaperPage:
    """Everything the page of ``paper`` shows."""
    profiles = tuple(_profile_view(run_set) for run_set in run_sets(paper, collection.records_of(paper.id)))
    sets = [profile.run_set for profile in profiles]
    return PaperPage(
        paper=paper,
        cells=overview_cells(paper, sets),
        claims=judged_claims(paper, sets),
        tables=reported_tables(paper, sets),
        profiles=profiles,
        problems=collection.problems_of(paper.id),
        unfinished=collection.unfinished_of(paper.id),
        units=_units(paper),
    )


def overview_cells(paper: Paper, sets: Sequence[RunSet]) -> dict[str, Cell]:
    """The columns ``quick``, ``gpu`` and ``paper``, the last for every profile but quick, h100 and smoke."""
    claimed = {claim.profile for claim in paper.reported.claims} if paper.reported else set()
    profiles = sorted((claimed | {run_set.profile for run_set in sets}) - {QUICK, GPU, SMOKE})
    return {
        "quick": _cell(paper, sets, [QUICK]),
        "gpu": _cell(paper, sets, [GPU]),
        "paper": _cell(paper, sets, profiles),
    }


def judged_claims(paper: Paper, sets: Sequence[RunSet]) -> tuple[JudgedClaim, ...]:
    """Every claim of the paper with its verdicts, in the file's order."""
    claims = paper.reported.claims if paper.reported else ()
    return tuple(
        JudgedClaim(
            judge(claim, []),
            tuple(
                (run_set, verdict)
                for run_set in sets
                for verdict in run_set.verdicts
                if verdict.claim == claim
            ),
        )
        for claim in claims
    )


def reported_tables(paper: Paper, sets: Sequence[RunSet]) -> tuple[ReportedTable, ...]:
    """The paper's printed tables, each row with the numbers that join it."""
    if paper.reported is None:
        return ()
    joins = [
        (run_set, compare(paper.reported, run_set.results)) for run_set in sets if run_set.profile != SMOKE
    ]
    tables: dict[str, list[tuple[ReportedRow, tuple[Joined, ...]]]] = {}
    for index, row in enumerate(paper.reported.rows):
        joined = [Joined(run_set, rows[index]) for run_set, rows in joins if rows[index].measurement]
        tables.setdefault(row.table, []).append((row, tuple(joined)))
    return tuple(ReportedTable(name, tuple(rows)) for name, rows in tables.items())


def totals(pages: Sequence[PaperPage]) -> Totals:
    """Counts over all papers; runs of the smoke profile are tests, not results, and are left out."""
    sets = [run_set for page in pages for run_set in page.run_sets if run_set.profile != SMOKE]
    statuses = [claim.status for page in pages for claim in page.claims]
    holding, failing = statuses.count(Status.HOLDS), statuses.count(Status.FAILS)
    return Totals(
        papers=len(pages),
        built=sum(page.paper.reported is not None for page in pages),
        holding=holding,
        failing=failing,
        unjudged=len(statuses) - holding - failing,
        finished=sum(len(run_set.finished) for run_set in sets),
        failed=sum(run_set.failed for run_set in sets),
    )


def flattened(config: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """A configuration as ``a.b.c -> value``; lists stay whole, text stays unquoted."""
    flat: dict[str, str] = {}
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            flat |= flattened(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = _plain(value)
    return flat


def _cell(paper: Paper, sets: Sequence[RunSet], profiles: Sequence[str]) -> Cell:
    found = tuple(run_set for run_set in sets if run_set.profile in profiles)
    if not found:
        status = Status.NOT_BUILT if paper.reported is None and not sets else Status.NOT_RUN
        return Cell(status, status.label)
    claimed = {claim.profile for claim in paper.reported.claims} if paper.reported else set()
    missing = sorted((claimed & set(profiles)) - {run_set.profile for run_set in found})
    worst = min((run_set.status for run_set in found), key=list(Status).index)
    if missing and worst in (Status.HOLDS, Status.MEASURED):
        worst = Status.INCOMPLETE
    note = f"{plural(len(missing), 'more profile')} not run" if missing else ""
    return Cell(worst, worst.label, found, note)


def _profile_view(run_set: RunSet) -> ProfileView:
    finished = [record.content for record in run_set.finished]
    return ProfileView(
        run_set,
        tuple(measure(finished).values()),
        tuple(curve_figures(finished)),
        tuple(
            RunView(record, flattened(record.content["config"]), tuple(figures_of(record)))
            for record in run_set.records
        ),
    )


def _units(paper: Paper) -> dict[str, str]:
    """The unit of each metric that the paper prints in one unit only."""
    units: dict[str, set[str]] = {}
    for row in paper.reported.rows if paper.reported else ():
        units.setdefault(row.metric, set()).add(row.unit)
    return {metric: found.pop() for metric, found in units.items() if len(found) == 1}


def _plain(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list):
        return "[" + ", ".join(map(_plain, value)) + "]"
    return str(value)
