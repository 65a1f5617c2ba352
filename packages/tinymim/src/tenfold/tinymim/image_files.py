"""Images as files: ImageNet for pre-training, fine-tuning and judging, decoded by other processes.

Every random number of an image depends on seed and epoch, and on the file or its place in the epoch, whoever decodes it
and in however many processes.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, create_transform
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, get_worker_info
from torchvision.datasets import ImageFolder
from torchvision.transforms import InterpolationMode, v2

from tenfold.shared.logging import TenfoldError
from tenfold.shared.seeding import epoch_order, make_generator, restore_rng_state, rng_state
from tenfold.tinymim.augmentation import CropConfig, Normaliser, draw_colours, jitter
from tenfold.tinymim.config import FinetuneConfig

EPOCH_SEEDS = 1_000_003
TEST_CROP = 224 / 256
"""Share of the shorter side that the centre crop takes at 224 pixels and below."""


def whole_batches(images: int, batch_size: int) -> int:
    """Steps of an epoch.

    Raises:
        TenfoldError: not even one.
    """
    if images < batch_size:
        raise TenfoldError(f"{images} images are no batch of {batch_size}: lower the batch size")
    return images // batch_size


def image_folder(folder: Path, transform: Callable[[Any], Any], name: str = "imagenet") -> ImageFolder:
    """A folder with a folder of images for each class.

    Raises:
        TenfoldError: it is missing or has no images.
    """
    try:
        return ImageFolder(str(folder), transform)
    except FileNotFoundError as error:
        advice = {
            "imagenet": "ImageNet's folders train/ and val/ into imagenet/ below --data-root (it needs a registration "
            "of your own), or use a profile on digits",
            "clothing128": "the folders train/, validation/ and test/ into clothing128/ below --data-root, or use the "
            "profile quick, which needs no data",
        }[name]
        raise TenfoldError(f"no images of classes in {folder}: put {advice}") from error


class _SeededFiles(Dataset[tuple[Any, int]]):
    """Images of a folder by (index, seed): all random numbers of a transform come from the seed."""

    def __init__(self, files: ImageFolder) -> None:
        self.files = files

    def __getitem__(self, key: tuple[int, int]) -> tuple[Any, int]:
        index, seed = key
        kept = rng_state() if get_worker_info() is None else None  # in this process others need them too
        random.seed(seed)
        np.random.seed(seed % 2**32)
        torch.manual_seed(seed)
        image, label = self.files[index]
        if kept is not None:
            restore_rng_state(kept)
        return image, label


class _EpochSampler(Sampler[tuple[int, int]]):
    """Indices of an epoch, each with a seed; the epoch is set from outside, so that workers can live on."""

    def __init__(self, count: int, kept: int, seed: int, rank: int, world_size: int) -> None:
        self.count, self.kept, self.seed, self.rank, self.world_size = count, kept, seed, rank, world_size
        self.epoch = 0

    def __len__(self) -> int:
        return self.kept // self.world_size

    def __iter__(self) -> Iterator[tuple[int, int]]:
        order = epoch_order(self.count, self.seed, self.epoch)[: self.kept][self.rank :: self.world_size]
        first = (self.seed * EPOCH_SEEDS + self.epoch) * self.count
        return iter([(index, first + index) for index in order.tolist()])


class FileBatches:
    """Images of a folder through a transform, decoded by other processes that live as long as this.

    Args:
        folder: with a folder of images for each class.
        transform: of an image.
        batch_size: of all processes together; a rest of an epoch is left out.
        workers: processes.
        seed: of order and augmentation.
        rank: of this process.
        world_size: processes that train.
    """

    def __init__(
        self,
        folder: Path,
        transform: Callable[[Any], Any],
        batch_size: int,
        workers: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        files = image_folder(folder, transform)
        self.steps = whole_batches(len(files), batch_size)
        self.num_classes = len(files.classes)
        self.sampler = _EpochSampler(len(files), self.steps * batch_size, seed, rank, world_size)
        self.loader: Any = DataLoader(
            _SeededFiles(files),
            batch_size=batch_size // world_size,
            sampler=self.sampler,
            num_workers=workers,
            pin_memory=torch.cuda.is_available(),
            drop_last=True,
            persistent_workers=workers > 0,
            generator=make_generator(seed),
        )

    def epoch(self, number: int) -> Iterator[tuple[Tensor, Tensor]]:
        """What the transform makes of images, and labels; this process's share."""
        self.sampler.epoch = number
        yield from self.loader


