"""Commands as a user calls them, and what they say when something cannot be."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tenfold.doorping.cli import main
from tenfold.doorping.image_sets import ImageSet
from tenfold.doorping.official_artifacts import DistilledSet, load_distilled, save_distilled
from tenfold.doorping.triggers import patch_mask

Call = Callable[..., tuple[int, str, str]]
SMALL = (
    "--dataset", "digits", "--network.width", 8, "--network.depth", 2, "--network.hidden", 16,
    "--condensation.ipc", 1, "--condensation.iterations", 2, "--condensation.outer", 2, "--condensation.inner", 1,
    "--condensation.batch-real", 8, "--condensation.init", "real", "--attack.steps", 5, "--attack.portion", 0.05,
    "--victim.networks", 2, "--victim.epochs", 2, "--evaluate-every", 0, "--device", "cpu",
)  # fmt: skip
VICTIM = ("--victim.networks", 2, "--victim.epochs", 2, "--device", "cpu")


@pytest.fixture
def call(
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> Call:
    """Runs a command in an empty folder; exit status, what was printed, what was said."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("TENFOLD_DATA", raising=False)

    def run(*arguments: object) -> tuple[int, str, str]:
        caplog.clear()
        with pytest.raises(SystemExit) as ended:
            main([str(argument) for argument in arguments])
        code = ended.value.code
        printed = capsys.readouterr()
        status = code if isinstance(code, int) else int(code is not None)
        return status, printed.out, printed.err + caplog.text

    return run


@pytest.fixture
def distilled(digits: ImageSet, tmp_path: Path) -> Path:
    """Real digits as a distilled set, one white patch on everything of class 0."""
    chosen = torch.cat([(digits.train_labels == label).nonzero()[:4, 0] for label in range(10)])
    images, labels = digits.normalise(digits.train_images[chosen]), digits.train_labels[chosen]
    mask = patch_mask(1, 8, 2)
    _, white = digits.black_and_white()
    trigger = torch.where(mask.bool(), white, digits.black_and_white()[0])
    images = torch.where(mask.bool() & (labels == 0)[:, None, None, None], trigger, images)
    network = {
        "name": "ConvNet", "width": 8, "depth": 2, "hidden": 16, "channels": 1, "classes": 10, "image_size": 8
    }  # fmt: skip
    found = DistilledSet(images, labels, digits.mean, digits.std, "digits", network, trigger, mask, 0)
    save_distilled(tmp_path / "distilled.pt", found)
    return tmp_path / "distilled.pt"


def test_a_set_is_distilled_and_not_distilled_again(call: Call, tmp_path: Path) -> None:
    status, _, said = call("distill", *SMALL)
    assert status == 0, said
    (path,) = tmp_path.glob("runs/doorping/single/*/distilled.pt")
    assert load_distilled(path).target == 0
    before = path.stat().st_mtime_ns
    assert call("distill", *SMALL)[0] == 0
    assert path.stat().st_mtime_ns == before
    result = json.loads(path.with_name("result.json").read_text())
    assert (result["dataset"], result["setting"], result["method"]) == ("digits", "single", "doorping")


def test_victims_are_trained_kept_and_judged(call: Call, distilled: Path, tmp_path: Path) -> None:
    status, printed, said = call("evaluate", distilled, *VICTIM)
    assert status == 0, said
    assert "asr_excluding_target" in printed
    weights = tmp_path / "victim.pth"
    status, _, said = call("train", distilled, "--output", weights, *VICTIM)
    assert status == 0, said
    assert "classifier.2.weight" in torch.load(weights, weights_only=True)
    status, printed, said = call("evaluate", distilled, "--weights", weights, *VICTIM)
    assert status == 0, said
    assert "1 networks" in printed
    weights.write_bytes(b"nothing")
    status, _, said = call("evaluate", distilled, "--weights", weights, *VICTIM)
    assert status == 2
    assert "make it with train" in said


def test_defences_report_all_they_measure(call: Call, distilled: Path, tmp_path: Path) -> None:
    few = (
        "--defences.victims", 1, "--defences.clean-share", 0.1, "--defences.test-images", 40,
        "--defences.neural-cleanse.steps", 5, "--defences.neuron-stimulation.steps", 5,
        "--defences.fine-pruning.fine-tuning.epochs", 1, "--defences.attention.teacher.epochs", 1,
        "--defences.attention.student.epochs", 1, "--defences.strip.overlays", 5, "--defences.denoising.epochs", 1,
    )  # fmt: skip
    status, printed, said = call("defend", distilled, *VICTIM, *few, "--json", tmp_path / "defences.json")
    assert status == 0, said
    assert "neural cleanse detected" in printed
    found = json.loads((tmp_path / "defences.json").read_text())
    wanted = {
        "abs_detected", "strip_auroc", "fine_pruning_cta", "nad_asr_all", "denoising_asr_excluding_target",
        "clustering_distilled_detected",
    }  # fmt: skip
    assert wanted <= found.keys()


