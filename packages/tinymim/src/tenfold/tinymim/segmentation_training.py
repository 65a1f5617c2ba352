"""Training on ADE20K by the authors' recipe, and mIoU of whole images."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import nn
from torch.optim import AdamW
from torch.utils.data import DataLoader
from torchmetrics.classification import MulticlassConfusionMatrix

from tenfold.shared.accelerator import channels_last, maybe_compile
from tenfold.shared.logging import TenfoldError
from tenfold.shared.runs import Run
from tenfold.shared.seeding import make_generator, seed_everything, seed_worker
from tenfold.tinymim.ade20k import (
    ADE20K,
    Augmentation,
    Pair,
    TrainingSamples,
    ValidationSamples,
    segmentation_metrics,
)
from tenfold.tinymim.checkpoints import load_file
from tenfold.tinymim.optim import layer_of, optimizer_groups
from tenfold.tinymim.segmentation_backbone import build_segmentation_backbone, load_pretrained
from tenfold.tinymim.upernet import (
    IGNORE_INDEX,
    Segmenter,
    resize,
    segmentation_loss,
    sliding_logits,
    with_synchronised_norms,
)

NetworkName = Literal["tiny", "small", "base", "star"]
SHAPES: dict[NetworkName, tuple[int, int]] = {
    "tiny": (192, 3),
    "small": (384, 6),
    "base": (768, 12),
    "star": (192, 12),
}
"""Width and heads of networks of 12 blocks; star is TinyMIM*-T."""
FOLDER = "ade20k"
"""Below the data root."""


# -- the recipe ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SegmentationRecipe:
    """How a network is trained on ADE20K. The defaults are the paper's for TinyMIM-B."""

    iterations: int = 160_000
    """Updates."""
    batch_size: int = 16
    """Images of an update, on all devices together."""
    lr: float = 1e-4
    """Peak of the rate."""
    min_lr: float = 0.0
    """Where the rate ends."""
    power: float = 1.0
    """Of the rate's fall."""
    warmup_iterations: int = 1500
    """Length of the linear warm-up."""
    warmup_ratio: float = 1e-6
    """Share of the rate at which the warm-up begins."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Of AdamW."""
    weight_decay: float = 0.05
    """Of AdamW, on all but biases and parameters of one dimension."""
    layer_decay: float = 0.75
    """Factor of the rate from one layer of the backbone to the one below."""
    drop_path: float = 0.1
    """Stochastic depth of the backbone's last block; linear from 0."""
    dropout: float = 0.1
    """Of whole channels before the last layer of both heads."""
    auxiliary_weight: float = 0.4
    """Of the auxiliary head's loss."""
    evaluate_every: int = 16_000
    """Updates between two looks at the validation images."""
    log_every: int = 50
    """Updates between two logged losses, which are also when a checkpoint may be written."""

    def __post_init__(self) -> None:
        if min(self.iterations, self.batch_size, self.evaluate_every, self.log_every) < 1:
            raise TenfoldError("iterations, batch size, looks and logged losses are at least 1")
        if not (self.lr > 0 and 0 <= self.min_lr <= self.lr and self.power > 0):
            raise TenfoldError(
                "the rate and the power of its fall are positive, and it ends from 0 to its peak"
            )
        if self.warmup_iterations < 0 or not 0 <= self.warmup_ratio <= 1:
            raise TenfoldError("a warm-up is at least 0 updates long and begins with a share from 0 to 1")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise TenfoldError(f"betas are from 0 to below 1, not {self.betas}")
        if self.weight_decay < 0 or not 0 < self.layer_decay <= 1 or self.auxiliary_weight < 0:
            raise TenfoldError(
                "decay and auxiliary weight are not negative, and layer decay is from above 0 to 1"
            )
        if not (0 <= self.drop_path < 1 and 0 <= self.dropout < 1):
            raise TenfoldError("stochastic depth and dropout are from 0 to below 1")


