"""What a victim gets: networks trained on a distilled set, all at once, and how often they are right and triggered."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from scipy import stats
from torch import Tensor, nn
from torch.func import functional_call, grad, stack_module_state, vmap
from torchmetrics.functional.classification import multiclass_accuracy

from tenfold.doorping.augmentation import apply_batched, draw_operation
from tenfold.doorping.networks import Network, seeded
from tenfold.doorping.triggers import stamp
from tenfold.shared.logging import TenfoldError
from tenfold.shared.seeding import make_generator

IMAGES_AT_ONCE = 2048
"""Test images of one pass, divided by the number of networks."""


@dataclass(frozen=True)
class VictimConfig:
    """How networks are trained on a distilled set. The defaults are the authors'."""

    networks: int = 10
    """Networks with initial weights of their own."""
    epochs: int = 301
    """Passes over the distilled set."""
    drop_after: int = 151
    """Number of the pass, from 0, after which the rate falls to a tenth and the momentum is forgotten."""
    lr: float = 0.01
    """Of SGD with momentum."""
    momentum: float = 0.9
    """Of SGD."""
    weight_decay: float = 5e-4
    """L2, added to the gradient."""
    batch_size: int = 256
    """Images of a step."""
    augmentation: str = "none"
    """Siamese operations joined by underscores, one of which is drawn for each step; none in DC."""

    def __post_init__(self) -> None:
        if min(self.networks, self.epochs, self.batch_size) < 1:
            raise TenfoldError("a victim trains at least 1 network for 1 epoch on batches of 1 image or more")
        if not 0 < self.lr < math.inf or not 0 <= self.momentum < 1 or self.weight_decay < 0:
            raise TenfoldError(
                "a victim's rate is above 0, its momentum from 0 to below 1, its decay at least 0"
            )


