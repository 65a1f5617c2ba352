"""Speed ratios as they are kept: one line for each run of a suite, in ``<hardware>/speed/<paper>.jsonl``."""

from __future__ import annotations

import dataclasses
import json
import statistics
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn

from tenfold.benchmarks.records import violations
from tenfold.benchmarks.run_sets import hardware_name
from tenfold.shared._files import append_whole

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class Machine:
    """What a suite ran on, and with which versions."""

    python: str
    system: str
    torch: str
    threads: int
    cpu: str
    cpu_cores: int
    gpus: tuple[str, ...]

    @property
    def processor(self) -> str:
        """The GPUs, or the processor where there is none."""
        return hardware_name({"hardware": dataclasses.asdict(self)})

    def has_processor_of(self, other: Machine) -> bool:
        """Whether ratios of the two machines may be compared: same models of CPU and GPUs, as many threads."""
        return (self.cpu, self.gpus, self.threads) == (other.cpu, other.gpus, other.threads)


@dataclass(frozen=True)
class Timing:
    """One benchmark: how many times as fast as its reference we were, one ratio for each repetition."""

    name: str
    ratios: tuple[float, ...]
    reference: str
    peer: str | None
    unit: str
    numbers: Mapping[str, float]
    """What else was measured, such as images per second."""

    @property
    def median(self) -> float:
        return statistics.median(self.ratios)


@dataclass(frozen=True)
class SuiteRun:
    """One line of a history."""

    measured_at: datetime
    commit: str | None
    dirty: bool | None
    machine: Machine
    benchmarks: tuple[Timing, ...]

    def timing(self, name: str) -> Timing | None:
        """The benchmark of that name, or None."""
        return next((found for found in self.benchmarks if found.name == name), None)

    def as_line(self) -> str:
        """Compact JSON that ends in a newline."""
        content = {"schema_version": SCHEMA_VERSION} | dataclasses.asdict(self)
        content["measured_at"] = self.measured_at.isoformat()
        return json.dumps(content, ensure_ascii=False, separators=(",", ":"), allow_nan=False) + "\n"


def suite_run(content: Any) -> SuiteRun:
    """A line's content as a run.

    Raises:
        ValueError: with one clause that says why it cannot be used.
    """
    version = content.get("schema_version") if isinstance(content, Mapping) else None
    if isinstance(version, int) and version != SCHEMA_VERSION:
        age = "newer" if version > SCHEMA_VERSION else "older"
        raise ValueError(f"has the {age} schema version {version}, this is {SCHEMA_VERSION}")
    reasons = violations("speed", content)
    if reasons:
        raise ValueError(reasons[0])
    measured_at = datetime.fromisoformat(content["measured_at"])
    if measured_at.tzinfo is None:
        raise ValueError("measured_at: has no time zone")
    uses = Counter(entry["name"] for entry in content["benchmarks"])
    if twice := [name for name, count in uses.items() if count > 1]:
        raise ValueError(f"has two benchmarks named {twice[0]!r}")
    machine = content["machine"]
    return SuiteRun(
        measured_at,
        content["commit"],
        content["dirty"],
        Machine(**{**machine, "gpus": tuple(machine["gpus"])}),
        tuple(
            Timing(**{**entry, "ratios": tuple(map(float, entry["ratios"]))})
            for entry in content["benchmarks"]
        ),
    )


def read_history(path: Path) -> tuple[list[SuiteRun], list[str]]:
    """The runs of a history, the oldest first, and a clause for each line that cannot be used.

    A file that does not exist has no runs.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return [], []
    except OSError as error:
        return [], [error.strerror or "cannot be opened"]
    runs, reasons = [], []
    for number, line in enumerate(content.split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            runs.append(suite_run(_parsed(line)))
        except ValueError as error:
            reasons.append(f"line {number}: {error}")
    return sorted(runs, key=lambda run: run.measured_at), reasons


def append_run(path: Path, run: SuiteRun) -> None:
    """Add a line, whole or not at all; a line that a kill cut off before it stays by itself.

    Raises:
        OSError: there was no room or no permission, and the file is as before.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    stored = path.read_bytes() if path.exists() else b""
    before = "\n" if stored and not stored.endswith(b"\n") else ""
    append_whole(path, (before + run.as_line()).encode())


def _parsed(line: bytes) -> Any:
    try:
        return json.loads(line.decode(), parse_constant=_refuse_constant)
    except UnicodeDecodeError as error:
        raise ValueError("is not UTF-8 text") from error
    except json.JSONDecodeError as error:
        raise ValueError(f"is not JSON, perhaps cut off: {error}") from error
    except RecursionError as error:
        raise ValueError("is nested too deeply") from error


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"holds {name}, which is not JSON")
