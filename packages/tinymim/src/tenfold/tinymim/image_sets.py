"""Small sets of images as tensors on the device: the digits, clothing128, CIFAR-10, and batches of them.

Every random number of an image depends on seed, epoch and the image's place in it, so that a run can go on in any
number of processes and ends as one that was never interrupted.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor
from torch.nn import functional as F
from torchvision.datasets import CIFAR10

from tenfold.shared.logging import TenfoldError
from tenfold.shared.seeding import epoch_order, make_generator
from tenfold.tinymim.augmentation import CropConfig, Normaliser, crop, draw_colours, draw_crops, jitter
from tenfold.tinymim.config import DataConfig
from tenfold.tinymim.image_files import EPOCH_SEEDS, TEST_CROP, image_folder, whole_batches

DIGITS_TRAIN = 1297
"""Of scikit-learn's 1,797 digits; the other 500 test."""
CLOTHING_SIDE = 128
Statistics = tuple[float, ...]


@dataclass(frozen=True)
class ImagesInMemory:
    """A labelled set that fits the device."""

    images: Tensor
    """[N, 1 or 3, H, W], bytes, or floats from about 0 to 1."""
    labels: Tensor
    """int64 [N]."""
    num_classes: int
    mean: Statistics
    """Of each channel, between 0 and 1."""
    std: Statistics

    def to(self, device: torch.device) -> ImagesInMemory:
        """The same on a device."""
        return replace(self, images=self.images.to(device), labels=self.labels.to(device))

    def pixels(self, index: Tensor) -> Tensor:
        """Some images as floats, about from 0 to 1."""
        chosen = self.images[index]
        return chosen if chosen.is_floating_point() else chosen.float() / 255

    @cached_property
    def normaliser(self) -> Normaliser:
        """On the images' device."""
        return Normaliser(self.mean, self.std, self.images.device)

    def ready(self, pixels: Tensor) -> Tensor:
        """Normalised, with three channels, of which grey images have equal ones."""
        return self.normaliser(pixels).expand(-1, 3, -1, -1)


@dataclass(frozen=True)
class Split:
    """What is pre-trained on, what is fine-tuned on, and what is judged by."""

    train: ImagesInMemory
    """Its labels are not for training."""
    labelled: ImagesInMemory
    test: ImagesInMemory


# -- sets in memory ------------------------------------------------------------------------------------


def load_in_memory(config: DataConfig, root: Path, download: bool = False) -> Split:
    """The digits, clothing128 or CIFAR-10.

    Args:
        config: which, how large, and how many have labels.
        root: folder of all data.
        download: fetch CIFAR-10 where it is missing.

    Raises:
        TenfoldError: the data is not there, or comes from files.
    """
    if config.dataset == "digits":
        return _digits(config)
    if config.dataset == "clothing128":
        return _clothing(config, root / "clothing128")
    if config.dataset == "cifar10":
        return _cifar(config, root, download)
    raise TenfoldError(f"{config.dataset} is read from files and does not fit memory")


def _digits(config: DataConfig) -> Split:
    """A fixed permutation: 1,297 images to train, the first of them with labels, 500 to test.

    Pixels are divided by 16 and enlarged by bicubic interpolation; mean 0.3 and deviation 0.38.
    """
    bunch = load_digits()
    images = torch.from_numpy(bunch.images).float()[:, None] / 16
    images = F.interpolate(images, (config.image_size,) * 2, mode="bicubic", align_corners=False)
    labels = torch.from_numpy(bunch.target).long()
    order = torch.randperm(len(labels), generator=make_generator(0))
    whole = ImagesInMemory(images, labels, 10, (0.3,) * 3, (0.38,) * 3)
    seen = round(DIGITS_TRAIN * config.labelled)
    parts = order[:DIGITS_TRAIN], order[:seen], order[DIGITS_TRAIN:]
    return Split(*(replace(whole, images=images[part], labels=labels[part]) for part in parts))


def _clothing(config: DataConfig, folder: Path) -> Split:
    """Its training images; validation and test images together judge. Of each, the square at the centre."""
    folders = [folder / name for name in ("train", "validation", "test")]
    if len({tuple(image_folder(part, _square, "clothing128").classes) for part in folders}) > 1:
        raise TenfoldError(f"the folders in {folder} do not have the same classes: unpack clothing128 again")
    train, *others = map(_read_folder, folders)
    mean = tuple((train.images.double().mean(dim=(0, 2, 3)) / 255).tolist())
    std = tuple((train.images.double().std(dim=(0, 2, 3)) / 255).tolist())
    train = replace(train, mean=mean, std=std)
    pixels, labels = (torch.cat([getattr(part, name) for part in others]) for name in ("images", "labels"))
    return Split(train, _with_labels(train, config.labelled), replace(train, images=pixels, labels=labels))


def _read_folder(folder: Path) -> ImagesInMemory:
    files = image_folder(folder, _square, "clothing128")
    images = torch.stack([image for image, _ in files])
    return ImagesInMemory(images, torch.tensor(files.targets), len(files.classes), (0.5,) * 3, (0.5,) * 3)


