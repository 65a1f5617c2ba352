"""Training of a detector: one loop for all modalities. Pasted objects fade out by themselves."""

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
from torch.optim import AdamW

from tenfold.cmt.config import LossConfig, TrainConfig
from tenfold.cmt.cyclic_schedule import CyclicSchedule
from tenfold.cmt.dataset import TrainingSamples
from tenfold.cmt.denoising import prepare_denoising
from tenfold.cmt.detector import Cmt
from tenfold.cmt.grid_mask import draw_grid_mask, grid_mask
from tenfold.cmt.losses import LOSSES, detection_losses
from tenfold.cmt.samples import Batch
from tenfold.cmt.training_batches import BatchOrder, training_loader
from tenfold.shared.accelerator import channels_last, fuses_clipped
from tenfold.shared.logging import TenfoldError, progress
from tenfold.shared.runs import Run

LOGGED = ("loss", *LOSSES, "gradient_norm")
"""Sum over all layers, the four losses of the last, and the norm of the gradient before it is clipped."""


class Given:
    """What an update is computed from. Fabric would cast tensors that it finds; it does not look into this."""

    def __init__(self, batch: Batch, generator: torch.Generator, mask: Tensor | None) -> None:
        self.batch, self.generator, self.mask = batch, generator, mask


class Objective(nn.Module):
    """Losses of a batch. The network is inside, so that Fabric can wrap it whole.

    Args:
        network: that learns.
        losses: weights, and denoising.
        fabric: for counts over processes.
    """

    def __init__(self, network: Cmt, losses: LossConfig, fabric: Fabric) -> None:
        super().__init__()
        self.network, self.losses, self.fabric = network, losses, fabric

    def forward(self, given: Given) -> Tensor:
        """Sum of all losses, and those of the last layer, [1 + 4]."""
        batch, head = given.batch, self.network.pts_bbox_head
        noised = prepare_denoising(
            batch.boxes,
            batch.labels,
            batch.counts,
            head.config.queries,
            head.low,
            head.extent,
            self.losses,
            generator=given.generator,
        )
        predictions = self.network(batch, noised, given.mask)
        with torch.autocast(batch.boxes.device.type, enabled=False):
            rows = detection_losses(
                predictions,
                batch.boxes,
                batch.labels,
                batch.counts,
                self.losses,
                head.config,
                noised,
                self.fabric,
            )
        return torch.cat((rows.sum()[None], rows[:, -1].detach()))


@dataclass(frozen=True)
class Trained:
    """What training leaves behind."""

    losses: dict[str, float]
    """Means since the last line of the record."""
    samples_per_second: float


def total_steps(train: TrainConfig, steps_per_epoch: int) -> int:
    """Updates of a training."""
    return train.steps or train.epochs * steps_per_epoch


def fade_step(train: TrainConfig, steps_per_epoch: int) -> int:
    """The update from which on nothing is pasted."""
    if train.steps:
        return round(train.steps * (1 - train.fade_part))
    return max(0, train.epochs - train.fade_epochs) * steps_per_epoch


def train_detector(
    network: Cmt,
    samples: TrainingSamples,
    order: BatchOrder,
    train: TrainConfig,
    losses: LossConfig,
    fabric: Fabric,
    run: Run,
    compile_network: bool = False,
) -> Trained:
    """Train a network from where it stands, or from the run's checkpoint.

    Args:
        network: with its first weights; trained in place.
        samples: augmented samples.
        order: which of them each update sees.
        train: how.
        losses: weights, and denoising.
        fabric: launched.
        run: entered; goes on from its checkpoint.
        compile_network: with torch.compile, the branches that have fixed shapes.

    Raises:
        TenfoldError: batches cannot be divided, or the gradient is no number any more.
    """
    steps = total_steps(train, order.steps_per_epoch)
    trainer = Trainer(network, train, losses, fabric, steps, samples.seed, compile_network)
    first, seconds, means = 0, 0.0, dict.fromkeys(LOGGED, math.nan)
    if (state := run.resume()) is not None:
        trainer.load_state_dict(state["trainer"])
        first, seconds, means = state["step"], state["seconds"], state["means"]
    loader = training_loader(
        samples,
        order,
        first,
        steps,
        fabric.global_rank,
        fabric.world_size,
        samples.data.workers,
        fabric.device.type == "cuda",
        train.accumulate,
    )
    batches = iter(loader)
    began, sums, since = time.monotonic(), torch.zeros(len(LOGGED), device=fabric.device), 0
    for step in progress(range(first, steps), run.directory.name):
        parts = (next(batches).to(fabric.device) for _ in range(train.accumulate))
        sums += trainer.learn(step, parts)
        since += 1
        last = step == steps - 1
        if (step + 1) % train.log_every and not last:
            continue
        total: Any = fabric.all_reduce(sums, reduce_op="mean")
        means = dict(zip(LOGGED, (total / since).tolist(), strict=True))
        sums, since = torch.zeros_like(sums), 0
        # Losses and queries that are no numbers count 0, gradients tell; scaled ones overflow now and then.
        if not math.isfinite(means["loss"]) or not (trainer.scales or math.isfinite(means["gradient_norm"])):
            raise TenfoldError(
                f"the gradient is no number any more at update {step + 1}; lower the learning rate"
            )
        run.log(step + 1, lr=trainer.optimizer.param_groups[0]["lr"], **means)
        if run.is_checkpoint_due and not last:
            spent = seconds + time.monotonic() - began
            stored = {"trainer": trainer.state_dict(), "step": step + 1, "seconds": spent, "means": means}
            run.save_checkpoint(step + 1, stored)
    seconds += time.monotonic() - began
    share_buffers(network, fabric)
    return Trained(means, steps * train.batch_size / max(seconds, 1e-9))


