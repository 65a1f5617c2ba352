"""From files to a sample: LiDAR clouds of several sweeps in one frame, camera images, boxes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torchvision.io import ImageReadMode, decode_image, read_file

from tenfold.cmt.box_geometry import transform_points
from tenfold.cmt.config import POINT_FEATURES
from tenfold.cmt.keyframes import Keyframe
from tenfold.cmt.samples import Sample
from tenfold.shared.logging import TenfoldError

BEAMS = 32
"""Of the LiDAR; a point's beam is its ring, in the last column of the files."""
POINT_BYTES = 4 * POINT_FEATURES


def read_sample(
    root: Path,
    keyframe: Keyframe,
    sweeps: int,
    points: bool,
    images: bool,
    training: bool,
    keep_beams: int | None = None,
) -> Sample:
    """A keyframe with its files read.

    Args:
        root: folder that the keyframe's paths are relative to.
        keyframe: what to read.
        sweeps: earlier clouds beside the keyframe's; all there are where there are fewer.
        points: read the clouds.
        images: read the images.
        training: only boxes with a LiDAR point; otherwise all boxes.
        keep_beams: of the LiDAR's 32, for evaluation with fewer; None keeps all.

    Raises:
        TenfoldError: a file is missing or damaged; it is named.
    """
    boxes, labels = keyframe.training_boxes() if training else (keyframe.boxes.copy(), keyframe.labels.copy())
    intrinsics = np.tile(np.eye(4), (len(keyframe.cameras), 1, 1))
    intrinsics[:, :3, :3] = [camera.intrinsic for camera in keyframe.cameras]
    return Sample(
        token=keyframe.token,
        points=read_points(root, keyframe, sweeps, keep_beams) if points else None,
        images=read_images(root, keyframe) if images else None,
        intrinsics=intrinsics,
        lidar2camera=np.stack([camera.lidar2camera for camera in keyframe.cameras]),
        boxes=boxes,
        labels=labels,
    )


def read_points(
    root: Path, keyframe: Keyframe, sweeps: int, keep_beams: int | None = None
) -> NDArray[np.float32]:
    """The keyframe's cloud and earlier ones, all points of them, in the keyframe's LiDAR frame.

    Args:
        root: folder that the keyframe's paths are relative to.
        keyframe: what to read.
        sweeps: earlier clouds, nearest first; all there are where there are fewer.
        keep_beams: keep every (32 // keep_beams)-th beam; a divisor of 32, None keeps all.

    Returns:
        [P, 5]: x, y, z in metres, intensity as it is in the files (0-255), seconds before the keyframe.

    Raises:
        TenfoldError: a file is missing or damaged, or one of the numbers is out of its range.
    """
    if sweeps < 0:
        raise TenfoldError(f"the number of sweeps is at least 0, unlike {sweeps}")
    if keep_beams is not None and (keep_beams < 1 or BEAMS % keep_beams):
        raise TenfoldError(f"keep 1, 2, 4, 8, 16 or 32 of the {BEAMS} beams, not {keep_beams}")
    cloud = _read_cloud(root / keyframe.lidar_path, keep_beams)
    cloud[:, 4] = 0
    clouds = [cloud]
    for sweep in keyframe.sweeps[:sweeps]:
        cloud = _read_cloud(root / sweep.path, keep_beams)
        cloud[:, :3] = transform_points(cloud[:, :3], sweep.sweep2lidar)
        cloud[:, 4] = sweep.lag
        clouds.append(cloud)
    return np.concatenate(clouds)


def read_images(root: Path, keyframe: Keyframe) -> NDArray[np.uint8]:
    """The keyframe's images, [V, H, W, 3], blue first.

    Args:
        root: folder that the keyframe's paths are relative to.
        keyframe: what to read.

    Raises:
        TenfoldError: an image is missing or damaged, or is not as large as its calibration says or as the others.
    """
    first = keyframe.cameras[0]
    images = np.empty((len(keyframe.cameras), *first.size, 3), dtype=np.uint8)
    for image, camera in zip(images, keyframe.cameras, strict=True):
        if camera.size != first.size:
            raise TenfoldError(
                f"the images {first.path} {first.size} and {camera.path} {camera.size} of a keyframe differ in "
                "height and width; give images of one size"
            )
        pixels = _decoded(root / camera.path)
        if pixels.shape[1:] != camera.size:
            raise TenfoldError(
                f"the image {root / camera.path} has {pixels.shape[1]} x {pixels.shape[2]} pixels, unlike the "
                f"{camera.size[0]} x {camera.size[1]} that its calibration is for; get the original image"
            )
        image[:] = pixels[::-1].transpose(1, 2, 0)
    return images


def _decoded(path: Path) -> NDArray[np.uint8]:
    """[3, H, W], red first."""
    if not path.is_file():
        raise TenfoldError(f"there is no image {path}; check the data root, or get the image again")
    try:
        pixels: NDArray[np.uint8] = decode_image(read_file(str(path)), ImageReadMode.RGB).numpy()
    except (RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise TenfoldError(f"the image {path} cannot be read ({reason}); get it again") from error
    return pixels


def _read_cloud(path: Path, keep_beams: int | None) -> NDArray[np.float32]:
    """[P, 5]: x, y, z, intensity, ring."""
    if not path.is_file():
        raise TenfoldError(f"there is no LiDAR file {path}; check the data root, or get the file again")
    size = path.stat().st_size
    if size == 0 or size % POINT_BYTES:
        raise TenfoldError(
            f"the LiDAR file {path} has {size} bytes, which are no points of {POINT_BYTES} bytes; get it again"
        )
    cloud: NDArray[np.float32] = np.fromfile(path, dtype="<f4").reshape(-1, POINT_FEATURES)
    if keep_beams is None:
        return cloud
    kept = cloud[:, 4].astype(np.int64) % (BEAMS // keep_beams) == 0
    return np.asarray(cloud[kept])
