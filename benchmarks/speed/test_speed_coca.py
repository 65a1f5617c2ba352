"""One training step of CoCa on images of CIFAR's form, 32 from the stream and 32 for each of two draws from memory.

The reference handles images one by one, as the authors' code does: PIL and torchvision augment every remembered image,
every view is cropped, resized and turned by itself, every item is inserted by itself, and the ensemble uses an inverse.
Without the network, what is compared is torchvision, the named peer; with it, the usual way of writing the step.
Both sides draw the same random numbers and must have the same losses, which is checked before timing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from unittest.mock import patch

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor
from torchvision.transforms import functional

from tenfold.coca import losses
from tenfold.coca.config import LearnerConfig, NetworkConfig
from tenfold.coca.learner import Learner, launch_fabric
from tenfold.coca.memory import ReservoirMemory
from tenfold.coca.methods import coca
from tenfold.coca.streams import PREPROCESSING
from tenfold.shared.accelerator import AcceleratorConfig

BATCH, MEMORY = 32, 200


def augment_one_by_one(learner: Learner, images: Tensor, size: int) -> Tensor:
    """The learner's augmentation with PIL, image by image."""
    preprocessing = learner.preprocessing
    crops = preprocessing.draw(size, learner._crop_rng)
    augmented = []
    for image, (top, left, mirrored) in zip(images, crops, strict=True):
        picture = functional.pad(functional.to_pil_image(image), preprocessing.crop_padding)
        picture = functional.crop(picture, top, left, 32, 32)
        picture = functional.hflip(picture) if mirrored else picture
        augmented.append(
            functional.normalize(functional.to_tensor(picture), preprocessing.mean, preprocessing.std)
        )
    return torch.stack(augmented)


def view_one_by_one(images: Tensor, labels: Tensor, boxes: Tensor, side: int | None = None) -> Tensor:
    """Crop, resize and turn image by image."""
    del side
    views = []
    for image, label, box in zip(images, labels.tolist(), boxes.tolist(), strict=True):
        view = functional.resized_crop(image, *box, list(image.shape[1:]), antialias=False)
        views.append(torch.rot90(view, label % 4, (-1, -2)))
    return torch.stack(views)


def insert_one_by_one(memory: ReservoirMemory, items: dict[str, Tensor], original: Any) -> None:
    """Offer items by themselves."""
    for number in range(len(items["labels"])):
        original(memory, {name: values[number : number + 1] for name, values in items.items()})


def invert(matrix: Tensor, right: Tensor) -> Any:
    """The solution by an explicit inverse."""

    class Solved:
        result = torch.inverse(matrix) @ right

        def __iter__(self) -> Any:
            return iter((self.result, None))

    return Solved()


def make_learner(width: int = 8) -> Learner:
    fabric = launch_fabric(AcceleratorConfig(device="cpu"))
    config = LearnerConfig("CoCa", memory_size=MEMORY)
    network = NetworkConfig("resnet18", width=width)
    learner = Learner(config, 10, (3, 32, 32), PREPROCESSING["cifar-10"], network, 0, fabric)
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (MEMORY, 3, 32, 32), dtype=torch.uint8, generator=generator)
    labels = torch.randint(0, 10, (MEMORY,), generator=generator)
    items = {"images": images, "labels": labels, "step": torch.zeros_like(labels)}
    learner.memory.insert({**items, "logits": torch.randn(MEMORY, 10, generator=generator)})
    return learner


def make_step(learner: Learner) -> Callable[[], float]:
    """A step on random stream images; returns the loss."""
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (BATCH, 3, 32, 32), dtype=torch.uint8, generator=generator)
    labels = torch.randint(0, 10, (BATCH,), generator=generator)

    def step() -> float:
        learner.learn(images, labels)
        return learner.method.read_loss()[0]

    return step


def make_data_work(learner: Learner) -> Callable[[], float]:
    """All of a step but the network: draws, augmentation, views, insertion."""
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (BATCH, 3, 32, 32), dtype=torch.uint8, generator=generator)
    labels = torch.randint(0, 10, (BATCH,), generator=generator)
    logits = torch.randn(BATCH, 10, generator=generator)

    def work() -> float:
        batch = learner.prepare(images, labels)
        together, _ = coca.with_replay(batch, batch.draws[-1])
        views = coca.crop_and_rotate(together, batch.pretext_labels, batch.boxes, 26)
        learner.memory.insert(
            {"images": images, "labels": labels, "logits": logits, "step": torch.zeros_like(labels)}
        )
        return float(views.sum() + sum(draw.images.sum() for draw in batch.draws))

    return work


def one_by_one(work: Callable[[], float], learner: Learner) -> Callable[[], float]:
    """The same with every image by itself."""
    original = ReservoirMemory.insert

    def slow() -> float:
        with (
            patch.object(
                learner, "_augmented", lambda images, size: augment_one_by_one(learner, images, size)
            ),
            patch.object(coca, "crop_and_rotate", view_one_by_one),
            patch.object(
                learner.memory, "insert", lambda items: insert_one_by_one(learner.memory, items, original)
            ),
            patch.object(losses.torch.linalg, "solve_ex", invert),
        ):
            return work()

    return slow


@pytest.mark.parametrize(
    ("what", "steps"), [("data work", 10), ("whole step", 3)], ids=["data work", "whole step"]
)
def test_a_step_against_image_by_image(
    benchmark: BenchmarkFixture, measure_ratio: Callable[..., Any], what: str, steps: int
) -> None:
    is_whole = what == "whole step"
    make = make_step if is_whole else make_data_work
    ours = make(make_learner())
    learner = make_learner()
    theirs = one_by_one(make(learner), learner)
    for _ in range(3):
        assert ours() == pytest.approx(theirs(), rel=1e-3, abs=1e-2)
    measured = measure_ratio(
        ours,
        theirs,
        passes=steps,
        reference=f"{what} image by image, PIL and torchvision"
        + (" (ResNet-18 of width 8)" if is_whole else ""),
        peer=None if is_whole else "torchvision",
        unit="steps of 160 images through the network" if is_whole else "steps of 96 images",
    )
    seconds = min(measured.seconds)
    benchmark.extra_info.update(
        images_per_second=BATCH / seconds, reference_images_per_second=BATCH / (seconds * measured.median)
    )
    assert measured.median > 1
