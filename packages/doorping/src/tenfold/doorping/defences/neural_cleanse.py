"""Neural Cleanse: a class that a small trigger reaches from everywhere is suspected of a backdoor.

Source: Wang et al., "Neural Cleanse" (IEEE S&P 2019), with the settings of the specification (section "Defences").
For every class t a mask m and a pattern p are sought that minimise

    CE(phi((1 - m) x + m p), t) + lambda_t |m|_1

over clean images x; a class whose |m|_1 is far below the others' is flagged. All K classes are sought at once.
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from scipy.stats import median_abs_deviation
from torch import Tensor, nn

from tenfold.shared.logging import TenfoldError


@dataclass(frozen=True)
class NeuralCleanseConfig:
    """How triggers are reverse-engineered."""

    steps: int = 1000
    """Steps of Adam."""
    lr: float = 0.1
    """Of Adam."""
    betas: tuple[float, float] = (0.5, 0.9)
    """Of Adam."""
    l1_weight: float = 1e-3
    """lambda_t at first."""
    l1_factor: float = 2.0
    """lambda_t grows by this factor and falls by its power of 1.5."""
    patience: int = 5
    """Steps in a row above or below the success threshold until lambda_t changes."""
    success_threshold: float = 0.99
    """Share of a batch that must reach the class."""
    alarm: float = 2.0
    """Anomaly index above which a small mask is flagged."""
    batch_size: int = 32
    """Images of a step, the same for every class (not printed in the specification)."""
    pixel_range_factor: float = 1.0
    """Patterns lie within the valid pixels' range, widened by this factor about its middle: Doorping's unbounded
    triggers lie outside of it (not printed in the specification)."""

    def __post_init__(self) -> None:
        if min(self.steps, self.patience, self.batch_size) < 1:
            raise TenfoldError("steps, patience and batch size of Neural Cleanse are at least 1")
        if self.lr <= 0 or self.l1_weight <= 0 or self.alarm <= 0 or self.pixel_range_factor <= 0:
            raise TenfoldError(
                "learning rate, L1 weight, alarm and pixel range factor of Neural Cleanse are above 0"
            )
        if not all(0 <= beta < 1 for beta in self.betas):
            raise TenfoldError(f"Adam's betas are at least 0 and below 1, not {self.betas}")
        if self.l1_factor <= 1:
            raise TenfoldError(f"the factor of the L1 weight is above 1, not {self.l1_factor}")
        if not 0 < self.success_threshold <= 1:
            raise TenfoldError(f"the success threshold is a share up to 1, not {self.success_threshold}")


@dataclass(frozen=True)
class NeuralCleanseReport:
    """What Neural Cleanse found."""

    masks: Tensor
    """m of every class, [K, 1, H, W], from 0 to 1."""
    patterns: Tensor
    """p of every class, [K, C, H, W], normalised."""
    mask_norms: Tensor
    """|m|_1 in pixels, [K]."""
    attack_success: Tensor
    """Share of the images of other classes that the trigger brings into the class, [K]."""
    anomaly_index: Tensor
    """Of the mask norms, [K]."""
    flagged: tuple[int, ...]
    """Classes with a small mask and an index above the alarm, the smallest mask first."""

    @property
    def detected(self) -> bool:
        """Whether any class is flagged."""
        return bool(self.flagged)


def check_clean_data(images: Tensor, labels: Tensor) -> None:
    """Clean data is float images [N, C, H, W] and int64 labels [N].

    Raises:
        TenfoldError: it is not.
    """
    if images.ndim != 4 or not images.is_floating_point() or len(images) == 0:
        raise TenfoldError(
            f"clean images are normalised floats [N, C, H, W] with at least one image, not {images.dtype} "
            f"{list(images.shape)}"
        )
    if labels.dtype != torch.int64 or labels.shape != images.shape[:1]:
        raise TenfoldError(
            f"give one int64 label for each of the {len(images)} images, not {labels.dtype} {list(labels.shape)}"
        )


def check_pixel_range(images: Tensor, low: Tensor, high: Tensor) -> None:
    """Normalised black and white are [1, C, 1, 1], black below white.

    Raises:
        TenfoldError: they are not.
    """
    wanted = (1, images.shape[1], 1, 1)
    if low.shape != wanted or high.shape != wanted or not bool((low < high).all()):
        raise TenfoldError(
            f"low and high are normalised black and white of shape {list(wanted)}, black below white; take them from "
            "ImageSet.black_and_white"
        )


def frozen_copy(network: nn.Module) -> nn.Module:
    """A copy to look into: in evaluation mode, with parameters that take no gradient."""
    return deepcopy(network).eval().requires_grad_(False)


def widened_range(low: Tensor, high: Tensor, factor: float) -> tuple[Tensor, Tensor]:
    """[low, high] widened by a factor about its middle."""
    middle, half = (low + high) / 2, (high - low) / 2
    return middle - factor * half, middle + factor * half


def anomaly_index(norms: Tensor) -> Tensor:
    """|n - median| / (1.4826 MAD) of norms [K]; 0 at the median even where the MAD is 0, infinite beside it."""
    values = norms.double().cpu().numpy()
    distance = np.abs(values - np.median(values))
    spread = 1.4826 * median_abs_deviation(values)
    index = np.divide(distance, spread, out=np.where(distance > 0, np.inf, 0.0), where=spread > 0)
    return torch.from_numpy(index)


def neural_cleanse(
    network: nn.Module,
    images: Tensor,
    labels: Tensor,
    low: Tensor,
    high: Tensor,
    config: NeuralCleanseConfig | None = None,
    generator: torch.Generator | None = None,
) -> NeuralCleanseReport:
    """Reverse-engineer a trigger for every class and look for one that is too small.

    Every step is one forward of K x batch_size images. A class's trigger is the smallest mask of all steps at which
    the whole batch passed the success threshold, or the last one where none did.

    Args:
        network: a classifier of at least three classes; it does not change.
        images: clean, normalised, [N, C, H, W].
        labels: int64 [N].
        low: normalised black, [1, C, 1, 1].
        high: normalised white, [1, C, 1, 1].
        config: the settings; the standard ones without it.
        generator: of the first masks and patterns and of the batches, on the CPU; seed 0 without it.

    Returns:
        The triggers, and which classes are flagged.

    Raises:
        TenfoldError: the data has the wrong shape, or there are fewer than three classes.
    """
    config = config or NeuralCleanseConfig()
    generator = generator or torch.Generator().manual_seed(0)
    check_clean_data(images, labels)
    check_pixel_range(images, low, high)
    network = frozen_copy(network)
    with torch.no_grad():
        classes = network(images[:1]).shape[1]
    if classes < 3:
        raise TenfoldError(f"Neural Cleanse compares classes; give a network of at least 3, not {classes}")
    lowest, highest = widened_range(low, high, config.pixel_range_factor)
    masks, patterns = _reverse_engineer(network, images, classes, lowest, highest, config, generator)
    norms = masks.flatten(1).sum(dim=1)
    index = anomaly_index(norms)
    small = (norms.cpu() < norms.cpu().quantile(0.5)) & (index > config.alarm)
    flagged = [number for number in norms.argsort().tolist() if small[number]]
    targets = torch.arange(classes, device=images.device)
    success = success_rates(network, images, labels, masks, patterns, targets, config.batch_size)
    return NeuralCleanseReport(masks, patterns, norms, success, index, tuple(flagged))


def _reverse_engineer(
    network: nn.Module,
    images: Tensor,
    classes: int,
    low: Tensor,
    high: Tensor,
    config: NeuralCleanseConfig,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor]:
    """Masks [K, 1, H, W] and patterns [K, C, H, W], both through tanh as in the paper's code."""
    device, (channels, height, width) = images.device, images.shape[1:]
    free = torch.rand(classes, 1 + channels, height, width, generator=generator).to(device)
    free = ((free - 0.5) * 1.99).atanh().requires_grad_()
    order = torch.randint(len(images), (config.steps, config.batch_size), generator=generator).to(device)
    target = torch.arange(classes, device=device).repeat_interleave(config.batch_size)
    optimizer = torch.optim.Adam([free], lr=config.lr, betas=config.betas)

    weight = torch.full((classes,), config.l1_weight, device=device)
    above = torch.zeros(classes, dtype=torch.int64, device=device)
    below = torch.zeros_like(above)
    best_norm = torch.full((classes,), torch.inf, device=device)
    best = free.detach().clone()
    for chosen in order:
        mask, pattern = trigger_of(free, low, high)
        logits = network(stamped(images[chosen], mask, pattern))
        errors = F.cross_entropy(logits, target, reduction="none").view(classes, -1).mean(dim=1)
        norm = mask.flatten(1).sum(dim=1)
        optimizer.zero_grad()
        (errors + weight * norm).sum().backward()

        reached = (logits.argmax(dim=1) == target).view(classes, -1).float().mean(dim=1)
        success = reached >= config.success_threshold
        better = success & (norm.detach() < best_norm)
        best_norm = torch.where(better, norm.detach(), best_norm)
        keep = (better | best_norm.isinf())[:, None, None, None]  # before the first success, the latest
        best = torch.where(keep, free.detach(), best)
        above, below = torch.where(success, above + 1, 0), torch.where(success, 0, below + 1)
        weight = torch.where(above >= config.patience, weight * config.l1_factor, weight)
        weight = torch.where(below >= config.patience, weight / config.l1_factor**1.5, weight)
        above, below = above % config.patience, below % config.patience
        optimizer.step()
    return trigger_of(best, low, high)


