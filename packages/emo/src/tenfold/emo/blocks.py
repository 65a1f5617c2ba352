"""The inverted residual mobile block (iRMB): windowed attention, then a depthwise convolution, in one residual.

Maps travel as [B, C, H, W] in channels-last memory, so that pixels are tokens without a copy: layer norm, 1x1
convolutions (linear layers here) and attention work on [B, H, W, C], the depthwise convolution on the same memory.
"""

from __future__ import annotations

from typing import Literal

import torch
from timm.layers import DropPath
from torch import Tensor, nn
from torch.nn import functional as F

from tenfold.emo.windows import Windows, is_symbolic, join_windows, pad_to_windows, split_windows, window_of
from tenfold.shared.logging import TenfoldError

EPS = 1e-6
"""Of every norm."""
NormName = Literal["bn_2d", "ln_2d"]
ActivationName = Literal["silu", "gelu", "relu"]


class SiLU(nn.SiLU):
    """x sigmoid(x), in place where no gradient is recorded: what it is given here, nothing else needs.

    The largest maps are those that the first blocks expand; to allocate another one takes longer than to compute it.
    """

    def forward(self, x: Tensor) -> Tensor:
        return F.silu(x, inplace=not torch.is_grad_enabled())


_ACTIVATIONS: dict[str, type[nn.Module]] = {"silu": SiLU, "gelu": nn.GELU, "relu": nn.ReLU}


class LayerNorm2d(nn.LayerNorm):
    """Layer norm over the channels of [B, C, H, W] in channels-last memory."""

    def forward(self, x: Tensor) -> Tensor:
        normalised: Tensor = super().forward(x.permute(0, 2, 3, 1))
        return normalised.permute(0, 3, 1, 2)


def make_norm(name: str, channels: int) -> nn.Module:
    """bn_2d or ln_2d, for [B, C, H, W].

    Raises:
        TenfoldError: it is neither.
    """
    if name == "bn_2d":
        return nn.BatchNorm2d(channels, eps=EPS)
    if name == "ln_2d":
        return LayerNorm2d(channels, eps=EPS)
    raise TenfoldError(f"a norm is bn_2d or ln_2d, not {name}")


def make_activation(name: str) -> nn.Module:
    """silu, gelu (the exact one) or relu.

    Raises:
        TenfoldError: it is none of them.
    """
    if name not in _ACTIVATIONS:
        raise TenfoldError(f"an activation is one of {', '.join(_ACTIVATIONS)}, not {name}")
    return _ACTIVATIONS[name]()


