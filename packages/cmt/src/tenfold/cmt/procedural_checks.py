"""Whether the nuScenes devkit reads, evaluates and projects scenes as it should."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from contextlib import redirect_stderr
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from nuscenes import NuScenes
from nuscenes.eval.common.config import config_factory
from nuscenes.eval.common.loaders import get_samples_of_custom_split
from nuscenes.eval.detection.evaluate import DetectionEval
from nuscenes.eval.detection.utils import category_to_detection_name
from nuscenes.utils.data_classes import Box
from nuscenes.utils.geometry_utils import BoxVisibility
from PIL import Image
from scipy.ndimage import binary_erosion
from scipy.spatial import ConvexHull

from tenfold.cmt.config import CAMERAS, CLASSES
from tenfold.cmt.procedural_scenes import SceneConfig, generate_scenes
from tenfold.cmt.procedural_sensors import COLOURS, LIDAR
from tenfold.shared.logging import TenfoldError, get_logger

logger = get_logger("cmt")

Array = NDArray[np.floating[Any]]

_JITTER = 0.3
"""Standard deviation of moved centres along each axis, in metres."""
_KEYFRAMES = 8
"""Most keyframes whose images are looked at, evenly spread."""
_BLUR = 1.5
"""Pixels that JPEG's coarse colours spread over the edge of an object."""
_COLOURED = tuple(name for name in CLASSES if len(set(COLOURS[name])) > 1)
"""Classes that are not grey like the ground."""
_LEAST_CHROMA = 30
"""Least difference of a coloured pixel's channels; noise on grey stays below it."""
_LEAST_COSINE = 0.985
"""Between the colour of a pixel and that of its class."""
_LEAST_RETURNS = 10
"""Of the LiDAR, from an object that has to be seen in an image."""
_LEAST_AREA = 25
"""Pixels of the outline, inside the image, of an object that has to be seen there."""
_NEAR = 0.1
_EDGES = np.array(
    [(0, 1), (1, 2), (2, 3), (3, 0), (4, 5), (5, 6), (6, 7), (7, 4), (0, 4), (1, 5), (2, 6), (3, 7)]
)
"""Pairs of the devkit's corners."""


def check_scenes(root: Path, version: str, split: str) -> dict[str, float]:
    """Measure generated scenes with the devkit.

    Args:
        root: of the data.
        version: folder of the tables.
        split: its name.

    Returns:
        ``classes``: how many have ground truth that counts.
        ``truth_map``: mAP over these of the ground truth taken as predictions.
        ``truth_error``: its greatest true-positive error; 1 for scenes of one keyframe, which have no velocities.
        ``jittered_map`` and ``jittered_nds``: the same mAP, and NDS, with centres moved by N(0, 0.3 m).
        ``pixels_inside``: part of the plainly coloured pixels inside the projected outline of an object of their class,
        or of one whose colour is alike.
        ``objects_coloured``: part of the objects with many LiDAR points whose outline has pixels of their colour.
        ``points_inside``: part of the points counted for objects that are found in their boxes, which are 5 cm wider
        for the noise of the range.

    Raises:
        TenfoldError: there are no such tables.
    """
    if not (root / version / "splits.json").is_file():
        raise TenfoldError(f"{root / version} holds no tables of scenes; generate them first")
    nuscenes = NuScenes(version, str(root), verbose=False)
    samples = get_samples_of_custom_split(split, nuscenes)
    truth = _ground_truth(nuscenes, samples)
    perfect, present = _evaluate(nuscenes, split, truth)
    jittered, _ = _evaluate(nuscenes, split, _jittered(truth))
    errors = [
        error
        for name in present
        for error in perfect["label_tp_errors"][name].values()
        if not np.isnan(error)
    ]
    chosen = np.unique(np.linspace(0, len(samples) - 1, min(len(samples), _KEYFRAMES)).round().astype(int))
    looked_at = [samples[number] for number in chosen]
    return {
        "classes": float(len(present)),
        "truth_map": float(np.mean([perfect["mean_dist_aps"][name] for name in present])),
        "truth_error": float(max(errors, default=0.0)),
        "jittered_map": float(np.mean([jittered["mean_dist_aps"][name] for name in present])),
        "jittered_nds": float(jittered["nd_score"]),
        **_image_shares(nuscenes, looked_at),
        "points_inside": _points_inside(nuscenes, looked_at),
    }