class FileViews:
    """Views of pre-training from files: crops and flips by the loader's processes, colours on the device.

    Args:
        folder: with a folder of images for each class.
        size: side of the views.
        config: crops and flips.
        colours: largest change of them.
        batch_size: of all processes together.
        workers: processes that decode.
        seed: of order and augmentation.
        device: where views are made.
        rank: of this process.
        world_size: processes that train.
    """

    def __init__(
        self,
        folder: Path,
        size: int,
        config: CropConfig,
        colours: float,
        batch_size: int,
        workers: int,
        seed: int,
        device: torch.device,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        transform = pretraining_transform(size, config)
        self.batches = FileBatches(folder, transform, batch_size, workers, seed, rank, world_size)
        self.steps, self.colours, self.device = self.batches.steps, colours, device
        self.seed, self.batch_size = seed, batch_size
        self.share = slice(rank, None, world_size)
        self.normaliser = Normaliser(IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, device)

    def epoch(self, number: int) -> Iterator[tuple[Tensor, Tensor]]:
        """The teacher's and the student's view, each [B, 3, size, size]."""
        generator = make_generator(self.seed * EPOCH_SEEDS + number + 500_000)
        for images, _ in self.batches.epoch(number):
            pixels = images.to(self.device, non_blocking=True).float() / 255
            view = self.normaliser(pixels)
            if not self.colours:
                yield view, view
                continue
            colours = draw_colours(self.batch_size, self.colours, generator).part(self.share)
            yield view, self.normaliser(jitter(pixels, colours.to(self.device)))


def pretraining_transform(size: int, config: CropConfig) -> Any:
    """A random resized crop and a flip, as bytes [3, size, size]."""
    modes = {"bicubic": InterpolationMode.BICUBIC, "bilinear": InterpolationMode.BILINEAR}
    return v2.Compose(
        [
            v2.RandomResizedCrop(size, config.scale, config.ratio, modes[config.interpolation]),
            v2.RandomHorizontalFlip(0.5 if config.flip else 0.0),
            v2.PILToTensor(),
        ]
    )


def finetuning_transform(size: int, config: FinetuneConfig) -> Any:
    """timm's: random resized crop, flip, RandAugment, random erasing, normalised; no other change of colours."""
    return create_transform(
        size,
        is_training=True,
        scale=config.crop_scale,
        color_jitter=None,
        auto_augment=config.randaugment or None,
        interpolation="bicubic",
        re_prob=config.erasing,
        re_mode="pixel",
        re_count=1,
        mean=IMAGENET_DEFAULT_MEAN,
        std=IMAGENET_DEFAULT_STD,
    )


def testing_transform(size: int) -> Any:
    """Shorter side to 256 / 224 of the size (to the size above 224), bicubic; the centre; normalised."""
    return create_transform(
        size,
        is_training=False,
        interpolation="bicubic",
        crop_pct=TEST_CROP if size <= 224 else 1.0,
        mean=IMAGENET_DEFAULT_MEAN,
        std=IMAGENET_DEFAULT_STD,
    )


def judging_loader(
    folder: Path, size: int, workers: int, batch_size: int = 128, rank: int = 0, world_size: int = 1
) -> Any:
    """Batches of images and labels, in order; this process's share."""
    files = image_folder(folder, testing_transform(size))
    return DataLoader(
        files,
        batch_size=batch_size,
        sampler=range(rank, len(files), world_size),
        num_workers=workers,
        pin_memory=torch.cuda.is_available(),
    )
