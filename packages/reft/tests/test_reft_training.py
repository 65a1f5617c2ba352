"""The loop: what is frozen, groups and schedules, kills, repetition, parts, processes, and teachers that stay."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins.precision import MixedPrecision
from torch import Tensor, nn
from torch.optim import AdamW

from tenfold.reft.batches import Batch, Supports
from tenfold.reft.config import DistillConfig, LossConfig, ReferenceConfig, TrainConfig
from tenfold.reft.episodes import Episodes
from tenfold.reft.few_shot import FewShot, base_supports, begin_few_shot
from tenfold.reft.freezing import freeze, parameter_groups
from tenfold.reft.judging import support_cache
from tenfold.reft.model import RefT
from tenfold.reft.sources import Source
from tenfold.reft.support_pool import SupportPool
from tenfold.reft.training import Trained, Trainer, make_schedule, split, train_stage
from tenfold.shared.accelerator import AcceleratorConfig, launch_fabric
from tenfold.shared.logging import TenfoldError
from tenfold.shared.runs import Run

MakeNetwork = Callable[..., RefT]
MakeBatch = Callable[..., Batch]
MakeSupports = Callable[..., Supports]
MakeRecipe = Callable[..., TrainConfig]
MakeRun = Callable[..., Run]
OFF = ReferenceConfig("off", query="off")
POINTS = LossConfig(num_points=64)
SAME = LossConfig(num_points=0, no_object_weight=1.0)
"""No random points, and a mean over images that does not depend on how they are divided."""
ENCODER = "model.pixel_level_module.encoder."
PROJECTIONS = "model.pixel_level_module.decoder.input_projections."


class Killed(BaseException):
    """Stands for a kill between two updates."""


def killing(kills_at: int, original: Any = Run.log) -> Callable[..., None]:
    """``Run.log`` that is killed when an update is to be logged."""

    def log(run: Run, step: int, **values: float) -> None:
        if step == kills_at:
            raise Killed
        original(run, step, **values)

    return log


def copied(network: RefT) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in network.state_dict().items()}


def changed(network: RefT, before: dict[str, Tensor]) -> set[str]:
    """Names of the weights that are not what they were."""
    return {name for name, value in network.state_dict().items() if not torch.equal(value, before[name])}


def assert_same(first: RefT, second: RefT) -> None:
    assert not changed(first, second.state_dict())


def learned(
    network: RefT,
    batch: Batch,
    supports: Supports | None,
    recipe: TrainConfig,
    cpu: Fabric,
    num_base: int = 0,
) -> RefT:
    """After three updates."""
    trainer = Trainer(network, recipe, POINTS, cpu, num_base=num_base)
    for seed in range(3):
        trainer.learn(batch, supports, seed)
    return network


@pytest.fixture(scope="session")
def pool(digits: Source) -> SupportPool:
    return SupportPool(digits.base_instances, digits.data, in_memory=True)


Train = Callable[..., Trained]


@pytest.fixture
def train(digits: Source, pool: SupportPool, cpu: Fabric, make_network: MakeNetwork) -> Train:
    """Trains a network on base classes."""

    def go(
        run: Run,
        recipe: TrainConfig,
        references: ReferenceConfig | None = None,
        seed: int = 0,
        losses: LossConfig = POINTS,
    ) -> Trained:
        network = make_network(references)
        supports = None if network.references.is_off else pool
        episodes = Episodes(
            digits.base_instances, supports, digits.data, recipe.batch_size, recipe.steps, seed
        )
        with run:
            return train_stage(network, episodes, recipe, losses, cpu, run)

    return go


@pytest.fixture
def begin(digits: Source, cpu: Fabric, make_network: MakeNetwork) -> Callable[..., FewShot]:
    """IFSIS as it begins, with a teacher."""

    def go(references: ReferenceConfig | None = None) -> FewShot:
        base = make_network(references, classifier="cosine")
        cache = support_cache(base, base_supports(digits, digits.data, 2, 0), 7, cpu)
        return begin_few_shot(base, cache, digits, "ifsis", 1, 0, DistillConfig(), cpu)

    return go


def fine_tune(begun: FewShot, run: Run, recipe: TrainConfig, cpu: Fabric, data: Any) -> Trained:
    supports = None if begun.network.references.is_off else begun.pool
    episodes = Episodes(begun.instances, supports, data, recipe.batch_size, recipe.steps, 0)
    kept = begun.base_references, begun.teacher, begun.num_base
    with run:
        return train_stage(begun.network, episodes, recipe, POINTS, cpu, run, *kept)


# -- what is trained -------------------------------------------------------------------------------------

TRAINED = {
    "none": ("",),
    "backbone": (
        "model.pixel_level_module.decoder.",
        "model.transformer_module.",
        "feature_reference.",
        "query_reference.",
        "class_predictor.",
    ),
    "classifier": ("class_predictor.",),
    "incremental": (PROJECTIONS, "feature_reference.", "query_reference.", "class_predictor."),
}


@pytest.mark.parametrize("which", TRAINED)
def test_a_stage_changes_what_its_table_says_and_nothing_else(
    which: Any,
    make_network: MakeNetwork,
    make_batch: MakeBatch,
    make_supports: MakeSupports,
    make_recipe: MakeRecipe,
    cpu: Fabric,
) -> None:
    network = make_network()
    before = copied(network)
    weights = {name for name, _ in network.named_parameters()}  # frozen batch norms have none
    recipe = make_recipe(freeze=which, weight_decay=0.5)
    learned(network, make_batch(images=4), make_supports(tuple(range(7))), recipe, cpu, num_base=4)
    assert changed(network, before) == {name for name in weights if name.startswith(TRAINED[which])}


@pytest.mark.parametrize("kind", ["linear", "cosine"])
def test_ifsis_keeps_the_rows_of_base_classes_and_of_no_object_to_the_bit(
    kind: str,
    make_network: MakeNetwork,
    make_batch: MakeBatch,
    make_supports: MakeSupports,
    make_recipe: MakeRecipe,
    cpu: Fabric,
) -> None:
    network = make_network(classifier=kind)
    before = copied(network)
    recipe = make_recipe(freeze="incremental", weight_decay=0.5)
    learned(network, make_batch(images=4), make_supports(tuple(range(7))), recipe, cpu, num_base=4)
    for name, parameter in network.class_predictor.named_parameters():
        was = before[f"class_predictor.{name}"]
        assert torch.equal(parameter[:4], was[:4])
        assert torch.equal(parameter[-1], was[-1])
        assert (parameter[4:7] != was[4:7]).all()


def test_a_released_network_learns_all_rows_again(
    make_network: MakeNetwork, make_batch: MakeBatch, make_recipe: MakeRecipe, cpu: Fabric
) -> None:
    network, batch = make_network(OFF), make_batch(images=4)
    trainer = Trainer(network, make_recipe(freeze="incremental"), POINTS, cpu, num_base=4)
    trainer.learn(batch, None, 0)
    trainer.release()
    assert all(parameter.requires_grad for parameter in network.parameters())
    network(batch.images).class_logits.square().sum().backward()
    gradient = network.class_predictor.weight.grad
    assert gradient is not None
    assert (gradient.abs().amax(1) > 0).all()


def test_frozen_batch_norms_are_no_parameters_and_trained_ones_are(make_network: MakeNetwork) -> None:
    frozen = make_network(OFF)
    trained = RefT(frozen.network, OFF, 7)
    norms = {
        name
        for name, module in trained.named_modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm)
    }
    difference = {name for name, _ in trained.named_parameters()} - {
        name for name, _ in frozen.named_parameters()
    }
    assert norms
    assert difference == {f"{name}.{part}" for name in norms for part in ("weight", "bias")}


# -- groups and schedules --------------------------------------------------------------------------------


def settings_of(network: RefT, recipe: TrainConfig) -> dict[str, tuple[float, float]]:
    """Rate and weight decay by name; every trained weight is in one group."""
    freeze(network, recipe.freeze)
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    found: dict[str, tuple[float, float]] = {}
    for group in parameter_groups(network, recipe):
        for parameter in group["params"]:
            assert names[id(parameter)] not in found
            found[names[id(parameter)]] = group["lr"], group["weight_decay"]
    assert set(found) == {name for name, parameter in network.named_parameters() if parameter.requires_grad}
    return found


def test_norms_and_embeddings_do_not_decay_and_the_backbone_learns_slower(make_network: MakeNetwork) -> None:
    recipe = TrainConfig(lr=1e-3, backbone_lr_factor=0.1, classifier_lr_factor=3.0, weight_decay=0.05)
    found = settings_of(make_network(), recipe)
    decoder = "model.pixel_level_module.decoder"
    transformer = "model.transformer_module"
    expected = {
        f"{PROJECTIONS}0.0.weight": (1e-3, 0.05),
        f"{PROJECTIONS}0.1.weight": (1e-3, 0.0),  # a group norm
        f"{decoder}.encoder.layers.0.final_layer_norm.bias": (1e-3, 0.0),
        f"{decoder}.encoder.layers.0.fc1.weight": (1e-3, 0.05),
        f"{transformer}.queries_features.weight": (1e-3, 0.0),
        f"{transformer}.queries_embedder.weight": (1e-3, 0.0),
        f"{transformer}.level_embed.weight": (1e-3, 0.0),
        f"{transformer}.decoder.layernorm.weight": (1e-3, 0.0),
        f"{transformer}.decoder.layers.0.fc1.weight": (1e-3, 0.05),
        "feature_reference.levels.2.background": (1e-3, 0.0),
        "feature_reference.levels.2.value.weight": (1e-3, 0.05),
        "query_reference.norm.weight": (1e-3, 0.0),
        "query_reference.attention.in_proj_weight": (1e-3, 0.05),
        "class_predictor.weight": (3e-3, 0.05),
    }
    for name, settings in expected.items():
        assert found[name] == pytest.approx(settings), name
    backbone = [settings for name, settings in found.items() if name.startswith(ENCODER)]
    assert backbone
    assert all(settings == pytest.approx((1e-4, 0.05)) for settings in backbone)


def test_trained_batch_norms_do_not_decay(make_network: MakeNetwork) -> None:
    network = RefT(make_network(OFF).network, OFF, 7)
    found = settings_of(network, TrainConfig())
    for name, module in network.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            assert found[f"{name}.weight"] == pytest.approx((1e-5, 0.0))


def rates(recipe: TrainConfig) -> list[tuple[float, float]]:
    """Of two groups, one of them at a tenth, before every update."""
    groups = [{"params": [nn.Parameter(torch.zeros(1))], "lr": recipe.lr * factor} for factor in (1.0, 0.1)]
    optimizer = AdamW(groups)
    schedule = make_schedule(optimizer, recipe)
    found = []
    for _ in range(recipe.steps):
        found.append((optimizer.param_groups[0]["lr"], optimizer.param_groups[1]["lr"]))
        optimizer.step()
        schedule.step()
    return found


def test_rates_warm_up_and_fall_at_milestones(make_recipe: MakeRecipe) -> None:
    recipe = make_recipe(steps=8, lr=1.0, schedule="steps", milestones=(4, 6), warmup=2, warmup_factor=0.5)
    found = rates(recipe)
    assert [rate for rate, _ in found] == pytest.approx([0.5, 0.75, 1, 1, 0.1, 0.1, 0.01, 0.01])
    assert [rate for _, rate in found] == pytest.approx([rate / 10 for rate, _ in found])


def test_the_papers_warm_up_changes_nothing(make_recipe: MakeRecipe) -> None:
    recipe = make_recipe(steps=4, lr=1.0, schedule="steps", milestones=(3,), warmup=10, warmup_factor=1.0)
    assert [rate for rate, _ in rates(recipe)] == pytest.approx([1, 1, 1, 0.1])


def test_one_cycle_warms_up_for_a_tenth_and_ends_near_zero(make_recipe: MakeRecipe) -> None:
    found = rates(make_recipe(steps=50, lr=1.0, schedule="one-cycle"))
    main = [rate for rate, _ in found]
    assert main.index(max(main)) == 4
    assert max(main) == pytest.approx(1.0)
    assert main[0] == pytest.approx(1 / 25)
    assert main[-1] < 1e-3
    assert [rate for _, rate in found] == pytest.approx([rate / 10 for rate in main])


@pytest.mark.parametrize("steps", [2, 9, 10, 11])
def test_a_short_one_cycle_has_a_rate_for_every_update(steps: int, make_recipe: MakeRecipe) -> None:
    main = [rate for rate, _ in rates(make_recipe(steps=steps, lr=1.0, schedule="one-cycle"))]
    assert len(main) == steps
    assert all(0 <= rate <= 1 for rate in main)
    assert max(main) > 0.5


# -- learning --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("references", [OFF, ReferenceConfig()], ids=["Mask2Former", "RefT"])
def test_the_loss_falls(
    references: ReferenceConfig, train: Train, make_recipe: MakeRecipe, make_run: MakeRun
) -> None:
    run = make_run("falls", checkpoint_seconds=3600)
    trained = train(run, make_recipe(steps=30, lr=3e-3, log_every=5), references)
    losses = [row["total_loss"] for row in run.history()]
    assert len(losses) == 6
    assert losses[-1] < 0.8 * losses[0]
    assert trained.losses["total_loss"] == losses[-1]
    assert trained.images_per_second > 0
    assert "distilled_class_loss" not in trained.losses


def test_the_logged_total_is_the_weighted_sum_of_its_parts(
    train: Train, make_recipe: MakeRecipe, make_run: MakeRun
) -> None:
    found = train(make_run("parts"), make_recipe(steps=2)).losses
    total = 2 * found["class_loss"] + 5 * found["mask_loss"] + 5 * found["dice_loss"]
    assert found["total_loss"] == pytest.approx(total, rel=1e-4)


def test_a_loss_that_is_no_number_ends_the_stage_in_one_sentence(
    train: Train, make_recipe: MakeRecipe, make_run: MakeRun
) -> None:
    recipe = make_recipe(steps=6, lr=1e18, clip=1e18, schedule="steps", log_every=1)
    with pytest.raises(TenfoldError, match=r"no number any more at update \d; lower the learning rate"):
        train(make_run("explodes"), recipe)


def test_gradients_are_clipped_to_the_norm_of_the_recipe(
    make_network: MakeNetwork, make_batch: MakeBatch, make_recipe: MakeRecipe, cpu: Fabric
) -> None:
    trainer = Trainer(make_network(OFF), make_recipe(clip=0.01), POINTS, cpu)
    trainer.learn(make_batch(images=4), None, 0)
    averages = [state["exp_avg"].square().sum() for state in trainer.optimizer.state.values()]
    # The first average of Adam is a tenth of the gradient.
    assert math.sqrt(sum(float(square) for square in averages)) == pytest.approx(0.001, rel=1e-3)


STAGES = {
    "RefT": ReferenceConfig(),
    "Mask2Former": OFF,
    "linked after all layers": ReferenceConfig("add", query="all", class_embedding=True),
}


@pytest.mark.parametrize("name", STAGES)
def test_a_killed_stage_goes_on_to_the_same_result(
    name: str,
    train: Train,
    make_recipe: MakeRecipe,
    make_run: MakeRun,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    recipe = make_recipe()
    undisturbed = train(make_run("whole", checkpoint_seconds=3600), recipe, STAGES[name])
    with monkeypatch.context() as patch:
        patch.setattr(Run, "log", killing(4))
        with pytest.raises(Killed):
            train(make_run("killed"), recipe, STAGES[name])
    again = make_run("killed")
    assert [row["step"] for row in again.history()] == [2]
    resumed = train(again, recipe, STAGES[name])
    assert_same(resumed.network, undisturbed.network)
    assert resumed.losses == undisturbed.losses
    assert again.history() == make_run("whole").history()
    assert [row["step"] for row in again.history()] == [2, 4, 6]


def test_a_killed_ifsis_goes_on_to_the_same_result(
    begin: Callable[..., FewShot],
    digits: Source,
    cpu: Fabric,
    make_recipe: MakeRecipe,
    make_run: MakeRun,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    recipe = make_recipe(freeze="incremental", steps=4, log_every=1)
    undisturbed = fine_tune(begin(), make_run("whole", checkpoint_seconds=3600), recipe, cpu, digits.data)
    with monkeypatch.context() as patch:
        patch.setattr(Run, "log", killing(3))
        with pytest.raises(Killed):
            fine_tune(begin(), make_run("killed"), recipe, cpu, digits.data)
    resumed = fine_tune(begin(), make_run("killed"), recipe, cpu, digits.data)
    assert_same(resumed.network, undisturbed.network)
    assert resumed.losses == undisturbed.losses
    assert make_run("killed").history() == make_run("whole").history()


def test_the_same_seed_learns_the_same_and_another_something_else(
    train: Train, make_recipe: MakeRecipe, make_run: MakeRun
) -> None:
    recipe = make_recipe(steps=2)
    one, two, three = (
        train(make_run(name), recipe, seed=seed) for name, seed in (("a", 0), ("b", 0), ("c", 1))
    )
    assert_same(one.network, two.network)
    assert one.losses == two.losses
    assert one.losses != three.losses


# -- parts and processes ---------------------------------------------------------------------------------


def first_gradients(
    network: RefT, recipe: TrainConfig, batch: Batch, supports: Supports | None, cpu: Fabric
) -> tuple[dict[str, Tensor], Tensor]:
    """Adam's averages after one update, a tenth of the gradients, and the losses."""
    trainer = Trainer(network, recipe, SAME, cpu)
    losses = trainer.learn(batch, supports, 0)
    state = trainer.optimizer.state
    return {name: state[value]["exp_avg"] for name, value in network.named_parameters()}, losses


