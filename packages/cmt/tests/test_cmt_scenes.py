"""Procedural scenes: equal settings give equal files, the devkit reads them, and all sensors agree with the boxes."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from nuscenes.nuscenes import NuScenes
from nuscenes.utils.data_classes import Box
from PIL import Image
from pyquaternion import Quaternion
from shapely.geometry import Point, Polygon

from tenfold.cmt.config import CAMERAS, CLASSES
from tenfold.cmt.nuscenes_index import load_index
from tenfold.cmt.procedural_checks import check_scenes, write_scenes
from tenfold.cmt.procedural_scenes import SceneConfig, generate_scenes
from tenfold.cmt.sample_reader import read_points
from tenfold.shared.logging import TenfoldError

SMALL = SceneConfig(train_scenes=2, keyframes=2, sweeps=1, lead_sweeps=1, azimuths=30, image_size=(24, 48))
MIDDLE = SceneConfig(train_scenes=2, keyframes=3, sweeps=1, lead_sweeps=2, azimuths=240)
ALONE = SceneConfig(
    train_scenes=8, keyframes=2, sweeps=0, lead_sweeps=0, azimuths=720, objects=(1, 1), distances=(5.0, 12.0)
)
"""One object a scene: nothing hides it."""
COLOURS = {
    "car": (200, 30, 30),
    "truck": (30, 60, 200),
    "construction_vehicle": (240, 200, 0),
    "bus": (30, 170, 60),
    "barrier": (255, 120, 20),
    "motorcycle": (120, 0, 160),
    "bicycle": (0, 200, 200),
    "pedestrian": (255, 150, 180),
    "traffic_cone": (120, 70, 20),
}
"""Of all classes but trailers, which are grey."""
SIZES = {
    "car": (1.95, 4.62, 1.73),
    "truck": (2.5, 6.9, 2.84),
    "construction_vehicle": (2.6, 6.6, 2.9),
    "bus": (2.9, 10.5, 3.5),
    "trailer": (2.9, 10.8, 3.6),
    "barrier": (2.5, 0.5, 0.98),
    "motorcycle": (0.77, 2.1, 1.47),
    "bicycle": (0.6, 1.75, 1.35),
    "pedestrian": (0.67, 0.73, 1.77),
    "traffic_cone": (0.41, 0.41, 1.07),
}
"""Mean width, length and height."""


def sentence(action: Callable[[], Any]) -> str:
    """The error of something that cannot be done: one line."""
    with pytest.raises(TenfoldError) as caught:
        action()
    message = str(caught.value)
    assert "\n" not in message
    return message


def content(root: Path) -> dict[str, str]:
    """Digest of every file."""
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


def opened(root: Path, config: SceneConfig) -> NuScenes:
    return NuScenes(config.version, str(root), verbose=False)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return generate_scenes(SMALL, tmp_path_factory.mktemp("small"))


@pytest.fixture(scope="module")
def middle(tmp_path_factory: pytest.TempPathFactory) -> NuScenes:
    return opened(generate_scenes(MIDDLE, tmp_path_factory.mktemp("middle")), MIDDLE)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> NuScenes:
    return opened(generate_scenes(ALONE, tmp_path_factory.mktemp("alone")), ALONE)


# -- files ---------------------------------------------------------------------------------------------


def test_equal_settings_give_equal_files(small: Path, tmp_path: Path) -> None:
    assert content(generate_scenes(SMALL, tmp_path)) == content(small)


def test_workers_make_the_same_files(small: Path, tmp_path: Path) -> None:
    assert content(generate_scenes(SMALL, tmp_path, workers=2)) == content(small)


def test_another_seed_gives_other_scenes(small: Path, tmp_path: Path) -> None:
    other = content(generate_scenes(replace(SMALL, seed=1), tmp_path))
    clouds = [one for one in other if one.endswith(".bin")]
    assert len(clouds) == 2 * 4
    assert all(other[one] != content(small)[one] for one in clouds)


def test_a_scene_does_not_depend_on_those_after_it(small: Path, tmp_path: Path) -> None:
    more = content(generate_scenes(replace(SMALL, train_scenes=3), tmp_path))
    sensors = {name: digest for name, digest in content(small).items() if name.startswith("s")}
    assert len(sensors) == 2 * (4 + 2 * 6)
    assert {name: more[name] for name in sensors} == sensors


def test_scenes_that_are_there_are_not_made_again(small: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in small.rglob("*")}
    assert generate_scenes(SMALL, small.parent) == small
    assert {path: path.stat().st_mtime_ns for path in small.rglob("*")} == before


def test_every_setting_has_a_folder_of_its_own() -> None:
    changes: list[dict[str, Any]] = [
        {}, {"train_scenes": 3}, {"test_repeats_train": False, "test_scenes": 1}, {"keyframes": 3}, {"sweeps": 3},
        {"lead_sweeps": 3}, {"azimuths": 31}, {"beams": 16}, {"image_size": (32, 48)}, {"objects": (6, 12)},
        {"distances": (5.0, 22.0)}, {"seed": 1}, {"version": "v2"}, {"train_split": "a"}, {"test_split": "b"},
    ]  # fmt: skip
    assert len({replace(SMALL, **change).fingerprint for change in changes}) == len(changes)


@pytest.mark.parametrize("lost", ["complete.json", "both"])
def test_an_incomplete_folder_is_made_again(small: Path, tmp_path: Path, lost: str) -> None:
    root = tmp_path / small.name
    shutil.copytree(small, root)
    (root / "complete.json").unlink()
    if lost == "both":
        shutil.rmtree(root / "samples")
    assert generate_scenes(SMALL, tmp_path) == root
    assert content(root) == content(small)
    assert [path.name for path in tmp_path.iterdir()] == [root.name]


def test_what_killed_processes_left_is_removed_after_an_hour(small: Path, tmp_path: Path) -> None:
    old, fresh = (tmp_path / f".scenes-{SMALL.fingerprint}.{age}.partial" for age in ("old", "fresh"))
    for folder in (old, fresh):
        (folder / "samples").mkdir(parents=True)
    hours_ago = time.time() - 7200
    for folder in (old / "samples", old):
        os.utime(folder, (hours_ago, hours_ago))
    generate_scenes(SMALL, tmp_path)
    assert not old.exists() and fresh.exists()


def test_objects_without_room_are_refused_and_leave_nothing(tmp_path: Path) -> None:
    narrow = replace(SMALL, objects=(40, 40), distances=(4.0, 8.0))
    assert "fewer objects or a wider ring" in sentence(lambda: generate_scenes(narrow, tmp_path))
    assert not list(tmp_path.iterdir())


def test_scenes_are_made_into_a_folder_that_is_not_there_yet(small: Path, tmp_path: Path) -> None:
    root = generate_scenes(SMALL, tmp_path / "some" / "where")
    assert root == tmp_path / "some" / "where" / small.name


@pytest.mark.parametrize(
    "change",
    [
        {"train_scenes": 0}, {"keyframes": 0}, {"azimuths": 0}, {"beams": 1}, {"sweeps": -1}, {"lead_sweeps": -1},
        {"seed": -1}, {"test_scenes": 1}, {"test_repeats_train": False}, {"image_size": (7, 48)},
        {"objects": (0, 3)}, {"objects": (4, 3)}, {"distances": (22.0, 4.0)}, {"distances": (4.0, 61.0)},
        {"train_split": "quick_val"}, {"train_split": "train"}, {"test_split": "mini_val"}, {"version": "a/b"},
        {"version": "samples"}, {"version": ""}, {"version": ".."},
    ],
    ids=str,
)  # fmt: skip
def test_settings_without_sense_are_refused(change: dict[str, Any]) -> None:
    sentence(lambda: replace(SMALL, **change))


# -- what the devkit says ------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [0, 3])
def test_ground_truth_as_predictions_is_perfect_and_moved_ground_truth_is_not(
    tmp_path: Path, seed: int
) -> None:
    config = replace(MIDDLE, seed=seed)
    found = check_scenes(generate_scenes(config, tmp_path), config.version, config.train_split)
    assert found["classes"] == 10
    assert found["truth_map"] == pytest.approx(1.0) and found["truth_error"] < 1e-6
    assert 0.6 < found["jittered_map"] < 0.99 and 0.6 < found["jittered_nds"] < 0.99
    assert min(found["pixels_inside"], found["objects_coloured"], found["points_inside"]) > 0.95


def test_wrong_boxes_are_noticed(middle: NuScenes, tmp_path: Path) -> None:
    """Ground truth 3 m from where the sensors saw the objects is sound as tables, but not as scenes."""
    root = tmp_path / Path(middle.dataroot).name
    shutil.copytree(middle.dataroot, root)
    path = root / MIDDLE.version / "sample_annotation.json"
    records = json.loads(path.read_bytes())
    for record in records:
        record["translation"][0] += 3.0
    path.write_text(json.dumps(records), encoding="utf-8")
    assert "not sound" in sentence(lambda: write_scenes(MIDDLE, tmp_path, check=True))


def test_sound_scenes_pass_their_check(middle: NuScenes) -> None:
    root = Path(middle.dataroot)
    assert write_scenes(MIDDLE, root.parent, check=True) == root


def test_a_folder_without_scenes_cannot_be_checked(tmp_path: Path) -> None:
    assert str(tmp_path) in sentence(lambda: check_scenes(tmp_path, "v1", "split"))


@pytest.mark.parametrize("seed", range(3))
def test_ten_objects_are_of_ten_classes_and_all_are_seen(tmp_path: Path, seed: int) -> None:
    """In one scene of ten objects, each class has three LiDAR points in some keyframe."""
    config = replace(MIDDLE, train_scenes=1, objects=(10, 10), seed=seed, image_size=(8, 8))
    index = load_index(
        generate_scenes(config, tmp_path), config.version, config.train_split, tmp_path / "cache"
    )
    assert sorted(index.keyframes[0].labels.tolist()) == list(range(10))
    best = np.max([frame.num_points for frame in index.keyframes], axis=0)
    assert best.min() >= 3


def test_held_out_scenes_are_of_the_test_split_alone(tmp_path: Path) -> None:
    config = replace(SMALL, test_repeats_train=False, test_scenes=1)
    root = generate_scenes(config, tmp_path)
    splits = json.loads((root / config.version / "splits.json").read_bytes())
    assert splits == {"quick_train": ["scene-0001", "scene-0002"], "quick_val": ["scene-0003"]}
    assert {scene["name"] for scene in opened(root, config).scene} == {
        "scene-0001",
        "scene-0002",
        "scene-0003",
    }


def test_keyframes_are_half_a_second_apart_with_sweeps_between_and_before(middle: NuScenes) -> None:
    """Three keyframes with one sweep between two, and two sweeps before the first: 7 clouds a scene."""
    for scene in middle.scene:
        sample = middle.get("sample", scene["first_sample_token"])
        record = middle.get("sample_data", sample["data"]["LIDAR_TOP"])
        while record["prev"]:
            record = middle.get("sample_data", record["prev"])
        chain = [record]
        while chain[-1]["next"]:
            chain.append(middle.get("sample_data", chain[-1]["next"]))
        assert np.diff([one["timestamp"] for one in chain]).tolist() == [250_000] * 6
        assert [one["is_key_frame"] for one in chain] == [False, False, True, False, True, False, True]
        folders = {Path(one["filename"]).parts[0]: one["is_key_frame"] for one in chain}
        assert folders == {"sweeps": False, "samples": True}


def test_scenes_link_their_samples_in_order(middle: NuScenes) -> None:
    for scene in middle.scene:
        tokens = [scene["first_sample_token"]]
        while following := middle.get("sample", tokens[-1])["next"]:
            tokens.append(following)
        assert len(tokens) == scene["nbr_samples"] == 3 and tokens[-1] == scene["last_sample_token"]


# -- sensors -------------------------------------------------------------------------------------------


def calibration(devkit: NuScenes, channel: str) -> tuple[Quaternion, NDArray[np.float64], dict[str, Any]]:
    """Rotation and place of a sensor on the car, and its record."""
    data = devkit.get("sample_data", devkit.sample[0]["data"][channel])
    record = devkit.get("calibrated_sensor", data["calibrated_sensor_token"])
    return Quaternion(record["rotation"]), np.array(record["translation"]), record


def test_the_lidar_looks_right_forward_and_up(middle: NuScenes) -> None:
    turn, place, _ = calibration(middle, "LIDAR_TOP")
    np.testing.assert_allclose(place, (0.94, 0, 1.84))
    np.testing.assert_allclose(turn.rotate(np.array([1.0, 0, 0])), (0, -1, 0), atol=1e-9)
    np.testing.assert_allclose(turn.rotate(np.array([0, 1.0, 0])), (1, 0, 0), atol=1e-9)


@pytest.mark.parametrize(("name", "yaw"), list(zip(CAMERAS, (0, -55, 55, 180, 110, -110), strict=True)))
def test_cameras_look_around_the_car(middle: NuScenes, name: str, yaw: float) -> None:
    turn, place, record = calibration(middle, name)
    cosine, sine = np.cos(np.deg2rad(yaw)), np.sin(np.deg2rad(yaw))
    np.testing.assert_allclose(place, (0.9 + 0.8 * cosine, 0.6 * sine, 1.5))
    np.testing.assert_allclose(turn.rotate(np.array([0, 0, 1.0])), (cosine, sine, 0), atol=1e-9)
    np.testing.assert_allclose(turn.rotate(np.array([0, 1.0, 0])), (0, 0, -1), atol=1e-9)
    focal = (79.6 if name == "CAM_BACK" else 126.6) * 160 / 160
    expected = [[focal, 0, 80], [0, focal, 0.546 * 90], [0, 0, 1]]
    np.testing.assert_allclose(record["camera_intrinsic"], expected)


def cloud_of(devkit: NuScenes, sample: dict[str, Any]) -> tuple[NDArray[np.float32], list[Box]]:
    path, boxes, _ = devkit.get_sample_data(sample["data"]["LIDAR_TOP"])
    return np.fromfile(path, np.float32).reshape(-1, 5), boxes


def inside(points: NDArray[Any], box: Box, margin: float) -> NDArray[np.bool_]:
    local = (points[:, :3] - box.center) @ box.rotation_matrix
    return np.asarray((np.abs(local) <= box.wlh[[1, 0, 2]] / 2 + margin).all(axis=1))


def test_points_are_on_the_ground_or_on_objects(alone: NuScenes) -> None:
    for sample in alone.sample:
        points, (box,) = cloud_of(alone, sample)
        rest = points[~inside(points, box, 0.1)]
        distance = np.linalg.norm(rest[:, :3], axis=1)
        slope = np.abs(rest[:, 2]) / distance  # the noise of the range is along the ray
        np.testing.assert_array_less(np.abs(rest[:, 2] + 1.84), 0.1 * slope + 1e-3)
        assert distance.max() < 60.2


def test_as_many_points_as_annotated_are_on_an_object(alone: NuScenes) -> None:
    """Those of its colour: intensity 8 is of the ground, 20 and more of objects."""
    for sample in alone.sample:
        points, (box,) = cloud_of(alone, sample)
        counted = alone.get("sample_annotation", box.token)["num_lidar_pts"]
        assert counted > 0
        on_it = inside(points, box, 0.1) & (points[:, 3] > 14)
        assert abs(int(on_it.sum()) - counted) <= 1 + 0.01 * counted


def test_beams_are_numbered_from_below(alone: NuScenes) -> None:
    points, _ = cloud_of(alone, alone.sample[0])
    elevation = np.rad2deg(np.arcsin(points[:, 2] / np.linalg.norm(points[:, :3], axis=1)))
    expected = np.linspace(-30.67, 10.67, 32)
    np.testing.assert_allclose(elevation, expected[points[:, 4].astype(int)], atol=1e-3)


def test_one_return_in_twenty_is_lost(alone: NuScenes) -> None:
    points, _ = cloud_of(alone, alone.sample[0])
    lowest = np.mean([(cloud_of(alone, sample)[0][:, 4] == 0).sum() for sample in alone.sample])
    assert abs(lowest / 720 - 0.95) < 0.01 and len(points) > 5000


def shown(
    devkit: NuScenes, sample: dict[str, Any], camera: str
) -> tuple[NDArray[np.float64], list[Box], Any]:
    """Pixels of an image, the boxes with a corner in it, and the intrinsics."""
    path, boxes, intrinsic = devkit.get_sample_data(sample["data"][camera])
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"), np.float64), boxes, intrinsic


def test_bright_pixels_are_inside_the_outline_of_an_object(alone: NuScenes) -> None:
    """Sky, ground and noise have channels that differ by less than 110 grey levels."""
    seen = 0
    for sample in alone.sample:
        for camera in CAMERAS:
            pixels, boxes, intrinsic = shown(alone, sample, camera)
            rows, columns = np.nonzero(np.ptp(pixels, axis=-1) > 110)
            if not boxes:
                continue
            corners = boxes[0].corners()
            if (corners[2] > 0.5).all():
                u, v = (intrinsic @ corners)[:2] / corners[2]
                assert ((columns >= u.min() - 3) & (columns <= u.max() + 3)).all()
                assert ((rows >= v.min() - 3) & (rows <= v.max() + 3)).all()
                seen += bool(len(rows))
    assert seen >= 3


def test_the_middle_of_an_object_has_the_colour_of_its_class(alone: NuScenes) -> None:
    seen = 0
    for sample in alone.sample:
        for camera in CAMERAS:
            pixels, boxes, intrinsic = shown(alone, sample, camera)
            for box in boxes:
                name = short(alone.get("sample_annotation", box.token)["category_name"])
                x, y = (intrinsic @ box.center)[:2] / box.center[2]
                if name in COLOURS and box.center[2] > 0.5 and 2 < x < 158 and 2 < y < 88:
                    found, colour = pixels[int(y), int(x)], np.array(COLOURS[name], float)
                    assert found @ colour / np.linalg.norm(found) / np.linalg.norm(colour) > 0.96
                    seen += 1
    assert seen >= 3


def short(category: str) -> str:
    """Detection class of a category."""
    names = {"vehicle.construction": "construction_vehicle", "vehicle.bus.rigid": "bus",
             "human.pedestrian.adult": "pedestrian", "movable_object.trafficcone": "traffic_cone"}  # fmt: skip
    return names.get(category, category.split(".")[-1])


def test_no_object_is_seen_through_another(middle: NuScenes) -> None:
    """Nowhere on its way from the LiDAR to its end does a ray lie inside of a box."""
    for sample in middle.sample:
        points, boxes = cloud_of(middle, sample)
        ways = (points[:, None, :3] * np.linspace(0.05, 1, 60)[:, None]).reshape(-1, 3)
        for box in boxes:
            assert not inside(ways, box, -0.12).any()


# -- motion --------------------------------------------------------------------------------------------


def chains(devkit: NuScenes) -> list[list[dict[str, Any]]]:
    """Annotations of each object in the order of time."""
    found = []
    for instance in devkit.instance:
        chain = [devkit.get("sample_annotation", instance["first_annotation_token"])]
        while chain[-1]["next"]:
            chain.append(devkit.get("sample_annotation", chain[-1]["next"]))
        assert chain[-1]["token"] == instance["last_annotation_token"]
        found.append(chain)
    return found


def test_objects_move_straight_ahead_at_the_speed_that_the_devkit_finds(middle: NuScenes) -> None:
    moving = 0
    for chain in chains(middle):
        places = np.array([one["translation"] for one in chain])
        velocity = middle.box_velocity(chain[1]["token"])
        np.testing.assert_allclose(np.diff(places, axis=0) / 0.5, [velocity] * 2, atol=1e-6)
        speed = np.linalg.norm(velocity)
        if speed > 1e-6:
            forward = Quaternion(chain[0]["rotation"]).rotate(np.array([1.0, 0, 0]))
            np.testing.assert_allclose(velocity / speed, forward, atol=1e-6)
            moving += 1
        name = short(chain[0]["category_name"])
        limits = {"pedestrian": (0.5, 1.5), "construction_vehicle": (0.5, 1), "barrier": (0, 0), "bicycle": (1, 4),
                  "traffic_cone": (0, 0), "motorcycle": (1, 4)}.get(name, (1, 5))  # fmt: skip
        assert speed < 1e-6 or limits[0] - 1e-6 <= speed <= limits[1] + 1e-6
    assert moving >= 3


def test_attributes_say_who_moves(middle: NuScenes) -> None:
    for chain in chains(middle):
        moves = np.linalg.norm(middle.box_velocity(chain[0]["token"])) > 0.2
        name = short(chain[0]["category_name"])
        if name in ("barrier", "traffic_cone"):
            expected = []
        elif name in ("bicycle", "motorcycle"):
            expected = ["cycle.with_rider" if moves else "cycle.without_rider"]
        elif name == "pedestrian":
            expected = ["pedestrian.moving" if moves else "pedestrian.standing"]
        else:
            expected = [
                "vehicle.moving" if moves else ("vehicle.stopped" if name == "bus" else "vehicle.parked")
            ]
        for one in chain:
            assert [middle.get("attribute", token)["name"] for token in one["attribute_tokens"]] == expected


def test_sizes_are_those_of_the_class(middle: NuScenes) -> None:
    ratios = np.array(
        [
            np.log(np.array(chain[0]["size"]) / SIZES[short(chain[0]["category_name"])])
            for chain in chains(middle)
        ]
    )
    assert np.abs(ratios).max() < 0.3 and 0.03 < ratios.std() < 0.09
    assert {short(chain[0]["category_name"]) for chain in chains(middle)} == set(CLASSES)


def test_objects_stand_on_the_ground_and_never_meet(middle: NuScenes) -> None:
    for sample in middle.sample:
        records = [middle.get("sample_annotation", token) for token in sample["anns"]]
        boxes = [middle.get_box(record["token"]) for record in records]
        for box in boxes:
            assert box.corners()[2].min() == pytest.approx(0.0, abs=1e-6)
        areas = [Polygon(box.bottom_corners()[:2].T) for box in boxes]
        pose = middle.get("sample_data", sample["data"]["LIDAR_TOP"])["ego_pose_token"]
        car = Point(middle.get("ego_pose", pose)["translation"][:2])
        for place, area in enumerate(areas):
            assert not any(area.intersects(other) for other in areas[:place])
            assert area.distance(car) >= 3


def test_the_car_drives_straight_on_at_constant_speed(middle: NuScenes) -> None:
    clouds = sorted(
        (one for one in middle.sample_data if one["channel"] == "LIDAR_TOP"),
        key=lambda one: int(one["timestamp"]),
    )
    for scene in middle.scene:
        own = [one for one in clouds if scene["name"] in one["filename"]]
        poses = [middle.get("ego_pose", one["ego_pose_token"]) for one in own]
        places = np.array([pose["translation"] for pose in poses])
        steps = np.diff(places, axis=0)
        assert len(places) == 7
        np.testing.assert_allclose(steps, np.broadcast_to(steps[0], steps.shape), atol=1e-6)
        speed = np.linalg.norm(steps[0]) / 0.25
        forward = Quaternion(poses[0]["rotation"]).rotate(np.array([1.0, 0, 0]))
        np.testing.assert_allclose(steps[0], forward * speed * 0.25, atol=1e-6)
        assert speed <= 5 and (places[:, 2] == 0).all()
        assert (places[:, :2] > 780).all() and (places[:, :2] < 1220).all()


def test_sweeps_of_standing_objects_fall_into_their_boxes_and_those_of_moving_ones_trail_behind(
    middle: NuScenes, tmp_path: Path
) -> None:
    """The scene moves past the car: sweeps join only where poses and clouds agree."""
    index = load_index(Path(middle.dataroot), MIDDLE.version, MIDDLE.train_split, tmp_path)
    checked = 0
    for frame in (index.keyframes[2], index.keyframes[5]):
        points = read_points(index.root, frame, 10)
        points = points[points[:, 3] > 14]  # not of the ground
        for row in frame.boxes.astype(np.float64):
            speed = np.linalg.norm(row[7:9])
            for lag in (0.25, 0.5):
                cloud = points[np.abs(points[:, 4] - lag) < 0.01]
                earlier = row.copy()
                earlier[:2] -= lag * row[7:9]
                now, before = (within(cloud, box) for box in (row, earlier))
                if before.sum() >= 10:
                    assert speed > 0 or now.sum() == before.sum()
                    if speed * lag > 1:
                        assert now.sum() < before.sum()
                    checked += 1
    assert checked >= 10


def within(points: NDArray[Any], box: NDArray[np.float64]) -> NDArray[np.bool_]:
    offset = points[:, :2] - box[:2]
    along = offset @ (np.cos(box[6]), np.sin(box[6]))
    across = offset @ (-np.sin(box[6]), np.cos(box[6]))
    return np.asarray((np.abs(along) <= box[3] / 2 + 0.1) & (np.abs(across) <= box[4] / 2 + 0.1))


def test_sweeps_see_moving_objects_where_they_were(middle: NuScenes, tmp_path: Path) -> None:
    """At least nine of ten points that are not of the ground are in a box moved back by its velocity."""
    index = load_index(Path(middle.dataroot), MIDDLE.version, MIDDLE.train_split, tmp_path)
    for frame in index.keyframes:
        points = read_points(index.root, frame, 10)
        points = points[points[:, 3] > 14]
        found = np.zeros(len(points), bool)
        for lag in np.unique(points[:, 4]):
            boxes = frame.boxes.astype(np.float64)
            boxes[:, :2] -= lag * boxes[:, 7:9]
            for box in boxes:
                found |= (points[:, 4] == lag) & within(points, box)
        assert found.mean() > 0.98
