"""K shots of each class, drawn as the public few-shot splits of COCO were (TFA), and their published lists.

An image enters with all its instances of the class, and the shots of a larger K contain those of a smaller one.
"""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from pycocotools.coco import COCO

from tenfold.reft.annotations import indexed
from tenfold.shared.logging import TenfoldError

Shots = dict[int, dict[int, list[int]]]
"""Category number to K to the numbers of its annotations, in the order in which they were drawn."""


def sample_k_shots(
    annotations: Iterable[Mapping[str, Any]],
    class_ids: Sequence[int],
    shots: Sequence[int],
    seed: int,
    names: Mapping[int, str] | None = None,
) -> Shots:
    """Shots as the public generator draws them (specification, section 4).

    Args:
        annotations: all of them, in the order of their file; crowds are left out.
        class_ids: categories in the order of the draws: ascending in the public splits.
        shots: ascending values of K; all of 1, 2, 3, 5, 10, 30 in the public splits, because those of a larger K
            go on from those of a smaller one.
        seed: of Python's generator, which all classes share.
        names: of the categories, for messages.

    Raises:
        TenfoldError: ``shots`` do not ascend from at least 1, or whole images cannot give a class exactly K
            instances (the public generator then fails or never ends).
    """
    if not shots or shots[0] < 1 or any(low >= high for low, high in pairwise(shots)):
        raise TenfoldError(f"the numbers of shots are positive and ascend, which {list(shots)} do not")
    images: dict[int, dict[int, list[int]]] = {number: {} for number in class_ids}
    for annotation in annotations:
        if not annotation.get("iscrowd", 0) and annotation["category_id"] in images:
            its_images = images[annotation["category_id"]]
            its_images.setdefault(annotation["image_id"], []).append(annotation["id"])
    draws = random.Random(seed)  # the same numbers as the module's functions after random.seed(seed)
    found: Shots = {}
    for number in class_ids:
        name = (names or {}).get(number)
        called = f"class {number}" if name is None else f"class {number} ({name})"
        found[number] = _sample_class(images[number], shots, draws, called)
    return found


def _sample_class(
    images: dict[int, list[int]], shots: Sequence[int], draws: random.Random, called: str
) -> dict[int, list[int]]:
    """Shots of one class; ``images`` has the annotations of each image."""
    candidates = list(images)
    unused = Counter(len(instances) for instances in images.values())
    taken: set[int] = set()
    drawn: list[int] = []
    found: dict[int, list[int]] = {}
    for most in shots:
        if len(candidates) < most:
            raise TenfoldError(
                f"{called} has {len(candidates)} images, which {most} shots cannot be drawn from; take fewer "
                "shots, leave the class out, or give more annotations"
            )
        checked_at = -1
        while len(drawn) < most:
            if checked_at != len(drawn) and not _sum_exists(unused, most - len(drawn)):
                raise TenfoldError(
                    f"{called} cannot give exactly {most} shots after the first {len(drawn)}: it has "
                    f"{len(candidates)} images with {sum(map(len, images.values()))} instances, which enter "
                    "only together; take another seed or fewer shots, or leave the class out"
                )
            checked_at = len(drawn)
            for image in draws.sample(candidates, most):
                instances = images[image]
                if image in taken or len(drawn) + len(instances) > most:
                    continue
                taken.add(image)
                unused[len(instances)] -= 1
                drawn.extend(instances)
                if len(drawn) == most:
                    break
        found[most] = list(drawn)
    return found


