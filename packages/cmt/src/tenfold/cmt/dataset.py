"""Prepared samples for training and evaluation.

A training sample depends on the seed, its update and its place in the batch alone, so it is augmented alike whatever
process has it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from tenfold.cmt import image_transforms, scene_transforms
from tenfold.cmt.config import CAMERAS, POINT_FEATURES, AugmentConfig, DataConfig, LidarConfig, NetworkConfig
from tenfold.cmt.ground_truth_sampling import paste_objects
from tenfold.cmt.image_transforms import draw_image_move, transform_images
from tenfold.cmt.nuscenes_index import NuScenesIndex
from tenfold.cmt.object_database import ObjectDatabase
from tenfold.cmt.sample_reader import read_sample
from tenfold.cmt.samples import PreparedSample, Sample
from tenfold.cmt.scene_transforms import (
    SceneDraws,
    draw_scene,
    drop_modality,
    filter_range,
    shuffle_points,
    transform_scene,
)
from tenfold.cmt.sensor_conditions import Condition
from tenfold.cmt.sparse_encoder import plan_encoder
from tenfold.cmt.sparse_rules import SparsePlan
from tenfold.cmt.voxelization import voxelize
from tenfold.shared.logging import TenfoldError

VoxelParts = tuple[Tensor, Tensor, SparsePlan | None]
"""Features [N, 5], coordinates [N, 3], and the encoder's plan."""


@dataclass(frozen=True)
class Place:
    """Where a training sample is seen."""

    step: int
    """Update, from 0."""
    index: int
    """Keyframe."""
    place: int
    """In the batch of all processes."""


def prepare(sample: Sample, network: NetworkConfig, training: bool) -> PreparedSample:
    """Voxels and tensors of a sample whose transforms are done. There is at least one voxel.

    Raises:
        TenfoldError: the sample lacks points or images that the network reads, or images are not of its size.
    """
    features, coordinates, plan = (
        _voxels(sample, network.lidar, training) if network.reads_points else (None,) * 3
    )
    return PreparedSample(
        token=sample.token,
        features=features,
        coordinates=coordinates,
        plan=plan,
        images=_images(sample, network) if network.reads_images else None,
        lidar2image=torch.from_numpy(sample.lidar2image),
        boxes=torch.from_numpy(sample.boxes),
        labels=torch.from_numpy(sample.labels),
    )


def _voxels(sample: Sample, lidar: LidarConfig, training: bool) -> VoxelParts:
    if sample.points is None:
        raise TenfoldError(f"the network reads points, and the sample {sample.token} has none; read them")
    most = lidar.max_voxels_train if training else lidar.max_voxels_test
    features, coordinates = _voxelized(torch.from_numpy(sample.points), lidar, most)
    return (features, coordinates, plan_encoder(coordinates, lidar)) if len(features) else _no_voxels(lidar)


def _no_voxels(lidar: LidarConfig) -> VoxelParts:
    """One voxel of zeros, in the cell of the origin or, where the range leaves that out, in the first cell."""
    features, coordinates = _voxelized(torch.zeros(1, POINT_FEATURES), lidar, 1)
    if not len(features):
        features, coordinates = torch.zeros(1, POINT_FEATURES), torch.zeros(1, 3, dtype=torch.int32)
    return features, coordinates, plan_encoder(coordinates, lidar)


def _voxelized(points: Tensor, lidar: LidarConfig, max_voxels: int) -> tuple[Tensor, Tensor]:
    features, coordinates, _ = voxelize(
        points, lidar.voxel_size, lidar.point_range, lidar.max_points_per_voxel, max_voxels, lidar.grid
    )
    return features, coordinates


def _images(sample: Sample, network: NetworkConfig) -> Tensor:
    if sample.images is None:
        raise TenfoldError(f"the network reads images, and the sample {sample.token} has none; read them")
    if sample.images.shape[1:3] != network.image.size:
        raise TenfoldError(
            f"images of {sample.images.shape[1:3]} pixels do not fit a network for {network.image.size}; move them "
            "into its crop first"
        )
    return torch.from_numpy(np.ascontiguousarray(sample.images.transpose(0, 3, 1, 2)))


def _read(
    root: Path,
    index: NuScenesIndex,
    place: int,
    network: NetworkConfig,
    data: DataConfig,
    training: bool,
    keep_beams: int | None = None,
) -> Sample:
    sample = read_sample(
        root,
        index.keyframes[place],
        data.sweeps,
        network.reads_points,
        network.reads_images,
        training,
        keep_beams,
    )
    if sample.images is not None and sample.images.shape[1:3] != network.image.original_size:
        height, width = sample.images.shape[1:3]
        raise TenfoldError(
            f"the images of the keyframe {sample.token} have {height} x {width} pixels; set original_size to that"
        )
    return sample


