"""Defences that look at a network or repair it: Neural Cleanse, ABS, fine-pruning and attention distillation."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tenfold.doorping.defences.attention_distillation import (
    AttentionDistillationConfig,
    attention_distance,
    attention_layers,
    attention_map,
    distil_attention,
)
from tenfold.doorping.defences.fine_pruning import (
    FinePruningConfig,
    FinePruningReport,
    FineTuning,
    fine_pruning,
    fine_tune,
    last_convolution,
)
from tenfold.doorping.defences.neural_cleanse import NeuralCleanseConfig, anomaly_index, neural_cleanse
from tenfold.doorping.defences.neuron_stimulation import (
    NeuronStimulationConfig,
    class_elevation,
    scan_neurons,
)
from tenfold.doorping.image_sets import ImageSet
from tenfold.doorping.networks import Network, build_model, seeded
from tenfold.doorping.triggers import stamp
from tenfold.shared.logging import TenfoldError

Pixels = tuple[Tensor, Tensor]
CLEANSE = NeuralCleanseConfig(steps=100)
STIMULATION = NeuronStimulationConfig(steps=60, batch_size=16)
TUNING = FineTuning(epochs=8, lr=0.05, batch_size=32)
ATTENTION = AttentionDistillationConfig(
    clean_share=0.2,
    teacher=FineTuning(
        epochs=20, lr=0.03, nesterov=True, weight_decay=1e-4, batch_size=32, decay_after=(13,)
    ),
    student=FineTuning(
        epochs=20, lr=0.01, nesterov=True, weight_decay=1e-4, batch_size=32, decay_after=(13,)
    ),
)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def colour_network(norm: Any = "none") -> Network:
    """A network that nobody trained, for 8x8 images of three channels and four classes."""
    with seeded(0):
        return build_model("ConvNet", 3, 4, width=8, depth=2, image_size=8, hidden=12, norm=norm)


@pytest.fixture(scope="module")
def colours() -> tuple[Tensor, Tensor]:
    """Images of three channels with labels of four classes."""
    return torch.randn(24, 3, 8, 8, generator=generator()), torch.arange(24) % 4


@pytest.fixture(scope="module")
def colour_range() -> Pixels:
    return torch.tensor([-2.0, -1.5, -1.0])[None, :, None, None], torch.tensor([1.0, 2.0, 3.0])[
        None, :, None, None
    ]


@pytest.fixture(scope="module")
def training(digits: ImageSet) -> tuple[Tensor, Tensor]:
    """Clean training images, which the tests' measurements do not touch."""
    return digits.normalise(digits.train_images), digits.train_labels


@pytest.fixture(scope="module")
def rates(digits: ImageSet, white_patch: tuple[Tensor, Tensor]) -> Callable[[nn.Module], tuple[float, float]]:
    """Clean accuracy, and the share of test images of other classes that the patch turns into a 0."""
    images, labels = digits.test()
    triggered = stamp(images[labels != 0], *white_patch)

    @torch.no_grad()
    def measure(network: nn.Module) -> tuple[float, float]:
        right = network(images).argmax(dim=1) == labels
        return float(right.float().mean()), float((network(triggered).argmax(dim=1) == 0).float().mean())

    return measure


# Neural Cleanse


def test_neural_cleanse_flags_the_target_of_a_backdoor_and_finds_where_its_trigger_is(
    digits: ImageSet, poisoned_victim: Network
) -> None:
    report = neural_cleanse(poisoned_victim, *digits.test(), *digits.black_and_white(), CLEANSE, generator())
    assert report.detected and report.flagged == (0,)
    assert report.mask_norms[0] < 0.5 * report.mask_norms[1:].min()
    assert report.attack_success[0] > 0.85
    assert report.masks[0, 0, 5:7, 5:7].sum() > 0.6 * report.mask_norms[0]
    torch.testing.assert_close(report.anomaly_index, anomaly_index(report.mask_norms))


def test_neural_cleanse_flags_nothing_in_a_clean_network(digits: ImageSet, clean_victim: Network) -> None:
    report = neural_cleanse(clean_victim, *digits.test(), *digits.black_and_white(), CLEANSE, generator())
    assert not report.detected and report.flagged == ()
    assert report.anomaly_index.max() < 2
    assert report.attack_success.min() > 0.8


