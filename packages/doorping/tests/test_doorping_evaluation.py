"""Victims: an ensemble learns what its networks learn one by one, and its rates are counted right."""

from __future__ import annotations

import math
import statistics
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from scipy import stats
from torch import Tensor

import tenfold.doorping.evaluation as evaluation
from tenfold.doorping.augmentation import siamese_augment
from tenfold.doorping.evaluation import (
    Ensemble,
    VictimConfig,
    ensemble_rates,
    evaluate_rates,
    rates_of,
    summarise,
    train_ensemble,
)
from tenfold.doorping.networks import Network, build_model, seeded
from tenfold.doorping.triggers import patch_mask, stamp
from tenfold.shared.logging import TenfoldError
from tenfold.shared.seeding import make_generator

SEEDS = (4, 9, 2)
LABELS = torch.arange(12) % 4
SHORT = VictimConfig(epochs=6, drop_after=3, lr=0.05, batch_size=12)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


IMAGES = noise(12, 3, 8, 8)


def make(name: str = "ConvNet", **options: Any) -> Network:
    return build_model(name, 3, 4, **{"width": 8, "depth": 2, "hidden": 12, "image_size": 8, **options})


def trained_alone(seed: int, config: VictimConfig, name: str = "ConvNet", **options: Any) -> Network:
    """As the authors do it: torch's SGD, and a new one at a tenth of the rate after the drop."""
    with seeded(seed):
        network = make(name, **options).train()
    generator, lr, step = make_generator(seed), config.lr, 0

    def optimiser() -> torch.optim.Optimizer:
        return torch.optim.SGD(
            network.parameters(), lr=lr, momentum=config.momentum, weight_decay=config.weight_decay
        )

    optimizer = optimiser()
    for epoch in range(config.epochs):
        order = torch.arange(12)
        if config.batch_size < 12:
            order = torch.randperm(12, generator=generator)
        for part in order.split(config.batch_size):
            batch = IMAGES[part]
            if config.augmentation != "none":
                draw = torch.randint(2**31, (1,), generator=make_generator(seed * 1_000_003 + step))
                batch = siamese_augment(batch, config.augmentation, int(draw))
                step += 1
            optimizer.zero_grad()
            F.cross_entropy(network(batch), LABELS[part]).backward()
            optimizer.step()
        if epoch == config.drop_after:
            lr *= 0.1
            optimizer = optimiser()
    return network.eval()


@pytest.mark.parametrize(
    ("name", "options", "changes"),
    [
        ("ConvNet", {}, {}),
        ("ConvNet", {}, {"drop_after": 0, "weight_decay": 0.1}),
        ("ConvNet", {}, {"drop_after": 100, "momentum": 0.0}),
        ("ConvNet", {"norm": "instancenorm", "activation": "leakyrelu"}, {"batch_size": 5}),
        ("ConvNet", {"norm": "batchnorm"}, {}),
        ("ConvNet", {"norm": "batchnorm", "pooling": "maxpooling"}, {"batch_size": 6}),
        ("ConvNet_B", {"norm": "layernorm", "activation": "sigmoid"}, {"batch_size": 4}),
        ("ConvNet", {}, {"batch_size": 6, "augmentation": "color_crop_flip_scale"}),
        ("AlexNet", {}, {"epochs": 4, "drop_after": 1}),
    ],
)
@pytest.mark.parametrize("as_one", [True, False])
def test_networks_learn_together_what_each_learns_alone(
    name: str, options: dict[str, Any], changes: dict[str, Any], as_one: bool
) -> None:
    config = VictimConfig(**{**vars(SHORT), **changes})
    ensemble = train_ensemble(lambda: make(name, **options), SEEDS, IMAGES, LABELS, config, as_one)
    tests = noise(5, 3, 8, 8, seed=7)
    logits = ensemble.logits(tests)
    assert ensemble.size == 3 and logits.shape == (3, 5, 4)
    for place, seed in enumerate(SEEDS):
        alone = trained_alone(seed, config, name, **options)
        with seeded(seed):
            first = make(name, **options)
        with torch.no_grad():
            expected = alone(tests)
            assert (expected - first.eval()(tests)).abs().max() > 1e-3
        torch.testing.assert_close(logits[place], expected, rtol=1e-4, atol=1e-5)
        state = ensemble[place].state_dict()
        for key, value in alone.state_dict().items():
            torch.testing.assert_close(state[key], value, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "change", [{"drop_after": 2}, {"drop_after": 4}, {"momentum": 0.8}, {"weight_decay": 0.0}]
)
def test_every_setting_of_the_training_matters(change: dict[str, Any]) -> None:
    found = train_ensemble(make, SEEDS[:1], IMAGES, LABELS, VictimConfig(**{**vars(SHORT), **change}))
    alone = trained_alone(SEEDS[0], SHORT)
    moved = [(found.parameters[name][0] - value).abs().max() for name, value in alone.named_parameters()]
    assert max(moved) > 2e-5


