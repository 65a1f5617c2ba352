"""One keyframe on its way through the data pipeline, and batches of them as the network takes them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tenfold.cmt.sparse_rules import SparsePlan
from tenfold.shared.logging import TenfoldError

FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class Sample:
    """A keyframe: what its sensors saw, where they are, and what is there. Transforms return changed copies."""

    token: str
    points: NDArray[np.float32] | None
    """[P, 5]: x, y, z in the keyframe's LiDAR frame in metres, intensity 0-255, time lag in seconds."""
    images: NDArray[np.uint8] | None
    """[V, H, W, 3], blue first."""
    intrinsics: FloatArray
    """[V, 4, 4]: camera frame to pixels, times depth."""
    lidar2camera: FloatArray
    """[V, 4, 4]: LiDAR frame to camera frames."""
    boxes: NDArray[np.float32]
    """[N, 9]: x, y, z of the bottom, length, width, height, yaw, velocity in x and y; LiDAR frame, metres."""
    labels: NDArray[np.int64]
    """[N]: places in :data:`tenfold.cmt.config.CLASSES`."""

    @property
    def lidar2image(self) -> FloatArray:
        """[V, 4, 4]: LiDAR frame to pixels, times depth."""
        return np.asarray(self.intrinsics @ self.lidar2camera)


@dataclass(frozen=True)
class Voxels:
    """Occupied voxels of the samples of a batch."""

    features: Tensor
    """[N, 5]: means of their points."""
    coordinates: Tensor
    """[N, 4]: sample, z, y, x; integers."""
    plan: SparsePlan | None = None
    """Which voxels meet in which convolution; None where the back end finds out itself."""

    def to(self, device: torch.device) -> Voxels:
        plan = None if self.plan is None else self.plan.to(device)
        return Voxels(_sent(self.features, device), _sent(self.coordinates, device), plan)


@dataclass(frozen=True)
class Batch:
    """Samples as the network takes them."""

    tokens: tuple[str, ...]
    """Of the samples, B of them."""
    voxels: Voxels | None
    """None for a network without LiDAR."""
    images: Tensor | None
    """[B, V, 3, H, W], uint8, blue first; None for a network without cameras."""
    lidar2image: Tensor
    """[B, V, 4, 4], float64."""
    boxes: Tensor
    """[B, G, 9] as in :class:`Sample`, zeros behind the last box of a sample."""
    labels: Tensor
    """[B, G]; -1 behind the last box of a sample."""
    counts: tuple[int, ...]
    """Boxes of each sample."""

    def to(self, device: torch.device) -> Batch:
        """The same on a device."""
        return replace(
            self,
            voxels=None if self.voxels is None else self.voxels.to(device),
            images=None if self.images is None else _sent(self.images, device),
            lidar2image=_sent(self.lidar2image, device),
            boxes=_sent(self.boxes, device),
            labels=_sent(self.labels, device),
        )

    def pin_memory(self) -> Batch:
        """The same in page-locked memory, for copies that do not wait."""
        voxels = self.voxels
        if voxels is not None:
            plan = None if voxels.plan is None else voxels.plan.pin_memory()
            voxels = Voxels(voxels.features.pin_memory(), voxels.coordinates.pin_memory(), plan)
        return replace(
            self,
            voxels=voxels,
            images=None if self.images is None else self.images.pin_memory(),
            lidar2image=self.lidar2image.pin_memory(),
            boxes=self.boxes.pin_memory(),
            labels=self.labels.pin_memory(),
        )


def _sent(values: Tensor, device: torch.device) -> Tensor:
    return values.to(device, non_blocking=True)


@dataclass(frozen=True)
class PreparedSample:
    """One sample after transforms and voxelisation; what :func:`collate` joins."""

    token: str
    features: Tensor | None
    """[N, 5]: voxel means."""
    coordinates: Tensor | None
    """[N, 3]: z, y, x; int32."""
    plan: SparsePlan | None
    images: Tensor | None
    """[V, 3, H, W], uint8."""
    lidar2image: Tensor
    """[V, 4, 4], float64."""
    boxes: Tensor
    """[G, 9]."""
    labels: Tensor
    """[G]."""


def collate(samples: Sequence[PreparedSample]) -> Batch:
    """Join samples.

    Raises:
        TenfoldError: some have points or images and some have not.
    """
    counts = tuple(len(sample.labels) for sample in samples)
    most = max(counts, default=0)
    boxes = torch.zeros(len(samples), most, 9)
    labels = torch.full((len(samples), most), -1, dtype=torch.int64)
    for place, sample in enumerate(samples):
        boxes[place, : counts[place]] = sample.boxes
        labels[place, : counts[place]] = sample.labels
    return Batch(
        tuple(sample.token for sample in samples),
        _joined_voxels(samples),
        _stacked([sample.images for sample in samples]),
        torch.stack([sample.lidar2image for sample in samples]),
        boxes,
        labels,
        counts,
    )


def _joined_voxels(samples: Sequence[PreparedSample]) -> Voxels | None:
    features = [sample.features for sample in samples if sample.features is not None]
    coordinates = [sample.coordinates for sample in samples if sample.coordinates is not None]
    plans = [sample.plan for sample in samples if sample.plan is not None]
    if not features:
        return None
    if len(features) < len(samples):
        raise TenfoldError("all samples of a batch have points, or none has")
    numbered = [
        torch.cat((torch.full((len(one), 1), place, dtype=one.dtype), one), dim=1)
        for place, one in enumerate(coordinates)
    ]
    plan = SparsePlan.join(plans) if len(plans) == len(samples) else None
    return Voxels(torch.cat(features), torch.cat(numbered), plan)


def _stacked(images: Sequence[Any]) -> Tensor | None:
    given = [image for image in images if image is not None]
    if given and len(given) < len(images):
        raise TenfoldError("all samples of a batch have images, or none has")
    return torch.stack(given) if given else None
