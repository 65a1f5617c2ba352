"""Which samples an update sees, how they become batches, and sensors that fail in an evaluation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tenfold.cmt.config import CAMERAS, NO_AUGMENTATION, AugmentConfig, DataConfig, NetworkConfig
from tenfold.cmt.dataset import Place, TestSamples, TrainingSamples, prepare
from tenfold.cmt.evaluation_batches import evaluation_loader
from tenfold.cmt.nuscenes_index import NuScenesIndex
from tenfold.cmt.profiles import QUICK_DATA
from tenfold.cmt.sample_reader import read_sample
from tenfold.cmt.samples import Batch, PreparedSample, collate
from tenfold.cmt.sensor_conditions import CONDITIONS, Condition
from tenfold.cmt.training_batches import BatchOrder, batch_order, training_loader
from tenfold.shared.logging import TenfoldError

MASKING = replace(NO_AUGMENTATION, drop_images=0.25, drop_points=0.25)
AUGMENTED = AugmentConfig(ground_truth_sampling=False)
AROUND = (-16.0, -16.0, -1.7, 16.0, 16.0, 6.3)
FAR = (80.0, 80.0, 10.0, 112.0, 112.0, 18.0)
"""Ranges in metres with and without the origin."""
VOXEL = (0.25, 0.25, 0.25)
MakeTraining = Callable[..., TrainingSamples]
MakeTest = Callable[..., TestSamples]


def sentence(action: Callable[[], Any]) -> str:
    """The error of something that cannot be done: one line."""
    with pytest.raises(TenfoldError) as caught:
        action()
    message = str(caught.value)
    assert "\n" not in message
    return message


def order(size: int = 10, batch_size: int = 4, seed: int = 0) -> BatchOrder:
    return BatchOrder(np.arange(size), batch_size, seed)


def tensors(batch: Batch | PreparedSample) -> list[Tensor]:
    """All numbers of a batch or sample; those that are not there are left out."""
    voxels = batch.voxels if isinstance(batch, Batch) else batch
    parts = (batch.images, batch.lidar2image, batch.boxes, batch.labels)
    points = () if voxels is None else (voxels.features, voxels.coordinates)
    return [part for part in (*parts, *points) if part is not None]


def same(first: Batch | PreparedSample, second: Batch | PreparedSample) -> bool:
    one, other = tensors(first), tensors(second)
    return len(one) == len(other) and all(a.equal(b) for a, b in zip(one, other, strict=True))


def prepared(count: int, voxels: int | None = 3, images: bool = True, name: str = "one") -> PreparedSample:
    """A sample of ``count`` boxes, with numbers that tell where they came from."""
    features = None if voxels is None else torch.arange(5.0 * voxels).view(voxels, 5)
    coordinates = None if voxels is None else torch.arange(3 * voxels, dtype=torch.int32).view(voxels, 3)
    return PreparedSample(
        name,
        features,
        coordinates,
        None,
        torch.full((6, 3, 4, 8), count, dtype=torch.uint8) if images else None,
        torch.eye(4, dtype=torch.float64).repeat(6, 1, 1) * count,
        torch.arange(9.0 * count).view(count, 9) + 1,
        torch.arange(count),
    )


# -- order ---------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(st.integers(1, 40), st.integers(1, 12), st.integers(0, 50))
def test_what_an_update_sees_depends_on_its_number_alone(size: int, batch_size: int, step: int) -> None:
    one = order(size, batch_size)
    in_turn = [one.order_of_step(number).tolist() for number in range(step + 1)]
    assert order(size, batch_size).order_of_step(step).tolist() == in_turn[-1]
    assert all(len(batch) == batch_size for batch in in_turn)


def test_an_epoch_sees_every_sample_once() -> None:
    one = order(12, 4)
    assert one.steps_per_epoch == 3
    for epoch in range(3):
        steps = range(3 * epoch, 3 * epoch + 3)
        assert sorted(np.concatenate([one.order_of_step(step) for step in steps])) == list(range(12))


def test_a_rest_that_fills_no_batch_is_left_to_later_epochs() -> None:
    one = order(10, 4)
    assert one.steps_per_epoch == 2
    seen = np.concatenate([one.order_of_step(step) for step in (0, 1)])
    assert len(set(seen.tolist())) == 8


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    orders = {
        tuple(order(20, 20, seed).order_of_step(epoch).tolist()) for seed in (0, 1) for epoch in (0, 1, 2)
    }
    assert len(orders) == 6


def test_a_set_smaller_than_a_batch_fills_it_by_repetition() -> None:
    batch = order(3, 7).order_of_step(5).tolist()
    assert len(batch) == 7 and batch[:3] == batch[3:6] and sorted(batch[:3]) == [0, 1, 2]


def test_a_balanced_order_holds_the_keyframes_of_rare_classes_more_often(index: NuScenesIndex) -> None:
    data = replace(QUICK_DATA, class_balanced=True)
    one, again, other = (batch_order(index, data, 2, seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(one.indices, again.indices)
    assert not np.array_equal(one.indices, other.indices)
    rows = sum(len(set(frame.labels.tolist())) for frame in index.keyframes)
    assert len(one.indices) == 10 * (rows // 10)


def test_an_unbalanced_order_holds_every_keyframe_once(index: NuScenesIndex) -> None:
    assert batch_order(index, QUICK_DATA, 2, 0).indices.tolist() == list(range(len(index)))


def test_there_is_no_order_of_no_keyframes(index: NuScenesIndex) -> None:
    empty = replace(index, keyframes=[])
    assert "no keyframe" in sentence(lambda: batch_order(empty, QUICK_DATA, 2, 0))


# -- training batches ----------------------------------------------------------------------------------


@pytest.fixture
def augmented(make_samples: MakeTraining) -> TrainingSamples:
    return make_samples(augment=AUGMENTED, data=replace(QUICK_DATA, in_memory=False))


def batches(
    samples: TrainingSamples, first: int, last: int, batch_size: int = 4, **options: Any
) -> list[Batch]:
    return list(training_loader(samples, order(4, batch_size), first, last, **options))


def test_a_resumed_run_sees_what_it_would_have_seen(augmented: TrainingSamples) -> None:
    whole = batches(augmented, 0, 5)
    resumed = batches(augmented, 3, 5)
    assert len(resumed) == 2
    assert all(same(one, other) for one, other in zip(whole[3:], resumed, strict=True))


def test_updates_see_a_keyframe_differently_each_time(augmented: TrainingSamples) -> None:
    first, second = augmented[Place(0, 1, 0)], augmented[Place(1, 1, 0)]
    elsewhere = augmented[Place(0, 1, 1)]
    assert not first.boxes.equal(second.boxes) and not first.boxes.equal(elsewhere.boxes)


def test_another_seed_augments_differently(make_samples: MakeTraining) -> None:
    first, second = (make_samples(augment=AUGMENTED, seed=seed)[Place(0, 1, 0)] for seed in (0, 1))
    assert not first.lidar2image.equal(second.lidar2image)


def test_workers_bring_the_same_batches(augmented: TrainingSamples) -> None:
    alone = batches(augmented, 0, 3)
    helped = batches(augmented, 0, 3, workers=2)
    assert [batch.tokens for batch in alone] == [batch.tokens for batch in helped]
    assert all(same(one, other) for one, other in zip(alone, helped, strict=True))


def samples_of(batch: Batch) -> dict[int, tuple[str, list[Any]]]:
    """Each sample's token, boxes and voxels, by its place."""
    assert batch.voxels is not None
    return {
        place: (
            token,
            [
                batch.boxes[place, : batch.counts[place]].tolist(),
                batch.voxels.features[batch.voxels.coordinates[:, 0] == place].tolist(),
                batch.lidar2image[place].tolist(),
            ],
        )
        for place, token in enumerate(batch.tokens)
    }


