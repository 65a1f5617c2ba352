"""Lightning Fabric with our defaults: device, precision, TF32, distributed strategy.

Fabric is the distributed engine. Under ``torchrun`` or SLURM's ``srun`` it joins the processes that were started for
it; otherwise ``devices > 1`` makes it start them.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from typing import Literal, TypeVar

import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins.environments.lightning import LightningEnvironment
from lightning_fabric.strategies.ddp import DDPStrategy

from tenfold.shared.logging import TenfoldError, set_quiet

Precision = Literal["auto", "32-true", "bf16-mixed", "16-mixed"]
FabricPrecision = Literal["32-true", "bf16-mixed", "16-mixed"]
Module = TypeVar("Module", bound=torch.nn.Module)

LONGEST_WAIT = timedelta(hours=12)
"""Of processes for each other: one may generate or judge for hours what the others go on with."""


@dataclass(frozen=True)
class AcceleratorConfig:
    """Where and how to compute. None of it changes what is computed, so it is no part of a run's identity."""

    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Kind of device; auto takes a GPU where there is one."""
    devices: int = 1
    """Processes per node, one device each; under torchrun or srun, 1 means as many as it started."""
    nodes: int = 1
    """Nodes; under torchrun or srun, 1 means as many as it started processes on."""
    precision: Precision = "auto"
    """auto is bf16-mixed where the GPU computes it, fp16 with loss scaling on older ones, fp32 on the CPU."""
    compile: bool = False
    """Compile models with torch.compile."""


def make_fabric(
    config: AcceleratorConfig, strategy: str | None = None, broadcast_buffers: bool = True
) -> Fabric:
    """A Fabric for ``config``; call its ``launch()`` before anything that differs between processes.

    Processes other than the first say only warnings and errors.

    Args:
        config: device, number of processes, precision.
        strategy: Fabric's name of a strategy; None is ``ddp`` for several processes, else ``auto``.
        broadcast_buffers: whether ``ddp`` copies the first process's buffers to the others before each forward pass. A
            network with batch norm that is called several times before one backward pass must do without.

    Raises:
        TenfoldError: what was asked for by name this machine does not have, or not as many; or torchrun or srun
            started another number of processes.
    """
    device = resolve_device(config.device)
    devices, nodes = resolve_processes(config.devices, config.nodes)
    alone_in_slurm = "SLURM_NTASKS" in os.environ and not (_is_torchrun() or _is_srun())
    if device == "cuda" and devices > torch.cuda.device_count():
        raise TenfoldError(
            f"{devices} devices were asked for, but this machine has {torch.cuda.device_count()}; lower --devices"
        )
    if device == "cuda" and torch.cuda.get_device_capability()[0] >= 8:
        torch.set_float32_matmul_precision("high")  # TF32 for what autocast leaves in fp32
    ddp = DDPStrategy(broadcast_buffers=broadcast_buffers, timeout=LONGEST_WAIT)
    fabric = Fabric(
        accelerator=device,
        devices=devices,
        num_nodes=nodes,
        strategy=strategy or (ddp if devices * nodes > 1 else "auto"),
        precision=resolve_precision(config.precision, device),
        plugins=[LightningEnvironment()] if alone_in_slurm else [],  # else Fabric waits for the others
    )
    if fabric.global_rank > 0:
        set_quiet(True)
    return fabric


@cache
def launch_fabric(config: AcceleratorConfig) -> Fabric:
    """A Fabric of :func:`make_fabric`, launched; a process has one for each ``config``."""
    fabric = make_fabric(config)
    fabric.launch()
    return fabric


def resolve_processes(devices: int, nodes: int) -> tuple[int, int]:
    """Processes per node and nodes; those that torchrun or srun started where 1 and 1 are asked for.

    Without this each process that was started would take itself for the only one, and write the same run.
    """
    if devices < 1 or nodes < 1:
        raise TenfoldError(f"--devices and --nodes are at least 1, not {devices} and {nodes}")
    if _is_torchrun():
        starter, per_node, everywhere = "torchrun", "LOCAL_WORLD_SIZE", "WORLD_SIZE"
    elif _is_srun():
        starter, per_node, everywhere = "srun", "SLURM_NTASKS_PER_NODE", "SLURM_NTASKS"
        if per_node not in os.environ:
            raise TenfoldError("srun started several processes; say how many on each node: --ntasks-per-node")
    else:
        return devices, nodes
    on_each, total = int(os.environ[per_node]), int(os.environ[everywhere])
    if total % on_each:
        raise TenfoldError(f"{starter} started {total} processes, which are not {on_each} on each node")
    started = on_each, total // on_each
    if (devices, nodes) not in ((1, 1), started):
        raise TenfoldError(
            f"{starter} started {started[0]} processes on {started[1]} nodes, but --devices {devices} and "
            f"--nodes {nodes} were asked for; leave them out"
        )
    return started


def _is_torchrun() -> bool:
    return torch.distributed.is_torchelastic_launched()


def _is_srun() -> bool:
    """Whether this is one of several processes of an ``srun``.

    A shell inside an allocation and a batch script have SLURM's variables too, but are a single process: Fabric knows
    the shell by its job name, and only ``srun`` numbers its steps.
    """
    several = int(os.environ.get("SLURM_NTASKS", "1")) > 1
    in_shell = os.environ.get("SLURM_JOB_NAME") in ("bash", "interactive")
    return several and not in_shell and {"SLURM_STEP_ID", "SLURM_PROCID"} <= os.environ.keys()


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
    if precision == "16-mixed" and device == "cpu":
        raise TenfoldError("fp16 needs a GPU; use --precision auto, or bf16-mixed, on the CPU")
    if precision != "auto":
        return precision
    if device != "cuda":
        return "32-true"
    return "bf16-mixed" if torch.cuda.is_bf16_supported(including_emulation=False) else "16-mixed"


def channels_last(module: Module, device: torch.device) -> Module:
    """Convolution weights in NHWC on CUDA, where tensor cores want them; unchanged elsewhere."""
    return module.to(memory_format=torch.channels_last) if device.type == "cuda" else module  # type: ignore[call-overload]


def fuses_clipped(fabric: Fabric) -> bool:
    """Whether an optimiser can be fused whose gradients are clipped: not where fp16 losses are scaled.

    A fused optimiser divides the gradients by the scale itself, too late for clipping.
    """
    return getattr(fabric.strategy.precision, "scaler", None) is None


def maybe_compile(module: Module, enabled: bool) -> Module:
    """``torch.compile`` where ``enabled``, else the module itself."""
    return torch.compile(module) if enabled else module  # type: ignore[return-value]
