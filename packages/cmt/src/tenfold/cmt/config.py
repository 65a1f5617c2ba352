"""Every choice of a CMT run, as frozen dataclasses. Defaults are the paper's fusion network of 1600x640 images."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from tenfold.shared.logging import TenfoldError

Modality = Literal["fusion", "lidar", "camera"]
ImageBackboneName = Literal["vovnet-99", "vovnet-39", "vovnet-tiny", "resnet-50"]
SparseBackend = Literal["auto", "torch", "spconv"]

CLASSES = (
    "car",
    "truck",
    "construction_vehicle",
    "bus",
    "trailer",
    "barrier",
    "motorcycle",
    "bicycle",
    "pedestrian",
    "traffic_cone",
)
"""Detection classes in the order of labels and logits."""
CAMERAS = ("CAM_FRONT", "CAM_FRONT_RIGHT", "CAM_FRONT_LEFT", "CAM_BACK", "CAM_BACK_LEFT", "CAM_BACK_RIGHT")
"""Cameras in the order of image tokens."""
POINT_FEATURES = 5
"""x, y, z in metres, intensity, and the time lag to the keyframe in seconds."""
CODE_SIZE = 10
"""cx, cy, log length, log width, cz, log height, sin yaw, cos yaw, vx, vy."""
BOX_SIZE = 9
"""x, y, z of the bottom, length, width, height, yaw, and velocity in x and y."""

BGR_MEAN = (103.53, 116.28, 123.675)
BGR_STD = (57.375, 57.12, 58.395)
"""Of ImageNet, blue first, in grey levels."""


@dataclass(frozen=True)
class LidarConfig:
    """From points to the map in bird's-eye view."""

    point_range: tuple[float, float, float, float, float, float] = (-54.0, -54.0, -5.0, 54.0, 54.0, 3.0)
    """Least x, y, z and greatest x, y, z, in metres."""
    voxel_size: tuple[float, float, float] = (0.075, 0.075, 0.2)
    """In metres."""
    cells: tuple[int, int, int] | None = None
    """Voxels along x, y, z; by default as many as the range holds. Points beyond them are dropped."""
    max_points_per_voxel: int = 10
    """Later points are dropped."""
    max_voxels_train: int = 120_000
    """Of a sample in training; later voxels are dropped."""
    max_voxels_test: int = 160_000
    """Of a sample in evaluation."""
    encoder_channels: tuple[tuple[int, int], ...] = ((16, 32), (32, 64), (64, 128), (128, 128))
    """Width of the residual blocks and of the downsampling after them, stage by stage; the last has none."""
    encoder_out: int = 128
    """Width after the last sparse convolution, which halves the height once more."""
    second_channels: tuple[int, int] = (128, 256)
    """Widths of the two blocks on the map."""
    second_layers: int = 5
    """Convolutions of a block after its first."""
    neck_channels: int = 256
    """Width of each of the two levels that are joined."""
    backend: SparseBackend = "auto"
    """Of sparse convolution: spconv, plain torch, or spconv on a GPU where it is installed."""

    def __post_init__(self) -> None:
        low, high = self.point_range[:3], self.point_range[3:]
        if any(upper <= lower for lower, upper in zip(low, high, strict=True)):
            raise TenfoldError(f"the point range {self.point_range} is empty; give least values first")
        if min(self.max_points_per_voxel, self.max_voxels_train, self.max_voxels_test) < 1:
            raise TenfoldError("voxels and their points are at least 1")
        if any(size <= 0 for size in self.voxel_size):
            raise TenfoldError(f"voxels have a positive size, unlike {self.voxel_size}")
        if self.cells is not None and any(count < 1 for count in self.cells):
            raise TenfoldError(f"a grid has at least one voxel along each axis, unlike {self.cells}")
        if any(count % 8 for count in self.grid[:2]):
            raise TenfoldError(
                f"the map is an eighth of the grid, which {self.grid[0]} x {self.grid[1]} voxels cannot be divided "
                "into; change point_range or voxel_size"
            )

    @property
    def grid(self) -> tuple[int, int, int]:
        """Voxels along x, y, z."""
        if self.cells is not None:
            return self.cells
        low, high = self.point_range[:3], self.point_range[3:]
        x, y, z = (
            round((upper - lower) / size)
            for lower, upper, size in zip(low, high, self.voxel_size, strict=True)
        )
        return x, y, z

    @property
    def map_size(self) -> tuple[int, int]:
        """Rows (y) and columns (x) of the map."""
        return self.grid[1] // 8, self.grid[0] // 8

    @property
    def map_channels(self) -> int:
        """Width of the map that the head reads."""
        return 2 * self.neck_channels


