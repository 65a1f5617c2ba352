"""The loop for classifiers: kills, repetition, processes, averages, distillation, files, looks at the test images."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins.precision import MixedPrecision
from PIL import Image
from torch import nn

from tenfold.emo.config import DataConfig, ModelConfig, RunConfig, TrainConfig
from tenfold.emo.data import ImagesInMemory, load_split_digits
from tenfold.emo.networks import make_network
from tenfold.emo.profiles import PROFILES
from tenfold.emo.recipe import parameter_groups
from tenfold.emo.teacher import Teacher, load_teacher
from tenfold.emo.training import Trainer, is_judged, judge, train
from tenfold.shared.accelerator import AcceleratorConfig, launch_fabric
from tenfold.shared.logging import TenfoldError
from tenfold.shared.runs import Run

MakeConfig = Callable[..., RunConfig]
MakeRun = Callable[..., Run]


class Killed(BaseException):
    """Stands for a kill between two epochs."""


def weights(network: nn.Module) -> torch.Tensor:
    return torch.cat([value.detach().flatten().float() for value in network.state_dict().values()])


@pytest.mark.parametrize(
    ("checkpoint", "settings"),
    [(1, {}), (2, {"model": {"drop_path": 0.3}, "ema_decay": 0.5, "noise_range": (0.0, 1.0)})],
)
def test_a_killed_run_goes_on_to_the_same_result(
    checkpoint: int,
    settings: dict[str, Any],
    cpu: Fabric,
    make_config: MakeConfig,
    make_run: MakeRun,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = make_config(**settings)
    with make_run("whole", checkpoint_seconds=3600) as whole:
        undisturbed = train(config, 1, cpu, whole)
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
            train(config, 1, cpu, killed)
    with make_run("killed", checkpoint_seconds=3600) as again:
        resumed = train(config, 1, cpu, again)
        assert again.history() == whole.history()
    assert torch.equal(weights(resumed.network), weights(undisturbed.network))
    assert resumed.metrics == undisturbed.metrics


def test_the_same_seed_learns_the_same_and_another_something_else(
    cpu: Fabric, make_config: MakeConfig, make_run: MakeRun
) -> None:
    found = []
    for name, seed in (("one", 0), ("two", 0), ("three", 1)):
        with make_run(name) as run:
            found.append(weights(train(make_config(epochs=1), seed, cpu, run).network))
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


def test_two_processes_learn_what_one_does(start: Any, tmp_path: Path) -> None:
    """With batch norm each process normalises its own share, as in the authors' code: weights agree, not with one's."""
    script = Path(__file__).parent / "distributed_train.py"
    for devices in (1, 2):
        process = start(script, devices, tmp_path, cwd=tmp_path)
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors
    alone = torch.load(tmp_path / "on1-rank0.pt", weights_only=True)
    ranks = [torch.load(tmp_path / f"on2-rank{rank}.pt", weights_only=True) for rank in (0, 1)]
    torch.testing.assert_close(ranks[0]["vit"]["weights"], ranks[1]["vit"]["weights"], rtol=0, atol=0)
    torch.testing.assert_close(ranks[0]["vit"]["weights"], alone["vit"]["weights"], rtol=1e-3, atol=5e-4)
    torch.testing.assert_close(ranks[0]["vit"]["losses"], alone["vit"]["losses"], rtol=1e-4, atol=1e-5)
    for name in ("emo", "vit"):
        assert torch.equal(ranks[0][name]["top1"], ranks[1][name]["top1"])
    torch.testing.assert_close(ranks[0]["emo"]["losses"], alone["emo"]["losses"], rtol=0.05, atol=0.05)
    for part in learned_parts(make_network(ModelConfig("emo_digits"), 10, 32)):
        first, second = (found["emo"]["weights"][part] for found in ranks)
        torch.testing.assert_close(first, second, rtol=0, atol=1e-6)


def learned_parts(network: nn.Module) -> list[slice]:
    """Where parameters lie in the flattened state; statistics of batch norm are each process's own."""
    place, parts, learned = 0, [], dict(network.named_parameters())
    for name, value in network.state_dict().items():
        if name in learned:
            parts.append(slice(place, place + value.numel()))
        place += value.numel()
    return parts


def test_a_network_learns_digits(cpu: Fabric, make_config: MakeConfig, make_run: MakeRun) -> None:
    with make_run("learns") as run:
        config = make_config(epochs=6, batch_size=64)
        trained = train(config, 0, cpu, run)
        losses = [row["loss"] for row in run.history()]
    assert losses[-1] < 0.6 * losses[0]
    assert trained.metrics["top1"] > 60
    assert trained.metrics["best_top1"] >= trained.metrics["top1"]
    assert trained.images_per_second > 0


