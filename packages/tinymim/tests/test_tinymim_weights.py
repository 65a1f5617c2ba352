"""Weights that come in and go out, parameter groups, and the learning rate."""

from __future__ import annotations

import math
from argparse import Namespace
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from tenfold.shared.logging import TenfoldError
from tenfold.tinymim.architectures import build_classifier, build_student, make_classifier
from tenfold.tinymim.checkpoints import (
    from_timm,
    load_official_state_dict,
    load_weights,
    timm_model,
    transfer_pretrained,
    unwrapped,
)
from tenfold.tinymim.mae import DecoderConfig, MAEDecoder
from tenfold.tinymim.optim import (
    cosine_lr,
    layer_decay_groups,
    layer_of,
    optimizer_groups,
    pretrain_decay_groups,
)
from tenfold.tinymim.positions import resize_pos_embed
from tenfold.tinymim.targets import Objective, TargetConfig
from tenfold.tinymim.vit import VisionTransformer, ViTConfig

SHAPE = ViTConfig(img_size=24, patch_size=6, embed_dim=16, depth=2, num_heads=4)
STAR = replace(SHAPE, distillation_token=True, projection=20)


def disturbed(network: Any, seed: int = 0) -> Any:
    """No two networks share a weight."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in network.parameters():
        parameter.data.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return network.eval()


def pretrained(**changes: Any) -> VisionTransformer:
    network: VisionTransformer = disturbed(VisionTransformer(replace(SHAPE, last_heads=8, **changes)))
    return network


def images(size: int = 24) -> Tensor:
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(5))


def same(first: nn.Module, second: nn.Module) -> bool:
    one, other = first.state_dict(), second.state_dict()
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


# -- loading --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [SHAPE, replace(SHAPE, num_classes=5), replace(STAR, num_classes=5)])
@pytest.mark.parametrize("wrapper", [None, "model", "network", "state_dict"])
@torch.no_grad()
def test_weights_go_out_and_come_back(shape: ViTConfig, wrapper: str | None, tmp_path: Path) -> None:
    source, model = disturbed(VisionTransformer(shape)), VisionTransformer(shape).eval()
    weights = source.state_dict()
    content = weights if wrapper is None else {wrapper: weights, "epoch": 3, "optimizer": {"state": {}}}
    torch.save(content, tmp_path / "weights.pth")
    load_weights(model, tmp_path / "weights.pth")
    assert same(model, source)
    assert torch.equal(model(images()), source(images()))


def test_prefixes_of_distributed_training_are_left_out() -> None:
    source, model = pretrained(), VisionTransformer(SHAPE)
    weights = {f"module.{name}": value for name, value in source.state_dict().items()}
    load_official_state_dict(model, {"model": weights})
    assert same(model, source)


def test_the_decoder_in_a_file_of_maes_is_left_out() -> None:
    source, model = pretrained(), VisionTransformer(SHAPE)
    decoder = disturbed(MAEDecoder(SHAPE, DecoderConfig(8, 2, 2)))
    inside = {**decoder.state_dict(), "decoder_pos_embed": torch.zeros(1, 17, 8)}
    assert {name.split(".")[0] for name in inside} == {
        "mask_token",
        "decoder_embed",
        "decoder_pos_embed",
        "decoder_blocks",
        "decoder_norm",
        "decoder_pred",
    }
    weights = {"model": {**source.state_dict(), **inside}}
    assert unwrapped(weights).keys() == source.state_dict().keys()
    load_official_state_dict(model, weights)
    assert same(model, source)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"blocks.1.attn.qkv.bias": None},
            r"1 tensors are missing, the first is blocks\.1\.attn\.qkv\.bias: is it",
        ),
        ({"norm.weight": None, "norm.bias": None}, r"2 tensors are missing, the first is norm\.bias"),
        (
            {"blocks.2.norm1.weight": torch.zeros(16)},
            r"1 tensors are not expected, the first is blocks\.2\.norm1",
        ),
        ({"head.bias": torch.zeros(16)}, r"1 tensors are not expected, the first is head\.bias"),
        (
            {"blocks.0.mlp.fc1.weight": torch.zeros(48, 16)},
            r"blocks\.0\.mlp\.fc1\.weight has shape \(48, 16\), not \(64, 16\): is it another size",
        ),
        ({"pos_embed": torch.zeros(1, 17, 12)}, r"pos_embed has shape \(1, 17, 12\), not \(1, 17, 16\)"),
        ({"pos_embed": torch.zeros(1, 18, 16)}, "a position table of 18 rows is no square grid and 1"),
    ],
)
def test_tensors_that_do_not_fit_are_named_and_nothing_is_changed(
    changes: dict[str, Tensor | None], message: str
) -> None:
    model = VisionTransformer(SHAPE)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    weights = {
        name: value for name, value in (pretrained().state_dict() | changes).items() if value is not None
    }
    with pytest.raises(TenfoldError, match=message):
        load_official_state_dict(model, weights)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_without_strictness_what_is_missing_stays_and_what_is_left_over_is_left_out() -> None:
    source, model = pretrained(), VisionTransformer(SHAPE)
    norm = disturbed(model.norm, 3).weight.clone()
    weights = source.state_dict() | {"head.bias": torch.zeros(5)}
    del weights["norm.weight"]
    load_official_state_dict(model, weights, strict=False)
    assert model.norm is not None and torch.equal(model.norm.weight, norm)
    assert all(torch.equal(v, weights[n]) for n, v in model.state_dict().items() if n != "norm.weight")
    weights["cls_token"] = torch.zeros(1, 1, 8)
    with pytest.raises(TenfoldError, match="cls_token has shape"):
        load_official_state_dict(model, weights, strict=False)


@pytest.mark.parametrize("shape", [SHAPE, replace(STAR, num_classes=5)])
def test_positions_of_a_file_follow_the_networks_images(shape: ViTConfig) -> None:
    source, model = disturbed(VisionTransformer(shape)), VisionTransformer(replace(shape, img_size=36))
    load_official_state_dict(model, source.state_dict())
    expected = resize_pos_embed(source.pos_embed, 6, shape.extra_tokens)
    assert torch.equal(model.pos_embed, expected)
    assert not same(model, source)
    with torch.no_grad():
        assert model.eval()(images(36)).isfinite().all()


def test_files_that_hold_no_network_are_said(tmp_path: Path) -> None:
    torch.save({"epoch": 3}, tmp_path / "empty.pth")
    torch.save({"model": {"conv1.weight": torch.zeros(1)}}, tmp_path / "resnet.pth")
    (tmp_path / "text.pth").write_text("no checkpoint")
    model = VisionTransformer(SHAPE)
    with pytest.raises(TenfoldError, match=r"empty\.pth: this file holds no weights of a network"):
        load_weights(model, tmp_path / "empty.pth")
    with pytest.raises(TenfoldError, match=r"resnet\.pth: \d+ tensors are missing, the first is blocks"):
        load_weights(model, tmp_path / "resnet.pth")
    for name in ("text.pth", "absent.pth"):
        with pytest.raises(TenfoldError, match=name):
            load_weights(model, tmp_path / name)


def test_a_file_of_the_authors_holds_their_trainers_state_too(tmp_path: Path) -> None:
    source, model = pretrained(), VisionTransformer(SHAPE)
    optimizer = torch.optim.AdamW(source.parameters())
    state = {"optimizer": optimizer.state_dict(), "scaler": {"scale": 65536.0}, "epoch": 299}
    arguments = Namespace(lr=2.4e-3, output_dir="somewhere")
    torch.save({"model": source.state_dict(), **state, "args": arguments}, tmp_path / "TinyMIM-PT-B.pth")
    load_weights(model, tmp_path / "TinyMIM-PT-B.pth")
    assert same(model, source)


# -- transfer to a classifier ---------------------------------------------------------------------------


@pytest.mark.parametrize("pools", [True, False])
@torch.no_grad()
def test_a_classifier_begins_with_the_pre_trained_trunk(pools: bool) -> None:
    source, model = pretrained(), make_classifier(SHAPE, 5, pools).eval()
    missing, unexpected = transfer_pretrained(model, source.state_dict())
    norm = ["fc_norm.weight", "fc_norm.bias"] if pools else []
    assert sorted(missing) == sorted([*norm, "head.weight", "head.bias"])
    assert sorted(unexpected) == (["norm.bias", "norm.weight"] if pools else [])
    source.with_last_heads(4)
    assert torch.equal(model.forward_features(images()), source.forward_features(images()))
    assert model.pos_embed.requires_grad


def test_the_new_head_is_almost_zero() -> None:
    model = build_classifier("vit_tiny_patch16")
    transfer_pretrained(
        model, build_student("tinymim_vit_tiny_patch16").state_dict(), torch.Generator().manual_seed(0)
    )
    assert model.head is not None
    assert float(model.head.weight.detach().std()) == pytest.approx(2e-5, rel=0.01)
    assert abs(model.head.weight.mean()) < 1e-6
    assert not model.head.bias.any()


def test_the_new_head_is_the_generators() -> None:
    heads = []
    for seed in (0, 0, 1):
        model = make_classifier(SHAPE, 5)
        transfer_pretrained(model, pretrained().state_dict(), torch.Generator().manual_seed(seed))
        assert model.head is not None
        heads.append(model.head.weight.detach())
    assert torch.equal(heads[0], heads[1]) and not torch.equal(heads[0], heads[2])


@pytest.mark.parametrize("size", [24, 36])
@torch.no_grad()
def test_the_distilled_classifier_begins_with_the_pre_trained_trunk(size: int) -> None:
    source, model = pretrained(), make_classifier(replace(STAR, img_size=size), 5).eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    missing, unexpected = transfer_pretrained(model, source.state_dict())
    parts = ("conv1x1.0", "conv1x1.1", "fc_norm", "head", "head_dist")
    new = {f"{part}.{kind}" for part in parts for kind in ("weight", "bias")} | {"dist_token"}
    assert set(missing) == new
    assert sorted(unexpected) == ["norm.bias", "norm.weight"]
    found = model.state_dict()
    trunk = source.state_dict().keys() - {"pos_embed", "norm.weight", "norm.bias"}
    assert all(torch.equal(found[name], source.state_dict()[name]) for name in trunk)
    expected = resize_pos_embed(source.pos_embed, size // 6)
    assert torch.equal(found["pos_embed"][:, :1], expected[:, :1])
    assert torch.equal(found["pos_embed"][:, 2:], expected[:, 1:])
    for name in new - {"head.weight", "head_dist.weight"}:
        assert torch.equal(found[name], before[name]), name
    assert max(found[name].abs().max() for name in ("head.weight", "head_dist.weight")) < 1e-3


def test_positions_follow_the_classifiers_images() -> None:
    source, model = pretrained(), make_classifier(replace(SHAPE, img_size=48), 5)
    transfer_pretrained(model, source.state_dict())
    assert torch.equal(model.pos_embed, resize_pos_embed(source.pos_embed, 8))


def test_a_classifiers_head_for_other_classes_is_left_out() -> None:
    source, model = disturbed(make_classifier(SHAPE, 7)), make_classifier(SHAPE, 5)
    missing, unexpected = transfer_pretrained(model, source.state_dict())
    assert sorted(missing) == sorted(unexpected) == ["head.bias", "head.weight"]
    assert model.fc_norm is not None and torch.equal(model.fc_norm.weight, source.fc_norm.weight)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        (replace(SHAPE, depth=3), r"blocks\.2\.norm1\.weight does not fit"),
        (replace(SHAPE, depth=1), r"blocks\.1\.norm1\.weight does not fit"),
        (replace(SHAPE, embed_dim=32), r"cls_token has shape \(1, 1, 16\), not \(1, 1, 32\)"),
        (
            replace(SHAPE, patch_size=4),
            r"patch_embed\.proj\.weight has shape \(16, 3, 6, 6\), not \(16, 3, 4, 4\)",
        ),
    ],
    ids=["deeper", "shallower", "wider", "other patches"],
)
def test_a_trunk_of_another_shape_is_refused(shape: ViTConfig, message: str) -> None:
    model = make_classifier(shape, 5)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(TenfoldError, match=message):
        transfer_pretrained(model, pretrained().state_dict())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


# -- timm -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "shape",
    [SHAPE, replace(SHAPE, num_classes=5), replace(SHAPE, num_classes=5, global_pool=False, mlp_ratio=2)],
    ids=["tokens", "mean", "cls"],
)
@torch.no_grad()
def test_timms_network_gives_the_same_and_comes_back(shape: ViTConfig) -> None:
    source = disturbed(VisionTransformer(shape))
    other = timm_model(source)
    assert isinstance(other, timm.models.VisionTransformer) and not other.training
    torch.testing.assert_close(other(images()), source(images()))
    back = from_timm(other.state_dict(), shape)
    assert same(back, source)
    assert torch.equal(back.eval()(images()), source(images()))


@torch.no_grad()
def test_weights_of_timms_own_network_give_what_it_gives() -> None:
    torch.manual_seed(0)
    source = timm.models.VisionTransformer(
        img_size=24, patch_size=6, embed_dim=16, depth=2, num_heads=4, num_classes=5
    )
    disturbed(source)
    model = from_timm(source.state_dict(), replace(SHAPE, num_classes=5, global_pool=False)).eval()
    torch.testing.assert_close(model(images()), source(images()), rtol=1e-4, atol=1e-5)


def test_what_timm_has_not_is_refused() -> None:
    with pytest.raises(TenfoldError, match=r"timm has no network with TinyMIM\*'s projection"):
        timm_model(make_classifier(STAR, 5))
    source = pretrained()
    with pytest.raises(TenfoldError, match="but the last here has 8: read it with 4"):
        timm_model(source)
    source.with_last_heads(4)
    assert isinstance(timm_model(source), timm.models.VisionTransformer)


def test_weights_of_timms_other_networks_are_refused() -> None:
    make = partial(timm.models.VisionTransformer, img_size=24, patch_size=6, embed_dim=16, num_heads=4)
    shape = replace(SHAPE, num_classes=5, global_pool=False)
    for options, message in (
        ({"depth": 2, "init_values": 0.1}, r"not expected, the first is blocks\.0\.ls1\.gamma"),
        ({"depth": 3}, r"not expected, the first is blocks\.2"),
        ({"depth": 2, "qkv_bias": False}, r"missing, the first is blocks\.0\.attn\.qkv\.bias"),
        ({"depth": 2, "reg_tokens": 2}, r"position table|not expected, the first is reg_token"),
    ):
        with pytest.raises(TenfoldError, match=message):
            from_timm(make(num_classes=5, **options).state_dict(), shape)


# -- parameter groups -----------------------------------------------------------------------------------


def test_layers_of_parameters() -> None:
    layers = {name: layer_of(name, 2) for name, _ in make_classifier(STAR, 5).named_parameters()}
    assert {name.split(".")[0] for name, layer in layers.items() if layer == 0} == {
        "cls_token",
        "pos_embed",
        "patch_embed",
    }
    assert all(layers[name] == int(name[7]) + 1 for name in layers if name.startswith("blocks."))
    last = {name.split(".")[0] for name, layer in layers.items() if layer == 3}
    assert last == {"dist_token", "conv1x1", "fc_norm", "head", "head_dist"}
    assert layer_of("blocks.11.norm1.bias", 12) == 12 and layer_of("norm.weight", 12) == 13


def test_rates_of_layers_fall_towards_the_images() -> None:
    with torch.device("meta"):
        model = build_classifier("vit_tiny_patch16")
    groups = layer_decay_groups(model, 0.05, 0.75)
    assert groups.keys() == dict(model.named_parameters()).keys()
    assert groups["cls_token"] == pytest.approx((0.02376, 0), rel=1e-3)
    assert groups["pos_embed"] == (0.75**13, 0)
    assert groups["patch_embed.proj.weight"] == (0.75**13, 0.05)
    assert groups["patch_embed.proj.bias"] == (0.75**13, 0)
    for block in range(12):
        assert groups[f"blocks.{block}.mlp.fc1.weight"] == (0.75 ** (12 - block), 0.05)
        assert groups[f"blocks.{block}.norm2.weight"] == (0.75 ** (12 - block), 0)
    assert groups["head.weight"] == (1, 0.05) and groups["head.bias"] == groups["fc_norm.weight"] == (1, 0)


def test_what_does_not_learn_is_in_no_group() -> None:
    model = make_classifier(SHAPE, 5)
    model.pos_embed.requires_grad_(False)
    assert "pos_embed" not in layer_decay_groups(model, 0.05, 0.75)
    objective = Objective(build_student(depth=2, embed_dim=24, num_heads=3), TargetConfig("cls"), 8)
    without, with_decay = pretrain_decay_groups(objective)
    assert {"student.norm.weight", "student.pos_embed"}.isdisjoint(without + with_decay)
    learning = {name for name, value in objective.named_parameters() if value.requires_grad}
    assert learning == {*without, *with_decay} and len(learning) == len(without + with_decay)
    assert {"student.cls_token", "projections.0.weight"} <= set(with_decay)
    assert {"projections.0.bias", "student.patch_embed.proj.bias"} <= set(without)


@pytest.mark.parametrize("decay", [0.0, 1.1, -0.5])
def test_impossible_layer_decays_are_refused(decay: float) -> None:
    with pytest.raises(TenfoldError, match="layer decay is from above 0 to 1"):
        layer_decay_groups(make_classifier(SHAPE, 5), 0.05, decay)


@pytest.mark.parametrize("layer_decay", [1.0, 0.65])
def test_groups_hold_every_parameter_once(layer_decay: float) -> None:
    model = make_classifier(STAR, 5)
    settings = layer_decay_groups(model, 0.05, layer_decay)
    groups = optimizer_groups(model, settings.__getitem__)
    held = [id(value) for group in groups for value in group["params"]]
    assert sorted(held) == sorted(id(value) for value in model.parameters())
    assert len(groups) == (2 if layer_decay == 1 else 8)  # with and without weight decay, in each of 4 layers
    of = {id(v): (g["lr_scale"], g["weight_decay"]) for g in groups for v in g["params"]}
    assert all(of[id(value)] == settings[name] for name, value in model.named_parameters())
    torch.optim.AdamW(groups, lr=1e-3)


# -- the learning rate ----------------------------------------------------------------------------------


PRETRAINING = {"lr": 2.4e-3, "min_lr": 0.0, "warmup_epochs": 15, "epochs": 300}
FINETUNING = {"lr": 2e-3, "min_lr": 1e-6, "warmup_epochs": 5, "epochs": 100}


@pytest.mark.parametrize(
    ("epoch", "settings", "rate"),
    [
        (0, PRETRAINING, 0),
        (7.5, PRETRAINING, 1.2e-3),
        (15, PRETRAINING, 2.4e-3),
        (157.5, PRETRAINING, 1.2e-3),
        (300, PRETRAINING, 0),
        (1, FINETUNING, 4e-4),
        (5, FINETUNING, 2e-3),
        (52.5, FINETUNING, (2e-3 + 1e-6) / 2),
        (100, FINETUNING, 1e-6),
    ],
)
def test_the_rate_at_notable_epochs(epoch: float, settings: dict[str, float], rate: float) -> None:
    assert cosine_lr(epoch, **settings) == pytest.approx(rate, rel=1e-9, abs=1e-12)


def test_the_rate_rises_by_a_line_and_falls_by_a_cosine() -> None:
    rates = [cosine_lr(epoch / 4, **FINETUNING) for epoch in range(401)]
    rises = torch.tensor(rates[:21], dtype=torch.float64).diff()
    torch.testing.assert_close(rises, torch.full((20,), 1e-4, dtype=torch.float64))
    assert all(earlier > later for earlier, later in pairwise(rates[20:]))
    quarter = 1e-6 + (2e-3 - 1e-6) * (1 + math.cos(math.pi / 4)) / 2
    assert cosine_lr(5 + 95 / 4, **FINETUNING) == pytest.approx(quarter)


def test_without_warm_up_the_rate_begins_at_its_peak() -> None:
    assert cosine_lr(0, lr=1.0, min_lr=0.1, warmup_epochs=0, epochs=10) == 1
