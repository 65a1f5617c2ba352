"""The sparse encoder of the LiDAR branch: voxels to a map in bird's-eye view."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn

from tenfold.cmt.config import POINT_FEATURES, LidarConfig
from tenfold.cmt.sparse_convolution import SparseConvolution, SparseMap, resolve_backend
from tenfold.cmt.sparse_rules import Geometry, SparsePlan, Triple
from tenfold.shared.logging import TenfoldError

_HALVING = Geometry(stride=(2, 2, 2), submanifold=False)
_CONVOLUTIONS = {
    "level1": Geometry(),
    "down1": _HALVING,
    "level2": Geometry(),
    "down2": _HALVING,
    "level3": Geometry(),
    "down3": Geometry(stride=(2, 2, 2), padding=(0, 1, 1), submanifold=False),
    "level4": Geometry(),
    "out": Geometry(kernel=(3, 1, 1), stride=(2, 1, 1), padding=(0, 0, 0), submanifold=False),
}
"""In the order of the network; convolutions of a level share one geometry."""


class SparseEncoder(nn.Module):
    """Residual sparse convolutions on four levels, each half as fine as the one before.

    It computes in float32, whatever autocast says, as the released code does.

    Args:
        lidar: widths, grid and back end.

    Raises:
        TenfoldError: widths do not fit together, or the grid is too flat.
    """

    def __init__(self, lidar: LidarConfig) -> None:
        super().__init__()
        stages = lidar.encoder_channels
        if len(stages) != 4 or any(before[1] != after[0] for before, after in pairwise(stages)):
            raise TenfoldError(
                "encoder_channels has four stages, each as wide as the last one's downsampling"
            )
        self.backend = lidar.backend
        self.spatial_shape = _spatial_shape(lidar)
        self.out_channels = lidar.encoder_out * _depth(self.spatial_shape)
        """Width of the map."""
        self.conv_input = ConvolutionUnit(POINT_FEATURES, stages[0][0], "level1")
        self.encoder_layers = nn.Sequential()
        for number, (width, wider) in enumerate(stages, start=1):
            layers: list[nn.Module] = [BasicBlock(width, f"level{number}") for _ in range(2)]
            if number < len(stages):
                layers.append(ConvolutionUnit(width, wider, f"down{number}"))
            self.encoder_layers.add_module(f"encoder_layer{number}", nn.Sequential(*layers))
        self.conv_out = ConvolutionUnit(stages[-1][0], lidar.encoder_out, "out")

    def forward(
        self, features: Tensor, coordinates: Tensor, batch_size: int, plan: SparsePlan | None = None
    ) -> Tensor:
        """Encode the voxels of a batch.

        Args:
            features: means of the voxels' points, [N, 5].
            coordinates: sample, z, y, x, [N, 4]; no two alike.
            batch_size: B.
            plan: of these voxels; without it the back end torch works the rules out here.

        Returns:
            [B, encoder_out * depth, Y/8, X/8]: the heights of the first channel, then those of the second, and so on.
        """
        # spconv fails on a GPU where there is no voxel at all.
        backend = resolve_backend(self.backend, features.device) if len(features) else "torch"
        tables = dict(plan.rules) if plan is not None and backend == "torch" else {}
        voxels = SparseMap(features, coordinates.int(), self.spatial_shape, batch_size, backend, tables)
        encoded: SparseMap = self.conv_out(self.encoder_layers(self.conv_input(voxels)))
        return encoded.dense().flatten(1, 2)


class ConvolutionUnit(nn.Sequential):
    """Convolution, batch norm and ReLU."""

    def __init__(self, in_channels: int, out_channels: int, key: str) -> None:
        super().__init__(
            SparseConvolution(in_channels, out_channels, _CONVOLUTIONS[key], key), VoxelNorm(out_channels)
        )

    def forward(self, voxels: SparseMap) -> SparseMap:
        convolved: SparseMap = self[0](voxels)
        return convolved.with_features(self[1](convolved.features).relu_())


class BasicBlock(nn.Module):
    """Two submanifold convolutions beside an identity."""

    def __init__(self, channels: int, key: str) -> None:
        super().__init__()
        geometry = _CONVOLUTIONS[key]
        self.conv1 = SparseConvolution(channels, channels, geometry, key)
        self.bn1 = VoxelNorm(channels)
        self.conv2 = SparseConvolution(channels, channels, geometry, key)
        self.bn2 = VoxelNorm(channels)

    def forward(self, voxels: SparseMap) -> SparseMap:
        hidden: SparseMap = self.conv1(voxels)
        hidden = self.conv2(hidden.with_features(self.bn1(hidden.features).relu_()))
        return hidden.with_features((self.bn2(hidden.features) + voxels.features).relu_())


class VoxelNorm(nn.BatchNorm1d):
    """Batch norm over voxels. A single one has no variance; it takes the running statistics."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, eps=1e-3, momentum=0.01)

    def forward(self, features: Tensor) -> Tensor:
        if len(features) > 1:
            return super().forward(features)
        return nn.functional.batch_norm(
            features, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps
        )


def plan_encoder(coordinates: Tensor, lidar: LidarConfig) -> SparsePlan | None:
    """Which voxels of one sample meet in the encoder's convolutions; for the process that loads data.

    Args:
        coordinates: z, y, x of the sample's voxels, [N, 3].
        lidar: grid and back end.

    Returns:
        None where spconv, which finds out itself, will be the back end on this machine.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if resolve_backend(lidar.backend, device) == "spconv":
        return None
    return SparsePlan.make(nn.functional.pad(coordinates, (1, 0)), _spatial_shape(lidar), _CONVOLUTIONS)


def _spatial_shape(lidar: LidarConfig) -> Triple:
    """The grid, one voxel higher than points reach, as in the released code."""
    x, y, z = lidar.grid
    return z + 1, y, x


def _depth(shape: Triple) -> int:
    for geometry in _CONVOLUTIONS.values():
        shape = geometry.output_shape(shape)
        if shape[0] < 1:
            raise TenfoldError(
                "the grid is too flat for the encoder: give it more voxels along z (24 at least)"
            )
    return shape[0]
