"""From logits to detections, their average precision in groups of classes, and how few-shot learning begins."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from lightning_fabric import Fabric
from numpy.typing import NDArray
from pycocotools import mask as mask_utils
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch import Tensor, nn

from tenfold.reft import inference
from tenfold.reft.batches import Supports
from tenfold.reft.config import DistillConfig, ReferenceConfig
from tenfold.reft.evaluation import class_precisions, confidence_interval, evaluate, few_shot_metrics
from tenfold.reft.few_shot import FewShot, base_supports, begin_few_shot
from tenfold.reft.inference import detections, instance_inference
from tenfold.reft.judging import detect, support_cache
from tenfold.reft.mask2former import Predictions
from tenfold.reft.model import RefT
from tenfold.reft.references import References
from tenfold.reft.sources import Source
from tenfold.reft.support_pool import SupportPool
from tenfold.shared.logging import TenfoldError

MakeNetwork = Callable[..., RefT]
OFF = ReferenceConfig("off", query="off")
BASE, NOVEL = tuple(range(1, 8)), (8, 9, 10)
SURE = 30.0
"""A logit with a probability of one."""


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def decoded(result: dict[str, Any]) -> NDArray[np.uint8]:
    mask: NDArray[np.uint8] = mask_utils.decode(result["segmentation"])
    return mask


def found_in(
    masks: Tensor, classes: Tensor | None = None, topk: int = 100, **sizes: tuple[int, int]
) -> list[dict[str, Any]]:
    """Detections of one image: ``padded``, ``size`` and ``original`` are that of the masks by default."""
    if classes is None:  # each query is sure of class 0
        classes = torch.tensor([[SURE, 0.0]]).expand(len(masks), -1)
    same = (int(masks.shape[-2]), int(masks.shape[-1]))
    padded, size, original = (sizes.get(name, same) for name in ("padded", "size", "original"))
    numbers = range(1, classes.shape[-1])
    return detections(classes[None], masks[None], padded, [size], [original], [5], numbers, topk)


# -- instances of one image ------------------------------------------------------------------------------


def test_instances_are_the_best_pairs_of_query_and_class() -> None:
    classes, masks = 2 * noise(4, 6), 3 * noise(4, 8, 10, seed=1)
    found = instance_inference(classes, masks, topk=7)
    probabilities = classes.softmax(-1)
    pairs = sorted(
        ((probabilities[query, label].item(), query, label) for query in range(4) for label in range(5)),
        reverse=True,
    )[:7]
    assert found.query_index.tolist() == [query for _, query, _ in pairs]
    assert found.labels.tolist() == [label for _, _, label in pairs]
    for place, (probability, query, _) in enumerate(pairs):
        inside = [value for value in masks[query].flatten().tolist() if value > 0]
        sureness = sum(1 / (1 + math.exp(-value)) for value in inside) / len(inside)
        assert found.scores[place].item() == pytest.approx(probability * sureness, rel=1e-4)
        assert torch.equal(found.masks[place], masks[query] > 0)
        assert int(found.mask_areas[place]) == len(inside)


def test_an_empty_mask_has_no_score() -> None:
    found = instance_inference(torch.tensor([[SURE, 0.0]]), torch.full((1, 4, 4), -1.0))
    assert found.scores.tolist() == [0]


# -- detections ------------------------------------------------------------------------------------------


def test_masks_lose_the_padding_before_they_take_the_size_of_the_image() -> None:
    """An image of 24 x 48 was padded to 32 x 64 and is 48 x 96 in its file; the mask at stride 4 is its left half."""
    masks = torch.full((1, 8, 16), -8.0)
    masks[:, :, :6] = 8.0
    (found,) = found_in(masks, padded=(32, 64), size=(24, 48), original=(48, 96))
    expected = np.zeros((48, 96), np.uint8)
    expected[:, :48] = 1
    assert (decoded(found) == expected).all()
    assert found["bbox"] == [0, 0, 48, 48]
    assert (found["image_id"], found["category_id"]) == (5, 1)


def test_what_lies_in_the_padding_alone_is_dropped() -> None:
    masks = torch.full((2, 8, 16), -8.0)
    masks[0, 7, :] = masks[0, :, 13:] = 8.0
    masks[1, 2:4, 2:4] = 8.0
    found = found_in(masks, padded=(32, 64), size=(24, 48), original=(24, 48))
    assert len(found) == 1
    assert found[0]["bbox"] == [8, 8, 8, 8]


def test_boxes_are_tight_and_scores_are_of_the_mask_at_the_size_of_the_image() -> None:
    masks = 2 * noise(3, 6, 7)
    classes = noise(3, 4, seed=1)
    probabilities = classes.softmax(-1)
    large = F.interpolate(masks[None], (24, 28), mode="bilinear", align_corners=False)[0]
    large = F.interpolate(large[None, :, :20, :22], (31, 45), mode="bilinear", align_corners=False)[0]
    found = found_in(masks, classes, padded=(24, 28), size=(20, 22), original=(31, 45))
    assert len(found) == 9
    seen = set()
    for result in found:
        query = next(q for q in range(3) if (decoded(result) == (large[q] > 0).numpy()).all())
        label = result["category_id"] - 1
        seen.add((query, label))
        rows, columns = (large[query] > 0).nonzero(as_tuple=True)
        left, top = int(columns.min()), int(rows.min())
        box = [left, top, int(columns.max()) - left + 1, int(rows.max()) - top + 1]
        assert result["bbox"] == box
        sureness = large[query].sigmoid()[large[query] > 0].mean().item()
        assert result["score"] == pytest.approx(probabilities[query, label].item() * sureness, rel=1e-3)
    assert len(seen) == 9


def test_a_query_is_encoded_once_whatever_the_number_of_its_classes(monkeypatch: pytest.MonkeyPatch) -> None:
    encoded = []
    encode = mask_utils.encode

    def counting(masks: NDArray[np.uint8]) -> Any:
        encoded.append(masks.shape[-1])
        return encode(masks)

    monkeypatch.setattr(mask_utils, "encode", counting)
    classes = torch.zeros(3, 6)
    classes[0] = -SURE  # the first query is sure that there is nothing
    classes[0, -1] = SURE
    found = found_in(3 * noise(3, 8, 8), classes, topk=10)
    assert sum(encoded) == 2
    assert len(found) == 10
    assert len({result["segmentation"]["counts"] for result in found}) == 2


def test_no_more_than_the_best_instances_of_each_image_are_kept() -> None:
    classes, masks = noise(2, 5, 8), 3 * noise(2, 5, 8, 8, seed=1)
    sizes = [(8, 8), (8, 8)]
    found = detections(classes, masks, (8, 8), sizes, sizes, [3, 4], range(1, 8), topk=4)
    assert [result["image_id"] for result in found] == [3] * 4 + [4] * 4
    best = classes[0].softmax(-1)[:, :7].flatten().topk(4).indices % 7 + 1
    assert [result["category_id"] for result in found[:4]] == best.tolist()


def test_masks_enlarged_a_few_at_a_time_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, Any] = {"padded": (32, 32), "size": (30, 32), "original": (50, 40)}
    masks, classes = 3 * noise(5, 8, 8), noise(5, 4, seed=1)
    expected = found_in(masks, classes, **given)
    monkeypatch.setattr(inference, "_PIXELS_AT_ONCE", 2 * 50 * 40)
    assert found_in(masks, classes, **given) == expected


def test_an_image_in_which_every_mask_is_empty_has_no_detections() -> None:
    assert found_in(torch.full((3, 8, 8), -1.0)) == []


# -- average precision -----------------------------------------------------------------------------------


def square(side: int, top: int, left: int, size: int = 64) -> dict[str, Any]:
    mask = np.zeros((size, size), np.uint8, order="F")
    mask[top : top + side, left : left + side] = 1
    rle = mask_utils.encode(mask)
    return {"size": rle["size"], "counts": rle["counts"].decode("ascii")}


@pytest.fixture(scope="module")
def truth() -> COCO:
    """Twelve images with instances of categories 1, 2, 3 and 5; category 4 has none, and one image is empty."""
    random = np.random.RandomState(0)
    annotations: list[dict[str, Any]] = []
    for image in range(1, 12):
        for category in (1, 2, 3, 5):
            side, top, left = random.randint(8, 30), random.randint(30), random.randint(30)
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image,
                    "category_id": category,
                    "segmentation": square(side, top, left),
                    "bbox": [left, top, side, side],
                    "area": int(side * side),
                    "iscrowd": 0,
                }
            )
    coco = COCO()
    coco.dataset = {
        "images": [{"id": image, "height": 64, "width": 64} for image in range(1, 13)],
        "categories": [{"id": number, "name": f"class {number}"} for number in range(1, 6)],
        "annotations": annotations,
    }
    coco.createIndex()
    return coco


@pytest.fixture(scope="module")
def guesses(truth: COCO) -> list[dict[str, Any]]:
    """Instances that are near, of another class, or nothing, also in the image without any."""
    random = np.random.RandomState(1)
    results = []
    for annotation in truth.dataset["annotations"]:
        left, top, side, _ = annotation["bbox"]
        for _ in range(2):
            grown = max(4, side + random.randint(-4, 5))
            top_left = max(0, top + random.randint(-3, 4)), max(0, left + random.randint(-3, 4))
            category = annotation["category_id"] if random.rand() < 0.7 else random.randint(1, 6)
            results.append(guess(annotation["image_id"], category, grown, *top_left, random.rand()))
    results.append(guess(12, 2, 20, 5, 5, 0.99))
    return results


def guess(image: int, category: int, side: int, top: int, left: int, score: float) -> dict[str, Any]:
    return {
        "image_id": image,
        "category_id": int(category),
        "segmentation": square(side, top, left),
        "bbox": [float(left), float(top), float(side), float(side)],
        "score": float(score),
    }


def separately(
    truth: COCO, results: list[dict[str, Any]], categories: tuple[int, ...], iou_type: str
) -> NDArray[np.float64]:
    """Pycocotools' numbers of a run that knows these categories alone."""
    geometry = {"segm": "segmentation", "bbox": "bbox"}[iou_type]
    given = [{key: one[key] for key in ("image_id", "category_id", "score", geometry)} for one in results]
    evaluation = COCOeval(truth, truth.loadRes(given), iou_type)
    evaluation.params.catIds = list(categories)
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    return np.array(evaluation.stats)


