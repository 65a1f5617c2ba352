"""Message passing over a batch of graphs, by three interchangeable backends with equal numbers.

A :class:`Topology` is the structure of a batch of graphs. Node values are always packed, ``[N, d]`` for the N
nodes of all graphs together, and an edge j -> k sends the value of node j to node k. What a graph network needs
of the structure are three operations: the sum over incoming edges, the in-degree, and the sum over each graph.

- ``pyg``: torch_geometric, sparse; the default for real graphs.
- ``dgl``: DGL, sparse; an extra (``tenfold-gfkd[dgl]``).
- ``dense``: adjacency matrices padded to the largest graph and batched matrix products; made for the
  half dense fake graphs, and the only one that is differentiable in the adjacency.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, Protocol

import torch
from torch import Tensor
from torch_geometric.nn import SimpleConv, global_add_pool

from tenfold.shared.logging import TenfoldError

if TYPE_CHECKING:
    from dgl import DGLGraph

Backend = Literal["pyg", "dgl", "dense"]


class Topology(Protocol):
    """Structure of a batch of B graphs with N nodes in all."""

    @property
    def in_degree(self) -> Tensor:
        """Number of incoming edges of every node, shape [N], floating point."""
        ...

    def sum_incoming(self, values: Tensor) -> Tensor:
        """Sum of ``values`` [N, d] over the sources of each node's incoming edges, shape [N, d]."""
        ...

    def normalized_sum(self, values: Tensor) -> Tensor:
        """Sum over incoming edges j -> k of ``values`` [N, d] divided by sqrt(d_j d_k), shape [N, d].

        d are in-degrees on both sides, clamped to at least 1.
        """
        ...

    def sum_graphs(self, values: Tensor) -> Tensor:
        """Sum of ``values`` [N, d] over the nodes of each graph, shape [B, d]."""
        ...


class SparseTopology(ABC):
    """What the sparse backends share.

    Args:
        in_degree: [N], integers.
    """

    def __init__(self, in_degree: Tensor) -> None:
        self.in_degree = in_degree.to(torch.get_default_dtype())
        self._scale = self.in_degree.clamp(min=1).rsqrt().unsqueeze(1)

    @abstractmethod
    def sum_incoming(self, values: Tensor) -> Tensor: ...

    def normalized_sum(self, values: Tensor) -> Tensor:
        return self._scale * self.sum_incoming(self._scale * values)


class PygTopology(SparseTopology):
    """Edge list and torch_geometric's aggregation.

    Args:
        edge_index: [2, E], source and target in the packed numbering.
        node_counts: [B], nodes of each graph.
    """

    def __init__(self, edge_index: Tensor, node_counts: Tensor) -> None:
        self.edge_index = edge_index
        self.num_graphs = len(node_counts)
        self.graph_of_node = torch.repeat_interleave(node_counts)
        self._convolution = SimpleConv(aggr="sum")
        super().__init__(torch.bincount(edge_index[1], minlength=len(self.graph_of_node)))

    def sum_incoming(self, values: Tensor) -> Tensor:
        summed: Tensor = self._convolution(values, self.edge_index)
        return summed

    def sum_graphs(self, values: Tensor) -> Tensor:
        pooled: Tensor = global_add_pool(values, self.graph_of_node, size=self.num_graphs)
        return pooled


class DglTopology(SparseTopology):
    """A batched DGL graph and its message functions. Arguments as for :class:`PygTopology`.

    Raises:
        TenfoldError: DGL is not installed or cannot be loaded here.
    """

    def __init__(self, edge_index: Tensor, node_counts: Tensor) -> None:
        import_dgl()
        import dgl

        self.graph: DGLGraph = dgl.graph((edge_index[0], edge_index[1]), num_nodes=int(node_counts.sum()))
        self.node_counts = node_counts
        super().__init__(self.graph.in_degrees())

    def sum_incoming(self, values: Tensor) -> Tensor:
        import dgl

        summed: Tensor = dgl.ops.copy_u_sum(self.graph, values)
        return summed

    def sum_graphs(self, values: Tensor) -> Tensor:
        import dgl

        summed: Tensor = dgl.ops.segment_reduce(self.node_counts, values, reducer="sum")
        return summed


class NodeLayout:
    """Where the nodes of a padded batch [B, n] lie in the packed order, and the way between the two.

    Args:
        node_counts: [B], nodes of each graph; graph b owns the first ``node_counts[b]`` slots of row b.
        max_nodes: n, by default the largest count.
        self_loops: whether every node of a fake graph has one self loop, as in the paper, or none.

    Attributes:
        node_mask: [B, n], which slots hold a node.
        inside: [B, n, n], the ordered pairs of nodes, each with itself too.
        pairs: [B, n, n], the ordered pairs of different nodes.
        loops: [B, n, n], the self loops.
    """

    def __init__(self, node_counts: Tensor, max_nodes: int | None = None, self_loops: bool = True) -> None:
        self.num_graphs = len(node_counts)
        self.max_nodes = int(node_counts.max()) if max_nodes is None else max_nodes
        self.node_counts = node_counts
        slots = torch.arange(self.max_nodes, device=node_counts.device)
        self.node_mask = slots < node_counts[:, None]
        self.slot_of_node = self.node_mask.flatten().nonzero().squeeze(1)
        diagonal = torch.diag_embed(self.node_mask)
        self.inside = self.node_mask[:, :, None] & self.node_mask[:, None, :]
        self.pairs = self.inside & ~diagonal
        self.loops = diagonal if self_loops else torch.zeros_like(diagonal)

    @cached_property
    def node_of_slot(self) -> Tensor:
        """[B n], the node in each slot; slots without one name node 0."""
        nodes = torch.zeros(
            self.num_graphs * self.max_nodes, dtype=torch.int64, device=self.slot_of_node.device
        )
        return nodes.index_copy(
            0, self.slot_of_node, torch.arange(len(self.slot_of_node), device=nodes.device)
        )

    def pad(self, values: Tensor) -> Tensor:
        """[N, d] to [B, n, d]; slots without a node hold some value that must not be read."""
        padded: Tensor = _Rearrange.apply(values, self.node_of_slot, self.slot_of_node)
        return padded.view(self.num_graphs, self.max_nodes, -1)

    def pack(self, padded: Tensor) -> Tensor:
        """[B, n, d] to [N, d]."""
        packed: Tensor = _Rearrange.apply(padded.flatten(0, 1), self.slot_of_node, self.node_of_slot)
        return packed


