"""The keyframes of a split against the devkit's own geometry, filters, splits, and the index that is kept."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from nuscenes.nuscenes import NuScenes
from nuscenes.utils.data_classes import Box
from nuscenes.utils.geometry_utils import BoxVisibility
from pyquaternion import Quaternion

from tenfold.cmt.config import CAMERAS, CLASSES
from tenfold.cmt.keyframes import Keyframe
from tenfold.cmt.nuscenes_index import NuScenesIndex, load_index
from tenfold.cmt.procedural_scenes import SceneConfig, generate_scenes
from tenfold.shared.logging import TenfoldError, get_logger

SCENES = SceneConfig(train_scenes=2, keyframes=3, sweeps=1, lead_sweeps=1, azimuths=30, image_size=(32, 64))
SPLIT, VERSION = SCENES.train_split, SCENES.version
Records = list[dict[str, Any]]


def sentence(action: Callable[[], Any]) -> str:
    """The error of something that cannot be done: one line."""
    with pytest.raises(TenfoldError) as caught:
        action()
    message = str(caught.value)
    assert "\n" not in message
    return message


def edit(root: Path, table: str, change: Callable[[Records], Any]) -> None:
    """Rewrite a table; a change that returns nothing is made in place."""
    path = root / VERSION / f"{table}.json"
    records = json.loads(path.read_bytes())
    changed = change(records)
    path.write_text(json.dumps(records if changed is None else changed), encoding="utf-8")


def shaken(records: Records) -> None:
    """Every pose gets a tilt and a shift of its own."""
    generator = np.random.default_rng(5)
    for record in records:
        tilt = Quaternion(axis=generator.normal(size=3), angle=generator.normal(0, 0.05))
        record["rotation"] = (Quaternion(record["rotation"]) * tilt).elements.tolist()
        record["translation"] = (np.array(record["translation"]) + generator.normal(0, 0.3, 3)).tolist()


def hilly(records: Records) -> None:
    """Every annotation is somewhat above the ground."""
    for record, rise in zip(records, np.random.default_rng(6).uniform(0, 2, len(records)), strict=True):
        record["translation"][2] += float(rise)


def loaded(root: Path, cache: Path, split: str = SPLIT, max_sweeps: int = 10) -> NuScenesIndex:
    return load_index(root, VERSION, split, cache, max_sweeps)


def same(first: NuScenesIndex, second: NuScenesIndex) -> bool:
    """Whether two indices hold the same keyframes."""

    def content(frame: Keyframe) -> list[Any]:
        return [
            (frame.token, frame.scene, frame.timestamp, frame.lidar_path),
            [(sweep.path, sweep.lag, sweep.sweep2lidar.tolist()) for sweep in frame.sweeps],
            [(c.path, c.size, c.intrinsic.tolist(), c.lidar2camera.tolist()) for c in frame.cameras],
            [frame.lidar2ego.tolist(), frame.ego2global.tolist(), frame.boxes.tolist()],
            [frame.labels.tolist(), frame.num_points.tolist(), frame.num_radar_points.tolist()],
        ]

    return [content(one) for one in first.keyframes] == [content(one) for one in second.keyframes]


@pytest.fixture(scope="module")
def generated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return generate_scenes(SCENES, tmp_path_factory.mktemp("generated"))


@pytest.fixture
def tables(generated: Path, tmp_path: Path) -> Path:
    """A copy of the generated tables, without the sensors' files, to be edited."""
    root = tmp_path / "data"
    shutil.copytree(generated / VERSION, root / VERSION)
    shutil.copytree(generated / "maps", root / "maps")
    return root


