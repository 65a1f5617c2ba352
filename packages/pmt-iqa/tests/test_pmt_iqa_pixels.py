"""Decoded pixels and crops of them: against slices, torchvision and files of many kinds."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import functional as tv

from tenfold.pmt_iqa.pixels import (
    CropRule,
    PixelStore,
    decode,
    judging_crops,
    normalise,
    picture_size,
    random_crops,
    read_picture,
)
from tenfold.shared.logging import TenfoldError
from tenfold.shared.seeding import make_generator

SHAPES = ((12, 20), (9, 9), (31, 8), (8, 8))
"""Height and width of four images; crops of 8 fit into each, into the last at one place only."""


@pytest.fixture(scope="module")
def pictures() -> list[np.ndarray]:
    rng = np.random.RandomState(0)
    return [rng.randint(0, 256, (*shape, 3)).astype(np.uint8) for shape in SHAPES]


@pytest.fixture(scope="module")
def store(pictures: list[np.ndarray]) -> PixelStore:
    return PixelStore.of(pictures)


def sliced(picture: np.ndarray, top: int, left: int, size: int, mirrored: bool) -> Tensor:
    part = picture[top : top + size, left : left + size]
    return torch.from_numpy((part[:, ::-1] if mirrored else part).copy()).permute(2, 0, 1)


# The store


def test_a_store_gives_every_picture_back(store: PixelStore, pictures: list[np.ndarray]) -> None:
    assert len(store) == 4
    assert store.sizes.tolist() == [list(shape) for shape in SHAPES]
    for index, picture in enumerate(pictures):
        assert store.picture(index).dtype == np.uint8
        np.testing.assert_array_equal(store.picture(index), picture)


def test_pictures_may_be_views(pictures: list[np.ndarray]) -> None:
    """Such as crops and mirrored images, whose rows are not one after the other in memory."""
    views = [pictures[0][2:10, ::-1], pictures[2].transpose(1, 0, 2)]
    store = PixelStore.of(views)
    for index, view in enumerate(views):
        np.testing.assert_array_equal(store.picture(index), view)


def test_crops_are_slices_of_their_images(store: PixelStore, pictures: list[np.ndarray]) -> None:
    """At every place of every image, mirrored and not."""
    size = 8
    where = [
        (index, top, left, mirrored)
        for index, (height, width) in enumerate(SHAPES)
        for top in range(height - size + 1)
        for left in range(width - size + 1)
        for mirrored in (0, 1)
    ]
    found = store.crop(torch.tensor(where), size)
    assert found.dtype == torch.uint8 and found.shape == (len(where), 3, size, size)
    for crop, (index, top, left, mirrored) in zip(found, where, strict=True):
        assert torch.equal(crop, sliced(pictures[index], top, left, size, bool(mirrored)))


def test_crops_come_in_any_order_and_more_than_once(store: PixelStore, pictures: list[np.ndarray]) -> None:
    where = torch.tensor([[2, 20, 3, 1], [0, 0, 15, 0], [2, 20, 3, 1], [1, 4, 4, 0]])
    found = store.crop(where, 5)
    for crop, (index, top, left, mirrored) in zip(found, where.tolist(), strict=True):
        assert torch.equal(crop, sliced(pictures[index], top, left, 5, bool(mirrored)))


def test_crops_lie_with_their_channels_last(store: PixelStore) -> None:
    found = store.crop(torch.tensor([[0, 1, 2, 0], [2, 0, 0, 1]]), 8)
    assert found.is_contiguous(memory_format=torch.channels_last)


def test_a_store_moves_to_another_device_whole(store: PixelStore) -> None:
    moved = store.to(torch.device("meta"))
    assert moved.device == torch.device("meta")
    assert {moved.pixels.device, moved.sizes.device, moved.offsets.device} == {torch.device("meta")}
    assert len(moved) == 4 and store.device == torch.device("cpu")
    assert moved.crop(torch.zeros(6, 4, dtype=torch.int64, device="meta"), 8).shape == (6, 3, 8, 8)


def test_a_store_that_is_there_already_is_not_copied(store: PixelStore) -> None:
    assert store.to(torch.device("cpu")).pixels.data_ptr() == store.pixels.data_ptr()


@pytest.mark.gpu
def test_crops_on_the_gpu_are_those_on_the_cpu(store: PixelStore) -> None:
    where = random_crops(torch.arange(4), store.sizes, 8, 5, make_generator(0))
    moved = store.to(torch.device("cuda"))
    assert torch.equal(moved.crop(where.cuda(), 8).cpu(), store.crop(where, 8))
    np.testing.assert_array_equal(moved.picture(2), store.picture(2))


def test_crops_as_large_as_the_smallest_image_are_allowed(store: PixelStore) -> None:
    store.check_size(8, "abcd")


@pytest.mark.parametrize(
    ("size", "message"),
    [
        (9, "c.png (and 1 more) has 8 x 31 pixels, less than the crops of 9"),
        (10, "b.png (and 2 more) has 9 x 9 pixels, less than the crops of 10"),
        (32, "a.png (and 3 more) has 20 x 12 pixels, less than the crops of 32"),
    ],
)
def test_images_smaller_than_the_crops_are_refused_by_name(
    store: PixelStore, size: int, message: str
) -> None:
    with pytest.raises(TenfoldError, match=rf"^{re.escape(message)}; [^\n]*$"):
        store.check_size(size, ["a.png", "b.png", "c.png", "d.png"])


def test_a_single_small_image_has_no_more_like_it(pictures: list[np.ndarray]) -> None:
    with pytest.raises(TenfoldError, match=r"^c has 8 x 31 pixels"):
        PixelStore.of(pictures[:3]).check_size(9, "abc")


# Random crops


def test_random_crops_come_image_by_image(store: PixelStore) -> None:
    crops = random_crops(torch.tensor([2, 0, 3]), store.sizes, 8, 4, make_generator(0))
    assert crops.shape == (12, 4) and crops.dtype == torch.int64
    assert crops[:, 0].tolist() == [2] * 4 + [0] * 4 + [3] * 4


def test_random_crops_reach_every_place_and_none_outside(store: PixelStore) -> None:
    image, tops, lefts, _ = random_crops(torch.arange(4), store.sizes, 8, 2000, make_generator(0)).T
    for index, (height, width) in enumerate(SHAPES):
        assert set(tops[image == index].tolist()) == set(range(height - 7))
        assert set(lefts[image == index].tolist()) == set(range(width - 7))


def test_random_crops_prefer_no_place(store: PixelStore) -> None:
    """5 x 13 places; each is expected 400 times, with a deviation of 20."""
    _, tops, lefts, _ = random_crops(torch.tensor([0]), store.sizes, 8, 26_000, make_generator(1)).T
    counts = torch.bincount(tops * 13 + lefts, minlength=65)
    assert counts.min() > 300 and counts.max() < 500


def test_half_of_the_random_crops_are_mirrored(store: PixelStore) -> None:
    _, _, lefts, mirrored = random_crops(torch.tensor([0]), store.sizes, 8, 4000, make_generator(0)).T
    assert set(mirrored.tolist()) == {0, 1}
    assert 0.45 < float(mirrored.float().mean()) < 0.55
    assert 0.4 < float(mirrored[lefts > 6].float().mean()) < 0.6


def test_mirroring_can_be_left_out_and_moves_no_crop(store: PixelStore) -> None:
    one, other = (
        random_crops(torch.tensor([0, 2]), store.sizes, 8, 50, make_generator(0), mirror=mirror)
        for mirror in (True, False)
    )
    assert not other[:, 3].any() and one[:, 3].any()
    assert torch.equal(one[:, :3], other[:, :3])


def test_random_crops_repeat_with_their_generator(store: PixelStore) -> None:
    first, again, other = (
        random_crops(torch.arange(4), store.sizes, 8, 9, make_generator(seed)) for seed in (5, 5, 6)
    )
    assert torch.equal(first, again) and not torch.equal(first, other)


# Crops that judge

NAMES = ("a.png", "b.png", "c.png", "d.png")


def places(size: tuple[int, int], crop: int, count: int, rule: CropRule) -> list[list[int]]:
    crops = judging_crops(torch.tensor([0]), torch.tensor([size]), crop, count, rule, NAMES)
    assert not crops[:, [0, 3]].any()
    return crops[:, 1:3].tolist()


def test_the_centre_crop_leaves_equal_margins() -> None:
    assert places((30, 50), 10, 1, "center") == [[10, 20]]
    ((top, left),) = places((30, 51), 10, 1, "center")
    assert top == 10 and left in (20, 21)


def test_corner_crops_touch_two_edges_each() -> None:
    assert sorted(places((30, 50), 10, 4, "corners")) == [[0, 0], [0, 40], [20, 0], [20, 40]]


def test_grid_crops_are_spread_evenly_from_edge_to_edge() -> None:
    expected = [[top, left] for top in (0, 10, 20) for left in (0, 20, 40)]
    assert sorted(places((30, 50), 10, 9, "grid")) == expected
    assert sorted(places((30, 50), 10, 4, "grid")) == sorted(places((30, 50), 10, 4, "corners"))
    assert places((30, 50), 10, 1, "grid") == places((30, 50), 10, 1, "center")


@pytest.mark.parametrize(("count", "rule"), [(25, "grid"), (4, "corners"), (1, "center"), (25, "random")])
def test_judging_crops_lie_inside_images_of_every_size(store: PixelStore, count: int, rule: CropRule) -> None:
    crops = judging_crops(torch.tensor([3, 0, 2, 1]), store.sizes, 8, count, rule, NAMES)
    assert crops.dtype == torch.int64
    assert crops[:, 0].tolist() == [index for index in (3, 0, 2, 1) for _ in range(count)]
    room = store.sizes[crops[:, 0]] - 8
    assert (crops[:, 1:3] >= 0).all() and (crops[:, 1:3] <= room).all()
    assert not crops[:, 3].any()


def test_an_image_is_judged_by_the_same_random_crops_in_any_company(store: PixelStore) -> None:
    alone = judging_crops(torch.tensor([2]), store.sizes, 8, 25, "random", NAMES)
    together = judging_crops(torch.arange(4), store.sizes, 8, 25, "random", NAMES)
    assert torch.equal(alone, together[50:75])


def test_an_image_is_judged_by_the_same_random_crops_in_another_set() -> None:
    sizes = torch.tensor([[100, 90]] * 2)
    last = judging_crops(torch.tensor([1]), sizes, 8, 9, "random", ["x.png", "lake.bmp"])
    first = judging_crops(torch.tensor([0]), sizes, 8, 9, "random", ["lake.bmp", "y.png"])
    assert torch.equal(last[:, 1:], first[:, 1:])


def test_an_image_is_judged_by_the_same_random_crops_in_every_process_and_release() -> None:
    """Else scores could not be compared with those told before; these places are of the first release."""
    found = judging_crops(torch.tensor([0]), torch.tensor([[100, 90]]), 8, 3, "random", ["lake.bmp"])
    assert found[:, 1:3].tolist() == [[11, 47], [81, 39], [91, 41]]


def test_judging_crops_do_not_depend_on_what_was_drawn_before(store: PixelStore) -> None:
    first = judging_crops(torch.arange(4), store.sizes, 8, 6, "random", NAMES)
    torch.manual_seed(123)
    torch.rand(77)
    assert torch.equal(judging_crops(torch.arange(4), store.sizes, 8, 6, "random", NAMES), first)


def test_random_judging_crops_differ_from_image_to_image_and_from_each_other() -> None:
    sizes = torch.tensor([[200, 200]] * 4)
    crops = judging_crops(torch.arange(4), sizes, 8, 25, "random", NAMES)
    assert len({tuple(place) for place in crops[:, 1:3].tolist()}) > 95


@pytest.mark.parametrize(
    ("count", "rule", "message"),
    [
        (5, "grid", "grid crops are a square number, not 5"),
        (24, "grid", "grid crops are a square number, not 24"),
        (25, "corners", "corners crops are 4, not 25"),
        (4, "center", "center crops are 1, not 4"),
    ],
)
def test_a_number_of_crops_that_does_not_fit_the_rule_is_refused(
    store: PixelStore, count: int, rule: CropRule, message: str
) -> None:
    with pytest.raises(TenfoldError, match=f"^{message}; change --judge.crops or --judge.crop-rule$"):
        judging_crops(torch.tensor([0]), store.sizes, 8, count, rule, NAMES)


# Normalisation


def test_normalised_crops_are_those_of_torchvision(pictures: list[np.ndarray]) -> None:
    crops = torch.stack([sliced(picture, 0, 0, 8, False) for picture in pictures])
    expected = torch.stack(
        [
            tv.normalize(tv.to_tensor(picture[:8, :8]), [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
            for picture in pictures
        ]
    )
    torch.testing.assert_close(normalise(crops), expected, rtol=1e-5, atol=2e-6)


def test_black_and_white_are_normalised_to_the_ends_of_the_range() -> None:
    """What torchvision gives, from the constants: (0 - mean) / deviation and (1 - mean) / deviation."""
    ends = torch.tensor([0, 255], dtype=torch.uint8).view(2, 1, 1, 1).expand(2, 3, 1, 1)
    expected = [
        [-0.485 / 0.229, -0.456 / 0.224, -0.406 / 0.225],
        [0.515 / 0.229, 0.544 / 0.224, 0.594 / 0.225],
    ]
    torch.testing.assert_close(normalise(ends)[:, :, 0, 0], torch.tensor(expected), rtol=1e-5, atol=1e-6)


def test_normalisation_keeps_channels_last(store: PixelStore) -> None:
    crops = store.crop(torch.tensor([[0, 0, 0, 0], [1, 0, 0, 0]]), 8)
    assert normalise(crops).is_contiguous(memory_format=torch.channels_last)


def test_normalisation_leaves_the_bytes_as_they_are() -> None:
    crops = torch.full((1, 3, 2, 2), 200, dtype=torch.uint8)
    normalise(crops)
    assert (crops == 200).all()


# Files


RAMP = np.arange(256, dtype=np.uint8).reshape(16, 16)


def read(path: Path, image: Image.Image) -> np.ndarray:
    image.save(path)
    found = read_picture(path)
    assert found.dtype == np.uint8 and found.shape == (16, 16, 3)
    return found


@pytest.mark.parametrize("suffix", ["png", "bmp"])
def test_a_grey_image_has_its_brightness_in_all_channels(tmp_path: Path, suffix: str) -> None:
    found = read(tmp_path / f"grey.{suffix}", Image.fromarray(RAMP))
    np.testing.assert_array_equal(found, np.stack([RAMP] * 3, axis=-1))


@pytest.mark.parametrize("suffix", ["png", "bmp"])
def test_a_colour_image_keeps_the_order_of_its_channels(tmp_path: Path, suffix: str) -> None:
    colours = np.stack([RAMP, RAMP[::-1], RAMP.T], axis=-1)
    np.testing.assert_array_equal(read(tmp_path / f"colour.{suffix}", Image.fromarray(colours)), colours)


def test_a_jpeg_is_read_nearly_as_it_was(tmp_path: Path) -> None:
    smooth = np.stack([RAMP // 2 + 60] * 3, axis=-1)
    image = Image.fromarray(smooth)
    image.save(tmp_path / "photo.JPG", quality=98)
    assert np.abs(read_picture(tmp_path / "photo.JPG").astype(int) - smooth).max() < 8


def test_an_opaque_image_with_transparency_keeps_its_colours(tmp_path: Path) -> None:
    colours = np.stack([RAMP, RAMP[::-1], RAMP.T, np.full_like(RAMP, 255)], axis=-1)
    found = read(tmp_path / "opaque.png", Image.fromarray(colours, "RGBA"))
    np.testing.assert_array_equal(found, colours[:, :, :3])


def test_an_image_with_a_palette_has_the_palettes_colours(tmp_path: Path) -> None:
    image = Image.fromarray(RAMP % 3, "P")
    palette = [[10, 200, 30], [250, 0, 90], [1, 2, 3]]
    image.putpalette([value for colour in palette for value in colour])
    np.testing.assert_array_equal(read(tmp_path / "palette.png", image), np.array(palette)[RAMP % 3])


def test_an_image_in_black_and_white_is_0_and_255(tmp_path: Path) -> None:
    found = read(tmp_path / "bits.png", Image.fromarray(RAMP > 100))
    np.testing.assert_array_equal(found[:, :, 0], np.where(RAMP > 100, 255, 0))


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_an_image_of_16_bits_is_brought_to_8(tmp_path: Path, suffix: str) -> None:
    """Not cut off, which would leave all but the darkest 255 of 65536 shades white."""
    deep = np.linspace(0, 65535, 256).astype(np.uint16).reshape(16, 16)
    found = read(tmp_path / f"deep.{suffix}", Image.fromarray(deep))
    assert np.abs(found.astype(float) - deep[:, :, None] / 257).max() <= 1


@pytest.mark.parametrize("kind", [np.int32, np.float32])
def test_numbers_that_are_no_grey_levels_are_refused(tmp_path: Path, kind: type) -> None:
    path = tmp_path / "heights.tif"
    Image.fromarray(np.arange(16, dtype=kind).reshape(4, 4) * 1000).save(path)
    with pytest.raises(TenfoldError, match=rf"^{re.escape(str(path))} holds numbers of any size"):
        read_picture(path)


def test_an_image_can_be_resized_to_a_height_and_width(tmp_path: Path) -> None:
    path = tmp_path / "two.png"
    Image.fromarray(np.repeat([[0, 200]], 4, axis=0).astype(np.uint8).repeat(8, axis=1)).save(path)
    found = read_picture(path, resize=(10, 32))
    assert found.shape == (10, 32, 3)
    assert (found[:, :12] < 10).all() and (found[:, 20:] > 190).all()
    assert (np.diff(found[0, :, 0].astype(int)) >= 0).all() and len(np.unique(found)) > 2  # bilinear


@pytest.mark.parametrize("suffix", ["png", "jpg", "bmp"])
def test_a_file_that_breaks_off_is_named(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"cut.{suffix}"
    Image.fromarray(np.random.RandomState(0).randint(0, 256, (64, 64, 3)).astype(np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(TenfoldError, match=rf"^{re.escape(str(path))} is damaged or no image; [^\n]*$"):
        read_picture(path)


@pytest.mark.parametrize("content", [b"", b"<html>404</html>", b"\x89PNG\r\n\x1a\n", bytes(range(256))])
def test_a_file_that_is_no_image_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "page.png"
    path.write_bytes(content)
    with pytest.raises(TenfoldError, match=rf"^{re.escape(str(path))} is damaged or no image"):
        read_picture(path)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(TenfoldError, match=rf"^there is no image {re.escape(str(tmp_path / 'a.png'))};"):
        read_picture(tmp_path / "a.png")


@pytest.mark.parametrize("suffix", ["png", "jpg", "bmp"])
def test_the_size_of_a_file_is_its_height_and_width(tmp_path: Path, suffix: str) -> None:
    Image.new("RGB", (30, 20)).save(tmp_path / f"wide.{suffix}")
    assert picture_size(tmp_path / f"wide.{suffix}") == (20, 30)


def test_a_file_without_size_is_named(tmp_path: Path) -> None:
    path = tmp_path / "page.png"
    with pytest.raises(TenfoldError, match=rf"^there is no image {re.escape(str(path))};"):
        picture_size(path)
    path.write_bytes(b"<html>404</html>")
    with pytest.raises(TenfoldError, match=rf"^{re.escape(str(path))} is damaged or no image"):
        picture_size(path)


# Decoding many files


@pytest.fixture
def files(tmp_path: Path, pictures: list[np.ndarray]) -> list[Path]:
    paths = [tmp_path / f"{index}.png" for index in range(len(pictures))]
    for path, picture in zip(paths, pictures, strict=True):
        Image.fromarray(picture).save(path)
    return paths


def same(store: PixelStore, pictures: list[np.ndarray]) -> bool:
    return len(store) == len(pictures) and all(
        np.array_equal(store.picture(index), picture) for index, picture in enumerate(pictures)
    )


@pytest.mark.parametrize("threads", [1, 3, 8])
def test_files_are_decoded_in_their_order_by_any_number_of_threads(
    files: list[Path], pictures: list[np.ndarray], threads: int
) -> None:
    assert same(decode(files, threads=threads), pictures)
    assert same(decode(files[::-1], threads=threads), pictures[::-1])
    assert same(decode(files * 5, threads=threads), pictures * 5)


def test_all_files_are_resized_alike(files: list[Path]) -> None:
    decoded = decode(files, resize=(6, 10))
    assert decoded.sizes.tolist() == [[6, 10]] * 4
    np.testing.assert_array_equal(decoded.picture(2), read_picture(files[2], (6, 10)))


@pytest.mark.parametrize("cached", [False, True])
def test_a_damaged_file_among_many_is_named(files: list[Path], tmp_path: Path, cached: bool) -> None:
    files[2].write_bytes(b"nothing")
    with pytest.raises(TenfoldError, match=rf"^{re.escape(str(files[2]))} is damaged"):
        decode(files, cache_folder=tmp_path / "cache" if cached else None)


@pytest.mark.parametrize("cached", [False, True])
def test_a_missing_file_among_many_is_named(files: list[Path], tmp_path: Path, cached: bool) -> None:
    files[1].unlink()
    with pytest.raises(TenfoldError, match=rf"^there is no image {re.escape(str(files[1]))};"):
        decode(files, cache_folder=tmp_path / "cache" if cached else None)


def spoil(path: Path) -> None:
    """Make the pixels of a file undecodable without changing its head, length and time."""
    before = path.stat()
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2].ljust(len(content), b"\0"))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def test_pixels_in_the_cache_are_not_decoded_again(
    files: list[Path], pictures: list[np.ndarray], tmp_path: Path
) -> None:
    assert same(decode(files, cache_folder=tmp_path / "deep" / "cache"), pictures)
    for path in files:
        spoil(path)
    assert same(decode(files, cache_folder=tmp_path / "deep" / "cache"), pictures)
    with pytest.raises(TenfoldError, match="is damaged"):
        decode(files)


def crop_some(store: PixelStore) -> Tensor:
    return store.crop(torch.tensor([[2, 20, 0, 1], [0, 4, 12, 0]]), 8)


def test_crops_of_cached_pixels_are_those_of_fresh_ones(files: list[Path], tmp_path: Path) -> None:
    fresh, cached = (
        decode(files, cache_folder=tmp_path / "cache"),
        decode(files, cache_folder=tmp_path / "cache"),
    )
    assert torch.equal(fresh.sizes, cached.sizes)
    assert torch.equal(crop_some(fresh), crop_some(cached))


def rewrite(path: Path, picture: np.ndarray, later_ns: int) -> None:
    before = path.stat()
    Image.fromarray(picture).save(path)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + later_ns))


def bmp(path: Path, colour: int, side: int = 4) -> Path:
    """An image whose file is always equally long."""
    Image.new("RGB", (side, side), (colour,) * 3).save(path)
    return path


def test_a_file_that_changed_its_time_is_decoded_again(tmp_path: Path) -> None:
    paths = [bmp(tmp_path / f"{k}.bmp", 10 * k) for k in range(3)]
    decode(paths, cache_folder=tmp_path / "cache")
    length = paths[1].stat().st_size
    rewrite(paths[1], np.full((4, 4, 3), 222, np.uint8), later_ns=1_000_000)
    assert paths[1].stat().st_size == length
    assert decode(paths, cache_folder=tmp_path / "cache").picture(1)[0, 0].tolist() == [222] * 3


def test_a_file_that_changed_its_length_is_decoded_again(tmp_path: Path) -> None:
    paths = [bmp(tmp_path / f"{k}.bmp", 10 * k) for k in range(3)]
    decode(paths, cache_folder=tmp_path / "cache")
    rewrite(paths[0], np.full((9, 5, 3), 111, np.uint8), later_ns=0)
    assert decode(paths, cache_folder=tmp_path / "cache").sizes.tolist() == [[9, 5], [4, 4], [4, 4]]


@pytest.mark.parametrize(
    "change",
    [lambda files: files[:3], lambda files: files[::-1], lambda files: [*files, files[0]]],
    ids=["fewer", "another order", "one twice"],
)
def test_another_list_of_files_is_not_served_from_the_cache(
    files: list[Path],
    pictures: list[np.ndarray],
    tmp_path: Path,
    change: Callable[[list], list],
) -> None:
    decode(files, cache_folder=tmp_path / "cache")
    assert same(decode(change(files), cache_folder=tmp_path / "cache"), change(pictures))


def test_every_resize_has_its_own_place_in_the_cache(files: list[Path], tmp_path: Path) -> None:
    sizes = [None, (6, 10), (10, 6)]
    for resize in (*sizes, *sizes):
        decoded = decode(files, resize, tmp_path / "cache")
        assert same(decoded, [read_picture(path, resize) for path in files])


def test_changing_pixels_leaves_the_cache_as_it_is(
    files: list[Path], pictures: list[np.ndarray], tmp_path: Path
) -> None:
    decode(files, cache_folder=tmp_path / "cache")
    decode(files, cache_folder=tmp_path / "cache").pixels.zero_()
    assert same(decode(files, cache_folder=tmp_path / "cache"), pictures)


def test_the_cache_leaves_nothing_unfinished_behind(files: list[Path], tmp_path: Path) -> None:
    for _ in range(2):
        decode(files, cache_folder=tmp_path / "cache")
    assert len(list((tmp_path / "cache").iterdir())) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0.png", "1.png", "2.png", "3.png", "cache"]
