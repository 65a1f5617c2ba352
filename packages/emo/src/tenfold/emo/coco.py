"""Data of COCO's form: images with boxes, the augmentations of both detectors, results, and average precision."""

from __future__ import annotations

import contextlib
import io
import json
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from timm.data import IMAGENET_DEFAULT_MEAN
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Subset
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from tenfold.emo.detection import DetectionRecipe, Target
from tenfold.shared.logging import TenfoldError
from tenfold.shared.seeding import epoch_order, make_generator, seed_worker

METRICS = ("AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large")
CROP_TRIALS = 50
Batch = tuple[list[Tensor], list[Target]]
Transforms = Callable[[tv_tensors.Image, dict[str, Any]], tuple[Tensor, Target]]


# -- augmentations ---------------------------------------------------------------------------------------


def plain_transforms() -> v2.Compose:
    """None: values from 0 to 1, as the detectors take them. They normalise and resize by themselves."""
    return v2.Compose([v2.ToDtype(torch.float32, scale=True), v2.ToPureTensor()])


def ssdlite_transforms(size: int = 320) -> v2.Compose:
    """Augmentations of SSDLite: expansion, crop, resize without regard to the aspect ratio, flip, distortion.

    torchvision's crop asks for the overlap with one box, and its brightness is a factor of up to 32 / 256.

    Args:
        size: side in pixels.
    """
    return v2.Compose(
        [
            v2.RandomZoomOut([round(255 * mean) for mean in IMAGENET_DEFAULT_MEAN], side_range=(1, 4), p=0.5),
            # An overlap of 0 is any crop, one of 1 none.
            v2.RandomIoUCrop(
                min_scale=0.3, sampler_options=[0.0, 0.1, 0.3, 0.5, 0.7, 0.9, 1.0], trials=CROP_TRIALS
            ),
            v2.SanitizeBoundingBoxes(),
            v2.Resize((size, size), antialias=False),
            v2.RandomHorizontalFlip(0.5),
            v2.RandomPhotometricDistort(
                brightness=(1 - 32 / 256, 1 + 32 / 256),
                contrast=(0.5, 1.5),
                saturation=(0.5, 1.5),
                hue=(-18 / 360, 18 / 360),
                p=0.5,
            ),
            *plain_transforms().transforms,
        ]
    )


def retinanet_transforms() -> v2.Compose:
    """Augmentations of RetinaNet: a flip. It resizes by itself."""
    return v2.Compose([v2.RandomHorizontalFlip(0.5), *plain_transforms().transforms])


# -- data ------------------------------------------------------------------------------------------------


class CocoBoxes(Dataset[tuple[Tensor, Target]]):
    """Images with their boxes, and classes from 0 in the order of the category numbers.

    Boxes of crowds and those of less than a pixel are left out.

    Args:
        images: folder that the file names are below.
        annotations: file, ``instances_train2017.json`` for instance.
        transforms: of an image and its ``boxes`` and ``labels``.
        only_with_boxes: leave out images without boxes, to learn from the others: 117,266 of COCO 2017.

    Raises:
        TenfoldError: the folder or the file is missing, the file is not of COCO's form, or no image is left.
    """

    def __init__(
        self,
        images: Path,
        annotations: Path,
        transforms: Transforms | None = None,
        only_with_boxes: bool = False,
    ) -> None:
        if not images.is_dir():
            raise TenfoldError(
                f"there is no folder {images}; give the one that holds the images of {annotations}"
            )
        self.images, self.transforms = images, transforms or plain_transforms()
        self.coco = load_annotations(annotations)
        self.category_ids: list[int] = sorted(self.coco.cats)
        """Of the classes."""
        self._class_of = {number: label for label, number in enumerate(self.category_ids)}
        self.image_ids: list[int] = [
            number
            for number in sorted(self.coco.imgs)
            if not only_with_boxes or any(is_usable(box) for box in self.coco.imgToAnns[number])
        ]
        if not self.image_ids:
            raise TenfoldError(f"{annotations} has no image {'with boxes' if only_with_boxes else 'at all'}")

    @property
    def num_classes(self) -> int:
        """Categories."""
        return len(self.category_ids)

    def __len__(self) -> int:
        return len(self.image_ids)

    def __getitem__(self, index: int) -> tuple[Tensor, Target]:
        """An image [3, H, W] and its ``boxes`` [n, 4] (corners) and ``labels`` [n].

        Raises:
            TenfoldError: the image is missing or damaged.
        """
        number = self.image_ids[index]
        image = self._read(self.images / self.coco.imgs[number]["file_name"])
        usable = [box for box in self.coco.imgToAnns[number] if is_usable(box)]
        found = tv_tensors.BoundingBoxes(
            torch.tensor([box["bbox"] for box in usable], dtype=torch.float32).reshape(-1, 4),
            format="XYWH",
            canvas_size=image.shape[-2:],
        )
        corners = F.clamp_bounding_boxes(F.convert_bounding_box_format(found, new_format="XYXY"))
        boxes, kept = F.sanitize_bounding_boxes(corners)
        labels = torch.tensor([self._class_of[box["category_id"]] for box in usable], dtype=torch.int64)
        return self.transforms(image, {"boxes": boxes, "labels": labels[kept]})

    def _read(self, path: Path) -> tv_tensors.Image:
        try:
            with Image.open(path) as image:
                return F.to_image(image.convert("RGB"))
        except FileNotFoundError as error:
            raise TenfoldError(f"there is no image {path}; check the folder of images") from error
        except (OSError, SyntaxError, Image.DecompressionBombError) as error:
            raise TenfoldError(f"the image {path} cannot be read ({error}); get it again") from error


