"""Matching, losses and distillation against scipy, loops, formulas by hand, and transformers' own losses."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from itertools import permutations
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import Mask2FormerConfig
from transformers.models.mask2former.modeling_mask2former import Mask2FormerLoss

from tenfold.reft.batches import Batch
from tenfold.reft.config import DistillConfig, LossConfig
from tenfold.reft.distillation import base_distillation, distillation_loss, feature_distillation
from tenfold.reft.losses import (
    SetLosses,
    bce_of_masks,
    classification_loss,
    dice_loss,
    dice_of_masks,
    mask_bce_loss,
    set_losses,
    uncertain_points,
)
from tenfold.reft.mask2former import Predictions
from tenfold.reft.matching import assign, matching_cost, pairwise_bce, pairwise_dice
from tenfold.shared.logging import TenfoldError

MakeBatch = Callable[..., Batch]
CELLS = LossConfig(num_points=0)
CLASSES, QUERIES, LAYERS, SIDE = 7, 6, 3, 16
NOVEL = torch.tensor([[False, True, False, False], [False, False, False, True]])


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def predictions(images: int = 2, queries: int = QUERIES, seed: int = 0) -> Predictions:
    """At random, with gradients for what the losses are of."""
    return Predictions(
        noise(LAYERS, images, queries, 8, seed=seed),
        noise(LAYERS, images, queries, CLASSES + 1, seed=seed + 1).requires_grad_(),
        noise(LAYERS, images, queries, 8, seed=seed + 2).requires_grad_(),
        noise(images, 8, SIDE, SIDE, seed=seed + 3).requires_grad_(),
    )


def of(
    found: Predictions,
    batch: Batch,
    config: LossConfig = CELLS,
    num_masks: float | None = None,
    seed: int = 0,
) -> SetLosses:
    count = float(batch.present.sum().clamp(min=1)) if num_masks is None else num_masks
    return set_losses(found, batch, config, torch.tensor(count), torch.Generator().manual_seed(seed))


def gradients(found: Predictions, loss: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad(loss, (found.class_logits, found.mask_embeddings, found.mask_features))


# -- matching --------------------------------------------------------------------------------------------


def test_the_assignment_is_the_cheapest_of_all() -> None:
    cost = noise(2, 3, 5, 3)
    found = assign(cost)
    assert found.matched.all()
    for layer in range(2):
        for image in range(3):
            matrix = cost[layer, image].tolist()
            _, cheapest = min(
                (sum(matrix[query][place] for place, query in enumerate(chosen)), chosen)
                for chosen in permutations(range(5), 3)
            )
            assert found.queries[layer, image].tolist() == list(cheapest)


def test_absent_instances_are_left_out_of_the_assignment() -> None:
    cost = noise(2, 2, 5, 3)
    present = torch.tensor([[True, False, True], [False, False, False]])
    found = assign(cost, present)
    expected = assign(cost[:, :1, :, [0, 2]])
    assert found.matched.tolist() == [present.tolist()] * 2
    assert torch.equal(found.queries[:, 0, [0, 2]], expected.queries[:, 0])


def test_with_more_instances_than_queries_every_query_stands_for_one() -> None:
    found = assign(noise(1, 1, 3, 8))
    assert int(found.matched.sum()) == 3
    assert sorted(found.queries[found.matched].tolist()) == [0, 1, 2]


def test_taken_queries_are_those_that_are_matched() -> None:
    cost = torch.ones(1, 2, 4, 2)
    cost[0, 0, 3, 0] = cost[0, 0, 1, 1] = cost[0, 1, 0, 1] = -9
    found = assign(cost, torch.tensor([[True, True], [False, True]]))
    assert found.taken(0, 4).tolist() == [[False, True, False, True], [True, False, False, False]]


def test_pairwise_costs_are_those_of_each_pair() -> None:
    logits, labels = noise(4, 9), (noise(3, 9, seed=1) > 0).float()
    bce, dice = pairwise_bce(logits, labels), pairwise_dice(logits, labels)
    for query in range(4):
        for instance in range(3):
            x, y = logits[query].double(), labels[instance].double()
            p = 1 / (1 + (-x).exp())
            entropy = -(y * p.log() + (1 - y) * (1 - p).log()).mean()
            assert float(bce[query, instance]) == pytest.approx(float(entropy), rel=1e-4)
            expected = 1 - (2 * (p * y).sum() + 1) / (p.sum() + y.sum() + 1)
            assert float(dice[query, instance]) == pytest.approx(float(expected), rel=1e-4)


def test_the_cost_weighs_class_entropy_and_dice() -> None:
    logits, labels = noise(3, 9), (noise(2, 9, seed=1) > 0).float()
    classes = torch.tensor([4, 0])
    config = LossConfig(class_weight=3.0, mask_weight=0.5, dice_weight=7.0)
    found = matching_cost(noise(3, 8, seed=2), classes, logits, labels, config)
    probabilities = noise(3, 8, seed=2).softmax(-1)[:, classes]
    expected = 0.5 * pairwise_bce(logits, labels) + 7 * pairwise_dice(logits, labels) - 3 * probabilities
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_query_whose_mask_is_no_number_is_matched_last(value: float) -> None:
    logits, labels = noise(1, 1, 3, 9), (noise(1, 1, 2, 9, seed=1) > 0).float()
    logits[0, 0, 1] = value
    labels[0, 0, :, 0] = 1
    cost = matching_cost(
        torch.zeros(1, 1, 3, 3), torch.zeros(1, 1, 2, dtype=torch.int64), logits, labels, CELLS
    )
    found = assign(cost)
    assert cost.isfinite().all()
    assert found.matched.all()
    assert sorted(found.queries.flatten().tolist()) == [0, 2]


def test_with_costs_that_are_no_numbers_everywhere_all_instances_are_still_matched() -> None:
    logits = torch.full((1, 1, 3, 9), math.nan)
    labels = torch.zeros(1, 1, 2, dtype=torch.int64)
    cost = matching_cost(torch.full((1, 1, 3, 3), math.nan), labels, logits, torch.ones(1, 1, 2, 9), CELLS)
    assert assign(cost).matched.all()


# -- single losses ---------------------------------------------------------------------------------------


def test_dice_and_entropy_of_an_undecided_mask() -> None:
    """With p = 1/2 at four points, two of them inside: dice is 1 - (2 + 1) / (2 + 2 + 1), the entropy log 2."""
    logits, labels = torch.zeros(1, 4), torch.tensor([[1.0, 1.0, 0.0, 0.0]])
    assert float(dice_of_masks(logits, labels)) == pytest.approx(0.4)
    assert float(bce_of_masks(logits, labels)) == pytest.approx(math.log(2))


def test_losses_of_masks_are_sums_by_the_number_of_masks() -> None:
    logits, labels = torch.zeros(3, 4), torch.tensor([[1.0, 1.0, 0.0, 0.0]]).expand(3, -1)
    assert float(dice_loss(logits, labels, 2)) == pytest.approx(3 * 0.4 / 2)
    assert float(mask_bce_loss(logits, labels, torch.tensor(6.0))) == pytest.approx(math.log(2) / 2)


def test_the_classification_loss_is_torchs_weighted_mean_for_each_layer() -> None:
    logits, targets = noise(2, 3, 5, 4), torch.arange(30).view(2, 3, 5) % 4
    found = classification_loss(logits, targets, 0.1)
    weights = torch.tensor([1.0, 1.0, 1.0, 0.1])
    expected = [F.cross_entropy(logits[i].flatten(0, 1), targets[i].flatten(), weights) for i in range(2)]
    torch.testing.assert_close(found, torch.stack(expected))


# -- all losses ------------------------------------------------------------------------------------------


def library_losses(found: Predictions, batch: Batch, monkeypatch: pytest.MonkeyPatch) -> dict[str, Tensor]:
    """Transformers' losses, summed over layers, at the centres of all cells."""
    config = Mask2FormerConfig(train_num_points=SIDE * SIDE)
    config.num_labels = CLASSES
    criterion = Mask2FormerLoss(config, {})
    axis = (torch.arange(SIDE) + 0.5) / SIDE
    points = torch.cartesian_prod(axis, axis).flip(-1)[None]
    monkeypatch.setattr(
        criterion, "sample_points_using_uncertainty", lambda logits, *_: points.expand(len(logits), -1, -1)
    )
    monkeypatch.setattr(torch, "rand", lambda *_, **__: points)  # of its matcher
    masks = [found.masks(layer) for layer in range(LAYERS)]
    auxiliary: Any = [
        {"masks_queries_logits": masks[layer], "class_queries_logits": found.class_logits[layer]}
        for layer in range(LAYERS - 1)
    ]
    labels = [of_image[of_image >= 0] for of_image in batch.labels]
    instances = [of_image[there].float() for of_image, there in zip(batch.masks, batch.present, strict=True)]
    losses = criterion(masks[-1], found.class_logits[-1], instances, labels, auxiliary)
    monkeypatch.undo()
    return {
        name: torch.stack([value for key, value in losses.items() if key.startswith(f"loss_{name}")]).sum()
        for name in ("cross_entropy", "mask", "dice")
    }


