"""One keyframe from a folder of six images, a LiDAR cloud and an ``annotation.json``, without nuScenes' tables."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tenfold.cmt.config import BOX_SIZE, CAMERAS, CLASSES
from tenfold.cmt.keyframes import CameraView, FloatArray, Keyframe, LidarSweep
from tenfold.cmt.nuscenes_tables import checked_intrinsic
from tenfold.shared.logging import TenfoldError

ANNOTATION = "annotation.json"


def read_keyframe_folder(folder: Path) -> Keyframe:
    """A keyframe; its paths are relative to ``folder``.

    ``annotation.json`` holds ``classes`` (number by name) and a ``frame`` of:

    - ``token``, ``timestamp`` (seconds) and ``ego2global`` (4 x 4);
    - ``images``: for each of the six cameras ``img_path``, ``cam2img`` (3 x 3) and ``lidar2cam`` (4 x 4);
    - ``lidar_points``: ``lidar_path`` and ``lidar2ego`` (4 x 4);
    - ``instances``, optional: ``bbox_3d`` (x, y, z of the MIDDLE, length, width, height, yaw), ``bbox_label_3d``,
      ``num_lidar_pts``, and optionally ``velocity`` (x and y, LiDAR frame) and ``num_radar_pts``;
    - ``lidar_sweeps``, optional, nearest first: ``timestamp`` and ``lidar_points`` of ``lidar_path`` and
      ``lidar2sensor`` (4 x 4, the keyframe's LiDAR frame to the sweep's).

    Objects of other than the ten classes are left out.

    Raises:
        TenfoldError: a file, field or camera is absent, or a matrix cannot be inverted; it is named.
    """
    path = folder / ANNOTATION
    if not path.is_file():
        raise TenfoldError(
            f"there is no file {path}; give a folder of six images, a LiDAR file and {ANNOTATION}"
        )
    try:
        content = json.loads(path.read_bytes())
        return _keyframe(folder, content["classes"], content["frame"])
    except KeyError as error:
        raise TenfoldError(f"{path} has no field {error}; add it") from error
    except (AttributeError, IndexError, TypeError, ValueError) as error:
        raise TenfoldError(f"{path} is not of the expected form ({error}); mend it") from error


def _keyframe(folder: Path, classes: dict[str, int], frame: dict[str, Any]) -> Keyframe:
    lidar = frame["lidar_points"]
    boxes, labels, num_points, num_radar_points = _instances(classes, frame.get("instances") or [])
    return Keyframe(
        token=str(frame["token"]),
        scene=folder.resolve().name,
        timestamp=round(float(frame["timestamp"]) * 1e6),
        lidar_path=_present(folder, lidar["lidar_path"]),
        sweeps=tuple(
            _sweep(folder, sweep, float(frame["timestamp"])) for sweep in frame.get("lidar_sweeps") or []
        ),
        cameras=tuple(_camera(folder, frame["images"], name) for name in CAMERAS),
        lidar2ego=_motion(lidar["lidar2ego"], "lidar2ego"),
        ego2global=_motion(frame["ego2global"], "ego2global"),
        boxes=boxes,
        labels=labels,
        num_points=num_points,
        num_radar_points=num_radar_points,
    )


def _camera(folder: Path, images: dict[str, Any], name: str) -> CameraView:
    if name not in images:
        raise TenfoldError(
            f"camera absent: {folder / ANNOTATION} has no {name}; CMT reads six cameras, so add it"
        )
    view = images[name]
    path = _present(folder, view["img_path"])
    try:
        with Image.open(folder / path) as image:
            width, height = image.size
    except (OSError, SyntaxError, ValueError) as error:
        raise TenfoldError(f"the image {folder / path} cannot be read ({error}); get it again") from error
    intrinsic = checked_intrinsic(view["cam2img"], name)
    return CameraView(path, intrinsic, _motion(view["lidar2cam"], f"lidar2cam of {name}"), (height, width))


def _sweep(folder: Path, sweep: dict[str, Any], keyframe_time: float) -> LidarSweep:
    lidar = sweep["lidar_points"]
    path = _present(folder, lidar["lidar_path"])
    lag = keyframe_time - float(sweep["timestamp"])
    if lag < 0:
        raise TenfoldError(
            f"the sweep {path} is {-lag:.3f} s later than the keyframe; give earlier sweeps only"
        )
    sweep2lidar = np.linalg.inv(_motion(lidar["lidar2sensor"], f"lidar2sensor of {path}")).astype(np.float64)
    return LidarSweep(path, sweep2lidar, lag)


def _instances(
    classes: dict[str, int], instances: list[dict[str, Any]]
) -> tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Boxes [N, 9], labels, LiDAR and radar points [N] of the objects of our classes."""
    ours = {number: CLASSES.index(name) for name, number in classes.items() if name in CLASSES}
    kept = [instance for instance in instances if instance["bbox_label_3d"] in ours]
    rows = [(*instance["bbox_3d"], *instance.get("velocity", (0.0, 0.0))) for instance in kept]
    boxes = np.array(rows, dtype=np.float64).reshape(len(rows), BOX_SIZE)
    boxes[:, 2] -= boxes[:, 5] / 2
    boxes[:, 7:] = np.nan_to_num(boxes[:, 7:])
    counts = [(i["bbox_label_3d"], i["num_lidar_pts"], i.get("num_radar_pts", 0)) for i in kept]
    labels, points, radar = np.array(counts, dtype=np.int64).reshape(-1, 3).T
    numbers = np.array([ours[label] for label in labels.tolist()], dtype=np.int64)
    return boxes.astype(np.float32), numbers, points.copy(), radar.copy()


def _motion(values: Any, name: str) -> FloatArray:
    matrix = np.asarray(values, dtype=np.float64)
    if matrix.shape != (4, 4) or not np.isfinite(matrix).all() or abs(np.linalg.det(matrix)) < 1e-9:
        raise TenfoldError(f"calibration not invertible: {name} is no regular 4 x 4 matrix; mend it")
    return matrix


def _present(folder: Path, name: str) -> str:
    if not (folder / name).is_file():
        raise TenfoldError(f"there is no file {folder / name}, which {ANNOTATION} names; add it")
    return name
