"""Annotations of COCO's form, the split of their classes, and K shots of each class."""

from __future__ import annotations

import copy
import json
import random
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pycocotools import mask as rle_masks
from pycocotools.coco import COCO

from tenfold.reft.annotations import indexed, instance_mask, load_annotations, read_image, run_lengths
from tenfold.reft.bundled import bundled_annotations
from tenfold.reft.class_split import COCO_NOVEL, ClassSplit, coco_split, lvis_split, split_from_lists
from tenfold.reft.few_shot_sampling import (
    Shots,
    few_shot_annotations,
    manifest,
    read_shot_lists,
    sample_at_most,
    sample_k_shots,
)
from tenfold.shared.logging import TenfoldError, get_logger

HEIGHT, WIDTH = 6, 8
TRIANGLE = [[0.0, 0.0, 4.0, 0.0, 4.0, 4.0]]
PUBLISHED = (1, 2, 3, 5, 10, 30)
VOC = {
    "aeroplane": "airplane", "bicycle": "bicycle", "bird": "bird", "boat": "boat", "bottle": "bottle",
    "bus": "bus", "car": "car", "cat": "cat", "chair": "chair", "cow": "cow", "diningtable": "dining table",
    "dog": "dog", "horse": "horse", "motorbike": "motorcycle", "person": "person",
    "pottedplant": "potted plant", "sheep": "sheep", "sofa": "couch", "train": "train", "tvmonitor": "tv",
}  # fmt: skip
"""PASCAL VOC's classes with COCO's names."""


def one_cat(**changes: Any) -> dict[str, Any]:
    """An image of 6 x 8 pixels with a triangle of class 1; changes go to the parts of this name."""
    content: dict[str, Any] = {
        "image": {"id": 1, "file_name": "1.png", "height": HEIGHT, "width": WIDTH},
        "category": {"id": 1, "name": "cat"},
        "annotation": {"id": 5, "image_id": 1, "category_id": 1, "segmentation": TRIANGLE},
    }
    for part, change in changes.items():
        content[part] = {key: value for key, value in (content[part] | change).items() if value is not ...}
    return {
        "images": [content["image"]],
        "categories": [content["category"]],
        "annotations": [content["annotation"]],
    }


