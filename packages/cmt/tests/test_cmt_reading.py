"""Points and images of keyframes as they are read from files, and keyframes from a folder of their own."""

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
from nuscenes.utils.data_classes import LidarPointCloud
from PIL import Image
from pyquaternion import Quaternion

from tenfold.cmt.box_geometry import points_in_boxes
from tenfold.cmt.config import CAMERAS, CLASSES
from tenfold.cmt.keyframe_folder import read_keyframe_folder
from tenfold.cmt.keyframes import Keyframe
from tenfold.cmt.nuscenes_index import NuScenesIndex, load_index
from tenfold.cmt.procedural_scenes import SceneConfig
from tenfold.cmt.sample_reader import read_images, read_points, read_sample
from tenfold.shared.logging import TenfoldError

VERSION, SPLIT = SceneConfig().version, SceneConfig().train_split


def sentence(action: Callable[[], Any]) -> str:
    """The error of something that cannot be done: one line."""
    with pytest.raises(TenfoldError) as caught:
        action()
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.fixture
def copy(index: NuScenesIndex, tmp_path: Path) -> tuple[Path, Keyframe]:
    """A keyframe with two sweeps, and a root with its files alone, to be damaged."""
    frame = index.keyframes[1]
    for path in (frame.lidar_path, *(s.path for s in frame.sweeps), *(c.path for c in frame.cameras)):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(index.root / path, tmp_path / path)
    return tmp_path, frame


def stored_cloud(path: Path) -> np.ndarray[Any, Any]:
    return np.fromfile(path, np.float32).reshape(-1, 5)


# -- points --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sweeps", [0, 1, 2])
def test_points_are_those_that_the_devkit_joins(scenes: Path, tmp_path: Path, sweeps: int) -> None:
    """Through tilted poses, all of them different."""
    root = tmp_path / "tilted"
    shutil.copytree(scenes, root, ignore=shutil.ignore_patterns("*.npz"))
    for table in ("ego_pose", "calibrated_sensor"):
        path = root / VERSION / f"{table}.json"
        records = json.loads(path.read_bytes())
        generator = np.random.default_rng(3)
        for record in records:
            tilt = Quaternion(axis=generator.normal(size=3), angle=generator.normal(0, 0.05))
            record["rotation"] = (Quaternion(record["rotation"]) * tilt).elements.tolist()
            record["translation"] = (np.array(record["translation"]) + generator.normal(0, 0.3, 3)).tolist()
        path.write_text(json.dumps(records), encoding="utf-8")
    frame = load_index(root, VERSION, SPLIT, tmp_path / "cache", 5).keyframes[1]
    devkit = NuScenes(VERSION, str(root), verbose=False)
    cloud, lags = LidarPointCloud.from_file_multisweep(
        devkit, devkit.get("sample", frame.token), "LIDAR_TOP", "LIDAR_TOP", sweeps + 1, min_distance=0.0
    )
    found = read_points(root, frame, sweeps)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found[:, :3], cloud.points[:3].T, atol=2e-4)
    np.testing.assert_array_equal(found[:, 3], cloud.points[3])
    np.testing.assert_allclose(found[:, 4], lags[0], atol=1e-6)


def test_lags_are_zero_for_the_keyframe_and_positive_before_it(index: NuScenesIndex) -> None:
    lags = read_points(index.root, index.keyframes[1], 2)[:, 4]
    starts = np.flatnonzero(np.diff(lags, prepend=-1.0))
    np.testing.assert_allclose(lags[starts], [0.0, 0.25, 0.5], atol=1e-6)


def test_intensities_stay_as_they_are_in_the_file(index: NuScenesIndex) -> None:
    frame = index.keyframes[0]
    stored = stored_cloud(index.root / frame.lidar_path)
    np.testing.assert_array_equal(read_points(index.root, frame, 0)[:, :4], stored[:, :4])
    assert stored[:, 3].max() > 50


def test_all_sweeps_are_read_where_there_are_fewer_than_wanted(index: NuScenesIndex) -> None:
    frame = index.keyframes[0]
    assert len(frame.sweeps) == 1
    np.testing.assert_array_equal(read_points(index.root, frame, 10), read_points(index.root, frame, 1))


