"""The networks of CoCa: a backbone, a classifier, and two heads for self-supervision.

The ResNet-18 is the one of the continual learning literature: a 3x3 stem without pooling, for images of 32 or 64
pixels. The MLP is the one for MNIST. A small convolutional network without batch norm stands for convolutions where
time is short. All classify with one linear layer; the pretext head guesses which transform was
applied to an image, the projection head puts images on a sphere on which the contrastive loss works.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize, relu

from tenfold.shared.logging import TenfoldError

Part = Literal["logits", "pretext", "projection", "embedding"]
NetworkName = Literal["resnet18", "mlp", "convnet"]
Backbone: TypeAlias = "ResNet18Backbone | MlpBackbone | ConvNetBackbone"
PARTS: tuple[Part, ...] = ("logits", "pretext", "projection", "embedding")


class NetworkOutput(NamedTuple):
    """What a network says of N images; None where it was not asked."""

    logits: Tensor | None = None
    """[N, C], z = W h."""
    pretext: Tensor | None = None
    """[N, K], r(h): which pretext transform was applied."""
    projection: Tensor | None = None
    """[N, P] of length 1, p(x)."""
    embedding: Tensor | None = None
    """[N, d] of length 1: the backbone's features h."""


class ContinualNetwork(nn.Module):
    """A backbone with a classifier, a pretext head and a projection head.

    Args:
        backbone: gives [N, d] for images [N, channels, height, width], and says ``d`` as ``feature_dim``.
        classifier: d to C.
        pretext_head: d to K.
        projection_head: d to P.
    """

    def __init__(
        self,
        backbone: Backbone,
        classifier: nn.Linear,
        pretext_head: nn.Module,
        projection_head: nn.Module,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.classifier = classifier
        self.pretext_head = pretext_head
        self.projection_head = projection_head

    def forward(
        self, images: Tensor, full: bool = False, parts: tuple[Part, ...] | None = None
    ) -> Tensor | NetworkOutput:
        """Logits [N, C] alone; with ``full`` or ``parts`` a :class:`NetworkOutput` of all or of some parts.

        A head that is not asked for is not computed, and its batch statistics stay as they are.
        """
        features = self.backbone(images)
        if not full and parts is None:
            logits: Tensor = self.classifier(features)
            return logits
        wanted = PARTS if parts is None else parts
        return NetworkOutput(
            self.classifier(features) if "logits" in wanted else None,
            self.pretext_head(features) if "pretext" in wanted else None,
            normalize(self.projection_head(features).float()) if "projection" in wanted else None,
            normalize(features.float()) if "embedding" in wanted else None,
        )

    @property
    def num_classes(self) -> int:
        return self.classifier.out_features

    @property
    def has_batch_norm(self) -> bool:
        """Whether classification itself depends on batch statistics, so that one image alone cannot be trained on."""
        return any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in self.backbone.modules())


