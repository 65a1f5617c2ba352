"""Quality levels, weights and learning rates over the epochs, and the two losses, against hand counts."""

from __future__ import annotations

import csv
import io
import math
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tenfold.pmt_iqa.levels import check_scores_differ, equal_width_levels, quality_level
from tenfold.pmt_iqa.losses import multitask_loss
from tenfold.pmt_iqa.schedules import (
    WeightSchedule,
    official_learning_rate,
    one_cycle,
    progressive_weights,
    task_weights,
)
from tenfold.pmt_iqa.training import mean_score_of_levels
from tenfold.shared.logging import TenfoldError

# Quality levels

UNCLAMPED: dict[str, list[tuple[float, int]]] = {
    "bid": [(0.0, 0), (0.49, 0), (0.5, 1), (0.99, 1), (2.49, 4), (2.5, 5), (4.92, 9), (5.0, 10)],
    "livec": [(0.0, 0), (4.9, 0), (5.1, 1), (54.9, 5), (55.1, 6), (92.4, 9), (94.9, 9), (100.0, 10)],
    "koniq10k": [(3.9, 0), (14.9, 1), (15.1, 2), (64.9, 6), (65.1, 7), (88.4, 9)],
    "koniq": [(3.9, 0), (15.1, 2), (88.4, 9)],
    "csiq": [(0.0, 0), (0.04, 0), (0.06, 1), (0.94, 9), (0.96, 10), (1.0, 10)],
    "live": [(0.0, 0), (9.99, 0), (10.0, 1), (84.49, 8), (99.99, 9), (100.0, 9), (114.7, 9)],
    "proxy": [(0.0, 0), (0.99, 0), (1.0, 1), (9.99, 9)],
}


@pytest.mark.parametrize("dataset", UNCLAMPED)
def test_levels_are_those_of_the_authors_rules(dataset: str) -> None:
    labels, levels = zip(*UNCLAMPED[dataset], strict=True)
    assert quality_level(dataset, labels, clamp=False).tolist() == list(levels)


@pytest.mark.parametrize("dataset", ["livec", "koniq10k"])
def test_halves_go_to_the_even_level(dataset: str) -> None:
    assert quality_level(dataset, [5, 15, 25, 35, 45, 55, 85]).tolist() == [0, 2, 2, 4, 4, 6, 8]


def test_halves_of_csiq_go_to_the_even_level() -> None:
    """Halves that binary fractions hold: 2.5 and 7.5."""
    assert quality_level("csiq", [0.25, 0.75]).tolist() == [2, 8]


@pytest.mark.parametrize(("dataset", "best"), [("csiq", 1.0), ("bid", 5.0), ("proxy", 10.0)])
@pytest.mark.parametrize("number_class", [2, 10])
def test_levels_end_at_the_last_class(dataset: str, best: float, number_class: int) -> None:
    assert quality_level(dataset, best, number_class=number_class) == number_class - 1
    assert quality_level(dataset, best, clamp=False, number_class=number_class) == 10


def test_levels_below_the_last_class_are_not_moved_by_clamping() -> None:
    labels = np.linspace(0, 1, 101)
    free, clamped = quality_level("csiq", labels, clamp=False), quality_level("csiq", labels)
    np.testing.assert_array_equal(clamped[free < 10], free[free < 10])


@pytest.mark.parametrize("clamp", [True, False])
def test_a_negative_dmos_of_live_is_marked_for_dropping(clamp: bool) -> None:
    assert quality_level("live", [-0.01, -12.0, -150.0, 3.0], clamp=clamp).tolist() == [-1, -1, -1, 0]


@pytest.mark.parametrize("dataset", ["livec", "csiq", "bid", "proxy"])
def test_a_score_below_the_scale_is_of_the_lowest_level(dataset: str) -> None:
    """Z-scores and rescaled labels can be a little less than zero; -1 is no class of cross-entropy."""
    assert quality_level(dataset, [-7.0, -0.1]).tolist() == [0, 0]


