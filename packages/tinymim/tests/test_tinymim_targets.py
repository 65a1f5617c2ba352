"""Targets: what each family computes, of which tokens, and what it trains."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from tenfold.shared.logging import TenfoldError
from tenfold.tinymim.architectures import build_student, build_teacher
from tenfold.tinymim.mae import DecoderConfig, random_mask, reconstruction_loss
from tenfold.tinymim.relations import relation_loss
from tenfold.tinymim.targets import (
    Feature,
    Objective,
    TargetConfig,
    cls_loss,
    feature_loss,
    masked_autoencoding,
)
from tenfold.tinymim.vit import QKV, Readings, VisionTransformer

PATCHES, WIDTH, TEACHER_WIDTH, HEADS = 16, 16, 24, 8
DECODER = DecoderConfig(embed_dim=8, depth=1, num_heads=2)
FEATURES: tuple[Feature, ...] = ("output", "ffn", "ffn_residual", "attention", "attention_residual", "qkv")
FAMILIES = [
    TargetConfig(),
    TargetConfig(pairs=("qq", "kk", "vv")),
    TargetConfig(softmax=False),
    TargetConfig("cls"),
    *(TargetConfig("feature", feature=feature) for feature in FEATURES),
]


def name_of(config: TargetConfig) -> str:
    details = {"relation": "+".join(config.pairs) + "-products" * (not config.softmax)}
    return f"{config.family}-{details.get(config.family, config.feature)}"


families = pytest.mark.parametrize("config", FAMILIES, ids=name_of)


def make_student() -> VisionTransformer:
    torch.manual_seed(0)
    return build_student(
        img_size=24, patch_size=6, embed_dim=WIDTH, depth=3, num_heads=4, last_heads=HEADS, drop_path=0
    )


def make_teacher() -> VisionTransformer:
    torch.manual_seed(1)
    return build_teacher(
        img_size=24, patch_size=6, embed_dim=TEACHER_WIDTH, depth=4, num_heads=HEADS, target_block=3
    )


def draw_images() -> Tensor:
    return torch.randn(2, 3, 24, 24, generator=torch.Generator().manual_seed(2))


def draw_noise() -> Tensor:
    return torch.rand(2, PATCHES, generator=torch.Generator().manual_seed(3))


def target_of(objective: Objective) -> Readings:
    """What the teacher has to say; without a CLS token where it has none."""
    wanted = {signal for signal in objective.wanted if signal != "encoded"}
    found = make_teacher().read(draw_images(), wanted)
    if objective.has_cls:
        return found

    def patches(value: Any) -> Any:
        if isinstance(value, QKV):
            return QKV(*(v[:, :, 1:] for v in value))
        return None if value is None else value[:, 1:]

    return Readings(*map(patches, found))


def losses_of(objective: Objective) -> dict[str, Tensor]:
    target = None if objective.config.family == "none" else target_of(objective)
    losses: dict[str, Tensor] = objective(draw_images(), target, draw_noise())
    return losses


# -- formulas -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("beta", [2.0, 0.5])
def test_feature_loss_is_smooth_l1_to_the_normalised_feature(beta: float) -> None:
    torch.manual_seed(0)
    pred, target = 2 * torch.randn(2, 3, 8), 5 * torch.randn(2, 3, 8) + 1
    mean, variance = target.mean(-1, keepdim=True), target.var(-1, keepdim=True, correction=0)
    error = (pred - (target - mean) / (variance + 1e-6).sqrt()).abs()
    assert (error > beta).any() and (error < beta).any()
    expected = torch.where(error <= beta, error**2 / (2 * beta), error - beta / 2).mean()
    torch.testing.assert_close(feature_loss(pred, target, beta), expected)
    torch.testing.assert_close(feature_loss(pred, 3 * target - 4, beta), expected, rtol=1e-5, atol=0)


def test_cls_loss_is_a_divergence_over_channels() -> None:
    torch.manual_seed(0)
    pred, target = torch.randn(3, 8), 2 * torch.randn(3, 8)
    p, q = target.softmax(-1), pred.softmax(-1)
    torch.testing.assert_close(cls_loss(pred, target), (p * (p / q).log()).sum(-1).mean())
    assert cls_loss(target, target + 7) == pytest.approx(0, abs=1e-6)
    assert cls_loss(1000 * pred, 1000 * target).isfinite()


def test_losses_are_in_float32_whatever_comes_in() -> None:
    torch.manual_seed(0)
    pred, target = torch.randn(2, 3, 8).bfloat16(), torch.randn(2, 3, 8).bfloat16()
    for loss in (feature_loss, cls_loss):
        found = loss(pred[:, 0], target[:, 0])
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, loss(pred[:, 0].float(), target[:, 0].float()), rtol=0, atol=0)


# -- what is compared -----------------------------------------------------------------------------------


@pytest.mark.parametrize("has_cls", [True, False])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("config", FAMILIES[:3], ids=name_of)
@torch.no_grad()
def test_relations_are_of_the_same_tokens(config: TargetConfig, masked: bool, has_cls: bool) -> None:
    student = make_student()
    objective = Objective(student, replace(config, masked=masked), TEACHER_WIDTH, has_cls)
    mask = random_mask(draw_noise(), 0.75) if masked else None
    mine, wanted = student.read(draw_images(), {"qkv"}, mask and mask.keep).qkv, target_of(objective).qkv
    assert mine is not None and wanted is not None
    if not has_cls:
        mine = QKV(*(values[:, :, 1:] for values in mine))
    if mask is not None:
        tokens = [
            ([0] if has_cls else []) + (kept + int(has_cls)).tolist() for kept in mask.keep
        ]  # of each image
        wanted = QKV(*(torch.stack([v[i][:, tokens[i]] for i in range(2)]) for v in wanted))
    expected = relation_loss(mine, wanted, config.pairs, config.softmax)
    found = losses_of(objective)
    assert list(found) == [*config.pairs, "total"]
    for name, value in found.items():
        torch.testing.assert_close(value, expected[name])
        assert value > 0


@pytest.mark.parametrize("has_cls", [True, False])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("feature", FEATURES)
@torch.no_grad()
def test_features_are_of_the_same_tokens(feature: Feature, masked: bool, has_cls: bool) -> None:
    student = make_student()
    config = TargetConfig("feature", feature=feature, masked=masked, beta=0.7)
    objective = Objective(student, config, TEACHER_WIDTH, has_cls)
    mask = random_mask(draw_noise(), 0.75) if masked else None
    mine, wanted = (
        student.read(draw_images(), {feature}, mask and mask.keep),
        target_of(objective),
    )
    if feature == "qkv":
        assert mine.qkv is not None and wanted.qkv is not None
        pairs = list(zip(mine.qkv.features, wanted.qkv.features, strict=True))
    else:
        pairs = [(getattr(mine, feature), getattr(wanted, feature))]
    expected = []
    for (one, other), projection in zip(pairs, objective.projections, strict=True):
        one = one if has_cls else one[:, 1:]
        if mask is not None:
            first = int(has_cls)
            other = torch.stack(
                [torch.cat((o[:first], o[first:][kept])) for o, kept in zip(other, mask.keep, strict=True)]
            )
        assert one.shape[:2] == other.shape[:2]
        expected.append(feature_loss(projection(one), other, 0.7))
    found = losses_of(objective)
    assert list(found) == ["feature", "total"]
    torch.testing.assert_close(found["feature"], sum(expected) / len(expected))
    assert torch.equal(found["total"], found["feature"])


@pytest.mark.parametrize("masked", [False, True])
@torch.no_grad()
def test_the_cls_token_of_the_output_is_distilled(masked: bool) -> None:
    student = make_student()
    objective = Objective(student, TargetConfig("cls", masked=masked), TEACHER_WIDTH)
    mask = random_mask(draw_noise(), 0.75) if masked else None
    output = student.read(draw_images(), {"output"}, mask and mask.keep).output
    wanted = make_teacher().forward_features(draw_images())[:, 0]
    assert output is not None
    expected = cls_loss(objective.projections[0](output[:, 0]), wanted)
    found = losses_of(objective)
    assert list(found) == ["cls", "total"]
    torch.testing.assert_close(found["cls"], expected)


@pytest.mark.parametrize("config", [*FAMILIES, masked_autoencoding(DECODER)], ids=name_of)
@torch.no_grad()
def test_reconstruction_is_of_the_students_view_and_added(config: TargetConfig) -> None:
    config = replace(config, masked=True, reconstruction=True, decoder=DECODER)
    objective = Objective(make_student(), config, TEACHER_WIDTH)
    found = losses_of(objective)
    mask = random_mask(draw_noise(), 0.75)
    encoded = objective.student.read(draw_images(), {"encoded"}, mask.keep).encoded
    assert objective.decoder is not None and mask.keep.shape == (2, 4)
    expected = reconstruction_loss(objective.decoder(encoded, mask.restore), draw_images(), mask, 6)
    torch.testing.assert_close(found["reconstruction"], expected)
    alone = {name: value for name, value in found.items() if name not in ("reconstruction", "total")}
    assert bool(alone) == (config.family != "none")
    torch.testing.assert_close(found["total"], expected + sum(alone.values()))
    if config.family != "none":
        without = Objective(objective.student, replace(config, reconstruction=False), TEACHER_WIDTH)
        without.projections = objective.projections
        for name, value in losses_of(without).items():
            torch.testing.assert_close(value, alone.get(name, sum(alone.values())))


@torch.no_grad()
def test_the_student_is_read_with_the_teachers_heads() -> None:
    student = make_student()
    objective = Objective(student, TargetConfig(), TEACHER_WIDTH)
    wanted = make_teacher().target_qkv(draw_images(), heads=2)
    found = objective(draw_images(), Readings(qkv=wanted))
    expected = relation_loss(student.target_qkv(draw_images(), heads=2), wanted)
    torch.testing.assert_close(found, expected)


@torch.no_grad()
def test_which_patches_are_hidden_is_the_noises_choice() -> None:
    objective = Objective(make_student(), TargetConfig(masked=True, mask_ratio=0.5), TEACHER_WIDTH)
    target, noise = target_of(objective), draw_noise()
    first, again = (objective(draw_images(), target, noise)["total"] for _ in range(2))
    assert torch.equal(first, again)
    assert objective(draw_images(), target, 1 - noise)["total"] != first


# -- what is trained ------------------------------------------------------------------------------------


UNREACHED = {
    "relation": ("attn.proj", "norm2", "mlp"),
    "qkv": ("attn.proj", "norm2", "mlp"),
    "attention": ("norm2", "mlp"),
    "attention_residual": ("norm2", "mlp"),
}
"""Of the last block."""


def frozen_names(config: TargetConfig) -> set[str]:
    """Parameters that must not learn, by the specification."""
    frozen: tuple[str, ...] = ("pos_embed",)
    if not config.reconstruction:
        key = config.feature if config.family == "feature" else config.family
        frozen += ("norm.", *(f"blocks.2.{part}." for part in UNREACHED.get(key, ())))
    return {name for name, _ in make_student().named_parameters() if name.startswith(frozen)}


@families
@pytest.mark.parametrize(("masked", "reconstruction"), [(False, False), (True, False), (True, True)])
def test_all_that_learns_has_a_gradient_and_all_else_is_frozen(
    config: TargetConfig, masked: bool, reconstruction: bool
) -> None:
    config = replace(config, masked=masked, reconstruction=reconstruction, decoder=DECODER)
    objective = Objective(make_student(), config, TEACHER_WIDTH)
    frozen = {name for name, value in objective.student.named_parameters() if not value.requires_grad}
    assert frozen == frozen_names(config)
    losses_of(objective)["total"].backward()
    for name, value in objective.named_parameters():
        assert (value.grad is not None) == value.requires_grad, name
        if value.grad is not None and "qkv.bias" not in name:
            assert value.grad.any(), name


def test_masked_autoencoding_trains_all_but_positions() -> None:
    objective = Objective(make_student(), masked_autoencoding(DECODER))
    losses_of(objective)["total"].backward()
    without = {name for name, value in objective.named_parameters() if value.grad is None}
    assert without == {name for name, value in objective.named_parameters() if not value.requires_grad}
    assert without == {"student.pos_embed"}


def test_relations_train_only_norm_and_qkv_of_the_last_block() -> None:
    objective = Objective(make_student(), TargetConfig(), TEACHER_WIDTH)
    last = {n for n, p in objective.student.blocks[-1].named_parameters() if p.requires_grad}
    assert last == {"norm1.weight", "norm1.bias", "attn.qkv.weight", "attn.qkv.bias"}
    assert not list(objective.projections) and objective.decoder is None


@families
def test_a_teacher_without_a_cls_token_trains_the_same(config: TargetConfig) -> None:
    if config.family == "cls":
        with pytest.raises(TenfoldError, match="this teacher has no CLS token to distil"):
            Objective(make_student(), config, TEACHER_WIDTH, has_cls=False)
        return
    objective = Objective(make_student(), config, TEACHER_WIDTH, has_cls=False)
    losses_of(objective)["total"].backward()
    assert all((p.grad is not None) == p.requires_grad for p in objective.parameters())


def test_projections_are_as_wide_as_the_teacher_and_three_for_queries_keys_and_values() -> None:
    for config, count in zip(FAMILIES, [0, 0, 0, 1, 1, 1, 1, 1, 1, 3], strict=True):
        shapes = [p.weight.shape for p in Objective(make_student(), config, TEACHER_WIDTH).projections]
        assert shapes == [(TEACHER_WIDTH, WIDTH)] * count


@families
def test_a_few_steps_bring_the_student_nearer(config: TargetConfig) -> None:
    objective = Objective(make_student(), config, TEACHER_WIDTH)
    target = target_of(objective)
    optimizer = torch.optim.AdamW([p for p in objective.parameters() if p.requires_grad], lr=5e-3)
    losses = []
    for _ in range(6):
        loss = objective(draw_images(), target)["total"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]


# -- what is refused ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"family": "none"}, "without a teacher there is reconstruction alone: add --target.reconstruction"),
        ({"reconstruction": True}, "reconstruction needs hidden patches: add --target.masked"),
        ({"mask_ratio": 0.0}, "the mask ratio is between 0 and 1"),
        ({"mask_ratio": 1.0}, "the mask ratio is between 0 and 1"),
        ({"beta": 0.0}, "beta is positive"),
        ({"pairs": ()}, "relations are some of qk, qq, kk and vv, each once"),
        ({"pairs": ("qk", "qk")}, "relations are some of qk, qq, kk and vv, each once"),
    ],
)
def test_impossible_targets_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(TenfoldError, match=message):
        TargetConfig(**fields)


def test_distillation_without_a_teacher_is_refused() -> None:
    for config in FAMILIES:
        with pytest.raises(TenfoldError, match=f"{config.family} distillation needs a teacher"):
            Objective(make_student(), config)


@pytest.mark.parametrize("reconstruction", [False, True])
def test_distillation_without_the_teachers_readings_is_refused(reconstruction: bool) -> None:
    config = TargetConfig(masked=True, reconstruction=reconstruction, decoder=DECODER)
    objective = Objective(make_student(), config, TEACHER_WIDTH)
    with pytest.raises(TenfoldError, match="teacher"):
        objective(draw_images(), None, draw_noise())


def test_a_masked_student_without_noise_is_refused() -> None:
    objective = Objective(make_student(), masked_autoencoding(DECODER))
    with pytest.raises(TenfoldError, match="a masked student needs noise"):
        objective(draw_images())


def test_signals_of_families() -> None:
    found = [config.signal for config in FAMILIES]
    assert found == ["qkv", "qkv", "qkv", "output", *FEATURES]
    assert masked_autoencoding(DECODER).signal is None


def test_the_step_of_relations_compiles_into_one_graph_with_the_same_gradients() -> None:
    torch.manual_seed(0)
    shape = {"img_size": 32, "patch_size": 8, "depth": 2}
    student = build_student(embed_dim=24, num_heads=2, last_heads=4, drop_path=0.0, **shape)
    teacher = build_teacher(embed_dim=32, num_heads=4, **shape)
    images, noise = torch.randn(4, 3, 32, 32), torch.rand(4, 16)
    objective = Objective(student, TargetConfig(masked=True), 32)
    learned = [parameter for parameter in objective.parameters() if parameter.requires_grad]
    target = teacher.read(images, {"qkv"})
    compiled = torch.compile(objective, backend="aot_eager", fullgraph=True)
    losses = [step(images, target, noise)["total"] for step in (objective, compiled)]
    torch.testing.assert_close(*losses)
    for eager, found in zip(*(torch.autograd.grad(loss, learned) for loss in losses), strict=True):
        torch.testing.assert_close(eager, found)