def test_points_close_to_the_car_are_kept(copy: tuple[Path, Keyframe]) -> None:
    root, frame = copy
    near = np.array([[0.1, 0.2, 0.3, 4.0, 5.0]], np.float32)
    near.tofile(root / frame.lidar_path)
    np.testing.assert_array_equal(read_points(root, frame, 0), [near[0] * (1, 1, 1, 1, 0)])


@pytest.mark.parametrize(("beams", "apart"), [(32, 1), (16, 2), (8, 4), (4, 8), (2, 16), (1, 32)])
def test_fewer_beams_are_evenly_spread_beams(index: NuScenesIndex, beams: int, apart: int) -> None:
    frame = index.keyframes[1]
    files = [frame.lidar_path, *(sweep.path for sweep in frame.sweeps)]
    expected = [sum(ring % apart == 0 for ring in stored_cloud(index.root / one)[:, 4]) for one in files]
    points = read_points(index.root, frame, 2, keep_beams=beams)
    assert [int((np.abs(points[:, 4] - lag) < 0.01).sum()) for lag in (0.0, 0.25, 0.5)] == expected


def test_without_a_number_of_beams_all_points_are_kept(index: NuScenesIndex) -> None:
    frame = index.keyframes[0]
    np.testing.assert_array_equal(
        read_points(index.root, frame, 1), read_points(index.root, frame, 1, keep_beams=32)
    )


@pytest.mark.parametrize("beams", [0, 3, 64, -1])
def test_a_number_of_beams_that_does_not_divide_32_is_refused(index: NuScenesIndex, beams: int) -> None:
    assert f"not {beams}" in sentence(
        lambda: read_points(index.root, index.keyframes[0], 0, keep_beams=beams)
    )


def test_a_negative_number_of_sweeps_is_refused(index: NuScenesIndex) -> None:
    assert "-1" in sentence(lambda: read_points(index.root, index.keyframes[0], -1))


@pytest.mark.parametrize("size", [0, 19, 33])
def test_a_lidar_file_that_holds_no_whole_points_is_named(copy: tuple[Path, Keyframe], size: int) -> None:
    root, frame = copy
    path = root / frame.sweeps[1].path
    path.write_bytes(path.read_bytes()[:size])
    message = sentence(lambda: read_points(root, frame, 2))
    assert str(path) in message and f"{size} bytes" in message


def test_a_missing_lidar_file_is_named(copy: tuple[Path, Keyframe]) -> None:
    root, frame = copy
    (root / frame.sweeps[0].path).unlink()
    assert str(root / frame.sweeps[0].path) in sentence(lambda: read_points(root, frame, 1))


def test_a_sweep_that_is_not_wanted_is_not_missed(copy: tuple[Path, Keyframe]) -> None:
    root, frame = copy
    (root / frame.sweeps[1].path).unlink()
    assert len(read_points(root, frame, 1))


# -- images --------------------------------------------------------------------------------------------


def test_images_are_the_files_pixels_blue_first(index: NuScenesIndex) -> None:
    frame = index.keyframes[0]
    images = read_images(index.root, frame)
    assert images.shape == (6, 90, 160, 3) and images.dtype == np.uint8
    for image, camera in zip(images, frame.cameras, strict=True):
        with Image.open(index.root / camera.path) as opened:
            pillow = np.asarray(opened.convert("RGB")).astype(int)
        difference = np.abs(image[..., ::-1].astype(int) - pillow)  # decoders round differently
        assert difference.max() <= 8 and difference.mean() < 0.5
        assert np.abs(image.astype(int) - pillow).mean() > 10


def test_grey_images_become_three_equal_channels(copy: tuple[Path, Keyframe]) -> None:
    root, frame = copy
    ramp = np.tile(np.arange(160, dtype=np.uint8), (90, 1))
    Image.fromarray(ramp).save(root / frame.cameras[2].path, format="PNG")
    np.testing.assert_array_equal(read_images(root, frame)[2], np.stack([ramp] * 3, axis=-1))


def test_a_missing_image_is_named(copy: tuple[Path, Keyframe]) -> None:
    root, frame = copy
    (root / frame.cameras[4].path).unlink()
    assert str(root / frame.cameras[4].path) in sentence(lambda: read_images(root, frame))


@pytest.mark.parametrize("content", [b"", b"no image at all", b"\xff\xd8\xff\xe0"])
def test_a_file_that_is_no_image_is_named(copy: tuple[Path, Keyframe], content: bytes) -> None:
    root, frame = copy
    (root / frame.cameras[0].path).write_bytes(content)
    assert str(root / frame.cameras[0].path) in sentence(lambda: read_images(root, frame))


