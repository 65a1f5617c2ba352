"""Base and novel classes of a few-shot set, and the one order in which networks and results number them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

from tenfold.shared.logging import TenfoldError

Which = Literal["base", "fsis", "gfsis", "ifsis"]

COCO_NOVEL = (1, 2, 3, 4, 5, 6, 7, 9, 16, 17, 18, 19, 20, 21, 44, 62, 63, 64, 67, 72)
"""COCO's numbers of the 20 classes that PASCAL VOC has too; the other 60 are base."""


@dataclass(frozen=True)
class ClassSplit:
    """Which categories are base and which are novel, by their numbers in the annotations.

    Raises:
        TenfoldError: a category is in both lists or twice in one, there is none, or one has no name.
    """

    base: tuple[int, ...]
    """Classes with many instances."""
    novel: tuple[int, ...]
    """Classes with a few shots."""
    names: dict[int, str]
    """Of all of them."""

    def __post_init__(self) -> None:
        both = sorted(set(self.base) & set(self.novel))
        if both:
            raise TenfoldError(
                f"categories {_listed(both)} are both base and novel; put each in one of the lists"
            )
        for kind, numbers in (("base", self.base), ("novel", self.novel)):
            repeated = sorted({number for number in numbers if numbers.count(number) > 1})
            if repeated:
                raise TenfoldError(
                    f"categories {_listed(repeated)} are twice among the {kind} ones; list them once"
                )
        if not self.base and not self.novel:
            raise TenfoldError("a split has base or novel categories; give at least one")
        nameless = sorted(set(self.base + self.novel) - set(self.names))
        if nameless:
            raise TenfoldError(f"categories {_listed(nameless)} have no name; list them among the categories")

    def categories(self, which: Which) -> tuple[int, ...]:
        """Numbers in the annotations, in the order of the labels 0, 1, ... of a network.

        Base classes keep their labels when novel ones are added.

        Args:
            which: base training (base classes), FSIS (novel classes), gFSIS or iFSIS (base, then novel classes);
                base and novel ones ascend.
        """
        base, novel = tuple(sorted(self.base)), tuple(sorted(self.novel))
        if which == "base":
            return base
        return novel if which == "fsis" else base + novel


def split_from_lists(base: Iterable[int], novel: Iterable[int], annotations: Any) -> ClassSplit:
    """A split by given numbers.

    Args:
        base: categories with many instances.
        novel: categories with a few shots.
        annotations: ``COCO`` that has their names.

    Raises:
        TenfoldError: as :class:`ClassSplit`; also for a category that the annotations lack.
    """
    base, novel = tuple(base), tuple(novel)
    unknown = sorted(set(base + novel) - set(annotations.cats))
    if unknown:
        raise TenfoldError(
            f"the annotations have no categories {_listed(unknown)}; give numbers of those they list"
        )
    return ClassSplit(base, novel, {number: str(annotations.cats[number]["name"]) for number in base + novel})


def coco_split(annotations: Any) -> ClassSplit:
    """The usual split of COCO: :data:`COCO_NOVEL`, and all other categories as base.

    Args:
        annotations: ``COCO``.

    Raises:
        TenfoldError: the annotations lack novel categories.
    """
    missing = sorted(set(COCO_NOVEL) - set(annotations.cats))
    if missing:
        raise TenfoldError(
            f"the annotations lack COCO's categories {_listed(missing)}, which are novel; give annotations "
            "that list all 80 categories"
        )
    return split_from_lists(sorted(set(annotations.cats) - set(COCO_NOVEL)), COCO_NOVEL, annotations)


def lvis_split(annotations: Any) -> ClassSplit:
    """The usual split of LVIS: rare categories are novel, common and frequent ones base.

    Args:
        annotations: ``COCO`` whose categories have a ``frequency``: "r", "c" or "f".

    Raises:
        TenfoldError: a category has no such frequency.
    """
    base: list[int] = []
    novel: list[int] = []
    for number, category in sorted(annotations.cats.items()):
        frequency = category.get("frequency")
        if frequency not in ("r", "c", "f"):
            raise TenfoldError(
                f"category {number} has no frequency r, c or f; give annotations of LVIS, or lists of base and "
                "novel categories"
            )
        (novel if frequency == "r" else base).append(number)
    return split_from_lists(base, novel, annotations)


def _listed(numbers: Iterable[int]) -> str:
    return ", ".join(str(number) for number in numbers)
