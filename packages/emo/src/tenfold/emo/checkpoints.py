"""Weights of the authors and of timm's scheme, strictly, in both directions.

The authors' files hold every 1x1 convolution as [O, I, 1, 1]; linear layers here hold [O, I].
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from torch import Tensor, nn

from tenfold.emo.blocks import InvertedResidualMobileBlock
from tenfold.emo.model import EMO, Architecture
from tenfold.shared.logging import TenfoldError
from tenfold.shared.runs import load_checkpoint

Scheme = Literal["official", "timm"]

# Ours, the authors', timm's: of a block.
_BLOCK = (
    ("attention.qk.", "qk.conv.", "qk."),
    ("expand.0.", "v.conv.", "v.0."),
    ("depthwise.conv.", "conv_local.conv.", "conv_local.0."),
    ("depthwise.norm.", "conv_local.norm.", "conv_local.1."),
    ("depthwise.se.reduce.", "se.conv_reduce.", "se.fc1."),
    ("depthwise.se.expand.", "se.conv_expand.", "se.fc2."),
    ("project.", "proj.conv.", "proj."),
    ("norm.", "norm.", "norm."),
)
"""Longer beginnings come before shorter ones."""


@dataclass(frozen=True)
class LoadReport:
    """What came of a file."""

    scheme: str
    """ours, official or timm."""
    loaded: int
    """Tensors that were taken."""
    head: Literal["taken", "left out", "new"]
    """taken; left out, where the network has none; new, where its classes are others than the file's."""


def official_name(ours: str, has_layer_norm: bool) -> str:
    """The authors' name of one of our tensors.

    Args:
        ours: for instance ``stages.2.1.attention.qk.weight``.
        has_layer_norm: whether the norm of its block, or the last one, is a layer norm, which they wrap.
    """
    for before, after in (("stem.conv.", "stage0.0.convs.0.0."), ("stem.norm.", "stage0.0.convs.0.1.")):
        if ours.startswith(before):
            return after + ours.removeprefix(before)
    if ours.startswith("head."):
        return ours
    if ours.startswith("norm."):
        return f"norm.{ours}" if has_layer_norm else ours
    if ours.startswith("stem.block."):
        return "stage0.1." + _block_name(ours.removeprefix("stem.block."), 1)
    found = re.fullmatch(r"stages\.(\d+)\.(\d+)\.(.+)", ours)
    if found is None:
        raise TenfoldError(f"{ours} is no tensor of EMO")
    stage, block, rest = found.groups()
    rest = _block_name(rest, 1)
    if rest.startswith("norm.") and has_layer_norm:
        rest = f"norm.{rest}"
    return f"stage{int(stage) + 1}.{block}.{rest}"


def timm_name(ours: str) -> str:
    """The name of one of our tensors in timm's scheme."""
    if ours.startswith(("head.", "norm.")):
        return ours
    stem = {
        "stem.conv.": "patch_embed.0.",
        "stem.norm.": "patch_embed.1.",
        "stem.block.depthwise.conv.": "patch_embed.2.",
        "stem.block.depthwise.norm.": "patch_embed.3.",
        "stem.block.depthwise.se.reduce.": "patch_embed.5.fc1.",
        "stem.block.depthwise.se.expand.": "patch_embed.5.fc2.",
        "stem.block.project.": "patch_embed.7.",
    }
    for before, after in stem.items():
        if ours.startswith(before):
            return after + ours.removeprefix(before)
    found = re.fullmatch(r"stages\.(\d+)\.(\d+)\.(.+)", ours)
    if found is None:
        raise TenfoldError(f"{ours} is no tensor of EMO")
    stage, block, rest = found.groups()
    place = "downsample" if block == "0" else f"blocks.{int(block) - 1}"
    return f"stages.{stage}.{place}.{_block_name(rest, 2)}"


def _block_name(ours: str, scheme: int) -> str:
    for names in _BLOCK:
        if ours.startswith(names[0]):
            return names[scheme] + ours.removeprefix(names[0])
    raise TenfoldError(f"{ours} is no tensor of a block")


def name_map(names: Iterable[str], architecture: Architecture, scheme: Scheme) -> dict[str, str]:
    """Foreign name to ours, of every tensor of a network."""
    if scheme == "timm":
        return {timm_name(name): name for name in names}
    return {official_name(name, _has_layer_norm(name, architecture)): name for name in names}


def _has_layer_norm(name: str, architecture: Architecture) -> bool:
    found = re.match(r"stages\.(\d+)\.", name)
    return name.startswith("norm.") or (
        found is not None and architecture.norms[int(found.group(1))] == "ln_2d"
    )


def unwrapped(weights: Mapping[str, Any]) -> dict[str, Tensor]:
    """The weights of a file: flat, or a trainer's with ``net`` and ``net_E``, whose average is preferred.

    Raises:
        TenfoldError: there are no weights in it.
    """
    for wrapper in ("net_E", "net", "state_dict", "model", "network"):
        inner = weights.get(wrapper)
        if isinstance(inner, Mapping) and inner:
            weights = inner
            break
    found = {str(name).removeprefix("module."): value for name, value in weights.items()}
    if not found or not all(isinstance(value, Tensor) for value in found.values()):
        raise TenfoldError("this file holds no weights of a network")
    return found


