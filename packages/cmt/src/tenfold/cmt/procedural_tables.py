"""Tables of procedural scenes as nuScenes has them: records with tokens, linked into chains."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tenfold.cmt.config import CAMERAS, CLASSES
from tenfold.cmt.procedural_objects import Layout
from tenfold.cmt.procedural_sensors import (
    CAMERA_YAWS,
    LIDAR,
    LIDAR_POSITION,
    LIDAR_YAW,
    camera_intrinsic,
    camera_position,
)

Record = dict[str, Any]
Tables = dict[str, list[Record]]

TABLE_NAMES = (
    "category",
    "attribute",
    "visibility",
    "instance",
    "sensor",
    "calibrated_sensor",
    "ego_pose",
    "log",
    "scene",
    "sample",
    "sample_data",
    "sample_annotation",
    "map",
)
MAP_FILE = "maps/flat.png"
CATEGORIES = {
    "car": "vehicle.car",
    "truck": "vehicle.truck",
    "construction_vehicle": "vehicle.construction",
    "bus": "vehicle.bus.rigid",
    "trailer": "vehicle.trailer",
    "barrier": "movable_object.barrier",
    "motorcycle": "vehicle.motorcycle",
    "bicycle": "vehicle.bicycle",
    "pedestrian": "human.pedestrian.adult",
    "traffic_cone": "movable_object.trafficcone",
}
_VEHICLE = ("vehicle.moving", "vehicle.parked")
_CYCLE = ("cycle.with_rider", "cycle.without_rider")
_ATTRIBUTES = {
    "car": _VEHICLE,
    "truck": _VEHICLE,
    "construction_vehicle": _VEHICLE,
    "bus": ("vehicle.moving", "vehicle.stopped"),
    "trailer": _VEHICLE,
    "motorcycle": _CYCLE,
    "bicycle": _CYCLE,
    "pedestrian": ("pedestrian.moving", "pedestrian.standing"),
}
"""Of moving and of standing objects, as predictions get them from their speed; barriers and cones have none."""
_OTHER_ATTRIBUTES = ("pedestrian.sitting_lying_down",)
_VISIBILITIES = ("v0-40", "v40-60", "v60-80", "v80-100")
_FULLY_VISIBLE = "4"


@dataclass(frozen=True)
class Frame:
    """A moment at which the sensors look."""

    time: int
    """Microseconds from the first keyframe."""
    is_key: bool
    """Cameras look at keyframes only, the LiDAR at all frames."""

    def filename(self, scene: str, channel: str, timestamp: int) -> str:
        """Path below the root of the data."""
        folder = "samples" if self.is_key else "sweeps"
        ending = "pcd.bin" if channel == LIDAR else "jpg"
        return f"{folder}/{channel}/{scene}__{channel}__{timestamp}.{ending}"


@dataclass(frozen=True)
class RecordedScene:
    """A scene after its sensors looked; what its records are made of."""

    name: str
    start: int
    """Timestamp of the first keyframe in microseconds."""
    frames: tuple[Frame, ...]
    """In the order of time."""
    layout: Layout
    returns: NDArray[np.int64]
    """[keyframes, N]: points of the LiDAR that each object reflects."""
    image_size: tuple[int, int]
    """Height and width in pixels."""

    @property
    def keyframes(self) -> tuple[Frame, ...]:
        return tuple(frame for frame in self.frames if frame.is_key)

    def since_middle(self, frame: Frame) -> float:
        """Seconds from the middle of the scene."""
        return since_middle(self.frames, frame)


def since_middle(frames: Sequence[Frame], frame: Frame) -> float:
    """Seconds from the middle between the first and the last keyframe to a frame."""
    keys = [one.time for one in frames if one.is_key]
    return (frame.time - (keys[0] + keys[-1]) / 2) * 1e-6


def token(*key: object) -> str:
    """Name of a record: the hash of a readable key."""
    return hashlib.md5("/".join(map(str, key)).encode(), usedforsecurity=False).hexdigest()


def fixed_tables(scenes: Sequence[str], image_size: tuple[int, int]) -> Tables:
    """Tables that all scenes share: what there can be, the sensors, logs and the map.

    Args:
        scenes: names of all scenes.
        image_size: height and width of images in pixels.
    """
    attributes = dict.fromkeys(name for pair in _ATTRIBUTES.values() for name in pair)
    logs = [token("log", scene) for scene in scenes]
    return {
        "category": [
            {"token": token("category", name), "name": name, "description": "", "index": place}
            for place, name in enumerate(CATEGORIES[one] for one in CLASSES)
        ],
        "attribute": [
            {"token": token("attribute", name), "name": name, "description": ""}
            for name in (*attributes, *_OTHER_ATTRIBUTES)
        ],
        "visibility": [
            {"token": str(number), "level": level, "description": ""}
            for number, level in enumerate(_VISIBILITIES, start=1)
        ],
        "sensor": [
            {
                "token": token("sensor", channel),
                "channel": channel,
                "modality": "lidar" if channel == LIDAR else "camera",
            }
            for channel in (LIDAR, *CAMERAS)
        ],
        "calibrated_sensor": _calibrations(image_size),
        "log": [
            {
                "token": log,
                "logfile": scene,
                "vehicle": "procedural",
                "date_captured": "2020-09-13",
                "location": "procedural",
            }
            for log, scene in zip(logs, scenes, strict=True)
        ],
        "map": [
            {
                "token": token("map"),
                "log_tokens": logs,
                "category": "semantic_prior",
                "filename": MAP_FILE,
            }
        ],
    }


def _calibrations(image_size: tuple[int, int]) -> list[Record]:
    lidar = {
        "token": token("calibrated_sensor", LIDAR),
        "sensor_token": token("sensor", LIDAR),
        "translation": list(LIDAR_POSITION),
        "rotation": _about_z(LIDAR_YAW),
        "camera_intrinsic": [],
    }
    cameras = [
        {
            "token": token("calibrated_sensor", name),
            "sensor_token": token("sensor", name),
            "translation": camera_position(name).tolist(),
            "rotation": _camera_quaternion(yaw),
            "camera_intrinsic": camera_intrinsic(name, image_size).tolist(),
        }
        for name, yaw in CAMERA_YAWS.items()
    ]
    return [lidar, *cameras]


def _about_z(angle: float) -> list[float]:
    """Quaternion, real part first, of a rotation about z."""
    return [float(np.cos(angle / 2)), 0.0, 0.0, float(np.sin(angle / 2))]


def _camera_quaternion(yaw: float) -> list[float]:
    """Quaternion from the camera's frame (x right, y down, z forward) to that of the ego."""
    real, _, _, third = _about_z(yaw)
    # The product of the rotation about z and (1 - i + j - k) / 2, which turns a camera that looks forward.
    parts = (real + third, -real - third, real - third, third - real)
    return [part / 2 for part in parts]


