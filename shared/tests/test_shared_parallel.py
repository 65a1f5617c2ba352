"""Jobs in several processes."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path

import pytest

from tenfold.shared.parallel import JobPool, available_cores

PRELOAD = "tenfold.shared.seeding"


def write_process(folder: Path, job: int) -> None:
    (folder / str(job)).write_text(str(os.getpid()))


def test_one_worker_is_this_process(tmp_path: Path) -> None:
    with JobPool(1, quiet=True, preload=PRELOAD) as pool:
        assert list(pool.run(partial(write_process, tmp_path), [3, 1, 2])) == [3, 1, 2]
    assert {path.read_text() for path in tmp_path.iterdir()} == {str(os.getpid())}


def test_a_failing_job_ends_the_pool(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), JobPool(1, quiet=True, preload=PRELOAD) as pool:
        list(pool.run(partial(write_process, tmp_path / "absent"), [1]))


def test_several_workers_do_every_job_elsewhere() -> None:
    with JobPool(2, quiet=True, preload=PRELOAD) as pool:
        done = list(pool.run(os.getpgid, [0, 0, 0]))  # any picklable function
    assert done == [0, 0, 0]


def test_there_is_a_core() -> None:
    assert available_cores() >= 1