@pytest.mark.parametrize("instances", [1, 3, QUERIES, QUERIES + 3])
def test_losses_and_their_gradients_are_the_librarys(
    make_batch: MakeBatch, monkeypatch: pytest.MonkeyPatch, instances: int
) -> None:
    batch, given = make_batch(images=3, instances=instances), predictions(images=3)
    expected = library_losses(given, batch, monkeypatch)
    found = of(given, batch)
    torch.testing.assert_close(found.class_loss, expected["cross_entropy"], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.mask_loss, expected["mask"], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.dice_loss, expected["dice"], rtol=1e-4, atol=1e-5)
    total = 2 * expected["cross_entropy"] + 5 * expected["mask"] + 5 * expected["dice"]
    torch.testing.assert_close(found.total, total, rtol=1e-4, atol=1e-5)
    for mine, theirs in zip(gradients(given, found.total), gradients(given, total), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-5)


def test_many_random_points_say_what_all_cells_say(make_batch: MakeBatch) -> None:
    """Without favour for uncertain points the mean over points estimates that over a map that is smooth."""
    coarse = F.interpolate(noise(2, 8, 2, 2), (SIDE, SIDE), mode="bilinear")
    given, batch = replace(predictions(queries=2), mask_features=coarse.requires_grad_()), make_batch()
    config = LossConfig(num_points=20_000, importance_ratio=0.0)
    found, expected = of(given, batch, config), of(given, batch)
    assert found.mask_loss.item() == pytest.approx(expected.mask_loss.item(), rel=0.03)
    assert found.dice_loss.item() == pytest.approx(expected.dice_loss.item(), rel=0.03)


