"""Weights in the authors' key scheme, and networks of our runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from tenfold.reliant.config import DistillationConfig, SamplingConfig, TeacherConfig
from tenfold.reliant.graphs import FairGraph
from tenfold.reliant.label_propagation import LabelPropagationStudent
from tenfold.reliant.node_output import NodeOutput
from tenfold.reliant.proxies import BiasProxies, student_input_dim
from tenfold.reliant.teachers import build_teacher
from tenfold.reliant.training import Distilled, Trained, build_student
from tenfold.shared.logging import TenfoldError
from tenfold.shared.runs import load_checkpoint

_LABEL_PROPAGATION_KEYS = {
    "alpha": "alpha",
    "balance": "plp_layer.lr_alpha",
    "attention": "plp_layer.attn_l",
    "node_scores": "plp_layer.fc_emb",
}


def official_key(model: nn.Module, key: str) -> str:
    """The authors' name of a parameter of ours; they differ in label propagation only."""
    if not isinstance(model, LabelPropagationStudent):
        return key
    return _LABEL_PROPAGATION_KEYS.get(key, f"plp_layer.{key}")


def load_official_state_dict(model: nn.Module, state_dict: Mapping[str, Tensor]) -> None:
    """Load a state dict of the authors' classes into ``model``, strictly.

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


def teacher_artifact(config: TeacherConfig, graph: FairGraph, trained: Trained) -> dict[str, Any]:
    """What ``model.pt`` of a teacher's run holds: settings, weights, and the output on all nodes."""
    return {
        "kind": "teacher",
        "dataset": graph.name,
        "sizes": [graph.num_nodes, graph.num_features, graph.num_classes],
        "config": asdict(config),
        "state_dict": _on_cpu(trained.network.state_dict()),
        "logits": trained.output.logits.cpu(),
        "embedding": None if trained.output.embedding is None else trained.output.embedding.cpu(),
    }


def student_artifact(
    config: DistillationConfig, graph: FairGraph, distilled: Distilled, teacher: NodeOutput | None
) -> dict[str, Any]:
    """What ``model.pt`` of a student's run holds: settings, weights, and the proxies."""
    embedding = None if teacher is None else teacher.embedding
    return {
        "kind": "student",
        "dataset": graph.name,
        "sizes": [graph.num_nodes, graph.num_features, graph.num_classes],
        "config": asdict(config),
        "embedding_dim": None if embedding is None else embedding.shape[1],
        "state_dict": _on_cpu(distilled.network.state_dict()),
        "proxies": distilled.proxies.values.detach().cpu(),
    }


def teacher_output(path: Path, graph: FairGraph) -> NodeOutput:
    """A teacher's output on all nodes, from ``model.pt`` of its run.

    Raises:
        TenfoldError: unreadable, not a teacher's, or of another graph.
    """
    content = _content(path, graph)
    if content["kind"] != "teacher":
        raise TenfoldError(f"{path} holds a student; give the model.pt of a teacher's run")
    return NodeOutput(content["logits"], content["embedding"])


def load_network(path: Path, graph: FairGraph) -> tuple[nn.Module, BiasProxies | None]:
    """A network in eval mode from ``model.pt`` of a run, and a student's proxies.

    Raises:
        TenfoldError: unreadable, or of another graph.
    """
    content = _content(path, graph)
    try:
        settings = {**content["config"], "sampling": SamplingConfig(**content["config"]["sampling"])}
        if content["kind"] == "teacher":
            config = TeacherConfig(**settings)
            sizes = (config.hidden_dim, graph.num_classes, config.hidden_layers, config.dropout)
            network: nn.Module = build_teacher(config.kind, graph.num_features, *sizes)
            proxies = None
        else:
            distillation = DistillationConfig(**settings)
            proxies = BiasProxies(graph.num_nodes, content["proxies"].shape[1], distillation.placement)
            proxies.load_state_dict({"values": content["proxies"]})
            width = content["embedding_dim"]
            teacher = (
                None if width is None else NodeOutput(graph.features, graph.features.new_empty(0, width))
            )
            input_dim = student_input_dim(
                graph.num_features, distillation.placement, content["proxies"].shape[1]
            )
            network = build_student(graph, teacher, distillation, input_dim)
        network.load_state_dict(content["state_dict"])
    except (RuntimeError, TypeError, KeyError, AttributeError) as error:
        reason = str(error).splitlines()[0]
        raise TenfoldError(f"{path} does not hold one of the paper's networks: {reason}") from error
    return network.eval(), proxies


def _content(path: Path, graph: FairGraph) -> dict[str, Any]:
    content = load_checkpoint(path)
    needed = {"kind", "config", "state_dict", "sizes", "dataset"}
    needed |= {"logits", "embedding"} if content.get("kind") == "teacher" else {"proxies", "embedding_dim"}
    if missing := needed - content.keys():
        raise TenfoldError(f"{path} is not a model.pt of ours: it has no {', '.join(sorted(missing))}")
    sizes = [graph.num_nodes, graph.num_features, graph.num_classes]
    if content["sizes"] != sizes:
        raise TenfoldError(
            f"{path} was trained on {content['dataset']} (nodes, features, classes: {content['sizes']}), which does "
            f"not fit {graph.name} ({sizes}); choose the --dataset it was trained on"
        )
    return content


def _on_cpu(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.cpu() for name, value in state.items()}
