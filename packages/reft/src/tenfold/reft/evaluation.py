"""Average precision of novel and of base classes, from one list of detections (specification 5)."""

from __future__ import annotations

import contextlib
import io
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as mask_utils
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from tenfold.shared.logging import TenfoldError

IOU_TYPES = ("segm", "bbox")
_GEOMETRY = {"segm": "segmentation", "bbox": "bbox"}
_LVIS_THRESHOLDS = {"": slice(None), "50": slice(0, 1), "75": slice(5, 6)}
"""Which of LVIS's thresholds .50, .55, ... .95."""


def evaluate(
    ground_truth: COCO,
    detections: Sequence[dict[str, Any]],
    groups: Mapping[str, Sequence[int]],
    iou_types: Sequence[str] = IOU_TYPES,
) -> dict[str, NDArray[np.float64]]:
    """COCO's twelve numbers for groups of categories. All images count, also those without any of a group.

    Categories are judged one by one, so that one run serves all groups: means over a group's categories are what
    a run restricted to them gives. Sizes of detections are those of their masks for ``segm``, and of their boxes
    for ``bbox``.

    Args:
        ground_truth: annotations, numbered from 1.
        detections: in COCO's form of results, of all groups together; 100 of each image and category count.
        groups: name to numbers of categories; those without instances are skipped.
        iou_types: ``segm`` and ``bbox``, or one of them.

    Returns:
        ``<iou type>_<group>`` to [12]: AP, AP50, AP75, AP of small, medium and large instances, and recalls with 1, 10
        and 100 detections, and of small, medium and large instances; from 0 to 1, and -1 where there is no instance.

    Raises:
        TenfoldError: an annotation has the number 0, or a detection is in an image that is not listed.
    """
    if 0 in ground_truth.anns:
        raise TenfoldError("number annotations from 1: pycocotools takes a match with number 0 for none")
    if unknown := {result["image_id"] for result in detections} - ground_truth.imgs.keys():
        raise TenfoldError(
            f"detections are in image {min(unknown)}, which the annotations do not list; give the file of these images"
        )
    stats = {}
    for iou_type in iou_types:
        evaluation = _run(ground_truth, detections, sorted(set().union(*groups.values())), iou_type)
        category_ids, whole = evaluation.params.catIds, evaluation.eval
        for name, group in groups.items():
            members = [index for index, number in enumerate(category_ids) if number in set(group)]
            evaluation.eval = {
                **whole,
                "precision": whole["precision"][:, :, members],
                "recall": whole["recall"][:, members],
            }
            with _silence():
                evaluation.summarize()
            stats[f"{iou_type}_{name}"] = np.array(evaluation.stats, dtype=np.float64)
    return stats


def _run(
    ground_truth: COCO, detections: Sequence[dict[str, Any]], category_ids: Sequence[int], iou_type: str
) -> COCOeval:
    with _silence():
        evaluation = COCOeval(ground_truth, _results(ground_truth, detections, iou_type), iou_type)
        evaluation.params.catIds = list(category_ids)
        evaluation.evaluate()
        evaluation.accumulate()
    return evaluation


def _results(ground_truth: COCO, detections: Sequence[dict[str, Any]], iou_type: str) -> COCO:
    """Detections with masks or boxes alone: pycocotools takes a box's area for the mask's where there are both."""
    if detections:
        return ground_truth.loadRes(_only(detections, iou_type))
    empty = COCO()
    empty.dataset = {**ground_truth.dataset, "annotations": []}
    empty.createIndex()
    return empty


def _only(detections: Sequence[dict[str, Any]], iou_type: str) -> list[dict[str, Any]]:
    keys = ("image_id", "category_id", "score", _GEOMETRY[iou_type])
    return [{key: result[key] for key in keys} for result in detections]


def few_shot_metrics(
    ground_truth: COCO,
    detections: Sequence[dict[str, Any]],
    novel_ids: Sequence[int] = (),
    base_ids: Sequence[int] = (),
    iou_types: Sequence[str] = IOU_TYPES,
) -> dict[str, float]:
    """What the paper's tables print, in per cent.

    Args:
        ground_truth: annotations of all test images.
        detections: in COCO's form of results.
        novel_ids: categories; none before there are any.
        base_ids: categories; none in FSIS, which judges novel classes alone.
        iou_types: ``segm`` and ``bbox``, or one of them.

    Returns:
        For each of them ``<iou type>_nAP``, ``_nAP50`` and ``_nAP75`` where there are novel categories, ``_bAP`` where
        there are base categories, and ``_AP`` of all where there are both.

    Raises:
        TenfoldError: there are no categories, or the annotations have no instance of the novel or the base ones.
    """
    groups = {"novel": novel_ids, "base": base_ids}
    if not novel_ids or not base_ids:
        groups = {name: ids for name, ids in groups.items() if ids}
    else:
        groups["all"] = [*base_ids, *novel_ids]
    if not groups:
        raise TenfoldError("there is nothing to judge; name novel categories, base categories, or both")
    stats = evaluate(ground_truth, detections, groups, iou_types)
    metrics = {}
    for iou_type in iou_types:
        for group, name, places in (("novel", "nAP", 3), ("base", "bAP", 1), ("all", "AP", 1)):
            if group not in groups:
                continue
            values = stats[f"{iou_type}_{group}"]
            if values[0] < 0:
                raise TenfoldError(f"the test annotations have no instance of {group} classes; give others")
            for suffix, value in zip(("", "50", "75")[:places], values.tolist(), strict=False):
                metrics[f"{iou_type}_{name}{suffix}"] = 100 * value
    return metrics