def share_buffers(network: nn.Module, fabric: Fabric) -> None:
    """Give all processes the first one's statistics of batch norms, which its file has."""
    if fabric.world_size > 1:
        for buffer in network.buffers():
            torch.distributed.broadcast(buffer, 0)


class Trainer:
    """A network with its losses, optimiser and schedule.

    Args:
        network: that learns.
        train: how.
        losses: weights, and denoising.
        fabric: launched.
        steps: updates of the whole training.
        seed: of noise, dropout and grid masks.
        compile_network: with torch.compile.
    """

    def __init__(
        self,
        network: Cmt,
        train: TrainConfig,
        losses: LossConfig,
        fabric: Fabric,
        steps: int,
        seed: int,
        compile_network: bool = False,
    ) -> None:
        if train.batch_size % (train.accumulate * fabric.world_size):
            raise TenfoldError(
                f"batches of {train.batch_size} samples cannot be divided into {train.accumulate} parts on "
                f"{fabric.world_size} processes; change either"
            )
        self.network, self.train, self.fabric, self.seed = network, train, fabric, seed
        for part in network.dense_parts:  # sparse kernels have five dimensions
            channels_last(part, fabric.device)
        network.to(fabric.device)
        self.scales = getattr(fabric.strategy.precision, "scaler", None) is not None
        groups = parameter_groups(network, train)
        self.optimizer = AdamW(groups, lr=train.lr, fused=fuses_clipped(fabric))
        self.schedule = CyclicSchedule(self.optimizer, train, steps)
        if compile_network:
            compile_branches(network)
        self.objective, self.wrapped = fabric.setup(Objective(network, losses, fabric), self.optimizer)
        self.generator = torch.Generator(device=fabric.device)

    def learn(self, step: int, parts: Iterator[Batch]) -> Tensor:
        """One update.

        Args:
            step: its number.
            parts: batches of this process, as many as gradients are accumulated over.

        Returns:
            :data:`LOGGED` of this process, on the device.
        """
        self.objective.train()
        self.schedule.set(step)
        self.wrapped.zero_grad()
        count = self.train.accumulate
        summed = torch.zeros(1 + len(LOSSES), device=self.fabric.device)
        for place, batch in enumerate(parts):
            state = np.random.SeedSequence((self.seed, step, place, self.fabric.global_rank, 1))
            noise_seed, dropout_seed = (int(word) for word in state.generate_state(2))
            self.generator.manual_seed(noise_seed)
            torch.manual_seed(dropout_seed)
            given = Given(batch, self.generator, self._mask(step))
            with self.fabric.no_backward_sync(self.objective, enabled=place < count - 1):
                found = self.objective(given)
                self.fabric.backward(found[0] / count)
            summed += found.detach() / count
        norm: Any = self.fabric.clip_gradients(
            self.objective, self.wrapped, max_norm=self.train.clip, error_if_nonfinite=False
        )
        self.wrapped.step()
        return torch.cat((summed, norm.detach()[None]))

    def _mask(self, step: int) -> Tensor | None:
        """The grid mask of an update, the same in all processes; None for most networks and some updates."""
        image = self.network.network.image
        if not self.network.network.reads_images or image.grid_mask == 0:
            return None
        generator = np.random.default_rng(np.random.SeedSequence((self.seed, step, 2)))
        drawn = draw_grid_mask(image.size, generator, image.grid_mask)
        return None if drawn is None else grid_mask(*image.size, *drawn, device=self.fabric.device)

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to go on."""
        return {
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "precision": self.fabric.strategy.precision.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there."""
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        if state["precision"] and self.scales:  # another precision has no scale to go on from
            self.fabric.strategy.precision.load_state_dict(state["precision"])


def parameter_groups(network: Cmt, train: TrainConfig) -> list[dict[str, Any]]:
    """Parameters with the rates and decays of their part of the network."""
    backbone: list[nn.Parameter] = []
    neck: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for name, parameter in network.named_parameters():
        part = (
            backbone if name.startswith("img_backbone.") else neck if name.startswith("img_neck.") else others
        )
        part.append(parameter)
    decay = train.weight_decay
    groups = [
        {"params": others, "lr": train.lr, "weight_decay": decay},
        {"params": neck, "lr": train.lr * train.image_neck_lr, "weight_decay": decay},
        {
            "params": backbone,
            "lr": train.lr * train.image_backbone_lr,
            "weight_decay": decay * train.image_backbone_decay,
        },
    ]
    return [group for group in groups if group["params"]]


def compile_branches(network: Cmt) -> None:
    """torch.compile the parts whose shapes do not change from batch to batch; the rest has as many rows as voxels."""
    for part in network.dense_parts:
        part.compile()
