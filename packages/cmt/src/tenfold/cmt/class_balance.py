"""Class-balanced grouping and sampling (CBGS): rare classes are drawn as often as common ones."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from tenfold.cmt.config import CLASSES
from tenfold.cmt.keyframes import Keyframe
from tenfold.shared.logging import TenfoldError


def class_balanced_indices(
    keyframes: Sequence[Keyframe] | Sequence[NDArray[np.int64]], generator: np.random.Generator
) -> NDArray[np.int64]:
    """Places of the keyframes of an epoch, class after class.

    A class c in n_c keyframes has the share v_c = n_c / sum of n; int(n_c (1/10) / v_c) of its keyframes are drawn with
    replacement. A class without keyframes is left out.

    Args:
        keyframes: those of the split, or the labels of each. All boxes count, those without points too.
        generator: draws.

    Returns:
        [M]: places in ``keyframes``, to be shuffled. nuScenes' 28,130 become about 123,580.

    Raises:
        TenfoldError: no keyframe holds an object, or there are too few to draw any.
    """
    labels = [frame.labels if isinstance(frame, Keyframe) else frame for frame in keyframes]
    holds = np.zeros((len(labels), len(CLASSES)), dtype=np.bool_)
    owners = np.repeat(np.arange(len(labels)), [len(one) for one in labels])
    holds[owners, np.concatenate([*labels, np.empty(0, dtype=np.int64)])] = True
    counts = holds.sum(axis=0)
    if not counts.any():
        raise TenfoldError(
            "no keyframe of the training split holds an object of the ten classes; choose another split"
        )
    shares = counts / counts.sum()
    drawn = [
        generator.choice(np.flatnonzero(holds[:, c]), int(counts[c] * (1 / len(CLASSES) / shares[c])))
        for c in np.flatnonzero(counts)
    ]
    chosen = np.concatenate(drawn)
    if not len(chosen):
        raise TenfoldError("there are too few keyframes to balance classes; set class_balanced to False")
    return chosen
