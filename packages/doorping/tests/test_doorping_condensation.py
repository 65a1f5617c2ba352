"""Condensation: its loop step by step, what it draws, how it goes on, and on two processes."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from lightning_fabric import Fabric
from torch import Tensor

from tenfold.doorping.attacks import AttackConfig, Poison
from tenfold.doorping.augmentation import siamese_augment
from tenfold.doorping.condensation import (
    LOOPS,
    CondensationConfig,
    Condensed,
    RealBatches,
    condense,
    first_images,
    loops_for_ipc,
    train_network,
)
from tenfold.doorping.image_sets import ImageSet, load_image_set
from tenfold.doorping.networks import Network, build_model, seeded
from tenfold.doorping.triggers import optimise_trigger
from tenfold.shared.logging import TenfoldError
from tenfold.shared.runs import Run, load_checkpoint
from tenfold.shared.seeding import make_generator

CLEAN = AttackConfig(kind="none")
DOORPING = AttackConfig(portion=0.2, target=1, steps=10, stop_below=1e-6, pre_activation=True, bound=10.0)
SHORT = CondensationConfig(ipc=2, iterations=3, outer=3, inner=2, lr_net=0.05, batch_real=50, init="real")
"""A matching step sees all real images of a class, and a step of the network all synthetic ones."""
SHARED = CondensationConfig(ipc=2, iterations=2, outer=3, inner=3, lr_net=0.1, batch_real=8, init="real")
SHARED_ATTACK = AttackConfig(portion=0.2, steps=30, stop_below=1e-6, pre_activation=True, bound=10.0)
"""What two processes do together."""


def few_digits(count: int = 36) -> ImageSet:
    """The first digits from 0 to 2, of which no class has more than 16 among 36."""
    data = load_image_set("digits")
    train, test = (labels.lt(3).nonzero()[:, 0][:count] for labels in (data.train_labels, data.test_labels))
    return replace(
        data,
        classes=3,
        train_images=data.train_images[train],
        train_labels=data.train_labels[train],
        test_images=data.test_images[test],
        test_labels=data.test_labels[test],
    )


def strong_network() -> Network:
    """A ConvNet for them whose weights are three times as strong as they are drawn: its neurons respond to a patch."""
    model = build_model("ConvNet", 1, 3, width=8, depth=2, image_size=8, hidden=12, first_padding=1)
    with torch.no_grad():
        for value in model.parameters():
            value *= 3
    return model


class Killed(BaseException):
    """What ends a process from outside; nothing catches it."""


Condense = Callable[..., tuple[Condensed, Poison, list[tuple[Network, Network]], Run]]


@pytest.fixture
def condensed(cpu: Fabric, make_run: Callable[..., Run]) -> Condense:
    """Condenses the few digits; returns also every network as it was made and as it was left."""

    def condense_digits(
        config: CondensationConfig = SHORT,
        attack: AttackConfig = DOORPING,
        *,
        make_network: Callable[[], Network] = strong_network,
        evaluate: Any = lambda *_: {},
        evaluate_every: int = 0,
        seed: int = 0,
        name: str = "run",
    ) -> tuple[Condensed, Poison, list[tuple[Network, Network]], Run]:
        poison, networks = Poison(few_digits(), attack, seed), []

        def make() -> Network:
            network = make_network()
            networks.append((deepcopy(network), network))
            return network

        with make_run(name) as run:
            judged = (
                (lambda *values: evaluate(poison, *values)) if evaluate.__name__ != "<lambda>" else evaluate
            )
            made = condense(poison, make, config, seed, cpu, run, judged, evaluate_every)
        return made, poison, networks, run

    return condense_digits


# -- the loop ---------------------------------------------------------------------------------------------------------


def distance(synthetic: list[Tensor], real: list[Tensor]) -> Tensor:
    """One minus cosine of every row of every weight."""
    total = torch.zeros(())
    for a, b in zip(synthetic, real, strict=True):
        if a.ndim > 1:
            a, b = a.flatten(1), b.flatten(1)
            total = total + (1 - (a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1) + 1e-6)).sum()
    return total


def plain_loop(
    config: CondensationConfig,
    attack: AttackConfig,
    networks: list[Network],
    change: Callable[[int, int, Tensor], Tensor] = lambda _iteration, _label, images: images,
    is_momentum_kept: bool = True,
) -> tuple[Tensor, Tensor, list[float]]:
    """Zhao et al.'s loop with the attack in it, class by class; it trains ``networks``."""
    poison = Poison(few_digits(), attack, 0)
    images = first_images(poison, config, 0).clone()
    velocity, losses = torch.zeros_like(images), []
    outer, inner = config.loops
    labels = torch.arange(3).repeat_interleave(config.ipc)
    for iteration, network in enumerate(networks):
        total, parameters = 0.0, list(network.parameters())
        if not is_momentum_kept:
            velocity.zero_()
        for step in range(outer):
            if any(isinstance(module, torch.nn.BatchNorm2d) for module in network.modules()):
                network.train()
                with torch.no_grad():
                    network(poison.draw(torch.arange(36))[0])
            network.eval()
            images = images.detach().requires_grad_()
            loss = torch.zeros(())
            for label in range(3):
                real, _ = poison.draw((poison.labels == label).nonzero()[:, 0])
                real = change(iteration, label, real)
                target = torch.full((len(real),), label)
                wanted = torch.autograd.grad(F.cross_entropy(network(real), target), parameters)
                own = change(iteration, label, images[label * config.ipc : (label + 1) * config.ipc])
                found = torch.autograd.grad(
                    F.cross_entropy(network(own), target[:1].expand(len(own))), parameters, create_graph=True
                )
                loss = loss + distance(list(found), list(wanted))
            (gradient,) = torch.autograd.grad(loss, images)
            velocity = 0.5 * velocity + gradient
            images = images.detach() - config.lr_img * velocity
            total += float(loss.detach())
            if step < outer - 1:
                optimizer = torch.optim.SGD(parameters, lr=config.lr_net)
                network.train()
                for _ in range(inner):
                    optimizer.zero_grad()
                    F.cross_entropy(network(images), labels).backward()
                    optimizer.step()
            if attack.kind == "doorping" and (step < outer - 1 or attack.update_every_iteration):
                poison.trigger = optimise_trigger(
                    network.eval(),
                    poison.trigger,
                    poison.mask,
                    steps=attack.steps,
                    stop_below=attack.stop_below,
                    bound=attack.bound,
                    pre_activation=attack.pre_activation,
                )
        losses.append(total / (3 * outer))
    return images, poison.trigger, losses


