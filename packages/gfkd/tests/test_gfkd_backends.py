"""Three ways to pass messages, one result."""

from __future__ import annotations

import importlib.util
import sys

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch_geometric.nn import GCNConv, GINConv

from tenfold.gfkd.backends import (
    Backend,
    NodeLayout,
    edges_of_adjacency,
    topology_from_adjacency,
    topology_from_edges,
)
from tenfold.gfkd.models import build_model
from tenfold.shared.logging import TenfoldError

BACKENDS: list[Backend] = ["pyg", "dense"]
if importlib.util.find_spec("dgl") is not None:
    BACKENDS.append("dgl")


@st.composite
def graph_batches(draw: st.DrawFn) -> tuple[Tensor, Tensor]:
    """Directed graphs with any subset of edges: isolated nodes, one-node graphs and no edges at all occur."""
    counts = draw(st.lists(st.integers(1, 5), min_size=1, max_size=4))
    edges, start = [], 0
    for count in counts:
        pairs = [(start + a, start + b) for a in range(count) for b in range(count)]
        edges += draw(st.lists(st.sampled_from(pairs), unique=True, max_size=len(pairs)))
        start += count
    return torch.tensor(edges, dtype=torch.int64).view(-1, 2).t().contiguous(), torch.tensor(counts)


@settings(max_examples=25, deadline=None, database=None, suppress_health_check=list(HealthCheck))
@given(graph_batches(), st.sampled_from(["gcn3_32", "gin3_32"]))
def test_backends_agree_in_outputs_and_gradients(batch: tuple[Tensor, Tensor], name: str) -> None:
    edges, counts = batch
    torch.manual_seed(0)
    model = build_model(name, 3, 2).eval()
    features = torch.randn(int(counts.sum()), 3)
    results = []
    for backend in BACKENDS:
        inputs = features.clone().requires_grad_()
        trace = model.trace(inputs, topology_from_edges(edges, counts, backend))
        gradients = torch.autograd.grad(trace.logits.square().sum(), [inputs, *model.parameters()])
        results.append([trace.logits, *trace.convolved, *trace.norm_inputs, *gradients])
    for result in results[1:]:
        torch.testing.assert_close(result, results[0], rtol=1e-4, atol=1e-5)


@settings(max_examples=25, deadline=None, database=None, suppress_health_check=list(HealthCheck))
@given(graph_batches())
def test_operations_are_those_of_the_adjacency_matrix(batch: tuple[Tensor, Tensor]) -> None:
    edges, counts = batch
    total = int(counts.sum())
    adjacency = torch.zeros(total, total).index_put((edges[0], edges[1]), torch.ones(edges.shape[1]))
    degree, values = adjacency.sum(dim=0), torch.randn(total, 2)
    scale = degree.clamp(min=1).rsqrt()
    graphs = torch.nn.functional.one_hot(torch.repeat_interleave(counts), len(counts)).float()
    for backend in BACKENDS:
        topology = topology_from_edges(edges, counts, backend)
        torch.testing.assert_close(topology.in_degree, degree)
        torch.testing.assert_close(topology.sum_incoming(values), adjacency.t() @ values)
        normalized = (scale[:, None] * adjacency * scale).t() @ values
        torch.testing.assert_close(topology.normalized_sum(values), normalized)
        torch.testing.assert_close(topology.sum_graphs(values), graphs.t() @ values)


@settings(max_examples=15, deadline=None, database=None, suppress_health_check=list(HealthCheck))
@given(graph_batches())
def test_a_padded_adjacency_gives_the_edges_back(batch: tuple[Tensor, Tensor]) -> None:
    edges, counts = batch
    layout = NodeLayout(counts, max_nodes=7)
    dense = topology_from_edges(edges, counts, "dense")._adjacency  # type: ignore[attr-defined]
    padding = 7 - dense.shape[1]
    padded = torch.nn.functional.pad(dense, (0, padding, 0, padding))
    assert set(map(tuple, edges_of_adjacency(padded, layout).t().tolist())) == set(
        map(tuple, edges.t().tolist())
    )
    values = torch.randn(int(counts.sum()), 2)
    expected = topology_from_edges(edges, counts, "pyg").normalized_sum(values)
    for backend in BACKENDS:
        torch.testing.assert_close(
            topology_from_adjacency(padded, layout, backend).normalized_sum(values), expected
        )


def test_a_node_without_incoming_edges_still_sends_with_factor_one() -> None:
    edges, counts, values = torch.tensor([[0], [1]]), torch.tensor([2]), torch.tensor([[3.0], [5.0]])
    for backend in BACKENDS:
        received = topology_from_edges(edges, counts, backend).normalized_sum(values)
        torch.testing.assert_close(received, torch.tensor([[0.0], [3.0]]))


def test_gcn_is_pygs_convolution_without_added_loops(mutag) -> None:
    graphs = mutag.train.select(range(10))
    layer = build_model("gcn2_32", 7, 2).layers[0]
    torch.nn.init.normal_(layer.bias)
    reference = GCNConv(7, 32, add_self_loops=False)
    with torch.no_grad():
        reference.lin.weight.copy_(layer.weight.t())
        reference.bias.copy_(layer.bias)
    # directed: half of the edges go, the self loops (the last of each graph's edges) stay
    edges = graphs.packed_edges()
    keep = (edges[0] <= edges[1]) | (edges.sum(dim=0) % 2 == 0)
    for backend in BACKENDS:
        _, convolved, _ = layer(
            graphs.features(), topology_from_edges(edges[:, keep], graphs.node_counts, backend)
        )
        torch.testing.assert_close(
            convolved, reference(graphs.features(), edges[:, keep]), rtol=1e-5, atol=1e-6
        )


def test_gin_is_pygs_convolution(mutag) -> None:
    graphs = mutag.train.select(range(10))
    layer = build_model("gin2_32", 7, 2).layers[0].eval()
    mlp = torch.nn.Sequential(layer.hidden, layer.hidden_norm, torch.nn.ReLU(), layer.output)
    expected = GINConv(mlp, eps=0.0, train_eps=False)(graphs.features(), graphs.packed_edges())
    for backend in BACKENDS:
        _, _, (_, output) = layer(graphs.features(), graphs.topology(backend))
        torch.testing.assert_close(output, expected, rtol=1e-5, atol=1e-6)


def test_without_dgl_one_sentence_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "dgl", None)
    with pytest.raises(TenfoldError, match=r"install tenfold-gfkd\[dgl\].*--backend pyg") as raised:
        topology_from_edges(torch.zeros(2, 1, dtype=torch.int64), torch.tensor([1]), "dgl")
    assert "\n" not in str(raised.value)
