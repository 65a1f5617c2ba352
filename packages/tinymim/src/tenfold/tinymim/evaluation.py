"""Top-1 and top-5 of classifiers, over all processes together."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Literal

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from torchmetrics.classification import MulticlassAccuracy

from tenfold.shared.logging import TenfoldError
from tenfold.tinymim.vit import VisionTransformer

Batches = Iterable[tuple[Tensor, Tensor]]
"""Normalised images [B, 3, H, W] and labels [B], this process's share of a set; on any device."""


@contextmanager
def judging(network: nn.Module) -> Iterator[None]:
    """A network in eval mode and without gradients; afterwards in the mode that it was in."""
    was_training = network.training
    network.eval()
    try:
        with torch.no_grad():  # not inference mode: a probe learns from these outputs
            yield
    finally:
        network.train(was_training)


def logits_of(network: nn.Module, images: Tensor, fabric: Fabric) -> Tensor:
    """Logits [B, classes] in float32, whatever the network computes in.

    Args:
        network: in eval mode, on Fabric's device.
        images: [B, 3, H, W], normalised.
        fabric: gives device and precision.
    """
    with fabric.autocast():
        logits: Tensor = network(images.to(fabric.device, non_blocking=True))
    return logits.float()


def evaluate_classifier(network: VisionTransformer, batches: Batches, fabric: Fabric) -> dict[str, float]:
    """Accuracy on a set whose images the processes divide among them.

    Every process calls this, and each image is in the batches of one process only: shares need not be equally long, and
    must not be padded to be so.

    Args:
        network: a classifier on Fabric's device; it is left in the mode that it was in.
        batches: this process's share; may be empty, but not in every process.
        fabric: launched.

    Returns:
        ``top1``, ``top5`` and ``balanced_top1`` (mean over classes) in per cent, the same in every process. With fewer
        than five classes top5 counts all.

    Raises:
        TenfoldError: the network has no classifier, or there are no images.
    """
    classes = network.config.num_classes
    if classes is None:
        raise TenfoldError("this network has no classifier: fine-tune it, or judge its frozen features")
    kinds: tuple[tuple[str, int, Literal["micro", "macro"]], ...] = (
        ("top1", 1, "micro"),
        ("top5", min(5, classes), "micro"),
        ("balanced_top1", 1, "macro"),
    )
    accuracies = {
        name: MulticlassAccuracy(classes, top_k=k, average=average, validate_args=False)
        for name, k, average in kinds
    }
    for accuracy in accuracies.values():
        accuracy.to(fabric.device)
    images_seen = torch.zeros((), dtype=torch.long, device=fabric.device)
    with judging(network):
        for images, labels in batches:
            logits, labels = logits_of(network, images, fabric), labels.to(fabric.device, non_blocking=True)
            images_seen += len(labels)
            for accuracy in accuracies.values():
                accuracy.update(logits, labels)
    if not int(summed(images_seen, fabric)):
        raise TenfoldError("there are no images to judge the network by: is the set empty?")
    # torchmetrics adds up the counts of all processes itself.
    return {name: 100 * float(accuracy.compute()) for name, accuracy in accuracies.items()}


def summed(counts: Tensor, fabric: Fabric) -> Tensor:
    """A tensor added up over processes; every process calls this."""
    return torch.as_tensor(fabric.all_reduce(counts, reduce_op="sum"))
