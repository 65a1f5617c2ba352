"""Crops, flips and colours of a batch, beside torchvision's of one image after another."""

from __future__ import annotations

from collections.abc import Callable
from itertools import permutations

import pytest
import torch
from scipy.stats import chisquare, ks_2samp, kstest
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as tv

from tenfold.shared.logging import TenfoldError
from tenfold.shared.seeding import make_generator
from tenfold.tinymim.augmentation import (
    Colours,
    CropConfig,
    Crops,
    Normaliser,
    crop,
    draw_colours,
    draw_crops,
    jitter,
)

CHANGES: tuple[Callable[[Tensor, float], Tensor], ...] = (
    tv.adjust_brightness,
    tv.adjust_contrast,
    tv.adjust_saturation,
)
ORDERS = list(permutations(range(3)))


def boxes(*each: tuple[float, float, float, float, bool]) -> Crops:
    """Left, top, width, height as shares, and whether the box is mirrored."""
    *shares, flips = zip(*each, strict=True)
    return Crops(*(torch.tensor(values) for values in shares), torch.tensor(flips).float())


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=make_generator(seed))


# -- boxes ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "config", [CropConfig(), CropConfig((0.08, 1.0)), CropConfig((0.5, 1.0), (1.0, 1.0), False)]
)
def test_boxes_lie_within_the_image_and_keep_to_area_and_ratio(config: CropConfig) -> None:
    left, top, width, height, _ = draw_crops(5000, config, make_generator(0))
    assert min(left.min(), top.min()) >= 0
    assert max((left + width).max(), (top + height).max()) <= 1 + 1e-6
    area, ratio = width * height, width / height
    assert area.min() >= config.scale[0] - 1e-6
    assert area.max() <= config.scale[1] + 1e-6
    assert ratio.min() >= config.ratio[0] - 1e-5
    assert ratio.max() <= config.ratio[1] + 1e-5


@pytest.mark.parametrize("scale", [(0.2, 1.0), (0.08, 1.0), (0.85, 1.0)])
def test_boxes_are_distributed_as_torchvisions(scale: tuple[float, float]) -> None:
    side, count = 4096, 4000  # large, since torchvision rounds to pixels
    torch.manual_seed(1)
    theirs_of = v2.RandomResizedCrop(1, scale, antialias=True)
    image = torch.empty(1, side, side, device="meta")
    params = [theirs_of.make_params([image]) for _ in range(count)]
    mine = draw_crops(count, CropConfig(scale), make_generator(2))
    for name in ("left", "top", "width", "height"):
        theirs = torch.tensor([found[name] for found in params]) / side
        assert ks_2samp(getattr(mine, name).numpy(), theirs.numpy()).pvalue > 0.01, name
    areas = torch.tensor([found["width"] * found["height"] for found in params]) / side**2
    assert ks_2samp((mine.width * mine.height).numpy(), areas.numpy()).pvalue > 0.01


def test_a_box_can_be_anywhere_that_it_fits() -> None:
    left, top, width, height, _ = draw_crops(4000, CropConfig((0.3, 0.5)), make_generator(3))
    across, down = left / (1 - width), top / (1 - height)
    assert kstest(across.numpy(), "uniform").pvalue > 0.01
    assert kstest(down.numpy(), "uniform").pvalue > 0.01
    assert torch.stack((across, down)).corrcoef()[0, 1].abs() < 0.05


@pytest.mark.parametrize(
    ("scale", "ratio"),
    [((1.0, 1.0), (3 / 4, 4 / 3)), ((1.0, 1.0), (0.25, 0.5)), ((1.0, 1.0), (2.0, 4.0))],
    ids=["any", "tall", "wide"],
)
def test_where_no_box_fits_the_largest_at_the_centre_is_taken(
    scale: tuple[float, float], ratio: tuple[float, float]
) -> None:
    side = 1000
    params = v2.RandomResizedCrop(1, scale, ratio).make_params([torch.empty(1, side, side, device="meta")])
    found = draw_crops(8, CropConfig(scale, ratio, False), make_generator(0))
    for name in ("left", "top", "width", "height"):
        expected = torch.full((8,), params[name] / side)
        torch.testing.assert_close(getattr(found, name), expected, atol=1e-3, rtol=0)


