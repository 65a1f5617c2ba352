"""Runs kept apart by where they were made, and what can be said of each profile.

A :class:`RunSet` holds the runs of one profile from one source (the local ``runs/`` or one hardware folder of
the reference results). Claims are judged and rows joined per run set, so that the same seed run on two
machines is never counted twice.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import Enum
from functools import cached_property
from typing import Any

from tenfold.benchmarks.formatting import TIMES, plural
from tenfold.benchmarks.records import LOCAL, Paper, RunRecord
from tenfold.shared.comparison import Verdict, judge

QUICK, GPU, SMOKE = "quick", "h100", "smoke"


class Status(Enum):
    """What can be said of a profile. Ordered from the one that a summary must mention first."""

    FAILS = ("claim fails", "bad")
    CRASHED = ("runs failed", "bad")
    INCOMPLETE = ("incomplete", "warn")
    HOLDS = ("claims hold", "good")
    MEASURED = ("measured, no claim", "info")
    NOT_RUN = ("not run", "none")
    NOT_BUILT = ("not built yet", "none")

    def __init__(self, label: str, tone: str) -> None:
        self.label = label
        self.tone = tone


@dataclass(frozen=True)
class RunSet:
    """The runs of one profile from one source, with the verdicts of the profile's claims on them."""

    profile: str
    source: str
    records: tuple[RunRecord, ...]
    verdicts: tuple[Verdict, ...]

    @cached_property
    def results(self) -> list[Mapping[str, Any]]:
        """The records' contents; the finished ones are what is counted."""
        return [record.content for record in self.records]

    @property
    def finished(self) -> list[RunRecord]:
        return [record for record in self.records if record.finished]

    @property
    def failed(self) -> int:
        return len(self.records) - len(self.finished)

    @property
    def seeds(self) -> int:
        return len({record.content["seed"] for record in self.finished})

    @property
    def newest(self) -> datetime:
        return max(record.started_at for record in self.records)

    @property
    def hardware(self) -> str:
        """What the runs themselves say they ran on."""
        return ", ".join(sorted({hardware_name(record.content["environment"]) for record in self.records}))

    @property
    def held(self) -> int:
        return sum(verdict.holds is True for verdict in self.verdicts)

    @property
    def is_local(self) -> bool:
        return self.source == LOCAL

    @property
    def status(self) -> Status:
        """Green only if every claim of the profile was judged on finished runs and holds."""
        if not self.finished:
            return Status.CRASHED
        if any(verdict.holds is False for verdict in self.verdicts):
            return Status.FAILS
        if any(verdict.holds is None for verdict in self.verdicts):
            return Status.INCOMPLETE
        return Status.HOLDS if self.verdicts else Status.MEASURED

    @property
    def repeated(self) -> list[str]:
        """Results that several runs of one seed share: they are pooled although they are not seeds."""
        keys = ("dataset", "setting", "method", "seed")
        counts = Counter(tuple(record.content[key] for key in keys) for record in self.finished)
        return [
            f"{method}, {dataset}, {setting}, seed {seed}"
            for (dataset, setting, method, seed), count in counts.items()
            if count > 1
        ]


def run_sets(paper: Paper, records: Iterable[RunRecord]) -> list[RunSet]:
    """Records grouped by (profile, source): quick first, the GPU profile, the paper's own, smoke last."""
    groups: dict[tuple[str, str], list[RunRecord]] = {}
    for record in records:
        groups.setdefault((record.profile, record.source), []).append(record)
    order = {QUICK: 0, GPU: 1, SMOKE: 3}
    keys = sorted(groups, key=lambda key: (order.get(key[0], 2), key[0], key[1] != LOCAL, key[1]))
    sets = []
    for profile, source in keys:
        found = tuple(sorted(groups[profile, source], key=_run_order))
        contents = [record.content for record in found]
        claims = paper.reported.claims if paper.reported else ()
        verdicts = tuple(judge(claim, contents) for claim in claims if claim.profile == profile)
        sets.append(RunSet(profile, source, found, verdicts))
    return sets


def hardware_name(environment: Mapping[str, Any]) -> str:
    """The GPUs (as ``2 x NVIDIA H100``), or the processor where there is none."""
    hardware = environment["hardware"]
    counts = Counter(hardware["gpus"])
    if counts:
        return ", ".join(name if count == 1 else f"{count} {TIMES} {name}" for name, count in counts.items())
    return f"{hardware['cpu']}, {plural(hardware['cpu_cores'], 'core')}"


def _run_order(record: RunRecord) -> tuple[str, str, str, str, int]:
    content = record.content
    return content["dataset"], content["setting"], content["method"], content["name"], content["seed"]