def assert_close_gradients(first: dict[str, Tensor], second: dict[str, Tensor]) -> None:
    """But for rounding, by the largest of all."""
    assert first.keys() == second.keys()
    most = max(float(gradient.abs().max()) for gradient in second.values())
    for name, mine in first.items():
        assert float((mine - second[name]).abs().max()) < 1e-4 * most, name


@pytest.mark.parametrize("references", [OFF, ReferenceConfig()], ids=["Mask2Former", "RefT"])
def test_a_batch_in_two_parts_teaches_what_it_teaches_at_once(
    references: ReferenceConfig,
    make_network: MakeNetwork,
    make_batch: MakeBatch,
    make_supports: MakeSupports,
    make_recipe: MakeRecipe,
    cpu: Fabric,
) -> None:
    supports = None if references.is_off else make_supports(tuple(range(7)))
    batch = make_batch(images=4)  # its halves have different numbers of instances
    (whole, losses), (divided, in_parts) = (
        first_gradients(
            make_network(references), make_recipe(accumulate=parts, clip=1e6), batch, supports, cpu
        )
        for parts in (1, 2)
    )
    torch.testing.assert_close(in_parts, losses, rtol=1e-4, atol=1e-5)
    assert_close_gradients(whole, divided)


def test_parts_of_a_batch_are_its_images_in_order(make_batch: MakeBatch) -> None:
    batch = make_batch(images=6)
    parts = list(split(batch, 3))
    assert [part.image_ids for part in parts] == [(1, 2), (3, 4), (5, 6)]
    for name in ("images", "masks", "labels"):
        assert torch.equal(torch.cat([getattr(part, name) for part in parts]), getattr(batch, name))


