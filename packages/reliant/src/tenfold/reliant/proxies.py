"""The learnable proxy of bias, RELIANT's two extra input features of a node."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from tenfold.shared.logging import TenfoldError

Placement = Literal["append", "replace-last"]


def student_input_dim(num_features: int, placement: Placement = "append", width: int = 2) -> int:
    """Input columns of a student.

    Args:
        num_features: d.
        placement: of :class:`BiasProxies`.
        width: columns of the proxies.

    Raises:
        TenfoldError: there are fewer features than are to be replaced.
    """
    if placement == "append":
        return num_features + width
    if num_features <= width:
        raise TenfoldError(f"{num_features} features are too few to replace {width}; append the proxies")
    return num_features


class BiasProxies(nn.Module):
    """P [N, width], drawn from U(0, 1), and how it joins the features.

    While a student learns and whenever it is used, every node gets the *mean* proxy, which tells nothing of its group.
    While the proxies learn, each node gets its own. They learn only where the bias term has a weight.

    Args:
        num_nodes: N.
        width: columns; 2 in the paper.
        placement: ``append`` adds columns, as the paper describes; ``replace-last`` overwrites the last features, as
            the authors' CPF code does.
        enabled: without proxies the columns are zero, so that a student has the same size either way.
    """

    def __init__(
        self, num_nodes: int, width: int = 2, placement: Placement = "append", enabled: bool = True
    ) -> None:
        super().__init__()
        self.placement = placement
        values = torch.rand(num_nodes, width)
        self.values = nn.Parameter(values if enabled else torch.zeros_like(values), requires_grad=enabled)

    def with_mean(self, features: Tensor) -> Tensor:
        """Features [n, d] with the mean proxy, without a gradient to P."""
        return self._join(features, self.values.detach().mean(dim=0).expand(len(features), -1))

    def with_own(self, features: Tensor, nodes: Tensor | None) -> Tensor:
        """Features [n, d] with the proxies of their nodes (all nodes where None)."""
        return self._join(features, self.values if nodes is None else self.values[nodes])

    def _join(self, features: Tensor, proxies: Tensor) -> Tensor:
        kept = features if self.placement == "append" else features[:, : -proxies.shape[1]]
        return torch.cat([kept, proxies], dim=1)
