"""The keyframes of a nuScenes split, read from the tables once and then kept."""

from __future__ import annotations

import hashlib
import json
import os
import zipfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from tenfold.cmt.keyframes import COLUMNS, Columns, Keyframe, KeyframeTable
from tenfold.cmt.nuscenes_tables import keyframe_columns
from tenfold.shared.logging import TenfoldError, get_logger

TABLES = (
    *("category", "attribute", "visibility", "instance", "sensor", "calibrated_sensor", "ego_pose", "log"),
    *("scene", "sample", "sample_data", "sample_annotation", "map"),
)
CACHE_FORMAT = 1
SMALL_TABLE = 1 << 20
"""Bytes up to which a table counts as changed by its content, and beyond by its size and time."""

_logger = get_logger("cmt.nuscenes_index")


@dataclass(frozen=True, eq=False)
class NuScenesIndex:
    """The keyframes of a split: by scene in the order of the split, then by time."""

    root: Path
    """Folder that paths are relative to."""
    version: str
    split: str
    keyframes: Sequence[Keyframe]

    def __len__(self) -> int:
        return len(self.keyframes)

    @property
    def is_annotated(self) -> bool:
        """Whether any keyframe has a box."""
        return any(len(frame.labels) for frame in self.keyframes)

    @cached_property
    def digest(self) -> str:
        """What identifies the keyframes and their boxes, in the folder of this name: sixteen hexadecimal digits."""
        content = hashlib.sha256(f"{self.root.name} {self.version}".encode())
        for frame in self.keyframes:
            content.update(f"{frame.token} {frame.lidar_path}".encode() + frame.boxes.tobytes())
        return content.hexdigest()[:16]

    @cached_property
    def _places(self) -> dict[str, int]:
        table = self.keyframes
        tokens = table.tokens if isinstance(table, KeyframeTable) else [frame.token for frame in table]
        return {token: place for place, token in enumerate(tokens)}

    def by_token(self, token: str) -> Keyframe:
        """The keyframe with a sample token.

        Raises:
            TenfoldError: the split has none.
        """
        if token not in self._places:
            raise TenfoldError(
                f"the split {self.split} of {self.version} has no keyframe {token}; choose another split"
            )
        return self.keyframes[self._places[token]]


def load_index(
    root: Path, version: str, split: str, cache: Path | None = None, max_sweeps: int = 10
) -> NuScenesIndex:
    """The keyframes of a split, from a kept index where the tables have not changed since.

    Args:
        root: data root, with a folder ``version`` of tables beside ``samples``, ``sweeps`` and ``maps``.
        version: ``v1.0-trainval`` for instance.
        split: a name in the version's ``splits.json``, or one of the devkit's.
        cache: folder to keep the index in; by default that of the tables. Nothing is kept where it cannot be written.
        max_sweeps: most earlier LiDAR clouds of a keyframe.

    Raises:
        TenfoldError: a folder, table, split, sensor or calibration is missing or wrong; it is named.
    """
    if max_sweeps < 0:
        raise TenfoldError(f"max_sweeps is at least 0, unlike {max_sweeps}")
    tables = root / version
    _check_tables(tables)
    scenes = _split_scenes(tables, split)
    path = (cache or tables) / _cache_name(tables, split, scenes, max_sweeps)
    columns = _read_cache(path)
    if columns is None:
        try:
            columns = keyframe_columns(root, version, split, scenes, max_sweeps)
        except (AssertionError, LookupError, TypeError, ValueError) as error:
            raise TenfoldError(
                f"the tables in {tables} do not fit together ({type(error).__name__}: {error}); get them again"
            ) from error
        _write_cache(path, columns)
    return NuScenesIndex(root, version, split, KeyframeTable(columns))


def _check_tables(tables: Path) -> None:
    for folder in (tables.parent, tables):
        if not folder.is_dir():
            raise TenfoldError(
                f"there is no folder {folder}; register at nuscenes.org, download nuScenes and give the folder that "
                f"holds {tables.name}, or take --profile quick, which needs no download"
            )
    for name in TABLES:
        if not (tables / f"{name}.json").is_file():
            raise TenfoldError(f"the table {name}.json is missing in {tables}; get the metadata again")


def _split_scenes(tables: Path, split: str) -> list[str]:
    """Names of the scenes of a split, in its order."""
    own: dict[str, list[str]] = {}
    path = tables / "splits.json"
    if path.is_file():
        try:
            own = json.loads(path.read_bytes())
        except ValueError as error:
            raise TenfoldError(f"{path} is no JSON ({error}); write it again") from error
        if not isinstance(own, dict) or not all(isinstance(scenes, list) for scenes in own.values()):
            raise TenfoldError(f"{path} holds a list of scene names for every split; write it again")
    if split in own:
        return own[split]
    from nuscenes.utils.splits import create_splits_scenes  # takes seconds to import

    predefined: dict[str, list[str]] = create_splits_scenes()
    if split not in predefined:
        known = ", ".join(sorted({*own, *predefined}))
        raise TenfoldError(f"there is no split {split}; choose one of {known}")
    return predefined[split]


def _cache_name(tables: Path, split: str, scenes: list[str], max_sweeps: int) -> str:
    digest = hashlib.sha256(json.dumps([CACHE_FORMAT, tables.name, split, scenes, max_sweeps]).encode())
    for name in TABLES:
        path = tables / f"{name}.json"
        state = path.stat()
        small = state.st_size <= SMALL_TABLE
        digest.update(path.read_bytes() if small else f"{state.st_size} {state.st_mtime_ns}".encode())
    plain = "".join(sign if sign.isalnum() else "_" for sign in split)[:40]
    return f"cmt-index-{plain}-{max_sweeps}-{digest.hexdigest()[:16]}.npz"


def _read_cache(path: Path) -> Columns | None:
    if not path.is_file():
        return None
    try:
        with np.load(path, allow_pickle=False) as stored:
            return {name: stored[name] for name in COLUMNS}
    except (OSError, EOFError, KeyError, RuntimeError, ValueError, zipfile.BadZipFile):
        _logger.warning("the kept index %s is damaged; it is built again", path)
        return None


def _write_cache(path: Path, columns: Columns) -> None:
    temporary = path.with_name(f".{os.getpid()}.partial.{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            np.savez(file, **columns)  # type: ignore[arg-type]  # numpy's stub takes the names for its option
        temporary.replace(path)
    except OSError as error:
        _logger.warning("the index is not kept for the next time: %s", error)
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
