"""Randomness that can be repeated, saved and restored."""

from __future__ import annotations

import os
import random
from typing import Any

import numpy as np
import torch

from tenfold.shared.logging import TenfoldError


def seed_everything(seed: int, deterministic: bool = False) -> None:
    """Seed Python, NumPy and torch (all devices).

    Args:
        seed: a non-negative integer below 2**32.
        deterministic: also ask torch for deterministic kernels, at some cost in speed on CUDA; an operation
            that has none raises when it is called.

    Raises:
        TenfoldError: the seed is out of range.
    """
    if not 0 <= seed < 2**32:
        raise TenfoldError(f"a seed is a whole number from 0 to {2**32 - 1}, not {seed}")
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.backends.cudnn.benchmark = False
    torch.use_deterministic_algorithms(deterministic)


def make_generator(seed: int, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator of its own for one purpose (a data loader, a sampler, one generation run)."""
    return torch.Generator(device=device).manual_seed(seed)


def seed_worker(worker_id: int) -> None:  # noqa: ARG001
    """``worker_init_fn`` of a DataLoader: NumPy and Python follow the seed that torch gave this worker."""
    seed = torch.initial_seed() % 2**32
    np.random.seed(seed)
    random.seed(seed)


def epoch_order(size: int, seed: int, epoch: int) -> torch.Tensor:
    """A permutation of 0..size-1 that depends on its arguments alone, so an interrupted epoch can go on."""
    return torch.randperm(size, generator=make_generator(seed * 1_000_003 + epoch))


def rng_state() -> dict[str, Any]:
    """The state of the global generators of Python, NumPy and torch (CPU and CUDA), as plain values and tensors.

    It can be stored in a checkpoint that is read back with ``torch.load(..., weights_only=True)``.
    """
    version, internal, gauss = random.getstate()
    _, keys, position, has_gauss, cached_gauss = np.random.get_state()
    return {
        "python": {"version": version, "internal": torch.tensor(internal, dtype=torch.int64), "gauss": gauss},
        "numpy": {
            "keys": torch.from_numpy(np.asarray(keys, dtype=np.int64)),
            "position": int(position),
            "has_gauss": int(has_gauss),
            "cached_gauss": float(cached_gauss),
        },
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def restore_rng_state(state: dict[str, Any]) -> None:
    """Put back what :func:`rng_state` returned."""
    python, numpy = state["python"], state["numpy"]
    random.setstate((python["version"], tuple(python["internal"].tolist()), python["gauss"]))
    keys = numpy["keys"].numpy().astype(np.uint32)
    np.random.set_state(("MT19937", keys, numpy["position"], numpy["has_gauss"], numpy["cached_gauss"]))
    torch.set_rng_state(state["torch"])
    if torch.cuda.is_available():
        for device in range(min(len(state["cuda"]), torch.cuda.device_count())):  # it may be another machine
            torch.cuda.set_rng_state(state["cuda"][device], device)
