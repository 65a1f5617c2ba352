"""What the tests of GFKD share: MUTAG, a small teacher trained on it, and runs below a temporary folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from lightning_fabric import Fabric

from tenfold.gfkd.config import TrainingConfig
from tenfold.gfkd.experiments import Split, load_split
from tenfold.gfkd.models import GraphClassifier, build_model
from tenfold.gfkd.training import fit, labels_and_loss
from tenfold.shared.runs import Run, RunKey


@pytest.fixture(scope="session")
def mutag() -> Split:
    return load_split("mutag", 29, None)


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., Run]:
    """Makes a run below the test's folder, by name; a checkpoint is due at every step."""

    def make(name: str, checkpoint_seconds: float = 0.0, config: Any = None) -> Run:
        key = RunKey("gfkd", "test", name, 0, "mutag", "test", "test")
        return Run(tmp_path, key, config or {}, checkpoint_seconds=checkpoint_seconds)

    return make


@pytest.fixture(scope="session")
def teacher(mutag: Split, cpu: Fabric, tmp_path_factory: pytest.TempPathFactory) -> GraphClassifier:
    """GCN-3-32 after forty epochs on MUTAG, in eval mode."""
    targets, loss = labels_and_loss(mutag.train)
    key = RunKey("gfkd", "test", "teacher", 0, "mutag", "test", "Teacher")
    with Run(tmp_path_factory.mktemp("teacher"), key, {}) as run:
        config = TrainingConfig(epochs=40, shuffle=True)
        network, _ = fit(
            lambda: build_model("gcn3_32", 7, 2), mutag.train, targets, loss, mutag.test, config, 0, cpu, run
        )
    return network.eval()
