"""The loop: learning, kills, repetition, parts, processes, numbers that are none, precision, and the GPU."""

from __future__ import annotations

import math
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins.precision import MixedPrecision
from torch import Tensor, nn

from tenfold.cmt import losses as losses_module
from tenfold.cmt.assignment import assign
from tenfold.cmt.config import (
    NO_AUGMENTATION,
    LossConfig,
    NetworkConfig,
    TrainConfig,
)
from tenfold.cmt.dataset import TrainingSamples
from tenfold.cmt.detector import Cmt
from tenfold.cmt.profiles import MASKING
from tenfold.cmt.samples import Batch
from tenfold.cmt.suite_runs import launch_fabric
from tenfold.cmt.training import (
    LOGGED,
    Given,
    Objective,
    Trained,
    Trainer,
    fade_step,
    parameter_groups,
    total_steps,
    train_detector,
)
from tenfold.cmt.training_batches import BatchOrder, training_loader
from tenfold.shared.accelerator import AcceleratorConfig
from tenfold.shared.logging import TenfoldError
from tenfold.shared.runs import Run

MakeSamples = Callable[..., TrainingSamples]
MakeDetector = Callable[..., Cmt]
MakeNetwork = Callable[..., NetworkConfig]
MakeRecipe = Callable[..., TrainConfig]
MakeRun = Callable[..., Run]
Learn = Callable[..., tuple[Cmt, Trained]]
MakeBatch = Callable[..., Batch]
PLAIN = LossConfig(denoising_groups=0)
"""Nothing random in a step."""


class Killed(BaseException):
    """Stands for a kill between two updates."""


def killing(kills_at: int, original: Any = Run.log) -> Callable[..., None]:
    """``Run.log`` that is killed when an update is to be logged."""

    def log(run: Run, step: int, **values: float) -> None:
        if step == kills_at:
            raise Killed
        original(run, step, **values)

    return log


def assert_same(first: Cmt, second: Cmt) -> None:
    """To the bit."""
    others = second.state_dict()
    for name, value in first.state_dict().items():
        assert torch.equal(value, others[name]), name


def assert_close_gradients(first: dict[str, Tensor], second: dict[str, Tensor], bound: float = 1e-4) -> None:
    """But for rounding, by the largest of all."""
    assert first.keys() == second.keys()
    most = max(float(gradient.abs().max()) for gradient in second.values())
    for name, mine in first.items():
        assert float((mine - second[name]).abs().max()) < bound * most, name


@pytest.fixture
def learn(cpu: Fabric, make_samples: MakeSamples, make_detector: MakeDetector) -> Learn:
    """Trains a seeded network on the generated keyframes."""

    def go(
        run: Run,
        recipe: TrainConfig,
        seed: int = 0,
        modality: str = "fusion",
        keyframes: int = 4,
        losses: LossConfig | None = None,
    ) -> tuple[Cmt, Trained]:
        network = make_detector(modality)
        samples = make_samples(network.network, MASKING, seed)
        order = BatchOrder(np.arange(keyframes), recipe.batch_size, seed)
        with run:
            trained = train_detector(network, samples, order, recipe, losses or LossConfig(), cpu, run)
        return network, trained

    return go


@pytest.fixture
def make_batch(make_samples: MakeSamples, make_network: MakeNetwork) -> MakeBatch:
    """Keyframes by number, in a batch."""

    def make(numbers: tuple[int, ...] = (0, 1), network: NetworkConfig | None = None) -> Batch:
        samples = make_samples(network or make_network(), NO_AUGMENTATION)
        order = BatchOrder(np.array(numbers), len(numbers), 0)
        return next(iter(training_loader(samples, order, 0, 1)))

    return make


def parts_of(batch: Batch, *parts: Batch) -> Iterator[Batch]:
    yield from (batch, *parts)


def emptied(batch: Batch) -> Batch:
    """The same without objects."""
    size = len(batch.tokens)
    labels = torch.zeros(size, 0, dtype=torch.int64)
    return replace(batch, boxes=torch.zeros(size, 0, 9), labels=labels, counts=(0,) * size)


def first_update(network: Cmt, recipe: TrainConfig, fabric: Fabric, *parts: Batch) -> dict[str, Tensor]:
    """Gradients of the first update: Adam's first averages are a tenth of them."""
    trainer = Trainer(network, recipe, PLAIN, fabric, 6, 0)
    trainer.learn(0, iter(parts))
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    return {names[id(one)]: 10 * state["exp_avg"] for one, state in trainer.optimizer.state.items()}


