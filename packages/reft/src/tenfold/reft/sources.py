"""Where a profile's images come from: composed digits, COCO or LVIS, with their split and few-shot sets."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from pycocotools.coco import COCO

from tenfold.reft.annotations import load_annotations
from tenfold.reft.class_split import ClassSplit, coco_split, lvis_split, split_from_lists
from tenfold.reft.composed_digits import BASE_IDS, NOVEL_IDS, ComposeConfig, ComposedDigits, compose
from tenfold.reft.config import SHOTS, DataConfig
from tenfold.reft.evaluation import few_shot_metrics, lvis_metrics
from tenfold.reft.evaluation_images import EvaluationImages
from tenfold.reft.few_shot_sampling import (
    few_shot_annotations,
    manifest,
    read_shot_lists,
    sample_at_most,
    sample_k_shots,
)
from tenfold.reft.instance_images import InstanceImages
from tenfold.shared.logging import TenfoldError


@dataclass(frozen=True)
class Places:
    """Where the files of a data set of COCO's form are."""

    train: Path
    """Annotations that train."""
    test: Path
    """Annotations that judge."""
    train_images: Path
    """Folder that the file names of the first are below."""
    test_images: Path
    """Folder that the file names of the second are below."""


def coco_places(root: Path) -> Places:
    """COCO 2017 as it is unpacked: ``coco/annotations``, ``coco/train2017`` and ``coco/val2017``."""
    folder = root / "coco"
    annotations = folder / "annotations"
    return Places(
        annotations / "instances_train2017.json",
        annotations / "instances_val2017.json",
        folder / "train2017",
        folder / "val2017",
    )


@dataclass(frozen=True)
class OwnData:
    """Data of your own in COCO's form; use it with --data.dataset own."""

    train: Path | None = None
    """Annotations that train."""
    train_images: Path | None = None
    """Folder of their images."""
    test: Path | None = None
    """Annotations that judge."""
    test_images: Path | None = None
    """Folder of their images."""
    novel: tuple[int, ...] = ()
    """Numbers of the novel categories; all others are base classes."""

    @property
    def places(self) -> Places:
        """Files of the data.

        Raises:
            TenfoldError: not all are given.
        """
        if not (self.train and self.train_images and self.test and self.test_images and self.novel):
            raise TenfoldError(
                "data of your own needs --own.train, --own.train-images, --own.test, --own.test-images and --own.novel"
            )
        return Places(self.train, self.test, self.train_images, self.test_images)

    @property
    def digest(self) -> str:
        """What identifies the annotations."""
        hashed = hashlib.sha256()
        for path in (self.places.train, self.places.test):
            hashed.update(path.read_bytes() if path.is_file() else b"")
        return hashed.hexdigest()


def lvis_places(root: Path) -> Places:
    """LVIS v1 (``lvis/lvis_v1_train.json`` and ``_val``) on the images of COCO."""
    folder = root / "lvis"
    return Places(folder / "lvis_v1_train.json", folder / "lvis_v1_val.json", root / "coco", root / "coco")


