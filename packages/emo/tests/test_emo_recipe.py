"""The recipe beside the parity cases: the schedule's noise, losses by hand, averages, groups, settings, digits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tenfold.emo.baselines import DeiTWithMobileBlocks, InvertedResidualNetwork, SmallViT
from tenfold.emo.complexity import count_flops, count_flops_by_layer, count_parameters
from tenfold.emo.config import DataConfig, ModelConfig, RunConfig, TrainConfig
from tenfold.emo.data import CROP_PADDING, MemoryBatches, augment, crop_and_flip, load_split_digits, resize
from tenfold.emo.model import build_model
from tenfold.emo.networks import DIGITS, make_network
from tenfold.emo.profiles import PROFILES
from tenfold.emo.recipe import (
    ExponentialMovingAverage,
    distillation_loss,
    label_smoothing_loss,
    learning_rate,
    parameter_groups,
    train_step,
)
from tenfold.shared.logging import TenfoldError
from tenfold.shared.runs import plain
from tenfold.shared.seeding import make_generator

PAPER: dict[str, Any] = {
    "peak_lr": 6e-3,
    "epochs": 300,
    "warmup_epochs": 20,
    "iterations_per_epoch": 625,
    "min_lr": 1e-6,
    "warmup_start_lr": 1e-6,
}


def test_the_rate_falls_a_little_when_the_warm_up_ends() -> None:
    before, after = learning_rate(12_499, **PAPER), learning_rate(12_500, **PAPER)
    assert before == pytest.approx(6e-3, rel=1e-3)
    assert after == pytest.approx(5.934e-3, rel=1e-3)
    assert learning_rate(0, **PAPER) == 1e-6
    assert learning_rate(187_499, **PAPER) == pytest.approx(1e-6, rel=1e-3)


@pytest.mark.parametrize(("iteration", "logged"), [(87_499, 0.002800), (99_999, 0.003184)])
def test_the_noise_gives_the_rates_of_the_authors_logs(iteration: int, logged: float) -> None:
    assert learning_rate(iteration, **PAPER, noise_range=(0.42, 0.9)) == pytest.approx(logged, abs=5e-7)


@pytest.mark.parametrize(
    ("iteration", "is_noisy"), [(78_749, False), (78_750, True), (168_749, True), (168_750, False)]
)
def test_the_noise_begins_and_ends_where_it_should(iteration: int, is_noisy: bool) -> None:
    noisy = learning_rate(iteration, **PAPER, noise_range=(0.42, 0.9))
    assert (noisy != learning_rate(iteration, **PAPER)) is is_noisy
    assert abs(noisy / learning_rate(iteration, **PAPER) - 1) < 0.67


def test_label_smoothing_is_a_mean_over_all_classes() -> None:
    logits, targets = torch.randn(5, 7), torch.randint(7, (5,))
    log_p = logits.log_softmax(dim=1)
    expected = -0.9 * log_p[torch.arange(5), targets].mean() - 0.1 * log_p.mean()
    torch.testing.assert_close(label_smoothing_loss(logits, targets, 0.1), expected)


def test_a_student_that_says_the_same_loses_nothing_softly() -> None:
    logits = torch.randn(4, 6)
    assert distillation_loss(logits, logits, "soft", 3.0) == pytest.approx(0.0, abs=1e-6)
    expected = F.cross_entropy(logits, logits.argmax(dim=1))
    torch.testing.assert_close(distillation_loss(logits, logits, "hard"), expected)
    with pytest.raises(TenfoldError, match="soft or hard, not firm"):
        distillation_loss(logits, logits, "firm")  # type: ignore[arg-type]


def test_averages_follow_weights_and_statistics_and_copy_counts() -> None:
    network = nn.BatchNorm1d(3)
    average = ExponentialMovingAverage(network, decay=0.75)
    with torch.no_grad():
        network.weight.fill_(5.0)
        network.running_mean.fill_(8.0)  # type: ignore[union-attr]
        network.num_batches_tracked.fill_(7)  # type: ignore[union-attr]
    average.update(network)
    state = average.model.state_dict()
    torch.testing.assert_close(state["weight"], torch.full((3,), 2.0))
    torch.testing.assert_close(state["running_mean"], torch.full((3,), 2.0))
    assert state["num_batches_tracked"] == 7
    assert not average.model.training
    assert not any(value.requires_grad for value in average.model.parameters())


def test_every_learned_parameter_is_in_one_group() -> None:
    network = build_model("emo_1m")
    network.head.requires_grad_(False)  # frozen ones are in none
    without, with_decay = parameter_groups(network, 0.05)
    names = [*without["names"], *with_decay["names"]]
    assert len(names) == len(set(names))
    assert set(names) == {name for name, value in network.named_parameters() if value.requires_grad}
    assert all(name.endswith("weight") for name in with_decay["names"])


def test_a_step_clips_the_gradient() -> None:
    network = nn.Linear(4, 3)
    images, targets = 1000 * torch.randn(8, 4), torch.randint(3, (8,))
    before = network.weight.detach().clone()
    found = train_step(network, images, targets, torch.optim.SGD(network.parameters(), lr=1.0), clip_norm=0.5)
    moved = torch.cat([(network.weight - before).flatten(), torch.zeros(0)]).norm()
    assert found.grad_norm > 10
    assert moved <= 0.5 + 1e-6


# -- networks ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "parameters"),
    [("emo_digits", 33_026), ("mobilenetv2_digits", 32_885), ("vit_digits", 36_802)],
)
def test_networks_on_digits_are_about_equally_large(name: str, parameters: int) -> None:
    network = make_network(ModelConfig(name), 10, 32)
    assert count_parameters(network) == parameters
    assert network(torch.randn(2, 3, 32, 32)).shape == (2, 10)


@pytest.mark.parametrize(
    ("changes", "parameters"),
    [
        ({"attention": False}, 31_282),
        ({"depthwise": False}, 30_694),
        ({"attention": False, "depthwise": False}, 28_950),
        ({"window_size": 2}, 33_026),
        ({"windows": "contiguous"}, 33_026),
    ],
)
def test_components_have_the_parameters_of_the_specification(
    changes: dict[str, Any], parameters: int
) -> None:
    assert count_parameters(make_network(ModelConfig("emo_digits", **changes), 10, 32)) == parameters


def test_the_block_swap_is_smaller_than_deit() -> None:
    network = DeiTWithMobileBlocks(1000)
    assert count_parameters(network) / 1e6 == pytest.approx(4.9, abs=0.05)
    assert count_flops(network, 224)["total"] / 1e9 == pytest.approx(1.1, abs=0.06)


def test_inverted_residuals_have_emos_strides_and_widths() -> None:
    network = InvertedResidualNetwork(DIGITS.depths, DIGITS.widths, DIGITS.stem, 3.85, 10)
    maps, x = [], torch.randn(2, 3, 32, 32)
    for layer in network.features:
        x = layer(x)
        maps.append(tuple(x.shape[1:]))
    assert [maps[index] for index in (0, 2, 4, 6, 8)] == [
        (8, 16, 16),
        (12, 8, 8),
        (16, 4, 4),
        (24, 2, 2),
        (32, 1, 1),
    ]


def test_positions_of_the_transformer_matter() -> None:
    torch.manual_seed(0)
    network = SmallViT(32, 4, 36, 3, 4, 2, 10).eval()
    x = torch.randn(1, 3, 32, 32)
    moved = x.roll(4, dims=3)
    torch.testing.assert_close(network.patches(x).roll(1, dims=3), network.patches(moved))
    assert not torch.allclose(network(x), network(moved), atol=1e-4)


def test_costs_of_layers_add_up() -> None:
    network = build_model("emo_1m")
    layers = count_flops_by_layer(network, 160)
    assert sum(layers.values()) == count_flops(network, 160)["total"]
    assert next(iter(layers)) == "stem"
    assert list(layers)[-1] == "head"
    assert network.training


# -- data ----------------------------------------------------------------------------------------------


def test_digits_are_halved_by_class_and_standardised() -> None:
    split = load_split_digits(3, 32)
    assert (len(split.train.labels), len(split.test.labels)) == (898, 899)
    assert split.train.images.shape == (898, 3, 32, 32)
    assert split.train.images[:, 0].mean().abs() < 1e-4
    assert split.train.images[:, 0].std() == pytest.approx(1.0, abs=1e-3)
    assert torch.equal(split.test.images[:, 0], split.test.images[:, 2])
    for part in (split.train, split.test):
        assert part.labels.bincount().min() > 80
    other = load_split_digits(4, 32)
    assert not torch.equal(split.train.labels, other.train.labels)


def test_a_shift_is_cyclic_and_one_for_the_batch() -> None:
    images = torch.randn(4, 3, 32, 32)
    config = DataConfig("digits", image_size=32, augmentation="shift", shift=3)
    found = augment(images, config, make_generator(0))
    shifts = [
        (down, right)
        for down in range(-3, 4)
        for right in range(-3, 4)
        if torch.equal(found, images.roll((down, right), dims=(2, 3)))
    ]
    assert len(shifts) == 1


def test_crops_are_those_of_a_loop() -> None:
    images = torch.randn(6, 3, 9, 11)
    places = torch.tensor([[0, 8, 4, 3, 1, 7], [8, 0, 4, 2, 6, 5]])
    flips = torch.tensor([False, True, False, True, True, False])
    found = crop_and_flip(images, places, flips)
    for number in range(6):
        padded = F.pad(images[number], (CROP_PADDING,) * 4)
        row, column = places[:, number].tolist()
        crop = padded[:, row : row + 9, column : column + 11]
        assert torch.equal(found[number], crop.flip(-1) if flips[number] else crop)


def test_images_are_resized_only_where_they_must() -> None:
    images = torch.randn(2, 3, 32, 32)
    assert resize(images, 32) is images
    assert resize(images, 96).shape == (2, 3, 96, 96)


def test_an_epoch_sees_every_image_once_and_shares_are_the_batch() -> None:
    data = load_split_digits(0, 32).train
    numbered = type(data)(torch.arange(898.0)[:, None, None, None].expand(-1, 3, 32, 32), data.labels, 10)
    config = DataConfig("digits", image_size=32, augmentation="none")
    whole = MemoryBatches(numbered, config, 64, False, seed=1)
    shares = [MemoryBatches(numbered, config, 64, False, 1, rank, 2) for rank in (0, 1)]
    assert whole.steps == 15
    seen = torch.cat([images[:, 0, 0, 0] for images, _ in whole.epoch(2)])
    assert torch.equal(seen.sort().values, torch.arange(898.0))
    together = [
        torch.cat([images[:, 0, 0, 0] for images, _ in pair])
        for pair in zip(*(s.epoch(2) for s in shares), strict=True)
    ]
    assert torch.equal(torch.cat(together).sort().values, torch.arange(898.0))
    assert MemoryBatches(numbered, config, 64, True, seed=1).steps == 14


# -- settings ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: TrainConfig(epochs=0), "at least 1"),
        (lambda: TrainConfig(lr=0.0), "are positive"),
        (lambda: TrainConfig(noise_range=(0.9, 0.2)), "the smaller first"),
        (lambda: TrainConfig(label_smoothing=1.0), "from 0 to below 1"),
        (lambda: DataConfig(image_size=31), "at least 32 pixels"),
        (lambda: DataConfig("digits"), "RandAugment is for image files"),
        (lambda: ModelConfig(""), "give --model.name"),
        (lambda: ModelConfig(drop_path=1.0), "from 0 to below 1"),
    ],
)
def test_settings_that_cannot_be_are_refused(make: Callable[[], object], sentence: str) -> None:
    with pytest.raises(TenfoldError, match=sentence):
        make()


def test_settings_survive_a_checkpoint() -> None:
    for profile in PROFILES.values():
        for method in profile.methods:
            config = profile.run_config(method)
            assert RunConfig.from_plain(plain(config)) == config


def test_imagenet_profiles_have_the_recipe_of_the_paper() -> None:
    for size in ("1m", "2m", "5m", "6m"):
        suite = PROFILES[f"imagenet-{size}"]
        (method,) = suite.methods
        config = suite.run_config(method)
        train = config.train
        assert (config.model.name, config.data.image_size, config.data.crop_pct) == (
            f"emo_{size}",
            224,
            0.875,
        )
        assert (train.epochs, train.batch_size, train.lr, train.min_lr) == (300, 2048, 6e-3, 1e-6)
        assert (train.warmup_epochs, train.weight_decay, train.clip_norm) == (20, 0.05, 5.0)
        assert (train.label_smoothing, train.ema_decay, train.teacher) == (0.1, 0.9998, None)
        assert train.noise_range == ((0.42, 0.9) if size in ("1m", "2m") else None)
