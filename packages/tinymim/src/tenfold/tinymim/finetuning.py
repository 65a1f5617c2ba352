"""The loop of supervised learning, from a pre-trained network or from scratch: rates that fall from layer to layer."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from lightning_fabric import Fabric
from timm.data import Mixup
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import AdamW

from tenfold.shared.accelerator import maybe_compile
from tenfold.shared.logging import TenfoldError
from tenfold.shared.runs import Run
from tenfold.shared.seeding import seed_everything
from tenfold.tinymim.config import FinetuneConfig
from tenfold.tinymim.evaluation import evaluate_classifier
from tenfold.tinymim.optim import cosine_lr, layer_decay_groups, optimizer_groups
from tenfold.tinymim.pretraining import epoch_seed
from tenfold.tinymim.vit import VisionTransformer

Batch = tuple[Tensor, Tensor]


class Batches(Protocol):
    """Labelled images that train."""

    steps: int
    num_classes: int

    def epoch(self, number: int) -> Iterator[Batch]:
        """Images and labels of one epoch, this process's share."""
        ...


@dataclass(frozen=True)
class Finetuned:
    """A classifier at the end of its training."""

    network: VisionTransformer
    metrics: dict[str, float]
    """top1 and top5 of the last epoch in per cent, and the best over epochs as ``best_...``, as the authors report."""
    images_per_second: float
    """Since the run was resumed."""


