"""A database of annotated objects: of each its box, the points in it, and what the camera that shows it largest saw."""

from __future__ import annotations

import hashlib
import io
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tenfold.cmt.box_geometry import image_rectangles, points_in_boxes, points_near_boxes
from tenfold.cmt.config import CLASSES
from tenfold.cmt.keyframes import Keyframe
from tenfold.cmt.nuscenes_index import NuScenesIndex
from tenfold.cmt.sample_reader import read_sample
from tenfold.cmt.samples import Sample
from tenfold.shared.logging import TenfoldError, progress
from tenfold.shared.parallel import JobPool
from tenfold.shared.runs import replaced

_FORMAT = 1
_TABLE = "objects.npz"
_JPEG_QUALITY = 95

IntArray = NDArray[np.int64]
ImageArray = NDArray[np.uint8]


@dataclass(frozen=True)
class ObjectDatabase:
    """Objects that can be pasted. Points and crops stay on disk until they are asked for."""

    folder: Path
    labels: IntArray
    """[M]."""
    boxes: NDArray[np.float32]
    """[M, 9], as in :class:`tenfold.cmt.samples.Sample`."""
    num_points: IntArray
    """[M]: points in the box, of all sweeps."""
    places: IntArray
    """[M]: number among the objects of its keyframe."""
    tokens: NDArray[np.str_]
    """[M]: of the keyframe."""
    _by_class: dict[int, tuple[IntArray, ...]] = field(init=False, default_factory=dict, repr=False)

    @classmethod
    def load(cls, folder: Path) -> ObjectDatabase:
        """Read the table of a database.

        Raises:
            TenfoldError: it is missing, incomplete or damaged.
        """
        table = folder / _TABLE
        if not table.exists():
            raise TenfoldError(f"{folder} has no complete object database; build it first")
        names = ("labels", "boxes", "num_points", "places", "tokens")
        columns = _read(table, names)
        return cls(folder, *(columns[name] for name in names))

    def __len__(self) -> int:
        return len(self.labels)

    def of_class(self, label: int, min_points: int) -> IntArray:
        """Objects of a class with at least so many points."""
        if min_points not in self._by_class:
            enough = self.num_points >= min_points
            self._by_class[min_points] = tuple(
                np.flatnonzero(enough & (self.labels == one)) for one in range(len(CLASSES))
            )
        return self._by_class[min_points][label]

    def content(self, number: int) -> tuple[NDArray[np.float32], ImageArray | None]:
        """Points [K, 5] of an object, x, y, z relative to those of its box, and its crop [h, w, 3], blue first.

        The crop is None where no camera sees all corners of the box, or the database has no images.

        Raises:
            TenfoldError: the file of the keyframe is missing or damaged.
        """
        place = self.places[number]
        names = f"points_{place}", f"crop_{place}"
        content = _read(_keyframe_file(self.folder, str(self.tokens[number])), names)
        coded = content[names[1]]
        return content[names[0]], _decoded(coded) if len(coded) else None


def build_database(
    index: NuScenesIndex, root: Path, sweeps: int, images: bool, folder: Path, workers: int = 1
) -> ObjectDatabase:
    """The object database of an index, built where there is none yet.

    Each set of arguments has a folder of its own below ``folder``. What an interrupted call wrote is used by the next.

    Args:
        index: training keyframes.
        root: of the data set.
        sweeps: earlier sweeps that add points.
        images: keep crops.
        folder: for databases; made if needed.
        workers: processes.

    Raises:
        TenfoldError: a file of the data set or of the database is missing or damaged.
        OSError: the disk is full, or the folder cannot be written.
    """
    if is_collected(index, sweeps, images, folder):
        return ObjectDatabase.load(_place(index, sweeps, images, folder))
    folder = _place(index, sweeps, images, folder)
    folder.mkdir(parents=True, exist_ok=True)
    missing = [one for one in index.keyframes if not _keyframe_file(folder, one.token).exists()]
    store = partial(_store_objects, root=root, sweeps=sweeps, images=images, folder=folder)
    with JobPool(workers, quiet=False, preload=__name__) as pool:
        for _ in progress(pool.run(store, missing), "cutting out objects", len(missing)):
            pass
    _store_table(folder, [one.token for one in index.keyframes])
    return ObjectDatabase.load(folder)


