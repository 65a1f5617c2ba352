"""What one training step sees: the whole graph, or sampled neighbourhoods of some of its nodes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Literal, Protocol

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch_geometric.data import Data
from torch_geometric.loader import NodeLoader

from tenfold.reliant.backends import Backend, Topology, make_topology
from tenfold.reliant.bias import Objective, group_averages
from tenfold.reliant.graphs import FairGraph
from tenfold.reliant.node_output import NodeOutput, as_node_output
from tenfold.reliant.sampling import NeighbourSampler
from tenfold.shared.logging import TenfoldError
from tenfold.shared.seeding import epoch_order

Role = Literal["train", "unlabelled", "all"]
Forward = Callable[["NodeBatch"], NodeOutput]


@dataclass(frozen=True)
class NodeBatch:
    """n nodes, of which the first k are seeds: losses look at them, the others only send them messages."""

    features: Tensor
    """[n, d]."""
    labels: Tensor
    """[n]."""
    sensitive: Tensor
    """[n]."""
    topology: Topology
    nodes: Tensor | None
    """[n], numbers in the whole graph; None where the batch is the whole graph."""
    num_seeds: int
    """k."""
    roles: dict[Role, Tensor]
    """Rows of the seeds that train, of those that do not (unlabelled), and of all."""
    num_groups: int
    share: dict[Role, float]
    """Which fraction of all nodes of a role is in this batch."""
    _averages: dict[tuple[Role, Objective], Tensor] = field(default_factory=dict)

    def averages(self, role: Role, objective: Objective, pinned: Tensor | None = None) -> Tensor:
        """[G, k], averages over the groups of a role's nodes that are not pinned, for the bias measure."""
        labels = self.labels if objective == "eo" else None
        if pinned is not None:
            return group_averages(self.sensitive, self.roles[role], labels, self.num_groups, pinned)
        key = (role, objective)
        if key not in self._averages:
            self._averages[key] = group_averages(self.sensitive, self.roles[role], labels, self.num_groups)
        return self._averages[key]


class Batches(Protocol):
    """A source of batches."""

    def epoch(self, epoch: int, role: Role = "all") -> Iterator[NodeBatch]:
        """The batches of a training epoch; every node of the role is a seed once."""
        ...

    def predict(self, forward: Forward) -> NodeOutput:
        """Logits and embedding of all N nodes, with complete neighbourhoods."""
        ...


class FullBatches:
    """The whole graph in one batch, always the same.

    Args:
        graph: on the device of training.
        backend: message passing.
    """

    def __init__(self, graph: FairGraph, backend: Backend = "pyg") -> None:
        is_train = graph.mask("train")
        self.batch = NodeBatch(
            graph.features,
            graph.labels,
            graph.sensitive,
            graph.topology(backend),
            None,
            graph.num_nodes,
            {
                "train": is_train.nonzero().squeeze(1),
                "unlabelled": (~is_train).nonzero().squeeze(1),
                "all": torch.arange(graph.num_nodes, device=is_train.device),
            },
            graph.num_groups,
            {"train": 1.0, "unlabelled": 1.0, "all": 1.0},
        )

    def epoch(self, epoch: int, role: Role = "all") -> Iterator[NodeBatch]:  # noqa: ARG002
        yield self.batch

    def predict(self, forward: Forward) -> NodeOutput:
        return forward(self.batch)


class SampledBatches:
    """Seeds in random order with sampled neighbourhoods, through torch_geometric's :class:`NodeLoader`.

    Args:
        graph: on the CPU.
        fanout: incoming edges sampled for each node, hop by hop; -1 takes all.
        batch_size: seeds in a batch of one process.
        seed: of the order; the neighbours are drawn with torch's global generator.
        fabric: launched; each of its processes takes a share of the seeds.
        backend: message passing.
    """

    def __init__(
        self,
        graph: FairGraph,
        fanout: tuple[int, ...],
        batch_size: int,
        seed: int,
        fabric: Fabric,
        backend: Backend = "pyg",
    ) -> None:
        if batch_size < 1 or not fanout or any(count < 1 and count != -1 for count in fanout):
            raise TenfoldError(
                f"sampled training needs a batch size of at least 1 and for each hop a number of neighbours (-1 for "
                f"all), not {batch_size} and {fanout}"
            )
        self._fabric, self._backend = fabric, backend
        self._batch_size, self._seed = batch_size, seed
        is_train = graph.mask("train")
        self._of_role: dict[Role, Tensor] = {
            "train": is_train.nonzero().squeeze(1),
            "unlabelled": (~is_train).nonzero().squeeze(1),
            "all": torch.arange(graph.num_nodes),
        }
        self._num_nodes, self._num_groups = graph.num_nodes, graph.num_groups
        self._data = Data(
            x=graph.features,
            y=graph.labels,
            sensitive=graph.sensitive,
            edge_index=graph.edge_index,
            is_train=is_train,
            in_degree=torch.bincount(graph.edge_index[1], minlength=graph.num_nodes),
        )
        self._sampler = NeighbourSampler(graph.edge_index, graph.num_nodes, fanout)
        self._whole = NeighbourSampler(graph.edge_index, graph.num_nodes, (-1,) * len(fanout))

    def epoch(self, epoch: int, role: Role = "all") -> Iterator[NodeBatch]:
        seeds = self._of_role[role]
        seeds = seeds[epoch_order(len(seeds), self._seed, epoch)]
        # Every process must take part in each exchange of gradients, so all get the same number of seeds.
        world = self._fabric.world_size
        seeds = torch.cat([seeds, seeds[: -len(seeds) % world]])[self._fabric.global_rank :: world]
        yield from self._load(seeds, self._sampler)

    def predict(self, forward: Forward) -> NodeOutput:
        rank, world = self._fabric.global_rank, self._fabric.world_size
        parts: list[Tensor | None] = [None, None]
        for batch in self._load(self._of_role["all"][rank::world], self._whole):
            assert batch.nodes is not None
            nodes = batch.nodes[: batch.num_seeds]
            for index, values in enumerate(forward(batch)[:2]):
                if values is not None:
                    if parts[index] is None:
                        parts[index] = values.new_zeros(self._num_nodes, values.shape[1])
                    parts[index][nodes] = values[: batch.num_seeds]  # type: ignore[index]
        if world > 1:
            parts = [
                None if part is None else self._fabric.all_reduce(part, reduce_op="sum")  # type: ignore[misc]
                for part in parts
            ]
        return NodeOutput(*parts)  # type: ignore[arg-type]

    def _load(self, seeds: Tensor, sampler: NeighbourSampler) -> Iterator[NodeBatch]:
        loader = NodeLoader(self._data, node_sampler=sampler, input_nodes=seeds, batch_size=self._batch_size)
        for part in loader:
            data = part.to(self._fabric.device)
            rows = torch.arange(data.batch_size, device=self._fabric.device)
            trains = data.is_train[: data.batch_size]
            roles: dict[Role, Tensor] = {"train": rows[trains], "unlabelled": rows[~trains], "all": rows}
            yield NodeBatch(
                data.x,
                data.y,
                data.sensitive,
                make_topology(data.edge_index, len(data.x), self._backend, data.in_degree, data.n_id),
                data.n_id,
                data.batch_size,
                roles,
                self._num_groups,
                {role: len(rows) / max(1, len(self._of_role[role])) for role, rows in roles.items()},
            )


def forward_of(network: nn.Module) -> Forward:
    """How a network without proxies sees a batch."""
    return lambda batch: as_node_output(network(batch.features, batch.topology))
