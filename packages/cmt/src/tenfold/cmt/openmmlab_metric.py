"""nuScenes' evaluation of mmdet3d's results on any split, the devkit's own or one of ``splits.json``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import mmengine
import numpy as np
from mmengine.evaluator import BaseMetric

from tenfold.cmt.decoding import Detections
from tenfold.cmt.evaluation import Evaluator
from tenfold.cmt.submission import submission_boxes, write_submission
from tenfold.shared.logging import TenfoldError


class NuScenesMetric(BaseMetric):  # type: ignore[misc]
    """mAP, NDS, mean errors and the precision of every class, times 100 as tables print them.

    Args:
        data_root: folder of the data set.
        ann_file: info file of the split, see :func:`tenfold.cmt.openmmlab_data.write_infos`; it names tables and split.
        submission: file to write results to, in nuScenes' form.
        format_only: do not judge results, for splits without annotations.
        modality: ``use_lidar`` and ``use_camera``, which a submission states.
        collect_device: ``cpu`` or ``gpu``, where results of several processes meet.
        prefix: of the names of metrics; ``NuScenes`` by default.

    Raises:
        TenfoldError: nothing is to be done with results, or the info file is not ours.
    """

    default_prefix = "NuScenes"

    def __init__(
        self,
        data_root: str,
        ann_file: str,
        submission: str | None = None,
        format_only: bool = False,
        modality: Mapping[str, bool] | None = None,
        collect_device: str = "cpu",
        prefix: str | None = None,
    ) -> None:
        super().__init__(collect_device=collect_device, prefix=prefix)
        if format_only and submission is None:
            raise TenfoldError("format_only writes a file and does no more; name it with submission")
        self.root, self.ann_file = Path(data_root), ann_file
        self.submission = None if submission is None else Path(submission)
        self.format_only = format_only
        self.modality = {"use_lidar": True, "use_camera": True, **(modality or {})}

    def process(self, data_batch: Any, data_samples: Sequence[Mapping[str, Any]]) -> None:  # noqa: ARG002
        """Keep the results of a batch in main memory."""
        for sample in data_samples:
            found = sample["pred_instances_3d"]
            detections = Detections(found["bboxes_3d"].tensor, found["scores_3d"], found["labels_3d"])
            self.results.append((sample["sample_idx"], detections.cpu()))

    def compute_metrics(self, results: Sequence[tuple[int, Detections]]) -> dict[str, float]:
        """Judge the results of all processes, and write them where that was asked for.

        Raises:
            TenfoldError: samples of the split have no results; the info file does not say which split it is of.
        """
        content = mmengine.load(self.ann_file)
        infos, about = content["data_list"], content["metainfo"]
        if "split" not in about:
            raise TenfoldError(f"{self.ann_file} does not name its split; write it with write_infos")
        boxes = {infos[place]["token"]: _boxes(infos[place], found) for place, found in results}
        if self.submission is not None:
            write_submission(self.submission, boxes, self.modality["use_camera"], self.modality["use_lidar"])
        if self.format_only:
            return {}
        return Evaluator(self.root, about["version"], about["split"]).evaluate(boxes).metrics()


def _boxes(info: Mapping[str, Any], found: Detections) -> list[dict[str, Any]]:
    lidar2ego = np.asarray(info["lidar_points"]["lidar2ego"])
    return submission_boxes(found, lidar2ego, np.asarray(info["ego2global"]), info["token"])
