"""How every suite times: on one thread, ours and the reference in turn, in one process; and what is stored of it."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from tenfold.shared.runs import environment

Work = Callable[[], Any]


@dataclass(frozen=True)
class Measured:
    """Ratios of one benchmark, and the seconds of our side, one for each round."""

    ratios: list[float]
    """The reference's time by ours: above 1, ours is faster."""
    seconds: list[float]
    """Of one pass."""

    @property
    def median(self) -> float:
        return statistics.median(self.ratios)


def seconds_per_pass(work: Work, passes: int = 1) -> float:
    """Mean over some passes in a row; what was queued on a GPU is waited for before and after."""
    wait = torch.cuda.synchronize if torch.cuda.is_initialized() else lambda: None
    wait()
    started = time.perf_counter()
    for _ in range(passes):
        work()
    wait()
    return (time.perf_counter() - started) / passes


@pytest.fixture
def measure_ratio(benchmark: BenchmarkFixture) -> Callable[..., Measured]:
    """Times two ways of doing the same and stores their ratios under the test's name."""

    def measure(
        ours: Work,
        theirs: Work,
        *,
        reference: str,
        unit: str,
        peer: str | None = None,
        rounds: int = 5,
        passes: int = 1,
        reference_passes: int | None = None,
        best_of: int = 1,
        **numbers: float,
    ) -> Measured:
        """Time both in turn, after each ran once.

        Args:
            ours: what the package does.
            theirs: the reference.
            reference: what it is, in words.
            unit: what was done in the time that is compared.
            peer: name of the reference on the package index; None where it is the usual way of writing it.
            rounds: how many ratios.
            passes: of ours for each ratio.
            reference_passes: of the reference, by default as many.
            best_of: how often each side is timed for a ratio; the fastest counts.
            numbers: stored beside the ratios.
        """
        ours()
        theirs()
        ratios, seconds = [], []
        for _ in range(rounds):
            their_seconds = min(seconds_per_pass(theirs, reference_passes or passes) for _ in range(best_of))
            seconds.append(min(seconds_per_pass(ours, passes) for _ in range(best_of)))
            ratios.append(their_seconds / seconds[-1])
        benchmark.pedantic(ours, rounds=1, iterations=1)  # the plugin stores nothing of a test without a time
        benchmark.extra_info.update(ratio=ratios, reference=reference, peer=peer, unit=unit, **numbers)
        return Measured(ratios, seconds)

    return measure


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    torch.set_num_threads(1)


def pytest_benchmark_update_machine_info(machine_info: dict[str, Any]) -> None:
    """Replace what the plugin collected by the provenance that run records have."""
    described = environment("benchmarks")
    machine_info.clear()
    machine_info.update(
        python=described["python"],
        system=described["platform"],
        torch=torch.__version__,
        threads=torch.get_num_threads(),
        **described["hardware"],
    )


def pytest_benchmark_update_commit_info(commit_info: dict[str, Any]) -> None:
    """Keep the commit, drop the name of the folder; dirty as run records have it."""
    commit_info.pop("project", None)
    commit_info["dirty"] = environment("benchmarks")["git"]["dirty"]
