"""Parameter groups and the learning rate, as MAE's and BEiT's code has them."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from torch import nn

from tenfold.shared.logging import TenfoldError

UNDECAYED_TOKENS = ("cls_token", "pos_embed", "dist_token")


def cosine_lr(epoch: float, *, lr: float, min_lr: float, warmup_epochs: float, epochs: float) -> float:
    """The rate at a fractional epoch: a line from 0, then half a cosine.

    Args:
        epoch: number of the epoch plus the share of it that is done.
        lr: peak.
        min_lr: where the cosine ends.
        warmup_epochs: length of the line.
        epochs: in all.
    """
    if epoch < warmup_epochs:
        return lr * epoch / warmup_epochs
    done = (epoch - warmup_epochs) / (epochs - warmup_epochs)
    return min_lr + (lr - min_lr) * 0.5 * (1 + math.cos(math.pi * done))


def pretrain_decay_groups(model: nn.Module) -> tuple[list[str], list[str]]:
    """Names of parameters without weight decay (one dimension, and biases), and of those with it.

    CLS is decayed in pre-training. What does not learn is in neither.
    """
    without: list[str] = []
    with_decay: list[str] = []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            (without if parameter.ndim == 1 or name.endswith(".bias") else with_decay).append(name)
    return without, with_decay


def layer_decay_groups(
    model: nn.Module, weight_decay: float, layer_decay: float
) -> dict[str, tuple[float, float]]:
    """Name of each parameter to the scale of its rate and its weight decay, for fine-tuning.

    Tokens, positions and patch embedding are layer 0, block i (from 0) is layer i + 1, everything else the last; layer
    l of n has the scale layer_decay^(n - l). Nothing of one dimension is decayed, nor are tokens and positions.

    Args:
        model: with ``blocks``.
        weight_decay: of the others.
        layer_decay: from above 0 to 1.
    """
    if not 0 < layer_decay <= 1:
        raise TenfoldError(f"layer decay is from above 0 to 1, not {layer_decay}")
    depth = len(model.blocks)  # type: ignore[arg-type]
    return {
        name: (
            layer_decay ** (depth + 1 - layer_of(name, depth)),
            0.0 if parameter.ndim == 1 or name in UNDECAYED_TOKENS else weight_decay,
        )
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }


def layer_of(name: str, depth: int) -> int:
    """Layer of a parameter: 0 before the blocks, i + 1 in block i, depth + 1 after them."""
    if name in ("cls_token", "pos_embed") or name.startswith("patch_embed"):
        return 0
    if name.startswith("blocks."):
        return int(name.split(".")[1]) + 1
    return depth + 1


def optimizer_groups(
    model: nn.Module, settings: Callable[[str], tuple[float, float]]
) -> list[dict[str, Any]]:
    """Groups for AdamW, one for each pair of ``lr_scale`` and ``weight_decay``.

    Args:
        model: whose parameters that learn are taken.
        settings: of a parameter's name, the scale of its rate and its weight decay.
    """
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups.setdefault(settings(name), []).append(parameter)
    return [
        {"params": parameters, "lr_scale": scale, "weight_decay": decay}
        for (scale, decay), parameters in groups.items()
    ]
