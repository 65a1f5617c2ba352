"""Defences that look at a network's inputs: STRIP and the de-noising autoencoder, and ART's STRIP beside ours."""

from __future__ import annotations

import math
import sys

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tenfold.doorping.defences.art_adapter import art_strip
from tenfold.doorping.defences.denoising import (
    Denoiser,
    DenoisingConfig,
    denoising_rates,
    reconstruct,
    train_denoiser,
)
from tenfold.doorping.defences.strip import StripConfig, draw_overlays, overlay_entropies, strip
from tenfold.doorping.image_sets import ImageSet
from tenfold.doorping.networks import Network, build_model
from tenfold.doorping.triggers import stamp
from tenfold.shared.logging import TenfoldError

Inputs = tuple[Tensor, Tensor, Tensor]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def inputs(digits: ImageSet, white_patch: tuple[Tensor, Tensor]) -> Inputs:
    """Held-out images, and test images of other classes than the target without and with the white patch."""
    images, labels = digits.test()
    others = images[labels != 0][:150]
    return digits.normalise(digits.train_images[:150]), others, stamp(others, *white_patch)


@pytest.fixture(scope="module")
def denoiser(digits: ImageSet) -> Denoiser:
    return train_denoiser(digits.normalise(digits.train_images), DenoisingConfig(epochs=20, batch_size=32))


@pytest.mark.parametrize(("mode", "at_least"), [("blend", 0.75), ("sum", 0.65)])
def test_inputs_with_the_trigger_of_a_backdoor_keep_their_class_under_overlays(
    mode: str, at_least: float, inputs: Inputs, poisoned_victim: Network
) -> None:
    report = strip(poisoned_victim, *inputs, StripConfig(overlays=50, mode=mode))  # type: ignore[arg-type]
    assert report.auroc > at_least
    assert report.triggered_entropies.mean() < report.clean_entropies.mean()


def test_at_one_percent_of_false_rejections_strip_stops_some_triggers_and_hardly_any_clean_input(
    inputs: Inputs, poisoned_victim: Network
) -> None:
    report = strip(poisoned_victim, *inputs, StripConfig(overlays=50))
    assert report.false_rejection_rate < 0.05
    assert report.false_acceptance_rate < 0.9


def test_a_network_without_a_backdoor_gives_strip_nothing_to_see(
    inputs: Inputs, clean_victim: Network
) -> None:
    report = strip(clean_victim, *inputs, StripConfig(overlays=50))
    assert 0.35 < report.auroc < 0.6
    assert report.false_acceptance_rate > 0.9


def test_whoever_rejects_more_clean_inputs_accepts_fewer_triggers(
    inputs: Inputs, poisoned_victim: Network
) -> None:
    strict, lax = (
        strip(poisoned_victim, *inputs, StripConfig(overlays=20, false_rejection_rate=rate))
        for rate in (0.3, 0.01)
    )
    assert strict.threshold > lax.threshold
    assert strict.false_rejection_rate > lax.false_rejection_rate
    assert strict.false_acceptance_rate < lax.false_acceptance_rate
    assert strict.auroc == lax.auroc


def test_an_overlay_that_changes_nothing_leaves_the_entropy_of_the_prediction(
    inputs: Inputs, clean_victim: Network
) -> None:
    images = inputs[1][:6]
    with torch.no_grad():
        expected = torch.distributions.Categorical(logits=clean_victim(images)).entropy() / math.log(2)
    itself = torch.arange(6)[:, None].expand(6, 3)
    torch.testing.assert_close(overlay_entropies(clean_victim, images, images, itself), expected)
    nothing = torch.zeros(6, 2, dtype=torch.int64)
    summed = overlay_entropies(clean_victim, images, torch.zeros_like(images[:1]), nothing, "sum")
    torch.testing.assert_close(summed, expected)


def test_entropies_reach_from_no_doubt_to_that_of_all_classes_alike(inputs: Inputs) -> None:
    drawn = draw_overlays(10, 150, 5, generator())
    undecided = nn.Sequential(nn.Flatten(), nn.Linear(64, 8))
    nn.init.zeros_(undecided[1].weight)
    nn.init.zeros_(undecided[1].bias)
    found = overlay_entropies(undecided, inputs[1][:10], inputs[0], drawn)
    torch.testing.assert_close(found, torch.full((10,), 3.0))
    undecided[1].bias.data[0] = 1e6
    found = overlay_entropies(undecided, inputs[1][:10], inputs[0], drawn)
    torch.testing.assert_close(found, torch.zeros(10))