def scene_tables(scene: RecordedScene) -> Tables:
    """Records of one scene."""
    keyframes = scene.keyframes
    samples = [token("sample", scene.name, number) for number in range(len(keyframes))]
    tables: Tables = {
        "scene": [
            {
                "token": token("scene", scene.name),
                "log_token": token("log", scene.name),
                "nbr_samples": len(samples),
                "first_sample_token": samples[0],
                "last_sample_token": samples[-1],
                "name": scene.name,
                "description": "synthetic",
            }
        ],
        "sample": _chained(
            [
                {
                    "token": sample,
                    "timestamp": scene.start + frame.time,
                    "scene_token": token("scene", scene.name),
                }
                for sample, frame in zip(samples, keyframes, strict=True)
            ]
        ),
    }
    return tables | _sensor_tables(scene, samples) | _object_tables(scene, samples)


def _sensor_tables(scene: RecordedScene, samples: Sequence[str]) -> Tables:
    data: list[Record] = []
    poses: list[Record] = []
    for channel in (LIDAR, *CAMERAS):
        frames = scene.frames if channel == LIDAR else scene.keyframes
        records = []
        for frame in frames:
            timestamp = scene.start + frame.time
            name = token("sample_data", scene.name, channel, timestamp)
            x, y, heading = scene.layout.ego_pose(scene.since_middle(frame))
            poses.append(
                {
                    "token": name,
                    "timestamp": timestamp,
                    "rotation": _about_z(heading),
                    "translation": [x, y, 0.0],
                }
            )
            # A sweep belongs to the keyframe after it.
            following = sum(key.time < frame.time for key in scene.keyframes)
            height, width = (0, 0) if channel == LIDAR else scene.image_size
            records.append(
                {
                    "token": name,
                    "sample_token": samples[following],
                    "ego_pose_token": name,
                    "calibrated_sensor_token": token("calibrated_sensor", channel),
                    "timestamp": timestamp,
                    "fileformat": "pcd" if channel == LIDAR else "jpg",
                    "is_key_frame": frame.is_key,
                    "height": height,
                    "width": width,
                    "filename": frame.filename(scene.name, channel, timestamp),
                }
            )
        data.extend(_chained(records))
    return {"sample_data": data, "ego_pose": poses}


def _object_tables(scene: RecordedScene, samples: Sequence[str]) -> Tables:
    instances: list[Record] = []
    annotations: list[Record] = []
    layout = scene.layout
    solids = np.stack([layout.solids(scene.since_middle(frame)) for frame in scene.keyframes])
    for number, label in enumerate(layout.labels.tolist()):
        instance = token("instance", scene.name, number)
        attributes = _attributes(CLASSES[label], bool(layout.speeds[number] > 0))
        chain = []
        for key, (x, y, bottom, length, width, height, yaw) in enumerate(solids[:, number].tolist()):
            chain.append(
                {
                    "token": token("sample_annotation", scene.name, number, key),
                    "sample_token": samples[key],
                    "instance_token": instance,
                    "visibility_token": _FULLY_VISIBLE,
                    "attribute_tokens": attributes,
                    "translation": [x, y, bottom + height / 2],
                    "size": [width, length, height],
                    "rotation": _about_z(yaw),
                    "num_lidar_pts": int(scene.returns[key, number]),
                    "num_radar_pts": 0,
                }
            )
        annotations.extend(_chained(chain))
        instances.append(
            {
                "token": instance,
                "category_token": token("category", CATEGORIES[CLASSES[label]]),
                "nbr_annotations": len(chain),
                "first_annotation_token": chain[0]["token"],
                "last_annotation_token": chain[-1]["token"],
            }
        )
    return {"instance": instances, "sample_annotation": annotations}


def _attributes(name: str, moves: bool) -> list[str]:
    pair = _ATTRIBUTES.get(name)
    return [] if pair is None else [token("attribute", pair[0] if moves else pair[1])]


def _chained(records: list[Record]) -> list[Record]:
    """The records, each with the tokens of those before and after it."""
    names = ["", *(str(record["token"]) for record in records), ""]
    return [
        record | {"prev": before, "next": after}
        for record, before, after in zip(records, names[:-2], names[2:], strict=True)
    ]


def joined(parts: Sequence[Mapping[str, list[Record]]]) -> Tables:
    """All tables in one, those that no part has being empty."""
    return {name: [record for part in parts for record in part.get(name, ())] for name in TABLE_NAMES}
