"""Teachers: what is read of every family of vision transformers, how far they compute, heads of a chain, weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from timm.models.beit import Beit
from timm.models.deit import VisionTransformerDistilled
from timm.models.eva import Eva
from timm.models.vision_transformer import ResPostBlock
from timm.models.vision_transformer import VisionTransformer as TimmViT
from timm.models.vision_transformer_relpos import VisionTransformerRelPos
from timm.models.vision_transformer_sam import VisionTransformerSAM
from torch import Tensor, nn
from torch.nn import functional as F

from tenfold.shared.logging import TenfoldError
from tenfold.tinymim.architectures import STUDENTS, TEACHERS, build_student
from tenfold.tinymim.checkpoints import timm_model
from tenfold.tinymim.relations import relation
from tenfold.tinymim.targets import Objective, TargetConfig
from tenfold.tinymim.teacher_files import load_student_as_teacher, load_teacher
from tenfold.tinymim.teachers import HeadPolicy, Teacher, check_grid, plan_heads, resolve_target
from tenfold.tinymim.timm_teachers import TimmTeacher
from tenfold.tinymim.vit import Signal, VisionTransformer, ViTConfig

SIZE = {
    "img_size": 32,
    "patch_size": 8,
    "embed_dim": 32,
    "depth": 4,
    "num_heads": 4,
    "num_classes": 5,
}
OURS = ViTConfig(img_size=32, patch_size=8, embed_dim=32, depth=4, num_heads=4)
TARGET = 3
SIGNALS: tuple[Signal, ...] = (
    "qkv",
    "attention",
    "attention_residual",
    "ffn",
    "ffn_residual",
    "output",
    "encoded",
)
FAMILIES: dict[str, Callable[[], nn.Module]] = {
    "vit": lambda: TimmViT(**SIZE),
    "vit, mean and fc_norm": lambda: TimmViT(**SIZE, global_pool="avg"),
    "vit, layer scale and norms of q and k": lambda: TimmViT(**SIZE, init_values=0.5, qk_norm=True),
    "vit, norm before the blocks, as clip": lambda: TimmViT(**SIZE, pre_norm=True),
    "vit without cls": lambda: TimmViT(**SIZE, class_token=False, global_pool="avg"),
    "vit, norms of attention and ffn": lambda: TimmViT(**SIZE, scale_attn_norm=True, scale_mlp_norm=True),
    "vit, norms after the branches": lambda: TimmViT(**SIZE, block_fn=ResPostBlock),
    "beit": lambda: Beit(**SIZE, init_values=0.1, use_rel_pos_bias=True),
    "beit, shared bias": lambda: Beit(**SIZE, use_abs_pos_emb=False, use_shared_rel_pos_bias=True),
    "relative positions": lambda: VisionTransformerRelPos(**SIZE),
    "eva": lambda: Eva(**SIZE, init_values=0.3),
    "eva02": lambda: Eva(
        **SIZE, qkv_fused=False, swiglu_mlp=True, scale_mlp=True, scale_attn_inner=True, use_rot_pos_emb=True
    ),
    "eva, norms after the branches": lambda: Eva(**SIZE, use_post_norm=True),
    "rope of each block, gated": lambda: Eva(
        **SIZE, use_rot_pos_emb=True, rope_type="mixed", attn_type="rope"
    ),
    "dinov3 without registers": lambda: Eva(
        **SIZE, use_rot_pos_emb=True, rope_type="dinov3", qk_norm=True, init_values=0.5
    ),
    "fewer keys than queries": lambda: Eva(
        **SIZE, attn_type="rope", qkv_fused=False, num_kv_heads=2, use_rot_pos_emb=True
    ),
}
WITH_FURTHER_TOKENS: dict[str, Callable[[], nn.Module]] = {
    "registers": lambda: TimmViT(**SIZE, reg_tokens=4, init_values=0.5),
    "registers without cls": lambda: TimmViT(**SIZE, reg_tokens=2, class_token=False, global_pool="avg"),
    "distillation token": lambda: VisionTransformerDistilled(**SIZE, global_pool="token"),
    "dinov3": lambda: Eva(**SIZE, num_reg_tokens=4, use_rot_pos_emb=True, rope_type="dinov3"),
}


def disturbed(network: nn.Module, seed: int = 0) -> nn.Module:
    """In double precision with no parameter as it was made, so that none can be forgotten."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for value in network.parameters():
            value.add_(torch.randn(value.shape, generator=generator), alpha=0.2)
    return network.double().eval()


