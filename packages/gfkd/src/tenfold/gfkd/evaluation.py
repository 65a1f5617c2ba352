"""Accuracy on a test split, and how often a student agrees with its teacher."""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics.functional.classification import multiclass_accuracy

from tenfold.gfkd.backends import Backend
from tenfold.gfkd.graphs import GraphSet, batches
from tenfold.gfkd.models import GraphClassifier


@torch.no_grad()
def predict(model: GraphClassifier, graphs: GraphSet, backend: Backend = "pyg", batch_size: int = 256) -> Tensor:
    """Logits [G, C] of a model in eval mode; its mode is put back afterwards. On the device of ``graphs``."""
    was_training = model.training
    model.eval()
    parts = [graphs.select(indices) for indices in batches(graphs, batch_size)]
    logits = torch.cat([model(part.features(), part.topology(backend)) for part in parts])
    model.train(was_training)
    return logits


def accuracy(logits: Tensor, labels: Tensor) -> float:
    """Percent of graphs whose largest logit [G, C] is that of their label [G]."""
    return 100 * float(multiclass_accuracy(logits, labels, num_classes=logits.shape[1], average="micro"))


def agreement(student_logits: Tensor, teacher_logits: Tensor) -> float:
    """Percent of graphs to which both networks give the same class."""
    return accuracy(student_logits, teacher_logits.argmax(dim=1))
