"""The network: timm's conventions, windows, attention before and after the expansion, weights from elsewhere."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from timm.models import group_parameters
from timm.optim import param_groups_layer_decay
from torch import Tensor, nn

from tenfold.emo import registry
from tenfold.emo.blocks import InvertedResidualMobileBlock, WindowAttention
from tenfold.emo.checkpoints import (
    load_official_block,
    load_official_state_dict,
    load_weights,
    timm_name,
    to_official,
    to_ours,
)
from tenfold.emo.complexity import count_parameters
from tenfold.emo.model import ARCHITECTURES, EMO, Architecture, build_model, features
from tenfold.emo.windows import Windows
from tenfold.shared.logging import TenfoldError

SMALL = Architecture(
    (1, 1, 2, 2), (8, 12, 16, 24), head_widths=(8, 8, 8, 8), stem=8, window_sizes=(4, 4, 4, 4)
)


def small(num_classes: int = 5, **changes: Any) -> EMO:
    torch.manual_seed(0)
    return EMO(replace(SMALL, **changes), num_classes).eval()


# -- timm -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "parameters", "without_head", "entries"),
    [
        ("emo_1m", 1_361_168, 1_192_168, 217),
        ("emo_2m", 2_377_472, 2_176_472, 258),
        ("emo_5m", 5_108_848, 4_819_848, 258),
        ("emo_6m", 6_168_496, 5_847_496, 258),
    ],
)
def test_timm_creates_networks_of_the_published_sizes(
    name: str, parameters: int, without_head: int, entries: int
) -> None:
    model = timm.create_model(name)
    assert isinstance(model, EMO)
    assert count_parameters(model) == parameters
    assert len(to_official(model)) == entries
    model.reset_classifier(0)
    assert count_parameters(model) == without_head


def test_timm_lists_the_networks_and_what_they_expect() -> None:
    assert set(ARCHITECTURES) <= set(timm.list_models("emo_*"))
    assert set(registry.default_cfgs) == set(ARCHITECTURES)
    config = timm.create_model("emo_1m.in1k").pretrained_cfg
    assert (config["architecture"], config["tag"], config["num_classes"]) == ("emo_1m", "in1k", 1000)
    assert (config["input_size"], config["pool_size"]) == ((3, 224, 224), (7, 7))
    assert (config["crop_pct"], config["interpolation"]) == (0.875, "bicubic")
    assert (config["mean"], config["std"]) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_first_convolution_and_classifier_are_where_timm_is_told(name: str) -> None:
    model = timm.create_model(name)
    assert model.get_submodule(model.pretrained_cfg["first_conv"]) is model.stem.conv
    assert model.get_submodule(model.pretrained_cfg["classifier"]) is model.get_classifier()


@torch.no_grad()
def test_features_only_gives_maps_of_four_strides() -> None:
    model = timm.create_model("emo_2m", features_only=True, in_chans=1)
    assert model.feature_info.channels() == [32, 48, 120, 200]
    assert model.feature_info.reduction() == [4, 8, 16, 32]
    shapes = [tuple(found.shape) for found in model(torch.zeros(2, 1, 64, 96))]
    assert shapes == [(2, 32, 16, 24), (2, 48, 8, 12), (2, 120, 4, 6), (2, 200, 2, 3)]


@torch.no_grad()
def test_features_only_gives_the_maps_asked_for() -> None:
    torch.manual_seed(0)
    model = timm.create_model("emo_1m", features_only=True, out_indices=(1, 3)).eval()
    torch.manual_seed(0)
    whole = timm.create_model("emo_1m").eval()
    assert model.feature_info.channels() == [48, 168]
    images = torch.randn(1, 3, 64, 64)
    maps = features(whole, images)
    for found, expected in zip(model(images), (maps[2], maps[4]), strict=True):
        torch.testing.assert_close(found, expected)


def test_timm_takes_entries_of_the_architecture_too() -> None:
    model = timm.create_model("emo_1m", attention=(False,) * 4, img_size=96, num_classes=7)
    assert not any(isinstance(module, WindowAttention) for module in model.modules())
    assert model.num_classes == model.head.out_features == 7


@torch.no_grad()
def test_timm_loads_the_authors_files_for_other_channels_and_classes(tmp_path: Path) -> None:
    source = build_model("emo_1m")
    torch.save({"net": to_official(source)}, tmp_path / "net.pth")
    model = timm.create_model(
        "emo_1m",
        pretrained=True,
        pretrained_cfg_overlay={"file": str(tmp_path / "net.pth")},
        in_chans=1,
        num_classes=5,
    )
    torch.testing.assert_close(model.stem.conv.weight, source.stem.conv.weight.sum(dim=1, keepdim=True))
    assert torch.equal(model.stages[3][2].project.weight, source.stages[3][2].project.weight)
    assert model.head.weight.shape == (5, 168)


def test_stochastic_depth_rises_over_all_blocks() -> None:
    model = timm.create_model("emo_1m", drop_path_rate=0.14)
    rates = [block.drop_path.drop_prob for stage in model.stages for block in stage]
    assert rates == pytest.approx([0.01 * number for number in range(15)])
    assert timm.create_model("emo_1m").stages[-1][-1].drop_path.drop_prob == pytest.approx(0.04036)


@torch.no_grad()
def test_the_head_can_be_replaced_and_left_out() -> None:
    model, images = small(), torch.randn(2, 3, 64, 64)
    assert model(images).shape == (2, 5)
    pooled = model.forward_head(model.forward_features(images), pre_logits=True)
    assert pooled.shape == (2, model.num_features) == (2, model.head_hidden_size)
    model.reset_classifier(3)
    assert model(images).shape == (2, 3)
    assert model.get_classifier() is model.head
    model.reset_classifier(0)
    assert torch.equal(model(images), pooled)
    model.reset_classifier(0, "")
    assert torch.equal(model(images), model.forward_features(images))
    with pytest.raises(TenfoldError, match="global_pool is avg or empty, not max"):
        model.reset_classifier(3, "max")


@pytest.mark.parametrize(
    ("options", "shape"),
    [
        ({"num_classes": 0}, (2, 168)),
        ({"num_classes": 0, "global_pool": ""}, (2, 168, 2, 2)),
        ({}, (2, 1000)),
    ],
)
@torch.no_grad()
def test_timm_creates_networks_with_and_without_head(options: dict[str, Any], shape: tuple[int, ...]) -> None:
    assert timm.create_model("emo_1m", in_chans=1, **options).eval()(torch.zeros(2, 1, 64, 64)).shape == shape


@torch.no_grad()
def test_dropout_is_before_the_head_and_for_training_only() -> None:
    torch.manual_seed(0)
    model, maps = EMO(SMALL, num_classes=5, drop_rate=0.5), torch.randn(1, 24, 2, 2)
    assert not torch.equal(model.forward_head(maps), model.forward_head(maps))
    model.eval()
    assert torch.equal(model.forward_head(maps), model.head(maps.mean(dim=(2, 3))))


# -- intermediate maps ----------------------------------------------------------------------------------


@torch.no_grad()
def test_intermediates_are_the_maps_of_the_stages() -> None:
    model, images = small(), torch.randn(2, 3, 64, 64)
    expected = features(model, images)[1:]
    final, found = model.forward_intermediates(images)
    assert torch.equal(final, model.forward_features(images))
    assert all(map(torch.equal, found, expected)) and len(found) == 4
    found = model.forward_intermediates(images, indices=2, intermediates_only=True)
    assert all(map(torch.equal, found, expected[2:])) and len(found) == 2
    found = model.forward_intermediates(images, indices=[0, 2], intermediates_only=True)
    assert all(map(torch.equal, found, expected[::2])) and len(found) == 2


@torch.no_grad()
def test_the_norm_is_for_the_last_stage_alone() -> None:
    model, images = small(), torch.randn(1, 3, 64, 64)
    nn.init.normal_(model.norm.weight)
    plain = model.forward_intermediates(images, intermediates_only=True)
    normed = model.forward_intermediates(images, norm=True, intermediates_only=True)
    assert all(map(torch.equal, plain[:3], normed[:3]))
    assert torch.equal(normed[3], model.norm(plain[3]))


@torch.no_grad()
def test_stopping_early_spares_later_stages() -> None:
    model, images = small(), torch.randn(1, 3, 64, 64)
    expected = features(model, images)
    model.stages[2] = nn.Conv2d(1, 1, 1)  # cannot run
    final, found = model.forward_intermediates(images, indices=[1], stop_early=True)
    assert torch.equal(final, expected[2]) and torch.equal(found[0], expected[2])
    with pytest.raises(RuntimeError):
        model.forward_intermediates(images, indices=[1])


def test_intermediates_are_maps_only() -> None:
    with pytest.raises(TenfoldError, match="maps are NCHW"):
        small().forward_intermediates(torch.zeros(1, 3, 64, 64), output_fmt="NLC")


@torch.no_grad()
def test_pruning_drops_what_is_not_needed() -> None:
    model, images = small(), torch.randn(1, 3, 64, 64)
    expected = features(model, images)
    assert model.prune_intermediate_layers([0, 1], prune_norm=True) == [0, 1]
    assert len(model.stages) == 2
    assert torch.equal(model(images), expected[2])  # neither norm nor pooling nor head


# -- training -------------------------------------------------------------------------------------------


def test_gradient_checkpointing_changes_no_gradient() -> None:
    images, gradients = torch.randn(2, 3, 64, 64), []
    for enable in (False, True):
        model = small(drop_path=0.0).train()
        model.set_grad_checkpointing(enable)
        saved: list[Tensor] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda x, kept=saved: kept.append(x) or x, lambda x: x):
            logits = model(images)
        logits.square().sum().backward()
        gradients.append(([parameter.grad for parameter in model.parameters()], len(saved)))
    (plain, saved_by_plain), (checkpointed, saved_by_checkpointed) = gradients
    for found, expected in zip(checkpointed, plain, strict=True):
        torch.testing.assert_close(found, expected)
    assert saved_by_checkpointed < saved_by_plain / 2


@pytest.mark.parametrize(
    ("coarse", "parts"),
    [
        (True, ["stages.0", "stages.1", "stages.2", "stages.3"]),
        (False, ["stages.0.0", "stages.1.0", "stages.2.0", "stages.2.1", "stages.3.0", "stages.3.1"]),
    ],
)
def test_parameters_are_grouped_by_depth(coarse: bool, parts: list[str]) -> None:
    model = small()
    layers = group_parameters(model, model.group_matcher(coarse))
    expected = [
        {name for name, _ in model.named_parameters() if name.startswith(f"{part}.")}
        for part in ("stem", *parts, "head")
    ]
    expected[-2] |= {"norm.weight", "norm.bias"}  # timm's way: they go with what is before them
    assert [set(layers[number]) for number in range(len(layers))] == expected
    assert sum(map(len, expected)) == len(list(model.parameters()))


def test_layer_decay_slows_early_layers() -> None:
    model = small()
    groups = param_groups_layer_decay(model, weight_decay=0.1, layer_decay=0.5)
    scale_of = {id(parameter): group["lr_scale"] for group in groups for parameter in group["params"]}
    assert len(scale_of) == len(list(model.parameters()))
    assert scale_of[id(model.head.weight)] == 1
    assert scale_of[id(model.norm.weight)] == scale_of[id(model.stages[3][1].project.weight)] == 0.5
    assert scale_of[id(model.stages[3][0].project.weight)] == 0.25
    assert scale_of[id(model.stem.conv.weight)] == 0.5**7
    decay_of = {id(parameter): group["weight_decay"] for group in groups for parameter in group["params"]}
    assert decay_of[id(model.head.weight)] == 0.1 and decay_of[id(model.head.bias)] == 0


# -- windows --------------------------------------------------------------------------------------------


def attention_by_pixel(
    attention: WindowAttention,
    x: Tensor,
    values: Tensor,
    window: tuple[int, int],
    order: Windows,
    masked: bool,
) -> Tensor:
    """The definition, one pixel and head after the other, on one map [H, W, C] with values [H, W, V]."""
    height, width, channels = x.shape
    rows, columns = -(-height // window[0]), -(-width // window[1])
    padded_x = x.new_zeros(rows * window[0], columns * window[1], channels)
    padded_values = x.new_zeros(rows * window[0], columns * window[1], values.shape[2])
    padded_x[:height, :width], padded_values[:height, :width] = x, values
    queries, keys = attention.qk(padded_x).chunk(2, dim=-1)

    def window_of(i: int, j: int) -> tuple[int, int]:
        return (i % rows, j % columns) if order == "strided" else (i // window[0], j // window[1])

    out = torch.empty_like(values)
    head, head_of_values = channels // attention.heads, values.shape[2] // attention.heads
    for i in range(height):
        for j in range(width):
            seen = [
                (k, m)
                for k in range(len(padded_x))
                for m in range(padded_x.shape[1])
                if window_of(k, m) == window_of(i, j) and not (masked and (k >= height or m >= width))
            ]
            for number in range(attention.heads):
                part = slice(number * head, (number + 1) * head)
                scores = torch.stack([queries[i, j, part] @ keys[k, m, part] for k, m in seen])
                weights = (scores * head**-0.5).softmax(dim=0)
                part = slice(number * head_of_values, (number + 1) * head_of_values)
                out[i, j, part] = sum(
                    weight * padded_values[k, m, part] for weight, (k, m) in zip(weights, seen, strict=True)
                )
    return out


@pytest.mark.parametrize("order", ["strided", "contiguous"])
@pytest.mark.parametrize("size", [(4, 6), (5, 3), (2, 2)])
@pytest.mark.parametrize("masked", [False, True])
@torch.no_grad()
def test_windows_are_what_they_are_defined_to_be(order: Windows, size: tuple[int, int], masked: bool) -> None:
    torch.manual_seed(0)
    attention = WindowAttention(4, 2, window_size=2, windows=order, mask_padding=masked).double()
    x = torch.randn(2, *size, 4, dtype=torch.float64)
    values = torch.randn(2, *size, 6, dtype=torch.float64)
    found = attention(x, values)
    for number in range(2):
        expected = attention_by_pixel(attention, x[number], values[number], (2, 2), order, masked)
        torch.testing.assert_close(found[number], expected)


@torch.no_grad()
def test_strided_and_contiguous_windows_differ_unless_there_is_one() -> None:
    torch.manual_seed(0)
    strided = WindowAttention(8, 4, window_size=4)
    contiguous = WindowAttention(8, 4, window_size=4, windows="contiguous")
    contiguous.load_state_dict(strided.state_dict())
    one, four = torch.randn(1, 4, 4, 8), torch.randn(1, 8, 8, 8)
    torch.testing.assert_close(strided(one, one), contiguous(one, one))
    assert not torch.allclose(strided(four, four), contiguous(four, four), atol=1e-3)


@torch.no_grad()
def test_a_window_of_0_is_the_whole_map() -> None:
    torch.manual_seed(0)
    attention = WindowAttention(4, 2, window_size=0).double()
    x = torch.randn(3, 5, 4, dtype=torch.float64)
    expected = attention_by_pixel(attention, x, x, (3, 5), "strided", masked=False)
    torch.testing.assert_close(attention(x[None], x[None])[0], expected)


@torch.no_grad()
def test_masked_padding_has_no_effect_and_unmasked_has() -> None:
    torch.manual_seed(0)
    model, masked = small(), small(mask_padding=True)
    masked.load_state_dict(model.state_dict())
    fitting, other = torch.randn(1, 3, 128, 128), torch.randn(1, 3, 96, 96)
    torch.testing.assert_close(masked(fitting), model(fitting))  # maps of 8 and 4
    assert not torch.allclose(masked(other), model(other), atol=1e-6)  # maps of 6 and 3
    whole = small(mask_padding=True, window_sizes=(0, 0, 0, 0))
    whole.load_state_dict(model.state_dict())
    one_window = torch.randn(1, 3, 48, 48)  # maps of 3 and 2, inside one window
    torch.testing.assert_close(masked(one_window), whole(one_window))


@torch.no_grad()
def test_windows_can_be_changed_without_other_weights() -> None:
    model, images = small(), torch.randn(1, 3, 96, 96)
    before = model(images)
    model.set_window_sizes((4, 4, 6, 3))  # now they fit
    assert not torch.allclose(model(images), before, atol=1e-6)
    torch.testing.assert_close(model(images), small(window_sizes=(4, 4, 6, 3))(images))
    with pytest.raises(TenfoldError, match="give 4 window sizes, one for each stage, not 2"):
        model.set_window_sizes((7, 7))


@pytest.mark.parametrize(
    ("is_grouped", "is_linear", "is_equal"), [(True, True, True), (True, False, False), (False, True, False)]
)
@torch.no_grad()
def test_attention_commutes_with_a_grouped_linear_expansion_only(
    is_grouped: bool, is_linear: bool, is_equal: bool
) -> None:
    torch.manual_seed(0)
    options: dict[str, Any] = {
        "exp_ratio": 2,
        "act_layer": "gelu",
        "dim_head": 4,
        "window_size": 4,
        "qkv_bias": True,
    }
    before, after = (
        InvertedResidualMobileBlock(12, 12, attn_pre=first, v_group=is_grouped, **options).double().eval()
        for first in (True, False)
    )
    after.load_state_dict(before.state_dict())
    if is_linear:
        before.expand[1] = after.expand[1] = nn.Identity()
    x = torch.randn(2, 12, 8, 8, dtype=torch.float64)
    assert torch.allclose(before(x), after(x), rtol=1e-9, atol=1e-9) == is_equal


# -- input ----------------------------------------------------------------------------------------------


@torch.no_grad()
def test_sides_need_not_be_multiples_of_anything() -> None:
    shapes = [tuple(found.shape[2:]) for found in features(small(), torch.zeros(1, 3, 33, 71))]
    assert shapes == [(17, 36), (9, 18), (5, 9), (3, 5), (2, 3)]


@torch.no_grad()
def test_small_images_are_refused() -> None:
    model = small()
    assert model(torch.zeros(1, 3, 32, 32)).shape == (1, 5)
    for call in (model, model.forward_features, model.forward_intermediates):
        with pytest.raises(TenfoldError, match=r"images are at least 32 pixels a side, not \(64, 31\)"):
            call(torch.zeros(1, 3, 64, 31))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"head_widths": (8, 8, 5, 8)}, "16 channels cannot be shared by heads of 5: choose a dim_head"),
        (
            {"expansions": (2, 2, 2.6, 2), "attention_first": False},
            "41 channels in the middle cannot be shared by 2",
        ),
        ({"norms": ("bn_2d", "bn_2d", "gn", "ln_2d")}, "a norm is bn_2d or ln_2d, not gn"),
        (
            {"activations": ("silu", "silu", "gelu", "tanh")},
            "an activation is one of silu, gelu, relu, not tanh",
        ),
        ({"kernels": (3, 3)}, "kernels has 2 entries for 4 stages"),
        ({"depths": (1, 1, 0, 1)}, "every stage has at least one block"),
    ],
)
def test_impossible_architectures_are_said(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(TenfoldError, match=message):
        small(**changes)


def test_unknown_networks_are_said() -> None:
    with pytest.raises(TenfoldError, match="there is no network emo_3m; choose one of emo_1m, emo_2m"):
        build_model("emo_3m")


# -- checkpoints ----------------------------------------------------------------------------------------


def as_timm(model: EMO) -> dict[str, Tensor]:
    """Weights as timm's own port has them: 1x1 convolutions with four dimensions."""
    return {
        timm_name(name): value[:, :, None, None] if value.ndim == 2 and name != "head.weight" else value
        for name, value in model.state_dict().items()
    }


