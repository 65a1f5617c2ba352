"""Commands as a user calls them, and what they say when something cannot be."""

from __future__ import annotations

import json
import logging
import pickle
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from tenfold.reft.annotations import load_annotations
from tenfold.reft.bundled import bundled_annotations, bundled_images
from tenfold.reft.cli import main
from tenfold.reft.config import DataConfig, NetworkConfig, ReferenceConfig
from tenfold.reft.model import RefT
from tenfold.reft.network_files import StoredNetwork, load_network
from tenfold.reft.profiles import DIGITS, PROFILES
from tenfold.reft.sources import Source
from tenfold.reft.suite_runs import open_source
from tenfold.reft.suites import OFF
from tenfold.shared.runs import load_checkpoint, save_atomically

Call = Callable[..., tuple[int, str, str]]
Refused = Callable[..., str]
NAMES = ("zero", "one", "two", "three", "four", "five", "six")
CLASS_EMBED = "sem_seg_head.predictor.class_embed.weight"
TINY = (
    "--network.backbone", "small", "--network.hidden-dim", 32, "--network.num-heads", 2, "--network.encoder-layers", 1,
    "--network.encoder-ffn", 64, "--network.decoder-layers", 1, "--network.decoder-ffn", 64, "--network.num-queries", 6,
    "--losses.num-points", 32, "--no-pretrained",
)  # fmt: skip
RECIPE = ("--train.steps", 2, "--train.batch-size", 2, "--train.milestones", 1)
ON_DIGITS = (
    "--data.dataset", "digits", "--data.image-size", 64, "--data.test-short-side", 0, "--data.test-long-side", 0,
    "--data.support-size", 48, "--data.workers", 0, "--compose.train-images", 12, "--compose.test-images", 12,
    "--compose.shots", 1, "--compose.seeds", 0,
)  # fmt: skip
ON_CPU = ("--device", "cpu")


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
    open_source.cache_clear()  # of a process in another folder

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


# -- files ---------------------------------------------------------------------------------------------


def base_network(classifier: str, references: ReferenceConfig, num_classes: int = 7) -> RefT:
    torch.manual_seed(0)
    shape = NetworkConfig("small", 32, 2, 1, 64, 1, 64, 6, classifier)  # type: ignore[arg-type]
    return RefT(shape, references, num_classes).freeze_batch_norm()


