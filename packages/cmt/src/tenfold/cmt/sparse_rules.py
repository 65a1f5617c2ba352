"""Which rows meet in a sparse 3-D convolution (Graham et al., 2018): tables for one convolution or a whole network.

A table says which input row lies under each place of the kernel of each output row. Tables depend on coordinates alone:
a :class:`SparsePlan` holds those of a whole network and is made where data are loaded, so that no step on a GPU waits
for a size.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

Triple = tuple[int, int, int]
"""Along z, y, x."""


@dataclass(frozen=True)
class Geometry:
    """Where the kernel of a convolution lies."""

    kernel: Triple = (3, 3, 3)
    stride: Triple = (1, 1, 1)
    padding: Triple = (1, 1, 1)
    submanifold: bool = True
    """Outputs lie where inputs lie; otherwise wherever any input is reached."""

    def output_shape(self, shape: Triple) -> Triple:
        """Size of the output's grid for an input's."""
        z, y, x = (
            (shape[axis] + 2 * self.padding[axis] - self.kernel[axis]) // self.stride[axis] + 1
            for axis in range(3)
        )
        return z, y, x


@dataclass(frozen=True)
class Rules:
    """Which rows meet in a convolution. Rows count from 1; 0 is none."""

    gather: Tensor
    """[N_out, K]: row of the input under each place of the kernel; int32."""
    spread: Tensor | None
    """[N_in, K]: row of the output that meets the input there; None if submanifold: ``gather`` from the end."""
    coordinates: Tensor | None
    """[N_out, 4]: sample, z, y, x of the output; int32. None if submanifold: those of the input."""

    @cached_property
    def transposed(self) -> Tensor:
        """``spread``, whether or not it is held."""
        return self.gather.flip(1) if self.spread is None else self.spread


@dataclass(frozen=True)
class SparsePlan:
    """Rules of all convolutions of a network for some voxels."""

    rules: dict[str, Rules]
    """By the convolution's key."""

    @classmethod
    def make(cls, coordinates: Tensor, shape: Triple, convolutions: Mapping[str, Geometry]) -> SparsePlan:
        """Work out the rules of convolutions that follow one another.

        Args:
            coordinates: sample, z, y, x of the first input, [N, 4], no two alike.
            shape: of the first input's grid.
            convolutions: geometries by key.
        """
        rules = {}
        for key, geometry in convolutions.items():
            made = build_rules(coordinates, shape, geometry)
            rules[key] = made
            shape = geometry.output_shape(shape)
            coordinates = coordinates if made.coordinates is None else made.coordinates
        return cls(rules)

    @classmethod
    def join(cls, plans: Sequence[SparsePlan]) -> SparsePlan:
        """The plan of a batch from the plans of its samples, in their order."""
        return cls({key: _join_rules([plan.rules[key] for plan in plans]) for key in plans[0].rules})

    def to(self, device: torch.device) -> SparsePlan:
        """The same on a device, copied without waiting."""
        return self._each(lambda table: table.to(device, non_blocking=True))

    def pin_memory(self) -> SparsePlan:
        """The same in page-locked memory."""
        return self._each(lambda table: table.pin_memory())

    def _each(self, change: Callable[[Tensor], Tensor]) -> SparsePlan:
        def changed(table: Tensor | None) -> Tensor | None:
            return None if table is None else change(table)

        parts = self.rules.items()
        return SparsePlan(
            {
                key: Rules(change(one.gather), changed(one.spread), changed(one.coordinates))
                for key, one in parts
            }
        )


def build_rules(coordinates: Tensor, shape: Triple, geometry: Geometry) -> Rules:
    """Rules of a convolution.

    Args:
        coordinates: sample, z, y, x of the input, [N, 4], no two alike.
        shape: of the input's grid.
        geometry: of the convolution.

    Returns:
        Outputs are those of the input in its order if submanifold, else sorted by sample, z, y, x.
    """
    coordinates = coordinates.long()
    outputs = coordinates if geometry.submanifold else _reached(coordinates, shape, geometry)
    gather = _rows_under_kernel(outputs, coordinates, shape, geometry)
    if geometry.submanifold:
        return Rules(gather, None, None)
    return Rules(gather, _transposed(gather, len(coordinates)), outputs.int())