@pytest.mark.parametrize(("world", "parts"), [(4, 1), (1, 2), (2, 2)])
def test_processes_and_parts_share_a_batch_without_changing_it(
    augmented: TrainingSamples, world: int, parts: int
) -> None:
    (whole,) = batches(augmented, 2, 3, batch_size=8)
    shared = [
        sample
        for rank in range(world)
        for batch in batches(augmented, 2, 3, batch_size=8, rank=rank, world=world, parts=parts)
        for sample in samples_of(batch).values()
    ]
    assert len(shared) == 8
    assert sorted(map(repr, shared)) == sorted(map(repr, samples_of(whole).values()))


@pytest.mark.parametrize(("world", "parts"), [(3, 1), (1, 3), (2, 4)])
def test_a_batch_that_cannot_be_shared_evenly_is_refused(
    augmented: TrainingSamples, world: int, parts: int
) -> None:
    message = sentence(lambda: batches(augmented, 0, 1, world=world, parts=parts))
    assert "batch_size" in message and "accumulate" in message


def test_loading_draws_nothing_from_the_global_generator(augmented: TrainingSamples) -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    batches(augmented, 0, 1)
    assert torch.get_rng_state().equal(before)


# -- in memory -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "augment", [NO_AUGMENTATION, MASKING, AUGMENTED], ids=["plain", "masked", "augmented"]
)
@pytest.mark.parametrize("modality", ["fusion", "lidar", "camera"])
def test_samples_kept_in_memory_are_those_of_the_files(
    make_samples: MakeTraining,
    make_network: Callable[..., NetworkConfig],
    augment: AugmentConfig,
    modality: str,
) -> None:
    """In any order of keyframes, seen again and again."""
    network = make_network(modality)
    kept, read = (
        make_samples(network, augment, data=replace(QUICK_DATA, in_memory=memory)) for memory in (True, False)
    )
    for step, keyframe in enumerate((1, 0, 1, 0, 2, 1)):
        place = Place(step, keyframe, step % 3)
        assert same(kept[place], read[place]), f"update {step}"


