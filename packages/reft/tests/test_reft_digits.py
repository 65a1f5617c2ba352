"""Where images come from: composed digits, the bundled photographs, and data sets on disk."""

from __future__ import annotations

import json
import re
import shutil
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from pycocotools.coco import COCO
from scipy.ndimage import binary_dilation
from skimage.transform import resize
from sklearn.datasets import load_digits

from tenfold.reft.annotations import load_annotations, read_image
from tenfold.reft.bundled import bundled_annotations, bundled_images
from tenfold.reft.class_split import COCO_NOVEL
from tenfold.reft.composed_digits import (
    BASE_IDS,
    NAMES,
    NOVEL_IDS,
    PHOTOGRAPHS,
    ComposeConfig,
    ComposedDigits,
    compose,
)
from tenfold.reft.config import DataConfig
from tenfold.reft.sources import OwnData, Source
from tenfold.shared.logging import TenfoldError

SIDE = 30
OF_ONE_SIZE = ComposeConfig(
    digit_size=(SIDE, SIDE), train_images=60, test_images=40, shots=(1, 2, 4), seeds=(0, 3)
)
FEW = ComposeConfig(train_images=3, test_images=2, shots=(1,), seeds=(0,))


def sentence(action: Callable[[], Any]) -> str:
    """The error of something that cannot be done: one line."""
    with pytest.raises(TenfoldError) as caught:
        action()
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.fixture(scope="module")
def composed(tmp_path_factory: pytest.TempPathFactory) -> ComposedDigits:
    """Digits of 30 pixels: 60 training and 40 test images, shots of two seeds."""
    return compose(OF_ONE_SIZE, tmp_path_factory.mktemp("composed") / "digits")


def masks_of(coco: COCO, image_id: int) -> list[NDArray[np.bool_]]:
    return [coco.annToMask(annotation).astype(bool) for annotation in coco.imgToAnns[image_id]]


def tight(mask: NDArray[np.bool_]) -> bytes:
    """A mask within its box, as something to compare."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    inside = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    return bytes(inside.shape) + inside.tobytes()


def all_sets(composed: ComposedDigits) -> dict[str, COCO]:
    paths = {"train": composed.train, "test": composed.test, "few": composed.few_shot(3, 4)}
    return {name: load_annotations(path) for name, path in paths.items()}


# -- composed digits -----------------------------------------------------------------------------------


def test_every_file_lists_all_ten_digits(composed: ComposedDigits) -> None:
    for coco in all_sets(composed).values():
        assert {number: category["name"] for number, category in coco.cats.items()} == {
            1: "zero", 2: "one", 3: "two", 4: "three", 5: "four",
            6: "five", 7: "six", 8: "seven", 9: "eight", 10: "nine",
        }  # fmt: skip


def test_training_images_have_base_digits_and_test_images_all(composed: ComposedDigits) -> None:
    sets = all_sets(composed)
    assert set(BASE_IDS) == {1, 2, 3, 4, 5, 6, 7} and set(NOVEL_IDS) == {8, 9, 10}
    assert {entry["category_id"] for entry in sets["train"].anns.values()} == set(BASE_IDS)
    assert {entry["category_id"] for entry in sets["test"].anns.values()} == {*BASE_IDS, *NOVEL_IDS}


def test_there_are_as_many_images_as_asked_for_and_each_is_a_file(composed: ComposedDigits) -> None:
    sets = all_sets(composed)
    assert (len(sets["train"].imgs), len(sets["test"].imgs), len(sets["few"].imgs)) == (60, 40, 40)
    for coco in sets.values():
        for entry in coco.imgs.values():
            with Image.open(composed.images / entry["file_name"]) as image:
                assert image.mode == "RGB" and image.size == (entry["width"], entry["height"]) == (64, 64)


def test_digits_of_an_image_do_not_overlap(composed: ComposedDigits) -> None:
    for coco in all_sets(composed).values():
        for image_id in coco.imgs:
            masks = masks_of(coco, image_id)
            assert np.sum(masks, axis=0).max() == 1 and all(mask.any() for mask in masks)


def test_images_have_one_or_two_digits_and_both_happen(composed: ComposedDigits) -> None:
    for name in ("train", "test"):
        coco = all_sets(composed)[name]
        assert {len(coco.imgToAnns[image_id]) for image_id in coco.imgs} == {1, 2}


def test_areas_and_boxes_are_those_of_the_masks(composed: ComposedDigits) -> None:
    for coco in all_sets(composed).values():
        for annotation in coco.anns.values():
            mask = coco.annToMask(annotation)
            rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
            assert annotation["area"] == mask.sum() and annotation["iscrowd"] == 0
            assert annotation["bbox"] == [
                columns[0], rows[0], columns[-1] + 1 - columns[0], rows[-1] + 1 - rows[0]
            ]  # fmt: skip


def test_classes_come_equally_often(tmp_path: Path) -> None:
    one_each = replace(FEW, max_digits=1, train_images=70, test_images=100)
    found = compose(one_each, tmp_path / "digits")
    for path, times in ((found.train, 10), (found.test, 10)):
        counts = Counter(entry["category_id"] for entry in load_annotations(path).anns.values())
        assert max(abs(count - times) for count in counts.values()) <= 2  # decks of four are not at their end


@pytest.fixture(scope="module")
def shapes() -> dict[str, dict[int, set[bytes]]]:
    """Category to the masks of its digits of 30 pixels, of both parts of scikit-learn's digits."""
    data = load_digits()
    order = np.random.RandomState(0).permutation(1797)
    glyphs = (data.images / 16).astype(np.float32)
    masks = [
        resize(glyph, (SIDE, SIDE), order=1, mode="edge", anti_aliasing=False) > 0.35 for glyph in glyphs
    ]
    return {
        part: {
            digit + 1: {tight(masks[index]) for index in indices if data.target[index] == digit}
            for digit in range(10)
        }
        for part, indices in (("train", order[:1257]), ("test", order[1257:]))
    }


