"""Dataset distillation by unrolling: its steps, its gradients, and its loop.

As a script, ``test_doorping_unrolled.py DEVICES OUTPUT``, it distils in several processes.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector

from tenfold.doorping.attacks import AttackConfig, Poison
from tenfold.doorping.image_sets import ImageSet, load_image_set
from tenfold.doorping.networks import Network, build_model, seeded
from tenfold.doorping.triggers import optimise_trigger
from tenfold.doorping.unrolled_distillation import (
    DDConfig,
    Distilled,
    Unroll,
    distill_unrolled,
    flat_function,
    initial_network,
    initialise,
    outer_learning_rate,
    raw_learning_rates,
    train_on,
    unrolled_distillation,
)
from tenfold.shared.accelerator import AcceleratorConfig, make_fabric
from tenfold.shared.logging import TenfoldError
from tenfold.shared.runs import Run, RunKey, save_atomically
from tenfold.shared.seeding import epoch_order

CLEAN = AttackConfig(kind="none")
DOORPING = AttackConfig(portion=0.05, steps=20, stop_below=1e-6, pre_activation=True, bound=10.0)
"""Small networks respond so little to a trigger that the authors' limit of 0.5 would end every update at once."""
SHORT = DDConfig(epochs=3, batch_size=500, lr=0.05, distill_lr=0.2, distill_steps=2, distill_epochs=2, ipc=1)
STILL = replace(SHORT, epochs=1, batch_size=2000, lr=1e-30)
"""One iteration with all real images, which leaves the distilled ones as they were."""


class Killed(BaseException):
    """What ends a process from outside; nothing catches it."""


def small_network(seed: int = 0, name: str = "ConvNet", **options: Any) -> Network:
    with seeded(seed):
        return build_model(name, 1, 10, width=8, depth=2, image_size=8, hidden=16, first_padding=1, **options)


def make_run(root: Path, name: str, writes: bool = True, checkpoint_seconds: float = 3600.0) -> Run:
    key = RunKey("doorping", "test", name, 0, "digits", "test", "test")
    return Run(root, key, {}, checkpoint_seconds=checkpoint_seconds, is_writer=writes)


@pytest.fixture
def distil(digits: ImageSet, cpu: Fabric, tmp_path: Path) -> Callable[..., tuple[Distilled, Poison, Run]]:
    def distil_digits(
        config: DDConfig, attack: AttackConfig = CLEAN, name: str = "run", **options: Any
    ) -> tuple[Distilled, Poison, Run]:
        poison = Poison(digits, attack, 0)
        with make_run(tmp_path, name, **options) as run:
            return distill_unrolled(digits, small_network, poison, config, 0, cpu, run), poison, run

    return distil_digits


def problem(network: nn.Module, batches: int = 2, epochs: int = 2) -> dict[str, Any]:
    """Double-precision arguments of an unrolled distillation with a different rate in every step."""
    network = network.double()
    generator = torch.Generator().manual_seed(5)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).double()

    return {
        "apply_fn": flat_function(network),
        "flat_weights": parameters_to_vector(network.parameters()).detach(),
        "batches": normal(batches, 10, 1, 8, 8),
        "labels": torch.arange(10),
        "raw_lrs": raw_learning_rates(0.3, batches * epochs).double() + 0.5 * normal(batches * epochs),
        "epochs": epochs,
        "real_x": normal(20, 1, 8, 8),
        "real_y": torch.arange(20) % 10,
    }


def loss_of(network: nn.Module, images: Tensor, labels: Tensor) -> float:
    with torch.no_grad():
        return F.cross_entropy(network(images), labels).item()


def accuracy(network: nn.Module, digits: ImageSet) -> float:
    images, labels = digits.test()
    with torch.no_grad():
        return (network(images).argmax(1) == labels).float().mean().item()


