"""The loop for classifiers: AdamW, a rate for every update, clipped gradients, averaged weights; resumable by epoch."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from lightning_fabric import Fabric
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor, nn
from torch.optim import AdamW

from tenfold.emo.config import DataConfig, RunConfig, TrainConfig
from tenfold.emo.data import (
    CIFAR_MEAN,
    CIFAR_STD,
    FileBatches,
    ImagesInMemory,
    MemoryBatches,
    load_in_memory,
    resize,
    testing_loader,
)
from tenfold.emo.networks import make_network
from tenfold.emo.recipe import (
    ExponentialMovingAverage,
    distillation_loss,
    label_smoothing_loss,
    learning_rate,
    parameter_groups,
)
from tenfold.emo.teacher import Teacher, load_teacher
from tenfold.shared.accelerator import fuses_clipped, maybe_compile
from tenfold.shared.logging import TenfoldError, get_logger
from tenfold.shared.runs import Run
from tenfold.shared.seeding import seed_everything

logger = get_logger("emo")
TEST_BATCH = 256


class Batches(Protocol):
    """What trains."""

    steps: int

    def epoch(self, number: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Images and labels of one epoch, this process's share."""
        ...


@dataclass(frozen=True)
class Task:
    """Images to learn from and to be judged by."""

    batches: Batches
    test: ImagesInMemory | Path
    """On the device, or a folder of image files."""
    num_classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]


@dataclass(frozen=True)
class Trained:
    """A network at the end of its training."""

    network: nn.Module
    """The averaged one, where there is an average."""
    num_classes: int
    metrics: dict[str, float]
    images_per_second: float
    """While training, since the run was resumed."""


def make_task(config: RunConfig, seed: int, fabric: Fabric, data_root: Path, download: bool = False) -> Task:
    """The data of a run, on Fabric's device where it fits.

    Raises:
        TenfoldError: it is not there, or too small for a batch.
    """
    data, train = config.data, config.train
    rank, world_size = fabric.global_rank, fabric.world_size
    if train.batch_size % world_size:
        raise TenfoldError(
            f"a batch of {train.batch_size} cannot be shared by {world_size} devices: change it"
        )
    if data.dataset == "imagenet":
        folder = data_root / "imagenet"
        batches = FileBatches(folder / "train", data, train.batch_size, seed, rank, world_size)
        return Task(batches, folder / "val", batches.num_classes, IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)
    split = load_in_memory(data, data_root, seed, download)
    placed = MemoryBatches(
        split.train.to(fabric.device), data, train.batch_size, train.drop_last, seed, rank, world_size
    )
    mean, std = (CIFAR_MEAN, CIFAR_STD) if data.dataset == "cifar10" else ((0.0,) * 3, (1.0,) * 3)
    return Task(placed, split.test.to(fabric.device), split.train.num_classes, mean, std)


