"""Decoded images on the device, and crops of them in one gather."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
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


@dataclass(frozen=True)
class Crops:
    """Where crops are: image, top and left corner, and whether they are mirrored; each [m]."""

    images: Tensor
    tops: Tensor
    lefts: Tensor
    mirrored: Tensor

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, which: slice) -> Crops:
        return Crops(self.images[which], self.tops[which], self.lefts[which], self.mirrored[which])

    def packed(self) -> Tensor:
        """All four as int64 [m, 4], for one copy to the device."""
        return torch.stack((self.images, self.tops, self.lefts, self.mirrored.long()), dim=1)


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
            where: :meth:`Crops.packed`, on this device.
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
    # The constants are filled on the device, which needs no copy from the host.
    scale = torch.stack([torch.full((), 1 / (255 * std), device=crops.device) for std in STD])
    shift = torch.stack(
        [torch.full((), -mean / std, device=crops.device) for mean, std in zip(MEAN, STD, strict=True)]
    )
    return (
        rows.mul_(scale.repeat(width))
        .add_(shift.repeat(width))
        .view(count, height, width, 3)
        .permute(0, 3, 1, 2)
    )


# -- where crops are -----------------------------------------------------------------------------------


def random_crops(
    images: Tensor, sizes: Tensor, size: int, count: int, generator: torch.Generator, mirror: bool = True
) -> Crops:
    """``count`` crops anywhere in each of some images, one image after the other, half of them mirrored.

    Args:
        images: indices, [m].
        sizes: of all images, [n, 2], on the CPU.
        size: side of a crop.
        count: crops of each image.
        generator: of places and mirroring.
        mirror: whether any are mirrored.
    """
    repeated = images.repeat_interleave(count)
    room = sizes[repeated] - size + 1
    drawn = torch.rand(len(repeated), 3, generator=generator, dtype=torch.float64)
    places = (drawn[:, :2] * room).long().minimum(room - 1)
    return Crops(repeated, places[:, 0], places[:, 1], (drawn[:, 2] < 0.5) & mirror)


def judging_crops(
    images: Tensor, sizes: Tensor, size: int, count: int, rule: CropRule, seed: int = 0
) -> Crops:
    """The crops an image is judged by; the same whenever and wherever it is judged.

    Args:
        images: indices, [m].
        sizes: of all images, [n, 2], on the CPU.
        size: side of a crop.
        count: crops of each image; a square number for ``grid``, 4 for ``corners``, 1 for ``center``.
        rule: ``random`` places depend on the seed and the image's index alone; ``grid`` spreads them evenly.
        seed: of ``random``.

    Raises:
        TenfoldError: the number does not fit the rule.
    """
    if rule == "random":
        drawn = [
            random_crops(
                image[None], sizes, size, count, make_generator(seed * 1_000_003 + int(image)), mirror=False
            )
            for image in images
        ]
        return Crops(*(torch.cat([getattr(crops, name) for crops in drawn]) for name in vars(drawn[0])))
    shares = _shares(rule, count)
    room = (sizes[images] - size).double()
    places = (room[:, None, :] * shares).round().long().reshape(-1, 2)
    repeated = images.repeat_interleave(count)
    return Crops(repeated, places[:, 0], places[:, 1], torch.zeros(len(repeated), dtype=torch.bool))


def _shares(rule: CropRule, count: int) -> Tensor:
    """Places as shares of the room there is, [count, 2]."""
    side = round(count**0.5)
    wanted = {"grid": side**2, "corners": 4, "center": 1}
    if count != wanted[rule]:
        raise TenfoldError(
            f"{rule} crops are {'a square number' if rule == 'grid' else wanted[rule]}, not {count}; change "
            "--test-crops or --test-crop-rule"
        )
    if rule == "center" or side == 1:
        return torch.full((1, 2), 0.5, dtype=torch.float64)
    line = torch.linspace(0, 1, side, dtype=torch.float64)
    return torch.cartesian_prod(line, line)


# -- decoding ------------------------------------------------------------------------------------------


def read_picture(path: Path, resize: tuple[int, int] | None = None) -> Picture:
    """Decode one file to RGB bytes [H, W, 3].

    Args:
        path: of the file.
        resize: height and width to resize to, bilinearly.

    Raises:
        TenfoldError: the file is missing or no image, or is cut off.
    """
    try:
        with Image.open(path) as image:
            colour = image.convert("RGB")
    except FileNotFoundError as error:
        raise TenfoldError(f"there is no image {path}; check the data set's folder") from error
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise TenfoldError(f"{path} is damaged or no image; replace it or leave it out") from error
    if resize is not None:
        colour = colour.resize((resize[1], resize[0]), Image.Resampling.BILINEAR)
    return np.array(colour, dtype=np.uint8)


def decode(
    paths: Sequence[Path], resize: tuple[int, int] | None = None, cache: Path | None = None, threads: int = 8
) -> PixelStore:
    """Decode files once, in several threads.

    Args:
        paths: of the files.
        resize: height and width of all.
        cache: folder for the decoded pixels, which later runs map into memory instead of decoding again.
        threads: that decode.

    Raises:
        TenfoldError: a file is missing or damaged; it is named.
    """
    if cache is not None and (stored := _read_cache(cache, paths, resize)) is not None:
        return stored
    with ThreadPoolExecutor(threads) as pool:
        pictures = list(pool.map(lambda path: read_picture(path, resize), paths))
    store = PixelStore.of(pictures)
    if cache is not None:
        _write_cache(cache, paths, resize, store)
    return store


def _cache_files(cache: Path, paths: Sequence[Path], resize: tuple[int, int] | None) -> tuple[Path, Path]:
    """Pixels and sizes; their name changes with every file's name, length and time."""
    try:
        listed = [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in paths]
    except OSError as error:
        raise TenfoldError(f"there is no image {error.filename}; check the data set's folder") from error
    digest = hashlib.sha256(json.dumps([listed, resize]).encode()).hexdigest()[:16]
    return cache / f"{digest}.pixels.npy", cache / f"{digest}.sizes.npy"


def _read_cache(cache: Path, paths: Sequence[Path], resize: tuple[int, int] | None) -> PixelStore | None:
    pixels, sizes = _cache_files(cache, paths, resize)
    if not (pixels.exists() and sizes.exists()):
        return None
    mapped = np.load(pixels, mmap_mode="c")  # copy on write: torch has no read-only tensors
    return PixelStore(torch.from_numpy(mapped), torch.from_numpy(np.load(sizes)))


def _write_cache(
    cache: Path, paths: Sequence[Path], resize: tuple[int, int] | None, store: PixelStore
) -> None:
    cache.mkdir(parents=True, exist_ok=True)
    for path, values in zip(_cache_files(cache, paths, resize), (store.pixels, store.sizes), strict=True):
        with replaced(path) as temporary, temporary.open("wb") as file:
            np.save(file, values.numpy())
