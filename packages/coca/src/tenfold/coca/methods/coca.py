"""CoCa: collaborative distillation and collaborative self-supervision (Ji et al., IEEE TIP 2023).

Both parts can be turned off. Without collaborative distillation (``gamma = 0``) the target is the stored output alone;
without self-supervision (both its weights 0) there is no pass over views. With both off the method is DER++ to the bit.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from tenfold.coca.config import LearnerConfig
from tenfold.coca.losses import (
    collaborative_distillation_loss,
    masked_cross_entropy,
    supervised_contrastive_loss,
)
from tenfold.coca.methods.base import Method, Replay, StepBatch
from tenfold.coca.networks import ContinualNetwork, NetworkOutput, Part
from tenfold.coca.pretext_views import common_side, crop_and_rotate

Network = ContinualNetwork | Callable[..., NetworkOutput]


class CocaStep(NamedTuple):
    """A step's loss before anything moves."""

    loss: Tensor
    """L = L_ce + alpha L_cd + beta L_er + lambda_c L_sc + lambda_r L_rot."""
    terms: dict[str, Tensor]
    """Each term without its weight: cross_entropy, distillation, replay, contrastive, pretext; those that there are."""
    logits: Tensor
    """[B, C] of the stream images."""


class CoCa(Method):
    """DER++ whose targets follow the present relations, and whose features are trained on views of all images."""

    draws = 2
    stores_logits = True

    @classmethod
    def trained_heads(cls, config: LearnerConfig) -> tuple[Part, ...]:
        return self_supervised_heads(config)

    @classmethod
    def used_heads(cls, config: LearnerConfig) -> tuple[Part, ...]:
        return (*cls.trained_heads(config), *(("projection",) if config.gamma > 0 else ()))

    @classmethod
    def makes_views(cls, config: LearnerConfig) -> bool:
        return config.uses_views

    def observe(self, batch: StepBatch) -> Tensor:
        step = coca_step_loss(self.model, batch, self.config, self.gather)
        self.descend(step.loss)
        return step.logits.detach()


def self_supervised_heads(config: LearnerConfig) -> tuple[Part, ...]:
    """The heads that self-supervision trains."""
    heads: list[Part] = []
    if config.uses_pretext:
        heads.append("pretext")
    if config.uses_contrast:
        heads.append("projection")
    return tuple(heads)


def coca_step_loss(
    model: Network, batch: StepBatch, config: LearnerConfig, gather: Callable[[Tensor], Tensor] = lambda x: x
) -> CocaStep:
    """The loss of one step.

    The passes over the stream, the two draws and the views are separate, in this order: each normalises by its own
    batch statistics and moves the running ones.

    Args:
        model: a :class:`~tenfold.coca.networks.ContinualNetwork`, or what wraps it.
        batch: stream, draws and view parameters; its class masks where ``config.task_boundaries`` is set.
        config: weights and constants.
        gather: the values of all processes, where there are several.
    """
    stream, first, second = _passes(model, batch, config)
    assert stream.logits is not None
    task_classes = batch.task_classes if config.task_boundaries else None
    seen_classes = batch.seen_classes if config.task_boundaries else None
    terms = {"cross_entropy": masked_cross_entropy(stream.logits, batch.labels, task_classes)}
    loss = terms["cross_entropy"]
    if first is not None and second is not None:
        assert first.logits is not None and second.logits is not None
        reserved = batch.draws[0].logits
        assert reserved is not None
        projection = None if first.projection is None else gather(first.projection.detach())
        terms["distillation"] = collaborative_distillation_loss(
            first.logits if projection is None else gather(first.logits),
            reserved if projection is None else gather(reserved),
            projection,
            config.omega,
            config.gamma,
            config.diagonal,
            config.affinity_temperature,
        )
        loss = loss + config.alpha * terms["distillation"]
        terms["replay"] = masked_cross_entropy(second.logits, batch.draws[1].labels, seen_classes)
        loss = loss + config.beta * terms["replay"]
    if config.uses_views:
        replayed = batch.draws[-1] if batch.draws else None
        images, labels = with_replay(batch, replayed)
        projection = None
        if config.uses_contrast:
            assert stream.projection is not None
            projection = stream.projection
            if second is not None and second.projection is not None:
                projection = torch.cat([projection, second.projection])
        terms |= self_supervision(model, images, labels, projection, batch, config, gather)
        if config.uses_contrast:
            loss = loss + config.contrastive_weight * terms["contrastive"]
        if config.uses_pretext:
            loss = loss + config.pretext_weight * terms["pretext"]
    return CocaStep(loss, terms, stream.logits)


def self_supervision(
    model: Network,
    images: Tensor,
    labels: Tensor,
    projection: Tensor | None,
    batch: StepBatch,
    config: LearnerConfig,
    gather: Callable[[Tensor], Tensor] = lambda x: x,
) -> dict[str, Tensor]:
    """The terms of collaborative self-supervision, without their weights.

    Args:
        model: see :func:`coca_step_loss`.
        images: [N, channels, S, S] of stream and memory, augmented and normalised.
        labels: [N].
        projection: [N, P] of those images.
        batch: with pretext labels and boxes of the views.
        config: which terms are on, and the temperature.
        gather: see :func:`coca_step_loss`.
    """
    assert batch.pretext_labels is not None and batch.boxes is not None
    views = crop_and_rotate(
        images, batch.pretext_labels, batch.boxes, common_side(config.views, images.shape[-1])
    )
    seen: NetworkOutput = model(views, parts=self_supervised_heads(config))
    terms: dict[str, Tensor] = {}
    if config.uses_contrast:
        assert projection is not None and seen.projection is not None
        terms["contrastive"] = supervised_contrastive_loss(
            gather(projection), gather(seen.projection), gather(labels), config.temperature
        )
    if config.uses_pretext:
        assert seen.pretext is not None
        terms["pretext"] = cross_entropy(seen.pretext, batch.pretext_labels)
    return terms


def with_replay(batch: StepBatch, replayed: Replay | None) -> tuple[Tensor, Tensor]:
    """Stream images and labels, followed by those of a draw."""
    if replayed is None:
        return batch.images, batch.labels
    return torch.cat([batch.images, replayed.images]), torch.cat([batch.labels, replayed.labels])


def _passes(
    model: Network, batch: StepBatch, config: LearnerConfig
) -> tuple[NetworkOutput, NetworkOutput | None, NetworkOutput | None]:
    """Outputs on the stream and on both draws."""
    contrasted: tuple[Part, ...] = ("logits", "projection") if config.uses_contrast else ("logits",)
    distilled: tuple[Part, ...] = ("logits", "projection") if config.gamma > 0 else ("logits",)
    if not batch.draws:
        return model(batch.images, parts=contrasted), None, None
    first, second = batch.draws
    if not config.merge_draws:
        return (
            model(batch.images, parts=contrasted),
            model(first.images, parts=distilled),
            model(second.images, parts=contrasted),
        )
    parts = max(contrasted, distilled, key=len)
    sizes = [len(batch.images), len(first.images), len(second.images)]
    merged = model(torch.cat([batch.images, first.images, second.images]), parts=parts)
    split = [[None] * 3 if part is None else list(part.split(sizes)) for part in merged]
    stream, first_output, second_output = (NetworkOutput(*parts) for parts in zip(*split, strict=True))
    return stream, first_output, second_output
