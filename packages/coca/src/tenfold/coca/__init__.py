"""CoCa: general continual learning by complementary calibration.

Ji, Li, Wang and Zhang, IEEE TIP 2023, https://arxiv.org/abs/2109.02426. A learner that replays a small memory distils
outputs whose relations have aged, and its features tell old classes apart badly. CoCa lets the stored outputs follow
the relations of the present ones (collaborative distillation), and trains features on rotated views of old and new
images together (collaborative self-supervision). It needs no task boundaries.
"""

from tenfold.coca.augmentation import Preprocessing
from tenfold.coca.checkpoints import load_official_state_dict
from tenfold.coca.config import LearnerConfig, NetworkConfig, StreamConfig, TrainConfig
from tenfold.coca.image_sets import ImageSet, TrainTest, load_image_sets
from tenfold.coca.learner import Learner
from tenfold.coca.losses import (
    collaborative_distillation_loss,
    ensemble_outputs,
    supervised_contrastive_loss,
)
from tenfold.coca.memory import ReservoirMemory
from tenfold.coca.methods import METHODS, coca_step_loss
from tenfold.coca.networks import build_model
from tenfold.coca.pretext_views import scale_rotate, zoom_rotate
from tenfold.coca.streams import Stream, blurry_stream, domain_stream, make_stream, split_stream

__all__ = [
    "METHODS",
    "ImageSet",
    "Learner",
    "LearnerConfig",
    "NetworkConfig",
    "Preprocessing",
    "ReservoirMemory",
    "Stream",
    "StreamConfig",
    "TrainConfig",
    "TrainTest",
    "blurry_stream",
    "build_model",
    "coca_step_loss",
    "collaborative_distillation_loss",
    "domain_stream",
    "ensemble_outputs",
    "load_image_sets",
    "load_official_state_dict",
    "make_stream",
    "scale_rotate",
    "split_stream",
    "supervised_contrastive_loss",
    "zoom_rotate",
]