def test_levels_of_tid2013_rise_with_the_score_and_fit_ten_classes() -> None:
    levels = quality_level("tid2013", np.linspace(0, 9, 200), clamp=False)
    assert levels[0] == 0 and 1 < levels.max() <= 9
    assert (np.diff(levels) >= 0).all()


def test_levels_keep_the_labels_shape() -> None:
    assert quality_level("livec", np.zeros((2, 3), np.float32)).shape == (2, 3)
    assert quality_level("livec", torch.tensor([12.0, 27.0])).tolist() == [1, 3]
    assert quality_level("livec", []).shape == (0,)


def test_levels_are_whole_numbers_for_cross_entropy() -> None:
    assert quality_level("livec", [12.0]).dtype == np.int64
    single = quality_level("livec", 38)
    assert isinstance(single, np.int64) and single == 4


def test_labels_are_left_as_they_are() -> None:
    labels = np.array([-3.0, 55.5, 120.0])
    quality_level("live", labels)
    assert labels.tolist() == [-3.0, 55.5, 120.0]


def test_a_data_set_without_rule_is_refused() -> None:
    with pytest.raises(TenfoldError, match=r"^[^\n]*'kadid'; choose one of bid, livec, [^\n]*$"):
        quality_level("kadid", [1.0])


@pytest.mark.parametrize("label", [math.nan, math.inf, -math.inf])
def test_labels_that_are_not_finite_are_refused(label: float) -> None:
    with pytest.raises(TenfoldError, match="finite"):
        quality_level("bid", [1.0, label])


def test_labels_that_are_words_are_refused() -> None:
    with pytest.raises(TenfoldError, match=r"^labels are numbers: .*good"):
        quality_level("bid", ["1.5", "good"])


@pytest.fixture(scope="module")
def published(data_root: Path) -> Callable[[str, str], np.ndarray]:
    """A column of the published labels."""
    archive = data_root / "iqa-labels" / "iqa_labels.zip"
    if not archive.is_file():
        pytest.skip("needs the published labels in iqa-labels")

    def column(name: str, header: str) -> np.ndarray:
        with zipfile.ZipFile(archive) as content:
            rows = list(csv.DictReader(io.StringIO(content.read(f"{name}.csv").decode())))
        return np.array([float(row[header]) for row in rows])

    return column


PUBLISHED: dict[str, tuple[str, Callable[[float], int]]] = {
    "bid": ("mos", lambda mos: int(mos / 0.5)),
    "livec": ("mos", lambda mos: round(mos / 10)),
    "koniq10k": ("mos", lambda mos: round(mos / 10)),
    "csiq": ("dmos", lambda dmos: round(10 * dmos)),
    "live": ("mos", lambda dmos: 9 if abs(dmos) >= 100 else int(abs(dmos) / 10)),
}
"""Column, and the rule of the specification label by label; Python rounds halves to even."""


@pytest.mark.parametrize("dataset", PUBLISHED)
@pytest.mark.parametrize("precision", [np.float32, np.float64])
def test_published_labels_get_the_levels_of_the_specification(
    published: Callable[[str, str], np.ndarray], dataset: str, precision: type[np.floating]
) -> None:
    column, rule = PUBLISHED[dataset]
    labels = published(dataset, column)
    levels = quality_level(dataset, labels.astype(precision), clamp=False)
    assert levels.tolist() == [rule(label) for label in labels]


HISTOGRAMS = {
    "bid": [19, 37, 43, 55, 46, 60, 80, 98, 102, 46],
    "csiq": [127, 135, 105, 95, 102, 91, 66, 64, 51, 30],
    "koniq10k": [5, 73, 279, 601, 966, 1480, 2383, 3155, 1119, 12],
    "live": [0, 15, 183, 113, 158, 149, 116, 40, 5, 0],
}
"""Counted outside this package in decimal fractions; CSIQ's last class takes the 11 images of level 10."""


@pytest.mark.parametrize("dataset", HISTOGRAMS)
def test_published_labels_fill_ten_classes_as_counted(
    published: Callable[[str, str], np.ndarray], dataset: str
) -> None:
    levels = quality_level(dataset, published(dataset, PUBLISHED[dataset][0]))
    assert np.bincount(levels, minlength=10).tolist() == HISTOGRAMS[dataset]


