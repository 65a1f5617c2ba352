"""Learning curves: seed bands and thinning; and how numbers are written."""

import numpy as np
import pytest

from tenfold.benchmarks.curves import MOST_POINTS, curve_figures, seed_band, thinned
from tenfold.benchmarks.formatting import duration, memory, number, spread


def curve(x, y):
    return {"x": x, "y": y, "x_label": "epoch"}


def test_a_band_holds_mean_and_range_over_seeds():
    band = seed_band("GFKD", [curve([1, 2], [1.0, 4.0]), curve([1, 2], [3.0, 2.0])])
    assert band.mean.tolist() == [2.0, 3.0]
    assert (band.low.tolist(), band.high.tolist()) == ([1.0, 2.0], [3.0, 4.0])
    assert band.final == (2.0, 3.0, 2.0, 4.0)


def test_a_diverged_seed_leaves_the_band_to_the_others():
    band = seed_band("GFKD", [curve([1, 2], [1.0, None]), curve([1, 2], [3.0, 5.0])])
    assert band.mean.tolist() == [2.0, 5.0]


def test_a_band_is_open_where_no_seed_has_a_value():
    band = seed_band("GFKD", [curve([1, 2], [None, None])])
    assert np.isnan(band.mean).all()
    assert band.final is None


def test_seeds_logged_at_other_steps_are_interpolated_within_their_own_range():
    band = seed_band("GFKD", [curve([0, 2], [0.0, 2.0]), curve([1, 3], [5.0, 7.0])])
    assert band.x.tolist() == [0, 1, 2, 3]
    assert band.mean.tolist() == [0.0, 3.0, 4.0, 7.0]


def test_thinning_keeps_ends_and_extremes():
    y = np.zeros(100_000)
    y[12_345], y[77_777] = 9.0, -9.0
    kept = thinned(y)
    assert len(kept) <= MOST_POINTS + 2
    assert {0, 12_345, 77_777, 99_999} <= set(kept.tolist())


def test_there_is_one_figure_per_dataset_setting_and_curve(record):
    results = [record(seed=0), record(seed=1), record(method="RandG"), record(dataset="PTC")]
    figures = curve_figures(results)
    assert [(figure.dataset, [(band.method, band.seeds) for band in figure.bands]) for figure in figures] == [
        ("MUTAG-quick", [("GFKD", 2), ("RandG", 1)]),
        ("PTC", [("GFKD", 1)]),
    ]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "–"),
        (0, "0"),
        (3, "3"),
        (-0.12345, "−0.1235"),
        (1234567.8, "1,234,568"),
        (2.5e-7, "2.5 × 10⁻⁷"),
        (100.0, "100"),
    ],
)
def test_numbers_have_four_significant_digits(value, text):
    assert number(value) == text


@pytest.mark.parametrize(
    ("mean", "std", "text"),
    [
        (70.213, 1.34, "70.2 ± 1.3"),
        (0.82134, 0.0123, "0.821 ± 0.012"),
        (70.213, None, "70.21"),
        (5.0, 0.0, "5 ± 0"),
        (-12345.0, 678.0, "−12,345 ± 678"),
    ],
)
def test_a_mean_is_written_to_the_precision_of_its_spread(mean, std, text):
    assert spread(mean, std) == text


def test_durations_and_sizes_are_written_in_fitting_units():
    assert [duration(seconds) for seconds in (4.21, 185, 7620)] == ["4.2 s", "3 min 05 s", "2 h 07 min"]
    assert [memory(size) for size in (None, 512, 3 * 2**29)] == ["–", "512 B", "1.5 GiB"]
