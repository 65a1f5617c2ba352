"""Annotations of COCO's form: read and checked once, numbers and order kept; images and masks."""

from __future__ import annotations

import contextlib
import io
import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from pycocotools import mask as rle_masks
from pycocotools.coco import COCO
from torch import Tensor

from tenfold.shared.logging import TenfoldError, get_logger

LEAST_COORDINATES = 6
"""Of a polygon: three points."""


def load_annotations(path: Path) -> COCO:
    """A file of COCO's or LVIS's form, with its numbers and its order.

    Three things are mended. An annotation of number 0 gets a free one, because ``COCOeval`` takes the match with
    it for none; the log says so. Absent ``iscrowd``, ``area`` and ``bbox`` are filled in (LVIS has no crowds, and
    names files by their address: ``train2017/000000000009.jpg``). Polygons of fewer than three points, which
    have no area, are left out beside others.

    Raises:
        TenfoldError: the file is missing, or something in it is not of COCO's form; it is named.
    """
    if not path.is_file():
        raise TenfoldError(
            f"there is no file {path}; give the annotations, instances_train2017.json for instance"
        )
    try:
        content = json.loads(path.read_bytes())
    except ValueError as error:
        raise TenfoldError(f"{path} is no JSON ({error}); get it again") from error
    for part in ("images", "annotations", "categories"):
        if not isinstance(content, dict) or not isinstance(content.get(part), list):
            raise TenfoldError(f"{path} has no list of {part}; give annotations of COCO's form")
    try:
        images = _checked_images(content["images"])
        categories = _unique((category["id"] for category in content["categories"]), "categories")
        nameless = [category["id"] for category in content["categories"] if "name" not in category]
        if nameless:
            raise ValueError(f"category {nameless[0]} has no name")
        _check_annotations(content["annotations"], images, categories)
    except KeyError as error:
        raise TenfoldError(
            f"{path} is not of COCO's form: an entry has no {error}; mend or replace the file"
        ) from error
    except (TypeError, ValueError, AttributeError) as error:
        raise TenfoldError(f"{path} is not of COCO's form: {error}; mend or replace the file") from error
    return indexed(content)


def indexed(content: dict[str, Any]) -> COCO:
    """Annotations of COCO's form, which were checked, with pycocotools' index. It says nothing.

    Args:
        content: lists of ``images``, ``annotations`` and ``categories``.
    """
    coco = COCO()
    coco.dataset = content
    with contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()
    return coco


def read_image(path: Path, upright: bool = False) -> Tensor:
    """An image as uint8 [3, H, W], RGB.

    Args:
        path: of the image.
        upright: turn it as its camera held it; by default it stays as it is stored, which is how COCO is annotated.

    Raises:
        TenfoldError: it is missing or damaged.
    """
    try:
        with Image.open(path) as image:
            turned = ImageOps.exif_transpose(image) if upright else image
            pixels = np.array(turned.convert("RGB"))
    except FileNotFoundError as error:
        raise TenfoldError(f"there is no image {path}; check the folder of images") from error
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise TenfoldError(f"the image {path} cannot be read ({error}); get it again") from error
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()


def instance_mask(segmentation: Any, height: int, width: int) -> Tensor:
    """One instance's mask, bool [height, width].

    Args:
        segmentation: polygons (lists x, y, x, y, ... in pixels), or run lengths, compressed or not.
        height: of the image, in pixels.
        width: of the image, in pixels.
    """
    decoded = rle_masks.decode(run_lengths(segmentation, height, width))
    return torch.from_numpy(np.ascontiguousarray(decoded)).bool()


def run_lengths(segmentation: Any, height: int, width: int) -> dict[str, Any]:
    """A segmentation as compressed run lengths; arguments as of :func:`instance_mask`."""
    if isinstance(segmentation, list):
        merged: dict[str, Any] = rle_masks.merge(rle_masks.frPyObjects(segmentation, height, width))
        return merged
    if isinstance(segmentation["counts"], list):
        compressed: dict[str, Any] = rle_masks.frPyObjects(segmentation, height, width)
        return compressed
    return dict(segmentation)


def _checked_images(images: list[dict[str, Any]]) -> dict[int, tuple[int, int]]:
    """Height and width of each image, by number."""
    _unique((image["id"] for image in images), "images")
    for image in images:
        if "file_name" not in image:
            if "coco_url" not in image:
                raise ValueError(f"image {image['id']} has no file_name")
            image["file_name"] = "/".join(image["coco_url"].split("/")[-2:])
        if min(image["height"], image["width"]) < 1:
            raise ValueError(f"image {image['id']} has no height or width")
    return {image["id"]: (image["height"], image["width"]) for image in images}