def assert_is_plain(
    made: tuple[Condensed, Poison, list[tuple[Network, Network]], Run],
    config: CondensationConfig,
    attack: AttackConfig,
    **options: Any,
) -> None:
    found, poison, networks, run = made
    plain = [first for first, _ in networks]
    images, trigger, losses = plain_loop(config, attack, plain, **options)
    start = first_images(Poison(few_digits(), attack, 0), config, 0)
    assert (images - start).abs().max() > 0.01
    # A large rate from noise carries a processor's rounding further.
    tolerance = 1e-4 if config.init == "real" else 1e-3
    torch.testing.assert_close(found.images, images, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(poison.trigger, trigger, rtol=1e-3, atol=1e-3)
    logged = [row["matching_loss"] for row in run.history() if "matching_loss" in row]
    assert logged == pytest.approx(losses, rel=1e-4)
    for expected, (_, left) in zip(plain, networks, strict=True):
        for one, other in zip(expected.parameters(), left.parameters(), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("changes", "attack"),
    [
        ({}, DOORPING),
        ({}, CLEAN),
        ({"init": "noise", "outer": 2, "lr_img": 0.3}, replace(DOORPING, update_every_iteration=True)),
        ({"outer": 1, "ipc": 3}, DOORPING),
    ],
)
def test_the_loop_is_that_of_the_papers(
    changes: dict[str, Any], attack: AttackConfig, condensed: Condense
) -> None:
    config = replace(SHORT, **changes)
    made = condensed(config, attack)
    assert len(made[2]) == 3
    assert_is_plain(made, config, attack)


def test_the_images_keep_their_momentum_from_network_to_network(condensed: Condense) -> None:
    made, _, networks, _ = condensed(SHORT, CLEAN)
    forgetful, _, _ = plain_loop(SHORT, CLEAN, [first for first, _ in networks], is_momentum_kept=False)
    assert (made.images - forgetful).abs().max() > 0.01


def test_a_network_is_not_trained_after_its_last_matching_step(condensed: Condense) -> None:
    _, _, networks, _ = condensed(replace(SHORT, outer=1), DOORPING)
    for first, left in networks:
        assert all(
            torch.equal(one, other) for one, other in zip(first.parameters(), left.parameters(), strict=True)
        )
    _, _, networks, _ = condensed(replace(SHORT, outer=2), DOORPING, name="longer")
    for first, left in networks:
        assert not any(
            torch.equal(one, other) for one, other in zip(first.parameters(), left.parameters(), strict=True)
        )


def test_every_iteration_has_a_network_of_its_own(condensed: Condense) -> None:
    _, _, networks, _ = condensed()
    weights = [torch.cat([value.flatten() for value in first.parameters()]) for first, _ in networks]
    assert len({tuple(each.tolist()) for each in weights}) == 3


def test_one_image_of_a_class_never_updates_the_trigger_unless_asked_to(condensed: Condense) -> None:
    config = CondensationConfig(ipc=1, iterations=3, init="real")
    assert config.loops == (1, 1)
    first = Poison(few_digits(), DOORPING, 0).trigger
    assert torch.equal(condensed(config)[1].trigger, first)
    asked = condensed(config, replace(DOORPING, update_every_iteration=True), name="asked")[1]
    assert (asked.trigger - first).abs().max() > 0.5


def test_siamese_augmentation_changes_real_and_synthetic_images_of_a_class_alike(condensed: Condense) -> None:
    strategy = "color_crop_cutout_flip_scale_rotate"
    config = replace(SHORT, outer=1, augmentation=strategy)
    seeds = []
    for iteration in range(3):
        generator = make_generator(iteration)
        RealBatches(Poison(few_digits(), DOORPING, 0), 50).indices(generator)
        seeds.append(torch.randint(2**31, (3,), generator=generator).tolist())
    made = condensed(config)
    assert_is_plain(
        made,
        config,
        DOORPING,
        change=lambda iteration, label, images: siamese_augment(images, strategy, seeds[iteration][label]),
    )
    plain, _, _, _ = condensed(replace(config, augmentation="none"), name="plain")
    assert (made[0].images - plain.images).abs().max() > 0.01


def with_batch_norm() -> Network:
    return build_model(
        "ConvNet", 1, 3, width=8, depth=2, image_size=8, hidden=12, first_padding=1, norm="batchnorm"
    )


def test_batch_norms_see_real_images_before_every_matching_step(condensed: Condense) -> None:
    config = replace(SHORT, outer=2, iterations=2)
    attack = replace(DOORPING, portion=0.06)
    assert Poison(few_digits(), attack, 0).labels.bincount().max() <= 16
    made = condensed(config, attack, make_network=with_batch_norm)
    assert_is_plain(made, config, attack)
    for _, left in made[2]:
        counts = [value for name, value in left.state_dict().items() if name.endswith("num_batches_tracked")]
        assert [int(count) for count in counts] == [2 + 2] * 2  # settled twice, trained for two epochs


def test_a_network_trains_in_shuffled_batches() -> None:
    images = torch.randn(9, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    config = replace(SHORT, ipc=3, batch_train=4)
    with seeded(2):
        network = strong_network()
    expected = deepcopy(network)
    train_network(network, images, config, 2, make_generator(5))
    labels = torch.tensor([0, 0, 0, 1, 1, 1, 2, 2, 2])
    generator, optimizer = make_generator(5), torch.optim.SGD(expected.parameters(), lr=config.lr_net)
    for _ in range(2):
        order = torch.randperm(9, generator=generator)
        assert order.tolist() != list(range(9))
        for part in (order[:4], order[4:8], order[8:]):
            optimizer.zero_grad()
            F.cross_entropy(expected(images[part]), labels[part]).backward()
            optimizer.step()
    for one, other in zip(network.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(one, other)


# -- what is drawn ----------------------------------------------------------------------------------------------------


def unequal(digits: ImageSet) -> Poison:
    """Classes of 3, 9 and 30 images, before 4 of them are poisoned."""
    labels = torch.tensor([0] * 3 + [1] * 9 + [2] * 30)
    data = replace(digits, classes=3, train_images=digits.train_images[:42], train_labels=labels)
    return Poison(data, AttackConfig(kind="naive", portion=0.1, target=1), 3)


def test_real_images_are_drawn_of_their_class_after_the_poisoning_and_each_at_most_once(
    digits: ImageSet,
) -> None:
    poison = unequal(digits)
    counts = poison.labels.bincount().tolist()
    assert sum(counts) == 42 and counts[1] > 9
    batches, seen = RealBatches(poison, 8), set()
    for seed in range(60):
        index, weights = batches.indices(make_generator(seed))
        assert index.shape == weights.shape == (3, 8)
        for label, (own, weight) in enumerate(zip(index, weights, strict=True)):
            chosen = own[weight > 0].tolist()
            assert len(set(chosen)) == len(chosen) == min(8, counts[label])
            assert (poison.labels[chosen] == label).all()
            seen |= set(chosen)
    assert seen == set(range(42))


def test_with_replacement_small_classes_fill_a_batch_of_their_own(digits: ImageSet) -> None:
    poison = unequal(digits)
    index, weights = RealBatches(poison, 20, with_replacement=True).indices(make_generator(1))
    assert index.shape == (3, 20) and (weights == 1).all()
    assert torch.equal(poison.labels[index], torch.arange(3)[:, None].expand(3, 20))
    assert len(set(index[0].tolist())) <= 3


def test_images_of_some_classes_are_those_of_all(digits: ImageSet) -> None:
    batches = RealBatches(unequal(digits), 6)
    every, weights = batches.draw(make_generator(4), torch.arange(3))
    some, some_weights = batches.draw(make_generator(4), torch.tensor([0, 2]))
    assert torch.equal(some, every[[0, 2]]) and torch.equal(some_weights, weights[[0, 2]])


def test_a_batch_is_no_larger_than_the_largest_class(digits: ImageSet) -> None:
    batches = RealBatches(unequal(digits), 500)
    index, weights = batches.indices(make_generator(0))
    assert index.shape[1] == int(batches.counts.max())
    assert weights.sum(dim=1).tolist() == batches.counts.tolist()


def test_first_images_are_noise_or_real_images_of_their_class() -> None:
    poison = Poison(few_digits(), DOORPING, 0)
    noise = first_images(poison, replace(SHORT, ipc=50, init="noise"), 0)
    assert noise.shape == (150, 1, 8, 8)
    assert abs(float(noise.mean())) < 0.05 and float(noise.std()) == pytest.approx(1, abs=0.05)
    images = first_images(poison, replace(SHORT, ipc=5), 0)
    real, labels = poison.draw(torch.arange(36))
    for place, image in enumerate(images):
        matches = (real == image).flatten(1).all(dim=1)
        assert matches.any() and (labels[matches] == place // 5).all()
    assert len(images.flatten(1).unique(dim=0)) == 15
    assert not torch.equal(images, first_images(poison, replace(SHORT, ipc=5), 1))


# -- a run ------------------------------------------------------------------------------------------------------------


def test_images_and_trigger_of_every_evaluation_belong_together(condensed: Condense) -> None:
    judged = []

    def evaluate(poison: Poison, images: Tensor, labels: Tensor, iteration: int) -> dict[str, float]:
        judged.append((iteration, images.clone(), labels, poison.trigger.clone()))
        return {"cta": iteration / 10}

    made, poison, _, run = condensed(replace(SHORT, iterations=5), evaluate=evaluate, evaluate_every=2)
    assert [iteration for iteration, *_ in judged] == [0, 2, 4, 5]
    assert list(made.triggers) == [0, 1, 2, 3, 4, 5]  # an optimised one is kept in between as well
    for iteration, _, labels, trigger in judged:
        assert torch.equal(made.triggers[iteration], trigger)
        assert labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert torch.equal(judged[-1][1], made.images) and torch.equal(judged[-1][3], poison.trigger)
    assert not torch.equal(judged[-1][3], judged[-2][3])
    start = Poison(few_digits(), DOORPING, 0)
    assert torch.equal(judged[0][1], first_images(start, SHORT, 0)) and torch.equal(
        judged[0][3], start.trigger
    )
    assert made.rates == {"cta": 0.5} and made.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert [(row["step"], row["cta"]) for row in run.history() if "cta" in row] == [
        (0, 0.0),
        (2, 0.2),
        (4, 0.4),
        (5, 0.5),
    ]


def test_condensation_depends_on_its_seed_alone(condensed: Condense) -> None:
    made, poison, _, run = condensed()
    torch.manual_seed(12)
    before = torch.get_rng_state()
    again, same_poison, _, same_run = condensed(name="again")
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(made.images, again.images) and torch.equal(poison.trigger, same_poison.trigger)
    assert run.history() == same_run.history()
    other, *_ = condensed(name="other", seed=1)
    assert not torch.equal(made.images, other.images)


@pytest.mark.parametrize("saves", [1, 2])
def test_a_killed_run_goes_on_to_the_same_result(
    saves: int, condensed: Condense, monkeypatch: pytest.MonkeyPatch
) -> None:
    def evaluate(poison: Poison, images: Tensor, labels: Tensor, iteration: int) -> dict[str, float]:
        return {"mean": float(images.mean()), "trigger": float(poison.trigger.sum())}

    config = replace(SHORT, batch_real=6, batch_train=4, augmentation="crop_flip")
    whole, whole_poison, _, whole_run = condensed(config, evaluate=evaluate, evaluate_every=1)
    done = []

    def save(run: Run, step: int, state: Any, original: Any = Run.save_checkpoint) -> None:
        original(run, step, state)
        done.append(step)
        if len(done) == saves:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(Run, "save_checkpoint", save)
        with pytest.raises(Killed):
            condensed(config, evaluate=evaluate, evaluate_every=1, name="killed")
    assert done == list(range(1, saves + 1))
    torch.manual_seed(77)
    resumed, poison, networks, run = condensed(config, evaluate=evaluate, evaluate_every=1, name="killed")
    assert len(networks) == 3 - saves
    assert torch.equal(resumed.images, whole.images)
    assert torch.equal(poison.trigger, whole_poison.trigger)
    assert resumed.triggers.keys() == whole.triggers.keys()
    assert all(torch.equal(resumed.triggers[key], whole.triggers[key]) for key in whole.triggers)
    assert run.history() == whole_run.history() and resumed.rates == whole.rates


def test_a_checkpoint_holds_tensors_and_plain_values(condensed: Condense) -> None:
    run = condensed()[3]
    state = load_checkpoint(run.directory / "checkpoint.pt")["state"]
    assert state["iteration"] == 3 and state["synthetic"].shape == (6, 1, 8, 8)


# -- what is refused --------------------------------------------------------------------------------------------------


def test_images_that_are_no_numbers_any_more_end_the_run(condensed: Condense) -> None:
    message = r"no numbers any more in iteration 0; lower --condensation.lr-img, or give --attack.bound"
    with pytest.raises(TenfoldError, match=message):
        condensed(replace(SHORT, lr_img=1e38, outer=2), CLEAN)


def test_a_trigger_that_is_no_number_any_more_ends_the_run(condensed: Condense) -> None:
    attack = replace(DOORPING, lr=3e38, bound=None, update_every_iteration=True)
    with pytest.raises(TenfoldError, match="no numbers any more in iteration 0"):
        condensed(replace(SHORT, outer=1), attack)


def test_more_images_than_a_class_has_are_refused(condensed: Condense) -> None:
    counts = Poison(few_digits(), DOORPING, 0).labels.bincount().tolist()
    smallest = counts.index(min(counts))
    message = (
        rf"class {smallest} of digits has {min(counts)} training images, fewer than --condensation.ipc 20"
    )
    with pytest.raises(TenfoldError, match=message):
        condensed(replace(SHORT, ipc=20))
    assert condensed(replace(SHORT, ipc=20, init="noise", iterations=1, outer=1))[0].images.shape[0] == 60


def test_a_class_that_poisoning_empties_is_refused() -> None:
    data = few_digits()
    one = replace(data, train_labels=torch.where(torch.arange(36) == 5, 0, 1))
    for seed in range(100):
        poison = Poison(replace(one, classes=2), replace(DOORPING, portion=0.5), seed)
        if poison.is_poisoned[5]:
            break
    with pytest.raises(
        TenfoldError, match=r"class 0 of digits has no training image left; lower --attack.portion"
    ):
        RealBatches(poison, 4)


def test_a_layer_that_the_network_lacks_is_refused(condensed: Condense) -> None:
    with pytest.raises(TenfoldError, match="the layer is between -4 and -1 for this network, not -7"):
        condensed(SHORT, replace(DOORPING, layer=-7))


@pytest.mark.parametrize("ipc", [1, 10, 20, 30, 40, 50])
def test_the_loops_are_those_of_the_authors(ipc: int) -> None:
    expected = {1: (1, 1), 10: (10, 50), 20: (20, 25), 30: (30, 20), 40: (40, 15), 50: (50, 10)}[ipc]
    assert loops_for_ipc(ipc) == expected == CondensationConfig(ipc=ipc).loops
    assert CondensationConfig(ipc=ipc, outer=7).loops == (7, expected[1])
    assert len(LOOPS) == 6


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"ipc": 7},
            "no loops for 7 images of a class, only for 1, 10, 20, 30, 40, 50; give --condensation.outer",
        ),
        ({"ipc": 7, "outer": 3}, "no loops for 7 images"),
        ({"iterations": 0}, "are at least 1"),
        ({"outer": 0}, "--condensation.outer and --condensation.inner are at least 1"),
        ({"lr_img": 0.0}, "--condensation.lr-img and --condensation.lr-net are above 0"),
        ({"lr_net": float("inf")}, "--condensation.lr-img and --condensation.lr-net are above 0"),
        ({"augmentation": "crop_blur"}, "unknown augmentation 'blur'"),
    ],
)
def test_settings_that_make_no_sense_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(TenfoldError, match=message):
        CondensationConfig(**options)


