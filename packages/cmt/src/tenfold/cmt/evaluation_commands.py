"""Commands that judge a network: on a split, and with failing sensors."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import tyro
from rich.console import Console
from rich.table import Table

from tenfold.cmt.config import AugmentConfig, LossConfig, TrainConfig
from tenfold.cmt.experiments import detect_condition
from tenfold.cmt.figures import draw_sensor_loss
from tenfold.cmt.file_commands import Accelerator, Quiet, data_root, released_profile
from tenfold.cmt.judging import BATCH_SIZE, as_submission, detections_per_second, score
from tenfold.cmt.network_files import load_network, load_released
from tenfold.cmt.sensor_conditions import CONDITIONS, conditions_of
from tenfold.cmt.submission import write_submission
from tenfold.cmt.suite_runs import Suite, condition_title, slug
from tenfold.cmt.suites import Method, Profile
from tenfold.shared.accelerator import AcceleratorConfig
from tenfold.shared.logging import TenfoldError, get_logger
from tenfold.shared.runs import write_json

logger = get_logger("cmt")

SINGLE = "single"
"""Profile of runs that belong to no suite."""
Found = dict[str, dict[str, float]]
"""Metrics by the titles of conditions."""


@dataclass(frozen=True)
class Evaluate:
    """Judge a network on a split, with all its sensors or under some conditions."""

    checkpoint: Path
    """model.pt of a run, a converted file, or with --configuration a file of the authors."""
    configuration: str = ""
    """Of the authors' file: the profile of the same name, such as cmt_voxel0075_vov_1600x640."""
    conditions: tuple[str, ...] = ("both",)
    """Of both, no-lidar, no-cameras, neither, no-cam-front and so on for each camera, beams-16, -8, -4 and -1."""
    version: str = ""
    """Folder of the tables; by default that of the network's data."""
    split: str = ""
    """By default the test split of the network's data; one without annotations is detected in and not judged."""
    data_root: Path | None = None
    """Folder with data sets, nuScenes in `nuscenes`; by default $TENFOLD_DATA, else ./data."""
    output: Path = Path("runs")
    """Directory of all runs, used for generated scenes and indices alone; what is found goes to --results."""
    results: Path | None = None
    """Folder for submissions in nuScenes' form, all scores, and a picture of them."""
    external: bool = False
    """Submissions say that other data were used too, as they were for V-99's first weights."""
    batch_size: int = BATCH_SIZE
    """Samples at a time."""
    fps: bool = False
    """Time the network too, one sample at a time."""
    workers: int = 4
    """Processes that read samples."""
    accelerator: Accelerator = field(default_factory=AcceleratorConfig)
    quiet: Quiet = False
    """Only warnings and errors."""

    def run(self) -> int:
        if unknown := [name for name in self.conditions if name not in CONDITIONS]:
            raise TenfoldError(f"{unknown[0]!r} is no condition; choose from {', '.join(CONDITIONS)}")
        if self.batch_size < 1 or not self.conditions:
            raise TenfoldError("give --batch-size at least 1, and --conditions at least one")
        if self.configuration:
            stored, _ = load_released(self.checkpoint, released_profile(self.configuration))
        else:
            stored = load_network(self.checkpoint)
        data = replace(
            stored.data,
            version=self.version or stored.data.version,
            test_split=self.split or stored.data.test_split,
            workers=self.workers,
        )
        method = Method(
            "network", stored.network.network, TrainConfig(), AugmentConfig(), LossConfig(denoising_groups=0)
        )
        profile = Profile("a network", data, (method,), scenes=stored.scenes)
        suite = Suite(SINGLE, profile, self.output, data_root(self.data_root), accelerator=self.accelerator)
        if suite.fabric.is_global_zero:  # read the tables once
            _ = suite.test_index
        suite.fabric.barrier()
        network = stored.network.to(suite.fabric.device)
        annotated = suite.test_index.is_annotated
        if not annotated and self.results is None:
            raise TenfoldError(
                f"the split {data.test_split} has no annotations; give --results for its submission"
            )
        found: Found = {}
        for name in self._conditions(network.network.modality):
            detections, samples = detect_condition(suite, network, name, self.batch_size)
            if suite.fabric.is_global_zero:
                submission = as_submission(samples, detections)
                self._write(name, submission, network.network.reads_images, network.network.reads_points)
                if annotated:
                    found[condition_title(name)] = score(samples, submission).metrics()
        if not suite.fabric.is_global_zero:
            return 0
        if self.fps:
            logger.info("%.1f samples a second", detections_per_second(network, samples, suite.fabric))
        self._show(found, f"{self.checkpoint}, {data.test_split}", str(network.network.modality))
        return 0

    def _conditions(self, modality: Any) -> tuple[str, ...]:  # noqa: ARG002  the robustness suite depends on it
        return self.conditions

    def _write(self, condition: str, submission: dict[str, Any], images: bool, points: bool) -> None:
        if self.results is not None:
            self.results.mkdir(parents=True, exist_ok=True)
            path = self.results / f"submission-{slug(condition)}.json"
            write_submission(path, submission, images, points, self.external)

    def _show(self, found: Found, title: str, modality: str) -> None:
        if not found:
            logger.info("no annotations to judge by; the submissions are in %s", self.results)
            return
        print_scores(found, title)
        if self.results is None:
            return
        write_json(self.results / "scores.json", found)
        for metric in ("mAP", "NDS") if len(found) > 1 else ():
            values = {modality: {condition: [one[metric]] for condition, one in found.items()}}
            draw_sensor_loss(self.results / f"conditions-{metric}.png", values, metric)


@dataclass(frozen=True)
class Robustness(Evaluate):
    """Judge a network under all conditions: no LiDAR, no cameras, any single camera missing, fewer beams."""

    conditions: tyro.conf.Suppress[tuple[str, ...]] = tuple(CONDITIONS)

    def _conditions(self, modality: Any) -> tuple[str, ...]:
        return conditions_of(modality)


def print_scores(scores: Found, title: str) -> None:
    """Print mAP, NDS and errors under each condition, times 100."""
    names = ("mAP", "NDS", "mATE", "mASE", "mAOE", "mAVE", "mAAE")
    table = Table(title=title, title_justify="left")
    table.add_column("sensors")
    for name in names:
        table.add_column(name, justify="right")
    for condition, values in scores.items():
        table.add_row(condition, *(f"{values[name]:.1f}" for name in names))
    Console().print(table)
