"""Labelled images as bytes in memory, and the data sets they come from."""

from __future__ import annotations

import gzip
import io
import tarfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor
from torchvision import datasets

from tenfold.shared.logging import TenfoldError


@dataclass(frozen=True)
class ImageSet:
    """Images and their labels."""

    images: Tensor
    """Bytes [N, channels, height, width]."""
    labels: Tensor
    """int64 [N]."""

    def __post_init__(self) -> None:
        if self.images.dtype != torch.uint8 or self.images.ndim != 4 or len(self.images) != len(self.labels):
            raise TenfoldError(
                f"a set has images as uint8 [N, channels, height, width] and a label for each, not "
                f"{self.images.dtype} {list(self.images.shape)} and {len(self.labels)} labels"
            )

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: Tensor) -> ImageSet:
        return ImageSet(self.images[index], self.labels[index])

    def of_classes(self, classes: tuple[int, ...]) -> ImageSet:
        """The images of some classes, in their order."""
        return self[torch.isin(self.labels, torch.tensor(classes))]

    def to(self, device: torch.device) -> ImageSet:
        return ImageSet(self.images.to(device), self.labels.to(device))

    @property
    def image_shape(self) -> tuple[int, int, int]:
        channels, height, width = self.images.shape[1:]
        return channels, height, width


@dataclass(frozen=True)
class TrainTest:
    """A data set with its test images, and further test sets by name."""

    train: ImageSet
    test: ImageSet
    further_tests: dict[str, ImageSet]


def load_image_sets(name: str, root: Path | None = None, download: bool = False) -> TrainTest:
    """A data set by name, from ``root``.

    Args:
        name: digits, mnist, cifar-10, cifar-100, tiny-imagenet, or cifar-10-mosaic (lossless WebP sheets of CIFAR-10
            with 1000 exact test images).
        root: folder of all data.
        download: fetch MNIST, CIFAR-10 or CIFAR-100 where it is missing.

    Raises:
        TenfoldError: the name is unknown, or the data is not there.
    """
    if name not in LOADERS:
        raise TenfoldError(f"unknown data set {name!r}; choose one of {', '.join(LOADERS)}")
    try:
        return LOADERS[name](root or Path("data"), download)
    except FileNotFoundError as error:
        raise TenfoldError(
            f"{NAMES.get(name, name)} lacks the file {error.filename}; fetch or unpack the set again"
        ) from error


def _digits(root: Path, download: bool) -> TrainTest:
    """scikit-learn's 8x8 digits with values from 0 to 16, three quarters of each class for training."""
    del root, download
    bunch = load_digits()
    images = torch.from_numpy(bunch.images).to(torch.uint8)[:, None]
    labels = torch.from_numpy(bunch.target).to(torch.int64)
    indices = train_test_split(np.arange(len(labels)), test_size=0.25, random_state=0, stratify=bunch.target)
    train, test = (ImageSet(images, labels)[torch.from_numpy(index)] for index in indices)
    return TrainTest(train, test, {})


def _mnist(root: Path, download: bool) -> TrainTest:
    """Torchvision's MNIST; the four idx.gz files in ``mnist/`` do as well."""
    files = root / "mnist"
    if (files / "train-images-idx3-ubyte.gz").exists() and not (root / "MNIST").exists():
        parts = []
        for part in ("train", "t10k"):
            images = _read_idx(files / f"{part}-images-idx3-ubyte.gz", 3)
            labels = _read_idx(files / f"{part}-labels-idx1-ubyte.gz", 1)
            parts.append(ImageSet(images[:, None], labels.long()))
        return TrainTest(parts[0], parts[1], {})
    splits = [
        _torchvision(datasets.MNIST, "MNIST", root, train=train, download=download) for train in (True, False)
    ]
    train, test = (ImageSet(split.data[:, None], split.targets.long()) for split in splits)
    return TrainTest(train, test, {})


def _read_idx(path: Path, dimensions: int) -> Tensor:
    try:
        content = gzip.decompress(path.read_bytes())
        header = np.frombuffer(content, dtype=">i4", count=1 + dimensions)
        if header[0] != 0x800 + dimensions:
            raise ValueError
        values = np.frombuffer(content, dtype=np.uint8, offset=header.nbytes)
        return torch.from_numpy(values.reshape(header[1:]).copy())
    except FileNotFoundError:
        raise
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise TenfoldError(f"{path} is damaged; fetch it again") from error


def _cifar(kind: type[datasets.CIFAR10]) -> Callable[[Path, bool], TrainTest]:
    def load(root: Path, download: bool) -> TrainTest:
        splits = [
            _torchvision(kind, kind.__name__, root, train=train, download=download) for train in (True, False)
        ]
        train, test = (
            ImageSet(
                torch.from_numpy(split.data).permute(0, 3, 1, 2).contiguous(), torch.tensor(split.targets)
            )
            for split in splits
        )
        return TrainTest(train, test, {})

    return load


