"""Motions of whole scenes and of images: what a sensor saw stays where it was, and numbers move as written."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from scipy.spatial.transform import Rotation

from tenfold.cmt.config import NO_AUGMENTATION, AugmentConfig, ImageConfig
from tenfold.cmt.image_transforms import (
    ImageMove,
    augment_image,
    draw_image_move,
    resized_size,
    transform_images,
)
from tenfold.cmt.image_transforms import is_fixed as is_fixed_image
from tenfold.cmt.profiles import PROFILES, R50_IMAGES
from tenfold.cmt.samples import Sample
from tenfold.cmt.scene_transforms import (
    SceneDraws,
    draw_scene,
    drop_modality,
    filter_range,
    flip,
    is_fixed,
    rotate_scale_translate,
    shuffle_points,
    transform_scene,
)

Array = NDArray[np.floating[Any]]
RANGE = (-54.0, -54.0, -5.0, 54.0, 54.0, 3.0)
FUSION_IMAGES = PROFILES["cmt_voxel0075_vov_1600x640"].methods[0].network.image

seeds = st.integers(0, 10_000)
angles = st.floats(-3.2, 3.2)
scales = st.floats(0.5, 2.0)
shifts = st.tuples(*[st.floats(-5, 5)] * 3)
flips = st.tuples(st.booleans(), st.booleans())


def scene(seed: int, boxes: int = 4, points: int = 60) -> Sample:
    """A scene with tilted cameras, and points that are clearly inside or outside of each box."""
    generator = np.random.default_rng(seed)
    rows = np.column_stack(
        (
            generator.uniform(-20, 20, (boxes, 2)),
            generator.uniform(-2, 0, boxes),
            generator.uniform(0.5, 6, (boxes, 3)),
            generator.uniform(-np.pi, np.pi, boxes),
            generator.normal(0, 4, (boxes, 2)),
        )
    ).astype(np.float32)
    owner = generator.integers(boxes, size=points)
    reach = generator.choice([0.3, 0.45, 0.55, 0.9], (points, 3)) * generator.choice([-1, 1], (points, 3))
    local = reach * rows[owner, 3:6]
    cosine, sine = np.cos(rows[owner, 6]), np.sin(rows[owner, 6])
    xy = np.stack((cosine * local[:, 0] - sine * local[:, 1], sine * local[:, 0] + cosine * local[:, 1]), 1)
    middle = rows[owner, :3] + np.stack((owner * 0, owner * 0, rows[owner, 5] / 2), 1)
    places = middle + np.column_stack((xy, local[:, 2]))
    extra = np.column_stack((generator.uniform(1, 255, points), generator.uniform(0, 0.5, points)))
    lidar2camera = np.tile(np.eye(4), (6, 1, 1))
    lidar2camera[:, :3, :3] = Rotation.random(6, random_state=seed).as_matrix()
    lidar2camera[:, :3, 3] = generator.normal(0, 1, (6, 3))
    intrinsics = np.tile(np.diag([120.0, 110.0, 1.0, 1.0]), (6, 1, 1))
    intrinsics[:, :2, 2] = 80.0, 45.0
    return Sample(
        "scene",
        np.column_stack((places, extra)).astype(np.float32),
        generator.integers(1, 256, (6, 9, 16, 3)).astype(np.uint8),
        intrinsics,
        lidar2camera,
        rows,
        generator.integers(10, size=boxes),
    )


def pixels_times_depth(sample: Sample) -> Array:
    """[V, P, 3]: where each camera sees each point."""
    assert sample.points is not None
    places = np.column_stack((sample.points[:, :3].astype(np.float64), np.ones(len(sample.points))))
    cameras = sample.intrinsics @ sample.lidar2camera
    return np.asarray(np.einsum("vij,pj->vpi", cameras, places)[..., :3])


def inside(sample: Sample) -> NDArray[np.bool_]:
    """[P, N] by turning each point into the frame of each box."""
    assert sample.points is not None
    found = np.zeros((len(sample.points), len(sample.boxes)), bool)
    for column, (x, y, z, length, width, height, yaw, *_) in enumerate(sample.boxes.astype(float)):
        for row, point in enumerate(sample.points[:, :3].astype(float)):
            local = Rotation.from_euler("z", -yaw).apply(point - (x, y, z + height / 2))
            found[row, column] = (np.abs(local) <= np.array([length, width, height]) / 2).all()
    return found


def displaced(sample: Sample, seconds: float) -> Sample:
    """The scene when its objects have moved on."""
    boxes = sample.boxes.astype(np.float64)
    boxes[:, :2] += seconds * boxes[:, 7:]
    return replace(sample, boxes=boxes.astype(np.float32))


def one_box(*row: float) -> Sample:
    return replace(scene(0, 1, 1), boxes=np.array([row], np.float32))


def same_angle(first: Array, second: Array) -> bool:
    return bool((np.abs(np.exp(1j * (first - second)) - 1) < 1e-4).all())


# -- motions of the scene ------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(seeds, angles, scales, shifts, flips)
def test_pixels_of_points_stay(
    seed: int, angle: float, scale: float, shift: tuple[float, float, float], axes: tuple[bool, bool]
) -> None:
    sample = scene(seed)
    moved = flip(rotate_scale_translate(sample, angle, scale, shift), *axes)
    np.testing.assert_allclose(pixels_times_depth(moved), pixels_times_depth(sample), rtol=1e-4, atol=1e-2)


@settings(max_examples=15, deadline=None)
@given(seeds, angles, scales, shifts, flips)
def test_points_stay_in_their_boxes(
    seed: int, angle: float, scale: float, shift: tuple[float, float, float], axes: tuple[bool, bool]
) -> None:
    sample = scene(seed, points=20)
    moved = flip(rotate_scale_translate(sample, angle, scale, shift), *axes)
    np.testing.assert_array_equal(inside(moved), inside(sample))


@settings(max_examples=25, deadline=None)
@given(seeds, angles, scales, shifts, flips)
def test_velocities_say_where_moved_boxes_go(
    seed: int, angle: float, scale: float, shift: tuple[float, float, float], axes: tuple[bool, bool]
) -> None:
    sample = scene(seed)
    later = flip(rotate_scale_translate(displaced(sample, 0.5), angle, scale, shift), *axes)
    moved = displaced(flip(rotate_scale_translate(sample, angle, scale, shift), *axes), 0.5)
    np.testing.assert_allclose(moved.boxes[:, :3], later.boxes[:, :3], atol=1e-3)


@settings(max_examples=25, deadline=None)
@given(seeds, angles, scales, shifts)
def test_the_opposite_motion_undoes_a_motion(
    seed: int, angle: float, scale: float, shift: tuple[float, float, float]
) -> None:
    sample = scene(seed)
    moved = rotate_scale_translate(sample, angle, scale, shift)
    undone = rotate_scale_translate(moved, 0.0, 1.0, (-shift[0], -shift[1], -shift[2]))
    undone = rotate_scale_translate(undone, -angle, 1 / scale, (0.0, 0.0, 0.0))
    np.testing.assert_allclose(undone.boxes[:, :6], sample.boxes[:, :6], atol=1e-3)
    np.testing.assert_allclose(undone.lidar2camera, sample.lidar2camera, atol=1e-6)


@settings(max_examples=25, deadline=None)
@given(seeds, flips)
def test_mirroring_twice_changes_nothing(seed: int, axes: tuple[bool, bool]) -> None:
    sample = scene(seed)
    twice = flip(flip(sample, *axes), *axes)
    assert twice.points is not None and sample.points is not None
    np.testing.assert_array_equal(twice.points, sample.points)
    np.testing.assert_array_equal(np.delete(twice.boxes, 6, 1), np.delete(sample.boxes, 6, 1))
    assert same_angle(twice.boxes[:, 6], sample.boxes[:, 6])


def test_a_scene_is_rotated_then_scaled_then_shifted_then_mirrored() -> None:
    sample = replace(scene(0, 1, 1), points=np.array([[1, 2, 3, 77, 0.5]], np.float32))
    draws = SceneDraws(angle=np.pi / 2, scale=2.0, translation=(10.0, 20.0, 30.0), flip_x=True)
    points = transform_scene(sample, draws).points
    assert points is not None
    # (1, 2, 3) turns to (-2, 1, 3), grows to (-4, 2, 6), is at (6, 22, 36), and is mirrored.
    np.testing.assert_allclose(points, [[-6.0, 22.0, 36.0, 77.0, 0.5]], atol=1e-5)


def test_a_box_moves_by_hand_computed_numbers() -> None:
    sample = one_box(1, 2, -1, 4, 2, 1.5, 0.25, 3, 1)
    moved = rotate_scale_translate(sample, np.pi / 2, 2.0, (10.0, 20.0, 30.0))
    expected = [[6, 22, 28, 8, 4, 3, 0.25 + np.pi / 2, -2, 6]]
    np.testing.assert_allclose(moved.boxes, expected, atol=1e-5)


def test_mirroring_x_turns_a_box_to_the_other_side() -> None:
    (box,) = flip(one_box(1, 2, -1, 4, 2, 1.5, 0.25, 3, 1), True, False).boxes
    np.testing.assert_allclose(box[[0, 1, 7, 8]], [-1, 2, -3, 1])
    assert same_angle(box[6:7], np.array([np.pi - 0.25]))


def test_mirroring_y_turns_a_box_to_the_other_side() -> None:
    (box,) = flip(one_box(1, 2, -1, 4, 2, 1.5, 0.25, 3, 1), False, True).boxes
    np.testing.assert_allclose(box[[0, 1, 7, 8]], [1, -2, 3, -1])
    assert same_angle(box[6:7], np.array([-0.25]))


@settings(max_examples=25, deadline=None)
@given(seeds, st.floats(-0.4, 0.4), st.floats(0.95, 1.05))
def test_legacy_reverse_rotation_turns_boxes_alone_the_other_way(
    seed: int, angle: float, scale: float
) -> None:
    sample = scene(seed)
    legacy = rotate_scale_translate(sample, angle, scale, (0.0, 0.0, 0.0), legacy_reverse_rotation=True)
    forth = rotate_scale_translate(sample, angle, scale, (0.0, 0.0, 0.0))
    back = rotate_scale_translate(sample, -angle, scale, (0.0, 0.0, 0.0))
    np.testing.assert_array_equal(legacy.lidar2camera, forth.lidar2camera)
    assert legacy.points is not None and forth.points is not None
    np.testing.assert_array_equal(legacy.points, forth.points)
    np.testing.assert_allclose(legacy.boxes, back.boxes, atol=1e-4)


def test_transforms_leave_the_sample_before_them_alone() -> None:
    sample, untouched = scene(1), scene(1)
    assert sample.images is not None and untouched.images is not None
    move = SceneDraws(True, True, 0.4, 1.1, (1.0, 2.0, 3.0), True, True)
    for draws in (SceneDraws(), move):
        moved = filter_range(transform_scene(sample, draws), RANGE)
        moved.boxes[:] = 0
        assert moved.points is not None
        moved.points[:] = 0
    np.testing.assert_array_equal(np.asarray(sample.points), np.asarray(untouched.points))
    np.testing.assert_array_equal(sample.images, untouched.images)
    np.testing.assert_array_equal(sample.boxes, untouched.boxes)
    np.testing.assert_array_equal(sample.lidar2camera, untouched.lidar2camera)


@pytest.mark.parametrize("axes", [(True, False), (False, True), (True, True)])
def test_a_scene_without_boxes_or_points_is_moved_too(axes: tuple[bool, bool]) -> None:
    bare = replace(scene(2), points=None, boxes=np.zeros((0, 9), np.float32), labels=np.zeros(0, np.int64))
    moved = filter_range(flip(rotate_scale_translate(bare, 0.3, 1.1, (1.0, 0.0, 0.0)), *axes), RANGE)
    assert moved.points is None and moved.boxes.shape == (0, 9)
    assert not np.allclose(moved.lidar2camera, bare.lidar2camera)


# -- dropping, ranges, order ---------------------------------------------------------------------------


@pytest.mark.parametrize("images", [False, True])
@pytest.mark.parametrize("points", [False, True])
def test_a_dropped_modality_is_zero_and_as_large_as_before(images: bool, points: bool) -> None:
    sample = scene(3)
    dropped = drop_modality(sample, images, points)
    for gone, before, after in (
        (images, sample.images, dropped.images),
        (points, sample.points, dropped.points),
    ):
        assert before is not None and after is not None
        np.testing.assert_array_equal(after, np.zeros_like(before) if gone else before)
    np.testing.assert_array_equal(dropped.boxes, sample.boxes)


def test_a_modality_that_is_not_there_is_not_dropped() -> None:
    sample = replace(scene(3), images=None, points=None)
    dropped = drop_modality(sample, True, True)
    assert dropped.images is None and dropped.points is None


def test_dropped_points_move_with_the_scene() -> None:
    """They are dropped before it moves, so all of them end at the shifted origin."""
    draws = SceneDraws(drop_points=True, angle=0.5, scale=1.1, translation=(1.0, 2.0, 0.5), flip_y=True)
    points = transform_scene(scene(3), draws).points
    assert points is not None
    np.testing.assert_allclose(points, np.tile([1.0, -2.0, 0.5, 0.0, 0.0], (len(points), 1)), atol=1e-6)


def test_points_on_and_beyond_the_borders_are_dropped() -> None:
    rows = [
        (0, 0, 0),
        (54, 0, 0),
        (-54, 0, 0),
        (0, 54, 0),
        (0, -54.1, 0),
        (0, 0, 3),
        (0, 0, -5),
        (53.9, -53.9, 2.9),
    ]
    points = np.column_stack((np.array(rows, np.float32), np.ones((len(rows), 2), np.float32)))
    kept = filter_range(replace(scene(0), points=points.astype(np.float32)), RANGE).points
    np.testing.assert_array_equal(np.asarray(kept), points[[0, 7]])


def test_boxes_are_kept_by_the_horizontal_place_of_their_centre() -> None:
    rows = np.zeros((5, 9), np.float32)
    rows[:, 3:6] = 200  # size does not matter
    rows[:, :3] = [(0, 0, -90), (53.9, 0, 90), (54, 0, 0), (0, -54.5, 0), (0, 53.9, 0)]
    filtered = filter_range(replace(scene(0), boxes=rows, labels=np.arange(5)), RANGE)
    assert filtered.labels.tolist() == [0, 1, 4]
    np.testing.assert_array_equal(filtered.boxes[:, :3], rows[[0, 1, 4], :3])


@given(st.lists(st.floats(-20, 20), min_size=1, max_size=10))
def test_yaws_end_within_half_a_turn_of_zero(yaws: list[float]) -> None:
    rows = np.zeros((len(yaws), 9), np.float32)
    rows[:, 6] = yaws
    found = filter_range(replace(scene(0), boxes=rows, labels=np.zeros(len(yaws), np.int64)), RANGE).boxes
    assert (np.abs(found[:, 6]) <= np.pi + 1e-5).all()
    assert same_angle(found[:, 6], rows[:, 6])


def test_shuffling_keeps_points_whole() -> None:
    sample = scene(5)
    shuffled = shuffle_points(sample, np.random.default_rng(0)).points
    assert shuffled is not None and sample.points is not None
    assert not np.array_equal(shuffled, sample.points)
    np.testing.assert_array_equal(np.unique(shuffled, axis=0), np.unique(sample.points, axis=0))
    assert len(shuffled) == len(sample.points)


# -- draws ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def draws() -> list[SceneDraws]:
    generator = np.random.default_rng(0)
    return [draw_scene(AugmentConfig(), generator) for _ in range(4000)]


def test_modalities_are_dropped_a_quarter_each_and_never_both(draws: list[SceneDraws]) -> None:
    images = np.array([one.drop_images for one in draws])
    points = np.array([one.drop_points for one in draws])
    assert not (images & points).any()
    np.testing.assert_allclose([images.mean(), points.mean()], 0.25, atol=0.03)


def test_angles_and_scales_are_uniform_and_shifts_normal(draws: list[SceneDraws]) -> None:
    rows = np.array([(one.angle, one.scale) for one in draws])
    for column, (low, high) in zip(rows.T, ((-0.785, 0.785), (0.9, 1.1)), strict=True):
        part = (column - low) / (high - low)
        assert 0 <= part.min() < 0.01 and 0.99 < part.max() <= 1
        np.testing.assert_allclose([part.mean(), part.std()], [0.5, 1 / np.sqrt(12)], atol=0.02)
    shift = np.array([one.translation for one in draws])
    np.testing.assert_allclose(shift.mean(axis=0), 0.0, atol=0.03)
    np.testing.assert_allclose(shift.std(axis=0), 0.5, atol=0.03)
    assert np.abs(np.corrcoef(shift.T) - np.eye(3)).max() < 0.06


def test_each_axis_is_mirrored_half_the_time_on_its_own(draws: list[SceneDraws]) -> None:
    x, y = np.array([(one.flip_x, one.flip_y) for one in draws]).T
    np.testing.assert_allclose([x.mean(), y.mean(), (x & y).mean()], [0.5, 0.5, 0.25], atol=0.03)


def test_without_augmentation_nothing_is_done() -> None:
    generator = np.random.default_rng(0)
    assert {draw_scene(NO_AUGMENTATION, generator) for _ in range(50)} == {SceneDraws()}


def test_certain_drops_always_happen() -> None:
    generator = np.random.default_rng(0)
    images = [draw_scene(replace(NO_AUGMENTATION, drop_images=1.0), generator) for _ in range(50)]
    points = [draw_scene(replace(NO_AUGMENTATION, drop_points=1.0), generator) for _ in range(50)]
    assert all(one.drop_images and not one.drop_points for one in images)
    assert all(one.drop_points and not one.drop_images for one in points)


def test_the_generator_moves_on_alike_whatever_is_drawn() -> None:
    states = []
    for config in (AugmentConfig(), NO_AUGMENTATION, replace(NO_AUGMENTATION, drop_images=1.0)):
        generator = np.random.default_rng(4)
        draw_scene(config, generator)
        states.append(generator.random())
    assert len(set(states)) == 1


@pytest.mark.parametrize(
    "change",
    [
        {"rotation": (-0.1, 0.1)},
        {"scale": (0.9, 1.0)},
        {"translation": 0.1},
        {"flip_x": 0.5},
        {"shuffle": True},
    ],
)
def test_only_scenes_that_never_change_count_as_fixed(change: dict[str, Any]) -> None:
    assert is_fixed(replace(NO_AUGMENTATION, drop_images=0.25, drop_points=0.25))
    assert not is_fixed(replace(NO_AUGMENTATION, **change))


# -- images --------------------------------------------------------------------------------------------

ORIGINAL = (90, 160)
image_moves = st.builds(
    lambda resize, left, flipped: _bottom_move(resize, left, flipped),
    st.floats(0.6, 1.5),
    st.floats(0, 1),
    st.booleans(),
)


def _bottom_move(resize: float, left: float, flipped: bool) -> ImageMove:
    width, height = int(160 * resize), int(90 * resize)
    start = int(left * max(0, width - 96))
    return ImageMove(resize, (start, height - 48, start + 96, height), flipped)


def coordinates_image() -> NDArray[np.uint8]:
    """The first channel is the column, the second the row."""
    rows, columns = np.mgrid[:90, :160]
    return np.stack((columns, rows, np.zeros_like(rows)), axis=-1).astype(np.uint8)


@settings(max_examples=25, deadline=None)
@given(image_moves)
def test_every_pixel_comes_from_where_the_matrix_says(move: ImageMove) -> None:
    moved, matrix = augment_image(coordinates_image(), np.eye(4), move)
    assert moved.shape == (48, 96, 3)
    rows, columns = np.mgrid[:48, :96] + 0.5
    after = np.stack((columns, rows, np.ones_like(rows), np.ones_like(rows)), axis=-1)
    before = after @ np.linalg.inv(matrix).T
    # Borders of the resized image repeat their last pixel; scaling is by whole pixels, up to 1 % from its number.
    clear = (before[..., :2] > 2).all(axis=-1) & (before[..., :2] < (158, 88)).all(axis=-1)
    assert clear.mean() > 0.6
    np.testing.assert_allclose(moved[clear][:, :2], before[clear][:, :2] - 0.5, atol=2.1)


@settings(max_examples=10, deadline=None)
@given(seeds, image_moves)
def test_a_spot_is_seen_where_its_point_is_projected(seed: int, move: ImageMove) -> None:
    sample = scene(seed, 1, 1)
    generator = np.random.default_rng(seed)
    u, v = generator.uniform(60, 100), generator.uniform(40, 80)
    rows, columns = np.mgrid[:90, :160] + 0.5
    blob = np.exp(-((columns - u) ** 2 + (rows - v) ** 2) / 18)
    images = np.tile((255 * blob).round().astype(np.uint8)[None, ..., None], (6, 1, 1, 3))
    rays = np.linalg.inv(sample.lidar2image[0]) @ (u * 7, v * 7, 7, 1)
    moved = transform_images(replace(sample, images=images), move)
    u, v, depth, _ = moved.lidar2image[0] @ rays
    u, v = u / depth, v / depth
    if not (10 < u < 86 and 10 < v < 38):
        return  # the spot was cropped
    assert moved.images is not None
    weights = moved.images[0, ..., 0].astype(float)
    rows, columns = np.mgrid[:48, :96] + 0.5
    centre = (weights * columns).sum() / weights.sum(), (weights * rows).sum() / weights.sum()
    np.testing.assert_allclose(centre, (u, v), atol=1.7)


@given(seeds)
def test_training_crops_end_at_the_lower_edge(seed: int) -> None:
    move = draw_image_move(FUSION_IMAGES, np.random.default_rng(seed), training=True)
    width, height = resized_size((900, 1600), move.resize)
    left, top, right, bottom = move.crop
    assert 0.94 <= move.resize <= 1.25
    assert (bottom, bottom - top, right - left) == (height, 640, 1600)
    assert left == 0 or (left >= 0 and right <= width)


def test_training_crops_reach_both_sides() -> None:
    config = replace(FUSION_IMAGES, resize_train=(1.01, 1.01))
    generator = np.random.default_rng(0)
    lefts = {draw_image_move(config, generator, training=True).crop[0] for _ in range(400)}
    assert lefts == set(range(17))


def test_training_mirrors_half_of_the_samples() -> None:
    generator = np.random.default_rng(0)
    drawn = [draw_image_move(FUSION_IMAGES, generator, training=True).flip for _ in range(1000)]
    assert abs(np.mean(drawn) - 0.5) < 0.05


@pytest.mark.parametrize(
    ("config", "resize", "crop"),
    [(FUSION_IMAGES, 1.0, (0, 260, 1600, 900)), (R50_IMAGES, 0.5, (0, 130, 800, 450))],
    ids=["1600x640", "800x320"],
)
def test_evaluation_crops_the_lower_part(
    config: ImageConfig, resize: float, crop: tuple[int, int, int, int]
) -> None:
    move = draw_image_move(config, np.random.default_rng(0), training=False)
    assert move == ImageMove(resize, crop, False)


def test_evaluation_draws_nothing() -> None:
    generator, untouched = np.random.default_rng(0), np.random.default_rng(0)
    draw_image_move(FUSION_IMAGES, generator, training=False)
    assert generator.bit_generator.state == untouched.bit_generator.state


def test_evaluation_takes_the_middle_of_wider_images() -> None:
    config = ImageConfig(size=(64, 96), original_size=(90, 160))
    move = draw_image_move(config, np.random.default_rng(0), training=False)
    assert move.crop == (32, 26, 128, 90)


def test_the_crop_of_an_image_of_the_same_scale_is_exact() -> None:
    image = np.random.default_rng(0).integers(0, 256, (90, 160, 3)).astype(np.uint8)
    moved, matrix = augment_image(image, np.eye(4), ImageMove(1.0, (20, 30, 116, 90), False))
    np.testing.assert_array_equal(moved, image[30:, 20:116])
    np.testing.assert_array_equal(matrix[:2, 2], [-20, -30])


def test_mirroring_turns_columns_around() -> None:
    image = np.random.default_rng(0).integers(0, 256, (90, 160, 3)).astype(np.uint8)
    moved, matrix = augment_image(image, np.eye(4), ImageMove(1.0, (20, 30, 116, 90), True))
    np.testing.assert_array_equal(moved, image[30:, 20:116][:, ::-1])
    # The left border of the crop, column 20, is now its right border, column 96.
    np.testing.assert_allclose((matrix @ (20, 30, 1, 1))[:2], (96, 0))


def test_what_lies_outside_of_the_image_is_black() -> None:
    image = np.full((90, 160, 3), 200, np.uint8)
    moved, _ = augment_image(image, np.eye(4), ImageMove(0.5, (0, 45 - 64, 96, 45), False))
    assert (moved[:19] == 0).all() and (moved[:, 80:] == 0).all()
    assert (moved[19:, :80] == 200).all()


def test_resizing_is_pillows_bilinear_one() -> None:
    image = np.random.default_rng(0).integers(0, 256, (90, 160, 3)).astype(np.uint8)
    moved, _ = augment_image(image, np.eye(4), ImageMove(0.5, (0, 0, 80, 45), False))
    expected = Image.fromarray(image).resize((80, 45), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(moved, np.asarray(expected))


def test_all_cameras_of_a_sample_move_alike() -> None:
    sample = scene(0)
    assert sample.images is not None
    equal = replace(sample, images=np.repeat(sample.images[:1], 6, axis=0))
    moved = transform_images(equal, ImageMove(1.2, (1, 2, 17, 10), True))
    assert moved.images is not None
    assert (moved.images == moved.images[0]).all()
    np.testing.assert_array_equal(moved.intrinsics, np.repeat(moved.intrinsics[:1], 6, axis=0))


def test_a_sample_without_images_keeps_its_matrices() -> None:
    sample = replace(scene(0), images=None)
    assert transform_images(sample, ImageMove(0.5, (0, 0, 8, 4), True)) is sample


@pytest.mark.parametrize(
    ("change", "fixed"),
    [({}, True), ({"flip": 1.0}, True), ({"flip": 0.5}, False), ({"resize_train": (0.9, 1.0)}, False),
     ({"size": (64, 96)}, False)],
)  # fmt: skip
def test_images_count_as_fixed_exactly_when_all_draws_are_equal(
    change: dict[str, Any], fixed: bool, make_network: Callable[..., Any]
) -> None:
    config = replace(make_network().image, **change)
    generator = np.random.default_rng(0)
    moves = {draw_image_move(config, generator, training=True) for _ in range(60)}
    assert is_fixed_image(config) == fixed == (len(moves) == 1)
