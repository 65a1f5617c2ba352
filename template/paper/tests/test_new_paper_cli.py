"""The command line, called as a person would call it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tenfold.new_paper.checkpoints import artifact
from tenfold.new_paper.cli import main
from tenfold.new_paper.experiments import Suite
from tenfold.new_paper.model import DigitClassifier
from tenfold.new_paper.profiles import PROFILES
from tenfold.shared.accelerator import AcceleratorConfig
from tenfold.shared.comparison import load_reported
from tenfold.shared.runs import save_atomically

Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def call(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Call:
    """Runs the command in the test's folder; returns exit status, standard output and standard error."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            main([str(argument) for argument in arguments])
        output, errors = capfd.readouterr()
        code: Any = ended.value.code
        return code or 0, output, errors

    return run


def one_error(outcome: tuple[int, str, str]) -> str:
    status, _, errors = outcome
    assert status == 2 and errors.startswith("error: ") and errors.count("\n") == 1, errors
    return errors


@pytest.mark.parametrize("verb", ["reproduce", "train", "evaluate"])
def test_every_verb_explains_itself(call: Call, verb: str) -> None:
    status, output, _ = call(verb, "--help")
    assert status == 0 and f"usage: tenfold-new-paper {verb}" in output


def test_the_profiles_are_listed(call: Call) -> None:
    status, output, _ = call("reproduce", "--profile", "list")
    assert status == 0
    assert all(re.search(rf"^{name} ", output, re.MULTILINE) for name in ("smoke", "quick", "digits-all"))


def test_every_reported_row_and_claim_belongs_to_the_runs_of_the_quick_profile(tmp_path: Path) -> None:
    profile, reported = PROFILES["quick"], load_reported("tenfold.new_paper")
    suite = Suite("quick", profile, tmp_path, accelerator=AcceleratorConfig(device="cpu"))
    keys = [suite.run(method, seed=0).key for method in profile.methods]
    runs = {(key.dataset, key.setting, key.method) for key in keys}
    assert {(row.dataset, row.setting, row.method) for row in reported.rows} == runs
    claimed = {method for claim in reported.claims for method in (claim.better, claim.worse)}
    assert claimed and claimed <= set(profile.methods)


def test_smoke_leaves_a_record_of_every_run_and_a_second_call_repeats_none(
    call: Call, tmp_path: Path
) -> None:
    smoke = ("reproduce", "--profile", "smoke", "--device", "cpu")
    assert call(*smoke)[0] == 0
    records = sorted((tmp_path / "runs" / "new-paper" / "smoke").glob("*/result.json"))
    methods = [json.loads(path.read_text())["method"] for path in records]
    assert sorted(methods) == ["KD", "KD", "Student", "Student", "Teacher", "Teacher"]
    assert (records[0].parent / "figures" / "answers.png").is_file()
    written = [path.stat().st_mtime_ns for path in records]
    assert call(*smoke)[0] == 0
    assert [path.stat().st_mtime_ns for path in records] == written


def test_a_trained_network_can_be_evaluated_and_learned_from(call: Call, tmp_path: Path) -> None:
    small = ("--epochs", 1, "--hidden-dim", 8, "--device", "cpu", "-q")
    assert call("train", *small)[0] == 0
    folder = tmp_path / "runs" / "new-paper" / "single" / "digits-labels-seed0"
    recorded = json.loads((folder / "result.json").read_text())["metrics"]["test_accuracy"]
    assert f"test accuracy {recorded:.2f} %" in call("evaluate", "--checkpoint", folder / "model.pt")[1]
    assert call("train", "--teacher", folder / "model.pt", "--num-images", 30, *small)[0] == 0
    assert folder.with_name("digits-kd-seed0").is_dir()


def test_what_a_person_can_mend_is_said_in_one_sentence(call: Call, tmp_path: Path) -> None:
    assert "choose one of smoke, quick" in one_error(call("reproduce", "--profile", "nope"))
    assert "each once" in one_error(call("reproduce", "--seeds", 1, 1))
    assert "between 1 and 1000" in one_error(call("train", "--num-images", 1001))
    assert "at least 1" in one_error(call("train", "--epochs", 0))
    assert "no checkpoint at absent.pt" in one_error(call("train", "--teacher", "absent.pt"))
    (tmp_path / "cut.pt").write_bytes(b"cut")
    assert "cut.pt is truncated" in one_error(call("evaluate", "--checkpoint", "cut.pt"))


def test_a_checkpoint_that_does_not_fit_names_the_key(call: Call, tmp_path: Path) -> None:
    content = artifact(DigitClassifier(8))
    del content["state_dict"]["layers.3.bias"]
    save_atomically(tmp_path / "short.pt", content)
    assert "layers.3.bias" in one_error(call("evaluate", "--checkpoint", "short.pt"))