# -- the unrolled steps ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("checkpointed", [False, True])
def test_the_steps_are_those_of_plain_sgd(checkpointed: bool) -> None:
    network = small_network().double()
    given = problem(network)
    found = unrolled_distillation(**given, checkpointed=checkpointed)
    optimizer = torch.optim.SGD(network.parameters(), lr=1.0)
    for step, rate in enumerate(F.softplus(given["raw_lrs"])):
        optimizer.param_groups[0]["lr"] = rate.item()
        optimizer.zero_grad()
        F.cross_entropy(network(given["batches"][step % 2]), given["labels"]).backward()
        optimizer.step()
    expected = parameters_to_vector(network.parameters()).detach()
    assert (expected - given["flat_weights"]).norm() > 0.01
    torch.testing.assert_close(found.final_weights, expected, rtol=1e-12, atol=1e-14)
    assert found.final_loss.item() == pytest.approx(
        loss_of(network, given["real_x"], given["real_y"]), rel=1e-12
    )
    torch.testing.assert_close(found.step_lrs, F.softplus(given["raw_lrs"]))


@pytest.mark.parametrize(
    ("name", "options"),
    [("ConvNet", {}), ("ConvNet_B", {"norm": "instancenorm", "pooling": "maxpooling"}), ("AlexNet", {})],
)
def test_the_reverse_loop_gives_autograd_s_gradients(name: str, options: dict[str, Any]) -> None:
    given = problem(small_network(0, name, **options))
    plain = unrolled_distillation(**given)
    reverse = unrolled_distillation(**given, checkpointed=True)
    for found, expected in zip(
        (*reverse.data_grad, reverse.raw_lr_grad), (*plain.data_grad, plain.raw_lr_grad), strict=True
    ):
        assert expected.norm() > 0
        assert (found - expected).norm() <= 1e-8 * expected.norm()


def test_gradients_are_those_of_finite_differences() -> None:
    network = small_network(0, activation="sigmoid")
    given = problem(network)
    given["flat_weights"] = 2 * given["flat_weights"]  # away from where all logits are equal
    found = unrolled_distillation(**given)
    step = 1e-5

    def difference(name: str, direction: Tensor) -> float:
        losses = [
            unrolled_distillation(**{**given, name: given[name] + sign * step * direction}).final_loss
            for sign in (1, -1)
        ]
        return ((losses[0] - losses[1]) / (2 * step)).item()

    for place in range(4):
        direction = F.one_hot(torch.tensor(place), 4).double()
        assert found.raw_lr_grad[place].item() == pytest.approx(difference("raw_lrs", direction), rel=1e-5)
    for place, gradient in enumerate(found.data_grad):
        direction = torch.zeros_like(given["batches"])
        direction[place] = gradient / gradient.norm()
        assert gradient.norm().item() == pytest.approx(difference("batches", direction), rel=1e-5)


@pytest.mark.parametrize("rate", [0.001, 0.02, 3.0])
def test_raw_learning_rates_begin_at_the_rate(rate: float) -> None:
    torch.testing.assert_close(F.softplus(raw_learning_rates(rate, 4)), torch.full((4,), rate))


@pytest.mark.parametrize("checkpointed", [False, True])
def test_gradients_have_the_shapes_of_what_they_are_of(checkpointed: bool) -> None:
    given = problem(small_network())
    flat = unrolled_distillation(**given, checkpointed=checkpointed)
    given["raw_lrs"] = given["raw_lrs"][:, None]
    tall = unrolled_distillation(**given, checkpointed=checkpointed)
    assert tall.raw_lr_grad.shape == (4, 1)
    assert torch.equal(tall.raw_lr_grad[:, 0], flat.raw_lr_grad)
    # Batches of other sizes, each with labels of its own.
    given["batches"], given["labels"] = (
        [given["batches"][0], given["batches"][1, :4]],
        [torch.arange(10), torch.tensor([3, 3, 1, 0])],
    )
    uneven = unrolled_distillation(**given, checkpointed=checkpointed)
    assert [gradient.shape[0] for gradient in uneven.data_grad] == [10, 4]
    assert uneven.final_loss != flat.final_loss


def kept_bytes(given: dict[str, Any], checkpointed: bool) -> int:
    """What graphs keep in memory after all unrolled steps, without what has been freed by then."""
    alive: dict[int, int] = {}

    class Kept:
        def __init__(self, value: Tensor) -> None:
            self.value = value
            alive[id(self)] = value.numel() * value.element_size()

        def __del__(self) -> None:
            del alive[id(self)]

    with torch.autograd.graph.saved_tensors_hooks(Kept, lambda kept: kept.value):
        unroll = Unroll(
            *(given[name] for name in ("apply_fn", "flat_weights", "batches", "labels", "raw_lrs", "epochs")),
            checkpointed=checkpointed,
        )
        found = sum(alive.values())
        unroll.pull_back(torch.ones_like(given["flat_weights"]))
    return found


