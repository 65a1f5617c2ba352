"""FDR: function distance regularisation."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from tenfold.coca.augmentation import Preprocessing
from tenfold.coca.memory import TaskMemory
from tenfold.coca.methods.base import Memory, Method, StepBatch
from tenfold.coca.methods.task_memory import add_random_images, ask_in_chunks


class Fdr(Method):
    """FDR (Benjamin et al. 2019): probabilities on remembered images stay where they were when their task ended.

    As in the code that the printed numbers come from, a step down the cross-entropy is followed by one down the
    distance.
    """

    draws = 1
    memory_kind: ClassVar[Literal["none", "reservoir", "tasks"]] = "tasks"
    stores_logits = True
    needs_boundaries = True

    def observe(self, batch: StepBatch) -> Tensor:
        logits = self.logits(batch.images)
        self.descend(cross_entropy(logits, batch.labels))
        if batch.draws:
            (draw,) = batch.draws
            assert draw.logits is not None
            self.descend(function_distance(self.logits(draw.images), draw.logits))
        return logits.detach()

    def end_task(self, memory: Memory, images: Tensor, labels: Tensor, preprocessing: Preprocessing) -> None:
        assert isinstance(memory, TaskMemory)
        logits = ask_in_chunks(self.fabric, self.network, self.network, images, preprocessing)
        add_random_images(memory, {"images": images, "labels": labels, "logits": logits})


def function_distance(outputs: Tensor, reserved: Tensor) -> Tensor:
    """Mean over images of the Euclidean distance between probabilities; logits [m, C] each."""
    difference = outputs.softmax(dim=1) - reserved.softmax(dim=1)
    distances: Tensor = torch.linalg.vector_norm(difference, dim=1)
    return distances.mean()
