"""Message passing on one graph, by two interchangeable backends with equal numbers.

A :class:`Topology` is the structure of a graph of n nodes whose edges u -> v send the value of u to v. It is made once
and used in every pass. Message passing always computes in fp32.

- ``pyg``: torch_geometric's :class:`~torch_geometric.EdgeIndex`, sparse matrix products with both orders cached.
- ``dgl``: DGL's kernels, an extra (``tenfold-reliant[dgl]``).

A sampled part of a graph is a topology too: it knows the degrees of the whole graph, and scales each sum over
sampled edges up to the sum over all of them, so that it has the right expectation.
"""

from __future__ import annotations

import os
import warnings
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor
from torch.nn.functional import dropout
from torch_geometric import EdgeIndex

from tenfold.shared.logging import TenfoldError

if TYPE_CHECKING:
    from dgl import DGLGraph

Backend = Literal["pyg", "dgl"]


class Topology(ABC):
    """What a graph network needs of the structure.

    Args:
        edge_index: [2, E], source and target; kept as :attr:`edge_index` ordered by target.
        num_nodes: n.
        in_degree: [n], in-degrees in the whole graph where this is a sampled part of it; by default those of
            ``edge_index``.
        node_ids: [n], the nodes' numbers in the whole graph; None where this is the whole graph.
    """

    def __init__(
        self,
        edge_index: Tensor,
        num_nodes: int,
        in_degree: Tensor | None = None,
        node_ids: Tensor | None = None,
    ) -> None:
        self.edge_index = edge_index[:, edge_index[1].argsort(stable=True)].contiguous()
        self.num_nodes = num_nodes
        self.node_ids = node_ids
        sampled = torch.bincount(edge_index[1], minlength=num_nodes).float()
        degree = sampled if in_degree is None else in_degree.float()
        self._sampling_scale = (degree / sampled.clamp(min=1)).unsqueeze(1)
        self._degree = degree.unsqueeze(1)
        self._root = degree.clamp(min=1).rsqrt().unsqueeze(1)

    def normalized_sum(self, values: Tensor) -> Tensor:
        """Sum over edges u -> v of ``values`` [n, d] divided by sqrt(d_u d_v), in-degrees clamped to at least 1."""
        return self._root * self._sampling_scale * self.sum_incoming(self._root * values.float())

    def mean_with_self(self, values: Tensor) -> Tensor:
        """(sum over edges u -> v of ``values`` [n, d] + own value) / (in-degree + 1): GraphSAGE's "gcn" mean.

        With a self loop in the graph a node counts twice.
        """
        values = values.float()
        return (self._sampling_scale * self.sum_incoming(values) + values) / (self._degree + 1)

    def sum_incoming(self, values: Tensor) -> Tensor:
        """Sum of ``values`` [n, d] over the sources of each node's incoming edges, [n, d]."""
        with _full_precision(values):
            return self._sum_incoming(values.float())

    def attend(self, scores: Tensor, values: Tensor, dropout_rate: float = 0.0) -> Tensor:
        """Attention-weighted mean of ``values`` [n, d] over incoming edges, [n, d].

        The weight of an edge u -> v is the softmax of the source's score over all edges into v, then dropped with
        ``dropout_rate`` and scaled up.

        Args:
            scores: [n], one score a source node.
            values: [n, d].
            dropout_rate: of the weights, after the softmax.
        """
        with _full_precision(values):
            return self._attend(scores.float(), values.float(), dropout_rate)

    def edge_products(self, left: Tensor, right: Tensor) -> Tensor:
        """<left_u, right_v> for each edge u -> v, [n, d] and [n, d] to [E], in the order of :attr:`edge_index`."""
        with _full_precision(left):
            return self._edge_products(left.float(), right.float())

    @abstractmethod
    def attention_weights(self, scores: Tensor) -> Tensor:
        """The weights of :meth:`attend` without dropout, [E], in the order of :attr:`edge_index`."""

    @abstractmethod
    def _sum_incoming(self, values: Tensor) -> Tensor: ...

    @abstractmethod
    def _attend(self, scores: Tensor, values: Tensor, dropout_rate: float) -> Tensor: ...

    @abstractmethod
    def _edge_products(self, left: Tensor, right: Tensor) -> Tensor: ...