class _Rearrange(torch.autograd.Function):
    """``values[index]`` with a gather for its gradient too, where autograd would scatter.

    Slots without a node carry a meaningless value forward and a meaningless gradient backward; the zeros of the
    adjacency keep either from reaching a node.
    """

    @staticmethod
    def forward(ctx: Any, values: Tensor, index: Tensor, inverse: Tensor) -> Tensor:
        ctx.save_for_backward(inverse)
        return values.index_select(0, index)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (inverse,) = ctx.saved_tensors
        return gradient.index_select(0, inverse), None, None


class DenseTopology:
    """Padded adjacency matrices and batched matrix products.

    Args:
        adjacency: [B, n, n], ``adjacency[b, j, k]`` is the weight of the edge j -> k; zero outside the graph.
        layout: the nodes of the padded batch.
    """

    def __init__(self, adjacency: Tensor, layout: NodeLayout) -> None:
        self.layout = layout
        self._adjacency = adjacency.to(torch.get_default_dtype())
        self._padded_in_degree = self._adjacency.sum(dim=1)

    @property
    def in_degree(self) -> Tensor:
        return self.layout.pack(self._padded_in_degree.unsqueeze(2)).squeeze(1)

    @cached_property
    def _normalized(self) -> Tensor:
        scale = self._padded_in_degree.clamp(min=1).rsqrt()
        return scale[:, :, None] * self._adjacency * scale[:, None, :]

    def sum_incoming(self, values: Tensor) -> Tensor:
        return self._propagate(self._adjacency, values)

    def normalized_sum(self, values: Tensor) -> Tensor:
        return self._propagate(self._normalized, values)

    def _propagate(self, adjacency: Tensor, values: Tensor) -> Tensor:
        return self.layout.pack(torch.bmm(adjacency.transpose(1, 2), self.layout.pad(values)))

    def sum_graphs(self, values: Tensor) -> Tensor:
        return torch.bmm(self.layout.node_mask.to(values.dtype)[:, None, :], self.layout.pad(values)).squeeze(
            1
        )


def topology_from_edges(edge_index: Tensor, node_counts: Tensor, backend: Backend) -> Topology:
    """The topology of sparse graphs.

    Args:
        edge_index: [2, E], source and target, numbered *within* all N packed nodes.
        node_counts: [B], nodes of each graph.
        backend: which implementation passes the messages.
    """
    if backend == "pyg":
        return PygTopology(edge_index, node_counts)
    if backend == "dgl":
        return DglTopology(edge_index, node_counts)
    layout = NodeLayout(node_counts)
    starts = node_counts.cumsum(0) - node_counts
    graph = torch.repeat_interleave(node_counts)[edge_index[0]]
    source, target = edge_index - starts[graph]
    adjacency = torch.zeros(layout.num_graphs, layout.max_nodes, layout.max_nodes, device=edge_index.device)
    ones = torch.ones_like(graph, dtype=adjacency.dtype)
    return DenseTopology(adjacency.index_put((graph, source, target), ones, accumulate=True), layout)


def topology_from_adjacency(adjacency: Tensor, layout: NodeLayout, backend: Backend) -> Topology:
    """The topology of padded adjacency matrices [B, n, n]; sparse backends see the non-zero entries."""
    if backend == "dense":
        return DenseTopology(adjacency, layout)
    return topology_from_edges(edges_of_adjacency(adjacency, layout), layout.node_counts, backend)


def edges_of_adjacency(adjacency: Tensor, layout: NodeLayout) -> Tensor:
    """Edge index [2, E] in the packed numbering, ordered by graph, source, target."""
    graph, source, target = adjacency.nonzero(as_tuple=True)
    starts = layout.node_counts.cumsum(0) - layout.node_counts
    return torch.stack([starts[graph] + source, starts[graph] + target])


def import_dgl() -> None:
    """Import DGL without letting it write a settings file into the home directory.

    Raises:
        TenfoldError: it is not installed or cannot be loaded here.
    """
    os.environ.setdefault("DGLBACKEND", "pytorch")
    try:
        import dgl  # noqa: F401
    except (ImportError, OSError) as error:
        raise TenfoldError(
            "the dgl backend needs dgl 1.1.3, which exists for Python 3.11 on x86-64 Linux; "
            "install tenfold-gfkd[dgl] there, or choose --backend pyg"
        ) from error
