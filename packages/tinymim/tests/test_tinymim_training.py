"""The loops: targets that are learned, kills, repetition, processes, chains of teachers, files, every paper profile."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from lightning_fabric import Fabric
from PIL import Image
from timm.layers import DropPath
from torch import Tensor, nn

from tenfold.shared.accelerator import AcceleratorConfig, launch_fabric, make_fabric
from tenfold.shared.logging import TenfoldError
from tenfold.shared.runs import Run
from tenfold.tinymim.architectures import CLASSIFIERS, STUDENTS, TEACHERS
from tenfold.tinymim.config import DataConfig, FinetuneConfig, NetworkConfig
from tenfold.tinymim.experiments import artifact, compare_relations
from tenfold.tinymim.finetuning import Finetuned, Finetuner, finetune
from tenfold.tinymim.image_sets import MemoryBatches, judging_batches
from tenfold.tinymim.mae import DecoderConfig
from tenfold.tinymim.pretraining import Pretrainer
from tenfold.tinymim.profiles import PROFILES
from tenfold.tinymim.suites import Pretraining, Profile
from tenfold.tinymim.targets import Objective, TargetConfig, masked_autoencoding
from tenfold.tinymim.teacher_files import load_student_as_teacher
from tenfold.tinymim.teachers import Teacher
from tenfold.tinymim.timm_teachers import TimmTeacher
from tenfold.tinymim.training import (
    Images,
    finetune_network,
    judge_frozen,
    load_images,
    load_timm_classifier,
    make_finetuned_network,
    make_student,
    network_shape,
    pretrain_network,
)
from tenfold.tinymim.vit import VisionTransformer, ViTConfig

MakePretraining = Callable[..., Pretraining]
MakeFinetuning = Callable[..., FinetuneConfig]
MakeRun = Callable[..., Run]
MakeTeacher = Callable[..., Teacher]
SMALL_DECODER = DecoderConfig(32, 1, 4)
MAE = masked_autoencoding(SMALL_DECODER)
AFTER_QKV = ("blocks.2.attn.proj.", "blocks.2.norm2.", "blocks.2.mlp.", "norm.", "pos_embed")
TARGETS = {
    "relation": (TargetConfig(), AFTER_QKV),
    "relation, three pairs": (TargetConfig(pairs=("qq", "kk", "vv")), AFTER_QKV),
    "relation, no softmax": (TargetConfig(softmax=False), AFTER_QKV),
    "relation, masked": (TargetConfig(masked=True), AFTER_QKV),
    "relation, masked, reconstruction": (
        TargetConfig(masked=True, reconstruction=True, decoder=SMALL_DECODER),
        ("pos_embed",),
    ),
    "feature": (TargetConfig("feature"), ("norm.", "pos_embed")),
    "feature of Q, K, V": (TargetConfig("feature", feature="qkv"), AFTER_QKV),
    "feature of attention": (TargetConfig("feature", feature="attention_residual"), AFTER_QKV[1:]),
    "CLS": (TargetConfig("cls"), ("norm.", "pos_embed")),
    "MAE": (MAE, ("pos_embed",)),
}


class Killed(BaseException):
    """Stands for a kill between two epochs."""


def killing(kills_at: int, original: Any = Run.log) -> Callable[..., None]:
    """``Run.log`` that is killed when an epoch is to be logged."""

    def log(run: Run, step: int, **values: float) -> None:
        if step == kills_at:
            raise Killed
        original(run, step, **values)

    return log


def assert_same(first: nn.Module, second: nn.Module) -> None:
    for (name, mine), other in zip(first.state_dict().items(), second.state_dict().values(), strict=True):
        assert torch.equal(mine, other), name


def assert_close(first: dict[str, Tensor], second: dict[str, Tensor], width: int = 32) -> None:
    """Weights agree but for rounding.

    A bias of keys adds the same to all scores of a query, which the softmax takes away: its gradient is nothing but
    rounding, which Adam makes large. It is left out.
    """
    assert first.keys() == second.keys()
    for name, mine in first.items():
        other = second[name]
        if name.endswith("attn.qkv.bias"):
            mine, other = (torch.cat((values[:width], values[2 * width :])) for values in (mine, other))
        torch.testing.assert_close(
            mine, other, rtol=1e-4, atol=2e-5, msg=lambda said, name=name: f"{name}: {said}"
        )


def tune(
    config: FinetuneConfig, classifier: VisionTransformer, images: Images, run: Run, seed: int = 0
) -> Finetuned:
    return finetune_network(config, classifier, images.batches(config, seed), images, seed, run)


# -- pre-training --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TARGETS)
def test_a_student_lowers_its_loss_and_what_the_loss_does_not_reach_stays(
    name: str,
    images: Images,
    make_pretraining: MakePretraining,
    make_teacher: MakeTeacher,
    make_run: MakeRun,
) -> None:
    target, unreached = TARGETS[name]
    settings = make_pretraining(target, epochs=3, batch_size=64, base_lr=1.2e-2)
    teacher = make_teacher() if settings.teacher else None
    before = make_student(settings, 24, 0, teacher).state_dict()
    with make_run("learns") as run:
        trained = pretrain_network(settings, images, 0, run, teacher)
        losses = [row["total_loss"] for row in run.history()]
    assert len(losses) == 3
    assert losses[-1] < 0.95 * losses[0]
    assert trained.losses["total"] == losses[-1]
    assert trained.images_per_second > 0
    after = trained.network.state_dict()
    stayed = {key for key in before if torch.equal(before[key], after[key])}
    assert stayed == {key for key in before if key.startswith(unreached)}


@pytest.mark.parametrize("target", [TargetConfig(), MAE], ids=["relation", "MAE"])
def test_a_batch_in_two_parts_teaches_what_it_teaches_at_once(
    target: TargetConfig,
    images: Images,
    make_pretraining: MakePretraining,
    make_teacher: MakeTeacher,
    make_run: MakeRun,
) -> None:
    found = []
    for parts in (1, 2):
        settings = make_pretraining(target, drop_path=0.0, accumulate=parts, epochs=1)
        with make_run(f"in {parts}".replace(" ", "-")) as run:
            teacher = make_teacher() if settings.teacher else None
            found.append(pretrain_network(settings, images, 0, run, teacher))
    assert_close(found[0].network.state_dict(), found[1].network.state_dict())
    assert found[0].losses == pytest.approx(found[1].losses, rel=1e-4)


@pytest.mark.parametrize(
    ("target", "recipe"),
    [
        (TargetConfig(), {"jitter": 0.4, "drop_path": 0.3}),
        (TargetConfig(), {"teacher_drop_path": 0.5}),
        (replace(TARGETS["relation, masked, reconstruction"][0]), {"accumulate": 2}),
        (MAE, {"jitter": 0.0, "drop_path": 0.0}),
    ],
    ids=["colours", "teacher drops", "masked", "MAE"],
)
def test_a_killed_pre_training_goes_on_to_the_same_result(
    target: TargetConfig,
    recipe: dict[str, Any],
    images: Images,
    make_pretraining: MakePretraining,
    make_teacher: MakeTeacher,
    make_run: MakeRun,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings = make_pretraining(target, **recipe)

    def go(run: Run) -> Any:
        with run:
            return pretrain_network(settings, images, 1, run, make_teacher() if settings.teacher else None)

    undisturbed = go(make_run("whole", checkpoint_seconds=3600))
    with monkeypatch.context() as patch:
        patch.setattr(Run, "log", killing(1))
        with pytest.raises(Killed):
            go(make_run("killed"))
    again = make_run("killed")
    assert len(again.history()) == 1
    resumed = go(again)
    assert_same(resumed.network, undisturbed.network)
    assert resumed.losses == undisturbed.losses
    assert again.history() == make_run("whole").history()


def test_the_same_seed_learns_the_same_and_another_something_else(
    images: Images, make_pretraining: MakePretraining, make_teacher: MakeTeacher, make_run: MakeRun
) -> None:
    found = []
    for name, seed in (("one", 0), ("two", 0), ("three", 1)):
        with make_run(name) as run:
            trained = pretrain_network(make_pretraining(epochs=1), images, seed, run, make_teacher())
        found.append((trained.losses, judge_frozen(trained.network, images, seed)))
    assert found[0] == found[1]
    assert found[0][0] != found[2][0]
    assert set(found[0][1]) == {"knn_top1", "probe_top1"}


def test_looks_at_frozen_features_change_nothing(
    images: Images, make_pretraining: MakePretraining, make_teacher: MakeTeacher, make_run: MakeRun
) -> None:
    networks, looks = [], []
    for every in (0, 2):
        with make_run(f"every-{every}") as run:
            settings = make_pretraining(epochs=3, probe_every=every)
            networks.append(pretrain_network(settings, images, 0, run, make_teacher()).network)
            looks.append(["knn_top1" in row for row in run.history()])
    assert_same(*networks)
    assert looks == [[False] * 3, [False, True, False]]


def test_two_processes_learn_what_one_does(start: Any, tmp_path: Path) -> None:
    script = Path(__file__).parent / "distributed_train.py"
    for devices in (1, 2):
        process = start(script, devices, tmp_path, cwd=tmp_path)
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors
    alone = torch.load(tmp_path / "on1-rank0.pt", weights_only=True)
    ranks = [torch.load(tmp_path / f"on2-rank{rank}.pt", weights_only=True) for rank in (0, 1)]
    assert set(alone) == {"relation", "accumulated", "MAE", "classifier"}
    for name, expected in alone.items():
        first, second = (found[name] for found in ranks)
        assert all(torch.equal(first["weights"][key], value) for key, value in second["weights"].items())
        assert_close(first.pop("weights"), expected.pop("weights"))
        second.pop("weights")
        assert first == second
        assert first == pytest.approx(expected, rel=1e-4)
    assert ranks[0]["classifier"]["top1"] == alone["classifier"]["top1"]
    assert ranks[0]["classifier"]["top1"] > 0


# -- teachers ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("policy", "heads"), [("student", 4), ("trained", 8)])
def test_the_student_of_a_stage_teaches_the_next_with_the_heads_of_the_policy(
    policy: Any,
    heads: int,
    images: Images,
    make_pretraining: MakePretraining,
    make_teacher: MakeTeacher,
    make_run: MakeRun,
    tmp_path: Path,
) -> None:
    first = make_pretraining(epochs=1)
    with make_run("first") as run:
        learned = pretrain_network(first, images, 0, run, make_teacher()).network
        path = run.save_artifact("model.pt", artifact(learned, first))
    assert learned.blocks[-1].attn.heads == 8  # as its teacher's
    assert [block.attn.heads for block in learned.blocks[:-1]] == [4, 4]
    teacher = load_student_as_teacher(path)
    assert_same(teacher.network, learned)
    second = replace(
        first, network=replace(first.network, embed_dim=16, depth=2), last_heads=4, head_policy=policy
    )
    with make_run("second") as run:
        learner = pretrain_network(second, images, 0, run, teacher).network
    pixels, _ = next(judging_batches(images.split.test, 24, 2))  # type: ignore[union-attr]
    assert teacher.read(pixels, {"qkv"}).qkv.q.shape == (2, heads, 17, 32 // heads)  # type: ignore[union-attr]
    assert learner.target_qkv(pixels).q.shape == (2, heads, 17, 16 // heads)
    assert_same(teacher.network, learned)  # it does not learn


@pytest.mark.parametrize("class_token", [True, False])
def test_a_model_of_timm_distils_into_a_student(
    class_token: bool, images: Images, make_pretraining: MakePretraining, make_run: MakeRun
) -> None:
    torch.manual_seed(5)
    network = timm.models.VisionTransformer(
        img_size=24,
        patch_size=6,
        embed_dim=48,
        depth=2,
        num_heads=8,
        class_token=class_token,
        global_pool="avg",
    )
    nn.init.normal_(network.blocks[-1].attn.qkv.weight, std=0.2)  # relations that differ from image to image
    teacher = TimmTeacher(network)
    with make_run("timm") as run:
        settings = make_pretraining(epochs=3, batch_size=64, base_lr=1.2e-2)
        trained = pretrain_network(settings, images, 0, run, teacher)
        losses = [row["total_loss"] for row in run.history()]
        found = compare_relations(run, trained.network, teacher, images, False)
    assert losses[-1] < 0.95 * losses[0]
    assert trained.network.config.last_heads == 8
    assert all(value > 0 for value in found.values())


def test_a_teacher_drops_blocks_before_its_target_only_in_the_ablation(
    images: Images, make_pretraining: MakePretraining, make_teacher: MakeTeacher, make_run: MakeRun
) -> None:
    networks = []
    for rate in (0.0, 0.5):
        teacher = make_teacher()
        with make_run(f"at-{rate}") as run:
            settings = make_pretraining(teacher_drop_path=rate, epochs=1)
            networks.append(pretrain_network(settings, images, 0, run, teacher).network)
        drops = [isinstance(block.drop_path, DropPath) for block in teacher.network.blocks]
        assert drops == [rate > 0, False]
    assert not torch.equal(networks[0].cls_token, networks[1].cls_token)
    vit = timm.models.VisionTransformer(img_size=24, patch_size=6, embed_dim=48, depth=2, num_heads=8)
    with (
        pytest.raises(TenfoldError, match="stochastic depth in the teacher is for networks of this package"),
        make_run("timm") as run,
    ):
        pretrain_network(settings, images, 0, run, TimmTeacher(vit))


def test_a_teacher_that_dropped_blocks_is_compared_with_as_it_is(
    images: Images, make_pretraining: MakePretraining, make_teacher: MakeTeacher, make_run: MakeRun
) -> None:
    teacher, untouched = make_teacher(), make_teacher()
    with make_run("drops") as run:
        settings = make_pretraining(teacher_drop_path=0.5, epochs=1)
        student = pretrain_network(settings, images, 0, run, teacher).network
        found = compare_relations(run, student, teacher, images, False)
        expected = compare_relations(run, student, untouched, images, False)
    assert found == expected


# -- fine-tuning ---------------------------------------------------------------------------------------


def test_a_batch_in_two_parts_tunes_as_it_does_at_once(
    images: Images, make_finetuning: MakeFinetuning, make_run: MakeRun
) -> None:
    found = []
    for parts in (1, 2):
        config = make_finetuning(accumulate=parts, mixup=0.8)
        classifier = make_finetuned_network(ViTConfig(24, 6, 32, 3, 4), config, 10, 0)
        with make_run(f"in-{parts}") as run:
            found.append(tune(config, classifier, images, run))
    assert_close(found[0].network.state_dict(), found[1].network.state_dict())
    assert found[0].metrics == found[1].metrics


MIXED = {"mixup": 0.8, "cutmix": 1.0, "drop_path": 0.2, "evaluate_every": 2}


@pytest.mark.parametrize(
    "recipe",
    [{}, MIXED, {"mixup": 0.8}, {"cutmix": 1.0, "global_pool": False}],
    ids=["plain", "both", "mixup", "cutmix"],
)
def test_a_killed_fine_tuning_goes_on_to_the_same_result(
    recipe: dict[str, Any],
    images: Images,
    make_finetuning: MakeFinetuning,
    make_run: MakeRun,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = make_finetuning(epochs=3, **recipe)

    def go(run: Run) -> Any:
        shape = NetworkConfig(patch_size=6, embed_dim=32, depth=3, num_heads=4).shape(24)
        with run:
            return tune(config, make_finetuned_network(shape, config, 10, 1), images, run, 1)

    undisturbed = go(make_run("whole", checkpoint_seconds=3600))
    with monkeypatch.context() as patch:
        patch.setattr(Run, "log", killing(2))
        with pytest.raises(Killed):
            go(make_run("killed"))
    again = make_run("killed")
    assert len(again.history()) == 2 // config.evaluate_every
    resumed = go(again)
    assert_same(resumed.network, undisturbed.network)
    assert resumed.metrics == undisturbed.metrics
    assert again.history() == make_run("whole").history()


@pytest.mark.parametrize(
    ("recipe", "fall", "least"),
    [({}, 0.15, 30), ({"mixup": 0.2, "cutmix": 1.0}, 0.05, 16)],
    ids=["plain", "mixed"],
)
def test_a_network_learns_digits(
    recipe: dict[str, Any],
    fall: float,
    least: float,
    images: Images,
    make_finetuning: MakeFinetuning,
    make_run: MakeRun,
) -> None:
    shape = ViTConfig(24, 6, 32, 3, 4)
    torch.manual_seed(0)
    pretrained = VisionTransformer(shape).state_dict()
    assert images.split is not None
    images = replace(images, split=replace(images.split, labelled=images.split.train))
    config = make_finetuning(epochs=8, batch_size=64, layer_decay=1.0, evaluate_every=4, **recipe)
    classifier = make_finetuned_network(shape, config, 10, 0, pretrained)
    assert torch.equal(classifier.blocks[1].mlp.fc1.weight, pretrained["blocks.1.mlp.fc1.weight"])
    with make_run("learns") as run:
        trained = tune(config, classifier, images, run)
        losses = [row["loss"] for row in run.history()]
    assert losses[-1] < losses[0] - fall
    assert trained.metrics["top1"] > least
    assert trained.metrics["best_top1"] >= trained.metrics["top1"]
    assert trained.metrics["top5"] >= trained.metrics["top1"]
    assert not torch.equal(classifier.pos_embed, pretrained["pos_embed"])  # positions learn now


def test_layers_learn_at_their_own_rates(
    cpu: Fabric, images: Images, make_finetuning: MakeFinetuning
) -> None:
    config = make_finetuning(layer_decay=0.5, weight_decay=0.0)
    classifier = make_finetuned_network(ViTConfig(24, 6, 32, 3, 4), config, 10, 0)
    before = {name: value.detach().clone() for name, value in classifier.named_parameters()}
    trainer = Finetuner(config, classifier, 1, 10, cpu)
    batch = next(MemoryBatches(images.split.train, 24, images.config.crop, 64, 0).epoch(0))  # type: ignore[union-attr]
    trainer.learn(*batch, 1e-3)
    after = dict(classifier.named_parameters())
    for name, scale in (("patch_embed.proj.weight", 1 / 16), ("blocks.0.mlp.fc2.weight", 1 / 8),
                        ("blocks.2.mlp.fc2.weight", 1 / 2), ("head.weight", 1.0)):  # fmt: skip
        # The first step of Adam is the rate, whatever the gradient.
        moved = (after[name] - before[name]).detach().abs().median()
        assert float(moved) == pytest.approx(1e-3 * scale, rel=0.02), name


@pytest.mark.parametrize(("keeps", "heads"), [(True, 8), (False, 4)])
def test_heads_of_pre_training_are_kept_only_where_asked(
    keeps: bool, heads: int, make_finetuning: MakeFinetuning
) -> None:
    shape = ViTConfig(24, 6, 32, 3, 4, last_heads=8)
    weights = VisionTransformer(shape).state_dict()
    config = make_finetuning(keep_pretrain_heads=keeps)
    assert make_finetuned_network(shape, config, 10, 0, weights, 8).config.heads == (4, 4, heads)


def test_from_scratch_positions_may_begin_as_the_fixed_table(make_finetuning: MakeFinetuning) -> None:
    shape = ViTConfig(24, 6, 32, 3, 4)
    fixed = make_finetuned_network(shape, make_finetuning(positions="sincos"), 10, 0)
    learned = make_finetuned_network(shape, make_finetuning(), 10, 0)
    assert torch.equal(fixed.pos_embed, VisionTransformer(shape).pos_embed)
    assert not torch.equal(learned.pos_embed, fixed.pos_embed)
    assert fixed.pos_embed.requires_grad
    assert torch.equal(fixed.blocks[0].attn.qkv.weight, learned.blocks[0].attn.qkv.weight)


STAR = ViTConfig(24, 6, 32, 2, 4, distillation_token=True, projection=48)


class BrighterHalf(nn.Module):
    """Says class 3 of images whose upper half is the brighter one, else class 7."""

    def forward(self, x: Tensor) -> Tensor:
        upper, lower = x[:, :, :12].mean(dim=(1, 2, 3)), x[:, :, 12:].mean(dim=(1, 2, 3))
        return nn.functional.one_hot(torch.where(upper > lower, 3, 7), 10).float()


def test_the_second_head_of_tinymim_star_learns_the_classes_of_its_teacher(
    cpu: Fabric, images: Images, make_finetuning: MakeFinetuning
) -> None:
    """Labels are all 0, so that the heads must not say the same."""
    config = make_finetuning(layer_decay=1.0, label_smoothing=0.0)
    classifier = make_finetuned_network(STAR, config, 10, 0)
    teacher = BrighterHalf()
    trainer = Finetuner(config, classifier, 10, 10, cpu, teacher)
    pixels, _ = next(judging_batches(images.split.train, 24, 96))  # type: ignore[union-attr]
    losses = [float(trainer.learn(pixels, torch.zeros(96, dtype=torch.int64), 3e-3)) for _ in range(50)]
    assert losses[-1] < 0.5 * losses[0]
    classifier.train()
    with torch.no_grad():
        first, second = classifier(pixels)
    wanted = teacher(pixels).argmax(dim=1)
    assert wanted.unique().tolist() == [3, 7]
    assert (first.argmax(dim=1) == 0).all()
    assert (second.argmax(dim=1) == wanted).float().mean() > 0.75


def test_tinymim_star_begins_with_a_pre_trained_network(make_finetuning: MakeFinetuning) -> None:
    """Which has neither the second token nor its position, as TinyMIM*-T begins with TinyMIM's pre-training."""
    torch.manual_seed(0)
    pretrained = VisionTransformer(ViTConfig(24, 6, 32, 2, 4)).state_dict()
    classifier = make_finetuned_network(STAR, make_finetuning(), 10, 0, pretrained)
    assert torch.equal(classifier.blocks[1].mlp.fc2.weight, pretrained["blocks.1.mlp.fc2.weight"])
    table = pretrained["pos_embed"]
    assert torch.equal(classifier.pos_embed, torch.cat((table[:, :1], table[:, :1] * 0, table[:, 1:]), dim=1))


