"""The training loop of teachers and students; what differs between them is the target and the loss."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor
from torch.nn.functional import cross_entropy

from tenfold.gfkd.backends import Backend, Topology
from tenfold.gfkd.config import TrainingConfig
from tenfold.gfkd.evaluation import accuracy, predict, predict_batches, prepare
from tenfold.gfkd.graphs import GraphSet, batches
from tenfold.gfkd.losses import distillation_loss
from tenfold.gfkd.models import GraphClassifier
from tenfold.shared.accelerator import maybe_compile
from tenfold.shared.runs import Run
from tenfold.shared.seeding import epoch_order, seed_everything

Loss = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Batch:
    """What one step sees: B graphs, or this process's share of them."""

    features: Tensor
    topology: Topology
    targets: Tensor
    """[B] labels or [B, C] teacher logits."""
    weight: float
    """Factor on the loss that makes the mean over processes the mean over the whole batch."""


@dataclass(frozen=True)
class Fitted:
    """The outcome of :func:`fit`; accuracies in percent."""

    last_accuracy: float
    best_accuracy: float
    best_state: dict[str, Tensor]
    """Weights of the epoch with the best test accuracy."""


def labels_and_loss(graphs: GraphSet) -> tuple[Tensor, Loss]:
    """Train on the graphs' own labels, with cross-entropy."""
    return graphs.labels, cross_entropy


def teacher_and_loss(
    teacher: GraphClassifier, graphs: GraphSet, temperature: float, backend: Backend
) -> tuple[Tensor, Loss]:
    """Train on a teacher's logits, which are computed once; labels are not used."""
    logits = predict(teacher, graphs, backend)
    return logits, lambda student, target: distillation_loss(student, target, temperature)


def fit(
    build: Callable[[], GraphClassifier],
    graphs: GraphSet,
    targets: Tensor,
    loss_function: Loss,
    test: GraphSet,
    config: TrainingConfig,
    seed: int,
    fabric: Fabric,
    run: Run,
    backend: Backend = "pyg",
    compile_network: bool = False,
) -> tuple[GraphClassifier, Fitted]:
    """Train a network; logs an epoch's loss and test accuracy, and goes on from the run's checkpoint.

    Args:
        build: makes the network; called after seeding.
        graphs: G training graphs.
        targets: [G] labels or [G, C] logits.
        loss_function: of logits and targets of a batch, the mean over its graphs.
        test: graphs for the accuracy after each epoch. Only the *report* uses the best epoch.
        config: epochs, learning rate, batch size.
        seed: of weights, dropout and order.
        fabric: launched; each of its processes takes a share of every batch.
        run: entered.
        backend: message passing.
        compile_network: compile it with torch.compile.

    Returns:
        The trained network, unwrapped, on the Fabric's device; and the accuracies.
    """
    seed_everything(seed)
    network = build()
    if fabric.device.type == "cuda" and fabric.world_size > 1:
        network = torch.nn.SyncBatchNorm.convert_sync_batchnorm(network)
    optimizer = torch.optim.Adam(network.parameters(), lr=config.lr, fused=True)
    model, optimizer = fabric.setup(maybe_compile(network, compile_network), optimizer)
    graphs, targets = graphs.to(fabric.device), targets.to(fabric.device)
    test_labels, test_batches = test.labels.to(fabric.device), prepare(test.to(fabric.device), backend)

    state = run.resume() or {"epoch": 0, "batch": 0, "loss_sum": 0.0, "best_accuracy": -1.0, "best_state": {}}
    if "network" in state:
        network.load_state_dict(state["network"])
        optimizer.load_state_dict(state["optimizer"])
    last_accuracy, best_accuracy, best_state = 0.0, state["best_accuracy"], state["best_state"]
    fixed = None if config.shuffle else list(_batches(graphs, targets, config, backend, fabric, order=None))
    num_batches = -(-len(graphs) // config.batch_size)

    for epoch in range(state["epoch"], config.epochs):
        order = epoch_order(len(graphs), seed, epoch) if config.shuffle else None
        epoch_batches = _batches(graphs, targets, config, backend, fabric, order) if fixed is None else fixed
        resumed = epoch == state["epoch"]
        loss_sum = torch.tensor(state["loss_sum"] if resumed else 0.0, device=fabric.device)
        optimizer.param_groups[0]["lr"] = config.lr * (1 - epoch / config.epochs)
        model.train()
        for index, batch in enumerate(epoch_batches):
            if resumed and index < state["batch"]:
                continue
            if run.is_writer and run.is_checkpoint_due:
                progress = {"epoch": epoch, "batch": index, "loss_sum": float(loss_sum)}
                best = {"best_accuracy": best_accuracy, "best_state": best_state}
                weights = {"network": network.state_dict(), "optimizer": optimizer.state_dict()}
                run.save_checkpoint(epoch, {**progress, **best, **weights})
            loss = loss_function(model(batch.features, batch.topology), batch.targets) * batch.weight
            fabric.backward(loss)
            optimizer.step()
            optimizer.zero_grad()
            loss_sum += loss.detach()
        last_accuracy = accuracy(predict_batches(network, test_batches), test_labels)
        if last_accuracy > best_accuracy:
            best_accuracy = last_accuracy
            best_state = {name: value.detach().cpu().clone() for name, value in network.state_dict().items()}
        summed = fabric.all_reduce(loss_sum, reduce_op="mean")
        assert isinstance(summed, Tensor)
        run.log(epoch + 1, loss=float(summed) / num_batches, test_accuracy=last_accuracy)
    return network, Fitted(last_accuracy, best_accuracy, best_state)


def _batches(
    graphs: GraphSet,
    targets: Tensor,
    config: TrainingConfig,
    backend: Backend,
    fabric: Fabric,
    order: Tensor | None,
) -> Iterator[Batch]:
    """The batches of one epoch, as this process's share of each.

    A process that would get no graph of a small batch computes the first one with weight 0, since every process
    must take part in the exchange of gradients.
    """
    for indices in batches(graphs, config.batch_size, order):
        share = indices[fabric.global_rank :: fabric.world_size]
        weight = len(share) * fabric.world_size / len(indices)
        share = share if len(share) else indices[:1]
        part = graphs.select(share)
        yield Batch(part.features(), part.topology(backend), targets[share.to(targets.device)], weight)


def artifact(
    model_name: str, network: GraphClassifier, state: dict[str, Tensor], **extra: Any
) -> dict[str, Any]:
    """What ``model.pt`` of a run holds: enough to build the network again without the data set."""
    shape = {"model": model_name, "input_dim": network.input_dim, "output_dim": network.output_dim}
    return {**shape, "state_dict": {name: value.cpu() for name, value in state.items()}, **extra}
