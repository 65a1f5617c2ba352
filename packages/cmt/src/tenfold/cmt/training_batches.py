"""Which samples each update of a training sees, and the loader that brings them in this order.

What an update sees depends on the seed and its number alone, so an interrupted run goes on exactly where it ended.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Sampler

from tenfold.cmt.class_balance import class_balanced_indices
from tenfold.cmt.config import DataConfig
from tenfold.cmt.dataset import Place, TrainingSamples
from tenfold.cmt.guarded_loading import guarded_loader
from tenfold.cmt.nuscenes_index import NuScenesIndex
from tenfold.cmt.samples import Batch
from tenfold.shared.logging import TenfoldError
from tenfold.shared.seeding import epoch_order, make_generator


@dataclass(frozen=True)
class BatchOrder:
    """Which samples each update sees."""

    indices: NDArray[np.int64]
    """Keyframes of an epoch, before they are shuffled; one can occur several times."""
    batch_size: int
    """Of all processes together."""
    seed: int

    @property
    def steps_per_epoch(self) -> int:
        """Whole batches of an epoch; a set smaller than a batch fills one by repetition."""
        return max(1, len(self.indices) // self.batch_size)

    def order_of_step(self, step: int) -> NDArray[np.int64]:
        """Keyframes of an update, [batch size]."""
        epoch, batch = divmod(step, self.steps_per_epoch)
        order = _epoch_order(len(self.indices), self.seed, epoch)
        first = batch * self.batch_size
        places = np.arange(first, first + self.batch_size) % len(order)
        return np.asarray(self.indices[order[places]])


@lru_cache(maxsize=2)
def _epoch_order(size: int, seed: int, epoch: int) -> NDArray[np.int64]:
    return epoch_order(size, seed, epoch).numpy()


def batch_order(index: NuScenesIndex, data: DataConfig, batch_size: int, seed: int) -> BatchOrder:
    """The order of a run; with ``data.class_balanced`` an epoch is drawn once and for all from the seed.

    Raises:
        TenfoldError: there are no keyframes.
    """
    if not len(index):
        raise TenfoldError("there is no keyframe to learn from; choose another split")
    indices = np.arange(len(index))
    if data.class_balanced:
        generator = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(1,)))
        indices = class_balanced_indices(index.keyframes, generator)
    return BatchOrder(indices, batch_size, seed)


class _Places(Sampler[list[Place]]):
    """Places of one process's part of each update, or of the parts that it is divided into."""

    def __init__(self, order: BatchOrder, steps: range, rank: int, world: int, parts: int) -> None:
        self.order, self.steps, self.rank, self.world, self.parts = order, steps, rank, world, parts

    def __len__(self) -> int:
        return len(self.steps) * self.parts

    def __iter__(self) -> Iterator[list[Place]]:
        for step in self.steps:
            indices = self.order.order_of_step(step).tolist()
            own = [Place(step, indices[place], place) for place in range(self.rank, len(indices), self.world)]
            size = len(own) // self.parts
            for part in range(self.parts):
                yield own[part * size : (part + 1) * size]


def training_loader(
    samples: TrainingSamples,
    order: BatchOrder,
    first_step: int,
    last_step: int,
    rank: int = 0,
    world: int = 1,
    workers: int = 0,
    pin: bool = False,
    parts: int = 1,
) -> DataLoader[Batch]:
    """Batches of this process in updates ``first_step`` to ``last_step - 1``, in order.

    Args:
        samples: what to learn from.
        order: of the run.
        first_step: from 0; where an interrupted run goes on.
        last_step: the first update that is not made.
        rank: of this process.
        world: processes.
        workers: that read samples; 0 reads them in this process.
        pin: put batches into page-locked memory, for CUDA.
        parts: batches that an update is divided into, one after another, to accumulate gradients.

    Raises:
        TenfoldError: the batch cannot be shared evenly; from the loader itself, a sample cannot be read.
    """
    if order.batch_size % (world * parts):
        raise TenfoldError(
            f"{world} processes cannot learn from {parts} equal parts of batches of {order.batch_size} samples; "
            "change batch_size or accumulate"
        )
    return guarded_loader(
        samples,
        batch_sampler=_Places(order, range(first_step, last_step), rank, world, parts),
        num_workers=workers,
        persistent_workers=workers > 0,
        pin_memory=pin,
        generator=make_generator(samples.seed),
    )
