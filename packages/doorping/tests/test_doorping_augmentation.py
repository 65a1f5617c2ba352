"""Siamese augmentation: what each operation does, where its parameters come from, and that batches share it."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from tenfold.doorping.augmentation import (
    OPERATIONS,
    AugmentationPlan,
    apply,
    apply_batched,
    draw_operation,
    siamese_augment,
)
from tenfold.shared.logging import TenfoldError

ALL = "color_crop_cutout_flip_scale_rotate"


def pictures(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def uniform(seed: int) -> float:
    """The first of many draws, as the reference makes one per image and keeps that of image 0."""
    return torch.rand(256, 1, 1, 1, generator=torch.Generator().manual_seed(seed)).flatten()[0].item()


def integer(low: int, high: int, seed: int) -> int:
    drawn = torch.randint(low, high, (256, 1, 1), generator=torch.Generator().manual_seed(seed))
    return int(drawn.flatten()[0])


def seed_of(operation: str, after: int = 0) -> int:
    """The first seed from which the whole strategy draws an operation."""
    return next(
        seed for seed in range(after, after + 1000) if draw_operation(ALL, seed).operation == operation
    )


@pytest.mark.parametrize("seed", [0, 7, 1234, 2**31])
def test_the_choice_has_the_seed_and_the_parameters_those_that_follow(seed: int) -> None:
    names = ALL.split("_")
    plan = draw_operation(ALL, seed)
    choice = torch.randint(0, 6, (1,), generator=torch.Generator().manual_seed(seed))
    assert plan == AugmentationPlan(names[int(choice)], seed + 1)


@pytest.mark.parametrize("seed", [3, 99])
def test_parameters_are_the_reference_s_draws(seed: int) -> None:
    def drawn(operation: str, height: int = 32, width: int = 32) -> list[float]:
        return list(AugmentationPlan(operation, seed).parameters(height, width))

    assert drawn("color") == [uniform(seed) - 0.5, 2 * uniform(seed + 1), uniform(seed + 2) + 0.5]
    assert drawn("crop") == [integer(-4, 5, seed), integer(-4, 5, seed + 1)]
    assert drawn("crop", 8, 16) == [integer(-1, 2, seed), integer(-2, 3, seed + 1)]
    assert drawn("cutout") == [integer(0, 33, seed), integer(0, 33, seed + 1)]
    assert drawn("cutout", 9, 8) == [integer(0, 9, seed), integer(0, 9, seed + 1)]  # a square of odd side
    assert drawn("flip") == [float(uniform(seed) < 0.5)]
    span = 1.2 - 1 / 1.2
    scale = [uniform(seed + place) * span + 1 / 1.2 for place in range(2)]
    assert drawn("scale") == [scale[0], 0, 0, 0, scale[1], 0]
    angle = (uniform(seed) - 0.5) * 30 * math.pi / 180
    expected = [math.cos(angle), math.sin(-angle), 0, math.sin(angle), math.cos(angle), 0]
    assert drawn("rotate") == pytest.approx(expected, abs=1e-12)


def test_colour_changes_brightness_then_saturation_then_contrast() -> None:
    images, plan = pictures(2, 3, 8, 8), AugmentationPlan("color", 5)
    brightness, saturation, contrast = plan.parameters(8, 8)
    changed = apply(plan, images)
    # Whatever the order of the rest, an image's mean moves by the brightness alone.
    torch.testing.assert_close(changed.mean((1, 2, 3)), images.mean((1, 2, 3)) + brightness)
    # Differences between channels feel saturation and contrast, those of the mean over channels contrast alone.
    torch.testing.assert_close(
        changed[:, 0] - changed[:, 1], (images[:, 0] - images[:, 1]) * saturation * contrast
    )
    grey, before = changed.mean(1), images.mean(1)
    torch.testing.assert_close(grey[:, 0] - grey[:, 1], (before[:, 0] - before[:, 1]) * contrast)


@pytest.mark.parametrize("seed", range(6))
def test_crop_shifts_by_whole_pixels_and_fills_with_zeros(seed: int) -> None:
    images, plan = pictures(2, 3, 16, 12), AugmentationPlan("crop", seed)
    rows, columns = (int(value) for value in plan.parameters(16, 12))
    changed = apply(plan, images)
    for row in range(16):
        for column in range(12):
            inside = 0 <= row + rows < 16 and 0 <= column + columns < 12
            expected = images[:, :, row + rows, column + columns] if inside else torch.zeros(2, 3).double()
            assert torch.equal(changed[:, :, row, column], expected)


@pytest.mark.parametrize("size", [8, 9])
def test_cutout_blackens_a_square_of_half_the_side_around_its_centre(size: int) -> None:
    images = pictures(2, 3, size, size) + 10
    side = (size + 1) // 2
    seen = set()
    for seed in range(40):
        plan = AugmentationPlan("cutout", seed)
        row, column = (int(value) - side // 2 for value in plan.parameters(size, size))
        expected = images.clone()
        expected[:, :, max(row, 0) : row + side, max(column, 0) : column + side] = 0
        assert torch.equal(apply(plan, images), expected)
        seen.add((expected[0, 0] == 0).sum().item())
    assert max(seen) == side**2 and min(seen) < side**2  # also squares that reach over the border


def test_flip_mirrors_left_and_right_or_not_at_all() -> None:
    images = pictures(2, 3, 8, 8)
    flips = []
    for seed in range(20):
        changed = apply(AugmentationPlan("flip", seed), images)
        flips.append(torch.equal(changed, images.flip(3)))
        assert flips[-1] or torch.equal(changed, images)
    assert {True, False} == set(flips)


@pytest.mark.parametrize("operation", ["scale", "rotate"])
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_affine_operations_sample_bilinearly_at_transformed_places(operation: str, seed: int) -> None:
    size = 9
    images, plan = pictures(2, 1, size, size), AugmentationPlan(operation, seed)
    matrix = torch.tensor(plan.parameters(size, size)).double().reshape(2, 3)
    changed = apply(plan, images)
    padded = torch.nn.functional.pad(images, (2, 2, 2, 2))
    for row in range(size):
        for column in range(size):
            centre = torch.tensor([(2 * column + 1) / size - 1, (2 * row + 1) / size - 1]).double()
            x, y = (((matrix[:, :2] @ centre + 1) * size - 1) / 2 + 2).tolist()
            left, top = math.floor(x), math.floor(y)
            right_part, lower_part = x - left, y - top
            if not (0 <= left < size + 3 and 0 <= top < size + 3):
                assert not changed[:, :, row, column].any()
                continue
            upper = (1 - right_part) * padded[..., top, left] + right_part * padded[..., top, left + 1]
            lower = (1 - right_part) * padded[..., top + 1, left] + right_part * padded[
                ..., top + 1, left + 1
            ]
            expected = (1 - lower_part) * upper + lower_part * lower
            torch.testing.assert_close(changed[:, :, row, column], expected, rtol=0, atol=1e-6)


def test_a_rotation_is_by_at_most_fifteen_degrees_in_either_direction() -> None:
    sines = [AugmentationPlan("rotate", seed).parameters(8, 8)[3] for seed in range(200)]
    limit = math.sin(math.radians(15))
    assert -limit <= min(sines) < -0.9 * limit and 0.9 * limit < max(sines) <= limit


@pytest.mark.parametrize("operation", OPERATIONS)
def test_real_and_synthetic_images_share_the_operation_and_its_parameters(operation: str) -> None:
    seed = seed_of(operation)
    real, synthetic = pictures(7, 3, 16, 16, seed=1), pictures(2, 3, 16, 16, seed=2)
    together = siamese_augment(torch.cat((real, synthetic)), ALL, seed)
    assert torch.equal(siamese_augment(real, ALL, seed), together[:7])
    assert torch.equal(siamese_augment(synthetic, ALL, seed), together[7:])


@pytest.mark.parametrize("operation", OPERATIONS)
def test_gradients_flow_through_every_operation(operation: str) -> None:
    plan = AugmentationPlan(operation, 4)
    images = pictures(1, 2, 6, 6).requires_grad_()
    assert torch.autograd.gradcheck(lambda given: apply(plan, given), (images,))
    (gradient,) = torch.autograd.grad(apply(plan, images).square().sum(), images)
    assert gradient.norm() > 0.1


@pytest.mark.parametrize("strategy", ["", "none", "None"])
def test_no_strategy_leaves_images_as_they_are(strategy: str) -> None:
    images = pictures(2, 1, 8, 8)
    assert torch.equal(siamese_augment(images, strategy, 3), images)
    classes = pictures(3, 2, 1, 8, 8)
    assert torch.equal(apply_batched([draw_operation(strategy, seed) for seed in range(3)], classes), classes)


def test_a_batch_of_classes_equals_the_loop_over_them_with_its_gradient() -> None:
    plans = [draw_operation(ALL, seed) for seed in range(20)]
    assert {plan.operation for plan in plans} == set(OPERATIONS)
    images = pictures(20, 3, 2, 12, 12).requires_grad_()
    looped = torch.stack([apply(plan, batch) for plan, batch in zip(plans, images, strict=True)])
    batched = apply_batched(plans, images)
    torch.testing.assert_close(batched, looped, rtol=1e-12, atol=1e-12)
    weights = pictures(20, 3, 2, 12, 12, seed=1)
    (expected,) = torch.autograd.grad((looped * weights).sum(), images)
    (found,) = torch.autograd.grad((batched * weights).sum(), images)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("operation", OPERATIONS)
def test_under_vmap_all_classes_share_the_operation(operation: str) -> None:
    seed = seed_of(operation)
    images = pictures(4, 3, 2, 12, 12)
    mapped = torch.func.vmap(lambda batch: siamese_augment(batch, ALL, seed), randomness="same")(images)
    expected = apply_batched([draw_operation(ALL, seed)] * 4, images)
    torch.testing.assert_close(mapped, expected, rtol=1e-12, atol=1e-12)


def test_augmentation_is_single_precision_where_images_are() -> None:
    for operation in OPERATIONS:
        plan = AugmentationPlan(operation, 2)
        single = apply(plan, pictures(2, 3, 16, 16, dtype=torch.float32))
        assert single.dtype == torch.float32
        torch.testing.assert_close(
            single.double(),
            apply(plan, pictures(2, 3, 16, 16, dtype=torch.float32).double()),
            rtol=1e-4,
            atol=1e-5,
        )


def test_the_global_generator_neither_matters_nor_changes() -> None:
    images = pictures(2, 3, 8, 8)
    torch.manual_seed(1)
    first, state = siamese_augment(images, ALL, 5), torch.get_rng_state()
    torch.manual_seed(2)
    assert torch.equal(siamese_augment(images, ALL, 5), first)
    torch.manual_seed(1)
    assert torch.equal(torch.get_rng_state(), state)


def test_what_cannot_be_drawn_is_refused_by_name() -> None:
    with pytest.raises(TenfoldError, match="unknown augmentation 'blur'"):
        draw_operation("color_blur", 0)
    with pytest.raises(TenfoldError, match="unknown augmentation ''"):
        draw_operation("color_", 0)
    with pytest.raises(TenfoldError, match="at least 0"):
        draw_operation("color", -1)
    with pytest.raises(TenfoldError, match="need as many augmentation plans"):
        apply_batched([draw_operation("flip", 0)], pictures(2, 1, 1, 8, 8))
