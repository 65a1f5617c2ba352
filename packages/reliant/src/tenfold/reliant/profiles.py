"""The experiment suites, as data."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from tenfold.reliant.backends import Backend
from tenfold.reliant.bias import Objective
from tenfold.reliant.config import FRAMEWORKS, DistillationConfig, Framework, Protocol, TeacherConfig
from tenfold.reliant.teachers import TeacherKind

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
        return self.methods + tuple(map(_at_strength, self.alphas))

    def only(self, methods: tuple[str, ...]) -> Profile:
        """The same with some of the methods and of the sweep's strengths."""
        return replace(
            self,
            methods=tuple(method for method in self.methods if method in methods),
            alphas=tuple(alpha for alpha in self.alphas if _at_strength(alpha) in methods),
        )

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


def _at_strength(alpha: float) -> str:
    return f"RELIANT alpha={alpha:g}"


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
