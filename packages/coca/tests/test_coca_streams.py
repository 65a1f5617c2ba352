"""Data sets and streams: what is served, in which order, and what is said of missing and damaged files."""

from __future__ import annotations

import gzip
import math
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as tv

from tenfold.coca.augmentation import Preprocessing
from tenfold.coca.config import StreamConfig
from tenfold.coca.image_sets import ImageSet, TrainTest, load_image_sets
from tenfold.coca.mnist360 import ServedStream, serve_test, serve_training
from tenfold.coca.rotation import rotate_images
from tenfold.coca.streams import (
    Segment,
    Stream,
    batch_indices,
    blurry_stream,
    domain_stream,
    hold_out,
    make_stream,
    split_stream,
)
from tenfold.shared.logging import TenfoldError

PLAIN = Preprocessing()


def same(one: ImageSet, other: ImageSet) -> bool:
    return torch.equal(one.images, other.images) and torch.equal(one.labels, other.labels)


def as_multiset(images: ImageSet) -> Counter[tuple[bytes, int]]:
    rows = zip(images.images.numpy(), images.labels.tolist(), strict=True)
    return Counter((pixels.tobytes(), label) for pixels, label in rows)


def together(stream: Stream) -> Counter[tuple[bytes, int]]:
    return sum((as_multiset(segment.train) for segment in stream.segments), Counter())


def turned(images: Tensor, degrees: float) -> Tensor:
    rotated: Tensor = tv.rotate(images, degrees, interpolation=InterpolationMode.NEAREST)
    return rotated


def differing(one: Tensor, other: Tensor) -> float:
    """Share of pixels; nearest neighbour may fall to either side where a place lies between two pixels."""
    return float((one != other).float().mean())


# Split streams


@pytest.mark.parametrize("per_task", [1, 2, 4])
def test_a_split_gives_each_task_its_own_classes_in_order(small_sets: TrainTest, per_task: int) -> None:
    stream = split_stream("mine", small_sets, per_task, PLAIN)
    expected = [tuple(range(start, start + per_task)) for start in range(0, 4, per_task)]
    assert [segment.classes for segment in stream.segments] == list(stream.test_classes) == expected
    for segment, test, classes in zip(stream.segments, stream.tests, expected, strict=True):
        assert set(segment.train.labels.tolist()) == set(test.labels.tolist()) == set(classes)


def test_a_split_serves_every_image_once(small_sets: TrainTest) -> None:
    stream = split_stream("mine", small_sets, 2, PLAIN)
    assert together(stream) == as_multiset(small_sets.train)
    assert sum(map(as_multiset, stream.tests), Counter()) == as_multiset(small_sets.test)


def test_a_split_divides_further_test_sets_as_well(
    small_sets: TrainTest, make_images: Callable[..., ImageSet]
) -> None:
    stream = split_stream("mine", replace(small_sets, further_tests={"more": make_images(20)}), 2, PLAIN)
    assert [set(test.labels.tolist()) for test in stream.further_tests["more"]] == [{0, 1}, {2, 3}]


def test_classes_that_do_not_divide_are_refused(small_sets: TrainTest) -> None:
    with pytest.raises(TenfoldError, match=r"^4 classes cannot be split into tasks of 3[^\n]*$"):
        split_stream("mine", small_sets, 3, PLAIN)


def test_split_digits_have_the_stated_counts(digits: Stream) -> None:
    assert [segment.classes for segment in digits.segments] == [(0, 1), (2, 3), (4, 5), (6, 7), (8, 9)]
    assert sum(len(segment.train) for segment in digits.segments) == 1347
    assert sum(map(len, digits.tests)) == 450
    assert (digits.scenario, digits.num_classes, digits.image_shape) == ("class", 10, (1, 8, 8))


def test_classes_per_task_can_be_chosen() -> None:
    stream = make_stream(StreamConfig("s-digits", classes_per_task=5))
    assert stream.test_classes == ((0, 1, 2, 3, 4), (5, 6, 7, 8, 9))


def test_an_unknown_stream_is_refused() -> None:
    with pytest.raises(TenfoldError, match=r"^unknown stream 's-svhn'; choose one of s-digits, "):
        make_stream(StreamConfig("s-svhn"))