@dataclass(frozen=True)
class ImageConfig:
    """From camera images to image tokens."""

    backbone: ImageBackboneName = "vovnet-99"
    """vovnet-39 and vovnet-tiny are for small experiments."""
    size: tuple[int, int] = (640, 1600)
    """Height and width that the network sees, in pixels; multiples of 32."""
    original_size: tuple[int, int] = (900, 1600)
    """Height and width of the files, in pixels."""
    resize_train: tuple[float, float] = (0.94, 1.25)
    """Limits of the scale drawn in training, relative to the files; equal limits draw nothing."""
    resize_test: float = 1.0
    """Scale in evaluation."""
    flip: float = 0.5
    """Probability of mirroring, drawn once for all cameras of a sample."""
    grid_mask: float = 0.7
    """Probability of striping the images of a batch."""
    checkpointing: bool = False
    """Compute activations of the backbone again in the backward pass, to save memory."""
    batch_norm: Literal["evaluation", "training"] = "evaluation"
    """Statistics of the backbone's batch norms: those of its weights, or those of the batch."""

    def __post_init__(self) -> None:
        if any(side < 32 or side % 32 for side in self.size):
            raise TenfoldError(f"images have multiples of 32 pixels, unlike {self.size[0]} x {self.size[1]}")
        if not 0 < self.resize_train[0] <= self.resize_train[1] or self.resize_test <= 0:
            raise TenfoldError("limits of the scale are positive, the lesser first")
        if not 0 <= self.flip <= 1 or not 0 <= self.grid_mask <= 1:
            raise TenfoldError("flip and grid_mask are probabilities, from 0 to 1")


@dataclass(frozen=True)
class HeadConfig:
    """Coordinate encoding, decoder and task heads."""

    hidden: int = 256
    """Width of tokens and queries."""
    heads: int = 8
    """Of attention."""
    feedforward: int = 1024
    """Width of the feed-forward layers."""
    layers: int = 6
    """Of the decoder."""
    queries: int = 900
    dropout: float = 0.1
    """Of the attention's residual branches and of self-attention's weights."""
    depth_bins: int = 64
    """Points along the ray of a pixel."""
    task_kernel: int = 1
    """Kernel of the task heads' convolutions over the queries; the released CMT-L has 3."""
    task_channels: int = 64
    """Width inside a task head."""
    regression_order: Literal["official", "natural"] = "official"
    """Which output holds what: the released weights mix the names up."""
    query_start: Literal["uniform", "grid"] = "uniform"
    """Where learnt reference points begin: drawn at random, or on a level grid at half height."""
    image_position: bool = True
    """False: pixels have no position, neither as tokens nor in queries (ablation)."""
    bev_position: bool = True
    """False: cells of the map have no position, neither as tokens nor in queries (ablation)."""
    guided_queries: bool = True
    """False: queries are embedded by a learnt table instead of by their points (ablation)."""
    aligned_start: bool = False
    """Begin with attention that looks near the queries' own points; for short runs, not the paper's."""

    def __post_init__(self) -> None:
        if min(self.heads, self.layers, self.queries, self.depth_bins, self.task_channels) < 1:
            raise TenfoldError("heads, layers, queries, depth_bins and task_channels are at least 1")
        if not 0 <= self.dropout < 1:
            raise TenfoldError(f"dropout is a probability below 1, unlike {self.dropout}")
        if self.hidden % self.heads or self.hidden % 4:
            raise TenfoldError(
                f"the width {self.hidden} is a multiple of 4 and of the number of heads, {self.heads}"
            )
        if self.task_kernel % 2 == 0:
            raise TenfoldError(f"the kernel over queries is odd, unlike {self.task_kernel}")
        if self.query_start == "grid" and round(self.queries**0.5) ** 2 != self.queries:
            raise TenfoldError(f"a grid of queries has a square number of them, unlike {self.queries}")


@dataclass(frozen=True)
class NetworkConfig:
    """A whole detector."""

    modality: Modality = "fusion"
    """fusion reads both sensors, lidar and camera one."""
    lidar: LidarConfig = field(default_factory=LidarConfig)
    image: ImageConfig = field(default_factory=ImageConfig)
    head: HeadConfig = field(default_factory=HeadConfig)

    @property
    def reads_points(self) -> bool:
        return self.modality != "camera"

    @property
    def reads_images(self) -> bool:
        return self.modality != "lidar"


@dataclass(frozen=True)
class LossConfig:
    """Matching, losses and query denoising."""

    class_weight: float = 2.0
    box_weight: float = 0.25
    match_class_weight: float = 2.0
    match_box_weight: float = 0.25
    focal_alpha: float = 0.25
    focal_gamma: float = 2.0
    code_weights: tuple[float, ...] = (2.0, 2.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.2, 0.2)
    """Of the ten columns of a box."""
    background_weight: float = 0.1
    """What an unmatched query counts in the normaliser of the class loss."""
    denoising_groups: int = 10
    """Most groups of noised queries; 0 is no denoising."""
    noise_scale: float = 1.0
    """Greatest shift, in half sizes of the box."""
    noise_translation: float = 0.0
    """Greatest further shift, in metres."""
    noise_split: float = 0.75
    """Length of the noise beyond which a noised query is background."""
    denoising_weight: float = 1.0

    def __post_init__(self) -> None:
        if len(self.code_weights) != CODE_SIZE:
            raise TenfoldError(f"code_weights has a weight for each of the {CODE_SIZE} columns of a box")
        if self.denoising_groups < 0:
            raise TenfoldError("denoising_groups is not negative; 0 is no denoising")


