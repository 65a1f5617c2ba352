"""RELIANT against the reference implementation, on both backends."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import log_softmax

from tenfold.reliant.adversarial import Discriminators, discriminator_losses, student_losses
from tenfold.reliant.backends import Backend, Topology, make_topology
from tenfold.reliant.bias import bias_surrogate, step_polynomial
from tenfold.reliant.checkpoints import load_official_state_dict, official_key
from tenfold.reliant.datasets import load_dataset
from tenfold.reliant.fairness_metrics import equal_opportunity, statistical_parity
from tenfold.reliant.knowledge import knowledge_distance
from tenfold.reliant.label_propagation import LabelPropagationStudent
from tenfold.reliant.node_output import NodeOutput
from tenfold.reliant.sgc_student import build_sgc_student
from tenfold.reliant.teachers import build_teacher

TRANSFORMS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": torch.relu,
    "softmax": lambda values: values.softmax(dim=1),
    "softmax over dim 1": lambda values: values.softmax(dim=1),
    "log_softmax": lambda values: log_softmax(values, dim=1),
}


def input_of(spec: dict[str, Any], fill: Any) -> Tensor:
    values: Tensor = fill({key: value for key, value in spec.items() if key != "transform"})
    transform = spec.get("transform")
    return values if transform is None else TRANSFORMS[transform](values)


def topology_of(case: Any, backend: Backend) -> Topology:
    edges = torch.tensor(case["graph"]["edges"]).t()
    return make_topology(edges, case["graph"]["num_nodes"], backend)


def count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def check_heads(case: Any, output: NodeOutput, model: nn.Module) -> None:
    case.check("logits", output.logits)
    if "embedding" in case.outputs:
        rows, columns = case.outputs["embedding"].shape
        case.check("embedding", output.embedding[:rows, :columns])
        case.check("embedding_norm", output.embedding.norm())
    if "parameters" in case.outputs:
        case.check("parameters", count(model), rtol=0)


def check_teacher(case: Any, fill: Any, backend: Backend) -> None:
    build = case["build"]
    kind = {"GCN": "gcn", "GraphSAGE": "sage"}[case["model"]]
    sizes = (build["hidden_dim"], build["num_classes"], build["hidden_layers"])
    model = build_teacher(kind, build["input_dim"], *sizes)
    load_official_state_dict(model, case.state_dict())
    with torch.no_grad():
        output = model.eval()(input_of(case["features"], fill), topology_of(case, backend))
    check_heads(case, output, model)


def check_sgc(case: Any, fill: Any, backend: Backend) -> None:
    model = build_sgc_student(**case["build"])
    load_official_state_dict(model, case.state_dict())
    with torch.no_grad():
        output = model.eval()(input_of(case["features"], fill), topology_of(case, backend))
    check_heads(case, output, model)


def check_label_propagation(case: Any, fill: Any, backend: Backend) -> None:
    build = {key: value for key, value in case["build"].items() if key != "num_nodes"}
    labels, train = torch.tensor(case["labels"]), torch.tensor(case["train_nodes"])
    known = torch.full_like(labels, -1)
    known[train] = labels[train]
    model = LabelPropagationStudent(known, **build)
    load_official_state_dict(model, case.state_dict())
    features, topology = input_of(case["features"], fill), topology_of(case, backend)
    output = model.eval()(features, topology)
    others = (known < 0).nonzero().squeeze(1)
    loss = knowledge_distance(log_softmax(output.logits, dim=1), input_of(case["teacher"], fill), others)
    loss.backward()
    check_heads(case, output, model)
    case.check("kd_loss", loss)
    if "attention" in case.outputs:
        with torch.no_grad():
            weights = topology.attention_weights(model.attention_scores(features))
        of_edge = dict(zip(map(tuple, topology.edge_index.t().tolist()), weights.tolist(), strict=True))
        case.check("attention", [of_edge[tuple(edge)] for edge in case["graph"]["edges"]])
    gradients = {official_key(model, name): value.grad for name, value in model.named_parameters()}
    case.check("grad_norms", torch.stack([gradients[name].norm() for name in case["grad_names"]]))


def check_fairness(case: Any) -> None:
    predictions, labels, sensitive = (
        torch.tensor(case[name]) for name in ("predictions", "labels", "sensitive")
    )
    case.check("statistical_parity", statistical_parity(predictions, sensitive))
    case.check("equal_opportunity", equal_opportunity(predictions, labels, sensitive))


def check_bias(case: Any, fill: Any) -> None:
    sensitive, labels, nodes = (torch.tensor(case[name]) for name in ("sensitive", "labels", "nodes"))
    case.check("step_values", step_polynomial(torch.linspace(0, 1, len(case.outputs["step_values"]))))
    for name, of_labels in (("sp", None), ("eo", labels)):
        logits = input_of(case["logits"], fill).requires_grad_()
        loss = bias_surrogate(logits.softmax(dim=1), sensitive, nodes, of_labels)
        loss.backward()
        case.check(f"{name}_loss", loss)
        case.check(f"{name}_grad", logits.grad)


def check_adversary(case: Any, fill: Any, backend: Backend) -> None:
    build = case["build"]
    discriminators = Discriminators(build["num_classes"], build["hidden_dim"])
    names = {"logit": "logit", "local": "local", "global": "summary"}
    for name, own in names.items():
        load_official_state_dict(getattr(discriminators, own), fill_part(case, name))
    teacher = NodeOutput(
        input_of(case["teacher_log_probabilities"], fill), input_of(case["teacher_embedding"], fill)
    )
    student = NodeOutput(
        input_of(case["student_logits"], fill).requires_grad_(),
        input_of(case["student_embedding"], fill).detach().requires_grad_(),
    )
    labels, train = torch.tensor(case["labels"]), torch.tensor(case["train_nodes"])
    arguments = (topology_of(case, backend), labels, train)
    terms = discriminator_losses(discriminators, teacher, student.detach(), *arguments)
    terms["total"].backward()
    case.check("discriminator", torch.stack([terms[name] for name in case["discriminator_terms"]]))
    gradients = {}
    for name, own in names.items():
        for key, parameter in getattr(discriminators, own).named_parameters():
            gradients[f"{name}.{key}"] = parameter.grad
    case.check(
        "discriminator_grad_norms",
        torch.stack([gradients[name].norm() for name in case["discriminator_grad_names"]]),
    )
    terms = student_losses(discriminators, teacher, student, *arguments)
    terms["total"].backward()
    case.check("student", torch.stack([terms[name] for name in case["student_terms"]]))
    case.check("student_logit_grad", student.logits.grad)
    case.check("student_embedding_grad_norm", student.embedding.grad.norm())


def fill_part(case: Any, name: str) -> dict[str, Tensor]:
    """The weights of one of several state dicts of a case."""
    part = type(case)(case.path)
    part.__dict__["fields"] = {"state_dict": case["state_dicts"][name]}
    weights: dict[str, Tensor] = part.state_dict()
    return weights


def check_dataset(case: Any, root: Path | None) -> None:
    graph = load_dataset(case["dataset"], root)
    train, test = graph.train.sort().values, graph.test.sort().values
    of_group = [graph.labels[graph.sensitive == group].float().mean() for group in (0, 1)]
    degrees = torch.bincount(graph.edge_index[0], minlength=graph.num_nodes)
    values = {
        "num_nodes": graph.num_nodes,
        "num_message_edges_with_self_loops": graph.edge_index.shape[1],
        "features_head": graph.features[:6],
        "feature_column_means": graph.features.mean(dim=0),
        "labels_sum": graph.labels.sum(),
        "sensitive_sum": graph.sensitive.sum(),
        "train_size": len(train),
        "val_size": len(graph.val),
        "test_size": len(test),
        "train_head": train,
        "test_head": test,
        "base_rate_gap": (of_group[1] - of_group[0]).abs(),
        "degree_head": degrees,
    }
    for name, expected in case.outputs.items():
        value = torch.as_tensor(values[name])
        case.check(name, value[: len(expected)] if expected.ndim else value)


BACKEND_CHECKS = {
    "teacher_forward": check_teacher,
    "cpf_student_forward": check_label_propagation,
    "akd_student_forward": check_sgc,
    "akd_losses": check_adversary,
}


def test_the_reference_gives_the_same_numbers(parity_case: Any, fill: Any, further_data: Path | None) -> None:
    kind = parity_case["kind"]
    if kind in BACKEND_CHECKS:
        backends: list[Backend] = ["pyg"]
        if importlib.util.find_spec("dgl") is not None:
            backends.append("dgl")
        for backend in backends:
            BACKEND_CHECKS[kind](parity_case, fill, backend)
    elif kind == "bias_loss":
        check_bias(parity_case, fill)
    elif kind == "fairness_metrics":
        check_fairness(parity_case)
    elif kind == "dataset":
        check_dataset(parity_case, further_data)
    else:
        pytest.fail(f"no runner for parity cases of kind {kind!r}")