@pytest.mark.parametrize(("name", "part"), [("train", "train"), ("few", "train"), ("test", "test")])
def test_digits_are_those_of_their_part(
    composed: ComposedDigits, shapes: dict[str, dict[int, set[bytes]]], name: str, part: str
) -> None:
    coco = all_sets(composed)[name]
    for annotation in coco.anns.values():
        assert tight(coco.annToMask(annotation).astype(bool)) in shapes[part][annotation["category_id"]]


def photographs() -> list[NDArray[np.float64]]:
    folder = Path(str(resources.files("skimage") / "data"))
    return [np.asarray(Image.open(folder / name).convert("RGB")) / 255 for name in PHOTOGRAPHS]


def misfit(
    background: NDArray[np.float64], free: NDArray[np.bool_], photograph: NDArray[np.float64]
) -> float:
    """Mean difference of some pixels to the best crop of a photograph, darkened as it should be."""
    height, width = (length - 63 for length in photograph.shape[:2])
    rows, columns = np.nonzero(free)
    chosen = np.random.RandomState(0).choice(len(rows), 30, replace=False)
    total = np.zeros((height, width))
    for row, column in zip(rows[chosen], columns[chosen], strict=True):
        window = photograph[row : row + height, column : column + width, 1]
        total += np.abs(0.1 + 0.5 * window - background[row, column, 1])
    return float(total.min()) / 30


def test_test_images_are_on_other_photographs_than_training_images(composed: ComposedDigits) -> None:
    pictures, sets = photographs(), all_sets(composed)
    clear = 0
    for name, own in (("train", slice(0, 10)), ("test", slice(10, 15))):
        coco = sets[name]
        others = [picture for picture in pictures if not any(picture is mine for mine in pictures[own])]
        for image_id in (1, 2, 3, 4):
            image = read_image(composed.images / coco.imgs[image_id]["file_name"]).permute(1, 2, 0)
            free = ~binary_dilation(np.any(masks_of(coco, image_id), axis=0), iterations=6)
            pixels = image.double().numpy() / 255
            assert min(misfit(pixels, free, picture) for picture in pictures[own]) < 0.025  # noise is 0.016
            clear += min(misfit(pixels, free, picture) for picture in others) > 0.03
    assert clear >= 4  # dark skies are alike


