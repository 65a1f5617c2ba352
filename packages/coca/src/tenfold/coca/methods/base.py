"""What all methods share: one step of SGD on a prepared batch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor

from tenfold.coca.augmentation import Preprocessing
from tenfold.coca.config import LearnerConfig
from tenfold.coca.memory import ReservoirMemory, TaskMemory
from tenfold.coca.networks import ContinualNetwork, NetworkOutput, Part
from tenfold.shared.accelerator import maybe_compile

Memory = ReservoirMemory | TaskMemory


class Replay(NamedTuple):
    """A draw from memory, m images."""

    images: Tensor
    """[m, channels, H, W], augmented anew and normalised."""
    labels: Tensor
    """[m]."""
    logits: Tensor | None = None
    """[m, C] when they were stored; None for methods that store none."""


class StepBatch(NamedTuple):
    """All a step needs, on its device; everything random is drawn already."""

    images: Tensor
    """[B, channels, H, W], augmented and normalised."""
    labels: Tensor
    """[B]."""
    draws: tuple[Replay, ...] = ()
    """Draws from memory; none while it is empty."""
    pretext_labels: Tensor | None = None
    """[N] transform of the views of the stream images and the last draw."""
    boxes: Tensor | None = None
    """[N, 4] crops of those views."""
    task_classes: Tensor | None = None
    """[C], True for the classes of the current task; only for methods that are told."""
    seen_classes: Tensor | None = None
    """[C], True for the classes of this and earlier tasks; only for methods that are told."""


class Method(ABC):
    """A way to learn from a stream.

    A subclass implements :meth:`observe`; what it needs besides is said by class attributes, and by
    :meth:`trained_heads`. The learner prepares batches, keeps the memory, and tells of tasks where that is asked for.

    Args:
        network: on any device; the method trains it in place.
        config: the learner's settings.
        fabric: launched.
        seed: of what the method itself draws.
        compile_network: compile it with torch.compile.
    """

    draws: ClassVar[int] = 0
    """Independent draws from memory in a step."""
    memory_kind: ClassVar[Literal["none", "reservoir", "tasks"]] = "reservoir"
    """What is remembered: a sample of the stream, or equal parts of every task."""
    stores_logits: ClassVar[bool] = False
    """Whether the memory keeps the logits of the moment of insertion."""
    needs_boundaries: ClassVar[bool] = False
    """Whether it must be told when a task ends."""

    def __init__(
        self,
        network: ContinualNetwork,
        config: LearnerConfig,
        fabric: Fabric,
        seed: int = 0,
        compile_network: bool = False,
    ) -> None:
        self.config = config
        self.fabric = fabric
        self.seed = seed
        self.network = network
        for name, head in (("pretext", network.pretext_head), ("projection", network.projection_head)):
            head.requires_grad_(name in self.trained_heads(config))
        trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
        optimizer = torch.optim.SGD(trained, lr=config.lr, weight_decay=config.weight_decay, fused=True)
        self.model, self.optimizer = fabric.setup(maybe_compile(network, compile_network), optimizer)
        self.parameters = trained
        self._loss_sum = torch.zeros((), device=fabric.device)
        self._loss_steps = 0

    @classmethod
    def trained_heads(cls, config: LearnerConfig) -> tuple[Part, ...]:
        """Heads besides the classifier that get a gradient."""
        del config
        return ()

    @classmethod
    def used_heads(cls, config: LearnerConfig) -> tuple[Part, ...]:
        """Heads besides the classifier that are computed; their batch norm needs two images at least."""
        return cls.trained_heads(config)

    @classmethod
    def makes_views(cls, config: LearnerConfig) -> bool:
        """Whether a step has views for self-supervision."""
        del config
        return False

    @abstractmethod
    def observe(self, batch: StepBatch) -> Tensor:
        """One step of learning; returns the stream's logits [B, C] from before it, without gradient."""

    def networks(self) -> tuple[ContinualNetwork, ...]:
        """All networks whose batch norm follows the training images."""
        return (self.network,)

    def end_task(self, memory: Memory, images: Tensor, labels: Tensor, preprocessing: Preprocessing) -> None:
        """A task has ended; its images [N, channels, H, W] (bytes) and labels [N] may go to the memory.

        Only methods that need boundaries are told.
        """
        del memory, images, labels, preprocessing

    def scores(self, images: Tensor) -> Tensor:
        """[N, C] for normalised images [N, channels, H, W]; the largest is the predicted class."""
        logits: Tensor = self.network(images)
        return logits

    def draw_slots(self, memory: Memory, count: int) -> list[np.ndarray]:
        """Places in memory of every draw of a step."""
        return [memory.draw_slots(count) for _ in range(self.draws)]

    def state_dict(self) -> dict[str, Any]:
        """Network, optimizer, and what a subclass adds."""
        return {
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "precision": self.fabric.strategy.precision.state_dict(),
            "loss": {"sum": self._loss_sum, "steps": self._loss_steps},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Put back what :meth:`state_dict` gave."""
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        if state["precision"]:  # a run in another precision has no loss scale to pass on
            self.fabric.strategy.precision.load_state_dict(state["precision"])
        self._loss_sum = state["loss"]["sum"].to(self.fabric.device, copy=True)
        self._loss_steps = state["loss"]["steps"]

    def read_loss(self) -> tuple[float, int]:
        """Sum of the losses since it was last read, and the number of steps; waits for the device."""
        read = float(self._loss_sum), self._loss_steps
        self._loss_sum.zero_()
        self._loss_steps = 0
        return read

    # -- for subclasses -------------------------------------------------------------------------------

    def ask(self, images: Tensor, *parts: Part) -> NetworkOutput:
        """A training pass that computes some parts."""
        output: NetworkOutput = self.model(images, parts=parts)
        return output

    def logits(self, images: Tensor) -> Tensor:
        """A training pass that computes logits."""
        logits: Tensor = self.model(images)
        return logits

    def gather(self, values: Tensor) -> Tensor:
        """The values of all processes, with gradient; losses that relate images to each other need all of them."""
        if self.fabric.world_size == 1:
            return values
        gathered = self.fabric.all_gather(values, sync_grads=values.requires_grad)
        assert isinstance(gathered, Tensor)
        return gathered.flatten(0, 1)

    def descend(self, loss: Tensor) -> None:
        """One step of SGD down the loss."""
        self.optimizer.zero_grad()
        self.fabric.backward(loss)
        self.step(loss)

    def step(self, loss: Tensor) -> None:
        """One step of SGD along the gradients as they are."""
        self.optimizer.step()
        self._loss_sum += loss.detach()
        self._loss_steps += 1
