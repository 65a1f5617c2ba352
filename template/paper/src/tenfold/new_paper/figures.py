"""Pictures for the run record."""

from __future__ import annotations

from pathlib import Path

from matplotlib.figure import Figure
from torch import Tensor


def draw_answers(images: Tensor, teacher: Tensor, student: Tensor, path: Path) -> None:
    """Draw images in a row, and below each what teacher and student answer.

    Args:
        images: [N, 64].
        teacher: [N, 10], probabilities.
        student: [N, 10], probabilities.
        path: PNG file.
    """
    figure = Figure(figsize=(1.7 * len(images), 3.4), layout="constrained")
    pictures, answers = figure.subplots(2, len(images), squeeze=False)
    for index, image in enumerate(images.cpu()):
        pictures[index].imshow(image.view(8, 8).numpy(), cmap="gray_r")
        pictures[index].set_axis_off()
        for offset, name, probabilities in ((-0.2, "teacher", teacher), (0.2, "student", student)):
            places = [digit + offset for digit in range(10)]
            answers[index].bar(places, probabilities[index].tolist(), width=0.4, label=name)
        answers[index].set(ylim=(0, 1), xticks=range(0, 10, 3), yticks=(0, 1))
    answers[0].legend(fontsize="x-small", frameon=False)
    figure.savefig(path, dpi=110, format="png")
