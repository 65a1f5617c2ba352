"""The training loops of teachers and students.

A student learns from a source of knowledge and, with RELIANT, from a bias term; the proxies learn the opposite. What
differs between frameworks and methods is passed in, so that all share the same loop.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from tenfold.reliant.backends import Backend
from tenfold.reliant.batches import Batches, Forward, FullBatches, NodeBatch, Role, SampledBatches, forward_of
from tenfold.reliant.bias import averaged_bias
from tenfold.reliant.config import DistillationConfig, SamplingConfig, TeacherConfig
from tenfold.reliant.fairness_metrics import evaluate_predictions
from tenfold.reliant.graphs import FairGraph
from tenfold.reliant.knowledge import Adversary, KnowledgeSource, LabelDistances, Labels, SoftLabels, descend
from tenfold.reliant.label_propagation import LabelPropagationStudent
from tenfold.reliant.node_output import NodeOutput, as_node_output
from tenfold.reliant.proxies import BiasProxies, student_input_dim
from tenfold.reliant.selection import BestEpoch
from tenfold.reliant.sgc_student import SGCStudent
from tenfold.reliant.teachers import build_teacher
from tenfold.shared.accelerator import maybe_compile
from tenfold.shared.logging import TenfoldError
from tenfold.shared.runs import Run
from tenfold.shared.seeding import seed_everything

LOG_EVERY = 10
"""Epochs between two looks at the device: losses wait there, and so does the end of patience."""


@dataclass(frozen=True)
class Trained:
    """A trained network and its output on all nodes."""

    network: nn.Module
    """With the weights of the kept epoch, in eval mode."""
    output: NodeOutput
    """Of the kept epoch."""
    last_output: NodeOutput
    """Of the last epoch."""
    epochs: int
    """Epochs done."""
    epochs_here: int
    """Of them, those done since the training was resumed."""
    best_epoch: int
    """The kept epoch, counted from 1."""


@dataclass(frozen=True)
class Distilled(Trained):
    """A student and its proxies of bias."""

    proxies: BiasProxies

    def predict(self, batches: Batches, with_dropout: bool = False) -> NodeOutput:
        """The student's output with the mean proxy."""
        return predict(self.network, batches, self.forward, with_dropout)

    def forward(self, batch: NodeBatch) -> NodeOutput:
        return as_node_output(self.network(self.proxies.with_mean(batch.features), batch.topology))


def train_teacher(
    graph: FairGraph,
    config: TeacherConfig,
    seed: int,
    fabric: Fabric,
    run: Run,
    backend: Backend = "pyg",
    build: Callable[[], nn.Module] | None = None,
    compile_network: bool = False,
) -> Trained:
    """Train a teacher on the labels of the training nodes; the epoch with the best validation accuracy is kept.

    Args:
        graph: on the CPU.
        config: its size and training.
        seed: of weights, dropout and order.
        fabric: launched.
        run: entered; goes on from its checkpoint.
        backend: message passing.
        build: makes another network than the config's; it is called with features and a
            :class:`~tenfold.reliant.backends.Topology`, and returns logits or (logits, embedding).
        compile_network: compile it with torch.compile.
    """
    seed_everything(seed)
    batches = make_batches(graph, config.sampling, seed, fabric, backend)
    if build is None:
        sizes = (config.hidden_dim, graph.num_classes, config.hidden_layers, config.dropout)
        network: nn.Module = build_teacher(config.kind, graph.num_features, *sizes)
    else:
        network = build()
    check_depth(network, config.sampling)
    optimizer = torch.optim.Adam(
        network.parameters(), lr=config.lr, weight_decay=config.used_weight_decay, fused=True
    )
    model, optimizer = fabric.setup(maybe_compile(network, compile_network), optimizer)
    labels, val = graph.labels.to(fabric.device), graph.val.to(fabric.device)
    best = BestEpoch(dict(network.state_dict()), config.patience, newer_wins=True)
    precision = fabric.strategy.precision  # holds the loss scale of fp16
    progress = _Progress(
        run, {"network": network, "optimizer": optimizer, "precision": precision, "best": best}
    )
    source = Labels()

    epoch = resumed_at = progress.resume()
    while epoch < config.epochs and not (epoch % LOG_EVERY == 0 and best.is_over(epoch - 1)):
        model.train()
        losses = []
        for batch in batches.epoch(epoch, "train"):
            loss = source.loss(as_node_output(model(batch.features, batch.topology)), batch)
            fabric.backward(loss)
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.detach())
        logits = predict(network, batches, forward_of(network)).logits
        accuracy = (logits[val].argmax(dim=1) == labels[val]).float().mean()
        best.offer(epoch, accuracy)
        epoch += 1
        progress.report(epoch, config.epochs, loss=torch.stack(losses).mean(), val_accuracy=accuracy)

    last_output = predict(network, batches, forward_of(network))
    network.load_state_dict(best.copies)
    output = predict(network, batches, forward_of(network))
    return Trained(network.eval(), output, last_output, epoch, epoch - resumed_at, int(best.epoch) + 1)


