"""The terms of the objective for fake graphs, and the distillation loss."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import kl_div, log_softmax


class NodeGroups:
    """Consecutive groups of nodes that have statistics of their own.

    Means over groups are products with a small averaging matrix, which need no scattered sums.

    Args:
        sizes: [G], nodes of each group.
    """

    def __init__(self, sizes: Tensor) -> None:
        self.num_groups = len(sizes)
        self.group_of_node = torch.repeat_interleave(sizes)
        membership = torch.arange(self.num_groups, device=sizes.device)[:, None] == self.group_of_node
        self.averaging = membership.to(torch.get_default_dtype()) / sizes[:, None]

    def mean(self, values: Tensor) -> Tensor:
        """[N, width] to [G, width]."""
        return self.averaging @ values if self.num_groups > 1 else values.mean(dim=0, keepdim=True)

    def statistics(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and biased variance, [N, width] to twice [G, width]."""
        mean = self.mean(values)
        own_mean = mean[self.group_of_node] if self.num_groups > 1 else mean
        return mean, self.mean((values - own_mean).square())


def batch_norm_distance(
    norms: Sequence[nn.BatchNorm1d], norm_inputs: Sequence[Tensor], groups: NodeGroups | None = None
) -> Tensor:
    """R_bn by layer: how far the nodes' statistics are from those the teacher's batch norms remember.

    ``||running_var - var||_2 + ||running_mean - mean||_2``, with the biased variance over all nodes of a group.

    Args:
        norms: the L batch norms.
        norm_inputs: their inputs, each [N, width].
        groups: which nodes have statistics of their own; by default all nodes are one group.

    Returns:
        [G, L]; the objective sums over the layers.
    """
    distances = []
    for norm, values in zip(norms, norm_inputs, strict=True):
        assert norm.running_mean is not None and norm.running_var is not None
        mean, variance = (groups or NodeGroups(torch.tensor([len(values)]))).statistics(values)
        distances.append((norm.running_var - variance).norm(dim=1) + (norm.running_mean - mean).norm(dim=1))
    return torch.stack(distances, dim=1)


def one_hot_entropy(feature_logits: Tensor) -> Tensor:
    """Entropy -sum_c x_c ln x_c of x = softmax(feature logits) of every node; R_oh is its mean.

    Computed from the log-softmax, so a probability that underflows contributes 0 and not NaN.

    Args:
        feature_logits: [N, d].

    Returns:
        [N], in nats.
    """
    log_probabilities = log_softmax(feature_logits, dim=1)
    return -(log_probabilities.exp() * log_probabilities).sum(dim=1)


def distillation_loss(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """T^2 KL(softmax(teacher / T) || softmax(student / T)), summed over classes, mean over the batch.

    Args:
        student_logits: [B, C].
        teacher_logits: [B, C], without gradient.
        temperature: T > 0; the paper uses 2.
    """
    student = log_softmax(student_logits / temperature, dim=1)
    teacher = log_softmax(teacher_logits / temperature, dim=1)
    return temperature**2 * kl_div(student, teacher, reduction="batchmean", log_target=True)
