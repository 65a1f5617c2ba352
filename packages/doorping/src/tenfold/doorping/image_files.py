"""How image sets lie in files: torchvision's folders, idx files in xz, and sheets of CIFAR-10.

Every reader gives images as bytes [N, C, H, W] and labels as int64 [N]. What is missing or damaged is a
:class:`TenfoldError` of one sentence; a file that the system will not read is an :class:`OSError`.
"""

from __future__ import annotations

import io
import lzma
import pickle
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision import datasets
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as transforms

from tenfold.shared.logging import TenfoldError

Split = tuple[Tensor, Tensor]
"""Images, bytes [N, C, H, W], and their labels, int64 [N]."""

NEEDS_NO_DATA = "or use --profile quick, which needs no data"


def resize(images: Tensor, size: int, interpolation: Literal["bilinear", "bicubic"] = "bilinear") -> Tensor:
    """Bytes [N, C, H, W] as bytes [N, C, size, size], as torchvision's Resize makes them of PIL's images.

    Bilinear is the same to the bit and bicubic to one level where the processor has AVX2; to one level elsewhere.
    """
    mode = InterpolationMode(interpolation)
    parts = [transforms.resize(part, [size, size], mode, antialias=True) for part in images.split(4096)]
    return torch.cat(parts)


# -- torchvision -------------------------------------------------------------------------------------------

PLACES = {
    "FashionMNIST": "FashionMNIST",
    "CIFAR10": "cifar-10-batches-py",
    "CIFAR100": "cifar-100-python",
    "STL10": "stl10_binary",
    "SVHN": "train_32x32.mat",
}
"""Where torchvision keeps each set below the root."""

READING_ERRORS = (
    RuntimeError,
    ValueError,
    TypeError,
    LookupError,
    AssertionError,
    EOFError,
    pickle.PickleError,
)
"""What torchvision's readers raise for files that are missing or damaged."""


def read_torchvision(
    name: str, title: str, classes: int, root: Path, download: bool, also: Path | None = None
) -> tuple[Split, Split]:
    """The training and the test images of a class of torchvision.datasets, taken from its arrays.

    CIFAR's batches are pickles; torchvision opens them after their MD5 has been found right.

    Args:
        name: of the class: FashionMNIST, CIFAR10, CIFAR100, STL10 (labelled images alone) or SVHN.
        title: what a reader calls the set.
        classes: number of classes K.
        root: folder of all data.
        download: fetch what is missing.
        also: where the set was looked for besides.

    Raises:
        TenfoldError: the set is missing, incomplete or damaged, or could not be fetched.
    """
    kind = getattr(datasets, name)
    by_split = name in ("STL10", "SVHN")
    options: list[dict[str, Any]] = [
        {"split": part} if by_split else {"train": part == "train"} for part in ("train", "test")
    ]
    place = root / PLACES[name]
    try:
        parts = [kind(str(root), download=download, **option) for option in options]
    except (*READING_ERRORS, OSError) as error:
        if isinstance(error, OSError) and not download:
            raise
        if download:
            reason = " ".join(str(error).split()) or type(error).__name__
            raise TenfoldError(
                f"{title} could not be fetched into {root} ({reason}); look at the connection and the free space, "
                f"put the files there by hand, {NEEDS_NO_DATA}"
            ) from error
        if place.exists():
            raise TenfoldError(
                f"{title} in {place} is incomplete or damaged; remove it and fetch it again with --download, "
                f"{NEEDS_NO_DATA}"
            ) from error
        places = f"{place} is not there" if also is None else f"neither {place} nor {also} is there"
        raise TenfoldError(
            f"{title} was not found, for {places}; add --download to fetch it, set --data-root to the folder that has "
            f"it, {NEEDS_NO_DATA}"
        ) from error
    train, test = (_checked(*_arrays(part), classes, place) for part in parts)
    return train, test


def _arrays(part: Any) -> Split:
    images = torch.as_tensor(part.data)
    if images.ndim == 3:
        images = images[:, None]
    elif isinstance(part, datasets.CIFAR10):
        images = images.permute(0, 3, 1, 2)
    labels = part.labels if hasattr(part, "labels") else part.targets
    return images.contiguous(), torch.as_tensor(labels).long()


def _checked(images: Tensor, labels: Tensor, classes: int, place: Path) -> Split:
    """The same, once it is certain that there is one label of a class for each image."""
    if not 0 < len(images) == len(labels):
        raise TenfoldError(
            f"{place} is damaged: it has {len(images)} images and {len(labels)} labels; get it again"
        )
    if not 0 <= int(labels.min()) <= int(labels.max()) < classes:
        raise TenfoldError(f"{place} is damaged: it has labels outside 0 to {classes - 1}; get it again")
    return images, labels


