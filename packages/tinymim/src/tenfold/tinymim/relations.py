"""Token relations inside a transformer block, and how far a student's are from its teacher's.

R^XY = softmax(X Y^T / sqrt(d)) for each head, d its own width (equations 4 and 9). The loss is the KL divergence from
the teacher's to the student's, summed over keys, mean over images, heads and queries. It is computed chunk by chunk
with its gradient, so that no map outlives its chunk: memory is that of queries, keys and values.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from tenfold.shared.logging import TenfoldError

Pair = Literal["qk", "qq", "kk", "vv"]
"""Which two of queries, keys and values are related."""
CHUNK_ELEMENTS = {"cpu": 1 << 18, "cuda": 1 << 24}
"""Entries of a chunk of maps: on a CPU what its cache holds."""


def relation(x: Tensor, y: Tensor) -> Tensor:
    """softmax(x y^T / sqrt(d)) in float32.

    Args:
        x: [..., N, d].
        y: [..., N, d].

    Returns:
        [..., N, N], over keys.
    """
    return _scores(x, y).softmax(dim=-1)


def _scores(x: Tensor, y: Tensor) -> Tensor:
    with torch.autocast(x.device.type, enabled=False):
        return (x.float() * (1 / math.sqrt(x.shape[-1]))) @ y.float().transpose(-1, -2)


def relation_divergence(
    student: tuple[Tensor, Tensor], teacher: tuple[Tensor, Tensor], softmax: bool = True
) -> Tensor:
    """Distance of one relation, a scalar.

    KL(teacher || student), or without softmax the mean squared difference of the scaled products (the paper does not
    say which distance it takes there).

    Args:
        student: x and y, each [B, heads, N, d_s].
        teacher: x and y, each [B, heads, N, d_t]; no gradient reaches them.
        softmax: compare distributions, else products.

    Raises:
        TenfoldError: student and teacher differ in images, heads or tokens.
    """
    mine, wanted = student[0].shape[:3], teacher[0].shape[:3]
    if mine != wanted:
        raise TenfoldError(
            f"the student's relations are [images, heads, tokens] = {list(mine)}, the teacher's {list(wanted)}: give "
            "its last block the teacher's number of heads, and both the same number of tokens"
        )
    found: Tensor = _Divergence.apply(*(values.flatten(0, 1) for values in (*student, *teacher)), softmax)
    return found


class _Divergence(torch.autograd.Function):
    """The loss with its gradient at once: a chunk of maps is made, used for both, and forgotten."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, y: Tensor, teacher_x: Tensor, teacher_y: Tensor, softmax: bool
    ) -> Tensor:
        maps, tokens, width = x.shape
        grad_x, grad_y = torch.empty_like(x), torch.empty_like(y)
        total = torch.zeros((), device=x.device)
        scale = 1 / math.sqrt(width)
        count = maps * tokens if softmax else maps * tokens * tokens
        chunk = max(1, CHUNK_ELEMENTS.get(x.device.type, 1 << 24) // (tokens * tokens))
        with torch.autocast(x.device.type, enabled=False):
            for start in range(0, maps, chunk):
                here = slice(start, start + chunk)
                a, b = x[here].float(), y[here].float()
                scores, wanted = _scores(a, b), _scores(teacher_x[here], teacher_y[here])
                loss, gradient = (_kl if softmax else _squared)(scores, wanted)
                total += loss
                grad_x[here] = torch.bmm(gradient, b).mul_(scale)
                grad_y[here] = torch.bmm(gradient.transpose(1, 2), a).mul_(scale)
        ctx.save_for_backward(grad_x, grad_y)
        ctx.count = count
        return total / count

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *outputs: Any) -> tuple[Tensor | None, ...]:
        grad_x, grad_y = ctx.saved_tensors
        factor = (
            outputs[0] / ctx.count
        )  # only now: in fp16 the mean's gradient is 0 before the loss is scaled
        return grad_x * factor.to(grad_x.dtype), grad_y * factor.to(grad_y.dtype), None, None, None


def _kl(scores: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
    """Sum of KL(softmax(wanted) || softmax(scores)), and its gradient with regard to the scores.

    One exponential for each entry of either map; both maps are overwritten.
    """
    log_ratio = wanted - scores
    teacher, log_teacher = _softmax_(wanted)
    student, log_student = _softmax_(scores)
    log_ratio.sub_(log_teacher - log_student)
    loss = torch.dot(teacher.flatten(), log_ratio.flatten())
    return loss, student.sub_(teacher)


def _softmax_(scores: Tensor) -> tuple[Tensor, Tensor]:
    """The softmax in place of the scores, and the logarithm of its denominators."""
    largest = scores.amax(dim=-1, keepdim=True)
    total = scores.sub_(largest).exp_().sum(dim=-1, keepdim=True)
    return scores.div_(total), largest + total.log()


def _squared(scores: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
    difference = scores.sub_(wanted)
    return difference.square().sum(), 2 * difference


def relation_loss(
    student_qkv: Sequence[Tensor],
    teacher_qkv: Sequence[Tensor],
    pairs: Sequence[Pair] = ("qk", "vv"),
    softmax: bool = True,
) -> dict[str, Tensor]:
    """Relation distillation of one block (equation 9).

    Args:
        student_qkv: queries, keys and values, each [B, heads, N, d_s].
        teacher_qkv: the same, each [B, heads, N, d_t]; heads and N must be the student's.
        pairs: which relations.
        softmax: compare distributions by KL divergence, else scaled products by mean squared difference.

    Returns:
        The distance of each pair by its name, and their sum as ``total``.
    """
    unknown = set(pairs) - {"qk", "qq", "kk", "vv"}
    if unknown or not pairs:
        raise TenfoldError(
            f"relations are some of qk, qq, kk and vv, not {', '.join(sorted(unknown)) or 'none'}"
        )
    student, teacher = (dict(zip("qkv", values, strict=True)) for values in (student_qkv, teacher_qkv))
    losses: dict[str, Tensor] = {
        pair: relation_divergence(
            (student[pair[0]], student[pair[1]]), (teacher[pair[0]], teacher[pair[1]]), softmax
        )
        for pair in pairs
    }
    return {**losses, "total": torch.stack(list(losses.values())).sum()}


def head_divergences(student_qkv: Sequence[Tensor], teacher_qkv: Sequence[Tensor], pair: Pair) -> Tensor:
    """KL of one relation for each head, [heads]; for pictures."""
    student, teacher = (dict(zip("qkv", values, strict=True)) for values in (student_qkv, teacher_qkv))
    log_student = _scores(student[pair[0]], student[pair[1]]).log_softmax(dim=-1)
    wanted = relation(teacher[pair[0]], teacher[pair[1]])
    return F.kl_div(log_student, wanted, reduction="none").sum(dim=-1).mean(dim=(0, 2))
