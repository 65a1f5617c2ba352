"""Commands as a user calls them, and what they say when something cannot be."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch

from tenfold.shared.runs import load_checkpoint, save_atomically
from tenfold.tinymim.architectures import CLASSIFIERS, make_classifier
from tenfold.tinymim.checkpoints import from_timm, load_weights, stored_shape
from tenfold.tinymim.cli import main
from tenfold.tinymim.config import FinetuneConfig
from tenfold.tinymim.experiments import artifact
from tenfold.tinymim.vit import VisionTransformer, ViTConfig

Call = Callable[..., tuple[int, str, str]]
DIGITS = ("--data.dataset", "digits", "--data.image-size", 24, "--data.labelled", 0.25, "--device", "cpu")
NETWORK = (
    "--network.patch-size", 6, "--network.embed-dim", 32, "--network.depth", 2, "--network.num-heads", 4,
)  # fmt: skip
RECIPE = ("--train.epochs", 1, "--train.batch-size", 256, "--train.warmup-epochs", 0.5)
MAE = (
    "--target.family", "none", "--target.masked", "--target.reconstruction", "--target.decoder.embed-dim", 32,
    "--target.decoder.depth", 1, "--target.decoder.num-heads", 4,
)  # fmt: skip


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


def keep(path: Path, network: VisionTransformer) -> Path:
    """A network as a run leaves it."""
    save_atomically(path, artifact(network, FinetuneConfig()))
    return path


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """Files of all kinds in the test's folder: networks of runs, others' weights, and none."""
    torch.manual_seed(0)
    shape = ViTConfig(24, 6, 32, 2, 4)
    keep(tmp_path / "pretrained.pt", VisionTransformer(shape))
    keep(tmp_path / "classifier.pt", make_classifier(shape, 10))
    keep(tmp_path / "thousand.pt", make_classifier(shape, 1000))
    deep = VisionTransformer(ViTConfig(24, 6, 32, 3, 4))
    save_atomically(tmp_path / "deep.pth", {"model": deep.state_dict()})
    save_atomically(tmp_path / "other.pt", {"weight": torch.zeros(3)})
    (tmp_path / "junk.pt").write_bytes(b"junk")
    (tmp_path / "text.pt").write_text("These are the weights.\n")
    whole = (tmp_path / "classifier.pt").read_bytes()
    (tmp_path / "half.pt").write_bytes(whole[: len(whole) // 2])
    return tmp_path


# -- what can be ---------------------------------------------------------------------------------------


def test_a_network_is_pre_trained_distilled_tuned_judged_and_exported(call: Call, tmp_path: Path) -> None:
    """From a masked autoencoder to its student's classifier; a finished run is not done again."""

    def newest(pattern: str) -> Path:
        return max(
            tmp_path.glob(f"runs/tinymim/single/{pattern}/model.pt"), key=lambda path: path.stat().st_mtime_ns
        )

    status, _, said = call("pretrain", *NETWORK, *MAE, *DIGITS, *RECIPE)
    assert status == 0, said
    teacher = newest("pretrain-*")
    distil = (
        "pretrain", "--network.patch-size", 6, "--network.embed-dim", 16, "--network.depth", 2, "--network.num-heads",
        2, "--teacher", teacher, *DIGITS, *RECIPE,
    )  # fmt: skip
    status, _, said = call(*distil)
    assert status == 0, said
    student = newest("pretrain-*")
    assert student != teacher
    assert stored_shape(load_checkpoint(student)).heads == (2, 4)
    assert str(tmp_path) not in (student.parent / "config.json").read_text()
    assert (student.parent / "figures/relations.png").stat().st_size > 1000
    done = student.stat().st_mtime_ns
    status, _, said = call(*distil)
    assert status == 0
    assert "this run is done already" in said
    assert student.stat().st_mtime_ns == done

    status, _, said = call("finetune", "--checkpoint", student, *DIGITS, *RECIPE)
    assert status == 0, said
    classifier = newest("finetune-*")
    assert stored_shape(load_checkpoint(classifier)).heads == (2, 2)
    status, printed, said = call(
        "evaluate", "--checkpoint", classifier, "--dataset", "digits", "--device", "cpu"
    )
    assert status == 0, said
    assert printed.startswith("top-1 ")
    assert "top-5 " in printed
    status, printed, said = call("probe", "--checkpoint", student, "--device", "cpu")
    assert status == 0, said
    assert printed.startswith("k-NN ")


