"""Handwritten digits on photographs, as annotations of COCO's form: real data that no download is needed for.

Digits are scikit-learn's, photographs those inside scikit-image. Base classes are 0 to 6, novel ones 7 to 9.
Test images share neither digits nor photographs with the others.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib import resources
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as mask_utils
from skimage.transform import resize
from sklearn.datasets import load_digits

from tenfold.shared.logging import TenfoldError

NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
"""Of the categories 1 to 10, in this order."""
BASE_IDS = tuple(range(1, 8))
"""Categories of the digits 0 to 6."""
NOVEL_IDS = (8, 9, 10)
"""Categories of the digits 7 to 9."""
PHOTOGRAPHS = (
    "astronaut.png",
    "coffee.png",
    "chelsea.png",
    "camera.png",
    "brick.png",
    "grass.png",
    "gravel.png",
    "coins.png",
    "moon.png",
    "page.png",
    "text.png",
    "rocket.jpg",
    "hubble_deep_field.jpg",
    "ihc.png",
    "motorcycle_left.png",
)
"""Of scikit-image; the last third is for test images."""

_FORM = 1
"""Raised when the same settings give other images, so that older folders are not taken for these."""
_MASK_THRESHOLD = 0.35
_NOISE = 0.02
_PLACEMENTS = 50
"""Trials to place a digit; one that finds no room is left out, which never happens to the first."""
_DECK = 4
"""Cards of each class that are shuffled together, so that all classes come equally often."""
_PNG_RUN_LENGTHS = 3
"""zlib's strategy that is the fastest on noise, and packs it no worse."""
_TRAIN_STREAM, _TEST_STREAM, _FEW_SHOT_STREAM = range(3)

Pixels = NDArray[np.float32]