def train(
    config: RunConfig,
    seed: int,
    fabric: Fabric,
    run: Run,
    data_root: Path = Path("data"),
    compile_network: bool = False,
    download: bool = False,
) -> Trained:
    """Train a classifier.

    Args:
        config: network, data, recipe.
        seed: of weights, order and augmentation; of the digits' split too.
        fabric: launched; its processes divide every batch. Batch norm sees each process's share alone, as the authors'.
        run: entered; goes on from its checkpoint.
        data_root: folder of all data.
        compile_network: with torch.compile.
        download: fetch data or a teacher that is missing.

    Raises:
        TenfoldError: data or network do not fit, or the loss is no number any more.
    """
    task = make_task(config, seed, fabric, data_root, download)
    seed_everything(seed)
    network = make_network(config.model, task.num_classes, config.data.image_size)
    teacher = None
    if config.train.teacher is not None:
        teacher = load_teacher(config.train.teacher, task.num_classes, task.mean, task.std, download)
    seed_everything(seed + fabric.global_rank)  # stochastic depth and dropout, as the authors seed them
    trainer = Trainer(network, config.train, task.batches.steps, fabric, compile_network, teacher)
    first_epoch, best, last = 0, {}, {}
    state = run.resume()
    if state is not None:
        trainer.load_state_dict(state["trainer"])
        first_epoch, best, last = state["epoch"], state["best"], state["last"]

    seconds, seen = 0.0, 0
    for epoch in range(first_epoch, config.train.epochs):
        started = time.monotonic()
        loss, images = trainer.train_epoch(task.batches.epoch(epoch), epoch)
        seconds, seen = seconds + time.monotonic() - started, seen + images
        if not math.isfinite(loss):
            raise TenfoldError(f"the loss is no number any more in epoch {epoch}; lower --train.lr")
        if is_judged(epoch, config.train):
            last = judge_all(trainer, task, config.data, fabric)
            best = {f"best_{name}": max(value, best.get(f"best_{name}", 0.0)) for name, value in last.items()}
        run.log(epoch, loss=loss, lr=trainer.rate(epoch + 1, -1), **last)
        is_last = epoch == config.train.epochs - 1
        if run.is_checkpoint_due and not is_last:
            stored = {"trainer": trainer.state_dict(), "epoch": epoch + 1, "best": best, "last": last}
            run.save_checkpoint(epoch, stored)
    kept = trainer.plain_network if trainer.average is None else trainer.average.model
    rate = seen / seconds if seconds else 0.0
    return Trained(kept, task.num_classes, {**last, **best}, rate)


def is_judged(epoch: int, config: TrainConfig) -> bool:
    """Whether the test images are looked at after an epoch: every few, then every one, as the authors did."""
    is_late = epoch + 1 > config.epochs * 2 / 3
    return is_late or (epoch + 1) % config.evaluate_every == 0


