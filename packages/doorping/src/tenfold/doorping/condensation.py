"""Dataset condensation (DC, and DSA with augmentation), with a trigger that may be optimised on the way.

Source: Zhao et al. (ICLR 2021), Zhao and Bilen (ICML 2021), and Liu et al. (NDSS 2023) for the attack's place in the
loop. Every random number comes from the seed and the iteration, so a loop that was interrupted goes on unchanged.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from lightning_fabric import Fabric
from torch import Tensor, nn

from tenfold.doorping.attacks import Poison
from tenfold.doorping.augmentation import apply_batched, draw_operation, siamese_augment
from tenfold.doorping.gradient_matching import GradientMatcher, Metric
from tenfold.doorping.networks import Network, seeded
from tenfold.shared.logging import TenfoldError
from tenfold.shared.runs import Run
from tenfold.shared.seeding import make_generator

LOOPS = {1: (1, 1), 10: (10, 50), 20: (20, 25), 30: (30, 20), 40: (40, 15), 50: (50, 10)}
"""Outer and inner loops by images of a class, from the authors' code."""


def loops_for_ipc(ipc: int) -> tuple[int, int]:
    """Outer and inner loops of the authors for a number of images of a class.

    Raises:
        TenfoldError: they give none for this number.
    """
    if ipc not in LOOPS:
        raise TenfoldError(
            f"the authors give no loops for {ipc} images of a class, only for {', '.join(map(str, LOOPS))}; give "
            "--condensation.outer and --condensation.inner"
        )
    return LOOPS[ipc]


@dataclass(frozen=True)
class CondensationConfig:
    """How a data set is condensed. The defaults are the authors' for 10 images of a class."""

    ipc: int = 10
    """Synthetic images of a class."""
    iterations: int = 1000
    """Networks that are drawn one after another."""
    outer: int | None = None
    """Matching steps with each of them; by default what belongs to ipc."""
    inner: int | None = None
    """Passes over the synthetic images between two matching steps; by default what belongs to ipc."""
    lr_img: float = 0.1
    """Of SGD on the synthetic images."""
    momentum_img: float = 0.5
    """Of the same, kept from network to network."""
    lr_net: float = 0.01
    """Of SGD on the network, without momentum."""
    batch_real: int = 256
    """Real images of a class in a matching step, or all of a smaller class."""
    batch_train: int = 256
    """Synthetic images of a step of the network."""
    init: Literal["noise", "real"] = "noise"
    """Begin with normal noise, or with real images."""
    metric: Metric = "ours"
    """Distance of two gradients."""
    augmentation: str = "none"
    """Siamese operations joined by underscores (DSA), or none (DC)."""
    with_replacement: bool = False
    """Draw real images with replacement."""

    def __post_init__(self) -> None:
        if min(self.ipc, self.iterations, self.batch_real, self.batch_train) < 1:
            raise TenfoldError("--condensation.ipc, .iterations, .batch-real and .batch-train are at least 1")
        if (self.outer is not None and self.outer < 1) or (self.inner is not None and self.inner < 1):
            raise TenfoldError("--condensation.outer and --condensation.inner are at least 1")
        if not 0 < self.lr_img < math.inf or not 0 < self.lr_net < math.inf:
            raise TenfoldError("--condensation.lr-img and --condensation.lr-net are above 0 and finite")
        if self.outer is None or self.inner is None:
            loops_for_ipc(self.ipc)
        draw_operation(self.augmentation, 0)

    @property
    def loops(self) -> tuple[int, int]:
        """Outer and inner loops."""
        outer, inner = LOOPS.get(self.ipc, (1, 1))
        return self.outer or outer, self.inner or inner


class RealBatches:
    """Draws of real images of every class, as they are labelled after poisoning.

    Args:
        poison: the real images.
        size: images of a class in a batch.
        with_replacement: draw with replacement.
    """

    def __init__(self, poison: Poison, size: int, with_replacement: bool = False) -> None:
        self.poison, self.with_replacement = poison, with_replacement
        labels = poison.labels.cpu()
        members = [(labels == label).nonzero()[:, 0] for label in range(poison.data.classes)]
        self.counts = torch.tensor([len(each) for each in members])
        if not bool((self.counts > 0).all()):
            empty = (self.counts == 0).nonzero()[0].item()
            raise TenfoldError(
                f"class {empty} of {poison.data.name} has no training image left; lower --attack.portion"
            )
        self.members = nn.utils.rnn.pad_sequence(members, batch_first=True)
        self.size = size if with_replacement else min(size, int(self.counts.max()))

    def indices(self, generator: torch.Generator, size: int | None = None) -> tuple[Tensor, Tensor]:
        """Indices of real images [K, B] and weights [K, B], 0 for those that fill a small class up; on the CPU."""
        size = size or self.size
        shape = (len(self.counts), self.members.shape[1])
        if self.with_replacement:
            place = (torch.rand((shape[0], size), generator=generator) * self.counts[:, None]).long()
            return self.members.gather(1, place), torch.ones(shape[0], size)
        keys = torch.rand(shape, generator=generator)
        keys.masked_fill_(torch.arange(shape[1]) >= self.counts[:, None], 2.0)
        place = keys.topk(min(size, shape[1]), dim=1, largest=False).indices
        weights = (place < self.counts[:, None]).float()
        return self.members.gather(1, place), weights

    def draw(
        self, generator: torch.Generator, classes: Tensor, size: int | None = None
    ) -> tuple[Tensor, Tensor]:
        """Images [n, B, C, H, W] and weights [n, B] of some classes, on the device."""
        device = self.poison.labels.device
        index, weights = self.indices(generator, size)
        images, _ = self.poison.draw(index[classes].to(device, non_blocking=True))
        return images, weights[classes].to(device, non_blocking=True)