@dataclass(frozen=True)
class ComposeConfig:
    """What the images are like, and how many there are. The defaults are those of the profile ``quick``."""

    image_size: int = 64
    """Side in pixels."""
    digit_size: tuple[int, int] = (28, 43)
    """Smallest and largest side of a digit in pixels."""
    max_digits: int = 2
    """Most digits of an image; fewer are as likely, and digits without room are left out."""
    train_images: int = 400
    """Images with base classes."""
    test_images: int = 80
    """Images with all classes."""
    shots: tuple[int, ...] = (1, 3, 5, 10)
    """Examples of each class in the few-shot sets; those of fewer shots are among those of more."""
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    """Of the few-shot sets."""
    seed: int = 0
    """Seed of everything else."""

    def __post_init__(self) -> None:
        low, high = self.digit_size
        if not 8 <= low <= high <= self.image_size:
            raise TenfoldError("the sizes of digits ascend, from 8 pixels to the side of the image at most")
        if min(self.max_digits, self.train_images, self.test_images) < 1:
            raise TenfoldError(
                "there is at least one digit in an image, one training image and one test image"
            )
        if min((1, *self.shots)) < 1 or min((0, self.seed, *self.seeds)) < 0:
            raise TenfoldError("shots are at least 1, and seeds are not negative")

    @property
    def fingerprint(self) -> str:
        """Twelve hexadecimal digits that differ for other settings: a name for the folder."""
        content = json.dumps([_FORM, asdict(self)], sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()[:12]


@dataclass(frozen=True)
class ComposedDigits:
    """Where the images and their annotations are."""

    folder: Path
    config: ComposeConfig

    @property
    def images(self) -> Path:
        """Folder that the file names are below."""
        return self.folder / "images"

    @property
    def train(self) -> Path:
        """Annotations of the base classes."""
        return self.folder / "train.json"

    @property
    def test(self) -> Path:
        """Annotations of all classes, in other digits on other photographs."""
        return self.folder / "test.json"

    def few_shot(self, seed: int, shots: int) -> Path:
        """Annotations of ``shots`` digits of each class, one in an image.

        Raises:
            TenfoldError: there is no such set.
        """
        if seed not in self.config.seeds or shots not in self.config.shots:
            raise TenfoldError(
                f"there are no {shots} shots of seed {seed}: choose seeds {_listed(self.config.seeds)} and "
                f"shots {_listed(self.config.shots)}, or compose others"
            )
        return self.folder / f"fewshot-seed{seed}-{shots}shot.json"


def compose(config: ComposeConfig, folder: Path) -> ComposedDigits:
    """Write images and annotations, unless the folder has them already. Equal settings give equal files.

    Every file lists all ten categories; digit d has number d + 1. A folder is complete or not there at all,
    whoever else composes it at the same time.

    Args:
        config: what to compose.
        folder: for these settings alone; ``config.fingerprint`` makes a good name.

    Raises:
        TenfoldError: the folder holds something else.
    """
    composed = ComposedDigits(folder, config)
    if _is_composed(folder, config):
        return composed
    with _appearing(folder, config) as unfinished:
        _write(config, unfinished)
    return composed


# -- folders ---------------------------------------------------------------------------------------------


def _is_composed(folder: Path, config: ComposeConfig) -> bool:
    """Whether the folder holds these images; False where it is missing or empty."""
    try:
        found = json.loads((folder / "compose.json").read_bytes())["fingerprint"]
    except (OSError, ValueError, KeyError, TypeError):
        found = None
    if found == config.fingerprint:
        return True
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return False
    held = "digits of other settings" if found else "something else"
    raise TenfoldError(f"{folder} holds {held}; choose another folder or remove this one")


@contextmanager
def _appearing(folder: Path, config: ComposeConfig) -> Iterator[Path]:
    """A folder beside ``folder`` that takes its place in one step, or vanishes where another process was first."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    unfinished = folder.with_name(f".{folder.name}.{uuid4().hex}.partial")
    unfinished.mkdir()
    try:
        yield unfinished
        try:
            unfinished.rename(folder)
        except OSError:
            if not _is_composed(folder, config):
                raise
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _write(config: ComposeConfig, folder: Path) -> None:
    (folder / "images").mkdir()
    train_glyphs, test_glyphs = _glyphs()
    train_photographs, test_photographs = _photographs(config.image_size)
    train = _Composer(config, train_glyphs, train_photographs, (config.seed, _TRAIN_STREAM))
    _Set(folder, "train").add(train.scenes(config.train_images, range(len(BASE_IDS)))).write()
    test = _Composer(config, test_glyphs, test_photographs, (config.seed, _TEST_STREAM))
    _Set(folder, "test").add(test.scenes(config.test_images, range(len(NAMES)))).write()
    for seed in config.seeds if config.shots else ():
        few = _Composer(config, train_glyphs, train_photographs, (config.seed, _FEW_SHOT_STREAM, seed))
        most = max(config.shots)
        examples = _Set(folder, f"fewshot-seed{seed}").add(few.examples(most))
        for shots in sorted(set(config.shots)):
            examples.first(10 * shots).write(f"fewshot-seed{seed}-{shots}shot.json")
    about = {"fingerprint": config.fingerprint, "config": asdict(config)}
    (folder / "compose.json").write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")


# -- pictures --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Scene:
    """An image [H, W, 3], uint8, with the mask [n, H, W] and class of each digit."""

    image: NDArray[np.uint8]
    masks: NDArray[np.bool_]
    labels: list[int]


class _Composer:
    """Draws images from some digits and some photographs.

    Args:
        config: sizes and numbers.
        glyphs: digit to its glyphs [n, 8, 8], from 0 to 1.
        photographs: each [H, W, 3], from 0 to 1, at least as large as an image.
        stream: which random numbers.
    """

    def __init__(
        self,
        config: ComposeConfig,
        glyphs: Sequence[Pixels],
        photographs: Sequence[Pixels],
        stream: Sequence[int],
    ) -> None:
        self.config, self.glyphs, self.photographs = config, glyphs, photographs
        self.generator = np.random.default_rng(stream)

    def scenes(self, images: int, classes: Sequence[int]) -> Iterator[_Scene]:
        """Images with some digits of these classes that do not overlap."""
        deck: list[int] = []
        for _ in range(images):
            number = int(self.generator.integers(1, self.config.max_digits + 1))
            while len(deck) < number:
                deck.extend(self.generator.permutation(np.repeat(np.asarray(classes), _DECK)).tolist())
            labels, deck = deck[:number], deck[number:]
            chosen = [int(self.generator.integers(len(self.glyphs[label]))) for label in labels]
            yield self._paint(
                labels, [self.glyphs[label][index] for label, index in zip(labels, chosen, strict=True)]
            )

    def examples(self, shots: int) -> Iterator[_Scene]:
        """Images with one digit each: all ten classes, then all of them again, no glyph twice."""
        orders = [self.generator.permutation(len(glyphs))[:shots] for glyphs in self.glyphs]
        fewest = min(len(order) for order in orders)
        if fewest < shots:
            raise TenfoldError(f"there are no more than {fewest} digits of a class; ask for fewer shots")
        for shot in range(shots):
            for label, order in enumerate(orders):
                yield self._paint([label], [self.glyphs[label][order[shot]]])

    def _paint(self, labels: Sequence[int], glyphs: Sequence[Pixels]) -> _Scene:
        size, generator = self.config.image_size, self.generator
        image = self._background()
        taken = np.zeros((size, size), bool)
        masks, kept = [], []
        for label, glyph in zip(labels, glyphs, strict=True):
            side = int(generator.integers(self.config.digit_size[0], self.config.digit_size[1] + 1))
            alpha = resize(glyph, (side, side), order=1, mode="edge", anti_aliasing=False)
            shape = alpha > _MASK_THRESHOLD
            colour = generator.uniform(0.4, 1.0, 3).astype(np.float32)
            place = self._place(shape, taken)
            if place is None:
                continue
            taken[place] |= shape
            image[place] += alpha[..., None] * (colour - image[place])
            mask = np.zeros_like(taken)
            mask[place] = shape
            masks.append(mask)
            kept.append(label)
        image += _NOISE * generator.standard_normal(image.shape, dtype=np.float32)
        return _Scene((image.clip(0, 1) * 255).round().astype(np.uint8), np.stack(masks), kept)

    def _background(self) -> Pixels:
        photograph = self.photographs[int(self.generator.integers(len(self.photographs)))]
        size = self.config.image_size
        top, left = (int(self.generator.integers(length - size + 1)) for length in photograph.shape[:2])
        background: Pixels = 0.1 + 0.5 * photograph[top : top + size, left : left + size]
        return background

    def _place(self, shape: NDArray[np.bool_], taken: NDArray[np.bool_]) -> tuple[slice, slice] | None:
        side = len(shape)
        corners = self.generator.integers(0, self.config.image_size - side + 1, (_PLACEMENTS, 2)).tolist()
        for top, left in corners:
            place = slice(top, top + side), slice(left, left + side)
            if not (taken[place] & shape).any():
                return place
        return None


def _glyphs() -> tuple[list[Pixels], list[Pixels]]:
    """Of the digits 0 to 9, each [n, 8, 8] from 0 to 1: 70 % for training, the rest for test images."""
    data = load_digits()
    order = np.random.RandomState(0).permutation(len(data.images))
    cut = int(0.7 * len(order))
    images: Pixels = (data.images / 16).astype(np.float32)
    train, test = (
        [images[part][data.target[part] == digit] for digit in range(len(NAMES))]
        for part in (order[:cut], order[cut:])
    )
    return train, test


def _photographs(least: int) -> tuple[list[Pixels], list[Pixels]]:
    """For training and for test images, each [H, W, 3] from 0 to 1, enlarged where it is smaller than ``least``.

    Raises:
        TenfoldError: scikit-image is installed without one of them.
    """
    found: list[Pixels] = []
    for name in PHOTOGRAPHS:
        file = resources.files("skimage") / "data" / name
        try:
            with file.open("rb") as stream, Image.open(stream) as image:
                picture = image.convert("RGB")
        except FileNotFoundError as error:
            raise TenfoldError(
                f"scikit-image comes without its photograph {name}: install its wheel again"
            ) from error
        if (factor := least / min(picture.size)) > 1:
            picture = picture.resize(
                (round(picture.width * factor), round(picture.height * factor)), Image.Resampling.BICUBIC
            )
        found.append(np.asarray(picture, dtype=np.float32) / np.float32(255))
    cut = len(found) - len(found) // 3
    return found[:cut], found[cut:]


# -- annotations -----------------------------------------------------------------------------------------


class _Set:
    """Images that are written at once, and their annotations of COCO's form."""

    def __init__(self, folder: Path, name: str) -> None:
        self.folder, self.name = folder, name
        self.images: list[dict[str, Any]] = []
        self.annotations: list[dict[str, Any]] = []

    def add(self, scenes: Iterator[_Scene]) -> _Set:
        """Write images, and keep their annotations."""
        for number, scene in enumerate(scenes, start=len(self.images) + 1):
            file_name = f"{self.name}-{number:06d}.png"
            Image.fromarray(scene.image).save(
                self.folder / "images" / file_name, compress_type=_PNG_RUN_LENGTHS
            )
            height, width = scene.image.shape[:2]
            self.images.append({"id": number, "file_name": file_name, "height": height, "width": width})
            encoded = mask_utils.encode(np.asfortranarray(scene.masks.transpose(1, 2, 0), dtype=np.uint8))
            areas, boxes = mask_utils.area(encoded).tolist(), mask_utils.toBbox(encoded).tolist()
            for rle, area, box, label in zip(encoded, areas, boxes, scene.labels, strict=True):
                segmentation = {"size": rle["size"], "counts": rle["counts"].decode("ascii")}
                self.annotations.append(
                    {
                        "id": len(self.annotations) + 1,
                        "image_id": number,
                        "category_id": label + 1,
                        "segmentation": segmentation,
                        "area": area,
                        "bbox": box,
                        "iscrowd": 0,
                    }
                )
        return self

    def first(self, images: int) -> _Set:
        """Only the first images."""
        part = _Set(self.folder, self.name)
        part.images = self.images[:images]
        part.annotations = [entry for entry in self.annotations if entry["image_id"] <= images]
        return part

    def write(self, file_name: str | None = None) -> None:
        """Write the annotations."""
        content = {
            "info": {"description": "scikit-learn's digits on scikit-image's photographs"},
            "images": self.images,
            "annotations": self.annotations,
            "categories": [{"id": number, "name": name} for number, name in enumerate(NAMES, start=1)],
        }
        (self.folder / (file_name or f"{self.name}.json")).write_text(json.dumps(content), encoding="utf-8")


def _listed(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers)) or "(none)"
