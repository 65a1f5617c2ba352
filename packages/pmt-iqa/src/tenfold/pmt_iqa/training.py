"""The training loop: crops of cached images, two losses, one schedule; resumable between epochs."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from tenfold.pmt_iqa.backbones import ResNetStages, load_imagenet_weights, make_backbone
from tenfold.pmt_iqa.config import ModelConfig, RunConfig
from tenfold.pmt_iqa.datasets import ImageSet
from tenfold.pmt_iqa.evaluation import agreement
from tenfold.pmt_iqa.losses import multitask_loss
from tenfold.pmt_iqa.model import (
    HyperNetwork,
    MultiScaleFeatures,
    MultiTaskNetwork,
    PlainNetwork,
    expected_score,
)
from tenfold.pmt_iqa.pixels import PixelStore, judging_crops, normalise, random_crops
from tenfold.pmt_iqa.schedules import official_learning_rate, one_cycle, task_weights
from tenfold.pmt_iqa.splits import split_by_group
from tenfold.shared.accelerator import channels_last, maybe_compile
from tenfold.shared.logging import TenfoldError, get_logger
from tenfold.shared.runs import Run
from tenfold.shared.seeding import epoch_order, make_generator, seed_everything

logger = get_logger("pmt-iqa")

Network = MultiTaskNetwork | PlainNetwork | HyperNetwork


@dataclass(frozen=True)
class Trained:
    """A network at the end of its training."""

    network: Network
    level_scores: Tensor
    """Score that stands for each level, [K]."""
    metrics: dict[str, float]
    """Of the last epoch, and of the best one as ``best_...``; empty without test images."""
    test: Tensor
    """Indices of the test images."""
    predictions: Tensor
    """For the test images, in their order."""
    crops_per_second: float
    """While training, since the run was resumed."""


def make_network(
    config: ModelConfig, imagenet_weights: Path | None = None, download: bool = False
) -> Network:
    """The network of a configuration.

    Args:
        config: its kind, backbone and sizes.
        imagenet_weights: file of the backbone's weights; by default torch's cache.
        download: fetch missing weights.

    Raises:
        TenfoldError: sizes do not fit, or weights are missing.
    """
    backbone = make_backbone(config.backbone)
    if config.pretrained and isinstance(backbone, ResNetStages) and config.backbone != "small":
        load_imagenet_weights(backbone, config.backbone, imagenet_weights, download)
    if config.kind == "plain":
        return PlainNetwork(backbone)
    features = MultiScaleFeatures(backbone, config.feature_dim, config.lda_outputs, config.scales)
    if config.kind == "hyper":
        small = config.backbone == "small"
        return HyperNetwork(
            features, config.feature_dim, side=2 if small else 7, hyper_channels=16 if small else 112
        )
    return MultiTaskNetwork(
        features, config.feature_dim, config.hidden_dim, config.embedding_dim, config.levels
    )


def train(
    images: ImageSet,
    config: RunConfig,
    seed: int,
    fabric: Fabric,
    run: Run,
    compile_network: bool = False,
    imagenet_weights: Path | None = None,
    download: bool = False,
) -> Trained:
    """Train on one random split and judge the rest.

    Args:
        images: decoded, on the CPU.
        config: network, training, judging.
        seed: of the split, the weights, the order and the crops; methods of one seed share all of them.
        fabric: launched; its processes divide the crops of every step.
        run: entered; goes on from its checkpoint.
        compile_network: with torch.compile.
        imagenet_weights: file of the backbone's weights.
        download: fetch missing weights.

    Raises:
        TenfoldError: images are smaller than the crops, all scores are equal, or the loss is no number any more.
    """
    images.pixels.check_size(config.train.crop_size, images.names)
    levels = images.levels(config.model.levels, config.clamp_levels)
    train_indices, test_indices = split_by_group(images.groups, seed, config.train_fraction)
    scores = images.scores.clone()
    if config.train.shuffle_labels:
        mixed = train_indices[torch.randperm(len(train_indices), generator=make_generator(seed + 77))]
        scores[train_indices], levels[train_indices] = images.scores[mixed], levels[mixed]
    level_scores = mean_score_of_levels(scores[train_indices], levels[train_indices], config.model.levels)

    seed_everything(seed)
    network = make_network(config.model, imagenet_weights, download)
    if config.train.start_at_mean:
        network.start_at(float(scores[train_indices].mean()))
    trainer = Trainer(network, config, fabric, len(train_indices), compile_network)
    state = run.resume()
    first_epoch, best, last = 0, {}, {}
    if state is not None:
        trainer.load_state_dict(state["trainer"])
        first_epoch, best, last = state["epoch"], state["best"], state["last"]

    store = images.pixels.to(fabric.device)
    targets, classes = scores.to(fabric.device), levels.to(fabric.device)
    judged_at = crops_to_judge(config, images.pixels.sizes, test_indices) if len(test_indices) > 1 else None
    predictions = torch.zeros(0)
    seconds, crops_seen = 0.0, 0
    for epoch in range(first_epoch, config.train.epochs):
        started = time.monotonic()
        losses, crops = trainer.train_epoch(
            store, targets, classes, train_indices, images.pixels.sizes, seed, epoch
        )
        seconds, crops_seen = seconds + time.monotonic() - started, crops_seen + crops
        if not all(math.isfinite(value) for value in losses.values()):
            raise TenfoldError(f"the loss is no number any more in epoch {epoch}; lower --train.lr")
        is_last = epoch == config.train.epochs - 1
        if judged_at is not None and (is_last or config.judge.every_epoch):
            judged = judge_crops(trainer.plain_network, config, fabric, store, judged_at, level_scores)
            predictions = judged.scores
            last = judged_metrics(judged, images.scores[test_indices], levels[test_indices], config)
            best = max(best, last, key=lambda found: found.get("srcc", -2.0))
        rates = trainer.task_weights(epoch)
        run.log(epoch, **losses, lambda_regression=rates[0], lambda_classification=rates[1], **last)
        if run.is_writer and run.is_checkpoint_due and not is_last:
            stored = {"trainer": trainer.state_dict(), "epoch": epoch + 1, "best": best, "last": last}
            run.save_checkpoint(epoch, stored)
    metrics = {**last, **{f"best_{name}": value for name, value in best.items()}}
    rate = crops_seen / seconds if seconds else 0.0
    return Trained(trainer.plain_network, level_scores, metrics, test_indices, predictions, rate)


class Trainer:
    """A network with its optimizer and schedules.

    Args:
        network: on the CPU.
        config: of the run.
        fabric: launched.
        train_images: number of training images, which gives the steps of an epoch.
        compile_network: with torch.compile.
    """

    def __init__(
        self,
        network: Network,
        config: RunConfig,
        fabric: Fabric,
        train_images: int,
        compile_network: bool = False,
    ) -> None:
        self.config, self.fabric = config, fabric
        if fabric.device.type == "cuda" and fabric.world_size > 1:
            network = nn.SyncBatchNorm.convert_sync_batchnorm(network)
        self.plain_network = channels_last(network.to(fabric.device), fabric.device)
        if config.model.backbone == "small":  # pays off on the CPU as well
            self.plain_network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.plain_optimizer = self._make_optimizer()
        self.network, self.optimizer = fabric.setup(
            maybe_compile(self.plain_network, compile_network), self.plain_optimizer
        )
        self.steps_per_epoch = math.ceil(
            train_images * config.train.passes_per_epoch / config.train.images_per_batch
        )

    def _make_optimizer(self) -> torch.optim.Optimizer:
        train = self.config.train
        ids = {id(value) for value in self._backbone.parameters()}
        others = [value for value in self.plain_network.parameters() if id(value) not in ids]
        groups: list[dict[str, Any]] = [
            {"params": list(self._backbone.parameters()), "ratio": 1.0},
            {"params": others, "ratio": train.head_lr_ratio},
        ]
        if train.optimizer == "sgd":
            return torch.optim.SGD(groups, lr=train.lr, momentum=0.9)
        return torch.optim.Adam(groups, lr=train.lr, weight_decay=train.weight_decay, fused=True)

    @property
    def _backbone(self) -> nn.Module:
        network = self.plain_network
        return network.backbone if isinstance(network, PlainNetwork) else network.features.backbone

    def task_weights(self, epoch: int) -> tuple[float, float]:
        """lambda1 of regression and lambda2 of classification."""
        train = self.config.train
        return task_weights(train.schedule, epoch, train.epochs, train.fixed_weights)

    def learning_rate(self, epoch: int, step: int) -> float:
        """The rate of the backbone in a step of an epoch."""
        train = self.config.train
        if train.lr_schedule == "official":
            return official_learning_rate(train.lr, epoch)
        if train.lr_schedule == "constant":
            return train.lr
        return train.lr * one_cycle(
            (epoch * self.steps_per_epoch + step) / (train.epochs * self.steps_per_epoch)
        )

    def train_epoch(
        self,
        store: PixelStore,
        scores: Tensor,
        levels: Tensor,
        indices: Tensor,
        sizes: Tensor,
        seed: int,
        epoch: int,
    ) -> tuple[dict[str, float], int]:
        """One pass over the training images.

        Args:
            store: pixels, on the device.
            scores: of all images, on the device.
            levels: likewise.
            indices: of the training images.
            sizes: of all images, on the CPU.
            seed: of order and crops, with the epoch.
            epoch: from 0.

        Returns:
            Mean losses of the pass, and how many crops this process saw.
        """
        train, fabric = self.config.train, self.fabric
        if train.reset_optimizer_each_epoch:
            self.plain_optimizer.state.clear()
        weights = self.task_weights(epoch)
        passes = train.passes_per_epoch
        order = indices[
            torch.cat([epoch_order(len(indices), seed, epoch * passes + k) for k in range(passes)])
        ]
        generator = make_generator(seed * 1_000_003 + epoch + 500_000)
        where = (
            random_crops(order, sizes, train.crop_size, train.crops_per_image, generator)
            .packed()
            .to(store.device)
        )
        self.network.train()
        sums, crops = torch.zeros(3, device=store.device), 0
        for step, batch in enumerate(where.split(train.images_per_batch * train.crops_per_image)):
            share = batch[fabric.global_rank :: fabric.world_size]
            if len(batch) < fabric.world_size:  # a rest that cannot be divided
                continue
            for group in self.plain_optimizer.param_groups:
                group["lr"] = self.learning_rate(epoch, step) * group["ratio"]
            output = self.network(normalise(store.crop(share, train.crop_size)))
            target, level = scores[share[:, 0]], levels[share[:, 0]]
            total, regression, classification = multitask_loss(
                output.score, output.level_logits, target, level, *weights
            )
            # The mean over processes of these is the mean over the whole batch, also when shares differ in size.
            scaled = total * (len(share) * fabric.world_size / len(batch))
            self.optimizer.zero_grad()
            fabric.backward(scaled)
            self.optimizer.step()
            sums += torch.stack((total, regression, classification)).detach() * len(share)
            crops += len(share)
        total_sums = fabric.all_reduce(torch.cat((sums, sums.new_tensor([crops]))), reduce_op="sum")
        assert isinstance(total_sums, Tensor)
        self._share_statistics()
        names = ("loss", "regression_loss", "classification_loss")
        return dict(zip(names, (total_sums[:3] / total_sums[3]).tolist(), strict=True)), crops

    @torch.no_grad()
    def _share_statistics(self) -> None:
        """Give all processes the mean of their running statistics; synchronised batch norm has it already."""
        if self.fabric.world_size > 1:
            for buffer in self.plain_network.buffers():
                if buffer.is_floating_point():
                    buffer.copy_(torch.as_tensor(self.fabric.all_reduce(buffer, reduce_op="mean")))

    def state_dict(self) -> dict[str, Any]:
        """Weights and optimizer."""
        return {"network": self.plain_network.state_dict(), "optimizer": self.plain_optimizer.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state."""
        self.plain_network.load_state_dict(state["network"])
        self.plain_optimizer.load_state_dict(state["optimizer"])


