"""What each update sees: query images with their instances, and supports of the classes in question."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from tenfold.reft.batches import Batch, Supports, pad_instances
from tenfold.reft.config import DataConfig
from tenfold.reft.instance_images import ImageRecord, InstanceImages
from tenfold.reft.loading import whole_items
from tenfold.reft.support_pool import SupportPool
from tenfold.reft.transforms import (
    large_scale_jitter,
    normalise,
    place_image,
    place_masks,
)
from tenfold.shared.logging import TenfoldError
from tenfold.shared.seeding import epoch_order, make_generator

Step = tuple[Batch, Supports | None]


class Episodes(Dataset[Step]):
    """Batches with their supports, by the number of the update.

    What an update sees depends on seed and number alone, supports on the process too, so that a run goes on exactly
    where it ended, and an image is augmented alike whatever process has it.

    Args:
        instances: query images.
        supports: examples of at least the classes of ``instances``; without, episodes have none.
        data: for sizes, jitter and classes of an episode.
        batch_size: images of an update, on all processes together.
        steps: updates.
        seed: of order, augmentation and supports.
        rank: of the process.
        processes: that divide a batch.

    Raises:
        TenfoldError: processes do not divide the batch, or a class has no support example.
    """

    def __init__(
        self,
        instances: InstanceImages,
        supports: SupportPool | None,
        data: DataConfig,
        batch_size: int,
        steps: int,
        seed: int,
        rank: int = 0,
        processes: int = 1,
    ) -> None:
        if batch_size % processes:
            raise TenfoldError(
                f"{processes} processes cannot share batches of {batch_size} images; change either"
            )
        if supports is not None:
            learned = {label for record in instances.records for label in record.labels}
            missing = sorted(instances.category_ids[label] for label in learned - set(supports.classes))
            if missing:
                raise TenfoldError(
                    f"categories {', '.join(map(str, missing))} have no support example; give a pool of all "
                    "classes that are learned"
                )
        self.instances, self.supports, self.data = instances, supports, data
        self.batch_size, self.steps, self.seed = batch_size, steps, seed
        self.rank, self.processes = rank, processes
        self._order: tuple[int, Tensor] = (-1, torch.empty(0))

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, step: int) -> Step:
        """Share of an update's batch that this process learns from, and its supports."""
        batch = self._batch(step)
        if self.supports is None:
            return batch, None
        generator = self._generator(step, 1, self.rank)
        classes = self._classes(batch, generator)
        return batch, self.supports.draw(classes, 1, batch.image_ids, generator)

    def _generator(self, *place: int) -> torch.Generator:
        state = np.random.SeedSequence((self.seed, *place)).generate_state(1)
        return make_generator(int(state[0]))  # torch's generators take 32 bits

    def _batch(self, step: int) -> Batch:
        images, masks, labels, image_ids = [], [], [], []
        first = step * self.batch_size
        for place in range(self.rank, self.batch_size, self.processes):
            # An image is augmented alike whatever process has it.
            generator = self._generator(step, 0, place)
            record, image, its_masks = self._augmented(self._record(first + place), generator)
            present = its_masks.flatten(1).any(1)
            images.append(normalise(image))
            masks.append(its_masks[present])
            labels.append(torch.tensor(record.labels, dtype=torch.int64)[present])
            image_ids.append(record.image_id)
        return pad_instances(images, masks, labels, image_ids)

    def _augmented(self, index: int, generator: torch.Generator) -> tuple[ImageRecord, Tensor, Tensor]:
        record, image = self.instances.records[index], self.instances.decoded(index)
        original = (image.shape[-2], image.shape[-1])
        placement = large_scale_jitter(
            original, self.data.image_size, self.data.jitter, self.data.flip, generator
        )
        return record, place_image(image, placement), place_masks(record.segmentations, placement)

    def _record(self, position: int) -> int:
        """The record at a position in all epochs, one after another."""
        epoch, offset = divmod(position, len(self.instances))
        if self._order[0] != epoch:
            self._order = epoch, epoch_order(len(self.instances), self.seed, epoch)
        return int(self._order[1][offset])

    def _classes(self, batch: Batch, generator: torch.Generator) -> list[int]:
        """Labels of the episode, ascending: those in the batch, and random others of the pool."""
        assert self.supports is not None
        present = set(batch.labels[batch.present].tolist())
        others = [label for label in self.supports.classes if label not in present]
        free = max(0, self.data.episode_classes - len(present))
        chosen = torch.randperm(len(others), generator=generator)[:free].tolist()
        return sorted(present.union(others[place] for place in chosen))


def episode_loader(episodes: Episodes, first_step: int, workers: int, pin: bool) -> DataLoader[Step]:
    """Updates from ``first_step`` to the last one, in order.

    Args:
        episodes: of this process.
        first_step: from 0; where an interrupted run goes on.
        workers: processes that decode images.
        pin: put them into pinned memory, for CUDA.
    """
    return whole_items(
        episodes,
        sampler=range(first_step, len(episodes)),
        num_workers=workers,
        persistent_workers=workers > 0,
        pin_memory=pin,
        generator=make_generator(episodes.seed),
    )
