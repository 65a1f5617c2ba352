"""The profiles: what ``reproduce`` can run. Those named as released configurations are the paper's, to the letter."""

from __future__ import annotations

from dataclasses import replace

from tenfold.cmt.config import (
    NO_AUGMENTATION,
    AugmentConfig,
    DataConfig,
    HeadConfig,
    ImageConfig,
    LidarConfig,
    LossConfig,
    Modality,
    NetworkConfig,
    TrainConfig,
)
from tenfold.cmt.procedural_scenes import SceneConfig
from tenfold.cmt.suites import Method, Profile

SINGLE_SENSOR = ("no-lidar", "no-cameras", "neither")
MASKED, UNMASKED = "CMT, masked-modal", "CMT, unmasked"

# -- the paper's four configurations ----------------------------------------------------------------------

NUSCENES = DataConfig(workers=8)
VOV_FUSION = Method(
    "CMT, V-99 1600x640, 0.075", NetworkConfig(), TrainConfig(), AugmentConfig(), conditions=SINGLE_SENSOR
)
R50_IMAGES = ImageConfig(
    "resnet-50", size=(320, 800), resize_train=(0.47, 0.625), resize_test=0.5, checkpointing=True
)
R50_FUSION = Method(
    "CMT, R50 800x320, 0.1",
    # The released configuration has 1024 voxels of 0.1 m for 108 m: points beyond them are lost, and positions on
    # the map are stretched.
    NetworkConfig(lidar=LidarConfig(voxel_size=(0.1, 0.1, 0.2), cells=(1024, 1024, 40)), image=R50_IMAGES),
    TrainConfig(batch_size=32, lr=1.4e-4, peak_ratio=6.0),
    AugmentConfig(),
    conditions=SINGLE_SENSOR,
)
R50_RANGE51 = replace(
    R50_FUSION,
    name="CMT, R50 800x320, 0.1, range 51.2 m",
    network=replace(
        R50_FUSION.network,
        lidar=LidarConfig(point_range=(-51.2, -51.2, -5.0, 51.2, 51.2, 3.0), voxel_size=(0.1, 0.1, 0.2)),
    ),
)
LIDAR = Method(
    "CMT-L, 0.075",
    NetworkConfig("lidar", head=HeadConfig(task_kernel=3)),
    TrainConfig(peak_ratio=6.0),
    AugmentConfig(drop_images=0.0, drop_points=0.0),
)
CAMERA = Method(
    "CMT-C, V-99 1600x640",
    NetworkConfig("camera", image=ImageConfig(grid_mask=0.0)),
    TrainConfig(),
    AugmentConfig((-0.3925, 0.3925), (0.95, 1.05), 0.0, 0.0, 0.0, False, 0.0, 0.0, False),
)


def variants(base: Method, name: str) -> tuple[Method, ...]:
    """A detector and what it is without one of its parts; ``name`` begins the variants' names."""
    head = base.network.head

    def changed(title: str, head: HeadConfig, losses: LossConfig = base.losses) -> Method:
        return replace(
            base, name=f"{name} without {title}", network=replace(base.network, head=head), losses=losses
        )

    no_denoising = replace(base.losses, denoising_groups=0)
    unmasked = replace(base.augment, drop_images=0.0, drop_points=0.0)
    return (
        replace(base, name=name),
        replace(base, name=f"{name} without masked-modal training", augment=unmasked),
        changed("denoising", head, no_denoising),
        changed("image positions", replace(head, image_position=False)),
        changed("map positions", replace(head, bev_position=False)),
        # Noised queries are points, which queries without positions cannot be.
        replace(
            changed("", replace(head, guided_queries=False), no_denoising), name=f"{name} with free queries"
        ),
    )


# -- generated scenes -------------------------------------------------------------------------------------

