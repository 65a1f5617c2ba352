"""Weights of the authors, of MAE and of timm, strictly, in both directions.

Names here are the authors' own. timm's ViT has the same, so that only what stands around the weights differs.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn

from tenfold.shared.logging import TenfoldError
from tenfold.shared.runs import load_checkpoint
from tenfold.tinymim.positions import resize_pos_embed
from tenfold.tinymim.vit import NORM_EPS, VisionTransformer, ViTConfig

HEAD_STD = 2e-5
"""Of a new classifier's weights on a pre-trained network."""


def unwrapped(weights: Mapping[str, Any]) -> dict[str, Tensor]:
    """The weights of a file, flat or under ``model``, ``network`` or ``state_dict``; MAE's decoder is left out.

    Raises:
        TenfoldError: there are no weights in it.
    """
    for wrapper in ("model", "network", "state_dict"):
        inner = weights.get(wrapper)
        if isinstance(inner, Mapping) and inner:
            weights = inner
            break
    found = {str(name).removeprefix("module."): value for name, value in weights.items()}
    if not found or not all(isinstance(value, Tensor) for value in found.values()):
        raise TenfoldError("this file holds no weights of a network")
    return {name: value for name, value in found.items() if not name.startswith(("decoder_", "mask_token"))}


def load_official_state_dict(model: nn.Module, state_dict: Mapping[str, Any], strict: bool = True) -> None:
    """Fill a network from weights by the authors' names: TinyMIM's pre-trained or fine-tuned ones, or MAE's encoder.

    Args:
        model: is changed; its position table keeps its size, and the file's is interpolated to it.
        state_dict: flat, or a training checkpoint.
        strict: every tensor must be there, and no other; else what is missing stays as it is and the rest is left out.

    Raises:
        TenfoldError: a tensor is missing, is not expected, or has another shape; it is named.
    """
    found, expected = unwrapped(state_dict), model.state_dict()
    found = _fitted(found, model)
    if strict:
        missing, unexpected = sorted(expected.keys() - found.keys()), sorted(found.keys() - expected.keys())
        if missing:
            raise TenfoldError(
                f"{len(missing)} tensors are missing, the first is {missing[0]}: is it another network?"
            )
        if unexpected:
            raise TenfoldError(f"{len(unexpected)} tensors are not expected, the first is {unexpected[0]}")
    found = {name: value for name, value in found.items() if name in expected}
    check_shapes(found, expected)
    model.load_state_dict(found, strict=strict)


