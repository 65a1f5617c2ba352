"""One training step of a RELIANT student (knowledge, bias term, proxies) on the 3000 bundled nodes of Recidivism.

The reference computes the same step with values on edges, as message passing is usually written: torch_geometric
gathers a row for each edge, weighs it, and scatters the sums. DGL's kernels are the named peer. All sides have the same
losses from the same random numbers, which is checked before timing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor
from torch.nn.functional import dropout
from torch_geometric.nn import SimpleConv
from torch_geometric.utils import softmax

from tenfold.reliant.backends import DglTopology, PygTopology, Topology
from tenfold.reliant.batches import FullBatches
from tenfold.reliant.config import FRAMEWORKS
from tenfold.reliant.datasets import load_dataset
from tenfold.reliant.node_output import NodeOutput
from tenfold.reliant.proxies import BiasProxies, student_input_dim
from tenfold.reliant.training import BiasTerm, build_student, knowledge_source
from tenfold.shared.accelerator import AcceleratorConfig, make_fabric


class EdgeValuedTopology(Topology):
    """The reference: every message is a row of its own."""

    def __init__(self, edge_index: Tensor, num_nodes: int) -> None:
        super().__init__(edge_index, num_nodes)
        self._convolution = SimpleConv(aggr="sum")

    def _sum_incoming(self, values: Tensor) -> Tensor:
        return self._convolution(values, self.edge_index)

    def attention_weights(self, scores: Tensor) -> Tensor:
        sources, targets = self.edge_index
        return softmax(scores[sources], targets, num_nodes=self.num_nodes)

    def _attend(self, scores: Tensor, values: Tensor, dropout_rate: float) -> Tensor:
        sources, targets = self.edge_index
        messages = dropout(self.attention_weights(scores), dropout_rate)[:, None] * values[sources]
        return torch.zeros_like(values).index_add(0, targets, messages)

    def _edge_products(self, left: Tensor, right: Tensor) -> Tensor:
        sources, targets = self.edge_index
        return (left[sources] * right[targets]).sum(dim=1)


def make_step(kind: type[Topology], framework: str) -> Callable[[], Tensor]:
    """A training step on the whole graph; returns the loss."""
    graph = load_dataset("recidivism-3000")
    fabric = make_fabric(AcceleratorConfig(device="cpu"))
    config = FRAMEWORKS[framework]
    torch.manual_seed(0)
    teacher = NodeOutput(torch.randn(graph.num_nodes, 2), torch.randn(graph.num_nodes, 64).relu())
    student = build_student(graph, teacher, config, student_input_dim(graph.num_features)).train()
    proxies = BiasProxies(graph.num_nodes)
    source = knowledge_source(teacher, config, fabric)
    bias = BiasTerm(config, proxies, student, fabric)
    batch = replace(FullBatches(graph).batch, topology=kind(graph.edge_index, graph.num_nodes))
    trained = [parameter for parameter in student.parameters() if parameter.requires_grad]
    optimizer = torch.optim.Adam(trained, lr=config.lr, weight_decay=config.weight_decay, fused=True)

    def step() -> Tensor:
        output = student(proxies.with_mean(batch.features), batch.topology)
        source.learn(output, batch)
        loss = source.loss(output, batch) + config.alpha * bias.of_student(output, batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        bias.proxy_step(batch)
        return loss.detach()

    return step


@pytest.mark.parametrize("framework", ["akd", "cpf"])
@pytest.mark.parametrize("reference", ["rows on edges", "DGL"])
def test_student_step(
    benchmark: BenchmarkFixture, measure_ratio: Callable[..., Any], framework: str, reference: str
) -> None:
    if reference == "DGL":
        pytest.importorskip("dgl")
    peer_kind = DglTopology if reference == "DGL" else EdgeValuedTopology
    ours, theirs = make_step(PygTopology, framework), make_step(peer_kind, framework)
    for _ in range(2):
        torch.manual_seed(1)
        mine = float(ours())
        torch.manual_seed(1)
        assert mine == pytest.approx(float(theirs()), rel=1e-3)
    described = (
        "torch_geometric's gather and scatter, rows on edges" if reference != "DGL" else "DGL's kernels"
    )
    measured = measure_ratio(
        ours,
        theirs,
        passes=3,
        reference=f"the same step with {described}",
        peer="dgl" if reference == "DGL" else None,
        unit="training steps",
    )
    benchmark.extra_info["milliseconds_per_step"] = 1000 * min(measured.seconds)
    if reference != "DGL":
        assert measured.median > 1


def test_attention_on_a_large_graph(measure_ratio: Callable[..., Any]) -> None:
    """One of label propagation's updates, forward and backward, on a graph with as many edges as Recidivism."""
    num_nodes, num_edges = 18876, 642616
    generator = torch.Generator().manual_seed(0)
    edges = torch.randint(0, num_nodes, (2, num_edges), generator=generator).unique(dim=1)
    scores = torch.randn(num_nodes, generator=generator, requires_grad=True)
    state = torch.rand(num_nodes, 2, generator=generator, requires_grad=True)
    ours, theirs = PygTopology(edges, num_nodes), EdgeValuedTopology(edges, num_nodes)

    def step(topology: Topology) -> tuple[Tensor, ...]:
        out = topology.attend(scores, state, 0.2)
        return torch.autograd.grad(out.square().sum(), (scores, state))

    for topology in (ours, theirs):
        torch.manual_seed(1)
        gradients = step(topology)
        if topology is ours:
            expected = gradients
    torch.testing.assert_close(gradients, expected, rtol=1e-3, atol=1e-4)
    measured = measure_ratio(
        lambda: step(ours),
        lambda: step(theirs),
        passes=3,
        reference="torch_geometric's softmax, rows on edges",
        unit="attention updates",
    )
    assert measured.median > 1
