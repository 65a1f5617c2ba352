"""The command line: its verbs, and one clear sentence for what a user gets wrong."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tenfold.reliant.cli import main
from tenfold.reliant.profiles import PROFILES

Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Call:
    """Runs a command in the test's folder; returns exit status, output and errors."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("TENFOLD_DATA", raising=False)

    def run(*arguments: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return int(ended.value.code or 0), captured.out, captured.err

    return run


def one_error(outcome: tuple[int, str, str]) -> str:
    status, _, errors = outcome
    lines = [line for line in errors.splitlines() if line.startswith("error:")]
    assert status == 2 and len(lines) == 1 and "Traceback" not in errors
    return lines[0]


SHORT = ("--device", "cpu", "-q", "--dataset", "german")


def the_run(root: Path, name: str) -> Path:
    (folder,) = root.glob(f"runs/reliant/single/{name}-????????-seed0")
    return folder


@pytest.fixture
def teacher(call: Call, tmp_path: Path) -> Path:
    assert call("train", "--epochs", 3, *SHORT)[0] == 0
    return the_run(tmp_path, "german-gcn-teacher") / "model.pt"


@pytest.mark.parametrize("framework", ["akd", "cpf"])
def test_train_distill_evaluate(call: Call, teacher: Path, tmp_path: Path, framework: str) -> None:
    options = (framework, "--epochs", 3, "--objective", "eo")
    assert call("distill", "--teacher", teacher, *SHORT, *options)[0] == 0
    folder = the_run(tmp_path, f"german-{framework}-eo-reliant")
    record = json.loads((folder / "result.json").read_text())
    assert record["config"]["student"]["framework"] == framework and record["method"] == "RELIANT"
    for checkpoint, name in ((folder, folder.name), (teacher.parent, "teacher")):
        _, output, _ = call("evaluate", "--checkpoint", checkpoint / "model.pt", "--dataset", "german")
        metrics = json.loads((checkpoint / "result.json").read_text())["metrics"]
        for metric in ("accuracy", "delta_sp", "delta_eo", "positive_rate"):
            assert f"{metric:14} {metrics[metric]:.4f}" in output, (name, metric)


def test_frameworks_bring_their_own_defaults(call: Call, tmp_path: Path) -> None:
    for framework, expected in (("akd", (1e-4, 10, None)), ("cpf", (0.01, 1000, 500))):
        options = (framework, "--epochs", 1, "--learn-from", "labels")
        assert call("distill", *SHORT, *options)[0] == 0
        folder = the_run(tmp_path, f"german-{framework}-sp-reliant-on-labels")
        student = json.loads((folder / "config.json").read_text())["config"]["student"]
        assert (student["lr"], student["alpha"], student["patience"]) == expected


def test_other_settings_and_other_teachers_leave_other_runs(
    call: Call, teacher: Path, tmp_path: Path
) -> None:
    assert call("train", "--epochs", 3, "--hidden-dim", 32, *SHORT)[0] == 0
    others = [path for path in tmp_path.glob("runs/reliant/single/*/model.pt") if path != teacher]
    before = teacher.stat().st_mtime_ns
    assert call("train", "--epochs", 3, *SHORT)[0] == 0
    assert len(others) == 1 and teacher.stat().st_mtime_ns == before  # it was there already
    for given in (teacher, others[0]):
        assert call("distill", "--teacher", given, *SHORT, "cpf", "--epochs", 1)[0] == 0
    assert len(list(tmp_path.glob("runs/reliant/single/german-cpf-sp-reliant-*"))) == 2


def test_pinned_rows_are_not_evaluated(call: Call, teacher: Path, tmp_path: Path) -> None:
    assert call("distill", "--teacher", teacher, *SHORT, "cpf", "--epochs", 1)[0] == 0
    student = the_run(tmp_path, "german-cpf-sp-reliant") / "model.pt"
    evaluate = ("evaluate", "--dataset", "german", "--split", "train", "--checkpoint")
    assert "choose --split val or test" in one_error(call(*evaluate, student))
    assert call(*evaluate, teacher)[0] == 0


def test_sampled_training_from_the_command_line(call: Call, tmp_path: Path) -> None:
    sampled = ("--batch-size", 300, "--fanout", 3, 3, 3)
    assert call("train", "--epochs", 2, *SHORT, *sampled)[0] == 0
    teacher = next(tmp_path.rglob("model.pt"))
    assert call("distill", "--teacher", teacher, *SHORT, "akd", "--epochs", 1, *sampled)[0] == 0


def test_a_graph_of_ones_own(call: Call, make_graph, tmp_path: Path) -> None:
    data = make_graph(num_groups=3).to_pyg()
    torch.save(
        {key: value for key, value in data.to_dict().items() if key != "sensitive"}, tmp_path / "mine.pt"
    )
    assert "name the column of x" in one_error(call("train", "--dataset", "mine.pt", "--device", "cpu"))
    data.x[:, 3] = torch.arange(60) % 3
    torch.save(data.to_dict(), tmp_path / "mine.pt")
    assert (
        call("train", "--dataset", "mine.pt", "--sensitive-column", 3, "--epochs", 2, "--device", "cpu")[0]
        == 0
    )


def test_profiles_and_data_sets_are_listed(call: Call) -> None:
    status, output, _ = call("reproduce", "--profile", "list")
    assert status == 0 and all(name in output for name in PROFILES)
    status, output, _ = call("datasets")
    assert status == 0 and "1000 nodes, 21742 edges" in output and output.count("not here") == 5


def test_smoke_from_the_command_line(call: Call) -> None:
    small = ("--profile", "smoke", "--seeds", 0, "--device", "cpu", "-q", "--workers", 1)
    status, output, _ = call("reproduce", *small)
    assert status == 0 and "cpf-sage sp" in output and "RELIANT alpha=1" in output


def test_some_methods_of_a_profile_are_reproduced(call: Call, tmp_path: Path) -> None:
    some = ("--methods", "Vanilla", "RELIANT alpha=1", "--seeds", 3, "--workers", 1)
    assert call("reproduce", "--profile", "smoke", *some, "--device", "cpu", "-q")[0] == 0
    records = [json.loads(path.read_text()) for path in tmp_path.rglob("result.json")]
    students = {one["method"] for one in records if "trade-off" not in one["setting"]}
    assert students == {"Teacher", "Vanilla", "RELIANT alpha=1"}


def test_names_that_are_not_known(call: Call, tmp_path: Path) -> None:
    assert "choose one of smoke, quick" in one_error(call("reproduce", "--profile", "nope"))
    assert "choose one of german" in one_error(call("train", "--dataset", "nope"))
    unknown = one_error(call("reproduce", "--profile", "smoke", "--methods", "RELIANT", "magic"))
    assert "--methods takes some of Labels, Vanilla" in unknown and "RELIANT alpha=1" in unknown
    assert "no data root absent; create it" in one_error(call("reproduce", "--data-root", "absent"))
    message = one_error(call("reproduce", "--profile", "recidivism", "--data-root", tmp_path))
    assert "recidivism is missing" in message and "--download" in message and "quick" in message
    assert not list(tmp_path.rglob("config.json"))  # said before anything was begun


def test_settings_that_cannot_be(call: Call, teacher: Path) -> None:
    distill = ("distill", "--teacher", teacher, *SHORT, "akd")
    assert "learning rate" in one_error(call(*distill, "--lr", -1))
    assert "0 hidden layers" in one_error(call("train", *SHORT, "--hidden-layers", -1))
    cpf = ("distill", "--teacher", teacher, *SHORT, "cpf")
    assert "at least 2 layers" in one_error(call(*cpf, "--num-layers", 1))
    assert "--hidden-labels above 0" in one_error(call(*cpf, "--hidden-labels", 0))
    assert "looks 9 hops far" in one_error(call(*cpf, "--batch-size", 10))
    assert "at least one number, each once" in one_error(
        call("reproduce", "--profile", "smoke", "--seeds", 1, 1)
    )
    assert "at least 1 epoch" in one_error(call(*distill, "--epochs", 0))
    assert "alpha is at least 0" in one_error(call(*distill, "--alpha", -1))
    assert "give the student the teacher's width" in one_error(call(*distill, "--hidden-dim", 5))
    assert "name the teacher's model.pt" in one_error(call("distill", *SHORT, "akd"))
    assert "for each hop a number" in one_error(call(*distill, "--batch-size", 10, "--fanout", 0))


def test_full_batches_refuse_several_processes(start, tmp_path: Path) -> None:
    process = start("-m", "tenfold.reliant", "train", *SHORT, "--devices", 2, "--epochs", 1, cwd=tmp_path)
    _, errors = process.communicate(timeout=120)
    assert process.returncode != 0 and "sampled neighbourhoods with --batch-size" in errors
    assert "Traceback" not in errors


def test_files_that_do_not_fit(call: Call, teacher: Path, tmp_path: Path) -> None:
    cut = tmp_path / "cut.pt"
    cut.write_bytes(teacher.read_bytes()[:3000])
    assert "cut.pt is truncated" in one_error(call("evaluate", "--checkpoint", cut, "--dataset", "german"))
    assert "no checkpoint at absent.pt" in one_error(call("distill", "--teacher", "absent.pt", *SHORT, "akd"))
    message = one_error(call("evaluate", "--checkpoint", teacher, "--dataset", "recidivism-3000"))
    assert "trained on german" in message and "choose the --dataset" in message
    torch.save({"x": 1}, tmp_path / "other.pt")
    assert "is not a model.pt of ours" in one_error(
        call("evaluate", "--checkpoint", tmp_path / "other.pt", "--dataset", "german")
    )
    assert call("distill", "--teacher", teacher, *SHORT, "akd", "--epochs", 1)[0] == 0
    student = the_run(tmp_path, "german-akd-sp-reliant") / "model.pt"
    assert "holds a student" in one_error(call("distill", "--teacher", student, *SHORT, "akd"))
