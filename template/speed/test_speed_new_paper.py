"""One step of distillation on 100 images: the teacher's answers looked up, against a teacher that answers each time.

The teacher has 1200 hidden units a layer, as the paper's on MNIST. Both sides compute the same loss and the same
gradients, which is checked before timing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.nn import KLDivLoss
from torch.nn.functional import cross_entropy

from tenfold.new_paper.config import TrainingConfig
from tenfold.new_paper.data import draw_images, load_digits_split
from tenfold.new_paper.model import DigitClassifier
from tenfold.new_paper.training import distillation_objective


def test_distillation_step_against_a_teacher_in_the_loop(measure_ratio: Callable[..., Any]) -> None:
    torch.manual_seed(0)
    config = TrainingConfig(label_weight=0.1)
    images = draw_images(load_digits_split()[0], 100, seed=0)
    teacher, student = DigitClassifier(1200).eval(), DigitClassifier(config.hidden_dim)
    indices, t = torch.arange(100), config.temperature
    objective = distillation_objective(teacher, images, config)

    def ours() -> None:
        student.zero_grad()
        objective(student(images.images), indices).backward()

    def reference() -> None:
        student.zero_grad()
        with torch.no_grad():
            soft_targets = (teacher(images.images) / t).softmax(dim=1)
        logits = student(images.images)
        soft = t**2 * KLDivLoss(reduction="batchmean")((logits / t).log_softmax(dim=1), soft_targets)
        (0.9 * soft + 0.1 * cross_entropy(logits, images.labels)).backward()

    gradients = []
    for step in (ours, reference):
        step()
        gradients.append([parameter.grad for parameter in student.parameters()])
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-6)
    measured = measure_ratio(
        ours, reference, passes=20, reference="a teacher that answers in every step", unit="training steps"
    )
    assert measured.median > 1.5