def keep(path: Path, network: RefT, data: DataConfig, compose: Any, **changes: Any) -> Path:
    """A base network of digits as a run leaves it, without a support cache."""
    stored = StoredNetwork(network, None, tuple(range(1, 8)), NAMES, data, compose)
    save_atomically(path, replace(stored, **changes).content())
    return path


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory, digits: Source) -> Path:
    """Files of all kinds: base networks with linear and cosine heads, others, and none."""
    folder = tmp_path_factory.mktemp("files")
    compose = digits.compose_config
    keep(folder / "linear.pt", base_network("linear", ReferenceConfig()), DIGITS, compose)
    keep(folder / "cosine.pt", base_network("cosine", ReferenceConfig()), DIGITS, compose)
    keep(folder / "plain.pt", base_network("linear", OFF), DIGITS, compose)
    keep(
        folder / "three.pt",
        base_network("linear", OFF, 3),
        DIGITS,
        compose,
        category_ids=(1, 2, 3),
        names=NAMES[:3],
    )
    coco = replace(PROFILES["coco-r50"].data, workers=0)
    keep(folder / "coco.pt", base_network("linear", OFF, 60), coco, None, category_ids=tuple(range(1, 61)))
    save_atomically(folder / "other.pt", {"weight": torch.zeros(3)})
    content = load_checkpoint(folder / "plain.pt")
    weights = dict(content["network"])
    del weights["class_predictor.bias"]
    save_atomically(folder / "lacking.pt", {**content, "network": weights})
    save_atomically(folder / "cacheless.pt", {**load_checkpoint(folder / "linear.pt"), "references": {}})
    save_atomically(folder / "shapeless.pt", {**content, "shape": {"network": {"width": 3}}})
    (folder / "junk.pt").write_bytes(b"junk")
    torch.save({"weight": Path("x")}, folder / "hostile.pt")
    whole = (folder / "plain.pt").read_bytes()
    (folder / "half.pt").write_bytes(whole[: len(whole) // 2])
    (folder / "eighty.pkl").write_bytes(pickle.dumps({"model": {CLASS_EMBED: np.zeros((81, 2))}}))
    (folder / "ade.pkl").write_bytes(pickle.dumps({"model": {CLASS_EMBED: np.zeros((151, 2))}}))
    return folder


def save_mask(path: Path, mask: np.ndarray) -> None:
    Image.fromarray(mask.astype(np.uint8) * 255).save(path)


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory, digits: Source) -> Path:
    """A support folder with two pictures each of the digits seven and eight."""
    folder = tmp_path_factory.mktemp("support")
    coco = load_annotations(digits.digits.few_shot(0, 2))
    for annotation in coco.dataset["annotations"]:
        name = coco.cats[annotation["category_id"]]["name"]
        if name not in ("seven", "eight"):
            continue
        (folder / name).mkdir(exist_ok=True)
        picture = digits.digits.images / coco.imgs[annotation["image_id"]]["file_name"]
        shutil.copy(picture, folder / name)
        mask = coco_mask.decode(annotation["segmentation"])
        save_mask(folder / name / f"{picture.stem}.mask.png", mask)
    return folder


@pytest.fixture
def support(shown: Path, tmp_path: Path) -> Path:
    """The same to be changed."""
    return Path(shutil.copytree(shown, tmp_path / "support"))


@pytest.fixture
def pictures(digits: Source) -> tuple[Path, Path]:
    """Two images to segment."""
    first, second = sorted(digits.digits.images.glob("test-*.png"))[:2]
    return first, second


# -- what can be ---------------------------------------------------------------------------------------


def test_a_network_is_trained_tuned_judged_and_reused(call: Call, tmp_path: Path) -> None:
    """From a base network to its detections; a finished run is not done again."""
    train = ("train", *TINY, *ON_DIGITS, *RECIPE, "--base-shots", 1, *ON_CPU)
    status, printed, said = call(*train)
    assert status == 0, said
    assert "segm_bAP" in printed
    (base,) = tmp_path.glob("runs/reft/single/base-reft-*/model.pt")
    assert load_network(base).names == NAMES
    done = base.stat().st_mtime_ns
    status, _, said = call(*train)
    assert status == 0
    assert base.stat().st_mtime_ns == done

    finetune = ("finetune", "--checkpoint", base, "--shots", 1, "--steps", 2, "--batch-size", 2, *ON_CPU)
    status, printed, said = call(*finetune, "--losses.num-points", 32)
    assert status == 0, said
    assert "segm_nAP" in printed and "segm_bAP" in printed
    (tuned,) = tmp_path.glob("runs/reft/single/gfsis-1-*/model.pt")
    result = json.loads((tuned.parent / "result.json").read_text())
    assert result["config"]["train"]["steps"] == 2

    status, printed, said = call(
        "evaluate", "--checkpoint", tuned, "--results", tmp_path / "found" / "list.json", *ON_CPU
    )
    assert status == 0, said
    cells = [line.split("│") for line in printed.splitlines() if line.count("│") == 3]
    shown = {row[1].strip(): row[2].strip() for row in cells}
    assert shown["segm_nAP"] == f"{result['metrics']['segm_nAP']:.1f}"
    assert shown["bbox_bAP"] == f"{result['metrics']['bbox_bAP']:.1f}"
    detections = json.loads((tmp_path / "found" / "list.json").read_text())["detections"]
    assert {one["category_id"] for one in detections} <= set(range(1, 11))

    assert call(*finetune, "--losses.num-points", 16)[0] == 0  # other settings are another run
    assert len(list(tmp_path.glob("runs/reft/single/gfsis-1-*/model.pt"))) == 2


def test_data_of_ones_own_is_trained_on(call: Call, tmp_path: Path) -> None:
    """The bundled photographs; their files of annotations are part of the run's identity."""
    images = bundled_images()
    status, _, said = call(
        "train", *TINY, *RECIPE, "--references.feature", "off", "--references.query", "off", "--data.dataset", "own",
        "--own.train", bundled_annotations("train"), "--own.train-images", images, "--own.test",
        bundled_annotations("val"), "--own.test-images", images, "--own.novel", 1, 2, 3, "--data.image-size", 64,
        "--data.test-short-side", 64, "--data.test-long-side", 96, "--data.workers", 0, "--base-shots", 1, *ON_CPU,
    )  # fmt: skip
    assert status == 0, said
    (path,) = tmp_path.glob("runs/reft/single/base-mask2former-*/model.pt")
    stored = load_network(path)
    assert stored.network.num_classes == 77
    assert not {1, 2, 3} & set(stored.category_ids)
    assert "annotations" in json.loads((path.parent / "result.json").read_text())["config"]


def test_profiles_are_listed(call: Call) -> None:
    status, printed, _ = call("reproduce", "--profile", "list")
    assert status == 0
    assert {line.split()[0] for line in printed.splitlines()} == set(PROFILES)


@pytest.mark.parametrize(
    "verb", ["reproduce", "train", "finetune", "evaluate", "segment", "compose", "sample", "convert"]
)
def test_every_option_of_a_verb_has_a_help_text(call: Call, verb: str) -> None:
    status, printed, _ = call(verb, "--help")
    assert status == 0
    options = [line.strip("│ ") for line in printed.splitlines() if line.strip("│ ").startswith("--")]
    assert options
    assert "(required)" in printed or "(default" in printed


def test_digits_are_composed(call: Call, tmp_path: Path) -> None:
    status, _, said = call(
        "compose", "--output", tmp_path / "digits", "--train-images", 3, "--test-images", 2, "--shots", 1, "--seeds", 4
    )  # fmt: skip
    assert status == 0, said
    assert len(load_annotations(tmp_path / "digits" / "train.json").imgs) == 3
    assert len(load_annotations(tmp_path / "digits" / "test.json").imgs) == 2
    assert len(load_annotations(tmp_path / "digits" / "fewshot-seed4-1shot.json").anns) == 10


# -- segment -------------------------------------------------------------------------------------------

FEW = ("--steps", 2, "--num-points", 32, "--threshold", 0.0, *ON_CPU)


def test_shown_classes_are_segmented_into_pictures_and_valid_annotations(
    call: Call, files: Path, shown: Path, pictures: tuple[Path, Path], tmp_path: Path
) -> None:
    status, _, said = call(
        "segment", "--image", *pictures, "--checkpoint", files / "linear.pt", "--support", shown, *FEW
    )
    assert status == 0, said
    out = tmp_path / "segmented"
    assert sorted(path.name for path in out.glob("*.png")) == [
        f"{path.stem}-{number}.png" for number, path in enumerate(pictures, start=1)
    ]
    for path in out.glob("*.png"):
        with Image.open(path) as picture:
            assert min(picture.size) >= 640
    found = COCO(str(out / "detections.json"))
    assert [category["name"] for category in found.cats.values()] == ["eight", "seven"]
    assert [image["file_name"] for image in found.imgs.values()] == [path.name for path in pictures]
    assert {one["image_id"] for one in found.anns.values()} == {1, 2}
    for one in found.anns.values():
        mask = found.annToMask(one)
        assert mask.shape == (64, 64)
        assert one["area"] == mask.sum() > 0
        assert one["bbox"] == coco_mask.toBbox(one["segmentation"]).tolist()
        assert 0 <= one["score"] <= 1
        assert one["iscrowd"] == 0
    load_annotations(out / "detections.json")  # our own reader takes it


def test_a_saved_network_finds_the_same_without_its_examples(
    call: Call, files: Path, shown: Path, pictures: tuple[Path, Path], tmp_path: Path
) -> None:
    saved = tmp_path / "deep" / "saved.pt"
    status, _, said = call(
        "segment", "--image", pictures[0], "--checkpoint", files / "cosine.pt", "--support", shown, "--save", saved,
        "--output", tmp_path / "first", *FEW,
    )  # fmt: skip
    assert status == 0, said
    assert load_network(saved).names == ("eight", "seven")
    status, _, said = call(
        "segment", "--image", pictures[0], "--checkpoint", saved, "--output", tmp_path / "again", *FEW
    )
    assert status == 0, said
    first, again = (
        json.loads((tmp_path / name / "detections.json").read_text()) for name in ("first", "again")
    )
    assert first["annotations"]
    assert first == again


def test_a_cosine_head_learns_by_imprinting_alone(
    call: Call, files: Path, shown: Path, pictures: tuple[Path, Path], tmp_path: Path
) -> None:
    saved = tmp_path / "saved.pt"
    status, _, said = call(
        "segment", "--image", pictures[0], "--checkpoint", files / "cosine.pt", "--support", shown, "--steps", 0,
        "--threshold", 0.0, "--save", saved, *ON_CPU,
    )  # fmt: skip
    assert status == 0, said
    before, after = (load_network(path).network for path in (files / "cosine.pt", saved))
    assert torch.equal(
        before.model.transformer_module.queries_features.weight,
        after.model.transformer_module.queries_features.weight,
    )
    assert after.num_classes == 2


def test_a_threshold_leaves_out_what_is_less_sure(
    call: Call, files: Path, shown: Path, pictures: tuple[Path, Path], tmp_path: Path
) -> None:
    status, _, said = call(
        "segment", "--image", pictures[0], "--checkpoint", files / "linear.pt", "--support", shown, "--steps", 1,
        "--num-points", 16, "--threshold", 1.0, *ON_CPU,
    )  # fmt: skip
    assert status == 0, said
    assert not json.loads((tmp_path / "segmented" / "detections.json").read_text())["annotations"]
    assert "nothing above 1.0 (the best score is" in said


def test_images_of_one_name_in_two_folders_are_two_images(
    call: Call, files: Path, shown: Path, pictures: tuple[Path, Path], tmp_path: Path
) -> None:
    same = []
    for number, picture in enumerate(pictures):
        (tmp_path / str(number)).mkdir()
        same.append(Path(shutil.copy(picture, tmp_path / str(number) / "photo.png")))
    status, _, said = call(
        "segment", "--image", *same, "--checkpoint", files / "cosine.pt", "--support", shown, "--steps", 0,
        "--threshold", 0.0, *ON_CPU,
    )  # fmt: skip
    assert status == 0, said
    content = json.loads((tmp_path / "segmented" / "detections.json").read_text())
    assert {one["image_id"] for one in content["annotations"]} <= {image["id"] for image in content["images"]}


def test_examples_may_be_annotations_of_cocos_form(
    call: Call, files: Path, digits: Source, pictures: tuple[Path, Path], tmp_path: Path
) -> None:
    listed = load_annotations(digits.digits.few_shot(0, 1))
    folder = tmp_path / "listed"
    shutil.copytree(digits.digits.images, folder)
    (folder / "instances.json").write_text(json.dumps(listed.dataset))
    status, _, said = call(
        "segment", "--image", pictures[0], "--checkpoint", files / "cosine.pt", "--support", folder, "--steps", 0,
        *ON_CPU,
    )  # fmt: skip
    assert status == 0, said
    content = json.loads((tmp_path / "segmented" / "detections.json").read_text())
    assert [category["name"] for category in content["categories"]][7:] == ["seven", "eight", "nine"]


Damage = Callable[[Path], object]


def a_picture(folder: Path) -> Path:
    return min(path for path in (folder / "seven").glob("*.png") if not path.name.endswith(".mask.png"))


def its_mask(folder: Path) -> Path:
    picture = a_picture(folder)
    return picture.with_name(f"{picture.stem}.mask.png")


def another_mask(folder: Path, mask: np.ndarray) -> Path:
    """One mask in the place of another."""
    path = its_mask(folder)
    save_mask(path, mask)
    return path


def without_classes(folder: Path) -> Path:
    for part in list(folder.iterdir()):
        shutil.rmtree(part)
    return folder


DAMAGES: dict[str, tuple[Damage, str]] = {
    "no mask": (lambda folder: its_mask(folder).unlink(), "has no mask; draw the instance in "),
    "an empty mask": (
        lambda folder: another_mask(folder, np.zeros((64, 64), bool)),
        "is empty; draw the instance in it, or remove the picture",
    ),
    "a mask of another size": (
        lambda folder: another_mask(folder, np.ones((32, 64), bool)),
        "is [32, 64] pixels, its picture [64, 64]; draw it at that size",
    ),
    "a damaged mask": (lambda folder: its_mask(folder).write_bytes(b"junk"), "cannot be read"),
    "a damaged picture": (lambda folder: a_picture(folder).write_bytes(b"junk"), "cannot be read"),
    "a class without shots": (lambda folder: (folder / "nine").mkdir(), "the class nine has no picture in"),
    "no class": (
        without_classes,
        "has no instances.json and no folder of a class",
    ),
    "no folder": (shutil.rmtree, "there is no support folder"),
    "a damaged list": (lambda folder: (folder / "instances.json").write_text("{"), "is no JSON"),
    "a list of another form": (
        lambda folder: (folder / "instances.json").write_text('{"images": []}'),
        "has no list of annotations",
    ),
}


@pytest.mark.parametrize(("damage", "message"), DAMAGES.values(), ids=DAMAGES.keys())
def test_examples_that_cannot_be_used_are_refused_before_anything_is_learned(
    damage: Damage,
    message: str,
    refused: Refused,
    files: Path,
    support: Path,
    pictures: tuple[Path, Path],
    tmp_path: Path,
) -> None:
    damage(support)
    said = refused(
        "segment", "--image", pictures[0], "--checkpoint", files / "linear.pt", "--support", support, *ON_CPU
    )
    assert message in said
    assert not (tmp_path / "segmented").exists()


def test_a_listed_class_without_shots_is_refused(
    refused: Refused, files: Path, digits: Source, pictures: tuple[Path, Path], tmp_path: Path
) -> None:
    listed = load_annotations(digits.digits.few_shot(0, 1)).dataset
    kept = [one for one in listed["annotations"] if one["category_id"] != 9]
    folder = tmp_path / "listed"
    shutil.copytree(digits.digits.images, folder)
    (folder / "instances.json").write_text(json.dumps({**listed, "annotations": kept}))
    said = refused(
        "segment", "--image", pictures[0], "--checkpoint", files / "linear.pt", "--support", folder, *ON_CPU
    )
    assert "the class eight has no shot" in said


def test_a_linear_head_cannot_learn_without_updates(
    refused: Refused, files: Path, shown: Path, pictures: tuple[Path, Path]
) -> None:
    said = refused(
        "segment", "--image", pictures[0], "--checkpoint", files / "linear.pt", "--support", shown, "--steps", 0,
        *ON_CPU,
    )  # fmt: skip
    assert "a linear head learns new classes by fine-tuning alone" in said


@pytest.mark.parametrize("options", [("--steps", -1), ("--threshold", 1.5), ("--threshold", -0.1)])
def test_settings_of_segmenting_without_sense_are_refused(
    options: tuple[object, ...], refused: Refused, files: Path, pictures: tuple[Path, Path]
) -> None:
    said = refused("segment", "--image", pictures[0], "--checkpoint", files / "plain.pt", *options, *ON_CPU)
    assert "--steps is not negative, and --threshold is from 0 to 1" in said


def test_a_missing_or_damaged_image_is_refused(refused: Refused, files: Path, tmp_path: Path) -> None:
    (tmp_path / "junk.png").write_bytes(b"junk")
    for name, message in (("absent.png", "there is no image"), ("junk.png", "cannot be read")):
        said = refused("segment", "--image", name, "--checkpoint", files / "plain.pt", *ON_CPU)
        assert message in said and name in said


def test_a_network_with_references_but_no_cache_cannot_segment_without_examples(
    refused: Refused, files: Path, pictures: tuple[Path, Path]
) -> None:
    said = refused("segment", "--image", pictures[0], "--checkpoint", files / "linear.pt", *ON_CPU)
    assert "refers to supports" in said or "--support" in said


# -- sample --------------------------------------------------------------------------------------------


@pytest.fixture
def listed(tmp_path: Path) -> Path:
    """Two classes of twelve images with one instance each."""
    images = [
        {"id": number, "file_name": f"{number}.jpg", "height": 8, "width": 8} for number in range(1, 25)
    ]
    annotations = [
        {"id": 100 + number, "image_id": number, "category_id": 3 + 2 * (number % 2), "iscrowd": 0, "area": 4,
         "bbox": [1, 1, 2, 2], "segmentation": [[1, 1, 3, 1, 3, 3, 1, 3]]}
        for number in range(1, 25)
    ]  # fmt: skip
    categories = [{"id": 3, "name": "cat"}, {"id": 5, "name": "dog"}]
    path = tmp_path / "instances.json"
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    return path


def drawn(path: Path) -> dict[int, list[int]]:
    found: dict[int, list[int]] = {}
    for one in json.loads(path.read_text())["annotations"]:
        found.setdefault(one["category_id"], []).append(one["id"])
    return found


def test_sampled_shots_are_annotations_with_a_manifest_beside_them(
    call: Call, listed: Path, tmp_path: Path
) -> None:
    out = tmp_path / "deep" / "shots.json"
    status, _, said = call(
        "sample", "--annotations", listed, "--output", out, "--shots", 3, "--seed", 4, "--ladder", 1, 2, 3
    )
    assert status == 0, said
    shots = drawn(out)
    assert {number: len(found) for number, found in shots.items()} == {3: 3, 5: 3}
    manifest = json.loads((tmp_path / "deep" / "shots.manifest.json").read_text())
    assert (manifest["seed"], manifest["shots"]) == (4, 3)
    assert {int(number): one["annotations"] for number, one in manifest["classes"].items()} == shots
    for one in manifest["classes"].values():
        assert one["images"] == [number - 100 for number in one["annotations"]]


def test_shots_follow_from_the_seed_and_the_ladder(call: Call, listed: Path, tmp_path: Path) -> None:
    found = {}
    for name, options in {
        "one": ("--seed", 1, "--ladder", 1, 2, 3),
        "again": ("--seed", 1, "--ladder", 1, 2, 3),
        "other seed": ("--seed", 2, "--ladder", 1, 2, 3),
        "other ladder": ("--seed", 1, "--ladder", 3),
    }.items():
        out = tmp_path / f"{name}.json"
        assert call("sample", "--annotations", listed, "--output", out, "--shots", 3, *options)[0] == 0
        found[name] = drawn(out)
    assert found["one"] == found["again"]
    assert found["one"] != found["other seed"]
    assert found["one"] != found["other ladder"]


def test_fewer_shots_of_a_ladder_are_among_more(call: Call, listed: Path, tmp_path: Path) -> None:
    found = []
    for shots in (1, 5):
        out = tmp_path / f"{shots}.json"
        options = ("--shots", shots, "--ladder", 1, 2, 5)
        assert call("sample", "--annotations", listed, "--output", out, *options)[0] == 0
        found.append(drawn(out))
    assert all(set(found[0][number]) <= set(found[1][number]) for number in (3, 5))


def test_only_writes_some_of_the_drawn_classes(call: Call, listed: Path, tmp_path: Path) -> None:
    both, one = tmp_path / "both.json", tmp_path / "one.json"
    options = ("--shots", 2, "--ladder", 2)
    assert call("sample", "--annotations", listed, "--output", both, *options)[0] == 0
    assert call("sample", "--annotations", listed, "--output", one, *options, "--only", 5)[0] == 0
    assert drawn(one) == {5: drawn(both)[5]}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--shots", 4), "--shots 4 is not drawn; add it to --ladder (1, 2, 3, 5, 10, 30)"),
        (("--classes", 9), "has no category 9; its categories are [3, 5]"),
        (("--classes", 3, "--only", 5), "category 5 of --only is not drawn; add it to --classes"),
        (("--shots", 30), "class 3 (cat) has 12 images, which 30 shots cannot be drawn from"),
        (("--shots", 2, "--ladder", 3, 2), "the numbers of shots are positive and ascend"),
        (("--shots", 0, "--ladder", 0), "the numbers of shots are positive and ascend"),
    ],
)
def test_shots_that_cannot_be_drawn_are_refused(
    options: tuple[object, ...], message: str, refused: Refused, listed: Path, tmp_path: Path
) -> None:
    assert message in refused("sample", "--annotations", listed, "--output", tmp_path / "out.json", *options)
    assert not (tmp_path / "out.json").exists()


