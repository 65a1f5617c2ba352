"""Image sets with opinion scores: their tables, and their decoded images."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import pandas as pd
import torch
from numpy.typing import ArrayLike, NDArray
from scipy.io import loadmat
from scipy.io.matlab import MatReadError
from torch import Tensor

from tenfold.pmt_iqa.degradations import DistortedPictures, bundled_photographs, distort, folder_photographs
from tenfold.pmt_iqa.levels import LevelRule, check_scores_differ, equal_width_levels, quality_level
from tenfold.pmt_iqa.pixels import PixelStore, decode
from tenfold.shared.logging import TenfoldError


@dataclass(frozen=True)
class ScoreScale:
    """What the labels of a data set mean."""

    low: float
    """An end of the scale."""
    high: float
    """The other end."""
    higher_is_better: bool
    """MOS; a DMOS is better when it is lower."""

    def percent(self, score: ArrayLike, clip: bool = True) -> NDArray[np.float64]:
        """A score as 0 (worst) to 100 (best); without ``clip`` also beyond."""
        share = (np.asarray(score, dtype=np.float64) - self.low) / (self.high - self.low)
        found = 100 * (share if self.higher_is_better else 1 - share)
        return np.asarray(np.clip(found, 0, 100) if clip else found)


@dataclass(frozen=True)
class ScoreTable:
    """Files, labels and groups of a data set, before anything is decoded."""

    name: str
    paths: tuple[Path, ...]
    scores: NDArray[np.float32]
    groups: tuple[str, ...]
    """What a split keeps together: the reference image, or the image itself."""
    rule: LevelRule
    scale: ScoreScale
    resize: tuple[int, int] | None = None
    """Height and width that all images get first."""


@dataclass(frozen=True)
class ImageSet:
    """Decoded images with their labels."""

    name: str
    names: tuple[str, ...]
    pixels: PixelStore
    scores: Tensor
    """float32 [n]."""
    groups: tuple[str, ...]
    rule: LevelRule
    scale: ScoreScale
    resize: tuple[int, int] | None = None
    """Height and width that all images were given."""

    def subset(self, chosen: Sequence[int]) -> ImageSet:
        """Some of the images, by index."""
        return replace(
            self,
            names=tuple(self.names[index] for index in chosen),
            pixels=PixelStore.of([self.pixels.picture(index) for index in chosen]),
            scores=self.scores[list(chosen)],
            groups=tuple(self.groups[index] for index in chosen),
        )

    def digest(self) -> str:
        """SHA-256 of everything that a training depends on: pixels, labels, groups and scale."""
        content = hashlib.sha256(self.pixels.pixels.numpy().tobytes())
        labels = [
            self.names,
            self.pixels.sizes.tolist(),
            self.scores.tolist(),
            self.groups,
            self.rule,
            str(self.scale),
        ]
        content.update(json.dumps(labels).encode())
        return content.hexdigest()

    def levels(self, number_class: int, clamp: bool = True) -> Tensor:
        """Quality level of every image, int64 [n].

        Raises:
            TenfoldError: all scores are equal, or unclamped levels exceed the number of classes.
        """
        scores = self.scores.numpy()
        check_scores_differ(scores)
        if self.rule == "equal-width":
            levels = equal_width_levels(scores, self.scale.low, self.scale.high, number_class)
        else:
            levels = np.asarray(quality_level(self.rule, scores, clamp, number_class))
        if levels.min() < 0:
            raise TenfoldError(f"{self.name} has labels below the lowest level; check its labels")
        if levels.max() >= number_class:
            raise TenfoldError(
                f"{self.name} has images of level {levels.max()}, and {number_class} classes end at "
                f"{number_class - 1}; leave out --no-clamp-levels or raise --model.levels"
            )
        return torch.from_numpy(levels)


# -- published data sets -------------------------------------------------------------------------------


def live_table(root: Path) -> ScoreTable:
    """LIVE release 2: 779 distorted images of 29 references; the originals are left out."""
    folder = _folder(root, "live", "LIVE release 2")
    dmos = _mat(folder / "dmos_realigned.mat", "dmos_new").ravel()
    originals = _mat(folder / "dmos_realigned.mat", "orgs").ravel().astype(bool)
    references = [str(np.squeeze(name)) for name in _mat(folder / "refnames_all.mat", "refnames_all").ravel()]
    counts = {"jp2k": 227, "jpeg": 233, "wn": 174, "gblur": 174, "fastfading": 174}
    paths = [
        folder / kind / f"img{number}.bmp" for kind, count in counts.items() for number in range(1, count + 1)
    ]
    if not len(paths) == len(dmos) == len(originals) == len(references):
        raise TenfoldError(f"the labels in {folder} are {len(dmos)}, not the {len(paths)} of LIVE release 2")
    kept = [index for index in range(len(paths)) if not originals[index] and dmos[index] >= 0]
    return ScoreTable(
        "live",
        tuple(paths[index] for index in kept),
        dmos[kept].astype(np.float32),
        tuple(references[index] for index in kept),
        "live",
        ScoreScale(0.0, 115.0, False),
    )


def csiq_table(root: Path) -> ScoreTable:
    """CSIQ: 866 images of 30 references; lines "image dmos" in ``csiq_label.txt``."""
    folder = _folder(root, "csiq", "CSIQ")
    lines = _lines(folder / "csiq_label.txt")
    images = folder / "dst_imgs_all" if (folder / "dst_imgs_all").is_dir() else folder / "dst_imgs"
    found = {path.name.lower(): path for path in images.rglob("*.png")}
    names = [line.rsplit(maxsplit=1)[0] for line in lines]
    paths = [found.get(name.lower(), images / name) for name in names]
    groups = tuple(name.split(".")[0].lower() for name in names)
    return ScoreTable("csiq", tuple(paths), _numbers(lines, 1), groups, "csiq", ScoreScale(0.0, 1.0, False))


def tid2013_table(root: Path) -> ScoreTable:
    """TID2013: 3000 images of 25 references; lines "mos image" in ``mos_with_names.txt``."""
    folder = _folder(root, "tid2013", "TID2013")
    lines = _lines(folder / "mos_with_names.txt")
    found = {path.name.lower(): path for path in (folder / "distorted_images").glob("*")}
    names = [line.split(maxsplit=1)[1] for line in lines]
    paths = tuple(found.get(name.lower(), folder / "distorted_images" / name) for name in names)
    groups = tuple(name.split("_")[0].upper() for name in names)
    return ScoreTable("tid2013", paths, _numbers(lines, 0), groups, "tid2013", ScoreScale(0.0, 9.0, True))


def livec_table(root: Path) -> ScoreTable:
    """LIVE in the Wild Challenge: 1162 photographs; the first 7 of the list are training images and left out."""
    folder = _folder(root, "livec", "LIVE in the Wild Challenge")
    listed = _mat(folder / "Data/AllImages_release.mat", "AllImages_release").ravel()
    names = [str(np.squeeze(name)) for name in listed]
    mos = _mat(folder / "Data/AllMOS_release.mat", "AllMOS_release").ravel().astype(np.float32)
    if len(names) != len(mos):
        raise TenfoldError(f"{folder / 'Data'} has {len(names)} images and {len(mos)} scores; get it again")
    paths = tuple(folder / "Images" / name for name in names[7:])
    return ScoreTable("livec", paths, mos[7:], tuple(names[7:]), "livec", ScoreScale(0.0, 100.0, True))


def koniq_table(root: Path) -> ScoreTable:
    """KonIQ-10k: 10073 photographs, resized to half their size."""
    folder = _folder(root, "koniq10k", "KonIQ-10k")
    table = _csv(folder / "koniq10k_scores_and_distributions.csv", ("image_name", "MOS_zscore"))
    names = tuple(table["image_name"])
    paths = tuple(folder / "1024x768" / name for name in names)
    scores = _column_of_numbers(table["MOS_zscore"], folder / "koniq10k_scores_and_distributions.csv")
    return ScoreTable("koniq10k", paths, scores, names, "koniq10k", ScoreScale(0.0, 100.0, True), (384, 512))


def bid_table(root: Path) -> ScoreTable:
    """BID: 586 photographs of authentic blur, resized to squares; image number and MOS in a workbook."""
    folder = _folder(root, "bid", "BID")
    books = sorted(path for path in folder.rglob("*.xlsx") if not path.name.startswith("~$"))
    if not books:
        raise TenfoldError(f"there is no workbook with BID's scores (*.xlsx) below {folder}")
    numbers, scores = _workbook(books[0])
    images = folder / "ImageDatabase" if (folder / "ImageDatabase").is_dir() else folder
    paths = tuple(images / f"DatabaseImage{number:04d}.JPG" for number in numbers)
    names = tuple(path.name for path in paths)
    return ScoreTable("bid", paths, scores, names, "bid", ScoreScale(0.0, 5.0, True), (512, 512))


MADE_OF_PHOTOGRAPHS = ("proxy", "proxy-smoke", "photographs")
"""Data sets that are distorted here, and have no table."""
DATASETS: dict[str, Callable[[Path], ScoreTable]] = {
    "live": live_table,
    "csiq": csiq_table,
    "tid2013": tid2013_table,
    "livec": livec_table,
    "koniq10k": koniq_table,
    "bid": bid_table,
}


def csv_table(
    path: Path,
    images: Path | None = None,
    higher_is_better: bool = True,
    scale: tuple[float, float] | None = None,
    resize: tuple[int, int] | None = None,
) -> ScoreTable:
    """Any images with scores: a table with the columns ``image``, ``score`` and, for a split by groups, ``group``.

    Args:
        path: of the CSV file.
        images: folder that the image names are below; by default the file's own.
        higher_is_better: whether a higher score is better.
        scale: ends of the scale; by default the lowest and highest score. Levels divide it evenly.
        resize: height and width that all images get first.

    Raises:
        TenfoldError: a column is missing, a score is no number, an image is not there, or all scores are equal.
    """
    table = _csv(path, ("image", "score"))
    scores = _column_of_numbers(table["score"], path)
    for column in ("image", "group"):
        if column in table and table[column].isna().any():
            line = table.index[table[column].isna()][0] + 2
            raise TenfoldError(f"line {line} of {path} has no {column}; mend or remove it")
    names = table["image"]
    paths = tuple((images or path.parent) / name for name in names)
    missing = [found for found in paths if not found.is_file()]
    if missing:
        raise TenfoldError(
            f"{len(missing)} of {len(paths)} images of {path} are not there, the first is {missing[0]}; give their "
            "folder with --csv.images"
        )
    if len(paths) < 2:
        raise TenfoldError(f"{path} lists {len(paths)} images; at least 2 are needed")
    check_scores_differ(scores)
    low, high = scale or (float(scores.min()), float(scores.max()))
    if not low <= scores.min() <= scores.max() <= high:
        raise TenfoldError(
            f"the scores of {path} go from {scores.min():g} to {scores.max():g}, outside the scale from {low:g} to "
            f"{high:g}; give its ends with --csv.scale LOW HIGH"
        )
    groups = tuple(table["group"]) if "group" in table else tuple(names)
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", path.stem).strip("-._") or "csv"
    return ScoreTable(
        name, paths, scores, groups, "equal-width", ScoreScale(low, high, higher_is_better), resize
    )


def load(table: ScoreTable, cache: Path | None = None) -> ImageSet:
    """Decode a data set.

    Args:
        table: its files and labels.
        cache: folder for the decoded pixels, for later runs.

    Raises:
        TenfoldError: a file is missing or damaged; it is named.
    """
    pixels = decode(table.paths, table.resize, cache)
    names = tuple(path.name for path in table.paths)
    scores = torch.from_numpy(table.scores)
    return ImageSet(table.name, names, pixels, scores, table.groups, table.rule, table.scale, table.resize)


def load_dataset(name: str, root: Path, cache: Path | None = None, legacy_resize: bool = False) -> ImageSet:
    """A data set by name: one of :data:`DATASETS`, or ``proxy``, ``photographs``, made from photographs.

    Args:
        name: of the data set.
        root: folder with further data.
        cache: folder for decoded pixels.
        legacy_resize: swap height and width of the resize, as the authors' code does for KonIQ-10k.

    Raises:
        TenfoldError: the name is unknown, or its files are not there.
    """
    if name == "proxy":
        return distorted_set(name, distort(bundled_photographs()))
    if name == "proxy-smoke":
        few = dict(list(bundled_photographs().items())[:4])
        return distorted_set(name, distort(few, size=80, crops=1))
    if name == "photographs":
        folder = next(
            (root / part for part in ("photographs", "reft/original") if (root / part).is_dir()), None
        )
        if folder is None:
            raise TenfoldError(
                f"there is no folder {root / 'photographs'}; put photographs of at least 256 pixels there, or use the "
                "quick profile, which needs no data"
            )
        return distorted_set("photographs", distort(folder_photographs(folder), size=256, crops=3))
    return load(named_table(name, root, legacy_resize), cache)


def named_table(name: str, root: Path, legacy_resize: bool = False) -> ScoreTable:
    """The table of one of :data:`DATASETS`; no image is decoded.

    Raises:
        TenfoldError: the name is unknown, or its files are not there.
    """
    if name not in DATASETS:
        known = ("proxy", "photographs", *DATASETS, "csv")
        raise TenfoldError(f"unknown data set {name!r}; choose one of {', '.join(known)}")
    table = DATASETS[name](root)
    if legacy_resize and table.resize is not None:
        table = replace(table, resize=table.resize[::-1])
    return table


def distorted_set(name: str, made: DistortedPictures) -> ImageSet:
    """Distorted photographs as a data set; splits go by photograph."""
    pixels = PixelStore.of(made.pictures)
    scores = torch.from_numpy(made.scores)
    scale = ScoreScale(0.0, 10.0, True)
    return ImageSet(name, tuple(made.names), pixels, scores, tuple(made.photographs), "proxy", scale)


# -- reading -------------------------------------------------------------------------------------------


def _folder(root: Path, name: str, title: str) -> Path:
    folder = root / name
    if not folder.is_dir():
        raise TenfoldError(
            f"{title} was not found at {folder}; put it there as its authors distribute it, name its parent folder "
            "with --data-root, or use the quick profile, which needs no data"
        )
    return folder


def _mat(path: Path, variable: str) -> NDArray[np.generic]:
    """One variable of a Matlab file."""
    try:
        content: dict[str, NDArray[np.generic]] = loadmat(path)
        return content[variable]
    except (OSError, ValueError, TypeError, LookupError, NotImplementedError, MatReadError) as error:
        raise TenfoldError(
            f"{path} is missing, damaged, or lacks the variable {variable}; get the data set's labels again"
        ) from error


def _csv(path: Path, columns: Sequence[str]) -> pd.DataFrame:
    """A table of texts with some columns."""
    try:
        # Blank lines are read and dropped, so that the index still tells a row's line.
        table = pd.read_csv(path, dtype=str, skip_blank_lines=False).dropna(how="all")
    except (FileNotFoundError, IsADirectoryError) as error:
        raise TenfoldError(f"there is no table {path}") from error
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise TenfoldError(f"{path} is no CSV table: {error}") from error
    missing = [column for column in columns if column not in table]
    if missing:
        raise TenfoldError(
            f"{path} lacks the column {missing[0]!r}; it has {', '.join(map(str, table.columns))}"
        )
    return table


def _column_of_numbers(column: pd.Series, path: Path) -> NDArray[np.float32]:
    numbers: NDArray[np.float32] = pd.to_numeric(column, errors="coerce").to_numpy(np.float32)
    bad = np.flatnonzero(~np.isfinite(numbers))
    if len(bad):
        raise TenfoldError(
            f"line {column.index[bad[0]] + 2} of {path} has no number for a score; mend or remove it"
        )
    return numbers


def _workbook(path: Path) -> tuple[list[int], NDArray[np.float32]]:
    """Image numbers and scores: the first two columns of every row that begins with a number."""
    try:
        table = pd.read_excel(path, header=None).iloc[:, :2].apply(pd.to_numeric, errors="coerce")
        rows = table[table[0].notna()]
        scores: NDArray[np.float32] = rows[1].to_numpy(np.float32)
    except (ValueError, KeyError, OSError, BadZipFile) as error:
        raise TenfoldError(
            f"{path} is no workbook of image numbers and scores; get BID's labels again"
        ) from error
    if not len(scores) or not np.isfinite(scores).all():
        raise TenfoldError(f"{path} lacks the score of an image; get BID's labels again")
    return [int(number) for number in rows[0]], scores


def _lines(path: Path) -> list[str]:
    """The lines that are not blank, of two words or more each."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError as error:
        raise TenfoldError(f"there is no list of labels at {path}") from error
    except UnicodeDecodeError as error:
        raise TenfoldError(f"{path} is no text file; get the data set's labels again") from error
    found = [line.strip() for line in lines if line.strip()]
    cut = next((line for line in found if len(line.split()) < 2), None)
    if cut is not None:
        raise TenfoldError(f"{path} has a line without image or score, {cut!r}; get it again")
    if not found:
        raise TenfoldError(f"{path} lists no labels; get it again")
    return found


def _numbers(lines: list[str], column: int) -> NDArray[np.float32]:
    """A column of lines of two words, the last or the first of which is a number."""
    words = [line.rsplit(maxsplit=1)[1] if column else line.split(maxsplit=1)[0] for line in lines]
    try:
        return np.array(words, dtype=np.float32)
    except ValueError as error:
        raise TenfoldError(f"a line of the labels has no number: {error}") from error
