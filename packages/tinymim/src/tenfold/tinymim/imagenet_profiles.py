"""The paper's experiments on ImageNet and ADE20K, as data: one suite for each table."""

from __future__ import annotations

from dataclasses import replace

from tenfold.tinymim.config import DataConfig, FinetuneConfig, NetworkConfig, PretrainConfig
from tenfold.tinymim.mae import DecoderConfig
from tenfold.tinymim.segmentation_training import CONFIGS, NetworkName
from tenfold.tinymim.suites import (
    CLS,
    FEATURE,
    FEATURES,
    RELATION,
    RELATIONS,
    Finetuning,
    Pretraining,
    Profile,
    SegmentationProfile,
)
from tenfold.tinymim.targets import TargetConfig, masked_autoencoding

_IMAGENET = DataConfig()
_SIZES = {"tiny": "T", "small": "S", "base": "B"}
_STUDENTS = {size: NetworkConfig(f"tinymim_vit_{size}_patch16") for size in _SIZES}
_CLASSIFIERS = {size: NetworkConfig(f"vit_{size}_patch16") for size in _SIZES}
_FINETUNE = {
    "base": FinetuneConfig(),
    "small": FinetuneConfig(layer_decay=0.7, drop_path=0.1),
    "tiny": FinetuneConfig(200, 2048, layer_decay=0.75, drop_path=0.1, mixup=0.2),
}
"""ViT-B's is the authors'; theirs of S and T are in a supplement that could not be read, so these are our choice."""
_SCRATCH = FinetuneConfig(
    300, 1024, base_lr=2.5e-4, min_lr=1e-5, layer_decay=1.0, drop_path=0.1, global_pool=False
)
"""DeiT's, from memory, but its repeated augmentation and changes of colour."""
_MAE = PretrainConfig(1600, 4096, warmup_epochs=40, drop_path=0.0, jitter=0.0)
_TEACHERS = {
    "base": "mae_vit_large",
    "small": "tinymim_vit_base_patch16",
    "tiny": "tinymim_vit_small_patch16",
}
"""Of the paper's models, with weights from a file."""


def _imagenet(
    size: str,
    description: str,
    setting: str,
    pretrainings: dict[str, Pretraining],
    finetunings: dict[str, Finetuning] | None = None,
) -> Profile:
    methods = (
        {name: Finetuning(_FINETUNE[size], name, _CLASSIFIERS[size]) for name in pretrainings}
        if finetunings is None
        else finetunings
    )
    return Profile(
        description, _IMAGENET, pretrainings, methods, setting, seeds=(0,), checkpoint_seconds=600.0
    )


def _distilled(
    size: str,
    target: TargetConfig = RELATION,
    epochs: int = 300,
    teacher: str | None = None,
    last_heads: int | None = None,
) -> Pretraining:
    teacher = teacher or _TEACHERS[size]
    return Pretraining(_STUDENTS[size], target, PretrainConfig(epochs), teacher, last_heads)


def _mae(size: str) -> Pretraining:
    return Pretraining(NetworkConfig(f"mae_vit_{size}"), masked_autoencoding(DecoderConfig()), _MAE)


def imagenet_profiles() -> dict[str, Profile]:
    found = {
        f"imagenet-{size}": _imagenet(
            size,
            f"ImageNet, TinyMIM-{letter} from {_TEACHERS[size]} (--teacher-weights): 300 epochs, then fine-tuned",
            f"ViT-{letter}",
            {"TinyMIM": _distilled(size)},
        )
        for size, letter in _SIZES.items()
    }
    found["imagenet-chain"] = _imagenet(
        "tiny",
        "ImageNet, the whole chain: MAE-L (--teacher-weights) to TinyMIM-B, S, T; T is fine-tuned",
        "ViT-T",
        {
            "TinyMIM-B": _distilled("base"),
            "TinyMIM-S": _distilled("small", teacher="TinyMIM-B"),
            "TinyMIM-T": _distilled("tiny", teacher="TinyMIM-S"),
        },
        {"TinyMIM": Finetuning(_FINETUNE["tiny"], "TinyMIM-T", _CLASSIFIERS["tiny"])},
    )
    star = NetworkConfig("tinymim_star_tiny")
    found["imagenet-tiny-star"] = _imagenet(
        "tiny",
        "ImageNet, TinyMIM*-T from TinyMIM-S (--teacher-weights), 1000 epochs with a teacher's classes; a guess",
        "ViT-T",
        {"TinyMIM*": _distilled("tiny")},
        {
            "TinyMIM*": Finetuning(
                replace(_FINETUNE["tiny"], epochs=1000, teacher="regnety_160.deit_in1k"), "TinyMIM*", star
            )
        },
    )
    for size, letter in _SIZES.items():
        found[f"imagenet-strategies-{size}"] = _imagenet(
            size,
            f"ImageNet, ViT-{letter} from scratch, after MAE, and after distilling CLS, features, relations",
            f"strategies, ViT-{letter}",
            {
                "relation": _distilled(size),
                "feature": _distilled(size, FEATURE),
                "CLS": _distilled(size, CLS),
                "MAE": _mae(size),
            },
            {
                **{
                    name: Finetuning(_FINETUNE[size], name, _CLASSIFIERS[size])
                    for name in ("relation", "feature", "CLS", "MAE")
                },
                "supervised": Finetuning(_SCRATCH, network=_CLASSIFIERS[size]),
            },
        )
    return found


