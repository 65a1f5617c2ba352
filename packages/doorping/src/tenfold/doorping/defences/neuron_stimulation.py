"""ABS: neurons that alone bring every image into one class, and the triggers that excite them.

Source: Liu et al., "ABS: Scanning Neural Networks for Back-doors by Artificial Brain Stimulation" (CCS 2019). Every
neuron of a layer is set to values beyond what it shows for clean images. Those that raise one class far above the
others are candidates; for each a trigger with a bounded mask is sought that excites it and leaves the rest alone. The
share of images that the trigger brings into the class is the REASR. The specification gives the method and the alarm;
the settings marked "authors" are not printed in it but are those of the authors' released code, and the rest is ours.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tenfold.doorping.defences.neural_cleanse import (
    check_clean_data,
    check_pixel_range,
    frozen_copy,
    stamped,
    success_rates,
    trigger_of,
    widened_range,
)
from tenfold.doorping.networks import BasicBlock
from tenfold.shared.logging import TenfoldError

ACTIVATIONS = (nn.ReLU, nn.LeakyReLU, nn.Sigmoid)


@dataclass(frozen=True)
class NeuronStimulationConfig:
    """How neurons are stimulated, and triggers reverse-engineered."""

    layers: tuple[str, ...] = ()
    """Names of the modules whose outputs are stimulated; empty for all activations and residual blocks."""
    levels: tuple[float, ...] = (0.0, 0.8, 1.6, 2.4, 3.2)
    """Values that a neuron is set to, in units of the layer's largest clean one (authors)."""
    seed_images: int = 10
    """Images that the neurons are stimulated on, taken from all classes in turn (authors)."""
    candidates_per_class: int = 1
    """Neurons whose triggers are sought, for every class (authors: ten for their ten classes)."""
    steps: int = 1000
    """Of Adam, for all triggers together (authors)."""
    lr: float = 0.1
    """Of Adam (ours)."""
    batch_size: int = 32
    """Images of a step (ours)."""
    mask_share: float = 0.0625
    """Largest mask as a share of the image's pixels, rounded up (authors: 64 pixels of 1,024)."""
    mask_weight: float = 1.0
    """Of every pixel of mask beyond that, while the trigger is sought (ours)."""
    others_weight: float = 1e-4
    """Of the change of the layer's other neurons (authors)."""
    class_weight: float = 1.0
    """Of the cross-entropy towards the candidate's class (ours; the authors' later code adds the class's logit); 0
    excites the neuron alone, as in the paper, and misses a backdoor that lies in several neurons."""
    alarm: float = 0.88
    """REASR at which the network is flagged."""
    pixel_range_factor: float = 1.0
    """Triggers lie within the valid pixels' range, widened by this factor about its middle (ours)."""
    images_at_once: int = 1024
    """Stimulated outputs that go through the rest of the network together."""

    def __post_init__(self) -> None:
        counts = (self.seed_images, self.candidates_per_class, self.steps, self.batch_size)
        if min(*counts, self.images_at_once) < 1:
            raise TenfoldError(
                "seed images, candidates per class, steps, batch size and images at once of ABS are at least 1"
            )
        if not self.levels or not all(math.isfinite(level) for level in self.levels):
            raise TenfoldError("ABS needs one level of stimulation or more, all of them finite numbers")
        weights = (self.mask_weight, self.others_weight, self.class_weight)
        if self.lr <= 0 or self.pixel_range_factor <= 0 or min(weights) < 0:
            raise TenfoldError(
                "learning rate and pixel range factor of ABS are above 0, and its weights not below"
            )
        if not 0 < self.mask_share <= 1 or not 0 < self.alarm <= 1:
            raise TenfoldError("mask share and alarm of ABS are shares above 0 and at most 1")