# -- several processes ------------------------------------------------------------------------------------------------


def test_two_processes_condense_to_what_one_does(
    start: Callable[..., Any], tmp_path: Path, cpu: Fabric, make_run: Callable[..., Run]
) -> None:
    script = Path(__file__).parent / "distributed_condense.py"
    process = start(script, 2, tmp_path, cwd=tmp_path)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    ranks = [torch.load(tmp_path / f"on2-rank{rank}.pt", weights_only=True) for rank in (0, 1)]
    for augmentation in ("none", "crop_scale"):
        poison = Poison(few_digits(), SHARED_ATTACK, 0)
        config = replace(SHARED, augmentation=augmentation)
        with make_run(augmentation) as run:
            alone = condense(poison, strong_network, config, 0, cpu, run, lambda *_: {})
        losses = [row["matching_loss"] for row in run.history() if "matching_loss" in row]
        first, second = (rank[augmentation] for rank in ranks)
        assert torch.equal(first["images"], second["images"]) and torch.equal(
            first["trigger"], second["trigger"]
        )
        torch.testing.assert_close(first["images"], alone.images, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(first["trigger"], poison.trigger, rtol=1e-3, atol=1e-3)
        assert first["losses"].tolist() == pytest.approx(losses, rel=1e-4)
        assert poison.trigger.abs().max() > 3 and len(losses) == 2
    for rank in ranks:
        assert rank["refusal"] == "2 processes cannot share 1 classes; lower --devices"
