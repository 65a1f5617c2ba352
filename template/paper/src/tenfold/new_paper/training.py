"""The training loop of teacher and students; what differs between the methods is the objective."""

from __future__ import annotations

from collections.abc import Callable

import torch
from lightning_fabric import Fabric
from torch import Tensor
from torch.nn.functional import cross_entropy

from tenfold.new_paper.config import TrainingConfig
from tenfold.new_paper.data import ImageSet
from tenfold.new_paper.evaluation import accuracy, predict
from tenfold.new_paper.losses import distillation_loss
from tenfold.new_paper.model import DigitClassifier
from tenfold.shared.accelerator import maybe_compile
from tenfold.shared.runs import Run
from tenfold.shared.seeding import epoch_order, seed_everything

Objective = Callable[[Tensor, Tensor], Tensor]
"""Of logits [B, 10] and the indices [B] of their images: the mean loss over the batch."""


def label_objective(labels: Tensor) -> Objective:
    """Learn the labels [N] of the training images."""
    return lambda logits, indices: cross_entropy(logits, labels[indices])


def distillation_objective(teacher: DigitClassifier, train: ImageSet, config: TrainingConfig) -> Objective:
    """Learn a teacher's answers, which are computed once, and the labels beside them.

    Teacher and images are on one device.
    """
    teacher_logits = predict(teacher, train.images)

    def objective(logits: Tensor, indices: Tensor) -> Tensor:
        targets = teacher_logits[indices], train.labels[indices]
        return distillation_loss(logits, *targets, config.temperature, config.label_weight)

    return objective


def fit(
    train: ImageSet,
    objective: Objective,
    test: ImageSet,
    config: TrainingConfig,
    seed: int,
    fabric: Fabric,
    run: Run,
    compile_network: bool = False,
) -> DigitClassifier:
    """Train a network; logs each epoch's loss and test accuracy, and goes on from the run's checkpoint.

    Args:
        train: N images on the Fabric's device.
        objective: of a batch; the test images have no part in it.
        test: images for the accuracy after each epoch, on the same device.
        config: network and training.
        seed: of weights, dropout and order.
        fabric: launched; each of its processes takes a share of every batch.
        run: entered.
        compile_network: compile the network with torch.compile.

    Returns:
        The network after the last epoch, on the Fabric's device.
    """
    seed_everything(seed)
    network = DigitClassifier(config.hidden_dim, config.dropout)
    optimizer = torch.optim.Adam(network.parameters(), lr=config.lr)
    model, optimizer = fabric.setup(maybe_compile(network, compile_network), optimizer)
    state = run.resume() or {"epoch": 0}
    if "network" in state:
        network.load_state_dict(state["network"])
        optimizer.load_state_dict(state["optimizer"])

    for epoch in range(state["epoch"], config.epochs):
        if run.is_checkpoint_due:
            weights = {"network": network.state_dict(), "optimizer": optimizer.state_dict()}
            run.save_checkpoint(epoch, {"epoch": epoch, **weights})
        batches = epoch_order(len(train), seed, epoch).to(fabric.device).split(config.batch_size)
        loss_sum = torch.zeros((), device=fabric.device)
        for batch in batches:
            indices, weight = process_share(batch, fabric.global_rank, fabric.world_size)
            loss = weight * objective(model(train.images[indices]), indices)
            fabric.backward(loss)
            optimizer.step()
            optimizer.zero_grad()
            loss_sum += loss.detach()
        mean_loss = fabric.all_reduce(loss_sum / len(batches), reduce_op="mean")
        assert isinstance(mean_loss, Tensor)
        test_accuracy = accuracy(predict(network, test.images), test.labels)
        run.log(epoch + 1, loss=float(mean_loss), test_accuracy=test_accuracy)
    return network


def process_share(batch: Tensor, rank: int, world_size: int) -> tuple[Tensor, float]:
    """The part of a batch of indices [B] that one process takes, and the weight of its mean loss.

    The weight makes the mean over the processes the mean over the batch, also where the shares differ in size. A
    process that would get nothing of a small batch computes its first image with weight 0, since every process
    takes part in the exchange of gradients.
    """
    share = batch[rank::world_size]
    weight = len(share) * world_size / len(batch)
    return (share, weight) if len(share) else (batch[:1], 0.0)
