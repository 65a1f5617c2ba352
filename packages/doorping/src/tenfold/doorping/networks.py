"""The networks that are distilled with and trained: ConvNet, AlexNet, VGG11, ResNet18.

Source: Zhao et al. (Dataset Condensation, ICLR 2021) and Wang et al. (Dataset Distillation, 2018), with the two linear
layers at the end that Liu et al. (NDSS 2023) give the ConvNet, whose second-last one the trigger is optimised for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tenfold.shared.logging import TenfoldError

NetworkName = Literal["ConvNet", "ConvNet_B", "AlexNet", "VGG11", "ResNet18"]
Activation = Literal["relu", "leakyrelu", "sigmoid"]
Norm = Literal["none", "batchnorm", "layernorm", "instancenorm", "groupnorm"]
Pooling = Literal["avgpooling", "maxpooling", "none"]


class Trunk(nn.Sequential):
    """Layers whose output is flattened: images [B, C, H, W] to features [B, F]."""

    def forward(self, images: Tensor) -> Tensor:
        values: Tensor = super().forward(images)
        return values.flatten(1)


class Network(nn.Module):
    """A classifier: ``features`` (flattened) and ``classifier`` on top of them."""

    features: nn.Module
    classifier: nn.Module

    def forward(self, images: Tensor) -> Tensor:
        """Logits [B, K] of images [B, C, H, W]."""
        logits: Tensor = self.classifier(self.features(images))
        return logits

    def layers(self) -> list[nn.Module]:
        """The layers one after another, or those behind the features where the features are no chain."""
        head = list(self.classifier) if isinstance(self.classifier, nn.Sequential) else [self.classifier]
        return [*self.features, nn.Flatten(), *head] if isinstance(self.features, Trunk) else head

    def weight_at(self, layer: int) -> tuple[str, nn.Parameter]:
        """Name and value of the parameter at a position among those that are no biases; -1 is the output's.

        Raises:
            TenfoldError: there are not as many, or the layer there has no neurons.
        """
        weights = [(name, value) for name, value in self.named_parameters() if "bias" not in name]
        if not -len(weights) <= layer < 0:
            raise TenfoldError(f"the layer is between -{len(weights)} and -1 for this network, not {layer}")
        name, value = weights[layer]
        owner = self.get_submodule(name.rpartition(".")[0])
        if not any(owner is module for module in self.layers()) or value.ndim < 2:
            raise TenfoldError(
                f"the parameter {layer} from the end, {name}, is no layer with neurons that can be followed; choose "
                "another --attack.layer, or distil with ConvNet or AlexNet"
            )
        return name, value

    def hidden(
        self,
        images: Tensor,
        layer: int = -2,
        neurons: Tensor | None = None,
        pre_activation: bool = False,
    ) -> Tensor:
        """What a layer gives for images, without computing the layers after it.

        The authors' hook sees the layer's output after the in-place ReLU that follows.

        Args:
            images: [B, C, H, W].
            layer: position of its weight among the parameters that are no biases, from the end.
            neurons: the rows wanted, int64 [n]; all without it.
            pre_activation: leave out the activation that follows.

        Returns:
            [B, n], or [B, n, h, w] of a convolution.

        Raises:
            TenfoldError: the layer cannot be followed.
        """
        return self.truncated(layer, neurons, pre_activation)(images)

    def truncated(
        self, layer: int = -2, neurons: Tensor | None = None, pre_activation: bool = False
    ) -> Callable[[Tensor], Tensor]:
        """:meth:`hidden` as a function of images alone, for many calls while the weights stay as they are."""
        name, _ = self.weight_at(layer)
        owner = self.get_submodule(name.rpartition(".")[0])
        chain = self.layers()
        place = next(index for index, module in enumerate(chain) if module is owner)
        before = [] if isinstance(self.features, Trunk) else [self.features]
        after = [] if pre_activation else chain[place + 1 : place + 2]
        follows = [module for module in after if isinstance(module, (nn.ReLU, nn.LeakyReLU, nn.Sigmoid))]
        calls: list[Callable[[Tensor], Tensor]] = [*before, *chain[:place], _rows(owner, neurons), *follows]

        def hidden(values: Tensor) -> Tensor:
            for call in calls:
                values = call(values)
            return values

        return hidden


def _rows(layer: nn.Module, neurons: Tensor | None) -> Callable[[Tensor], Tensor]:
    """A layer, or the chosen neurons of it."""
    if neurons is None:
        return layer
    weight, bias = layer.weight[neurons], None if layer.bias is None else layer.bias[neurons]  # type: ignore[index]
    if isinstance(layer, nn.Conv2d):
        stride, padding, dilation = layer.stride, layer.padding, layer.dilation
        return lambda values: F.conv2d(values, weight, bias, stride, padding, dilation)
    return lambda values: F.linear(values, weight, bias)


def _activation(name: Activation) -> nn.Module:
    match name:
        case "relu":
            return nn.ReLU()
        case "leakyrelu":
            return nn.LeakyReLU(0.01)
        case "sigmoid":
            return nn.Sigmoid()


class MapNorm(nn.LayerNorm):
    """Layer norm of whole maps [C, H, W].

    It is a group norm of one group: the second derivative of torch's own layer norm is wrong under ``torch.func.vmap``
    (seen with 2.11), and gradient matching takes it.
    """

    def forward(self, values: Tensor) -> Tensor:
        return F.group_norm(values, 1, eps=self.eps) * self.weight + self.bias


def _norm(name: Norm, channels: int, size: int) -> list[nn.Module]:
    match name:
        case "none":
            return []
        case "batchnorm":
            return [nn.BatchNorm2d(channels)]
        case "layernorm":
            return [MapNorm([channels, size, size])]
        case "instancenorm":
            return [nn.GroupNorm(channels, channels)]
        case "groupnorm":
            return [nn.GroupNorm(4, channels)]


class ConvNet(Network):
    """``depth`` blocks of 3x3 convolution, norm, activation and 2x2 pooling; then one or two linear layers.

    Args:
        channels: 1 or 3; grey images of 28 pixels get the border of 3 that makes them 32, and the authors keep it for
            those that were resized to 32.
        classes: number of classes K.
        width: channels of every convolution.
        depth: number of blocks.
        activation: after every block's norm.
        norm: of every block.
        pooling: of every block.
        image_size: side of the images in pixels.
        hidden: width of the second-last linear layer; None has a single linear layer, as in Zhao et al.
        first_padding: of the first convolution; None is 3 for grey images and 1 for others.

    Raises:
        TenfoldError: nothing is left of images of this size.
    """

    def __init__(
        self,
        channels: int,
        classes: int,
        width: int = 128,
        depth: int = 3,
        activation: Activation = "relu",
        norm: Norm = "none",
        pooling: Pooling = "avgpooling",
        image_size: int = 32,
        hidden: int | None = 192,
        first_padding: int | None = None,
    ) -> None:
        super().__init__()
        if norm == "groupnorm" and width % 4:
            raise TenfoldError(f"groupnorm needs a width that 4 divides, not {width}")
        layers: list[nn.Module] = []
        incoming, size = channels, image_size
        for block in range(depth):
            padding = 1
            if block == 0:
                padding = (3 if channels == 1 else 1) if first_padding is None else first_padding
            size = size + 2 * padding - 2
            layers.append(nn.Conv2d(incoming, width, 3, padding=padding))
            layers += [*_norm(norm, width, size), _activation(activation)]
            if pooling != "none":
                layers.append(nn.AvgPool2d(2) if pooling == "avgpooling" else nn.MaxPool2d(2))
                size //= 2
            incoming = width
        if size < 1:
            raise TenfoldError(
                f"{depth} blocks leave nothing of images of {image_size} pixels; lower the depth"
            )
        self.features = Trunk(*layers)
        flat = incoming * size * size
        if hidden is None:
            self.classifier: nn.Module = nn.Linear(flat, classes)
        else:
            self.classifier = nn.Sequential(nn.Linear(flat, hidden), nn.ReLU(), nn.Linear(hidden, classes))


class AlexNet(Network):
    """Wang et al.'s network for CIFAR: two 5x5 convolutions with local response norms, and three linear layers.

    Args:
        channels: of the images.
        classes: number of classes K.
        image_size: side of the images in pixels, at least 4.
    """

    def __init__(self, channels: int, classes: int, image_size: int = 32) -> None:
        super().__init__()
        self.features = Trunk(
            nn.Conv2d(channels, 64, 5, padding=2),
            nn.ReLU(),
            nn.MaxPool2d(3, stride=2, padding=1),
            nn.LocalResponseNorm(4, alpha=0.001 / 9, beta=0.75, k=1),
            nn.Conv2d(64, 64, 5, padding=2),
            nn.ReLU(),
            nn.LocalResponseNorm(4, alpha=0.001 / 9, beta=0.75, k=1),
            nn.MaxPool2d(3, stride=2, padding=1),
        )
        side = (image_size + 3) // 4  # each pooling rounds up
        self.classifier = nn.Sequential(
            nn.Linear(64 * side * side, 384),
            nn.ReLU(),
            nn.Linear(384, 192),
            nn.ReLU(),
            nn.Linear(192, classes),
        )


VGG11_LAYERS = (64, "M", 128, "M", 256, 256, "M", 512, 512, "M", 512, 512, "M")


class VGG11(Network):
    """VGG11 for images of 32 pixels, with instance norm and one linear layer; ``norm`` may be batchnorm."""

    def __init__(
        self, channels: int, classes: int, norm: Norm = "instancenorm", image_size: int = 32
    ) -> None:
        super().__init__()
        if image_size != 32 and (channels, image_size) != (1, 28):
            raise TenfoldError(f"VGG11 takes images of 32 pixels, or grey ones of 28, not {image_size}")
        layers: list[nn.Module] = []
        incoming = channels
        for width in VGG11_LAYERS:
            if isinstance(width, str):
                layers.append(nn.MaxPool2d(2))
                continue
            padding = 3 if channels == 1 and not layers else 1
            layers += [nn.Conv2d(incoming, width, 3, padding=padding), *_norm(norm, width, 0), nn.ReLU()]
            incoming = width
        self.features = Trunk(*layers, nn.AvgPool2d(1))
        self.classifier = nn.Linear(512, classes)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions around a shortcut, which is projected where the shape changes."""

    def __init__(self, incoming: int, width: int, stride: int, norm: Norm) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(incoming, width, 3, stride, 1, bias=False)
        (self.bn1,) = _norm(norm, width, 0)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        (self.bn2,) = _norm(norm, width, 0)
        self.shortcut = nn.Sequential()
        if stride != 1 or incoming != width:
            projection = nn.Conv2d(incoming, width, 1, stride, bias=False)
            self.shortcut = nn.Sequential(projection, *_norm(norm, width, 0))

    def forward(self, values: Tensor) -> Tensor:
        inner = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(values)))))
        return F.relu(inner + self.shortcut(values))


