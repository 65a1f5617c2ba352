"""Commands about files: detect in one sample, generate scenes, convert released weights, write mmdet3d's lists."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from tenfold.cmt.detecting import as_json, detect_keyframe, draw_keyframe
from tenfold.cmt.keyframe_folder import read_keyframe_folder
from tenfold.cmt.network_files import load_network, load_released
from tenfold.cmt.nuscenes_index import load_index
from tenfold.cmt.openmmlab_data import write_infos
from tenfold.cmt.procedural_scenes import SceneConfig
from tenfold.cmt.profiles import PROFILES
from tenfold.cmt.suite_runs import launch_fabric
from tenfold.cmt.suites import Profile
from tenfold.shared.accelerator import AcceleratorConfig, resolve_processes
from tenfold.shared.logging import TenfoldError, get_logger
from tenfold.shared.runs import save_atomically, write_json

logger = get_logger("cmt")

Accelerator = Annotated[AcceleratorConfig, tyro.conf.arg(name="")]  # --device, not --accelerator.device
Quiet = Annotated[bool, tyro.conf.arg(aliases=["-q"])]


def data_root(given: Path | None) -> Path:
    """``--data-root``, else ``$TENFOLD_DATA``, else ``./data``."""
    if given is not None and not given.is_dir():
        raise TenfoldError(f"there is no data root {given}; create it or leave out --data-root")
    return given or Path(os.environ.get("TENFOLD_DATA", "data"))


def released_profile(name: str) -> Profile:
    """The profile of a released configuration.

    Raises:
        TenfoldError: there is none of this name.
    """
    known = [profile for profile, one in PROFILES.items() if one.scenes is None]
    if name not in known:
        raise TenfoldError(f"unknown configuration {name!r}; choose one of {', '.join(known)}")
    return PROFILES[name]


@dataclass(frozen=True)
class Detect:
    """Find the objects of one sample: a folder with annotation.json, or a keyframe of nuScenes' tables by its token."""

    checkpoint: Path
    """model.pt of a run, or a converted file."""
    keyframe: Path | None = None
    """Folder of one keyframe: annotation.json, its images and its sweep."""
    token: str = ""
    """Of a sample in the tables, instead of a folder."""
    tables: Path | None = None
    """Root of a nuScenes data set, or of generated scenes; by default nuscenes below the data root."""
    version: str = ""
    """Folder of the tables; by default that of the network's data."""
    split: str = ""
    """That the sample is in; by default the test split of the network's data."""
    data_root: Path | None = None
    """Folder with data sets; by default $TENFOLD_DATA, else ./data."""
    threshold: float = 0.3
    """Least score of what is written and drawn."""
    output: Path = Path("detected")
    """Folder for detections.json and a picture."""
    accelerator: Accelerator = field(default_factory=AcceleratorConfig)
    quiet: Quiet = False
    """Only warnings and errors."""

    def run(self) -> int:
        if (self.keyframe is None) == (not self.token):
            raise TenfoldError("give either --keyframe FOLDER or --token TOKEN")
        if resolve_processes(self.accelerator.devices, self.accelerator.nodes) != (1, 1):
            raise TenfoldError("one sample is for one device; leave out --devices and torchrun")
        stored, fabric = load_network(self.checkpoint), launch_fabric(self.accelerator)
        network, data = stored.network.to(fabric.device), stored.data
        if self.keyframe is not None:
            root, keyframe = self.keyframe, read_keyframe_folder(self.keyframe)
        else:
            root = self.tables or data_root(self.data_root) / "nuscenes"
            split = self.split or data.test_split
            folder = self.output / "indices"
            index = load_index(root, self.version or data.version, split, folder, data.sweeps)
            keyframe = index.by_token(self.token)
        sample, found = detect_keyframe(network, root, keyframe, data.sweeps, fabric)
        self.output.mkdir(parents=True, exist_ok=True)
        content = as_json(keyframe, found, self.threshold)
        write_json(self.output / "detections.json", content)
        draw_keyframe(self.output / "detections.png", network, sample, found, self.threshold)
        logger.info("%d objects; see %s", len(content["detections"]), self.output)
        return 0


@dataclass(frozen=True)
class GenerateScenes:
    """Write procedural scenes in the form of nuScenes; the same arguments find them again."""

    scenes: Annotated[SceneConfig, tyro.conf.arg(name="")] = field(default_factory=SceneConfig)
    output: Path = Path("data/procedural")
    """Folder for the scenes, each set in a folder of its own."""
    workers: int = 1
    """Processes that share the scenes."""
    check: bool = False
    """Let the devkit judge the scenes' own boxes, and look for objects in images and sweeps."""
    quiet: Quiet = False
    """Only warnings and errors."""

    def run(self) -> int:
        from tenfold.cmt.procedural_checks import write_scenes

        print(write_scenes(self.scenes, self.output, self.workers, self.check))
        return 0


@dataclass(frozen=True)
class WriteInfos:
    """List the keyframes of a split for mmdet3d's NuScenesDataset, as the shipped configurations want them."""

    tables: Path
    """Root of a nuScenes data set, or of generated scenes."""
    version: str
    """Folder of the tables."""
    split: str
    """Such as train, or quick_train."""
    output: Path
    """The file to write, such as infos_train.json below the root."""
    sweeps: int = 10
    """Earlier sweeps of a keyframe."""
    quiet: Quiet = False
    """Only warnings and errors."""

    def run(self) -> int:
        index = load_index(self.tables, self.version, self.split, self.output.parent, self.sweeps)
        logger.info("%d keyframes in %s", len(index), write_infos(index, self.output))
        return 0


@dataclass(frozen=True)
class Convert:
    """Turn released weights into a file of this package, strictly: every tensor finds its place or is named."""

    released: Path
    """File of the authors."""
    configuration: str
    """Profile of the same configuration, such as cmt_voxel0075_vov_1600x640."""
    output: Path = Path("model.pt")
    """The file to write."""
    quiet: Quiet = False
    """Only warnings and errors."""

    def run(self) -> int:
        stored, report = load_released(self.released, released_profile(self.configuration))
        self.output.parent.mkdir(parents=True, exist_ok=True)
        save_atomically(self.output, stored.content())
        logger.info(
            "%d tensors loaded, %d sparse kernels turned; network in %s",
            report.loaded,
            len(report.permuted),
            self.output,
        )
        return 0
