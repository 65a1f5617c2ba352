"""One stage of training: base, reference stage, or few-shot fine-tuning. What differs is passed in."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, OneCycleLR

from tenfold.reft.batches import Batch, Supports
from tenfold.reft.config import DistillConfig, LossConfig, TrainConfig
from tenfold.reft.distillation import distillation_loss
from tenfold.reft.episodes import Episodes, episode_loader
from tenfold.reft.freezing import freeze, parameter_groups, set_mode
from tenfold.reft.losses import set_losses
from tenfold.reft.mask2former import Predictions
from tenfold.reft.model import RefT
from tenfold.reft.references import References
from tenfold.shared.accelerator import channels_last, fuses_clipped
from tenfold.shared.logging import TenfoldError, progress
from tenfold.shared.runs import Run

LOSSES = ("total", "class", "mask", "dice", "distilled_class", "distilled_feature")


@dataclass(frozen=True)
class Teacher:
    """The frozen base model of iFSIS, with its own references."""

    network: RefT
    references: References | None
    config: DistillConfig

    @torch.no_grad()
    def predict(self, images: Tensor) -> Predictions:
        """What the base model says."""
        predictions: Predictions = self.network(images, self.references)
        return predictions


class Given:
    """What an update is computed from. Fabric would cast tensors that it finds; it does not look into this."""

    def __init__(
        self,
        batch: Batch,
        supports: Supports | None,
        num_masks: Tensor,
        generator: torch.Generator | None = None,
        teacher: Predictions | None = None,
    ) -> None:
        self.batch, self.supports, self.num_masks = batch, supports, num_masks
        self.generator, self.teacher = generator, teacher


class Objective(nn.Module):
    """Losses of a batch. The network and everything that is learned are inside, so that Fabric can wrap it whole.

    Args:
        network: that learns.
        losses: weights and points.
        base_references: of the base classes, which stay as an earlier stage left them; for iFSIS.
        distill: weights of distillation, where there is a teacher.
        num_base: base classes.
    """

    def __init__(
        self,
        network: RefT,
        losses: LossConfig,
        base_references: References | None = None,
        distill: DistillConfig | None = None,
        num_base: int = 0,
    ) -> None:
        super().__init__()
        self.network, self.losses = network, losses
        self.base_references, self.distill, self.num_base = base_references, distill, num_base

    def forward(self, given: Given) -> Tensor:
        """All of :data:`LOSSES`, [6]; those of distillation are 0 without a teacher."""
        batch, supports, teacher = given.batch, given.supports, given.teacher
        references = None
        if supports is not None:
            references = self.network.refer(self.network.read_supports(supports), self.network.num_classes)
            if self.base_references is not None:
                references = references.with_base(self.base_references, self.network.references.max_rows)
        predictions = self.network(batch.images, references)
        found = set_losses(predictions, batch, self.losses, given.num_masks, given.generator)
        parts = [found.class_loss, found.mask_loss, found.dice_loss]
        nothing = torch.zeros((), device=found.total.device)
        distilled = (nothing, nothing)
        if teacher is not None and self.distill is not None:
            novel = found.assignment.taken(-1, predictions.queries.shape[2])
            distilled = distillation_loss(teacher, predictions, batch, novel, self.num_base, self.distill)
        total = found.total + distilled[0] + distilled[1]
        return torch.stack((total, *(part.detach() for part in (*parts, *distilled))))


@dataclass(frozen=True)
class Trained:
    """What a stage leaves behind."""

    network: RefT
    losses: dict[str, float]
    """Means of the last updates."""
    images_per_second: float


def train_stage(
    network: RefT,
    episodes: Episodes,
    recipe: TrainConfig,
    losses: LossConfig,
    fabric: Fabric,
    run: Run,
    base_references: References | None = None,
    teacher: Teacher | None = None,
    num_base: int = 0,
    compile_network: bool = False,
) -> Trained:
    """Train a network from where it stands, or from the run's checkpoint.

    Args:
        network: with its first weights; trained in place.
        episodes: what every update sees.
        recipe: how.
        losses: weights and points.
        fabric: launched.
        run: entered; goes on from its checkpoint.
        base_references: of base classes that stay (iFSIS).
        teacher: the frozen base model (iFSIS).
        num_base: base classes (iFSIS).
        compile_network: with torch.compile.

    Raises:
        TenfoldError: the loss is no number any more.
    """
    trainer = Trainer(network, recipe, losses, fabric, base_references, teacher, num_base, compile_network)
    first, seconds, means = 0, 0.0, dict.fromkeys(LOSSES, math.nan)
    if (state := run.resume()) is not None:
        trainer.load_state_dict(state["trainer"])
        first, seconds, means = state["step"], state["seconds"], state["means"]
    loader = episode_loader(episodes, first, episodes.data.workers, fabric.device.type == "cuda")
    began, sums, since = time.monotonic(), torch.zeros(len(LOSSES), device=fabric.device), 0
    for step, (batch, supports) in enumerate(
        progress(loader, run.directory.name, total=recipe.steps - first), start=first
    ):
        device = fabric.device
        sums += trainer.learn(
            batch.to(device), None if supports is None else supports.to(device), step_seed(episodes, step)
        )
        since += 1
        last = step == recipe.steps - 1
        if (step + 1) % recipe.log_every and not last:
            continue
        total: Any = fabric.all_reduce(sums, reduce_op="mean")
        means = dict(zip(LOSSES, (total / since).tolist(), strict=True))
        sums, since = torch.zeros_like(sums), 0
        if not math.isfinite(means["total"]):
            raise TenfoldError(
                f"the loss is no number any more at update {step + 1}; lower the learning rate"
            )
        run.log(step + 1, lr=trainer.optimizer.param_groups[0]["lr"], **_shown(means))
        if run.is_checkpoint_due and not last:
            spent = seconds + time.monotonic() - began
            stored = {"trainer": trainer.state_dict(), "step": step + 1, "seconds": spent, "means": means}
            run.save_checkpoint(step + 1, stored)
    seconds += time.monotonic() - began
    trainer.release()
    return Trained(network, _shown(means), recipe.steps * recipe.batch_size / max(seconds, 1e-9))


def step_seed(episodes: Episodes, step: int) -> int:
    """Seed of an update's points in one process, so that a resumed run draws what it would have."""
    state = np.random.SeedSequence((episodes.seed, step, episodes.rank, 1)).generate_state(1)
    return int(state[0])


