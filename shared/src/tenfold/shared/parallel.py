"""Independent jobs in several processes."""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from types import TracebackType
from typing import Self, TypeVar

import torch

from tenfold.shared.logging import set_quiet

Job = TypeVar("Job")


class JobPool:
    """Processes that do jobs; with one worker, this process does them itself.

    Workers compute on one thread each. That keeps small networks fast on a busy machine, and makes their results
    repeatable: matrix products that are split over threads differ in their last bits from run to run.

    Args:
        workers: number of processes.
        quiet: whether the workers keep silent.
        preload: module that every worker needs, imported once for all.
    """

    def __init__(self, workers: int, quiet: bool, preload: str) -> None:
        self._executor: ProcessPoolExecutor | None = None
        if workers > 1:
            # A fork server imports torch once and has no threads of its own that a fork could break.
            context = multiprocessing.get_context("forkserver")
            context.set_forkserver_preload([preload])
            self._executor = ProcessPoolExecutor(workers, context, initializer=_begin, initargs=(quiet,))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Wait for the workers; after an exception stop them at once."""
        if self._executor is None:
            return
        self._executor.shutdown(wait=error is None, cancel_futures=True)
        if error is not None:
            for process in multiprocessing.active_children():
                process.terminate()

    def run(self, work: Callable[[Job], None], jobs: Sequence[Job]) -> Iterator[Job]:
        """Do every job and yield it when it is done.

        Args:
            work: a picklable function.
            jobs: picklable descriptions, the longest first.

        Raises:
            Exception: the first exception of a job.
        """
        if self._executor is None or len(jobs) == 1:
            for job in jobs:
                work(job)
                yield job
            return
        futures = {self._executor.submit(work, job): job for job in jobs}
        for future in as_completed(futures):
            future.result()
            yield futures[future]


def available_cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _begin(quiet: bool) -> None:
    torch.set_num_threads(1)
    set_quiet(quiet)
    threading.Thread(target=_end_with_the_suite, daemon=True).start()


def _end_with_the_suite() -> None:
    """A worker must not outlive the process that began the suite: it would go on writing records.

    The fork server, which is the worker's parent to the system, lives as long as its workers do.
    """
    suite = multiprocessing.parent_process()
    if suite is not None:
        suite.join()
        os._exit(1)
