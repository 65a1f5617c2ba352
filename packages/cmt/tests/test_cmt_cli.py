"""Commands as a user calls them, and what they say when something cannot be."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from pyquaternion import Quaternion

from tenfold.cmt.cli import main
from tenfold.cmt.config import CLASSES, NetworkConfig
from tenfold.cmt.detector import Cmt
from tenfold.cmt.keyframe_folder import read_keyframe_folder
from tenfold.cmt.keyframes import Keyframe
from tenfold.cmt.network_files import StoredNetwork, load_network
from tenfold.cmt.nuscenes_index import NuScenesIndex
from tenfold.cmt.profiles import CAMERA, PROFILES, QUICK_DATA
from tenfold.cmt.suites import Profile
from tenfold.shared.runs import load_checkpoint, save_atomically

Call = Callable[..., tuple[int, str, str]]
Refused = Callable[..., str]
ON_CPU = ("--device", "cpu")
VERBS = (
    *("reproduce", "prepare", "train", "evaluate", "robustness", "detect"),
    *("generate-scenes", "write-infos", "convert"),
)
TINY = (
    "--network.lidar.point-range", -16, -16, -1.7, 16, 16, 6.3, "--network.lidar.voxel-size", 0.5, 0.5, 0.25,
    "--network.lidar.encoder-channels", 8, 8, 8, 8, 8, 8, 8, 8, "--network.lidar.encoder-out", 8,
    "--network.lidar.second-channels", 8, 8, "--network.lidar.second-layers", 1, "--network.lidar.neck-channels", 8,
    "--network.image.backbone", "vovnet-tiny", "--network.image.size", 32, 64, "--network.image.original-size", 16, 32,
    "--network.image.batch-norm", "training", "--network.image.resize-train", 2, 2, "--network.image.resize-test", 2,
    "--network.head.hidden", 16, "--network.head.heads", 2, "--network.head.feedforward", 32,
    "--network.head.layers", 1, "--network.head.queries", 20,
)  # fmt: skip
PROCEDURAL = (
    "--data.dataset", "procedural", "--data.workers", 0, "--scenes.train-scenes", 1, "--scenes.keyframes", 2,
    "--scenes.sweeps", 0, "--scenes.lead-sweeps", 0, "--scenes.azimuths", 60, "--scenes.image-size", 16, 32,
    "--augment.no-ground-truth-sampling",
)  # fmt: skip
RECIPE = (
    *("--train.steps", 2, "--train.batch-size", 2, "--train.log-every", 1),
    *("--train.image-backbone-lr", 1),
)


@pytest.fixture
def call(
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> Any:
    """Runs a command in an empty folder; exit status, what was printed, what was said."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("TENFOLD_DATA", raising=False)
    monkeypatch.setattr(logging.getLogger("tenfold"), "propagate", True)

    def run(*arguments: object) -> tuple[int, str, str]:
        caplog.clear()
        with pytest.raises(SystemExit) as ended:
            main([str(argument) for argument in arguments])
        code = ended.value.code
        printed = capsys.readouterr()
        status = code if isinstance(code, int) else int(code is not None)
        return status, printed.out, printed.err + caplog.text

    yield run
    logging.getLogger("tenfold").setLevel(logging.INFO)


