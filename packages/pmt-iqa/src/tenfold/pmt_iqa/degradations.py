"""The quick profile's data: photographs, five distortions at five levels, and a full-reference score.

The score is a proxy for what people would say, computed from the undistorted original. Nobody's opinion is in it.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import piq
import skimage.data
import torch
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import gaussian_filter
from sklearn.datasets import load_sample_images

from tenfold.pmt_iqa.pixels import Picture, read_picture
from tenfold.shared.logging import TenfoldError

PHOTOGRAPHS = (
    *("astronaut", "chelsea", "coffee", "rocket", "stereo_motorcycle", "camera"),
    *("coins", "brick", "grass", "gravel", "china", "flower"),
)
"""Of scikit-image (NASA, CC0, public domain, no known restrictions, Middlebury) and scikit-learn (CC BY 2.0)."""

GMSD_OF_ZERO = 0.30
"""Gradient magnitude similarity deviation at which the proxy score is 0."""


def _jpeg(picture: Picture, quality: float, _: np.random.Generator) -> Picture:
    return _recoded(picture, "JPEG", quality=int(quality))


def _jpeg2000(picture: Picture, rate: float, _: np.random.Generator) -> Picture:
    return _recoded(picture, "JPEG2000", quality_mode="rates", quality_layers=[rate])


def _blur(picture: Picture, sigma: float, _: np.random.Generator) -> Picture:
    return _bytes(gaussian_filter(picture.astype(np.float32), sigma, axes=(0, 1)))


def _noise(picture: Picture, variance: float, rng: np.random.Generator) -> Picture:
    return _bytes(picture + rng.normal(0, 255 * variance**0.5, picture.shape))


def _contrast(picture: Picture, factor: float, _: np.random.Generator) -> Picture:
    mean = picture.mean(axis=(0, 1))
    return _bytes(mean + factor * (picture - mean))


Distortion = Callable[[Picture, float, np.random.Generator], Picture]

DISTORTIONS: dict[str, tuple[Distortion, tuple[float, ...]]] = {
    "jpeg": (_jpeg, (43, 30, 18, 9, 4)),
    "jpeg2000": (_jpeg2000, (16, 32, 52, 90, 170)),
    "blur": (_blur, (0.7, 1.2, 1.8, 2.8, 4.5)),
    "noise": (_noise, (0.001, 0.003, 0.008, 0.02, 0.05)),
    "contrast": (_contrast, (0.8, 0.62, 0.46, 0.32, 0.2)),
}
"""By name: what is done, and its five levels: quality, rate, sigma in pixels, variance on [0, 1], factor."""


@dataclass(frozen=True)
class DistortedPictures:
    """Pictures in the order photograph, crop, distortion, level."""

    pictures: list[Picture]
    scores: NDArray[np.float32]
    """q, from 0 to 10."""
    names: list[str]
    """photograph-crop-distortion-level."""
    photographs: list[str]


def bundled_photographs() -> dict[str, Picture]:
    """The twelve photographs that come with scikit-image and scikit-learn, RGB bytes by name."""
    samples = dict(zip(("china", "flower"), load_sample_images().images, strict=True))
    found: dict[str, Picture] = {}
    for name in PHOTOGRAPHS:
        picture = samples[name] if name in samples else getattr(skimage.data, name)()
        picture = picture[0] if isinstance(picture, tuple) else picture  # the left one of a stereo pair
        found[name] = np.stack([picture] * 3, axis=-1) if picture.ndim == 2 else np.array(picture)
    return found


def folder_photographs(folder: Path) -> dict[str, Picture]:
    """Photographs in a folder, by file name.

    Raises:
        TenfoldError: there are fewer than four, or one is damaged.
    """
    paths = sorted(
        path for path in folder.glob("*") if path.suffix.lower() in (".jpg", ".jpeg", ".png", ".bmp")
    )
    if len(paths) < 4:
        raise TenfoldError(f"{folder} holds {len(paths)} photographs; at least 4 are needed to split them")
    return {path.name: read_picture(path) for path in paths}


def distort(
    photographs: dict[str, Picture], size: int = 128, crops: int = 5, seed: int = 0
) -> DistortedPictures:
    """Crop every photograph, distort every crop in every way, and score it.

    Args:
        photographs: RGB bytes [H, W, 3] by name.
        size: side of the crops.
        crops: of each photograph.
        seed: of the places and the noise.

    Raises:
        TenfoldError: a photograph is smaller than a crop.
    """
    pictures: list[Picture] = []
    scores: list[NDArray[np.float32]] = []
    names: list[str] = []
    for number, (name, photograph) in enumerate(photographs.items()):
        if min(photograph.shape[:2]) < size:
            raise TenfoldError(f"the photograph {name} is smaller than {size} pixels; leave it out")
        rng = np.random.default_rng((seed, number))
        for crop in range(crops):
            top, left = (int(rng.integers(0, side - size + 1)) for side in photograph.shape[:2])
            clean = photograph[top : top + size, left : left + size]
            distorted = [
                (f"{name}-{crop}-{kind}-{level}", apply(clean, strength, rng))
                for kind, (apply, strengths) in DISTORTIONS.items()
                for level, strength in enumerate(strengths, start=1)
            ]
            names += [label for label, _ in distorted]
            pictures += [picture for _, picture in distorted]
            scores.append(proxy_score(clean, [picture for _, picture in distorted]))
    return DistortedPictures(
        pictures, np.concatenate(scores), names, [name.rsplit("-", 3)[0] for name in names]
    )


def proxy_score(clean: Picture, distorted: Sequence[Picture]) -> NDArray[np.float32]:
    """``q = 10 clip(1 - GMSD / 0.30, 0, 1)`` of each distorted picture, [n].

    GMSD (Xue et al., 2014) is the deviation of the similarity of gradient magnitudes, on the luma at half resolution.

    Args:
        clean: original, bytes [H, W, 3].
        distorted: of the same shape.
    """
    judged = torch.from_numpy(np.stack(distorted)).permute(0, 3, 1, 2).float()
    reference = torch.from_numpy(clean.copy()).permute(2, 0, 1).float().expand_as(judged)
    deviation = piq.gmsd(judged, reference, reduction="none", data_range=255.0)
    return np.asarray(10 * (1 - deviation / GMSD_OF_ZERO).clamp(0, 1), dtype=np.float32)


def _recoded(picture: Picture, kind: str, **options: object) -> Picture:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, kind, **options)
    with Image.open(buffer) as image:
        return np.array(image.convert("RGB"))


def _bytes(values: NDArray[np.floating]) -> Picture:
    rounded: Picture = np.clip(np.rint(values), 0, 255).astype(np.uint8)
    return rounded