def distill(
    graph: FairGraph,
    teacher: NodeOutput | None,
    config: DistillationConfig,
    seed: int,
    fabric: Fabric,
    run: Run,
    backend: Backend = "pyg",
    build: Callable[[int], nn.Module] | None = None,
    compile_network: bool = False,
) -> Distilled:
    """Train a student, fairly if the config says so.

    Args:
        graph: on the CPU.
        teacher: any network's output on all nodes; None where the student learns from labels.
        config: student, knowledge, bias term, proxies, training.
        seed: of weights, proxies, dropout and order.
        fabric: launched.
        run: entered; goes on from its checkpoint.
        backend: message passing.
        build: makes another student than the framework's, given its input columns; it is called with features and a
            :class:`~tenfold.reliant.backends.Topology`, and returns logits or (logits, embedding).
        compile_network: compile it with torch.compile.

    Raises:
        TenfoldError: the framework needs a teacher, or embeddings of one width.
    """
    seed_everything(seed)
    batches = make_batches(graph, config.sampling, seed, fabric, backend)
    input_dim = student_input_dim(graph.num_features, config.placement)
    student = build_student(graph, teacher, config, input_dim) if build is None else build(input_dim)
    check_depth(student, config.sampling)
    proxies = BiasProxies(graph.num_nodes, placement=config.placement, enabled=config.use_proxies)
    proxies.to(fabric.device)
    source = knowledge_source(teacher, config, fabric)
    trainable = [parameter for parameter in student.parameters() if parameter.requires_grad]
    optimizer = torch.optim.Adam(trainable, lr=config.lr, weight_decay=config.weight_decay, fused=True)
    model, optimizer = fabric.setup(maybe_compile(student, compile_network), optimizer)
    bias = BiasTerm(config, proxies, student, fabric)

    labels, val = graph.labels.to(fabric.device), graph.val.to(fabric.device)
    kept = {**_prefixed("student.", student), **_prefixed("proxies.", proxies)}
    best = BestEpoch(kept, config.patience, newer_wins=config.keep == "accuracy")
    precision = fabric.strategy.precision  # holds the loss scale of fp16
    parts = {
        "network": student,
        "optimizer": optimizer,
        "precision": precision,
        "source": source,
        "bias": bias,
    }
    progress = _Progress(run, {**parts, "best": best})

    def forward(batch: NodeBatch) -> NodeOutput:
        return as_node_output(student(proxies.with_mean(batch.features), batch.topology))

    epoch = resumed_at = progress.resume()
    while epoch < config.epochs and not (epoch % LOG_EVERY == 0 and best.is_over(epoch - 1)):
        model.train()
        losses, biases = [], []
        for batch in batches.epoch(epoch):
            output = as_node_output(model(proxies.with_mean(batch.features), batch.topology))
            source.learn(output, batch)
            measured = bias.of_student(output, batch)
            loss = source.loss(output, batch) + config.alpha * measured
            fabric.backward(loss)
            optimizer.step()
            optimizer.zero_grad()
            bias.proxy_step(batch)
            losses.append(loss.detach())
            biases.append(measured.detach())
        logits = predict(student, batches, forward, config.evaluate_with_dropout).logits[val].float()
        accuracy = (logits.argmax(dim=1) == labels[val]).float().mean()
        best.offer(epoch, accuracy if config.keep == "accuracy" else -cross_entropy(logits, labels[val]))
        epoch += 1
        progress.report(
            epoch,
            config.epochs,
            loss=torch.stack(losses).mean(),
            bias=torch.stack(biases).mean(),
            val_accuracy=accuracy,
        )

    last_output = predict(student, batches, forward, config.evaluate_with_dropout)
    _load_prefixed("student.", student, best.copies)
    _load_prefixed("proxies.", proxies, best.copies)
    output = predict(student, batches, forward, config.evaluate_with_dropout)
    done_here, best_epoch = epoch - resumed_at, int(best.epoch) + 1
    return Distilled(student.eval(), output, last_output, epoch, done_here, best_epoch, proxies)