def test_an_anomaly_index_counts_deviations_from_the_median() -> None:
    norms = torch.tensor([1.0, 10.0, 11.0, 12.0, 14.0])
    expected = torch.tensor([10.0, 1.0, 0.0, 1.0, 3.0], dtype=torch.float64) / 1.4826
    torch.testing.assert_close(anomaly_index(norms), expected)
    even = anomaly_index(torch.tensor([1.0, 2.0, 3.0, 10.0]))
    torch.testing.assert_close(even, torch.tensor([1.5, 0.5, 0.5, 7.5], dtype=torch.float64) / 1.4826)


def test_an_anomaly_index_is_infinite_only_beside_a_median_that_most_share() -> None:
    assert anomaly_index(torch.tensor([2.0, 5.0, 5.0, 5.0, 9.0])).tolist() == [torch.inf, 0, 0, 0, torch.inf]


@pytest.mark.parametrize("factor", [1.0, 3.0])
def test_patterns_keep_to_the_pixel_range_or_to_the_widened_one(
    factor: float, colours: tuple[Tensor, Tensor], colour_range: Pixels
) -> None:
    config = NeuralCleanseConfig(steps=30, batch_size=40, pixel_range_factor=factor)
    report = neural_cleanse(colour_network(), *colours, *colour_range, config, generator())
    low, high = colour_range
    assert report.masks.shape == (4, 1, 8, 8) and report.patterns.shape == (4, 3, 8, 8)
    middle, reach = (low + high) / 2, factor * (high - low) / 2
    assert bool(((report.patterns - middle).abs() <= reach + 1e-5).all())
    assert bool(((report.patterns < low) | (report.patterns > high)).any()) == (factor > 1)
    assert report.masks.min() >= 0 and report.masks.max() <= 1


class Constant(nn.Module):
    """Says the first of three classes to everything."""

    def forward(self, images: Tensor) -> Tensor:
        return images.flatten(1)[:, :3] * 0 + torch.tensor([1.0, 0.0, 0.0])


def test_the_mask_weight_rises_for_a_class_that_is_always_reached_and_falls_for_one_that_never_is(
    colours: tuple[Tensor, Tensor], colour_range: Pixels
) -> None:
    """Adam's steps keep their size under a weight that only falls; a weight that rises speeds them up."""
    images, labels = colours[0], colours[1] % 3
    report = neural_cleanse(
        Constant(), images, labels, *colour_range, NeuralCleanseConfig(steps=60), generator()
    )
    assert report.attack_success.tolist() == [1, 0, 0]
    assert report.mask_norms[0] < 0.8 * report.mask_norms[1:].min()
    assert report.flagged == (0,)


def test_a_lower_success_threshold_gives_smaller_masks_that_succeed_less_often(
    digits: ImageSet, clean_victim: Network
) -> None:
    data = (*digits.test(), *digits.black_and_white())
    strict, lax = (
        neural_cleanse(
            clean_victim,
            *data,
            NeuralCleanseConfig(steps=80, batch_size=16, success_threshold=threshold),
            generator(),
        )
        for threshold in (0.99, 0.5)
    )
    assert bool((lax.mask_norms < strict.mask_norms).all())
    assert bool((lax.attack_success < strict.attack_success).all())


# ABS


def test_abs_flags_the_target_of_a_backdoor_and_finds_where_its_trigger_is(
    digits: ImageSet, poisoned_victim: Network
) -> None:
    report = scan_neurons(
        poisoned_victim, *digits.test(), *digits.black_and_white(), STIMULATION, generator()
    )
    assert report.detected and report.flagged == (0,)
    place = int(report.reasr.argmax())
    assert report.target_classes[place] == 0 and report.reasr[place] > 0.9
    assert report.masks[place, 0, 5:7, 5:7].sum() > 0.5 * report.masks[place].sum()


def test_abs_flags_nothing_in_a_clean_network(digits: ImageSet, clean_victim: Network) -> None:
    report = scan_neurons(clean_victim, *digits.test(), *digits.black_and_white(), STIMULATION, generator())
    assert not report.detected and report.flagged == ()
    assert report.reasr.max() < 0.5


