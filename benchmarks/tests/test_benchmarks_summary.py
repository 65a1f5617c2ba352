"""Statuses, joins and claims: what the pages say before anything is drawn."""

import pytest

from tenfold.benchmarks.run_sets import Status
from tenfold.benchmarks.strip_plot import strip_plot
from tenfold.benchmarks.summary import flattened, summarise, totals


def statuses(page):
    return {column: cell.status for column, cell in page.cells.items()}


def test_a_package_without_reported_numbers_is_not_built_yet(workspace):
    workspace.package()
    assert set(statuses(workspace.page()).values()) == {Status.NOT_BUILT}


def test_nothing_is_green_before_it_was_run(workspace, reported):
    workspace.package(reported=reported())
    page = workspace.page()
    assert set(statuses(page).values()) == {Status.NOT_RUN}
    assert page.claims[0].status is Status.NOT_RUN


@pytest.mark.parametrize(
    ("better", "worse", "status"),
    [
        ([80.0, 82.0], [60.0, 61.0], Status.HOLDS),
        ([80.0, 82.0], [78.0, 79.0], Status.FAILS),
        ([80.0, 82.0], [], Status.INCOMPLETE),
    ],
)
def test_the_quick_status_follows_the_verdict_of_its_claim(workspace, reported, better, worse, status):
    workspace.package(reported=reported())
    workspace.seeds("GFKD", better)
    workspace.seeds("RandG", worse)
    page = workspace.page()
    assert statuses(page) == {"quick": status, "gpu": Status.NOT_RUN, "paper": Status.NOT_RUN}


def test_one_claim_that_fails_outweighs_one_that_holds(workspace, reported, make_claim):
    workspace.package(reported=reported(claims=make_claim("a", margin=5) + make_claim("b", margin=50)))
    workspace.seeds("GFKD", [80.0])
    workspace.seeds("RandG", [60.0])
    assert workspace.page().cells["quick"].status is Status.FAILS


def test_a_failure_on_reference_hardware_is_not_hidden_by_local_runs(workspace, reported):
    workspace.package(reported=reported())
    for hardware, worse in ((None, 60.0), ("h100", 79.0)):
        workspace.seeds("GFKD", [80.0], hardware=hardware)
        workspace.seeds("RandG", [worse], hardware=hardware)
    page = workspace.page()
    assert page.cells["quick"].status is Status.FAILS
    assert [verdict.holds for _, verdict in page.claims[0].judged] == [True, False]


def test_the_same_seed_on_two_machines_is_never_pooled(workspace, reported):
    workspace.package(reported=reported())
    workspace.seeds("GFKD", [80.0])
    workspace.seeds("GFKD", [70.0], hardware="h100")
    values = [profile.measurements[0].values for profile in workspace.page().profiles]
    assert values == [(80.0,), (70.0,)]


def test_failed_runs_are_shown_but_not_counted(workspace, reported):
    workspace.package(reported=reported())
    workspace.seeds("GFKD", [80.0])
    workspace.run(seed=7, status="failed", metrics={"accuracy": 0.0})
    page = workspace.page()
    assert page.profiles[0].measurements[0].values == (80.0,)
    assert (page.profiles[0].run_set.failed, len(page.runs)) == (1, 2)


def test_a_profile_whose_runs_all_failed_is_red(workspace, reported):
    workspace.package(reported=reported())
    workspace.run(status="failed", metrics={})
    assert workspace.page().cells["quick"].status is Status.CRASHED


def test_runs_without_a_claim_are_measured_but_not_green(workspace, reported):
    workspace.package(reported=reported())
    workspace.run(profile="h100")
    assert workspace.page().cells["gpu"].status is Status.MEASURED


def test_paper_profiles_are_incomplete_while_a_claimed_one_was_not_run(workspace, reported, make_claim):
    workspace.package(
        reported=reported(claims=make_claim("a", profile="mutag") + make_claim("b", profile="ptc"))
    )
    workspace.seeds("GFKD", [80.0], profile="mutag")
    workspace.seeds("RandG", [60.0], profile="mutag")
    cell = workspace.page().cells["paper"]
    assert (cell.status, cell.note) == (Status.INCOMPLETE, "1 more profile not run")


def test_smoke_runs_reach_no_status_and_no_total(workspace, reported):
    workspace.package(reported=reported())
    workspace.run(profile="smoke")
    pages = summarise(workspace.collect())
    assert set(statuses(pages[0]).values()) == {Status.NOT_RUN}
    assert totals(pages).finished == 0


def test_rows_join_by_dataset_setting_method_and_metric(workspace, reported):
    workspace.package(reported=reported())
    workspace.seeds("GFKD", [70.0, 90.0], dataset="MUTAG", profile="mutag")
    workspace.seeds("KD", [70.0], dataset="MUTAG-quick")
    (table,) = workspace.page().tables
    joined = [[join.measurement.values for join in joins] for _, joins in table.rows]
    assert joined == [[(70.0, 90.0)], [], []]
    assert table.reproduced == 1


@pytest.mark.parametrize(
    ("values", "distance", "direction"),
    [
        ([80.0], "close", ""),
        ([80.8], "close", "better"),
        ([77.0], "near", "worse"),
        ([60.0], "far", "worse"),
        ([70.0, 86.0], "close", "worse"),
    ],
)
def test_distance_is_measured_against_the_printed_number_and_the_spread(
    workspace, reported, values, distance, direction
):
    workspace.package(reported=reported())
    workspace.seeds("GFKD", values, dataset="MUTAG", profile="mutag")
    ((_, (joined,)), *_) = workspace.page().tables[0].rows
    assert (joined.distance, joined.direction) == (distance, direction)


def test_runs_that_share_a_seed_are_pointed_out(workspace, reported):
    workspace.package(reported=reported())
    workspace.run(name="one")
    workspace.run(name="two")
    assert workspace.page().profiles[0].run_set.repeated == ["GFKD, MUTAG-quick, GCN-3-32, seed 0"]


def test_the_strip_plot_spans_both_methods(workspace, reported):
    workspace.package(reported=reported())
    workspace.seeds("GFKD", [80.0, 84.0])
    workspace.seeds("RandG", [60.0])
    ((_, verdict),) = workspace.page().claims[0].judged
    plot = strip_plot(verdict)
    assert (plot.low, plot.high) == ("60", "84")
    assert plot.description == "GFKD: 80, 84; RandG: 60"
    assert plot.strips[1].dots[0][0] < plot.strips[0].dots[0][0] < plot.strips[0].dots[1][0]


def test_configurations_are_flattened_to_dotted_keys():
    nested = {"a": {"b": {"c": 1.5}, "d": [1, "x"]}, "e": None, "f": True, "g": {}}
    assert flattened(nested) == {"a.b.c": "1.5", "a.d": "[1, x]", "e": "none", "f": "true", "g": "{}"}
