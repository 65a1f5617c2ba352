"""From annotated images to what networks see: placement, support crops, episodes, and images for testing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pycocotools import mask as rle_masks
from pycocotools.coco import COCO
from scipy.stats import kstest
from torch import Tensor

from tenfold.reft.annotations import indexed, instance_mask
from tenfold.reft.config import DataConfig
from tenfold.reft.episodes import Episodes, Step, episode_loader
from tenfold.reft.evaluation_images import EvaluationBatch, EvaluationImages, evaluation_batches
from tenfold.reft.instance_images import ImageFiles, InstanceImages
from tenfold.reft.support_crops import support_crop
from tenfold.reft.support_pool import SupportPool
from tenfold.reft.transforms import (
    Placement,
    denormalise,
    large_scale_jitter,
    normalise,
    pad_to_multiple,
    place_image,
    place_masks,
    resize_short_side,
    short_side_size,
)
from tenfold.shared.logging import TenfoldError

PLAIN = DataConfig(
    image_size=64,
    jitter=(1.0, 1.0),
    flip=False,
    test_short_side=0,
    test_long_side=0,
    support_size=32,
    support_context=4,
    episode_classes=3,
    workers=0,
)
"""Images of 64 pixels a side are taken as they are."""
JITTERED = replace(PLAIN, jitter=(0.1, 2.0), flip=True)

Box = tuple[int, int, int, int]
"""Left, top, right and bottom in pixels."""


def sentence(action: Callable[[], Any]) -> str:
    """The error of something that cannot be done: one line."""
    with pytest.raises(TenfoldError) as caught:
        action()
    message = str(caught.value)
    assert "\n" not in message
    return message


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def rectangle(box: Box) -> list[list[float]]:
    left, top, right, bottom = box
    return [[left, top, right, top, right, bottom, left, bottom]]


def filled(box: Box, height: int, width: int) -> Tensor:
    mask = torch.zeros(height, width, dtype=torch.bool)
    mask[box[1] : box[3], box[0] : box[2]] = True
    return mask


def as_run_lengths(mask: Tensor) -> dict[str, Any]:
    encoded = rle_masks.encode(np.asfortranarray(mask.numpy(), dtype=np.uint8))
    return {"size": list(mask.shape), "counts": encoded["counts"].decode()}


def smooth(seed: int, height: int, width: int) -> Tensor:
    """A picture of soft colours, [3, height, width], uint8."""
    coarse = np.random.RandomState(seed).randint(0, 256, (4, 4, 3)).astype(np.uint8)
    large = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
    return torch.from_numpy(np.array(large)).permute(2, 0, 1).contiguous()


def red_of(image_id: int) -> int:
    """What tells an image from the others: all of its pixels have this red."""
    return 8 * image_id


def image_of(pixels: Tensor) -> int:
    """The number of the image that a normalised pixel [3] is from."""
    return int(denormalise(pixels[:, None, None])[0].item()) // 8


class Made:
    """Images below a folder: of each, its instances as (category, box); a negative category is a crowd."""

    def __init__(
        self,
        folder: Path,
        images: dict[int, Sequence[tuple[int, Box]]],
        sizes: dict[int, tuple[int, int]] | None,
    ) -> None:
        self.folder = folder
        entries: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        for number, instances in images.items():
            height, width = (sizes or {}).get(number, (64, 64))
            pixels = smooth(number, height, width)
            pixels[0] = red_of(number)
            Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(folder / f"{number}.png")
            entries.append({"id": number, "file_name": f"{number}.png", "height": height, "width": width})
            annotations.extend(
                {
                    "id": 100 * number + position,
                    "image_id": number,
                    "category_id": abs(category),
                    "iscrowd": int(category < 0),
                    "segmentation": rectangle(box),
                }
                for position, (category, box) in enumerate(instances, start=1)
            )
        categories = [{"id": number, "name": f"class {number}"} for number in range(1, 10)]
        self.coco: COCO = indexed({"images": entries, "annotations": annotations, "categories": categories})

    def instances(self, *category_ids: int, **options: Any) -> InstanceImages:
        return InstanceImages(self.coco, self.folder, category_ids, **options)

    def crop(self, image_id: int, position: int, data: DataConfig, context: int, flip: bool) -> Tensor:
        """The support image of an instance, cut out here."""
        image = np.array(Image.open(self.folder / f"{image_id}.png"))
        mask = instance_mask(self.coco.imgToAnns[image_id][position]["segmentation"], *image.shape[:2])
        pixels = torch.from_numpy(image).permute(2, 0, 1)
        return support_crop(pixels, mask, context, data.support_size, flip)[0]


Make = Callable[..., Made]


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory) -> Make:
    """Makes images with instances, each set in a folder of its own."""

    def make_images(
        images: dict[int, Sequence[tuple[int, Box]]], sizes: dict[int, tuple[int, int]] | None = None
    ) -> Made:
        return Made(tmp_path_factory.mktemp("images"), images, sizes)

    return make_images


A, B, C = (2, 3, 20, 30), (30, 5, 60, 25), (10, 35, 50, 60)
"""Boxes that do not overlap."""


@pytest.fixture(scope="module")
def seven(make: Make) -> Made:
    """Seven images; class 1 in five of them, class 2 in three, class 3 in one, class 4 in two."""
    return make(
        {
            3: [(1, A), (2, B)],
            1: [(1, C)],
            7: [(2, A), (1, B), (1, C)],
            2: [(3, B)],
            5: [(1, B)],
            6: [(4, A), (2, C)],
            9: [(4, C), (1, A)],
        }
    )


# -- placement -----------------------------------------------------------------------------------------

SIDES = st.integers(1, 400)


@settings(max_examples=100, deadline=None)
@given(SIDES, SIDES, st.integers(0, 10_000))
def test_a_jittered_image_is_scaled_within_range_and_cropped_inside(
    height: int, width: int, seed: int
) -> None:
    placement = large_scale_jitter((height, width), 128, (0.1, 2.0), True, generator(seed))
    longest = max(placement.resized)
    assert round(0.1 * 128) <= longest <= 256
    for new, old in zip(placement.resized, (height, width), strict=True):
        assert abs(new - old * longest / max(height, width)) <= 1.5
    spare = [max(side - 128, 0) for side in placement.resized]
    assert all(0 <= at <= most for at, most in zip(placement.corner, spare, strict=True))
    if min(spare) > 0:  # one number places the crop along both axes
        along = [at / most for at, most in zip(placement.corner, spare, strict=True)]
        assert abs(along[0] - along[1]) <= 0.5 / spare[0] + 0.5 / spare[1] + 1e-9


@pytest.mark.parametrize("original", [(30, 50), (500, 200), (64, 64)])
def test_equal_ends_at_one_only_fit_the_image(original: tuple[int, int]) -> None:
    placement = large_scale_jitter(original, 64, (1.0, 1.0), False, generator())
    factor = 64 / max(original)
    assert placement.resized == tuple(round(side * factor) for side in original)
    assert placement.corner == (0, 0) and not placement.flip


def test_scales_are_uniform_and_crops_anywhere() -> None:
    source = generator(1)
    draws = [large_scale_jitter((1000, 1000), 1000, (0.1, 2.0), True, source) for _ in range(1500)]
    scales = [draw.resized[0] / 1000 for draw in draws]
    assert kstest(scales, "uniform", args=(0.1, 1.9)).pvalue > 1e-3
    along = [draw.corner[0] / (draw.resized[0] - 1000) for draw in draws if draw.resized[0] > 1200]
    assert kstest(along, "uniform").pvalue > 1e-3


def test_half_of_the_images_are_mirrored_and_none_if_not_asked_for() -> None:
    source = generator(2)
    flips = [large_scale_jitter((10, 10), 10, (1.0, 1.0), True, source).flip for _ in range(1000)]
    assert 420 < sum(flips) < 580
    assert not any(large_scale_jitter((10, 10), 10, (1.0, 1.0), False, source).flip for _ in range(50))


def test_outside_the_image_a_square_is_128() -> None:
    image = smooth(0, 20, 30)
    placed = place_image(image, Placement((20, 30), (20, 30), (0, 0), 40, False))
    assert torch.equal(placed[:, :20, :30], image)
    assert (placed[:, 20:] == 128).all() and (placed[:, :, 30:] == 128).all()


def test_an_image_is_mirrored_then_cropped() -> None:
    image = smooth(1, 50, 60)
    placed = place_image(image, Placement((50, 60), (50, 60), (7, 9), 32, True))
    assert torch.equal(placed, image.flip(-1)[:, 7:39, 9:41])


@pytest.mark.parametrize("resized", [(25, 38), (100, 150)])
def test_an_image_is_resized_as_pillow_does(resized: tuple[int, int]) -> None:
    image = smooth(2, 50, 75)
    placed = place_image(image, Placement((50, 75), resized, (0, 0), 160, False))
    pillow = Image.fromarray(image.permute(1, 2, 0).numpy()).resize(resized[::-1], Image.Resampling.BILINEAR)
    expected = torch.from_numpy(np.array(pillow)).permute(2, 0, 1)
    assert (placed[:, : resized[0], : resized[1]].int() - expected.int()).abs().max() <= 1


@pytest.mark.parametrize("form", ["polygons", "run lengths"])
@pytest.mark.parametrize("flip", [False, True])
def test_a_rectangle_comes_to_lie_where_its_pixels_do(form: str, flip: bool) -> None:
    box = (4, 2, 12, 10)  # in 16 x 20 pixels, which are doubled and cropped to 24 x 24
    segmentation: Any = rectangle(box)
    if form == "run lengths":
        segmentation = as_run_lengths(filled(box, 16, 20))
    placement = Placement((16, 20), (32, 40), (5, 6), 24, flip)
    left, right = (8, 16) if flip else (4, 12)
    expected = filled((2 * left - 6, 0, 2 * right - 6, 2 * 10 - 5), 24, 24)
    assert torch.equal(place_masks([segmentation], placement)[0], expected)


@pytest.mark.parametrize(
    "segmentation", [rectangle((0, 0, 5, 5)), as_run_lengths(filled((0, 0, 5, 5), 16, 16))]
)
def test_an_instance_outside_the_crop_has_an_empty_mask(segmentation: Any) -> None:
    placement = Placement((16, 16), (32, 32), (12, 12), 16, False)
    assert not place_masks([segmentation], placement).any()


def test_masks_keep_their_order_whatever_their_form() -> None:
    boxes = [(0, 0, 3, 3), (4, 1, 9, 6), (2, 8, 5, 12), (9, 9, 12, 12)]
    masks = [filled(box, 12, 12) for box in boxes]
    mixed = [rectangle(box) if at % 2 else as_run_lengths(masks[at]) for at, box in enumerate(boxes)]
    assert torch.equal(
        place_masks(mixed, Placement((12, 12), (12, 12), (0, 0), 12, False)), torch.stack(masks)
    )


def test_parts_of_an_instance_are_joined() -> None:
    parts = rectangle((0, 0, 3, 3)) + rectangle((2, 2, 6, 6))
    found = place_masks([parts], Placement((8, 8), (8, 8), (0, 0), 8, False))[0]
    assert torch.equal(found, filled((0, 0, 3, 3), 8, 8) | filled((2, 2, 6, 6), 8, 8))


def test_no_masks_are_placed_as_none() -> None:
    assert place_masks([], Placement((8, 8), (8, 8), (0, 0), 16, False)).shape == (0, 16, 16)


CORNERS = st.lists(st.tuples(st.floats(0, 60), st.floats(0, 40)), min_size=3, max_size=8)


@settings(max_examples=80, deadline=None)
@given(CORNERS, st.integers(0, 10_000))
def test_a_placed_polygon_is_cut_out_of_that_in_the_whole_image(
    corners: list[tuple[float, float]], seed: int
) -> None:
    placement = large_scale_jitter((40, 60), 48, (0.5, 2.0), False, generator(seed))
    (height, width), (top, left) = placement.resized, placement.corner
    enlarged = [at for x, y in corners for at in (x * width / 60, y * height / 40)]
    cut = instance_mask([enlarged], height, width)[top : top + 48, left : left + 48]
    found = place_masks([[[at for corner in corners for at in corner]]], placement)[0]
    differs = found[: cut.shape[0], : cut.shape[1]] ^ cut
    # pycocotools rounds points to fifths of a pixel, those outside the square to the other side
    assert int(differs.sum()) <= 10 * len(corners)
    assert int(found.sum()) == int(found[: cut.shape[0], : cut.shape[1]].sum())


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000))
def test_polygons_and_run_lengths_agree_under_jitter(seed: int) -> None:
    corners = [20.0, 10.0, 90.0, 25.0, 110.0, 70.0, 55.0, 88.0, 12.0, 60.0]
    lengths = as_run_lengths(instance_mask([corners], 100, 120))
    placement = large_scale_jitter((100, 120), 128, (0.5, 2.0), True, generator(seed))
    polygons, decoded = place_masks([[corners], lengths], placement)
    assert int((polygons & decoded).sum()) >= 0.93 * int((polygons | decoded).sum())


# -- sizes for testing ---------------------------------------------------------------------------------


def test_bytes_survive_normalisation() -> None:
    pixels = torch.arange(256, dtype=torch.uint8).repeat(3, 1)[:, None]
    assert torch.equal(denormalise(normalise(pixels)), pixels)


def test_normalised_pixels_have_imagenets_mean_and_deviation() -> None:
    pixels = torch.tensor([[123.675, 182.07], [116.28, 173.4], [103.53, 160.905]])[:, None]
    expected = torch.tensor([[0.0, 1.0]]).expand(3, 1, 2)
    torch.testing.assert_close(normalise(pixels), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("original", "short", "long", "expected"),
    [
        ((480, 640), 800, 1333, (800, 1067)),
        ((640, 480), 800, 1333, (1067, 800)),
        ((300, 900), 800, 1333, (444, 1333)),
        ((1000, 1000), 800, 1333, (800, 800)),
        ((300, 900), 800, 0, (800, 2400)),
        ((300, 900), 0, 100, (300, 900)),
        ((1, 5000), 800, 1333, (1, 1333)),
    ],
)
def test_the_short_side_is_as_asked_unless_the_long_one_is_too_long(
    original: tuple[int, int], short: int, long: int, expected: tuple[int, int]
) -> None:
    assert short_side_size(original, short, long) == expected


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 3000), st.integers(1, 3000))
def test_one_side_of_a_test_image_meets_its_bound(height: int, width: int) -> None:
    new = short_side_size((height, width), 800, 1333)
    assert (min(new) == 800 and max(new) <= 1333) or (min(new) <= 800 and max(new) == 1333)
    assert abs(new[0] * width - new[1] * height) <= 0.5 * (height + width) + 1e-6 or min(new) == 1


def test_a_test_image_is_resized_as_pillow_does() -> None:
    image = smooth(3, 40, 61)
    found = resize_short_side(image, 60, 0)
    pillow = Image.fromarray(image.permute(1, 2, 0).numpy()).resize((92, 60), Image.Resampling.BILINEAR)
    expected = torch.from_numpy(np.array(pillow)).permute(2, 0, 1)
    assert found.dtype == torch.uint8 and (found.int() - expected.int()).abs().max() <= 1


def test_zero_leaves_an_image_as_it_is() -> None:
    image = smooth(3, 40, 61)
    assert torch.equal(resize_short_side(image, 0, 10), image)


@pytest.mark.parametrize(
    ("size", "padded"), [((33, 64), (64, 64)), ((1, 31), (32, 32)), ((64, 96), (64, 96))]
)
def test_padding_reaches_the_next_multiples_at_bottom_and_right(
    size: tuple[int, int], padded: tuple[int, int]
) -> None:
    images = torch.randn(2, 3, *size)
    found = pad_to_multiple(images, 32)
    assert found.shape == (2, 3, *padded)
    assert torch.equal(found[..., : size[0], : size[1]], images)
    assert not found[..., size[0] :, :].any() and not found[..., size[1] :].any()


# -- support crops -------------------------------------------------------------------------------------


def test_a_crop_is_the_box_with_its_context() -> None:
    image, mask = smooth(4, 40, 50), filled((20, 10, 30, 20), 40, 50)
    pixels, cut = support_crop(image, mask, 5, 20)
    torch.testing.assert_close(pixels, normalise(image[:, 5:25, 15:35]))
    assert torch.equal(cut, filled((5, 5, 15, 15), 20, 20))


def test_context_ends_with_the_image_and_the_rest_of_the_square_is_the_mean() -> None:
    image, mask = smooth(4, 40, 50), filled((0, 30, 20, 40), 40, 50)
    pixels, cut = support_crop(image, mask, 10, 30)  # 20 x 30 pixels remain
    torch.testing.assert_close(pixels[:, :20], normalise(image[:, 20:40, :30]))
    assert not pixels[:, 20:].any()
    assert torch.equal(cut, filled((0, 10, 20, 20), 30, 30))


@pytest.mark.parametrize("box", [(10, 10, 20, 40), (10, 10, 45, 18)])
def test_the_longer_side_fills_the_square(box: Box) -> None:
    pixels, cut = support_crop(smooth(5, 50, 60), filled(box, 50, 60), 0, 48)
    sides = (box[3] - box[1], box[2] - box[0])
    height, width = (round(48 * side / max(sides)) for side in sides)
    assert torch.equal(cut, filled((0, 0, width, height), 48, 48))
    assert pixels.shape == (3, 48, 48) and not pixels[:, height:].any() and not pixels[:, :, width:].any()


def test_a_mirrored_crop_is_the_crop_of_the_mirrored_image() -> None:
    image, mask = smooth(6, 40, 50), torch.zeros(40, 50, dtype=torch.bool)
    mask[10:30, 8:14] = mask[10:14, 8:30] = True
    mirrored = support_crop(image, mask, 6, 32, flip=True)
    expected = support_crop(image.flip(-1), mask.flip(-1), 6, 32)
    assert all(torch.equal(one, other) for one, other in zip(mirrored, expected, strict=True))


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.integers(0, 60), st.integers(1, 6))
def test_a_mask_of_a_few_pixels_is_never_empty(seed: int, context: int, pixels: int) -> None:
    places = torch.randint(0, 90, (pixels, 2), generator=generator(seed))
    mask = torch.zeros(90, 90, dtype=torch.bool)
    mask[places[:, 0], places[:, 1]] = True
    assert support_crop(torch.zeros(3, 90, 90, dtype=torch.uint8), mask, context, 32)[1].any()


def test_an_empty_mask_cannot_be_a_support() -> None:
    image = torch.zeros(3, 9, 9, dtype=torch.uint8)
    message = sentence(lambda: support_crop(image, torch.zeros(9, 9, dtype=torch.bool), 2, 32))
    assert "mask of a support example is empty" in message


# -- images with instances -----------------------------------------------------------------------------


def labels_of(instances: InstanceImages) -> dict[int, tuple[int, ...]]:
    return {record.image_id: record.labels for record in instances.records}


def test_labels_follow_the_order_of_the_categories(make: Make) -> None:
    made = make({1: [(5, A), (2, B)], 2: [(9, A)]})
    assert labels_of(made.instances(9, 2, 5)) == {1: (2, 1), 2: (0,)}


def test_novel_instances_are_background_in_base_training(make: Make) -> None:
    made = make({1: [(1, A), (8, B), (2, C)], 2: [(8, A)]})
    instances = made.instances(1, 2)
    assert labels_of(instances) == {1: (0, 1)}  # image 2 has nothing else and is left out
    batch, _ = Episodes(instances, None, PLAIN, 1, 1, 0)[0]
    expected = torch.stack([filled(A, 64, 64), filled(C, 64, 64)])
    assert torch.equal(batch.masks[0], expected) and batch.labels.tolist() == [[0, 1]]


def test_crowds_are_background(make: Make) -> None:
    made = make({1: [(1, A), (-1, B)], 2: [(-1, C)]})
    assert labels_of(made.instances(1)) == {1: (0,)}


def test_merged_records_have_all_shots_of_an_image(seven: Made) -> None:
    assert labels_of(seven.instances(1, 2))[7] == (1, 0, 0)


def test_a_record_of_each_annotation_has_all_others_as_background(make: Make) -> None:
    made = make({1: [(1, A), (2, B), (1, C)], 2: [(2, A)]})
    instances = made.instances(1, 2, records="per_annotation")
    assert [(record.image_id, record.labels) for record in instances.records] == [
        (1, (0,)), (1, (1,)), (1, (0,)), (2, (1,)),
    ]  # fmt: skip
    assert [record.segmentations for record in instances.records[:3]] == [
        (rectangle(box),) for box in (A, B, C)
    ]


def test_categories_without_an_image_are_refused(seven: Made) -> None:
    assert "no image has an instance of the 2 categories" in sentence(lambda: seven.instances(8, 9))


def test_a_missing_folder_is_named(seven: Made, tmp_path: Path) -> None:
    message = sentence(lambda: InstanceImages(seven.coco, tmp_path / "nowhere", [1]))
    assert f"there is no folder {tmp_path / 'nowhere'}" in message


@pytest.mark.parametrize("in_memory", [False, True])
def test_a_missing_first_image_is_named_at_the_beginning(
    seven: Made, tmp_path: Path, in_memory: bool
) -> None:
    message = sentence(lambda: InstanceImages(seven.coco, tmp_path, [1], in_memory=in_memory))
    assert f"there is no image {tmp_path / '3.png'}" in message


def test_images_of_another_size_than_annotated_are_refused(make: Make) -> None:
    made = make({1: [(1, A)]})
    Image.new("RGB", (64, 63)).save(made.folder / "1.png")
    instances = made.instances(1)
    message = sentence(lambda: instances.decoded(0))
    assert f"the image {made.folder / '1.png'} has [63, 64] pixels, its annotation says [64, 64]" in message
    assert message == sentence(lambda: made.instances(1, in_memory=True))


def test_images_in_memory_are_decoded_once_at_the_beginning(make: Make) -> None:
    made = make({1: [(1, A)], 2: [(2, A)], 3: [(1, B)]})
    instances, fresh = made.instances(1, in_memory=True), made.instances(1)
    expected = [fresh.decoded(index) for index in range(2)]
    for path in made.folder.iterdir():
        path.unlink()
    assert all(torch.equal(instances.decoded(index), expected[index]) for index in range(2))
    with pytest.raises(TenfoldError, match="no image"):  # image 2 was not asked for
        instances.files.read(2)


def test_images_are_turned_only_if_asked_for(make: Make) -> None:
    made = make({1: [(1, A)]})
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held upright: a quarter to the right
    with Image.open(made.folder / "1.png") as image:
        image.load()
    image.save(made.folder / "1.png", exif=exif)
    stored, upright = made.instances(1).decoded(0), made.instances(1, upright=True).decoded(0)
    assert torch.equal(stored, torch.from_numpy(np.array(image)).permute(2, 0, 1))
    assert torch.equal(upright, stored.rot90(-1, (1, 2)))


def test_sizes_are_known_without_reading(make: Make) -> None:
    made = make({4: [(1, A)]}, {4: (40, 70)})
    (made.folder / "4.png").write_bytes(b"damaged")
    files = ImageFiles(made.coco, made.folder, [4], in_memory=False)
    assert files.size(4) == (40, 70)
    assert "cannot be read" in sentence(lambda: files.read(4))


# -- support pool --------------------------------------------------------------------------------------


def images_of(supports: Any) -> list[int]:
    """The image that each support was cut out of."""
    found = []
    for image, mask in zip(supports.images, supports.masks, strict=True):
        at = torch.nonzero(mask)[0].tolist()
        found.append(image_of(image[:, at[0], at[1]]))
    return found


def test_every_instance_is_a_support(seven: Made) -> None:
    pool = SupportPool(seven.instances(4, 2, 1), PLAIN)
    assert len(pool) == 2 + 3 + 6 and pool.classes == (0, 1, 2)


def test_supports_are_in_the_order_of_the_classes_asked_for(seven: Made) -> None:
    supports = SupportPool(seven.instances(1, 2, 3, 4), PLAIN).draw([3, 0, 2], 2, (), generator())
    assert supports.labels.tolist() == [3, 3, 0, 0, 2, 2]
    assert images_of(supports)[4:] == [2, 2]


def test_supports_are_never_from_a_query_image(seven: Made) -> None:
    pool, source = SupportPool(seven.instances(1, 2), PLAIN), generator()
    found = Counter[int]()
    for _ in range(40):
        found.update(images_of(pool.draw([0, 1], 1, (3, 7, 5), source)))
    assert set(found) == {1, 9, 6}


def test_a_support_is_the_straight_crop_with_the_usual_context(seven: Made) -> None:
    supports = SupportPool(seven.instances(3), PLAIN).draw([0], 1, (1,), generator())
    assert torch.equal(supports.images[0], seven.crop(2, 0, PLAIN, PLAIN.support_context, flip=False))


def test_a_class_in_the_query_image_alone_gives_an_augmented_crop_of_it(seven: Made) -> None:
    mirrored = replace(PLAIN, flip=True)
    pool, source = SupportPool(seven.instances(3), mirrored), generator()
    contexts = range(2 * PLAIN.support_context + 1)
    crops = {
        (context, flip): seven.crop(2, 0, PLAIN, context, flip)
        for context in contexts
        for flip in (False, True)
    }
    drawn = Counter[tuple[int, bool]]()
    for _ in range(60):
        image = pool.draw([0], 1, (2,), source).images[0]
        matching = [key for key, crop in crops.items() if torch.equal(crop, image)]
        assert matching
        drawn[matching[0]] += 1
    assert {flip for _, flip in drawn} == {False, True} and len({context for context, _ in drawn}) > 3


def test_all_examples_of_a_class_are_drawn(seven: Made) -> None:
    pool, source = SupportPool(seven.instances(1), PLAIN), generator()
    found = {image for _ in range(60) for image in images_of(pool.draw([0], 1, (), source))}
    assert found == {3, 1, 7, 5, 9}


def test_several_examples_of_a_class_differ(seven: Made) -> None:
    pool = SupportPool(seven.instances(1), PLAIN)
    for seed in range(5):
        images = pool.draw([0], 6, (), generator(seed)).images
        assert len(torch.unique(images.flatten(1), dim=0)) == 6


def test_a_class_with_fewer_examples_repeats_them(seven: Made) -> None:
    supports = SupportPool(seven.instances(4), PLAIN).draw([0], 5, (), generator())
    first, second = images_of(supports)[:2]
    assert {first, second} == {6, 9} and images_of(supports) == [first, second, first, second, first]


def test_a_class_without_an_example_is_named(seven: Made) -> None:
    pool = SupportPool(seven.instances(2, 4), PLAIN).of_classes([0])
    assert "category 4 has no support example" in sentence(lambda: pool.draw([0, 1], 1, (), generator()))


def test_a_pool_without_an_example_is_refused(seven: Made) -> None:
    instances = seven.instances(1)
    assert "there are no support examples" in sentence(lambda: SupportPool(instances, PLAIN, examples=[]))


OUTSIDE = (70, 70, 90, 90)
"""Of an image of 64 pixels: its mask is empty."""


@pytest.mark.parametrize("in_memory", [False, True])
def test_examples_with_empty_masks_are_passed_over(make: Make, in_memory: bool) -> None:
    made = make({1: [(1, OUTSIDE)], 2: [(1, OUTSIDE)], 3: [(1, A)]})
    pool = SupportPool(made.instances(1), PLAIN, in_memory=in_memory)
    for seed in range(5):
        assert images_of(pool.draw([0], 2, (), generator(seed))) == [3, 3]
    assert [images_of(part) for part in pool.chunks(2)] == [[3]]


def test_a_class_of_empty_masks_is_named(make: Make) -> None:
    made = make({1: [(1, OUTSIDE)], 3: [(2, A)]})
    pool = SupportPool(made.instances(1, 2), PLAIN)
    assert "category 1 has no support example with a mask" in sentence(
        lambda: pool.draw([1, 0], 1, (), generator())
    )


def test_a_query_image_gives_supports_where_all_others_are_empty(make: Make) -> None:
    made = make({1: [(1, OUTSIDE)], 3: [(1, A)]})
    pool = SupportPool(made.instances(1), PLAIN)
    assert images_of(pool.draw([0], 1, (3,), generator())) == [3]


def test_crops_in_memory_are_those_made_when_asked_for(seven: Made) -> None:
    pools = [SupportPool(seven.instances(1, 2, 3), PLAIN, in_memory=kept) for kept in (False, True)]
    for seed in range(4):
        lazy, kept = (pool.draw([0, 1, 2], 2, (2, 3), generator(seed)) for pool in pools)
        assert torch.equal(lazy.images, kept.images) and torch.equal(lazy.masks, kept.masks)


def test_chunks_hold_all_examples_by_class(seven: Made) -> None:
    pool = SupportPool(seven.instances(1, 2, 4), PLAIN)
    parts = list(pool.chunks(4))
    assert [len(part) for part in parts] == [4, 4, 3]
    assert torch.cat([part.labels for part in parts]).tolist() == [0] * 6 + [1] * 3 + [2] * 2
    assert [image for part in parts for image in images_of(part)] == [3, 1, 7, 7, 5, 9, 3, 7, 6, 6, 9]


def test_a_capped_pool_has_at_most_so_many_random_examples_of_a_class(seven: Made) -> None:
    pool = SupportPool(seven.instances(1, 2, 3), PLAIN)
    chosen = set()
    for seed in range(8):
        (part,) = pool.capped(2, generator(seed)).chunks(100)
        assert part.labels.tolist() == [0, 0, 1, 1, 2]
        chosen.add(tuple(images_of(part)))
    assert len(chosen) > 1


def test_a_pool_of_some_classes_keeps_their_labels(seven: Made) -> None:
    pool = SupportPool(seven.instances(1, 2, 3, 4), PLAIN).of_classes([3, 1])
    assert pool.classes == (1, 3) and len(pool) == 5


def test_a_pool_of_absent_classes_is_refused(seven: Made) -> None:
    pool = SupportPool(seven.instances(1, 2), PLAIN)
    assert "there are no support examples" in sentence(lambda: pool.of_classes([5]))


# -- episodes ------------------------------------------------------------------------------------------


def episodes_of(
    made: Made, data: DataConfig = PLAIN, batch_size: int = 2, steps: int = 6, seed: int = 0, **processes: int
) -> Episodes:
    """Of the classes 1 to 4, with supports from the same images."""
    instances = made.instances(1, 2, 3, 4)
    return Episodes(instances, SupportPool(instances, data), data, batch_size, steps, seed, **processes)


def assert_same(mine: Step, other: Step) -> None:
    (batch, supports), (other_batch, other_supports) = mine, other
    assert batch.image_ids == other_batch.image_ids
    for name in ("images", "masks", "labels"):
        assert torch.equal(getattr(batch, name), getattr(other_batch, name))
        assert (supports is None) == (other_supports is None)
        if supports is not None:
            assert torch.equal(getattr(supports, name), getattr(other_supports, name))


def test_without_jitter_a_batch_has_images_and_masks_as_they_are(seven: Made) -> None:
    batch, _ = episodes_of(seven, batch_size=7)[0]
    places = {3: [A, B], 1: [C], 7: [A, B, C], 2: [B], 5: [B], 6: [A, C], 9: [C, A]}
    labels = {3: [0, 1], 1: [0], 7: [1, 0, 0], 2: [2], 5: [0], 6: [3, 1], 9: [3, 0]}
    assert sorted(batch.image_ids) == sorted(places)
    for index, image_id in enumerate(batch.image_ids):
        stored = torch.from_numpy(np.array(Image.open(seven.folder / f"{image_id}.png"))).permute(2, 0, 1)
        torch.testing.assert_close(batch.images[index], normalise(stored))
        count = len(places[image_id])
        expected = torch.stack([filled(box, 64, 64) for box in places[image_id]])
        assert torch.equal(batch.masks[index, :count], expected) and not batch.masks[index, count:].any()
        assert batch.labels[index].tolist() == labels[image_id] + [-1] * (3 - count)


def test_each_epoch_has_every_image_once_in_another_order(seven: Made) -> None:
    episodes = episodes_of(seven, batch_size=1, steps=21)
    seen = [episodes[step][0].image_ids[0] for step in range(21)]
    epochs = [tuple(seen[start : start + 7]) for start in (0, 7, 14)]
    assert all(sorted(epoch) == [1, 2, 3, 5, 6, 7, 9] for epoch in epochs)
    assert len(set(epochs)) == 3


def test_batches_go_on_over_the_end_of_an_epoch(seven: Made) -> None:
    episodes = episodes_of(seven, batch_size=3, steps=7)
    seen = Counter(image for step in range(7) for image in episodes[step][0].image_ids)
    assert set(seen.values()) == {3}


def test_a_step_has_the_same_episode_whatever_came_before(seven: Made) -> None:
    forwards, backwards = episodes_of(seven, JITTERED), episodes_of(seven, JITTERED)
    later = {step: backwards[step] for step in (5, 2, 4, 0, 3, 1)}
    for step in range(6):
        torch.rand(3)  # the global generator has no part in it
        assert_same(forwards[step], later[step])


@pytest.mark.parametrize("first", [0, 4])
def test_a_loader_gives_the_same_episodes_whatever_the_workers_and_the_beginning(
    seven: Made, first: int
) -> None:
    expected = episodes_of(seven, JITTERED)
    for workers in (0, 2):
        loader = episode_loader(episodes_of(seven, JITTERED), first, workers, pin=False)
        found = list(loader)
        assert len(found) == 6 - first
        for step, episode in enumerate(found, start=first):
            assert_same(episode, expected[step])


def test_a_finished_run_has_no_more_episodes(seven: Made) -> None:
    assert list(episode_loader(episodes_of(seven), 6, 0, pin=False)) == []


def test_steps_and_seeds_differ(seven: Made) -> None:
    episodes, other = episodes_of(seven, JITTERED, 7), episodes_of(seven, JITTERED, 7, seed=1)
    orders = {episodes[0][0].image_ids, episodes[1][0].image_ids, other[0][0].image_ids}
    assert len(orders) == 3


@pytest.mark.parametrize("processes", [2, 3])
def test_ranks_partition_a_batch(seven: Made, processes: int) -> None:
    whole = episodes_of(seven, batch_size=6, steps=3)
    ranks = [
        episodes_of(seven, batch_size=6, steps=3, rank=rank, processes=processes) for rank in range(processes)
    ]
    for step in range(3):
        parts = [part[step][0].image_ids for part in ranks]
        assert {len(part) for part in parts} == {6 // processes}
        assert Counter(image for part in parts for image in part) == Counter(whole[step][0].image_ids)


def test_ranks_augment_and_draw_with_other_random_numbers(make: Make) -> None:
    made = make({1: [(1, A)]})
    parts = [episodes_of(made, JITTERED, rank=rank, processes=2)[0][0] for rank in range(2)]
    assert parts[0].image_ids == parts[1].image_ids == (1,)
    assert not torch.equal(parts[0].images, parts[1].images)


def test_processes_that_cannot_share_a_batch_are_refused(seven: Made) -> None:
    message = sentence(lambda: episodes_of(seven, batch_size=4, processes=3))
    assert "3 processes cannot share batches of 4 images" in message


def test_supports_have_one_example_of_each_class_of_the_batch_and_of_random_others(seven: Made) -> None:
    episodes = episodes_of(seven, batch_size=1, steps=28)
    drawn = set()
    for step in range(28):
        batch, supports = episodes[step]
        assert supports is not None
        labels = supports.labels.tolist()
        assert labels == sorted(set(labels)) and len(labels) == PLAIN.episode_classes
        assert set(batch.labels[batch.present].tolist()) <= set(labels)
        drawn.add(tuple(labels))
    assert len(drawn) > 1


def test_an_episode_has_all_classes_of_its_batch_even_if_they_are_more_than_usual(seven: Made) -> None:
    _, supports = episodes_of(seven, replace(PLAIN, episode_classes=1), batch_size=7)[0]
    assert supports is not None and supports.labels.tolist() == [0, 1, 2, 3]


def test_supports_of_an_episode_are_never_from_its_query_images_unless_only_they_have_the_class(
    seven: Made,
) -> None:
    holders = {0: {3, 1, 7, 5, 9}, 1: {3, 7, 6}, 2: {2}, 3: {6, 9}}
    episodes = episodes_of(seven, JITTERED, batch_size=2, steps=30)
    from_query = 0
    for step in range(30):
        batch, supports = episodes[step]
        assert supports is not None
        for image, label in zip(images_of(supports), supports.labels.tolist(), strict=True):
            others = holders[label] - set(batch.image_ids)
            assert image in (others or holders[label])
            from_query += not others
    assert from_query > 0


def test_instances_that_a_crop_leaves_nothing_of_are_dropped(make: Make) -> None:
    corners = [(1, (0, 0, 6, 6)), (2, (58, 58, 64, 64)), (3, (0, 58, 6, 64)), (4, (58, 0, 64, 6))]
    made = make({1: corners})
    episodes = episodes_of(made, replace(PLAIN, jitter=(2.0, 2.0), episode_classes=1), batch_size=1, steps=20)
    counts = Counter[int]()
    for step in range(20):
        batch, supports = episodes[step]
        present = batch.present[0]
        assert torch.equal(batch.masks[0].flatten(1).any(1), present)
        labels = batch.labels[0][present].tolist()
        assert supports is not None and (not labels or supports.labels.tolist() == sorted(labels))
        counts[len(labels)] += 1
    assert counts[4] == 0 and counts[0] > 0 and counts[1] > 0


def test_the_query_records_of_each_annotation_train_with_one_instance(make: Make) -> None:
    made = make({1: [(1, A), (1, B)]})
    instances = made.instances(1, records="per_annotation")
    batch, _ = Episodes(instances, None, PLAIN, 2, 1, 0)[0]
    assert batch.image_ids == (1, 1) and batch.labels.tolist() == [[0], [0]]
    assert torch.equal(batch.masks[:, 0].any(0), filled(A, 64, 64) | filled(B, 64, 64))


def test_without_a_pool_episodes_have_no_supports(seven: Made) -> None:
    assert Episodes(seven.instances(1), None, PLAIN, 2, 1, 0)[0][1] is None


def test_learned_classes_without_a_support_are_named(seven: Made) -> None:
    pool = SupportPool(seven.instances(1, 2, 3, 4), PLAIN).of_classes([0, 2])
    message = sentence(lambda: Episodes(seven.instances(1, 2, 3, 4), pool, PLAIN, 2, 1, 0))
    assert "categories 2, 4 have no support example" in message


def test_supports_may_be_of_more_classes_than_are_learned(seven: Made) -> None:
    pool = SupportPool(seven.instances(1, 2, 3, 4), PLAIN)
    episodes = Episodes(seven.instances(1, 2), pool, replace(PLAIN, episode_classes=4), 1, 1, 0)
    supports = episodes[0][1]
    assert supports is not None and supports.labels.tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("workers", [0, 1])
def test_an_image_that_is_missing_later_is_one_sentence_whatever_the_workers(
    make: Make, workers: int
) -> None:
    made = make({1: [(1, A)], 2: [(1, B)]})
    episodes = Episodes(made.instances(1), None, PLAIN, 2, 1, 0)
    (made.folder / "2.png").unlink()
    message = sentence(lambda: list(episode_loader(episodes, 0, workers, pin=False)))
    assert message.startswith(f"there is no image {made.folder / '2.png'}")


# -- images for testing --------------------------------------------------------------------------------

SIZES = {1: (40, 60), 2: (60, 40), 3: (40, 60), 4: (20, 30), 5: (64, 64), 6: (40, 60), 7: (33, 100)}
TESTED = replace(PLAIN, test_short_side=40, test_long_side=70)


@pytest.fixture(scope="module")
def to_test(make: Make) -> Made:
    """Seven images of several sizes; only the first has an object."""
    return make({number: [(1, (1, 1, 9, 9))] if number == 1 else [] for number in SIZES}, SIZES)


def parts_of(images: EvaluationImages, **options: Any) -> list[EvaluationBatch]:
    return list(evaluation_batches(images, 2, **options))


def numbers_in(parts: Sequence[EvaluationBatch]) -> list[int]:
    return [number for part in parts for number in part.image_ids]


def test_every_image_is_tested_once_also_without_an_object(to_test: Made) -> None:
    images = EvaluationImages(to_test.coco, to_test.folder, TESTED)
    assert len(images) == 7
    assert sorted(numbers_in(parts_of(images))) == list(SIZES)


def test_images_of_one_size_are_tested_together_at_most_so_many(to_test: Made) -> None:
    parts = parts_of(EvaluationImages(to_test.coco, to_test.folder, TESTED))
    # 20 x 30 becomes 40 x 60 too, and 64 x 64 becomes 40 x 40.
    assert sorted((part.size, len(part.image_ids)) for part in parts) == [
        ((23, 70), 1), ((40, 40), 1), ((40, 60), 2), ((40, 60), 2), ((60, 40), 1),
    ]  # fmt: skip


def test_tested_images_are_normalised_resized_and_padded_to_multiples_of_32(to_test: Made) -> None:
    for part in parts_of(EvaluationImages(to_test.coco, to_test.folder, TESTED)):
        height, width = part.size
        assert part.images.shape[-2:] == (-(-height // 32) * 32, -(-width // 32) * 32)
        assert not part.images[..., height:, :].any() and not part.images[..., width:].any()
        for number, image, original in zip(part.image_ids, part.images, part.originals, strict=True):
            assert original == SIZES[number]
            stored = torch.from_numpy(np.array(Image.open(to_test.folder / f"{number}.png"))).permute(2, 0, 1)
            expected = normalise(resize_short_side(stored, 40, 70))
            torch.testing.assert_close(image[:, :height, :width], expected)


def test_the_size_for_testing_is_known_without_reading(to_test: Made) -> None:
    images = EvaluationImages(to_test.coco, to_test.folder, TESTED)
    for index in range(7):
        assert images[index][0].shape[-2:] == images.test_size(index)


@pytest.mark.parametrize("processes", [2, 3, 8])
def test_ranks_partition_the_images_to_test(to_test: Made, processes: int) -> None:
    images = EvaluationImages(to_test.coco, to_test.folder, TESTED)
    found = [numbers_in(parts_of(images, rank=rank, processes=processes)) for rank in range(processes)]
    assert sorted(number for part in found for number in part) == list(SIZES)


def test_workers_test_the_same_images(to_test: Made) -> None:
    images = EvaluationImages(to_test.coco, to_test.folder, TESTED, in_memory=True)
    for mine, other in zip(parts_of(images), parts_of(images, workers=2), strict=True):
        assert mine.image_ids == other.image_ids and torch.equal(mine.images, other.images)


def test_annotations_without_an_image_cannot_be_tested_on(tmp_path: Path) -> None:
    empty = indexed({"images": [], "annotations": [], "categories": []})
    assert "the annotations have no image" in sentence(lambda: EvaluationImages(empty, tmp_path, TESTED))


def test_a_damaged_image_to_test_is_one_sentence_from_a_worker(make: Make) -> None:
    made = make({1: [], 2: []})
    (made.folder / "2.png").write_bytes(b"no image")
    images = EvaluationImages(made.coco, made.folder, TESTED)
    message = sentence(lambda: list(evaluation_batches(images, 2, workers=1)))
    assert message.startswith(f"the image {made.folder / '2.png'} cannot be read")
    assert "cannot be read" in sentence(
        lambda: EvaluationImages(made.coco, made.folder, TESTED, in_memory=True)
    )