def test_tinymim_star_is_trained_and_judged_by_the_mean_of_its_heads(
    cpu: Fabric, images: Images, make_finetuning: MakeFinetuning, make_run: MakeRun
) -> None:
    config = make_finetuning(mixup=0.2, drop_path=0.1)
    classifier = make_finetuned_network(STAR, config, 10, 0)
    with make_run("star") as run:
        batches = images.batches(config, 0)
        trained = finetune(config, classifier, batches, images.judging, 0, cpu, run, BrighterHalf())
    assert 0 < trained.metrics["top1"] <= trained.metrics["top5"]
    assert trained.network(torch.zeros(2, 3, 24, 24))[0].shape == (2, 10)
    assert trained.network.eval()(torch.zeros(2, 3, 24, 24)).shape == (2, 10)


@pytest.mark.parametrize(("shape", "teacher"), [(STAR, None), (ViTConfig(24, 6, 32, 3, 4), BrighterHalf())])
def test_a_teacher_of_classes_is_for_tinymim_star_alone(
    shape: ViTConfig, teacher: nn.Module | None, cpu: Fabric, make_finetuning: MakeFinetuning
) -> None:
    classifier = make_finetuned_network(shape, make_finetuning(), 10, 0)
    with pytest.raises(TenfoldError, match=r"give --train\.teacher for tinymim_star_tiny alone"):
        Finetuner(make_finetuning(), classifier, 3, 10, cpu, teacher)


