"""BRISQUE (Mittal, Moorthy and Bovik, TIP 2012): statistics of natural scenes, and a support vector regression.

It learns no features: 18 numbers at each of two scales describe the distribution of locally normalised brightness and
of its products with neighbours. It is what learned networks are measured against.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy.special import gamma
from sklearn.compose import TransformedTargetRegressor
from sklearn.model_selection import GridSearchCV, GroupKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVR
from torch import Tensor

from tenfold.pmt_iqa.pixels import PixelStore
from tenfold.shared.logging import TenfoldError

Floats = NDArray[np.float64]

_SHAPES = np.arange(0.2, 10.001, 0.001)
_NEIGHBOURS = ((0, 1), (1, 0), (1, 1), (1, -1))
_GRID = {"regressor__svr__C": (0.3, 1.0, 3.0, 10.0, 30.0), "regressor__svr__gamma": (0.003, 0.01, 0.03, 0.1)}


def brisque_features(luma: Tensor) -> Tensor:
    """The 36 features of grey images.

    Args:
        luma: from 0 to 255, [n, 1, H, W].

    Returns:
        float64 [n, 36]: for each of two scales the shape and variance of the coefficients, then for each of four
        neighbours shape, mean, and left and right variance of the products.
    """
    halved = F.interpolate(luma, scale_factor=0.5, mode="bicubic", antialias=True)
    return torch.cat([_scale_features(normalised_coefficients(scale)) for scale in (luma, halved)], dim=1)


def normalised_coefficients(luma: Tensor) -> Tensor:
    """MSCN: ``(x - mean) / (deviation + 1)`` in a 7 x 7 Gaussian window of deviation 7/6; [n, 1, H, W].

    Edges are continued by their last pixel, where the original pads with zeros.
    """
    steps = torch.arange(-3, 4, dtype=torch.float64)
    line = torch.exp(-(steps**2) / (2 * (7 / 6) ** 2))
    line = (line / line.sum()).to(luma)

    def blurred(values: Tensor) -> Tensor:
        padded = F.pad(values, (3, 3, 3, 3), mode="replicate")
        return F.conv2d(F.conv2d(padded, line.view(1, 1, 1, 7)), line.view(1, 1, 7, 1))

    mean = blurred(luma)
    deviation = (blurred(luma.square()) - mean.square()).abs().sqrt()
    return (luma - mean) / (deviation + 1)


def features_of(store: PixelStore) -> Floats:
    """The features of every image, [n, 36]; images of one size are computed together."""
    weights = torch.tensor((0.299, 0.587, 0.114))
    found = torch.zeros(len(store), 36, dtype=torch.float64)
    for size in store.sizes.unique(dim=0):
        same = (store.sizes == size).all(dim=1).nonzero()[:, 0]
        for part in same.split(64):
            pictures = torch.stack([torch.from_numpy(store.picture(int(index))) for index in part])
            found[part] = brisque_features((pictures.float() @ weights)[:, None])
    return found.numpy()


def fit_and_predict(
    features: Floats, scores: Floats, groups: Sequence[str], train: NDArray[np.int64], test: NDArray[np.int64]
) -> Floats:
    """Train a support vector regression, tuned by cross-validation among the training groups, and predict.

    Args:
        features: of all images, [n, 36].
        scores: [n].
        groups: of all images.
        train: indices that train.
        test: indices to predict.

    Raises:
        TenfoldError: the training images are all of one group.
    """
    own = [groups[index] for index in train]
    if len(set(own)) < 2:
        raise TenfoldError(
            "the training images are all of one group, so nothing can be tuned on others; add images"
        )
    folds = GroupKFold(min(3, len(set(own))))
    regression = TransformedTargetRegressor(
        make_pipeline(StandardScaler(), SVR()), transformer=StandardScaler()
    )
    search = GridSearchCV(regression, _GRID, cv=folds, scoring="neg_mean_absolute_error")
    search.fit(features[train], scores[train], groups=own)
    return np.asarray(search.predict(features[test]), dtype=np.float64)


def _scale_features(coefficients: Tensor) -> Tensor:
    values = coefficients.double()
    flat = values.flatten(1)
    variance = flat.square().mean(dim=1)
    shape = _shape_of(variance / flat.abs().mean(dim=1).square(), symmetric=True)
    found = [shape, variance]
    for rows, columns in _NEIGHBOURS:
        products = (values * values.roll((rows, columns), dims=(2, 3))).flatten(1)
        found += _asymmetric(products)
    return torch.stack(found, dim=1)


def _asymmetric(values: Tensor) -> list[Tensor]:
    """Shape, mean, left and right variance of an asymmetric generalised Gaussian, by moments; [n, m] to four of [n]."""

    def mean_square(chosen: Tensor) -> Tensor:
        return (values.square() * chosen).sum(dim=1) / chosen.sum(dim=1).clamp(min=1)

    left, right = mean_square(values < 0).clamp(min=1e-12), mean_square(values > 0).clamp(min=1e-12)
    balance = (left / right).sqrt()
    ratio = values.abs().mean(dim=1).square() / values.square().mean(dim=1).clamp(min=1e-12)
    ratio = ratio * (balance**3 + 1) * (balance + 1) / (balance**2 + 1) ** 2
    shape = _shape_of(ratio, symmetric=False)
    alpha = shape.numpy()
    spread = torch.from_numpy(gamma(2 / alpha) / np.sqrt(gamma(1 / alpha) * gamma(3 / alpha)))
    return [shape, (right.sqrt() - left.sqrt()) * spread, left, right]


def _shape_of(ratio: Tensor, symmetric: bool) -> Tensor:
    """The shape whose generalised Gaussian has this ratio of moments, from a table; [n]."""
    moments = _moments()
    table = torch.from_numpy(1 / moments if symmetric else moments)
    if symmetric:  # falls with the shape
        place = len(table) - torch.searchsorted(table.flip(0).contiguous(), ratio)
    else:
        place = torch.searchsorted(table, ratio)
    return torch.from_numpy(_SHAPES)[place.clamp(0, len(table) - 1)]


@cache
def _moments() -> Floats:
    """``E|x|^2 / E x^2`` by shape; it rises."""
    return np.asarray(gamma(2 / _SHAPES) ** 2 / (gamma(1 / _SHAPES) * gamma(3 / _SHAPES)), dtype=np.float64)
