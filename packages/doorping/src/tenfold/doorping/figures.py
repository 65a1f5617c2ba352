"""Pictures for the run records: distilled images, triggers, arms, defences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor
from torchvision.utils import make_grid

Floats = NDArray[np.float64]


def mosaic(images: Tensor, columns: int) -> Floats:
    """Images [n, C, H, W] with black at 0 and white at 1 in rows, [rows, columns, 3]; values beyond are cut off."""
    pixels = images.detach().double().cpu().clamp(0, 1).expand(-1, 3, -1, -1)
    grid: Floats = make_grid(pixels, nrow=columns, padding=1, pad_value=0.5).permute(1, 2, 0).numpy()
    return grid


def draw_distilled(
    images: Tensor, labels: Tensor, path: Path, per_class: int = 10, classes: int = 10
) -> None:
    """Distilled images, a row for each class.

    Args:
        images: [n, C, H, W], black at 0 and white at 1.
        labels: int64 [n].
        path: of the picture.
        per_class: images of a class that are shown.
        classes: classes that are shown.
    """
    shown = [label for label in labels.unique().tolist() if label < classes]
    columns = min(per_class, min(int((labels == label).sum()) for label in shown))
    rows = torch.cat([images[labels == label][:columns] for label in shown])
    figure = Figure(figsize=(0.6 * columns + 0.8, 0.6 * len(shown)), layout="constrained")
    axes = figure.subplots()
    axes.imshow(mosaic(rows, columns))
    side = images.shape[-1] + 1
    axes.set_yticks([(row + 0.5) * side for row in range(len(shown))], [str(label) for label in shown])
    axes.set(xticks=[], ylabel="class")
    figure.savefig(path, format="png", dpi=100)


def draw_stamped(clean: Tensor, triggered: Tensor, captions: Sequence[str], path: Path) -> None:
    """Test images without and with the trigger, and what the trigger is to make of them.

    Args:
        clean: [n, C, H, W], black at 0 and white at 1.
        triggered: the same with the trigger.
        captions: n of them.
        path: of the picture.
    """
    figure = Figure(figsize=(0.9 * len(clean) + 0.6, 2.3), layout="constrained")
    axes = figure.subplots()
    axes.imshow(mosaic(torch.cat((clean, triggered)), len(clean)))
    side = clean.shape[-1] + 1
    axes.set_xticks([(column + 0.5) * side for column in range(len(clean))], captions, fontsize=8)
    axes.set_yticks([0.5 * side, 1.5 * side], ["clean", "triggered"])
    figure.savefig(path, format="png", dpi=110)


def draw_triggers(triggers: Mapping[int, Tensor], mask: Tensor, path: Path, most: int = 12) -> None:
    """The trigger over time: its pixels after some iterations, and how strong it is.

    Args:
        triggers: iteration to delta [1, C, H, W], normalised.
        mask: m, [C, H, W].
        path: of the picture.
        most: moments that are shown.
    """
    steps = sorted(triggers)
    chosen = [steps[round(place)] for place in np.linspace(0, len(steps) - 1, min(most, len(steps)))]
    rows = mask[0].any(dim=1).nonzero()[:, 0]
    columns = mask[0].any(dim=0).nonzero()[:, 0]
    patches = {
        step: triggers[step][0, :, rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].mean(dim=0).numpy()
        for step in steps
    }
    limit = max(float(np.abs(patch).max()) for patch in patches.values()) or 1.0
    figure = Figure(figsize=(max(5.0, 0.9 * len(chosen)), 3.4), layout="constrained")
    grid = figure.add_gridspec(2, len(chosen), height_ratios=(1, 1.4))
    for place, step in enumerate(chosen):
        axes = figure.add_subplot(grid[0, place])
        shown = axes.imshow(patches[step], cmap="RdBu_r", vmin=-limit, vmax=limit)
        axes.set(xticks=[], yticks=[], title=str(step))
    figure.colorbar(shown, ax=figure.axes, label="normalised units", fraction=0.03)
    axes = figure.add_subplot(grid[1, :])
    strength = [float(triggers[step][0][mask.bool()].abs().max()) for step in steps]
    axes.plot(steps, strength, marker=".")
    axes.set(xlabel="iteration", ylabel="largest |delta|", ylim=(0, None))
    axes.grid(alpha=0.3)
    figure.savefig(path, format="png", dpi=110)


def draw_arms(arms: Mapping[str, tuple[Sequence[float], Sequence[float]]], path: Path) -> None:
    """CTA and ASR of every arm and seed.

    Args:
        arms: method to the CTA and the ASR (without images of the target) of every seed.
        path: of the picture.
    """
    figure = Figure(figsize=(8.5, 1 + 0.34 * len(arms)), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    for panel, name in enumerate(("clean test accuracy", "attack success, images of other classes")):
        for place, values in enumerate(arms.values()):
            axes[panel].plot(values[panel], [place] * len(values[panel]), "o", color="tab:blue", alpha=0.5)
            axes[panel].plot(
                [float(np.mean(values[panel]))], [place], "|", color="black", markersize=14, markeredgewidth=2
            )
        axes[panel].set(xlabel=name, xlim=(-0.03, 1.03))
        axes[panel].grid(axis="x", alpha=0.3)
    axes[0].set_yticks(range(len(arms)), list(arms))
    axes[0].invert_yaxis()
    figure.savefig(path, format="png", dpi=120)


def draw_differences(differences: Mapping[str, tuple[float, float, float]], unit: str, path: Path) -> None:
    """Paired differences with 95 % intervals.

    Args:
        differences: name to mean, low and high.
        unit: what differs.
        path: of the picture.
    """
    figure = Figure(figsize=(7, 1 + 0.34 * len(differences)), layout="constrained")
    axes = figure.subplots()
    for place, (mean, low, high) in enumerate(differences.values()):
        axes.errorbar(mean, place, xerr=[[mean - low], [high - mean]], fmt="o", color="tab:blue", capsize=3)
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set_yticks(range(len(differences)), list(differences))
    axes.set_xlabel(f"difference in {unit} between arms of one seed, mean and 95 % interval")
    axes.grid(axis="x", alpha=0.3)
    figure.savefig(path, format="png", dpi=120)


def draw_table(rows: Mapping[str, Sequence[float]], columns: Sequence[str], path: Path) -> None:
    """Shares from 0 to 1 as a coloured table; what was not measured stays empty.

    Args:
        rows: name to a value for every column, NaN where there is none.
        columns: names.
        path: of the picture.
    """
    values = np.array(list(rows.values()), dtype=np.float64)
    figure = Figure(figsize=(2.6 + 0.95 * len(columns), 1.6 + 0.36 * len(rows)), layout="constrained")
    axes = figure.subplots()
    axes.imshow(values, cmap="Blues", vmin=0, vmax=1.4, aspect="auto")
    for (row, column), value in np.ndenumerate(values):
        if np.isfinite(value):
            axes.text(column, row, f"{value:.2f}", ha="center", va="center", fontsize=9)
    axes.set_xticks(range(len(columns)), columns, rotation=30, ha="right", fontsize=8)
    axes.set_yticks(range(len(rows)), list(rows))
    figure.savefig(path, format="png", dpi=120)
