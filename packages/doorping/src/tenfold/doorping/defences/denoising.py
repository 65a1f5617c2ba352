"""A de-noising autoencoder before the network: what clean images have no place for is lost in reconstruction.

Source: the specification, section "Defences", which prints that it is trained on clean images + Gaussian noise and no
more. Architecture and training are ours: two strided convolutions down to a code of 1/4 of the side, two up again.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tenfold.doorping.defences.strip import check_images
from tenfold.doorping.evaluation import rates_of
from tenfold.doorping.networks import seeded
from tenfold.shared.logging import TenfoldError

IMAGES_AT_ONCE = 2048
"""Images of one pass without gradients."""


@dataclass(frozen=True)
class DenoisingConfig:
    """How the autoencoder is built and trained (none of it is printed in the specification)."""

    noise: float = 1.0
    """Standard deviation of the noise in normalised units: at 1 as strong as the images themselves vary."""
    width: int = 32
    """Channels of the inner layers."""
    code: int = 8
    """Channels of the code."""
    epochs: int = 30
    """Passes over the clean images."""
    batch_size: int = 64
    """Images of a step."""
    lr: float = 1e-3
    """Of Adam."""

    def __post_init__(self) -> None:
        if min(self.width, self.code, self.epochs, self.batch_size) < 1:
            raise TenfoldError(
                "width, code, epochs and batch size of the de-noising autoencoder are at least 1"
            )
        if not (0 < self.lr < math.inf and 0 <= self.noise < math.inf):
            raise TenfoldError(
                "the de-noising autoencoder's rate is above 0 and its noise at least 0, both finite"
            )


class Denoiser(nn.Module):
    """Images [B, C, H, W] to images of the same shape, for any side; a side that 4 does not divide is cut at the end.

    Args:
        channels: C.
        width: channels of the inner layers.
        code: channels of the code, which has a quarter of the side.
    """

    def __init__(self, channels: int, width: int, code: int) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Conv2d(channels, width, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(width, code, 3, stride=2, padding=1),
            nn.ReLU(),
        )
        self.decoder = nn.Sequential(
            nn.Upsample(scale_factor=2),
            nn.Conv2d(code, width, 3, padding=1),
            nn.ReLU(),
            nn.Upsample(scale_factor=2),
            nn.Conv2d(width, channels, 3, padding=1),
        )

    def forward(self, images: Tensor) -> Tensor:
        height, width = images.shape[2:]
        restored: Tensor = self.decoder(self.encoder(images))
        return restored[:, :, :height, :width]


@dataclass(frozen=True)
class DenoisingReport:
    """What reconstruction does to a network; each as :func:`tenfold.doorping.evaluation.rates_of` names it."""

    before: dict[str, float]
    """Rates without the autoencoder: ``cta``, ``asr_all``, ``asr_excluding_target``, ``robust_accuracy`` and losses."""
    after: dict[str, float]
    """The same for reconstructed images."""
    reconstruction_error: float
    """Mean squared error of the clean images' reconstruction, in normalised units."""


def train_denoiser(
    images: Tensor, config: DenoisingConfig | None = None, generator: torch.Generator | None = None
) -> Denoiser:
    """Train an autoencoder to give clean images back from noisy ones: least squares, Adam.

    Args:
        images: clean, normalised, [N, C, H, W], on the device to train on.
        config: the settings; ours without it.
        generator: of the first weights, the order and the noise, on the CPU; seed 0 without it.

    Returns:
        The autoencoder in evaluation mode, on the images' device.

    Raises:
        TenfoldError: the images have the wrong shape.
    """
    config = config or DenoisingConfig()
    generator = generator or torch.Generator().manual_seed(0)
    check_images(images, "clean")
    with seeded(int(torch.randint(2**31 - 1, (), generator=generator))):
        denoiser = Denoiser(images.shape[1], config.width, config.code)
    denoiser.to(images.device)
    optimizer = torch.optim.Adam(denoiser.parameters(), lr=config.lr)
    for _ in range(config.epochs):
        order = torch.randperm(len(images), generator=generator).to(images.device)
        for chosen in order.split(config.batch_size):
            clean = images[chosen]
            noise = torch.randn(clean.shape, generator=generator).to(clean)
            optimizer.zero_grad()
            F.mse_loss(denoiser(clean + config.noise * noise), clean).backward()
            optimizer.step()
    return denoiser.eval()


def reconstruct(denoiser: nn.Module, images: Tensor) -> Tensor:
    """What the autoencoder makes of images [N, C, H, W], no noise added; of the same shape."""
    return _in_parts(denoiser, images)


def denoising_rates(
    network: nn.Module, denoiser: nn.Module, images: Tensor, triggered: Tensor, labels: Tensor, target: int
) -> DenoisingReport:
    """CTA and both ASR of a network before and after reconstruction of its inputs.

    Args:
        network: gives logits; it does not change.
        denoiser: from :func:`train_denoiser`.
        images: clean test images, [N, C, H, W].
        triggered: the same with the trigger.
        labels: int64 [N].
        target: class t.

    Raises:
        TenfoldError: the images are not as many as each other and the labels.
    """
    check_images(images, "clean")
    if triggered.shape != images.shape or labels.shape != images.shape[:1]:
        raise TenfoldError(
            f"give one triggered image and one label for each clean image: {list(images.shape)}, "
            f"{list(triggered.shape)} and {list(labels.shape)} do not fit"
        )
    network = deepcopy(network).eval()
    cleaned, cleaned_triggered = reconstruct(denoiser, images), reconstruct(denoiser, triggered)

    def rates(clean: Tensor, with_trigger: Tensor) -> dict[str, float]:
        return rates_of(_in_parts(network, clean), _in_parts(network, with_trigger), labels, target)

    return DenoisingReport(
        rates(images, triggered), rates(cleaned, cleaned_triggered), float(F.mse_loss(cleaned, images))
    )


@torch.no_grad()
def _in_parts(function: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    return torch.cat([function(part) for part in images.split(IMAGES_AT_ONCE)])
