"""CMT inside mmdet3d: what its pipelines and runner do with it is what our own do."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("mmdet3d")

from mmdet3d.engine.hooks import DisableObjectSampleHook
from mmdet3d.registry import DATASETS, METRICS, MODELS, TASK_UTILS, TRANSFORMS
from mmdet3d.structures import LiDARInstance3DBoxes
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.evaluator import Evaluator as MetricRunner
from mmengine.hooks import Hook
from mmengine.optim import build_optim_wrapper
from mmengine.registry import PARAM_SCHEDULERS, init_default_scope
from mmengine.runner import Runner
from mmengine.structures import InstanceData

from tenfold.cmt import openmmlab, profiles
from tenfold.cmt.assignment import assign, matching_costs
from tenfold.cmt.box_coding import encode_boxes
from tenfold.cmt.class_balance import class_balanced_indices
from tenfold.cmt.config import (
    CAMERAS,
    CLASSES,
    AugmentConfig,
    DataConfig,
    LossConfig,
    NetworkConfig,
    TrainConfig,
)
from tenfold.cmt.cyclic_schedule import CyclicSchedule
from tenfold.cmt.dataset import TestSamples, prepare
from tenfold.cmt.decoding import Detections
from tenfold.cmt.denoising import prepare_denoising
from tenfold.cmt.detector import Cmt
from tenfold.cmt.evaluation import Evaluator
from tenfold.cmt.image_transforms import draw_image_move, transform_images
from tenfold.cmt.losses import by_released_names, detection_losses
from tenfold.cmt.nuscenes_index import NuScenesIndex, load_index
from tenfold.cmt.object_database import build_database
from tenfold.cmt.openmmlab_adapters import make_batch, sample_of, settings
from tenfold.cmt.openmmlab_data import DATA_PREFIX, DATASET_CLASSES, write_infos
from tenfold.cmt.procedural_scenes import SceneConfig, generate_scenes
from tenfold.cmt.sample_reader import read_sample
from tenfold.cmt.samples import Batch, collate
from tenfold.cmt.scene_transforms import filter_range
from tenfold.cmt.sensor_conditions import Condition
from tenfold.cmt.submission import submission_boxes
from tenfold.cmt.training import parameter_groups
from tenfold.shared.logging import TenfoldError

pytestmark = pytest.mark.mmdet3d

SCENES = SceneConfig(train_scenes=2, keyframes=2, sweeps=1, lead_sweeps=2, azimuths=120)
SWEEPS = 2


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Generated scenes with the info files of both splits."""
    folder = generate_scenes(SCENES, tmp_path_factory.mktemp("scenes"))
    for kind, split in (("train", SCENES.train_split), ("val", SCENES.test_split)):
        write_infos(load_index(folder, SCENES.version, split), folder / f"infos_{kind}.json")
    return folder


@pytest.fixture(scope="module")
def index(root: Path) -> NuScenesIndex:
    return load_index(root, SCENES.version, SCENES.test_split)


def shipped(name: str) -> Config:
    return Config.fromfile(openmmlab.CONFIG_FOLDER / f"{name}.py")


