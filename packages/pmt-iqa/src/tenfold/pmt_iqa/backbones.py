"""Convolutional networks that show the features of their four stages."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision import models
from torchvision.models.resnet import BasicBlock

from tenfold.shared.logging import TenfoldError
from tenfold.shared.runs import load_checkpoint

ResNetName = Literal["resnet18", "resnet34", "resnet50", "resnet101", "resnet152"]
BackboneName = Literal["resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "small"]

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
"""Of ImageNet; every input is normalised with them."""

_IMAGENET = {  # the first weights of each, as in the paper's time
    "resnet18": models.ResNet18_Weights.IMAGENET1K_V1,
    "resnet34": models.ResNet34_Weights.IMAGENET1K_V1,
    "resnet50": models.ResNet50_Weights.IMAGENET1K_V1,
    "resnet101": models.ResNet101_Weights.IMAGENET1K_V1,
    "resnet152": models.ResNet152_Weights.IMAGENET1K_V1,
}


class ResNetStages(nn.Module):
    """A torchvision ResNet without its classifier.

    Shapes:
        ``[n, 3, H, W]`` to four maps; for ResNet-50 at 224 pixels ``[n, 256, 56, 56]``, ``[n, 512, 28, 28]``,
        ``[n, 1024, 14, 14]``, ``[n, 2048, 7, 7]``.
    """

    def __init__(self, name: ResNetName = "resnet50") -> None:
        super().__init__()
        network = models.get_model(name, weights=None)
        self.conv1, self.bn1, self.relu, self.maxpool = (
            network.conv1,
            network.bn1,
            network.relu,
            network.maxpool,
        )
        self.layer1, self.layer2 = network.layer1, network.layer2
        self.layer3, self.layer4 = network.layer3, network.layer4
        last = network.fc.in_features
        self.channels = (last // 8, last // 4, last // 2, last)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        hidden = self.maxpool(self.relu(self.bn1(self.conv1(images))))
        first = self.layer1(hidden)
        second = self.layer2(first)
        third = self.layer3(second)
        return first, second, third, self.layer4(third)


class SmallStages(nn.Module):
    """A network of 0.3 million parameters for the quick profile: one residual block for each stage.

    In place of colours it sees two maps of what distortions change in any picture: the brightness with its local mean
    removed and divided by its local deviation (7 x 7), and the logarithm of that deviation. A short training on a dozen
    photographs does not find such contrasts by itself.

    Shapes:
        ``[n, 3, H, W]`` to maps of 16, 32, 64 and 128 channels at 1/4, 1/8, 1/16 and 1/32 of the resolution.
    """

    channels = (16, 32, 64, 128)

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(2, 16, 5, stride=2, padding=2, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = BasicBlock(16, 16)
        self.layer2, self.layer3, self.layer4 = (
            BasicBlock(before, after, 2, _shortcut(before, after))
            for before, after in zip(self.channels, self.channels[1:], strict=False)
        )
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        luma = torch.tensor((0.299, 0.587, 0.114))
        self.register_buffer("luma", luma * torch.tensor(STD), persistent=False)
        self.luma: Tensor

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        brightness = (images * self.luma.view(1, 3, 1, 1)).sum(dim=1, keepdim=True)
        hidden = F.max_pool2d(F.relu(self.bn1(self.conv1(contrast_maps(brightness)))), 2)
        first = self.layer1(hidden)
        second = self.layer2(first)
        third = self.layer3(second)
        return first, second, third, self.layer4(third)


def contrast_maps(brightness: Tensor, size: int = 7, floor: float = 0.02) -> Tensor:
    """``(x - mean) / s`` and ``1 + log(s) / 2`` with ``s = deviation + floor``, in a window around every pixel.

    Args:
        brightness: with deviations up to about 0.5, [n, 1, H, W].
        size: side of the window, cut off at the edges.
        floor: below which contrast is noise.

    Returns:
        [n, 2, H, W].
    """

    def local_mean(values: Tensor) -> Tensor:
        rows = F.avg_pool2d(values, (size, 1), 1, (size // 2, 0), count_include_pad=False)
        return F.avg_pool2d(rows, (1, size), 1, (0, size // 2), count_include_pad=False)

    centred = brightness - local_mean(brightness)
    scale = local_mean(centred.square()).sqrt() + floor
    return torch.cat((centred / scale, 1 + scale.log() / 2), dim=1)


def make_backbone(name: BackboneName) -> ResNetStages | SmallStages:
    """A backbone with random weights."""
    return SmallStages() if name == "small" else ResNetStages(name)


def imagenet_file(name: ResNetName, file: Path | None = None, download: bool = False) -> Path:
    """Where the ImageNet weights of a network are.

    Args:
        name: of the network.
        file: a torchvision state dict; by default the one in torch's own cache.
        download: whether it may be missing there, because it will be fetched.

    Raises:
        TenfoldError: the file is missing.
    """
    expected = Path(urlsplit(_IMAGENET[name].url).path).name
    path = file or Path(torch.hub.get_dir(), "checkpoints", expected)
    if not path.exists() and (file is not None or not download):
        raise TenfoldError(
            f"the ImageNet weights of {name} are not at {path}; give --download to fetch them, or their file "
            f"({expected}) with --imagenet-weights, or train without them with --model.no-pretrained"
        )
    return path


def load_imagenet_weights(
    backbone: ResNetStages, name: ResNetName, file: Path | None = None, download: bool = False
) -> None:
    """Put torchvision's ImageNet weights into a backbone.

    Args:
        backbone: to fill.
        name: its architecture.
        file: a torchvision state dict; by default the one in torch's own cache.
        download: fetch it into that cache if it is not there.

    Raises:
        TenfoldError: the file is missing, damaged, or of another network.
    """
    path = imagenet_file(name, file, download)
    if path.exists():
        if file is None:
            _check_digest(path)
        state = load_checkpoint(path)
    else:
        state = _IMAGENET[name].get_state_dict(progress=False, check_hash=True)
    load_torchvision_state_dict(backbone, state)


def load_torchvision_state_dict(backbone: nn.Module, state_dict: Mapping[str, Tensor]) -> None:
    """Load a torchvision ResNet's state dict; its classifier ``fc.*`` is left out.

    Raises:
        TenfoldError: a tensor is missing, of another shape, or has no place here; it is named.
    """
    counters = {
        key: value for key, value in backbone.state_dict().items() if key.endswith("num_batches_tracked")
    }
    own = {key: value for key, value in state_dict.items() if not key.startswith("fc.")}
    load_strictly(backbone, {**counters, **own})  # files of torchvision's early years have no counters


def load_strictly(module: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """``load_state_dict`` that names what does not fit.

    Raises:
        TenfoldError: a tensor is missing, of another shape, or has no place here.
    """
    own = module.state_dict()
    for problem, names in (
        ("lack", own.keys() - weights.keys()),
        ("hold an unknown", weights.keys() - own.keys()),
    ):
        if names:
            shown = ", ".join(sorted(names)[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
            raise TenfoldError(f"the weights {problem} {shown}; build the network to match")
    for name, value in weights.items():
        if own[name].shape != value.shape:
            raise TenfoldError(
                f"{name} is {list(value.shape)} in the weights and {list(own[name].shape)} in the network; build the "
                "network with the same sizes"
            )
    module.load_state_dict(dict(weights))


def _check_digest(path: Path) -> None:
    """The file names end in the first digits of their SHA-256."""
    digest = path.stem.rsplit("-", 1)[-1]
    if not hashlib.sha256(path.read_bytes()).hexdigest().startswith(digest):
        raise TenfoldError(f"{path} is damaged; remove it and give --download to fetch it again")


def _shortcut(before: int, after: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(before, after, 1, stride=2, bias=False), nn.BatchNorm2d(after))