def test_a_batch_that_cannot_be_divided_is_refused(
    make_network: MakeNetwork, make_recipe: MakeRecipe, cpu: Fabric
) -> None:
    with pytest.raises(TenfoldError, match="4 images cannot be divided into 3 parts"):
        Trainer(make_network(OFF), make_recipe(accumulate=3), POINTS, cpu)


def test_two_processes_learn_what_one_does(start: Any, tmp_path: Path) -> None:
    process = start(Path(__file__).parent / "distributed_train.py", tmp_path, cwd=tmp_path)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    first, second, alone = (
        torch.load(tmp_path / f"{name}.pt", weights_only=True) for name in ("rank0", "rank1", "alone")
    )
    assert_close_gradients(first["gradients"], alone["gradients"])
    assert first["Mask2Former"]["losses"] == pytest.approx(alone["Mask2Former"]["losses"], rel=1e-3)
    for name in ("Mask2Former", "RefT"):
        assert first[name]["losses"] == second[name]["losses"]
        for key, value in first[name]["weights"].items():
            assert value.isfinite().all(), key
            assert torch.equal(value, second[name]["weights"][key]), key
    assert first["detections"] == second["detections"]
    assert [found[:3] for found in first["detections"]] == [found[:3] for found in alone["detections"]]
    scores = [[found[3] for found in one["detections"]] for one in (first, alone)]
    assert scores[0] == pytest.approx(scores[1], rel=1e-4)


