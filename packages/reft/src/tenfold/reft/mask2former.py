"""Mask2Former (Cheng et al., CVPR 2022) in three pieces that references can be put between.

The modules and their weights are transformers' own; the passes through them are written here, because a reference acts
on the features between input projection and pixel decoder, because attention masks need not be computed at full size
(resizing and the product with the queries commute), and because nothing may wait for the device inside a step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import Mask2FormerConfig, Mask2FormerModel, PreTrainedConfig
from transformers.models.mask2former.modeling_mask2former import (
    Mask2FormerMaskedAttentionDecoderLayer,
    Mask2FormerPixelDecoder,
    Mask2FormerSinePositionEmbedding,
    Mask2FormerTransformerModule,
)
from transformers.utils import logging as transformers_logging

from tenfold.reft.config import NetworkConfig
from tenfold.reft.deformable_attention import attend, cell_centres

LEVELS = 3
"""Feature levels that are attended to: strides 32, 16 and 8, in this order."""


@dataclass(frozen=True)
class Predictions:
    """What the heads say after every decoder layer; the first is of the learned queries, the last counts."""

    queries: Tensor
    """Normalised queries, [L, B, Q, d]."""
    class_logits: Tensor
    """[L, B, Q, classes + 1]; "no object" comes last."""
    mask_embeddings: Tensor
    """[L, B, Q, m]."""
    mask_features: Tensor
    """At stride 4, [B, m, h, w]."""
    projected: tuple[Tensor, ...] = ()
    """Input projections of the three levels before any reference, coarsest first, each [B, d, h, w]."""

    def masks(self, layer: int = -1) -> Tensor:
        """Mask logits of a layer at stride 4, [B, Q, h, w]."""
        return torch.einsum("bqm,bmhw->bqhw", self.mask_embeddings[layer], self.mask_features)


def library_config(network: NetworkConfig, backbone: PreTrainedConfig, num_classes: int) -> Mask2FormerConfig:
    """The configuration by which transformers builds the modules."""
    config = Mask2FormerConfig(
        backbone_config=backbone,
        feature_size=network.hidden_dim,
        mask_feature_size=network.hidden_dim,
        hidden_dim=network.hidden_dim,
        encoder_feedforward_dim=network.encoder_ffn,
        dim_feedforward=network.decoder_ffn,
        encoder_layers=network.encoder_layers,
        decoder_layers=network.decoder_layers + 1,  # it counts the prediction before the first layer
        num_attention_heads=network.num_heads,
        num_queries=network.num_queries,
        dropout=0.0,
    )
    config.num_labels = num_classes
    return config


def initialise_pixel_decoder(decoder: Mask2FormerPixelDecoder) -> None:
    """First weights of the authors' pixel decoder, where the library draws others: Xavier's, not N(0, 0.02^2)."""
    for module in decoder.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    layers: Any = decoder.encoder.layers
    for layer in layers:
        nn.init.xavier_uniform_(layer.fc1.weight)
        nn.init.xavier_uniform_(layer.fc2.weight)
    for convolution in (decoder.mask_projection, *(parts[0] for parts in _fpn(decoder))):
        nn.init.kaiming_uniform_(convolution.weight, a=1)


def _fpn(decoder: Mask2FormerPixelDecoder) -> list[Any]:
    return [*decoder.lateral_convolutions, *decoder.output_convolutions]


@contextmanager
def quiet_library() -> Iterator[None]:
    """Without the library's warning that it does not know ResNets; their outputs agree with the authors'."""
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)


# -- pixel decoder ---------------------------------------------------------------------------------------


def project(decoder: Mask2FormerPixelDecoder, maps: Sequence[Tensor]) -> list[Tensor]:
    """Input projections of the three coarsest maps, coarsest first, each [B, d, h, w]."""
    return [
        projection(features)
        for projection, features in zip(decoder.input_projections, reversed(maps[-LEVELS:]), strict=True)
    ]


def decode_pixels(
    decoder: Mask2FormerPixelDecoder, maps: Sequence[Tensor], projected: Sequence[Tensor]
) -> tuple[Tensor, list[Tensor]]:
    """Deformable encoder and the step to stride 4.

    Args:
        decoder: the library's.
        maps: of the backbone, finest first.
        projected: input projections, coarsest first, with or without a reference.

    Returns:
        Mask features [B, m, h, w] at stride 4, and the features of the three levels, coarsest first.
    """
    shapes = [(int(level.shape[-2]), int(level.shape[-1])) for level in projected]
    device = projected[0].device
    hidden = torch.cat([level.flatten(2).transpose(1, 2) for level in projected], dim=1)
    positions = torch.cat(
        [
            sine_positions(height, width, hidden.shape[-1] // 2, device) + decoder.level_embed[index]
            for index, (height, width) in enumerate(shapes)
        ]
    )[None]
    reference = cell_centres(shapes, device)
    layers: Any = decoder.encoder.layers
    for layer in layers:
        mixed = attend(layer.self_attn, hidden, positions, shapes, reference)
        hidden = layer.self_attn_layer_norm(hidden + mixed)
        hidden = layer.final_layer_norm(hidden + layer.fc2(layer.activation_fn(layer.fc1(hidden))))
    parts = hidden.split([height * width for height, width in shapes], dim=1)
    levels = [part.transpose(1, 2).unflatten(-1, shape) for part, shape in zip(parts, shapes, strict=True)]
    finest = levels[-1]
    finer = reversed(maps[: decoder.num_fpn_levels])
    for features, lateral, output in zip(
        finer, decoder.lateral_convolutions, decoder.output_convolutions, strict=True
    ):
        coarse = F.interpolate(finest, size=features.shape[-2:], mode="bilinear", align_corners=False)
        finest = output(lateral(features) + coarse)
    return decoder.mask_projection(finest), levels


@lru_cache(maxsize=64)
def sine_positions(height: int, width: int, features: int, device: torch.device) -> Tensor:
    """Sine position of every cell, y before x, [h * w, 2 * features]."""
    made = Mask2FormerSinePositionEmbedding(features, normalize=True)
    with torch.inference_mode(mode=False):  # it is kept, and may be used in training later
        grid: Tensor = made(torch.Size((1, 2 * features, height, width)), device, torch.float32)
    return grid[0].flatten(1).transpose(0, 1)


# -- transformer decoder ---------------------------------------------------------------------------------


def decode_queries(
    module: Mask2FormerTransformerModule,
    levels: Sequence[Tensor],
    mask_features: Tensor,
    link: Callable[[Tensor], Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """Masked-attention decoder.

    Args:
        module: the library's.
        levels: of the pixel decoder, coarsest first.
        mask_features: at stride 4, [B, m, h, w].
        link: changes the queries after every layer.

    Returns:
        Normalised queries before the first and after every layer, [L, B, Q, d], and their mask embeddings
        [L, B, Q, m].
    """
    decoder, batch = module.decoder, len(mask_features)
    keys, values, resized = [], [], []
    for index, level in enumerate(levels):
        height, width = level.shape[-2:]
        value = (
            module.input_projections[index](level).flatten(2).transpose(1, 2)
            + module.level_embed.weight[index]
        )
        positions = sine_positions(height, width, value.shape[-1] // 2, value.device)
        keys.append(value + positions)
        values.append(value)
        resized.append(
            F.interpolate(
                mask_features.detach(), (height, width), mode="bilinear", align_corners=False
            ).flatten(2)
        )
    positions = module.queries_embedder.weight[None]
    hidden = module.queries_features.weight[None].expand(batch, -1, -1)
    normalised = [decoder.layernorm(hidden)]
    embeddings = [decoder.mask_predictor.mask_embedder(normalised[0])]
    layers: Any = decoder.layers
    for index, layer in enumerate(layers):
        level_index = index % LEVELS
        visible = visible_cells(embeddings[-1].detach(), resized[level_index])
        hidden = decoder_layer(layer, hidden, positions, keys[level_index], values[level_index], visible)
        if link is not None:
            hidden = link(hidden)
        normalised.append(decoder.layernorm(hidden))
        embeddings.append(decoder.mask_predictor.mask_embedder(normalised[-1]))
    return torch.stack(normalised), torch.stack(embeddings)


def visible_cells(embeddings: Tensor, features: Tensor) -> Tensor:
    """Cells of a level that each query may look at: those of its last mask, or all where that is empty.

    Args:
        embeddings: of masks, [B, Q, m].
        features: mask features at the level's size, [B, m, h * w].

    Returns:
        [B, 1, Q, h * w], bool.
    """
    inside = (embeddings @ features) >= 0
    return (inside | ~inside.any(-1, keepdim=True))[:, None]


def decoder_layer(
    layer: Mask2FormerMaskedAttentionDecoderLayer,
    hidden: Tensor,
    positions: Tensor,
    keys: Tensor,
    values: Tensor,
    visible: Tensor,
) -> Tensor:
    """Masked cross-attention, self-attention, feed-forward network; a norm after each.

    Args:
        layer: the library's.
        hidden: queries, [B, Q, d].
        positions: of the queries, [1, Q, d].
        keys: of a level, with positions, [B, N, d].
        values: the same without, [B, N, d].
        visible: which cells each query may look at, [B, 1, Q, N].
    """
    cross = layer.cross_attn
    weights, biases = cross.in_proj_weight.chunk(3), cross.in_proj_bias.chunk(3)
    query, key, value = (
        F.linear(given, weights[place], biases[place])
        for place, given in enumerate((hidden + positions, keys, values))
    )
    attended = attention_of_heads(query, key, value, cross.num_heads, visible)
    hidden = layer.cross_attn_layer_norm(hidden + cross.out_proj(attended))
    own = layer.self_attn
    placed = hidden + positions
    attended = attention_of_heads(own.q_proj(placed), own.k_proj(placed), own.v_proj(hidden), own.num_heads)
    hidden = layer.self_attn_layer_norm(hidden + own.out_proj(attended))
    output: Tensor = layer.final_layer_norm(hidden + layer.fc2(layer.activation_fn(layer.fc1(hidden))))
    return output


def attention_of_heads(
    query: Tensor, key: Tensor, value: Tensor, heads: int, mask: Tensor | None = None
) -> Tensor:
    """Scaled dot-product attention of several heads.

    Args:
        query: [B, Q, d].
        key: [B, N, d].
        value: [B, N, d].
        heads: that divide d.
        mask: what may be looked at, [B, 1, Q, N]; all by default.

    Returns:
        [B, Q, d].
    """
    query, key, value = (part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in (query, key, value))
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask).transpose(1, 2).flatten(2)


def backbone_maps(model: Mask2FormerModel, images: Tensor) -> tuple[Tensor, ...]:
    """Feature maps at strides 4, 8, 16 and 32."""
    maps: tuple[Tensor, ...] = model.pixel_level_module.encoder(images).feature_maps
    return maps


def mask_embedder(model: Mask2FormerModel) -> nn.Module:
    """The head that makes a mask embedding of a normalised query."""
    embedder: nn.Module = model.transformer_module.decoder.mask_predictor.mask_embedder
    return embedder
