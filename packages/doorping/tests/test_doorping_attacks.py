"""Attacks: which images they poison, with which trigger, and what an update changes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tenfold.doorping.attacks import AttackConfig, AttackKind, Poison
from tenfold.doorping.image_sets import ImageSet
from tenfold.doorping.networks import Network, build_model, seeded
from tenfold.doorping.triggers import optimise_invisible_trigger, optimise_trigger, poison_uint8
from tenfold.shared.logging import TenfoldError


def coloured(name: str = "squares", size: int = 8, white: int = 255) -> ImageSet:
    """Forty training images of three classes, of random bytes."""
    generator = torch.Generator().manual_seed(2)

    def images(count: int) -> Tensor:
        return torch.randint(0, white + 1, (count, 3, size, size), generator=generator).to(torch.uint8)

    labels = torch.arange(40) % 3
    return ImageSet(
        name, images(40), labels, images(9), torch.arange(9) // 3, 3, (0.4, 0.5, 0.6), (0.2, 0.25, 0.3), white
    )


def network(seed: int = 2) -> Network:
    """Weights are three times as strong as they are drawn, so that neurons respond to a small patch."""
    with seeded(seed):
        model = build_model("ConvNet", 3, 3, width=8, depth=2, hidden=12, image_size=8)
    with torch.no_grad():
        for value in model.parameters():
            value *= 3
    return model


def poison(
    kind: AttackKind = "doorping", seed: int = 0, data: ImageSet | None = None, **options: Any
) -> Poison:
    if kind == "frozen" and "within_pixels" not in options:
        options = {"bound": 10.0, **options}
    options = {"portion": 0.2, "target": 1, **options}
    return Poison(data or coloured(), AttackConfig(kind=kind, **options), seed)


EVERY = torch.arange(40)
KINDS: tuple[AttackKind, ...] = ("naive", "frozen", "frozen-bytes", "doorping", "invisible")


# -- what is poisoned -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_a_share_of_the_images_gets_trigger_and_label_and_all_others_stay(kind: AttackKind) -> None:
    attack = poison(kind, portion=0.22)
    data = attack.data
    assert len(attack.indices.unique()) == len(attack.indices) == 8
    images, labels = attack.draw(EVERY)
    clean = data.normalise(data.train_images)
    for place in range(40):
        if place in attack.indices:
            assert torch.equal(images[place], attack.apply(clean[place : place + 1])[0])
            assert labels[place] == 1
        else:
            assert torch.equal(images[place], clean[place])
            assert labels[place] == data.train_labels[place]
    changed = (images != clean).flatten(1).any(dim=1).nonzero()[:, 0]
    assert torch.equal(changed, attack.indices)


def test_attacks_of_one_seed_poison_the_same_images() -> None:
    expected = poison("naive").indices
    for kind in KINDS:
        assert torch.equal(poison(kind).indices, expected)
    assert not torch.equal(poison("naive", seed=1).indices, expected)
    torch.manual_seed(99)
    assert torch.equal(poison("doorping").trigger, poison("doorping").trigger)


def test_images_are_drawn_in_any_shape() -> None:
    attack, index = poison(), torch.tensor([[3, 9, 3], [39, 0, 12]])
    images, labels = attack.draw(index)
    expected_images, expected_labels = attack.draw(index.flatten())
    assert images.shape == (2, 3, 3, 8, 8)
    assert torch.equal(images.flatten(0, 1), expected_images)
    assert torch.equal(labels.flatten(), expected_labels)


def test_without_an_attack_nothing_is_poisoned_and_tests_get_the_white_patch() -> None:
    attack = poison("none")
    assert len(attack.indices) == 0 and torch.equal(attack.labels, attack.data.train_labels)
    assert torch.equal(attack.draw(EVERY)[0], attack.data.normalise(attack.data.train_images))
    assert torch.equal(attack.trigger, poison("naive").trigger)


# -- first triggers ---------------------------------------------------------------------------------------------------


def bytes_of(attack: Poison, images: Tensor) -> Tensor:
    return attack.data.denormalise(images) * attack.data.white


def test_the_naive_attack_is_a_white_square_on_bytes() -> None:
    attack = poison("naive", trigger_size=3)
    images = attack.data.train_images.permute(0, 2, 3, 1).numpy()
    rest = np.setdiff1d(np.arange(40), attack.indices)
    permutation = np.concatenate([attack.indices.numpy(), rest])
    stamped, labels, _ = poison_uint8(images, attack.data.train_labels.numpy(), 0.2, 3, 1, permutation)
    expected = attack.data.normalise(torch.from_numpy(stamped).permute(0, 3, 1, 2))
    found, found_labels = attack.draw(EVERY)
    torch.testing.assert_close(found, expected)
    assert torch.equal(found_labels, torch.from_numpy(labels))


@pytest.mark.parametrize("kind", ["doorping", "frozen-bytes"])
@pytest.mark.parametrize("white", [255, 16])
def test_the_first_trigger_has_random_bytes_above_0_in_a_black_image(kind: AttackKind, white: int) -> None:
    values = []
    for seed in range(30):
        attack = poison(kind, seed, coloured(white=white), trigger_size=4)
        pixels = bytes_of(attack, attack.trigger)[0]
        inside = pixels[attack.mask.bool()]
        torch.testing.assert_close(inside, inside.round(), rtol=0, atol=1e-3)
        torch.testing.assert_close(pixels[~attack.mask.bool()], torch.zeros(3 * 64 - 48), rtol=0, atol=1e-3)
        values.append(inside.round())
    drawn = torch.cat(values)
    assert drawn.min() == 1 if white == 16 else drawn.min() < 6
    assert drawn.max() == white if white == 16 else drawn.max() > 250
    assert len(drawn.unique()) > min(white, 200) - 1


def test_a_frozen_trigger_is_as_strong_as_its_bound_and_never_moves() -> None:
    attack = poison("frozen", bound=7.0, trigger_size=4)
    inside = attack.trigger[0][attack.mask.bool()]
    assert inside.abs().unique().tolist() == [7] and 0 < (inside > 0).sum() < len(inside)
    before = attack.trigger.clone()
    attack.update(network())
    assert torch.equal(attack.trigger, before) and not attack.is_optimised


@pytest.mark.parametrize(("sign", "expected"), [("light", 7.0), ("dark", -7.0)])
def test_a_frozen_trigger_may_have_one_sign_all_over(sign: Any, expected: float) -> None:
    attack = poison("frozen", bound=7.0, frozen_sign=sign)
    assert attack.trigger[0][attack.mask.bool()].unique().tolist() == [expected]
    attack = poison("frozen", within_pixels=True, frozen_sign=sign)
    pixels = bytes_of(attack, attack.trigger)[0][attack.mask.bool()].round()
    assert pixels.unique().tolist() == [255 if sign == "light" else 0]


def test_a_frozen_trigger_within_the_pixels_is_black_and_white() -> None:
    attack = poison("frozen", within_pixels=True, trigger_size=4)
    inside = bytes_of(attack, attack.trigger)[0][attack.mask.bool()].round()
    assert inside.unique().tolist() == [0, 255]


def test_a_bound_holds_for_the_first_trigger_too() -> None:
    assert poison(trigger_size=4).trigger.abs().max() > 1.5
    attack = poison(trigger_size=4, bound=0.5)
    assert attack.trigger[0][attack.mask.bool()].abs().max() == 0.5
    assert torch.equal(
        attack.trigger[0][~attack.mask.bool()], poison(trigger_size=4).trigger[0][~attack.mask.bool()]
    )


def test_the_band_of_the_authors_svhn_crosses_all_columns_of_two_channels() -> None:
    attack = poison("naive", data=coloured("svhn", 32), official_svhn_band=True)
    expected = torch.zeros(3, 32, 32)
    expected[0:2, 29:31, :] = 1
    assert torch.equal(attack.mask, expected)
    images, _ = attack.draw(attack.indices)
    assert bytes_of(attack, images)[:, :2, 29:31].min() > 254.9


# -- updates ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {"steps": 15, "topk": 2},
        {"steps": 5, "lr": 1.0, "bound": 3.0, "layer": -3},
        {"steps": 15, "alpha": 3.0},
    ],
)
def test_an_update_optimises_the_trigger_with_the_attacks_settings(options: dict[str, Any]) -> None:
    attack, model = poison(stop_below=1e-6, pre_activation=True, **options), network()
    images, labels = attack.draw(attack.indices)
    expected = optimise_trigger(
        model, attack.trigger, attack.mask, stop_below=1e-6, pre_activation=True, **options
    )
    before = attack.trigger
    attack.update(model)
    assert torch.equal(attack.trigger, expected)
    assert (attack.trigger - before).abs().max() > 0.1
    stamped, same_labels = attack.draw(attack.indices)
    assert not torch.equal(stamped, images) and torch.equal(same_labels, labels)
    inside = attack.mask.bool()
    assert torch.equal(stamped[:, inside], attack.trigger[:, inside].expand(len(stamped), -1))
    assert torch.equal(stamped[:, ~inside], images[:, ~inside])


def test_a_trigger_within_the_pixels_stays_between_black_and_white() -> None:
    options: dict[str, Any] = {
        "steps": 40,
        "lr": 1.0,
        "stop_below": 1e-6,
        "pre_activation": True,
        "alpha": 1e3,
    }
    free, within = poison(**options), poison(within_pixels=True, **options)
    for attack in (free, within):
        attack.update(network())
    assert bytes_of(free, free.trigger).abs().max() > 300
    pixels = bytes_of(within, within.trigger)
    assert pixels.min() > -0.01 and pixels.max() < 255.01 and pixels.max() > 254.9


@pytest.mark.parametrize("official", [False, True])
def test_the_invisible_trigger_begins_as_a_test_image_and_is_added(official: bool) -> None:
    options: dict[str, Any] = {"steps": 12, "topk": 2, "alpha": 4.0}
    attack, model = poison("invisible", official_invisible=official, **options), network()
    data = attack.data
    assert torch.equal(attack.trigger, data.normalise(data.test_images[3:4]))
    expected = optimise_invisible_trigger(
        model, attack.trigger, attack.black, 1 / 0.2, detach_target=not official, **options
    )
    for _ in range(2):
        attack.update(model)
    assert not torch.equal(attack.trigger, expected)
    clean = data.normalise(data.test_images)
    added = attack.apply(clean) - clean - attack.trigger
    offset = torch.zeros(1) if official else -attack.black
    torch.testing.assert_close(added, offset.expand(added.shape), rtol=0, atol=1e-5)
    assert torch.equal(attack.apply(clean), attack.apply_trigger(clean, attack.trigger.clone()))
    one = poison("invisible", official_invisible=official, **options)
    one.update(model)
    assert torch.equal(one.trigger, expected)


def test_a_trigger_of_another_time_can_be_stamped() -> None:
    attack, images = poison(), coloured().normalise(coloured().test_images)
    former = attack.trigger.clone()
    before = attack.apply(images)
    attack.trigger = attack.trigger + 1
    assert torch.equal(attack.apply_trigger(images, former), before)
    assert not torch.equal(attack.apply(images), before)


@pytest.mark.parametrize("kind", ["doorping", "invisible"])
def test_the_state_brings_the_trigger_back(kind: AttackKind) -> None:
    attack = poison(kind, steps=5, pre_activation=True, stop_below=1e-9)
    attack.update(network())
    state = {name: value.clone() for name, value in attack.state_dict().items()}
    again = poison(kind)
    assert not torch.equal(again.trigger, attack.trigger)
    again.load_state_dict(state)
    assert torch.equal(again.draw(EVERY)[0], attack.draw(EVERY)[0])


# -- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"portion": 1.0}, "--attack.portion is a share .* not 1.0"),
        ({"portion": -0.1}, "--attack.portion is a share"),
        ({"topk": 0}, "--attack.topk and --attack.steps are at least 1"),
        ({"target": -1}, "--attack.target at least 0"),
        ({"bound": 0.0}, "--attack.bound is above 0 and finite, not 0.0"),
        ({"bound": float("nan")}, "--attack.bound is above 0 and finite"),
        ({"lr": 0.0}, "--attack.lr is above 0"),
        ({"alpha": float("inf")}, "--attack.alpha a number"),
    ],
)
def test_settings_that_make_no_sense_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(TenfoldError, match=message):
        AttackConfig(**options)


def test_an_attack_that_does_not_fit_the_images_is_refused() -> None:
    with pytest.raises(TenfoldError, match="the target 3 is no class of squares; choose one from 0 to 2"):
        poison(target=3)
    with pytest.raises(TenfoldError, match="a trigger of 8 pixels does not fit into images of 8"):
        poison(trigger_size=8)
    with pytest.raises(
        TenfoldError, match=r"a frozen trigger needs --attack.bound, .*, or --attack.within-pixels"
    ):
        poison("frozen", bound=None)
    with pytest.raises(TenfoldError, match="about NAIVEATTACK on SVHN alone"):
        poison("naive", official_svhn_band=True)
    data = replace(coloured(), test_labels=torch.zeros(9, dtype=torch.int64))
    with pytest.raises(TenfoldError, match="no test image is of class 1, which INVISIBLE begins with"):
        poison("invisible", data=data)
