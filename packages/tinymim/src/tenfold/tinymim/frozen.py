"""Frozen features, judged by their nearest neighbours and by a linear probe.

The paper has neither. Both need little tuning and tell, during pre-training, whether the trunk learns. Pre-training on
relations reaches only the first norm and the queries, keys and values of the last block; the rest of it stays random.
Features are therefore those of the block before, in all methods alike.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from lightning_fabric import Fabric
from torch import Tensor
from torch.nn import functional as F
from torchmetrics.functional.classification import multiclass_accuracy

from tenfold.shared.logging import TenfoldError
from tenfold.tinymim.evaluation import Batches, judging
from tenfold.tinymim.optim import cosine_lr
from tenfold.tinymim.vit import VisionTransformer, check_block

Pool = Literal["mean", "cls"]
Vote = Literal["weighted", "majority"]
SIMILARITIES_AT_ONCE = 2**27
"""Of one chunk of neighbours' search: 512 MiB."""
VARIANCE_EPS = 1e-6
"""Added to the variance of a feature before a linear probe."""
INITIAL_STD = 0.01
"""Of a linear probe's first weights."""


# -- features ------------------------------------------------------------------------------------------


def features(
    network: VisionTransformer,
    batches: Batches,
    fabric: Fabric,
    block: int | None = None,
    pool: Pool = "mean",
) -> tuple[Tensor, Tensor]:
    """One vector of each image: tokens after a block, without the final norm.

    Every process calls this with its own share, and gets the features of all: those of the first process come first.

    Args:
        network: on Fabric's device; it is left in the mode that it was in.
        batches: this process's share.
        fabric: launched.
        block: from 1; by default the last but one, as the last stays random after pre-training on relations.
        pool: take the mean of patch tokens, or the CLS token.

    Returns:
        float32 [N, D] and int64 [N], on Fabric's device.

    Raises:
        TenfoldError: there is no such block.
    """
    config = network.config
    block = max(config.depth - 1, 1) if block is None else block
    check_block(block, config.depth)
    vectors = [torch.zeros(0, config.embed_dim, device=fabric.device)]  # for a process without images
    labels = [torch.zeros(0, dtype=torch.long, device=fabric.device)]
    with judging(network):
        for images, batch_labels in batches:
            with fabric.autocast():
                tokens = network.forward_features(images.to(fabric.device, non_blocking=True), block)
            tokens = tokens.float()
            vectors.append(tokens[:, 0] if pool == "cls" else tokens[:, config.extra_tokens :].mean(dim=1))
            labels.append(batch_labels.to(fabric.device, non_blocking=True))
        return gathered(torch.cat(vectors), fabric), gathered(torch.cat(labels), fabric)


def gathered(values: Tensor, fabric: Fabric) -> Tensor:
    """Rows of all processes, which may have different numbers of them: [n, ...] to [N, ...]."""
    if fabric.world_size == 1:
        return values
    lengths = torch.as_tensor(fabric.all_gather(torch.tensor(len(values), device=fabric.device))).tolist()
    padded = values.new_zeros(max(lengths), *values.shape[1:])
    padded[: len(values)] = values
    parts = torch.as_tensor(fabric.all_gather(padded))
    return torch.cat([part[:length] for part, length in zip(parts, lengths, strict=True)])


# -- nearest neighbours ----------------------------------------------------------------------------------


def knn_accuracy(
    train_x: Tensor,
    train_y: Tensor,
    test_x: Tensor,
    test_y: Tensor,
    k: int = 20,
    temperature: float = 0.07,
    vote: Vote = "weighted",
) -> float:
    """Top-1 in per cent when the nearest training images say the class.

    Args:
        train_x: features [N, D].
        train_y: labels [N].
        test_x: features [M, D].
        test_y: labels [M].
        k: neighbours, by cosine similarity.
        temperature: T of the weights.
        vote: a neighbour counts exp(similarity / T), or every one the same. The smaller class wins a tie.

    Raises:
        TenfoldError: there are fewer than k training images, no test images, or T is not positive.
    """
    _check_sets(train_x, train_y, test_x, test_y)
    if not 1 <= k <= len(train_x):
        raise TenfoldError(f"{k} neighbours cannot be found among {len(train_x)} training images: lower k")
    if temperature <= 0:
        raise TenfoldError(f"the temperature of neighbours' votes is positive, not {temperature}")
    predicted = nearest_classes(train_x, train_y, test_x, k, temperature, vote)
    return _top1(predicted, test_y)


