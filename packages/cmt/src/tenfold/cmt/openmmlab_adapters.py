"""Between mmdet3d's forms and ours: plain settings, pipeline results, and batches of points, images and samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass, replace
from typing import Any, TypeVar, get_type_hints

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from tenfold.cmt.config import BOX_SIZE, POINT_FEATURES, LidarConfig, NetworkConfig
from tenfold.cmt.samples import Batch, FloatArray, PreparedSample, Sample, Voxels, collate
from tenfold.cmt.voxelization import voxelize
from tenfold.shared.logging import TenfoldError

Results = dict[str, Any]
"""What mmdet3d's transforms hand on."""
T = TypeVar("T")


def settings(kind: type[T], values: Mapping[str, Any] | None) -> T:
    """A dataclass of :mod:`tenfold.cmt.config` from plain values as config files have them.

    Args:
        kind: the dataclass; its fields may be such dataclasses again.
        values: of the fields that differ from their defaults. Lists stand for tuples, mappings for dataclasses.

    Raises:
        TenfoldError: there is no such field, or a value is not possible.
    """
    known = {one.name for one in fields(kind)}  # type: ignore[arg-type]
    types = get_type_hints(kind)
    given: dict[str, Any] = {}
    for name, value in (values or {}).items():
        if name not in known:
            raise TenfoldError(f"{kind.__name__} has no {name}; choose from {', '.join(sorted(known))}")
        nested = is_dataclass(types[name]) and isinstance(value, Mapping)
        given[name] = settings(types[name], value) if nested else _frozen(value)
    return kind(**given)


def _frozen(value: Any) -> Any:
    return tuple(map(_frozen, value)) if isinstance(value, list | tuple) else value


# -- pipeline results ----------------------------------------------------------------------------------------


def sample_of(results: Results) -> Sample:
    """Pipeline results as a sample, after mmdet3d's transforms loaded what they hold."""
    points, boxes = results.get("points"), results.get("gt_bboxes_3d")
    images = results.get("img")
    cameras = "lidar2cam" in results
    return Sample(
        token=str(results.get("token", "")),
        points=None if points is None else points.tensor.numpy(),
        images=None if images is None else np.stack(images),
        intrinsics=squared(results["cam2img"]) if cameras else np.zeros((0, 4, 4)),
        lidar2camera=squared(results["lidar2cam"]) if cameras else np.zeros((0, 4, 4)),
        boxes=np.zeros((0, BOX_SIZE), np.float32) if boxes is None else boxes.tensor.numpy(),
        labels=np.asarray(results.get("gt_labels_3d", ()), dtype=np.int64),
    )


def put_back(results: Results, sample: Sample) -> Results:
    """Pipeline results with what a changed sample holds; ``lidar2img`` is added where there are cameras."""
    results = dict(results)
    if sample.points is not None:
        results["points"] = results["points"].new_point(sample.points)
    if "gt_bboxes_3d" in results:
        results["gt_bboxes_3d"] = results["gt_bboxes_3d"].new_box(sample.boxes)
        results["gt_labels_3d"] = sample.labels
    if sample.images is not None:
        results["img"] = list(sample.images)
        results["img_shape"] = results["pad_shape"] = sample.images.shape[1:3]
    if len(sample.lidar2camera):
        results["cam2img"] = list(sample.intrinsics[:, :3, :3])
        results["lidar2cam"] = list(sample.lidar2camera)
        results["lidar2img"] = list(sample.lidar2image)
    return results


def squared(matrices: Sequence[Any]) -> FloatArray:
    """Matrices [V, 3 or 4, 3 or 4] as [V, 4, 4], filled up from the identity."""
    given = np.asarray(matrices, dtype=np.float64)
    square = np.tile(np.eye(4), (len(given), 1, 1))
    square[:, : given.shape[1], : given.shape[2]] = given
    return square


# -- batches -------------------------------------------------------------------------------------------------


