"""CMT for mmdet3d: the detector, its parts, transforms and metric under names that its configs can use.

A config with ``custom_imports = dict(imports=["tenfold.cmt.openmmlab"])`` knows ``TenfoldCmt`` and the other names of
:data:`REGISTERED`. Complete ones are in :data:`CONFIG_FOLDER`; their data are written by
:func:`tenfold.cmt.openmmlab_data.write_infos`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import mmengine.dist
import numpy as np
import torch
from mmdet.models.task_modules.assigners import AssignResult, BaseAssigner
from mmdet3d.models import Base3DDetector
from mmdet3d.registry import METRICS, MODELS, TASK_UTILS, TRANSFORMS
from mmdet3d.structures import LiDARInstance3DBoxes
from mmengine.structures import InstanceData
from torch import Tensor, nn

from tenfold.cmt.assignment import assign, matching_costs
from tenfold.cmt.bev_backbone import Second, SecondFpn
from tenfold.cmt.box_coding import encode_boxes
from tenfold.cmt.checkpoints import released_state_dict
from tenfold.cmt.config import HeadConfig, LidarConfig, LossConfig, Modality, NetworkConfig
from tenfold.cmt.denoising import prepare_denoising
from tenfold.cmt.detector import Cmt
from tenfold.cmt.grid_mask import draw_grid_mask, grid_mask
from tenfold.cmt.head import CmtHead, Predictions
from tenfold.cmt.image_backbone import CPFPN, VoVNet
from tenfold.cmt.losses import by_released_names, detection_losses
from tenfold.cmt.openmmlab_adapters import make_batch, settings
from tenfold.cmt.openmmlab_checkpoints import make_checkpoints_loadable
from tenfold.cmt.openmmlab_metric import NuScenesMetric
from tenfold.cmt.openmmlab_transforms import ImageMove, PasteObjects, SceneMove
from tenfold.cmt.samples import Batch
from tenfold.cmt.sparse_encoder import SparseEncoder

if TYPE_CHECKING:
    from lightning_fabric import Fabric

CONFIG_FOLDER = Path(__file__).parent / "openmmlab_configs"
"""Shipped configs."""
INNER = "detector."
"""Prefix of the network's parameters inside :class:`CmtDetector`, which its state dict leaves out."""