class BiasTerm:
    """The measure of bias that a student lowers and its proxies raise.

    Args:
        config: objective, strength, and whose group and label may be seen.
        proxies: on the device of training.
        student: the network itself; the proxies' step leaves its weights alone.
        fabric: launched.
    """

    def __init__(
        self, config: DistillationConfig, proxies: BiasProxies, student: nn.Module, fabric: Fabric
    ) -> None:
        self._config, self._proxies, self._student, self._fabric = config, proxies, student, fabric
        self._student_role, self._proxy_role = bias_roles(config)
        self._optimizer = torch.optim.Adam(
            proxies.parameters(), lr=config.proxy_lr, weight_decay=config.weight_decay, fused=True
        )

    def of_student(self, output: NodeOutput, batch: NodeBatch) -> Tensor:
        """B of a student's decisions."""
        return self._measure(output, batch, self._student_role)

    def proxy_step(self, batch: NodeBatch) -> None:
        """One step of the proxies towards *more* bias: each node is fed its own, and only they have a gradient."""
        if not self._config.use_proxies or self._config.alpha == 0:
            return
        inputs = self._proxies.with_own(batch.features, batch.nodes)
        output = as_node_output(self._student(inputs, batch.topology))
        measured = self._measure(output, batch, self._proxy_role)
        descend(-self._config.alpha * measured, [self._proxies.values], self._optimizer, self._fabric)

    def _measure(self, output: NodeOutput, batch: NodeBatch, role: Role) -> Tensor:
        probabilities = output.logits[batch.roles[role]].float().softmax(dim=1)
        averages = batch.averages(role, self._config.objective, output.pinned)
        return averaged_bias(probabilities, averages, self._config.step_series)

    def state_dict(self) -> dict[str, Any]:
        return {"proxies": self._proxies.state_dict(), "optimizer": self._optimizer.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._proxies.load_state_dict(state["proxies"])
        self._optimizer.load_state_dict(state["optimizer"])


def bias_roles(config: DistillationConfig) -> tuple[Role, Role]:
    """The nodes over which bias is measured in the student's and in the proxies' step.

    Leakage-free is training nodes in both. The authors' CPF takes all other nodes in both, their AKD training nodes for
    the student and all nodes for the proxies.
    """
    if config.bias_nodes == "leakage-free":
        return "train", "train"
    return ("unlabelled", "unlabelled") if config.framework == "cpf" else ("train", "all")


def build_student(
    graph: FairGraph, teacher: NodeOutput | None, config: DistillationConfig, input_dim: int
) -> nn.Module:
    """The framework's own student.

    Args:
        graph: its classes, and the labels that may be used.
        teacher: whose embedding width the SGC student takes where the config names none; 64 without one.
        config: framework and sizes.
        input_dim: input columns, proxies included.
    """
    if config.framework == "akd":
        embedding = None if teacher is None else teacher.embedding
        width = config.hidden_dim or (64 if embedding is None else embedding.shape[1])
        dropout = 0.5 if config.dropout is None else config.dropout
        return SGCStudent(input_dim, width, graph.num_classes, config.num_layers, dropout)
    known_labels = torch.full_like(graph.labels, -1)
    known_labels[graph.train] = graph.labels[graph.train]
    return LabelPropagationStudent(
        known_labels,
        input_dim,
        graph.num_classes,
        config.num_layers,
        config.hidden_dim or 64,
        config.mlp_layers,
        config.attention,
        0.8 if config.dropout is None else config.dropout,
        config.attention_dropout,
        config.hidden_labels,
    )


def knowledge_source(
    teacher: NodeOutput | None, config: DistillationConfig, fabric: Fabric
) -> KnowledgeSource:
    """What a config's student learns from.

    Raises:
        TenfoldError: there is no teacher to learn from.
    """
    if config.learn_from == "labels":
        return LabelDistances() if config.framework == "cpf" else Labels()
    if teacher is None:
        raise TenfoldError("distillation needs a teacher; give one, or learn from labels")
    teacher = NodeOutput(*(None if part is None else part.to(fabric.device) for part in teacher[:2]))  # type: ignore[arg-type]
    if config.framework == "cpf":
        return SoftLabels(teacher, config.teacher_decimals)
    return Adversary(teacher, config.discriminator_lr, config.weight_decay, fabric)


def make_batches(
    graph: FairGraph, sampling: SamplingConfig, seed: int, fabric: Fabric, backend: Backend
) -> Batches:
    """The whole graph on the Fabric's device, or sampled batches.

    Raises:
        TenfoldError: several processes were started for a graph that is one batch.
    """
    if sampling.batch_size is not None:
        return SampledBatches(graph, sampling.fanout, sampling.batch_size, seed, fabric, backend)
    if fabric.world_size > 1:
        raise TenfoldError(
            "full-batch training runs on one device; leave out --devices and torchrun, or train and distill "
            "on sampled neighbourhoods with --batch-size"
        )
    return FullBatches(graph.to(fabric.device), backend)


def check_depth(network: nn.Module, sampling: SamplingConfig) -> None:
    """A network that looks further than neighbourhoods reach would compute on parts of them, and wrongly.

    Raises:
        TenfoldError: there are fewer hops than the network is deep, where it says how deep it is.
    """
    depth = getattr(network, "depth", 0)
    if sampling.batch_size is not None and len(sampling.fanout) < depth:
        raise TenfoldError(
            f"this network looks {depth} hops far, but neighbours are sampled for {len(sampling.fanout)}; give "
            f"--fanout {depth} numbers"
        )


@torch.no_grad()
def predict(network: nn.Module, batches: Batches, forward: Forward, with_dropout: bool = False) -> NodeOutput:
    """A network's output on all nodes; its mode is put back afterwards."""
    was_training = network.training
    network.train(with_dropout)
    output = batches.predict(forward)
    network.train(was_training)
    return output


def all_metrics(graph: FairGraph, trained: Trained, teacher: NodeOutput | None = None) -> dict[str, float]:
    """Utility and fairness on the test nodes at the kept and the last epoch (``last_...``), and on validation nodes.

    Args:
        graph: with labels and groups.
        trained: a teacher or a student.
        teacher: adds ``agreement``, the share of test nodes on which both decide alike.
    """

    def on(nodes: Tensor, output: NodeOutput) -> dict[str, float]:
        return evaluate_predictions(output.logits[nodes].cpu(), graph.labels[nodes], graph.sensitive[nodes])

    metrics = on(graph.test, trained.output)
    metrics |= {f"last_{name}": value for name, value in on(graph.test, trained.last_output).items()}
    metrics |= {f"val_{name}": value for name, value in on(graph.val, trained.output).items()}
    if teacher is not None:
        decisions = [output.logits[graph.test].argmax(dim=1).cpu() for output in (trained.output, teacher)]
        metrics["agreement"] = float((decisions[0] == decisions[1]).float().mean())
    return metrics | {"best_epoch": float(trained.best_epoch)}


class _Progress:
    """Curves that wait on the device, and checkpoints between epochs.

    Args:
        run: where they go.
        parts: everything a checkpoint holds, by name.
    """

    def __init__(self, run: Run, parts: dict[str, Any]) -> None:
        self._run, self._parts = run, parts
        self._waiting: list[tuple[int, dict[str, Tensor]]] = []

    def resume(self) -> int:
        """Put everything back; returns the number of epochs done."""
        state = self._run.resume()
        if state is None:
            return 0
        for name, part in self._parts.items():
            part.load_state_dict(state[name])
        epoch: int = state["epoch"]
        return epoch

    def report(self, epoch: int, epochs: int, **values: Tensor) -> None:
        """Take an epoch's values; every few epochs write them down, and save a checkpoint if one is due."""
        self._waiting.append((epoch, values))
        if epoch % LOG_EVERY and epoch < epochs:
            return
        names = list(values)
        table = torch.stack([torch.stack([row[name] for name in names]) for _, row in self._waiting])
        for (step, _), row in zip(self._waiting, table.tolist(), strict=True):
            self._run.log(step, **dict(zip(names, row, strict=True)))
        self._waiting.clear()
        if self._run.is_writer and self._run.is_checkpoint_due:
            state = {name: part.state_dict() for name, part in self._parts.items()}
            self._run.save_checkpoint(epoch, {"epoch": epoch, **state})


def _prefixed(prefix: str, module: nn.Module) -> dict[str, Tensor]:
    return {prefix + name: value for name, value in module.state_dict().items()}


def _load_prefixed(prefix: str, module: nn.Module, state: dict[str, Tensor]) -> None:
    module.load_state_dict(
        {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
    )
