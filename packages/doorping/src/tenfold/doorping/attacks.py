"""What an attacker does to the real images before and while they are distilled.

An attack poisons a share of the real images: they get a trigger and the target's label. NAIVEATTACK's trigger is a
white patch; DOORPING optimises it against every network of the distillation; a frozen trigger is as strong and never
optimised, and says what the optimisation is worth.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from tenfold.doorping.image_sets import ImageSet
from tenfold.doorping.networks import Network
from tenfold.doorping.triggers import (
    optimise_invisible_trigger,
    optimise_trigger,
    patch_mask,
    poisoned_count,
    stamp,
)
from tenfold.shared.logging import TenfoldError
from tenfold.shared.seeding import make_generator

AttackKind = Literal["none", "naive", "frozen", "frozen-bytes", "doorping", "invisible"]


@dataclass(frozen=True)
class AttackConfig:
    """An attack. The defaults are the authors' DOORPING."""

    kind: AttackKind = "doorping"
    """none; naive, a white patch; frozen, random signs times the bound; frozen-bytes, random pixels; doorping; or
    invisible, an image that is added to others."""
    portion: float = 0.01
    """rho: share of the training images that are poisoned."""
    trigger_size: int = 2
    """s: side of the patch in pixels."""
    target: int = 0
    """t: the class that the trigger stands for."""
    layer: int = -2
    """Position of the layer whose neurons are driven, from the end."""
    topk: int = 1
    """How many neurons."""
    alpha: float = 10.0
    """Factor by which their activation is to grow."""
    steps: int = 1000
    """Of Adam in an update, at most."""
    lr: float = 0.08
    """Of Adam."""
    stop_below: float = 0.5
    """Loss at which an update ends; doorping alone."""
    bound: float | None = None
    """Largest absolute value of the trigger in normalised units; without one it is free, as the authors leave it."""
    within_pixels: bool = False
    """Keep the trigger between black and white; a frozen one is then random black and white."""
    frozen_sign: Literal["random", "light", "dark"] = "random"
    """A frozen trigger: random signs, or a patch that is lighter or darker than anything else all over."""
    pre_activation: bool = False
    """Follow neurons before their activation function, so that a silent one does not end the update."""
    update_every_iteration: bool = False
    """Also update where the loop has no inner training, as with one image for each class; the authors do not."""
    official_svhn_band: bool = False
    """Stamp SVHN as the authors' code does, which takes axes for others: a band over all columns in two channels."""
    official_invisible: bool = False
    """INVISIBLE as the authors' code does it: the aim moves with the activation, and what is added is a normalised
    image, whose mean is added, too."""

    def __post_init__(self) -> None:
        if not 0 <= self.portion < 1:
            raise TenfoldError(
                f"--attack.portion is a share of the images from 0 to below 1, not {self.portion}"
            )
        if min(self.trigger_size, self.topk, self.steps) < 1 or self.target < 0:
            raise TenfoldError(
                "--attack.trigger-size, --attack.topk and --attack.steps are at least 1, and --attack.target at least 0"
            )
        if self.bound is not None and not 0 < self.bound < math.inf:
            raise TenfoldError(
                f"--attack.bound is above 0 and finite, not {self.bound}; leave it out for none"
            )
        if not 0 < self.lr < math.inf or not math.isfinite(self.alpha):
            raise TenfoldError("--attack.lr is above 0, and --attack.alpha a number")


