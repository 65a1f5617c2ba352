"""Networks, positions and masked autoencoding: what is computed, how it begins, and its shapes."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from timm.layers import DropPath
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from tenfold.shared.logging import TenfoldError
from tenfold.tinymim.architectures import (
    CLASSIFIERS,
    STUDENTS,
    TEACHERS,
    build_classifier,
    build_student,
    build_teacher,
    make_classifier,
)
from tenfold.tinymim.mae import DecoderConfig, MAEDecoder, Mask, random_mask, reconstruction_loss
from tenfold.tinymim.positions import resize_pos_embed, sincos_pos_embed
from tenfold.tinymim.vit import Block, PatchEmbed, Signal, VisionTransformer, ViTConfig, patchify

SHAPE = ViTConfig(img_size=24, patch_size=6, embed_dim=16, depth=4, num_heads=4)
STAR = ViTConfig(24, 6, 16, 2, 4, distillation_token=True, projection=20)
FEATURES = ("attention", "attention_residual", "ffn", "ffn_residual")


def disturbed(network: nn.Module) -> Any:
    """Every parameter random, in float64."""
    generator = torch.Generator().manual_seed(0)
    for parameter in network.parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        parameter.data.add_(0.2 * noise)
    return network.double().eval()


def network(**changes: Any) -> VisionTransformer:
    torch.manual_seed(0)
    found: VisionTransformer = disturbed(VisionTransformer(replace(SHAPE, **changes)))
    return found


def draw_images(count: int = 3, size: int = 24) -> Tensor:
    return torch.randn(count, 3, size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def plain_attention(block: Any, x: Tensor, heads: int) -> Any:
    """Attention after its norm, one head after the other."""
    normed = F.layer_norm(x, x.shape[-1:], block.norm1.weight, block.norm1.bias, 1e-6)
    q, k, v = (normed @ block.attn.qkv.weight.T + block.attn.qkv.bias).chunk(3, dim=-1)
    width = q.shape[-1] // heads
    mixed = []
    for head in range(heads):
        part = slice(head * width, (head + 1) * width)
        scores = q[..., part] @ k[..., part].mT / width**0.5
        mixed.append(scores.softmax(-1) @ v[..., part])
    return torch.cat(mixed, -1) @ block.attn.proj.weight.T + block.attn.proj.bias


def plain_ffn(block: Any, x: Tensor) -> Any:
    """FFN after its norm, with the exact GELU."""
    normed = F.layer_norm(x, x.shape[-1:], block.norm2.weight, block.norm2.bias, 1e-6)
    hidden = normed @ block.mlp.fc1.weight.T + block.mlp.fc1.bias
    hidden = hidden * 0.5 * (1 + torch.erf(hidden / 2**0.5))
    return hidden @ block.mlp.fc2.weight.T + block.mlp.fc2.bias


def plain_tokens(model: VisionTransformer, images: Tensor) -> Tensor:
    """Tokens before the first block."""
    extra = model.config.extra_tokens
    size = model.config.patch_size
    patches = F.conv2d(images, model.patch_embed.proj.weight, model.patch_embed.proj.bias, size)
    tokens: list[Tensor] = (
        [model.cls_token] if model.dist_token is None else [model.cls_token, model.dist_token]
    )
    first = torch.cat(tokens, 1).expand(len(images), -1, -1)
    assert first.shape[1] == extra
    return torch.cat((first, patches.flatten(2).mT), 1) + model.pos_embed


def plain_block(block: Any, x: Tensor, heads: int) -> Any:
    x = x + plain_attention(block, x, heads)
    return x + plain_ffn(block, x)


# -- parts ----------------------------------------------------------------------------------------------


def test_patch_embedding_is_a_convolution_as_wide_as_its_stride() -> None:
    torch.manual_seed(0)
    embed, images = PatchEmbed(4, 10).double(), torch.randn(2, 3, 8, 12, dtype=torch.float64)
    expected = embed.proj(images).flatten(2).mT
    torch.testing.assert_close(embed(images), expected)
    assert embed(images).shape == (2, 6, 10)
    parameters = list(embed.parameters())
    torch.testing.assert_close(
        torch.autograd.grad(embed(images).square().sum(), parameters),
        torch.autograd.grad(expected.square().sum(), parameters),
    )


def test_patches_hold_the_pixels_of_their_place() -> None:
    images = torch.arange(2 * 3 * 4 * 6).reshape(2, 3, 4, 6)
    found = patchify(images, 2)
    assert found.shape == (2, 6, 12)
    assert torch.equal(found[1, 4], images[1, :, 2:4, 2:4].flatten())  # second row, second column


@pytest.mark.parametrize("heads", [1, 4, 16])
def test_a_block_is_what_it_is_defined_to_be(heads: int) -> None:
    block, x = disturbed(Block(16, heads, mlp_ratio=3)), torch.randn(2, 7, 16, dtype=torch.float64)
    torch.testing.assert_close(block(x), plain_block(block, x, heads))


@torch.no_grad()
def test_a_whole_network_is_what_it_is_defined_to_be() -> None:
    model, images = network(last_heads=8), draw_images()
    x = plain_tokens(model, images)
    for block, heads in zip(model.blocks, (4, 4, 4, 8), strict=True):
        x = plain_block(block, x, heads)
    torch.testing.assert_close(model.forward_features(images), x)
    torch.testing.assert_close(model(images), model.norm(x))  # type: ignore[misc]


@torch.no_grad()
def test_classifiers_pool_patches_or_take_cls() -> None:
    images = draw_images()
    for pools in (True, False):
        model = disturbed(make_classifier(SHAPE, 5, pools))
        x = model.forward_features(images)
        pooled = x[:, 1:].mean(1) if pools else x[:, 0]
        norm = model.fc_norm if pools else model.norm
        assert (model.norm is None) == pools and (model.fc_norm is None) != pools
        expected = F.layer_norm(pooled, (16,), norm.weight, norm.bias, 1e-6) @ model.head.weight.T
        torch.testing.assert_close(model(images), expected + model.head.bias)


# -- reading --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", [1, 2, 4])
@torch.no_grad()
def test_what_is_read_is_what_happens_inside(target: int) -> None:
    model, images = network(target_block=target), draw_images()
    x = plain_tokens(model, images)
    for earlier in model.blocks[: target - 1]:
        x = plain_block(earlier, x, 4)
    block: Any = model.blocks[target - 1]
    attention = plain_attention(block, x, 4)
    middle = x + attention
    ffn = plain_ffn(block, middle)
    output = middle + ffn
    for later in model.blocks[target:]:
        output = plain_block(later, output, 4)
    expected = {
        "attention": attention,
        "attention_residual": middle,
        "ffn": ffn,
        "ffn_residual": middle + ffn,
        "output": output,
        "encoded": model.norm(output),  # type: ignore[misc]
    }
    together = model.read(images, {"qkv", *expected})  # type: ignore[arg-type]
    for name, value in expected.items():
        torch.testing.assert_close(getattr(together, name), value)
        torch.testing.assert_close(getattr(model.read(images, {name}), name), value)  # type: ignore[arg-type]
    qkv = block.attn.qkv(block.norm1(x))
    assert together.qkv is not None
    torch.testing.assert_close(torch.cat(together.qkv.features, -1), qkv)
    for found, wanted in zip(model.target_qkv(images), qkv.chunk(3, -1), strict=True):
        assert found.shape == (3, 4, 17, 4)
        torch.testing.assert_close(found[:, 2], wanted[..., 8:12])


@torch.no_grad()
def test_relations_are_of_the_target_block() -> None:
    model, images = network(target_block=3), draw_images()
    q, k, v = model.target_qkv(images)
    qk, vv = model.relations(images)
    torch.testing.assert_close(qk.double(), (q @ k.mT / 2).softmax(-1), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(vv.double(), (v @ v.mT / 2).softmax(-1), rtol=1e-4, atol=1e-6)


def calls_of(model: VisionTransformer, wanted: Any) -> set[str]:
    """Names of modules that ran."""
    ran: set[str] = set()
    for name, module in model.named_modules():
        module.register_forward_hook(lambda *_, name=name: ran.add(name))
    with torch.no_grad():
        model.read(draw_images(1), wanted)
    return ran


@pytest.mark.parametrize("wanted", [{"qkv"}, frozenset({"qkv"}), ("qkv",)], ids=["set", "frozenset", "tuple"])
def test_for_queries_keys_and_values_nothing_else_of_the_target_block_and_after_it_runs(wanted: Any) -> None:
    ran = calls_of(network(target_block=3), wanted)
    assert {name for name in ran if name.startswith("blocks.2")} == {"blocks.2.norm1", "blocks.2.attn.qkv"}
    assert not any(name.startswith(("blocks.3", "norm")) for name in ran)
    assert {"blocks.0", "blocks.1"} <= ran


@pytest.mark.parametrize("signal", FEATURES)
def test_for_a_feature_nothing_after_the_target_block_runs(signal: Signal) -> None:
    ran = calls_of(network(target_block=3), {signal})
    assert not any(name.startswith(("blocks.3", "norm")) for name in ran)


@pytest.mark.parametrize("signal", ["attention", "attention_residual"])
def test_for_attention_the_ffn_of_the_target_block_does_not_run(signal: Signal) -> None:
    ran = calls_of(network(target_block=3), {signal})
    assert "blocks.2.attn.proj" in ran
    assert not any(name.startswith(("blocks.2.mlp", "blocks.2.norm2")) for name in ran)


@pytest.mark.parametrize("signal", ["qkv", *FEATURES, "output", "encoded"])
@torch.no_grad()
def test_what_is_not_wanted_is_not_there(signal: Signal) -> None:
    found = network(target_block=3).read(draw_images(1), {signal})._asdict()
    assert {name for name, value in found.items() if value is not None} == {signal}


@torch.no_grad()
def test_hidden_patches_are_dropped_after_positions_and_before_blocks() -> None:
    model, images = network(), draw_images(2)
    keep = torch.tensor([[3, 0, 9], [15, 2, 4]])
    x = plain_tokens(model, images)
    x = torch.stack([tokens[[0, *(1 + kept).tolist()]] for tokens, kept in zip(x, keep, strict=True)])
    torch.testing.assert_close(model.embed(images, keep), x)
    for block in model.blocks:
        x = plain_block(block, x, 4)
    found = model.read(images, {"output", "qkv"}, keep)
    torch.testing.assert_close(found.output, x)
    assert found.qkv is not None and found.qkv.q.shape == (2, 4, 4, 4)


@torch.no_grad()
def test_kept_patches_come_in_the_order_that_is_asked() -> None:
    model, images = network(), draw_images(2)
    every = torch.arange(16).expand(2, -1)
    torch.testing.assert_close(
        model.read(images, {"output"}, every).output, model.read(images, {"output"}).output
    )
    forwards, backwards = (model.read(images, {"output"}, keep).output for keep in (every, every.flip(1)))
    assert forwards is not None and backwards is not None
    torch.testing.assert_close(backwards[:, 1:], forwards[:, 1:].flip(1))


def test_images_of_another_size_are_refused() -> None:
    for shape in ((1, 3, 24, 30), (1, 1, 24, 24), (1, 3, 12, 12)):
        with pytest.raises(TenfoldError, match="this network sees images of 3 x 24 x 24, not"):
            network()(torch.zeros(shape))


# -- heads ----------------------------------------------------------------------------------------------


@torch.no_grad()
def test_other_heads_of_the_last_block_leave_weights_and_other_blocks_as_they_are() -> None:
    model, images = network(), draw_images()
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    before, below, features = (
        model(images),
        model.forward_features(images, 3),
        model.target_qkv(images).features,
    )
    model.with_last_heads(16)
    assert model.config.heads == (4, 4, 4, 16)
    assert {name: value.shape for name, value in weights.items()} == {
        name: value.shape for name, value in model.state_dict().items()
    }
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    assert torch.equal(model.forward_features(images, 3), below)
    assert model.relations(images)[0].shape == (3, 16, 17, 17)
    torch.testing.assert_close(model.target_qkv(images).features, features)
    assert not torch.allclose(model(images), before, atol=1e-3)
    torch.testing.assert_close(model(images), network(last_heads=16)(images))
    model.with_last_heads(4)
    assert torch.equal(model(images), before)


@torch.no_grad()
def test_reading_with_other_heads_changes_only_what_is_read() -> None:
    model, images = network(target_block=3), draw_images()
    usual, other = (model.read(images, {"qkv", "output"}, heads=heads) for heads in (None, 2))
    assert usual.qkv is not None and other.qkv is not None
    assert (usual.qkv.q.shape, other.qkv.q.shape) == ((3, 4, 17, 4), (3, 2, 17, 8))
    torch.testing.assert_close(other.qkv.features, usual.qkv.features)
    torch.testing.assert_close(other.output, usual.output)
    assert model.relations(images, heads=8)[1].shape == (3, 8, 17, 17)


def test_heads_and_blocks_that_do_not_fit_are_refused() -> None:
    with pytest.raises(TenfoldError, match="a width of 16 cannot be divided among 3 heads: choose a divisor"):
        network().with_last_heads(3)
    for changes, message in (
        ({"num_heads": 5}, "a width of 16 cannot be divided among 5 heads"),
        ({"last_heads": 12}, "a width of 16 cannot be divided among 12 heads"),
        ({"target_block": 5}, "there is no target block 5: this network has blocks 1 to 4"),
        ({"target_block": 0}, "there is no target block 0"),
        ({"patch_size": 5}, "patches of 5 pixels do not tile images of 24"),
        ({"depth": 0}, "at least 1"),
        ({"drop_path": (0.1,)}, "1 rates of stochastic depth are not one for each of 4 blocks"),
        ({"drop_path": (0.0, 0.0, 0.0, 1.0)}, "stochastic depth is from 0 to below 1"),
        ({"drop_path": (0.0, 0.0, 0.0, -0.1)}, "stochastic depth is from 0 to below 1"),
    ):
        with pytest.raises(TenfoldError, match=message):
            replace(SHAPE, **changes)


# -- stochastic depth -----------------------------------------------------------------------------------


def drop_rates(model: VisionTransformer) -> list[float]:
    drops: list[Any] = [block.drop_path for block in model.blocks]
    return [drop.drop_prob if isinstance(drop, DropPath) else 0.0 for drop in drops]


def test_stochastic_depth_is_constant_in_pre_training_but_for_the_last_block() -> None:
    with torch.device("meta"):
        assert drop_rates(build_student("tinymim_vit_tiny_patch16")) == [0.1] * 11 + [0.0]
        assert drop_rates(build_student(depth=3, drop_path=0.3)) == [0.3, 0.3, 0.0]
        assert drop_rates(build_teacher("mae_vit_base")) == [0.0] * 12


def test_stochastic_depth_is_linear_in_fine_tuning() -> None:
    with torch.device("meta"):
        rates = drop_rates(build_classifier("vit_tiny_patch16", drop_path_rate=0.2))
        assert rates == pytest.approx([0.2 * block / 11 for block in range(12)])
        assert drop_rates(build_classifier("vit_tiny_patch16")) == [0.0] * 12
        assert drop_rates(make_classifier(replace(SHAPE, depth=1), 2, drop_path_rate=0.2)) == [0.0]


@torch.no_grad()
def test_dropped_blocks_pass_tokens_on_in_training_alone() -> None:
    torch.manual_seed(0)
    model, images = network(drop_path=(0.9999, 0.9999, 0.9999, 0.0)), draw_images()
    inference = model.forward_features(images, 3)
    model.train()
    torch.testing.assert_close(model.forward_features(images, 3), model.embed(images))
    assert not torch.allclose(model.forward_features(images), model.embed(images), atol=1e-3)
    assert not torch.allclose(inference, model.embed(images), atol=1e-3)


# -- how it begins --------------------------------------------------------------------------------------


def test_pre_training_begins_with_xavier_and_fixed_positions() -> None:
    torch.manual_seed(0)
    model = build_student(embed_dim=192, depth=2, num_heads=6)
    layers = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    assert len(layers) == 8
    weights = {name: layer.weight for name, layer in layers.items()}
    weights["patch_embed.proj"] = model.patch_embed.proj.weight.flatten(1)
    for name, weight in weights.items():
        bound = math.sqrt(6 / sum(weight.shape))
        assert 0.999 * bound < weight.abs().max() <= bound, name
        assert float(weight.detach().std()) == pytest.approx(bound / 3**0.5, rel=0.01), name
        assert abs(weight.mean()) < 0.01 * bound, name
    assert not any(layer.bias.any() for layer in layers.values())
    bound = 768**-0.5  # of PyTorch's convolution
    assert 0.9 * bound < model.patch_embed.proj.bias.abs().max() <= bound  # type: ignore[union-attr]
    assert float(model.cls_token.detach().std()) == pytest.approx(0.02, rel=0.15)
    for module in model.modules():
        if isinstance(module, nn.LayerNorm):
            assert module.eps == 1e-6 and (module.weight == 1).all() and not module.bias.any()
    assert torch.equal(model.pos_embed[0], sincos_pos_embed(192, 14))
    frozen = [name for name, parameter in model.named_parameters() if not parameter.requires_grad]
    assert frozen == ["pos_embed"]


@pytest.mark.parametrize("shape", [ViTConfig(depth=2), replace(STAR, embed_dim=192, projection=256)])
def test_fine_tuning_from_scratch_begins_with_a_small_normal(shape: ViTConfig) -> None:
    torch.manual_seed(0)
    model = make_classifier(shape, 100)
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            assert float(module.weight.detach().std()) == pytest.approx(0.02, rel=0.03), name
            assert not module.bias.any()
    tokens = [model.cls_token, model.pos_embed] + ([model.dist_token] if model.dist_token is not None else [])
    for values in tokens:
        assert float(values.detach().std()) == pytest.approx(0.02, rel=0.2)
    weight = model.patch_embed.proj.weight
    bound = weight[0].numel() ** -0.5
    assert 0.99 * bound < weight.abs().max() <= bound
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_a_teacher_does_not_learn() -> None:
    teacher = build_teacher(img_size=24, patch_size=6, embed_dim=16, depth=2, num_heads=4)
    assert not teacher.training
    assert not any(parameter.requires_grad for parameter in teacher.parameters())


# -- architectures --------------------------------------------------------------------------------------


def size_of(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize(
    ("name", "size", "learned"),
    [("tiny", 5_524_416, 5_486_592), ("small", 21_665_664, 21_590_016), ("base", 85_798_656, 85_647_360)],
)
def test_students_have_the_parameters_of_the_paper_s_networks(name: str, size: int, learned: int) -> None:
    with torch.device("meta"):
        student = build_student(f"tinymim_vit_{name}_patch16")
    assert size_of(student) == size
    assert sum(value.numel() for value in student.parameters() if value.requires_grad) == learned


@pytest.mark.parametrize(
    ("name", "size"),
    [("tiny", 5_524_416), ("small", 21_665_664), ("base", 85_798_656), ("large", 303_301_632)],
)
def test_teachers_have_the_parameters_of_the_paper_s_networks(name: str, size: int) -> None:
    with torch.device("meta"):
        assert size_of(build_teacher(f"mae_vit_{name}")) == size


@pytest.mark.parametrize("pools", [True, False])
@pytest.mark.parametrize(("name", "size"), [("tiny", 5_717_416), ("small", 22_050_664), ("base", 86_567_656)])
def test_classifiers_have_the_parameters_of_the_paper_s_networks(name: str, size: int, pools: bool) -> None:
    with torch.device("meta"):
        assert size_of(build_classifier(f"vit_{name}_patch16", global_pool=pools)) == size


def gmacs_of(compute: Callable[[Tensor], Any], products: int = 0) -> float:
    """10^9 multiplications of one image, and of products of its 197 tokens with one another, as wide as that."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        compute(torch.zeros(1, 3, 224, 224, device="meta"))
    return float(round((counter.get_total_flops() / 2 + products * 197**2) / 1e9, 3))