@pytest.mark.parametrize("iou_type", ["segm", "bbox"])
def test_groups_have_the_numbers_of_separate_runs(
    truth: COCO, guesses: list[dict[str, Any]], iou_type: str
) -> None:
    groups = {"novel": (2, 5), "base": (1, 3, 4), "all": (1, 2, 3, 4, 5), "one": (3,)}
    found = evaluate(truth, guesses, groups, (iou_type,))
    assert set(found) == {f"{iou_type}_{name}" for name in groups}
    for name, categories in groups.items():
        expected = separately(truth, guesses, categories, iou_type)
        assert found[f"{iou_type}_{name}"] == pytest.approx(expected)
    assert 0 < found[f"{iou_type}_novel"][0] < 1


def test_a_false_positive_in_an_image_without_instances_counts(
    truth: COCO, guesses: list[dict[str, Any]]
) -> None:
    with_it = evaluate(truth, guesses, {"two": (2,)}, ("segm",))["segm_two"][0]
    without = evaluate(truth, guesses[:-1], {"two": (2,)}, ("segm",))["segm_two"][0]
    assert with_it < without


def test_metrics_are_those_of_the_tables_in_per_cent(truth: COCO, guesses: list[dict[str, Any]]) -> None:
    found = few_shot_metrics(truth, guesses, (2, 5), (1, 3))
    novel, base, everything = (
        separately(truth, guesses, categories, "segm") for categories in ((2, 5), (1, 3), (1, 2, 3, 5))
    )
    names = ("nAP", "nAP50", "nAP75", "bAP", "AP")
    assert set(found) == {f"{kind}_{name}" for kind in ("segm", "bbox") for name in names}
    expected = (*novel[:3], base[0], everything[0])
    for name, value in zip(names, expected, strict=True):
        assert found[f"segm_{name}"] == pytest.approx(100 * value)


