"""Decoded images on the device, and crops of them in one gather."""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from tenfold.pmt_iqa.backbones import MEAN, STD
from tenfold.shared.logging import TenfoldError
from tenfold.shared.runs import replaced
from tenfold.shared.seeding import make_generator

CropRule = Literal["random", "grid", "corners", "center"]
Picture = NDArray[np.uint8]


class PixelStore:
    """Images of any sizes, decoded once, in one array of pixels.

    Args:
        pixels: uint8 [pixels of all images, 3], row by row.
        sizes: height and width of each image, int64 [n, 2].
    """

    def __init__(self, pixels: Tensor, sizes: Tensor) -> None:
        self.pixels = pixels
        self.sizes = sizes
        counts = sizes.prod(dim=1)
        self.offsets = counts.cumsum(0) - counts

    @classmethod
    def of(cls, pictures: Sequence[Picture]) -> PixelStore:
        """A store of pictures, uint8 [H, W, 3] each."""
        pixels = np.concatenate([picture.reshape(-1, 3) for picture in pictures])
        return cls(torch.from_numpy(pixels), torch.tensor([picture.shape[:2] for picture in pictures]))

    def __len__(self) -> int:
        return len(self.sizes)

    @property
    def device(self) -> torch.device:
        return self.pixels.device

    def to(self, device: torch.device) -> PixelStore:
        """The same on a device."""
        return self if device == self.device else PixelStore(self.pixels.to(device), self.sizes.to(device))

    def picture(self, index: int) -> Picture:
        """One image, uint8 [H, W, 3]."""
        height, width = self.sizes[index].tolist()
        start = int(self.offsets[index])
        found: Picture = self.pixels[start : start + height * width].reshape(height, width, 3).cpu().numpy()
        return found

    def crop(self, where: Tensor, size: int) -> Tensor:
        """Crops as bytes.

        Args:
            where: image, top, left, and whether it is mirrored, int64 [m, 4]; on this device.
            size: side of a crop.

        Returns:
            uint8 [m, 3, size, size], channels last in memory.
        """
        image, top, left, mirrored = where.unbind(dim=1)
        # Every run of ``size`` pixels, as overlapping rows without a copy; a crop is ``size`` of them.
        runs = self.pixels.flatten().unfold(0, 3 * size, 3)
        lines = top[:, None] + torch.arange(size, device=self.device)
        starts = (self.offsets[image] + left)[:, None] + lines * self.sizes[image, 1][:, None]
        crops = runs.index_select(0, starts.flatten()).unflatten(0, (-1, size)).unflatten(2, (size, 3))
        crops = torch.where(mirrored.bool()[:, None, None, None], crops.flip(2), crops)
        return crops.permute(0, 3, 1, 2)

    def check_size(self, size: int, names: Sequence[str]) -> None:
        """Refuse crops larger than an image.

        Raises:
            TenfoldError: an image is smaller than ``size``; the first is named.
        """
        small = (self.sizes.min(dim=1).values < size).nonzero()[:, 0].tolist()
        if small:
            height, width = self.sizes[small[0]].tolist()
            further = f" (and {len(small) - 1} more)" if len(small) > 1 else ""
            raise TenfoldError(
                f"{names[small[0]]}{further} has {width} x {height} pixels, less than the crops of {size}; "
                "enlarge or leave out such images, or train with a lower --train.crop-size"
            )


def normalise(crops: Tensor) -> Tensor:
    """Bytes [m, 3, H, W] to floats with ImageNet's mean and deviation, channels last in memory."""
    count, _, height, width = crops.shape
    rows = crops.permute(0, 2, 3, 1).reshape(count * height, width * 3).float()
    scale, shift = _constants(crops.device)
    return (
        rows.mul_(scale.repeat(width))
        .add_(shift.repeat(width))
        .view(count, height, width, 3)
        .permute(0, 3, 1, 2)
    )


@cache
def _constants(device: torch.device) -> tuple[Tensor, Tensor]:
    """Scale and shift of each channel; made once for a device, so that no step copies them from the host."""
    with torch.inference_mode(False):
        mean, std = torch.tensor(MEAN), torch.tensor(STD)
        return (1 / (255 * std)).to(device), (-mean / std).to(device)


# -- where crops are -----------------------------------------------------------------------------------


def random_crops(
    images: Tensor, sizes: Tensor, size: int, count: int, generator: torch.Generator, mirror: bool = True
) -> Tensor:
    """``count`` crops anywhere in each of some images, one image after the other, half of them mirrored.

    Args:
        images: indices, [m].
        sizes: of all images, [n, 2], on the CPU.
        size: side of a crop.
        count: crops of each image.
        generator: of places and mirroring.
        mirror: whether any are mirrored.

    Returns:
        What :meth:`PixelStore.crop` takes, [m * count, 4].
    """
    repeated = images.repeat_interleave(count)
    room = sizes[repeated] - size + 1
    drawn = torch.rand(len(repeated), 3, generator=generator, dtype=torch.float64)
    places = (drawn[:, :2] * room).long().minimum(room - 1)
    mirrored = (drawn[:, 2] < 0.5) & mirror
    return torch.cat((repeated[:, None], places, mirrored[:, None].long()), dim=1)