@dataclass(frozen=True)
class Judged:
    """What a network says of some images, on the CPU."""

    scores: Tensor
    """Mean over the crops, [m]."""
    crop_scores: Tensor
    """[m, crops]."""
    levels: Tensor
    """Mean probability of every level, [m, K]; [m, 0] without a level head."""


def crops_to_judge(config: RunConfig, sizes: Tensor, indices: Tensor) -> Tensor:
    """Where some images are judged: packed crops [m * crops, 4], image by image."""
    judge = config.judge
    return judging_crops(indices, sizes, config.train.crop_size, judge.crops, judge.crop_rule).packed()


@torch.inference_mode()
def judge_crops(
    network: Network,
    config: RunConfig,
    fabric: Fabric,
    store: PixelStore,
    where: Tensor,
    level_scores: Tensor,
    crops_per_image: int | None = None,
    batch_size: int = 256,
) -> Judged:
    """Judge images by the mean over their crops; processes divide the crops.

    Args:
        network: on Fabric's device; where classification alone was trained, the score is the expected level's.
        config: of its training.
        fabric: launched.
        store: pixels, on the device.
        where: packed crops, the same number for each image, image by image.
        level_scores: [K].
        crops_per_image: by default the configuration's.
        batch_size: crops of one pass.
    """
    world = fabric.world_size
    padded = torch.cat((where, where[: -len(where) % world]))
    network.eval()
    found = []
    for batch in padded[fabric.global_rank :: world].to(store.device).split(batch_size):
        with fabric.autocast():
            output = network(normalise(store.crop(batch, config.train.crop_size)))
        score, logits = output.score.float(), output.level_logits
        if logits is None:
            found.append(score[:, None])
            continue
        if config.train.schedule == "classification":
            score = expected_score(logits, level_scores.to(store.device))
        found.append(torch.cat((score[:, None], logits.float().softmax(dim=1)), dim=1))
    mine = torch.cat(found)
    whole = torch.as_tensor(fabric.all_gather(mine)).reshape(world, *mine.shape).transpose(0, 1).flatten(0, 1)
    by_image = whole[: len(where)].cpu().unflatten(0, (-1, crops_per_image or config.judge.crops))
    return Judged(by_image[:, :, 0].mean(dim=1), by_image[:, :, 0], by_image[:, :, 1:].mean(dim=1))


def judged_metrics(judged: Judged, scores: Tensor, levels: Tensor, config: RunConfig) -> dict[str, float]:
    """Agreement with the labels, and in per cent how often the likeliest level is the right one.

    Args:
        judged: the test images.
        scores: their labels.
        levels: their levels.
        config: how PLCC is computed.
    """
    found = agreement(judged.scores.numpy(), scores.numpy(), config.judge.plcc_fit)
    if judged.levels.shape[1] > 0:
        found["level_accuracy"] = 100 * float((judged.levels.argmax(dim=1) == levels).float().mean())
    return found


def mean_score_of_levels(scores: Tensor, levels: Tensor, number_class: int) -> Tensor:
    """The mean training score of every level, [K]; a level without images lies between its neighbours."""
    counts = torch.bincount(levels, minlength=number_class).numpy()
    sums = torch.bincount(levels, weights=scores.double(), minlength=number_class).numpy()
    known = np.flatnonzero(counts)
    means = np.interp(np.arange(number_class), known, sums[known] / counts[known])
    return torch.from_numpy(means).float()
