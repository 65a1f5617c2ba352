"""Data sets and splits: folders of the published form, tables of one's own, and what is said of faulty ones."""

from __future__ import annotations

import csv
import io
import re
import zipfile
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import openpyxl
import pytest
import torch
from PIL import Image
from scipy.io import savemat

from tenfold.pmt_iqa.datasets import (
    ImageSet,
    ScoreScale,
    ScoreTable,
    bid_table,
    csiq_table,
    csv_table,
    koniq_table,
    live_table,
    livec_table,
    load,
    load_dataset,
    tid2013_table,
)
from tenfold.pmt_iqa.pixels import PixelStore
from tenfold.pmt_iqa.splits import split_by_group
from tenfold.shared.logging import TenfoldError

LIVE_COUNTS = {"jp2k": 227, "jpeg": 233, "wn": 174, "gblur": 174, "fastfading": 174}
LIVE_FILES = [f"{kind}/img{k}.bmp" for kind, count in LIVE_COUNTS.items() for k in range(1, count + 1)]

Rows = list[dict[str, str]]


def paint(path: Path, colour: int = 90, size: tuple[int, int] = (6, 4)) -> Path:
    """An image of one grey, width and height given, in the format of its name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (colour,) * 3).save(path)
    return path


def cell(names: Sequence[str], column: bool = False) -> np.ndarray:
    """A Matlab cell array of text, a row or a column."""
    found = np.empty((len(names), 1) if column else (1, len(names)), dtype=object)
    found.ravel()[:] = names
    return found


def relative(table: ScoreTable, folder: Path) -> list[str]:
    return [path.relative_to(folder).as_posix() for path in table.paths]


@pytest.fixture(scope="module")
def published(data_root: Path) -> Callable[[str], Rows]:
    """The rows of one set's published labels."""
    archive = data_root / "iqa-labels" / "iqa_labels.zip"
    if not archive.is_file():
        pytest.skip("needs the published labels in iqa-labels")

    def rows(name: str) -> Rows:
        with zipfile.ZipFile(archive) as content:
            return list(csv.DictReader(io.StringIO(content.read(f"{name}.csv").decode())))

    return rows


# LIVE


def write_live(
    root: Path, dmos: Sequence[float], originals: Sequence[bool], references: Sequence[str]
) -> Path:
    folder = root / "live"
    folder.mkdir()
    savemat(
        folder / "dmos_realigned.mat",
        {"dmos_new": np.array([dmos]), "orgs": np.array([originals], dtype=np.uint8)},
    )
    savemat(folder / "refnames_all.mat", {"refnames_all": cell(references)})
    return folder


@pytest.fixture
def live(tmp_path: Path) -> Path:
    """DMOS counts the 982 entries in tenths; from 779 on they are originals; 29 references take turns."""
    dmos = [0.1 * index for index in range(982)]
    references = [f"reference{index % 29}.bmp" for index in range(982)]
    return write_live(tmp_path, dmos, [index >= 779 for index in range(982)], references)


def test_live_has_779_distorted_images_of_29_references(live: Path) -> None:
    table = live_table(live.parent)
    assert len(table.paths) == len(table.scores) == len(table.groups) == 779
    assert len(set(table.groups)) == 29


def test_labels_of_live_come_in_the_order_of_its_folders(live: Path) -> None:
    table = live_table(live.parent)
    assert relative(table, live) == LIVE_FILES[:779]
    np.testing.assert_allclose(table.scores, 0.1 * np.arange(779), rtol=1e-6)
    assert table.groups == tuple(f"reference{index % 29}.bmp" for index in range(779))
    assert (table.name, table.rule, table.resize) == ("live", "live", None)


def test_originals_of_live_are_left_out_wherever_they_are(tmp_path: Path) -> None:
    originals = np.isin(np.arange(982), [0, 226, 460, 981])
    folder = write_live(tmp_path, range(982), originals.tolist(), ["a.bmp"] * 982)
    table = live_table(tmp_path)
    expected = [name for name, left_out in zip(LIVE_FILES, originals, strict=True) if not left_out]
    assert relative(table, folder) == expected
    np.testing.assert_array_equal(table.scores, np.flatnonzero(~originals))


def test_images_of_live_with_a_negative_dmos_are_dropped(tmp_path: Path) -> None:
    dmos = np.full(982, 40.0)
    dmos[[3, 500]] = -0.5
    folder = write_live(tmp_path, dmos.tolist(), [False] * 982, ["a.bmp"] * 982)
    kept = relative(live_table(tmp_path), folder)
    assert set(LIVE_FILES) - set(kept) == {LIVE_FILES[3], LIVE_FILES[500]}


