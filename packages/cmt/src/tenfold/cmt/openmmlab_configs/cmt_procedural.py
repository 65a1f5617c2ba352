"""CMT for quick experiments on generated scenes: a small network with both sensors, 330 updates.

Set ``CMT_SCENES`` to the data root, with the info files ``infos_train.json`` and ``infos_val.json`` in it. Single
places change with ``--cfg-options``, for instance ``train_dataloader.dataset.data_root=...``; a variable of this file
changes only where it stands.
"""

# ruff: noqa: C408  mmengine's configs are written with dict()

default_scope = "mmdet3d"
custom_imports = dict(imports=["tenfold.cmt.openmmlab"], allow_failed_imports=False)

data_root = "{{$CMT_SCENES:data/cmt_scenes}}"
version = "v1.0-procedural"
classes = (
    *("car", "truck", "construction_vehicle", "bus", "trailer"),
    *("barrier", "motorcycle", "bicycle", "pedestrian", "traffic_cone"),
)
"""The network's order, not the dataset's own."""
metainfo = dict(classes=classes, version=version)
modality = dict(use_lidar=True, use_camera=True)
data_prefix = dict(
    pts="samples/LIDAR_TOP",
    sweeps="sweeps/LIDAR_TOP",
    CAM_FRONT="samples/CAM_FRONT",
    CAM_FRONT_RIGHT="samples/CAM_FRONT_RIGHT",
    CAM_FRONT_LEFT="samples/CAM_FRONT_LEFT",
    CAM_BACK="samples/CAM_BACK",
    CAM_BACK_LEFT="samples/CAM_BACK_LEFT",
    CAM_BACK_RIGHT="samples/CAM_BACK_RIGHT",
)

# Returns of the flat ground, 1.84 m below the LiDAR, are out of range, so there are few voxels.
point_range = (-16.0, -16.0, -1.7, 16.0, 16.0, 6.3)
image = dict(
    backbone="vovnet-tiny",
    size=(64, 160),
    original_size=(90, 160),
    resize_train=(1.0, 1.0),
    flip=0.0,
    grid_mask=0.0,
)
model = dict(
    type="TenfoldCmt",
    data_preprocessor=dict(type="Det3DDataPreprocessor"),
    network=dict(
        modality="fusion",
        lidar=dict(
            point_range=point_range,
            voxel_size=(0.4, 0.4, 0.25),
            encoder_channels=((16, 16), (16, 32), (32, 48), (48, 48)),
            encoder_out=64,
            second_channels=(64, 64),
            second_layers=1,
            neck_channels=64,
            backend="torch",
        ),
        image=image,
        head=dict(
            hidden=64,
            heads=4,
            feedforward=256,
            layers=2,
            queries=64,
            dropout=0.0,
            query_start="grid",
            aligned_start=True,
        ),
    ),
    losses=dict(denoising_groups=5),
)

loading = [
    dict(type="LoadPointsFromFile", coord_type="LIDAR", load_dim=5, use_dim=5),
    dict(type="LoadPointsFromMultiSweeps", sweeps_num=2, load_dim=5, use_dim=5, test_mode=True),
    dict(type="LoadMultiViewImageFromFiles", num_views=6),
]
train_pipeline = [
    *loading,
    dict(type="LoadAnnotations3D", with_bbox_3d=True, with_label_3d=True),
    dict(
        type="TenfoldSceneMove",
        rotation=(0.0, 0.0),
        scale=(1.0, 1.0),
        translation=0.0,
        flip_x=0.0,
        flip_y=0.0,
        drop_images=0.25,
        drop_points=0.25,
    ),
    dict(type="PointsRangeFilter", point_cloud_range=point_range),
    dict(type="ObjectRangeFilter", point_cloud_range=point_range),
    dict(type="ObjectNameFilter", classes=classes),
    dict(type="TenfoldImageMove", image=image, training=True),
    dict(type="Pack3DDetInputs", keys=["points", "img", "gt_bboxes_3d", "gt_labels_3d"]),
]
test_pipeline = [
    *loading,
    dict(type="TenfoldImageMove", image=image),
    dict(type="Pack3DDetInputs", keys=["points", "img"]),
]

train_dataloader = dict(
    batch_size=4,
    num_workers=2,
    persistent_workers=True,
    sampler=dict(type="InfiniteSampler", shuffle=True),
    dataset=dict(
        type="NuScenesDataset",
        data_root=data_root,
        ann_file="infos_train.json",
        data_prefix=data_prefix,
        metainfo=metainfo,
        modality=modality,
        pipeline=train_pipeline,
        test_mode=False,
    ),
)
val_dataloader = dict(
    batch_size=1,
    num_workers=2,
    persistent_workers=True,
    sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dict(
        type="NuScenesDataset",
        data_root=data_root,
        ann_file="infos_val.json",
        data_prefix=data_prefix,
        metainfo=metainfo,
        modality=modality,
        pipeline=test_pipeline,
        test_mode=True,
    ),
)
test_dataloader = val_dataloader
val_evaluator = dict(
    type="TenfoldNuScenesMetric",
    data_root=data_root,
    ann_file=data_root + "/infos_val.json",
    modality=modality,
)
test_evaluator = val_evaluator

updates = 330
warm_updates = 66
peak_ratio = 7.0
train_cfg = dict(type="IterBasedTrainLoop", max_iters=updates, val_interval=updates)
val_cfg = dict(type="ValLoop")
test_cfg = dict(type="TestLoop")
# The image networks start from random weights: the backbone learns faster than the others, not slower.
optim_wrapper = dict(
    type="OptimWrapper",
    optimizer=dict(type="AdamW", lr=1e-4, weight_decay=0.01),
    paramwise_cfg=dict(
        custom_keys=dict(img_backbone=dict(lr_mult=3.0, decay_mult=1.0), img_neck=dict(lr_mult=1.0))
    ),
    clip_grad=dict(max_norm=35.0, norm_type=2),
)
# A scheduler does not act at its end any more, so the first one reaches the peak one update later.
up = dict(begin=0, end=warm_updates + 1, T_max=warm_updates, by_epoch=False)
down = dict(begin=warm_updates, end=updates, T_max=updates - warm_updates, by_epoch=False)
param_scheduler = [
    dict(type="CosineAnnealingLR", eta_min_ratio=peak_ratio, **up),
    dict(type="CosineAnnealingLR", eta_min_ratio=1e-4, **down),
    dict(type="CosineAnnealingMomentum", eta_min_ratio=0.8947, **up),
    dict(type="CosineAnnealingMomentum", eta_min_ratio=1.0, **down),
]
default_hooks = dict(
    timer=dict(type="IterTimerHook"),
    logger=dict(type="LoggerHook", interval=50),
    param_scheduler=dict(type="ParamSchedulerHook"),
    checkpoint=dict(type="CheckpointHook", by_epoch=False, interval=updates),
    sampler_seed=dict(type="DistSamplerSeedHook"),
)
log_processor = dict(type="LogProcessor", window_size=50, by_epoch=False)
randomness = dict(seed=0, diff_rank_seed=True)
