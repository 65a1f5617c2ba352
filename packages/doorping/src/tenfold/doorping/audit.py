"""Is this distilled set suspicious? Windows that no other class has, values that no pixel can have, and transplants.

Whoever gets a distilled set has its images and labels, perhaps a few clean images of the same kind, and neither the
real training images nor the trigger. For every class c and every square window w of a few sizes, the checks ask:

====================  ================================================================================================
patch outlier         how far the class's images are there from the nearest image of any other class
value range           how far they are there outside of black and white, beyond the rest of the class
transplant            whether networks trained on the set take images of other classes for c once they get the window
reference             how far they are there from the nearest clean image of the same class (of any class, where the
                      clean images have no labels); only with clean images
activation            Chen et al.'s and Tran et al.'s scores, which inform and have no vote: see below
clustering, spectral
signatures
====================  ================================================================================================

A trigger is small, so a window tells it from what a class looks like; and it is on a part of the class's images only,
so the most outlying fifth of them counts. Distances are the root mean square over the window's values. Except for
transplants, a class's score is how far its largest value v_c over all windows of a size lies above the other classes':

    (log v_c - median_k log v_k) / sqrt((1.4826 MAD_k log v_k)^2 + 0.25^2).

How the thresholds were found, and what they find: see :data:`THRESHOLDS`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from types import MappingProxyType
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from tenfold.doorping.defences.activation_clustering import ClusteringConfig, activation_clustering
from tenfold.doorping.defences.spectral_signatures import SpectralConfig, spectral_signatures
from tenfold.doorping.evaluation import Ensemble, VictimConfig, train_ensemble
from tenfold.doorping.networks import Network, build_model, seeded
from tenfold.doorping.official_artifacts import DistilledSet
from tenfold.shared.logging import TenfoldError
from tenfold.shared.seeding import make_generator

CheckName = Literal[
    "patch outlier", "value range", "transplant", "reference", "activation clustering", "spectral signatures"
]

THRESHOLDS: Mapping[CheckName, float] = MappingProxyType(
    {
        "patch outlier": 3.2,
        "value range": 4.4,
        "transplant": 0.42,
        "reference": 3.2,
        "activation clustering": 0.65,
        "spectral signatures": 9.6,
    }
)
"""Scores above which a class is suspicious.

The first four are the largest score of any clean set of the calibration and a quarter more (``reference`` a third).
That were 8 sets of digits (10 images of a class by DC in 20 iterations, the first images real, seeds 100 to 107;
transplants with 3 networks of 151 passes), and for checks without networks real images of FashionMNIST and CIFAR-10,
1 or 10 of a class, with and without noise. Largest were patch outlier 2.55 (FashionMNIST), value range 3.54
(CIFAR-10), transplant 0.33 (digits), and reference 2.44 (FashionMNIST; leaving out sets of one image of a class, of
which one had 5.36). With labelled clean images the limit of ``reference`` comes from sets of these, see
:func:`audit`; it is about 2 for digits.

Found among sets of digits of other seeds, 200 to 205 (from noise and within pixels: 200 to 202), as they are and with
300 labelled clean images; *place* counts flagged sets whose suspected window overlaps the trigger. The class was
always right:

=================================  ========  =========  ===========  =================  ===================
set                                mean ASR  flagged    with clean   place              place with clean
=================================  ========  =========  ===========  =================  ===================
clean                              .02       0 of 6     0 of 6
NAIVEATTACK                        .25       0 of 6     5 of 6                          2 of 5
DOORPING, bound 10                 .88       6 of 6     6 of 6       6 of 6             6 of 6
frozen patch, bound 10             .95       6 of 6     6 of 6       6 of 6             6 of 6
clean, first images noise          .03       0 of 3     0 of 3
NAIVEATTACK, from noise            .16       0 of 3     0 of 3
DOORPING, bound 10, from noise     1.00      3 of 3     3 of 3       3 of 3             3 of 3
DOORPING within the pixels' range  .15       0 of 3     1 of 3                          0 of 1
frozen within the pixels' range    .08       0 of 3     2 of 3                          2 of 2
=================================  ========  =========  ===========  =================  ===================

