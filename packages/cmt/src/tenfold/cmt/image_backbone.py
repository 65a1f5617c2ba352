"""From camera images to the features that become image tokens: VoVNetV2 or ResNet-50, then the neck CPFPN.

VoVNetV2 with effective squeeze and excitation: Lee and Park, CenterMask, CVPR 2020, arXiv 1911.06667. ResNet: He et
al., Deep Residual Learning, CVPR 2016, arXiv 1512.03385. Parameters have the names of the released CMT files.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Literal, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint, noop_context_fn
from torchvision.models import resnet50

from tenfold.cmt.config import ImageConfig

VoVNetVariant = Literal["vovnet-99", "vovnet-39", "vovnet-tiny"]
BatchNormMode = Literal["evaluation", "training"]


@dataclass(frozen=True)
class _Widths:
    """What a variant of VoVNet is made of; its stages are numbered 2 to 5."""

    stem: tuple[int, int, int]
    convolution: tuple[int, int, int, int]
    """Width of the convolutions inside a block, stage by stage."""
    out: tuple[int, int, int, int]
    """Width after a block, stage by stage."""
    convolutions: int
    """In a block."""
    blocks: tuple[int, int, int, int]
    """In a stage."""


_VARIANTS: dict[VoVNetVariant, _Widths] = {
    "vovnet-99": _Widths((64, 64, 128), (128, 160, 192, 224), (256, 512, 768, 1024), 5, (1, 3, 9, 3)),
    "vovnet-39": _Widths((64, 64, 128), (128, 160, 192, 224), (256, 512, 768, 1024), 5, (1, 1, 2, 2)),
    "vovnet-tiny": _Widths((8, 8, 16), (12, 16, 24, 24), (24, 48, 64, 96), 3, (1, 1, 1, 1)),
}


def make_image_backbone(config: ImageConfig) -> VoVNet | ResNet50:
    """The backbone of a configuration, with weights drawn at random; its ``out_channels`` are the neck's inputs."""
    if config.backbone == "resnet-50":
        return ResNet50(checkpointing=config.checkpointing, batch_norm=config.batch_norm)
    return VoVNet(config.backbone, checkpointing=config.checkpointing, batch_norm=config.batch_norm)


# -- VoVNet --------------------------------------------------------------------------------------------------


class VoVNet(nn.Module):
    """VoVNetV2; its last two stages feed the neck.

    Convolutions start as Kaiming normal. In mode ``evaluation``, random weights go with running statistics of 0 and 1,
    which normalise nothing: the features' scale then rests on the initialisation alone.

    Args:
        variant: V-99 is the paper's; V-39 and tiny are for small experiments.
        checkpointing: compute a block's activations again in the backward pass, to save memory.
        batch_norm: ``evaluation`` normalises by the running statistics in training too, and learns scales and shifts;
            ``training`` is the usual batch norm.

    Shapes:
        images [N, 3, H, W] to stage 4 [N, out_channels[0], H/16, W/16] and stage 5 [N, out_channels[1], H/32, W/32].
    """

    def __init__(
        self,
        variant: VoVNetVariant = "vovnet-99",
        *,
        checkpointing: bool = False,
        batch_norm: BatchNormMode = "evaluation",
    ) -> None:
        super().__init__()
        widths = _VARIANTS[variant]
        self.checkpointing = checkpointing
        self.batch_norm = batch_norm
        self.out_channels: tuple[int, int] = widths.out[2:]
        first, second, third = widths.stem
        self.stem = nn.Sequential(
            OrderedDict(
                _conv_norm_relu("stem_1", 3, first, 3, stride=2)
                + _conv_norm_relu("stem_2", first, second, 3)
                + _conv_norm_relu("stem_3", second, third, 3, stride=2)
            )
        )
        self.stage2 = _stage(2, third, widths)
        self.stage3 = _stage(3, widths.out[0], widths)
        self.stage4 = _stage(4, widths.out[1], widths)
        self.stage5 = _stage(5, widths.out[2], widths)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)
        self.train()

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        stages = [self.stem(images)]
        for stage in (self.stage2, self.stage3, self.stage4, self.stage5):
            stages.append(_run_blocks(stage, stages[-1], self.checkpointing))
        return stages[-2], stages[-1]

    def train(self, mode: bool = True) -> Self:
        """As any module's, but that batch norms of mode ``evaluation`` stay as they are in evaluation."""
        super().train(mode)
        if self.batch_norm == "evaluation":
            _evaluate_norms(self)
        return self


