"""From outputs to detections, nuScenes' form and its scores: against loops, pyquaternion and precision by hand."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from nuscenes.utils.data_classes import Box
from pyquaternion import Quaternion
from torch import Tensor

from tenfold.cmt.box_coding import encode_boxes
from tenfold.cmt.config import CLASSES
from tenfold.cmt.dataset import TestSamples
from tenfold.cmt.decoding import Detections, decode_detections
from tenfold.cmt.detector import Cmt
from tenfold.cmt.evaluation import Evaluator, Scores, detection_metrics
from tenfold.cmt.nuscenes_index import NuScenesIndex
from tenfold.cmt.samples import collate
from tenfold.cmt.submission import detections_as_json, submission_boxes, write_submission
from tenfold.shared.logging import TenfoldError

pytestmark = pytest.mark.usefixtures("cpu")


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def codes_of(batch: int = 2, queries: int = 50, spread: float = 30.0, seed: int = 0) -> Tensor:
    codes = noise(batch, queries, 10, seed=seed)
    return codes * torch.tensor([spread, spread, 0.3, 0.3, 5, 0.3, 1, 1, 2, 2])


# -- decoding --------------------------------------------------------------------------------------------


def looped(codes: Tensor, logits: Tensor, most: int) -> list[tuple[float, int, list[float]]]:
    """Score, label and box of the best pairs of query and class of one sample (section 1.9)."""
    pairs = [
        (1 / (1 + math.exp(-float(logits[query, label]))), label, query)
        for query in range(len(logits))
        for label in range(logits.shape[1])
    ]
    found = []
    for score, label, query in sorted(pairs, reverse=True)[:most]:
        x, y, log_length, log_width, z, log_height, sine, cosine, vx, vy = codes[query].tolist()
        if abs(x) > 61.2 or abs(y) > 61.2 or abs(z) > 10:
            continue
        height = math.exp(log_height)
        yaw = math.atan2(sine, cosine)
        box = [x, y, z - height / 2, math.exp(log_length), math.exp(log_width), height, yaw, vx, vy]
        found.append((score, label, box))
    return found


@pytest.mark.parametrize("most", [300, 40, 1])
def test_detections_are_the_best_pairs_of_query_and_class_inside_the_range(most: int) -> None:
    codes, logits = codes_of(), noise(2, 50, 10, seed=1)
    found = decode_detections(codes, logits, most)
    assert most < 300 or all(0 < len(one) < 300 for one in found)  # some are outside
    for sample, one in enumerate(found):
        expected = looped(codes[sample], logits[sample], most)
        assert len(one) == len(expected)
        assert one.labels.tolist() == [label for _, label, _ in expected]
        scores = torch.tensor([score for score, _, _ in expected])
        torch.testing.assert_close(one.scores, scores)
        boxes = torch.tensor([box for _, _, box in expected]).view(-1, 9)
        torch.testing.assert_close(one.boxes, boxes, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("axis", "limit"), [(0, 61.2), (1, 61.2), (4, 10.0)])
@pytest.mark.parametrize("sign", [-1, 1])
def test_the_middle_of_a_box_decides_whether_it_is_inside(axis: int, limit: float, sign: int) -> None:
    codes = torch.zeros(1, 2, 10)
    codes[0, :, axis] = sign * torch.tensor([limit - 0.01, limit + 0.01])
    codes[0, :, 5] = math.log(6.0)  # three metres above and below
    found = decode_detections(codes, torch.zeros(1, 2, 1))[0]
    column = 2 if axis == 4 else axis
    expected = sign * (limit - 0.01) - (3.0 if axis == 4 else 0.0)
    assert found.boxes[:, column].tolist() == pytest.approx([expected], abs=1e-4)


def test_fewer_pairs_than_are_asked_for_are_all_found() -> None:
    """Pitfall 9: the released code fails here."""
    found = decode_detections(torch.zeros(1, 7, 10), noise(1, 7, 10), 300)[0]
    assert len(found) == 70
    assert (found.scores.diff() <= 0).all()


def test_boxes_that_are_not_finite_are_dropped() -> None:
    codes = torch.zeros(1, 4, 10)
    codes[0, 0, 0], codes[0, 1, 5], codes[0, 2, 8] = math.nan, math.inf, math.nan
    found = decode_detections(codes, noise(1, 4, 2))[0]
    assert len(found) == 2
    assert found.boxes.isfinite().all()


def test_encoded_boxes_are_found_again() -> None:
    boxes = torch.tensor(
        [[3.0, -4.0, -1.0, 4.0, 1.8, 1.5, 0.7, 1.0, -2.0], [9.0, 9.0, 0.0, 1.0, 1.0, 2.0, -3.0, 0.0, 0.0]]
    )
    logits = torch.full((1, 2, 10), -9.0)
    logits[0, 0, 7], logits[0, 1, 2] = 3.0, 4.0
    found = decode_detections(encode_boxes(boxes)[None], logits, 2)[0]
    assert found.labels.tolist() == [2, 7]
    torch.testing.assert_close(found.boxes, boxes.flip(0), rtol=1e-4, atol=1e-4)


def test_detections_above_a_score_keep_their_order() -> None:
    found = decode_detections(codes_of(1), noise(1, 50, 10, seed=1))[0]
    sure = found.above(0.7)
    assert 0 < len(sure) < len(found)
    assert torch.equal(sure.boxes, found.boxes[: len(sure)])
    assert (sure.scores >= 0.7).all()
    assert (found.scores[len(sure) :] < 0.7).all()


def test_a_detector_finds_at_most_300_objects_in_each_sample(
    make_detector: Callable[..., Cmt], make_test_samples: Callable[..., TestSamples]
) -> None:
    samples, network = make_test_samples(), make_detector().eval()
    found = network.detect(collate([samples[0], samples[1]]))
    assert len(found) == 2
    assert all(0 < len(one) <= 300 for one in found)
    assert all((one.scores.diff() <= 0).all() for one in found)


# -- nuScenes' form --------------------------------------------------------------------------------------


def pose(seed: int) -> np.ndarray:
    """Any rotation and place, as a tilted vehicle has."""
    generator = np.random.default_rng(seed)
    matrix = Quaternion(generator.normal(size=4)).transformation_matrix
    matrix[:3, 3] = generator.normal(size=3) * (1, 1, 0.5)
    return matrix


def detections(
    boxes: Sequence[Sequence[float]], labels: Sequence[int], scores: Sequence[float]
) -> Detections:
    return Detections(
        torch.tensor(boxes, dtype=torch.float64).view(-1, 9),
        torch.tensor(scores, dtype=torch.float64),
        torch.tensor(labels),
    )


def some(count: int = 20) -> Detections:
    generator = np.random.default_rng(0)
    boxes = generator.normal(size=(count, 9)) * (8, 8, 1, 0, 0, 0, 1.5, 2, 2)
    boxes[:, 3:6] = np.exp(generator.normal(size=(count, 3)))
    return detections(boxes.tolist(), (np.arange(count) % 10).tolist(), np.linspace(0.9, 0.1, count).tolist())


def test_boxes_in_the_world_are_those_that_the_devkits_boxes_become() -> None:
    """Yaw counter-clockwise, then the LiDAR's and the vehicle's pose; w, l, h are width, length, height."""
    lidar2ego, ego2global = pose(1), pose(2)
    ego2global[:3, 3] += (600.0, 1600.0, 0.0)
    given = some()
    found = submission_boxes(given, lidar2ego, ego2global, "token")
    assert len(found) == len(given)
    for row, values in zip(found, given.boxes.tolist(), strict=True):
        x, y, bottom, length, width, height, yaw, vx, vy = values
        box = Box(
            [x, y, bottom + height / 2],
            [width, length, height],
            Quaternion(axis=[0, 0, 1], radians=yaw),
            velocity=(vx, vy, 0.0),
        )
        for matrix in (lidar2ego, ego2global):
            box.rotate(Quaternion(matrix=matrix[:3, :3]))
            box.translate(matrix[:3, 3])
        np.testing.assert_allclose(row["translation"], box.center, rtol=1e-6, atol=1e-5)
        np.testing.assert_allclose(row["size"], box.wlh, rtol=1e-6)
        np.testing.assert_allclose(row["velocity"], box.velocity[:2], rtol=1e-5, atol=1e-5)
        turned = np.array(row["rotation"])
        assert abs(float(turned @ box.orientation.q)) == pytest.approx(1, abs=1e-7)
        assert row["sample_token"] == "token"


def test_names_and_scores_stay_with_their_boxes() -> None:
    given = some()
    found = submission_boxes(given, np.eye(4), np.eye(4), "token")
    assert [row["detection_name"] for row in found] == [CLASSES[label] for label in given.labels.tolist()]
    assert [row["detection_score"] for row in found] == given.scores.tolist()


ATTRIBUTES = {
    "car": ("vehicle.moving", "vehicle.parked"),
    "truck": ("vehicle.moving", "vehicle.parked"),
    "construction_vehicle": ("vehicle.moving", "vehicle.parked"),
    "bus": ("vehicle.moving", "vehicle.stopped"),
    "trailer": ("vehicle.moving", "vehicle.parked"),
    "barrier": ("", ""),
    "motorcycle": ("cycle.with_rider", "cycle.without_rider"),
    "bicycle": ("cycle.with_rider", "cycle.without_rider"),
    "pedestrian": ("pedestrian.moving", "pedestrian.standing"),
    "traffic_cone": ("", ""),
}


@pytest.mark.parametrize("name", CLASSES)
def test_attributes_follow_from_class_and_speed(name: str) -> None:
    """Section 5: what is faster than 0.2 m/s moves, whichever way it goes."""
    label = CLASSES.index(name)
    boxes = [[1, 1, 0, 1, 1, 1, 0, vx, vy] for vx, vy in ((-0.21, 0), (0, 0.19), (0.15, -0.15), (0, 0))]
    given = detections(boxes, [label] * 4, [0.5] * 4)
    turned = Quaternion(axis=[0, 0, 1], radians=0.8).transformation_matrix
    found = submission_boxes(given, turned, turned, "token")
    moving, resting = ATTRIBUTES[name]
    assert [row["attribute_name"] for row in found] == [moving, resting, moving, resting]


RANGES = dict.fromkeys(("car", "truck", "bus", "trailer", "construction_vehicle"), 50.0)
RANGES |= {"pedestrian": 40.0, "motorcycle": 40.0, "bicycle": 40.0, "barrier": 30.0, "traffic_cone": 30.0}


@pytest.mark.parametrize("name", CLASSES)
def test_boxes_beyond_the_range_of_their_class_from_the_vehicle_are_dropped(name: str) -> None:
    """The LiDAR sits 2 m ahead of the vehicle's middle, high above it; height does not count."""
    lidar2ego = np.eye(4)
    lidar2ego[:3, 3] = (2.0, 0.0, 5.0)
    places = [
        (RANGES[name] - 2.1, 0.0),
        (RANGES[name] - 1.9, 0.0),
        (-RANGES[name] - 1.9, 0.0),
        (-RANGES[name] - 2.1, 0.0),
    ]
    boxes = [[x, y, 0, 1, 1, 1, 0, 0, 0] for x, y in places]
    given = detections(boxes, [CLASSES.index(name)] * 4, [0.9, 0.8, 0.7, 0.6])
    found = submission_boxes(given, lidar2ego, np.eye(4), "token")
    assert [row["detection_score"] for row in found] == [0.9, 0.7]


