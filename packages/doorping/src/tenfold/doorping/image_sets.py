"""Labelled images as bytes in memory, how they are normalised, and the data sets they come from."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cache, partial
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor

from tenfold.doorping.image_files import (
    Split,
    read_cifar10_sheets,
    read_fashion_mnist_xz,
    read_torchvision,
    resize,
)
from tenfold.shared.logging import TenfoldError

Statistics = Literal["dc", "dd"]
"""Whose means and deviations: those of Zhao et al.'s code (DC) or of Wang et al.'s (DD)."""
IMAGE_SIZE = 32
"""Pixels a side that FashionMNIST and STL-10 are resized to."""


@dataclass(frozen=True)
class ImageSet:
    """Training and test images with their labels, and the statistics that normalise them."""

    name: str
    train_images: Tensor
    """Bytes [N, C, H, W]."""
    train_labels: Tensor
    """int64 [N]."""
    test_images: Tensor
    """Bytes [M, C, H, W]."""
    test_labels: Tensor
    """int64 [M]."""
    classes: int
    """Number of classes K."""
    mean: tuple[float, ...]
    """Of every channel, in units where white is 1."""
    std: tuple[float, ...]
    """Likewise."""
    white: int = 255
    """The byte that stands for white."""
    further_tests: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)
    """Other test images and labels, by name."""

    @property
    def channels(self) -> int:
        return self.train_images.shape[1]

    @property
    def image_size(self) -> int:
        return self.train_images.shape[-1]

    def normalise(self, images: Tensor) -> Tensor:
        """Bytes [n, C, H, W] as floats of mean 0 and deviation 1, on the same device."""
        mean, std = (
            images.new_tensor(values, dtype=torch.float32)[None, :, None, None]
            for values in (self.mean, self.std)
        )
        return (images.float() / self.white - mean) / std

    def denormalise(self, images: Tensor) -> Tensor:
        """Normalised images in units where black is 0 and white is 1."""
        mean, std = (images.new_tensor(values)[None, :, None, None] for values in (self.mean, self.std))
        return images * std + mean

    def black_and_white(self, device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
        """Normalised values of the darkest and the lightest pixel, each [1, C, 1, 1]."""
        mean, std = (torch.tensor(values, device=device) for values in (self.mean, self.std))
        return (-mean / std)[None, :, None, None], ((1 - mean) / std)[None, :, None, None]

    def test(self, device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
        """Normalised test images and their labels."""
        return self.normalise(self.test_images.to(device)), self.test_labels.to(device)

    def to(self, device: torch.device) -> ImageSet:
        """The same with images and labels on a device."""
        names = ("train_images", "train_labels", "test_images", "test_labels")
        return replace(self, **{name: getattr(self, name).to(device) for name in names})

    def subset(self, share: float, seed: int) -> ImageSet:
        """The same with a random part of its training images, floor(n share) of them, in their order.

        The authors' option ``ori``.

        Args:
            share: above 0 and at most 1, which keeps all.
            seed: of the draw.

        Raises:
            TenfoldError: the share is out of range, or no image is left.
        """
        total = len(self.train_labels)
        count = math.floor(round(total * share, 9)) if 0 < share <= 1 else 0
        if count == 0:
            raise TenfoldError(
                f"a share of {share:g} of {total} training images leaves nothing; choose one above 0 and at most 1"
            )
        drawn = torch.randperm(total, generator=torch.Generator().manual_seed(seed))[:count]
        kept = drawn.sort().values.to(self.train_labels.device)
        return replace(self, train_images=self.train_images[kept], train_labels=self.train_labels[kept])


@cache
def _digits(root: Path, download: bool) -> ImageSet:
    """scikit-learn's 8x8 digits with values from 0 to 16: 1,297 to train with and 500 to test."""
    del root, download
    bunch = load_digits()
    images = torch.from_numpy(bunch.images).to(torch.uint8)[:, None]
    labels = torch.from_numpy(bunch.target).to(torch.int64)
    order = torch.from_numpy(np.random.RandomState(0).permutation(len(labels)))
    train, test = order[:-500], order[-500:]
    pixels = images[train].double() / 16
    return ImageSet(
        "digits",
        images[train],
        labels[train],
        images[test],
        labels[test],
        10,
        (pixels.mean().item(),),
        (pixels.std().item(),),
        white=16,
    )


@dataclass(frozen=True)
class Normalisation:
    """Mean and deviation of every channel, in units where white is 1."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


@dataclass(frozen=True)
class Description:
    """What is known of a data set before it is read."""

    title: str
    """What a reader calls it."""
    classes: int
    """Number of classes K."""
    dc: Normalisation
    """By Zhao et al.'s code."""
    dd: Normalisation
    """By Wang et al.'s code."""

    def normalisation(self, statistics: Statistics) -> Normalisation:
        return self.dc if statistics == "dc" else self.dd