def images(network: nn.Module, size: int = 32) -> Tensor:
    """Two, in the precision of a network."""
    dtype = next(network.parameters()).dtype
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1), dtype=dtype)


def calls(network: nn.Module, name: str) -> list[str]:
    """Grows by one with each call of a module."""
    seen: list[str] = []
    network.get_submodule(name).register_forward_pre_hook(lambda *_: seen.append(name))
    return seen


def block_by_hand(model: Any, block: Any, x: Tensor, number: int, rope: Tensor | None) -> dict[str, Tensor]:
    """Parts of one block, written as its paper has them."""
    extra: dict[str, Any] = {}
    if isinstance(model, Eva):
        extra = {"rope": rope[number] if rope is not None and model.rope_mixed else rope}
    elif isinstance(model, Beit) and model.rel_pos_bias is not None:
        extra = {"shared_rel_pos_bias": model.rel_pos_bias()}

    def scaled(values: Tensor, which: int) -> Tensor:
        gamma = getattr(block, f"gamma_{which}", None)
        if gamma is not None:
            return gamma * values
        return getattr(block, f"ls{which}", nn.Identity())(values)  # type: ignore[no-any-return]

    if type(block).__name__ in {"ResPostBlock", "EvaBlockPostNorm"}:
        attention = block.norm1(block.attn(x, **extra))
        middle = x + attention
        ffn = block.norm2(block.mlp(middle))
    else:
        attention = scaled(block.attn(block.norm1(x), **extra), 1)
        middle = x + attention
        ffn = scaled(block.mlp(block.norm2(middle)), 2)
    return {
        "attention": attention,
        "attention_residual": middle,
        "ffn": ffn,
        "ffn_residual": middle + ffn,
    }


def by_hand(model: Any, pictures: Tensor) -> dict[str, Tensor]:
    """Features of all tokens from the model's parts, one after the other."""
    x, rope = model.patch_embed(pictures), None
    if isinstance(model, Eva):
        x, rope = model._pos_embed(x)
        x = model.norm_pre(x)
    elif isinstance(model, Beit):
        x = torch.cat((model.cls_token.expand(len(x), -1, -1), x), dim=1)
        x = x if model.pos_embed is None else x + model.pos_embed
    elif isinstance(model, TimmViT):
        x = model.norm_pre(model._pos_embed(x))
    found: dict[str, Tensor] = {}
    for number, block in enumerate(model.blocks):
        parts = block_by_hand(model, block, x, number, rope)
        x = parts["ffn_residual"]
        if number == TARGET - 1:
            found = parts
    return {**found, "output": x, "encoded": model.norm(x)}


def of_cls_and_patches(values: Tensor, model: Any) -> Tensor:
    """Rows of [B, N, D] that students have too."""
    first = [0] if getattr(model, "cls_token", None) is not None else []
    return values[:, first + list(range(model.num_prefix_tokens, values.shape[1]))]


# -- what is read ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_queries_keys_and_values_give_the_attention_that_the_model_computes(family: str) -> None:
    model: Any = disturbed(FAMILIES[family]())
    teacher = TimmTeacher(model, TARGET)
    attention, real = model.blocks[TARGET - 1].attn, []
    handle = attention.register_forward_hook(lambda module, args, out: real.append((args[0], out)))
    model(images(model))
    handle.remove()
    ((entered, left),) = real
    qkv = teacher.read(images(teacher), {"qkv"}).qkv
    assert qkv is not None
    q, k, v = qkv
    scores = q @ k.transpose(2, 3) / q.shape[-1] ** 0.5
    if getattr(attention, "relative_position_bias_table", None) is not None:
        scores = scores + attention._get_rel_pos_bias()
    if getattr(model, "rel_pos_bias", None) is not None:
        scores = scores + model.rel_pos_bias()
    if getattr(attention, "rel_pos", None) is not None:
        scores = scores + attention.rel_pos.get_bias()
    mixed = (scores.softmax(dim=-1) @ v).transpose(1, 2).flatten(2)
    mixed = getattr(attention, "norm", nn.Identity())(mixed)
    if getattr(attention, "gate", None) is not None:
        mixed = mixed * attention.gate(entered).sigmoid()
    torch.testing.assert_close(attention.proj(mixed), left)


