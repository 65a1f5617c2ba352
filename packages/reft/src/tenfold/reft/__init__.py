"""RefT: reference twice, few-shot instance segmentation.

Han, Zhang, Xue, Xu, Shen, Wang, Wang, Liu, Li. Reference Twice: A Simple and Unified Baseline for Few-
Shot Instance Segmentation. TPAMI 2024, arXiv 2301.01156.
"""

from tenfold.reft.batches import Batch, Supports
from tenfold.reft.checkpoints import load_official_state_dict
from tenfold.reft.class_split import COCO_NOVEL, ClassSplit, coco_split
from tenfold.reft.classifiers import CosineClassifier
from tenfold.reft.config import (
    DataConfig,
    DistillConfig,
    LossConfig,
    NetworkConfig,
    ReferenceConfig,
    TrainConfig,
)
from tenfold.reft.distillation import base_distillation
from tenfold.reft.evaluation import evaluate, few_shot_metrics
from tenfold.reft.few_shot_sampling import sample_k_shots
from tenfold.reft.inference import instance_inference
from tenfold.reft.losses import set_losses
from tenfold.reft.model import RefT
from tenfold.reft.official_files import read_released
from tenfold.reft.references import (
    FeatureReference,
    QueryReference,
    References,
    class_centres,
    masked_average_pool,
)

__all__ = [
    "COCO_NOVEL",
    "Batch",
    "ClassSplit",
    "CosineClassifier",
    "DataConfig",
    "DistillConfig",
    "FeatureReference",
    "LossConfig",
    "NetworkConfig",
    "QueryReference",
    "RefT",
    "ReferenceConfig",
    "References",
    "Supports",
    "TrainConfig",
    "base_distillation",
    "class_centres",
    "coco_split",
    "evaluate",
    "few_shot_metrics",
    "instance_inference",
    "load_official_state_dict",
    "masked_average_pool",
    "read_released",
    "sample_k_shots",
    "set_losses",
]
