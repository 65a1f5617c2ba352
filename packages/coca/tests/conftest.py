"""What the tests of CoCa share: images, a CPU Fabric, learners, and runs below a temporary folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning_fabric import Fabric

from tenfold.coca.augmentation import Preprocessing
from tenfold.coca.config import LearnerConfig, NetworkConfig, StreamConfig
from tenfold.coca.image_sets import ImageSet, TrainTest
from tenfold.coca.learner import Learner, launch_fabric
from tenfold.coca.streams import Stream, make_stream
from tenfold.shared.accelerator import AcceleratorConfig
from tenfold.shared.runs import Run, RunKey


def random_images(
    count: int, num_classes: int = 4, shape: tuple[int, int, int] = (3, 8, 8), seed: int = 0
) -> ImageSet:
    """Noise with labels; each class has a brightness of its own, so that there is something to learn."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % num_classes
    images = torch.randint(0, 100, (count, *shape), generator=generator)
    return ImageSet((images + labels[:, None, None, None] * 150 // num_classes).to(torch.uint8), labels)


@pytest.fixture(scope="session")
def make_images() -> Callable[..., ImageSet]:
    return random_images


@pytest.fixture(scope="session")
def small_sets() -> TrainTest:
    return TrainTest(random_images(96), random_images(32, seed=1), {})


@pytest.fixture(scope="session")
def digits() -> Stream:
    return make_stream(StreamConfig("s-digits", batch_size=10, epochs=1))


@pytest.fixture(scope="session")
def cpu() -> Fabric:
    return launch_fabric(AcceleratorConfig(device="cpu"))


@pytest.fixture
def make_learner(cpu: Fabric) -> Callable[..., Learner]:
    """Makes a learner of four classes of coloured 8x8 images with a small network, by method and settings."""

    def make(method: str = "CoCa", network: str = "mlp", seed: int = 0, **settings: Any) -> Learner:
        memory_size = settings.pop("memory_size", 0 if method in ("SGD", "JOINT") else 12)
        preprocessing = settings.pop("preprocessing", Preprocessing(255.0, (0.4,), (0.3,), 1, True))
        compiled = settings.pop("compile_network", False)
        config = LearnerConfig(method, memory_size=memory_size, memory_batch_size=6, **settings)  # type: ignore[arg-type]
        sizes = NetworkConfig(network, width=4, hidden=16, projection_dim=8)  # type: ignore[arg-type]
        return Learner(config, 4, (3, 8, 8), preprocessing, sizes, seed, cpu, compiled)

    return make


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., Run]:
    """Makes a run below the test's folder, by name; a checkpoint is due whenever one can be made."""

    def make(name: str, checkpoint_seconds: float = 0.0) -> Run:
        key = RunKey("coca", "test", name, 0, "random", "test", "test")
        return Run(tmp_path, key, {}, "step", checkpoint_seconds=checkpoint_seconds)

    return make