def nearest_classes(
    train_x: Tensor, train_y: Tensor, test_x: Tensor, k: int, temperature: float, vote: Vote
) -> Tensor:
    """Classes [M] that the k nearest of N training images vote for; arguments as of ``knn_accuracy``."""
    keys, classes = F.normalize(train_x, dim=1).T, int(train_y.max()) + 1
    rows = max(1, SIMILARITIES_AT_ONCE // len(train_x))
    predicted = []
    for queries in F.normalize(test_x, dim=1).split(rows):
        similarity, nearest = (queries @ keys).topk(k, dim=1)
        # Relative to the nearest, so that no weight overflows.
        weights = ((similarity - similarity[:, :1]) / temperature).exp()
        weights = weights if vote == "weighted" else torch.ones_like(weights)
        votes = weights.new_zeros(len(queries), classes).scatter_add_(1, train_y[nearest], weights)
        predicted.append(votes.argmax(dim=1))
    return torch.cat(predicted)


# -- linear probe ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class LinearProbeConfig:
    """How a linear probe learns. All of it is our choice: the paper has none."""

    epochs: int = 100
    """Passes over the training features."""
    batch_size: int = 256
    """Of one step."""
    lr: float = 0.1
    """Of SGD; a cosine brings it to 0."""
    momentum: float = 0.9
    """Of SGD."""
    weight_decay: float = 0.0
    """Of SGD."""

    def __post_init__(self) -> None:
        if self.epochs < 1 or self.batch_size < 1:
            raise TenfoldError("a linear probe's epochs and batch size are at least 1")
        if self.lr <= 0 or not 0 <= self.momentum < 1 or self.weight_decay < 0:
            raise TenfoldError(
                "a linear probe's rate is positive, its momentum from 0 to below 1, its decay not negative"
            )


def linear_probe(
    train_x: Tensor,
    train_y: Tensor,
    test_x: Tensor,
    test_y: Tensor,
    config: LinearProbeConfig,
    generator: torch.Generator,
) -> float:
    """Top-1 in per cent of a linear layer behind a batch norm without weights.

    Features do not change, so that the batch norm's statistics are those of the whole training set. Processes do not
    divide the work: each that calls this does all of it.

    Args:
        train_x: features [N, D].
        train_y: labels [N].
        test_x: features [M, D].
        test_y: labels [M].
        config: how it learns.
        generator: on the CPU; of the first weights and of the order.

    Raises:
        TenfoldError: a set is empty, or has not one label for each feature.
    """
    _check_sets(train_x, train_y, test_x, test_y)
    variance, mean = torch.var_mean(train_x, dim=0, correction=0)
    scale = (variance + VARIANCE_EPS).rsqrt()
    train_x, test_x = (train_x - mean) * scale, (test_x - mean) * scale
    classes = int(train_y.max()) + 1
    weight = INITIAL_STD * torch.randn(classes, train_x.shape[1], generator=generator)
    weight = weight.to(train_x.device).requires_grad_()
    bias = torch.zeros(classes, device=train_x.device, requires_grad=True)
    optimizer = torch.optim.SGD(
        (weight, bias), config.lr, momentum=config.momentum, weight_decay=config.weight_decay
    )
    steps = -(-len(train_x) // config.batch_size)
    for epoch in range(config.epochs):
        order = torch.randperm(len(train_x), generator=generator).to(train_x.device)
        for step, batch in enumerate(order.split(config.batch_size)):
            optimizer.param_groups[0]["lr"] = cosine_lr(
                epoch + step / steps, lr=config.lr, min_lr=0.0, warmup_epochs=0, epochs=config.epochs
            )
            loss = F.cross_entropy(F.linear(train_x[batch], weight, bias), train_y[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    with torch.no_grad():
        return _top1(F.linear(test_x, weight, bias).argmax(dim=1), test_y)


# -- both ------------------------------------------------------------------------------------------------


def _check_sets(train_x: Tensor, train_y: Tensor, test_x: Tensor, test_y: Tensor) -> None:
    for name, x, y in (("training", train_x, train_y), ("test", test_x, test_y)):
        if len(x) == 0 or len(x) != len(y):
            raise TenfoldError(
                f"{len(x)} {name} features and {len(y)} labels: give as many, and at least one"
            )


def _top1(predicted: Tensor, labels: Tensor) -> float:
    classes = int(torch.maximum(predicted.max(), labels.max())) + 1
    return 100 * float(multiclass_accuracy(predicted, labels, max(classes, 2), average="micro"))