@pytest.mark.parametrize("family", [*FAMILIES, *WITH_FURTHER_TOKENS])
@torch.no_grad()
def test_features_are_those_of_a_forward_by_hand(family: str) -> None:
    model = disturbed((FAMILIES | WITH_FURTHER_TOKENS)[family]())
    found = TimmTeacher(model, TARGET).read(images(model), SIGNALS)._asdict()
    for name, wanted in by_hand(model, images(model)).items():
        torch.testing.assert_close(found[name], of_cls_and_patches(wanted, model))


@pytest.mark.parametrize("block", [1, 2, 4])
def test_ours_and_the_same_network_of_timm_are_read_alike(block: int) -> None:
    ours = disturbed(VisionTransformer(OURS)).float()
    assert isinstance(ours, VisionTransformer)
    theirs = TimmTeacher(timm_model(ours).double(), block, heads=8)
    mine = Teacher(ours.double(), block, heads=8)
    for name in ("width", "attention_width", "has_cls", "grid", "img_size", "target_block", "depth", "heads"):
        assert getattr(mine, name) == getattr(theirs, name), name
    left, right = (teacher.read(images(teacher), SIGNALS) for teacher in (mine, theirs))
    torch.testing.assert_close(left, right)


@pytest.mark.parametrize("make", ["ours", "timm"])
def test_only_what_is_wanted_is_returned(make: str) -> None:
    network = VisionTransformer(OURS)
    teacher = Teacher(network) if make == "ours" else TimmTeacher(FAMILIES["vit"]())
    found = teacher.read(images(teacher), ["ffn", "output"])
    assert {name for name, value in found._asdict().items() if value is not None} == {"ffn", "output"}


@pytest.mark.parametrize("family", WITH_FURTHER_TOKENS)
@torch.no_grad()
def test_registers_and_distillation_tokens_are_left_out(family: str) -> None:
    model: Any = disturbed(WITH_FURTHER_TOKENS[family]())
    teacher = TimmTeacher(model, TARGET)
    assert teacher.has_cls == (family != "registers without cls")
    entered: list[Tensor] = []
    model.blocks[TARGET - 1].norm1.register_forward_hook(lambda module, args, out: entered.append(out))
    qkv = teacher.read(images(teacher), {"qkv"}).qkv
    assert qkv is not None
    attention = model.blocks[TARGET - 1].attn
    weight, bias = attention.qkv.weight, attention.qkv.bias
    if bias is None:
        bias = torch.cat((attention.q_bias, attention.k_bias, attention.v_bias))
    values = F.linear(entered[0], weight, bias)[:, :, 64:]
    torch.testing.assert_close(qkv.features[2], of_cls_and_patches(values, model))


@pytest.mark.parametrize("signal", ["qkv", "ffn", "output"])
def test_our_own_distillation_token_is_left_out(signal: Signal) -> None:
    network = disturbed(VisionTransformer(replace(OURS, distillation_token=True)))
    assert isinstance(network, VisionTransformer)
    value = getattr(network.eval().read(images(network), {signal, "ffn"}), signal)
    found = getattr(Teacher(network).read(images(network), {signal}), signal)
    if signal == "qkv":
        value, found = value.v.transpose(1, 2), found.v.transpose(1, 2)
    torch.testing.assert_close(found, torch.cat((value[:, :1], value[:, 2:]), dim=1))


