"""Entry points for ``timm.create_model``, where timm has none of its own."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import timm
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model

from tenfold.emo.checkpoints import to_ours
from tenfold.emo.model import ARCHITECTURES, EMO

_CFG = {
    "url": "",
    "num_classes": 1000,
    "input_size": (3, 224, 224),
    "pool_size": (7, 7),
    "crop_pct": 0.875,
    "interpolation": "bicubic",
    "mean": IMAGENET_DEFAULT_MEAN,
    "std": IMAGENET_DEFAULT_STD,
    "first_conv": "stem.conv",
    "classifier": "head",
}
default_cfgs = generate_default_cfgs({f"{name}.in1k": dict(_CFG) for name in ARCHITECTURES})
"""What timm knows of the networks. Their weights are the authors' files, which no hub of timm's serves."""


def create_emo(variant: str, pretrained: bool = False, **kwargs: Any) -> EMO:
    """A network through timm's builder; what ``Architecture`` has may be given as well."""
    changes = {
        key: kwargs.pop(key) for key in list(kwargs) if key in ARCHITECTURES[variant].__dataclass_fields__
    }
    kwargs.pop("img_size", None)  # windows fit any size
    model: EMO = build_model_with_cfg(
        EMO,
        variant,
        pretrained,
        architecture=replace(ARCHITECTURES[variant], **changes),
        pretrained_filter_fn=lambda weights, model: to_ours(weights, model.architecture),
        feature_cfg={"out_indices": (0, 1, 2, 3), "flatten_sequential": True},
        **kwargs,
    )
    return model


def emo_1m(pretrained: bool = False, **kwargs: Any) -> EMO:
    """EMO-1M: 1.36 M parameters, 261 M multiply-accumulates at 224."""
    return create_emo("emo_1m", pretrained, **kwargs)


def emo_2m(pretrained: bool = False, **kwargs: Any) -> EMO:
    """EMO-2M: 2.38 M parameters, 439 M multiply-accumulates at 224."""
    return create_emo("emo_2m", pretrained, **kwargs)


def emo_5m(pretrained: bool = False, **kwargs: Any) -> EMO:
    """EMO-5M: 5.11 M parameters, 903 M multiply-accumulates at 224."""
    return create_emo("emo_5m", pretrained, **kwargs)


def emo_6m(pretrained: bool = False, **kwargs: Any) -> EMO:
    """EMO-6M: 6.17 M parameters, 961 M multiply-accumulates at 224."""
    return create_emo("emo_6m", pretrained, **kwargs)


for _entry in (emo_1m, emo_2m, emo_5m, emo_6m):
    if not timm.is_model(_entry.__name__):
        register_model(_entry)
