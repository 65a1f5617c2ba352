"""The networks: their size, the names of their weights, and what a layer gives without the layers after it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from tenfold.doorping.networks import Network, build_model, load_official_state_dict, seeded
from tenfold.shared.logging import TenfoldError

INSTANCE = {"norm": "instancenorm"}

TABLE: list[tuple[str, int, int, dict[str, Any], int, int | None]] = [
    ("ConvNet", 3, 10, {}, 694_090, 51_120_000),
    ("ConvNet", 1, 10, {}, 691_786, 61_607_808),
    ("ConvNet", 3, 100, {}, 711_460, 51_137_280),
    ("AlexNet", 3, 10, {}, 1_756_426, 32_778_112),
    ("AlexNet", 1, 10, {}, 1_753_226, 29_501_312),
    ("AlexNet", 3, 100, {}, 1_773_796, 32_795_392),
    ("VGG11", 3, 10, {}, 9_231_114, 152_769_536),
    ("ResNet18", 3, 10, {}, 11_436_618, 555_684_864),
    ("ConvNet", 3, 10, {**INSTANCE, "depth": 1}, 6_297_418, None),
    ("ConvNet", 3, 10, {**INSTANCE, "depth": 2}, 1_726_666, None),
    ("ConvNet", 3, 10, {**INSTANCE, "depth": 4}, 547_786, None),
    ("ConvNet", 3, 10, {**INSTANCE, "width": 32}, 120_010, None),
    ("ConvNet", 3, 10, {**INSTANCE, "width": 64}, 274_762, None),
    ("ConvNet", 3, 10, {**INSTANCE, "width": 256}, 1_977_418, None),
    ("ConvNet", 3, 10, INSTANCE, 694_858, None),
    ("ConvNet", 3, 10, {"norm": "batchnorm"}, 694_858, None),
    ("ConvNet", 3, 10, {"norm": "groupnorm"}, 694_858, None),
    ("ConvNet", 3, 10, {"norm": "layernorm"}, 1_038_154, None),
    ("ConvNet", 3, 10, {**INSTANCE, "pooling": "none"}, 25_467_466, None),
    ("ConvNet_B", 3, 10, {}, 320_010, None),
]


@pytest.mark.parametrize(("name", "channels", "classes", "options", "parameters", "macs"), TABLE)
def test_parameters_and_operations_are_those_of_the_table(
    name: str, channels: int, classes: int, options: dict[str, Any], parameters: int, macs: int | None
) -> None:
    with torch.device("meta"):
        model = build_model(name, channels, classes, **options).eval()
        images = torch.randn(1, channels, 32, 32)
    assert sum(value.numel() for value in model.parameters()) == parameters
    with FlopCounterMode(display=False) as counter:
        assert model(images).shape == (1, classes)
    if macs is not None:
        assert counter.get_total_flops() == 2 * macs


def keys(*places: str) -> set[str]:
    return {f"{place}.{kind}" for place in places for kind in ("weight", "bias")}


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        ("ConvNet", {}, keys("features.0", "features.3", "features.6", "classifier.0", "classifier.2")),
        (
            "ConvNet",
            {"norm": "groupnorm"},
            keys(*(f"features.{place}" for place in (0, 1, 4, 5, 8, 9)), "classifier.0", "classifier.2"),
        ),
        ("ConvNet_B", {"norm": "none"}, keys("features.0", "features.3", "features.6", "classifier")),
        (
            "AlexNet",
            {},
            keys("features.0", "features.4", "classifier.0", "classifier.2", "classifier.4"),
        ),
        (
            "VGG11",
            {},
            keys(
                *(f"features.{place + step}" for place in (0, 4, 8, 11, 15, 18, 22, 25) for step in (0, 1)),
                "classifier",
            ),
        ),
    ],
)
def test_weights_have_the_names_of_the_authors(
    name: str, options: dict[str, Any], expected: set[str]
) -> None:
    with torch.device("meta"):
        assert set(build_model(name, 3, 10, **options).state_dict()) == expected


def test_the_weights_of_resnet_have_the_names_of_the_authors() -> None:
    expected = {"conv1.weight"} | keys("bn1", "classifier.0", "classifier.1")
    for layer in range(1, 5):
        for block in range(2):
            place = f"layer{layer}.{block}"
            expected |= {f"{place}.conv1.weight", f"{place}.conv2.weight"} | keys(
                f"{place}.bn1", f"{place}.bn2"
            )
        if layer > 1:
            expected |= {f"layer{layer}.0.shortcut.0.weight"} | keys(f"layer{layer}.0.shortcut.1")
    with torch.device("meta"):
        assert set(build_model("ResNet18", 3, 10).state_dict()) == expected


def small(name: str = "ConvNet", channels: int = 1, size: int = 8, **options: Any) -> Network:
    options = {"width": 8, "depth": 2, "hidden": 12, **options}
    with seeded(3):
        return build_model(name, channels, 10, image_size=size, **options).eval()


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def seen_by_a_hook(model: Network, layer: int, images: Tensor) -> Tensor:
    """What the authors' hook holds after a whole forward pass with activations in place."""
    seen = {}
    name, _ = model.weight_at(layer)
    for module in model.modules():
        if isinstance(module, nn.ReLU):
            module.inplace = True
    handle = model.get_submodule(name.rpartition(".")[0]).register_forward_hook(
        lambda _module, _inputs, output: seen.update(output=output)
    )
    with torch.no_grad():
        model(images)
    handle.remove()
    for module in model.modules():
        if isinstance(module, nn.ReLU):
            module.inplace = False
    return seen["output"]