def test_joint_training_has_all_images_in_one_segment(digits: Stream) -> None:
    joint = digits.joint()
    assert len(joint.segments) == 1
    assert together(joint) == together(digits)
    assert all(map(same, joint.tests, digits.tests))


# Batches


@pytest.fixture
def segment(make_images: Callable[..., ImageSet]) -> Segment:
    return Segment(make_images(47), (0, 1, 2, 3))


def order(segment: Segment, config: StreamConfig, seed: int = 0, index: int = 0, epoch: int = 0) -> list[int]:
    batches = batch_indices(segment, config, seed, index, epoch)
    return np.concatenate(batches).tolist() if batches else []


@pytest.mark.parametrize(("batch_size", "sizes"), [(10, [10, 10, 10, 10, 7]), (47, [47]), (100, [47])])
def test_each_image_comes_once_in_a_pass(segment: Segment, batch_size: int, sizes: list[int]) -> None:
    batches = batch_indices(segment, StreamConfig(batch_size=batch_size), 0, 0, 0)
    assert list(map(len, batches)) == sizes
    assert sorted(np.concatenate(batches).tolist()) == list(range(47))


@pytest.mark.parametrize(("batch_size", "count"), [(10, 4), (47, 1), (100, 0)])
def test_an_incomplete_batch_can_be_dropped(segment: Segment, batch_size: int, count: int) -> None:
    batches = batch_indices(segment, StreamConfig(batch_size=batch_size, drop_last=True), 0, 0, 0)
    assert list(map(len, batches)) == [batch_size] * count


def test_a_pass_can_be_cut_short(segment: Segment) -> None:
    whole, short = StreamConfig(batch_size=10), StreamConfig(batch_size=10, batches_per_epoch=2)
    assert order(segment, short) == order(segment, whole)[:20]


def test_the_order_repeats(segment: Segment) -> None:
    config = StreamConfig(batch_size=10)
    assert order(segment, config, 3, 2, 1) == order(segment, config, 3, 2, 1)


def test_the_order_differs_by_seed_segment_and_pass(segment: Segment) -> None:
    config = StreamConfig(batch_size=10)
    orders = [order(segment, config, s, i, e) for s in range(3) for i in range(3) for e in range(3)]
    assert len(set(map(tuple, orders))) == 27


def test_a_served_stream_comes_in_its_own_order_and_batches(make_images: Callable[..., ImageSet]) -> None:
    segment = Segment(make_images(9), (0, 1, 2, 3), batch_sizes=(4, 2, 3))
    batches = batch_indices(segment, StreamConfig(batch_size=5), 0, 0, 0)
    assert [batch.tolist() for batch in batches] == [[0, 1, 2, 3], [4, 5], [6, 7, 8]]


# Rotation


@pytest.mark.parametrize("degrees", [17.3, 90.0, 123.4, 180.0, -60.0, 359.0])
def test_rotation_is_that_of_torchvision(digits: Stream, degrees: float) -> None:
    images = digits.tests[2].images
    ours = rotate_images(images, torch.tensor(degrees))
    assert ours.dtype == torch.uint8
    assert differing(ours, turned(images, degrees)) < 0.005


def test_each_image_turns_by_its_own_angle(fake_mnist: TrainTest) -> None:
    images, degrees = fake_mnist.test.images[:40], torch.linspace(-60, 420, 40)
    expected = torch.cat(
        [turned(image[None], float(angle)) for image, angle in zip(images, degrees, strict=True)]
    )
    assert differing(rotate_images(images, degrees), expected) < 0.005


def test_no_rotation_changes_nothing(digits: Stream) -> None:
    images = digits.tests[0].images
    assert torch.equal(rotate_images(images, torch.tensor(0.0)), images)


# Domains