@dataclass(frozen=True)
class SegmentationConfig:
    """One segmenter."""

    name: NetworkName = "base"
    """The backbone: tiny, small, base or star (TinyMIM*-T)."""
    recipe: SegmentationRecipe = field(default_factory=SegmentationRecipe)
    """How it learns."""
    augmentation: Augmentation = field(default_factory=Augmentation)
    """Of the training images; its crop is the backbone's size, its limits hold for judging too."""
    stride: int = 341
    """Pixels between two windows in which whole images are judged."""
    num_classes: int = 150
    """Of pixels."""
    head_channels: int = 768
    """Of UperNet's head."""
    auxiliary_channels: int = 256
    """Of the auxiliary head."""
    backbone_digest: str = "random weights"
    """What identifies the backbone's first weights, as :func:`weights_digest`."""

    def __post_init__(self) -> None:
        if self.name not in SHAPES:
            raise TenfoldError(f"there is no network {self.name!r} here; choose one of {', '.join(SHAPES)}")
        if not 1 <= self.stride <= self.augmentation.crop_size:
            raise TenfoldError(
                f"windows of {self.augmentation.crop_size} pixels need a stride from 1 to that, not {self.stride}"
            )
        if min(self.head_channels, self.auxiliary_channels) < 1:
            raise TenfoldError("heads have at least 1 channel")


CONFIGS: dict[NetworkName, SegmentationConfig] = {
    "tiny": SegmentationConfig("tiny", SegmentationRecipe(layer_decay=0.8)),
    "small": SegmentationConfig("small"),
    "base": SegmentationConfig("base"),
    "star": SegmentationConfig("star", SegmentationRecipe(layer_decay=0.8)),
}
"""The authors' own for base and star. Of tiny and small they say nothing: tiny as star, small as base, our choice."""


def weights_digest(path: Path | None) -> str:
    """What identifies a file of weights.

    Raises:
        TenfoldError: it is missing.
    """
    if path is None:
        return "random weights"
    if not path.is_file():
        raise TenfoldError(f"there is no file {path} with the backbone's weights")
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def poly_lr(
    iteration: int,
    *,
    lr: float,
    iterations: int,
    min_lr: float = 0.0,
    power: float = 1.0,
    warmup_iterations: int = 1500,
    warmup_ratio: float = 1e-6,
) -> float:
    """The rate of an update t of T: min + (lr - min) (1 - t/T)^p, times r + (1 - r) t/w while t < w.

    Args:
        iteration: t, from 0.
        lr: peak.
        iterations: T, at which the rate is ``min_lr``.
        min_lr: where it ends.
        power: p of its fall.
        warmup_iterations: w.
        warmup_ratio: r.
    """
    rate = min_lr + (lr - min_lr) * math.pow(max(0.0, 1 - iteration / iterations), power)
    if iteration < warmup_iterations:
        rate *= warmup_ratio + (1 - warmup_ratio) * iteration / warmup_iterations
    return rate


def segmentation_decay_groups(
    segmenter: nn.Module, weight_decay: float, layer_decay: float
) -> dict[str, tuple[float, float]]:
    """Name of each parameter to the scale of its rate and its weight decay.

    CLS, positions and patch embedding are layer 0, block i (from 0) is layer i + 1, all others the last, also the
    distillation token, the projection and the necks; layer l of n has the scale layer_decay^(n - l). Biases and
    parameters of one dimension are not decayed; tokens and positions are.

    Args:
        segmenter: with ``backbone.blocks``.
        weight_decay: of the others.
        layer_decay: from above 0 to 1.
    """
    depth = len(segmenter.backbone.blocks)  # type: ignore[union-attr, arg-type]
    return {
        name: (
            layer_decay ** (depth + 1 - layer_of(name.removeprefix("backbone."), depth)),
            0.0 if parameter.ndim == 1 or name.endswith(".bias") else weight_decay,
        )
        for name, parameter in segmenter.named_parameters()
    }


def build_segmenter(config: SegmentationConfig, backbone_weights: Path | None = None) -> Segmenter:
    """A network as its training begins.

    Args:
        config: of it.
        backbone_weights: file of a pre-trained network or a classifier; without it the weights are random.

    Raises:
        TenfoldError: the file is missing or damaged, or of another network.
    """
    width, heads = SHAPES[config.name]
    recipe, size = config.recipe, config.augmentation.crop_size
    is_star = config.name == "star"
    backbone = build_segmentation_backbone(size, width, 12, heads, is_star, drop_path_rate=recipe.drop_path)
    if backbone_weights is not None:
        content = load_file(backbone_weights)
        try:
            load_pretrained(backbone, content)
        except TenfoldError as error:
            raise TenfoldError(f"{backbone_weights}: {error}") from error
    return Segmenter(
        backbone, config.num_classes, config.head_channels, config.auxiliary_channels, recipe.dropout
    )


# -- training ------------------------------------------------------------------------------------------