def class_precisions(
    ground_truth: COCO, detections: Sequence[dict[str, Any]], names: Mapping[int, str]
) -> dict[str, float]:
    """AP of the masks of single classes in per cent, by name; classes without an instance are left out.

    Args:
        ground_truth: annotations.
        detections: in COCO's form of results.
        names: number of a category to its name.
    """
    groups = {name: (number,) for number, name in names.items()}
    stats = evaluate(ground_truth, detections, groups, ("segm",))
    found = {name: float(stats[f"segm_{name}"][0]) for name in groups}
    return {name: 100 * precision for name, precision in found.items() if precision >= 0}


def lvis_metrics(
    annotations: Path,
    detections: Sequence[dict[str, Any]],
    novel_ids: Sequence[int] | None = None,
    base_ids: Sequence[int] | None = None,
    iou_types: Sequence[str] = IOU_TYPES,
) -> dict[str, float]:
    """The same for LVIS, by the rules of its own package: 300 detections of an image, federated annotations.

    Args:
        annotations: file of LVIS's form.
        detections: in COCO's form of results.
        novel_ids: categories; by default the rare ones.
        base_ids: categories; by default the common and the frequent ones.
        iou_types: ``segm`` and ``bbox``, or one of them.

    Returns:
        As :func:`few_shot_metrics`; a group without instances is left out.

    Raises:
        TenfoldError: the package ``lvis`` or the file is missing.
    """
    try:
        import lvis
        import lvis.eval
    except ImportError as error:
        raise TenfoldError(
            f"LVIS is judged by its own package ({error}); install tenfold-reft[lvis]"
        ) from error
    if not annotations.is_file():
        raise TenfoldError(
            f"there is no file {annotations}; give the annotations, lvis_v1_val.json for instance"
        )
    logging.getLogger("lvis").setLevel(logging.ERROR)
    truth = lvis.LVIS(str(annotations))
    rare = [number for number, category in truth.cats.items() if category["frequency"] == "r"]
    novel = set(rare if novel_ids is None else novel_ids)
    base = set(truth.cats) - set(rare) if base_ids is None else set(base_ids)
    metrics = {}
    for iou_type in iou_types:
        precision, category_ids = _lvis_precision(lvis, truth, detections, iou_type)
        for group, name, suffixes in (
            (novel, "nAP", ("", "50", "75")),
            (base, "bAP", ("",)),
            (novel | base if novel and base else set(), "AP", ("",)),
        ):
            members = [index for index, number in enumerate(category_ids) if number in group]
            for suffix in suffixes:
                values = precision[_LVIS_THRESHOLDS[suffix]][..., members]
                if (values > -1).any():
                    metrics[f"{iou_type}_{name}{suffix}"] = 100 * float(values[values > -1].mean())
    return metrics


def _lvis_precision(
    lvis: Any, truth: Any, detections: Sequence[dict[str, Any]], iou_type: str
) -> tuple[NDArray[np.float64], list[int]]:
    """Precision [thresholds, recalls, categories] of all sizes, -1 without instances, and the categories' numbers."""
    # The package cannot read an empty list. An empty mask that matches nothing changes nothing.
    results = _only(detections, iou_type) or _only([_empty_detection(truth)], iou_type)
    evaluation = lvis.LVISEval(truth, lvis.LVISResults(truth, results, max_dets=300), iou_type)
    # Its newest release still asks for np.float, which NumPy has removed.
    with mock.patch.object(lvis.eval, "np", SimpleNamespace(**{**vars(np), "float": float})):
        evaluation.evaluate()
        evaluation.accumulate()
    return evaluation.eval["precision"][..., 0], list(evaluation.params.cat_ids)


def _empty_detection(truth: Any) -> dict[str, Any]:
    image = next(iter(truth.imgs.values()))
    mask = np.zeros((image["height"], image["width"]), np.uint8, order="F")
    return {
        "image_id": image["id"],
        "category_id": min(truth.cats),
        "score": 0.0,
        "bbox": [0.0, 0.0, 0.0, 0.0],
        "segmentation": mask_utils.encode(mask),
    }


def confidence_interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean over seeds and half of its 95 % interval: 1.96 sample deviations by the root of their number.

    Args:
        values: one for each seed; the interval of a single one is 0.

    Raises:
        TenfoldError: there is none.
    """
    if not values:
        raise TenfoldError("there are no values to average; finish at least one run")
    spread = float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
    return float(np.mean(values)), 1.96 * spread / math.sqrt(len(values))


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Nothing that pycocotools prints."""
    with contextlib.redirect_stdout(io.StringIO()):
        yield