@dataclass(frozen=True)
class AugmentConfig:
    """What is done to training samples."""

    rotation: tuple[float, float] = (-0.785, 0.785)
    """Limits in radians."""
    scale: tuple[float, float] = (0.9, 1.1)
    """Limits."""
    translation: float = 0.5
    """Standard deviation along each axis, in metres."""
    flip_x: float = 0.5
    """Probability of mirroring x."""
    flip_y: float = 0.5
    """Probability of mirroring y."""
    shuffle: bool = True
    """Put points into random order."""
    drop_images: float = 0.25
    """Probability of black images (masked-modal training)."""
    drop_points: float = 0.25
    """Probability of points without content (masked-modal training)."""
    ground_truth_sampling: bool = True
    """Paste objects of other samples."""
    legacy_reverse_rotation: bool = False
    """Rotate boxes against the images, as the released camera configuration does by mistake."""

    def __post_init__(self) -> None:
        chances = (self.flip_x, self.flip_y, self.drop_images, self.drop_points)
        if min(chances) < 0 or max(chances) > 1 or self.drop_images + self.drop_points > 1:
            raise TenfoldError(
                "flips and drops are probabilities, from 0 to 1, those of dropping images and points 1 at most together"
            )
        if not 0 < self.scale[0] <= self.scale[1] or self.rotation[0] > self.rotation[1]:
            raise TenfoldError("limits of scale and rotation ascend, and scales are positive")


NO_AUGMENTATION = AugmentConfig((0.0, 0.0), (1.0, 1.0), 0.0, 0.0, 0.0, False, 0.0, 0.0, False)
"""Samples as they are."""


@dataclass(frozen=True)
class DataConfig:
    """Which samples."""

    dataset: Literal["nuscenes", "procedural"] = "nuscenes"
    """nuScenes as it is published, or generated scenes in its form."""
    version: str = "v1.0-trainval"
    """Folder of the tables."""
    train_split: str = "train"
    test_split: str = "val"
    sweeps: int = 10
    """Earlier LiDAR sweeps beside the keyframe's; all there are where there are fewer."""
    class_balanced: bool = True
    """Draw samples so that classes are seen alike often (CBGS)."""
    workers: int = 4
    """Processes that read samples; 0 reads them in the process that learns."""
    in_memory: bool = False
    """Keep samples in memory after they were read once; for small sets without augmentation."""

    def __post_init__(self) -> None:
        if self.sweeps < 0 or self.workers < 0:
            raise TenfoldError("sweeps and workers are not negative")


@dataclass(frozen=True)
class TrainConfig:
    """How a network learns."""

    epochs: int = 20
    """Passes over the (balanced) training samples."""
    steps: int = 0
    """Updates instead of epochs; 0 counts epochs."""
    batch_size: int = 16
    """Samples of an update, on all devices together."""
    accumulate: int = 1
    """Parts that every batch is divided into, one after another, where memory is short."""
    lr: float = 1e-4
    """Where the cycle begins."""
    peak_ratio: float = 8.0
    """Peak of the cycle, relative to its beginning."""
    warm_part: float = 0.4
    """Part of the cycle that rises."""
    final_ratio: float = 1e-4
    """End of the cycle, relative to its beginning."""
    momentum_ratio: float = 0.8947
    """Of AdamW's first beta at the peak, relative to its beginning."""
    weight_decay: float = 0.01
    clip: float = 35.0
    """Norm of the gradient."""
    image_backbone_lr: float = 0.01
    """Rate of the image backbone, relative to the others."""
    image_backbone_decay: float = 5.0
    """Weight decay of the image backbone, relative to the others."""
    image_neck_lr: float = 0.1
    """Rate of the image neck, relative to the others."""
    fade_epochs: int = 5
    """Last epochs without pasted objects."""
    fade_part: float = 0.25
    """The same as a part of all updates, where steps are counted."""
    log_every: int = 50
    """Updates."""

    def __post_init__(self) -> None:
        if self.lr <= 0 or self.clip <= 0 or not 0 < self.warm_part < 1 or not 0 <= self.fade_part <= 1:
            raise TenfoldError("lr and clip are positive, warm_part and fade_part parts of the training")
        if self.batch_size < 1 or self.accumulate < 1 or self.log_every < 1:
            raise TenfoldError("batch_size, accumulate and log_every are at least 1")
        if self.steps < 0 or (self.steps == 0 and self.epochs < 1):
            raise TenfoldError("give at least one epoch or one step")
