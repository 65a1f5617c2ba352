"""From the outputs of the last decoder layer to detections."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from tenfold.cmt.box_coding import decode_boxes

CENTRE_RANGE = (-61.2, -61.2, -10.0, 61.2, 61.2, 10.0)
"""Least x, y, z and greatest x, y, z of a detection's middle, in metres."""


@dataclass(frozen=True)
class Detections:
    """What was found in one sample, the surest first."""

    boxes: Tensor
    """[N, 9]: x, y, z of the bottom, length, width, height, yaw, velocity in x and y; LiDAR frame, metres."""
    scores: Tensor
    """[N], from 0 to 1."""
    labels: Tensor
    """[N]: places in :data:`tenfold.cmt.config.CLASSES`."""

    def __len__(self) -> int:
        return len(self.labels)

    def cpu(self) -> Detections:
        """The same in main memory."""
        return Detections(self.boxes.cpu(), self.scores.cpu(), self.labels.cpu())

    def numpy(self) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.int64]]:
        """Boxes, scores and labels as arrays."""
        host = self.cpu()
        return host.boxes.double().numpy(), host.scores.double().numpy(), host.labels.long().numpy()

    def above(self, threshold: float) -> Detections:
        """Those with at least this score."""
        sure = self.scores >= threshold
        return Detections(self.boxes[sure], self.scores[sure], self.labels[sure])


def decode_detections(
    codes: Tensor,
    logits: Tensor,
    max_detections: int = 300,
    centre_range: tuple[float, float, float, float, float, float] = CENTRE_RANGE,
) -> list[Detections]:
    """The best pairs of query and class. A query may be found as several classes; nothing is suppressed.

    Args:
        codes: [B, Q, 10] as in :mod:`tenfold.cmt.box_coding`.
        logits: [B, Q, C].
        max_detections: most of a sample.
        centre_range: least x, y, z and greatest x, y, z of a box's middle, in metres; others are dropped, as
            are boxes that are not finite.

    Returns:
        One for each sample.
    """
    classes = logits.shape[-1]
    scores, places = logits.float().sigmoid().flatten(1).topk(min(max_detections, logits[0].numel()), dim=1)
    rows = (places // classes)[..., None].expand(-1, -1, codes.shape[-1])
    boxes = decode_boxes(codes.gather(1, rows).float())

    centres, limits = boxes[..., :3], boxes.new_tensor(centre_range)
    inside = ((centres >= limits[:3]) & (centres <= limits[3:])).all(dim=-1)
    inside = inside & boxes.isfinite().all(dim=-1) & scores.isfinite()
    boxes[..., 2] -= boxes[..., 5] / 2

    counts = inside.sum(dim=1).tolist()
    chosen = (values[inside].split(counts) for values in (boxes, scores, places % classes))
    return [Detections(*sample) for sample in zip(*chosen, strict=True)]