def test_images_of_live_are_read_with_their_labels(tmp_path: Path) -> None:
    kept = {"jp2k/img227.bmp": 10, "jpeg/img1.bmp": 60, "wn/img174.bmp": 110, "fastfading/img174.bmp": 160}
    originals = [name not in kept for name in LIVE_FILES]
    dmos = [kept.get(name, 0) for name in LIVE_FILES]
    folder = write_live(tmp_path, dmos, originals, [f"{name[:2]}.bmp" for name in LIVE_FILES])
    for name, colour in kept.items():
        paint(folder / name, colour)
    images = load_dataset("live", tmp_path)
    assert images.scores.tolist() == [10, 60, 110, 160]
    assert [int(images.pixels.picture(index)[0, 0, 0]) for index in range(4)] == [10, 60, 110, 160]
    assert images.names == ("img227.bmp", "img1.bmp", "img174.bmp", "img174.bmp")
    assert images.groups == ("jp.bmp", "jp.bmp", "wn.bmp", "fa.bmp")


@pytest.mark.parametrize("count", [981, 983])
def test_another_number_of_labels_than_lives_is_refused(tmp_path: Path, count: int) -> None:
    write_live(tmp_path, [1.0] * count, [False] * count, ["a.bmp"] * count)
    with pytest.raises(TenfoldError, match=f"are {count}, not the 982 of LIVE release 2"):
        live_table(tmp_path)


def test_lives_published_labels_are_read_as_they_are(
    tmp_path: Path, published: Callable[[str], Rows]
) -> None:
    rows = {f"{row['dist_name']}.bmp": row for row in published("live")}
    dmos = [float(rows[name]["mos"]) if name in rows else 0.0 for name in LIVE_FILES]
    references = [rows[name]["ref_name"] if name in rows else "none" for name in LIVE_FILES]
    folder = write_live(tmp_path, dmos, [name not in rows for name in LIVE_FILES], references)
    table = live_table(tmp_path)
    assert dict(zip(relative(table, folder), table.groups, strict=True)) == {
        name: row["ref_name"] for name, row in rows.items()
    }
    np.testing.assert_allclose(table.scores, [dmos[LIVE_FILES.index(n)] for n in relative(table, folder)])


@pytest.fixture
def short_live(tmp_path: Path) -> Path:
    return write_live(tmp_path, [30.0] * 4, [False] * 4, ["a.bmp"] * 4)


@pytest.mark.parametrize(
    "content",
    [None, b"", b"no Matlab file at all", b"no Matlab file at all" * 200, bytes(4000)],
    ids=["missing", "empty", "short text", "long text", "zeros"],
)
def test_a_missing_or_damaged_matlab_file_is_named(short_live: Path, content: bytes | None) -> None:
    path = short_live / "dmos_realigned.mat"
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(TenfoldError, match=rf"^{re.escape(str(path))} is missing, damaged, or lacks"):
        live_table(short_live.parent)


def test_a_matlab_file_that_breaks_off_is_named(short_live: Path) -> None:
    path = short_live / "refnames_all.mat"
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(TenfoldError, match=re.escape(str(path))):
        live_table(short_live.parent)


def test_a_matlab_file_without_the_scores_is_refused(short_live: Path) -> None:
    """LIVE comes with dmos.mat as well, whose variable has another name."""
    savemat(short_live / "dmos_realigned.mat", {"dmos": np.ones((1, 4)), "orgs": np.zeros((1, 4))})
    with pytest.raises(TenfoldError, match="dmos_new"):
        live_table(short_live.parent)


# CSIQ


CSIQ_LINES = """\
1600.AWGN.1.png 0.061989
1600.BLUR.5.png 0.95
sunset_sparrow.contrast.2.png 1.000000
sunset_sparrow.jpeg2000.3.png 0.25
"""


def write_csiq(root: Path, lines: str) -> Path:
    folder = root / "csiq"
    folder.mkdir()
    (folder / "csiq_label.txt").write_text(lines)
    return folder


def test_csiq_is_read_with_all_images_in_one_folder(tmp_path: Path) -> None:
    folder = write_csiq(tmp_path, CSIQ_LINES)
    for colour, line in enumerate(CSIQ_LINES.splitlines()):
        paint(folder / "dst_imgs_all" / line.split()[0], colour)
    images = load_dataset("csiq", tmp_path)
    assert images.scores.tolist() == pytest.approx([0.061989, 0.95, 1.0, 0.25])
    assert images.groups == ("1600", "1600", "sunset_sparrow", "sunset_sparrow")
    assert [int(images.pixels.picture(index)[0, 0, 0]) for index in range(4)] == [0, 1, 2, 3]
    assert images.levels(10).tolist() == [1, 9, 9, 2]


def test_csiq_is_read_with_a_folder_for_each_distortion(tmp_path: Path) -> None:
    folder = write_csiq(tmp_path, CSIQ_LINES)
    paths = ["awgn/1600.AWGN.1.png", "blur/1600.BLUR.5.png"]
    paths += ["contrast/sunset_sparrow.contrast.2.png", "jpeg2000/sunset_sparrow.jpeg2000.3.png"]
    for path in paths:
        paint(folder / "dst_imgs" / path)
    assert relative(csiq_table(tmp_path), folder / "dst_imgs") == paths


