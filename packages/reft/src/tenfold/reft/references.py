"""The two uses of support examples: class centres that weigh features, and support queries that are linked.

The paper's formulas could not be had; these are the readings of the README's table of decisions.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tenfold.reft.config import Selection
from tenfold.reft.mask2former import LEVELS, attention_of_heads

# -- what supports give ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class SupportFeatures:
    """What is read off every support example."""

    pooled: tuple[Tensor, ...]
    """Features under the mask, for each level, [M, d]."""
    queries: Tensor
    """The kept queries, best first, [M, top_k, d]."""
    scores: Tensor
    """Why they were kept, [M, top_k]."""
    labels: Tensor
    """Classes of the examples, [M]."""

    @property
    def rows(self) -> tuple[Tensor, Tensor, Tensor]:
        """All kept queries as one list: queries [S, d], their classes [S], and scores [S]."""
        labels = self.labels.repeat_interleave(self.queries.shape[1])
        return self.queries.flatten(0, 1), labels, self.scores.flatten()

    @staticmethod
    def joined(parts: Sequence[SupportFeatures]) -> SupportFeatures:
        """Several as one."""
        pooled = tuple(torch.cat(level) for level in zip(*(part.pooled for part in parts), strict=True))
        queries, scores, labels = (
            torch.cat([getattr(part, name) for part in parts]) for name in ("queries", "scores", "labels")
        )
        return SupportFeatures(pooled, queries, scores, labels)


@dataclass(frozen=True)
class References:
    """What a query image is referred to. Constant at test time: a support cache."""

    centres: tuple[Tensor, ...]
    """Class centres of each level, coarsest first, [C, d]; zeros where a class is absent."""
    present: Tensor
    """Classes with at least one example, [C], bool."""
    rows: Tensor
    """Support queries of all classes, [S, d]."""
    row_labels: Tensor
    """Their classes, [S]."""
    row_scores: Tensor
    """Why they were kept, [S]."""

    def to(self, device: torch.device) -> References:
        """The same on a device."""
        centres = tuple(level.to(device) for level in self.centres)
        present, rows, labels, scores = (
            value.to(device) for value in (self.present, self.rows, self.row_labels, self.row_scores)
        )
        return References(centres, present, rows, labels, scores)

    def state_dict(self) -> dict[str, Tensor]:
        """Tensors on the CPU, for a file."""
        centres = {f"centres.{index}": level.cpu() for index, level in enumerate(self.centres)}
        names = ("present", "rows", "row_labels", "row_scores")
        rest = {name: getattr(self, name).cpu() for name in names}
        return centres | rest

    @staticmethod
    def from_state_dict(state: dict[str, Tensor]) -> References:
        """What :meth:`state_dict` gave."""
        levels = sum(name.startswith("centres.") for name in state)
        centres = tuple(state[f"centres.{index}"] for index in range(levels))
        return References(centres, state["present"], state["rows"], state["row_labels"], state["row_scores"])

    def limited(self, per_class: int) -> References:
        """The same with at most so many rows of each class, the best ones."""
        kept = best_of_class(self.row_labels, self.row_scores, per_class)
        return References(
            self.centres, self.present, self.rows[kept], self.row_labels[kept], self.row_scores[kept]
        )

    def with_base(self, base: References, max_rows: int) -> References:
        """The same with the base classes, which come first and are absent here, from an earlier stage.

        Args:
            base: classes of the earlier stage.
            max_rows: most rows of both together.
        """
        count = len(base.present)
        centres = tuple(
            torch.cat((theirs, own[count:])) for own, theirs in zip(self.centres, base.centres, strict=True)
        )
        rows = capped_rows(
            torch.cat((base.rows, self.rows)),
            torch.cat((base.row_labels, self.row_labels)),
            torch.cat((base.row_scores, self.row_scores)),
            max_rows,
        )
        return References(centres, torch.cat((base.present, self.present[count:])), *rows)


def masked_average_pool(features: Tensor, masks: Tensor) -> Tensor:
    """Mean of the features under a mask; zeros for an empty mask.

    Args:
        features: [M, d, h, w].
        masks: [M, H, W], at any size; area-resized to that of the features.

    Returns:
        [M, d].
    """
    weights = resized_masks(masks, (features.shape[-2], features.shape[-1]))
    with torch.autocast(features.device.type, enabled=False):
        total = torch.einsum("mdhw,mhw->md", features.float(), weights)
    return total / (weights.sum((1, 2))[:, None] + 1e-6)


def resized_masks(masks: Tensor, size: tuple[int, int]) -> Tensor:
    """Share of every cell that a mask covers, [M, h, w]."""
    return F.interpolate(masks[:, None].float(), size, mode="area")[:, 0]


def class_centres(pooled: Tensor, labels: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
    """Mean of the pooled features of every class.

    Args:
        pooled: [M, d].
        labels: [M].
        num_classes: C.

    Returns:
        Centres [C, d], zeros for absent classes, and how many examples each class has [C].
    """
    examples = F.one_hot(labels, num_classes).to(pooled)
    counts = examples.sum(0)
    with torch.autocast(pooled.device.type, enabled=False):
        return examples.T @ pooled / counts.clamp(min=1)[:, None], counts


def select_queries(
    mask_logits: Tensor,
    class_logits: Tensor,
    masks: Tensor,
    labels: Tensor,
    top_k: int,
    by: Selection,
) -> tuple[Tensor, Tensor]:
    """The queries that stand for a support example.

    Args:
        mask_logits: [M, Q, h, w].
        class_logits: [M, Q, classes + 1].
        masks: of the examples, [M, H, W].
        labels: of the examples, [M]; only where classes count.
        top_k: how many are kept, Q at most.
        by: soft dice with the mask, probability of the class, or their product.

    Returns:
        Scores and indices, best first, [M, top_k].
    """
    scores = torch.ones(mask_logits.shape[:2], device=mask_logits.device)
    if by != "class":
        target = resized_masks(masks, (mask_logits.shape[-2], mask_logits.shape[-1]))
        found = mask_logits.float().sigmoid()
        with torch.autocast(found.device.type, enabled=False):
            overlap = torch.einsum("mqhw,mhw->mq", found, target)
        scores = 2 * overlap / (found.sum((2, 3)) + target.sum((1, 2))[:, None] + 1)
    if by != "mask":
        probabilities = class_logits.float().softmax(-1)
        scores = (
            scores * probabilities.gather(2, labels[:, None, None].expand(-1, scores.shape[1], 1))[..., 0]
        )
    best, index = scores.topk(min(top_k, scores.shape[1]), dim=1)
    return best, index


def capped_rows(rows: Tensor, labels: Tensor, scores: Tensor, max_rows: int) -> tuple[Tensor, Tensor, Tensor]:
    """Support queries, each class cut to the same share of its best where there are too many.

    Args:
        rows: queries, [S, d].
        labels: their classes, [S].
        scores: the higher, the longer kept, [S].
        max_rows: most rows in all; every class keeps at least one.

    Returns:
        Rows, labels and scores that are kept.
    """
    if len(rows) <= max_rows:
        return rows, labels, scores
    share = max(1, max_rows // len(labels.unique()))
    kept = best_of_class(labels, scores, share)
    return rows[kept], labels[kept], scores[kept]


def best_of_class(labels: Tensor, scores: Tensor, per_class: int) -> Tensor:
    """Indices of the rows with the highest scores of each class, by class, the best first.

    Args:
        labels: of the rows, [S].
        scores: of the rows, [S].
        per_class: most rows of a class.
    """
    order = scores.argsort(descending=True, stable=True)
    order = order[labels[order].argsort(stable=True)]
    counts = labels.bincount()
    first = counts.cumsum(0) - counts
    place = torch.arange(len(order), device=order.device) - first[labels[order]]
    return order[place < per_class]


# -- reference one ---------------------------------------------------------------------------------------


class FeatureReference(nn.Module):
    """Every location of a level looks up all class centres at once, and is weighed by what it finds.

    ``A = softmax(Q K^T / sqrt(d))`` over the present classes and a background token of value zero, ``D = A V``, and
    ``x' = x (1 + tanh D)`` ("reweight") or ``x' = x + D`` ("add"). V begins at zero, and so x' at x.

    Args:
        width: d.
        mode: how D acts.
    """

    def __init__(self, width: int, mode: Literal["reweight", "add"] = "reweight") -> None:
        super().__init__()
        self.mode = mode
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.background = nn.Parameter(torch.zeros(1, width))
        nn.init.xavier_uniform_(self.query.weight)
        nn.init.xavier_uniform_(self.key.weight)
        nn.init.zeros_(self.query.bias)
        nn.init.zeros_(self.key.bias)
        nn.init.zeros_(self.value.weight)
        nn.init.zeros_(self.value.bias)
        nn.init.normal_(self.background, std=0.02)

    def attention(self, features: Tensor, centres: Tensor, present: Tensor) -> Tensor:
        """How much each location looks at each class and, last, at the background, [B, h * w, C + 1]."""
        query, keys = self._query(features), self.key(torch.cat((centres, self.background)))
        scores = (query @ keys.T).float() / math.sqrt(query.shape[-1])
        weights: Tensor = scores.masked_fill(~self._seen(present), -math.inf).softmax(-1)
        return weights

    def forward(self, features: Tensor, centres: Tensor, present: Tensor) -> Tensor:
        """Features [B, d, h, w] referred to centres [C, d], of which ``present`` [C] count; [B, d, h, w]."""
        keys = self.key(torch.cat((centres, self.background)))
        values = F.pad(self.value(centres), (0, 0, 0, 1))
        mask = self._seen(present)[None]
        found = F.scaled_dot_product_attention(
            self._query(features), keys[None], values[None], attn_mask=mask
        )
        centre: Tensor = found.transpose(1, 2).unflatten(-1, features.shape[-2:])
        return features * (1 + centre.tanh()) if self.mode == "reweight" else features + centre

    def _query(self, features: Tensor) -> Tensor:
        query: Tensor = self.query(features.flatten(2).transpose(1, 2))
        return query

    def _seen(self, present: Tensor) -> Tensor:
        """The present classes and the background, [C + 1]."""
        return F.pad(present, (0, 1), value=True)


class FeatureReferences(nn.Module):
    """One :class:`FeatureReference` for each level; they share no weights."""

    def __init__(self, width: int, mode: Literal["reweight", "add"] = "reweight") -> None:
        super().__init__()
        self.levels = nn.ModuleList(FeatureReference(width, mode) for _ in range(LEVELS))

    def forward(self, projected: Sequence[Tensor], references: References) -> list[Tensor]:
        """Every level referred to its centres."""
        return [
            level(features, centres, references.present)
            for level, features, centres in zip(self.levels, projected, references.centres, strict=True)
        ]


# -- reference two ---------------------------------------------------------------------------------------


class QueryReference(nn.Module):
    """Object queries attend to support queries: ``LN(q + MHA(q, S, S))``. The output projection begins at zero.

    Args:
        width: d.
        heads: of the attention.
    """

    def __init__(self, width: int, heads: int = 8) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(width, heads)
        self.norm = nn.LayerNorm(width)
        nn.init.zeros_(self.attention.out_proj.weight)

    def forward(self, queries: Tensor, rows: Tensor) -> Tensor:
        """Queries [B, Q, d] linked with support queries [S, d], which all images share; [B, Q, d]."""
        attention = self.attention
        weights, biases = attention.in_proj_weight.chunk(3), attention.in_proj_bias.chunk(3)
        query = F.linear(queries, weights[0], biases[0])
        key, value = (
            F.linear(rows, *given).expand(len(queries), -1, -1)
            for given in ((weights[1], biases[1]), (weights[2], biases[2]))
        )
        found = attention.out_proj(attention_of_heads(query, key, value, attention.num_heads))
        linked: Tensor = self.norm(queries + found)
        return linked
