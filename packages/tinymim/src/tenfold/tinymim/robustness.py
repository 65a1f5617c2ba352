"""Robustness of ImageNet classifiers: ImageNet-A, ImageNet-R and ImageNet-C.

A and R have 200 of the 1000 classes each: only the logits of those compete. C has the validation images under 15
corruptions of five severities; its mean corruption error (mCE) compares errors with AlexNet's.

Folders, as the sets' archives unpack, below the data root::

    imagenet-a/<wnid>/*.jpg
    imagenet-r/<wnid>/*.jpg
    imagenet-c/<corruption>/<severity>/<wnid>/*.JPEG    or imagenet-c/<group>/<corruption>/...

Sources: Hendrycks et al., Natural Adversarial Examples, CVPR 2021; The Many Faces of Robustness, ICCV 2021; Hendrycks
and Dietterich, Benchmarking Neural Network Robustness to Common Corruptions and Perturbations, ICLR 2019.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from lightning_fabric import Fabric
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, ImageNetInfo
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.datasets.folder import IMG_EXTENSIONS, default_loader, make_dataset
from torchvision.transforms import CenterCrop, Compose, InterpolationMode, PILToTensor, Resize

from tenfold.shared.logging import TenfoldError, get_logger
from tenfold.tinymim.evaluation import judging, logits_of, summed
from tenfold.tinymim.vit import VisionTransformer

logger = get_logger("tinymim")
SetName = Literal["a", "r", "c"]
SEVERITIES = 5
CLASSES = 1000
CORRUPTED_SIZE = 224
"""Side of ImageNet-C's images in pixels."""
ALEXNET_ERRORS = {
    "gaussian_noise": 0.886428,
    "shot_noise": 0.894468,
    "impulse_noise": 0.922640,
    "defocus_blur": 0.819880,
    "glass_blur": 0.826268,
    "motion_blur": 0.785948,
    "zoom_blur": 0.798360,
    "snow": 0.866816,
    "frost": 0.826572,
    "fog": 0.819324,
    "brightness": 0.564592,
    "contrast": 0.853204,
    "elastic_transform": 0.646056,
    "pixelate": 0.717840,
    "jpeg_compression": 0.606500,
}
"""Mean top-1 error of AlexNet over the five severities of each corruption, from the benchmark's own table."""
GROUPS = ("noise", "blur", "weather", "digital")
"""Folders that the parts of ImageNet-C's archive may be unpacked into."""
SOURCES: dict[SetName, str] = {
    "a": "https://github.com/hendrycks/natural-adv-examples",
    "r": "https://github.com/hendrycks/imagenet-r",
    "c": "https://zenodo.org/records/2235448",
}


# -- mean corruption error -------------------------------------------------------------------------------


def mean_corruption_error(
    errors: Mapping[str, Sequence[float]], alexnet_errors: Mapping[str, float] = ALEXNET_ERRORS
) -> tuple[float, dict[str, float]]:
    """mCE: errors by corruption, divided by AlexNet's, on average.

    CE of a corruption is the mean top-1 error over severities 1 to 5, by AlexNet's mean error. Computed in float64.

    Args:
        errors: of each corruption, five top-1 errors as fractions, severity 1 first.
        alexnet_errors: of each corruption, AlexNet's mean error.

    Returns:
        The mCE, and the CE of each corruption in the order of ``errors``, in per cent.

    Raises:
        TenfoldError: a corruption or severity is missing or unknown, or an error is no fraction.
    """
    missing = [name for name in alexnet_errors if name not in errors]
    unknown = [name for name in errors if name not in alexnet_errors]
    if missing or unknown:
        what = f"{missing[0]} is missing" if missing else f"{unknown[0]} is none of them"
        raise TenfoldError(f"the mean corruption error needs {len(alexnet_errors)} corruptions: {what}")
    for name, values in errors.items():
        if len(values) != SEVERITIES:
            raise TenfoldError(f"{name} has errors of {len(values)} severities: give all {SEVERITIES}")
        if not all(0 <= value <= 1 for value in values):
            raise TenfoldError(f"errors of {name} are fractions from 0 to 1, not {list(values)}")
    found = np.array(list(errors.values()), dtype=np.float64).mean(axis=1)
    relative = 100 * found / np.array([alexnet_errors[name] for name in errors], dtype=np.float64)
    return float(relative.mean()), dict(zip(errors, relative.tolist(), strict=True))


# -- files -----------------------------------------------------------------------------------------------


class ImageFile(NamedTuple):
    """One image of a set."""

    path: str
    label: int
    """Of the 1000 classes."""
    group: int
    """Images are counted by group: severity - 1 of ImageNet-C, 0 elsewhere."""


