"""Pictures for the run records, the README and the command line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from pycocotools import mask as mask_utils

from tenfold.reft.evaluation import confidence_interval

Image = NDArray[np.uint8]
Mask = NDArray[np.bool_]

PALETTE = (
    "#e6194b",
    "#3cb44b",
    "#4363d8",
    "#f58231",
    "#911eb4",
    "#00a9c0",
    "#d636c9",
    "#7f9f00",
    "#b5651d",
    "#008080",
)
"""Colours of classes, by their place; they repeat."""
_NOVEL, _BASE = "#d1495b", "#30638e"


@dataclass(frozen=True)
class Outlined:
    """An instance to draw."""

    mask: Mask
    """[H, W], of the image's size."""
    label: str
    """What is written beside it."""
    place: int
    """Of its class, which decides the colour."""


@dataclass(frozen=True)
class Comparison:
    """One row of :func:`draw_comparison`."""

    supports: Sequence[tuple[Image, Outlined]]
    """Support crops [h, w, 3] with the instance in each."""
    image: Image
    """Query image [H, W, 3]."""
    predicted: Sequence[Outlined]
    """Instances that were found."""
    truth: Sequence[Outlined]
    """Instances that are there."""


def outlined(
    instances: Sequence[Mapping[str, Any]],
    names: Mapping[int, str],
    size: tuple[int, int],
    threshold: float = 0.0,
) -> list[Outlined]:
    """Annotations, or detections with the best last, to be drawn.

    Args:
        instances: in COCO's form, with polygons or run lengths.
        names: number of a category to its name.
        size: height and width of their image.
        threshold: lowest score of a detection; annotations have none.
    """
    places = {number: place for place, number in enumerate(sorted(names))}
    found = []
    for instance in sorted(instances, key=lambda instance: float(instance.get("score", 1.0))):
        if instance.get("score", 1.0) < threshold:
            continue
        number = instance["category_id"]
        score = f" {instance['score']:.2f}" if "score" in instance else ""
        mask = _decode(instance["segmentation"], size)
        found.append(Outlined(mask, f"{names[number]}{score}", places[number]))
    return found