def test_names_of_csiq_are_found_however_they_are_written(tmp_path: Path) -> None:
    folder = write_csiq(tmp_path, "1600.jpeg.1.png 0.1\n1600.BLUR.1.png 0.3\n")
    paths = [paint(folder / "dst_imgs_all" / name) for name in ("1600.JPEG.1.png", "1600.blur.1.png")]
    assert list(csiq_table(tmp_path).paths) == paths


def test_a_missing_image_of_csiq_is_named(tmp_path: Path) -> None:
    folder = write_csiq(tmp_path, CSIQ_LINES)
    for line in CSIQ_LINES.splitlines()[:3]:
        paint(folder / "dst_imgs_all" / line.split()[0])
    with pytest.raises(TenfoldError, match=r"there is no image .*sunset_sparrow\.jpeg2000\.3\.png"):
        load_dataset("csiq", tmp_path)


def test_blank_lines_of_a_list_count_for_nothing(tmp_path: Path) -> None:
    write_csiq(tmp_path, "\n" + CSIQ_LINES.replace("\n", "\r\n\n"))
    np.testing.assert_allclose(csiq_table(tmp_path).scores, [0.061989, 0.95, 1.0, 0.25], rtol=1e-6)


def test_csiqs_published_labels_are_read_as_they_are(
    tmp_path: Path, published: Callable[[str], Rows]
) -> None:
    rows = published("csiq")
    write_csiq(tmp_path, "".join(f"{row['dist_name']} {row['dmos']}\n" for row in rows))
    table = csiq_table(tmp_path)
    assert len(table.paths) == 866 and len(set(table.groups)) == 30
    np.testing.assert_allclose(table.scores, [float(row["dmos"]) for row in rows], rtol=1e-6)
    pairs = set(zip(table.groups, (row["ref_name"] for row in rows), strict=True))
    assert len(pairs) == 30


@pytest.mark.parametrize(
    "lines",
    ["1600.AWGN.1.png 0.2\n1600.AWGN.2.png much\n", "1600.AWGN.1.png 0.2\n1600.AWGN.2.png\n"],
    ids=["word", "cut off"],
)
def test_a_label_without_number_is_refused(tmp_path: Path, lines: str) -> None:
    write_csiq(tmp_path, lines)
    with pytest.raises(TenfoldError, match="number"):
        csiq_table(tmp_path)


@pytest.mark.parametrize("content", [None, b"", b"\xff\xfe1\x006\x000\x00"])
def test_a_missing_empty_or_unreadable_list_of_labels_is_named(tmp_path: Path, content: bytes | None) -> None:
    path = write_csiq(tmp_path, "") / "csiq_label.txt"
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(TenfoldError, match=re.escape(str(path))):
        load_dataset("csiq", tmp_path)


# TID2013


def test_tid2013_is_read_however_its_files_are_written(tmp_path: Path) -> None:
    """The list and the files of the published set mix capitals and small letters."""
    folder = tmp_path / "tid2013"
    folder.mkdir()
    lines = "5.51429 I01_01_1.bmp\n5.56757 i01_01_2.bmp\n2.77143 I25_24_5.bmp\n"
    (folder / "mos_with_names.txt").write_text(lines)
    for colour, name in enumerate(("I01_01_1.BMP", "I01_01_2.bmp", "i25_24_5.bmp")):
        paint(folder / "distorted_images" / name, colour)
    images = load_dataset("tid2013", tmp_path)
    assert images.scores.tolist() == pytest.approx([5.51429, 5.56757, 2.77143])
    assert [int(images.pixels.picture(index)[0, 0, 0]) for index in range(3)] == [0, 1, 2]
    assert images.groups[0] == images.groups[1] != images.groups[2]


def test_tid2013s_published_labels_are_read_as_they_are(
    tmp_path: Path, published: Callable[[str], Rows]
) -> None:
    rows = published("tid2013")
    (tmp_path / "tid2013").mkdir()
    lines = "".join(f"{row['mos']} {row['dist_name']}\n" for row in rows)
    (tmp_path / "tid2013" / "mos_with_names.txt").write_text(lines)
    table = tid2013_table(tmp_path)
    assert Counter(table.groups) == Counter(row["ref_name"].split(".")[0].upper() for row in rows)
    assert sorted(Counter(table.groups).values()) == [120] * 25
    np.testing.assert_allclose(table.scores, [float(row["mos"]) for row in rows], rtol=1e-6)
    assert table.scale.higher_is_better


# LIVE Challenge


def write_livec(root: Path, names: Sequence[str], mos: Sequence[float]) -> Path:
    folder = root / "livec"
    (folder / "Data").mkdir(parents=True)
    savemat(folder / "Data" / "AllImages_release.mat", {"AllImages_release": cell(names, column=True)})
    savemat(folder / "Data" / "AllMOS_release.mat", {"AllMOS_release": np.array([mos])})
    return folder


