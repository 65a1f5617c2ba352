"""The command ``tenfold-benchmarks``: run all papers, look at the outcome, check it, take it along."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console

from tenfold.benchmarks.comparing import print_side_by_side
from tenfold.benchmarks.exporting import Contents, Format, export
from tenfold.benchmarks.formatting import plural
from tenfold.benchmarks.reproducing import INTERRUPTED, check_installed, print_outcomes, reproduce_one
from tenfold.benchmarks.server import serve
from tenfold.benchmarks.site import refuse_foreign, write_site
from tenfold.benchmarks.sources import Sources, chosen_runs, read_sources
from tenfold.benchmarks.speed_recording import RecordSpeed
from tenfold.benchmarks.summary import summarise
from tenfold.benchmarks.verifying import verify
from tenfold.shared.logging import TenfoldError, errors_in_one_line, get_logger

log = get_logger("benchmarks")


@dataclass(frozen=True)
class Dashboard(Sources):
    """Build the static site from run records, reference results and reported numbers."""

    output: Path = Path("site")
    """Folder of the site. Replaced in one step if an earlier site is there; anything else is left alone."""

    def __call__(self) -> int:
        refuse_foreign(self.output)
        collection, ratios = read_sources(self)
        pages = write_site(collection, ratios, self.output)
        for problem in collection.problems:
            log.warning("%s", problem)
        print(
            f"{self.output / 'index.html'}: {plural(len(pages), 'paper')}, "
            f"{plural(len(collection.records), 'run')}, {plural(len(collection.problems), 'problem')}"
        )
        return 0


@dataclass(frozen=True)
class Serve:
    """Serve a built site on 127.0.0.1 until Ctrl-C."""

    site: Path = Path("site")
    """Folder that `dashboard` wrote."""

    port: int = 8000
    """Port to listen on; 0 takes any free one."""

    def __call__(self) -> int:
        serve(self.site, self.port)
        return 0


@dataclass(frozen=True, kw_only=True)
class Compare(Sources):
    """Runs of one paper side by side: metrics, time, and what differs in configuration and environment."""

    run: tyro.conf.Positional[tuple[str, ...]]
    """Two or more: paths of run directories, or ends of <source>/<paper>/<profile>/<name>-seed<k>."""

    def __call__(self) -> int:
        if len(self.run) < 2:
            raise TenfoldError(
                "comparing takes two or more runs: `tenfold-benchmarks compare gfkd-seed0 kd-seed0`"
            )
        collection, _ = read_sources(self)
        chosen = chosen_runs(self.run, collection)
        if len(chosen) < 2:
            raise TenfoldError("these names mean one and the same run: choose two or more")
        print_side_by_side(chosen, _console())
        return 0


@dataclass(frozen=True)
class Verify(Sources):
    """Check every stored result again: schema, place, configuration hash, figures, claims.

    Exit status 1 if one is wrong or a claim does not hold.
    """

    def __call__(self) -> int:
        found = verify(read_sources(self)[0])
        for line in found.failures:
            print(line)
        for line in found.notes:
            print(f"note: {line}")
        print(
            f"{plural(found.records, 'valid record')}; {plural(found.held, 'claim')} held, {found.failed} failed, "
            f"{found.incomplete} not judged; {plural(len(found.failures), 'failure')}",
            file=sys.stderr,
        )
        return 1 if found.failures else 0


@dataclass(frozen=True, kw_only=True)
class Export(Sources):
    """Write a paper's tables as CSV, Markdown or LaTeX."""

    paper: tyro.conf.Positional[str]
    """Whose tables."""

    contents: Contents = "reported"
    """Printed numbers beside the reproduced ones, everything measured, or the claims with their evidence."""

    format: Format = "csv"
    """CSV has a column for each number; Markdown and LaTeX (booktabs, longtable) are for reading."""

    with_missing: bool = False
    """Of printed numbers, also those that were not reproduced."""

    output: Path | None = None
    """File to write; by default standard output."""

    def __call__(self) -> int:
        pages = {page.paper.id: page for page in summarise(read_sources(self)[0])}
        if self.paper not in pages:
            raise TenfoldError(f"there is no paper {self.paper!r}; choose one of {', '.join(pages)}")
        text = export(pages[self.paper], self.contents, self.format, with_missing=self.with_missing)
        if self.output is None:
            print(text, end="")
        else:
            self.output.write_text(text, encoding="utf-8")
        return 0


@dataclass(frozen=True)
class Reproduce:
    """Run one profile of many papers, one after another, through their own commands.

    A paper that fails does not keep the others from running. Exit status 1 if one failed.
    """

    papers: tyro.conf.Positional[tuple[str, ...]]
    """Which papers, in this order."""

    profile: str = "quick"
    """Which profile."""

    runs: Path = Path("runs")
    """Directory of all runs."""

    packages: Path = Path("packages")
    """The packages, whose claims the last table counts."""

    arguments: str = ""
    """Further arguments for every paper's `reproduce`, in one text: "--seeds 0 1 --force"."""

    def __call__(self) -> int:
        check_installed(self.papers)
        further = shlex.split(self.arguments)
        outcomes = []
        for paper in self.papers:
            outcomes.append(reproduce_one(paper, self.profile, further, self.runs, self.packages))
            if outcomes[-1].exit_status == INTERRUPTED:
                break
        print_outcomes(outcomes, self.profile, _console())
        if outcomes and outcomes[-1].exit_status == INTERRUPTED:
            return INTERRUPTED
        return 1 if any(outcome.exit_status for outcome in outcomes) else 0


Command = Reproduce | Dashboard | Serve | Compare | Verify | Export | RecordSpeed


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of the console script."""
    with errors_in_one_line():
        command: Command = tyro.cli(
            Annotated[Command, tyro.conf.OmitArgPrefixes],
            prog="tenfold-benchmarks",
            description="Run all papers, look at their results, compare, verify and export them.",
            args=arguments,
        )
        sys.exit(command())


def _console() -> Console:
    """The terminal; text that goes elsewhere keeps a width that fits its tables."""
    return Console(width=None if Console().is_terminal else 180)


if __name__ == "__main__":
    main()