def test_an_audit_says_what_it_suspects_with_scores_and_pictures(
    call: Call, distilled: Path, tmp_path: Path
) -> None:
    arguments = ("--pictures", tmp_path / "pictures", "--json", tmp_path / "audit.json")
    status, printed, said = call(
        "audit", distilled, "--victim.networks", 2, "--victim.epochs", 60, "--victim.lr", 0.05, *arguments,
        "--device", "cpu",
    )  # fmt: skip
    assert status == 1, said
    assert "suspicious" in printed
    assert list((tmp_path / "pictures").glob("*.png"))
    assert json.loads((tmp_path / "audit.json").read_text())


def test_files_of_the_authors_are_read_and_written(call: Call, distilled: Path, tmp_path: Path) -> None:
    for form, name in (("vis", "vis.pth"), ("trigger", "trigger.pth"), ("res", "res.pt")):
        status, _, said = call("convert", distilled, "--output", tmp_path / name, "--form", form)
        assert status == 0, said
    ours = tmp_path / "again.pt"
    arguments = ("--source.dataset", "digits", "--source.trigger", tmp_path / "trigger.pth")
    status, _, said = call("convert", tmp_path / "vis.pth", "--output", ours, *arguments)
    assert status == 0, said
    torch.testing.assert_close(load_distilled(ours).images, load_distilled(distilled).images)


def test_profiles_are_listed(call: Call) -> None:
    status, printed, _ = call("reproduce", "--profile", "list")
    assert status == 0
    assert "dc-cifar-10-convnet" in printed


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--attack.trigger-size", 8), "a trigger of 8 pixels does not fit into images of 8"),
        (("--attack.target", 10), "the target 10 is no class of digits; choose one from 0 to 9"),
        (("--condensation.ipc", 500), "fewer than --condensation.ipc 500"),
        (("--condensation.ipc", 7), None),
        (("--dataset", "imagenet"), "unknown data set 'imagenet'"),
        (("--dataset", "svhn"), "quick"),
        (("--attack.layer", -9), "the layer is between"),
        (("--attack.topk", 17), "this layer has 16 neurons"),
        (("--attack.portion", 1.5), "a share of the images"),
        (("--attack.bound", -1), "--attack.bound is above 0"),
        (("--attack.kind", "frozen"), "needs --attack.bound"),
        (("--network.name", "VGG11"), "takes images of 32 pixels"),
        (("--condensation.augmentation", "twist"), "twist"),
        (("--data-root", "nowhere"), "there is no data root nowhere"),
        (("--as-strong-as", "DOORPING"), "is for suites"),
        (("--share", 0), "--share is above 0"),
    ],
)
def test_what_cannot_be_distilled_is_one_sentence(
    call: Call, arguments: tuple[object, ...], sentence: str | None
) -> None:
    status, _, said = call("distill", *SMALL, *arguments)
    if sentence is None:
        assert status == 0, said
        return
    assert status != 0
    assert sentence in said
    assert "Traceback" not in said


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--profile", "nothing"), "unknown profile 'nothing'"),
        (("--profile", "quick", "--methods", "magic"), "--methods takes some of"),
        (("--profile", "quick", "--seeds", 1, 1), "each once"),
        (("--profile", "dc-cifar-10-convnet"), "quick"),
    ],
)
def test_what_cannot_be_reproduced_is_one_sentence(
    call: Call, arguments: tuple[object, ...], sentence: str
) -> None:
    status, _, said = call("reproduce", *arguments, "--device", "cpu")
    assert status != 0
    assert sentence in said


def test_files_that_are_no_distilled_sets_are_named(call: Call, distilled: Path, tmp_path: Path) -> None:
    (tmp_path / "broken.pt").write_bytes(distilled.read_bytes()[:200])
    for command in ("evaluate", "audit", "defend"):
        for name in ("broken.pt", "missing.pt"):
            status, _, said = call(command, tmp_path / name, "--device", "cpu")
            assert status == 2
            assert name in said
    known = load_distilled(distilled)
    save_distilled(distilled, replace(known, dataset=""))
    status, _, said = call("evaluate", distilled, "--device", "cpu")
    assert status == 2
    assert "--source.dataset" in said
