"""Sparse 3-D convolutions (Graham et al., 2018) with two back ends that share their weights.

In plain torch a convolution is one gather by a table and one matrix product. The gradient is gathered in the same way
with the transposed table, so that nothing is scattered and results do not depend on the order of threads.

The other back end is spconv.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, field, replace
from functools import lru_cache
from importlib.util import find_spec
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from tenfold.cmt.config import SparseBackend
from tenfold.cmt.sparse_rules import Geometry, Triple, build_rules, linear_places
from tenfold.shared.logging import TenfoldError

Backend = Literal["torch", "spconv"]

_CACHED = 2**18
"""Elements of a gathered matrix that stay in a CPU's cache until they are multiplied."""
_AFFORDED = 2**26
"""Elements of a gathered matrix that a GPU has memory for."""


@dataclass(frozen=True)
class SparseMap:
    """Features of occupied voxels."""

    features: Tensor
    """[N, C]."""
    coordinates: Tensor
    """[N, 4]: sample, z, y, x; int32, no two alike."""
    spatial_shape: Triple
    batch_size: int
    backend: Backend = "torch"
    tables: dict[str, Any] = field(default_factory=dict)
    """By the key of convolutions: :class:`tenfold.cmt.sparse_rules.Rules`, or the pairs of spconv."""

    def with_features(self, features: Tensor) -> SparseMap:
        """The same voxels with other features."""
        return replace(self, features=features)

    def dense(self) -> Tensor:
        """[B, C, Z, Y, X], zero where there is no voxel."""
        cells = self.features.new_zeros(
            self.batch_size * math.prod(self.spatial_shape), self.features.shape[1]
        )
        cells = cells.index_copy(0, linear_places(self.coordinates.long(), self.spatial_shape), self.features)
        return cells.view(self.batch_size, *self.spatial_shape, -1).permute(0, 4, 1, 2, 3)


class SparseConvolution(nn.Module):
    """A convolution without bias. Its weight is laid out (out, kz, ky, kx, in).

    It computes in the type of its weight, whatever autocast says.

    Args:
        in_channels: width of the input.
        out_channels: width of the output.
        geometry: where the kernel lies.
        key: convolutions of one network that share it have the same geometry and input voxels.
    """

    def __init__(self, in_channels: int, out_channels: int, geometry: Geometry, key: str) -> None:
        super().__init__()
        self.geometry = geometry
        self.key = key
        self.weight = nn.Parameter(torch.empty(out_channels, *geometry.kernel, in_channels))
        nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5))

    def forward(self, voxels: SparseMap) -> SparseMap:
        with torch.autocast(self.weight.device.type, enabled=False):
            voxels = voxels.with_features(voxels.features.to(self.weight.dtype))
            if voxels.backend == "spconv":
                return self._with_spconv(voxels)
            return self._with_torch(voxels)

    def _with_torch(self, voxels: SparseMap) -> SparseMap:
        rules = voxels.tables.get(self.key)
        if rules is None:
            rules = build_rules(voxels.coordinates, voxels.spatial_shape, self.geometry)
            voxels.tables[self.key] = rules
        features = _GatheredProduct.apply(voxels.features, self.weight, rules.gather, rules.transposed)
        return replace(
            voxels,
            features=features,
            coordinates=voxels.coordinates if rules.coordinates is None else rules.coordinates,
            spatial_shape=self.geometry.output_shape(voxels.spatial_shape),
        )

    def _with_spconv(self, voxels: SparseMap) -> SparseMap:
        spconv = _import_spconv()
        tensor = spconv.SparseConvTensor(
            voxels.features,
            voxels.coordinates.int(),
            list(voxels.spatial_shape),
            voxels.batch_size,
            indice_dict=voxels.tables,
        )
        out, *_, width = self.weight.shape
        engine = _spconv_engine(width, out, self.geometry, self.key, voxels.features.device.type)
        # Outside of training spconv has no gradients, which frozen weights pass on all the same.
        result = engine._conv_forward(torch.is_grad_enabled(), tensor, self.weight, None)
        voxels.tables.update(result.indice_dict)
        return replace(
            voxels,
            features=result.features,
            coordinates=result.indices,
            spatial_shape=tuple(result.spatial_shape),
        )


