"""The environment of CMT's mmdet3d extra, made by ``make setup-mmdet3d``."""

from __future__ import annotations

import pytest
import torch


@pytest.mark.mmdet3d
def test_mmcv_is_built_with_its_operators() -> None:
    from mmcv.ops import nms

    boxes = torch.tensor([[0.0, 0, 10, 10], [1, 1, 10, 10], [20, 20, 30, 30]])
    _, kept = nms(boxes, torch.tensor([0.9, 0.8, 0.7]), iou_threshold=0.5)
    assert kept.tolist() == [0, 2]


@pytest.mark.mmdet3d
def test_mmdet3d_imports_and_knows_its_detectors() -> None:
    import mmdet3d.models  # noqa: F401  registers the detectors
    from mmdet3d.registry import MODELS

    assert MODELS.get("MVXTwoStageDetector") is not None