def test_candidates_are_for_every_class_and_their_masks_within_the_budget(
    colours: tuple[Tensor, Tensor], colour_range: Pixels
) -> None:
    config = NeuronStimulationConfig(steps=5, candidates_per_class=3, mask_share=0.1)
    report = scan_neurons(colour_network(), *colours, *colour_range, config, generator())
    assert sorted(report.target_classes.tolist()) == sorted([0, 1, 2, 3] * 3)
    assert set(report.layers) <= {"features.1", "features.4", "classifier.1"}
    assert bool((report.elevation.diff() <= 0).all())
    assert report.patterns.shape == (12, 3, 8, 8)
    low, high = colour_range
    assert bool(((report.patterns >= low - 1e-5) & (report.patterns <= high + 1e-5)).all())
    assert bool(((report.masks > 0).flatten(1).sum(dim=1) <= 7).all())
    pairs = set(zip(report.layers, report.neurons.tolist(), report.target_classes.tolist(), strict=True))
    assert len(pairs) == 12


@pytest.mark.parametrize("name", ["features.1", "features.5", "classifier.1", "classifier.0"])
@pytest.mark.parametrize("at_once", [1, 1000])
def test_the_elevation_is_what_setting_one_neuron_in_the_whole_network_gives(
    name: str, at_once: int, colours: tuple[Tensor, Tensor]
) -> None:
    network, images = colour_network().eval(), colours[0][:5]
    module = network.get_submodule(name)
    found = class_elevation(network, module, images, [0.0, 1.5, 3.0], at_once)

    kept: list[Tensor] = []
    handle = module.register_forward_hook(lambda _m, _i, output: kept.append(output.detach()))
    with torch.no_grad():
        logits = network(images)
    handle.remove()

    def with_neuron(value: float) -> Tensor:
        def change(_module: nn.Module, _inputs: Any, output: Tensor) -> Tensor:
            changed = output.clone()
            changed[:, 3] = value
            return changed

        handle = module.register_forward_hook(change)
        with torch.no_grad():
            result: Tensor = network(images)
        handle.remove()
        return result

    largest = float(kept[0].max())
    raised = torch.stack([with_neuron(factor * largest) for factor in (0.0, 1.5, 3.0)]).amax(dim=0)
    assert found.shape == (kept[0].shape[1], 4)
    torch.testing.assert_close(found[3], (raised - logits).mean(dim=0), rtol=1e-4, atol=1e-5)


@pytest.fixture(scope="module")
def residual() -> Network:
    with seeded(0):
        return build_model("ResNet18", 1, 3).eval()


def test_a_residual_block_can_be_stimulated_but_nothing_that_its_shortcut_leads_around(
    residual: Network,
) -> None:
    images = torch.randn(2, 1, 32, 32, generator=generator())
    elevation = class_elevation(residual, residual.get_submodule("layer4.1"), images, [0.0, 2.0])
    assert elevation.shape == (512, 3) and elevation.max() > 0
    with pytest.raises(TenfoldError, match="leads around the GroupNorm"):
        class_elevation(residual, residual.get_submodule("layer4.1.bn2"), images, [0.0, 2.0])


# Fine-pruning


@pytest.fixture(scope="module")
def repaired(training: tuple[Tensor, Tensor], poisoned_victim: Network) -> FinePruningReport:
    return fine_pruning(poisoned_victim, *training, FinePruningConfig(fine_tuning=TUNING), generator())


def test_fine_pruning_removes_a_backdoor_and_keeps_the_accuracy(
    repaired: FinePruningReport,
    poisoned_victim: Network,
    rates: Callable[[nn.Module], tuple[float, float]],
) -> None:
    (accuracy, success), (before, success_before) = rates(repaired.network), rates(poisoned_victim)
    assert success_before > 0.9 and success < 0.2
    assert accuracy > before - 0.02
    assert repaired.accuracy_after > float(repaired.accuracy[0]) - 0.02


def test_fine_pruning_leaves_a_clean_network_as_good_as_it_was(
    training: tuple[Tensor, Tensor],
    clean_victim: Network,
    rates: Callable[[nn.Module], tuple[float, float]],
) -> None:
    report = fine_pruning(clean_victim, *training, FinePruningConfig(fine_tuning=TUNING), generator())
    accuracy, success = rates(report.network)
    assert accuracy > rates(clean_victim)[0] - 0.03 and success < 0.05