def train_segmentation(
    config: SegmentationConfig,
    seed: int,
    fabric: Fabric,
    run: Run,
    data_root: Path,
    backbone_weights: Path | None = None,
    workers: int = 8,
    compile_network: bool = False,
) -> dict[str, float]:
    """Train a segmenter on the images in ``ade20k/`` below the data root; ``model.pt`` of the run is its end.

    Args:
        config: of network and recipe.
        seed: of weights, order, augmentation, dropout and stochastic depth.
        fabric: launched; its processes divide every batch.
        run: entered; goes on from its checkpoint.
        data_root: folder of all data.
        backbone_weights: of a pre-trained network or a classifier.
        workers: processes that decode images, for each device.
        compile_network: with torch.compile, for training.

    Returns:
        miou, macc and aacc of the last network in per cent.

    Raises:
        TenfoldError: data or weights are missing, damaged, or do not fit, or the loss is no number any more.
    """
    train_set = ADE20K(data_root / FOLDER, "training", config.num_classes)
    test_set = ADE20K(data_root / FOLDER, "validation", config.num_classes)
    seed_everything(seed)
    segmenter = build_segmenter(config, backbone_weights)
    metrics = fit_segmenter(
        segmenter, config, train_set, test_set, seed, fabric, run, workers, compile_network
    )
    run.save_artifact("model.pt", {"model": segmenter.state_dict()})
    return metrics


def fit_segmenter(
    segmenter: Segmenter,
    config: SegmentationConfig,
    train_set: ADE20K,
    test_set: ADE20K,
    seed: int,
    fabric: Fabric,
    run: Run,
    workers: int = 8,
    compile_network: bool = False,
) -> dict[str, float]:
    """Train a network that is there; arguments and result as of :func:`train_segmentation`.

    Batch norm sees the batch of all GPUs. Dropout and stochastic depth of an update depend on seed, update and process
    alone.

    Args:
        segmenter: on the CPU; is changed.
        config: of recipe and sizes.
        train_set: to learn from.
        test_set: to be judged on.
        seed: of order, augmentation, dropout and stochastic depth.
        fabric: launched.
        run: entered.
        workers: for each device.
        compile_network: with torch.compile, for training.
    """
    recipe = config.recipe
    for data in (train_set, test_set):
        _check_classes(segmenter, data)
    if fabric.device.type == "cuda" and fabric.world_size > 1:
        with_synchronised_norms(segmenter)
    segmenter = channels_last(segmenter.to(fabric.device), fabric.device)
    groups = segmentation_decay_groups(segmenter, recipe.weight_decay, recipe.layer_decay)
    parameters = optimizer_groups(segmenter, groups.__getitem__)
    plain_optimizer = AdamW(parameters, lr=recipe.lr, betas=recipe.betas, eps=1e-8, fused=True)
    network, optimizer = fabric.setup(maybe_compile(segmenter, compile_network), plain_optimizer)
    precision, first = fabric.strategy.precision, 0
    state = run.resume()
    if state is not None:
        segmenter.load_state_dict(state["segmenter"])
        plain_optimizer.load_state_dict(state["optimizer"])
        precision.load_state_dict(state["precision"])
        first = state["iteration"]

    metrics: dict[str, float] = {}
    losses = torch.zeros((), device=fabric.device)
    batches = training_loader(train_set, config, seed, fabric, first, workers)
    network.train()
    for iteration, (images, labels) in enumerate(batches, start=first):
        torch.manual_seed(_step_seed(seed, iteration, fabric.global_rank))
        lr = _rate(recipe, iteration)
        for group in plain_optimizer.param_groups:
            group["lr"] = lr * group["lr_scale"]
        output = network(images.to(fabric.device, non_blocking=True))
        labels = labels.to(fabric.device, non_blocking=True)
        loss = segmentation_loss(output, labels, recipe.auxiliary_weight)
        optimizer.zero_grad()
        fabric.backward(loss)
        optimizer.step()
        losses += loss.detach()

        done = iteration + 1
        is_last = done == recipe.iterations
        if is_last or done % recipe.evaluate_every == 0:
            metrics = evaluate_segmenter(segmenter, test_set, config, fabric, workers)
            run.log(done, **metrics)
        if is_last or done % recipe.log_every == 0:
            mean: Any = fabric.all_reduce(losses, reduce_op="mean")
            value = mean.item() / (iteration % recipe.log_every + 1)
            if not math.isfinite(value):
                raise TenfoldError(
                    f"the loss is no number any more after {done} updates: lower the learning rate"
                )
            run.log(done, loss=value, lr=lr)
            losses.zero_()
            if run.is_checkpoint_due and not is_last:
                stored = {
                    "segmenter": segmenter.state_dict(),
                    "optimizer": plain_optimizer.state_dict(),
                    "precision": precision.state_dict(),
                    "iteration": done,
                }
                run.save_checkpoint(done, stored)
    return metrics


