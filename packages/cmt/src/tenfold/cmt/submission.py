"""Detections in the form that nuScenes takes: global boxes with names and attributes."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.spatial.transform import Rotation

from tenfold.cmt.box_geometry import FloatArray, gravity_centres, transform_points
from tenfold.cmt.config import CLASSES
from tenfold.cmt.decoding import Detections

CLASS_RANGES = {
    "car": 50.0,
    "truck": 50.0,
    "construction_vehicle": 50.0,
    "bus": 50.0,
    "trailer": 50.0,
    "barrier": 30.0,
    "motorcycle": 40.0,
    "bicycle": 40.0,
    "pedestrian": 40.0,
    "traffic_cone": 30.0,
}
"""Greatest distance from the ego vehicle that is judged, in metres on the ground."""
MAX_BOXES = 500
"""Most boxes of a sample that nuScenes takes."""
MOVING_SPEED = 0.2
"""In m/s; what is faster has the attribute of a moving object."""

_VEHICLES = ("car", "truck", "construction_vehicle", "trailer")
_MOVING = {
    **dict.fromkeys((*_VEHICLES, "bus"), "vehicle.moving"),
    **dict.fromkeys(("motorcycle", "bicycle"), "cycle.with_rider"),
    "pedestrian": "pedestrian.moving",
}
_RESTING = {
    **dict.fromkeys(_VEHICLES, "vehicle.parked"),
    **dict.fromkeys(("motorcycle", "bicycle"), "cycle.without_rider"),
    "bus": "vehicle.stopped",
    "pedestrian": "pedestrian.standing",
}


def submission_boxes(
    detections: Detections, lidar2ego: FloatArray, ego2global: FloatArray, token: str
) -> list[dict[str, Any]]:
    """Boxes of one sample in nuScenes' form, in the order they are given in.

    Boxes beyond the range of their class are dropped, and those of least score where more than :data:`MAX_BOXES` are
    left. Attributes follow from class and speed.

    Args:
        detections: in the LiDAR frame.
        lidar2ego: [4, 4].
        ego2global: [4, 4].
        token: of the sample.
    """
    boxes, scores, labels = detections.numpy()
    ranges = np.array([CLASS_RANGES[name] for name in CLASSES])
    distances = np.linalg.norm(transform_points(gravity_centres(boxes), lidar2ego)[:, :2], axis=1)
    kept = np.flatnonzero(distances <= ranges[labels])
    if len(kept) > MAX_BOXES:
        kept = np.sort(kept[np.argsort(-scores[kept], kind="stable")[:MAX_BOXES]])

    geometry = _global_geometry(boxes[kept], lidar2ego, ego2global)
    names = [CLASSES[label] for label in labels[kept]]
    attributes = _attributes(names, np.linalg.norm(geometry["velocity"], axis=1))
    columns = (
        *(values.tolist() for values in geometry.values()),
        names,
        scores[kept].tolist(),
        attributes,
    )
    keys = (*geometry, "detection_name", "detection_score", "attribute_name")
    return [
        {"sample_token": token, **dict(zip(keys, row, strict=True))} for row in zip(*columns, strict=True)
    ]


def write_submission(
    path: Path,
    results: Mapping[str, Sequence[Mapping[str, Any]]],
    use_camera: bool,
    use_lidar: bool,
    use_external: bool = False,
) -> None:
    """Write a file for nuScenes' evaluation.

    Args:
        path: of the file.
        results: token of a sample to its boxes as :func:`submission_boxes` gives them.
        use_camera: whether images were read.
        use_lidar: whether points were read.
        use_external: whether other data than nuScenes were learnt from, which its rules want to be told.
    """
    meta = {
        "use_camera": use_camera,
        "use_lidar": use_lidar,
        "use_radar": False,
        "use_map": False,
        "use_external": use_external,
    }
    path.write_text(json.dumps({"meta": meta, "results": results}), encoding="utf-8")


def detections_as_json(
    detections: Detections,
    class_names: Sequence[str] = CLASSES,
    lidar2ego: FloatArray | None = None,
    ego2global: FloatArray | None = None,
) -> list[dict[str, Any]]:
    """Detections of one sample for other programs, in the order they are given in.

    Args:
        detections: in the LiDAR frame.
        class_names: in the order of labels.
        lidar2ego: [4, 4].
        ego2global: [4, 4].

    Returns:
        For each its name and score, under ``lidar`` the centre (in the middle of the height), the size (length, width,
        height), yaw and velocity in the LiDAR frame; and where both poses are given, under ``global`` translation, size
        (width, length, height), rotation (w, x, y, z) and velocity in nuScenes' global frame.
    """
    boxes, scores, labels = detections.numpy()
    columns = zip(
        gravity_centres(boxes).tolist(), boxes.tolist(), scores.tolist(), labels.tolist(), strict=True
    )
    found: list[dict[str, Any]] = [
        {
            "name": class_names[label],
            "score": score,
            "lidar": {"centre": centre, "size": box[3:6], "yaw": box[6], "velocity": box[7:9]},
        }
        for centre, box, score, label in columns
    ]
    if lidar2ego is None or ego2global is None:
        return found
    geometry = _global_geometry(boxes, lidar2ego, ego2global)
    rows = zip(*(values.tolist() for values in geometry.values()), strict=True)
    return [
        {**one, "global": dict(zip(geometry, row, strict=True))} for one, row in zip(found, rows, strict=True)
    ]


def _global_geometry(
    boxes: FloatArray, lidar2ego: FloatArray, ego2global: FloatArray
) -> dict[str, FloatArray]:
    """Translations [N, 3], sizes [N, 3], rotations [N, 4] and velocities [N, 2] of boxes [N, 9]."""
    lidar2global = np.asarray(ego2global, dtype=np.float64) @ np.asarray(lidar2ego, dtype=np.float64)
    velocities = np.pad(boxes[:, 7:9], ((0, 0), (0, 1))) @ lidar2global[:3, :3].T
    return {
        "translation": transform_points(gravity_centres(boxes), lidar2global),
        "size": boxes[:, [4, 3, 5]],
        "rotation": _turned(_rotation(ego2global) * _rotation(lidar2ego), boxes[:, 6]),
        "velocity": velocities[:, :2],
    }


def _rotation(matrix: FloatArray) -> Rotation:
    return Rotation.from_matrix(matrix[:3, :3])


def _turned(rotation: Rotation, yaw: FloatArray) -> FloatArray:
    """Quaternions w, x, y, z, [N, 4], of turning by yaw [N] about z and then by a rotation.

    Always as products of quaternions, so that signs are those of the devkit, which multiplies them too.
    """
    x, y, z, w = rotation.as_quat()
    cosine, sine = np.cos(yaw / 2), np.sin(yaw / 2)
    columns = (
        w * cosine - z * sine,
        x * cosine + y * sine,
        y * cosine - x * sine,
        w * sine + z * cosine,
    )
    return np.stack(columns, axis=-1)


def _attributes(names: Sequence[str], speeds: FloatArray) -> list[str]:
    """One for each box; barriers and cones have none."""
    return [
        (_MOVING if speed > MOVING_SPEED else _RESTING).get(name, "")
        for name, speed in zip(names, speeds.tolist(), strict=True)
    ]