def test_pruning_stops_before_the_accuracy_has_fallen_by_more_than_four_points(
    repaired: FinePruningReport,
) -> None:
    allowed = repaired.accuracy[0] - 0.04
    assert repaired.pruned >= 1
    assert bool((repaired.accuracy[: repaired.pruned + 1] >= allowed).all())
    assert repaired.accuracy[repaired.pruned + 1] < allowed


def test_pruned_channels_stay_at_zero_through_fine_tuning_and_the_names_are_as_before(
    repaired: FinePruningReport, poisoned_victim: Network
) -> None:
    layer = repaired.network.get_submodule(repaired.layer)
    silent = (layer.weight.flatten(1) == 0).all(dim=1) & (layer.bias == 0)
    assert silent.nonzero().flatten().tolist() == sorted(repaired.order[: repaired.pruned].tolist())
    assert repaired.network.state_dict().keys() == poisoned_victim.state_dict().keys()
    assert not any(module._forward_pre_hooks for module in repaired.network.modules())


@pytest.mark.parametrize("norm", ["none", "instancenorm", "batchnorm", "groupnorm", "layernorm"])
@pytest.mark.parametrize("at_once", [7, 1000])
def test_the_accuracy_curve_is_that_of_networks_with_zeroed_channels(
    norm: str, at_once: int, colours: tuple[Tensor, Tensor]
) -> None:
    network = colour_network(norm).eval()
    images = colours[0]
    with torch.no_grad():
        labels = network(images).argmax(dim=1)  # so that pruning changes something
    config = FinePruningConfig(accuracy_drop=1.0, fine_tuning=FineTuning(epochs=0), images_at_once=at_once)
    report = fine_pruning(network, images, labels, config, generator())
    assert report.layer == ("features.3" if norm == "none" else "features.5")
    expected = []
    for count in range(8):
        changed = deepcopy(network)
        layer = changed.get_submodule(report.layer)
        with torch.no_grad():
            layer.weight[report.order[:count]] = 0
            layer.bias[report.order[:count]] = 0
            expected.append(float((changed(images).argmax(dim=1) == labels).double().mean()))
    assert report.accuracy.tolist() == pytest.approx(expected)
    assert len(set(expected)) > 1
    assert report.pruned == 7, "one channel stays, whatever the accuracy"
    assert report.accuracy_after == pytest.approx(expected[-1])


def test_the_most_silent_channels_go_first(colours: tuple[Tensor, Tensor]) -> None:
    network = colour_network()
    with torch.no_grad():
        network.get_submodule("features.3").bias += torch.tensor([9, 0, -9, 0, 3, 0, 6, 0])
    report = fine_pruning(network, *colours, FinePruningConfig(fine_tuning=FineTuning(epochs=0)), generator())
    assert report.order[0] == 2 and report.order[-3:].tolist() == [4, 6, 0]


def test_fine_pruning_prunes_the_last_block_of_a_resnet_beside_its_shortcut(residual: Network) -> None:
    images = torch.randn(6, 1, 32, 32, generator=generator())
    with torch.no_grad():
        labels = residual(images).argmax(dim=1)
    config = FinePruningConfig(accuracy_drop=1.0, fine_tuning=FineTuning(epochs=0))
    report = fine_pruning(residual, images, labels, config, generator())
    assert report.layer == "layer4.1.bn2" and len(report.accuracy) == 512
    changed = deepcopy(residual)
    with torch.no_grad():
        changed.get_submodule("layer4.1.bn2").weight[report.order[:-1]] = 0
        changed.get_submodule("layer4.1.bn2").bias[report.order[:-1]] = 0
        torch.testing.assert_close(changed(images), report.network(images))
        expected = float((changed(images).argmax(dim=1) == labels).double().mean())
    assert float(report.accuracy[-1]) == pytest.approx(expected)


@pytest.mark.parametrize(("name", "layer"), [("AlexNet", "features.4"), ("VGG11", "features.26")])
def test_the_last_convolution_is_found_in_the_other_networks(name: str, layer: str) -> None:
    network = build_model(name, 1, 10)
    assert last_convolution(network) == layer