def trained(**changes: Any) -> EMO:
    """With running statistics of its own, so that no two networks share them."""
    model = small(**changes)
    for name, value in model.state_dict().items():
        if "running" in name:
            value.uniform_(0.5, 2)
    return model


@pytest.mark.parametrize("scheme", ["official", "timm", "ours"])
@pytest.mark.parametrize("grouped", [False, True])
def test_weights_go_out_and_come_back(scheme: str, grouped: bool) -> None:
    source, model = trained(grouped_expansion=grouped), small(grouped_expansion=grouped)
    weights = {"official": to_official, "timm": as_timm, "ours": EMO.state_dict}[scheme](source)
    report = load_official_state_dict(model, weights)
    assert (report.scheme, report.loaded, report.head) == (scheme, len(source.state_dict()), "taken")
    assert all(map(torch.equal, model.state_dict().values(), source.state_dict().values()))


def test_names_are_those_of_the_released_files() -> None:
    names = set(to_official(build_model("emo_1m")))
    assert names >= {
        "stage0.0.convs.0.0.bias",
        "stage0.0.convs.0.1.running_mean",
        "stage0.1.se.conv_reduce.weight",
        "stage1.1.norm.running_var",
        "stage3.1.norm.norm.weight",
        "stage3.1.qk.conv.bias",
        "stage4.2.v.conv.weight",
        "stage4.2.conv_local.norm.num_batches_tracked",
        "stage4.0.proj.conv.weight",
        "norm.norm.bias",
        "head.weight",
    }
    timm_names = {timm_name(name) for name in build_model("emo_1m").state_dict()}
    assert timm_names >= {
        "patch_embed.0.weight",
        "patch_embed.5.fc2.bias",
        "patch_embed.7.weight",
        "stages.2.downsample.v.0.weight",
        "stages.2.blocks.6.conv_local.1.weight",
        "stages.3.blocks.1.qk.bias",
        "stages.3.blocks.1.norm.weight",
        "norm.weight",
        "head.bias",
    }