# -- teachers --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("references", [OFF, ReferenceConfig()], ids=["Mask2Former", "RefT"])
def test_a_teacher_and_its_references_stay_while_the_student_learns(
    references: ReferenceConfig,
    begin: Callable[..., FewShot],
    digits: Source,
    cpu: Fabric,
    make_recipe: MakeRecipe,
    make_run: MakeRun,
) -> None:
    begun = begin(references)
    assert begun.teacher is not None
    before = copied(begun.teacher.network)
    cache = None if begun.base_references is None else begun.base_references.state_dict()
    kept = None if cache is None else {name: value.clone() for name, value in cache.items()}
    recipe = make_recipe(freeze="incremental", steps=3)
    trained = fine_tune(begun, make_run("student"), recipe, cpu, digits.data)
    assert not changed(begun.teacher.network, before)
    assert not begun.teacher.network.training
    if begun.base_references is not None and kept is not None:
        assert all(
            torch.equal(value, kept[name]) for name, value in begun.base_references.state_dict().items()
        )
    assert trained.losses["distilled_class_loss"] > 0
    assert trained.losses["distilled_feature_loss"] > 0


def test_without_distillation_a_student_has_no_distilled_losses(
    begin: Callable[..., FewShot], digits: Source, cpu: Fabric, make_recipe: MakeRecipe, make_run: MakeRun
) -> None:
    begun = replace(begin(), teacher=None)
    losses = fine_tune(
        begun, make_run("alone"), make_recipe(freeze="incremental", steps=2), cpu, digits.data
    ).losses
    assert set(losses) == {"total_loss", "class_loss", "mask_loss", "dice_loss"}