@pytest.mark.parametrize("family", ["vit, layer scale and norms of q and k", "eva02", "beit"])
def test_other_heads_divide_the_same_numbers(family: str) -> None:
    model = disturbed(FAMILIES[family]())
    own, other = (TimmTeacher(model, TARGET, heads).read(images(model), {"qkv"}).qkv for heads in (None, 2))
    assert own is not None and other is not None
    assert own.q.shape == (2, 4, 17, 8) and other.q.shape == (2, 2, 17, 16)
    torch.testing.assert_close(other.features, own.features, rtol=0, atol=0)
    torch.testing.assert_close(relation(other.q, other.k).sum(-1), torch.ones(2, 2, 17))


def test_attention_is_read_where_the_model_would_not_call_the_fused_product() -> None:
    model: Any = disturbed(FAMILIES["beit"]())
    wanted = TimmTeacher(model, TARGET).read(images(model), SIGNALS)
    for block in model.blocks:
        block.attn.fused_attn = False
    torch.testing.assert_close(
        TimmTeacher(model, TARGET).read(images(model), SIGNALS), wanted, rtol=1e-4, atol=1e-4
    )


# -- how it behaves -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wanted", "run", "not_run"),
    [
        ({"qkv"}, ["blocks.1.norm1"], ["blocks.1.attn.proj", "blocks.1.mlp", "blocks.2", "norm"]),
        ({"qkv", "attention_residual"}, ["blocks.1.attn.proj"], ["blocks.1.mlp", "blocks.2", "norm"]),
        ({"qkv", "ffn", "ffn_residual"}, ["blocks.1.mlp"], ["blocks.2", "norm"]),
        ({"qkv", "output"}, ["blocks.3"], ["norm", "head"]),
        ({"encoded"}, ["norm"], ["head"]),
    ],
)
def test_nothing_is_computed_that_is_not_wanted(
    wanted: set[Signal], run: list[str], not_run: list[str]
) -> None:
    model = FAMILIES["vit"]()
    teacher = TimmTeacher(model, 2)
    seen = {name: calls(model, name) for name in run + not_run}
    teacher.read(images(teacher), wanted)
    assert {name: len(found) for name, found in seen.items()} == dict.fromkeys(run, 1) | dict.fromkeys(
        not_run, 0
    )


def test_no_block_of_ours_runs_after_the_target() -> None:
    network = VisionTransformer(OURS)
    seen = {name: calls(network, name) for name in ("blocks.0", "blocks.1.mlp", "blocks.2", "blocks.3")}
    Teacher(network, 2).read(images(network), ["qkv"])
    assert [len(found) for found in seen.values()] == [1, 0, 0, 0]


def test_a_model_is_as_it_was_after_it_was_read() -> None:
    model: Any = disturbed(FAMILIES["vit"]())
    before = model(images(model))
    teacher = TimmTeacher(model, 2)
    teacher.read(images(teacher), {"qkv"})
    teacher.read(images(teacher), {"ffn"})
    torch.testing.assert_close(model(images(model)), before)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize("make", ["ours", "timm"])
def test_a_teacher_never_learns_and_never_drops_anything(make: str) -> None:
    teacher: Teacher | TimmTeacher
    if make == "ours":
        teacher = Teacher(VisionTransformer(ViTConfig(32, 8, 32, 4, 4, drop_path=(0.5,) * 4)))
    else:
        teacher = TimmTeacher(TimmViT(**SIZE, drop_path_rate=0.5, proj_drop_rate=0.5, pos_drop_rate=0.5))
    nn.Sequential(teacher).train()
    first, second = (teacher.read(images(teacher), SIGNALS) for _ in range(2))
    torch.testing.assert_close(first, second, rtol=0, atol=0)
    assert first.output is not None and not first.output.requires_grad
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    assert not teacher.training and not any(module.training for module in teacher.modules())


def test_blocks_before_the_target_can_be_compiled() -> None:
    model: Any = disturbed(FAMILIES["eva02"]())
    teacher = TimmTeacher(model, TARGET)
    wanted = teacher.read(images(teacher), SIGNALS)
    for block in model.blocks[: TARGET - 1]:
        block.compile(backend="eager")
    torch.testing.assert_close(teacher.read(images(teacher), SIGNALS), wanted)