class GroupedLinear(nn.Module):
    """A 1x1 convolution in groups, for [..., C]: group g of the outputs sees group g of the inputs alone."""

    def __init__(self, in_features: int, out_features: int, groups: int) -> None:
        super().__init__()
        self.groups = groups
        plain = nn.Linear(in_features // groups, out_features)
        self.weight, self.bias = plain.weight, plain.bias

    def forward(self, x: Tensor) -> Tensor:
        grouped = x.unflatten(-1, (self.groups, -1))
        weight = self.weight.unflatten(0, (self.groups, -1))
        found: Tensor = torch.einsum("...gi,goi->...go", grouped, weight).flatten(-2) + self.bias
        return found


class SqueezeExcite(nn.Module):
    """Scales channels by a gate of their means. [B, C, H, W] to the same."""

    def __init__(self, channels: int, ratio: float) -> None:
        super().__init__()
        self.reduce = nn.Linear(channels, round(channels * ratio))
        self.activation = SiLU()
        self.expand = nn.Linear(round(channels * ratio), channels)

    def forward(self, x: Tensor) -> Tensor:
        gate: Tensor = self.expand(self.activation(self.reduce(x.mean(dim=(2, 3))))).sigmoid()
        return x * gate[:, :, None, None]


class WindowAttention(nn.Module):
    """Expanded window attention: queries and keys of the input, values that need not be as wide.

    Args:
        channels: of the input.
        head_width: channels of a head.
        window_size: side of a window; 0 or less is the whole map.
        qkv_bias: of queries and keys.
        dropout: of the attention weights.
        windows: which pixels share a window.
        mask_padding: keep the zeros that fill up windows out of the softmax, which the released networks do not.

    Raises:
        TenfoldError: heads do not divide the channels.
    """

    def __init__(
        self,
        channels: int,
        head_width: int,
        window_size: int = 7,
        qkv_bias: bool = True,
        dropout: float = 0.0,
        windows: Windows = "strided",
        mask_padding: bool = False,
    ) -> None:
        super().__init__()
        if channels % head_width:
            raise TenfoldError(
                f"{channels} channels cannot be shared by heads of {head_width}: choose a dim_head that divides them"
            )
        self.heads = channels // head_width
        self.window_size, self.windows, self.mask_padding = window_size, windows, mask_padding
        self.dropout = dropout
        self.qk = nn.Linear(channels, 2 * channels, bias=qkv_bias)

    def forward(self, x: Tensor, values: Tensor) -> Tensor:
        """softmax(q k^T / sqrt(d)) values, inside windows.

        Args:
            x: [B, H, W, C], normalised.
            values: [B, H, W, V]; V is a multiple of the heads.

        Returns:
            [B, H, W, V].
        """
        height, width = x.shape[1:3]
        window = window_of(height, width, self.window_size)
        padded = self._padded(x)
        size = (padded.shape[1], padded.shape[2])
        tokens = split_windows(padded, window, self.windows)
        # Queries and keys from tokens that lie by window already: heads are views, and nothing else is copied.
        queries, keys = (self._heads(part) for part in self.qk(tokens).chunk(2, dim=-1))
        valued = tokens if values is x else split_windows(self._padded(values), window, self.windows)
        is_masked = self.mask_padding and (is_symbolic() or size != (height, width))
        attended = F.scaled_dot_product_attention(
            queries,
            keys,
            self._heads(valued),
            attn_mask=self._mask(x, window) if is_masked else None,
            dropout_p=self.dropout if self.training else 0.0,
        )
        joined: Tensor = join_windows(attended.transpose(1, 2).flatten(2), window, size, self.windows)
        return joined[:, :height, :width]

    def _heads(self, tokens: Tensor) -> Tensor:
        """[B * windows, tokens, C] to [B * windows, heads, tokens, C / heads]."""
        split: Tensor = tokens.unflatten(-1, (self.heads, -1))
        return split.transpose(1, 2)

    def _padded(self, x: Tensor) -> Tensor:
        """[B, H', W', C], whole windows; the whole map is one."""
        return pad_to_windows(x, (self.window_size, self.window_size)) if self.window_size > 0 else x

    def _mask(self, x: Tensor, window: tuple[int, int]) -> Tensor:
        """[B * windows, 1, 1, tokens]: which keys are pixels, of which every window has one."""
        pixels = self._padded(torch.ones_like(x[..., :1]))
        found: Tensor = split_windows(pixels, window, self.windows).transpose(1, 2)[:, None].bool()
        return found


class InvertedResidualMobileBlock(nn.Module):
    """The block of the paper, with the arguments of the authors' code and three options of ours.

    Args:
        dim_in: channels C of the input.
        dim_out: channels of the output.
        norm_in: normalise the input.
        has_skip: add the input at the end, where shapes allow it.
        exp_ratio: channels in the middle, int(C * ratio).
        norm_layer: of the input; the depthwise convolution has batch norm in any case.
        act_layer: of the expansion; the depthwise convolution has SiLU in any case.
        v_proj: expand; without it the middle has C channels and no activation.
        dw_ks: kernel of the depthwise convolution; 0 leaves it out (ours).
        stride: of the depthwise convolution.
        dilation: of the depthwise convolution.
        se_ratio: of squeeze-and-excitation after it; 0 is none.
        dim_head: channels of a head.
        window_size: side of a window; 0 or less is the whole map.
        attn_s: with attention.
        qkv_bias: of queries and keys.
        attn_drop: dropout of attention weights.
        drop: dropout before the last projection.
        drop_path: stochastic depth of the residual.
        v_group: the expansion sees each head alone.
        attn_pre: attention before the expansion, on C channels, as in the released networks. Without activation and
            with ``v_group`` that is the same function as after it; otherwise it is another.
        windows: strided (released) or contiguous (ours).
        mask_padding: keep padding out of the softmax (ours).

    Raises:
        TenfoldError: an option is unknown, heads do not divide channels, or a stride has no convolution.
    """

    def __init__(
        self,
        dim_in: int,
        dim_out: int,
        norm_in: bool = True,
        has_skip: bool = True,
        exp_ratio: float = 1.0,
        norm_layer: str = "bn_2d",
        act_layer: str = "relu",
        v_proj: bool = True,
        dw_ks: int = 3,
        stride: int = 1,
        dilation: int = 1,
        se_ratio: float = 0.0,
        dim_head: int = 64,
        window_size: int = 7,
        attn_s: bool = True,
        qkv_bias: bool = False,
        attn_drop: float = 0.0,
        drop: float = 0.0,
        drop_path: float = 0.0,
        v_group: bool = False,
        attn_pre: bool = False,
        windows: Windows = "strided",
        mask_padding: bool = False,
    ) -> None:
        super().__init__()
        if dw_ks == 0 and stride > 1:
            raise TenfoldError("a block with a stride needs its depthwise convolution: give dw_ks")
        middle = int(dim_in * exp_ratio) if v_proj else dim_in
        self.has_skip = has_skip and dim_in == dim_out and stride == 1
        self.attn_pre = attn_pre
        self.norm = make_norm(norm_layer, dim_in) if norm_in else nn.Identity()
        self.attention = (
            WindowAttention(dim_in, dim_head, window_size, qkv_bias, attn_drop, windows, mask_padding)
            if attn_s
            else None
        )
        heads = self.attention.heads if self.attention is not None else 1
        if (v_group or not attn_pre) and middle % heads:
            raise TenfoldError(
                f"{middle} channels in the middle cannot be shared by {heads} heads: change exp_ratio"
            )
        self.expand: nn.Module = nn.Identity()
        if v_proj:
            linear = GroupedLinear(dim_in, middle, heads) if v_group else nn.Linear(dim_in, middle)
            self.expand = nn.Sequential(linear, make_activation(act_layer))
        self.depthwise = DepthwiseConv(middle, dw_ks, stride, dilation, se_ratio) if dw_ks else None
        self.drop = nn.Dropout(drop)
        self.project = nn.Linear(middle, dim_out, bias=False)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """[B, dim_in, H, W] to [B, dim_out, H', W'], H' = H / stride rounded up."""
        tokens = self.norm(x).permute(0, 2, 3, 1)
        if self.attention is None:
            expanded = self.expand(tokens)
        elif self.attn_pre:
            expanded = self.expand(self.attention(tokens, tokens))
        else:
            expanded = self.attention(tokens, self.expand(tokens))
        if self.depthwise is not None:
            mixed = self.depthwise(expanded.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
            expanded = expanded + mixed if self.has_skip else mixed
        out: Tensor = self.project(self.drop(expanded)).permute(0, 3, 1, 2)
        return x + self.drop_path(out) if self.has_skip else out


class DepthwiseConv(nn.Module):
    """Depthwise convolution, batch norm, SiLU, and squeeze-and-excitation. [B, C, H, W] to [B, C, H', W']."""

    def __init__(self, channels: int, kernel: int, stride: int, dilation: int, se_ratio: float) -> None:
        super().__init__()
        padding = -(-((kernel - 1) * dilation + 1 - stride) // 2)
        self.conv = nn.Conv2d(
            channels, channels, kernel, stride, padding, dilation=dilation, groups=channels, bias=False
        )
        self.norm = nn.BatchNorm2d(channels, eps=EPS)
        self.activation = SiLU()
        self.se = SqueezeExcite(channels, se_ratio) if se_ratio else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.se(self.activation(self.norm(self.conv(x))))
        return found