def first_images(poison: Poison, config: CondensationConfig, seed: int) -> Tensor:
    """Synthetic images to begin with, [K * ipc, C, H, W] in the order of the classes.

    Raises:
        TenfoldError: real images are asked for and a class has fewer than ``ipc``.
    """
    data, generator = poison.data, make_generator(seed * 1_000_003 + 700_002)
    shape = (data.classes, config.ipc, data.channels, data.image_size, data.image_size)
    if config.init == "noise":
        return torch.randn(shape, generator=generator).flatten(0, 1).to(poison.labels.device)
    batches = RealBatches(poison, config.ipc)
    if config.ipc > int(batches.counts.min()):
        smallest = int(batches.counts.argmin())
        raise TenfoldError(
            f"class {smallest} of {data.name} has {batches.counts[smallest]} training images, fewer than "
            f"--condensation.ipc {config.ipc}; lower it, or give --condensation.init noise"
        )
    images, _ = batches.draw(generator, torch.arange(data.classes), config.ipc)
    return images.flatten(0, 1)


@dataclass(frozen=True)
class Condensed:
    """What a condensation gives: images, labels, and the trigger that belongs to them."""

    images: Tensor
    """[K * ipc, C, H, W], normalised."""
    labels: Tensor
    """int64 [K * ipc]: 0 ipc times, then 1, and so on."""
    triggers: dict[int, Tensor]
    """The trigger at every evaluation, and where it is optimised about twenty times; [1, C, H, W] on the CPU."""
    rates: dict[str, float]
    """Of the last evaluation."""


Evaluate = Callable[[Tensor, Tensor, int], dict[str, float]]
"""Judges synthetic images and labels after some iterations."""