class CmtDetector(Base3DDetector):  # type: ignore[misc]
    """:class:`tenfold.cmt.detector.Cmt` as mmengine's runner drives it.

    Its state dict has the released names, so ``load_from`` takes released files and our own runs' weights. Images
    arrive as bytes or floats from 0 to 255, blue first: the network normalises them itself. So the data preprocessor
    is mmdet3d's ``Det3DDataPreprocessor`` without mean, standard deviation and voxels.

    Args:
        network: fields of :class:`tenfold.cmt.config.NetworkConfig`, with mappings for ``lidar``, ``image``, ``head``.
        losses: fields of :class:`tenfold.cmt.config.LossConfig`.
        max_detections: most of a sample.
        data_preprocessor: of mmdet3d.
        init_cfg: of mmengine, for pretrained weights.
    """

    def __init__(
        self,
        network: Mapping[str, Any],
        losses: Mapping[str, Any] | None = None,
        max_detections: int = 300,
        data_preprocessor: dict[str, Any] | None = None,
        init_cfg: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(
            data_preprocessor=data_preprocessor or {"type": "mmdet3d.Det3DDataPreprocessor"},
            init_cfg=init_cfg,
        )
        self.detector = Cmt(settings(NetworkConfig, network))
        self.losses = settings(LossConfig, losses)
        self.max_detections = max_detections
        self.register_state_dict_post_hook(_without_inner)
        self.register_load_state_dict_pre_hook(_with_inner)

    def loss(
        self, batch_inputs: dict[str, Any], batch_data_samples: Sequence[Any], **_: Any
    ) -> dict[str, Tensor]:
        """All losses under the released names; mmengine minimises their sum.

        Noise and grid masks follow torch's global generator, which mmengine seeds.
        """
        batch = make_batch(batch_inputs, batch_data_samples, self.detector.network, training=True)
        head = self.detector.pts_bbox_head
        noised = prepare_denoising(
            batch.boxes, batch.labels, batch.counts, head.config.queries, head.low, head.extent, self.losses
        )
        predictions = self.detector(batch, noised, self._mask(batch))
        with torch.autocast(batch.boxes.device.type, enabled=False):
            rows = detection_losses(
                predictions,
                batch.boxes,
                batch.labels,
                batch.counts,
                self.losses,
                head.config,
                noised,
                cast("Fabric", _Processes()),
            )
        return by_released_names(rows)

    def predict(self, batch_inputs: dict[str, Any], batch_data_samples: Sequence[Any], **_: Any) -> Any:
        """The data samples with ``pred_instances_3d``: ``bboxes_3d``, ``scores_3d`` and ``labels_3d``, best first."""
        batch = make_batch(batch_inputs, batch_data_samples, self.detector.network, training=False)
        found = [
            InstanceData(
                bboxes_3d=LiDARInstance3DBoxes(one.boxes, box_dim=one.boxes.shape[1]),
                scores_3d=one.scores,
                labels_3d=one.labels,
            )
            for one in self.detector.detect(batch, self.max_detections)
        ]
        return self.add_pred_to_datasample(batch_data_samples, found)

    def _forward(
        self, batch_inputs: dict[str, Any], batch_data_samples: Sequence[Any] | None = None, **_: Any
    ) -> Predictions:
        """What the queries say after every layer."""
        batch = make_batch(batch_inputs, batch_data_samples, self.detector.network, self.training)
        found: Predictions = self.detector(batch)
        return found

    def extract_feat(
        self, batch_inputs: dict[str, Any], batch_data_samples: Sequence[Any]
    ) -> tuple[Tensor | None, Tensor | None]:
        """Image features [B * V, D, H / 16, W / 16] and the map [B, C, Y / 8, X / 8]; None for what is not read."""
        batch = make_batch(batch_inputs, batch_data_samples, self.detector.network, self.training)
        features = None if batch.images is None else self.detector.read_images(batch.images)
        bev = None if batch.voxels is None else self.detector.read_points(batch.voxels, len(batch.tokens))
        return features, bev

    def _mask(self, batch: Batch) -> Tensor | None:
        image = self.detector.network.image
        if batch.images is None or image.grid_mask == 0:
            return None
        generator = np.random.default_rng(int(torch.randint(2**31, ())))
        drawn = draw_grid_mask(image.size, generator, image.grid_mask)
        return None if drawn is None else grid_mask(*image.size, *drawn, device=batch.images.device)


def _without_inner(module: nn.Module, state: dict[str, Any], prefix: str, _: Any) -> None:  # noqa: ARG001
    inner = prefix + INNER
    for key in [key for key in state if key.startswith(inner)]:
        state[prefix + key.removeprefix(inner)] = state.pop(key)


def _with_inner(module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """Rename parameters to where they are in the module; kernels that are stored with other axes are turned."""
    expected = {key: value.shape for key, value in cast("CmtDetector", module).detector.state_dict().items()}
    keys = [
        key for key in state if key.startswith(prefix) and not key.startswith(f"{prefix}data_preprocessor.")
    ]
    given = {key.removeprefix(prefix).removeprefix(INNER): state.pop(key) for key in keys}
    fitted = released_state_dict(given, expected)
    state.update({f"{prefix}{INNER}{key}": value for key, value in fitted.items()})


class _Processes:
    """What losses ask Fabric for, answered by mmengine."""

    @property
    def world_size(self) -> int:
        return int(mmengine.dist.get_world_size())

    def all_reduce(self, values: Tensor, reduce_op: str) -> Tensor:
        mmengine.dist.all_reduce(values, op=reduce_op)
        return values


class HungarianAssigner(BaseAssigner):  # type: ignore[misc]
    """Our matching for heads of mmdet and mmdet3d.

    Args:
        losses: fields of :class:`tenfold.cmt.config.LossConfig`; those of matching are read.
    """

    def __init__(self, **losses: Any) -> None:
        self.losses = settings(LossConfig, losses)

    def assign(
        self,
        pred_instances: InstanceData,
        gt_instances: InstanceData,
        gt_instances_ignore: InstanceData | None = None,  # noqa: ARG002  the interface has it
        **_: Any,
    ) -> AssignResult:
        """Match the queries of one sample.

        Args:
            pred_instances: ``bboxes``, codes [Q, 10] as in :mod:`tenfold.cmt.box_coding`, and ``scores``, logits
                [Q, C].
            gt_instances: ``bboxes_3d``, N LiDAR boxes of nine numbers, and ``labels_3d`` [N].
            gt_instances_ignore: not used.
        """
        codes, logits, labels = pred_instances.bboxes, pred_instances.scores, gt_instances.labels_3d
        targets = encode_boxes(gt_instances.bboxes_3d.tensor.to(codes.device))
        costs = matching_costs(
            codes[None, None], logits[None, None], targets[None], labels[None], self.losses
        )
        found = assign(costs, (len(labels),))
        queries, matched = found.queries[0, 0], found.matched[0, 0]
        numbers = torch.arange(1, len(labels) + 1, device=labels.device)
        places = labels.new_zeros(len(codes)).index_put((queries[matched],), numbers[matched])
        classes = labels.new_full((len(codes),), -1).index_put((queries[matched],), labels[matched])
        return AssignResult(len(labels), places, None, labels=classes)


class ListedFpn(SecondFpn):
    """:class:`tenfold.cmt.bev_backbone.SecondFpn` that returns its map in a list, as mmdet3d's necks do."""

    def forward(self, levels: Sequence[Tensor]) -> list[Tensor]:  # type: ignore[override]
        return [super().forward(levels)]


class ListedCPFPN(CPFPN):
    """:class:`tenfold.cmt.image_backbone.CPFPN` that takes its levels together, as mmdet3d's necks do."""

    def __init__(self, in_channels: Sequence[int], out_channels: int) -> None:
        fine, coarse = in_channels
        super().__init__((fine, coarse), out_channels)

    def forward(self, levels: Sequence[Tensor]) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        return super().forward(*levels)


def sparse_encoder(**lidar: Any) -> SparseEncoder:
    """The sparse encoder of the fields of :class:`tenfold.cmt.config.LidarConfig`."""
    return SparseEncoder(settings(LidarConfig, lidar))


def cmt_head(
    modality: Modality = "fusion",
    point_range: Sequence[float] = LidarConfig.point_range,
    map_channels: int = 512,
    **head: Any,
) -> CmtHead:
    """The head of the fields of :class:`tenfold.cmt.config.HeadConfig`; the others are those of the head itself."""
    return CmtHead(settings(HeadConfig, head), modality, tuple(point_range), map_channels)


REGISTERED: dict[Any, dict[str, Any]] = {
    MODELS: {
        "TenfoldCmt": CmtDetector,
        "TenfoldSparseEncoder": sparse_encoder,
        "TenfoldSecond": Second,
        "TenfoldSecondFpn": ListedFpn,
        "TenfoldVoVNet": VoVNet,
        "TenfoldCPFPN": ListedCPFPN,
        "TenfoldCmtHead": cmt_head,
    },
    TASK_UTILS: {"TenfoldHungarianAssigner": HungarianAssigner},
    TRANSFORMS: {
        "TenfoldPasteObjects": PasteObjects,
        "TenfoldSceneMove": SceneMove,
        "TenfoldImageMove": ImageMove,
    },
    METRICS: {"TenfoldNuScenesMetric": NuScenesMetric},
}
"""What configs can name, by mmdet3d's registry."""


def register() -> None:
    """Make all of :data:`REGISTERED` known to mmdet3d; importing this module does it, and again does no harm."""
    for registry, members in REGISTERED.items():
        for name, member in members.items():
            registry.register_module(name=name, module=member, force=True)
    make_checkpoints_loadable()


register()
