"""From the tokens of both sensors to boxes: coordinate encoding, queries, decoder and task heads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from tenfold.cmt.config import HeadConfig, Modality
from tenfold.cmt.coordinate_encoding import MapEncoding, RayEncoding, inverse, inverse_sigmoid
from tenfold.cmt.decoder import Decoder
from tenfold.cmt.denoising import Denoising
from tenfold.cmt.task_heads import TaskHead

POSITION_GAIN = 5.0
"""Of the position embeddings' last layers in an aligned start."""


@dataclass(frozen=True)
class Predictions:
    """What the queries say after every decoder layer."""

    outputs: dict[str, Tensor]
    """center [L, B, Q, 2] and height [.., 1] in metres, dim [.., 3], rot [.., 2], vel [.., 2], cls_logits [.., 10]."""
    noised: dict[str, Tensor] | None = None
    """The same of the noised queries."""


class SharedConvolution(nn.Module):
    """3x3 convolution without bias - batch norm - ReLU on the map.

    Args:
        inputs: channels of the map.
        outputs: D.
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(outputs)
        nn.init.kaiming_normal_(self.conv.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, values: Tensor) -> Tensor:
        """[B, D, H, W] of [B, C, H, W]."""
        activated: Tensor = self.bn(self.conv(values)).relu_()
        return activated


class Transformer(nn.Module):
    """The decoder under the name that released weights have for it."""

    def __init__(self, decoder: Decoder) -> None:
        super().__init__()
        self.decoder = decoder


class CmtHead(nn.Module):
    """Position-guided queries that read the tokens of both sensors.

    All of it is computed in single precision but for cross-attention, which follows autocast.

    Args:
        config: sizes and switches.
        modality: which tokens there are.
        point_range: least x, y, z and greatest x, y, z, in metres.
        map_channels: of the map in bird's-eye view.
    """

    low: Tensor
    extent: Tensor

    def __init__(
        self,
        config: HeadConfig,
        modality: Modality,
        point_range: tuple[float, ...],
        map_channels: int = 512,
    ) -> None:
        super().__init__()
        self.config, self.modality = config, modality
        low, high = torch.tensor(point_range, dtype=torch.float32).chunk(2)
        self.register_buffer("low", low, persistent=False)
        self.register_buffer("extent", high - low, persistent=False)
        if modality != "camera":
            self.shared_conv = SharedConvolution(map_channels, config.hidden)
        self.transformer = Transformer(
            Decoder(config.hidden, config.heads, config.feedforward, config.layers, config.dropout)
        )
        self.reference_points = nn.Embedding(config.queries, 3)
        with torch.no_grad():
            self.reference_points.weight.copy_(first_points(config))
        self.bev_embedding = MapEncoding(config.hidden)
        if modality != "lidar":
            self.rv_embedding = RayEncoding(config.hidden, config.depth_bins, point_range)
        if not config.guided_queries:
            self.query_embedding = nn.Embedding(config.queries, config.hidden)
        self.task_heads = nn.ModuleList(
            (TaskHead(config.hidden, config.layers, config.task_channels, config.task_kernel),)
        )
        if config.aligned_start:
            self._align()
        self.freeze_unused()

    def freeze_unused(self) -> None:
        """No gradients for encodings that a switch leaves out: several processes would wait for them."""
        self.bev_embedding.requires_grad_(self.config.bev_position)
        if self.modality != "lidar":
            self.rv_embedding.requires_grad_(self.config.image_position)

    def forward(
        self,
        bev: Tensor | None,
        image_features: Tensor | None,
        lidar2image: Tensor | None,
        image_size: tuple[int, int],
        denoising: Denoising | None = None,
    ) -> Predictions:
        """Find objects.

        Args:
            bev: map, [B, C, H, W]; None without LiDAR.
            image_features: [B * V, D, h, w], the cameras of a sample one after another; None without cameras.
            lidar2image: [B, V, 4, 4]; None without cameras.
            image_size: (H, W) of the images, in pixels.
            denoising: noised queries, in training.
        """
        device = (bev if bev is not None else image_features).device.type  # type: ignore[union-attr]
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
        with torch.autocast(device, enabled=False):
            return self._find(bev, image_features, lidar2image, image_size, denoising, dtype)

    def _find(
        self,
        bev: Tensor | None,
        image_features: Tensor | None,
        lidar2image: Tensor | None,
        image_size: tuple[int, int],
        denoising: Denoising | None,
        dtype: torch.dtype | None,
    ) -> Predictions:
        image2lidar = None if lidar2image is None else inverse(lidar2image)
        parts = []
        if bev is not None:
            parts.append(self._map_tokens(bev))
        if image_features is not None and image2lidar is not None:
            parts.append(self._image_tokens(image_features, image2lidar, image_size))
        tokens, positions = (torch.cat(part, dim=1) for part in zip(*parts, strict=True))
        points = self.points(len(tokens), denoising)
        embedded = self.embed_queries(points, lidar2image, image2lidar, image_size)
        allowed = None if denoising is None else denoising.allowed(self.config.queries)
        queries = self.transformer.decoder(embedded, tokens, positions, allowed, dtype)
        outputs = self.to_metres(self.task_heads[0](queries), points)
        if denoising is None:
            return Predictions(outputs)
        size = denoising.size
        return Predictions(
            {name: value[:, :, size:] for name, value in outputs.items()},
            {name: value[:, :, :size] for name, value in outputs.items()},
        )

    def _map_tokens(self, bev: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens of the map's cells, row by row, and their positions, [B, H W, D]."""
        cells = self.shared_conv(bev.to(self.low.dtype))
        tokens = cells.flatten(2).transpose(1, 2)
        if not self.config.bev_position:
            return tokens, torch.zeros_like(tokens)
        return tokens, self.bev_embedding.of_map(*cells.shape[2:]).expand_as(tokens)

    def _image_tokens(
        self, features: Tensor, image2lidar: Tensor, image_size: tuple[int, int]
    ) -> tuple[Tensor, Tensor]:
        """Tokens of the cameras' pixels, camera by camera and row by row, and their positions, [B, V h w, D]."""
        seen = features.to(self.low.dtype).unflatten(0, image2lidar.shape[:2])  # [B, V, D, h, w]
        tokens = seen.flatten(3).permute(0, 1, 3, 2).flatten(1, 2)
        if not self.config.image_position:
            return tokens, torch.zeros_like(tokens)
        height, width = seen.shape[-2:]
        return tokens, self.rv_embedding.of_image((height, width), image_size, image2lidar).flatten(1, 3)

    def points(self, batch: int, denoising: Denoising | None = None) -> Tensor:
        """Points of all queries in [0, 1], [B, Q, 3], the noised ones first."""
        points = self.reference_points.weight.expand(batch, -1, -1)
        if denoising is not None:
            points = torch.cat((denoising.points, points), dim=1)
        return inverse_sigmoid(points).sigmoid()

    def embed_queries(
        self,
        points: Tensor,
        lidar2image: Tensor | None,
        image2lidar: Tensor | None,
        image_size: tuple[int, int],
    ) -> Tensor:
        """Embeddings [B, Q, D] of points [B, Q, 3] in [0, 1]: that of the map and, with cameras, those of rays."""
        if not self.config.guided_queries:
            return self.query_embedding.weight.expand(len(points), -1, -1)
        embedded = torch.zeros((), device=points.device)
        if self.config.bev_position:
            embedded = embedded + self.bev_embedding.of_points(points)
        if self.modality != "lidar" and self.config.image_position:
            assert lidar2image is not None
            assert image2lidar is not None
            metric = points * self.extent + self.low
            embedded = embedded + self.rv_embedding.of_points(
                metric, lidar2image.to(self.low.dtype), image2lidar, image_size
            )
        return embedded.expand(*points.shape[:2], self.config.hidden)

    def to_metres(self, outputs: dict[str, Tensor], points: Tensor) -> dict[str, Tensor]:
        """Centre and height, which are offsets to the queries' points before the sigmoid, in metres."""
        start = inverse_sigmoid(points)
        center = (outputs["center"] + start[..., :2]).sigmoid() * self.extent[:2] + self.low[:2]
        height = (outputs["height"] + start[..., 2:]).sigmoid() * self.extent[2:] + self.low[2:]
        return {**outputs, "center": center, "height": height}

    def _align(self) -> None:
        with torch.no_grad():
            cast(nn.Linear, self.bev_embedding[2]).weight.mul_(POSITION_GAIN)
            if self.modality != "lidar":
                cast(nn.Linear, self.rv_embedding[2]).weight.mul_(POSITION_GAIN)
        self.transformer.decoder.align()


def first_points(config: HeadConfig) -> Tensor:
    """Reference points before training, [Q, 3]."""
    if config.query_start == "uniform":
        return torch.rand(config.queries, 3)
    side = round(config.queries**0.5)
    middles = (torch.arange(side) + 0.5) / side
    y, x = torch.meshgrid(middles, middles, indexing="ij")
    return torch.stack((x, y, torch.full_like(x, 0.5)), dim=-1).flatten(0, 1)
