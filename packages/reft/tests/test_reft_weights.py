"""Weights of others: backbones, released files, their conversion, and what is refused."""

from __future__ import annotations

import collections
import os
import pickle
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision import models
from torchvision.models.swin_transformer import SwinTransformer
from transformers import SwinBackbone, SwinConfig, SwinForImageClassification

from tenfold.reft.annotations import load_annotations
from tenfold.reft.backbones import (
    backbone_config,
    freeze_batch_norm,
    imagenet_file,
    load_imagenet_weights,
)
from tenfold.reft.bundled import bundled_annotations
from tenfold.reft.checkpoints import (
    check_no_leak,
    convert_released,
    load_network_state,
    load_official_state_dict,
    released_classes,
)
from tenfold.reft.cli import main
from tenfold.reft.config import NetworkConfig, ReferenceConfig
from tenfold.reft.freezing import freeze, parameter_groups
from tenfold.reft.model import RefT
from tenfold.reft.network_files import load_network, load_released
from tenfold.reft.official_files import read_released
from tenfold.shared.logging import TenfoldError
from tenfold.shared.runs import save_atomically

MakeNetwork = Callable[..., RefT]
OFF = ReferenceConfig("off", query="off")
PIXEL = "sem_seg_head.pixel_decoder"
PREDICTOR = "sem_seg_head.predictor"