# -- convert -------------------------------------------------------------------------------------------


def test_released_weights_of_all_classes_are_refused_by_default(
    refused: Refused, files: Path, tmp_path: Path
) -> None:
    said = refused("convert", "--released", files / "eighty.pkl", "--output", tmp_path / "out.pt")
    assert "has seen the novel ones" in said and "--allow-leak" in said
    assert not (tmp_path / "out.pt").exists()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("ade.pkl", "knows 150 classes, not the 80 of COCO"),
        ("eighty.pkl", "which the network has; build the network to match"),
        ("absent.pkl", "cannot read"),
        ("junk.pt", "is truncated or corrupt"),
        ("other.pt", "lack sem_seg_head.predictor.class_embed.weight"),
        ("hostile.pt", "not only arrays of numbers and plain values"),
    ],
)
def test_files_that_are_no_released_network_are_refused(
    name: str, message: str, refused: Refused, files: Path, tmp_path: Path
) -> None:
    said = refused(
        "convert", "--released", files / name, "--output", tmp_path / "out.pt", "--backbone", "small", "--allow-leak"
    )  # fmt: skip
    assert message in said
    assert not (tmp_path / "out.pt").exists()


# -- what cannot be ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--profile", "huge"), "unknown profile 'huge'; choose one of smoke, quick"),
        (("--methods", "Mask R-CNN"), "no method of the profile is left; it has RefT (gfsis, 10 shots)"),
        (("--settings", "fsis"), "no method of the profile is left"),
        (("--shots", 7), "no method of the profile is left"),
        (("--seeds", 1, 1), "give --seeds at least one number, each once"),
        (("--seeds", -1), "seeds are not negative"),
        (("--accumulate", 0), "at least 1"),
        (("--data-root", "absent"), "there is no data root absent; create it or leave out --data-root"),
        (("--profile", "coco-r50"), "unpack COCO below data or give its folder with --data-root"),
        (("--profile", "lvis-r50"), "unpack LVIS below data or give its folder with --data-root"),
    ],
)
def test_suites_that_cannot_be_done_are_refused_before_anything_is_computed(
    options: tuple[object, ...], message: str, refused: Refused, tmp_path: Path
) -> None:
    assert message in refused("reproduce", *options, *ON_CPU)
    assert not list(tmp_path.rglob("config.json"))