def finetune(
    config: FinetuneConfig,
    classifier: VisionTransformer,
    batches: Batches,
    test: Callable[[], Iterable[Batch]],
    seed: int,
    fabric: Fabric,
    run: Run,
    teacher: nn.Module | None = None,
    compile_network: bool = False,
) -> Finetuned:
    """Train a classifier.

    Args:
        config: the recipe.
        classifier: on the CPU, with its first weights.
        batches: labelled images; those of a process are its share.
        test: gives the images that judge, this process's share.
        seed: of stochastic depth, mixup and cutmix.
        fabric: launched; its processes divide every batch.
        run: entered; goes on from its checkpoint.
        teacher: a classifier on Fabric's device whose classes the second head of TinyMIM* learns.
        compile_network: with torch.compile.

    Raises:
        TenfoldError: the loss is no number any more, or a batch cannot be divided.
    """
    parts = fabric.world_size * config.accumulate
    if config.batch_size % parts:
        raise TenfoldError(
            f"a batch of {config.batch_size} cannot be divided into {parts} equal parts: change it"
        )
    if (config.mixup or config.cutmix) and (config.batch_size // fabric.world_size) % 2:
        raise TenfoldError(
            f"images are mixed in pairs: a batch of {config.batch_size} leaves an odd number on each of "
            f"{fabric.world_size} devices, change it or leave out mixup and cutmix"
        )
    trainer = Finetuner(
        config, classifier, batches.steps, batches.num_classes, fabric, teacher, compile_network
    )
    first, best, last = 0, {}, {}
    state = run.resume()
    if state is not None:
        trainer.load_state_dict(state["trainer"])
        first, best, last = state["epoch"], state["best"], state["last"]
    seconds = 0.0
    for epoch in range(first, config.epochs):
        started = time.monotonic()
        seed_everything(epoch_seed(seed, epoch, fabric.global_rank))
        loss = trainer.train_epoch(batches.epoch(epoch), epoch)
        seconds += time.monotonic() - started
        is_last = epoch == config.epochs - 1
        if is_last or (epoch + 1) % config.evaluate_every == 0:
            found = float(loss)
            if not math.isfinite(found):
                raise TenfoldError(
                    f"the loss is no number any more in epoch {epoch}; lower the learning rate"
                )
            last = evaluate_classifier(trainer.plain, test(), fabric)
            best = {f"best_{name}": max(value, best.get(f"best_{name}", 0.0)) for name, value in last.items()}
            run.log(epoch, loss=found, lr=trainer.rate(epoch + 1, -1), **last)
        if run.is_checkpoint_due and not is_last:
            stored = {"trainer": trainer.state_dict(), "epoch": epoch + 1, "best": best, "last": last}
            run.save_checkpoint(epoch, stored)
    seen = (config.epochs - first) * batches.steps * config.batch_size
    return Finetuned(trainer.plain, {**last, **best}, seen / seconds if seconds else 0.0)


class Finetuner:
    """A classifier with optimiser, schedule and mixed images.

    Args:
        config: the recipe.
        classifier: on the CPU.
        steps_per_epoch: updates.
        num_classes: of the labels.
        fabric: launched.
        teacher: on Fabric's device, of a classifier with two heads.
        compile_network: with torch.compile.
    """

    def __init__(
        self,
        config: FinetuneConfig,
        classifier: VisionTransformer,
        steps_per_epoch: int,
        num_classes: int,
        fabric: Fabric,
        teacher: nn.Module | None = None,
        compile_network: bool = False,
    ) -> None:
        if (teacher is None) != (classifier.head_dist is None):
            raise TenfoldError(
                "TinyMIM* learns from the classes of a teacher, and other networks have none: "
                "give --train.teacher for tinymim_star_tiny alone"
            )
        self.config, self.fabric, self.steps_per_epoch, self.teacher = (
            config,
            fabric,
            steps_per_epoch,
            teacher,
        )
        self.plain = classifier.to(fabric.device)
        settings = layer_decay_groups(classifier, config.weight_decay, config.layer_decay)
        groups = optimizer_groups(classifier, settings.__getitem__)
        self.plain_optimizer = AdamW(groups, lr=config.lr, betas=(0.9, 0.999), fused=True)
        self.network, self.optimizer = fabric.setup(
            maybe_compile(self.plain, compile_network), self.plain_optimizer
        )
        self.mixup = None
        if config.mixup or config.cutmix:
            self.mixup = Mixup(
                config.mixup, config.cutmix, label_smoothing=config.label_smoothing, num_classes=num_classes
            )

    def rate(self, epoch: int, step: int) -> float:
        """The learning rate of an update, of the last layer."""
        config = self.config
        return cosine_lr(
            epoch + step / self.steps_per_epoch,
            lr=config.lr,
            min_lr=config.min_lr,
            warmup_epochs=config.warmup_epochs,
            epochs=config.epochs,
        )

    def train_epoch(self, batches: Iterator[Batch], epoch: int) -> Tensor:
        """One pass; returns the mean loss over all processes, on the device."""
        self.network.train()
        device = self.fabric.device
        total = torch.zeros((), device=device)
        for step, (images, labels) in enumerate(batches):
            images, labels = images.to(device, non_blocking=True), labels.to(device, non_blocking=True)
            total += self.learn(images, labels, self.rate(epoch, step))
        mean: Any = self.fabric.all_reduce(total / self.steps_per_epoch, reduce_op="mean")
        return mean  # type: ignore[no-any-return]

    def learn(self, images: Tensor, labels: Tensor, lr: float) -> Tensor:
        """One update; returns the loss of this process's share, on the device.

        Args:
            images: [B, 3, H, W]; B is even where images are mixed.
            labels: [B].
            lr: learning rate of the last layer.
        """
        for group in self.plain_optimizer.param_groups:
            group["lr"] = lr * group["lr_scale"]
        smoothing, targets = self.config.label_smoothing, labels
        if self.mixup is not None:
            images, targets = self.mixup(images.clone(), labels)  # it writes into its images
            smoothing = 0.0
        self.optimizer.zero_grad()
        parts = self.config.accumulate
        total = torch.zeros((), device=self.fabric.device)
        for number, (pixels, wanted) in enumerate(
            zip(images.chunk(parts), targets.chunk(parts), strict=True)
        ):
            with self.fabric.no_backward_sync(self.network, enabled=number < parts - 1):
                loss = self.loss(pixels, wanted, smoothing) / parts
                self.fabric.backward(loss)
            total += loss.detach()
        self.optimizer.step()
        return total

    def loss(self, images: Tensor, targets: Tensor, smoothing: float) -> Tensor:
        """Cross-entropy with classes or distributions; of TinyMIM* the mean with DeiT's hard distillation."""
        found = self.network(images)
        logits, second = found if isinstance(found, tuple) else (found, None)
        loss = F.cross_entropy(logits.float(), targets, label_smoothing=smoothing)
        if second is None or self.teacher is None:
            return loss
        with self.fabric.autocast(), torch.no_grad():
            classes = self.teacher(images).argmax(dim=1)
        return (loss + F.cross_entropy(second.float(), classes)) / 2

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to go on."""
        return {
            "network": self.plain.state_dict(),
            "optimizer": self.plain_optimizer.state_dict(),
            "precision": self.fabric.strategy.precision.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there."""
        self.plain.load_state_dict(state["network"])
        self.plain_optimizer.load_state_dict(state["optimizer"])
        self.fabric.strategy.precision.load_state_dict(state["precision"])
