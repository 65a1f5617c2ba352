"""What queries say: six outputs, with weights of their own after every decoder layer."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

OUTPUTS = {"center": 2, "height": 1, "dim": 3, "rot": 2, "vel": 2, "cls_logits": 10}
"""Sizes of the outputs."""
CLASS_BIAS = -2.19
"""First bias of class logits: a tenth of all queries at first."""
NORM_EPS = 1e-6


class _Scale(nn.Module):
    """Weight and bias of a layer norm for each decoder layer, one after another."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.bias = nn.Parameter(torch.zeros(size))


class TaskHead(nn.Module):
    """Convolution - layer norm - ReLU - convolution over queries, for all outputs and decoder layers at once.

    The weights are stored as the released ones: for each output a convolution in as many groups as there are decoder
    layers. They are stacked when they are used, and all outputs of all layers are two matrix products.

    Args:
        width: D of queries.
        layers: L of the decoder.
        channels: C inside.
        kernel: queries that a convolution sees.
    """

    def __init__(self, width: int, layers: int, channels: int = 64, kernel: int = 1) -> None:
        super().__init__()
        self.num_layers, self.channels, self.kernel = layers, channels, kernel
        for name, size in OUTPUTS.items():
            first = nn.Conv1d(layers * width, layers * channels, kernel, groups=layers, bias=False)
            last = nn.Conv1d(layers * channels, layers * size, kernel, groups=layers)
            stack = nn.ModuleDict({"0": first, "1": _Scale(layers * channels), "3": last})
            self.add_module(name, stack)
        nn.init.constant_(self.get_submodule("cls_logits.3").bias, CLASS_BIAS)  # type: ignore[arg-type]

    def forward(self, queries: Tensor) -> dict[str, Tensor]:
        """Raw outputs.

        Args:
            queries: [L, B, Q, D].

        Returns:
            By the names of :data:`OUTPUTS`, [L, B, Q, size].
        """
        layers, batch, count, _ = queries.shape
        first = self._stacked("0.weight").flatten(1, 2)  # [L, outputs * C, D, kernel]
        hidden = torch.einsum(
            "lnk,lok->lno", self._neighbours(queries).flatten(1, 2), first.transpose(2, 3).flatten(2)
        )
        hidden = F.layer_norm(
            hidden.unflatten(-1, (len(OUTPUTS), self.channels)), (self.channels,), eps=NORM_EPS
        )
        hidden = torch.addcmul(
            self._stacked("1.bias")[:, None], hidden, self._stacked("1.weight")[:, None]
        ).relu()
        # [L, outputs, B, Q, C], so that neighbours are neighbours again for the last convolution
        hidden = hidden.unflatten(1, (batch, count)).permute(0, 3, 1, 2, 4).flatten(0, 1)
        hidden = self._neighbours(hidden).flatten(1, 2)
        last = self._stacked("3.weight", max(OUTPUTS.values())).transpose(3, 4).flatten(3).flatten(0, 1)
        bias = self._stacked("3.bias", max(OUTPUTS.values())).flatten(0, 1)
        found = torch.baddbmm(bias[:, None], hidden, last.transpose(1, 2))
        found = found.unflatten(0, (layers, len(OUTPUTS))).unflatten(2, (batch, count))
        return {name: found[:, place, ..., :size] for place, (name, size) in enumerate(OUTPUTS.items())}

    def _neighbours(self, values: Tensor) -> Tensor:
        """Each query's values beside those of its neighbours, zeros beyond the ends: [N, B, Q, kernel * C]."""
        if self.kernel == 1:
            return values
        padded = F.pad(values, (0, 0, self.kernel // 2, self.kernel // 2))
        return padded.unfold(2, self.kernel, 1).transpose(3, 4).flatten(3)

    def _stacked(self, name: str, size: int | None = None) -> Tensor:
        """One parameter of all outputs, [L, outputs, rows, ...]; rows are filled up to ``size`` with zeros."""
        parameters = []
        for output in OUTPUTS:
            values: Tensor = self.get_parameter(f"{output}.{name}")
            values = values.unflatten(0, (self.num_layers, -1))
            if size is not None:
                padding = [0, 0] * (values.dim() - 2) + [0, size - values.shape[1]]
                values = F.pad(values, padding)
            parameters.append(values)
        return torch.stack(parameters, dim=1)