@pytest.mark.parametrize("seed", [0, 3])
def test_few_shot_sets_have_k_images_of_one_digit_for_each_class(composed: ComposedDigits, seed: int) -> None:
    for shots in (1, 2, 4):
        coco = load_annotations(composed.few_shot(seed, shots))
        counts = Counter(entry["category_id"] for entry in coco.anns.values())
        assert counts == dict.fromkeys(range(1, 11), shots)
        assert {len(coco.imgToAnns[image_id]) for image_id in coco.imgs} == {1}


def test_fewer_shots_are_among_more(composed: ComposedDigits) -> None:
    fewer, more = (load_annotations(composed.few_shot(0, shots)) for shots in (2, 4))
    for number, annotation in fewer.anns.items():
        assert more.anns[number] == annotation
        assert more.imgs[annotation["image_id"]] == fewer.imgs[annotation["image_id"]]


def test_no_digit_is_shown_twice_among_the_shots(composed: ComposedDigits) -> None:
    coco = load_annotations(composed.few_shot(0, 4))
    for category in range(1, 11):
        mine = [entry for entry in coco.anns.values() if entry["category_id"] == category]
        assert len({tight(coco.annToMask(entry).astype(bool)) for entry in mine}) == 4


def test_seeds_have_other_shots(composed: ComposedDigits) -> None:
    sets = [load_annotations(composed.few_shot(seed, 4)) for seed in (0, 3)]
    drawn = [{tight(coco.annToMask(entry).astype(bool)) for entry in coco.anns.values()} for coco in sets]
    assert len(drawn[0] & drawn[1]) < 10


@pytest.mark.parametrize(("seed", "shots"), [(1, 2), (0, 3)])
def test_shots_that_were_not_composed_are_refused(composed: ComposedDigits, seed: int, shots: int) -> None:
    message = sentence(lambda: composed.few_shot(seed, shots))
    assert f"there are no {shots} shots of seed {seed}: choose seeds 0, 3 and shots 1, 2, 4" in message


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"digit_size": (7, 43)}, "the sizes of digits ascend"),
        ({"digit_size": (43, 28)}, "the sizes of digits ascend"),
        ({"digit_size": (28, 65)}, "the sizes of digits ascend"),
        ({"image_size": 40}, "the sizes of digits ascend"),
        ({"max_digits": 0}, "at least one digit"),
        ({"train_images": 0}, "one training image"),
        ({"test_images": -1}, "one test image"),
        ({"shots": (0,)}, "shots are at least 1"),
        ({"seeds": (0, -1)}, "seeds are not negative"),
        ({"seed": -1}, "seeds are not negative"),
    ],
)
def test_settings_that_cannot_be_composed_are_refused(changes: dict[str, Any], said: str) -> None:
    assert said in sentence(lambda: ComposeConfig(**changes))


def test_more_shots_than_there_are_digits_leave_no_folder(tmp_path: Path) -> None:
    message = sentence(lambda: compose(replace(FEW, shots=(117,)), tmp_path / "digits"))
    assert "no more than 116 digits of a class" in message
    assert list(tmp_path.iterdir()) == []


def test_all_digits_of_the_rarest_class_can_be_shots(tmp_path: Path) -> None:
    tiny = replace(FEW, image_size=32, digit_size=(8, 9), shots=(116,))
    assert len(load_annotations(compose(tiny, tmp_path / "digits").few_shot(0, 116)).imgs) == 1160


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_equal_settings_give_equal_files(tmp_path: Path) -> None:
    first, second = (compose(FEW, tmp_path / name).folder for name in ("first", "second"))
    assert contents(first) == contents(second)