Of DOORPING's and the frozen patch's six sets each, single checks flag: value range 6 and 6, patch outlier 4 and 6,
transplant 2 and 6; with labelled clean images, reference 6 and 6. None of 9 clean sets was flagged, which leaves up
to 28 % possible (95 %). The scores were once changed after a look at these sets, because they flagged clean
FashionMNIST; the thresholds come from the calibration alone.

**A trigger within the pixels' range is not seen in the distilled images by themselves**, nor DOORPING's where it
wandered back into it. What labelled clean images give away is then often not the patch but images of other classes
with the target's label, with which the distillation began, and nothing where it began with noise. INVISIBLE and
condensed sets of other data were not tried.

Activation clustering flags every set, clean or not, and names the target in 8 of 30 poisoned ones; spectral
signatures flag none of either. Ten images of a class are too few for them: both inform and have no vote.
"""

CLEAN_SETS, MARGIN = 8, 1.25
"""Sets of labelled clean images that say what such sets score, and what their largest score is multiplied by."""
NUMBERS_AT_ONCE = 2**24
"""Of distances between windows, or of stamped images, that are held at a time."""
SMALLEST_VALUE = 0.03
"""What values are at least taken for, in normalised units or of the range from black to white; sets of equal or clipped
images have nothing below to compare."""
ORDINARY_DEVIATION = 0.25
"""Of logarithms of a class's largest values from those of other classes, beside the one that is found."""


