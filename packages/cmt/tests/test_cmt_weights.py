"""Files of weights: released ones, foreign objects in them, pretrained image backbones, and our own networks."""

from __future__ import annotations

import os
import pickle
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import resnet50

from tenfold.cmt.checkpoints import (
    load_image_pretraining,
    load_network_state,
    load_official_state_dict,
    released_state_dict,
)
from tenfold.cmt.config import NetworkConfig
from tenfold.cmt.detector import Cmt
from tenfold.cmt.image_backbone import ResNet50, VoVNet
from tenfold.cmt.network_files import StoredNetwork, load_network, network_config
from tenfold.cmt.official_files import read_released
from tenfold.cmt.procedural_scenes import SceneConfig
from tenfold.cmt.profiles import PROFILES, QUICK_DATA
from tenfold.shared.logging import TenfoldError
from tenfold.shared.runs import load_checkpoint, plain, save_atomically

pytestmark = pytest.mark.usefixtures("cpu")

MakeDetector = Callable[..., Cmt]


def as_released(weights: Mapping[str, Tensor], prefix: str = "", permuted: bool = False) -> dict[str, Tensor]:
    """Weights with a prefix, and kernels (kz, ky, kx, in, out) as mmcv's own sparse op has them."""
    return {
        prefix + key: value.permute(1, 2, 3, 4, 0).contiguous() if permuted and value.dim() == 5 else value
        for key, value in weights.items()
    }


def assert_same(found: nn.Module, expected: Mapping[str, Tensor]) -> None:
    state = found.state_dict()
    assert state.keys() == expected.keys()
    for key, value in expected.items():
        assert torch.equal(state[key], value), key


# -- released detectors ----------------------------------------------------------------------------------


@pytest.mark.parametrize("modality", ["fusion", "lidar", "camera"])
@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("permuted", [False, True])
def test_released_weights_arrive_whatever_their_prefix_and_layout(
    make_detector: MakeDetector, tmp_path: Path, modality: str, prefix: str, permuted: bool
) -> None:
    expected, network = make_detector(modality).state_dict(), make_detector(modality, seed=1)
    path = tmp_path / "released.pth"
    torch.save({"meta": {"epoch": 20}, "state_dict": as_released(expected, prefix, permuted)}, path)
    report = load_official_state_dict(network, read_released(path))
    assert_same(network, expected)
    kernels = [key for key, value in expected.items() if value.dim() == 5]
    assert sorted(report.permuted) == (sorted(kernels) if permuted else [])
    assert report.loaded == len(expected)
    assert (report.missing, report.unexpected, report.ignored) == ((), (), 0)


def test_kernels_are_told_by_their_shapes(make_detector: MakeDetector) -> None:
    own = make_detector("lidar").state_dict()
    shapes = {key: value.shape for key, value in own.items()}
    found = released_state_dict(as_released(own, "module.", permuted=True), shapes)
    assert found.keys() == own.keys()
    assert all(torch.equal(found[key], value) for key, value in own.items())


def test_keys_that_are_not_known_are_kept() -> None:
    found = released_state_dict({"else": torch.ones(2)}, {"weight": torch.Size((3,))})
    assert found["else"].tolist() == [1, 1]


def test_a_part_is_loaded_by_its_prefix_and_the_rest_is_counted(make_detector: MakeDetector) -> None:
    weights, network = make_detector().state_dict(), make_detector(seed=1)
    neck = {key: value for key, value in weights.items() if key.startswith("img_neck.")}
    report = load_official_state_dict(network.img_neck, weights, "img_neck.")
    assert_same(network.img_neck, {key.removeprefix("img_neck."): value for key, value in neck.items()})
    assert (report.loaded, report.ignored) == (len(neck), len(weights) - len(neck))


MISSING, STRANGE = "pts_bbox_head.reference_points.weight", "pts_bbox_head.extra.weight"


def changed(weights: Mapping[str, Tensor], drop: bool = True, add: bool = True) -> dict[str, Tensor]:
    made = {key: value for key, value in weights.items() if not (drop and key == MISSING)}
    return {**made, STRANGE: torch.ones(3)} if add else made


@pytest.mark.parametrize(
    ("drop", "add", "message"),
    [
        (True, False, f"lacks 1 of the network's tensors \\({MISSING}\\)"),
        (False, True, f"holds 1 that the network lacks \\({STRANGE}\\)"),
        (True, True, f"{MISSING}.* and .*{STRANGE}"),
    ],
)
def test_missing_and_unexpected_tensors_are_named(
    make_detector: MakeDetector, drop: bool, add: bool, message: str
) -> None:
    network = make_detector("lidar")
    before = {key: value.clone() for key, value in network.state_dict().items()}
    weights = changed(make_detector("lidar", seed=1).state_dict(), drop, add)
    with pytest.raises(TenfoldError, match=message):
        load_official_state_dict(network, weights)
    assert_same(network, before)