def test_a_domain_changes_the_images_of_training_and_test_and_no_label(small_sets: TrainTest) -> None:
    stream = domain_stream("mine", small_sets, [lambda x: x, lambda x: 255 - x], PLAIN)
    assert (stream.scenario, stream.num_classes, stream.test_classes) == ("domain", 4, ((0, 1, 2, 3),) * 2)
    assert same(stream.segments[0].train, small_sets.train) and same(stream.tests[0], small_sets.test)
    inverted = [
        ImageSet(255 - images.images, images.labels) for images in (small_sets.train, small_sets.test)
    ]
    assert same(stream.segments[1].train, inverted[0]) and same(stream.tests[1], inverted[1])


def write_idx(path: Path, values: Tensor) -> bytes:
    header = np.array([0x800 + values.ndim, *values.shape], dtype=">i4").tobytes()
    content = gzip.compress(header + values.to(torch.uint8).numpy().tobytes())
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return content


def write_mnist(root: Path, sets: TrainTest) -> None:
    for part, images in (("train", sets.train), ("t10k", sets.test)):
        write_idx(root / "mnist" / f"{part}-images-idx3-ubyte.gz", images.images[:, 0])
        write_idx(root / "mnist" / f"{part}-labels-idx1-ubyte.gz", images.labels)


def first_of_each(images: ImageSet, counts: list[int]) -> ImageSet:
    chosen = [(images.labels == digit).nonzero()[:count, 0] for digit, count in enumerate(counts)]
    return images[torch.cat(chosen).sort().values]


@pytest.fixture(scope="module")
def fake_mnist() -> TrainTest:
    """Scikit-learn's digits at the size of MNIST's, of each digit another number."""
    small = load_image_sets("digits")

    def enlarge(images: ImageSet) -> ImageSet:
        pixels = (15 * images.images).repeat_interleave(3, 2).repeat_interleave(3, 3)
        return ImageSet(torch.nn.functional.pad(pixels, (2, 2, 2, 2)), images.labels)

    train = first_of_each(small.train, [36 + digit for digit in range(10)])
    test = first_of_each(small.test, [8 + digit for digit in range(10)])
    return TrainTest(enlarge(train), enlarge(test), {})


@pytest.fixture
def mnist_root(tmp_path: Path, fake_mnist: TrainTest) -> Path:
    write_mnist(tmp_path, fake_mnist)
    return tmp_path


def test_mnist_is_read_from_its_archives(mnist_root: Path, fake_mnist: TrainTest) -> None:
    sets = load_image_sets("mnist", mnist_root)
    assert same(sets.train, fake_mnist.train) and same(sets.test, fake_mnist.test)
    assert sets.train.images.dtype == torch.uint8 and sets.train.labels.dtype == torch.int64


def test_mnist_is_read_as_torchvision_keeps_it(mnist_root: Path, fake_mnist: TrainTest) -> None:
    raw = mnist_root / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for path in (mnist_root / "mnist").glob("*.gz"):
        (raw / path.stem).write_bytes(gzip.decompress(path.read_bytes()))
    sets = load_image_sets("mnist", mnist_root)
    assert same(sets.train, fake_mnist.train) and same(sets.test, fake_mnist.test)