class ImageFiles(Dataset[tuple[Tensor, int, int]]):
    """Images as bytes [3, H, W] with label and group; normalised later, on the device."""

    def __init__(self, images: Sequence[ImageFile], transform: Compose) -> None:
        self.images, self.transform = images, transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int, int]:
        path, label, group = self.images[index]
        return self.transform(default_loader(path)), label, group


def imagenet_classes() -> dict[str, int]:
    """Index of each of the 1000 classes by its wnid."""
    return {wnid: index for index, wnid in enumerate(ImageNetInfo().label_names())}


def classes_of(name: Literal["a", "r"]) -> dict[str, int]:
    """Index among the 1000 of each of a set's 200 classes by its wnid, from timm's list."""
    listed = (files("timm.data") / "_info" / f"imagenet_{name}_synsets.txt").read_text().split()
    indices = imagenet_classes()
    return {wnid: indices[wnid] for wnid in listed}


def evaluation_transform(size: int) -> Compose:
    """Resize the short side by 256 / 224, bicubic, and take the centre; above 224 pixels resize to the size itself."""
    short = size if size > 224 else size * 256 // 224
    return Compose([Resize(short, InterpolationMode.BICUBIC), CenterCrop(size), PILToTensor()])


def corrupted_transform(size: int) -> Compose:
    """The centre of 224 pixels and no resize, as ImageNet-C's images have that size; resized for another network."""
    resize = [] if size == CORRUPTED_SIZE else [Resize(size, InterpolationMode.BICUBIC)]
    return Compose([CenterCrop(CORRUPTED_SIZE), *resize, PILToTensor()])


def image_files(folder: Path, classes: Mapping[str, int], group: int = 0) -> list[ImageFile]:
    """Images of a folder with a folder for each class.

    Raises:
        TenfoldError: a class's folder has no images.
    """
    present = {wnid: classes[wnid] for wnid in class_folders(folder, classes)}
    try:
        found = make_dataset(str(folder), present, IMG_EXTENSIONS)
    except FileNotFoundError as error:
        raise TenfoldError(f"a class's folder in {folder} has no images: unpack the archive again") from error
    return [ImageFile(path, label, group) for path, label in found]


def class_folders(folder: Path, classes: Mapping[str, int]) -> list[str]:
    """Wnids of the folders in a folder.

    Raises:
        TenfoldError: one of them is none of the classes, or there are none.
    """
    found = sorted(entry.name for entry in folder.iterdir() if entry.is_dir())
    unknown = [name for name in found if name not in classes]
    if unknown:
        raise TenfoldError(f"{folder / unknown[0]} is none of the set's classes: remove it")
    if not found:
        raise TenfoldError(f"{folder} has no folders of classes: unpack the archive again")
    return found


def _missing(name: SetName, folder: Path) -> TenfoldError:
    return TenfoldError(
        f"there is no folder {folder}: get ImageNet-{name.upper()} from {SOURCES[name]} and unpack it into "
        f"imagenet-{name}/ below --data-root; the profile quick needs no files"
    )


def check_restricted(name: Literal["a", "r"], folder: Path) -> None:
    """Whether ImageNet-A or -R is there with all of its 200 classes.

    Raises:
        TenfoldError: it is not; names what is missing.
    """
    if not folder.is_dir():
        raise _missing(name, folder)
    classes = classes_of(name)
    present = class_folders(folder, classes)
    if len(present) < len(classes):
        absent = min(classes.keys() - set(present))
        raise TenfoldError(
            f"{folder} has {len(present)} of {len(classes)} classes, {absent} is missing: unpack the archive again"
        )


def corruption_folders(folder: Path) -> dict[str, list[Path]]:
    """Folders of ImageNet-C's five severities by corruption, bare or below the archive's groups.

    Raises:
        TenfoldError: a corruption or severity is missing, or has not the same classes as the others.
    """
    if not folder.is_dir():
        raise _missing("c", folder)
    found: dict[str, list[Path]] = {}
    classes, first = imagenet_classes(), None
    for corruption in ALEXNET_ERRORS:
        places = (folder / corruption, *(folder / group / corruption for group in GROUPS))
        place = next((place for place in places if place.is_dir()), None)
        if place is None:
            raise _missing("c", folder / corruption)
        found[corruption] = [place / str(severity) for severity in range(1, SEVERITIES + 1)]
        for severity in found[corruption]:
            if not severity.is_dir():
                raise _missing("c", severity)
            present = class_folders(severity, classes)
            first = first or present
            if present != first:
                raise TenfoldError(
                    f"{severity} has not the same classes as the others: unpack the archive again"
                )
    if first is not None and len(first) < CLASSES:
        logger.warning(
            "ImageNet-C has %d of %d classes here; its mCE is no published one", len(first), CLASSES
        )
    return found


