"""The defences of the Adversarial Robustness Toolbox on the same networks, as a cross-check of ours.

Source: adversarial-robustness-toolbox 1.20 (the extra ``tenfold-doorping[art]``), whose STRIP, ActivationDefence and
SpectralSignatureDefense are run through its PyTorchClassifier. They depart from the papers, as its source shows:

- STRIP takes the entropy over the overlays of every class, not over the classes of every overlay, and fits a normal
  distribution to set the threshold.
- ActivationDefence takes what the last child module gives, which for a plain network is its logits; here it is given
  the hidden features. With silhouettes it leaves the larger cluster of a suspicious class undefined, so what it says
  of single images is not used. Its analysis of relative sizes fails on NumPy 2.2 and later at the first class that is
  not suspicious, so that rule is applied here to its clusters, rounded to two decimals as ART does.
- SpectralSignatureDefense projects the features as they are on the direction of the centred ones, and does not square.

ART's Neural Cleanse cannot be used: its constructor takes Keras classifiers only.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import entropy
from torch import Tensor, nn

from tenfold.doorping.defences.activation_clustering import (
    ClusteringConfig,
    ClusteringReport,
    check_features,
    features_at,
    hidden_features,
)
from tenfold.doorping.defences.spectral_signatures import SpectralConfig
from tenfold.doorping.defences.strip import StripConfig, StripReport, check_images, entropy_auroc
from tenfold.doorping.networks import Network
from tenfold.shared.logging import TenfoldError

ART_SIZE_THRESHOLD, ART_SILHOUETTE_THRESHOLD = 0.35, 0.1
"""What ART's cluster analysis has built in."""


@dataclass(frozen=True)
class ArtStripReport:
    """What ART's STRIP found; all tensors on the CPU."""

    report: StripReport
    """As ART decides, with the entropies and the threshold of its own definition."""
    drawn: Tensor
    """The held-out images that ART laid over the clean and then the triggered inputs, int64 [n + m, N]."""
    paper_entropies: Tensor
    """h of the same overlaid images as the paper defines it, in bits, float64 [n + m]."""


@dataclass(frozen=True)
class ArtSpectralReport:
    """What ART's spectral signatures found; all tensors on the CPU."""

    scores: Tensor
    """|R(x) . v|, float64 [N], features not centred, as ART has it."""
    centred_scores: Tensor
    """|(R(x) - mean) . v|, float64 [N]: ART's function for features that are centred already; squared, it is tau."""
    removed: Tensor
    """bool [N], by the quantile of ``scores``."""


def art_strip(
    network: nn.Module,
    held_out: Tensor,
    clean: Tensor,
    triggered: Tensor,
    config: StripConfig | None = None,
    generator: torch.Generator | None = None,
) -> ArtStripReport:
    """ART's STRIP with the arguments of :func:`tenfold.doorping.defences.strip.strip`.

    ART asks the network for each input by itself: some milliseconds for every held-out image and input.

    Raises:
        TenfoldError: ART is not installed, the images have the wrong shape, or overlays are summed, which ART cannot.
    """
    config = config or StripConfig()
    generator = generator or torch.Generator().manual_seed(0)
    for images, name in ((held_out, "held-out"), (clean, "clean"), (triggered, "triggered")):
        check_images(images, name)
    if config.mode != "blend":
        raise TenfoldError("ART's STRIP only blends; choose the mode blend to compare with it")
    transformer = _art("defences.transformer.poisoning").STRIP(
        _classifier(_Probabilities(network), held_out, _classes(network, held_out))
    )
    said: list[NDArray[Any]] = []
    with _numpy_seeded(generator), contextlib.redirect_stderr(io.StringIO()):  # its progress bar
        guarded = transformer(config.overlays, config.false_rejection_rate)
        guarded.mitigate(_array(held_out))
        threshold, state = float(guarded.entropy_threshold), np.random.get_state()
        predict = guarded.predict_fn

        def remember(inputs: NDArray[Any]) -> NDArray[Any]:
            said.append(predict(inputs))
            return said[-1]

        guarded.predict_fn = remember
        kept = [guarded.predict(_array(images)).any(axis=1) for images in (clean, triggered)]
        np.random.set_state(state)
        pool = np.arange(len(held_out))
        drawn = [np.random.choice(pool, config.overlays) for _ in range(len(clean) + len(triggered))]
    # Before the overlaid images ART asks for the inputs themselves.
    overlaid = np.stack(said[1 : len(clean) + 1] + said[len(clean) + 2 :]).astype(np.float64)
    own = torch.from_numpy(entropy(overlaid, base=2, axis=1).sum(axis=1) / config.overlays)
    without, with_trigger = own[: len(clean)], own[len(clean) :]
    report = StripReport(
        threshold,
        without,
        with_trigger,
        float(1 - kept[0].mean()),
        float(kept[1].mean()),
        entropy_auroc(without, with_trigger),
    )
    paper = torch.from_numpy(entropy(overlaid, base=2, axis=2).mean(axis=1))
    return ArtStripReport(report, torch.from_numpy(np.stack(drawn)), paper)