class Ensemble:
    """Networks of one architecture, whose parameters lie stacked in one tensor for each name.

    Args:
        networks: at least one, all alike.
    """

    def __init__(self, networks: Sequence[Network]) -> None:
        self._template = networks[0]
        self.size = len(networks)
        self.parameters, self.buffers = stack_module_state(list(networks))
        self.parameters = {name: value.detach() for name, value in self.parameters.items()}

    def __getitem__(self, index: int) -> Network:
        """One of the networks, which is the same object at every call."""
        state = {name: value[index] for name, value in {**self.parameters, **self.buffers}.items()}
        self._template.load_state_dict(state)
        return self._template.eval()

    def call(self, parameters: dict[str, Tensor], buffers: dict[str, Tensor], images: Tensor) -> Tensor:
        """The logits of one network."""
        logits: Tensor = functional_call(self._template, (parameters, buffers), (images,))
        return logits

    @torch.no_grad()
    def logits(self, images: Tensor) -> Tensor:
        """Logits [E, N, K] of images [N, C, H, W], in evaluation mode."""
        self._template.eval()
        chunk = max(1, IMAGES_AT_ONCE // self.size)
        called = vmap(self.call, in_dims=(0, 0, None))
        return torch.cat([called(self.parameters, self.buffers, part) for part in images.split(chunk)], dim=1)


def train_ensemble(
    make_network: Callable[[], Network],
    seeds: Sequence[int],
    images: Tensor,
    labels: Tensor,
    config: VictimConfig,
    as_one: bool | None = None,
) -> Ensemble:
    """Train networks on the same few images, each with weights and an order of its own, as one batched network.

    Args:
        make_network: a network with fresh weights, of the global generator.
        seeds: of every network; its weights and order depend on it alone.
        images: [n, C, H, W].
        labels: int64 [n].
        config: how they are trained.
        as_one: take the gradients of all networks as one network's; None does so but on a CPU, where the grouped
            convolutions that it makes are slower than one network after another.

    Returns:
        The networks, in evaluation mode, in the order of ``seeds``.
    """
    networks = []
    for seed in seeds:
        with seeded(seed):
            networks.append(make_network().to(images.device).train())
    ensemble = Ensemble(networks)
    step = _sgd_step(ensemble, config, images.device.type != "cpu" if as_one is None else as_one)
    momenta = {name: torch.zeros_like(value) for name, value in ensemble.parameters.items()}
    generators = [make_generator(seed) for seed in seeds]
    lr, number = config.lr, 0
    for epoch in range(config.epochs):
        for batch, chosen in _batches(images, labels, generators, config.batch_size):
            if config.augmentation != "none":
                batch = _augmented(batch, config.augmentation, seeds, number)
                number += 1
            step(momenta, lr, batch, chosen)
        if epoch == config.drop_after:
            lr *= 0.1
            for momentum in momenta.values():
                momentum.zero_()
    networks[0].eval()  # which the ensemble calls
    return ensemble


def _batches(
    images: Tensor, labels: Tensor, generators: Sequence[torch.Generator], size: int
) -> list[tuple[Tensor, Tensor]]:
    """The batches of one pass, [E, B, C, H, W] and [E, B]; one batch of all images has no order."""
    if len(images) <= size:
        shape = (len(generators), *images.shape)
        return [(images.expand(shape), labels.expand(shape[:2]))]
    orders = torch.stack([torch.randperm(len(images), generator=one) for one in generators]).to(images.device)
    return [(images[part], labels[part]) for part in orders.split(size, dim=1)]


def _augmented(batch: Tensor, strategy: str, seeds: Sequence[int], step: int) -> Tensor:
    """One operation for all images of a network's batch, [E, B, C, H, W]."""
    draws = [
        int(torch.randint(2**31, (1,), generator=make_generator(seed * 1_000_003 + step))) for seed in seeds
    ]
    return apply_batched([draw_operation(strategy, draw) for draw in draws], batch)


def _sgd_step(
    ensemble: Ensemble, config: VictimConfig, as_one: bool
) -> Callable[[dict[str, Tensor], float, Tensor, Tensor], None]:
    """A step of SGD of all networks, as torch.optim.SGD does it for one."""

    def loss(
        parameters: dict[str, Tensor], buffers: dict[str, Tensor], images: Tensor, labels: Tensor
    ) -> Tensor:
        return F.cross_entropy(ensemble.call(parameters, buffers, images), labels)

    names = list(ensemble.parameters)
    together = vmap(grad(loss))

    def one_by_one(
        parameters: dict[str, Tensor], buffers: dict[str, Tensor], images: Tensor, labels: Tensor
    ) -> dict[str, Tensor]:
        found = []
        for number in range(ensemble.size):
            own = {name: parameters[name][number].requires_grad_() for name in names}
            value = loss(
                own, {name: each[number] for name, each in buffers.items()}, images[number], labels[number]
            )
            found.append(torch.autograd.grad(value, list(own.values())))
        return {name: torch.stack(each) for name, each in zip(names, zip(*found, strict=True), strict=True)}

    gradient = together if as_one else one_by_one

    def step(momenta: dict[str, Tensor], lr: float, images: Tensor, labels: Tensor) -> None:
        found = gradient(ensemble.parameters, ensemble.buffers, images, labels)
        values = [ensemble.parameters[name] for name in names]
        gradients, moved = [found[name] for name in names], [momenta[name] for name in names]
        torch._foreach_add_(gradients, values, alpha=config.weight_decay)
        torch._foreach_mul_(moved, config.momentum)
        torch._foreach_add_(moved, gradients)
        torch._foreach_add_(values, moved, alpha=-lr)

    return step


def rates_of(clean: Tensor, triggered: Tensor, labels: Tensor, target: int) -> dict[str, float]:
    """How often a network is right on clean images, and how often the trigger decides.

    Args:
        clean: logits [N, K] of the test images.
        triggered: logits [N, K] of the same images with the trigger.
        labels: int64 [N].
        target: class t.

    Returns:
        ``cta``, clean accuracy; ``asr_all``, the share of all triggered images taken for t; ``asr_excluding_target``,
        the same among images of other classes; ``robust_accuracy``, the share of triggered images that are still
        taken for what they are; ``clean_loss`` against the labels and ``trigger_loss`` against t.
    """
    classes = clean.shape[1]
    wanted = torch.full_like(labels, target)
    others = labels != target

    def accuracy(logits: Tensor, expected: Tensor) -> float:
        if not len(logits):
            return math.nan
        return float(multiclass_accuracy(logits.argmax(dim=1), expected, classes, average="micro"))

    return {
        "cta": accuracy(clean, labels),
        "asr_all": accuracy(triggered, wanted),
        "asr_excluding_target": accuracy(triggered[others], wanted[others]),
        "robust_accuracy": accuracy(triggered, labels),
        "clean_loss": float(F.cross_entropy(clean, labels)),
        "trigger_loss": float(F.cross_entropy(triggered, wanted)),
    }


@torch.no_grad()
def evaluate_rates(
    model: nn.Module, images: Tensor, labels: Tensor, mask: Tensor, trigger: Tensor, target: int
) -> dict[str, float]:
    """:func:`rates_of` one network for a stamped trigger.

    Args:
        model: gives logits [N, K]; it is put into evaluation mode.
        images: normalised test images, [N, C, H, W].
        labels: int64 [N].
        mask: m, [C, H, W].
        trigger: delta, [1, C, H, W].
        target: class t.
    """
    model.eval()

    def logits(values: Tensor) -> Tensor:
        return torch.cat([model(part) for part in values.split(IMAGES_AT_ONCE)])

    return rates_of(logits(images), logits(stamp(images, mask, trigger)), labels, target)


def ensemble_rates(
    ensemble: Ensemble, clean: Tensor, triggered: Tensor, labels: Tensor, target: int
) -> list[dict[str, float]]:
    """:func:`rates_of` every network, for test images [N, C, H, W] without and with the trigger."""
    pairs = zip(ensemble.logits(clean), ensemble.logits(triggered), strict=True)
    return [rates_of(without, with_trigger, labels, target) for without, with_trigger in pairs]


def summarise(rates: Sequence[dict[str, float]]) -> dict[str, float]:
    """Mean, population deviation (``_std``) and 95 % interval (``_low``, ``_high``) of every rate over networks.

    The interval is Student's, cut to what a share can be; a single network has none.
    """
    found: dict[str, float] = {}
    for name in rates[0]:
        values = torch.tensor([each[name] for each in rates], dtype=torch.float64)
        mean = float(values.mean())
        found[name], found[f"{name}_std"] = mean, float(values.std(correction=0))
        if len(values) > 1 and not name.endswith("loss"):
            reach = float(stats.t.ppf(0.975, len(values) - 1) * values.std() / math.sqrt(len(values)))
            found[f"{name}_low"], found[f"{name}_high"] = max(0.0, mean - reach), min(1.0, mean + reach)
    return found