HOOKED: list[tuple[str, dict[str, Any], list[int]]] = [
    ("ConvNet", {}, [-1, -2, -3, -4]),
    ("ConvNet", {"norm": "instancenorm"}, [-1, -2, -4]),
    ("ConvNet_B", {"norm": "none", "pooling": "maxpooling"}, [-1, -2]),
    ("AlexNet", {}, [-1, -2, -3, -4, -5]),
    ("ResNet18", {"size": 32, "channels": 3}, [-1, -2]),
    ("VGG11", {"size": 28}, [-1]),
]


@pytest.mark.parametrize(
    ("name", "options", "layer"), [(name, options, layer) for name, options, all_ in HOOKED for layer in all_]
)
def test_a_hidden_layer_is_what_the_authors_hook_sees(name: str, options: dict[str, Any], layer: int) -> None:
    model = small(name, **options)
    channels, size = options.get("channels", 1), options.get("size", 8)
    images = noise(2, channels, size, size)
    with torch.no_grad():
        found = model.hidden(images, layer)
        torch.testing.assert_close(found, seen_by_a_hook(model, layer, images))
        chosen = torch.tensor([5, 0, 3])
        torch.testing.assert_close(model.hidden(images, layer, chosen), found[:, chosen])
        before = model.hidden(images, layer, chosen, pre_activation=True)
        is_activated = any(isinstance(module, nn.ReLU) for module in following(model, layer))
        assert is_activated or not (found >= 0).all()
        torch.testing.assert_close(before.relu() if is_activated else before, found[:, chosen])


def following(model: Network, layer: int) -> list[nn.Module]:
    """The module behind a layer."""
    owner = model.get_submodule(model.weight_at(layer)[0].rpartition(".")[0])
    chain = model.layers()
    place = next(place for place, module in enumerate(chain) if module is owner)
    return chain[place + 1 : place + 2]


def test_layers_after_the_hidden_one_are_not_computed() -> None:
    model = small("AlexNet")

    def fail(*_arguments: Any) -> None:
        raise AssertionError("a layer after the hidden one was computed")

    model.classifier[2].register_forward_hook(fail)  # type: ignore[index, operator]
    assert model.hidden(noise(2, 1, 8, 8), -3).shape == (2, 384)
    with pytest.raises(AssertionError, match="was computed"):
        model.hidden(noise(2, 1, 8, 8), -1)


def test_an_image_gets_the_gradient_of_the_whole_network_through_a_truncated_one() -> None:
    model, images = small(norm="layernorm"), noise(3, 1, 8, 8).requires_grad_()
    chosen = torch.tensor([7, 2])
    (found,) = torch.autograd.grad(model.hidden(images, -2, chosen).square().sum(), images)
    whole = model.classifier[1](model.classifier[0](model.features(images)))[:, chosen]  # type: ignore[index]
    (expected,) = torch.autograd.grad(whole.square().sum(), images)
    torch.testing.assert_close(found, expected)
    assert found.abs().max() > 0


def test_features_are_flat_and_lead_to_the_logits() -> None:
    for name, size in (("ConvNet", 8), ("AlexNet", 8), ("ResNet18", 28), ("VGG11", 28)):
        model, images = small(name, size=size), noise(2, 1, size, size)
        with torch.no_grad():
            features = model.features(images)
            assert features.ndim == 2
            torch.testing.assert_close(model.classifier(features), model(images))


def test_grey_images_get_a_border_only_before_the_first_convolution() -> None:
    padding = [module.padding for module in small(size=32).modules() if isinstance(module, nn.Conv2d)]
    assert padding == [(3, 3), (1, 1)]
    padding = [module.padding for module in small(first_padding=1).modules() if isinstance(module, nn.Conv2d)]
    assert padding == [(1, 1), (1, 1)]