@pytest.fixture(scope="module")
def shaken_root(generated: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tables in which sensors are tilted, every shot has a pose of its own, and objects go up and down."""
    root = tmp_path_factory.mktemp("shaken")
    shutil.copytree(generated / VERSION, root / VERSION)
    shutil.copytree(generated / "maps", root / "maps")
    for table in ("ego_pose", "calibrated_sensor"):
        edit(root, table, shaken)
    edit(root, "sample_annotation", hilly)
    return root


@pytest.fixture(scope="module")
def devkit(shaken_root: Path) -> NuScenes:
    return NuScenes(VERSION, str(shaken_root), verbose=False)


@pytest.fixture(scope="module")
def shaken_index(shaken_root: Path, tmp_path_factory: pytest.TempPathFactory) -> NuScenesIndex:
    return loaded(shaken_root, tmp_path_factory.mktemp("cache"))


def devkit_boxes(devkit: NuScenes, token: str, channel: str) -> dict[str, Box]:
    """All boxes in the frame of a sensor at the moment that it looked, by token of the annotation."""
    record = devkit.get("sample_data", devkit.get("sample", token)["data"][channel])
    _, visible, _ = devkit.get_sample_data(record["token"], BoxVisibility.NONE)
    return {box.token: box for box in visible}


def annotations(devkit: NuScenes, token: str) -> list[str]:
    return list(devkit.get("sample", token)["anns"])


# -- what a keyframe holds -----------------------------------------------------------------------------


def test_keyframes_come_by_scene_then_by_time(generated: Path, tmp_path: Path) -> None:
    frames = loaded(generated, tmp_path).keyframes
    assert [frame.scene for frame in frames] == ["scene-0001"] * 3 + ["scene-0002"] * 3
    assert np.diff([frame.timestamp for frame in frames[:3]]).tolist() == [500_000, 500_000]
    assert np.diff([frame.timestamp for frame in frames[3:]]).tolist() == [500_000, 500_000]


def test_order_of_scenes_is_that_of_the_split(tables: Path, tmp_path: Path) -> None:
    path = tables / VERSION / "splits.json"
    path.write_text(json.dumps({"backwards": ["scene-0002", "scene-0001"]}), encoding="utf-8")
    frames = loaded(tables, tmp_path, "backwards").keyframes
    assert [frame.scene for frame in frames] == ["scene-0002"] * 3 + ["scene-0001"] * 3


def test_order_of_records_in_the_tables_does_not_matter(tables: Path, tmp_path: Path) -> None:
    before = loaded(tables, tmp_path)
    for table in ("sample", "sample_data", "scene", "ego_pose"):
        edit(tables, table, lambda records: records[::-1])
    assert same(loaded(tables, tmp_path), before)


def test_slices_and_negative_places_are_those_of_a_list(shaken_index: NuScenesIndex) -> None:
    frames = list(shaken_index.keyframes)
    assert [one.token for one in shaken_index.keyframes[1:5:2]] == [frames[1].token, frames[3].token]
    assert shaken_index.keyframes[-1].token == frames[-1].token
    with pytest.raises(IndexError):
        shaken_index.keyframes[len(frames)]


def test_a_keyframe_is_found_by_its_token(shaken_index: NuScenesIndex) -> None:
    for place, frame in enumerate(shaken_index.keyframes):
        assert shaken_index.by_token(frame.token).timestamp == shaken_index.keyframes[place].timestamp


def test_an_unknown_token_is_named(shaken_index: NuScenesIndex) -> None:
    assert "no keyframe nowhere" in sentence(lambda: shaken_index.by_token("nowhere"))


def test_sweeps_are_the_nearest_earlier_clouds_nearest_first(generated: Path, tmp_path: Path) -> None:
    frames = loaded(generated, tmp_path, max_sweeps=3).keyframes[:3]
    assert [[round(sweep.lag, 6) for sweep in frame.sweeps] for frame in frames] == [
        [0.25],
        [0.25, 0.5, 0.75],
        [0.25, 0.5, 0.75],
    ]
    # Between two keyframes lies one sweep, so the second one back is the keyframe before.
    assert frames[2].sweeps[1].path == frames[1].lidar_path
    assert frames[2].sweeps[0].path.startswith("sweeps/LIDAR_TOP/")


def test_no_sweeps_are_listed_when_none_are_wanted(generated: Path, tmp_path: Path) -> None:
    assert all(not frame.sweeps for frame in loaded(generated, tmp_path, max_sweeps=0).keyframes)


def test_sweeps_move_through_the_poses_of_both_moments(devkit: NuScenes, shaken_index: NuScenesIndex) -> None:
    points = np.random.default_rng(0).normal(0, 20, (5, 3))
    for frame in shaken_index.keyframes:
        data = devkit.get("sample_data", devkit.get("sample", frame.token)["data"]["LIDAR_TOP"])
        record = data
        for sweep in frame.sweeps:
            record = devkit.get("sample_data", record["prev"])
            moved = points
            for shot, back in ((record, False), (data, True)):
                motions = [
                    devkit.get("calibrated_sensor", shot["calibrated_sensor_token"]),
                    devkit.get("ego_pose", shot["ego_pose_token"]),
                ]
                for motion in reversed(motions) if back else motions:
                    turn = Quaternion(motion["rotation"])
                    if back:
                        moved = np.array([turn.inverse.rotate(p - motion["translation"]) for p in moved])
                    else:
                        moved = np.array([turn.rotate(p) + motion["translation"] for p in moved])
            found = points @ sweep.sweep2lidar[:3, :3].T + sweep.sweep2lidar[:3, 3]
            np.testing.assert_allclose(found, moved, atol=1e-6)


def test_cameras_are_in_the_order_of_image_tokens(shaken_index: NuScenesIndex) -> None:
    for frame in shaken_index.keyframes:
        assert [Path(camera.path).parent.name for camera in frame.cameras] == list(CAMERAS)


def test_camera_sizes_are_height_and_width(shaken_index: NuScenesIndex) -> None:
    assert {camera.size for frame in shaken_index.keyframes for camera in frame.cameras} == {(32, 64)}


def test_boxes_in_the_lidar_frame_are_the_devkits(devkit: NuScenes, shaken_index: NuScenesIndex) -> None:
    for frame in shaken_index.keyframes:
        truth = devkit_boxes(devkit, frame.token, "LIDAR_TOP")
        for row, token in zip(frame.boxes.astype(np.float64), annotations(devkit, frame.token), strict=True):
            box = truth[token]
            width, length, height = box.wlh
            np.testing.assert_allclose(row[:3], box.center - (0, 0, height / 2), atol=2e-4)
            np.testing.assert_allclose(row[3:6], (length, width, height), rtol=1e-6)
            forward = box.orientation.rotate(np.array([1.0, 0.0, 0.0]))
            turn = np.exp(1j * (row[6] - np.arctan2(forward[1], forward[0])))
            assert abs(turn - 1) < 1e-5


def test_cameras_see_boxes_where_the_devkit_does(devkit: NuScenes, shaken_index: NuScenesIndex) -> None:
    for frame in shaken_index.keyframes:
        centres = frame.boxes[:, :3].astype(np.float64)
        centres[:, 2] += frame.boxes[:, 5] / 2
        for name, camera in zip(CAMERAS, frame.cameras, strict=True):
            truth = devkit_boxes(devkit, frame.token, name)
            expected = np.array([truth[token].center for token in annotations(devkit, frame.token)])
            found = centres @ camera.lidar2camera[:3, :3].T + camera.lidar2camera[:3, 3]
            np.testing.assert_allclose(found, expected, atol=3e-4)


def test_intrinsics_are_those_of_the_devkit(devkit: NuScenes, shaken_index: NuScenesIndex) -> None:
    for frame in shaken_index.keyframes:
        for name, camera in zip(CAMERAS, frame.cameras, strict=True):
            data = devkit.get("sample", frame.token)["data"][name]
            np.testing.assert_array_equal(camera.intrinsic, devkit.get_sample_data(data)[2])


def test_velocities_are_the_devkits_turned_into_the_lidar_frame(
    devkit: NuScenes, shaken_index: NuScenesIndex
) -> None:
    moving = 0
    for frame in shaken_index.keyframes:
        turn = (frame.ego2global @ frame.lidar2ego)[:3, :3]
        for row, token in zip(frame.boxes, annotations(devkit, frame.token), strict=True):
            velocity = devkit.box_velocity(token)
            velocity[2] = 0  # the benchmark knows horizontal velocities alone
            np.testing.assert_allclose(row[7:9], (turn.T @ velocity)[:2], atol=1e-4)
            moving += bool(np.linalg.norm(velocity) > 0.1)
    assert moving >= 6


def test_velocity_is_zero_where_annotations_are_too_far_apart(tables: Path, tmp_path: Path) -> None:
    def spread(records: Records) -> None:
        """Of the three samples of a scene the last is 2 s after the second."""
        for record in records:
            if not record["next"]:
                record["timestamp"] += 1_500_000

    edit(tables, "sample", spread)
    devkit = NuScenes(VERSION, str(tables), verbose=False)
    frames = loaded(tables, tmp_path).keyframes
    assert any(np.abs(frame.boxes[:, 7:]).max() > 0.3 for frame in frames)
    for frame in frames:
        velocities = np.array([devkit.box_velocity(token) for token in annotations(devkit, frame.token)])
        unknown = np.isnan(velocities).any(axis=1)
        assert (frame.boxes[unknown, 7:] == 0).all()
        assert unknown.all() == (frame.token in (frames[2].token, frames[5].token))
        known = np.linalg.norm(velocities[~unknown], axis=1)
        np.testing.assert_allclose(np.linalg.norm(frame.boxes[~unknown, 7:], axis=1), known, atol=1e-4)


def test_labels_are_places_in_the_papers_order_of_classes(tables: Path, tmp_path: Path) -> None:
    expected = {
        "vehicle.car": "car",
        "vehicle.truck": "truck",
        "vehicle.construction": "construction_vehicle",
        "vehicle.bus.rigid": "bus",
        "vehicle.trailer": "trailer",
        "movable_object.barrier": "barrier",
        "vehicle.motorcycle": "motorcycle",
        "vehicle.bicycle": "bicycle",
        "human.pedestrian.adult": "pedestrian",
        "movable_object.trafficcone": "traffic_cone",
    }
    devkit = NuScenes(VERSION, str(tables), verbose=False)
    seen = set()
    for frame in loaded(tables, tmp_path).keyframes:
        names = [
            devkit.get("sample_annotation", token)["category_name"]
            for token in annotations(devkit, frame.token)
        ]
        assert [CLASSES[label] for label in frame.labels] == [expected[name] for name in names]
        seen |= set(names)
    assert seen == set(expected)


# -- filters -------------------------------------------------------------------------------------------


def test_objects_of_other_categories_are_left_out(tables: Path, tmp_path: Path) -> None:
    def rename(records: Records) -> None:
        for record in records:
            if record["name"] == "vehicle.car":
                record["name"] = "animal"

    before = loaded(tables, tmp_path).keyframes
    edit(tables, "category", rename)
    after = loaded(tables, tmp_path).keyframes
    assert any((frame.labels == 0).any() for frame in before)
    for old, new in zip(before, after, strict=True):
        np.testing.assert_array_equal(new.boxes, old.boxes[old.labels != 0])
        np.testing.assert_array_equal(new.num_points, old.num_points[old.labels != 0])


def test_buses_of_both_kinds_and_all_people_are_of_one_class(tables: Path, tmp_path: Path) -> None:
    def rename(records: Records) -> None:
        for record in records:
            names = {
                "vehicle.bus.rigid": "vehicle.bus.bendy",
                "human.pedestrian.adult": "human.pedestrian.child",
            }
            record["name"] = names.get(record["name"], record["name"])

    before = loaded(tables, tmp_path)
    edit(tables, "category", rename)
    assert same(loaded(tables, tmp_path), before)


@pytest.fixture
def counted(tables: Path, tmp_path: Path) -> Keyframe:
    """A keyframe whose first boxes have LiDAR points, radar points, and none."""

    def change(records: Records) -> None:
        for record in records:
            record["num_lidar_pts"], record["num_radar_pts"] = 0, 0
        by_sample: dict[str, Records] = {}
        for record in records:
            by_sample.setdefault(record["sample_token"], []).append(record)
        for of_sample in by_sample.values():
            of_sample[0]["num_lidar_pts"], of_sample[1]["num_radar_pts"] = 3, 2

    edit(tables, "sample_annotation", change)
    return loaded(tables, tmp_path).keyframes[0]


def test_training_learns_from_boxes_with_lidar_points(counted: Keyframe) -> None:
    boxes, labels = counted.training_boxes()
    assert counted.num_points.tolist() == [3] + [0] * (len(counted.labels) - 1)
    np.testing.assert_array_equal(boxes, counted.boxes[:1])
    np.testing.assert_array_equal(labels, counted.labels[:1])


def test_evaluation_counts_boxes_with_lidar_or_radar_points(counted: Keyframe) -> None:
    assert counted.visible.tolist() == [True, True] + [False] * (len(counted.labels) - 2)


def test_a_keyframe_without_annotations_has_no_boxes(tables: Path, tmp_path: Path) -> None:
    for table in ("sample_annotation", "instance"):
        edit(tables, table, lambda records: [])
    frame = loaded(tables, tmp_path).keyframes[0]
    assert frame.boxes.shape == (0, 9) and frame.labels.shape == (0,)
    assert frame.training_boxes()[0].shape == (0, 9)


# -- splits --------------------------------------------------------------------------------------------


def test_both_splits_of_the_generator_hold_its_scenes(generated: Path, tmp_path: Path) -> None:
    train = loaded(generated, tmp_path)
    assert same(train, loaded(generated, tmp_path, SCENES.test_split))


def test_an_unknown_split_is_answered_with_those_there_are(generated: Path, tmp_path: Path) -> None:
    message = sentence(lambda: loaded(generated, tmp_path, "nonsense"))
    assert "nonsense" in message and SPLIT in message and "mini_val" in message


def test_a_split_of_other_scenes_has_no_sample_here(generated: Path, tmp_path: Path) -> None:
    assert "mini_val" in sentence(lambda: loaded(generated, tmp_path, "mini_val"))


def test_a_predefined_split_works_without_splits_json(tables: Path, tmp_path: Path) -> None:
    (tables / VERSION / "splits.json").unlink()

    def rename(records: Records) -> None:
        records[1]["name"] = "scene-0103"  # a scene of nuScenes' mini_val

    edit(tables, "scene", rename)
    assert {frame.scene for frame in loaded(tables, tmp_path, "mini_val").keyframes} == {"scene-0103"}


def test_scenes_of_the_split_that_are_not_there_are_reported(
    tables: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(get_logger("tenfold"), "propagate", True)
    path = tables / VERSION / "splits.json"
    path.write_text(json.dumps({"partly": ["scene-0002", "scene-0003"]}), encoding="utf-8")
    with caplog.at_level("WARNING"):
        assert len(loaded(tables, tmp_path, "partly")) == 3
    assert any("1 of the split's 2 scenes" in record.getMessage() for record in caplog.records)


@pytest.mark.parametrize("content", ["{", "[]", '{"quick_train": "scene-0001"}'])
def test_a_damaged_list_of_splits_is_named(tables: Path, tmp_path: Path, content: str) -> None:
    (tables / VERSION / "splits.json").write_text(content, encoding="utf-8")
    assert "splits.json" in sentence(lambda: loaded(tables, tmp_path))


# -- the kept index ------------------------------------------------------------------------------------


def kept(folder: Path) -> Path:
    (path,) = folder.glob("*.npz")
    return path


def test_the_kept_index_is_the_one_that_was_read(generated: Path, tmp_path: Path) -> None:
    first = loaded(generated, tmp_path)
    written = kept(tmp_path).stat()
    second = loaded(generated, tmp_path)
    assert same(first, second)
    assert (kept(tmp_path).stat().st_ino, kept(tmp_path).stat().st_mtime_ns) == (
        written.st_ino,
        written.st_mtime_ns,
    )


def test_by_default_the_index_is_kept_beside_the_tables(tables: Path) -> None:
    load_index(tables, VERSION, SPLIT)
    assert kept(tables / VERSION).is_file()


def test_nothing_but_the_index_stays_in_the_cache(generated: Path, tmp_path: Path) -> None:
    loaded(generated, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [kept(tmp_path).name]


def test_other_arguments_have_an_index_of_their_own(generated: Path, tmp_path: Path) -> None:
    loaded(generated, tmp_path, max_sweeps=2)
    assert max(len(frame.sweeps) for frame in loaded(generated, tmp_path, max_sweeps=1).keyframes) == 1
    assert max(len(frame.sweeps) for frame in loaded(generated, tmp_path, max_sweeps=2).keyframes) == 2


@pytest.mark.parametrize("table", ["sample_annotation", "ego_pose"])
def test_changed_tables_are_read_again(tables: Path, tmp_path: Path, table: str) -> None:
    before = loaded(tables, tmp_path).keyframes[0]

    def move(records: Records) -> None:
        for record in records:
            record["translation"][2] += 1.0

    edit(tables, table, move)
    after = loaded(tables, tmp_path).keyframes[0]
    shift = 1.0 if table == "sample_annotation" else -1.0
    np.testing.assert_allclose(after.boxes[:, 2] - before.boxes[:, 2], shift, atol=1e-4)


def test_a_split_with_other_scenes_is_read_again(tables: Path, tmp_path: Path) -> None:
    assert len(loaded(tables, tmp_path)) == 6
    path = tables / VERSION / "splits.json"
    path.write_text(json.dumps({SPLIT: ["scene-0001"]}), encoding="utf-8")
    assert len(loaded(tables, tmp_path)) == 3


@pytest.mark.parametrize("part", [0.0, 0.3, 0.9])
def test_a_cut_off_index_is_built_again(generated: Path, tmp_path: Path, part: float) -> None:
    before = loaded(generated, tmp_path)
    path = kept(tmp_path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(part * len(whole))])
    assert same(loaded(generated, tmp_path), before)
    assert len(path.read_bytes()) == len(whole)


def test_an_index_with_one_wrong_byte_is_never_believed(generated: Path, tmp_path: Path) -> None:
    before = loaded(generated, tmp_path)
    path = kept(tmp_path)
    whole = path.read_bytes()
    directory = whole.rindex(
        b"PK\x01\x02"
    )  # bytes from here say where the last column is, and how it is packed
    places = [*range(30, len(whole), len(whole) // 40), *range(directory, directory + 46)]
    for place in places:
        damaged = bytearray(whole)
        damaged[place] ^= 0x2A
        path.write_bytes(damaged)
        assert same(loaded(generated, tmp_path), before), f"byte {place}"


def test_a_cache_that_cannot_be_written_stops_nothing(
    generated: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(get_logger("tenfold"), "propagate", True)
    occupied = tmp_path / "file"
    occupied.write_text("", encoding="utf-8")
    with caplog.at_level("WARNING"):
        assert len(loaded(generated, occupied)) == 6
    assert any("not kept" in record.getMessage() for record in caplog.records)


# -- errors --------------------------------------------------------------------------------------------


def test_a_missing_root_says_where_to_get_the_data(tmp_path: Path) -> None:
    message = sentence(lambda: loaded(tmp_path / "nowhere", tmp_path))
    assert str(tmp_path / "nowhere") in message and "nuscenes.org" in message


def test_a_missing_version_is_named(generated: Path, tmp_path: Path) -> None:
    message = sentence(lambda: load_index(generated, "v1.0-mini", SPLIT, tmp_path))
    assert str(generated / "v1.0-mini") in message


@pytest.mark.parametrize("table", ["sample_annotation", "map", "visibility"])
def test_a_missing_table_is_named(tables: Path, tmp_path: Path, table: str) -> None:
    (tables / VERSION / f"{table}.json").unlink()
    assert f"{table}.json" in sentence(lambda: loaded(tables, tmp_path))


def test_a_negative_number_of_sweeps_is_refused(generated: Path, tmp_path: Path) -> None:
    assert "-1" in sentence(lambda: loaded(generated, tmp_path, max_sweeps=-1))


@pytest.mark.parametrize("channel", ["CAM_BACK", "LIDAR_TOP"])
def test_a_sample_without_one_of_the_sensors_is_named(tables: Path, tmp_path: Path, channel: str) -> None:
    gone = []

    def leave_out(records: Records) -> Records:
        gone.append(
            next(
                one["sample_token"]
                for one in records
                if one["is_key_frame"] and channel in one["filename"] and not one["next"]
            )
        )
        return [
            one
            for one in records
            if not (one["sample_token"] == gone[0] and one["is_key_frame"] and channel in one["filename"])
        ]

    edit(tables, "sample_data", leave_out)
    message = sentence(lambda: loaded(tables, tmp_path))
    assert channel in message and gone[0] in message and "absent" in message


@pytest.mark.parametrize("matrix", [[[1, 0, 0], [0, 1, 0], [0, 0, 0]], [], [[float("nan")] * 3] * 3])
def test_an_intrinsic_that_cannot_be_inverted_names_its_camera(
    tables: Path, tmp_path: Path, matrix: list[list[float]]
) -> None:
    def flatten(records: Records) -> None:
        (back,) = [one for one in records if one["token"] == tokens["CAM_BACK"]]
        back["camera_intrinsic"] = matrix

    sensors = {
        one["token"]: one["channel"] for one in json.loads((tables / VERSION / "sensor.json").read_bytes())
    }
    calibrations = json.loads((tables / VERSION / "calibrated_sensor.json").read_bytes())
    tokens = {sensors[one["sensor_token"]]: one["token"] for one in calibrations}
    edit(tables, "calibrated_sensor", flatten)
    message = sentence(lambda: loaded(tables, tmp_path))
    assert "not invertible" in message and "CAM_BACK" in message


@pytest.mark.parametrize("table", ["ego_pose", "calibrated_sensor", "sample_annotation"])
def test_a_rotation_of_no_length_is_named(tables: Path, tmp_path: Path, table: str) -> None:
    def flatten(records: Records) -> None:
        records[0]["rotation"] = [0.0, 0.0, 0.0, 0.0]

    token = json.loads((tables / VERSION / f"{table}.json").read_bytes())[0]["token"]
    edit(tables, table, flatten)
    message = sentence(lambda: loaded(tables, tmp_path))
    assert "not invertible" in message and token in message


def test_a_quaternion_need_not_be_of_length_one(tables: Path, tmp_path: Path) -> None:
    def stretch(records: Records) -> None:
        for record in records:
            record["rotation"] = [3.0 * part for part in record["rotation"]]

    before = loaded(tables, tmp_path).keyframes[1]
    edit(tables, "ego_pose", stretch)
    after = loaded(tables, tmp_path).keyframes[1]
    np.testing.assert_allclose(after.boxes, before.boxes, atol=1e-4)


def test_a_sweep_later_than_its_keyframe_is_refused(tables: Path, tmp_path: Path) -> None:
    def delay(records: Records) -> None:
        for record in records:
            if not record["is_key_frame"]:
                record["timestamp"] += 400_000

    edit(tables, "sample_data", delay)
    assert "later than the keyframe" in sentence(lambda: loaded(tables, tmp_path))


def test_tables_that_do_not_fit_together_are_refused(tables: Path, tmp_path: Path) -> None:
    edit(tables, "ego_pose", lambda records: records[3:])
    assert "do not fit together" in sentence(lambda: loaded(tables, tmp_path))


def test_a_table_that_is_no_json_is_refused(tables: Path, tmp_path: Path) -> None:
    (tables / VERSION / "sample.json").write_text("[{", encoding="utf-8")
    assert str(tables / VERSION) in sentence(lambda: loaded(tables, tmp_path))


def test_an_error_leaves_no_index_behind(tables: Path, tmp_path: Path) -> None:
    edit(tables, "ego_pose", lambda records: records[3:])
    sentence(lambda: loaded(tables, tmp_path / "cache"))
    assert not list(tmp_path.glob("cache/*"))


def test_an_index_of_given_keyframes_finds_them_by_token(shaken_index: NuScenesIndex) -> None:
    frames = [replace(frame, token=f"number {place}") for place, frame in enumerate(shaken_index.keyframes)]
    index = replace(shaken_index, keyframes=frames)
    assert index.by_token("number 3") is frames[3]