def test_the_seed_changes_all_images(tmp_path: Path) -> None:
    first, second = (
        contents(compose(replace(FEW, seed=seed), tmp_path / f"{seed}").images) for seed in (0, 1)
    )
    assert first.keys() == second.keys()
    assert not any(first[name] == second[name] for name in first)


def test_other_seeds_and_shots_leave_training_and_test_images_alone(tmp_path: Path) -> None:
    more = compose(replace(FEW, shots=(1, 2), seeds=(0, 1)), tmp_path / "more")
    found = contents(more.images)
    assert contents(compose(FEW, tmp_path / "few").images).items() <= found.items()


def test_the_fingerprint_tells_settings_apart() -> None:
    configs = [
        FEW, replace(FEW, seed=1), replace(FEW, shots=(2,)), replace(FEW, seeds=(1,)), replace(FEW, max_digits=1),
        replace(FEW, image_size=96), replace(FEW, digit_size=(28, 44)), replace(FEW, train_images=4),
        replace(FEW, test_images=3),
    ]  # fmt: skip
    found = {config.fingerprint for config in configs}
    assert len(found) == len(configs) and all(re.fullmatch(r"[0-9a-f]{12}", name) for name in found)
    assert ComposeConfig(**vars(FEW)).fingerprint == FEW.fingerprint


def test_a_composed_folder_is_not_written_again(tmp_path: Path) -> None:
    folder = compose(FEW, tmp_path / "digits").folder
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    compose(FEW, folder)
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


def test_an_empty_folder_is_filled(tmp_path: Path) -> None:
    (tmp_path / "digits").mkdir()
    assert compose(FEW, tmp_path / "digits").train.is_file()


def test_a_folder_of_other_settings_is_kept(tmp_path: Path) -> None:
    folder = compose(FEW, tmp_path / "digits").folder
    before = contents(folder)
    message = sentence(lambda: compose(replace(FEW, seed=1), folder))
    assert f"{folder} holds digits of other settings" in message and contents(folder) == before


@pytest.mark.parametrize("content", ["{", "[]", "{}", "\u0000", "7"])
def test_a_folder_with_a_damaged_record_is_kept(content: str, tmp_path: Path) -> None:
    folder = compose(FEW, tmp_path / "digits").folder
    (folder / "compose.json").write_text(content)
    assert f"{folder} holds something else" in sentence(lambda: compose(FEW, folder))
    assert (folder / "compose.json").read_text() == content


def test_a_folder_of_the_users_is_kept(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("valuable")
    assert f"{tmp_path} holds something else" in sentence(lambda: compose(FEW, tmp_path))
    assert contents(tmp_path) == {"thesis.tex": b"valuable"}


def test_a_file_in_place_of_the_folder_is_kept(tmp_path: Path) -> None:
    (tmp_path / "digits").write_text("valuable")
    assert "holds something else" in sentence(lambda: compose(FEW, tmp_path / "digits"))


def test_several_may_compose_the_same_folder_at_once(tmp_path: Path) -> None:
    folder = tmp_path / "below" / "digits"
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(lambda _: compose(FEW, folder), range(4)))
    assert {composed.folder for composed in found} == {folder}
    assert list(folder.parent.iterdir()) == [folder]
    assert contents(folder) == contents(compose(FEW, tmp_path / "alone").folder)


# -- bundled photographs -------------------------------------------------------------------------------

Part = Literal["train", "val"]
PARTS: tuple[Part, ...] = ("train", "val")


@pytest.fixture(scope="module", params=PARTS)
def bundled(request: pytest.FixtureRequest) -> COCO:
    return load_annotations(bundled_annotations(request.param))


def test_bundled_annotations_have_cocos_80_categories(bundled: COCO) -> None:
    assert len(bundled.cats) == 80 and set(COCO_NOVEL) < set(bundled.cats)
    assert bundled.cats[1]["name"] == "person" and bundled.cats[90]["name"] == "toothbrush"


