"""The two teachers: GCN (Kipf and Welling, https://arxiv.org/abs/1609.02907) and GraphSAGE with the "gcn" mean
(Hamilton et al., https://arxiv.org/abs/1706.02216). Initialised as DGL does, whatever the backend.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any, Literal

import torch
from torch import Tensor, nn

from tenfold.reliant.backends import Topology
from tenfold.reliant.node_output import NodeOutput
from tenfold.shared.logging import TenfoldError

TeacherKind = Literal["gcn", "sage"]


class GraphConvolution(nn.Module):
    """h'_v = sum over edges u -> v of h_u W / sqrt(d_u d_v) + b."""

    def __init__(self, input_dim: int, output_dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(input_dim, output_dim))
        self.bias = nn.Parameter(torch.zeros(output_dim))
        nn.init.xavier_uniform_(self.weight)

    def forward(self, values: Tensor, topology: Topology) -> Tensor:
        """[n, input_dim] to [n, output_dim]; messages are sent where they are narrower."""
        if self.weight.shape[0] < self.weight.shape[1]:
            return topology.normalized_sum(values) @ self.weight + self.bias
        return topology.normalized_sum(values @ self.weight) + self.bias


class SageConvolution(nn.Module):
    """h'_v = W (sum over edges u -> v of h_u + h_v) / (d_v + 1) + b."""

    def __init__(self, input_dim: int, output_dim: int) -> None:
        super().__init__()
        self.fc_neigh = nn.Linear(input_dim, output_dim, bias=False)
        self.bias = nn.Parameter(torch.zeros(output_dim))
        nn.init.xavier_uniform_(self.fc_neigh.weight, gain=nn.init.calculate_gain("relu"))

    def forward(self, values: Tensor, topology: Topology) -> Tensor:
        """[n, input_dim] to [n, output_dim]; messages are sent where they are narrower."""
        if self.fc_neigh.in_features < self.fc_neigh.out_features:
            projected: Tensor = self.fc_neigh(topology.mean_with_self(values))
            return projected + self.bias
        return topology.mean_with_self(self.fc_neigh(values)) + self.bias


class GCN(nn.Module):
    """Graph convolutions, ReLU between them, dropout before each but the first.

    The embedding is the first convolution's output after its ReLU.

    Args:
        input_dim: node features d.
        hidden_dim: width, 64 in the paper's experiments.
        num_classes: C.
        hidden_layers: convolutions between the first and the last.
        dropout: rate.
    """

    def __init__(
        self,
        input_dim: int,
        hidden_dim: int = 64,
        num_classes: int = 2,
        hidden_layers: int = 1,
        dropout: float = 0.8,
    ) -> None:
        super().__init__()
        self.depth = hidden_layers + 2
        widths = [input_dim] + [hidden_dim] * (hidden_layers + 1) + [num_classes]
        self.layers = nn.ModuleList(GraphConvolution(a, b) for a, b in pairwise(widths))
        self.dropout = nn.Dropout(dropout)

    def forward(self, features: Tensor, topology: Topology) -> NodeOutput:
        """Features [n, d] to logits [n, C] and embedding [n, hidden_dim]."""
        first, *others = self.layers
        values = embedding = torch.relu(first(features, topology))
        for layer in others[:-1]:
            values = torch.relu(layer(self.dropout(values), topology))
        return NodeOutput(others[-1](self.dropout(values), topology), embedding)


class GraphSAGE(nn.Module):
    """Convolutions with the "gcn" mean; dropout on the input and after each ReLU.

    The embedding is the first convolution's output *before* its ReLU.

    Args:
        input_dim: node features d.
        hidden_dim: width, 128 in the paper's experiments.
        num_classes: C.
        hidden_layers: convolutions between the first and the last.
        dropout: rate.
    """

    def __init__(
        self,
        input_dim: int,
        hidden_dim: int = 128,
        num_classes: int = 2,
        hidden_layers: int = 2,
        dropout: float = 0.5,
    ) -> None:
        super().__init__()
        self.depth = hidden_layers + 2
        widths = [input_dim] + [hidden_dim] * (hidden_layers + 1) + [num_classes]
        self.layers = nn.ModuleList(SageConvolution(a, b) for a, b in pairwise(widths))
        self.dropout = nn.Dropout(dropout)

    def forward(self, features: Tensor, topology: Topology) -> NodeOutput:
        """Features [n, d] to logits [n, C] and embedding [n, hidden_dim]."""
        first, *others = self.layers
        values = embedding = first(self.dropout(features), topology)
        for layer in others:
            values = layer(self.dropout(torch.relu(values)), topology)
        return NodeOutput(values, embedding)


def build_teacher(
    kind: str,
    input_dim: int,
    hidden_dim: int | None = None,
    num_classes: int = 2,
    hidden_layers: int | None = None,
    dropout: float | None = None,
) -> GCN | GraphSAGE:
    """A teacher with the paper's size by default; the backend is chosen by the topology it is called with.

    Args:
        kind: ``gcn`` or ``sage``.
        input_dim: node features d.
        hidden_dim: width; by default 64 (GCN) or 128 (GraphSAGE).
        num_classes: C.
        hidden_layers: convolutions between the first and the last; by default 1 (GCN) or 2 (GraphSAGE).
        dropout: rate; by default 0.8 (GCN) or 0.5 (GraphSAGE).

    Raises:
        TenfoldError: unknown kind.
    """
    teachers: dict[str, type[GCN] | type[GraphSAGE]] = {"gcn": GCN, "sage": GraphSAGE, "graphsage": GraphSAGE}
    if kind.lower() not in teachers:
        raise TenfoldError(f"unknown teacher {kind!r}; choose gcn or sage")
    settings = {"hidden_dim": hidden_dim, "hidden_layers": hidden_layers, "dropout": dropout}
    given: dict[str, Any] = {name: value for name, value in settings.items() if value is not None}
    return teachers[kind.lower()](input_dim, num_classes=num_classes, **given)