def art_activation_clustering(
    network: Network,
    images: Tensor,
    labels: Tensor,
    config: ClusteringConfig | None = None,
    generator: torch.Generator | None = None,
) -> ClusteringReport:
    """ART's ActivationDefence with the arguments of ``activation_clustering``.

    Its suspicion is 1 for suspected images and 0 for others; silhouettes have four decimals.

    Raises:
        TenfoldError: ART is not installed, the data has the wrong shape, a class is too small for ART, or ART has no
            such criterion or threshold.
    """
    config = config or ClusteringConfig()
    generator = generator or torch.Generator().manual_seed(0)
    if config.criterion == "silhouette" or (config.size_threshold, config.silhouette_threshold) != (
        ART_SIZE_THRESHOLD,
        ART_SILHOUETTE_THRESHOLD,
    ):
        raise TenfoldError(
            "ART judges clusters by relative-size or both, with thresholds 0.35 and 0.1; choose these"
        )
    classes = _classes(network, images)
    check_features(hidden_features(network, images[:1], config.layer), labels[:1], classes, None)
    counts = labels.bincount(minlength=classes)
    if int(counts.min()) < max(config.dimensions, 3):
        raise TenfoldError(
            f"ART's activation clustering needs {max(config.dimensions, 3)} images of each of {classes} classes; lower "
            "the dimensions, or use ours"
        )
    defence = _art("defences.detector.poison").ActivationDefence(
        _classifier(_Exposed(network, config.layer), images, classes), _array(images), labels.cpu().numpy()
    )
    reduction = "PCA" if config.reduction == "pca" else "FastICA"
    with _numpy_seeded(generator):
        analysis, _ = defence.detect_poison(
            nb_clusters=2, nb_dims=config.dimensions, reduce=reduction, cluster_analysis="silhouette-scores"
        )
    judged = [analysis[f"class_{number}"] for number in range(classes)]

    clusters, owners = torch.empty_like(labels, device="cpu"), labels.cpu()
    for number, found in enumerate(defence.clusters_by_class):
        smaller = np.bincount(found, minlength=2).argmin()
        clusters[owners == number] = torch.from_numpy((found == smaller).astype(np.int64))
    sizes = torch.stack([owners[clusters == part].bincount(minlength=classes) for part in (0, 1)], dim=1)
    if config.criterion == "both":
        flagged = torch.tensor([bool(each["suspicious"]) for each in judged])
    else:
        shares = (sizes[:, 1] / sizes.sum(dim=1)).double().round(decimals=2)
        flagged = shares < ART_SIZE_THRESHOLD
    suspected = flagged[owners] & (clusters == 1)
    return ClusteringReport(
        clusters,
        sizes,
        torch.tensor([float(each["avg_silhouette_score"]) for each in judged], dtype=torch.float64),
        flagged,
        suspected.double(),
        suspected,
        {},
        None,
    )