@dataclass(frozen=True)
class AuditConfig:
    """What is looked at, and from where on it is suspicious."""

    window_sizes: tuple[int, ...] | None = None
    """Sides of the windows in pixels; None takes 2, 3, and an eighth and a quarter of the images' side."""
    top_share: float = 0.2
    """Share of a class's images, those that stand out most in a window, whose mean is the class's value there."""
    peers: int = 1024
    """Images that others are compared with, drawn where there are more."""
    windows: int = 8
    """Windows of a class and a size that are transplanted, the most outlying ones."""
    donors: int = 2
    """Images of the class that each of them is taken from, the most outlying ones."""
    carriers: int = 40
    """Images that get the windows, drawn among the distilled ones, or half of them among the clean ones."""
    thresholds: Mapping[CheckName, float] = field(default_factory=lambda: THRESHOLDS)
    """Score of every check above which a class is suspicious."""

    def __post_init__(self) -> None:
        sizes = self.window_sizes
        if sizes is not None and (not sizes or min(sizes) < 1):
            raise TenfoldError(f"the sides of windows are 1 pixel or more, not {sizes}")
        if not 0 < self.top_share <= 1:
            raise TenfoldError(
                f"the share of a class's images is above 0 and at most 1, not {self.top_share}"
            )
        if min(self.peers, self.windows, self.donors, self.carriers) < 1:
            raise TenfoldError("peers, windows, donors and carriers of an audit are at least 1")
        if self.thresholds.keys() != THRESHOLDS.keys() or not all(
            map(math.isfinite, self.thresholds.values())
        ):
            raise TenfoldError(f"give a threshold for each of {', '.join(THRESHOLDS)}")

    def sizes_for(self, image_size: int) -> tuple[int, ...]:
        """The sides of the windows for images of a side, ascending.

        Raises:
            TenfoldError: a window is not smaller than the images.
        """
        sizes = self.window_sizes or (2, 3, max(2, image_size // 8), max(2, image_size // 4))
        if max(sizes) >= image_size:
            raise TenfoldError(f"windows are smaller than the images; give sizes below {image_size} pixels")
        return tuple(sorted(set(sizes)))


@dataclass(frozen=True)
class Window:
    """A square in an image."""

    row: int
    """Of its upper left pixel, from 0."""
    column: int
    """Likewise."""
    size: int
    """Its side in pixels."""

    def __str__(self) -> str:
        end_row, end_column = self.row + self.size - 1, self.column + self.size - 1
        return f"rows {self.row} to {end_row}, columns {self.column} to {end_column}"


@dataclass(frozen=True, eq=False)
class Check:
    """What one check found."""

    name: CheckName
    scores: Tensor
    """Of every class, float64 [K] on the CPU; nan where it was not judged."""
    threshold: float
    """Scores above it are suspicious."""
    windows: tuple[Window | None, ...]
    """Where the score of every class comes from; None for checks that do not look at places."""
    votes: bool
    """Whether the verdict depends on it."""
    note: str = ""
    """What has to be known to read it."""

    @property
    def suspected_class(self) -> int:
        """The class with the largest score."""
        return int(self.scores.nan_to_num(nan=-math.inf).argmax())

    @property
    def score(self) -> float:
        """The largest score; nan where no class was judged."""
        return float(self.scores[self.suspected_class])

    @property
    def window(self) -> Window | None:
        """Where the largest score comes from."""
        return self.windows[self.suspected_class]

    @property
    def suspicious(self) -> bool:
        """Whether a score is above the threshold."""
        return self.score > self.threshold

    def as_dict(self) -> dict[str, Any]:
        """Plain values; None for nan."""
        window = self.window
        return {
            "name": self.name,
            "score": _plain(self.score),
            "scores": [_plain(value) for value in self.scores.tolist()],
            "threshold": self.threshold,
            "suspicious": self.suspicious,
            "votes": self.votes,
            "suspected_class": self.suspected_class,
            "window": None if window is None else vars(window).copy(),
            "note": self.note,
        }


@dataclass(frozen=True, eq=False)
class AuditReport:
    """What an audit found, with what its pictures need; all tensors on the CPU."""

    checks: tuple[Check, ...]
    counts: Tensor
    """Distilled images of every class, int64 [K]."""
    mean_images: Tensor
    """Of every class, [K, C, H, W], black 0 and white 1; nan for a class without images."""
    outlier_maps: Tensor
    """Mean of the patch outlier scores of the smallest windows around every pixel, [K, H, W]; likewise."""

    @property
    def reasons(self) -> tuple[Check, ...]:
        """The checks with a vote that are suspicious, the one farthest above its threshold first."""
        found = [check for check in self.checks if check.votes and check.suspicious]
        return tuple(sorted(found, key=lambda check: check.score / check.threshold, reverse=True))

    @property
    def suspicious(self) -> bool:
        """The verdict: whether any check with a vote says so."""
        return bool(self.reasons)

    @property
    def suspected_class(self) -> int | None:
        """By the reason that is farthest above its threshold; None without one."""
        return self.reasons[0].suspected_class if self.reasons else None

    @property
    def window(self) -> Window | None:
        """The suspected place, by the first of the checks that have a vote and suspect this class."""
        agreeing = (
            check
            for check in self.checks
            if check.votes and check.suspicious and check.suspected_class == self.suspected_class
        )
        return next((check.window for check in agreeing), None)

    def lines(self) -> list[str]:
        """The report as plain text."""
        if self.suspicious:
            names = ", ".join(check.name for check in self.reasons)
            verdict = f"suspicious: class {self.suspected_class}, {self.window} ({names})"
        else:
            verdict = "nothing suspicious found; weak triggers within the pixels' range are not seen"
        head = f"{'check':22} {'score':>7} {'limit':>7}  {'class':>5}  verdict"
        return [verdict, "", head, *(line for check in self.checks for line in _check_lines(check))]

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON, without the pictures' tensors."""
        window = self.window
        return {
            "suspicious": self.suspicious,
            "suspected_class": self.suspected_class,
            "window": None if window is None else vars(window).copy(),
            "reasons": [check.name for check in self.reasons],
            "images_per_class": self.counts.tolist(),
            "checks": [check.as_dict() for check in self.checks],
        }


def _plain(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _check_lines(check: Check) -> list[str]:
    verdict = "suspicious" if check.suspicious else "-"
    if not check.votes:
        verdict += " (informs only)"
    if check.suspicious and check.window is not None:
        verdict += f", {check.window}"
    line = f"{check.name:22} {check.score:7.2f} {check.threshold:7.2f}  {check.suspected_class:5d}  {verdict}"
    return [line, f"    {check.note}"] if check.note else [line]


def audit(
    distilled: DistilledSet,
    config: AuditConfig | None = None,
    victims: VictimConfig | None = None,
    reference: Tensor | None = None,
    reference_labels: Tensor | None = None,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> AuditReport:
    """Look for a backdoor in a distilled set. What the set says of a trigger is not looked at.

    Args:
        distilled: of at least three classes; one image for each is enough. Batches of DD are taken together.
        config: what is looked at; the calibrated settings without it.
        victims: how networks are trained on the set; three of them, for 151 passes at a rate of 0.1, without it.
            They have the architecture that the set names, or else the ConvNet.
        reference: clean images of the same kind, normalised as the set is, [N, C, H, W]; they make the audit sharper,
            above all with labels.
        reference_labels: int64 [N]. With them, sets drawn from one half of the clean images are compared with the other
            half, and 1.25 times the largest score of 8 such sets is the limit where that is lower.
        seed: of networks and draws.
        device: where it is computed.

    Raises:
        TenfoldError: the set has fewer than three classes or values that are no numbers, the clean images do not fit,
            or the windows are too large.
    """
    config, victims = config or AuditConfig(), victims or VictimConfig(3, 151, 76, 0.1)
    images, labels = distilled.images.detach().float().to(device), distilled.labels.to(device)
    classes = _count_classes(distilled)
    clean = _check_reference(images, classes, reference, reference_labels)
    members = _Members(labels, classes, config.top_share)
    sizes, generator = config.sizes_for(images.shape[-1]), make_generator(seed)

    peers = _draw(len(images), config.peers, generator).to(device)
    apart = labels[:, None] != labels[peers]
    outliers = _WindowScores(images, sizes, members, partial(_nearest, images, images[peers], apart))
    black, white = _black_and_white(distilled, images.device)
    outside = ((images - white).relu() + (black - images).relu()) / (white - black)
    excess = _WindowScores(images, sizes, members, partial(_excess, outside))
    checks = [outliers.check("patch outlier", config), excess.check("value range", config)]
    if clean is not None:
        drawn = _draw(len(clean[0]), config.peers, generator).to(device)
        others, kinds = clean[0][drawn], clean[1][drawn]
        alike = None if reference_labels is None else labels[:, None] == kinds
        novelty = _WindowScores(images, sizes, members, partial(_nearest, images, others, alike))
        limit = config.thresholds["reference"]
        if reference_labels is not None:
            limit = min(limit, _clean_limit(others, kinds, members.counts, sizes, config, generator))
        checks.append(replace(novelty.check("reference", config), threshold=limit))

    networks = [seed * 1000 + number for number in range(victims.networks)]
    ensemble = train_ensemble(_architecture(distilled, classes), networks, images, labels, victims)
    checks.append(_transplant(config, ensemble, images, labels, outliers, clean, generator))
    checks += _hidden_features(config, ensemble[0], distilled, images, labels, classes, seed)
    pixels = images.new_zeros(classes, *images.shape[1:]).index_add(
        0, labels, (images - black) / (white - black)
    )
    means = pixels / members.counts[:, None, None, None]
    return AuditReport(tuple(checks), members.counts.cpu(), means.cpu(), outliers.pixel_maps().cpu())


# -- what goes in ------------------------------------------------------------------------------------------


def _count_classes(distilled: DistilledSet) -> int:
    if not bool(distilled.images.isfinite().all()):
        raise TenfoldError(
            "the distilled images hold values that are no numbers; there is nothing to compare"
        )
    named, highest = distilled.network.get("classes"), int(distilled.labels.max())
    classes = named if isinstance(named, int) else highest + 1
    if highest >= classes:
        raise TenfoldError(f"the set names a network of {classes} classes and has the label {highest}")
    if len(distilled.labels.unique()) < 3:
        raise TenfoldError(
            "an audit compares classes; give a distilled set with images of at least 3 classes"
        )
    return classes


def _check_reference(
    images: Tensor, classes: int, reference: Tensor | None, labels: Tensor | None
) -> tuple[Tensor, Tensor] | None:
    """Clean images and their labels on the device, -1 where they are not known."""
    if reference is None:
        if labels is not None:
            raise TenfoldError("reference labels come with reference images; give both or none")
        return None
    if reference.ndim != 4 or reference.shape[1:] != images.shape[1:] or not len(reference):
        raise TenfoldError(
            f"clean images have the shape [N, {', '.join(map(str, images.shape[1:]))}] of the distilled ones, not "
            f"{list(reference.shape)}"
        )
    if not reference.is_floating_point() or not bool(reference.isfinite().all()):
        raise TenfoldError("clean images are finite floats, normalised as the distilled ones are")
    if labels is None:
        labels = torch.full((len(reference),), -1)
    elif (
        labels.dtype != torch.int64
        or labels.shape != reference.shape[:1]
        or not bool(((labels >= 0) & (labels < classes)).all())
    ):
        raise TenfoldError(
            f"give one int64 label from 0 to {classes - 1} for each of {len(reference)} clean images"
        )
    return reference.detach().float().to(images.device), labels.to(images.device)


def _black_and_white(distilled: DistilledSet, device: torch.device) -> tuple[Tensor, Tensor]:
    """Normalised values of the darkest and the lightest pixel, each [1, C, 1, 1]."""
    mean, std = (
        torch.tensor(values, device=device)[None, :, None, None] for values in (distilled.mean, distilled.std)
    )
    return -mean / std, (1 - mean) / std


def _draw(total: int, count: int, generator: torch.Generator) -> Tensor:
    """At most ``count`` indices below ``total``, ascending."""
    return torch.randperm(total, generator=generator)[:count].sort().values


def _architecture(distilled: DistilledSet, classes: int) -> Callable[[], Network]:
    channels, size = distilled.images.shape[1:3]
    arguments: dict[str, Any] = dict(distilled.network) or {
        "name": "ConvNet",
        "channels": channels,
        "classes": classes,
        "image_size": size,
        "depth": min(3, size.bit_length() - 1),
    }
    if (arguments.get("channels"), arguments.get("image_size", 32)) != (channels, size):
        raise TenfoldError(
            f"the set names a network for other images than its own, of {channels} x {size} x {size}"
        )
    try:
        with seeded(0):
            build_model(**arguments)
    except TypeError as error:
        raise TenfoldError(f"the set does not describe its network as build_model does: {error}") from error
    return partial(build_model, **arguments)


# -- windows -----------------------------------------------------------------------------------------------


class _Members:
    """Which images are of which class, and the mean of those of a class that stand out most."""

    def __init__(self, labels: Tensor, classes: int, share: float) -> None:
        self.labels, self.counts = labels, labels.bincount(minlength=classes)
        self._order = labels.argsort(stable=True)
        starts = self.counts.cumsum(0) - self.counts
        self._places = torch.arange(len(labels), device=labels.device) - starts[labels[self._order]]
        self._top = (share * self.counts).round(decimals=6).ceil().long().clamp(min=1)

    def ranks(self) -> Tensor:
        """The place of every image among those of its class, from 0, int64 [n]."""
        return torch.empty_like(self._places).index_copy(0, self._order, self._places)

    def top_means(self, values: Tensor) -> Tensor:
        """[W, n] to [W, K]; nan for a class without images, or with one whose value is nan."""
        padded = values.new_full((len(values), len(self.counts), int(self.counts.max())), -math.inf)
        padded[:, self.labels[self._order], self._places] = values[:, self._order]
        sums = padded.sort(dim=2, descending=True).values.cumsum(dim=2)
        last = (self._top - 1).clamp(min=0)[None, :, None].expand(len(values), -1, 1)
        means = sums.gather(2, last)[..., 0] / self._top
        return means.masked_fill(self.counts == 0, math.nan)


class _WindowScores:
    """A value of every image in every window, and what it makes of the classes.

    Args:
        images: [n, C, H, W].
        sizes: of the windows.
        members: of the classes.
        measure: for a size, values [w, n] of its windows, row after row.
    """

    def __init__(
        self, images: Tensor, sizes: Sequence[int], members: _Members, measure: Callable[[int], Tensor]
    ) -> None:
        self.side = images.shape[-1]
        self.squares = torch.cat([_squares(self.side, size) for size in sizes]).to(images.device)
        parts = [measure(size) for size in sizes]
        classes = [members.top_means(part) for part in parts]
        self.by_image, self._values = torch.cat(parts), torch.cat(classes)
        self.scores = torch.cat([_robust_scores(part) for part in classes])
        self._counts = [len(part) for part in parts]

    def check(self, name: CheckName, config: AuditConfig) -> Check:
        """The largest score of every class, and the window with its largest value, which fits a patch most tightly."""
        windows = self.windows(self._values.argmax(dim=0))
        return Check(
            name, self.scores.amax(dim=0).double().cpu(), config.thresholds[name], windows, votes=True
        )

    def windows(self, index: Tensor) -> tuple[Window, ...]:
        """Those of some indices [m]."""
        return tuple(Window(*square) for square in self.squares[index].tolist())

    def most_outlying(self, count: int) -> Tensor:
        """Of every class and each of the S sizes, the windows with the largest scores, int64 [K, S, count]."""
        scores = self.scores.nan_to_num(nan=-math.inf).split(self._counts)
        count = min(count, *self._counts)
        first = [sum(self._counts[:number]) for number in range(len(self._counts))]
        found = [start + part.topk(count, dim=0).indices.T for start, part in zip(first, scores, strict=True)]
        return torch.stack(found, dim=1)

    def masks(self, index: Tensor) -> Tensor:
        """Where some windows are, bool [..., H, W]."""
        first, size = self.squares[index][..., :2], self.squares[index][..., 2:]
        pixels = torch.arange(self.side, device=index.device)
        inside = (pixels >= first[..., None]) & (pixels < (first + size)[..., None])
        rows, columns = inside.unbind(dim=-2)
        return rows[..., :, None] & columns[..., None, :]

    def pixel_maps(self) -> Tensor:
        """Mean score of the smallest windows around every pixel, [K, H, W]."""
        around = self.masks(torch.arange(self._counts[0], device=self.squares.device)).float().flatten(1)
        means: Tensor = self.scores[: self._counts[0]].T @ around / around.sum(dim=0)
        return means.view(-1, self.side, self.side)


def _robust_scores(values: Tensor) -> Tensor:
    """Values of windows and classes [w, K] against the classes' largest ones, on a logarithmic scale."""
    logs = values.clamp(min=SMALLEST_VALUE).log()
    largest = logs.amax(dim=0)
    median = largest.nanquantile(0.5)
    deviation = 1.4826 * (largest - median).abs().nanquantile(0.5)
    return (logs - median) / (deviation.square() + ORDINARY_DEVIATION**2).sqrt()


def _squares(side: int, size: int) -> Tensor:
    """Row, column and size of all windows of a size, [w, 3]."""
    first = torch.arange(side - size + 1)
    return torch.cartesian_prod(first, first, torch.tensor([size]))


def _nearest(images: Tensor, others: Tensor, allowed: Tensor | None, size: int) -> Tensor:
    """Distance of every window of images [n, C, H, W] to the nearest of others [m, C, H, W] at the same place, [w, n].

    Of an image, only some of the others may be allowed, bool [n, m]; nan where none is.
    """
    pairs = zip(*(_windows(part, size, len(images) * len(others)) for part in (images, others)), strict=True)
    pieces = []
    for mine, theirs in pairs:
        distances = torch.cdist(mine, theirs)
        if allowed is not None:
            distances.masked_fill_(~allowed, math.inf)
        pieces.append(distances.amin(dim=2))
    found = torch.cat(pieces) / math.sqrt(images.shape[1] * size * size)
    return found.masked_fill(found.isinf(), math.nan)


def _windows(images: Tensor, size: int, numbers: int) -> tuple[Tensor, ...]:
    """Windows [w, n, C size size] in pieces, so that ``numbers`` for each of a piece's windows fit into memory."""
    cut = images.unfold(2, size, 1).unfold(3, size, 1).permute(2, 3, 0, 1, 4, 5)
    pieces: tuple[Tensor, ...] = cut.flatten(3).flatten(0, 1).split(max(1, NUMBERS_AT_ONCE // numbers))
    return pieces


def _excess(outside: Tensor, size: int) -> Tensor:
    """Mean of [n, C, H, W] in every window beyond the median window of the same image, [w, n]."""
    means = F.avg_pool2d(outside.mean(dim=1, keepdim=True), size, stride=1).flatten(1).T
    return means - means.median(dim=0).values


def _clean_limit(
    clean: Tensor,
    labels: Tensor,
    counts: Tensor,
    sizes: Sequence[int],
    config: AuditConfig,
    generator: torch.Generator,
) -> float:
    """What sets of clean images score against other clean images, with a margin; infinite where there are too few.

    Every set has at most as many images of each class as the distilled one, from one random half of the clean images,
    and is compared with the other half.
    """
    scores = []
    for _ in range(CLEAN_SETS):
        first, second = torch.randperm(len(clean), generator=generator).to(clean.device).tensor_split(2)
        ranks = _Members(labels[first], len(counts), config.top_share).ranks()
        own = first[ranks < counts[labels[first]]]
        alike = labels[own][:, None] == labels[second]
        members = _Members(labels[own], len(counts), config.top_share)
        found = _WindowScores(clean, sizes, members, partial(_nearest, clean[own], clean[second], alike))
        scores.append(found.check("reference", config).score)
    known = [score for score in scores if not math.isnan(score)]
    return MARGIN * max(known) if known else math.inf


# -- networks ----------------------------------------------------------------------------------------------


@torch.no_grad()
def _predictions(ensemble: Ensemble, images: Tensor) -> Tensor:
    """[E, N]; one network after another, which is faster on a CPU than all at once."""
    return torch.stack([ensemble[number](images).argmax(dim=1) for number in range(ensemble.size)])


def _transplant(
    config: AuditConfig,
    ensemble: Ensemble,
    images: Tensor,
    labels: Tensor,
    outliers: _WindowScores,
    clean: tuple[Tensor, Tensor] | None,
    generator: torch.Generator,
) -> Check:
    """How many images of other classes are taken for a class once they get one of its most outlying windows.

    Those that were taken for it before do not count. Large windows carry much of what a class looks like, so a class's
    best window of a size is compared with the other classes' best of the same size: the score is the share of images
    beyond the median class's.
    """
    carriers, owners = _carriers(config, images, labels, clean, generator)
    classes = torch.arange(outliers.scores.shape[1], device=images.device)
    chosen = outliers.most_outlying(config.windows)  # [K, S, P]
    own = labels == classes[:, None, None, None]
    standing = outliers.by_image[chosen].masked_fill(~own, -math.inf)
    values, donors = standing.topk(min(config.donors, len(images)), dim=3)  # [K, S, P, D]

    masks = outliers.masks(chosen)[..., None, :, :].expand(*donors.shape, -1, -1).flatten(0, 3)[:, None, None]
    patches, wanted = images[donors.flatten()][:, None], classes.repeat_interleave(donors[0].numel())
    free = (owners != wanted[:, None]) & (_predictions(ensemble, carriers)[:, None] != wanted[:, None])
    step = max(1, NUMBERS_AT_ONCE // 8 // carriers.numel())
    reached = []
    for mask, patch in zip(masks.split(step), patches.split(step), strict=True):
        stamped = torch.where(mask, patch, carriers)
        reached.append(_predictions(ensemble, stamped.flatten(0, 1)).unflatten(1, stamped.shape[:2]))
    hits = free & (torch.cat(reached, dim=1) == wanted[:, None])
    rates = hits.sum(dim=(0, 2)).double() / free.sum(dim=(0, 2))
    rates = rates.view_as(values).masked_fill(values == -math.inf, -1.0).amax(dim=3)  # [K, S, P]

    best = rates.max(dim=2)
    found = best.values.masked_fill(best.values < 0, math.nan)  # [K, S]
    size = (found - found.nanquantile(0.5, dim=0)).max(dim=1)
    windows = chosen.gather(2, best.indices[..., None])[..., 0].gather(1, size.indices[:, None])[:, 0]
    right = float((_predictions(ensemble, images) == labels).float().mean())
    return Check(
        "transplant",
        size.values.cpu(),
        config.thresholds["transplant"],
        outliers.windows(windows),
        votes=True,
        note=f"{ensemble.size} networks, which take {right:.0%} of the distilled images for what they are labelled",
    )


def _carriers(
    config: AuditConfig,
    images: Tensor,
    labels: Tensor,
    clean: tuple[Tensor, Tensor] | None,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor]:
    """Images that get the windows, and their classes, -1 where they are not known."""
    count = config.carriers if clean is None else -(-config.carriers // 2)
    drawn = _draw(len(images), count, generator).to(images.device)
    if clean is None:
        return images[drawn], labels[drawn]
    others = _draw(len(clean[0]), config.carriers - count, generator).to(images.device)
    return torch.cat([images[drawn], clean[0][others]]), torch.cat([labels[drawn], clean[1][others]])


def _hidden_features(
    config: AuditConfig,
    network: Network,
    distilled: DistilledSet,
    images: Tensor,
    labels: Tensor,
    classes: int,
    seed: int,
) -> list[Check]:
    """Activation clustering and spectral signatures, by the first network trained on the set."""
    layer = None if distilled.network.get("name") in ("ConvNet_B", "VGG11", "ResNet18") else -2
    nowhere = (None,) * classes
    clustering = activation_clustering(
        network, images, labels, ClusteringConfig(layer=layer), make_generator(seed), classes=classes
    )
    sizes = clustering.sizes.double()
    shares = sizes.amax(dim=1) / sizes.sum(dim=1)  # nan for classes that are not judged
    spectral = spectral_signatures(network, images, labels, SpectralConfig(layer=layer), classes=classes)
    members = _Members(labels.cpu(), classes, 1.0)
    largest = _Members(labels.cpu(), classes, 1e-9).top_means(spectral.scores[None])[0]
    spread = largest / members.top_means(spectral.scores[None])[0]
    return [
        Check(
            "activation clustering",
            shares,
            config.thresholds["activation clustering"],
            nowhere,
            votes=False,
            note="share of the larger of two clusters; clean sets of few images are above the limit as well",
        ),
        Check(
            "spectral signatures",
            spread,
            config.thresholds["spectral signatures"],
            nowhere,
            votes=False,
            note="largest score of a class by its mean score",
        ),
    ]