def test_fsis_is_judged_by_novel_classes_and_a_base_stage_by_base_classes(
    truth: COCO, guesses: list[dict[str, Any]]
) -> None:
    assert set(few_shot_metrics(truth, guesses, (2, 5), (), ("segm",))) == {
        "segm_nAP",
        "segm_nAP50",
        "segm_nAP75",
    }
    assert set(few_shot_metrics(truth, guesses, (), (1, 3), ("bbox",))) == {"bbox_bAP"}


def test_the_instances_themselves_have_a_precision_of_100(truth: COCO) -> None:
    perfect = [{**annotation, "score": 0.5} for annotation in truth.dataset["annotations"]]
    found = few_shot_metrics(truth, perfect, (2, 5), (1, 3))
    assert all(value == pytest.approx(100) for value in found.values())


def test_without_detections_precision_is_zero(truth: COCO) -> None:
    assert few_shot_metrics(truth, [], (2, 5), (), ("segm",))["segm_nAP"] == 0


def test_single_classes_have_their_own_precision_and_those_without_instances_none(
    truth: COCO, guesses: list[dict[str, Any]]
) -> None:
    found = class_precisions(truth, guesses, {2: "two", 4: "four", 5: "five"})
    assert set(found) == {"two", "five"}
    assert found["five"] == pytest.approx(100 * separately(truth, guesses, (5,), "segm")[0])


