"""Sensors that fail in an evaluation: a modality, single cameras, or beams of the LiDAR."""

from __future__ import annotations

from dataclasses import dataclass

from tenfold.cmt.config import CAMERAS, Modality
from tenfold.shared.logging import TenfoldError


@dataclass(frozen=True)
class Condition:
    """What is left of the sensors in an evaluation. What is missing is zero, as in masked-modal training."""

    name: str
    images: bool = True
    points: bool = True
    missing_cameras: tuple[str, ...] = ()
    """Single cameras whose images are black."""
    beams: int | None = None
    """LiDAR beams that are kept; None keeps all."""

    def __post_init__(self) -> None:
        unknown = [camera for camera in self.missing_cameras if camera not in CAMERAS]
        if unknown:
            raise TenfoldError(f"{unknown[0]} is no camera; choose from {', '.join(CAMERAS)}")


CONDITIONS = {
    condition.name: condition
    for condition in (
        Condition("both"),
        Condition("no-lidar", points=False),
        Condition("no-cameras", images=False),
        Condition("neither", images=False, points=False),
        *(
            Condition(f"no-{camera.lower().replace('_', '-')}", missing_cameras=(camera,))
            for camera in CAMERAS
        ),
        *(Condition(f"beams-{beams}", beams=beams) for beams in (16, 8, 4, 1)),
    )
}
"""Conditions of the robustness evaluation, by name."""


def conditions_of(modality: Modality) -> tuple[str, ...]:
    """Conditions that make a difference to a network, by its sensors."""
    return tuple(
        name
        for name, condition in CONDITIONS.items()
        if name == "both"
        or modality == "fusion"
        or (
            modality == "lidar" and (not condition.points or condition.beams is not None) and condition.images
        )
        or (modality == "camera" and (not condition.images or condition.missing_cameras) and condition.points)
    )
