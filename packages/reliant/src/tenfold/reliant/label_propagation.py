"""CPF's student: parameterised label propagation (Yang et al., https://arxiv.org/abs/2103.02885)."""

from __future__ import annotations

from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot

from tenfold.reliant.backends import Topology
from tenfold.reliant.node_output import NodeOutput

AttentionKind = Literal["ind", "tra"]


class FeatureTransformation(nn.Module):
    """Linear layers with ReLU between them and dropout before each."""

    def __init__(
        self, input_dim: int, hidden_dim: int, output_dim: int, num_layers: int, dropout: float
    ) -> None:
        super().__init__()
        widths = [input_dim] + [hidden_dim] * (num_layers - 1) + [output_dim]
        self.linears = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))
        self.dropout = nn.Dropout(dropout)

    def forward(self, features: Tensor) -> Tensor:
        values = features
        for index, linear in enumerate(self.linears):
            values = linear(self.dropout(torch.relu(values) if index else values))
        return values


class LabelPropagationStudent(nn.Module):
    """Labels spread along learned attention, mixed with a prediction from each node's own features.

    The state f starts at 1/C everywhere and at the one-hot label where it is known, and is updated L - 1 times by
    the same layer::

        f_v = ReLU( sigmoid(b_v) sum over u of w_uv f_u + sigmoid(-b_v) MLP(x_v) ),  w_uv = softmax over u of e_u

    after which rows with known labels are pinned to them again. e_u = a . x_u (``ind``) or one free scalar a
    node (``tra``). Dropout on features, attention and in the MLP is drawn anew in each update.

    Args:
        known_labels: [N], a node's class where it may be used (training nodes), -1 elsewhere.
        input_dim: input columns d.
        num_classes: C.
        num_layers: L, so L - 1 updates.
        emb_dim: width of the MLP.
        mlp_layers: its linear layers.
        ptype: how attention scores are made.
        feature_dropout: rate on features and in the MLP.
        attention_dropout: rate on attention weights.
        hidden_labels: in training, the share of known labels that is hidden in each pass, drawn anew. A pinned row is
            no decision, so whatever is to be learned from training nodes needs some that are not.
    """

    known_labels: Tensor

    def __init__(
        self,
        known_labels: Tensor,
        input_dim: int,
        num_classes: int = 2,
        num_layers: int = 10,
        emb_dim: int = 64,
        mlp_layers: int = 2,
        ptype: AttentionKind = "ind",
        feature_dropout: float = 0.8,
        attention_dropout: float = 0.2,
        hidden_labels: float = 0.0,
    ) -> None:
        super().__init__()
        num_nodes = len(known_labels)
        self.num_classes, self.num_updates = num_classes, num_layers - 1
        self.depth = self.num_updates
        self.attention_dropout, self.hidden_labels = attention_dropout, hidden_labels
        self.balance = nn.Parameter(torch.zeros(num_nodes, 1))
        gain = nn.init.calculate_gain("relu")
        if ptype == "ind":
            self.attention = nn.Parameter(torch.empty(1, input_dim))
            nn.init.xavier_normal_(self.attention, gain)
        else:
            self.node_scores = nn.Parameter(torch.empty(num_nodes, 1))
            nn.init.xavier_normal_(self.node_scores, gain)
        self.inductive = ptype == "ind"
        self.mlp = FeatureTransformation(input_dim, emb_dim, num_classes, mlp_layers, feature_dropout)
        # Held by the authors' class and never used; kept so that their state dicts and parameter counts fit.
        self.alpha = nn.Parameter(torch.zeros(num_nodes, 1), requires_grad=False)
        self.feature_dropout = nn.Dropout(feature_dropout)
        self.register_buffer("known_labels", known_labels, persistent=False)

    def forward(self, features: Tensor, topology: Topology) -> NodeOutput:
        """Features [n, d] to the state after L - 1 updates as logits [n, C]; known rows are one-hot."""
        nodes = slice(None) if topology.node_ids is None else topology.node_ids
        known_labels = self.known_labels[nodes]
        is_known = (known_labels >= 0).unsqueeze(1)
        if self.training and self.hidden_labels > 0:
            is_known = is_known & (torch.rand(is_known.shape, device=is_known.device) >= self.hidden_labels)
        labels = one_hot(known_labels.clamp(min=0), self.num_classes).to(features.dtype)
        balance = torch.sigmoid(self.balance[nodes])
        state = torch.where(is_known, labels, 1 / self.num_classes)
        for _ in range(self.num_updates):
            if self.inductive:
                scores = (self.feature_dropout(features) * self.attention).sum(
                    dim=1
                )  # no matmul: fp32 under AMP
            else:
                scores = self.node_scores[nodes].squeeze(1)
            spread = topology.attend(scores, state, self.attention_dropout if self.training else 0.0)
            decided = torch.relu(balance * spread + (1 - balance) * self.mlp(features))
            state = torch.where(is_known, labels, decided)
        return NodeOutput(state, None, is_known.squeeze(1))

    def attention_scores(self, features: Tensor) -> Tensor:
        """e, [n], without dropout."""
        return (features @ self.attention.squeeze(0)) if self.inductive else self.node_scores.squeeze(1)


def build_label_propagation_student(
    known_labels: Tensor,
    input_dim: int,
    num_classes: int = 2,
    num_layers: int = 10,
    emb_dim: int = 64,
    mlp_layers: int = 2,
    ptype: AttentionKind = "ind",
) -> LabelPropagationStudent:
    """:class:`LabelPropagationStudent` with the authors' dropout."""
    return LabelPropagationStudent(
        known_labels, input_dim, num_classes, num_layers, emb_dim, mlp_layers, ptype
    )
