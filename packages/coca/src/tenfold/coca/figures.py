"""Pictures for the run records."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from torch import Tensor


def draw_accuracy_matrix(matrix: Sequence[Sequence[float]], title: str, path: Path) -> None:
    """Accuracy on every task (columns) after every task (rows); above the diagonal the task was not trained yet."""
    values = np.asarray(matrix)
    rows, columns = values.shape
    figure = Figure(figsize=(1.6 + 0.55 * columns, 1.4 + 0.45 * rows), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(values, vmin=0, vmax=100, cmap="viridis", aspect="auto")
    if rows * columns <= 120:
        for row, column in np.ndindex(values.shape):
            colour = "black" if values[row, column] > 60 else "white"
            axes.text(
                column, row, f"{values[row, column]:.0f}", ha="center", va="center", color=colour, fontsize=8
            )
    ticks = {"columns": range(0, columns, max(columns // 10, 1)), "rows": range(0, rows, max(rows // 10, 1))}
    axes.set_xticks(ticks["columns"], [str(tick + 1) for tick in ticks["columns"]])
    axes.set_yticks(ticks["rows"], [str(tick + 1) for tick in ticks["rows"]])
    axes.set(xlabel="tested on task", ylabel="after task")
    axes.set_title(title, fontsize=9)
    figure.colorbar(image, ax=axes, label="accuracy (%)")
    figure.savefig(path, format="png", dpi=120)


def draw_memory(images: Tensor, labels: Tensor, ages: Sequence[int], path: Path) -> None:
    """What is remembered: images class by class, how many of each class, and how old they are.

    Args:
        images: bytes [n, channels, H, W].
        labels: [n].
        ages: in steps; empty where they are not known.
        path: of the picture.
    """
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    left, middle, right = figure.subplots(1, 3, width_ratios=(2, 1, 1))
    order = labels.argsort(stable=True)[:400]
    left.imshow(_sheet(images[order]), cmap="gray", interpolation="nearest")
    left.set_axis_off()
    left.set_title(f"{min(len(labels), 400)} of {len(labels)} images", fontsize=9)
    counts = np.bincount(labels.numpy())
    middle.bar(np.arange(len(counts)), counts)
    middle.set(xlabel="class", ylabel="images")
    if ages:
        right.hist(ages, bins=20)
        right.set(xlabel="age (steps)", ylabel="images")
    else:
        right.set_axis_off()
    figure.savefig(path, format="png", dpi=120)


def draw_methods(results: Mapping[str, Mapping[int, float]], metric: str, path: Path) -> None:
    """Every seed of every method as a dot, and the mean.

    Args:
        results: value by seed, by method, in per cent.
        metric: what is shown.
        path: of the picture.
    """
    ordered = sorted(results, key=lambda method: np.mean(list(results[method].values())))
    figure = Figure(figsize=(7, 1 + 0.32 * len(ordered)), layout="constrained")
    axes = figure.subplots()
    for place, method in enumerate(ordered):
        values = list(results[method].values())
        axes.plot(values, [place] * len(values), "o", color="tab:blue", alpha=0.4, markersize=4)
        axes.plot([np.mean(values)], [place], "|", color="black", markersize=14, markeredgewidth=2)
    axes.set_yticks(range(len(ordered)), ordered)
    axes.set_xlabel(f"{metric} (%); dots are seeds, bars their mean")
    axes.grid(axis="x", alpha=0.3)
    figure.savefig(path, format="png", dpi=120)


def draw_gains(gains: Mapping[str, tuple[float, float, float]], metric: str, path: Path) -> None:
    """Paired differences with their confidence intervals.

    Args:
        gains: mean, low and high by name, in points.
        metric: what is compared.
        path: of the picture.
    """
    figure = Figure(figsize=(7, 1 + 0.32 * len(gains)), layout="constrained")
    axes = figure.subplots()
    for place, (mean, low, high) in enumerate(gains.values()):
        axes.errorbar(mean, place, xerr=[[mean - low], [high - mean]], fmt="o", color="tab:blue", capsize=3)
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set_yticks(range(len(gains)), list(gains))
    axes.set_xlabel(f"difference in {metric} (points), mean over seeds and 95 % interval")
    axes.grid(axis="x", alpha=0.3)
    figure.savefig(path, format="png", dpi=120)


def _sheet(images: Tensor) -> np.ndarray:
    """Images in a square; [rows * H, columns * W] or with three channels."""
    count, channels, height, width = images.shape
    columns = math.ceil(math.sqrt(count))
    rows = -(-count // columns)
    sheet = np.zeros((rows * columns, height, width, channels), dtype=np.float32)
    sheet[:count] = images.permute(0, 2, 3, 1).float().numpy() / max(float(images.max()), 1)
    sheet = sheet.reshape(rows, columns, height, width, channels).swapaxes(1, 2)
    return sheet.reshape(rows * height, columns * width, channels).squeeze()