def draw_comparison(path: Path, rows: Sequence[Comparison], supports: int = 6) -> None:
    """Support examples, what was found with them, and what is there, side by side.

    Args:
        path: of the picture.
        rows: one for each query image.
        supports: most support crops of a row.
    """
    columns = max(1, (min(supports, max(len(row.supports) for row in rows)) + 1) // 2)
    figure = Figure(figsize=(6.0 + 1.5 * columns, 3.0 * len(rows) + 0.3))
    figure.set_layout_engine("constrained", w_pad=0.03, h_pad=0.03, wspace=0.02, hspace=0.02)
    grid = figure.add_gridspec(len(rows), 3, width_ratios=(1.5 * columns, 3, 3))
    for line, row in enumerate(rows):
        crops = grid[line, 0].subgridspec(2, columns).subplots(squeeze=False)
        for axes in crops.flat:
            axes.set_axis_off()
        # Down the columns, so that two supports stand one above the other.
        for axes, (crop, instance) in zip(crops.T.flat, row.supports[:supports], strict=False):
            _show(axes, crop, [instance], font_size=6)
        panels = [figure.add_subplot(grid[line, column]) for column in (1, 2)]
        for axes, instances in zip(panels, (row.predicted, row.truth), strict=True):
            _show(axes, row.image, instances)
            axes.set_anchor("N")
        if line == 0:
            titles = ("support examples", "prediction", "ground truth")
            for axes, title in zip((crops[0, (columns - 1) // 2], *panels), titles, strict=True):
                axes.set_title(title, fontsize=10)
    _save(figure, path)


def draw_masks(
    path: Path,
    image: Image,
    detections: Sequence[Mapping[str, Any]],
    names: Mapping[int, str],
    threshold: float = 0.5,
) -> None:
    """An image with what was found in it, pixel by pixel.

    Args:
        path: of the picture.
        image: [H, W, 3].
        detections: in COCO's form of results, of this image.
        names: number of a category to its name.
        threshold: lowest score that is drawn.
    """
    height, width = image.shape[:2]
    inches = max(height, width, 640) / max(height, width) / 100
    figure = Figure(figsize=(width * inches, height * inches))
    axes = figure.add_axes((0.0, 0.0, 1.0, 1.0))
    _show(axes, image, outlined(detections, names, (height, width), threshold), font_size=9)
    figure.savefig(path, format="png", dpi=100)


def draw_pooling(
    path: Path, image: Image, mask: Mask, weights: Mapping[int, NDArray[np.floating[Any]]]
) -> None:
    """What masked average pooling weighs: the mask at the size of each level of features.

    Args:
        path: of the picture.
        image: support crop [H, W, 3].
        mask: of its instance [H, W].
        weights: stride of a level to its weights [h, w], from 0 to 1.
    """
    figure = Figure(figsize=(2.7 * (1 + len(weights)) + 0.5, 2.95), layout="constrained")
    panels = figure.subplots(1, 1 + len(weights), squeeze=False)[0]
    _show(panels[0], image, [Outlined(mask, "", 0)])
    panels[0].set_title("support and mask", fontsize=10)
    height, width = mask.shape
    for axes, (stride, values) in zip(panels[1:], sorted(weights.items()), strict=True):
        axes.imshow(image.mean(-1), cmap="gray", vmin=0, vmax=255, extent=(0, width, height, 0))
        cells = axes.imshow(values, cmap="inferno", alpha=0.72, vmin=0, vmax=1, extent=(0, width, height, 0))
        axes.set_title(f"stride {stride}: {values.shape[0]}×{values.shape[1]}", fontsize=10)
        axes.set(
            xticks=np.linspace(0, width, values.shape[1] + 1),
            yticks=np.linspace(0, height, values.shape[0] + 1),
        )
        if max(values.shape) <= 24:
            axes.grid(color="white", alpha=0.35, linewidth=0.5)
        axes.tick_params(length=0, labelbottom=False, labelleft=False)
        axes.spines[:].set_visible(False)
    figure.colorbar(cells, ax=list(panels), label="weight", shrink=0.85, pad=0.01)
    _save(figure, path)


def draw_bars(
    path: Path,
    values: Mapping[str, Mapping[str, Sequence[float]]],
    title: str = "",
    floors: Mapping[str, float] | None = None,
) -> None:
    """Metrics of every method: mean over seeds, its 95 % interval, and each seed.

    Args:
        path: of the picture.
        values: method to metric to its values in per cent, one for each seed.
        title: above the picture.
        floors: metric to its value before fine-tuning, drawn as a line.
    """
    metrics = list(dict.fromkeys(metric for of_method in values.values() for metric in of_method))
    figure = Figure(figsize=(max(3.2, 1.4 + 0.8 * len(values)) * len(metrics), 3.8), layout="constrained")
    panels = figure.subplots(1, len(metrics), squeeze=False)[0]
    for axes, metric in zip(panels, metrics, strict=True):
        for place, of_method in enumerate(values.values()):
            _bar(axes, place, of_method.get(metric, ()))
        if floors and metric in floors:
            line = axes.axhline(floors[metric], color="black", linestyle="--", linewidth=1)
            axes.legend([line], ["before fine-tuning"], fontsize=7, frameon=False)
        axes.set_xticks(range(len(values)), [_wrapped(method) for method in values], fontsize=8)
        axes.set_title(metric.replace("_", " "), fontsize=10)
        axes.margins(y=0.16)
        axes.set_ylim(bottom=0)
        _plain(axes)
    panels[0].set_ylabel("per cent; 95 % interval over seeds")
    if title:
        figure.suptitle(title, fontsize=11)
    _save(figure, path)


def draw_per_class_gain(
    path: Path, base: Mapping[str, float], novel: Mapping[str, float], label: str
) -> None:
    """Difference in average precision of each class, the largest first, base and novel ones apart.

    Args:
        path: of the picture.
        base: class to its difference in points.
        novel: likewise.
        label: what the difference is of, ``RefT - Mask2Former`` for instance.
    """
    number = len(base) + len(novel)
    figure = Figure(figsize=(6.4, 1.1 + 0.23 * number), layout="constrained")
    axes = figure.subplots()
    names: list[str] = []
    for group, colour, what in ((novel, _NOVEL, "novel"), (base, _BASE, "base")):
        if not group:
            continue
        ordered = sorted(group, key=lambda name: -group[name])
        rows = np.arange(len(names), len(names) + len(ordered))
        mean = float(np.mean(list(group.values())))
        axes.barh(
            rows,
            [group[name] for name in ordered],
            color=colour,
            alpha=0.8,
            label=f"{what}, mean {mean:+.1f}",
        )
        axes.vlines(mean, rows[0] - 0.5, rows[-1] + 0.5, color=colour, linestyle=":", linewidth=1.5)
        names.extend(ordered)
    axes.set_yticks(range(number), names, fontsize=8)
    axes.set_ylim(number - 0.4, -0.6)
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set_xlabel(f"AP, {label}, in points")
    axes.legend(fontsize=8, frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2)
    _plain(axes, across="x")
    _save(figure, path)


def draw_ablation(
    path: Path, studies: Mapping[str, Mapping[str, Mapping[str, Sequence[float]]]], metrics: Sequence[str]
) -> None:
    """One panel for each study: what each choice gives.

    Args:
        path: of the picture.
        studies: name of a study to its choices, each to metric to its values in per cent, one for each seed.
        metrics: that are drawn.
    """
    columns = min(3, len(studies))
    lines = -(-len(studies) // columns)
    most = max(len(choices) for choices in studies.values())
    figure = Figure(figsize=(4.2 * columns, (1.0 + 0.42 * most) * lines + 0.4), layout="constrained")
    panels = list(figure.subplots(lines, columns, squeeze=False).flat)
    colours = dict(zip(metrics, (_NOVEL, _BASE, *PALETTE), strict=False))
    for axes, (study, choices) in zip(panels, studies.items(), strict=False):
        for shift, (metric, colour) in enumerate(colours.items()):
            drawn = [(row, of[metric]) for row, of in enumerate(choices.values()) if of.get(metric)]
            for row, seeds in drawn:
                at = row + 0.22 * (shift - (len(metrics) - 1) / 2)
                mean, interval = confidence_interval(seeds)
                axes.errorbar(mean, at, xerr=interval, fmt="D", color=colour, markersize=5, capsize=3)
                axes.plot(seeds, [at] * len(seeds), ".", color=colour, alpha=0.4)
        axes.set_yticks(range(len(choices)), list(choices), fontsize=8)
        axes.set_ylim(len(choices) - 0.4, -0.6)
        axes.set_title(study, fontsize=10)
        _plain(axes, across="x")
    for axes in panels[len(studies) :]:
        axes.set_axis_off()
    handles = [
        panels[0].plot([], [], "D", color=colour, label=metric.replace("_", " "))[0]
        for metric, colour in colours.items()
    ]
    title = "per cent; mean over seeds and its 95 % interval"
    figure.legend(
        handles=handles,
        loc="outside upper center",
        ncols=len(metrics),
        title=title,
        title_fontsize=8,
        fontsize=8,
        frameon=False,
    )
    _save(figure, path)


# -- parts -----------------------------------------------------------------------------------------------


def _show(axes: Axes, image: Image, instances: Sequence[Outlined], font_size: float = 7) -> None:
    """An image with tinted instances, their contours, and their labels."""
    tinted = image.astype(np.float32) / 255
    for instance in instances:
        colour = _rgb(instance.place)
        tinted[instance.mask] = 0.6 * tinted[instance.mask] + 0.4 * colour
    axes.imshow(tinted)
    for instance in instances:
        if not instance.mask.any():
            continue
        colour_name = PALETTE[instance.place % len(PALETTE)]
        framed = np.pad(instance.mask, 1).astype(np.float32)
        rows, columns = (np.arange(-1, length + 1) for length in instance.mask.shape)
        axes.contour(columns, rows, framed, levels=[0.5], colors=[colour_name], linewidths=1.4)
        if instance.label:
            top = int(np.flatnonzero(instance.mask.any(1))[0])
            left = int(np.flatnonzero(instance.mask.any(0))[0])
            axes.text(
                left,
                top,
                instance.label,
                fontsize=font_size,
                color="white",
                va="bottom" if top > 0.08 * image.shape[0] else "top",
                bbox={"facecolor": colour_name, "edgecolor": "none", "pad": 1.2, "alpha": 0.9},
                clip_on=True,
            )
    axes.set(xlim=(-0.5, image.shape[1] - 0.5), ylim=(image.shape[0] - 0.5, -0.5))
    axes.set_axis_off()


def _bar(axes: Axes, place: int, seeds: Sequence[float]) -> None:
    """The mean of the seeds, its interval, and a dot for each."""
    if not seeds:
        return
    colour = PALETTE[place % len(PALETTE)]
    mean, interval = confidence_interval(seeds)
    axes.bar(place, mean, 0.62, color=colour, alpha=0.45)
    if len(seeds) > 1:
        axes.errorbar(place, mean, interval, color="black", capsize=5, linewidth=1.2)
    across = place + np.linspace(-0.2, 0.2, len(seeds)) if len(seeds) > 1 else [place]
    axes.plot(across, seeds, "o", color=colour, markersize=4.5, markeredgecolor="white")
    top = max(*seeds, mean + interval)
    axes.annotate(
        f"{mean:.1f}", (place, top), xytext=(0, 5), textcoords="offset points", ha="center", fontsize=8
    )


def _decode(segmentation: Any, size: tuple[int, int]) -> Mask:
    if isinstance(segmentation, list):
        segmentation = mask_utils.merge(mask_utils.frPyObjects(segmentation, *size))
    elif isinstance(segmentation["counts"], list):
        segmentation = mask_utils.frPyObjects(segmentation, *size)
    return np.asarray(mask_utils.decode(segmentation), dtype=bool)


def _rgb(place: int) -> NDArray[np.float32]:
    colour = PALETTE[place % len(PALETTE)]
    return np.array([int(colour[start : start + 2], 16) / 255 for start in (1, 3, 5)], dtype=np.float32)


def _wrapped(method: str) -> str:
    return method.replace(" + ", "\n+ ").replace(", ", ",\n")


def _plain(axes: Axes, across: Literal["x", "y"] = "y") -> None:
    axes.grid(alpha=0.3, axis=across)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _save(figure: Figure, path: Path) -> None:
    figure.savefig(path, format="png", dpi=120)