def test_live_challenge_leaves_its_seven_training_images_out(tmp_path: Path) -> None:
    names = [f"t{k}.bmp" for k in range(1, 8)] + ["3.bmp", "1024.JPG", "5.bmp"]
    folder = write_livec(tmp_path, names, [10.0 * k for k in range(10)])
    for colour, name in enumerate(names[7:]):
        paint(folder / "Images" / name, 40 * colour, size=(5 + colour, 9))
    images = load_dataset("livec", tmp_path)
    assert images.names == images.groups == ("3.bmp", "1024.JPG", "5.bmp")
    assert images.scores.tolist() == [70, 80, 90]
    assert images.pixels.sizes.tolist() == [[9, 5], [9, 6], [9, 7]]
    assert [int(images.pixels.picture(index)[0, 0, 0]) for index in range(3)] == [0, 40, 80]
    assert images.scale.higher_is_better


def test_live_challenge_of_the_published_length_has_1162_images(tmp_path: Path) -> None:
    folder = write_livec(tmp_path, [f"{k}.bmp" for k in range(1169)], np.linspace(3, 93, 1169).tolist())
    table = livec_table(tmp_path)
    assert len(table.paths) == len(table.scores) == len(set(table.groups)) == 1162
    assert table.paths[0] == folder / "Images" / "7.bmp"


def test_live_challenge_with_more_images_than_scores_is_refused(tmp_path: Path) -> None:
    write_livec(tmp_path, [f"{k}.bmp" for k in range(12)], [50.0] * 11)
    with pytest.raises(TenfoldError, match="12 images and 11 scores"):
        livec_table(tmp_path)


# KonIQ-10k


def write_koniq(root: Path, header: str = "image_name,c1,c2,c_total,MOS,SD,MOS_zscore") -> Path:
    folder = root / "koniq10k"
    folder.mkdir()
    lines = [header, "10004473376.jpg,0,0,106,3.9,0.53,77.38", "826373.jpg,9,41,103,2.2,0.67,15.0"]
    (folder / "koniq10k_scores_and_distributions.csv").write_text("\n".join(lines) + "\n")
    for name in ("10004473376.jpg", "826373.jpg"):
        paint(folder / "1024x768" / name, size=(64, 48))
    return folder


def test_koniq_is_read_with_its_z_scores_at_half_its_size(tmp_path: Path) -> None:
    write_koniq(tmp_path)
    images = load_dataset("koniq10k", tmp_path)
    assert images.scores.tolist() == pytest.approx([77.38, 15.0])
    assert images.groups == images.names == ("10004473376.jpg", "826373.jpg")
    assert images.pixels.sizes.tolist() == [[384, 512]] * 2
    assert images.levels(10).tolist() == [8, 2]


def test_the_authors_resize_of_koniq_swaps_height_and_width(tmp_path: Path) -> None:
    write_koniq(tmp_path)
    images = load_dataset("koniq10k", tmp_path, legacy_resize=True)
    assert images.pixels.sizes.tolist() == [[512, 384]] * 2
    assert images.resize == (512, 384)


def test_the_cache_keeps_both_resizes_of_koniq_apart(tmp_path: Path) -> None:
    ramp = Image.linear_gradient("L").resize((64, 48))  # dark above, bright below
    ramp.save(write_koniq(tmp_path) / "1024x768" / "826373.jpg")
    for legacy in (False, True, False, True):
        images = load_dataset("koniq10k", tmp_path, tmp_path / "cache", legacy_resize=legacy)
        picture = images.pixels.picture(1)
        assert picture.shape == ((512, 384, 3) if legacy else (384, 512, 3))
        assert (picture[:40] < 40).all() and (picture[-40:] > 215).all()


def test_a_table_of_koniq_without_z_scores_is_refused(tmp_path: Path) -> None:
    write_koniq(tmp_path, "image_name,c1,c2,c_total,MOS,SD,z")
    with pytest.raises(TenfoldError, match=r"lacks the column 'MOS_zscore'; it has image_name, .*z$"):
        koniq_table(tmp_path)


# BID


def write_bid(root: Path, rows: Sequence[Sequence[Any]]) -> Path:
    folder = root / "bid"
    folder.mkdir()
    book = openpyxl.Workbook()
    for row in rows:
        book.active.append(list(row))
    book.save(folder / "DatabaseGrades.xlsx")
    return folder


def test_bid_is_read_from_its_workbook_in_squares(tmp_path: Path) -> None:
    folder = write_bid(
        tmp_path,
        [
            ("Image Number", "Average Subjective Grade", "Std"),
            (1, 4.51664, 0.5),
            (3, 1.300189, 0.9),
            (586, 0.5),
        ],
    )
    names = ("DatabaseImage0001.JPG", "DatabaseImage0003.JPG", "DatabaseImage0586.JPG")
    for name in names:
        paint(folder / "ImageDatabase" / name, size=(16, 12))
    images = load_dataset("bid", tmp_path)
    assert images.names == images.groups == names
    assert images.scores.tolist() == pytest.approx([4.51664, 1.300189, 0.5])
    assert images.pixels.sizes.tolist() == [[512, 512]] * 3
    assert images.levels(10).tolist() == [9, 2, 1]