def write_scenes(config: SceneConfig, folder: Path, workers: int = 1, check: bool = False) -> Path:
    """Generate scenes, say where they are, and check both splits if asked to.

    Returns:
        Root of the data.

    Raises:
        TenfoldError: a check failed.
    """
    root = generate_scenes(config, folder, workers)
    logger.info("procedural scenes are in %s, tables %s", root.name, config.version)
    for split in (config.train_split, config.test_split) if check else ():
        found = check_scenes(root, config.version, split)
        logger.info("%s: %s", split, ", ".join(f"{name} {value:.3f}" for name, value in found.items()))
        passed = (
            found["truth_map"] > 0.999
            and found["truth_error"] < 1e-3
            and found["jittered_map"] <= found["truth_map"]
            and min(found["pixels_inside"], found["objects_coloured"], found["points_inside"]) > 0.95
        )
        if not passed:
            raise TenfoldError(f"the scenes of {split} are not sound; remove {root} and generate them again")
    return root


# -- evaluation ------------------------------------------------------------------------------------------


def _ground_truth(nuscenes: Any, samples: list[str]) -> dict[str, list[dict[str, Any]]]:
    """Boxes that reflect points, as predictions of full score, sample by sample."""
    attributes = {record["token"]: record["name"] for record in nuscenes.attribute}
    found: dict[str, list[dict[str, Any]]] = {}
    for sample in samples:
        records = [nuscenes.get("sample_annotation", one) for one in nuscenes.get("sample", sample)["anns"]]
        found[sample] = [
            {
                "sample_token": sample,
                "translation": record["translation"],
                "size": record["size"],
                "rotation": record["rotation"],
                "velocity": nuscenes.box_velocity(record["token"])[:2].tolist(),
                "detection_name": category_to_detection_name(record["category_name"]),
                "detection_score": 1.0,
                "attribute_name": "".join(attributes[one] for one in record["attribute_tokens"]),
            }
            for record in records
            if record["num_lidar_pts"] > 0
        ]
    return found


def _jittered(truth: dict[str, list[dict[str, Any]]]) -> dict[str, list[dict[str, Any]]]:
    generator = np.random.default_rng(0)
    return {
        sample: [
            box | {"translation": (box["translation"] + generator.normal(0.0, _JITTER, 3)).tolist()}
            for box in boxes
        ]
        for sample, boxes in truth.items()
    }


def _evaluate(
    nuscenes: Any, split: str, results: dict[str, list[dict[str, Any]]]
) -> tuple[dict[str, Any], list[str]]:
    """The devkit's metrics, and the classes with ground truth that counts: near enough, and with points."""
    sensors = ("camera", "lidar", "radar", "map", "external")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "results.json"
        meta = {f"use_{sensor}": sensor in ("camera", "lidar") for sensor in sensors}
        path.write_text(json.dumps({"meta": meta, "results": results}), encoding="utf-8")
        with redirect_stderr(StringIO()):  # it draws progress bars even when it is asked to be silent
            evaluation = DetectionEval(
                nuscenes, config_factory("detection_cvpr_2019"), str(path), split, folder, verbose=False
            )
        metrics, _ = evaluation.evaluate()
    present = {box.detection_name for box in evaluation.gt_boxes.all}
    return dict(metrics.serialize()), [name for name in CLASSES if name in present]


# -- projections -----------------------------------------------------------------------------------------


