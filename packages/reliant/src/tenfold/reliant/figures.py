"""Pictures for the run record: utility against bias, and the strength of the bias term."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Ellipse
from matplotlib.ticker import ScalarFormatter

Metrics = Mapping[str, float]

_COLOURS = ("#5b6478", "#2f6fde", "#1a9a76", "#c78a00", "#c2418d", "#7a52cc", "#d2572b", "#3f9fd1", "#8a8f2a")
_BIAS = {"delta_sp": "ΔSP (statistical parity)", "delta_eo": "ΔEO (equal opportunity)"}


def draw_trade_off(results: Mapping[str, Sequence[Metrics]], path: Path) -> None:
    """Accuracy against each measure of bias: a dot a seed, a cross at the mean, an ellipse of one standard deviation.

    Better is up and to the left. The legend names each method's mean positive rate, so that a predictor that gives all
    the same answer is not taken for a fair one.

    Args:
        results: metrics of each method's seeds.
        path: PNG file.
    """
    figure = Figure(figsize=(10.5, 4.6), layout="constrained")
    for axis, (metric, title) in zip(figure.subplots(1, 2, sharey=True), _BIAS.items(), strict=True):
        for (method, seeds), colour in zip(results.items(), _cycle(len(results)), strict=True):
            points = np.array([[seed[metric], seed["accuracy"]] for seed in seeds])
            points = points[np.isfinite(points).all(axis=1)]
            if len(points) == 0:  # the measure is not defined for any seed
                continue
            positive = np.mean([seed["positive_rate"] for seed in seeds])
            axis.scatter(*points.T, s=16, color=colour, alpha=0.55, linewidths=0)
            label = f"{method}, {positive:.0%} positive"
            axis.scatter(
                *points.mean(axis=0), marker="X", s=80, color=colour, edgecolors="white", label=label
            )
            _ellipse(axis, points, colour)
        axis.set(xlabel=title)
        axis.grid(alpha=0.3)
    figure.axes[0].set(ylabel="accuracy on test nodes")
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, fontsize=9, frameon=False)
    figure.savefig(path, dpi=110, format="png")


def draw_sweep(results: Mapping[float, Sequence[Metrics]], path: Path) -> None:
    """Bias and accuracy over alpha: the mean over seeds, with a band of one standard deviation.

    Args:
        results: metrics of the seeds at each strength of the bias term; 0 is plain distillation.
        path: PNG file.
    """
    alphas = sorted(results)
    figure = Figure(figsize=(10.5, 3.8), layout="constrained")
    bias_axis, accuracy_axis = figure.subplots(1, 2)
    curves = [
        (bias_axis, "delta_sp", "ΔSP"),
        (bias_axis, "delta_eo", "ΔEO"),
        (accuracy_axis, "accuracy", "accuracy"),
    ]
    for (axis, metric, label), colour in zip(curves, (_COLOURS[1], _COLOURS[4], _COLOURS[2]), strict=True):
        values = [np.array([seed[metric] for seed in results[alpha]]) for alpha in alphas]
        mean = np.array([value.mean() for value in values])
        spread = np.array([value.std(ddof=1) if len(value) > 1 else 0.0 for value in values])
        axis.plot(alphas, mean, marker="o", markersize=4, color=colour, label=label)
        axis.fill_between(alphas, mean - spread, mean + spread, color=colour, alpha=0.15, linewidth=0)
    smallest = min((alpha for alpha in alphas if alpha > 0), default=1.0)
    for axis, label in ((bias_axis, "difference between groups"), (accuracy_axis, "accuracy on test nodes")):
        axis.set_xscale("symlog", linthresh=smallest)
        axis.set_xticks(alphas)
        axis.xaxis.set_major_formatter(ScalarFormatter())
        axis.minorticks_off()
        axis.set(xlabel="α, weight of the bias term", ylabel=label)
        axis.grid(alpha=0.3)
    bias_axis.set_ylim(bottom=0)
    bias_axis.legend(frameon=False)
    figure.savefig(path, dpi=110, format="png")


def _ellipse(axis: Axes, points: np.ndarray, colour: str) -> None:
    """One standard deviation of the seeds along their principal directions."""
    if len(points) < 3:
        return
    variances, directions = np.linalg.eigh(np.cov(points.T))
    width, height = 2 * np.sqrt(variances.clip(min=0))[::-1]
    angle = np.degrees(np.arctan2(*directions[::-1, 1]))
    centre = (float(points[:, 0].mean()), float(points[:, 1].mean()))
    axis.add_patch(
        Ellipse(centre, width, height, angle=angle, facecolor=colour, alpha=0.12, edgecolor=colour)
    )


def _cycle(count: int) -> list[str]:
    return [_COLOURS[index % len(_COLOURS)] for index in range(count)]