def _full_precision(values: Tensor) -> torch.autocast:
    """Sparse products lose too much in 16 bits, and some have no kernel for them."""
    return torch.autocast(values.device.type, enabled=False)


class PygTopology(Topology):
    """Sparse matrix products of torch_geometric. Arguments as for :class:`Topology`."""

    def __init__(
        self,
        edge_index: Tensor,
        num_nodes: int,
        in_degree: Tensor | None = None,
        node_ids: Tensor | None = None,
    ) -> None:
        super().__init__(edge_index, num_nodes, in_degree, node_ids)
        with warnings.catch_warnings():
            warnings.filterwarnings(
                "ignore", message="Sparse (CSR tensor support|invariant checks)"
            )  # once each
            self._edges = EdgeIndex(
                self.edge_index, sparse_size=(num_nodes, num_nodes), sort_order="col"
            ).fill_cache_()
            self._pattern = _Pattern(self._edges, num_nodes)

    def _sum_incoming(self, values: Tensor) -> Tensor:
        summed: Tensor = self._edges.matmul(values, transpose=True)
        return summed

    def _attend(self, scores: Tensor, values: Tensor, dropout_rate: float) -> Tensor:
        attended: Tensor = _Attention.apply(scores, values, dropout_rate, self._pattern)
        return attended

    def attention_weights(self, scores: Tensor) -> Tensor:
        return self._pattern.softmax(scores.float())

    def _edge_products(self, left: Tensor, right: Tensor) -> Tensor:
        products: Tensor = _EdgeProducts.apply(left, right, self._pattern)
        return products


class _Pattern:
    """Where the non-zeros of the adjacency are: by target, the order of all values on edges, and by source."""

    def __init__(self, edges: EdgeIndex, num_nodes: int) -> None:
        (pointer, sources), _ = edges.get_csc()
        (pointer_out, targets), order_out = edges.get_csr()
        self.sources, self.targets = sources, edges.as_tensor()[1]
        self._incoming = (pointer, self.sources)
        self._outgoing = (pointer_out, targets)
        self._order_out = order_out
        self._size = (num_nodes, num_nodes)
        self._zeros = self.matrix(torch.zeros(len(self.sources), device=pointer.device))

    def matrix(self, weights: Tensor) -> Tensor:
        """Sparse [n, n] with the weight [E] of u -> v in row v and column u."""
        return torch.sparse_csr_tensor(*self._incoming, weights, self._size, check_invariants=False)

    def gather(self, weights: Tensor, values: Tensor) -> Tensor:
        """Sum over the edges into each node of weight [E] times the source's value [n, d], [n, d]."""
        return self.matrix(weights) @ values

    def scatter(self, weights: Tensor, values: Tensor) -> Tensor:
        """Sum over the edges out of each node of weight [E] times the target's value [n, d], [n, d]."""
        weights = weights[self._order_out]
        return torch.sparse_csr_tensor(*self._outgoing, weights, self._size, check_invariants=False) @ values

    def products(self, left: Tensor, right: Tensor) -> Tensor:
        """<left_u, right_v> for each edge u -> v, [E]."""
        sampled: Tensor = torch.sparse.sampled_addmm(self._zeros, right, left.t(), beta=0.0).values()
        return sampled

    def softmax(self, scores: Tensor) -> Tensor:
        """Softmax of the sources' scores [n] over the edges into each node, [E]."""
        of_edges = scores[self.sources]
        largest = torch.full_like(scores, -torch.inf).scatter_reduce(0, self.targets, of_edges, "amax")
        raised = (of_edges - largest[self.targets]).exp_()
        total = torch.zeros_like(scores).index_add_(0, self.targets, raised)
        return raised.div_(total[self.targets])