def judging_crops(
    images: Tensor, sizes: Tensor, size: int, count: int, rule: CropRule, names: Sequence[str]
) -> Tensor:
    """The crops an image is judged by; the same whenever and wherever it is judged.

    Args:
        images: indices, [m].
        sizes: of all images, [n, 2], on the CPU.
        size: side of a crop.
        count: crops of each image; a square number for ``grid``, 4 for ``corners``, 1 for ``center``.
        rule: places of ``random`` depend on the image's name alone; ``grid`` spreads them evenly.
        names: of all images, [n].

    Returns:
        What :meth:`PixelStore.crop` takes, [m * count, 4].

    Raises:
        TenfoldError: the number does not fit the rule.
    """
    if rule == "random":
        return torch.cat(
            [
                random_crops(
                    image, sizes, size, count, make_generator(zlib.crc32(names[int(image)].encode())), False
                )
                for image in images.split(1)
            ]
        )
    shares = crop_shares(rule, count)
    room = (sizes[images] - size).double()
    places = (room[:, None, :] * shares).round().long().reshape(-1, 2)
    repeated = images.repeat_interleave(count)
    return torch.cat((repeated[:, None], places, torch.zeros(len(repeated), 1, dtype=torch.int64)), dim=1)


def crop_shares(rule: CropRule, count: int) -> Tensor:
    """Places of regular crops as shares of the room there is, [count, 2].

    Raises:
        TenfoldError: the number does not fit the rule.
    """
    side = round(count**0.5)
    wanted = {"grid": side**2, "corners": 4, "center": 1}
    if count != wanted[rule]:
        raise TenfoldError(
            f"{rule} crops are {'a square number' if rule == 'grid' else wanted[rule]}, not {count}; change "
            "--judge.crops or --judge.crop-rule"
        )
    if rule == "center" or side == 1:
        return torch.full((1, 2), 0.5, dtype=torch.float64)
    line = torch.linspace(0, 1, side, dtype=torch.float64)
    return torch.cartesian_prod(line, line)


# -- decoding ------------------------------------------------------------------------------------------


def read_picture(path: Path, resize: tuple[int, int] | None = None) -> Picture:
    """Decode one file to RGB bytes [H, W, 3]; 16-bit grey is scaled, transparency dropped.

    Args:
        path: of the file.
        resize: height and width to resize to, bilinearly.

    Raises:
        TenfoldError: the file is missing or no image, is cut off, or has numbers that are no grey levels.
    """
    try:
        with Image.open(path) as image:
            if image.mode in ("I", "F"):
                raise TenfoldError(
                    f"{path} holds numbers of any size instead of 8 or 16 bits; convert it to PNG or JPEG"
                )
            deep = image.mode.startswith("I;16")
            colour = (image.point(lambda grey: grey / 256).convert("L") if deep else image).convert("RGB")
    except FileNotFoundError as error:
        raise TenfoldError(f"there is no image {path}; check the data set's folder") from error
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise TenfoldError(f"{path} is damaged or no image; replace it or leave it out") from error
    if resize is not None:
        colour = colour.resize((resize[1], resize[0]), Image.Resampling.BILINEAR)
    return np.array(colour, dtype=np.uint8)


def decode(
    paths: Sequence[Path],
    resize: tuple[int, int] | None = None,
    cache_folder: Path | None = None,
    threads: int = 8,
) -> PixelStore:
    """Decode files once, in several threads, into one array.

    Args:
        paths: of the files.
        resize: height and width of all.
        cache_folder: folder for the decoded pixels. They are mapped into memory, so that processes share them and
            later commands need not decode again.
        threads: that decode.

    Raises:
        TenfoldError: a file is missing or damaged; it is named.
    """
    sizes = np.array([resize or picture_size(path) for path in paths], dtype=np.int64)
    ends = sizes.prod(axis=1).cumsum()
    shape = (int(ends[-1]), 3)

    def fill(pixels: NDArray[np.uint8]) -> None:
        def fill_one(number: int) -> None:
            picture = read_picture(paths[number], resize)
            pixels[ends[number] - picture.shape[0] * picture.shape[1] : ends[number]] = picture.reshape(-1, 3)

        with ThreadPoolExecutor(threads) as pool:
            for _ in pool.map(fill_one, range(len(paths))):
                pass

    if cache_folder is None:
        pixels = np.empty(shape, dtype=np.uint8)
        fill(pixels)
        return PixelStore(torch.from_numpy(pixels), torch.from_numpy(sizes))
    stored = cache_folder / f"{_digest(paths, resize)}.npy"
    if not stored.exists():
        cache_folder.mkdir(parents=True, exist_ok=True)
        with replaced(stored) as temporary:
            fill(np.lib.format.open_memmap(temporary, mode="w+", dtype=np.uint8, shape=shape))
    mapped = np.load(stored, mmap_mode="c")  # copy on write: torch has no read-only tensors
    return PixelStore(torch.from_numpy(mapped), torch.from_numpy(sizes))


def picture_size(path: Path) -> tuple[int, int]:
    """Height and width of a file, without decoding it.

    Raises:
        TenfoldError: the file is missing or no image.
    """
    try:
        with Image.open(path) as image:
            return image.height, image.width
    except FileNotFoundError as error:
        raise TenfoldError(f"there is no image {path}; check the data set's folder") from error
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise TenfoldError(f"{path} is damaged or no image; replace it or leave it out") from error


def _digest(paths: Sequence[Path], resize: tuple[int, int] | None) -> str:
    """A name that changes with every file's name, length and time."""
    listed = [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in paths]
    return hashlib.sha256(json.dumps([listed, resize]).encode()).hexdigest()[:16]
