"""Lightning Fabric with our defaults: device, precision, TF32, distributed strategy.

Fabric is the distributed engine. Under ``torchrun`` or SLURM it joins the processes that were started for it;
otherwise ``devices > 1`` makes it start them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeVar

import torch
from lightning_fabric import Fabric

from tenfold.shared.logging import TenfoldError

Precision = Literal["auto", "32-true", "bf16-mixed", "16-mixed"]
FabricPrecision = Literal["32-true", "bf16-mixed", "16-mixed"]
Module = TypeVar("Module", bound=torch.nn.Module)


@dataclass(frozen=True)
class AcceleratorConfig:
    """Where and how to compute. None of it changes what is computed, so it is no part of a run's identity."""

    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Kind of device; auto takes a GPU where there is one."""
    devices: int = 1
    """Processes per node, one device each."""
    nodes: int = 1
    """Nodes, under torchrun or SLURM."""
    precision: Precision = "auto"
    """auto is bf16-mixed where the GPU computes it, fp16 with loss scaling on older ones, fp32 on the CPU."""
    compile: bool = False
    """Compile models with torch.compile."""


def make_fabric(config: AcceleratorConfig, strategy: str | None = None) -> Fabric:
    """A Fabric for ``config``; call its ``launch()`` before anything that differs between processes.

    Args:
        config: device, number of processes, precision.
        strategy: Fabric's name of a strategy; None is ``ddp`` for several processes, else ``auto``.

    Raises:
        TenfoldError: the device was asked for by name and this machine has none, or too few.
    """
    device = resolve_device(config.device)
    if device == "cuda" and config.devices > torch.cuda.device_count():
        raise TenfoldError(
            f"{config.devices} devices were asked for, but this machine has {torch.cuda.device_count()}; "
            "lower --devices"
        )
    if device == "cuda" and torch.cuda.get_device_capability()[0] >= 8:
        torch.set_float32_matmul_precision("high")  # TF32 for what autocast leaves in fp32
    several = config.devices * config.nodes > 1
    return Fabric(
        accelerator=device,
        devices=config.devices,
        num_nodes=config.nodes,
        strategy=strategy or ("ddp" if several else "auto"),
        precision=resolve_precision(config.precision, device),
    )


def resolve_device(device: str) -> str:
    """``auto`` as the device this machine has: cuda, mps or cpu."""
    available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if device == "auto":
        return next(name for name in ("cuda", "mps", "cpu") if available[name])
    if not available.get(device, False):
        raise TenfoldError(f"this machine has no device {device!r}; use --device auto or --device cpu")
    return device


def resolve_precision(precision: Precision, device: str) -> FabricPrecision:
    """``auto`` as the precision that suits the device."""
    if precision != "auto":
        return precision
    if device != "cuda":
        return "32-true"
    return "bf16-mixed" if torch.cuda.is_bf16_supported(including_emulation=False) else "16-mixed"


def channels_last(module: Module, device: torch.device) -> Module:
    """Convolution weights in NHWC on CUDA, where tensor cores want them; unchanged elsewhere."""
    return module.to(memory_format=torch.channels_last) if device.type == "cuda" else module  # type: ignore[call-overload, no-any-return]


def maybe_compile(module: Module, enabled: bool) -> Module:
    """``torch.compile`` where ``enabled``, else the module itself."""
    return torch.compile(module) if enabled else module  # type: ignore[return-value]