# -- FashionMNIST as idx files in xz -----------------------------------------------------------------------


def read_fashion_mnist_xz(folder: Path) -> tuple[Split, Split]:
    """FashionMNIST of 28 pixels from idx files in xz; the training images are in six parts.

    Raises:
        TenfoldError: a file is missing or damaged; it is named.
    """
    parts = [_read_idx_xz(folder / f"train-images-{part}-of-6.idx3-ubyte.xz", 3) for part in range(1, 7)]
    try:
        train = torch.cat(parts)
    except RuntimeError as error:
        raise TenfoldError(f"{folder} is damaged: its images differ in size; get it again") from error
    test = _read_idx_xz(folder / "test-images.idx3-ubyte.xz", 3)
    labels = [_read_idx_xz(folder / f"{part}-labels.idx1-ubyte.xz", 1).long() for part in ("train", "test")]
    return (
        _checked(train[:, None], labels[0], 10, folder),
        _checked(test[:, None], labels[1], 10, folder),
    )


def _read_idx_xz(path: Path, dimensions: int) -> Tensor:
    with _file_of("FashionMNIST", path):
        content = lzma.decompress(path.read_bytes())
        header = np.frombuffer(content, dtype=">i4", count=1 + dimensions)
        if header[0] != 0x800 + dimensions:
            raise ValueError("not an idx file of bytes with this many dimensions")
        values = np.frombuffer(content, dtype=np.uint8, offset=header.nbytes)
        return torch.from_numpy(values.reshape(header[1:]).copy())


@contextmanager
def _file_of(title: str, path: Path) -> Iterator[None]:
    """Says in one sentence that a file of a set is missing or damaged."""
    try:
        yield
    except FileNotFoundError as error:
        raise TenfoldError(
            f"{title} lacks the file {path}; put it there, set --data-root to the folder that has the set, "
            f"{NEEDS_NO_DATA}"
        ) from error
    except (
        OSError,
        EOFError,
        ValueError,
        lzma.LZMAError,
        tarfile.TarError,
        Image.DecompressionBombError,
    ) as error:
        if isinstance(error, OSError) and error.errno is not None:  # the system's, not the content's
            raise
        raise TenfoldError(f"{path} is damaged; get it again, {NEEDS_NO_DATA}") from error


# -- CIFAR-10 in sheets ------------------------------------------------------------------------------------

CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
SHEETS = "CIFAR-10 in sheets"


def read_cifar10_sheets(folder: Path) -> tuple[Split, Split, Split]:
    """CIFAR-10 from lossless WebP sheets of 1000 images.

    Returns:
        The 50,000 training images and the first 1000 test images, both to the bit, and all test images after JPEG.

    Raises:
        TenfoldError: a file is missing or damaged; it is named.
    """
    train_labels, exact_labels = (
        _read_labels(folder / name) for name in ("train_labels.npy", "test_exact_labels.npy")
    )
    exact = _checked(_read_sheet(folder / "test_exact_0000_0999.webp"), exact_labels, 10, folder)
    jpeg = _read_jpegs(folder / "test_jpeg_q75.tar.xz")
    train = torch.cat([_read_sheet(folder / f"train_{part:02}.webp") for part in range(50)])
    return _checked(train, train_labels, 10, folder), exact, jpeg


def _read_sheet(path: Path) -> Tensor:
    """1000 images, 40 to a row."""
    with _file_of(SHEETS, path), Image.open(path) as sheet:
        pixels = torch.from_numpy(np.array(sheet.convert("RGB")))
        if pixels.shape != (25 * 32, 40 * 32, 3):
            raise ValueError("not a sheet of 25 rows of 40 images")
        tiles = pixels.view(25, 32, 40, 32, 3).permute(0, 2, 4, 1, 3)
        return tiles.reshape(1000, 3, 32, 32)


def _read_labels(path: Path) -> Tensor:
    with _file_of(SHEETS, path):
        return torch.from_numpy(np.load(path, allow_pickle=False).astype(np.int64))


def _read_jpegs(path: Path) -> Split:
    """All ``<class>/<number>.jpg`` of an archive, which is read and never unpacked."""
    images, labels = [], []
    with _file_of(SHEETS, path), tarfile.open(path) as archive:
        for member in archive:
            file = archive.extractfile(member)
            if file is not None and member.name.endswith(".jpg"):
                with Image.open(io.BytesIO(file.read())) as picture:
                    images.append(np.asarray(picture.convert("RGB")))
                labels.append(CIFAR10_CLASSES.index(Path(member.name).parent.name))
        pixels = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous()
    return _checked(pixels, torch.tensor(labels), 10, path)
