"""Reported numbers beside reproduced ones."""

from __future__ import annotations

import io
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from tenfold.shared.comparison import (
    Claim,
    Reported,
    compare,
    judge,
    load_reported,
    measure,
    print_comparison,
)
from tenfold.shared.logging import TenfoldError

TOML = """
schema_version = 1
paper = "coca"
title = "Contrastive things"
authors = "A. Author"
venue = "V"
year = 2022
link = "https://example.org"

[[rows]]
table = "1"
dataset = "MNIST"
setting = "small"
method = "CoCa"
metric = "accuracy"
value = 91.5
std = 0.25
unit = "%"
higher_is_better = true
source = "Table 1"

[[rows]]
table = "1"
dataset = "MNIST"
setting = "small"
method = "Labels"
metric = "accuracy"
unavailable = "not legible"
unit = "%"
higher_is_better = true
source = "Table 1"

[[claims]]
id = "coca-beats-labels"
text = "CoCa [ours] beats labels [/x]"
profile = "quick"
metric = "accuracy"
better = "CoCa"
worse = "Labels"
margin = 1.0
higher_is_better = true
"""


@pytest.fixture
def toml(tmp_path: Path) -> Path:
    path = tmp_path / "reported.toml"
    path.write_text(TOML)
    return path


@pytest.fixture
def reported(toml: Path) -> Reported:
    return load_reported(toml)


@pytest.fixture
def claim(reported: Reported) -> Claim:
    return reported.claims[0]


def result(method: str, value: float | None, seed: int = 0, **changes: Any) -> dict[str, Any]:
    record = {"profile": "quick", "dataset": "MNIST", "setting": "small", "method": method, "seed": seed}
    return {**record, "status": "finished", "metrics": {"accuracy": value}, **changes}


class TestReading:
    def test_reads_rows_and_claims_in_order(self, reported: Reported) -> None:
        assert [row.method for row in reported.rows] == ["CoCa", "Labels"]
        assert (reported.rows[0].value, reported.rows[0].std) == (91.5, 0.25)
        assert (reported.rows[1].value, reported.rows[1].unavailable) == (None, "not legible")
        assert reported.claims[0].margin == 1.0
        assert reported.note == ""

    def test_reads_the_file_of_an_importable_package(
        self, tmp_path: Path, toml: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "some_paper_package").mkdir()
        (tmp_path / "some_paper_package/__init__.py").touch()
        toml.rename(tmp_path / "some_paper_package/reported.toml")
        monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
        assert load_reported("some_paper_package").paper == "coca"

    def test_a_package_that_is_not_installed_is_named(self) -> None:
        with pytest.raises(TenfoldError, match="no_such_package"):
            load_reported("no_such_package")

    @pytest.mark.parametrize(
        "text",
        [
            "",
            "paper = ",
            TOML.replace("[[claims]]", "[[claims]"),
            TOML.replace("[[rows]]", "[[lines]]"),
            TOML.replace('method = "CoCa"\n', ""),
            TOML.replace("margin = 1.0\n", ""),
            TOML.replace("margin = 1.0", "margin = 1.0\nsurprise = 2"),
            TOML.replace("year = 2022\n", ""),
            "rows = [1]\nclaims = []\n" + TOML.split("[[rows]]")[0],
        ],
    )
    def test_a_malformed_file_is_an_error_of_one_line_that_names_it(self, toml: Path, text: str) -> None:
        toml.write_text(text)
        with pytest.raises(TenfoldError, match=r"reported\.toml") as error:
            load_reported(toml)
        assert "\n" not in str(error.value)

    def test_a_file_that_is_no_text_or_missing_is_named(self, toml: Path) -> None:
        toml.write_bytes(b"\xff\xfe\x00")
        with pytest.raises(TenfoldError, match=r"reported\.toml"):
            load_reported(toml)
        toml.unlink()
        with pytest.raises(TenfoldError, match=r"reported\.toml"):
            load_reported(toml)


class TestJoin:
    def test_a_row_joins_by_dataset_setting_method_and_metric(self, reported: Reported) -> None:
        results = [result("CoCa", 90.0, seed=0), result("CoCa", 92.0, seed=1)]
        first, second = compare(reported, results)
        assert first.measurement is not None
        assert first.measurement.values == (90.0, 92.0)
        assert first.difference == pytest.approx(-0.5)
        assert second.measurement is None
        assert second.difference is None

    @pytest.mark.parametrize("changes", [{"dataset": "MNIST-mini"}, {"setting": "large"}, {"method": "X"}])
    def test_a_row_joins_nothing_else(self, reported: Reported, changes: dict[str, str]) -> None:
        assert compare(reported, [{**result("CoCa", 90.0), **changes}])[0].measurement is None

    def test_an_unreadable_printed_number_has_no_difference(self, reported: Reported) -> None:
        assert compare(reported, [result("Labels", 90.0)])[1].difference is None

    def test_failed_runs_and_missing_values_do_not_count(self) -> None:
        results = [result("CoCa", 80.0, status="failed"), result("CoCa", None, seed=1)]
        assert measure(results) == {}

    def test_values_are_in_order_of_seeds_with_their_spread(self) -> None:
        results = [result("CoCa", value, seed) for seed, value in ((2, 3.0), (0, 1.0), (1, 2.0))]
        (measurement,) = measure(results).values()
        assert measurement.values == (1.0, 2.0, 3.0)
        assert (measurement.mean, measurement.std) == (2.0, 1.0)

    def test_a_single_seed_has_no_spread(self) -> None:
        (measurement,) = measure([result("CoCa", 1.0)]).values()
        assert measurement.std is None