def _image_shares(nuscenes: Any, samples: list[str]) -> dict[str, float]:
    inside = coloured = seen = due = 0
    alike = _palette() @ _palette().T > _LEAST_COSINE
    for sample in samples:
        for camera in CAMERAS:
            data = nuscenes.get("sample", sample)["data"][camera]
            path, boxes, intrinsic = nuscenes.get_sample_data(data, BoxVisibility.NONE)
            with Image.open(path) as image:
                classes = _pixel_classes(np.asarray(image, np.float32))
            covered = np.zeros_like(classes)
            for box, outline, wide in _outlines(boxes, intrinsic, classes.shape[1:]):
                name = category_to_detection_name(box.name)
                if name not in _COLOURED:
                    continue
                label = _COLOURED.index(name)
                covered[alike[label]] |= wide
                if _must_be_seen(nuscenes, box) and outline.sum() >= _LEAST_AREA:
                    due += 1
                    seen += int((classes[label] & outline).any())
            # On the edges of objects colours mix, and may look like those of a third class.
            plain = binary_erosion(classes, np.ones((1, 3, 3)))
            coloured += int(plain.any(axis=0).sum())
            inside += int((plain & covered).any(axis=0).sum())
    return {
        "pixels_inside": inside / coloured if coloured else 1.0,
        "objects_coloured": seen / due if due else 1.0,
    }


def _must_be_seen(nuscenes: Any, box: Any) -> bool:
    return bool(nuscenes.get("sample_annotation", box.token)["num_lidar_pts"] >= _LEAST_RETURNS)


def _palette() -> NDArray[np.float32]:
    """Directions [coloured classes, 3] of the colours."""
    colours = np.array([COLOURS[name] for name in _COLOURED], np.float32)
    return np.asarray(colours / np.linalg.norm(colours, axis=1, keepdims=True))


def _pixel_classes(image: NDArray[np.float32]) -> NDArray[np.bool_]:
    """[coloured classes, H, W]: whether the colours of an image [H, W, 3] may be those of a class."""
    cosines = image @ _palette().T / np.linalg.norm(image, axis=2, keepdims=True).clip(1e-6)
    chroma = image.max(axis=2) - image.min(axis=2)
    return np.asarray(((cosines > _LEAST_COSINE) & (chroma > _LEAST_CHROMA)[..., None]).transpose(2, 0, 1))


def _outlines(
    boxes: list[Any], intrinsic: Array, size: tuple[int, ...]
) -> Iterator[tuple[Any, NDArray[np.bool_], NDArray[np.bool_]]]:
    """Boxes in front of a camera, with the pixels [H, W] inside their outlines, and inside slightly wider ones."""
    rows, columns = np.mgrid[: size[0], : size[1]] + 0.5
    pixels = np.stack((columns, rows), axis=-1)
    part = np.linspace(0, 1, 65)[:, None, None]
    for box in boxes:
        start, end = box.corners().T[_EDGES.T]
        points = ((1 - part) * start + part * end).reshape(-1, 3)
        points = points[points[:, 2] > _NEAR] @ intrinsic.T
        if len(points) < 3:
            continue
        corners = points[:, :2] / points[:, 2:]
        if (corners.max(axis=0) < 0).any() or (corners.min(axis=0) > (size[1], size[0])).any():
            continue
        planes = ConvexHull(corners).equations
        distance = (pixels @ planes[:, :2].T + planes[:, 2]).max(axis=-1)
        yield box, distance <= 0, distance <= _BLUR


def _points_inside(nuscenes: Any, samples: list[str]) -> float:
    counted = found = 0
    for sample in samples:
        data = nuscenes.get("sample", sample)["data"][LIDAR]
        path, boxes, _ = nuscenes.get_sample_data(data, BoxVisibility.NONE)
        points = np.fromfile(path, np.float32).reshape(-1, 5)[:, :3].astype(np.float64)
        for box in boxes:
            number = nuscenes.get("sample_annotation", box.token)["num_lidar_pts"]
            counted += number
            found += min(number, int(_in_box(points, box).sum()))
    return found / counted if counted else 1.0


def _in_box(points: Array, box: Box) -> NDArray[np.bool_]:
    local = (points - box.center) @ box.rotation_matrix
    return np.asarray((np.abs(local) <= np.asarray(box.wlh)[[1, 0, 2]] / 2 + 0.05).all(axis=1))
