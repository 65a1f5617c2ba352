"""The experiment suites, as data.

Wherever DOORPING is shown, a frozen trigger of the same strength, which was never optimised, stands beside it.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from tenfold.doorping.attacks import AttackConfig
from tenfold.doorping.condensation import CondensationConfig
from tenfold.doorping.config import DefencesConfig, NetworkConfig, RunConfig
from tenfold.doorping.defences.attention_distillation import AttentionDistillationConfig
from tenfold.doorping.defences.denoising import DenoisingConfig
from tenfold.doorping.defences.fine_pruning import FinePruningConfig, FineTuning
from tenfold.doorping.defences.neural_cleanse import NeuralCleanseConfig
from tenfold.doorping.defences.neuron_stimulation import NeuronStimulationConfig
from tenfold.doorping.defences.strip import StripConfig
from tenfold.doorping.evaluation import VictimConfig
from tenfold.doorping.image_sets import DESCRIPTIONS
from tenfold.doorping.networks import NetworkName
from tenfold.doorping.unrolled_distillation import DDConfig
from tenfold.shared.logging import TenfoldError


@dataclass(frozen=True)
class Method:
    """How an arm differs from the base of its profile."""

    attack: dict[str, Any] = field(default_factory=dict)
    condensation: dict[str, Any] = field(default_factory=dict)
    unrolled: dict[str, Any] = field(default_factory=dict)
    victim: dict[str, Any] = field(default_factory=dict)
    network: dict[str, Any] = field(default_factory=dict)
    run: dict[str, Any] = field(default_factory=dict)
    """Of the run itself: distillation, share, as_strong_as, and so on."""


@dataclass(frozen=True)
class Profile:
    """A suite: methods x seeds on one or more data sets."""

    description: str
    """One line for the list of profiles."""
    base: RunConfig
    setting: str
    """Of its records, which joins them with printed numbers."""
    methods: dict[str, Method]
    datasets: tuple[str, ...]
    seeds: tuple[int, ...] = (0,)
    pairs: tuple[tuple[str, str], ...] = ()
    """Arms whose differences are drawn."""
    defences: DefencesConfig | None = None
    defended: tuple[str, ...] = ()
    """Arms whose victims the defences examine."""
    defended_seeds: int | None = None
    """Of the first so many seeds; None is all."""
    checkpoint_seconds: float = 60.0
    """Least time between two checkpoints of a run."""

    def run_config(self, method: str, dataset: str) -> RunConfig:
        """Every setting of an arm on a data set."""
        base, change = self.base, self.methods[method]
        return replace(
            base,
            dataset=dataset,
            attack=replace(base.attack, **change.attack),
            condensation=replace(base.condensation, **change.condensation),
            unrolled=replace(base.unrolled, **change.unrolled),
            victim=replace(base.victim, **change.victim),
            network=replace(base.network, **change.network),
            **change.run,
        )

    def only(self, methods: tuple[str, ...]) -> Profile:
        """The same with some of the methods.

        Raises:
            TenfoldError: a frozen trigger is among them without the method that it is as strong as.
        """
        for name in methods:
            other = self.methods[name].run.get("as_strong_as")
            if other is not None and other not in methods:
                raise TenfoldError(f"{name} needs the run of {other}, finished or not; name both")
        return replace(
            self,
            methods={name: self.methods[name] for name in methods},
            pairs=tuple(pair for pair in self.pairs if set(pair) <= set(methods)),
            defended=tuple(name for name in self.defended if name in methods),
        )


# -- arms ----------------------------------------------------------------------------------------------------

CLEAN = {"clean": Method({"kind": "none"})}
NAIVE = {"NAIVEATTACK": Method({"kind": "naive"})}
INVISIBLE = {"INVISIBLE": Method({"kind": "invisible", "steps": 100})}
FROZEN_BYTES = {"frozen bytes": Method({"kind": "frozen-bytes"})}
IN_PIXELS = {
    "DOORPING in pixels": Method({"kind": "doorping", "bound": None, "within_pixels": True}),
    "frozen in pixels": Method({"kind": "frozen", "bound": None, "within_pixels": True}),
}
WITHOUT_DISTILLATION = {
    "random subset": Method({"kind": "none"}, run={"distillation": "subset"}),
    "whole set": Method({"kind": "naive"}, run={"distillation": "whole"}),
}


def doorping(suffix: str = "", **attack: Any) -> dict[str, Method]:
    """DOORPING and a frozen trigger as strong as what it ends with."""
    name = f"DOORPING{suffix}"
    return {
        name: Method({"kind": "doorping", **attack}),
        f"frozen patch{suffix}": Method({**attack, "kind": "frozen"}, run={"as_strong_as": name}),
    }


def bounded(bound: float, suffix: str = "", **attack: Any) -> dict[str, Method]:
    """DOORPING within a bound, and a frozen trigger as strong as the bound."""
    return {
        f"DOORPING{suffix}": Method({"kind": "doorping", "bound": bound, **attack}),
        f"frozen patch{suffix}": Method({"kind": "frozen", "bound": bound}),
    }


PAIRS = (
    ("DOORPING", "NAIVEATTACK"),
    ("DOORPING", "frozen patch"),
    ("DOORPING", "frozen dark patch"),
    ("DOORPING in pixels", "frozen in pixels"),
    ("NAIVEATTACK", "clean"),
)


def _pairs(methods: dict[str, Method]) -> tuple[tuple[str, str], ...]:
    return tuple(pair for pair in PAIRS if set(pair) <= methods.keys())


# -- on digits -----------------------------------------------------------------------------------------------

_DIGITS = RunConfig(
    dataset="digits",
    network=NetworkConfig(width=32, depth=2, hidden=64),
    attack=AttackConfig(portion=0.05, steps=200, bound=10.0),
    condensation=CondensationConfig(
        ipc=10,
        iterations=30,
        outer=5,
        inner=5,
        lr_img=0.5,
        lr_net=0.1,
        batch_real=32,
        init="real",
        with_replacement=True,
    ),
    unrolled=DDConfig(
        epochs=15, batch_size=128, lr=0.05, distill_lr=0.3, distill_steps=5, distill_epochs=2, ipc=1
    ),
    victim=VictimConfig(networks=3, epochs=151, drop_after=76, lr=0.05),
    evaluate_every=0,
)
_WHOLE_DIGITS = {
    "whole set": Method(
        {"kind": "naive"},
        victim={"networks": 2, "epochs": 15, "drop_after": 11, "batch_size": 64},
        run={"distillation": "whole"},
    )
}
_SMALL_DEFENCES = DefencesConfig(
    victims=1,
    clean_share=0.2,
    test_images=150,
    neural_cleanse=NeuralCleanseConfig(steps=150),
    neuron_stimulation=NeuronStimulationConfig(steps=100, batch_size=16),
    fine_pruning=FinePruningConfig(fine_tuning=FineTuning(epochs=10, lr=0.05, batch_size=32)),
    attention=AttentionDistillationConfig(
        clean_share=1.0,
        teacher=FineTuning(
            epochs=20, lr=0.03, nesterov=True, weight_decay=1e-4, batch_size=32, decay_after=(13,)
        ),
        student=FineTuning(
            epochs=20, lr=0.01, nesterov=True, weight_decay=1e-4, batch_size=32, decay_after=(13,)
        ),
    ),
    strip=StripConfig(overlays=50),
    denoising=DenoisingConfig(epochs=20, batch_size=32),
)
_QUICK = {**CLEAN, **NAIVE, **bounded(10.0), **_WHOLE_DIGITS}
_DIGITS_ABLATION = {
    **_QUICK,
    "random subset": Method({"kind": "none"}, run={"distillation": "subset"}),
    "frozen dark patch": Method({"kind": "frozen", "frozen_sign": "dark"}),
    **doorping(", unbounded", bound=None),
    **bounded(10.0, ", 20 steps", steps=20),
    **bounded(10.0, ", stop at 0.01", stop_below=0.01),
    **bounded(10.0, ", pre-activation", pre_activation=True),
    **bounded(5.0, ", bound 5"),
    **bounded(3.0, ", bound 3"),
    **IN_PIXELS,
    "INVISIBLE": Method({"kind": "invisible", "steps": 100, "bound": None}),
    "DSA, clean": Method(
        {"kind": "none"},
        condensation={"augmentation": "color_crop_cutout_scale_rotate"},
        victim={"augmentation": "color_crop_cutout_scale_rotate", "epochs": 301, "drop_after": 151},
    ),
    "DD, clean": Method({"kind": "none"}, run={"distillation": "dd"}),
    "DD, DOORPING": Method({"kind": "doorping"}, run={"distillation": "dd"}),
    "DD, frozen patch": Method({"kind": "frozen"}, run={"distillation": "dd"}),
}

PROFILES: dict[str, Profile] = {
    "smoke": Profile(
        "seconds: methods of every kind on a few digits for two iterations, far too short to show anything",
        replace(
            _DIGITS,
            share=0.2,
            network=NetworkConfig(width=8, depth=2, hidden=16),
            attack=replace(_DIGITS.attack, steps=5),
            condensation=replace(_DIGITS.condensation, ipc=2, iterations=2, outer=2, inner=2, batch_real=8),
            unrolled=replace(_DIGITS.unrolled, epochs=2, batch_size=128, distill_steps=2),
            victim=replace(_DIGITS.victim, networks=2, epochs=4, drop_after=2),
            evaluate_every=1,
            earlier_triggers=True,
        ),
        "smoke",
        {
            **CLEAN,
            **NAIVE,
            **doorping(bound=None),
            **IN_PIXELS,
            "INVISIBLE": Method({"kind": "invisible", "steps": 5, "bound": None}),
            **FROZEN_BYTES,
            **WITHOUT_DISTILLATION,
            "DSA, clean": Method(
                {"kind": "none"},
                condensation={"augmentation": "color_crop_cutout_scale_rotate"},
                victim={"augmentation": "color_crop_cutout_scale_rotate"},
            ),
            "DD, DOORPING": Method({"kind": "doorping"}, run={"distillation": "dd"}),
            "DD, frozen patch": Method(
                {"kind": "frozen"}, run={"distillation": "dd", "as_strong_as": "DD, DOORPING"}
            ),
        },
        ("digits",),
        seeds=(0, 1),
        pairs=PAIRS[:2],
        defences=replace(
            _SMALL_DEFENCES,
            victims=1,
            test_images=40,
            neural_cleanse=NeuralCleanseConfig(steps=5),
            neuron_stimulation=NeuronStimulationConfig(steps=5),
            fine_pruning=FinePruningConfig(fine_tuning=FineTuning(epochs=1)),
            attention=AttentionDistillationConfig(
                clean_share=1.0, teacher=FineTuning(epochs=1), student=FineTuning(epochs=1)
            ),
            strip=StripConfig(overlays=5),
            denoising=DenoisingConfig(epochs=1),
        ),
        defended=("DOORPING",),
        checkpoint_seconds=0.0,
    ),
    "quick": Profile(
        "digits of scikit-learn, a small ConvNet, a trigger within 10 units; minutes on two cores",
        _DIGITS,
        "small ConvNet",
        _QUICK,
        ("digits",),
        seeds=(0, 1, 2),
        pairs=_pairs(_QUICK),
        defences=_SMALL_DEFENCES,
        defended=("DOORPING", "frozen patch"),
        defended_seeds=1,
        checkpoint_seconds=15.0,
    ),
    "ablation": Profile(
        "digits as in quick, with further bounds, attacks and distillations; about half an hour on two cores",
        _DIGITS,
        "small ConvNet",
        _DIGITS_ABLATION,
        ("digits",),
        seeds=(0, 1, 2),
        pairs=_pairs(_DIGITS_ABLATION),
        defences=_SMALL_DEFENCES,
        defended=("clean", "NAIVEATTACK", "DOORPING", "frozen patch"),
        checkpoint_seconds=15.0,
    ),
    "h100": Profile(
        "FashionMNIST and CIFAR-10 in sheets, the paper's ConvNet, 300 iterations; one GPU",
        RunConfig(
            attack=AttackConfig(),
            condensation=CondensationConfig(iterations=300),
            victim=VictimConfig(networks=5),
            evaluate_every=100,
        ),
        "DC, ConvNet, 300 iterations",
        {**CLEAN, **NAIVE, **doorping(), **bounded(10.0, ", bound 10")},
        ("fashion-mnist", "cifar-10-mosaic"),
        pairs=(*PAIRS[:2], ("DOORPING, bound 10", "frozen patch, bound 10")),
        checkpoint_seconds=60.0,
    ),
}


# -- the paper's -----------------------------------------------------------------------------------------------

DATASETS = ("fashion-mnist", "cifar-10", "cifar-100", "stl-10", "svhn")
NETWORKS: tuple[NetworkName, ...] = ("ConvNet", "AlexNet")
_PAPER_ARMS = {
    **CLEAN,
    **NAIVE,
    **doorping(),
    **INVISIBLE,
    **FROZEN_BYTES,
    **IN_PIXELS,
    **WITHOUT_DISTILLATION,
}
_DD_INVISIBLE = {"INVISIBLE": Method({"kind": "invisible", "steps": 50, "lr": 0.001})}
_DD_ARMS = {**CLEAN, **NAIVE, **doorping(), **_DD_INVISIBLE, **FROZEN_BYTES, **IN_PIXELS}
_DC = RunConfig()
_DD = RunConfig(distillation="dd")


def _paper_profiles() -> dict[str, Profile]:
    """Data sets x networks x distillations, each with every arm."""
    found = {}
    for dataset in DATASETS:
        title = DESCRIPTIONS[dataset].title
        for network in NETWORKS:
            named = NetworkConfig(network)
            for name, base, arms in (("dc", _DC, _PAPER_ARMS), ("dd", _DD, _DD_ARMS)):
                found[f"{name}-{dataset}-{network.lower()}"] = Profile(
                    f"{title}, {name.upper()} with {network}: every attack, and the methods that judge DOORPING",
                    replace(base, dataset=dataset, network=named),
                    f"{name.upper()}, {network}",
                    arms,
                    (dataset,),
                    pairs=_pairs(arms),
                    checkpoint_seconds=300.0,
                )
    return found


def _sweep(description: str, setting: str, arms: dict[str, Method]) -> Profile:
    return Profile(
        f"CIFAR-10, DC with ConvNet: {description}",
        _DC,
        setting,
        arms,
        ("cifar-10",),
        checkpoint_seconds=300.0,
    )


def _each(values: tuple[Any, ...], name: str, label: str) -> dict[str, Method]:
    """DOORPING and its frozen counterpart for every value of one setting of the attack."""
    arms: dict[str, Method] = {}
    for value in values:
        arms |= doorping(f", {label} {value}", **{name: value})
    return arms


def _ipc_arms() -> dict[str, Method]:
    arms: dict[str, Method] = {}
    for ipc in (1, 10, 50):
        for name, method in {
            **CLEAN,
            **NAIVE,
            **doorping(f", ipc {ipc}", update_every_iteration=ipc == 1),
        }.items():
            full = name if name.endswith(f"ipc {ipc}") else f"{name}, ipc {ipc}"
            arms[full] = replace(method, condensation={"ipc": ipc})
    return arms


def _reference_arms() -> dict[str, Method]:
    """Clean condensation by Zhao et al., whose numbers say whether the distillation itself is right."""
    arms: dict[str, Method] = {}
    strategy = "color_crop_cutout_flip_scale_rotate"
    longer = {"augmentation": strategy, "epochs": 1001, "drop_after": 501}
    for ipc in (1, 10, 50):
        arms[f"DC, ipc {ipc}"] = Method(condensation={"ipc": ipc})
        arms[f"DSA, ipc {ipc}"] = Method(condensation={"ipc": ipc, "augmentation": strategy}, victim=longer)
    return arms


PROFILES |= {
    **_paper_profiles(),
    "cross-architecture": Profile(
        "CIFAR-10, distilled with ConvNet and judged by VGG11 and ResNet18 as well",
        replace(_DC, other_victims=("AlexNet", "VGG11", "ResNet18")),
        "DC, ConvNet, other victims",
        {**CLEAN, **NAIVE, **doorping(), **INVISIBLE},
        ("cifar-10",),
        checkpoint_seconds=300.0,
    ),
    "defences": Profile(
        "CIFAR-10, DC with ConvNet: every defence against ten victims of each attack",
        _DC,
        "DC, ConvNet",
        {**CLEAN, **NAIVE, **doorping(), **INVISIBLE},
        ("cifar-10",),
        defences=DefencesConfig(),
        defended=("clean", "NAIVEATTACK", "DOORPING", "frozen patch", "INVISIBLE"),
        checkpoint_seconds=300.0,
    ),
    "ablation-size": _sweep("sides of the trigger", "size", _each((2, 3, 4, 5, 6), "trigger_size", "size")),
    "ablation-portion": _sweep(
        "shares of poison", "portion", _each((0.001, 0.005, 0.01, 0.05, 0.1), "portion", "portion")
    ),
    "ablation-ipc": _sweep("images of a class", "ipc", _ipc_arms()),
    "ablation-topk": _sweep("numbers of neurons", "topk", _each((1, 2, 3, 5), "topk", "topk")),
    "ablation-alpha": _sweep("factors of the activation", "alpha", _each((2, 5, 10, 20), "alpha", "alpha")),
    "ablation-layer": _sweep("layers of the neurons", "layer", _each((-1, -2, -3, -4), "layer", "layer")),
    "ablation-share": _sweep(
        "shares of the training images",
        "share",
        {
            f"{name}, share {share}": replace(
                method,
                run={
                    "share": share,
                    **({"as_strong_as": f"DOORPING, share {share}"} if method.run else {}),
                },
            )
            for share in (0.2, 0.5, 1.0)
            for name, method in {**CLEAN, **doorping()}.items()
        },
    ),
    "ablation-trajectory": Profile(
        "CIFAR-10, DC with ConvNet: earlier triggers on the last victims",
        replace(_DC, earlier_triggers=True),
        "trajectory",
        doorping(),
        ("cifar-10",),
        checkpoint_seconds=300.0,
    ),
    **{
        f"reference-{dataset}": Profile(
            f"{DESCRIPTIONS[dataset].title}, clean: DC and DSA as Zhao et al. print them, with their own ConvNet",
            replace(
                _DC, dataset=dataset, network=NetworkConfig("ConvNet_B"), attack=AttackConfig(kind="none")
            ),
            "ConvNet_B",
            _reference_arms(),
            (dataset,),
            checkpoint_seconds=300.0,
        )
        for dataset in ("fashion-mnist", "svhn", "cifar-10", "cifar-100")
    },
}