def randomised(module: nn.Module, seed: int = 0) -> nn.Module:
    """With weights and statistics that are all at random, at inference."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in module.state_dict().items():
            if not value.is_floating_point():
                continue
            noise = torch.randn(value.shape, generator=generator)
            if name.endswith(("running_var", "norm.weight")) or (value.ndim == 1 and name.endswith("weight")):
                value.copy_(0.5 + noise.abs())
            else:
                value.add_(0.05 * noise)
    return module.eval()


def encoder_of(network: RefT) -> nn.Module:
    encoder: nn.Module = network.model.pixel_level_module.encoder
    return encoder


def noise_image(side: int = 64) -> Tensor:
    return torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(5))


# -- ResNets -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "frozen"), [("resnet-18", False), ("resnet-50", True)])
def test_a_resnet_gives_torchvisions_maps_with_torchvisions_weights(
    name: Any, frozen: bool, make_network: MakeNetwork, tmp_path: Path
) -> None:
    theirs: Any = randomised(getattr(models, name.replace("-", ""))(weights=None))
    torch.save(theirs.state_dict(), tmp_path / "weights.pth")
    network = RefT(make_network(OFF, backbone=name).network, OFF, 7)
    if frozen:
        network.freeze_batch_norm()
    ours: Any = encoder_of(network).eval()
    load_imagenet_weights(ours, name, tmp_path / "weights.pth")
    image, theirs, ours = noise_image().double(), theirs.double(), ours.double()
    with torch.no_grad():
        found = ours(image).feature_maps
        x = theirs.maxpool(theirs.relu(theirs.bn1(theirs.conv1(image))))
        for stage, mine in enumerate(found, start=1):
            x = getattr(theirs, f"layer{stage}")(x)
            torch.testing.assert_close(mine, x, rtol=1e-6, atol=1e-6)
    assert len(found) == 4


@pytest.mark.parametrize(
    ("name", "channels"),
    [
        ("small", (32, 64, 96, 128)),
        ("resnet-18", (64, 128, 256, 512)),
        ("resnet-50", (256, 512, 1024, 2048)),
        ("resnet-101", (256, 512, 1024, 2048)),
        ("swin-t", (96, 192, 384, 768)),
        ("swin-b", (128, 256, 512, 1024)),
    ],
)
def test_backbones_give_four_maps_of_strides_4_to_32(name: Any, channels: tuple[int, ...]) -> None:
    with torch.device("meta"):
        network = RefT(NetworkConfig(name), OFF, 3)
        maps = encoder_of(network)(torch.zeros(1, 3, 128, 96)).feature_maps
    assert [tuple(one.shape) for one in maps] == [
        (1, width, 128 // stride, 96 // stride)
        for width, stride in zip(channels, (4, 8, 16, 32), strict=True)
    ]


def test_swins_have_the_depths_heads_windows_and_drop_path_of_the_table() -> None:
    found: dict[str, Any] = {"swin-t": backbone_config("swin-t"), "swin-s": backbone_config("swin-s")}
    found["swin-b"] = backbone_config("swin-b")
    assert {
        name: (list(one.depths), list(one.num_heads), one.window_size, one.drop_path_rate)
        for name, one in found.items()
    } == {
        "swin-t": ([2, 2, 6, 2], [3, 6, 12, 24], 7, 0.3),
        "swin-s": ([2, 2, 18, 2], [3, 6, 12, 24], 7, 0.3),
        "swin-b": ([2, 2, 18, 2], [4, 8, 16, 32], 12, 0.3),
    }


def test_an_unknown_backbone_is_refused() -> None:
    with pytest.raises(TenfoldError, match="there is no backbone 'vgg'; take resnet-18"):
        backbone_config("vgg")  # type: ignore[arg-type]


# -- frozen batch norms --------------------------------------------------------------------------------


def test_frozen_batch_norms_give_in_training_what_they_gave_at_inference(make_network: MakeNetwork) -> None:
    network = RefT(make_network(OFF).network, OFF, 7)
    encoder: Any = randomised(encoder_of(network))
    image = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        before = encoder(image).feature_maps
        network.freeze_batch_norm()
        network.train()
        state = {key: value.clone() for key, value in network.state_dict().items()}
        after = encoder_of(network)(image).feature_maps
    for mine, theirs in zip(after, before, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)
    assert all(torch.equal(value, state[key]) for key, value in network.state_dict().items())


def test_no_batch_norm_is_left_and_group_norms_stay() -> None:
    network = RefT(NetworkConfig("small", 32, 2, 1, 32, 1, 32, 4), OFF, 3).freeze_batch_norm()
    assert not any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in network.modules())
    assert any(isinstance(module, nn.GroupNorm) for module in network.modules())


def test_a_batch_norm_itself_is_replaced() -> None:
    norm = randomised(nn.BatchNorm2d(3, eps=1e-2))
    x = torch.randn(2, 3, 4, 4)
    expected = norm(x)
    frozen = freeze_batch_norm(norm)
    assert not list(frozen.parameters())
    torch.testing.assert_close(frozen.train()(x), expected, rtol=1e-5, atol=1e-6)


# -- Swins ---------------------------------------------------------------------------------------------

TINY_SWIN = SwinConfig(
    image_size=224,
    embed_dim=16,
    depths=[1, 2, 1, 1],
    num_heads=[1, 2, 2, 4],
    window_size=7,
)
TINY_SWIN.out_features = ["stage1", "stage2", "stage3", "stage4"]


def torchvision_swin() -> SwinTransformer:
    return SwinTransformer([4, 4], 16, [1, 2, 1, 1], [1, 2, 2, 4], [7, 7], stochastic_depth_prob=0.0)


def microsofts(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A torchvision Swin under Microsoft's keys."""
    renamed = {}
    for key, value in state.items():
        new = re.sub(r"^features\.0\.0\.", "patch_embed.proj.", key)
        new = re.sub(r"^features\.0\.2\.", "patch_embed.norm.", new)
        if found := re.match(r"features\.(\d+)\.(reduction|norm)\.", new):
            place = int(found[1]) // 2 - 1
            new = re.sub(r"^features\.\d+\.", f"layers.{place}.downsample.", new)
        elif found := re.match(r"features\.(\d+)\.(\d+)\.", new):
            new = re.sub(r"^features\.\d+\.\d+\.", f"layers.{int(found[1]) // 2}.blocks.{found[2]}.", new)
        new = new.replace(".mlp.0.", ".mlp.fc1.").replace(".mlp.3.", ".mlp.fc2.")
        renamed[new] = value
    return renamed


def test_a_swin_gives_torchvisions_maps_with_microsofts_weights(tmp_path: Path) -> None:
    theirs: Any = randomised(torchvision_swin())
    torch.save({"model": microsofts(theirs.state_dict())}, tmp_path / "swin.pth")
    ours: Any = SwinBackbone(TINY_SWIN).eval()
    load_imagenet_weights(ours, "swin-t", tmp_path / "swin.pth")
    image = noise_image(224)
    with torch.no_grad():
        found, x = ours(image).feature_maps, image
        for stage, mine in enumerate(found):
            x = theirs.features[2 * stage + 1](theirs.features[2 * stage](x))
            # Mask2Former's norms of the outputs, which have no weights yet.
            expected = F.layer_norm(x, x.shape[-1:]).permute(0, 3, 1, 2)
            torch.testing.assert_close(mine, expected, rtol=1e-3, atol=1e-3)
    assert len(found) == 4


