"""GFKD against the reference implementation, on every backend."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch

from tenfold.gfkd.backends import Backend, NodeLayout, topology_from_edges
from tenfold.gfkd.checkpoints import load_official_checkpoint, load_official_state_dict
from tenfold.gfkd.data import DATASETS, Dataset, load_dataset, split_indices
from tenfold.gfkd.generation import TeacherObjective
from tenfold.gfkd.losses import batch_norm_distance, distillation_loss
from tenfold.gfkd.models import GraphClassifier, build_model
from tenfold.gfkd.structure import arm_gradient, threshold

BACKENDS: tuple[Backend, ...] = ("pyg", "dgl", "dense")


def available_backends() -> list[Backend]:
    return [
        backend for backend in BACKENDS if backend != "dgl" or importlib.util.find_spec("dgl") is not None
    ]


def model_of(case: Any) -> GraphClassifier:
    model = build_model(case["model"], **case["build"])
    load_official_state_dict(model, case.state_dict())
    return model.eval()


def padded(matrices: list[torch.Tensor], size: int) -> torch.Tensor:
    pad = torch.nn.functional.pad
    return torch.stack([pad(m, (0, size - m.shape[1], 0, size - m.shape[0])) for m in matrices])


def check_forward(case: Any, fill: Any, backend: Backend) -> None:
    model = model_of(case)
    counts = torch.tensor([graph["num_nodes"] for graph in case["graphs"]])
    starts = counts.cumsum(0) - counts
    edges = torch.cat(
        [torch.tensor(g["edges"]).t() + start for g, start in zip(case["graphs"], starts, strict=True)], dim=1
    )
    features = torch.cat([fill(spec) for spec in case["features"]])
    with torch.no_grad():
        trace = model.trace(features, topology_from_edges(edges, counts, backend))
        distance = batch_norm_distance(model.batch_norms(), trace.norm_inputs)[0]
    case.check("logits", trace.logits)
    case.check("bn_distance_per_layer", distance)
    for index, convolved in enumerate(trace.convolved):
        rows, columns = case.outputs[f"conv{index}_head"].shape
        case.check(f"conv{index}_head", convolved[:rows, :columns])
        case.check(f"conv{index}_norm", convolved.norm())


def objective_of(case: Any, model: GraphClassifier, layout: NodeLayout, backend: Backend) -> TeacherObjective:
    labels = torch.tensor(case["labels"])
    onehot_weight = case.fields.get("onehot_weight", 0.0)
    return TeacherObjective(model, layout, labels, [len(labels)], case["bn_weight"], onehot_weight, backend)


def check_feature_step_loss(case: Any, fill: Any, backend: Backend) -> None:
    model = model_of(case)
    structure = [fill(spec) for spec in case["structure_logits"]]
    counts = torch.tensor([len(matrix) for matrix in structure])
    layout = NodeLayout(counts, self_loops=case.fields.get("self_loops", True))
    objective = objective_of(case, model, layout, backend)
    logits = torch.cat([fill(spec) for spec in case["feature_logits"]]).requires_grad_()
    adjacency = threshold(padded(structure, layout.max_nodes), layout)
    loss = objective.feature_loss(logits, logits.softmax(dim=1), objective.topology(adjacency), one_hot=True)
    (gradient,) = torch.autograd.grad(loss.sum(), logits)
    case.check("loss", loss[0])
    per_graph = gradient.split(counts.tolist())
    case.check("feature_grad_norms", torch.stack([part.norm() for part in per_graph]))
    for index, size in enumerate(counts.tolist()):
        if (
            f"adjacency_{index}" in case.outputs
        ):  # recorded with the diagonal's own decisions, which are ignored
            decided = structure[index].sigmoid() >= 0.5
            case.check(
                f"adjacency_{index}",
                torch.where(torch.eye(size).bool(), decided, adjacency[index, :size, :size]),
            )
        if f"feature_grad_{index}" in case.outputs:
            case.check(f"feature_grad_{index}", per_graph[index])
    with torch.no_grad():
        trace = model.trace(logits.softmax(dim=1), objective.topology(adjacency))
        case.check("bn_sum", batch_norm_distance(model.batch_norms(), trace.norm_inputs).sum())


def check_structure_gradient(case: Any, fill: Any, backend: Backend) -> None:
    model = model_of(case)
    structure = [fill(spec) for spec in case["structure_logits"]]
    counts = torch.tensor([len(matrix) for matrix in structure])
    layout = NodeLayout(counts, self_loops=case.fields.get("self_loops", True))
    objective = objective_of(case, model, layout, backend)
    features = torch.cat([fill(spec) for spec in case["feature_logits"]]).softmax(dim=1)
    uniform = padded([fill(spec) for spec in case["uniform"]], layout.max_nodes)
    seen: list[torch.Tensor] = []

    def values(adjacencies: list[torch.Tensor]) -> list[torch.Tensor]:
        first, second = objective.structure_values([features, features], adjacencies)
        seen.append(first - second)
        return [first, second]

    with torch.no_grad():
        gradient = arm_gradient(padded(structure, layout.max_nodes), uniform, layout, values)
    for index, size in enumerate(counts.tolist()):
        case.check(f"theta_grad_{index}", gradient[index, :size, :size], atol=1e-5)
    case.check("coefficients", seen[0], atol=1e-5)


def check_kd_loss(case: Any, fill: Any) -> None:
    student = fill(case["student"]).requires_grad_()
    loss = distillation_loss(student, fill(case["teacher"]), case["temperature"])
    (gradient,) = torch.autograd.grad(loss, student)
    case.check("loss", loss)
    case.check("student_grad", gradient)


def check_dataset(case: Any, root: Path | None) -> None:
    dataset = dataset_of(case, root)
    train, test = split_indices(len(dataset.graphs), case["split_seed"], case["train_fraction"])
    exact = {
        "train_indices": train,
        "test_indices": test,
        "labels": dataset.graphs.labels,
        "nodes_per_graph": dataset.graphs.node_counts,
        "edges_per_graph": dataset.graphs.edge_counts,
        "column_counts": dataset.graphs.features().sum(dim=0),
    }
    for name, values in exact.items():
        if name in case.outputs:
            case.check(name, values, rtol=0, atol=0)
    for field, numbers in (("label_map", dataset.label_map), ("node_label_columns", dataset.columns)):
        if field in case.fields and not (field == "node_label_columns" and case["degree_features"]):
            assert numbers == {int(key): value for key, value in case[field].items()}


def dataset_of(case: Any, root: Path | None) -> Dataset:
    names = {info.file.lower().replace("_", ""): name for name, info in DATASETS.items()}
    name = names[case["dataset"].lower().replace("_", "").replace("-", "")]
    return load_dataset(name, root, case["self_loops"], case["degree_features"])


BACKEND_CHECKS = {
    "forward": check_forward,
    "feature_step_loss": check_feature_step_loss,
    "structure_gradient": check_structure_gradient,
}


def test_the_reference_gives_the_same_numbers(parity_case: Any, fill: Any, further_data: Path | None) -> None:
    kind = parity_case["kind"]
    if kind in BACKEND_CHECKS:
        for backend in available_backends():
            BACKEND_CHECKS[kind](parity_case, fill, backend)
    elif kind == "kd_loss":
        check_kd_loss(parity_case, fill)
    elif kind == "dataset":
        check_dataset(parity_case, further_data)
    else:
        pytest.fail(f"no runner for parity cases of kind {kind!r}")


def test_the_released_teacher_gives_the_recorded_logits(parity_case: Any, data_root: Path) -> None:
    if "test_logits" not in parity_case.outputs:
        return
    dataset = dataset_of(parity_case, data_root)
    _, test = split_indices(len(dataset.graphs), parity_case["split_seed"], parity_case["train_fraction"])
    graphs = dataset.graphs.select(test)
    checkpoint = data_root / "gfkd" / "released" / Path(parity_case["checkpoint"]).name
    model = build_model("gcn5_64", graphs.num_features, graphs.num_classes).eval()
    saved = load_official_checkpoint(model, checkpoint)
    for backend in available_backends():
        with torch.no_grad():
            logits = model(graphs.features(), graphs.topology(backend))
        parity_case.check("test_logits", logits)
        accuracy = (logits.argmax(dim=1) == graphs.labels).float().mean()
        parity_case.check("test_accuracy", accuracy)
    assert saved["accuracy"] == pytest.approx(100 * float(accuracy), abs=1e-4)
