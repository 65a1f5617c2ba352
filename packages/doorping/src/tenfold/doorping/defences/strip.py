"""STRIP: an input that keeps its class whatever is laid over it is suspected of a trigger.

Source: Gao et al., "STRIP" (ACSAC 2019), with the settings of the specification (section "Defences"). Of an input x,
N clean images x_n are laid over it, and the mean entropy of what the network says is

    h(x) = 1/N sum_n H(softmax phi(x (+) x_n)),   H(p) = - sum_k p_k log2 p_k.

x is rejected where h(x) is below the 1 % quantile of the clean images that the defender holds.
"""

from __future__ import annotations

import math
from copy import deepcopy
from dataclasses import dataclass
from typing import Literal

import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn

from tenfold.shared.logging import TenfoldError

OverlayMode = Literal["blend", "sum"]


@dataclass(frozen=True)
class StripConfig:
    """How inputs are tested."""

    overlays: int = 100
    """N, clean images laid over each input, drawn with replacement for every input anew."""
    mode: OverlayMode = "blend"
    """Blend both images 0.5 / 0.5, or take the sum of both in normalised units."""
    false_rejection_rate: float = 0.01
    """Share of the defender's clean images below the threshold."""
    batch_size: int = 5000
    """Overlaid images of one pass; all N of an input go together, even where they are more."""

    def __post_init__(self) -> None:
        if min(self.overlays, self.batch_size) < 1:
            raise TenfoldError("overlays and batch size of STRIP are at least 1")
        if self.mode not in ("blend", "sum"):
            raise TenfoldError(f"unknown overlay mode {self.mode!r}; choose blend or sum")
        if not 0 < self.false_rejection_rate < 1:
            raise TenfoldError(
                f"the false rejection rate is between 0 and 1, not {self.false_rejection_rate}"
            )


@dataclass(frozen=True)
class StripReport:
    """What STRIP found."""

    threshold: float
    """Bits below which an input is rejected."""
    clean_entropies: Tensor
    """h of every clean input in bits, float [n], on the CPU."""
    triggered_entropies: Tensor
    """h of every triggered input, float [m], on the CPU."""
    false_rejection_rate: float
    """Share of the clean inputs that are rejected."""
    false_acceptance_rate: float
    """Share of the triggered inputs that are not."""
    auroc: float
    """Of -h as a score of triggers; 0.5 is chance."""


def check_images(images: Tensor, name: str) -> None:
    """Images are floats [N, C, H, W], at least one.

    Raises:
        TenfoldError: they are not; ``name`` says which.
    """
    if images.ndim != 4 or not images.is_floating_point() or not len(images):
        raise TenfoldError(
            f"give the {name} images as normalised floats [N, C, H, W], at least one, not {images.dtype} "
            f"{list(images.shape)}"
        )


def draw_overlays(inputs: int, pool: int, overlays: int, generator: torch.Generator) -> Tensor:
    """Which images of a pool are laid over each input: int64 [inputs, overlays], on the CPU, with replacement."""
    return torch.randint(pool, (inputs, overlays), generator=generator)


@torch.no_grad()
def overlay_entropies(
    network: nn.Module,
    images: Tensor,
    pool: Tensor,
    drawn: Tensor,
    mode: OverlayMode = "blend",
    batch_size: int = 5000,
) -> Tensor:
    """h(x) of inputs.

    Args:
        network: gives logits; it does not change.
        images: the inputs, [n, C, H, W].
        pool: clean images, [M, C, H, W].
        drawn: which of them are laid over each input, int64 [n, N].
        mode: blend or sum.
        batch_size: overlaid images of one pass.

    Returns:
        Bits, float [n], from 0 to log2 K, on the images' device.
    """
    network = deepcopy(network).eval()
    at_once = max(1, batch_size // drawn.shape[1])
    drawn = drawn.to(images.device)
    found = []
    for inputs, chosen in zip(images.split(at_once), drawn.split(at_once), strict=True):
        overlaid = inputs[:, None] + pool[chosen]
        if mode == "blend":
            overlaid = overlaid / 2
        probabilities = network(overlaid.flatten(0, 1)).softmax(dim=1)
        entropies = torch.special.entr(probabilities).sum(dim=1) / math.log(2)
        found.append(entropies.view(chosen.shape).mean(dim=1))
    return torch.cat(found)


def strip(
    network: nn.Module,
    held_out: Tensor,
    clean: Tensor,
    triggered: Tensor,
    config: StripConfig | None = None,
    generator: torch.Generator | None = None,
) -> StripReport:
    """Set the threshold on clean images that the defender holds, and test clean and triggered inputs against it.

    The threshold is the empirical quantile; the authors fit a normal distribution first. The false rejection rate is
    measured on other images than those that set the threshold, so it is near the wanted one, not equal to it.

    Args:
        network: gives logits; it does not change.
        held_out: the defender's clean images, [M, C, H, W]: they are laid over the inputs and set the threshold.
        clean: inputs without a trigger, [n, C, H, W].
        triggered: inputs with it, [m, C, H, W]; leave those of class t out, which the trigger need not change.
        config: the settings; the standard ones without it.
        generator: of the overlays, on the CPU; seed 0 without it.

    Returns:
        Entropies, threshold and rates.

    Raises:
        TenfoldError: the images have the wrong shape.
    """
    config = config or StripConfig()
    generator = generator or torch.Generator().manual_seed(0)
    for images, name in ((held_out, "held-out"), (clean, "clean"), (triggered, "triggered")):
        check_images(images, name)

    def entropies(images: Tensor) -> Tensor:
        drawn = draw_overlays(len(images), len(held_out), config.overlays, generator)
        return overlay_entropies(network, images, held_out, drawn, config.mode, config.batch_size).cpu()

    threshold = float(entropies(held_out).double().quantile(config.false_rejection_rate))
    without, with_trigger = entropies(clean), entropies(triggered)
    return StripReport(
        threshold,
        without,
        with_trigger,
        float((without < threshold).double().mean()),
        float((with_trigger >= threshold).double().mean()),
        entropy_auroc(without, with_trigger),
    )


def entropy_auroc(clean: Tensor, triggered: Tensor) -> float:
    """AUROC of low entropy as a sign of a trigger, for entropies [n] of clean and [m] of triggered inputs."""
    flags = torch.cat((torch.zeros(len(clean)), torch.ones(len(triggered))))
    return float(roc_auc_score(flags, -torch.cat((clean, triggered))))
