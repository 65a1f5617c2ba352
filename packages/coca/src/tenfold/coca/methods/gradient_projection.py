"""Gradients that must not raise the loss on remembered images: A-GEM and GEM."""

from __future__ import annotations

from typing import ClassVar, Literal

import numpy as np
import torch
from scipy.optimize import nnls
from torch import Tensor
from torch.nn.functional import cross_entropy

from tenfold.coca.augmentation import Preprocessing
from tenfold.coca.memory import TaskMemory
from tenfold.coca.methods.base import Memory, Method, StepBatch
from tenfold.coca.methods.task_memory import add_random_images


class AGemR(Method):
    """A-GEM (Chaudhry et al. 2019) on a reservoir: a gradient that disagrees with a draw's is made orthogonal."""

    draws = 1

    def observe(self, batch: StepBatch) -> Tensor:
        reference = None
        if batch.draws:
            (draw,) = batch.draws
            self.optimizer.zero_grad()
            self.fabric.backward(cross_entropy(self.logits(draw.images), draw.labels))
            reference = flat_gradient(self.parameters)
        logits = self.logits(batch.images)
        loss = cross_entropy(logits, batch.labels)
        self.optimizer.zero_grad()
        self.fabric.backward(loss)
        if reference is not None:
            set_flat_gradient(self.parameters, project(flat_gradient(self.parameters), reference))
        self.step(loss)
        return logits.detach()


class AGem(AGemR):
    """A-GEM with a memory in equal parts of the tasks, filled when a task ends."""

    memory_kind: ClassVar[Literal["none", "reservoir", "tasks"]] = "tasks"
    needs_boundaries = True

    def end_task(self, memory: Memory, images: Tensor, labels: Tensor, preprocessing: Preprocessing) -> None:
        del preprocessing
        assert isinstance(memory, TaskMemory)
        add_random_images(memory, {"images": images, "labels": labels})


class Gem(Method):
    """GEM (Lopez-Paz and Ranzato 2017): the gradient must not point against that of any earlier task's memory.

    One backward pass per earlier task, and a small quadratic programme on the host in each step.
    """

    memory_kind: ClassVar[Literal["none", "reservoir", "tasks"]] = "tasks"
    needs_boundaries = True

    def draw_slots(self, memory: Memory, count: int) -> list[np.ndarray]:
        """All that is remembered of each task."""
        del count
        assert isinstance(memory, TaskMemory)
        ends = np.cumsum([len(part["labels"]) for part in memory.parts])
        return [
            np.arange(end - len(part["labels"]), end) for end, part in zip(ends, memory.parts, strict=True)
        ]

    def observe(self, batch: StepBatch) -> Tensor:
        references = []
        for draw in batch.draws:
            self.optimizer.zero_grad()
            self.fabric.backward(cross_entropy(self.logits(draw.images), draw.labels))
            references.append(flat_gradient(self.parameters))
        logits = self.logits(batch.images)
        loss = cross_entropy(logits, batch.labels)
        self.optimizer.zero_grad()
        self.fabric.backward(loss)
        if references:
            gradient = project_onto_cone(
                flat_gradient(self.parameters), torch.stack(references), self.config.gem_margin
            )
            set_flat_gradient(self.parameters, gradient)
        self.step(loss)
        return logits.detach()

    def end_task(self, memory: Memory, images: Tensor, labels: Tensor, preprocessing: Preprocessing) -> None:
        del preprocessing
        assert isinstance(memory, TaskMemory)
        add_random_images(memory, {"images": images, "labels": labels})


def project(gradient: Tensor, reference: Tensor) -> Tensor:
    """A-GEM's projection: g - (g·r / r·r) r where g·r < 0, else g; [P] each."""
    dot, square = gradient @ reference, reference @ reference
    excess = torch.where((dot < 0) & (square > 0), dot / square.clamp(min=1e-30), torch.zeros_like(dot))
    return gradient - excess * reference


def project_onto_cone(gradient: Tensor, references: Tensor, margin: float = 0.0) -> Tensor:
    """GEM's projection: the nearest vector that has no negative product with any reference.

    The dual, min over v >= margin of ||Gᵀ v + g||², is a non-negative least squares problem in v - margin; scipy solves
    it on a square root of the Gram matrix. A gradient that overflowed is returned as it is.

    Args:
        gradient: g, [P].
        references: G, [t, P].
        margin: smallest weight of each reference where any of them is violated.
    """
    both = torch.cat([references, gradient[None]])
    scale = torch.linalg.vector_norm(both) / len(both) ** 0.5
    table = ((both / scale) @ (both / scale).t()).double().cpu().numpy()
    gram, products = table[:-1, :-1], table[:-1, -1]
    if not np.isfinite(table).all() or (products >= 0).all():
        return gradient
    values, vectors = np.linalg.eigh(gram)
    root = np.sqrt(values.clip(min=1e-3 * max(values.max(), 1e-12)))  # references may repeat each other
    factor = root[:, None] * vectors.T
    shifted = vectors.T @ (products + gram @ np.full(len(gram), margin)) / root
    weights, _ = nnls(factor, -shifted)
    return gradient + references.t() @ references.new_tensor(weights + margin)


def flat_gradient(parameters: list[torch.nn.Parameter]) -> Tensor:
    """All gradients as one vector, copied."""
    gradients = [parameter.grad for parameter in parameters]
    return torch.cat([gradient.flatten() for gradient in gradients if gradient is not None])


def set_flat_gradient(parameters: list[torch.nn.Parameter], gradient: Tensor) -> None:
    """The reverse of :func:`flat_gradient`."""
    parts = gradient.split([parameter.numel() for parameter in parameters])
    for parameter, part in zip(parameters, parts, strict=True):
        assert parameter.grad is not None
        parameter.grad.copy_(part.view_as(parameter))