class Trainer:
    """A network with its optimiser, schedule and average.

    Args:
        network: on the CPU.
        config: the recipe.
        steps_per_epoch: updates.
        fabric: launched.
        compile_network: with torch.compile.
        teacher: to distil from.
    """

    def __init__(
        self,
        network: nn.Module,
        config: TrainConfig,
        steps_per_epoch: int,
        fabric: Fabric,
        compile_network: bool = False,
        teacher: Teacher | None = None,
    ) -> None:
        self.config, self.fabric, self.steps_per_epoch = config, fabric, steps_per_epoch
        if fabric.device.type == "cuda":
            torch.backends.cudnn.benchmark = True  # images are of one size
        self.plain_network = network.to(fabric.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        groups = [
            {"params": group["params"], "weight_decay": group["weight_decay"]}
            for group in parameter_groups(self.plain_network, config.weight_decay)
        ]
        fused = fuses_clipped(fabric)
        self.plain_optimizer = AdamW(groups, lr=config.lr, betas=(0.9, 0.999), eps=1e-8, fused=fused)
        self.network, self.optimizer = fabric.setup(
            maybe_compile(self.plain_network, compile_network), self.plain_optimizer
        )
        self.average = (
            None
            if config.ema_decay is None
            else ExponentialMovingAverage(self.plain_network, config.ema_decay)
        )
        self.teacher = None if teacher is None else teacher.to(fabric.device)

    def rate(self, epoch: int, step: int) -> float:
        """The learning rate of an update."""
        config = self.config
        return learning_rate(
            epoch * self.steps_per_epoch + step,
            config.lr,
            config.epochs,
            config.warmup_epochs,
            self.steps_per_epoch,
            config.min_lr,
            config.min_lr,
            config.noise_range,
        )

    def train_epoch(self, batches: Iterable[tuple[Tensor, Tensor]], epoch: int) -> tuple[float, int]:
        """One pass; returns the mean loss and how many images all processes saw."""
        self.network.train()
        device = self.fabric.device
        sums, count = torch.zeros((), device=device), 0
        for step, (images, labels) in enumerate(batches):
            images, labels = images.to(device, non_blocking=True), labels.to(device, non_blocking=True)
            sums += self.learn(images, labels, self.rate(epoch, step)) * len(labels)
            count += len(labels)
        total: Any = self.fabric.all_reduce(
            torch.stack((sums, sums.new_tensor(float(count)))), reduce_op="sum"
        )
        loss, seen = total.tolist()
        return loss / seen, int(seen)

    def learn(self, images: Tensor, labels: Tensor, lr: float) -> Tensor:
        """One update; returns the loss of this process's share, on the device.

        Args:
            images: [B, 3, H, W].
            labels: [B].
            lr: learning rate.
        """
        for group in self.plain_optimizer.param_groups:
            group["lr"] = lr
        logits = self.network(images)
        loss = label_smoothing_loss(logits.float(), labels, self.config.label_smoothing)
        if self.teacher is not None:
            with self.fabric.autocast():
                target = self.teacher(images)
            weight = self.config.distillation_weight
            loss = loss + weight * distillation_loss(
                logits.float(), target.float(), self.config.distillation, self.config.tau
            )
        self.optimizer.zero_grad()
        self.fabric.backward(loss)
        self.fabric.clip_gradients(
            self.network, self.optimizer, max_norm=self.config.clip_norm, error_if_nonfinite=False
        )
        self.optimizer.step()
        if self.average is not None:
            self.average.update(self.plain_network)
        return loss.detach()

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to go on."""
        return {
            "network": self.plain_network.state_dict(),
            "average": None if self.average is None else self.average.model.state_dict(),
            "optimizer": self.plain_optimizer.state_dict(),
            "precision": self.fabric.strategy.precision.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there."""
        self.plain_network.load_state_dict(state["network"])
        if self.average is not None:
            self.average.model.load_state_dict(state["average"])
        self.plain_optimizer.load_state_dict(state["optimizer"])
        self.fabric.strategy.precision.load_state_dict(state["precision"])


def judge_all(trainer: Trainer, task: Task, config: DataConfig, fabric: Fabric) -> dict[str, float]:
    """Top-1 and top-5 of the network, and of its average as ``ema_...``."""
    found = judge(trainer.plain_network, task.test, config, fabric)
    if trainer.average is not None:
        averaged = judge(trainer.average.model, task.test, config, fabric)
        found |= {f"ema_{name}": value for name, value in averaged.items()}
    return found


@torch.inference_mode()
def judge(
    network: nn.Module, test: ImagesInMemory | Path, config: DataConfig, fabric: Fabric
) -> dict[str, float]:
    """Top-1 and top-5 accuracy in per cent; processes divide the images.

    Args:
        network: on Fabric's device.
        test: images on the device, or a folder of files.
        config: of size and crop.
        fabric: launched.
    """
    was_training = network.training
    network.eval()
    counts = torch.zeros(3, device=fabric.device)
    for images, labels in _test_batches(test, config, fabric):
        with fabric.autocast():
            logits = network(images.to(fabric.device, non_blocking=True))
        labels = labels.to(fabric.device, non_blocking=True)
        ranked = logits.float().topk(min(5, logits.shape[1]), dim=1).indices == labels[:, None]
        counts += torch.stack(
            (ranked[:, 0].sum(), ranked.sum(), ranked.new_tensor(len(labels), dtype=torch.float))
        )
    total: Any = fabric.all_reduce(counts, reduce_op="sum")
    network.train(was_training)
    first, five, images_seen = total.tolist()
    return {"top1": 100 * first / images_seen, "top5": 100 * five / images_seen}


def _test_batches(
    test: ImagesInMemory | Path, config: DataConfig, fabric: Fabric
) -> Iterator[tuple[Tensor, Tensor]]:
    rank, world_size = fabric.global_rank, fabric.world_size
    if isinstance(test, Path):
        yield from testing_loader(test, config, TEST_BATCH, rank, world_size)
        return
    mine = torch.arange(rank, len(test.labels), world_size, device=test.labels.device)
    for batch in mine.split(TEST_BATCH):
        yield resize(test.images[batch], config.image_size), test.labels[batch]