def _torchvision(
    kind: Callable[..., datasets.VisionDataset], name: str, root: Path, **options: bool
) -> datasets.VisionDataset:
    try:
        return kind(str(root), **options)
    except RuntimeError as error:
        raise TenfoldError(
            f"{name} was not found in {root}, or is damaged; add --download to fetch it, or use --profile quick, which "
            "needs no data"
        ) from error


def _tiny_imagenet(root: Path, download: bool) -> TrainTest:
    """``tiny-imagenet-200/`` as its archive unpacks; the 10000 validation images are the test set.

    Classes are numbered in the order of their names.
    """
    del download
    folder = root / "tiny-imagenet-200"
    if not (folder / "wnids.txt").exists():
        raise TenfoldError(
            f"Tiny ImageNet was not found in {folder}; fetch tiny-imagenet-200.zip from the page of Stanford's "
            "CS231n and unpack it there, or use --profile quick, which needs no data"
        )
    classes = {wnid: index for index, wnid in enumerate(sorted((folder / "wnids.txt").read_text().split()))}
    train = [
        (path, label)
        for wnid, label in classes.items()
        for path in sorted((folder / "train" / wnid / "images").glob("*.JPEG"))
    ]
    annotations = (folder / "val" / "val_annotations.txt").read_text().splitlines()
    test = [
        (folder / "val" / "images" / name, classes[wnid])
        for name, wnid in (line.split("\t")[:2] for line in annotations)
    ]
    return TrainTest(_read_images(train), _read_images(test), {})


def _read_images(files: list[tuple[Path, int]]) -> ImageSet:
    if not files:
        raise TenfoldError("Tiny ImageNet has no images below train/ or val/; unpack its archive again")
    pixels = np.stack([np.asarray(Image.open(path).convert("RGB")) for path, _ in files])
    labels = torch.tensor([label for _, label in files])
    return ImageSet(torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous(), labels)


CIFAR_CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


def _cifar_mosaic(root: Path, download: bool) -> TrainTest:
    """CIFAR-10 in sheets: the training half and 1000 test images to the bit, and all test images as JPEG (``jpeg``)."""
    del download
    folder = root / "cifar10"
    if not (folder / "train_49.webp").exists():
        raise TenfoldError(
            f"the sheets of CIFAR-10 (train_00.webp to train_49.webp) were not found in {folder}; set --data-root to "
            "the folder above them, or use --profile cifar10-200, which reads torchvision's CIFAR-10"
        )
    train = torch.cat([_read_sheet(folder / f"train_{part:02}.webp") for part in range(50)])
    labels = torch.from_numpy(np.load(folder / "train_labels.npy", allow_pickle=False)).long()
    test = _read_sheet(folder / "test_exact_0000_0999.webp")
    test_labels = torch.from_numpy(np.load(folder / "test_exact_labels.npy", allow_pickle=False)).long()
    jpeg = _read_jpegs(folder / "test_jpeg_q75.tar.xz")
    return TrainTest(ImageSet(train, labels), ImageSet(test, test_labels), {"jpeg": jpeg})


def _read_sheet(path: Path) -> Tensor:
    """1000 images of a sheet of 25 rows of 40 tiles."""
    with Image.open(path) as sheet:
        pixels = np.asarray(sheet.convert("RGB"))
    tiles = pixels.reshape(25, 32, 40, 32, 3).swapaxes(1, 2).reshape(1000, 32, 32, 3)
    return torch.from_numpy(tiles).permute(0, 3, 1, 2).contiguous()


def _read_jpegs(path: Path) -> ImageSet:
    """All ``test/<class>/<number>.jpg`` of an archive, which is read and never unpacked."""
    images, labels = [], []
    with tarfile.open(path) as archive:
        for member in archive:
            file = archive.extractfile(member)
            if file is not None and member.name.endswith(".jpg"):
                images.append(np.asarray(Image.open(io.BytesIO(file.read())).convert("RGB")))
                labels.append(CIFAR_CLASSES.index(member.name.split("/")[-2]))
    return ImageSet(torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous(), torch.tensor(labels))


NAMES = {"mnist": "MNIST", "tiny-imagenet": "Tiny ImageNet", "cifar-10-mosaic": "the sheets of CIFAR-10"}

LOADERS: dict[str, Callable[[Path, bool], TrainTest]] = {
    "digits": cache(_digits),
    "mnist": cache(_mnist),
    "cifar-10": cache(_cifar(datasets.CIFAR10)),
    "cifar-100": cache(_cifar(datasets.CIFAR100)),
    "tiny-imagenet": cache(_tiny_imagenet),
    "cifar-10-mosaic": cache(_cifar_mosaic),
}