_FASHION_MNIST = Normalisation((0.2861,), (0.3530,))
_CIFAR10_DC = Normalisation((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))
_CIFAR10_DD = Normalisation((0.4914, 0.4822, 0.4465), (0.247, 0.243, 0.261))
_CIFAR100_DC = Normalisation((0.5071, 0.4866, 0.4409), (0.2673, 0.2564, 0.2762))
_SVHN_DC = Normalisation((0.4377, 0.4438, 0.4728), (0.1980, 0.2010, 0.1970))
_SVHN_DD = Normalisation((0.43791, 0.44398, 0.47293), (0.19803, 0.20102, 0.19704))

DESCRIPTIONS: dict[str, Description] = {
    "fashion-mnist": Description("FashionMNIST", 10, _FASHION_MNIST, _FASHION_MNIST),
    "cifar-10": Description("CIFAR-10", 10, _CIFAR10_DC, _CIFAR10_DD),
    "cifar-10-mosaic": Description("CIFAR-10 in sheets", 10, _CIFAR10_DC, _CIFAR10_DD),
    "cifar-100": Description("CIFAR-100", 100, _CIFAR100_DC, _CIFAR10_DD),
    "stl-10": Description("STL-10", 10, _CIFAR10_DC, _CIFAR10_DD),
    "svhn": Description("SVHN", 10, _SVHN_DC, _SVHN_DD),
}
"""The sets that lie in files; their statistics are those of the authors' code, which are not all those of the sets."""


def _torchvision(
    name: str, kind: str, root: Path, download: bool, statistics: Statistics, also: Path | None = None
) -> ImageSet:
    known = DESCRIPTIONS[name]
    splits = read_torchvision(kind, known.title, known.classes, root, download, also)
    return _described(name, statistics, *splits)


def _described(name: str, statistics: Statistics, train: Split, test: Split) -> ImageSet:
    """A set with what is known of it, at 32 pixels a side."""
    known = DESCRIPTIONS[name]
    # Wang et al.'s code resizes grey images before the authors' own (bilinear) Resize, which then has nothing to do.
    interpolation: Literal["bilinear", "bicubic"] = (
        "bicubic" if name == "fashion-mnist" and statistics == "dd" else "bilinear"
    )
    images = [
        part if part.shape[-1] == IMAGE_SIZE else resize(part, IMAGE_SIZE, interpolation)
        for part in (train[0], test[0])
    ]
    normalisation = known.normalisation(statistics)
    return ImageSet(
        name, images[0], train[1], images[1], test[1], known.classes, normalisation.mean, normalisation.std
    )


def _fashion_mnist(root: Path, download: bool, statistics: Statistics) -> ImageSet:
    """Torchvision's FashionMNIST, or the idx files in ``fashion_mnist/`` where torchvision's folder is absent."""
    folder = root / "fashion_mnist"
    if folder.is_dir() and not (root / "FashionMNIST").exists():
        return _described("fashion-mnist", statistics, *read_fashion_mnist_xz(folder))
    return _torchvision("fashion-mnist", "FashionMNIST", root, download, statistics, also=folder)


def _cifar10_sheets(root: Path, download: bool, statistics: Statistics) -> ImageSet:
    """CIFAR-10's exact training half with 1000 exact test images; ``jpeg`` are all test images after JPEG."""
    del download
    train, test, jpeg = read_cifar10_sheets(root / "cifar10")
    return replace(
        _described("cifar-10-mosaic", statistics, train, test),
        further_tests={"jpeg": jpeg},
    )


LOADERS: dict[str, Callable[[Path, bool, Statistics], ImageSet]] = {
    "digits": lambda root, download, _: _digits(root, download),
    "fashion-mnist": _fashion_mnist,
    "cifar-10": partial(_torchvision, "cifar-10", "CIFAR10"),
    "cifar-10-mosaic": _cifar10_sheets,
    "cifar-100": partial(_torchvision, "cifar-100", "CIFAR100"),
    "stl-10": partial(_torchvision, "stl-10", "STL10"),
    "svhn": partial(_torchvision, "svhn", "SVHN"),
}

_loaded: dict[tuple[str, Path, Statistics], ImageSet] = {}


def load_image_set(
    name: str, root: Path | None = None, download: bool = False, statistics: Statistics = "dc"
) -> ImageSet:
    """A data set by name, from ``root``; read once in a process, and then the same object: copy before changing it.

    Args:
        name: digits (scikit-learn's, no files), fashion-mnist, cifar-10, cifar-100, stl-10 (the labelled images),
            svhn, or cifar-10-mosaic (sheets of CIFAR-10 with 1000 exact test images).
        root: folder of all data; ``data`` without it.
        download: fetch what is missing, where torchvision can.
        statistics: dc or dd. Besides mean and std it decides how FashionMNIST is enlarged to 32 pixels: bilinear for
            dc, bicubic for dd. Digits have statistics of their own.

    Raises:
        TenfoldError: the name is unknown, or the data is missing or damaged.
        OSError: a file cannot be read.
    """
    if name not in LOADERS:
        raise TenfoldError(f"unknown data set {name!r}; choose one of {', '.join(LOADERS)}")
    if statistics not in get_args(Statistics):
        raise TenfoldError(f"unknown statistics {statistics!r}; choose dc or dd")
    root = (root or Path("data")).absolute()
    key = (name, root, statistics)
    if key not in _loaded:
        _loaded[key] = LOADERS[name](root, download, statistics)
    return _loaded[key]
