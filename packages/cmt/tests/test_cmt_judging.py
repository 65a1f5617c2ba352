"""Judging networks: conditions by modality, splits without annotations, what is drawn, and objects of other scenes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning_fabric import Fabric

from tenfold.cmt.cli import main
from tenfold.cmt.dataset import TestSamples
from tenfold.cmt.detector import Cmt
from tenfold.cmt.judging import as_submission, detect_split, detections_per_second, score
from tenfold.cmt.network_files import StoredNetwork
from tenfold.cmt.nuscenes_index import NuScenesIndex, load_index
from tenfold.cmt.object_database import build_database, is_collected
from tenfold.cmt.procedural_scenes import SceneConfig, generate_scenes
from tenfold.cmt.profiles import CAMERA, PROFILES, QUICK_DATA
from tenfold.cmt.sensor_conditions import CONDITIONS, conditions_of
from tenfold.cmt.suites import Profile
from tenfold.shared.runs import save_atomically

SCENES = SceneConfig(train_scenes=1, keyframes=2, sweeps=0, lead_sweeps=0, azimuths=90)


def run(*arguments: object) -> int:
    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    return int(ended.value.code or 0)


@pytest.fixture(scope="module")
def other_scenes(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], NuScenesIndex]:
    """An index of scenes of a seed; their tokens are those of any other seed."""
    folder = tmp_path_factory.mktemp("other")

    def make(seed: int) -> NuScenesIndex:
        scenes = replace(SCENES, seed=seed)
        return load_index(
            generate_scenes(scenes, folder), scenes.version, scenes.train_split, folder / str(seed), 0
        )

    return make


def test_a_lidar_network_is_judged_under_what_lidar_can_lose() -> None:
    assert conditions_of("lidar") == ("both", "no-lidar", "beams-16", "beams-8", "beams-4", "beams-1")


def test_a_camera_network_is_judged_under_what_cameras_can_lose() -> None:
    cameras = [name for name, condition in CONDITIONS.items() if condition.missing_cameras]
    assert set(conditions_of("camera")) == {"both", "no-cameras", *cameras}


def test_a_fusion_network_is_judged_under_everything() -> None:
    assert conditions_of("fusion") == tuple(CONDITIONS)


def test_objects_of_other_scenes_with_the_same_tokens_are_not_taken(
    other_scenes: Callable[[int], NuScenesIndex], tmp_path: Path
) -> None:
    first, second = other_scenes(0), other_scenes(1)
    assert [frame.token for frame in first.keyframes] == [frame.token for frame in second.keyframes]
    assert first.digest != second.digest
    build_database(first, first.root, 0, False, tmp_path)
    assert is_collected(first, 0, False, tmp_path)
    assert not is_collected(second, 0, False, tmp_path)
    assert not is_collected(first, 0, True, tmp_path)


def test_a_sample_under_a_condition_lacks_what_the_condition_lacks(
    make_test_samples: Callable[..., TestSamples],
) -> None:
    whole, dark = (make_test_samples(condition=name).read(0) for name in ("both", "no-cam-front"))
    assert whole.images is not None
    assert dark.images is not None
    assert not dark.images[0].any()
    np.testing.assert_array_equal(dark.images[1:], whole.images[1:])
    sparse = make_test_samples(condition="beams-4").read(0)
    assert sparse.points is not None
    assert whole.points is not None
    assert 0 < len(sparse.points) < len(whole.points)


def test_speed_is_positive(make_detector: Callable[..., Cmt], make_test_samples: Any, cpu: Fabric) -> None:
    network = make_detector("lidar")
    assert detections_per_second(network, make_test_samples(network.network), cpu, repeats=2) > 0


def test_a_network_with_free_queries_is_evaluated(make_detector: Callable[..., Cmt], tmp_path: Path) -> None:
    network = make_detector("lidar", guided_queries=False)
    data = replace(QUICK_DATA, sweeps=0, train_split=SCENES.train_split, test_split=SCENES.test_split)
    save_atomically(tmp_path / "model.pt", StoredNetwork(network, data, SCENES).content())
    arguments = ("--checkpoint", tmp_path / "model.pt", "--output", tmp_path / "runs", "--workers", 0)
    assert run("evaluate", *arguments, "--device", "cpu") == 0


def test_a_split_without_annotations_is_detected_in_and_not_judged(
    other_scenes: Callable[[int], NuScenesIndex], make_detector: Callable[..., Cmt], tmp_path: Path
) -> None:
    root = tmp_path / "data" / "nuscenes"
    shutil.copytree(other_scenes(0).root, root)
    for table in ("sample_annotation", "instance"):
        (root / SCENES.version / f"{table}.json").write_text("[]")
    network = make_detector("lidar")
    data = replace(QUICK_DATA, dataset="nuscenes", sweeps=0, test_split=SCENES.train_split)
    save_atomically(tmp_path / "model.pt", StoredNetwork(network, data).content())
    common = (
        "evaluate",
        "--checkpoint",
        tmp_path / "model.pt",
        "--data-root",
        tmp_path / "data",
        "--device",
        "cpu",
    )
    common = (*common, "--output", tmp_path / "runs", "--workers", 0)
    assert run(*common) == 2
    assert run(*common, "--results", tmp_path / "out") == 0
    written = json.loads((tmp_path / "out" / "submission-both.json").read_text())
    assert len(written["results"]) == 2
    assert not (tmp_path / "out" / "scores.json").exists()


def test_a_file_of_the_authors_is_judged_as_it_is(
    other_scenes: Callable[[int], NuScenesIndex],
    make_detector: Callable[..., Cmt],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "nuscenes").symlink_to(other_scenes(0).root)
    network = make_detector("lidar")
    method = replace(CAMERA, name="tiny", network=network.network)
    data = replace(QUICK_DATA, dataset="nuscenes", sweeps=0)
    monkeypatch.setitem(PROFILES, "tiny", Profile("tiny", data, (method,)))
    torch.save({"meta": {}, "state_dict": network.state_dict()}, tmp_path / "released.pth")
    arguments = ("evaluate", "--checkpoint", tmp_path / "released.pth", "--data-root", tmp_path / "data")
    arguments = (*arguments, "--output", tmp_path / "runs", "--results", tmp_path / "out", "--workers", 0)
    assert run(*arguments, "--device", "cpu", "--configuration", "tiny") == 0
    assert "mAP" in json.loads((tmp_path / "out" / "scores.json").read_text())["both sensors"]
    assert run(*arguments, "--device", "cpu", "--configuration", "quick") == 2


def test_what_is_submitted_is_what_is_scored(
    make_detector: Callable[..., Cmt], make_test_samples: Callable[..., TestSamples], cpu: Fabric
) -> None:
    network = make_detector("camera")
    samples = make_test_samples(network.network)
    submission = as_submission(samples, detect_split(network, samples, cpu))
    assert set(submission) == {frame.token for frame in samples.index.keyframes}
    assert 0 <= score(samples, submission).mean_ap <= 1
