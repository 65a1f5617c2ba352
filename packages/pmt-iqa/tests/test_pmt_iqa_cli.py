"""The command line: its verbs, and one clear sentence for what a user gets wrong."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from tenfold.pmt_iqa.checkpoints import official_state_dict
from tenfold.pmt_iqa.cli import main
from tenfold.pmt_iqa.datasets import ImageSet
from tenfold.pmt_iqa.model import build_model
from tenfold.pmt_iqa.profiles import PROFILES

Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Call:
    """Runs a command in the test's folder; returns exit status, output and errors."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("TENFOLD_DATA", raising=False)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))

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


@pytest.fixture
def own_images(images: ImageSet, tmp_path: Path) -> Path:
    """A CSV table of your own, with groups, and its pictures in a folder."""
    folder = tmp_path / "own"
    (folder / "pictures").mkdir(parents=True)
    rows = []
    for index, name in enumerate(images.names):
        Image.fromarray(images.pixels.picture(index)).save(folder / "pictures" / f"{name}.png")
        rows.append({"image": f"{name}.png", "score": float(images.scores[index]), "group": index // 2})
    pd.DataFrame(rows).to_csv(folder / "scores.csv", index=False)
    return folder


SHORT = (
    *("--model.backbone", "small", "--model.no-pretrained", "--train.crop-size", 32, "--train.epochs", 2),
    *("--train.lr", 0.003, "--judge.crops", 4, "--judge.crop-rule", "corners", "-q", "--device", "cpu"),
)


def csv_arguments(folder: Path) -> tuple[object, ...]:
    return ("--dataset", "csv", "--csv.table", folder / "scores.csv", "--csv.images", folder / "pictures")


@pytest.fixture
def trained(call: Call, own_images: Path, tmp_path: Path) -> Path:
    status, _, errors = call("train", *csv_arguments(own_images), *SHORT)
    assert status == 0, errors
    (folder,) = tmp_path.glob("runs/pmt-iqa/single/scores-progressive-????????-seed0")
    return folder


def test_a_network_is_trained_on_images_of_your_own(trained: Path) -> None:
    record = json.loads((trained / "result.json").read_text())
    assert record["dataset"] == "scores"
    assert set(record["metrics"]) >= {"srcc", "plcc", "krcc", "rmse", "level_accuracy", "best_srcc"}
    assert (trained / "figures" / "quality_maps.png").exists()


def test_a_run_that_is_done_is_not_repeated_but_other_data_are_another_run(
    call: Call, trained: Path, own_images: Path
) -> None:
    before = (trained / "result.json").stat().st_mtime_ns
    assert call("train", *csv_arguments(own_images), *SHORT)[0] == 0
    assert (trained / "result.json").stat().st_mtime_ns == before
    assert call("train", *csv_arguments(own_images), "--csv.lower-is-better", *SHORT)[0] == 0
    assert call("train", *csv_arguments(own_images), "--csv.scale", 0, 20, *SHORT)[0] == 0
    assert call("train", *csv_arguments(own_images), "--csv.resize", 44, 44, *SHORT)[0] == 0
    assert len(list(trained.parent.iterdir())) == 4


def test_a_network_is_evaluated_on_another_table(call: Call, trained: Path, own_images: Path) -> None:
    status, output, errors = call(
        "evaluate", "--checkpoint", trained / "model.pt", *csv_arguments(own_images), "--device", "cpu"
    )
    assert status == 0, errors
    assert "srcc" in output
    assert "24 images" in output


def test_official_weights_are_evaluated(call: Call, own_images: Path, tmp_path: Path) -> None:
    torch.save(official_state_dict(build_model("resnet18", number_class=11)), tmp_path / "official.pt")
    larger = ("--csv.resize", 224, 224)
    arguments = ("--checkpoint", "official.pt", "--official", "resnet18", *csv_arguments(own_images), *larger)
    table = pd.read_csv(own_images / "scores.csv")[:2]
    table.to_csv(own_images / "scores.csv", index=False)
    status, output, errors = call("evaluate", *arguments, "--device", "cpu")
    assert status == 0, errors
    assert "2 images" in output


def test_a_folder_is_scored_into_tables_and_maps(
    call: Call, trained: Path, own_images: Path, tmp_path: Path
) -> None:
    folder = own_images / "pictures"
    for name in [path.name for path in folder.iterdir()][4:]:
        (folder / name).unlink()
    arguments = ("score", folder, "--checkpoint", trained / "model.pt", "--device", "cpu")
    outputs = ("--csv", "out/scores.csv", "--json", "out/scores.json", "--maps", "out/maps")
    status, output, errors = call(*arguments, *outputs)
    assert status == 0, errors
    table = pd.read_csv("out/scores.csv")
    assert len(table) == 4
    assert table["score"].between(0, 100).all()
    assert np.allclose(table[[f"level_{level}" for level in range(10)]].sum(axis=1), 1, atol=1e-4)
    assert json.loads(Path("out/scores.json").read_text())["scores"][0]["name"] == table["name"][0]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in Path("out/maps").iterdir())
    assert len(list(Path("out/maps").iterdir())) == 4
    assert table["name"][0] in output


def test_damaged_and_small_pictures_are_reported_and_left_out(
    call: Call, trained: Path, own_images: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = own_images / "pictures"
    (folder / "a-broken.png").write_bytes(b"\x89PNG no")
    Image.new("RGB", (10, 10)).save(folder / "b-small.png")
    status, output, _ = call(
        "score", folder, "--checkpoint", trained / "model.pt", "--csv", "scores.csv", "--device", "cpu"
    )
    errors = caplog.text
    assert status == 1
    assert len(pd.read_csv("scores.csv")) == 24
    assert "left out: " in errors
    assert "a-broken.png is damaged or no image" in errors
    assert "b-small.png has 10 x 10 pixels" in errors
    assert "2 of 26 pictures were left out" in errors
    assert "image-0.png" in output


def test_pictures_are_scored_without_any_training(call: Call, tmp_path: Path) -> None:
    Image.fromarray(np.full((80, 80, 3), 90, dtype=np.uint8)).save(tmp_path / "photo.png")
    status, output, errors = call("score", "photo.png", "--device", "cpu")
    assert status == 0, errors
    assert "photo.png" in output


def test_profiles_and_data_sets_are_listed(call: Call) -> None:
    status, output, _ = call("reproduce", "--profile", "list")
    assert status == 0
    assert all(name in output for name in PROFILES)
    status, output, _ = call("datasets")
    assert status == 0
    assert "koniq10k      not here: KonIQ-10k was not found at data/koniq10k" in output


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("reproduce", "--profile", "nowhere"), "unknown profile 'nowhere'; choose one of"),
        (("reproduce", "--seeds", 1, 1), "each once"),
        (("reproduce", "--methods", "Magic"), "--methods takes some of PMT-IQA"),
        (("reproduce", "--data-root", "absent"), "there is no data root absent"),
        (("reproduce", "--profile", "livec"), "LIVE in the Wild Challenge was not found at data/livec"),
        (("reproduce", "--profile", "h100"), "there is no folder data/photographs"),
        (("train", "--dataset", "rivers"), "unknown data set 'rivers'; choose one of"),
        (("train", "--dataset", "csv"), "give --csv.table FILE"),
        (("train", "--dataset", "csv", "--csv.table", "absent.csv"), "there is no table absent.csv"),
        (("train", "--train.epochs", 0), "--train.epochs is at least 1"),
        (("train", "--model.scales", 4, 1), "scales are some of 1 2 3 4 in this order"),
        (("train", "--model.backbone", "small"), "give --model.no-pretrained"),
        (("train", "--model.kind", "plain", "--model.no-pretrained"), "give --train.schedule regression"),
        (("train", "--train.images-per-batch", 1, "--train.crops-per-image", 1), "at least 2 crops"),
        (("train", "--train.fixed-weights", 0, 0), "not both 0"),
        (("score", "absent.png"), "there is no file or folder absent.png"),
        (("score", ".", "--device", "cpu"), "there are no pictures"),
        (("score", ".", "--checkpoint", "absent.pt"), "there are no pictures"),
        (("export", "--output", "x.onnx", "--checkpoint", "absent.pt"), "no checkpoint at absent.pt"),
        (("evaluate", "--dataset", "proxy", "--official", "resnet50"), "--official needs the file"),
    ],
)
def test_what_cannot_be_is_said_in_one_sentence(
    arguments: tuple[object, ...], sentence: str, call: Call
) -> None:
    assert sentence in one_error(call(*arguments))