QUICK_SCENES = SceneConfig(train_scenes=4, keyframes=2, azimuths=180, distances=(4.0, 15.0))
"""Four scenes of two keyframes: a layout learnt by heart fits none of them well."""
QUICK_DATA = DataConfig(
    "procedural",
    QUICK_SCENES.version,
    QUICK_SCENES.train_split,
    QUICK_SCENES.test_split,
    sweeps=2,
    class_balanced=False,
    workers=0,
    in_memory=True,
)
SMALL = NetworkConfig(
    lidar=LidarConfig(
        # The ground lies below the range: few voxels are left, and these are small.
        point_range=(-16.0, -16.0, -1.7, 16.0, 16.0, 6.3),
        voxel_size=(0.4, 0.4, 0.25),
        encoder_channels=((16, 16), (16, 32), (32, 48), (48, 48)),
        encoder_out=64,
        second_channels=(64, 64),
        second_layers=1,
        neck_channels=64,
        backend="torch",
    ),
    image=ImageConfig(
        "vovnet-tiny",
        size=(64, 160),
        original_size=(90, 160),
        resize_train=(1.0, 1.0),
        flip=0.0,
        grid_mask=0.0,
    ),
    head=HeadConfig(
        hidden=64,
        heads=4,
        feedforward=256,
        layers=2,
        queries=64,
        dropout=0.0,
        query_start="grid",
        aligned_start=True,
    ),
)
FROM_SCRATCH = TrainConfig(
    lr=1e-4,
    peak_ratio=7.0,
    warm_part=0.2,
    image_backbone_lr=1.0,
    image_backbone_decay=1.0,
    image_neck_lr=1.0,
    fade_part=0.0,
)
"""Networks without pretrained weights."""
QUICK_TRAIN = replace(FROM_SCRATCH, steps=330, batch_size=4, image_backbone_lr=3.0, log_every=20)
QUICK_LOSSES = LossConfig(denoising_groups=5)
MASKING = replace(NO_AUGMENTATION, drop_images=0.25, drop_points=0.25)


def small(name: str, train: TrainConfig, masked: bool, modality: Modality = "fusion") -> Method:
    """A small detector for generated scenes."""
    network = replace(SMALL, modality=modality)
    conditions = SINGLE_SENSOR if modality == "fusion" else ()
    augment = MASKING if masked else NO_AUGMENTATION
    return Method(name, network, train, augment, QUICK_LOSSES, conditions)


SMOKE_TRAIN = replace(QUICK_TRAIN, steps=6, batch_size=2, log_every=2)
SMOKE_SCENES = SceneConfig(keyframes=2, sweeps=1, lead_sweeps=1, azimuths=90)

# -- one GPU ----------------------------------------------------------------------------------------------

H100_SCENES = SceneConfig(
    train_scenes=600,
    test_scenes=100,
    test_repeats_train=False,
    keyframes=8,
    sweeps=9,
    lead_sweeps=9,
    azimuths=1084,
    image_size=(225, 400),
    train_split="procedural_train",
    test_split="procedural_val",
)
H100_DATA = DataConfig(
    "procedural",
    H100_SCENES.version,
    H100_SCENES.train_split,
    H100_SCENES.test_split,
    sweeps=9,
    class_balanced=False,
    workers=14,
)
H100_IMAGES = ImageConfig(
    "vovnet-39",
    size=(192, 384),
    original_size=(225, 400),
    resize_train=(0.9, 1.2),
    resize_test=0.96,
    batch_norm="training",
)
H100_NETWORK = NetworkConfig(
    lidar=LidarConfig(
        point_range=(-51.2, -51.2, -5.0, 51.2, 51.2, 3.0), voxel_size=(0.2, 0.2, 0.2), max_voxels_train=60_000
    ),
    image=H100_IMAGES,
)
H100_TRAIN = replace(FROM_SCRATCH, steps=2500, batch_size=16, peak_ratio=6.0)
H100_AUGMENT = AugmentConfig(ground_truth_sampling=False)


def medium(name: str, network: NetworkConfig, masked: bool = False) -> Method:
    """A detector of the paper's width for one GPU."""
    drop = 0.25 if masked else 0.0
    conditions = SINGLE_SENSOR if network.modality == "fusion" else ()
    augment = replace(H100_AUGMENT, drop_images=drop, drop_points=drop)
    return Method(name, network, H100_TRAIN, augment, conditions=conditions)