def test_the_reverse_loop_keeps_no_graph_of_the_steps() -> None:
    given = problem(small_network(), epochs=3)
    one_step = given["batches"][0].numel() * given["batches"].element_size()
    assert kept_bytes(given, checkpointed=True) < one_step
    assert kept_bytes(given, checkpointed=False) > 6 * one_step


def test_steps_that_cannot_be_made_are_refused() -> None:
    given = problem(small_network())
    with pytest.raises(TenfoldError, match="make 4 steps, which need as many learning rates, not 3"):
        unrolled_distillation(**{**given, "raw_lrs": given["raw_lrs"][:3]})
    with pytest.raises(TenfoldError, match="need as many label tensors, not 1"):
        unrolled_distillation(**{**given, "labels": [torch.arange(10)]})
    with pytest.raises(TenfoldError, match="batch norm"):
        flat_function(small_network(norm="batchnorm"))


# -- initial networks and the configuration -------------------------------------------------------------------------


def test_initial_weights_are_xavier_normal_with_zero_biases() -> None:
    network = build_model("AlexNet", 3, 10)
    state = torch.get_rng_state()
    initialise(network, 3, gain=2.0)
    assert torch.equal(torch.get_rng_state(), state)
    first, linear = network.features[0], network.classifier[0]
    for layer, fans in ((first, 25 * (3 + 64)), (linear, 4096 + 384)):
        assert not layer.bias.any()
        assert layer.weight.std().item() == pytest.approx(2 * (2 / fans) ** 0.5, rel=0.05)
        assert (layer.weight.abs() > 2.5 * layer.weight.std()).any()  # a normal has tails


def test_an_initial_network_depends_on_its_seed_alone() -> None:
    def weights(seed: int) -> Tensor:
        return parameters_to_vector(initial_network(small_network, seed).parameters())

    first = weights(4)
    torch.manual_seed(9)
    assert torch.equal(weights(4), first)
    assert not torch.equal(weights(5), first)


def test_the_outer_learning_rate_is_step_lr_s_with_its_step_after_the_first_iteration() -> None:
    config = DDConfig(decay_epochs=3, decay_factor=0.4)
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=config.lr)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 3, 0.4)
    for epoch in range(10):
        for iteration in range(3):
            expected = optimizer.param_groups[0]["lr"]
            assert outer_learning_rate(config, epoch, iteration) == pytest.approx(expected, rel=1e-12)
            optimizer.step()
            if iteration == 0:
                schedule.step()


def test_the_defaults_are_the_authors_settings() -> None:
    config = DDConfig()
    assert (config.epochs, config.batch_size, config.lr, config.betas) == (400, 1024, 0.01, (0.5, 0.999))
    assert (config.decay_factor, config.decay_epochs, config.distill_lr) == (0.5, 40, 0.001)
    assert (config.distill_steps, config.distill_epochs, config.ipc, config.steps) == (10, 3, 10, 30)
    assert (config.nets_type, config.nets, config.init_gain) == ("known", 1, 1.0)
    assert not config.positions_of_shuffled_loader


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epochs": 0}, "epochs is at least 1"),
        ({"ipc": 0}, "ipc is at least 1"),
        ({"lr": 0.0}, "lr is above 0"),
        ({"distill_lr": float("inf")}, "distill_lr is above 0"),
        ({"betas": (0.5, 1.0)}, "betas"),
        ({"nets_type": "unknown"}, "known or fresh"),
    ],
)
def test_settings_out_of_range_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(TenfoldError, match=message):
        DDConfig(**changes)


# -- the loop -------------------------------------------------------------------------------------------------------