class TrainingSamples(Dataset[PreparedSample]):
    """Augmented samples, by :class:`Place`.

    Args:
        root: of the data set.
        index: keyframes.
        network: what it reads, and ranges and sizes.
        data: sweeps, and whether to keep samples in memory.
        augment: what is drawn; a modality is dropped only from samples for networks that read two.
        seed: of all draws.
        database: of objects to paste; None pastes none.
        fade_step: update from which on nothing is pasted.
    """

    def __init__(
        self,
        root: Path,
        index: NuScenesIndex,
        network: NetworkConfig,
        data: DataConfig,
        augment: AugmentConfig,
        seed: int,
        database: ObjectDatabase | None,
        fade_step: int,
    ) -> None:
        self.root, self.index, self.network, self.data = root, index, network, data
        self.augment, self.seed = augment, seed
        self.database = database if augment.ground_truth_sampling else None
        self.fade_step = fade_step
        self._samples: dict[int, Sample] = {}
        self._prepared: dict[int, PreparedSample] = {}
        self._fixed = (
            self.database is None
            and scene_transforms.is_fixed(augment)
            and (not network.reads_images or image_transforms.is_fixed(network.image))
        )

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, place: Place) -> PreparedSample:
        generator = np.random.default_rng(np.random.SeedSequence((self.seed, place.step, place.place)))
        draws = draw_scene(self.augment, generator)
        if self.network.modality != "fusion":
            draws = replace(draws, drop_images=False, drop_points=False)
        if not (self.data.in_memory and self._fixed):
            return self._augmented(place, draws, generator)
        if place.index not in self._prepared:
            whole = replace(draws, drop_images=False, drop_points=False)
            self._prepared[place.index] = self._augmented(place, whole, generator)
        return self._masked(self._prepared[place.index], draws)

    def _augmented(self, place: Place, draws: SceneDraws, generator: np.random.Generator) -> PreparedSample:
        move = draw_image_move(self.network.image, generator, training=True)
        sample = self._sample(place.index)
        if self.database is not None and place.step < self.fade_step:
            sample = paste_objects(sample, self.database, generator)
        sample = filter_range(transform_scene(sample, draws), self.network.lidar.point_range)
        if self.augment.shuffle:
            sample = shuffle_points(sample, generator)
        return prepare(transform_images(sample, move), self.network, training=True)

    def _sample(self, index: int) -> Sample:
        if index in self._samples:
            return self._samples[index]
        sample = _read(self.root, self.index, index, self.network, self.data, training=True)
        if self.data.in_memory and not self._fixed:
            self._samples[index] = sample
        return sample

    def _masked(self, sample: PreparedSample, draws: SceneDraws) -> PreparedSample:
        """A sample that nothing else was done to, with a modality dropped."""
        if draws.drop_images and sample.images is not None:
            sample = replace(sample, images=self._black)
        if draws.drop_points and sample.features is not None:
            features, coordinates, plan = self._no_points
            sample = replace(sample, features=features, coordinates=coordinates, plan=plan)
        return sample

    @cached_property
    def _black(self) -> Tensor:
        return torch.zeros(len(CAMERAS), 3, *self.network.image.size, dtype=torch.uint8)

    @cached_property
    def _no_points(self) -> VoxelParts:
        return _no_voxels(self.network.lidar)


class TestSamples(Dataset[PreparedSample]):
    """Samples for evaluation, with all their boxes, by the number of the keyframe.

    Args:
        root: of the data set.
        index: keyframes.
        network: what it reads, and ranges and sizes.
        data: sweeps.
        condition: what is left of the sensors.
    """

    __test__ = False  # pytest would take it for tests

    def __init__(
        self, root: Path, index: NuScenesIndex, network: NetworkConfig, data: DataConfig, condition: Condition
    ) -> None:
        self.root, self.index, self.network, self.data = root, index, network, data
        self.condition = condition

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, index: int) -> PreparedSample:
        move = draw_image_move(self.network.image, np.random.default_rng(0), training=False)
        return prepare(transform_images(self.read(index), move), self.network, training=False)

    def read(self, index: int) -> Sample:
        """A sample as its files hold it, without the sensors that the condition lacks."""
        beams = self.condition.beams
        sample = _read(
            self.root, self.index, index, self.network, self.data, training=False, keep_beams=beams
        )
        sample = drop_modality(sample, not self.condition.images, not self.condition.points)
        return _without_cameras(sample, self.condition.missing_cameras)


def _without_cameras(sample: Sample, missing: Sequence[str]) -> Sample:
    if sample.images is None or not missing:
        return sample
    images = sample.images.copy()
    images[[CAMERAS.index(camera) for camera in missing]] = 0
    return replace(sample, images=images)
