"""Logits of a trained network, and its accuracy."""

from __future__ import annotations

import torch
from torch import Tensor, nn


@torch.no_grad()
def predict(network: nn.Module, images: Tensor) -> Tensor:
    """Logits [N, 10] of a network in eval mode for images [N, 64]; its mode is put back afterwards."""
    was_training = network.training
    network.eval()
    logits: Tensor = network(images)
    network.train(was_training)
    return logits


def accuracy(logits: Tensor, labels: Tensor) -> float:
    """Percent of images whose largest logit [N, C] is that of their label [N]."""
    return 100 * float((logits.argmax(dim=1) == labels).float().mean())