def test_seeds_without_a_number_are_refused(call: Call) -> None:
    status, _, said = call("reproduce", "--seeds", *ON_CPU)
    assert status == 2
    assert "seeds" in said


@pytest.mark.parametrize("option", [("--settings", "zero-shot"), ("--seeds", "one"), ("--huge",)])
def test_options_that_do_not_exist_are_refused(option: tuple[str, ...], call: Call) -> None:
    status, _, said = call("reproduce", *option)
    assert status == 2
    assert option[-1] in said


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--data.image-size", 50), "--data.image-size is a multiple of 32"),
        (("--network.hidden-dim", 40), "--network.hidden-dim is a multiple of 32"),
        (("--train.lr", 0), "rate and clipping are positive"),
        (("--train.steps", 0), "at least 1"),
        (("--references.top-k", 0), "--references.top-k and --references.max-rows are at least 1"),
        (("--data.jitter", 2, 1), "--data.jitter are two positive numbers in ascending order"),
        (("--data.dataset", "digits"), "digits are composed at 64 pixels: give --data.image-size as many"),
        (("--data.dataset", "own"), "data of your own needs --own.train"),
        (
            ("--data.dataset", "own", "--own.train", "a", "--own.train-images", "b", "--own.test", "c",
             "--own.test-images", "d", "--own.novel", 1),
            "there is no a; give the paths of existing files and folders",
        ),
        ((), "unpack COCO below data"),
        ((*TINY[:2], *ON_DIGITS), "there are no ImageNet weights of 'small'; train it without them"),
        (("--imagenet-weights", "absent.pth"), "no weights at absent.pth"),
    ],
)  # fmt: skip
def test_networks_that_cannot_be_trained_are_refused(
    options: tuple[object, ...], message: str, refused: Refused
) -> None:
    assert message in refused("train", *options, *ON_CPU)