def medium_methods(network: NetworkConfig) -> tuple[Method, ...]:
    """Fusion with and without masking, and both sensors alone."""
    return (
        medium(MASKED, network, masked=True),
        medium(UNMASKED, network),
        medium("CMT-L", replace(network, modality="lidar")),
        medium("CMT-C", replace(network, modality="camera", image=replace(network.image, grid_mask=0.0))),
    )


PROFILES: dict[str, Profile] = {
    "smoke": Profile(
        "seconds: a few updates on four generated keyframes, for tests",
        QUICK_DATA,
        (small(MASKED, SMOKE_TRAIN, masked=True), small(UNMASKED, SMOKE_TRAIN, masked=False)),
        "smoke, synthetic",
        SMOKE_SCENES,
        checkpoint_seconds=0.0,
    ),
    "quick": Profile(
        "minutes on two cores: eight generated keyframes are memorised, with and without masked-modal training",
        QUICK_DATA,
        (small(MASKED, QUICK_TRAIN, masked=True), small(UNMASKED, QUICK_TRAIN, masked=False)),
        "memorisation, synthetic",
        QUICK_SCENES,
        (0, 1, 2),
        checkpoint_seconds=15.0,
    ),
    "ablation": Profile(
        "an hour on two cores: the same without each part, and with one sensor",
        QUICK_DATA,
        (
            *variants(small("CMT", QUICK_TRAIN, masked=True), "CMT"),
            small("CMT-L", QUICK_TRAIN, masked=False, modality="lidar"),
            small("CMT-C", QUICK_TRAIN, masked=False, modality="camera"),
        ),
        "memorisation, synthetic",
        QUICK_SCENES,
        (0, 1, 2),
        checkpoint_seconds=15.0,
    ),
    "h100": Profile(
        "about 25 minutes on one GPU, 28 GB: unseen generated scenes, both sensors, either, with and without masking",
        H100_DATA,
        medium_methods(H100_NETWORK),
        "val, synthetic",
        H100_SCENES,
    ),
    "mini": Profile(
        "the same methods on nuScenes' ten scenes of v1.0-mini; numbers are noisy, the paper has none",
        replace(
            H100_DATA,
            dataset="nuscenes",
            version="v1.0-mini",
            train_split="mini_train",
            test_split="mini_val",
        ),
        medium_methods(
            replace(
                H100_NETWORK,
                image=replace(
                    H100_IMAGES, original_size=(900, 1600), resize_train=(0.225, 0.3), resize_test=0.24
                ),
            )
        ),
        "mini_val",
    ),
    "cmt_voxel0075_vov_1600x640": Profile(
        "nuScenes, both sensors, the paper's best: V-99 on 1600x640 pixels and voxels of 0.075 m",
        NUSCENES,
        (VOV_FUSION,),
    ),
    "cmt_voxel0100_r50_800x320": Profile(
        "nuScenes, both sensors: ResNet-50 on 800x320 pixels, voxels of 0.1 m, with the released grid",
        NUSCENES,
        (R50_FUSION,),
    ),
    "cmt_voxel0100_r50_800x320_range51": Profile(
        "the same with a grid that fits its range",
        NUSCENES,
        (R50_RANGE51,),
    ),
    "cmt_lidar_voxel0075": Profile("nuScenes, LiDAR alone: voxels of 0.075 m", NUSCENES, (LIDAR,)),
    "cmt_camera_vov_1600x640": Profile(
        "nuScenes, cameras alone: V-99 on 1600x640 pixels", NUSCENES, (CAMERA,)
    ),
    "cmt_voxel0100_r50_800x320_ablation": Profile(
        "nuScenes, the ResNet-50 configuration without each part",
        NUSCENES,
        variants(R50_RANGE51, "CMT"),
        "val, ablation",
    ),
}