def make_batch(
    inputs: Mapping[str, Any], data_samples: Sequence[Any] | None, network: NetworkConfig, training: bool
) -> Batch:
    """A batch on the inputs' device, voxelised there.

    Args:
        inputs: ``points``, a list of B tensors [P, 5], and ``imgs`` (or ``img``), [B, V, 3, H, W], blue first and not
            normalised; what the network does not read may be absent.
        data_samples: B ``Det3DDataSample``; their ``lidar2img``, or ``cam2img`` and ``lidar2cam``, are needed for
            images, their ``gt_instances_3d`` for losses.
        network: what it reads, and ranges and sizes.
        training: which limit of voxels is in force.

    Raises:
        TenfoldError: something that the network reads is absent or of another size.
    """
    images = _images(inputs, network) if network.reads_images else None
    voxels = _voxels(inputs, network.lidar, training) if network.reads_points else None
    count = len(images) if images is not None else len(inputs["points"])
    samples = [None] * count if data_samples is None else data_samples
    joined = collate([_prepared(place, one, network) for place, one in enumerate(samples)])
    device = images.device if images is not None else inputs["points"][0].device
    return replace(joined.to(device), voxels=voxels, images=images)


def lidar2image_of(metainfo: Mapping[str, Any]) -> FloatArray:
    """LiDAR frame to pixels, times depth, [V, 4, 4], of the meta information of a sample.

    Raises:
        TenfoldError: it is not there.
    """
    if "lidar2img" in metainfo:
        return squared(metainfo["lidar2img"])
    if "cam2img" not in metainfo or "lidar2cam" not in metainfo:
        raise TenfoldError(
            "samples of a network that reads images have lidar2img, or cam2img and lidar2cam; keep them among the "
            "meta_keys of Pack3DDetInputs"
        )
    return np.asarray(squared(metainfo["cam2img"]) @ squared(metainfo["lidar2cam"]))


def _prepared(place: int, data_sample: Any, network: NetworkConfig) -> PreparedSample:
    """Matrices and boxes of a sample, in main memory."""
    metainfo = {} if data_sample is None else data_sample.metainfo
    matrices = lidar2image_of(metainfo) if network.reads_images else np.zeros((0, 4, 4))
    boxes, labels = torch.zeros(0, BOX_SIZE), torch.zeros(0, dtype=torch.int64)
    truth = None if data_sample is None else data_sample.get("gt_instances_3d")
    if truth is not None and "bboxes_3d" in truth:
        known = truth.labels_3d >= 0
        boxes, labels = (
            truth.bboxes_3d.tensor[known.to(truth.bboxes_3d.device)].cpu(),
            truth.labels_3d[known].cpu(),
        )
        if boxes.shape[1] != BOX_SIZE:
            raise TenfoldError(
                f"boxes have {BOX_SIZE} numbers, unlike {boxes.shape[1]}; load their velocities"
            )
    token = str(metainfo.get("sample_idx", place))
    return PreparedSample(token, None, None, None, None, torch.from_numpy(matrices), boxes, labels)


def _images(inputs: Mapping[str, Any], network: NetworkConfig) -> Tensor:
    images = inputs.get("imgs", inputs.get("img"))
    if images is None:
        raise TenfoldError("this network reads camera images; load them and pack the key img")
    if not isinstance(images, Tensor):
        images = torch.stack(tuple(images))
    if images.dim() != 5 or tuple(images.shape[-2:]) != network.image.size:
        raise TenfoldError(
            f"images are [B, V, 3, {network.image.size[0]}, {network.image.size[1]}], unlike {list(images.shape)}; put "
            "TenfoldImageMove with the network's image settings into the pipeline"
        )
    return images


def _voxels(inputs: Mapping[str, Any], lidar: LidarConfig, training: bool) -> Voxels:
    """Voxels of all samples; one without points in range has a single voxel of zeros."""
    if inputs.get("points") is None:
        raise TenfoldError("this network reads LiDAR points; load them and pack the key points")
    most = lidar.max_voxels_train if training else lidar.max_voxels_test
    features, coordinates = [], []
    for place, points in enumerate(inputs["points"]):
        if points.shape[1] != POINT_FEATURES:
            raise TenfoldError(
                f"points have {POINT_FEATURES} features, unlike {points.shape[1]}; load them with use_dim=5"
            )
        means, cells = _voxelized(points, lidar, most)
        if not len(means):
            means, cells = _voxelized(points.new_zeros(1, POINT_FEATURES), lidar, 1)
        if not len(means):
            means, cells = points.new_zeros(1, POINT_FEATURES), cells.new_zeros(1, 3)
        features.append(means)
        coordinates.append(F.pad(cells, (1, 0), value=place))
    return Voxels(torch.cat(features), torch.cat(coordinates))


def _voxelized(points: Tensor, lidar: LidarConfig, most: int) -> tuple[Tensor, Tensor]:
    features, coordinates, _ = voxelize(
        points, lidar.voxel_size, lidar.point_range, lidar.max_points_per_voxel, most, lidar.grid
    )
    return features, coordinates
