"""A learner that takes a stream batch by batch: network, method, memory and random draws, resumable at any step."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor

from tenfold.coca.augmentation import Preprocessing
from tenfold.coca.config import LearnerConfig, NetworkConfig
from tenfold.coca.memory import (
    ReservoirMemory,
    TaskMemory,
    generator_state,
    host_to_device,
    restore_generator,
)
from tenfold.coca.methods import METHODS
from tenfold.coca.methods.base import Memory, Replay, StepBatch
from tenfold.coca.networks import build_model
from tenfold.coca.pretext_views import draw_boxes, draw_pretext_labels, view_classes
from tenfold.shared.accelerator import AcceleratorConfig, channels_last, make_fabric
from tenfold.shared.logging import TenfoldError
from tenfold.shared.runs import load_checkpoint, plain, save_atomically


def launch_fabric(config: AcceleratorConfig) -> Fabric:
    """A launched Fabric for learners.

    A step calls the network several times before its backward pass, so that the buffers of batch norm must not be
    overwritten in between.
    """
    fabric = make_fabric(config, broadcast_buffers=False)
    fabric.launch()
    return fabric


class Learner:
    """Learns from images as they come, and can be asked at any time.

    Example::

        learner = Learner(LearnerConfig(memory_size=500), num_classes=10, image_shape=(3, 32, 32))
        for images, labels in stream:          # uint8 [B, 3, 32, 32], int64 [B]
            learner.observe(images, labels)
        logits = learner.predict(images)

    Args:
        config: method and settings.
        num_classes: C; all classes that will ever come.
        image_shape: (channels, height, width).
        preprocessing: augmentation and normalisation of its images.
        network: backbone and its sizes.
        seed: of weights, augmentation, views and memory.
        fabric: launched; by default one for this machine.
        compile_network: compile the network with torch.compile.

    Raises:
        TenfoldError: settings that do not go together.
    """

    def __init__(
        self,
        config: LearnerConfig,
        num_classes: int,
        image_shape: tuple[int, int, int],
        preprocessing: Preprocessing | None = None,
        network: NetworkConfig | None = None,
        seed: int = 0,
        fabric: Fabric | None = None,
        compile_network: bool = False,
    ) -> None:
        if fabric is None:
            fabric = launch_fabric(AcceleratorConfig())
        self.config = config
        self.network_config = network or NetworkConfig()
        self.preprocessing = preprocessing or Preprocessing()
        self.image_shape, self.num_classes = image_shape, num_classes
        self.fabric, self.device = fabric, fabric.device
        kind = METHODS[config.method]
        if kind.makes_views(config) and image_shape[1] != image_shape[2]:
            raise TenfoldError("views are turned by quarters and need square images")
        if not 0 <= seed < 2**32:
            raise TenfoldError(f"a seed is a whole number from 0 to {2**32 - 1}, not {seed}")
        with torch.random.fork_rng(devices=[]):  # the caller's generators stay as they are
            torch.manual_seed(seed)
            model = build_model(
                self.network_config.name,
                num_classes,
                self.network_config.width,
                view_classes(config.views),
                self.network_config.projection_dim,
                image_shape,
                self.network_config.hidden,
                self.network_config.classifier_bias,
                self.network_config.init,
            )
        if fabric.world_size > 1 and fabric.device.type == "cuda":
            model = torch.nn.SyncBatchNorm.convert_sync_batchnorm(model)
        model = channels_last(model, fabric.device)
        self.method = kind(model, config, fabric, seed, compile_network)
        self.network = model
        # Each purpose draws from a generator of its own, so that one method's needs do not shift another's draws.
        self._crop_rng, self._view_rng, memory_rng = (
            np.random.RandomState(np.random.SeedSequence([seed, purpose]).generate_state(8))
            for purpose in range(3)
        )
        self.memory: Memory | None = None
        if kind.memory_kind == "reservoir":
            dtypes = {"logits": torch.float16} if config.half_logits else None
            self.memory = ReservoirMemory(config.memory_size, memory_rng, self.device, dtypes)
        elif kind.memory_kind == "tasks":
            self.memory = TaskMemory(config.memory_size, memory_rng, self.device)
        self.steps = 0
        """Steps of SGD done."""
        self.images_seen = 0
        """Images that came, those that were skipped included."""
        self._task_classes: Tensor | None = None
        self._seen_classes = torch.zeros(num_classes, dtype=torch.bool, device=self.device)
        has_norm = model.has_batch_norm or kind.used_heads(config)
        self.smallest_batch = 2 if has_norm else 1
        """Images that a batch must have, for each process."""
        fewest = self.smallest_batch * fabric.world_size
        if self.memory is not None and min(config.memory_size, config.memory_batch_size) < fewest:
            raise TenfoldError(
                f"{config.method} with this network draws at least {fewest} images from memory, "
                f"{self.smallest_batch} for each process; raise --memory-size or --memory-batch-size"
            )

    # -- learning --------------------------------------------------------------------------------------

    def observe(self, images: Tensor, labels: Tensor) -> None:
        """Learn from a batch of the stream, as it came.

        A batch too small for batch norm (one image, where a network or head has it) only passes by.

        Args:
            images: bytes [B, channels, height, width].
            labels: [B], from 0 to C - 1.

        Raises:
            TenfoldError: type, shape or a label is not what this learner was made for.
        """
        self.check(images, labels)
        self.learn(images.to(self.device), labels.to(self.device, torch.int64))

    def learn(self, images: Tensor, labels: Tensor) -> None:
        """:meth:`observe` without its checks, for images and labels on the learner's device; never waits for it."""
        self.images_seen += len(images)
        world = self.fabric.world_size
        images, labels = (values[: len(values) // world * world] for values in (images, labels))
        if len(images) < self.smallest_batch * world:
            return
        batch = self.prepare(images, labels)
        logits = self.method.observe(batch)
        self.steps += 1
        if isinstance(self.memory, ReservoirMemory):
            items = {"images": images, "labels": labels, "step": torch.full_like(labels, self.steps)}
            if self.method.stores_logits:
                items["logits"] = self._whole(logits)
            self.memory.insert(items)
        if world > 1 and self.device.type == "cpu":
            self._average_buffers()

    def begin_task(self, classes: Iterable[int]) -> None:
        """Tell which classes come next; only methods with task boundaries listen.

        Raises:
            TenfoldError: a class is not one of this learner's.
        """
        members = torch.zeros(self.num_classes, dtype=torch.bool)
        for label in classes:
            if not 0 <= label < self.num_classes:
                raise TenfoldError(f"there is no class {label}; this learner was made for {self.num_classes}")
            members[label] = True
        self._task_classes = members.to(self.device)
        self._seen_classes = self._seen_classes | self._task_classes

    def end_task(self, images: Tensor, labels: Tensor) -> None:
        """Tell that a task has ended, with all its images; only methods with task boundaries listen."""
        if self.memory is not None and self.method.needs_boundaries:
            self.method.end_task(
                self.memory, images.to(self.device), labels.to(self.device), self.preprocessing
            )

    def prepare(self, images: Tensor, labels: Tensor) -> StepBatch:
        """Everything random of a step: augmentation, draws from memory, views. Each process gets its part.

        Args:
            images: bytes [B, channels, height, width], on the device.
            labels: [B], on the device.
        """
        draws = self._draws()
        pretext_labels = boxes = None
        if self.method.makes_views(self.config):
            sizes = [len(images), *(len(slots) for slots in draws[-1:])]
            pretext = draw_pretext_labels(sum(sizes), view_classes(self.config.views), self._view_rng)
            drawn = draw_boxes(self.config.views, pretext, self.image_shape[-1], self._view_rng)
            both = np.concatenate([pretext[:, None], drawn], axis=1)
            local = np.concatenate([self._part(part) for part in np.split(both, np.cumsum(sizes)[:-1])])
            moved = host_to_device(local, self.device)
            pretext_labels, boxes = moved[:, 0], moved[:, 1:]
        needs_classes = self.method.needs_boundaries or self.config.task_boundaries
        if needs_classes and self._task_classes is None:
            raise TenfoldError(
                f"{self.config.method} must be told which classes come; call begin_task first, or use a method "
                "without task boundaries"
            )
        stream_images, stream_labels = self._part(images), self._part(labels)
        return StepBatch(
            self._augmented(stream_images, len(images)),
            stream_labels,
            tuple(self._replay(slots) for slots in draws),
            pretext_labels,
            boxes,
            self._task_classes if needs_classes else None,
            self._seen_classes if needs_classes else None,
        )

    def _draws(self) -> list[np.ndarray]:
        """Slots of every draw; none while the memory holds fewer images than a pass needs."""
        if self.memory is None or len(self.memory) == 0:
            return []
        world = self.fabric.world_size
        draws = self.method.draw_slots(self.memory, self.config.memory_batch_size)
        draws = [slots[: len(slots) // world * world] for slots in draws]
        draws = [slots for slots in draws if len(slots) >= self.smallest_batch * world]
        return draws if len(draws) >= self.method.draws else []

    def _replay(self, slots: np.ndarray) -> Replay:
        assert self.memory is not None
        items = self.memory.take(self._part(slots))
        logits = items["logits"].float() if "logits" in items else None
        return Replay(self._augmented(items["images"], len(slots)), items["labels"], logits)

    def _augmented(self, local_images: Tensor, size: int) -> Tensor:
        """Images of this process, augmented by their part of what is drawn for all."""
        crops = host_to_device(self._part(self.preprocessing.draw(size, self._crop_rng)), self.device)
        images = self.preprocessing.apply(local_images, crops)
        # Cropping leaves NHWC behind. In it, oneDNN with AVX2 computes wrong weight gradients of 1x1 convolutions with
        # stride 2 and fewer than 8 channels, and writes outside its memory.
        layout = torch.channels_last if self.device.type == "cuda" else torch.contiguous_format
        return images.contiguous(memory_format=layout)

    def _part(self, values: Any) -> Any:
        """Every n-th item, for the n processes."""
        world = self.fabric.world_size
        return values if world == 1 else values[self.fabric.global_rank :: world]

    def _whole(self, local: Tensor) -> Tensor:
        """The parts of all processes, in the order they had before."""
        if self.fabric.world_size == 1:
            return local
        gathered = self.fabric.all_gather(local)
        assert isinstance(gathered, Tensor)
        return gathered.transpose(0, 1).flatten(0, 1)

    @torch.no_grad()
    def _average_buffers(self) -> None:
        """Give all processes the same running statistics; on GPUs synchronised batch norm does that."""
        for network in self.method.networks():
            for buffer in network.buffers():
                if buffer.is_floating_point():
                    mean = self.fabric.all_reduce(buffer, reduce_op="mean")
                    assert isinstance(mean, Tensor)
                    buffer.copy_(mean)

    def check(self, images: Tensor, labels: Tensor) -> None:
        """Whether a batch is one for this learner.

        Raises:
            TenfoldError: it is not, and why.
        """
        if images.dtype != torch.uint8 or tuple(images.shape[1:]) != self.image_shape:
            expected = ", ".join(map(str, self.image_shape))
            raise TenfoldError(
                f"this learner takes images as uint8 [B, {expected}], not {images.dtype} {list(images.shape)}"
            )
        if labels.ndim != 1 or len(labels) != len(images) or labels.is_floating_point():
            raise TenfoldError(
                f"{len(images)} images need {len(images)} whole numbers as labels, not {list(labels.shape)}"
            )
        if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < self.num_classes:
            raise TenfoldError(
                f"label {int(labels.max()) if labels.max() >= self.num_classes else int(labels.min())} is not one of "
                f"the {self.num_classes} classes that this learner was made for; make it with more"
            )

    # -- answers ---------------------------------------------------------------------------------------

    @torch.no_grad()
    def predict(self, images: Tensor, chunk: int = 512) -> Tensor:
        """Scores [N, C] of images (bytes [N, channels, height, width]); the largest is the predicted class.

        They are logits, for iCaRL negative distances.

        Raises:
            TenfoldError: the images are of another type or shape.
        """
        self.check(images, torch.zeros(len(images), dtype=torch.int64))
        was_training = self.network.training
        self.network.eval()
        scores = []
        for part in images.split(chunk):
            with self.fabric.autocast():
                inputs = self.preprocessing.normalize(part.to(self.device))
                scores.append(self.method.scores(inputs).float())
        self.network.train(was_training)
        return torch.cat(scores) if scores else torch.zeros(0, self.num_classes, device=self.device)

    def memory_report(self) -> dict[str, Any]:
        """What is remembered: number of images, images of each class, and their ages in steps (reservoir only)."""
        if self.memory is None or len(self.memory) == 0:
            return {"images": 0, "per_class": [0] * self.num_classes, "ages": []}
        per_class = torch.bincount(self.memory["labels"], minlength=self.num_classes)
        is_reservoir = isinstance(self.memory, ReservoirMemory)
        ages = (self.steps - self.memory["step"]).tolist() if is_reservoir else []
        return {"images": len(self.memory), "per_class": per_class.tolist(), "ages": ages}

    # -- state -----------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to go on as if nothing had happened."""
        return {
            "method": self.method.state_dict(),
            "memory": None if self.memory is None else self.memory.state_dict(),
            "crop_rng": generator_state(self._crop_rng),
            "view_rng": generator_state(self._view_rng),
            "steps": self.steps,
            "images_seen": self.images_seen,
            "task_classes": self._task_classes,
            "seen_classes": self._seen_classes,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Put back what :meth:`state_dict` gave."""
        self.method.load_state_dict(state["method"])
        if self.memory is not None:
            self.memory.load_state_dict(state["memory"])
        restore_generator(self._crop_rng, state["crop_rng"])
        restore_generator(self._view_rng, state["view_rng"])
        self.steps, self.images_seen = state["steps"], state["images_seen"]
        told = state["task_classes"]
        self._task_classes = None if told is None else told.to(self.device)
        self._seen_classes = state["seen_classes"].to(self.device)

    def artifact(self) -> dict[str, Any]:
        """A checkpoint that :meth:`load` reads without being told anything."""
        made = {
            "config": plain(self.config),
            "network": plain(self.network_config),
            "preprocessing": asdict(self.preprocessing),
            "num_classes": self.num_classes,
            "image_shape": list(self.image_shape),
        }
        return {"kind": "coca-learner", "made": made, "state": self.state_dict()}

    def save(self, path: Path) -> None:
        """Write :meth:`artifact` in one step."""
        save_atomically(path, self.artifact())

    @classmethod
    def load(cls, path: Path, fabric: Fabric | None = None) -> Self:
        """The learner of a checkpoint, to ask it or to go on.

        Raises:
            TenfoldError: the file is missing, damaged, or no learner.
        """
        content = load_checkpoint(path)
        if content.get("kind") != "coca-learner":
            raise TenfoldError(
                f"{path} holds no learner; give the model.pt of a run, or a file of Learner.save"
            )
        made = content["made"]
        preprocessing: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in made["preprocessing"].items()
        }
        learner = cls(
            LearnerConfig(**made["config"]),
            made["num_classes"],
            tuple(made["image_shape"]),
            Preprocessing(**preprocessing),
            NetworkConfig(**made["network"]),
            fabric=fabric,
        )
        learner.load_state_dict(content["state"])
        return learner
