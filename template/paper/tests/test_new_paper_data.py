"""The digits and their split."""

from __future__ import annotations

import pytest
import torch

from tenfold.new_paper.data import ImageSet, draw_images
from tenfold.shared.logging import TenfoldError


def test_the_split_has_the_known_sizes_shapes_and_range(digits: tuple[ImageSet, ImageSet]) -> None:
    train, test = digits
    assert (len(train), len(test)) == (1000, 797)
    assert train.images.shape == (1000, 64) and train.images.dtype == torch.float32
    assert float(train.images.min()) == 0 and float(train.images.max()) == 1
    assert set(train.labels.tolist()) == set(test.labels.tolist()) == set(range(10))


def test_the_seed_alone_decides_which_images_are_drawn(digits: tuple[ImageSet, ImageSet]) -> None:
    train, _ = digits
    torch.manual_seed(1)
    first = draw_images(train, 30, seed=5)
    torch.manual_seed(2)
    again, other = draw_images(train, 30, seed=5), draw_images(train, 30, seed=6)
    assert torch.equal(first.images, again.images) and torch.equal(first.labels, again.labels)
    assert not torch.equal(first.images, other.images)


def test_drawn_images_are_different_and_keep_their_labels() -> None:
    numbers = torch.arange(40)
    drawn = draw_images(ImageSet(numbers[:, None].float(), numbers), 40, seed=0)
    assert torch.equal(drawn.images[:, 0].long(), drawn.labels)
    assert torch.equal(drawn.labels.sort().values, numbers)


@pytest.mark.parametrize("count", [0, 1001])
def test_more_images_than_there_are_cannot_be_drawn(digits: tuple[ImageSet, ImageSet], count: int) -> None:
    with pytest.raises(TenfoldError, match="between 1 and 1000 images"):
        draw_images(digits[0], count, seed=0)
