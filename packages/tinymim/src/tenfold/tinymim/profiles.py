"""The experiment suites, as data; those of ImageNet and ADE20K are in ``imagenet_profiles``."""

from __future__ import annotations

from dataclasses import replace

from tenfold.tinymim.augmentation import CropConfig
from tenfold.tinymim.config import DataConfig, FinetuneConfig, NetworkConfig, PretrainConfig
from tenfold.tinymim.imagenet_profiles import imagenet_ablations, imagenet_profiles, segmentation_profile
from tenfold.tinymim.mae import DecoderConfig
from tenfold.tinymim.suites import (
    CLS,
    FEATURE,
    FEATURES,
    RELATION,
    RELATIONS,
    Finetuning,
    Pretraining,
    Profile,
)
from tenfold.tinymim.targets import TargetConfig, masked_autoencoding

# -- digits --------------------------------------------------------------------------------------------

_DIGITS = DataConfig(
    "digits", image_size=24, crop=CropConfig((0.5, 1.0), (1.0, 1.0), False, "bilinear"), labelled=100 / 1297
)
_DIGITS_PATCH = 6
_DIGITS_TEACHER = NetworkConfig(patch_size=_DIGITS_PATCH, embed_dim=64, depth=6, num_heads=8)
_DIGITS_STUDENT = NetworkConfig(patch_size=_DIGITS_PATCH, embed_dim=32, depth=3, num_heads=4)
_SMALL_DECODER = DecoderConfig(32, 1, 4)


def _digits_recipe(epochs: int, batch_size: int, lr: float, drop_path: float = 0.1) -> PretrainConfig:
    return PretrainConfig(
        epochs,
        batch_size,
        base_lr=lr * 256 / batch_size,
        warmup_epochs=epochs / 10,
        drop_path=drop_path,
        jitter=0.0,
    )


def _digits_teacher(epochs: int = 45) -> Pretraining:
    recipe = _digits_recipe(epochs, 128, 1.5e-3, drop_path=0.0)
    return Pretraining(_DIGITS_TEACHER, masked_autoencoding(DecoderConfig(64, 1, 4)), recipe, once=True)


def _digits_student(
    target: TargetConfig, teacher: str | None = "MAE teacher", epochs: int = 19
) -> Pretraining:
    return Pretraining(_DIGITS_STUDENT, target, _digits_recipe(epochs, 64, 2e-3), teacher, last_heads=8)


