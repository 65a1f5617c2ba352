"""iCaRL: exemplars chosen by herding, and classification by the nearest class mean."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, normalize

from tenfold.coca.augmentation import Preprocessing
from tenfold.coca.losses import membership
from tenfold.coca.memory import TaskMemory
from tenfold.coca.methods.base import Memory, Method, StepBatch
from tenfold.coca.methods.coca import with_replay
from tenfold.coca.methods.task_memory import ask_in_chunks
from tenfold.coca.networks import ContinualNetwork


class ICarl(Method):
    """iCaRL (Rebuffi et al. 2017).

    Each class has an output of its own (a sigmoid); the outputs of earlier classes imitate the network that the last
    task left. Exemplars are chosen so that their mean follows the class mean, and predict by it. A step draws exemplars
    from memory, where the original mixes all of them into the task's training set.
    """

    draws = 1
    memory_kind: ClassVar[Literal["none", "reservoir", "tasks"]] = "tasks"
    needs_boundaries = True

    _previous: ContinualNetwork | None = None
    _means: Tensor | None = None

    def observe(self, batch: StepBatch) -> Tensor:
        assert batch.seen_classes is not None and batch.task_classes is not None
        images, labels = with_replay(batch, batch.draws[0] if batch.draws else None)
        logits = self.logits(images)
        targets = membership(labels, logits.shape[1]).to(logits.dtype)
        if self._previous is not None:
            with torch.no_grad(), self.fabric.autocast():
                earlier = torch.sigmoid(self._previous(images).float())
            targets = torch.where(batch.task_classes, targets, earlier)
        per_class = binary_cross_entropy_with_logits(logits, targets, reduction="none").mean(dim=0)
        seen = batch.seen_classes.to(per_class.dtype)
        self.descend((per_class * seen).sum() / seen.sum())
        return logits[: len(batch.images)].detach()

    def end_task(self, memory: Memory, images: Tensor, labels: Tensor, preprocessing: Preprocessing) -> None:
        assert isinstance(memory, TaskMemory)
        features = ask_in_chunks(self.fabric, self.network, self._features, images, preprocessing)
        classes = labels.unique().tolist()
        share = max(memory.share // len(classes), 1)
        ranked = []
        for label in classes:
            members = (labels == label).nonzero().flatten()
            ranked.append(members[herd(features[members], min(share, len(members)))])
        # Most important first, class by class in turn, so that shortening the part shortens every class.
        longest = max(map(len, ranked))
        order = torch.stack(
            [members[rank] for rank in range(longest) for members in ranked if rank < len(members)]
        )
        memory.add({"images": images[order], "labels": labels[order]})
        self._previous = copy.deepcopy(self.network).eval().requires_grad_(False)
        self._remember_means(memory, preprocessing)

    def _remember_means(self, memory: TaskMemory, preprocessing: Preprocessing) -> None:
        features = ask_in_chunks(self.fabric, self.network, self._features, memory["images"], preprocessing)
        members = membership(memory["labels"], self.network.num_classes).to(features.dtype)
        counts = members.sum(dim=0)[:, None]
        self._means = torch.where(counts > 0, normalize(members.t() @ features), torch.nan)

    def scores(self, images: Tensor) -> Tensor:
        """Minus the distance to each class's mean of exemplars; classes without one come last, in order of their
        logits.
        """
        logits = super().scores(images).float()
        if self._means is None:  # no task has ended
            return logits
        distances = torch.cdist(self._features(images), self._means)
        return torch.where(distances.isnan(), logits - 1e4, -distances)

    def _features(self, images: Tensor) -> Tensor:
        embedding: Tensor = self.network(images, parts=("embedding",)).embedding
        return embedding

    def state_dict(self) -> dict[str, Any]:
        previous = None if self._previous is None else self._previous.state_dict()
        return {**super().state_dict(), "previous": previous, "means": self._means}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self._means = None if state["means"] is None else state["means"].to(self.fabric.device)
        self._previous = None
        if state["previous"] is not None:
            self._previous = copy.deepcopy(self.network).eval().requires_grad_(False)
            self._previous.load_state_dict(state["previous"])


def herd(features: Tensor, count: int) -> Tensor:
    """The order in which images bring the mean of those taken closest to the mean of all.

    Args:
        features: [N, d].
        count: how many to take, at most N.

    Returns:
        [count] places in ``features``.
    """
    mean, taken, total = features.mean(dim=0), [], torch.zeros_like(features[0])
    free = torch.zeros(len(features), device=features.device)
    for rank in range(1, count + 1):
        distances = (mean - (total + features) / rank).norm(dim=1) + free
        best = distances.argmin()
        taken.append(best)
        total = total + features[best]
        free[best] = torch.inf
    return torch.stack(taken)