def test_a_classifier_is_trained_from_scratch(call: Call, tmp_path: Path) -> None:
    status, _, said = call("finetune", *NETWORK, *DIGITS, *RECIPE, "-q")
    assert status == 0, said
    assert len(list(tmp_path.glob("runs/tinymim/single/finetune-*/model.pt"))) == 1


def test_seeds_and_recipes_are_runs_of_their_own(call: Call, tmp_path: Path) -> None:
    for further in ((), ("--seed", 1)):
        assert call("pretrain", *NETWORK, *MAE, *DIGITS, *RECIPE, *further, "-q")[0] == 0
    assert len(list(tmp_path.glob("runs/tinymim/single/pretrain-*/result.json"))) == 2


@pytest.mark.parametrize("form", ["official", "timm"])
def test_a_network_is_exported_and_read_again(call: Call, files: Path, form: str) -> None:
    out = files / "deep" / "network.pth"
    status, _, said = call(
        "export", "--checkpoint", files / "classifier.pt", "--output", out, "--format", form
    )
    assert status == 0, said
    shape = stored_shape(load_checkpoint(files / "classifier.pt"))
    expected = VisionTransformer(shape)
    load_weights(expected, files / "classifier.pt")
    content = load_checkpoint(out)
    if form == "official":
        assert set(content) == {"model"}
        found: Any = VisionTransformer(shape)
        load_weights(found, out)
    else:
        again = from_timm(content, shape)
        assert all(
            torch.equal(value, again.state_dict()[name]) for name, value in expected.state_dict().items()
        )
        found = timm.models.VisionTransformer(
            img_size=24, patch_size=6, embed_dim=32, depth=2, num_heads=4, num_classes=10, global_pool="avg"
        )
        found.load_state_dict(content)
    images = torch.randn(2, 3, 24, 24)
    with torch.no_grad():
        torch.testing.assert_close(found.eval()(images), expected.eval()(images), rtol=1e-4, atol=1e-4)


def test_a_pre_trained_network_is_exported_with_the_heads_of_its_other_blocks(
    call: Call, tmp_path: Path
) -> None:
    keep(tmp_path / "student.pt", VisionTransformer(ViTConfig(24, 6, 32, 2, 4, last_heads=8)))
    out = tmp_path / "timm.pth"
    status, _, said = call("export", "--checkpoint", "student.pt", "--output", out, "--format", "timm")
    assert status == 0, said
    assert "the last block is read with 4 heads" in said
    assert "blocks.1.attn.qkv.weight" in load_checkpoint(out)