def places_of_pixels() -> TrainTest:
    """Two images that together hold the number of every pixel."""
    numbers = torch.arange(784).view(28, 28)
    images = torch.stack([numbers % 256, numbers // 256])[:, None].to(torch.uint8)
    pair = ImageSet(images, torch.tensor([0, 9]))
    return TrainTest(pair, pair, {})


def places(images: ImageSet) -> Tensor:
    low, high = images.images.flatten(1).long()
    return low + 256 * high


def test_permuted_mnist_has_20_orders_of_all_pixels(tmp_path: Path) -> None:
    write_mnist(tmp_path, places_of_pixels())
    stream = make_stream(StreamConfig("p-mnist"), tmp_path)
    orders = [places(segment.train) for segment in stream.segments]
    assert len(orders) == len(stream.tests) == 20 and stream.scenario == "domain"
    assert all(torch.equal(order.sort().values, torch.arange(784)) for order in orders)
    assert len({tuple(order.tolist()) for order in orders}) == 20
    assert all(torch.equal(order, places(test)) for order, test in zip(orders, stream.tests, strict=True))


def test_rotated_mnist_turns_each_of_20_tasks_by_one_angle_up_to_180(
    mnist_root: Path, fake_mnist: TrainTest
) -> None:
    stream = make_stream(StreamConfig("r-mnist"), mnist_root)
    assert len(stream.segments) == len(stream.tests) == 20 and stream.scenario == "domain"
    few = fake_mnist.test.images[:10]
    angles = np.arange(-180, 180, 0.5)
    candidates = torch.stack([turned(few, angle) for angle in angles])
    found = []
    for segment, test in zip(stream.segments, stream.tests, strict=True):
        differences = (candidates != test.images[:10]).float().mean(dim=(1, 2, 3, 4))
        angle = angles[int(differences.argmin())]
        assert differences.min() < 0.03
        assert differing(test.images, turned(fake_mnist.test.images, angle)) < 0.03
        assert differing(segment.train.images, turned(fake_mnist.train.images, angle)) < 0.03
        assert torch.equal(segment.train.labels, fake_mnist.train.labels)
        found.append(angle)
    assert min(found) >= 0 and max(found) <= 180
    assert min(found) < 60 and max(found) > 120 and len(set(found)) > 15


@pytest.mark.parametrize("name", ["p-mnist", "r-mnist", "mnist-360"])
def test_what_a_benchmark_draws_depends_on_its_seed_alone(name: str, mnist_root: Path) -> None:
    streams = [make_stream(StreamConfig(name, seed=seed), mnist_root) for seed in (0, 0, 1)]
    first, again, other = (stream.segments[0].train for stream in streams)
    assert same(first, again) and not torch.equal(first.images, other.images)


# MNIST-360


def chunk_of(members: list[int], number: int) -> list[int]:
    length = len(members) // 6 + 1
    return members[number * length : (number + 1) * length]


def served_by_the_rules(counts: list[int], batch_size: int) -> Iterator[list[tuple[int, int]]]:
    """Section 4, image by image: for each batch, the digit and the chunk of each of its images."""
    unused = [6] * 9
    for _ in range(3):
        for first, second in ((0, 1), (1, 2), (2, 3), (3, 4), (4, 5), (5, 6), (6, 7), (7, 8), (8, 0)):
            left = {}
            for digit in (first, second):
                unused[digit] -= 1
                left[digit] = len(chunk_of(list(range(counts[digit])), unused[digit]))
            while left[first] > 0 and left[second] > 0:
                of_first = round(batch_size * left[first] / (left[first] + left[second]))
                of_first = min(of_first, left[first])
                of_second = min(batch_size - of_first, left[second])
                yield [(first, unused[first])] * of_first + [(second, unused[second])] * of_second
                left[first] -= of_first
                left[second] -= of_second


def batches_of(served: ServedStream) -> list[Tensor]:
    return list(served.images.labels.split(list(served.batch_sizes)))


@pytest.fixture(scope="module")
def counts(fake_mnist: TrainTest) -> list[int]:
    return [int((fake_mnist.train.labels == digit).sum()) for digit in range(9)]


@pytest.mark.parametrize("replacement", [True, False])
@pytest.mark.parametrize("batch_size", [1, 4, 16])
def test_mnist_360_serves_the_digits_in_the_stated_proportions(
    fake_mnist: TrainTest, counts: list[int], batch_size: int, replacement: bool
) -> None:
    served = serve_training(fake_mnist.train, batch_size, replacement)
    expected = [Counter(digit for digit, _ in batch) for batch in served_by_the_rules(counts, batch_size)]
    assert served.batch_sizes == tuple(sum(batch.values()) for batch in expected)
    assert [Counter(labels.tolist()) for labels in batches_of(served)] == expected


def origins(
    served: ServedStream, train: ImageSet, counts: list[int], batch_size: int
) -> dict[tuple[int, int], list[int]]:
    """Which image of its chunk each served one is, when turned by the digit's counter; by digit and chunk."""
    chunks = [entry for batch in served_by_the_rules(counts, batch_size) for entry in batch]
    found: dict[tuple[int, int], list[int]] = {}
    for digit in range(9):
        members = (train.labels == digit).nonzero().flatten().tolist()
        images = served.images.images[served.images.labels == digit]
        own = [entry for entry in chunks if entry[0] == digit]
        assert len(images) == len(own)
        for number, (image, entry) in enumerate(zip(images, own, strict=True)):
            candidates = chunk_of(members, entry[1])
            angle = (digit - 1) * 60 + number * 360 / len(members)
            differences = (turned(train.images[candidates], angle) != image).float().mean(dim=(1, 2, 3))
            assert differences.min() < 0.02, (
                f"image {number} of digit {digit} is none of its chunk at {angle}"
            )
            found.setdefault(entry, []).append(candidates[int(differences.argmin())])
    return found


def test_mnist_360_serves_images_of_their_chunks_at_the_stated_angles_once_without_replacement(
    fake_mnist: TrainTest, counts: list[int]
) -> None:
    served = serve_training(fake_mnist.train, 4, replacement=False)
    for chosen in origins(served, fake_mnist.train, counts, 4).values():
        assert len(set(chosen)) == len(chosen)


def test_mnist_360_serves_images_of_their_chunks_at_the_stated_angles_with_replacement(
    fake_mnist: TrainTest, counts: list[int]
) -> None:
    served = serve_training(fake_mnist.train, 4)
    chosen = origins(served, fake_mnist.train, counts, 4).values()
    assert sum(len(of_chunk) - len(set(of_chunk)) for of_chunk in chosen) > 20


def test_mnist_360_has_no_nine_and_knows_no_tasks(mnist_root: Path, fake_mnist: TrainTest) -> None:
    stream = make_stream(StreamConfig("mnist-360", batch_size=16), mnist_root)
    assert (stream.scenario, stream.num_classes, stream.has_boundaries) == ("general", 9, False)
    assert len(stream.segments) == len(stream.tests) == 1
    (segment,) = stream.segments
    assert set(segment.train.labels.tolist()) == set(range(9))
    served = serve_training(fake_mnist.train, 16)
    assert segment.batch_sizes == served.batch_sizes and same(segment.train, served.images)


def test_mnist_360_can_be_told_not_to_replace(mnist_root: Path, fake_mnist: TrainTest) -> None:
    stream = make_stream(StreamConfig("mnist-360", batch_size=16, replacement=False), mnist_root)
    assert same(stream.segments[0].train, serve_training(fake_mnist.train, 16, replacement=False).images)


def test_the_test_of_mnist_360_turns_each_digit_once_around(fake_mnist: TrainTest) -> None:
    test, served = fake_mnist.test, serve_test(fake_mnist.test)
    expected_images, expected_labels = [], []
    for digit in range(9):
        members = test.images[test.labels == digit]
        for number, image in enumerate(members):
            expected_images.append(turned(image, number * 360 / len(members)))
            expected_labels.append(digit)
    assert served.labels.tolist() == expected_labels
    assert differing(served.images, torch.stack(expected_images)) < 0.005


def test_too_few_images_for_mnist_360_are_refused(fake_mnist: TrainTest) -> None:
    few = first_of_each(fake_mnist.train, [36, 36, 35, 36, 36, 36, 36, 36, 36])
    with pytest.raises(TenfoldError, match=r"at least 36 training images of each digit"):
        serve_training(few, 4)


@pytest.mark.parametrize("count", [36, 41])
def test_the_fewest_images_are_enough_for_mnist_360(fake_mnist: TrainTest, count: int) -> None:
    train = fake_mnist.train
    images = ImageSet(train.images[:9].repeat(count, 1, 1, 1), torch.arange(9).repeat(count))
    served = serve_training(images, 4)
    assert list(served.batch_sizes) == [len(batch) for batch in served_by_the_rules([count] * 9, 4)]


# Blurry boundaries


def phases_of_classes(stream: Stream, num_classes: int) -> np.ndarray:
    """[phases, classes]: how many images of each class come in each phase."""
    return np.stack(
        [np.bincount(segment.train.labels.numpy(), minlength=num_classes) for segment in stream.segments]
    )


@pytest.fixture(scope="module")
def many(make_images: Callable[..., ImageSet]) -> TrainTest:
    return TrainTest(make_images(6000, num_classes=12), make_images(120, num_classes=12, seed=1), {})


def test_blurry_phases_serve_every_image_once(many: TrainTest) -> None:
    assert together(blurry_stream("mine", many, 3, PLAIN)) == as_multiset(many.train)


def test_half_of_the_classes_come_in_their_phase_only(many: TrainTest) -> None:
    stream = blurry_stream("mine", many, 3, PLAIN)
    table = phases_of_classes(stream, 12)
    assert ((table > 0).sum(axis=0) == 1).sum() == 6
    for phase, segment in enumerate(stream.segments):
        assert set(table.argmax(axis=0)[list(segment.classes)]) == {phase}


@pytest.mark.parametrize("blur", [0.1, 0.4])
def test_the_other_classes_spread_their_share_evenly_over_the_other_phases(
    many: TrainTest, blur: float
) -> None:
    table = phases_of_classes(blurry_stream("mine", many, 4, PLAIN, disjoint=0.25, blur=blur), 12)
    blurred = table[:, (table > 0).sum(axis=0) > 1]
    assert blurred.shape[1] == 9
    strays = np.sort(blurred, axis=0)[:-1]
    total = blurred.sum()
    assert abs(strays.sum() / total - blur) < 5 * math.sqrt(blur * (1 - blur) / total)
    expected = 500 * blur / 3  # of each class in each other phase
    assert np.abs(strays - expected).max() < 5 * math.sqrt(expected)


@pytest.mark.parametrize(("disjoint", "blur"), [(1.0, 0.5), (0.0, 0.0)])
def test_without_blur_each_class_comes_in_one_phase(many: TrainTest, disjoint: float, blur: float) -> None:
    table = phases_of_classes(blurry_stream("mine", many, 3, PLAIN, disjoint, blur), 12)
    assert ((table > 0).sum(axis=0) == 1).all()


def test_blurry_tests_divide_the_classes_among_the_phases(many: TrainTest) -> None:
    stream = blurry_stream("mine", many, 5, PLAIN)
    assert sorted(label for classes in stream.test_classes for label in classes) == list(range(12))
    for test, classes, segment in zip(stream.tests, stream.test_classes, stream.segments, strict=True):
        assert set(test.labels.tolist()) == set(classes) == set(segment.classes)


def test_blurry_phases_are_not_announced(many: TrainTest) -> None:
    assert not blurry_stream("mine", many, 3, PLAIN).has_boundaries


def test_blurry_streams_repeat_with_their_seed() -> None:
    config = StreamConfig("blurry-digits", seed=4)
    streams = [make_stream(replace(config, seed=seed)) for seed in (4, 4, 5)]
    first, again, other = (together(replace(s, segments=s.segments[:1])) for s in streams)
    assert first == again != other


@pytest.mark.parametrize("tasks", [0, 1, 13])
def test_phases_that_the_classes_cannot_fill_are_refused(many: TrainTest, tasks: int) -> None:
    with pytest.raises(TenfoldError, match=f"12 classes make 2 to 12 phases, not {tasks}"):
        blurry_stream("mine", many, tasks, PLAIN)


# Held-out images


def test_a_tenth_is_held_out_and_none_of_it_trained_on(many: TrainTest) -> None:
    train, held = hold_out(many, seed=0)
    assert (len(train), len(held)) == (5400, 600)
    assert as_multiset(train) + as_multiset(held) == as_multiset(many.train)


def test_what_is_held_out_is_random_and_repeats_with_the_seed(many: TrainTest) -> None:
    held = [hold_out(many, seed)[1] for seed in (0, 0, 1)]
    assert same(held[0], held[1]) and not same(held[0], held[2])
    assert np.bincount(held[0].labels.numpy()).min() > 20  # of 50 of each class on average


def test_validation_tests_on_held_out_training_images(digits: Stream) -> None:
    stream = make_stream(StreamConfig("s-digits", validation=True))
    tests = sum(map(as_multiset, stream.tests), Counter())
    assert together(stream) + tests == together(digits)
    assert sum(map(len, stream.tests)) == round(0.1 * 1347)


# Image sets


def test_an_unknown_data_set_is_refused() -> None:
    with pytest.raises(TenfoldError, match=r"^unknown data set 'svhn'; choose one of digits, mnist, "):
        load_image_sets("svhn")


def check_refusal(name: str, root: Path, *parts: str) -> None:
    """One sentence that names what is meant."""
    with pytest.raises(TenfoldError) as caught:
        load_image_sets(name, root)
    message = str(caught.value)
    assert "\n" not in message and all(part in message for part in parts), message


@pytest.mark.parametrize(
    ("name", "folder"),
    [
        ("mnist", ""),
        ("cifar-10", ""),
        ("cifar-100", ""),
        ("tiny-imagenet", "tiny-imagenet-200"),
        ("cifar-10-mosaic", "cifar10"),
    ],
)
def test_a_missing_data_set_is_refused_and_its_folder_named(name: str, folder: str, tmp_path: Path) -> None:
    check_refusal(name, tmp_path, str(tmp_path / folder))
    assert not list(tmp_path.iterdir()), "nothing is left behind"


@pytest.mark.parametrize("name", ["train-labels-idx1-ubyte.gz", "t10k-images-idx3-ubyte.gz"])
def test_a_missing_file_of_mnist_is_named(mnist_root: Path, name: str) -> None:
    (mnist_root / "mnist" / name).unlink()
    check_refusal("mnist", mnist_root, name, str(mnist_root / "mnist"))


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda content: b"",
    "no archive": lambda content: b"<html>not found</html>",
    "cut off": lambda content: content[: len(content) // 2],
    "archive of nothing": lambda content: gzip.compress(b""),
    "archive of something else": lambda content: gzip.compress(b"something else, long enough for a header"),
    "images cut off": lambda content: gzip.compress(gzip.decompress(content)[:-100]),
    "block spoilt": lambda content: content[:10] + b"\xff" * 40 + content[50:],
    "checksum spoilt": lambda content: content[:-8] + b"\x00" * 8,
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_file_of_mnist_is_named(mnist_root: Path, damage: str) -> None:
    path = mnist_root / "mnist" / "train-images-idx3-ubyte.gz"
    path.write_bytes(DAMAGE[damage](path.read_bytes()))
    check_refusal("mnist", mnist_root, str(path), "damaged")


def test_images_without_a_label_each_are_refused(make_images: Callable[..., ImageSet]) -> None:
    images = make_images(5)
    with pytest.raises(TenfoldError, match="and 4 labels"):
        ImageSet(images.images, images.labels[:4])


def test_images_that_are_no_bytes_are_refused(make_images: Callable[..., ImageSet]) -> None:
    images = make_images(5)
    with pytest.raises(TenfoldError, match=r"not torch.float32"):
        ImageSet(images.images.float(), images.labels)


WNIDS = ["n03000000", "n01000000", "n02000000"]


@pytest.fixture
def tiny_imagenet(tmp_path: Path) -> Path:
    """Two training images of each of three classes, and a test image of each; every image is of one grey."""
    root = tmp_path / "tiny-imagenet-200"
    (root / "val" / "images").mkdir(parents=True)
    (root / "wnids.txt").write_text("\n".join(WNIDS) + "\n")
    lines = []
    for number, wnid in enumerate(WNIDS):
        folder = root / "train" / wnid / "images"
        folder.mkdir(parents=True)
        for part in range(2):
            grey = Image.new("L", (64, 64), 60 * number + 20 * part)  # some of its JPEGs are grey
            (grey if part else grey.convert("RGB")).save(folder / f"{wnid}_{part}.JPEG")
        Image.new("RGB", (64, 64), (60 * number, 0, 0)).save(root / "val" / "images" / f"val_{number}.JPEG")
        lines.append(f"val_{number}.JPEG\t{wnid}\t0\t32\t44\t62\n")
    (root / "val" / "val_annotations.txt").write_text("".join(lines))
    return root


def test_tiny_imagenet_is_read_as_its_archive_unpacks(tiny_imagenet: Path) -> None:
    sets = load_image_sets("tiny-imagenet", tiny_imagenet.parent)
    assert sets.train.image_shape == sets.test.image_shape == (3, 64, 64)
    brightness = sets.train.images.float().mean(dim=(1, 2, 3)).round().long()
    assert sorted(zip(sets.train.labels.tolist(), brightness.tolist(), strict=True)) == [
        (0, 60),
        (0, 80),
        (1, 120),
        (1, 140),
        (2, 0),
        (2, 20),
    ]
    red = sets.test.images[:, 0].float().mean(dim=(1, 2))
    for label, expected in ((0, 60), (1, 120), (2, 0)):  # JPEG keeps colours to a few levels
        assert float(red[sets.test.labels == label]) == pytest.approx(expected, abs=4)


@pytest.mark.parametrize("missing", ["val/val_annotations.txt", "val/images/val_1.JPEG"])
def test_a_half_unpacked_tiny_imagenet_is_refused(tiny_imagenet: Path, missing: str) -> None:
    (tiny_imagenet / missing).unlink()
    check_refusal("tiny-imagenet", tiny_imagenet.parent, "Tiny ImageNet")


def test_a_tiny_imagenet_without_training_images_is_refused(tiny_imagenet: Path) -> None:
    shutil.rmtree(tiny_imagenet / "train")
    check_refusal("tiny-imagenet", tiny_imagenet.parent, "Tiny ImageNet")


def test_an_incomplete_mosaic_is_refused(tmp_path: Path) -> None:
    (tmp_path / "cifar10").mkdir()
    Image.new("RGB", (1280, 800)).save(tmp_path / "cifar10" / "train_49.webp", lossless=True)
    check_refusal("cifar-10-mosaic", tmp_path, str(tmp_path / "cifar10"))


# CIFAR-10 in sheets


@pytest.fixture(scope="module")
def mosaic(data_root: Path) -> TrainTest:
    if not (data_root / "cifar10" / "train_labels.npy").exists():
        pytest.skip("needs the sheets of CIFAR-10")
    return load_image_sets("cifar-10-mosaic", data_root)


def test_the_mosaic_has_the_published_counts(mosaic: TrainTest) -> None:
    sets = {"train": mosaic.train, "test": mosaic.test, **mosaic.further_tests}
    assert {name: len(images) for name, images in sets.items()} == {
        "train": 50_000,
        "test": 1000,
        "jpeg": 10_000,
    }
    assert all(images.image_shape == (3, 32, 32) for images in sets.values())
    assert mosaic.train.labels.bincount().tolist() == [5000] * 10
    assert mosaic.further_tests["jpeg"].labels.bincount().tolist() == [1000] * 10


def test_the_mosaic_has_the_published_labels_and_means(mosaic: TrainTest) -> None:
    assert mosaic.train.labels[:10].tolist() == [6, 9, 9, 4, 1, 1, 2, 7, 8, 3]
    means = torch.stack([channel.double().mean() for channel in mosaic.train.images.unbind(1)]) / 255
    torch.testing.assert_close(
        means, torch.tensor([0.49140, 0.48216, 0.44653], dtype=torch.float64), rtol=0, atol=1e-5
    )


def test_the_exact_test_images_are_those_of_the_jpegs_in_their_class(mosaic: TrainTest) -> None:
    jpeg, exact = mosaic.further_tests["jpeg"], mosaic.test[torch.arange(30)]
    for image, label in zip(exact.images.float(), exact.labels.tolist(), strict=True):
        candidates = jpeg.images[jpeg.labels == label].float()
        error = (candidates - image).square().mean(dim=(1, 2, 3)).min()
        assert 10 * math.log10(255**2 / float(error)) > 24


def test_the_mosaic_stream_holds_a_tenth_out_beside_both_test_sets(
    mosaic: TrainTest, data_root: Path
) -> None:
    stream = make_stream(StreamConfig("s-cifar-10-mosaic"), data_root)
    assert sum(len(segment.train) for segment in stream.segments) == 45_000
    assert sum(map(len, stream.tests)) == len(mosaic.test)
    further = {name: sum(map(len, tests)) for name, tests in stream.further_tests.items()}
    assert further == {"jpeg": 10_000, "held_out": 5000}
