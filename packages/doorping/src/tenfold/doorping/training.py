"""One run: real images are poisoned and distilled, and victims are trained on what comes out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from lightning_fabric import Fabric
from torch import Tensor

from tenfold.doorping.attacks import AttackConfig, Poison
from tenfold.doorping.condensation import condense, first_images
from tenfold.doorping.config import NetworkConfig, RunConfig
from tenfold.doorping.evaluation import Ensemble, VictimConfig, ensemble_rates, summarise, train_ensemble
from tenfold.doorping.image_sets import ImageSet, Statistics, load_image_set
from tenfold.doorping.networks import Network, seeded
from tenfold.doorping.official_artifacts import DistilledSet
from tenfold.doorping.triggers import perceptibility
from tenfold.doorping.unrolled_distillation import Distilled, distill_unrolled, initial_network, train_on
from tenfold.shared.logging import TenfoldError
from tenfold.shared.runs import Run, plain

RATES = ("cta", "asr_all", "asr_excluding_target")


@dataclass(frozen=True)
class Outcome:
    """What a run leaves: images, trigger, and how victims fare."""

    distilled: DistilledSet | None
    """None where victims trained on all real images."""
    metrics: dict[str, float]
    triggers: dict[int, Tensor]
    """The trigger after some iterations, [1, C, H, W]."""
    poison: Poison


def load_data(config: RunConfig, root: Path, download: bool, seed: int) -> ImageSet:
    """The data set of a run, or the share of it that the distillation has.

    Raises:
        TenfoldError: it is not there.
    """
    statistics: Statistics = "dd" if config.distillation == "dd" else "dc"
    data = load_image_set(config.dataset, root, download, statistics)
    return data if config.share == 1 else data.subset(config.share, seed)


def distil(config: RunConfig, seed: int, fabric: Fabric, run: Run, data: ImageSet) -> Outcome:
    """Poison, distil, and train victims.

    Args:
        config: of the run.
        seed: of everything random.
        fabric: launched.
        run: entered; goes on from its checkpoint.
        data: the real images, on the CPU.

    Raises:
        TenfoldError: settings do not fit the data, or the distillation broke down.
    """
    placed = data.to(fabric.device)
    poison = Poison(placed, config.attack, seed)
    if config.attack.kind in ("doorping", "invisible"):
        _network(config.network, data).weight_at(config.attack.layer)  # said before hours of work, not after
    if config.distillation == "dd":
        outcome = _by_unrolling(config, seed, fabric, run, poison)
    elif config.distillation == "whole":
        images, labels = poison.draw(torch.arange(len(placed.train_labels), device=fabric.device))
        ensemble = train_victims(config.network, data, images, labels, config.victim, seed)
        outcome = Outcome(None, judge(ensemble, poison), {}, poison)
    else:
        outcome = _by_matching(config, seed, fabric, run, poison)
    visible = perceptibility(poison.trigger, poison.mask, poison.black, poison.white)
    strength = {"trigger_max": float(poison.trigger[0][poison.mask.bool()].abs().max())}
    return replace(outcome, metrics={**outcome.metrics, **visible, **strength})


def train_victims(
    network: NetworkConfig,
    data: ImageSet,
    images: Tensor,
    labels: Tensor,
    config: VictimConfig,
    seed: int,
) -> Ensemble:
    """Networks of some kind on distilled images; those of one seed have the same first weights in all arms."""
    return train_ensemble(lambda: _network(network, data), _fresh_seeds(config, seed), images, labels, config)


def victims_of(
    distilled: DistilledSet,
    network: NetworkConfig,
    data: ImageSet,
    config: VictimConfig,
    seed: int,
    device: torch.device,
) -> Ensemble:
    """Victims of a set in a file: trained by SGD, or for DD by its unrolled steps from fresh networks."""
    images, labels = distilled.images.to(device), distilled.labels.to(device)
    if distilled.step_lrs is None:
        return train_victims(network, data, images, labels, config, seed)
    batches = Distilled(
        distilled.images.unflatten(0, (distilled.batches, -1)),
        distilled.labels.unflatten(0, (distilled.batches, -1)),
        distilled.step_lrs,
        (),
        0.0,
    )
    return _unrolled_victims(batches, _seeded_network(network, data), _fresh_seeds(config, seed), 1.0, device)


def judge(ensemble: Ensemble, poison: Poison, trigger: Tensor | None = None) -> dict[str, float]:
    """CTA, both ASR and more of every victim on the whole test set, summarised over victims."""
    images, labels = poison.data.test(poison.mask.device)
    triggered = poison.apply(images) if trigger is None else poison.apply_trigger(images, trigger)
    return summarise(ensemble_rates(ensemble, images, triggered, labels, poison.target))


def _network(network: NetworkConfig, data: ImageSet) -> Network:
    return network.make(data.channels, data.classes, data.image_size)


def _seeded_network(network: NetworkConfig, data: ImageSet) -> Callable[[int], Network]:
    def make(init_seed: int) -> Network:
        with seeded(init_seed):
            return _network(network, data)

    return make


def _fresh_seeds(config: VictimConfig, seed: int) -> list[int]:
    return [seed * 10_007 + 1_000 + number for number in range(config.networks)]


def _by_matching(config: RunConfig, seed: int, fabric: Fabric, run: Run, poison: Poison) -> Outcome:
    """Condensation, or the random real images that it might begin with."""
    data = poison.data
    last: list[Ensemble] = []

    def evaluate(images: Tensor, labels: Tensor, iteration: int) -> dict[str, float]:
        del iteration
        last[:] = [train_victims(config.network, data, images, labels, config.victim, seed)]
        return judge(last[0], poison)

    if config.distillation == "subset":
        images = first_images(poison, replace(config.condensation, init="real"), seed)
        labels = torch.arange(data.classes, device=images.device).repeat_interleave(config.condensation.ipc)
        metrics, triggers = evaluate(images, labels, 0), {0: poison.trigger.cpu()}
    else:
        condensed = condense(
            poison,
            lambda: _network(config.network, data),
            config.condensation,
            seed,
            fabric,
            run,
            evaluate,
            config.evaluate_every,
        )
        images, labels = condensed.images, condensed.labels
        metrics, triggers = dict(condensed.rates), condensed.triggers
    if config.earlier_triggers:
        metrics |= _earlier_triggers(run, last[0], poison, triggers)
    for name in config.other_victims:
        other = train_victims(NetworkConfig(name), data, images, labels, config.victim, seed)
        metrics |= {f"{name}_{key}": value for key, value in judge(other, poison).items()}
    return Outcome(_as_set(config, poison, images, labels), metrics, triggers, poison)


def _earlier_triggers(
    run: Run, victims: Ensemble, poison: Poison, triggers: Mapping[int, Tensor]
) -> dict[str, float]:
    """ASR on the last victims of those triggers that had reached 95 % in their time; the last one is left out."""
    reached = {int(row["step"]): row["asr_all"] for row in run.history() if row.get("asr_all") is not None}
    chosen = [step for step in sorted(triggers)[:-1] if reached.get(step, 0) > 0.95]
    rates = [judge(victims, poison, triggers[step].to(poison.mask.device)) for step in chosen]
    found = {"earlier_triggers": float(len(chosen))}
    for name in RATES[1:] if rates else ():
        found[f"earlier_{name}"] = sum(each[name] for each in rates) / len(rates)
    return found


def _by_unrolling(config: RunConfig, seed: int, fabric: Fabric, run: Run, poison: Poison) -> Outcome:
    network = _seeded_network(config.network, poison.data)
    gain, device = config.unrolled.init_gain, fabric.device
    distilled = distill_unrolled(poison.data, network, poison, config.unrolled, seed, fabric, run)
    fresh_seeds = _fresh_seeds(config.victim, seed)
    fresh = judge(_unrolled_victims(distilled, network, fresh_seeds, gain, device), poison)
    metrics = dict(fresh)
    if distilled.init_seeds:  # the paper's protocol: the very networks that were distilled with
        known = judge(_unrolled_victims(distilled, network, distilled.init_seeds, gain, device), poison)
        metrics = {**known, **{f"fresh_{name}": value for name, value in fresh.items()}}
    images, labels = distilled.images.flatten(0, 1), distilled.labels.flatten()
    found = _as_set(config, poison, images, labels)
    found = replace(found, step_lrs=distilled.learning_rates, batches=len(distilled.images))
    metrics["outer_loss"] = distilled.outer_loss
    return Outcome(found, metrics, {config.unrolled.epochs: poison.trigger.cpu()}, poison)


def _unrolled_victims(
    distilled: Distilled,
    network: Callable[[int], Network],
    seeds: Sequence[int],
    gain: float,
    device: torch.device,
) -> Ensemble:
    starts = [initial_network(network, init_seed, gain).to(device) for init_seed in seeds]
    return Ensemble([train_on(distilled, start) for start in starts])


def _as_set(config: RunConfig, poison: Poison, images: Tensor, labels: Tensor) -> DistilledSet:
    """What is given away, and what its maker knows of it."""
    data = poison.data
    arguments = {
        **plain(config.network),
        "channels": data.channels,
        "classes": data.classes,
        "image_size": data.image_size,
    }
    return DistilledSet(
        images.cpu(),
        labels.cpu(),
        data.mean,
        data.std,
        data.name,
        arguments,
        poison.trigger.cpu(),
        None if config.attack.kind == "invisible" else poison.mask.cpu(),
        poison.target,
    )


def matched_attack(attack: AttackConfig, strength: float) -> AttackConfig:
    """A frozen attack as strong as another trigger: its bound is that one's largest absolute value.

    Raises:
        TenfoldError: that trigger has no strength.
    """
    if not strength > 0:
        raise TenfoldError(
            "a trigger without strength has no frozen counterpart; repeat its run with --force"
        )
    return replace(attack, bound=strength)