def test_bids_workbook_may_be_below_and_open_elsewhere(tmp_path: Path) -> None:
    """Excel leaves a file of its own beside a workbook that is open."""
    folder = write_bid(tmp_path, [(12, 3.5), (7, 1.5)])
    (folder / "labels").mkdir()
    (folder / "DatabaseGrades.xlsx").rename(folder / "labels" / "DatabaseGrades.xlsx")
    (folder / "labels" / "~$DatabaseGrades.xlsx").write_bytes(b"user")
    assert bid_table(tmp_path).scores.tolist() == [3.5, 1.5]


def test_an_image_of_bid_without_score_is_refused(tmp_path: Path) -> None:
    write_bid(tmp_path, [("number", "grade"), (1, 4.5), (3, None), (4, 2.0)])
    with pytest.raises(TenfoldError, match=r"DatabaseGrades\.xlsx lacks the score of an image"):
        bid_table(tmp_path)


def test_bid_without_workbook_is_refused(tmp_path: Path) -> None:
    (tmp_path / "bid").mkdir()
    with pytest.raises(TenfoldError, match=r"no workbook .*\(\*\.xlsx\) below "):
        bid_table(tmp_path)


def test_a_damaged_workbook_is_named(tmp_path: Path) -> None:
    path = write_bid(tmp_path, [(1, 2.0)]) / "DatabaseGrades.xlsx"
    path.write_bytes(path.read_bytes()[:400])
    with pytest.raises(TenfoldError, match=re.escape(str(path))):
        bid_table(tmp_path)


# By name


TITLES = {
    "live": "LIVE release 2",
    "csiq": "CSIQ",
    "tid2013": "TID2013",
    "livec": "LIVE in the Wild Challenge",
    "koniq10k": "KonIQ-10k",
    "bid": "BID",
}


@pytest.mark.parametrize("name", TITLES)
def test_a_data_set_that_is_not_there_is_said_with_its_folder(tmp_path: Path, name: str) -> None:
    place = re.escape(str(tmp_path / name))
    with pytest.raises(TenfoldError, match=rf"^{TITLES[name]} was not found at {place}; [^\n]*--data-root"):
        load_dataset(name, tmp_path)


def test_an_unknown_data_set_is_refused_with_those_there_are(tmp_path: Path) -> None:
    with pytest.raises(TenfoldError, match=r"^unknown data set 'kadid10k'; choose one of ") as caught:
        load_dataset("kadid10k", tmp_path)
    assert all(name in str(caught.value) for name in (*TITLES, "proxy", "photographs", "csv"))


def test_photographs_that_are_not_there_are_said_with_their_folder(tmp_path: Path) -> None:
    with pytest.raises(TenfoldError, match=re.escape(f"there is no folder {tmp_path / 'photographs'}")):
        load_dataset("photographs", tmp_path)


def test_a_damaged_image_is_named(tmp_path: Path) -> None:
    path = write_koniq(tmp_path) / "1024x768" / "826373.jpg"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(TenfoldError, match=rf"^{re.escape(str(path))} is damaged"):
        load_dataset("koniq10k", tmp_path)


def test_the_smoke_set_is_five_distortions_at_five_levels_of_four_photographs(tmp_path: Path) -> None:
    images = load_dataset("proxy-smoke", tmp_path)
    assert sorted(Counter(images.groups).values()) == [25] * 4
    assert images.pixels.sizes.unique(dim=0).tolist() == [[80, 80]]
    assert 0 <= images.scores.min() < 3 and 9 < images.scores.max() <= 10
    assert images.levels(10).tolist() == [min(int(score), 9) for score in images.scores.tolist()]


# Tables of one's own


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str], Path]:
    """Writes a table beside four images, a.png to d.png, of ever larger size."""
    for size, name in enumerate("abcd", start=4):
        paint(tmp_path / f"{name}.png", size=(size, size))

    def table(content: str) -> Path:
        path = tmp_path / "mine.csv"
        path.write_text(content, encoding="utf-8")
        return path

    return table


PLAIN = "image,score\nb.png,2.5\na.png,1\nd.png,9\n"


def test_a_table_is_read_with_the_images_beside_it(write: Callable[[str], Path]) -> None:
    images = load(csv_table(write(PLAIN)))
    assert (images.name, images.names) == ("mine", ("b.png", "a.png", "d.png"))
    assert images.scores.tolist() == [2.5, 1, 9]
    assert images.scores.dtype == torch.float32
    assert images.pixels.sizes.tolist() == [[5, 5], [4, 4], [7, 7]]


def test_images_may_be_in_another_folder(write: Callable[[str], Path], tmp_path: Path) -> None:
    other = tmp_path / "elsewhere" / "images"
    for name in ("a.png", "b.png", "d.png"):
        paint(other / name)
    assert csv_table(write(PLAIN), other).paths == (other / "b.png", other / "a.png", other / "d.png")


def test_without_groups_every_image_is_its_own(write: Callable[[str], Path]) -> None:
    assert csv_table(write(PLAIN)).groups == ("b.png", "a.png", "d.png")


