"""One keyframe in, boxes out: as a list for JSON, and as pictures."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric

from tenfold.cmt.config import ImageConfig, NetworkConfig
from tenfold.cmt.dataset import prepare
from tenfold.cmt.decoding import Detections
from tenfold.cmt.detector import Cmt
from tenfold.cmt.figures import draw_detections
from tenfold.cmt.image_transforms import draw_image_move, transform_images
from tenfold.cmt.keyframes import Keyframe
from tenfold.cmt.sample_reader import read_sample
from tenfold.cmt.samples import Sample, collate
from tenfold.cmt.submission import detections_as_json


def fit_images(network: NetworkConfig, sample: Sample) -> NetworkConfig:
    """A network whose images are of another size than the files' scales them to as many columns.

    Args:
        network: as it was trained.
        sample: whose images are to be seen.
    """
    if sample.images is None or not network.reads_images:
        return network
    size = sample.images.shape[1:3]
    if size == network.image.original_size:
        return network
    scale = network.image.resize_test * network.image.original_size[1] / size[1]
    image: ImageConfig = replace(network.image, original_size=size, resize_test=scale)
    return replace(network, image=image)


def detect_keyframe(
    network: Cmt, root: Path, keyframe: Keyframe, sweeps: int, fabric: Fabric
) -> tuple[Sample, Detections]:
    """What a network finds in a keyframe.

    Args:
        network: on Fabric's device.
        root: folder that the keyframe's files are relative to.
        keyframe: sensors and files.
        sweeps: earlier sweeps to read, if there are as many.
        fabric: launched.

    Returns:
        The sample as its files hold it, and detections in its LiDAR frame.
    """
    shape = network.network
    sample = read_sample(root, keyframe, sweeps, shape.reads_points, shape.reads_images, training=False)
    fitted = fit_images(shape, sample)
    move = draw_image_move(fitted.image, np.random.default_rng(0), training=False)
    prepared = prepare(transform_images(sample, move), fitted, training=False)
    network.eval()
    with torch.inference_mode(), fabric.autocast():
        found = network.detect(collate([prepared]).to(fabric.device))[0]
    return sample, found.cpu()


def draw_keyframe(path: Path, network: Cmt, sample: Sample, found: Detections, threshold: float) -> None:
    """A picture of what was found, beside the ground truth where there is any."""
    draw_detections(
        path,
        sample.images,
        sample.lidar2image,
        sample.points,
        sample.boxes,
        sample.labels,
        found,
        sample.token,
        network.network.lidar.point_range,
        threshold,
    )


def as_json(keyframe: Keyframe, found: Detections, threshold: float) -> dict[str, Any]:
    """Detections above a score, in the LiDAR frame and in the world's."""
    return {
        "sample_token": keyframe.token,
        "detections": detections_as_json(
            found.above(threshold), lidar2ego=keyframe.lidar2ego, ego2global=keyframe.ego2global
        ),
    }
