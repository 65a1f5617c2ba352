"""Where a student's knowledge comes from: soft labels (CPF), an adversarial game (GraphAKD), or the labels alone.

Each source has a ``loss`` for the student, and may learn something itself from the student's output first.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.nn.functional import log_softmax, one_hot

from tenfold.reliant.adversarial import Discriminators, classification, discriminator_losses, student_losses
from tenfold.reliant.batches import NodeBatch
from tenfold.reliant.node_output import NodeOutput
from tenfold.shared.logging import TenfoldError


def knowledge_distance(log_probabilities: Tensor, target: Tensor, nodes: Tensor) -> Tensor:
    """CPF's L_KD = || q - t ||_F over some nodes: a Frobenius norm, neither squared nor averaged.

    Args:
        log_probabilities: [N, C], the student's log q.
        target: [N, C], the teacher's probabilities t.
        nodes: [k], those that count; the paper's are all non-training nodes.
    """
    distance: Tensor = torch.linalg.vector_norm(log_probabilities[nodes].exp() - target[nodes])
    return distance


def descend(
    loss: Tensor, parameters: list[nn.Parameter], optimizer: torch.optim.Optimizer, fabric: Fabric
) -> None:
    """One step of an optimizer outside Fabric's care; gradients reach ``parameters`` alone, averaged over processes."""
    optimizer.zero_grad()
    loss.backward(inputs=parameters)
    if fabric.world_size > 1:
        for parameter in parameters:
            parameter.grad = fabric.all_reduce(parameter.grad, reduce_op="mean")  # type: ignore[assignment, arg-type]
    optimizer.step()


class KnowledgeSource(Protocol):
    """What a student learns from."""

    def learn(self, output: NodeOutput, batch: NodeBatch) -> None:
        """Learn from the student's output, without gradient to the student."""
        ...

    def loss(self, output: NodeOutput, batch: NodeBatch) -> Tensor:
        """What the student minimises, without the bias term."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """What it has learned, for a checkpoint."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class Labels:
    """Cross-entropy on the training nodes, without a teacher."""

    def learn(self, output: NodeOutput, batch: NodeBatch) -> None:
        """Nothing to learn."""

    def loss(self, output: NodeOutput, batch: NodeBatch) -> Tensor:
        train = batch.roles["train"]
        return classification(output.logits[train].float(), batch.labels[train])

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing to restore."""


class LabelDistances(Labels):
    """CPF's distance to one-hot labels, on the training nodes that are hidden from the student in this pass."""

    def loss(self, output: NodeOutput, batch: NodeBatch) -> Tensor:
        target = one_hot(batch.labels, output.logits.shape[1]).float()
        probabilities = output.logits.float().softmax(dim=1)
        if output.pinned is not None:  # a pinned row counts as right, without a look at the host
            probabilities = torch.where(output.pinned[:, None], target, probabilities)
        distance: Tensor = torch.linalg.vector_norm((probabilities - target)[batch.roles["train"]])
        return distance


class SoftLabels:
    """CPF: the distance to the teacher's probabilities on all nodes that are not for training.

    Args:
        teacher: its output on all N nodes.
        decimals: digits to which the probabilities are rounded; the authors pass them through text files with 4.
    """

    def __init__(self, teacher: NodeOutput, decimals: int | None = None) -> None:
        probabilities = teacher.logits.float().softmax(dim=1)
        self.probabilities = probabilities if decimals is None else probabilities.round(decimals=decimals)

    def learn(self, output: NodeOutput, batch: NodeBatch) -> None:
        """Nothing to learn."""

    def loss(self, output: NodeOutput, batch: NodeBatch) -> Tensor:
        target = self.probabilities if batch.nodes is None else self.probabilities[batch.nodes]
        distance = knowledge_distance(
            log_softmax(output.logits.float(), dim=1), target, batch.roles["unlabelled"]
        )
        return distance * batch.share["unlabelled"] ** -0.5 if len(batch.roles["unlabelled"]) else distance

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing to restore."""


class Adversary:
    """GraphAKD: three discriminators, trained in turn with the student.

    Args:
        teacher: its output on all N nodes.
        lr: of the discriminators' Adam.
        weight_decay: likewise.
        fabric: launched; each of its processes sees a share of the nodes.

    Raises:
        TenfoldError: the teacher has no embedding.
    """

    def __init__(self, teacher: NodeOutput, lr: float, weight_decay: float, fabric: Fabric) -> None:
        if teacher.embedding is None:
            raise TenfoldError(
                "adversarial distillation compares embeddings, but this teacher returns logits only; let it return "
                "(logits, embedding), or choose the cpf framework"
            )
        self._teacher = NodeOutput(log_softmax(teacher.logits.float(), dim=1), teacher.embedding.float())
        self._fabric = fabric
        self.discriminators = Discriminators(teacher.logits.shape[1], teacher.embedding.shape[1])
        self.discriminators.to(fabric.device)
        self.optimizer = torch.optim.Adam(
            self.discriminators.parameters(), lr=lr, weight_decay=weight_decay, fused=True
        )

    def learn(self, output: NodeOutput, batch: NodeBatch) -> None:
        terms = discriminator_losses(*self._arguments(output.detach(), batch))
        descend(terms["total"], list(self.discriminators.parameters()), self.optimizer, self._fabric)

    def loss(self, output: NodeOutput, batch: NodeBatch) -> Tensor:
        return student_losses(*self._arguments(output, batch))["total"]

    def _arguments(self, output: NodeOutput, batch: NodeBatch) -> tuple[Any, ...]:
        seeds = None if batch.nodes is None else batch.roles["all"]
        embedding = None if output.embedding is None else output.embedding.float()
        student = NodeOutput(output.logits.float(), embedding)
        teacher = self._teacher.rows(batch.nodes)
        return (
            self.discriminators,
            teacher,
            student,
            batch.topology,
            batch.labels,
            batch.roles["train"],
            seeds,
        )

    def state_dict(self) -> dict[str, Any]:
        return {"discriminators": self.discriminators.state_dict(), "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.discriminators.load_state_dict(state["discriminators"])
        self.optimizer.load_state_dict(state["optimizer"])
