"""Every defence against the victims of one distilled set: what it sees, and what is left of the attack after it."""

from __future__ import annotations

import statistics
from collections.abc import Callable

import torch
from torch import Tensor

from tenfold.doorping.attacks import Poison
from tenfold.doorping.config import DefencesConfig
from tenfold.doorping.defences.activation_clustering import activation_clustering
from tenfold.doorping.defences.attention_distillation import distil_attention
from tenfold.doorping.defences.denoising import denoising_rates, train_denoiser
from tenfold.doorping.defences.fine_pruning import fine_pruning
from tenfold.doorping.defences.neural_cleanse import neural_cleanse
from tenfold.doorping.defences.neuron_stimulation import scan_neurons
from tenfold.doorping.defences.spectral_signatures import spectral_signatures
from tenfold.doorping.defences.strip import strip
from tenfold.doorping.evaluation import Ensemble, rates_of
from tenfold.doorping.networks import Network
from tenfold.shared.seeding import make_generator

Rates = dict[str, float]


def examine(
    victims: Ensemble,
    poison: Poison,
    images: Tensor,
    labels: Tensor,
    config: DefencesConfig,
    seed: int,
    say: Callable[[str], None] = lambda _: None,
) -> Rates:
    """Set every defence against every victim.

    Args:
        victims: networks trained on the distilled set.
        poison: the attack: its trigger is on the inputs that defences are to see through.
        images: the distilled images, [n, C, H, W].
        labels: int64 [n].
        config: the defences' settings.
        seed: of the images that the defender has, and of every defence.
        say: told of each defence as it begins.

    Returns:
        Of every defence, named before the rate: ``detected``, the share of victims in which it names the target;
        ``false_alarms``, how many other classes it names on average; ``cta``, ``asr_all`` and ``asr_excluding_target``
        after it; and what else it measures. Each is the mean over victims, with the population deviation as ``_std``.
    """
    found: list[Rates] = []
    clean, clean_labels = defenders_images(poison, config.clean_share, seed)
    denoiser = train_denoiser(clean, config.denoising, make_generator(seed))
    for number in range(min(victims.size, config.victims)):
        say(f"victim {number + 1}")
        network = victims[number]
        rates = _models(network, poison, clean, clean_labels, config, seed + number)
        rates |= _inputs(network, poison, clean, config, seed + number)
        test, test_labels = poison.data.test(poison.mask.device)
        after = denoising_rates(network, denoiser, test, poison.apply(test), test_labels, poison.target).after
        rates |= _after("denoising", after)
        rates |= _data(network, poison, images, labels, config, seed + number)
        found.append(rates)
    means = {name: statistics.fmean(each[name] for each in found) for name in found[0]}
    spread = {f"{name}_std": statistics.pstdev(each[name] for each in found) for name in found[0]}
    return {**means, **(spread if len(found) > 1 else {})}


def defenders_images(poison: Poison, share: float, seed: int) -> tuple[Tensor, Tensor]:
    """Clean images with true labels that the defender has, a random share of the training images."""
    data = poison.data
    count = max(2 * data.classes, round(share * len(data.train_labels)))
    order = torch.randperm(len(data.train_labels), generator=make_generator(seed * 1_000_003 + 800_000))
    chosen = order[:count].to(data.train_labels.device)
    return data.normalise(data.train_images[chosen]), data.train_labels[chosen]


def _named(name: str, flagged: tuple[int, ...], target: int) -> Rates:
    """Whether a defence names the target, and how many others."""
    others = [label for label in flagged if label != target]
    return {f"{name}_detected": float(target in flagged), f"{name}_false_alarms": float(len(others))}


def _after(name: str, rates: Rates) -> Rates:
    return {f"{name}_{key}": rates[key] for key in ("cta", "asr_all", "asr_excluding_target")}


@torch.no_grad()
def _rates(network: torch.nn.Module, poison: Poison) -> Rates:
    images, labels = poison.data.test(poison.mask.device)
    return rates_of(network(images), network(poison.apply(images)), labels, poison.target)


def _models(
    network: Network, poison: Poison, clean: Tensor, labels: Tensor, config: DefencesConfig, seed: int
) -> Rates:
    """What looks into a network, or repairs it."""
    target, limits = poison.target, (poison.black, poison.white)
    cleansed = neural_cleanse(network, clean, labels, *limits, config.neural_cleanse, make_generator(seed))
    rates = _named("neural_cleanse", cleansed.flagged, target)
    rates["neural_cleanse_index"] = float(cleansed.anomaly_index[target])
    scanned = scan_neurons(network, clean, labels, *limits, config.neuron_stimulation, make_generator(seed))
    rates |= _named("abs", scanned.flagged, target)
    pruned = fine_pruning(network, clean, labels, config.fine_pruning, make_generator(seed))
    rates |= _after("fine_pruning", _rates(pruned.network, poison))
    student = distil_attention(network, clean, labels, config.attention, make_generator(seed))
    return rates | _after("nad", _rates(student.network, poison))


def _inputs(network: Network, poison: Poison, clean: Tensor, config: DefencesConfig, seed: int) -> Rates:
    """What looks at single inputs."""
    test, labels = poison.data.test(poison.mask.device)
    test, labels = test[: config.test_images], labels[: config.test_images]
    triggered = poison.apply(test[labels != poison.target])
    stripped = strip(network, clean, test, triggered, config.strip, make_generator(seed))
    return {
        "strip_auroc": stripped.auroc,
        "strip_false_acceptance": stripped.false_acceptance_rate,
        "strip_false_rejection": stripped.false_rejection_rate,
    }


def _data(
    network: Network, poison: Poison, images: Tensor, labels: Tensor, config: DefencesConfig, seed: int
) -> Rates:
    """What looks at training images: the distilled ones that the victim has, and the poisoned real ones behind them."""
    classes = poison.data.classes
    clustered = activation_clustering(
        network, images, labels, config.clustering, make_generator(seed), classes=classes
    )
    flagged = tuple(int(label) for label in clustered.flagged.nonzero())
    rates = _named("clustering_distilled", flagged, poison.target)
    real, real_labels = poison.draw(torch.arange(len(poison.labels), device=poison.labels.device))
    known = poison.is_poisoned.cpu()
    clustered = activation_clustering(
        network, real, real_labels, config.clustering, make_generator(seed), poisoned=known, classes=classes
    )
    flagged = tuple(int(label) for label in clustered.flagged.nonzero())
    rates |= _named("clustering_real", flagged, poison.target)
    signed = spectral_signatures(network, real, real_labels, config.spectral, poisoned=known, classes=classes)
    if signed.auroc is not None:
        rates["spectral_auroc"] = signed.auroc
    if signed.poison_removed is not None and signed.clean_removed is not None:
        rates["spectral_poison_removed"] = signed.poison_removed
        rates["spectral_clean_removed"] = signed.clean_removed
    return rates
