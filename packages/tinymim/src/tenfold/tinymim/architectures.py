"""The paper's networks by name, and networks of any other shape.

=======  =====  =====  ===========================  ================
name     width  depth  heads                        last-block heads
=======  =====  =====  ===========================  ================
ViT-T    192    12     6 (3 when it is fine-tuned)  12
ViT-S    384    12     6                            12
ViT-B    768    12     12                           16
ViT-L    1024   24     16 (teacher, block 18)       -
=======  =====  =====  ===========================  ================
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from tenfold.shared.logging import TenfoldError
from tenfold.tinymim.teachers import resolve_target
from tenfold.tinymim.vit import VisionTransformer, ViTConfig

TEACHERS = {
    "mae_vit_tiny": ViTConfig(embed_dim=192, num_heads=3, target_block=12),
    "mae_vit_small": ViTConfig(embed_dim=384, num_heads=6, target_block=12),
    "mae_vit_base": ViTConfig(embed_dim=768, num_heads=12, target_block=12),
    "mae_vit_large": ViTConfig(embed_dim=1024, depth=24, num_heads=16, target_block=18),
}
"""With the block that students imitate."""
STUDENTS = {
    "tinymim_vit_tiny_patch16": ViTConfig(embed_dim=192, num_heads=6, last_heads=12),
    "tinymim_vit_small_patch16": ViTConfig(embed_dim=384, num_heads=6, last_heads=12),
    "tinymim_vit_base_patch16": ViTConfig(embed_dim=768, num_heads=12, last_heads=16),
}
"""As they are pre-trained."""
CLASSIFIERS = {
    "vit_tiny_patch16": ViTConfig(embed_dim=192, num_heads=3),
    "vit_small_patch16": ViTConfig(embed_dim=384, num_heads=6),
    "vit_base_patch16": ViTConfig(embed_dim=768, num_heads=12),
    "vit_large_patch16": ViTConfig(embed_dim=1024, depth=24, num_heads=16),
    "tinymim_star_tiny": ViTConfig(embed_dim=192, num_heads=12, distillation_token=True, projection=1280),
}
"""As they are fine-tuned; tinymim_star_tiny is TinyMIM*-T."""


def build_teacher(
    name: str | None = None,
    *,
    img_size: int = 224,
    patch_size: int = 16,
    embed_dim: int | None = None,
    depth: int | None = None,
    num_heads: int | None = None,
    target_block: int | None = None,
    mlp_ratio: float = 4.0,
) -> VisionTransformer:
    """A teacher that does not learn, with random weights.

    ``.target_qkv(images)`` returns queries, keys and values of its target block, each [B, heads, N, d], and computes no
    further; ``.relations(images)`` the relations QK and VV after the softmax.

    Args:
        name: mae_vit_tiny, mae_vit_small, mae_vit_base or mae_vit_large; None takes a shape instead.
        img_size: side of images in pixels.
        patch_size: side of a patch.
        embed_dim: width, instead of the named network's.
        depth: blocks.
        num_heads: of each block.
        target_block: the block that is imitated, from 1; the 18th of ViT-L, else the last.
        mlp_ratio: width of the FFN's middle by the width.

    Raises:
        TenfoldError: the name is unknown, heads do not divide the width, or there is no such block.
    """
    base = _named(name, TEACHERS)
    if depth is not None and target_block is None:
        base = replace(base, target_block=resolve_target(depth), depth=depth)
    config = _changed(
        base,
        img_size=img_size,
        patch_size=patch_size,
        embed_dim=embed_dim,
        depth=depth,
        num_heads=num_heads,
        target_block=target_block,
        mlp_ratio=mlp_ratio,
    )
    return VisionTransformer(config).eval().requires_grad_(False)


def build_student(
    name: str | None = None,
    *,
    img_size: int = 224,
    patch_size: int = 16,
    embed_dim: int | None = None,
    depth: int | None = None,
    num_heads: int | None = None,
    last_heads: int | None = None,
    drop_path: float = 0.1,
    mlp_ratio: float = 4.0,
) -> VisionTransformer:
    """A student as pre-training begins: fixed positions, constant stochastic depth, none in the last block.

    Args:
        name: tinymim_vit_tiny_patch16, tinymim_vit_small_patch16 or tinymim_vit_base_patch16; None takes a shape.
        img_size: side of images in pixels.
        patch_size: side of a patch.
        embed_dim: width, instead of the named network's.
        depth: blocks.
        num_heads: of all blocks but the last.
        last_heads: of the last block, as many as the teacher's target block is read with.
        drop_path: stochastic depth.
        mlp_ratio: width of the FFN's middle by the width.

    Raises:
        TenfoldError: the name is unknown, or heads do not divide the width.
    """
    config = _changed(
        _named(name, STUDENTS),
        img_size=img_size,
        patch_size=patch_size,
        embed_dim=embed_dim,
        depth=depth,
        num_heads=num_heads,
        last_heads=last_heads,
        mlp_ratio=mlp_ratio,
    )
    return VisionTransformer(replace(config, drop_path=constant_drop_path(config.depth, drop_path)))


def build_classifier(
    name: str,
    *,
    num_classes: int = 1000,
    global_pool: bool = True,
    drop_path_rate: float = 0.0,
    img_size: int = 224,
) -> VisionTransformer:
    """A classifier as supervised training from scratch begins.

    Args:
        name: vit_tiny_patch16, vit_small_patch16, vit_base_patch16, vit_large_patch16 or tinymim_star_tiny.
        num_classes: of it.
        global_pool: classify the mean of the patches (fc_norm), else CLS (norm).
        drop_path_rate: stochastic depth of the last block; linear from 0.
        img_size: side of images in pixels.

    Raises:
        TenfoldError: the name is unknown.
    """
    return make_classifier(
        _changed(_named(name, CLASSIFIERS), img_size=img_size), num_classes, global_pool, drop_path_rate
    )


def make_classifier(
    shape: ViTConfig, num_classes: int, global_pool: bool = True, drop_path_rate: float = 0.0
) -> VisionTransformer:
    """A classifier of any shape, as supervised training from scratch begins."""
    rates = linear_drop_path(shape.depth, drop_path_rate)
    config = replace(
        shape, num_classes=num_classes, global_pool=global_pool, drop_path=rates, target_block=None
    )
    classifier = VisionTransformer(config)
    classifier.initialise_classifier()
    return classifier


def constant_drop_path(depth: int, rate: float) -> tuple[float, ...]:
    """Of pre-training: the same in all blocks, none in the last."""
    return (rate,) * (depth - 1) + (0.0,)


def linear_drop_path(depth: int, rate: float) -> tuple[float, ...]:
    """Of fine-tuning: from 0 in the first block to ``rate`` in the last."""
    return tuple(rate * block / max(depth - 1, 1) for block in range(depth))


def _named(name: str | None, known: Mapping[str, ViTConfig]) -> ViTConfig:
    if name is None:
        return ViTConfig()
    if name not in known:
        raise TenfoldError(f"there is no network {name!r} here; choose one of {', '.join(known)}")
    return known[name]


def _changed(base: ViTConfig, **changes: int | float | None) -> ViTConfig:
    return replace(base, **{name: value for name, value in changes.items() if value is not None})  # type: ignore[arg-type]
