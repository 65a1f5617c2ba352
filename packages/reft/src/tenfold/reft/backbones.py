"""Networks of the images: ResNets and Swins of transformers, their frozen norms, and ImageNet weights."""

from __future__ import annotations

import hashlib
from pathlib import Path
from urllib.parse import urlsplit

import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError
from torch import nn
from torchvision import models
from torchvision.ops import FrozenBatchNorm2d
from transformers import ResNetConfig, SwinConfig

from tenfold.reft.checkpoints import (
    convert_swin,
    convert_torchvision_resnet,
    load_network_state,
)
from tenfold.reft.config import BackboneName
from tenfold.reft.official_files import read_released
from tenfold.shared.logging import TenfoldError

STAGES = ("stage1", "stage2", "stage3", "stage4")
"""Whose outputs the pixel decoder sees, at 1/4, 1/8, 1/16 and 1/32 of the resolution."""

_RESNET_WEIGHTS = {  # the first of each, as Mask2Former has them
    "resnet-18": models.ResNet18_Weights.IMAGENET1K_V1,
    "resnet-50": models.ResNet50_Weights.IMAGENET1K_V1,
    "resnet-101": models.ResNet101_Weights.IMAGENET1K_V1,
}
_SWIN_REPOSITORIES = {
    "swin-t": "microsoft/swin-tiny-patch4-window7-224",
    "swin-s": "microsoft/swin-small-patch4-window7-224",
    "swin-b": "microsoft/swin-base-patch4-window12-384",
}


def backbone_config(name: BackboneName) -> ResNetConfig | SwinConfig:
    """The architecture of a backbone with the outputs of all four stages.

    ResNets are torchvision's: the stride of a bottleneck is in its 3 x 3 convolution. Channels of the stages are 256 to
    2048 for ResNet-50 and 101, 64 to 512 for ResNet-18, 96 to 768 for Swin-T and Swin-S, 128 to 1024 for Swin-B, and 32
    to 128 for "small".

    Args:
        name: of the backbone.

    Raises:
        TenfoldError: there is no such backbone.
    """
    config = _architecture(name)
    config.out_features = list(STAGES)
    return config


def _architecture(name: BackboneName) -> ResNetConfig | SwinConfig:
    if name == "resnet-18":
        return ResNetConfig(depths=[2, 2, 2, 2], hidden_sizes=[64, 128, 256, 512], layer_type="basic")
    if name == "resnet-50":
        return ResNetConfig(depths=[3, 4, 6, 3])
    if name == "resnet-101":
        return ResNetConfig(depths=[3, 4, 23, 3])
    if name == "swin-t":
        return _swin(96, (2, 2, 6, 2), (3, 6, 12, 24), window=7)
    if name == "swin-s":
        return _swin(96, (2, 2, 18, 2), (3, 6, 12, 24), window=7)
    if name == "swin-b":
        return _swin(128, (2, 2, 18, 2), (4, 8, 16, 32), window=12, image_size=384)
    if name == "small":
        return ResNetConfig(depths=[1, 1, 1, 1], hidden_sizes=[32, 64, 96, 128], layer_type="basic")
    raise TenfoldError(
        f"there is no backbone {name!r}; take resnet-18, resnet-50, resnet-101, swin-t, swin-s, swin-b or small"
    )


def _swin(
    width: int,
    depths: tuple[int, int, int, int],
    heads: tuple[int, int, int, int],
    window: int,
    image_size: int = 224,
) -> SwinConfig:
    return SwinConfig(
        image_size=image_size,
        embed_dim=width,
        depths=list(depths),
        num_heads=list(heads),
        window_size=window,
        drop_path_rate=0.3,
    )


