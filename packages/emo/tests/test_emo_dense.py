"""Detectors and segmenters by their profiles: data of the right form, kills, records, what is missing."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning_fabric import Fabric
from PIL import Image

from tenfold.emo import dense
from tenfold.emo.checkpoints import to_official
from tenfold.emo.dense import DenseConfig, digest_of, fit_detector, train_dense
from tenfold.emo.detection import DetectionRecipe, build_backbone_model
from tenfold.emo.experiments import Suite, TrainJob, reproduce
from tenfold.emo.model import EMO, Architecture, build_model
from tenfold.emo.profiles import DENSE_PROFILES
from tenfold.emo.retinanet import make_retinanet
from tenfold.emo.segmentation import SegmentationRecipe
from tenfold.emo.ssdlite import make_ssdlite
from tenfold.shared.accelerator import AcceleratorConfig
from tenfold.shared.comparison import load_reported
from tenfold.shared.logging import TenfoldError
from tenfold.shared.runs import Run, save_atomically

CPU = AcceleratorConfig(device="cpu")
COLOURS = ((200, 40, 40), (40, 180, 60), (40, 60, 210))


@pytest.fixture(scope="module")
def data_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """COCO and ADE20K in small: plain rectangles of three classes on grey."""
    root = tmp_path_factory.mktemp("data")
    generator = np.random.default_rng(0)
    for split, folder, count in (("train2017", "training", 4), ("val2017", "validation", 2)):
        images, boxes = [], []
        for kind in (
            root / "coco" / split,
            root / "ade20k/images" / folder,
            root / "ade20k/annotations" / folder,
        ):
            kind.mkdir(parents=True)
        for number in range(count):
            pixels, labels = np.full((64, 96, 3), 120, np.uint8), np.zeros((64, 96), np.uint8)
            for label, colour in enumerate(COLOURS):
                x, y = 4 + 30 * label, int(generator.integers(2, 30))
                pixels[y : y + 24, x : x + 22] = colour
                labels[y : y + 24, x : x + 22] = label + 1
                box = {"image_id": number, "category_id": label + 1, "bbox": [x, y, 22, 24], "area": 528}
                boxes.append({"id": len(boxes) + 1, "iscrowd": 0, **box})
            images.append({"id": number, "file_name": f"{number}.png", "width": 96, "height": 64})
            Image.fromarray(pixels).save(root / "coco" / split / f"{number}.png")
            Image.fromarray(pixels).save(root / "ade20k/images" / folder / f"{number}.jpg")
            Image.fromarray(labels).save(root / "ade20k/annotations" / folder / f"{number}.png")
        (root / "coco/annotations").mkdir(exist_ok=True)
        categories = [{"id": label, "name": str(label)} for label in (1, 2, 3)]
        content = {"images": images, "annotations": boxes, "categories": categories}
        (root / f"coco/annotations/instances_{split}.json").write_text(json.dumps(content))
    return root


@pytest.fixture(scope="module")
def released(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A classifier's weights in the form of the authors'."""
    path = tmp_path_factory.mktemp("weights") / "net.pth"
    torch.manual_seed(0)
    save_atomically(path, to_official(build_model("emo_1m")))
    return path


