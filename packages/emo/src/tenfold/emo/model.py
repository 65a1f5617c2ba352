"""EMO: a stem and four stages of inverted residual mobile blocks.

Zhang et al., Rethinking Mobile Block for Efficient Attention-based Models, ICCV 2023, arXiv 2301.01146. The network
follows timm's conventions for backbones; ``tenfold.emo.registry`` makes it known to ``timm.create_model``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from timm.layers import trunc_normal_
from timm.models import checkpoint_seq
from timm.models._features import feature_take_indices
from torch import Tensor, nn

from tenfold.emo.blocks import EPS, InvertedResidualMobileBlock, LayerNorm2d
from tenfold.emo.windows import Windows, is_symbolic
from tenfold.shared.logging import TenfoldError

STEM_WIDTH = 24
STEM_STRIDE = 2
SMALLEST_INPUT = 32
"""Pixels of a side: the last stage sees a thirty-second of them."""


@dataclass(frozen=True)
class Architecture:
    """Every number of a network; one entry for each of its four stages."""

    depths: tuple[int, ...]
    """Blocks, the first of which has stride 2."""
    widths: tuple[int, ...]
    """Channels."""
    expansions: tuple[float, ...] = (2.0, 2.5, 3.0, 3.5)
    """Of a block; twice as much in the first of a stage."""
    head_widths: tuple[int, ...] = (16, 16, 20, 20)
    """Channels of an attention head; those of stages without attention are not used."""
    drop_path: float = 0.05
    """Stochastic depth of the last block; it rises linearly from 0."""
    stem: int = STEM_WIDTH
    """Channels of the stem."""
    kernels: tuple[int, ...] = (3, 3, 5, 5)
    """Of depthwise convolutions; 0 leaves them out of blocks without a stride."""
    norms: tuple[str, ...] = ("bn_2d", "bn_2d", "ln_2d", "ln_2d")
    """Before attention or expansion."""
    activations: tuple[str, ...] = ("silu", "silu", "gelu", "gelu")
    """Of the expansion."""
    attention: tuple[bool, ...] = (False, False, True, True)
    """Whether blocks without a stride attend."""
    window_sizes: tuple[int, ...] = (7, 7, 7, 7)
    """Sides of windows; 0 is the whole map."""
    windows: Windows = "strided"
    """Which pixels share a window."""
    mask_padding: bool = False
    """Keep the zeros that fill up windows out of the softmax."""
    attention_first: bool = True
    """Attention before the expansion, as in the released networks."""
    grouped_expansion: bool = False
    """The expansion sees each head alone."""

    def __post_init__(self) -> None:
        for name, values in asdict(self).items():
            if isinstance(values, tuple) and len(values) != len(self.depths):
                raise TenfoldError(f"{name} has {len(values)} entries for {len(self.depths)} stages")
        if min(self.depths) < 1 or min(self.widths) < 1 or self.stem < 1:
            raise TenfoldError("every stage has at least one block and one channel")


ARCHITECTURES: dict[str, Architecture] = {
    "emo_1m": Architecture((2, 2, 8, 3), (32, 48, 80, 168), head_widths=(16, 16, 20, 21), drop_path=0.04036),
    "emo_2m": Architecture((3, 3, 9, 3), (32, 48, 120, 200)),
    "emo_5m": Architecture((3, 3, 9, 3), (48, 72, 160, 288), (2.0, 3.0, 4.0, 4.0), (24, 24, 32, 32)),
    "emo_6m": Architecture((3, 3, 9, 3), (48, 72, 160, 320), (2.0, 3.0, 4.0, 5.0), (16, 24, 20, 32)),
}


class Stem(nn.Sequential):
    """A convolution of stride 2 with batch norm, then a block without expansion, attention and residual.

    [B, in, H, W] to [B, C, H/2, W/2].
    """

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, channels, 3, STEM_STRIDE, padding=1)
        self.norm = nn.BatchNorm2d(channels, eps=EPS)
        self.block = InvertedResidualMobileBlock(
            channels, channels, norm_in=False, has_skip=False, v_proj=False, se_ratio=1.0, attn_s=False
        )


class EMO(nn.Module):
    """The network.

    Args:
        architecture: every number of it.
        num_classes: of the head; 0 leaves it out.
        in_chans: channels of images.
        global_pool: avg, or an empty string to keep the map.
        drop_rate: dropout before the head.
        drop_path_rate: stochastic depth of the last block; by default the architecture's.

    Shapes:
        images [B, in_chans, H, W], of at least 32 pixels a side, to logits [B, num_classes].

    Raises:
        TenfoldError: heads do not divide channels, or pooling is unknown.
    """

    def __init__(
        self,
        architecture: Architecture,
        num_classes: int = 1000,
        in_chans: int = 3,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
        drop_path_rate: float | None = None,
    ) -> None:
        super().__init__()
        drop_path = architecture.drop_path if drop_path_rate is None else drop_path_rate
        rates = torch.linspace(0, drop_path, sum(architecture.depths)).split(list(architecture.depths))
        widths = (architecture.stem, *architecture.widths)
        self.architecture = architecture
        self.grad_checkpointing = False
        self.stem = Stem(in_chans, architecture.stem)
        self.stages = nn.Sequential(
            *(
                make_stage(architecture, stage, widths[stage], rates[stage].tolist())
                for stage in range(len(architecture.depths))
            )
        )
        self.feature_info = [
            {"num_chs": width, "reduction": STEM_STRIDE * 2 ** (stage + 1), "module": f"stages.{stage}"}
            for stage, width in enumerate(architecture.widths)
        ]
        self.num_features = self.head_hidden_size = architecture.widths[-1]
        self.norm = LayerNorm2d(self.num_features, eps=EPS)
        self.drop = nn.Dropout(drop_rate)
        self.reset_classifier(num_classes, global_pool)

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))

    def forward_features(self, x: Tensor) -> Tensor:
        """The normalised map of the last stage, [B, C, H/32, W/32].

        Raises:
            TenfoldError: images are too small.
        """
        x = self._stem_of(x)
        for stage in self.stages:
            x = self._through(stage, x)
        return self.norm(x)  # type: ignore[no-any-return]

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Logits of a map; with ``pre_logits`` the pooled features."""
        if self.global_pool:
            x = x.mean(dim=(2, 3))
        x = self.drop(x)
        return x if pre_logits else self.head(x)

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """Maps of some stages, and unless ``intermediates_only`` the normalised last one before them.

        Args:
            x: images.
            indices: stages; a number n is the last n, None is all.
            norm: normalise the map of the last stage.
            stop_early: compute nothing that the last of ``indices`` does not need.
            output_fmt: NCHW is all there is.
            intermediates_only: return nothing else.
        """
        if output_fmt != "NCHW":
            raise TenfoldError("maps are NCHW; output_fmt takes nothing else")
        taken, last = feature_take_indices(len(self.stages), indices)
        found = []
        x = self._stem_of(x)
        needed = last + 1 if stop_early else len(self.stages)
        for number in range(needed):
            x = self._through(self.stages[number], x)
            if number in taken:
                is_last = number == len(self.stages) - 1
                found.append(self.norm(x) if norm and is_last else x)
        if intermediates_only:
            return found
        return (self.norm(x) if needed == len(self.stages) else x), found

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Drop what the maps of some stages do not need; returns the stages."""
        taken: list[int]
        taken, last = feature_take_indices(len(self.stages), indices)
        self.stages = nn.Sequential(*list(self.stages)[: last + 1])
        if prune_norm:
            self.norm = nn.Identity()  # type: ignore[assignment]
        if prune_head:
            self.reset_classifier(0, "")
        return taken

    def get_classifier(self) -> nn.Module:
        """The last layer."""
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """A new last layer; without classes none."""
        if global_pool is not None:
            if global_pool not in ("avg", ""):
                raise TenfoldError(f"global_pool is avg or empty, not {global_pool}")
            self.global_pool = global_pool
        self.num_classes = num_classes
        self.head: nn.Module = nn.Identity()
        if num_classes:  # convolutions and norms keep PyTorch's own initial values, as the authors'
            self.head = nn.Linear(self.num_features, num_classes)
            trunc_normal_(self.head.weight, std=0.02)
            nn.init.zeros_(self.head.bias)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Compute activations of blocks again in the backward pass, to save memory."""
        self.grad_checkpointing = enable

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """How timm groups parameters in layers; ``coarse`` by stage."""
        block = r"^stages\.(\d+)" if coarse else r"^stages\.(\d+)\.(\d+)"
        return {"stem": r"^stem", "blocks": [(block, None), (r"^norm", (99999,))]}

    def no_weight_decay(self) -> set[str]:
        """Nothing beyond what has one dimension."""
        return set()

    def set_window_sizes(self, sizes: Sequence[int]) -> None:
        """Other windows with the same weights, which have none of their own."""
        if len(sizes) != len(self.stages):
            raise TenfoldError(f"give {len(self.stages)} window sizes, one for each stage, not {len(sizes)}")
        self.architecture = replace(self.architecture, window_sizes=tuple(sizes))
        for stage, size in zip(self.stages, sizes, strict=True):
            for block in stage.children():
                if isinstance(block, InvertedResidualMobileBlock) and block.attention is not None:
                    block.attention.window_size = size

    def _stem_of(self, x: Tensor) -> Tensor:
        if not is_symbolic() and min(x.shape[2:]) < SMALLEST_INPUT:
            raise TenfoldError(
                f"images are at least {SMALLEST_INPUT} pixels a side, not {tuple(x.shape[2:])}"
            )
        return self.stem(x.contiguous(memory_format=torch.channels_last))  # type: ignore[no-any-return]

    def _through(self, stage: nn.Module, x: Tensor) -> Tensor:
        if self.grad_checkpointing and self.training:
            return checkpoint_seq(stage, x)  # type: ignore[no-any-return]
        return stage(x)  # type: ignore[no-any-return]


