"""GFKD: graph-free knowledge distillation for graph neural networks.

Deng and Zhang, IJCAI 2021, https://arxiv.org/abs/2105.07519. A student network learns from a trained graph
classifier without any of its training graphs: fake graphs are optimised until the teacher is sure of them
and their batch-norm statistics are those it remembers; the student then imitates the teacher on them.
"""

from tenfold.gfkd.checkpoints import load_official_state_dict
from tenfold.gfkd.data import load_dataset, split_indices
from tenfold.gfkd.generation import GraphGenerator
from tenfold.gfkd.graphs import GraphSet
from tenfold.gfkd.losses import batch_norm_distance, distillation_loss, one_hot_entropy
from tenfold.gfkd.models import GraphClassifier, build_model

__all__ = [
    "GraphClassifier",
    "GraphGenerator",
    "GraphSet",
    "batch_norm_distance",
    "build_model",
    "distillation_loss",
    "load_dataset",
    "load_official_state_dict",
    "one_hot_entropy",
    "split_indices",
]