def test_bundled_images_are_of_the_annotated_sizes(bundled: COCO) -> None:
    for entry in bundled.imgs.values():
        image = read_image(bundled_images() / entry["file_name"])
        assert image.shape == (3, entry["height"], entry["width"]) and max(image.shape) == 384


def test_bundled_outlines_lie_in_their_boxes(bundled: COCO) -> None:
    for annotation in bundled.anns.values():
        rows, columns = np.nonzero(bundled.annToMask(annotation))
        left, top, width, height = annotation["bbox"]
        assert left - 1 <= columns.min() and columns.max() + 1 <= left + width + 1
        assert top - 1 <= rows.min() and rows.max() + 1 <= top + height + 1


def test_bundled_areas_are_about_those_of_the_masks(bundled: COCO) -> None:
    for annotation in bundled.anns.values():
        pixels = bundled.annToMask(annotation).sum()
        assert abs(pixels - annotation["area"]) <= 0.1 * annotation["area"] + 20


def test_bundled_parts_share_no_image_and_every_file_is_annotated() -> None:
    train, val = (load_annotations(bundled_annotations(part)) for part in PARTS)
    assert not set(train.imgs) & set(val.imgs)
    names = {entry["file_name"] for coco in (train, val) for entry in coco.imgs.values()}
    assert names == {path.name for path in bundled_images().iterdir()}


def test_bundled_images_have_licences_that_allow_it_and_their_origin_is_told(bundled: COCO) -> None:
    allowed = {
        "CC BY 2.0": "creativecommons.org/licenses/by/2.0/",
        "CC BY-SA 2.0": "creativecommons.org/licenses/by-sa/2.0/",
        "no known copyright restrictions": "flickr.com/commons/usage/",
    }
    licences = {entry["id"]: entry for entry in bundled.dataset["licenses"]}
    for licence in licences.values():
        assert licence["url"].endswith(allowed[licence["name"]])
    source = (bundled_images().parent / "SOURCE.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `([^`]+)` \| \S+ \| ([^|]+) \| (\S+) \|$", source, flags=re.MULTILINE)
    told = {name: (licence, origin) for name, licence, origin in rows}
    for entry in bundled.imgs.values():
        assert told[entry["file_name"]] == (licences[entry["license"]]["name"], entry["flickr_url"])


def test_bundled_annotations_are_those_of_the_development_data(data_root: Path, bundled: COCO) -> None:
    part = "train" if 30 in bundled.imgs else "val"
    full = load_annotations(data_root / "reft" / "annotations" / f"instances_{part}_small.json")
    for image_id in bundled.imgs:
        assert bundled.imgToAnns[image_id] == full.imgToAnns[image_id]


# -- sources -------------------------------------------------------------------------------------------


def test_digits_are_composed_below_the_given_folder_by_their_settings(tmp_path: Path) -> None:
    source = Source(DataConfig("digits"), Path("nowhere"), tmp_path / "cache", FEW)
    source.check()
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [f"digits-{FEW.fingerprint}"]
    assert source.in_memory


def test_digits_split_into_seven_base_and_three_novel_classes(digits: Source) -> None:
    assert digits.split.categories("gfsis") == (1, 2, 3, 4, 5, 6, 7, 8, 9, 10)
    assert digits.names(digits.split.categories("fsis")) == ["seven", "eight", "nine"]
    assert digits.names((1, 2)) == list(NAMES[:2])


@pytest.mark.parametrize("which", ["fsis", "gfsis"])
def test_few_shots_of_digits_are_those_of_the_setting(
    digits: Source, which: Literal["fsis", "gfsis"]
) -> None:
    numbers = digits.split.categories(which)
    coco, record = digits.few_shot(1, 2, numbers)
    assert Counter(entry["category_id"] for entry in coco.anns.values()) == dict.fromkeys(numbers, 2)
    assert record["seed"] == 1 and record["shots"] == 2
    listed = {int(number): entry["annotations"] for number, entry in record["classes"].items()}
    assert tuple(listed) == numbers
    assert sorted(number for of_class in listed.values() for number in of_class) == sorted(coco.anns)