def test_missing_and_unexpected_tensors_are_reported_where_they_may_be(make_detector: MakeDetector) -> None:
    network, weights = make_detector("lidar", seed=1), make_detector("lidar").state_dict()
    kept = network.state_dict()[MISSING].clone()
    report = load_official_state_dict(network, changed(weights), strict=False)
    assert (report.missing, report.unexpected) == ((MISSING,), (STRANGE,))
    assert report.loaded == len(weights) - 1
    assert_same(network, {**weights, MISSING: kept})


@pytest.mark.parametrize("strict", [True, False])
def test_tensors_of_another_size_are_refused_with_both_sizes(
    make_detector: MakeDetector, strict: bool
) -> None:
    network, weights = make_detector("lidar"), dict(make_detector("lidar").state_dict())
    weights[MISSING] = torch.zeros(900, 3)
    with pytest.raises(TenfoldError, match=rf"{MISSING}; the first is \[900, 3\] and not \[36, 3\]"):
        load_official_state_dict(network, weights, strict=strict)


def test_of_many_missing_tensors_the_first_are_named(make_detector: MakeDetector) -> None:
    with pytest.raises(TenfoldError, match=r"lacks \d\d+ of the network's tensors \(.*, .*, .*, \.\.\.\)"):
        load_official_state_dict(make_detector("lidar"), {})


def test_the_source_begins_the_sentence(make_detector: MakeDetector) -> None:
    with pytest.raises(TenfoldError, match=r"^base\.pth lacks"):
        load_official_state_dict(make_detector("lidar"), {}, source="base.pth")


def test_state_of_another_network_is_refused(make_detector: MakeDetector) -> None:
    with pytest.raises(TenfoldError, match=r"runs/base/model\.pt"):
        load_network_state(make_detector("lidar"), make_detector("camera").state_dict(), "runs/base/model.pt")


# -- released files --------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", ["state_dict", "model", None])
@pytest.mark.parametrize("is_zip", [True, False], ids=["zip", "legacy"])
def test_state_dicts_are_found_bare_or_beside_other_things(
    tmp_path: Path, key: str | None, is_zip: bool
) -> None:
    weights = {"a.weight": torch.arange(6.0).view(2, 3), "b.bias": torch.ones(2, dtype=torch.float64)}
    content = weights if key is None else {"meta": {"time": "now"}, key: weights, "optimizer": {"state": {}}}
    torch.save(content, tmp_path / "file.pth", _use_new_zipfile_serialization=is_zip)
    found = read_released(tmp_path / "file.pth")
    assert found.keys() == weights.keys()
    assert all(torch.equal(found[name], value) for name, value in weights.items())


class Record:
    """Of a class that a reader does not know."""

    def __init__(self) -> None:
        self.values = [1, 2]


class Harmful:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.system, (f"touch {self.path}",))


class HarmfulEvaluation(Harmful):
    """The same through a builtin."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (eval, (f"__import__('pathlib').Path({str(self.path)!r}).touch()",))


class HarmfulState(Harmful):
    """The same through what is called with the state."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (Record, (), {"values": 3}, iter([1]), iter([("a", 1)]), os.mkdir)


