"""A classifier of timm that a student distils from."""

from __future__ import annotations

from typing import Any

import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tenfold.shared.logging import TenfoldError


class Teacher(nn.Module):
    """Logits for images that were normalised for a student.

    Images go from the student's normalisation to the teacher's, and to the teacher's size by bicubic interpolation.

    Args:
        network: a model of timm with its ``pretrained_cfg``; it never learns.
        mean: of the student's images, for each channel.
        std: of the student's images.
    """

    def __init__(self, network: nn.Module, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self.network = network.eval().requires_grad_(False)
        settings: Any = network.pretrained_cfg
        self.size = int(settings["input_size"][-1])
        student, teacher = (torch.tensor(values)[:, None, None] for values in (mean, settings["mean"]))
        student_std, teacher_std = (torch.tensor(values)[:, None, None] for values in (std, settings["std"]))
        self.register_buffer("scale", student_std / teacher_std, persistent=False)
        self.register_buffer("shift", (student - teacher) / teacher_std, persistent=False)

    def train(self, mode: bool = True) -> Teacher:
        """Stays as at inference, whatever is asked."""
        del mode
        return super().train(False)

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        images = images * self.scale + self.shift  # type: ignore[operator]
        if images.shape[2:] != (self.size, self.size):
            images = F.interpolate(images, (self.size, self.size), mode="bicubic", align_corners=False)
        found: Tensor = self.network(images)
        return found


def load_teacher(
    name: str, num_classes: int, mean: tuple[float, ...], std: tuple[float, ...], download: bool = False
) -> Teacher:
    """A pre-trained model of timm.

    Args:
        name: of timm.
        num_classes: that it must have.
        mean: of the student's images.
        std: of the student's images.
        download: allow timm to fetch the weights.

    Raises:
        TenfoldError: timm has no such model, its weights are not to be had, or its classes are others.
    """
    if not timm.is_model(name):
        raise TenfoldError(f"timm has no model {name} to distil from")
    if not download:
        raise TenfoldError(f"give --download to let timm fetch the weights of {name}")
    try:
        network = timm.create_model(name, pretrained=True)
    except Exception as error:  # whatever the hub's client raises
        raise TenfoldError(f"the weights of {name} could not be fetched: {error}") from error
    if network.num_classes != num_classes:
        raise TenfoldError(f"{name} knows {network.num_classes} classes, not {num_classes}")
    return Teacher(network, mean, std)
