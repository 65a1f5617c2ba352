"""Pictures of a run: what pooling weighs, and supports, prediction and truth side by side."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from tenfold.reft.batches import Supports
from tenfold.reft.few_shot import FewShot
from tenfold.reft.figures import Comparison, Outlined, draw_comparison, draw_pooling, outlined
from tenfold.reft.references import resized_masks
from tenfold.reft.sources import Source
from tenfold.reft.support_pool import SupportPool
from tenfold.reft.transforms import denormalise
from tenfold.shared.runs import Run

QUERIES = 5
"""Query images of a picture."""
SCORE = 0.3
"""Least score of a detection that is drawn."""


def draw_found(run: Run, begun: FewShot, source: Source, results: Sequence[dict[str, Any]]) -> None:
    """Support examples of the classes in some test images, what was found in these, and what is there."""
    files, test = source.evaluation_images.files, source.test
    names = dict(zip(begun.category_ids, source.names(begun.category_ids), strict=True))
    novel = set(source.split.novel)
    found: dict[int, list[dict[str, Any]]] = {}
    for result in results:
        found.setdefault(result["image_id"], []).append(result)
    rows = []
    for image_id in source.evaluation_images.image_ids:
        truth = [one for one in test.imgToAnns[image_id] if one["category_id"] in names]
        wanted = [one["category_id"] for one in truth if one["category_id"] in novel]
        if not wanted:
            continue
        size = files.size(image_id)
        examples = examples_of(
            begun.pool, [begun.category_ids.index(number) for number in dict.fromkeys(wanted)], names, begun
        )
        rows.append(
            Comparison(
                examples,
                as_picture(files.read(image_id)),
                outlined(found.get(image_id, []), names, size, SCORE),
                outlined(truth, names, size),
            )
        )
        if len(rows) == QUERIES:
            break
    if rows:
        caption = "Support examples of the novel classes, what was found, and what is there"
        with run.figure("found.png", caption) as path:
            draw_comparison(path, rows)


def examples_of(
    pool: SupportPool, labels: Sequence[int], names: dict[int, str], begun: FewShot
) -> list[tuple[NDArray[np.uint8], Outlined]]:
    """Up to three support crops of each class."""
    found = []
    places = {number: place for place, number in enumerate(sorted(names))}
    for label in labels:
        number = begun.category_ids[label]
        for supports in pool.of_classes([label]).chunks(3):
            for image, mask in zip(supports.images, supports.masks, strict=True):
                outline = Outlined(mask.numpy(), names[number], places[number])
                found.append((as_picture(denormalise(image)), outline))
            break
    return found


def draw_pools(run: Run, pool: SupportPool, source: Source, categories: Sequence[int]) -> None:
    """What masked average pooling weighs at each level, for the first support example."""
    supports: Supports = next(iter(pool.chunks(1)))
    name = source.names(categories)[int(supports.labels[0])]
    with run.figure("pooling.png", f"What masked average pooling weighs at each level: {name}") as path:
        draw_pooled(path, supports.images[0], supports.masks[0])


def draw_pooled(path: Path, crop: Tensor, mask: Tensor) -> None:
    """The same for a support crop.

    Args:
        path: of the picture.
        crop: normalised, [3, s, s].
        mask: of its instance, [s, s].
    """
    side = mask.shape[-1]
    weights = {
        stride: resized_masks(mask[None], (-(-side // stride), -(-side // stride)))[0].numpy()
        for stride in (8, 16, 32)
    }
    draw_pooling(path, as_picture(denormalise(crop)), mask.numpy(), weights)


def as_picture(image: Tensor) -> NDArray[np.uint8]:
    """[3, H, W] bytes as [H, W, 3]."""
    return image.permute(1, 2, 0).numpy()
