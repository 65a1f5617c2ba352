"""Every hyperparameter of a training."""

from __future__ import annotations

from dataclasses import dataclass

from tenfold.shared.logging import TenfoldError


@dataclass(frozen=True)
class TrainingConfig:
    """One network and its training. The defaults are those of a student."""

    hidden_dim: int = 32
    """Units in each of the two hidden layers."""
    dropout: float = 0.0
    """Share of hidden units that a training step leaves out."""
    epochs: int = 200
    """Passes over the training images."""
    batch_size: int = 25
    """Images in a batch, on all devices together."""
    lr: float = 0.003
    """Learning rate of Adam."""
    temperature: float = 8.0
    """T of the softened answers; unused when training on labels."""
    label_weight: float = 0.1
    """Weight of the labels beside the teacher's answers, 0 to 1; unused when training on labels."""

    def __post_init__(self) -> None:
        if min(self.hidden_dim, self.epochs, self.batch_size) < 1:
            raise TenfoldError("hidden units, epochs and batch size are at least 1")
        if not (self.lr > 0 and self.temperature > 0):
            raise TenfoldError("the learning rate and the temperature are above 0")
        if not (0 <= self.dropout < 1 and 0 <= self.label_weight <= 1):
            raise TenfoldError("dropout is from 0 to below 1, the weight of the labels from 0 to 1")
