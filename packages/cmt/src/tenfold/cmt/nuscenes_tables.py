"""Columns of a keyframe table from nuScenes' tables: files, calibrations, sweeps and boxes.

Matrices go through the ego poses of both moments, because the vehicle moves between the sensors' shots.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tenfold.cmt.config import CAMERAS, CLASSES
from tenfold.cmt.keyframes import Columns, FloatArray
from tenfold.shared.logging import TenfoldError, get_logger

Record = dict[str, Any]
LIDAR = "LIDAR_TOP"
"""Channel of the LiDAR."""
VELOCITY_GAP = 1.5
"""Most seconds between two annotations of an object that tell its velocity."""

_logger = get_logger("cmt.nuscenes_tables")


def keyframe_columns(root: Path, version: str, split: str, scenes: list[str], max_sweeps: int) -> Columns:
    """Columns of a :class:`tenfold.cmt.keyframes.KeyframeTable`: by scene in the order given, then by time.

    Args:
        root: data root.
        version: folder of the tables in it.
        split: name, for messages.
        scenes: names of its scenes.
        max_sweeps: most earlier LiDAR clouds of a keyframe.

    Raises:
        TenfoldError: no sample of the split is there, or a sensor or calibration is missing or wrong; it is named.
        AssertionError, LookupError, TypeError, ValueError: the tables do not fit together.
    """
    from nuscenes.nuscenes import NuScenes  # takes seconds to import

    _logger.info("reading the tables of %s for the split %s", version, split)
    nusc = NuScenes(version, str(root), verbose=False)
    samples = _samples_in_order(nusc, scenes)
    if not samples:
        raise TenfoldError(
            f"the tables of {version} hold no sample of the split {split}; choose another split"
        )
    names = {scene["token"]: scene["name"] for scene in nusc.scene}
    lidars = [_shot(nusc, sample, LIDAR) for sample in samples]
    lidar2ego, ego2global = _sensor_poses(nusc, lidars)
    lidar2global = ego2global @ lidar2ego
    return {
        "tokens": _text(sample["token"] for sample in samples),
        "scenes": _text(names[sample["scene_token"]] for sample in samples),
        "timestamps": np.array([lidar["timestamp"] for lidar in lidars], dtype=np.int64),
        "lidar_paths": _text(lidar["filename"] for lidar in lidars),
        "lidar2ego": lidar2ego,
        "ego2global": ego2global,
        **_camera_columns(nusc, samples, lidar2global),
        **_sweep_columns(nusc, lidars, lidar2global, max_sweeps),
        **_box_columns(nusc, samples, _inverse(lidar2global)),
    }


def _samples_in_order(nusc: Any, scenes: list[str]) -> list[Record]:
    tokens = {scene["name"]: scene["token"] for scene in nusc.scene}
    by_scene: dict[str, list[Record]] = {tokens[name]: [] for name in scenes if name in tokens}
    if 0 < len(by_scene) < len(scenes):
        _logger.warning("the tables hold %d of the split's %d scenes", len(by_scene), len(scenes))
    for sample in nusc.sample:
        if sample["scene_token"] in by_scene:
            by_scene[sample["scene_token"]].append(sample)
    ordered = (sorted(samples, key=lambda sample: int(sample["timestamp"])) for samples in by_scene.values())
    return [sample for samples in ordered for sample in samples]


def _shot(nusc: Any, sample: Record, channel: str) -> Record:
    """What a sensor recorded for a keyframe, of the table sample_data."""
    if channel not in sample["data"]:
        kind = "LiDAR" if channel == LIDAR else "camera"
        raise TenfoldError(
            f"{kind} absent: sample {sample['token']} has no {channel}; CMT reads {LIDAR} and six cameras of every "
            "sample, so get the tables again or leave its scene out of the split"
        )
    return dict(nusc.get("sample_data", sample["data"][channel]))


def _camera_columns(nusc: Any, samples: list[Record], lidar2global: FloatArray) -> Columns:
    shots = [_shot(nusc, sample, camera) for sample in samples for camera in CAMERAS]
    camera2ego, ego2global = _sensor_poses(nusc, shots)
    global2camera = _inverse(ego2global @ camera2ego).reshape(-1, len(CAMERAS), 4, 4)
    tokens = [shot["calibrated_sensor_token"] for shot in shots]
    checked = {
        token: checked_intrinsic(
            nusc.get("calibrated_sensor", token)["camera_intrinsic"], f"{channel} (calibration {token})"
        )
        for token, channel in {(shot["calibrated_sensor_token"], shot["channel"]) for shot in shots}
    }
    sizes = np.array([(shot["height"], shot["width"]) for shot in shots], dtype=np.int64)
    return {
        "camera_paths": _text(shot["filename"] for shot in shots).reshape(-1, len(CAMERAS)),
        "camera_sizes": sizes.reshape(-1, len(CAMERAS), 2),
        "intrinsics": np.stack([checked[token] for token in tokens]).reshape(-1, len(CAMERAS), 3, 3),
        "lidar2camera": global2camera @ lidar2global[:, None],
    }


def checked_intrinsic(values: Any, owner: str) -> FloatArray:
    """A camera's intrinsic matrix [3, 3].

    Raises:
        TenfoldError: it is not of this shape, or cannot be inverted; ``owner`` names it.
    """
    matrix = np.asarray(values, dtype=np.float64)
    if matrix.shape != (3, 3) or not np.isfinite(matrix).all() or abs(np.linalg.det(matrix)) < 1e-9:
        raise TenfoldError(
            f"calibration not invertible: the camera intrinsic of {owner} is no regular 3 x 3 matrix; mend it"
        )
    return matrix


def _sweep_columns(nusc: Any, lidars: list[Record], lidar2global: FloatArray, max_sweeps: int) -> Columns:
    sweeps: list[Record] = []
    owners: list[int] = []
    for place, lidar in enumerate(lidars):
        sweep = lidar
        for _ in range(max_sweeps):
            if not sweep["prev"]:
                break
            sweep = nusc.get("sample_data", sweep["prev"])
            sweeps.append(sweep)
            owners.append(place)
    owner = np.array(owners, dtype=np.int64)
    sweep2ego, ego2global = _sensor_poses(nusc, sweeps)
    times = np.array([lidar["timestamp"] for lidar in lidars], dtype=np.int64)
    lags = times[owner] - np.array([sweep["timestamp"] for sweep in sweeps], dtype=np.int64)
    if (lags < 0).any():
        late = sweeps[int(np.argmax(lags < 0))]["token"]
        raise TenfoldError(
            f"the sweep {late} is later than the keyframe it comes before; get the tables again"
        )
    return {
        "sweep_starts": _starts(owner, len(lidars)),
        "sweep_paths": _text(sweep["filename"] for sweep in sweeps),
        "sweep2lidar": _inverse(lidar2global)[owner] @ ego2global @ sweep2ego,
        "sweep_lags": lags * 1e-6,
    }


def _box_columns(nusc: Any, samples: list[Record], global2lidar: FloatArray) -> Columns:
    from nuscenes.eval.detection.utils import category_to_detection_name

    names = {category["name"]: category_to_detection_name(category["name"]) for category in nusc.category}
    annotated = [
        (place, record)
        for place, sample in enumerate(samples)
        for record in (nusc.get("sample_annotation", token) for token in sample["anns"])
        if names[record["category_name"]] is not None
    ]
    owner = np.array([place for place, _ in annotated], dtype=np.int64)
    records = [record for _, record in annotated]
    poses = global2lidar[owner] @ _rigid(records)
    width, length, height = (
        np.array([record["size"] for record in records], dtype=np.float64).reshape(-1, 3).T
    )
    velocity = _velocities(nusc, records)
    velocity[:, 2] = 0  # evaluation compares the horizontal part
    velocity = np.einsum("nij,nj->ni", global2lidar[owner, :3, :3], velocity)
    x, y, z = poses[:, :3, 3].T
    yaw = np.arctan2(poses[:, 1, 0], poses[:, 0, 0])
    columns = (x, y, z - height / 2, length, width, height, yaw, velocity[:, 0], velocity[:, 1])
    return {
        "box_starts": _starts(owner, len(samples)),
        "boxes": np.stack(columns, axis=1).astype(np.float32),
        "labels": np.array([CLASSES.index(names[r["category_name"]]) for r in records], dtype=np.int64),
        "num_points": np.array([record["num_lidar_pts"] for record in records], dtype=np.int64),
        "num_radar_points": np.array([record["num_radar_pts"] for record in records], dtype=np.int64),
    }


def _velocities(nusc: Any, records: list[Record]) -> FloatArray:
    """Global velocities [N, 3] from the annotations before and after, as evaluation has them; 0 where unknown."""
    times = {sample["token"]: sample["timestamp"] for sample in nusc.sample}

    def neighbour(record: Record, side: str) -> Record:
        return nusc.get("sample_annotation", record[side]) if record[side] else record

    first = [neighbour(record, "prev") for record in records]
    last = [neighbour(record, "next") for record in records]
    moments = np.array(
        [(times[a["sample_token"]], times[b["sample_token"]]) for a, b in zip(first, last, strict=True)]
    )
    places = np.array([(a["translation"], b["translation"]) for a, b in zip(first, last, strict=True)])
    gaps = np.array([bool(record["prev"]) + bool(record["next"]) for record in records])
    seconds = np.diff(moments.reshape(-1, 2))[:, 0] * 1e-6
    known = (seconds > 0) & (seconds <= VELOCITY_GAP * gaps)
    shifts = np.diff(places.reshape(-1, 2, 3).astype(np.float64), axis=1)[:, 0]
    return np.where(known[:, None], shifts / np.where(known, seconds, 1.0)[:, None], 0.0)


def _sensor_poses(nusc: Any, shots: list[Record]) -> tuple[FloatArray, FloatArray]:
    """Sensor frame to ego and ego to global, each [M, 4, 4], of records of the table sample_data."""
    sensors = [nusc.get("calibrated_sensor", shot["calibrated_sensor_token"]) for shot in shots]
    return _rigid(sensors), _rigid([nusc.get("ego_pose", shot["ego_pose_token"]) for shot in shots])


def _rigid(records: list[Record]) -> FloatArray:
    """Motions [M, 4, 4] of records with a ``translation`` and a ``rotation`` (quaternion, real part first)."""
    quaternions = np.array([record["rotation"] for record in records], dtype=np.float64).reshape(-1, 4)
    norms = np.linalg.norm(quaternions, axis=1, keepdims=True)
    if not (norms > 1e-6).all():
        token = records[int(np.argmin(norms > 1e-6))]["token"]
        raise TenfoldError(f"calibration not invertible: the rotation of {token} is no quaternion; mend it")
    w, x, y, z = (quaternions / norms).T
    zero = np.zeros_like(w)
    cross = np.stack((zero, -z, y, z, zero, -x, -y, x, zero), axis=1).reshape(-1, 3, 3)
    motions = np.tile(np.eye(4), (len(records), 1, 1))
    motions[:, :3, :3] += 2 * (w[:, None, None] * cross + cross @ cross)
    motions[:, :3, 3] = np.array([record["translation"] for record in records]).reshape(-1, 3)
    return motions


def _inverse(motions: FloatArray) -> FloatArray:
    return np.linalg.inv(motions).astype(np.float64)


def _starts(owner: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """Where the rows of each of ``count`` keyframes begin, and the end: [count + 1], of sorted owners of rows."""
    return np.searchsorted(owner, np.arange(count + 1)).astype(np.int64)


def _text(values: Iterable[str]) -> NDArray[np.bytes_]:
    return np.array([value.encode() for value in values], dtype=np.bytes_)
