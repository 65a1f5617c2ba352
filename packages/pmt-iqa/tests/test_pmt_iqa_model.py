"""The networks: sizes, what depends on what, weights from elsewhere."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn
from torchvision import models

from tenfold.pmt_iqa import backbones
from tenfold.pmt_iqa.backbones import (
    ResNetStages,
    SmallStages,
    contrast_maps,
    load_imagenet_weights,
    load_torchvision_state_dict,
)
from tenfold.pmt_iqa.checkpoints import load_official_state_dict, official_state_dict
from tenfold.pmt_iqa.model import (
    HyperNetwork,
    MultiScaleFeatures,
    PlainNetwork,
    Quality,
    build_model,
    forward,
    verdict,
)
from tenfold.shared.logging import TenfoldError


def parameters(module: nn.Module) -> int:
    return sum(value.numel() for value in module.parameters())


@pytest.mark.parametrize(
    ("backbone", "arguments", "count"),
    [
        ("resnet50", (), 23_716_293),
        ("resnet50", (16, 224, 112, 56, 28, 14, 11), 24_010_564),
        ("resnet18", (), 11_277_253),
        ("resnet152", (), 58_352_069),
    ],
)
def test_networks_have_the_published_number_of_parameters(
    backbone: str, arguments: tuple, count: int
) -> None:
    with torch.device("meta"):
        assert parameters(build_model(backbone, *arguments)) == count


def test_the_parts_of_resnet50_have_their_sizes() -> None:
    with torch.device("meta"):
        model = build_model()
    lda = model.features.lda
    assert parameters(model.features.backbone) == 23_508_032
    assert [parameters(lda[scale].reduce) for scale in "123"] == [4_096, 16_384, 65_536]
    assert [parameters(lda[scale].linear) for scale in "1234"] == [28_700, 14_364, 7_196, 57_372]
    assert [parameters(part) for part in (model.head[0], model.head[2], model.level[0], model.level[2])] == [
        12_656,
        1_582,
        210,
        150,
    ]
    assert parameters(model.score) == 15


@pytest.mark.parametrize("size", [64, 96, 224])
def test_crops_of_any_size_give_the_same_shapes(size: int) -> None:
    model = build_model("resnet18").eval()
    with torch.no_grad():
        found = forward(model, torch.zeros(2, 3, size, size))
    assert {name: tuple(value.shape) for name, value in found.items()} == {
        "mos": (2, 1),
        "cls": (2, 10),
        "features": (2, 112),
    }


def test_one_crop_keeps_its_dimension() -> None:
    output = build_model("small").eval()(torch.zeros(1, 3, 32, 32))
    assert output.score.shape == (1,)


def test_unused_sizes_change_nothing() -> None:
    first, second = (
        build_model("small", target_fc2_size=size, target_fc3_size=size).state_dict() for size in (1, 99)
    )
    assert {name: value.shape for name, value in first.items()} == {n: v.shape for n, v in second.items()}


def test_one_scale_is_pooling_of_the_last_stage() -> None:
    model = build_model("small", scales=(4,)).eval()
    images = torch.rand(3, 3, 64, 64)
    pooled = model.features.backbone(images)[3].mean(dim=(2, 3))
    torch.testing.assert_close(model(images).features, model.features.lda["4"].linear(pooled))
    assert list(model.features.lda) == ["4"]


def test_the_last_scale_fills_up_the_features() -> None:
    features = MultiScaleFeatures(SmallStages(), 100, 28)
    assert [module.linear.out_features for module in features.lda.values()] == [28, 28, 28, 16]
    with pytest.raises(TenfoldError, match="4 scales with 28 numbers each need more than 84 features"):
        MultiScaleFeatures(SmallStages(), 84, 28)


def test_reductions_have_kaiming_weights() -> None:
    features = MultiScaleFeatures(ResNetStages("resnet18"), 112)
    assert float(features.lda["1"].linear.weight.detach().std()) == pytest.approx((2 / 1024) ** 0.5, rel=0.03)
    assert float(features.lda["3"].reduce.weight.detach().std()) == pytest.approx((2 / 256) ** 0.5, rel=0.03)


def test_impossible_sizes_are_said() -> None:
    for arguments in ({"number_class": 1}, {"target_fc4_size": 0}, {"lda_out_channels": 0}):
        with pytest.raises(TenfoldError, match="at least"):
            build_model("small", **arguments)
    with pytest.raises(TenfoldError, match="no ImageNet weights of the small network"):
        build_model("small", pretrained=True)


def test_the_small_network_sees_contrast_and_not_brightness() -> None:
    stages = SmallStages().eval()
    images = torch.rand(2, 3, 64, 64)
    for ours, theirs in zip(stages(images), stages(images + 0.5), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3)
    weak, strong = contrast_maps(0.2 * images[:, :1]), contrast_maps(images[:, :1])
    assert bool((weak[:, 1] < strong[:, 1]).all())
    assert torch.equal(contrast_maps(torch.ones(1, 1, 9, 9))[:, 0], torch.zeros(1, 9, 9))


def test_the_written_network_judges_each_crop_by_itself() -> None:
    torch.manual_seed(0)
    network = HyperNetwork(MultiScaleFeatures(SmallStages(), 112), 112, side=2, hyper_channels=16).eval()
    images = torch.rand(4, 3, 64, 64)
    together = network(images).score
    alone = torch.cat([network(image[None]).score for image in images])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)
    assert network(images).level_logits is None


def test_the_written_network_is_what_its_matrices_say() -> None:
    torch.manual_seed(0)
    network = HyperNetwork(MultiScaleFeatures(SmallStages(), 112), 112, side=2, hyper_channels=16).eval()
    image = torch.rand(1, 3, 64, 64)
    semantics = network.semantics(network.features.backbone(image)[-1])
    pooled = semantics.mean(dim=(2, 3))
    hidden = network.features(image)[0]
    for (before, after), weight, bias in zip(network.sizes, network.weights, network.biases, strict=True):
        hidden = torch.sigmoid(weight(semantics).reshape(after, before) @ hidden + bias(pooled)[0])
    expected = network.last_weight(pooled)[0] @ hidden + network.last_bias(pooled)[0, 0]
    torch.testing.assert_close(network(image).score[0], expected)


def test_hyperiqa_has_its_original_sizes() -> None:
    with torch.device("meta"):
        network = HyperNetwork(MultiScaleFeatures(ResNetStages("resnet50"), 224, 16), 224)
    assert network.sizes == ((224, 112), (112, 56), (56, 28), (28, 14))
    assert [conv.out_channels for conv in network.weights] == [512, 128, 32, 8]
    assert [conv.out_channels for conv in network.semantics if isinstance(conv, nn.Conv2d)] == [
        1024,
        512,
        112,
    ]


@pytest.mark.parametrize("kind", ["multitask", "plain", "hyper"])
def test_predictions_can_start_at_a_score(kind: str) -> None:
    torch.manual_seed(0)
    if kind == "multitask":
        network: nn.Module = build_model("small")
    elif kind == "plain":
        network = PlainNetwork(SmallStages())
    else:
        network = HyperNetwork(MultiScaleFeatures(SmallStages(), 112), 112, side=2, hyper_channels=16)
    images = torch.rand(2, 3, 64, 64)
    before = network.eval()(images).score
    network.start_at(50.0)
    assert bool(((network(images).score - before) > 49).all())


def test_trained_heads_alone_are_heard() -> None:
    logits = torch.log(torch.tensor([[0.25, 0.75], [1.0, 1e-30]]))
    output, level_scores = (
        Quality(torch.tensor([9.0, 8.0]), logits, torch.zeros(2, 1)),
        torch.tensor([2.0, 6.0]),
    )
    score, levels = verdict(output, level_scores)
    assert score.tolist() == [9.0, 8.0]
    torch.testing.assert_close(levels, torch.tensor([[0.25, 0.75], [1.0, 0.0]]))
    torch.testing.assert_close(
        verdict(output, level_scores, learned_scores=False)[0], torch.tensor([5.0, 2.0])
    )
    assert verdict(output, level_scores, learned_levels=False)[1] is None


# -- weights -------------------------------------------------------------------------------------------


def test_official_weights_go_in_and_out_unchanged() -> None:
    source, target = build_model("small"), build_model("small")
    official = official_state_dict(source)
    assert {
        "res.conv1.weight",
        "res.lda1_pool.0.weight",
        "res.lda4_fc.bias",
        "fcs.2.bias",
        "fc_cls.0.weight",
    } <= set(official)
    assert "fc_mos.weight" in official
    assert "res.lda4_pool.0.weight" not in official
    load_official_state_dict(target, {f"module.{name}": value for name, value in official.items()})
    for name, value in source.state_dict().items():
        assert torch.equal(target.state_dict()[name], value), name


def test_official_weights_that_do_not_fit_are_named() -> None:
    official = official_state_dict(build_model("small"))
    missing = {name: value for name, value in official.items() if name != "fc_mos.bias"}
    with pytest.raises(TenfoldError, match=r"lack score\.bias"):
        load_official_state_dict(build_model("small"), missing)
    for name in ("extra", "head.0.weight"):  # a name of ours is none of theirs
        with pytest.raises(TenfoldError, match=f"hold an unknown or repeated {name}"):
            load_official_state_dict(build_model("small"), {**official, name: torch.zeros(1)})
    with pytest.raises(TenfoldError, match=r"level\.2\.weight is \[10, 14\] in the weights and \[11, 14\]"):
        load_official_state_dict(build_model("small", number_class=11), official)


def test_a_torchvision_state_dict_fills_the_backbone() -> None:
    network = models.resnet18()
    stages = ResNetStages("resnet18")
    load_torchvision_state_dict(stages, network.state_dict())
    images = torch.rand(2, 3, 64, 64)
    pooled = stages.eval()(images)[-1].mean(dim=(2, 3))
    torch.testing.assert_close(network.eval().fc(pooled), network(images))


def test_old_torchvision_files_without_counters_fill_it_too() -> None:
    weights = {
        k: v for k, v in models.resnet18().state_dict().items() if not k.endswith("num_batches_tracked")
    }
    stages = ResNetStages("resnet18")
    load_torchvision_state_dict(stages, weights)
    assert torch.equal(stages.layer4[1].conv2.weight, weights["layer4.1.conv2.weight"])


def test_imagenet_weights_come_from_a_file_or_the_cache_and_are_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stages = ResNetStages("resnet18")
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(TenfoldError, match=r"ImageNet weights of resnet18 are not at .*give --download"):
        load_imagenet_weights(stages, "resnet18")
    weights = models.resnet18().state_dict()
    (tmp_path / "checkpoints").mkdir()
    cached = tmp_path / "checkpoints" / "resnet18-f37072fd.pth"
    torch.save(weights, cached)
    with pytest.raises(TenfoldError, match="is damaged; remove it"):  # not the published file
        load_imagenet_weights(stages, "resnet18")
    load_imagenet_weights(stages, "resnet18", cached)
    assert torch.equal(stages.conv1.weight, weights["conv1.weight"])
    with pytest.raises(TenfoldError, match="build the network to match"):
        load_imagenet_weights(ResNetStages("resnet34"), "resnet34", cached)
    checked: list[Path] = []
    monkeypatch.setattr(backbones, "_check_digest", checked.append)
    load_imagenet_weights(stages, "resnet18")
    assert checked == [cached]