@pytest.mark.parametrize("task", ["ssdlite", "retinanet", "deeplabv3", "pspnet", "semantic-fpn"])
def test_every_kind_of_profile_starts_from_released_weights(
    task: str, data_root: Path, released: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """EMO-1M, one short epoch or two updates, three classes."""
    (name,) = [name for name in DENSE_PROFILES if name.endswith(f"-{task}-1m")]
    profile = DENSE_PROFILES[name]
    monkeypatch.setattr(dense, "build_retinanet", small_retinanet)
    monkeypatch.setattr(
        dense.ade20k, "training_transform", partial(dense.ade20k.training_transform, crop_size=64)
    )
    base = replace(
        profile.base,
        num_classes=3,
        workers=0,
        detection=DetectionRecipe(epochs=1, repeats=1, batch_size=2, lr=1e-4, warmup_iterations=1),
        segmentation=SegmentationRecipe(iterations=2, batch_size=2, log_every=1),
    )
    suite = Suite(name, replace(profile, base=base), tmp_path, data_root, released, accelerator=CPU)
    (result,) = reproduce(suite)
    assert result["status"] == "finished"
    assert result["config"]["backbone_digest"] == digest_of(released)
    printed = {(row.dataset, row.setting, row.method) for row in load_reported("tenfold.emo").rows}
    assert (result["dataset"], result["setting"], result["method"]) in printed
    metrics = {"ap", "ap_small", "best_ap"} if profile.dataset == "coco" else {"miou", "macc", "aacc"}
    assert metrics <= set(result["metrics"])
    stored = torch.load(suite.run(TrainJob("EMO-1M", 0)).directory / "model.pt", weights_only=True)
    assert any("stages.3.2.attention.qk.weight" in key for key in stored["network"])


def small_retinanet(name: str, num_classes: int, weights: Path) -> Any:
    return make_retinanet(
        build_backbone_model(name, weights=weights), num_classes, short_side=96, long_side=160
    )


class Killed(BaseException):
    """Stands for a kill between two epochs."""


def test_a_killed_detector_goes_on_to_the_same_result(
    data_root: Path, cpu: Fabric, make_run: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = DetectionRecipe(epochs=3, repeats=1, batch_size=2, lr=1e-3, warmup_iterations=2)
    folder = data_root / "coco"
    small = Architecture((1, 1, 2, 2), (8, 8, 16, 16), head_widths=(8, 8, 8, 8), stem=8)

    def fit(run: Run) -> tuple[Any, dict[str, float]]:
        sets = [
            dense.coco.CocoBoxes(folder / split, folder / f"annotations/instances_{split}.json")
            for split in ("train2017", "val2017")
        ]
        torch.manual_seed(0)
        detector = make_ssdlite(EMO(small, 0), 3, 96, (16, 16, 8, 8))
        return detector, fit_detector(detector, recipe, sets[0], sets[1], 0, cpu, run, workers=0)

    with make_run("whole", checkpoint_seconds=3600) as whole:
        undisturbed, expected = fit(whole)

    def save(run: Run, step: int, state: Any, original: Any = Run.save_checkpoint) -> None:
        original(run, step, state)
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(Run, "save_checkpoint", save)
        with pytest.raises(Killed), make_run("killed") as killed:
            fit(killed)
    with make_run("killed", checkpoint_seconds=3600) as again:
        resumed, found = fit(again)
        assert again.history() == whole.history()
    assert found == expected
    for name, value in resumed.state_dict().items():
        assert torch.equal(value, undisturbed.state_dict()[name]), name


@pytest.fixture(scope="module")
def together(
    start: Any, data_root: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """What one process found, and what each of two did."""
    output = tmp_path_factory.mktemp("together")
    script = Path(__file__).parent / "distributed_dense.py"
    for devices in (1, 2):
        process = start(script, devices, output, data_root, cwd=output)
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors
    alone, *ranks = (
        torch.load(output / f"{name}.pt", weights_only=True)
        for name in ("on1-rank0", "on2-rank0", "on2-rank1")
    )
    return alone, ranks


def test_two_processes_learn_to_segment_what_one_does(together: Any) -> None:
    one, *ranks = (found["segmenter"] for found in (together[0], *together[1]))
    assert torch.equal(ranks[0]["weights"], ranks[1]["weights"])
    # Adam divides by the gradient's size: where it is nearly 0, its rounding shows.
    way = (one["weights"] - one["start"]).norm()
    assert way > 0
    assert (ranks[0]["weights"] - one["weights"]).norm() < 0.02 * way
    assert len(one["losses"]) == 3
    assert ranks[0]["losses"] == pytest.approx(one["losses"], rel=1e-4)
    assert ranks[0]["metrics"] == ranks[1]["metrics"] == pytest.approx(one["metrics"], abs=0.5)


def test_two_processes_train_one_detector(together: Any) -> None:
    alone, first, second = (found["detector"] for found in (together[0], *together[1]))
    for name, value in first["weights"].items():
        torch.testing.assert_close(value, second["weights"][name], rtol=0, atol=0)
    assert first["metrics"] == second["metrics"]
    assert len(first["losses"]) == 2
    assert first["losses"] == pytest.approx(alone["losses"], rel=0.2)


def test_what_is_missing_is_said(
    data_root: Path, cpu: Fabric, make_run: Callable[..., Run], tmp_path: Path
) -> None:
    with pytest.raises(TenfoldError, match="there is no folder"), make_run("none") as run:
        train_dense(DenseConfig("ssdlite"), 0, cpu, run, tmp_path)
    with pytest.raises(TenfoldError, match="there is no folder"), make_run("ade") as run:
        train_dense(DenseConfig("pspnet"), 0, cpu, run, tmp_path)
    with (
        pytest.raises(TenfoldError, match="knows 80 classes and the data have 3"),
        make_run("classes") as run,
    ):
        train_dense(DenseConfig("ssdlite", workers=0), 0, cpu, run, data_root)
    with pytest.raises(TenfoldError, match="there is no file"):
        digest_of(tmp_path / "absent.pth")


def test_dense_profiles_are_the_papers() -> None:
    assert len(DENSE_PROFILES) == 15
    for name, profile in DENSE_PROFILES.items():
        (method,) = profile.methods
        config = profile.run_config(method)
        assert name.endswith(config.name.removeprefix("emo_"))
        assert (config.detection, config.segmentation, config.num_classes) == (None, None, None)