class Source:
    """Images, split and few-shot sets of a data set. Files are read when they are first needed.

    Args:
        data: of the profile.
        root: folder with data sets.
        composed: folder for composed digits.
        compose_config: what to compose.
        shot_lists: folder with the published few-shot lists; by default shots are sampled by the published rules.
        own: data of the user's.
    """

    def __init__(
        self,
        data: DataConfig,
        root: Path,
        composed: Path,
        compose_config: ComposeConfig | None = None,
        shot_lists: Path | None = None,
        own: OwnData | None = None,
    ) -> None:
        self.data, self.root, self.composed = data, root, composed
        self.compose_config, self.shot_lists, self.own = compose_config, shot_lists, own or OwnData()

    @property
    def in_memory(self) -> bool:
        """Whether decoded images are kept."""
        return self.data.dataset == "digits"

    @cached_property
    def digits(self) -> ComposedDigits:
        """The composed digits."""
        config = self.compose_config or ComposeConfig()
        return compose(config, self.composed / f"digits-{config.fingerprint}")

    @cached_property
    def places(self) -> Places:
        """Files of the data set."""
        if self.data.dataset == "digits":
            digits = self.digits
            return Places(digits.train, digits.test, digits.images, digits.images)
        if self.data.dataset == "own":
            return self.own.places
        return coco_places(self.root) if self.data.dataset == "coco" else lvis_places(self.root)

    def check(self) -> None:
        """Raise before anything is computed.

        Raises:
            TenfoldError: the data set is not there.
        """
        for path in (self.places.train, self.places.test, self.places.train_images, self.places.test_images):
            if not path.exists():
                raise TenfoldError(f"there is no {path}; {self._advice}")

    @property
    def _advice(self) -> str:
        """What to do about a missing file."""
        if self.data.dataset == "own":
            return "give the paths of existing files and folders"
        return (
            f"unpack {self.data.dataset.upper()} below {self.root} or give its folder with --data-root; the profile "
            "quick needs no data"
        )

    @cached_property
    def train(self) -> COCO:
        """Annotations that train."""
        return load_annotations(self.places.train)

    @cached_property
    def test(self) -> COCO:
        """Annotations that judge."""
        return load_annotations(self.places.test)

    @cached_property
    def split(self) -> ClassSplit:
        """Base and novel classes."""
        if self.data.dataset == "digits":
            return split_from_lists(BASE_IDS, NOVEL_IDS, self.test)
        if self.data.dataset == "own":
            base = [number for number in self.train.cats if number not in self.own.novel]
            return split_from_lists(base, self.own.novel, self.train)
        return coco_split(self.train) if self.data.dataset == "coco" else lvis_split(self.train)

    def names(self, category_ids: Sequence[int]) -> list[str]:
        """Of categories."""
        return [self.split.names[number] for number in category_ids]

    @cached_property
    def base_instances(self) -> InstanceImages:
        """Images with base classes, all others background."""
        base = self.split.categories("base")
        return InstanceImages(self.train, self.places.train_images, base, in_memory=self.in_memory)

    @cached_property
    def evaluation_images(self) -> EvaluationImages:
        """Images that judge."""
        return EvaluationImages(self.test, self.places.test_images, self.data, in_memory=self.in_memory)

    def few_shot(self, seed: int, shots: int, category_ids: Sequence[int]) -> tuple[COCO, dict[str, Any]]:
        """Annotations of few shots of some categories, and a list of them for the record.

        Args:
            seed: of the shots.
            shots: of each category.
            category_ids: of the setting.

        Raises:
            TenfoldError: a category has not enough.
        """
        if self.data.dataset == "digits":
            found = load_annotations(self.digits.few_shot(seed, shots))
            annotations = found.dataset["annotations"]
            sampled = {
                number: {shots: [one["id"] for one in annotations if one["category_id"] == number]}
                for number in category_ids
            }
            return few_shot_annotations(found, sampled, shots, category_ids), manifest(
                found, sampled, shots, category_ids, seed
            )
        if self.shot_lists is not None:
            names = {number: self.split.names[number] for number in category_ids}
            sampled = read_shot_lists(self.shot_lists, seed, shots, names)
        elif self.data.dataset == "lvis":
            sampled = sample_at_most(self.train.dataset["annotations"], sorted(category_ids), shots, seed)
        elif self.data.dataset == "own":
            # Each class has its own random numbers: whether others have enough shots does not matter.
            ladder = (*(number for number in SHOTS if number < shots), shots)
            annotations = self.train.dataset["annotations"]
            sampled = {}
            for number in category_ids:
                own_seed = seed * 1_000_003 + number
                sampled |= sample_k_shots(annotations, (number,), ladder, own_seed, self.split.names)
        else:
            # All classes are sampled, in ascending order, whatever the setting: they share the random numbers.
            everything = sorted(self.split.base + self.split.novel)
            if shots not in SHOTS:
                raise TenfoldError(
                    f"--shots is one of {', '.join(map(str, SHOTS))} in the published splits, not {shots}"
                )
            sampled = sample_k_shots(
                self.train.dataset["annotations"], everything, SHOTS, seed, self.split.names
            )
        return few_shot_annotations(self.train, sampled, shots, category_ids), manifest(
            self.train, sampled, shots, category_ids, seed
        )

    def metrics(
        self, detections: Sequence[dict[str, Any]], novel_ids: Sequence[int], base_ids: Sequence[int]
    ) -> dict[str, float]:
        """Average precision of detections in the test images, in per cent."""
        if self.data.dataset == "lvis":
            return lvis_metrics(self.places.test, detections, novel_ids, base_ids)
        return few_shot_metrics(self.test, detections, novel_ids, base_ids)
