"""What the tests of Doorping share: digits, small networks with and without a backdoor, and runs below tmp_path."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tenfold.doorping.image_sets import ImageSet, load_image_set
from tenfold.doorping.networks import Network, build_model, seeded
from tenfold.doorping.triggers import patch_mask, stamp
from tenfold.shared.runs import Run, RunKey

TARGET = 0


@pytest.fixture(scope="session")
def digits() -> ImageSet:
    return load_image_set("digits")


def small_network(seed: int = 0) -> Network:
    """A ConvNet of width 16 for digits."""
    with seeded(seed):
        return build_model("ConvNet", 1, 10, width=16, depth=2, image_size=8, hidden=32, first_padding=1)


@pytest.fixture(scope="session")
def white_patch(digits: ImageSet) -> tuple[Tensor, Tensor]:
    """The mask and the white trigger of two pixels on digits."""
    mask = patch_mask(1, digits.image_size, 2)
    _, white = digits.black_and_white()
    return mask, white.expand(1, 1, 8, 8) * mask


def _train(digits: ImageSet, poison: tuple[Tensor, Tensor] | None, seed: int) -> Network:
    """A network on all digits, one tenth of which carries a trigger and the label of the target."""
    network = small_network(seed)
    images, labels = digits.normalise(digits.train_images), digits.train_labels.clone()
    if poison is not None:
        chosen = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))[
            : len(labels) // 10
        ]
        images[chosen] = stamp(images[chosen], *poison)
        labels[chosen] = TARGET
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
    for epoch in range(30):
        order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(1000 * seed + epoch))
        for batch in order.split(64):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(network(images[batch]), labels[batch]).backward()
            optimizer.step()
    return network.eval()


@pytest.fixture(scope="session")
def clean_victim(digits: ImageSet) -> Network:
    """A network without a backdoor; copy it before changing it."""
    return _train(digits, None, 0)


@pytest.fixture(scope="session")
def poisoned_victim(digits: ImageSet, white_patch: tuple[Tensor, Tensor]) -> Network:
    """A network that takes every digit with the white patch for a 0; copy it before changing it."""
    return _train(digits, white_patch, 0)


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., Run]:
    """Makes a run below the test's folder, by name; a checkpoint is due whenever one can be made."""

    def make(name: str, checkpoint_seconds: float = 0.0) -> Run:
        key = RunKey("doorping", "test", name, 0, "digits", "test", "test")
        return Run(tmp_path, key, {}, "iteration", checkpoint_seconds=checkpoint_seconds)

    return make