@pytest.fixture
def refused(call: Call) -> Refused:
    """Runs a command that ends with status 2 and one sentence on standard error, which it returns."""

    def run(*arguments: object) -> str:
        status, _, said = call(*arguments)
        assert status == 2, said
        lines = [line for line in said.splitlines() if line.startswith("error: ")]
        assert len(lines) == 1, said
        assert "Traceback" not in said
        assert not lines[0].rstrip().endswith(".")
        return lines[0]

    return run


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory, make_detector: Callable[..., Cmt]) -> Path:
    """Files of all kinds: networks, and none."""
    folder = tmp_path_factory.mktemp("files")
    for modality in ("fusion", "lidar", "camera"):
        network = make_detector(modality)
        # Scores high enough to be written.
        with torch.no_grad():
            network.pts_bbox_head.task_heads[0].cls_logits["3"].bias.fill_(0.0)
        save_atomically(folder / f"{modality}.pt", StoredNetwork(network, QUICK_DATA).content())
    content = load_checkpoint(folder / "lidar.pt")
    weights = dict(content["weights"])
    del weights["pts_bbox_head.reference_points.weight"]
    save_atomically(folder / "lacking.pt", {**content, "weights": weights})
    save_atomically(folder / "other.pt", {"weight": torch.zeros(3)})
    save_atomically(folder / "shapeless.pt", {**content, "network": {"modality": "lidar"}})
    (folder / "junk.pt").write_bytes(b"junk")
    whole = (folder / "lidar.pt").read_bytes()
    (folder / "half.pt").write_bytes(whole[: len(whole) // 2])
    return folder


# -- what can be -----------------------------------------------------------------------------------------


def test_profiles_are_listed(call: Call) -> None:
    status, printed, _ = call("reproduce", "--profile", "list")
    assert status == 0
    assert [line.split()[0] for line in printed.splitlines()] == list(PROFILES)


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help(call: Call, verb: str) -> None:
    status, printed, _ = call(verb, "--help")
    assert status == 0
    assert "(required)" in printed or "(default" in printed


def test_a_network_is_trained_evaluated_and_found_again(call: Call, tmp_path: Path) -> None:
    train = ("train", *TINY, *PROCEDURAL, *RECIPE, *ON_CPU)
    status, printed, said = call(*train)
    assert status == 0, said
    assert "mAP" in printed
    (path,) = tmp_path.glob("runs/cmt/single/cmt-*/model.pt")
    result = json.loads((path.parent / "result.json").read_text())
    assert result["curves"]["loss"]["x"] == [1, 2]
    assert load_network(path).network.head.queries == 20
    done = path.stat().st_mtime_ns
    assert call(*train)[0] == 0
    assert path.stat().st_mtime_ns == done  # a finished run is not done again

    out = tmp_path / "judged"
    status, _, said = call("evaluate", "--checkpoint", path, "--workers", 0, "--results", out, *ON_CPU)
    assert status == 0, said
    scores = json.loads((out / "scores.json").read_text())
    assert set(scores) == {"both sensors"}
    for name in ("mAP", "NDS", "mATE"):
        assert scores["both sensors"][name] == pytest.approx(result["metrics"][name], rel=1e-6)
    assert json.loads((out / "submission-both.json").read_text())["meta"]["use_lidar"]


def test_scenes_are_written_and_named(call: Call, tmp_path: Path) -> None:
    scenes = (
        "--train-scenes", 1, "--keyframes", 1, "--sweeps", 0, "--lead-sweeps", 0, "--azimuths", 60,
        "--image-size", 16, 32,
    )  # fmt: skip
    status, printed, said = call("generate-scenes", *scenes, "--output", tmp_path / "made")
    assert status == 0, said
    (tables,) = (tmp_path / "made").rglob("sample_annotation.json")
    assert str(tables.parents[1]) in printed.replace("\n", "")


# -- detect ----------------------------------------------------------------------------------------------


def lidar2global(keyframe: Keyframe) -> NDArray[np.float64]:
    return np.asarray(keyframe.ego2global @ keyframe.lidar2ego)


def assert_frames_agree(found: list[dict[str, Any]], keyframe: Keyframe) -> None:
    """A box in the world is that in the LiDAR frame after the two poses."""
    motion = lidar2global(keyframe)
    for one in found:
        here, there = one["lidar"], one["global"]
        centre = (motion @ np.array([*here["centre"], 1.0]))[:3]
        np.testing.assert_allclose(there["translation"], centre, atol=1e-3)
        length, width, height = here["size"]
        np.testing.assert_allclose(there["size"], [width, length, height])
        heading = motion[:3, :3] @ [np.cos(here["yaw"]), np.sin(here["yaw"]), 0.0]
        np.testing.assert_allclose(Quaternion(there["rotation"]).rotate([1.0, 0.0, 0.0]), heading, atol=1e-4)
        velocity = motion[:3, :3] @ [*here["velocity"], 0.0]
        np.testing.assert_allclose(there["velocity"], velocity[:2], atol=1e-4)
        assert one["name"] in CLASSES
        assert 0 <= one["score"] <= 1


def detected(folder: Path) -> dict[str, Any]:
    with Image.open(folder / "detections.png") as picture:
        assert picture.format == "PNG"
    content: dict[str, Any] = json.loads((folder / "detections.json").read_text())
    return content


def test_a_keyframe_of_the_tables_is_detected_in_both_frames(
    call: Call, files: Path, test_index: NuScenesIndex, tmp_path: Path
) -> None:
    keyframe = test_index.keyframes[1]
    status, _, said = call(
        "detect", "--checkpoint", files / "fusion.pt", "--token", keyframe.token, "--tables", test_index.root,
        "--version", test_index.version, "--split", test_index.split, *ON_CPU,
    )  # fmt: skip
    assert status == 0, said
    content = detected(tmp_path / "detected")
    assert content["sample_token"] == keyframe.token
    assert content["detections"]
    assert_frames_agree(content["detections"], keyframe)
    scores = [one["score"] for one in content["detections"]]
    assert scores == sorted(scores, reverse=True)
    assert min(scores) >= 0.3


@pytest.fixture
def keyframe_folder(data_root: Path) -> Path:
    folder = data_root / "cmt" / "nuscenes_keyframe"
    if not folder.is_dir():
        pytest.skip("needs the folder cmt/nuscenes_keyframe of the data root")
    return folder


def test_a_real_keyframe_is_detected_in_both_frames(
    call: Call, files: Path, keyframe_folder: Path, tmp_path: Path
) -> None:
    status, _, said = call(
        "detect", "--checkpoint", files / "fusion.pt", "--keyframe", keyframe_folder, "--output", tmp_path / "out",
        "--threshold", 0.2, *ON_CPU,
    )  # fmt: skip
    assert status == 0, said
    content = detected(tmp_path / "out")
    assert content["sample_token"] == "ca9a282c9e77460f8360f564131a8af5"
    assert content["detections"]
    assert_frames_agree(content["detections"], read_keyframe_folder(keyframe_folder))


def test_a_threshold_leaves_out_what_is_less_sure(
    call: Call, files: Path, test_index: NuScenesIndex, tmp_path: Path
) -> None:
    status, _, said = call(
        "detect", "--checkpoint", files / "lidar.pt", "--token", test_index.keyframes[0].token, "--tables",
        test_index.root, "--version", test_index.version, "--split", test_index.split, "--threshold", 1.0, *ON_CPU,
    )  # fmt: skip
    assert status == 0, said
    assert detected(tmp_path / "detected")["detections"] == []


# -- convert ---------------------------------------------------------------------------------------------


@pytest.fixture
def tiny_profile(
    monkeypatch: pytest.MonkeyPatch, make_network: Callable[..., NetworkConfig]
) -> NetworkConfig:
    """A profile ``tiny``, whose network can be released in a moment."""
    network = make_network("lidar")
    method = replace(CAMERA, name="tiny", network=network)
    monkeypatch.setitem(PROFILES, "tiny", Profile("tiny", replace(QUICK_DATA, dataset="nuscenes"), (method,)))
    return network


def released(network: NetworkConfig, sparse_last: bool) -> dict[str, torch.Tensor]:
    """Weights as the authors' file would hold them, with sparse kernels (out, .., in) or (.., in, out)."""
    torch.manual_seed(3)
    weights = Cmt(network).state_dict()
    if not sparse_last:
        return weights
    return {
        name: value.permute(1, 2, 3, 4, 0).contiguous() if value.dim() == 5 else value
        for name, value in weights.items()
    }


@pytest.mark.parametrize("sparse_last", [False, True], ids=["spconv", "mmcv"])
def test_a_released_file_becomes_a_network_of_this_package(
    sparse_last: bool, call: Call, tiny_profile: NetworkConfig, tmp_path: Path
) -> None:
    weights = released(tiny_profile, sparse_last)
    torch.save(
        {"meta": {"epoch": 20}, "state_dict": weights, "optimizer": {"state": {}}}, tmp_path / "released.pth"
    )
    status, _, said = call(
        "convert", "--released", tmp_path / "released.pth", "--configuration", "tiny",
        "--output", tmp_path / "new" / "x.pt",
    )  # fmt: skip
    assert status == 0, said
    stored = load_network(tmp_path / "new" / "x.pt")
    assert stored.network.network == tiny_profile
    for name, value in released(tiny_profile, False).items():
        assert torch.equal(stored.network.state_dict()[name], value), name


def test_a_released_file_of_another_network_is_refused_with_what_it_lacks(
    refused: Refused, tiny_profile: NetworkConfig, tmp_path: Path
) -> None:
    weights = released(tiny_profile, False)
    del weights["pts_bbox_head.reference_points.weight"]
    torch.save({"state_dict": {**weights, "strange": torch.zeros(1)}}, tmp_path / "released.pth")
    said = refused("convert", "--released", tmp_path / "released.pth", "--configuration", "tiny")
    assert "lacks 1 of the network's tensors (pts_bbox_head.reference_points.weight)" in said
    assert "strange" in said
    assert not (tmp_path / "model.pt").exists()


# -- what cannot be --------------------------------------------------------------------------------------


def test_an_unknown_profile_is_refused_with_those_there_are(refused: Refused) -> None:
    said = refused("reproduce", "--profile", "huge")
    assert "unknown profile 'huge'" in said
    assert "quick" in said


def test_an_unknown_method_is_refused_with_the_profiles(refused: Refused) -> None:
    assert "'CMT, masked-modal'" in refused("reproduce", "--profile", "smoke", "--methods", "YOLO", *ON_CPU)


@pytest.mark.parametrize("condition", ["night", "both"])
def test_an_unknown_condition_of_a_suite_is_refused(refused: Refused, condition: str) -> None:
    said = refused("reproduce", "--profile", "smoke", "--conditions", condition, *ON_CPU)
    assert f"'{condition}' is no further condition" in said


def test_an_unknown_condition_of_an_evaluation_is_refused(refused: Refused, files: Path) -> None:
    said = refused("evaluate", "--checkpoint", files / "lidar.pt", "--conditions", "night", *ON_CPU)
    assert "'night' is no condition; choose from both, no-lidar" in said


@pytest.mark.parametrize("seeds", [(1, 1), (0, 2, 0)])
def test_a_seed_given_twice_is_refused(refused: Refused, seeds: tuple[int, ...]) -> None:
    assert "each once" in refused("reproduce", "--profile", "smoke", "--seeds", *seeds, *ON_CPU)


def test_a_missing_data_root_is_refused(refused: Refused, tmp_path: Path) -> None:
    absent = tmp_path / "absent"
    said = refused("reproduce", "--profile", "mini", "--data-root", absent, *ON_CPU)
    assert f"there is no data root {absent}" in said


def test_missing_tables_say_where_to_get_nuscenes(refused: Refused, tmp_path: Path) -> None:
    (tmp_path / "data" / "nuscenes").mkdir(parents=True)
    said = refused("reproduce", "--profile", "mini", "--data-root", tmp_path / "data", *ON_CPU)
    assert "register at nuscenes.org" in said


def test_a_missing_table_is_named(refused: Refused, files: Path, scenes: Path, tmp_path: Path) -> None:
    (tables,) = scenes.rglob("sample_annotation.json")
    copy = tmp_path / "copy"
    shutil.copytree(tables.parent, copy / tables.parent.name)
    (copy / tables.parent.name / "ego_pose.json").unlink()
    said = refused("detect", "--checkpoint", files / "lidar.pt", "--token", "x", "--tables", copy, *ON_CPU)
    assert "the table ego_pose.json is missing" in said


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("absent.pt", "absent.pt"),
        ("junk.pt", "junk.pt"),
        ("half.pt", "half.pt"),
        ("other.pt", "is no network of this package"),
        ("shapeless.pt", "is no network of this package"),
        ("lacking.pt", "lacks 1 of the network's tensors"),
    ],
)
@pytest.mark.parametrize("verb", ["evaluate", "detect"])
def test_a_file_that_is_no_network_is_refused(
    verb: str, name: str, expected: str, refused: Refused, files: Path
) -> None:
    further = ("--token", "x") if verb == "detect" else ()
    assert expected in refused(verb, "--checkpoint", files / name, *further, *ON_CPU)