def test_what_tables_lack_is_said_in_one_sentence(call: Call, own_images: Path) -> None:
    arguments = csv_arguments(own_images)
    table = pd.read_csv(own_images / "scores.csv")
    message = one_error(call("train", *arguments, *SHORT, "--train.crop-size", 64))
    assert "image-0.png (and 23 more) has 40 x 40 pixels, less than the crops of 64" in message
    missing = ("--csv.images", own_images)
    assert "24 of 24 images of" in one_error(call("train", *arguments, *missing, *SHORT))
    table.assign(score=3.0).to_csv(own_images / "scores.csv", index=False)
    assert "all labels are 3" in one_error(call("train", *arguments, *SHORT))
    table.drop(columns="score").to_csv(own_images / "scores.csv", index=False)
    assert "lacks the column 'score'" in one_error(call("train", *arguments, *SHORT))
    (own_images / "pictures" / "image-3.png").write_bytes(b"no picture")
    table.to_csv(own_images / "scores.csv", index=False)
    assert "image-3.png is damaged or no image" in one_error(call("train", *arguments, *SHORT))


def test_weights_that_are_missing_are_named(call: Call, own_images: Path) -> None:
    message = one_error(call("train", *csv_arguments(own_images), "--csv.resize", 224, 224))
    assert "the ImageNet weights of resnet50 are not at" in message
    assert "--download" in message


def test_an_unfit_official_file_is_named(call: Call, own_images: Path, tmp_path: Path) -> None:
    torch.save({"x": torch.zeros(1)}, tmp_path / "other.pt")
    arguments = ("--checkpoint", "other.pt", "--official", "resnet18", *csv_arguments(own_images))
    assert "the weights hold an unknown or repeated x" in one_error(call("evaluate", *arguments))
