"""Images and their instances of some categories, decoded when asked for."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pycocotools.coco import COCO
from torch import Tensor

from tenfold.reft.annotations import read_image
from tenfold.shared.logging import TenfoldError


@dataclass(frozen=True)
class ImageRecord:
    """One image and the instances in it that are learned; all else is background."""

    image_id: int
    segmentations: tuple[Any, ...]
    """Polygons or run lengths."""
    labels: tuple[int, ...]
    """Classes from 0."""


class ImageFiles:
    """Images of annotations, decoded when asked for.

    Args:
        coco: annotations with the images' names and sizes.
        folder: that the names are below.
        image_ids: which images are kept in memory.
        in_memory: decode these once, at the beginning; for small sets.
        upright: turn them as their camera held them; COCO is annotated without that.

    Raises:
        TenfoldError: the folder or the first image is missing; in memory also as :meth:`read`.
    """

    def __init__(
        self, coco: COCO, folder: Path, image_ids: Iterable[int], in_memory: bool, upright: bool = False
    ) -> None:
        if not folder.is_dir():
            raise TenfoldError(f"there is no folder {folder}; give the one that holds the images")
        self.folder, self._entries, self._upright = folder, coco.imgs, upright
        self._kept: dict[int, Tensor] = {}
        wanted = list(dict.fromkeys(image_ids))
        if in_memory:
            self._kept = {number: self.read(number) for number in wanted}
        elif wanted and not self._path(wanted[0]).is_file():
            raise TenfoldError(f"there is no image {self._path(wanted[0])}; check the folder of images")

    def size(self, image_id: int) -> tuple[int, int]:
        """Height and width in pixels."""
        entry = self._entries[image_id]
        return entry["height"], entry["width"]

    def read(self, image_id: int) -> Tensor:
        """An image, [3, H, W], uint8; not to be changed.

        Raises:
            TenfoldError: it is missing, damaged, or not of the size that was annotated.
        """
        if image_id in self._kept:
            return self._kept[image_id]
        path = self._path(image_id)
        image = read_image(path, self._upright)
        if image.shape[-2:] != self.size(image_id):
            raise TenfoldError(
                f"the image {path} has {list(image.shape[-2:])} pixels, its annotation says "
                f"{list(self.size(image_id))}; give the images that were annotated"
            )
        return image

    def _path(self, image_id: int) -> Path:
        name: str = self._entries[image_id]["file_name"]
        return self.folder / name


class InstanceImages:
    """Images with the instances of some categories, which get labels in the order of these categories.

    Instances of other categories, and crowds, are background. Images without an instance are left out.

    Args:
        coco: annotations.
        images_folder: that the file names are below.
        category_ids: of the classes with labels 0, 1, ...
        records: an image with all its instances, or one record of each instance, in which the others are
            background.
        in_memory: decode all images at the beginning; for small sets.
        upright: turn images as their camera held them.

    Raises:
        TenfoldError: the folder is missing, or no image is left; in memory also for unreadable images.
    """

    def __init__(
        self,
        coco: COCO,
        images_folder: Path,
        category_ids: Sequence[int],
        records: Literal["merged", "per_annotation"] = "merged",
        in_memory: bool = False,
        upright: bool = False,
    ) -> None:
        self.category_ids = tuple(category_ids)
        label_of = {number: label for label, number in enumerate(category_ids)}
        self.records: list[ImageRecord] = []
        for image_id in coco.imgs:
            found = [
                (annotation["segmentation"], label_of[annotation["category_id"]])
                for annotation in coco.imgToAnns.get(image_id, ())
                if annotation["category_id"] in label_of and not annotation["iscrowd"]
            ]
            for part in [found] if records == "merged" else [[instance] for instance in found]:
                if part:
                    segmentations, labels = zip(*part, strict=True)
                    self.records.append(ImageRecord(image_id, segmentations, labels))
        if not self.records:
            raise TenfoldError(
                f"no image has an instance of the {len(category_ids)} categories asked for; give other "
                "annotations or categories"
            )
        shown = (record.image_id for record in self.records)
        self.files = ImageFiles(coco, images_folder, shown, in_memory, upright)

    def __len__(self) -> int:
        return len(self.records)

    def decoded(self, index: int) -> Tensor:
        """The image of a record, [3, H, W], uint8.

        Raises:
            TenfoldError: as :meth:`ImageFiles.read`.
        """
        return self.files.read(self.records[index].image_id)