def test_of_more_than_500_boxes_the_best_are_kept_in_their_order() -> None:
    scores = np.random.default_rng(0).permutation(520) / 520
    given = detections([[1, 1, 0, 1, 1, 1, 0, 0, 0]] * 520, [0] * 520, scores.tolist())
    found = [row["detection_score"] for row in submission_boxes(given, np.eye(4), np.eye(4), "token")]
    assert found == [score for score in scores.tolist() if score >= 20 / 520]


def test_a_sample_without_detections_has_an_empty_list() -> None:
    assert submission_boxes(detections([], [], []), pose(1), pose(2), "token") == []


def test_a_submission_says_which_sensors_were_used(tmp_path: Path) -> None:
    results = {"token": submission_boxes(some(), np.eye(4), np.eye(4), "token"), "other": []}
    write_submission(tmp_path / "results.json", results, use_camera=True, use_lidar=False)
    content = json.loads((tmp_path / "results.json").read_text())
    assert content["meta"] == {
        "use_camera": True,
        "use_lidar": False,
        "use_radar": False,
        "use_map": False,
        "use_external": False,
    }
    assert content["results"] == results


def test_detections_for_other_programs_are_in_both_frames() -> None:
    given = some(3)
    ours = detections_as_json(given, lidar2ego=pose(1), ego2global=pose(2))
    theirs = submission_boxes(given, pose(1), pose(2), "token")
    for one, row, values in zip(ours, theirs, given.boxes.tolist(), strict=True):
        assert one["global"] == {key: row[key] for key in ("translation", "size", "rotation", "velocity")}
        assert one["lidar"]["centre"] == pytest.approx([*values[:2], values[2] + values[5] / 2])
        assert one["lidar"]["size"] == values[3:6]
        assert one["name"] == row["detection_name"]
    assert all("global" not in one for one in detections_as_json(given))


