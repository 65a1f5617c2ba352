"""What the tests of TinyMIM share: tiny settings, and runs below a temporary folder."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning_fabric import Fabric

from tenfold.shared.runs import Run, RunKey
from tenfold.tinymim.config import FinetuneConfig, NetworkConfig, PretrainConfig
from tenfold.tinymim.image_sets import ImagesInMemory, Split
from tenfold.tinymim.mae import DecoderConfig
from tenfold.tinymim.profiles import PROFILES
from tenfold.tinymim.suites import Pretraining
from tenfold.tinymim.targets import TargetConfig, masked_autoencoding
from tenfold.tinymim.teachers import Teacher
from tenfold.tinymim.training import Images, load_images
from tenfold.tinymim.vit import VisionTransformer, ViTConfig

STUDENT = NetworkConfig(patch_size=6, embed_dim=32, depth=3, num_heads=4)
TEACHER = ViTConfig(24, 6, 48, 2, 8)
SMALL_DECODER = DecoderConfig(32, 1, 4)
MAE = masked_autoencoding(SMALL_DECODER)


def small_pretraining(target: TargetConfig | None = None, **train: Any) -> Pretraining:
    """A student of width 32 that sees digits of 24 pixels in two epochs of four steps; changes go to the recipe."""
    target = target or TargetConfig()
    settings = {"epochs": 2, "batch_size": 96, "base_lr": 5e-3, "warmup_epochs": 0.2, **train}
    teacher = None if target.family == "none" else "teacher"
    return Pretraining(STUDENT, target, PretrainConfig(**settings), teacher)


def small_finetuning(**train: Any) -> FinetuneConfig:
    """Two epochs of three steps with 100 labels; changes go to the recipe."""
    settings = {
        "epochs": 2,
        "batch_size": 32,
        "base_lr": 2e-2,
        "warmup_epochs": 0.2,
        "layer_decay": 0.75,
        "drop_path": 0.0,
        "mixup": 0.0,
        "cutmix": 0.0,
        **train,
    }
    return FinetuneConfig(**settings)


def random_teacher(shape: ViTConfig = TEACHER) -> Teacher:
    """A teacher that nobody trained, always the same."""
    torch.manual_seed(11)
    return Teacher(VisionTransformer(shape))


def digits(fabric: Fabric) -> Images:
    """Digits at 24 pixels: 384 to pre-train on, 100 of them with labels, 200 to test."""
    found = load_images(PROFILES["smoke"].data, fabric, Path("nowhere"))
    assert found.split is not None
    train, labelled, test = found.split.train, found.split.labelled, found.split.test
    return replace(found, split=Split(first(train, 384), labelled, first(test, 200)))


def first(data: ImagesInMemory, count: int) -> ImagesInMemory:
    """The first images of a set."""
    return replace(data, images=data.images[:count], labels=data.labels[:count])


@pytest.fixture(scope="session")
def make_pretraining() -> Callable[..., Pretraining]:
    return small_pretraining


@pytest.fixture(scope="session")
def make_finetuning() -> Callable[..., FinetuneConfig]:
    return small_finetuning


@pytest.fixture(scope="session")
def make_teacher() -> Callable[..., Teacher]:
    return random_teacher


@pytest.fixture(scope="session")
def images(cpu: Fabric) -> Images:
    return digits(cpu)


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., Run]:
    """Makes a run below the test's folder, by name; a checkpoint is due whenever one can be made."""

    def make(name: str, checkpoint_seconds: float = 0.0) -> Run:
        key = RunKey("tinymim", "test", name, 0, "digits", "test", "test")
        return Run(tmp_path, key, {}, "epoch", checkpoint_seconds=checkpoint_seconds)

    return make