@pytest.mark.parametrize("given", [(), ("--keyframe", ".", "--token", "x")], ids=["neither", "both"])
def test_one_of_keyframe_and_token_is_wanted(refused: Refused, files: Path, given: tuple[str, ...]) -> None:
    said = refused("detect", "--checkpoint", files / "lidar.pt", *given, *ON_CPU)
    assert "give either --keyframe FOLDER or --token TOKEN" in said


def test_an_unknown_token_is_refused(refused: Refused, files: Path, test_index: NuScenesIndex) -> None:
    said = refused(
        "detect", "--checkpoint", files / "lidar.pt", "--token", "nowhere", "--tables", test_index.root, "--version",
        test_index.version, "--split", test_index.split, *ON_CPU,
    )  # fmt: skip
    assert "has no keyframe nowhere" in said


@pytest.mark.parametrize("name", ["empty", "absent"])
def test_a_folder_without_annotation_is_refused(
    name: str, refused: Refused, files: Path, tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    said = refused("detect", "--checkpoint", files / "lidar.pt", "--keyframe", tmp_path / name, *ON_CPU)
    assert "there is no file" in said
    assert "annotation.json" in said


@pytest.fixture
def folder(test_index: NuScenesIndex, tmp_path: Path) -> Path:
    """A keyframe of generated scenes as a folder of its own."""
    frame, root = test_index.keyframes[0], tmp_path / "frame"
    root.mkdir()
    images = {}
    for camera in frame.cameras:
        name = next(part for part in Path(camera.path).parts if part.startswith("CAM_"))
        shutil.copy(test_index.root / camera.path, root / f"{name}.jpg")
        images[name] = {
            "img_path": f"{name}.jpg",
            "cam2img": camera.intrinsic.tolist(),
            "lidar2cam": camera.lidar2camera.tolist(),
        }
    shutil.copy(test_index.root / frame.lidar_path, root / "sweep.bin")
    content = {
        "classes": {name: number for number, name in enumerate(CLASSES)},
        "frame": {
            "token": frame.token,
            "timestamp": frame.timestamp / 1e6,
            "ego2global": frame.ego2global.tolist(),
            "images": images,
            "lidar_points": {"lidar_path": "sweep.bin", "lidar2ego": frame.lidar2ego.tolist()},
        },
    }
    (root / "annotation.json").write_text(json.dumps(content))
    return root


def test_a_folder_is_detected_like_the_tables(
    call: Call, files: Path, folder: Path, test_index: NuScenesIndex, tmp_path: Path
) -> None:
    """A camera network, for the folder has one sweep."""
    common = ("detect", "--checkpoint", files / "camera.pt", *ON_CPU)
    assert call(*common, "--keyframe", folder, "--output", tmp_path / "one")[0] == 0
    tables = ("--tables", test_index.root, "--version", test_index.version, "--split", test_index.split)
    token = test_index.keyframes[0].token
    assert call(*common, "--token", token, *tables, "--output", tmp_path / "two")[0] == 0
    one, two = detected(tmp_path / "one"), detected(tmp_path / "two")
    assert one["sample_token"] == two["sample_token"]
    assert len(one["detections"]) == len(two["detections"]) > 0
    for first, second in zip(one["detections"], two["detections"], strict=True):
        assert first["name"] == second["name"]
        assert first["score"] == pytest.approx(second["score"], rel=1e-4)


def without_a_camera(folder: Path) -> None:
    path = folder / "annotation.json"
    content = json.loads(path.read_text())
    del content["frame"]["images"]["CAM_BACK"]
    path.write_text(json.dumps(content))


def odd_sweep(folder: Path) -> None:
    (folder / "sweep.bin").write_bytes((folder / "sweep.bin").read_bytes()[:-3])


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "no camera": (without_a_camera, "CAM_BACK"),
    "no image": (lambda folder: (folder / "CAM_BACK.jpg").unlink(), "CAM_BACK.jpg"),
    "a damaged image": (lambda folder: (folder / "CAM_BACK.jpg").write_bytes(b"junk"), "CAM_BACK.jpg"),
    "no sweep": (lambda folder: (folder / "sweep.bin").unlink(), "sweep.bin"),
    "a sweep of odd length": (odd_sweep, "bytes, which are no points of 20 bytes"),
    "no JSON": (lambda folder: (folder / "annotation.json").write_text("{"), "is not of the expected form"),
    "another JSON": (lambda folder: (folder / "annotation.json").write_text("{}"), "has no field 'classes'"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_keyframe_folder_is_refused(
    damage: str, refused: Refused, files: Path, folder: Path
) -> None:
    change, expected = DAMAGES[damage]
    change(folder)
    said = refused("detect", "--checkpoint", files / "fusion.pt", "--keyframe", folder, *ON_CPU)
    assert expected in said


def test_a_recipe_that_cannot_be_is_refused(refused: Refused) -> None:
    said = refused("train", *TINY, *PROCEDURAL, *RECIPE, "--train.accumulate", 3, *ON_CPU)
    assert "cannot" in said
    assert "accumulate" in said or "parts" in said


def test_images_of_another_size_than_the_networks_are_refused(refused: Refused) -> None:
    said = refused("train", *TINY, *PROCEDURAL, *RECIPE, "--scenes.image-size", 32, 64, *ON_CPU)
    assert "set original_size to that" in said


def test_several_processes_do_not_wait_while_one_collects_objects(start: Any, tmp_path: Path) -> None:
    pasting = [word for word in PROCEDURAL if word != "--augment.no-ground-truth-sampling"]
    command = ("-m", "tenfold.cmt", "train", *TINY, *pasting, *RECIPE, *ON_CPU, "--devices", 2)
    process = start(*command, cwd=tmp_path)
    _, errors = process.communicate(timeout=120)
    assert process.returncode != 0
    assert "collect the objects to paste first: tenfold-cmt prepare --profile NAME" in errors
    assert "Traceback" not in errors
    assert not list(tmp_path.rglob("result.json"))


def test_a_missing_file_of_first_weights_is_refused(refused: Refused, tmp_path: Path) -> None:
    said = refused(
        "train", *TINY, *PROCEDURAL, *RECIPE, "--image-weights", tmp_path / "absent.pth", *ON_CPU
    )  # fmt: skip
    assert "no weights at" in said


def test_a_slow_image_backbone_without_first_weights_is_refused(refused: Refused) -> None:
    slow = ("--train.image-backbone-lr", 0.01)
    said = refused("train", *TINY, *PROCEDURAL, *RECIPE, *slow, *ON_CPU)
    assert "needs pretrained weights in its image backbone" in said
    assert "--image-weights" in said


@pytest.mark.parametrize("content", [None, b"junk"], ids=["absent", "junk"])
def test_a_released_file_that_cannot_be_read_is_refused(
    content: bytes | None, refused: Refused, tmp_path: Path
) -> None:
    path = tmp_path / "released.pth"
    if content is not None:
        path.write_bytes(content)
    said = refused("convert", "--released", path, "--configuration", "cmt_lidar_voxel0075")
    assert str(path) in said


def test_an_unknown_configuration_is_refused(refused: Refused, tmp_path: Path) -> None:
    said = refused("convert", "--released", tmp_path / "x.pth", "--configuration", "huge")
    assert "unknown configuration 'huge'" in said
