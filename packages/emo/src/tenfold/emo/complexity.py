"""Parameters and multiply-accumulates, counted as the authors count them.

Their convention is fvcore's: multiply-accumulates of convolutions, linear layers and matrix products; two for each
value of a batch norm at inference and five for each of a layer norm; nothing for activations, softmax, pooling, sums.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from tenfold.emo.blocks import GroupedLinear, InvertedResidualMobileBlock, WindowAttention
from tenfold.emo.model import EMO
from tenfold.emo.windows import pad_to_windows, window_of

_PER_VALUE = {"batch_norm": 2, "layer_norm": 5}


def count_parameters(model: nn.Module) -> int:
    """All parameters."""
    return sum(parameter.numel() for parameter in model.parameters())


def count_flops(model: nn.Module, size: int | tuple[int, int] = 224, in_chans: int = 3) -> dict[str, int]:
    """Multiply-accumulates of one image at inference.

    1x1 convolutions, which are linear layers in our blocks, count as convolutions. Attention blocks count on the map
    that is padded to whole windows, their expansion too, as the authors compute it (ours leaves the padding out).

    Args:
        model: EMO, or any network of convolutions, linear layers, norms and our attention.
        size: side of the image, or height and width.
        in_chans: its channels.

    Returns:
        ``total``, then ``conv``, ``matmul``, ``linear``, ``batch_norm``, ``layer_norm``.
    """
    height, width = (size, size) if isinstance(size, int) else size
    was_training = model.training
    model.eval()
    like = next(model.parameters())
    with _counting(model) as found, torch.no_grad():
        model(torch.zeros(1, in_chans, height, width, dtype=like.dtype, device=like.device))
    model.train(was_training)
    kinds = ("conv", "matmul", "linear", "batch_norm", "layer_norm")
    return {"total": sum(found.values())} | {kind: found[kind] for kind in kinds}


def count_flops_by_layer(model: EMO, size: int | tuple[int, int] = 224) -> dict[str, int]:
    """Multiply-accumulates of stem, every block, norm and head of EMO, which add up to the total."""
    names = {module: name for name, module in model.named_modules()}
    parts: list[nn.Module] = [
        model.stem,
        *(block for stage in model.stages for block in stage.children()),
        model.norm,
        model.head,
    ]
    found: dict[str, int] = {}
    like = next(model.parameters())
    height, width = (size, size) if isinstance(size, int) else size
    was_training = model.training
    model.eval()
    channels = model.stem.conv.in_channels
    for part in parts:
        with _counting(part) as counted, torch.no_grad():
            model(torch.zeros(1, channels, height, width, dtype=like.dtype, device=like.device))
        found[names[part]] = sum(counted.values())
    model.train(was_training)
    return found


@contextmanager
def _counting(model: nn.Module) -> Iterator[Counter[str]]:
    """Count what every layer does while the context lasts."""
    found: Counter[str] = Counter()
    inside_blocks = {
        layer
        for block in model.modules()
        if isinstance(block, InvertedResidualMobileBlock)
        for layer in block.modules()
    }
    padded = {
        block.expand[0]: block.attention
        for block in model.modules()
        if isinstance(block, InvertedResidualMobileBlock)
        and block.attention is not None
        and isinstance(block.expand, nn.Sequential)
    }

    def count(layer: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        if isinstance(layer, nn.Conv2d):
            found["conv"] += output.numel() * layer.weight[0].numel()
        elif isinstance(layer, (nn.Linear, GroupedLinear)):
            kind = "conv" if layer in inside_blocks else "linear"
            tokens = output.shape[:-1].numel()
            if layer in padded:
                attention = padded[layer]
                window = window_of(inputs[0].shape[1], inputs[0].shape[2], attention.window_size)
                tokens = pad_to_windows(inputs[0], window).shape[:-1].numel()
            found[kind] += tokens * layer.weight.numel()
        elif isinstance(layer, nn.BatchNorm2d):
            found["batch_norm"] += _PER_VALUE["batch_norm"] * output.numel()
        elif isinstance(layer, nn.LayerNorm):
            found["layer_norm"] += _PER_VALUE["layer_norm"] * output.numel()
        elif isinstance(layer, WindowAttention):
            x, values = inputs
            window = window_of(x.shape[1], x.shape[2], layer.window_size)
            tokens = pad_to_windows(x[..., :1], window).numel()
            found["matmul"] += tokens * window[0] * window[1] * (x.shape[-1] + values.shape[-1])

    hooks = [layer.register_forward_hook(count) for layer in model.modules()]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()
