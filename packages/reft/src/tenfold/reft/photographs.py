"""Sampler, evaluation and pooling on the photographs of COCO that the package brings along: seconds, no training."""

from __future__ import annotations

from pycocotools import mask as rle_masks

from tenfold.reft.annotations import instance_mask, load_annotations, read_image, run_lengths
from tenfold.reft.bundled import bundled_annotations, bundled_images
from tenfold.reft.comparison_figures import draw_pooled
from tenfold.reft.config import DataConfig
from tenfold.reft.evaluation import evaluate
from tenfold.reft.few_shot_sampling import sample_k_shots
from tenfold.reft.support_crops import support_crop
from tenfold.shared.runs import Run

SHOTS = (1, 2)
SEED = 1


def check_photographs(run: Run) -> dict[str, float]:
    """Draw shots by the published rules, judge the annotations by themselves, and draw what pooling weighs.

    Args:
        run: entered; gets the picture.

    Returns:
        AP of the annotations judged by themselves, with tight boxes of their masks: 100 for masks, nearly so for boxes;
        and how many classes have two shots.
    """
    train, val = (load_annotations(bundled_annotations(which)) for which in ("train", "val"))
    annotations = [one for one in train.dataset["annotations"] if not one["iscrowd"]]
    single = dict.fromkeys(train.cats, 0)
    for image_id in train.imgs:
        of_image = [one["category_id"] for one in annotations if one["image_id"] == image_id]
        for number in set(of_image):
            single[number] += of_image.count(number) == 1
    able = sorted(number for number, images in single.items() if images >= max(SHOTS))
    sampled = sample_k_shots(annotations, able, SHOTS, SEED)

    found = []
    for one in val.dataset["annotations"]:
        if not one["iscrowd"]:
            image = val.imgs[one["image_id"]]
            mask = run_lengths(one["segmentation"], image["height"], image["width"])
            box = [float(value) for value in rle_masks.toBbox(mask)]
            names = ("image_id", "category_id")
            found.append(
                {**{name: one[name] for name in names}, "segmentation": mask, "bbox": box, "score": 1.0}
            )
    stats = evaluate(val, found, {"all": sorted({one["category_id"] for one in found})})

    shot = train.anns[sampled[able[-1]][1][0]]
    picture = read_image(bundled_images() / train.imgs[shot["image_id"]]["file_name"])
    instance = instance_mask(shot["segmentation"], picture.shape[1], picture.shape[2])
    data = DataConfig()
    crop, cropped = support_crop(picture, instance, data.support_context, data.support_size)
    name = train.cats[shot["category_id"]]["name"]
    caption = f"A shot of COCO, and what masked average pooling weighs at each level: {name}"
    with run.figure("photograph.png", caption) as path:
        draw_pooled(path, crop, cropped)
    return {
        "segm_AP of the annotations": 100 * float(stats["segm_all"][0]),
        "bbox_AP of the annotations": 100 * float(stats["bbox_all"][0]),
        "classes_with_two_shots": float(len(able)),
    }