def test_evaluation_leaves_the_annotations_as_they_are(truth: COCO, guesses: list[dict[str, Any]]) -> None:
    before = [dict(annotation) for annotation in truth.dataset["annotations"]]
    first = few_shot_metrics(truth, guesses, (2, 5), (1, 3))
    again = few_shot_metrics(truth, guesses, (2, 5), (1, 3))
    assert first == again
    kept = ("id", "area", "bbox", "segmentation", "iscrowd")
    for annotation, was in zip(truth.dataset["annotations"], before, strict=True):
        assert {name: annotation[name] for name in kept} == {name: was[name] for name in kept}


@pytest.mark.parametrize(
    ("novel", "base", "message"),
    [((), (), "nothing to judge"), ((4,), (), "no instance of novel"), ((2,), (4,), "no instance of base")],
)
def test_without_classes_or_instances_there_is_nothing_to_judge(
    truth: COCO,
    guesses: list[dict[str, Any]],
    novel: tuple[int, ...],
    base: tuple[int, ...],
    message: str,
) -> None:
    with pytest.raises(TenfoldError, match=message):
        few_shot_metrics(truth, guesses, novel, base)


def test_detections_in_unknown_images_are_refused(truth: COCO) -> None:
    with pytest.raises(TenfoldError, match="in image 77, which the annotations do not list"):
        evaluate(truth, [guess(77, 1, 9, 1, 1, 0.5)], {"one": (1,)})


def test_annotations_with_the_number_0_are_refused() -> None:
    coco = COCO()
    annotation = {"id": 0, "image_id": 1, "category_id": 1, "bbox": [0, 0, 4, 4], "area": 16, "iscrowd": 0}
    coco.dataset = {"images": [{"id": 1}], "categories": [{"id": 1}], "annotations": [annotation]}
    coco.createIndex()
    with pytest.raises(TenfoldError, match="number annotations from 1"):
        evaluate(coco, [], {"one": (1,)})


def test_the_interval_of_seeds_is_196_standard_errors() -> None:
    mean, half = confidence_interval([1.0, 2.0, 3.0, 6.0])
    assert mean == pytest.approx(3.0)
    assert half == pytest.approx(1.96 * math.sqrt((4 + 1 + 0 + 9) / 3) / 2)
    assert confidence_interval([4.0]) == (4.0, 0.0)
    with pytest.raises(TenfoldError, match="no values to average"):
        confidence_interval([])


# -- judging a network -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def network(make_network: MakeNetwork) -> RefT:
    return make_network().eval()


@pytest.fixture(scope="module")
def cache(network: RefT, digits: Source, cpu: Fabric) -> References:
    found = support_cache(network, base_supports(digits, digits.data, 2, 0), 7, cpu)
    assert found is not None
    return found


class Knowing(nn.Module):
    """Says the instances of an image that it knows, at the stride of the image."""

    def __init__(self, source: Source, categories: tuple[int, ...]) -> None:
        super().__init__()
        images = source.evaluation_images
        self.known = {images[at][0].sum().item(): images[at][1] for at in range(len(images))}
        self.truth, self.categories = source.test, categories

    def forward(self, images: Tensor, references: References | None) -> Predictions:
        logits = torch.full((len(images), 4, len(self.categories) + 1), -SURE)
        masks = torch.full((len(images), 4, *images.shape[-2:]), -SURE)
        logits[..., -1] = SURE
        for place, image in enumerate(images):
            annotations = self.truth.imgToAnns[self.known[image.sum().item()]]
            for query, annotation in enumerate(annotations):
                logits[place, query, -1] = -SURE
                logits[place, query, self.categories.index(annotation["category_id"])] = SURE
                inside = torch.from_numpy(self.truth.annToMask(annotation)).bool()
                masks[place, query][inside] = SURE
        embeddings = torch.eye(4).expand(1, len(images), -1, -1)
        return Predictions(embeddings, logits[None], embeddings, masks)