def test_few_shots_of_digits_that_were_not_composed_are_refused(digits: Source) -> None:
    assert "there are no 7 shots of seed 0" in sentence(lambda: digits.few_shot(0, 7, (8, 9, 10)))


@pytest.mark.parametrize(
    ("dataset", "missing"),
    [("coco", "coco/annotations/instances_train2017.json"), ("lvis", "lvis/lvis_v1_train.json")],
)
def test_a_missing_data_set_is_named_with_what_to_do(
    dataset: Literal["coco", "lvis"], missing: str, tmp_path: Path
) -> None:
    message = sentence(Source(DataConfig(dataset), tmp_path, tmp_path).check)
    assert message.startswith(f"there is no {tmp_path / missing}; unpack {dataset.upper()} below {tmp_path}")


@pytest.fixture(scope="module")
def coco_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundled photographs as COCO is unpacked."""
    root = tmp_path_factory.mktemp("data")
    (root / "coco" / "annotations").mkdir(parents=True)
    for part in PARTS:
        stored = bundled_annotations(part)
        shutil.copy(stored, root / "coco" / "annotations" / f"instances_{part}2017.json")
        (root / "coco" / f"{part}2017").symlink_to(bundled_images())
    return root


@pytest.mark.parametrize(
    "missing",
    ["annotations/instances_train2017.json", "annotations/instances_val2017.json", "train2017", "val2017"],
)
def test_each_missing_part_of_coco_is_named(coco_root: Path, missing: str, tmp_path: Path) -> None:
    root = tmp_path / "data"
    shutil.copytree(coco_root, root, symlinks=True)
    (root / "coco" / missing).unlink()
    message = sentence(Source(DataConfig(), root, tmp_path).check)
    assert f"there is no {root / 'coco' / missing};" in message


def test_coco_is_found_as_it_is_unpacked(coco_root: Path, tmp_path: Path) -> None:
    source = Source(DataConfig(), coco_root, tmp_path)
    source.check()
    assert len(source.evaluation_images) == len(source.test.imgs) == 11
    assert source.evaluation_images[0][0].shape[0] == 3 and not source.in_memory


def test_base_training_on_coco_has_no_novel_object(coco_root: Path, tmp_path: Path) -> None:
    source = Source(DataConfig(), coco_root, tmp_path)
    base, instances = source.split.categories("base"), source.base_instances
    expected = {
        image_id: [
            entry["category_id"]
            for entry in found
            if entry["category_id"] not in COCO_NOVEL and not entry["iscrowd"]
        ]
        for image_id, found in source.train.imgToAnns.items()
    }
    learned = {record.image_id: [base[label] for label in record.labels] for record in instances.records}
    assert learned == {image_id: found for image_id, found in expected.items() if found}
    assert len(learned) < len(source.train.imgs)


@pytest.mark.parametrize("shots", [4, 0, 100])
def test_shots_that_are_not_in_the_published_splits_are_refused(
    coco_root: Path, shots: int, tmp_path: Path
) -> None:
    source = Source(DataConfig(), coco_root, tmp_path)
    message = sentence(lambda: source.few_shot(0, shots, COCO_NOVEL))
    assert f"--shots is one of 1, 2, 3, 5, 10, 30 in the published splits, not {shots}" in message


def test_a_class_of_too_few_images_is_named(coco_root: Path, tmp_path: Path) -> None:
    source = Source(DataConfig(), coco_root, tmp_path)
    assert re.match(r"class \d+ \(.+\) ", sentence(lambda: source.few_shot(0, 1, COCO_NOVEL)))


@pytest.fixture(scope="module")
def many_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Annotations of COCO's 80 categories, 36 images each, without the images."""
    content = json.loads(bundled_annotations("train").read_bytes())
    numbers = [category["id"] for category in content["categories"]]
    box = [[1, 1, 5, 1, 5, 5]]
    content["images"] = [
        {"id": number, "file_name": f"{number}.jpg", "height": 8, "width": 8} for number in range(36 * 80)
    ]
    content["annotations"] = [
        {
            "id": image + 1, "image_id": image, "category_id": numbers[image % 80], "segmentation": box,
            "iscrowd": 0, "area": 8, "bbox": [1, 1, 4, 4],
        }
        for image in range(36 * 80)
    ]  # fmt: skip
    root = tmp_path_factory.mktemp("many")
    (root / "coco" / "annotations").mkdir(parents=True)
    (root / "coco" / "annotations" / "instances_train2017.json").write_text(json.dumps(content))
    return root


