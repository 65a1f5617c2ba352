"""The loop of pre-training: a student imitates its teacher, or reconstructs masked patches; resumable by epoch."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.optim import AdamW

from tenfold.shared.accelerator import maybe_compile
from tenfold.shared.logging import TenfoldError, get_logger
from tenfold.shared.runs import Run
from tenfold.shared.seeding import make_generator, seed_everything
from tenfold.tinymim.config import PretrainConfig
from tenfold.tinymim.optim import cosine_lr, optimizer_groups, pretrain_decay_groups
from tenfold.tinymim.targets import Objective
from tenfold.tinymim.vit import Readings, Signal, VisionTransformer

logger = get_logger("tinymim")
NOISE_SEEDS = 7_368_787


class Views(Protocol):
    """Batches of pre-training."""

    steps: int

    def epoch(self, number: int) -> Iterator[tuple[Tensor, Tensor]]:
        """The teacher's and the student's view of one epoch, this process's share."""
        ...


class ReadableTeacher(Protocol):
    """What a student imitates."""

    def read(self, images: Tensor, wanted: Any) -> Readings:
        """What is wanted of images [B, 3, H, W]."""
        ...


@dataclass(frozen=True)
class Pretrained:
    """A network at the end of pre-training."""

    network: VisionTransformer
    losses: dict[str, float]
    """Means of the last epoch."""
    images_per_second: float
    """Since the run was resumed."""


def pretrain(
    config: PretrainConfig,
    objective: Objective,
    views: Views,
    seed: int,
    fabric: Fabric,
    run: Run,
    teacher: ReadableTeacher | None = None,
    compile_network: bool = False,
    probe: Callable[[VisionTransformer], dict[str, float]] | None = None,
) -> Pretrained:
    """Train a student.

    Args:
        config: the recipe.
        objective: the student and its target, on the CPU.
        views: batches; those of a process are its share.
        seed: of stochastic depth and masks.
        fabric: launched; its processes divide every batch.
        run: entered; goes on from its checkpoint.
        teacher: on Fabric's device; none for masked autoencoding.
        compile_network: with torch.compile.
        probe: judges the student's frozen features every ``probe_every`` epochs.

    Raises:
        TenfoldError: the loss is no number any more, or a batch cannot be divided.
    """
    parts = fabric.world_size * config.accumulate
    if config.batch_size % parts:
        raise TenfoldError(
            f"a batch of {config.batch_size} cannot be divided into {parts} equal parts: change it"
        )
    trainer = Pretrainer(config, objective, views.steps, fabric, teacher, compile_network)
    first, losses = 0, {}
    state = run.resume()
    if state is not None:
        trainer.load_state_dict(state["trainer"])
        first, losses = state["epoch"], state["losses"]
    seconds = 0.0
    for epoch in range(first, config.epochs):
        started = time.monotonic()
        seed_everything(epoch_seed(seed, epoch, fabric.global_rank))
        losses = trainer.train_epoch(views.epoch(epoch), epoch, seed)
        seconds += time.monotonic() - started
        if not math.isfinite(losses["total"]):
            raise TenfoldError(f"the loss is no number any more in epoch {epoch}; lower the learning rate")
        judged = {}
        if probe is not None and config.probe_every and (epoch + 1) % config.probe_every == 0:
            judged = probe(objective.student)
        run.log(
            epoch,
            **judged,
            lr=trainer.rate(epoch + 1, -1),
            **{f"{name}_loss": value for name, value in losses.items()},
        )
        if run.is_checkpoint_due and epoch < config.epochs - 1:
            stored = {"trainer": trainer.state_dict(), "epoch": epoch + 1, "losses": losses}
            run.save_checkpoint(epoch, stored)
    seen = (config.epochs - first) * views.steps * config.batch_size
    return Pretrained(objective.student, losses, seen / seconds if seconds else 0.0)


def epoch_seed(seed: int, epoch: int, rank: int) -> int:
    """Seed of the global generators in one epoch of one process, so that a resumed run draws what it would have."""
    return (seed * 1_000_003 + epoch * 4_099 + rank) % 2**32


