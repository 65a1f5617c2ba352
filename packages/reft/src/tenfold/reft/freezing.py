"""Which weights a stage trains, and in which groups of the optimiser."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from tenfold.reft.config import Freeze, TrainConfig
from tenfold.reft.model import RefT

NORMS = (nn.LayerNorm, nn.GroupNorm, nn.modules.batchnorm._BatchNorm)
BACKBONE = "model.pixel_level_module.encoder."
UNUSED = BACKBONE + "swin.layernorm."
"""A norm that the library builds and nothing looks at; several processes would wait for its gradient."""
INCREMENTAL = (
    "model.pixel_level_module.decoder.input_projections.",
    "feature_reference.",
    "query_reference.",
)
"""What iFSIS trains besides the novel rows of the classifier."""
CLASSIFIER = "class_predictor."


def freeze(network: RefT, which: Freeze, num_base: int = 0) -> list[RemovableHandle]:
    """Say what is trained.

    Args:
        network: in place.
        which: stays as it is.
        num_base: base classes, whose rows of the classifier iFSIS keeps, as that of "no object".

    Returns:
        Hooks that keep these rows, to be removed afterwards.
    """
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(
            {
                "none": not name.startswith(UNUSED),
                "backbone": not name.startswith(BACKBONE),
                "classifier": name.startswith(CLASSIFIER),
                "incremental": name.startswith((*INCREMENTAL, CLASSIFIER)),
            }[which]
        )
    hooks = []
    if which == "incremental":
        for parameter in network.class_predictor.parameters():
            novel = torch.ones(len(parameter), dtype=torch.bool, device=parameter.device)
            novel[:num_base], novel[-1] = False, False
            hooks.append(parameter.register_hook(_OnlyRows(novel)))
    return hooks


class _OnlyRows:
    """Keeps the gradients of some rows."""

    def __init__(self, rows: torch.Tensor) -> None:
        self.rows = rows

    def __call__(self, gradient: torch.Tensor) -> torch.Tensor:
        rows = self.rows.to(gradient.device).view(-1, *[1] * (gradient.ndim - 1))
        return gradient * rows


def set_mode(network: RefT, which: Freeze) -> None:
    """Training mode; a backbone that is not trained stays as at inference, without stochastic depth."""
    network.train()
    if which != "none":
        network.model.pixel_level_module.encoder.eval()


def parameter_groups(network: RefT, recipe: TrainConfig) -> list[dict[str, Any]]:
    """Groups for AdamW: no decay for norms, embeddings and position biases; a lower rate for the backbone.

    Rows of the classifier that iFSIS keeps would decay though their gradients are zero, so none of it decays there.
    """
    without: set[str] = set()
    for prefix, module in network.named_modules():
        for name, _ in module.named_parameters(recurse=False):
            undecayed = isinstance(module, (*NORMS, nn.Embedding))
            if undecayed or name in ("relative_position_bias_table", "background"):
                without.add(f"{prefix}.{name}")
    groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
    for name, parameter in network.named_parameters():
        if parameter.requires_grad:
            kept = recipe.freeze == "incremental" and name.startswith(CLASSIFIER)
            factor = 1.0
            if name.startswith(BACKBONE):
                factor = recipe.backbone_lr_factor
            elif name.startswith(CLASSIFIER):
                factor = recipe.classifier_lr_factor
            groups.setdefault((factor, name not in without and not kept), []).append(parameter)
    return [
        {
            "params": parameters,
            "lr": recipe.lr * factor,
            "weight_decay": recipe.weight_decay if decays else 0.0,
        }
        for (factor, decays), parameters in groups.items()
    ]