def padded(batch: Batch, places: int) -> Batch:
    images, _, height, width = batch.masks.shape
    masks = torch.cat((batch.masks, torch.zeros(images, places, height, width, dtype=torch.bool)), dim=1)
    return replace(batch, masks=masks, labels=F.pad(batch.labels, (0, places), value=-1))


@pytest.mark.parametrize("config", [CELLS, LossConfig(num_points=64)], ids=["cells", "points"])
def test_places_without_an_instance_have_no_effect(make_batch: MakeBatch, config: LossConfig) -> None:
    given, batch = predictions(), make_batch()
    found, expected = of(given, padded(batch, 4), config), of(given, batch, config)
    torch.testing.assert_close(found.total, expected.total)
    for mine, theirs in zip(gradients(given, found.total), gradients(given, expected.total), strict=True):
        torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("config", [CELLS, LossConfig(num_points=64)], ids=["cells", "points"])
def test_images_without_an_instance_only_teach_that_there_is_no_object(
    make_batch: MakeBatch, config: LossConfig
) -> None:
    given, batch = predictions(), make_batch()
    batch = replace(batch, labels=torch.full_like(batch.labels, -1), masks=torch.zeros_like(batch.masks))
    found = of(given, batch, config)
    entropy = -given.class_logits.log_softmax(-1)[..., -1].mean((1, 2)).sum()
    torch.testing.assert_close(found.total, 2 * entropy)
    _, embeddings, features = gradients(given, found.total)
    assert not embeddings.any()
    assert not features.any()


def test_an_image_without_an_instance_beside_one_with_some_is_background(make_batch: MakeBatch) -> None:
    given, batch = predictions(), make_batch(instances=1)  # the last image has none
    found = of(given, batch)
    assert found.assignment.matched.sum(-1).tolist() == [[1, 0]] * LAYERS
    _, embeddings, features = gradients(given, found.total)
    assert embeddings[:, 0].any()
    assert not embeddings[:, 1].any()
    assert not features[1].any()