def test_a_swin_is_read_from_the_file_of_a_hub(tmp_path: Path) -> None:
    theirs: Any = randomised(SwinForImageClassification(TINY_SWIN))
    theirs.save_pretrained(tmp_path)
    ours: Any = SwinBackbone(TINY_SWIN).eval()
    load_imagenet_weights(ours, "swin-t", tmp_path / "model.safetensors")
    image = noise_image(224)
    with torch.no_grad():
        last = theirs.swin(image, output_hidden_states=True).reshaped_hidden_states
        found = ours(image).feature_maps
    expected = F.layer_norm(last[-1].permute(0, 2, 3, 1), (128,)).permute(0, 3, 1, 2)
    torch.testing.assert_close(found[-1], expected, rtol=1e-3, atol=1e-3)


def test_a_swin_is_read_from_the_older_form_of_a_hub(tmp_path: Path) -> None:
    """As transformers wrote them before version 5: ``attention.self.query`` and its like."""
    theirs = randomised(SwinBackbone(TINY_SWIN)).state_dict()
    old = {"classifier.weight": torch.zeros(2, 128), "swin.layernorm.weight": torch.zeros(128)}
    for key, value in theirs.items():
        if "hidden_states_norms" in key or key.startswith("swin.layernorm"):
            continue
        new = key.replace(
            "relative_position_bias.relative_position_bias_table", "relative_position_bias_table"
        )
        new = new.replace("attention.relative", "attention.self.relative")
        for short, long in (("q", "query"), ("k", "key"), ("v", "value")):
            new = new.replace(f"attention.{short}_proj", f"attention.self.{long}")
        new = new.replace("attention.o_proj", "attention.output.dense")
        new = new.replace("mlp.fc1", "intermediate.dense").replace("mlp.fc2", "output.dense")
        old[new] = value
    safetensors.torch.save_file(old, tmp_path / "model.safetensors")
    ours = SwinBackbone(TINY_SWIN)
    load_imagenet_weights(ours, "swin-t", tmp_path / "model.safetensors")
    found = ours.state_dict()
    for key, value in theirs.items():
        if "hidden_states_norms" not in key and not key.startswith("swin.layernorm"):
            assert torch.equal(found[key], value), key


def test_the_norm_of_swins_that_nothing_looks_at_is_not_trained() -> None:
    """It never gets a gradient, for which several processes would wait."""
    with torch.device("meta"):
        network = RefT(NetworkConfig("swin-t", 32, 2, 1, 32, 1, 32, 4), OFF, 3)
    freeze(network, "none")
    untrained = {name for name, one in network.named_parameters() if not one.requires_grad}
    encoder = "model.pixel_level_module.encoder."
    assert untrained == {f"{encoder}swin.layernorm.{kind}" for kind in ("weight", "bias")}


def test_all_that_is_trained_of_a_swin_gets_a_gradient(make_network: MakeNetwork) -> None:
    network = make_network(OFF, backbone="swin-t")
    freeze(network, "none")
    network.model.pixel_level_module.encoder.eval()  # stochastic depth would drop some
    predictions = network(noise_image())
    (predictions.class_logits.sum() + predictions.masks().sum()).backward()
    encoder = encoder_of(network)
    missing = [name for name, one in encoder.named_parameters() if one.requires_grad and one.grad is None]
    assert not missing


def test_position_biases_of_swins_do_not_decay(make_recipe: Callable[..., Any]) -> None:
    with torch.device("meta"):
        network = RefT(NetworkConfig("swin-t", 32, 2, 1, 32, 1, 32, 4), OFF, 3)
    freeze(network, "none")
    groups = parameter_groups(network, make_recipe(weight_decay=0.05))
    decayed = {id(one) for group in groups if group["weight_decay"] for one in group["params"]}
    tables = [one for name, one in network.named_parameters() if name.endswith("position_bias_table")]
    assert len(tables) == 12
    assert not any(id(one) in decayed for one in tables)


# -- files of ImageNet weights -------------------------------------------------------------------------