def test_a_network_does_not_depend_on_the_others() -> None:
    config = VictimConfig(**{**vars(SHORT), "batch_size": 5})
    together = train_ensemble(make, SEEDS, IMAGES, LABELS, config)
    torch.manual_seed(3)
    before = torch.get_rng_state()
    alone = train_ensemble(make, SEEDS[1:2], IMAGES, LABELS, config)
    assert torch.equal(torch.get_rng_state(), before)
    for name, value in alone.parameters.items():
        torch.testing.assert_close(value[0], together.parameters[name][1], rtol=1e-5, atol=1e-6)


def test_the_training_images_stay_as_they_are_and_are_learned() -> None:
    images = IMAGES.clone()
    config = VictimConfig(**{**vars(SHORT), "epochs": 150, "drop_after": 100})
    ensemble = train_ensemble(make, SEEDS, images, LABELS, config)
    assert torch.equal(images, IMAGES)
    assert (ensemble.logits(images).argmax(dim=2) == LABELS).float().mean() == 1


@pytest.mark.parametrize("norm", ["batchnorm", "none"])
def test_a_trained_ensemble_is_in_evaluation_mode(norm: str) -> None:
    ensemble = train_ensemble(lambda: make(norm=norm), SEEDS, IMAGES, LABELS, SHORT)
    before = {name: value.clone() for name, value in ensemble.buffers.items()}
    parameters = {name: value[1] for name, value in ensemble.parameters.items()}
    buffers = {name: value[1] for name, value in ensemble.buffers.items()}
    found = ensemble.call(parameters, buffers, IMAGES)
    torch.testing.assert_close(found, ensemble.logits(IMAGES)[1], rtol=1e-4, atol=1e-5)
    assert all(torch.equal(value, before[name]) for name, value in ensemble.buffers.items())
    assert bool(before) == (norm == "batchnorm")


def test_logits_do_not_depend_on_how_many_images_are_taken_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    networks = []
    for seed in SEEDS:
        with seeded(seed):
            networks.append(make().eval())
    ensemble = Ensemble(networks)
    expected = torch.stack([network(IMAGES) for network in networks]).detach()
    torch.testing.assert_close(ensemble.logits(IMAGES), expected)
    monkeypatch.setattr(evaluation, "IMAGES_AT_ONCE", 15)
    torch.testing.assert_close(ensemble.logits(IMAGES), expected)


# -- rates ------------------------------------------------------------------------------------------------------------


def logits_of(*predictions: int) -> Tensor:
    """Logits of three classes, 2 for the predicted one and 0 for the others."""
    return 2 * F.one_hot(torch.tensor(predictions), 3).float()


def test_rates_are_counted_by_hand() -> None:
    labels = torch.tensor([0, 0, 1, 1, 2, 2, 2, 0])
    clean = logits_of(0, 1, 1, 1, 0, 2, 2, 0)
    triggered = logits_of(0, 2, 0, 1, 0, 0, 2, 0)
    found = rates_of(clean, triggered, labels, 0)
    right, wrong = math.log(math.exp(2) + 2) - 2, math.log(math.exp(2) + 2)
    assert found == pytest.approx(
        {
            "cta": 6 / 8,
            "asr_all": 5 / 8,  # of all images, those of class 0 included
            "asr_excluding_target": 3 / 5,
            "robust_accuracy": 4 / 8,
            "clean_loss": (6 * right + 2 * wrong) / 8,
            "trigger_loss": (5 * right + 3 * wrong) / 8,
        }
    )


def test_a_clean_network_has_about_the_targets_share_on_all_images_and_nothing_on_others() -> None:
    labels = torch.arange(30) % 3
    perfect = logits_of(*labels.tolist())
    found = rates_of(perfect, perfect, labels, 2)
    assert found["asr_all"] == pytest.approx(1 / 3) and found["asr_excluding_target"] == 0
    assert found["cta"] == found["robust_accuracy"] == 1


def test_without_images_of_other_classes_there_is_no_rate_among_them() -> None:
    found = rates_of(logits_of(1, 1), logits_of(1, 0), torch.tensor([1, 1]), 1)
    assert math.isnan(found["asr_excluding_target"]) and found["asr_all"] == 0.5


