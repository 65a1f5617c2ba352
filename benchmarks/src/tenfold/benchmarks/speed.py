"""Speed ratios: what ``make bench`` wrote as pytest-benchmark JSON, one file per paper and hardware."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from tenfold.benchmarks.records import PAPER_ID, Problem, hardware_folders, read_json


@dataclass(frozen=True)
class SpeedRatio:
    """How one benchmark compares with its reference, both timed in one process.

    ``ratios`` says how many times as fast as the reference we are (above 1 is faster), one per repetition.
    """

    paper: str
    hardware: str
    benchmark: str
    reference: str
    unit: str
    ratios: tuple[float, ...]
    measured_at: datetime | None

    @property
    def median(self) -> float:
        return statistics.median(self.ratios)


def read_speed(results: Path) -> tuple[list[SpeedRatio], list[Problem]]:
    """Every ``<hardware>/speed/<paper>.json`` under the reference results."""
    ratios: list[SpeedRatio] = []
    problems: list[Problem] = []
    for hardware, folder in hardware_folders(results):
        for path in sorted(folder.glob("speed/*.json")):
            paper = path.stem if PAPER_ID.fullmatch(path.stem) else None
            shown = f"{results.name}/{path.relative_to(results).as_posix()}"
            try:
                if paper is None:
                    raise ValueError("is not named after a paper")
                ratios += _ratios(read_json(path), paper, hardware)
            except ValueError as error:
                problems.append(Problem(shown, str(error), paper))
    return ratios, problems


def _ratios(content: Any, paper: str, hardware: str) -> list[SpeedRatio]:
    if not isinstance(content, Mapping) or not isinstance(content.get("benchmarks"), list):
        raise ValueError("is not the JSON of pytest-benchmark: it has no list 'benchmarks'")
    moment = content.get("datetime")
    measured_at = datetime.fromisoformat(moment) if isinstance(moment, str) else None
    return [_ratio(entry, paper, hardware, measured_at) for entry in content["benchmarks"]]


def _ratio(entry: Any, paper: str, hardware: str, measured_at: datetime | None) -> SpeedRatio:
    name = str(entry.get("name", "?")) if isinstance(entry, Mapping) else "?"
    extra = entry.get("extra_info") if isinstance(entry, Mapping) else None
    if not isinstance(extra, Mapping) or not {"ratio", "reference", "unit"} <= extra.keys():
        raise ValueError(f"benchmark {name!r} lacks one of ratio, reference, unit in its extra_info")
    values = extra["ratio"] if isinstance(extra["ratio"], list) else [extra["ratio"]]
    if not values or not all(_is_positive(value) for value in values):
        raise ValueError(f"benchmark {name!r} has a ratio that is not a positive number")
    return SpeedRatio(
        paper,
        hardware,
        _readable(name),
        str(extra["reference"]),
        str(extra["unit"]),
        tuple(map(float, values)),
        measured_at,
    )


def _readable(name: str) -> str:
    """``test_step_of_a[64-small]`` as "step of a (64, small)"."""
    title, _, parameters = name.removeprefix("test_").removesuffix("]").partition("[")
    return title.replace("_", " ") + (f" ({parameters.replace('-', ', ')})" if parameters else "")


def _is_positive(value: object) -> bool:
    return (
        isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and value > 0
    )
