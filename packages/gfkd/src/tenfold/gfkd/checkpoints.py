"""Networks and fake graphs from files: ours, and the authors' released ones.

Their file holds ``{"epoch", "accuracy", "model"}``; the state dict below ``model`` names its parts as DGL's
examples did. The mapping is strict: a missing, unexpected or wrongly shaped key is an error that names it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from tenfold.gfkd.data import parse_gin_text, with_loops
from tenfold.gfkd.graphs import GraphSet, graph_set
from tenfold.gfkd.models import GraphClassifier, build_model
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
    load_official_state_dict(model, content["model"])
    return {"epoch": float(content["epoch"]), "accuracy": 100 * float(content["accuracy"])}


def load_model(path: Path, official_model: str = "") -> tuple[GraphClassifier, Tensor | None]:
    """A network in eval mode, from ``model.pt`` of a run or from a released ``.pth`` file.

    Args:
        path: the file.
        official_model: architecture of a released file, which does not name it; its input and output sizes are
            read off its weights.

    Returns:
        The network, and the in-degrees behind its feature columns where it reads degrees.
    """
    content = load_checkpoint(path)
    if isinstance(content.get("model"), str):
        try:
            model = build_model(content["model"], content["input_dim"], content["output_dim"])
            model.load_state_dict(content["state_dict"])
        except (KeyError, RuntimeError) as error:
            raise TenfoldError(f"{path} is not a network of ours: {str(error).splitlines()[0]}") from error
        return model.eval(), content.get("known_degrees")
    if not isinstance(content.get("model"), Mapping) or "linears_prediction.weight" not in content["model"]:
        raise TenfoldError(f"{path} holds neither a network of ours nor a released GFKD checkpoint")
    weights = content["model"]
    first = weights.get("gcnlayers.0.weight")  # [in, out], where a linear layer has [out, in]
    input_dim = (
        first.shape[0]
        if first is not None
        else weights["ginlayers.0.apply_func.mlp.linears.0.weight"].shape[1]
    )
    model = build_model(official_model, input_dim, weights["linears_prediction.weight"].shape[0])
    load_official_state_dict(model, weights)
    return model.eval(), None


def read_fake_graphs(
    path: Path, num_features: int, num_classes: int, official_loops: bool = False
) -> GraphSet:
    """Fake graphs from ``graphs.pt`` of a run, or from the text format of the authors' released graphs.

    Args:
        path: the file.
        num_features: feature columns; the tags in the text are column numbers.
        num_classes: graph classes.
        official_loops: as the authors' reader does, leave the self loop out for nodes without outgoing edges.

    Raises:
        TenfoldError: unreadable, or a column or class out of range.
    """
    if path.suffix == ".pt":
        try:
            graphs = GraphSet(**load_checkpoint(path))
        except TypeError as error:
            raise TenfoldError(f"{path} does not hold graphs of ours ({error})") from error
        if (graphs.num_features, graphs.num_classes) != (num_features, num_classes):
            raise TenfoldError(
                f"the graphs in {path} have {graphs.num_features} features and {graphs.num_classes} classes "
                f"instead of {num_features} and {num_classes}; they belong to another data set"
            )
        return graphs
    raw = parse_gin_text(path.read_text(encoding="utf-8"), path.name)
    if any(int(g.tags.max()) >= num_features or not 0 <= g.label < num_classes for g in raw):
        raise TenfoldError(f"{path} has a feature column or class beyond {num_features} and {num_classes}")
    packed = []
    for graph in raw:
        edges = with_loops(graph)
        if official_loops:
            silent = torch.bincount(graph.edges[0], minlength=len(graph.tags)) == 0
            edges = edges[:, ~((edges[0] == edges[1]) & silent[edges[0]])]
        packed.append((len(graph.tags), edges, graph.tags, graph.label))
    return graph_set(packed, num_features, num_classes)
