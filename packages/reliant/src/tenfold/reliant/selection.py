"""Which epoch's weights are kept, decided on the device."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


class BestEpoch:
    """A copy of the tensors of the epoch with the highest score; nothing is copied to the host.

    Args:
        tensors: by name; read whenever an epoch is offered.
        patience: epochs without a better one after which later epochs no longer count; None for no limit.
        newer_wins: whether an equal score counts as better.
    """

    def __init__(self, tensors: Mapping[str, Tensor], patience: int | None, newer_wins: bool) -> None:
        self._tensors = tensors
        self._patience, self._newer_wins = patience, newer_wins
        device = next(iter(tensors.values())).device
        self.score = torch.tensor(-torch.inf, device=device)
        self.epoch = torch.tensor(-1, device=device)
        self.copies = {name: value.detach().clone() for name, value in tensors.items()}

    def offer(self, epoch: int, score: Tensor) -> None:
        """Keep the tensors as they are now if this epoch is the best so far."""
        better = score >= self.score if self._newer_wins else score > self.score
        if self._patience is not None:
            better = better & (epoch - self.epoch <= self._patience)
        self.score = torch.where(better, score, self.score)
        self.epoch = torch.where(better, epoch, self.epoch)
        for name, kept in self.copies.items():
            kept.copy_(torch.where(better, self._tensors[name].detach(), kept))

    def is_over(self, epoch: int) -> bool:
        """Whether patience has run out at this epoch; waits for the device."""
        return self._patience is not None and epoch - int(self.epoch) > self._patience

    def state_dict(self) -> dict[str, Any]:
        return {"score": self.score, "epoch": self.epoch, "copies": self.copies}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.score.copy_(state["score"])
        self.epoch.copy_(state["epoch"])
        for name, value in state["copies"].items():
            self.copies[name].copy_(value)
