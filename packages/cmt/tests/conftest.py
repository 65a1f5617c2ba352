"""What the tests of CMT share: generated scenes, small networks, a CPU Fabric, and runs below a temporary folder."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning_fabric import Fabric

from tenfold.cmt.config import (
    NO_AUGMENTATION,
    AugmentConfig,
    DataConfig,
    HeadConfig,
    Modality,
    NetworkConfig,
    TrainConfig,
)
from tenfold.cmt.dataset import TestSamples, TrainingSamples
from tenfold.cmt.detector import Cmt
from tenfold.cmt.nuscenes_index import NuScenesIndex, load_index
from tenfold.cmt.procedural_scenes import SceneConfig, generate_scenes
from tenfold.cmt.profiles import QUICK_DATA, SMALL, SMOKE_TRAIN
from tenfold.cmt.sensor_conditions import CONDITIONS
from tenfold.cmt.suite_runs import launch_fabric
from tenfold.shared.accelerator import AcceleratorConfig
from tenfold.shared.runs import Run, RunKey

SCENES = SceneConfig(train_scenes=2, keyframes=2, sweeps=1, lead_sweeps=1, azimuths=90)
"""Four keyframes, made in a second."""
TINY = replace(SMALL, head=replace(SMALL.head, hidden=32, heads=2, feedforward=64, queries=36))


def tiny_network(modality: Modality = "fusion", **head: Any) -> NetworkConfig:
    """A network of width 32 for generated scenes; changes go to its head."""
    shape: HeadConfig = replace(TINY.head, **head)
    return replace(TINY, modality=modality, head=shape)


def small_recipe(**changes: Any) -> TrainConfig:
    """Six updates of two samples; changes go to the recipe."""
    return replace(SMOKE_TRAIN, **changes)


@pytest.fixture(scope="session")
def cpu() -> Fabric:
    torch.set_num_threads(1)
    return launch_fabric(AcceleratorConfig(device="cpu"))


@pytest.fixture(scope="session")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Root of :data:`SCENES`."""
    return generate_scenes(SCENES, tmp_path_factory.mktemp("scenes"))


@pytest.fixture(scope="session")
def index(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> NuScenesIndex:
    """Keyframes of the training split, which the test split repeats."""
    return load_index(scenes, SCENES.version, SCENES.train_split, tmp_path_factory.mktemp("index"), 2)


@pytest.fixture(scope="session")
def test_index(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> NuScenesIndex:
    """The same keyframes as the test split."""
    return load_index(scenes, SCENES.version, SCENES.test_split, tmp_path_factory.mktemp("index"), 2)


@pytest.fixture(scope="session")
def make_samples(index: NuScenesIndex) -> Callable[..., TrainingSamples]:
    """Training samples of the scenes for a network."""

    def make(
        network: NetworkConfig | None = None,
        augment: AugmentConfig = NO_AUGMENTATION,
        seed: int = 0,
        data: DataConfig = QUICK_DATA,
        database: Any = None,
        fade_step: int = 0,
    ) -> TrainingSamples:
        return TrainingSamples(
            index.root, index, network or tiny_network(), data, augment, seed, database, fade_step
        )

    return make


@pytest.fixture(scope="session")
def make_test_samples(test_index: NuScenesIndex) -> Callable[..., TestSamples]:
    """Test samples of the scenes for a network under a condition."""

    def make(
        network: NetworkConfig | None = None, condition: str = "both", data: DataConfig = QUICK_DATA
    ) -> TestSamples:
        return TestSamples(
            test_index.root, test_index, network or tiny_network(), data, CONDITIONS[condition]
        )

    return make


@pytest.fixture(scope="session")
def make_network() -> Callable[..., NetworkConfig]:
    """:func:`tiny_network`, for files that cannot import it."""
    return tiny_network


@pytest.fixture(scope="session")
def make_detector() -> Callable[..., Cmt]:
    """A seeded detector of :func:`tiny_network`."""

    def make(modality: Modality = "fusion", seed: int = 0, **head: Any) -> Cmt:
        torch.manual_seed(seed)
        return Cmt(tiny_network(modality, **head))

    return make


@pytest.fixture(scope="session")
def make_recipe() -> Callable[..., TrainConfig]:
    """:func:`small_recipe`, for files that cannot import it."""
    return small_recipe


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., Run]:
    """Makes a run below the test's folder, by name; a checkpoint is due whenever one can be made."""

    def make(name: str, checkpoint_seconds: float = 0.0) -> Run:
        key = RunKey("cmt", "test", name, 0, "procedural scenes", "test", "test")
        return Run(tmp_path, key, {}, "update", checkpoint_seconds=checkpoint_seconds)

    return make