def test_missing_imagenet_weights_are_asked_for_in_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(
        TenfoldError, match=r"ImageNet weights of resnet-50 are not at .*--download.*--imagenet"
    ):
        imagenet_file("resnet-50")
    with pytest.raises(TenfoldError, match=r"resnet-101 are not at .*absent\.pth"):
        imagenet_file("resnet-101", tmp_path / "absent.pth")
    with pytest.raises(TenfoldError, match="there are no ImageNet weights of 'small'"):
        imagenet_file("small")


def test_damaged_imagenet_weights_in_the_cache_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    path = tmp_path / "checkpoints" / "resnet18-f37072fd.pth"
    path.parent.mkdir()
    path.write_bytes(b"half a file")
    with pytest.raises(TenfoldError, match="is damaged; remove it"):
        imagenet_file("resnet-18")


def test_weights_of_another_resnet_are_refused(make_network: MakeNetwork, tmp_path: Path) -> None:
    torch.save(models.resnet18(weights=None).state_dict(), tmp_path / "eighteen.pth")
    deeper = make_network(OFF, backbone="resnet-50")
    with pytest.raises(TenfoldError, match=r"eighteen\.pth lacks .* which the network has"):
        load_imagenet_weights(encoder_of(deeper), "resnet-50", tmp_path / "eighteen.pth")


def test_weights_of_another_family_are_refused_by_the_name_of_a_key(
    make_network: MakeNetwork, tmp_path: Path
) -> None:
    torch.save(torchvision_swin().state_dict(), tmp_path / "swin.pth")
    network = make_network(OFF, backbone="resnet-18")
    with pytest.raises(TenfoldError, match=r"swin\.pth is not of resnet-18: .*features\.0\.0\.bias"):
        load_imagenet_weights(encoder_of(network), "resnet-18", tmp_path / "swin.pth")


# -- released Mask2Formers -----------------------------------------------------------------------------


def released(network: RefT) -> dict[str, np.ndarray]:
    """A network under the keys of the authors' files, by the table of the specification, with what else is there."""
    found: dict[str, np.ndarray] = {}
    state = {key: value.numpy() for key, value in network.state_dict().items()}
    transformer = "model.transformer_module."
    for key, value in state.items():
        if key.endswith("num_batches_tracked") or "reference." in key:
            continue
        new = _backbone_key(key) if ".encoder.embedder." in key or ".encoder.encoder." in key else key
        new = new.replace("model.pixel_level_module.decoder.", f"{PIXEL}.")
        new = new.replace(f"{PIXEL}.input_projections.", f"{PIXEL}.input_proj.")
        new = new.replace(f"{PIXEL}.level_embed", f"{PIXEL}.transformer.level_embed")
        if new.startswith(f"{PIXEL}.encoder."):
            new = new.replace(f"{PIXEL}.encoder.", f"{PIXEL}.transformer.encoder.")
            for theirs, ours in (
                ("norm1", "self_attn_layer_norm"),
                ("norm2", "final_layer_norm"),
                ("linear1", "fc1"),
                ("linear2", "fc2"),
            ):
                new = new.replace(f".{ours}.", f".{theirs}.")
        new = re.sub(rf"{re.escape(PIXEL)}\.(adapter|layer)_1\.0\.", rf"{PIXEL}.\1_1.", new)
        new = re.sub(rf"{re.escape(PIXEL)}\.(adapter|layer)_1\.1\.", rf"{PIXEL}.\1_1.norm.", new)
        new = new.replace(f"{PIXEL}.mask_projection.", f"{PIXEL}.mask_features.")
        for theirs, ours in (
            ("query_feat", "queries_features"),
            ("query_embed", "queries_embedder"),
            ("level_embed", "level_embed"),
        ):
            new = new.replace(f"{transformer}{ours}.", f"{PREDICTOR}.{theirs}.")
        new = re.sub(
            rf"{re.escape(transformer)}decoder\.layers\.(\d+)\.(.*)",
            lambda match: f"{PREDICTOR}.{_layer_key(int(match[1]), match[2])}",
            new,
        )
        new = new.replace(f"{transformer}decoder.layernorm.", f"{PREDICTOR}.decoder_norm.")
        new = re.sub(
            rf"{re.escape(transformer)}decoder\.mask_predictor\.mask_embedder\.(\d)\.0\.",
            rf"{PREDICTOR}.mask_embed.layers.\1.",
            new,
        )
        new = new.replace("class_predictor.", f"{PREDICTOR}.class_embed.")
        found[new] = value
    for layer in {key.split(".")[3] for key in found if "self_attention_layers" in key}:
        prefix = f"{PREDICTOR}.transformer_self_attention_layers.{layer}.self_attn"
        for kind in ("weight", "bias"):
            parts = [found.pop(f"{prefix}.{letter}_proj.{kind}") for letter in "qkv"]
            found[f"{prefix}.in_proj_{kind}"] = np.concatenate(parts)
    return {**found, "criterion.empty_weight": np.ones(8, dtype=np.float32)}