def test_the_average_follows_and_is_what_is_kept(
    cpu: Fabric, make_config: MakeConfig, make_run: MakeRun
) -> None:
    with make_run("average") as run:
        trained = train(make_config(epochs=2, ema_decay=0.5), 0, cpu, run)
    assert {"ema_top1", "ema_top5", "best_ema_top1", "best_top5"} <= set(trained.metrics)
    with make_run("plain") as run:
        plain = train(make_config(epochs=2), 0, cpu, run)
    assert not torch.equal(weights(trained.network), weights(plain.network))
    assert "ema_top1" not in plain.metrics


def test_a_loss_that_is_no_number_ends_the_run(
    cpu: Fabric, make_config: MakeConfig, make_run: MakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Trainer, "learn", lambda *_: torch.tensor(math.nan))
    with (
        pytest.raises(TenfoldError, match=r"no number any more in epoch 0; lower --train\.lr"),
        make_run("nan") as run,
    ):
        train(make_config(), 0, cpu, run)


def test_batches_that_cannot_be_are_said(cpu: Fabric, make_config: MakeConfig, make_run: MakeRun) -> None:
    with pytest.raises(TenfoldError, match="898 images are no batch of 4096"), make_run("large") as run:
        train(make_config(batch_size=4096), 0, cpu, run)


def test_test_images_are_looked_at_now_and_then_and_in_the_end_always() -> None:
    config = TrainConfig()
    looked = [epoch + 1 for epoch in range(300) if is_judged(epoch, config)]
    assert looked == [*range(5, 201, 5), *range(201, 301)]


def test_accuracies_are_those_of_counting(cpu: Fabric) -> None:
    class Ranks(nn.Module):
        """Says of image i that class 0 comes first, then 1, and so on."""

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.arange(10.0, 0.0, -1.0).expand(len(x), -1)

    labels = torch.tensor([0] * 3 + [4] * 2 + [5] * 5)
    test = ImagesInMemory(torch.zeros(10, 3, 32, 32), labels, 10)
    found = judge(Ranks(), test, DataConfig("digits", image_size=32, augmentation="none"), cpu)
    assert found == {"top1": pytest.approx(30.0), "top5": pytest.approx(50.0)}


# -- distillation --------------------------------------------------------------------------------------