class Pretrainer:
    """An objective with optimiser and schedule.

    Args:
        config: the recipe.
        objective: on the CPU.
        steps_per_epoch: updates.
        fabric: launched.
        teacher: on Fabric's device.
        compile_network: with torch.compile.
    """

    def __init__(
        self,
        config: PretrainConfig,
        objective: Objective,
        steps_per_epoch: int,
        fabric: Fabric,
        teacher: ReadableTeacher | None = None,
        compile_network: bool = False,
    ) -> None:
        self.config, self.fabric, self.steps_per_epoch, self.teacher = (
            config,
            fabric,
            steps_per_epoch,
            teacher,
        )
        self.plain = objective.to(fabric.device)
        _, decayed = pretrain_decay_groups(objective)
        decays = dict.fromkeys(decayed, config.weight_decay)
        groups = optimizer_groups(objective, lambda name: (1.0, decays.get(name, 0.0)))
        self.plain_optimizer = AdamW(groups, lr=config.lr, betas=config.betas, fused=True)
        self.objective, self.optimizer = fabric.setup(
            maybe_compile(self.plain, compile_network), self.plain_optimizer
        )
        signal = objective.config.signal
        self.wanted: frozenset[Signal] = frozenset((signal,) if signal is not None else ())
        self.patches = objective.student.config.grid**2

    def rate(self, epoch: int, step: int) -> float:
        """The learning rate of an update."""
        config = self.config
        return cosine_lr(
            epoch + step / self.steps_per_epoch,
            lr=config.lr,
            min_lr=config.min_lr,
            warmup_epochs=config.warmup_epochs,
            epochs=config.epochs,
        )

    def train_epoch(self, views: Iterator[tuple[Tensor, Tensor]], epoch: int, seed: int) -> dict[str, float]:
        """One pass; returns mean losses over all processes."""
        self.objective.train()
        noise = make_generator(seed * NOISE_SEEDS + epoch)
        sums: dict[str, Tensor] = {}
        for step, (teacher_view, student_view) in enumerate(views):
            for name, loss in self.learn(
                teacher_view, student_view, self.rate(epoch, step), self.mask_noise(noise)
            ).items():
                sums[name] = sums[name] + loss if name in sums else loss
        total: Any = self.fabric.all_reduce(torch.stack(list(sums.values())), reduce_op="mean")
        return dict(zip(sums, (total / self.steps_per_epoch).tolist(), strict=True))

    def mask_noise(self, generator: torch.Generator) -> Tensor | None:
        """What decides which patches are hidden, [B, patches], this process's share; None where none are."""
        if not self.plain.config.masked:
            return None
        noise = torch.rand(self.config.batch_size, self.patches, generator=generator)
        share = noise[self.fabric.global_rank :: self.fabric.world_size].contiguous()
        if self.fabric.device.type == "cuda":
            share = share.pin_memory()
        return share.to(self.fabric.device, non_blocking=True)

    def learn(
        self, teacher_view: Tensor, student_view: Tensor, lr: float, noise: Tensor | None = None
    ) -> dict[str, Tensor]:
        """One update; returns the losses of this process's share, on the device.

        Args:
            teacher_view: [B, 3, H, W].
            student_view: [B, 3, H, W].
            lr: learning rate.
            noise: [B, patches], uniform; only where patches are hidden.
        """
        for group in self.plain_optimizer.param_groups:
            group["lr"] = lr * group["lr_scale"]
        self.optimizer.zero_grad()
        parts = self.config.accumulate
        sums: dict[str, Tensor] = {}
        chunks = (
            values.chunk(parts) if values is not None else (None,) * parts
            for values in (teacher_view, student_view, noise)
        )
        for number, (theirs, mine, hidden) in enumerate(zip(*chunks, strict=True)):
            target = None
            if self.teacher is not None:
                with self.fabric.autocast(), torch.no_grad():
                    target = self.teacher.read(theirs, self.wanted)
            with self.fabric.no_backward_sync(self.objective, enabled=number < parts - 1):
                losses = self.objective(mine, target, hidden)
                self.fabric.backward(losses["total"] / parts)
            for name, loss in losses.items():
                found = loss.detach() / parts
                sums[name] = sums[name] + found if name in sums else found
        self.optimizer.step()
        return sums

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to go on."""
        return {
            "objective": self.plain.state_dict(),
            "optimizer": self.plain_optimizer.state_dict(),
            "precision": self.fabric.strategy.precision.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there."""
        self.plain.load_state_dict(state["objective"])
        self.plain_optimizer.load_state_dict(state["optimizer"])
        self.fabric.strategy.precision.load_state_dict(state["precision"])


def trained_weights(network: nn.Module) -> dict[str, Tensor]:
    """The weights on the CPU, by the authors' names."""
    return {name: value.cpu() for name, value in network.state_dict().items()}
