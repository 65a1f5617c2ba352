"""GraphAKD's student: three simplified graph convolutions (Wu et al., https://arxiv.org/abs/1902.07153)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tenfold.reliant.backends import Topology
from tenfold.reliant.node_output import NodeOutput


class SimplifiedConvolution(nn.Module):
    """h' = A^K h W + b, where A is the adjacency with both sides divided by the root of the in-degrees."""

    def __init__(self, input_dim: int, output_dim: int, hops: int = 1) -> None:
        super().__init__()
        self.hops = hops
        self.fc = nn.Linear(input_dim, output_dim)
        nn.init.xavier_uniform_(self.fc.weight)
        nn.init.zeros_(self.fc.bias)

    def forward(self, values: Tensor, topology: Topology) -> Tensor:
        """[n, input_dim] to [n, output_dim]; messages are sent where they are narrower."""
        project_first = self.fc.out_features < self.fc.in_features
        if project_first:
            values = nn.functional.linear(values, self.fc.weight)
        for _ in range(self.hops):
            values = topology.normalized_sum(values)
        return values + self.fc.bias if project_first else self.fc(values)


class SGCStudent(nn.Module):
    """Convolution, ReLU, dropout, convolution of K hops, ReLU (the embedding), dropout, convolution.

    Args:
        input_dim: input columns, proxies included.
        hidden_dim: width; adversarial distillation needs the teacher's embedding width.
        num_classes: C.
        num_layers: hops K of the middle convolution.
        dropout: rate.
    """

    def __init__(
        self,
        input_dim: int,
        hidden_dim: int = 64,
        num_classes: int = 2,
        num_layers: int = 1,
        dropout: float = 0.5,
    ) -> None:
        super().__init__()
        self.depth = num_layers + 2
        self.layers = nn.ModuleList(
            [
                SimplifiedConvolution(input_dim, hidden_dim),
                SimplifiedConvolution(hidden_dim, hidden_dim, num_layers),
                SimplifiedConvolution(hidden_dim, num_classes),
            ]
        )
        self.dropout = nn.Dropout(dropout)

    def forward(self, features: Tensor, topology: Topology) -> NodeOutput:
        """Features [n, d] to logits [n, C] and embedding [n, hidden_dim]."""
        first, middle, last = self.layers
        values = torch.relu(first(features, topology))
        embedding = torch.relu(middle(self.dropout(values), topology))
        return NodeOutput(last(self.dropout(embedding), topology), embedding)


def build_sgc_student(
    input_dim: int, hidden_dim: int = 64, num_classes: int = 2, num_layers: int = 1
) -> SGCStudent:
    """:class:`SGCStudent` with the authors' dropout."""
    return SGCStudent(input_dim, hidden_dim, num_classes, num_layers)