@pytest.mark.parametrize(
    ("name", "relations", "classes"),
    [("tiny", 1.188, 1.254), ("small", 4.337, 4.599), ("base", 16.517, 17.564)],
)
def test_networks_compute_as_much_as_the_paper_s(name: str, relations: float, classes: float) -> None:
    with torch.device("meta"):
        student = build_student(f"tinymim_vit_{name}_patch16").eval()
        classifier = build_classifier(f"vit_{name}_patch16").eval()
    assert gmacs_of(student.target_qkv, 2 * student.config.embed_dim) == relations
    assert gmacs_of(classifier) == classes


def test_the_large_teacher_stops_in_its_target_block() -> None:
    with torch.device("meta"):
        teacher = build_teacher("mae_vit_large")
    assert gmacs_of(teacher.target_qkv, 2 * 1024) == 44.345


def test_networks_have_the_paper_s_heads_and_target_blocks() -> None:
    assert [config.heads for config in STUDENTS.values()] == [
        (*(heads,) * 11, last) for heads, last in ((6, 12), (6, 12), (12, 16))
    ]
    assert [(c.depth, c.num_heads, c.target_block) for c in TEACHERS.values()] == [
        (12, 3, 12),
        (12, 6, 12),
        (12, 12, 12),
        (24, 16, 18),
    ]
    assert [c.heads for name, c in CLASSIFIERS.items() if "large" not in name] == [
        (heads,) * 12 for heads in (3, 6, 12, 12)
    ]


