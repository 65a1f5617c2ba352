"""New classes from a folder of masked examples, and what there is of them in any image."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric
from PIL import Image, ImageOps
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from torch import Tensor

from tenfold.reft.annotations import indexed, load_annotations, read_image
from tenfold.reft.config import DataConfig, LossConfig, TrainConfig
from tenfold.reft.episodes import Episodes
from tenfold.reft.few_shot import new_rows
from tenfold.reft.inference import detections
from tenfold.reft.instance_images import InstanceImages
from tenfold.reft.judging import support_cache
from tenfold.reft.model import RefT
from tenfold.reft.references import References
from tenfold.reft.support_pool import SupportPool
from tenfold.reft.training import train_stage
from tenfold.reft.transforms import normalise, pad_to_multiple, resize_short_side
from tenfold.shared.logging import TenfoldError
from tenfold.shared.runs import Run

PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
MASK_ENDING = ".mask.png"


@dataclass(frozen=True)
class Segmenter:
    """A network with the classes it knows and its support cache."""

    network: RefT
    references: References | None
    names: tuple[str, ...]
    """Of the classes."""
    data: DataConfig
    """For the size of images."""

    @torch.inference_mode()
    def segment(self, image: Tensor, fabric: Fabric, topk: int = 100) -> list[dict[str, Any]]:
        """Instances in an image [3, H, W] of bytes, in COCO's form of results; categories count from 1."""
        self.network.eval()
        resized = normalise(resize_short_side(image, self.data.test_short_side, self.data.test_long_side))
        padded = pad_to_multiple(resized[None], 32)
        with fabric.autocast():
            predictions = self.network(padded.to(fabric.device), self.references)
        return detections(
            predictions.class_logits[-1],
            predictions.masks(),
            (padded.shape[-2], padded.shape[-1]),
            [(resized.shape[-2], resized.shape[-1])],
            [(image.shape[-2], image.shape[-1])],
            [1],
            range(1, len(self.names) + 1),
            topk,
        )


def read_support_folder(folder: Path) -> tuple[COCO, Path]:
    """Masked examples of classes.

    The folder holds ``instances.json`` (annotations of COCO's form, with the images beside it), or a folder for each
    class with pictures, each ``NAME.jpg`` or so with its mask ``NAME.mask.png``, in which what is not black is the
    instance.

    Returns:
        Annotations, and the folder of the images.

    Raises:
        TenfoldError: there is neither, or a picture lacks its mask.
    """
    if not folder.is_dir():
        raise TenfoldError(
            f"there is no support folder {folder}; give one with a folder of masked pictures per class"
        )
    listed = folder / "instances.json"
    if listed.is_file():
        return load_annotations(listed), folder
    classes = sorted(part for part in folder.iterdir() if part.is_dir())
    content: dict[str, list[dict[str, Any]]] = {"images": [], "annotations": [], "categories": []}
    for number, of_class in enumerate(classes, start=1):
        pictures = list(pictures_of(of_class))
        if not pictures:
            raise TenfoldError(
                f"the class {of_class.name} has no picture in {of_class}; give each class a shot, or remove it"
            )
        content["categories"].append({"id": number, "name": of_class.name})
        for picture in pictures:
            image_id = len(content["images"]) + 1
            mask = read_mask(picture)
            height, width = mask.shape
            name = picture.relative_to(folder).as_posix()
            content["images"].append({"id": image_id, "file_name": name, "height": height, "width": width})
            encoded = coco_mask.encode(mask.numpy().astype("uint8", order="F"))
            content["annotations"].append(
                {
                    "id": image_id,
                    "image_id": image_id,
                    "category_id": number,
                    "iscrowd": 0,
                    "segmentation": {"size": encoded["size"], "counts": encoded["counts"].decode()},
                    "bbox": coco_mask.toBbox(encoded).tolist(),
                    "area": float(coco_mask.area(encoded)),
                }
            )
    if not classes:
        raise TenfoldError(f"{folder} has no instances.json and no folder of a class; give one of them")
    return indexed(content), folder


