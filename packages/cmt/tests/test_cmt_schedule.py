"""One-cycle schedule, rates of the network's parts, clipping, and where pasting ends: against numbers by hand."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from lightning_fabric import Fabric
from torch import nn
from torch.optim import AdamW

from tenfold.cmt.config import LossConfig, TrainConfig
from tenfold.cmt.cyclic_schedule import CyclicSchedule, cycle
from tenfold.cmt.dataset import TrainingSamples
from tenfold.cmt.detector import Cmt
from tenfold.cmt.profiles import PROFILES
from tenfold.cmt.samples import Batch
from tenfold.cmt.training import Trainer, fade_step, parameter_groups, total_steps
from tenfold.cmt.training_batches import BatchOrder, training_loader
from tenfold.shared.logging import TenfoldError

pytestmark = pytest.mark.usefixtures("cpu")

MakeDetector = Callable[..., Cmt]
MakeRecipe = Callable[..., TrainConfig]
PAPER = TrainConfig()


# -- cycle -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("progress", "expected"),
    [
        (0.0, 1.0),
        (0.1, 1 + 7 * (1 - math.cos(math.pi / 4)) / 2),
        (0.2, 4.5),
        (0.3, 1 + 7 * (1 + math.cos(math.pi / 4)) / 2),
        (0.4, 8.0),
        (0.7, (8 + 1e-4) / 2),
        (0.6, 1e-4 + (8 - 1e-4) * (1 + math.cos(math.pi / 3)) / 2),
        (1.0, 1e-4),
    ],
)
def test_the_cycle_rises_and_falls_along_cosines(progress: float, expected: float) -> None:
    assert cycle(progress, 1.0, 8.0, 1e-4, 0.4) == pytest.approx(expected)


@pytest.mark.parametrize(("warm_part", "first", "last"), [(0.0, 8.0, 1e-4), (1.0, 1.0, 8.0)])
def test_a_cycle_may_only_fall_or_only_rise(warm_part: float, first: float, last: float) -> None:
    assert cycle(0.0, 1.0, 8.0, 1e-4, warm_part) == pytest.approx(first)
    assert cycle(1.0, 1.0, 8.0, 1e-4, warm_part) == pytest.approx(last)
    assert cycle(0.5, 1.0, 8.0, 1e-4, warm_part) == pytest.approx((first + last) / 2)


def scheduled(
    train: TrainConfig, steps: int = 100, rates: tuple[float, ...] = (1e-4,)
) -> tuple[AdamW, CyclicSchedule]:
    groups = [{"params": [nn.Parameter(torch.zeros(1))], "lr": rate} for rate in rates]
    optimizer = AdamW(groups, lr=1.0)
    return optimizer, CyclicSchedule(optimizer, train, steps)


def values_at(step: int, train: TrainConfig = PAPER) -> tuple[float, tuple[float, float]]:
    optimizer, schedule = scheduled(train)
    schedule.set(step)
    return optimizer.param_groups[0]["lr"], optimizer.param_groups[0]["betas"]


@pytest.mark.parametrize(
    ("step", "rate", "beta"),
    [
        (0, 1e-4, 0.9),
        (20, 4.5e-4, 0.9 * (1 + 0.8947) / 2),
        (40, 8e-4, 0.80523),
        (70, 4.00005e-4, 0.9 * (1 + 0.8947) / 2),
    ],
)
def test_the_papers_rates_and_betas(step: int, rate: float, beta: float) -> None:
    """Section 3: 1e-4 to 8e-4 within two fifths, and back to 1e-8; the first beta from 0.9 to 0.805 and back."""
    found, betas = values_at(step)
    assert found == pytest.approx(rate)
    assert betas == (pytest.approx(beta), 0.999)


def test_the_last_update_is_near_the_end_of_the_cycle() -> None:
    optimizer, schedule = scheduled(PAPER, 100_000)
    schedule.set(99_999)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(1e-8, rel=0.01)
    assert optimizer.param_groups[0]["betas"][0] == pytest.approx(0.9, rel=1e-6)


def test_groups_keep_the_ratios_of_their_rates() -> None:
    optimizer, schedule = scheduled(PAPER, rates=(1e-4, 1e-5, 1e-6))
    for step in (0, 13, 40, 99):
        schedule.set(step)
        first, second, third = (group["lr"] for group in optimizer.param_groups)
        assert (second, third) == (pytest.approx(first / 10), pytest.approx(first / 100))


def test_a_step_depends_on_its_number_alone() -> None:
    optimizer, schedule = scheduled(PAPER)
    for step in (5, 90, 40, 5):
        schedule.set(step)
    assert (optimizer.param_groups[0]["lr"], optimizer.param_groups[0]["betas"]) == values_at(5)


@pytest.mark.parametrize(
    ("profile", "start", "peak"),
    [
        ("cmt_voxel0075_vov_1600x640", 1e-4, 8e-4),
        ("cmt_voxel0100_r50_800x320", 1.4e-4, 8.4e-4),
        ("cmt_lidar_voxel0075", 1e-4, 6e-4),
        ("cmt_camera_vov_1600x640", 1e-4, 8e-4),
    ],
)
def test_the_papers_profiles_have_its_rates_and_batches(profile: str, start: float, peak: float) -> None:
    train = PROFILES[profile].methods[0].train
    assert train.lr == pytest.approx(start)
    assert train.lr * train.peak_ratio == pytest.approx(peak)
    assert train.batch_size == (32 if "r50" in profile else 16)
    assert (train.epochs, train.fade_epochs, train.weight_decay, train.clip) == (20, 5, 0.01, 35.0)


# -- steps -----------------------------------------------------------------------------------------------


def test_epochs_are_counted_in_updates_and_pasting_ends_five_before_the_last() -> None:
    """Section 3: 15 epochs with pasted objects and 5 without."""
    assert total_steps(PAPER, 7723) == 20 * 7723
    assert fade_step(PAPER, 7723) == 15 * 7723


@pytest.mark.parametrize(("part", "expected"), [(0.25, 75), (0.0, 100), (1.0, 0)])
def test_steps_are_taken_as_they_are_and_fade_by_their_part(part: float, expected: int) -> None:
    train = replace(PAPER, steps=100, fade_part=part)
    assert total_steps(train, 7) == 100
    assert fade_step(train, 7) == expected


def test_trainings_shorter_than_the_fade_paste_nothing() -> None:
    assert fade_step(replace(PAPER, epochs=3), 100) == 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 0}, "at least 1"),
        ({"accumulate": 0}, "at least 1"),
        ({"log_every": 0}, "at least 1"),
        ({"epochs": 0}, "one epoch or one step"),
        ({"steps": -1}, "one epoch or one step"),
    ],
)
def test_recipes_that_cannot_be_are_refused(changes: dict[str, int], message: str) -> None:
    with pytest.raises(TenfoldError, match=message):
        replace(PAPER, **changes)


# -- parameter groups ------------------------------------------------------------------------------------


def test_parts_of_the_network_have_the_papers_rates_and_decays(make_detector: MakeDetector) -> None:
    """Section 3: the image backbone's rate is a hundredth and its decay fivefold, the neck's rate a tenth."""
    network = make_detector()
    settings = {
        id(parameter): (group["lr"], group["weight_decay"])
        for group in parameter_groups(network, PAPER)
        for parameter in group["params"]
    }
    for name, parameter in network.named_parameters():
        rate, decay = {"img_backbone": (1e-6, 0.05), "img_neck": (1e-5, 0.01)}.get(
            name.split(".")[0], (1e-4, 0.01)
        )
        assert settings[id(parameter)] == (pytest.approx(rate), pytest.approx(decay)), name


@pytest.mark.parametrize(("modality", "groups"), [("fusion", 3), ("camera", 3), ("lidar", 1)])
def test_every_parameter_is_in_one_group(make_detector: MakeDetector, modality: str, groups: int) -> None:
    network = make_detector(modality)
    found = parameter_groups(network, PAPER)
    numbers = [id(parameter) for group in found for parameter in group["params"]]
    assert len(found) == groups
    assert len(numbers) == len(set(numbers))
    assert set(numbers) == {id(parameter) for parameter in network.parameters()}


# -- clipping and one update -----------------------------------------------------------------------------


@pytest.fixture
def batch(make_samples: Callable[..., TrainingSamples], make_network: Callable[..., Any]) -> Batch:
    samples = make_samples(make_network("lidar"))
    order = BatchOrder(torch.arange(2).numpy(), 2, 0)
    return next(iter(training_loader(samples, order, 0, 1)))


def trainer_of(network: Cmt, train: TrainConfig, fabric: Fabric, losses: LossConfig | None = None) -> Trainer:
    return Trainer(network, train, losses or LossConfig(denoising_groups=0), fabric, 10, 0)


def gradient_norm(network: Cmt) -> float:
    return math.sqrt(sum(float(p.grad.square().sum()) for p in network.parameters() if p.grad is not None))


def test_gradients_longer_than_the_limit_are_cut_to_it_and_reported_whole(
    make_detector: MakeDetector, make_recipe: MakeRecipe, batch: Batch, cpu: Fabric
) -> None:
    norms = {}
    for clip in (1e9, 0.5):
        network = make_detector("lidar")
        logged = trainer_of(network, make_recipe(clip=clip), cpu).learn(0, iter([batch]))
        norms[clip] = (float(logged[-1]), gradient_norm(network))
    assert norms[1e9][0] == pytest.approx(norms[1e9][1], rel=1e-4)
    assert norms[1e9][0] > 0.5
    assert norms[0.5][0] == pytest.approx(norms[1e9][0], rel=1e-4)
    assert norms[0.5][1] == pytest.approx(0.5, rel=1e-3)


def test_gradients_shorter_than_the_limit_are_left_alone(
    make_detector: MakeDetector, make_recipe: MakeRecipe, batch: Batch, cpu: Fabric
) -> None:
    gradients = []
    for clip in (1e9, 1e6):
        network = make_detector("lidar")
        trainer_of(network, make_recipe(clip=clip), cpu).learn(0, iter([batch]))
        gradients.append([p.grad for p in network.parameters() if p.grad is not None])
    assert all(torch.equal(one, other) for one, other in zip(*gradients, strict=True))


def test_an_update_is_made_at_the_rates_of_its_number(
    make_detector: MakeDetector, make_recipe: MakeRecipe, batch: Batch, cpu: Fabric
) -> None:
    train = make_recipe(lr=1e-3, peak_ratio=4.0, warm_part=0.5)
    trainer = trainer_of(make_detector("lidar"), train, cpu)
    rates = []
    for step in (0, 5):
        trainer.learn(step, iter([batch]))
        rates.append(trainer.optimizer.param_groups[0]["lr"])
    assert rates == [pytest.approx(1e-3), pytest.approx(4e-3)]


def test_without_a_gradient_an_update_is_weight_decay_alone(
    make_detector: MakeDetector, make_recipe: MakeRecipe, batch: Batch, cpu: Fabric
) -> None:
    """AdamW multiplies by 1 - rate * decay; losses without weight leave nothing else."""
    network = make_detector("lidar")
    before = network.pts_bbox_head.shared_conv.conv.weight.detach().clone()
    losses = LossConfig(class_weight=0.0, box_weight=0.0, denoising_groups=0)
    trainer_of(network, make_recipe(lr=0.1, weight_decay=0.5), cpu, losses).learn(0, iter([batch]))
    after = network.pts_bbox_head.shared_conv.conv.weight
    torch.testing.assert_close(after, before * (1 - 0.1 * 0.5))


def test_batches_that_cannot_be_divided_are_refused(
    make_detector: MakeDetector, make_recipe: MakeRecipe, cpu: Fabric
) -> None:
    with pytest.raises(TenfoldError, match="cannot be divided into 3 parts"):
        trainer_of(make_detector("lidar"), make_recipe(batch_size=4, accumulate=3), cpu)