class ResNet18(Network):
    """ResNet18 with a 3x3 stem; two linear layers with nothing between them; ``norm`` may be batchnorm."""

    def __init__(
        self, channels: int, classes: int, norm: Norm = "instancenorm", image_size: int = 32
    ) -> None:
        super().__init__()
        if image_size not in (28, 32):
            raise TenfoldError(f"ResNet18 takes images of 28 or 32 pixels, not {image_size}")
        self.conv1 = nn.Conv2d(channels, 64, 3, 1, 1, bias=False)
        (self.bn1,) = _norm(norm, 64, 0)
        incoming = 64
        for number, width in enumerate((64, 128, 256, 512), start=1):
            blocks = [
                BasicBlock(incoming, width, 1 if number == 1 else 2, norm),
                BasicBlock(width, width, 1, norm),
            ]
            self.add_module(f"layer{number}", nn.Sequential(*blocks))
            incoming = width
        self.classifier = nn.Sequential(nn.Linear(512, 512), nn.Linear(512, classes))

    def features(self, images: Tensor) -> Tensor:  # type: ignore[override]
        """[B, C, H, W] to [B, 512]."""
        values = F.relu(self.bn1(self.conv1(images)))
        for number in range(1, 5):
            values = self.get_submodule(f"layer{number}")(values)
        return F.avg_pool2d(values, 4).flatten(1)


