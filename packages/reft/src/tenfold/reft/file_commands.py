"""Commands about files: segment images by example, compose digits, sample shots, convert released weights."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import tyro
from torch import Tensor

from tenfold.reft.annotations import load_annotations, read_image
from tenfold.reft.checkpoints import check_no_leak, released_classes
from tenfold.reft.composed_digits import ComposeConfig, compose
from tenfold.reft.config import SHOTS, BackboneName, LossConfig, TrainConfig
from tenfold.reft.few_shot_sampling import few_shot_annotations, manifest, sample_k_shots
from tenfold.reft.figures import draw_masks
from tenfold.reft.network_files import StoredNetwork, load_network, load_released
from tenfold.reft.official_files import read_released
from tenfold.reft.segmenting import Segmenter, as_coco, learn_classes, read_support_folder
from tenfold.reft.suite_runs import PAPER
from tenfold.shared.accelerator import AcceleratorConfig, launch_fabric
from tenfold.shared.logging import TenfoldError, get_logger
from tenfold.shared.runs import Run, RunKey, replaced, save_atomically, write_json

logger = get_logger("reft")

Quiet = Annotated[bool, tyro.conf.arg(aliases=["-q"])]


@dataclass(frozen=True)
class ReftAccelerator(AcceleratorConfig):
    """Where and how to compute."""

    compile: bool = False
    """Compile the backbone with torch.compile, and nothing else."""


Accelerator = Annotated[ReftAccelerator, tyro.conf.arg(name="")]  # --device, not --accelerator.device


@dataclass(frozen=True)
class Segment:
    """Show a network a few masked examples of new classes, and get their masks in images."""

    image: tuple[Path, ...]
    """Images to segment."""
    checkpoint: Path
    """model.pt of a base network, or of an earlier call's --save."""
    support: Path | None = None
    """Folder of examples: instances.json beside images, or a folder per class with NAME.jpg and NAME.mask.png each;
    by default the classes are those of the checkpoint."""
    steps: int = 100
    """Updates of fine-tuning on the examples; 0 takes a cosine head's imprinted rows as they are."""
    lr: float = 5e-4
    """Peak of the rate."""
    num_points: int = 4096
    """Points at which masks are compared."""
    seed: int = 0
    """Seed of new rows and fine-tuning."""
    threshold: float = 0.5
    """Least score of what is written and drawn."""
    output: Path = Path("segmented")
    """Folder for a picture of each image, and detections.json."""
    save: Path | None = None
    """File for the network with its new classes and their support cache."""
    accelerator: Accelerator = field(default_factory=ReftAccelerator)
    quiet: Quiet = False
    """Only warnings and errors."""

    def run(self) -> int:
        if self.steps < 0 or not 0 <= self.threshold <= 1:
            raise TenfoldError("--steps is not negative, and --threshold is from 0 to 1")
        # What is wrong is said before anything is learned.
        images = {path: read_image(path, upright=True) for path in self.image}
        fabric = launch_fabric(self.accelerator)
        if fabric.world_size > 1:
            raise TenfoldError("images are segmented by one process; leave out --devices and torchrun")
        stored = load_network(self.checkpoint)
        stored.network.to(fabric.device)
        if self.support is None:
            if stored.references is None and not stored.network.references.is_off:
                raise TenfoldError(f"{self.checkpoint} keeps no support cache; give examples with --support")
            kept = None if stored.references is None else stored.references.to(fabric.device)
            segmenter = Segmenter(stored.network, kept, stored.names, stored.data)
        else:
            segmenter = self._learn(stored)
        self.output.mkdir(parents=True, exist_ok=True)
        found = self._segment(segmenter, images)
        sizes = [(path.name, (image.shape[1], image.shape[2])) for path, image in images.items()]
        write_json(self.output / "detections.json", as_coco(found, sizes, segmenter.names))
        if self.save is not None:
            self.save.parent.mkdir(parents=True, exist_ok=True)
            numbers = tuple(range(1, len(segmenter.names) + 1))
            kept_network = StoredNetwork(
                segmenter.network, segmenter.references, numbers, segmenter.names, segmenter.data, None
            )
            save_atomically(self.save, kept_network.content())
            logger.info("network in %s", self.save)
        return 0

    def _segment(self, segmenter: Segmenter, images: dict[Path, Tensor]) -> list[list[dict[str, Any]]]:
        names = dict(enumerate(segmenter.names, start=1))
        results = []
        for number, (path, image) in enumerate(images.items(), start=1):
            everything = segmenter.segment(image, launch_fabric(self.accelerator))
            found = [one for one in everything if one["score"] >= self.threshold]
            results.append(found)
            with replaced(self.output / f"{path.stem}-{number}.png") as temporary:
                draw_masks(temporary, image.permute(1, 2, 0).numpy(), found, names, self.threshold)
            listed = ", ".join(f"{names[one['category_id']]} {one['score']:.2f}" for one in found)
            best = max((one["score"] for one in everything), default=0.0)
            logger.info(
                "%s: %s", path, listed or f"nothing above {self.threshold} (the best score is {best:.2f})"
            )
        return results

    def _learn(self, stored: StoredNetwork) -> Segmenter:
        assert self.support is not None
        annotations, folder = read_support_folder(self.support)
        recipe = None
        if self.steps:
            recipe = TrainConfig(
                steps=self.steps, batch_size=8, lr=self.lr, clip=1.0, schedule="one-cycle", freeze="backbone"
            )
        with tempfile.TemporaryDirectory() as temporary:
            key = RunKey(PAPER, "segment", "segment", self.seed, "support folder", "FSIS", "RefT")
            with Run(Path(temporary), key, {"lr": self.lr, "steps": self.steps}, "update") as run:
                return learn_classes(
                    stored.network,
                    stored.data,
                    LossConfig(num_points=self.num_points),
                    annotations,
                    folder,
                    recipe,
                    self.seed,
                    launch_fabric(self.accelerator),
                    run,
                )


