"""Pictures: what is drawn where, pixel by pixel, and the helpers of segmenting."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as coco_mask

from tenfold.reft.figures import (
    PALETTE,
    Comparison,
    Outlined,
    draw_ablation,
    draw_bars,
    draw_comparison,
    draw_masks,
    draw_per_class_gain,
    draw_pooling,
    outlined,
)
from tenfold.reft.segmenting import as_coco, pictures_of, read_mask, read_support_folder
from tenfold.shared.logging import TenfoldError

Pixels = NDArray[np.uint8]
NAMES = {3: "cat", 7: "dog"}


def grey(height: int, width: int, value: int = 128) -> Pixels:
    return np.full((height, width, 3), value, dtype=np.uint8)


def square(size: tuple[int, int], top: int, left: int, side: int) -> NDArray[np.bool_]:
    mask = np.zeros(size, dtype=bool)
    mask[top : top + side, left : left + side] = True
    return mask


def run_lengths(mask: NDArray[np.bool_]) -> dict[str, Any]:
    encoded = coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"size": encoded["size"], "counts": encoded["counts"].decode()}


def detection(mask: NDArray[np.bool_], category: int, score: float) -> dict[str, Any]:
    lengths = run_lengths(mask)
    return {
        "image_id": 1,
        "category_id": category,
        "score": score,
        "segmentation": lengths,
        "bbox": coco_mask.toBbox(lengths).tolist(),
    }


def tint(value: int, place: int) -> NDArray[np.float64]:
    """A grey pixel of an instance: 60 % of the image, 40 % of the colour."""
    colour = PALETTE[place].lstrip("#")
    channels = np.array([int(colour[start : start + 2], 16) for start in (0, 2, 4)])
    tinted: NDArray[np.float64] = 0.6 * value + 0.4 * channels
    return tinted


def read(path: Path) -> Pixels:
    with Image.open(path) as picture:
        assert picture.format == "PNG"
        return np.asarray(picture.convert("RGB"))


def share(pixels: Pixels, colour: NDArray[np.float64]) -> float:
    """Of the pixels that have about a colour."""
    return float((np.abs(pixels.astype(float) - colour).max(axis=-1) <= 3).mean())


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """All figures that are saved while the test runs."""
    saved: list[Figure] = []
    save = Figure.savefig

    def keep(figure: Figure, *arguments: Any, **options: Any) -> None:
        saved.append(figure)
        save(figure, *arguments, **options)

    monkeypatch.setattr(Figure, "savefig", keep)
    return saved


# -- what is drawn of instances ------------------------------------------------------------------------


def test_detections_below_the_threshold_are_left_out_and_the_best_is_drawn_last() -> None:
    mask = square((8, 8), 1, 1, 4)
    found = outlined(
        [detection(mask, 7, 0.9), detection(mask, 3, 0.2), detection(mask, 3, 0.5)], NAMES, (8, 8), 0.3
    )
    assert [one.label for one in found] == ["cat 0.50", "dog 0.90"]


def test_annotations_have_no_score_and_are_always_drawn() -> None:
    mask = square((8, 8), 1, 1, 4)
    (found,) = outlined([{"category_id": 3, "segmentation": run_lengths(mask)}], NAMES, (8, 8), 0.9)
    assert found.label == "cat"


def test_a_class_has_the_colour_of_its_place_among_all_names() -> None:
    mask = square((8, 8), 1, 1, 4)
    (found,) = outlined([detection(mask, 7, 0.9)], NAMES, (8, 8))
    assert found.place == 1


def test_polygons_and_run_lengths_are_drawn_alike() -> None:
    mask = square((8, 10), 2, 3, 4)
    uncompressed = {"size": [8, 10], "counts": [26, 4, 4, 4, 4, 4, 4, 4, 26]}
    for segmentation in ([[3, 2, 7, 2, 7, 6, 3, 6]], uncompressed, run_lengths(mask)):
        (found,) = outlined([{"category_id": 3, "segmentation": segmentation}], NAMES, (8, 10))
        np.testing.assert_array_equal(found.mask, mask)


def test_an_image_is_drawn_pixel_by_pixel_with_tinted_instances(tmp_path: Path) -> None:
    """One of 640 pixels keeps its size; an instance is tinted inside, and the rest is as it was."""
    mask = square((480, 640), 100, 200, 150)
    draw_masks(tmp_path / "picture", grey(480, 640), [detection(mask, 7, 0.9)], NAMES)
    pixels = read(tmp_path / "picture")
    assert pixels.shape == (480, 640, 3)
    np.testing.assert_allclose(pixels[200, 300], tint(128, 1), atol=2)
    np.testing.assert_array_equal(pixels[400, 500], (128, 128, 128))
    np.testing.assert_array_equal(pixels[5, 5], (128, 128, 128))


def test_a_small_image_is_enlarged(tmp_path: Path) -> None:
    draw_masks(tmp_path / "picture", grey(48, 64), [], NAMES)
    assert read(tmp_path / "picture").shape == (480, 640, 3)


def test_detections_below_the_threshold_leave_the_image_as_it_is(tmp_path: Path) -> None:
    mask = square((480, 640), 100, 200, 150)
    draw_masks(tmp_path / "picture", grey(480, 640), [detection(mask, 7, 0.4)], NAMES, 0.5)
    assert (read(tmp_path / "picture") == 128).all()


def test_a_picture_is_no_change_of_its_image(tmp_path: Path) -> None:
    image = grey(48, 64)
    draw_masks(tmp_path / "picture", image, [detection(square((48, 64), 5, 5, 20), 3, 0.9)], NAMES)
    assert (image == 128).all()


# -- supports, prediction and truth --------------------------------------------------------------------


def comparison_row(supports: int) -> Comparison:
    crop = (grey(24, 24, 40), Outlined(square((24, 24), 4, 4, 12), "cat", 0))
    predicted = [Outlined(square((48, 48), 4, 4, 30), "cat 0.80", 0)]
    truth = [Outlined(square((48, 48), 10, 10, 30), "dog", 1)]
    return Comparison([crop] * supports, grey(48, 48), predicted, truth)


def test_a_comparison_has_two_panels_and_the_crops_of_each_row(tmp_path: Path, figures: list[Figure]) -> None:
    draw_comparison(tmp_path / "picture", [comparison_row(4), comparison_row(1)])
    (figure,) = figures
    shown = [axes for axes in figure.axes if axes.get_images()]
    assert len(shown) == 4 + 1 + 2 * 2
    titles = [axes.get_title() for axes in figure.axes if axes.get_title()]
    assert titles == ["support examples", "prediction", "ground truth"]


def test_no_more_crops_are_drawn_than_asked_for(tmp_path: Path, figures: list[Figure]) -> None:
    draw_comparison(tmp_path / "picture", [comparison_row(5)], supports=2)
    shown = [axes for axes in figures[0].axes if axes.get_images()]
    assert len(shown) == 2 + 2


def test_a_prediction_is_left_of_the_truth(tmp_path: Path) -> None:
    draw_comparison(tmp_path / "picture", [comparison_row(0)])
    pixels = read(tmp_path / "picture")
    centres = []
    for place in (0, 1):
        columns = np.flatnonzero((np.abs(pixels - tint(128, place)).max(axis=-1) <= 3).any(axis=0))
        assert len(columns) > 50
        centres.append(columns.mean())
    assert centres[0] + 100 < centres[1]


# -- pooling -------------------------------------------------------------------------------------------


def test_pooling_shows_the_support_and_the_weights_of_every_level(
    tmp_path: Path, figures: list[Figure]
) -> None:
    weights = {
        16: np.eye(3, dtype=np.float32),
        8: np.zeros((6, 6), dtype=np.float32),
        32: np.ones((2, 2), dtype=np.float32),
    }
    draw_pooling(tmp_path / "picture", grey(48, 48), square((48, 48), 10, 10, 20), weights)
    panels = [axes for axes in figures[0].axes if axes.get_title()]
    assert [axes.get_title() for axes in panels] == [
        "support and mask",
        "stride 8: 6×6",
        "stride 16: 3×3",
        "stride 32: 2×2",
    ]
    for axes, stride in zip(panels[1:], (8, 16, 32), strict=True):
        np.testing.assert_array_equal(np.asarray(axes.get_images()[-1].get_array()), weights[stride])


def test_cells_of_pooling_lie_on_the_crop(tmp_path: Path, figures: list[Figure]) -> None:
    draw_pooling(tmp_path / "picture", grey(32, 48), square((32, 48), 4, 4, 20), {16: np.ones((2, 3))})
    axes = next(axes for axes in figures[0].axes if axes.get_title().startswith("stride 16"))
    assert {tuple(image.get_extent()) for image in axes.get_images()} == {(0, 48, 32, 0)}
    np.testing.assert_array_equal(axes.get_xticks(), [0, 16, 32, 48])
    np.testing.assert_array_equal(axes.get_yticks(), [0, 16, 32])


# -- numbers -------------------------------------------------------------------------------------------

VALUES = {
    "RefT": {"nAP": [10.0, 14.0], "bAP": [30.0, 31.0]},
    "Mask2Former + ft-full": {"nAP": [9.0, 11.0], "bAP": [33.0, 35.0]},
}


def test_bars_have_a_panel_for_each_metric_and_are_as_high_as_the_mean(
    tmp_path: Path, figures: list[Figure]
) -> None:
    draw_bars(tmp_path / "picture", VALUES, "gFSIS, 5 shots")
    (figure,) = figures
    assert [axes.get_title() for axes in figure.axes] == ["nAP", "bAP"]
    heights = [[bar.get_height() for bar in axes.patches] for axes in figure.axes]  # type: ignore[attr-defined]
    assert heights == [[12.0, 10.0], [30.5, 34.0]]
    dots = sorted(
        value for line in figure.axes[0].lines for value in np.atleast_1d(line.get_ydata()).tolist()
    )
    assert {9.0, 10.0, 11.0, 14.0} <= set(dots)


def test_the_interval_of_a_bar_is_that_of_its_seeds(tmp_path: Path, figures: list[Figure]) -> None:
    """1.96 · sqrt(8) / sqrt(2) on both sides of 12."""
    draw_bars(tmp_path / "picture", {"RefT": {"nAP": [10.0, 14.0]}})
    (segment,) = figures[0].axes[0].collections[0].get_segments()  # type: ignore[attr-defined]
    np.testing.assert_allclose(segment[:, 1], (12 - 3.92, 12 + 3.92), atol=1e-6)


def test_the_value_before_fine_tuning_is_a_line_in_its_panel_alone(
    tmp_path: Path, figures: list[Figure]
) -> None:
    draw_bars(tmp_path / "picture", VALUES, floors={"nAP": 2.5})
    dashed = [
        [line.get_ydata() for line in axes.lines if line.get_linestyle() == "--"] for axes in figures[0].axes
    ]
    assert [len(lines) for lines in dashed] == [1, 0]
    assert set(np.asarray(dashed[0][0]).tolist()) == {2.5}


def test_a_method_without_a_metric_has_no_bar(tmp_path: Path, figures: list[Figure]) -> None:
    draw_bars(tmp_path / "picture", {"RefT": {"nAP": [10.0]}, "other": {"nAP": [9.0], "bAP": [8.0]}})
    assert [len(axes.patches) for axes in figures[0].axes] == [2, 1]


def test_gains_are_ordered_novel_classes_first_the_largest_on_top(
    tmp_path: Path, figures: list[Figure]
) -> None:
    draw_per_class_gain(
        tmp_path / "picture", {"zero": -1.0, "one": 4.0}, {"seven": 0.5, "eight": 2.5}, "RefT less other"
    )
    axes = figures[0].axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["eight", "seven", "one", "zero"]
    assert [bar.get_width() for bar in axes.patches] == [2.5, 0.5, 4.0, -1.0]  # type: ignore[attr-defined]
    legend = axes.get_legend()
    assert legend is not None
    assert {text.get_text() for text in legend.get_texts()} == {"novel, mean +1.5", "base, mean +1.5"}


def test_gains_of_base_classes_alone_are_drawn(tmp_path: Path, figures: list[Figure]) -> None:
    draw_per_class_gain(tmp_path / "picture", {"zero": 1.0}, {}, "RefT less other")
    assert len(figures[0].axes[0].patches) == 1


def test_an_ablation_has_a_panel_for_each_study(tmp_path: Path, figures: list[Figure]) -> None:
    studies = {
        "top k": VALUES,
        "classifier": VALUES,
        "aggregation": VALUES,
        "frozen": {"RefT": VALUES["RefT"]},
    }
    draw_ablation(tmp_path / "picture", studies, ("nAP", "bAP"))
    titled = [axes for axes in figures[0].axes if axes.get_title()]
    assert [axes.get_title() for axes in titled] == list(studies)
    drawn = [line for line in titled[0].lines if line.get_marker() == "D"]
    means = {float(value) for line in drawn for value in np.atleast_1d(line.get_xdata()).tolist()}
    assert means == {12.0, 10.0, 30.5, 34.0}


DRAWINGS: dict[str, Callable[[Path], None]] = {
    "an empty mask": lambda path: draw_comparison(
        path, [Comparison([], grey(8, 8), [Outlined(np.zeros((8, 8), bool), "cat", 0)], [])]
    ),
    "bars of one seed": lambda path: draw_bars(path, {"RefT": {"nAP": [1.0]}}),
    "gains": lambda path: draw_per_class_gain(path, {"zero": 1.0}, {"seven": -2.0}, "gain"),
    "ablation": lambda path: draw_ablation(path, {"study": VALUES}, ("nAP",)),
}


@pytest.mark.parametrize("draw", DRAWINGS.values(), ids=DRAWINGS.keys())
def test_pictures_are_written_whatever_the_ending_of_their_name(
    draw: Callable[[Path], None], tmp_path: Path
) -> None:
    path = tmp_path / "picture"  # no ending, as a temporary file of a run
    draw(path)
    pixels = read(path)
    assert min(pixels.shape[:2]) > 80
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 20  # not blank


# -- segmenting ----------------------------------------------------------------------------------------


def save_pair(folder: Path, name: str, mask: NDArray[np.bool_], level: int = 255) -> Path:
    """A picture and its mask."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    Image.fromarray(grey(*mask.shape)).save(path)
    Image.fromarray(mask.astype(np.uint8) * level).save(folder / f"{path.stem}.mask.png")
    return path


