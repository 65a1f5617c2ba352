"""Speed ratios as they are shown: the newest run of every suite on every hardware, beside the runs before it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from tenfold.benchmarks.records import PAPER_ID, Problem, hardware_folders
from tenfold.benchmarks.speed_history import SuiteRun, Timing, read_history

REGRESSION = 0.2
"""A median that is lower than the stored one by a larger share is pointed out."""


@dataclass(frozen=True)
class EarlierRatio:
    """The same benchmark in an earlier run on the same processor."""

    median: float
    measured_at: datetime


@dataclass(frozen=True)
class SpeedRatio:
    """How one benchmark compares with its reference, both timed in one process.

    ``ratios`` says how many times as fast as the reference we are (above 1 is faster), one per repetition.
    """

    paper: str
    hardware: str
    processor: str
    name: str
    """Of the test, with its parameters."""
    reference: str
    peer: str | None
    """The reference's name on the package index; None where it is the usual way of writing it."""
    unit: str
    ratios: tuple[float, ...]
    median: float
    measured_at: datetime
    earlier: tuple[EarlierRatio, ...]
    """The newest first."""
    other_processor: str | None
    """Where it was measured before, if that was never on this processor."""

    @property
    def benchmark(self) -> str:
        """``test_step_of_a[64-small]`` as "step of a (64, small)"."""
        title, _, parameters = self.name.removeprefix("test_").removesuffix("]").partition("[")
        return title.replace("_", " ") + (f" ({parameters.replace('-', ', ')})" if parameters else "")

    @property
    def verdict(self) -> str:
        """Faster or slower only where every repetition says so."""
        if min(self.ratios) > 1:
            return "faster"
        return "slower" if max(self.ratios) < 1 else "no clear difference"

    @property
    def change(self) -> float | None:
        """By which share the median is above (below: negative) that of the run before."""
        return self.median / self.earlier[0].median - 1 if self.earlier else None

    @property
    def is_regression(self) -> bool:
        return self.change is not None and self.change < -REGRESSION


def read_speed(results: Path) -> tuple[list[SpeedRatio], list[Problem]]:
    """The newest run of every ``<hardware>/speed/<paper>.jsonl`` under the reference results."""
    ratios: list[SpeedRatio] = []
    problems: list[Problem] = []
    for hardware, folder in hardware_folders(results):
        for path in sorted(folder.glob("speed/*.json*")):
            paper = path.stem if PAPER_ID.fullmatch(path.stem) else None
            runs: list[SuiteRun] = []
            if paper is None:
                reasons = ["is not named after a paper"]
            elif path.suffix != ".jsonl":
                reasons = ["is of an older release and not read: remove it and run make bench"]
            else:
                runs, reasons = read_history(path)
                if runs:
                    ratios += ratios_of(paper, hardware, runs[-1], runs[:-1])
            shown = f"{results.name}/{path.relative_to(results).as_posix()}"
            problems += [Problem(shown, reason, paper) for reason in reasons]
    return ratios, problems


def ratios_of(paper: str, hardware: str, run: SuiteRun, before: Sequence[SuiteRun]) -> list[SpeedRatio]:
    """Every benchmark of a run, beside the runs before it, the oldest of which comes first."""
    return [_ratio(paper, hardware, run, timing, before) for timing in run.benchmarks]


def _ratio(
    paper: str, hardware: str, run: SuiteRun, timing: Timing, before: Sequence[SuiteRun]
) -> SpeedRatio:
    stored = [
        (other, found) for other in reversed(before) if (found := other.timing(timing.name)) is not None
    ]
    earlier = tuple(
        EarlierRatio(found.median, other.measured_at)
        for other, found in stored
        if other.machine.has_processor_of(run.machine)
    )
    return SpeedRatio(
        paper,
        hardware,
        run.machine.processor,
        timing.name,
        timing.reference,
        timing.peer,
        timing.unit,
        timing.ratios,
        timing.median,
        run.measured_at,
        earlier,
        stored[0][0].machine.processor if stored and not earlier else None,
    )
