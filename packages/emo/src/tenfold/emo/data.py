"""Labelled images: small sets as bytes in memory, augmented on the device; ImageNet through timm's transforms."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, create_transform
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader
from torchvision.datasets import CIFAR10, ImageFolder

from tenfold.emo.config import DataConfig
from tenfold.shared.logging import TenfoldError
from tenfold.shared.seeding import epoch_order, make_generator, seed_worker

CIFAR_MEAN, CIFAR_STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
CROP_PADDING = 4
"""Of a CIFAR image, before a crop of its own size."""


@dataclass(frozen=True)
class ImagesInMemory:
    """A set that fits the device, at its own size."""

    images: Tensor
    """float [N, 3, H, W], normalised."""
    labels: Tensor
    """int64 [N]."""
    num_classes: int

    def to(self, device: torch.device) -> ImagesInMemory:
        """The same on a device."""
        return ImagesInMemory(self.images.to(device), self.labels.to(device), self.num_classes)


@dataclass(frozen=True)
class Split:
    """What trains and what is judged."""

    train: ImagesInMemory
    test: ImagesInMemory


def load_in_memory(config: DataConfig, root: Path, seed: int, download: bool = False) -> Split:
    """The digits or CIFAR-10.

    Args:
        config: which, and how large networks see them.
        root: folder of all data.
        seed: of the digits' split into halves.
        download: fetch what is missing.

    Raises:
        TenfoldError: the data is not there.
    """
    if config.dataset == "digits":
        return load_split_digits(seed, config.image_size)
    if config.dataset == "cifar10":
        return _load_cifar(root, download)
    raise TenfoldError(f"{config.dataset} is read from files and does not fit memory")


def load_split_digits(seed: int, image_size: int) -> Split:
    """scikit-learn's digits in stratified halves, 898 to train and 899 to test, enlarged by bicubic interpolation.

    Images are standardised by mean and deviation of the training half, and their channel is there three times.
    """
    bunch = load_digits()
    images = torch.from_numpy(bunch.images).float()[:, None] / 16
    images = F.interpolate(images, (image_size, image_size), mode="bicubic", align_corners=False)
    labels = torch.from_numpy(bunch.target).long()
    train, test = train_test_split(
        np.arange(len(labels)), test_size=899, random_state=seed, stratify=bunch.target
    )
    mean, deviation = images[train].mean(), images[train].std()
    images = ((images - mean) / deviation).expand(-1, 3, -1, -1).contiguous()
    parts = [
        ImagesInMemory(images[index], labels[index], 10) for index in map(torch.from_numpy, (train, test))
    ]
    return Split(parts[0], parts[1])


def _load_cifar(root: Path, download: bool) -> Split:
    parts = []
    for is_train in (True, False):
        try:
            found = CIFAR10(root, train=is_train, download=download)
        except RuntimeError as error:
            raise TenfoldError(
                f"CIFAR-10 is not in {root.name}/: give --data-root, or --download to fetch it; the profile quick "
                "needs no data"
            ) from error
        pixels = torch.from_numpy(found.data).permute(0, 3, 1, 2).float() / 255
        mean, deviation = (torch.tensor(values)[:, None, None] for values in (CIFAR_MEAN, CIFAR_STD))
        parts.append(ImagesInMemory((pixels - mean) / deviation, torch.tensor(found.targets), 10))
    return Split(parts[0], parts[1])


def augment(images: Tensor, config: DataConfig, generator: torch.Generator) -> Tensor:
    """A batch as a network sees it in training, at ``image_size``.

    Args:
        images: [B, 3, H, W] on any device.
        config: what is done.
        generator: on the CPU; the same on every device.
    """
    if config.augmentation == "shift" and config.shift:
        down, right = torch.randint(-config.shift, config.shift + 1, (2,), generator=generator).tolist()
        images = images.roll((down, right), dims=(2, 3))
    elif config.augmentation == "crop":
        places = torch.randint(0, 2 * CROP_PADDING + 1, (2, len(images)), generator=generator)
        flips = torch.rand(len(images), generator=generator) < 0.5
        images = crop_and_flip(images, places.to(images.device), flips.to(images.device))
    return resize(images, config.image_size)


def crop_and_flip(images: Tensor, places: Tensor, flips: Tensor) -> Tensor:
    """Padded crops of the images' own size, some mirrored; one gather for the batch.

    Args:
        images: [B, C, H, W].
        places: [2, B], row and column in the padded image at which each crop begins.
        flips: [B], which crops are mirrored.
    """
    height, width = images.shape[2:]
    padded = F.pad(images, (CROP_PADDING,) * 4)
    rows = places[0, :, None] + torch.arange(height, device=images.device)
    columns = torch.arange(width, device=images.device).expand(len(images), -1)
    columns = places[1, :, None] + torch.where(flips[:, None], width - 1 - columns, columns)
    batch = torch.arange(len(images), device=images.device)[:, None, None]
    return padded.permute(0, 2, 3, 1)[batch, rows[:, :, None], columns[:, None]].permute(0, 3, 1, 2)


def resize(images: Tensor, size: int) -> Tensor:
    """Bicubic to a square, where it is not that large already."""
    if images.shape[2:] == (size, size):
        return images
    return F.interpolate(images, (size, size), mode="bicubic", align_corners=False, antialias=True)


class MemoryBatches:
    """Batches of a set on the device, in an order that seed and epoch decide.

    Args:
        data: on the device.
        config: of the augmentation.
        batch_size: of all processes together.
        drop_last: leave out the rest.
        seed: of order and augmentation.
        rank: of this process, which takes every ``world_size``-th image of a batch.
        world_size: processes.
    """

    def __init__(
        self,
        data: ImagesInMemory,
        config: DataConfig,
        batch_size: int,
        drop_last: bool,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.data, self.config, self.seed = data, config, seed
        self.batch_size, self.rank, self.world_size = batch_size, rank, world_size
        full, rest = divmod(len(data.labels), batch_size)
        self.steps = full + (rest > 0 and not drop_last)
        if not self.steps:
            raise TenfoldError(
                f"{len(data.labels)} images are no batch of {batch_size}: lower --train.batch-size"
            )

    def epoch(self, number: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Images and labels of one epoch, this process's share of every batch."""
        order = epoch_order(len(self.data.labels), self.seed, number).to(self.data.labels.device)
        generator = make_generator(self.seed * 1_000_003 + number + 500_000)
        for step in range(self.steps):
            batch = order[step * self.batch_size : (step + 1) * self.batch_size]
            images = augment(self.data.images[batch], self.config, generator)
            yield images[self.rank :: self.world_size], self.data.labels[batch][self.rank :: self.world_size]