def is_usable(annotation: dict[str, Any]) -> bool:
    """Whether a box can be learned from: no crowd, and at least a pixel wide and high."""
    return not annotation["iscrowd"] and min(annotation["bbox"][2:]) >= 1


def load_annotations(path: Path) -> COCO:
    """A file of COCO's form. Boxes without an area get their own; they are numbered anew.

    Raises:
        TenfoldError: the file is missing, or something in it is not of COCO's form; it is named.
    """
    if not path.is_file():
        raise TenfoldError(
            f"there is no file {path}; give the annotations, instances_train2017.json for instance"
        )
    try:
        content = json.loads(path.read_bytes())
    except ValueError as error:
        raise TenfoldError(f"{path} is no JSON ({error}); get it again") from error
    for part in ("images", "annotations", "categories"):
        if not isinstance(content, dict) or not isinstance(content.get(part), list):
            raise TenfoldError(f"{path} has no list of {part}; give annotations of COCO's form")
    try:
        images = {image["id"]: image["file_name"] for image in content["images"]}
        categories = {category["id"] for category in content["categories"]}
        # COCOeval takes the match with a box of number 0 for none.
        for number, box in enumerate(content["annotations"], start=1):
            _check_box(box, images, categories)
            box["id"] = number
            box.setdefault("area", box["bbox"][2] * box["bbox"][3])
            box.setdefault("iscrowd", 0)
    except (KeyError, TypeError) as error:
        raise TenfoldError(
            f"{path} is not of COCO's form: {error} is missing or of the wrong kind"
        ) from error
    except ValueError as error:
        raise TenfoldError(f"{path} is not of COCO's form: {error}") from error
    coco = COCO()
    coco.dataset = content
    with silence():
        coco.createIndex()
    return coco


def _check_box(box: dict[str, Any], images: dict[int, str], categories: set[int]) -> None:
    """Raises ValueError with what is wrong."""
    if box["image_id"] not in images:
        raise ValueError(f"a box is in image {box['image_id']}, which is not listed")
    if box["category_id"] not in categories:
        raise ValueError(f"a box is of category {box['category_id']}, which is not listed")
    if len(box["bbox"]) != 4 or not all(math.isfinite(value) for value in box["bbox"]):
        raise ValueError(f"the box {box['bbox']} in image {box['image_id']} is not x, y, width, height")


@contextlib.contextmanager
def silence() -> Iterator[None]:
    """Nothing that pycocotools prints."""
    with contextlib.redirect_stdout(io.StringIO()):
        yield


# -- batches ---------------------------------------------------------------------------------------------


def collate(examples: Sequence[tuple[Tensor, Target]]) -> Batch:
    """Images of different sizes stay a list."""
    images, targets = zip(*examples, strict=True)
    return list(images), list(targets)


