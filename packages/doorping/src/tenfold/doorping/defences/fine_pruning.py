"""Fine-pruning: channels that are silent for clean images are removed, and the rest is fine-tuned.

Source: Liu, Dolan-Gavitt and Garg, "Fine-Pruning" (RAID 2018). The channels of the last convolution are pruned in the
order of their mean activation for clean images, the most silent first, until the clean accuracy falls by 4 points (as
the specification says). What it says nothing of is marked below: "ours" for our choice.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import prune

from tenfold.doorping.defences.neural_cleanse import check_clean_data
from tenfold.doorping.defences.neuron_stimulation import (
    check_nothing_leads_around,
    recorded_outputs,
    run_from,
)
from tenfold.doorping.networks import BasicBlock
from tenfold.shared.logging import TenfoldError


@dataclass(frozen=True)
class FineTuning:
    """Training on clean images with SGD; nothing of it is printed in the specification."""

    epochs: int = 10
    """Passes over the images (ours); 0 for none."""
    lr: float = 0.01
    """At first; as in the victim's own training, like the next three."""
    momentum: float = 0.9
    """Of SGD."""
    nesterov: bool = False
    """Look ahead by the momentum."""
    weight_decay: float = 5e-4
    """Of SGD."""
    batch_size: int = 256
    """Images of a step."""
    decay: float = 0.1
    """Factor of the learning rate at a decay."""
    decay_after: tuple[int, ...] = ()
    """Epochs after which the learning rate decays."""

    def __post_init__(self) -> None:
        if min(self.epochs, *self.decay_after, 0) < 0 or self.batch_size < 1:
            raise TenfoldError("epochs of fine-tuning are at least 0 and its batch size is at least 1")
        if self.lr <= 0 or self.decay <= 0 or self.weight_decay < 0 or not 0 <= self.momentum < 1:
            raise TenfoldError(
                "fine-tuning needs a learning rate and a decay above 0, a weight decay of at least 0 and a momentum "
                "from 0 to below 1"
            )
        if self.nesterov and self.momentum == 0:
            raise TenfoldError("Nesterov's step needs a momentum above 0")


@dataclass(frozen=True)
class FinePruningConfig:
    """How much is pruned, and what follows."""

    accuracy_drop: float = 0.04
    """How far the clean accuracy may fall, as a share of the images."""
    fine_tuning: FineTuning = field(default_factory=FineTuning)
    """Of the pruned network on the same images."""
    images_at_once: int = 1024
    """Pruned outputs that go through the rest of the network together."""

    def __post_init__(self) -> None:
        if not 0 <= self.accuracy_drop <= 1:
            raise TenfoldError(
                f"the accuracy may fall by a share between 0 and 1, not {self.accuracy_drop}; 0.04 are 4 points"
            )
        if self.images_at_once < 1:
            raise TenfoldError("fine-pruning needs at least one image at once")


@dataclass(frozen=True)
class FinePruningReport:
    """What fine-pruning did."""

    network: nn.Module
    """The repaired copy, in evaluation mode, with the same parameter names."""
    layer: str
    """Name of the module whose channels were pruned: the last convolution, or the norm behind it."""
    order: Tensor
    """Channels from the most silent to the loudest, int64 [n]."""
    pruned: int
    """How many of them were removed."""
    accuracy: Tensor
    """Clean accuracy with 0 to n - 1 channels removed, before fine-tuning, [n]."""
    accuracy_after: float
    """Clean accuracy of the repaired network on the same images, which it was fine-tuned on."""


def fine_pruning(
    network: nn.Module,
    images: Tensor,
    labels: Tensor,
    config: FinePruningConfig | None = None,
    generator: torch.Generator | None = None,
) -> FinePruningReport:
    """Prune the last convolution, then fine-tune.

    A channel's activation is the mean over images and positions of the rectified output of the convolution, or of the
    norm behind it. A pruned channel gives 0 there, also during fine-tuning. Of ResNet18 it is the last block's second
    convolution; what its shortcut carries stays. At least one channel stays, whatever the accuracy.

    Args:
        network: a classifier; it does not change.
        images: clean, normalised, [N, C, H, W].
        labels: int64 [N].
        config: the settings; the standard ones without it.
        generator: of the batches, on the CPU; seed 0 without it.

    Raises:
        TenfoldError: the data has the wrong shape, or the network has no convolution that can be pruned.
    """
    config = config or FinePruningConfig()
    generator = generator or torch.Generator().manual_seed(0)
    check_clean_data(images, labels)
    name = last_convolution(network)
    order, accuracy = _accuracy_when_pruned(network, name, images, labels, config.images_at_once)
    fallen = accuracy[0] - accuracy > config.accuracy_drop + 1e-6
    pruned = int(fallen.int().argmax()) - 1 if bool(fallen.any()) else len(order) - 1

    repaired = deepcopy(network)
    layer = repaired.get_submodule(name)
    kept = torch.ones(len(order), device=order.device).index_fill(0, order[:pruned], 0)
    names = [parameter for parameter, _ in layer.named_parameters(recurse=False)]
    for parameter in names:
        value = getattr(layer, parameter)
        mask = kept.view(-1, *(1,) * (value.ndim - 1)).expand_as(value)
        prune.custom_from_mask(layer, parameter, mask)
    fine_tune(repaired, images, labels, config.fine_tuning, generator)
    for parameter in names:
        prune.remove(layer, parameter)
    after = clean_accuracy(repaired, images, labels, config.images_at_once)
    return FinePruningReport(repaired.eval(), name, order, pruned, accuracy, after)


