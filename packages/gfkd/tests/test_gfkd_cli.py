"""The command line, called as a person would call it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from torch_geometric.io import fs

from tenfold.gfkd.cli import main
from tenfold.gfkd.models import GraphClassifier
from tenfold.gfkd.training import artifact
from tenfold.shared.runs import load_checkpoint, save_atomically

VERBS = ("reproduce", "train", "generate", "distill", "evaluate", "export")
Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def call(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Call:
    """Runs the command in the test's folder; returns exit status, standard output and standard error."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("TENFOLD_DATA", raising=False)

    def run(*arguments: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            main([str(argument) for argument in arguments])
        output, errors = capfd.readouterr()
        code: Any = ended.value.code
        return code or 0, output, errors

    return run


@pytest.fixture
def teacher_file(teacher: GraphClassifier, tmp_path: Path) -> Path:
    path = tmp_path / "teacher.pt"
    save_atomically(path, artifact("gcn3_32", teacher, teacher.state_dict(), known_degrees=None))
    return path


def one_error(outcome: tuple[int, str, str]) -> str:
    status, _, errors = outcome
    lines = [line for line in errors.splitlines() if line.startswith("error:")]
    assert status == 2 and len(lines) == 1 and "Traceback" not in errors, errors
    assert errors.rstrip().splitlines()[-1] == lines[0]
    return lines[0]


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_explains_itself(call: Call, verb: str) -> None:
    status, output, _ = call(verb, "--help")
    assert status == 0
    options = set(re.findall(r"--[a-z-]+", output))
    assert len(options) > 3 and "usage: tenfold-gfkd" in output


def test_the_verbs_are_listed(call: Call) -> None:
    status, output, _ = call("--help")
    assert status == 0 and all(verb in output for verb in VERBS)


def test_the_profiles_are_listed(call: Call) -> None:
    status, output, _ = call("reproduce", "--profile", "list")
    assert status == 0
    for name in ("smoke", "quick", "h100", "mutag-released", "gfkd-bio", "gfkd-social", "reddit-b"):
        assert re.search(rf"^{name} ", output, re.MULTILINE)


@pytest.mark.parametrize("backend", ["pyg", "dense"])
def test_the_released_teacher_scores_what_its_authors_recorded(
    call: Call, data_root: Path, backend: str
) -> None:
    path = data_root / "gfkd" / "released" / "gcn5_64_mutag_ckpt_best_29.pth"
    status, output, _ = call("evaluate", "--checkpoint", path, "--backend", backend)
    assert status == 0 and "test accuracy 89.47 % on 57 graphs of mutag" in output


def test_graphs_are_generated_exported_and_distilled_on(
    call: Call, teacher_file: Path, tmp_path: Path
) -> None:
    small = ("--num-graphs", 12, "--iterations", 3, "--min-nodes", 4, "--max-nodes", 8, "--device", "cpu")
    assert call("generate", "--teacher", teacher_file, "--output", "new/fake.pt", *small)[0] == 0
    assert (
        call("generate", "--teacher", teacher_file, "--output", "chunks.pt", "--graphs-per-batch", 5, *small)[
            0
        ]
        == 0
    )
    assert len(load_checkpoint(tmp_path / "chunks.pt")["labels"]) == 12
    for kind in ("gin", "pyg"):
        assert (
            call("export", "--graphs", "new/fake.pt", "--output", f"fake.{kind}.txt", "--format", kind)[0]
            == 0
        )
    exported = fs.torch_load(str(tmp_path / "fake.pyg.txt"))
    assert len(exported) == 12 and exported[0].x.shape[1] == 7
    from_file = {}
    for graphs in ("new/fake.pt", "fake.gin.txt"):
        output = Path(graphs).stem
        shared = ("--teacher", teacher_file, "--model", "gcn2_32", "--epochs", 2, "--device", "cpu")
        assert call("distill", *shared, "--graphs", graphs, "--output", output)[0] == 0
        record = tmp_path / output / "gfkd" / "single" / "mutag-gcn2_32-distilled-seed0" / "result.json"
        from_file[graphs] = json.loads(record.read_text())
    first, second = from_file.values()
    assert first["method"] == second["method"] == "Fake graphs"
    assert first["metrics"]["test_accuracy"] == second["metrics"]["test_accuracy"]
    assert first["curves"]["loss"]["y"] == pytest.approx(second["curves"]["loss"]["y"], rel=1e-3)


def test_a_trained_network_can_be_evaluated(call: Call, tmp_path: Path) -> None:
    small = ("--model", "gin2_32", "--epochs", 2, "--device", "cpu", "-q")
    assert call("train", *small)[0] == 0
    folder = tmp_path / "runs" / "gfkd" / "single" / "mutag-gin2_32-labels-seed0"
    recorded = json.loads((folder / "result.json").read_text())["metrics"]["test_accuracy"]
    _, output, _ = call("evaluate", "--checkpoint", folder / "model.pt")
    assert f"test accuracy {recorded:.2f} %" in output


def test_a_teacher_on_degrees_asks_for_degree_features(call: Call, tmp_path: Path) -> None:
    small = ("--model", "gcn2_32", "--epochs", 1, "--device", "cpu", "--dataset", "imdb-b")
    assert call("train", *small)[0] == 0
    path = tmp_path / "runs" / "gfkd" / "single" / "imdb-b-gcn2_32-labels-seed0" / "model.pt"
    sizes = ("--num-graphs", 4, "--iterations", 1, "--device", "cpu")
    assert "--features degree" in one_error(call("generate", "--teacher", path, *sizes))
    assert call("generate", "--teacher", path, *sizes, "--features", "degree")[0] == 0


def test_two_processes_leave_one_record(start, tmp_path: Path) -> None:
    arguments = ("--model", "gcn2_32", "--epochs", 2, "--devices", 2, "--device", "cpu")
    process = start("-m", "tenfold.gfkd", "train", *arguments, cwd=tmp_path)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    (record,) = tmp_path.rglob("result.json")
    result = json.loads(record.read_text())
    assert result["status"] == "finished" and result["curves"]["loss"]["x"] == [1, 2]
    assert [path.name for path in tmp_path.rglob("*.pt")] == ["model.pt"]


def test_unknown_names_list_the_known_ones(call: Call) -> None:
    assert "choose one of smoke, quick" in one_error(call("reproduce", "--profile", "nope"))
    assert "names look like gcn2_32" in one_error(call("train", "--model", "gat5_64"))
    assert "choose one of mutag" in one_error(call("train", "--dataset", "nope"))


def test_some_methods_of_a_profile_are_reproduced(call: Call, tmp_path: Path) -> None:
    some = ("--methods", "GFKD", "--seeds", 3, "--workers", 1, "--device", "cpu", "-q")
    assert call("reproduce", "--profile", "smoke", *some)[0] == 0
    records = [json.loads(path.read_text()) for path in tmp_path.rglob("result.json")]
    # a teacher, its graphs and the student on them
    assert sorted((one["method"], one["seed"]) for one in records) == [
        ("GFKD", 3),
        ("GFKD", 3),
        ("Teacher", 0),
    ]


def test_methods_and_seeds_that_a_profile_lacks_are_refused(call: Call) -> None:
    unknown = one_error(call("reproduce", "--profile", "mutag-ablation", "--methods", "GFKD", "magic"))
    assert "--methods takes some of GFKD, GFKD without R_bn" in unknown
    assert "at least one number, each once" in one_error(call("reproduce", "--seeds", 1, 1))


def test_a_missing_data_root_or_set_is_named(call: Call, tmp_path: Path) -> None:
    assert "no data root absent; create it" in one_error(call("reproduce", "--data-root", "absent"))
    message = one_error(call("reproduce", "--profile", "collab", "--data-root", tmp_path))
    assert "collab is missing" in message and "--download" in message and "quick" in message


def test_unreadable_files_are_named(call: Call, teacher_file: Path, tmp_path: Path) -> None:
    cut = tmp_path / "cut.pt"
    cut.write_bytes(teacher_file.read_bytes()[:3000])
    assert "cut.pt is truncated" in one_error(call("evaluate", "--checkpoint", cut))
    assert "no checkpoint at absent.pt" in one_error(call("evaluate", "--checkpoint", "absent.pt"))
    damaged = tmp_path / "bad.txt"
    damaged.write_text("1\n2 0\n0 1 1\n")
    assert "bad.txt, line 4" in one_error(call("train", "--dataset", damaged))
    distill = ("distill", "--teacher", teacher_file, "--graphs")
    assert "bad.txt, line 4" in one_error(call(*distill, damaged))
    assert "there is no file absent.txt" in one_error(call(*distill, "absent.txt"))
    assert "does not hold graphs of ours" in one_error(call(*distill, teacher_file))
    assert "does not hold graphs of ours" in one_error(
        call("export", "--graphs", teacher_file, "--output", "x")
    )


def test_a_teacher_of_another_data_set_is_refused(call: Call, teacher_file: Path) -> None:
    for verb in (("evaluate", "--checkpoint"), ("distill", "--teacher")):
        message = one_error(call(*verb, teacher_file, "--dataset", "ptc"))
        assert "reads 7 features" in message and "ptc has 19" in message and "--dataset" in message


def test_impossible_settings_are_refused(call: Call, teacher_file: Path) -> None:
    generate = ("generate", "--teacher", teacher_file)
    assert "min_nodes" in one_error(call(*generate, "--min-nodes", 9, "--max-nodes", 3))
    assert "--num-graphs" in one_error(call(*generate, "--num-graphs", "None"))
    assert "--backend dense" in one_error(
        call(*generate, "--estimator", "straight-through", "--backend", "pyg")
    )
    assert "node tags" in one_error(call(*generate, "--features", "degree"))
    assert "at least 1" in one_error(call("train", "--epochs", 0))