def test_a_decay_after_two_epochs_slows_the_third_and_not_the_second(colours: tuple[Tensor, Tensor]) -> None:
    def tuned(epochs: int, decay_after: tuple[int, ...]) -> Tensor:
        network = colour_network()
        settings = FineTuning(epochs, lr=0.1, momentum=0, batch_size=24, decay=1e-9, decay_after=decay_after)
        fine_tune(network, *colours, settings, generator())
        return torch.cat([parameter.detach().flatten() for parameter in network.parameters()])

    torch.testing.assert_close(tuned(3, (2,)), tuned(2, ()), rtol=0, atol=1e-7)
    assert not torch.allclose(tuned(3, ()), tuned(2, ()), rtol=0, atol=1e-7)


# Neural attention distillation


def test_attention_distillation_weakens_a_backdoor_more_than_fine_tuning_alone_and_keeps_the_accuracy(
    training: tuple[Tensor, Tensor],
    poisoned_victim: Network,
    rates: Callable[[nn.Module], tuple[float, float]],
) -> None:
    report = distil_attention(poisoned_victim, *training, ATTENTION, generator())
    plain = AttentionDistillationConfig(
        beta=0, clean_share=0.2, teacher=FineTuning(epochs=0), student=ATTENTION.student
    )
    alone = distil_attention(poisoned_victim, *training, plain, generator())
    accuracy, success = rates(report.network)
    before, success_before = rates(poisoned_victim)
    assert success_before > 0.9 and success < 0.4
    assert success < rates(alone.network)[1] - 0.1
    assert accuracy > before - 0.03
    assert report.accuracy_after > report.accuracy_before - 0.03


def test_attention_distillation_leaves_a_clean_network_as_good_as_it_was(
    training: tuple[Tensor, Tensor],
    clean_victim: Network,
    rates: Callable[[nn.Module], tuple[float, float]],
) -> None:
    accuracy, success = rates(distil_attention(clean_victim, *training, ATTENTION, generator()).network)
    assert accuracy > rates(clean_victim)[0] - 0.03 and success < 0.05


def test_an_attention_map_is_the_unit_vector_of_the_mean_squares_over_channels() -> None:
    features = torch.tensor([[[[3.0, 0.0]], [[1.0, 2.0]]], [[[0.0, 0.0]], [[0.0, 0.0]]]])
    expected = torch.tensor([[5.0, 2.0], [0.0, 0.0]]) / 29**0.5
    torch.testing.assert_close(attention_map(features), expected)


def test_the_attention_distance_is_between_directions_and_over_positions_on_request() -> None:
    left, right = torch.zeros(1, 2, 2, 2), torch.zeros(1, 3, 2, 2)
    left[0, 1, 0, 0], right[0, 0, 1, 1] = 5.0, -0.1
    several = torch.randn(2, 3, 2, 2, generator=generator())
    assert float(attention_distance(several, -7 * several, False)) < 1e-10
    assert float(attention_distance(left, right, False)) == pytest.approx(2)
    assert float(attention_distance(left, right)) == pytest.approx(2 / 4)


@pytest.mark.parametrize(
    ("name", "layers"),
    [
        ("ConvNet", ("features.2", "features.5", "features.8")),
        ("ConvNet_B", ("features.3", "features.7", "features.11")),
        ("AlexNet", ("features.3", "features.7")),
        ("ResNet18", ("layer1", "layer2", "layer3", "layer4")),
    ],
)
def test_attention_is_compared_where_convolution_blocks_end(name: str, layers: tuple[str, ...]) -> None:
    assert attention_layers(build_model(name, 3, 10)) == layers


def test_every_convolution_of_vgg11_is_a_block() -> None:
    assert len(attention_layers(build_model("VGG11", 3, 10))) == 8


def test_five_percent_of_the_images_are_used_and_both_networks_are_trained_on_them_alone(
    colours: tuple[Tensor, Tensor],
) -> None:
    images, labels = colours[0].repeat(5, 1, 1, 1), colours[1].repeat(5)
    tuning = FineTuning(epochs=2, lr=0.05)
    config = AttentionDistillationConfig(teacher=tuning, student=tuning)
    report = distil_attention(colour_network(), images, labels, config, generator())
    assert len(report.used) == 6 and len(report.used.unique()) == 6
    noise = torch.full_like(images, 100.0)
    noise[report.used] = images[report.used]
    again = distil_attention(colour_network(), noise, labels, config, generator())
    torch.testing.assert_close(report.network.state_dict(), again.network.state_dict(), rtol=0, atol=0)
    torch.testing.assert_close(report.teacher.state_dict(), again.teacher.state_dict(), rtol=0, atol=0)