class _GatheredProduct(torch.autograd.Function):
    """``y_o = sum_k W_k x_{gather(o, k)}``, part by part: rows are gathered, multiplied and forgotten."""

    @staticmethod
    def forward(ctx: Any, features: Tensor, weight: Tensor, gather: Tensor, spread: Tensor) -> Tensor:
        ctx.save_for_backward(features, weight, spread)
        kernel = weight.flatten(1).t()
        padded = _with_none(features)
        result = features.new_empty(len(gather), len(weight))
        tables = _parts(gather, features.shape[1])
        for table, rows in zip(tables, result.split(len(tables[0])), strict=True):
            torch.mm(_gathered(padded, table), kernel, out=rows)
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        """Output gradients are gathered once, for the gradients of the input and of the weight."""
        features, weight, spread = ctx.saved_tensors
        wants_input, wants_weight, *_ = ctx.needs_input_grad
        out, width = weight.shape[0], weight.shape[-1]
        kernel = weight.reshape(out, -1, width).transpose(0, 1).reshape(-1, width)  # [K * out, in]
        input_gradient = torch.empty_like(features) if wants_input else None
        weight_gradient = weight.new_zeros(width, len(kernel))
        padded = _with_none(gradient.to(weight.dtype))
        tables = _parts(spread, out)
        starts = itertools.accumulate((len(table) for table in tables), initial=0)
        with torch.autocast(gradient.device.type, enabled=False):
            for start, table in zip(starts, tables, strict=False):
                part = slice(start, start + len(table))
                columns = _gathered(padded, table)
                if input_gradient is not None:
                    torch.mm(columns, kernel, out=input_gradient[part])
                if wants_weight:
                    weight_gradient.addmm_(features[part].t(), columns)
        by_place = weight_gradient.view(width, -1, out).permute(2, 1, 0)  # [out, K, in]
        return input_gradient, by_place.reshape(weight.shape) if wants_weight else None, None, None


def _with_none(features: Tensor) -> Tensor:
    """A row of zeros before the others."""
    return nn.functional.pad(features, (0, 0, 1, 0))


def _parts(table: Tensor, width: int) -> tuple[Tensor, ...]:
    """Rows of a table whose gathered features are few enough."""
    most = _CACHED if table.device.type == "cpu" else _AFFORDED
    return torch.split(table, max(1, most // (table.shape[1] * width)))


def _gathered(padded: Tensor, table: Tensor) -> Tensor:
    """[N, K * C] from [1 + M, C] and [N, K]."""
    return padded.index_select(0, table.flatten()).view(len(table), table.shape[1] * padded.shape[1])


def resolve_backend(name: SparseBackend, device: torch.device) -> Backend:
    """The back end that a name stands for on a device.

    Raises:
        TenfoldError: spconv is asked for by name and is not installed, or not for this device.
    """
    if name == "torch" or (name == "auto" and (device.type != "cuda" or not _spconv_runs_on(device))):
        return "torch"
    if find_spec("spconv") is None:
        raise TenfoldError("spconv is missing: pip install 'tenfold-cmt[spconv]', or take the back end torch")
    if not _spconv_runs_on(device):
        raise TenfoldError(
            "the installed spconv runs on CPUs alone: install its build for CUDA (such as spconv-cu126), "
            "or take the back end torch"
        )
    return "spconv"


@lru_cache(maxsize=8)
def _spconv_runs_on(device: torch.device) -> bool:
    if find_spec("spconv") is None:
        return False
    from spconv.cppconstants import CPU_ONLY_BUILD

    return device.type == "cpu" or not CPU_ONLY_BUILD


@lru_cache(maxsize=1)
def _import_spconv() -> Any:
    import spconv.pytorch as spconv

    if not torch.cuda.is_available():
        # The backward pass asks for the CUDA stream even on a CPU.
        spconv.ops.get_current_stream = lambda: 0
    return spconv


@lru_cache(maxsize=256)
def _spconv_engine(in_channels: int, out_channels: int, geometry: Geometry, key: str, device: str) -> Any:
    """The convolution of spconv, without weights of its own."""
    from spconv.core import ConvAlgo
    from spconv.pytorch.conv import SparseConvolutionBase

    return SparseConvolutionBase(
        3,
        in_channels,
        out_channels,
        geometry.kernel,
        geometry.stride,
        geometry.padding,
        bias=False,
        subm=geometry.submanifold,
        indice_key=key if geometry.submanifold else None,
        algo=ConvAlgo.Native if device == "cpu" else None,
    )
