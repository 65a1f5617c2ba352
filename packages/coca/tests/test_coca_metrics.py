"""Numbers of a run, and of two methods compared, against hand counts."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy import stats

from tenfold.coca.metrics import (
    accuracy_matrix,
    average_accuracy,
    average_incremental_accuracy,
    backward_transfer,
    class_task_accuracy,
    forgetting,
    forward_transfer,
)
from tenfold.coca.paired import paired_difference
from tenfold.shared.logging import TenfoldError

ROWS = [[90.0, 20.0], [70.0, 85.0, 30.0], [60.0, 95.0, 80.0]]
"""Three tasks; each row ends with the task that comes next. Task 1 is best after task 2."""
UNTRAINED = [12.0, 10.0, 14.0]

METRICS: dict[str, tuple[Callable[..., float], float]] = {
    "average accuracy": (average_accuracy, (60 + 95 + 80) / 3),
    "average incremental accuracy": (
        average_incremental_accuracy,
        (90 + (70 + 85) / 2 + (60 + 95 + 80) / 3) / 3,
    ),
    "backward transfer": (backward_transfer, ((60 - 90) + (95 - 85)) / 2),
    "forward transfer": (lambda rows: forward_transfer(rows, UNTRAINED), ((20 - 10) + (30 - 14)) / 2),
    "forgetting": (forgetting, ((90 - 60) + (95 - 95)) / 2),
    "official forgetting": (lambda rows: forgetting(rows, "official"), ((90 - 60) + (95 - 95)) / 2),
}


@pytest.mark.parametrize("name", METRICS)
def test_metrics_of_three_tasks_are_those_computed_by_hand(name: str) -> None:
    metric, expected = METRICS[name]
    assert metric(ROWS) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("name", METRICS)
def test_rows_filled_with_nan_give_what_ragged_ones_give(name: str) -> None:
    metric, expected = METRICS[name]
    full = np.array([row + [math.nan] * (3 - len(row)) for row in ROWS])
    assert metric(full) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("name", METRICS)
def test_metrics_leave_the_rows_as_they_are(name: str) -> None:
    rows = copy.deepcopy(ROWS)
    METRICS[name][0](rows)
    assert rows == ROWS


LUCKY = [[90.0, 50.0], [70.0, 45.0, 30.0], [60.0, 40.0, 80.0]]
"""Task 1 was best before it was trained."""


def test_only_the_official_forgetting_counts_the_measurement_before_training() -> None:
    assert forgetting(LUCKY, "trained-only") == pytest.approx(((90 - 60) + (45 - 40)) / 2, abs=1e-9)
    assert forgetting(LUCKY, "official") == pytest.approx(((90 - 60) + (50 - 40)) / 2, abs=1e-9)


def official_forgetting(rows: list[list[float]]) -> float:
    """Section 5: what is missing is 0, and every row takes part in the maximum."""
    full = [row + [0.0] * (len(rows) - len(row)) for row in rows]
    best = [max(row[task] for row in full) for task in range(len(rows) - 1)]
    return sum(most - last for most, last in zip(best, rows[-1], strict=False)) / (len(rows) - 1)


@pytest.mark.parametrize("further", [0, 1, 3])
def test_official_forgetting_counts_what_is_missing_as_zero(further: int) -> None:
    """Rows that end with their own task, with the next one, and complete ones."""
    accuracies = np.random.RandomState(0).uniform(0, 100, (5, 5)).tolist()
    rows = [row[: task + 1 + further] for task, row in enumerate(accuracies)]
    assert forgetting(rows, "official") == pytest.approx(official_forgetting(rows), abs=1e-9)


def test_official_forgetting_is_not_negative_where_a_later_task_helped() -> None:
    assert forgetting([[40.0], [70.0, 80.0]], "official") == 0


@pytest.mark.parametrize("definition", ["trained-only", "official"])
def test_a_single_task_has_no_forgetting(definition: str) -> None:
    assert math.isnan(forgetting([[80.0]], definition))  # type: ignore[arg-type]


def test_a_single_task_has_no_transfer() -> None:
    assert math.isnan(backward_transfer([[80.0]])) and math.isnan(forward_transfer([[80.0]], [10.0]))


def test_a_single_task_has_an_average() -> None:
    assert average_accuracy([[80.0]]) == average_incremental_accuracy([[80.0]]) == 80


def test_the_matrix_is_nan_where_nothing_was_measured() -> None:
    np.testing.assert_array_equal(accuracy_matrix([[90.0], [70.0, 80.0]]), [[90, math.nan], [70, 80]])


@pytest.mark.parametrize("rows", [[], [[90.0, 20.0]], [[90.0], [70.0, 80.0, 10.0]]])
def test_a_matrix_with_no_row_or_too_long_a_row_is_refused(rows: list[list[float]]) -> None:
    with pytest.raises(TenfoldError, match="a row for every task, none longer than there are tasks"):
        average_accuracy(rows)


def test_an_unknown_definition_of_forgetting_is_refused() -> None:
    with pytest.raises(TenfoldError, match="choose trained-only or official"):
        forgetting(ROWS, "best")  # type: ignore[arg-type]


LOGITS = torch.tensor(
    [
        [5.0, 1.0, 2.0, 3.0],  # 0: right
        [1.0, 4.0, 9.0, 0.0],  # 1: taken for 2, right among (0, 1)
        [7.0, 6.0, 0.0, 0.0],  # 1: taken for 0, wrong among (0, 1), right among (1, 2)
        [0.0, 0.0, 1.0, 2.0],  # 3: right
        [9.0, 0.0, 3.0, 2.0],  # 2: taken for 0, right among (2, 3), wrong among (0, 2)
        [0.0, 8.0, 5.0, 6.0],  # 2: taken for 1, wrong among (2, 3), right among (0, 2)
        [0.0, 1.0, 2.0, 3.0],  # 3: right
    ]
)
LABELS = torch.tensor([0, 1, 1, 3, 2, 2, 3])


def test_accuracies_of_consecutive_classes_are_those_counted_by_hand() -> None:
    class_il, task_il = class_task_accuracy(LOGITS, LABELS, 2)
    assert class_il == pytest.approx([100 / 3, 50], abs=1e-4)
    assert task_il == pytest.approx([200 / 3, 75], abs=1e-4)


def test_accuracies_of_classes_that_are_not_consecutive_are_those_counted_by_hand() -> None:
    class_il, task_il = class_task_accuracy(LOGITS, LABELS, [(1, 3), (2, 0)])
    assert class_il == pytest.approx([50, 100 / 3], abs=1e-4)
    assert task_il == pytest.approx([100, 200 / 3], abs=1e-4)


def test_accuracies_leave_the_logits_as_they_are() -> None:
    logits = LOGITS.clone()
    class_task_accuracy(logits, LABELS, 2)
    assert torch.equal(logits, LOGITS)


def test_tasks_need_not_hold_every_class() -> None:
    assert class_task_accuracy(LOGITS[:3], LABELS[:3], [(0, 1)])[1] == pytest.approx([200 / 3], abs=1e-4)


@pytest.mark.parametrize("label", [3, 4, -1])
def test_a_label_of_no_task_is_refused(label: int) -> None:
    labels = LABELS.clamp(max=2).index_fill(0, torch.tensor([2]), label)
    with pytest.raises(TenfoldError, match="belongs to no task of the stream"):
        class_task_accuracy(LOGITS, labels, [(0, 1), (2,)])


def test_a_task_without_images_is_refused() -> None:
    with pytest.raises(TenfoldError, match="no test image of the classes 2, 3"):
        class_task_accuracy(LOGITS[:3], LABELS[:3], 2)


FIRST = {0: 80.0, 1: 75.5, 2: 90.0, 3: 71.0, 4: 66.0}
SECOND = {0: 78.0, 1: 76.0, 2: 81.0, 3: 70.0, 4: 63.0}


def test_the_interval_of_a_paired_difference_is_that_of_the_paired_t_test() -> None:
    compared = paired_difference(FIRST, SECOND)
    interval = stats.ttest_rel(list(FIRST.values()), list(SECOND.values())).confidence_interval(0.95)
    assert (compared.low, compared.high) == pytest.approx((interval.low, interval.high), rel=1e-9)
    assert compared.mean == pytest.approx((2 - 0.5 + 9 + 1 + 3) / 5)
    assert (compared.wins, compared.seeds) == (4, 5)


def test_the_p_value_is_that_of_the_signed_rank_test() -> None:
    better = {seed: value + 1 + seed for seed, value in SECOND.items()}
    assert paired_difference(better, SECOND).p_value == pytest.approx(2 / 2**5)


def test_only_seeds_of_both_methods_are_compared() -> None:
    ours = {**FIRST, 9: 0.0}
    theirs = {8: 100.0, **dict(reversed(SECOND.items()))}
    assert paired_difference(ours, theirs) == paired_difference(FIRST, SECOND)


@pytest.mark.parametrize("second", [{}, {0: 1.0}, {0: 1.0, 7: 2.0}])
def test_fewer_than_two_common_seeds_are_refused(second: dict[int, float]) -> None:
    with pytest.raises(TenfoldError, match=r"needs two seeds that both methods have, not [01]$"):
        paired_difference(FIRST, second)


def test_identical_values_show_no_difference() -> None:
    compared = paired_difference(FIRST, FIRST)
    assert (compared.mean, compared.low, compared.high, compared.wins) == (0, 0, 0, 0)
    assert compared.p_value == 1


def test_a_difference_without_spread_has_an_interval_of_one_point() -> None:
    compared = paired_difference({seed: value + 2 for seed, value in FIRST.items()}, FIRST)
    assert (compared.mean, compared.low, compared.high, compared.wins) == (2, 2, 2, 5)
    assert compared.p_value == pytest.approx(2 / 2**5)