def test_named_networks_can_be_changed() -> None:
    with torch.device("meta"):
        assert build_teacher("mae_vit_large").target_block == 18
        assert build_teacher("mae_vit_large", target_block=21).target_block == 21
        assert build_teacher("mae_vit_large", depth=6).target_block == 6
        assert build_teacher("mae_vit_base", depth=6, target_block=4).target_block == 4
        student = build_student("tinymim_vit_tiny_patch16", img_size=32, patch_size=4, depth=3, last_heads=16)
    assert student.config.heads == (6, 6, 16) and student.pos_embed.shape == (1, 65, 192)


def test_unknown_networks_are_said() -> None:
    for build, kind in ((build_teacher, "mae_vit_tiny"), (build_student, "tinymim_vit_tiny_patch16")):
        with pytest.raises(TenfoldError, match=f"there is no network 'vit_giant' here; choose one of {kind}"):
            build("vit_giant")
    with pytest.raises(TenfoldError, match="there is no network 'mae_vit_base' here; choose one of vit_tiny"):
        build_classifier("mae_vit_base")
    with pytest.raises(TenfoldError, match="there is no target block 13"):
        build_teacher("mae_vit_base", target_block=13)


BLOCK_KEYS = ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2")


def official_keys(*around: str) -> set[str]:
    """Keys of the authors' files: the trunk, and what stands around it."""
    inside = {f"blocks.{i}.{part}.{kind}" for i in range(12) for part in BLOCK_KEYS for kind in KINDS}
    trunk = {"cls_token", "pos_embed", "patch_embed.proj.weight", "patch_embed.proj.bias"}
    return inside | trunk | {f"{part}.{kind}" for part in around for kind in KINDS}