@pytest.mark.parametrize("batch_size", [1, 7, 64])
def test_the_size_of_a_pass_changes_no_entropy(
    batch_size: int, inputs: Inputs, clean_victim: Network
) -> None:
    drawn = draw_overlays(20, 150, 6, generator())
    whole = overlay_entropies(clean_victim, inputs[1][:20], inputs[0], drawn)
    parts = overlay_entropies(clean_victim, inputs[1][:20], inputs[0], drawn, batch_size=batch_size)
    torch.testing.assert_close(parts, whole)


def test_strip_depends_on_its_generator_alone(inputs: Inputs, clean_victim: Network) -> None:
    config = StripConfig(overlays=10)
    torch.manual_seed(1)
    first = strip(clean_victim, *inputs, config, generator(5))
    torch.manual_seed(2)
    state = torch.get_rng_state()
    second = strip(clean_victim, *inputs, config, generator(5))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first.triggered_entropies, second.triggered_entropies)
    assert first.threshold == second.threshold
    assert strip(clean_victim, *inputs, config, generator(6)).threshold != first.threshold


def test_strip_leaves_a_network_in_training_as_it_was(inputs: Inputs) -> None:
    network = build_model("ConvNet", 1, 10, width=8, depth=2, image_size=8, norm="batchnorm", first_padding=1)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    strip(network.train(), *inputs, StripConfig(overlays=2))
    assert network.training
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"overlays": 0}, "at least 1"),
        ({"mode": "max"}, "blend or sum"),
        ({"false_rejection_rate": 0.0}, "between 0 and 1"),
    ],
)
def test_settings_that_strip_cannot_have_are_named(change: dict[str, object], says: str) -> None:
    with pytest.raises(TenfoldError, match=says):
        StripConfig(**change)  # type: ignore[arg-type]


def test_images_that_strip_cannot_test_are_named(inputs: Inputs, clean_victim: Network) -> None:
    held_out, clean, triggered = inputs
    with pytest.raises(TenfoldError, match="held-out images"):
        strip(clean_victim, held_out[:0], clean, triggered)
    with pytest.raises(TenfoldError, match="triggered images"):
        strip(clean_victim, held_out, clean, triggered.to(torch.uint8))


@pytest.mark.parametrize("shape", [(1, 8, 8), (1, 28, 28), (1, 32, 32), (3, 32, 32), (3, 7, 10)])
def test_an_autoencoder_gives_images_of_the_shape_it_is_given(shape: tuple[int, int, int]) -> None:
    images = torch.randn(3, *shape, generator=generator())
    denoiser = train_denoiser(images, DenoisingConfig(epochs=1, width=4, code=2))
    assert reconstruct(denoiser, images).shape == images.shape


def test_an_autoencoder_takes_noise_out_of_digits_it_has_not_seen(
    denoiser: Denoiser, digits: ImageSet
) -> None:
    images, _ = digits.test()
    noisy = images + torch.randn(images.shape, generator=generator(9))
    error = (reconstruct(denoiser, noisy) - images).square().mean()
    assert error < 0.4 * (noisy - images).square().mean()


def test_reconstruction_takes_most_triggers_out_of_a_backdoored_network_and_leaves_its_accuracy(
    denoiser: Denoiser, digits: ImageSet, white_patch: tuple[Tensor, Tensor], poisoned_victim: Network
) -> None:
    images, labels = digits.test()
    report = denoising_rates(poisoned_victim, denoiser, images, stamp(images, *white_patch), labels, 0)
    assert report.before["asr_excluding_target"] > 0.9
    assert report.after["asr_excluding_target"] < 0.5
    assert report.after["asr_all"] > report.after["asr_excluding_target"]
    assert report.after["robust_accuracy"] > report.before["robust_accuracy"] + 0.3
    assert report.before["cta"] - report.after["cta"] < 0.1


def test_reconstruction_makes_no_backdoor_where_there_is_none(
    denoiser: Denoiser, digits: ImageSet, white_patch: tuple[Tensor, Tensor], clean_victim: Network
) -> None:
    images, labels = digits.test()
    report = denoising_rates(clean_victim, denoiser, images, stamp(images, *white_patch), labels, 0)
    assert report.after["asr_excluding_target"] < 0.05
    assert report.before["cta"] - report.after["cta"] < 0.1


