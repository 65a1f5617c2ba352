"""One generation step of GFKD (features and structure) for a batch of graphs of MUTAG's size.

The reference is the straightforward way of writing it: a Python loop over the graphs that thresholds or samples
each structure, builds its edge list, and batches the graphs with torch_geometric before every forward pass. Both
sides compute the same objective and the same gradient from the same noise, which is checked before timing.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field

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

STEPS = 4


@dataclass
class LoopGenerator:
    """The reference: every graph has parameters of its own, and is handled by itself in Python."""

    teacher: GraphClassifier
    config: GenerationConfig
    structures: list[Tensor]
    features: list[Tensor]
    labels: Tensor
    noise: torch.Generator
    optimizers: list[torch.optim.Adam] = field(init=False)

    def __post_init__(self) -> None:
        self.optimizers = [
            torch.optim.Adam(self.structures, lr=self.config.structure_lr),
            torch.optim.Adam(self.features, lr=self.config.feature_lr),
        ]

    def batch(self, edges: list[Tensor], features: list[Tensor]) -> Batch:
        graphs = []
        for adjacency, x in zip(edges, features, strict=True):
            adjacency = adjacency.clone()
            adjacency.fill_diagonal_(True)
            graphs.append(Data(x=x, edge_index=adjacency.nonzero().t()))
        return Batch.from_data_list(graphs)

    def objective(self, batch: Batch) -> tuple[Tensor, Tensor]:
        trace = self.teacher.trace(batch.x, PygTopology(batch.edge_index, batch.ptr.diff()))
        losses = cross_entropy(trace.logits, self.labels, reduction="none")
        return losses, batch_norm_distance(self.teacher.batch_norms(), trace.norm_inputs).sum()

    def step(self) -> float:
        structure_optimizer, feature_optimizer = self.optimizers
        edges = [theta.detach().sigmoid() >= 0.5 for theta in self.structures]
        losses, distance = self.objective(self.batch(edges, [softmax(f, dim=1) for f in self.features]))
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
                losses, distance = self.objective(self.batch(edges, features))
                values.append(losses + self.config.bn_weight * distance)
            for theta, u, difference in zip(self.structures, uniform, values[0] - values[1], strict=True):
                theta.grad = difference * (u - 0.5)
        structure_optimizer.step()
        return float(loss)


def some_teacher() -> GraphClassifier:
    """A teacher with random weights: what it knows does not matter for the time of a step."""
    torch.manual_seed(0)
    return build_model("gcn5_64", 7, 2)


def loop_twin(generator: GraphGenerator) -> LoopGenerator:
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
    )


def seconds_per_step(step: object, steps: int = STEPS) -> float:
    assert callable(step)
    started = time.perf_counter()
    for _ in range(steps):
        step()
    return (time.perf_counter() - started) / steps


@pytest.mark.parametrize("num_graphs", [64, 131])
def test_generation_step_against_the_per_graph_loop(benchmark: BenchmarkFixture, num_graphs: int) -> None:
    config = GenerationConfig(num_graphs=num_graphs)
    generator = GraphGenerator(some_teacher(), config, GENERATION_METHODS["GFKD"], seeds=[0])
    loop = loop_twin(generator)
    for _ in range(2):
        assert float(generator.step()[0]) == pytest.approx(loop.step(), rel=1e-4)

    ratios, ours = [], []
    for _ in range(5):
        reference = seconds_per_step(loop.step)
        ours.append(seconds_per_step(generator.step))
        ratios.append(reference / ours[-1])
    benchmark.pedantic(generator.step, rounds=5, iterations=2)
    benchmark.extra_info.update(
        ratio=ratios,
        reference="per-graph Python loop, batched by torch_geometric",
        unit="generation steps",
        milliseconds_per_step=1000 * min(ours),
        microseconds_per_graph=1e6 * min(ours) / num_graphs,
    )
    assert sorted(ratios)[2] > 1


@pytest.mark.parametrize("backend", ["pyg", "dgl"])
def test_generation_step_against_a_sparse_backend(benchmark: BenchmarkFixture, backend: Backend) -> None:
    if backend == "dgl":
        pytest.importorskip("dgl")
    config = GenerationConfig(num_graphs=131)
    dense, sparse = (
        GraphGenerator(some_teacher(), config, GENERATION_METHODS["GFKD"], seeds=[0], backend=name)
        for name in ("dense", backend)
    )
    for _ in range(2):
        assert float(dense.step()[0]) == pytest.approx(float(sparse.step()[0]), rel=1e-4)
    ratios = [seconds_per_step(sparse.step) / seconds_per_step(dense.step) for _ in range(5)]
    benchmark.pedantic(dense.step, rounds=5, iterations=2)
    peer = {"pyg": "torch_geometric", "dgl": "DGL"}[backend]
    benchmark.extra_info.update(
        ratio=ratios, reference=f"the same step with {peer}'s message passing", unit="generation steps"
    )