class TestClaims:
    @pytest.mark.parametrize(
        ("better", "worse", "holds"),
        [(92.0, 90.0, True), (91.0, 90.0, True), (90.9, 90.0, False), (89.0, 90.0, False)],
    )
    def test_the_difference_must_reach_the_margin(
        self, claim: Claim, better: float, worse: float, holds: bool
    ) -> None:
        verdict = judge(claim, [result("CoCa", better), result("Labels", worse)])
        assert verdict.holds is holds
        assert verdict.difference == pytest.approx(better - worse)

    @given(st.integers(0, 1000), st.integers(0, 500))
    def test_a_difference_of_exactly_the_margin_holds_whatever_its_rounding(
        self, worse: int, margin: int
    ) -> None:
        claim = Claim("a", "", "quick", "accuracy", "CoCa", "Labels", margin / 10, higher_is_better=True)
        results = [result("CoCa", (worse + margin) / 10), result("Labels", worse / 10)]
        assert judge(claim, results).holds
        assert not judge(replace(claim, margin=margin / 10 + 0.001), results).holds

    def test_where_lower_is_better_the_difference_is_turned_round(self, claim: Claim) -> None:
        lower = replace(claim, higher_is_better=False)
        verdict = judge(lower, [result("CoCa", 5.0), result("Labels", 7.0)])
        assert (verdict.difference, verdict.holds) == (2.0, True)
        assert judge(lower, [result("CoCa", 7.0), result("Labels", 5.0)]).holds is False

    @pytest.mark.parametrize("methods", [[], ["CoCa"], ["Labels"]])
    def test_a_claim_with_a_missing_side_is_undecided(self, claim: Claim, methods: list[str]) -> None:
        verdict = judge(claim, [result(method, 90.0) for method in methods])
        assert verdict.holds is None
        assert verdict.difference is None

    def test_failed_runs_other_profiles_and_nulls_are_no_evidence(self, claim: Claim) -> None:
        results = [
            result("CoCa", 99.0, status="failed"),
            result("CoCa", 99.0, profile="smoke"),
            result("CoCa", None),
            result("CoCa", 1.0, metrics={"loss": 1.0}),
            result("Labels", 90.0),
        ]
        assert judge(claim, results).better is None

    def test_a_claim_about_a_dataset_and_setting_counts_only_their_runs(self, claim: Claim) -> None:
        results = [
            result("CoCa", 99.0, dataset="CIFAR"),
            result("CoCa", 99.0, setting="large"),
            result("CoCa", 90.0),
            result("Labels", 90.0),
        ]
        verdict = judge(replace(claim, dataset="MNIST", setting="small"), results)
        assert verdict.better is not None
        assert verdict.better.values == (90.0,)
        pooled = judge(claim, results)
        assert pooled.better is not None
        assert sorted(pooled.better.values) == [90.0, 99.0, 99.0]


class TestPrinting:
    def printed(self, reported: Reported, results: list[dict[str, Any]], **arguments: Any) -> tuple[str, Any]:
        stream = io.StringIO()
        console = Console(file=stream, width=160)
        verdicts = print_comparison(reported, results, "quick", ["accuracy"], console)
        return stream.getvalue(), verdicts

    def test_shows_paper_reproduced_difference_runs_and_verdict(self, reported: Reported) -> None:
        results = [result("CoCa", 92.0, 0), result("CoCa", 93.0, 1), result("Labels", 90.0)]
        text, verdicts = self.printed(reported, results)
        row = next(line for line in text.splitlines() if "MNIST" in line and "CoCa" in line)
        cells = [cell.strip() for cell in row.strip("│ ").split("│")]
        assert cells == ["MNIST", "small", "CoCa", "accuracy", "91.50 ± 0.25", "92.50 ± 0.71", "+1.00", "2"]
        row = next(line for line in text.splitlines() if "MNIST" in line and "Labels" in line)
        assert [cell.strip() for cell in row.strip("│ ").split("│")][4:] == ["–", "90.00", "–", "1"]
        assert [verdict.holds for verdict in verdicts] == [True]
        assert "yes" in text

    def test_a_claim_that_fails_or_was_not_run_says_so(self, reported: Reported) -> None:
        assert "NO" in self.printed(reported, [result("CoCa", 80.0), result("Labels", 90.0)])[0]
        text, verdicts = self.printed(reported, [])
        assert "not run" in text
        assert verdicts[0].holds is None

    def test_brackets_in_names_are_printed(self, reported: Reported) -> None:
        text, _ = self.printed(reported, [result("CoCa [ours]", 80.0)])
        assert "CoCa [ours]" in text
        assert "CoCa [ours] beats labels [/x]" in text

    def test_small_numbers_keep_their_digits(self, reported: Reported) -> None:
        small = replace(reported, rows=(replace(reported.rows[0], value=0.0125, std=None),))
        text, _ = self.printed(small, [result("CoCa", 0.0137)])
        assert "0.0125" in text
        assert "0.0137" in text
        assert "+0.0012" in text

    def test_other_metrics_and_claims_of_other_profiles_stay_out(self, reported: Reported) -> None:
        other = replace(reported, claims=(replace(reported.claims[0], profile="h100"),))
        text, verdicts = self.printed(other, [result("CoCa", 1.0, metrics={"loss": 0.5})])
        assert "loss" not in text
        assert verdicts == []
        assert "claims" not in text
