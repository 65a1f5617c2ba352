"""Networks of timm that EMO is compared with: parameters, multiply-accumulates, throughput, published accuracy."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

import timm
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from tenfold.emo.inference import reparameterize
from tenfold.emo.model import ARCHITECTURES, EMO, build_model
from tenfold.shared.logging import TenfoldError

PEERS: dict[str, tuple[float, int]] = {
    "emo_1m": (71.5, 224),
    "emo_2m": (75.1, 224),
    "emo_5m": (78.4, 224),
    "emo_6m": (79.0, 224),
    "mobilenetv2_140": (74.7, 224),
    "mobilenetv4_conv_small": (73.8, 224),
    "mobilevit_xxs": (69.0, 256),
    "mobilevit_xs": (74.8, 256),
    "mobilevit_s": (78.4, 256),
    "mobilevitv2_050": (70.2, 256),
    "mobilevitv2_100": (78.1, 256),
    "edgenext_xx_small": (71.2, 256),
    "edgenext_x_small": (75.0, 256),
    "edgenext_small": (78.8, 224),
    "efficientvit_m1": (68.4, 224),
    "efficientvit_m5": (77.1, 224),
    "pvt_v2_b0": (70.5, 224),
    "deit_tiny_patch16_224": (72.2, 224),
}
"""Model to the top-1 accuracy that the tables give, and at which size of images."""
UNPUBLISHED: dict[str, int] = {
    "mobilenetv2_050": 224,
    "mobilenetv3_small_100": 224,
    "fastvit_t8": 256,
    "repvit_m0_9": 224,
    "mobileone_s0": 224,
    "efficientvit_b0": 224,
}
"""Further models of timm of this size, whose accuracy those tables do not give."""


@dataclass(frozen=True)
class Peer:
    """One network, measured."""

    name: str
    size: int
    """Side of the images."""
    parameters: int
    flops: int
    """Multiply-accumulates of convolutions and matrix products, half of what torch counts."""
    images_per_second: float
    top1: float | None
    """Published, in per cent."""


def measure_peers(
    names: Sequence[str] = (*PEERS, *UNPUBLISHED),
    batch_size: int = 1,
    device: str = "cpu",
    repeats: int = 5,
    size: int | None = None,
) -> list[Peer]:
    """Measure networks one after the other, with random weights, at inference; EMO with folded norms.

    Args:
        names: of :data:`PEERS`, :data:`UNPUBLISHED`, or any other model of timm.
        batch_size: images of a pass.
        device: cpu or cuda.
        repeats: passes, of which the median counts.
        size: of images for all; by default each network's own.

    Raises:
        TenfoldError: there is no such network.
    """
    return [_measure(name, batch_size, torch.device(device), repeats, size) for name in names]


def _measure(name: str, batch_size: int, device: torch.device, repeats: int, size: int | None) -> Peer:
    published, own_size = PEERS.get(name, (None, UNPUBLISHED.get(name, 224)))
    side = size or own_size
    network: nn.Module
    if name in ARCHITECTURES:
        network = build_model(name)
    elif timm.is_model(name):
        network = timm.create_model(name)
    else:
        raise TenfoldError(f"neither this package nor timm has a network {name}")
    network.eval()
    parameters = sum(parameter.numel() for parameter in network.parameters())
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        network(torch.zeros(1, 3, side, side))
    if isinstance(network, EMO):
        network = reparameterize(network)
    network = network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    images = torch.randn(batch_size, 3, side, side, device=device).contiguous(
        memory_format=torch.channels_last
    )
    seconds = _seconds(network, images, repeats)
    return Peer(name, side, parameters, counter.get_total_flops() // 2, batch_size / seconds, published)


@torch.inference_mode()
def _seconds(network: nn.Module, images: torch.Tensor, repeats: int) -> float:
    """Median time of a pass, after one that warms up."""
    found = []
    for _ in range(repeats + 1):
        started = time.perf_counter()
        network(images)
        if images.device.type == "cuda":
            torch.cuda.synchronize()
        found.append(time.perf_counter() - started)
    return median(found[1:])
