"""Message passing: both backends give the numbers of the formulas, and those of the libraries' own layers."""

from __future__ import annotations

import importlib.util

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch_geometric.nn import GCNConv, SAGEConv, SGConv
from torch_geometric.utils import add_self_loops, softmax

from tenfold.reliant.backends import Backend, Topology, make_topology
from tenfold.reliant.graphs import FairGraph
from tenfold.reliant.sgc_student import SimplifiedConvolution
from tenfold.reliant.teachers import GraphConvolution, SageConvolution
from tenfold.shared.logging import TenfoldError

needs_dgl = pytest.mark.skipif(importlib.util.find_spec("dgl") is None, reason="needs the extra dgl")
BACKENDS = ["pyg", pytest.param("dgl", marks=needs_dgl)]


def directed() -> tuple[Tensor, int]:
    """A directed graph in which node 4 receives nothing and node 0 sends nothing but its loop."""
    edges = torch.tensor([[0, 1, 2, 3, 1, 2, 3, 4, 4, 3], [0, 1, 2, 3, 0, 0, 1, 2, 3, 2]])
    return edges, 5


def by_loops(edges: Tensor, num_nodes: int, values: Tensor, weight) -> Tensor:
    out = torch.zeros(num_nodes, values.shape[1])
    for u, v in edges.t().tolist():
        out[v] += weight(u, v) * values[u]
    return out


@pytest.mark.parametrize("backend", BACKENDS)
def test_sums_follow_their_formulas_on_a_directed_graph(backend: Backend) -> None:
    edges, n = directed()
    topology = make_topology(edges, n, backend)
    values = torch.randn(n, 3)
    degree = [int((edges[1] == v).sum()) for v in range(n)]
    torch.testing.assert_close(topology.sum_incoming(values), by_loops(edges, n, values, lambda u, v: 1.0))
    root = [max(1, d) ** -0.5 for d in degree]
    expected = by_loops(edges, n, values, lambda u, v: root[u] * root[v])
    torch.testing.assert_close(topology.normalized_sum(values), expected)
    summed = by_loops(edges, n, values, lambda u, v: 1.0)
    expected = (summed + values) / (torch.tensor(degree)[:, None] + 1)
    torch.testing.assert_close(topology.mean_with_self(values), expected)


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradients_of_sums_run_against_the_edges(backend: Backend) -> None:
    edges, n = directed()
    topology, values, weights = make_topology(edges, n, backend), torch.randn(n, 3), torch.randn(n, 3)
    values.requires_grad_()
    (gradient,) = torch.autograd.grad((topology.sum_incoming(values) * weights).sum(), values)
    torch.testing.assert_close(gradient, by_loops(edges.flip(0), n, weights, lambda u, v: 1.0))


def naive_attention(topology: Topology, scores: Tensor, values: Tensor, kept: Tensor) -> Tensor:
    sources, targets = topology.edge_index
    weights = softmax(scores[sources], targets, num_nodes=topology.num_nodes) * kept
    return torch.zeros_like(values).index_add(0, targets, weights[:, None] * values[sources])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("rate", [0.0, 0.4])
