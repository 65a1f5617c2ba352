"""The command ``tenfold-benchmarks``: build the dashboards, serve them, validate what they read."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro

from tenfold.benchmarks.formatting import plural
from tenfold.benchmarks.records import Collection, Problem, collect
from tenfold.benchmarks.server import serve
from tenfold.benchmarks.site import refuse_foreign, write_site
from tenfold.benchmarks.speed import SpeedRatio, read_speed
from tenfold.shared.logging import errors_in_one_line, get_logger

log = get_logger("benchmarks")


@dataclass(frozen=True)
class Sources:
    """Where everything is read from."""

    runs: Path = Path("runs")
    """Local run records: <paper>/<profile>/<name>-seed<k>/result.json."""

    results: Path = Path("benchmarks/results")
    """Reference results kept in git: <hardware>/<paper>/<profile>/<name>-seed<k> and <hardware>/speed."""

    packages: Path = Path("packages")
    """The packages, whose pyproject.toml, README.md and reported.toml are read as files."""


@dataclass(frozen=True)
class Dashboard(Sources):
    """Build the static site from run records, reference results and reported numbers."""

    output: Path = Path("site")
    """Folder of the site. Replaced in one step if an earlier site is there; anything else is left alone."""

    def __call__(self) -> int:
        refuse_foreign(self.output)
        collection, ratios = _read(self)
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


@dataclass(frozen=True)
class Validate(Sources):
    """Check every result.json, reported.toml and speed file; one line a problem, and then exit status 1."""

    def __call__(self) -> int:
        collection, _ = _read(self)
        for problem in collection.problems:
            print(problem)
        tables = sum(paper.reported is not None for paper in collection.papers)
        print(
            f"{plural(len(collection.records), 'valid record')}, "
            f"{plural(tables, 'valid table')} of reported numbers, "
            f"{plural(len(collection.problems), 'problem')}",
            file=sys.stderr,
        )
        return 1 if collection.problems else 0


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of the console script."""
    with errors_in_one_line():
        command: Dashboard | Serve | Validate = tyro.cli(
            Dashboard | Serve | Validate,
            prog="tenfold-benchmarks",
            description="Dashboards over the run records of the Tenfold packages: build, serve, validate.",
            args=arguments,
        )
        sys.exit(command())


def _read(sources: Sources) -> tuple[Collection, list[SpeedRatio]]:
    collection = collect(sources.runs, sources.results, sources.packages)
    ratios, problems = read_speed(sources.results)
    merged: tuple[Problem, ...] = (*collection.problems, *problems)
    return Collection(collection.papers, collection.records, merged), ratios


if __name__ == "__main__":
    main()
