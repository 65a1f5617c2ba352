"""Paired differences of claims, their intervals, and the plots of them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tenfold.benchmarks.evidence import mean_interval, paired_evidence
from tenfold.benchmarks.strip_plot import MARGIN, WIDTH, difference_plot
from tenfold.shared.comparison import Claim, judge

CLAIM = Claim("beats", "A beats B", "quick", "accuracy", "A", "B", margin=1.0, higher_is_better=True)


def run(method, seed, accuracy, dataset="digits", setting="plain"):
    return {
        "status": "finished",
        "profile": "quick",
        "method": method,
        "seed": seed,
        "dataset": dataset,
        "setting": setting,
        "metrics": {"accuracy": accuracy},
    }


def evidence(runs, claim=CLAIM):
    return paired_evidence(judge(claim, runs))


def test_differences_are_taken_seed_by_seed_whatever_the_order():
    found = evidence([run("A", 1, 90.0), run("B", 0, 70.0), run("A", 0, 80.0), run("B", 1, 85.0)])
    assert found.pairs == (("seed 0", 10.0), ("seed 1", 5.0))
    assert (found.mean, found.wins) == (7.5, 2)


def test_where_lower_is_better_a_lower_value_is_a_positive_difference():
    lower = Claim("beats", "", "quick", "accuracy", "A", "B", margin=0.0, higher_is_better=False)
    assert evidence([run("A", 0, 1.0), run("B", 0, 3.0)], lower).pairs == (("seed 0", 2.0),)


def test_a_seed_that_only_one_method_ran_is_no_pair():
    found = evidence([run("A", 0, 3.0), run("A", 1, 9.0), run("B", 0, 1.0), run("B", 2, 0.0)])
    assert found.pairs == (("seed 0", 2.0),)


def test_several_data_sets_are_paired_each_with_itself():
    runs = [run(method, 0, value, dataset) for method, dataset, value in (
        ("A", "mnist", 5.0), ("B", "mnist", 4.0), ("A", "cifar", 3.0), ("B", "cifar", 1.0),
    )]  # fmt: skip
    assert evidence(runs).pairs == (("cifar, seed 0", 2.0), ("mnist, seed 0", 1.0))


def test_a_method_of_several_settings_is_paired_setting_by_setting():
    runs = [run(method, 0, value, setting=setting) for method, setting, value in (
        ("A", "30", 5.0), ("B", "30", 4.0), ("A", "90", 9.0), ("B", "90", 6.0),
    )]  # fmt: skip
    assert evidence(runs).pairs == (("30, seed 0", 1.0), ("90, seed 0", 3.0))


def test_settings_may_differ_but_a_seed_run_twice_is_not_paired():
    assert evidence([run("A", 0, 2.0, setting="memory"), run("B", 0, 1.0)]).pairs == (("seed 0", 1.0),)
    several = [
        run("A", 0, 2.0, setting="30"),
        run("A", 0, 3.0, setting="90"),
        run("B", 0, 1.0, setting="none"),
    ]
    assert evidence(several) is None


def test_a_claim_that_lacks_a_method_has_no_evidence():
    assert evidence([run("A", 0, 2.0)]) is None


def test_one_pair_has_no_interval_and_equal_pairs_have_one_of_no_width():
    assert mean_interval([3.0]) is None
    assert mean_interval([3.0, 3.0, 3.0]) == (3.0, 3.0)


@given(st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=12))
def test_the_interval_lies_within_the_values_and_around_most_of_their_mean(values):
    low, high = mean_interval(values)
    slack = 1e-9 * max(1.0, *map(abs, values))
    assert min(values) - slack <= low <= high <= max(values) + slack
    assert (low, high) == mean_interval(values)


def test_the_interval_of_many_values_is_that_of_the_normal_approximation():
    values = np.random.default_rng(0).normal(5.0, 2.0, size=400)
    low, high = mean_interval(list(values))
    half = 1.96 * values.std(ddof=1) / 20
    assert (low, high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.03)


def test_the_difference_plot_shows_zero_the_margin_and_the_interval_on_one_axis():
    found = evidence(
        [run("A", seed, 4.0 + seed) for seed in range(3)] + [run("B", seed, 1.0) for seed in range(3)]
    )
    plot = difference_plot(found, margin=1.0)
    assert plot.zero == MARGIN
    assert plot.zero < plot.needed < plot.interval[0] <= plot.mean <= plot.interval[1] <= WIDTH - MARGIN
    assert plot.dots[0][1] == "seed 0: +3"


def test_the_difference_plot_leaves_out_a_zero_that_is_far_away():
    found = evidence(
        [run("A", seed, 100.0 + seed) for seed in range(3)] + [run("B", seed, 1.0) for seed in range(3)]
    )
    assert difference_plot(found, margin=99.0).zero is None


def test_the_page_shows_pairs_interval_and_how_thin_they_are(workspace, reported):
    workspace.package(reported=reported())
    workspace.seeds("GFKD", [80.0, 82.0, 85.0])
    workspace.seeds("RandG", [60.0, 61.0, 61.0])
    html = workspace.html()
    assert "mean difference +21.7, 95 % interval +20 to +24" in " ".join(html.split())
    assert "ahead in 3 of 3 pairs" in html
    assert "With 3 pairs the bootstrap interval is narrower" in html