def pictures_of(folder: Path) -> Iterator[Path]:
    """Pictures that are no masks, by name."""
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() in PICTURES and not path.name.endswith(MASK_ENDING):
            yield path


def read_mask(picture: Path) -> Tensor:
    """The mask of a picture, [H, W], bool.

    Raises:
        TenfoldError: it is missing, damaged, empty, or not of the picture's size.
    """
    path = picture.with_name(picture.stem + MASK_ENDING)
    if not path.is_file():
        raise TenfoldError(
            f"{picture} has no mask; draw the instance in {path.name} beside it, all else black"
        )
    try:
        with Image.open(path) as image:
            mask = torch.from_numpy(np.array(ImageOps.exif_transpose(image).convert("L")))
    except (OSError, SyntaxError) as error:
        raise TenfoldError(f"the mask {path} cannot be read ({error}); make it again") from error
    height, width = read_image(picture, upright=True).shape[-2:]
    if mask.shape != (height, width):
        raise TenfoldError(
            f"{path} is {list(mask.shape)} pixels, its picture {[height, width]}; draw it at that size"
        )
    if not mask.any():
        raise TenfoldError(f"the mask {path} is empty; draw the instance in it, or remove the picture")
    return mask > 0


def learn_classes(
    base: RefT,
    data: DataConfig,
    losses: LossConfig,
    annotations: COCO,
    folder: Path,
    recipe: TrainConfig | None,
    seed: int,
    fabric: Fabric,
    run: Run,
) -> Segmenter:
    """Learn the classes of a support folder, as FSIS does: they take the place of the base classes.

    Args:
        base: network on Fabric's device; not changed.
        data: of the base network.
        losses: of fine-tuning.
        annotations: of :func:`read_support_folder`.
        folder: of their images.
        recipe: how; none takes the imprinted rows of a cosine head as they are.
        seed: of new rows and fine-tuning.
        fabric: launched.
        run: entered.

    Raises:
        TenfoldError: nothing to learn and the head is linear, or a class has no shot.
    """
    categories = sorted(annotations.cats)
    instances = InstanceImages(annotations, folder, categories, in_memory=True, upright=True)
    pool = SupportPool(instances, data)
    missing = [
        annotations.cats[number]["name"]
        for place, number in enumerate(categories)
        if place not in pool.classes
    ]
    if missing:
        raise TenfoldError(f"the class {missing[0]} has no shot; give one, or take it out of the categories")
    if recipe is None and not base.wants_imprinting:
        raise TenfoldError("a linear head learns new classes by fine-tuning alone: leave out --steps 0")
    network = copy.deepcopy(base)
    network.grow(new_rows(base, pool, 0, len(categories), seed, fabric), keep_base=False)
    network.to(fabric.device)
    if recipe is not None:
        supports = None if network.references.is_off else pool
        episodes = Episodes(instances, supports, data, recipe.batch_size, recipe.steps, seed)
        train_stage(network, episodes, recipe, losses, fabric, run)
    references = support_cache(network, pool, len(categories), fabric)
    names = tuple(annotations.cats[number]["name"] for number in categories)
    return Segmenter(network, references, names, data)


def as_coco(
    found: Sequence[Sequence[dict[str, Any]]],
    sizes: Sequence[tuple[str, tuple[int, int]]],
    names: Sequence[str],
) -> dict[str, Any]:
    """Detections of some images as annotations of COCO's form, with their scores.

    Args:
        found: of each image; categories count from 1.
        sizes: name of each image, and its height and width.
        names: of the categories.
    """
    images = [
        {"id": number, "file_name": name, "height": height, "width": width}
        for number, (name, (height, width)) in enumerate(sizes, start=1)
    ]
    annotations = [
        {**one, "image_id": number, "iscrowd": 0, "area": float(coco_mask.area(one["segmentation"]))}
        for number, of_image in enumerate(found, start=1)
        for one in of_image
    ]
    return {
        "images": images,
        "categories": [{"id": number, "name": name} for number, name in enumerate(names, start=1)],
        "annotations": [{**one, "id": number} for number, one in enumerate(annotations, start=1)],
    }