def linear_places(coordinates: Tensor, shape: Triple) -> Tensor:
    """Place of [N, 4] coordinates in a flattened batch of grids, [N]."""
    sample, z, y, x = coordinates.unbind(dim=1)
    return ((sample * shape[0] + z) * shape[1] + y) * shape[2] + x


def _rows_under_kernel(outputs: Tensor, inputs: Tensor, shape: Triple, geometry: Geometry) -> Tensor:
    """[N_out, K] rows of the input, from 1, or 0: one search for every line of the kernel along x."""
    height, rows, columns = (shape[axis] + 2 * geometry.padding[axis] for axis in range(3))
    padded = (height, rows, columns)
    keys, order = linear_places(inputs + inputs.new_tensor((0, *geometry.padding)), padded).sort()
    keys = torch.cat((keys, keys.new_full((1,), torch.iinfo(keys.dtype).max)))
    numbers = torch.cat((order + 1, order.new_zeros(1))).int()
    corners = linear_places(outputs * outputs.new_tensor((1, *geometry.stride)), padded)
    depth, breadth, length = geometry.kernel
    lines = [(z * rows + y) * columns for z, y in itertools.product(range(depth), range(breadth))]
    wanted = corners[:, None] + corners.new_tensor(lines)
    place = torch.searchsorted(keys, wanted)
    found_rows = []
    for _ in range(length):
        found = keys[place] == wanted
        found_rows.append(numbers[place] * found)
        place, wanted = place + found, wanted + 1
    return torch.stack(found_rows, dim=-1).flatten(1)


def _reached(coordinates: Tensor, shape: Triple, geometry: Geometry) -> Tensor:
    """[N_out, 4] outputs whose kernel holds an input, sorted."""
    size = geometry.output_shape(shape)
    axes = []
    valid = []
    for axis in range(3):
        kernel, stride = geometry.kernel[axis], geometry.stride[axis]
        position = coordinates[:, axis + 1, None] + geometry.padding[axis]
        output = position // stride - torch.arange(-(-kernel // stride), device=coordinates.device)
        reaches = (position - output * stride < kernel) & (output >= 0) & (output < size[axis])
        view = [len(coordinates), 1, 1, 1]
        view[axis + 1] = output.shape[1]
        axes.append(output.view(view))
        valid.append(reaches.view(view))
    sample = coordinates[:, 0].view(-1, 1, 1, 1)
    keys = ((sample * size[0] + axes[0]) * size[1] + axes[1]) * size[2] + axes[2]
    keys = keys[valid[0] & valid[1] & valid[2]].unique()
    plane, x = keys // size[2], keys % size[2]
    return torch.stack((plane // (size[1] * size[0]), plane // size[1] % size[0], plane % size[1], x), dim=1)


def _transposed(gather: Tensor, inputs: int) -> Tensor:
    """[N_in, K] rows of the output, from 1, or 0."""
    output, place = gather.nonzero(as_tuple=True)
    spread = gather.new_zeros(inputs, gather.shape[1])
    spread[gather[output, place].long() - 1, place] = (output + 1).int()
    return spread


def _join_rules(parts: Sequence[Rules]) -> Rules:
    inputs = [len(part.gather if part.spread is None else part.spread) for part in parts]
    gather = _join_tables([part.gather for part in parts], inputs)
    spreads = [part.spread for part in parts if part.spread is not None]
    coordinates = [part.coordinates for part in parts if part.coordinates is not None]
    if not spreads:
        return Rules(gather, None, None)
    numbered = [nn.functional.pad(one[:, 1:], (1, 0), value=sample) for sample, one in enumerate(coordinates)]
    return Rules(gather, _join_tables(spreads, [len(part.gather) for part in parts]), torch.cat(numbered))


def _join_tables(tables: Sequence[Tensor], rows: Sequence[int]) -> Tensor:
    """Tables one below another, each counting on from the ``rows`` that those before it speak of."""
    starts = itertools.accumulate(rows, initial=0)
    return torch.cat(
        [torch.where(table > 0, table + start, 0) for table, start in zip(tables, starts, strict=False)]
    )
