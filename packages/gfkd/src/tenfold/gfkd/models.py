"""The graph classifiers of the paper: GCN and GIN with 2, 3 or 5 layers, 32 or 64 wide.

A network "of L layers" has L - 1 graph convolutions and a linear classifier on the sum of the last
convolution's node values. From the second convolution on, its input is added to its output.

GCN: Kipf and Welling, https://arxiv.org/abs/1609.02907, here with the normalisation the authors of GFKD ran:
*in*-degrees on both sides of an edge, which matters because fake graphs are directed.
GIN: Xu et al., https://arxiv.org/abs/1810.00826, with a fixed epsilon of 0.
"""

from __future__ import annotations

import re
from typing import NamedTuple

import torch
from torch import Tensor, nn

from tenfold.gfkd.backends import Topology
from tenfold.shared.logging import TenfoldError

MODEL_NAMES = tuple(
    f"{kind}{layers}_{width}" for kind in ("gcn", "gin") for layers in (2, 3, 5) for width in (32, 64)
)


class Trace(NamedTuple):
    """Everything one forward pass computes that the objectives look at."""

    logits: Tensor
    """[B, classes]."""
    convolved: list[Tensor]
    """Output of each convolution, [N, width]: for GCN before the batch norm, for GIN after its last ReLU."""
    norm_inputs: list[Tensor]
    """Input of each batch norm, [N, width], in the order of :meth:`GraphClassifier.batch_norms`."""


class GCNLayer(nn.Module):
    """h'_k = ReLU(BN(sum over edges j -> k of h_j W / sqrt(d_j d_k) + b)), with in-degrees d clamped to at least 1."""

    def __init__(self, input_dim: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(input_dim, width))
        self.bias = nn.Parameter(torch.zeros(width))
        self.norm = nn.BatchNorm1d(width)
        nn.init.xavier_uniform_(self.weight)

    def forward(self, values: Tensor, topology: Topology) -> tuple[Tensor, Tensor, list[Tensor]]:
        """[N, input_dim] to (output [N, width], convolved, batch-norm inputs)."""
        convolved = topology.normalized_sum(values @ self.weight) + self.bias
        return torch.relu(self.norm(convolved)), convolved, [convolved]

    def batch_norms(self) -> list[nn.BatchNorm1d]:
        return [self.norm]


class GINLayer(nn.Module):
    """h'_k = ReLU(BN(MLP((1 + eps) h_k + sum over edges j -> k of h_j))), MLP = Linear, BN, ReLU, Linear.

    The graphs already hold self loops, so a node counts itself twice, as in the authors' networks.
    """

    eps: Tensor

    def __init__(self, input_dim: int, width: int) -> None:
        super().__init__()
        self.register_buffer("eps", torch.zeros(1))
        self.hidden = nn.Linear(input_dim, width)
        self.hidden_norm = nn.BatchNorm1d(width)
        self.output = nn.Linear(width, width)
        self.norm = nn.BatchNorm1d(width)

    def forward(self, values: Tensor, topology: Topology) -> tuple[Tensor, Tensor, list[Tensor]]:
        """[N, input_dim] to (output [N, width], convolved, batch-norm inputs)."""
        hidden = self.hidden((1 + self.eps) * values + topology.sum_incoming(values))
        output = self.output(torch.relu(self.hidden_norm(hidden)))
        convolved = torch.relu(self.norm(output))
        return convolved, convolved, [hidden, output]

    def batch_norms(self) -> list[nn.BatchNorm1d]:
        return [self.hidden_norm, self.norm]


class GraphClassifier(nn.Module):
    """Graph convolutions with residual connections, sum pooling, a linear classifier, dropout on the logits.

    Args:
        layer: :class:`GCNLayer` or :class:`GINLayer`.
        num_layers: L; the network has L - 1 convolutions.
        input_dim: node features d.
        width: hidden size H.
        output_dim: classes C.
        dropout: probability with which a *logit* is dropped in training, as in the authors' networks.
    """

    def __init__(
        self,
        layer: type[GCNLayer] | type[GINLayer],
        num_layers: int,
        input_dim: int,
        width: int,
        output_dim: int,
        dropout: float = 0.5,
    ) -> None:
        super().__init__()
        self.input_dim, self.output_dim = input_dim, output_dim
        input_dims = [input_dim] + [width] * (num_layers - 2)
        self.layers = nn.ModuleList(layer(dim, width) for dim in input_dims)
        self.classifier = nn.Linear(width, output_dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, features: Tensor, topology: Topology) -> Tensor:
        """Node features [N, d] of a batch of B graphs to logits [B, C]."""
        return self.trace(features, topology).logits

    def trace(self, features: Tensor, topology: Topology) -> Trace:
        """The forward pass, with what the objectives need of its inside."""
        values, all_convolved, all_norm_inputs = features, [], []
        for index, layer in enumerate(self.layers):
            output, convolved, norm_inputs = layer(values, topology)
            values = output if index == 0 else values + output
            all_convolved.append(convolved)
            all_norm_inputs.extend(norm_inputs)
        logits = self.dropout(self.classifier(topology.sum_graphs(values)))
        return Trace(logits, all_convolved, all_norm_inputs)

    def batch_norms(self) -> list[nn.BatchNorm1d]:
        """Every batch norm, in the order of the forward pass."""
        return [norm for layer in self.layers for norm in layer.batch_norms()]  # type: ignore[operator]


def build_model(name: str, input_dim: int, output_dim: int) -> GraphClassifier:
    """A network by its name, ``gcn5_64`` for the paper's GCN-5-64 (case does not matter).

    Args:
        name: ``{gcn|gin}{layers}_{width}``; the paper's are :data:`MODEL_NAMES`, other sizes work as well.
        input_dim: node features d.
        output_dim: classes C.

    Raises:
        TenfoldError: the name does not have that form, or fewer than two layers.
    """
    match = re.fullmatch(r"(gcn|gin)([0-9]+)_([0-9]+)", name.lower())
    if match is None or int(match[2]) < 2 or int(match[3]) < 1:
        raise TenfoldError(f"unknown model {name!r}; names look like {', '.join(MODEL_NAMES)}")
    layer = GCNLayer if match[1] == "gcn" else GINLayer
    return GraphClassifier(layer, int(match[2]), input_dim, int(match[3]), output_dim)
