"""What the tests of PMT-IQA share: small image sets, a CPU Fabric, and runs below a temporary folder."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning_fabric import Fabric

from tenfold.pmt_iqa.config import JudgeConfig, ModelConfig, RunConfig, TrainConfig
from tenfold.pmt_iqa.datasets import ImageSet, ScoreScale
from tenfold.pmt_iqa.experiments import launch_fabric
from tenfold.pmt_iqa.pixels import PixelStore
from tenfold.shared.accelerator import AcceleratorConfig
from tenfold.shared.runs import Run, RunKey


def noisy_images(count: int = 24, size: int = 40, seed: int = 0) -> ImageSet:
    """Pictures of slightly different sizes with more and more noise, so that there is something to learn."""
    rng = np.random.default_rng(seed)
    scores = (np.arange(count) % 12) * 0.8 + 0.3
    pictures = []
    for number, score in enumerate(scores):
        clean = np.full((size + number % 3, size, 3), 60 + 10 * (number % 7), dtype=np.float64)
        noise = rng.normal(0, 1 + 6 * (10 - score), clean.shape)
        pictures.append(np.clip(clean + noise, 0, 255).astype(np.uint8))
    names = tuple(f"image-{number}" for number in range(count))
    tensor = torch.tensor(scores, dtype=torch.float32)
    return ImageSet(
        "noisy", names, PixelStore.of(pictures), tensor, names, "proxy", ScoreScale(0.0, 10.0, True)
    )


def small_config(**changes: Any) -> RunConfig:
    """A small network on crops of 32 pixels for three epochs; changes go to the training's settings."""
    settings = {
        "epochs": 3,
        "images_per_batch": 6,
        "crops_per_image": 2,
        "crop_size": 32,
        "lr": 3e-3,
        "lr_schedule": "one-cycle",
        "reset_optimizer_each_epoch": False,
        "start_at_mean": True,
        **changes,
    }
    model = ModelConfig(backbone="small", pretrained=False)
    return RunConfig(
        "noisy", 0.75, model=model, train=TrainConfig(**settings), judge=JudgeConfig(4, "corners")
    )


@pytest.fixture(scope="session")
def images() -> ImageSet:
    return noisy_images()


@pytest.fixture(scope="session")
def make_config() -> Callable[..., RunConfig]:
    return small_config


@pytest.fixture(scope="session")
def cpu() -> Fabric:
    return launch_fabric(AcceleratorConfig(device="cpu"))


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., Run]:
    """Makes a run below the test's folder, by name; a checkpoint is due whenever one can be made."""

    def make(name: str, checkpoint_seconds: float = 0.0) -> Run:
        key = RunKey("pmt-iqa", "test", name, 0, "noisy", "test", "test")
        return Run(tmp_path, key, {}, "epoch", checkpoint_seconds=checkpoint_seconds)

    return make


@pytest.fixture
def with_model(make_config: Callable[..., RunConfig]) -> Callable[..., RunConfig]:
    """The small configuration with another network."""

    def change(**changes: Any) -> RunConfig:
        config = make_config(
            schedule="progressive" if changes.get("kind", "multitask") == "multitask" else "regression"
        )
        return replace(config, model=replace(config.model, **changes))

    return change
