"""One generation step of GFKD (features and structure) for a batch of graphs of MUTAG's size.

The references are two ways of writing it with a Python loop over the graphs, each of which thresholds or samples its
own structure and builds its own edge list: the straightforward one passes each graph through the teacher by itself, the
better one batches the graphs with torch_geometric before every forward pass. All sides compute the same objective and
the same gradients from the same noise, which is checked before timing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor
from torch.nn.functional import cross_entropy, softmax
from torch_geometric.data import Batch, Data

from tenfold.gfkd.backends import Backend, PygTopology
from tenfold.gfkd.config import GenerationConfig
from tenfold.gfkd.generation import GENERATION_METHODS, GraphGenerator
from tenfold.gfkd.losses import batch_norm_distance, one_hot_entropy
from tenfold.gfkd.models import GraphClassifier, build_model


@dataclass
class LoopGenerator:
    """The reference: every graph has parameters of its own, and is handled by itself in Python."""

    teacher: GraphClassifier
    config: GenerationConfig
    structures: list[Tensor]
    features: list[Tensor]
    labels: Tensor
    noise: torch.Generator
    batched: bool
    """Batch the graphs for the forward pass, instead of one forward pass for each."""
    optimizers: list[torch.optim.Adam] = field(init=False)

    def __post_init__(self) -> None:
        self.optimizers = [
            torch.optim.Adam(self.structures, lr=self.config.structure_lr),
            torch.optim.Adam(self.features, lr=self.config.feature_lr),
        ]

    def objective(self, edges: list[Tensor], features: list[Tensor]) -> tuple[Tensor, Tensor]:
        graphs = []
        for adjacency, x in zip(edges, features, strict=True):
            adjacency = adjacency.clone()
            adjacency.fill_diagonal_(True)
            graphs.append(Data(x=x, edge_index=adjacency.nonzero().t()))
        parts = (
            [Batch.from_data_list(graphs)] if self.batched else [Batch.from_data_list([g]) for g in graphs]
        )
        traces = [self.teacher.trace(p.x, PygTopology(p.edge_index, p.ptr.diff())) for p in parts]
        logits = torch.cat([trace.logits for trace in traces])
        norm_inputs = [
            torch.cat(inputs) for inputs in zip(*(trace.norm_inputs for trace in traces), strict=True)
        ]
        losses = cross_entropy(logits, self.labels, reduction="none")
        return losses, batch_norm_distance(self.teacher.batch_norms(), norm_inputs).sum()

    def step(self) -> float:
        structure_optimizer, feature_optimizer = self.optimizers
        edges = [theta.detach().sigmoid() >= 0.5 for theta in self.structures]
        losses, distance = self.objective(edges, [softmax(f, dim=1) for f in self.features])
        entropy = one_hot_entropy(torch.cat(self.features)).mean()
        loss = losses.mean() + self.config.bn_weight * distance + self.config.onehot_weight * entropy
        feature_optimizer.zero_grad()
        loss.backward()
        feature_optimizer.step()

        with torch.no_grad():
            size = max(len(theta) for theta in self.structures)
            noise = torch.rand(len(self.structures), size, size, generator=self.noise)
            uniform = [u[: len(t), : len(t)] for u, t in zip(noise, self.structures, strict=True)]
            features = [softmax(f, dim=1) for f in self.features]
            values = []
            for first in (True, False):
                edges = [
                    u > (-theta).sigmoid() if first else u < theta.sigmoid()
                    for u, theta in zip(uniform, self.structures, strict=True)
                ]
                losses, distance = self.objective(edges, features)
                values.append(losses + self.config.bn_weight * distance)
            for theta, u, difference in zip(self.structures, uniform, values[0] - values[1], strict=True):
                theta.grad = difference * (u - 0.5)
        structure_optimizer.step()
        return float(loss.detach())


def some_teacher() -> GraphClassifier:
    """A teacher with random weights: what it knows does not matter for the time of a step."""
    torch.manual_seed(0)
    return build_model("gcn5_64", 7, 2)


def loop_twin(generator: GraphGenerator, batched: bool) -> LoopGenerator:
    """The reference at the same point, with the same noise ahead of it."""
    counts = generator.layout.node_counts.tolist()
    noise = torch.Generator()
    noise.set_state(generator.generators[0].get_state())
    return LoopGenerator(
        generator.objective.teacher,
        generator.config,
        [theta[:n, :n].clone() for theta, n in zip(generator.structure_logits, counts, strict=True)],
        [part.clone().requires_grad_() for part in generator.feature_logits.detach().split(counts)],
        generator.objective.labels,
        noise,
        batched,
    )


@pytest.mark.parametrize("batched", [False, True], ids=["graph by graph", "built graph by graph"])
@pytest.mark.parametrize("num_graphs", [64, 131])
def test_generation_step_against_a_loop(
    benchmark: BenchmarkFixture, measure_ratio: Callable[..., Any], num_graphs: int, batched: bool
) -> None:
    config = GenerationConfig(num_graphs=num_graphs)
    generator = GraphGenerator(some_teacher(), config, GENERATION_METHODS["GFKD"], seeds=[0])
    loop = loop_twin(generator, batched)
    for _ in range(2):
        assert float(generator.step()[0]) == pytest.approx(loop.step(), rel=1e-4)

    measured = measure_ratio(
        generator.step,
        loop.step,
        passes=8,
        reference_passes=2,
        reference="graphs built in a Python loop, batched by torch_geometric"
        if batched
        else "per-graph Python loop",
        unit="generation steps",
    )
    seconds = min(measured.seconds)
    benchmark.extra_info.update(
        milliseconds_per_step=1000 * seconds, microseconds_per_graph=1e6 * seconds / num_graphs
    )
    assert measured.median > (1 if batched else 5)


@pytest.mark.parametrize("backend", ["pyg", "dgl"])
def test_generation_step_against_a_sparse_backend(
    measure_ratio: Callable[..., Any], backend: Backend
) -> None:
    if backend == "dgl":
        pytest.importorskip("dgl")
    config = GenerationConfig(num_graphs=131)
    dense, sparse = (
        GraphGenerator(some_teacher(), config, GENERATION_METHODS["GFKD"], seeds=[0], backend=name)
        for name in ("dense", backend)
    )
    for _ in range(2):
        assert float(dense.step()[0]) == pytest.approx(float(sparse.step()[0]), rel=1e-4)
    peer, library = {"pyg": ("torch-geometric", "torch_geometric"), "dgl": ("dgl", "DGL")}[backend]
    measure_ratio(
        dense.step,
        sparse.step,
        passes=4,
        reference=f"the same step with {library}'s message passing",
        peer=peer,
        unit="generation steps",
    )
