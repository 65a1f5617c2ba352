"""Agreement of predictions with labels, and what is said of several runs, against SciPy and hand counts."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from scipy import stats

from tenfold.pmt_iqa.evaluation import (
    agreement,
    logistic_fit,
    median_over_runs,
    paired_difference,
    patch_average_metrics,
    summarise,
)
from tenfold.shared.logging import TenfoldError

# Agreement


@pytest.fixture
def judged() -> tuple[np.ndarray, np.ndarray]:
    """Predictions of 60 images, some of them equal, and labels that they roughly follow."""
    rng = np.random.RandomState(0)
    labels = rng.uniform(0, 100, 60).round()
    return (0.5 * labels + rng.normal(20, 12, 60)).round(), labels


def test_agreement_is_that_of_scipy(judged: tuple[np.ndarray, np.ndarray]) -> None:
    predictions, labels = judged
    found = agreement(predictions, labels)
    assert set(found) == {"srcc", "plcc", "krcc", "rmse"}
    assert found["srcc"] == pytest.approx(stats.spearmanr(predictions, labels)[0], rel=1e-12)
    assert found["plcc"] == pytest.approx(stats.pearsonr(predictions, labels)[0], rel=1e-12)
    assert found["krcc"] == pytest.approx(stats.kendalltau(predictions, labels)[0], rel=1e-12)
    assert found["rmse"] == pytest.approx(math.sqrt(np.square(predictions - labels).mean()), rel=1e-12)


def test_agreement_of_four_images_is_that_counted_by_hand() -> None:
    """Ranks 1 2 4 3 against 1 2 3 4: one pair of six is turned round, and two ranks are off by one."""
    found = agreement([1.0, 2.0, 9.0, 3.0], [10.0, 20.0, 30.0, 40.0])
    assert found["srcc"] == pytest.approx(1 - 6 * 2 / (4 * 15))
    assert found["krcc"] == pytest.approx((5 - 1) / 6)
    assert found["rmse"] == pytest.approx(math.sqrt((9**2 + 18**2 + 21**2 + 37**2) / 4))


@pytest.mark.parametrize("fit", ["none", "logistic4"])
def test_labels_predict_themselves_perfectly(judged: tuple[np.ndarray, np.ndarray], fit: Any) -> None:
    found = agreement(judged[1], judged[1], fit)
    assert (found["srcc"], found["krcc"]) == pytest.approx((1, 1))
    assert found["plcc"] == pytest.approx(1, abs=0.001)
    assert found["rmse"] == pytest.approx(0, abs=1.5)


def test_a_turned_scale_agrees_negatively(judged: tuple[np.ndarray, np.ndarray]) -> None:
    predictions, labels = judged
    one, other = agreement(predictions, labels), agreement(-predictions, labels)
    for name in ("srcc", "plcc", "krcc"):
        assert other[name] == pytest.approx(-one[name], rel=1e-9)


def test_only_ranks_count_for_srcc_and_krcc(judged: tuple[np.ndarray, np.ndarray]) -> None:
    predictions, labels = judged
    one, other = agreement(predictions, labels), agreement(np.exp(predictions / 20), labels)
    assert (other["srcc"], other["krcc"]) == pytest.approx((one["srcc"], one["krcc"]))
    assert other["plcc"] < one["plcc"]


def test_a_column_of_predictions_counts_as_their_list(judged: tuple[np.ndarray, np.ndarray]) -> None:
    predictions, labels = judged
    assert agreement(predictions[:, None], labels.tolist()) == agreement(predictions, labels)


@pytest.mark.parametrize("fit", ["none", "logistic4"])
def test_constant_predictions_agree_with_nothing(fit: Any) -> None:
    found = agreement([40.0] * 5, [10.0, 20.0, 30.0, 40.0, 50.0], fit)
    assert (found["srcc"], found["plcc"], found["krcc"]) == (0, 0, 0)
    assert found["rmse"] == pytest.approx(math.sqrt((900 + 400 + 100 + 0 + 100) / 5))


@pytest.mark.parametrize(
    ("predictions", "labels", "message"),
    [
        ([1.0, 2.0, 3.0], [1.0, 2.0], "not 3 and 2$"),
        ([1.0], [1.0], "at least two labels, not 1 and 1$"),
        ([], [], "not 0 and 0$"),
        ([1.0, 2.0, 3.0, 4.0], [7.0] * 4, "^all labels are 7, so no order can be compared"),
        ([1.0, math.nan, 3.0, 4.0], [1.0, 2.0, 3.0, 4.0], "^the predictions are not finite numbers"),
        ([1.0, math.inf, 3.0, 4.0], [1.0, 2.0, 3.0, 4.0], "^the predictions are not finite numbers"),
        ([1.0, 2.0, 3.0, 4.0], [1.0, math.nan, 3.0, 4.0], "labels"),
    ],
    ids=["lengths", "one image", "none", "constant labels", "nan", "infinite", "nan label"],
)
def test_what_cannot_be_compared_is_refused(
    predictions: list[float], labels: list[float], message: str
) -> None:
    with pytest.raises(TenfoldError, match=message):
        agreement(predictions, labels)
    with pytest.raises(TenfoldError, match=message):
        logistic_fit(predictions, labels)


# The logistic fit


def curve(x: np.ndarray, top: float, bottom: float, middle: float, width: float) -> np.ndarray:
    return bottom + (top - bottom) / (1 + np.exp(-(x - middle) / width))


KNOWN = {
    "rising": (np.linspace(-4, 4, 50), (90.0, 10.0, 0.5, 0.8)),
    "large numbers": (np.linspace(0, 1000, 40), (4.8, 1.2, 420.0, 90.0)),
    "small numbers": (np.linspace(0.001, 0.002, 40), (1.0, 0.0, 0.0016, 0.0001)),
}


@pytest.mark.parametrize("kind", KNOWN)
def test_a_logistic_relation_is_recovered(kind: str) -> None:
    predictions, parameters = KNOWN[kind]
    labels = curve(predictions, *parameters)
    np.testing.assert_allclose(logistic_fit(predictions, labels), labels, atol=1e-4 * np.ptp(labels))


@pytest.mark.parametrize("kind", KNOWN)
def test_a_logistic_relation_gives_a_plcc_of_one_and_no_error(kind: str) -> None:
    predictions, parameters = KNOWN[kind]
    labels = curve(predictions, *parameters)
    found = agreement(predictions, labels, "logistic4")
    assert found["plcc"] == pytest.approx(1, abs=1e-6) and found["rmse"] < 1e-3 * np.ptp(labels)
    straight = agreement(predictions, labels)
    assert abs(straight["plcc"]) < 0.99 and straight["rmse"] > 0.1 * np.ptp(labels)


def test_the_fit_leaves_ranks_to_the_predictions(judged: tuple[np.ndarray, np.ndarray]) -> None:
    plain, fitted = agreement(*judged), agreement(*judged, "logistic4")
    assert (fitted["srcc"], fitted["krcc"]) == (plain["srcc"], plain["krcc"])


@pytest.mark.parametrize("seed", range(5))
def test_the_fitted_curve_is_monotone_and_no_worse_than_a_line(seed: int) -> None:
    rng = np.random.RandomState(seed)
    predictions = rng.normal(50, 15, 80)
    labels = np.tanh((predictions - 50) / 10) + rng.normal(0, 0.4, 80)
    steps = np.diff(logistic_fit(predictions, labels)[predictions.argsort()])
    assert (steps >= 0).all() and steps.max() > 0
    fitted, line = agreement(predictions, labels, "logistic4"), stats.linregress(predictions, labels)
    assert fitted["plcc"] >= line.rvalue - 1e-4
    assert fitted["rmse"] <= np.std(labels) * math.sqrt(1 - line.rvalue**2) + 1e-4


def test_a_falling_relation_is_not_turned_round() -> None:
    """Predictions that are worst where labels are best do not become good ones by the fit."""
    rng = np.random.RandomState(0)
    predictions = rng.uniform(0, 1, 60)
    labels = 100 - 80 * predictions + rng.normal(0, 5, 60)
    found = agreement(predictions, labels, "logistic4")
    assert found["plcc"] < 0.05 and found["srcc"] < -0.9
    assert (np.diff(logistic_fit(predictions, labels)[predictions.argsort()]) >= 0).all()


@pytest.mark.parametrize("count", [2, 3])
def test_fewer_images_than_the_curve_has_parameters_are_refused(count: int) -> None:
    predictions, labels = np.arange(count) / 10.0, 30.0 + 4 * np.arange(count)
    for call in (
        lambda: logistic_fit(predictions, labels),
        lambda: agreement(predictions, labels, "logistic4"),
    ):
        with pytest.raises(TenfoldError, match=f"at least 4 images, not {count}$"):
            call()
    assert agreement(predictions, labels)["plcc"] == pytest.approx(1)


def test_a_relation_without_upper_end_loses_nothing_by_the_fit() -> None:
    """Least squares drive the end of a logistic curve through an exponential one to infinity."""
    predictions = np.linspace(-2, 2, 30)
    labels = np.exp(predictions)
    mapped = logistic_fit(predictions, labels)
    assert np.isfinite(mapped).all() and (np.diff(mapped) > 0).all()
    assert stats.pearsonr(mapped, labels)[0] >= stats.pearsonr(predictions, labels)[0] - 1e-9


def test_the_order_of_the_images_does_not_matter_to_the_fit(judged: tuple[np.ndarray, np.ndarray]) -> None:
    predictions, labels = judged
    order = np.random.RandomState(3).permutation(60)
    np.testing.assert_allclose(
        logistic_fit(predictions[order], labels[order]), logistic_fit(predictions, labels)[order], atol=1e-3
    )


# Several crops of an image


def test_crops_are_averaged_before_they_are_compared() -> None:
    """By crops the order is wrong, by images it is right."""
    predictions = [0.0, 10.0, 7.0, 5.0, 13.0, 3.0]
    targets = [1.0, 1.0, 2.0, 2.0, 3.0, 3.0]
    means, labels = [5.0, 6.0, 8.0], [1.0, 2.0, 3.0]
    srcc, plcc = patch_average_metrics(predictions, targets, 2)
    assert srcc == pytest.approx(1)
    assert plcc == pytest.approx(stats.pearsonr(means, labels)[0], rel=1e-12)


def test_labels_are_averaged_over_crops_as_well() -> None:
    srcc, _ = patch_average_metrics([1, 1, 2, 2, 3, 3], [0, 8, 5, 5, 1, 13], 2)
    assert srcc == pytest.approx(1)


def test_one_crop_for_each_image_changes_nothing(judged: tuple[np.ndarray, np.ndarray]) -> None:
    found = agreement(*judged)
    assert patch_average_metrics(*judged, 1) == (found["srcc"], found["plcc"])


def test_columns_of_crops_count_as_their_lists() -> None:
    predictions, targets = np.arange(12.0) ** 2, np.repeat([1.0, 5.0, 4.0], 4)
    as_columns = patch_average_metrics(predictions[:, None], targets[:, None], 4)
    assert as_columns == patch_average_metrics(predictions, targets, 4)


@pytest.mark.parametrize(("predictions", "targets", "crops"), [(7, 7, 2), (6, 4, 2), (6, 6, 0), (6, 6, -1)])
def test_a_number_of_crops_that_does_not_divide_is_refused(
    predictions: int, targets: int, crops: int
) -> None:
    message = f"^{predictions} predictions and {targets} labels are not images of {crops} crops each$"
    with pytest.raises(TenfoldError, match=message):
        patch_average_metrics(np.arange(predictions), np.arange(targets), crops)


# Several runs


def test_each_metric_has_a_median_of_its_own() -> None:
    """The median SRCC and the median PLCC are of different runs."""
    runs = [(0.80, 0.93), (0.90, 0.85), (0.85, 0.99)]
    assert median_over_runs(runs).tolist() == [0.85, 0.93]


def test_the_median_of_an_even_number_of_runs_is_between_the_middle_two() -> None:
    assert median_over_runs([[0.1], [0.9], [0.2], [0.4]]).tolist() == pytest.approx([0.3])


RUNS = [{"srcc": 0.80 + 0.01 * k, "plcc": 0.95 - 0.02 * (k % 4), "loss": 1.0} for k in range(10)]


def test_a_summary_has_the_median_of_every_metric() -> None:
    found = summarise(RUNS)
    assert found["srcc"] == pytest.approx(0.845)
    assert found["plcc"] == pytest.approx(0.93)
    assert found["loss"] == 1


def test_a_summary_leaves_out_what_not_every_run_has() -> None:
    assert summarise([{"srcc": 0.5, "best_srcc": 0.9}, {"srcc": 0.5}]) == {"srcc": 0.5}


def test_the_interval_of_a_summary_lies_around_the_median_within_the_runs() -> None:
    found = summarise(RUNS)
    assert 0.80 <= found["srcc_low"] < found["srcc"] < found["srcc_high"] <= 0.89
    assert 0.89 <= found["plcc_low"] <= found["plcc"] <= found["plcc_high"] <= 0.95


def test_more_runs_narrow_the_interval_of_a_summary() -> None:
    few, many = summarise(RUNS), summarise(RUNS * 8)
    assert many["srcc"] == pytest.approx(few["srcc"])
    assert many["srcc_high"] - many["srcc_low"] < 0.7 * (few["srcc_high"] - few["srcc_low"])


def test_a_summary_can_be_repeated() -> None:
    assert summarise(RUNS) == summarise(RUNS)


def test_what_has_no_spread_has_no_interval() -> None:
    assert summarise([{"srcc": 0.7, "plcc": 0.8}]) == {"srcc": 0.7, "plcc": 0.8}
    assert "loss_low" not in summarise(RUNS) and "loss_high" not in summarise(RUNS)


# Two methods on the same splits

FIRST = [0.874, 0.866, 0.902, 0.949, 0.91]
SECOND = [0.869, 0.859, 0.906, 0.923, 0.9]


def test_the_interval_of_a_paired_difference_is_that_of_students_t() -> None:
    differences = [0.005, 0.007, -0.004, 0.026, 0.01]
    mean = sum(differences) / 5
    spread = math.sqrt(sum((value - mean) ** 2 for value in differences) / 4 / 5)
    quantile = 2.7764451051977987  # 97.5 % of Student's t with 4 degrees of freedom
    expected = (mean, mean - quantile * spread, mean + quantile * spread)
    assert paired_difference(FIRST, SECOND) == pytest.approx(expected, rel=1e-9)


def test_swapping_the_methods_turns_the_difference_round() -> None:
    mean, low, high = paired_difference(FIRST, SECOND)
    assert paired_difference(SECOND, FIRST) == pytest.approx((-mean, -high, -low))


def test_pairs_count_and_not_the_spread_between_splits() -> None:
    shifts = np.array([0.0, -0.3, 0.2, -0.5, 0.1])
    shifted = paired_difference((FIRST + shifts).tolist(), (SECOND + shifts).tolist())
    assert shifted == pytest.approx(paired_difference(FIRST, SECOND))


def test_a_single_pair_has_no_interval() -> None:
    mean, low, high = paired_difference([0.9], [0.7])
    assert mean == pytest.approx(0.2) and math.isnan(low) and math.isnan(high)


@pytest.mark.parametrize("test_fraction", [0.2, 0.25])
def test_splits_that_share_images_widen_the_interval(test_fraction: float) -> None:
    """Nadeau and Bengio: of 5 splits, 1/5 becomes 1/5 + test / train."""
    mean, low, high = paired_difference(FIRST, SECOND)
    corrected = paired_difference(FIRST, SECOND, test_fraction)
    wider = math.sqrt(1 + 5 * test_fraction / (1 - test_fraction))
    assert corrected == pytest.approx((mean, mean - wider * (mean - low), mean + wider * (high - mean)))


def test_a_difference_without_spread_has_an_interval_of_one_point() -> None:
    assert paired_difference([3.0, 5.0, 1.0], [1.0, 3.0, -1.0]) == (2, 2, 2)
    assert paired_difference(FIRST, FIRST) == (0, 0, 0)


@pytest.mark.parametrize(
    ("first", "second"), [([0.9], [0.7, 0.8, 0.9]), ([0.7, 0.8, 0.9], [0.9]), ([0.7, 0.8], [0.7, 0.8, 0.9])]
)
def test_methods_with_different_numbers_of_runs_are_not_paired(
    first: list[float], second: list[float]
) -> None:
    with pytest.raises((TenfoldError, ValueError)):
        paired_difference(first, second)
