"""Images turned by angles of their own."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample


def rotate_images(images: Tensor, degrees: Tensor) -> Tensor:
    """Turn each image counter-clockwise about its centre, nearest neighbour, black outside.

    Args:
        images: bytes [N, channels, S, S].
        degrees: [N], or one angle for all.

    Returns:
        Bytes of the same shape.
    """
    radians = torch.deg2rad(degrees.double()).expand(len(images))
    zero = torch.zeros_like(radians)
    rows = [radians.cos(), -radians.sin(), zero, radians.sin(), radians.cos(), zero]
    theta = torch.stack(rows, dim=1).view(-1, 2, 3).float()
    turned = torch.empty_like(images)
    for part in torch.arange(len(images)).split(
        4096
    ):  # a grid of floats is eight times the size of its image
        grid = affine_grid(theta[part], list(images[part].shape), align_corners=False)
        turned[part] = grid_sample(
            images[part].float(), grid, mode="nearest", padding_mode="zeros", align_corners=False
        ).to(torch.uint8)
    return turned