def _layer_key(layer: int, rest: str) -> str:
    for ours, theirs in (
        ("cross_attn_layer_norm.", f"transformer_cross_attention_layers.{layer}.norm."),
        ("cross_attn.", f"transformer_cross_attention_layers.{layer}.multihead_attn."),
        ("self_attn_layer_norm.", f"transformer_self_attention_layers.{layer}.norm."),
        ("self_attn.", f"transformer_self_attention_layers.{layer}.self_attn."),
        ("fc1.", f"transformer_ffn_layers.{layer}.linear1."),
        ("fc2.", f"transformer_ffn_layers.{layer}.linear2."),
        ("final_layer_norm.", f"transformer_ffn_layers.{layer}.norm."),
    ):
        if rest.startswith(ours):
            return theirs + rest.removeprefix(ours)
    raise AssertionError(rest)


def _backbone_key(key: str) -> str:
    key = key.removeprefix("model.pixel_level_module.encoder.")
    key = key.replace("embedder.embedder.convolution.", "backbone.stem.conv1.")
    key = key.replace("embedder.embedder.normalization.", "backbone.stem.conv1.norm.")
    found = re.match(r"encoder\.stages\.(\d)\.layers\.(\d+)\.(.*)", key)
    if found is None:
        return key
    block = f"backbone.res{int(found[1]) + 2}.{found[2]}."
    rest = re.sub(r"layer\.(\d)\.", lambda match: f"conv{int(match[1]) + 1}.", found[3])
    return block + rest.replace("convolution.", "").replace("normalization.", "norm.")


def other_network(make_network: MakeNetwork, **shape: Any) -> RefT:
    return make_network(OFF, seed=9, **shape)


def test_a_released_file_gives_every_weight_its_place(make_network: MakeNetwork, tmp_path: Path) -> None:
    source = make_network(OFF)
    randomised(source)
    path = tmp_path / "model_final.pkl"
    path.write_bytes(pickle.dumps({"model": released(source), "__author__": "third_party"}))
    network = other_network(make_network)
    load_official_state_dict(network, read_released(path))
    found, expected = network.state_dict(), source.state_dict()
    assert all(torch.equal(value, found[key]) for key, value in expected.items())


def test_the_tables_keys_are_those_of_a_released_file(make_network: MakeNetwork) -> None:
    """A check of this file's own table, by hand."""
    keys = set(released(make_network(OFF)))
    for key in (
        "backbone.stem.conv1.weight",
        "backbone.stem.conv1.norm.running_mean",
        "backbone.res2.0.conv1.weight",
        "backbone.res3.0.shortcut.norm.running_var",
        f"{PIXEL}.input_proj.0.1.weight",
        f"{PIXEL}.transformer.level_embed",
        f"{PIXEL}.transformer.encoder.layers.0.self_attn.sampling_offsets.bias",
        f"{PIXEL}.transformer.encoder.layers.0.norm1.weight",
        f"{PIXEL}.adapter_1.norm.weight",
        f"{PIXEL}.layer_1.weight",
        f"{PIXEL}.mask_features.bias",
        f"{PREDICTOR}.query_feat.weight",
        f"{PREDICTOR}.transformer_cross_attention_layers.1.multihead_attn.in_proj_weight",
        f"{PREDICTOR}.transformer_self_attention_layers.1.self_attn.in_proj_bias",
        f"{PREDICTOR}.transformer_ffn_layers.0.linear2.weight",
        f"{PREDICTOR}.decoder_norm.bias",
        f"{PREDICTOR}.mask_embed.layers.2.weight",
        f"{PREDICTOR}.class_embed.weight",
    ):
        assert key in keys, key