def trigger_of(free: Tensor, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """Masks [M, 1, H, W] from 0 to 1 and patterns [M, C, H, W] from low to high, of free numbers [M, 1 + C, H, W]."""
    unit = (free.tanh() + 1) / 2
    return unit[:, :1], low + (high - low) * unit[:, 1:]


def stamped(images: Tensor, masks: Tensor, patterns: Tensor) -> Tensor:
    """Every one of M triggers on every one of B images: [M B, C, H, W]."""
    return (images * (1 - masks[:, None]) + (masks * patterns)[:, None]).flatten(0, 1)


@torch.no_grad()
def success_rates(
    network: nn.Module,
    images: Tensor,
    labels: Tensor,
    masks: Tensor,
    patterns: Tensor,
    targets: Tensor,
    batch_size: int,
) -> Tensor:
    """Share of the images of other classes that each trigger brings into its class, [M]; nan where there are none.

    Args:
        network: a classifier in evaluation mode.
        images: normalised, [N, C, H, W].
        labels: int64 [N].
        masks: [M, 1, H, W].
        patterns: [M, C, H, W].
        targets: class of each trigger, int64 [M].
        batch_size: images that all triggers are stamped on together.
    """
    pieces = [network(stamped(part, masks, patterns)).argmax(dim=1) for part in images.split(batch_size)]
    found = torch.cat([piece.view(len(masks), -1) for piece in pieces], dim=1)
    others = labels[None] != targets[:, None]
    return ((found == targets[:, None]) & others).sum(dim=1) / others.sum(dim=1)