@pytest.fixture(scope="module")
def config(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Config:
    """The shipped config of generated scenes on these ones, changed as --cfg-options changes configs."""
    config = shipped("cmt_procedural")
    changes: dict[str, Any] = {"work_dir": str(tmp_path_factory.mktemp("work"))}
    for loader in ("train_dataloader", "val_dataloader", "test_dataloader"):
        changes |= {f"{loader}.num_workers": 0, f"{loader}.persistent_workers": False}
        changes[f"{loader}.dataset.data_root"] = str(root)
    for evaluator in ("val_evaluator", "test_evaluator"):
        changes |= {
            f"{evaluator}.data_root": str(root),
            f"{evaluator}.ann_file": str(root / "infos_val.json"),
        }
    config.merge_from_dict(changes)
    init_default_scope("mmdet3d")
    return config


@pytest.fixture(scope="module")
def network(config: Config) -> NetworkConfig:
    return settings(NetworkConfig, config.model.network)


@pytest.fixture(scope="module")
def model(config: Config) -> Any:
    torch.manual_seed(0)
    return MODELS.build(config.model).eval()


@pytest.fixture(scope="module")
def native(model: Any, network: NetworkConfig) -> Cmt:
    """Our own detector with the same weights, which both name alike."""
    detector = Cmt(network)
    detector.load_state_dict(model.state_dict(), strict=True)
    return detector.eval()


def packed(dataset: Any, *places: int) -> dict[str, Any]:
    batch: dict[str, Any] = pseudo_collate([dataset[place] for place in places])
    return batch


@pytest.fixture(scope="module")
def val_dataset(config: Config) -> Any:
    return DATASETS.build(config.val_dataloader.dataset)


@pytest.fixture(scope="module")
def train_dataset(config: Config) -> Any:
    """Training samples of which nothing is dropped at random."""
    changed = config.train_dataloader.dataset.copy()
    changed.pipeline = [
        {**one, "drop_images": 0.0, "drop_points": 0.0} if one["type"] == "TenfoldSceneMove" else one
        for one in changed.pipeline
    ]
    return DATASETS.build(changed)


@pytest.fixture(scope="module")
def native_samples(root: Path, index: NuScenesIndex, network: NetworkConfig) -> TestSamples:
    return TestSamples(root, index, network, DataConfig(sweeps=SWEEPS), Condition("both"))


def assert_equal_batches(ours: Batch, theirs: Batch) -> None:
    assert ours.voxels is not None and theirs.voxels is not None
    assert ours.images is not None and theirs.images is not None
    assert torch.equal(ours.voxels.coordinates, theirs.voxels.coordinates)
    torch.testing.assert_close(ours.voxels.features, theirs.voxels.features, rtol=1e-5, atol=1e-5)
    assert torch.equal(ours.images.float(), theirs.images.float())
    torch.testing.assert_close(ours.lidar2image, theirs.lidar2image, rtol=0, atol=1e-4)


# -- data ------------------------------------------------------------------------------------------------


def test_info_files_hold_labels_in_the_order_of_the_dataset() -> None:
    dataset = DATASETS.get("mmdet3d.NuScenesDataset")
    assert dataset.METAINFO["classes"] == DATASET_CLASSES


def test_both_configs_find_files_where_info_files_say_they_are() -> None:
    for name in ("cmt_procedural", "cmt_voxel0075_vov_1600x640"):
        config = shipped(name)
        assert config.data_prefix == DATA_PREFIX
        assert tuple(config.classes) == CLASSES


def test_the_pipeline_reads_the_points_images_and_matrices_that_we_read(
    val_dataset: Any, index: NuScenesIndex, root: Path
) -> None:
    ours = read_sample(root, index.keyframes[1], SWEEPS, points=True, images=True, training=False)
    results = val_dataset.get_data_info(1) | {"box_type_3d": val_dataset.box_type_3d}
    for transform in val_dataset.pipeline.transforms[:3]:
        results = transform(results)
    theirs = sample_of(results)
    assert results["token"] == ours.token
    assert list(results["images"]) == list(CAMERAS)
    np.testing.assert_allclose(ordered(theirs.points), ordered(ours.points), rtol=0, atol=2e-6)
    np.testing.assert_array_equal(theirs.images, ours.images)
    np.testing.assert_allclose(theirs.lidar2image, ours.lidar2image, rtol=0, atol=1e-9)


def ordered(points: Any) -> Any:
    return points[np.lexsort(np.round(points.T, 3))]


def test_the_test_pipeline_prepares_the_batch_that_we_prepare(
    val_dataset: Any, native_samples: TestSamples, model: Any, network: NetworkConfig
) -> None:
    data = model.data_preprocessor(packed(val_dataset, 0, 1), training=False)
    theirs = make_batch(data["inputs"], data["data_samples"], network, training=False)
    assert_equal_batches(collate([native_samples[0], native_samples[1]]), theirs)


def test_the_training_pipeline_prepares_the_batch_and_boxes_that_we_prepare(
    train_dataset: Any, root: Path, index: NuScenesIndex, model: Any, network: NetworkConfig
) -> None:
    ours = native_training_batch(root, index, network)
    data = model.data_preprocessor(packed(train_dataset, 0, 1), training=True)
    theirs = make_batch(data["inputs"], data["data_samples"], network, training=True)
    assert_equal_batches(ours, theirs)
    assert theirs.counts == ours.counts
    assert torch.equal(theirs.labels, ours.labels)
    torch.testing.assert_close(theirs.boxes, ours.boxes, rtol=0, atol=1e-5)


def native_training_batch(root: Path, index: NuScenesIndex, network: NetworkConfig) -> Batch:
    move = draw_image_move(network.image, np.random.default_rng(0), training=False)
    samples = []
    for keyframe in index.keyframes[:2]:
        sample = read_sample(root, keyframe, SWEEPS, points=True, images=True, training=True)
        sample = transform_images(filter_range(sample, network.lidar.point_range), move)
        samples.append(prepare(sample, network, training=True))
    return collate(samples)


def test_a_wrong_place_of_files_is_an_error(index: NuScenesIndex, tmp_path: Path) -> None:
    moved = replace(index, keyframes=[replace(index.keyframes[0], lidar_path="elsewhere/a.bin")])
    with pytest.raises(TenfoldError, match=r"samples/LIDAR_TOP, but it is elsewhere/a\.bin"):
        write_infos(moved, tmp_path / "infos.json")


# -- the detector ----------------------------------------------------------------------------------------


def test_predictions_are_those_of_our_detector(
    val_dataset: Any, native_samples: TestSamples, model: Any, native: Cmt
) -> None:
    theirs = model.test_step(packed(val_dataset, 0, 1))
    ours = native.detect(collate([native_samples[0], native_samples[1]]))
    for sample, detections in zip(theirs, ours, strict=True):
        found = sample.pred_instances_3d
        torch.testing.assert_close(found.scores_3d, detections.scores, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(found.bboxes_3d.tensor, detections.boxes, rtol=1e-4, atol=1e-4)
        assert torch.equal(found.labels_3d, detections.labels)


def test_raw_outputs_and_features_are_those_of_our_detector(
    val_dataset: Any, native_samples: TestSamples, model: Any, native: Cmt
) -> None:
    batch = collate([native_samples[0], native_samples[1]])
    data = model.data_preprocessor(packed(val_dataset, 0, 1), training=False)
    with torch.no_grad():
        theirs, ours = model(**data, mode="tensor"), native(batch)
        features, bev = model.extract_feat(data["inputs"], data["data_samples"])
        assert batch.images is not None
        torch.testing.assert_close(features, native.read_images(batch.images), rtol=1e-4, atol=1e-4)
    assert bev.shape == (2, 128, *native.network.lidar.map_size)
    for name, value in ours.outputs.items():
        torch.testing.assert_close(theirs.outputs[name], value, rtol=1e-3, atol=1e-3)


def test_samples_without_boxes_have_finite_losses(train_dataset: Any, model: Any) -> None:
    data = packed(train_dataset, 0)
    truth = data["data_samples"][0].gt_instances_3d
    data["data_samples"][0].gt_instances_3d = truth[truth.labels_3d < 0]
    with torch.no_grad():
        losses = model(**model.data_preprocessor(data, training=True), mode="loss")
    assert all(torch.isfinite(value) for value in losses.values())
    assert losses["loss_cls"] > 0 and losses["loss_bbox"] == losses["dn_loss_cls"] == 0


def test_losses_are_those_of_our_detector_on_the_same_noise(
    train_dataset: Any,
    root: Path,
    index: NuScenesIndex,
    config: Config,
    network: NetworkConfig,
    model: Any,
    native: Cmt,
) -> None:
    losses = settings(LossConfig, config.model.losses)
    batch = native_training_batch(root, index, network)
    head = native.pts_bbox_head
    noised = prepare_denoising(
        batch.boxes,
        batch.labels,
        batch.counts,
        network.head.queries,
        head.low,
        head.extent,
        losses,
        generator=torch.Generator().manual_seed(7),
    )
    with torch.no_grad():
        predictions = native(batch, noised)
        rows = detection_losses(
            predictions, batch.boxes, batch.labels, batch.counts, losses, network.head, noised
        )
        data = model.data_preprocessor(packed(train_dataset, 0, 1), training=True)
        torch.manual_seed(7)
        theirs = model(**data, mode="loss")
    ours = by_released_names(rows)
    assert theirs.keys() == ours.keys()
    assert {"loss_cls", "loss_bbox", "dn_loss_cls", "d0.dn_loss_bbox"} <= theirs.keys()
    for name, value in ours.items():
        torch.testing.assert_close(theirs[name], value, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("modality", "key"), [("lidar", "points"), ("camera", "img")])
def test_a_detector_of_one_sensor_learns_from_it_alone(
    config: Config, train_dataset: Any, modality: str, key: str
) -> None:
    single = MODELS.build({**config.model, "network": {**config.model.network, "modality": modality}})
    data = packed(train_dataset, 0, 1)
    data["inputs"] = {key: data["inputs"][key]}
    losses = single(**single.data_preprocessor(data, training=True), mode="loss")
    total, _ = single.parse_losses(losses)
    total.backward()
    assert torch.isfinite(total)
    assert single.detector.pts_bbox_head.reference_points.weight.grad.abs().sum() > 0


def test_a_cloud_out_of_range_becomes_the_voxel_that_we_make_of_it(
    root: Path, index: NuScenesIndex, network: NetworkConfig
) -> None:
    lidar = replace(network, modality="lidar")
    sample = read_sample(root, index.keyframes[0], 0, points=True, images=False, training=False)
    assert sample.points is not None
    far = sample.points + np.float32(1000)
    ours = collate([prepare(replace(sample, points=far), lidar, training=False)])
    theirs = make_batch({"points": [torch.from_numpy(far)]}, None, lidar, training=False)
    assert ours.voxels is not None and theirs.voxels is not None
    assert torch.equal(theirs.voxels.features, ours.voxels.features)
    assert torch.equal(theirs.voxels.coordinates, ours.voxels.coordinates)


def test_images_of_another_size_are_an_error(val_dataset: Any, model: Any) -> None:
    data = packed(val_dataset, 0)
    data["inputs"]["img"] = [image[..., :32] for image in data["inputs"]["img"]]
    with pytest.raises(TenfoldError, match="TenfoldImageMove"):
        model.test_step(data)


def test_weights_have_the_released_names_and_load_into_another_detector(config: Config, model: Any) -> None:
    state = model.state_dict()
    assert "pts_bbox_head.reference_points.weight" in state
    assert not any(key.startswith("detector.") for key in state)
    other = MODELS.build(config.model)
    # As files that were written by mmcv's sparse convolution have it.
    key = "pts_middle_encoder.conv_input.0.weight"
    turned = {**state, key: state[key].permute(1, 2, 3, 4, 0).contiguous()}
    other.load_state_dict(turned, strict=True)
    for name, value in other.state_dict().items():
        assert torch.equal(value, state[name]), name


# -- parts -----------------------------------------------------------------------------------------------


def test_registering_again_changes_nothing() -> None:
    openmmlab.register()
    for registry, members in openmmlab.REGISTERED.items():
        for name, member in members.items():
            assert registry.get(name) is member


def test_lidar_parts_serve_a_detector_of_mmdet3d(
    config: Config, val_dataset: Any, native: Cmt, native_samples: TestSamples
) -> None:
    lidar = config.model.network.lidar
    layer = {
        "max_num_points": 10,
        "voxel_size": list(lidar.voxel_size),
        "point_cloud_range": list(lidar.point_range),
        "max_voxels": (120_000, 160_000),
    }
    foreign = MODELS.build(
        {
            "type": "MVXTwoStageDetector",
            "data_preprocessor": {"type": "Det3DDataPreprocessor", "voxel": True, "voxel_layer": layer},
            "pts_voxel_encoder": {"type": "HardSimpleVFE", "num_features": 5},
            "pts_middle_encoder": {"type": "TenfoldSparseEncoder", **lidar},
            "pts_backbone": {
                "type": "TenfoldSecond",
                "in_channels": native.pts_middle_encoder.out_channels,
                "channels": (64, 64),
                "layers": 1,
            },
            "pts_neck": {"type": "TenfoldSecondFpn", "in_channels": (64, 64), "out_channels": 64},
        }
    ).eval()
    weights = {key: value for key, value in native.state_dict().items() if key.startswith("pts_")}
    foreign.load_state_dict(
        {key: value for key, value in weights.items() if "bbox_head" not in key}, strict=True
    )
    data = foreign.data_preprocessor(packed(val_dataset, 0, 1), training=False)
    foreign.pts_bbox_head = torch.nn.Identity()  # without a head it extracts nothing
    with torch.no_grad():
        (theirs,) = foreign.extract_pts_feat(data["inputs"]["voxels"])
        batch = collate([native_samples[0], native_samples[1]])
        assert batch.voxels is not None
        ours = native.read_points(batch.voxels, 2)
    torch.testing.assert_close(theirs, ours, rtol=1e-4, atol=1e-4)


def test_image_parts_are_chained_as_those_of_mmdet3d() -> None:
    backbone = MODELS.build({"type": "TenfoldVoVNet", "variant": "vovnet-tiny"})
    neck = MODELS.build({"type": "TenfoldCPFPN", "in_channels": (64, 96), "out_channels": 32})
    fine, coarse = neck(backbone(torch.zeros(1, 3, 64, 96)))
    assert fine.shape == (1, 32, 4, 6)
    assert coarse.shape == (1, 32, 2, 3)


def test_the_head_is_built_from_plain_settings(config: Config, network: NetworkConfig) -> None:
    head = MODELS.build(
        {
            "type": "TenfoldCmtHead",
            "modality": "lidar",
            "point_range": list(network.lidar.point_range),
            "map_channels": 128,
            **config.model.network.head,
        }
    )
    assert head.config == network.head
    with torch.no_grad():
        assert head(torch.zeros(1, 128, 4, 4), None, None, (64, 160)).outputs["dim"].shape == (
            2,
            1,
            network.head.queries,
            3,
        )


def test_the_assigner_matches_as_our_losses_do(train_dataset: Any) -> None:
    truth = train_dataset[0]["data_samples"].gt_instances_3d
    generator = torch.Generator().manual_seed(0)
    codes, logits = torch.randn(30, 10, generator=generator), torch.randn(30, 10, generator=generator)
    assigner = TASK_UTILS.build({"type": "TenfoldHungarianAssigner"})
    result = assigner.assign(InstanceData(bboxes=codes, scores=logits), truth)
    targets = encode_boxes(truth.bboxes_3d.tensor)
    costs = matching_costs(
        codes[None, None], logits[None, None], targets[None], truth.labels_3d[None], LossConfig()
    )
    for number, query in enumerate(assign(costs, (len(targets),)).queries[0, 0].tolist()):
        assert result.gt_inds[query] == number + 1
        assert result.labels[query] == truth.labels_3d[number]
    assert int((result.gt_inds > 0).sum()) == len(targets)


# -- transforms ------------------------------------------------------------------------------------------


def loaded(dataset: Any, place: int = 0) -> dict[str, Any]:
    results = dataset.get_data_info(place) | {
        "box_type_3d": dataset.box_type_3d,
        "box_mode_3d": dataset.box_mode_3d,
    }
    for transform in dataset.pipeline.transforms[:4]:
        results = transform(results)
    return dict(results)


def test_a_moved_scene_keeps_its_points_at_their_pixels(train_dataset: Any) -> None:
    before = loaded(train_dataset)
    move = TRANSFORMS.build(
        {
            "type": "TenfoldSceneMove",
            "rotation": [0.5, 0.5],
            "translation": 0.5,
            "drop_images": 0,
            "drop_points": 0,
        }
    )
    np.random.seed(0)
    first, second = sample_of(before), sample_of(move(before))
    assert not np.allclose(first.points[:, :3], second.points[:, :3], atol=0.1)
    for one, other in ((first.points, second.points), (first.boxes, second.boxes)):
        corner = np.pad(one[:, :3], ((0, 0), (0, 1)), constant_values=1) @ first.lidar2image[0].T
        moved = np.pad(other[:, :3], ((0, 0), (0, 1)), constant_values=1) @ second.lidar2image[0].T
        np.testing.assert_allclose(moved, corner, rtol=0, atol=0.05)


def test_random_moves_repeat_with_mmengines_seed(train_dataset: Any) -> None:
    move = TRANSFORMS.build({"type": "TenfoldSceneMove"})
    states = []
    for seed in (0, 0, 1):
        np.random.seed(seed)
        states.append(sample_of(move(loaded(train_dataset))).boxes)
    np.testing.assert_array_equal(states[0], states[1])
    assert states[0].shape != states[2].shape or not np.allclose(states[0], states[2])


def test_pasted_objects_end_when_the_hook_of_mmdet3d_says_so(
    train_dataset: Any, index: NuScenesIndex, root: Path, tmp_path: Path
) -> None:
    database = build_database(index, root, SWEEPS, True, tmp_path)
    paste = TRANSFORMS.build({"type": "TenfoldPasteObjects", "database": str(database.folder)})
    before = loaded(train_dataset)
    count = len(before["gt_labels_3d"])
    np.random.seed(0)
    assert len(paste(dict(before))["gt_labels_3d"]) > count
    pasting = DATASETS.build(
        {
            "type": "NuScenesDataset",
            "data_root": str(root),
            "ann_file": "infos_train.json",
            "data_prefix": DATA_PREFIX,
            "modality": {"use_lidar": True, "use_camera": True},
            "pipeline": [paste],
        }
    )
    runner = SimpleNamespace(
        epoch=15,
        model=torch.nn.Module(),
        logger=SimpleNamespace(info=print),
        train_dataloader=SimpleNamespace(dataset=pasting),
    )
    DisableObjectSampleHook(disable_after_epoch=15).before_train_epoch(runner)
    assert len(paste(dict(before))["gt_labels_3d"]) == count


# -- runs ------------------------------------------------------------------------------------------------


def native_metrics(root: Path, index: NuScenesIndex, samples: TestSamples, detector: Cmt) -> dict[str, float]:
    results = {}
    for place, keyframe in enumerate(index.keyframes):
        (found,) = detector.detect(collate([samples[place]]))
        results[keyframe.token] = submission_boxes(
            found, keyframe.lidar2ego, keyframe.ego2global, keyframe.token
        )
    return Evaluator(root, SCENES.version, SCENES.test_split).evaluate(results).metrics()


def test_a_run_learns_evaluates_and_goes_on_from_its_checkpoint(
    config: Config, root: Path, index: NuScenesIndex, network: NetworkConfig, native_samples: TestSamples
) -> None:
    short = copy.deepcopy(config)
    short.merge_from_dict(
        {
            "train_cfg.max_iters": 20,
            "train_cfg.val_interval": 20,
            "train_dataloader.batch_size": 2,
            "default_hooks.logger.interval": 1,
            "default_hooks.checkpoint.interval": 20,
        }
    )
    runner = Runner.from_cfg(short)
    runner.train()
    history = runner.message_hub.get_scalar("train/loss").data[0]
    assert np.isfinite(history).all()
    assert np.mean(history[-5:]) < 0.95 * np.mean(history[:5])

    detector = Cmt(network)
    detector.load_state_dict(runner.model.state_dict())
    ours = native_metrics(root, index, native_samples, detector.eval())
    theirs = {name: runner.message_hub.get_scalar(f"val/NuScenes/{name}").current() for name in ours}
    assert {"NDS", "mAP", "mATE", "AP car"} <= theirs.keys()
    assert theirs == pytest.approx(ours, rel=1e-3, abs=1e-3)

    longer = copy.deepcopy(short)
    longer.merge_from_dict(
        {"train_cfg.max_iters": 22, "train_cfg.val_interval": 99, "experiment_name": "longer"}
    )
    longer.resume = True
    other = Runner.from_cfg(longer)
    steps: list[int] = []
    other.register_hook(Steps(steps))
    other.train()
    assert steps == [20, 21]


class Steps(Hook):
    """Keeps the numbers of the updates of a run."""

    def __init__(self, steps: list[int]) -> None:
        self.steps = steps

    def before_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None) -> None:
        self.steps.append(runner.iter)


def truth_as_predictions(dataset: Any, index: NuScenesIndex) -> list[Any]:
    """True boxes, moved a little, as the detector would give them."""
    generator = torch.Generator().manual_seed(0)
    samples = []
    for place, keyframe in enumerate(index.keyframes):
        sample = dataset[place]["data_samples"]
        boxes = torch.tensor(keyframe.boxes)
        boxes[:, :2] += 0.4 * torch.randn(len(boxes), 2, generator=generator)
        scores = torch.rand(len(boxes), generator=generator)
        order = scores.argsort(descending=True)
        sample.pred_instances_3d = InstanceData(
            bboxes_3d=LiDARInstance3DBoxes(boxes[order], box_dim=9),
            scores_3d=scores[order],
            labels_3d=torch.tensor(keyframe.labels)[order],
        )
        sample.pred_instances = InstanceData()
        samples.append(sample)
    return samples


def as_results(samples: list[Any], index: NuScenesIndex) -> dict[str, list[dict[str, Any]]]:
    results = {}
    for sample, keyframe in zip(samples, index.keyframes, strict=True):
        found = sample.pred_instances_3d
        detections = Detections(found.bboxes_3d.tensor, found.scores_3d, found.labels_3d)
        results[keyframe.token] = submission_boxes(
            detections, keyframe.lidar2ego, keyframe.ego2global, keyframe.token
        )
    return results


def judged(metric: Any, samples: list[Any], metainfo: dict[str, Any]) -> dict[str, float]:
    runner = MetricRunner([metric])
    runner.dataset_meta = metainfo
    runner.process(samples)
    metrics: dict[str, float] = runner.evaluate(len(samples))
    return metrics


def test_boxes_near_the_truth_are_judged_as_our_evaluator_judges_them(
    config: Config, val_dataset: Any, index: NuScenesIndex, root: Path
) -> None:
    samples = truth_as_predictions(val_dataset, index)
    ours = Evaluator(root, SCENES.version, SCENES.test_split).evaluate(as_results(samples, index)).metrics()
    theirs = judged(METRICS.build(config.val_evaluator), samples, val_dataset.metainfo)
    assert ours["mAP"] > 40
    assert theirs == pytest.approx({f"NuScenes/{name}": value for name, value in ours.items()})


def test_the_metric_of_mmdet3d_writes_the_boxes_that_we_write(
    val_dataset: Any, index: NuScenesIndex, root: Path, tmp_path: Path
) -> None:
    samples = truth_as_predictions(val_dataset, index)
    ours = as_results(samples, index)
    metric = {
        "type": "mmdet3d.NuScenesMetric",
        "data_root": str(root),
        "ann_file": str(root / "infos_val.json"),
        "format_only": True,
        "jsonfile_prefix": str(tmp_path),
    }
    judged(METRICS.build(metric), samples, val_dataset.metainfo)
    content = json.loads((tmp_path / "pred_instances_3d" / "results_nusc.json").read_text())
    for token, boxes in ours.items():
        for one, other in zip(boxes, content["results"][token], strict=True):
            assert one["detection_name"] == other["detection_name"]
            for key in ("translation", "size", "rotation", "velocity"):
                assert other[key] == pytest.approx(one[key], rel=1e-4, abs=1e-4)


def test_a_metric_can_write_a_submission_and_no_more(
    config: Config, val_dataset: Any, index: NuScenesIndex, tmp_path: Path
) -> None:
    path = tmp_path / "results.json"
    metric = METRICS.build({**config.test_evaluator, "submission": str(path), "format_only": True})
    samples = truth_as_predictions(val_dataset, index)
    assert judged(metric, samples, val_dataset.metainfo) == {}
    content = json.loads(path.read_text())
    assert content["results"] == as_results(samples, index)
    assert content["meta"]["use_camera"] and content["meta"]["use_lidar"]


# -- configs ---------------------------------------------------------------------------------------------


def test_the_quick_config_is_the_quick_profile(config: Config, network: NetworkConfig) -> None:
    (masked, _) = profiles.PROFILES["quick"].methods
    assert network == masked.network
    assert settings(LossConfig, config.model.losses) == masked.losses
    move = next(one for one in config.train_pipeline if one["type"] == "TenfoldSceneMove")
    drawn = settings(AugmentConfig, {key: value for key, value in move.items() if key != "type"})
    assert replace(drawn, ground_truth_sampling=False, shuffle=False) == masked.augment
    assert config.train_cfg.max_iters == masked.train.steps
    assert config.train_dataloader.batch_size == masked.train.batch_size
    assert_same_rates(config, masked.train, masked.train.steps)


def test_the_papers_config_is_the_papers_profile() -> None:
    config = shipped("cmt_voxel0075_vov_1600x640")
    (method,) = profiles.PROFILES["cmt_voxel0075_vov_1600x640"].methods
    assert settings(NetworkConfig, config.model.network) == method.network
    assert settings(LossConfig, config.model.losses) == method.losses
    types = [one["type"] for one in config.train_pipeline]
    move = config.train_pipeline[types.index("TenfoldSceneMove")]
    assert (
        settings(AugmentConfig, {key: value for key, value in move.items() if key != "type"})
        == method.augment
    )
    assert (
        types.index("TenfoldPasteObjects") < types.index("TenfoldSceneMove") < types.index("TenfoldImageMove")
    )
    assert config.train_cfg.max_epochs == method.train.epochs
    assert config.fade_epoch == method.train.epochs - method.train.fade_epochs
    assert 8 * config.train_dataloader.batch_size == method.train.batch_size
    assert config.optim_wrapper.clip_grad.max_norm == method.train.clip
    assert_same_rates(config, method.train, method.train.epochs * 25, epoch_length=25)


def assert_same_rates(
    config: Config, train: TrainConfig, steps: int, epoch_length: int | None = None
) -> None:
    """Rates, betas and decays of both optimisers before every update."""
    tiny = MODELS.build(shipped("cmt_procedural").model)
    options = dict(config.optim_wrapper) | {"type": "OptimWrapper"}
    options.pop("loss_scale", None)
    wrapper = build_optim_wrapper(tiny, options)
    schedulers = [
        PARAM_SCHEDULERS.build(dict(one), default_args={"optimizer": wrapper, "epoch_length": epoch_length})
        for one in config.param_scheduler
    ]
    optimizer = torch.optim.AdamW(parameter_groups(tiny.detector, train), lr=train.lr)
    schedule = CyclicSchedule(optimizer, train, steps)
    names = {id(one): name for name, one in tiny.detector.named_parameters()}
    theirs = {
        names[id(parameter)]: group
        for group in wrapper.optimizer.param_groups
        for parameter in group["params"]
    }
    for step in range(steps):
        schedule.set(step)
        for group in optimizer.param_groups:
            other = theirs[names[id(group["params"][0])]]
            assert other["lr"] == pytest.approx(group["lr"], rel=1e-4), step
            assert other["betas"] == pytest.approx(group["betas"], rel=1e-4), step
            assert other["weight_decay"] == pytest.approx(group["weight_decay"])
        for scheduler in schedulers:
            scheduler.step()


def test_the_papers_network_is_built_from_its_config() -> None:
    config = shipped("cmt_voxel0075_vov_1600x640")
    config.model.network.head.queries = 100
    detector = MODELS.build(config.model)
    assert sum(one.numel() for one in detector.parameters()) == 86_607_380 - 800 * 3


def test_classes_are_balanced_by_mmdet3d_over_our_info_files(config: Config, index: NuScenesIndex) -> None:
    wrapped = DATASETS.build({"type": "CBGSDataset", "dataset": config.train_dataloader.dataset})
    ours = class_balanced_indices(index.keyframes, np.random.default_rng(0))
    assert len(wrapped) == pytest.approx(len(ours), rel=0.1)