def freeze_batch_norm(module: nn.Module) -> nn.Module:
    """Replace every batch norm by one whose statistics, scales and shifts never change.

    Args:
        module: is changed in place.

    Returns:
        The module; its replacement where it is itself a batch norm.
    """
    if isinstance(module, nn.BatchNorm2d):
        frozen: nn.Module = FrozenBatchNorm2d(module.num_features, eps=module.eps)
        for name in ("weight", "bias", "running_mean", "running_var"):
            setattr(frozen, name, getattr(module, name).detach().clone())
        return frozen
    for name, child in module.named_children():
        setattr(module, name, freeze_batch_norm(child))
    return module


# -- ImageNet weights ----------------------------------------------------------------------------------------


def imagenet_file(name: BackboneName, file: Path | None = None, download: bool = False) -> Path:
    """Where the ImageNet weights of a backbone are.

    Args:
        name: of the backbone.
        file: of weights; by default the one in the cache of torch or of the hub.
        download: fetch it into that cache if it is not there.

    Raises:
        TenfoldError: the file is missing or damaged, cannot be fetched, or the backbone has none.
    """
    if name in _RESNET_WEIGHTS:
        path = file or _torchvision_file(name, download)
    elif name in _SWIN_REPOSITORIES:
        path = file or _hub_file(name, download)
    else:
        raise TenfoldError(f"there are no ImageNet weights of {name!r}; train it without them")
    if not path.is_file():
        raise TenfoldError(_missing(name, f"at {path}"))
    return path


def load_imagenet_weights(
    backbone: nn.Module, name: BackboneName, file: Path | None = None, download: bool = False
) -> None:
    """Put ImageNet weights into a backbone.

    A Swin's norms of its four outputs have none and stay as they are.

    Args:
        backbone: transformers' ``ResNetBackbone`` or ``SwinBackbone``, its batch norms frozen or not.
        name: its architecture.
        file: a state dict of torchvision, of Microsoft's Swin or of transformers' (safetensors or torch); by default
            torchvision's first weights, or the hub's of ImageNet-1k.
        download: fetch it if it is not in the cache.

    Raises:
        TenfoldError: the file is missing, damaged, or of another network.
    """
    path = imagenet_file(name, file, download)
    state = read_released(path)
    try:
        weights = convert_torchvision_resnet(state) if name in _RESNET_WEIGHTS else convert_swin(state)
    except TenfoldError as error:
        raise TenfoldError(f"{path} is not of {name}: {error}") from error
    kept = {key: value for key, value in backbone.state_dict().items() if _has_no_weights(key)}
    load_network_state(backbone, {**kept, **weights}, str(path))


def _has_no_weights(key: str) -> bool:
    return key.startswith(("hidden_states_norms.", "swin.layernorm."))


def _torchvision_file(name: BackboneName, download: bool) -> Path:
    weights = _RESNET_WEIGHTS[name]
    path = Path(torch.hub.get_dir(), "checkpoints", Path(urlsplit(weights.url).path).name)
    if not path.exists() and download:
        try:
            weights.get_state_dict(progress=False, check_hash=True)
        except (OSError, RuntimeError) as error:
            raise TenfoldError(_missing(name, f"reachable at {weights.url}")) from error
    if path.exists():
        digest = path.stem.rsplit("-", 1)[-1]  # the first digits of its SHA-256
        if not hashlib.sha256(path.read_bytes()).hexdigest().startswith(digest):
            raise TenfoldError(f"{path} is damaged; remove it and give --download to fetch it again")
    return path


def _hub_file(name: BackboneName, download: bool) -> Path:
    repository = _SWIN_REPOSITORIES[name]
    for file in ("model.safetensors", "pytorch_model.bin"):
        try:
            return Path(hf_hub_download(repository, file, local_files_only=not download))
        except EntryNotFoundError:
            continue
        except OSError as error:
            raise TenfoldError(_missing(name, f"reachable in {repository} on the hub")) from error
    raise TenfoldError(_missing(name, f"in the hub's cache ({repository})"))


def _missing(name: BackboneName, where: str) -> str:
    return (
        f"the ImageNet weights of {name} are not {where}; give --download to fetch them, or their file with "
        "--imagenet-weights, or train without them with --no-pretrained"
    )