def make_stage(
    architecture: Architecture, stage: int, in_channels: int, drop_paths: Sequence[float]
) -> nn.Sequential:
    """Blocks of one stage: the first halves the map, with twice the expansion and without attention."""
    blocks = []
    for number, drop_path in enumerate(drop_paths):
        is_first = number == 0
        blocks.append(
            InvertedResidualMobileBlock(
                in_channels if is_first else architecture.widths[stage],
                architecture.widths[stage],
                has_skip=not is_first,
                exp_ratio=architecture.expansions[stage] * (2 if is_first else 1),
                norm_layer=architecture.norms[stage],
                act_layer=architecture.activations[stage],
                dw_ks=(architecture.kernels[stage] or 3) if is_first else architecture.kernels[stage],
                stride=2 if is_first else 1,
                dim_head=architecture.head_widths[stage],
                window_size=architecture.window_sizes[stage],
                attn_s=architecture.attention[stage] and not is_first,
                qkv_bias=True,
                drop_path=drop_path,
                v_group=architecture.grouped_expansion,
                attn_pre=architecture.attention_first,
                windows=architecture.windows,
                mask_padding=architecture.mask_padding,
            )
        )
    return nn.Sequential(*blocks)


def features(model: EMO, images: Tensor) -> list[Tensor]:
    """Maps after the stem and every stage, before the last norm: strides 2, 4, 8, 16, 32."""
    found = [model._stem_of(images)]
    for stage in model.stages:
        found.append(stage(found[-1]))
    return found


def build_model(
    name: str,
    num_classes: int = 1000,
    drop_path: float | None = None,
    window_sizes: Sequence[int] | None = None,
) -> EMO:
    """One of the paper's networks with random weights.

    Args:
        name: emo_1m, emo_2m, emo_5m or emo_6m.
        num_classes: of the head.
        drop_path: stochastic depth of the last block; by default the paper's.
        window_sizes: of the stages; by default 7.

    Raises:
        TenfoldError: there is no such network.
    """
    if name not in ARCHITECTURES:
        raise TenfoldError(f"there is no network {name}; choose one of {', '.join(ARCHITECTURES)}")
    model = EMO(ARCHITECTURES[name], num_classes, drop_path_rate=drop_path)
    if window_sizes is not None:
        model.set_window_sizes(window_sizes)
    return model
