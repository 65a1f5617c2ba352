"""What the tests of EMO share: a tiny configuration, and runs below a temporary folder."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tenfold.emo.config import RunConfig
from tenfold.emo.profiles import PROFILES
from tenfold.shared.runs import Run, RunKey


def small_run(model: dict[str, Any] | None = None, **train: Any) -> RunConfig:
    """Three epochs of seven steps on digits; changes go to the recipe."""
    base = PROFILES["smoke"].base
    settings = {"epochs": 3, "warmup_epochs": 0.5, **train}
    return replace(base, model=replace(base.model, **(model or {})), train=replace(base.train, **settings))


@pytest.fixture(scope="session")
def make_config() -> Callable[..., RunConfig]:
    return small_run


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., Run]:
    """Makes a run below the test's folder, by name; a checkpoint is due whenever one can be made."""

    def make(name: str, checkpoint_seconds: float = 0.0) -> Run:
        key = RunKey("emo", "test", name, 0, "digits", "test", "test")
        return Run(tmp_path, key, {}, "epoch", checkpoint_seconds=checkpoint_seconds)

    return make
