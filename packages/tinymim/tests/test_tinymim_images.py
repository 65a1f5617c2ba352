"""Images in memory and as files: how they are split, what is done to them, and what decides their order."""

from __future__ import annotations

import hashlib
import itertools
import math
import pickle
import random
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.data.auto_augment import RandAugment
from timm.data.random_erasing import RandomErasing
from torch import Tensor
from torchvision.datasets import CIFAR10
from torchvision.transforms import InterpolationMode

from tenfold.shared.logging import TenfoldError
from tenfold.tinymim.augmentation import CropConfig
from tenfold.tinymim.config import DataConfig, FinetuneConfig
from tenfold.tinymim.image_files import (
    FileBatches,
    FileViews,
    finetuning_transform,
    judging_loader,
    pretraining_transform,
    testing_transform,
    whole_batches,
)
from tenfold.tinymim.image_sets import (
    ImagesInMemory,
    MemoryBatches,
    MemoryViews,
    Split,
    judging_batches,
    load_in_memory,
)

CPU = torch.device("cpu")
PLAIN = CropConfig((1.0, 1.0), (1.0, 1.0), False)
"""Nothing is cropped or mirrored."""
testing_transform.__test__ = False  # it is no test


def save(path: Path, pixels: np.ndarray[Any, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.astype(np.uint8)).save(path)


def smooth(seed: int, height: int, width: int) -> np.ndarray[Any, Any]:
    """A picture of soft colours."""
    coarse = np.random.RandomState(seed).randint(0, 256, (4, 4, 3)).astype(np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of five pictures each."""
    root = tmp_path_factory.mktemp("imagenet")
    for label, number in itertools.product(range(2), range(5)):
        save(root / f"class{label}" / f"{number}.png", smooth(10 * label + number, 40, 52))
    return root


def grey_set(count: int = 12, side: int = 8) -> ImagesInMemory:
    """Pictures in middling grey, each another, that no moderate change of colours cuts off."""
    generator = torch.Generator().manual_seed(0)
    pixels = 0.3 + 0.2 * torch.rand(count, 1, side, side, generator=generator)
    return ImagesInMemory(pixels, torch.arange(count) % 3, 3, (0.3,) * 3, (0.38,) * 3)


def numbered_set(count: int) -> ImagesInMemory:
    """Picture i is all i, in bytes."""
    pixels = torch.arange(count, dtype=torch.uint8)[:, None, None, None].expand(-1, 3, 8, 8)
    return ImagesInMemory(pixels, torch.arange(count), count, (0.0,) * 3, (1.0,) * 3)


def interleaved(parts: Iterable[Tensor]) -> Tensor:
    """Rank 0's first, rank 1's first, rank 0's second."""
    return torch.stack(list(parts), dim=1).flatten(0, 1)


def assert_same_epochs(mine: Iterable[Any], theirs: Iterable[Any]) -> None:
    for first, second in zip(mine, theirs, strict=True):
        for one, other in zip(first, second, strict=True):
            assert torch.equal(one, other)


# -- digits --------------------------------------------------------------------------------------------


def digits(labelled: float = 100 / 1297, side: int = 24) -> Split:
    return load_in_memory(DataConfig("digits", side, labelled=labelled), Path("nowhere"))


def test_digits_are_split_by_a_fixed_permutation() -> None:
    split, bunch = digits(side=8), load_digits()
    torch.manual_seed(0)
    order = torch.randperm(1797)
    assert [len(part.labels) for part in (split.train, split.labelled, split.test)] == [1297, 100, 500]
    pixels = torch.from_numpy(bunch.images / 16).float()[:, None]
    targets = torch.from_numpy(bunch.target)
    for part, index in (
        (split.train, order[:1297]),
        (split.labelled, order[:100]),
        (split.test, order[1297:]),
    ):
        torch.testing.assert_close(part.images, pixels[index])  # 8 pixels stay 8 pixels
        assert torch.equal(part.labels, targets[index])
        assert part.labels.dtype == torch.int64
        assert part.num_classes == 10


def test_digits_are_enlarged_by_bicubic_interpolation() -> None:
    small, large = digits(side=8).test.images, digits().test.images
    assert large.shape == (500, 1, 24, 24)
    torch.testing.assert_close(large[:, :, 1::3, 1::3], small, atol=1e-5, rtol=0)  # centres of pixels
    assert large.min() < -0.01  # it overshoots, as linear interpolation does not
    assert large.max() > 1.01


def test_digits_are_normalised_in_three_equal_channels() -> None:
    data = digits(side=8).test
    found = data.ready(data.pixels(torch.arange(3)))
    assert found.shape == (3, 3, 8, 8)
    for channel in range(3):
        torch.testing.assert_close(found[:, channel], (data.images[:3, 0] - 0.3) / 0.38)


def test_all_digits_can_have_labels() -> None:
    split = digits(labelled=1.0)
    assert torch.equal(split.labelled.images, split.train.images)


# -- clothing128 ---------------------------------------------------------------------------------------


def test_clothing128_has_its_3068_and_713_images(data_root: Path) -> None:
    if not (data_root / "clothing128" / "train").is_dir():
        pytest.skip("needs clothing128 in the folder of further data")
    split = load_in_memory(DataConfig("clothing128", 112), data_root)
    assert split.train.images.shape == (3068, 3, 128, 128)
    assert split.train.images.dtype == torch.uint8
    assert split.test.images.shape == (713, 3, 128, 128)
    assert split.train.num_classes == split.test.num_classes == 10
    assert split.labelled is split.train
    assert sorted(split.test.labels.unique().tolist()) == list(range(10))


@pytest.fixture
def clothing(tmp_path: Path) -> Path:
    """Four training images, one for validation and two for testing, of different shapes."""
    shapes = {
        "train": [(128, 160), (200, 128)] * 2,
        "validation": [(128, 128)],
        "test": [(64, 96), (256, 300)],
    }
    for part, each in shapes.items():
        for number, (height, width) in enumerate(each):
            for label in ("coat", "hat"):
                pixels = np.full((height, width, 3), (40 * number + 30, 200, 90))
                save(tmp_path / "clothing128" / part / label / f"{number}.png", pixels)
    return tmp_path


def test_clothing_of_any_shape_becomes_squares_of_128_pixels(clothing: Path) -> None:
    split = load_in_memory(DataConfig("clothing128", 112), clothing)
    assert split.train.images.shape == (8, 3, 128, 128)
    assert split.test.images.shape == (6, 3, 128, 128)  # validation and test
    assert split.test.labels.tolist() == [0, 1, 0, 0, 1, 1]
    assert split.train.images[:, 1].unique().tolist() == [200]


def test_clothing_is_cropped_at_the_centre(clothing: Path) -> None:
    pixels = np.zeros((128, 160, 3))
    pixels[:, 16:144] = 255
    save(clothing / "clothing128" / "validation" / "coat" / "0.png", pixels)
    found = load_in_memory(DataConfig("clothing128", 112), clothing).test.images[0]
    assert found.unique().tolist() == [255]


def test_clothing_is_normalised_by_its_training_images(clothing: Path) -> None:
    train = load_in_memory(DataConfig("clothing128", 112), clothing).train
    assert train.mean == pytest.approx([(30 + 70 + 110 + 150) / 4 / 255, 200 / 255, 90 / 255])
    assert train.std == pytest.approx([math.sqrt(2000) / 255, 0, 0], rel=1e-4, abs=1e-9)


def test_clothing_with_other_classes_in_a_part_is_one_sentence(clothing: Path) -> None:
    save(clothing / "clothing128" / "test" / "shoe" / "0.png", np.zeros((128, 128, 3)))
    with pytest.raises(TenfoldError, match="do not have the same classes: unpack clothing128 again"):
        load_in_memory(DataConfig("clothing128", 112), clothing)


def test_clothing_with_as_many_but_other_classes_in_a_part_is_one_sentence(clothing: Path) -> None:
    (clothing / "clothing128" / "test" / "hat").rename(clothing / "clothing128" / "test" / "boot")
    with pytest.raises(TenfoldError, match="do not have the same classes: unpack clothing128 again"):
        load_in_memory(DataConfig("clothing128", 112), clothing)


@pytest.mark.parametrize("missing", ["clothing128", "clothing128/validation"])
def test_missing_clothing_is_one_sentence_with_advice(clothing: Path, missing: str) -> None:
    (clothing / missing).rename(clothing / "elsewhere")
    with pytest.raises(
        TenfoldError, match="train/, validation/ and test/ into clothing128/ below --data-root"
    ):
        load_in_memory(DataConfig("clothing128", 112), clothing)


# -- CIFAR-10 ------------------------------------------------------------------------------------------


@pytest.fixture
def cifar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two files of 30 training images and one of 10 test images in torchvision's format, three of each class."""
    base = tmp_path / CIFAR10.base_folder
    base.mkdir()
    digests = {}
    for number, (name, count) in enumerate((("data_batch_1", 30), ("data_batch_2", 30), ("test_batch", 10))):
        pixels = np.random.RandomState(number).randint(0, 256, (count, 3072)).astype(np.uint8)
        pixels[:, :32] = number  # the first row of red
        content = pickle.dumps({"data": pixels, "labels": [label % 10 for label in range(count)]})
        (base / name).write_bytes(content)
        digests[name] = hashlib.md5(content, usedforsecurity=False).hexdigest()
    meta = pickle.dumps({"label_names": list("abcdefghij")})
    (base / "meta").write_bytes(meta)
    monkeypatch.setattr(CIFAR10, "train_list", [list(item) for item in digests.items()][:2])
    monkeypatch.setattr(CIFAR10, "test_list", [list(item) for item in digests.items()][2:])
    digest = hashlib.md5(meta, usedforsecurity=False).hexdigest()
    monkeypatch.setattr(CIFAR10, "meta", {"filename": "meta", "key": "label_names", "md5": digest})
    return tmp_path


def test_cifar10_is_read_in_torchvisions_format(cifar: Path) -> None:
    split = load_in_memory(DataConfig("cifar10", 32), cifar)
    assert split.train.images.shape == (60, 3, 32, 32)
    assert split.test.images.shape == (10, 3, 32, 32)
    assert split.train.images[:, 0, 0].unique().tolist() == [0, 1]
    assert split.test.images[:, 0, 0].unique().tolist() == [2]
    assert split.test.labels.tolist() == list(range(10))
    assert split.labelled is split.train


def test_a_share_of_labels_has_as_many_of_every_class(cifar: Path) -> None:
    config = DataConfig("cifar10", 32, labelled=0.5)
    first, second = load_in_memory(config, cifar), load_in_memory(config, cifar)
    assert len(first.train.labels) == 60  # pre-training sees all
    assert first.labelled.labels.bincount().tolist() == [3] * 10
    assert torch.equal(first.labelled.images, second.labelled.images)
    known = {
        image.numpy().tobytes(): int(label)
        for image, label in zip(first.train.images, first.train.labels, strict=True)
    }
    for image, label in zip(first.labelled.images, first.labelled.labels, strict=True):
        assert known[image.numpy().tobytes()] == label


def test_missing_cifar10_is_one_sentence_with_advice(tmp_path: Path) -> None:
    with pytest.raises(TenfoldError, match=r"CIFAR-10 is not in .*--data-root, or --download"):
        load_in_memory(DataConfig("cifar10", 32), tmp_path)


def test_imagenet_does_not_fit_memory() -> None:
    with pytest.raises(TenfoldError, match="imagenet is read from files"):
        load_in_memory(DataConfig(), Path("nowhere"))


# -- views from memory ---------------------------------------------------------------------------------


def memory_views(
    data: ImagesInMemory | None = None,
    colours: float = 0.2,
    seed: int = 0,
    rank: int = 0,
    world_size: int = 1,
) -> MemoryViews:
    return MemoryViews(data or grey_set(), 8, CropConfig(), colours, 4, seed, rank, world_size)


def memory_batches(seed: int = 0, rank: int = 0, world_size: int = 1) -> MemoryBatches:
    return MemoryBatches(grey_set(), 8, CropConfig(), 4, seed, rank, world_size)


def file_batches(
    folder: Path, seed: int = 0, rank: int = 0, world_size: int = 1, workers: int = 0
) -> FileBatches:
    transform = pretraining_transform(8, CropConfig())
    return FileBatches(folder, transform, 4, workers, seed, rank, world_size)


def file_views(
    folder: Path, seed: int = 0, rank: int = 0, world_size: int = 1, workers: int = 0, colours: float = 0.4
) -> FileViews:
    return FileViews(folder, 8, CropConfig(), colours, 4, workers, seed, CPU, rank, world_size)


def assert_differ_in_colours_alone(teacher: Tensor, student: Tensor) -> None:
    """Of grey images, whose brightness and contrast are straight lines of the pixels as long as none is cut off."""
    slopes = []
    for theirs, mine in zip(teacher.flatten(1).double(), student.flatten(1).double(), strict=True):
        assert torch.stack((theirs, mine)).corrcoef()[0, 1] > 1 - 1e-6
        slopes.append(float(mine.std() / theirs.std()))
    assert min(slopes) < 0.97
    assert max(slopes) > 1.03  # each its own


def test_teacher_and_student_share_the_crop_and_differ_in_colours() -> None:
    pairs = list(memory_views().epoch(0))
    assert len(pairs) == 3
    teacher, student = (torch.cat(each) for each in zip(*pairs, strict=True))
    assert teacher.shape == student.shape == (12, 3, 8, 8)
    assert_differ_in_colours_alone(teacher, student)


def test_without_colours_both_see_the_same_tensor() -> None:
    for teacher, student in memory_views(colours=0.0).epoch(0):
        assert teacher is student


def test_the_teacher_does_not_see_colours_changed() -> None:
    with_colours, without = (next(memory_views(colours=colours).epoch(0))[0] for colours in (0.2, 0.0))
    assert torch.equal(with_colours, without)


def test_views_are_normalised() -> None:
    data = numbered_set(4)
    data = ImagesInMemory(data.images, data.labels, 4, (0.1, 0.2, 0.3), (0.5, 0.25, 0.2))
    ((teacher, _),) = MemoryViews(data, 8, PLAIN, 0.0, 4, 0).epoch(0)
    value = torch.tensor(sorted((teacher[:, 0, 0, 0] * 0.5 + 0.1).mul(255).tolist()))
    torch.testing.assert_close(value, torch.arange(4.0), atol=1e-4, rtol=0)
    torch.testing.assert_close(teacher[:, 1] * 0.25 + 0.2, teacher[:, 0] * 0.5 + 0.1)
    torch.testing.assert_close(teacher[:, 2] * 0.2 + 0.3, teacher[:, 0] * 0.5 + 0.1)


def test_an_epoch_sees_every_image_at_most_once_and_leaves_a_rest() -> None:
    batches = MemoryBatches(numbered_set(11), 8, PLAIN, 4, seed=3)
    seen = torch.cat([labels for _, labels in batches.epoch(0)]).tolist()
    assert batches.steps == 2
    assert len(seen) == len(set(seen)) == 8
    later = {label for epoch in range(6) for _, labels in batches.epoch(epoch) for label in labels.tolist()}
    assert later == set(range(11))


def test_labels_stay_with_their_images() -> None:
    for images, labels in MemoryBatches(numbered_set(12), 8, PLAIN, 4, seed=1).epoch(2):
        torch.testing.assert_close(images[:, 0, 3, 3] * 255, labels.float(), atol=1e-3, rtol=0)


MAKERS: dict[str, Callable[..., Any]] = {
    "views from memory": lambda folder, **which: memory_views(**which),
    "batches from memory": lambda folder, **which: memory_batches(**which),
    "views from files": file_views,
    "batches from files": file_batches,
}
of_all_kinds = pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS.keys())


@of_all_kinds
def test_two_processes_share_the_batches_of_one(make: Callable[..., Any], folder: Path) -> None:
    whole = list(make(folder).epoch(1))
    ranks = [list(make(folder, rank=rank, world_size=2).epoch(1)) for rank in range(2)]
    assert len(whole) >= 2
    for expected, *shares in zip(whole, *ranks, strict=True):
        for one, *parts in zip(expected, *shares, strict=True):
            torch.testing.assert_close(interleaved(parts), one, atol=1e-6, rtol=0)


@of_all_kinds
def test_a_seed_gives_the_same_epoch_again(make: Callable[..., Any], folder: Path) -> None:
    batches = make(folder)
    first = list(batches.epoch(2))
    list(batches.epoch(0))
    assert_same_epochs(batches.epoch(2), first)
    assert_same_epochs(make(folder).epoch(2), first)


@of_all_kinds
def test_epochs_and_seeds_differ(make: Callable[..., Any], folder: Path) -> None:
    first, later, other = (
        next(iter(make(folder, seed=seed).epoch(epoch)))[0].flatten(1)
        for seed, epoch in ((0, 0), (0, 1), (1, 0))
    )
    for different in (later, other):
        distances = torch.cdist(first.double(), different.double())
        assert distances.min() > 1e-3  # not even one image with the same crop


@of_all_kinds
def test_epochs_leave_the_global_generators_alone(make: Callable[..., Any], folder: Path) -> None:
    random.seed(3)
    np.random.seed(3)
    torch.manual_seed(3)
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    list(make(folder).epoch(0))
    assert random.getstate() == before[0]
    assert np.random.get_state()[1].tolist() == before[1]
    assert torch.equal(torch.get_rng_state(), before[2])


@of_all_kinds
def test_global_generators_do_not_matter(make: Callable[..., Any], folder: Path) -> None:
    torch.manual_seed(1)
    first = list(make(folder).epoch(0))
    torch.manual_seed(2)
    random.seed(2)
    np.random.seed(2)
    assert_same_epochs(make(folder).epoch(0), first)


@pytest.mark.parametrize("kind", [MemoryViews, MemoryBatches])
def test_fewer_images_than_a_batch_are_one_sentence(kind: type) -> None:
    colours = (0.0,) if kind is MemoryViews else ()
    with pytest.raises(TenfoldError, match="12 images are no batch of 13: lower the batch size"):
        kind(grey_set(), 8, PLAIN, *colours, 13, 0)


def test_steps_are_whole_batches() -> None:
    assert [whole_batches(12, size) for size in (1, 5, 6, 12)] == [12, 2, 2, 1]


# -- judging -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_every_image_judges_once_whoever_sees_it(world_size: int) -> None:
    data, seen = numbered_set(11), []
    for rank in range(world_size):
        for images, labels in judging_batches(data, 8, 4, rank, world_size):
            assert 0 < len(images) == len(labels) <= 4
            torch.testing.assert_close(images[:, 0, 0, 0] * 255, labels.float())
            seen += labels.tolist()
    assert sorted(seen) == list(range(11))


def test_images_of_the_right_size_are_judged_as_they_are() -> None:
    data = grey_set()
    found = torch.cat([images for images, _ in judging_batches(data, 8, 5)])
    assert torch.equal(found, data.ready(data.images))


def test_clothing_is_judged_by_its_centre() -> None:
    pixels = torch.arange(128).expand(2, 3, 128, 128).to(torch.uint8)
    data = ImagesInMemory(pixels, torch.arange(2), 2, (0.0,) * 3, (1.0,) * 3)
    ((images, _),) = judging_batches(data, 112)
    assert images.shape == (2, 3, 112, 112)
    torch.testing.assert_close(images[0, 0, 5] * 255, torch.arange(8.0, 120.0))


@pytest.mark.parametrize("size", [16, 6])
def test_images_of_another_size_are_resized_before_they_judge(size: int) -> None:
    ((images, _),) = judging_batches(numbered_set(5), size)
    assert images.shape == (5, 3, size, size)
    expected = torch.arange(5.0)[:, None, None, None].expand_as(images)
    torch.testing.assert_close(images * 255, expected, atol=1e-4, rtol=0)


# -- files ---------------------------------------------------------------------------------------------


def test_pretraining_crops_resizes_and_mirrors_to_bytes() -> None:
    crop, flip, _ = pretraining_transform(224, CropConfig()).transforms
    assert (tuple(crop.size), crop.interpolation) == ((224, 224), InterpolationMode.BICUBIC)
    assert tuple(crop.scale) == (0.2, 1.0)
    assert tuple(crop.ratio) == pytest.approx((3 / 4, 4 / 3))
    assert flip.p == 0.5
    found = pretraining_transform(24, CropConfig())(Image.fromarray(smooth(0, 40, 52)))
    assert found.shape == (3, 24, 24)
    assert found.dtype == torch.uint8


@pytest.mark.parametrize(("flip", "expected"), [(True, {0, 1}), (False, {0})])
def test_pretraining_mirrors_where_it_is_asked_to(flip: bool, expected: set[int]) -> None:
    ramp = Image.fromarray(np.tile(np.arange(0, 240, 6, dtype=np.uint8)[None, :, None], (40, 1, 3)))
    transform = pretraining_transform(8, CropConfig((0.8, 1.0), flip=flip))
    torch.manual_seed(0)
    found = [transform(ramp)[0, 4].float() for _ in range(12)]
    assert {int(row[0] > row[-1]) for row in found} == expected


def test_finetuning_augments_by_the_authors_recipe() -> None:
    transform = finetuning_transform(224, FinetuneConfig())
    crop, flip = transform.transforms[:2]
    assert tuple(crop.size) == (224, 224)
    assert tuple(crop.scale) == (0.08, 1.0)
    assert crop.interpolation == InterpolationMode.BICUBIC
    assert flip.p == 0.5
    assert "ColorJitter" not in repr(transform)
    (augment,) = (step for step in transform.transforms if isinstance(step, RandAugment))
    assert augment.num_layers == 2
    assert {(op.magnitude, op.magnitude_std) for op in augment.ops} == {(9, 0.5)}
    assert {"PosterizeIncreasing", "SolarizeIncreasing", "ColorIncreasing"} <= {op.name for op in augment.ops}
    (erasing,) = (step for step in transform.transforms if isinstance(step, RandomErasing))
    assert erasing.probability == 0.25
    assert erasing.per_pixel
    assert (erasing.min_count, erasing.max_count) == (1, 1)


def test_finetuning_normalises_and_can_do_without_augmentation() -> None:
    recipe = FinetuneConfig(randaugment="", erasing=0.0, crop_scale=(1.0, 1.0))
    transform = finetuning_transform(16, recipe)
    assert not any(isinstance(step, RandAugment | RandomErasing) for step in transform.transforms)
    found = transform(Image.new("RGB", (40, 40), (255, 0, 51)))
    expected = (torch.tensor([1, 0, 0.2]) - torch.tensor(IMAGENET_DEFAULT_MEAN)) / torch.tensor(
        IMAGENET_DEFAULT_STD
    )
    torch.testing.assert_close(found, expected[:, None, None].expand(3, 16, 16))


@pytest.mark.parametrize(("size", "short"), [(224, 256), (112, 128), (384, 384), (256, 256)])
def test_judged_files_are_resized_and_cropped_at_the_centre(size: int, short: int) -> None:
    picture = Image.fromarray(smooth(7, 300, 450))
    found = testing_transform(size)(picture)
    width = short * 450 // 300
    larger = picture.resize((width, short), Image.Resampling.BICUBIC)
    left, top = round((width - size) / 2), round((short - size) / 2)
    centre = np.asarray(larger.crop((left, top, left + size, top + size)), dtype=np.float32) / 255
    expected = (centre - np.float32(IMAGENET_DEFAULT_MEAN)) / np.float32(IMAGENET_DEFAULT_STD)
    torch.testing.assert_close(found, torch.from_numpy(expected).permute(2, 0, 1), atol=1e-5, rtol=1e-5)


def test_other_processes_decode_the_same_pictures(folder: Path) -> None:
    """Also with RandAugment and erasing, which draw from Python's, NumPy's and torch's generators."""
    transform = finetuning_transform(16, FinetuneConfig(erasing=1.0))
    alone, shared = (FileBatches(folder, transform, 4, workers, seed=5) for workers in (0, 2))
    for epoch in (0, 3):
        assert_same_epochs(shared.epoch(epoch), alone.epoch(epoch))


def test_a_resumed_run_sees_the_epoch_that_it_would_have_seen(folder: Path) -> None:
    alone, shared = file_views(folder), file_views(folder, workers=2)
    for epoch in range(3):
        expected = list(alone.epoch(epoch))
    assert_same_epochs(shared.epoch(2), expected)


def test_a_resumed_run_with_decoding_processes_draws_the_same_stochastic_depth(folder: Path) -> None:
    """As the loop does: seed the global generators, begin the epoch, then draw from them in the steps."""

    def draws(batches: FileBatches, epochs: range) -> Tensor:
        for epoch in epochs:
            torch.manual_seed(epoch)
            found = torch.cat([torch.rand(1) for _ in batches.epoch(epoch)])
        return found

    undisturbed, resumed = (file_batches(folder, workers=1) for _ in range(2))
    assert torch.equal(draws(undisturbed, range(2)), draws(resumed, range(1, 2)))


def test_views_from_files_share_the_crop_and_differ_in_colours(tmp_path: Path) -> None:
    for number in range(8):
        grey = 90 + smooth(number, 30, 30)[..., :1].repeat(3, 2) // 8
        save(tmp_path / "grey" / f"{number}.png", grey)
    found = list(file_views(tmp_path, colours=0.2).epoch(0))
    teacher, student = (torch.cat(each) for each in zip(*found, strict=True))
    mean, std = (torch.tensor(each)[:, None, None] for each in (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD))
    assert_differ_in_colours_alone(teacher * std + mean, student * std + mean)
    for theirs, mine in file_views(tmp_path, colours=0.0).epoch(0):
        assert theirs is mine


def test_batches_of_files_have_their_labels(folder: Path, tmp_path: Path) -> None:
    for label in range(3):
        for number in range(2):
            save(tmp_path / f"class{label}" / f"{number}.png", np.full((20, 20, 3), 50 * label))
    batches = FileBatches(tmp_path, pretraining_transform(8, CropConfig()), 2, 0, 0)
    assert (batches.steps, batches.num_classes) == (3, 3)
    for images, labels in batches.epoch(0):
        assert torch.equal(images[:, 0, 0, 0].long(), 50 * labels)


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_every_file_judges_once_whoever_sees_it(folder: Path, world_size: int) -> None:
    batches = [
        batch
        for rank in range(world_size)
        for batch in judging_loader(folder, 32, 0, batch_size=3, rank=rank, world_size=world_size)
    ]
    images, labels = (torch.cat(each) for each in zip(*batches, strict=True))
    assert images.shape == (10, 3, 32, 32)
    assert labels.bincount().tolist() == [5, 5]
    assert len({image.numpy().tobytes() for image in images}) == 10


@pytest.mark.parametrize("make", [file_batches, file_views, lambda folder: judging_loader(folder, 32, 0)])
@pytest.mark.parametrize("is_there", [True, False])
def test_a_folder_without_images_is_one_sentence_with_advice(
    make: Callable[[Path], Any], is_there: bool, tmp_path: Path
) -> None:
    with pytest.raises(
        TenfoldError, match=r"no images of classes in .*train/ and val/ into imagenet/ below --data-root"
    ):
        make(tmp_path if is_there else tmp_path / "nowhere")


def test_fewer_files_than_a_batch_are_one_sentence(folder: Path) -> None:
    with pytest.raises(TenfoldError, match="10 images are no batch of 64: lower the batch size"):
        FileBatches(folder, pretraining_transform(8, CropConfig()), 64, 0, 0)
