"""Networks by name: EMO and its variants, the comparisons on digits, and every model of timm."""

from __future__ import annotations

import math
from dataclasses import replace

import timm
from torch import nn

from tenfold.emo.baselines import DeiTWithMobileBlocks, InvertedResidualNetwork, SmallViT
from tenfold.emo.config import ModelConfig
from tenfold.emo.model import ARCHITECTURES, EMO, Architecture
from tenfold.shared.logging import TenfoldError

DIGITS = Architecture(
    depths=(2, 2, 2, 2),
    widths=(12, 16, 24, 32),
    expansions=(2.0, 2.0, 2.5, 3.0),
    head_widths=(12, 8, 8, 8),
    drop_path=0.0,
    stem=8,
    kernels=(3, 3, 3, 3),
    attention=(False, True, True, False),
    window_sizes=(4, 4, 4, 4),
)
"""33 thousand parameters, for images of 32 pixels; attention on maps of 4 and 2 pixels a side."""
NETWORKS = {**ARCHITECTURES, "emo_digits": DIGITS}
EXPANSION_OF_EQUAL_SIZE = 3.85
"""With which inverted residuals in the same stages have as many parameters."""


def make_network(config: ModelConfig, num_classes: int, image_size: int) -> nn.Module:
    """A classifier with random weights: [B, 3, H, W] to [B, num_classes].

    Raises:
        TenfoldError: there is no such network, or an option of EMO is given to another one.
    """
    if config.name in NETWORKS:
        return EMO(architecture_of(config), num_classes, drop_path_rate=config.drop_path)
    plain = ModelConfig(config.name, config.drop_path)
    if config != plain:
        raise TenfoldError(f"attention, convolutions and windows are options of EMO, not of {config.name}")
    if config.name == "mobilenetv2_digits":
        return InvertedResidualNetwork(
            DIGITS.depths, DIGITS.widths, DIGITS.stem, EXPANSION_OF_EQUAL_SIZE, num_classes
        )
    if config.name == "vit_digits":
        return SmallViT(image_size, patch=4, width=36, depth=3, heads=4, mlp_ratio=2, num_classes=num_classes)
    if config.name == "deit_tiny_irmb":
        return DeiTWithMobileBlocks(num_classes, image_size, drop_path=config.drop_path or 0.0)
    if not timm.is_model(config.name):
        known = ", ".join((*NETWORKS, "mobilenetv2_digits", "vit_digits", "deit_tiny_irmb"))
        raise TenfoldError(f"there is no network {config.name}: take one of {known}, or a model of timm")
    network: nn.Module = timm.create_model(
        config.name, num_classes=num_classes, drop_path_rate=config.drop_path or 0.0
    )
    return network


def architecture_of(config: ModelConfig) -> Architecture:
    """The architecture of one of EMO's networks with a configuration's changes."""
    base = NETWORKS[config.name]
    stages = len(base.depths)
    return replace(
        base,
        attention=base.attention if config.attention else (False,) * stages,
        kernels=base.kernels if config.depthwise else (0,) * stages,
        windows=config.windows,
        window_sizes=base.window_sizes if config.window_size is None else (config.window_size,) * stages,
        mask_padding=config.mask_padding,
        attention_first=config.attention_first,
        grouped_expansion=config.grouped_expansion,
    )


def parameter_count(network: nn.Module) -> float:
    """In millions."""
    return math.fsum(parameter.numel() for parameter in network.parameters()) / 1e6
