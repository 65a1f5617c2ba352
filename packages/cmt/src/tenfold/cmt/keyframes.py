"""Keyframes: what was recorded and annotated at one moment, one by one or as a table over flat arrays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]
Columns = dict[str, NDArray[Any]]

PER_KEYFRAME = (
    *("tokens", "scenes", "timestamps", "lidar_paths", "lidar2ego", "ego2global"),
    *("camera_paths", "camera_sizes", "intrinsics", "lidar2camera"),
)
COLUMNS = (
    *PER_KEYFRAME,
    *("sweep_starts", "sweep_paths", "sweep2lidar", "sweep_lags"),
    *("box_starts", "boxes", "labels", "num_points", "num_radar_points"),
)
"""Of a :class:`KeyframeTable`."""


@dataclass(frozen=True, eq=False)
class CameraView:
    """One camera image of a keyframe."""

    path: str
    """Relative to the data root."""
    intrinsic: FloatArray
    """[3, 3]: camera frame to pixels, times depth."""
    lidar2camera: FloatArray
    """[4, 4]: the keyframe's LiDAR frame to the camera frame at the moment of the image."""
    size: tuple[int, int]
    """Height and width in pixels."""


@dataclass(frozen=True, eq=False)
class LidarSweep:
    """One earlier LiDAR cloud."""

    path: str
    """Relative to the data root."""
    sweep2lidar: FloatArray
    """[4, 4]: the sweep's LiDAR frame to the keyframe's."""
    lag: float
    """Seconds before the keyframe, at least 0."""


@dataclass(frozen=True, eq=False)
class Keyframe:
    """One annotated moment; boxes are in the LiDAR frame."""

    token: str
    scene: str
    timestamp: int
    """Of the LiDAR cloud, in microseconds."""
    lidar_path: str
    """Relative to the data root."""
    sweeps: tuple[LidarSweep, ...]
    """Nearest first."""
    cameras: tuple[CameraView, ...]
    """In the order of :data:`tenfold.cmt.config.CAMERAS`."""
    lidar2ego: FloatArray
    """[4, 4]."""
    ego2global: FloatArray
    """[4, 4], at the moment of the LiDAR cloud."""
    boxes: NDArray[np.float32]
    """[N, 9]: x, y, z of the bottom, length, width, height, yaw, velocity in x and y (0 where unknown)."""
    labels: NDArray[np.int64]
    """[N]: places in :data:`tenfold.cmt.config.CLASSES`."""
    num_points: NDArray[np.int64]
    """[N]: LiDAR points of this keyframe's cloud in the boxes."""
    num_radar_points: NDArray[np.int64]
    """[N]."""

    @property
    def visible(self) -> NDArray[np.bool_]:
        """[N]: boxes that evaluation counts, which have a LiDAR or radar point."""
        return np.asarray(self.num_points + self.num_radar_points > 0)

    def training_boxes(self) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Boxes and labels that training learns from: those with a LiDAR point."""
        kept = self.num_points > 0
        return self.boxes[kept], self.labels[kept]


class KeyframeTable(Sequence[Keyframe]):
    """Keyframes over flat arrays, so that thousands load at once and worker processes share them."""

    def __init__(self, columns: Columns) -> None:
        self._columns = columns
        for column in columns.values():
            column.flags.writeable = False

    def __len__(self) -> int:
        return len(self._columns["tokens"])

    @overload
    def __getitem__(self, place: int) -> Keyframe: ...
    @overload
    def __getitem__(self, place: slice) -> tuple[Keyframe, ...]: ...
    def __getitem__(self, place: int | slice) -> Keyframe | tuple[Keyframe, ...]:
        places = range(len(self))[place]
        return self._keyframe(places) if isinstance(places, int) else tuple(map(self._keyframe, places))

    @property
    def tokens(self) -> list[str]:
        """Of all keyframes."""
        return [token.decode() for token in self._columns["tokens"].tolist()]

    def _keyframe(self, place: int) -> Keyframe:
        here = {name: column[place] for name, column in self._columns.items() if name in PER_KEYFRAME}
        first, end = self._columns["sweep_starts"][place : place + 2]
        sweeps = [self._columns[name][first:end] for name in ("sweep_paths", "sweep2lidar", "sweep_lags")]
        cameras = [here[name] for name in ("camera_paths", "intrinsics", "lidar2camera", "camera_sizes")]
        first, end = self._columns["box_starts"][place : place + 2]
        boxes = (
            self._columns[name][first:end] for name in ("boxes", "labels", "num_points", "num_radar_points")
        )
        return Keyframe(
            here["tokens"].decode(),
            here["scenes"].decode(),
            int(here["timestamps"]),
            here["lidar_paths"].decode(),
            tuple(
                LidarSweep(path.decode(), motion, float(lag))
                for path, motion, lag in zip(*sweeps, strict=True)
            ),
            tuple(
                CameraView(path.decode(), k, motion, (int(size[0]), int(size[1])))
                for path, k, motion, size in zip(*cameras, strict=True)
            ),
            here["lidar2ego"],
            here["ego2global"],
            *boxes,
        )