def test_a_teacher_sees_its_own_normalisation_and_size_and_never_learns() -> None:
    class Seen(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.pretrained_cfg = {"input_size": (3, 64, 64), "mean": (0.5, 0.4, 0.3), "std": (0.1, 0.2, 0.3)}
            self.layer = nn.Linear(1, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            assert not self.training
            return x

    mean, deviation = (0.2, 0.3, 0.4), (0.3, 0.2, 0.1)
    teacher = Teacher(Seen(), mean, deviation).train()
    raw = torch.rand(2, 3, 64, 64)

    def normalised(values: tuple[float, ...], spread: tuple[float, ...]) -> torch.Tensor:
        return (raw - torch.tensor(values)[:, None, None]) / torch.tensor(spread)[:, None, None]

    torch.testing.assert_close(
        teacher(normalised(mean, deviation)), normalised((0.5, 0.4, 0.3), (0.1, 0.2, 0.3))
    )
    assert teacher(torch.rand(1, 3, 32, 32)).shape == (1, 3, 64, 64)
    assert not any(value.requires_grad for value in teacher.parameters())


@pytest.mark.parametrize("kind", ["soft", "hard"])
def test_a_student_comes_to_say_what_its_teacher_says(
    kind: str, cpu: Fabric, make_config: MakeConfig
) -> None:
    """Labels are wrong on purpose; the teacher always says class 3."""

    class Three(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.pretrained_cfg = {"input_size": (3, 32, 32), "mean": (0.0,) * 3, "std": (1.0,) * 3}

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.eye(10)[3].expand(len(x), -1) * 20

    config = make_config(distillation=kind, distillation_weight=20.0, lr=1e-2)
    torch.manual_seed(0)
    network = make_network(config.model, 10, 32)
    trainer = Trainer(network, config.train, 10, cpu, teacher=Teacher(Three(), (0.0,) * 3, (1.0,) * 3))
    images = load_split_digits(0, 32).train.images[:64]
    for _ in range(12):
        trainer.learn(images, torch.zeros(64, dtype=torch.int64), 1e-2)
    network.train()
    assert (network(images).argmax(dim=1) == 3).float().mean() > 0.9


def test_a_teacher_that_is_not_to_be_had_is_said() -> None:
    nothing = ((0.0,) * 3, (1.0,) * 3)
    with pytest.raises(TenfoldError, match="timm has no model nonsense"):
        load_teacher("nonsense", 10, *nothing)
    with pytest.raises(TenfoldError, match="give --download"):
        load_teacher("resnet18", 1000, *nothing)


# -- files ---------------------------------------------------------------------------------------------


@pytest.fixture
def image_files(tmp_path: Path) -> Path:
    """ImageNet's layout with three classes of plain colours, some pixels larger than networks see them."""
    colours = {"blue": (20, 40, 200), "green": (30, 180, 40), "red": (210, 30, 30)}
    for split, count in (("train", 12), ("val", 4)):
        for name, colour in colours.items():
            folder = tmp_path / "imagenet" / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                Image.new("RGB", (50 + number, 44), colour).save(folder / f"{number}.jpg")
    return tmp_path


def test_the_recipe_for_imagenet_runs_on_image_files(
    image_files: Path, cpu: Fabric, make_run: MakeRun
) -> None:
    paper = PROFILES["imagenet-1m"].run_config("EMO-1M")
    config = replace(
        paper,
        model=ModelConfig("emo_digits"),
        data=replace(paper.data, image_size=32, workers=0),
        train=replace(paper.train, epochs=2, batch_size=8, warmup_epochs=1),
    )
    with make_run("files") as run:
        trained = train(config, 42, cpu, run, image_files)
        history = run.history()
    assert trained.num_classes == 3
    assert len(history) == 2
    assert {"ema_top1", "top1", "best_ema_top5"} <= set(trained.metrics)


def test_missing_image_files_are_said_with_what_to_do(cpu: Fabric, make_run: MakeRun, tmp_path: Path) -> None:
    config = PROFILES["imagenet-5m"].run_config("EMO-5M")
    with pytest.raises(TenfoldError, match=r"imagenet/ below --data-root"), make_run("none") as run:
        train(config, 0, cpu, run, tmp_path)
    cifar = PROFILES["h100"].run_config("EMO-1M")
    with pytest.raises(TenfoldError, match=r"CIFAR-10 is not in"), make_run("no-cifar") as run:
        train(cifar, 0, cpu, run, tmp_path)


@pytest.mark.parametrize("profile", [name for name in PROFILES if name.startswith(("imagenet", "h100"))])
def test_every_method_of_a_large_profile_can_take_a_step(profile: str, cpu: Fabric) -> None:
    """Its own network and recipe, on two random images at the size of the profile."""
    suite = PROFILES[profile]
    for method in suite.methods:
        config = suite.run_config(method)
        network = make_network(config.model, 10, config.data.image_size)
        decay = parameter_groups(network, config.train.weight_decay)[1]["params"]
        assert all(parameter.ndim > 1 for parameter in decay)
        trainer = Trainer(network, config.train, steps_per_epoch=625, fabric=cpu)
        images = torch.randn(2, 3, config.data.image_size, config.data.image_size)
        loss = trainer.learn(images, torch.tensor([1, 2]), trainer.rate(0, 1))
        assert torch.isfinite(loss)


@pytest.mark.gpu
def test_a_network_learns_on_a_gpu(make_config: MakeConfig, make_run: MakeRun) -> None:
    with make_run("gpu") as run:
        trained = train(make_config(epochs=6, batch_size=64), 0, launch_fabric(AcceleratorConfig()), run)
    assert trained.metrics["top1"] > 60


def test_networks_go_by_their_names() -> None:
    assert isinstance(
        make_network(ModelConfig("mobilenetv2_050"), 7, 64), type(timm.create_model("mobilenetv2_050"))
    )
    with pytest.raises(TenfoldError, match="there is no network emo_9m"):
        make_network(ModelConfig("emo_9m"), 10, 64)
    with pytest.raises(TenfoldError, match="are options of EMO, not of vit_digits"):
        make_network(ModelConfig("vit_digits", attention=False), 10, 32)


def scaling_fabric() -> Fabric:
    """As on a GPU that computes no bf16: losses are scaled."""
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    return Fabric(accelerator="cpu", plugins=[MixedPrecision("16-mixed", "cpu", scaler)])


def test_scaled_gradients_are_clipped(make_config: MakeConfig) -> None:
    config = make_config({"name": "vit_digits"}, clip_norm=0.01)
    trainer = Trainer(make_network(config.model, 10, 32), config.train, 10, scaling_fabric())
    assert not trainer.plain_optimizer.defaults["fused"]
    assert torch.isfinite(trainer.learn(torch.randn(4, 3, 32, 32), torch.tensor([1, 2, 3, 4]), 1e-3))
    gradients = [weight.grad for weight in trainer.plain_network.parameters() if weight.grad is not None]
    assert 0 < torch.nn.utils.get_total_norm(gradients) < 0.0101


def test_other_optimisers_are_fused(make_config: MakeConfig, cpu: Fabric) -> None:
    config = make_config({"name": "vit_digits"})
    trainer = Trainer(make_network(config.model, 10, 32), config.train, 10, cpu)
    assert trainer.plain_optimizer.defaults["fused"]