CHECKPOINTS = [
    ("absent.pt", "no checkpoint at"),
    ("junk.pt", "is truncated, corrupt, or holds more than"),
    ("half.pt", "is truncated, corrupt, or holds more than"),
    ("hostile.pt", "is truncated, corrupt, or holds more than"),
    ("other.pt", "is no network of this package"),
    ("shapeless.pt", "is no network of this package"),
    ("lacking.pt", "lacks class_predictor.bias, which the network has"),
    ("cacheless.pt", "is no network of this package"),
]


@pytest.mark.parametrize(("name", "message"), CHECKPOINTS)
def test_files_that_are_no_network_are_refused(
    name: str, message: str, refused: Refused, files: Path
) -> None:
    assert message in refused("finetune", "--checkpoint", files / name, *ON_CPU)


@pytest.mark.parametrize("verb", ["evaluate", "segment"])
def test_other_verbs_refuse_the_same_files(
    verb: str, refused: Refused, files: Path, pictures: tuple[Path, Path]
) -> None:
    further = ("--image", pictures[0]) if verb == "segment" else ()
    for name, message in (CHECKPOINTS[0], CHECKPOINTS[2], CHECKPOINTS[4]):
        assert message in refused(verb, "--checkpoint", files / name, *further, *ON_CPU)