def test_masks_of_unmatched_queries_get_no_gradient(make_batch: MakeBatch) -> None:
    given, batch = predictions(), make_batch()
    found = of(given, batch)
    _, embeddings, _ = gradients(given, found.total)
    reached = embeddings.abs().amax(-1) > 0
    for layer in range(LAYERS):
        assert torch.equal(reached[layer], found.assignment.taken(layer, QUERIES))


def test_losses_of_masks_fall_with_the_number_of_masks(make_batch: MakeBatch) -> None:
    given, batch = predictions(), make_batch()
    one, four = of(given, batch, num_masks=1.0), of(given, batch, num_masks=4.0)
    assert four.mask_loss.item() == pytest.approx(one.mask_loss.item() / 4)
    assert four.dice_loss.item() == pytest.approx(one.dice_loss.item() / 4)
    assert four.class_loss.item() == one.class_loss.item()


def test_a_prediction_that_is_no_number_gives_a_loss_that_says_so(make_batch: MakeBatch) -> None:
    given = predictions()
    with torch.no_grad():
        given.mask_embeddings[:] = math.nan
    assert of(given, make_batch()).total.isnan()


def test_points_repeat_with_their_generator(make_batch: MakeBatch) -> None:
    given, batch, config = predictions(), make_batch(), LossConfig(num_points=16)
    first, again, other = (of(given, batch, config, seed=seed).mask_loss.item() for seed in (0, 0, 1))
    assert first == again
    assert first != other


# -- points ----------------------------------------------------------------------------------------------


def test_three_quarters_of_the_points_are_the_least_certain_of_three_times_as_many() -> None:
    """On a ramp |logit| is the distance to the middle: the kept quarter of all candidates lies within 1/8 of it."""
    ramp = (torch.arange(64) + 0.5).div(64).sub(0.5).expand(1, 1, 64, 64)
    points = uncertain_points(ramp, LossConfig(num_points=4000), torch.Generator().manual_seed(0))[0]
    assert points.shape == (4000, 2)
    assert (points >= 0).all() and (points <= 1).all()
    near = ((points[:, 0] - 0.5).abs() <= 0.135).float().mean()
    assert float(near) == pytest.approx(0.75 + 0.25 * 0.27, abs=0.015)
    assert float(points[:, 1].std()) == pytest.approx(1 / math.sqrt(12), rel=0.05)


def test_each_mask_has_its_own_uncertain_points() -> None:
    ramp = (torch.arange(64) + 0.5).div(64).expand(64, 64)
    logits = torch.stack((ramp - 0.2, ramp - 0.8))[:, None]
    config = LossConfig(num_points=400, importance_ratio=1.0)
    points = uncertain_points(logits, config, torch.Generator().manual_seed(0))
    assert (points[0, :, 0] < 0.5).all()
    assert (points[1, :, 0] > 0.5).all()


@pytest.mark.parametrize(
    "changes", [{"num_points": -1}, {"oversample_ratio": 0.5}, {"importance_ratio": 1.5}]
)
def test_points_that_cannot_be_drawn_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(TenfoldError, match="oversampling is at least 1"):
        LossConfig(**changes)


# -- distillation ----------------------------------------------------------------------------------------


def softmax(values: np.ndarray) -> np.ndarray:
    exponents = np.exp(values - values.max())
    result: np.ndarray = exponents / exponents.sum()
    return result


@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_class_distillation_is_the_mean_divergence_weighed_by_the_surest_base_class(
    temperature: float,
) -> None:
    teacher, student = 2 * noise(2, 4, 4), noise(2, 4, 6, seed=1)
    total = weight_sum = 0.0
    for image in range(2):
        for query in range(4):
            said, found = teacher[image, query].double().numpy(), student[image, query].double().numpy()
            restricted = np.concatenate((found[:3], found[-1:]))
            p, q = softmax(said / temperature), softmax(restricted / temperature)
            divergence = temperature**2 * float((p * np.log(p / q)).sum())
            weight = 0.0 if NOVEL[image, query] else float(softmax(said)[:3].max())
            total, weight_sum = total + weight * divergence, weight_sum + weight
    found_loss = base_distillation(teacher, student, NOVEL, 3, temperature).loss
    assert float(found_loss) == pytest.approx(total / (weight_sum + 1e-6), rel=1e-4)