def last_convolution(network: nn.Module) -> str:
    """Name of the last convolution, or of the norm that follows it at once.

    Raises:
        TenfoldError: there is none, or its channels cannot be taken out.
    """
    modules: list[tuple[str, nn.Module]] = list(network.named_modules())
    places = [place for place, (_, module) in enumerate(modules) if isinstance(module, nn.Conv2d)]
    if not places:
        raise TenfoldError("fine-pruning prunes the last convolution; this network has none")
    name, _ = modules[places[-1]]
    for following, norm in modules[places[-1] + 1 : places[-1] + 2]:
        if isinstance(norm, (nn.BatchNorm2d, nn.GroupNorm, nn.LayerNorm)):
            name = following
            if norm.weight is None or norm.bias is None:
                raise TenfoldError(f"the norm {name} has no weights that fine-pruning could set to 0")
    return name


def fine_tune(
    network: nn.Module,
    images: Tensor,
    labels: Tensor,
    settings: FineTuning,
    generator: torch.Generator,
    loss_of: Callable[[Tensor, Tensor], Tensor] | None = None,
) -> None:
    """Train a network in place; it is left in evaluation mode.

    Args:
        network: trained in training mode.
        images: normalised, [N, C, H, W].
        labels: int64 [N].
        settings: of SGD.
        generator: of the order of the images, on the CPU.
        loss_of: from images [B, C, H, W] and labels [B]; without it the cross-entropy.
    """
    network.train().requires_grad_()
    optimizer = torch.optim.SGD(
        network.parameters(),
        lr=settings.lr,
        momentum=settings.momentum,
        nesterov=settings.nesterov,
        weight_decay=settings.weight_decay,
    )
    for epoch in range(settings.epochs):
        if epoch in settings.decay_after:
            optimizer.param_groups[0]["lr"] *= settings.decay
        order = torch.randperm(len(images), generator=generator).to(images.device)
        for chosen in order.split(settings.batch_size):
            optimizer.zero_grad()
            batch, wanted = images[chosen], labels[chosen]
            loss = F.cross_entropy(network(batch), wanted) if loss_of is None else loss_of(batch, wanted)
            loss.backward()
            optimizer.step()
    network.eval()


@torch.no_grad()
def clean_accuracy(network: nn.Module, images: Tensor, labels: Tensor, batch_size: int = 1024) -> float:
    """Share of the images that the network, in evaluation mode, gives their label."""
    parts = zip(images.split(batch_size), labels.split(batch_size), strict=True)
    right = torch.stack([(network(part).argmax(dim=1) == wanted).sum() for part, wanted in parts])
    return float(right.sum()) / len(labels)


@torch.no_grad()
def _accuracy_when_pruned(
    network: nn.Module, name: str, images: Tensor, labels: Tensor, images_at_once: int
) -> tuple[Tensor, Tensor]:
    """Channels from the most silent, [n], and the accuracy with 0 to n - 1 of them at 0, [n].

    The network runs once up to the pruned layer, and what follows it for many prunings at once.
    """
    network = deepcopy(network).eval()
    layer = network.get_submodule(name)
    blocks = [module for module in network.modules() if isinstance(module, BasicBlock)]
    block = blocks[-1] if blocks and layer in blocks[-1].modules() else None
    inner, beside = _outputs(network, layer, block, images, images_at_once)
    some = inner[:8] if beside is None else F.relu(inner[:8] + beside[:8])
    replaced = layer if block is None else block
    check_nothing_leads_around(network, replaced, some, images[:8], network(images[:8]))
    loudness = F.relu(inner).flatten(2).mean(dim=(0, 2))
    order = loudness.argsort(stable=True)
    rank = order.argsort()
    counts = torch.arange(len(order), device=images.device)
    kept = (rank >= counts[:, None]).to(inner.dtype)  # [count, channel]

    together = min(len(images), images_at_once)
    right = torch.zeros(len(counts), dtype=torch.int64, device=images.device)
    for part in torch.arange(len(images), device=images.device).split(together):
        for tried in counts.split(max(1, images_at_once // together)):
            values = inner[part] * kept[tried][:, None, :, None, None]
            if beside is not None:
                values = F.relu(values + beside[part])
            logits = run_from(network, replaced, values.flatten(0, 1), images[:1])
            found = logits.argmax(dim=1).view(len(tried), -1)
            right[tried] += (found == labels[part]).sum(dim=1)
    return order, right.double() / len(labels)


def _outputs(
    network: nn.Module, layer: nn.Module, block: BasicBlock | None, images: Tensor, images_at_once: int
) -> tuple[Tensor, Tensor | None]:
    """What the layer gives for all images, and what its block's shortcut adds to it."""
    inner, beside = [], []
    shortcut = [] if block is None else [block.shortcut]
    with recorded_outputs([layer, *shortcut]) as outputs:
        for part in images.split(images_at_once):
            network(part)
            inner.append(outputs[0])
            if shortcut:
                beside.append(outputs[1])
    return torch.cat(inner), torch.cat(beside) if shortcut else None
