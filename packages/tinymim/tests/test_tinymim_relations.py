"""Relations and their distance: definition, gradient, precision, memory."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tenfold.shared.logging import TenfoldError
from tenfold.tinymim import relations
from tenfold.tinymim.relations import head_divergences, relation, relation_divergence, relation_loss

IMAGES, HEADS, TOKENS = 2, 3, 5


def draw(seed: int, width: int, dtype: torch.dtype = torch.float64, tokens: int = TOKENS) -> list[Tensor]:
    """Queries, keys and values."""
    generator = torch.Generator().manual_seed(seed)
    shape = (IMAGES, HEADS, tokens, width)
    return [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for _ in range(3)]


def plain(student: Sequence[Tensor], teacher: Sequence[Tensor], pair: str, softmax: bool) -> Tensor:
    """The definition, for autograd."""
    scores, wanted = (
        values["qkv".index(pair[0])] @ values["qkv".index(pair[1])].mT / math.sqrt(values[0].shape[-1])
        for values in (student, teacher)
    )
    if not softmax:
        return F.mse_loss(scores, wanted)
    divergence = F.kl_div(scores.log_softmax(-1), wanted.softmax(-1), reduction="none")
    return divergence.sum(-1).mean()


# -- relations ------------------------------------------------------------------------------------------


def test_a_relation_is_what_it_is_defined_to_be() -> None:
    q, k, _ = draw(0, 7, torch.float32)
    found = relation(q, k)
    assert found.shape == (IMAGES, HEADS, TOKENS, TOKENS)
    for query in range(TOKENS):
        scores = torch.stack([(q[1, 2, query] * k[1, 2, key]).sum() / 7**0.5 for key in range(TOKENS)])
        torch.testing.assert_close(found[1, 2, query], scores.exp() / scores.exp().sum())


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_rows_of_a_relation_sum_to_one(scale: float) -> None:
    q, k, _ = draw(1, 4, torch.float32)
    found = relation(scale * q, k)
    torch.testing.assert_close(found.sum(-1), torch.ones(IMAGES, HEADS, TOKENS))
    assert found.min() >= 0


def test_relations_are_in_float32_whatever_comes_in() -> None:
    q, k, _ = draw(2, 8, torch.bfloat16)
    torch.testing.assert_close(relation(q, k), relation(q.float(), k.float()), rtol=0, atol=0)


def test_relations_are_in_float32_under_autocast_too() -> None:
    q, k, v = draw(2, 8, torch.bfloat16)
    others = draw(3, 8, torch.bfloat16)
    expected, divergences = relation(q.float(), k.float()), head_divergences((q, k, v), others, "qk")
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(relation(q, k), expected)
        torch.testing.assert_close(head_divergences((q, k, v), others, "qk"), divergences)


# -- the loss and its gradient --------------------------------------------------------------------------


@pytest.mark.parametrize("chunk", [1, TOKENS**2, 4 * TOKENS**2 + 1, 1 << 20])
@pytest.mark.parametrize("softmax", [True, False])
@pytest.mark.parametrize("pair", ["qk", "qq", "kk", "vv"])
def test_loss_and_gradient_are_those_of_the_definition(
    pair: Any, softmax: bool, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(relations.CHUNK_ELEMENTS, "cpu", chunk)
    student, teacher = draw(3, 4), draw(4, 6)
    for values in student:
        values.requires_grad_(True)
    expected = plain(student, teacher, pair, softmax)
    found = relation_loss(student, teacher, (pair,), softmax)
    torch.testing.assert_close(found[pair].double(), expected, rtol=1e-5, atol=0)
    reached = [student["qkv".index(letter)] for letter in dict.fromkeys(pair)]
    gradients = torch.autograd.grad(3 * found["total"], reached)
    for actual, wanted in zip(gradients, torch.autograd.grad(3 * expected, reached), strict=True):
        torch.testing.assert_close(actual, wanted, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("softmax", [True, False])
def test_the_gradient_is_the_slope_of_the_loss(softmax: bool) -> None:
    student, teacher, direction = draw(5, 4), draw(6, 4), draw(7, 4)
    for values in student:
        values.requires_grad_(True)
    relation_loss(student, teacher, softmax=softmax)["total"].backward()
    slope = sum((v.grad * d).sum() for v, d in zip(student, direction, strict=True) if v.grad is not None)
    step = 1e-2
    ahead, behind = (
        relation_loss([v + s * d for v, d in zip(student, direction, strict=True)], teacher, softmax=softmax)
        for s in (step, -step)
    )
    difference = (ahead["total"] - behind["total"]).item() / (2 * step)
    assert float(slope) == pytest.approx(difference, rel=2e-3)


def test_losses_of_pairs_are_given_by_name_and_summed() -> None:
    student, teacher = draw(8, 4), draw(9, 4)
    found = relation_loss(student, teacher)
    assert list(found) == ["qk", "vv", "total"]
    torch.testing.assert_close(found["total"], found["qk"] + found["vv"])
    three = relation_loss(student, teacher, ("qq", "kk", "vv"))
    assert list(three) == ["qq", "kk", "vv", "total"]
    torch.testing.assert_close(three["total"], three["qq"] + three["kk"] + three["vv"])
    torch.testing.assert_close(three["vv"], found["vv"])


@pytest.mark.parametrize("softmax", [True, False])
def test_equal_relations_are_at_no_distance(softmax: bool) -> None:
    teacher = draw(10, 4)
    student = [values.clone().requires_grad_(True) for values in teacher]
    loss = relation_loss(student, teacher, ("qk", "qq", "kk", "vv"), softmax)["total"]
    loss.backward()
    assert loss == 0
    assert all(values.grad is not None and not values.grad.any() for values in student)


@pytest.mark.parametrize("softmax", [True, False])
def test_equal_relations_of_another_head_width_are_at_no_distance(softmax: bool) -> None:
    teacher = draw(11, 4)
    student = [
        F.pad(values, (0, 12)) * 2**0.5 for values in teacher
    ]  # the scale of width 16 is half as large
    loss = relation_loss(student, teacher, softmax=softmax)["total"]
    assert float(loss) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("apart", [0.05, 1.0, 10.0])
def test_the_distance_is_not_negative(seed: int, apart: float) -> None:
    teacher, noise = draw(seed, 4), draw(100 + seed, 4)
    student = [t + apart * n for t, n in zip(teacher, noise, strict=True)]
    losses = relation_loss(student, teacher, ("qk", "qq", "kk", "vv"))
    assert all(loss > 0 for loss in losses.values())


def test_the_divergence_is_from_the_teacher_to_the_student() -> None:
    sharp, flat = draw(12, 4), draw(13, 4)
    there = relation_divergence((4 * sharp[0], sharp[1]), (flat[0], flat[1]))
    back = relation_divergence((flat[0], flat[1]), (4 * sharp[0], sharp[1]))
    assert float(there) == pytest.approx(float(plain([4 * sharp[0], sharp[1]], flat, "qk", True)), rel=1e-5)
    assert abs(float(there) - float(back)) > 0.1


def test_relations_that_underflow_give_finite_losses_and_gradients() -> None:
    student, teacher = draw(14, 4, torch.float32), draw(15, 4, torch.float32)
    student = [(100 * values).requires_grad_(True) for values in student]
    assert (relation(student[0], student[1]) == 0).any()
    loss = relation_loss(student, [100 * values for values in teacher])["total"]
    loss.backward()
    assert loss.isfinite()
    assert all(v.grad.isfinite().all() for v in student if v.grad is not None)


def test_no_gradient_reaches_the_teacher() -> None:
    student, teacher = draw(16, 4), [values.requires_grad_(True) for values in draw(17, 4)]
    student = [values.requires_grad_(True) for values in student]
    relation_loss(student, teacher, ("qk", "vv"))["total"].backward()
    assert all(values.grad is None for values in teacher)
    assert all(values.grad is not None for values in student)


def test_there_is_no_second_derivative() -> None:
    student = [values.requires_grad_(True) for values in draw(18, 4)]
    loss = relation_loss(student, draw(19, 4))["total"]
    gradients = torch.autograd.grad(loss, student, create_graph=True)
    with pytest.raises(RuntimeError, match=r"does not require grad|once_differentiable"):
        torch.autograd.grad(sum(values.square().sum() for values in gradients), student)


def test_images_and_heads_count_alike() -> None:
    student, teacher = draw(18, 4), draw(19, 4)
    whole = relation_loss(student, teacher)["total"]
    parts = [
        relation_loss([v[i : i + 1, h : h + 1] for v in student], [v[i : i + 1, h : h + 1] for v in teacher])[
            "total"
        ]
        for i in range(IMAGES)
        for h in range(HEADS)
    ]
    torch.testing.assert_close(torch.stack(parts).mean(), whole)


# -- precision ------------------------------------------------------------------------------------------


def test_under_autocast_the_loss_is_that_of_the_same_numbers_in_float32() -> None:
    torch.manual_seed(0)
    layer, tokens = nn.Linear(12, 36), torch.randn(2, 9, 12)
    teacher = draw(20, 8, torch.bfloat16, tokens=9)
    with torch.autocast("cpu", torch.bfloat16):
        q, k, v = layer(tokens).unflatten(2, (3, HEADS, 4)).permute(2, 0, 3, 1, 4)
        assert q.dtype == torch.bfloat16
        for values in (q, k, v):
            values.retain_grad()
        loss = relation_loss((q, k, v), teacher)["total"]
    loss.backward()
    assert loss.dtype == torch.float32
    exact = [values.detach().float().requires_grad_(True) for values in (q, k, v)]
    expected = relation_loss(exact, [values.float() for values in teacher])["total"]
    expected.backward()
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=0)
    for rounded, wanted in zip((q, k, v), exact, strict=True):
        assert rounded.grad is not None and wanted.grad is not None and rounded.grad.dtype == torch.bfloat16
        assert (rounded.grad.float() - wanted.grad).norm() < 2**-7 * wanted.grad.norm()
    assert layer.weight.grad is not None and layer.weight.grad.isfinite().all()


def test_gradients_in_float16_survive_when_the_loss_is_scaled() -> None:
    torch.manual_seed(0)
    shape, scale = (8, 12, 197, 16), 2.0**16
    teacher = torch.randn(2, *shape).half()
    student = teacher + 0.1 * torch.randn(2, *shape).half()
    exact = student.float().requires_grad_(True)
    (scale * relation_divergence((exact[0], exact[1]), (teacher[0], teacher[1]))).backward()
    student.requires_grad_(True)
    (scale * relation_divergence((student[0], student[1]), (teacher[0], teacher[1]))).backward()
    assert student.grad is not None and exact.grad is not None
    error = (student.grad.float() - exact.grad).norm() / exact.grad.norm()
    assert error < 1e-3


# -- memory ---------------------------------------------------------------------------------------------


def largest_kept(compute: Callable[[], Tensor]) -> int:
    """Entries of the largest tensor that is kept for the backward pass."""
    sizes = [0]

    def note(kept: Tensor) -> Tensor:
        sizes.append(kept.numel())
        return kept

    with torch.autograd.graph.saved_tensors_hooks(note, lambda kept: kept):
        compute().backward()
    return max(sizes)


@pytest.mark.parametrize("softmax", [True, False])
@pytest.mark.parametrize("tokens", [40, 120])
def test_nothing_as_large_as_a_map_is_kept_for_the_gradient(tokens: int, softmax: bool) -> None:
    student = [v.requires_grad_(True) for v in draw(21, 4, torch.float32, tokens)]
    teacher = draw(22, 4, torch.float32, tokens)
    inputs, maps = IMAGES * HEADS * tokens * 4, IMAGES * HEADS * tokens**2
    assert largest_kept(lambda: relation_loss(student, teacher, softmax=softmax)["total"]) <= inputs
    assert largest_kept(lambda: plain(student, teacher, "qk", softmax)) == maps


# -- heads, and what is refused -------------------------------------------------------------------------


@pytest.mark.parametrize("pair", ["qk", "vv"])
def test_divergences_of_heads_average_to_the_loss(pair: Any) -> None:
    student, teacher = draw(23, 4, torch.float32), draw(24, 8, torch.float32)
    found = head_divergences(student, teacher, pair)
    assert found.shape == (HEADS,)
    torch.testing.assert_close(found.mean(), relation_loss(student, teacher, (pair,))[pair])
    for head in range(HEADS):
        one, other = ([v[:, head : head + 1] for v in values] for values in (student, teacher))
        torch.testing.assert_close(found[head], relation_loss(one, other, (pair,))[pair])


@pytest.mark.parametrize(
    ("shape", "difference"),
    [((2, 4, 5, 6), r"\[2, 4, 5\]"), ((2, 3, 6, 6), r"\[2, 3, 6\]"), ((1, 3, 5, 6), r"\[1, 3, 5\]")],
    ids=["heads", "tokens", "images"],
)
def test_a_teacher_of_other_heads_tokens_or_images_is_refused(
    shape: tuple[int, ...], difference: str
) -> None:
    message = (
        rf"student's relations are \[images, heads, tokens\] = \[2, 3, 5\], the teacher's {difference}: give"
    )
    with pytest.raises(TenfoldError, match=message):
        relation_loss(draw(25, 4), [torch.zeros(shape)] * 3)


def test_unknown_relations_are_refused() -> None:
    student = draw(26, 4)
    unknown: Any = ("qk", "qv")
    with pytest.raises(TenfoldError, match="relations are some of qk, qq, kk and vv, not qv"):
        relation_loss(student, student, unknown)
    with pytest.raises(TenfoldError, match="not none"):
        relation_loss(student, student, ())
