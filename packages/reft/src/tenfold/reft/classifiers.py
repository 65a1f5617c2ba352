"""Class heads, linear and cosine, and how they grow by new classes."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tenfold.shared.logging import TenfoldError

NEW_ROW_STD = 0.01
"""Deviation of a linear head's new rows."""


class CosineClassifier(nn.Module):
    """``logit_c = s (x / (|x| + e)) . (w_c / (|w_c| + e))`` with e = 1e-5, without bias (Wang et al., ICML 2020).

    Args:
        width: of the queries.
        rows: classes, and one for "no object".
        scale: s, fixed.

    Shapes:
        [..., width] to [..., rows].
    """

    def __init__(self, width: int, rows: int, scale: float = 20.0) -> None:
        super().__init__()
        self.scale = scale
        self.weight = nn.Parameter(torch.empty(rows, width))
        nn.init.normal_(self.weight, std=NEW_ROW_STD)

    def forward(self, queries: Tensor) -> Tensor:
        """Logits of queries."""
        with torch.autocast(queries.device.type, enabled=False):
            logits: Tensor = self.scale * F.linear(unit(queries), unit(self.weight))
        return logits


Classifier = nn.Linear | CosineClassifier


def unit(vectors: Tensor) -> Tensor:
    """``x / (|x| + 1e-5)`` along the last dimension, in full precision."""
    vectors = vectors.float()
    lengths: Tensor = vectors.norm(dim=-1, keepdim=True)
    return vectors / (lengths + 1e-5)


def grown(classifier: Classifier, new_rows: Tensor, keep_base: bool) -> Classifier:
    """The head with rows for new classes before "no object".

    Args:
        classifier: of the base classes.
        new_rows: weights of the new classes, [n, width].
        keep_base: keep the base classes' rows; else only that of "no object" is kept.

    Raises:
        TenfoldError: no new class.
    """
    if not len(new_rows):
        raise TenfoldError("a classifier grows by at least one class; name novel classes")
    base = classifier.weight.detach()
    kept = base[:-1] if keep_base else base[:0]
    weight = torch.cat((kept, new_rows.to(base), base[-1:]))
    if isinstance(classifier, CosineClassifier):
        larger: Classifier = CosineClassifier(base.shape[1], len(weight), classifier.scale)
    else:
        larger = nn.Linear(base.shape[1], len(weight))
        bias = classifier.bias.detach()
        zeros = bias.new_zeros(len(new_rows))
        larger.bias = nn.Parameter(torch.cat((bias[:-1] if keep_base else bias[:0], zeros, bias[-1:])))
    larger.weight = nn.Parameter(weight)
    return larger


def fresh_rows(count: int, width: int, generator: torch.Generator) -> Tensor:
    """Rows of new classes of a linear head, N(0, 0.01^2), [count, width]."""
    return NEW_ROW_STD * torch.randn(count, width, generator=generator)


def imprinted_rows(queries: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """Rows of new classes of a cosine head: the mean of the normalised best query of each support example.

    Args:
        queries: best query of each example, [M, width].
        labels: of the examples, [M].
        num_classes: C.

    Returns:
        [C, width].

    Raises:
        TenfoldError: a class has no example.
    """
    counts = torch.bincount(labels, minlength=num_classes)
    if not counts.all():
        missing = (counts == 0).nonzero().flatten().tolist()
        raise TenfoldError(f"the classes at {missing} have no support example; give each at least one")
    sums = torch.zeros(num_classes, queries.shape[1], device=queries.device)
    return sums.index_add_(0, labels, unit(queries)) / counts[:, None]