def corrupted_images(severities: Sequence[Path]) -> list[ImageFile]:
    """Images of a corruption, by severity.

    Raises:
        TenfoldError: its severities have not the same images.
    """
    classes = imagenet_classes()
    found = [image_files(folder, classes, group) for group, folder in enumerate(severities)]
    for folder, images in zip(severities, found, strict=True):
        if len(images) != len(found[0]):
            raise TenfoldError(
                f"{folder} has {len(images)} images and {severities[0]} has {len(found[0])}: unpack the archive again"
            )
    return [image for images in found for image in images]


# -- accuracy --------------------------------------------------------------------------------------------


def accuracy_by_group(
    network: VisionTransformer,
    images: ImageFiles,
    fabric: Fabric,
    workers: int = 8,
    batch_size: int = 256,
    classes: Collection[int] | None = None,
) -> list[float]:
    """Top-1 of each group of images, as fractions; processes divide the images.

    Args:
        network: on Fabric's device.
        images: of groups 0, 1, ...
        fabric: launched.
        workers: processes that decode images, for each device.
        batch_size: of one device.
        classes: whose logits compete; by default all.
    """
    groups = max(image.group for image in images.images) + 1
    device, share = fabric.device, range(fabric.global_rank, len(images), fabric.world_size)
    loader: Any = DataLoader(
        images, batch_size, sampler=share, num_workers=workers, pin_memory=device.type == "cuda"
    )
    competing = torch.arange(CLASSES) if classes is None else torch.tensor(sorted(classes))
    competing = competing.to(device)
    mean, std = (
        torch.tensor(values, device=device)[:, None, None]
        for values in (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)
    )
    counts = torch.zeros(groups, 2, dtype=torch.long, device=device)  # right, all
    with judging(network):
        for pixels, *indices in loader:
            labels, group = (values.to(device, non_blocking=True) for values in indices)
            pictures = (pixels.to(device, non_blocking=True).float() / 255 - mean) / std
            logits = logits_of(network, pictures, fabric)[:, competing]
            right = competing[logits.argmax(dim=1)] == labels
            counts.index_add_(0, group, torch.stack((right, torch.ones_like(right)), dim=1).long())
    return [right / total for right, total in summed(counts, fabric).tolist()]


def evaluate_robustness(
    network: VisionTransformer,
    data_root: Path,
    fabric: Fabric,
    workers: int = 8,
    sets: Sequence[SetName] = ("a", "r", "c"),
    batch_size: int = 256,
) -> dict[str, float]:
    """Accuracy on ImageNet-A and -R, and corruption errors on ImageNet-C.

    Every process calls this; they divide the images. All sets are looked for before the first is judged.

    Args:
        network: a classifier of the 1000 classes on Fabric's device; it is left in the mode that it was in.
        data_root: folder with ``imagenet-a``, ``imagenet-r``, ``imagenet-c``.
        fabric: launched.
        workers: processes that decode images, for each device.
        sets: which.
        batch_size: of one device.

    Returns:
        In per cent, the same in every process: ``imagenet_a_top1``, ``imagenet_r_top1``, ``imagenet_c_mce``, and
        ``imagenet_c_ce_<corruption>`` of each of the 15.

    Raises:
        TenfoldError: a set or a part of it is missing, or the network has other classes.
    """
    if network.config.num_classes != CLASSES:
        raise TenfoldError(
            f"robustness is that of a classifier of ImageNet's {CLASSES} classes, not of {network.config.num_classes}"
        )
    size, folders = network.config.img_size, {name: data_root / f"imagenet-{name}" for name in sets}
    corruptions: dict[str, list[Path]] = {}
    for name, folder in folders.items():
        if name == "c":
            corruptions = corruption_folders(folder)
        else:
            check_restricted(name, folder)
    metrics: dict[str, float] = {}
    for name, folder in folders.items():
        if name == "c":
            continue
        classes = classes_of(name)
        images = ImageFiles(image_files(folder, classes), evaluation_transform(size))
        (top1,) = accuracy_by_group(network, images, fabric, workers, batch_size, classes.values())
        metrics[f"imagenet_{name}_top1"] = 100 * top1
    errors = {}
    for corruption, severities in corruptions.items():
        images = ImageFiles(corrupted_images(severities), corrupted_transform(size))
        top1s = accuracy_by_group(network, images, fabric, workers, batch_size)
        errors[corruption] = [1 - top1 for top1 in top1s]
    if errors:
        metrics["imagenet_c_mce"], relative = mean_corruption_error(errors)
        metrics |= {f"imagenet_c_ce_{corruption}": value for corruption, value in relative.items()}
    return metrics
