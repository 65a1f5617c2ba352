"""SECOND and its neck, VoVNet, ResNet-50, CPFPN and the grid mask by their descriptions; sizes of whole networks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models import resnet50

from tenfold.cmt.bev_backbone import Second, SecondFpn
from tenfold.cmt.config import BGR_MEAN, BGR_STD, HeadConfig, ImageConfig, LidarConfig, NetworkConfig
from tenfold.cmt.detector import Cmt
from tenfold.cmt.grid_mask import apply_grid_mask, draw_grid_mask, grid_mask
from tenfold.cmt.head import CmtHead
from tenfold.cmt.image_backbone import CPFPN, ResNet50, VoVNet, make_image_backbone
from tenfold.cmt.profiles import PROFILES
from tenfold.cmt.sparse_encoder import SparseEncoder
from tenfold.shared.logging import TenfoldError

pytestmark = pytest.mark.usefixtures("cpu")

MakeDetector = Callable[..., Cmt]


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def with_lively_norms(network: nn.Module, seed: int = 0) -> Any:
    """Batch norms that do something, in evaluation too."""
    generator = torch.Generator().manual_seed(seed)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            for values, low, high in (
                (module.weight, 0.5, 1.5),
                (module.bias, -0.2, 0.2),
                (module.running_mean, -0.2, 0.2),
                (module.running_var, 0.5, 2.0),
            ):
                assert values is not None
                nn.init.uniform_(values, low, high, generator=generator)
    return network


def unit(
    state: dict[str, Tensor], values: Tensor, conv: str, norm: str, eps: float = 1e-5, **shape: Any
) -> Tensor:
    """Convolution, batch norm in evaluation and ReLU, by the names of weights."""
    convolution = F.conv_transpose2d if shape.pop("transposed", False) else F.conv2d
    values = convolution(values, state[f"{conv}.weight"], **shape)
    mean, var, gain, bias = (state[f"{norm}.{n}"] for n in ("running_mean", "running_var", "weight", "bias"))
    scale = gain / (var + eps).sqrt()
    return F.relu((values - mean[:, None, None]) * scale[:, None, None] + bias[:, None, None])


# -- SECOND ----------------------------------------------------------------------------------------------


def test_second_and_its_neck_have_the_papers_shapes() -> None:
    backbone, neck = Second(256).eval(), SecondFpn((128, 256), 256).eval()
    with torch.no_grad():
        levels = backbone(noise(1, 256, 12, 8))
        joined = neck(levels)
    assert [tuple(level.shape) for level in levels] == [(1, 128, 12, 8), (1, 256, 6, 4)]
    assert joined.shape == (1, 512, 12, 8)


def test_second_is_its_convolutions_in_a_row() -> None:
    backbone, bev = with_lively_norms(Second(6, (4, 5), 2)).eval(), noise(2, 6, 8, 10)
    state = backbone.state_dict()
    expected, values = [], bev
    for block in (0, 1):
        for place in (0, 3, 6):
            stride = 2 if block == 1 and place == 0 else 1
            name = f"blocks.{block}"
            values = unit(
                state, values, f"{name}.{place}", f"{name}.{place + 1}", 1e-3, padding=1, stride=stride
            )
        expected.append(values)
    with torch.no_grad():
        found = backbone(bev)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("size", [(8, 10), (5, 7)])
def test_the_neck_joins_the_fine_level_and_the_enlarged_coarse_one(size: tuple[int, int]) -> None:
    neck = with_lively_norms(SecondFpn((4, 5), 3)).eval()
    halves = [(side + 1) // 2 for side in size]
    fine, coarse = noise(2, 4, *size), noise(2, 5, *halves, seed=1)
    state = neck.state_dict()
    first = unit(state, fine, "deblocks.0.0", "deblocks.0.1", 1e-3)
    second = unit(state, coarse, "deblocks.1.0", "deblocks.1.1", 1e-3, transposed=True, stride=2)
    with torch.no_grad():
        found = neck((fine, coarse))
    expected = torch.cat((first, second[..., : size[0], : size[1]]), dim=1)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("size", [(5, 7), (1, 1), (6, 3)])
def test_maps_of_odd_sizes_pass(size: tuple[int, int]) -> None:
    levels = Second(6, (4, 5), 1).eval()(noise(1, 6, *size))
    assert SecondFpn((4, 5), 3).eval()(levels).shape == (1, 6, *size)


def test_norms_of_the_lidar_branch_have_the_released_constants() -> None:
    for part in (Second(4), SecondFpn((4, 5), 3), SparseEncoder(LidarConfig())):
        norms = [one for one in part.modules() if isinstance(one, nn.BatchNorm1d | nn.BatchNorm2d)]
        assert norms
        assert {(one.eps, one.momentum) for one in norms} == {(1e-3, 0.01)}


# -- VoVNet ----------------------------------------------------------------------------------------------

BLOCKS = {"vovnet-99": (1, 3, 9, 3), "vovnet-39": (1, 1, 2, 2), "vovnet-tiny": (1, 1, 1, 1)}


def plain_vovnet(
    state: dict[str, Tensor], images: Tensor, blocks: tuple[int, ...], depth: int
) -> list[Tensor]:
    """Section 1.2, by the released names of weights."""
    values = images
    for place, stride in ((1, 2), (2, 1), (3, 2)):
        name = f"stem.stem_{place}"
        values = unit(state, values, f"{name}/conv", f"{name}/norm", padding=1, stride=stride)
    stages = []
    for stage, count in enumerate(blocks, start=2):
        if stage > 2:
            values = F.max_pool2d(values, 3, 2, ceil_mode=True)
        for block in range(1, count + 1):
            name, parts = f"OSA{stage}_{block}", [values]
            for place in range(depth):
                layer = f"stage{stage}.{name}.layers.{place}.{name}_{place}"
                parts.append(unit(state, parts[-1], f"{layer}/conv", f"{layer}/norm", padding=1))
            layer = f"stage{stage}.{name}.concat.{name}_concat"
            joined = unit(state, torch.cat(parts, 1), f"{layer}/conv", f"{layer}/norm")
            gate = f"stage{stage}.{name}.ese.fc"
            excited = F.conv2d(
                F.adaptive_avg_pool2d(joined, 1), state[f"{gate}.weight"], state[f"{gate}.bias"]
            )
            joined = joined * (F.relu6(excited + 3) / 6)
            values = joined + values if block > 1 else joined
        stages.append(values)
    return stages[-2:]


@pytest.mark.parametrize(("name", "depth"), [("vovnet-99", 5), ("vovnet-39", 5), ("vovnet-tiny", 3)])
def test_vovnet_is_its_description(name: Any, depth: int) -> None:
    torch.manual_seed(0)
    backbone, images = with_lively_norms(VoVNet(name)).eval(), noise(1, 3, 64, 96)
    with torch.no_grad():
        found = backbone(images)
        expected = plain_vovnet(backbone.state_dict(), images, BLOCKS[name], depth)
    for one, other in zip(found, expected, strict=True):
        scale = float(other.abs().max())
        torch.testing.assert_close(one / scale, other / scale, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "widths"),
    [
        ("vovnet-99", (768, 1024)),
        ("vovnet-39", (768, 1024)),
        ("vovnet-tiny", (64, 96)),
        ("resnet-50", (1024, 2048)),
    ],
)
def test_backbones_give_the_strides_16_and_32_that_the_neck_expects(
    name: Any, widths: tuple[int, int]
) -> None:
    config = ImageConfig(name, size=(64, 96))
    with torch.device("meta"):
        backbone, images = make_image_backbone(config), torch.empty(2, 3, 64, 96)
    fine, coarse = backbone(images)
    assert backbone.out_channels == widths
    assert fine.shape == (2, widths[0], 4, 6)
    assert coarse.shape == (2, widths[1], 2, 3)


# -- ResNet ----------------------------------------------------------------------------------------------


def test_resnet_50_is_torchvisions() -> None:
    torch.manual_seed(0)
    ours, theirs = ResNet50().eval(), with_lively_norms(resnet50(weights=None)).eval()
    ours.load_state_dict({k: v for k, v in theirs.state_dict().items() if not k.startswith("fc.")})
    images = noise(1, 3, 64, 96)
    with torch.no_grad():
        found = ours(images)
        values = theirs.maxpool(theirs.relu(theirs.bn1(theirs.conv1(images))))
        fine = theirs.layer3(theirs.layer2(theirs.layer1(values)))
        expected = (fine, theirs.layer4(fine))
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


# -- batch norms and checkpointing -----------------------------------------------------------------------


def statistics(network: nn.Module) -> dict[str, Tensor]:
    return {name: buffer.clone() for name, buffer in network.named_buffers()}


@pytest.mark.parametrize("name", ["vovnet-tiny", "resnet-50"])
def test_norms_in_evaluation_keep_their_statistics_in_training_and_still_learn(name: Any) -> None:
    backbone = make_image_backbone(ImageConfig(name)).train()
    before = statistics(backbone)
    fine, coarse = backbone(noise(2, 3, 32, 32))
    (fine.sum() + coarse.sum()).backward()
    for key, value in statistics(backbone).items():
        assert torch.equal(value, before[key]), key
    norms = [one for one in backbone.modules() if isinstance(one, nn.BatchNorm2d)]
    assert all(one.weight.grad is not None and one.bias.grad is not None for one in norms)


def test_norms_in_training_follow_the_batch() -> None:
    backbone = VoVNet("vovnet-tiny", batch_norm="training").train()
    before = statistics(backbone)
    backbone(noise(2, 3, 32, 32))
    assert all(not torch.equal(value, before[key]) for key, value in statistics(backbone).items())


def test_norms_in_evaluation_stay_so_when_the_whole_detector_trains(make_detector: MakeDetector) -> None:
    network = make_detector("camera")
    image = replace(network.network.image, batch_norm="evaluation")
    detector = Cmt(replace(network.network, image=image)).train()
    assert all(not one.training for one in detector.img_backbone.modules() if isinstance(one, nn.BatchNorm2d))
    assert detector.img_neck.training


@pytest.mark.parametrize("batch_norm", ["evaluation", "training"])
@pytest.mark.parametrize("name", ["vovnet-tiny", "resnet-50"])
def test_checkpointing_changes_neither_results_nor_gradients_nor_statistics(
    name: Any, batch_norm: Any
) -> None:
    outcomes = []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        config = ImageConfig(name, checkpointing=checkpointing, batch_norm=batch_norm)
        backbone = make_image_backbone(config).train()
        fine, coarse = backbone(noise(2, 3, 32, 32))
        (fine.mean() + coarse.square().mean()).backward()
        gradients = {key: p.grad for key, p in backbone.named_parameters()}
        outcomes.append(({"fine": fine, "coarse": coarse}, gradients, statistics(backbone)))
    for plain, checkpointed in zip(*outcomes, strict=True):
        for key, value in plain.items():
            torch.testing.assert_close(checkpointed[key], value, msg=lambda text, key=key: f"{key}: {text}")


# -- neck ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("coarse_size", [(2, 3), (2, 4)])
def test_the_image_neck_adds_the_enlarged_coarse_level_and_smooths_the_fine_one(
    coarse_size: tuple[int, int],
) -> None:
    neck = CPFPN((3, 5), 4)
    for parameter in neck.parameters():
        nn.init.normal_(parameter)
    state = neck.state_dict()
    fine, coarse = noise(2, 3, 2 * coarse_size[0], 2 * coarse_size[1]), noise(2, 5, *coarse_size, seed=1)
    lateral = [
        F.conv2d(
            values, state[f"lateral_convs.{place}.conv.weight"], state[f"lateral_convs.{place}.conv.bias"]
        )
        for place, values in enumerate((fine, coarse))
    ]
    added = lateral[0] + lateral[1].repeat_interleave(2, 2).repeat_interleave(2, 3)
    smoothed = F.conv2d(added, state["fpn_convs.0.conv.weight"], state["fpn_convs.0.conv.bias"], padding=1)
    found = neck(fine, coarse)
    torch.testing.assert_close(found[0], smoothed, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found[1], lateral[1], rtol=1e-4, atol=1e-5)
    assert not [key for key in state if key.startswith("fpn_convs.1")]


# -- sizes (section 2) -----------------------------------------------------------------------------------


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


HEADS: dict[str, tuple[Any, int]] = {"fusion": ("fusion", 1), "lidar": ("lidar", 3), "camera": ("camera", 1)}
PARTS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "V-99": (lambda: VoVNet("vovnet-99"), 69_523_520),
    "neck of V-99": (lambda: CPFPN((768, 1024), 256), 1_049_344),
    "ResNet-50": (ResNet50, 23_508_032),
    "neck of ResNet-50": (lambda: CPFPN((1024, 2048), 256), 1_377_024),
    "sparse encoder": (lambda: SparseEncoder(LidarConfig()), 2_694_352),
    "SECOND": (lambda: Second(256), 4_280_832),
    "neck of SECOND": (lambda: SecondFpn((128, 256), 256), 295_936),
    "head of both": (lambda: CmtHead(HeadConfig(), "fusion", LidarConfig().point_range), 8_763_396),
    "head of LiDAR": (
        lambda: CmtHead(HeadConfig(task_kernel=3), "lidar", LidarConfig().point_range),
        9_498_372,
    ),
    "head of cameras": (lambda: CmtHead(HeadConfig(), "camera", LidarConfig().point_range), 7_583_236),
}


@pytest.mark.parametrize("part", PARTS)
def test_parts_have_as_many_parameters_as_the_released_ones(part: str) -> None:
    make, expected = PARTS[part]
    with torch.device("meta"):
        assert count(make()) == expected


@pytest.mark.parametrize(
    ("profile", "parameters", "map_size", "pixels"),
    [
        ("cmt_voxel0075_vov_1600x640", 86_607_380, (180, 180), (640, 1600)),
        ("cmt_voxel0100_r50_800x320", 40_919_572, (128, 128), (320, 800)),
        ("cmt_voxel0100_r50_800x320_range51", 40_919_572, (128, 128), (320, 800)),
        ("cmt_lidar_voxel0075", 16_769_492, (180, 180), None),
        ("cmt_camera_vov_1600x640", 78_156_100, None, (640, 1600)),
    ],
)
def test_the_papers_networks_have_their_sizes(
    profile: str, parameters: int, map_size: tuple[int, int] | None, pixels: tuple[int, int] | None
) -> None:
    network: NetworkConfig = PROFILES[profile].methods[0].network
    with torch.device("meta"):
        assert count(Cmt(network)) == parameters
    assert (network.lidar.map_size if network.reads_points else None) == map_size
    assert (network.image.size if network.reads_images else None) == pixels


# -- grid mask -------------------------------------------------------------------------------------------


def plain_grid_mask(height: int, width: int, period: int, row: int, column: int, ratio: float) -> np.ndarray:
    """Stripes drawn one after another on a canvas of 1.5 times the size, whose middle is cut out."""
    tall, wide = int(1.5 * height), int(1.5 * width)
    breadth = min(max(int(period * ratio + 0.5), 1), period - 1)
    canvas = np.zeros((tall, wide), bool)
    for number in range(tall // period):
        start = period * number + row
        canvas[start : min(start + breadth, tall)] = True
    for number in range(wide // period):
        start = period * number + column
        canvas[:, start : min(start + breadth, wide)] = True
    top, left = (tall - height) // 2, (wide - width) // 2
    return canvas[top : top + height, left : left + width]


@pytest.mark.parametrize("size", [(16, 24), (15, 33), (9, 7)])
def test_the_grid_mask_is_that_of_a_loop_over_stripes(size: tuple[int, int]) -> None:
    generator = np.random.default_rng(0)
    for period in range(2, size[0]):
        for ratio in (0.5, 0.3, 0.9):
            row, column = generator.integers(period, size=2).tolist()
            found = grid_mask(*size, period, row, column, ratio)
            expected = plain_grid_mask(*size, period, row, column, ratio)
            np.testing.assert_array_equal(found.numpy(), expected, err_msg=f"period {period}, ratio {ratio}")


def test_masks_are_drawn_with_their_probability() -> None:
    generator = np.random.default_rng(0)
    drawn = [draw_grid_mask((32, 64), generator, 0.7) for _ in range(4000)]
    share = sum(one is not None for one in drawn) / len(drawn)
    assert share == pytest.approx(0.7, abs=4 * (0.21 / 4000) ** 0.5)


@pytest.mark.parametrize(("probability", "expected"), [(0.0, 0), (1.0, 200)])
def test_no_and_certain_masks(probability: float, expected: int) -> None:
    generator = np.random.default_rng(0)
    drawn = [draw_grid_mask((32, 64), generator, probability) for _ in range(200)]
    assert sum(one is not None for one in drawn) == expected


def test_periods_fill_two_to_the_height_and_starts_their_period() -> None:
    generator = np.random.default_rng(0)
    drawn = [one for _ in range(3000) if (one := draw_grid_mask((12, 40), generator, 1.0)) is not None]
    assert {period for period, _, _ in drawn} == set(range(2, 12))
    assert {row for period, row, _ in drawn if period == 7} == set(range(7))
    assert {column for period, _, column in drawn if period == 7} == set(range(7))


def test_draws_repeat_with_their_generator() -> None:
    first, again, other = (
        [draw_grid_mask((64, 160), generator, 0.7) for _ in range(20)]
        for generator in (np.random.default_rng(seed) for seed in (0, 0, 1))
    )
    assert first == again
    assert first != other


def test_hidden_pixels_are_zero_and_the_others_stay() -> None:
    images, mask = noise(2, 3, 3, 16, 24), grid_mask(16, 24, 6, 1, 2)
    found = apply_grid_mask(images, mask)
    assert torch.equal(found[..., mask], images[..., mask])
    assert not found[..., ~mask].any()
    assert mask.any()
    assert not mask.all()


def test_the_backbone_sees_normalised_images_with_zeros_in_the_hidden_squares(
    make_detector: MakeDetector,
) -> None:
    network = make_detector("camera")
    images = torch.randint(0, 256, (1, 2, 3, 64, 160), generator=torch.Generator().manual_seed(0))
    mask, seen = grid_mask(64, 160, 20, 3, 5), []
    network.img_backbone.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].clone()))
    network.read_images(images.to(torch.uint8), mask)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (BGR_MEAN, BGR_STD))
    expected = (images[0].float() - mean) / std * mask
    torch.testing.assert_close(seen[0], expected, rtol=1e-4, atol=1e-5)


def test_images_too_low_for_a_grid_are_refused() -> None:
    with pytest.raises(TenfoldError, match="3 or more rows"):
        draw_grid_mask((2, 40), np.random.default_rng(0), 0.5)


def test_a_grid_without_gaps_is_refused() -> None:
    with pytest.raises(TenfoldError, match="at least 2 pixels"):
        grid_mask(16, 16, 1, 0, 0)
