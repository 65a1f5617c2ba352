"""ADE20K scene parsing: images and labels from folders, what is done to them before, and mIoU.

Zhou et al., Scene Parsing through ADE20K Dataset, CVPR 2017. 20,210 images for training, 2,000 for validation, 150
classes. Any set of the same layout will do::

    images/training/*.jpg        annotations/training/*.png
    images/validation/*.jpg      annotations/validation/*.png
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Generator, Tensor
from torch.nn import functional as F
from torch.utils.data import Dataset
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as transforms

from tenfold.shared.logging import TenfoldError
from tenfold.shared.seeding import epoch_order, make_generator
from tenfold.tinymim.upernet import IGNORE_INDEX

SplitName = Literal["training", "validation"]
Pair = tuple[Tensor, Tensor]
"""An image [3, H, W] and its labels [H, W]."""
CROP_ATTEMPTS = 10
"""Crops that are looked at before one is taken as it is."""
BRIGHTNESS, CONTRAST, SATURATION, HUE = 32 / 255, 0.5, 0.5, 18 / 180
"""How far photometric distortion goes: added to pixels in [0, 1]; factors' distance from 1, twice; share of a turn."""


# -- reading -------------------------------------------------------------------------------------------


class ADE20K(Dataset[Pair]):
    """Images uint8 [3, H, W] with a class for every pixel, uint8 [H, W].

    Files number classes from 1, and 0 is everything else. Here classes begin at 0; 0 and 255 of the files become 255,
    which is ignored.

    Args:
        root: folder with ``images`` and ``annotations``.
        split: training or validation.
        num_classes: of the set, at most 254.

    Raises:
        TenfoldError: a folder is missing or empty, or an image has no annotation. Files that cannot be read, or labels
            that do not fit, are found when it is their turn.
    """

    def __init__(self, root: Path, split: SplitName, num_classes: int = 150) -> None:
        if not 1 < num_classes < IGNORE_INDEX:
            raise TenfoldError(f"labels are bytes: a set has 2 to 254 classes, not {num_classes}")
        self.num_classes = num_classes
        self.files = _paired_files(root / "images" / split, root / "annotations" / split)

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Pair:
        image_file, label_file = self.files[index]
        image = transforms.pil_to_tensor(_open(image_file).convert("RGB"))
        labels = read_labels(label_file, self.num_classes)
        if labels.shape != image.shape[1:]:
            sizes = f"{tuple(labels.shape)}, not {tuple(image.shape[1:])} as its image"
            raise TenfoldError(f"{label_file} has size {sizes}: mend or remove the pair")
        return image, labels


def _paired_files(images: Path, annotations: Path) -> list[tuple[Path, Path]]:
    for folder in (images, annotations):
        if not folder.is_dir():
            raise TenfoldError(
                f"there is no folder {folder}: unpack ADE20K's scene parsing release (ADEChallengeData2016.zip) so "
                "that its images/ and annotations/ lie in ade20k/ below the data root"
            )
    found = sorted(path for path in images.iterdir() if path.suffix.lower() in (".jpg", ".jpeg", ".png"))
    if not found:
        raise TenfoldError(f"there are no images in {images}: put JPEG or PNG files there")
    pairs = [(path, annotations / f"{path.stem}.png") for path in found]
    missing = [image.name for image, labels in pairs if not labels.is_file()]
    if missing:
        raise TenfoldError(
            f"{len(missing)} of {len(pairs)} images have no PNG in {annotations}, the first is {missing[0]}: add their "
            "annotations or remove them"
        )
    return pairs


def _open(path: Path) -> Image.Image:
    try:
        with Image.open(path) as picture:
            picture.load()
            return picture
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise TenfoldError(f"{path} cannot be read as an image: get it again or remove it") from error


def read_labels(path: Path, num_classes: int) -> Tensor:
    """Labels of a PNG of bytes, minus 1: uint8 [H, W], where 0 and 255 of the file are now 255.

    Raises:
        TenfoldError: it cannot be read, is no picture of one channel of bytes, or a label is out of range.
    """
    picture = _open(path)
    if picture.mode not in ("L", "P"):
        raise TenfoldError(
            f"{path} has pixels of mode {picture.mode}: annotations are PNGs of one channel of bytes"
        )
    labels = transforms.pil_to_tensor(picture)[0]
    labels = torch.where(labels == 0, IGNORE_INDEX, labels - 1)
    labels = torch.where(labels == IGNORE_INDEX - 1, IGNORE_INDEX, labels)  # 255 of the file
    classes = labels[labels != IGNORE_INDEX]
    if classes.numel() and int(classes.max()) >= num_classes:
        raise TenfoldError(
            f"{path} has label {int(classes.max()) + 1}, and {num_classes} classes end there: is it another set?"
        )
    return labels


