"""What the tests of RefT share: a tiny network, digits, and runs below a temporary folder."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tenfold.reft.batches import Batch, Supports
from tenfold.reft.composed_digits import ComposeConfig
from tenfold.reft.config import LossConfig, NetworkConfig, ReferenceConfig, TrainConfig
from tenfold.reft.model import RefT
from tenfold.reft.profiles import DIGITS, REFERENCE_STAGE, SMALL
from tenfold.reft.sources import Source
from tenfold.shared.runs import Run, RunKey

NETWORK = replace(SMALL, hidden_dim=32, num_heads=2, decoder_layers=2)
LOSSES = LossConfig(num_points=64)
COMPOSED = ComposeConfig(train_images=24, test_images=12, shots=(1, 2), seeds=(0, 1))


def small_recipe(**changes: Any) -> TrainConfig:
    """Six updates of four images; changes go to the recipe."""
    return replace(REFERENCE_STAGE, **{"steps": 6, "batch_size": 4, "log_every": 2, **changes})


def small_network(
    references: ReferenceConfig | None = None, num_classes: int = 7, seed: int = 0, **shape: Any
) -> RefT:
    """A network of width 32 with frozen batch norms; changes go to its shape."""
    torch.manual_seed(seed)
    network: NetworkConfig = replace(NETWORK, **shape)
    return RefT(network, references or ReferenceConfig(), num_classes).freeze_batch_norm()


def random_batch(
    images: int = 2, instances: int = 2, size: int = 64, classes: int = 7, seed: int = 0
) -> Batch:
    """Noise with square instances; the last image has one fewer."""
    generator = torch.Generator().manual_seed(seed)
    masks = torch.zeros(images, instances, size, size, dtype=torch.bool)
    for image in range(images):
        for place in range(instances):
            top, left = torch.randint(size // 2, (2,), generator=generator).tolist()
            masks[image, place, top : top + size // 3, left : left + size // 3] = True
    labels = torch.randint(classes, (images, instances), generator=generator)
    masks[-1, -1], labels[-1, -1] = False, -1
    pictures = torch.randn(images, 3, size, size, generator=generator)
    return Batch(pictures, masks, labels, tuple(range(1, images + 1)))


def random_supports(labels: tuple[int, ...] = (0, 1, 2), size: int = 48, seed: int = 1) -> Supports:
    """Noise with a square instance each."""
    generator = torch.Generator().manual_seed(seed)
    masks = torch.zeros(len(labels), size, size, dtype=torch.bool)
    masks[:, 8:32, 12:40] = True
    return Supports(torch.randn(len(labels), 3, size, size, generator=generator), masks, torch.tensor(labels))


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Source:
    """Composed digits: 24 training and 12 test images, one and two shots of seeds 0 and 1."""
    return Source(DIGITS, Path("data"), tmp_path_factory.mktemp("digits"), COMPOSED)


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., Run]:
    """Makes a run below the test's folder, by name; a checkpoint is due whenever one can be made."""

    def make(name: str, checkpoint_seconds: float = 0.0) -> Run:
        key = RunKey("reft", "test", name, 0, "composed digits", "test", "test")
        return Run(tmp_path, key, {}, "update", checkpoint_seconds=checkpoint_seconds)

    return make


@pytest.fixture(scope="session")
def make_network() -> Callable[..., RefT]:
    """:func:`small_network`, for files that cannot import it."""
    return small_network


@pytest.fixture(scope="session")
def make_batch() -> Callable[..., Batch]:
    """:func:`random_batch`, for files that cannot import it."""
    return random_batch


@pytest.fixture(scope="session")
def make_supports() -> Callable[..., Supports]:
    """:func:`random_supports`, for files that cannot import it."""
    return random_supports


@pytest.fixture(scope="session")
def make_recipe() -> Callable[..., TrainConfig]:
    """:func:`small_recipe`, for files that cannot import it."""
    return small_recipe