def written(path: Path, content: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def sentence(action: Callable[[], Any]) -> str:
    """The error of something that cannot be done: one line."""
    with pytest.raises(TenfoldError) as caught:
        action()
    message = str(caught.value)
    assert "\n" not in message
    return message


def annotations_of(counts: Mapping[int, Sequence[int]]) -> list[dict[str, Any]]:
    """Category to instances of each of its images; images of a category have their own numbers.

    The annotations of an image do not follow each other in the file.
    """
    found = [
        {"image_id": 100 * category + index, "category_id": category, "turn": turn}
        for category, of_images in counts.items()
        for index, instances in enumerate(of_images)
        for turn in range(instances)
    ]
    found.sort(key=lambda entry: (entry.pop("turn"), entry["image_id"]))
    return [{"id": number, "iscrowd": 0, **entry} for number, entry in enumerate(found, start=1000)]


@pytest.fixture(scope="module")
def bundled() -> COCO:
    return load_annotations(bundled_annotations("train"))


# -- reading -------------------------------------------------------------------------------------------


def test_numbers_order_and_categories_of_the_file_are_kept(bundled: COCO) -> None:
    stored = json.loads(bundled_annotations("train").read_bytes())
    assert list(bundled.imgs) == [image["id"] for image in stored["images"]]
    assert [entry["id"] for entry in bundled.dataset["annotations"]] == [
        entry["id"] for entry in stored["annotations"]
    ]
    assert list(bundled.cats) == [category["id"] for category in stored["categories"]]


def test_reading_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    load_annotations(bundled_annotations("val"))
    assert capsys.readouterr() == ("", "")


def test_annotation_zero_gets_a_free_number_and_the_log_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(get_logger("tenfold"), "propagate", True)
    content = one_cat(annotation={"id": 0})
    content["annotations"].append({**content["annotations"][0], "id": 7})
    with caplog.at_level("WARNING"):
        found = load_annotations(written(tmp_path / "a.json", content))
    assert [entry["id"] for entry in found.dataset["annotations"]] == [8, 7]
    assert sorted(found.anns) == [7, 8] and len(found.imgToAnns[1]) == 2
    said = {record.getMessage() for record in caplog.records if "annotation 0" in record.getMessage()}
    assert said == {"annotation 0 is called 8, because COCO's evaluation takes 0 for none"}


def test_what_lvis_leaves_out_is_filled_in(tmp_path: Path) -> None:
    rectangle = [[1.0, 2.0, 5.0, 2.0, 5.0, 4.0, 1.0, 4.0]]
    content = one_cat(
        image={"file_name": ..., "coco_url": "http://images.cocodataset.org/train2017/000000000009.jpg"},
        annotation={"segmentation": rectangle},
    )
    found = load_annotations(written(tmp_path / "lvis.json", content))
    assert found.imgs[1]["file_name"] == "train2017/000000000009.jpg"
    annotation = found.anns[5]
    assert annotation["iscrowd"] == 0
    assert annotation["area"] == 8 and annotation["bbox"] == [1, 2, 4, 2]


def test_what_is_given_is_not_filled_in(tmp_path: Path) -> None:
    given = {"iscrowd": 1, "area": 3.5, "bbox": [0.5, 0.5, 3.0, 2.0]}
    found = load_annotations(written(tmp_path / "a.json", one_cat(annotation=given)))
    assert {key: found.anns[5][key] for key in given} == given


def test_polygons_of_two_points_are_left_out_beside_others(tmp_path: Path) -> None:
    content = one_cat(annotation={"segmentation": [[5.0, 0.0, 7.0, 5.0], *TRIANGLE]})
    found = load_annotations(written(tmp_path / "a.json", content))
    mask = instance_mask(found.anns[5]["segmentation"], HEIGHT, WIDTH)
    assert torch.equal(mask, instance_mask(TRIANGLE, HEIGHT, WIDTH))


@pytest.mark.parametrize("content", ["{", "", "\u0000"])
def test_a_file_that_is_no_json_is_named(content: str, tmp_path: Path) -> None:
    path = written(tmp_path / "a.json", content)
    assert f"{path} is no JSON" in sentence(lambda: load_annotations(path))


def test_a_file_of_other_bytes_than_text_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(b"\xff\xfe\xff\x00\x9d")
    assert f"{path} is no JSON" in sentence(lambda: load_annotations(path))


@pytest.mark.parametrize("name", ["missing.json", "."])
def test_a_missing_file_is_named(name: str, tmp_path: Path) -> None:
    assert f"there is no file {tmp_path / name}" in sentence(lambda: load_annotations(tmp_path / name))


@pytest.mark.parametrize("part", ["images", "annotations", "categories"])
@pytest.mark.parametrize("instead", [..., {}, None])
def test_a_file_without_a_list_is_refused(part: str, instead: Any, tmp_path: Path) -> None:
    content = {key: value for key, value in {**one_cat(), part: instead}.items() if value is not ...}
    path = written(tmp_path / "a.json", content)
    assert f"{path} has no list of {part}" in sentence(lambda: load_annotations(path))


@pytest.mark.parametrize("content", [[], 3, None, "images"])
def test_json_that_is_no_object_is_refused(content: Any, tmp_path: Path) -> None:
    path = written(tmp_path / "a.json", json.dumps(content))
    assert "has no list of images" in sentence(lambda: load_annotations(path))


def run_of(counts: Any, size: Any = (HEIGHT, WIDTH)) -> dict[str, Any]:
    return {"annotation": {"segmentation": {"size": list(size), "counts": counts}}}


def polygons_of(*polygons: Any) -> dict[str, Any]:
    return {"annotation": {"segmentation": list(polygons)}}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"image": {"id": ...}}, "an entry has no 'id'"),
        ({"image": {"height": ...}}, "an entry has no 'height'"),
        ({"image": {"file_name": ...}}, "image 1 has no file_name"),
        ({"image": {"width": 0}}, "image 1 has no height or width"),
        ({"image": {"id": "1"}}, "images have whole numbers as id, not '1'"),
        ({"category": {"name": ...}}, "category 1 has no name"),
        ({"category": {"id": 1.0}}, "categories have whole numbers as id, not 1.0"),
        ({"annotation": {"id": ...}}, "an entry has no 'id'"),
        ({"annotation": {"id": None}}, "annotations have whole numbers as id, not None"),
        ({"annotation": {"image_id": 2}}, "annotation 5 is in image 2, which is not listed"),
        ({"annotation": {"image_id": ...}}, "annotation 5 is in image None, which is not listed"),
        ({"annotation": {"category_id": 3}}, "annotation 5 is of category 3, which is not listed"),
        ({"annotation": {"segmentation": ...}}, "annotation 5 is neither polygons nor run lengths"),
        ({"annotation": {"segmentation": {}}}, "annotation 5 is neither polygons nor run lengths"),
        ({"annotation": {"segmentation": "abc"}}, "annotation 5 is neither polygons nor run lengths"),
        ({"annotation": {"segmentation": [1, 2, 3]}}, "annotation 5 is neither polygons nor run lengths"),
        ({"annotation": {"segmentation": []}}, "the segmentation of annotation 5 is empty"),
        (polygons_of([1.0, 1.0, 5.0, 5.0]), "the segmentation of annotation 5 is empty"),
        (polygons_of([0, 0, 4, 0, 4]), "a polygon of annotation 5 has an odd number of coordinates"),
        (polygons_of([0, 0, 4, 0, 4, float("nan")]), "a polygon of annotation 5 has an odd number"),
        (polygons_of([0, 0, 4, 0, float("inf"), 4]), "a polygon of annotation 5 has an odd number"),
        (polygons_of([0, 0, "4", 0, 4, 4]), "a coordinate of annotation 5 is no number"),
        (polygons_of([[0, 0], [4, 0], [4, 4]]), "a coordinate of annotation 5 is no number"),
        (run_of([]), "the segmentation of annotation 5 is empty"),
        (run_of(""), "the segmentation of annotation 5 is empty"),
        (run_of([10, 38], (WIDTH, HEIGHT)), "the run lengths of annotation 5 are for [8, 6] pixels"),
        (run_of([10, 37]), "the run lengths of annotation 5 do not add up to its image"),
        (run_of("zzzz"), "the run lengths of annotation 5 do not add up to its image"),
        (run_of(48), "annotation 5 is neither polygons nor run lengths"),
    ],
)  # fmt: skip
def test_what_is_not_of_cocos_form_is_named(changes: dict[str, Any], said: str, tmp_path: Path) -> None:
    path = written(tmp_path / "a.json", one_cat(**changes))
    message = sentence(lambda: load_annotations(path))
    assert said in message and str(path) in message