def test_novel_shots_of_coco_are_the_same_in_all_settings(many_root: Path, tmp_path: Path) -> None:
    source = Source(DataConfig(), many_root, tmp_path)
    alone, record = source.few_shot(2, 5, source.split.categories("fsis"))
    together, _ = source.few_shot(2, 5, source.split.categories("gfsis"))
    assert len(alone.anns) == 5 * 20 and len(together.anns) == 5 * 80
    assert set(alone.anns) < set(together.anns)
    assert list(map(int, record["classes"])) == sorted(COCO_NOVEL)


def test_seeds_of_coco_have_other_shots_and_more_shots_go_on_from_fewer(
    many_root: Path, tmp_path: Path
) -> None:
    source = Source(DataConfig(), many_root, tmp_path)
    one, other, more = (
        source.few_shot(seed, shots, (18,))[0].anns for seed, shots in ((1, 5), (2, 5), (1, 10))
    )
    assert set(one) != set(other) and set(one) < set(more)


def test_published_lists_are_taken_instead_of_a_draw(many_root: Path, tmp_path: Path) -> None:
    stored = Source(DataConfig(), many_root, tmp_path).train.imgToAnns
    dogs = [entry["id"] for found in stored.values() for entry in found if entry["category_id"] == 18]
    chosen = {"annotations": [{"id": number, "category_id": 18} for number in dogs[4:6]]}
    (tmp_path / "seed3").mkdir()
    (tmp_path / "seed3" / "full_box_2shot_dog_trainval.json").write_text(json.dumps(chosen))
    source = Source(DataConfig(), many_root, tmp_path, shot_lists=tmp_path)
    assert list(source.few_shot(3, 2, (18,))[0].anns) == dogs[4:6]
    assert "full_box_2shot_cat_trainval.json" in sentence(lambda: source.few_shot(3, 2, (17,)))


# -- data of one's own ---------------------------------------------------------------------------------


@pytest.fixture
def own(composed: ComposedDigits) -> OwnData:
    return OwnData(composed.test, composed.images, composed.test, composed.images, (9, 2))


def own_source(own: OwnData, tmp_path: Path) -> Source:
    return Source(DataConfig("own"), Path("nowhere"), tmp_path, own=own)


@pytest.mark.parametrize("field", ["train", "train_images", "test", "test_images", "novel"])
def test_own_data_needs_all_its_parts(own: OwnData, field: str, tmp_path: Path) -> None:
    changed: dict[str, Any] = {field: () if field == "novel" else None}
    source = own_source(replace(own, **changed), tmp_path)
    assert "data of your own needs --own.train, --own.train-images, --own.test" in sentence(source.check)


@pytest.mark.parametrize("field", ["train", "train_images", "test", "test_images"])
def test_a_missing_part_of_own_data_is_named(own: OwnData, field: str, tmp_path: Path) -> None:
    changed: dict[str, Any] = {field: tmp_path / "nowhere"}
    message = sentence(own_source(replace(own, **changed), tmp_path).check)
    assert message == f"there is no {tmp_path / 'nowhere'}; give the paths of existing files and folders"