KINDS = ("weight", "bias")


def test_names_of_tensors_are_those_of_the_released_files() -> None:
    with torch.device("meta"):
        student = build_student("tinymim_vit_tiny_patch16").state_dict()
        pooling = build_classifier("vit_tiny_patch16").state_dict()
        cls = build_classifier("vit_tiny_patch16", global_pool=False).state_dict()
        star = build_classifier("tinymim_star_tiny").state_dict()
    assert student.keys() == official_keys("norm") and len(student) == 150
    assert pooling.keys() == official_keys("fc_norm", "head")
    assert cls.keys() == official_keys("norm", "head")
    further = ("conv1x1.0", "conv1x1.1", "fc_norm", "head", "head_dist")
    assert star.keys() == official_keys(*further) | {"dist_token"}
    shapes = {name: tuple(value.shape) for name, value in star.items()}
    assert (
        shapes
        | {
            "cls_token": (1, 1, 192),
            "dist_token": (1, 1, 192),
            "pos_embed": (1, 198, 192),
            "conv1x1.0.weight": (192,),
            "conv1x1.1.weight": (1280, 192),
            "conv1x1.1.bias": (1280,),
            "fc_norm.weight": (1280,),
            "head.weight": (1000, 1280),
            "head_dist.weight": (1000, 1280),
            "blocks.11.attn.qkv.weight": (576, 192),
            "blocks.0.mlp.fc1.weight": (768, 192),
            "patch_embed.proj.weight": (192, 3, 16, 16),
        }
        == shapes
    )