def test_older_files_call_the_queries_static_and_have_no_pixel_decoder_in_their_keys(
    make_network: MakeNetwork,
) -> None:
    source = make_network(OFF)
    weights = {key: torch.from_numpy(value) for key, value in released(source).items()}
    old = {
        key.replace("query_feat", "static_query").replace(".pixel_decoder.", "."): value
        for key, value in weights.items()
    }
    assert old.keys() != weights.keys()
    network = other_network(make_network)
    load_official_state_dict(network, old)
    assert all(torch.equal(value, source.state_dict()[key]) for key, value in network.state_dict().items())


def test_references_stay_as_they_are(make_network: MakeNetwork) -> None:
    network = make_network(ReferenceConfig(), seed=9)
    before = {key: value.clone() for key, value in network.state_dict().items() if "reference." in key}
    weights = {key: torch.from_numpy(value) for key, value in released(make_network(OFF)).items()}
    load_official_state_dict(network, weights)
    assert before
    assert all(torch.equal(network.state_dict()[key], value) for key, value in before.items())


def test_a_head_alone_leaves_the_backbone(make_network: MakeNetwork) -> None:
    weights = {
        key: torch.from_numpy(value)
        for key, value in released(make_network(OFF)).items()
        if not key.startswith("backbone.")
    }
    network = other_network(make_network)
    before = {key: value.clone() for key, value in encoder_of(network).state_dict().items()}
    load_official_state_dict(network, weights)
    after = encoder_of(network).state_dict()
    assert all(torch.equal(value, after[key]) for key, value in before.items())


Change = Callable[[dict[str, Tensor]], object]
CHANGES: dict[str, tuple[Change, str]] = {
    "missing": (
        lambda weights: weights.pop(f"{PREDICTOR}.decoder_norm.bias"),
        r"lacks model\.transformer_module\.decoder\.layernorm\.bias, which the network has",
    ),
    "missing in the backbone": (
        lambda weights: weights.pop("backbone.res3.0.conv2.norm.running_var"),
        r"lacks model\.pixel_level_module\.encoder.*running_var",
    ),
    "unknown": (
        lambda weights: weights.update({f"{PREDICTOR}.box_embed.weight": torch.zeros(4, 32)}),
        r"hold sem_seg_head\.predictor\.box_embed\.weight, unknown as the keys of Mask2Former's head",
    ),
    "a further layer": (
        lambda weights: weights.update({f"{PREDICTOR}.transformer_ffn_layers.9.norm.bias": torch.zeros(32)}),
        r"holds model\.transformer_module\.decoder\.layers\.9\.final_layer_norm\.bias, for which the network has no",
    ),
    "another shape": (
        lambda weights: weights.update({f"{PREDICTOR}.query_feat.weight": torch.zeros(9, 32)}),
        r"queries_features\.weight is \[9, 32\] in the released file and \[8, 32\] in the network",
    ),
    "other classes": (
        lambda weights: weights.update(
            {
                f"{PREDICTOR}.class_embed.weight": torch.zeros(81, 32),
                f"{PREDICTOR}.class_embed.bias": torch.zeros(81),
            }
        ),
        "knows 80 classes and the network 7",
    ),
}


@pytest.mark.parametrize(("change", "message"), CHANGES.values(), ids=CHANGES.keys())
def test_what_does_not_fit_is_named(change: Change, message: str, make_network: MakeNetwork) -> None:
    weights = {key: torch.from_numpy(value) for key, value in released(make_network(OFF)).items()}
    change(weights)
    network = other_network(make_network)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    with pytest.raises(TenfoldError, match=message):
        load_official_state_dict(network, weights)
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())


def test_tables_that_follow_from_the_architecture_are_left_out() -> None:
    weights = {
        "backbone.patch_embed.proj.bias": torch.zeros(2),
        "backbone.layers.0.blocks.0.attn.relative_position_index": torch.zeros(49, 49),
        "backbone.layers.0.blocks.1.attn_mask": torch.zeros(4, 49, 49),
    }
    assert list(convert_released(weights)) == [
        "model.pixel_level_module.encoder.swin.embeddings.patch_embeddings.projection.bias"
    ]