def test_a_cut_off_image_is_named(copy: tuple[Path, Keyframe]) -> None:
    root, frame = copy
    path = root / frame.cameras[5].path
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert str(path) in sentence(lambda: read_images(root, frame))


def test_an_image_of_another_size_than_its_calibration_is_named(copy: tuple[Path, Keyframe]) -> None:
    root, frame = copy
    Image.new("RGB", (80, 45)).save(root / frame.cameras[1].path, format="PNG")
    message = sentence(lambda: read_images(root, frame))
    assert str(root / frame.cameras[1].path) in message and "45 x 80" in message and "90 x 160" in message


def test_cameras_of_different_sizes_are_refused(copy: tuple[Path, Keyframe]) -> None:
    root, frame = copy
    Image.new("RGB", (80, 45)).save(root / frame.cameras[3].path, format="PNG")
    cameras = list(frame.cameras)
    cameras[3] = replace(cameras[3], size=(45, 80))
    message = sentence(lambda: read_images(root, replace(frame, cameras=tuple(cameras))))
    assert cameras[3].path in message


# -- samples -------------------------------------------------------------------------------------------


def test_training_samples_have_the_boxes_with_lidar_points(index: NuScenesIndex) -> None:
    frame = index.keyframes[0]
    kept = [count > 0 for count in frame.num_points.tolist()]
    assert not all(kept)
    sample = read_sample(index.root, frame, 0, points=False, images=False, training=True)
    np.testing.assert_array_equal(sample.boxes, frame.boxes[kept])
    np.testing.assert_array_equal(sample.labels, frame.labels[kept])


def test_test_samples_have_all_boxes(index: NuScenesIndex) -> None:
    frame = index.keyframes[0]
    sample = read_sample(index.root, frame, 0, points=False, images=False, training=False)
    np.testing.assert_array_equal(sample.boxes, frame.boxes)


def test_changing_a_sample_leaves_its_keyframe_alone(index: NuScenesIndex) -> None:
    frame = index.keyframes[0]
    before = frame.boxes.copy()
    for training in (False, True):
        sample = read_sample(index.root, frame, 0, points=False, images=False, training=training)
        sample.boxes[:] = 7
        sample.labels[:] = 3
    np.testing.assert_array_equal(frame.boxes, before)


@pytest.mark.parametrize("points", [False, True])
@pytest.mark.parametrize("images", [False, True])
def test_only_the_wanted_sensors_are_read(index: NuScenesIndex, points: bool, images: bool) -> None:
    sample = read_sample(index.root, index.keyframes[0], 0, points, images, training=True)
    assert (sample.points is not None) == points
    assert (sample.images is not None) == images


def test_matrices_of_a_sample_are_those_of_its_cameras(index: NuScenesIndex) -> None:
    frame = index.keyframes[0]
    sample = read_sample(index.root, frame, 0, points=False, images=False, training=True)
    point = np.array([3.0, 12.0, -0.5, 1.0])
    for matrix, camera in zip(sample.lidar2image, frame.cameras, strict=True):
        expected = camera.intrinsic @ (camera.lidar2camera @ point)[:3]
        np.testing.assert_allclose((matrix @ point)[:3], expected)


# -- keyframes in a folder -----------------------------------------------------------------------------


