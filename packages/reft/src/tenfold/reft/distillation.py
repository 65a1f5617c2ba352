"""Class-enhanced distillation of the base model while new classes are learned (iFSIS)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from tenfold.reft.batches import Batch
from tenfold.reft.config import DistillConfig
from tenfold.reft.mask2former import Predictions
from tenfold.reft.references import resized_masks


@dataclass(frozen=True)
class BaseDistillation:
    """Distillation of classes, query by query."""

    loss: Tensor
    """Weighted mean."""
    divergence: Tensor
    """T^2 KL(teacher || student) of every query, [B, Q]."""
    weights: Tensor
    """[B, Q]."""


def base_distillation(
    teacher: Tensor, student: Tensor, novel: Tensor, num_base: int, temperature: float = 1.0
) -> BaseDistillation:
    """``sum_q w_q T^2 KL_q / sum_q w_q`` with the teacher's largest base probability as w, 0 for novel queries.

    Args:
        teacher: logits of base classes and "no object", [B, Q, base + 1].
        student: logits of base classes, novel classes and "no object", [B, Q, C + 1].
        novel: queries that stand for a novel instance, [B, Q], bool.
        num_base: base classes, which come first.
        temperature: T, of both.
    """
    teacher, student = teacher.detach().float(), student.float()
    restricted = torch.cat((student[..., :num_base], student[..., -1:]), dim=-1)
    expected = F.log_softmax(teacher / temperature, dim=-1)
    found = F.log_softmax(restricted / temperature, dim=-1)
    divergence = temperature**2 * F.kl_div(found, expected, reduction="none", log_target=True).sum(-1)
    weights = teacher.softmax(-1)[..., :-1].max(-1).values.masked_fill(novel, 0.0)
    return BaseDistillation((weights * divergence).sum() / (weights.sum() + 1e-6), divergence, weights)


def feature_distillation(teacher: Sequence[Tensor], student: Sequence[Tensor], novel: Tensor) -> Tensor:
    """``sum_l sum_xy (1 - m) |x^S - x^T|^2 / (2 sum (1 - m))`` over the input projections.

    Args:
        teacher: three levels, each [B, d, h, w].
        student: the same.
        novel: union of the novel instances, [B, H, W]; left out, by the share of each cell that it covers.
    """
    total = torch.zeros((), device=novel.device)
    for expected, found in zip(teacher, student, strict=True):
        rest = 1 - resized_masks(novel, (found.shape[-2], found.shape[-1]))
        distance = (found.float() - expected.detach().float()).square().sum(1)
        total = total + (rest * distance).sum() / (2 * rest.sum() + 1e-6)
    return total


def distillation_loss(
    teacher: Predictions,
    student: Predictions,
    batch: Batch,
    novel_queries: Tensor,
    num_base: int,
    config: DistillConfig,
) -> tuple[Tensor, Tensor]:
    """Weighted losses of classes and of features, of the last prediction.

    Args:
        teacher: the base model's.
        student: the same image's.
        batch: with novel instances alone.
        novel_queries: that stand for one of them, [B, Q], bool.
        num_base: base classes.
        config: weights and temperature.
    """
    classes = base_distillation(
        teacher.class_logits[-1], student.class_logits[-1], novel_queries, num_base, config.temperature
    )
    features = feature_distillation(teacher.projected, student.projected, batch.masks.any(1))
    return config.class_weight * classes.loss, config.feature_weight * features
