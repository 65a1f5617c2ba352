"""All papers one after another through their own commands, with one table at the end."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tenfold.benchmarks import formatting
from tenfold.benchmarks.records import LOCAL, Paper, read_record, read_reported
from tenfold.benchmarks.run_sets import RunSet, run_sets
from tenfold.shared.logging import TenfoldError

INTERRUPTED = 130


@dataclass(frozen=True)
class Outcome:
    """How a paper's command ended, and what its records say. ``run_set`` is None where it left none."""

    paper: str
    exit_status: int
    seconds: float
    run_set: RunSet | None

    @property
    def sentence(self) -> str:
        """The table's last column."""
        if self.exit_status == 0:
            return "[green]reproduced[/]"
        if self.exit_status == INTERRUPTED:
            return "[yellow]interrupted[/]"
        if self.exit_status < 0:
            return f"[red]killed by signal {-self.exit_status}[/]"
        judged = self.run_set.verdicts if self.run_set is not None else ()
        if self.exit_status == 1 and any(verdict.holds is False for verdict in judged):
            return "[red]a claim fails[/]"
        return f"[red]exit status {self.exit_status}[/]"


def reproduce_one(paper: str, profile: str, arguments: Sequence[str], runs: Path, packages: Path) -> Outcome:
    """Run ``tenfold-<paper> reproduce`` with its output where ours goes; an end of whatever kind is an outcome."""
    command = [_executable(paper), "reproduce", "--profile", profile, "--output", str(runs), *arguments]
    print(f"\n==> tenfold-{paper} reproduce --profile {profile}", flush=True)
    started = time.monotonic()
    status = _exit_status(command)
    seconds = time.monotonic() - started
    return Outcome(paper, status, seconds, _run_set(paper, profile, runs, packages))


def check_installed(papers: Sequence[str]) -> None:
    """Raise, before hours are spent, if no paper is named or the command of one is missing."""
    if not papers:
        raise TenfoldError("name at least one paper: `tenfold-benchmarks reproduce gfkd reliant`")
    missing = [paper for paper in papers if shutil.which(_executable(paper)) is None]
    if missing:
        raise TenfoldError(
            f"{', '.join(f'tenfold-{paper}' for paper in missing)} not installed: run `make setup`"
        )


def print_outcomes(outcomes: Sequence[Outcome], profile: str, console: Console) -> None:
    """One row per paper: runs, claims, time, and how it ended."""
    table = Table(title=f"profile {profile}", title_justify="left")
    for name, justify in (
        ("paper", "left"),
        ("stored runs", "right"),
        ("claims held", "right"),
        ("time", "right"),
        ("", "left"),
    ):
        table.add_column(name, justify=justify)  # type: ignore[arg-type]
    for outcome in outcomes:
        table.add_row(
            outcome.paper,
            _runs(outcome.run_set),
            _claims(outcome.run_set),
            formatting.duration(outcome.seconds),
            outcome.sentence,
        )
    table.add_section()
    total = sum(outcome.seconds for outcome in outcomes)
    good = sum(outcome.exit_status == 0 for outcome in outcomes)
    table.add_row("together", "", "", formatting.duration(total), f"{good} of {len(outcomes)} reproduced")
    console.print(table)


def _executable(paper: str) -> str:
    beside = Path(sys.executable).with_name(f"tenfold-{paper}")
    return str(beside) if beside.exists() else f"tenfold-{paper}"


def _exit_status(command: Sequence[str]) -> int:
    """The exit status; Ctrl-C reaches the command as well, which is waited for."""
    with subprocess.Popen(command) as process:
        try:
            return process.wait()
        except KeyboardInterrupt:
            with suppress(KeyboardInterrupt):  # a second one must not lose the table
                process.wait()
            return INTERRUPTED


def _run_set(paper: str, profile: str, runs: Path, packages: Path) -> RunSet | None:
    paths = sorted((runs / paper / profile).glob("*/result.json"))
    records = [record for record, _ in (read_record(path, LOCAL) for path in paths) if record is not None]
    tables = sorted((packages / paper).glob("src/tenfold/*/reported.toml"))
    reported = read_reported(tables[0], paper)[0] if tables else None
    return next(iter(run_sets(Paper(paper, "", "", "", reported), records)), None)


def _runs(run_set: RunSet | None) -> str:
    if run_set is None:
        return "–"
    failed = f" + {run_set.failed} failed" if run_set.failed else ""
    return f"{len(run_set.finished)}{failed}"


def _claims(run_set: RunSet | None) -> str:
    return f"{run_set.held} of {len(run_set.verdicts)}" if run_set and run_set.verdicts else "–"