def test_half_of_the_boxes_are_mirrored_or_none() -> None:
    flips = draw_crops(4000, CropConfig(), make_generator(0)).flips
    assert set(flips.tolist()) == {0, 1}
    assert flips.mean() == pytest.approx(0.5, abs=0.03)
    assert not draw_crops(4000, CropConfig(flip=False), make_generator(0)).flips.any()


def test_a_seed_gives_the_same_boxes_and_colours_and_the_global_generator_none() -> None:
    before = torch.get_rng_state()
    first, second = (draw_crops(6, CropConfig(), make_generator(5)) for _ in range(2))
    other = draw_crops(6, CropConfig(), make_generator(6))
    for mine, again in zip(first, second, strict=True):
        assert torch.equal(mine, again)
    assert not torch.equal(first.left, other.left)
    for mine, again in zip(*(draw_colours(6, 0.4, make_generator(5)) for _ in range(2)), strict=True):
        assert torch.equal(mine, again)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_generator_goes_on_from_batch_to_batch() -> None:
    generator = make_generator(0)
    first, second = (draw_crops(6, CropConfig(), generator) for _ in range(2))
    assert not torch.equal(first.left, second.left)


@pytest.mark.parametrize(
    ("scale", "ratio"),
    [
        ((0.0, 1.0), (1, 1)),
        ((0.5, 0.2), (1, 1)),
        ((0.2, 1.1), (1, 1)),
        ((0.2, 1), (2, 1)),
        ((0.2, 1), (0, 1)),
    ],
)
def test_impossible_crops_are_one_sentence(scale: tuple[float, float], ratio: tuple[float, float]) -> None:
    with pytest.raises(TenfoldError, match="a share of the area from above 0 to 1, at positive ratios"):
        CropConfig(scale, ratio)


# -- crops ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_a_box_of_whole_pixels_is_a_slice(interpolation: str) -> None:
    images = noise(3, 3, 16, 16)
    crops = boxes(
        (4 / 16, 2 / 16, 8 / 16, 8 / 16, False), (0.0, 0.5, 0.5, 0.5, True), (0.5, 0.0, 0.5, 0.5, False)
    )
    found = crop(images, crops, 8, interpolation)
    expected = torch.stack((images[0, :, 2:10, 4:12], images[1, :, 8:, :8].flip(2), images[2, :, :8, 8:]))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("size", [8, 12, 16, 31])
def test_a_whole_image_is_resized(interpolation: str, size: int) -> None:
    images = noise(2, 3, 12, 12)
    found = crop(images, boxes((0.0, 0.0, 1.0, 1.0, False), (0.0, 0.0, 1.0, 1.0, True)), size, interpolation)
    expected = F.interpolate(images, (size, size), mode=interpolation, align_corners=False)
    torch.testing.assert_close(found, torch.stack((expected[0], expected[1].flip(2))), atol=1e-5, rtol=0)


def test_the_inside_of_a_resized_box_is_the_resized_slice() -> None:
    images = noise(1, 3, 20, 20)
    found = crop(images, boxes((0.25, 0.1, 0.5, 0.6, False)), 30)
    expected = F.interpolate(images[:, :, 2:14, 5:15], (30, 30), mode="bicubic", align_corners=False)
    # A slice repeats its edge where the box knows its neighbours: two pixels of it are six and five of the result.
    torch.testing.assert_close(found[..., 6:-6, 7:-7], expected[..., 6:-6, 7:-7], atol=1e-5, rtol=0)
    assert not torch.allclose(found[..., 0, :], expected[..., 0, :], atol=1e-2)


def test_width_goes_across_and_height_down() -> None:
    ramp = (torch.arange(16.0) + 0.5) / 16
    across = ramp.expand(1, 1, 16, 16)
    wide = boxes((0.25, 0.375, 0.5, 0.25, False))
    for images, low, high in ((across, 0.25, 0.75), (across.mT, 0.375, 0.625)):
        found = crop(images, wide, 8, "bilinear")
        half_a_pixel = (high - low) / 16
        assert found.min() == pytest.approx(low + half_a_pixel, abs=1e-5)
        assert found.max() == pytest.approx(high - half_a_pixel, abs=1e-5)


