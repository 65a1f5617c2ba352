"""What the networks are given: query images with their instances, and support examples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """Query images with their instances, padded to the same number."""

    images: Tensor
    """[B, 3, H, W], normalised."""
    masks: Tensor
    """[B, N, H, W], bool; empty where there is no instance."""
    labels: Tensor
    """[B, N], classes from 0; -1 where there is no instance."""
    image_ids: tuple[int, ...] = ()
    """Numbers in the annotations."""

    @property
    def present(self) -> Tensor:
        """[B, N], where there is an instance."""
        return self.labels >= 0

    def to(self, device: torch.device) -> Batch:
        """The same on a device."""
        images, masks, labels = (
            value.to(device, non_blocking=True) for value in (self.images, self.masks, self.labels)
        )
        return Batch(images, masks, labels, self.image_ids)

    def pin_memory(self) -> Batch:
        """The same in pinned memory, which a loader asks for."""
        return Batch(
            self.images.pin_memory(), self.masks.pin_memory(), self.labels.pin_memory(), self.image_ids
        )


@dataclass(frozen=True)
class Supports:
    """Support examples: crops around ONE instance each, with its mask and class."""

    images: Tensor
    """[M, 3, s, s], normalised."""
    masks: Tensor
    """[M, s, s], bool."""
    labels: Tensor
    """[M], classes from 0."""

    def __len__(self) -> int:
        return len(self.labels)

    def to(self, device: torch.device) -> Supports:
        """The same on a device."""
        images, masks, labels = (
            value.to(device, non_blocking=True) for value in (self.images, self.masks, self.labels)
        )
        return Supports(images, masks, labels)

    def pin_memory(self) -> Supports:
        """The same in pinned memory, which a loader asks for."""
        return Supports(self.images.pin_memory(), self.masks.pin_memory(), self.labels.pin_memory())


def pad_instances(
    images: Sequence[Tensor], masks: Sequence[Tensor], labels: Sequence[Tensor], image_ids: Sequence[int]
) -> Batch:
    """Images of one size as a batch; each gets as many instances as the one with most.

    Args:
        images: of each, [3, H, W].
        masks: of each, [n, H, W], bool.
        labels: of each, [n].
        image_ids: numbers in the annotations.
    """
    most = max(1, *(len(of_image) for of_image in labels))
    height, width = images[0].shape[-2:]
    padded_masks = torch.zeros(len(images), most, height, width, dtype=torch.bool)
    padded_labels = torch.full((len(images), most), -1, dtype=torch.int64)
    for index, (its_masks, its_labels) in enumerate(zip(masks, labels, strict=True)):
        padded_masks[index, : len(its_labels)] = its_masks
        padded_labels[index, : len(its_labels)] = its_labels
    return Batch(torch.stack(list(images)), padded_masks, padded_labels, tuple(image_ids))
