"""The authors' released weights in our networks.

Their file holds ``{"epoch", "accuracy", "model"}``; the state dict below ``model`` names its parts as DGL's
examples did. The mapping is strict: a missing, unexpected or wrongly shaped key is an error that names it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from tenfold.gfkd.models import GraphClassifier
from tenfold.shared.logging import TenfoldError
from tenfold.shared.runs import load_checkpoint

_OFFICIAL_TO_OURS = (
    (r"gcnlayers\.(\d+)\.(weight|bias)", r"layers.\1.\2"),
    (r"norms\.(\d+)\.(\w+)", r"layers.\1.norm.\2"),
    (r"ginlayers\.(\d+)\.eps", r"layers.\1.eps"),
    (r"ginlayers\.(\d+)\.apply_func\.mlp\.linears\.0\.(weight|bias)", r"layers.\1.hidden.\2"),
    (r"ginlayers\.(\d+)\.apply_func\.mlp\.linears\.1\.(weight|bias)", r"layers.\1.output.\2"),
    (r"ginlayers\.(\d+)\.apply_func\.mlp\.norm_list\.0\.(\w+)", r"layers.\1.hidden_norm.\2"),
    (r"ginlayers\.(\d+)\.apply_func\.norm\.(\w+)", r"layers.\1.norm.\2"),
    (r"linears_prediction\.(weight|bias)", r"classifier.\1"),
)


def convert_official_key(key: str) -> str:
    """The name of an official parameter in :class:`~tenfold.gfkd.models.GraphClassifier`."""
    for official, ours in _OFFICIAL_TO_OURS:
        if match := re.fullmatch(official, key):
            return match.expand(ours)
    raise TenfoldError(f"the checkpoint's key {key!r} is not one of a GFKD network")


def load_official_state_dict(model: GraphClassifier, state_dict: Mapping[str, Tensor]) -> None:
    """Load a state dict of the authors' GCN or GIN classes into ``model``, strictly.

    Raises:
        TenfoldError: a key is unknown, missing or unexpected for this model, or has another shape.
    """
    converted = {convert_official_key(key): value for key, value in state_dict.items()}
    expected = model.state_dict()
    problems = [f"missing {key}" for key in expected if key not in converted]
    problems += [f"unexpected {key}" for key in converted if key not in expected]
    problems += [
        f"{key} has shape {tuple(value.shape)} instead of {tuple(expected[key].shape)}"
        for key, value in converted.items()
        if key in expected and value.shape != expected[key].shape
    ]
    if problems:
        raise TenfoldError(f"the checkpoint does not fit this model: {'; '.join(problems)}")
    model.load_state_dict(converted)


def load_official_checkpoint(model: GraphClassifier, path: Path) -> dict[str, float]:
    """Load a released ``.pth`` file into ``model``; returns the epoch and accuracy (percent) it was saved with."""
    content = load_checkpoint(path)
    if not isinstance(content.get("model"), Mapping):
        raise TenfoldError(f"{path} is not a released GFKD checkpoint: it has no 'model'")
    load_official_state_dict(model, {k: torch.as_tensor(v) for k, v in content["model"].items()})
    return {"epoch": float(content["epoch"]), "accuracy": 100 * float(content["accuracy"])}
