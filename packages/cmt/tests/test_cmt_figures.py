"""Pictures: where edges of boxes are in an image, and that something is drawn of all kinds of samples."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

from tenfold.cmt.config import CAMERAS, CLASSES
from tenfold.cmt.decoding import Detections
from tenfold.cmt.evaluation import Curve
from tenfold.cmt.figures import (
    COLOURS,
    draw_conditions,
    draw_detections,
    draw_precision_recall,
    draw_sensor_loss,
    project_edges,
)

Array = NDArray[np.float64]
SIZE = (90, 160)
RANGE = (-16.0, -16.0, -2.0, 16.0, 16.0, 6.0)


def lidar2image(yaw_degrees: float) -> Array:
    """Of a camera at the LiDAR's place that looks along y, turned counter-clockwise: x right, y down, z forward."""
    yaw = np.deg2rad(yaw_degrees)
    forward = np.array([-np.sin(yaw), np.cos(yaw), 0.0])
    right = np.array([np.cos(yaw), np.sin(yaw), 0.0])
    camera = np.eye(4)
    camera[:3, :3] = np.stack((right, [0.0, 0.0, -1.0], forward))
    intrinsic = np.eye(4)
    intrinsic[:3, :3] = [[80.0, 0.0, 80.0], [0.0, 80.0, 45.0], [0.0, 0.0, 1.0]]
    return np.asarray(intrinsic @ camera)


MATRICES = np.stack([lidar2image(angle) for angle in (0, -55, 55, 180, 110, -110)])
AHEAD = np.array([[0.0, 10.0, -1.0, 4.0, 2.0, 1.5, 0.3, 0.0, 0.0]])
AROUND = np.array([[1.0, 0.5, -1.0, 6.0, 4.0, 2.0, 0.4, 0.0, 0.0]])
"""Stands around the camera: some of its edges pass behind it."""
BEHIND = np.array([[0.0, -10.0, -1.0, 4.0, 2.0, 1.5, 0.3, 0.0, 0.0]])


def pixel(point: Array, matrix: Array) -> Array:
    x, y, depth = (matrix @ np.append(point, 1.0))[:3]
    return np.array([x / depth, y / depth])


def corners_by_hand(box: Array) -> Array:
    """[8, 3], signs of the half sizes counted up in x, y and z."""
    x, y, bottom, length, width, height, yaw = box[:7]
    found = []
    for side_x in (-1, 1):
        for side_y in (-1, 1):
            for side_z in (0, 1):
                along, across = side_x * length / 2, side_y * width / 2
                found.append(
                    (
                        x + along * np.cos(yaw) - across * np.sin(yaw),
                        y + along * np.sin(yaw) + across * np.cos(yaw),
                        bottom + side_z * height,
                    )
                )
    return np.array(found)


def edges_by_hand(box: Array) -> list[tuple[Array, Array]]:
    """Pairs of corners that differ in one sign, and the heading on the ground."""
    corners = corners_by_hand(box)
    pairs = [(one, two) for one in range(8) for two in range(one) if bin(one ^ two).count("1") == 1]
    front = box[:3] + box[3] / 2 * np.array([np.cos(box[6]), np.sin(box[6]), 0.0])
    return [(corners[one], corners[two]) for one, two in pairs] + [(box[:3], front)]


def distance_to_segments(point: Array, ends: Array) -> float:
    """Least distance of a pixel from segments [E, 2, 2]."""
    direction = ends[:, 1] - ends[:, 0]
    length = (direction**2).sum(-1)
    part = ((point - ends[:, 0]) * direction).sum(-1) / np.where(length > 0, length, 1)
    nearest = ends[:, 0] + np.clip(part, 0, 1)[:, None] * direction
    return float(np.linalg.norm(nearest - point, axis=-1).min())


# -- edges in an image -----------------------------------------------------------------------------------


@pytest.mark.parametrize("box", [AHEAD, AROUND], ids=["ahead", "around the camera"])
def test_every_part_of_an_edge_before_the_camera_lies_on_a_drawn_edge(box: Array) -> None:
    ends, _ = project_edges(box, MATRICES[0])
    seen = 0
    for first, last in edges_by_hand(box[0]):
        for part in np.linspace(0, 1, 101):
            point = first + part * (last - first)
            if point[1] > 0.2:  # depth of this camera
                target = pixel(point, MATRICES[0])
                assert distance_to_segments(target, ends) < 1e-6 * max(1.0, np.abs(target).max())
                seen += 1
    assert seen > 100


