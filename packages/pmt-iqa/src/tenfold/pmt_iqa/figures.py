"""Pictures for the run records and for people who score images."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from numpy.typing import ArrayLike, NDArray

from tenfold.pmt_iqa.pixels import Picture
from tenfold.pmt_iqa.schedules import WeightSchedule, task_weights

Floats = NDArray[np.float64]


def draw_scatter(predictions: ArrayLike, labels: ArrayLike, title: str, path: Path) -> None:
    """Predicted scores against labels.

    Args:
        predictions: [n].
        labels: [n].
        title: says what was predicted.
        path: of the picture.
    """
    figure = Figure(figsize=(4.2, 4), layout="constrained")
    axes = figure.subplots()
    both = np.concatenate([np.asarray(predictions), np.asarray(labels)])
    ends = (float(both.min()), float(both.max()))
    axes.plot(ends, ends, color="black", linewidth=0.8)
    axes.plot(labels, predictions, "o", color="tab:blue", alpha=0.35, markersize=3)
    axes.set(xlabel="label", ylabel="predicted score")
    axes.set_title(title, fontsize=9)
    axes.grid(alpha=0.3)
    figure.savefig(path, format="png", dpi=120)


def draw_quality_maps(
    pictures: Sequence[Picture], maps: Sequence[Floats], captions: Sequence[str], path: Path
) -> None:
    """Pictures above, and their quality maps below.

    Args:
        pictures: bytes [H, W, 3].
        maps: 0 to 100, [H, W].
        captions: one for each.
        path: of the picture.
    """
    count = len(pictures)
    figure = Figure(figsize=(1.8 * count + 0.8, 4), layout="constrained")
    axes = figure.subplots(2, count, squeeze=False)
    for column, (picture, found, caption) in enumerate(zip(pictures, maps, captions, strict=True)):
        axes[0, column].imshow(picture)
        axes[0, column].set_title(caption, fontsize=8)
        shown = _overlay(axes[1, column], picture, found)
        for row in (0, 1):
            axes[row, column].set_axis_off()
    figure.colorbar(shown, ax=axes[1, :], label="predicted quality (0 to 100)")
    figure.savefig(path, format="png", dpi=120)


def draw_report(picture: Picture, found: Floats, title: str, levels: Sequence[float], path: Path) -> None:
    """One picture, its quality map, and the probabilities of the levels.

    Args:
        picture: bytes [H, W, 3].
        found: quality map, 0 to 100, [H, W].
        title: says the score.
        levels: probabilities, the worst level first; empty without a level head.
        path: of the picture.
    """
    panels = 3 if levels else 2
    figure = Figure(figsize=(3.6 * panels, 3.2), layout="constrained")
    axes = figure.subplots(1, panels)
    axes[0].imshow(picture)
    shown = _overlay(axes[1], picture, found)
    for panel in axes[:2]:
        panel.set_axis_off()
    figure.colorbar(shown, ax=axes[1], label="quality (0 to 100)")
    if levels:
        axes[2].bar(range(len(levels)), levels, color="tab:blue")
        axes[2].set(xlabel="quality level, worst to best", ylabel="probability", xticks=range(len(levels)))
    figure.suptitle(title, fontsize=10)
    figure.savefig(path, format="png", dpi=120)


def draw_schedules(schedules: Sequence[WeightSchedule], epochs: int, path: Path) -> None:
    """The weight of regression over the epochs; classification has the rest."""
    figure = Figure(figsize=(5, 3), layout="constrained")
    axes = figure.subplots()
    for schedule in schedules:
        weights = [task_weights(schedule, epoch, epochs)[0] for epoch in range(epochs)]
        axes.plot(range(epochs), weights, marker=".", label=schedule)
    axes.set(xlabel="epoch", ylabel="weight of regression")
    axes.legend(fontsize=8)
    axes.grid(alpha=0.3)
    figure.savefig(path, format="png", dpi=120)


def draw_methods(results: Mapping[str, Sequence[float]], metric: str, path: Path) -> None:
    """Every split of every method as a dot, and the median.

    Args:
        results: values by method.
        metric: what is shown.
        path: of the picture.
    """
    ordered = sorted(results, key=lambda method: float(np.median(results[method])))
    figure = Figure(figsize=(7, 1 + 0.32 * len(ordered)), layout="constrained")
    axes = figure.subplots()
    for place, method in enumerate(ordered):
        values = results[method]
        axes.plot(values, [place] * len(values), "o", color="tab:blue", alpha=0.4, markersize=4)
        axes.plot([np.median(values)], [place], "|", color="black", markersize=14, markeredgewidth=2)
    axes.set_yticks(range(len(ordered)), ordered)
    axes.set_xlabel(f"{metric}; dots are splits, bars their median")
    axes.grid(axis="x", alpha=0.3)
    figure.savefig(path, format="png", dpi=120)


def draw_differences(differences: Mapping[str, tuple[float, float, float]], metric: str, path: Path) -> None:
    """Paired differences with their confidence intervals.

    Args:
        differences: mean, low and high by name.
        metric: what is compared.
        path: of the picture.
    """
    figure = Figure(figsize=(7, 1 + 0.32 * len(differences)), layout="constrained")
    axes = figure.subplots()
    for place, (mean, low, high) in enumerate(differences.values()):
        reach = None if math.isnan(low) else [[mean - low], [high - mean]]
        axes.errorbar(mean, place, xerr=reach, fmt="o", color="tab:blue", capsize=3)
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set_yticks(range(len(differences)), list(differences))
    axes.set_xlabel(f"difference in {metric}, mean over splits and 95 % interval")
    axes.grid(axis="x", alpha=0.3)
    figure.savefig(path, format="png", dpi=120)


def _overlay(axes: Axes, picture: Picture, found: Floats) -> AxesImage:
    axes.imshow(picture.mean(axis=2), cmap="gray", vmin=0, vmax=255)
    return axes.imshow(found, cmap="RdYlGn", vmin=0, vmax=100, alpha=0.6)