def test_distillation_learns_digits(distil: Any, digits: ImageSet) -> None:
    config = DDConfig(
        epochs=6, batch_size=100, lr=0.1, distill_lr=0.5, distill_steps=3, distill_epochs=2, ipc=1
    )
    distilled, _, run = distil(config)
    losses = [row["outer_loss"] for row in run.history()]
    assert len(losses) == 6
    assert losses[-1] == distilled.outer_loss < 0.9 * losses[0]
    assert distilled.images.shape == (3, 10, 1, 8, 8)
    assert distilled.labels.tolist() == [list(range(10))] * 3
    assert distilled.learning_rates.shape == (6,) and (distilled.learning_rates > 0).all()
    (known,) = distilled.init_seeds
    start = initial_network(small_network, known)
    before = accuracy(start, digits)
    assert accuracy(train_on(distilled, start), digits) > 0.25  # chance is 0.1
    assert accuracy(start, digits) == before  # the initial network stays as it is


def test_distilled_images_begin_as_noise_with_the_labels_of_their_classes(distil: Any) -> None:
    distilled, _, _ = distil(replace(STILL, distill_steps=3, ipc=4))
    assert distilled.images.shape == (3, 40, 1, 8, 8)
    assert distilled.images.mean().abs() < 0.05 and abs(distilled.images.std() - 1) < 0.05
    assert distilled.labels[1].tolist() == [label for label in range(10) for _ in range(4)]
    torch.testing.assert_close(distilled.learning_rates, torch.full((6,), 0.2))


@pytest.mark.parametrize("nets", [1, 2])
def test_the_outer_loss_is_that_of_the_networks_trained_on_the_distilled_images(
    nets: int, distil: Any, digits: ImageSet
) -> None:
    distilled, _, _ = distil(replace(STILL, nets=nets))
    assert len(set(distilled.init_seeds)) == nets
    images = digits.normalise(digits.train_images)
    losses = [
        loss_of(train_on(distilled, initial_network(small_network, seed)), images, digits.train_labels)
        for seed in distilled.init_seeds
    ]
    assert distilled.outer_loss == pytest.approx(sum(losses) / nets, rel=1e-5)


def test_both_ways_of_differentiating_distil_the_same(distil: Any) -> None:
    config = replace(SHORT, epochs=1)
    plain, _, _ = distil(config, name="plain")
    reverse, _, _ = distil(replace(config, checkpointed=True), name="reverse")
    assert (plain.images - reverse.images).norm() < 1e-3 * plain.images.norm()
    torch.testing.assert_close(plain.learning_rates, reverse.learning_rates, rtol=1e-3, atol=0)


def test_fresh_networks_are_new_in_every_iteration(distil: Any) -> None:
    fresh = replace(SHORT, epochs=2, nets_type="fresh", batch_size=2000, lr=1e-30)
    distilled, _, run = distil(fresh)
    assert distilled.init_seeds == ()
    assert len({row["outer_loss"] for row in run.history()}) == 2
    _, _, known = distil(replace(fresh, nets_type="known"), name="known")
    losses = [row["outer_loss"] for row in known.history()]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_the_trigger_is_fitted_to_the_network_at_the_end_of_the_steps_before_the_real_images_are_stamped(
    distil: Any, digits: ImageSet
) -> None:
    distilled, poison, _ = distil(STILL, DOORPING)
    start = Poison(digits, DOORPING, 0)
    victim = train_on(distilled, initial_network(small_network, distilled.init_seeds[0]))
    options = {"steps": 20, "stop_below": 1e-6, "pre_activation": True, "bound": 10.0}
    expected = optimise_trigger(victim, start.trigger, start.mask, **options)
    assert (expected - start.trigger).abs().max() > 0.1
    torch.testing.assert_close(poison.trigger, expected, rtol=1e-3, atol=1e-3)
    everything = torch.arange(len(digits.train_labels))
    now, before = (loss_of(victim, *state.draw(everything)) for state in (poison, start))
    assert distilled.outer_loss == pytest.approx(now, rel=1e-5)
    assert now != pytest.approx(before, rel=1e-4)


