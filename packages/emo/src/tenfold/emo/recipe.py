"""The authors' way to train on ImageNet: learning rate, parameter groups, losses, averaged weights, one step."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tenfold.shared.logging import TenfoldError


def learning_rate(
    iteration: int,
    peak_lr: float,
    epochs: int,
    warmup_epochs: float,
    iterations_per_epoch: int,
    min_lr: float,
    warmup_start_lr: float,
    noise_range: tuple[float, float] | None = None,
    noise_pct: float = 0.67,
    noise_seed: int = 42,
) -> float:
    """The rate of one update.

    A line to the peak, then a cosine over *all* updates, those of the warm-up among them: the rate falls a little when
    the warm-up ends. Within ``noise_range`` it is multiplied by 1 + z, z drawn for each update from a normal
    distribution cut at ``noise_pct``.

    Args:
        iteration: of the update, from 0.
        peak_lr: rate after the warm-up.
        epochs: in all.
        warmup_epochs: of them, the first.
        iterations_per_epoch: updates.
        min_lr: where the cosine ends.
        warmup_start_lr: where the line begins.
        noise_range: shares of all updates between which there is noise; the runs of EMO-1M and EMO-2M had (0.42, 0.9).
        noise_pct: largest share by which noise changes the rate.
        noise_seed: of the noise.
    """
    total, warmup = epochs * iterations_per_epoch, round(warmup_epochs * iterations_per_epoch)
    if iteration < warmup:
        rate = warmup_start_lr + iteration * (peak_lr - warmup_start_lr) / warmup
    else:
        rate = min_lr + 0.5 * (peak_lr - min_lr) * (1 + math.cos(math.pi * iteration / total))
    if noise_range is not None and noise_range[0] * total <= iteration < noise_range[1] * total:
        rate *= 1 + _noise(noise_seed + iteration, noise_pct)
    return rate


def _noise(seed: int, limit: float) -> float:
    """The first draw from a normal distribution that is below a limit."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        found = float(torch.randn(1, generator=generator))
        if abs(found) < limit:
            return found


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Parameters without decay (of one dimension, and biases), then those with it, as AdamW takes them.

    Each group has the ``names`` of its parameters beside them.
    """
    without: dict[str, nn.Parameter] = {}
    with_decay: dict[str, nn.Parameter] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            chosen = without if parameter.ndim == 1 or name.endswith(".bias") else with_decay
            chosen[name] = parameter
    return [
        {"params": list(group.values()), "names": list(group), "weight_decay": decay}
        for group, decay in ((without, 0.0), (with_decay, weight_decay))
    ]


def label_smoothing_loss(logits: Tensor, targets: Tensor, smoothing: float = 0.1) -> Tensor:
    """(1 - s) times the negative log-likelihood and s times the mean of it over all classes.

    Args:
        logits: [B, classes].
        targets: [B], classes.
        smoothing: s.
    """
    return F.cross_entropy(logits, targets, label_smoothing=smoothing)


def soft_target_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy with a distribution for each image. Both [B, classes]."""
    return F.cross_entropy(logits, targets)


def distillation_loss(
    logits: Tensor, teacher_logits: Tensor, kind: Literal["soft", "hard"], tau: float = 1.0
) -> Tensor:
    """What a student loses by not saying what its teacher says. Both [B, classes].

    soft: KL divergence of the distributions at temperature tau, times tau squared, summed over classes, mean over
    images. hard: cross-entropy with the teacher's class.
    """
    if kind == "hard":
        return F.cross_entropy(logits, teacher_logits.argmax(dim=1))
    if kind != "soft":
        raise TenfoldError(f"distillation is soft or hard, not {kind}")
    student, teacher = (F.log_softmax(values / tau, dim=1) for values in (logits, teacher_logits))
    return F.kl_div(student, teacher, reduction="batchmean", log_target=True) * tau**2


class ExponentialMovingAverage:
    """A copy of a network whose weights and buffers follow it slowly.

    Args:
        model: is copied.
        decay: share of the old average that stays at each update.
    """

    def __init__(self, model: nn.Module, decay: float = 0.9998) -> None:
        self.decay = decay
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        self._pairs: list[tuple[list[Tensor], list[Tensor]]] = []

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """One step towards the network; all floating-point state, statistics too. What counts is copied."""
        averages, values = [], []
        current = model.state_dict()
        for name, average in self.model.state_dict().items():
            if average.is_floating_point():
                averages.append(average)
                values.append(current[name].to(average.dtype))
            else:
                average.copy_(current[name])
        torch._foreach_lerp_(averages, values, 1 - self.decay)


@dataclass(frozen=True)
class StepResult:
    """Of one update, on the device."""

    loss: Tensor
    grad_norm: Tensor
    """Before it was clipped."""


def train_step(
    model: nn.Module,
    images: Tensor,
    targets: Tensor,
    optimizer: torch.optim.Optimizer,
    loss: Callable[[Tensor, Tensor], Tensor] = label_smoothing_loss,
    clip_norm: float = 5.0,
    average: ExponentialMovingAverage | None = None,
) -> StepResult:
    """One update without mixed precision or processes: forward, backward, clipping, AdamW, average."""
    model.train()
    optimizer.zero_grad()
    found = loss(model(images), targets)
    found.backward()
    norm = nn.utils.clip_grad_norm_(_learned(optimizer), clip_norm)
    optimizer.step()
    if average is not None:
        average.update(model)
    return StepResult(found.detach(), norm)


def _learned(optimizer: torch.optim.Optimizer) -> Iterable[Tensor]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]
