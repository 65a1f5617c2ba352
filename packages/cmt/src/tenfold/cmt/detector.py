"""CMT: cross modal transformer for 3-D object detection (arXiv 2301.01283), with cameras, LiDAR or both.

Points become a map in bird's-eye view, images become feature maps, both become tokens with positions in the LiDAR
frame, and queries that begin as points read them all. Modules bear the names of the released weights.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tenfold.cmt.bev_backbone import Second, SecondFpn
from tenfold.cmt.box_coding import box_codes
from tenfold.cmt.config import BGR_MEAN, BGR_STD, HeadConfig, NetworkConfig
from tenfold.cmt.decoding import Detections, decode_detections
from tenfold.cmt.denoising import Denoising
from tenfold.cmt.grid_mask import apply_grid_mask
from tenfold.cmt.head import CmtHead, Predictions
from tenfold.cmt.image_backbone import CPFPN, make_image_backbone
from tenfold.cmt.samples import Batch, Voxels
from tenfold.cmt.sparse_encoder import SparseEncoder
from tenfold.shared.logging import TenfoldError


class Cmt(nn.Module):
    """A detector of one or both sensors.

    Args:
        network: sensors, sizes and switches.
    """

    image_mean: Tensor
    image_std: Tensor

    def __init__(self, network: NetworkConfig) -> None:
        super().__init__()
        self.network = network
        if network.reads_images:
            self.img_backbone = make_image_backbone(network.image)
            self.img_neck = CPFPN(self.img_backbone.out_channels, network.head.hidden)
            self.register_buffer("image_mean", torch.tensor(BGR_MEAN).view(3, 1, 1), persistent=False)
            self.register_buffer("image_std", torch.tensor(BGR_STD).view(3, 1, 1), persistent=False)
        if network.reads_points:
            lidar = network.lidar
            self.pts_middle_encoder = SparseEncoder(lidar)
            self.pts_backbone = Second(
                self.pts_middle_encoder.out_channels, lidar.second_channels, lidar.second_layers
            )
            self.pts_neck = SecondFpn(lidar.second_channels, lidar.neck_channels)
        self.pts_bbox_head = CmtHead(
            network.head, network.modality, network.lidar.point_range, network.lidar.map_channels
        )

    @property
    def dense_parts(self) -> list[nn.Module]:
        """Parts whose shapes do not depend on the points: convolutions on images and on the map."""
        names = ("img_backbone", "img_neck", "pts_backbone", "pts_neck")
        return [module for name, module in self.named_children() if name in names]

    @property
    def head(self) -> HeadConfig:
        """Sizes and switches of the head."""
        return self.network.head

    def forward(
        self, batch: Batch, denoising: Denoising | None = None, mask: Tensor | None = None
    ) -> Predictions:
        """What the queries say about a batch.

        Args:
            batch: B samples.
            denoising: noised queries, in training.
            mask: [H, W], pixels that stay, in training; None is all.

        Raises:
            TenfoldError: the batch lacks what the network reads.
        """
        bev, features = None, None
        if self.network.reads_points:
            if batch.voxels is None:
                raise TenfoldError("this network reads LiDAR points, which the batch has not")
            bev = self.read_points(batch.voxels, len(batch.tokens))
        if self.network.reads_images:
            if batch.images is None:
                raise TenfoldError("this network reads camera images, which the batch has not")
            features = self.read_images(batch.images, mask)
        size = self.network.image.size
        matrices = batch.lidar2image if self.network.reads_images else None
        found: Predictions = self.pts_bbox_head(bev, features, matrices, size, denoising)
        return found

    def read_points(self, voxels: Voxels, batch_size: int) -> Tensor:
        """The map, [B, C, Y / 8, X / 8]; sparse convolutions in single precision, as released."""
        with torch.autocast(voxels.features.device.type, enabled=False):
            cells = self.pts_middle_encoder(voxels.features, voxels.coordinates, batch_size, voxels.plan)
        bev: Tensor = self.pts_neck(self.pts_backbone(cells))
        return bev

    def read_images(self, images: Tensor, mask: Tensor | None = None) -> Tensor:
        """Features of stride 16, [B * V, D, H / 16, W / 16], of images [B, V, 3, H, W] of bytes, blue first."""
        pixels = images.flatten(0, 1)
        if pixels.is_cuda:
            pixels = pixels.contiguous(memory_format=torch.channels_last)
        pixels = (pixels.to(self.image_mean.dtype) - self.image_mean) / self.image_std
        if mask is not None:
            pixels = apply_grid_mask(pixels, mask)
        features: Tensor = self.img_neck(*self.img_backbone(pixels))[0]
        return features

    @torch.no_grad()
    def detect(self, batch: Batch, max_detections: int = 300) -> list[Detections]:
        """Objects of each sample, best first."""
        outputs = {name: value[-1] for name, value in self(batch).outputs.items()}
        codes = box_codes(outputs, self.head.regression_order)
        return decode_detections(codes, outputs["cls_logits"], max_detections)