def test_memory_keeps_no_masked_sample(make_samples: MakeTraining) -> None:
    """Whatever was dropped first is there again later."""
    samples = make_samples(augment=MASKING)
    dark = [step for step in range(40) if not image_of(samples[Place(step, 0, 0)]).any()]
    assert 0 < len(dark) < 30
    assert image_of(samples[Place(next(s for s in range(40) if s not in dark), 0, 0)]).any()


def image_of(sample: PreparedSample) -> Tensor:
    assert sample.images is not None
    return sample.images


# -- masked-modal training -----------------------------------------------------------------------------


def test_a_quarter_is_without_images_a_quarter_without_points_and_half_is_whole(
    make_samples: MakeTraining,
) -> None:
    samples = make_samples(augment=MASKING)
    seen = [samples[Place(step, step % 4, 0)] for step in range(1200)]
    dark = np.array([not image_of(one).any() for one in seen])
    blank = np.array([one.features is not None and not one.features.any() for one in seen])
    assert not (dark & blank).any()
    np.testing.assert_allclose([dark.mean(), blank.mean()], 0.25, atol=0.045)  # 3.6 standard deviations


def test_samples_of_a_batch_are_masked_independently(make_samples: MakeTraining) -> None:
    samples = make_samples(augment=MASKING)
    dark = np.array(
        [[not image_of(samples[Place(step, 0, place)]).any() for place in range(2)] for step in range(600)]
    )
    assert abs(np.corrcoef(dark.T)[0, 1]) < 0.15


@pytest.mark.parametrize("modality", ["lidar", "camera"])
def test_networks_of_one_sensor_never_lose_it(
    make_samples: MakeTraining, make_network: Callable[..., NetworkConfig], modality: str
) -> None:
    samples = make_samples(make_network(modality), replace(NO_AUGMENTATION, drop_images=0.5, drop_points=0.5))
    for step in range(30):
        sample = samples[Place(step, 0, 0)]
        content = sample.images if modality == "camera" else sample.features
        assert content is not None and content.any()


