"""Views and augmentation against torchvision, image by image."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision.transforms import RandomResizedCrop
from torchvision.transforms import functional as tv

from tenfold.coca.augmentation import Preprocessing
from tenfold.coca.image_sets import ImageSet
from tenfold.coca.pretext_views import (
    ViewKind,
    common_side,
    crop_and_rotate,
    draw_boxes,
    draw_pretext_labels,
    scale_rotate,
    view_classes,
    zoom_rotate,
)
from tenfold.coca.streams import Stream
from tenfold.shared.logging import TenfoldError


def pictures(count: int, size: int, channels: int = 3, seed: int = 0) -> Tensor:
    return torch.randn(count, channels, size, size, generator=torch.Generator().manual_seed(seed))


def view_of(image: Tensor, label: int, box: list[int]) -> Tensor:
    """Section 1: the crop, resized bilinearly without antialiasing, then quarter turns, clockwise as displayed."""
    size = list(image.shape[-2:])
    return torch.rot90(tv.resized_crop(image, *box, size, antialias=False), label % 4, dims=(-1, -2))


def views_of(images: Tensor, labels: Tensor, boxes: Tensor) -> Tensor:
    rows = zip(images, labels.tolist(), boxes.tolist(), strict=True)
    return torch.stack([view_of(image, label, box) for image, label, box in rows])


@pytest.mark.parametrize("size", [8, 32])
@pytest.mark.parametrize("kind", ["zoom-rotate", "scale-rotate", "rotate"])
def test_views_are_those_of_torchvision(kind: ViewKind, size: int) -> None:
    count = 2 * view_classes(kind)
    images, labels = pictures(count, size), torch.arange(count) % view_classes(kind)
    boxes = torch.from_numpy(draw_boxes(kind, labels.numpy(), size, np.random.RandomState(0)))
    torch.testing.assert_close(
        crop_and_rotate(images, labels, boxes), views_of(images, labels, boxes), rtol=0, atol=1e-5
    )


def test_views_of_any_boxes_are_those_of_torchvision() -> None:
    images, labels = pictures(6, 10, channels=1), torch.tensor([0, 1, 2, 3, 1, 0])
    boxes = torch.tensor(
        [[0, 0, 10, 10], [9, 0, 1, 10], [2, 3, 5, 7], [4, 9, 6, 1], [1, 0, 9, 3], [5, 5, 5, 5]]
    )
    torch.testing.assert_close(
        crop_and_rotate(images, labels, boxes), views_of(images, labels, boxes), rtol=0, atol=1e-5
    )


@pytest.mark.parametrize(("side", "last"), [(6, 2), (8, 0)])
def test_views_of_squares_of_one_known_side_are_those_of_torchvision(side: int, last: int) -> None:
    images, labels = pictures(12, 8), torch.arange(12) % 4
    places = torch.randint(0, last + 1, (12, 2), generator=torch.Generator().manual_seed(1))
    boxes = torch.cat([places, torch.full((12, 2), side)], dim=1)
    views = crop_and_rotate(images, labels, boxes, side=side)
    torch.testing.assert_close(views, views_of(images, labels, boxes), rtol=0, atol=1e-5)


def test_one_turn_is_clockwise() -> None:
    image = torch.tensor([[1.0, 2.0], [3.0, 4.0]])[None, None]
    view = crop_and_rotate(image, torch.tensor([1]), torch.tensor([[0, 0, 2, 2]]))
    assert view[0, 0].tolist() == [[3, 1], [4, 2]]


@pytest.mark.parametrize("side", [None, 7, 8])
def test_views_are_not_written_into_the_images(side: int | None) -> None:
    images, labels = pictures(8, 8), torch.arange(8) % 4
    boxes = torch.tensor([[0, 0, side or 5, side or 5]]).repeat(8, 1)
    before = images.clone(), labels.clone(), boxes.clone()
    crop_and_rotate(images, labels, boxes, side).zero_()
    assert all(map(torch.equal, (images, labels, boxes), before))


@pytest.mark.parametrize("transform", [zoom_rotate, scale_rotate])
@pytest.mark.parametrize("shape", [(8, 6), (6, 8)])
def test_images_that_are_not_square_are_refused(
    transform: Callable[..., Tensor], shape: tuple[int, int]
) -> None:
    with pytest.raises(TenfoldError, match=f"need square images, not {shape[0]} x {shape[1]}"):
        transform(torch.zeros(2, 3, *shape), torch.zeros(2, dtype=torch.int64))


@pytest.mark.parametrize(("size", "side"), [(32, 26), (64, 52), (8, 7)])
def test_a_zoom_is_a_square_of_the_stated_side_that_may_lie_anywhere(size: int, side: int) -> None:
    count = 40 * (size - side + 1) ** 2
    boxes = draw_boxes("zoom-rotate", np.arange(count) % 4, size, np.random.RandomState(0))
    assert np.issubdtype(boxes.dtype, np.integer)
    assert (boxes[:, 2:] == side).all() and common_side("zoom-rotate", size) == side
    places = [tuple(place) for place in boxes[:, :2].tolist()]
    every = {(top, left) for top in range(size - side + 1) for left in range(size - side + 1)}
    assert set(places) == every
    assert max(places.count(place) for place in every) < 3 * 40


def test_torchvision_zooms_32_pixels_to_one_size() -> None:
    images = torch.zeros(1, 32, 32)
    torch.manual_seed(0)
    drawn = [RandomResizedCrop.get_params(images, [0.66, 0.67], [0.99, 1.0]) for _ in range(300)]
    (side,) = {tuple(box[2:]) for box in drawn}
    assert side == (common_side("zoom-rotate", 32),) * 2


def test_without_zoom_the_box_is_the_image() -> None:
    boxes = draw_boxes("rotate", np.arange(9) % 4, 28, np.random.RandomState(0))
    assert (boxes == [0, 0, 28, 28]).all()


@pytest.mark.parametrize("size", [64, 32, 8])
@pytest.mark.parametrize(("scale", "aspect"), [(1, [0.66, 0.67]), (2, [1.32, 1.33])])
def test_scales_1_and_2_are_the_crops_that_torchvision_falls_back_to(
    scale: int, aspect: list[float], size: int
) -> None:
    drawn = {
        tuple(RandomResizedCrop.get_params(torch.zeros(1, size, size), [0.99, 1.0], aspect))
        for _ in range(20)
    }
    boxes = draw_boxes("scale-rotate", 4 * scale + np.arange(4), size, np.random.RandomState(0))
    assert drawn == {tuple(box) for box in boxes.tolist()}


def test_the_16_ways_at_64_pixels_have_the_stated_crops() -> None:
    labels = np.repeat(np.arange(16), 30)
    boxes = draw_boxes("scale-rotate", labels, 64, np.random.RandomState(0))
    top, left, height, width = boxes[labels // 4 == 0].T
    assert (height == 52).all() and (width == 52).all()
    assert set(top.tolist()) == set(left.tolist()) == set(range(13))
    assert (boxes[labels // 4 == 1] == [0, 10, 64, 43]).all()
    assert (boxes[labels // 4 == 2] == [8, 0, 48, 64]).all()
    assert (boxes[labels // 4 == 3] == [0, 0, 64, 64]).all()


def test_there_are_4_and_16_transforms() -> None:
    assert [view_classes(kind) for kind in ("zoom-rotate", "rotate", "scale-rotate")] == [4, 4, 16]


@pytest.mark.parametrize("size", [1, 3, 20, 37, 64])
@pytest.mark.parametrize("num_classes", [4, 16])
def test_pretext_labels_are_balanced_to_within_one(size: int, num_classes: int) -> None:
    counts = np.bincount(
        draw_pretext_labels(size, num_classes, np.random.RandomState(0)), minlength=num_classes
    )
    assert len(counts) == num_classes and counts.sum() == size
    assert counts.max() - counts.min() <= 1


def test_pretext_labels_come_in_random_order() -> None:
    generator = np.random.RandomState(0)
    first, second = (draw_pretext_labels(64, 4, generator) for _ in range(2))
    assert first.tolist() != second.tolist() != (np.arange(64) % 4).tolist()


def check_one_of(view: Tensor, candidates: list[Tensor]) -> None:
    assert min(float((view - candidate).abs().max()) for candidate in candidates) < 1e-5


def test_zoom_rotate_draws_boxes_when_they_are_absent() -> None:
    images, labels = pictures(12, 8), torch.arange(12) % 4
    views = zoom_rotate(images, labels, generator=np.random.RandomState(0))
    for image, label, view in zip(images, labels.tolist(), views, strict=True):
        check_one_of(view, [view_of(image, label, [top, left, 7, 7]) for top in (0, 1) for left in (0, 1)])


def test_scale_rotate_draws_boxes_when_they_are_absent() -> None:
    images, labels = pictures(32, 8), torch.arange(32) % 16
    views = scale_rotate(images, labels, generator=np.random.RandomState(0))
    zooms = [[top, left, 7, 7] for top in (0, 1) for left in (0, 1)]
    # torchvision's fallback at 8 pixels: round(8 * 0.67) = 5 columns, round(8 / 1.32) = 6 rows, in the middle
    boxes = {0: zooms, 1: [[0, 1, 8, 5]], 2: [[1, 0, 6, 8]], 3: [[0, 0, 8, 8]]}
    for image, label, view in zip(images, labels.tolist(), views, strict=True):
        check_one_of(view, [view_of(image, label, box) for box in boxes[label // 4]])


@pytest.mark.parametrize("transform", [zoom_rotate, scale_rotate])
def test_drawn_views_repeat_with_the_generator(transform: Callable[..., Tensor]) -> None:
    images, labels = pictures(32, 16), torch.arange(32) % 4
    views = [transform(images, labels, generator=np.random.RandomState(seed)) for seed in (0, 0, 1)]
    assert torch.equal(views[0], views[1]) and not torch.equal(views[0], views[2])


COLOUR = ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2615))


@pytest.mark.parametrize(("padding", "flip"), [(4, True), (4, False), (0, True), (0, False)])
def test_augmentation_is_that_of_torchvision(
    make_images: Callable[..., ImageSet], padding: int, flip: bool
) -> None:
    images = make_images(20).images
    preprocessing = Preprocessing(255.0, *COLOUR, crop_padding=padding, flip=flip)
    crops = torch.from_numpy(preprocessing.draw(20, np.random.RandomState(0)))
    for image, (row, column, mirrored), ours in zip(
        images, crops.tolist(), preprocessing.apply(images, crops), strict=True
    ):
        expected = tv.crop(tv.pad(image, [padding]), row, column, 8, 8)
        expected = tv.hflip(expected) if mirrored else expected
        expected = tv.normalize(tv.to_tensor(expected.permute(1, 2, 0).numpy()), *COLOUR)
        torch.testing.assert_close(ours, expected, rtol=0, atol=1e-5)


def test_crops_reach_every_place_and_half_of_them_are_mirrored() -> None:
    crops = Preprocessing(crop_padding=4, flip=True).draw(4000, np.random.RandomState(0))
    assert {tuple(place) for place in crops[:, :2].tolist()} == {(r, c) for r in range(9) for c in range(9)}
    assert 0.45 < crops[:, 2].mean() < 0.55


def test_nothing_is_drawn_where_nothing_is_random(digits: Stream) -> None:
    generator = np.random.RandomState(5)
    preprocessing = digits.preprocessing
    crops = preprocessing.draw(10, generator)
    assert generator.randint(1 << 30) == np.random.RandomState(5).randint(1 << 30)
    images = digits.tests[0].images[:10]
    assert torch.equal(preprocessing.apply(images, torch.from_numpy(crops)), preprocessing.normalize(images))


def test_digits_are_normalised_as_stated(digits: Stream) -> None:
    images = digits.tests[0].images
    expected = (images.double() / 16 - 0.3053) / 0.3762
    torch.testing.assert_close(digits.preprocessing.normalize(images).double(), expected, rtol=0, atol=1e-5)


def test_one_mean_stands_for_all_channels(make_images: Callable[..., ImageSet]) -> None:
    images = make_images(4).images
    alike = Preprocessing(255.0, (0.4,) * 3, (0.3,) * 3).normalize(images)
    assert torch.equal(Preprocessing(255.0, (0.4,), (0.3,)).normalize(images), alike)


def test_augmentation_leaves_the_images_as_they_are(make_images: Callable[..., ImageSet]) -> None:
    images = make_images(6).images
    before = images.clone()
    preprocessing = Preprocessing(crop_padding=2, flip=True)
    preprocessing.apply(images, torch.from_numpy(preprocessing.draw(6, np.random.RandomState(0)))).zero_()
    assert torch.equal(images, before)
