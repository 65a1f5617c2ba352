"""From stored bytes to what a network sees: random crop, random flip, scale, normalise; a whole batch at once."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad


@dataclass(frozen=True)
class Preprocessing:
    """How the images of a data set are augmented and normalised."""

    scale: float = 255.0
    """Byte value that becomes 1."""
    mean: tuple[float, ...] = (0.0,)
    """Of each channel, after scaling; one number stands for all channels."""
    std: tuple[float, ...] = (1.0,)
    """Of each channel, after scaling."""
    crop_padding: int = 0
    """Black pixels around an image before a crop of its own size is taken at random; 0 leaves it."""
    flip: bool = False
    """Mirror each image with probability one half."""

    @property
    def is_random(self) -> bool:
        """Whether images are augmented at all."""
        return self.crop_padding > 0 or self.flip

    def normalize(self, images: Tensor) -> Tensor:
        """Bytes [N, channels, H, W] to normalised floats of the same shape."""
        mean, std = _channel_statistics(self.mean, self.std, images.device)
        return (images.float() / self.scale - mean) / std

    def draw(self, size: int, generator: np.random.RandomState) -> np.ndarray:
        """[size, 3] integers: row and column at which each crop begins, and 1 where it is mirrored.

        Nothing is drawn where nothing is random.
        """
        crops = np.zeros((size, 3), dtype=np.int64)
        if self.crop_padding:
            crops[:, :2] = generator.randint(0, 2 * self.crop_padding + 1, (size, 2))
        if self.flip:
            crops[:, 2] = generator.randint(0, 2, size)
        return crops

    def apply(self, images: Tensor, crops: Tensor) -> Tensor:
        """Augment as drawn, and normalise.

        Args:
            images: bytes [N, channels, H, W].
            crops: [N, 3] of :meth:`draw`, on the same device.
        """
        if not self.is_random:
            return self.normalize(images)
        height, width = images.shape[-2:]
        padded = pad(images, (self.crop_padding,) * 4)
        rows = crops[:, :1] + torch.arange(height, device=images.device)
        columns = torch.arange(width, device=images.device).expand(len(images), -1)
        columns = crops[:, 1:2] + torch.where(crops[:, 2:] == 1, columns.flip(1), columns)
        which = torch.arange(len(images), device=images.device)[:, None, None]
        cropped = padded.movedim(1, -1)[which, rows[:, :, None], columns[:, None, :]].movedim(-1, 1)
        return self.normalize(cropped)


@cache
def _channel_statistics(
    mean: tuple[float, ...], std: tuple[float, ...], device: torch.device
) -> tuple[Tensor, Tensor]:
    """Both as [1, channels, 1, 1]; kept, because copying them to a device anew would make the host wait each time."""
    both = torch.tensor([mean, std], dtype=torch.float32, device=device)
    return both[0].view(1, -1, 1, 1), both[1].view(1, -1, 1, 1)
