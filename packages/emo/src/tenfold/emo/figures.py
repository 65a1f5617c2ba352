"""Pictures for the run records and the README."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure


def draw_accuracies(
    values: Mapping[str, Sequence[float]], parameters: Mapping[str, float], path: Path
) -> None:
    """Accuracy of every method and seed.

    Args:
        values: method to its accuracies in per cent, one for each seed.
        parameters: method to its parameters in millions.
        path: of the picture.
    """
    figure = Figure(figsize=(6, 0.45 * len(values) + 1.2), layout="constrained")
    axes = figure.subplots()
    names = list(values)[::-1]
    for row, name in enumerate(names):
        axes.plot(values[name], [row] * len(values[name]), "o", color="tab:blue", alpha=0.6)
        axes.plot(np.mean(values[name]), row, "|", color="black", markersize=14)
    axes.set_yticks(range(len(names)), [f"{name} ({1000 * parameters[name]:.1f} k)" for name in names])
    axes.set(xlabel="top-1 accuracy in per cent; the bar is the mean over seeds")
    axes.grid(alpha=0.3)
    figure.savefig(path, format="png", dpi=120)


def draw_pareto(
    points: Mapping[str, tuple[float, float, float]], x_label: str, path: Path, ours: Sequence[str] = ()
) -> None:
    """Accuracy against cost, one disc for each network.

    Args:
        points: network to (cost, accuracy in per cent, parameters in millions), which is the disc's area.
        x_label: what the cost is.
        path: of the picture.
        ours: networks that are joined by a line.
    """
    figure = Figure(figsize=(7, 4.6), layout="constrained")
    axes = figure.subplots()
    for name, (cost, accuracy, parameters) in points.items():
        colour = "tab:red" if name in ours else "tab:gray"
        axes.scatter(cost, accuracy, s=18 * parameters, color=colour, alpha=0.6)
        axes.annotate(name, (cost, accuracy), fontsize=7, xytext=(4, 4), textcoords="offset points")
    line = sorted(points[name][:2] for name in ours if name in points)
    if line:
        axes.plot(*zip(*line, strict=True), color="tab:red", linewidth=1)
    axes.set(xscale="log", xlabel=x_label, ylabel="ImageNet top-1 in per cent, as published")
    axes.grid(alpha=0.3)
    figure.savefig(path, format="png", dpi=120)


def draw_layers(rows: Mapping[str, float], unit: str, path: Path) -> None:
    """One bar for each layer of a network.

    Args:
        rows: layer to its cost.
        unit: of the cost.
        path: of the picture.
    """
    figure = Figure(figsize=(7, 0.2 * len(rows) + 1), layout="constrained")
    axes = figure.subplots()
    names = list(rows)[::-1]
    axes.barh(range(len(names)), [rows[name] for name in names], color="tab:blue")
    axes.set_yticks(range(len(names)), names, fontsize=7)
    axes.set(xlabel=unit)
    axes.grid(alpha=0.3, axis="x")
    figure.savefig(path, format="png", dpi=120)