@pytest.mark.parametrize("is_zip", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("kind", [Harmful, HarmfulEvaluation, HarmfulState])
def test_nothing_in_a_released_file_is_run(tmp_path: Path, kind: type[Harmful], is_zip: bool) -> None:
    mark, path = tmp_path / "mark", tmp_path / "released.pth"
    weights = {"weight": torch.arange(3.0)}
    content = {"meta": kind(mark), "state_dict": weights, "hooks": [kind(mark), Record()]}
    torch.save(content, path, _use_new_zipfile_serialization=is_zip)
    found = read_released(path)
    assert found["weight"].tolist() == [0, 1, 2]
    assert not mark.exists()


def test_the_harmful_object_does_harm_where_it_is_read_carelessly(tmp_path: Path) -> None:
    pickle.loads(pickle.dumps(Harmful(tmp_path / "mark")))  # noqa: S301  it is our own
    assert (tmp_path / "mark").exists()


def test_parameters_in_records_of_other_classes_are_read(tmp_path: Path) -> None:
    weights = {"weight": nn.Parameter(torch.arange(3.0)), "half": torch.ones(2, dtype=torch.float16)}
    torch.save({"meta": Record(), "state_dict": weights}, tmp_path / "released.pth")
    found = read_released(tmp_path / "released.pth")
    assert found["weight"].tolist() == [0, 1, 2]
    assert not found["weight"].requires_grad
    assert found["half"].dtype == torch.float16


def test_weights_outlive_their_file(tmp_path: Path) -> None:
    path = tmp_path / "released.pth"
    torch.save({"weight": torch.ones(1000)}, path)
    found = read_released(path)
    path.write_bytes(b"\0" * path.stat().st_size)
    assert found["weight"].eq(1).all()


@pytest.mark.parametrize("is_zip", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("part", [0.0, 0.3, 0.9])
def test_a_truncated_file_is_refused_by_name(tmp_path: Path, part: float, is_zip: bool) -> None:
    path = tmp_path / "released.pth"
    torch.save({"weight": torch.ones(1000)}, path, _use_new_zipfile_serialization=is_zip)
    path.write_bytes(path.read_bytes()[: int(part * path.stat().st_size)])
    with pytest.raises(TenfoldError, match=r"released\.pth is truncated, corrupt or no file of weights"):
        read_released(path)


@pytest.mark.parametrize(
    "content", [b"version https://git-lfs.github.com/spec/v1\n", b"<html></html>", b"PK\x03\x04rest"]
)
def test_other_files_are_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "released.pth").write_bytes(content)
    with pytest.raises(TenfoldError, match="download it again"):
        read_released(tmp_path / "released.pth")


def test_an_archive_without_weights_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "released.pth", "w") as archive:
        archive.writestr("readme.txt", "nothing")
    with pytest.raises(TenfoldError, match="no file of weights"):
        read_released(tmp_path / "released.pth")


@pytest.mark.parametrize("content", [[1, 2], {}, {"state_dict": {}}, torch.ones(3)])
def test_files_without_a_state_dict_are_refused(tmp_path: Path, content: Any) -> None:
    torch.save(content, tmp_path / "released.pth")
    with pytest.raises(TenfoldError, match="state dict"):
        read_released(tmp_path / "released.pth")


def test_what_is_no_tensor_in_a_state_dict_is_named(tmp_path: Path) -> None:
    torch.save({"state_dict": {"weight": torch.ones(3), "epoch": 4}}, tmp_path / "released.pth")
    with pytest.raises(TenfoldError, match=r"epoch in .* is no tensor"):
        read_released(tmp_path / "released.pth")


@pytest.mark.parametrize("name", ["absent.pth", "."])
def test_paths_that_are_no_files_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(TenfoldError, match="cannot read"):
        read_released(tmp_path / name)


# -- pretrained image backbones --------------------------------------------------------------------------


def tiny(seed: int) -> VoVNet:
    torch.manual_seed(seed)
    return VoVNet("vovnet-tiny")


