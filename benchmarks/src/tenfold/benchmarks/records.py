"""Finding, validating and loading what the dashboards show: run records, reported numbers, package metadata.

Everything here is read as files. A file that cannot be used becomes a :class:`Problem`, never an exception,
so that one corrupt record does not hide all the others.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import tomllib
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import jsonschema  # type: ignore[import-untyped]

from tenfold.shared.comparison import Reported, load_reported
from tenfold.shared.logging import TenfoldError, get_logger

LOCAL = "local runs"
"""The source of records found under ``runs/``; reference results carry the name of their hardware folder."""

PAPER_ID = re.compile(r"[a-z][a-z0-9-]*")
MOST_PROBLEMS_PER_FILE = 20
LARGEST = 1e100
"""No measured number is larger; beyond it, sums over seeds would overflow."""

log = get_logger("benchmarks")


@dataclass(frozen=True)
class Problem:
    """A file that cannot be used, and why. ``paper`` is None where the path names no paper."""

    path: str
    reason: str
    paper: str | None = None

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


@dataclass(frozen=True)
class RunRecord:
    """One validated ``result.json``, its directory, and where it was found (:data:`LOCAL` or hardware)."""

    content: Mapping[str, Any]
    directory: Path
    source: str

    @property
    def paper(self) -> str:
        return str(self.content["paper"])

    @property
    def profile(self) -> str:
        return str(self.content["profile"])

    @property
    def label(self) -> str:
        """``<name>-seed<k>``, the name of the run directory."""
        return f"{self.content['name']}-seed{self.content['seed']}"

    @property
    def finished(self) -> bool:
        return bool(self.content["status"] == "finished")

    @property
    def started_at(self) -> datetime:
        """When the run was started, in its own time zone (UTC where none is given)."""
        moment = datetime.fromisoformat(self.content["timing"]["started_at"])
        return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


@dataclass(frozen=True)
class Unfinished:
    """A local run directory without ``result.json``: interrupted, or still running."""

    paper: str
    profile: str
    label: str
    has_checkpoint: bool


@dataclass(frozen=True)
class Paper:
    """A package, as far as its files say; ``reported`` is None without a readable ``reported.toml``."""

    id: str
    description: str
    citation: str
    link: str
    reported: Reported | None

    @property
    def name(self) -> str:
        """The paper's short name: what stands before the colon of the package's description."""
        name, colon, _ = self.description.partition(":")
        return name if colon and len(name) <= 24 else self.id

    @property
    def title(self) -> str:
        return self.reported.title if self.reported else self.description or self.id


@dataclass(frozen=True)
class Collection:
    """All papers, records and problems under the three roots."""

    papers: tuple[Paper, ...]
    records: tuple[RunRecord, ...]
    problems: tuple[Problem, ...]
    unfinished: tuple[Unfinished, ...] = ()

    def records_of(self, paper: str) -> tuple[RunRecord, ...]:
        return tuple(record for record in self.records if record.paper == paper)

    def problems_of(self, paper: str) -> tuple[Problem, ...]:
        return tuple(problem for problem in self.problems if problem.paper == paper)

    def unfinished_of(self, paper: str) -> tuple[Unfinished, ...]:
        return tuple(run for run in self.unfinished if run.paper == paper)


def collect(runs: Path, results: Path, packages: Path) -> Collection:
    """Read every run record, reference result and package.

    Args:
        runs: local runs, ``<paper>/<profile>/<name>-seed<k>/result.json``.
        results: reference results, ``<hardware>/<paper>/<profile>/<name>-seed<k>/result.json``.
        packages: ``<paper>/{pyproject.toml,README.md,src/tenfold/<module>/reported.toml}``.

    Raises:
        TenfoldError: there is no folder ``packages``.
    """
    if not packages.is_dir():
        raise TenfoldError(
            f"there is no folder {packages}: run from the root of the checkout or name it with --packages"
        )
    papers, problems = read_packages(packages)
    records: list[RunRecord] = []
    problems += lost_records(results)
    for root, sources in ((runs, ((LOCAL, runs),)), (results, hardware_folders(results))):
        if not root.is_dir():
            log.info("there is no folder %s: nothing is read from it", root)
        for source, folder in sources:
            for path in record_paths(folder):
                record, reasons = read_record(path, source)
                shown = f"{root.name}/{path.relative_to(root).as_posix()}"
                problems += [Problem(shown, reason, paper_of(path)) for reason in reasons]
                if record is not None:
                    records.append(record)
    papers += papers_without_package(papers, records)
    return Collection(tuple(papers), tuple(records), tuple(problems), tuple(unfinished_runs(runs)))


def hardware_folders(results: Path) -> tuple[tuple[str, Path], ...]:
    """(name, path) of each hardware folder of the reference results."""
    if not results.is_dir():
        return ()
    return tuple((folder.name, folder) for folder in sorted(results.iterdir()) if folder.is_dir())


def record_paths(folder: Path) -> list[Path]:
    """Every ``result.json`` under ``<paper>/<profile>/<run>``, also those that cannot be opened."""
    paths = (directory / "result.json" for directory in sorted(folder.glob("*/*/*")))
    return [path for path in paths if os.path.lexists(path)]


def unfinished_runs(runs: Path) -> list[Unfinished]:
    """Run directories under ``runs`` that were begun and have no result."""
    return [
        Unfinished(paper, profile, label, (folder / "checkpoint.pt").is_file())
        for folder in sorted(path.parent for path in runs.glob("*/*/*/config.json"))
        for paper, profile, label in [folder.parts[-3:]]
        if not (folder / "result.json").exists()
    ]


def lost_records(results: Path) -> list[Problem]:
    """Directories of reference results whose ``result.json`` is missing."""
    return [
        Problem(
            f"{results.name}/{folder.relative_to(results).as_posix()}/result.json",
            "is missing: copy it from the run, or remove its directory",
            paper_of(folder / "result.json"),
        )
        for _, hardware in hardware_folders(results)
        for folder in sorted(hardware.glob("*/*/*-seed*/"))
        if not (folder / "result.json").exists()
    ]


def read_record(path: Path, source: str) -> tuple[RunRecord | None, list[str]]:
    """The record of one ``result.json``, or None and the reasons why it cannot be used."""
    try:
        content = read_json(path)
    except ValueError as error:
        return None, [str(error)]
    reasons = other_schema(content) or violations("result", content) or inconsistencies(content, path)
    return (None, reasons) if reasons else (RunRecord(content, path.parent, source), [])


def read_json(path: Path) -> Any:
    """Parse strict JSON: NaN, infinities and numbers beyond :data:`LARGEST` are errors.

    Raises:
        ValueError: with one clause that says why the file cannot be read.
    """
    try:
        return json.loads(
            path.read_text(encoding="utf-8"),
            parse_constant=_refuse_constant,
            parse_float=_finite,
            parse_int=_finite_integer,
        )
    except OSError as error:
        raise ValueError(error.strerror or "cannot be opened") from error
    except UnicodeDecodeError as error:
        raise ValueError("is not UTF-8 text") from error
    except json.JSONDecodeError as error:
        raise ValueError(f"is not JSON: {error}") from error
    except RecursionError as error:
        raise ValueError("is nested too deeply") from error


def other_schema(content: Any) -> list[str]:
    """What to do about a record that another release wrote; empty where its schema version is ours."""
    version = content.get("schema_version") if isinstance(content, Mapping) else None
    current = _validator("result").schema["properties"]["schema_version"]["const"]
    if not isinstance(version, int) or version == current:
        return []
    if version < current:
        return [
            f"has the older schema version {version} (this is {current}): run it again with the same command"
        ]
    return [
        f"has the newer schema version {version} (this is {current}): update tenfold-benchmarks to read it"
    ]


def violations(schema: str, content: Any) -> list[str]:
    """Where ``content`` breaks the schema ``result`` or ``reported``, one clause each."""
    errors = sorted(
        _validator(schema).iter_errors(content), key=lambda error: [str(part) for part in error.path]
    )
    return [_clause(error.json_path, error.message) for error in errors[:MOST_PROBLEMS_PER_FILE]]


def inconsistencies(content: Mapping[str, Any], path: Path) -> list[str]:
    """What the schema cannot say: a record lies where its fields say, a curve has as many x as y."""
    reasons = []
    place = (content["paper"], content["profile"], f"{content['name']}-seed{content['seed']}")
    if place != path.parent.parts[-3:]:
        reasons.append(f"says it belongs in {'/'.join(place)}, but lies elsewhere")
    for name, curve in content["curves"].items():
        if len(curve["x"]) != len(curve["y"]):
            reasons.append(f"curve {name!r} has {len(curve['x'])} x values and {len(curve['y'])} y values")
    return reasons


def read_packages(packages: Path) -> tuple[list[Paper], list[Problem]]:
    """Every package under ``packages``, in the order of their ids."""
    papers, problems = [], []
    for folder in sorted(packages.iterdir()):
        if not (folder / "pyproject.toml").is_file() or not PAPER_ID.fullmatch(folder.name):
            continue
        reported: Reported | None = None
        for path in sorted(folder.glob("src/tenfold/*/reported.toml"))[:1]:
            reported, reasons = read_reported(path, folder.name)
            shown = f"{packages.name}/{path.relative_to(packages).as_posix()}"
            problems += [Problem(shown, reason, folder.name) for reason in reasons]
        project = _project_table(folder / "pyproject.toml")
        urls = project.get("urls")
        link = reported.link if reported else str(urls.get("Paper", "")) if isinstance(urls, dict) else ""
        description, citation = str(project.get("description", "")), _citation(folder / "README.md")
        papers.append(Paper(folder.name, description, citation, link, reported))
    return papers, problems


def read_reported(path: Path, paper: str) -> tuple[Reported | None, list[str]]:
    """The content of one ``reported.toml``, or None and the reasons why it cannot be used."""
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        return None, [error.strerror or "cannot be opened"]
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        return None, [f"is not TOML: {error}"]
    reasons = violations("reported", content) or _reported_inconsistencies(content, paper)
    if reasons:
        return None, reasons
    try:
        return load_reported(path), []
    except TenfoldError as error:
        return None, [str(error)]


def papers_without_package(papers: Iterable[Paper], records: Iterable[RunRecord]) -> list[Paper]:
    """Papers that have runs but no folder under ``packages``."""
    known = {paper.id for paper in papers}
    return [Paper(paper, "", "", "", None) for paper in sorted({record.paper for record in records} - known)]


def paper_of(record_path: Path) -> str | None:
    """The paper that a record's path names, whatever the record says."""
    name = record_path.parts[-4]
    return name if PAPER_ID.fullmatch(name) else None


