"""Dataset distillation: images and learning rates such that a few steps of SGD on them fit the real data.

Source: Wang et al. (Dataset Distillation, 2018), with the attacks of Liu et al. (NDSS 2023). From theta_0, T plain
gradient steps on M distilled batches d_i, each of which comes once per distill epoch, with a learning rate per step:

    theta_{k+1} = theta_k - softplus(r_k) grad CE(phi_{theta_k}(d_{k mod M}), y)

The outer loss is the cross entropy of real images under theta_T; its gradient goes back to all d_i and r_k.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from tenfold.doorping.attacks import Poison
from tenfold.doorping.image_sets import ImageSet
from tenfold.doorping.networks import Network
from tenfold.shared.logging import TenfoldError
from tenfold.shared.runs import Run
from tenfold.shared.seeding import epoch_order, make_generator

ApplyFunction = Callable[[Tensor, Tensor], Tensor]
"""Logits [B, K] from all weights as one vector [P] and images [B, ...]."""


# -- the unrolled steps and the way back ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Unrolled:
    """What the unrolled steps lead to, and the gradient of that."""

    final_loss: Tensor
    """Mean cross entropy of the real images under theta_T."""
    final_weights: Tensor
    """theta_T, [P]."""
    step_lrs: Tensor
    """Learning rates softplus(r), [T]."""
    raw_lr_grad: Tensor
    """Gradient of the loss by r, of the shape of r."""
    data_grad: tuple[Tensor, ...]
    """Gradient by each distilled batch, summed over the steps that use it."""


class Unroll:
    """T steps of plain SGD on distilled batches, through which a gradient by theta_T can be pulled back.

    Args:
        apply_fn: the network as a function of its weights.
        flat_weights: theta_0, [P].
        batches: M distilled batches [n, ...]; a tensor [M, n, ...] will do.
        labels: int64 [n], shared by all batches, or one such tensor per batch.
        raw_lrs: r, [T] or [T, 1] with T = M * epochs.
        epochs: how often every batch is used.
        checkpointed: keep the weights of each step only and compute each step's graph again on the way back, with
            Hessian-vector products; otherwise all graphs are kept for autograd, which is faster.

    Raises:
        TenfoldError: there are not T learning rates, or not as many label tensors as batches.
    """

    def __init__(
        self,
        apply_fn: ApplyFunction,
        flat_weights: Tensor,
        batches: Sequence[Tensor] | Tensor,
        labels: Sequence[Tensor] | Tensor,
        raw_lrs: Tensor,
        epochs: int,
        checkpointed: bool = False,
    ) -> None:
        steps = len(batches) * epochs
        if raw_lrs.numel() != steps:
            raise TenfoldError(
                f"{len(batches)} batches and {epochs} epochs make {steps} steps, which need as many learning rates, "
                f"not {raw_lrs.numel()}"
            )
        if isinstance(labels, Tensor) and labels.ndim == 1:
            labels = labels.expand(len(batches), -1)
        self._labels = list(labels)
        if len(self._labels) != len(batches):
            raise TenfoldError(f"{len(batches)} batches need as many label tensors, not {len(self._labels)}")
        self._apply, self._checkpointed = apply_fn, checkpointed
        self._batches = [batch.detach().requires_grad_() for batch in batches]
        self._raw_lrs = raw_lrs.detach().requires_grad_()
        self._step_lrs = F.softplus(self._raw_lrs.flatten())
        self._places = [step % len(batches) for step in range(steps)]
        self._weights = self._descend(flat_weights.detach().requires_grad_())

    @property
    def step_lrs(self) -> Tensor:
        """[T]."""
        return self._step_lrs.detach()

    @property
    def final_weights(self) -> Tensor:
        """theta_T, [P]."""
        return self._weights[-1].detach()

    def pull_back(self, final_gradient: Tensor) -> tuple[tuple[Tensor, ...], Tensor]:
        """From a loss's gradient by theta_T to its gradients by the distilled batches and by r; works once.

        Args:
            final_gradient: [P].
        """
        if self._checkpointed:
            return self._reverse(final_gradient)
        inputs = (*self._batches, self._raw_lrs)
        found = torch.autograd.grad(self._weights[-1], inputs, final_gradient)
        return found[:-1], found[-1]

    def _step_gradient(self, weights: Tensor, step: int, create_graph: bool) -> Tensor:
        place = self._places[step]
        loss = F.cross_entropy(self._apply(weights, self._batches[place]), self._labels[place])
        (gradient,) = torch.autograd.grad(loss, weights, create_graph=create_graph)
        return gradient

    def _descend(self, weights: Tensor) -> list[Tensor]:
        """theta_0 to theta_T; theta_T alone where it carries the graph of all steps."""
        trajectory = [weights]
        rates = self.step_lrs if self._checkpointed else self._step_lrs
        for step, rate in enumerate(rates.unbind()):
            weights = weights - rate * self._step_gradient(weights, step, not self._checkpointed)
            if self._checkpointed:
                weights = weights.detach().requires_grad_()
            trajectory.append(weights)
        return trajectory if self._checkpointed else trajectory[-1:]

    def _reverse(self, final_gradient: Tensor) -> tuple[tuple[Tensor, ...], Tensor]:
        """The steps backwards, with v = dL/dtheta_{k+1} and g = dCE/dtheta_k.

        dL/dtheta_k = v - lr d(g v)/dtheta_k,  dL/dd = -lr d(g v)/dd,  dL/dlr = -g v.
        """
        towards, rates = final_gradient.detach(), self.step_lrs.unbind()
        data_grad: list[Tensor | None] = [None] * len(self._batches)
        lr_grad = []
        for step in reversed(range(len(rates))):
            weights, place = self._weights[step], self._places[step]
            slope = self._step_gradient(weights, step, create_graph=True) @ towards
            curved, by_data = torch.autograd.grad(slope, (weights, self._batches[place]))
            towards = towards - rates[step] * curved
            former, by_data = data_grad[place], -rates[step] * by_data
            data_grad[place] = by_data if former is None else former + by_data
            lr_grad.append(-slope.detach())
        (raw_grad,) = torch.autograd.grad(self._step_lrs, self._raw_lrs, torch.stack(lr_grad[::-1]))
        return tuple(found for found in data_grad if found is not None), raw_grad


def final_loss_gradient(
    apply_fn: ApplyFunction, final_weights: Tensor, images: Tensor, labels: Tensor
) -> tuple[Tensor, Tensor]:
    """Mean cross entropy of real images under theta_T, and its gradient by theta_T, [P]."""
    weights = final_weights.detach().requires_grad_()
    loss = F.cross_entropy(apply_fn(weights, images), labels)
    (gradient,) = torch.autograd.grad(loss, weights)
    return loss.detach(), gradient


def unrolled_distillation(
    apply_fn: ApplyFunction,
    flat_weights: Tensor,
    batches: Sequence[Tensor] | Tensor,
    labels: Sequence[Tensor] | Tensor,
    raw_lrs: Tensor,
    epochs: int,
    real_x: Tensor,
    real_y: Tensor,
    checkpointed: bool = False,
) -> Unrolled:
    """The outer loss of dataset distillation and its gradients.

    Args:
        apply_fn: the network as a function of its weights.
        flat_weights: theta_0, [P].
        batches: M distilled batches [n, ...], or one tensor.
        labels: int64 [n], or one such tensor per batch.
        raw_lrs: r, [T] or [T, 1] with T = M * epochs.
        epochs: how often every batch is used.
        real_x: real images [B, ...].
        real_y: their labels, int64 [B].
        checkpointed: as for :class:`Unroll`; the result is the same.

    Raises:
        TenfoldError: there are not T learning rates, or not as many label tensors as batches.
    """
    unroll = Unroll(apply_fn, flat_weights, batches, labels, raw_lrs, epochs, checkpointed)
    loss, final_gradient = final_loss_gradient(apply_fn, unroll.final_weights, real_x, real_y)
    data_grad, raw_lr_grad = unroll.pull_back(final_gradient)
    return Unrolled(loss, unroll.final_weights, unroll.step_lrs, raw_lr_grad, data_grad)


def raw_learning_rates(rate: float, steps: int) -> Tensor:
    """What softplus makes T equal learning rates of: r = log(exp(rate) - 1), [T]."""
    return torch.full((steps,), rate + math.log(-math.expm1(-rate)))


def flat_function(network: nn.Module) -> ApplyFunction:
    """A network as a function of one vector of its parameters in module order, and of images.

    Raises:
        TenfoldError: the network has running statistics, which such a function cannot carry along.
    """
    if any(True for _ in network.buffers()):
        raise TenfoldError("steps through batch norm cannot be unrolled; distil with a network without it")
    names, values = zip(*network.named_parameters(), strict=True)
    shapes, sizes = [value.shape for value in values], [value.numel() for value in values]

    def apply_fn(weights: Tensor, images: Tensor) -> Tensor:
        parts = (part.view(shape) for part, shape in zip(weights.split(sizes), shapes, strict=True))
        logits: Tensor = functional_call(network, dict(zip(names, parts, strict=True)), (images,))
        return logits

    return apply_fn


# -- initial networks -----------------------------------------------------------------------------------------------


def initialise(network: nn.Module, seed: int, gain: float = 1.0) -> None:
    """Draw a network's weights anew: Xavier normal for convolutions and linear layers, 0 for their biases.

    Args:
        network: on the CPU, so that a seed means the same everywhere; scales and shifts of norms stay as they are.
        seed: of a generator of its own.
        gain: factor of the deviation.
    """
    generator = make_generator(seed)
    for module in network.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            nn.init.xavier_normal_(module.weight, gain, generator)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def initial_network(network: Callable[[int], Network], seed: int, gain: float = 1.0) -> Network:
    """A network that dataset distillation starts from, on the CPU.

    Args:
        network: makes one from a seed.
        seed: of :attr:`Distilled.init_seeds` for a network that was distilled with; any other for a fresh one.
        gain: of the initialisation.
    """
    made = network(seed).cpu()
    initialise(made, seed, gain)
    return made


# -- distillation ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class DDConfig:
    """How a data set is distilled by unrolling; the authors' settings.

    Raises:
        TenfoldError: a value is out of range.
    """

    epochs: int = 400
    """Passes over the real images."""
    batch_size: int = 1024
    """Real images of an outer step."""
    lr: float = 0.01
    """Of Adam on the distilled images and the learning rates of the steps."""
    betas: tuple[float, float] = (0.5, 0.999)
    """Of Adam."""
    decay_factor: float = 0.5
    """What the outer learning rate is multiplied with."""
    decay_epochs: int = 40
    """After as many epochs each time; the schedule moves on after the first iteration of every epoch."""
    distill_lr: float = 0.001
    """Learning rate of all unrolled steps at first."""
    distill_steps: int = 10
    """Distilled batches M."""
    distill_epochs: int = 3
    """How often the unrolled steps use each of them."""
    ipc: int = 10
    """Distilled images per class in each batch."""
    nets_type: Literal["known", "fresh"] = "known"
    """Whether the unrolled steps always start from the same networks or from new ones in every iteration."""
    nets: int = 1
    """Networks whose outer losses are averaged in every iteration."""
    init_gain: float = 1.0
    """Of the networks' Xavier initialisation."""
    checkpointed: bool = False
    """Keep the weights of the unrolled steps only, not their graphs: the same gradient, with less memory and in more
    time."""
    positions_of_shuffled_loader: bool = False
    """Poison the images at the poison's positions in the shuffled order, so others in every epoch, as the authors' code
    does, instead of always the same images."""

    def __post_init__(self) -> None:
        counts = ("epochs", "batch_size", "decay_epochs", "distill_steps", "distill_epochs", "ipc", "nets")
        for name in counts:
            if getattr(self, name) < 1:
                raise TenfoldError(f"{name} is at least 1, not {getattr(self, name)}")
        for name in ("lr", "distill_lr", "decay_factor", "init_gain"):
            if not 0 < getattr(self, name) < math.inf:
                raise TenfoldError(f"{name} is above 0, not {getattr(self, name)}")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise TenfoldError(f"Adam's betas are from 0 to below 1, not {self.betas}")
        if self.nets_type not in ("known", "fresh"):
            raise TenfoldError(f"nets_type is known or fresh, not {self.nets_type!r}")

    @property
    def steps(self) -> int:
        """T."""
        return self.distill_steps * self.distill_epochs


