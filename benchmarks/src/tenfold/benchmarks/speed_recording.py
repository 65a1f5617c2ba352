"""Adding what the speed suites measured to their histories, and comparing it with what is stored there."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from tenfold.benchmarks.formatting import TIMES, date, number
from tenfold.benchmarks.records import PAPER_ID, read_json
from tenfold.benchmarks.speed import SpeedRatio, ratios_of
from tenfold.benchmarks.speed_history import SCHEMA_VERSION, SuiteRun, append_run, read_history, suite_run
from tenfold.shared.logging import TenfoldError, get_logger

DIGITS = 5
"""Significant digits of what is stored; repetitions differ in the second or third."""

log = get_logger("benchmarks")


@dataclass(frozen=True)
class RecordSpeed:
    """Add what speed suites measured to their histories; point out ratios that became lower."""

    files: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """pytest-benchmark's JSON of each suite, named <paper>.json."""

    hardware: str
    """Folder of the results, such as h100 or cpu-2-cores."""

    results: Path = Path("benchmarks/results")
    """Reference results; a line is added to <hardware>/speed/<paper>.jsonl."""

    strict: bool = False
    """Exit status 1 where a ratio became lower by more than 20 %."""

    def __call__(self) -> int:
        if not self.files:
            raise TenfoldError("name at least one file that pytest --benchmark-json wrote")
        if not self.hardware or self.hardware.startswith(".") or Path(self.hardware).name != self.hardware:
            raise TenfoldError(f"{self.hardware!r} cannot name a folder: choose another --hardware")
        measured = {path: measured_run(path) for path in self.files}
        stored = {
            path: self._stored(path, run) for path, run in measured.items()
        }  # all, before one is added to
        has_regression = False
        for path, run in measured.items():
            append_run(self._history(path), run)
            ratios = ratios_of(path.stem, self.hardware, run, stored[path])
            print_ratios(path.stem, ratios, gone(run, stored[path]))
            has_regression |= any(ratio.is_regression for ratio in ratios)
        return int(self.strict and has_regression)

    def _history(self, path: Path) -> Path:
        return self.results / self.hardware / "speed" / f"{path.stem}.jsonl"

    def _stored(self, path: Path, run: SuiteRun) -> list[SuiteRun]:
        history = self._history(path)
        before, reasons = read_history(history)
        for reason in reasons:
            log.warning("%s: %s", history, reason)
        if any(other.measured_at == run.measured_at for other in before):
            raise TenfoldError(f"{history} holds what {path} says already: run the suite again")
        return before


def measured_run(path: Path) -> SuiteRun:
    """What one file of pytest-benchmark says.

    Raises:
        TenfoldError: it is not such a file, is not named after a paper, or a benchmark lacks its ratios.
    """
    try:
        if not PAPER_ID.fullmatch(path.stem):
            raise ValueError("is not named after a paper")
        return suite_run(_line_content(read_json(path)))
    except ValueError as error:
        raise TenfoldError(f"{path}: {error}") from error


def gone(run: SuiteRun, before: Sequence[SuiteRun]) -> list[str]:
    """Benchmarks of the newest stored run that this one lacks."""
    stored = before[-1].benchmarks if before else ()
    return [timing.name for timing in stored if run.timing(timing.name) is None]


def print_ratios(paper: str, ratios: Sequence[SpeedRatio], missing: Sequence[str]) -> None:
    """A table, and a line for everything in it that a reader must not overlook."""
    console = Console(width=None if Console().is_terminal else 150)
    console.print(_table(paper, ratios))
    remarks = []
    for ratio in ratios:
        if ratio.is_regression and ratio.change is not None:
            was = f"{_times(ratio.earlier[0].median)} on {date(ratio.earlier[0].measured_at)}"
            remarks.append(
                f"[red]slower than stored:[/] {escape(ratio.benchmark)}: {_times(ratio.median)}, was {was} "
                f"({_percent(ratio.change)})"
            )
    for processor in dict.fromkeys(ratio.other_processor for ratio in ratios if ratio.other_processor):
        names = ", ".join(ratio.benchmark for ratio in ratios if ratio.other_processor == processor)
        remarks.append(
            f"not compared, stored on another processor ({escape(str(processor))}): {escape(names)}"
        )
    remarks += [f"[yellow]no longer measured:[/] {escape(name)}" for name in missing]
    for remark in remarks:
        console.print(remark, soft_wrap=True)


def _table(paper: str, ratios: Sequence[SpeedRatio]) -> Table:
    table = Table(title=escape(f"{paper}: how many times as fast as the reference"), title_justify="left")
    for column in ("benchmark", "reference"):
        table.add_column(column)
    for column in ("median", "spread", "stored", "change"):
        table.add_column(column, justify="right", no_wrap=True)
    for ratio in ratios:
        table.add_row(
            escape(ratio.benchmark),
            escape(ratio.reference + (f" ({ratio.peer})" if ratio.peer else "")),
            _times(ratio.median),
            f"{number(min(ratio.ratios), digits=3)} to {number(max(ratio.ratios), digits=3)}",
            _times(ratio.earlier[0].median) if ratio.earlier else "–",
            "–" if ratio.change is None else _percent(ratio.change),
        )
    return table


def _line_content(content: Any) -> dict[str, Any]:
    """pytest-benchmark's JSON as a line of a history."""
    if not isinstance(content, Mapping) or not isinstance(content.get("benchmarks"), list):
        raise ValueError("is not the JSON of pytest-benchmark: it has no list 'benchmarks'")
    if not content["benchmarks"]:
        raise ValueError("holds no benchmark: every one failed or was skipped")
    commit = content.get("commit_info")
    if not isinstance(commit, Mapping) or "error" in commit:  # not a git checkout
        commit = {}
    moment = datetime.fromisoformat(str(content.get("datetime")))
    return {
        "schema_version": SCHEMA_VERSION,
        "measured_at": (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).isoformat(
            timespec="seconds"
        ),
        "commit": commit.get("id"),
        "dirty": commit.get("dirty"),
        "machine": content.get("machine_info"),
        "benchmarks": [_timing_content(entry) for entry in content["benchmarks"]],
    }


def _timing_content(entry: Any) -> dict[str, Any]:
    name = entry.get("name") if isinstance(entry, Mapping) else None
    extra = entry.get("extra_info") if isinstance(entry, Mapping) else None
    if not isinstance(extra, Mapping) or not {"ratio", "reference", "peer", "unit"} <= extra.keys():
        raise ValueError(f"benchmark {name!r} lacks one of ratio, reference, peer, unit in its extra_info")
    ratios = extra["ratio"] if isinstance(extra["ratio"], list) else [extra["ratio"]]
    return {
        "name": name,
        "ratios": [_rounded(value) for value in ratios],
        **{field: extra[field] for field in ("reference", "peer", "unit")},
        "numbers": {
            key: _rounded(value) for key, value in extra.items() if key != "ratio" and _is_number(value)
        },
    }


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _rounded(value: Any) -> Any:
    return float(f"{value:.{DIGITS}g}") if _is_number(value) else value


def _times(ratio: float) -> str:
    return f"{number(ratio, digits=3)} {TIMES}"


def _percent(change: float) -> str:
    return f"{number(round(100 * change), signed=True)} %"