def test_a_network_is_judged_in_evaluation_mode_with_the_trigger_inside_the_mask(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with seeded(1):
        model = make(norm="batchnorm").train()
    mask, trigger, labels = patch_mask(3, 8, 3), 9 * noise(1, 3, 8, 8, seed=3), LABELS
    monkeypatch.setattr(evaluation, "IMAGES_AT_ONCE", 5)
    found = evaluate_rates(model, IMAGES, labels, mask, trigger, 3)
    assert not model.training
    with torch.no_grad():
        clean, triggered = model(IMAGES), model(IMAGES * (1 - mask) + trigger * mask)
    assert found["cta"] == pytest.approx(float((clean.argmax(1) == labels).float().mean()))
    assert found["asr_all"] == pytest.approx(float((triggered.argmax(1) == 3).float().mean()))
    others = triggered[labels != 3]
    assert found["asr_excluding_target"] == pytest.approx(float((others.argmax(1) == 3).float().mean()))
    assert found["clean_loss"] == pytest.approx(float(F.cross_entropy(clean, labels)), rel=1e-5)
    assert found["trigger_loss"] == pytest.approx(float(F.cross_entropy(triggered, labels * 0 + 3)), rel=1e-5)


def test_an_ensemble_is_judged_network_by_network() -> None:
    ensemble = train_ensemble(make, SEEDS, IMAGES, LABELS, SHORT)
    mask, trigger = patch_mask(3, 8, 3), 9 * noise(1, 3, 8, 8, seed=3)
    tests, labels = noise(40, 3, 8, 8, seed=8), torch.arange(40) % 4
    found = ensemble_rates(ensemble, tests, stamp(tests, mask, trigger), labels, 1)
    for place, rates in enumerate(found):
        assert rates == pytest.approx(
            evaluate_rates(ensemble[place], tests, labels, mask, trigger, 1), rel=1e-4
        )
    assert len({rates["clean_loss"] for rates in found}) == 3


def test_a_backdoored_network_is_told_from_a_clean_one(
    poisoned_victim: Network, clean_victim: Network, digits: Any, white_patch: Any
) -> None:
    images, labels = digits.test()
    bad = evaluate_rates(poisoned_victim, images, labels, *white_patch, 0)
    good = evaluate_rates(clean_victim, images, labels, *white_patch, 0)
    assert bad["cta"] > 0.9 and bad["asr_excluding_target"] > 0.9 > bad["robust_accuracy"]
    assert good["cta"] > 0.9 and good["asr_excluding_target"] < 0.1 and good["robust_accuracy"] > 0.8


# -- over networks ----------------------------------------------------------------------------------------------------


def test_a_summary_has_mean_population_deviation_and_students_interval() -> None:
    values, losses = [0.5, 0.6, 0.55, 0.35], [1.0, 2.0, 3.0, 6.0]
    found = summarise([{"cta": a, "clean_loss": b} for a, b in zip(values, losses, strict=True)])
    interval = stats.t.interval(0.95, 3, statistics.mean(values), statistics.stdev(values) / 2)
    assert found == pytest.approx(
        {
            "cta": statistics.mean(values),
            "cta_std": statistics.pstdev(values),
            "cta_low": interval[0],
            "cta_high": interval[1],
            "clean_loss": 3.0,
            "clean_loss_std": statistics.pstdev(losses),
        }
    )


def test_an_interval_stays_within_what_a_share_can_be() -> None:
    found = summarise([{"asr_all": 0.99}, {"asr_all": 0.7}, {"asr_all": 1.0}])
    assert found["asr_all_high"] == 1 and 0 < found["asr_all_low"] < 0.7
    found = summarise([{"asr_all": 0.0}, {"asr_all": 0.02}])
    assert found["asr_all_low"] == 0


def test_a_single_network_has_no_interval() -> None:
    assert summarise([{"cta": 0.25}]) == {"cta": 0.25, "cta_std": 0.0}


# -- settings ---------------------------------------------------------------------------------------------------------


def test_victims_are_trained_as_the_authors_do_by_default() -> None:
    config = VictimConfig()
    assert (config.networks, config.epochs, config.drop_after, config.batch_size) == (10, 301, 151, 256)
    assert (config.lr, config.momentum, config.weight_decay, config.augmentation) == (0.01, 0.9, 5e-4, "none")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"networks": 0}, "at least 1 network"),
        ({"epochs": 0}, "for 1 epoch"),
        ({"batch_size": 0}, "batches of 1 image or more"),
        ({"lr": 0.0}, "rate is above 0"),
        ({"momentum": 1.0}, "momentum from 0 to below 1"),
        ({"weight_decay": -1.0}, "decay at least 0"),
    ],
)
def test_settings_that_make_no_sense_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(TenfoldError, match=message):
        VictimConfig(**options)
