"""Fake graphs from a trained classifier alone: GFKD, and its baselines DeepInvG and RandG.

One loop serves all three. GFKD learns features and structure; DeepInvG learns features on the random structure
it began with; RandG learns nothing and keeps the random graphs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, one_hot, softmax

from tenfold.gfkd.backends import Backend, NodeLayout, Topology, edges_of_adjacency, topology_from_adjacency
from tenfold.gfkd.config import GenerationConfig
from tenfold.gfkd.graphs import GraphSet
from tenfold.gfkd.losses import NodeGroups, batch_norm_distance, one_hot_entropy
from tenfold.gfkd.models import GraphClassifier
from tenfold.gfkd.structure import ESTIMATORS, NOISE_SAMPLES, initial_structure, mirrored, threshold
from tenfold.shared.logging import TenfoldError
from tenfold.shared.seeding import make_generator


@dataclass(frozen=True)
class Learned:
    """What a generation method optimises."""

    features: bool
    structure: bool


GENERATION_METHODS: dict[str, Learned] = {
    "GFKD": Learned(features=True, structure=True),
    "DeepInvG": Learned(features=True, structure=False),
    "RandG": Learned(features=False, structure=False),
}


class TeacherObjective:
    """L = mean_i CE(T(A_i, X_i), y_i) + w_bn R_bn + w_oh R_oh for one or more independent groups of graphs.

    A group (one generation seed) has statistics and means of its own, so the groups do not influence one another.

    Args:
        teacher: the trained classifier; it is put in eval mode and its weights are frozen.
        layout: the nodes of all B graphs.
        labels: [B].
        group_graphs: number of graphs of each of the S consecutive groups; they sum to B.
        bn_weight: w_bn.
        onehot_weight: w_oh.
        backend: message passing for the fake graphs.
        per_graph_bn: in the structure step, the batch-norm distance of each graph by itself.
    """

    def __init__(
        self,
        teacher: GraphClassifier,
        layout: NodeLayout,
        labels: Tensor,
        group_graphs: Sequence[int],
        bn_weight: float,
        onehot_weight: float,
        backend: Backend = "dense",
        per_graph_bn: bool = False,
    ) -> None:
        self.teacher = teacher.eval().requires_grad_(False)
        self.layout, self.labels, self.backend = layout, labels, backend
        self.bn_weight, self.onehot_weight, self.per_graph_bn = bn_weight, onehot_weight, per_graph_bn
        sizes = torch.tensor(list(group_graphs), device=labels.device)
        self.graph_ptr = _pointers(sizes)
        self.node_ptr = _pointers(layout.node_counts)[self.graph_ptr]
        self.graph_groups, self.node_groups = NodeGroups(sizes), NodeGroups(self.node_ptr.diff())
        self._stacked: dict[int, tuple[NodeLayout, NodeGroups]] = {}

    def topology(self, adjacency: Tensor) -> Topology:
        """The fake graphs [B, n, n], self loops included, for the teacher."""
        return topology_from_adjacency(adjacency, self.layout, self.backend)

    def feature_loss(
        self, feature_logits: Tensor, features: Tensor, topology: Topology, one_hot: bool
    ) -> Tensor:
        """L of every group, [S], for one structure.

        Args:
            feature_logits: F, [N, d]; R_oh is the entropy of its softmax.
            features: X, [N, d], what the teacher sees.
            topology: the structure.
            one_hot: whether R_oh counts.
        """
        trace = self.teacher.trace(features, topology)
        distance = batch_norm_distance(self.teacher.batch_norms(), trace.norm_inputs, self.node_groups)
        losses = cross_entropy(trace.logits, self.labels, reduction="none")
        total = self.graph_groups.mean(losses[:, None]).squeeze(1) + self.bn_weight * distance.sum(dim=1)
        if one_hot:
            entropy = self.node_groups.mean(one_hot_entropy(feature_logits)[:, None]).squeeze(1)
            total = total + self.onehot_weight * entropy
        return total

    def structure_values(self, features: Sequence[Tensor], adjacencies: Sequence[Tensor]) -> list[Tensor]:
        """f_i = CE_i + w_bn R_bn of every graph for each of K structures, K tensors [B], in one forward pass.

        Args:
            features: X of each structure, K tensors [N, d].
            adjacencies: K tensors [B, n, n] with self loops.
        """
        samples = len(adjacencies)
        layout, groups = self._stack(samples)
        topology = topology_from_adjacency(torch.cat(list(adjacencies)), layout, self.backend)
        trace = self.teacher.trace(torch.cat(list(features)), topology)
        losses = cross_entropy(trace.logits, self.labels.repeat(samples), reduction="none").view(samples, -1)
        distance = batch_norm_distance(self.teacher.batch_norms(), trace.norm_inputs, groups).sum(dim=1)
        distance = distance.view(samples, -1)
        if not self.per_graph_bn:
            distance = distance[:, self.graph_groups.group_of_node]
        return list(losses + self.bn_weight * distance)

    def _stack(self, samples: int) -> tuple[NodeLayout, NodeGroups]:
        """Layout of ``samples`` copies of the graphs, and the groups of nodes that have statistics of their own."""
        if samples not in self._stacked:
            counts = self.layout.node_counts
            layout = NodeLayout(counts.repeat(samples), self.layout.max_nodes)
            group_nodes = counts if self.per_graph_bn else self.node_ptr.diff()
            self._stacked[samples] = layout, NodeGroups(group_nodes.repeat(samples))
        return self._stacked[samples]


class GraphGenerator:
    """Fake graphs of one or more seeds, optimised together in one batch.

    Each seed draws from a generator of its own: what it becomes does not depend on the seeds beside it.

    Args:
        teacher: trained classifier.
        config: sizes, learning rates, weights; ``num_graphs`` must be set.
        learned: what is optimised, a value of :data:`GENERATION_METHODS`.
        seeds: one set of fake graphs each.
        known_degrees: [d], ascending in-degrees behind the teacher's columns; needed for degree features.
        backend: message passing.
        device: where to compute.

    Raises:
        TenfoldError: the straight-through estimator on a backend that is not differentiable in the structure.
    """

    def __init__(
        self,
        teacher: GraphClassifier,
        config: GenerationConfig,
        learned: Learned,
        seeds: Sequence[int],
        known_degrees: Tensor | None = None,
        backend: Backend = "dense",
        device: torch.device | str = "cpu",
    ) -> None:
        assert config.num_graphs is not None
        if config.estimator == "straight-through" and backend != "dense":
            raise TenfoldError(f"the straight-through estimator needs --backend dense, not {backend}")
        self.config, self.learned, self.seeds, self.iteration = config, learned, tuple(seeds), 0
        self.num_features, self.num_classes = teacher.input_dim, teacher.output_dim
        self.generators = [make_generator(seed, device) for seed in seeds]
        self.known_degrees = None if known_degrees is None else known_degrees.to(device)

        counts, labels = [], []
        for generator in self.generators:
            shape = (config.num_graphs,)
            counts.append(
                torch.randint(
                    config.min_nodes, config.max_nodes + 1, shape, generator=generator, device=device
                )
            )
            labels.append(torch.randint(self.num_classes, shape, generator=generator, device=device))
        self._layouts = [NodeLayout(count) for count in counts]
        self.layout = NodeLayout(torch.cat(counts))
        self.objective = TeacherObjective(
            teacher.to(device),
            self.layout,
            torch.cat(labels),
            [config.num_graphs] * len(seeds),
            config.bn_weight,
            config.onehot_weight,
            backend,
            config.per_graph_bn,
        )

        structure = self._by_seed(initial_structure)
        self.structure_logits = mirrored(structure) if config.undirected else structure
        self.feature_logits = torch.cat(
            [
                torch.randn(int(count.sum()), self.num_features, generator=generator, device=device)
                for count, generator in zip(counts, self.generators, strict=True)
            ]
        ).requires_grad_()
        self.structure_optimizer = _adam(self.structure_logits, config.structure_lr)
        self.feature_optimizer = _adam(self.feature_logits, config.feature_lr)

        self._fixed_structure: tuple[Tensor, Topology] | None = None
        self.best_loss = torch.full((len(seeds),), torch.inf, device=device)
        self.best_adjacency = threshold(self.structure_logits, self.layout)
        self.best_feature_logits = self.feature_logits.detach().clone()

    def step(self) -> Tensor:
        """One iteration; returns the objective L of each seed before it, [S], on the device."""
        config, decay = self.config, self.config.lr_decay ** (self.iteration // self.config.lr_decay_every)
        self.feature_optimizer.param_groups[0]["lr"] = config.feature_lr * decay
        self.structure_optimizer.param_groups[0]["lr"] = config.structure_lr * decay

        adjacency, topology = self.current_structure()
        with torch.set_grad_enabled(self.learned.features and config.features != "degree"):
            loss = self.loss(adjacency, topology)
        self._keep_best(loss.detach(), adjacency)
        if loss.requires_grad:
            (self.feature_logits.grad,) = torch.autograd.grad(loss.sum(), self.feature_logits)
            self.feature_optimizer.step()
        if self.learned.structure:
            self.structure_logits.grad = self._structure_gradient()
            self.structure_optimizer.step()
        self.iteration += 1
        return loss.detach()

    @torch.no_grad()
    def current_loss(self) -> Tensor:
        """L of each seed as it stands now, [S]; graphs that were never optimised are kept as they are."""
        adjacency, topology = self.current_structure()
        loss = self.loss(adjacency, topology)
        if self.iteration == 0:
            self._keep_best(loss, adjacency)
        return loss

    def current_structure(self) -> tuple[Tensor, Topology]:
        """The thresholded structure [B, n, n], kept from step to step where it is not learned."""
        if self._fixed_structure is not None:
            return self._fixed_structure
        adjacency = threshold(self.structure_logits, self.layout)
        structure = adjacency, self.objective.topology(adjacency)
        if not self.learned.structure:
            self._fixed_structure = structure
        return structure

    def loss(self, adjacency: Tensor, topology: Topology) -> Tensor:
        """The objective L of each seed, [S], for a structure [B, n, n]."""
        one_hot = self.config.features == "one-hot"
        return self.objective.feature_loss(self.feature_logits, self.features(adjacency), topology, one_hot)

    def features(self, adjacency: Tensor) -> Tensor:
        """X, [N, d], as the teacher sees it on a structure."""
        if self.config.features == "one-hot":
            return softmax(self.feature_logits, dim=1)
        if self.config.features == "continuous":
            return self.feature_logits
        return one_hot(self._degree_columns(adjacency), self.num_features).to(self.feature_logits.dtype)

    def graphs(self, seed: int) -> GraphSet:
        """The kept fake graphs of one seed, discrete, on the CPU."""
        index = self.seeds.index(seed)
        graphs, nodes = self._graph_slice(index), self._node_slice(index)
        adjacency, layout = self.best_adjacency[graphs], NodeLayout(self.layout.node_counts[graphs])
        official = self.config.keep == "official"
        logits = (self.feature_logits.detach() if official else self.best_feature_logits)[nodes]
        if self.config.features == "degree":
            node_features = self._degree_columns(self.best_adjacency)[nodes]
        else:
            node_features = logits if self.config.features == "continuous" else logits.argmax(dim=1)
        adjacency = adjacency[:, : layout.max_nodes, : layout.max_nodes]
        edge_counts = adjacency.sum(dim=(1, 2))
        starts = torch.repeat_interleave(layout.node_counts.cumsum(0) - layout.node_counts, edge_counts)
        return GraphSet(
            node_counts=layout.node_counts,
            edge_counts=edge_counts,
            edges=edges_of_adjacency(adjacency, layout) - starts,
            labels=self.objective.labels[graphs],
            nodes=node_features,
            num_features=self.num_features,
            num_classes=self.num_classes,
        ).to("cpu")

    def state_dict(self, seed: int) -> dict[str, Any]:
        """Everything one seed needs to go on, independent of the seeds beside it."""
        index = self.seeds.index(seed)
        return {
            "iteration": self.iteration,
            "generator": self.generators[index].get_state(),
            "best_loss": self.best_loss[index].clone(),
            **{name: tensor.detach()[part].clone() for name, tensor, part in self._parts(index)},
        }

    def load_state_dict(self, seed: int, state: dict[str, Any]) -> None:
        """Put one seed back to where :meth:`state_dict` saw it. All seeds must be at the same iteration."""
        index = self.seeds.index(seed)
        self.iteration = state["iteration"]
        self.generators[index].set_state(state["generator"])
        self.best_loss[index] = state["best_loss"]
        for name, tensor, part in self._parts(index):
            tensor.detach()[part] = state[name].to(tensor.device)
        self._fixed_structure = None
        for optimizer in (self.structure_optimizer, self.feature_optimizer):
            for moments in optimizer.state.values():
                moments["step"].fill_(self.iteration)

    def _structure_gradient(self) -> Tensor:
        config = self.config
        noise = self._by_seed(
            lambda layout, generator: torch.rand(
                (NOISE_SAMPLES[config.estimator] * layout.num_graphs, layout.max_nodes, layout.max_nodes),
                generator=generator,
                device=generator.device,
            )
        )
        if config.undirected:
            noise = mirrored(noise)
        if NOISE_SAMPLES[config.estimator] > 1:
            noise = noise.view(len(self.seeds), -1, config.num_graphs or 0, *noise.shape[1:])
            noise = noise.transpose(0, 1).flatten(1, 2)

        def objective(adjacencies: list[Tensor]) -> list[Tensor]:
            if config.features == "degree":
                return self.objective.structure_values([self.features(a) for a in adjacencies], adjacencies)
            features = [self.features(adjacencies[0])] * len(adjacencies)
            return self.objective.structure_values(features, adjacencies)

        with torch.no_grad():
            gradient = ESTIMATORS[config.estimator](self.structure_logits, noise, self.layout, objective)
        if config.undirected and config.estimator == "straight-through":
            gradient = gradient + gradient.transpose(1, 2)
        return gradient

    def _keep_best(self, loss: Tensor, adjacency: Tensor) -> None:
        improved = loss < self.best_loss
        graphs, nodes = (
            improved[self.objective.graph_groups.group_of_node],
            improved[self.objective.node_groups.group_of_node],
        )
        self.best_loss = torch.where(improved, loss, self.best_loss)
        self.best_adjacency = torch.where(graphs[:, None, None], adjacency, self.best_adjacency)
        self.best_feature_logits = torch.where(
            nodes[:, None], self.feature_logits.detach(), self.best_feature_logits
        )

    def _degree_columns(self, adjacency: Tensor) -> Tensor:
        """Column of each node's in-degree; a degree the teacher never saw takes the nearest it knows, [N]."""
        assert self.known_degrees is not None, "degree features need the teacher's known degrees"
        degrees = self.layout.pack(adjacency.sum(dim=1).unsqueeze(2)).squeeze(1)
        known = self.known_degrees.to(torch.float32)
        return torch.bucketize(degrees.to(torch.float32), (known[1:] + known[:-1]) / 2)

    def _by_seed(self, draw: Any) -> Tensor:
        """Draw padded noise for each seed at its own size, and place it in the common padding."""
        drawn = [
            draw(layout, generator) for layout, generator in zip(self._layouts, self.generators, strict=True)
        ]
        size = self.layout.max_nodes
        return torch.cat(
            [
                torch.nn.functional.pad(part, (0, size - part.shape[-1], 0, size - part.shape[-2]))
                for part in drawn
            ]
        )

    def _graph_slice(self, index: int) -> slice:
        return slice(*self.objective.graph_ptr[index : index + 2].tolist())

    def _node_slice(self, index: int) -> slice:
        return slice(*self.objective.node_ptr[index : index + 2].tolist())

    def _parts(self, index: int) -> list[tuple[str, Tensor, Any]]:
        """Every tensor of the state, with the part of it that belongs to one seed."""
        graphs, nodes, size = (
            self._graph_slice(index),
            self._node_slice(index),
            self._layouts[index].max_nodes,
        )
        square = (graphs, slice(size), slice(size))
        structure, feature = (
            self.structure_optimizer.state[self.structure_logits],
            self.feature_optimizer.state[self.feature_logits],
        )
        return [
            ("structure_logits", self.structure_logits, square),
            ("structure_exp_avg", structure["exp_avg"], square),
            ("structure_exp_avg_sq", structure["exp_avg_sq"], square),
            ("best_adjacency", self.best_adjacency, square),
            ("feature_logits", self.feature_logits, nodes),
            ("feature_exp_avg", feature["exp_avg"], nodes),
            ("feature_exp_avg_sq", feature["exp_avg_sq"], nodes),
            ("best_feature_logits", self.best_feature_logits, nodes),
        ]


def chunk_sizes(config: GenerationConfig) -> list[int]:
    """How many of the ``num_graphs`` fake graphs are optimised at a time."""
    assert config.num_graphs is not None
    size = config.graphs_per_batch or config.num_graphs
    return [min(size, config.num_graphs - start) for start in range(0, config.num_graphs, size)]


def chunk_seed(seed: int, chunk: int) -> int:
    """The seed of one chunk of fake graphs; the first chunk has the run's own."""
    return seed + 1_000_003 * chunk


def _adam(parameter: Tensor, lr: float) -> torch.optim.Adam:
    """Adam with its state made at once, so that a checkpoint can be put into it."""
    optimizer = torch.optim.Adam([parameter], lr=lr, fused=True)
    optimizer.state[parameter] = {
        "step": torch.zeros((), device=parameter.device),
        "exp_avg": torch.zeros_like(parameter),
        "exp_avg_sq": torch.zeros_like(parameter),
    }
    return optimizer


def _pointers(sizes: Tensor) -> Tensor:
    """[k] sizes to [k + 1] beginnings and ends."""
    return torch.cat([sizes.new_zeros(1), sizes.cumsum(0)])