def test_a_dropped_cloud_is_one_voxel_of_zeros_at_the_moved_origin(
    make_samples: MakeTraining, make_network: Callable[..., NetworkConfig]
) -> None:
    shifted = replace(AUGMENTED, drop_points=1.0, drop_images=0.0, translation=1.0)
    network = make_network()
    network = replace(network, lidar=replace(network.lidar, point_range=AROUND, voxel_size=VOXEL))
    sample = make_samples(network, augment=shifted)[Place(0, 0, 0)]
    assert sample.features is not None and sample.coordinates is not None
    assert sample.features.shape == (1, 5)
    assert not sample.features[0, 3:].any() and sample.features[0, :3].any()
    centre = (sample.coordinates[0].flip(0) + 0.5) * 0.25 + torch.tensor(AROUND[:3])
    assert (centre - sample.features[0, :3]).abs().max() <= 0.1251


# -- prepared samples ----------------------------------------------------------------------------------


@pytest.mark.parametrize("point_range", [AROUND, FAR], ids=["around", "far"])
@pytest.mark.parametrize("points", ["none", "outside", "zeros"])
def test_there_is_always_one_voxel(
    index: NuScenesIndex,
    make_network: Callable[..., NetworkConfig],
    point_range: tuple[float, float, float, float, float, float],
    points: str,
) -> None:
    network = make_network("lidar")
    network = replace(network, lidar=replace(network.lidar, point_range=point_range, voxel_size=VOXEL))
    clouds = {"none": np.zeros((0, 5)), "outside": np.full((7, 5), 500.0), "zeros": np.zeros((30, 5))}
    sample = read_sample(index.root, index.keyframes[0], 0, points=True, images=False, training=True)
    sample = replace(sample, points=clouds[points].astype(np.float32))
    found = prepare(sample, network, training=True)
    assert found.features is not None and found.coordinates is not None
    assert found.features.shape == (1, 5) and not found.features.any()
    assert found.coordinates.tolist() == [[6, 64, 64] if point_range == AROUND else [0, 0, 0]]


def test_a_sample_without_the_networks_sensors_is_refused(
    index: NuScenesIndex, make_network: Callable[..., NetworkConfig]
) -> None:
    bare = read_sample(index.root, index.keyframes[0], 0, points=False, images=False, training=True)
    assert "points" in sentence(lambda: prepare(bare, make_network("lidar"), training=True))
    assert "images" in sentence(lambda: prepare(bare, make_network("camera"), training=True))


def test_images_of_another_size_than_the_networks_are_refused(
    index: NuScenesIndex, make_network: Callable[..., NetworkConfig]
) -> None:
    sample = read_sample(index.root, index.keyframes[0], 0, points=False, images=True, training=True)
    assert "(90, 160)" in sentence(lambda: prepare(sample, make_network("camera"), training=True))


def test_files_of_another_size_than_the_configuration_says_are_refused(
    make_samples: MakeTraining, make_network: Callable[..., NetworkConfig]
) -> None:
    network = make_network()
    network = replace(network, image=replace(network.image, original_size=(900, 1600)))
    message = sentence(lambda: make_samples(network)[Place(0, 0, 0)])
    assert "90 x 160" in message and "original_size" in message


def test_only_as_many_voxels_as_allowed_are_made(
    make_samples: MakeTraining, make_test_samples: MakeTest, make_network: Callable[..., NetworkConfig]
) -> None:
    network = make_network()
    network = replace(network, lidar=replace(network.lidar, max_voxels_train=17, max_voxels_test=23))
    training, test = make_samples(network)[Place(0, 0, 0)], make_test_samples(network)[0]
    assert training.features is not None and test.features is not None
    assert (len(training.features), len(test.features)) == (17, 23)