def test_scores_of_the_same_image_stay_together(write: Callable[[str], Path]) -> None:
    table = csv_table(write("image,score\na.png,1\nb.png,2\na.png,3\n"))
    assert table.groups[0] == table.groups[2] != table.groups[1]


def test_groups_are_those_of_the_table_in_any_order_of_columns(write: Callable[[str], Path]) -> None:
    table = csv_table(write("group,extra,score,image\nx,,1,a.png\ny,,2,b.png\nx,,3,c.png\n"))
    assert table.groups == ("x", "y", "x")
    assert table.scores.tolist() == [1, 2, 3]


def test_groups_that_differ_only_in_leading_zeros_are_two(write: Callable[[str], Path]) -> None:
    groups = csv_table(write("image,score,group\na.png,1,01\nb.png,2,1\nc.png,3,01\n")).groups
    assert groups[0] == groups[2] != groups[1]


def test_a_row_without_group_is_refused(write: Callable[[str], Path]) -> None:
    """Else all such images would be one group, whatever they show."""
    path = write("image,score,group\na.png,1,x\nb.png,2,\nc.png,3,y\nd.png,4,\n")
    with pytest.raises(TenfoldError, match="group"):
        csv_table(path)


def test_the_scale_runs_from_the_lowest_to_the_highest_score(write: Callable[[str], Path]) -> None:
    table = csv_table(write(PLAIN))
    assert table.scale == ScoreScale(1.0, 9.0, True)
    assert load(table).levels(4).tolist() == [0, 0, 3]


def test_the_scale_can_be_given(write: Callable[[str], Path]) -> None:
    table = csv_table(write(PLAIN), higher_is_better=False, scale=(0.0, 10.0), resize=(8, 6))
    assert table.scale == ScoreScale(0.0, 10.0, False)
    images = load(table)
    assert images.levels(10).tolist() == [2, 1, 9]
    assert images.pixels.sizes.tolist() == [[8, 6]] * 3


@pytest.mark.parametrize("scale", [(10.0, 0.0), (2.0, 10.0), (0.0, 5.0)])
def test_a_scale_that_does_not_hold_the_scores_is_refused(
    write: Callable[[str], Path], scale: tuple[float, float]
) -> None:
    with pytest.raises(
        TenfoldError, match=r"the scores of .*mine\.csv go from 1 to 9, outside the scale from"
    ):
        csv_table(write(PLAIN), scale=scale)


def test_a_table_names_its_set_without_what_folders_cannot_be_called(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        paint(tmp_path / name)
    path = tmp_path / "my scores (new).csv"
    path.write_text("image,score\na.png,1\nb.png,2\n")
    assert csv_table(path).name == "my-scores-new"


def test_a_table_with_a_mark_of_its_encoding_is_read(write: Callable[[str], Path]) -> None:
    """As spreadsheets save it."""
    assert csv_table(write("\ufeff" + PLAIN)).scores.tolist() == [2.5, 1, 9]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "is no CSV table"),
        ('image,score\n"a.png,1\n', "is no CSV table"),
        ("picture,score\na.png,1\nb.png,2\n", "lacks the column 'image'; it has picture, score$"),
        ("image,mos\na.png,1\nb.png,2\n", "lacks the column 'score'; it has image, mos$"),
        ("image;score\na.png;1\nb.png;2\n", "lacks the column 'image'; it has image;score$"),
        ("image,score\na.png,1\nb.png,two\n", "line 3 of .*mine.csv has no number for a score"),
        ("image,score\na.png,\nb.png,2\n", "line 2 of .*mine.csv has no number for a score"),
        ("image,score\na.png,1\nb.png,2\nc.png,inf\n", "line 4 of .*mine.csv has no number for a score"),
        ("image,score\na.png,1\n\nb.png,two\n", "line 4 of .*mine.csv has no number for a score"),
        ("image,score\na.png,1\ny.png,2\nz.png,3\n", r"2 of 3 images of .* the first is .*y\.png;"),
        ("image,score\na.png,1\n", "lists 1 images; at least 2 are needed"),
        ("image,score\n", "lists 0 images; at least 2 are needed"),
        ("image,score\na.png,3\nb.png,3\n", "^all labels are 3: scores that never differ"),
        ("image,score\na.png,1\n,2\n", "line 3 of .*mine.csv"),
    ],
    ids=[
        *("empty", "open quotation", "no image column", "no score column", "semicolons", "word", "no score"),
        *("infinite", "after a blank line", "images missing", "one image", "no image", "constant", "no name"),
    ],
)
def test_a_faulty_table_is_refused_with_what_is_wrong(
    write: Callable[[str], Path], content: str, message: str
) -> None:
    with pytest.raises(TenfoldError, match=message):
        csv_table(write(content))


def test_a_table_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(TenfoldError, match=re.escape(f"there is no table {tmp_path / 'mine.csv'}")):
        csv_table(tmp_path / "mine.csv")


def test_bytes_that_are_no_text_are_refused_as_table(tmp_path: Path) -> None:
    path = paint(tmp_path / "image.png").rename(tmp_path / "mine.csv")
    with pytest.raises(TenfoldError, match="is no CSV table"):
        csv_table(path)