def is_collected(index: NuScenesIndex, sweeps: int, images: bool, folder: Path) -> bool:
    """Whether :func:`build_database` has been here with the same arguments."""
    return (_place(index, sweeps, images, folder) / _TABLE).exists()


def _place(index: NuScenesIndex, sweeps: int, images: bool, folder: Path) -> Path:
    content = f"{_FORMAT} {sweeps} {images} {index.digest}"
    return folder / f"objects-{hashlib.sha256(content.encode()).hexdigest()[:16]}"


def _keyframe_file(folder: Path, token: str) -> Path:
    return folder / f"{token}.npz"


def _store_objects(keyframe: Keyframe, root: Path, sweeps: int, images: bool, folder: Path) -> None:
    sample = read_sample(root, keyframe, sweeps, points=True, images=images, training=True)
    assert sample.points is not None
    near = sample.points[points_near_boxes(sample.points, sample.boxes)]
    inside = points_in_boxes(near, sample.boxes)
    arrays: dict[str, NDArray[Any]] = {
        "labels": sample.labels,
        "boxes": sample.boxes,
        "num_points": inside.sum(axis=0).astype(np.int64),
    }
    crops = _largest_crops(sample)
    for place, box in enumerate(sample.boxes):
        points = near[inside[:, place]]
        points[:, :3] -= box[:3]
        arrays[f"points_{place}"] = points
        crop = crops[place]
        arrays[f"crop_{place}"] = np.zeros(0, np.uint8) if crop is None else _coded(crop)
    _write(_keyframe_file(folder, keyframe.token), arrays)


def _largest_crops(sample: Sample) -> list[ImageArray | None]:
    """What the camera that shows a box largest saw in its rectangle."""
    if sample.images is None or not len(sample.boxes):
        return [None] * len(sample.boxes)
    rectangles, _, visible = image_rectangles(sample.boxes, sample.lidar2image, sample.images.shape[1:3])
    areas = (rectangles[..., 2:] - rectangles[..., :2]).prod(axis=-1) * visible
    crops: list[ImageArray | None] = []
    for place, camera in enumerate(areas.argmax(axis=0)):
        left, top, right, bottom = rectangles[camera, place]
        crops.append(sample.images[camera, top:bottom, left:right] if areas[camera, place] else None)
    return crops


def _store_table(folder: Path, tokens: Sequence[str]) -> None:
    names = ("labels", "boxes", "num_points")
    rows = [_read(_keyframe_file(folder, token), names) for token in tokens]
    counts = [len(row["labels"]) for row in rows]
    table = {
        name: np.concatenate([row[name] for row in rows] or [np.zeros((0, 9) if name == "boxes" else 0)])
        for name in names
    }
    table["places"] = np.concatenate([np.arange(count) for count in counts] or [np.zeros(0, np.int64)])
    table["tokens"] = np.repeat(np.array(tokens, dtype=np.str_), counts)
    _write(folder / _TABLE, table)


def _write(path: Path, arrays: dict[str, NDArray[Any]]) -> None:
    with replaced(path) as temporary, temporary.open("wb") as file:
        np.savez(file, allow_pickle=False, **arrays)


def _read(path: Path, names: Sequence[str]) -> dict[str, NDArray[Any]]:
    try:
        with np.load(path, allow_pickle=False) as stored:
            return {name: stored[name] for name in names}
    except FileNotFoundError as error:
        raise TenfoldError(
            f"{path} of the object database is missing; delete its folder to build it again"
        ) from error
    except (OSError, EOFError, KeyError, RuntimeError, ValueError, zipfile.BadZipFile) as error:
        raise TenfoldError(
            f"{path} of the object database is damaged; delete its folder to build it again"
        ) from error


def _coded(crop: ImageArray) -> NDArray[np.uint8]:
    file = io.BytesIO()
    Image.fromarray(crop[..., ::-1]).save(file, "JPEG", quality=_JPEG_QUALITY, subsampling=0)
    return np.frombuffer(file.getvalue(), np.uint8)


def _decoded(coded: NDArray[np.uint8]) -> ImageArray:
    return np.asarray(Image.open(io.BytesIO(coded.tobytes())))[..., ::-1]