def test_training_boxes_have_points_and_test_boxes_need_none(
    make_samples: MakeTraining, make_test_samples: MakeTest, index: NuScenesIndex
) -> None:
    frame = index.keyframes[0]
    inside = (np.abs(frame.boxes[:, :2]) < 16).all(axis=1)
    assert not (frame.num_points > 0).all()
    expected = frame.labels[inside & (frame.num_points > 0)]
    assert make_samples()[Place(0, 0, 0)].labels.tolist() == expected.tolist()
    assert make_test_samples()[0].labels.tolist() == frame.labels.tolist()


# -- collation -----------------------------------------------------------------------------------------


def test_boxes_are_padded_behind_the_last() -> None:
    batch = collate([prepared(2, name="a"), prepared(0, name="b"), prepared(3, name="c")])
    assert batch.tokens == ("a", "b", "c") and batch.counts == (2, 0, 3)
    assert batch.labels.tolist() == [[0, 1, -1], [-1, -1, -1], [0, 1, 2]]
    assert batch.boxes[0, 1].tolist() == [float(number) for number in range(10, 19)]
    assert not batch.boxes[0, 2:].any() and not batch.boxes[1].any()


def test_voxels_are_numbered_by_their_sample() -> None:
    voxels = collate([prepared(1, 2), prepared(1, 1), prepared(1, 3)]).voxels
    assert voxels is not None
    assert voxels.coordinates[:, 0].tolist() == [0, 0, 1, 2, 2, 2]
    assert voxels.coordinates[3:, 1:].tolist() == [[0, 1, 2], [3, 4, 5], [6, 7, 8]]
    assert voxels.features[2].tolist() == [0, 1, 2, 3, 4]


def test_matrices_keep_their_precision() -> None:
    batch = collate([prepared(1), prepared(2)])
    assert batch.lidar2image.dtype == torch.float64 and batch.lidar2image.shape == (2, 6, 4, 4)
    assert batch.lidar2image[1, 0, 0, 0] == 2


def test_images_are_stacked_as_they_are() -> None:
    images = collate([prepared(1), prepared(2)]).images
    assert images is not None and images.dtype == torch.uint8 and images.shape == (2, 6, 3, 4, 8)
    assert images[:, 0, 0, 0, 0].tolist() == [1, 2]


def test_a_batch_of_one_sensor_has_none_of_the_other() -> None:
    assert collate([prepared(1, None), prepared(2, None)]).voxels is None
    assert collate([prepared(1, images=False)] * 2).images is None


def test_samples_without_boxes_make_a_batch_without_boxes() -> None:
    batch = collate([prepared(0), prepared(0)])
    assert batch.boxes.shape == (2, 0, 9) and batch.labels.shape == (2, 0)


@pytest.mark.parametrize("other", [prepared(1, None), prepared(1, images=False)], ids=["points", "images"])
def test_samples_of_different_sensors_make_no_batch(other: PreparedSample) -> None:
    assert "all samples of a batch have" in sentence(lambda: collate([prepared(1), other]))


def test_images_of_a_batch_are_blue_first(make_test_samples: MakeTest, index: NuScenesIndex) -> None:
    """Rows 26 and on of 90; channels before rows."""
    raw = read_sample(index.root, index.keyframes[0], 0, points=False, images=True, training=False).images
    assert raw is not None
    expected = torch.from_numpy(raw[:, 26:].transpose(0, 3, 1, 2).copy())
    assert image_of(make_test_samples()[0]).equal(expected)


# -- evaluation ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CONDITIONS)
def test_a_condition_makes_zero_what_is_missing_and_nothing_else(
    make_test_samples: MakeTest, name: str
) -> None:
    whole, left = make_test_samples()[0], make_test_samples(condition=name)[0]
    missing = {f"no-{camera.lower().replace('_', '-')}": place for place, camera in enumerate(CAMERAS)}
    dark = set(range(6)) if name in ("no-cameras", "neither") else {missing.get(name)}
    for camera in range(6):
        expected = torch.zeros_like(image_of(whole)[camera]) if camera in dark else image_of(whole)[camera]
        assert image_of(left)[camera].equal(expected)
    assert left.features is not None and whole.features is not None
    if name in ("no-lidar", "neither"):
        assert left.features.shape == (1, 5) and not left.features.any()
    elif name.startswith("beams"):
        assert 0 < len(left.features) < len(whole.features)
    else:
        assert left.features.equal(whole.features)
    assert left.boxes.equal(whole.boxes) and left.lidar2image.equal(whole.lidar2image)


