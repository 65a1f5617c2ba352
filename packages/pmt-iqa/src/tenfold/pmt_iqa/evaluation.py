"""How well predicted scores agree with labels."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import curve_fit
from scipy.special import expit
from scipy.stats import bootstrap, kendalltau, pearsonr, spearmanr
from scipy.stats import t as student_t
from sklearn.metrics import root_mean_squared_error

from tenfold.shared.logging import TenfoldError

PlccFit = Literal["none", "logistic4"]
Floats = NDArray[np.float64]


def agreement(predictions: ArrayLike, labels: ArrayLike, plcc_fit: PlccFit = "none") -> dict[str, float]:
    """srcc, plcc, krcc and rmse of one prediction for each image.

    Args:
        predictions: [n].
        labels: [n].
        plcc_fit: ``logistic4`` maps predictions onto labels by a logistic curve of four parameters before plcc and
            rmse, as many papers do; the authors do not.

    Raises:
        TenfoldError: the lengths differ, there are fewer than two images, or all labels are equal.
    """
    predicted, label = _checked(predictions, labels)
    if np.ptp(predicted) == 0:  # a constant orders nothing
        return {
            "srcc": 0.0,
            "plcc": 0.0,
            "krcc": 0.0,
            "rmse": float(root_mean_squared_error(label, predicted)),
        }
    mapped = logistic_fit(predicted, label) if plcc_fit == "logistic4" else predicted
    return {
        "srcc": float(spearmanr(predicted, label).statistic),
        "plcc": float(pearsonr(mapped, label).statistic) if np.ptp(mapped) > 0 else 0.0,
        "krcc": float(kendalltau(predicted, label).statistic),
        "rmse": float(root_mean_squared_error(label, mapped)),
    }


def logistic_fit(predictions: ArrayLike, labels: ArrayLike) -> Floats:
    """Predictions mapped onto labels by a rising logistic curve of four parameters, by least squares (VQEG).

    ``b2 + (b1 - b2) / (1 + exp(-(x - b3) / b4))`` with ``b1 >= b2`` and ``b4 > 0``: predictions that fall as labels
    rise are not turned round. Where no curve can be fitted, a straight line is.

    Raises:
        TenfoldError: there are fewer than four images.
    """
    predicted, label = _checked(predictions, labels)
    if len(label) < 4:
        raise TenfoldError(f"a logistic curve of four parameters needs at least 4 images, not {len(label)}")
    spread = float(predicted.std()) or 1.0
    start = (float(label.min()), float(np.ptp(label)), float(np.median(predicted)), spread)
    limits = ((-np.inf, 0.0, -np.inf, 1e-6 * spread), np.inf)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            parameters, _ = curve_fit(_logistic, predicted, label, p0=start, bounds=limits, maxfev=500)
    except RuntimeError:  # a straight line, where that rises
        slope, start_at = np.polyfit(predicted, label, 1)
        return np.asarray(
            max(slope, 0.0) * predicted + (start_at if slope > 0 else label.mean()), dtype=np.float64
        )
    return _logistic(predicted, *parameters)


def patch_average_metrics(
    predictions: ArrayLike, targets: ArrayLike, patches_per_image: int
) -> tuple[float, float]:
    """SRCC and PLCC of the means over each image's crops, without any fit.

    Args:
        predictions: one for each crop, image by image; [n * patches_per_image].
        targets: likewise.
        patches_per_image: k.

    Raises:
        TenfoldError: the number of crops is no multiple of k.
    """
    crops = np.asarray(predictions, dtype=np.float64).reshape(-1)
    labels = np.asarray(targets, dtype=np.float64).reshape(-1)
    if patches_per_image < 1 or len(crops) % patches_per_image or len(labels) != len(crops):
        raise TenfoldError(
            f"{len(crops)} predictions and {len(labels)} labels are not images of {patches_per_image} crops each"
        )
    found = agreement(*(values.reshape(-1, patches_per_image).mean(axis=1) for values in (crops, labels)))
    return found["srcc"], found["plcc"]


def median_over_runs(runs: ArrayLike) -> Floats:
    """The median of each metric by itself: [runs, metrics] to [metrics]."""
    return np.asarray(np.median(np.asarray(runs, dtype=np.float64), axis=0), dtype=np.float64)


def summarise(runs: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Median of every metric that all runs have, and its 95 % interval by the bootstrap (``..._low``, ``..._high``)."""
    found: dict[str, float] = {}
    for name in runs[0]:
        if not all(name in run for run in runs):
            continue
        values = np.array([run[name] for run in runs], dtype=np.float64)
        found[name] = float(np.median(values))
        if len(values) > 1 and np.ptp(values) > 0:
            interval = bootstrap(
                (values,), np.median, method="percentile", rng=np.random.default_rng(0)
            ).confidence_interval
            found |= {f"{name}_low": float(interval.low), f"{name}_high": float(interval.high)}
    return found


def paired_difference(
    first: Sequence[float], second: Sequence[float], test_fraction: float = 0.0
) -> tuple[float, float, float]:
    """Mean of ``first - second`` over the same splits, and its 95 % interval by Student's t.

    Random splits of one data set share images, so their results are not independent; the variance is corrected for that
    (Nadeau and Bengio, 2003): ``var (1/n + test/train)``.

    Args:
        first: one value for each split.
        second: likewise.
        test_fraction: share of the images that are tested; 0 is no correction.

    Returns:
        Mean, low and high; the interval of a single pair is not known (nan).
    """
    if len(first) != len(second) or not len(first):
        raise TenfoldError(f"{len(first)} and {len(second)} values are no pairs")
    differences = np.subtract(first, second)
    mean, count = float(differences.mean()), len(differences)
    if count < 2:
        return mean, float("nan"), float("nan")
    variance = float(differences.var(ddof=1)) * (1 / count + test_fraction / (1 - test_fraction))
    reach = float(student_t.ppf(0.975, count - 1)) * variance**0.5
    return mean, mean - reach, mean + reach


def _logistic(x: Floats, bottom: float, height: float, middle: float, width: float) -> Floats:
    return np.asarray(bottom + height * expit((x - middle) / width), dtype=np.float64)


def _checked(predictions: ArrayLike, labels: ArrayLike) -> tuple[Floats, Floats]:
    predicted = np.asarray(predictions, dtype=np.float64).reshape(-1)
    label = np.asarray(labels, dtype=np.float64).reshape(-1)
    if len(predicted) != len(label) or len(label) < 2:
        raise TenfoldError(
            f"an agreement needs a prediction for each of at least two labels, not {len(predicted)} and {len(label)}"
        )
    if not np.isfinite(label).all():
        raise TenfoldError("some labels are no finite numbers; remove their rows")
    if np.ptp(label) == 0:
        raise TenfoldError(
            f"all labels are {label[0]:g}, so no order can be compared; check the column of scores"
        )
    if not np.isfinite(predicted).all():
        raise TenfoldError("the predictions are not finite numbers; lower --train.lr and train again")
    return predicted, label