@pytest.mark.parametrize(
    ("name", "options", "layer", "message"),
    [
        ("ConvNet", {}, -5, "between -4 and -1 for this network, not -5"),
        ("ConvNet", {}, 0, "between -4 and -1 for this network, not 0"),
        ("ConvNet", {"norm": "instancenorm"}, -3, "features.5.weight, is no layer with neurons"),
        ("VGG11", {"size": 28}, -2, "features.26.weight, is no layer with neurons"),
        ("ResNet18", {"size": 28}, -4, "layer4.1.conv2.weight, is no layer with neurons"),
    ],
)
def test_a_layer_that_cannot_be_followed_is_refused(
    name: str, options: dict[str, Any], layer: int, message: str
) -> None:
    model = small(name, **options)
    with pytest.raises(TenfoldError, match=message):
        model.hidden(noise(1, 1, 8, 8), layer)


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        (("LeNet", 1, 10), {}, "unknown network 'LeNet'; choose ConvNet"),
        (("ConvNet", 1, 10), {"activation": "swish"}, "unknown activation 'swish'; choose one of relu"),
        (("ConvNet", 1, 10), {"norm": "weightnorm"}, "unknown norm 'weightnorm'; choose one of none"),
        (("ConvNet", 1, 10), {"pooling": "max"}, "unknown pooling 'max'; choose one of avgpooling"),
        (("ConvNet", 1, 10), {"norm": "groupnorm", "width": 6}, "a width that 4 divides, not 6"),
        (("ConvNet", 3, 10), {"depth": 4, "image_size": 8}, "leave nothing of images of 8 pixels"),
        (("ConvNet", 3, 10), {"depth": 0}, "are at least 1"),
        (("VGG11", 3, 10), {"image_size": 28}, "VGG11 takes images of 32 pixels, or grey ones of 28, not 28"),
        (("ResNet18", 1, 10), {"image_size": 8}, "ResNet18 takes images of 28 or 32 pixels, not 8"),
    ],
)
def test_a_network_that_cannot_be_is_refused(
    arguments: tuple[Any, ...], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(TenfoldError, match=message):
        build_model(*arguments, **options)


def test_weights_are_loaded_strictly() -> None:
    model = small()
    weights = {name: value + 1 for name, value in model.state_dict().items()}
    load_official_state_dict(model, weights)
    assert torch.equal(model.state_dict()["classifier.2.bias"], weights["classifier.2.bias"])
    less = {name: value for name, value in weights.items() if name != "features.3.bias"}
    with pytest.raises(TenfoldError, match=r"missing \['features.3.bias'\], unexpected none"):
        load_official_state_dict(model, less)
    with pytest.raises(TenfoldError, match=r"missing none, unexpected \['fc.weight'\]"):
        load_official_state_dict(model, {**weights, "fc.weight": torch.zeros(1)})
    with pytest.raises(TenfoldError, match=r"classifier.2.bias has the shape \[3\], not \[10\]"):
        load_official_state_dict(model, {**weights, "classifier.2.bias": torch.zeros(3)})


def test_initial_weights_depend_on_their_seed_alone() -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first, again = small(), small()
    assert torch.equal(torch.get_rng_state(), before)
    with seeded(4):
        other = build_model("ConvNet", 1, 10, width=8, depth=2, hidden=12, image_size=8)
    for name, value in first.state_dict().items():
        assert torch.equal(value, again.state_dict()[name])
        assert not torch.equal(value, other.state_dict()[name])


def test_options_choose_the_layers_of_the_table() -> None:
    found = {
        name: [module for module in small(norm=name, width=12).modules() if isinstance(module, kind)]
        for name, kind in (
            ("batchnorm", nn.BatchNorm2d),
            ("layernorm", nn.LayerNorm),
            ("instancenorm", nn.GroupNorm),
            ("groupnorm", nn.GroupNorm),
        )
    }
    assert all(len(modules) == 2 for modules in found.values())
    assert [module.normalized_shape for module in found["layernorm"]] == [(12, 12, 12), (12, 6, 6)]
    assert {module.num_groups for module in found["instancenorm"]} == {12}
    assert {module.num_groups for module in found["groupnorm"]} == {4}
    leaky = [module for module in small(activation="leakyrelu").modules() if isinstance(module, nn.LeakyReLU)]
    assert [module.negative_slope for module in leaky] == [0.01, 0.01]
    local = [module for module in small("AlexNet").modules() if isinstance(module, nn.LocalResponseNorm)]
    assert [(norm.size, norm.alpha, norm.beta, norm.k) for norm in local] == [(4, 0.001 / 9, 0.75, 1)] * 2


def test_the_norm_of_whole_maps_is_torchs_layer_norm() -> None:
    model, images = small(norm="layernorm", channels=3), noise(5, 3, 8, 8)
    ours = model.features[1]  # type: ignore[index]
    maps = model.features[0](images)  # type: ignore[index]
    with torch.no_grad():
        ours.weight.copy_(noise(*ours.weight.shape, seed=1))
        ours.bias.copy_(noise(*ours.bias.shape, seed=2))
    expected = nn.functional.layer_norm(maps, ours.normalized_shape, ours.weight, ours.bias, ours.eps)
    torch.testing.assert_close(ours(maps), expected)