def art_spectral_signatures(
    network: Network, images: Tensor, labels: Tensor, config: SpectralConfig | None = None
) -> ArtSpectralReport:
    """ART's SpectralSignatureDefense with the arguments of ``spectral_signatures``.

    Raises:
        TenfoldError: ART is not installed, the data has the wrong shape, or the layer cannot be followed.
    """
    config = config or SpectralConfig()
    classes = _classes(network, images)
    features = hidden_features(network, images, config.layer).double().cpu()
    check_features(features, labels, classes, None)
    defence = _art("defences.detector.poison").SpectralSignatureDefense(
        _classifier(_Exposed(network, config.layer), images, classes),
        _array(images),
        labels.cpu().numpy(),
        expected_pp_poison=config.expected_poison,
        eps_multiplier=config.multiplier,
    )
    _, kept = defence.detect_poison()
    # ART reports the scores of what it removes: asked to remove everything, it reports all.
    everything, _ = defence.detect_poison(expected_pp_poison=1.0, eps_multiplier=1.0)
    scores = torch.tensor([float(everything[index]) for index in range(len(images))], dtype=torch.float64)
    centred = torch.zeros_like(scores)
    for number in labels.unique().tolist():
        members = labels.cpu() == number
        values = features[members] - features[members].mean(dim=0)
        centred[members] = torch.from_numpy(defence.spectral_signature_scores(values.numpy())[:, 0])
    return ArtSpectralReport(scores, centred, ~torch.tensor(kept, dtype=torch.bool))


class _Probabilities(nn.Module):
    """The softmax of a network, never 0: ART divides by the sum over the overlays."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = deepcopy(network)

    def forward(self, images: Tensor) -> Tensor:
        probabilities: Tensor = self.network(images).softmax(dim=1)
        return probabilities.clamp_min(torch.finfo(probabilities.dtype).tiny)


class _Exposed(nn.Module):
    """A network whose last child is passed the hidden features, which is where ART reads them."""

    def __init__(self, network: Network, layer: int | None) -> None:
        super().__init__()
        self.network = deepcopy(network)
        self.layer = layer
        self.features = nn.Identity()

    def forward(self, images: Tensor) -> Tensor:
        self.features(features_at(self.network, images, self.layer))
        logits: Tensor = self.network(images)
        return logits


def _art(module: str) -> Any:
    """A module of ART.

    Raises:
        TenfoldError: ART is not installed.
    """
    try:
        return import_module(f"art.{module}")
    except ImportError as error:
        raise TenfoldError(
            "the cross-check needs the Adversarial Robustness Toolbox; install tenfold-doorping[art]"
        ) from error


def _classifier(model: nn.Module, images: Tensor, classes: int) -> Any:
    return _art("estimators.classification").PyTorchClassifier(
        model.eval(),
        nn.CrossEntropyLoss(),
        tuple(images.shape[1:]),
        classes,
        device_type="cpu" if images.device.type == "cpu" else "gpu",
    )


@torch.no_grad()
def _classes(network: nn.Module, images: Tensor) -> int:
    check_images(images, "labelled")
    return int(deepcopy(network).eval()(images[:1]).shape[1])


def _array(images: Tensor) -> NDArray[np.float32]:
    values: NDArray[np.float32] = images.float().cpu().numpy()
    return values


@contextlib.contextmanager
def _numpy_seeded(generator: torch.Generator) -> Iterator[None]:
    """ART draws from NumPy's global generator: seed it, and leave it as it was."""
    before = np.random.get_state()
    np.random.seed(int(torch.randint(2**31 - 1, (), generator=generator)))
    try:
        yield
    finally:
        np.random.set_state(before)
