"""Many graphs in a few flat tensors, on any device."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.functional import one_hot
from torch_geometric.data import Data

from tenfold.gfkd.backends import Backend, Topology, import_dgl, topology_from_edges

if TYPE_CHECKING:
    from dgl import DGLGraph


@dataclass(frozen=True)
class GraphSet:
    """G labelled graphs with N nodes and E directed edges in all, packed one after the other.

    Node features are classes (one-hot encoded when a network reads them) or continuous vectors.
    """

    node_counts: Tensor
    """[G] int64."""
    edge_counts: Tensor
    """[G] int64, self loops included."""
    edges: Tensor
    """[2, E] int64, source and target, numbered within their own graph."""
    labels: Tensor
    """[G] int64."""
    nodes: Tensor
    """[N] int64 node classes, or [N, d] floating-point features."""
    num_features: int
    """Columns d of the feature matrix."""
    num_classes: int
    """Graph classes C."""

    def __len__(self) -> int:
        return len(self.labels)

    def features(self) -> Tensor:
        """The feature matrix [N, d], float32."""
        if self.nodes.is_floating_point():
            return self.nodes
        return one_hot(self.nodes, self.num_features).to(torch.get_default_dtype())

    def topology(self, backend: Backend = "pyg") -> Topology:
        """All graphs as one batch for a network."""
        return topology_from_edges(self.packed_edges(), self.node_counts, backend)

    def packed_edges(self) -> Tensor:
        """[2, E] with the nodes numbered through all graphs."""
        starts = self.node_counts.cumsum(0) - self.node_counts
        return self.edges + torch.repeat_interleave(starts, self.edge_counts)

    def select(self, indices: Tensor | Sequence[int]) -> GraphSet:
        """The graphs at ``indices``, in that order."""
        chosen = torch.as_tensor(indices, dtype=torch.int64, device=self.labels.device)
        nodes = _ranges(self.node_counts, chosen)
        return replace(
            self,
            node_counts=self.node_counts[chosen],
            edge_counts=self.edge_counts[chosen],
            edges=self.edges[:, _ranges(self.edge_counts, chosen)],
            labels=self.labels[chosen],
            nodes=self.nodes[nodes],
        )

    def to(self, device: torch.device | str) -> GraphSet:
        """The same graphs on another device."""
        return replace(
            self,
            node_counts=self.node_counts.to(device),
            edge_counts=self.edge_counts.to(device),
            edges=self.edges.to(device),
            labels=self.labels.to(device),
            nodes=self.nodes.to(device),
        )

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain values, for a checkpoint; ``GraphSet(**state)`` is the way back."""
        return dict(self.__dict__)

    def to_pyg(self) -> list[Data]:
        """One :class:`torch_geometric.data.Data` (x, edge_index, y) a graph."""
        features = self.features().split(self.node_counts.tolist())
        edges = self.edges.split(self.edge_counts.tolist(), dim=1)
        return [
            Data(x=x, edge_index=edge_index, y=y)
            for x, edge_index, y in zip(features, edges, self.labels.split(1), strict=True)
        ]

    def to_dgl(self) -> list[DGLGraph]:
        """One DGL graph each, features in ``ndata["attr"]`` as in :class:`dgl.data.GINDataset`."""
        import_dgl()
        import dgl

        graphs = []
        for data in self.to_pyg():
            graph = dgl.graph((data.edge_index[0], data.edge_index[1]), num_nodes=data.num_nodes)
            graph.ndata["attr"] = data.x
            graphs.append(graph)
        return graphs


def graph_set(
    graphs: Sequence[tuple[int, Tensor, Tensor, int]], num_features: int, num_classes: int
) -> GraphSet:
    """Pack single graphs.

    Args:
        graphs: (number of nodes, edges [2, e], node classes [n] or features [n, d], label) of each graph.
        num_features: columns d of the feature matrix.
        num_classes: graph classes C.
    """
    counts, edges, nodes, labels = zip(*graphs, strict=True)
    return GraphSet(
        node_counts=torch.tensor(counts),
        edge_counts=torch.tensor([edge.shape[1] for edge in edges]),
        edges=torch.cat(edges, dim=1),
        labels=torch.tensor(labels),
        nodes=torch.cat(nodes),
        num_features=num_features,
        num_classes=num_classes,
    )


def concatenate(sets: Sequence[GraphSet]) -> GraphSet:
    """The graphs of several sets with the same features and classes, one set after the other."""
    return replace(
        sets[0],
        node_counts=torch.cat([part.node_counts for part in sets]),
        edge_counts=torch.cat([part.edge_counts for part in sets]),
        edges=torch.cat([part.edges for part in sets], dim=1),
        labels=torch.cat([part.labels for part in sets]),
        nodes=torch.cat([part.nodes for part in sets]),
    )


def batches(graphs: GraphSet, batch_size: int, order: Tensor | None = None) -> Iterator[Tensor]:
    """Indices of consecutive batches, in ``order`` (by default as stored); the last may be smaller."""
    order = torch.arange(len(graphs)) if order is None else order
    yield from order.split(batch_size)


def _ranges(counts: Tensor, chosen: Tensor) -> Tensor:
    """Positions in the packed order of everything that belongs to the chosen graphs."""
    starts, lengths = (counts.cumsum(0) - counts)[chosen], counts[chosen]
    within = torch.arange(int(lengths.sum()), device=counts.device)
    within = within - torch.repeat_interleave(lengths.cumsum(0) - lengths, lengths)
    return torch.repeat_interleave(starts, lengths) + within
