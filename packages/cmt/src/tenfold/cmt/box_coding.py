"""Boxes as the ten numbers that the network regresses, and back."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor


def encode_boxes(boxes: Tensor) -> Tensor:
    """Codes [..., 10] of boxes [..., 9]; the centre is metric, and in the middle of the height.

    A box of no size has codes of minus infinity, which the losses leave out.
    """
    x, y, bottom, length, width, height, yaw, vx, vy = boxes.unbind(-1)
    middle = bottom + height / 2
    columns = (x, y, length.log(), width.log(), middle, height.log(), yaw.sin(), yaw.cos(), vx, vy)
    return torch.stack(columns, dim=-1)


def decode_boxes(codes: Tensor) -> Tensor:
    """Boxes [..., 9], with z in the MIDDLE of the height, of codes [..., 10]."""
    x, y, log_length, log_width, middle, log_height, sine, cosine, vx, vy = codes.unbind(-1)
    yaw = torch.atan2(sine, cosine)
    columns = (x, y, middle, log_length.exp(), log_width.exp(), log_height.exp(), yaw, vx, vy)
    return torch.stack(columns, dim=-1)


def box_codes(outputs: dict[str, Tensor], order: Literal["official", "natural"] = "official") -> Tensor:
    """Codes [..., 10] of the outputs of the task heads.

    Args:
        outputs: center [..., 2], height [..., 1], dim [..., 3], rot [..., 2] and vel [..., 2].
        order: ``official`` joins them as they come, so that ``height`` holds the log length, ``dim`` the log width, the
            middle of the height and the log height; ``natural`` puts every output into the columns of its name.
    """
    if order == "official":
        return torch.cat([outputs[name] for name in ("center", "height", "dim", "rot", "vel")], dim=-1)
    length, width, height = outputs["dim"].split(1, dim=-1)
    return torch.cat(
        (outputs["center"], length, width, outputs["height"], height, outputs["rot"], outputs["vel"]), dim=-1
    )
