"""Spectral signatures: poison stands out along the direction in which a class's features vary most.

Source: Tran et al., "Spectral Signatures in Backdoor Attacks" (NeurIPS 2018), Algorithm 1, with the settings of the
specification (section "Defences"). For every class, with features R(x_i), their mean and the first right singular
vector v of the centred features, the score of an image is

    tau_i = ((R(x_i) - mean) . v)^2,

and the 1.5 eps n_c highest of the class's n_c scores are removed.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor

from tenfold.doorping.defences.activation_clustering import check_features, hidden_features
from tenfold.doorping.networks import Network
from tenfold.shared.logging import TenfoldError, get_logger

logger = get_logger("doorping.defences")


@dataclass(frozen=True)
class SpectralConfig:
    """How much is removed."""

    expected_poison: float = 0.1
    """eps, the largest share of a class that may be poisoned. The specification prints none; Tran et al. poison 5 % and
    10 % (from memory), and one image in a hundred of ten classes is 9 % of class t."""
    multiplier: float = 1.5
    """Removed are eps n_c times this."""
    layer: int | None = -2
    """Position of the layer's weight from the end; None takes the flattened trunk."""

    def __post_init__(self) -> None:
        if self.expected_poison <= 0 or self.multiplier <= 0 or self.multiplier * self.expected_poison >= 1:
            raise TenfoldError(
                "spectral signatures remove multiplier x expected poison of a class, between none and all; "
                f"{self.multiplier} x {self.expected_poison} is not"
            )


@dataclass(frozen=True)
class SpectralReport:
    """What spectral signatures found; all tensors on the CPU."""

    scores: Tensor
    """tau, float64 [N]; to be compared within a class."""
    removed: Tensor
    """bool [N]."""
    directions: Tensor
    """v of every class, float64 [K, F], of unknown sign; arbitrary for a class with fewer than two images."""
    auroc: float | None
    """Of the scores against known poison, among the images of those classes that hold poison; None where no poison is
    known or nothing else is in these classes."""
    poison_removed: float | None
    """Share of the known poison that is removed."""
    clean_removed: float | None
    """Share of all other images that is removed."""


def spectral_signatures(
    network: Network,
    images: Tensor,
    labels: Tensor,
    config: SpectralConfig | None = None,
    *,
    features: Tensor | None = None,
    poisoned: Tensor | None = None,
    classes: int | None = None,
) -> SpectralReport:
    """Score every image of a poisoned real set or a distilled one, and mark what is to be removed.

    Nothing is drawn at random. All classes are decomposed at once, padded with zero rows to the largest class, in
    float64: K n_max F numbers of memory. The method says what to remove and not whether there is poison: it removes
    the same share of a clean set. Classes with fewer than 1 / (1.5 eps) images lose none.

    Args:
        network: trained on the set; it does not change.
        images: normalised, [N, C, H, W]; not looked at where features are given.
        labels: int64 [N].
        config: the settings; the standard ones without it.
        features: [N, F]; the network's hidden features without them.
        poisoned: bool [N], where it is known.
        classes: K; the largest label + 1 without it.

    Raises:
        TenfoldError: the data has the wrong shape, or the layer cannot be followed.
    """
    config = config or SpectralConfig()
    features = hidden_features(network, images, config.layer) if features is None else features
    classes = check_features(features, labels, classes, poisoned)
    features, labels = features.double(), labels.to(features.device)

    counts = labels.bincount(minlength=classes)
    means = features.new_zeros(classes, features.shape[1]).index_add(0, labels, features)
    centred = features - (means / counts.clamp(min=1)[:, None])[labels]
    places = _places(labels, counts)
    padded = features.new_zeros(classes, int(counts.max()), features.shape[1])
    padded[labels, places] = centred
    _, _, right = torch.linalg.svd(padded, full_matrices=False)
    directions = right[:, 0]
    scores = torch.linalg.vecdot(centred, directions[labels]).square()

    quota = (config.multiplier * config.expected_poison * counts.double()).round(decimals=9).floor()
    if not bool(quota.any()):
        logger.warning(
            "spectral signatures remove nothing: no class has enough images for its share to be one"
        )
    ranked = torch.full_like(padded[..., 0], -1.0)
    ranked[labels, places] = scores
    ranks = ranked.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    removed = ranks[labels, places] < quota[labels]
    scores, removed = scores.cpu(), removed.cpu()
    return SpectralReport(scores, removed, directions.cpu(), *_against(scores, removed, labels, poisoned))


def _places(labels: Tensor, counts: Tensor) -> Tensor:
    """The place of every image among those of its class, int64 [N]."""
    order = labels.argsort(stable=True)
    starts = counts.cumsum(dim=0) - counts
    places = torch.empty_like(labels)
    places[order] = torch.arange(len(labels), device=labels.device) - starts[labels[order]]
    return places


def _against(
    scores: Tensor, removed: Tensor, labels: Tensor, poisoned: Tensor | None
) -> tuple[float | None, float | None, float | None]:
    """AUROC, share of the poison that is removed, and share of the rest."""
    if poisoned is None or not bool(poisoned.any()):
        return None, None, None
    poisoned, labels = poisoned.cpu(), labels.cpu()
    concerned = torch.isin(labels, labels[poisoned].unique())
    flags = poisoned[concerned]
    auroc = None if bool(flags.all()) else float(roc_auc_score(flags, scores[concerned]))
    rest = None if bool(poisoned.all()) else float(removed[~poisoned].double().mean())
    return auroc, float(removed[poisoned].double().mean()), rest
