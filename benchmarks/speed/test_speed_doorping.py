"""Doorping: matching all classes at once, training victims as one network, and updating the trigger.

The references do what the published code does: a loop over classes with a graph each, victims one after another, and a
trigger step that runs the whole network under a forward hook on the whole image. Both sides are checked to agree.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tenfold.doorping.defences.strip import StripConfig, strip
from tenfold.doorping.evaluation import VictimConfig, train_ensemble
from tenfold.doorping.gradient_matching import match_loss, matching_step
from tenfold.doorping.networks import Network, build_model, seeded
from tenfold.doorping.triggers import optimise_trigger, patch_mask, select_neurons

SMALL = {"channels": 1, "image_size": 8, "width": 32, "depth": 2, "hidden": 64}
PAPER = {"channels": 3, "image_size": 32, "width": 128, "depth": 3}


def make(settings: dict[str, Any], seed: int = 0) -> Network:
    with seeded(seed):
        return build_model("ConvNet", classes=10, **settings)


def class_by_class(network: Network, synthetic: Tensor, real: Tensor, ipc: int) -> tuple[Tensor, Tensor]:
    """Gradient matching as published: one class after another, gradients of all parameters, one graph."""
    parameters = list(network.parameters())
    images = synthetic.detach().requires_grad_()
    losses = []
    for label, batch in enumerate(real):
        wanted = torch.full((len(batch),), label)
        targets = torch.autograd.grad(F.cross_entropy(network(batch), wanted), parameters)
        targets = [gradient.detach().clone() for gradient in targets]
        own = images[label * ipc : (label + 1) * ipc]
        loss = F.cross_entropy(network(own), torch.full((ipc,), label))
        found = torch.autograd.grad(loss, parameters, create_graph=True)
        losses.append(match_loss(found, targets))
    (gradient,) = torch.autograd.grad(torch.stack(losses).sum(), images)
    return torch.stack(losses).detach(), gradient


@pytest.mark.parametrize(
    ("name", "settings", "batch", "rounds"),
    [("the quick profile's", SMALL, 32, 5), ("the paper's", PAPER, 16, 2)],
    ids=["quick profile", "paper"],
)
def test_matching_against_a_loop_over_classes(
    measure_ratio: Callable[..., Any], name: str, settings: dict[str, Any], batch: int, rounds: int
) -> None:
    network = make(settings)
    side, ipc, generator = settings["image_size"], 10, torch.Generator().manual_seed(1)
    synthetic = torch.randn(10 * ipc, settings["channels"], side, side, generator=generator)
    real = torch.randn(10, batch, settings["channels"], side, side, generator=generator)
    for found, expected in zip(
        matching_step(network, synthetic, real, ipc),
        class_by_class(network, synthetic, real, ipc),
        strict=True,
    ):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    measure_ratio(
        lambda: matching_step(network, synthetic, real, ipc),
        lambda: class_by_class(network, synthetic, real, ipc),
        rounds=rounds,
        reference="a loop over classes, gradients of all parameters",
        unit=f"matching steps of 10 classes, {batch} real and {ipc} synthetic images each, {name} ConvNet",
    )


def test_victims_against_one_after_another(measure_ratio: Callable[..., Any]) -> None:
    generator = torch.Generator().manual_seed(2)
    images, labels = torch.randn(100, 1, 8, 8, generator=generator), torch.arange(10).repeat_interleave(10)
    config = VictimConfig(networks=5, epochs=20, drop_after=10, lr=0.05)

    def together() -> None:
        train_ensemble(lambda: build_model("ConvNet", classes=10, **SMALL), range(5), images, labels, config)

    def one_after_another() -> None:
        for seed in range(5):
            network = make(SMALL, seed)
            optimizer = torch.optim.SGD(network.parameters(), 0.05, 0.9, weight_decay=5e-4)
            for _ in range(config.epochs):
                optimizer.zero_grad()
                F.cross_entropy(network(images), labels).backward()
                optimizer.step()

    measure_ratio(
        together,
        one_after_another,
        reference="five networks trained one after another with torch.optim.SGD",
        unit="trainings of five small ConvNets for 20 passes over 100 images",
    )


def hooked_update(network: Network, trigger: Tensor, mask: Tensor, steps: int) -> Tensor:
    """A trigger update as published: a new hook at every step, none removed, and the whole network each time."""
    (neuron,) = select_neurons(network, -2, 1).tolist()
    layer = network.get_submodule("classifier.0")
    activation = nn.ReLU()
    delta, target = trigger.clone().requires_grad_(), None
    optimizer = torch.optim.Adam([delta], lr=0.08, betas=(0.9, 0.99))
    handles = []
    for _ in range(steps):
        seen: list[Tensor] = []
        handles.append(layer.register_forward_hook(lambda _, __, output: seen.append(output)))  # noqa: B023
        network(delta)
        found = activation(seen[-1])[:, neuron]
        target = 10 * found.detach() if target is None else target
        loss = (found - target).square().mean()
        if loss < 0.5:
            break
        optimizer.zero_grad()
        loss.backward()
        delta.grad.mul_(mask)
        optimizer.step()
    for handle in handles:
        handle.remove()
    return delta.detach()


def test_a_trigger_update_against_hooks(measure_ratio: Callable[..., Any]) -> None:
    network, mask = make(SMALL), patch_mask(1, 8, 2)
    for seed in range(100):  # a trigger that the neuron answers to, and far enough from what ends the update
        trigger = 400 * torch.rand(1, 1, 8, 8, generator=torch.Generator().manual_seed(seed)) * mask
        first = network.hidden(trigger, -2, select_neurons(network, -2, 1)).detach()
        if float((9 * first).square()) > 50:
            break
    else:
        pytest.fail("no trigger moves the neuron")
    steps = 60
    found = optimise_trigger(network, trigger, mask, steps=steps)
    torch.testing.assert_close(found, hooked_update(network, trigger, mask, steps), rtol=2e-3, atol=1e-3)
    measure_ratio(
        lambda: optimise_trigger(network, trigger, mask, steps=steps),
        lambda: hooked_update(network, trigger, mask, steps),
        reference="the whole network under a new forward hook at every step",
        unit=f"updates of at most {steps} steps, the quick profile's ConvNet",
    )


def test_strip_against_art(measure_ratio: Callable[..., Any]) -> None:
    pytest.importorskip("art")
    from tenfold.doorping.defences.art_adapter import art_strip

    network = make(SMALL).eval()
    generator = torch.Generator().manual_seed(3)
    held_out, clean, triggered = (torch.randn(40, 1, 8, 8, generator=generator) for _ in range(3))
    config = StripConfig(overlays=20)
    measure_ratio(
        lambda: strip(network, held_out, clean, triggered, config),
        lambda: art_strip(network, held_out, clean, triggered, config),
        rounds=3,
        reference="STRIP of the Adversarial Robustness Toolbox, input by input",
        peer="adversarial-robustness-toolbox",
        unit="tests of 40 clean and 40 triggered inputs with 20 overlays",
    )