@pytest.mark.parametrize("part", ["images", "annotations", "categories"])
def test_a_number_given_twice_is_refused(part: str, tmp_path: Path) -> None:
    content = one_cat()
    content[part] = content[part] * 2
    number = content[part][0]["id"]
    path = written(tmp_path / "a.json", content)
    assert f"two {part} have the id {number}" in sentence(lambda: load_annotations(path))


@pytest.mark.parametrize("part", ["images", "annotations", "categories"])
def test_an_entry_that_is_no_object_is_refused(part: str, tmp_path: Path) -> None:
    path = written(tmp_path / "a.json", {**one_cat(), part: [3]})
    assert f"{path} is not of COCO's form" in sentence(lambda: load_annotations(path))


@pytest.mark.parametrize(
    "segmentation",
    [
        {"size": [HEIGHT, WIDTH], "counts": [-5, 53]},
        {"size": [HEIGHT, WIDTH], "counts": [1.5, 46.5]},
        {"size": [HEIGHT, WIDTH], "counts": "0"},
        {"size": [HEIGHT, WIDTH], "counts": "52"},
        [[10**400, 0, 4, 0, 4, 4]],
    ],
    ids=["a negative run", "fractions", "no pixel", "seven of 48 pixels", "a number without bounds"],
)
def test_segmentations_that_no_mask_can_have_are_refused(segmentation: Any, tmp_path: Path) -> None:
    path = written(tmp_path / "a.json", one_cat(annotation={"segmentation": segmentation}))
    assert "annotation 5" in sentence(lambda: load_annotations(path))


# -- images and masks ----------------------------------------------------------------------------------


def test_a_grey_image_is_read_with_three_equal_channels(tmp_path: Path) -> None:
    pixels = np.arange(48, dtype=np.uint8).reshape(6, 8)
    Image.fromarray(pixels).save(tmp_path / "grey.png")
    found = read_image(tmp_path / "grey.png")
    assert found.dtype == torch.uint8
    assert torch.equal(found, torch.from_numpy(pixels).expand(3, -1, -1))