# -- TinyMIM* -------------------------------------------------------------------------------------------


@torch.no_grad()
def test_the_distilled_classifier_has_two_heads_in_training_and_their_mean_at_test() -> None:
    model, images = disturbed(make_classifier(STAR, 5)), draw_images()
    x = plain_tokens(model, images)
    for block in model.blocks:
        x = plain_block(block, x, 4)
    norm, linear, _ = model.conv1x1
    x = F.layer_norm(x, (16,), norm.weight, norm.bias, norm.eps) @ linear.weight.T + linear.bias
    x = F.layer_norm(F.gelu(x), (20,), model.fc_norm.weight, model.fc_norm.bias, 1e-6)
    logits = x[:, 0] @ model.head.weight.T + model.head.bias
    distilled = x[:, 1] @ model.head_dist.weight.T + model.head_dist.bias
    torch.testing.assert_close(model(images), (logits + distilled) / 2)
    torch.testing.assert_close(model.train()(images), (logits, distilled))


def test_the_distilled_classifier_has_the_paper_s_backbone() -> None:
    with torch.device("meta"):
        star = build_classifier("tinymim_star_tiny")
    assert star.config.heads == (12,) * 12
    backbone = sum(value.numel() for name, value in star.named_parameters() if not name.startswith("head"))
    assert round(backbone / 1e6, 1) == 5.8


