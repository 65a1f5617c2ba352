"""Every hyperparameter, and the profiles as data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from tenfold.gfkd.backends import Backend
from tenfold.gfkd.structure import Estimator

Method = Literal["RandG", "DeepInvG", "GFKD", "KD", "Labels"]
FeatureKind = Literal["one-hot", "continuous", "degree"]


@dataclass(frozen=True)
class TrainingConfig:
    """Training of a classifier on graphs: a teacher on labels, a student on labels or on a teacher's logits."""

    epochs: int = 300
    """Passes over the graphs."""
    lr: float = 0.01
    """Learning rate of Adam at the start; it falls linearly to 0, epoch by epoch."""
    batch_size: int = 32
    """Graphs in a batch."""
    shuffle: bool = False
    """Draw a new order each epoch; the authors' student sees the fake graphs in a fixed order."""
    temperature: float = 2.0
    """T of the distillation loss; unused when training on labels."""


@dataclass(frozen=True)
class GenerationConfig:
    """Fake graphs and how they are optimised. The defaults are the paper's for MUTAG."""

    num_graphs: int | None = None
    """Fake graphs; by default as many as the training split holds."""
    min_nodes: int = 10
    """Fewest nodes of a fake graph (prior knowledge of the data)."""
    max_nodes: int = 29
    """Most nodes of a fake graph, inclusive."""
    features: FeatureKind = "one-hot"
    """one-hot: learned softmax features, made one-hot for the student; continuous: learned as they are;
    degree: the one-hot in-degree of the structure, nothing to learn."""
    iterations: int = 2500
    """Alternating steps on features and structure."""
    structure_lr: float = 1.0
    """Learning rate of Adam for the structure logits."""
    feature_lr: float = 0.01
    """Learning rate of Adam for the feature logits."""
    lr_decay: float = 0.1
    """Factor on both learning rates ..."""
    lr_decay_every: int = 1000
    """... each time this many iterations have passed."""
    bn_weight: float = 0.01
    """w_bn, weight of the batch-norm distance R_bn."""
    onehot_weight: float = 1e-6
    """w_oh, weight of the features' entropy R_oh."""
    estimator: Estimator = "arm"
    """Gradient of the structure logits; arm is the paper's."""
    keep: Literal["best-pair", "official"] = "best-pair"
    """Structure and features of the iteration with the lowest objective, or, as the authors' code does, its
    structure with the features of the last iteration."""
    undirected: bool = False
    """One edge variable per pair instead of one per ordered pair."""
    per_graph_bn: bool = False
    """Batch-norm distance of each graph by itself in the structure step, instead of one for all graphs."""
    graphs_per_batch: int | None = None
    """Optimise this many graphs at a time, each batch with statistics of its own; by default all together."""


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


_BIO = ("mutag", "ptc", "proteins")
_SOCIAL = ("imdb-b", "collab", "reddit-b")
_GCN_PAIRS = (("gcn5_64", "gcn5_32"), ("gcn5_64", "gcn3_64"), ("gcn5_64", "gcn3_32"))
_GIN_PAIRS = (("gin5_64", "gin5_32"), ("gin5_64", "gin3_64"), ("gin5_64", "gin3_32"))
_CROSS_PAIRS = (("gcn5_64", "gin3_32"), ("gin5_64", "gcn3_32"))

_TEACHER = TrainingConfig(epochs=300, shuffle=True)
_RELEASED_STUDENT = TrainingConfig(epochs=300)
_RELEASED_GENERATION = GenerationConfig(iterations=1500, lr_decay_every=700)
_PAPER_TEACHER = TrainingConfig(epochs=400, shuffle=True)
_PAPER_STUDENT = TrainingConfig(epochs=400)
_PAPER_GENERATION = GenerationConfig(iterations=2500, lr_decay_every=1000)


def _paper(description: str, datasets: tuple[str, ...], **fields: object) -> Profile:
    return Profile(  # type: ignore[arg-type]
        **{
            "description": description,
            "datasets": datasets,
            "pairs": _GCN_PAIRS + _GIN_PAIRS + _CROSS_PAIRS,
            "recipe": "paper",
            "teacher": _PAPER_TEACHER,
            "student": _PAPER_STUDENT,
            "generation": _PAPER_GENERATION,
            "students_per_seed": 5,
            **fields,
        }
    )
