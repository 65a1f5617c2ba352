"""One graph with labels and a sensitive attribute, and where it comes from."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch_geometric.data import Data
from torch_geometric.utils import add_remaining_self_loops, subgraph, to_undirected

from tenfold.reliant.backends import Backend, Topology, import_dgl, make_topology
from tenfold.shared.logging import TenfoldError
from tenfold.shared.runs import load_checkpoint

if TYPE_CHECKING:
    from dgl import DGLGraph


MOST_GROUPS = 20
"""More values of a sensitive attribute than this are taken for a mistake."""


@dataclass(frozen=True)
class FairGraph:
    """N nodes with features, labels and groups; edges are symmetric and each node has one self loop."""

    name: str
    features: Tensor
    """[N, d] float32."""
    labels: Tensor
    """[N] int64, 0 .. C - 1; class 1 is the favourable or examined outcome."""
    sensitive: Tensor
    """[N] int64 groups, 0 .. G - 1."""
    edge_index: Tensor
    """[2, E] int64, both directions of each edge and one self loop a node."""
    train: Tensor
    """Node numbers of the training split."""
    val: Tensor
    """Node numbers of the validation split."""
    test: Tensor
    """Node numbers of the test split."""
    feature_names: tuple[str, ...] = ()
    provenance: str = ""
    """Where features and edges come from, in one sentence."""

    @property
    def num_nodes(self) -> int:
        return len(self.labels)

    @property
    def num_features(self) -> int:
        return self.features.shape[1]

    @property
    def num_classes(self) -> int:
        return int(self.labels.max()) + 1

    @property
    def num_groups(self) -> int:
        return int(self.sensitive.max()) + 1

    @property
    def num_undirected_edges(self) -> int:
        """Pairs of different nodes that are connected."""
        return (self.edge_index.shape[1] - self.num_nodes) // 2

    def topology(self, backend: Backend = "pyg") -> Topology:
        """The whole graph for a network."""
        return make_topology(self.edge_index, self.num_nodes, backend)

    def to(self, device: torch.device | str) -> FairGraph:
        """The same graph on another device."""
        tensors: dict[str, Any] = {
            name: value.to(device) for name, value in vars(self).items() if isinstance(value, Tensor)
        }
        return replace(self, **tensors)

    def induced_subgraph(self, nodes: Tensor, name: str) -> FairGraph:
        """The graph on some of its nodes, which are numbered anew in the order given; splits are cut to them."""
        position = torch.full((self.num_nodes,), -1, dtype=torch.int64)
        position[nodes] = torch.arange(len(nodes))
        edges, _ = subgraph(nodes, self.edge_index, relabel_nodes=False, num_nodes=self.num_nodes)
        edges = position[edges]
        parts = {name: position[getattr(self, name)] for name in ("train", "val", "test")}
        splits: dict[str, Any] = {name: part[part >= 0] for name, part in parts.items()}
        return replace(
            self,
            name=name,
            features=self.features[nodes],
            labels=self.labels[nodes],
            sensitive=self.sensitive[nodes],
            edge_index=edges[:, (edges[0] * len(nodes) + edges[1]).argsort()],
            **splits,
            provenance=f"{len(nodes)} nodes of: {self.provenance}",
        )

    def digest(self) -> str:
        """SHA-256 of everything that a training sees."""
        content = hashlib.sha256()
        for name in ("features", "labels", "sensitive", "edge_index", "train", "val", "test"):
            content.update(getattr(self, name).cpu().contiguous().numpy().tobytes())
        return content.hexdigest()

    def to_pyg(self) -> Data:
        """A :class:`torch_geometric.data.Data` with x, y, edge_index, sensitive and the three masks."""
        return Data(
            x=self.features,
            y=self.labels,
            edge_index=self.edge_index,
            sensitive=self.sensitive,
            **{f"{split}_mask": self.mask(split) for split in ("train", "val", "test")},
        )

    def to_dgl(self) -> DGLGraph:
        """A DGL graph with the same names in ``ndata`` (``feat`` and ``label`` for x and y)."""
        import_dgl()
        import dgl

        graph = dgl.graph((self.edge_index[0], self.edge_index[1]), num_nodes=self.num_nodes)
        graph.ndata.update(feat=self.features, label=self.labels, sensitive=self.sensitive)
        graph.ndata.update({f"{split}_mask": self.mask(split) for split in ("train", "val", "test")})
        return graph

    def mask(self, split: str) -> Tensor:
        """[N] bool, which nodes are in ``train``, ``val`` or ``test``."""
        chosen = torch.zeros(self.num_nodes, dtype=torch.bool, device=self.labels.device)
        chosen[getattr(self, split)] = True
        return chosen

    @staticmethod
    def from_pyg(data: Data, sensitive: Tensor | int | None = None, name: str = "graph") -> FairGraph:
        """Any node classification graph of torch_geometric; edges are made symmetric and get self loops.

        Args:
            data: with x [N, d], edge_index, y [N] and the three masks.
            sensitive: [N] groups, or the number of the column of x that holds them; by default
                ``data.sensitive``.
            name: of the graph.

        Raises:
            TenfoldError: something is missing or has another size; the message names it.
        """
        for field in ("x", "edge_index", "y", "train_mask", "val_mask", "test_mask"):
            if data.get(field) is None:
                raise TenfoldError(f"the graph has no {field}; it needs x, edge_index, y and the three masks")
        if sensitive is None:
            sensitive = data.get("sensitive")
        if sensitive is None:
            raise TenfoldError("the graph has no 'sensitive'; name the column of x that holds the groups")
        if data.x.ndim != 2 or not data.x.isfinite().all():
            raise TenfoldError("x must be a matrix [nodes, features] of finite numbers")
        num_nodes = len(data.x)
        if isinstance(sensitive, int) and not -data.x.shape[1] <= sensitive < data.x.shape[1]:
            raise TenfoldError(f"there is no column {sensitive} among {data.x.shape[1]} features")
        values_of_groups: Tensor = data.x[:, sensitive] if isinstance(sensitive, int) else sensitive
        for field, values in (("y", data.y), ("sensitive", values_of_groups)):
            if values.shape != (num_nodes,):
                raise TenfoldError(f"{field} has shape {tuple(values.shape)} instead of ({num_nodes},)")
        edges_are_pairs = data.edge_index.dtype == torch.int64 and data.edge_index.ndim == 2
        if not edges_are_pairs or len(data.edge_index) != 2:
            raise TenfoldError(
                f"edge_index must be whole numbers [2, edges], not {tuple(data.edge_index.shape)}"
            )
        if (
            data.edge_index.numel()
            and not 0 <= int(data.edge_index.min()) <= int(data.edge_index.max()) < num_nodes
        ):
            raise TenfoldError(f"edge_index names nodes outside 0..{num_nodes - 1}")
        for split in ("train", "val", "test"):
            mask = data[f"{split}_mask"]
            if mask.dtype != torch.bool or mask.shape != (num_nodes,):
                raise TenfoldError(f"{split}_mask must be true or false for each of {num_nodes} nodes")
        groups, group_of_node = torch.unique(values_of_groups, return_inverse=True)
        if not 2 <= len(groups) <= MOST_GROUPS:
            raise TenfoldError(
                f"the sensitive attribute has {len(groups)} values; fairness between groups needs 2 to {MOST_GROUPS}, "
                "so put a continuous one into classes first"
            )
        if data.y.is_floating_point() and not torch.equal(data.y, data.y.round()):
            raise TenfoldError("y must be classes, that is whole numbers from 0")
        if int(data.y.min()) < 0 or int(data.y.max()) < 1:
            raise TenfoldError("y must be classes from 0, and at least two of them")
        edges = to_undirected(data.edge_index, num_nodes=num_nodes)
        edges, _ = add_remaining_self_loops(edges, num_nodes=num_nodes)
        splits = {split: data[f"{split}_mask"].nonzero().squeeze(1) for split in ("train", "val", "test")}
        if empty := [split for split, nodes in splits.items() if len(nodes) == 0]:
            raise TenfoldError(f"the {empty[0]} mask of the graph chooses no node")
        return FairGraph(
            name=name,
            features=data.x.float(),
            labels=data.y.long(),
            sensitive=group_of_node,
            edge_index=edges,
            **splits,
            provenance="a graph of the user",
        )

    @staticmethod
    def load(path: Path, sensitive: int | None = None) -> FairGraph:
        """A graph saved by ``torch.save(data.to_dict(), path)``. Arguments and errors as for :meth:`from_pyg`."""
        content: dict[str, Any] = load_checkpoint(path)
        return FairGraph.from_pyg(Data.from_dict(content), sensitive, path.stem)


def with_self_loops(undirected: Tensor, num_nodes: int) -> Tensor:
    """Both directions of each edge and one self loop a node, ordered by source and target.

    Args:
        undirected: [2, e], each edge in one direction or in both; loops are taken out first.
        num_nodes: N.
    """
    edges = undirected[:, undirected[0] != undirected[1]]
    loops = torch.arange(num_nodes).expand(2, -1)
    symmetric: Tensor = to_undirected(torch.cat([edges, loops], dim=1), num_nodes=num_nodes)
    return symmetric