def _step_seed(seed: int, iteration: int, rank: int) -> int:
    return int(np.random.SeedSequence((seed, iteration, rank)).generate_state(1)[0])


def _rate(recipe: SegmentationRecipe, iteration: int) -> float:
    return poly_lr(
        iteration,
        lr=recipe.lr,
        iterations=recipe.iterations,
        min_lr=recipe.min_lr,
        power=recipe.power,
        warmup_iterations=recipe.warmup_iterations,
        warmup_ratio=recipe.warmup_ratio,
    )


def training_loader(
    data: ADE20K, config: SegmentationConfig, seed: int, fabric: Fabric, first: int = 0, workers: int = 8
) -> DataLoader[Pair]:
    """Batches of a run from update ``first`` on; of each the share of this process.

    Raises:
        TenfoldError: processes cannot share a batch.
    """
    recipe, world_size = config.recipe, fabric.world_size
    size, total = recipe.batch_size, recipe.iterations * recipe.batch_size
    if size % world_size:
        raise TenfoldError(f"a batch of {size} cannot be shared by {world_size} devices: change it")
    return DataLoader(
        TrainingSamples(data, config.augmentation, total, seed),
        batch_size=size // world_size,
        sampler=range(first * size + fabric.global_rank, total, world_size),
        num_workers=workers,
        pin_memory=fabric.device.type == "cuda",
        worker_init_fn=seed_worker,
        generator=make_generator(seed),
    )


# -- evaluation ----------------------------------------------------------------------------------------


@torch.inference_mode()
def evaluate_segmenter(
    segmenter: Segmenter, data: ADE20K, config: SegmentationConfig, fabric: Fabric, workers: int = 8
) -> dict[str, float]:
    """miou, macc and aacc in per cent over a whole set, from sliding windows at one scale.

    Logits are enlarged to the files' own size before the class is chosen.

    Args:
        segmenter: on Fabric's device.
        data: to be judged on.
        config: of window, stride and limits of the sides.
        fabric: launched; its processes divide the images, and their counts are summed.
        workers: processes that decode images.

    Raises:
        TenfoldError: network and set have other classes, or a file is damaged.
    """
    _check_classes(segmenter, data)
    sizes = config.augmentation
    samples = ValidationSamples(data, sizes.long_side, sizes.short_side)
    loader: DataLoader[Pair] = DataLoader(
        samples,
        sampler=range(fabric.global_rank, len(samples), fabric.world_size),
        num_workers=workers,
        pin_memory=fabric.device.type == "cuda",
        generator=make_generator(0),
    )
    confusion = MulticlassConfusionMatrix(data.num_classes, ignore_index=IGNORE_INDEX, validate_args=False)
    confusion = confusion.to(fabric.device)
    was_training = segmenter.training
    segmenter.eval()
    for images, labels in loader:
        with fabric.autocast():
            logits = sliding_logits(segmenter, images[0].to(fabric.device), sizes.crop_size, config.stride)
        predicted = resize(logits, labels.shape[1:]).argmax(dim=1)
        confusion.update(predicted, labels.to(fabric.device))
    segmenter.train(was_training)
    return segmentation_metrics(confusion.compute())


def load_segmenter(config: SegmentationConfig, weights: Mapping[str, Any]) -> Segmenter:
    """A trained network from the content of a run's ``model.pt``.

    Raises:
        TenfoldError: it is of another network.
    """
    segmenter = build_segmenter(config)
    try:
        segmenter.load_state_dict(weights["model"])
    except (KeyError, RuntimeError) as error:
        raise TenfoldError(
            f"these are not the weights of a segmenter {config.name} of {config.num_classes} classes: "
            "choose the network that was trained"
        ) from error
    return segmenter


def _check_classes(segmenter: Segmenter, data: ADE20K) -> None:
    if segmenter.num_classes != data.num_classes:
        raise TenfoldError(
            f"the network knows {segmenter.num_classes} classes and the set has {data.num_classes}: build it for them"
        )
