"""EMO: efficient attention-based mobile models.

Zhang, Li, Li, Liu, Xue, Zhang, Jiang, Huang, Wang, Wang. Rethinking Mobile Block for Efficient Attention-based Models.
ICCV 2023, arXiv 2301.01146.
"""

from tenfold.emo import registry
from tenfold.emo.blocks import InvertedResidualMobileBlock, WindowAttention
from tenfold.emo.checkpoints import load_official_state_dict, load_weights, to_official
from tenfold.emo.complexity import count_flops, count_parameters
from tenfold.emo.inference import reparameterize
from tenfold.emo.model import EMO, Architecture, build_model, features
from tenfold.emo.recipe import (
    ExponentialMovingAverage,
    distillation_loss,
    label_smoothing_loss,
    learning_rate,
    parameter_groups,
    soft_target_loss,
    train_step,
)

__all__ = [
    "EMO",
    "Architecture",
    "ExponentialMovingAverage",
    "InvertedResidualMobileBlock",
    "WindowAttention",
    "build_model",
    "count_flops",
    "count_parameters",
    "distillation_loss",
    "features",
    "label_smoothing_loss",
    "learning_rate",
    "load_official_state_dict",
    "load_weights",
    "parameter_groups",
    "registry",
    "reparameterize",
    "soft_target_loss",
    "to_official",
    "train_step",
]
