"""ADE20K scene parsing: images and labels from folders, augmentation, the training loop, and mIoU.

Zhou et al., Scene Parsing through ADE20K Dataset, CVPR 2017. 20,210 images for training, 2,000 for validation, 150
classes. Any set of the same layout will do::

    images/training/*.jpg        annotations/training/*.png
    images/validation/*.jpg      annotations/validation/*.png
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from lightning_fabric import Fabric
from PIL import Image
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset
from torchmetrics.classification import MulticlassConfusionMatrix
from torchvision import tv_tensors
from torchvision.transforms import v2

from tenfold.emo.segmentation import (
    IGNORE_INDEX,
    SegmentationRecipe,
    Segmenter,
    make_optimizer,
    polynomial_rate,
    resize,
    segmentation_loss,
)
from tenfold.shared.logging import TenfoldError
from tenfold.shared.runs import Run
from tenfold.shared.seeding import epoch_order, make_generator, seed_everything, seed_worker

SplitName = Literal["training", "validation"]
Pair = tuple[Tensor, Tensor]
"""An image [3, H, W] and its labels [H, W]."""

LONG_SIDE, SHORT_SIDE = 2048, 512
"""Pixels within which images are fitted."""
CROP_SIZE = 512
MAX_SHARE = 0.75
"""Of one class in a crop."""
CROP_ATTEMPTS = 10


# -- reading -------------------------------------------------------------------------------------------


class ADE20K(Dataset[Pair]):
    """Images with a class for every pixel.

    Annotations number classes from 1, and 0 is everything else. Here classes begin at 0; 0 and 255 of the files become
    255, which is ignored.

    Args:
        root: folder with ``images`` and ``annotations``.
        split: training or validation.
        transform: of an image, uint8 [3, H, W], and its labels, uint8 [H, W], both of ``torchvision.tv_tensors``.
        num_classes: of the set, at most 254.

    Raises:
        TenfoldError: a folder is missing or empty, or an image has no annotation. An image that cannot be read, labels
            of another size or out of range are found when it is their turn.
    """

    def __init__(
        self, root: Path, split: SplitName, transform: Callable[..., Pair], num_classes: int = 150
    ) -> None:
        if not 1 < num_classes < IGNORE_INDEX:
            raise TenfoldError(f"labels are bytes: a set has 2 to 254 classes, not {num_classes}")
        self.transform, self.num_classes = transform, num_classes
        self.images, self.annotations = _paired_files(root, split)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Pair:
        image = tv_tensors.Image(_read(self.images[index]).convert("RGB"))
        labels = read_labels(self.annotations[index], self.num_classes)
        if labels.shape != image.shape[1:]:
            sizes = f"{tuple(labels.shape)}, not {tuple(image.shape[1:])} as its image"
            raise TenfoldError(f"{self.annotations[index]} has size {sizes}: mend or remove the pair")
        return self.transform(image, labels)


def _paired_files(root: Path, split: SplitName) -> tuple[list[Path], list[Path]]:
    folders = [root / "images" / split, root / "annotations" / split]
    for folder in folders:
        if not folder.is_dir():
            raise TenfoldError(
                f"there is no folder {folder}: unpack ADE20K's scene parsing release (ADEChallengeData2016.zip) and "
                "name the folder that has images/ and annotations/"
            )
    suffixes = (".jpg", ".jpeg", ".png")
    images = sorted(path for path in folders[0].iterdir() if path.suffix.lower() in suffixes)
    if not images:
        raise TenfoldError(f"there are no images in {folders[0]}: put JPEG or PNG files there")
    annotated = {path.stem for path in folders[1].glob("*.png")}
    missing = [path.name for path in images if path.stem not in annotated]
    if missing:
        raise TenfoldError(
            f"{len(missing)} of {len(images)} images have no PNG in {folders[1]}, the first is {missing[0]}: add their "
            "annotations or remove them"
        )
    return images, [folders[1] / f"{path.stem}.png" for path in images]


def _read(path: Path) -> Image.Image:
    try:
        with Image.open(path) as picture:
            picture.load()
            return picture
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise TenfoldError(f"{path} cannot be read as an image: get it again or remove it") from error


def read_labels(path: Path, num_classes: int) -> Tensor:
    """Labels of a PNG of bytes, minus 1: uint8 [H, W] of ``tv_tensors.Mask``, where 0 and 255 are now 255.

    Raises:
        TenfoldError: it cannot be read, has several channels or more than 8 bits, or a label is out of range.
    """
    picture = _read(path)
    if picture.mode not in ("L", "P"):
        raise TenfoldError(
            f"{path} has pixels of mode {picture.mode}: annotations are PNGs of one channel of bytes"
        )
    found = v2.functional.pil_to_tensor(picture)[0]
    highest = int(torch.where(found == IGNORE_INDEX, 0, found).max())
    if highest > num_classes:
        raise TenfoldError(
            f"{path} has label {highest}, and {num_classes} classes end there: is it another set?"
        )
    # Bytes wrap around: 0 becomes 255.
    return tv_tensors.Mask(torch.where(found == IGNORE_INDEX, found, found - 1))  # type: ignore[no-any-return]


# -- augmentation --------------------------------------------------------------------------------------


def fitted_size(size: Sequence[int], long_side: int, short_side: int) -> tuple[int, int]:
    """Height and width of the largest image of the same shape, [H, W], whose sides are within the limits."""
    factor = min(long_side / max(size), short_side / min(size))
    return math.floor(size[0] * factor + 0.5), math.floor(size[1] * factor + 0.5)


def uniform(low: float, high: float) -> float:
    """A number from torch's global generator."""
    return low + (high - low) * torch.rand(()).item()