def test_of_the_published_sets_only_csiq_needs_clamping(
    published: Callable[[str, str], np.ndarray],
) -> None:
    most = {
        name: quality_level(name, published(name, column), clamp=False).max()
        for name, (column, _) in PUBLISHED.items()
    }
    assert {name for name, level in most.items() if level > 9} == {"csiq"}


def test_equal_widths_divide_the_scale_evenly() -> None:
    labels = [0, 9.9, 10, 49.9, 50, 99.9]
    assert equal_width_levels(labels, 0, 100).tolist() == [0, 0, 1, 4, 5, 9]
    assert equal_width_levels([-2, -1.1, -0.9, 0.1, 1.9], -2, 2, 4).tolist() == [0, 0, 1, 2, 3]


def test_equal_widths_hold_equally_many_of_evenly_spread_labels() -> None:
    labels = np.random.RandomState(0).permutation(np.linspace(1, 5, 701)[:-1] + 1e-4)
    levels = equal_width_levels(labels, 1, 5, 7)
    assert levels.dtype == np.int64
    assert np.bincount(levels).tolist() == [100] * 7


def test_labels_outside_the_scale_fall_into_the_first_and_last_level() -> None:
    assert equal_width_levels([-40, 100, 130], 0, 100, 5).tolist() == [0, 4, 4]


def test_a_scale_without_width_is_refused() -> None:
    with pytest.raises(TenfoldError, match=r"^the scale of the labels goes from 3 to 3;"):
        equal_width_levels([3.0, 3.0], 3.0, 3.0)


def test_a_scale_from_high_to_low_is_refused() -> None:
    with pytest.raises(
        TenfoldError, match=r"^the scale of the labels goes from 5 to 1; give its lower end first$"
    ):
        equal_width_levels([2.0, 3.0], 5.0, 1.0)


def test_scores_that_never_differ_are_refused() -> None:
    check_scores_differ([3.0, 3.0, 3.5])
    with pytest.raises(TenfoldError, match=r"^all labels are 3: scores that never differ"):
        check_scores_differ([3.0, 3.0])


# Weights of the tasks


@pytest.mark.parametrize("epochs", [2, 3, 30])
def test_training_begins_with_classification_alone_and_ends_with_regression_alone(epochs: int) -> None:
    assert progressive_weights(0, epochs) == (0, 1)
    assert progressive_weights(epochs - 1, epochs) == (1, 0)


def test_progressive_weights_are_those_of_the_papers_formula() -> None:
    weights = [progressive_weights(epoch, 5) for epoch in range(5)]
    np.testing.assert_allclose(weights, [(0, 1), (0.25, 0.75), (0.5, 0.5), (0.75, 0.25), (1, 0)])


def test_progressive_weights_move_by_equal_steps() -> None:
    weights = np.array([progressive_weights(epoch, 30) for epoch in range(30)])
    np.testing.assert_allclose(np.diff(weights, axis=0), [[1 / 29, -1 / 29]] * 29, rtol=1e-9)


@pytest.mark.parametrize("schedule", ["progressive", "cosine", "sigmoid", "step", "regression"])
def test_a_single_epoch_is_regression(schedule: WeightSchedule) -> None:
    assert task_weights(schedule, 0, 1) == pytest.approx((1, 0), abs=1e-12)


@pytest.mark.parametrize(("epoch", "epochs"), [(-1, 5), (5, 5), (0, 0), (7, 5)])
def test_an_epoch_outside_the_training_has_no_weights(epoch: int, epochs: int) -> None:
    with pytest.raises(TenfoldError, match=f"^epoch {epoch} is not one of {epochs}"):
        progressive_weights(epoch, epochs)
    for schedule in ("cosine", "fixed", "regression"):
        with pytest.raises(TenfoldError, match=f"^epoch {epoch} is not one of {epochs}"):
            task_weights(schedule, epoch, epochs)  # type: ignore[arg-type]