class Poison:
    """The real images with their poison, and the trigger as it is now.

    Args:
        data: on the device.
        config: the attack.
        seed: of the poisoned images and the first trigger; attacks of one seed poison the same images.

    Raises:
        TenfoldError: the target is no class, or the trigger is larger than the images.
    """

    def __init__(self, data: ImageSet, config: AttackConfig, seed: int) -> None:
        if config.target >= data.classes:
            raise TenfoldError(
                f"the target {config.target} is no class of {data.name}; choose one from 0 to {data.classes - 1}"
            )
        self.data, self.config, self.target = data, config, config.target
        device = data.train_images.device
        self.black, self.white = data.black_and_white(device)
        self.mask = self._make_mask().to(device)
        generator = make_generator(seed * 1_000_003 + 700_001)
        count = len(data.train_labels)
        share = 0.0 if config.kind == "none" else config.portion
        chosen = torch.randperm(count, generator=generator)[: poisoned_count(count, share)]
        self.indices = chosen.sort().values.to(device)
        self.is_poisoned = torch.zeros(count, dtype=torch.bool, device=device)
        self.is_poisoned[self.indices] = True
        self.labels = torch.where(self.is_poisoned, self.target, data.train_labels)
        self.trigger = self._first_trigger(generator).to(device)

    def _make_mask(self) -> Tensor:
        channels, size = self.data.channels, self.data.image_size
        mask = patch_mask(channels, size, self.config.trigger_size)
        if self.config.official_svhn_band:
            if (self.data.name, self.config.kind) != ("svhn", "naive"):
                raise TenfoldError(
                    "--attack.official-svhn-band is about NAIVEATTACK on SVHN alone; leave it out"
                )
            mask = torch.zeros(channels, size, size)
            first = channels - 1 - self.config.trigger_size
            mask[max(first, 0) : channels - 1, size - 1 - self.config.trigger_size : size - 1] = 1
        return torch.ones_like(mask) if self.config.kind == "invisible" else mask

    def _first_trigger(self, generator: torch.Generator) -> Tensor:
        shape = (1, self.data.channels, self.data.image_size, self.data.image_size)
        mask, config = self.mask.cpu(), self.config
        black, white = self.black.cpu().expand(shape), self.white.cpu().expand(shape)
        if config.kind in ("none", "naive"):
            return stamp(black, mask, white)
        if config.kind == "invisible":
            candidates = (self.data.test_labels == self.target).nonzero()
            if not len(candidates):
                raise TenfoldError(f"no test image is of class {self.target}, which INVISIBLE begins with")
            return self.data.normalise(self.data.test_images[candidates[0]]).cpu()
        if config.kind == "frozen":
            signs = torch.randint(0, 2, shape, generator=generator).bool()
            if config.frozen_sign != "random":
                signs.fill_(config.frozen_sign == "light")
            if config.within_pixels:
                return stamp(black, mask, torch.where(signs, white, black))
            if config.bound is None:
                raise TenfoldError(
                    "a frozen trigger needs --attack.bound, the strength of the one it is compared with, or "
                    "--attack.within-pixels"
                )
            return stamp(black, mask, torch.where(signs, config.bound, -config.bound))
        pixels = self.data.normalise(torch.randint(1, self.data.white + 1, shape, generator=generator))
        if config.kind == "doorping" and config.bound is not None:
            pixels = pixels.clamp(-config.bound, config.bound)
        return stamp(black, mask, pixels)

    def draw(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Real training images as the distillation sees them.

        Args:
            index: int64 of any shape [...].

        Returns:
            Normalised images [..., C, H, W], the poisoned ones with the trigger as it is now, and labels [...].
        """
        flat = index.flatten()
        images = self.data.normalise(self.data.train_images[flat])
        if len(self.indices):
            images = torch.where(self.is_poisoned[flat][:, None, None, None], self.apply(images), images)
        return images.unflatten(0, index.shape), self.labels[index]

    def apply(self, images: Tensor) -> Tensor:
        """Images [N, C, H, W] with the trigger."""
        return self.apply_trigger(images, self.trigger)

    def apply_trigger(self, images: Tensor, trigger: Tensor) -> Tensor:
        """Images [N, C, H, W] with a trigger of another time, [1, C, H, W]."""
        if self.config.kind != "invisible":
            return stamp(images, self.mask, trigger)
        if self.config.official_invisible:
            return images + trigger
        return images + trigger - self.black

    @property
    def is_optimised(self) -> bool:
        """Whether :meth:`update` does anything."""
        return self.config.kind in ("doorping", "invisible")

    def update(self, network: Network) -> None:
        """Optimise the trigger against a network as it is now; nothing for attacks whose trigger is fixed."""
        config = self.config
        if config.kind == "doorping":
            inside = config.within_pixels
            self.trigger = optimise_trigger(
                network,
                self.trigger,
                self.mask,
                layer=config.layer,
                topk=config.topk,
                alpha=config.alpha,
                steps=config.steps,
                lr=config.lr,
                stop_below=config.stop_below,
                bound=config.bound,
                low=self.black if inside else None,
                high=self.white if inside else None,
                pre_activation=config.pre_activation,
            )
        elif config.kind == "invisible":
            self.trigger = optimise_invisible_trigger(
                network,
                self.trigger,
                self.black,
                1 / min(self.data.std),
                layer=config.layer,
                topk=config.topk,
                alpha=config.alpha,
                steps=config.steps,
                lr=config.lr,
                detach_target=not config.official_invisible,
            )

    def state_dict(self) -> dict[str, Any]:
        """The trigger."""
        return {"trigger": self.trigger.cpu()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put back what :meth:`state_dict` returned."""
        self.trigger = state["trigger"].to(self.data.train_images.device)
