"""Pictures of an audit: what every class looks like, where it is unlike the others, and every check's scores."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from tenfold.doorping.audit import AuditReport, Check, Window

SUSPECTED, OTHER = "tab:red", "tab:blue"
CLASSES_SHOWN = 40
"""Of many classes the first ones are shown, and the suspected one."""


def draw_audit(report: AuditReport, folder: Path) -> list[Path]:
    """All pictures of an audit; the folder is made.

    Raises:
        OSError: they cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{name}.png" for name in ("classes", "outliers", "scores")]
    draw_class_means(report, paths[0])
    draw_outlier_map(report, paths[1])
    draw_scores(report, paths[2])
    return paths


def draw_class_means(report: AuditReport, path: Path) -> None:
    """The mean distilled image of every class; the suspected window is framed, in red in the suspected class."""
    classes = _shown(report)
    columns = min(10, len(classes))
    rows = -(-len(classes) // columns)
    figure = Figure(figsize=(1.1 * columns + 0.4, 1.3 * rows + 0.7), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).flatten()
    for panel in panels:
        panel.set_axis_off()
    for panel, label in zip(panels, classes, strict=False):
        is_suspected = label == report.suspected_class
        _show(panel, report.mean_images[label])
        panel.set_title(f"class {label}", fontsize=8, color=SUSPECTED if is_suspected else "black")
        if report.window is not None:
            _frame(panel, report.window, SUSPECTED if is_suspected else OTHER)
    figure.suptitle(_verdict(report), fontsize=9)
    figure.savefig(path, format="png", dpi=120)


def draw_outlier_map(report: AuditReport, path: Path) -> None:
    """Where the suspected class is unlike the others, or the most outlying class where none is suspected."""
    outlier = next(check for check in report.checks if check.name == "patch outlier")
    label = outlier.suspected_class if report.suspected_class is None else report.suspected_class
    window = outlier.windows[label] if report.window is None else report.window
    figure = Figure(figsize=(6.4, 3), layout="constrained")
    left, right = figure.subplots(1, 2)
    _show(left, report.mean_images[label])
    left.set_title(f"mean of class {label}", fontsize=9)
    shown = right.imshow(report.outlier_maps[label].numpy(), cmap="magma")
    right.set_title("patch outlier score by pixel", fontsize=9)
    for panel in (left, right):
        panel.set_axis_off()
        if window is not None:
            _frame(panel, window, SUSPECTED if report.suspicious else OTHER)
    figure.colorbar(shown, ax=right, label="0 is the median class's largest")
    figure.suptitle(_verdict(report), fontsize=9)
    figure.savefig(path, format="png", dpi=120)


def draw_scores(report: AuditReport, path: Path) -> None:
    """The score of every class by every check, with the threshold; red above it, pale without a vote."""
    columns = min(2, len(report.checks))
    rows = -(-len(report.checks) // columns)
    figure = Figure(figsize=(4.2 * columns, 2.1 * rows + 0.4), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).flatten()
    for panel in panels[len(report.checks) :]:
        panel.set_axis_off()
    for panel, check in zip(panels, report.checks, strict=False):
        _bars(panel, check)
    figure.suptitle(_verdict(report), fontsize=9)
    figure.savefig(path, format="png", dpi=120)


def _bars(axes: Axes, check: Check) -> None:
    scores = np.nan_to_num(check.scores.numpy(), nan=0.0)
    colours = [SUSPECTED if score > check.threshold else OTHER for score in scores]
    axes.bar(range(len(scores)), scores, color=colours, alpha=1.0 if check.votes else 0.4)
    axes.axhline(check.threshold, color="black", linewidth=0.8, linestyle="--")
    axes.set_title(check.name if check.votes else f"{check.name} (no vote)", fontsize=9)
    axes.set(xlabel="class", ylabel="score")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def _shown(report: AuditReport) -> list[int]:
    """The classes that have images, or the first of them and the suspected one."""
    classes: list[int] = report.counts.nonzero()[:, 0].tolist()
    suspected = report.suspected_class
    kept = classes[:CLASSES_SHOWN]
    return kept if suspected is None or suspected in kept else [*kept[:-1], suspected]


def _show(axes: Axes, image: Tensor) -> None:
    """An image [C, H, W] with black at 0 and white at 1; what lies outside is cut."""
    pixels = image.clamp(0, 1).permute(1, 2, 0).numpy()
    is_grey = pixels.shape[2] == 1
    axes.imshow(pixels[..., 0] if is_grey else pixels, cmap="gray", vmin=0, vmax=1, interpolation="nearest")


def _frame(axes: Axes, window: Window, colour: str) -> None:
    corner = (window.column - 0.5, window.row - 0.5)
    axes.add_patch(Rectangle(corner, window.size, window.size, fill=False, edgecolor=colour, linewidth=1.5))


def _verdict(report: AuditReport) -> str:
    return report.lines()[0]
