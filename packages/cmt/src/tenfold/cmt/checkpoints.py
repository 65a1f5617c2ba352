"""Weights of others and of our own into networks, strictly: released CMT files, pretrained image backbones."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from tenfold.cmt.official_files import read_released
from tenfold.shared.logging import TenfoldError

_IMAGE_BACKBONE_PREFIXES = ("img_backbone.", "backbone.")
"""Of 3-D detectors such as FCOS3D and CMT, and of image detectors such as Mask R-CNN."""
_NAMED_KEYS = 3


@dataclass(frozen=True)
class LoadReport:
    """What became of the tensors of a file."""

    loaded: int
    """Tensors that were put into the network."""
    permuted: tuple[str, ...] = ()
    """Kernels among them whose axes were reordered."""
    missing: tuple[str, ...] = ()
    """Tensors of the network that the file lacks; they stay as they were."""
    unexpected: tuple[str, ...] = ()
    """Tensors of the file that the network has no place for."""
    ignored: int = 0
    """Tensors of the file that belong to other parts than were asked for."""


def released_state_dict(
    weights: Mapping[str, Tensor], expected: Mapping[str, torch.Size]
) -> dict[str, Tensor]:
    """Released weights as a network of ours takes them; keys that it does not know are kept.

    The prefix ``module.`` of parallel training is left out. Sparse kernels that are stored as (kz, ky, kx, in, out)
    are told by their shape and become (out, kz, ky, kx, in).

    Args:
        weights: state dict of a released file.
        expected: shapes of the network's own state dict.
    """
    return {
        key: _fitted(value, expected.get(key)) for key, value in _without_parallel_prefix(weights).items()
    }


def load_official_state_dict(
    model: nn.Module,
    weights: Mapping[str, Tensor],
    prefix: str = "",
    *,
    strict: bool = True,
    source: str = "the released file",
) -> LoadReport:
    """Put released weights into a detector, or into one part of it.

    Args:
        model: has the released names, at least below the prefix.
        weights: state dict of a released file, see :func:`released_state_dict`.
        prefix: of the part, with its dot (``img_backbone.``); weights of other parts are ignored.
        strict: refuse weights that are missing or unexpected, instead of reporting them.
        source: whose weights these are, as the beginning of a sentence.

    Raises:
        TenfoldError: a tensor is of another shape, or, if strict, missing or unexpected; the first ones are named.
    """
    given = _without_parallel_prefix(weights)
    part = {key.removeprefix(prefix): value for key, value in given.items() if key.startswith(prefix)}
    return _load(model, part, source, strict=strict, ignored=len(given) - len(part))


def load_image_pretraining(backbone: nn.Module, path: Path) -> LoadReport:
    """Put the image backbone of a file into ours; what else the file holds is ignored and counted.

    Args:
        backbone: of :func:`tenfold.cmt.image_backbone.make_image_backbone`.
        path: of a detector with keys ``img_backbone.*`` or ``backbone.*``, or of a backbone with bare keys. Counters of
            batches, ``num_batches_tracked``, may be missing.

    Raises:
        TenfoldError: the file cannot be read, or its backbone is another.
    """
    given = _without_parallel_prefix(read_released(path))
    part = _image_backbone(given, {name for name, _ in backbone.named_children()})
    if not part:
        raise TenfoldError(
            f"{path} holds no image backbone; give a file whose keys begin with img_backbone. or backbone., or one of "
            "a backbone alone"
        )
    counters = {key for key in backbone.state_dict() if key.endswith("num_batches_tracked")}
    return _load(backbone, part, str(path), optional=counters, ignored=len(given) - len(part))


def load_network_state(network: nn.Module, weights: Mapping[str, Tensor], source: str) -> None:
    """``load_state_dict`` that says in one sentence what does not fit.

    Args:
        network: to fill.
        weights: under its own keys.
        source: whose weights these are, as the beginning of a sentence ("runs/base/model.pt").

    Raises:
        TenfoldError: a tensor is missing, unexpected or of another shape; the first ones are named.
    """
    _check(network.state_dict(), weights, source)
    network.load_state_dict(weights)


def _load(
    model: nn.Module,
    weights: Mapping[str, Tensor],
    source: str,
    *,
    strict: bool = True,
    optional: Collection[str] = (),
    ignored: int = 0,
) -> LoadReport:
    own = model.state_dict()
    fitted = {key: _fitted(value, own[key].shape if key in own else None) for key, value in weights.items()}
    _check(own, fitted, source, strict=strict, optional=optional)
    known = {key: value for key, value in fitted.items() if key in own}
    model.load_state_dict(known, strict=False)
    return LoadReport(
        loaded=len(known),
        permuted=tuple(key for key, value in known.items() if value.shape != weights[key].shape),
        missing=tuple(key for key in own if key not in known),
        unexpected=tuple(key for key in fitted if key not in own),
        ignored=ignored,
    )


def _fitted(value: Tensor, expected: torch.Size | None) -> Tensor:
    if expected is None or value.shape == expected or value.dim() != 5:
        return value
    permuted = value.permute(4, 0, 1, 2, 3)
    return permuted if permuted.shape == expected else value


def _without_parallel_prefix(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    is_parallel = all(key.startswith("module.") for key in weights)
    return {key.removeprefix("module.") if is_parallel else key: value for key, value in weights.items()}


def _image_backbone(weights: Mapping[str, Tensor], parts: Collection[str]) -> dict[str, Tensor]:
    """The backbone's tensors under bare keys, which begin with one of the given parts."""
    for prefix in _IMAGE_BACKBONE_PREFIXES:
        if any(key.startswith(prefix) for key in weights):
            return {
                key.removeprefix(prefix): value for key, value in weights.items() if key.startswith(prefix)
            }
    return {key: value for key, value in weights.items() if key.split(".")[0] in parts}


def _check(
    own: Mapping[str, Tensor],
    weights: Mapping[str, Tensor],
    source: str,
    *,
    strict: bool = True,
    optional: Collection[str] = (),
) -> None:
    missing = [key for key in own if key not in weights and key not in optional]
    unexpected = [key for key in weights if key not in own]
    problems = []
    if missing:
        problems.append(f"lacks {len(missing)} of the network's tensors ({_some(missing)})")
    if unexpected:
        problems.append(f"holds {len(unexpected)} that the network lacks ({_some(unexpected)})")
    if strict and problems:
        raise TenfoldError(f"{source} {' and '.join(problems)}; build the network that these weights are of")
    others = [key for key, value in weights.items() if key in own and value.shape != own[key].shape]
    if others:
        sizes = f"{list(weights[others[0]].shape)} and not {list(own[others[0]].shape)}"
        raise TenfoldError(
            f"{source} holds {len(others)} of the network's tensors in another size ({_some(others)}; the first is "
            f"{sizes}); build the network that these weights are of"
        )


def _some(keys: Collection[str]) -> str:
    first = list(keys)[:_NAMED_KEYS]
    return ", ".join(first) + (", ..." if len(keys) > len(first) else "")