@pytest.fixture
def folder(copy: tuple[Path, Keyframe]) -> Path:
    """A generated keyframe as a folder with ``annotation.json``, classes numbered backwards."""
    root, frame = copy
    numbers = {name: 9 - place for place, name in enumerate(CLASSES)} | {"animal": 10}
    boxes = frame.boxes.astype(np.float64)
    boxes[:, 2] += boxes[:, 5] / 2
    seconds = frame.timestamp * 1e-6
    instances = [
        {
            "bbox_3d": box[:7].tolist(),
            "velocity": box[7:].tolist(),
            "bbox_label_3d": 9 - int(label),
            "num_lidar_pts": int(count),
        }
        for box, label, count in zip(boxes, frame.labels, frame.num_points, strict=True)
    ]
    content = {
        "classes": numbers,
        "frame": {
            "token": frame.token,
            "timestamp": seconds,
            "ego2global": frame.ego2global.tolist(),
            "images": {
                name: {
                    "img_path": camera.path,
                    "cam2img": camera.intrinsic.tolist(),
                    "lidar2cam": camera.lidar2camera.tolist(),
                }
                for name, camera in reversed(list(zip(CAMERAS, frame.cameras, strict=True)))
            },
            "lidar_points": {"lidar_path": frame.lidar_path, "lidar2ego": frame.lidar2ego.tolist()},
            "lidar_sweeps": [
                {
                    "timestamp": seconds - sweep.lag,
                    "lidar_points": {
                        "lidar_path": sweep.path,
                        "lidar2sensor": np.linalg.inv(sweep.sweep2lidar).tolist(),
                    },
                }
                for sweep in frame.sweeps
            ],
            "instances": [*instances, {**instances[0], "bbox_label_3d": 10}],
        },
    }
    (root / "annotation.json").write_text(json.dumps(content), encoding="utf-8")
    return root


def rewrite(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    path = folder / "annotation.json"
    content = json.loads(path.read_bytes())
    change(content["frame"])
    path.write_text(json.dumps(content), encoding="utf-8")


def test_a_keyframe_folder_gives_the_keyframe_of_the_tables(folder: Path, index: NuScenesIndex) -> None:
    expected, found = index.keyframes[1], read_keyframe_folder(folder)
    assert (found.token, found.lidar_path) == (expected.token, expected.lidar_path)
    assert found.timestamp == expected.timestamp
    np.testing.assert_allclose(found.boxes, expected.boxes, atol=1e-5)
    np.testing.assert_array_equal(found.labels, expected.labels)
    np.testing.assert_array_equal(found.num_points, expected.num_points)
    for one, other in zip(found.cameras, expected.cameras, strict=True):
        assert (one.path, one.size) == (other.path, other.size)
        np.testing.assert_allclose(one.lidar2camera, other.lidar2camera)
    np.testing.assert_allclose(read_points(folder, found, 2), read_points(index.root, expected, 2), atol=1e-5)


def test_unknown_velocities_are_zero(folder: Path) -> None:
    def forget(frame: dict[str, Any]) -> None:
        frame["instances"][0]["velocity"] = [float("nan")] * 2
        del frame["instances"][1]["velocity"]

    rewrite(folder, forget)
    assert (read_keyframe_folder(folder).boxes[:2, 7:] == 0).all()


@pytest.mark.parametrize("instances", [None, []])
def test_a_keyframe_folder_needs_no_boxes(folder: Path, instances: Any) -> None:
    rewrite(folder, lambda frame: frame.update(instances=instances))
    frame = read_keyframe_folder(folder)
    assert frame.boxes.shape == (0, 9) and frame.num_points.shape == (0,)


def test_a_folder_without_annotation_says_what_belongs_in_it(tmp_path: Path) -> None:
    assert "annotation.json" in sentence(lambda: read_keyframe_folder(tmp_path))


@pytest.mark.parametrize("field", ["token", "timestamp", "ego2global", "images", "lidar_points"])
def test_a_missing_field_is_named(folder: Path, field: str) -> None:
    rewrite(folder, lambda frame: frame.pop(field))
    assert f"'{field}'" in sentence(lambda: read_keyframe_folder(folder))


def test_a_missing_camera_is_named(folder: Path) -> None:
    rewrite(folder, lambda frame: frame["images"].pop("CAM_BACK_LEFT"))
    assert "CAM_BACK_LEFT" in sentence(lambda: read_keyframe_folder(folder))


def test_files_that_the_annotation_names_are_there(folder: Path) -> None:
    frame = read_keyframe_folder(folder)
    for path in (frame.cameras[3].path, frame.sweeps[0].path, frame.lidar_path):
        (folder / path).rename(folder / "hidden")
        assert str(folder / path) in sentence(lambda: read_keyframe_folder(folder))
        (folder / "hidden").rename(folder / path)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda frame: frame["images"]["CAM_FRONT"].update(cam2img=np.zeros((3, 3)).tolist()), "CAM_FRONT"),
        (lambda frame: frame["images"]["CAM_FRONT"].update(lidar2cam=np.zeros((4, 4)).tolist()), "CAM_FRONT"),
        (lambda frame: frame["lidar_points"].update(lidar2ego=np.eye(3).tolist()), "lidar2ego"),
        (lambda frame: frame.update(ego2global=np.full((4, 4), np.inf).tolist()), "ego2global"),
    ],
    ids=["cam2img", "lidar2cam", "lidar2ego", "ego2global"],
)
def test_a_matrix_that_cannot_be_inverted_is_named(
    folder: Path, change: Callable[[dict[str, Any]], Any], named: str
) -> None:
    rewrite(folder, change)
    message = sentence(lambda: read_keyframe_folder(folder))
    assert "not invertible" in message and named in message