def check_shapes(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Whether tensors have the shapes that a network's have.

    Raises:
        TenfoldError: names the first that has not.
    """
    for name, value in found.items():
        if value.shape != expected[name].shape:
            shapes = f"{tuple(value.shape)}, not {tuple(expected[name].shape)}"
            raise TenfoldError(f"{name} has shape {shapes}: is it another size of the network?")


def _fitted(weights: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Weights with the position table interpolated to a network's grid."""
    if isinstance(model, VisionTransformer) and "pos_embed" in weights and weights["pos_embed"].ndim == 3:
        table = resize_pos_embed(weights["pos_embed"], model.config.grid, model.config.extra_tokens)
        return {**weights, "pos_embed": table}
    return weights


def transfer_pretrained(
    classifier: VisionTransformer, state_dict: Mapping[str, Any], generator: torch.Generator | None = None
) -> tuple[list[str], list[str]]:
    """Begin fine-tuning with a pre-trained network's weights, and a new head with deviation 2e-5.

    Args:
        classifier: is changed.
        state_dict: of a pre-trained network, by the authors' names.
        generator: of the head.

    Returns:
        Names that stay as they were, and names that are left out.

    Raises:
        TenfoldError: anything else than head and last norm is missing or left over, or a tensor has another shape.
    """
    found = unwrapped(state_dict)
    if classifier.config.distillation_token and "dist_token" not in found and "pos_embed" in found:
        found["pos_embed"] = _with_distillation_row(found["pos_embed"])
    found, expected = _fitted(found, classifier), classifier.state_dict()
    head = {name for name in found if name.startswith(("head.", "head_dist."))}
    found = {name: value for name, value in found.items() if name not in head}
    missing = [name for name in expected if name not in found]
    unexpected = [name for name in found if name not in expected]
    new = ("head.", "head_dist.", "fc_norm.", "norm.", "conv1x1.", "dist_token")
    wrong = [name for name in missing if not name.startswith(new)] + [
        name for name in unexpected if not name.startswith(("norm.", "fc_norm."))
    ]
    if wrong:
        raise TenfoldError(
            f"{wrong[0]} does not fit: is this the pre-trained network of another size or depth?"
        )
    found = {name: value for name, value in found.items() if name in expected}
    check_shapes(found, expected)
    classifier.load_state_dict(found, strict=False)
    for layer in (classifier.head, classifier.head_dist):
        if layer is not None:
            nn.init.trunc_normal_(layer.weight, std=HEAD_STD, generator=generator)
    return missing, unexpected + sorted(head)


def _with_distillation_row(table: Tensor) -> Tensor:
    """A position table with a row of zeros for the second token."""
    return torch.cat((table[:, :1], torch.zeros_like(table[:, :1]), table[:, 1:]), dim=1)


def load_weights(model: nn.Module, path: Path) -> None:
    """Fill a network from a file, strictly.

    Raises:
        TenfoldError: the file is missing, damaged, or of another network.
    """
    content = load_file(path)
    try:
        load_official_state_dict(model, content)
    except TenfoldError as error:
        raise TenfoldError(f"{path}: {error}") from error


def load_file(path: Path) -> dict[str, Any]:
    """A file of ours, of the authors or of MAE, as plain state: theirs hold the trainer's arguments too.

    Raises:
        TenfoldError: the file is missing, damaged, or holds anything else.
    """
    with torch.serialization.safe_globals([argparse.Namespace]):
        return load_checkpoint(path)


def stored_shape(content: dict[str, Any]) -> ViTConfig:
    """Shape of a network in an artifact.

    Raises:
        TenfoldError: the file is not one of ours.
    """
    shape = content.get("shape")
    if not isinstance(shape, dict):
        raise TenfoldError("this file is not model.pt of a run of this package")
    try:
        return ViTConfig(**{**shape, "drop_path": tuple(shape.get("drop_path", ()))})
    except TypeError as error:
        raise TenfoldError(f"its shape is not one of this package: {error}") from error


def timm_model(model: VisionTransformer) -> nn.Module:
    """The same network as timm's ``VisionTransformer``, with the same weights and outputs.

    Raises:
        TenfoldError: timm has no network with this one's parts (TinyMIM*).
    """
    config = model.config
    if config.distillation_token or config.projection is not None:
        raise TenfoldError("timm has no network with TinyMIM*'s projection and second token")
    if len(set(config.heads)) > 1:
        raise TenfoldError(
            f"all of timm's blocks have as many heads, but the last here has {config.heads[-1]}: read it with "
            f"{config.num_heads}"
        )
    found: nn.Module = timm.models.VisionTransformer(
        img_size=config.img_size,
        patch_size=config.patch_size,
        embed_dim=config.embed_dim,
        depth=config.depth,
        num_heads=config.num_heads,
        mlp_ratio=config.mlp_ratio,
        num_classes=config.num_classes or 0,
        global_pool="avg"
        if model.fc_norm is not None
        else ("token" if config.num_classes is not None else ""),
        norm_layer=partial(nn.LayerNorm, eps=NORM_EPS),
    )
    found.load_state_dict(model.state_dict())
    return found.train(model.training)


def from_timm(state_dict: Mapping[str, Any], config: ViTConfig) -> VisionTransformer:
    """A network of ours from timm's weights of the same shape.

    Raises:
        TenfoldError: they are of another shape, or of a network with other parts.
    """
    model = VisionTransformer(config)
    load_official_state_dict(model, state_dict)
    return model
