"""The paper's CMT with both sensors: VoVNet-99 on images of 640 x 1600, voxels of 0.075 m, for 8 GPUs.

mAP 70.3 and NDS 72.9 on nuScenes val, as the authors report. Set ``NUSCENES`` to the data root, with the info files
``infos_train.json`` and ``infos_val.json``; ``CMT_OBJECTS`` to the object database of the training split, and
``CMT_PRETRAINING`` to the pretrained image backbone (FCOS3D on nuScenes after DD3D's depth pretraining).
"""

# ruff: noqa: C408  mmengine's configs are written with dict()

default_scope = "mmdet3d"
custom_imports = dict(imports=["tenfold.cmt.openmmlab"], allow_failed_imports=False)

data_root = "{{$NUSCENES:data/nuscenes}}"
object_database = "{{$CMT_OBJECTS:data/cmt_objects}}"
load_from = "{{$CMT_PRETRAINING:ckpts/fcos3d_vovnet_imgbackbone-remapped.pth}}"
classes = (
    *("car", "truck", "construction_vehicle", "bus", "trailer"),
    *("barrier", "motorcycle", "bicycle", "pedestrian", "traffic_cone"),
)
"""The network's order, not the dataset's own."""
metainfo = dict(classes=classes, version="v1.0-trainval")
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

point_range = (-54.0, -54.0, -5.0, 54.0, 54.0, 3.0)
image = dict(
    backbone="vovnet-99",
    size=(640, 1600),
    original_size=(900, 1600),
    resize_train=(0.94, 1.25),
    resize_test=1.0,
    flip=0.5,
    grid_mask=0.7,
)
model = dict(
    type="TenfoldCmt",
    data_preprocessor=dict(type="Det3DDataPreprocessor"),
    network=dict(
        modality="fusion",
        lidar=dict(
            point_range=point_range,
            voxel_size=(0.075, 0.075, 0.2),
            max_points_per_voxel=10,
            max_voxels_train=120_000,
            max_voxels_test=160_000,
        ),
        image=image,
        head=dict(hidden=256, heads=8, feedforward=1024, layers=6, queries=900, dropout=0.1, depth_bins=64),
    ),
    losses=dict(denoising_groups=10, noise_scale=1.0, noise_translation=0.0, noise_split=0.75),
    max_detections=300,
)

loading = [
    dict(type="LoadPointsFromFile", coord_type="LIDAR", load_dim=5, use_dim=5),
    dict(type="LoadPointsFromMultiSweeps", sweeps_num=10, load_dim=5, use_dim=5, test_mode=True),
    dict(type="LoadMultiViewImageFromFiles", num_views=6),
]
train_pipeline = [
    *loading,
    dict(type="LoadAnnotations3D", with_bbox_3d=True, with_label_3d=True),
    dict(type="TenfoldPasteObjects", database=object_database),
    dict(
        type="TenfoldSceneMove",
        rotation=(-0.785, 0.785),
        scale=(0.9, 1.1),
        translation=0.5,
        flip_x=0.5,
        flip_y=0.5,
        drop_images=0.25,
        drop_points=0.25,
    ),
    dict(type="PointsRangeFilter", point_cloud_range=point_range),
    dict(type="ObjectRangeFilter", point_cloud_range=point_range),
    dict(type="ObjectNameFilter", classes=classes),
    dict(type="PointShuffle"),
    dict(type="TenfoldImageMove", image=image, training=True),
    dict(type="Pack3DDetInputs", keys=["points", "img", "gt_bboxes_3d", "gt_labels_3d"]),
]
test_pipeline = [
    *loading,
    dict(type="TenfoldImageMove", image=image),
    dict(type="Pack3DDetInputs", keys=["points", "img"]),
]

train_dataloader = dict(
    batch_size=2,
    num_workers=4,
    persistent_workers=True,
    sampler=dict(type="DefaultSampler", shuffle=True),
    dataset=dict(
        type="CBGSDataset",
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
    ),
)
val_dataloader = dict(
    batch_size=1,
    num_workers=4,
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

epochs = 20
warm_epochs = 8
fade_epoch = 15
train_cfg = dict(type="EpochBasedTrainLoop", max_epochs=epochs, val_interval=epochs)
val_cfg = dict(type="ValLoop")
test_cfg = dict(type="TestLoop")
# Sparse convolutions, the head but for its cross-attention, and the losses stay in single precision by themselves.
optim_wrapper = dict(
    type="AmpOptimWrapper",
    loss_scale="dynamic",
    optimizer=dict(type="AdamW", lr=1e-4, weight_decay=0.01),
    paramwise_cfg=dict(
        custom_keys=dict(img_backbone=dict(lr_mult=0.01, decay_mult=5.0), img_neck=dict(lr_mult=0.1))
    ),
    clip_grad=dict(max_norm=35.0, norm_type=2),
)
up = dict(begin=0, end=warm_epochs, T_max=warm_epochs, by_epoch=True, convert_to_iter_based=True)
down = dict(
    begin=warm_epochs, end=epochs, T_max=epochs - warm_epochs, by_epoch=True, convert_to_iter_based=True
)
param_scheduler = [
    dict(type="CosineAnnealingLR", eta_min_ratio=8.0, **up),
    dict(type="CosineAnnealingLR", eta_min_ratio=1e-4, **down),
    dict(type="CosineAnnealingMomentum", eta_min_ratio=0.8947, **up),
    dict(type="CosineAnnealingMomentum", eta_min_ratio=1.0, **down),
]
# From this epoch on TenfoldPasteObjects rests; one cycle of rates goes on over both parts.
custom_hooks = [dict(type="DisableObjectSampleHook", disable_after_epoch=fade_epoch)]
default_hooks = dict(
    timer=dict(type="IterTimerHook"),
    logger=dict(type="LoggerHook", interval=50),
    param_scheduler=dict(type="ParamSchedulerHook"),
    checkpoint=dict(type="CheckpointHook", interval=1),
    sampler_seed=dict(type="DistSamplerSeedHook"),
)
randomness = dict(seed=0, diff_rank_seed=True)