class _OneShotAggregation(nn.Module):
    """A block: a row of convolutions, whose input and outputs are joined, gated by channel and added to the input."""

    def __init__(self, name: str, inputs: int, width: int, outputs: int, depth: int, residual: bool) -> None:
        super().__init__()
        self.residual = residual
        self.layers = nn.ModuleList(
            nn.Sequential(OrderedDict(_conv_norm_relu(f"{name}_{i}", width if i else inputs, width, 3)))
            for i in range(depth)
        )
        joined = inputs + depth * width
        self.concat = nn.Sequential(OrderedDict(_conv_norm_relu(f"{name}_concat", joined, outputs, 1)))
        self.ese = _ChannelGate(outputs)

    def forward(self, features: Tensor) -> Tensor:
        outputs = [features]
        for layer in self.layers:
            outputs.append(layer(outputs[-1]))
        joined: Tensor = self.concat(torch.cat(outputs, dim=1))
        gate = self.ese(joined)
        return torch.addcmul(features, joined, gate) if self.residual else joined * gate


class _ChannelGate(nn.Module):
    """Effective squeeze and excitation: what each channel [N, C, 1, 1] is multiplied by, from its mean."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.fc = nn.Conv2d(channels, channels, 1)

    def forward(self, features: Tensor) -> Tensor:
        return F.hardsigmoid(self.fc(features.mean((2, 3), keepdim=True)))


def _stage(number: int, inputs: int, widths: _Widths) -> nn.Sequential:
    """Blocks of one resolution; all stages but the first halve it before."""
    place = number - 2
    width, outputs = widths.convolution[place], widths.out[place]
    stage = nn.Sequential()
    if place:
        stage.add_module("Pooling", nn.MaxPool2d(3, stride=2, ceil_mode=True))
    for block in range(widths.blocks[place]):
        name = f"OSA{number}_{block + 1}"
        taken = outputs if block else inputs
        stage.add_module(
            name,
            _OneShotAggregation(name, taken, width, outputs, widths.convolutions, residual=block > 0),
        )
    return stage


def _conv_norm_relu(
    name: str, inputs: int, outputs: int, kernel: int, stride: int = 1
) -> list[tuple[str, nn.Module]]:
    """Convolution, batch norm and ReLU under the released names, which have a slash in them."""
    convolution = nn.Conv2d(inputs, outputs, kernel, stride=stride, padding=kernel // 2, bias=False)
    return [
        (f"{name}/conv", convolution),
        (f"{name}/norm", nn.BatchNorm2d(outputs)),
        (f"{name}/relu", nn.ReLU(inplace=True)),
    ]


# -- ResNet --------------------------------------------------------------------------------------------------


class ResNet50(nn.Module):
    """ResNet-50 without its classifier, with the stride in the 3x3 convolutions; parameters as torchvision names them.

    Args:
        checkpointing: see :class:`VoVNet`.
        batch_norm: see :class:`VoVNet`.

    Shapes:
        images [N, 3, H, W] to layer 3 [N, 1024, H/16, W/16] and layer 4 [N, 2048, H/32, W/32].
    """

    def __init__(self, *, checkpointing: bool = False, batch_norm: BatchNormMode = "evaluation") -> None:
        super().__init__()
        self.checkpointing = checkpointing
        self.batch_norm = batch_norm
        self.out_channels: tuple[int, int] = (1024, 2048)
        whole = resnet50(weights=None)
        self.conv1: nn.Conv2d = whole.conv1
        self.bn1: nn.BatchNorm2d = whole.bn1
        self.maxpool: nn.MaxPool2d = whole.maxpool
        self.layer1: nn.Sequential = whole.layer1
        self.layer2: nn.Sequential = whole.layer2
        self.layer3: nn.Sequential = whole.layer3
        self.layer4: nn.Sequential = whole.layer4
        self.train()

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        stages = [self.maxpool(F.relu(self.bn1(self.conv1(images)), inplace=True))]
        for layer in (self.layer1, self.layer2, self.layer3, self.layer4):
            stages.append(_run_blocks(layer, stages[-1], self.checkpointing))
        return stages[-2], stages[-1]

    def train(self, mode: bool = True) -> Self:
        """See :meth:`VoVNet.train`."""
        super().train(mode)
        if self.batch_norm == "evaluation":
            _evaluate_norms(self)
        return self


# -- blocks and their batch norms ----------------------------------------------------------------------------


def _run_blocks(blocks: nn.Sequential, features: Tensor, checkpointing: bool) -> Tensor:
    for block in blocks:
        is_checkpointed = checkpointing and torch.is_grad_enabled()
        features = _run_checkpointed(block, features) if is_checkpointed else block(features)
    return features


def _run_checkpointed(block: nn.Module, features: Tensor) -> Tensor:
    norms = [module for module in block.modules() if isinstance(module, nn.BatchNorm2d) and module.training]
    contexts = (lambda: (nullcontext(), _fixed_statistics(norms))) if norms else noop_context_fn
    output: Tensor = checkpoint(
        block, features, use_reentrant=False, preserve_rng_state=False, context_fn=contexts
    )
    return output


@contextmanager
def _fixed_statistics(norms: Sequence[nn.BatchNorm2d]) -> Iterator[None]:
    """Let no batch count twice in running statistics when its activations are computed again."""
    kept = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    try:
        for norm in norms:
            norm.momentum, norm.num_batches_tracked = 0.0, None
        yield
    finally:
        for norm, (momentum, counter) in zip(norms, kept, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, counter


def _evaluate_norms(network: nn.Module) -> None:
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()


# -- neck ----------------------------------------------------------------------------------------------------


class CPFPN(nn.Module):
    """Joins the two last stages of a backbone, the coarse one enlarged to nearest pixels.

    The detector reads level 0 only. Level 1 is what is enlarged, so that returning it costs nothing.

    Args:
        in_channels: of strides 16 and 32.
        out_channels: of both levels.

    Shapes:
        [N, in_channels[0], H/16, W/16] and [N, in_channels[1], H/32, W/32] to level 0 [N, out_channels, H/16, W/16]
        and level 1 [N, out_channels, H/32, W/32].
    """

    def __init__(self, in_channels: tuple[int, int], out_channels: int) -> None:
        super().__init__()
        self.lateral_convs = nn.ModuleList(_convolution(width, out_channels, 1) for width in in_channels)
        self.fpn_convs = nn.ModuleList([_convolution(out_channels, out_channels, 3)])

    def forward(self, stage4: Tensor, stage5: Tensor) -> tuple[Tensor, Tensor]:
        fine = self.lateral_convs[0](stage4)
        coarse = self.lateral_convs[1](stage5)
        enlarged = F.interpolate(coarse, size=fine.shape[-2:], mode="nearest")
        return self.fpn_convs[0](fine + enlarged), coarse


def _convolution(inputs: int, outputs: int, kernel: int) -> nn.Sequential:
    convolution = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2)
    nn.init.xavier_uniform_(convolution.weight)
    nn.init.zeros_(convolution.bias)  # type: ignore[arg-type]
    return nn.Sequential(OrderedDict(conv=convolution))