# -- scores ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def evaluator(test_index: NuScenesIndex) -> Evaluator:
    return Evaluator(test_index.root, test_index.version, test_index.split)


@pytest.fixture(scope="module")
def perfect(test_index: NuScenesIndex) -> dict[str, list[dict[str, Any]]]:
    """The annotations themselves as results."""
    results = {}
    for frame in test_index.keyframes:
        boxes = torch.from_numpy(frame.boxes[frame.visible])
        labels = torch.from_numpy(frame.labels[frame.visible])
        given = Detections(boxes, torch.full((len(labels),), 0.9), labels)
        results[frame.token] = submission_boxes(given, frame.lidar2ego, frame.ego2global, frame.token)
    return results


def test_the_truth_itself_is_judged_perfect(
    evaluator: Evaluator, perfect: dict[str, list[dict[str, Any]]]
) -> None:
    scores = evaluator.evaluate(perfect)
    present = {name for name, count in scores.truths.items() if count}
    assert present
    for name in CLASSES:
        assert scores.class_ap[name] == pytest.approx(1.0 if name in present else 0.0, abs=1e-6)
    for name in present:
        assert scores.class_errors[name]["ATE"] == pytest.approx(0, abs=1e-3)
        assert scores.class_errors[name]["ASE"] == pytest.approx(0, abs=1e-3)
        if name != "traffic_cone":
            assert scores.class_errors[name]["AOE"] == pytest.approx(0, abs=1e-3)
        if name not in ("traffic_cone", "barrier"):
            assert scores.class_errors[name]["AVE"] == pytest.approx(0, abs=1e-2)
    assert scores.mean_ap == pytest.approx(len(present) / 10, abs=1e-6)


