"""TinyMIM: distilling masked-image-modelling teachers into tiny vision transformers.

Ren, Wei, Zhang, Hu. TinyMIM: An Empirical Study of Distilling MIM Pre-trained Models. CVPR 2023, arXiv
2301.01296.
"""

from tenfold.tinymim.architectures import build_classifier, build_student, build_teacher
from tenfold.tinymim.checkpoints import (
    from_timm,
    load_official_state_dict,
    load_weights,
    timm_model,
    transfer_pretrained,
)
from tenfold.tinymim.mae import DecoderConfig
from tenfold.tinymim.optim import cosine_lr, layer_decay_groups, pretrain_decay_groups
from tenfold.tinymim.positions import resize_pos_embed, sincos_pos_embed
from tenfold.tinymim.relations import relation, relation_loss
from tenfold.tinymim.robustness import mean_corruption_error
from tenfold.tinymim.segmentation_backbone import build_segmentation_backbone
from tenfold.tinymim.targets import (
    Objective,
    TargetConfig,
    cls_loss,
    feature_loss,
    masked_autoencoding,
)
from tenfold.tinymim.teachers import Teacher
from tenfold.tinymim.timm_teachers import TimmTeacher
from tenfold.tinymim.vit import VisionTransformer, ViTConfig

__all__ = [
    "DecoderConfig",
    "Objective",
    "TargetConfig",
    "Teacher",
    "TimmTeacher",
    "ViTConfig",
    "VisionTransformer",
    "build_classifier",
    "build_segmentation_backbone",
    "build_student",
    "build_teacher",
    "cls_loss",
    "cosine_lr",
    "feature_loss",
    "from_timm",
    "layer_decay_groups",
    "load_official_state_dict",
    "load_weights",
    "masked_autoencoding",
    "mean_corruption_error",
    "pretrain_decay_groups",
    "relation",
    "relation_loss",
    "resize_pos_embed",
    "sincos_pos_embed",
    "timm_model",
    "transfer_pretrained",
]
