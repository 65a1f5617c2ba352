"""Runs of detectors on COCO and of segmentation on ADE20K, by the recipes of the authors' configurations."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast

import torch
from lightning_fabric import Fabric
from torch import nn

from tenfold.emo import ade20k, coco
from tenfold.emo.detection import DetectionRecipe, Detector, detection_optimizer, train_epoch
from tenfold.emo.retinanet import RECIPE as RETINANET_RECIPE
from tenfold.emo.retinanet import build_retinanet
from tenfold.emo.segmentation import RECIPES, HeadName, SegmentationRecipe, build_segmenter
from tenfold.emo.ssdlite import RECIPE as SSDLITE_RECIPE
from tenfold.emo.ssdlite import build_ssdlite
from tenfold.shared.logging import TenfoldError
from tenfold.shared.runs import Run
from tenfold.shared.seeding import seed_everything

Task = Literal["ssdlite", "retinanet", "deeplabv3", "pspnet", "semantic_fpn"]
DETECTORS = ("ssdlite", "retinanet")
SETTINGS: dict[Task, str] = {
    "ssdlite": "SSDLite, 320 px",
    "retinanet": "RetinaNet, 12 epochs",
    "deeplabv3": "DeepLabv3, 512 px",
    "pspnet": "PSPNet, 512 px",
    "semantic_fpn": "Semantic FPN, 512 px",
}
"""Of their records, which printed numbers join."""
_METRICS = dict(zip(coco.METRICS, ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large"), strict=True))


@dataclass(frozen=True)
class DenseConfig:
    """One detector or segmenter."""

    task: Task
    name: str = "emo_1m"
    """The backbone."""
    detection: DetectionRecipe | None = None
    """By default the authors'."""
    segmentation: SegmentationRecipe | None = None
    """By default the authors'."""
    num_classes: int | None = None
    """By default COCO's 80 or ADE20K's 150."""
    workers: int = 8
    """Processes that decode images, for each device."""
    backbone_digest: str = "random weights"
    """What identifies the backbone's first weights."""

    @property
    def dataset(self) -> str:
        return "coco" if self.task in DETECTORS else "ade20k"


@dataclass(frozen=True)
class DenseOutcome:
    """A network at the end of its training."""

    network: nn.Module
    metrics: dict[str, float]
    """In per cent."""


def digest_of(weights: Path | None) -> str:
    """What identifies a file of weights.

    Raises:
        TenfoldError: it is missing.
    """
    if weights is None:
        return "random weights"
    if not weights.is_file():
        raise TenfoldError(f"there is no file {weights} with the backbone's weights")
    with weights.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def train_dense(
    config: DenseConfig, seed: int, fabric: Fabric, run: Run, data_root: Path, weights: Path | None = None
) -> DenseOutcome:
    """Train a detector on COCO (``coco/`` below the data root) or a segmenter on ADE20K (``ade20k/``).

    Args:
        config: of the run.
        seed: of weights, order and augmentation.
        fabric: launched; its processes divide every batch.
        run: entered; goes on from its checkpoint.
        data_root: folder of all data.
        weights: of a classifier, for the backbone.

    Raises:
        TenfoldError: data are missing or damaged, or weights do not fit.
    """
    if config.task in DETECTORS:
        return _train_detector(config, seed, fabric, run, data_root / "coco", weights)
    folder, head = data_root / "ade20k", cast(HeadName, config.task)
    classes = config.num_classes or 150
    train_set = ade20k.ADE20K(folder, "training", ade20k.training_transform(), classes)
    test_set = ade20k.ADE20K(folder, "validation", ade20k.validation_transform(), classes)
    seed_everything(seed)
    segmenter = build_segmenter(head, config.name, classes, weights)
    recipe = config.segmentation or RECIPES[head]
    metrics = ade20k.train(segmenter, recipe, train_set, test_set, seed, fabric, run, config.workers)
    return DenseOutcome(segmenter, metrics)


def _train_detector(
    config: DenseConfig, seed: int, fabric: Fabric, run: Run, folder: Path, weights: Path | None
) -> DenseOutcome:
    is_small = config.task == "ssdlite"
    transforms = coco.ssdlite_transforms() if is_small else coco.retinanet_transforms()
    annotations = folder / "annotations"
    train_set = coco.CocoBoxes(
        folder / "train2017", annotations / "instances_train2017.json", transforms, only_with_boxes=True
    )
    test_set = coco.CocoBoxes(folder / "val2017", annotations / "instances_val2017.json")
    seed_everything(seed)
    build = build_ssdlite if is_small else build_retinanet
    detector = build(config.name, config.num_classes or 80, weights=weights)
    recipe = config.detection or (SSDLITE_RECIPE if is_small else RETINANET_RECIPE)
    return DenseOutcome(
        detector, fit_detector(detector, recipe, train_set, test_set, seed, fabric, run, config.workers)
    )


def fit_detector(
    detector: Detector,
    recipe: DetectionRecipe,
    train_set: coco.CocoBoxes,
    test_set: coco.CocoBoxes,
    seed: int,
    fabric: Fabric,
    run: Run,
    workers: int = 8,
) -> dict[str, float]:
    """Train a detector and judge it after every epoch.

    Args:
        detector: on the CPU; is changed.
        recipe: of the run.
        train_set: with the detector's augmentations, only images with boxes.
        test_set: without augmentations.
        seed: of order and augmentation.
        fabric: launched.
        run: entered; goes on from its checkpoint.
        workers: processes that decode images.

    Returns:
        Average precisions of the last epoch in per cent, and the best AP as ``best_ap``.

    Raises:
        TenfoldError: classes of detector and data differ, or the loss is no number any more.
    """
    for data in (train_set, test_set):
        if data.num_classes != detector.num_classes:
            raise TenfoldError(
                f"the detector knows {detector.num_classes} classes and the data have {data.num_classes}: build it for "
                "them"
            )
    plain = detector.to(fabric.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    plain_optimizer = detection_optimizer(plain, recipe)
    network, optimizer = fabric.setup(plain, plain_optimizer)
    first, best, metrics = 0, -1.0, {}
    state = run.resume()
    if state is not None:
        plain.load_state_dict(state["detector"])
        plain_optimizer.load_state_dict(state["optimizer"])
        fabric.strategy.precision.load_state_dict(state["precision"])
        first, best, metrics = state["epoch"], state["best"], state["metrics"]
    for epoch in range(first, recipe.epochs):
        batches = coco.training_loader(train_set, recipe, fabric, seed, epoch, workers)
        losses = train_epoch(network, optimizer, batches, recipe, epoch, fabric)
        found = coco.evaluate(coco.detect(plain, test_set, fabric, workers=workers), test_set.coco)
        metrics = {_METRICS[name]: 100 * value for name, value in found.items()}
        best = max(best, metrics["ap"])
        run.log(epoch, **losses, **metrics)
        if run.is_checkpoint_due and epoch < recipe.epochs - 1:
            stored = {
                "detector": plain.state_dict(),
                "optimizer": plain_optimizer.state_dict(),
                "precision": fabric.strategy.precision.state_dict(),
                "epoch": epoch + 1,
                "best": best,
                "metrics": metrics,
            }
            run.save_checkpoint(epoch, stored)
    return {**metrics, "best_ap": best}