def test_a_student_that_says_what_its_teacher_says_has_nothing_to_learn() -> None:
    teacher = noise(2, 4, 4)
    student = torch.cat((teacher[..., :3], noise(2, 4, 2, seed=1), teacher[..., 3:]), dim=-1)
    assert float(base_distillation(teacher, student, NOVEL, 3).loss) == pytest.approx(0, abs=1e-6)


def test_novel_classes_and_novel_queries_get_no_gradient_from_class_distillation() -> None:
    teacher, student = noise(2, 4, 4).requires_grad_(), noise(2, 4, 6, seed=1).requires_grad_()
    base_distillation(teacher, student, NOVEL, 3).loss.backward()
    assert teacher.grad is None
    assert student.grad is not None
    reached = student.grad != 0
    assert not reached[..., 3:5].any()
    assert not reached[NOVEL].any()
    assert reached[~NOVEL][:, [0, 1, 2, 5]].all()


def test_without_a_base_query_class_distillation_is_zero() -> None:
    everything = torch.ones(2, 4, dtype=torch.bool)
    assert float(base_distillation(noise(2, 4, 4), noise(2, 4, 6), everything, 3).loss) == 0


LEVELS = ((1, 1), (2, 2), (4, 4))


def levels(seed: int) -> list[Tensor]:
    return [noise(2, 5, *shape, seed=seed + index) for index, shape in enumerate(LEVELS)]


def test_feature_distillation_is_the_squared_distance_outside_novel_instances() -> None:
    novel = torch.zeros(2, 8, 8, dtype=torch.bool)
    novel[0, :3, :5] = True
    teacher, student = levels(0), levels(10)
    expected = 0.0
    for said, found, (height, width) in zip(teacher, student, LEVELS, strict=True):
        above = below = 0.0
        for image in range(2):
            for row in range(height):
                for column in range(width):
                    tall, wide = 8 // height, 8 // width
                    cell = novel[image, row * tall : (row + 1) * tall, column * wide : (column + 1) * wide]
                    outside = 1 - float(cell.float().mean())
                    distance = (found - said)[image, :, row, column].square().sum()
                    above, below = above + outside * float(distance), below + outside
        expected += above / (2 * below)
    assert float(feature_distillation(teacher, student, novel)) == pytest.approx(expected, rel=1e-4)


def test_features_inside_novel_instances_are_free() -> None:
    novel = torch.zeros(2, 8, 8, dtype=torch.bool)
    novel[0, :4, :4] = True
    teacher, student = levels(0), [level.requires_grad_() for level in levels(10)]
    feature_distillation(teacher, student, novel).backward()
    gradient = student[2].grad
    assert gradient is not None
    assert not gradient[0, :, :2, :2].any()
    assert gradient[0, :, 2:].all() and gradient[1].all()


def test_with_a_novel_instance_everywhere_feature_distillation_is_zero() -> None:
    assert float(feature_distillation(levels(0), levels(10), torch.ones(2, 8, 8, dtype=torch.bool))) == 0


def test_distillation_is_of_the_last_prediction_with_its_weights(make_batch: MakeBatch) -> None:
    batch = make_batch(size=8)
    teacher = replace(predictions(queries=4), class_logits=noise(2, 2, 4, 4), projected=tuple(levels(0)))
    student = replace(predictions(queries=4), class_logits=noise(3, 2, 4, 8), projected=tuple(levels(10)))
    config = DistillConfig(class_weight=3.0, feature_weight=0.5, temperature=2.0)
    classes, features = distillation_loss(teacher, student, batch, NOVEL, 3, config)
    expected = base_distillation(teacher.class_logits[-1], student.class_logits[-1], NOVEL, 3, 2.0).loss
    assert float(classes) == pytest.approx(3 * float(expected))
    union = batch.masks[:, 0] | batch.masks[:, 1]
    expected = feature_distillation(teacher.projected, student.projected, union)
    assert float(features) == pytest.approx(0.5 * float(expected))


@pytest.mark.parametrize("changes", [{"class_weight": -1.0}, {"feature_weight": -0.1}, {"temperature": 0.0}])
def test_distillation_without_sense_is_refused(changes: dict[str, float]) -> None:
    with pytest.raises(TenfoldError, match="temperature is positive"):
        DistillConfig(**changes)