def build_model(
    name: str,
    channels: int,
    classes: int,
    *,
    width: int = 128,
    depth: int = 3,
    activation: Activation = "relu",
    norm: Norm | None = None,
    pooling: Pooling = "avgpooling",
    image_size: int = 32,
    hidden: int = 192,
    first_padding: int | None = None,
) -> Network:
    """A network by name, with torch's default initialisation.

    Args:
        name: ConvNet, ConvNet_B (one linear layer), AlexNet, VGG11 or ResNet18.
        channels: of the images.
        classes: number of classes K.
        width: of the ConvNets.
        depth: likewise.
        activation: likewise.
        norm: of the ConvNets, VGG11 and ResNet18; None is each network's own (ConvNet none, others instancenorm).
        pooling: of the ConvNets.
        image_size: side of the images in pixels.
        hidden: of the ConvNet.
        first_padding: of the ConvNets.

    Raises:
        TenfoldError: the name or an option is unknown, or the network does not fit the images.
    """
    if min(channels, classes, width, depth, image_size, hidden) < 1:
        raise TenfoldError("channels, classes, width, depth, image size and hidden width are at least 1")
    for option, value, known in (
        ("activation", activation, get_args(Activation)),
        ("norm", norm, (None, *get_args(Norm))),
        ("pooling", pooling, get_args(Pooling)),
    ):
        if value not in known:
            raise TenfoldError(f"unknown {option} {value!r}; choose one of {', '.join(filter(None, known))}")
    options: dict[str, Any] = {"image_size": image_size}
    match name:
        case "ConvNet" | "ConvNet_B":
            own: Norm = "none" if name == "ConvNet" else "instancenorm"
            return ConvNet(
                channels,
                classes,
                width,
                depth,
                activation,
                norm or own,
                pooling,
                image_size,
                hidden if name == "ConvNet" else None,
                first_padding,
            )
        case "AlexNet":
            return AlexNet(channels, classes, **options)
        case "VGG11":
            return VGG11(channels, classes, _deep_norm(norm), **options)
        case "ResNet18":
            return ResNet18(channels, classes, _deep_norm(norm), **options)
    raise TenfoldError(f"unknown network {name!r}; choose ConvNet, ConvNet_B, AlexNet, VGG11 or ResNet18")


def _deep_norm(norm: Norm | None) -> Norm:
    """VGG11 and ResNet18 have instance or batch norm; what else a ConvNet beside them has does not reach them."""
    return norm if norm == "batchnorm" else "instancenorm"


def load_official_state_dict(model: Network, state_dict: Mapping[str, Tensor]) -> None:
    """Load weights in the authors' key scheme, which is ours.

    Raises:
        TenfoldError: a key is missing, unexpected, or of another shape; it is named.
    """
    own = model.state_dict()
    missing, unexpected = sorted(own.keys() - state_dict.keys()), sorted(state_dict.keys() - own.keys())
    if missing or unexpected:
        raise TenfoldError(
            f"these weights are not of this network: missing {missing or 'none'}, unexpected {unexpected or 'none'}"
        )
    for name, value in state_dict.items():
        if value.shape != own[name].shape:
            raise TenfoldError(f"{name} has the shape {list(value.shape)}, not {list(own[name].shape)}")
    model.load_state_dict(dict(state_dict))


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Draw a network's initial weights from a seed of its own, leaving the global generator as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would reseed accelerators, too
        yield
