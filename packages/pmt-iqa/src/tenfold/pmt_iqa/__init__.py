"""PMT-IQA: blind image quality assessment by progressive multi-task learning."""

from tenfold.pmt_iqa.checkpoints import load_official_state_dict, official_state_dict
from tenfold.pmt_iqa.config import JudgeConfig, ModelConfig, RunConfig, TrainConfig
from tenfold.pmt_iqa.datasets import ImageSet, csv_table, load, load_dataset
from tenfold.pmt_iqa.evaluation import agreement, median_over_runs, patch_average_metrics
from tenfold.pmt_iqa.levels import quality_level
from tenfold.pmt_iqa.losses import multitask_loss
from tenfold.pmt_iqa.model import HyperNetwork, MultiTaskNetwork, PlainNetwork, Quality, build_model, forward
from tenfold.pmt_iqa.schedules import official_learning_rate, progressive_weights, task_weights
from tenfold.pmt_iqa.scoring import Score, Scorer
from tenfold.pmt_iqa.splits import split_by_group
from tenfold.pmt_iqa.training import train

__all__ = [
    "HyperNetwork",
    "ImageSet",
    "JudgeConfig",
    "ModelConfig",
    "MultiTaskNetwork",
    "PlainNetwork",
    "Quality",
    "RunConfig",
    "Score",
    "Scorer",
    "TrainConfig",
    "agreement",
    "build_model",
    "csv_table",
    "forward",
    "load",
    "load_dataset",
    "load_official_state_dict",
    "median_over_runs",
    "multitask_loss",
    "official_learning_rate",
    "official_state_dict",
    "patch_average_metrics",
    "progressive_weights",
    "quality_level",
    "split_by_group",
    "task_weights",
    "train",
]