@dataclass(frozen=True)
class Compose:
    """Write the composed digits in COCO's form."""

    output: Path
    """Folder to make."""
    config: Annotated[ComposeConfig, tyro.conf.arg(name="")] = field(default_factory=ComposeConfig)
    quiet: Quiet = False
    """Only warnings and errors."""

    def run(self) -> int:
        digits = compose(self.config, self.output)
        logger.info("annotations in %s and %s, images in %s", digits.train, digits.test, digits.images)
        return 0


@dataclass(frozen=True)
class Sample:
    """Draw K shots of each class by the rules of the published splits, and write them as annotations."""

    annotations: Path
    """File of COCO's form."""
    output: Path
    """File to write; which images and annotations were drawn is written beside it."""
    shots: int = 10
    """K, one of --ladder."""
    seed: int = 1
    """Seed of Python's generator."""
    ladder: tuple[int, ...] = SHOTS
    """Values of K that are drawn one after another; classes share the random numbers, so another ladder, like other
    --classes, gives other shots."""
    classes: tuple[int, ...] = ()
    """Numbers of the categories that are drawn; by default all, in ascending order."""
    only: tuple[int, ...] = ()
    """Numbers of the categories that are written; by default all that are drawn."""
    quiet: Quiet = False
    """Only warnings and errors."""

    def run(self) -> int:
        coco = load_annotations(self.annotations)
        classes = self.classes or tuple(sorted(coco.cats))
        only = self.only or classes
        if unknown := [number for number in classes if number not in coco.cats]:
            raise TenfoldError(
                f"{self.annotations} has no category {unknown[0]}; its categories are {sorted(coco.cats)}"
            )
        if unknown := [number for number in only if number not in classes]:
            raise TenfoldError(f"category {unknown[0]} of --only is not drawn; add it to --classes")
        if self.shots not in self.ladder:
            raise TenfoldError(f"--shots {self.shots} is not drawn; add it to --ladder {self.ladder}")
        names = {number: category["name"] for number, category in coco.cats.items()}
        sampled = sample_k_shots(coco.dataset["annotations"], classes, self.ladder, self.seed, names)
        self.output.parent.mkdir(parents=True, exist_ok=True)
        write_json(self.output, few_shot_annotations(coco, sampled, self.shots, only).dataset)
        beside = self.output.with_suffix(".manifest.json")
        write_json(beside, manifest(coco, sampled, self.shots, only, self.seed))
        logger.info("%d shots of %d classes in %s", self.shots, len(only), self.output)
        return 0


@dataclass(frozen=True)
class Convert:
    """Write released Mask2Former weights as a network of this package, without references."""

    released: Path
    """File of Mask2Former's authors."""
    output: Path
    """File to write."""
    backbone: BackboneName = "resnet-50"
    """Of the file."""
    allow_leak: bool = False
    """Take weights that know all 80 classes of COCO: they have seen every novel class with full supervision."""
    quiet: Quiet = False
    """Only warnings and errors."""

    def run(self) -> int:
        check_no_leak(released_classes(read_released(self.released)), self.allow_leak)
        stored = load_released(self.released, self.backbone)
        self.output.parent.mkdir(parents=True, exist_ok=True)
        save_atomically(self.output, stored.content())
        logger.info("network of %d classes in %s", stored.network.num_classes, self.output)
        return 0