@pytest.mark.parametrize("wrapper", ["net", "net_E", "state_dict", "model"])
def test_wrapped_weights_are_found(wrapper: str) -> None:
    source, model = trained(), small()
    weights = {f"module.{name}": value for name, value in to_official(source).items()}
    load_official_state_dict(model, {wrapper: weights, "epoch": 300, "optimizer": {"state": {}}})
    assert all(map(torch.equal, model.state_dict().values(), source.state_dict().values()))


def test_the_average_comes_before_the_weights_of_the_last_step() -> None:
    last, average, model = small(), trained(), small()
    load_official_state_dict(model, {"net": to_official(last), "net_E": to_official(average)})
    assert torch.equal(model.stem.norm.running_mean, average.stem.norm.running_mean)
    load_official_state_dict(model, {"net": to_official(last), "net_E": None})
    assert torch.equal(model.stem.norm.running_mean, last.stem.norm.running_mean)


def test_a_head_for_other_classes_is_left_out() -> None:
    source, model = trained(), small(num_classes=3)
    head = model.head.weight.clone()
    report = load_official_state_dict(model, to_official(source))
    assert (report.head, report.loaded) == ("new", len(source.state_dict()) - 2)
    assert torch.equal(model.head.weight, head)
    assert torch.equal(model.stem.norm.running_mean, source.stem.norm.running_mean)
    assert load_official_state_dict(small(num_classes=0), to_official(source)).head == "left out"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"stage3.1.qk.conv.weight": None},
            r"1 tensors are missing, the first is stages\.2\.1\.attention\.qk\.weight",
        ),
        ({"stage9.0.weight": torch.zeros(1)}, r"1 tensors are not expected, the first is stage9\.0\.weight"),
        (
            {"stage4.0.proj.conv.weight": torch.zeros(24, 7, 1, 1)},
            r"stages\.3\.0\.project\.weight has shape \(24, 7\)",
        ),
        ({"head.bias": None}, r"1 tensors are missing, the first is head\.bias"),
    ],
)
def test_tensors_that_do_not_fit_are_named(changes: dict[str, Tensor | None], message: str) -> None:
    model = small()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    weights = {name: value for name, value in (to_official(trained()) | changes).items() if value is not None}
    with pytest.raises(TenfoldError, match=message):
        load_official_state_dict(model, weights)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_files_that_hold_no_network_are_said(tmp_path: Path) -> None:
    torch.save({"net": {"conv1.weight": torch.zeros(1)}}, tmp_path / "resnet.pth")
    torch.save({"epoch": 3}, tmp_path / "empty.pth")
    with pytest.raises(TenfoldError, match=r"resnet\.pth: these are no weights of EMO"):
        load_weights(small(), tmp_path / "resnet.pth")
    with pytest.raises(TenfoldError, match=r"empty\.pth: this file holds no weights of a network"):
        load_weights(small(), tmp_path / "empty.pth")
    with pytest.raises(TenfoldError, match="no checkpoint at"):
        load_weights(small(), tmp_path / "absent.pth")