# What all four have in common

Defence = Callable[[nn.Module, Tensor, Tensor, Pixels, torch.Generator], Any]
QUICK = FineTuning(epochs=2, lr=0.05, batch_size=8)


def run_cleanse(
    network: nn.Module, images: Tensor, labels: Tensor, pixels: Pixels, draws: torch.Generator
) -> Tensor:
    config = NeuralCleanseConfig(steps=4, batch_size=8)
    return neural_cleanse(network, images, labels, *pixels, config, draws).masks


def run_abs(
    network: nn.Module, images: Tensor, labels: Tensor, pixels: Pixels, draws: torch.Generator
) -> Tensor:
    config = NeuronStimulationConfig(steps=4, batch_size=8, seed_images=6)
    return scan_neurons(network, images, labels, *pixels, config, draws).patterns


def run_pruning(
    network: nn.Module, images: Tensor, labels: Tensor, pixels: Pixels, draws: torch.Generator
) -> Tensor:
    report = fine_pruning(network, images, labels, FinePruningConfig(fine_tuning=QUICK), draws)
    return torch.cat([parameter.detach().flatten() for parameter in report.network.parameters()])


def run_attention(
    network: nn.Module, images: Tensor, labels: Tensor, pixels: Pixels, draws: torch.Generator
) -> Tensor:
    config = AttentionDistillationConfig(clean_share=0.9, teacher=QUICK, student=QUICK)
    report = distil_attention(network, images, labels, config, draws)
    return torch.cat([parameter.detach().flatten() for parameter in report.network.parameters()])


ALL = pytest.mark.parametrize("defence", [run_cleanse, run_abs, run_pruning, run_attention])


@ALL
def test_a_defence_leaves_the_network_and_the_global_generator_as_they_were(
    defence: Defence, colours: tuple[Tensor, Tensor], colour_range: Pixels
) -> None:
    network = colour_network("batchnorm")  # in training mode, where a forward would change its statistics
    network.get_submodule("features.0").requires_grad_(False)
    before, state = deepcopy(network), torch.get_rng_state()
    defence(network, *colours, colour_range, generator())
    torch.testing.assert_close(network.state_dict(), before.state_dict(), rtol=0, atol=0)
    assert network.training and all(module.training for module in network.modules())
    flags = [parameter.requires_grad for parameter in network.parameters()]
    assert flags == [parameter.requires_grad for parameter in before.parameters()]
    assert all(parameter.grad is None for parameter in network.parameters())
    assert not any(module._forward_hooks for module in network.modules())
    assert torch.equal(torch.get_rng_state(), state)


@ALL
def test_the_same_seed_gives_the_same_and_another_seed_something_else(
    defence: Defence, colours: tuple[Tensor, Tensor], colour_range: Pixels
) -> None:
    torch.manual_seed(1)
    first = defence(colour_network(), *colours, colour_range, generator(3))
    torch.manual_seed(2)
    again = defence(colour_network(), *colours, colour_range, generator(3))
    other = defence(colour_network(), *colours, colour_range, generator(4))
    assert torch.equal(first, again) and not torch.equal(first, other)


@ALL
@pytest.mark.parametrize(
    ("images", "labels", "sentence"),
    [
        (torch.zeros(4, 8, 8), torch.zeros(4, dtype=torch.int64), "clean images are normalised floats"),
        (torch.zeros(0, 3, 8, 8), torch.zeros(0, dtype=torch.int64), "with at least one image"),
        (torch.zeros(4, 3, 8, 8, dtype=torch.uint8), torch.zeros(4, dtype=torch.int64), "not torch.uint8"),
        (torch.zeros(4, 3, 8, 8), torch.zeros(3, dtype=torch.int64), "one int64 label for each of the 4"),
        (torch.zeros(4, 3, 8, 8), torch.zeros(4), "not torch.float32"),
    ],
)
def test_clean_data_of_another_kind_is_refused_in_a_sentence(
    defence: Defence, images: Tensor, labels: Tensor, sentence: str, colour_range: Pixels
) -> None:
    with pytest.raises(TenfoldError, match=sentence):
        defence(colour_network(), images, labels, colour_range, generator())


