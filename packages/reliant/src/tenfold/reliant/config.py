"""Every hyperparameter."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from tenfold.reliant.bias import Objective, StepSeries
from tenfold.reliant.proxies import Placement
from tenfold.reliant.teachers import TeacherKind
from tenfold.shared.logging import TenfoldError

Framework = Literal["cpf", "akd"]
Protocol = Literal["leakage-free", "official"]


def _check_training(epochs: int, lowest_lr: float, dropout: float | None) -> None:
    if epochs < 1:
        raise TenfoldError(f"a training has at least 1 epoch, not {epochs}")
    if not 0 <= lowest_lr < math.inf:
        raise TenfoldError(f"a learning rate is at least 0 and finite, not {lowest_lr:g}")
    if dropout is not None and not 0 <= dropout < 1:
        raise TenfoldError(f"a dropout rate is from 0 to below 1, not {dropout:g}")


@dataclass(frozen=True)
class SamplingConfig:
    """Training on sampled neighbourhoods, for graphs that do not fit on a device."""

    batch_size: int | None = None
    """Seed nodes of a batch; by default the whole graph is one batch."""
    fanout: tuple[int, ...] = (10, 10, 10)
    """Incoming edges sampled for a node, hop by hop; -1 takes all. At least as many hops as the network is deep."""


@dataclass(frozen=True)
class TeacherConfig:
    """A teacher and its training. The defaults are the paper's."""

    kind: TeacherKind = "gcn"
    """gcn or sage."""
    hidden_dim: int | None = None
    """Width; by default 64 (gcn) or 128 (sage)."""
    hidden_layers: int | None = None
    """Convolutions between the first and the last; by default 1 (gcn) or 2 (sage)."""
    dropout: float | None = None
    """Rate; by default 0.8 (gcn) or 0.5 (sage)."""
    epochs: int = 1000
    """Passes over the training nodes."""
    patience: int | None = 500
    """Epochs without a validation accuracy at least as good, after which training ends."""
    lr: float = 0.01
    """Learning rate of Adam."""
    weight_decay: float | None = None
    """Of Adam; by default 1e-3 (gcn) or 5e-4 (sage)."""
    sampling: SamplingConfig = field(default_factory=SamplingConfig)

    def __post_init__(self) -> None:
        _check_training(self.epochs, self.lr, self.dropout)
        if (self.hidden_dim is not None and self.hidden_dim < 1) or (self.hidden_layers or 0) < 0:
            raise TenfoldError(
                f"a teacher has a width of at least 1 and no fewer than 0 hidden layers, not {self.hidden_dim} and "
                f"{self.hidden_layers}"
            )

    @property
    def used_weight_decay(self) -> float:
        if self.weight_decay is not None:
            return self.weight_decay
        return 1e-3 if self.kind == "gcn" else 5e-4


@dataclass(frozen=True)
class DistillationConfig:
    """A student and its training. The defaults are the authors' GraphAKD; :data:`FRAMEWORKS` holds both."""

    framework: Framework = "akd"
    """cpf: label propagation student, soft labels; akd: SGC student, adversarial discriminators."""
    objective: Objective = "sp"
    """Which bias is measured: statistical parity, or equal opportunity."""
    alpha: float = 10.0
    """Weight of the bias term; 0 leaves it out."""
    use_proxies: bool = True
    """Proxies of bias as two more input features; without them the columns are zero."""
    learn_from: Literal["teacher", "labels"] = "teacher"
    """Distil the teacher, or train the same student on the labels; bias term and proxies stay as they are set."""
    bias_nodes: Protocol = "leakage-free"
    """Nodes whose group (and label) the bias term sees: training nodes, or those of the authors' code, which include
    test nodes."""
    placement: Placement = "append"
    """Proxies as further columns, or in place of the last features as in the authors' CPF code."""
    evaluate_with_dropout: bool = False
    """Leave dropout on when predicting, as the authors' AKD code does."""
    teacher_decimals: int | None = None
    """Round the teacher's probabilities; the authors' CPF code passes them on with 4 decimals."""
    step_series: StepSeries = "paper"
    """Coefficients of the step polynomial."""
    epochs: int = 600
    """Passes over all nodes."""
    patience: int | None = None
    """Epochs without improvement on the validation nodes, after which training ends."""
    keep: Literal["accuracy", "cross-entropy"] = "cross-entropy"
    """What the kept epoch is best in, on the validation nodes. Fairness never decides."""
    lr: float = 1e-4
    """Learning rate of the student's Adam."""
    proxy_lr: float = 1e-3
    """Learning rate of the proxies' Adam."""
    discriminator_lr: float = 1e-3
    """Learning rate of the discriminators' Adam."""
    weight_decay: float = 5e-4
    """Of all three."""
    hidden_dim: int | None = None
    """Width of the SGC student, by default that of the teacher's embedding, which adversarial distillation needs; of
    label propagation's MLP, by default 64."""
    num_layers: int = 1
    """Hops of the SGC student's middle convolution; of the label propagation student, updates plus one."""
    mlp_layers: int = 2
    """Linear layers of label propagation's MLP."""
    dropout: float | None = None
    """Rate on features and hidden values; by default 0.5 (SGC) or 0.8 (label propagation)."""
    attention_dropout: float = 0.2
    """Rate on label propagation's attention weights."""
    hidden_labels: float = 0.5
    """Label propagation: share of the known labels hidden in each training pass. Bias on training nodes can only be
    seen where the label is hidden; the authors' code, which looks at other nodes, hides none."""
    attention: Literal["ind", "tra"] = "ind"
    """Label propagation: attention from features, or one free score a node."""
    sampling: SamplingConfig = field(default_factory=SamplingConfig)

    def __post_init__(self) -> None:
        _check_training(self.epochs, min(self.lr, self.proxy_lr, self.discriminator_lr), self.dropout)
        if not 0 <= self.alpha < math.inf:
            raise TenfoldError(f"alpha is at least 0 and finite, not {self.alpha:g}")
        if self.framework not in ("akd", "cpf"):
            raise TenfoldError(f"unknown framework {self.framework!r}; choose akd or cpf")
        fewest = 1 if self.framework == "akd" else 2
        if (
            self.num_layers < fewest
            or self.mlp_layers < 1
            or (self.hidden_dim is not None and self.hidden_dim < 1)
        ):
            raise TenfoldError(f"{self.framework} needs at least {fewest} layers, and widths of at least 1")
        if not (0 <= self.hidden_labels < 1 and 0 <= self.attention_dropout < 1):
            raise TenfoldError("hidden labels and attention dropout are shares from 0 to below 1")
        sees_training_nodes = self.learn_from == "labels" or (
            self.alpha > 0 and self.bias_nodes == "leakage-free"
        )
        if self.framework == "cpf" and sees_training_nodes and self.hidden_labels == 0:
            raise TenfoldError(
                "label propagation pins every training node to its label, so nothing can be learned there; set "
                "--hidden-labels above 0"
            )


FRAMEWORKS: dict[str, DistillationConfig] = {
    "akd": DistillationConfig(),
    "cpf": DistillationConfig(
        framework="cpf",
        alpha=1000.0,
        epochs=1000,
        patience=500,
        keep="accuracy",
        lr=0.01,
        proxy_lr=0.01,
        weight_decay=0.01,
        num_layers=10,
    ),
}