@pytest.mark.parametrize("batch_size", [1, 5])
def test_a_network_that_knows_the_instances_is_judged_as_perfect(
    digits: Source, cpu: Fabric, batch_size: int
) -> None:
    categories = (3, 1, 2, 4, 5, 6, 7, 10, 9, 8)  # in any order
    knowing: Any = Knowing(digits, categories)
    found = detect(knowing, None, digits.evaluation_images, categories, cpu, batch_size, topk=4)
    metrics = digits.metrics(found, NOVEL, BASE)
    for name in ("segm_nAP", "segm_bAP", "bbox_nAP", "bbox_bAP", "segm_AP"):
        assert metrics[name] == pytest.approx(100), name


def test_every_test_image_is_judged_with_no_more_than_the_best_instances(
    network: RefT, cache: References, digits: Source, cpu: Fabric
) -> None:
    found = detect(network, cache, digits.evaluation_images, BASE, cpu, topk=3)
    of_image = [sum(one["image_id"] == number for one in found) for number in digits.test.imgs]
    assert 0 < max(of_image) <= 3
    assert {one["category_id"] for one in found} <= set(BASE)
    assert {tuple(one["segmentation"]["size"]) for one in found} == {(64, 64)}


def test_images_in_batches_are_judged_as_alone(
    network: RefT, cache: References, digits: Source, cpu: Fabric
) -> None:
    def in_order(batch_size: int) -> list[tuple[Any, ...]]:
        found = detect(network, cache, digits.evaluation_images, BASE, cpu, batch_size)
        return sorted((one["image_id"], one["category_id"], one["score"]) for one in found)

    together, alone = in_order(5), in_order(1)
    assert [one[:2] for one in together] == [one[:2] for one in alone]
    assert [one[2] for one in together] == pytest.approx([one[2] for one in alone], rel=1e-3)


def test_judging_leaves_the_network_as_it_is(
    network: RefT, cache: References, digits: Source, cpu: Fabric
) -> None:
    before = {name: value.clone() for name, value in network.state_dict().items()}
    detect(network, cache, digits.evaluation_images, BASE, cpu, 12)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_a_network_can_be_trained_after_it_was_judged(
    make_network: MakeNetwork, digits: Source, cpu: Fabric
) -> None:
    """What is kept between passes must not be of inference alone."""
    network = make_network(OFF, hidden_dim=96, num_heads=3)  # of a width that no other test has
    detect(network, None, digits.evaluation_images, BASE, cpu, 12)
    network(noise(1, 3, 64, 64)).class_logits.sum().backward()
    assert network.class_predictor.weight.grad is not None


def test_a_cache_has_all_examples_of_a_pool(
    network: RefT, cache: References, digits: Source, cpu: Fabric
) -> None:
    assert cache.present.all()
    assert not cache.rows.requires_grad
    assert cache.row_labels.bincount().tolist() == [2 * 5] * 7  # two examples with five queries each
    again = support_cache(network, base_supports(digits, digits.data, 2, 0), 7, cpu)
    assert again is not None
    assert torch.equal(again.rows, cache.rows)


def test_a_network_without_references_has_no_cache(
    make_network: MakeNetwork, digits: Source, cpu: Fabric
) -> None:
    assert support_cache(make_network(OFF), base_supports(digits, digits.data, 1, 0), 7, cpu) is None


# -- the beginning of few-shot learning ------------------------------------------------------------------