def scheme_of(weights: Mapping[str, Tensor]) -> Literal["ours", "official", "timm"]:
    """By which scheme tensors are named.

    Raises:
        TenfoldError: by none that is known.
    """
    marks: dict[str, Literal["ours", "official", "timm"]] = {
        "stem.conv.weight": "ours",
        "stage0.0.convs.0.0.weight": "official",
        "patch_embed.0.weight": "timm",
    }
    for mark, scheme in marks.items():
        if mark in weights:
            return scheme
    raise TenfoldError("these are no weights of EMO: neither the authors' names, nor timm's, nor ours")


def to_ours(weights: Mapping[str, Any], architecture: Architecture) -> dict[str, Tensor]:
    """Weights by any scheme under our names, 1x1 convolutions as matrices; unknown names stay as they are."""
    found = unwrapped(weights)
    scheme = scheme_of(found)
    if scheme == "ours":
        return found
    expected = EMO(architecture, num_classes=1).state_dict()
    names = name_map(expected, architecture, scheme)
    renamed = {names.get(name, name): value for name, value in found.items()}
    return {name: _as_matrix(name, value, expected) for name, value in renamed.items()}


def _as_matrix(name: str, value: Tensor, expected: Mapping[str, Tensor]) -> Tensor:
    is_matrix = name in expected and expected[name].ndim == 2 and value.ndim == 4
    return value.flatten(1) if is_matrix else value


def to_official(model: EMO) -> dict[str, Tensor]:
    """Our weights by the authors' names and shapes."""
    found = {}
    for name, value in model.state_dict().items():
        official = official_name(name, _has_layer_norm(name, model.architecture))
        is_convolution = value.ndim == 2 and name != "head.weight"
        found[official] = value[:, :, None, None] if is_convolution else value
    return found


def load_official_state_dict(model: EMO, weights: Mapping[str, Any]) -> LoadReport:
    """Fill a network from weights by any scheme.

    Args:
        model: is changed.
        weights: flat, or a trainer's checkpoint. A head for other classes is left out, and the network's stays new.

    Raises:
        TenfoldError: a tensor is missing, is not expected, or has another shape; it is named.
    """
    scheme = scheme_of(unwrapped(weights))
    found = to_ours(weights, model.architecture)
    expected = model.state_dict()
    head: Literal["taken", "left out", "new"] = "taken"
    if not model.num_classes:
        head = "left out"
    elif "head.weight" in found and found["head.weight"].shape != expected["head.weight"].shape:
        head = "new"
    if head != "taken":
        found = {name: value for name, value in found.items() if not name.startswith("head.")}
    needed = {name for name in expected if head != "new" or not name.startswith("head.")}
    check_names(found, {name: expected[name] for name in needed})
    model.load_state_dict(found, strict=head != "new")
    return LoadReport(scheme, len(found), head)


def check_names(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Every tensor is there, in its shape, and no other.

    Raises:
        TenfoldError: names the first that is not.
    """
    missing, unexpected = sorted(expected.keys() - found.keys()), sorted(found.keys() - expected.keys())
    if missing:
        raise TenfoldError(
            f"{len(missing)} tensors are missing, the first is {missing[0]}: is it another network?"
        )
    if unexpected:
        raise TenfoldError(f"{len(unexpected)} tensors are not expected, the first is {unexpected[0]}")
    for name, value in expected.items():
        if found[name].shape != value.shape:
            shapes = f"{tuple(found[name].shape)}, not {tuple(value.shape)}"
            raise TenfoldError(f"{name} has shape {shapes}: is it another size of the network?")


def official_block_names(block: InvertedResidualMobileBlock) -> dict[str, str]:
    """The authors' name to ours, of every tensor of one block."""
    wraps = isinstance(block.norm, nn.LayerNorm)
    names = {}
    for ours in block.state_dict():
        official = _block_name(ours, 1)
        names[f"norm.{official}" if wraps and official.startswith("norm.") else official] = ours
    return names


def load_official_block(block: InvertedResidualMobileBlock, weights: Mapping[str, Tensor]) -> None:
    """Fill one block from the authors' names.

    Raises:
        TenfoldError: a tensor is missing, is not expected, or has another shape.
    """
    expected, names = block.state_dict(), official_block_names(block)
    renamed = {names.get(name, name): value for name, value in weights.items()}
    found = {name: _as_matrix(name, value, expected) for name, value in renamed.items()}
    check_names(found, expected)
    block.load_state_dict(found)


def load_weights(model: EMO, path: Path) -> LoadReport:
    """Fill a network from a file of the authors, of timm's scheme, or of ours.

    Raises:
        TenfoldError: the file is missing, damaged, or of another network.
    """
    try:
        return load_official_state_dict(model, load_checkpoint(path))
    except TenfoldError as error:
        raise TenfoldError(f"{path}: {error}") from error
