"""How long every layer of a network takes."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.benchmark import Timer

from tenfold.emo.model import EMO
from tenfold.shared.logging import TenfoldError


@dataclass(frozen=True)
class LayerTime:
    """Time of one layer for one batch."""

    name: str
    """stem, a block as ``stages.2.1``, norm, head, or total for the whole network."""
    seconds: float
    """Median of the repeats."""
    spread: float
    """Seconds between their first and third quartile."""
    repeats: int
    """How often it was timed, each time over a block of runs."""


def measure_latency(
    model: EMO,
    size: int = 224,
    batch: int = 1,
    threads: int = 1,
    device: str | torch.device = "cpu",
    seconds: float = 0.2,
) -> list[LayerTime]:
    """Time of stem, every block, norm and head at inference, in order, and of the whole network at the end.

    Each layer runs alone, again and again, on what it gets within the network. Its input is then warm in the cache,
    so that layers may add up to less than the total.

    Args:
        model: stays as it is; give it folded (``reparameterize``) to time what is deployed.
        size: side of images.
        batch: images.
        threads: of the CPU.
        device: for instance cuda.
        seconds: for each layer.

    Raises:
        TenfoldError: images are too small, there is no such device, or a number is not positive.
    """
    if min(batch, threads, seconds) <= 0:
        raise TenfoldError("batch, threads and seconds are positive")
    if torch.device(device).type == "cuda" and not torch.cuda.is_available():
        raise TenfoldError("there is no CUDA device here: choose the device cpu")
    timed = deepcopy(model).eval().to(device)
    like = timed.stem.conv.weight
    images = torch.randn(batch, timed.stem.conv.in_channels, size, size).to(like)
    with torch.inference_mode():
        inputs = inputs_of_layers(timed, images) | {"total": (timed, images)}
        return [measure(name, layer, x, threads, seconds) for name, (layer, x) in inputs.items()]


def inputs_of_layers(model: EMO, images: Tensor) -> dict[str, tuple[nn.Module, Tensor]]:
    """Stem, blocks, norm and head by name, with what each gets within the network."""
    names = {module: name for name, module in model.named_modules()}
    blocks = [block for stage in model.stages for block in stage.children()]
    inputs: dict[str, tuple[nn.Module, Tensor]] = {}

    def keep(layer: nn.Module, arguments: tuple[Any, ...]) -> None:
        inputs[names[layer]] = (layer, arguments[0])

    hooks = [layer.register_forward_pre_hook(keep) for layer in (model.stem, *blocks, model.norm, model.head)]
    model(images)
    for hook in hooks:
        hook.remove()
    return inputs


def measure(name: str, layer: nn.Module, x: Tensor, threads: int, seconds: float) -> LayerTime:
    """Time of one layer on one input."""
    timer = Timer("layer(x)", globals={"layer": layer, "x": x}, num_threads=threads)
    found = timer.blocked_autorange(min_run_time=seconds)
    return LayerTime(name, found.median, found.iqr, len(found.times))
