"""Learning from the stream alone, and with remembered images: SGD, ER, ER-ACE, DER and DER++."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from tenfold.coca.losses import der_loss, derpp_loss, er_loss, masked_cross_entropy, present_classes
from tenfold.coca.methods.base import Method, StepBatch


class Sgd(Method):
    """Forgets freely: the lower bound on a stream, and, on all tasks shuffled together, the upper bound JOINT."""

    memory_kind: ClassVar[Literal["none", "reservoir", "tasks"]] = "none"

    def observe(self, batch: StepBatch) -> Tensor:
        logits = self.logits(batch.images)
        self.descend(cross_entropy(logits, batch.labels))
        return logits.detach()


class Er(Method):
    """Experience replay: remembered images join the stream's batch in one pass and one cross-entropy."""

    draws = 1

    def observe(self, batch: StepBatch) -> Tensor:
        if not batch.draws:
            logits = self.logits(batch.images)
            self.descend(cross_entropy(logits, batch.labels))
            return logits.detach()
        (draw,) = batch.draws
        size = len(batch.images)
        logits = self.logits(torch.cat([batch.images, draw.images]))
        self.descend(er_loss(logits[:size], batch.labels, logits[size:], draw.labels))
        return logits[:size].detach()


class ErAce(Method):
    """ER with asymmetric cross-entropy (Caccia et al. 2022): new images compete among the classes of their own batch.

    Earlier classes are then not pushed away by the new ones; the remembered images compete among all classes.
    """

    draws = 1

    def observe(self, batch: StepBatch) -> Tensor:
        logits = self.logits(batch.images)
        if not batch.draws:  # the first batch has no earlier classes to spare
            self.descend(cross_entropy(logits, batch.labels))
            return logits.detach()
        (draw,) = batch.draws
        present = present_classes(self.gather(batch.labels), logits.shape[1])
        loss = masked_cross_entropy(logits, batch.labels, present)
        self.descend(loss + cross_entropy(self.logits(draw.images), draw.labels))
        return logits.detach()


class Der(Method):
    """Dark experience replay (Buzzega et al. 2020): remembered images keep their outputs."""

    draws = 1
    stores_logits = True

    def observe(self, batch: StepBatch) -> Tensor:
        logits = self.logits(batch.images)
        loss = cross_entropy(logits, batch.labels)
        if batch.draws:
            (draw,) = batch.draws
            assert draw.logits is not None
            outputs = self.logits(draw.images)
            loss = der_loss(logits, batch.labels, outputs, draw.logits, self.config.alpha)
        self.descend(loss)
        return logits.detach()


class DerPlusPlus(Method):
    """DER++ (Buzzega et al. 2020): remembered images keep their outputs, and others their labels."""

    draws = 2
    stores_logits = True

    def observe(self, batch: StepBatch) -> Tensor:
        logits = self.logits(batch.images)
        loss = cross_entropy(logits, batch.labels)
        if batch.draws:
            first, second = batch.draws
            assert first.logits is not None
            outputs, second_outputs = self.logits(first.images), self.logits(second.images)
            loss = derpp_loss(
                logits,
                batch.labels,
                outputs,
                first.logits,
                second_outputs,
                second.labels,
                self.config.alpha,
                self.config.beta,
            )
        self.descend(loss)
        return logits.detach()
