"""Pictures for the run records and the README."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor


def draw_relations(image: Tensor, maps: Mapping[str, tuple[Tensor, Tensor]], path: Path) -> None:
    """Relation maps of all heads for one image: for each kind a row of the teacher's and one of the student's.

    Args:
        image: [C, H, W] from 0 to 1.
        maps: kind to the teacher's and the student's maps, each [heads, N, N].
        path: of the picture.
    """
    rows = [
        (f"{kind}\n{who}", values)
        for kind, pair in maps.items()
        for who, values in zip(("teacher", "student"), pair, strict=True)
    ]
    heads = rows[0][1].shape[0]
    figure = Figure(figsize=(1.5 + 1.1 * heads, 1.1 * len(rows) + 0.4), layout="constrained")
    grid = figure.add_gridspec(1, 2, width_ratios=[1.1, 1.1 * heads])
    picture = figure.add_subplot(grid[0, 0])
    pixels = image.clamp(0, 1).permute(1, 2, 0).expand(-1, -1, 3).cpu().numpy()
    picture.imshow(pixels, interpolation="nearest")
    picture.set(title="image", xticks=[], yticks=[])
    axes = figure.add_subplot(grid[0, 1])
    axes.imshow(mosaic([values for _, values in rows]), cmap="magma", interpolation="nearest")
    side = rows[0][1].shape[-1] + 1
    middle = side / 2 - 1
    axes.set_yticks([side * row + middle for row in range(len(rows))], [name for name, _ in rows], fontsize=8)
    names = [f"head {head + 1}" for head in range(heads)]
    axes.set_xticks([side * head + middle for head in range(heads)], names, fontsize=8)
    axes.tick_params(length=0)
    axes.set_frame_on(False)
    figure.savefig(path, format="png", dpi=110)


def mosaic(rows: Sequence[Tensor]) -> np.ndarray[Any, Any]:
    """Maps side by side with a gap of one pixel, each scaled to its own largest entry: rows of [heads, N, N]."""
    lines = []
    for values in rows:
        scaled = values.cpu() / values.amax(dim=(1, 2), keepdim=True).cpu()
        lines.append(
            torch.nn.functional.pad(scaled, (0, 1, 0, 1), value=float("nan")).permute(1, 0, 2).flatten(1)
        )
    return torch.cat(lines).numpy()


def draw_head_divergences(values: Mapping[str, Sequence[float]], path: Path) -> None:
    """KL divergence of each head from the teacher's.

    Args:
        values: kind of relation to one number for each head, in nats.
        path: of the picture.
    """
    figure = Figure(figsize=(6, 2.8), layout="constrained")
    axes = figure.subplots()
    width = 0.8 / len(values)
    for place, (kind, each) in enumerate(values.items()):
        axes.bar(np.arange(len(each)) + (place - (len(values) - 1) / 2) * width, each, width, label=kind)
    heads = len(next(iter(values.values())))
    axes.set_xticks(range(heads), [str(head + 1) for head in range(heads)])
    axes.set(xlabel="head", ylabel="KL divergence in nats")
    axes.legend()
    axes.grid(alpha=0.3, axis="y")
    figure.savefig(path, format="png", dpi=120)


def draw_divergences(values: Mapping[str, Mapping[str, float]], path: Path) -> None:
    """Mean KL divergence of each pre-trained network from its teacher.

    Args:
        values: network to kind of relation to nats.
        path: of the picture.
    """
    figure = Figure(figsize=(6, 0.45 * len(values) + 1.1), layout="constrained")
    axes = figure.subplots()
    names, kinds = list(values)[::-1], list(next(iter(values.values())))
    height = 0.8 / len(kinds)
    for place, kind in enumerate(kinds):
        rows = np.arange(len(names)) - (place - (len(kinds) - 1) / 2) * height
        axes.barh(rows, [values[name][kind] for name in names], height, label=kind)
    axes.set_yticks(range(len(names)), names)
    axes.set(xscale="log", xlabel="KL divergence from the teacher's relations in nats")
    axes.legend(fontsize=8)
    axes.grid(alpha=0.3, axis="x")
    figure.savefig(path, format="png", dpi=120)


def draw_accuracies(values: Mapping[str, Sequence[float]], path: Path) -> None:
    """Accuracy of every method and seed.

    Args:
        values: method to its accuracies in per cent, one for each seed.
        path: of the picture.
    """
    figure = Figure(figsize=(6, 0.4 * len(values) + 1.1), layout="constrained")
    axes = figure.subplots()
    names = list(values)[::-1]
    for row, name in enumerate(names):
        axes.plot(values[name], [row] * len(values[name]), "o", color="tab:blue", alpha=0.6)
        axes.plot(np.mean(values[name]), row, "|", color="black", markersize=14)
    axes.set_yticks(range(len(names)), names)
    axes.set(xlabel="top-1 accuracy in per cent; the bar is the mean over seeds")
    axes.grid(alpha=0.3)
    figure.savefig(path, format="png", dpi=120)


def draw_curves(curves: Mapping[str, Sequence[Mapping[str, Sequence[float]]]], path: Path) -> None:
    """Accuracy while fine-tuning: a line for each method, a band from the lowest seed to the highest.

    Args:
        curves: method to one curve for each seed, with ``x`` and ``y``.
        path: of the picture.
    """
    figure = Figure(figsize=(6.4, 4), layout="constrained")
    axes = figure.subplots()
    for method, each in curves.items():
        x, y = np.asarray(each[0]["x"]) + 1, np.asarray([curve["y"] for curve in each], dtype=float)
        (line,) = axes.plot(x, y.mean(axis=0), marker=".", label=method)
        axes.fill_between(x, y.min(axis=0), y.max(axis=0), color=line.get_color(), alpha=0.15)
    axes.set(xlabel="epoch of fine-tuning", ylabel="test top-1 in per cent")
    axes.legend(fontsize=8)
    axes.grid(alpha=0.3)
    figure.savefig(path, format="png", dpi=120)
