"""OCD-Net, by the authors of CoCa: an averaged teacher instead of stored outputs."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor
from torch.nn.functional import cross_entropy, log_softmax

from tenfold.coca.config import LearnerConfig
from tenfold.coca.memory import generator_state, restore_generator
from tenfold.coca.methods.base import Method, StepBatch
from tenfold.coca.methods.coca import self_supervision, with_replay
from tenfold.coca.networks import ContinualNetwork, Part


class OcdNet(Method):
    """OCD-Net (Li et al., IJCAI 2022).

    The teacher is a running average of the network, updated at random steps; it is what predicts. On a draw the network
    imitates the teacher's outputs, each image as much as the teacher believes its label, and the teacher's projections
    (both with weight ``alpha``), and learns the labels (weight ``beta``). Self-supervision is CoCa's. As in the
    authors' code the teacher normalises by the statistics of the draw while the network learns.
    """

    draws = 1

    def __init__(
        self,
        network: ContinualNetwork,
        config: LearnerConfig,
        fabric: Fabric,
        seed: int = 0,
        compile_network: bool = False,
    ) -> None:
        super().__init__(network, config, fabric, seed, compile_network)
        self._teacher = copy.deepcopy(network).requires_grad_(False)
        self._steps = 0
        self._rng = np.random.RandomState(seed)

    @classmethod
    def trained_heads(cls, config: LearnerConfig) -> tuple[Part, ...]:
        return ("projection", *(("pretext",) if config.uses_pretext else ()))

    @classmethod
    def makes_views(cls, config: LearnerConfig) -> bool:
        return config.uses_views

    def networks(self) -> tuple[ContinualNetwork, ...]:
        return self.network, self._teacher

    def observe(self, batch: StepBatch) -> Tensor:
        config = self.config
        stream = self.ask(batch.images, "logits", "projection")
        assert stream.logits is not None and stream.projection is not None
        loss = cross_entropy(stream.logits, batch.labels)
        projection = stream.projection
        draw = batch.draws[0] if batch.draws else None
        if draw is not None:
            replayed = self.ask(draw.images, "logits", "projection")
            assert replayed.logits is not None and replayed.projection is not None
            with torch.no_grad(), self.fabric.autocast():
                taught = self._teacher(draw.images, parts=("logits", "projection"))
            imitation = response_distillation_loss(replayed.logits, taught.logits.float(), draw.labels)
            imitation = imitation + contrastive_distillation_loss(
                self.gather(replayed.projection),
                self.gather(taught.projection),
                self.gather(draw.labels),
                config.temperature,
            )
            loss = loss + config.alpha * imitation
            loss = loss + config.beta * cross_entropy(replayed.logits, draw.labels)
            projection = torch.cat([projection, replayed.projection])
        if config.uses_views:
            images, labels = with_replay(batch, draw)
            terms = self_supervision(self.model, images, labels, projection, batch, config, self.gather)
            weights = {"contrastive": config.contrastive_weight, "pretext": config.pretext_weight}
            for name, term in terms.items():
                loss = loss + weights[name] * term
        if not config.uses_contrast:  # several processes expect a gradient of every head, of zero here
            loss = loss + 0 * projection.sum()
        self.descend(loss)
        self._update_teacher()
        return stream.logits.detach()

    def scores(self, images: Tensor) -> Tensor:
        """The teacher's logits."""
        self._teacher.eval()
        logits: Tensor = self._teacher(images)
        self._teacher.train()
        return logits

    @torch.no_grad()
    def _update_teacher(self) -> None:
        self._steps += 1
        if self._rng.random_sample() >= self.config.teacher_update_rate:
            return
        momentum = min(1 - 1 / (self._steps + 1), self.config.teacher_momentum)
        for averaged, mine in zip(self._teacher.parameters(), self.network.parameters(), strict=True):
            averaged.lerp_(mine, 1 - momentum)

    def state_dict(self) -> dict[str, Any]:
        extra = {
            "teacher": self._teacher.state_dict(),
            "steps": self._steps,
            "rng": generator_state(self._rng),
        }
        return {**super().state_dict(), **extra}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self._teacher.load_state_dict(state["teacher"])
        self._steps = state["steps"]
        restore_generator(self._rng, state["rng"])


def response_distillation_loss(outputs: Tensor, taught: Tensor, labels: Tensor) -> Tensor:
    """Squared distance of logits [m, C], each image weighted by the teacher's probability of its label [m]."""
    belief = taught.softmax(dim=1).gather(1, labels[:, None])
    return (belief * (outputs - taught).square()).mean()


def contrastive_distillation_loss(
    projection: Tensor, taught: Tensor, labels: Tensor, temperature: float
) -> Tensor:
    """Each of the teacher's projections draws the network's projections of its class near, its own image's included.

    Args:
        projection: the network's, [m, P], each of length 1.
        taught: the teacher's, [m, P], each of length 1.
        labels: [m].
        temperature: tau.
    """
    log_probabilities = log_softmax(taught @ projection.t() / temperature, dim=1)
    positives = labels[:, None] == labels
    return (-log_probabilities.masked_fill(~positives, 0).sum(dim=1) / positives.sum(dim=1)).mean()
