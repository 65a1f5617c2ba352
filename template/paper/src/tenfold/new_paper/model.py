"""The networks: two hidden layers of rectified linear units, wide for the teacher and narrow for the student."""

from __future__ import annotations

from torch import Tensor, nn


class DigitClassifier(nn.Module):
    """Multilayer perceptron for 8 × 8 images (section 3 of the paper).

    Args:
        hidden_dim: units in each hidden layer.
        dropout: share of hidden units that a training step leaves out.

    Shapes:
        images [B, 64] to logits [B, 10].
    """

    def __init__(self, hidden_dim: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.hidden_dim = hidden_dim
        self.layers = nn.Sequential(
            nn.Linear(64, hidden_dim),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(hidden_dim, hidden_dim),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(hidden_dim, 10),
        )

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.layers(images)
        return logits
