"""Sampled neighbourhoods: with all neighbours they are the whole graph, with fewer they are right on average."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from lightning_fabric import Fabric
from torch import nn
from torch_geometric.sampler import NodeSamplerInput

from tenfold.reliant.backends import make_topology
from tenfold.reliant.batches import FullBatches, SampledBatches, forward_of
from tenfold.reliant.config import DistillationConfig
from tenfold.reliant.graphs import FairGraph
from tenfold.reliant.knowledge import Adversary, LabelDistances, Labels, SoftLabels
from tenfold.reliant.label_propagation import LabelPropagationStudent
from tenfold.reliant.node_output import NodeOutput
from tenfold.reliant.proxies import BiasProxies
from tenfold.reliant.sampling import NeighbourSampler
from tenfold.reliant.sgc_student import build_sgc_student
from tenfold.reliant.teachers import build_teacher
from tenfold.reliant.training import BiasTerm
from tenfold.shared.logging import TenfoldError


def networks(graph: FairGraph) -> dict[str, tuple[nn.Module, int]]:
    """Each network, and how many hops it looks."""
    torch.manual_seed(0)
    known = torch.full((graph.num_nodes,), -1)
    known[graph.train] = graph.labels[graph.train]
    students = LabelPropagationStudent(known, graph.num_features, num_layers=4)
    nn.init.normal_(students.balance)
    return {
        "gcn": (build_teacher("gcn", graph.num_features, 16), 3),
        "sage": (build_teacher("sage", graph.num_features, 16), 4),
        "sgc": (build_sgc_student(graph.num_features, 16), 3),
        "plp": (students, 3),
    }


@pytest.mark.parametrize("name", ["gcn", "sage", "sgc", "plp"])
@pytest.mark.parametrize("backend", ["pyg", "dgl"])
def test_all_neighbours_give_the_output_of_the_whole_graph(
    small: FairGraph, cpu: Fabric, name: str, backend
) -> None:
    if backend == "dgl":
        pytest.importorskip("dgl")
    network, hops = networks(small)[name]
    sampled = SampledBatches(small, (-1,) * hops, 7, 0, cpu, backend)
    with torch.no_grad():
        whole = FullBatches(small).predict(forward_of(network.eval()))
        ours = sampled.predict(forward_of(network.eval()))
    torch.testing.assert_close(ours.logits, whole.logits, rtol=1e-4, atol=1e-6)
    if whole.embedding is not None:
        torch.testing.assert_close(ours.embedding, whole.embedding, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("source_name", ["labels", "label distances", "soft labels", "adversary"])
@pytest.mark.parametrize("objective", ["sp", "eo"])
def test_one_batch_with_all_neighbours_gives_the_losses_of_the_whole_graph(
    small: FairGraph, cpu: Fabric, source_name: str, objective
) -> None:
    torch.manual_seed(0)
    teacher = NodeOutput(torch.randn(60, 2), torch.randn(60, 16))
    source = {
        "labels": Labels(),
        "label distances": LabelDistances(),
        "soft labels": SoftLabels(teacher),
        "adversary": Adversary(teacher, 0.01, 0.0, cpu),
    }[source_name]
    student = build_sgc_student(9, 16).eval()
    proxies = BiasProxies(60)
    bias = BiasTerm(DistillationConfig(objective=objective, bias_nodes="official"), proxies, student, cpu)
    values = []
    for batches in (FullBatches(small), SampledBatches(small, (-1,) * 3, 60, 5, cpu)):
        (batch,) = batches.epoch(0)
        inputs = proxies.with_own(batch.features, batch.nodes)
        output = student(inputs, batch.topology)
        loss = source.loss(output, batch) + 3 * bias.of_student(output, batch)
        gradients = torch.autograd.grad(loss, [*student.parameters(), proxies.values])
        values.append((loss, *gradients))
    torch.testing.assert_close(values[1], values[0], rtol=1e-4, atol=1e-6)


def test_soft_labels_of_parts_stand_for_the_whole(small: FairGraph, cpu: Fabric) -> None:
    """Where every node is equally far from the teacher, each batch estimates the whole distance exactly."""
    teacher, student = NodeOutput(torch.tensor([[2.0, 0.0]]).expand(60, 2)), torch.tensor([[0.0, 1.0]])
    source = SoftLabels(teacher)
    whole = source.loss(NodeOutput(student.expand(60, 2)), FullBatches(small).batch)
    for batch in SampledBatches(small, (-1,), 16, 0, cpu).epoch(0):
        part = source.loss(NodeOutput(student.expand(len(batch.features), 2)), batch)
        torch.testing.assert_close(part, whole)


def test_an_epoch_has_every_node_once_in_a_new_order(small: FairGraph, cpu: Fabric) -> None:
    batches = SampledBatches(small, (2, 2), 16, 3, cpu)
    orders = []
    for epoch in (0, 1, 0):
        seeds = [batch.nodes[: batch.num_seeds] for batch in batches.epoch(epoch)]
        assert [len(part) for part in seeds] == [16, 16, 16, 12]
        orders.append(torch.cat(seeds))
        assert orders[-1].sort().values.tolist() == list(range(60))
    assert torch.equal(orders[0], orders[2]) and not torch.equal(orders[0], orders[1])
    trained = torch.cat([batch.nodes[: batch.num_seeds] for batch in batches.epoch(0, "train")])
    assert trained.sort().values.tolist() == sorted(small.train.tolist())


def test_rows_of_a_batch_are_those_of_its_nodes(small: FairGraph, cpu: Fabric) -> None:
    for batch in SampledBatches(small, (3, 3), 16, 0, cpu).epoch(0):
        nodes = batch.nodes
        assert torch.equal(batch.features, small.features[nodes])
        assert torch.equal(batch.labels, small.labels[nodes])
        assert torch.equal(batch.sensitive, small.sensitive[nodes])
        is_train = torch.isin(nodes[: batch.num_seeds], small.train)
        assert torch.equal(batch.roles["train"], is_train.nonzero().squeeze(1))
        edges = {tuple(edge) for edge in small.edge_index.t().tolist()}
        assert {tuple(edge) for edge in nodes[batch.topology.edge_index].t().tolist()} <= edges


def test_no_more_than_the_fanout_is_drawn_and_nothing_twice(small: FairGraph) -> None:
    sampler = NeighbourSampler(small.edge_index, 60, (2, 3))
    sample = sampler.sample_from_nodes(NodeSamplerInput(None, torch.arange(10)))
    assert len(sample.node.unique()) == len(sample.node)
    edges = torch.stack([sample.row, sample.col])
    assert len(edges.unique(dim=1).t()) == edges.shape[1]
    counts = torch.bincount(sample.col, minlength=len(sample.node))
    degree = torch.bincount(small.edge_index[1], minlength=60)[sample.node]
    assert torch.equal(counts[:10], degree[:10].clamp(max=2))
    second = counts[10:]
    assert (second <= degree[10:].clamp(max=3)).all() and second.max() == 3


def test_sampled_sums_have_the_right_expectation(small: FairGraph) -> None:
    torch.manual_seed(0)
    values = torch.randn(60, 2)
    degree = torch.bincount(small.edge_index[1], minlength=60)
    sampler = NeighbourSampler(small.edge_index, 60, (3,))
    total = torch.zeros(2, 60, 2)
    repeats = 1500
    for _ in range(repeats):
        sample = sampler.sample_from_nodes(NodeSamplerInput(None, torch.arange(60)))
        topology = make_topology(torch.stack([sample.row, sample.col]), 60, "pyg", degree)
        total += torch.stack([topology.normalized_sum(values), topology.mean_with_self(values)])
    whole = small.topology()
    expected = torch.stack([whole.normalized_sum(values), whole.mean_with_self(values)])
    torch.testing.assert_close(total / repeats, expected, rtol=0, atol=0.06)


def test_impossible_sampling_is_refused(small: FairGraph, cpu: Fabric) -> None:
    for fanout, size in (((), 4), ((0, 3), 4), ((3,), 0)):
        with pytest.raises(TenfoldError, match="a batch size of at least 1 and for each hop"):
            SampledBatches(small, fanout, size, 0, cpu)


def test_two_processes_share_the_nodes_and_keep_one_network(start, tmp_path: Path) -> None:
    script = Path(__file__).parent / "distributed_distill.py"
    for devices in (1, 2):
        process = start(script, devices, tmp_path, cwd=tmp_path)
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors
    records = {path.parent.name: json.loads(path.read_text()) for path in tmp_path.rglob("result.json")}
    assert set(records) == {
        "teacher-on1-seed0",
        "teacher-on2-seed0",
        "student-on1-seed0",
        "student-on2-seed0",
    }
    weights = [
        torch.load(tmp_path / f"reliant/test/teacher-on{n}-seed0/weights.pt", weights_only=True)
        for n in (1, 2)
    ]
    for name, value in weights[0].items():  # the mean over two halves is the mean over the whole
        torch.testing.assert_close(weights[1][name], value, rtol=1e-3, atol=1e-5)
    student = records["student-on2-seed0"]
    assert student["metrics"]["ranks_differ"] == 0
    assert student["curves"]["loss"]["x"] == [1, 2, 3]