def test_weights_of_the_authors_are_judged_by_name(call: Call, tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = make_classifier(CLASSIFIERS["vit_tiny_patch16"], 10)
    path = tmp_path / "released.pth"
    save_atomically(path, {"model": network.state_dict(), "epoch": 99})
    status, _, said = call(
        "export", "--checkpoint", path, "--model", "vit_tiny_patch16", "--output", tmp_path / "timm.pth",
        "--format", "timm",
    )  # fmt: skip
    assert status == 0, said
    found = load_checkpoint(tmp_path / "timm.pth")
    assert all(torch.equal(found[name], value) for name, value in network.state_dict().items())


def test_profiles_are_listed(call: Call) -> None:
    status, printed, _ = call("reproduce", "--profile", "list")
    assert status == 0
    names = {line.split()[0] for line in printed.splitlines()}
    assert names >= {"smoke", "quick", "ablation", "h100", "imagenet-tiny", "imagenet-chain", "ade20k-base"}


def test_some_methods_of_a_profile_are_reproduced(call: Call, tmp_path: Path) -> None:
    status, printed, said = call(
        "reproduce", "--profile", "smoke", "--methods", "supervised", "--seeds", 5, "--workers", 1, "--device", "cpu"
    )  # fmt: skip
    assert status == 0, said
    assert [path.parent.name for path in tmp_path.rglob("result.json")] == ["supervised-seed5"]
    assert "supervised" in printed + said


# -- what cannot be ------------------------------------------------------------------------------------

PRETRAIN = ("pretrain", *NETWORK, *DIGITS, *RECIPE)
FINETUNE = ("finetune", *DIGITS, *RECIPE)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        # reproduce
        (("reproduce", "--profile", "nope"), "unknown profile 'nope'; choose one of smoke"),
        (("reproduce", "--methods", "magic"), "--methods takes some of: relation; feature"),
        (("reproduce", "--seeds", 1, 1), "each once"),
        (("reproduce", "--data-root", "nowhere"), "there is no data root nowhere"),
        (("reproduce", "--profile", "imagenet-tiny"), "give --teacher-weights its file"),
        (
            ("reproduce", "--profile", "imagenet-tiny", "--teacher-weights", "absent.pth", "--device", "cpu"),
            "no weights at absent.pth",
        ),
        (("reproduce", "--profile", "ade20k-tiny"), "give --backbone-weights"),
        (
            ("reproduce", "--profile", "ade20k-tiny", "--backbone-weights", "absent.pth", "--device", "cpu"),
            "absent.pth",
        ),
        (("reproduce", "--profile", "ade20k-tiny", "--methods", "x"), "--methods takes some of: TinyMIM"),
        (
            ("reproduce", "--profile", "h100", "--methods", "supervised", "--workers", 1, "--device", "cpu"),
            "CIFAR-10 is not in data/",
        ),
        # pretrain
        (PRETRAIN, "relation distillation needs --teacher"),
        ((*PRETRAIN, *MAE, "--teacher", "mae_vit_tiny"), "masked autoencoding has no teacher"),
        ((*PRETRAIN, "--target.family", "none"), "add --target.reconstruction"),
        ((*PRETRAIN, "--target.reconstruction"), "add --target.masked"),
        ((*PRETRAIN, "--teacher", "absent.pt"), "no weights at absent.pt"),
        ((*PRETRAIN, "--teacher", "text.pt"), "text.pt is truncated, corrupt"),
        ((*PRETRAIN, "--teacher", "other.pt"), "other.pt is no model of a pre-training run"),
        ((*PRETRAIN, "--teacher", "magic", "--teacher-weights", "deep.pth"), "there is no teacher 'magic'"),
        ((*PRETRAIN, "--teacher", "mae_vit_tiny"), "mae_vit_tiny needs weights"),
        ((*PRETRAIN, "--teacher", "timm/vit_tiny_patch16_224"), "allow timm to download them"),
        (
            (*PRETRAIN, "--teacher", "timm/magic", "--teacher-weights", "deep.pth"),
            "timm has no model magic",
        ),
        (
            ("pretrain", *DIGITS, *RECIPE, "--teacher", "mae_vit_tiny", "--teacher-weights", "deep.pth",
             "--data.image-size", 32, "--network.patch-size", 16),
            "deep.pth: 108 tensors are missing, the first is blocks.10",
        ),
        ((*PRETRAIN, "--teacher", "pretrained.pt", "--target.target-block", 3), "there is no target block 3"),
        ((*PRETRAIN, "--teacher", "pretrained.pt", "--last-heads", 5), "cannot be divided among 5 heads"),
        (("pretrain", "--network.num-heads", 7, *MAE, *DIGITS), "width of 64 cannot be divided among 7 heads"),
        (("pretrain", "--network.name", "vit_huge", *MAE, *DIGITS), "there is no network 'vit_huge'"),
        (("pretrain", "--network.patch-size", 7, *MAE, *DIGITS), "patches of 7 pixels do not tile"),
        ((*PRETRAIN, *MAE, "--train.accumulate", 3), "cannot be divided into 3 equal parts"),
        ((*PRETRAIN, *MAE, "--train.epochs", 0), "at least 1"),
        ((*PRETRAIN, *MAE, "--train.warmup-epochs", 9), "a warm-up of 9.0 epochs needs more"),
        (
            (*PRETRAIN, *MAE, "--data.dataset", "imagenet", "--data.workers", 0, "--data.labelled", 1),
            "no images of classes in",
        ),
        ((*PRETRAIN, *MAE, "--data.dataset", "imagenet"), "leave out --data.labelled"),
        ((*PRETRAIN, *MAE, "--data.dataset", "cifar10"), "CIFAR-10 is not in data/"),
        # finetune
        (FINETUNE, "give --network.name"),
        ((*FINETUNE, "--checkpoint", "absent.pt"), "no weights at absent.pt"),
        ((*FINETUNE, "--checkpoint", "text.pt"), "text.pt is truncated, corrupt"),
        ((*FINETUNE, "--checkpoint", "half.pt"), "half.pt is truncated, corrupt"),
        ((*FINETUNE, "--checkpoint", "deep.pth"), "give --network.name"),
        (
            (*FINETUNE, *NETWORK, "--checkpoint", "deep.pth"),
            "does not fit: is this the pre-trained network of another",
        ),
        ((*FINETUNE, "--checkpoint", "pretrained.pt", "--train.batch-size", 25), "mixed in pairs"),
        ((*FINETUNE, "--checkpoint", "pretrained.pt", "--train.teacher", "magic"), "timm has no model magic"),
        ((*FINETUNE, "--checkpoint", "pretrained.pt", "--train.teacher", "resnet18"), "add --download"),
        # evaluate, probe, robustness, export
        (("evaluate", "--checkpoint", "absent.pt"), "no checkpoint at absent.pt"),
        (("evaluate", "--checkpoint", "junk.pt"), "junk.pt is truncated, corrupt"),
        (("evaluate", "--checkpoint", "half.pt"), "half.pt is truncated, corrupt"),
        (("evaluate", "--checkpoint", "other.pt"), "is not model.pt of a run"),
        (("evaluate", "--checkpoint", "deep.pth", "--model", "vit_tiny_patch16"), "it knows no classes"),
        (("evaluate", "--checkpoint", "pretrained.pt", "--dataset", "digits"), "fine-tune it first"),
        (("evaluate", "--checkpoint", "classifier.pt", "--device", "cpu"), "no images of classes in"),
        (("probe", "--checkpoint", "other.pt"), "other.pt is not model.pt of a run"),
        (("probe", "--checkpoint", "pretrained.pt", "--data.dataset", "imagenet"), "do not fit memory"),
        (("robustness", "--checkpoint", "pretrained.pt"), "fine-tune it first"),
        (("robustness", "--checkpoint", "classifier.pt", "--device", "cpu"), "not of 10"),
        (("robustness", "--checkpoint", "thousand.pt", "--device", "cpu"), "imagenet-a"),
        (("robustness", "--checkpoint", "thousand.pt", "--sets", "c", "--device", "cpu"), "imagenet-c"),
        (("export", "--checkpoint", "text.pt", "--output", "x.pth"), "text.pt is truncated, corrupt"),
        (("export", "--checkpoint", "deep.pth", "--output", "x.pth"), "name the network of other weights"),
    ],
    ids=lambda value: value.replace(" ", "-") if isinstance(value, str) else "",
)  # fmt: skip
@pytest.mark.usefixtures("files")
def test_what_cannot_be_is_said_in_one_sentence(
    arguments: tuple[object, ...],
    sentence: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("TENFOLD_DATA", raising=False)
    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    said = capsys.readouterr().err
    assert ended.value.code == 2, said
    (line,) = (line for line in said.splitlines() if line.startswith("error: "))
    assert sentence in line
    assert "Traceback" not in said
    assert not (tmp_path / "x.pth").exists()