@pytest.mark.parametrize("box", [AHEAD, AROUND], ids=["ahead", "around the camera"])
def test_every_part_of_a_drawn_edge_is_the_image_of_a_point_of_the_box(box: Array) -> None:
    """Ends lie on edges of the solid at or before the least depth, so all between them does."""
    ends, place = project_edges(box, MATRICES[0])
    assert np.isfinite(ends).all()
    assert (place == 0).all()
    dense = [
        pixel(point, MATRICES[0])
        for first, last in edges_by_hand(box[0])
        for point in first + np.linspace(0, 1, 4001)[:, None] * (last - first)
        if point[1] >= 0.2 - 1e-3
    ]
    for end in ends.reshape(-1, 2):
        nearest = np.linalg.norm(np.array(dense) - end, axis=1).min()
        assert nearest < 0.02 * max(10.0, np.abs(end).max())


def test_a_box_ahead_has_twelve_edges_and_its_heading() -> None:
    ends, place = project_edges(AHEAD, MATRICES[0])
    assert ends.shape == (13, 2, 2)
    assert place.tolist() == [0] * 13


def test_a_box_behind_the_camera_has_no_edges() -> None:
    ends, place = project_edges(BEHIND, MATRICES[0])
    assert len(ends) == len(place) == 0


def test_edges_know_their_box() -> None:
    boxes = np.concatenate((BEHIND, AHEAD, AHEAD + np.eye(9)[0]))
    _, place = project_edges(boxes, MATRICES[0])
    assert np.bincount(place, minlength=3).tolist() == [0, 13, 13]


def test_no_boxes_have_no_edges() -> None:
    ends, place = project_edges(np.zeros((0, 9)), MATRICES[0])
    assert ends.shape == (0, 2, 2)
    assert place.shape == (0,)


# -- samples ---------------------------------------------------------------------------------------------


def detections(boxes: Array, scores: list[float], labels: list[int]) -> Detections:
    return Detections(torch.from_numpy(boxes).float(), torch.tensor(scores), torch.tensor(labels))


NOTHING = detections(np.zeros((0, 9)), [], [])
FOUND = detections(np.concatenate((AHEAD, AROUND, BEHIND)), [0.9, 0.5, 0.4], [0, 5, 8])


def colour(name: str) -> Array:
    return np.array([int(COLOURS[name][start : start + 2], 16) for start in (1, 3, 5)], dtype=float)


def share(path: Path, name: str) -> float:
    """Of the picture's pixels that have about the colour of a class."""
    with Image.open(path) as picture:
        assert picture.format == "PNG"
        pixels = np.asarray(picture.convert("RGB")).astype(float)
    return float((np.abs(pixels - colour(name)).max(axis=-1) <= 8).mean())


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """All figures that are saved while the test runs."""
    saved: list[Figure] = []
    save = Figure.savefig

    def keep(figure: Figure, *arguments: Any, **options: Any) -> None:
        saved.append(figure)
        save(figure, *arguments, **options)

    monkeypatch.setattr(Figure, "savefig", keep)
    return saved


def draw(path: Path, images: bool, points: bool, found: Detections, truth: Array, threshold: float) -> None:
    generator = np.random.default_rng(0)
    draw_detections(
        path,
        np.full((len(CAMERAS), *SIZE, 3), 90, dtype=np.uint8) if images else None,
        MATRICES,
        generator.uniform(-20, 20, (500, 5)) if points else None,
        truth,
        np.zeros(len(truth), dtype=np.int64),
        found,
        "a sample",
        RANGE,
        threshold,
    )


@pytest.mark.parametrize(
    ("images", "points"),
    [(True, True), (True, False), (False, True), (False, False)],
    ids=["both", "cameras", "LiDAR", "neither"],
)
def test_boxes_are_drawn_whatever_sensors_there_are(
    images: bool, points: bool, drawn: list[Figure], tmp_path: Path
) -> None:
    path = tmp_path / "sample.png"
    draw(path, images, points, FOUND, AHEAD, 0.3)
    panels = [axes for axes in drawn[0].get_axes() if axes.get_title()]
    assert len(panels) == (8 if images else 2)
    assert panels[-2].get_title() == "prediction, score at least 0.3: 3 boxes"
    assert panels[-1].get_title() == "ground truth: 1 box"
    for name in ("car", "barrier", "pedestrian"):
        assert share(path, name) > 0, name