def test_a_sweep_later_than_the_keyframe_is_refused(folder: Path) -> None:
    rewrite(folder, lambda frame: frame["lidar_sweeps"][0].update(timestamp=frame["timestamp"] + 0.1))
    assert "later than the keyframe" in sentence(lambda: read_keyframe_folder(folder))


@pytest.mark.parametrize("content", ["{", "[]", '{"classes": {}, "frame": []}', '{"classes": {}}'])
def test_an_annotation_of_another_form_is_named(folder: Path, content: str) -> None:
    (folder / "annotation.json").write_text(content, encoding="utf-8")
    assert "annotation.json" in sentence(lambda: read_keyframe_folder(folder))


def test_a_damaged_image_of_a_folder_is_named(folder: Path) -> None:
    path = folder / read_keyframe_folder(folder).cameras[0].path
    path.write_bytes(b"no image")
    assert str(path) in sentence(lambda: read_keyframe_folder(folder))


# -- a real keyframe -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def real(data_root: Path) -> tuple[Path, Keyframe]:
    folder = data_root / "cmt" / "nuscenes_keyframe"
    if not folder.is_dir():
        pytest.skip("needs the keyframe of nuScenes")
    return folder, read_keyframe_folder(folder)


def test_real_points_in_boxes_are_as_many_as_annotated(real: tuple[Path, Keyframe]) -> None:
    folder, frame = real
    points = read_points(folder, frame, 10)
    assert points.shape == (34_688, 5)
    counts = points_in_boxes(points, frame.boxes).sum(axis=0)
    assert len(counts) == 68  # one more of another class is left out
    assert (counts == frame.num_points).sum() >= 60
    assert np.abs(counts - frame.num_points).mean() < 0.5


def test_real_labels_are_translated_by_name(real: tuple[Path, Keyframe]) -> None:
    folder, frame = real
    content = json.loads((folder / "annotation.json").read_bytes())
    names = {number: name for name, number in content["classes"].items()}
    numbers = [instance["bbox_label_3d"] for instance in content["frame"]["instances"]]
    expected = [names[number] for number in numbers if number != -1]
    assert [CLASSES[label] for label in frame.labels] == expected


def test_real_images_are_read_whole(real: tuple[Path, Keyframe]) -> None:
    folder, frame = real
    sample = read_sample(folder, frame, 0, points=False, images=True, training=True)
    assert sample.images is not None and sample.images.shape == (6, 900, 1600, 3)
    assert (sample.images.reshape(6, -1).std(axis=1) > 20).all()


def test_real_cameras_see_their_own_part_of_the_points(real: tuple[Path, Keyframe]) -> None:
    """Each camera faces where it stands on the car: x is right, y forward."""
    folder, frame = real
    points = read_points(folder, frame, 0)[:, :3].astype(np.float64)
    bearings = {"CAM_FRONT": 90, "CAM_FRONT_RIGHT": 35, "CAM_FRONT_LEFT": 145, "CAM_BACK": -90,
                "CAM_BACK_LEFT": -160, "CAM_BACK_RIGHT": -20}  # fmt: skip
    for name, camera in zip(CAMERAS, frame.cameras, strict=True):
        local = points @ camera.lidar2camera[:3, :3].T + camera.lidar2camera[:3, 3]
        pixels = local @ camera.intrinsic.T
        pixels = pixels[:, :2] / pixels[:, 2:]
        seen = (local[:, 2] > 1) & (pixels > 0).all(axis=1) & (pixels < (1600, 900)).all(axis=1)
        direction = np.exp(1j * np.arctan2(points[seen, 1], points[seen, 0])).mean()
        apart = np.rad2deg(np.angle(direction * np.exp(-1j * np.deg2rad(bearings[name]))))
        assert seen.sum() > 1000 and abs(apart) < 15