class _Attention(torch.autograd.Function):
    """out_v = sum over u of m_uv w_uv f_u, where w_uv = softmax over the edges into v of e_u, and m is the dropout.

    The gradients need no values on edges: with g the gradient of out, that of f is the transposed product
    df_u = sum_v m_uv w_uv g_v, and that of the scores is f_u . df_u - sum_v w_uv (g_v . out_v).
    """

    @staticmethod
    def forward(ctx: Any, scores: Tensor, values: Tensor, dropout_rate: float, pattern: _Pattern) -> Tensor:
        weights = pattern.softmax(scores)
        kept = dropout(weights, dropout_rate) if dropout_rate > 0 else weights
        out = pattern.gather(kept, values)
        ctx.save_for_backward(weights, kept, values, out)
        ctx.pattern = pattern
        return out

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None, None]:
        weights, kept, values, out = ctx.saved_tensors
        gradient = gradient.contiguous()
        of_values = ctx.pattern.scatter(kept, gradient)
        centred = ctx.pattern.scatter(weights, (gradient * out).sum(dim=1, keepdim=True)).squeeze(1)
        return (values * of_values).sum(dim=1) - centred, of_values, None, None


class _EdgeProducts(torch.autograd.Function):
    """One number an edge, without the ends' rows on edges: forward a sampled product, backward two sparse ones."""

    @staticmethod
    def forward(ctx: Any, left: Tensor, right: Tensor, pattern: _Pattern) -> Tensor:
        ctx.save_for_backward(left, right)
        ctx.pattern = pattern
        return pattern.products(left, right)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        left, right = ctx.saved_tensors
        return ctx.pattern.scatter(gradient, right), ctx.pattern.gather(gradient, left), None


class DglTopology(Topology):
    """A DGL graph and its kernels. Arguments as for :class:`Topology`.

    Raises:
        TenfoldError: DGL is not installed or cannot be loaded here.
    """

    def __init__(
        self,
        edge_index: Tensor,
        num_nodes: int,
        in_degree: Tensor | None = None,
        node_ids: Tensor | None = None,
    ) -> None:
        super().__init__(edge_index, num_nodes, in_degree, node_ids)
        if edge_index.is_cuda:
            raise TenfoldError(
                "the dgl backend computes on the CPU only; add --device cpu, or choose --backend pyg"
            )
        import_dgl()
        import dgl

        self.graph: DGLGraph = dgl.graph((self.edge_index[0], self.edge_index[1]), num_nodes=num_nodes)

    def _sum_incoming(self, values: Tensor) -> Tensor:
        import dgl

        summed: Tensor = dgl.ops.copy_u_sum(self.graph, values)
        return summed

    def _attend(self, scores: Tensor, values: Tensor, dropout_rate: float) -> Tensor:
        import dgl

        weights = dropout(self.attention_weights(scores), dropout_rate)
        attended: Tensor = dgl.ops.u_mul_e_sum(self.graph, values, weights.unsqueeze(1))
        return attended

    def attention_weights(self, scores: Tensor) -> Tensor:
        import dgl

        weights: Tensor = dgl.ops.edge_softmax(self.graph, scores.float()[self.edge_index[0]].unsqueeze(1))
        return weights.squeeze(1)

    def _edge_products(self, left: Tensor, right: Tensor) -> Tensor:
        import dgl

        products: Tensor = dgl.ops.u_dot_v(self.graph, left, right)
        return products.squeeze(1)


def make_topology(
    edge_index: Tensor,
    num_nodes: int,
    backend: Backend = "pyg",
    in_degree: Tensor | None = None,
    node_ids: Tensor | None = None,
) -> Topology:
    """The topology of a graph, or of a sampled part of one. Arguments as for :class:`Topology`.

    Raises:
        TenfoldError: unknown backend, or DGL was asked for and cannot be had here.
    """
    backends: dict[str, type[Topology]] = {"pyg": PygTopology, "dgl": DglTopology}
    if backend not in backends:
        raise TenfoldError(f"unknown backend {backend!r}; choose pyg or dgl")
    return backends[backend](edge_index, num_nodes, in_degree, node_ids)


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
            "install tenfold-reliant[dgl] there, or choose --backend pyg"
        ) from error