@pytest.mark.parametrize("defence", [run_cleanse, run_abs])
def test_a_pixel_range_of_another_kind_is_refused(
    defence: Defence, colours: tuple[Tensor, Tensor], colour_range: Pixels
) -> None:
    low, high = colour_range
    for pixels in ((high, low), (low[:, :1], high[:, :1]), (low, low)):
        with pytest.raises(TenfoldError, match=r"take them from ImageSet\.black_and_white"):
            defence(colour_network(), *colours, pixels, generator())


def test_networks_without_the_layers_that_a_defence_needs_are_refused(
    colours: tuple[Tensor, Tensor], colour_range: Pixels
) -> None:
    linear = nn.Sequential(nn.Flatten(), nn.Linear(192, 4))
    with pytest.raises(TenfoldError, match="this network has none"):
        fine_pruning(linear, *colours)
    with pytest.raises(TenfoldError, match="no chain of convolutions"):
        distil_attention(linear, *colours)
    with pytest.raises(TenfoldError, match="no activation modules"):
        scan_neurons(linear, *colours, *colour_range)
    with pytest.raises(TenfoldError, match=r"no module 'features\.99'"):
        scan_neurons(
            colour_network(), *colours, *colour_range, NeuronStimulationConfig(layers=("features.99",))
        )
    with pytest.raises(TenfoldError, match="no module 'nowhere'"):
        distil_attention(colour_network(), *colours, AttentionDistillationConfig(layers=("nowhere",)))
    unscaled = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, affine=False), nn.Flatten())
    with pytest.raises(TenfoldError, match="no weights that fine-pruning could set to 0"):
        fine_pruning(unscaled, *colours)
    two_classes = nn.Sequential(nn.Flatten(), nn.Linear(192, 2))
    with pytest.raises(TenfoldError, match="at least 3, not 2"):
        neural_cleanse(two_classes, *colours, *colour_range)


@pytest.mark.parametrize(
    "build",
    [
        lambda: NeuralCleanseConfig(steps=0),
        lambda: NeuralCleanseConfig(lr=0),
        lambda: NeuralCleanseConfig(betas=(0.5, 1.0)),
        lambda: NeuralCleanseConfig(l1_factor=1),
        lambda: NeuralCleanseConfig(success_threshold=1.1),
        lambda: NeuralCleanseConfig(pixel_range_factor=0),
        lambda: NeuronStimulationConfig(candidates_per_class=0),
        lambda: NeuronStimulationConfig(levels=()),
        lambda: NeuronStimulationConfig(levels=(float("inf"),)),
        lambda: NeuronStimulationConfig(class_weight=-1),
        lambda: NeuronStimulationConfig(mask_share=0),
        lambda: NeuronStimulationConfig(alarm=1.5),
        lambda: FineTuning(epochs=-1),
        lambda: FineTuning(batch_size=0),
        lambda: FineTuning(momentum=1),
        lambda: FineTuning(momentum=0, nesterov=True),
        lambda: FineTuning(decay_after=(-1,)),
        lambda: FinePruningConfig(accuracy_drop=4),
        lambda: FinePruningConfig(images_at_once=0),
        lambda: AttentionDistillationConfig(beta=-1),
        lambda: AttentionDistillationConfig(beta=float("nan")),
        lambda: AttentionDistillationConfig(clean_share=5),
    ],
)
def test_settings_that_make_no_sense_are_refused(build: Callable[[], object]) -> None:
    with pytest.raises(TenfoldError):
        build()


def test_the_standard_settings_are_those_of_the_specification() -> None:
    cleanse, stimulation = NeuralCleanseConfig(), NeuronStimulationConfig()
    assert (cleanse.steps, cleanse.lr, cleanse.betas, cleanse.l1_weight) == (1000, 0.1, (0.5, 0.9), 1e-3)
    assert (cleanse.l1_factor, cleanse.patience, cleanse.success_threshold, cleanse.alarm) == (2, 5, 0.99, 2)
    assert stimulation.alarm == 0.88 and FinePruningConfig().accuracy_drop == 0.04
    attention = AttentionDistillationConfig()
    assert 500 <= attention.beta <= 2000 and attention.clean_share == 0.05
