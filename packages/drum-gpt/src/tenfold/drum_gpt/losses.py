"""What fine-tuning minimises, and what it is judged by."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import cross_entropy


def token_losses(logits: Tensor, tokens: Tensor) -> Tensor:
    """-log p of every token given those before it, [B, T]; 0 for the first.

    Args:
        logits: [B, T, V], of the token after each.
        tokens: [B, T].
    """
    losses = cross_entropy(logits[:, :-1].flatten(0, 1).float(), tokens[:, 1:].flatten(), reduction="none")
    found = logits.new_zeros(tokens.shape, dtype=losses.dtype)
    found[:, 1:] = losses.view(len(tokens), -1)
    return found


def weighted_loss(logits: Tensor, tokens: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """sum_t w_t (-log p_t) and sum_t w_t; their ratio is the loss.

    Args:
        logits: [B, T, V].
        tokens: [B, T].
        weights: [B, T]; the prompt's are small, those of padding 0.
    """
    return (token_losses(logits, tokens) * weights).sum(), weights.sum()
