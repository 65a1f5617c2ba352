"""Streams of a changing world: split, permuted, rotated and blurry ones, and MNIST-360."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from tenfold.coca.augmentation import Preprocessing
from tenfold.coca.config import StreamConfig
from tenfold.coca.image_sets import ImageSet, TrainTest, load_image_sets
from tenfold.coca.mnist360 import DIGITS, serve_test, serve_training
from tenfold.coca.rotation import rotate_images
from tenfold.shared.logging import TenfoldError
from tenfold.shared.seeding import epoch_order

Scenario = Literal["class", "domain", "general"]

PREPROCESSING: dict[str, Preprocessing] = {
    "digits": Preprocessing(16.0, (0.3053,), (0.3762,)),
    "mnist": Preprocessing(),
    "cifar-10": Preprocessing(255.0, (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2615), 4, True),
    "cifar-100": Preprocessing(255.0, (0.5071, 0.4866, 0.4409), (0.2009, 0.1984, 0.2023), 4, True),
    "tiny-imagenet": Preprocessing(255.0, (0.4802, 0.4480, 0.3975), (0.2770, 0.2691, 0.2821), 4, True),
}
PREPROCESSING["cifar-10-mosaic"] = PREPROCESSING["cifar-10"]


@dataclass(frozen=True)
class Segment:
    """What comes between two moments of testing: a task, or a phase of a stream that knows no tasks."""

    train: ImageSet
    classes: tuple[int, ...]
    """Of the task; what methods with boundaries are told."""
    batch_sizes: tuple[int, ...] | None = None
    """Of a stream that is served in the order of its images; others are shuffled anew in each pass."""


@dataclass(frozen=True)
class Stream:
    """Segments to learn from, one after another, and test sets."""

    name: str
    scenario: Scenario
    """class: tasks bring new classes; domain: the same classes look different; general: no tasks at all."""
    segments: tuple[Segment, ...]
    tests: tuple[ImageSet, ...]
    """One for each task."""
    test_classes: tuple[tuple[int, ...], ...]
    """Classes of each test set, among which Task-IL decides."""
    num_classes: int
    preprocessing: Preprocessing
    has_boundaries: bool = True
    """Whether a method may be told where tasks end."""
    further_tests: dict[str, tuple[ImageSet, ...]] = field(default_factory=dict)
    """More test sets, by name."""

    @property
    def image_shape(self) -> tuple[int, int, int]:
        return self.segments[0].train.image_shape

    def joint(self) -> Stream:
        """All tasks shuffled together, to see what could be learned at best."""
        trains = [segment.train for segment in self.segments]
        everything = ImageSet(
            torch.cat([train.images for train in trains]), torch.cat([train.labels for train in trains])
        )
        return replace(self, segments=(Segment(everything, tuple(range(self.num_classes))),))


def make_stream(config: StreamConfig, data_root: Path | None = None, download: bool = False) -> Stream:
    """A stream by the name in its config.

    Raises:
        TenfoldError: the name is unknown, its data is missing, or its classes cannot be split as asked.
    """
    if config.name not in STREAMS:
        raise TenfoldError(f"unknown stream {config.name!r}; choose one of {', '.join(STREAMS)}")
    return STREAMS[config.name](config, data_root, download)


def batch_indices(
    segment: Segment, config: StreamConfig, seed: int, index: int, epoch: int
) -> list[np.ndarray]:
    """Which images come in each batch of a pass.

    Args:
        segment: what is served.
        config: batch size, and whether an incomplete batch is dropped.
        seed: of the order.
        index: number of the segment.
        epoch: number of the pass over it.
    """
    size = len(segment.train)
    if segment.batch_sizes is not None:
        batches = np.split(np.arange(size), np.cumsum(segment.batch_sizes)[:-1])
    else:
        order = epoch_order(size, seed, index * 10_007 + epoch).numpy()
        batches = np.split(order, range(config.batch_size, size, config.batch_size))
        if config.drop_last and len(batches[-1]) < config.batch_size:
            batches.pop()
    return batches[: config.batches_per_epoch]


def split_stream(name: str, sets: TrainTest, classes_per_task: int, preprocessing: Preprocessing) -> Stream:
    """Classes in their order, some per task (class-incremental; Task-IL judges the same outputs).

    Raises:
        TenfoldError: the classes cannot be divided evenly.
    """
    num_classes = _num_classes(sets.train)
    if num_classes % classes_per_task:
        raise TenfoldError(
            f"{num_classes} classes cannot be split into tasks of {classes_per_task}; choose a divisor with "
            "--stream.classes-per-task"
        )
    tasks = tuple(
        tuple(range(start, start + classes_per_task)) for start in range(0, num_classes, classes_per_task)
    )

    def split(images: ImageSet) -> tuple[ImageSet, ...]:
        return tuple(images.of_classes(classes) for classes in tasks)

    segments = tuple(Segment(train, classes) for train, classes in zip(split(sets.train), tasks, strict=True))
    further = {key: split(images) for key, images in sets.further_tests.items()}
    return Stream(
        name, "class", segments, split(sets.test), tasks, num_classes, preprocessing, further_tests=further
    )


def domain_stream(
    name: str, sets: TrainTest, changes: Sequence[Callable[[Tensor], Tensor]], preprocessing: Preprocessing
) -> Stream:
    """The same images, changed in another way for each task (domain-incremental).

    Args:
        name: of the stream.
        sets: the images.
        changes: bytes [N, channels, H, W] to bytes of the same shape, one for each task.
        preprocessing: of the images.
    """
    num_classes = _num_classes(sets.train)
    classes = tuple(range(num_classes))
    segments = tuple(
        Segment(ImageSet(change(sets.train.images), sets.train.labels), classes) for change in changes
    )
    tests = tuple(ImageSet(change(sets.test.images), sets.test.labels) for change in changes)
    return Stream(name, "domain", segments, tests, (classes,) * len(changes), num_classes, preprocessing)


def blurry_stream(
    name: str,
    sets: TrainTest,
    tasks: int,
    preprocessing: Preprocessing,
    disjoint: float = 0.5,
    blur: float = 0.1,
    seed: int = 0,
) -> Stream:
    """Phases without clear boundaries, from any labelled images (i-Blurry, Koh et al. 2022).

    A share ``disjoint`` of the classes comes in one phase each. Of the other classes most images come in the class's
    own phase, and a share ``blur`` is spread evenly over the other phases. Phases are not announced.

    Args:
        name: of the stream.
        sets: any labelled images.
        tasks: number of phases.
        preprocessing: of the images.
        disjoint: share of classes.
        blur: share of images.
        seed: of which classes and images these are.

    Raises:
        TenfoldError: there are fewer classes than phases.
    """
    num_classes = _num_classes(sets.train)
    if not 1 < tasks <= num_classes:
        raise TenfoldError(f"{num_classes} classes make 2 to {num_classes} phases, not {tasks}")
    generator = np.random.RandomState(seed)
    order = generator.permutation(num_classes)
    phase_of_class = np.empty(num_classes, dtype=np.int64)
    phase_of_class[order] = np.arange(num_classes) % tasks
    is_disjoint = np.zeros(num_classes, dtype=bool)
    is_disjoint[order[: round(disjoint * num_classes)]] = True
    labels = sets.train.labels.numpy()
    phases = phase_of_class[labels]
    strays = (generator.random_sample(len(labels)) < blur) & ~is_disjoint[labels]
    phases[strays] = (phases[strays] + generator.randint(1, tasks, int(strays.sum()))) % tasks
    classes = tuple(tuple(np.flatnonzero(phase_of_class == phase).tolist()) for phase in range(tasks))
    segments = tuple(
        Segment(sets.train[torch.from_numpy(np.flatnonzero(phases == phase))], classes[phase])
        for phase in range(tasks)
    )
    tests = tuple(sets.test.of_classes(own) for own in classes)
    return Stream(name, "class", segments, tests, classes, num_classes, preprocessing, has_boundaries=False)


def hold_out(sets: TrainTest, seed: int = 0, share: float = 0.1) -> tuple[ImageSet, ImageSet]:
    """The training images without a random share, and that share; the same for every run."""
    order = torch.randperm(len(sets.train), generator=torch.Generator().manual_seed(seed))
    held = round(share * len(sets.train))
    return sets.train[order[held:].sort().values], sets.train[order[:held].sort().values]


def _load(dataset: str, config: StreamConfig, root: Path | None, download: bool) -> TrainTest:
    sets = load_image_sets(dataset, root, download)
    if dataset == "cifar-10-mosaic":
        train, held = hold_out(sets)
        return TrainTest(train, sets.test, {**sets.further_tests, "held_out": held})
    if config.validation:
        train, held = hold_out(sets)
        return TrainTest(train, held, {})
    return sets


def _split(
    dataset: str, classes_per_task: int, config: StreamConfig, root: Path | None, download: bool
) -> Stream:
    sets = _load(dataset, config, root, download)
    per_task = config.classes_per_task or classes_per_task
    return split_stream(config.name, sets, per_task, PREPROCESSING[dataset])


def _blurry(
    dataset: str, classes_per_task: int, config: StreamConfig, root: Path | None, download: bool
) -> Stream:
    sets = _load(dataset, config, root, download)
    tasks = max(_num_classes(sets.train) // (config.classes_per_task or classes_per_task), 1)
    return blurry_stream(
        config.name, sets, tasks, PREPROCESSING[dataset], config.disjoint, config.blur, config.seed or 0
    )


def _permuted_mnist(config: StreamConfig, root: Path | None, download: bool) -> Stream:
    """20 tasks, each with the pixels in another random order."""
    sets = _load("mnist", config, root, download)
    generator = torch.Generator().manual_seed(config.seed or 0)
    orders = [torch.randperm(28 * 28, generator=generator) for _ in range(20)]

    def permute(order: Tensor, images: Tensor) -> Tensor:
        return images.flatten(1)[:, order].view_as(images)

    return domain_stream(
        config.name, sets, [partial(permute, order) for order in orders], PREPROCESSING["mnist"]
    )


def _rotated_mnist(config: StreamConfig, root: Path | None, download: bool) -> Stream:
    """20 tasks, each turned by another angle between 0 and 180 degrees."""
    sets = _load("mnist", config, root, download)
    angles = 180 * torch.rand(20, generator=torch.Generator().manual_seed(config.seed or 0))
    changes = [partial(rotate_images, degrees=angle) for angle in angles]
    return domain_stream(config.name, sets, changes, PREPROCESSING["mnist"])


def _mnist_360(config: StreamConfig, root: Path | None, download: bool) -> Stream:
    sets = _load("mnist", config, root, download)
    served = serve_training(sets.train, config.batch_size, config.replacement, config.seed or 0)
    classes = tuple(range(DIGITS))
    segment = Segment(served.images, classes, served.batch_sizes)
    return Stream(
        config.name,
        "general",
        (segment,),
        (serve_test(sets.test),),
        (classes,),
        DIGITS,
        PREPROCESSING["mnist"],
        has_boundaries=False,
    )


def _num_classes(images: ImageSet) -> int:
    return int(images.labels.max()) + 1


STREAMS: dict[str, Callable[[StreamConfig, Path | None, bool], Stream]] = {
    "s-digits": partial(_split, "digits", 2),
    "s-cifar-10": partial(_split, "cifar-10", 2),
    "s-cifar-10-mosaic": partial(_split, "cifar-10-mosaic", 2),
    "s-cifar-100": partial(_split, "cifar-100", 5),
    "s-tiny-imagenet": partial(_split, "tiny-imagenet", 20),
    "s-mnist": partial(_split, "mnist", 2),
    "p-mnist": _permuted_mnist,
    "r-mnist": _rotated_mnist,
    "mnist-360": _mnist_360,
    "blurry-digits": partial(_blurry, "digits", 2),
    "blurry-cifar-10": partial(_blurry, "cifar-10", 2),
    "blurry-cifar-100": partial(_blurry, "cifar-100", 10),
    "blurry-mnist": partial(_blurry, "mnist", 2),
}
"""Every stream that can be had by name."""
