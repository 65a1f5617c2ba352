"""The distillation loss."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import cross_entropy, kl_div, log_softmax


def distillation_loss(
    student_logits: Tensor, teacher_logits: Tensor, labels: Tensor, temperature: float, label_weight: float
) -> Tensor:
    """``(1 - w) T^2 KL(softmax(v / T) || softmax(z / T)) + w CE(z, labels)``, mean over the batch (section 2).

    The factor T^2 keeps the gradient's size independent of T. The divergence differs from the paper's cross-entropy
    with soft targets by the teacher's entropy, which has no gradient.

    Args:
        student_logits: z, [B, C].
        teacher_logits: v, [B, C], without gradient.
        labels: [B].
        temperature: T > 0.
        label_weight: w, 0 to 1.
    """
    student = log_softmax(student_logits / temperature, dim=1)
    teacher = log_softmax(teacher_logits / temperature, dim=1)
    soft = temperature**2 * kl_div(student, teacher, reduction="batchmean", log_target=True)
    return (1 - label_weight) * soft + label_weight * cross_entropy(student_logits, labels)