def test_many_missing_keys_are_counted(make_network: MakeNetwork) -> None:
    network = make_network(OFF)
    number = sum(not key.endswith("num_batches_tracked") for key in network.state_dict())
    with pytest.raises(
        TenfoldError, match=rf"the file lacks .* and {number - 4} more, which the network has"
    ):
        load_network_state(network, {}, "the file")


def test_a_released_network_of_coco_becomes_a_file_of_ours(tmp_path: Path) -> None:
    torch.manual_seed(0)
    source = RefT(NetworkConfig("small"), OFF, 80).freeze_batch_norm()
    path = tmp_path / "model_final.pkl"
    path.write_bytes(pickle.dumps({"model": released(source)}))
    files = ["--released", str(path), "--output", str(tmp_path / "ours.pt")]
    with pytest.raises(SystemExit) as ended:
        main(["convert", *files, "--backbone", "small", "--allow-leak"])
    assert ended.value.code == 0
    stored = load_network(tmp_path / "ours.pt")
    weights = stored.network.state_dict()
    assert all(torch.equal(value, weights[key]) for key, value in source.state_dict().items())
    assert stored.network.references.is_off
    named = dict(zip(stored.category_ids, stored.names, strict=True))
    categories = load_annotations(bundled_annotations("val")).cats
    assert named == {number: category["name"] for number, category in categories.items()}


# -- the leak ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("classes", [80, 133])
def test_networks_that_have_seen_the_novel_classes_are_refused_by_default(classes: int) -> None:
    with pytest.raises(TenfoldError, match=f"COCO's {classes} classes has seen the novel ones.*--allow-leak"):
        check_no_leak(classes, allow_leak=False)
    check_no_leak(classes, allow_leak=True)


def test_networks_of_base_classes_leak_nothing() -> None:
    check_no_leak(60, allow_leak=False)


def test_classes_of_a_released_file_are_counted_without_no_object() -> None:
    assert released_classes({f"{PREDICTOR}.class_embed.weight": torch.zeros(81, 2)}) == 80
    with pytest.raises(TenfoldError, match=r"lack sem_seg_head\.predictor\.class_embed\.weight"):
        released_classes({"fc.weight": torch.zeros(1000, 2)})


def test_a_released_network_of_other_classes_is_not_taken_for_one_of_coco(tmp_path: Path) -> None:
    path = tmp_path / "ade.pkl"
    path.write_bytes(pickle.dumps({"model": {f"{PREDICTOR}.class_embed.weight": np.zeros((151, 4))}}))
    with pytest.raises(TenfoldError, match=r"ade\.pkl knows 150 classes, not the 80 of COCO"):
        load_released(path, "resnet-50")


# -- files, good and hostile ---------------------------------------------------------------------------

ARRAYS: dict[str, np.ndarray] = {
    "plain": np.arange(6, dtype=np.float32).reshape(2, 3),
    "by columns": np.asfortranarray(np.arange(6, dtype=np.float64).reshape(2, 3)),
    "big endian": np.arange(4, dtype=">f4"),
    "half": np.arange(3, dtype=np.float16),
    "whole": np.arange(5, dtype=np.int64),
    "no dimension": np.array(2.5, dtype=np.float32),
    "empty": np.zeros((0, 3), dtype=np.float32),
    "bool": np.array([True, False]),
}


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_arrays_of_a_pickle_are_read_as_they_were(protocol: int, tmp_path: Path) -> None:
    path = tmp_path / "weights.pkl"
    path.write_bytes(pickle.dumps({"model": ARRAYS, "matching_heuristics": True}, protocol=protocol))
    found = read_released(path)
    assert found.keys() == ARRAYS.keys()
    for name, array in ARRAYS.items():
        np.testing.assert_array_equal(found[name].numpy(), array, err_msg=name)
        assert found[name].shape == array.shape


def test_all_kinds_of_files_hold_the_same(tmp_path: Path) -> None:
    weights = {"conv.weight": torch.randn(2, 3)}
    torch.save(weights, tmp_path / "a.pth")
    torch.save({"model": weights, "iteration": 7}, tmp_path / "b.pt")
    torch.save(collections.OrderedDict(weights), tmp_path / "c.bin")
    safetensors.torch.save_file(weights, tmp_path / "d.safetensors")
    (tmp_path / "e.pkl").write_bytes(pickle.dumps({"conv.weight": weights["conv.weight"].numpy()}))
    for path in sorted(tmp_path.iterdir()):
        found = read_released(path)
        assert torch.equal(found["conv.weight"], weights["conv.weight"]), path.name


