"""Resizing, cropping and mirroring of camera images, with the intrinsics that follow."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tenfold.cmt.config import ImageConfig
from tenfold.cmt.samples import FloatArray, Sample

Crop = tuple[int, int, int, int]


@dataclass(frozen=True)
class ImageMove:
    """What is done to every image of a sample."""

    resize: float
    """Scale, relative to the image."""
    crop: Crop
    """Left, top, right and bottom in pixels of the resized image; what lies outside of it is black."""
    flip: bool
    """Whether the crop is mirrored left to right."""

    @property
    def matrix(self) -> FloatArray:
        """Pixels before to pixels after, [4, 4], both times depth."""
        left, top, right, _ = self.crop
        matrix = np.diag([self.resize, self.resize, 1.0, 1.0])
        matrix[:2, 2] = -left, -top
        if self.flip:
            mirror = np.diag([-1.0, 1.0, 1.0, 1.0])
            mirror[0, 2] = right - left
            matrix = mirror @ matrix
        return matrix


def draw_image_move(config: ImageConfig, generator: np.random.Generator, training: bool) -> ImageMove:
    """A move that ends in images of the size that the network sees.

    The crop ends at the lower edge of the image, where the road is. In training the scale, the horizontal place of the
    crop and mirroring are random; otherwise the crop is in the middle of a wider image, and nothing is drawn.
    """
    resize = generator.uniform(*config.resize_train) if training else config.resize_test
    width, height = resized_size(config.original_size, resize)
    spare = max(0, width - config.size[1])
    left = int(generator.integers(spare, endpoint=True)) if training else spare // 2
    flip = bool(generator.random() < config.flip) if training else False
    return ImageMove(resize, (left, height - config.size[0], left + config.size[1], height), flip)


def is_fixed(config: ImageConfig) -> bool:
    """Whether :func:`draw_image_move` gives the same move for every training sample."""
    low, high = config.resize_train
    return (
        low == high and config.flip in (0, 1) and resized_size(config.original_size, low)[0] <= config.size[1]
    )


def resized_size(size: tuple[int, int], resize: float) -> tuple[int, int]:
    """Width and height after scaling an image of a height and width."""
    return int(size[1] * resize), int(size[0] * resize)


def augment_image(
    image: NDArray[np.uint8], intrinsic: FloatArray, move: ImageMove
) -> tuple[NDArray[np.uint8], FloatArray]:
    """An image [H, W, 3] after a move, and its intrinsics [4, 4]."""
    resized = Image.fromarray(image).resize(
        resized_size((image.shape[0], image.shape[1]), move.resize), Image.Resampling.BILINEAR
    )
    cropped = resized.crop(move.crop)
    if move.flip:
        cropped = cropped.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return np.asarray(cropped), np.asarray(move.matrix @ intrinsic)


def transform_images(sample: Sample, move: ImageMove) -> Sample:
    """Move all images of a sample alike; a sample without images stays as it is."""
    if sample.images is None:
        return sample
    moved = [
        augment_image(image, intrinsic, move)
        for image, intrinsic in zip(sample.images, sample.intrinsics, strict=True)
    ]
    images, intrinsics = zip(*moved, strict=True)
    return replace(sample, images=np.stack(images), intrinsics=np.stack(intrinsics))
