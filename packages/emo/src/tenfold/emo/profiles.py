"""The experiment suites, as data."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from tenfold.emo.config import DataConfig, ModelConfig, RunConfig, TrainConfig
from tenfold.emo.dense import SETTINGS, DenseConfig, Task


@dataclass(frozen=True)
class Method:
    """How a method differs from the first of its profile."""

    model: dict[str, Any] = field(default_factory=dict)
    train: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Profile:
    """Which networks are trained alike, and how often."""

    description: str
    """One line for the list of profiles."""
    base: RunConfig
    methods: dict[str, Method]
    seeds: tuple[int, ...] = (0, 1, 2)
    checkpoint_seconds: float = 15.0
    """Least time between two checkpoints of a run."""

    def run_config(self, method: str) -> RunConfig:
        """Every setting of a method."""
        changes = self.methods[method]
        return replace(
            self.base,
            model=replace(self.base.model, **changes.model),
            train=replace(self.base.train, **changes.train),
        )

    @property
    def dataset(self) -> str:
        """Of all its runs."""
        return self.base.data.dataset

    @property
    def setting(self) -> str:
        """What the images are like, as the setting of its records."""
        return f"{self.base.data.image_size} px, {self.base.train.epochs} epochs"


@dataclass(frozen=True)
class DenseProfile:
    """A detector or a segmenter on one of the networks."""

    description: str
    """One line for the list of profiles."""
    base: DenseConfig
    methods: dict[str, str]
    """Method to the backbone."""
    seeds: tuple[int, ...] = (0,)
    checkpoint_seconds: float = 300.0
    """Least time between two checkpoints of a run."""

    def run_config(self, method: str) -> DenseConfig:
        """Every setting of a method."""
        return replace(self.base, name=self.methods[method])

    @property
    def dataset(self) -> str:
        """Of all its runs."""
        return self.base.dataset

    @property
    def setting(self) -> str:
        """Task and size, as the setting of its records."""
        return SETTINGS[self.base.task]


_COMPONENTS = {
    "EW-MHSA and DW-Conv": Method(),
    "DW-Conv": Method({"attention": False}),
    "EW-MHSA": Method({"depthwise": False}),
    "neither": Method({"attention": False, "depthwise": False}),
}
"""Table of the block's components."""
_DIGITS = RunConfig(
    ModelConfig("emo_digits"),
    DataConfig("digits", image_size=32, augmentation="shift"),
    TrainConfig(
        epochs=12,
        batch_size=64,
        lr=3e-3,
        min_lr=0.0,
        warmup_epochs=1.2,
        ema_decay=None,
        evaluate_every=4,
    ),
)
_QUICK_METHODS = {
    "EMO": Method(),
    "MobileNetV2-like": Method({"name": "mobilenetv2_digits"}),
    "ViT": Method({"name": "vit_digits"}),
    "EMO, best rate": Method(train={"lr": 1.2e-2}),
    "MobileNetV2-like, best rate": Method({"name": "mobilenetv2_digits"}, {"lr": 2.4e-2}),
}
"""By one recipe, and those that come close at the rates that suited them on other seeds."""
_CIFAR = RunConfig(
    ModelConfig("emo_1m"),
    DataConfig("cifar10", image_size=96, augmentation="crop"),
    TrainConfig(epochs=60, batch_size=1024, lr=3e-3, warmup_epochs=5, ema_decay=0.999),
)
_NOISY = {"noise_range": (0.42, 0.9)}


def _imagenet(name: str, description: str, **train: Any) -> Profile:
    size = name.removeprefix("emo_").upper()
    return Profile(
        description,
        RunConfig(ModelConfig(name), train=TrainConfig(**train)),
        {f"EMO-{size}": Method()},
        seeds=(42,),
        checkpoint_seconds=300.0,
    )


_TITLES: dict[Task, str] = {
    "ssdlite": "COCO, SSDLite at 320 pixels, 120 epochs of five passes",
    "retinanet": "COCO, RetinaNet at 1333 x 800 pixels, 12 epochs",
    "deeplabv3": "ADE20K, DeepLabv3 at 512 pixels, 80,000 updates",
    "pspnet": "ADE20K, PSPNet at 512 pixels, 80,000 updates",
    "semantic_fpn": "ADE20K, Semantic FPN at 512 pixels, 160,000 updates",
}


