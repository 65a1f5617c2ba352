"""Info files, from which mmdet3d's ``NuScenesDataset`` reads keyframes, written from our index."""

from __future__ import annotations

import json
from pathlib import Path, PurePosixPath
from typing import Any

from tenfold.cmt.box_geometry import gravity_centres
from tenfold.cmt.config import CAMERAS, CLASSES, POINT_FEATURES
from tenfold.cmt.keyframes import Keyframe
from tenfold.cmt.nuscenes_index import NuScenesIndex
from tenfold.cmt.nuscenes_tables import LIDAR
from tenfold.shared.logging import TenfoldError
from tenfold.shared.runs import replaced

DATASET_CLASSES = (
    *("car", "truck", "trailer", "bus", "construction_vehicle", "bicycle", "motorcycle", "pedestrian"),
    *("traffic_cone", "barrier"),
)
"""In the order of ``NuScenesDataset``, whose numbers info files hold; the dataset maps them to the order that its
``metainfo`` asks for."""
DATA_PREFIX = {
    "pts": f"samples/{LIDAR}",
    "sweeps": f"sweeps/{LIDAR}",
    **{camera: f"samples/{camera}" for camera in CAMERAS},
}
"""The argument ``data_prefix`` of the dataset: folders of the files, below the data root."""
INFO_VERSION = "1.1"


def write_infos(index: NuScenesIndex, path: Path) -> Path:
    """Write the info file of a split as JSON, in version 2 of mmdet3d's format.

    Cameras are in the order of :data:`tenfold.cmt.config.CAMERAS`, which ``LoadMultiViewImageFromFiles`` keeps, sweeps
    come nearest first, and boxes have their centre in the middle of the height. As mmdet3d has it, ``lidar2sensor`` of
    a sweep is no motion: it holds the transposed rotation to the keyframe and the negated translation.

    Args:
        index: keyframes of the split.
        path: of the file, with the suffix ``.json``.

    Returns:
        The path.

    Raises:
        TenfoldError: the path has another suffix, or files are not where nuScenes has them.
    """
    if path.suffix != ".json":
        raise TenfoldError(f"info files are JSON, unlike {path.name}; give them the suffix .json")
    content = {
        "metainfo": {
            "categories": {name: number for number, name in enumerate(DATASET_CLASSES)},
            "dataset": "nuscenes",
            "version": index.version,
            "split": index.split,
            "info_version": INFO_VERSION,
        },
        "data_list": [_info(place, keyframe) for place, keyframe in enumerate(index.keyframes)],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    with replaced(path) as temporary:
        temporary.write_text(json.dumps(content), encoding="utf-8")
    return path


def _info(place: int, keyframe: Keyframe) -> dict[str, Any]:
    seconds = keyframe.timestamp * 1e-6
    return {
        "sample_idx": place,
        "token": keyframe.token,
        "timestamp": seconds,
        "ego2global": keyframe.ego2global.tolist(),
        "lidar_points": {
            "lidar_path": _name(keyframe.lidar_path, DATA_PREFIX["pts"]),
            "num_pts_feats": POINT_FEATURES,
            "lidar2ego": keyframe.lidar2ego.tolist(),
        },
        "images": _images(keyframe),
        "lidar_sweeps": _sweeps(keyframe, seconds),
        "instances": _instances(keyframe),
    }


def _images(keyframe: Keyframe) -> dict[str, Any]:
    return {
        camera: {
            "img_path": _name(view.path, DATA_PREFIX[camera]),
            "cam2img": view.intrinsic.tolist(),
            "lidar2cam": view.lidar2camera.tolist(),
            "height": view.size[0],
            "width": view.size[1],
        }
        for camera, view in zip(CAMERAS, keyframe.cameras, strict=True)
    }


def _sweeps(keyframe: Keyframe, seconds: float) -> list[dict[str, Any]]:
    sweeps = []
    for sweep in keyframe.sweeps:
        matrix = sweep.sweep2lidar.copy()
        matrix[:3, :3] = sweep.sweep2lidar[:3, :3].T
        matrix[:3, 3] = -sweep.sweep2lidar[:3, 3]
        # The dataset looks for the folder samples in the path, puts the file's name behind one of two prefixes, and so
        # finds sweeps that are keyframes too.
        folder = DATA_PREFIX["pts" if sweep.path.startswith("samples/") else "sweeps"]
        points = {"lidar_path": f"{folder}/{_name(sweep.path, folder)}", "lidar2sensor": matrix.tolist()}
        sweeps.append({"timestamp": seconds - sweep.lag, "lidar_points": points})
    return sweeps


def _instances(keyframe: Keyframe) -> list[dict[str, Any]]:
    boxes = keyframe.boxes.astype("float64")
    columns = {
        "bbox_3d": [
            [*centre, *box[3:7]]
            for centre, box in zip(gravity_centres(boxes).tolist(), boxes.tolist(), strict=True)
        ],
        "velocity": boxes[:, 7:9].tolist(),
        "bbox_label_3d": [DATASET_CLASSES.index(CLASSES[label]) for label in keyframe.labels],
        "num_lidar_pts": keyframe.num_points.tolist(),
        "num_radar_pts": keyframe.num_radar_points.tolist(),
        "bbox_3d_isvalid": keyframe.visible.tolist(),
    }
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def _name(path: str, folder: str) -> str:
    """The name of a file that is in its folder."""
    if PurePosixPath(path).parent != PurePosixPath(folder):
        raise TenfoldError(
            f"mmdet3d looks for {PurePosixPath(path).name} in {folder}, but it is {path}; arrange the files as "
            "nuScenes does"
        )
    return PurePosixPath(path).name