def gradients_by_hand(network: Cmt, cpu: Fabric, *halves: Batch) -> list[dict[str, Tensor]]:
    """Of each half, without a trainer."""
    objective, found = Objective(network, PLAIN, cpu).train(), []
    for half in halves:
        network.zero_grad()
        objective(Given(half, torch.Generator(), None))[0].backward()
        named = network.named_parameters()
        found.append({name: value.grad.clone() for name, value in named if value.grad is not None})
    return found


# -- learning --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("modality", ["fusion", "lidar", "camera"])
def test_the_loss_of_one_sample_falls(
    modality: str, learn: Learn, make_recipe: MakeRecipe, make_run: MakeRun
) -> None:
    run = make_run("falls", checkpoint_seconds=3600)
    recipe = make_recipe(steps=40, batch_size=1, log_every=10)
    _, trained = learn(run, recipe, modality=modality, keyframes=1)
    losses = [row["loss"] for row in run.history()]
    assert len(losses) == 4
    assert losses[-1] < 0.8 * losses[0]
    assert trained.losses["loss"] == losses[-1]
    assert trained.samples_per_second > 0


def test_the_logged_values_are_losses_of_the_last_layer_and_the_norm_of_the_gradient(
    make_batch: MakeBatch, make_detector: MakeDetector, make_recipe: MakeRecipe, cpu: Fabric
) -> None:
    batch, network = make_batch(), make_detector(layers=1)
    recipe = make_recipe(clip=1e9)
    trainer = Trainer(network, recipe, LossConfig(), cpu, 6, 0)
    logged = dict(zip(LOGGED, trainer.learn(0, parts_of(batch)).tolist(), strict=True))
    parts = ("loss_cls", "loss_bbox", "dn_loss_cls", "dn_loss_bbox")
    assert logged["loss"] == pytest.approx(sum(logged[name] for name in parts), rel=1e-5)
    averages = [state["exp_avg"].square().sum() for state in trainer.optimizer.state.values()]
    norm = 10 * math.sqrt(sum(float(square) for square in averages))
    assert logged["gradient_norm"] == pytest.approx(norm, rel=1e-4)


def test_gradients_are_clipped_to_the_norm_of_the_recipe(
    make_batch: MakeBatch, make_detector: MakeDetector, make_recipe: MakeRecipe, cpu: Fabric
) -> None:
    gradients = first_update(make_detector(), make_recipe(clip=0.01), cpu, make_batch())
    squares = sum(float(gradient.square().sum()) for gradient in gradients.values())
    assert math.sqrt(squares) == pytest.approx(0.01, rel=1e-3)


def test_the_image_branch_has_rates_and_decay_of_its_own(make_detector: MakeDetector) -> None:
    """Section 3 of the paper's recipe: backbone lr x0.01 and decay x5, neck lr x0.1."""
    network = make_detector()
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    found: dict[str, tuple[float, float]] = {}
    for group in parameter_groups(network, TrainConfig()):
        for parameter in group["params"]:
            assert names[id(parameter)] not in found
            found[names[id(parameter)]] = group["lr"], group["weight_decay"]
    assert set(found) == set(names.values())
    for name, settings in found.items():
        expected = {"img_backbone": (1e-6, 0.05), "img_neck": (1e-5, 0.01)}
        assert settings == pytest.approx(expected.get(name.split(".")[0], (1e-4, 0.01))), name


def test_epochs_and_steps_are_counted_with_their_fade() -> None:
    assert total_steps(TrainConfig(), 100) == 2000
    assert fade_step(TrainConfig(), 100) == 1500  # 15 epochs with pasted objects, 5 without
    assert total_steps(TrainConfig(steps=40), 100) == 40
    assert fade_step(TrainConfig(steps=40, fade_part=0.25), 100) == 30


# -- kills and repetition --------------------------------------------------------------------------------


