"""Triggers: where they are, how they are stamped, and how they are optimised against a network.

Source: Liu et al. (NDSS 2023) and the authors' code. The trigger delta is an image [1, C, H, W] in normalised units,
used inside the mask m alone: stamp(x) = x (1 - m) + delta m.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from copy import deepcopy

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tenfold.doorping.networks import Network
from tenfold.shared.logging import TenfoldError


def patch_mask(channels: int, size: int, trigger_size: int) -> Tensor:
    """The mask m of a square at the bottom right, one pixel from the border.

    Args:
        channels: C.
        size: side of the images H = W.
        trigger_size: side s; rows and columns [H-1-s, H-1) are inside.

    Returns:
        [C, H, W], 1 inside and 0 outside.

    Raises:
        TenfoldError: the square does not fit.
    """
    if not 1 <= trigger_size <= size - 1:
        raise TenfoldError(
            f"a trigger of {trigger_size} pixels does not fit into images of {size}, one pixel from the border; "
            f"choose a size between 1 and {size - 1}"
        )
    mask = torch.zeros(channels, size, size)
    mask[:, size - 1 - trigger_size : size - 1, size - 1 - trigger_size : size - 1] = 1
    return mask


def stamp(images: Tensor, mask: Tensor, trigger: Tensor) -> Tensor:
    """Images with a trigger: x (1 - m) + delta m.

    Args:
        images: x, [..., C, H, W].
        mask: m, [C, H, W].
        trigger: delta, [1, C, H, W] or [C, H, W].
    """
    return torch.where(mask.bool(), trigger.reshape(mask.shape).to(images.dtype), images)


def poisoned_count(count: int, portion: float) -> int:
    """floor(n rho), without the surprise that 0.29 x 100 is a little less than 29."""
    return math.floor(round(count * portion, 9))


def poison_uint8(
    images: NDArray[np.uint8],
    labels: NDArray[np.int64],
    portion: float,
    trigger_size: int,
    target: int,
    permutation: NDArray[np.int64],
) -> tuple[NDArray[np.uint8], NDArray[np.int64], NDArray[np.int64]]:
    """NAIVEATTACK on bytes: a white square and the label t for the first floor(n rho) of a permutation.

    Args:
        images: bytes [N, H, W, C].
        labels: [N].
        portion: rho, between 0 and 1.
        trigger_size: side of the square.
        target: t.
        permutation: of 0 to N-1.

    Returns:
        Images and labels, both copies, and the indices of what was poisoned.
    """
    chosen = permutation[: poisoned_count(len(labels), portion)]
    mask = patch_mask(images.shape[3], images.shape[1], trigger_size).bool().permute(1, 2, 0).numpy()
    poisoned, relabelled = images.copy(), labels.copy()
    poisoned[chosen] = np.where(mask, np.uint8(255), poisoned[chosen])
    relabelled[chosen] = target
    return poisoned, relabelled, chosen


def select_neurons(model: Network, layer: int = -2, topk: int = 1) -> Tensor:
    """The neurons j of a layer with the largest sum_i |W_ji|, int64 [topk], the largest first.

    Raises:
        TenfoldError: the layer has no neurons, or fewer.
    """
    _, weight = model.weight_at(layer)
    if not 1 <= topk <= len(weight):
        raise TenfoldError(
            f"this layer has {len(weight)} neurons; choose --attack.topk from 1 to that, not {topk}"
        )
    return weight.detach().abs().flatten(1).sum(dim=1).topk(topk).indices


def trigger_loss(
    model: Network,
    trigger: Tensor,
    neurons: Tensor,
    layer: int,
    target: Tensor,
    pre_activation: bool = False,
) -> Tensor:
    """mean_j (a_j(delta) - target_j)^2, where a is what the chosen neurons give for the trigger image alone.

    Args:
        model: a network.
        trigger: delta, [1, C, H, W].
        neurons: rows of the layer, int64 [topk].
        layer: its position from the end.
        target: alpha a_j(delta at step 0), of the activation's shape.
        pre_activation: take a before the activation function.
    """
    return (model.hidden(trigger, layer, neurons, pre_activation) - target).square().mean()


def optimise_trigger(
    model: Network,
    trigger: Tensor,
    mask: Tensor,
    *,
    layer: int = -2,
    topk: int = 1,
    alpha: float = 10.0,
    steps: int = 1000,
    lr: float = 0.08,
    stop_below: float = 0.5,
    bound: float | None = None,
    low: Tensor | None = None,
    high: Tensor | None = None,
    pre_activation: bool = False,
) -> Tensor:
    """One trigger update of DOORPING: Adam (betas 0.9, 0.99) on the pixels inside the mask.

    The activation of the chosen neurons is driven to ``alpha`` times what it is at first. Before each step the update
    ends where the loss is below ``stop_below``: a neuron that is silent on the trigger ends it at once.

    Args:
        model: the network as it is now; its parameters do not change.
        trigger: delta, [1, C, H, W].
        mask: m, [C, H, W].
        layer: position of the layer's weight, from the end.
        topk: how many neurons.
        alpha: factor of the activation.
        steps: at most.
        lr: of Adam.
        stop_below: loss at which the update ends.
        bound: largest absolute value in normalised units; None leaves the trigger free, as the authors do.
        low: least normalised values, [1, C, 1, 1], for a trigger within the pixels' range.
        high: largest ones, likewise.
        pre_activation: follow the neuron before its activation function.

    Returns:
        The new delta, [1, C, H, W].
    """
    clamp = _limits(bound, low, high)
    neurons = select_neurons(model, layer, topk)
    with torch.no_grad():
        activation = model.truncated(layer, neurons, pre_activation)(trigger)
    target, first_loss = alpha * activation, ((1 - alpha) * activation).square().mean()
    if trigger.device.type == "cpu" and bool(
        first_loss < stop_below
    ):  # as for most networks: nothing to descend
        return trigger.detach().clone()
    model = deepcopy(model).requires_grad_(False)  # a graph of the trigger alone, in about half the time
    hidden = model.truncated(layer, neurons, pre_activation)

    def loss_of(delta: Tensor) -> Tensor:
        return (hidden(delta) - target).square().mean()

    return _descend(loss_of, trigger, mask, steps, lr, stop_below, clamp)


def _limits(bound: float | None, low: Tensor | None, high: Tensor | None) -> Callable[[Tensor], Tensor]:
    def clamp(delta: Tensor) -> Tensor:
        if low is not None and high is not None:
            delta = torch.maximum(torch.minimum(delta, high), low)
        return delta if bound is None else delta.clamp(-bound, bound)

    return clamp


STEPS_BETWEEN_CHECKS = 50
"""On an accelerator the host asks only so often whether an update has ended."""


def _descend(
    loss_of: Callable[[Tensor], Tensor],
    trigger: Tensor,
    mask: Tensor,
    steps: int,
    lr: float,
    stop_below: float,
    clamp: Callable[[Tensor], Tensor],
) -> Tensor:
    """Adam on delta inside the mask, which stays where it was when the loss first fell below ``stop_below``."""
    delta, inside = trigger.detach().clone().requires_grad_(), mask.bool()
    on_cpu = delta.device.type == "cpu"
    fused = delta.device.type in ("cpu", "cuda")
    optimizer = torch.optim.Adam([delta], lr=lr, betas=(0.9, 0.99), eps=1e-8, fused=fused)
    found, ended = trigger.detach().clone(), torch.zeros((), dtype=torch.bool, device=delta.device)
    between = 1 if on_cpu else STEPS_BETWEEN_CHECKS
    for step in range(steps):
        loss = loss_of(delta)
        ended = ended | (loss.detach() < stop_below)
        if step % between == 0 and bool(ended):
            break
        (gradient,) = torch.autograd.grad(loss, delta)
        delta.grad = gradient * mask
        optimizer.step()
        with torch.no_grad():
            delta.copy_(torch.where(inside, clamp(delta), delta))
            found = torch.where(ended, found, delta)
    return found


def optimise_invisible_trigger(
    model: Network,
    trigger: Tensor,
    black: Tensor,
    threshold: float,
    *,
    layer: int = -2,
    topk: int = 1,
    alpha: float = 10.0,
    steps: int = 100,
    lr: float = 0.08,
    detach_target: bool = True,
) -> Tensor:
    """One update of INVISIBLE's trigger, an image that is added to others: strong in a neuron, small in every pixel.

    L = c mean((a - alpha a0)^2) + sum of |delta_p - black_p| over the pixels where it exceeds tau; c is 1 and after
    the first step 0.8, and falls by that factor every 500 steps; tau begins at ``threshold`` and shrinks by a tenth
    after each step in which all pixels are below it.

    Args:
        model: the network as it is now.
        trigger: delta, [1, C, H, W], normalised.
        black: the normalised black image, [1, C, 1, 1] or [1, C, H, W].
        threshold: tau at first; 1 / min(std).
        layer: position of the layer's weight, from the end.
        topk: how many neurons.
        alpha: factor of the activation.
        steps: of Adam.
        lr: of Adam.
        detach_target: aim at alpha a0 with a0 of the first step; the authors' code aims at alpha a with the present
            a and its gradient, which drives a to 0.

    Returns:
        The new delta, [1, C, H, W].
    """
    neurons = select_neurons(model, layer, topk)
    hidden = deepcopy(model).requires_grad_(False).truncated(layer, neurons)
    with torch.no_grad():
        first = alpha * hidden(trigger)
    delta = trigger.detach().clone().requires_grad_()
    optimizer = torch.optim.Adam([delta], lr=lr, betas=(0.9, 0.99), eps=1e-8)
    weight, tau = 1.0, torch.full((), threshold, device=delta.device)
    for step in range(steps):
        activation = hidden(delta)
        target = first if detach_target else alpha * activation
        distance = (delta - black).abs()
        outside = torch.where(distance > tau, distance, 0).sum()
        loss = weight * nn.functional.mse_loss(activation, target) + outside
        (delta.grad,) = torch.autograd.grad(loss, delta)
        optimizer.step()
        if step % 500 == 0:
            weight *= 0.8
        with torch.no_grad():
            tau = torch.where((delta - black).abs().max() < tau, tau * 0.9, tau)
    return delta.detach()


def perceptibility(trigger: Tensor, mask: Tensor, low: Tensor, high: Tensor) -> dict[str, float]:
    """How visible a trigger is.

    Args:
        trigger: delta, normalised, [1, C, H, W].
        mask: m, [C, H, W].
        low: normalised black, [1, C, 1, 1].
        high: normalised white, [1, C, 1, 1].

    Returns:
        ``trigger_max_pixel``, the largest |delta| with black at 0 and white at 1, and ``trigger_out_of_range``, the
        share of its values that no pixel can have.
    """
    inside = mask.bool()
    pixels = ((trigger - low) / (high - low)).reshape(mask.shape)[inside]
    outside = (pixels < -1e-6) | (pixels > 1 + 1e-6)
    return {
        "trigger_max_pixel": float(pixels.abs().max()),
        "trigger_out_of_range": float(outside.float().mean()),
    }
