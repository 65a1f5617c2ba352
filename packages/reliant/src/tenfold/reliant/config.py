"""Every hyperparameter, and the profiles as data."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from tenfold.reliant.backends import Backend
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

# Learning rates of CPF's student that differ from 0.01, and its depth on DBLP-L.
_CPF_BY_DATASET: dict[tuple[str, str], dict[str, Any]] = {
    ("dblp", "gcn"): {"lr": 0.001, "proxy_lr": 0.001},
    ("dblp-l", "gcn"): {"lr": 0.001, "proxy_lr": 0.001, "num_layers": 5},
    ("dblp-l", "sage"): {"num_layers": 5},
}

METHODS: dict[str, dict[str, Any]] = {
    "Labels": {"learn_from": "labels", "use_proxies": False, "alpha": 0.0, "hidden_labels": 0.5},
    "Vanilla": {"use_proxies": False, "alpha": 0.0},
    "Bias term": {"use_proxies": False},
    "Proxies": {"alpha": 0.0},
    "RELIANT": {},
}
"""What each method changes: a student on labels, plain distillation, its two parts alone, and both."""

PROTOCOLS: dict[Protocol, dict[str, dict[str, Any]]] = {
    "leakage-free": {"cpf": {}, "akd": {}},
    "official": {
        "cpf": {
            "bias_nodes": "official",
            "placement": "replace-last",
            "teacher_decimals": 4,
            "hidden_labels": 0.0,
        },
        "akd": {"bias_nodes": "official", "evaluate_with_dropout": True},
    },
}
"""What the authors' code does otherwise, by framework."""


@dataclass(frozen=True)
class Profile:
    """An experiment suite: data sets x teachers x frameworks x objectives x protocols x methods x seeds."""

    description: str
    """One line for the list of profiles."""
    datasets: tuple[str, ...]
    """Names of :data:`tenfold.reliant.datasets.DATASETS`."""
    teachers: tuple[TeacherKind, ...] = ("gcn", "sage")
    frameworks: tuple[Framework, ...] = ("cpf", "akd")
    objectives: tuple[Objective, ...] = ("sp", "eo")
    protocols: tuple[Protocol, ...] = ("leakage-free",)
    methods: tuple[str, ...] = ("Labels", "Vanilla", "Bias term", "Proxies", "RELIANT")
    """Keys of :data:`METHODS`."""
    alphas: tuple[float, ...] = ()
    """Further strengths at which RELIANT is run, for the sweep."""
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    """Each seed has a teacher of its own."""
    teacher: dict[str, Any] = field(default_factory=dict)
    """Replaced fields of :class:`TeacherConfig`."""
    distillation: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Replaced fields of :data:`FRAMEWORKS`, by framework."""
    backend: Backend = "pyg"
    """Message passing."""

    def all_methods(self) -> tuple[str, ...]:
        """The methods, and RELIANT at each strength of the sweep."""
        return self.methods + tuple(f"RELIANT alpha={alpha:g}" for alpha in self.alphas)

    def teacher_config(self, kind: TeacherKind) -> TeacherConfig:
        """The settings of a teacher."""
        return TeacherConfig(kind=kind, **self.teacher)

    def distillation_config(
        self,
        dataset: str,
        teacher: str,
        framework: str,
        objective: Objective,
        protocol: Protocol,
        method: str,
    ) -> DistillationConfig:
        """The settings of one student; what names it more closely wins."""
        changes: dict[str, Any] = {"objective": objective}
        if framework == "cpf":
            changes |= _CPF_BY_DATASET.get((dataset, teacher), {})
        changes |= self.distillation.get(framework, {})
        changes |= PROTOCOLS[protocol][framework]
        if method.startswith("RELIANT alpha="):
            changes["alpha"] = float(method.removeprefix("RELIANT alpha="))
        else:
            changes |= METHODS[method]
        return replace(FRAMEWORKS[framework], **changes)


_PAPER = Profile(
    description="",
    datasets=(),
    protocols=("leakage-free", "official"),
    seeds=tuple(range(10)),
)

PROFILES: dict[str, Profile] = {
    "smoke": Profile(
        description="seconds: every step of the suite on German credit, far too short to learn from",
        datasets=("german",),
        objectives=("sp",),
        alphas=(1.0,),
        seeds=(0, 1),
        teacher={"epochs": 5},
        distillation={"cpf": {"epochs": 4}, "akd": {"epochs": 4}},
    ),
    "quick": Profile(
        description="3000 nodes of Recidivism, GCN teacher, GraphAKD, statistical parity; minutes on two cores",
        datasets=("recidivism-3000",),
        teachers=("gcn",),
        frameworks=("akd",),
        objectives=("sp",),
        alphas=(10.0, 1000.0),
        teacher={"epochs": 300},
        distillation={"akd": {"epochs": 300, "lr": 5e-3, "alpha": 100.0}},
    ),
    "recidivism-3000-cpf": Profile(
        description="the same nodes with CPF, by both protocols, three seeds; minutes on two cores",
        datasets=("recidivism-3000",),
        teachers=("gcn",),
        frameworks=("cpf",),
        objectives=("sp",),
        protocols=("leakage-free", "official"),
        seeds=(0, 1, 2),
        teacher={"epochs": 300},
        distillation={"cpf": {"epochs": 300}},
    ),
    "h100": Profile(
        description="Recidivism and Credit (recomputed graph), both teachers, frameworks and objectives; one GPU",
        datasets=("recidivism", "credit-recomputed"),
    ),
    "recidivism": replace(
        _PAPER, description="the paper's experiments on Recidivism", datasets=("recidivism",)
    ),
    "credit": replace(
        _PAPER,
        description="the paper's experiments on Credit, with the authors' edge file",
        datasets=("credit",),
    ),
    "credit-recomputed": replace(
        _PAPER, description="the same on the graph of the published rule", datasets=("credit-recomputed",)
    ),
    "dblp": replace(_PAPER, description="the paper's experiments on DBLP", datasets=("dblp",)),
    "dblp-l": replace(_PAPER, description="the paper's experiments on DBLP-L", datasets=("dblp-l",)),
    "recidivism-alpha": replace(
        _PAPER,
        description="strength of the bias term on Recidivism, from 0 to 1000",
        datasets=("recidivism",),
        protocols=("leakage-free",),
        methods=("Vanilla",),
        alphas=(1.0, 10.0, 100.0, 1000.0),
    ),
}