def _sum_exists(counts: Mapping[int, int], target: int) -> bool:
    """Whether some images have ``target`` instances together; ``counts`` has how many images have n of them.

    If so, some further draw gives them: K images are drawn, at least as many as are needed, in any order.
    """
    sums = 1  # bit s: a sum of s can be had
    for instances, images in counts.items():
        for _ in range(min(images, target // instances)):
            sums |= sums << instances
    return bool(sums >> target & 1)


def sample_at_most(
    annotations: Iterable[Mapping[str, Any]], class_ids: Sequence[int], shots: int, seed: int
) -> Shots:
    """Up to K random instances of each class, all of them where there are fewer, as for the rare classes of LVIS.

    Args:
        annotations: all of them, in the order of their file; crowds are left out.
        class_ids: categories.
        shots: K.
        seed: of Python's generators, one for each class.

    Raises:
        TenfoldError: a class has no instance.
    """
    instances: dict[int, list[int]] = {number: [] for number in class_ids}
    for annotation in annotations:
        if not annotation.get("iscrowd", 0) and annotation["category_id"] in instances:
            instances[annotation["category_id"]].append(annotation["id"])
    if missing := [number for number, found in instances.items() if not found]:
        raise TenfoldError(
            f"categories {', '.join(map(str, missing[:5]))} have no instance to sample; leave them out of the split"
        )
    return {
        number: {shots: random.Random(seed * 1_000_003 + number).sample(found, min(shots, len(found)))}
        for number, found in instances.items()
    }


def few_shot_annotations(coco: COCO, sampled: Shots, shots: int, class_ids: Iterable[int]) -> COCO:
    """Only the shots and their images, by class and in the order of the draws, with all categories.

    Other objects in these images have no annotation, as in the public lists.

    Args:
        coco: the annotations that ``sampled`` was drawn from.
        sampled: of :func:`sample_k_shots` or :func:`read_shot_lists`.
        shots: K.
        class_ids: categories to take.

    Raises:
        TenfoldError: there are no such shots, or an annotation is unknown or of another category.
    """
    annotations = [
        annotation for number in class_ids for annotation in _shots_of(coco, sampled, shots, number)
    ]
    images = dict.fromkeys(annotation["image_id"] for annotation in annotations)
    return indexed(
        {
            **{key: coco.dataset[key] for key in ("info", "licenses") if key in coco.dataset},
            "categories": coco.dataset["categories"],
            "images": [coco.imgs[image] for image in images],
            "annotations": annotations,
        }
    )


def manifest(
    coco: COCO, sampled: Shots, shots: int, class_ids: Iterable[int], seed: int
) -> dict[str, int | dict[str, dict[str, list[int]]]]:
    """What a run was given, for its record: ``seed``, ``shots`` and, by category, ``images`` and ``annotations``.

    Args:
        coco: the annotations that ``sampled`` was drawn from.
        sampled: as of :func:`few_shot_annotations`.
        shots: K.
        class_ids: categories that were taken.
        seed: of the draw or of the published list.

    Raises:
        TenfoldError: as :func:`few_shot_annotations`.
    """
    classes = {}
    for number in class_ids:
        annotations = _shots_of(coco, sampled, shots, number)
        classes[str(number)] = {
            "images": list(dict.fromkeys(annotation["image_id"] for annotation in annotations)),
            "annotations": [annotation["id"] for annotation in annotations],
        }
    return {"seed": seed, "shots": shots, "classes": classes}


def read_shot_lists(folder: Path, seed: int, shots: int, names: Mapping[int, str]) -> Shots:
    """The published lists of TFA: ``full_box_{K}shot_{class}_trainval.json`` for each class.

    Args:
        folder: ``cocosplit``, with the lists of seed 0, and those of other seeds in ``seed1``, ``seed2``, ...
        seed: from 0.
        shots: K.
        names: of the categories to read, by number.

    Raises:
        TenfoldError: a list is missing, is not of COCO's form, has another category, or not K instances.
    """
    place = folder / f"seed{seed}" if seed else folder
    return {number: {shots: _read_list(place, shots, number, name)} for number, name in names.items()}


def _read_list(place: Path, shots: int, number: int, name: str) -> list[int]:
    path = place / f"full_box_{shots}shot_{name}_trainval.json"
    if not path.is_file():
        raise TenfoldError(
            f"there is no list {path}; give the folder cocosplit of the published few-shot splits, or draw shots "
            "by a seed"
        )
    try:
        annotations = json.loads(path.read_bytes())["annotations"]
        found = [int(annotation["id"]) for annotation in annotations]
        others = {annotation["category_id"] for annotation in annotations} - {number}
    except (ValueError, KeyError, TypeError) as error:
        raise TenfoldError(f"{path} is not of COCO's form ({error!r}); get it again") from error
    if others or len(found) != shots or len(set(found)) != shots:
        raise TenfoldError(
            f"{path} does not hold {shots} instances of category {number} ({name}) alone; get it again"
        )
    return found


def _shots_of(coco: COCO, sampled: Shots, shots: int, number: int) -> list[dict[str, Any]]:
    if shots not in sampled.get(number, {}):
        raise TenfoldError(f"category {number} has no {shots} shots; sample or read them first")
    annotations = []
    for name in sampled[number][shots]:
        annotation = coco.anns.get(name)
        if annotation is None or annotation["category_id"] != number:
            raise TenfoldError(
                f"the annotations have no number {name} of category {number}, which is among the shots; give the "
                "annotations that the shots were drawn from"
            )
        annotations.append(annotation)
    return annotations