@pytest.fixture(scope="module")
def begin(digits: Source, cpu: Fabric, make_network: MakeNetwork) -> Callable[..., tuple[RefT, FewShot]]:
    """A base network and what few-shot learning begins with."""

    def go(
        setting: Any,
        classifier: str = "linear",
        references: ReferenceConfig | None = None,
        distill: DistillConfig | None = None,
        shots: int = 2,
        seed: int = 0,
        in_cache: bool = True,
    ) -> tuple[RefT, FewShot]:
        base = make_network(references, classifier=classifier)
        cache = support_cache(base, base_supports(digits, digits.data, 1, 0), 7, cpu) if in_cache else None
        return base, begin_few_shot(base, cache, digits, setting, shots, seed, distill, cpu)

    return go


@pytest.mark.parametrize(
    ("setting", "categories", "num_base", "learned"),
    [
        ("fsis", NOVEL, 0, NOVEL),
        ("gfsis", BASE + NOVEL, 7, BASE + NOVEL),
        ("ifsis", BASE + NOVEL, 7, NOVEL),
    ],
)
def test_a_setting_has_its_classes_and_its_shots(
    setting: str,
    categories: tuple[int, ...],
    num_base: int,
    learned: tuple[int, ...],
    begin: Callable[..., tuple[RefT, FewShot]],
) -> None:
    _, begun = begin(setting)
    assert begun.category_ids == categories
    assert begun.num_base == num_base
    assert begun.network.num_classes == len(categories)
    shown = [begun.category_ids[label] for record in begun.instances.records for label in record.labels]
    assert sorted(shown) == sorted(2 * learned)
    assert [begun.category_ids[label] for label in begun.pool.classes] == list(learned)
    assert (begun.base_references is not None) == (setting == "ifsis")
    assert begun.teacher is None


@pytest.mark.parametrize("classifier", ["linear", "cosine"])
@pytest.mark.parametrize("setting", ["gfsis", "ifsis"])
def test_rows_of_base_classes_and_of_no_object_stay_at_both_ends(
    setting: str, classifier: str, begin: Callable[..., tuple[RefT, FewShot]]
) -> None:
    base, begun = begin(setting, classifier)
    before, after = base.class_predictor.weight, begun.network.class_predictor.weight
    assert after.shape == (11, 32)
    assert torch.equal(after[:7], before[:7])
    assert torch.equal(after[-1], before[-1])


def test_fsis_keeps_the_row_of_no_object_alone(begin: Callable[..., tuple[RefT, FewShot]]) -> None:
    base, begun = begin("fsis")
    after = begun.network.class_predictor.weight
    assert after.shape == (4, 32)
    assert torch.equal(after[-1], base.class_predictor.weight[-1])


def test_the_rest_of_the_network_is_the_base_network_which_stays(
    begin: Callable[..., tuple[RefT, FewShot]], make_network: MakeNetwork
) -> None:
    base, begun = begin("gfsis")
    untouched = make_network().state_dict()
    for name, value in base.state_dict().items():
        assert torch.equal(value, untouched[name])
        if not name.startswith("class_predictor."):
            assert torch.equal(begun.network.state_dict()[name], value)
    with torch.no_grad():
        next(begun.network.parameters()).zero_()
    assert torch.equal(next(base.parameters()), next(make_network().parameters()))


def test_linear_rows_of_new_classes_are_small_and_differ_with_the_seed(
    begin: Callable[..., tuple[RefT, FewShot]],
) -> None:
    rows = [begin("gfsis", seed=seed)[1].network.class_predictor.weight[7:10] for seed in (0, 0, 1)]
    assert torch.equal(rows[0], rows[1])
    assert not torch.equal(rows[0], rows[2])
    assert rows[0].std().item() == pytest.approx(0.01, rel=0.3)


@pytest.mark.parametrize("setting", ["fsis", "ifsis"])
@pytest.mark.parametrize("references", [OFF, ReferenceConfig(selection="class", class_embedding=True)])
def test_cosine_rows_of_new_classes_are_the_mean_of_the_queries_that_fit_their_shots_best(
    setting: str, references: ReferenceConfig, begin: Callable[..., tuple[RefT, FewShot]]
) -> None:
    base, begun = begin(setting, "cosine", references)
    rows = begun.network.class_predictor.weight[begun.num_base :]
    supports = list(begun.pool.chunks(1))
    found: dict[int, list[Tensor]] = {}
    with torch.no_grad():
        base.eval()
        for one in supports:
            queries, masks = last_queries(base, one)
            target = F.interpolate(one.masks[None].float(), masks.shape[-2:], mode="area")[0, 0]
            p = masks.sigmoid()
            dice = [2 * (m * target).sum() / (m.sum() + target.sum() + 1) for m in p]
            best = queries[int(torch.stack(dice).argmax())]
            found.setdefault(int(one.labels), []).append(best / best.norm())
    for place in range(3):
        expected = torch.stack(found[begun.num_base + place]).mean(0)
        torch.testing.assert_close(rows[place], expected, rtol=1e-3, atol=1e-4)