def test_a_killed_training_goes_on_to_the_same_result(
    learn: Learn, make_recipe: MakeRecipe, make_run: MakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = make_recipe()
    undisturbed, trained = learn(make_run("whole", checkpoint_seconds=3600), recipe)
    with monkeypatch.context() as patch:
        patch.setattr(Run, "log", killing(4))
        with pytest.raises(Killed):
            learn(make_run("killed"), recipe)
    again = make_run("killed")
    assert [row["step"] for row in again.history()] == [2]
    resumed, found = learn(again, recipe)
    assert_same(resumed, undisturbed)
    assert found.losses == trained.losses
    assert again.history() == make_run("whole").history()
    assert [row["step"] for row in again.history()] == [2, 4, 6]


def test_the_same_seed_learns_the_same_and_another_something_else(
    learn: Learn, make_recipe: MakeRecipe, make_run: MakeRun
) -> None:
    recipe = make_recipe(steps=2)
    (one, first), (two, second), (_, third) = (
        learn(make_run(name), recipe, seed=seed) for name, seed in (("a", 0), ("b", 0), ("c", 1))
    )
    assert_same(one, two)
    assert first.losses == second.losses
    assert first.losses != third.losses


# -- parts -----------------------------------------------------------------------------------------------


def test_a_batch_in_two_parts_teaches_the_mean_of_its_halves(
    make_batch: MakeBatch, make_detector: MakeDetector, make_recipe: MakeRecipe, cpu: Fabric
) -> None:
    halves = make_batch((0, 1)), make_batch((2, 3))
    assert sum(halves[0].counts) != sum(halves[1].counts)  # each half has a normaliser of its own
    recipe = make_recipe(batch_size=4, accumulate=2, clip=1e9)
    found = first_update(make_detector(), recipe, cpu, *halves)
    first, second = gradients_by_hand(make_detector(), cpu, *halves)
    assert_close_gradients(found, {name: (first[name] + second[name]) / 2 for name in first})


@pytest.mark.parametrize("parts", [3, 8])
def test_a_batch_that_cannot_be_divided_is_refused(
    parts: int, make_detector: MakeDetector, make_recipe: MakeRecipe, cpu: Fabric
) -> None:
    recipe = make_recipe(batch_size=4, accumulate=parts)
    with pytest.raises(TenfoldError, match=f"batches of 4 samples cannot be divided into {parts} parts"):
        Trainer(make_detector("lidar"), recipe, PLAIN, cpu, 6, 0)


# -- what may go wrong -----------------------------------------------------------------------------------


def test_a_loss_that_is_no_number_ends_the_training_in_one_sentence(
    learn: Learn, make_recipe: MakeRecipe, make_run: MakeRun
) -> None:
    recipe = make_recipe(steps=8, lr=1e30, clip=1e30, log_every=1)
    with pytest.raises(TenfoldError, match=r"no number any more at update \d; lower the learning rate"):
        learn(make_run("explodes"), recipe, modality="lidar")


@pytest.mark.parametrize("losses", [LossConfig(), PLAIN], ids=["denoising", "plain"])
def test_a_batch_without_any_object_teaches_finite_numbers(
    losses: LossConfig,
    make_batch: MakeBatch,
    make_detector: MakeDetector,
    make_recipe: MakeRecipe,
    cpu: Fabric,
) -> None:
    network = make_detector()
    trainer = Trainer(network, make_recipe(), losses, cpu, 6, 0)
    logged = dict(zip(LOGGED, trainer.learn(0, parts_of(emptied(make_batch()))).tolist(), strict=True))
    assert all(math.isfinite(value) for value in logged.values())
    assert logged["loss_cls"] > 0
    assert logged["loss_bbox"] == logged["dn_loss_cls"] == logged["dn_loss_bbox"] == 0
    assert all(value.isfinite().all() for value in network.state_dict().values())


def test_one_sample_without_objects_beside_one_with_some_teaches_finite_numbers(
    make_batch: MakeBatch, make_detector: MakeDetector, make_recipe: MakeRecipe, cpu: Fabric
) -> None:
    batch = make_batch()
    boxes, labels = batch.boxes.clone(), batch.labels.clone()
    boxes[1], labels[1] = 0, -1
    batch = replace(batch, boxes=boxes, labels=labels, counts=(batch.counts[0], 0))
    trainer = Trainer(make_detector(), make_recipe(), LossConfig(), cpu, 6, 0)
    assert trainer.learn(0, parts_of(batch)).isfinite().all()


# -- processes -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def together(
    start: Callable[..., subprocess.Popen[str]], scenes: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Any]:
    """What two processes left, by name."""
    output = tmp_path_factory.mktemp("together")
    script = Path(__file__).parent / "distributed_train.py"
    process = start(script, output, scenes, cwd=output)
    _, said = process.communicate(timeout=300)

    def kept(name: str) -> Any:
        path = output / f"{name}.pt"
        assert path.is_file(), said[-2000:] or "the processes waited for each other for ever"
        return torch.load(path, weights_only=True)

    return kept


