"""ImageNet-A, -R and -C: the formula, the folders, and accuracies that are known because colours say the class."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning_fabric import Fabric
from PIL import Image
from torch import Tensor

from tenfold.shared.logging import TenfoldError
from tenfold.tinymim.robustness import (
    ALEXNET_ERRORS,
    classes_of,
    corrupted_transform,
    evaluate_robustness,
    evaluation_transform,
    imagenet_classes,
    mean_corruption_error,
)
from tenfold.tinymim.vit import VisionTransformer, ViTConfig

SHAPE = ViTConfig(img_size=32, patch_size=16, embed_dim=4, depth=1, num_heads=1, num_classes=1000)
STEP, LEVELS = 16, 15
WNIDS = list(imagenet_classes())
MEAN, STD = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])


class Lookup(VisionTransformer):
    """Reads a number from the colour of an image, and says that number's row of a table."""

    def __init__(self, table: Tensor) -> None:
        super().__init__(SHAPE)
        self.table = table

    def forward(self, images: Tensor) -> Tensor:
        colour = 255 * (images.mean((2, 3)) * STD + MEAN)
        red, green, _ = (colour / STEP).round().long().unbind(1)
        return self.table[red + LEVELS * green]


def save_image(path: Path, number: int, size: tuple[int, int] = (40, 36)) -> None:
    """One colour for each number from 0 to 224."""
    path.parent.mkdir(parents=True, exist_ok=True)
    colour = (STEP * (number % LEVELS), STEP * (number // LEVELS), 0)
    Image.new("RGB", size, colour).save(path, "JPEG", quality=100, subsampling=0)


# -- mean corruption error -------------------------------------------------------------------------------


def test_an_alexnet_has_a_mean_corruption_error_of_100() -> None:
    mce, ce = mean_corruption_error({name: [error] * 5 for name, error in ALEXNET_ERRORS.items()})
    assert mce == pytest.approx(100, abs=1e-12)
    assert list(ce) == list(ALEXNET_ERRORS) and list(ce.values()) == pytest.approx([100] * 15, abs=1e-12)


def test_the_mean_corruption_error_is_the_references() -> None:
    case = Path(__file__).parent / "parity" / "cases" / "mean_corruption_error"
    description, outputs = (
        json.loads(case.with_suffix(".json").read_text()),
        np.load(case.with_suffix(".npz")),
    )
    assert description["alexnet_errors"] == ALEXNET_ERRORS
    mce, ce = mean_corruption_error(description["errors"])
    assert list(ce) == list(description["errors"])
    np.testing.assert_allclose(mce, outputs["mce_percent"], rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(list(ce.values()), outputs["ce_percent"], rtol=1e-9, atol=1e-9)


def test_incomplete_corruption_errors_are_said() -> None:
    errors = {name: [0.5] * 5 for name in ALEXNET_ERRORS}
    without = {name: values for name, values in errors.items() if name != "fog"}
    for wrong, message in (
        (without, "needs 15 corruptions: fog is missing"),
        ({**errors, "spatter": [0.5] * 5}, "needs 15 corruptions: spatter is none of them"),
        ({**errors, "snow": [0.5] * 4}, "snow has errors of 4 severities: give all 5"),
        ({**errors, "snow": [50.0] * 5}, "errors of snow are fractions from 0 to 1"),
        ({**errors, "snow": [float("nan")] * 5}, "errors of snow are fractions from 0 to 1"),
    ):
        with pytest.raises(TenfoldError, match=message):
            mean_corruption_error(wrong)


# -- classes and transforms ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a", "r"])
def test_classes_are_the_200_of_timms_indices(name: str) -> None:
    indices = (files("timm.data") / "_info" / f"imagenet_{name}_indices.txt").read_text().split()
    found = classes_of(name)  # type: ignore[arg-type]
    assert len(found) == 200
    assert sorted(found.values()) == sorted(map(int, indices))
    assert all(WNIDS[index] == wnid for wnid, index in found.items())


def test_images_are_resized_by_their_short_side_and_cut_at_the_centre() -> None:
    pixels = np.zeros((256, 512, 3), np.uint8)
    pixels[16:240, 144:368] = 200  # what a centre crop of 224 sees
    image = Image.fromarray(pixels)
    found = evaluation_transform(224)(image)
    assert found.shape == (3, 224, 224) and found.dtype == torch.uint8 and (found == 200).all()
    small = evaluation_transform(224)(image.resize((1024, 512), Image.Resampling.NEAREST))
    assert (small[:, 2:-2, 2:-2] == 200).all()
    large = evaluation_transform(256)(image)  # above 224: no margin is cut off
    assert torch.equal(large, torch.from_numpy(pixels[:, 128:384]).permute(2, 0, 1))


def test_corrupted_images_are_not_resized() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (224, 224, 3), np.uint8)
    assert torch.equal(
        corrupted_transform(224)(Image.fromarray(pixels)), torch.from_numpy(pixels).permute(2, 0, 1)
    )
    assert corrupted_transform(32)(Image.fromarray(pixels)).shape == (3, 32, 32)


# -- ImageNet-A and -R -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def restricted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One image of each of the 200 classes, whose colour is the place of the class in the set; and a file more."""
    root = tmp_path_factory.mktemp("data")
    for name in ("a", "r"):
        folder = root / f"imagenet-{name}"
        for number, wnid in enumerate(classes_of(name)):  # type: ignore[arg-type]
            save_image(folder / wnid / "0.jpg", number)
        (folder / "README.txt").write_text("as in the archive")
    return root


@pytest.mark.parametrize("name", ["a", "r"])
def test_only_logits_of_the_sets_classes_compete(cpu: Fabric, restricted: Path, name: str) -> None:
    classes = list(classes_of(name).values())  # type: ignore[arg-type]
    outside = min(set(range(1000)) - set(classes))
    table = torch.zeros(LEVELS**2, 1000)
    for number in range(200):
        if number < 110:
            table[number, classes[number]] = 1
        elif number < 150:  # the largest logit is outside, the right one comes second
            table[number, classes[number]], table[number, outside] = 1, 2
        else:
            table[number, classes[number]], table[number, classes[number - 1]] = 1, 2
    network = Lookup(table).train()
    found = evaluate_robustness(network, restricted, cpu, workers=0, sets=(name,), batch_size=64)  # type: ignore[arg-type]
    assert found == {f"imagenet_{name}_top1": pytest.approx(75)}
    assert network.training


def test_sets_that_are_missing_or_incomplete_are_said(cpu: Fabric, restricted: Path, tmp_path: Path) -> None:
    network = Lookup(torch.zeros(LEVELS**2, 1000))
    with pytest.raises(TenfoldError, match=r"there is no folder .*/imagenet-a: get ImageNet-A from https.*"):
        evaluate_robustness(network, tmp_path, cpu, workers=0, sets=("a",))
    with pytest.raises(TenfoldError, match=r"there is no folder .*/imagenet-c: get ImageNet-C from"):
        evaluate_robustness(network, restricted, cpu, workers=0)  # before A and R are judged
    folder = tmp_path / "imagenet-r"
    shutil.copytree(restricted / "imagenet-r", folder)
    first, second = list(classes_of("r"))[:2]
    (folder / first / "0.jpg").unlink()
    with pytest.raises(TenfoldError, match=r"class's folder in .*imagenet-r has no images"):
        evaluate_robustness(network, tmp_path, cpu, workers=0, sets=("r",))
    (folder / first).rmdir()
    with pytest.raises(TenfoldError, match=rf"imagenet-r has 199 of 200 classes, {first} is missing"):
        evaluate_robustness(network, tmp_path, cpu, workers=0, sets=("r",))
    (folder / second).rename(folder / "dogs")
    with pytest.raises(TenfoldError, match=r"imagenet-r/dogs is none of the set's classes: remove it"):
        evaluate_robustness(network, tmp_path, cpu, workers=0, sets=("r",))


def test_a_network_with_other_classes_is_refused(cpu: Fabric, restricted: Path) -> None:
    network = VisionTransformer(replace(SHAPE, num_classes=10))
    with pytest.raises(TenfoldError, match="classifier of ImageNet's 1000 classes, not of 10"):
        evaluate_robustness(network, restricted, cpu, workers=0)


# -- ImageNet-C ------------------------------------------------------------------------------------------


def corrupted_set(folder: Path, is_grouped: bool) -> Path:
    """Four images in two classes, of which as many are misjudged as ``wrong_images`` says; others have colour 0."""
    groups = {"snow": "weather", "gaussian_noise": "noise", "zoom_blur": "blur", "pixelate": "digital"}
    for corruption in ALEXNET_ERRORS:
        place = folder / groups[corruption] if is_grouped and corruption in groups else folder
        for severity in range(1, 6):
            for number in range(4):
                is_wrong = number < wrong_images(corruption, severity)
                path = place / corruption / str(severity) / WNIDS[7 + number % 2] / f"{number}.JPEG"
                save_image(path, 2 if is_wrong else number % 2, (224, 224))
    return folder


def wrong_images(corruption: str, severity: int) -> int:
    """Another pattern for each corruption."""
    return min(4, severity * list(ALEXNET_ERRORS).index(corruption) // 14)


@pytest.mark.parametrize("is_grouped", [False, True])
def test_corruption_errors_are_those_of_colours(cpu: Fabric, tmp_path: Path, is_grouped: bool) -> None:
    corrupted_set(tmp_path / "imagenet-c", is_grouped)
    table = torch.zeros(LEVELS**2, 1000)
    table[[0, 1, 2], [7, 8, 9]] = 1
    found = evaluate_robustness(Lookup(table), tmp_path, cpu, workers=0, sets=("c",), batch_size=7)
    expected = {}
    for corruption, of_alexnet in ALEXNET_ERRORS.items():
        mean = sum(wrong_images(corruption, severity) for severity in range(1, 6)) / 20
        expected[f"imagenet_c_ce_{corruption}"] = 100 * mean / of_alexnet
    expected["imagenet_c_mce"] = sum(expected.values()) / 15
    assert found == pytest.approx(expected, rel=1e-9)
    assert len(set(expected.values())) > 10


def test_parts_of_imagenet_c_that_are_missing_are_said(cpu: Fabric, tmp_path: Path) -> None:
    folder = corrupted_set(tmp_path / "imagenet-c", is_grouped=False)
    network = Lookup(torch.zeros(LEVELS**2, 1000))

    def message() -> str:
        with pytest.raises(TenfoldError) as caught:
            evaluate_robustness(network, tmp_path, cpu, workers=0, sets=("c",))
        return str(caught.value)

    wnid = WNIDS[8]
    (folder / "gaussian_noise" / "4" / wnid / "3.JPEG").unlink()
    assert "gaussian_noise/4 has 3 images and" in message()
    shutil.rmtree(folder / "fog" / "2" / wnid)
    assert "fog/2 has not the same classes as the others" in message()
    shutil.rmtree(folder / "fog" / "2")
    assert message().startswith(f"there is no folder {folder / 'fog' / '2'}: get ImageNet-C")
    shutil.rmtree(folder / "fog")
    assert message().startswith(f"there is no folder {folder / 'fog'}: get ImageNet-C")