def test_an_image_is_read_as_stored_whatever_its_exif_says(tmp_path: Path) -> None:
    image = Image.fromarray(np.random.RandomState(0).randint(0, 256, (4, 9, 3)).astype(np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a right angle
    image.save(tmp_path / "turned.png", exif=exif)
    found = read_image(tmp_path / "turned.png")
    assert torch.equal(found, torch.from_numpy(np.array(image)).permute(2, 0, 1))


def test_an_image_is_turned_as_its_camera_held_it_if_asked_for(tmp_path: Path) -> None:
    pixels = np.random.RandomState(0).randint(0, 256, (4, 9, 3)).astype(np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter to the right
    Image.fromarray(pixels).save(tmp_path / "turned.png", exif=exif)
    found = read_image(tmp_path / "turned.png", upright=True)
    assert torch.equal(found, torch.from_numpy(np.rot90(pixels, -1).copy()).permute(2, 0, 1))


def test_a_missing_image_is_named(tmp_path: Path) -> None:
    path = tmp_path / "missing.png"
    assert f"there is no image {path}" in sentence(lambda: read_image(path))


@pytest.mark.parametrize("keep", [0, 30, 150])
def test_a_truncated_image_is_named(keep: int, tmp_path: Path) -> None:
    path = tmp_path / "short.png"
    Image.fromarray(np.random.RandomState(0).randint(0, 256, (20, 20, 3)).astype(np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[:keep])
    assert f"the image {path} cannot be read" in sentence(lambda: read_image(path))


def test_a_rectangle_covers_its_pixels() -> None:
    expected = torch.zeros(HEIGHT, WIDTH, dtype=torch.bool)
    expected[2:4, 1:5] = True
    assert torch.equal(instance_mask([[1.0, 2.0, 5.0, 2.0, 5.0, 4.0, 1.0, 4.0]], HEIGHT, WIDTH), expected)


def test_run_lengths_go_down_the_columns() -> None:
    mask = instance_mask({"size": [2, 3], "counts": [1, 2, 3]}, 2, 3)
    assert mask.tolist() == [[False, True, False], [True, False, False]]


def test_masks_are_pycocotools(bundled: COCO) -> None:
    for annotation in bundled.dataset["annotations"]:
        image = bundled.imgs[annotation["image_id"]]
        mask = instance_mask(annotation["segmentation"], image["height"], image["width"])
        np.testing.assert_array_equal(mask.numpy(), bundled.annToMask(annotation))


def test_all_forms_of_a_segmentation_give_the_same_mask() -> None:
    mask = instance_mask([*TRIANGLE, [5, 3, 8, 3, 8, 6, 5, 6]], HEIGHT, WIDTH)
    flat = mask.T.flatten().tolist()
    counts, value = [0], False
    for pixel in flat:  # naive run lengths
        if pixel != value:
            counts.append(0)
            value = pixel
        counts[-1] += 1
    uncompressed = {"size": [HEIGHT, WIDTH], "counts": counts}
    compressed = rle_masks.encode(np.asfortranarray(mask.numpy(), dtype=np.uint8))
    as_text = {**compressed, "counts": compressed["counts"].decode()}
    for form in (uncompressed, compressed, as_text):
        assert torch.equal(instance_mask(form, HEIGHT, WIDTH), mask)
        assert int(rle_masks.area(run_lengths(form, HEIGHT, WIDTH))) == int(mask.sum())


# -- classes -------------------------------------------------------------------------------------------


def test_cocos_novel_classes_are_those_of_pascal_voc(bundled: COCO) -> None:
    assert {bundled.cats[number]["name"] for number in COCO_NOVEL} == set(VOC.values())
    assert len(COCO_NOVEL) == 20


def test_cocos_split_has_60_base_and_20_novel_classes(bundled: COCO) -> None:
    split = coco_split(bundled)
    assert len(split.base) == 60 and len(split.novel) == 20
    assert set(split.base) | set(split.novel) == set(bundled.cats)
    assert split.names[18] == "dog" and split.names[90] == "toothbrush"


def test_cocos_split_is_that_of_the_development_data(data_root: Path, bundled: COCO) -> None:
    path = data_root / "reft" / "annotations" / "coco_fewshot_classes.json"
    stored, split = json.loads(path.read_bytes()), coco_split(bundled)
    for kind, numbers in (("base", split.categories("base")), ("novel", split.categories("fsis"))):
        expected = [(entry["id"], entry["name"]) for entry in stored[kind]]
        assert [(number, split.names[number]) for number in numbers] == expected


def test_cocos_split_needs_all_novel_classes(bundled: COCO) -> None:
    content = {**bundled.dataset, "annotations": []}
    content["categories"] = [entry for entry in content["categories"] if entry["id"] not in (7, 44)]
    assert "lack COCO's categories 7, 44" in sentence(lambda: coco_split(indexed(content)))


SPLIT = ClassSplit((8, 2, 5), (9, 1), {number: f"class {number}" for number in range(10)})


def test_labels_follow_ascending_base_then_novel_categories() -> None:
    assert SPLIT.categories("base") == (2, 5, 8)
    assert SPLIT.categories("fsis") == (1, 9)
    assert SPLIT.categories("gfsis") == SPLIT.categories("ifsis") == (2, 5, 8, 1, 9)


@pytest.mark.parametrize(
    ("base", "novel", "said"),
    [
        ((1, 2, 3), (3, 2), "categories 2, 3 are both base and novel"),
        ((1, 1), (2,), "categories 1 are twice among the base ones"),
        ((1,), (2, 3, 2, 3), "categories 2, 3 are twice among the novel ones"),
        ((), (), "give at least one"),
        ((1, 11), (12,), "categories 11, 12 have no name"),
    ],
)
def test_a_split_that_cannot_be_is_refused(base: tuple[int, ...], novel: tuple[int, ...], said: str) -> None:
    assert said in sentence(lambda: ClassSplit(base, novel, SPLIT.names))


def test_a_split_by_numbers_takes_names_from_the_annotations(bundled: COCO) -> None:
    split = split_from_lists(iter([18, 90]), iter([44]), bundled)
    assert split.names == {18: "dog", 90: "toothbrush", 44: "bottle"}


def test_a_split_by_numbers_needs_listed_categories(bundled: COCO) -> None:
    assert "no categories 12, 91" in sentence(lambda: split_from_lists([1, 91], [12], bundled))


def frequencies(*letters: str | None) -> COCO:
    categories = [
        {"id": number, "name": f"c{number}"} | ({} if letter is None else {"frequency": letter})
        for number, letter in enumerate(letters, start=1)
    ]
    return indexed({"images": [], "annotations": [], "categories": categories})


def test_rare_classes_of_lvis_are_novel() -> None:
    split = lvis_split(frequencies("r", "f", "c", "r"))
    assert (split.base, split.novel) == ((2, 3), (1, 4))


@pytest.mark.parametrize("letter", [None, "x"])
def test_lvis_needs_the_frequency_of_every_class(letter: str | None) -> None:
    assert "category 2 has no frequency r, c or f" in sentence(lambda: lvis_split(frequencies("r", letter)))


# -- K shots -------------------------------------------------------------------------------------------


def public_generator(
    annotations: Iterable[dict[str, Any]], classes: Sequence[int], shots: Sequence[int], seed: int
) -> dict[tuple[int, int], list[int]] | None:
    """The specification's words as a program; None where it fails or would not end."""
    of_class: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for annotation in annotations:
        if annotation["iscrowd"] != 1:
            of_class[annotation["category_id"]].append(annotation)
    state, found = random.getstate(), {}
    random.seed(seed)
    try:
        for category in classes:
            by_image: dict[int, list[dict[str, Any]]] = {}
            for annotation in of_class[category]:
                by_image.setdefault(annotation["image_id"], []).append(annotation)
            chosen: list[dict[str, Any]] = []
            for count in shots:
                for _ in range(2000):
                    if len(by_image) < count:
                        return None
                    for image in random.sample(list(by_image.keys()), count):
                        if any(image == one["image_id"] for one in chosen):
                            continue
                        if len(by_image[image]) + len(chosen) > count:
                            continue
                        chosen.extend(by_image[image])
                        if len(chosen) == count:
                            break
                    if len(chosen) == count:
                        break
                else:
                    return None
                found[category, count] = [one["id"] for one in chosen]
    finally:
        random.setstate(state)
    return found


def flat(found: Shots) -> dict[tuple[int, int], list[int]]:
    return {
        (category, shots): drawn for category, of_class in found.items() for shots, drawn in of_class.items()
    }


@pytest.mark.parametrize("seed", [0, 1, 9])
def test_shots_are_those_of_the_public_generator(seed: int) -> None:
    counts = {3: [1, 2, 4, 1] * 20, 5: [1] * 45, 8: [3, 1, 1, 7] * 25}
    annotations = annotations_of(counts)
    expected = public_generator(annotations, [3, 5, 8], PUBLISHED, seed)
    assert expected is not None
    assert flat(sample_k_shots(annotations, [3, 5, 8], PUBLISHED, seed)) == expected


SMALL_SETS = st.dictionaries(st.integers(1, 3), st.lists(st.integers(1, 4), max_size=7), min_size=1)


@settings(max_examples=60, deadline=None)
@given(SMALL_SETS, st.sets(st.integers(1, 5), min_size=1, max_size=3), st.integers(0, 10_000))
def test_nothing_is_refused_that_the_public_generator_delivers(
    counts: dict[int, list[int]], wanted: set[int], seed: int
) -> None:
    annotations, classes, shots = annotations_of(counts), sorted(counts), sorted(wanted)
    expected = public_generator(annotations, classes, shots, seed)
    try:
        found = flat(sample_k_shots(annotations, classes, shots, seed))
    except TenfoldError:
        assert expected is None
    else:
        assert found == expected


@settings(max_examples=60, deadline=None)
@given(SMALL_SETS, st.integers(0, 10_000))
def test_shots_are_exactly_k_in_whole_images_and_go_on_from_fewer(
    counts: dict[int, list[int]], seed: int
) -> None:
    annotations = annotations_of({category: [*images, 1, 1, 1, 1, 1] for category, images in counts.items()})
    by_number = {entry["id"]: entry for entry in annotations}
    for category, of_class in sample_k_shots(annotations, sorted(counts), (1, 2, 5), seed).items():
        for shots, drawn in of_class.items():
            assert len(set(drawn)) == len(drawn) == shots
            images = {by_number[number]["image_id"] for number in drawn}
            whole = {
                entry["id"]
                for entry in annotations
                if entry["image_id"] in images and entry["category_id"] == category
            }
            assert set(drawn) == whole
        assert of_class[5][:2] == of_class[2] and of_class[2][:1] == of_class[1]


def test_an_image_enters_with_all_its_instances_or_not_at_all() -> None:
    annotations = annotations_of({1: [3, 1, 1]})
    single = {entry["id"] for entry in annotations if entry["image_id"] != 100}
    for seed in range(10):
        found = sample_k_shots(annotations, [1], (1, 2), seed)[1]
        assert found[1][0] in single and set(found[2]) == single


def test_a_class_whose_images_cannot_add_up_to_k_is_named() -> None:
    annotations = annotations_of({4: [3, 1, 1], 7: [1, 1, 1]})
    message = sentence(lambda: sample_k_shots(annotations, [7, 4], (1, 2, 3), 0, {4: "airplane"}))
    assert "class 4 (airplane) cannot give exactly 3 shots after the first 2" in message
    assert "3 images with 5 instances" in message


@pytest.mark.parametrize(("instances", "shots"), [((2, 2, 2, 2), 3), ((2, 4), 1), ((5, 5, 5, 5), 4)])
def test_a_draw_that_would_never_end_is_refused(instances: tuple[int, ...], shots: int) -> None:
    annotations = annotations_of({6: instances})
    message = sentence(lambda: sample_k_shots(annotations, [6], (shots,), 0))
    assert f"class 6 cannot give exactly {shots} shots after the first 0" in message


def test_whether_three_of_three_one_and_one_can_be_had_is_up_to_the_seed() -> None:
    annotations = annotations_of({1: [3, 1, 1]})
    first_image = [entry["id"] for entry in annotations if entry["image_id"] == 100]
    ends = {"drawn": 0, "refused": 0}
    for seed in range(12):
        try:
            assert sample_k_shots(annotations, [1], (3,), seed)[1][3] == first_image
        except TenfoldError:
            ends["refused"] += 1
        else:
            ends["drawn"] += 1
    assert ends["drawn"] > 0 and ends["refused"] > 0


@pytest.mark.parametrize("images", [0, 2])
def test_a_class_with_fewer_images_than_shots_is_named(images: int) -> None:
    annotations = annotations_of({2: [1] * images})
    message = sentence(lambda: sample_k_shots(annotations, [2], (3,), 0))
    assert f"class 2 has {images} images, which 3 shots cannot be drawn from" in message


@pytest.mark.parametrize("shots", [(), (0, 1), (2, 1), (1, 1), (-3,)])
def test_numbers_of_shots_are_positive_and_ascend(shots: tuple[int, ...]) -> None:
    annotations = annotations_of({1: [1] * 5})
    assert "positive and ascend" in sentence(lambda: sample_k_shots(annotations, [1], shots, 0))


def test_crowds_are_neither_drawn_nor_counted() -> None:
    annotations = annotations_of({1: [2, 2, 2]})
    crowds = {entry["id"] for entry in annotations[:3]}  # one in each image
    for entry in annotations[:3]:
        entry["iscrowd"] = 1
    drawn = sample_k_shots(annotations, [1], (3,), 0)[1][3]
    assert len(drawn) == 3 and not crowds & set(drawn)


def test_classes_share_the_random_numbers_in_their_order() -> None:
    annotations = annotations_of({1: [1] * 30, 2: [1] * 30})
    both, second = (sample_k_shots(annotations, classes, (10,), 0) for classes in ([1, 2], [2]))
    assert both[2] != second[2]


def test_sampling_leaves_the_global_random_numbers_alone() -> None:
    before = random.getstate()
    sample_k_shots(annotations_of({1: [1] * 5}), [1], (2,), 0)
    sample_at_most(annotations_of({1: [1] * 5}), [1], 2, 0)
    assert random.getstate() == before


def test_seeds_give_other_shots() -> None:
    annotations = annotations_of({1: [1] * 50})
    drawn = {tuple(sample_k_shots(annotations, [1], (5,), seed)[1][5]) for seed in range(10)}
    assert len(drawn) == 10


# -- at most K -----------------------------------------------------------------------------------------


def test_a_class_with_fewer_than_k_instances_gives_all_of_them() -> None:
    annotations = annotations_of({1: [2, 1], 2: [4, 4, 4]})
    found = sample_at_most(annotations, [1, 2], 5, 0)
    assert sorted(found[1][5]) == [entry["id"] for entry in annotations if entry["category_id"] == 1]
    of_second = {entry["id"] for entry in annotations if entry["category_id"] == 2}
    assert len(found[2][5]) == 5 and set(found[2][5]) < of_second


def test_at_most_k_takes_no_crowds() -> None:
    annotations = annotations_of({1: [1, 1, 1]})
    annotations[1]["iscrowd"] = 1
    assert sorted(sample_at_most(annotations, [1], 3, 0)[1][3]) == [1000, 1002]


def test_at_most_k_differs_by_seed_alone() -> None:
    annotations = annotations_of({1: [1] * 40})
    drawn = [tuple(sample_at_most(annotations, [1], 6, seed)[1][6]) for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]


def test_at_most_k_names_classes_without_an_instance() -> None:
    annotations = annotations_of({2: [1]})
    annotations[0]["iscrowd"] = 1
    message = sentence(lambda: sample_at_most(annotations, [2, 9], 1, 0))
    assert "categories 2, 9 have no instance to sample" in message


# -- the shots as annotations --------------------------------------------------------------------------


@pytest.fixture
def three_images() -> COCO:
    """Image 1 has a cat and two dogs, image 2 a dog, image 3 a cat."""
    entries = [(1, "cat"), (1, "dog"), (2, "dog"), (3, "cat"), (1, "dog")]
    return indexed(
        {
            "info": {"description": "made up"},
            "images": [
                {"id": number, "file_name": f"{number}.png", "height": 6, "width": 8} for number in (3, 1, 2)
            ],
            "categories": [{"id": 17, "name": "cat"}, {"id": 18, "name": "dog"}],
            "annotations": [
                {
                    "id": number,
                    "image_id": image,
                    "category_id": {"cat": 17, "dog": 18}[name],
                    "segmentation": TRIANGLE,
                    "iscrowd": 0,
                }
                for number, (image, name) in enumerate(entries, start=1)
            ],
        }
    )


def test_only_the_shots_and_their_images_remain(three_images: COCO) -> None:
    few = few_shot_annotations(three_images, {17: {1: [4]}, 18: {1: [3]}}, 1, [18, 17])
    assert [entry["id"] for entry in few.dataset["annotations"]] == [3, 4]
    assert list(few.imgs) == [2, 3]
    assert few.dataset["categories"] == three_images.dataset["categories"]


def test_other_objects_of_a_shots_image_have_no_annotation(three_images: COCO) -> None:
    few = few_shot_annotations(three_images, {17: {1: [1]}}, 1, [17])
    assert [entry["id"] for entry in few.imgToAnns[1]] == [1]


def test_an_image_that_two_classes_chose_is_there_once(three_images: COCO) -> None:
    few = few_shot_annotations(three_images, {17: {1: [1]}, 18: {2: [5, 2], 1: [3]}}, 1, [17])
    both = few_shot_annotations(three_images, {17: {2: [1, 4]}, 18: {2: [5, 2]}}, 2, [17, 18])
    assert list(few.imgs) == [1]
    assert [image["id"] for image in both.dataset["images"]] == [1, 3]
    assert [entry["id"] for entry in both.dataset["annotations"]] == [1, 4, 5, 2]


def test_the_annotations_drawn_from_are_not_changed(three_images: COCO) -> None:
    before = copy.deepcopy(three_images.dataset)
    few_shot_annotations(three_images, {17: {1: [1]}}, 1, [17])
    assert three_images.dataset == before


@pytest.mark.parametrize(
    ("sampled", "shots", "said"),
    [
        ({17: {1: [1]}}, 2, "category 17 has no 2 shots"),
        ({18: {1: [2]}}, 1, "category 17 has no 1 shots"),
        ({17: {1: [99]}}, 1, "no number 99 of category 17"),
        ({17: {1: [2]}}, 1, "no number 2 of category 17"),
    ],
)
def test_shots_of_other_annotations_are_refused(
    three_images: COCO, sampled: Shots, shots: int, said: str
) -> None:
    assert said in sentence(lambda: few_shot_annotations(three_images, sampled, shots, [17]))
    assert said in sentence(lambda: manifest(three_images, sampled, shots, [17], 0))


def test_the_manifest_lists_images_and_annotations_by_class(three_images: COCO) -> None:
    found = manifest(three_images, {17: {2: [1, 4]}, 18: {2: [5, 2]}}, 2, [17, 18], 3)
    expected = {
        "17": {"images": [1, 3], "annotations": [1, 4]},
        "18": {"images": [1], "annotations": [5, 2]},
    }
    assert json.loads(json.dumps(found)) == {"seed": 3, "shots": 2, "classes": expected}


# -- published lists -----------------------------------------------------------------------------------


def published(folder: Path, seed: int, shots: int, name: str, content: Any) -> Path:
    place = folder / f"seed{seed}" if seed else folder
    return written(place / f"full_box_{shots}shot_{name}_trainval.json", content)


def listed(category: int, *numbers: Any) -> dict[str, Any]:
    return {"annotations": [{"id": number, "category_id": category} for number in numbers]}


def test_published_lists_are_read_by_seed_shots_and_name(tmp_path: Path) -> None:
    published(tmp_path, 0, 1, "dining table", listed(67, 11))
    published(tmp_path, 4, 2, "dining table", listed(67, 30, 12))
    published(tmp_path, 4, 2, "cat", listed(17, 8, 9))
    assert read_shot_lists(tmp_path, 0, 1, {67: "dining table"}) == {67: {1: [11]}}
    assert read_shot_lists(tmp_path, 4, 2, {17: "cat", 67: "dining table"}) == {
        17: {2: [8, 9]},
        67: {2: [30, 12]},
    }


def test_published_lists_choose_the_annotations(tmp_path: Path, three_images: COCO) -> None:
    published(tmp_path, 1, 1, "cat", listed(17, 4))
    sampled = read_shot_lists(tmp_path, 1, 1, {17: "cat"})
    assert list(few_shot_annotations(three_images, sampled, 1, [17]).anns) == [4]


def test_a_missing_list_is_named(tmp_path: Path) -> None:
    message = sentence(lambda: read_shot_lists(tmp_path, 2, 5, {17: "cat"}))
    assert f"there is no list {tmp_path / 'seed2' / 'full_box_5shot_cat_trainval.json'}" in message


@pytest.mark.parametrize(
    "content",
    [
        "{",
        [],
        {},
        {"annotations": [3]},
        {"annotations": [{"id": 1}]},
        listed(17, "one", 2),
        {"annotations": 3},
    ],
)
def test_a_list_of_another_form_is_named(content: Any, tmp_path: Path) -> None:
    path = published(tmp_path, 0, 2, "cat", content)
    assert f"{path} is not of COCO's form" in sentence(lambda: read_shot_lists(tmp_path, 0, 2, {17: "cat"}))


@pytest.mark.parametrize(
    "content",
    [
        listed(18, 1, 2),
        listed(17, 1),
        listed(17, 1, 2, 3),
        listed(17, 1, 1),
        listed(17, 1, 2, 2),
        {"annotations": [*listed(17, 1)["annotations"], *listed(18, 2)["annotations"]]},
    ],
    ids=["another class", "one", "three", "one twice", "two, one of them twice", "two classes"],
)
def test_a_list_without_k_instances_of_its_class_alone_is_refused(content: Any, tmp_path: Path) -> None:
    path = published(tmp_path, 0, 2, "cat", content)
    message = sentence(lambda: read_shot_lists(tmp_path, 0, 2, {17: "cat"}))
    assert f"{path} does not hold 2 instances of category 17 (cat) alone" in message
