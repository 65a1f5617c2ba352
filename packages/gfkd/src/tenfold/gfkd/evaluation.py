"""Accuracy on a test split, and how often a student agrees with its teacher."""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics.functional.classification import multiclass_accuracy

from tenfold.gfkd.backends import Backend, Topology
from tenfold.gfkd.graphs import GraphSet, batches
from tenfold.gfkd.models import GraphClassifier


def prepare(
    graphs: GraphSet, backend: Backend = "pyg", batch_size: int = 256
) -> list[tuple[Tensor, Topology]]:
    """Features and topology of every batch, for graphs that are predicted again and again."""
    parts = (graphs.select(indices) for indices in batches(graphs, batch_size))
    return [(part.features(), part.topology(backend)) for part in parts]


@torch.no_grad()
def predict_batches(model: GraphClassifier, prepared: list[tuple[Tensor, Topology]]) -> Tensor:
    """Logits [G, C] of a model in eval mode; its mode is put back afterwards."""
    was_training = model.training
    model.eval()
    logits = torch.cat([model(features, topology) for features, topology in prepared])
    model.train(was_training)
    return logits


def predict(model: GraphClassifier, graphs: GraphSet, backend: Backend = "pyg") -> Tensor:
    """Logits [G, C] of a model in eval mode, on the device of ``graphs``."""
    return predict_batches(model, prepare(graphs, backend))


def accuracy(logits: Tensor, labels: Tensor) -> float:
    """Percent of graphs whose largest logit [G, C] is that of their label [G]."""
    return 100 * float(multiclass_accuracy(logits, labels, num_classes=logits.shape[1], average="micro"))


def agreement(student_logits: Tensor, teacher_logits: Tensor) -> float:
    """Percent of graphs to which both networks give the same class."""
    return accuracy(student_logits, teacher_logits.argmax(dim=1))
