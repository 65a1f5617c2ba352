"""What the tests of New Paper share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tenfold.new_paper.data import ImageSet, load_digits_split
from tenfold.shared.runs import Run, RunKey


@pytest.fixture(scope="session")
def digits() -> tuple[ImageSet, ImageSet]:
    """Training and test images."""
    return load_digits_split()


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[[str], Run]:
    """Makes a run below the test's folder, by name; a checkpoint is due at every epoch."""

    def make(name: str) -> Run:
        key = RunKey("new-paper", "test", name, 0, "digits", "test", "test")
        return Run(tmp_path, key, {}, checkpoint_seconds=0.0)

    return make