def _dense_profiles() -> dict[str, DenseProfile]:
    found = {}
    for task, title in _TITLES.items():
        dataset = DenseConfig(task).dataset
        for size in ("1m", "2m", "5m"):
            method = f"EMO-{size.upper()}"
            found[f"{dataset}-{task.replace('_', '-')}-{size}"] = DenseProfile(
                f"{title}, on {method}", DenseConfig(task), {method: f"emo_{size}"}
            )
    return found


PROFILES: dict[str, Profile] = {
    "smoke": Profile(
        "seconds: two networks on digits for two epochs, far too short to learn from",
        replace(_DIGITS, train=replace(_DIGITS.train, epochs=2, warmup_epochs=0.2, batch_size=128)),
        {"EMO": Method(), "MobileNetV2-like": Method({"name": "mobilenetv2_digits"})},
        seeds=(0, 1),
    ),
    "quick": Profile(
        "digits at 32 pixels, 33 thousand parameters each: EMO, inverted residuals, a ViT; minutes on two cores",
        _DIGITS,
        _QUICK_METHODS,
    ),
    "ablation": Profile(
        "quick with EMO's components and windows taken apart",
        _DIGITS,
        {
            **_QUICK_METHODS,
            "DW-Conv": _COMPONENTS["DW-Conv"],
            "EW-MHSA": _COMPONENTS["EW-MHSA"],
            "neither": _COMPONENTS["neither"],
            "contiguous windows of 2": Method({"windows": "contiguous", "window_size": 2}),
            "strided windows of 2": Method({"window_size": 2}),
            "padding masked": Method({"mask_padding": True}),
            "attention after the expansion": Method({"attention_first": False}),
            "grouped expansion": Method({"grouped_expansion": True}),
        },
    ),
    "h100": Profile(
        "CIFAR-10 at 96 pixels: EMO-1M and its components, MobileNetV2 0.5, EdgeNeXt-XXS; one GPU",
        _CIFAR,
        {
            "EMO-1M": Method(),
            "DW-Conv": _COMPONENTS["DW-Conv"],
            "EW-MHSA": _COMPONENTS["EW-MHSA"],
            "neither": _COMPONENTS["neither"],
            "MobileNetV2-0.5": Method({"name": "mobilenetv2_050"}),
            "EdgeNeXt-XXS": Method({"name": "edgenext_xx_small"}),
        },
        seeds=(0,),
    ),
    "imagenet-1m": _imagenet("emo_1m", "ImageNet, EMO-1M: 300 epochs at 224 pixels, noisy rate", **_NOISY),
    "imagenet-2m": _imagenet("emo_2m", "ImageNet, EMO-2M: 300 epochs at 224 pixels, noisy rate", **_NOISY),
    "imagenet-5m": _imagenet("emo_5m", "ImageNet, EMO-5M: 300 epochs at 224 pixels"),
    "imagenet-6m": _imagenet("emo_6m", "ImageNet, EMO-6M: 300 epochs at 224 pixels"),
    "imagenet-components-5m": Profile(
        "ImageNet, EMO-5M with both, one and none of attention and depthwise convolution",
        RunConfig(ModelConfig("emo_5m")),
        _COMPONENTS,
        seeds=(42,),
        checkpoint_seconds=300.0,
    ),
    "imagenet-block-swap": Profile(
        "ImageNet, DeiT-Tiny and the same with EMO's block in place of its layers, by EMO's recipe",
        RunConfig(ModelConfig("deit_tiny_patch16_224")),
        {"DeiT-Tiny": Method(), "DeiT-Tiny with iRMB": Method({"name": "deit_tiny_irmb"})},
        seeds=(42,),
        checkpoint_seconds=300.0,
    ),
}
"""Of classifiers."""
DENSE_PROFILES = _dense_profiles()
"""Of detectors and segmenters, which begin with weights from ImageNet."""