def last_queries(network: RefT, support: Supports) -> tuple[Tensor, Tensor]:
    """Queries [Q, d] and mask logits [Q, h, w] of a plain Mask2Former with the same weights."""
    plain = RefT(network.network, OFF, network.num_classes).freeze_batch_norm()
    plain.load_state_dict(network.state_dict(), strict=False)
    found = plain.eval()(support.images)
    return found.queries[-1, 0], found.masks()[0]


def test_an_incremental_network_refers_to_the_kept_base_classes_and_the_new_ones(
    begin: Callable[..., tuple[RefT, FewShot]], cpu: Fabric
) -> None:
    _, begun = begin("ifsis", "cosine", distill=DistillConfig())
    found, kept = begun.references(cpu), begun.base_references
    assert found is not None and kept is not None
    assert found.present.tolist() == [True] * 10
    for level, theirs in zip(found.centres, kept.centres, strict=True):
        assert torch.equal(level[:7], theirs)
        assert (level[7:].abs().sum(1) > 0).all()
    assert sorted(set(found.row_labels.tolist())) == list(range(10))
    assert begun.teacher is not None
    assert begun.teacher.network.num_classes == 7
    assert begun.teacher.references is kept


def test_other_settings_refer_to_their_shots_alone(
    begin: Callable[..., tuple[RefT, FewShot]], cpu: Fabric
) -> None:
    _, begun = begin("fsis")
    found = begun.references(cpu)
    assert found is not None
    assert found.present.tolist() == [True] * 3
    assert found.row_labels.bincount().tolist() == [10] * 3


def test_only_ifsis_has_a_teacher(begin: Callable[..., tuple[RefT, FewShot]]) -> None:
    _, begun = begin("gfsis", distill=DistillConfig())
    assert begun.teacher is None


def test_a_begun_network_finds_instances_of_its_classes(
    begin: Callable[..., tuple[RefT, FewShot]], digits: Source, cpu: Fabric
) -> None:
    _, begun = begin("fsis")
    references = begun.references(cpu)
    found = detect(begun.network, references, digits.evaluation_images, begun.category_ids, cpu, 12)
    assert {one["category_id"] for one in found} <= set(NOVEL)
    assert digits.metrics(found, NOVEL, ())["segm_nAP"] >= 0


def test_a_network_of_other_classes_is_refused(
    make_network: MakeNetwork, digits: Source, cpu: Fabric
) -> None:
    base = make_network(OFF, num_classes=10)
    with pytest.raises(TenfoldError, match="knows 10 classes, the data has 7 base classes"):
        begin_few_shot(base, None, digits, "gfsis", 1, 0, None, cpu)


def test_ifsis_with_references_asks_for_the_cache_of_base_classes(
    begin: Callable[..., tuple[RefT, FewShot]],
) -> None:
    with pytest.raises(TenfoldError, match="needs the base network's support cache"):
        begin("ifsis", in_cache=False)


@pytest.mark.parametrize(("shots", "seed"), [(3, 0), (1, 7)])
def test_shots_that_were_not_composed_are_refused(
    shots: int, seed: int, begin: Callable[..., tuple[RefT, FewShot]]
) -> None:
    with pytest.raises(TenfoldError, match=f"no {shots} shots of seed {seed}"):
        begin("gfsis", shots=shots, seed=seed)


def test_base_supports_are_some_random_examples_of_each_base_class(digits: Source) -> None:
    pool = base_supports(digits, digits.data, 2, 0)
    everything = SupportPool(digits.base_instances, digits.data)
    assert pool.classes == tuple(range(7))
    assert len(pool) == 14 < len(everything)
    first, again, other = (
        torch.cat([chunk.images for chunk in base_supports(digits, digits.data, 2, seed).chunks(4)])
        for seed in (0, 0, 1)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