def _unique(numbers: Iterable[Any], what: str) -> set[int]:
    seen: set[int] = set()
    for number in numbers:
        if not isinstance(number, int):
            raise ValueError(f"{what} have whole numbers as id, not {number!r}")
        if number in seen:
            raise ValueError(f"two {what} have the id {number}")
        seen.add(number)
    return seen


def _check_annotations(
    annotations: list[dict[str, Any]], images: dict[int, tuple[int, int]], categories: set[int]
) -> None:
    """Raises ValueError with what is wrong; fills in what COCO has and LVIS has not."""
    numbers = _unique((annotation["id"] for annotation in annotations), "annotations")
    for annotation in annotations:
        number = annotation["id"]
        if annotation.get("image_id") not in images:
            raise ValueError(
                f"annotation {number} is in image {annotation.get('image_id')}, which is not listed"
            )
        if annotation.get("category_id") not in categories:
            raise ValueError(
                f"annotation {number} is of category {annotation.get('category_id')}, which is not listed"
            )
        size = images[annotation["image_id"]]
        annotation["segmentation"] = _checked_segmentation(annotation.get("segmentation"), number, size)
        annotation.setdefault("iscrowd", 0)
        if "area" not in annotation or "bbox" not in annotation:
            lengths = run_lengths(annotation["segmentation"], *size)
            annotation.setdefault("area", float(rle_masks.area(lengths)))
            annotation.setdefault("bbox", rle_masks.toBbox(lengths).tolist())
        if number == 0:
            annotation["id"] = max(numbers) + 1
            get_logger("reft").warning(
                "annotation 0 is called %d, because COCO's evaluation takes 0 for none", annotation["id"]
            )


def _checked_segmentation(segmentation: Any, number: int, size: tuple[int, int]) -> Any:
    if isinstance(segmentation, dict):
        _check_run_lengths(segmentation, number, size)
        return segmentation
    if not isinstance(segmentation, list) or not all(isinstance(polygon, list) for polygon in segmentation):
        raise ValueError(f"the segmentation of annotation {number} is neither polygons nor run lengths")
    try:
        is_finite = math.isfinite(sum(map(sum, segmentation)))
    except (TypeError, OverflowError) as error:
        raise ValueError(f"a coordinate of annotation {number} is no number") from error
    if any(len(polygon) % 2 for polygon in segmentation) or not is_finite:
        raise ValueError(
            f"a polygon of annotation {number} has an odd number of coordinates, or infinite ones"
        )
    # pycocotools would also take a polygon of four coordinates for a box.
    polygons = [polygon for polygon in segmentation if len(polygon) >= LEAST_COORDINATES]
    if not polygons:
        raise ValueError(f"the segmentation of annotation {number} is empty")
    return polygons


def _check_run_lengths(lengths: dict[str, Any], number: int, size: tuple[int, int]) -> None:
    counts, stated = lengths.get("counts"), lengths.get("size")
    if not isinstance(counts, list | str) or not isinstance(stated, list):
        raise ValueError(f"the segmentation of annotation {number} is neither polygons nor run lengths")
    if not counts:
        raise ValueError(f"the segmentation of annotation {number} is empty")
    if tuple(stated) != size:
        raise ValueError(
            f"the run lengths of annotation {number} are for {stated} pixels, its image has {list(size)}"
        )
    runs = counts if isinstance(counts, list) else decompressed(counts)
    if any(type(run) is not int or run < 0 for run in runs) or sum(runs) != size[0] * size[1]:
        raise ValueError(f"the run lengths of annotation {number} do not add up to its image")


def decompressed(counts: str) -> list[int]:
    """The run lengths in COCO's text: five bits in a character, the lowest first, from the third less the last but one.

    pycocotools decodes whatever adds up to too few pixels, and leaves the others undefined.
    """
    runs: list[int] = []
    value = shift = 0
    for character in counts:
        bits = ord(character) - 48
        value |= (bits & 31) << shift
        shift += 5
        if bits & 32:
            continue
        if bits & 16:  # a negative difference
            value -= 1 << shift
        runs.append(value + (runs[-2] if len(runs) > 2 else 0))
        value = shift = 0
    return runs