def imagenet_ablations() -> dict[str, Profile]:
    """ViT-B, 100 epochs, MAE's ViT-L as teacher."""

    def of(title: str, arms: dict[str, Pretraining]) -> Profile:
        return _imagenet("base", f"ImageNet, ViT-B, 100 epochs: {title}", title.split(" (")[0], arms)

    def by_target(targets: dict[str, TargetConfig]) -> dict[str, Pretraining]:
        return {name: _distilled("base", target, 100) for name, target in targets.items()}

    base = _distilled("base", epochs=100)
    drop_paths = ((0.0, 0.0), (0.0, 0.1), (0.0, 0.2), (0.0, 0.3), (0.1, 0.1))
    sequence = {
        "S from MAE-B": ("small", "mae_vit_base"),
        "S from MAE-L": ("small", "mae_vit_large"),
        "S from TinyMIM-B": ("small", "tinymim_vit_base_patch16"),
        "T from MAE-S": ("tiny", "mae_vit_small"),
        "T from MAE-B": ("tiny", "mae_vit_base"),
        "T from TinyMIM-S": ("tiny", "tinymim_vit_small_patch16"),
    }
    found = {
        "cls": of(
            "CLS token (and MAE, 1600 epochs)",
            by_target({"CLS": CLS, "CLS, reconstruction": replace(CLS, masked=True, reconstruction=True)})
            | {"MAE": _mae("base")},
        ),
        "features": of("features", by_target(FEATURES)),
        "relations": of("relations", by_target(RELATIONS)),
        "target-block": of(
            "target block",
            by_target(
                {f"block {block}": replace(RELATION, target_block=block) for block in (12, 15, 18, 21, 24)}
            ),
        ),
        "input": of(
            "input",
            by_target(
                {
                    "raw": RELATION,
                    "masked": replace(RELATION, masked=True),
                    "masked, reconstruction": replace(RELATION, masked=True, reconstruction=True),
                }
            ),
        ),
        "drop-path": of(
            "drop path",
            {
                f"teacher {theirs:g}, student {ours:g}": replace(
                    base, train=replace(base.train, drop_path=ours, teacher_drop_path=theirs)
                )
                for theirs, ours in drop_paths
            },
        ),
    }
    for name, (size, teacher) in sequence.items():
        slug = name.lower().replace(" ", "-")
        heads = 16 if teacher == "mae_vit_large" else None  # 12 do not divide its width
        found[f"sequence-{slug}"] = _imagenet(
            size,
            f"ImageNet, ViT-{name} (--teacher-weights), 100 epochs",
            "sequence",
            {name: _distilled(size, epochs=100, teacher=teacher, last_heads=heads)},
        )
    return {f"imagenet-ablation-{name}": profile for name, profile in found.items()}


def segmentation_profile(size: NetworkName, letter: str, finetuned: bool = False) -> SegmentationProfile:
    method = "TinyMIM*" if size == "star" else "TinyMIM"
    origin = "fine-tuned" if finetuned else "pre-trained"
    return SegmentationProfile(
        f"ADE20K, UperNet on {origin} {method}-{letter} (--backbone-weights): 160,000 updates at 512 pixels",
        CONFIGS[size],
        method,
        f"ViT-{letter}, fine-tuned on ImageNet before" if finetuned else f"ViT-{letter}",
    )
