"""The three folders that every command reads, and runs named on a command line."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from tenfold.benchmarks.records import Collection, RunRecord, collect, read_record
from tenfold.benchmarks.speed import SpeedRatio, read_speed
from tenfold.shared.logging import TenfoldError

MOST_CANDIDATES = 6


@dataclass(frozen=True)
class Sources:
    """Where everything is read from."""

    runs: Path = Path("runs")
    """Local run records: <paper>/<profile>/<name>-seed<k>/result.json."""

    results: Path = Path("benchmarks/results")
    """Reference results kept in git: <hardware>/<paper>/<profile>/<name>-seed<k> and <hardware>/speed."""

    packages: Path = Path("packages")
    """The packages, whose pyproject.toml, README.md and reported.toml are read as files."""


def read_sources(sources: Sources) -> tuple[Collection, list[SpeedRatio]]:
    """Everything under the three folders, with the problems of the speed files among the others.

    Raises:
        TenfoldError: there is no folder of packages.
    """
    collection = collect(sources.runs, sources.results, sources.packages)
    ratios, problems = read_speed(sources.results)
    return replace(collection, problems=(*collection.problems, *problems)), ratios


def run_key(record: RunRecord) -> str:
    """``<source>/<paper>/<profile>/<name>-seed<k>``, which no other run of a collection has."""
    return f"{record.source}/{record.paper}/{record.profile}/{record.label}"


def chosen_runs(names: Sequence[str], collection: Collection) -> list[RunRecord]:
    """The runs that ``names`` mean, each once.

    A name is the path of a run directory or its ``result.json``, or the end of a run's key: ``gfkd-seed0`` is enough
    where one run has that name, ``quick/gfkd-seed0`` or ``cpu-2-cores/gfkd/quick/gfkd-seed0`` where several have.

    Raises:
        TenfoldError: a name means no run or several, a record cannot be used, or the runs are of several papers.
    """
    chosen = list({run_key(record): record for record in (_run(name, collection) for name in names)}.values())
    papers = sorted({record.paper for record in chosen})
    if len(papers) > 1:
        raise TenfoldError(f"runs of {' and '.join(papers)} do not compare: choose runs of one paper")
    return chosen


def _run(name: str, collection: Collection) -> RunRecord:
    path = Path(name)
    file = path / "result.json" if path.is_dir() else path
    if file.is_file():
        known = [
            record for record in collection.records if record.directory.resolve() == file.resolve().parent
        ]
        return known[0] if known else _outside(file)
    parts = name.strip("/").split("/")
    found = [record for record in collection.records if run_key(record).split("/")[-len(parts) :] == parts]
    if len(found) == 1:
        return found[0]
    if found:
        keys = ", ".join(run_key(record) for record in found[:MOST_CANDIDATES])
        more = " and more" if len(found) > MOST_CANDIDATES else ""
        raise TenfoldError(
            f"{len(found)} runs are named {name}: write more of the one you mean, of {keys}{more}"
        )
    labels = sorted({record.label for record in collection.records})
    close = difflib.get_close_matches(parts[-1], labels, n=3)
    hint = f"; did you mean {' or '.join(close)}?" if close else ""
    raise TenfoldError(f"no finished or failed run is named {name}, and there is no such directory{hint}")


def _outside(file: Path) -> RunRecord:
    """A record that lies outside the folders that are read."""
    record, reasons = read_record(file.resolve(), str(file.parent.parent))
    if record is None:
        raise TenfoldError(f"{file} cannot be compared: {reasons[0]}")
    return record