def test_an_image_does_not_depend_on_its_batch() -> None:
    images = noise(5, 3, 12, 12)
    crops, colours = draw_crops(5, CropConfig(), make_generator(1)), draw_colours(5, 0.4, make_generator(2))
    whole = jitter(crop(images, crops, 12, "bilinear"), colours)
    order = torch.tensor([3, 0, 4, 1, 2])
    moved = jitter(
        crop(images[order], Crops(*(values[order] for values in crops)), 12, "bilinear"),
        Colours(*(values[order] for values in colours)),
    )
    torch.testing.assert_close(moved, whole[order], atol=1e-6, rtol=0)
    alone = jitter(
        crop(images[2:3], Crops(*(values[2:3] for values in crops)), 12, "bilinear"),
        Colours(*(values[2:3] for values in colours)),
    )
    torch.testing.assert_close(alone, whole[2:3], atol=1e-6, rtol=0)


@pytest.mark.gpu
def test_a_gpu_gives_the_same_views() -> None:
    images, gpu = noise(6, 3, 24, 24), torch.device("cuda")
    crops, colours = draw_crops(6, CropConfig(), make_generator(1)), draw_colours(6, 0.4, make_generator(2))
    mine = jitter(crop(images, crops, 16).clamp(0, 1), colours)
    theirs = jitter(crop(images.to(gpu), crops.to(gpu), 16).clamp(0, 1), colours.to(gpu))
    torch.testing.assert_close(theirs.cpu(), mine, atol=1e-5, rtol=0)


# -- colours -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", ORDERS)
def test_colours_change_as_torchvisions_image_by_image(order: tuple[int, ...]) -> None:
    images = noise(6, 3, 9, 9)
    factors = draw_colours(6, 0.4, make_generator(1)).factors
    found = jitter(images, Colours(factors, torch.tensor(order).expand(6, 3)))
    for image, factor, mine in zip(images, factors.tolist(), found, strict=True):
        expected = image
        for change in order:
            expected = CHANGES[change](expected, factor[change])
        # torchvision's grey has 0.2989 of red in tensors and 0.299 in PIL's images, as here.
        torch.testing.assert_close(mine, expected, atol=1.2e-4, rtol=0)


def test_every_image_has_an_order_of_its_own() -> None:
    images = noise(1, 3, 9, 9).expand(6, -1, -1, -1)
    factors = torch.tensor([1.4, 0.6, 0.7]).expand(6, 3)
    found = jitter(images, Colours(factors, torch.tensor(ORDERS)))
    for mine, order in zip(found, ORDERS, strict=True):
        alone = jitter(images[:1], Colours(factors[:1], torch.tensor([order])))[0]
        torch.testing.assert_close(mine, alone, atol=1e-6, rtol=0)
    assert len({tuple(mine.flatten().tolist()) for mine in found}) > 3


def test_no_strength_changes_nothing() -> None:
    images = noise(4, 3, 8, 8)
    colours = draw_colours(4, 0.0, make_generator(0))
    assert torch.equal(colours.factors, torch.ones(4, 3))
    assert torch.equal(jitter(images, colours), images)


@pytest.mark.parametrize(("strength", "low", "high"), [(0.4, 0.6, 1.4), (1.0, 0.0, 2.0)])
def test_factors_are_uniform_around_one(strength: float, low: float, high: float) -> None:
    factors = draw_colours(3000, strength, make_generator(0)).factors
    for each in factors.T:
        assert kstest(each.numpy(), "uniform", (low, high - low)).pvalue > 0.01
    assert (factors.T.corrcoef() - torch.eye(3)).abs().max() < 0.06


def test_all_six_orders_are_as_likely() -> None:
    order = draw_colours(6000, 0.4, make_generator(0)).order.tolist()
    counts = [sum(tuple(each) == one for each in order) for one in ORDERS]
    assert sum(counts) == 6000
    assert chisquare(counts).pvalue > 0.01


def test_colours_stay_between_black_and_white() -> None:
    found = jitter(noise(64, 3, 6, 6), draw_colours(64, 1.0, make_generator(1)))
    assert found.min() == 0
    assert found.max() == 1


def test_channels_are_normalised_each_by_its_own() -> None:
    images = torch.stack((torch.full((2, 2), 0.5), torch.full((2, 2), 0.2), torch.zeros(2, 2)))[None]
    found = Normaliser((0.3, 0.2, 0.4), (0.1, 0.5, 0.2), torch.device("cpu"))(images)
    torch.testing.assert_close(found[0, :, 0, 0], torch.tensor([2.0, 0.0, -2.0]))