def test_positions_of_a_shuffled_loader_poison_other_images(distil: Any, digits: ImageSet) -> None:
    attack = AttackConfig(kind="frozen", portion=0.3, bound=100.0)
    config = replace(STILL, batch_size=700, positions_of_shuffled_loader=True)
    distilled, poison, _ = distil(config, attack)
    victim = train_on(distilled, initial_network(small_network, distilled.init_seeds[0]))
    order = epoch_order(len(digits.train_labels), 0, 0)
    images = digits.normalise(digits.train_images[order])
    labels = digits.train_labels[order]
    images[poison.indices] = poison.apply(images[poison.indices])
    labels[poison.indices] = poison.target
    losses = [
        loss_of(victim, own, label) for own, label in zip(images.split(700), labels.split(700), strict=True)
    ]
    assert distilled.outer_loss == pytest.approx(sum(losses) / 2, rel=1e-5)
    usual, _, _ = distil(replace(config, positions_of_shuffled_loader=False), attack, name="usual")
    losses = [loss_of(victim, *poison.draw(batch)) for batch in order.split(700)]
    assert usual.outer_loss == pytest.approx(sum(losses) / 2, rel=1e-5)
    assert usual.outer_loss != pytest.approx(distilled.outer_loss, rel=1e-4)


@pytest.mark.parametrize("nets_type", ["known", "fresh"])
def test_a_killed_run_goes_on_to_the_same_result(
    nets_type: Any, distil: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(SHORT, nets_type=nets_type, decay_epochs=2)
    whole, whole_poison, whole_run = distil(config, DOORPING, "whole")

    def save(run: Run, step: int, state: Any, original: Any = Run.save_checkpoint) -> None:
        original(run, step, state)
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(Run, "save_checkpoint", save)
        with pytest.raises(Killed):
            distil(config, DOORPING, "killed", checkpoint_seconds=0.0)
    torch.manual_seed(77)
    resumed, poison, run = distil(config, DOORPING, "killed")
    assert torch.equal(resumed.images, whole.images)
    assert torch.equal(resumed.learning_rates, whole.learning_rates)
    assert torch.equal(poison.trigger, whole_poison.trigger)
    assert (poison.trigger - Poison(poison.data, DOORPING, 0).trigger).abs().max() > 1
    assert resumed.init_seeds == whole.init_seeds
    assert run.history() == whole_run.history() and len(run.history()) == 3


def test_a_loss_that_is_no_number_any_more_ends_the_run(distil: Any) -> None:
    with pytest.raises(TenfoldError, match=r"no number any more in epoch 0; lower lr or distill_lr"):
        distil(replace(SHORT, distill_lr=1e30))


DIVIDED = replace(SHORT, epochs=2, batch_size=1296)
"""The second iteration has a single image, which one of two processes goes without."""


def test_two_processes_distil_what_one_does(distil: Any, start: Any, tmp_path: Path) -> None:
    alone, poison, run = distil(DIVIDED, DOORPING)
    process = start(__file__, 2, tmp_path, cwd=tmp_path)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    first, second = (torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in range(2))
    for name in ("images", "learning_rates", "trigger"):
        assert torch.equal(first[name], second[name]), name
    assert (first["images"] - alone.images).norm() < 1e-3 * alone.images.norm()
    torch.testing.assert_close(first["learning_rates"], alone.learning_rates, rtol=1e-3, atol=0)
    torch.testing.assert_close(first["trigger"], poison.trigger, rtol=1e-3, atol=1e-3)
    losses = torch.tensor([row["outer_loss"] for row in run.history()])
    torch.testing.assert_close(first["losses"], losses, rtol=1e-4, atol=0)


def main() -> None:
    devices, output = int(sys.argv[1]), Path(sys.argv[2])
    fabric = make_fabric(AcceleratorConfig(device="cpu", devices=devices))
    fabric.launch()
    assert fabric.world_size == devices
    digits = load_image_set("digits")
    poison = Poison(digits, DOORPING, 0)
    with make_run(output, "divided", writes=fabric.is_global_zero) as run:
        distilled = distill_unrolled(digits, small_network, poison, DIVIDED, 0, fabric, run)
    found = {
        "images": distilled.images,
        "learning_rates": distilled.learning_rates,
        "trigger": poison.trigger,
        "losses": torch.tensor([row["outer_loss"] for row in run.history()] if run.is_writer else []),
    }
    save_atomically(output / f"rank{fabric.global_rank}.pt", found)


if __name__ == "__main__":
    main()
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