@torch.no_grad()
def test_a_file_of_the_authors_fills_a_network(tmp_path: Path) -> None:
    source, model, images = trained(), small(), torch.randn(1, 3, 64, 64)
    torch.save({"net": to_official(source), "iter": 5}, tmp_path / "net.pth")
    assert load_weights(model, tmp_path / "net.pth").scheme == "official"
    assert torch.equal(model(images), source(images))


def test_one_block_is_filled_from_the_authors_names() -> None:
    source = trained().stages[2][1]
    prefix = "stage3.1."
    weights = {
        name.removeprefix(prefix): value
        for name, value in to_official(trained()).items()
        if name.startswith(prefix)
    }
    block = small().stages[2][1]
    nn.init.zeros_(block.project.weight)
    load_official_block(block, weights)
    assert torch.equal(block.project.weight, source.project.weight)
    with pytest.raises(TenfoldError, match=r"1 tensors are missing, the first is project\.weight"):
        load_official_block(block, {name: value for name, value in weights.items() if "proj" not in name})


def test_weights_of_another_network_are_refused() -> None:
    other = build_model("emo_2m")
    with pytest.raises(TenfoldError, match=r"41 tensors are not expected, the first is stage1\.2"):
        load_official_state_dict(build_model("emo_1m"), to_official(other))
    assert to_ours(to_official(other), other.architecture).keys() == other.state_dict().keys()