class BasicBlock(nn.Module):
    """Two 3x3 convolutions around which the input is added, through a 1x1 convolution where the shape changes."""

    def __init__(self, in_width: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_width, width, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.shortcut = nn.Sequential()
        if stride != 1 or in_width != width:
            self.shortcut = nn.Sequential(
                nn.Conv2d(in_width, width, 1, stride, bias=False), nn.BatchNorm2d(width)
            )

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = relu(self.bn1(self.conv1(inputs)))
        shortcut: Tensor = self.shortcut(inputs)
        return relu(self.bn2(self.conv2(hidden)) + shortcut)


class ResNet18Backbone(nn.Module):
    """Four stages of two basic blocks; [N, 3, H, W] to [N, 8 width], global average pooled."""

    def __init__(self, width: int = 64, channels: int = 3) -> None:
        super().__init__()
        self.feature_dim = 8 * width
        self.conv1 = nn.Conv2d(channels, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.layer1 = self._stage(width, width, stride=1)
        self.layer2 = self._stage(width, 2 * width, stride=2)
        self.layer3 = self._stage(2 * width, 4 * width, stride=2)
        self.layer4 = self._stage(4 * width, 8 * width, stride=2)

    @staticmethod
    def _stage(in_width: int, width: int, stride: int) -> nn.Sequential:
        return nn.Sequential(BasicBlock(in_width, width, stride), BasicBlock(width, width, 1))

    def forward(self, images: Tensor) -> Tensor:
        hidden = relu(self.bn1(self.conv1(images)))
        hidden = self.layer4(self.layer3(self.layer2(self.layer1(hidden))))
        pooled: Tensor = hidden.mean(dim=(2, 3))
        return pooled


class MlpBackbone(nn.Module):
    """Two linear layers with ReLU; [N, ...] with ``input_dim`` values each to [N, hidden]."""

    def __init__(self, input_dim: int = 784, hidden: int = 100) -> None:
        super().__init__()
        self.feature_dim = hidden
        self.fc1 = nn.Linear(input_dim, hidden)
        self.fc2 = nn.Linear(hidden, hidden)

    def forward(self, images: Tensor) -> Tensor:
        return relu(self.fc2(relu(self.fc1(images.flatten(1)))))


class ConvNetBackbone(nn.Module):
    """Two 3x3 convolutions with group norm, the second with stride 2, and a linear layer; [N, channels, S, S] to [N,
    hidden].

    Nothing in it depends on the batch, which small batches would make noisy.
    """

    def __init__(self, image_shape: tuple[int, int, int], width: int = 16, hidden: int = 100) -> None:
        super().__init__()
        channels, height, _ = image_shape
        self.feature_dim = hidden
        self.conv1 = nn.Conv2d(channels, width, 3, padding=1)
        self.norm1 = nn.GroupNorm(4, width)
        self.conv2 = nn.Conv2d(width, 2 * width, 3, stride=2, padding=1)
        self.norm2 = nn.GroupNorm(4, 2 * width)
        self.fc = nn.Linear(2 * width * math.ceil(height / 2) ** 2, hidden)

    def forward(self, images: Tensor) -> Tensor:
        hidden = relu(self.norm1(self.conv1(images)))
        hidden = relu(self.norm2(self.conv2(hidden)))
        return relu(self.fc(hidden.flatten(1)))


def make_head(feature_dim: int, outputs: int, hidden_layers: int) -> nn.Sequential:
    """``hidden_layers`` times linear, batch norm, ReLU; then a linear layer to ``outputs``."""
    layers: list[nn.Module] = []
    for _ in range(hidden_layers):
        layers += [nn.Linear(feature_dim, feature_dim), nn.BatchNorm1d(feature_dim), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(feature_dim, outputs))


def build_model(
    name: str,
    num_classes: int,
    width: int = 64,
    pretext_classes: int = 4,
    projection_dim: int = 64,
    image_shape: tuple[int, int, int] | None = None,
    hidden: int = 100,
    classifier_bias: bool | None = None,
    init: Literal["torch", "xavier"] = "torch",
) -> ContinualNetwork:
    """A network by name, randomly initialised.

    Args:
        name: ``resnet18``, ``mlp`` or ``convnet``.
        num_classes: C.
        width: of the ResNet's first stage, 64 in the paper; of the convnet's first layer, a multiple of 4.
        pretext_classes: K.
        projection_dim: P; 64 for the ResNet, 32 for the MLP in the authors' code.
        image_shape: (channels, height, width) of its images; by default (3, 32, 32), for the MLP (1, 28, 28).
        hidden: width of the MLP, and of the convnet's linear layer.
        classifier_bias: by default none for the ResNet, as in the authors' code, and one for the others.
        init: torch's default, or Xavier uniform with zero biases for every linear layer (the authors' MNIST code).

    Raises:
        TenfoldError: the name is unknown, or a size is not positive.
    """
    if min(num_classes, width, pretext_classes, projection_dim, hidden) < 1:
        raise TenfoldError("classes, widths and head sizes of a network are at least 1")
    backbone: Backbone
    if name == "resnet18":
        backbone = ResNet18Backbone(width, (image_shape or (3, 32, 32))[0])
        hidden_layers = 2
    elif name == "mlp":
        backbone = MlpBackbone(math.prod(image_shape or (1, 28, 28)), hidden)
        hidden_layers = 1
    elif name == "convnet":
        if width % 4:
            raise TenfoldError(f"the width of a convnet is a multiple of 4, not {width}")
        backbone = ConvNetBackbone(image_shape or (3, 32, 32), width, hidden)
        hidden_layers = 1
    else:
        raise TenfoldError(f"unknown network {name!r}; choose resnet18, mlp or convnet")
    feature_dim = backbone.feature_dim
    bias = (name != "resnet18") if classifier_bias is None else classifier_bias
    network = ContinualNetwork(
        backbone,
        nn.Linear(feature_dim, num_classes, bias=bias),
        make_head(feature_dim, pretext_classes, hidden_layers),
        make_head(feature_dim, projection_dim, hidden_layers),
    )
    if init == "xavier":
        network.apply(_xavier)
    return network


@torch.no_grad()
def _xavier(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
