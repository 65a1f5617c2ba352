"""Every hyperparameter."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from tenfold.gfkd.structure import Estimator
from tenfold.shared.logging import TenfoldError

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

    def __post_init__(self) -> None:
        if self.epochs < 1 or self.batch_size < 1 or self.temperature <= 0:
            raise TenfoldError("epochs and batch size must be at least 1, and the temperature above 0")


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

    def __post_init__(self) -> None:
        if not 1 <= self.min_nodes <= self.max_nodes:
            raise TenfoldError(
                f"fake graphs of {self.min_nodes} to {self.max_nodes} nodes cannot be made; "
                "min_nodes must be at least 1 and at most max_nodes"
            )
        counts = (self.num_graphs, self.graphs_per_batch, self.lr_decay_every)
        if any(count is not None and count < 1 for count in counts) or self.iterations < 0:
            raise TenfoldError(
                "num_graphs, graphs_per_batch and lr_decay_every must be at least 1, iterations at least 0"
            )