def _reported_inconsistencies(content: Mapping[str, Any], paper: str) -> list[str]:
    reasons = []
    if content["paper"] != paper:
        reasons.append(f"says paper {content['paper']!r}, but belongs to {paper!r}")
    reasons += [
        f"row {row['table']}, {row['method']}, {row['metric']}: a number is not finite or too large"
        for row in content["rows"]
        if not all(_is_ordinary(row.get(field, 0.0)) for field in ("value", "std"))
    ]
    reasons += [
        f"claim {claim['id']!r}: the margin is not finite or too large"
        for claim in content["claims"]
        if not _is_ordinary(claim["margin"])
    ]
    uses = Counter(claim["id"] for claim in content["claims"])
    return reasons + [f"claim id {name!r} is used {count} times" for name, count in uses.items() if count > 1]


def _project_table(pyproject: Path) -> dict[str, Any]:
    try:
        project = tomllib.loads(pyproject.read_text(encoding="utf-8")).get("project", {})
    except (OSError, ValueError):
        return {}
    return project if isinstance(project, dict) else {}


def _citation(readme: Path) -> str:
    """The first quoted paragraph of a README, by our convention the paper's citation."""
    try:
        lines = readme.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return ""
    start = next((index for index, line in enumerate(lines) if line.startswith(">")), len(lines))
    quoted = itertools.takewhile(lambda line: line.startswith(">"), lines[start:])
    return " ".join(line.lstrip("> ").strip() for line in quoted)


@cache
def _validator(schema: str) -> Any:
    text = resources.files("tenfold.benchmarks").joinpath(f"schemas/{schema}.schema.json").read_text("utf-8")
    formats = jsonschema.FormatChecker(formats=())
    formats.checks("date-time", raises=ValueError)(_is_date_time)
    return jsonschema.Draft202012Validator(json.loads(text), format_checker=formats)


def _is_date_time(value: object) -> bool:
    return not isinstance(value, str) or datetime.fromisoformat(value) is not None


def _clause(json_path: str, message: str) -> str:
    field = json_path.removeprefix("$").removeprefix(".")
    message = message if len(message) <= 200 else f"{message[:120]} … {message[-70:]}"
    return f"{field}: {message}" if field else message


def _refuse_constant(name: str) -> float:
    raise ValueError(f"holds {name}, which is not JSON; an undefined number is written as null")


def _is_ordinary(value: float) -> bool:
    return abs(value) <= LARGEST


def _finite(text: str) -> float:
    value = float(text)
    if not _is_ordinary(value):
        raise ValueError(f"holds the number {text[:20]}, which is too large")
    return value


def _finite_integer(text: str) -> int:
    _finite(text)
    return int(text)