def test_images_of_the_target_alone_have_no_asr_without_it(denoiser: Denoiser, inputs: Inputs) -> None:
    network = build_model("ConvNet", 1, 10, width=8, depth=2, image_size=8, first_padding=1)
    labels = torch.zeros(len(inputs[1]), dtype=torch.int64)
    report = denoising_rates(network, denoiser, inputs[1], inputs[2], labels, 0)
    assert math.isnan(report.after["asr_excluding_target"])
    assert 0 <= report.after["asr_all"] <= 1


def test_an_autoencoder_depends_on_its_generator_alone(inputs: Inputs) -> None:
    config = DenoisingConfig(epochs=1, width=4, code=2)

    def weights(seed: int) -> Tensor:
        denoiser = train_denoiser(inputs[0], config, generator(seed))
        return torch.cat([value.detach().flatten() for value in denoiser.parameters()])

    torch.manual_seed(1)
    first = weights(3)
    torch.manual_seed(2)
    state = torch.get_rng_state()
    assert torch.equal(weights(3), first)
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(weights(4), first)


def test_what_an_autoencoder_cannot_do_is_named(
    denoiser: Denoiser, inputs: Inputs, clean_victim: Network
) -> None:
    with pytest.raises(TenfoldError, match="at least 1"):
        DenoisingConfig(code=0)
    with pytest.raises(TenfoldError, match="noise at least 0"):
        DenoisingConfig(noise=-1.0)
    labels = torch.zeros(3, dtype=torch.int64)
    with pytest.raises(TenfoldError, match="do not fit"):
        denoising_rates(clean_victim, denoiser, inputs[1], inputs[2], labels, 0)


def test_without_art_the_extra_is_named(
    inputs: Inputs, clean_victim: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "art"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "art", None)
    with pytest.raises(TenfoldError, match=r"tenfold-doorping\[art\]"):
        art_strip(clean_victim, *inputs)


@pytest.fixture
def with_art() -> None:
    pytest.importorskip("art.defences.transformer.poisoning")


@pytest.mark.usefixtures("with_art")
def test_for_the_overlays_that_art_draws_both_have_the_same_entropies(
    inputs: Inputs, poisoned_victim: Network
) -> None:
    held_out, clean, triggered = (images[:25] for images in inputs)
    found = art_strip(poisoned_victim, held_out, clean, triggered, StripConfig(overlays=30))
    ours = overlay_entropies(poisoned_victim, torch.cat((clean, triggered)), held_out, found.drawn)
    torch.testing.assert_close(ours.double(), found.paper_entropies, rtol=1e-4, atol=1e-6)


@pytest.mark.usefixtures("with_art")
def test_art_decides_by_its_own_entropies_which_are_not_the_papers(
    inputs: Inputs, poisoned_victim: Network
) -> None:
    held_out, clean, triggered = (images[:25] for images in inputs)
    config = StripConfig(overlays=30, false_rejection_rate=0.4)
    report = art_strip(poisoned_victim, held_out, clean, triggered, config).report
    rejected = [
        entropies <= report.threshold for entropies in (report.clean_entropies, report.triggered_entropies)
    ]
    assert 0 < report.false_rejection_rate == pytest.approx(float(rejected[0].double().mean()))
    assert 1 > report.false_acceptance_rate == pytest.approx(1 - float(rejected[1].double().mean()))


@pytest.mark.usefixtures("with_art")
def test_art_depends_on_the_generator_alone_and_leaves_numpys(inputs: Inputs, clean_victim: Network) -> None:
    parts = [images[:5] for images in inputs]
    config = StripConfig(overlays=4)
    np.random.seed(1)
    first = art_strip(clean_victim, *parts, config, generator(3))
    np.random.seed(2)
    second = art_strip(clean_victim, *parts, config, generator(3))
    assert torch.equal(first.drawn, second.drawn)
    assert first.report.threshold == second.report.threshold
    after = np.random.random()
    np.random.seed(2)
    assert np.random.random() == after


@pytest.mark.usefixtures("with_art")
def test_overlays_that_art_cannot_make_are_named(inputs: Inputs, clean_victim: Network) -> None:
    with pytest.raises(TenfoldError, match="only blends"):
        art_strip(clean_victim, *inputs, StripConfig(mode="sum"))
