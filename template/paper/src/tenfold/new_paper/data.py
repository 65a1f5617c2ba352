"""Handwritten digits, 8 × 8 pixels, which come with scikit-learn."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from sklearn.datasets import load_digits
from torch import Tensor

from tenfold.shared.logging import TenfoldError
from tenfold.shared.seeding import make_generator

NUM_TRAINING_IMAGES = 1000
"""The remaining 797 are for testing; most of them were written by other people."""


@dataclass(frozen=True)
class ImageSet:
    """N images and their labels."""

    images: Tensor
    """[N, 64], grey values from 0 to 1, row by row."""
    labels: Tensor
    """[N], the digits 0 to 9."""

    def __len__(self) -> int:
        return len(self.labels)

    def select(self, indices: Tensor | slice) -> ImageSet:
        """The images at ``indices``, in their order."""
        return ImageSet(self.images[indices], self.labels[indices])

    def to(self, device: torch.device) -> ImageSet:
        """The same images on a device."""
        return ImageSet(self.images.to(device), self.labels.to(device))


def load_digits_split() -> tuple[ImageSet, ImageSet]:
    """The first 1000 images for training, the last 797 for testing."""
    digits = load_digits()
    images = torch.tensor(digits.data / 16, dtype=torch.float32)
    everything = ImageSet(images, torch.tensor(digits.target))
    split = NUM_TRAINING_IMAGES
    return everything.select(slice(split)), everything.select(slice(split, None))


def draw_images(images: ImageSet, count: int, seed: int) -> ImageSet:
    """Draw ``count`` different images; the seed alone decides which.

    Raises:
        TenfoldError: there are not so many.
    """
    if not 1 <= count <= len(images):
        raise TenfoldError(f"between 1 and {len(images)} images can be drawn, not {count}")
    return images.select(torch.randperm(len(images), generator=make_generator(seed))[:count])