def test_no_detections_at_all_are_judged_too(evaluator: Evaluator) -> None:
    scores = evaluator.evaluate({token: [] for token in evaluator.tokens})
    assert scores.mean_ap == 0
    assert scores.detection_score == 0


def test_the_devkits_own_files_are_written_on_demand(
    evaluator: Evaluator, perfect: dict[str, list[dict[str, Any]]], tmp_path: Path
) -> None:
    scores = evaluator.evaluate(perfect, tmp_path / "scores")
    summary = json.loads((tmp_path / "scores/metrics_summary.json").read_text())
    assert summary["mean_ap"] == pytest.approx(scores.mean_ap)
    assert summary["nd_score"] == pytest.approx(scores.detection_score)
    assert (tmp_path / "scores/metrics_details.json").is_file()


def test_the_tokens_judged_are_those_of_the_split(evaluator: Evaluator, test_index: NuScenesIndex) -> None:
    assert sorted(evaluator.tokens) == sorted(frame.token for frame in test_index.keyframes)


def test_a_sample_without_results_is_refused_by_name(
    evaluator: Evaluator, perfect: dict[str, list[dict[str, Any]]]
) -> None:
    lacking, *rest = perfect
    with pytest.raises(TenfoldError, match=f"have no results, {lacking}"):
        evaluator.evaluate({token: perfect[token] for token in rest})


def test_results_of_another_split_are_refused(
    evaluator: Evaluator, perfect: dict[str, list[dict[str, Any]]]
) -> None:
    with pytest.raises(TenfoldError, match="strange for instance"):
        evaluator.evaluate({**perfect, "strange": []})


def test_more_than_500_boxes_are_refused(
    evaluator: Evaluator, perfect: dict[str, list[dict[str, Any]]]
) -> None:
    token = next(iter(perfect))
    with pytest.raises(TenfoldError, match="501 boxes"):
        evaluator.evaluate({**perfect, token: perfect[token][:1] * 501})


def test_a_split_that_does_not_exist_is_refused(test_index: NuScenesIndex) -> None:
    with pytest.raises(TenfoldError, match="nowhere"):
        Evaluator(test_index.root, test_index.version, "nowhere")


def test_a_folder_without_tables_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TenfoldError, match="has no tables"):
        Evaluator(tmp_path, "v1.0-mini", "mini_val")


# -- precision by hand -----------------------------------------------------------------------------------


def placed(name: str, x: float, score: float = -1.0, **changes: Any) -> dict[str, Any]:
    """A box of nuScenes' form at (x, 0)."""
    return {
        "sample_token": "one",
        "translation": [x, 0.0, 0.0],
        "size": [2.0, 4.0, 1.5],
        "rotation": [1.0, 0.0, 0.0, 0.0],
        "velocity": [0.0, 0.0],
        "detection_name": name,
        "detection_score": score,
        "attribute_name": "vehicle.parked",
        **changes,
    }


def judged(truth: list[dict[str, Any]], found: list[dict[str, Any]]) -> Scores:
    return detection_metrics({"one": truth}, {"one": found})