def test_gradients_of_two_processes_are_the_mean_of_their_halves(together: Callable[[str], Any]) -> None:
    first, second = (together(f"gradients-{rank}") for rank in (0, 1))
    alone = together("alone-gradients")
    logged = [found.pop("logged") for found in (first, second)]
    assert not torch.equal(*logged)  # each process has losses of its own
    for name, gradient in first.items():
        assert torch.equal(gradient, second[name]), name
    mean = {name: (alone[0][name] + alone[1][name]) / 2 for name in alone[0]}
    assert_close_gradients(first, mean)


def test_boxes_of_noised_queries_count_in_all_processes_and_all_else_in_each(
    together: Callable[[str], Any],
) -> None:
    """The released code averages the count of the one loss alone over processes."""
    found = [together(f"noised-{rank}") for rank in (0, 1)]
    alone = together("alone-noised")
    counts = [min(10, 36 // max(one["counts"])) * sum(one["counts"]) for one in found]
    assert counts[0] != counts[1]
    for one, own, count in zip(found, alone, counts, strict=True):
        assert one["losses"][1:4].tolist() == pytest.approx(own[1:4].tolist(), rel=1e-4)
        expected = float(own[4]) * count / (sum(counts) / 2)
        assert float(one["losses"][4]) == pytest.approx(expected, rel=1e-4)


def test_two_processes_detect_what_one_does(together: Callable[[str], Any]) -> None:
    first, second, alone = (together(name) for name in ("detections-0", "detections-1", "alone-detections"))
    assert first.keys() == second.keys() == alone.keys()
    assert len(alone) == 4
    for token, expected in alone.items():
        for name in ("boxes", "scores"):
            assert torch.equal(first[token][name], second[token][name])
            torch.testing.assert_close(first[token][name], expected[name])


@pytest.mark.parametrize("number", range(4), ids=["whole", "no image positions", "no map positions", "free"])
def test_two_processes_train_every_ablation_to_the_same_network(
    number: int, together: Callable[[str], Any]
) -> None:
    first, second = (together(f"switch{number}-{rank}") for rank in (0, 1))
    assert not isinstance(first, str), first
    assert first["losses"] == second["losses"]
    assert math.isfinite(first["losses"]["loss"])
    for name, value in first["weights"].items():
        if "running" not in name and "tracked" not in name:
            assert torch.equal(value, second["weights"][name]), name


def test_a_process_without_objects_does_not_hold_up_one_with_some(together: Callable[[str], Any]) -> None:
    first, second = (together(f"lacking-{rank}") for rank in (0, 1))
    assert first["logged"].isfinite().all()
    assert second["logged"][2] == 0  # no box to regress
    for name, gradient in first.items():
        assert name == "logged" or torch.equal(gradient, second[name]), name


# -- precision and compilation ---------------------------------------------------------------------------


def test_an_update_in_bf16_on_the_cpu_is_finite_and_near_that_in_fp32(
    make_batch: MakeBatch, make_detector: MakeDetector, make_recipe: MakeRecipe, cpu: Fabric
) -> None:
    mixed = launch_fabric(AcceleratorConfig(device="cpu", precision="bf16-mixed"))
    found, expected = (
        Trainer(make_detector(), make_recipe(), LossConfig(), fabric, 6, 0).learn(0, parts_of(make_batch()))
        for fabric in (mixed, cpu)
    )
    assert found.isfinite().all()
    assert found.dtype == torch.float32
    assert float(found[0]) == pytest.approx(float(expected[0]), rel=0.05)


def test_compiled_branches_learn_what_others_do(
    make_batch: MakeBatch,
    make_detector: MakeDetector,
    make_recipe: MakeRecipe,
    cpu: Fabric,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Traced, but not made into machine code, which takes a minute."""
    original, compiled = nn.Module.compile, []

    def traced(module: nn.Module) -> None:
        compiled.append(module)
        original(module, backend="eager")

    monkeypatch.setattr(nn.Module, "compile", traced)
    network, batch = make_detector(), make_batch()
    found, expected = (
        Trainer(one, make_recipe(), LossConfig(), cpu, 6, 0, one is network).learn(0, parts_of(batch))
        for one in (network, make_detector())
    )
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)
    branches = (network.img_backbone, network.img_neck, network.pts_backbone, network.pts_neck)
    assert compiled == list(branches)
    assert network.state_dict().keys() == make_detector().state_dict().keys()


# -- GPU -------------------------------------------------------------------------------------------------


def on_gpu(precision: Any) -> Fabric:
    return launch_fabric(AcceleratorConfig(device="cuda", precision=precision))


@pytest.mark.gpu
@pytest.mark.parametrize("modality", ["fusion", "lidar", "camera"])
def test_an_update_on_a_gpu_is_that_on_the_cpu(
    modality: str,
    make_batch: MakeBatch,
    make_network: MakeNetwork,
    make_detector: MakeDetector,
    make_recipe: MakeRecipe,
    cpu: Fabric,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """TF32 would hide small faults."""
    fabric = on_gpu("32-true")
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        batch = make_batch((0, 1), make_network(modality))
        found = first_update(make_detector(modality), make_recipe(clip=1e9), fabric, batch.to(fabric.device))
    finally:
        torch.set_float32_matmul_precision(before)
    expected = first_update(make_detector(modality), make_recipe(clip=1e9), cpu, batch)
    assert_close_gradients({name: value.cpu() for name, value in found.items()}, expected, 1e-2)


@pytest.mark.gpu
def test_an_update_in_bf16_on_a_gpu_is_finite_and_near_that_in_fp32(
    make_batch: MakeBatch, make_detector: MakeDetector, make_recipe: MakeRecipe
) -> None:
    """Without denoising, whose noise is drawn on the device all the same but need not be."""
    found, expected = (
        Trainer(make_detector(), make_recipe(), PLAIN, fabric, 6, 0).learn(
            0, parts_of(make_batch().to(fabric.device))
        )
        for fabric in (on_gpu("bf16-mixed"), on_gpu("32-true"))
    )
    assert found.isfinite().all()
    assert float(found[0]) == pytest.approx(float(expected[0]), rel=0.05)


@pytest.mark.gpu
def test_an_update_waits_for_the_gpu_once(
    make_batch: MakeBatch,
    make_network: MakeNetwork,
    make_recipe: MakeRecipe,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """For the costs of the assignments, which are solved on the host; with denoising and grid mask."""
    fabric, shape = on_gpu("bf16-mixed"), make_network()
    shape = replace(shape, image=replace(shape.image, grid_mask=1.0))
    batch = make_batch((0, 1), shape).to(fabric.device)
    trainer = Trainer(Cmt(shape), make_recipe(), LossConfig(), fabric, 8, 0)
    for step in range(3):
        trainer.learn(step, parts_of(batch))
    waited = []

    def waiting(costs: Tensor, counts: tuple[int, ...]) -> Any:
        torch.cuda.set_sync_debug_mode("default")
        waited.append(len(counts))
        found = assign(costs, counts)
        torch.cuda.set_sync_debug_mode("error")
        return found

    monkeypatch.setattr(losses_module, "assign", waiting)
    torch.cuda.set_sync_debug_mode("error")
    try:
        trainer.learn(3, parts_of(batch))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert waited == [2]


@pytest.mark.gpu
def test_a_gpu_trains_a_whole_run(
    make_samples: MakeSamples, make_network: MakeNetwork, make_recipe: MakeRecipe, make_run: MakeRun
) -> None:
    fabric, shape = on_gpu("auto"), make_network()
    samples, order = make_samples(shape, MASKING), BatchOrder(np.arange(4), 2, 0)
    network = Cmt(shape)
    with make_run("gpu") as run:
        trained = train_detector(network, samples, order, make_recipe(), LossConfig(), fabric, run)
    assert all(math.isfinite(value) for value in trained.losses.values())
    assert all(value.isfinite().all() for value in network.state_dict().values())


def scaling_fabric() -> Fabric:
    """As on a GPU that computes no bf16: losses are scaled."""
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    return Fabric(accelerator="cpu", plugins=[MixedPrecision("16-mixed", "cpu", scaler)])


def test_scaled_gradients_are_clipped(
    make_batch: MakeBatch, make_detector: MakeDetector, make_recipe: MakeRecipe
) -> None:
    trainer = Trainer(make_detector(layers=1), make_recipe(clip=0.01), PLAIN, scaling_fabric(), 6, 0)
    assert not trainer.optimizer.defaults["fused"]
    trainer.learn(0, parts_of(make_batch()))
    gradients = [weight.grad for weight in trainer.network.parameters() if weight.grad is not None]
    assert 0 < nn.utils.get_total_norm(gradients) < 0.0101


def test_other_optimisers_are_fused(
    make_detector: MakeDetector, make_recipe: MakeRecipe, cpu: Fabric
) -> None:
    trainer = Trainer(make_detector(layers=1), make_recipe(), PLAIN, cpu, 6, 0)
    assert trainer.optimizer.defaults["fused"]