def test_what_is_not_black_is_the_instance(tmp_path: Path) -> None:
    mask = square((20, 30), 3, 5, 9)
    path = save_pair(tmp_path, "one.jpg", mask, level=1)
    np.testing.assert_array_equal(read_mask(path).numpy(), mask)


def test_masks_are_no_pictures_and_pictures_come_by_name(tmp_path: Path) -> None:
    for name in ("b.png", "a.JPG", "a.mask.png", "notes.txt", "c.webp"):
        (tmp_path / name).touch()
    assert [path.name for path in pictures_of(tmp_path)] == ["a.JPG", "b.png", "c.webp"]


def test_a_folder_per_class_becomes_annotations_of_cocos_form(tmp_path: Path) -> None:
    first, second = square((20, 30), 3, 5, 9), square((24, 16), 0, 0, 4)
    save_pair(tmp_path / "dog", "x.png", first)
    save_pair(tmp_path / "cat", "y.png", second)
    save_pair(tmp_path / "dog", "z.png", second)
    annotations, folder = read_support_folder(tmp_path)
    assert folder == tmp_path
    assert {number: category["name"] for number, category in annotations.cats.items()} == {1: "cat", 2: "dog"}
    found = {
        annotations.imgs[one["image_id"]]["file_name"]: (one["category_id"], one["bbox"], one["area"])
        for one in annotations.dataset["annotations"]
    }
    assert found == {
        "cat/y.png": (1, [0, 0, 4, 4], 16),
        "dog/x.png": (2, [5, 3, 9, 9], 81),
        "dog/z.png": (2, [0, 0, 4, 4], 16),
    }


