"""Mean average precision and nuScenes detection score, computed by the nuScenes devkit."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from nuscenes import NuScenes
from nuscenes.eval.common.config import config_factory
from nuscenes.eval.common.data_classes import EvalBoxes
from nuscenes.eval.common.loaders import (
    add_center_dist,
    filter_eval_boxes,
    get_samples_of_custom_split,
    load_gt,
    load_gt_of_sample_tokens,
)
from nuscenes.eval.detection.data_classes import DetectionBox
from nuscenes.eval.detection.evaluate import DetectionEval
from nuscenes.utils.splits import is_predefined_split

from tenfold.cmt.config import CLASSES
from tenfold.shared.logging import TenfoldError

Boxes = Mapping[str, Sequence[Mapping[str, Any]]]
"""Token of a sample to its boxes in nuScenes' form."""

ERRORS = {
    "mATE": "trans_err",
    "mASE": "scale_err",
    "mAOE": "orient_err",
    "mAVE": "vel_err",
    "mAAE": "attr_err",
}
"""Mean errors of true positives by the paper's names, and what the devkit calls them."""
_CONFIG = config_factory("detection_cvpr_2019")


@dataclass(frozen=True)
class Curve:
    """Precision over recall."""

    recall: NDArray[np.float64]
    """[101], from 0 to 1."""
    precision: NDArray[np.float64]
    """[101], from 0 to 1; 0 beyond the greatest recall that is reached."""


@dataclass(frozen=True)
class Scores:
    """What the devkit finds, in its units: precisions from 0 to 1, errors in metres, radians, m/s and parts."""

    mean_ap: float
    """Over classes and distance thresholds; a class without any box counts 0."""
    detection_score: float
    """NDS: half of it the mean precision, half the five errors."""
    errors: dict[str, float]
    """By the names of :data:`ERRORS`."""
    class_ap: dict[str, float]
    """Class to its mean over thresholds."""
    threshold_ap: dict[str, dict[float, float]]
    """Class to threshold in metres to average precision."""
    class_errors: dict[str, dict[str, float]]
    """Class to the names of :data:`ERRORS` without the m; NaN where an error is not defined for the class."""
    curves: dict[str, dict[float, Curve]]
    """Class to threshold in metres to its curve."""
    truths: dict[str, int]
    """Class to the number of boxes that are there and judged."""

    def metrics(self) -> dict[str, float]:
        """mAP, NDS, the mean errors, and ``AP <class>``, all times 100 as tables print them.

        So precisions are in per cent, and mATE in centimetres.
        """
        values = {"mAP": self.mean_ap, "NDS": self.detection_score, **self.errors}
        values.update({f"AP {name}": value for name, value in self.class_ap.items()})
        return {name: 100 * value for name, value in values.items()}

    def mean_curves(self) -> dict[str, Curve]:
        """Class to its curve with the mean precision over thresholds."""
        return {
            name: Curve(
                next(iter(of_class.values())).recall,
                np.mean([curve.precision for curve in of_class.values()], axis=0),
            )
            for name, of_class in self.curves.items()
        }


class Evaluator:
    """Judges detections of one split; tables and true boxes are read once.

    Args:
        root: folder of the data set.
        version: folder of its tables, below.
        split: one of nuScenes' own, or of those in the version's ``splits.json``.

    Raises:
        TenfoldError: there are no such tables, or they have no such split with annotations.
    """

    def __init__(self, root: Path, version: str, split: str) -> None:
        self.split = split
        self.tables = load_tables(root, version)
        self.truth = _filtered(self.tables, _load_truth(self.tables, split))
        if not self.truth.boxes:
            raise TenfoldError(
                f"the split {split} has no samples; list scenes of {version} in its splits.json"
            )

    @property
    def tokens(self) -> tuple[str, ...]:
        """Of the samples that are judged."""
        return tuple(self.truth.sample_tokens)

    def evaluate(self, results: Boxes, output: Path | None = None) -> Scores:
        """Judge predictions.

        Args:
            results: token of each sample of the split to its boxes, as
                :func:`tenfold.cmt.submission.submission_boxes` gives them.
            output: folder for the devkit's ``metrics_summary.json`` and ``metrics_details.json``; none by default.

        Raises:
            TenfoldError: samples are missing, are not of the split, or have too many boxes.
        """
        self._check(results)
        predictions = EvalBoxes.deserialize({token: results[token] for token in self.tokens}, DetectionBox)
        return _scores(self.truth, _filtered(self.tables, predictions), output)

    def _check(self, results: Boxes) -> None:
        if missing := self.truth.boxes.keys() - results.keys():
            raise TenfoldError(
                f"{len(missing)} of the {len(self.tokens)} samples of {self.split} have no results, {min(missing)} for "
                "instance; give every sample a list of boxes, which may be empty"
            )
        if strange := results.keys() - self.truth.boxes.keys():
            raise TenfoldError(
                f"{len(strange)} of the samples with results are not in {self.split}, {min(strange)} for instance; "
                "give results of this split alone"
            )
        most = _CONFIG.max_boxes_per_sample
        if crowded := [token for token, boxes in results.items() if len(boxes) > most]:
            raise TenfoldError(
                f"the sample {crowded[0]} has {len(results[crowded[0]])} boxes; give the best {most} at most"
            )


