"""The experiment suites, as data."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from tenfold.pmt_iqa.config import JudgeConfig, ModelConfig, RunConfig, TrainConfig


@dataclass(frozen=True)
class Method:
    """How a method differs from PMT-IQA."""

    model: dict[str, Any] = field(default_factory=dict)
    train: dict[str, Any] = field(default_factory=dict)
    recipe: dict[str, Any] = field(default_factory=dict)
    """Further settings of training that it is published with; scaled-down suites train it as all others."""
    judge: dict[str, Any] = field(default_factory=dict)


METHODS: dict[str, Method] = {
    "PMT-IQA": Method(),
    "regression": Method(train={"schedule": "regression"}),
    "fixed weights": Method(train={"schedule": "fixed"}),
    "classification": Method(train={"schedule": "classification"}),
    "PMT w/o MS": Method(model={"scales": (4,)}),
    "regression w/o MS": Method(model={"scales": (4,)}, train={"schedule": "regression"}),
    "ResNet50": Method(model={"kind": "plain"}, train={"schedule": "regression"}),
    "plain regressor": Method(model={"kind": "plain"}, train={"schedule": "regression"}),
    "HyperIQA": Method(
        model={"kind": "hyper", "feature_dim": 224, "lda_outputs": 16},
        train={"schedule": "regression"},
        recipe={
            "lr": 2e-5,
            "lr_schedule": "hyperiqa",
            "epochs": 16,
            "images_per_batch": 96,
            "crops_per_image": 1,
            "passes_per_epoch": 25,
        },
    ),
    "reversed": Method(train={"schedule": "reversed"}),
    "shuffled labels": Method(train={"shuffle_labels": True}),
    # What the authors' script does as shipped: weights found by a search on test scores, and four test crops.
    "shipped script": Method(
        train={"schedule": "fixed", "fixed_weights": (0.9419036108703593, 0.9602831644731372)},
        judge={"crops": 4},
    ),
    "BRISQUE": Method(),
}
"""By name. BRISQUE learns from features of its own (:mod:`tenfold.pmt_iqa.brisque`)."""


@dataclass(frozen=True)
class Profile:
    """A suite: methods x random splits of one data set."""

    description: str
    """One line for the list of profiles."""
    base: RunConfig
    """PMT-IQA's settings."""
    methods: tuple[str, ...]
    seeds: tuple[int, ...] = tuple(range(10))
    """One random split each."""
    fewer_seeds: dict[str, tuple[int, ...]] = field(default_factory=dict)
    """Methods that are run on some of the splits only."""
    with_recipes: bool = False
    """Train every method by the recipe it is published with; else all alike."""

    def run_config(self, method: str) -> RunConfig:
        """The settings of one method."""
        changes, base = METHODS[method], self.base
        model, train = dict(changes.model), {**changes.train, **(changes.recipe if self.with_recipes else {})}
        if base.model.backbone == "small":  # its features are as few as PMT-IQA's
            model = {
                name: value for name, value in model.items() if name not in ("feature_dim", "lda_outputs")
            }
        return replace(
            base,
            model=replace(base.model, **model),
            train=replace(base.train, **train),
            judge=replace(base.judge, **changes.judge),
        )

    def seeds_of(self, method: str) -> tuple[int, ...]:
        """The splits of one method."""
        return self.fewer_seeds.get(method, self.seeds)


_SMALL = ModelConfig(backbone="small", pretrained=False)
_QUICK = RunConfig(
    "proxy",
    train_fraction=0.75,
    model=_SMALL,
    train=TrainConfig(
        epochs=16,
        images_per_batch=32,
        crops_per_image=1,
        crop_size=64,
        lr=1.5e-3,
        lr_schedule="one-cycle",
        reset_optimizer_each_epoch=False,
        start_at_mean=True,
    ),
    judge=JudgeConfig(4, "corners", every_epoch=False),
)
_ABLATION = ("PMT-IQA", "regression", "fixed weights", "classification", "PMT w/o MS", "regression w/o MS")

PROFILES: dict[str, Profile] = {
    "smoke": Profile(
        "seconds: every method for two epochs on a few distorted photographs, far too short to learn from",
        replace(
            _QUICK,
            dataset="proxy-smoke",
            train=replace(_QUICK.train, epochs=2),
            judge=replace(_QUICK.judge, every_epoch=True),
        ),
        (*_ABLATION, "plain regressor", "HyperIQA", "reversed", "shuffled labels", "BRISQUE"),
        seeds=(0, 1),
    ),
    "quick": Profile(
        "distorted photographs with a full-reference proxy for opinions, a small network; minutes on two cores",
        replace(_QUICK, train=replace(_QUICK.train, epochs=12)),
        ("PMT-IQA", "regression", "shuffled labels", "BRISQUE"),
        seeds=tuple(range(5)),
        fewer_seeds={"shuffled labels": (0, 1, 2)},
    ),
    "ablation": Profile(
        "all methods on the data of quick, a little longer; a quarter of an hour on two cores",
        _QUICK,
        (*_ABLATION, "plain regressor", "HyperIQA", "reversed", "shuffled labels", "BRISQUE"),
        seeds=tuple(range(5)),
    ),
    "h100": Profile(
        "photographs of COCO, distorted, with the proxy; ResNet-18 from scratch, five splits; one GPU",
        RunConfig(
            "photographs",
            train_fraction=0.75,
            model=ModelConfig(backbone="resnet18", pretrained=False),
            train=TrainConfig(
                lr=1e-3, lr_schedule="one-cycle", reset_optimizer_each_epoch=False, start_at_mean=True
            ),
            judge=JudgeConfig(25, "grid", every_epoch=False),
        ),
        (*_ABLATION, "plain regressor", "HyperIQA", "shuffled labels", "BRISQUE"),
        seeds=tuple(range(5)),
    ),
    **{
        dataset: Profile(
            f"the paper's setting on {title}: ten splits of 80 and 20 per cent, 30 epochs, all methods",
            RunConfig(dataset),
            (*_ABLATION, "ResNet50", "HyperIQA", "shipped script", "BRISQUE"),
            with_recipes=True,
        )
        for dataset, title in {
            "livec": "LIVE in the Wild",
            "bid": "BID",
            "koniq10k": "KonIQ-10k",
            "live": "LIVE",
            "csiq": "CSIQ",
            "tid2013": "TID2013, which the paper has no number for",
        }.items()
    },
}
