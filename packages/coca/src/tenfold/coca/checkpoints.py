"""Weights in the names of the authors' code and of mammoth."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from tenfold.coca.networks import ContinualNetwork
from tenfold.shared.logging import TenfoldError

_RENAMED = {
    "linear": "classifier",
    "classifier": "classifier",
    "eq_head": "pretext_head",
    "inv_head": "projection_head",
}


def official_key(key: str) -> str | None:
    """The name of a tensor in our network; None for an alias that the authors' module registers besides.

    ``linear`` is the classifier, ``eq_head`` the pretext head, ``inv_head`` the projection head; all else is the
    backbone. ``_features.*`` repeats the backbone.
    """
    first, _, rest = key.partition(".")
    if first == "_features":
        return None
    if first in _RENAMED:
        return f"{_RENAMED[first]}.{rest}"
    return f"backbone.{key}"


def load_official_state_dict(model: ContinualNetwork, state_dict: Mapping[str, Any]) -> None:
    """Load weights in the authors' or mammoth's names into a network of ours.

    Where ``linear.weight`` and its alias ``classifier.weight`` are both there, they must agree. A state dict without
    heads (mammoth's) leaves the network's heads as they are.

    Raises:
        TenfoldError: a tensor is missing, of another shape, or has no place here; it is named.
    """
    renamed: dict[str, Tensor] = {}
    for key, value in state_dict.items():
        name = official_key(re.sub(r"^module\.", "", key))
        if name is None:
            continue
        if name in renamed and not torch.equal(renamed[name], value):
            raise TenfoldError(f"the weights hold two different tensors for {name}; {key} is one of them")
        renamed[name] = value
    own = model.state_dict()
    heads = ("pretext_head.", "projection_head.")
    has_heads = any(name.startswith(heads) for name in renamed)
    wanted = {name for name in own if has_heads or not name.startswith(heads)}
    for problem, names in (
        ("lack", wanted - renamed.keys()),
        ("hold an unknown", renamed.keys() - own.keys()),
    ):
        if names:
            raise TenfoldError(
                f"the weights {problem} {', '.join(sorted(names))}; build the network to match"
            )
    for name, value in renamed.items():
        if own[name].shape != value.shape:
            raise TenfoldError(
                f"{name} is {list(value.shape)} in the weights and {list(own[name].shape)} in the network; build the "
                "network with the same sizes"
            )
    model.load_state_dict(renamed, strict=has_heads)