def regression_share(schedule: WeightSchedule, epochs: int) -> np.ndarray:
    weights = np.array([task_weights(schedule, epoch, epochs) for epoch in range(epochs)])
    np.testing.assert_allclose(weights.sum(axis=1), 1, atol=1e-12)
    return weights[:, 0]


EASY_TO_HARD: list[Any] = ["progressive", "cosine", "sigmoid", "step"]


@pytest.mark.parametrize("schedule", EASY_TO_HARD)
@pytest.mark.parametrize("epochs", [2, 9, 30])
def test_schedules_from_easy_to_hard_rise_from_no_regression_to_regression_alone(
    schedule: WeightSchedule, epochs: int
) -> None:
    shares = regression_share(schedule, epochs)
    assert (shares[0], shares[-1]) == pytest.approx((0, 1), abs=1e-12)
    assert (np.diff(shares) >= 0).all()


@pytest.mark.parametrize("schedule", EASY_TO_HARD)
@pytest.mark.parametrize("epochs", [1, 2, 9, 30])
def test_no_task_is_ever_unlearned(schedule: WeightSchedule, epochs: int) -> None:
    """A weight below zero would raise a loss, however little."""
    weights = [task_weights(schedule, epoch, epochs) for epoch in range(epochs)]
    assert min(map(min, weights)) >= 0


@pytest.mark.parametrize("schedule", EASY_TO_HARD)
def test_both_tasks_are_treated_alike_by_schedules_from_easy_to_hard(schedule: WeightSchedule) -> None:
    """What regression has in an epoch, classification has as far from the other end; 10 epochs have no middle."""
    shares = regression_share(schedule, 10)
    np.testing.assert_allclose(shares, 1 - shares[::-1], atol=1e-12)


def test_the_cosine_is_half_a_wave() -> None:
    quarter = (1 - math.sqrt(0.5)) / 2
    np.testing.assert_allclose(
        regression_share("cosine", 5), [0, quarter, 0.5, 1 - quarter, 1], rtol=1e-12, atol=1e-15
    )


def test_the_sigmoid_is_steepest_in_the_middle_and_steeper_than_the_cosine() -> None:
    steps, wave = np.diff(regression_share("sigmoid", 31)), np.diff(regression_share("cosine", 31))
    assert steps.argmax() in (14, 15)
    assert steps.max() > 1.2 * wave.max() and steps[0] < steps.max() / 5


@pytest.mark.parametrize(("epochs", "shares"), [(4, [0, 0, 1, 1]), (5, [0, 0, 1, 1, 1])])
def test_the_step_changes_the_task_at_half_time(epochs: int, shares: list[float]) -> None:
    assert regression_share("step", epochs).tolist() == shares


def test_the_reversed_schedule_is_the_progressive_one_backwards() -> None:
    np.testing.assert_allclose(
        regression_share("reversed", 12), regression_share("progressive", 12)[::-1], atol=1e-12
    )


@pytest.mark.parametrize("epoch", [0, 3, 7])
def test_one_task_alone_stays_alone(epoch: int) -> None:
    assert task_weights("regression", epoch, 8) == (1, 0)
    assert task_weights("classification", epoch, 8) == (0, 1)


@pytest.mark.parametrize("epoch", [0, 3, 7])
def test_fixed_weights_are_those_given(epoch: int) -> None:
    official = (0.9419036108703593, 0.9602831644731372)
    assert task_weights("fixed", epoch, 8, official) == official
    assert task_weights("fixed", epoch, 8) == (1, 1)


def test_fixed_weights_do_not_touch_other_schedules() -> None:
    assert task_weights("progressive", 2, 8, (5.0, 5.0)) == progressive_weights(2, 8)


def test_an_unknown_schedule_is_refused() -> None:
    with pytest.raises(
        TenfoldError, match=r"^unknown schedule 'linear'; choose one of progressive, .*fixed$"
    ):
        task_weights("linear", 0, 5)  # type: ignore[arg-type]


# Learning rates


