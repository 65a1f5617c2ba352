"""Distorted photographs with their proxy score, and BRISQUE, against independent computations."""

from __future__ import annotations

import io
import math
import re
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import piq
import pytest
import skimage.data
import torch
from PIL import Image
from scipy import stats
from torch import Tensor

from tenfold.pmt_iqa.brisque import (
    _asymmetric,
    _scale_features,
    brisque_features,
    features_of,
    fit_and_predict,
    normalised_coefficients,
)
from tenfold.pmt_iqa.degradations import (
    DISTORTIONS,
    PHOTOGRAPHS,
    bundled_photographs,
    distort,
    folder_photographs,
    proxy_score,
)
from tenfold.pmt_iqa.pixels import Picture, PixelStore
from tenfold.shared.logging import TenfoldError

KINDS = ["jpeg", "jpeg2000", "blur", "noise", "contrast"]


@pytest.fixture(scope="module")
def photographs() -> dict[str, Picture]:
    return bundled_photographs()


@pytest.fixture(scope="module")
def clean(photographs: dict[str, Picture]) -> Picture:
    """Part of a cat's face, 96 x 96."""
    return photographs["chelsea"][100:196, 150:246].copy()


def distorted(picture: Picture, kind: str, seed: int = 0) -> list[Picture]:
    apply, strengths = DISTORTIONS[kind]
    return [apply(picture, strength, np.random.default_rng(seed)) for strength in strengths]


# Distortions


def test_there_are_five_distortions_at_five_levels() -> None:
    assert list(DISTORTIONS) == KINDS
    assert [len(strengths) for _, strengths in DISTORTIONS.values()] == [5] * 5


@pytest.mark.parametrize("kind", KINDS)
def test_a_distorted_picture_has_the_form_of_the_clean_one(clean: Picture, kind: str) -> None:
    before = clean.copy()
    for picture in distorted(clean, kind):
        assert picture.dtype == np.uint8 and picture.shape == clean.shape
        assert not np.array_equal(picture, clean)
    np.testing.assert_array_equal(clean, before)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["chelsea", "coffee", "camera", "flower"])
def test_each_level_is_further_from_the_clean_picture_than_the_last(
    photographs: dict[str, Picture], name: str, kind: str
) -> None:
    picture = photographs[name][120:216, 150:246]
    errors = [np.square(found.astype(float) - picture).mean() for found in distorted(picture, kind)]
    assert (np.diff(errors) > 0).all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["chelsea", "coffee", "camera", "flower"])
def test_each_level_scores_lower_than_the_last(photographs: dict[str, Picture], name: str, kind: str) -> None:
    picture = photographs[name][120:216, 150:246]
    assert (np.diff(proxy_score(picture, distorted(picture, kind))) < 0).all()


def recoded(picture: Picture, kind: str, **options: object) -> Picture:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, kind, **options)
    return np.asarray(Image.open(buffer).convert("RGB"))


def test_jpeg_has_the_stated_qualities(clean: Picture) -> None:
    for found, quality in zip(distorted(clean, "jpeg"), (43, 30, 18, 9, 4), strict=True):
        np.testing.assert_array_equal(found, recoded(clean, "JPEG", quality=quality))


def test_jpeg_2000_has_the_stated_rates(clean: Picture) -> None:
    for found, rate in zip(distorted(clean, "jpeg2000"), (16, 32, 52, 90, 170), strict=True):
        options = {"quality_mode": "rates", "quality_layers": [rate]}
        np.testing.assert_array_equal(found, recoded(clean, "JPEG2000", **options))


def test_blur_has_the_stated_widths_in_each_channel_alone() -> None:
    """The deviation of what becomes of a bright line, in both directions."""
    picture = np.zeros((81, 81, 3), np.uint8)
    picture[:, 40, 0] = 255
    picture[40, :, 2] = 255
    steps = np.arange(81) - 40
    for found, sigma in zip(distorted(picture, "blur"), (0.7, 1.2, 1.8, 2.8, 4.5), strict=True):
        for line in (found[10, :, 0], found[:, 10, 2]):
            width = math.sqrt((line * steps**2.0).sum() / line.sum())
            assert width == pytest.approx(sigma, rel=0.08)
        assert not found[:, :, 1].any()


