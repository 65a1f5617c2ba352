"""Commands as a user calls them, and what they say when something cannot be."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

from tenfold.emo.checkpoints import to_official
from tenfold.emo.cli import main
from tenfold.emo.model import build_model
from tenfold.shared.runs import save_atomically

Call = Callable[..., tuple[int, str, str]]
SMALL = (
    "--model.name", "emo_digits", "--data.dataset", "digits", "--data.image-size", 32, "--data.augmentation", "shift",
    "--train.epochs", 2, "--train.batch-size", 128, "--train.lr", 3e-3, "--train.warmup-epochs", 0.5,
    "--train.ema-decay", 0.9, "--device", "cpu", "-q",
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


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Two classes of three plain pictures."""
    for name, colour in (("dark", (10, 20, 30)), ("light", (240, 230, 220))):
        (tmp_path / "pictures" / name).mkdir(parents=True)
        for number in range(3):
            Image.new("RGB", (80, 70 + number), colour).save(tmp_path / "pictures" / name / f"{number}.png")
    return tmp_path / "pictures"


@pytest.fixture
def released(tmp_path: Path) -> Path:
    """A file in the form of the authors' weights."""
    torch.manual_seed(0)
    path = tmp_path / "net.pth"
    save_atomically(path, to_official(build_model("emo_1m")))
    return path


def test_a_network_is_trained_judged_and_used(call: Call, tmp_path: Path) -> None:
    status, _, said = call("train", *SMALL)
    assert status == 0, said
    (checkpoint,) = tmp_path.glob("runs/emo/single/*/model.pt")
    status, printed, _ = call("evaluate", "--checkpoint", checkpoint, "--device", "cpu")
    assert status == 0
    assert printed.startswith("top-1 ")
    before = checkpoint.stat().st_mtime_ns
    assert call("train", *SMALL)[0] == 0
    assert checkpoint.stat().st_mtime_ns == before


def test_released_weights_are_judged_and_classify_pictures(
    call: Call, released: Path, pictures: Path
) -> None:
    status, printed, said = call(
        "classify", pictures / "dark/0.png", pictures / "light/1.png",
        "--checkpoint", released, "--model", "emo_1m", "--top", 2,
    )  # fmt: skip
    assert status == 0, said
    assert len(printed.splitlines()) == 2
    assert printed.splitlines()[0].startswith(f"{pictures}/dark/0.png: ")
    assert printed.count("%") == 4
    status, printed, said = call(
        "evaluate", "--checkpoint", released, "--model", "emo_1m", "--images", pictures, "--device", "cpu"
    )
    assert status == 0, said
    assert "top-5" in printed


@pytest.mark.parametrize("form", ["torch.export", "torchscript"])
def test_networks_are_exported(call: Call, released: Path, tmp_path: Path, form: str) -> None:
    out = tmp_path / "deep" / "network"
    status, _, said = call(
        "export", "--output", out, "--checkpoint", released, "--model", "emo_1m", "--format", form
    )
    assert status == 0, said
    torch.manual_seed(0)
    expected = build_model("emo_1m").eval()
    images = torch.randn(2, 3, 96, 128)
    if form == "torchscript":
        found = torch.jit.load(str(out))(images)
    else:
        found = torch.export.load(str(out)).module(check_guards=False)(images)
    with torch.no_grad():
        torch.testing.assert_close(found, expected(images), rtol=1e-4, atol=1e-4)


def test_networks_are_compared_and_drawn(call: Call, tmp_path: Path) -> None:
    arguments = (
        "--names",
        "emo_1m",
        "edgenext_xx_small",
        "mobilenetv3_small_100",
        "--size",
        64,
        "--repeats",
        1,
    )
    status, printed, said = call("compare", *arguments, "--picture", "pareto.png")
    assert status == 0, said
    assert "1.36" in printed
    assert "71.5" in printed
    assert "2.54" in printed
    assert (tmp_path / "pareto.png").stat().st_size > 5000


def test_layers_are_timed_and_drawn(call: Call, tmp_path: Path) -> None:
    status, printed, said = call("latency", "--size", 64, "--seconds", 0.01, "--picture", "layers.png")
    assert status == 0, said
    assert {"stem", "stages.2.3", "head", "total"} <= {
        line.split("│")[1].strip() for line in printed.splitlines() if "│" in line
    }
    assert (tmp_path / "layers.png").stat().st_size > 5000


def test_profiles_are_listed(call: Call) -> None:
    status, printed, _ = call("reproduce", "--profile", "list")
    assert status == 0
    names = {line.split()[0] for line in printed.splitlines()}
    assert names >= {"smoke", "quick", "h100", "imagenet-5m", "coco-ssdlite-1m", "ade20k-semantic-fpn-5m"}


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("reproduce", "--profile", "nope"), "unknown profile 'nope'; choose one of smoke"),
        (("reproduce", "--methods", "magic"), "--methods takes some of EMO"),
        (("reproduce", "--seeds", 1, 1), "each once"),
        (("reproduce", "--data-root", "nowhere"), "there is no data root nowhere"),
        (("reproduce", "--profile", "coco-ssdlite-1m"), "give --backbone-weights"),
        (
            ("reproduce", "--profile", "ade20k-pspnet-2m", "--backbone-weights", "absent.pth"),
            "there is no file absent.pth",
        ),
        (("reproduce", "--profile", "h100", "--device", "cpu"), "CIFAR-10 is not in data/"),
        (("evaluate", "--checkpoint", "absent.pt"), "no checkpoint at absent.pt"),
        (("evaluate", "--checkpoint", "junk.pt"), "is truncated, corrupt"),
        (("evaluate", "--checkpoint", "other.pt"), "is not model.pt of a run"),
        (("evaluate", "--checkpoint", "other.pt", "--model", "emo_1m"), "no weights of EMO"),
        (("evaluate", "--checkpoint", "net.pth", "--model", "emo_5m"), "is it another"),
        (("classify", "junk.pt", "--checkpoint", "net.pth", "--model", "emo_1m"), "junk.pt is no picture"),
        (("export", "--output", "x.pt2", "--format", "int8"), "int8 needs images"),
        (("compare", "--names", "emo_9m"), "has a network emo_9m"),
        (("latency", "--size", 16), "at least 32 pixels"),
        (("train", "--data.image-size", 16), "at least 32 pixels"),
        (("train", "--train.noise-range", 0.9, 0.1), "the smaller first"),
        (("train", "--model.name", "emo_9m", *SMALL[2:]), "there is no network emo_9m"),
        (("train", "--data.workers", 0, "--device", "cpu"), "no images of classes in"),
    ],
)
@pytest.mark.usefixtures("released")
def test_what_cannot_be_is_said_in_one_sentence(
    arguments: tuple[object, ...], sentence: str, call: Call, tmp_path: Path
) -> None:
    (tmp_path / "junk.pt").write_bytes(b"junk")
    save_atomically(tmp_path / "other.pt", {"weight": torch.zeros(3)})
    status, _, said = call(*arguments)
    assert status == 2, said
    assert sentence in said
    assert "Traceback" not in said
    assert not (tmp_path / "x.pt2").exists()