def test_a_sample_without_detections_and_truth_is_drawn(drawn: list[Figure], tmp_path: Path) -> None:
    draw(tmp_path / "sample.png", True, True, NOTHING, np.zeros((0, 9)), 0.3)
    titles = [axes.get_title() for axes in drawn[0].get_axes()]
    assert titles[-2:] == ["prediction, score at least 0.3: 0 boxes", "ground truth: 0 boxes"]
    with Image.open(tmp_path / "sample.png") as picture:
        assert len(picture.convert("RGB").getcolors(1 << 24) or ()) > 20


def test_only_cameras_that_a_box_is_before_show_it(drawn: list[Figure], tmp_path: Path) -> None:
    draw(tmp_path / "sample.png", True, False, detections(BEHIND, [0.9], [0]), np.zeros((0, 9)), 0.3)
    shown = {
        axes.get_title(): len(collection.get_paths())
        for axes in drawn[0].get_axes()[:6]
        for collection in axes.collections
    }
    assert shown["back"] == 13
    assert shown["front"] == shown["front left"] == shown["front right"] == 0


def test_detections_below_the_threshold_are_not_drawn(drawn: list[Figure], tmp_path: Path) -> None:
    draw(tmp_path / "sample.png", False, True, FOUND, np.zeros((0, 9)), 0.45)
    assert drawn[0].get_axes()[0].get_title() == "prediction, score at least 0.45: 2 boxes"


def test_images_are_shown_with_red_where_it_is_red(drawn: list[Figure], tmp_path: Path) -> None:
    """Images of a sample are blue first."""
    images = np.zeros((6, *SIZE, 3), dtype=np.uint8)
    images[..., 2] = 255
    draw_detections(
        tmp_path / "red.png", images, MATRICES, None, np.zeros((0, 9)), np.zeros(0, np.int64), NOTHING, "red", RANGE
    )  # fmt: skip
    shown = drawn[0].get_axes()[0].get_images()[0].get_array()
    assert shown is not None
    assert np.asarray(shown)[0, 0].tolist() == [255, 0, 0]


def test_every_class_has_a_colour_of_its_own() -> None:
    assert set(COLOURS) == set(CLASSES)
    assert len(set(COLOURS.values())) == len(CLASSES)


# -- numbers ---------------------------------------------------------------------------------------------


def test_a_curve_is_drawn_in_the_panel_of_its_class(drawn: list[Figure], tmp_path: Path) -> None:
    recall = np.linspace(0, 1, 101)
    draw_precision_recall(tmp_path / "curves.png", {"CMT": {"bus": Curve(recall, 1 - recall)}}, "curves")
    lines = {axes.get_title(): axes.get_lines() for axes in drawn[0].get_axes()}
    assert set(lines) == {name.replace("_", " ") for name in CLASSES}
    assert [name for name, of_class in lines.items() if of_class] == ["bus"]
    assert np.array_equal(lines["bus"][0].get_ydata(), 1 - recall)


def test_bars_of_conditions_are_means_over_seeds(drawn: list[Figure], tmp_path: Path) -> None:
    values = {"A": {"both": [10.0, 20.0], "no LiDAR": [4.0]}, "B": {"both": [30.0]}}
    draw_conditions(tmp_path / "conditions.png", values, "mAP")
    (axes,) = drawn[0].get_axes()
    assert sorted(bar.get_height() for bar in axes.patches) == pytest.approx([4.0, 15.0, 30.0])  # type: ignore[attr-defined]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["both", "no LiDAR"]


def test_lost_sensors_are_rows_beside_the_whole(drawn: list[Figure], tmp_path: Path) -> None:
    draw_sensor_loss(tmp_path / "loss.png", {"A": {"both": [10.0, 14.0], "16 beams": [6.0]}}, "NDS")
    (axes,) = drawn[0].get_axes()
    assert [label.get_text() for label in axes.get_yticklabels()] == ["both", "16 beams"]
    diamonds = [line.get_xdata() for line in axes.get_lines() if line.get_marker() == "D"]
    assert [float(np.squeeze(at)) for at in diamonds] == [12.0, 6.0]


@pytest.mark.parametrize("values", [{}, {"A": {"both": [0.0]}}], ids=["nothing", "zeros"])
def test_conditions_without_numbers_are_drawn(values: Any, tmp_path: Path) -> None:
    draw_conditions(tmp_path / "conditions.png", values, "mAP")
    assert (tmp_path / "conditions.png").stat().st_size > 1000
