"""Queries read all tokens of both sensors: six layers of attention, post-norm."""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Attention(nn.Module):
    """Multi-head attention; weights are named as in ``nn.MultiheadAttention``.

    Args:
        width: D.
        heads: of attention.
        dropout: of attention weights.
    """

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.xavier_uniform_(self.out_proj.weight)
        nn.init.zeros_(self.out_proj.bias)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        allowed: Tensor | None = None,
        dtype: torch.dtype | None = None,
    ) -> Tensor:
        """Attend.

        Args:
            query: [B, Q, D].
            key: [B, T, D].
            value: [B, T, D].
            allowed: [Q, T], True where a query may look; None is everywhere.
            dtype: in which scores are computed; None is the inputs'.

        Returns:
            [B, Q, D].
        """
        weights, biases = self.in_proj_weight.chunk(3), self.in_proj_bias.chunk(3)
        q, k, v = (
            F.linear(values.to(dtype), weight.to(dtype), bias.to(dtype))
            .unflatten(-1, (self.heads, -1))
            .transpose(1, 2)
            for values, weight, bias in zip((query, key, value), weights, biases, strict=True)
        )
        dropout = self.dropout if self.training else 0.0
        read = F.scaled_dot_product_attention(q, k, v, attn_mask=allowed, dropout_p=dropout)
        projected: Tensor = self.out_proj(read.transpose(1, 2).flatten(2).to(query.dtype))
        return projected


class _Named(nn.Module):
    """An attention under the name ``attn``, where released weights have it."""

    def __init__(self, attention: Attention) -> None:
        super().__init__()
        self.attn = attention


class FeedForward(nn.Module):
    """Linear - ReLU - Linear, with the names of released weights.

    Args:
        width: D.
        inner: width between the two layers.
    """

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        first, second = nn.Linear(width, inner), nn.Linear(inner, width)
        self.layers = nn.Sequential(nn.Sequential(first, nn.ReLU(inplace=True)), second)
        for layer in (first, second):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, values: Tensor) -> Tensor:
        """[..., D] of [..., D]."""
        changed: Tensor = self.layers(values)
        return changed


class DecoderLayer(nn.Module):
    """Self-attention, cross-attention and feed-forward layer, each with its residual branch and norm behind.

    Dropout acts on both attentions' residual branches and on the weights of self-attention alone: in the released code
    the value meant for the weights of cross-attention lands elsewhere.

    Args:
        width: D.
        heads: of attention.
        inner: width of the feed-forward layer.
        dropout: probability.
    """

    def __init__(self, width: int, heads: int, inner: int, dropout: float) -> None:
        super().__init__()
        self.attentions = nn.ModuleList(
            (_Named(Attention(width, heads, dropout)), _Named(Attention(width, heads, 0.0)))
        )
        self.ffns = nn.ModuleList((FeedForward(width, inner),))
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(3))
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        target: Tensor,
        query_position: Tensor,
        key: Tensor,
        value: Tensor,
        allowed: Tensor | None,
        dtype: torch.dtype | None,
    ) -> Tensor:
        """[B, Q, D] of [B, Q, D]; arguments as for :class:`Decoder`, ``key`` being tokens with their positions."""
        itself, across = self._attentions()
        placed = target + query_position
        target = self.norms[0](target + self.dropout(itself(placed, placed, target, allowed)))
        read = across(target + query_position, key, value, dtype=dtype)
        target = self.norms[1](target + self.dropout(read))
        changed: Tensor = self.norms[2](target + self.ffns[0](target))
        return changed

    def align(self, factor: float) -> None:
        """Make queries of the cross-attention ``factor`` times what keys are."""
        _, across = self._attentions()
        weight = across.in_proj_weight
        width = weight.shape[1]
        weight[:width] = factor * weight[width : 2 * width]

    def _attentions(self) -> tuple[Attention, Attention]:
        """Self-attention and cross-attention."""
        itself, across = (cast(_Named, one).attn for one in self.attentions)
        return itself, across


class Decoder(nn.Module):
    """A stack of layers; the outputs of all pass one final norm.

    Args:
        width: D.
        heads: of attention.
        inner: width of the feed-forward layers.
        layers: L.
        dropout: probability.
    """

    def __init__(self, width: int, heads: int, inner: int, layers: int, dropout: float) -> None:
        super().__init__()
        self.layers = nn.ModuleList(DecoderLayer(width, heads, inner, dropout) for _ in range(layers))
        self.post_norm = nn.LayerNorm(width)

    def forward(
        self,
        query_position: Tensor,
        tokens: Tensor,
        token_position: Tensor,
        allowed: Tensor | None = None,
        dtype: torch.dtype | None = None,
    ) -> Tensor:
        """Queries, which begin at zero, after every layer.

        Args:
            query_position: [B, Q, D].
            tokens: [B, T, D].
            token_position: [B, T, D].
            allowed: [Q, Q], True where a query may look at another; None is everywhere.
            dtype: of cross-attention; None is the tokens'.

        Returns:
            [L, B, Q, D].
        """
        key, value = (tokens + token_position).to(dtype), tokens.to(dtype)
        target, outputs = torch.zeros_like(query_position), []
        for layer in self.layers:
            target = layer(target, query_position, key, value, allowed, dtype)
            outputs.append(target)
        return torch.nan_to_num(self.post_norm(torch.stack(outputs)))

    def align(self, factor: float = 20.0) -> None:
        """Make queries look for keys like themselves, so that attention is near their points from the start."""
        with torch.no_grad():
            for layer in self.layers:
                cast(DecoderLayer, layer).align(factor)
