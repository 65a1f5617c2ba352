"""The command line: its verbs, and one clear sentence for what a user gets wrong."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tenfold.coca.cli import main
from tenfold.coca.networks import build_model
from tenfold.coca.profiles import PROFILES
from tenfold.coca.streams import STREAMS

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
    assert status == 2, errors
    assert len(lines) == 1
    assert "Traceback" not in errors
    return lines[0]


SHORT = (
    *("--stream.name", "s-digits", "--stream.epochs", 1, "--stream.batches-per-epoch", 3),
    *("--network.name", "mlp", "--memory-size", 20, "-q", "--device", "cpu"),
)


@pytest.fixture
def trained(call: Call, tmp_path: Path) -> Path:
    assert call("train", *SHORT)[0] == 0
    (folder,) = tmp_path.glob("runs/coca/single/s-digits-coca-????????-seed0")
    return folder


def test_train_leaves_a_record_and_a_learner(trained: Path) -> None:
    record = json.loads((trained / "result.json").read_text())
    assert record["method"] == "CoCa"
    assert record["config"]["learner"]["memory_size"] == 20
    assert (trained / "model.pt").exists()


def test_a_run_that_is_done_is_not_repeated(call: Call, trained: Path) -> None:
    before = (trained / "result.json").stat().st_mtime_ns
    assert call("train", *SHORT)[0] == 0
    assert (trained / "result.json").stat().st_mtime_ns == before


def test_other_settings_leave_another_run(call: Call, trained: Path) -> None:
    assert call("train", *SHORT, "--lr", 0.07)[0] == 0
    assert len(list(trained.parent.iterdir())) == 2


def test_a_trained_learner_is_evaluated_on_its_own_stream(call: Call, trained: Path) -> None:
    status, output, _ = call("evaluate", "--checkpoint", trained / "model.pt", "--device", "cpu")
    assert status == 0
    expected = json.loads((trained / "result.json").read_text())["metrics"]["class_il"]
    assert f"{expected:.2f}" in output


def test_official_weights_are_evaluated(call: Call, tmp_path: Path) -> None:
    model = build_model("mlp", 10, pretext_classes=16, projection_dim=32, image_shape=(1, 8, 8))
    names = {"pretext_head": "eq_head", "projection_head": "inv_head", "backbone.": ""}
    weights = {}
    for key, value in model.state_dict().items():
        for ours, theirs in names.items():
            key = key.replace(ours, theirs)
        weights[key] = value
    torch.save(weights, tmp_path / "official.pt")
    arguments = (
        "--checkpoint",
        "official.pt",
        "--official",
        "mlp",
        "--stream",
        "s-digits",
        "--device",
        "cpu",
    )
    status, output, errors = call("evaluate", *arguments)
    assert status == 0, errors
    assert "task_il" in output


def test_the_memory_is_shown_and_drawn(call: Call, trained: Path, tmp_path: Path) -> None:
    status, output, _ = call("memory", "--checkpoint", trained / "model.pt", "--picture", "memory.png")
    assert status == 0
    assert "20 images after 15 steps of CoCa" in output
    assert "age in steps" in output
    assert (tmp_path / "memory.png").read_bytes().startswith(b"\x89PNG")


def test_methods_are_compared_seed_by_seed(call: Call) -> None:
    chosen = (
        "--profile",
        "smoke",
        "--methods",
        "DER++",
        "CoCa",
        "--device",
        "cpu",
        "--workers",
        1,
    )
    status, output, errors = call("reproduce", *chosen, "-q")
    assert status == 0, errors
    assert "coca: smoke" in output
    status, output, _ = call("compare", "--runs", "runs/coca/smoke")
    assert status == 0
    assert "DER++" in output
    assert "of 2" in output


def test_methods_are_compared_on_one_network_only(call: Call, tmp_path: Path) -> None:
    for setting, method in (
        ("memory 20 convnet", "CoCa"),
        ("memory 20 convnet", "DER++"),
        ("no memory", "SGD"),
    ):
        for seed in (0, 1):
            folder = tmp_path / "runs" / f"{method}-{setting}-{seed}"
            folder.mkdir(parents=True)
            record = {"status": "finished", "setting": setting, "method": method, "seed": seed}
            (folder / "result.json").write_text(json.dumps({**record, "metrics": {"class_il": 50.0 + seed}}))
    status, output, _ = call("compare", "--runs", "runs")
    assert status == 0
    assert "DER++" in output
    assert "SGD" not in output


def test_profiles_and_streams_are_listed(call: Call) -> None:
    status, output, _ = call("reproduce", "--profile", "list")
    assert status == 0
    assert all(name in output for name in PROFILES)
    status, output, _ = call("streams")
    assert status == 0
    assert all(name in output for name in STREAMS)
    assert "not here: CIFAR10 was not found" in output


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("reproduce", "--profile", "nowhere"), "unknown profile 'nowhere'; choose one of"),
        (("reproduce", "--seeds", 1, 1), "each once"),
        (("reproduce", "--methods", "Magic"), "--methods takes some of JOINT"),
        (("reproduce", "--data-root", "absent"), "there is no data root absent"),
        (("reproduce", "--profile", "cifar10-200"), "CIFAR10 was not found in data"),
        (("reproduce", "--profile", "tinyimagenet-200"), "Tiny ImageNet was not found in"),
        (("reproduce", "--profile", "h100"), "the sheets of CIFAR-10"),
        (("train", "--stream.name", "rivers"), "unknown stream 'rivers'; choose one of"),
        (("train", "--memory-size", 0), "needs a memory of at least 1 image"),
        (("train", "--omega", 1), "omega is from 0 to below 1"),
        (("train", "--lr", -1), "lr is at least 0"),
        (("train", *SHORT, "--stream.classes-per-task", 3), "cannot be split into tasks of 3"),
        (
            ("train", *SHORT, "--method", "GEM", "--memory-size", 3),
            "cannot be shared by 4 tasks",
        ),
        (
            ("train", *SHORT, "--stream.name", "blurry-digits", "--method", "iCaRL"),
            "must be told where tasks end, and blurry-digits does not say",
        ),
        (("train", "--seed", -1, *SHORT), "a seed is a whole number"),
        (("evaluate", "--checkpoint", "absent.pt"), "no checkpoint at absent.pt"),
        (("compare", "--runs", "absent"), "there is no finished run of CoCa"),
        (("memory", "--checkpoint", "absent.pt"), "no checkpoint at absent.pt"),
    ],
)
def test_what_cannot_be_is_said_in_one_sentence(
    arguments: tuple[object, ...], sentence: str, call: Call
) -> None:
    assert sentence in one_error(call(*arguments))


def test_damaged_and_foreign_files_are_named(call: Call, trained: Path, tmp_path: Path) -> None:
    (tmp_path / "cut.pt").write_bytes((trained / "model.pt").read_bytes()[:3000])
    assert "cut.pt is truncated" in one_error(call("evaluate", "--checkpoint", "cut.pt"))
    torch.save({"x": torch.zeros(1)}, tmp_path / "other.pt")
    message = one_error(call("evaluate", "--checkpoint", "other.pt", "--stream", "s-digits"))
    assert "holds no learner" in message
    message = one_error(
        call("evaluate", "--checkpoint", "other.pt", "--stream", "s-digits", "--official", "mlp")
    )
    assert "the weights lack backbone.fc1.bias" in message
    assert "name one with --stream" in one_error(call("evaluate", "--checkpoint", "other.pt"))
