"""Networks and fake graphs from files: ours, and the authors' released ones.

Their file holds ``{"epoch", "accuracy", "model"}``; the state dict below ``model`` names its parts as DGL's
examples did. The mapping is strict: a missing, unexpected or wrongly shaped key is an error that names it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from tenfold.gfkd.data import parse_gin_text, read_text, with_loops
from tenfold.gfkd.graphs import GraphSet, graph_set
from tenfold.gfkd.models import GCNLayer, GINLayer, GraphClassifier, build_model
from tenfold.shared.logging import TenfoldError
from tenfold.shared.runs import load_checkpoint

_OFFICIAL_NAMES = {
    GCNLayer: (
        (r"layers\.(\d+)\.(weight|bias)", r"gcnlayers.\1.\2"),
        (r"layers\.(\d+)\.norm\.(\w+)", r"norms.\1.\2"),
    ),
    GINLayer: (
        (r"layers\.(\d+)\.eps", r"ginlayers.\1.eps"),
        (r"layers\.(\d+)\.hidden\.(weight|bias)", r"ginlayers.\1.apply_func.mlp.linears.0.\2"),
        (r"layers\.(\d+)\.output\.(weight|bias)", r"ginlayers.\1.apply_func.mlp.linears.1.\2"),
        (r"layers\.(\d+)\.hidden_norm\.(\w+)", r"ginlayers.\1.apply_func.mlp.norm_list.0.\2"),
        (r"layers\.(\d+)\.norm\.(\w+)", r"ginlayers.\1.apply_func.norm.\2"),
    ),
}


def official_key(model: GraphClassifier, key: str) -> str:
    """The name of one of the model's parameters or buffers in the authors' state dict."""
    for ours, official in _OFFICIAL_NAMES[type(model.layers[0])]:
        if match := re.fullmatch(ours, key):
            return match.expand(official)
    return key.replace("classifier.", "linears_prediction.")


def load_official_state_dict(model: GraphClassifier, state_dict: Mapping[str, Tensor]) -> None:
    """Load a state dict of the authors' GCN or GIN classes into ``model``, strictly.

    Raises:
        TenfoldError: a key is missing or unexpected for this model, or has another shape; all are named.
    """
    expected = {official_key(model, key): (key, value) for key, value in model.state_dict().items()}
    problems = [f"missing {key}" for key in expected if key not in state_dict]
    problems += [f"unexpected {key}" for key in state_dict if key not in expected]
    problems += [
        f"{key} has shape {tuple(state_dict[key].shape)} instead of {tuple(own.shape)}"
        for key, (_, own) in expected.items()
        if key in state_dict and state_dict[key].shape != own.shape
    ]
    if problems:
        raise TenfoldError(f"the checkpoint does not fit this model: {'; '.join(problems)}")
    model.load_state_dict({key: state_dict[official] for official, (key, _) in expected.items()})


def load_official_checkpoint(model: GraphClassifier, path: Path) -> dict[str, float]:
    """Load a released ``.pth`` file into ``model``; returns the epoch and accuracy (percent) it was saved with."""
    content = load_checkpoint(path)
    if missing := {"model", "epoch", "accuracy"} - content.keys():
        raise TenfoldError(
            f"{path} is not a released GFKD checkpoint: it has no {', '.join(sorted(missing))}"
        )
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
    weights = content.get("model")
    if not isinstance(weights, Mapping):
        raise TenfoldError(f"{path} holds neither a network of ours nor a released GFKD checkpoint")
    try:
        output_dim = weights["linears_prediction.weight"].shape[0]
        if "gcnlayers.0.weight" in weights:  # [in, out], where a linear layer has [out, in]
            input_dim = weights["gcnlayers.0.weight"].shape[0]
        else:
            input_dim = weights["ginlayers.0.apply_func.mlp.linears.0.weight"].shape[1]
    except KeyError as error:
        raise TenfoldError(f"{path} is not a released GFKD checkpoint: missing {error}") from error
    model = build_model(official_model, input_dim, output_dim)
    load_official_state_dict(model, weights)
    return model.eval(), None


def read_graphs(path: Path) -> GraphSet:
    """The graphs in ``graphs.pt`` of a run.

    Raises:
        TenfoldError: missing, unreadable, or something else.
    """
    try:
        return GraphSet(**load_checkpoint(path))
    except TypeError as error:
        raise TenfoldError(f"{path} does not hold graphs of ours ({error})") from error


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
        graphs = read_graphs(path)
        if (graphs.num_features, graphs.num_classes) != (num_features, num_classes):
            raise TenfoldError(
                f"the graphs in {path} have {graphs.num_features} features and {graphs.num_classes} classes "
                f"instead of {num_features} and {num_classes}; they belong to another data set"
            )
        return graphs
    text = read_text(path).replace("[]", "")  # what the authors' export writes where a node has no neighbours
    raw = parse_gin_text(text, path.name)
    if any(
        not (int(g.tags.min()) >= 0 and int(g.tags.max()) < num_features and 0 <= g.label < num_classes)
        for g in raw
    ):
        raise TenfoldError(
            f"{path} has a feature column or class outside 0..{num_features - 1} and 0..{num_classes - 1}; "
            "it belongs to another data set"
        )
    packed = []
    for graph in raw:
        edges = with_loops(replace(graph, edges=graph.edges[:, graph.edges[0] != graph.edges[1]]))
        if official_loops:
            silent = torch.bincount(graph.edges[0], minlength=len(graph.tags)) == 0
            edges = edges[:, ~((edges[0] == edges[1]) & silent[edges[0]])]
        packed.append((len(graph.tags), edges, graph.tags, graph.label))
    return graph_set(packed, num_features, num_classes)
