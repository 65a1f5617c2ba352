"""Pictures: they are drawn, and relation maps have the right pixels."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tenfold.tinymim.figures import (
    draw_accuracies,
    draw_curves,
    draw_divergences,
    draw_head_divergences,
    draw_relations,
    mosaic,
)


def maps(heads: int, tokens: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(heads, tokens, tokens, generator=generator).softmax(dim=-1)


def test_a_mosaic_has_heads_side_by_side_and_kinds_below_each_other() -> None:
    first = torch.tensor([[[1.0, 2.0], [3.0, 4.0]], [[0.0, 5.0], [10.0, 2.5]]])
    second = torch.tensor([[[8.0, 8.0], [8.0, 8.0]], [[0.1, 0.0], [0.0, 0.2]]])
    gap = float("nan")
    expected = [
        [0.25, 0.5, gap, 0.0, 0.5, gap],
        [0.75, 1.0, gap, 1.0, 0.25, gap],
        [gap] * 6,
        [1.0, 1.0, gap, 0.5, 0.0, gap],
        [1.0, 1.0, gap, 0.0, 1.0, gap],
        [gap] * 6,
    ]
    np.testing.assert_allclose(mosaic([first, second]), np.array(expected), rtol=1e-6)


def test_a_mosaic_leaves_its_maps_as_they_were() -> None:
    values = maps(2, 3, 0)
    before = values.clone()
    mosaic([values])
    assert torch.equal(values, before)


CURVE = [{"x": [0, 1, 2], "y": [10.0, 30.0, 40.0]}, {"x": [0, 1, 2], "y": [20.0, 25.0, 45.0]}]
DRAWINGS: dict[str, Callable[[Path], None]] = {
    "relations of a grey image": lambda path: draw_relations(
        torch.rand(1, 8, 8),
        {"Q-K": (maps(4, 5, 0), maps(4, 5, 1)), "V-V": (maps(4, 5, 2), maps(4, 5, 3))},
        path,
    ),
    "relations of a coloured image": lambda path: draw_relations(
        torch.rand(3, 8, 8), {"Q-K": (maps(2, 5, 0), maps(2, 5, 1))}, path
    ),
    "heads": lambda path: draw_head_divergences({"QK": [0.1, 0.3, 0.2], "VV": [0.2, 0.1, 0.1]}, path),
    "divergences": lambda path: draw_divergences(
        {"relation": {"QK": 0.01, "VV": 0.02}, "CLS": {"QK": 1.2, "VV": 3.0}}, path
    ),
    "accuracies": lambda path: draw_accuracies({"relation": [91.0, 93.0], "CLS": [88.0, 87.5]}, path),
    "accuracies of one seed": lambda path: draw_accuracies({"relation": [91.0]}, path),
    "curves": lambda path: draw_curves({"relation": CURVE, "CLS": CURVE[:1]}, path),
}


@pytest.mark.parametrize("draw", DRAWINGS.values(), ids=DRAWINGS.keys())
def test_pictures_are_drawn(draw: Callable[[Path], None], tmp_path: Path) -> None:
    path = tmp_path / "picture"  # no ending, as a temporary file of a run
    draw(path)
    with Image.open(path) as picture:
        assert picture.format == "PNG"
        pixels = np.asarray(picture.convert("RGB"))
    assert min(pixels.shape[:2]) > 80
    assert (pixels == 255).all(axis=2).mean() < 0.99  # not blank


def test_relations_show_the_image_that_they_are_of(tmp_path: Path) -> None:
    pictures = {}
    for name, value in (("red", (1.0, 0.0, 0.0)), ("blue", (0.0, 0.0, 1.0))):
        image = torch.tensor(value)[:, None, None].expand(3, 8, 8)
        draw_relations(image, {"Q-K": (maps(2, 5, 0), maps(2, 5, 1))}, tmp_path / name)
        pictures[name] = np.asarray(Image.open(tmp_path / name).convert("RGB"))
    assert (pictures["red"] == (255, 0, 0)).all(axis=2).mean() > 0.02
    assert (pictures["blue"] == (0, 0, 255)).all(axis=2).mean() > 0.02