def _shown(means: dict[str, float]) -> dict[str, float]:
    """Losses by their names in records; distillation only where there is any."""
    return {
        f"{name}_loss": value for name, value in means.items() if value or not name.startswith("distilled")
    }


class Trainer:
    """A network with its losses, optimiser and schedule; arguments as for :func:`train_stage`."""

    def __init__(
        self,
        network: RefT,
        recipe: TrainConfig,
        losses: LossConfig,
        fabric: Fabric,
        base_references: References | None = None,
        teacher: Teacher | None = None,
        num_base: int = 0,
        compile_network: bool = False,
    ) -> None:
        if recipe.batch_size % (recipe.accumulate * fabric.world_size):
            raise TenfoldError(
                f"batches of {recipe.batch_size} images cannot be divided into {recipe.accumulate} parts on "
                f"{fabric.world_size} processes; change either"
            )
        self.recipe, self.fabric, self.teacher = recipe, fabric, teacher
        self.hooks = freeze(network, recipe.freeze, num_base)
        network = channels_last(network, fabric.device).to(fabric.device)
        if base_references is not None:
            # Cut to their share once: cutting in every update would wait for the device.
            share = max(1, network.references.max_rows // network.num_classes)
            base_references = base_references.to(fabric.device).limited(share)
        distill = None if teacher is None else teacher.config
        self.network = network
        objective = Objective(network, losses, base_references, distill, num_base)
        self.optimizer: Optimizer = AdamW(parameter_groups(network, recipe), fused=fuses_clipped(fabric))
        self.scheduler = make_schedule(self.optimizer, recipe)
        if compile_network:
            network.model.pixel_level_module.encoder.compile()
        self.objective, self.wrapped = fabric.setup(objective, self.optimizer)
        self.generator = torch.Generator(device=fabric.device)

    def learn(self, batch: Batch, supports: Supports | None, seed: int) -> Tensor:
        """One update; returns the losses of this process's share, on the device.

        Args:
            batch: query images.
            supports: of the classes, for a network with references.
            seed: of the points.
        """
        set_mode(self.network, self.recipe.freeze)
        self.generator.manual_seed(seed)
        self.wrapped.zero_grad()
        total = batch.present.sum().float()
        num_masks: Tensor = self.fabric.all_reduce(total, reduce_op="mean").clamp(min=1)  # type: ignore[union-attr]
        parts = list(split(batch, self.recipe.accumulate))
        summed = torch.zeros(len(LOSSES), device=self.fabric.device)
        for index, part in enumerate(parts):
            expected = None
            if self.teacher is not None:
                with self.fabric.autocast():
                    expected = self.teacher.predict(part.images)
            with self.fabric.no_backward_sync(self.objective, enabled=index < len(parts) - 1):
                share = num_masks / len(parts)
                found = self.objective(Given(part, supports, share, self.generator, expected))
                self.fabric.backward(found[0] / len(parts))
            summed += found.detach() / len(parts)
        self.fabric.clip_gradients(
            self.objective, self.wrapped, max_norm=self.recipe.clip, error_if_nonfinite=False
        )
        self.wrapped.step()
        self.scheduler.step()
        return summed

    def release(self) -> None:
        """Let everything be trained again, by others."""
        for hook in self.hooks:
            hook.remove()
        freeze(self.network, "none")

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to go on."""
        return {
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "precision": self.fabric.strategy.precision.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there."""
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])
        self.fabric.strategy.precision.load_state_dict(state["precision"])


def split(batch: Batch, parts: int) -> Iterator[Batch]:
    """A batch in parts, one after another."""
    size = len(batch.images) // parts
    for first in range(0, len(batch.images), size):
        part = slice(first, first + size)
        yield Batch(batch.images[part], batch.masks[part], batch.labels[part], batch.image_ids[part])


def make_schedule(optimizer: Optimizer, recipe: TrainConfig) -> LRScheduler:
    """One-cycle with 10 % warm-up, or warm-up and steps."""
    if recipe.schedule == "one-cycle":
        peaks = [group["lr"] for group in optimizer.param_groups]
        steps = max(3, recipe.steps)  # torch's needs two updates to rise, and one to fall
        return OneCycleLR(optimizer, peaks, steps, pct_start=max(0.1, 2 / steps), cycle_momentum=False)

    def factor(step: int) -> float:
        falls = sum(step >= milestone for milestone in recipe.milestones)
        progress_of_warmup = min(1.0, step / recipe.warmup) if recipe.warmup else 1.0
        warm = recipe.warmup_factor + (1 - recipe.warmup_factor) * progress_of_warmup
        return float(0.1**falls * warm)

    return LambdaLR(optimizer, factor)