@dataclass(frozen=True)
class Distilled:
    """A distilled data set; tensors are on the CPU."""

    images: Tensor
    """M batches, normalised, [M, K * ipc, C, H, W]."""
    labels: Tensor
    """int64 [M, K * ipc]."""
    learning_rates: Tensor
    """Of the unrolled steps, [T]; T is a multiple of M."""
    init_seeds: tuple[int, ...]
    """Seeds for :func:`initial_network` of the networks it was distilled with; none where they were always new."""
    outer_loss: float
    """Mean over the last epoch."""


def outer_learning_rate(config: DDConfig, epoch: int, iteration: int) -> float:
    """Adam's learning rate in an iteration of an epoch, both from 0.

    The schedule's step counts after the first iteration, so that the decay of epoch 40 begins in epoch 39 already.
    """
    return config.lr * config.decay_factor ** ((epoch + (iteration > 0)) // config.decay_epochs)


def distill_unrolled(
    data: ImageSet,
    network: Callable[[int], Network],
    poison: Poison,
    config: DDConfig,
    seed: int,
    fabric: Fabric,
    run: Run,
) -> Distilled:
    """Distil a data set by unrolling; the attack's trigger is fitted to theta_T in every iteration.

    Args:
        data: on Fabric's device.
        network: makes a network from a seed.
        poison: the attack, or none; on the device. At the end its trigger is that of the distilled images.
        config: of the distillation.
        seed: of initial networks, distilled images and the order of real images.
        fabric: launched; its processes divide the real images of every iteration.
        run: entered; goes on from its checkpoint.

    Raises:
        TenfoldError: the network has batch norm, or the loss is no number any more.
    """
    device = fabric.device
    init_seeds = (
        tuple(_draw_seeds(config.nets, seed, 900_000).tolist()) if config.nets_type == "known" else ()
    )
    starting = initial_network(network, init_seeds[0] if init_seeds else seed, config.init_gain)
    victim = copy.deepcopy(starting).to(device).eval()
    apply_fn = flat_function(victim)

    def weights_of(init_seed: int) -> Tensor:
        initialise(starting, init_seed, config.init_gain)
        return parameters_to_vector(starting.parameters()).detach().to(device)

    known = [weights_of(init_seed) for init_seed in init_seeds]
    labels = torch.arange(data.classes, device=device).repeat_interleave(config.ipc)
    images = _noise(data, config, seed).to(device)
    raw_lrs = raw_learning_rates(config.distill_lr, config.steps).to(device)
    optimizer = torch.optim.Adam([images, raw_lrs], lr=config.lr, betas=config.betas)
    first_epoch = 0
    if (state := run.resume()) is not None:
        images.copy_(state["images"])
        raw_lrs.copy_(state["raw_lrs"])
        optimizer.load_state_dict(state["optimizer"])
        poison.load_state_dict(state["poison"])
        first_epoch = state["epoch"]

    outer_loss = math.nan
    for epoch in range(first_epoch, config.epochs):
        order = epoch_order(len(data.train_labels), seed, epoch).to(device)
        batches = order.split(config.batch_size)
        fresh = _draw_seeds(len(batches) * config.nets, seed, 500_000 + epoch).split(config.nets)
        loss_sum = torch.zeros((), device=device)
        for iteration, batch in enumerate(batches):
            total = torch.zeros(1 + images.numel() + raw_lrs.numel(), device=device)
            for theta in known or map(weights_of, fresh[iteration].tolist()):
                unroll = Unroll(
                    apply_fn, theta, images, labels, raw_lrs, config.distill_epochs, config.checkpointed
                )
                vector_to_parameters(unroll.final_weights.clone(), victim.parameters())
                poison.update(victim)
                if poison.is_optimised and fabric.world_size > 1:
                    torch.distributed.broadcast(poison.trigger, src=0)  # last bits must not drift apart
                place = iteration * config.batch_size
                real_x, real_y, weight = _share(data, poison, config, batch, place, fabric)
                loss, final_gradient = final_loss_gradient(apply_fn, unroll.final_weights, real_x, real_y)
                data_grad, lr_grad = unroll.pull_back(final_gradient)
                parts = (loss[None], torch.stack(data_grad).flatten(), lr_grad)
                total += torch.cat(parts) * (weight / config.nets)
            total = torch.as_tensor(fabric.all_reduce(total, reduce_op="sum"))
            loss_sum += total[0]
            images.grad = total[1 : 1 + images.numel()].view_as(images)
            raw_lrs.grad = total[1 + images.numel() :]
            optimizer.param_groups[0]["lr"] = outer_learning_rate(config, epoch, iteration)
            optimizer.step()
        outer_loss = (loss_sum / len(batches)).item()
        if not math.isfinite(outer_loss):
            raise TenfoldError(
                f"the outer loss is no number any more in epoch {epoch}; lower lr or distill_lr of the distillation"
            )
        rates = F.softplus(raw_lrs)
        run.log(
            epoch, outer_loss=outer_loss, step_lr_mean=rates.mean().item(), step_lr_max=rates.max().item()
        )
        if run.is_writer and run.is_checkpoint_due and epoch < config.epochs - 1:
            stored = {"images": images, "raw_lrs": raw_lrs, "optimizer": optimizer.state_dict()}
            run.save_checkpoint(epoch, {**stored, "poison": poison.state_dict(), "epoch": epoch + 1})
    return Distilled(
        images.cpu(),
        labels.cpu().repeat(config.distill_steps, 1),
        F.softplus(raw_lrs).cpu(),
        init_seeds,
        outer_loss,
    )


def train_on(distilled: Distilled, network: Network) -> Network:
    """What a victim does: the unrolled steps from a network's present weights.

    Args:
        distilled: images and learning rates.
        network: an initial network, on any device, such as :func:`initial_network` makes; it stays as it is.

    Returns:
        A trained copy in evaluation mode, on the same device.
    """
    trained = copy.deepcopy(network).eval()
    parameters = list(trained.parameters())
    device = parameters[0].device
    images, labels = distilled.images.to(device), distilled.labels.to(device)
    for step, rate in enumerate(distilled.learning_rates.to(device).unbind()):
        place = step % len(images)
        loss = F.cross_entropy(trained(images[place]), labels[place])
        gradients = torch.autograd.grad(loss, parameters)
        with torch.no_grad():
            for value, gradient in zip(parameters, gradients, strict=True):
                value.sub_(rate * gradient)
    return trained


def _noise(data: ImageSet, config: DDConfig, seed: int) -> Tensor:
    shape = (config.distill_steps, data.classes * config.ipc, data.channels, data.image_size, data.image_size)
    return torch.randn(shape, generator=make_generator(seed * 1_000_003 + 900_001))


def _draw_seeds(count: int, seed: int, purpose: int) -> Tensor:
    return torch.randint(2**31, (count,), generator=make_generator(seed * 1_000_003 + purpose))


def _share(
    data: ImageSet, poison: Poison, config: DDConfig, batch: Tensor, place: int, fabric: Fabric
) -> tuple[Tensor, Tensor, float]:
    """What a process has of a real batch: images, labels, and how much of the whole mean theirs is.

    Args:
        data: all images.
        poison: the attack.
        config: which images it poisons.
        batch: indices of the real images [B].
        place: where the batch begins in the epoch's order.
        fabric: which processes there are.
    """
    weight = len(batch[fabric.global_rank :: fabric.world_size]) / len(batch)
    first = fabric.global_rank if weight else 0  # a process without a share takes part with weight 0
    chosen = slice(first, None, fabric.world_size)
    if not config.positions_of_shuffled_loader:
        return (*poison.draw(batch[chosen]), weight)
    images = data.normalise(data.train_images[batch[chosen]])
    labels = data.train_labels[batch[chosen]]
    positions = torch.arange(place, place + len(batch), device=batch.device)[chosen]
    poisoned = torch.isin(positions, poison.indices)
    images = torch.where(poisoned[:, None, None, None], poison.apply(images), images)
    return images, torch.where(poisoned, poison.target, labels), weight
