"""What a network finds in a split, with some of its sensors, and how good that is."""

from __future__ import annotations

import time
from functools import cache
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric

from tenfold.cmt.dataset import TestSamples
from tenfold.cmt.decoding import Detections
from tenfold.cmt.detector import Cmt
from tenfold.cmt.evaluation import Evaluator, Scores
from tenfold.cmt.evaluation_batches import evaluation_loader
from tenfold.cmt.samples import collate
from tenfold.cmt.submission import submission_boxes
from tenfold.shared.logging import progress

BATCH_SIZE = 4
WARM_UP = 3


@torch.no_grad()
def detect_split(
    network: Cmt, samples: TestSamples, fabric: Fabric, batch_size: int = BATCH_SIZE
) -> dict[str, Detections]:
    """Detections in the LiDAR frame, by the samples' tokens, shared among processes.

    Args:
        network: on Fabric's device.
        samples: of a split, under a condition.
        fabric: launched.
        batch_size: samples at a time.
    """
    network.eval()
    own = range(fabric.global_rank, len(samples), fabric.world_size)
    on_gpu = fabric.device.type == "cuda"
    loader = evaluation_loader(samples, own, batch_size, samples.data.workers, on_gpu)
    found: dict[str, Detections] = {}
    for batch in progress(loader, f"detect, {samples.condition.name}"):
        with fabric.autocast():
            detections = network.detect(batch.to(fabric.device))
        found.update(zip(batch.tokens, (one.cpu() for one in detections), strict=True))
    if fabric.world_size == 1:
        return found
    parts: list[Any] = [None] * fabric.world_size
    torch.distributed.all_gather_object(parts, found)
    return {token: one for part in parts for token, one in part.items()}


@torch.no_grad()
def detections_per_second(network: Cmt, samples: TestSamples, fabric: Fabric, repeats: int = 20) -> float:
    """Samples a second, one at a time, from tensors on the device to boxes; after a few to warm up.

    Args:
        network: on Fabric's device.
        samples: of which the first is used.
        fabric: launched.
        repeats: how often it is detected in.
    """
    network.eval()
    batch = collate([samples[0]]).to(fabric.device)

    def seconds(count: int) -> float:
        with fabric.autocast():
            if fabric.device.type == "cuda":
                torch.cuda.synchronize()
            began = time.perf_counter()
            for _ in range(count):
                network.detect(batch)
            if fabric.device.type == "cuda":
                torch.cuda.synchronize()
        return time.perf_counter() - began

    seconds(WARM_UP)
    return repeats / seconds(repeats)


def as_submission(samples: TestSamples, found: dict[str, Detections]) -> dict[str, list[dict[str, Any]]]:
    """Detections in nuScenes' form, for every sample of a split."""
    results = {}
    for keyframe in samples.index.keyframes:
        detections = found[keyframe.token]
        results[keyframe.token] = submission_boxes(
            detections, keyframe.lidar2ego, keyframe.ego2global, keyframe.token
        )
    return results


def score(samples: TestSamples, submission: dict[str, list[dict[str, Any]]]) -> Scores:
    """What nuScenes' devkit says of the boxes of :func:`as_submission`."""
    index = samples.index
    return evaluator_of(samples.root, index.version, index.split).evaluate(submission)


@cache
def evaluator_of(root: Path, version: str, split: str) -> Evaluator:
    """An evaluator, whose tables are read once in a process."""
    return Evaluator(root, version, split)