# -- sizes ---------------------------------------------------------------------------------------------


def fitted_size(size: Sequence[int], long_side: int, short_side: int) -> tuple[int, int]:
    """Height and width of the largest image of the shape of ``size`` whose sides are within two limits."""
    factor = min(long_side / max(size), short_side / min(size))
    height, width = (max(1, math.floor(side * factor + 0.5)) for side in size)
    return height, width


def fit(image: Tensor, long_side: int, short_side: int) -> Tensor:
    """An image [3, H, W] within two limits; bilinear, without antialias."""
    size = fitted_size(image.shape[1:], long_side, short_side)
    resized: Tensor = transforms.resize(image, list(size), InterpolationMode.BILINEAR, antialias=False)
    return resized


def normalised(image: Tensor) -> Tensor:
    """Pixels in [0, 1] with ImageNet's mean and deviation taken out."""
    changed: Tensor = transforms.normalize(image, list(IMAGENET_DEFAULT_MEAN), list(IMAGENET_DEFAULT_STD))
    return changed


def as_fractions(image: Tensor) -> Tensor:
    """Bytes as float32 in [0, 1]."""
    changed: Tensor = transforms.to_dtype(image, torch.float32, scale=True)
    return changed


# -- augmentation --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Augmentation:
    """How images and labels are changed for training. The defaults are the paper's."""

    crop_size: int = 512
    """Side of the crops, which is also that of the windows in which whole images are judged."""
    long_side: int = 2048
    """Limit of the longer side before the random factor."""
    short_side: int = 512
    """Limit of the shorter side before the random factor."""
    ratios: tuple[float, float] = (0.5, 2.0)
    """Between which the factor of both limits is drawn."""
    max_class_share: float = 0.75
    """Of one class among a crop's labelled pixels."""
    flip: float = 0.5
    """Probability of a horizontal flip."""

    def __post_init__(self) -> None:
        if min(self.crop_size, self.long_side, self.short_side) < 1:
            raise TenfoldError("crops and limits are at least 1 pixel")
        if not 0 < self.ratios[0] <= self.ratios[1]:
            raise TenfoldError(f"sizes are drawn between two positive factors, not {self.ratios}")
        if not (0 < self.max_class_share <= 1 and 0 <= self.flip <= 1):
            raise TenfoldError("a class has a share above 0 and at most 1, and a flip a probability")

    def __call__(self, image: Tensor, labels: Tensor, generator: Generator) -> Pair:
        """Random size, balanced crop, flip, photometric distortion, and padding with the mean colour and 255.

        Args:
            image: uint8 [3, H, W].
            labels: uint8 [H, W].
            generator: of all draws, on the CPU.

        Returns:
            float32 [3, crop, crop], normalised, and int64 [crop, crop].
        """
        ratio = uniform(generator, *self.ratios)
        image = fit(image, max(1, int(self.long_side * ratio)), max(1, int(self.short_side * ratio)))
        labels = transforms.resize(labels[None], list(image.shape[1:]), InterpolationMode.NEAREST)[0]
        top, left = self._balanced_place(labels, generator)
        rows, columns = slice(top, top + self.crop_size), slice(left, left + self.crop_size)
        image, labels = image[:, rows, columns], labels[rows, columns]
        if uniform(generator) < self.flip:
            image, labels = image.flip(-1), labels.flip(-1)
        image = normalised(photometric_distortion(as_fractions(image), generator))
        margins = (0, self.crop_size - labels.shape[1], 0, self.crop_size - labels.shape[0])
        return F.pad(image, margins), F.pad(labels.long(), margins, value=IGNORE_INDEX)

    def _balanced_place(self, labels: Tensor, generator: Generator) -> tuple[int, int]:
        """Top and left of a crop, drawn again up to ten times where one class has too much of it."""
        height, width = labels.shape
        for _ in range(CROP_ATTEMPTS):
            top, left = (
                int(torch.randint(max(side - self.crop_size, 0) + 1, (), generator=generator))
                for side in (height, width)
            )
            crop = labels[top : top + self.crop_size, left : left + self.crop_size]
            counts = crop.flatten().bincount(minlength=IGNORE_INDEX + 1)[:IGNORE_INDEX]
            if counts.count_nonzero() > 1 and counts.max() < self.max_class_share * counts.sum():
                break
        return top, left