def test_categories_of_own_data_that_are_not_novel_are_base(own: OwnData, tmp_path: Path) -> None:
    source = own_source(own, tmp_path)
    source.check()
    assert source.split.categories("base") == (1, 3, 4, 5, 6, 7, 8, 10)
    assert source.split.categories("ifsis")[8:] == (2, 9)
    assert source.names((2, 9)) == ["one", "eight"]


def test_novel_categories_of_own_data_are_listed_ones(own: OwnData, tmp_path: Path) -> None:
    source = own_source(replace(own, novel=(2, 11)), tmp_path)
    assert "no categories 11" in sentence(lambda: source.split)


def test_base_training_on_own_data_has_no_novel_object(own: OwnData, tmp_path: Path) -> None:
    source = own_source(own, tmp_path)
    learned = sum(len(record.labels) for record in source.base_instances.records)
    assert learned == sum(entry["category_id"] not in (2, 9) for entry in source.train.anns.values())


@pytest.mark.parametrize("shots", [1, 2, 4])
def test_few_shots_of_own_data_are_k_of_each_class(own: OwnData, shots: int, tmp_path: Path) -> None:
    coco, record = own_source(own, tmp_path).few_shot(0, shots, (2, 9))
    assert Counter(entry["category_id"] for entry in coco.anns.values()) == {2: shots, 9: shots}
    assert record["shots"] == shots and set(record["classes"]) == {"2", "9"}


def test_novel_shots_of_own_data_are_the_same_in_all_settings(own: OwnData, tmp_path: Path) -> None:
    source = own_source(own, tmp_path)
    for seed in range(3):
        alone, together = (
            source.few_shot(seed, 1, source.split.categories(which))[0] for which in ("fsis", "gfsis")
        )
        assert set(alone.anns) < set(together.anns)


def test_a_base_category_without_instances_is_no_hindrance_to_fsis_on_own_data(
    own: OwnData, tmp_path: Path
) -> None:
    content = json.loads(own.train.read_bytes())
    content["annotations"] = [entry for entry in content["annotations"] if entry["category_id"] != 4]
    (tmp_path / "train.json").write_text(json.dumps(content))
    source = own_source(replace(own, train=tmp_path / "train.json"), tmp_path)
    coco, _ = source.few_shot(0, 2, source.split.categories("fsis"))
    assert Counter(entry["category_id"] for entry in coco.anns.values()) == {2: 2, 9: 2}


def test_the_digest_is_of_both_annotation_files(own: OwnData, tmp_path: Path) -> None:
    copied = Path(shutil.copy(own.train, tmp_path / "copy.json"))
    changed = tmp_path / "changed.json"
    changed.write_bytes(own.train.read_bytes() + b"\n")
    assert replace(own, train=copied).digest == own.digest
    assert len({own.digest, replace(own, train=changed).digest, replace(own, test=changed).digest}) == 3


# -- LVIS ----------------------------------------------------------------------------------------------


def test_lvis_has_rare_classes_as_novel_ones_on_the_images_of_coco(coco_root: Path, tmp_path: Path) -> None:
    root = tmp_path / "data"
    shutil.copytree(coco_root, root, symlinks=True)
    (root / "lvis").mkdir()
    for part in PARTS:
        content = json.loads(bundled_annotations(part).read_bytes())
        for category in content["categories"]:
            category["frequency"] = "r" if category["id"] in (18, 1) else "cf"[category["id"] % 2]
        for image in content["images"]:
            name = image.pop("file_name")
            image["coco_url"] = f"http://images.cocodataset.org/{part}2017/{name}"
        for annotation in content["annotations"]:
            del annotation["iscrowd"]
        (root / "lvis" / f"lvis_v1_{part}.json").write_text(json.dumps(content))
    source = Source(DataConfig("lvis"), root, tmp_path)
    source.check()
    assert source.split.novel == (1, 18) and len(source.split.base) == 78
    assert source.base_instances.decoded(0).shape[0] == 3
    persons = sum(entry["category_id"] == 1 for entry in source.train.anns.values())
    coco, _ = source.few_shot(0, 1000, (1,))
    assert len(coco.anns) == persons > 0