def test_the_official_rate_falls_first_after_seven_epochs_and_then_every_six() -> None:
    powers = [0] * 7 + [1] * 6 + [2] * 6 + [3] * 6 + [4] * 5
    rates = [official_learning_rate(1.0933302953170044e-4, epoch) for epoch in range(30)]
    np.testing.assert_allclose(rates, [1.0933302953170044e-4 / 10**power for power in powers], rtol=1e-12)


def test_the_official_rate_is_what_the_authors_loop_leaves_for_the_next_epoch() -> None:
    rate = 0.02
    for epoch in range(60):
        assert official_learning_rate(0.02, epoch) == pytest.approx(rate, rel=1e-12)
        rate = 0.02 / 10 ** (epoch // 6)


def test_an_epoch_before_the_first_has_no_rate() -> None:
    with pytest.raises(TenfoldError, match="counted from 0, not -1"):
        official_learning_rate(1e-4, -1)


@pytest.mark.parametrize(
    ("settings", "torchs"),
    [
        ({}, {"pct_start": 0.2, "div_factor": 25, "final_div_factor": 1e4}),
        (
            {"warm_up": 0.4, "start": 0.1, "end": 0.02},
            {"pct_start": 0.4, "div_factor": 10, "final_div_factor": 50},
        ),
    ],
)
def test_one_cycle_is_that_of_torch(settings: dict[str, float], torchs: dict[str, float]) -> None:
    """Torch counts whole steps: of 101, the warm-up takes its share of the 100 gaps."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    torchs["pct_start"] = (100 * torchs["pct_start"] + 1) / 101
    scheduler = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=1.0, total_steps=101, cycle_momentum=False, **torchs
    )
    for step in range(101):
        assert one_cycle(step / 100, **settings) == pytest.approx(scheduler.get_last_lr()[0], rel=1e-9)
        if step < 100:
            optimizer.step()
            scheduler.step()


def test_one_cycle_has_no_jump_at_its_peak() -> None:
    assert one_cycle(0.2 - 1e-9) == pytest.approx(1, abs=1e-6)
    assert one_cycle(0.2 + 1e-9) == pytest.approx(1, abs=1e-6)


# The losses

MOS = torch.tensor([[2.0], [5.0], [-1.0]])
TARGET = torch.tensor([3.0, 1.0, -1.5])
LOGITS = torch.tensor([[0.0, 0.0], [math.log(3), 0.0], [0.0, 2.0]])
LEVEL = torch.tensor([0, 1, 1])
REGRESSION = (1 + 4 + 0.5) / 3
CLASSIFICATION = (math.log(2) + math.log(4) + math.log(1 + math.exp(-2))) / 3


def test_the_losses_are_those_computed_by_hand() -> None:
    total, regression, classification = multitask_loss(MOS, LOGITS, TARGET, LEVEL, 0.25, 3.0)
    assert float(regression) == pytest.approx(REGRESSION, rel=1e-6)
    assert float(classification) == pytest.approx(CLASSIFICATION, rel=1e-6)
    assert float(total) == pytest.approx(0.25 * REGRESSION + 3 * CLASSIFICATION, rel=1e-6)


def test_a_column_of_scores_counts_as_their_list() -> None:
    """Not broadcast against the targets to all pairs."""
    as_column = multitask_loss(MOS, LOGITS, TARGET, LEVEL, 1.0, 1.0)
    as_list = multitask_loss(MOS[:, 0], LOGITS, TARGET, LEVEL, 1.0, 1.0)
    assert all(map(torch.equal, as_column, as_list))


def test_a_single_image_has_losses() -> None:
    total, regression, classification = multitask_loss(MOS[1:2], LOGITS[1:2], TARGET[1:2], LEVEL[1:2], 2, 1)
    assert (float(regression), float(classification)) == pytest.approx((4, math.log(4)), rel=1e-6)
    assert float(total) == pytest.approx(8 + math.log(4), rel=1e-6)
    assert total.shape == regression.shape == classification.shape == ()


def test_the_gradients_of_both_heads_are_those_derived_by_hand() -> None:
    mos, logits = MOS.clone().requires_grad_(), LOGITS.clone().requires_grad_()
    multitask_loss(mos, logits, TARGET, LEVEL, 0.3, 0.6)[0].backward()
    assert mos.grad is not None and logits.grad is not None
    torch.testing.assert_close(mos.grad, torch.tensor([[-0.1], [0.1], [0.1]]))
    wrong = torch.tensor([1 / 2, 3 / 4, 1 / (1 + math.exp(2))])  # probability that the right level lacks
    towards = torch.tensor([[-1.0, 1.0], [1.0, -1.0], [1.0, -1.0]])
    torch.testing.assert_close(logits.grad, 0.2 * wrong[:, None] * towards)


@pytest.mark.parametrize(("weights", "trained"), [((1.0, 0.0), "mos"), ((0.0, 1.0), "logits")])
def test_a_task_of_weight_zero_teaches_nothing(weights: tuple[float, float], trained: str) -> None:
    heads = {"mos": MOS.clone().requires_grad_(), "logits": LOGITS.clone().requires_grad_()}
    multitask_loss(heads["mos"], heads["logits"], TARGET, LEVEL, *weights)[0].backward()
    moved = {name for name, head in heads.items() if head.grad is not None and head.grad.any()}
    assert moved == {trained}


def test_without_a_level_head_only_the_regression_counts() -> None:
    mos = MOS.clone().requires_grad_()
    total, regression, classification = multitask_loss(mos, None, TARGET, LEVEL, 0.5, 7.0)
    assert float(classification) == 0
    assert total.item() == pytest.approx(0.5 * REGRESSION, rel=1e-6)
    assert regression.item() == pytest.approx(REGRESSION, rel=1e-6)
    total.backward()
    assert mos.grad is not None and mos.grad.all()


def test_weights_may_be_tensors() -> None:
    as_tensors = multitask_loss(MOS, LOGITS, TARGET, LEVEL, torch.tensor(0.25), torch.tensor(3.0))
    as_numbers = multitask_loss(MOS, LOGITS, TARGET, LEVEL, 0.25, 3.0)
    assert all(map(torch.equal, as_tensors, as_numbers))


def test_losses_of_half_precision_outputs_are_computed_in_single_precision() -> None:
    target = torch.tensor([70.03, 70.01, 69.98])
    mos = torch.full((3, 1), 70.0, dtype=torch.bfloat16)
    logits = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 2.0]], dtype=torch.bfloat16)
    total, regression, classification = multitask_loss(mos, logits, target, LEVEL, 1.0, 1.0)
    assert total.dtype == classification.dtype == torch.float32
    assert float(regression) == pytest.approx(0.02, abs=1e-4)
    by_hand = (math.log(2) + math.log(1 + math.e) + math.log(1 + math.exp(-2))) / 3
    assert float(classification) == pytest.approx(by_hand, rel=1e-6)


# What a level stands for


def test_a_level_stands_for_the_mean_of_its_scores() -> None:
    means = mean_score_of_levels(torch.tensor([1.0, 2.0, 6.0, 5.0]), torch.tensor([0, 0, 2, 1]), 3)
    assert means.tolist() == [1.5, 5.0, 6.0]
    assert means.dtype == torch.float32


def test_a_level_without_images_lies_between_its_neighbours() -> None:
    means = mean_score_of_levels(torch.tensor([10.0, 20.0, 50.0]), torch.tensor([0, 1, 4]), 5)
    assert means.tolist() == pytest.approx([10, 20, 30, 40, 50])


def test_a_level_beyond_all_images_takes_the_nearest_score() -> None:
    means = mean_score_of_levels(torch.tensor([3.0, 5.0, 8.0]), torch.tensor([2, 2, 3]), 6)
    assert means.tolist() == pytest.approx([4, 4, 4, 8, 8, 8])


def test_levels_may_stand_for_falling_scores() -> None:
    means = mean_score_of_levels(torch.tensor([9.0, 5.0]), torch.tensor([0, 2]), 3)
    assert means.tolist() == pytest.approx([9, 7, 5])