def test_attention_and_its_gradients_are_those_of_a_plain_softmax(
    small: FairGraph, backend: Backend, rate: float
) -> None:
    topology = small.topology(backend)
    scores, values = torch.randn(60, requires_grad=True), torch.randn(60, 2, requires_grad=True)
    out_weights = torch.randn(60, 2)
    torch.manual_seed(3)
    out = topology.attend(scores, values, rate)
    gradients = torch.autograd.grad((out * out_weights).sum(), (scores, values))
    torch.manual_seed(3)
    kept = torch.nn.functional.dropout(torch.ones(topology.edge_index.shape[1]), rate)
    expected = naive_attention(topology, scores, values, kept)
    wanted = torch.autograd.grad((expected * out_weights).sum(), (scores, values))
    torch.testing.assert_close(out, expected)
    torch.testing.assert_close(gradients, wanted, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("backend", BACKENDS)
def test_attention_survives_scores_that_are_thousands_apart(small: FairGraph, backend: Backend) -> None:
    topology = small.topology(backend)
    scores = torch.linspace(-5000, 5000, 60)
    values = torch.randn(60, 2)
    out = topology.attend(scores, values)
    assert out.isfinite().all()
    sources, targets = topology.edge_index
    strongest = torch.stack(
        [sources[targets == v][scores[sources[targets == v]].argmax()] for v in range(60)]
    )
    torch.testing.assert_close(out, values[strongest])


@pytest.mark.parametrize("backend", BACKENDS)
def test_edge_products_and_their_gradients(small: FairGraph, backend: Backend) -> None:
    topology = small.topology(backend)
    left, right = (torch.randn(60, 5, requires_grad=True) for _ in range(2))
    sources, targets = topology.edge_index
    weights = torch.randn(len(sources))
    products = topology.edge_products(left, right)
    expected = (left[sources] * right[targets]).sum(dim=1)
    torch.testing.assert_close(products, expected)
    torch.testing.assert_close(
        torch.autograd.grad((products * weights).sum(), (left, right)),
        torch.autograd.grad((expected * weights).sum(), (left, right)),
    )


@pytest.mark.parametrize("backend", BACKENDS)
def test_messages_are_summed_in_full_precision_under_autocast(small: FairGraph, backend: Backend) -> None:
    topology = small.topology(backend)
    scores, values = torch.randn(60), torch.randn(60, 3)
    calls = {
        "normalized_sum": (values,),
        "mean_with_self": (values,),
        "attend": (scores, values),
        "edge_products": (values, values),
    }
    for name, arguments in calls.items():
        expected = getattr(topology, name)(*arguments)
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(getattr(topology, name)(*arguments), expected), name


@needs_dgl
@given(num_nodes=st.integers(2, 30), seed=st.integers(0, 1000))
@settings(max_examples=15, deadline=None)
def test_the_backends_agree_on_any_graph(num_nodes: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    edges = torch.randint(0, num_nodes, (2, 3 * num_nodes), generator=generator).unique(dim=1)
    values, scores = (
        torch.randn(num_nodes, 3, generator=generator),
        torch.randn(num_nodes, generator=generator),
    )
    ours, theirs = (make_topology(edges, num_nodes, backend) for backend in ("pyg", "dgl"))
    for name, arguments in {
        "normalized_sum": (values,),
        "mean_with_self": (values,),
        "attend": (scores, values),
        "edge_products": (values, values),
        "attention_weights": (scores,),
    }.items():
        torch.testing.assert_close(getattr(ours, name)(*arguments), getattr(theirs, name)(*arguments))


@pytest.mark.parametrize(("input_dim", "output_dim"), [(7, 12), (12, 7)])
def test_layers_are_those_of_torch_geometric(small: FairGraph, input_dim: int, output_dim: int) -> None:
    edges, topology, values = small.edge_index, small.topology(), torch.randn(60, input_dim)
    gcn, peer = GraphConvolution(input_dim, output_dim), GCNConv(input_dim, output_dim, add_self_loops=False)
    peer.lin.weight.data, peer.bias.data = gcn.weight.data.t(), gcn.bias.data.normal_()
    torch.testing.assert_close(gcn(values, topology), peer(values, edges), rtol=1e-4, atol=1e-5)

    sage = SageConvolution(input_dim, output_dim)
    peer = SAGEConv(input_dim, output_dim, aggr="mean", root_weight=False)
    peer.lin_l.weight.data, peer.lin_l.bias.data = sage.fc_neigh.weight.data, sage.bias.data.normal_()
    once_more, _ = add_self_loops(edges, num_nodes=60)  # the stored loop counts, and the node itself
    torch.testing.assert_close(sage(values, topology), peer(values, once_more), rtol=1e-4, atol=1e-5)

    sgc, peer = (
        SimplifiedConvolution(input_dim, output_dim, 2),
        SGConv(input_dim, output_dim, 2, add_self_loops=False),
    )
    peer.lin.weight.data, peer.lin.bias.data = sgc.fc.weight.data, sgc.fc.bias.data.normal_()
    torch.testing.assert_close(sgc(values, topology), peer(values, edges), rtol=1e-4, atol=1e-5)


@needs_dgl
@pytest.mark.parametrize(("input_dim", "output_dim"), [(7, 12), (12, 7)])
def test_layers_are_those_of_dgl(small: FairGraph, input_dim: int, output_dim: int) -> None:
    from dgl.nn.pytorch import GraphConv
    from dgl.nn.pytorch import SAGEConv as DglSage
    from dgl.nn.pytorch import SGConv as DglSgc

    graph, topology, values = small.to_dgl(), small.topology("dgl"), torch.randn(60, input_dim)
    gcn, peer = GraphConvolution(input_dim, output_dim), GraphConv(input_dim, output_dim, norm="both")
    peer.weight.data, peer.bias.data = gcn.weight.data, gcn.bias.data.normal_()
    torch.testing.assert_close(gcn(values, topology), peer(graph, values), rtol=1e-4, atol=1e-5)

    sage, peer = SageConvolution(input_dim, output_dim), DglSage(input_dim, output_dim, "gcn")
    peer.fc_neigh.weight.data, peer.bias.data = sage.fc_neigh.weight.data, sage.bias.data.normal_()
    torch.testing.assert_close(sage(values, topology), peer(graph, values), rtol=1e-4, atol=1e-5)

    sgc, peer = SimplifiedConvolution(input_dim, output_dim, 2), DglSgc(input_dim, output_dim, k=2)
    peer.fc.weight.data, peer.fc.bias.data = sgc.fc.weight.data, sgc.fc.bias.data.normal_()
    torch.testing.assert_close(sgc(values, topology), peer(graph, values), rtol=1e-4, atol=1e-5)


def test_an_unknown_backend_is_named() -> None:
    with pytest.raises(TenfoldError, match="unknown backend 'jraph'; choose pyg or dgl"):
        make_topology(*directed(), "jraph")  # type: ignore[arg-type]


def test_a_missing_dgl_is_said_in_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "dgl", None)
    with pytest.raises(TenfoldError, match=r"install tenfold-reliant\[dgl\].*--backend pyg"):
        make_topology(*directed(), "dgl")


@pytest.mark.gpu
def test_the_gpu_gives_the_numbers_of_the_cpu(small: FairGraph) -> None:
    scores, values = torch.randn(60), torch.randn(60, 4)
    here, there = small.topology(), small.to("cuda").topology()
    on_gpu = (scores.cuda(), values.cuda())
    torch.testing.assert_close(there.normalized_sum(on_gpu[1]).cpu(), here.normalized_sum(values))
    torch.testing.assert_close(there.attend(*on_gpu).cpu(), here.attend(scores, values))
    torch.testing.assert_close(
        there.edge_products(on_gpu[1], on_gpu[1]).cpu(),
        here.edge_products(values, values),
        rtol=1e-4,
        atol=1e-5,
    )