class FileBatches:
    """Batches of ImageNet's training images through timm's transforms, decoded by other processes.

    Args:
        folder: with a folder of images for each class.
        config: of size and augmentation.
        batch_size: of all processes together.
        seed: of order and augmentation.
        rank: of this process.
        world_size: processes.
    """

    def __init__(
        self, folder: Path, config: DataConfig, batch_size: int, seed: int, rank: int = 0, world_size: int = 1
    ) -> None:
        self.images = image_folder(folder, training_transform(config))
        self.config, self.seed, self.rank, self.world_size = config, seed, rank, world_size
        self.batch_size = batch_size
        self.steps = len(self.images) // batch_size
        self.num_classes = len(self.images.classes)
        if not self.steps:
            raise TenfoldError(
                f"{len(self.images)} images are no batch of {batch_size}: lower --train.batch-size"
            )

    def epoch(self, number: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Images and labels of one epoch; a rest that is no whole batch is left out."""
        order = epoch_order(len(self.images), self.seed, number)
        mine = order[: self.steps * self.batch_size][self.rank :: self.world_size]
        loader: Any = DataLoader(
            self.images,
            batch_size=self.batch_size // self.world_size,
            sampler=mine.tolist(),
            num_workers=self.config.workers,
            pin_memory=torch.cuda.is_available(),
            drop_last=True,
            worker_init_fn=seed_worker,
            generator=make_generator(self.seed * 1_000_003 + number + 500_000 + self.rank),
        )
        yield from loader


def training_transform(config: DataConfig) -> Any:
    """Random resized crop, flip, RandAugment (m9, mstd 0.5, inc1), normalised; no random erasing, no mixing."""
    return create_transform(
        config.image_size,
        is_training=True,
        auto_augment="rand-m9-mstd0.5-inc1",
        interpolation="random",
        color_jitter=0.4,
        re_prob=0.0,
        mean=IMAGENET_DEFAULT_MEAN,
        std=IMAGENET_DEFAULT_STD,
    )


def testing_transform(config: DataConfig) -> Any:
    """Resize the shorter side to size / crop_pct, bicubic, and take the centre."""
    return create_transform(
        config.image_size,
        is_training=False,
        interpolation="bicubic",
        crop_pct=config.crop_pct,
        mean=IMAGENET_DEFAULT_MEAN,
        std=IMAGENET_DEFAULT_STD,
    )


def image_folder(folder: Path, transform: Any) -> ImageFolder:
    """A folder with a folder of images for each class.

    Raises:
        TenfoldError: it is missing or has no images.
    """
    try:
        return ImageFolder(str(folder), transform)
    except FileNotFoundError as error:
        raise TenfoldError(
            f"no images of classes in {folder}: put ImageNet's folders train/ and val/ into imagenet/ below "
            "--data-root (it needs a registration of your own), or use a profile on digits or cifar10"
        ) from error


def testing_loader(folder: Path, config: DataConfig, batch_size: int, rank: int, world_size: int) -> Any:
    """Every ``world_size``-th image of a folder, in order."""
    images = image_folder(folder, testing_transform(config))
    return DataLoader(
        images,
        batch_size=batch_size,
        sampler=range(rank, len(images), world_size),
        num_workers=config.workers,
        pin_memory=torch.cuda.is_available(),
    )