def test_fewer_beams_see_fewer_voxels(make_test_samples: MakeTest) -> None:
    counts = []
    for beams in (16, 8, 4, 1):
        features = make_test_samples(condition=f"beams-{beams}")[1].features
        assert features is not None
        counts.append(len(features))
    assert counts == sorted(counts, reverse=True) and len(set(counts)) > 2


def test_a_condition_of_an_unknown_camera_is_refused() -> None:
    assert "CAM_TOP" in sentence(lambda: Condition("odd", missing_cameras=("CAM_FRONT", "CAM_TOP")))


def evaluation_batches(
    samples: TestSamples, places: Sequence[int], size: int, workers: int = 0
) -> list[Batch]:
    return list(evaluation_loader(samples, places, size, workers))


def test_evaluation_brings_each_keyframe_in_the_given_order(
    make_test_samples: MakeTest, test_index: NuScenesIndex
) -> None:
    found = evaluation_batches(make_test_samples(), [3, 0, 2], 2)
    tokens = [frame.token for frame in test_index.keyframes]
    assert [batch.tokens for batch in found] == [(tokens[3], tokens[0]), (tokens[2],)]


def test_evaluation_is_the_same_every_time_and_with_workers(make_test_samples: MakeTest) -> None:
    samples = make_test_samples()
    alone, again, helped = (evaluation_batches(samples, range(4), 3, workers) for workers in (0, 0, 2))
    for other in (again, helped):
        assert all(same(one, two) for one, two in zip(alone, other, strict=True))


def test_evaluation_draws_nothing_from_the_global_generator(make_test_samples: MakeTest) -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    evaluation_batches(make_test_samples(), range(2), 1)
    assert torch.get_rng_state().equal(before)


# -- errors on the way ---------------------------------------------------------------------------------


@pytest.fixture
def broken(index: NuScenesIndex) -> NuScenesIndex:
    """The third keyframe's LiDAR file is not there."""
    frames = list(index.keyframes)
    frames[2] = replace(frames[2], lidar_path="samples/nowhere.bin")
    return replace(index, keyframes=frames)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_missing_file_stops_training_with_its_name(
    broken: NuScenesIndex, make_network: Callable[..., NetworkConfig], workers: int
) -> None:
    samples = TrainingSamples(broken.root, broken, make_network(), QUICK_DATA, NO_AUGMENTATION, 0, None, 0)
    loader = training_loader(samples, order(4, 2), 0, 4, workers=workers)
    assert "nowhere.bin" in sentence(lambda: list(loader))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_missing_file_stops_evaluation_after_the_batches_before_it(
    broken: NuScenesIndex, make_network: Callable[..., NetworkConfig], workers: int
) -> None:
    samples = TestSamples(broken.root, broken, make_network(), QUICK_DATA, CONDITIONS["both"])
    found: list[Batch] = []
    assert "nowhere.bin" in sentence(
        lambda: found.extend(evaluation_loader(samples, range(4), 1, workers=workers))
    )
    assert len(found) == 2


def test_a_loader_can_be_used_again_after_an_error(
    broken: NuScenesIndex, make_network: Callable[..., NetworkConfig], tmp_path: Path
) -> None:
    """It raises again, rather than hang or bring a wrong batch."""
    samples = TrainingSamples(broken.root, broken, make_network(), DataConfig(), NO_AUGMENTATION, 0, None, 0)
    loader = training_loader(samples, order(4, 4), 0, 2, workers=1)
    for _ in range(2):
        assert "nowhere.bin" in sentence(lambda: list(loader))