def test_noise_has_the_stated_variances_independent_in_each_channel() -> None:
    grey = np.full((96, 96, 3), 128, np.uint8)
    levels = zip(distorted(grey, "noise"), (0.001, 0.003, 0.008, 0.02), strict=False)
    for found, variance in levels:  # at the last level, bytes cut the noise off
        noise = (found.astype(float) - 128).reshape(-1, 3) / 255
        np.testing.assert_allclose(noise.var(axis=0), variance, rtol=0.06)
        assert np.abs(np.corrcoef(noise.T)[~np.eye(3, dtype=bool)]).max() < 0.05
        assert abs(noise.mean()) < 0.005


def test_noise_beyond_black_and_white_is_cut_off() -> None:
    """Not carried over to the other end of the bytes."""
    picture = np.concatenate([np.zeros((48, 96, 3), np.uint8), np.full((48, 96, 3), 255, np.uint8)])
    found = distorted(picture, "noise")[2]
    assert found[:48].min() == 0 and found[:48].max() < 128
    assert found[48:].max() == 255 and found[48:].min() > 128


def test_noise_depends_on_its_generator_alone(clean: Picture) -> None:
    first, again, other = (np.stack(distorted(clean, "noise", seed)) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_contrast_shrinks_by_the_stated_factors_about_the_mean_of_each_channel(clean: Picture) -> None:
    tinted = clean // np.array([1, 2, 4], np.uint8)
    mean = tinted.reshape(-1, 3).mean(axis=0)
    for found, factor in zip(distorted(tinted, "contrast"), (0.8, 0.62, 0.46, 0.32, 0.2), strict=True):
        assert np.abs((found - mean) - factor * (tinted - mean)).max() <= 0.51


# The proxy score


def gmsd(clean: np.ndarray, judged: np.ndarray) -> float:
    """As the specification has it: luma, 2 x 2 means, Prewitt / 3, c = 170, the deviation of the similarity."""

    def gradients(picture: np.ndarray) -> np.ndarray:
        luma = picture.astype(np.float64) @ [0.299, 0.587, 0.114]
        halved = (luma[::2, ::2] + luma[1::2, ::2] + luma[::2, 1::2] + luma[1::2, 1::2]) / 4
        around = np.pad(halved, 1)
        columns = (around[:-2] + around[1:-1] + around[2:]) / 3
        rows = (around[:, :-2] + around[:, 1:-1] + around[:, 2:]) / 3
        return np.hypot(columns[:, 2:] - columns[:, :-2], rows[2:] - rows[:-2])

    one, other = gradients(clean), gradients(judged)
    return float(((2 * one * other + 170) / (one**2 + other**2 + 170)).std())


@pytest.mark.parametrize("name", ["astronaut", "chelsea", "rocket", "gravel"])
def test_the_proxy_score_is_that_of_the_specification(photographs: dict[str, Picture], name: str) -> None:
    picture = photographs[name][60:140, 100:196]
    judged = [found for kind in KINDS for found in distorted(picture, kind)]
    expected = [10 * min(max(1 - gmsd(picture, found) / 0.30, 0), 1) for found in judged]
    np.testing.assert_allclose(proxy_score(picture, judged), expected, atol=2e-4)
    assert max(expected) - min(expected) > 3


def test_identical_pictures_score_ten(clean: Picture) -> None:
    flat = np.full_like(clean, 90)
    assert proxy_score(clean, [clean, clean.copy()]).tolist() == [10, 10]
    assert proxy_score(flat, [flat]).tolist() == [10]


def test_a_proxy_score_does_not_fall_below_zero() -> None:
    """Half of the gradients are lost and half are kept, which is as far apart as similarities get."""
    rng = np.random.RandomState(0)
    picture = (
        np.repeat(rng.choice([0, 255], (64, 64, 1)), 3, axis=2).repeat(2, 0).repeat(2, 1).astype(np.uint8)
    )
    judged = picture.copy()
    judged[:64] = 128
    assert gmsd(picture, judged) > 0.31
    assert proxy_score(picture, [judged]).tolist() == [0]


def test_each_picture_is_scored_by_itself(clean: Picture) -> None:
    judged = [found for kind in KINDS for found in distorted(clean, kind)[::2]]
    together = proxy_score(clean, judged)
    alone = [float(proxy_score(clean, [found])[0]) for found in judged]
    assert together.shape == (15,) and together.dtype == np.float32
    np.testing.assert_allclose(together, alone, rtol=1e-5)


# Sets of distorted pictures


@pytest.fixture(scope="module")
def two(photographs: dict[str, Picture]) -> dict[str, Picture]:
    """One photograph of the crops' size, and a larger one whose name has a hyphen."""
    return {"exact": photographs["coffee"][100:148, 200:248], "a-b": photographs["china"][200:280, 200:300]}


def test_every_crop_is_distorted_in_every_way(two: dict[str, Picture]) -> None:
    made = distort(two, size=48, crops=2)
    assert made.names == [
        f"{name}-{crop}-{kind}-{level}"
        for name in ("exact", "a-b")
        for crop in (0, 1)
        for kind in KINDS
        for level in (1, 2, 3, 4, 5)
    ]
    assert len(made.pictures) == len(made.scores) == 100
    assert {picture.shape for picture in made.pictures} == {(48, 48, 3)}


def test_pictures_are_grouped_by_their_photograph(two: dict[str, Picture]) -> None:
    made = distort(two, size=48, crops=2)
    assert made.photographs == ["exact"] * 50 + ["a-b"] * 50


def test_pictures_and_scores_belong_to_their_names(two: dict[str, Picture]) -> None:
    """The crop of a photograph of its own size is the photograph."""
    picture = two["exact"]
    made = distort({"exact": picture}, size=48, crops=1)
    np.testing.assert_allclose(made.scores, proxy_score(picture, made.pictures), rtol=1e-5)
    found = dict(zip(made.names, made.pictures, strict=True))
    for kind in ("jpeg", "jpeg2000", "blur", "contrast"):
        for level, expected in enumerate(distorted(picture, kind), start=1):
            np.testing.assert_array_equal(found[f"exact-0-{kind}-{level}"], expected)


def test_crops_lie_at_different_places(two: dict[str, Picture]) -> None:
    made = distort({"a-b": two["a-b"]}, size=48, crops=4)
    kinds = {made.pictures[25 * crop].tobytes() for crop in range(4)}
    assert len(kinds) == 4


def test_a_set_can_be_repeated_and_differs_by_seed(two: dict[str, Picture]) -> None:
    first, again, other = (distort({"a-b": two["a-b"]}, size=32, crops=2, seed=seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first.pictures, again.pictures)
    np.testing.assert_array_equal(first.scores, again.scores)
    assert first.names == again.names == other.names
    assert not np.array_equal(first.pictures, other.pictures)


def test_noise_differs_from_level_to_level_and_from_crop_to_crop(two: dict[str, Picture]) -> None:
    """One pattern, only stronger, would be learned by heart."""
    picture = np.full((48, 48, 3), 128, np.uint8)
    made = distort({"grey": picture}, size=48, crops=2)
    noise = [
        found.astype(float).ravel() - 128
        for name, found in zip(made.names, made.pictures, strict=True)
        if "noise" in name
    ]
    assert np.abs(np.corrcoef(noise)[~np.eye(10, dtype=bool)]).max() < 0.1


def test_a_photograph_smaller_than_a_crop_is_named(two: dict[str, Picture]) -> None:
    with pytest.raises(TenfoldError, match=r"^the photograph exact is smaller than 49 pixels; leave it out$"):
        distort(two, size=49)


# Photographs


def test_twelve_photographs_come_with_the_installed_packages(photographs: dict[str, Picture]) -> None:
    assert list(photographs) == list(PHOTOGRAPHS)
    assert len(photographs) == 12
    for picture in photographs.values():
        assert picture.dtype == np.uint8 and picture.shape[2:] == (3,)
        assert min(picture.shape[:2]) >= 128 and picture.std() > 10
    assert len({picture.tobytes() for picture in photographs.values()}) == 12


def test_grey_photographs_have_equal_channels_and_coloured_ones_have_not(
    photographs: dict[str, Picture],
) -> None:
    grey = {name for name, picture in photographs.items() if (picture == picture[:, :, :1]).all()}
    assert grey == {"camera", "coins", "brick", "grass", "gravel"}


def test_the_left_picture_of_the_stereo_pair_is_taken(photographs: dict[str, Picture]) -> None:
    left, right, _ = skimage.data.stereo_motorcycle()
    np.testing.assert_array_equal(photographs["stereo_motorcycle"], left)
    assert not np.array_equal(photographs["stereo_motorcycle"], right)


def save_all(folder: Path, names: list[str]) -> None:
    folder.mkdir(exist_ok=True)
    for colour, name in enumerate(names):
        Image.new("RGB", (10, 8), (40 * colour,) * 3).save(folder / name)


def test_photographs_of_a_folder_come_in_the_order_of_their_names(tmp_path: Path) -> None:
    save_all(tmp_path, ["d.png", "b.JPG", "c.bmp", "a.jpeg"])
    (tmp_path / "notes.txt").write_text("no photograph")
    found = folder_photographs(tmp_path)
    assert list(found) == ["a.jpeg", "b.JPG", "c.bmp", "d.png"]
    assert [int(picture[0, 0, 0]) for picture in found.values()] == [120, 40, 80, 0]


def test_photographs_that_differ_only_in_their_ending_are_two(tmp_path: Path) -> None:
    save_all(tmp_path, ["a.png", "a.bmp", "b.png", "b.bmp"])
    assert len(folder_photographs(tmp_path)) == 4


@pytest.mark.parametrize("names", [[], ["a.png", "b.png", "c.png"]])
def test_fewer_than_four_photographs_are_refused(tmp_path: Path, names: list[str]) -> None:
    save_all(tmp_path, names)
    message = f"^{re.escape(str(tmp_path))} holds {len(names)} photographs; at least 4"
    with pytest.raises(TenfoldError, match=message):
        folder_photographs(tmp_path)


def test_a_damaged_photograph_of_a_folder_is_named(tmp_path: Path) -> None:
    save_all(tmp_path, ["a.png", "b.png", "c.png", "d.png"])
    (tmp_path / "c.png").write_bytes(b"nothing")
    with pytest.raises(TenfoldError, match=re.escape(str(tmp_path / "c.png"))):
        folder_photographs(tmp_path)


# BRISQUE


LUMA = torch.tensor([0.299, 0.587, 0.114])


def luma_of(*pictures: Picture) -> Tensor:
    return torch.from_numpy(np.stack(pictures)).float().matmul(LUMA)[:, None]


def test_features_are_36_finite_numbers_for_every_picture(clean: Picture) -> None:
    pictures = [clean, *(found for kind in KINDS for found in distorted(clean, kind))]
    features = brisque_features(luma_of(*pictures))
    assert features.shape == (26, 36) and features.dtype == torch.float64
    assert features.isfinite().all()


def test_pictures_without_content_have_finite_features() -> None:
    flat = torch.stack([torch.full((1, 40, 40), value) for value in (0.0, 77.0, 255.0)])
    assert brisque_features(flat).isfinite().all()


def test_a_constant_picture_has_no_coefficients() -> None:
    flat = torch.full((1, 1, 24, 30), 137.0)
    torch.testing.assert_close(normalised_coefficients(flat), torch.zeros_like(flat), atol=1e-4, rtol=0)


def test_coefficients_are_those_of_the_definition_at_a_pixel(clean: Picture) -> None:
    """Mean and deviation in a 7 x 7 window whose weights fall with the distance."""
    luma = luma_of(clean).double()
    rows, columns = np.mgrid[-3:4, -3:4]
    weights = np.exp(-(rows**2 + columns**2) / (2 * (7 / 6) ** 2))
    weights /= weights.sum()
    found = normalised_coefficients(luma)[0, 0]
    for top, left in ((40, 50), (3, 92), (92, 3)):
        window = luma[0, 0, top - 3 : top + 4, left - 3 : left + 4].numpy()
        mean = (weights * window).sum()
        deviation = math.sqrt((weights * (window - mean) ** 2).sum())
        expected = (window[3, 3] - mean) / (deviation + 1)
        assert float(found[top, left]) == pytest.approx(expected, abs=1e-9)


def framed(picture: Picture, width: int = 24) -> Tensor:
    """In a black frame, wherein it does not matter how a window goes on beyond the edge."""
    return torch.nn.functional.pad(luma_of(picture).double(), (width,) * 4)


@pytest.mark.parametrize("kind", ["clean", *KINDS])
def test_features_of_both_scales_are_those_of_another_implementation(clean: Picture, kind: str) -> None:
    """That of piq, to a step of the table of shapes."""
    luma = framed(clean if kind == "clean" else distorted(clean, kind)[2])
    features = brisque_features(luma)[0]
    halved = torch.nn.functional.interpolate(luma, scale_factor=0.5, mode="bicubic", antialias=True)
    statistics = sys.modules[piq.brisque.__module__]._natural_scene_statistics
    expected = torch.cat([statistics(scale)[0] for scale in (luma, halved)])
    torch.testing.assert_close(features, expected, rtol=0, atol=2e-3)


def sample(name: str, seed: int = 0) -> Tensor:
    rng = np.random.default_rng(seed)
    return torch.from_numpy(getattr(rng, name)(size=(1, 1, 300, 300)))


@pytest.mark.parametrize(("name", "shape", "variance"), [("normal", 2, 1), ("laplace", 1, 2)])
def test_shape_and_variance_of_known_distributions_are_found(
    name: str, shape: float, variance: float
) -> None:
    features = _scale_features(3 * sample(name))[0]
    assert float(features[0]) == pytest.approx(shape, rel=0.03)
    assert float(features[1]) == pytest.approx(9 * variance, rel=0.03)


def test_a_uniform_distribution_has_a_large_shape() -> None:
    assert float(_scale_features(sample("random") - 0.5)[0, 0]) > 5


def test_independent_neighbours_have_symmetric_products() -> None:
    for shape, mean, left, right in _scale_features(sample("normal"))[0, 2:].view(4, 4).tolist():
        assert mean == pytest.approx(0, abs=0.03)
        assert left == pytest.approx(right, rel=0.06)
        assert shape < 1  # products of normal numbers have heavier tails than they


def test_equal_neighbours_are_seen_in_their_direction_alone() -> None:
    """Each column is one number: products along it are squares."""
    features = _scale_features(sample("normal")[:, :, :1].expand(1, 1, 300, 300).contiguous())[0]
    along, across, diagonal, other = features[2:].view(4, 4)[[1, 0, 2, 3], 1].tolist()
    assert along > 0.5
    assert max(abs(across), abs(diagonal), abs(other)) < 0.25


def test_the_parameters_of_an_asymmetric_distribution_are_found() -> None:
    """Halves of two normal curves, of deviations 1 and 2, each as heavy as it is wide."""
    rng = np.random.default_rng(0)
    left = rng.random(200_000) < 1 / 3
    values = np.abs(rng.normal(size=200_000)) * np.where(left, -1, 2)
    shape, mean, below, above = (float(value) for value in _asymmetric(torch.from_numpy(values)[None]))
    assert shape == pytest.approx(2, rel=0.03)
    assert (below, above) == pytest.approx((1, 4), rel=0.03)
    assert mean == pytest.approx(values.mean(), rel=0.03)


def test_mirrored_values_swap_both_sides() -> None:
    values = torch.from_numpy(np.random.default_rng(1).gumbel(size=(3, 5000)))
    shape, mean, below, above = _asymmetric(values)
    other_shape, other_mean, other_below, other_above = _asymmetric(-values)
    torch.testing.assert_close(other_shape, shape)
    torch.testing.assert_close(other_mean, -mean)
    torch.testing.assert_close(torch.stack((other_below, other_above)), torch.stack((above, below)))


@pytest.mark.parametrize("name", ["chelsea", "coffee", "flower"])
@pytest.mark.parametrize(("kind", "sign"), [("blur", -1), ("noise", 1), ("contrast", -1)])
def test_the_variance_of_the_coefficients_follows_the_distortion(
    photographs: dict[str, Picture], name: str, kind: str, sign: int
) -> None:
    """Blur and lost contrast take detail away, noise adds it; at both scales."""
    picture = photographs[name][120:216, 150:246]
    features = brisque_features(luma_of(picture, *distorted(picture, kind)))
    assert (sign * features[:, [1, 19]].diff(dim=0) > 0).all()


@pytest.mark.parametrize("name", ["chelsea", "coffee", "flower"])
def test_noise_brings_the_shape_up(photographs: dict[str, Picture], name: str) -> None:
    picture = photographs[name][120:216, 150:246]
    shapes = brisque_features(luma_of(picture, *distorted(picture, "noise")))[:, 0].tolist()
    assert shapes[0] == min(shapes) < shapes[1] < shapes[4] < shapes[5]


def test_features_in_a_batch_are_those_of_each_picture_alone(clean: Picture) -> None:
    luma = luma_of(clean, *distorted(clean, "blur"), *distorted(clean, "noise"))
    alone = torch.cat([brisque_features(image[None]) for image in luma])
    torch.testing.assert_close(brisque_features(luma), alone, rtol=1e-5, atol=2e-3)


def test_a_mirrored_picture_keeps_its_shape_and_variance(clean: Picture) -> None:
    one, other = brisque_features(luma_of(clean, clean[:, ::-1].copy()))
    torch.testing.assert_close(other[[0, 1, 18, 19]], one[[0, 1, 18, 19]], rtol=1e-3, atol=2e-3)


def test_features_of_a_set_are_those_of_its_images_of_any_sizes(photographs: dict[str, Picture]) -> None:
    picture = photographs["coffee"]
    pictures = [picture[top : top + 40 + 8 * (top % 3), 100 : 100 + 56] for top in range(10, 17)]
    found = features_of(PixelStore.of(pictures))
    assert found.shape == (7, 36)
    for row, part in zip(found, pictures, strict=True):
        np.testing.assert_allclose(row, brisque_features(luma_of(part))[0].numpy(), rtol=1e-5, atol=2e-3)


def relation(count: int = 90) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Scores that rise with one of 36 features and fall with another, in 9 groups."""
    features = np.random.default_rng(0).normal(size=(count, 36))
    return features, 50 + 10 * features[:, 3] - 6 * features[:, 20], [f"g{k % 9}" for k in range(count)]


def test_the_regression_learns_a_simple_relation() -> None:
    features, scores, groups = relation()
    train, test = np.arange(63), np.arange(63, 90)
    predicted = fit_and_predict(features, scores, groups, train, test)
    assert predicted.shape == (27,)
    assert stats.pearsonr(predicted, scores[test])[0] > 0.8


def test_the_regression_does_not_see_the_scores_it_predicts() -> None:
    features, scores, groups = relation()
    train, test = np.arange(63), np.arange(63, 90)
    spoiled = scores.copy()
    spoiled[test] = np.random.default_rng(1).permutation(spoiled[test])
    np.testing.assert_array_equal(
        fit_and_predict(features, scores, groups, train, test),
        fit_and_predict(features, spoiled, groups, train, test),
    )


def test_the_regression_learns_nothing_from_shuffled_scores() -> None:
    features, scores, groups = relation()
    train, test = np.arange(63), np.arange(63, 90)
    shuffled = scores.copy()
    shuffled[train] = np.random.default_rng(2).permutation(shuffled[train])
    predicted = fit_and_predict(features, shuffled, groups, train, test)
    assert np.ptp(predicted) == 0 or abs(stats.pearsonr(predicted, scores[test])[0]) < 0.5


@pytest.mark.parametrize("scale", [1e-3, 1e3])
def test_the_units_of_a_feature_do_not_matter_to_the_regression(scale: float) -> None:
    features, scores, groups = relation()
    units = np.where(np.arange(36) % 2, scale, 1.0)
    train, test = np.arange(63), np.arange(63, 90)
    one, other = (fit_and_predict(part, scores, groups, train, test) for part in (features, features * units))
    np.testing.assert_allclose(other, one, rtol=1e-3)


def test_a_single_group_cannot_be_tuned_on() -> None:
    features, scores, groups = relation(30)
    with pytest.raises(TenfoldError, match=r"^the training images are all of one group"):
        fit_and_predict(features, scores, ["g"] * 24 + groups[24:], np.arange(24), np.arange(24, 30))


@pytest.mark.parametrize("scale", [0.01, 10.0])
def test_the_units_of_the_scores_do_not_matter_to_the_regression(scale: float) -> None:
    features, scores, groups = relation()
    train, test = np.arange(63), np.arange(63, 90)
    one, other = (fit_and_predict(features, part, groups, train, test) for part in (scores, scale * scores))
    np.testing.assert_allclose(other / scale, one, rtol=1e-3)


@pytest.mark.parametrize("count", [2, 3, 5])
def test_few_groups_are_enough_to_tune_on(count: int) -> None:
    features, scores, _ = relation(30)
    groups = [f"g{k % count}" for k in range(30)]
    assert np.isfinite(fit_and_predict(features, scores, groups, np.arange(24), np.arange(24, 30))).all()


def test_distorted_photographs_are_ranked_by_what_brisque_learned(photographs: dict[str, Picture]) -> None:
    few = {name: photographs[name] for name in ("chelsea", "coffee", "flower", "astronaut", "china")}
    made = distort(few, size=96, crops=1)
    features = features_of(PixelStore.of(made.pictures))
    held_out = np.array([name == "china" for name in made.photographs])
    train, test = np.flatnonzero(~held_out), np.flatnonzero(held_out)
    predicted = fit_and_predict(features, made.scores.astype(float), made.photographs, train, test)
    assert Counter(made.photographs) == dict.fromkeys(few, 25)
    assert stats.spearmanr(predicted, made.scores[test])[0] > 0.4