def detection_metrics(truth: Boxes, predictions: Boxes) -> Scores:
    """Judge boxes as they are: none is left out for its distance or for having no points.

    Args:
        truth: of each sample; scores are not needed.
        predictions: of the same samples, in the same frame.

    Raises:
        TenfoldError: the samples differ.
    """
    if truth.keys() != predictions.keys():
        raise TenfoldError(
            "true and predicted boxes are of the same samples; give those that have none empty lists"
        )
    return _scores(
        EvalBoxes.deserialize(truth, DetectionBox), EvalBoxes.deserialize(predictions, DetectionBox)
    )


def load_tables(root: Path, version: str) -> NuScenes:
    """The devkit's tables, read once per process as long as they are not written anew.

    Raises:
        TenfoldError: there are none.
    """
    annotations = root / version / "sample_annotation.json"
    if not annotations.is_file():
        raise TenfoldError(
            f"{root} has no tables in {version}; name the folder that holds {version} and samples"
        )
    return _read_tables(root.resolve(), version, annotations.stat().st_mtime_ns)


@lru_cache(maxsize=2)
def _read_tables(root: Path, version: str, written: int) -> NuScenes:  # noqa: ARG001  the time is part of the key
    return NuScenes(version=version, dataroot=str(root), verbose=False)


def _load_truth(tables: NuScenes, split: str) -> EvalBoxes:
    try:
        with _silence():
            if is_predefined_split(split):
                return load_gt(tables, split, DetectionBox)
            return load_gt_of_sample_tokens(tables, get_samples_of_custom_split(split, tables), DetectionBox)
    except (AssertionError, ValueError) as error:
        raise TenfoldError(
            f"the split {split} cannot be judged with the tables {tables.version}; choose one that they hold with "
            "annotations"
        ) from error


def _filtered(tables: NuScenes, boxes: EvalBoxes) -> EvalBoxes:
    """Without boxes beyond the range of their class, without points, or in bicycle racks."""
    boxes = add_center_dist(tables, boxes)
    if not boxes.all:  # The devkit stops at a set without any box.
        return boxes
    return filter_eval_boxes(tables, boxes, _CONFIG.class_range)


def _scores(truth: EvalBoxes, predictions: EvalBoxes, output: Path | None = None) -> Scores:
    # The devkit's method on boxes that are loaded and filtered already, which its constructor would do again.
    metrics, data = DetectionEval.evaluate(
        SimpleNamespace(cfg=_CONFIG, gt_boxes=truth, pred_boxes=predictions, verbose=False)
    )
    summary = metrics.serialize()
    if output is not None:
        output.mkdir(parents=True, exist_ok=True)
        (output / "metrics_summary.json").write_text(json.dumps(summary, indent=2), encoding="utf-8")
        (output / "metrics_details.json").write_text(json.dumps(data.serialize(), indent=2), encoding="utf-8")
    present = [box.detection_name for box in truth.all]
    return Scores(
        mean_ap=summary["mean_ap"],
        detection_score=summary["nd_score"],
        errors={name: summary["tp_errors"][key] for name, key in ERRORS.items()},
        class_ap={name: float(summary["mean_dist_aps"][name]) for name in CLASSES},
        threshold_ap={name: dict(summary["label_aps"][name]) for name in CLASSES},
        class_errors={
            name: {error[1:]: float(summary["label_tp_errors"][name][key]) for error, key in ERRORS.items()}
            for name in CLASSES
        },
        curves={
            name: {place: Curve(one.recall, one.precision) for one, place in data.get_class_data(name)}
            for name in CLASSES
        },
        truths={name: present.count(name) for name in CLASSES},
    )


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield
