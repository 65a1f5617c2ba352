"""Activation clustering: a class whose hidden features fall into two groups of unlike size is suspected of poison.

Source: Chen et al., "Detecting Backdoor Attacks on Deep Neural Networks by Activation Clustering" (SafeAI 2019), with
the settings of the specification (section "Defences"): for each class the features are reduced to 10 dimensions, and
2-means splits them. What Chen et al. call relative size and silhouette score are the criteria here; their exclusionary
reclassification, which trains a further network, is not.
"""

from __future__ import annotations

import math
import warnings
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA, FastICA
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics import roc_auc_score, silhouette_score
from torch import Tensor

from tenfold.doorping.defences.strip import check_images
from tenfold.doorping.networks import Network
from tenfold.shared.logging import TenfoldError, get_logger

Reduction = Literal["pca", "ica"]
Criterion = Literal["relative-size", "silhouette", "both"]
SMALLEST_CLASS = 4
"""Fewer images cannot be split but into a smaller part below 0.35."""
ICA_STEPS, ICA_TOLERANCE = 1000, 0.005
"""Of FastICA, as in ART."""

logger = get_logger("doorping.defences")


@dataclass(frozen=True)
class ClusteringConfig:
    """How classes are split and judged."""

    reduction: Reduction = "pca"
    """PCA as in ART, or FastICA as in Chen et al."""
    dimensions: int = 10
    """Of the reduced features; fewer where a class's features span fewer."""
    criterion: Criterion = "relative-size"
    """Flag a class by the relative size of its smaller cluster, by its silhouette, or where both say so."""
    size_threshold: float = 0.35
    """A smaller cluster with less than this share of its class is suspicious."""
    silhouette_threshold: float = 0.1
    """A silhouette above it is suspicious; Chen et al. find 0.10 to 0.15 reasonable (from memory, unverified)."""
    layer: int | None = -2
    """Position of the layer's weight from the end; None takes the flattened trunk, for networks with a single linear
    layer."""

    def __post_init__(self) -> None:
        if self.reduction not in ("pca", "ica"):
            raise TenfoldError(f"unknown reduction {self.reduction!r}; choose pca or ica")
        if self.criterion not in ("relative-size", "silhouette", "both"):
            raise TenfoldError(
                f"unknown criterion {self.criterion!r}; choose relative-size, silhouette or both"
            )
        if self.dimensions < 1:
            raise TenfoldError(f"features are reduced to at least 1 dimension, not {self.dimensions}")
        if not 0 < self.size_threshold <= 0.5:
            raise TenfoldError(f"the smaller cluster's share is at most 0.5; lower {self.size_threshold}")
        if not -1 <= self.silhouette_threshold < 1:
            raise TenfoldError(
                f"a silhouette is from -1 to 1; {self.silhouette_threshold} is no threshold for it"
            )


@dataclass(frozen=True)
class ClusteringReport:
    """What activation clustering found; all tensors on the CPU."""

    clusters: Tensor
    """int64 [N]: 0 in its class's larger cluster, 1 in the smaller one, -1 where the class is not judged."""
    sizes: Tensor
    """Images in the larger and the smaller cluster of every class, int64 [K, 2]; 0 where it is not judged."""
    silhouettes: Tensor
    """Mean silhouette of every class, float64 [K]; nan where it is not judged."""
    flagged: Tensor
    """bool [K]."""
    suspicion: Tensor
    """float64 [N], d_larger / (d_larger + d_smaller) of the distances to both centres: above 0.5 nearer to the smaller
    cluster; 0 in classes that are not flagged."""
    suspected: Tensor
    """bool [N]: in the smaller cluster of a flagged class."""
    not_judged: dict[int, str]
    """Why, for each class that was not judged."""
    auroc: float | None
    """Of the suspicion against known poison, over all images; None where it is not known."""

    @property
    def detected(self) -> bool:
        """Whether any class is flagged."""
        return bool(self.flagged.any())


def features_at(network: Network, images: Tensor, layer: int | None) -> Tensor:
    """What a layer gives after its activation function, or the flattened trunk for None: [B, F]."""
    found: Tensor = network.features(images) if layer is None else network.hidden(images, layer)
    return found.flatten(1)


def hidden_features(
    network: Network, images: Tensor, layer: int | None = -2, batch_size: int = 1024
) -> Tensor:
    """The features that defences of the data set look at, in evaluation mode.

    Args:
        network: it does not change.
        images: normalised, [N, C, H, W].
        layer: position of the layer's weight from the end; what it gives after its activation function. None takes
            the flattened trunk.
        batch_size: images of one pass.

    Returns:
        [N, F], on the images' device.

    Raises:
        TenfoldError: the images have the wrong shape, or the layer cannot be followed.
    """
    check_images(images, "labelled")
    network = deepcopy(network).eval()

    with torch.no_grad():
        return torch.cat([features_at(network, part, layer) for part in images.split(batch_size)])


def check_features(features: Tensor, labels: Tensor, classes: int | None, poisoned: Tensor | None) -> int:
    """The number of classes K of features [N, F], labels int64 [N] from 0 to K-1 and flags bool [N].

    Raises:
        TenfoldError: they have another shape or kind, or features are not finite.
    """
    if features.ndim != 2 or not features.is_floating_point() or not len(features):
        raise TenfoldError(f"give features as floats [N, F], not {features.dtype} {list(features.shape)}")
    if not bool(features.isfinite().all()):
        raise TenfoldError(
            "some features are infinite or no numbers; bound the trigger or retrain the network"
        )
    if labels.dtype != torch.int64 or labels.shape != features.shape[:1]:
        raise TenfoldError(
            f"give one int64 label for each of {len(features)} images, not {labels.dtype} {list(labels.shape)}"
        )
    lowest, highest = int(labels.min()), int(labels.max())
    classes = highest + 1 if classes is None else classes
    if lowest < 0 or highest >= classes:
        raise TenfoldError(
            f"labels of {classes} classes are from 0 to {classes - 1}, not from {lowest} to {highest}"
        )
    if poisoned is not None and (poisoned.dtype != torch.bool or poisoned.shape != labels.shape):
        raise TenfoldError(f"give a bool for each of {len(labels)} images to say which are poisoned")
    return classes