def test_half_of_the_boxes_found_surely_are_40_of_90_points_of_recall() -> None:
    scores = judged([placed("car", 0), placed("car", 20)], [placed("car", 0, 0.9)])
    assert scores.class_ap["car"] == pytest.approx(40 / 90)
    curve = scores.curves["car"][2.0]
    np.testing.assert_allclose(curve.recall, np.linspace(0, 1, 101), atol=1e-9)
    np.testing.assert_allclose(curve.precision, [1.0] * 51 + [0.0] * 50, atol=1e-9)


def test_a_false_detection_before_the_true_one_tilts_the_curve() -> None:
    """Precision runs from 0 to 1/2 at recall 1/2, on the line p = r; what is above a tenth counts."""
    scores = judged([placed("car", 0), placed("car", 20)], [placed("car", 90, 0.9), placed("car", 0, 0.5)])
    line = [number / 100 if number <= 50 else 0.0 for number in range(101)]
    np.testing.assert_allclose(scores.curves["car"][2.0].precision, line, atol=1e-9)
    expected = sum(max(value - 0.1, 0) for value in line[11:]) / 90 / 0.9
    assert scores.class_ap["car"] == pytest.approx(expected)


def test_distance_decides_by_threshold() -> None:
    scores = judged([placed("car", 0)], [placed("car", 1.5, 0.9)])
    assert scores.threshold_ap["car"] == pytest.approx({0.5: 0.0, 1.0: 0.0, 2.0: 1.0, 4.0: 1.0})
    assert scores.class_ap["car"] == pytest.approx(0.5)
    assert scores.class_errors["car"]["ATE"] == pytest.approx(1.5)
    np.testing.assert_allclose(scores.mean_curves()["car"].precision, 0.5, atol=1e-9)


def test_errors_are_those_of_the_pair() -> None:
    turned = Quaternion(axis=[0, 0, 1], radians=0.3).q.tolist()
    found = placed(
        "car",
        0,
        0.9,
        rotation=turned,
        velocity=[0.6, 0.8],
        size=[2.0, 2.0, 1.5],
        attribute_name="vehicle.moving",
    )
    errors = judged([placed("car", 0)], [found]).class_errors["car"]
    assert errors == pytest.approx({"ATE": 0.0, "ASE": 0.5, "AOE": 0.3, "AVE": 1.0, "AAE": 1.0}, abs=1e-6)


def test_errors_that_are_not_defined_for_a_class_are_no_numbers() -> None:
    empty = {"attribute_name": ""}
    scores = judged(
        [placed("traffic_cone", 0, **empty), placed("barrier", 9, **empty)],
        [placed("traffic_cone", 0, 0.9, **empty), placed("barrier", 9, 0.9, **empty)],
    )
    undefined = {
        name: {error for error, value in scores.class_errors[name].items() if math.isnan(value)}
        for name in ("traffic_cone", "barrier", "car")
    }
    assert undefined == {"traffic_cone": {"AOE", "AVE", "AAE"}, "barrier": {"AVE", "AAE"}, "car": set()}


def test_the_detection_score_is_half_precision_and_half_errors() -> None:
    found = placed("car", 0.4, 0.9, velocity=[0.3, 0.0])
    scores = judged([placed("car", 0)], [found])
    errors = sum(1 - min(1.0, value) for value in scores.errors.values())
    assert scores.mean_ap == pytest.approx(0.1)
    assert scores.detection_score == pytest.approx((5 * scores.mean_ap + errors) / 10)


def test_metrics_are_flat_and_in_hundreds() -> None:
    scores = judged([placed("car", 0)], [placed("car", 0.4, 0.9)])
    found = scores.metrics()
    names = ["mAP", "NDS", "mATE", "mASE", "mAOE", "mAVE", "mAAE", *(f"AP {name}" for name in CLASSES)]
    assert list(found) == names
    assert found["AP car"] == pytest.approx(100)
    assert found["mAP"] == pytest.approx(10)
    assert found["NDS"] == pytest.approx(100 * scores.detection_score)
    assert found["mATE"] == pytest.approx(100 * (0.4 + 9) / 10)  # classes that are not found count 1 m


def test_truths_are_counted_by_class() -> None:
    scores = judged([placed("car", 0), placed("car", 9), placed("bus", 20)], [])
    assert {name: count for name, count in scores.truths.items() if count} == {"car": 2, "bus": 1}


def test_boxes_of_other_samples_than_the_truths_are_refused() -> None:
    with pytest.raises(TenfoldError, match="same samples"):
        detection_metrics({"one": []}, {"two": []})