def test_a_listed_support_folder_is_read_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "instances.json").write_text('{"images": [], "annotations": [], "categories": []}')
    save_pair(tmp_path / "dog", "x.png", square((20, 30), 3, 5, 9))
    annotations, _ = read_support_folder(tmp_path)
    assert not annotations.cats


def test_support_folders_that_cannot_be_used_are_refused(tmp_path: Path) -> None:
    with pytest.raises(TenfoldError, match="there is no support folder"):
        read_support_folder(tmp_path / "absent")
    with pytest.raises(TenfoldError, match=r"has no instances\.json and no folder of a class"):
        read_support_folder(tmp_path)


def test_detections_of_two_images_are_annotations_of_cocos_form() -> None:
    first, second = square((8, 8), 1, 1, 4), square((8, 8), 2, 2, 3)
    found = [[detection(first, 1, 0.9), detection(second, 2, 0.6)], [detection(second, 2, 0.8)]]
    content = as_coco(found, [("a.jpg", (8, 8)), ("b.jpg", (8, 8))], ("cat", "dog"))
    assert content["categories"] == [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]
    assert [(one["id"], one["file_name"]) for one in content["images"]] == [(1, "a.jpg"), (2, "b.jpg")]
    assert [(one["id"], one["image_id"], one["area"]) for one in content["annotations"]] == [
        (1, 1, 16.0),
        (2, 1, 9.0),
        (3, 2, 9.0),
    ]
