"""What a network finds in test images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from lightning_fabric import Fabric

from tenfold.reft.evaluation_images import EvaluationImages, evaluation_batches
from tenfold.reft.inference import TOP_K, detections
from tenfold.reft.model import RefT
from tenfold.reft.references import References
from tenfold.reft.support_pool import SupportPool

SUPPORTS_AT_ONCE = 32
"""Support examples of one pass."""


def support_cache(network: RefT, pool: SupportPool, num_classes: int, fabric: Fabric) -> References | None:
    """References to all support examples, computed once; None for a network without.

    Args:
        network: on Fabric's device.
        pool: of the examples, with labels below ``num_classes``.
        num_classes: classes of the classifier.
        fabric: launched.
    """
    if network.references.is_off:
        return None
    with fabric.autocast():
        features = network.read_all(pool.chunks(SUPPORTS_AT_ONCE), fabric.device)
    return network.refer(features, num_classes)


@torch.inference_mode()
def detect(
    network: RefT,
    references: References | None,
    images: EvaluationImages,
    category_ids: Sequence[int],
    fabric: Fabric,
    batch_size: int = 1,
    workers: int = 0,
    topk: int = TOP_K,
) -> list[dict[str, Any]]:
    """Instances of all images in COCO's form of results; every process gets all of them.

    Args:
        network: on Fabric's device.
        references: a support cache.
        images: to judge.
        category_ids: of the classes.
        fabric: launched; its processes divide the images.
        batch_size: images of one size in a pass.
        workers: processes that decode images.
        topk: most instances of an image.
    """
    network.eval()
    results: list[dict[str, Any]] = []
    pin = fabric.device.type == "cuda"
    for batch in evaluation_batches(images, batch_size, workers, pin, fabric.global_rank, fabric.world_size):
        with fabric.autocast():
            predictions = network(batch.images.to(fabric.device, non_blocking=True), references)
        height, width = batch.images.shape[-2:]
        results += detections(
            predictions.class_logits[-1],
            predictions.masks(),
            (height, width),
            [batch.size] * len(batch.image_ids),
            batch.originals,
            batch.image_ids,
            category_ids,
            topk,
        )
    if fabric.world_size == 1:
        return results
    shares: list[list[dict[str, Any]]] = [[] for _ in range(fabric.world_size)]
    torch.distributed.all_gather_object(shares, results)
    return [result for share in shares for result in share]
