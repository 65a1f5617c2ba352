"""CMT: cross-modal transformer for 3-D object detection.

Yan, Liu, Sun, Jia, Li, Wang, Zhang. Cross Modal Transformer: Towards Fast and Robust 3D Object
Detection. ICCV 2023, arXiv 2301.01283.
"""

from tenfold.cmt.assignment import assign, matching_costs
from tenfold.cmt.box_coding import box_codes, decode_boxes, encode_boxes
from tenfold.cmt.checkpoints import load_image_pretraining, load_official_state_dict
from tenfold.cmt.config import (
    CAMERAS,
    CLASSES,
    AugmentConfig,
    DataConfig,
    HeadConfig,
    ImageConfig,
    LidarConfig,
    LossConfig,
    NetworkConfig,
    TrainConfig,
)
from tenfold.cmt.dataset import TestSamples, TrainingSamples, prepare
from tenfold.cmt.decoding import Detections, decode_detections
from tenfold.cmt.denoising import prepare_denoising
from tenfold.cmt.detector import Cmt
from tenfold.cmt.head import CmtHead, Predictions
from tenfold.cmt.losses import detection_losses
from tenfold.cmt.nuscenes_index import NuScenesIndex, load_index
from tenfold.cmt.official_files import read_released
from tenfold.cmt.procedural_scenes import SceneConfig, generate_scenes
from tenfold.cmt.profiles import PROFILES
from tenfold.cmt.samples import Batch, Sample, collate
from tenfold.cmt.sensor_conditions import CONDITIONS
from tenfold.cmt.voxelization import voxelize

__all__ = [
    "CAMERAS",
    "CLASSES",
    "CONDITIONS",
    "PROFILES",
    "AugmentConfig",
    "Batch",
    "Cmt",
    "CmtHead",
    "DataConfig",
    "Detections",
    "HeadConfig",
    "ImageConfig",
    "LidarConfig",
    "LossConfig",
    "NetworkConfig",
    "NuScenesIndex",
    "Predictions",
    "Sample",
    "SceneConfig",
    "TestSamples",
    "TrainConfig",
    "TrainingSamples",
    "assign",
    "box_codes",
    "collate",
    "decode_boxes",
    "decode_detections",
    "detection_losses",
    "encode_boxes",
    "generate_scenes",
    "load_image_pretraining",
    "load_index",
    "load_official_state_dict",
    "matching_costs",
    "prepare",
    "prepare_denoising",
    "read_released",
    "voxelize",
]
