"""The training loop: crops of cached images, two losses, one schedule; resumable between epochs."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, replace
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
    verdict,
)
from tenfold.pmt_iqa.pixels import PixelStore, judging_crops, normalise, random_crops
from tenfold.pmt_iqa.schedules import (
    hyperiqa_learning_rates,
    official_learning_rate,
    one_cycle,
    task_weights,
)
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
    data = prepare(images, config, seed)
    seed_everything(seed)
    network = make_network(config.model, imagenet_weights, download)
    if config.train.start_at_mean:
        network.start_at(float(data.scores[data.train].mean()))
    trainer = Trainer(network, config, fabric, len(data.train), compile_network)
    state = run.resume()
    first_epoch, best, last = 0, {}, {}
    if state is not None:
        trainer.load_state_dict(state["trainer"])
        first_epoch, best, last = state["epoch"], state["best"], state["last"]

    placed = data.to(fabric.device)
    judged_at = crops_to_judge(config, images, data.test)
    predictions = torch.zeros(0)
    seconds, crops_seen = 0.0, 0
    for epoch in range(first_epoch, config.train.epochs):
        started = time.monotonic()
        losses, crops = trainer.train_epoch(placed, seed, epoch)
        seconds, crops_seen = seconds + time.monotonic() - started, crops_seen + crops
        if not all(math.isfinite(value) for value in losses.values()):
            raise TenfoldError(f"the loss is no number any more in epoch {epoch}; lower --train.lr")
        is_last = epoch == config.train.epochs - 1
        if len(data.test) and (is_last or config.judge.every_epoch):
            network = trainer.plain_network
            judged = judge_crops(network, config, fabric, placed.pixels, judged_at, data.level_scores)
            predictions = judged.scores
            last = judged_metrics(judged, data.scores[data.test], data.levels[data.test], config)
            best = max(best, last, key=lambda found: found.get("srcc", -2.0))
        rates = trainer.task_weights(epoch)
        run.log(epoch, **losses, lambda_regression=rates[0], lambda_classification=rates[1], **last)
        if run.is_writer and run.is_checkpoint_due and not is_last:
            stored = {"trainer": trainer.state_dict(), "epoch": epoch + 1, "best": best, "last": last}
            run.save_checkpoint(epoch, stored)
    chosen = {f"best_{name}": value for name, value in best.items()} if config.judge.every_epoch else {}
    rate = crops_seen / seconds if seconds else 0.0
    return Trained(trainer.plain_network, data.level_scores, {**last, **chosen}, data.test, predictions, rate)


@dataclass(frozen=True)
class SplitData:
    """One random split of a data set, ready to train on."""

    pixels: PixelStore
    sizes: Tensor
    """Height and width of all images, [n, 2]; these and the indices stay on the CPU, where crops are drawn."""
    scores: Tensor
    """Of all images, [n]; shuffled among those that train where there is to be nothing to learn."""
    levels: Tensor
    """Likewise, int64 [n]."""
    train: Tensor
    """Indices of the images that train."""
    test: Tensor
    """Of those that are judged."""
    level_scores: Tensor
    """Mean training score of each level, [K]."""

    def to(self, device: torch.device) -> SplitData:
        """The same with pixels and labels on a device.

        Raises:
            TenfoldError: the pixels do not fit.
        """
        if device.type == "cuda" and self.pixels.device != device:
            free, needed = torch.cuda.mem_get_info(device)[0], self.pixels.pixels.numel()
            if needed > 0.8 * free:
                raise TenfoldError(
                    f"the decoded images take {needed / 2**30:.1f} GiB and the device has {free / 2**30:.1f} free; "
                    "make them smaller, tables of your own with --csv.resize"
                )
        return replace(
            self,
            pixels=self.pixels.to(device),
            scores=self.scores.to(device),
            levels=self.levels.to(device),
        )


def prepare(images: ImageSet, config: RunConfig, seed: int) -> SplitData:
    """Split a data set and check that it can be learned from.

    Raises:
        TenfoldError: images are smaller than the crops, or scores to learn from or to compare with are all equal.
    """
    images.pixels.check_size(config.train.crop_size, images.names)
    levels = images.levels(config.model.levels, config.clamp_levels)
    train, test = split_by_group(images.groups, seed, config.train_fraction)
    scores = images.scores.clone()
    if len(test) and len(scores[test].unique()) < 2:
        raise TenfoldError(
            "the test images have a single score, which nothing can be compared with; add images"
        )
    if config.train.shuffle_labels:
        mixed = train[torch.randperm(len(train), generator=make_generator(seed + 77))]
        scores[train], levels[train] = images.scores[mixed], levels[mixed]
    level_scores = mean_score_of_levels(scores[train], levels[train], config.model.levels)
    return SplitData(images.pixels, images.pixels.sizes, scores, levels, train, test, level_scores)


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
        if fabric.device.type == "cuda":
            torch.backends.cudnn.benchmark = True  # crops are of one size
            if fabric.world_size > 1:
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
        train, network = self.config.train, self.plain_network
        features = network.backbone if isinstance(network, PlainNetwork) else network.features
        ids = {id(value) for value in features.parameters()}
        others = [value for value in network.parameters() if id(value) not in ids]
        groups: list[dict[str, Any]] = [{"params": list(features.parameters())}, {"params": others}]
        if train.optimizer == "sgd":
            return torch.optim.SGD(groups, lr=train.lr, momentum=0.9)
        return torch.optim.Adam(groups, lr=train.lr, weight_decay=train.weight_decay, fused=True)

    def task_weights(self, epoch: int) -> tuple[float, float]:
        """lambda1 of regression and lambda2 of classification."""
        train = self.config.train
        return task_weights(train.schedule, epoch, train.epochs, train.fixed_weights)

    def learning_rates(self, epoch: int, step: int) -> tuple[float, float]:
        """The rates of the features and of what follows, in a step of an epoch."""
        train = self.config.train
        if train.lr_schedule == "hyperiqa":
            return hyperiqa_learning_rates(train.lr, epoch)
        rate = train.lr
        if train.lr_schedule == "official":
            rate = official_learning_rate(train.lr, epoch)
        elif train.lr_schedule == "one-cycle":
            done = (epoch * self.steps_per_epoch + step) / (train.epochs * self.steps_per_epoch)
            rate *= one_cycle(done)
        return rate, rate

    def train_epoch(self, data: SplitData, seed: int, epoch: int) -> tuple[dict[str, float], int]:
        """One pass over the training images.

        Args:
            data: pixels and labels on the device.
            seed: of order and crops, with the epoch.
            epoch: from 0.

        Returns:
            Mean losses of the pass, and how many crops this process saw.
        """
        train, fabric = self.config.train, self.fabric
        if train.reset_optimizer_each_epoch:
            self.plain_optimizer.state.clear()
        weights = self.task_weights(epoch)
        numbers = range(epoch * train.passes_per_epoch, (epoch + 1) * train.passes_per_epoch)
        order = data.train[torch.cat([epoch_order(len(data.train), seed, number) for number in numbers])]
        generator = make_generator(seed * 1_000_003 + epoch + 500_000)
        drawn = random_crops(order, data.sizes, train.crop_size, train.crops_per_image, generator)
        self.network.train()
        sums, crops = torch.zeros(3, device=data.pixels.device), 0
        batch_size = train.images_per_batch * train.crops_per_image
        for step, batch in enumerate(drawn.to(data.pixels.device).split(batch_size)):
            share = batch[fabric.global_rank :: fabric.world_size]
            if len(batch) < 2 * fabric.world_size:  # a rest that batch norm cannot do with
                continue
            for group, rate in zip(
                self.plain_optimizer.param_groups, self.learning_rates(epoch, step), strict=True
            ):
                group["lr"] = rate
            output = self.network(normalise(data.pixels.crop(share, train.crop_size)))
            target, level = data.scores[share[:, 0]], data.levels[share[:, 0]]
            losses = multitask_loss(output.score, output.level_logits, target, level, *weights)
            # The mean over processes of these is the mean over the whole batch, also when shares differ in size.
            self.optimizer.zero_grad()
            fabric.backward(losses[0] * (len(share) * fabric.world_size / len(batch)))
            self.optimizer.step()
            sums += torch.stack(losses).detach() * len(share)
            crops += len(share)
        total_sums = fabric.all_reduce(torch.cat((sums, sums.new_tensor([crops]))), reduce_op="sum")
        assert isinstance(total_sums, Tensor)
        self._share_statistics()
        names = ("loss", "regression_loss", "classification_loss")
        return dict(zip(names, (total_sums[:3] / total_sums[3]).tolist(), strict=True)), crops

    @torch.no_grad()
    def _share_statistics(self) -> None:
        """Give all processes the mean of their running statistics; on a GPU batch norm is synchronised already."""
        if self.fabric.world_size > 1 and self.fabric.device.type != "cuda":
            for buffer in self.plain_network.buffers():
                if buffer.is_floating_point():
                    buffer.copy_(torch.as_tensor(self.fabric.all_reduce(buffer, reduce_op="mean")))

    def state_dict(self) -> dict[str, Any]:
        """Weights, optimizer, and the loss scale of fp16."""
        return {
            "network": self.plain_network.state_dict(),
            "optimizer": self.plain_optimizer.state_dict(),
            "precision": self.fabric.strategy.precision.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state."""
        self.plain_network.load_state_dict(state["network"])
        self.plain_optimizer.load_state_dict(state["optimizer"])
        self.fabric.strategy.precision.load_state_dict(state["precision"])