def test_a_student_begins_where_its_teacher_is(
    begin: Callable[..., FewShot], digits: Source, cpu: Fabric
) -> None:
    """References begin as the identity, so that features agree before the first update."""
    begun = begin()
    assert begun.teacher is not None
    batch, supports = Episodes(begun.instances, begun.pool, digits.data, 4, 1, 0)[0]
    recipe = TrainConfig(steps=1, batch_size=4, freeze="incremental")
    kept = begun.base_references, begun.teacher, begun.num_base
    losses = Trainer(begun.network, recipe, POINTS, cpu, *kept).learn(batch, supports, 0)
    assert float(losses[5]) == pytest.approx(0, abs=1e-6)


# -- precision -------------------------------------------------------------------------------------------


def one_mixed_update(
    fabric: Fabric, network: RefT, recipe: TrainConfig, batch: Batch, supports: Supports
) -> None:
    before = copied(network.to(fabric.device))
    trainer = Trainer(network, recipe, POINTS, fabric)
    losses = trainer.learn(batch.to(fabric.device), supports.to(fabric.device), 0)
    assert losses.isfinite().all()
    assert losses.dtype == torch.float32
    assert all(value.isfinite().all() for value in network.state_dict().values())
    assert "class_predictor.weight" in changed(network, before)