def condense(
    poison: Poison,
    make_network: Callable[[], Network],
    config: CondensationConfig,
    seed: int,
    fabric: Fabric,
    run: Run,
    evaluate: Evaluate,
    evaluate_every: int = 50,
) -> Condensed:
    """Condense the real images of ``poison``, whose trigger is optimised after every inner training.

    Several processes share the classes of every matching step, which gives what one process gives.

    Args:
        poison: the real images on the device, and the attack.
        make_network: a network with fresh weights, of the global generator.
        config: the loop.
        seed: of networks, draws and first images.
        fabric: launched.
        run: entered; goes on from its checkpoint.
        evaluate: judges the images before the first iteration, after every ``evaluate_every``, and at the end.
        evaluate_every: iterations between two evaluations; 0 judges at the end alone.

    Raises:
        TenfoldError: the network cannot be attacked, a class is too small, there are more processes than classes, or
            images or trigger are no numbers any more.
    """
    if fabric.world_size > poison.data.classes:
        raise TenfoldError(
            f"{fabric.world_size} processes cannot share {poison.data.classes} classes; lower --devices"
        )
    synthetic = first_images(poison, config, seed).requires_grad_()
    labels = torch.arange(poison.data.classes, device=synthetic.device).repeat_interleave(config.ipc)
    optimizer = torch.optim.SGD([synthetic], lr=config.lr_img, momentum=config.momentum_img)
    triggers: dict[int, Tensor] = {}
    batches = RealBatches(poison, config.batch_real, config.with_replacement)
    first, rates = 0, {}
    if (state := run.resume()) is not None:
        with torch.no_grad():
            synthetic.copy_(state["synthetic"])
        optimizer.load_state_dict(state["optimizer"])
        poison.load_state_dict(state["poison"])
        triggers, first, rates = state["triggers"], state["iteration"], state["rates"]
    for iteration in range(first, config.iterations + 1):
        is_due = iteration == config.iterations or (evaluate_every and iteration % evaluate_every == 0)
        if is_due:
            rates = evaluate(synthetic.detach(), labels, iteration)
            run.log(iteration, **rates)
        if is_due or (poison.is_optimised and iteration % max(1, config.iterations // 20) == 0):
            triggers[iteration] = poison.trigger.cpu()
        if iteration == config.iterations:
            break
        loss = _iterate(poison, make_network, config, seed, iteration, fabric, synthetic, optimizer, batches)
        if not (math.isfinite(loss) and synthetic.isfinite().all() and poison.trigger.isfinite().all()):
            raise TenfoldError(
                f"loss, images or trigger are no numbers any more in iteration {iteration}; lower "
                "--condensation.lr-img, or give --attack.bound"
            )
        moved = (
            {"trigger_norm": float(poison.trigger[0][poison.mask.bool()].norm())}
            if poison.is_optimised
            else {}
        )
        run.log(iteration + 1, matching_loss=loss, **moved)
        if run.is_writer and run.is_checkpoint_due:
            stored: dict[str, Any] = {
                "synthetic": synthetic.detach(),
                "optimizer": optimizer.state_dict(),
                "poison": poison.state_dict(),
                "triggers": triggers,
                "iteration": iteration + 1,
                "rates": rates,
            }
            run.save_checkpoint(iteration + 1, stored)
    return Condensed(synthetic.detach(), labels, triggers, rates)


def _iterate(
    poison: Poison,
    make_network: Callable[[], Network],
    config: CondensationConfig,
    seed: int,
    iteration: int,
    fabric: Fabric,
    synthetic: Tensor,
    optimizer: torch.optim.Optimizer,
    batches: RealBatches,
) -> float:
    """All matching steps with one network; returns the mean matching loss of a class."""
    generator = make_generator(seed * 1_000_003 + iteration)
    with seeded(seed * 1_000_003 + iteration):
        network = make_network().to(synthetic.device)
    outer, inner = config.loops
    classes = torch.arange(fabric.global_rank, poison.data.classes, fabric.world_size)
    total = torch.zeros((), device=synthetic.device)
    for step in range(outer):
        settle_batch_norms(network, poison, batches, generator)
        real, weights = batches.draw(generator, classes)
        plan_seeds = torch.randint(2**31, (poison.data.classes,), generator=generator)
        losses, gradient = _match(network, synthetic, real, weights, classes, plan_seeds, config, fabric)
        synthetic.grad = torch.as_tensor(fabric.all_reduce(gradient, reduce_op="sum"))
        optimizer.step()
        total += torch.as_tensor(fabric.all_reduce(losses.sum(), reduce_op="sum"))
        is_last = step == outer - 1
        if not is_last:
            train_network(network, synthetic.detach(), config, inner, generator)
        if poison.is_optimised and (not is_last or poison.config.update_every_iteration):
            poison.update(network.eval())
            poison.trigger = fabric.broadcast(poison.trigger)
    return float(total) / (outer * poison.data.classes)


def _match(
    network: Network,
    synthetic: Tensor,
    real: Tensor,
    weights: Tensor,
    classes: Tensor,
    plan_seeds: Tensor,
    config: CondensationConfig,
    fabric: Fabric,
) -> tuple[Tensor, Tensor]:
    """Matching losses of some classes, and the gradient of their sum with respect to all synthetic images."""
    on_device = classes.to(synthetic.device)
    own = synthetic.unflatten(0, (-1, config.ipc))[on_device]
    plans = [draw_operation(config.augmentation, int(plan_seeds[label])) for label in classes]
    matcher = GradientMatcher(network.eval(), config.metric)
    with fabric.autocast():
        targets = matcher.real_gradients(apply_batched(plans, real), on_device, weights)
    losses = matcher.losses(apply_batched(plans, own), on_device, targets)
    (gradient,) = torch.autograd.grad(losses.sum(), synthetic)
    return losses.detach(), gradient


@torch.no_grad()
def settle_batch_norms(
    network: Network, poison: Poison, batches: RealBatches, generator: torch.Generator
) -> None:
    """Give batch norms, where there are any, the statistics of 16 real images of every class."""
    if any(isinstance(module, nn.BatchNorm2d) for module in network.modules()):
        images, weights = batches.draw(generator, torch.arange(poison.data.classes), 16)
        network.train()
        network(images.flatten(0, 1)[weights.flatten() > 0])
        network.eval()


def train_network(
    network: Network, images: Tensor, config: CondensationConfig, epochs: int, generator: torch.Generator
) -> None:
    """Train a network on the synthetic images [K * ipc, C, H, W] for some passes, with SGD without momentum."""
    labels = torch.arange(len(images) // config.ipc, device=images.device).repeat_interleave(config.ipc)
    optimizer = torch.optim.SGD(network.parameters(), lr=config.lr_net)
    network.train()
    for _ in range(epochs):
        order = torch.randperm(len(images), generator=generator).to(images.device)
        for part in order.split(config.batch_train):
            batch = images[part]
            if config.augmentation != "none":
                seed = int(torch.randint(2**31, (1,), generator=generator))
                batch = siamese_augment(batch, config.augmentation, seed)
            optimizer.zero_grad()
            F.cross_entropy(network(batch), labels[part]).backward()
            optimizer.step()