def test_a_base_network_of_other_classes_cannot_be_tuned(refused: Refused, files: Path) -> None:
    said = refused("finetune", "--checkpoint", files / "three.pt", "--shots", 1, *ON_CPU)
    assert "the network knows 3 classes, the data has 7 base classes" in said


@pytest.mark.parametrize("shots", [0, -1])
def test_shots_are_at_least_one(shots: int, refused: Refused, files: Path) -> None:
    assert "at least 1" in refused("finetune", "--checkpoint", files / "plain.pt", "--shots", shots, *ON_CPU)


@pytest.mark.parametrize("shots", [4, 0])
def test_shots_that_no_recipe_on_coco_knows_are_refused(shots: int, refused: Refused, files: Path) -> None:
    refused("finetune", "--checkpoint", files / "coco.pt", "--shots", shots, *ON_CPU)


def test_ifsis_with_references_needs_the_base_networks_support_cache(refused: Refused, files: Path) -> None:
    said = refused(
        "finetune", "--checkpoint", files / "cosine.pt", "--setting", "ifsis", "--shots", 1, *ON_CPU
    )
    assert "needs the base network's support cache" in said


def test_a_network_on_coco_needs_coco(refused: Refused, files: Path) -> None:
    for verb in ("finetune", "evaluate"):
        said = refused(verb, "--checkpoint", files / "coco.pt", *ON_CPU)
        assert "unpack COCO below data or give its folder with --data-root" in said


