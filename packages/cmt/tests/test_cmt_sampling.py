"""Pasting objects of other keyframes, the database that they come from, and class-balanced sampling."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from shapely.geometry import Polygon

from tenfold.cmt.class_balance import class_balanced_indices
from tenfold.cmt.config import CLASSES, NO_AUGMENTATION
from tenfold.cmt.dataset import Place, TrainingSamples
from tenfold.cmt.ground_truth_sampling import GROUPS, bev_overlaps, paste_objects
from tenfold.cmt.keyframes import CameraView, Keyframe
from tenfold.cmt.nuscenes_index import NuScenesIndex
from tenfold.cmt.object_database import ObjectDatabase, build_database
from tenfold.cmt.sample_reader import read_sample
from tenfold.cmt.samples import Sample
from tenfold.shared.logging import TenfoldError

Array = NDArray[np.floating[Any]]
SIZE = (40, 80)
INTRINSIC = np.array([[40.0, 0.0, 40.0], [0.0, 40.0, 20.0], [0.0, 0.0, 1.0]])
FORWARD = np.array([[1.0, 0, 0, 0], [0, 0, -1, 0], [0, 1, 0, 0], [0, 0, 0, 1]])
"""LiDAR frame (y forward, z up) to that of a camera (z forward, y down) in the same place."""
BACKWARD = np.diag([-1.0, 1, -1, 1]) @ FORWARD


def sentence(action: Callable[[], Any]) -> str:
    """The error of something that cannot be done: one line."""
    with pytest.raises(TenfoldError) as caught:
        action()
    message = str(caught.value)
    assert "\n" not in message
    return message


def rows(*places: Sequence[float]) -> NDArray[np.float32]:
    """Boxes of x, y, and optionally z of the bottom, a side length and the yaw."""
    full = [(*place, *(-1.0, 1.0, 0.0)[len(place) - 2 :]) for place in places]
    return np.array([(x, y, z, s, s, s, yaw, 0, 0) for x, y, z, s, yaw in full], np.float32).reshape(-1, 9)


def made(
    root: Path,
    token: str,
    boxes: NDArray[np.float32],
    labels: Sequence[int],
    grey: int,
    points: Sequence[int] | int = 6,
    clutter: Array | None = None,
) -> Keyframe:
    """Write a keyframe: points in its boxes, clutter, and even images. One camera looks forward, five look back."""
    root.mkdir(parents=True, exist_ok=True)
    counts = [points] * len(boxes) if isinstance(points, int) else list(points)
    steps = np.linspace(-0.3, 0.3, 16)
    clouds = [
        np.column_stack((*(box[:2, None] + steps[:count] * box[3]), np.full(count, box[2] + box[5] / 2)))
        for box, count in zip(boxes, counts, strict=True)
    ]
    cloud = np.concatenate([*clouds, np.empty((0, 3)) if clutter is None else clutter, [[40.0, 40.0, 1.0]]])
    extra = np.column_stack((np.full(len(cloud), grey), np.zeros(len(cloud))))
    np.column_stack((cloud, extra)).astype(np.float32).tofile(root / f"{token}.bin")
    Image.new("RGB", SIZE[::-1], (grey, grey, grey)).save(root / f"{token}.png")
    views = [CameraView(f"{token}.png", INTRINSIC, FORWARD if not n else BACKWARD, SIZE) for n in range(6)]
    return Keyframe(
        token, "made", 0, f"{token}.bin", (), tuple(views), np.eye(4), np.eye(4), boxes,
        np.array(labels, np.int64), np.array(counts, np.int64), np.zeros(len(boxes), np.int64),
    )  # fmt: skip


def database_of(root: Path, *frames: Keyframe, images: bool = True) -> ObjectDatabase:
    return build_database(NuScenesIndex(root, "made", "made", frames), root, 0, images, root / "databases")


def sample_of(root: Path, frame: Keyframe, images: bool = True) -> Sample:
    return read_sample(root, frame, 0, points=True, images=images, training=True)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def polygon(box: Array) -> Polygon:
    x, y, _, length, width, _, yaw = box[:7].astype(float)
    turn = np.array([[np.cos(yaw), -np.sin(yaw)], [np.sin(yaw), np.cos(yaw)]])
    corners = np.array([(1, 1), (1, -1), (-1, -1), (-1, 1)]) * (length / 2, width / 2)
    return Polygon(corners @ turn.T + (x, y))


# -- overlaps ------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000))
def test_boxes_overlap_when_their_rectangles_share_an_area(seed: int) -> None:
    generator = rng(seed)
    first, second = (
        np.column_stack(
            (
                generator.uniform(-4, 4, (6, 2)),
                generator.uniform(-50, 50, 6),  # height does not matter
                generator.uniform(0.3, 5, (6, 3)),
                generator.uniform(-7, 7, 6),
            )
        )
        for _ in range(2)
    )
    areas = np.array([[polygon(a).intersection(polygon(b)).area for b in second] for a in first])
    found = bev_overlaps(first, second)
    clear = (areas == 0) | (areas > 1e-6)
    np.testing.assert_array_equal(found[clear], (areas > 0)[clear])


def test_boxes_that_touch_do_not_overlap() -> None:
    assert not bev_overlaps(rows((0, 0)), rows((1, 0), (0, -1), (1, 1))).any()


def test_a_box_inside_another_overlaps_it() -> None:
    assert bev_overlaps(rows((0, 0, -1, 8)), rows((1, 1, -1, 0.5))).all()


# -- the database --------------------------------------------------------------------------------------


def test_the_database_holds_the_training_boxes_of_all_keyframes(index: NuScenesIndex, tmp_path: Path) -> None:
    database = build_database(index, index.root, 2, True, tmp_path)
    boxes, labels = zip(*(frame.training_boxes() for frame in index.keyframes), strict=True)
    np.testing.assert_array_equal(database.boxes, np.concatenate(boxes))
    np.testing.assert_array_equal(database.labels, np.concatenate(labels))
    tokens = [frame.token for frame in index.keyframes for _ in frame.training_boxes()[1]]
    assert database.tokens.tolist() == tokens and len(database) == len(tokens)


def test_objects_have_the_points_of_all_sweeps_inside_their_box(index: NuScenesIndex, tmp_path: Path) -> None:
    database = build_database(index, index.root, 2, False, tmp_path)
    for number, box in enumerate(database.boxes.astype(np.float64)):
        frame = index.by_token(str(database.tokens[number]))
        sample = read_sample(index.root, frame, 2, points=True, images=False, training=True)
        assert sample.points is not None
        offset = sample.points[:, :2] - box[:2]
        along = offset @ (np.cos(box[6]), np.sin(box[6]))
        across = offset @ (-np.sin(box[6]), np.cos(box[6]))
        height = sample.points[:, 2] - box[2]
        inside = (np.abs(along) <= box[3] / 2) & (np.abs(across) <= box[4] / 2)
        inside &= (height >= 0) & (height <= box[5])
        expected = sample.points[inside]
        expected[:, :3] -= box[:3].astype(np.float32)
        points, crop = database.content(number)
        np.testing.assert_allclose(points, expected, atol=1e-5)
        assert database.num_points[number] == len(points) and crop is None


def test_a_crop_is_what_the_camera_that_shows_the_object_largest_saw(
    index: NuScenesIndex, tmp_path: Path
) -> None:
    database = build_database(index, index.root, 0, True, tmp_path)
    seen = 0
    for number, box in enumerate(database.boxes.astype(np.float64)):
        frame = index.by_token(str(database.tokens[number]))
        sample = read_sample(index.root, frame, 0, points=False, images=True, training=True)
        assert sample.images is not None
        best: NDArray[np.uint8] | None = None
        for image, matrix in zip(sample.images, sample.lidar2image, strict=True):
            corners = []
            for x, y, z in np.ndindex(2, 2, 2):
                local = np.array([(x - 0.5) * box[3], (y - 0.5) * box[4]])
                turn = np.array([[np.cos(box[6]), -np.sin(box[6])], [np.sin(box[6]), np.cos(box[6])]])
                corners.append(matrix @ (*(turn @ local + box[:2]), box[2] + z * box[5], 1))
            depth = np.array(corners)[:, 2]
            if (depth <= 0).any():
                continue
            pixels = np.clip(np.array(corners)[:, :2] / depth[:, None], 0, (160, 90))
            low, high = pixels.min(axis=0), pixels.max(axis=0)
            if (high - low > 1).all():
                (left, top), (right, bottom) = np.floor(low).astype(int), np.ceil(high).astype(int)
                crop = image[top:bottom, left:right]
                best = crop if best is None or crop.size > best.size else best
        _, found = database.content(number)
        assert (found is None) == (best is None)
        if found is not None and best is not None:
            assert found.shape == best.shape
            assert np.abs(found.astype(int) - best).mean() < 4  # crops are compressed
            seen += 1
    assert seen >= 5


def test_objects_are_found_by_class_and_points(tmp_path: Path) -> None:
    boxes = rows((0, 10), (4, 10), (8, 10), (12, 10))
    database = database_of(tmp_path, made(tmp_path, "a", boxes, [2, 2, 2, 9], 100, [4, 5, 6, 9]))
    assert database.of_class(2, 5).tolist() == [1, 2]
    assert database.of_class(2, 1).tolist() == [0, 1, 2]
    assert database.of_class(9, 9).tolist() == [3] and not len(database.of_class(0, 1))


def test_a_database_is_not_built_twice(index: NuScenesIndex, tmp_path: Path) -> None:
    first = build_database(index, index.root, 0, False, tmp_path)
    times = {path: path.stat().st_mtime_ns for path in first.folder.iterdir()}
    second = build_database(index, index.root, 0, False, tmp_path)
    assert second.folder == first.folder
    assert {path: path.stat().st_mtime_ns for path in second.folder.iterdir()} == times


def test_other_arguments_have_a_database_of_their_own(index: NuScenesIndex, tmp_path: Path) -> None:
    folders = {
        build_database(one, index.root, sweeps, images, tmp_path).folder
        for one, sweeps, images in (
            (index, 0, False),
            (index, 1, False),
            (index, 0, True),
            (replace(index, keyframes=index.keyframes[:1]), 0, False),
        )
    }
    assert len(folders) == 4


def test_an_interrupted_build_goes_on_with_what_it_has(tmp_path: Path) -> None:
    frames = [made(tmp_path, name, rows((0, 10), (3, 10)), [0, 1], 90) for name in ("a", "b", "c")]
    lost = tmp_path / frames[2].lidar_path
    content = lost.read_bytes()
    lost.unlink()
    assert lost.name in sentence(lambda: database_of(tmp_path, *frames))
    (folder,) = (tmp_path / "databases").iterdir()
    sentence(lambda: ObjectDatabase.load(folder))
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert len(before) == 2
    lost.write_bytes(content)
    database = database_of(tmp_path, *frames)
    assert database.tokens.tolist() == ["a", "a", "b", "b", "c", "c"]
    assert {name: (folder / name).stat().st_mtime_ns for name in before} == before


def test_a_split_without_objects_has_an_empty_database(tmp_path: Path) -> None:
    empty = made(tmp_path, "empty", rows(), [], 90)
    database = database_of(tmp_path, empty)
    assert len(database) == 0 and not len(database.of_class(0, 1))
    sample = sample_of(tmp_path, empty)
    assert paste_objects(sample, database, rng()) is sample


def test_a_missing_database_is_named(tmp_path: Path) -> None:
    assert str(tmp_path) in sentence(lambda: ObjectDatabase.load(tmp_path))


@pytest.mark.parametrize("damage", ["cut", "empty", "gone"])
def test_a_damaged_file_of_the_database_is_named(tmp_path: Path, damage: str) -> None:
    database = database_of(tmp_path, made(tmp_path, "a", rows((0, 10)), [0], 90))
    path = database.folder / "a.npz"
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[: 200 if damage == "cut" else 0])
    assert str(path) in sentence(lambda: database.content(0))


def test_a_damaged_table_of_the_database_is_named(tmp_path: Path) -> None:
    database = database_of(tmp_path, made(tmp_path, "a", rows((0, 10)), [0], 90))
    for path in database.folder.glob("objects*"):
        path.write_bytes(path.read_bytes()[:100])
    assert "objects" in sentence(lambda: ObjectDatabase.load(database.folder))


# -- pasting: which objects ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def grid(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ObjectDatabase]:
    """Eight objects of every class, none of which overlap."""
    root = tmp_path_factory.mktemp("grid")
    places = [(3 * (n % 10) - 15, 3 * (n // 10) + 4) for n in range(80)]
    return root, database_of(root, made(root, "source", rows(*places), [n % 10 for n in range(80)], 200))


def test_groups_are_the_papers() -> None:
    expected = {"car": 2, "truck": 3, "construction_vehicle": 7, "bus": 4, "trailer": 6, "barrier": 2,
                "motorcycle": 6, "bicycle": 6, "pedestrian": 2, "traffic_cone": 2}  # fmt: skip
    assert dict(zip(CLASSES, GROUPS, strict=True)) == expected


def test_a_sample_without_objects_is_filled_up_to_the_groups(grid: tuple[Path, ObjectDatabase]) -> None:
    root, database = grid
    sample = sample_of(root, made(root, "empty", rows(), [], 100))
    pasted = paste_objects(sample, database, rng())
    assert np.bincount(pasted.labels, minlength=10).tolist() == list(GROUPS)


def test_objects_that_are_there_count(grid: tuple[Path, ObjectDatabase]) -> None:
    """Three cars are more than two; one truck leaves room for two."""
    root, database = grid
    boxes = rows((-30, -10), (-30, -20), (-30, -30), (30, -10))
    sample = sample_of(root, made(root, "some", boxes, [0, 0, 0, 1], 100))
    pasted = paste_objects(sample, database, rng())
    expected = [3, *GROUPS[1:]]
    assert np.bincount(pasted.labels, minlength=10).tolist() == expected
    np.testing.assert_array_equal(pasted.boxes[:4], boxes)


def test_no_object_is_pasted_twice(grid: tuple[Path, ObjectDatabase]) -> None:
    root, database = grid
    sample = sample_of(root, made(root, "empty", rows(), [], 100))
    pasted = paste_objects(sample, database, rng(), groups=(50,) * 10)
    assert len(np.unique(pasted.boxes, axis=0)) == len(pasted.boxes) == 80


def test_objects_stay_where_they_were(grid: tuple[Path, ObjectDatabase]) -> None:
    root, database = grid
    sample = sample_of(root, made(root, "empty", rows(), [], 100))
    pasted = paste_objects(sample, database, rng(3))
    for box, label in zip(pasted.boxes, pasted.labels, strict=True):
        assert ((database.boxes == box).all(axis=1) & (database.labels == label)).sum() == 1


def test_the_draw_depends_on_the_generator_alone(grid: tuple[Path, ObjectDatabase]) -> None:
    root, database = grid
    sample = sample_of(root, made(root, "empty", rows(), [], 100))
    first, again, other = (paste_objects(sample, database, rng(seed)).boxes for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_every_object_of_a_class_has_its_turn(grid: tuple[Path, ObjectDatabase]) -> None:
    root, database = grid
    sample = sample_of(root, made(root, "empty", rows(), [], 100), images=False)
    generator = rng()
    drawn = {
        tuple(paste_objects(sample, database, generator, groups=(1, *[0] * 9)).boxes[0]) for _ in range(100)
    }
    assert len(drawn) == 8


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 1000))
def test_pasted_objects_overlap_nothing(crowded: tuple[Path, ObjectDatabase, Sample], seed: int) -> None:
    _, database, sample = crowded
    pasted = paste_objects(sample, database, rng(seed))
    polygons = [polygon(box) for box in pasted.boxes]
    own = len(sample.boxes)
    for later in range(own, len(polygons)):
        assert all(polygons[later].intersection(one).area < 1e-5 for one in polygons[:later])
    added = np.bincount(pasted.labels[own:], minlength=10)
    assert (added <= np.maximum(0, np.array(GROUPS) - np.bincount(sample.labels, minlength=10))).all()


@pytest.fixture(scope="module")
def crowded(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ObjectDatabase, Sample]:
    """Sixty objects on 20 x 20 m, and a sample with five more there."""
    root = tmp_path_factory.mktemp("crowded")
    generator = rng(9)
    sides, yaws = generator.uniform(1, 4, 65), generator.uniform(-3, 3, 65)
    places = np.column_stack((generator.uniform(-10, 10, (65, 2)), np.full(65, -1), sides, yaws)).tolist()
    source = made(root, "source", rows(*places[5:]), [n % 10 for n in range(60)], 200)
    sample = sample_of(root, made(root, "target", rows(*places[:5]), [0, 0, 2, 4, 9], 100), images=False)
    return root, database_of(root, source, images=False), sample


def test_an_object_in_the_way_of_the_samples_own_is_left_out(tmp_path: Path) -> None:
    database = database_of(tmp_path, made(tmp_path, "source", rows((0, 10), (6, 10)), [1, 1], 200))
    sample = sample_of(tmp_path, made(tmp_path, "target", rows((0.5, 10.5)), [0], 100))
    pasted = paste_objects(sample, database, rng())
    np.testing.assert_allclose(pasted.boxes[1:, :2], [(6, 10)])


def test_of_two_objects_in_each_others_way_one_is_pasted(tmp_path: Path) -> None:
    database = database_of(tmp_path, made(tmp_path, "source", rows((0, 10), (0.5, 10)), [1, 3], 200))
    sample = sample_of(tmp_path, made(tmp_path, "target", rows(), [], 100))
    assert paste_objects(sample, database, rng()).labels.tolist() == [1]  # trucks come before buses


def test_an_object_in_the_way_of_a_left_out_one_is_pasted(tmp_path: Path) -> None:
    """A truck between an own box and another truck is out, so the other one is free, whatever their order."""
    database = database_of(tmp_path, made(tmp_path, "source", rows((0.8, 10), (1.6, 10)), [1, 1], 200))
    sample = sample_of(tmp_path, made(tmp_path, "target", rows((0, 10)), [0], 100))
    for seed in range(6):
        np.testing.assert_allclose(paste_objects(sample, database, rng(seed)).boxes[1:, :2], [(1.6, 10)])


def test_objects_with_fewer_than_five_points_are_not_pasted(tmp_path: Path) -> None:
    source = made(tmp_path, "source", rows((0, 10), (4, 10)), [1, 1], 200, [4, 5])
    sample = sample_of(tmp_path, made(tmp_path, "target", rows(), [], 100))
    database = database_of(tmp_path, source)
    np.testing.assert_allclose(paste_objects(sample, database, rng()).boxes[:, :2], [(4, 10)])
    assert len(paste_objects(sample, database, rng(), min_points=4).boxes) == 2


# -- pasting: points and images ------------------------------------------------------------------------


def test_points_in_pasted_boxes_give_way_to_the_objects(tmp_path: Path) -> None:
    database = database_of(tmp_path, made(tmp_path, "source", rows((0, 10)), [1], 200))
    clutter = np.array([(0.2, 10.2, -0.5), (0.4, 9.6, -0.1), (0.6, 10, -0.5), (0, 10, 0.2), (0, 10, -1.2)])
    target = made(tmp_path, "target", rows((8, 10)), [0], 100, clutter=clutter)
    sample = sample_of(tmp_path, target)
    pasted = paste_objects(sample, database, rng()).points
    assert pasted is not None and sample.points is not None
    # The box reaches from -0.5 to 0.5, 9.5 to 10.5 and -1 to 0: the first two points of the clutter are in it.
    kept = np.delete(sample.points, [6, 7], axis=0)
    own = pasted[:, 3] == 100
    np.testing.assert_array_equal(pasted[own], kept)
    steps = np.linspace(-0.3, 0.3, 16)[:6]
    expected = np.column_stack((steps, 10 + steps, np.full(6, -0.5), np.full(6, 200), np.zeros(6)))
    np.testing.assert_allclose(pasted[~own], expected, atol=1e-5)


def rectangle(box: Array) -> tuple[slice, slice]:
    """Rows and columns of an unturned box in the forward camera."""
    x, y, z, side = box[:4].astype(float)
    us = [40 * (x + a * side) / (y + b * side) + 40 for a in (-0.5, 0.5) for b in (-0.5, 0.5)]
    vs = [40 * -(z + c * side) / (y + b * side) + 20 for c in (0, 1) for b in (-0.5, 0.5)]
    return (
        slice(max(0, int(np.floor(min(vs)))), int(np.ceil(max(vs)))),
        slice(max(0, int(np.floor(min(us)))), int(np.ceil(max(us)))),
    )


def images_after(
    root: Path, sample_boxes: NDArray[np.float32], source_boxes: NDArray[np.float32]
) -> NDArray[np.uint8]:
    """Images of grey 100 after objects from images of grey 200 were pasted."""
    source = made(root, "source", source_boxes, [1] * len(source_boxes), 200)
    target = made(root, "target", sample_boxes, [0] * len(sample_boxes), 100)
    pasted = paste_objects(sample_of(root, target), database_of(root, source), rng()).images
    assert pasted is not None
    return pasted


def test_a_pasted_object_is_half_of_the_pixels_in_its_rectangle(tmp_path: Path) -> None:
    box = rows((1, 6))
    images = images_after(tmp_path, rows(), box)
    expected = np.full((6, *SIZE, 3), 100)
    expected[(0, *rectangle(box[0]))] = 150
    assert (expected == 150).any()
    np.testing.assert_allclose(images, expected, atol=1)


def test_near_objects_are_pasted_over_far_ones(tmp_path: Path) -> None:
    far, near = rows((0, 12, -1, 3), (0.3, 6))
    images = images_after(tmp_path, rows(), np.stack((near, far)))
    expected = np.full(SIZE, 100)
    expected[rectangle(far)] = 150
    area = np.zeros(SIZE, bool)
    area[rectangle(near)] = True
    expected[area] = (expected[area] + 200) // 2
    assert set(np.unique(expected)) == {100, 150, 175}
    np.testing.assert_allclose(images[0, ..., 0], expected, atol=1)


def test_what_is_nearer_in_the_sample_is_blended_over_a_pasted_object(tmp_path: Path) -> None:
    own, far = rows((0.3, 6), (0, 12, -1, 3))
    images = images_after(tmp_path, own[None], far[None])
    expected = np.full(SIZE, 100)
    expected[rectangle(far)] = 150
    area = np.zeros(SIZE, bool)
    area[rectangle(own)] = True
    expected[area] = (expected[area] + 100) // 2
    assert set(np.unique(expected)) == {100, 125, 150}
    np.testing.assert_allclose(images[0, ..., 0], expected, atol=1)


def test_an_object_that_no_camera_saw_whole_changes_no_image(tmp_path: Path) -> None:
    """It stands around the cameras: some of its corners are behind each."""
    images = images_after(tmp_path, rows(), rows((0, 0, -1, 4)))
    assert (images == 100).all()


def test_the_weight_of_pasted_pixels_can_be_chosen(tmp_path: Path) -> None:
    box = rows((1, 6))
    database = database_of(tmp_path, made(tmp_path, "source", box, [1], 200))
    sample = sample_of(tmp_path, made(tmp_path, "target", rows(), [], 100))
    pasted = paste_objects(sample, database, rng(), mixup=1.0).images
    assert pasted is not None
    np.testing.assert_allclose(pasted[(0, *rectangle(box[0]))], 200, atol=1)


def test_a_sample_of_points_alone_gets_objects_without_images(tmp_path: Path) -> None:
    database = database_of(tmp_path, made(tmp_path, "source", rows((0, 10)), [1], 200), images=False)
    sample = sample_of(tmp_path, made(tmp_path, "target", rows(), [], 100), images=False)
    pasted = paste_objects(sample, database, rng())
    assert pasted.images is None and pasted.labels.tolist() == [1]


def test_a_sample_of_images_alone_gets_objects_without_points(tmp_path: Path) -> None:
    database = database_of(tmp_path, made(tmp_path, "source", rows((0, 10)), [1], 200))
    sample = replace(sample_of(tmp_path, made(tmp_path, "target", rows(), [], 100)), points=None)
    pasted = paste_objects(sample, database, rng())
    assert pasted.points is None and pasted.labels.tolist() == [1]


def test_pasting_leaves_the_sample_before_it_alone(grid: tuple[Path, ObjectDatabase]) -> None:
    root, database = grid
    frame = made(root, "own", rows((30, 30)), [0], 100)
    sample, untouched = sample_of(root, frame), sample_of(root, frame)
    paste_objects(sample, database, rng())
    np.testing.assert_array_equal(np.asarray(sample.images), np.asarray(untouched.images))
    np.testing.assert_array_equal(np.asarray(sample.points), np.asarray(untouched.points))
    np.testing.assert_array_equal(sample.boxes, untouched.boxes)


# -- in training ---------------------------------------------------------------------------------------


@pytest.fixture
def pasting(
    make_samples: Callable[..., TrainingSamples], index: NuScenesIndex, tmp_path: Path
) -> Callable[..., TrainingSamples]:
    def make(**changes: Any) -> TrainingSamples:
        augment = replace(NO_AUGMENTATION, ground_truth_sampling=True, **changes)
        database = build_database(index, index.root, 2, True, tmp_path)
        return make_samples(augment=augment, database=database, fade_step=3)

    return make


def test_pasting_stops_at_the_fade_step(pasting: Callable[..., TrainingSamples]) -> None:
    """The second scene has too few classes, so something of the first always fits in."""
    samples = pasting()
    own = [len(samples[Place(step, 3, 0)].labels) for step in (3, 4, 1000)]
    more = [len(samples[Place(step, 3, 0)].labels) for step in (0, 1, 2)]
    assert len(set(own)) == 1 and min(more) > own[0]


def test_nothing_is_pasted_where_the_recipe_leaves_it_out(pasting: Callable[..., TrainingSamples]) -> None:
    samples = replace_augment(pasting())
    assert len(samples[Place(0, 3, 0)].labels) == len(samples[Place(5, 3, 0)].labels)


def replace_augment(samples: TrainingSamples) -> TrainingSamples:
    """The same samples and database for a recipe without pasting."""
    return TrainingSamples(
        samples.root, samples.index, samples.network, samples.data, NO_AUGMENTATION, 0, samples.database, 3
    )


def test_objects_are_pasted_before_a_modality_is_dropped(pasting: Callable[..., TrainingSamples]) -> None:
    dark = pasting(drop_images=1.0)[Place(0, 3, 0)]
    assert dark.images is not None and not dark.images.any()
    assert len(dark.labels) > len(pasting()[Place(3, 3, 0)].labels)


# -- class-balanced sampling ---------------------------------------------------------------------------


def test_each_class_is_drawn_a_tenth_of_all_places() -> None:
    """n = (41, 20, 10): each class has n_c (1/10) / (n_c / 71), without the fraction."""
    frames = [np.array(labels) for labels in ([0, 0, 1], [0, 1], [0], [0, 5])] * 10 + [np.array([0])]
    drawn = class_balanced_indices(frames, rng())
    assert len(drawn) == 3 * 7
    for part, label in zip(drawn.reshape(3, 7), (0, 1, 5), strict=True):
        assert all(label in frames[place] for place in part)


def test_an_epoch_of_ten_classes_has_the_size_of_the_formula() -> None:
    """The real set's 28,130 keyframes become 123,580: a tenth of all places for every class."""
    generator = rng(1)
    frequency = np.linspace(0.05, 0.9, 10)
    frames = [np.flatnonzero(generator.random(10) < frequency) for _ in range(500)]
    total = sum(len(frame) for frame in frames)
    assert total % 10
    assert len(class_balanced_indices(frames, rng())) == 10 * (total // 10)


def test_rare_classes_are_seen_far_more_often_than_before() -> None:
    frames = [np.array([0])] * 95 + [np.array([0, 7])] * 5
    drawn = class_balanced_indices([*frames * 10], rng())
    rare = np.mean([7 in (frames * 10)[place] for place in drawn])
    assert rare > 0.45


def test_draws_are_with_replacement() -> None:
    """Of three keyframes, only one holds the class, and it is drawn several times."""
    frames = [np.array([0])] * 40 + [np.array([3])]
    drawn = class_balanced_indices(frames, rng())
    assert drawn.tolist().count(40) == 4


def test_a_class_that_no_keyframe_holds_is_left_out(index: NuScenesIndex) -> None:
    few = [np.array([2, 4])] * 20
    assert len(class_balanced_indices(few, rng())) == 2 * 4


def test_keyframes_count_by_all_of_their_boxes(index: NuScenesIndex) -> None:
    """Those without points too."""
    frames = list(index.keyframes)
    by_labels = class_balanced_indices([frame.labels for frame in frames], rng())
    np.testing.assert_array_equal(class_balanced_indices(frames, rng()), by_labels)


def test_the_balanced_draw_depends_on_the_generator_alone() -> None:
    frames = [np.array([n % 10]) for n in range(100)]
    first, again, other = (class_balanced_indices(frames, rng(seed)) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


@pytest.mark.parametrize("frames", [[], [np.zeros(0, np.int64)] * 3])
def test_keyframes_without_objects_cannot_be_balanced(frames: list[NDArray[np.int64]]) -> None:
    assert "choose another split" in sentence(lambda: class_balanced_indices(frames, rng()))
