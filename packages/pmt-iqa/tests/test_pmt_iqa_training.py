"""The loop: interruptions, repeatability, schedules, several processes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning_fabric import Fabric
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from tenfold.pmt_iqa import training
from tenfold.pmt_iqa.config import RunConfig
from tenfold.pmt_iqa.datasets import ImageSet
from tenfold.pmt_iqa.evaluation import agreement
from tenfold.pmt_iqa.experiments import launch_fabric
from tenfold.pmt_iqa.schedules import official_learning_rate
from tenfold.pmt_iqa.training import (
    Trained,
    Trainer,
    crops_to_judge,
    judge_crops,
    make_network,
    prepare,
    train,
)
from tenfold.shared.accelerator import AcceleratorConfig
from tenfold.shared.logging import TenfoldError
from tenfold.shared.runs import Run
from tenfold.shared.seeding import seed_everything

MakeRun = Callable[..., Run]
MakeConfig = Callable[..., RunConfig]


class Killed(BaseException):
    """What ends a process from outside; nothing catches it."""


def learn(images: ImageSet, config: RunConfig, fabric: Fabric, run: Run, seed: int = 0) -> Trained:
    with run:
        trained = train(images, config, seed, fabric, run)
        run.finish(trained.metrics)
    return trained


@pytest.mark.parametrize("checkpoint", [1, 2])
@pytest.mark.parametrize("settings", [{}, {"reset_optimizer_each_epoch": True, "lr_schedule": "official"}])
def test_a_killed_run_goes_on_to_the_same_result(
    checkpoint: int,
    settings: dict[str, Any],
    images: ImageSet,
    cpu: Fabric,
    make_config: MakeConfig,
    make_run: MakeRun,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = make_config(**settings)
    undisturbed = make_run("whole", checkpoint_seconds=3600)
    whole = learn(images, config, cpu, undisturbed)
    saved = 0

    def save(run: Run, step: int, state: Any, original: Any = Run.save_checkpoint) -> None:
        nonlocal saved
        original(run, step, state)
        saved += 1
        if saved == checkpoint:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(Run, "save_checkpoint", save)
        with pytest.raises(Killed), make_run("killed") as killed:
            train(images, config, 0, cpu, killed)
    again = make_run("killed", checkpoint_seconds=3600)
    resumed = learn(images, config, cpu, again)
    assert again.result is not None and undisturbed.result is not None
    assert again.result["metrics"] == undisturbed.result["metrics"]
    assert again.result["curves"] == undisturbed.result["curves"]
    for name, value in whole.network.state_dict().items():
        assert torch.equal(resumed.network.state_dict()[name], value), name


def test_the_same_seed_gives_the_same_network_and_another_seed_another(
    images: ImageSet, cpu: Fabric, make_config: MakeConfig, make_run: MakeRun
) -> None:
    first, second, other = (
        learn(images, make_config(epochs=1), cpu, make_run(name), seed)
        for name, seed in (("first", 3), ("second", 3), ("other", 4))
    )
    assert first.metrics == second.metrics
    assert torch.equal(first.predictions, second.predictions)
    assert first.test.tolist() != other.test.tolist()


def test_methods_of_one_seed_share_split_weights_and_crops(
    images: ImageSet, cpu: Fabric, make_config: MakeConfig, make_run: MakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, list[Tensor]] = {}
    original = training.normalise
    for schedule in ("progressive", "regression"):
        served: list[Tensor] = []
        monkeypatch.setattr(
            training,
            "normalise",
            lambda crops, served=served: served.append(crops.clone()) or original(crops),
        )
        with make_run(schedule) as run:
            train(images, make_config(schedule=schedule, epochs=1, lr=0.0), 0, cpu, run)
        monkeypatch.undo()
        seen[schedule] = served
    assert len(seen["progressive"]) == 4  # three steps, one judgement
    assert all(torch.equal(*pair) for pair in zip(*seen.values(), strict=True))


def test_more_noise_is_judged_worse_after_a_short_training(
    images: ImageSet, cpu: Fabric, make_config: MakeConfig, make_run: MakeRun
) -> None:
    trained = learn(images, make_config(epochs=16), cpu, make_run("learns"))
    assert trained.metrics["srcc"] > 0.8
    assert trained.metrics["best_srcc"] >= trained.metrics["srcc"]
    labels = images.scores[trained.test].numpy()
    assert trained.metrics["plcc"] == pytest.approx(agreement(trained.predictions.numpy(), labels)["plcc"])


def test_shuffled_labels_teach_no_order(
    images: ImageSet, cpu: Fabric, make_config: MakeConfig, make_run: MakeRun
) -> None:
    config = make_config(epochs=16, shuffle_labels=True)
    assert abs(learn(images, config, cpu, make_run("control")).metrics["srcc"]) < 0.8


def test_training_on_everything_leaves_nothing_to_judge(
    images: ImageSet, cpu: Fabric, make_config: MakeConfig, make_run: MakeRun
) -> None:
    config = replace(make_config(epochs=1), train_fraction=1.0)
    trained = learn(images, config, cpu, make_run("all"))
    assert trained.metrics == {}
    assert len(trained.test) == 0


def test_the_last_epoch_alone_can_be_judged(
    images: ImageSet, cpu: Fabric, make_config: MakeConfig, make_run: MakeRun
) -> None:
    config = make_config()
    run = make_run("last")
    learn(images, replace(config, judge=replace(config.judge, every_epoch=False)), cpu, run)
    assert run.result is not None
    assert run.result["curves"]["srcc"]["x"] == [2]
    assert len(run.result["curves"]["loss"]["x"]) == 3


def test_the_first_epoch_is_classification_and_the_last_regression(
    images: ImageSet, cpu: Fabric, make_config: MakeConfig
) -> None:
    config = make_config(weight_decay=0.0)
    data = prepare(images, config, 0)
    for epoch, still in ((0, "score."), (2, "level.")):
        seed_everything(0)
        network = make_network(config.model)
        before = {name: value.clone() for name, value in network.state_dict().items()}
        trainer = Trainer(network, config, cpu, len(data.train))
        trainer.train_epoch(data, 0, epoch)
        after = trainer.plain_network.state_dict()
        assert all(torch.equal(after[name], before[name]) for name in after if name.startswith(still))
        assert not torch.equal(
            after["features.backbone.conv1.weight"], before["features.backbone.conv1.weight"]
        )


def test_losses_of_an_epoch_are_means_over_its_crops(
    images: ImageSet, cpu: Fabric, make_config: MakeConfig
) -> None:
    config = make_config(lr=0.0, schedule="fixed", images_per_batch=7)  # 18 images: batches of 7, 7 and 4
    data = prepare(images, config, 0)
    trainer = Trainer(make_network(config.model), config, cpu, len(data.train))
    losses, crops = trainer.train_epoch(data, 0, 0)
    assert crops == 36
    assert losses["loss"] == pytest.approx(
        losses["regression_loss"] + losses["classification_loss"], rel=1e-5
    )


def test_the_official_rate_and_the_forgotten_moments(
    images: ImageSet, cpu: Fabric, make_config: MakeConfig
) -> None:
    config = make_config(lr_schedule="official", reset_optimizer_each_epoch=True, epochs=30)
    trainer = Trainer(make_network(config.model), config, cpu, 18)
    data = prepare(images, config, 0)
    for epoch in (0, 7):
        trainer.train_epoch(data, 0, epoch)
        rates = [group["lr"] for group in trainer.plain_optimizer.param_groups]
        expected = official_learning_rate(3e-3, epoch)
        assert rates == pytest.approx([expected, expected])
        steps = {int(state["step"]) for state in trainer.plain_optimizer.state.values()}
        assert steps == {3}  # of this epoch alone


def test_one_cycle_rises_and_falls(images: ImageSet, cpu: Fabric, make_config: MakeConfig) -> None:
    trainer = Trainer(make_network(make_config().model), make_config(epochs=10), cpu, 18)
    rates = [trainer.learning_rates(epoch, step)[1] for epoch in range(10) for step in range(3)]
    assert max(rates) == pytest.approx(3e-3)
    peak = int(np.argmax(rates))
    assert rates[: peak + 1] == sorted(rates[: peak + 1])
    assert rates[peak:] == sorted(rates[peak:], reverse=True)


def test_hyperiqa_keeps_the_features_rate_and_lowers_the_rest(
    images: ImageSet, cpu: Fabric, make_config: MakeConfig
) -> None:
    config = make_config(lr=2e-5, lr_schedule="hyperiqa", epochs=16, schedule="regression")
    trainer = Trainer(make_network(config.model), config, cpu, 18)
    features, rest = zip(*(trainer.learning_rates(epoch, 0) for epoch in range(16)), strict=True)
    assert set(features) == {2e-5}
    assert rest == pytest.approx([2e-4] * 7 + [2e-5] * 3 + [2e-6] * 3 + [2e-7] * 3)
    lda = {id(value) for value in trainer.plain_network.features.lda.parameters()}
    assert lda <= {id(value) for value in trainer.plain_optimizer.param_groups[0]["params"]}


def test_heads_that_were_never_trained_say_nothing(
    images: ImageSet, cpu: Fabric, make_config: MakeConfig, make_run: MakeRun
) -> None:
    metrics = learn(images, make_config(schedule="regression", epochs=1), cpu, make_run("regression")).metrics
    assert "level_accuracy" not in metrics
    metrics = learn(images, make_config(epochs=1), cpu, make_run("progressive")).metrics
    assert "level_accuracy" in metrics


def test_scores_keep_their_precision_under_autocast(
    images: ImageSet, with_model: Callable[..., RunConfig]
) -> None:
    for kind in ("multitask", "plain", "hyper"):
        network = make_network(with_model(kind=kind).model)
        network.start_at(60.0)
        crops = training.normalise(images.pixels.crop(torch.tensor([[i, 0, 0, 0] for i in range(24)]), 32))
        with torch.autocast("cpu", torch.bfloat16):
            score = network(crops).score
        assert score.dtype == torch.float32
        assert len(score.unique()) == 24


def test_several_passes_meet_every_image_as_often(
    images: ImageSet, cpu: Fabric, make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config(passes_per_epoch=3, crops_per_image=1)
    trainer = Trainer(make_network(config.model), config, cpu, 18)
    data = prepare(images, config, 0)
    orders: list[list[int]] = []
    original = training.random_crops
    monkeypatch.setattr(
        training, "random_crops", lambda order, *rest: orders.append(order.tolist()) or original(order, *rest)
    )
    trainer.train_epoch(data, 0, 0)
    assert sorted(orders[0]) == sorted(data.train.tolist() * 3)
    assert orders[0][:18] != orders[0][18:36]


@pytest.mark.parametrize("kind", ["multitask", "plain", "hyper"])
def test_judging_is_the_mean_over_the_crops_of_each_image(
    kind: str, images: ImageSet, cpu: Fabric, with_model: Callable[..., RunConfig]
) -> None:
    config = with_model(kind=kind)
    network = make_network(config.model).eval()
    chosen = torch.tensor([5, 1, 20])
    where = crops_to_judge(config, images, chosen)
    level_scores = torch.arange(10.0)
    judged = judge_crops(network, config, cpu, images.pixels, where, level_scores, batch_size=5)
    with torch.no_grad():
        alone = torch.stack(
            [network(training.normalise(images.pixels.crop(row[None], 32))).score[0] for row in where]
        )
    torch.testing.assert_close(judged.crop_scores, alone.reshape(3, 4), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(judged.scores, alone.reshape(3, 4).mean(dim=1), rtol=1e-4, atol=1e-5)
    assert judged.levels.shape == (3, 10 if kind == "multitask" else 0)


def test_classification_alone_judges_by_the_expected_level(
    images: ImageSet, cpu: Fabric, make_config: MakeConfig
) -> None:
    config = make_config(schedule="classification")
    network = make_network(config.model).eval()
    where = crops_to_judge(config, images, torch.arange(4))
    level_scores = torch.linspace(0.5, 9.5, 10)
    judged = judge_crops(network, config, cpu, images.pixels, where, level_scores)
    torch.testing.assert_close(judged.scores, judged.levels @ level_scores)


def test_what_cannot_be_trained_is_said(
    images: ImageSet, cpu: Fabric, make_config: MakeConfig, make_run: MakeRun
) -> None:
    with (
        pytest.raises(TenfoldError, match=r"image-0 \(and 23 more\) has 40 x 40 pixels"),
        make_run("large") as run,
    ):
        train(images, make_config(crop_size=64), 0, cpu, run)
    equal = replace(images, scores=torch.full((24,), 3.0))
    with pytest.raises(TenfoldError, match="all labels are 3"), make_run("equal") as run:
        train(equal, make_config(), 0, cpu, run)
    single = replace(images, scores=torch.where(torch.arange(24) % 12 == 3, 5.0, 2.0))
    test = prepare(images, make_config(), 0).test
    single.scores[test] = 2.0
    with pytest.raises(TenfoldError, match="the test images have a single score"), make_run("single") as run:
        train(single, make_config(), 0, cpu, run)
    with pytest.raises(TenfoldError, match="no number any more in epoch"), make_run("diverges") as run:
        train(images, make_config(lr=1e30, lr_schedule="constant"), 0, cpu, run)


class NoWaiting(TorchDispatchMode):
    """Refuses what makes the host wait for a GPU, as far as the CPU shows it."""

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(function)
        if any(part in name for part in ("_local_scalar_dense", "nonzero", "masked_select", "unique")):
            raise AssertionError(f"{name} waits for the device")
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("kind", ["multitask", "plain", "hyper"])
def test_a_step_never_waits_for_the_device(
    kind: str, images: ImageSet, cpu: Fabric, with_model: Callable[..., RunConfig]
) -> None:
    config = with_model(kind=kind)
    trainer = Trainer(make_network(config.model), config, cpu, 18)
    where = crops_to_judge(config, images, torch.arange(3))
    levels = images.levels(10)
    with NoWaiting():
        output = trainer.network(training.normalise(images.pixels.crop(where, 32)))
        index = where[:, 0]
        total, _, _ = training.multitask_loss(
            output.score, output.level_logits, images.scores[index], levels[index], 0.5, 0.5
        )
        cpu.backward(total)


def test_two_processes_learn_what_one_does(start: Any, tmp_path: Path) -> None:
    script = Path(__file__).parent / "distributed_train.py"
    for process in [start(script, devices, tmp_path, cwd=tmp_path) for devices in (1, 2)]:
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors
    alone, first, second = (
        torch.load(tmp_path / name, weights_only=True)
        for name in ("on1-rank0.pt", "on2-rank0.pt", "on2-rank1.pt")
    )
    for name, expected in alone.items():
        assert torch.equal(first[name]["weights"], second[name]["weights"]), name
        assert torch.equal(first[name]["predictions"], second[name]["predictions"]), name
        assert len(first[name]["losses"]) == 3
        if "batch norm" in name:  # each process normalises by its own share
            continue
        for part in ("weights", "predictions", "losses"):
            torch.testing.assert_close(
                first[name][part],
                expected[part],
                rtol=1e-3,
                atol=1e-4,
                msg=lambda m, n=name, p=part: f"{n} {p}: {m}",
            )


@pytest.mark.gpu
@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("kind", ["multitask", "plain", "hyper"])
def test_every_network_trains_on_a_gpu(
    kind: str, compiled: bool, images: ImageSet, with_model: Callable[..., RunConfig], make_run: MakeRun
) -> None:
    fabric = launch_fabric(AcceleratorConfig(device="cuda"))
    with make_run("gpu") as run:
        trained = train(images, with_model(kind=kind), 0, fabric, run, compiled)
    assert np.isfinite(list(trained.metrics.values())).all()


@pytest.mark.gpu
def test_a_step_on_a_gpu_never_waits_for_it(images: ImageSet, make_config: MakeConfig) -> None:
    fabric = launch_fabric(AcceleratorConfig(device="cuda"))
    trainer = Trainer(make_network(make_config().model), make_config(), fabric, 18)
    store, where = (
        images.pixels.to(fabric.device),
        crops_to_judge(make_config(), images, torch.arange(6)),
    )
    scores, levels, where = images.scores.cuda(), images.levels(10).cuda(), where.cuda()

    def step() -> None:
        output = trainer.network(training.normalise(store.crop(where, 32)))
        index = where[:, 0]
        total, _, _ = training.multitask_loss(
            output.score, output.level_logits, scores[index], levels[index], 0.5, 0.5
        )
        trainer.optimizer.zero_grad()
        fabric.backward(total)
        trainer.optimizer.step()

    for _ in range(3):
        step()
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
