"""Denoising, matching and losses against loops, scipy and formulas."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from lightning_fabric import Fabric
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from tenfold.cmt.assignment import assign, box_costs, class_costs, matching_costs
from tenfold.cmt.box_coding import box_codes, decode_boxes, encode_boxes
from tenfold.cmt.config import HeadConfig, LossConfig
from tenfold.cmt.denoising import BACKGROUND, EMPTY, Denoising, num_groups, prepare_denoising
from tenfold.cmt.head import Predictions
from tenfold.cmt.losses import (
    LOSSES,
    box_loss,
    by_released_names,
    detection_losses,
    focal_loss,
    mean_over_processes,
)

pytestmark = pytest.mark.usefixtures("cpu")

CONFIG, HEAD = LossConfig(), HeadConfig()
WEIGHTS = torch.tensor(CONFIG.code_weights)
LOW, EXTENT = torch.tensor([-54.0, -54.0, -5.0]), torch.tensor([108.0, 108.0, 8.0])
LAYERS, QUERIES, CLASSES = 3, 12, 10
SIZES = {"center": 2, "height": 1, "dim": 3, "rot": 2, "vel": 2, "cls_logits": CLASSES}


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def truth(*counts: int, seed: int = 0) -> tuple[Tensor, Tensor, tuple[int, ...]]:
    """Boxes [B, G, 9] and labels [B, G] of samples with so many boxes."""
    batch, most = len(counts), max(counts)
    generator = torch.Generator().manual_seed(seed)
    boxes = torch.randn(batch, most, 9, generator=generator) * torch.tensor([9.0, 9, 0.3, 1, 1, 1, 1.5, 2, 2])
    boxes[..., 3:6] = (0.3 * boxes[..., 3:6]).exp() * torch.tensor([4.0, 1.9, 1.6])
    labels = torch.randint(0, CLASSES, (batch, most), generator=generator)
    for sample, count in enumerate(counts):
        boxes[sample, count:], labels[sample, count:] = 0, -1
    return boxes, labels, counts


def outputs_of(batch: int, queries: int = QUERIES, seed: int = 0) -> dict[str, Tensor]:
    return {
        name: noise(LAYERS, batch, queries, size, seed=seed + place).requires_grad_()
        for place, (name, size) in enumerate(SIZES.items())
    }


# -- noised queries --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("counts", "queries", "most", "expected"),
    [
        ((3, 5), 900, 10, 10),
        ((100, 2), 900, 10, 9),
        ((450,), 900, 10, 2),
        ((900,), 900, 10, 1),
        ((901,), 900, 10, 0),
        ((0, 0), 900, 10, 0),
        ((), 900, 10, 0),
        ((3,), 900, 0, 0),
    ],
)
def test_there_are_as_many_groups_as_queries_have_room_for(
    counts: tuple[int, ...], queries: int, most: int, expected: int
) -> None:
    assert num_groups(counts, queries, most) == expected


def noised(
    boxes: Tensor,
    labels: Tensor,
    counts: tuple[int, ...],
    config: LossConfig = CONFIG,
    queries: int = 900,
    **given: Any,
) -> Denoising | None:
    given = given or {"generator": torch.Generator().manual_seed(0)}
    return prepare_denoising(boxes, labels, counts, queries, LOW, EXTENT, config, **given)


@pytest.mark.parametrize(
    "config", [CONFIG, LossConfig(noise_scale=0.4, noise_translation=0.5, noise_split=0.6)]
)
def test_noised_queries_are_those_of_a_loop_over_groups_and_boxes(config: LossConfig) -> None:
    """Section 1.7: shifts by half sizes that yaw does not turn; labels beyond the split are background."""
    boxes, labels, counts = truth(3, 1, 0)
    boxes[0, 0, :2] = torch.tensor([53.9, -53.9])  # noise carries it beyond the range
    u = torch.rand(10, 3, 3, 3, generator=torch.Generator().manual_seed(1))
    found = noised(boxes, labels, counts, config, noise=u)
    assert found is not None
    assert (found.groups, found.total, found.size) == (10, 40, 30)
    for group in range(10):
        for sample, count in enumerate(counts):
            for j in range(3):
                place = j + 3 * group
                if j >= count:
                    assert found.points[sample, place].tolist() == [0, 0, 0]
                    assert found.labels[sample, place] == EMPTY
                    continue
                x, y, bottom, length, width, height = boxes[sample, j, :6].tolist()
                shift = [2 * value - 1 for value in u[group, sample, j].tolist()]
                for axis, (middle, side) in enumerate(
                    ((x, length), (y, width), (bottom + height / 2, height))
                ):
                    moved = middle + shift[axis] * (side / 2 + config.noise_translation) * config.noise_scale
                    part = min(max((moved - float(LOW[axis])) / float(EXTENT[axis]), 0), 1)
                    assert float(found.points[sample, place, axis]) == pytest.approx(part, abs=1e-5)
                far = math.hypot(*shift) > config.noise_split
                assert found.labels[sample, place] == (BACKGROUND if far else labels[sample, j])
                assert torch.equal(found.boxes[sample, place], boxes[sample, j])


def test_noised_queries_stay_in_the_range() -> None:
    boxes, labels, counts = truth(20)
    boxes[..., :2] = 54.0
    found = noised(boxes, labels, counts)
    assert found is not None
    assert (found.points >= 0).all()
    assert (found.points <= 1).all()
    assert (found.points[..., 0] == 1).any()


def test_a_share_of_779_in_a_thousand_is_relabelled_background() -> None:
    """A ball of radius 0.75 in a cube of side 2 leaves 1 - 4 / 3 pi 0.75^3 / 8."""
    boxes, labels, counts = truth(3000)
    found = noised(boxes, labels, counts, queries=30_000)
    assert found is not None
    share = float((found.labels == BACKGROUND).float().mean())
    assert share == pytest.approx(1 - math.pi * 0.75**3 / 6, abs=4 * math.sqrt(0.17 / 30_000))


def test_noise_repeats_with_its_generator_and_fills_the_box() -> None:
    boxes, labels, counts = truth(200)
    first, again, other = (
        noised(boxes, labels, counts, queries=2000, generator=torch.Generator().manual_seed(seed))
        for seed in (0, 0, 1)
    )
    assert first is not None
    assert again is not None
    assert other is not None
    assert torch.equal(first.points, again.points)
    assert not torch.equal(first.points, other.points)
    middles = boxes[..., :3] + boxes[..., 3:6] * torch.tensor([0, 0, 0.5])
    metric = first.points.view(1, 10, 200, 3) * EXTENT + LOW
    shift = ((metric - middles[:, None]) / (boxes[:, None, :, 3:6] / 2)).flatten(0, 2)
    inside = ((first.points > 0) & (first.points < 1)).all(-1).flatten()
    torch.testing.assert_close(shift[inside].amin(0), -torch.ones(3), rtol=0, atol=0.02)
    torch.testing.assert_close(shift[inside].amax(0), torch.ones(3), rtol=0, atol=0.02)


@pytest.mark.parametrize(
    ("counts", "changes", "queries"),
    [((0, 0), {}, 900), ((13, 2), {}, 12), ((3, 2), {"denoising_groups": 0}, 900)],
    ids=["no box", "more boxes than queries", "switched off"],
)
def test_there_is_no_denoising_where_there_is_nothing_to_noise(
    counts: tuple[int, ...], changes: dict[str, Any], queries: int
) -> None:
    assert noised(*truth(*counts), LossConfig(**changes), queries) is None


def test_the_mask_lets_groups_see_themselves_and_learnt_queries_and_these_only_themselves() -> None:
    found = noised(*truth(2, 1), LossConfig(denoising_groups=3), 4)
    assert found is not None
    assert found.groups == 2  # four queries over two boxes
    allowed = found.allowed(4)
    names = [0, 0, 1, 1, "learnt", "learnt", "learnt", "learnt"]
    for row, looking in enumerate(names):
        for column, seen in enumerate(names):
            assert bool(allowed[row, column]) == (seen == "learnt" or looking == seen)


# -- costs -----------------------------------------------------------------------------------------------


def test_class_costs_are_the_focal_costs_of_each_pair() -> None:
    logits, labels = 3 * noise(2, 5, CLASSES), torch.tensor([[1, 4, 9], [0, 0, 3]])
    found = class_costs(logits, labels)
    assert found.shape == (2, 5, 3)
    for sample in range(2):
        for query in range(5):
            for box in range(3):
                p = 1 / (1 + math.exp(-float(logits[sample, query, labels[sample, box]])))
                positive = -math.log(p + 1e-12) * 0.25 * (1 - p) ** 2
                negative = -math.log(1 - p + 1e-12) * 0.75 * p**2
                expected = positive - negative
                assert float(found[sample, query, box]) == pytest.approx(expected, rel=1e-3, abs=1e-5)


def test_box_costs_are_weighted_distances_without_velocity() -> None:
    codes, targets = noise(5, 10), noise(3, 10, seed=1)
    found = box_costs(codes, targets, WEIGHTS)
    for query in range(5):
        for box in range(3):
            expected = sum(
                w * abs(float(codes[query, i] - targets[box, i]))
                for i, w in enumerate([2, 2, 1, 1, 1, 1, 1, 1])
            )
            assert float(found[query, box]) == pytest.approx(expected, rel=1e-5)


def test_the_cost_is_two_parts_of_class_and_a_quarter_of_box() -> None:
    boxes, labels, _ = truth(3, 3)
    codes, logits = noise(LAYERS, 2, 5, 10), noise(LAYERS, 2, 5, CLASSES, seed=1)
    targets = encode_boxes(boxes)
    found = matching_costs(codes, logits, targets, labels, CONFIG)
    for layer in range(LAYERS):
        for sample in range(2):
            one = 2.0 * class_costs(logits[layer, sample], labels[sample])
            other = 0.25 * box_costs(codes[layer, sample], targets[sample], WEIGHTS)
            torch.testing.assert_close(found[layer, sample], one + other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_queries_that_are_no_numbers_have_finite_costs_and_are_matched_last(value: float) -> None:
    boxes, labels, counts = truth(3)
    codes, logits = noise(1, 1, 5, 10), noise(1, 1, 5, CLASSES, seed=1)
    codes[..., 2] = value
    codes[0, 0, 1:4] = encode_boxes(boxes)[0]
    costs = matching_costs(codes, logits, encode_boxes(boxes), labels, CONFIG)
    assert costs.isfinite().all()
    assert sorted(assign(costs, counts).queries[0, 0].tolist()) == [1, 2, 3]


# -- assignment ------------------------------------------------------------------------------------------


def test_every_layer_and_sample_is_assigned_as_scipy_does() -> None:
    counts = (4, 2, 0)
    costs = noise(LAYERS, 3, 6, 4)
    found = assign(costs, counts)
    assert found.count == 6
    for layer in range(LAYERS):
        for sample, count in enumerate(counts):
            queries, boxes = linear_sum_assignment(costs[layer, sample, :, :count].numpy())
            expected = {int(box): int(query) for query, box in zip(queries, boxes, strict=True)}
            matched = found.matched[layer, sample].tolist()
            assert matched == [box < count for box in range(4)]
            chosen = found.queries[layer, sample].tolist()
            assert {box: chosen[box] for box in range(count)} == expected


def test_with_more_boxes_than_queries_the_cheapest_are_matched() -> None:
    costs = noise(1, 2, 3, 7)
    found = assign(costs, (7, 5))
    assert found.count == 6
    for sample, count in enumerate((7, 5)):
        queries, boxes = linear_sum_assignment(costs[0, sample, :, :count].numpy())
        assert found.matched[0, sample].nonzero().flatten().tolist() == sorted(boxes.tolist())
        assert found.queries[0, sample][torch.from_numpy(boxes)].tolist() == queries.tolist()


def test_a_batch_without_a_box_has_nothing_to_assign() -> None:
    found = assign(torch.zeros(LAYERS, 2, 5, 0), (0, 0))
    assert found.count == 0
    assert found.queries.shape == found.matched.shape == (LAYERS, 2, 0)


# -- single losses ---------------------------------------------------------------------------------------


def focal(logit: float, positive: bool) -> float:
    p = 1 / (1 + math.exp(-logit))
    return -math.log(p) * 0.25 * (1 - p) ** 2 if positive else -math.log(1 - p) * 0.75 * p**2


def test_the_focal_loss_is_its_formula_summed_over_queries_and_classes() -> None:
    logits = 2 * noise(2, 2, 3, 4)
    labels = torch.tensor([[0, -1, 3], [BACKGROUND, 2, 1]])
    kept = torch.tensor([[True, True, False], [True, True, True]])
    found = focal_loss(logits, labels[None], kept, CONFIG)
    for layer in range(2):
        expected = sum(
            focal(float(logits[layer, sample, query, c]), c == int(labels[sample, query]))
            for sample in range(2)
            for query in range(3)
            for c in range(4)
            if kept[sample, query]
        )
        assert float(found[layer]) == pytest.approx(expected, rel=1e-4)


def test_the_box_loss_is_the_weighted_distance_of_rows_that_count() -> None:
    codes, targets = noise(2, 1, 4, 10), noise(1, 1, 4, 10, seed=1)
    kept = torch.tensor([[[True, False, True, True]]])
    found = box_loss(codes, targets, kept, WEIGHTS)
    for layer in range(2):
        expected = sum(
            float(((codes[layer, 0, row] - targets[0, 0, row]).abs() * WEIGHTS).sum()) for row in (0, 2, 3)
        )
        assert float(found[layer]) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_targets_that_are_not_finite_are_left_out_with_their_gradients(value: float) -> None:
    codes, targets = noise(1, 1, 3, 10).requires_grad_(), noise(1, 1, 3, 10, seed=1)
    targets[0, 0, 1, 2] = value
    kept = torch.ones(1, 1, 3, dtype=torch.bool)
    box_loss(codes, targets, kept, WEIGHTS).sum().backward()
    assert codes.grad is not None
    assert codes.grad.isfinite().all()
    assert not codes.grad[0, 0, 1].any()
    assert codes.grad[0, 0, [0, 2]].all()


# -- all losses ------------------------------------------------------------------------------------------


def losses_of(
    outputs: dict[str, Tensor],
    given: tuple[Tensor, Tensor, tuple[int, ...]],
    denoising: Denoising | None = None,
    noised_outputs: dict[str, Tensor] | None = None,
    config: LossConfig = CONFIG,
    head: HeadConfig = HEAD,
) -> Tensor:
    return detection_losses(Predictions(outputs, noised_outputs), *given, config, head, denoising)


def joined(outputs: dict[str, Tensor]) -> Tensor:
    return torch.cat([outputs[name] for name in ("center", "height", "dim", "rot", "vel")], -1).detach()


def plain_losses(
    outputs: dict[str, Tensor], given: tuple[Tensor, Tensor, tuple[int, ...]], config: LossConfig = CONFIG
) -> tuple[list[float], list[float]]:
    """Class and box losses of every layer, box by box (section 1.6)."""
    boxes, labels, counts = given
    codes, logits = joined(outputs), outputs["cls_logits"].detach()
    targets = encode_boxes(boxes)
    layers, batch, queries, _ = codes.shape
    class_rows, box_rows = [], []
    for layer in range(layers):
        classes = distances = 0.0
        matches = 0
        for sample, count in enumerate(counts):
            one = 2.0 * class_costs(logits[layer, sample], labels[sample, :count])
            cost = one + 0.25 * box_costs(codes[layer, sample], targets[sample, :count], WEIGHTS)
            chosen, found = linear_sum_assignment(cost.numpy())
            pairs = dict(zip(chosen.tolist(), found.tolist(), strict=True))
            matches += len(pairs)
            for query in range(queries):
                label = int(labels[sample, pairs[query]]) if query in pairs else -1
                row = logits[layer, sample, query].tolist()
                classes += sum(focal(value, c == label) for c, value in enumerate(row))
            for query, box in pairs.items():
                difference = (codes[layer, sample, query] - targets[sample, box]).abs() * WEIGHTS
                distances += float(difference.sum())
        normaliser = max(1.0, matches + config.background_weight * (batch * queries - matches))
        class_rows.append(config.class_weight * classes / normaliser)
        box_rows.append(config.box_weight * distances / max(1, matches))
    return class_rows, box_rows


@pytest.mark.parametrize(
    "counts",
    [(4, 2), (3, 0), (1, 1), (15, 3)],
    ids=["both", "one empty", "single", "more boxes than queries"],
)
def test_losses_are_those_of_a_loop_over_layers_samples_and_boxes(counts: tuple[int, ...]) -> None:
    outputs, given = outputs_of(len(counts)), truth(*counts)
    found = losses_of(outputs, given)
    classes, boxes = plain_losses(outputs, given)
    assert found.shape == (4, LAYERS)
    torch.testing.assert_close(found[0], torch.tensor(classes), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found[1], torch.tensor(boxes), rtol=1e-4, atol=1e-5)
    assert not found[2:].any()


def test_weights_of_the_configuration_act_on_their_losses() -> None:
    outputs, given = outputs_of(2), truth(4, 2)
    config = LossConfig(class_weight=3.0, box_weight=0.5, background_weight=0.0)
    found = losses_of(outputs, given, config=config)
    classes, boxes = plain_losses(outputs, given, config)
    torch.testing.assert_close(found[0], torch.tensor(classes), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found[1], torch.tensor(boxes), rtol=1e-4, atol=1e-5)


def test_noised_queries_learn_their_labels_and_even_as_background_their_boxes() -> None:
    given = truth(3, 1)
    denoising = noised(*given, config=LossConfig(denoising_groups=2))
    assert denoising is not None
    outputs, noised_outputs = outputs_of(2), outputs_of(2, denoising.size, seed=20)
    config = LossConfig(denoising_weight=0.7)
    found = losses_of(outputs, given, denoising, noised_outputs, config).detach()
    codes, targets = joined(noised_outputs), encode_boxes(denoising.boxes)
    count = 2 * (3 + 1)
    assert denoising.total == count
    assert (denoising.labels == BACKGROUND).any()
    for layer in range(LAYERS):
        classes = distances = 0.0
        for sample in range(2):
            for place in range(denoising.size):
                label = int(denoising.labels[sample, place])
                if label == EMPTY:
                    continue
                row = noised_outputs["cls_logits"][layer, sample, place].tolist()
                classes += sum(focal(value, c == label) for c, value in enumerate(row))
                difference = (codes[layer, sample, place] - targets[sample, place]).abs() * WEIGHTS
                distances += float(difference.sum())
        normaliser = max(1.0, count * 3.14159 / 6 * 0.75**3)
        assert float(found[2, layer]) == pytest.approx(0.7 * 2.0 * classes / normaliser, rel=1e-4)
        assert float(found[3, layer]) == pytest.approx(0.7 * 0.25 * distances / count, rel=1e-4)


def gradients(outputs: dict[str, Tensor], loss: Tensor) -> dict[str, Tensor]:
    found = torch.autograd.grad(loss, list(outputs.values()), allow_unused=True)
    return {
        name: torch.zeros_like(output) if one is None else one
        for (name, output), one in zip(outputs.items(), found, strict=True)
    }


def test_without_a_box_all_queries_are_background_and_boxes_teach_nothing() -> None:
    outputs = outputs_of(2)
    given = (torch.zeros(2, 0, 9), torch.zeros(2, 0, dtype=torch.int64), (0, 0))
    losses = losses_of(outputs, given)
    found = losses.detach()
    logits = outputs["cls_logits"].detach()
    for layer in range(LAYERS):
        total = sum(focal(value, False) for value in logits[layer].flatten().tolist())
        assert float(found[0, layer]) == pytest.approx(2.0 * total / (0.1 * 2 * QUERIES), rel=1e-4)
    assert not found[1:].any()
    reached = gradients(outputs, losses.sum())
    assert all(value.isfinite().all() for value in reached.values())
    assert reached["cls_logits"].any()
    assert not any(reached[name].any() for name in SIZES if name != "cls_logits")


def test_few_queries_without_a_box_are_normalised_by_one() -> None:
    outputs = outputs_of(1, queries=3)
    given = (torch.zeros(1, 0, 9), torch.zeros(1, 0, dtype=torch.int64), (0,))
    found = losses_of(outputs, given).detach()
    total = sum(focal(value, False) for value in outputs["cls_logits"][0].flatten().tolist())
    assert float(found[0, 0]) == pytest.approx(2.0 * total, rel=1e-4)


def test_a_box_without_size_is_matched_but_its_codes_teach_nothing() -> None:
    boxes, labels, counts = truth(3)
    boxes[0, 1, 4] = 0  # log 0
    outputs = outputs_of(1)
    found = losses_of(outputs, (boxes, labels, counts))
    reached = gradients(outputs, found.sum())
    assert found.isfinite().all()
    assert all(value.isfinite().all() for value in reached.values())
    taught = (reached["vel"].abs().amax(-1) > 0).sum(-1)
    assert taught.tolist() == [[2]] * LAYERS


def test_unmatched_queries_get_no_box_gradient_and_matched_ones_do() -> None:
    outputs = outputs_of(2)
    reached = gradients(outputs, losses_of(outputs, truth(4, 2)).sum())
    taught = (reached["center"].abs().amax(-1) > 0).sum(-1)
    assert taught.tolist() == [[4, 2]] * LAYERS
    assert reached["cls_logits"].abs().amax(-1).all()


def test_places_behind_the_last_box_have_no_effect() -> None:
    outputs, (boxes, labels, counts) = outputs_of(2), truth(4, 2)
    wide = torch.cat((boxes, torch.full((2, 3, 9), 7.0)), 1)
    padded = torch.cat((labels, torch.full((2, 3), -1)), 1)
    torch.testing.assert_close(
        losses_of(outputs, (wide, padded, counts)), losses_of(outputs, (boxes, labels, counts))
    )


def test_perfect_boxes_have_no_box_loss() -> None:
    given = truth(4)
    codes = encode_boxes(given[0])[:, torch.arange(QUERIES) % 4].repeat(LAYERS, 1, 1, 1)
    parts = codes.split((2, 1, 3, 2, 2), -1)
    outputs = dict(zip(SIZES, (*parts, noise(LAYERS, 1, QUERIES, CLASSES)), strict=True))
    assert losses_of(outputs, given)[1].abs().max() < 1e-4


def test_predictions_that_are_no_numbers_give_losses_that_are() -> None:
    """Section 1.6: nan_to_num on both."""
    outputs = {name: value.detach().clone() for name, value in outputs_of(1).items()}
    outputs["cls_logits"][0, 0, 0, 0] = math.nan
    assert losses_of(outputs, truth(2)).isfinite().all()


def test_losses_bear_the_released_names() -> None:
    losses = torch.arange(12.0).view(4, 3)
    found = {name: float(value) for name, value in by_released_names(losses).items()}
    expected = {}
    for row, name in enumerate(("loss_cls", "loss_bbox", "dn_loss_cls", "dn_loss_bbox")):
        expected.update({f"d0.{name}": 3.0 * row, f"d1.{name}": 3.0 * row + 1, name: 3.0 * row + 2})
    assert found == expected
    assert tuple(LOSSES) == ("loss_cls", "loss_bbox", "dn_loss_cls", "dn_loss_bbox")


@pytest.mark.parametrize(("count", "expected"), [(0, 1), (1, 1), (37, 37)])
def test_one_process_has_its_own_count_and_at_least_one(cpu: Fabric, count: int, expected: int) -> None:
    for fabric in (None, cpu):
        assert float(mean_over_processes(count, fabric, torch.device("cpu"))) == expected


# -- codes and their orders ------------------------------------------------------------------------------


def test_codes_are_metric_middles_logarithms_and_directions() -> None:
    box = torch.tensor([1.0, 2.0, -1.0, 4.0, 2.0, 1.5, 0.5, 3.0, -3.0])
    expected = [
        1.0,
        2.0,
        math.log(4),
        math.log(2),
        -0.25,
        math.log(1.5),
        math.sin(0.5),
        math.cos(0.5),
        3.0,
        -3.0,
    ]
    torch.testing.assert_close(encode_boxes(box), torch.tensor(expected))


def test_decoded_codes_are_the_boxes_with_z_in_their_middles() -> None:
    boxes, _, _ = truth(50)
    found = decode_boxes(encode_boxes(boxes))
    expected = boxes.clone()
    expected[..., 2] += boxes[..., 5] / 2
    expected[..., 6] = torch.atan2(boxes[..., 6].sin(), boxes[..., 6].cos())
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


NUMBERED = {name: torch.arange(size) + 10.0 * place for place, (name, size) in enumerate(SIZES.items())}


def test_the_released_order_joins_outputs_as_they_come() -> None:
    """Section 1.5: height is read as log length, dim as log width, middle and log height."""
    assert box_codes(NUMBERED, "official").tolist() == [0, 1, 10, 20, 21, 22, 30, 31, 40, 41]


def test_the_natural_order_puts_height_and_sizes_into_their_columns() -> None:
    assert box_codes(NUMBERED, "natural").tolist() == [0, 1, 20, 21, 10, 22, 30, 31, 40, 41]


def test_losses_read_outputs_in_the_order_of_the_head() -> None:
    outputs, given = outputs_of(1), truth(3)
    natural = losses_of(outputs, given, head=replace(HEAD, regression_order="natural"))
    swapped = {**outputs, "height": outputs["dim"][..., :1]}
    swapped["dim"] = torch.cat((outputs["dim"][..., 1:2], outputs["height"], outputs["dim"][..., 2:]), -1)
    torch.testing.assert_close(natural, losses_of(swapped, given))
    assert not torch.allclose(natural, losses_of(outputs, given))


def test_closer_predictions_have_lower_losses() -> None:
    """A sanity of signs: from far to near, both losses of the last layer fall."""
    given = truth(4)
    far, logits = noise(LAYERS, 1, QUERIES, 10, seed=3), noise(LAYERS, 1, QUERIES, CLASSES, seed=4)
    target = encode_boxes(given[0])[:, torch.arange(QUERIES) % 4]
    wanted = torch.full((LAYERS, 1, QUERIES, CLASSES), -4.0)
    wanted[:, 0, torch.arange(4), given[1][0]] = 4.0
    totals = []
    for part in np.linspace(0, 1, 5):
        codes = (1 - part) * far + part * target
        parts = codes.float().split((2, 1, 3, 2, 2), -1)
        mixed = ((1 - part) * logits + part * wanted).float()
        totals.append(losses_of(dict(zip(SIZES, (*parts, mixed), strict=True)), given)[:2, -1])
    for before, after in pairwise(totals):
        assert (after < before).all()
