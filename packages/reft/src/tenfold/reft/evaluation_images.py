"""Images at their size for testing, in batches of one size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from pycocotools.coco import COCO
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from tenfold.reft.config import DataConfig
from tenfold.reft.instance_images import ImageFiles
from tenfold.reft.loading import whole_items
from tenfold.reft.transforms import (
    normalise,
    pad_to_multiple,
    resize_short_side,
    short_side_size,
)
from tenfold.shared.logging import TenfoldError
from tenfold.shared.seeding import make_generator


class EvaluationImages(Dataset[tuple[Tensor, int, tuple[int, int]]]):
    """All images of annotations at their size for testing, also those without an object.

    Args:
        coco: annotations.
        images_folder: that the file names are below.
        data: for the sizes.
        in_memory: decode all images at the beginning; for small sets.

    Raises:
        TenfoldError: the folder is missing, or there is no image; in memory also for unreadable images.
    """

    def __init__(self, coco: COCO, images_folder: Path, data: DataConfig, in_memory: bool = False) -> None:
        self.image_ids: list[int] = list(coco.imgs)
        if not self.image_ids:
            raise TenfoldError("the annotations have no image; give those of the images to test on")
        self.data = data
        self.files = ImageFiles(coco, images_folder, self.image_ids, in_memory)

    def __len__(self) -> int:
        return len(self.image_ids)

    def __getitem__(self, index: int) -> tuple[Tensor, int, tuple[int, int]]:
        """A normalised image [3, h, w], its number, and its height and width before it was resized.

        Raises:
            TenfoldError: as :meth:`ImageFiles.read`.
        """
        number = self.image_ids[index]
        image = resize_short_side(
            self.files.read(number), self.data.test_short_side, self.data.test_long_side
        )
        return normalise(image), number, self.files.size(number)

    def test_size(self, index: int) -> tuple[int, int]:
        """Height and width for testing, without reading the image."""
        original = self.files.size(self.image_ids[index])
        return short_side_size(original, self.data.test_short_side, self.data.test_long_side)


@dataclass(frozen=True)
class EvaluationBatch:
    """Images of one size, to be judged."""

    images: Tensor
    """[B, 3, H, W], normalised; zeros at bottom and right up to multiples of 32."""
    size: tuple[int, int]
    """Height and width without them, the same for all."""
    image_ids: tuple[int, ...]
    """Numbers in the annotations."""
    originals: tuple[tuple[int, int], ...]
    """Heights and widths of the images as they are stored."""

    def pin_memory(self) -> EvaluationBatch:
        """The same in pinned memory, which a loader asks for."""
        return EvaluationBatch(self.images.pin_memory(), self.size, self.image_ids, self.originals)


class _EvaluationBatches(Dataset[EvaluationBatch]):
    def __init__(self, images: EvaluationImages, groups: Sequence[Sequence[int]]) -> None:
        self.images, self.groups = images, groups

    def __len__(self) -> int:
        return len(self.groups)

    def __getitem__(self, index: int) -> EvaluationBatch:
        tensors, numbers, originals = zip(*(self.images[at] for at in self.groups[index]), strict=True)
        images = torch.stack(tensors)
        size = (images.shape[-2], images.shape[-1])
        return EvaluationBatch(pad_to_multiple(images, 32), size, numbers, originals)


def evaluation_batches(
    images: EvaluationImages,
    batch_size: int,
    workers: int = 0,
    pin: bool = False,
    rank: int = 0,
    processes: int = 1,
) -> DataLoader[EvaluationBatch]:
    """Every image once, with others of the same size; they do not follow the order of the annotations.

    Args:
        images: to test on.
        batch_size: most images at a time.
        workers: processes that decode images.
        pin: put them into pinned memory, for CUDA.
        rank: of the process.
        processes: that divide the batches.
    """
    of_size: dict[tuple[int, int], list[int]] = {}
    for index in range(len(images)):
        of_size.setdefault(images.test_size(index), []).append(index)
    groups = [
        members[start : start + batch_size]
        for members in of_size.values()
        for start in range(0, len(members), batch_size)
    ]
    share = groups[rank::processes]
    return whole_items(
        _EvaluationBatches(images, share),
        sampler=range(len(share)),
        num_workers=workers,
        pin_memory=pin,
        generator=make_generator(0),
    )
