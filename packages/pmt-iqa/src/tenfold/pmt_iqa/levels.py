"""Quality levels: the class of an image, from its label."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tenfold.shared.logging import TenfoldError

LevelRule = Literal["bid", "livec", "koniq10k", "koniq", "csiq", "live", "tid2013", "proxy", "equal-width"]

Array = NDArray[Any]


def _live(dmos: Array) -> Array:
    """9 from 100 on, else tenths, cut off; -1 for images with a negative DMOS, which are dropped."""
    tenths = np.trunc(np.abs(dmos) / 10)
    return np.where(dmos < 0, -1, np.where(np.abs(dmos) >= 100, 9, tenths))


# NumPy rounds halves to even, as Python and the authors do: 15 is level 2, and so is 25.
_RULES: dict[str, Callable[[Array], Array]] = {
    "bid": lambda mos: np.trunc(mos / 0.5),
    "livec": lambda mos: np.round(mos / 10),
    "koniq10k": lambda mos: np.round(mos / 10),
    "koniq": lambda mos: np.round(mos / 10),
    "csiq": lambda dmos: np.round(10 * dmos),
    "live": _live,
    "tid2013": np.trunc,
    "proxy": np.floor,
}


def quality_level(
    dataset: str, label: ArrayLike, clamp: bool = True, number_class: int = 10
) -> NDArray[np.int64] | np.int64:
    """The quality level of a label by the authors' rule for its data set.

    Args:
        dataset: bid, livec, koniq10k (or koniq), csiq, live; tid2013 and proxy by rules of ours.
        label: MOS or DMOS, any shape; computed in its own precision.
        clamp: keep levels below ``number_class``; without it, CSIQ's 1.0 gives 10, which ten classes do not have.
        number_class: K.

    Returns:
        int64 of the label's shape; -1 for an image of LIVE that is dropped.

    Raises:
        TenfoldError: no rule is known, or a label is not finite.
    """
    if dataset not in _RULES:
        raise TenfoldError(
            f"there is no rule for quality levels of {dataset!r}; choose one of {', '.join(_RULES)}"
        )
    values = np.asarray(label)
    if not np.issubdtype(values.dtype, np.floating):
        try:
            values = values.astype(np.float64)
        except ValueError as error:
            raise TenfoldError(f"labels are numbers: {error}") from error
    if not np.isfinite(values).all():
        raise TenfoldError("labels are finite numbers; remove the rows whose label is missing")
    levels = _RULES[dataset](values).astype(np.int64)
    if clamp:
        levels = np.clip(levels, -1 if dataset == "live" else 0, number_class - 1)
    return levels if levels.ndim else np.int64(levels)


def check_scores_differ(scores: ArrayLike) -> None:
    """Refuse scores that are all equal.

    Raises:
        TenfoldError: they are.
    """
    values = np.asarray(scores)
    if np.ptp(values) == 0:
        raise TenfoldError(
            f"all labels are {values.flat[0]:g}: scores that never differ teach nothing; check the column of scores"
        )


def equal_width_levels(
    labels: ArrayLike, low: float, high: float, number_class: int = 10
) -> NDArray[np.int64]:
    """Levels of equal width between two labels, for data sets without a rule of their own.

    Args:
        labels: [n].
        low: lower end of level 0.
        high: upper end of the last level; labels outside fall into the first and last level.
        number_class: K.

    Raises:
        TenfoldError: ``high`` is not above ``low``.
    """
    if not high > low:
        raise TenfoldError(f"the scale of the labels goes from {low:g} to {high:g}; give its lower end first")
    shares = (np.asarray(labels, dtype=np.float64) - low) / (high - low)
    return np.clip(np.floor(shares * number_class), 0, number_class - 1).astype(np.int64)