# -- images ---------------------------------------------------------------------------------------------


def test_images_are_renormalised_to_what_a_model_was_trained_with() -> None:
    model: Any = FAMILIES["vit"]()
    model.pretrained_cfg = {"mean": (0.5, 0.4, 0.3), "std": (0.5, 0.6, 0.7)}
    entered: list[Tensor] = []
    model.patch_embed.register_forward_pre_hook(lambda module, args: entered.append(args[0]))
    pixels = images(model).sigmoid()
    channels = [value.view(3, 1, 1) for value in torch.tensor([(0.485, 0.456, 0.406), (0.229, 0.224, 0.225)])]
    TimmTeacher(model).read((pixels - channels[0]) / channels[1], {"output"})
    TimmTeacher(model, mean=(0.3,) * 3, std=(0.38,) * 3).read((pixels - 0.3) / 0.38, {"output"})
    own_mean, own_std = (torch.tensor(model.pretrained_cfg[name]).view(3, 1, 1) for name in ("mean", "std"))
    for found in entered:
        torch.testing.assert_close(found, (pixels - own_mean) / own_std)


@pytest.mark.parametrize("make", ["ours", "timm"])
def test_images_of_another_size_are_resized(make: str) -> None:
    shape = {"img_size": 28, "patch_size": 7}  # as patches of 14 beside a student's of 16
    teacher = (
        Teacher(VisionTransformer(replace(OURS, **shape)))
        if make == "ours"
        else TimmTeacher(TimmViT(**(SIZE | shape)))
    )
    check_grid(teacher, 32 // 8)
    ramp = torch.linspace(-1, 1, 28).expand(1, 3, 28, 28)
    doubled = F.interpolate(ramp, (56, 56), mode="bilinear")
    left, right = (teacher.read(pictures, {"output"}).output for pictures in (ramp, doubled))
    torch.testing.assert_close(left, right, rtol=0.02, atol=0.02)


def test_another_grid_than_the_students_says_what_to_choose() -> None:
    teacher = TimmTeacher(TimmViT(**(SIZE | {"img_size": 56, "patch_size": 14})))
    with pytest.raises(TenfoldError, match=r"4 x 4 patches and the student 7 x 7.*98 pixels"):
        check_grid(teacher, 7)


# -- which block, how many heads ------------------------------------------------------------------------


def test_the_target_is_the_18th_of_24_blocks_else_the_last() -> None:
    assert [resolve_target(24), resolve_target(12), resolve_target(6)] == [18, 12, 6]
    assert resolve_target(24, 21) == 21
    assert Teacher(VisionTransformer(ViTConfig(8, 8, 8, 24, 2))).target_block == 18
    assert Teacher(VisionTransformer(ViTConfig(8, 8, 8, 24, 2, target_block=20))).target_block == 20
    assert TimmTeacher(TimmViT(**(SIZE | {"depth": 24}))).target_block == 18
    for block in (0, 13):
        with pytest.raises(TenfoldError, match="blocks 1 to 12"):
            resolve_target(12, block)


@pytest.mark.parametrize(("policy", "chain"), [("student", [16, 12, 12]), ("trained", [16, 16, 16])])
def test_heads_of_the_papers_chain(policy: HeadPolicy, chain: list[int]) -> None:
    trained, width = TEACHERS["mae_vit_large"].num_heads, TEACHERS["mae_vit_large"].embed_dim
    found = []
    for name in ("tinymim_vit_base_patch16", "tinymim_vit_small_patch16", "tinymim_vit_tiny_patch16"):
        student = STUDENTS[name]
        trained = plan_heads(
            policy,
            trained_heads=trained,
            student_last_heads=student.last_heads,
            teacher_width=width,
            student_width=student.embed_dim,
        )
        width = student.embed_dim
        found.append(trained)
    assert found == chain


def test_a_student_without_last_heads_takes_those_of_its_teacher() -> None:
    heads = plan_heads(
        "student", trained_heads=16, student_last_heads=None, teacher_width=1024, student_width=384
    )
    assert heads == 16


@pytest.mark.parametrize(("teacher", "student", "who"), [(64, 36, "teacher's"), (36, 64, "student's")])
def test_heads_that_do_not_divide_a_width_are_refused(teacher: int, student: int, who: str) -> None:
    with pytest.raises(TenfoldError, match=f"the {who} width"):
        plan_heads(
            "student", trained_heads=4, student_last_heads=12, teacher_width=teacher, student_width=student
        )


@pytest.mark.parametrize("heads", [0, 5])
def test_heads_and_blocks_that_a_teacher_has_not_are_refused(heads: int) -> None:
    with pytest.raises(TenfoldError, match="divisor of 32"):
        TimmTeacher(FAMILIES["vit"](), heads=heads)
    with pytest.raises(TenfoldError, match="divisor of 32"):
        Teacher(VisionTransformer(OURS), heads=heads)
    for block in (0, 5):
        with pytest.raises(TenfoldError, match="blocks 1 to 4"):
            Teacher(VisionTransformer(OURS), block)


def save_run(path: Path, network: VisionTransformer) -> Path:
    torch.save({"config": {}, "shape": asdict(network.config), "network": network.state_dict()}, path)
    return path


@pytest.mark.parametrize(("policy", "heads"), [("student", 2), ("trained", 8)])
def test_a_student_is_the_teacher_of_the_next(policy: HeadPolicy, heads: int, tmp_path: Path) -> None:
    first = build_student(img_size=32, patch_size=8, embed_dim=32, depth=3, num_heads=4, last_heads=8)
    teacher = load_student_as_teacher(save_run(tmp_path / "model.pt", first))
    assert (teacher.trained_heads, teacher.heads, teacher.target_block) == (8, 8, 3)
    student = build_student(img_size=32, patch_size=8, embed_dim=16, depth=2, num_heads=4, last_heads=2)
    planned = plan_heads(
        policy,
        trained_heads=teacher.trained_heads,
        student_last_heads=student.config.last_heads,
        teacher_width=teacher.attention_width,
        student_width=student.config.embed_dim,
    )
    teacher.with_heads(planned)
    target = teacher.read(images(teacher), {"qkv"})
    assert target.qkv is not None and target.qkv.q.shape == (2, heads, 17, 32 // heads)
    loss = Objective(student, TargetConfig(), teacher.width)(images(student), target)["total"]
    loss.backward()
    assert student.blocks[-1].attn.qkv.weight.grad.abs().sum() > 0  # type: ignore[union-attr]
    assert all(parameter.grad is None for parameter in teacher.parameters())


# -- weights --------------------------------------------------------------------------------------------


def test_a_run_is_read_as_its_network_was(tmp_path: Path) -> None:
    network = disturbed(
        VisionTransformer(ViTConfig(32, 8, 32, 3, 4, last_heads=8, drop_path=(0.1, 0.1, 0.0)))
    ).float()
    assert isinstance(network, VisionTransformer)
    teacher = load_student_as_teacher(save_run(tmp_path / "model.pt", network), target_block=2)
    assert teacher.trained_heads == 4
    torch.testing.assert_close(
        teacher.read(images(teacher), SIGNALS),
        Teacher(network, 2).read(images(network), SIGNALS),
        rtol=0,
        atol=0,
    )


@pytest.mark.parametrize("damage", ["no shape", "unknown field", "another depth", "no file"])
def test_what_is_no_run_is_refused_with_its_path(damage: str, tmp_path: Path) -> None:
    network = VisionTransformer(OURS)
    content: dict[str, Any] = {"shape": asdict(OURS), "network": network.state_dict()}
    if damage == "no shape":
        del content["shape"]
    elif damage == "unknown field":
        content["shape"]["colour"] = 1
    elif damage == "another depth":
        content["shape"]["depth"] = 5
    if damage != "no file":
        torch.save(content, tmp_path / "model.pt")
    with pytest.raises(TenfoldError, match=r"model\.pt"):
        load_student_as_teacher(tmp_path / "model.pt")


def test_maes_file_is_loaded_without_its_decoder(tmp_path: Path) -> None:
    mae = disturbed(VisionTransformer(TEACHERS["mae_vit_tiny"])).float()
    decoder = {"decoder_embed.weight": torch.zeros(2, 2), "mask_token": torch.zeros(1, 1, 2)}
    torch.save({"model": mae.state_dict() | decoder}, tmp_path / "mae.pth")
    teacher = load_teacher("mae_vit_tiny", tmp_path / "mae.pth", heads=12, img_size=32)
    assert (teacher.grid, teacher.heads, teacher.trained_heads, teacher.target_block) == (2, 12, 3, 12)
    weights = teacher.network.state_dict()
    assert all(
        torch.equal(weights[name], value) for name, value in mae.state_dict().items() if name != "pos_embed"
    )


TIMM = "timm/test_vit"  # width 64, 6 blocks, 2 heads, images of 160


def test_timms_weights_come_from_a_file_strictly_and_fit_another_size(tmp_path: Path) -> None:
    name = TIMM.removeprefix("timm/")
    model = disturbed(timm.create_model(name)).float()
    torch.save(model.state_dict(), tmp_path / "timm.pt")
    teacher = load_teacher(TIMM, tmp_path / "timm.pt", target_block=2)
    assert isinstance(teacher, TimmTeacher)
    pictures = images(teacher, teacher.img_size)
    torch.testing.assert_close(
        teacher.read(pictures, SIGNALS), TimmTeacher(model, 2).read(pictures, SIGNALS), rtol=0, atol=0
    )
    assert load_teacher(TIMM, tmp_path / "timm.pt", img_size=64).grid == 4
    incomplete = {key: value for key, value in model.state_dict().items() if key != "blocks.0.norm1.bias"}
    torch.save(incomplete, tmp_path / "incomplete.pt")
    with pytest.raises(TenfoldError, match=r"incomplete\.pt does not fit .*blocks\.0\.norm1\.bias"):
        load_teacher(TIMM, tmp_path / "incomplete.pt")
    with pytest.raises(TenfoldError, match="no weights at"):
        load_teacher(TIMM, tmp_path / "nothing.pt")


def test_random_weights_are_taken_only_when_allowed() -> None:
    with pytest.raises(TenfoldError, match="needs weights: give their file, or allow timm to download"):
        load_teacher(TIMM, None)
    with pytest.raises(TenfoldError, match=r"needs weights: give their file$"):
        load_teacher("mae_vit_tiny", None, download=True)
    assert isinstance(load_teacher(TIMM, None, allow_random=True), TimmTeacher)
    student = load_teacher("tinymim_vit_tiny_patch16", None, img_size=32, allow_random=True)
    assert (student.heads, student.width, student.depth) == (12, 192, 12)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("vit_huge", "there is no teacher 'vit_huge': choose one of mae_vit_tiny"),
        ("timm/nothing", "timm has no model nothing"),
        ("timm/hf-hub:somebody/something", "timm has no model hf-hub:"),
        ("timm/test_resnet", "timm's test_resnet could not be made"),  # it takes no size of images
        ("timm/swin_tiny_patch4_window7_224", "SwinTransformer cannot be a teacher"),
        ("timm/hiera_tiny_224", "Hiera cannot be a teacher"),
    ],
)
def test_what_cannot_be_a_teacher_is_refused(name: str, message: str) -> None:
    with pytest.raises(TenfoldError, match=message):
        load_teacher(name, None, img_size=224, allow_random=True)


def test_attention_of_another_kind_is_refused() -> None:
    teacher = TimmTeacher(TimmViT(**SIZE, attn_layer="diff"))
    with pytest.raises(TenfoldError, match="cannot be a teacher"):
        teacher.read(images(teacher), {"qkv"})
    with pytest.raises(TenfoldError, match="cannot be a teacher"):
        TimmTeacher(VisionTransformerSAM(**SIZE, window_size=2))


def test_a_pooling_classifier_has_no_encoded_tokens() -> None:
    network = VisionTransformer(ViTConfig(32, 8, 32, 2, 4, num_classes=3))
    with pytest.raises(TenfoldError, match="read its output instead"):
        Teacher(network).read(images(network), {"encoded"})
