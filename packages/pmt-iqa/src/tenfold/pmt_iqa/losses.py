"""The two tasks' losses and their sum."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def multitask_loss(
    mos: Tensor,
    cls: Tensor | None,
    target: Tensor,
    level: Tensor,
    lambda_regression: Tensor | float,
    lambda_classification: Tensor | float,
) -> tuple[Tensor, Tensor, Tensor]:
    """``lambda1 * mean |y - target| + lambda2 * cross-entropy(z, level)``.

    Args:
        mos: predicted scores, [n] or [n, 1].
        cls: level logits z, [n, K]; None for a network without level head, whose second loss is 0.
        target: scores, [n].
        level: quality levels, int64 [n].
        lambda_regression: lambda1.
        lambda_classification: lambda2.

    Returns:
        The sum and its two parts, before weighting.
    """
    regression = F.l1_loss(mos.float().reshape(-1), target.reshape(-1))
    classification = regression.new_zeros(()) if cls is None else F.cross_entropy(cls.float(), level)
    total = lambda_regression * regression + lambda_classification * classification
    return total, regression, classification