def _square(image: Image.Image) -> Tensor:
    """The centre of an image as bytes [3, 128, 128]."""
    scale = CLOTHING_SIDE / min(image.size)
    if scale != 1:
        image = image.resize(
            (round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC
        )
    left, top = (image.width - CLOTHING_SIDE) // 2, (image.height - CLOTHING_SIDE) // 2
    found = image.crop((left, top, left + CLOTHING_SIDE, top + CLOTHING_SIDE))
    return torch.from_numpy(np.asarray(found).copy()).permute(2, 0, 1)


def _cifar(config: DataConfig, root: Path, download: bool) -> Split:
    parts = []
    for is_train in (True, False):
        try:
            found = CIFAR10(root, train=is_train, download=download)
        except RuntimeError as error:
            raise TenfoldError(
                f"CIFAR-10 is not in {root.name}/: give --data-root, or --download to fetch it; the profile quick "
                "needs no data"
            ) from error
        pixels = torch.from_numpy(found.data).permute(0, 3, 1, 2).contiguous()
        statistics = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
        parts.append(ImagesInMemory(pixels, torch.tensor(found.targets), 10, *statistics))
    return Split(parts[0], _with_labels(parts[0], config.labelled), parts[1])


def _with_labels(data: ImagesInMemory, share: float) -> ImagesInMemory:
    """A share of every class, always the same."""
    if share == 1:
        return data
    every = np.arange(len(data.labels))
    chosen, _ = train_test_split(every, train_size=share, random_state=0, stratify=data.labels.numpy())
    kept = torch.from_numpy(np.sort(chosen))
    return replace(data, images=data.images[kept], labels=data.labels[kept])


class MemoryViews:
    """Batches of pre-training from a set on the device: one crop for teacher and student, colours for the student.

    Args:
        data: on the device.
        size: side of the views.
        config: crops and flips.
        colours: largest change of them.
        batch_size: of all processes together; a rest of an epoch is left out.
        seed: of order and augmentation.
        rank: of this process, which takes every ``world_size``-th image of a batch.
        world_size: processes.

    Raises:
        TenfoldError: there are fewer images than a batch has.
    """

    def __init__(
        self,
        data: ImagesInMemory,
        size: int,
        config: CropConfig,
        colours: float,
        batch_size: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.data, self.size, self.config, self.batch_size = data, size, config, batch_size
        self.colours = colours
        self.seed, self.rank, self.world_size = seed, rank, world_size
        self.steps = whole_batches(len(data.labels), batch_size)

    def epoch(self, number: int) -> Iterator[tuple[Tensor, Tensor]]:
        """The teacher's and the student's view, each [B, 3, size, size]; the same tensor where colours stay."""
        device, count = self.data.labels.device, self.steps * self.batch_size
        order = epoch_order(len(self.data.labels), self.seed, number).to(device)
        generator = make_generator(self.seed * EPOCH_SEEDS + number + 500_000)
        crops = draw_crops(count, self.config, generator).to(device)
        colours = draw_colours(count, self.colours, generator).to(device)
        for start in range(0, count, self.batch_size):
            mine = slice(start + self.rank, start + self.batch_size, self.world_size)
            images = self.data.pixels(order[mine])
            pixels = crop(images, crops.part(mine), self.size, self.config.interpolation)
            view = self.data.ready(pixels)
            if not self.colours:
                yield view, view
            else:
                pixels = pixels.clamp(0, 1)  # bicubic interpolation overshoots
                yield view, self.data.ready(jitter(pixels.expand(-1, 3, -1, -1), colours.part(mine)))


class MemoryBatches:
    """Batches of fine-tuning from a set on the device: crops, flips, labels.

    Args:
        data: on the device.
        size: side of the images.
        config: crops and flips; colours stay.
        batch_size: of all processes together; a rest of an epoch is left out.
        seed: of order and augmentation.
        rank: of this process.
        world_size: processes.

    Raises:
        TenfoldError: there are fewer images than a batch has.
    """

    def __init__(
        self,
        data: ImagesInMemory,
        size: int,
        config: CropConfig,
        batch_size: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.data, self.size, self.config, self.batch_size = data, size, config, batch_size
        self.seed, self.rank, self.world_size = seed, rank, world_size
        self.steps = whole_batches(len(data.labels), batch_size)
        self.num_classes = data.num_classes

    def epoch(self, number: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Images [B, 3, size, size] and labels [B], this process's share."""
        device, count = self.data.labels.device, self.steps * self.batch_size
        order = epoch_order(len(self.data.labels), self.seed, number).to(device)
        generator = make_generator(self.seed * EPOCH_SEEDS + number + 500_000)
        crops = draw_crops(count, self.config, generator).to(device)
        for start in range(0, count, self.batch_size):
            mine = slice(start + self.rank, start + self.batch_size, self.world_size)
            images = self.data.pixels(order[mine])
            pixels = crop(images, crops.part(mine), self.size, self.config.interpolation)
            yield self.data.ready(pixels), self.data.labels[order[mine]]


def judging_batches(
    data: ImagesInMemory, size: int, batch_size: int = 500, rank: int = 0, world_size: int = 1
) -> Iterator[tuple[Tensor, Tensor]]:
    """Images as they are judged, in order: resized if they are of another size; clothing's square centre is cropped."""
    mine = torch.arange(rank, len(data.labels), world_size, device=data.labels.device)
    for batch in mine.split(batch_size):
        yield data.ready(_centre(data.pixels(batch), size)), data.labels[batch]


def _centre(pixels: Tensor, size: int) -> Tensor:
    """The centre of images that are larger, in the proportion of 224 to 256 pixels; others are resized."""
    side = pixels.shape[-1]
    if side == size:
        return pixels
    if side > size and round(side * TEST_CROP) == size:
        start = (side - size) // 2
        return pixels[:, :, start : start + size, start : start + size]
    return F.interpolate(pixels, (size, size), mode="bicubic", align_corners=False, antialias=True)
