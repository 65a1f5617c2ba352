"""Positions of tokens and queries in the LiDAR frame: the coordinates encoding module and the query generator.

A cell of the map is a point on the ground plane, a pixel is a ray of 64 points, a query is both: its own point, and the
rays of the pixels in which the cameras see it. Points on a ray are an affine function of its depths, so the first layer
over all 64 of them collapses into two small matrices, for direction and origin; the rays themselves are never stored.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

INVERSE_SIGMOID_EPS = 1e-5
DEPTH_EPS = 1e-6


def sinusoidal_embedding(points: Tensor, features: int) -> Tensor:
    """Sines and cosines of y, then of x.

    The frequencies are the released code's: its divisors lie between 1 and 3, not on a geometric scale.

    Args:
        points: [..., 2 or more], of which x and y are read, in [0, 1].
        features: F of each coordinate, even.

    Returns:
        [..., 2 F].
    """
    divisors = 2 * torch.arange(features // 2, device=points.device, dtype=points.dtype) / features + 1
    angles = points[..., :2].flip(-1)[..., None] * (2 * math.pi) / divisors
    return torch.stack((angles.sin(), angles.cos()), dim=-1).flatten(-3)


def map_cell_coordinates(rows: int, columns: int, like: Tensor | None = None) -> Tensor:
    """Middles of the cells of a map, row by row: [rows * columns, 2], x and y in [0, 1].

    Args:
        rows: along y.
        columns: along x.
        like: gives device and type.
    """
    like = torch.empty(0) if like is None else like
    y = (torch.arange(rows, device=like.device, dtype=like.dtype) + 0.5) / rows
    x = (torch.arange(columns, device=like.device, dtype=like.dtype) + 0.5) / columns
    return torch.stack((x.expand(rows, columns), y[:, None].expand(rows, columns)), dim=-1).flatten(0, 1)


def pixel_coordinates(size: tuple[int, int], image_size: tuple[int, int], like: Tensor) -> Tensor:
    """Corners of the pixels of a feature map in the image: [h, w, 2], u and v in pixels of the image.

    Args:
        size: (h, w) of the feature map.
        image_size: (H, W) of the image.
        like: gives device and type.
    """
    (height, width), (image_height, image_width) = size, image_size
    v = torch.arange(height, device=like.device, dtype=like.dtype) * image_height / height
    u = torch.arange(width, device=like.device, dtype=like.dtype) * image_width / width
    return torch.stack((u.expand(height, width), v[:, None].expand(height, width)), dim=-1)


def inverse_sigmoid(values: Tensor, eps: float = INVERSE_SIGMOID_EPS) -> Tensor:
    """Logits of probabilities, which are clamped to [eps, 1 - eps] on each side of the fraction."""
    values = values.clamp(0, 1)
    return torch.log(values.clamp(min=eps) / (1 - values).clamp(min=eps))


@lru_cache(maxsize=16)
def _map_sinusoid(rows: int, columns: int, features: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    with torch.inference_mode(mode=False):  # kept for training, wherever it was first asked for
        like = torch.empty(0, device=device, dtype=dtype)
        return sinusoidal_embedding(map_cell_coordinates(rows, columns, like), features)


class MapEncoding(nn.Sequential):
    """Linear - ReLU - Linear over the sinusoid of x and y; shared by map cells and queries.

    Args:
        hidden: width D of tokens.
    """

    def __init__(self, hidden: int) -> None:
        super().__init__(nn.Linear(2 * hidden, hidden), nn.ReLU(inplace=True), nn.Linear(hidden, hidden))
        self.hidden = hidden
        self._kept: tuple[tuple[object, ...], Tensor] | None = None

    def of_points(self, points: Tensor) -> Tensor:
        """[..., D] of points [..., 2 or more] in [0, 1]."""
        encoded: Tensor = self(sinusoidal_embedding(points, self.hidden))
        return encoded

    def of_map(self, rows: int, columns: int) -> Tensor:
        """[rows * columns, D], row by row. Outside of training it is computed once for given weights."""
        weight = cast(nn.Linear, self[0]).weight
        sinusoid = _map_sinusoid(rows, columns, self.hidden, weight.device, weight.dtype)
        if self.training or torch.is_grad_enabled():
            self._kept = None
            encoded: Tensor = self(sinusoid)
            return encoded
        versions = () if weight.is_inference() else tuple(one._version for one in self.parameters())
        key = (rows, columns, weight.device, weight.dtype, weight.data_ptr(), *versions)
        if self._kept is None or self._kept[0] != key:
            self._kept = (key, self(sinusoid))
        return self._kept[1]


class RayEncoding(nn.Sequential):
    """Linear - ReLU - Linear over the points of a pixel's ray; shared by image tokens and queries.

    Args:
        hidden: width D of tokens.
        depths: K points of a ray, evenly from 1 metre on.
        point_range: least x, y, z and greatest x, y, z, by which points are normalised.
    """

    depths: Tensor
    low: Tensor
    extent: Tensor

    def __init__(self, hidden: int, depths: int, point_range: tuple[float, ...]) -> None:
        super().__init__(
            nn.Linear(3 * depths, 4 * hidden), nn.ReLU(inplace=True), nn.Linear(4 * hidden, hidden)
        )
        step = (point_range[3] - 1) / depths
        low, high = torch.tensor(point_range, dtype=torch.float32).chunk(2)
        self.register_buffer("depths", 1 + step * torch.arange(depths), persistent=False)
        self.register_buffer("low", low, persistent=False)
        self.register_buffer("extent", high - low, persistent=False)

    def of_image(self, size: tuple[int, int], image_size: tuple[int, int], image2lidar: Tensor) -> Tensor:
        """Positions of image tokens.

        Args:
            size: (h, w) of the feature map.
            image_size: (H, W) in pixels.
            image2lidar: [..., 4, 4], in double precision.

        Returns:
            [..., h, w, D].
        """
        pixels = pixel_coordinates(size, image_size, self.depths)
        rays = F.pad(pixels, (0, 1), value=1.0)
        # Rays are affine in u and v, so the first layer is applied to the camera's columns instead of to each pixel.
        along, offset = self._camera_layer(image2lidar)
        with full_precision():
            hidden = (rays.flatten(0, 1) @ along).unflatten(-2, size) + offset[..., None, None, :]
        encoded: Tensor = self[2](hidden.relu_())
        return encoded

    def of_points(
        self, points: Tensor, lidar2image: Tensor, image2lidar: Tensor, image_size: tuple[int, int]
    ) -> Tensor:
        """Positions of the pixels in which cameras see points, summed over cameras; 0 where none does.

        No gradient flows through the division by depth, as in the released code.

        Args:
            points: [B, Q, 3] in metres.
            lidar2image: [B, V, 4, 4].
            image2lidar: its inverse, in double precision.
            image_size: (H, W) in pixels.

        Returns:
            [B, Q, D].
        """
        with full_precision():
            homogeneous = torch.einsum("bvij,bqj->bvqi", lidar2image[..., :3, :3], points)
        homogeneous = homogeneous + lidar2image[..., None, :3, 3]
        depth = homogeneous[..., 2:].detach()
        in_front = depth > 0
        rays = homogeneous / torch.where(in_front, depth + DEPTH_EPS, depth - DEPTH_EPS)
        u, v = rays[..., 0], rays[..., 1]
        height, width = image_size
        visible = in_front[..., 0] & (u >= 0) & (u < width) & (v >= 0) & (v < height)
        along, offset = self._camera_layer(image2lidar)
        with full_precision():
            hidden = rays @ along + offset[..., None, :]
        hidden = torch.where(visible[..., None], hidden, 0).relu()
        # The last layer is linear: one row for a query instead of one for each camera that sees it.
        last = cast(nn.Linear, self[2])
        summed = F.linear(hidden.sum(1), last.weight)
        return summed + visible.sum(1)[..., None] * last.bias

    def _camera_layer(self, image2lidar: Tensor) -> tuple[Tensor, Tensor]:
        """The first layer of homogeneous pixels (u, v, 1): a matrix [..., 3, 4 D] and an offset [..., 4 D].

        The point of a pixel at depth d is ``d * (columns 0 to 2 of image2lidar) (u, v, 1) + column 3``. Sums over all
        depths are taken in double precision.
        """
        first = cast(nn.Linear, self[0])
        weight = first.weight.double().unflatten(1, (len(self.depths), 3)) / self.extent
        of_direction = torch.einsum("okc,k->co", weight, self.depths.double())
        along = image2lidar[..., :3, :3].transpose(-1, -2) @ of_direction
        origin = image2lidar[..., :3, 3] - self.low
        offset = origin @ weight.sum(1).T + first.bias
        return along.to(self.depths.dtype), offset.to(self.depths.dtype)


@contextmanager
def full_precision() -> Iterator[None]:
    """No TF32: ten bits are too few for places in an image of 1600 pixels."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def inverse(matrices: Tensor) -> Tensor:
    """Inverses of [..., 4, 4], in double precision; whether there is one is not waited for."""
    inverted: Tensor = torch.linalg.inv_ex(matrices.double())[0]
    return inverted