def test_a_teacher_of_classes_that_is_not_to_be_had_is_said() -> None:
    with pytest.raises(TenfoldError, match="timm has no model nonsense"):
        load_timm_classifier("nonsense", 10, True)
    with pytest.raises(TenfoldError, match="add --download"):
        load_timm_classifier("resnet18", 1000, False)


# -- what cannot be ------------------------------------------------------------------------------------


def test_a_loss_that_is_no_number_ends_the_run(
    images: Images,
    make_pretraining: MakePretraining,
    make_finetuning: MakeFinetuning,
    make_teacher: MakeTeacher,
    make_run: MakeRun,
) -> None:
    sentence = "the loss is no number any more in epoch 0; lower the learning rate"
    settings = make_pretraining(base_lr=1e30, warmup_epochs=0.0)
    with pytest.raises(TenfoldError, match=sentence), make_run("student") as run:
        pretrain_network(settings, images, 0, run, make_teacher())
    config = make_finetuning(base_lr=1e30, warmup_epochs=0.0)
    classifier = make_finetuned_network(ViTConfig(24, 6, 32, 3, 4), config, 10, 0)
    with pytest.raises(TenfoldError, match=sentence), make_run("classifier") as run:
        tune(config, classifier, images, run)


def test_batches_that_cannot_be_are_said(
    images: Images,
    make_pretraining: MakePretraining,
    make_finetuning: MakeFinetuning,
    make_teacher: MakeTeacher,
    make_run: MakeRun,
) -> None:
    with pytest.raises(TenfoldError, match="96 cannot be divided into 5 equal parts"), make_run("a") as run:
        pretrain_network(make_pretraining(accumulate=5), images, 0, run, make_teacher())
    with pytest.raises(TenfoldError, match="384 images are no batch of 2048"), make_run("b") as run:
        pretrain_network(make_pretraining(batch_size=2048), images, 0, run, make_teacher())
    two = make_fabric(AcceleratorConfig(device="cpu", devices=2))
    config = make_finetuning(batch_size=33)
    classifier = make_finetuned_network(ViTConfig(24, 6, 32, 3, 4), config, 10, 0)
    with pytest.raises(TenfoldError, match="33 cannot be divided into 2 equal parts"), make_run("c") as run:
        finetune(config, classifier, images.batches(config, 0), images.judging, 0, two, run)