def test_an_update_in_bf16_on_the_cpu_is_finite_and_near_that_in_fp32(
    make_network: MakeNetwork,
    make_batch: MakeBatch,
    make_supports: MakeSupports,
    make_recipe: MakeRecipe,
    cpu: Fabric,
) -> None:
    given = make_batch(images=4), make_supports(tuple(range(7)))
    mixed = launch_fabric(AcceleratorConfig(device="cpu", precision="bf16-mixed"))
    one_mixed_update(mixed, make_network(), make_recipe(), *given)
    found, expected = (
        Trainer(make_network(), make_recipe(), SAME, fabric).learn(*given, 0) for fabric in (mixed, cpu)
    )
    assert float(found[0]) == pytest.approx(float(expected[0]), rel=0.05)


@pytest.mark.gpu
def test_an_update_in_bf16_on_a_gpu_is_finite(
    make_network: MakeNetwork, make_batch: MakeBatch, make_supports: MakeSupports, make_recipe: MakeRecipe
) -> None:
    fabric = launch_fabric(AcceleratorConfig(device="cuda", precision="bf16-mixed"))
    given = make_batch(images=4), make_supports(tuple(range(7)))
    one_mixed_update(fabric, make_network(), make_recipe(), *given)


def scaling_fabric() -> Fabric:
    """As on a GPU that computes no bf16: losses are scaled."""
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    return Fabric(accelerator="cpu", plugins=[MixedPrecision("16-mixed", "cpu", scaler)])


def test_scaled_gradients_are_clipped(
    make_network: MakeNetwork, make_batch: MakeBatch, make_recipe: MakeRecipe
) -> None:
    trainer = Trainer(make_network(OFF), make_recipe(clip=0.01), SAME, scaling_fabric())
    assert not trainer.optimizer.defaults["fused"]
    assert trainer.learn(make_batch(images=4), None, 0).isfinite().all()
    gradients = [weight.grad for weight in trainer.network.parameters() if weight.grad is not None]
    assert 0 < nn.utils.get_total_norm(gradients) < 0.0101


def test_other_optimisers_are_fused(make_network: MakeNetwork, make_recipe: MakeRecipe, cpu: Fabric) -> None:
    assert Trainer(make_network(OFF), make_recipe(), SAME, cpu).optimizer.defaults["fused"]