@dataclass(frozen=True)
class RandomResize:
    """Fits image and labels into limits times a random factor; bilinear without antialias, labels by the nearest."""

    long_side: int = LONG_SIDE
    short_side: int = SHORT_SIDE
    factors: tuple[float, float] = (0.5, 2.0)

    def __call__(self, image: Tensor, labels: Tensor) -> Pair:
        factor = uniform(*self.factors)
        size = fitted_size(image.shape[1:], int(self.long_side * factor), int(self.short_side * factor))
        return (
            v2.functional.resize(image, size, antialias=False),
            v2.functional.resize(labels, size),
        )


@dataclass(frozen=True)
class Fit:
    """Fits the image into limits; labels keep their size, at which predictions are judged."""

    long_side: int = LONG_SIDE
    short_side: int = SHORT_SIDE

    def __call__(self, image: Tensor, labels: Tensor) -> Pair:
        size = fitted_size(image.shape[1:], self.long_side, self.short_side)
        return v2.functional.resize(image, size, antialias=False), labels


@dataclass(frozen=True)
class BalancedCrop:
    """A random crop, drawn again where one class has too much of it.

    Up to ten times, until the labelled pixels are of two classes or more and none has ``max_share`` of them. The last
    crop is taken as it is. A side shorter than ``size`` is kept whole.
    """

    size: int = CROP_SIZE
    max_share: float = MAX_SHARE

    def __call__(self, image: Tensor, labels: Tensor) -> Pair:
        height, width = (min(self.size, side) for side in labels.shape)
        for _ in range(CROP_ATTEMPTS):
            top = int(torch.randint(labels.shape[0] - height + 1, ()))
            left = int(torch.randint(labels.shape[1] - width + 1, ()))
            if self._is_balanced(labels[top : top + height, left : left + width]):
                break
        place = (top, left, height, width)
        return v2.functional.crop(image, *place), v2.functional.crop(labels, *place)

    def _is_balanced(self, labels: Tensor) -> bool:
        counts = torch.bincount(labels.flatten(), minlength=IGNORE_INDEX + 1)[:IGNORE_INDEX]
        return bool(counts.count_nonzero() > 1 and counts.max() < self.max_share * counts.sum())


@dataclass(frozen=True)
class PhotometricDistortion:
    """Brightness, contrast, saturation and hue, each changed with probability one half.

    Contrast comes either second or last. Images are float in [0, 1]. torchvision's own transform also swaps
    channels.
    """

    brightness: float = 32 / 255
    """Largest number that is added."""
    contrast: tuple[float, float] = (0.5, 1.5)
    """Factors of the pixels."""
    saturation: tuple[float, float] = (0.5, 1.5)
    """Factors of the saturation in HSV."""
    hue: float = 0.1
    """Largest turn of the hue; 18 of 180 degrees."""

    def __call__(self, image: Tensor, labels: Tensor) -> Pair:
        changes = (torch.rand(4) < 0.5).tolist()
        contrast_is_last = uniform(0, 1) < 0.5
        x = image.as_subclass(Tensor)
        if changes[0]:
            x = (x + uniform(-self.brightness, self.brightness)).clamp(0, 1)
        if changes[1] and not contrast_is_last:
            x = (x * uniform(*self.contrast)).clamp(0, 1)
        if changes[2]:
            x = saturated(x, uniform(*self.saturation))
        if changes[3]:
            x = v2.functional.adjust_hue(x, uniform(-self.hue, self.hue))
        if changes[1] and contrast_is_last:
            x = (x * uniform(*self.contrast)).clamp(0, 1)
        return tv_tensors.Image(x), labels


def saturated(image: Tensor, factor: float) -> Tensor:
    """Saturation in HSV times a factor, at most 1; hue and value stay. [3, H, W], not negative."""
    value = image.amax(dim=0, keepdim=True)
    below = value - image
    largest = value / below.amax(dim=0, keepdim=True).clamp(min=1e-12)  # brings the saturation to 1
    return (value - largest.clamp(max=factor) * below).clamp(min=0)