def activation_clustering(
    network: Network,
    images: Tensor,
    labels: Tensor,
    config: ClusteringConfig | None = None,
    generator: torch.Generator | None = None,
    *,
    features: Tensor | None = None,
    poisoned: Tensor | None = None,
    classes: int | None = None,
) -> ClusteringReport:
    """Split every class in two and say which look poisoned.

    It takes a poisoned real set as well as a distilled one. A class is not judged, and the report says so, where it has
    fewer than four images or all its features are alike. With ten images a smaller cluster of up to three is flagged:
    on small sets read the sizes and the silhouettes rather than the flags.

    Args:
        network: trained on the set, or another one of the defender's; it does not change.
        images: normalised, [N, C, H, W]; not looked at where features are given.
        labels: int64 [N].
        config: the settings; the standard ones without it.
        generator: of the first centres and of ICA, on the CPU; seed 0 without it.
        features: [N, F]; the network's hidden features without them.
        poisoned: bool [N], where it is known.
        classes: K; the largest label + 1 without it.

    Raises:
        TenfoldError: the data has the wrong shape, or the layer cannot be followed.
    """
    config = config or ClusteringConfig()
    generator = generator or torch.Generator().manual_seed(0)
    features = hidden_features(network, images, config.layer) if features is None else features
    classes = check_features(features, labels, classes, poisoned)
    values, owners = features.double().cpu().numpy(), labels.cpu().numpy()
    seed = int(torch.randint(2**31 - 1, (), generator=generator))

    clusters, nearness = np.full(len(owners), -1), np.zeros(len(owners))
    silhouettes, not_judged, unconverged = np.full(classes, math.nan), {}, []
    for number in range(classes):
        members = np.flatnonzero(owners == number)
        dimensions = _dimensions(values[members], config)
        if isinstance(dimensions, str):
            not_judged[number] = f"class {number} {dimensions}"
            continue
        reduced, converged = _reduce(values[members], dimensions, config.reduction, seed)
        if not converged:
            unconverged.append(str(number))
        clusters[members], nearness[members] = _split(reduced, seed)
        silhouettes[number] = silhouette_score(reduced, clusters[members])
    if unconverged:
        logger.warning("ICA did not converge for the classes %s; PCA always does", ", ".join(unconverged))

    sizes = np.stack([np.bincount(owners[clusters == part], minlength=classes) for part in (0, 1)], axis=1)
    flagged = _flags(sizes, silhouettes, config)
    suspicion = np.where(flagged[owners], nearness, 0.0)
    known = None if poisoned is None else poisoned.cpu().numpy()
    mixed = known is not None and 0 < known.sum() < len(known)
    return ClusteringReport(
        torch.from_numpy(clusters),
        torch.from_numpy(sizes),
        torch.from_numpy(silhouettes),
        torch.from_numpy(flagged),
        torch.from_numpy(suspicion),
        torch.from_numpy(flagged[owners] & (clusters == 1)),
        not_judged,
        float(roc_auc_score(known, suspicion)) if mixed else None,
    )


def _dimensions(values: NDArray[Any], config: ClusteringConfig) -> int | str:
    """To how many dimensions features [n, F] are reduced, or why the class is not judged."""
    if len(values) < SMALLEST_CLASS:
        return f"has fewer than {SMALLEST_CLASS} images: {len(values)}"
    noise = float(np.finfo(np.float32).eps * np.linalg.norm(values))  # what rounding makes of equal images
    rank = int(np.linalg.matrix_rank(values - values.mean(axis=0), tol=noise))
    return min(config.dimensions, rank) or "has the same features in all of its images"


def _reduce(
    values: NDArray[Any], dimensions: int, reduction: Reduction, seed: int
) -> tuple[NDArray[Any], bool]:
    """Features [n, F] in few dimensions, and whether the search for them converged."""
    if reduction == "pca":
        return PCA(dimensions, random_state=seed).fit_transform(values), True
    ica = FastICA(
        dimensions, whiten="unit-variance", max_iter=ICA_STEPS, tol=ICA_TOLERANCE, random_state=seed
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return ica.fit_transform(values), ica.n_iter_ < ICA_STEPS


def _split(reduced: NDArray[Any], seed: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """For features [n, D]: 1 in the smaller cluster and 0 in the larger; d_larger / (d_larger + d_smaller)."""
    means = KMeans(2, n_init=10, random_state=seed).fit(reduced)
    smaller = np.bincount(means.labels_, minlength=2).argmin()
    distances = means.transform(reduced)
    return (means.labels_ == smaller).astype(np.int64), distances[:, 1 - smaller] / distances.sum(axis=1)


def _flags(sizes: NDArray[Any], silhouettes: NDArray[Any], config: ClusteringConfig) -> NDArray[Any]:
    judged = ~np.isnan(silhouettes)
    small = sizes[:, 1] / np.maximum(sizes.sum(axis=1), 1) < config.size_threshold
    apart = silhouettes > config.silhouette_threshold
    criteria = {"relative-size": small, "silhouette": apart, "both": small & apart}
    flags: NDArray[Any] = judged & criteria[config.criterion]
    return flags
