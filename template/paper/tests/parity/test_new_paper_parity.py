"""Parity with the reference implementation; a case's ``kind`` says which function it exercises."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tenfold.new_paper.losses import distillation_loss


def check_distillation_loss(case: Any, fill: Any) -> None:
    student = fill(case["student"]).requires_grad_()
    labels = torch.tensor(case["labels"])
    loss = distillation_loss(
        student, fill(case["teacher"]), labels, case["temperature"], case["label_weight"]
    )
    (gradient,) = torch.autograd.grad(loss, student)
    case.check("loss", loss)
    case.check("student_grad", gradient)


CHECKS = {"distillation_loss": check_distillation_loss}


def test_the_reference_gives_the_same_numbers(parity_case: Any, fill: Any) -> None:
    if parity_case["kind"] not in CHECKS:
        pytest.fail(f"no runner for parity cases of kind {parity_case['kind']!r}")
    CHECKS[parity_case["kind"]](parity_case, fill)