@dataclass(frozen=True)
class PadTo:
    """Fills a normalised image up to a square with zeros at the right and the bottom, and labels with 255."""

    size: int = CROP_SIZE

    def __call__(self, image: Tensor, labels: Tensor) -> Pair:
        margins = (0, self.size - labels.shape[1], 0, self.size - labels.shape[0])
        return F.pad(image, margins), F.pad(labels, margins, value=IGNORE_INDEX)


def training_transform(
    crop_size: int = CROP_SIZE, long_side: int = LONG_SIDE, short_side: int = SHORT_SIDE
) -> Callable[..., Pair]:
    """Random size, balanced crop, flip, photometric distortion; float [3, size, size] and int64 [size, size]."""
    transform: Callable[..., Pair] = v2.Compose(
        [
            RandomResize(long_side, short_side),
            BalancedCrop(crop_size),
            v2.RandomHorizontalFlip(0.5),
            _to_numbers(),
            PhotometricDistortion(),
            v2.Normalize(IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD),
            v2.ToPureTensor(),
            PadTo(crop_size),
        ]
    )
    return transform


def validation_transform(long_side: int = LONG_SIDE, short_side: int = SHORT_SIDE) -> Callable[..., Pair]:
    """The whole image at 2048 x 512, its shape kept; labels as they are, int64."""
    transform: Callable[..., Pair] = v2.Compose(
        [
            Fit(long_side, short_side),
            _to_numbers(),
            v2.Normalize(IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD),
            v2.ToPureTensor(),
        ]
    )
    return transform


def _to_numbers() -> Callable[..., Pair]:
    """Images to [0, 1], labels to what losses take."""
    types = {tv_tensors.Image: torch.float32, tv_tensors.Mask: torch.int64}
    converted: Callable[..., Pair] = v2.ToDtype(types, scale=True)
    return converted


# -- batches -------------------------------------------------------------------------------------------


class TrainingSamples(Dataset[Pair]):
    """What a run sees, by place in it: epochs in random order; order and augmentation depend on seed and place alone.

    Args:
        data: the training images.
        count: images of the whole run.
        seed: of the run.
    """

    def __init__(self, data: ADE20K, count: int, seed: int) -> None:
        epochs = math.ceil(count / len(data))
        self.data, self.seed = data, seed
        self.order = torch.cat([epoch_order(len(data), seed, epoch) for epoch in range(epochs)])[:count]

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, place: int) -> Pair:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(sample_seed(self.seed, place))
            return self.data[int(self.order[place])]


def sample_seed(seed: int, place: int) -> int:
    """Of one place in a run; below 2^32, since torch's generator of the CPU ignores all higher bits."""
    return int(np.random.SeedSequence((seed, place)).generate_state(1)[0])


def training_loader(
    data: ADE20K, recipe: SegmentationRecipe, seed: int, fabric: Fabric, first: int = 0, workers: int = 8
) -> DataLoader[Pair]:
    """Batches of a run, of each the share of this process.

    Args:
        data: the training images, transformed to one size.
        recipe: of batch size and updates.
        seed: of order and augmentation.
        fabric: launched.
        first: update to begin with.
        workers: processes that decode images.

    Raises:
        TenfoldError: devices cannot share a batch.
    """
    size, world_size = recipe.batch_size, fabric.world_size
    if size % world_size:
        raise TenfoldError(f"a batch of {size} cannot be shared by {world_size} devices: change it")
    return DataLoader(
        TrainingSamples(data, recipe.iterations * size, seed),
        batch_size=size // world_size,
        sampler=range(first * size + fabric.global_rank, recipe.iterations * size, world_size),
        num_workers=workers,
        pin_memory=fabric.device.type == "cuda",
        worker_init_fn=seed_worker,
        generator=make_generator(seed),
    )


# -- training and evaluation ---------------------------------------------------------------------------


