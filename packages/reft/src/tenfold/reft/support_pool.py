"""Support examples: crops around single instances, drawn class by class or taken all."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from tenfold.reft.annotations import instance_mask
from tenfold.reft.batches import Supports
from tenfold.reft.config import DataConfig
from tenfold.reft.instance_images import InstanceImages
from tenfold.reft.support_crops import support_crop
from tenfold.shared.logging import TenfoldError


class SupportPool:
    """All support examples of a set: every instance is one.

    Args:
        instances: images and their instances.
        data: for size and context of the crops.
        in_memory: make all crops at the beginning, 13 bytes for each of their pixels; for small sets.
        examples: record and position in it, of those to take; all by default.

    Raises:
        TenfoldError: there is no instance; in memory also for unreadable images.
    """

    def __init__(
        self,
        instances: InstanceImages,
        data: DataConfig,
        in_memory: bool = False,
        examples: Sequence[tuple[int, int]] | None = None,
    ) -> None:
        if examples is None:
            examples = [
                (index, position)
                for index, record in enumerate(instances.records)
                for position in range(len(record.labels))
            ]
        if not examples:
            raise TenfoldError(
                "there are no support examples; give annotations with instances of the classes"
            )
        self._instances, self._data, self._examples = instances, data, np.asarray(examples)
        self._image_ids = np.asarray([instances.records[index].image_id for index, _ in examples])
        self._labels = np.asarray([instances.records[index].labels[at] for index, at in examples])
        order = np.argsort(self._labels, kind="stable")
        labels, starts = np.unique(self._labels[order], return_index=True)
        self._of_class: dict[int, np.ndarray] = dict(
            zip(labels.tolist(), np.split(order, starts[1:]), strict=True)
        )
        self._crops: Supports | None = None
        self._usable = np.ones(len(examples), dtype=bool)
        if in_memory:
            self._keep_crops()

    @property
    def classes(self) -> tuple[int, ...]:
        """Labels with an example, ascending."""
        return tuple(self._of_class)

    def __len__(self) -> int:
        return len(self._examples)

    def draw(
        self,
        classes: Iterable[int],
        per_class: int,
        exclude_images: Iterable[int],
        generator: torch.Generator,
    ) -> Supports:
        """Random examples of some classes, none of them from the given images.

        A class with examples in these images alone gives one of those, with a crop of random context (up to twice the
        usual), mirrored or not where the data is. A class with fewer examples than asked for repeats them.

        Args:
            classes: labels, in the order of the result.
            per_class: examples of each.
            exclude_images: numbers of the query images.
            generator: of all draws.

        Returns:
            ``per_class`` examples for each class, on the CPU.

        Raises:
            TenfoldError: a class has no example with a mask that is not empty.
        """
        excluded = np.asarray(list(exclude_images), dtype=np.int64)
        images, masks, labels = [], [], []
        for label in classes:
            members = self._of_class.get(label, np.empty(0, dtype=np.int64))
            allowed = members[~np.isin(self._image_ids[members], excluded)]
            found = self._pick(allowed, per_class, generator, augment=False)
            if not found:
                found = self._pick(members, per_class, generator, augment=True)
            if not found:
                raise TenfoldError(
                    f"category {self._instances.category_ids[label]} has no support example with a mask; give "
                    "annotations with instances of every class"
                )
            for turn in range(per_class):
                image, mask = found[turn % len(found)]
                images.append(image)
                masks.append(mask)
                labels.append(label)
        return Supports(torch.stack(images), torch.stack(masks), torch.tensor(labels))

    def chunks(self, size: int) -> Iterator[Supports]:
        """All examples with masks, ``size`` at a time, by class."""
        found: list[tuple[Tensor, Tensor]] = []
        labels: list[int] = []
        for label, members in self._of_class.items():
            for example in members.tolist():
                crop = self._crop(example)
                if crop is not None:
                    found.append(crop)
                    labels.append(label)
                if len(found) == size:
                    yield _as_supports(found, labels)
                    found, labels = [], []
        if found:
            yield _as_supports(found, labels)

    def capped(self, per_class: int, generator: torch.Generator) -> SupportPool:
        """A pool with at most ``per_class`` random examples of each class; its crops are not kept in memory."""
        kept = []
        for members in self._of_class.values():
            chosen = torch.randperm(len(members), generator=generator)[:per_class].numpy()
            kept.extend(self._examples[np.sort(members[chosen])].tolist())
        return SupportPool(self._instances, self._data, examples=kept)

    def of_classes(self, classes: Iterable[int]) -> SupportPool:
        """A pool with the examples of some classes; its crops are not kept in memory."""
        kept = [
            example for label in classes for example in self._examples[self._of_class.get(label, [])].tolist()
        ]
        return SupportPool(self._instances, self._data, examples=kept)

    def _pick(
        self, members: np.ndarray, count: int, generator: torch.Generator, augment: bool
    ) -> list[tuple[Tensor, Tensor]]:
        """Crops of up to ``count`` random examples; those with empty masks are passed over."""
        found: list[tuple[Tensor, Tensor]] = []
        for place in torch.randperm(len(members), generator=generator).tolist():
            context, flip = self._data.support_context, False
            if augment:
                context = int(torch.randint(2 * context + 1, (), generator=generator))
                flip = bool(torch.rand((), generator=generator) < 0.5) and self._data.flip
            crop = self._crop(int(members[place]), None if not augment else (context, flip))
            if crop is not None:
                found.append(crop)
            if len(found) == count:
                break
        return found

    def _crop(self, example: int, augmented: tuple[int, bool] | None = None) -> tuple[Tensor, Tensor] | None:
        """Image and mask of an example; None if its mask is empty. ``augmented`` is context and flip."""
        if not self._usable[example]:
            return None
        if self._crops is not None and augmented is None:
            return self._crops.images[example], self._crops.masks[example]
        index, position = self._examples[example].tolist()
        record = self._instances.records[index]
        height, width = self._instances.files.size(record.image_id)
        mask = instance_mask(record.segmentations[position], height, width)
        if not mask.any():
            self._usable[example] = False
            return None
        context, flip = augmented or (self._data.support_context, False)
        return support_crop(self._instances.decoded(index), mask, context, self._data.support_size, flip)

    def _keep_crops(self) -> None:
        side = self._data.support_size
        images = torch.zeros(len(self), 3, side, side)
        masks = torch.zeros(len(self), side, side, dtype=torch.bool)
        for example in range(len(self)):
            crop = self._crop(example)
            if crop is not None:
                images[example], masks[example] = crop
        self._crops = Supports(images, masks, torch.from_numpy(self._labels))


def _as_supports(crops: Sequence[tuple[Tensor, Tensor]], labels: Sequence[int]) -> Supports:
    images, masks = zip(*crops, strict=True)
    return Supports(torch.stack(images), torch.stack(masks), torch.tensor(labels))
