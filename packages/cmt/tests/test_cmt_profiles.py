"""Profiles: the paper's to the letter, and that each of them, made small, learns on scenes in nuScenes' form."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from lightning_fabric import Fabric

from tenfold.cmt.config import DataConfig, LidarConfig, NetworkConfig
from tenfold.cmt.dataset import Place, TrainingSamples
from tenfold.cmt.detector import Cmt
from tenfold.cmt.nuscenes_index import NuScenesIndex
from tenfold.cmt.object_database import ObjectDatabase, build_database
from tenfold.cmt.profiles import MASKED, PROFILES, UNMASKED
from tenfold.cmt.suites import Method
from tenfold.cmt.training import Trainer, fade_step, train_detector
from tenfold.cmt.training_batches import batch_order, training_loader
from tenfold.shared.runs import Run

VOV = "cmt_voxel0075_vov_1600x640"
R50 = "cmt_voxel0100_r50_800x320"
RANGE51 = "cmt_voxel0100_r50_800x320_range51"
CMT_L = "cmt_lidar_voxel0075"
CMT_C = "cmt_camera_vov_1600x640"
PAPER = (VOV, R50, RANGE51, CMT_L, CMT_C)


def only(name: str) -> Method:
    """The method of a profile that has one."""
    (method,) = PROFILES[name].methods
    return method


# -- to the letter ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "count"),
    [
        (VOV, 86_607_380),
        (R50, 40_919_572),
        (RANGE51, 40_919_572),
        (CMT_L, 16_769_492),
        (CMT_C, 78_156_100),
    ],
)
def test_networks_have_as_many_parameters_as_the_released_ones(name: str, count: int) -> None:
    with torch.device("meta"):
        network = Cmt(only(name).network)
    assert sum(parameter.numel() for parameter in network.parameters()) == count


@pytest.mark.parametrize(
    ("name", "batch", "lr", "peak"),
    [
        (VOV, 8 * 2, 1e-4, 8e-4),
        (R50, 8 * 4, 1.4e-4, 8.4e-4),
        (RANGE51, 8 * 4, 1.4e-4, 8.4e-4),
        (CMT_L, 8 * 2, 1e-4, 6e-4),
        (CMT_C, 8 * 2, 1e-4, 8e-4),
    ],
)
def test_recipes_are_the_papers(name: str, batch: int, lr: float, peak: float) -> None:
    train = only(name).train
    assert (train.batch_size, train.lr) == (batch, lr)
    assert train.lr * train.peak_ratio == pytest.approx(peak)
    assert (train.epochs, train.steps, train.fade_epochs) == (20, 0, 5)
    assert fade_step(train, 1000) == 15_000
    assert (train.warm_part, train.final_ratio) == (0.4, 1e-4)
    assert 0.9 * train.momentum_ratio == pytest.approx(0.805, abs=5e-4)
    assert (train.weight_decay, train.clip) == (0.01, 35.0)
    assert (train.image_backbone_lr, train.image_backbone_decay, train.image_neck_lr) == (0.01, 5.0, 0.1)


@pytest.mark.parametrize("name", PAPER)
def test_heads_and_losses_are_the_papers(name: str) -> None:
    head, losses = only(name).network.head, only(name).losses
    assert (head.hidden, head.heads, head.feedforward, head.layers) == (256, 8, 1024, 6)
    assert (head.queries, head.depth_bins, head.task_channels, head.dropout) == (900, 64, 64, 0.1)
    assert head.task_kernel == (3 if name == CMT_L else 1)
    assert (head.regression_order, head.query_start) == ("official", "uniform")
    assert head.image_position and head.bev_position and head.guided_queries
    assert not head.aligned_start
    assert (losses.class_weight, losses.box_weight) == (2.0, 0.25)
    assert (losses.match_class_weight, losses.match_box_weight) == (2.0, 0.25)
    assert (losses.focal_alpha, losses.focal_gamma, losses.background_weight) == (0.25, 2.0, 0.1)
    assert losses.code_weights == (2.0, 2.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.2, 0.2)
    assert (losses.denoising_groups, losses.noise_scale, losses.noise_translation) == (10, 1.0, 0.0)
    assert (losses.noise_split, losses.denoising_weight) == (0.75, 1.0)


@pytest.mark.parametrize(
    ("name", "voxel", "side", "grid"),
    [
        (VOV, 0.075, 54.0, 1440),
        (CMT_L, 0.075, 54.0, 1440),
        (R50, 0.1, 54.0, 1024),
        (RANGE51, 0.1, 51.2, 1024),
    ],
)
def test_lidar_branches_are_the_papers(name: str, voxel: float, side: float, grid: int) -> None:
    lidar = only(name).network.lidar
    assert lidar.voxel_size == (voxel, voxel, 0.2)
    assert lidar.point_range == (-side, -side, -5.0, side, side, 3.0)
    assert lidar.grid == (grid, grid, 40)
    assert lidar.map_size == (grid // 8, grid // 8)
    assert lidar.map_channels == 512
    assert (lidar.max_points_per_voxel, lidar.max_voxels_train, lidar.max_voxels_test) == (
        10,
        120_000,
        160_000,
    )
    assert lidar.encoder_channels == ((16, 32), (32, 64), (64, 128), (128, 128))
    assert (lidar.encoder_out, lidar.second_channels, lidar.second_layers) == (128, (128, 256), 5)


@pytest.mark.parametrize(
    ("name", "backbone", "size", "resize", "test", "grid_mask"),
    [
        (VOV, "vovnet-99", (640, 1600), (0.94, 1.25), 1.0, 0.7),
        (CMT_C, "vovnet-99", (640, 1600), (0.94, 1.25), 1.0, 0.0),
        (R50, "resnet-50", (320, 800), (0.47, 0.625), 0.5, 0.7),
        (RANGE51, "resnet-50", (320, 800), (0.47, 0.625), 0.5, 0.7),
    ],
)
def test_image_branches_are_the_papers(
    name: str,
    backbone: str,
    size: tuple[int, int],
    resize: tuple[float, float],
    test: float,
    grid_mask: float,
) -> None:
    image = only(name).network.image
    assert (image.backbone, image.size, image.original_size) == (backbone, size, (900, 1600))
    assert (image.resize_train, image.resize_test, image.flip) == (resize, test, 0.5)
    assert (image.grid_mask, image.batch_norm) == (grid_mask, "evaluation")
    assert image.checkpointing == (backbone == "resnet-50")


@pytest.mark.parametrize("name", PAPER)
def test_augmentations_are_the_papers(name: str) -> None:
    augment = only(name).augment
    assert not augment.legacy_reverse_rotation
    if name == CMT_C:
        assert (augment.rotation, augment.scale) == ((-0.3925, 0.3925), (0.95, 1.05))
        assert (augment.translation, augment.flip_x, augment.flip_y) == (0.0, 0.0, 0.0)
        assert not augment.ground_truth_sampling
    else:
        assert (augment.rotation, augment.scale) == ((-0.785, 0.785), (0.9, 1.1))
        assert (augment.translation, augment.flip_x, augment.flip_y) == (0.5, 0.5, 0.5)
        assert augment.ground_truth_sampling
        assert augment.shuffle
    masked = 0.0 if name in (CMT_L, CMT_C) else 0.25
    assert (augment.drop_images, augment.drop_points) == (masked, masked)


@pytest.mark.parametrize("name", PAPER)
def test_the_papers_data_are_balanced_nuscenes_with_ten_sweeps(name: str) -> None:
    data = PROFILES[name].data
    assert (data.dataset, data.version) == ("nuscenes", "v1.0-trainval")
    assert (data.train_split, data.test_split) == ("train", "val")
    assert data.sweeps == 10
    assert data.class_balanced
    assert PROFILES[name].scenes is None


@pytest.mark.parametrize("name", PAPER)
def test_modalities_and_conditions_are_the_papers(name: str) -> None:
    method = only(name)
    assert method.network.modality == {CMT_L: "lidar", CMT_C: "camera"}.get(name, "fusion")
    single = ("no-lidar", "no-cameras")
    assert method.network.modality != "fusion" or set(single) <= set(method.conditions)


@pytest.mark.parametrize("name", ["ablation", "cmt_voxel0100_r50_800x320_ablation"])
def test_ablations_change_one_thing_each(name: str) -> None:
    methods = {method.name: method for method in PROFILES[name].methods}
    whole = methods["CMT"]
    masking = replace(whole.augment, drop_images=0.0, drop_points=0.0)
    plain = replace(whole.losses, denoising_groups=0)

    def head(**changes: bool) -> NetworkConfig:
        return replace(whole.network, head=replace(whole.network.head, **changes))  # type: ignore[arg-type]

    expected = {
        "CMT without masked-modal training": replace(whole, augment=masking),
        "CMT without denoising": replace(whole, losses=plain),
        "CMT without image positions": replace(whole, network=head(image_position=False)),
        "CMT without map positions": replace(whole, network=head(bev_position=False)),
        "CMT with free queries": replace(whole, network=head(guided_queries=False), losses=plain),
    }
    for title, method in expected.items():
        assert methods[title] == replace(method, name=title)


@pytest.mark.parametrize("name", ["quick", "smoke"])
def test_masked_and_unmasked_methods_differ_in_masking_alone(name: str) -> None:
    masked, unmasked = PROFILES[name].methods
    assert (masked.name, unmasked.name) == (MASKED, UNMASKED)
    assert (masked.augment.drop_images, masked.augment.drop_points) == (0.25, 0.25)
    augment = replace(masked.augment, drop_images=0.0, drop_points=0.0)
    assert unmasked == replace(masked, name=UNMASKED, augment=augment)


# -- made small ------------------------------------------------------------------------------------------


def reduced(network: NetworkConfig) -> NetworkConfig:
    """Narrow, with few queries and coarse voxels for small images; every other choice stays."""
    lidar, image, head = network.lidar, network.image, network.head
    coarse = {0.075: 18.0, 0.1: 16.0, 0.2: 8.0}[lidar.voxel_size[0]]
    x, y, z = lidar.voxel_size
    cells = lidar.cells
    lidar = replace(
        lidar,
        voxel_size=(coarse * x, coarse * y, z),
        cells=None if cells is None else (round(cells[0] / coarse), round(cells[1] / coarse), cells[2]),
        encoder_channels=((8, 8), (8, 16), (16, 16), (16, 16)),
        encoder_out=16,
        second_channels=(16, 32),
        second_layers=1,
        neck_channels=16,
    )
    image = replace(
        image,
        # One real ResNet-50 is enough.
        backbone="resnet-50" if lidar.cells is not None else "vovnet-tiny",
        size=(32, 32) if image.resize_test < 0.4 else (32, 64) if image.resize_test < 0.6 else (64, 128),
        original_size=(90, 160),
    )
    head = replace(head, hidden=32, heads=2, feedforward=64, queries=36, layers=2)
    return replace(network, lidar=lidar, image=image, head=head)


@pytest.fixture(scope="module")
def database(
    index: NuScenesIndex, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[bool], ObjectDatabase]:
    """Objects to paste, with or without crops of images."""
    folder = tmp_path_factory.mktemp("objects")
    return lambda images: build_database(index, index.root, 1, images, folder, 1)


SmallTraining = Callable[[Method, int, bool], tuple[TrainingSamples, Any, Method]]


@pytest.fixture(scope="module")
def small_training(index: NuScenesIndex, database: Callable[[bool], ObjectDatabase]) -> SmallTraining:
    """A method made small, with its samples and their order."""

    def make(method: Method, steps: int, balanced: bool) -> tuple[TrainingSamples, Any, Method]:
        train = replace(method.train, steps=steps, batch_size=2, log_every=1, fade_part=1 / 3)
        is_small = method.network.lidar.point_range[0] == -16.0  # for generated scenes as they are
        network = method.network if is_small else reduced(method.network)
        method = replace(method, network=network, train=train)
        data = DataConfig("procedural", index.version, index.split, sweeps=1, workers=0)
        order = batch_order(index, replace(data, class_balanced=balanced), 2, 0)
        pastes = method.augment.ground_truth_sampling
        objects = database(method.network.reads_images) if pastes else None
        fade = fade_step(train, order.steps_per_epoch)
        return (
            TrainingSamples(index.root, index, method.network, data, method.augment, 0, objects, fade),
            order,
            method,
        )

    return make


PAPER_METHODS = [
    pytest.param(method, id=f"{name}-{place}")
    for name in (*PAPER, "cmt_voxel0100_r50_800x320_ablation")
    for place, method in enumerate(PROFILES[name].methods)
    if name in PAPER or place > 0
]


@pytest.mark.parametrize("method", PAPER_METHODS)
def test_methods_on_nuscenes_learn_with_and_without_pasted_objects(
    method: Method, small_training: SmallTraining, cpu: Fabric, make_run: Callable[..., Run]
) -> None:
    """Two updates, and a third of the fade stage; with balanced classes and grid mask."""
    samples, order, method = small_training(method, 3, True)
    assert samples.fade_step == 2
    torch.manual_seed(0)
    network = Cmt(method.network)
    run = make_run("paper", checkpoint_seconds=3600)
    with run:
        train_detector(network, samples, order, method.train, method.losses, cpu, run)
    history = run.history()
    assert [row["step"] for row in history] == [1, 2, 3]
    assert all(math.isfinite(value) for row in history for value in row.values())
    assert all(value.isfinite().all() for value in network.state_dict().values())


@pytest.mark.parametrize("name", [VOV, CMT_L])
def test_objects_are_pasted_until_the_fade_stage(name: str, small_training: SmallTraining) -> None:
    samples, _, _ = small_training(only(name), 3, True)
    boxes = [
        sum(len(samples[Place(step, place, place)].labels) for place in range(len(samples)))
        for step in (0, 1, 2)
    ]
    most = sum(len(frame.training_boxes()[1]) for frame in samples.index.keyframes)
    assert min(boxes[:2]) > most
    assert boxes[2] <= most


UPDATED = [
    pytest.param(method, id=f"{name}-{place}")
    for name in ("h100", "mini", "ablation", "quick")
    for place, method in enumerate(PROFILES[name].methods)
]


@pytest.mark.parametrize("method", UPDATED)
def test_methods_on_other_data_learn(method: Method, small_training: SmallTraining, cpu: Fabric) -> None:
    samples, order, changed = small_training(method, 1, False)
    network = Cmt(changed.network)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    trainer = Trainer(network, changed.train, changed.losses, cpu, 2, 0)
    logged = trainer.learn(0, iter(training_loader(samples, order, 0, 1)))
    assert logged.isfinite().all()
    assert all(value.isfinite().all() for value in network.state_dict().values())
    changes = {name for name, value in network.state_dict().items() if not torch.equal(value, before[name])}
    assert "pts_bbox_head.task_heads.0.cls_logits.3.bias" in changes


@pytest.mark.parametrize("name", ["h100", "mini"])
def test_networks_for_one_gpu_can_be_built(name: str) -> None:
    for method in PROFILES[name].methods:
        with torch.device("meta"):
            Cmt(method.network)
        assert method.network.lidar.map_size == (64, 64)


def test_voxels_of_generated_scenes_leave_out_the_ground() -> None:
    """The LiDAR stands 1.84 m above it."""
    for name in ("smoke", "quick", "ablation"):
        for method in PROFILES[name].methods:
            lidar: LidarConfig = method.network.lidar
            assert -1.84 < lidar.point_range[2] < -1.5


def test_every_profile_is_described_in_one_line() -> None:
    for profile in PROFILES.values():
        assert profile.description
        assert "\n" not in profile.description