def train(
    segmenter: Segmenter,
    recipe: SegmentationRecipe,
    train_set: ADE20K,
    test_set: ADE20K,
    seed: int,
    fabric: Fabric,
    run: Run,
    workers: int = 8,
) -> dict[str, float]:
    """Train with AdamW and a polynomial rate; batch norm sees the batch of all GPUs.

    Args:
        segmenter: on the CPU; is changed.
        recipe: of the optimiser.
        train_set: with a transform to one size.
        test_set: with a transform that keeps labels.
        seed: of order, augmentation, dropout and stochastic depth.
        fabric: launched; its processes divide every batch.
        run: entered; goes on from its checkpoint.
        workers: processes that decode images, for each device.

    Returns:
        Metrics of the last network, as :func:`evaluate`; the paper reports it and not the best one.

    Raises:
        TenfoldError: sets or network do not fit, or the loss is no number any more.
    """
    _check_classes(segmenter, train_set)
    _check_classes(segmenter, test_set)
    seed_everything(seed)
    if fabric.device.type == "cuda" and fabric.world_size > 1:
        segmenter = nn.SyncBatchNorm.convert_sync_batchnorm(segmenter)
    segmenter = segmenter.to(fabric.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    plain_optimizer = make_optimizer(segmenter, recipe)
    network, optimizer = fabric.setup(segmenter, plain_optimizer)
    precision, first = fabric.strategy.precision, 0
    state = run.resume()
    if state is not None:
        segmenter.load_state_dict(state["segmenter"])
        plain_optimizer.load_state_dict(state["optimizer"])
        precision.load_state_dict(state["precision"])
        first = state["iteration"]

    metrics: dict[str, float] = {}
    losses = torch.zeros((), device=fabric.device)
    batches = training_loader(train_set, recipe, seed, fabric, first, workers)
    network.train()
    for iteration, (images, labels) in enumerate(batches, start=first):
        lr = polynomial_rate(iteration, recipe.lr, recipe.iterations, recipe.power)
        for group in plain_optimizer.param_groups:
            group["lr"] = lr
        output = network(images.to(fabric.device, non_blocking=True))
        loss = segmentation_loss(output, labels.to(fabric.device, non_blocking=True))
        optimizer.zero_grad()
        fabric.backward(loss)
        optimizer.step()
        losses += loss.detach()

        done = iteration + 1
        is_last, is_judged = done == recipe.iterations, done % recipe.evaluate_every == 0
        if is_last or is_judged:
            metrics = evaluate(segmenter, test_set, fabric, workers)
            run.log(done, **metrics)
        if is_last or done % recipe.log_every == 0:
            mean: Any = fabric.all_reduce(losses, reduce_op="mean")
            value = mean.item() / (iteration % recipe.log_every + 1)
            if not math.isfinite(value):
                raise TenfoldError(
                    f"the loss is no number any more after {done} updates: lower the learning rate"
                )
            run.log(done, loss=value, lr=lr)
            losses.zero_()
            if run.is_checkpoint_due and not is_last:
                stored = {
                    "segmenter": segmenter.state_dict(),
                    "optimizer": plain_optimizer.state_dict(),
                    "precision": precision.state_dict(),
                    "iteration": done,
                }
                run.save_checkpoint(done, stored)
    return metrics


@torch.inference_mode()
def evaluate(segmenter: Segmenter, data: ADE20K, fabric: Fabric, workers: int = 8) -> dict[str, float]:
    """mIoU, mAcc and aAcc in per cent over a whole set; one image at a time, at one scale.

    Logits are enlarged to the size of the labels before the class is chosen.

    Args:
        segmenter: on Fabric's device.
        data: with a transform that keeps labels.
        fabric: launched; its processes divide the images.
        workers: processes that decode images.

    Raises:
        TenfoldError: network and set have other classes, or a file is damaged.
    """
    _check_classes(segmenter, data)
    was_training = segmenter.training
    segmenter.eval()
    loader: DataLoader[Pair] = DataLoader(
        data,
        sampler=range(fabric.global_rank, len(data), fabric.world_size),
        num_workers=workers,
        generator=make_generator(0),
    )
    confusion = MulticlassConfusionMatrix(data.num_classes, ignore_index=IGNORE_INDEX, validate_args=False)
    confusion = confusion.to(fabric.device)
    for images, labels in loader:
        with fabric.autocast():
            logits = segmenter(images.to(fabric.device)).logits
        confusion.update(resize(logits, labels.shape[1:]).argmax(dim=1), labels.to(fabric.device))
    segmenter.train(was_training)
    return segmentation_metrics(confusion.compute())


def segmentation_metrics(confusion: Tensor) -> dict[str, float]:
    """miou, macc and aacc in per cent.

    mIoU is the mean of TP / (TP + FP + FN), mAcc that of TP / (TP + FN), aAcc the share of pixels that are right. A
    class for which one is 0 / 0 is left out of its mean.

    Args:
        confusion: pixels of class i that were taken for class j, [classes, classes].
    """
    counts = confusion.double()
    hits, labelled, predicted = counts.diag(), counts.sum(dim=1), counts.sum(dim=0)
    return {
        "miou": 100 * (hits / (labelled + predicted - hits)).nanmean().item(),
        "macc": 100 * (hits / labelled).nanmean().item(),
        "aacc": 100 * (hits.sum() / labelled.sum()).item(),
    }


def _check_classes(segmenter: Segmenter, data: ADE20K) -> None:
    if segmenter.num_classes != data.num_classes:
        raise TenfoldError(
            f"the network knows {segmenter.num_classes} classes and the set has {data.num_classes}: build it for them"
        )
