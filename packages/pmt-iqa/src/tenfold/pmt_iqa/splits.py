"""Random splits that keep together what belongs together."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from tenfold.shared.logging import TenfoldError


def split_by_group(groups: Sequence[str], seed: int, train_fraction: float = 0.8) -> tuple[Tensor, Tensor]:
    """Indices of training and test images; images of one group, such as a reference image, stay together.

    The first ``round(train_fraction * groups)`` of the shuffled groups train; Python rounds halves to even.

    Args:
        groups: of every image.
        seed: of the order.
        train_fraction: share of the groups; 1 leaves nothing to test on.

    Raises:
        TenfoldError: one side would be empty, or the seed is out of range.
    """
    if not 0 <= seed < 2**32:
        raise TenfoldError(f"a seed is a whole number from 0 to {2**32 - 1}, not {seed}")
    names = sorted(set(groups))
    train_count = round(train_fraction * len(names)) if 0 < train_fraction <= 1 else 0
    if train_count < 1 or (train_fraction < 1 and train_count == len(names)):
        raise TenfoldError(
            f"{len(names)} groups cannot be split into {train_fraction:g} and the rest; give more images or another "
            "--train-fraction"
        )
    order = np.random.RandomState(seed).permutation(len(names))
    training = {names[index] for index in order[:train_count]}
    is_train = torch.tensor([group in training for group in groups])
    return is_train.nonzero()[:, 0], (~is_train).nonzero()[:, 0]