def uniform(generator: Generator, low: float = 0.0, high: float = 1.0) -> float:
    """A number from a generator."""
    return low + (high - low) * torch.rand((), generator=generator).item()


def photometric_distortion(image: Tensor, generator: Generator) -> Tensor:
    """Brightness, contrast, saturation and hue, each changed with probability one half; contrast second or last.

    Liu et al., SSD: Single Shot MultiBox Detector, ECCV 2016. torchvision's own transform multiplies the brightness and
    also swaps channels.

    Args:
        image: [3, H, W], in [0, 1].
        generator: of all draws.
    """
    brightness, contrast, saturation, hue, contrast_first = (
        torch.rand(5, generator=generator) < 0.5
    ).tolist()
    if brightness:
        image = (image + uniform(generator, -BRIGHTNESS, BRIGHTNESS)).clamp(0, 1)
    factor = uniform(generator, 1 - CONTRAST, 1 + CONTRAST)
    if contrast and contrast_first:
        image = (image * factor).clamp(0, 1)
    if saturation:
        image = saturated(image, uniform(generator, 1 - SATURATION, 1 + SATURATION))
    if hue:
        image = transforms.adjust_hue(image, uniform(generator, -HUE, HUE))
    if contrast and not contrast_first:
        image = (image * factor).clamp(0, 1)
    return image


def saturated(image: Tensor, factor: float) -> Tensor:
    """Saturation in HSV times a factor, at most 1; hue and value stay. [3, H, W], in [0, 1]."""
    value, least = image.amax(0, keepdim=True), image.amin(0, keepdim=True)
    saturation = (value - least) / value.clamp(min=1e-6)
    stretch = (saturation * factor).clamp(max=1) / saturation.clamp(min=1e-6)
    return (value - (value - image) * stretch).clamp(0, 1)


# -- samples -------------------------------------------------------------------------------------------


class TrainingSamples(Dataset[Pair]):
    """What a run sees, by place in it: epochs in random order; a sample depends on seed and place alone.

    Args:
        data: the training images.
        augmentation: of them.
        count: samples of the whole run.
        seed: of order and augmentation.
    """

    def __init__(self, data: ADE20K, augmentation: Augmentation, count: int, seed: int) -> None:
        epochs = math.ceil(count / len(data))
        self.data, self.augmentation, self.seed = data, augmentation, seed
        self.order = torch.cat([epoch_order(len(data), seed, epoch) for epoch in range(epochs)])[:count]

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, place: int) -> Pair:
        # torch's generator on the CPU looks at the lower 32 bits of a seed alone: both numbers have to be mixed.
        mixed = np.random.SeedSequence((self.seed, place)).generate_state(1)[0]
        return self.augmentation(*self.data[int(self.order[place])], make_generator(int(mixed)))


class ValidationSamples(Dataset[Pair]):
    """Whole images within 2048 x 512, float32 and normalised; labels, int64, at the files' own size.

    Args:
        data: the validation images.
        long_side: limit of the longer side in pixels.
        short_side: of the shorter side.
    """

    def __init__(self, data: ADE20K, long_side: int = 2048, short_side: int = 512) -> None:
        self.data, self.long_side, self.short_side = data, long_side, short_side

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> Pair:
        image, labels = self.data[index]
        return normalised(as_fractions(fit(image, self.long_side, self.short_side))), labels.long()


# -- metrics -------------------------------------------------------------------------------------------


def segmentation_metrics(confusion: Tensor) -> dict[str, float]:
    """miou, macc and aacc in per cent.

    mIoU is the mean of TP / (TP + FP + FN), mAcc that of TP / (TP + FN), aAcc the share of pixels that are right. A
    class for which one is 0 / 0 is left out of its mean.

    Args:
        confusion: pixels of class i that were taken for class j, [classes, classes].
    """
    counts = confusion.double()
    hits, labelled, predicted = counts.diag(), counts.sum(dim=1), counts.sum(dim=0)
    return {
        "miou": 100 * (hits / (labelled + predicted - hits)).nanmean().item(),
        "macc": 100 * (hits / labelled).nanmean().item(),
        "aacc": 100 * (hits.sum() / labelled.sum()).item(),
    }