def _digits_finetuning(epochs: int = 180) -> FinetuneConfig:
    return FinetuneConfig(
        epochs=epochs,
        batch_size=50,
        base_lr=4e-3 * 256 / 50,
        min_lr=0.0,
        warmup_epochs=epochs / 10,
        layer_decay=1.0,
        drop_path=0.0,
        mixup=0.0,
        cutmix=0.0,
        randaugment="",
        erasing=0.0,
        evaluate_every=max(1, epochs // 4),
    )


_FROM_DIGITS = _digits_finetuning()
_QUICK_STUDENTS = {
    "MAE teacher": _digits_teacher(),
    "relation": _digits_student(RELATION),
    "feature": _digits_student(FEATURE),
    "CLS": _digits_student(CLS),
    "MAE": _digits_student(masked_autoencoding(_SMALL_DECODER), None),
}
_QUICK_METHODS = {
    "relation": Finetuning(_FROM_DIGITS, "relation"),
    "feature": Finetuning(_FROM_DIGITS, "feature"),
    "supervised": Finetuning(replace(_FROM_DIGITS, positions="sincos"), network=_DIGITS_STUDENT),
    "MAE": Finetuning(_FROM_DIGITS, "MAE"),
    "CLS": Finetuning(_FROM_DIGITS, "CLS"),
}
_MASKED = {
    "masked": replace(RELATION, masked=True),
    "masked, reconstruction": replace(RELATION, masked=True, reconstruction=True, decoder=_SMALL_DECODER),
    "CLS, reconstruction": replace(CLS, masked=True, reconstruction=True, decoder=_SMALL_DECODER),
}
_CHAIN = {
    "larger student": replace(
        _digits_student(RELATION), network=replace(_DIGITS_STUDENT, embed_dim=48, depth=6)
    ),
    "sequential": replace(_digits_student(RELATION, "larger student"), last_heads=4),
    "sequential, trained heads": replace(_digits_student(RELATION, "larger student"), head_policy="trained"),
}


def _ablation() -> Profile:
    targets = {
        **{name: target for name, target in RELATIONS.items() if name != "QK+VV"},
        **{f"feature: {name}": target for name, target in FEATURES.items() if name != "output"},
        **_MASKED,
        **{f"block {block}": replace(RELATION, target_block=block) for block in (4, 5)},
    }
    pretrainings = {
        **_QUICK_STUDENTS,
        **{name: _digits_student(target) for name, target in targets.items()},
        **_CHAIN,
    }
    finetunings = {
        **_QUICK_METHODS,
        **{
            name: Finetuning(_FROM_DIGITS, name)
            for name in pretrainings
            if name not in ("MAE teacher", "relation")
        },
        "relation, 8 heads kept": Finetuning(replace(_FROM_DIGITS, keep_pretrain_heads=True), "relation"),
    }
    return Profile(
        "quick with every other target: relations, features, masks, blocks, heads, a chain of teachers; an hour",
        _DIGITS,
        pretrainings,
        finetunings,
        "24 px, 100 labels",
    )


def _smoke() -> Profile:
    recipe = _digits_finetuning(4)
    pretrainings = {
        "MAE teacher": _digits_teacher(2),
        "relation": _digits_student(RELATION, epochs=2),
        "sequential": replace(_digits_student(RELATION, "relation", epochs=2), last_heads=4),
    }
    return Profile(
        "seconds: a teacher, a student, the student's student, far too short to learn from",
        _DIGITS,
        pretrainings,
        {
            "relation": Finetuning(recipe, "relation"),
            "sequential": Finetuning(recipe, "sequential"),
            "supervised": Finetuning(replace(recipe, positions="sincos"), network=_DIGITS_STUDENT),
        },
        "24 px, 100 labels, smoke",
        seeds=(0, 1),
    )


# -- one GPU -------------------------------------------------------------------------------------------


def _gpu(data: DataConfig, patch: int, epochs: tuple[int, int, int], batch: int, description: str) -> Profile:
    """A teacher of 384 x 12, students of 192 x 12, fine-tuning with 10 % and all of the labels."""
    first, second, third = epochs
    teacher = NetworkConfig(patch_size=patch, embed_dim=384, depth=12, num_heads=12)
    student = NetworkConfig(patch_size=patch, embed_dim=192, depth=12, num_heads=3)
    mae = PretrainConfig(first, batch, 1.5e-4, warmup_epochs=first / 10, drop_path=0.0, jitter=0.0)
    recipe = PretrainConfig(second, batch, 1.5e-4, warmup_epochs=second / 10)
    decoder = DecoderConfig(192, 4, 6)
    targets = {
        "relation": RELATION,
        "relation, QQ+KK+VV": RELATIONS["QQ+KK+VV"],
        "feature": FEATURE,
        "CLS": CLS,
    }
    pretrainings = {
        "MAE teacher": Pretraining(teacher, masked_autoencoding(decoder), mae, once=True),
        **{
            name: Pretraining(student, target, recipe, "MAE teacher", last_heads=12, once=True)
            for name, target in targets.items()
        },
        "MAE": Pretraining(
            student, masked_autoencoding(decoder), replace(recipe, drop_path=0.0, jitter=0.0), once=True
        ),
    }
    finetune = FinetuneConfig(
        third,
        min(512, batch),
        warmup_epochs=third / 10,
        layer_decay=0.75,
        drop_path=0.1,
        randaugment="",
        erasing=0.0,
        crop_scale=data.crop.scale,
    )
    methods = {name: Finetuning(finetune, name) for name in pretrainings if name != "MAE teacher"}
    from_scratch = replace(finetune, layer_decay=1.0, positions="sincos")
    scratch = {"supervised": Finetuning(from_scratch, network=student)}
    setting = f"{data.image_size} px, {data.labelled:.0%} of labels"
    return Profile(
        description, data, pretrainings, {**methods, **scratch}, setting, seeds=(0,), checkpoint_seconds=60.0
    )


_CIFAR = DataConfig("cifar10", image_size=32, labelled=0.1)
_CLOTHING = DataConfig("clothing128", image_size=112)


PROFILES: dict[str, Profile] = {
    "smoke": _smoke(),
    "quick": Profile(
        "digits with 100 labels: relations, features, CLS, MAE, and from scratch; minutes on two cores",
        _DIGITS,
        _QUICK_STUDENTS,
        _QUICK_METHODS,
        "24 px, 100 labels",
    ),
    "ablation": _ablation(),
    "h100": _gpu(_CIFAR, 4, (200, 100, 50), 1024, "CIFAR-10, 10 % of the labels: all strategies; one GPU"),
    "h100-all-labels": _gpu(
        replace(_CIFAR, labelled=1.0),
        4,
        (200, 100, 50),
        1024,
        "CIFAR-10 with all labels: all strategies; one GPU",
    ),
    "h100-clothing": _gpu(
        _CLOTHING, 14, (800, 400, 100), 512, "clothing128 at 112 pixels: all strategies; one GPU"
    ),
    **imagenet_profiles(),
    **imagenet_ablations(),
}
"""Of classifiers."""
SEGMENTATION_PROFILES = {
    "ade20k-tiny": segmentation_profile("tiny", "T"),
    "ade20k-small": segmentation_profile("small", "S"),
    "ade20k-base": segmentation_profile("base", "B"),
    "ade20k-tiny-finetuned": segmentation_profile("tiny", "T", finetuned=True),
    "ade20k-small-finetuned": segmentation_profile("small", "S", finetuned=True),
    "ade20k-base-finetuned": segmentation_profile("base", "B", finetuned=True),
    "ade20k-tiny-star": segmentation_profile("star", "T", finetuned=True),
}
"""Of segmenters, which begin with weights from a file."""