# Levels and scales of a set


@pytest.fixture
def make_set() -> Callable[..., ImageSet]:
    def make(scores: Sequence[float], rule: Any, scale: ScoreScale) -> ImageSet:
        pictures = [np.zeros((2, 2, 3), np.uint8) for _ in scores]
        names = tuple(map(str, range(len(scores))))
        return ImageSet("mine", names, PixelStore.of(pictures), torch.tensor(scores), names, rule, scale)

    return make


def test_levels_of_a_set_follow_its_rule(make_set: Callable[..., ImageSet]) -> None:
    scale = ScoreScale(0.0, 100.0, True)
    assert make_set([15.0, 25.0, 96.0], "livec", scale).levels(10).tolist() == [2, 2, 9]
    assert make_set([15.0, 25.0, 96.0], "equal-width", scale).levels(10).tolist() == [1, 2, 9]
    assert make_set([15.0, 25.0], "live", replace(scale, higher_is_better=False)).levels(10).tolist() == [
        1,
        2,
    ]
    assert make_set([1.0, 0.2], "csiq", scale).levels(10).dtype == torch.int64


@pytest.mark.parametrize("clamp", [True, False])
@pytest.mark.parametrize("rule", ["livec", "equal-width"])
def test_scores_that_never_differ_are_refused(
    make_set: Callable[..., ImageSet], rule: str, clamp: bool
) -> None:
    images = make_set([40.0] * 5, rule, ScoreScale(0.0, 100.0, True))
    with pytest.raises(TenfoldError, match=r"^all labels are 40: scores that never differ"):
        images.levels(10, clamp)


def test_levels_without_a_class_are_refused_unless_clamped(make_set: Callable[..., ImageSet]) -> None:
    images = make_set([1.0, 0.96, 0.2], "csiq", ScoreScale(0.0, 1.0, False))
    assert images.levels(10).tolist() == [9, 9, 2]
    with pytest.raises(TenfoldError, match=r"^mine has images of level 10, and 10 classes end at 9; "):
        images.levels(10, clamp=False)
    assert images.levels(11, clamp=False).tolist() == [10, 10, 2]


def test_the_digest_of_a_set_changes_with_everything_in_it(make_set: Callable[..., ImageSet]) -> None:
    scale = ScoreScale(0.0, 5.0, True)
    images = make_set([1.0, 4.0], "bid", scale)
    brighter = PixelStore(images.pixels.pixels + 1, images.pixels.sizes)
    taller = PixelStore(images.pixels.pixels, torch.tensor([[4, 1], [2, 2]]))
    others = [
        make_set([1.0, 4.5], "bid", scale),
        make_set([1.0, 4.0], "livec", scale),
        make_set([1.0, 4.0], "bid", ScoreScale(0.0, 5.0, False)),
        *(replace(images, **{key: ("x", "y")}) for key in ("names", "groups")),
        *(replace(images, pixels=pixels) for pixels in (brighter, taller)),
    ]
    assert make_set([1.0, 4.0], "bid", scale).digest() == images.digest()
    assert len({images.digest(), *(other.digest() for other in others)}) == 8


def test_a_negative_dmos_that_was_not_dropped_is_refused(make_set: Callable[..., ImageSet]) -> None:
    with pytest.raises(TenfoldError, match=r"^mine has labels below the lowest level"):
        make_set([-2.0, 30.0], "live", ScoreScale(0.0, 115.0, False)).levels(10)


def test_a_score_that_is_no_number_has_no_level(make_set: Callable[..., ImageSet]) -> None:
    with pytest.raises(TenfoldError, match="finite"):
        make_set([1.0, float("nan")], "bid", ScoreScale(0.0, 5.0, True)).levels(10)


def test_a_subset_keeps_what_belongs_to_its_images(write: Callable[[str], Path]) -> None:
    rows = ["image,score,group", "a.png,4,x", "b.png,5,y", "c.png,6,x", "d.png,7,z"]
    whole = load(csv_table(write("\n".join(rows)), scale=(0.0, 10.0)))
    part = whole.subset([3, 1])
    assert (part.names, part.groups, part.scores.tolist()) == (("d.png", "b.png"), ("z", "y"), [7, 5])
    assert part.pixels.sizes.tolist() == [[7, 7], [5, 5]]
    assert torch.equal(part.levels(10), whole.levels(10)[[3, 1]])


def test_a_score_in_per_cent_is_100_at_its_best_end() -> None:
    mos, dmos = ScoreScale(1.0, 5.0, True), ScoreScale(0.0, 115.0, False)
    np.testing.assert_allclose(mos.percent(np.array([1.0, 2.0, 5.0])), [0, 25, 100])
    np.testing.assert_allclose(dmos.percent(np.array([0.0, 28.75, 115.0])), [100, 75, 0])


def test_a_score_beyond_the_scale_counts_as_its_end() -> None:
    np.testing.assert_array_equal(ScoreScale(0.0, 10.0, True).percent(np.array([-3.0, 12.0])), [0, 100])
    assert float(ScoreScale(0.0, 10.0, False).percent(12.0)) == 0