def training_batches(
    images: int, recipe: DetectionRecipe, seed: int, epoch: int, rank: int = 0, processes: int = 1
) -> list[list[int]]:
    """Which images each update of an epoch sees, in one process. The last batch is filled up from the first.

    Args:
        images: of the training set; each is seen ``repeats`` times.
        recipe: for repeats and batch size.
        seed: of the order, with the epoch.
        epoch: from 0.
        rank: of the process.
        processes: that divide a batch.

    Raises:
        TenfoldError: processes do not divide the batch.
    """
    if recipe.batch_size % processes:
        raise TenfoldError(
            f"{processes} processes cannot share batches of {recipe.batch_size} images; change either"
        )
    order = epoch_order(images * recipe.repeats, seed, epoch) % images
    updates = math.ceil(len(order) / recipe.batch_size)
    filled = order[torch.arange(updates * recipe.batch_size) % len(order)]
    found: list[list[int]] = filled.view(updates, recipe.batch_size)[:, rank::processes].tolist()
    return found


def training_loader(
    data: CocoBoxes, recipe: DetectionRecipe, fabric: Fabric, seed: int, epoch: int, workers: int = 0
) -> DataLoader[Batch]:
    """The batches of one epoch, on Fabric's device.

    Args:
        data: with the detector's augmentations, and only images with boxes.
        recipe: for repeats and batch size.
        fabric: launched; its processes divide the batches.
        seed: of order and augmentations, with the epoch.
        epoch: from 0.
        workers: processes that read images; without any, augmentations follow torch's global generator.
    """
    rank, processes = fabric.global_rank, fabric.world_size
    loader: DataLoader[Any] = DataLoader(
        data,
        batch_sampler=training_batches(len(data), recipe, seed, epoch, rank, processes),
        num_workers=workers,
        collate_fn=collate,
        pin_memory=fabric.device.type == "cuda",
        worker_init_fn=seed_worker,
        generator=make_generator((seed * 1_000_003 + epoch) * processes + rank),
    )
    return fabric.setup_dataloaders(loader, use_distributed_sampler=False)  # type: ignore[return-value]


# -- results ---------------------------------------------------------------------------------------------


@torch.inference_mode()
def detect(
    detector: nn.Module, data: CocoBoxes, fabric: Fabric, batch_size: int = 32, workers: int = 0
) -> list[dict[str, Any]]:
    """What a detector finds in all images, in COCO's form of results.

    Args:
        detector: set up by Fabric.
        data: without augmentations.
        fabric: launched; its processes divide the images, and all get all results.
        batch_size: images of one pass.
        workers: processes that read images.
    """
    share = range(fabric.global_rank, len(data), fabric.world_size)
    loader: DataLoader[Any] = DataLoader(
        Subset(data, share), batch_size, num_workers=workers, collate_fn=collate
    )
    numbers = iter([data.image_ids[index] for index in share])
    detector.eval()
    results = []
    for images, _ in fabric.setup_dataloaders(loader, use_distributed_sampler=False):
        for found in detector(images):
            results.extend(coco_results(found, next(numbers), data.category_ids))
    if fabric.world_size == 1:
        return results
    parts: list[list[dict[str, Any]]] = [[] for _ in range(fabric.world_size)]
    torch.distributed.all_gather_object(parts, results)
    return [result for part in parts for result in part]


def coco_results(found: Target, image_id: int, category_ids: Sequence[int]) -> list[dict[str, Any]]:
    """Boxes of one image in COCO's form of results.

    Args:
        found: ``boxes`` [n, 4] (corners), ``labels`` [n], ``scores`` [n].
        image_id: number of the image.
        category_ids: of the classes.
    """
    boxes = found["boxes"].clone()
    boxes[:, 2:] -= boxes[:, :2]
    return [
        {"image_id": image_id, "category_id": category_ids[label], "bbox": box, "score": score}
        for box, label, score in zip(
            boxes.tolist(), found["labels"].tolist(), found["scores"].tolist(), strict=True
        )
    ]


def evaluate(results: Sequence[dict[str, Any]], coco: COCO) -> dict[str, float]:
    """Average precision of results: :data:`METRICS`, from 0 to 1; -1 where there is no box of that size.

    Args:
        results: of all images, in COCO's form.
        coco: annotations of these images.
    """
    with silence():
        if results:
            detections = coco.loadRes([dict(result) for result in results])
        else:
            detections = COCO()
            detections.dataset = {**coco.dataset, "annotations": []}
            detections.createIndex()
        evaluation = COCOeval(coco, detections, "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return dict(zip(METRICS, evaluation.stats[:6].tolist(), strict=True))
