"""Batch norms folded into their neighbours, for inference.

Exact are: the stem's into its convolution, that of every depthwise convolution into it, and the one before an
expansion into the expansion. A batch norm before attention stays: behind it maps are filled up to whole windows with
zeros, which a shift folded into queries, keys and expansion would move. The paper's networks have none there.
"""

from __future__ import annotations

from copy import deepcopy
from itertools import pairwise
from typing import TypeVar

import torch
from timm.models import FeatureDictNet
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from tenfold.emo.blocks import DepthwiseConv, GroupedLinear, InvertedResidualMobileBlock

NetworkT = TypeVar("NetworkT", bound=nn.Module)


def reparameterize(model: NetworkT) -> NetworkT:
    """A copy without batch norms, in eval mode and otherwise of the same interface.

    Its outputs are those of the model in eval mode to rounding. Its weights have other names than checkpoints.

    Args:
        model: EMO, its ``features_only`` form, or any network around them; stays as it is.
    """
    folded = deepcopy(model).eval()
    for module in folded.modules():
        if isinstance(module, nn.Sequential | FeatureDictNet | DepthwiseConv):  # children run in their order
            fold_into_convolutions(module)
        if isinstance(module, InvertedResidualMobileBlock) and module.attention is None:
            fold_into_expansion(module)
    return folded


def fold_into_convolutions(module: nn.Module) -> None:
    """Take batch norms into the convolutions right before them."""
    for (name, conv), (name_of_norm, norm) in pairwise(list(module.named_children())):
        if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
            setattr(module, name, fuse_conv_bn_eval(conv, norm))
            setattr(module, name_of_norm, nn.Identity())


@torch.no_grad()
def fold_into_expansion(block: InvertedResidualMobileBlock) -> None:
    """Take the batch norm before the expansion W of a block without attention into it.

    With the norm s x + t the expansion is (W s) x + (W t + b).
    """
    norm = block.norm
    if not isinstance(norm, nn.BatchNorm2d) or not isinstance(block.expand, nn.Sequential):
        return
    assert norm.running_mean is not None and norm.running_var is not None
    linear = block.expand[0]
    assert isinstance(linear, nn.Linear | GroupedLinear)
    scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
    shift = norm.bias - norm.running_mean * scale
    linear.bias.add_(linear.weight @ shift)
    linear.weight.mul_(scale)
    block.norm = nn.Identity()