def test_a_score_beyond_the_scale_can_be_told_as_it_is() -> None:
    np.testing.assert_allclose(ScoreScale(0.0, 10.0, True).percent([-3.0, 12.0], clip=False), [-30, 120])
    np.testing.assert_allclose(ScoreScale(0.0, 10.0, False).percent([-3.0, 12.0], clip=False), [130, -20])


# Splits


SPLITS = {
    "live": ("ref_name", 23, 6),
    "csiq": ("ref_name", 24, 6),
    "tid2013": ("ref_name", 20, 5),
    "livec": ("img_name", 930, 232),
    "koniq10k": ("img_name", 8058, 2015),
    "bid": ("image", 469, 117),
}
"""Column of the groups, and groups on both sides as the specification counts them."""


def groups_of(rows: Rows, name: str) -> list[str]:
    return [row[SPLITS[name][0]] for row in rows][7 if name == "livec" else 0 :]


@pytest.mark.parametrize("name", SPLITS)
def test_published_sets_are_split_in_the_stated_proportion(
    published: Callable[[str], Rows], name: str
) -> None:
    groups = groups_of(published(name), name)
    train, test = split_by_group(groups, seed=4)
    sides = [{groups[index] for index in side} for side in (train, test)]
    assert tuple(map(len, sides)) == SPLITS[name][1:]
    assert not sides[0] & sides[1]


@pytest.mark.parametrize("name", ["live", "csiq", "tid2013"])
def test_images_of_one_reference_are_never_torn_apart(published: Callable[[str], Rows], name: str) -> None:
    groups = groups_of(published(name), name)
    for seed in range(10):
        train, test = split_by_group(groups, seed)
        assert not {groups[index] for index in train} & {groups[index] for index in test}
        assert sorted((*train.tolist(), *test.tolist())) == list(range(len(groups)))


LETTERS = list("abcdefghijklmnopqrst") * 3


@pytest.mark.parametrize("fraction", [0.1, 0.5, 0.8, 0.95])
def test_every_image_is_on_one_side(fraction: float) -> None:
    train, test = split_by_group(LETTERS, 0, fraction)
    assert sorted((*train.tolist(), *test.tolist())) == list(range(60))
    assert len(train) == 3 * round(20 * fraction)


def test_a_split_can_be_repeated_and_differs_by_seed() -> None:
    assert split_by_group(LETTERS, 3)[1].tolist() == split_by_group(LETTERS, 3)[1].tolist()
    sides = {tuple(split_by_group(LETTERS, seed)[1].tolist()) for seed in range(10)}
    assert len(sides) == 10


def test_every_group_is_tested_sooner_or_later() -> None:
    tested = Counter(
        LETTERS[index] for seed in range(100) for index in split_by_group(LETTERS, seed)[1].tolist()
    )
    assert set(tested) == set(LETTERS)
    assert max(tested.values()) < 3 * min(tested.values())


def test_a_split_does_not_depend_on_the_order_of_the_files() -> None:
    """A listing of a folder comes in another order on another machine."""
    shuffled = np.random.RandomState(0).permutation(LETTERS).tolist()
    tested = [{groups[i] for i in split_by_group(groups, 2)[1]} for groups in (LETTERS, shuffled)]
    assert tested[0] == tested[1]


@pytest.mark.parametrize(("count", "fraction", "training"), [(5, 0.5, 2), (7, 0.5, 4), (3, 0.5, 2)])
def test_half_a_group_goes_to_the_even_number(count: int, fraction: float, training: int) -> None:
    train, test = split_by_group(list(map(str, range(count))), 0, fraction)
    assert (len(train), len(test)) == (training, count - training)


def test_all_groups_may_train() -> None:
    train, test = split_by_group(LETTERS, 0, 1)
    assert train.tolist() == list(range(60)) and test.tolist() == []


@pytest.mark.parametrize(
    ("groups", "fraction"),
    [(["a"] * 9, 0.8), (["a", "b"], 0.8), (LETTERS, 0.01), (LETTERS, 0.99), (["a", "b"], 0.0), ([], 1.0)],
    ids=["one group", "all train", "none trains", "none is tested", "zero", "no group"],
)
def test_a_split_with_an_empty_side_is_refused(groups: list[str], fraction: float) -> None:
    with pytest.raises(
        TenfoldError, match=rf"^{len(set(groups))} groups cannot be split into .*--train-fraction$"
    ):
        split_by_group(groups, 0, fraction)


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_a_seed_out_of_range_is_refused(seed: int) -> None:
    with pytest.raises(TenfoldError, match=f"^a seed is a whole number from 0 to {2**32 - 1}, not {seed}$"):
        split_by_group(LETTERS, seed)


@pytest.mark.parametrize("fraction", [-0.5, 1.2, float("nan")])
def test_a_share_that_is_none_is_refused(fraction: float) -> None:
    with pytest.raises(TenfoldError, match=r"^20 groups cannot be split"):
        split_by_group(LETTERS, 0, fraction)
