"""The experiment suites, as data."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from tenfold.gfkd.backends import Backend
from tenfold.gfkd.config import GenerationConfig, TrainingConfig

Method = Literal["RandG", "DeepInvG", "GFKD", "KD", "Labels"]


@dataclass(frozen=True)
class Profile:
    """An experiment suite: data sets × teacher/student pairs × methods × seeds."""

    description: str
    """One line for the list of profiles."""
    datasets: tuple[str, ...]
    """Names of :data:`tenfold.gfkd.data.DATASETS`."""
    pairs: tuple[tuple[str, str], ...]
    """(teacher, student) networks."""
    recipe: str
    """Names the hyperparameters in the setting of a result ("gcn5_64-gcn3_32 <recipe>")."""
    teacher: TrainingConfig
    student: TrainingConfig
    generation: GenerationConfig
    """Node range, feature kind and structure lr are replaced by those of each data set."""
    methods: tuple[Method, ...] = ("Labels", "KD", "RandG", "DeepInvG", "GFKD")
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    """Seeds of the generated graphs; also the first student of each."""
    students_per_seed: int = 1
    """Students trained on each set of fake graphs, and on the real ones."""
    ablations: tuple[tuple[str, dict[str, float | int]], ...] = ()
    """Further variants of GFKD: (name of the method, replaced generation fields)."""
    backend: Backend = "pyg"
    """Message passing on real graphs and for students; generation is always dense."""
    split_seed: int = 29
    """Seed of the 70 / 30 split of each data set."""

    def all_methods(self) -> tuple[str, ...]:
        """The methods and the ablations, by name."""
        return self.methods + tuple(name for name, _ in self.ablations)

    def only(self, methods: tuple[str, ...]) -> Profile:
        """The same with some of the methods and ablations."""
        return replace(
            self,
            methods=tuple(method for method in self.methods if method in methods),
            ablations=tuple(ablation for ablation in self.ablations if ablation[0] in methods),
        )


_BIO = ("mutag", "ptc", "proteins")
_SOCIAL = ("imdb-b", "collab", "reddit-b")
_GCN_PAIRS = (("gcn5_64", "gcn5_32"), ("gcn5_64", "gcn3_64"), ("gcn5_64", "gcn3_32"))
_GIN_PAIRS = (("gin5_64", "gin5_32"), ("gin5_64", "gin3_64"), ("gin5_64", "gin3_32"))
_CROSS_PAIRS = (("gcn5_64", "gin3_32"), ("gin5_64", "gcn3_32"))
_ABLATIONS: tuple[tuple[str, dict[str, float | int]], ...] = (
    ("GFKD without R_bn", {"bn_weight": 0.0}),
    ("GFKD without R_oh", {"onehot_weight": 0.0}),
    ("GFKD without both", {"bn_weight": 0.0, "onehot_weight": 0.0}),
)

_RELEASED = Profile(
    description="MUTAG by the released script: 1500 iterations, students GCN-3-32 and GIN-3-32",
    datasets=("mutag",),
    pairs=(("gcn5_64", "gcn3_32"), ("gcn5_64", "gin3_32")),
    recipe="released",
    teacher=TrainingConfig(epochs=300, shuffle=True),
    student=TrainingConfig(epochs=300),
    generation=GenerationConfig(iterations=1500, lr_decay_every=700),
    students_per_seed=5,
)
_PAPER = Profile(
    description="",
    datasets=_BIO,
    pairs=_GCN_PAIRS + _GIN_PAIRS + _CROSS_PAIRS,
    recipe="paper",
    teacher=TrainingConfig(epochs=400, shuffle=True),
    student=TrainingConfig(epochs=400),
    generation=GenerationConfig(iterations=2500, lr_decay_every=1000),
    students_per_seed=5,
)

PROFILES: dict[str, Profile] = {
    "smoke": replace(
        _RELEASED,
        description="seconds: every step of the suite on MUTAG, far too short to learn from",
        pairs=(("gcn3_32", "gcn2_32"),),
        recipe="smoke",
        teacher=TrainingConfig(epochs=3, shuffle=True),
        student=TrainingConfig(epochs=3),
        generation=GenerationConfig(num_graphs=12, iterations=6, lr_decay_every=3),
        seeds=(0, 1),
        students_per_seed=1,
    ),
    "quick": replace(
        _RELEASED,
        description="MUTAG by the released script, GCN-5-64 to GCN-3-32, three seeds; minutes on two cores",
        pairs=(("gcn5_64", "gcn3_32"),),
        seeds=(0, 1, 2),
        students_per_seed=2,
    ),
    "h100": replace(
        _PAPER,
        description="MUTAG, PTC, PROTEINS and IMDB-B, GCN and GIN teachers, five seeds in one batch; one GPU",
        datasets=("mutag", "ptc", "proteins", "imdb-b"),
        pairs=(
            ("gcn5_64", "gcn3_32"),
            ("gcn5_64", "gin3_32"),
            ("gin5_64", "gcn3_32"),
            ("gin5_64", "gin3_32"),
        ),
        students_per_seed=1,
    ),
    "mutag-released": _RELEASED,
    **{
        dataset: replace(_PAPER, description=f"the paper's experiment on {dataset}", datasets=(dataset,))
        for dataset in _BIO + _SOCIAL
    },
    "gfkd-bio": replace(_PAPER, description="the paper's experiments on MUTAG, PTC and PROTEINS"),
    "gfkd-social": replace(
        _PAPER, description="the paper's experiments on IMDB-B, COLLAB and REDDIT-B", datasets=_SOCIAL
    ),
    "mutag-ablation": replace(
        _PAPER,
        description="the paper's ablation (Fig. 3): without R_bn, without R_oh, without both",
        datasets=("mutag",),
        pairs=(("gcn5_64", "gcn3_32"),),
        methods=("GFKD",),
        ablations=_ABLATIONS,
    ),
    "mutag-graph-count": replace(
        _PAPER,
        description="accuracy over the number of fake graphs (Fig. 5)",
        datasets=("mutag",),
        pairs=(("gcn5_64", "gcn3_32"),),
        methods=(),
        ablations=tuple((f"GFKD {count} graphs", {"num_graphs": count}) for count in (16, 32, 64, 131, 262)),
    ),
}
