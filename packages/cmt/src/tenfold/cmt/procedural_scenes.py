"""Procedural scenes in the form of nuScenes: tables, LiDAR sweeps and photographs of boxes on a flat ground.

Not real data: they are for tests, demonstrations and short experiments where nuScenes may not be at hand. The
nuScenes devkit reads and evaluates them like its own.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from uuid import uuid4

import numpy as np
from PIL import Image

from tenfold.cmt.config import CAMERAS, CLASSES
from tenfold.cmt.procedural_objects import TRAITS, Labels, Layout, draw_layout
from tenfold.cmt.procedural_sensors import LIDAR, lidar_sweep, render_image
from tenfold.cmt.procedural_tables import (
    MAP_FILE,
    Frame,
    RecordedScene,
    Tables,
    fixed_tables,
    joined,
    scene_tables,
    since_middle,
)
from tenfold.shared.logging import TenfoldError, progress
from tenfold.shared.parallel import JobPool

FORMAT = 1
"""Raised when the same settings give other scenes, so that older folders are not taken for these."""

_MARKER = "complete.json"
"""Written last."""
_ABANDONED_AFTER = 3600.0
"""Seconds without a new file, after which an unfinished folder counts as left by a process that was killed."""
_KEYFRAME_INTERVAL = 500_000
"""Microseconds."""
_START, _SCENE_INTERVAL = 1_600_000_000_000_000, 1_000_000_000
"""Timestamp of the first scene, and time from one scene to the next, in microseconds."""
_JPEG_QUALITY = 92
_DEALING = 1
"""Marks the stream of random numbers that deals classes; the others are those of scenes."""
_LEAST_RETURNS = 3
_VISIBLE_LAYOUTS = 100
_TAKEN_SPLITS = ("train", "val", "test", "mini_train", "mini_val", "train_detect", "train_track")


@dataclass(frozen=True)
class SceneConfig:
    """What the scenes are like, and how many there are. The defaults are those of the profile ``quick``."""

    train_scenes: int = 2
    test_scenes: int = 0
    """Held-out scenes; none where the test split repeats the training scenes."""
    test_repeats_train: bool = True
    """The test split holds the training scenes, to see what was memorised."""
    keyframes: int = 4
    """Of a scene, two a second."""
    sweeps: int = 2
    """LiDAR sweeps between two keyframes."""
    lead_sweeps: int = 2
    """LiDAR sweeps before the first keyframe."""
    azimuths: int = 360
    """Directions of a turn of the LiDAR."""
    beams: int = 32
    """Elevations of the LiDAR."""
    image_size: tuple[int, int] = (90, 160)
    """Height and width in pixels; wider images have a longer focal length, and show the same."""
    objects: tuple[int, int] = (7, 12)
    """Least and most objects of a scene."""
    distances: tuple[float, float] = (4.0, 22.0)
    """Inner and outer radius of the ring of objects around the ego's place in mid-scene, in metres."""
    seed: int = 0
    version: str = "v1.0-procedural"
    """Folder of the tables."""
    train_split: str = "quick_train"
    test_split: str = "quick_val"

    def __post_init__(self) -> None:
        if min(self.train_scenes, self.keyframes, self.azimuths) < 1 or self.beams < 2:
            raise TenfoldError(
                "there are at least one training scene, one keyframe, one azimuth and two beams"
            )
        if min(self.test_scenes, self.sweeps, self.lead_sweeps, self.seed) < 0:
            raise TenfoldError("test scenes, sweeps and the seed are not negative")
        if self.test_repeats_train == (self.test_scenes > 0):
            raise TenfoldError("give either test_scenes or test_repeats_train")
        if min(self.image_size) < 8:
            raise TenfoldError(f"images have at least 8 x 8 pixels, unlike {self.image_size}")
        if not 1 <= self.objects[0] <= self.objects[1]:
            raise TenfoldError("the numbers of objects ascend, from 1 at least")
        if not 0 <= self.distances[0] < self.distances[1] <= 60:
            raise TenfoldError("the distances of objects ascend, from 0 to 60 m at most")
        if self.train_split == self.test_split or {self.train_split, self.test_split} & set(_TAKEN_SPLITS):
            raise TenfoldError("give the two splits different names that nuScenes does not use itself")
        if Path(self.version).name != self.version or self.version in (
            "",
            "..",
            "maps",
            "samples",
            "sweeps",
            _MARKER,
        ):
            raise TenfoldError(f"{self.version!r} is no name for the folder of the tables; choose another")

    @property
    def fingerprint(self) -> str:
        """Twelve hexadecimal digits that differ for other settings."""
        content = json.dumps([FORMAT, asdict(self)], sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()[:12]

    @property
    def frames(self) -> tuple[Frame, ...]:
        """Moments of a scene at which sensors look, in the order of time."""
        step = _KEYFRAME_INTERVAL / (self.sweeps + 1)
        numbers = range(-self.lead_sweeps, (self.keyframes - 1) * (self.sweeps + 1) + 1)
        return tuple(
            Frame(round(number * step), number >= 0 and number % (self.sweeps + 1) == 0) for number in numbers
        )


@dataclass(frozen=True)
class _SceneJob:
    """A scene to make."""

    number: int
    labels: tuple[int, ...]
    """Classes of its objects."""
    shown: tuple[int, ...]
    """Classes that have to be seen by the LiDAR."""

    @property
    def name(self) -> str:
        return f"scene-{self.number + 1:04d}"


def generate_scenes(config: SceneConfig, folder: Path, workers: int = 1) -> Path:
    """Write scenes, unless the folder has them already. Equal settings give equal files, whatever the workers.

    Classes are dealt from shuffled decks of ten cards, one of each class, scene after scene of a split: each class is
    as likely as any other, and the first ten objects of a split hold all of them. A scene is drawn again, up to a
    limit, while one of these first ten is too far away to be evaluated or the LiDAR sees too little of it, so that a
    split with ten objects or more has ground truth of every class.

    The data are complete or not there at all, whoever else generates them at the same time. What processes that were
    killed left in the folder more than an hour ago is removed.

    Args:
        config: what to generate.
        folder: where the data of all settings are, each in a folder of its own.
        workers: processes that make scenes.

    Returns:
        Root of the data, which the devkit calls ``dataroot``.

    Raises:
        TenfoldError: the scenes have no room for their objects.
        OSError: the disk is full, or the folder cannot be written; nothing is left behind.
    """
    _remove_abandoned(folder)
    root = folder / f"scenes-{config.fingerprint}"
    if not _is_complete(root):
        with _appearing(root) as unfinished:
            _write(config, unfinished, workers)
    return root


# -- folders ---------------------------------------------------------------------------------------------


def _is_complete(root: Path) -> bool:
    return (root / _MARKER).is_file()


def _remove_abandoned(folder: Path) -> None:
    for unfinished in folder.glob(".scenes-*.partial"):
        if time.time() - _last_change(unfinished) > _ABANDONED_AFTER:
            shutil.rmtree(unfinished, ignore_errors=True)


def _last_change(folder: Path) -> float:
    """When a file or folder was last added to or removed from any folder below, in seconds since the epoch."""
    moments = [0.0]
    for inner, _, _ in os.walk(folder):
        with suppress(FileNotFoundError):  # another process finished or removed it
            moments.append(Path(inner).stat().st_mtime)
    return max(moments)


@contextmanager
def _appearing(root: Path) -> Iterator[Path]:
    """A folder beside ``root`` that takes its place in one step, or vanishes where another process was first."""
    root.parent.mkdir(parents=True, exist_ok=True)
    unfinished = root.with_name(f".{root.name}.{uuid4().hex}.partial")
    unfinished.mkdir()
    try:
        yield unfinished
        if root.exists() and not _is_complete(root):  # someone removed or copied a part of it
            with suppress(FileNotFoundError):
                root.rename(unfinished / "replaced")
        shutil.rmtree(unfinished / "replaced", ignore_errors=True)
        try:
            unfinished.rename(root)
        except OSError:
            if not _is_complete(root):
                raise
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _write(config: SceneConfig, folder: Path, workers: int) -> None:
    for kind in ("samples", "sweeps"):
        for channel in (LIDAR, *CAMERAS) if kind == "samples" else (LIDAR,):
            (folder / kind / channel).mkdir(parents=True)
    (folder / MAP_FILE).parent.mkdir()
    Image.new("L", (8, 8), 128).save(folder / MAP_FILE)
    parts = folder / "parts"
    parts.mkdir()
    train = _deal(config, range(config.train_scenes))
    test = _deal(config, range(config.train_scenes, config.train_scenes + config.test_scenes))
    jobs = [*train, *test]
    with JobPool(workers, quiet=True, preload=__name__) as pool:
        done = pool.run(partial(_make_scene, config, folder), jobs)
        for _ in progress(done, "procedural scenes", total=len(jobs)):
            pass
    tables = joined(
        [fixed_tables([job.name for job in jobs], config.image_size)]
        + [json.loads(_part(folder, job).read_bytes()) for job in jobs]
    )
    shutil.rmtree(parts)
    train_names = [job.name for job in train]
    splits = {
        config.train_split: train_names,
        config.test_split: train_names if config.test_repeats_train else [job.name for job in test],
    }
    (folder / config.version).mkdir()
    for name, content in (*tables.items(), ("splits", splits)):
        path = folder / config.version / f"{name}.json"
        path.write_text(json.dumps(content, separators=(",", ":")), encoding="utf-8")
    about = {"format": FORMAT, "config": asdict(config)}
    (folder / _MARKER).write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")


def _part(folder: Path, job: _SceneJob) -> Path:
    return folder / "parts" / f"{job.name}.json"


# -- scenes ----------------------------------------------------------------------------------------------


def _deal(config: SceneConfig, numbers: Sequence[int]) -> list[_SceneJob]:
    """Deal classes to the scenes of a split."""
    if not numbers:
        return []
    generator = np.random.default_rng(np.random.SeedSequence((config.seed, numbers[0], _DEALING)))
    classes = len(CLASSES)
    deck: list[int] = []
    jobs, dealt = [], 0
    for number in numbers:
        count = int(generator.integers(config.objects[0], config.objects[1] + 1))
        while len(deck) < count:
            deck.extend(generator.permutation(classes).tolist())
        labels, deck = tuple(deck[:count]), deck[count:]
        jobs.append(_SceneJob(number, labels, labels[: max(0, classes - dealt)]))
        dealt += count
    return jobs


def _make_scene(config: SceneConfig, folder: Path, job: _SceneJob) -> None:
    """Draw a scene, and write what its sensors see and its records."""
    generator = np.random.default_rng(np.random.SeedSequence((config.seed, job.number)))
    frames = config.frames
    layout = _draw_visible(config, job, generator)
    start = _START + job.number * _SCENE_INTERVAL
    returns = []
    for frame in frames:
        time = since_middle(frames, frame)
        solids, timestamp = layout.solids_from_ego(time), start + frame.time
        points, reflected = lidar_sweep(solids, layout.labels, config.beams, config.azimuths, generator)
        (folder / frame.filename(job.name, LIDAR, timestamp)).write_bytes(points.tobytes())
        if not frame.is_key:
            continue
        returns.append(reflected)
        pose = layout.ego_pose(time)
        for camera in CAMERAS:
            pixels = render_image(solids, layout.labels, camera, config.image_size, pose, generator)
            path = folder / frame.filename(job.name, camera, timestamp)
            Image.fromarray(pixels).save(path, quality=_JPEG_QUALITY)
    scene = RecordedScene(job.name, start, frames, layout, np.stack(returns), config.image_size)
    tables: Tables = scene_tables(scene)
    _part(folder, job).write_text(json.dumps(tables), encoding="utf-8")


def _draw_visible(config: SceneConfig, job: _SceneJob, generator: np.random.Generator) -> Layout:
    """Draw layouts until the LiDAR sees the classes it has to see, or take the one where it sees most of them."""
    labels: Labels = np.array(job.labels, np.int64)
    frames = config.frames
    keyframes = [frame for frame in frames if frame.is_key]
    span = since_middle(frames, frames[0]), since_middle(frames, frames[-1])

    ranges = np.array([TRAITS[CLASSES[label]].evaluated_within for label in job.labels])

    def classes_shown(layout: Layout) -> int:
        solids = layout.solids_from_ego(since_middle(frames, keyframes[len(keyframes) // 2]))
        _, returns = lidar_sweep(solids, labels, config.beams, config.azimuths, generator)
        counted = (returns >= _LEAST_RETURNS) & (np.linalg.norm(solids[:, :2], axis=1) < ranges)
        return int(counted[: len(job.shown)].sum())  # they are the first ones

    best = draw_layout(generator, labels, config.distances, span)
    most = classes_shown(best)
    for _ in range(_VISIBLE_LAYOUTS):
        if most == len(job.shown):
            break
        layout = draw_layout(generator, labels, config.distances, span)
        shown = classes_shown(layout)
        if shown > most:
            best, most = layout, shown
    return best