# -- positions ------------------------------------------------------------------------------------------


def test_positions_are_what_they_are_defined_to_be() -> None:
    dim, grid = 12, 3
    table = sincos_pos_embed(dim, grid)
    assert table.shape == (10, dim) and table.dtype == torch.float32 and not table[0].any()
    for row in range(grid):
        for column in range(grid):
            angles = [[place / 10000 ** (j / (dim / 4)) for j in range(dim // 4)] for place in (column, row)]
            expected = [f(a) for half in angles for f in (math.sin, math.cos) for a in half]
            torch.testing.assert_close(table[1 + row * grid + column], torch.tensor(expected))
    assert torch.equal(sincos_pos_embed(dim, grid, cls_token=False), table[1:])


def test_positions_need_a_width_that_is_a_multiple_of_four() -> None:
    with pytest.raises(TenfoldError, match="needs a width that is a multiple of 4, not 10"):
        sincos_pos_embed(10, 3)


@pytest.mark.parametrize("extra", [0, 1, 2])
def test_positions_follow_another_grid_and_further_tokens_stay(extra: int) -> None:
    table = torch.randn(1, extra + 16, 6, generator=torch.Generator().manual_seed(0))
    assert torch.equal(resize_pos_embed(table, 4, extra), table)
    found = resize_pos_embed(table, 7, extra)
    assert found.shape == (1, extra + 49, 6) and torch.equal(found[:, :extra], table[:, :extra])
    constant = resize_pos_embed(table[:, :1].expand(1, extra + 16, 6), 7, extra)
    torch.testing.assert_close(constant, table[:, :1].expand(1, extra + 49, 6))


def test_rows_and_columns_of_positions_are_not_exchanged() -> None:
    rows = torch.arange(6.0).repeat_interleave(6)
    table = torch.stack((rows, rows.reshape(6, 6).T.flatten()), 1)[None]
    down, across = resize_pos_embed(table, 12, 0).unflatten(1, (12, 12))[0].unbind(-1)
    torch.testing.assert_close(down, across.T)
    torch.testing.assert_close(down, down[:, :1].expand(12, 12))
    assert (down[:, 0].diff() > 0).all()


@pytest.mark.parametrize(("rows", "extra"), [(17, 2), (16, 1), (1, 1)])
def test_positions_that_are_no_square_are_refused(rows: int, extra: int) -> None:
    with pytest.raises(TenfoldError, match=f"a position table of {rows} rows is no square grid and {extra}"):
        resize_pos_embed(torch.zeros(1, rows, 4), 3, extra)


# -- masked autoencoding --------------------------------------------------------------------------------


@pytest.mark.parametrize(("patches", "ratio", "seen"), [(196, 0.75, 49), (36, 0.75, 9), (16, 0.5, 8)])
def test_a_mask_hides_its_share_and_can_be_undone(patches: int, ratio: float, seen: int) -> None:
    noise = torch.rand(5, patches, generator=torch.Generator().manual_seed(0))
    mask = random_mask(noise, ratio)
    assert mask.keep.shape == (5, seen) and mask.restore.shape == (5, patches)
    for image in range(5):
        kept = mask.keep[image].tolist()
        hidden = sorted(set(range(patches)) - set(kept))
        assert len(set(kept)) == seen
        assert noise[image, kept].max() < noise[image, hidden].min()
        assert mask.restore[image, kept].tolist() == list(range(seen))
        assert sorted(mask.restore[image, hidden].tolist()) == list(range(seen, patches))
    assert len({tuple(sorted(kept.tolist())) for kept in mask.keep}) == 5


def test_masks_that_leave_nothing_are_refused() -> None:
    with pytest.raises(TenfoldError, match="a mask of 90% leaves nothing of 4 patches: lower the mask ratio"):
        random_mask(torch.rand(1, 4), 0.9)


def reconstruction_by_patch(predicted: Tensor, images: Tensor, mask: Mask, size: int) -> Tensor:
    """The definition, one image and patch after the other."""
    errors, columns = [], images.shape[3] // size
    for image in range(len(images)):
        for patch in range(predicted.shape[1]):
            if patch in mask.keep[image].tolist():
                continue
            top, left = size * (patch // columns), size * (patch % columns)
            pixels = images[image, :, top : top + size, left : left + size].flatten()
            target = (pixels - pixels.mean()) / (pixels.var() + 1e-6).sqrt()
            errors.append(F.mse_loss(predicted[image, patch], target))
    return torch.stack(errors).mean()


def test_reconstruction_is_of_masked_patches_normalised_one_by_one() -> None:
    generator = torch.Generator().manual_seed(0)
    images, predicted = (
        torch.randn(2, *shape, generator=generator, requires_grad=True) for shape in ((3, 12, 12), (9, 48))
    )
    mask = random_mask(torch.rand(2, 9, generator=generator), 0.6)
    loss = reconstruction_loss(predicted, images, mask, 4)
    torch.testing.assert_close(loss, reconstruction_by_patch(predicted, images, mask, 4))
    (gradient,) = torch.autograd.grad(loss, predicted)
    seen = torch.zeros(2, 9, dtype=torch.bool).scatter(1, mask.keep, True)
    assert not gradient[seen].any() and gradient[~seen].any(-1).all()
    # Brightness and contrast of an image are not to be predicted.
    torch.testing.assert_close(
        reconstruction_loss(predicted, 5 * images + 2, mask, 4), loss, rtol=1e-4, atol=0
    )


def test_reconstruction_of_flat_patches_is_finite() -> None:
    mask = random_mask(torch.rand(1, 9), 0.5)
    loss = reconstruction_loss(torch.ones(1, 9, 48), torch.full((1, 3, 12, 12), 0.7), mask, 4)
    assert float(loss) == pytest.approx(1, rel=1e-2)


@torch.no_grad()
def test_the_decoder_puts_every_token_in_its_place() -> None:
    decoder = disturbed(MAEDecoder(SHAPE, DecoderConfig(8, 2, 2)))
    decoder.decoder_pos_embed = sincos_pos_embed(8, 4)[None].double()
    encoded = torch.randn(2, 5, 16, dtype=torch.float64)
    mask = random_mask(torch.rand(2, 16, generator=torch.Generator().manual_seed(0)), 0.75)
    x = encoded @ decoder.decoder_embed.weight.T + decoder.decoder_embed.bias
    tokens = decoder.mask_token.expand(2, 17, 8).clone()
    tokens[:, 0] = x[:, 0]
    for image in range(2):
        tokens[image, 1 + mask.keep[image]] = x[image, 1:]
    tokens = tokens + decoder.decoder_pos_embed
    for block in decoder.decoder_blocks:
        tokens = plain_block(block, tokens, 2)
    expected = decoder.decoder_pred(decoder.decoder_norm(tokens))[:, 1:]
    found = decoder(encoded, mask.restore)
    assert found.shape == (2, 16, 108)
    torch.testing.assert_close(found, expected)


def test_the_decoder_begins_as_maes() -> None:
    torch.manual_seed(0)
    decoder = MAEDecoder(ViTConfig(img_size=32, patch_size=8), DecoderConfig(128, 1, 4))
    assert float(decoder.mask_token.detach().std()) == pytest.approx(0.02, rel=0.2)
    for name, module in decoder.named_modules():
        if isinstance(module, nn.Linear):
            bound = math.sqrt(6 / sum(module.weight.shape))
            assert 0.99 * bound < module.weight.abs().max() <= bound, name
            assert not module.bias.any()
    assert "decoder_pos_embed" not in dict(decoder.named_parameters())


def test_impossible_decoders_are_refused() -> None:
    with pytest.raises(TenfoldError, match="the decoder's width, depth and heads are at least 1"):
        DecoderConfig(depth=0)
    with pytest.raises(TenfoldError, match="a width of 16 cannot be divided among 5 heads"):
        DecoderConfig(embed_dim=16, num_heads=5)
    with pytest.raises(TenfoldError, match="multiple of 4"):
        MAEDecoder(SHAPE, DecoderConfig(embed_dim=6, num_heads=2))
