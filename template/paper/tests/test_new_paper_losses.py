"""The distillation loss: by hand, and what holds for all logits."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tenfold.new_paper.losses import distillation_loss


def test_the_loss_is_what_a_calculation_by_hand_gives() -> None:
    # With T = 2 the logits (0, 2 ln 3) soften to (1/4, 3/4), and (0, 0) to (1/2, 1/2).
    student, teacher = torch.zeros(1, 2), torch.tensor([[0.0, 2 * math.log(3)]])
    divergence = 0.25 * math.log(0.25 / 0.5) + 0.75 * math.log(0.75 / 0.5)
    loss = distillation_loss(student, teacher, torch.tensor([1]), temperature=2.0, label_weight=0.1)
    assert float(loss) == pytest.approx(0.9 * 4 * divergence + 0.1 * math.log(2))


logits = st.lists(st.floats(-50, 50, width=32), min_size=3, max_size=3)
temperatures = st.floats(0.5, 20)


@settings(deadline=None)
@given(student=logits, teacher=logits, temperature=temperatures)
def test_the_soft_part_is_never_negative_and_zero_for_equal_logits(
    student: list[float], teacher: list[float], temperature: float
) -> None:
    ours, theirs, label = torch.tensor([student]), torch.tensor([teacher]), torch.tensor([0])
    assert float(distillation_loss(ours, theirs, label, temperature, label_weight=0.0)) >= -1e-3
    assert float(distillation_loss(ours, ours, label, temperature, label_weight=0.0)) == 0


@settings(deadline=None)
@given(student=logits, teacher=logits, temperature=temperatures, shift=st.floats(-10, 10, width=32))
def test_adding_a_constant_to_the_logits_changes_nothing(
    student: list[float], teacher: list[float], temperature: float, shift: float
) -> None:
    ours, theirs, label = torch.tensor([student]), torch.tensor([teacher]), torch.tensor([2])
    loss, shifted = (
        distillation_loss(z, v, label, temperature, label_weight=0.3)
        for z, v in ((ours, theirs), (ours + shift, theirs - shift))
    )
    torch.testing.assert_close(shifted, loss, rtol=1e-4, atol=1e-3)