def test_a_missing_data_root_is_refused(refused: Refused, files: Path) -> None:
    said = refused("evaluate", "--checkpoint", files / "plain.pt", "--data-root", "absent", *ON_CPU)
    assert "there is no data root absent" in said


def test_a_network_with_references_but_no_cache_cannot_be_judged(refused: Refused, files: Path) -> None:
    assert "refers to supports" in refused("evaluate", "--checkpoint", files / "linear.pt", *ON_CPU)


def test_a_network_of_shown_classes_cannot_be_judged_on_digits(
    call: Call, refused: Refused, files: Path, shown: Path, pictures: tuple[Path, Path]
) -> None:
    """Its classes are those of a folder, and are no longer the data set's."""
    status, _, said = call(
        "segment", "--image", pictures[0], "--checkpoint", files / "cosine.pt", "--support", shown, "--steps", 0,
        "--save", "saved.pt", *ON_CPU,
    )  # fmt: skip
    assert status == 0, said
    for verb in ("evaluate", "finetune"):
        refused(verb, "--checkpoint", "saved.pt", *ON_CPU)


def test_weights_of_another_network_than_a_files_shape_are_named(
    refused: Refused, files: Path, tmp_path: Path
) -> None:
    content = load_checkpoint(files / "plain.pt")
    shape = {**content["shape"], "num_classes": 9}
    save_atomically(tmp_path / "nine.pt", {**content, "shape": shape})
    said = refused("evaluate", "--checkpoint", tmp_path / "nine.pt", *ON_CPU)
    assert "knows 7 classes and the network 9" in said


def test_a_folder_of_something_else_is_not_composed_into(refused: Refused, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    assert "holds something else" in refused("compose", "--output", tmp_path)
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_digits_that_cannot_be_composed_are_refused(refused: Refused, tmp_path: Path) -> None:
    said = refused("compose", "--output", tmp_path / "digits", "--digit-size", 40, 30)
    assert "the sizes of digits ascend" in said