@dataclass(frozen=True)
class Judged:
    """What a network says of some images, on the CPU."""

    scores: Tensor
    """Mean over the crops, [m]."""
    crop_scores: Tensor
    """[m, crops]."""
    levels: Tensor
    """Mean probability of every level, [m, K]; [m, 0] without a level head."""


def crops_to_judge(config: RunConfig, images: ImageSet, indices: Tensor) -> Tensor:
    """Where some images are judged, image by image: [m * crops, 4]."""
    judge, sizes = config.judge, images.pixels.sizes
    if not len(indices):
        return torch.zeros(0, 4, dtype=torch.int64)
    return judging_crops(indices, sizes, config.train.crop_size, judge.crops, judge.crop_rule, images.names)


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
        network: on Fabric's device; heads that were never trained say nothing.
        config: of its training.
        fabric: launched.
        store: pixels, on the device.
        where: crops, the same number for each image, image by image; [m * crops, 4].
        level_scores: [K].
        crops_per_image: by default the configuration's.
        batch_size: crops of one pass.
    """
    world, train = fabric.world_size, config.train
    share = torch.arange(math.ceil(len(where) / world)) * world + fabric.global_rank
    network.eval()
    found = []
    for batch in where[share % len(where)].to(store.device).split(batch_size):
        with fabric.autocast():
            output = network(normalise(store.crop(batch, train.crop_size)))
        score, levels = verdict(
            output, level_scores.to(store.device), train.learns_scores, train.learns_levels
        )
        found.append(score[:, None] if levels is None else torch.cat((score[:, None], levels), dim=1))
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
