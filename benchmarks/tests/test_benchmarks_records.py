"""Finding, validating and loading records."""

import json

import pytest

from tenfold.benchmarks.cli import main
from tenfold.shared.logging import TenfoldError


def reasons(workspace):
    return [problem.reason for problem in workspace.collect().problems]


def test_local_and_reference_records_are_found_with_their_source(workspace):
    workspace.run()
    workspace.run(hardware="h100-sxm", seed=1)
    assert [(record.source, record.label) for record in workspace.collect().records] == [
        ("local runs", "gfkd-seed0"),
        ("h100-sxm", "gfkd-seed1"),
    ]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{", "is not JSON"),
        ("[]", "is not of type 'object'"),
        ("[" * 100_000, "is nested too deeply"),
        ('{"metrics": NaN}', "NaN"),
        ('{"metrics": 1e999}', "too large"),
        ('{"metrics": 1' + "0" * 400 + "}", "too large"),
        ("\udcff", "is not UTF-8"),
    ],
)
def test_a_corrupt_record_becomes_a_problem_with_its_reason(workspace, text, reason):
    directory = workspace.run()
    (directory / "result.json").write_bytes(text.encode(errors="surrogateescape"))
    collection = workspace.collect()
    assert collection.records == ()
    assert any(reason in problem.reason for problem in collection.problems)
    assert collection.problems[0].path == "runs/gfkd/quick/gfkd-seed0/result.json"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"schema_version": 2}, "has the newer schema version 2 (this is 1): update"),
        ({"schema_version": 0}, "has the older schema version 0 (this is 1): run it again"),
        ({"metrics": {"accuracy": "80"}}, "metrics.accuracy: '80' is not of type"),
        ({"unknown": 1}, "Additional properties are not allowed"),
        ({"curves": {"loss": {"x": [1, 2], "y": [1], "x_label": "epoch"}}}, "2 x values and 1 y values"),
    ],
)
def test_a_record_that_breaks_the_contract_is_named_by_field(workspace, changes, reason):
    workspace.run(**changes)
    assert [reason in found for found in reasons(workspace)] == [True]


@pytest.mark.parametrize("kind", ["directory", "loop"])
def test_a_result_that_is_no_file_hides_nothing(workspace, kind):
    kept = workspace.run()
    odd = kept.with_name("odd-seed0")
    odd.mkdir()
    if kind == "directory":
        (odd / "result.json").mkdir()
    else:
        (odd / "result.json").symlink_to(odd / "result.json")
    collection = workspace.collect()
    assert [record.label for record in collection.records] == ["gfkd-seed0"]
    assert [problem.path for problem in collection.problems] == ["runs/gfkd/quick/odd-seed0/result.json"]


def test_profiles_in_the_authors_spelling_are_records(workspace):
    workspace.run(profile="cmt_voxel0075_vov_1600x640")
    assert workspace.collect().problems == ()


def test_a_start_that_is_no_date_is_a_problem(workspace, record):
    workspace.run(timing=record()["timing"] | {"started_at": "yesterday"})
    assert reasons(workspace) == ["timing.started_at: 'yesterday' is not a 'date-time'"]


def test_a_record_copied_to_another_seed_is_not_counted_twice(workspace, record):
    workspace.run()
    copy = workspace.runs / "gfkd" / "quick" / "gfkd-seed1"
    copy.mkdir()
    (copy / "result.json").write_text(json.dumps(record()))
    assert len(workspace.collect().records) == 1
    assert reasons(workspace) == ["says it belongs in gfkd/quick/gfkd-seed0, but lies elsewhere"]


@pytest.mark.parametrize(
    ("text", "reason"),
    [("paper = ", "is not TOML"), ("paper = 'gfkd'", "'title' is a required property")],
)
def test_a_corrupt_reported_toml_becomes_a_problem_and_the_paper_stays(workspace, text, reason):
    workspace.package(reported=text)
    collection = workspace.collect()
    assert any(reason in problem.reason for problem in collection.problems)
    assert collection.papers[0].title == "GFKD: a method for graphs"


def test_reported_numbers_must_be_finite_and_claims_distinct(workspace, reported, make_row, make_claim):
    workspace.package(reported=reported(rows=make_row("GFKD", float("nan")), claims=make_claim() * 2))
    assert reasons(workspace) == [
        "row Table 2, GFKD, accuracy: a number is not finite or too large",
        "claim id 'beats' is used 2 times",
    ]


def test_a_missing_packages_folder_says_what_to_do(workspace):
    workspace.packages.rmdir()
    with pytest.raises(TenfoldError, match="--packages"):
        workspace.collect()


def test_verify_lists_one_line_a_problem_and_fails(workspace, reported, capsys):
    workspace.package(reported=reported() + "unknown = 1\n")
    workspace.run(seed=0, status="done")
    with pytest.raises(SystemExit, match="1"):
        main(["verify", *workspace.arguments()])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(": ")[0] for line in lines] == [
        "packages/gfkd/src/tenfold/gfkd/reported.toml",
        "runs/gfkd/quick/gfkd-seed0/result.json",
    ]
