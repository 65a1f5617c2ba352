"""MNIST-360: pairs of digits that come and go while they turn, without any boundary (Buzzega et al. 2020)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from tenfold.coca.image_sets import ImageSet
from tenfold.coca.rotation import rotate_images
from tenfold.shared.logging import TenfoldError

DIGITS = 9
ROUNDS = 3


@dataclass(frozen=True)
class ServedStream:
    """Images in the order in which they come, and the sizes of their batches."""

    images: ImageSet
    batch_sizes: tuple[int, ...]


def serve_training(train: ImageSet, batch_size: int, replacement: bool = True, seed: int = 0) -> ServedStream:
    """The training stream of digits 0 to 8.

    The active pair goes (0, 1), (1, 2), ..., (8, 0), three times. Each digit's images are cut into six chunks of
    floor(N/6) + 1, one for each time that it becomes active, the last one first. A batch takes from both chunks in
    proportion to what is left of them; when one is used up the next pair begins. Digit j begins at (j - 1) 60 degrees
    and turns by 360 / N degrees with each of its images.

    Args:
        train: with the labels 0 to 8; others are left out.
        batch_size: images of a batch, from both digits together.
        replacement: draw images of a chunk with replacement, as the reference code does.
        seed: of the draws.

    Raises:
        TenfoldError: a digit has too few images for six chunks.
    """
    generator = np.random.RandomState(seed)
    members = _members(train)
    if min(map(len, members)) < 36:
        raise TenfoldError("MNIST-360 needs at least 36 training images of each digit from 0 to 8")
    counts = np.array([len(places) for places in members])
    chunks = [
        [
            places[start : start + len(places) // 6 + 1]
            for start in range(0, len(places), len(places) // 6 + 1)
        ]
        for places in members
    ]
    served = np.zeros(DIGITS, dtype=np.int64)
    places: list[np.ndarray] = []
    angles: list[np.ndarray] = []
    sizes: list[int] = []

    def serve(digit: int, queue: np.ndarray) -> None:
        places.append(queue)
        steps = served[digit] + np.arange(len(queue))
        angles.append((digit - 1) * 60 + steps * 360 / counts[digit])
        served[digit] += len(queue)

    for step in range(ROUNDS * DIGITS):
        digits = (step % DIGITS, (step + 1) % DIGITS)
        queues = []
        for digit in digits:
            chunk = chunks[digit].pop()
            queues.append(
                generator.choice(chunk, len(chunk)) if replacement else generator.permutation(chunk)
            )
        while all(map(len, queues)):
            left = [len(queue) for queue in queues]
            first = min(round(batch_size * left[0] / sum(left)), left[0])
            taken = (first, min(batch_size - first, left[1]))
            for digit, queue, count in zip(digits, queues, taken, strict=True):
                serve(digit, queue[:count])
            queues = [queue[count:] for queue, count in zip(queues, taken, strict=True)]
            sizes.append(sum(taken))
    return ServedStream(_turned(train, places, angles), tuple(sizes))


def serve_test(test: ImageSet) -> ImageSet:
    """The test images of digits 0 to 8, digit by digit, each digit turning once around from 0 degrees."""
    members = _members(test)
    return _turned(test, members, [np.arange(len(places)) * 360 / len(places) for places in members])


def _members(images: ImageSet) -> list[np.ndarray]:
    return [(images.labels == digit).nonzero().flatten().numpy() for digit in range(DIGITS)]


def _turned(images: ImageSet, places: list[np.ndarray], angles: list[np.ndarray]) -> ImageSet:
    chosen = images[torch.from_numpy(np.concatenate(places))]
    return ImageSet(rotate_images(chosen.images, torch.from_numpy(np.concatenate(angles))), chosen.labels)
