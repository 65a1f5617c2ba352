"""Triggers: where they are stamped, which neurons they drive, and how they are optimised."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tenfold.doorping.networks import Network, build_model, seeded
from tenfold.doorping.triggers import (
    optimise_invisible_trigger,
    optimise_trigger,
    patch_mask,
    perceptibility,
    poison_uint8,
    poisoned_count,
    select_neurons,
    stamp,
    trigger_loss,
)
from tenfold.shared.logging import TenfoldError


def network(seed: int = 6, **options: Any) -> Network:
    options = {"width": 8, "depth": 2, "hidden": 12, **options}
    """Weights are three times as strong as they are drawn, so that neurons respond to a small patch."""
    with seeded(seed):
        model = build_model("ConvNet", 3, 4, image_size=12, **options)
    with torch.no_grad():
        for value in model.parameters():
            value *= 3
    return model


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


MASK = patch_mask(3, 12, 3)
TRIGGER = 3 * noise(1, 3, 12, 12, seed=1) * MASK


# -- geometry ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "trigger_size", "first", "last"), [(32, 2, 29, 30), (8, 2, 5, 6), (8, 7, 0, 6)]
)
def test_the_patch_lies_at_the_bottom_right_one_pixel_from_the_border(
    size: int, trigger_size: int, first: int, last: int
) -> None:
    mask = patch_mask(3, size, trigger_size)
    inside = {(row, column) for row in range(first, last + 1) for column in range(first, last + 1)}
    assert mask.shape == (3, size, size)
    for channel in mask:
        assert {(row, column) for row, column in channel.nonzero().tolist()} == inside
    assert mask.unique().tolist() == [0, 1]


@pytest.mark.parametrize("trigger_size", [0, 8, 9])
def test_a_patch_that_does_not_fit_is_refused(trigger_size: int) -> None:
    with pytest.raises(
        TenfoldError, match=f"a trigger of {trigger_size} pixels .* choose a size between 1 and 7"
    ):
        patch_mask(1, 8, trigger_size)


def test_stamping_takes_the_trigger_inside_the_mask_and_the_image_outside() -> None:
    images, trigger = noise(2, 5, 3, 12, 12), noise(1, 3, 12, 12, seed=2)
    expected = images * (1 - MASK) + trigger * MASK
    assert torch.equal(stamp(images, MASK, trigger), expected)
    assert torch.equal(stamp(images[0], MASK, trigger[0]), expected[0])
    assert torch.equal(images, noise(2, 5, 3, 12, 12))


@pytest.mark.parametrize(
    ("count", "portion", "expected"),
    [(50_000, 0.01, 500), (100, 0.29, 29), (1297, 0.05, 64), (7, 0.1, 0), (9, 0.0, 0)],
)
def test_the_poisoned_share_is_rounded_down(count: int, portion: float, expected: int) -> None:
    assert poisoned_count(count, portion) == expected


def test_white_squares_go_to_the_first_images_of_the_permutation() -> None:
    images = np.random.RandomState(0).randint(0, 255, (10, 8, 8, 3)).astype(np.uint8)
    labels = np.arange(10) % 4
    permutation = np.random.RandomState(1).permutation(10)
    copies = images.copy(), labels.copy()
    stamped, relabelled, chosen = poison_uint8(images, labels, 0.35, 2, 2, permutation)
    assert chosen.tolist() == permutation[:3].tolist()
    for place in range(10):
        expected, label = copies[0][place].copy(), copies[1][place]
        if place in chosen:
            expected[5:7, 5:7, :] = 255
            label = 2
        np.testing.assert_array_equal(stamped[place], expected)
        assert relabelled[place] == label
    np.testing.assert_array_equal(images, copies[0])
    np.testing.assert_array_equal(labels, copies[1])


# -- neurons ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layer", [-1, -2, -3])
def test_the_neurons_with_the_largest_weights_are_chosen(layer: int) -> None:
    model = network()
    weight = model.weight_at(layer)[1].detach()
    scores = [sum(abs(value) for value in row.flatten().tolist()) for row in weight]
    expected = sorted(range(len(scores)), key=lambda row: -scores[row])[:3]
    assert select_neurons(model, layer, 3).tolist() == expected
    assert select_neurons(model, layer).tolist() == expected[:1]


@pytest.mark.parametrize("topk", [0, 13])
def test_more_neurons_than_there_are_are_refused(topk: int) -> None:
    with pytest.raises(
        TenfoldError, match=f"has 12 neurons; choose --attack.topk from 1 to that, not {topk}"
    ):
        select_neurons(network(), -2, topk)


def activation_of(model: Network, trigger: Tensor, layer: int, neurons: Tensor) -> Tensor:
    """By a hook and a whole forward pass, after ReLU in all layers but the last."""
    seen = {}
    owner = model.get_submodule(model.weight_at(layer)[0].rpartition(".")[0])
    handle = owner.register_forward_hook(lambda _module, _inputs, output: seen.update(output=output))
    model(trigger)
    handle.remove()
    values = seen["output"][:, neurons]
    return values if layer == -1 else values.relu()


def test_the_loss_is_the_mean_squared_distance_to_the_target() -> None:
    model, neurons, target = network(), torch.tensor([3, 8]), torch.tensor([[2.0, -1.0]])
    values = activation_of(model, TRIGGER, -2, neurons).detach()[0]
    expected = ((values[0] - 2) ** 2 + (values[1] + 1) ** 2) / 2
    torch.testing.assert_close(trigger_loss(model, TRIGGER, neurons, -2, target).detach(), expected)


# -- DOORPING ---------------------------------------------------------------------------------------------------------


def plain_update(
    model: Network,
    *,
    layer: int = -2,
    topk: int = 1,
    alpha: float = 10.0,
    steps: int = 20,
    lr: float = 0.08,
    stop_below: float = 0.5,
    bound: float = float("inf"),
) -> tuple[Tensor, list[float]]:
    """The update as the specification puts it; the trigger and the losses before the steps."""
    model = deepcopy(model)
    neurons = model.weight_at(layer)[1].abs().flatten(1).sum(dim=1).topk(topk).indices
    delta = TRIGGER.clone().requires_grad_()
    first = activation_of(model, delta, layer, neurons).detach()
    optimizer = torch.optim.Adam([delta], lr=lr, betas=(0.9, 0.99), eps=1e-8, fused=False)
    losses = []
    for _ in range(steps):
        loss = ((activation_of(model, delta, layer, neurons) - alpha * first) ** 2).mean()
        losses.append(float(loss.detach()))
        if losses[-1] < stop_below:
            break
        optimizer.zero_grad()
        loss.backward()
        assert delta.grad is not None
        delta.grad *= MASK
        optimizer.step()
        delta.data[0][MASK.bool()] = delta.data[0][MASK.bool()].clamp(-bound, bound)
    return delta.detach(), losses


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"topk": 3},
        {"topk": 2, "layer": -3},
        {"layer": -1, "alpha": 4.0},
        {"lr": 0.3, "bound": 3.5},
        {"alpha": -2.0, "topk": 12, "steps": 5},
    ],
)
def test_an_update_is_that_of_a_plain_loop(options: dict[str, Any]) -> None:
    model = network()
    options = {"steps": 20, "stop_below": 1e-9, **options}
    expected, losses = plain_update(model, **options)
    assert len(losses) == options["steps"]
    torch.testing.assert_close(
        optimise_trigger(model, TRIGGER, MASK, **options), expected, rtol=1e-4, atol=1e-5
    )
    assert (expected - TRIGGER).abs().max() > 0.1


@pytest.mark.parametrize("step", [1, 7])
def test_an_update_ends_before_the_step_whose_loss_is_below_the_limit(step: int) -> None:
    model = network()
    _, losses = plain_update(model, topk=3, stop_below=1e-9)
    assert losses == sorted(losses, reverse=True)
    limit = (losses[step] + losses[step - 1]) / 2
    expected, until = plain_update(model, topk=3, steps=step)
    assert len(until) == step
    found = optimise_trigger(model, TRIGGER, MASK, topk=3, steps=20, stop_below=limit)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def with_silent_neuron() -> Network:
    """A network whose strongest neuron is far below 0."""
    model = network()
    layer = model.classifier[0]  # type: ignore[index]
    with torch.no_grad():
        layer.bias[select_neurons(model)] = -100.0  # type: ignore[union-attr, operator]
    return model


def test_a_silent_neuron_leaves_the_trigger_as_it_is() -> None:
    model = with_silent_neuron()
    assert torch.equal(optimise_trigger(model, TRIGGER, MASK, steps=20), TRIGGER)
    moved = optimise_trigger(model, TRIGGER, MASK, steps=20, pre_activation=True)
    assert (moved - TRIGGER).abs().max() > 0.5


def test_pixels_outside_the_patch_never_move_and_the_network_stays_as_it_is() -> None:
    model, image = network(), noise(1, 3, 12, 12, seed=4)
    before, trigger = deepcopy(model.state_dict()), image.clone()
    found = optimise_trigger(model, trigger, MASK, topk=4, steps=30, stop_below=1e-9)
    outside = ~MASK.bool()
    assert torch.equal(found[0][outside], image[0][outside])
    assert not torch.equal(found, image) and torch.equal(trigger, image)
    assert not found.requires_grad
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])
    assert all(value.grad is None and value.requires_grad for value in model.parameters())


def test_an_update_has_a_bound_only_where_one_is_asked_for() -> None:
    model = network()
    options: dict[str, Any] = {"steps": 60, "lr": 1.0, "stop_below": 1e-9, "alpha": 1e4}
    free = optimise_trigger(model, TRIGGER, MASK, **options)
    assert free.abs().max() > 20
    bounded = optimise_trigger(model, TRIGGER, MASK, bound=9.0, **options)
    assert bounded.abs().max() == 9
    low, high = torch.tensor([-1.0, -2.0, -3.0]), torch.tensor([0.5, 1.5, 2.5])
    within = optimise_trigger(
        model, TRIGGER, MASK, low=low[None, :, None, None], high=high[None, :, None, None], **options
    )
    values = within[0][MASK.bool()].reshape(3, -1)
    assert (values >= low[:, None]).all() and (values <= high[:, None]).all()
    assert (values.amin(dim=1) == low).any() and (values.amax(dim=1) == high).any()


@pytest.mark.gpu
def test_an_update_on_a_gpu_ends_at_the_same_step() -> None:
    model = network()
    _, losses = plain_update(model, topk=3, stop_below=1e-9)
    limit = (losses[7] + losses[6]) / 2
    expected = optimise_trigger(model, TRIGGER, MASK, topk=3, steps=20, stop_below=limit)
    found = optimise_trigger(model.cuda(), TRIGGER.cuda(), MASK.cuda(), topk=3, steps=20, stop_below=limit)
    torch.testing.assert_close(found.cpu(), expected, rtol=1e-3, atol=1e-3)


# -- INVISIBLE --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("detach_target", [True, False])
@pytest.mark.parametrize("threshold", [0.7, 30.0])
def test_the_invisible_update_is_that_of_a_plain_loop(detach_target: bool, threshold: float) -> None:
    model, image, black = network(), noise(1, 3, 12, 12, seed=6), torch.full((1, 3, 1, 1), -0.4)
    neurons = select_neurons(model, -2, 2)
    delta = image.clone().requires_grad_()
    first = activation_of(model, delta, -2, neurons).detach()
    assert (first > 0).any()
    optimizer = torch.optim.Adam([delta], lr=0.05, betas=(0.9, 0.99), eps=1e-8)
    weight, tau = 1.0, threshold
    for _ in range(30):
        activation = activation_of(model, delta, -2, neurons)
        aim = 5 * first if detach_target else 5 * activation
        distance = (delta - black).abs()
        loss = weight * ((activation - aim) ** 2).mean() + distance[distance > tau].sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        weight = 0.8
        if float((delta.detach() - black).abs().max()) < tau:
            tau *= 0.9
    found = optimise_invisible_trigger(
        model, image, black, threshold, topk=2, alpha=5.0, steps=30, lr=0.05, detach_target=detach_target
    )
    torch.testing.assert_close(found, delta.detach(), rtol=1e-4, atol=1e-5)
    assert (tau < threshold) == (threshold == 30.0)
    after = activation_of(model, found, -2, neurons).detach().sum()
    assert (after > first.sum()) == detach_target


def test_an_image_far_from_black_comes_nearer_to_it() -> None:
    model, black = network(), torch.zeros(1, 3, 1, 1)
    image = 4 * noise(1, 3, 12, 12, seed=6)
    found = optimise_invisible_trigger(model, image, black, 1.0, alpha=1.0, steps=100)
    assert found.abs().sum() < 0.5 * image.abs().sum()


# -- how visible ------------------------------------------------------------------------------------------------------


def test_perceptibility_is_in_units_of_pixels() -> None:
    mask = patch_mask(1, 4, 2)
    trigger = torch.zeros(1, 1, 4, 4)
    trigger[0, 0, 1:3, 1:3] = torch.tensor([[0.0, 1.0], [-2.0, 7.0]])
    trigger[0, 0, 3, 3] = 100.0
    low, high = torch.full((1, 1, 1, 1), -1.0), torch.full((1, 1, 1, 1), 1.0)
    found = perceptibility(trigger, mask, low, high)
    assert found == {"trigger_max_pixel": 4.0, "trigger_out_of_range": 0.5}


def test_a_white_patch_on_a_black_image_is_within_the_range(white_patch: Any, digits: Any) -> None:
    found = perceptibility(white_patch[1], white_patch[0], *digits.black_and_white())
    assert found["trigger_max_pixel"] == pytest.approx(1)
    assert found["trigger_out_of_range"] == 0