def pretrained(prefix: str, others: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
    return {**{prefix + key: value for key, value in tiny(0).state_dict().items()}, **(others or {})}


@pytest.mark.parametrize("parallel", ["", "module."])
@pytest.mark.parametrize("prefix", ["img_backbone.", "backbone."])
def test_backbones_of_detectors_are_found_by_their_prefix(tmp_path: Path, prefix: str, parallel: str) -> None:
    others = {"img_neck.lateral.weight": torch.ones(2), "bbox_head.weight": torch.ones(2)}
    weights = {parallel + key: value for key, value in pretrained(prefix, others).items()}
    torch.save({"state_dict": weights, "meta": {}}, tmp_path / "pretrained.pth")
    backbone = tiny(1)
    report = load_image_pretraining(backbone, tmp_path / "pretrained.pth")
    assert_same(backbone, tiny(0).state_dict())
    assert (report.loaded, report.ignored) == (len(tiny(0).state_dict()), 2)


def test_a_bare_backbone_is_taken_without_its_classifier(tmp_path: Path) -> None:
    torch.manual_seed(0)
    theirs = resnet50(weights=None).state_dict()
    torch.save(theirs, tmp_path / "pretrained.pth")
    backbone = ResNet50()
    report = load_image_pretraining(backbone, tmp_path / "pretrained.pth")
    assert_same(backbone, {key: value for key, value in theirs.items() if not key.startswith("fc.")})
    assert report.ignored == 2


def test_files_without_counters_of_batches_are_taken(tmp_path: Path) -> None:
    weights = {k: v for k, v in pretrained("backbone.").items() if not k.endswith("num_batches_tracked")}
    torch.save(weights, tmp_path / "pretrained.pth")
    backbone = tiny(1)
    report = load_image_pretraining(backbone, tmp_path / "pretrained.pth")
    assert_same(backbone, tiny(0).state_dict())
    assert {key.rpartition(".")[2] for key in report.missing} == {"num_batches_tracked"}


def test_a_file_without_an_image_backbone_is_refused(tmp_path: Path) -> None:
    torch.save({"head.weight": torch.ones(2)}, tmp_path / "pretrained.pth")
    with pytest.raises(TenfoldError, match="holds no image backbone"):
        load_image_pretraining(tiny(0), tmp_path / "pretrained.pth")


@pytest.mark.parametrize("drop", ["norm.running_mean", "conv.weight"])
def test_a_backbone_that_lacks_tensors_is_refused_with_its_path(tmp_path: Path, drop: str) -> None:
    weights = {key: value for key, value in pretrained("backbone.").items() if not key.endswith(drop)}
    torch.save(weights, tmp_path / "pretrained.pth")
    with pytest.raises(TenfoldError, match=r"pretrained\.pth lacks .*stem_1"):
        load_image_pretraining(tiny(1), tmp_path / "pretrained.pth")


def test_another_backbone_is_refused(tmp_path: Path) -> None:
    torch.save(pretrained("img_backbone."), tmp_path / "pretrained.pth")
    with pytest.raises(TenfoldError, match="build the network that these weights are of"):
        load_image_pretraining(ResNet50(), tmp_path / "pretrained.pth")


# -- our own files ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("scenes", [None, SceneConfig(train_scenes=3)])
@pytest.mark.parametrize("modality", ["fusion", "camera"])
def test_a_network_comes_back_from_its_file_with_its_settings(
    make_detector: MakeDetector, tmp_path: Path, modality: str, scenes: SceneConfig | None
) -> None:
    stored = StoredNetwork(make_detector(modality), replace(QUICK_DATA, sweeps=7), scenes)
    save_atomically(tmp_path / "model.pt", stored.content())
    found = load_network(tmp_path / "model.pt")
    assert found.network.network == stored.network.network
    assert (found.data, found.scenes) == (stored.data, stored.scenes)
    assert_same(found.network, stored.network.state_dict())


@pytest.mark.parametrize("profile", PROFILES)
def test_configurations_come_back_from_plain_values(profile: str) -> None:
    for method in PROFILES[profile].methods:
        found: NetworkConfig = network_config(plain(method.network))
        assert found == method.network
        assert hash(found) == hash(method.network)


def test_a_networks_file_holds_tensors_and_plain_values_alone(
    make_detector: MakeDetector, tmp_path: Path
) -> None:
    save_atomically(tmp_path / "model.pt", StoredNetwork(make_detector("lidar"), QUICK_DATA).content())
    content = torch.load(tmp_path / "model.pt", weights_only=True)
    assert set(content) == {"network", "weights", "data", "scenes"}


@pytest.mark.parametrize("part", [0.0, 0.5, 0.95])
def test_a_damaged_file_of_a_network_is_refused(
    make_detector: MakeDetector, tmp_path: Path, part: float
) -> None:
    path = tmp_path / "model.pt"
    save_atomically(path, StoredNetwork(make_detector("lidar"), QUICK_DATA).content())
    path.write_bytes(path.read_bytes()[: int(part * path.stat().st_size)])
    with pytest.raises(TenfoldError, match=r"model\.pt"):
        load_network(path)


@pytest.mark.parametrize("content", [{"weights": {}}, {"network": {"modality": "lidar"}}, {"network": None}])
def test_other_files_than_networks_are_refused(tmp_path: Path, content: dict[str, Any]) -> None:
    save_atomically(tmp_path / "model.pt", content)
    with pytest.raises(TenfoldError, match="is no network of this package"):
        load_network(tmp_path / "model.pt")


def test_settings_that_no_network_has_are_refused(make_detector: MakeDetector, tmp_path: Path) -> None:
    content = StoredNetwork(make_detector("lidar"), QUICK_DATA).content()
    content["network"]["head"]["colour"] = "red"
    save_atomically(tmp_path / "model.pt", content)
    with pytest.raises(TenfoldError, match="colour"):
        load_network(tmp_path / "model.pt")


def test_weights_that_do_not_fit_their_configuration_are_refused(
    make_detector: MakeDetector, tmp_path: Path
) -> None:
    content = StoredNetwork(make_detector("lidar"), QUICK_DATA).content()
    del content["weights"][MISSING]
    save_atomically(tmp_path / "model.pt", content)
    with pytest.raises(TenfoldError, match=MISSING):
        load_network(tmp_path / "model.pt")


def test_an_absent_file_of_a_network_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TenfoldError, match="no checkpoint"):
        load_network(tmp_path / "model.pt")


def test_a_released_file_is_told_from_ours(make_detector: MakeDetector, tmp_path: Path) -> None:
    torch.save({"state_dict": make_detector("lidar").state_dict()}, tmp_path / "released.pth")
    assert "state_dict" in load_checkpoint(tmp_path / "released.pth")
    with pytest.raises(TenfoldError, match="convert a released file"):
        load_network(tmp_path / "released.pth")
