"""Pictures for the run records, the README and the command line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure, SubFigure
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from tenfold.cmt.box_geometry import box_corners, transform_points
from tenfold.cmt.config import CAMERAS, CLASSES
from tenfold.cmt.decoding import Detections

if TYPE_CHECKING:
    from tenfold.cmt.evaluation import Curve

FloatArray = NDArray[np.floating[Any]]

COLOURS = {
    "car": "#56b4e9",
    "truck": "#e69f00",
    "construction_vehicle": "#f0e442",
    "bus": "#00c48f",
    "trailer": "#ffffff",
    "barrier": "#d55e00",
    "motorcycle": "#b39ddb",
    "bicycle": "#2f7bff",
    "pedestrian": "#ff6fb5",
    "traffic_cone": "#a86b32",
}
"""Of classes, on photographs and on a dark ground; told apart by most colour-blind people."""
_SERIES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
"""Of methods, on white (Okabe and Ito)."""
_GROUND = "#16191d"
_NEAR = 0.2
"""Depth in metres before which nothing is drawn."""
_LAYOUT = (
    *("CAM_FRONT_LEFT", "CAM_FRONT", "CAM_FRONT_RIGHT"),
    *("CAM_BACK_LEFT", "CAM_BACK", "CAM_BACK_RIGHT"),
)
_EDGES = np.array(
    [(0, 1), (1, 2), (2, 3), (3, 0), (4, 5), (5, 6), (6, 7), (7, 4), (0, 4), (1, 5), (2, 6), (3, 7), (8, 9)]
)
"""Twelve edges of a box, and the heading: from the middle of the bottom to its front."""


def draw_detections(
    path: Path,
    images: NDArray[np.uint8] | None,
    lidar2image: FloatArray,
    points: FloatArray | None,
    truth_boxes: FloatArray,
    truth_labels: NDArray[np.integer[Any]],
    detections: Detections,
    title: str,
    point_range: Sequence[float],
    threshold: float = 0.3,
) -> None:
    """What was found in a sample: in the cameras, and from above beside the ground truth.

    Args:
        path: of the picture.
        images: [V, H, W, 3], blue first, in the order of :data:`tenfold.cmt.config.CAMERAS`; None without cameras.
        lidar2image: [V, 4, 4], LiDAR frame to pixels of these images, times depth.
        points: [P, 3 or more] in the LiDAR frame; None without LiDAR.
        truth_boxes: [N, 9] in the LiDAR frame.
        truth_labels: [N].
        detections: in the LiDAR frame.
        title: above the picture.
        point_range: least x, y, z and greatest x, y, z that is drawn from above, in metres.
        threshold: least score that is drawn.
    """
    boxes, _, labels = detections.above(threshold).numpy()
    camera_height = 0.01 if images is None else 0.5 + 8 * images.shape[1] / images.shape[2]
    above_height = 0.6 + 5.6 * (point_range[4] - point_range[1]) / (point_range[3] - point_range[0])
    heights = (camera_height, above_height, 0.55)
    figure = Figure(figsize=(12, 0.3 + sum(heights)))
    figure.set_layout_engine("constrained", w_pad=0.03, h_pad=0.03, wspace=0.01, hspace=0.01)
    grid = figure.add_gridspec(3, 1, height_ratios=heights)
    cameras, above, legend = (figure.add_subfigure(grid[row]) for row in range(3))
    if images is not None:
        for axes, camera in zip(cameras.subplots(2, 3).flat, _LAYOUT, strict=True):
            place = CAMERAS.index(camera)
            _draw_camera(axes, images[place], lidar2image[place], boxes, labels)
            axes.set_title(camera.removeprefix("CAM_").replace("_", " ").lower(), fontsize=9, pad=3)
    found = _within(boxes, labels, point_range)
    there = _within(truth_boxes, truth_labels, point_range)
    names = (f"prediction, score at least {threshold:g}", "ground truth")
    for axes, name, drawn in zip(above.subplots(1, 2, sharey=True), names, (found, there), strict=True):
        _draw_above(axes, points, *drawn, point_range)
        axes.set_title(f"{name}: {len(drawn[0])} {'box' if len(drawn[0]) == 1 else 'boxes'}", fontsize=10)
        axes.set_xlabel("x, to the right (m)", fontsize=8)
    above.axes[0].set_ylabel("y, forward (m)", fontsize=8)
    shown = found[1] if images is None else labels
    _class_legend(legend, {*shown.tolist(), *there[1].tolist()})
    figure.suptitle(title, fontsize=12)
    _save(figure, path)


def project_edges(
    boxes: FloatArray, lidar2image: FloatArray, near: float = _NEAR
) -> tuple[FloatArray, NDArray[np.intp]]:
    """Edges of boxes in an image, cut off where they pass behind the camera.

    Args:
        boxes: [N, 7 or more] in the LiDAR frame.
        lidar2image: [4, 4].
        near: depth in metres at which edges are cut.

    Returns:
        Ends in pixels, [E, 2, 2], of those edges (and heading lines) that are at least partly in front; and the box of
        each, [E].
    """
    ends = transform_points(_skeletons(boxes)[:, _EDGES], lidar2image)
    depth = ends[..., 2]
    place, edge = np.nonzero((depth > near).any(axis=-1))
    ends, depth = ends[place, edge], depth[place, edge]
    behind = depth <= near
    step = np.where(behind.any(axis=-1), depth[:, 1] - depth[:, 0], 1.0)
    cut = ends[:, 0] + ((near - depth[:, 0]) / step)[:, None] * (ends[:, 1] - ends[:, 0])
    ends = np.where(behind[..., None], cut[:, None], ends)
    return ends[..., :2] / ends[..., 2:], place


def draw_precision_recall(path: Path, curves: Mapping[str, Mapping[str, Curve]], title: str) -> None:
    """Precision over recall, one panel for each class.

    Args:
        path: of the picture.
        curves: name of a method, a sensor condition or a threshold to class to its curve.
        title: above the picture.
    """
    figure = Figure(figsize=(12, 5.6), layout="constrained")
    panels = figure.subplots(2, 5, sharex=True, sharey=True)
    for axes, name in zip(panels.flat, CLASSES, strict=True):
        for of_class, colour in zip(curves.values(), _cycle(len(curves)), strict=True):
            if name in of_class:
                axes.plot(of_class[name].recall, of_class[name].precision, color=colour, linewidth=1.6)
        axes.set_title(_plain_name(name), fontsize=10)
        axes.set(xlim=(0, 1.01), ylim=(0, 1.03), xticks=(0, 0.5, 1), yticks=(0, 0.5, 1))
        axes.set_xticklabels(("0", "0.5", "1"))
        _plain(axes, across="both")
    figure.supxlabel("recall", fontsize=10)
    figure.supylabel("precision", fontsize=10)
    _series_legend(figure, list(curves), title)
    _save(figure, path)


def draw_conditions(
    path: Path, values: Mapping[str, Mapping[str, Sequence[float]]], metric: str, title: str = ""
) -> None:
    """A metric under sensor conditions: bars of means, and a dot for each seed.

    Args:
        path: of the picture.
        values: method to condition to values, one for each seed.
        metric: what the values are, mAP or NDS in per cent.
        title: above the picture.
    """
    conditions = list(dict.fromkeys(condition for of_method in values.values() for condition in of_method))
    width = 0.8 / max(1, len(values))
    inches = 1.6 + len(conditions) * max(1.0, 0.2 + 0.48 * len(values))
    figure = Figure(figsize=(max(5.0, inches), 4.2), layout="constrained")
    axes = figure.subplots()
    for shift, (of_method, colour) in enumerate(zip(values.values(), _cycle(len(values)), strict=True)):
        for place, condition in enumerate(conditions):
            at = place + width * (shift - (len(values) - 1) / 2)
            _bar(axes, at, width, of_method.get(condition, ()), colour)
    axes.set_xticks(range(len(conditions)), [_wrapped(name) for name in conditions], fontsize=9)
    axes.set_xlim(-0.6, len(conditions) - 0.4)
    axes.set_ylabel(f"{metric} (per cent); dots are seeds")
    axes.margins(y=0.12)
    axes.set_ylim(0, max(1.0, axes.get_ylim()[1]))
    _plain(axes)
    _series_legend(figure, list(values), title)
    _save(figure, path)


def draw_sensor_loss(
    path: Path, values: Mapping[str, Mapping[str, Sequence[float]]], metric: str, title: str = ""
) -> None:
    """A metric when single cameras or beams fail, one line for each loss, the first being no loss.

    Args:
        path: of the picture.
        values: method to loss to values, one for each seed; a dashed line marks the first loss's mean.
        metric: what the values are, mAP or NDS in per cent.
        title: above the picture.
    """
    losses = list(dict.fromkeys(loss for of_method in values.values() for loss in of_method))
    figure = Figure(figsize=(7.2, 1.5 + 0.36 * len(losses)), layout="constrained")
    axes = figure.subplots()
    for shift, (of_method, colour) in enumerate(zip(values.values(), _cycle(len(values)), strict=True)):
        drawn = [(row, of_method[loss]) for row, loss in enumerate(losses) if of_method.get(loss)]
        for row, seeds in drawn:
            at = row + 0.24 * (shift - (len(values) - 1) / 2)
            axes.plot(seeds, [at] * len(seeds), ".", color=colour, alpha=0.45)
            axes.plot(np.mean(seeds), at, "D", color=colour, markersize=6)
        if of_method.get(losses[0]):
            axes.axvline(float(np.mean(of_method[losses[0]])), color=colour, linestyle="--", linewidth=1)
    axes.set_yticks(range(len(losses)), losses, fontsize=9)
    axes.set_ylim(len(losses) - 0.4, -0.6)
    axes.set_xlabel(f"{metric} (per cent); diamonds are means over seeds, dots are seeds")
    _plain(axes, across="both")
    _series_legend(figure, list(values), title)
    _save(figure, path)


# -- parts -----------------------------------------------------------------------------------------------


def _draw_camera(
    axes: Axes,
    image: NDArray[np.uint8],
    lidar2image: FloatArray,
    boxes: FloatArray,
    labels: NDArray[np.int64],
) -> None:
    axes.imshow(image[..., ::-1], interpolation="antialiased")
    edges, place = project_edges(boxes, lidar2image)
    height, width = image.shape[:2]
    limits = np.array([width, height])
    near = ((edges.max(axis=1) >= 0) & (edges.min(axis=1) <= limits)).all(axis=-1)
    colours = [COLOURS[CLASSES[label]] for label in labels[place[near]]]
    axes.add_collection(LineCollection(list(edges[near]), colors=colours, linewidths=1.0), autolim=False)
    axes.set(xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5))
    axes.set_axis_off()


def _draw_above(
    axes: Axes,
    points: FloatArray | None,
    boxes: FloatArray,
    labels: NDArray[np.integer[Any]],
    point_range: Sequence[float],
) -> None:
    axes.set_facecolor(_GROUND)
    if points is not None:
        low, high = np.array(point_range[:3]), np.array(point_range[3:])
        inside = points[((points[:, :3] >= low) & (points[:, :3] <= high)).all(axis=1)]
        axes.plot(inside[:, 0], inside[:, 1], ",", color="#8a94a0", alpha=0.85, rasterized=True)
    footprint = _skeletons(boxes)[..., :2]
    colours = [COLOURS[CLASSES[label]] for label in labels]
    lines = [*footprint[:, [0, 1, 2, 3, 0]], *footprint[:, [8, 9]]]
    axes.add_collection(LineCollection(lines, colors=colours * 2, linewidths=1.3), autolim=False)
    axes.plot(0, 0, marker="^", color="white", markersize=7, markeredgecolor=_GROUND)
    axes.set(xlim=(point_range[0], point_range[3]), ylim=(point_range[1], point_range[4]), aspect="equal")
    axes.tick_params(labelsize=8)


def _within(
    boxes: FloatArray, labels: NDArray[np.integer[Any]], point_range: Sequence[float]
) -> tuple[FloatArray, NDArray[np.integer[Any]]]:
    """Boxes with their centre in the range from above, and their labels."""
    low, high = np.array(point_range[:2]), np.array(point_range[3:5])
    inside = ((boxes[:, :2] >= low) & (boxes[:, :2] <= high)).all(axis=1)
    return boxes[inside], labels[inside]


def _skeletons(boxes: FloatArray) -> FloatArray:
    """Corners, then the middle of the bottom and of its front edge: [N, 10, 3]."""
    corners = box_corners(boxes)
    middle, front = corners[:, :4].mean(axis=1), corners[:, 1:3].mean(axis=1)
    return np.concatenate((corners, middle[:, None], front[:, None]), axis=1)


def _bar(axes: Axes, at: float, width: float, seeds: Sequence[float], colour: str) -> None:
    """The mean of the seeds with its value, and a dot for each."""
    if not seeds:
        return
    mean = float(np.mean(seeds))
    axes.bar(at, mean, 0.92 * width, color=colour, alpha=0.5)
    across = at + width * np.linspace(-0.25, 0.25, len(seeds)) if len(seeds) > 1 else [at]
    axes.plot(across, seeds, "o", color=colour, markersize=4, markeredgecolor="white", markeredgewidth=0.6)
    top = max(seeds)
    axes.annotate(
        f"{mean:.1f}", (at, top), xytext=(0, 4), textcoords="offset points", ha="center", fontsize=8
    )


def _class_legend(figure: SubFigure, labels: set[int]) -> None:
    handles = [
        Line2D([], [], color=COLOURS[name], linewidth=2.5, label=_plain_name(name))
        for place, name in enumerate(CLASSES)
        if place in labels
    ]
    if handles:
        figure.legend(
            handles=handles,
            loc="center",
            ncols=5,
            fontsize=9,
            facecolor=_GROUND,
            edgecolor=_GROUND,
            framealpha=1.0,
            labelcolor="white",
        )


def _series_legend(figure: Figure, names: Sequence[str], title: str) -> None:
    handles = [
        Line2D([], [], color=colour, linewidth=3, label=name)
        for name, colour in zip(names, _cycle(len(names)), strict=True)
    ]
    figure.legend(
        handles=handles,
        loc="outside upper center",
        ncols=min(4, len(names)),
        fontsize=9,
        frameon=False,
        title=title,
        title_fontsize=12,
    )


def _cycle(number: int) -> list[str]:
    return [_SERIES[place % len(_SERIES)] for place in range(number)]


def _plain_name(name: str) -> str:
    return name.replace("_", " ")


def _wrapped(name: str) -> str:
    return name.replace(", ", ",\n")


def _plain(axes: Axes, across: Literal["x", "y", "both"] = "y") -> None:
    axes.grid(alpha=0.3, axis=across)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _save(figure: Figure, path: Path) -> None:
    figure.savefig(path, format="png", dpi=120)