class Hostile:
    """Makes a file when it is read by Python's own pickle."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.target),)


class Evaluated:
    """Evaluates an expression when it is read."""

    def __reduce__(self) -> tuple[Any, ...]:
        return eval, ("1 + 1",)


def save_pickle(content: object, path: Path) -> Path:
    path.write_bytes(pickle.dumps(content))
    return path


@pytest.mark.parametrize("ending", ["pkl", "pth", "pt", "bin", "weights"])
def test_a_pickle_that_would_do_something_is_refused_and_does_nothing(ending: str, tmp_path: Path) -> None:
    target = tmp_path / "made"
    content = {"model": {"weight": Hostile(target)}}
    path = tmp_path / f"hostile.{ending}"
    if ending in ("pth", "pt", "bin"):
        torch.save(content, path)
    else:
        save_pickle(content, path)
    with pytest.raises(TenfoldError, match=r"holds \w+\.mkdir, not only arrays"):
        read_released(path)
    assert not target.exists()


@pytest.mark.parametrize(
    "content",
    [
        Evaluated(),
        {"model": {"weight": Evaluated()}},
        {"weight": np.array([Evaluated()], dtype=object)},
        {"weight": np.array(["text"])},
        {"weight": np.array([1 + 2j])},
        {"weight": Path("a")},
        {"weight": collections.Counter("a")},
    ],
    ids=["alone", "deep", "objects", "texts", "complex numbers", "path", "counter"],
)
def test_all_but_arrays_of_numbers_is_refused(content: object, tmp_path: Path) -> None:
    with pytest.raises(TenfoldError, match="not only arrays of numbers and plain values"):
        read_released(save_pickle(content, tmp_path / "other.pkl"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "does not hold a state dict"),
        ({}, "does not hold a state dict"),
        ({"model": {}}, "does not hold a state dict|no array"),
        ("text", "does not hold a state dict"),
        ({"weight": 3}, "weight in .* is no array but int"),
        ({"model": {"weight": None}}, "weight in .* is no array but NoneType"),
    ],
)
def test_what_is_no_state_dict_is_refused(content: object, message: str, tmp_path: Path) -> None:
    with pytest.raises(TenfoldError, match=message):
        read_released(save_pickle(content, tmp_path / "other.pkl"))


@pytest.mark.parametrize("ending", ["pkl", "pth", "safetensors"])
@pytest.mark.parametrize("kept", ["half", "junk", "nothing"])
def test_damaged_files_are_refused(ending: str, kept: str, tmp_path: Path) -> None:
    weights = {"weight": torch.randn(100)}
    path = tmp_path / f"weights.{ending}"
    if ending == "pkl":
        save_pickle({"weight": weights["weight"].numpy()}, path)
    elif ending == "pth":
        torch.save(weights, path)
    else:
        safetensors.torch.save_file(weights, path)
    whole = path.read_bytes()
    path.write_bytes(
        {"half": whole[: len(whole) // 2], "junk": b"These are the weights.\n", "nothing": b""}[kept]
    )
    with pytest.raises(TenfoldError, match="is truncated or corrupt; download it again"):
        read_released(path)


def test_missing_files_and_folders_are_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "absent.pkl", tmp_path):
        with pytest.raises(TenfoldError, match=r"cannot read .* give the path of an existing file"):
            read_released(path)


def test_arrays_whose_bytes_do_not_fill_their_shape_are_refused(tmp_path: Path) -> None:
    path = save_pickle({"weight": np.arange(6, dtype=np.float32)}, tmp_path / "weights.pkl")
    content = path.read_bytes()
    assert b"K\x06\x85" in content  # the shape (6,)
    path.write_bytes(content.replace(b"K\x06\x85", b"K\x07\x85"))
    with pytest.raises(TenfoldError, match="is truncated or corrupt"):
        read_released(path)


def test_a_file_of_ours_is_not_taken_for_a_released_one(make_network: MakeNetwork, tmp_path: Path) -> None:
    network = make_network(OFF)
    save_atomically(tmp_path / "model.pt", {"network": network.state_dict(), "shape": network.shape})
    with pytest.raises(TenfoldError, match="is no array but OrderedDict; give a file of weights"):
        read_released(tmp_path / "model.pt")