def test_an_odd_batch_that_cannot_be_mixed_is_said(
    images: Images, make_finetuning: MakeFinetuning, make_run: MakeRun
) -> None:
    config = make_finetuning(batch_size=25, mixup=0.8)
    classifier = make_finetuned_network(ViTConfig(24, 6, 32, 3, 4), config, 10, 0)
    with pytest.raises(TenfoldError, match="a batch of 25 leaves an odd number"), make_run("odd") as run:
        tune(config, classifier, images, run)


def test_a_teacher_of_another_number_of_patches_is_said(
    make_pretraining: MakePretraining, make_teacher: MakeTeacher
) -> None:
    with pytest.raises(TenfoldError, match="the teacher sees 2 x 2 patches and the student 4 x 4"):
        make_student(make_pretraining(), 24, 0, make_teacher(ViTConfig(24, 12, 48, 2, 8)))


def test_a_classifier_from_scratch_needs_a_shape() -> None:
    with pytest.raises(TenfoldError, match=r"give --network\.name or the shape of a network"):
        network_shape(None, None, 24)


# -- image files ---------------------------------------------------------------------------------------


@pytest.fixture
def files(tmp_path: Path, cpu: Fabric) -> Images:
    """ImageNet's layout with three classes of noise around a colour, seen at 32 pixels."""
    colours = {"n01440764": (20, 40, 200), "n01443537": (30, 180, 40), "n01484850": (210, 30, 30)}
    noise = np.random.default_rng(0)
    for split, count in (("train", 6), ("val", 3)):
        for name, colour in colours.items():
            folder = tmp_path / "imagenet" / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = noise.normal(colour, 20, (44, 50 + number, 3)).clip(0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(folder / f"{number}.jpg")
    return load_images(DataConfig(image_size=32, workers=0), cpu, tmp_path)


@pytest.mark.parametrize("target", [TargetConfig(), MAE], ids=["relation", "MAE"])
def test_pre_training_on_image_files_runs_and_goes_on(
    target: TargetConfig,
    files: Images,
    make_pretraining: MakePretraining,
    make_teacher: MakeTeacher,
    make_run: MakeRun,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings = replace(
        make_pretraining(target, batch_size=8, base_lr=0.02), network=NetworkConfig("", 8, 32, 3, 4)
    )

    def go(run: Run) -> Any:
        with run:
            teacher = make_teacher(ViTConfig(32, 8, 48, 2, 8)) if settings.teacher else None
            return pretrain_network(settings, files, 0, run, teacher)

    undisturbed = go(make_run("whole", checkpoint_seconds=3600))
    with monkeypatch.context() as patch:
        patch.setattr(Run, "log", killing(1))
        with pytest.raises(Killed):
            go(make_run("killed"))
    resumed = go(make_run("killed"))
    assert_same(resumed.network, undisturbed.network)
    assert judge_frozen(resumed.network, files, 0) == {}


def test_fine_tuning_on_image_files_runs_and_goes_on(
    files: Images, make_run: MakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With RandAugment, erasing, mixup and cutmix as in the paper."""
    config = replace(FinetuneConfig(), epochs=2, batch_size=8, warmup_epochs=1.0, base_lr=0.05)

    def go(run: Run) -> Any:
        with run:
            classes = files.batches(config, 0).num_classes
            classifier = make_finetuned_network(ViTConfig(32, 8, 32, 3, 4), config, classes, 0)
            return tune(config, classifier, files, run)

    undisturbed = go(make_run("whole", checkpoint_seconds=3600))
    with monkeypatch.context() as patch:
        patch.setattr(Run, "log", killing(1))
        with pytest.raises(Killed):
            go(make_run("killed"))
    resumed = go(make_run("killed"))
    assert_same(resumed.network, undisturbed.network)
    assert resumed.metrics == undisturbed.metrics
    assert resumed.network.config.num_classes == 3
    assert resumed.metrics["top5"] == 100  # of three classes


def test_missing_image_files_are_said(
    tmp_path: Path, cpu: Fabric, make_pretraining: MakePretraining, make_run: MakeRun
) -> None:
    images = load_images(DataConfig(image_size=24, workers=0), cpu, tmp_path)
    with pytest.raises(TenfoldError, match="no images of classes in"), make_run("none") as run:
        pretrain_network(make_pretraining(MAE), images, 0, run)


# -- every profile -------------------------------------------------------------------------------------


def shrunk(shape: ViTConfig) -> ViTConfig:
    """An eighth of the width of a large network: what divides its width among heads divides this one's too."""
    return replace(shape, embed_dim=shape.embed_dim // 8) if shape.embed_dim >= 192 else shape


def small_network(network: NetworkConfig, size: int) -> NetworkConfig:
    shape = shrunk(network.shape(size))
    return NetworkConfig("", shape.patch_size, shape.embed_dim, shape.depth, shape.num_heads)


def start_pretraining(
    profile: Profile, name: str, images: Images, make_run: MakeRun, done: dict[Any, VisionTransformer]
) -> VisionTransformer:
    """One step of a pre-training and of all before it, each once, with narrow networks."""
    settings = profile.pretrainings[name]
    if settings.teacher is None:
        teacher = None
    elif settings.teacher in profile.pretrainings:
        before = start_pretraining(profile, settings.teacher, images, make_run, done)
        teacher = Teacher(VisionTransformer(before.config), settings.target.target_block)
    else:
        shape = shrunk({**TEACHERS, **STUDENTS}[settings.teacher])
        network = VisionTransformer(replace(shape, img_size=images.config.image_size))
        teacher = Teacher(network, settings.target.target_block)
    size = images.config.image_size
    last_heads = settings.last_heads or settings.network.shape(size).last_heads
    train = replace(settings.train, epochs=1, batch_size=4, warmup_epochs=0.0)
    narrow = replace(settings.target.decoder, embed_dim=4 * settings.target.decoder.num_heads, depth=1)
    small = replace(
        settings,
        network=small_network(settings.network, size),
        target=replace(settings.target, decoder=narrow),
        train=train,
        last_heads=last_heads,
    )
    teacher_shape = None if teacher is None else (teacher.network.config, teacher.target_block)
    key = repr((size, small.network, small.target, train, last_heads, small.head_policy, teacher_shape))
    if key not in done:
        torch.manual_seed(0)
        with make_run("step", checkpoint_seconds=3600) as run:
            run.clear()
            trained = pretrain_network(small, images, 0, run, teacher)
        before_step = make_student(small, size, 0, teacher)
        assert not torch.equal(trained.network.cls_token, before_step.cls_token)
        done[key] = trained.network
    return done[key]


@pytest.mark.parametrize("name", PROFILES)
def test_every_profile_starts(name: str, cpu: Fabric, make_run: MakeRun, started: dict[Any, Any]) -> None:
    """One step of each pre-training and fine-tuning, at its own recipe, on four digits at its own size or 64 pixels."""
    profile = PROFILES[name]
    size = min(profile.data.image_size, 112 if profile.data.dataset == "clothing128" else 64)
    images = load_images(replace(profile.data, dataset="digits", image_size=size, labelled=1.0), cpu, Path())
    assert images.split is not None
    four = replace(
        images.split.train, images=images.split.train.images[:4], labels=images.split.train.labels[:4]
    )
    images = replace(images, split=replace(images.split, train=four, labelled=four, test=four))
    networks = {
        before: start_pretraining(profile, before, images, make_run, started["networks"])
        for before in profile.pretrainings
    }
    for method in profile.finetunings.values():
        pretrained = None if method.pretrained is None else networks[method.pretrained]
        asked = method.network.shape(size) if method.network else None
        known = None if pretrained is None else pretrained.config
        shape = shrunk(network_shape(None, asked or known, size))
        recipe = replace(method.train, epochs=1, batch_size=4, warmup_epochs=0.0, teacher=None)
        key = repr((shape, recipe, known))
        if key in started["classifiers"]:
            continue
        started["classifiers"].add(key)
        weights = None if pretrained is None else pretrained.state_dict()
        heads = None if known is None else known.heads[-1]
        classifier = make_finetuned_network(shape, recipe, 10, 0, weights, heads)
        before_step = classifier.cls_token.detach().clone()
        teacher = None if method.train.teacher is None else nn.Sequential(nn.Flatten(), nn.LazyLinear(10))
        with make_run("step", checkpoint_seconds=3600) as run:
            run.clear()
            batches = images.batches(recipe, 0)
            finetune(recipe, classifier, batches, images.judging, 0, cpu, run, teacher)
        assert not torch.equal(classifier.cls_token, before_step)


@pytest.fixture(scope="module")
def started() -> dict[Any, Any]:
    """What was started already: many profiles share their networks."""
    return {"networks": {}, "classifiers": set()}


class Constant(nn.Module):
    """Says nothing of any image."""

    def forward(self, x: Tensor) -> Tensor:
        return x.new_zeros(len(x), 1000)


def test_tiny_starts_at_its_real_size(cpu: Fabric) -> None:
    """TinyMIM-S as teacher, the student, its classifier and TinyMIM*: two random images of 224 pixels."""
    profile = PROFILES["imagenet-tiny"]
    (settings,) = profile.pretrainings.values()
    (method,) = profile.finetunings.values()
    torch.manual_seed(0)
    teacher = Teacher(VisionTransformer(STUDENTS["tinymim_vit_small_patch16"]))
    student = make_student(settings, 224, 0, teacher)
    assert student.config.heads == (6,) * 11 + (12,)
    assert teacher.heads == 12
    trainer = Pretrainer(settings.train, Objective(student, settings.target, teacher.width), 10, cpu, teacher)
    assert all(group["betas"] == (0.9, 0.95) for group in trainer.plain_optimizer.param_groups)
    pixels = torch.randn(2, 3, 224, 224)
    losses = [float(trainer.learn(pixels, pixels, 1e-3)["total"]) for _ in range(2)]
    assert losses[-1] < losses[0]
    for name in ("vit_tiny_patch16", "tinymim_star_tiny"):
        weights = student.state_dict() if name == "vit_tiny_patch16" else None
        classifier = make_finetuned_network(CLASSIFIERS[name], method.train, 1000, 0, weights)
        guide = Constant() if name == "tinymim_star_tiny" else None
        tuner = Finetuner(method.train, classifier, 10, 1000, cpu, guide)
        assert float(tuner.learn(pixels, torch.tensor([1, 2]), 1e-3)) == pytest.approx(np.log(1000), rel=0.2)


# -- GPU -----------------------------------------------------------------------------------------------


@pytest.mark.gpu
def test_a_step_in_bf16_is_about_one_in_fp32(
    make_pretraining: MakePretraining, make_teacher: MakeTeacher
) -> None:
    pixels = torch.randn(64, 3, 24, 24, generator=torch.Generator().manual_seed(0)).cuda()
    found = {}
    for precision in ("32-true", "bf16-mixed"):
        fabric = launch_fabric(AcceleratorConfig(device="cuda", precision=precision))
        teacher = make_teacher().to(fabric.device)
        settings = make_pretraining(drop_path=0.0)
        student = make_student(settings, 24, 0, teacher)
        objective = Objective(student, settings.target, teacher.width)
        trainer = Pretrainer(settings.train, objective, 1, fabric, teacher)
        losses = {name: float(value) for name, value in trainer.learn(pixels, pixels, 0.0).items()}
        gradient = torch.cat(
            [value.grad.flatten() for value in student.parameters() if value.grad is not None]
        )
        assert gradient.dtype == torch.float32
        found[precision] = losses, gradient
    (exact, exact_gradient), (rough, rough_gradient) = found.values()
    assert rough == pytest.approx(exact, rel=0.05)
    assert float(torch.cosine_similarity(exact_gradient, rough_gradient, dim=0)) > 0.99


@pytest.mark.gpu
def test_a_student_learns_on_a_gpu(
    make_pretraining: MakePretraining,
    make_finetuning: MakeFinetuning,
    make_teacher: MakeTeacher,
    make_run: MakeRun,
) -> None:
    fabric = launch_fabric(AcceleratorConfig(device="cuda"))
    images = load_images(PROFILES["smoke"].data, fabric, Path())
    with make_run("student") as run:
        settings = make_pretraining(epochs=3, batch_size=64, base_lr=1.2e-2)
        teacher = make_teacher().to(fabric.device)
        trained = pretrain_network(settings, images, 0, run, teacher)
        losses = [row["total_loss"] for row in run.history()]
        assert compare_relations(run, trained.network, teacher, images, False)["kl_qk"] > 0
    assert losses[-1] < 0.93 * losses[0]
    assert judge_frozen(trained.network, images, 0)["knn_top1"] > 15
    assert images.split is not None
    images = replace(images, split=replace(images.split, labelled=images.split.train))
    config = make_finetuning(epochs=3, batch_size=64, layer_decay=1.0)
    weights = {name: value.cpu() for name, value in trained.network.state_dict().items()}
    classifier = make_finetuned_network(ViTConfig(24, 6, 32, 3, 4), config, 10, 0, weights, 8)
    with make_run("classifier") as run:
        assert tune(config, classifier, images, run).metrics["top1"] > 40