@dataclass(frozen=True)
class NeuronStimulationReport:
    """What ABS found; candidates come in the order of their elevation, the largest first."""

    layers: tuple[str, ...]
    """Module of every candidate, M in all."""
    neurons: Tensor
    """Its number within the module, int64 [M]."""
    target_classes: Tensor
    """The class that it raises, int64 [M]."""
    elevation: Tensor
    """How far it raises that class's logit beyond any other's, [M]."""
    masks: Tensor
    """Of the triggers, [M, 1, H, W], from 0 to 1, in at most the pixels that the mask share allows."""
    patterns: Tensor
    """Of the triggers, [M, C, H, W], normalised."""
    reasr: Tensor
    """Share of the images of other classes that the trigger brings into the class, [M]."""
    flagged: tuple[int, ...]
    """Classes with a REASR at or above the alarm, the largest first."""

    @property
    def detected(self) -> bool:
        """Whether any class is flagged."""
        return bool(self.flagged)


@contextmanager
def recorded_outputs(
    modules: Sequence[nn.Module], before_activations: bool = False
) -> Iterator[dict[int, Tensor]]:
    """What modules return in the latest forward inside the context, by their place in the sequence.

    Args:
        modules: parts of a network.
        before_activations: of an activation, what goes into it instead.
    """
    outputs: dict[int, Tensor] = {}

    def keep(place: int, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        outputs[place] = inputs[0] if before_activations and isinstance(module, ACTIVATIONS) else output

    handles = [module.register_forward_hook(partial(keep, place)) for place, module in enumerate(modules)]
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()


def run_from(network: nn.Module, module: nn.Module, values: Tensor, image: Tensor) -> Tensor:
    """Logits [B, K] if ``module`` had returned ``values`` [B, ...].

    Only one image goes through what is before the module; nothing may lead around it.

    Args:
        network: a classifier.
        module: a part of it that runs once.
        values: what it shall return.
        image: any, [1, C, H, W].
    """
    handle = module.register_forward_hook(lambda *_: values)
    try:
        logits: Tensor = network(image)
        return logits
    finally:
        handle.remove()


def check_nothing_leads_around(
    network: nn.Module, module: nn.Module, values: Tensor, images: Tensor, logits: Tensor
) -> None:
    """A module's values for some images decide the logits that the network has for them.

    Raises:
        TenfoldError: something leads around the module, such as a shortcut.
    """
    found = run_from(network, module, values, images[:1])
    if found.shape != logits.shape or not torch.allclose(found, logits, rtol=1e-3, atol=1e-3):
        raise TenfoldError(
            f"something leads around the {type(module).__name__} in this network; choose a module that all of it "
            "passes through, such as a whole residual block"
        )


def stimulated_layers(network: nn.Module, names: Sequence[str] = ()) -> dict[str, nn.Module]:
    """Modules to stimulate, by name: those named, or all activations and residual blocks.

    Raises:
        TenfoldError: there is no such module, or none at all.
    """
    modules = dict(network.named_modules())
    if unknown := [name for name in names if name not in modules]:
        raise TenfoldError(
            f"this network has no module {unknown[0]!r}; choose layers from network.named_modules()"
        )
    found = {name: modules[name] for name in names} or {
        name: module for name, module in modules.items() if isinstance(module, (*ACTIVATIONS, BasicBlock))
    }
    if not found:
        raise TenfoldError("this network has no activation modules; name the layers that ABS shall stimulate")
    return found


@torch.no_grad()
def class_elevation(
    network: nn.Module,
    module: nn.Module,
    images: Tensor,
    levels: Sequence[float],
    images_at_once: int = 1024,
) -> Tensor:
    """How far each neuron of a module alone can raise each class's logit, averaged over images.

    A neuron of a convolution is a channel, which is set to one value everywhere.

    Args:
        network: a classifier in evaluation mode.
        module: a part of it that returns [S, n] or [S, n, h, w].
        images: normalised, [S, C, H, W].
        levels: values that a neuron is set to, in units of the module's largest for these images.
        images_at_once: stimulated outputs that go through the rest of the network together.

    Returns:
        [n, K]: the largest logit over the levels less the logit without stimulation.

    Raises:
        TenfoldError: something leads around the module.
    """
    with recorded_outputs([module]) as outputs:
        logits = network(images)
    values = outputs[0]
    check_nothing_leads_around(network, module, values, images, logits)
    stimuli = torch.tensor(levels, device=values.device, dtype=values.dtype) * values.max()
    neurons = torch.arange(values.shape[1], device=values.device)
    rows = max(1, images_at_once // (len(stimuli) * len(images)))
    elevations = []
    for part in neurons.split(rows):
        shape = (len(part), len(stimuli), *values.shape)
        chosen = (neurons == part[:, None]).view(len(part), 1, 1, -1, *(1,) * (values.ndim - 2))
        level = stimuli.view(1, -1, *(1,) * values.ndim)
        stimulated = torch.where(chosen, level, values).expand(shape).flatten(0, 2)
        raised = run_from(network, module, stimulated, images[:1]).view(*shape[:3], -1)
        elevations.append((raised.amax(dim=1) - logits).mean(dim=1))
    return torch.cat(elevations)


def scan_neurons(
    network: nn.Module,
    images: Tensor,
    labels: Tensor,
    low: Tensor,
    high: Tensor,
    config: NeuronStimulationConfig | None = None,
    generator: torch.Generator | None = None,
) -> NeuronStimulationReport:
    """Stimulate all neurons, and reverse-engineer triggers for those that raise a class most.

    Candidates are, for every class, the neurons that raise its logit furthest beyond that of any other class.

    Args:
        network: a classifier with activation modules or residual blocks; it does not change.
        images: clean, normalised, [N, C, H, W].
        labels: int64 [N].
        low: normalised black, [1, C, 1, 1].
        high: normalised white, [1, C, 1, 1].
        config: the settings; the standard ones without it.
        generator: of the seed images, the first triggers and the batches, on the CPU; seed 0 without it.

    Returns:
        The candidates with their triggers and REASR, and which classes are flagged.

    Raises:
        TenfoldError: the data has the wrong shape, or the network no such layers or fewer than two classes.
    """
    config = config or NeuronStimulationConfig()
    generator = generator or torch.Generator().manual_seed(0)
    check_clean_data(images, labels)
    check_pixel_range(images, low, high)
    network = frozen_copy(network)
    layers = stimulated_layers(network, config.layers)
    seeds = images[_one_of_each_class_in_turn(labels, config.seed_images, generator)]

    names, modules = list(layers), list(layers.values())
    elevations = [
        class_elevation(network, module, seeds, config.levels, config.images_at_once) for module in modules
    ]
    if elevations[0].shape[1] < 2:
        raise TenfoldError("ABS compares classes; give a network of at least 2")
    beyond = _beyond_the_others(torch.cat(elevations))
    count, classes = min(config.candidates_per_class, len(beyond)), beyond.shape[1]
    chosen = beyond.topk(count, dim=0)
    order = chosen.values.flatten().argsort(descending=True, stable=True)
    elevation, rows = chosen.values.flatten()[order], chosen.indices.flatten()[order]
    target = torch.arange(classes, device=images.device).repeat(count)[order]
    sizes = torch.tensor([len(values) for values in elevations], device=images.device)
    layer = torch.repeat_interleave(torch.arange(len(sizes), device=images.device), sizes)[rows]
    neurons = rows - (sizes.cumsum(dim=0) - sizes)[layer]

    lowest, highest = widened_range(low, high, config.pixel_range_factor)
    masks, patterns = _excite(
        network, modules, layer, neurons, target, images, lowest, highest, config, generator
    )
    reasr = success_rates(network, images, labels, masks, patterns, target, config.batch_size)
    loudest = reasr.nan_to_num().argsort(descending=True).tolist()
    flagged = dict.fromkeys(int(target[place]) for place in loudest if reasr[place] >= config.alarm)
    return NeuronStimulationReport(
        tuple(names[place] for place in layer.tolist()),
        neurons,
        target,
        elevation,
        masks,
        patterns,
        reasr,
        tuple(flagged),
    )


def _beyond_the_others(elevation: Tensor) -> Tensor:
    """How far a neuron raises each class beyond the one that it raises most beside it, [n, K] of [n, K]."""
    two = elevation.topk(2, dim=1)
    first = torch.arange(elevation.shape[1], device=elevation.device) == two.indices[:, :1]
    return elevation - torch.where(first, two.values[:, 1:], two.values[:, :1])


def _one_of_each_class_in_turn(labels: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Indices of images drawn at random, as even over the classes as can be."""
    order = torch.randperm(len(labels), generator=generator)
    shuffled = F.one_hot(labels.cpu()[order])
    turn = (shuffled.cumsum(dim=0) * shuffled).sum(dim=1)  # 1 for the first of its class, 2 for the second
    return order[turn.argsort(stable=True)[:count]].to(labels.device)


def _excite(
    network: nn.Module,
    modules: Sequence[nn.Module],
    layer: Tensor,
    neurons: Tensor,
    target: Tensor,
    images: Tensor,
    low: Tensor,
    high: Tensor,
    config: NeuronStimulationConfig,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor]:
    """Masks [M, 1, H, W] and patterns [M, C, H, W] that excite one neuron each, all candidates at once."""
    count, device, (channels, height, width) = len(neurons), images.device, images.shape[1:]
    budget = math.ceil(config.mask_share * height * width)
    free = torch.rand(count, 1 + channels, height, width, generator=generator)
    free[:, :1] *= 2 * budget / (height * width)  # masks begin at about their largest size
    free = ((free.clamp(0.005, 0.995) - 0.5) * 2).atanh().to(device).requires_grad_()
    order = torch.randint(len(images), (config.steps, config.batch_size), generator=generator).to(device)
    optimizer = torch.optim.Adam([free], lr=config.lr)
    involved = layer.unique().tolist()
    owners = [(layer == number).nonzero().flatten() for number in involved]
    wanted = target.repeat_interleave(config.batch_size)
    with recorded_outputs([modules[place] for place in involved], before_activations=True) as outputs:
        for chosen in order:
            batch = images[chosen]
            with torch.no_grad():
                network(batch)
            clean = dict(outputs)
            mask, pattern = trigger_of(free, low, high)
            logits = network(stamped(batch, mask, pattern))
            loss = config.mask_weight * (mask.flatten(1).sum(dim=1) - budget).relu().sum()
            loss = loss + config.class_weight * count * F.cross_entropy(logits, wanted)
            for place, mine in enumerate(owners):
                values = outputs[place].unflatten(0, (count, -1))[mine]
                loss = loss - _excitement(values, clean[place], neurons[mine], config.others_weight)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    with torch.no_grad():
        mask, pattern = trigger_of(free, low, high)
        kept = torch.zeros_like(mask).flatten(1)
        kept.scatter_(1, mask.flatten(1).topk(budget, dim=1).indices, 1.0)
        return mask * kept.view_as(mask), pattern


def _excitement(values: Tensor, clean: Tensor, neurons: Tensor, others_weight: float) -> Tensor:
    """Each candidate's own value less the change of the others, in units of the layer's largest; their sum.

    Args:
        values: of the layer for stamped images, [m, B, n] or [m, B, n, h, w].
        clean: for the images as they are, [B, n] or [B, n, h, w].
        neurons: one for each candidate, int64 [m].
        others_weight: of the mean change of the others.
    """
    scale = clean.abs().max().clamp_min(1e-6)
    values = values.flatten(3).mean(dim=3) if values.ndim > 3 else values
    clean = clean.flatten(2).mean(dim=2) if clean.ndim > 2 else clean
    own = F.one_hot(neurons, values.shape[2]).to(values.dtype)[:, None]
    others = ((values - clean).abs() * (1 - own)).sum(dim=2) / max(values.shape[2] - 1, 1)
    return ((values * own).sum(dim=2) - others_weight * others).mean(dim=1).sum() / scale
