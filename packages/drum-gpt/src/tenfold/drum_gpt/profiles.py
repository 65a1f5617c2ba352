"""The experiment suites, as data."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from tenfold.drum_gpt.config import ModelConfig, RunConfig, SampleConfig, TrainConfig
from tenfold.drum_gpt.corpus import Split


@dataclass(frozen=True)
class Method:
    """How a method differs from fine-tuning the pre-trained network."""

    model: dict[str, Any] = field(default_factory=dict)
    train: dict[str, Any] = field(default_factory=dict)
    sample: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Profile:
    """Which methods are compared, how they learn, and how often."""

    description: str
    base: RunConfig
    methods: dict[str, Method]
    seeds: tuple[int, ...] = (0, 1, 2)
    splits: tuple[Split, ...] = ("test",)
    """Splits whose prompts are continued."""
    checkpoint_seconds: float = 15.0
    """Least time between two checkpoints of a run; those of large networks take long to write."""
    english_steps: int = 400
    """Steps for which a byte-level network reads English, where that is what it begins with."""

    def run_config(self, method: str) -> RunConfig:
        """Every setting of a method that learns."""
        changes = self.methods[method]
        return replace(
            self.base,
            model=replace(self.base.model, **changes.model),
            train=replace(self.base.train, **changes.train),
            sample=replace(self.base.sample, **changes.sample),
        )

    @property
    def network(self) -> str:
        """What is fine-tuned, as the setting of its records."""
        model = self.base.model
        return model.name if model.layers is None else f"{model.name}, {model.layers} layers"


def with_characters(profile: Profile) -> Profile:
    """The same suite with the byte-level network, for where SmolLM2's weights are missing."""
    base = profile.base
    bytes_needed = BYTES_OF_MEASURE * base.sample.measures
    base = replace(
        base,
        model=ModelConfig("characters"),
        train=replace(base.train, max_length=LONGEST_IN_BYTES, window=base.train.window and 512),
        sample=replace(base.sample, max_new_tokens=bytes_needed),
    )
    # Fewer layers than have read English cannot begin with what they read.
    methods = {name: method for name, method in profile.methods.items() if "layers" not in method.model}
    return replace(profile, base=base, methods=methods)


BYTES_OF_MEASURE, LONGEST_IN_BYTES = 120, 3000
_RANDOM = {"start": "random"}
_QUICK = RunConfig(
    ModelConfig("smollm2", layers=3, prune_vocabulary=True),
    TrainConfig(
        steps=50,
        batch_size=2,
        lr=5e-4,
        warmup=0.13,
        window=256,
        eval_every=25,
        eval_pieces=8,
        eval_measures=4,
    ),
    SampleConfig(max_new_tokens=330, measures=4),
    test_pieces=12,
)
_SCRATCH = Method(_RANDOM, {"lr": 1e-3, "epochs": 40, "patience": 3})
_LORA = Method({"lora_rank": 16}, {"lr": 2e-4})
_TRANSFORMER = Method(
    {"name": "characters", "layers": None, **_RANDOM},
    {**_SCRATCH.train, "max_length": LONGEST_IN_BYTES},
    {"max_new_tokens": BYTES_OF_MEASURE * 15},
)


def _paper(name: str, lr: float) -> Profile:
    return Profile(
        f"{name} in place of GPT-3: fine-tuned, with LoRA, and from random weights; every continuation of the paper",
        RunConfig(
            ModelConfig(name), TrainConfig(lr=lr, gradient_checkpointing=True), SampleConfig(grammar=False)
        ),
        {
            "pre-trained": Method(),
            "LoRA": _LORA,
            "scratch": _SCRATCH,
            "Transformer": _TRANSFORMER,
        },
        splits=("dev", "test"),
        checkpoint_seconds=600.0,
    )


PROFILES: dict[str, Profile] = {
    "smoke": Profile(
        "seconds: a tiny byte-level network for a few steps, far too short to learn from",
        replace(
            _QUICK,
            model=ModelConfig("characters", layers=1),
            train=replace(_QUICK.train, steps=4, eval_every=2, eval_pieces=2),
            sample=SampleConfig(max_new_tokens=260, measures=2),
            test_pieces=2,
        ),
        {"pre-trained": Method(), "scratch": Method(_RANDOM)},
        seeds=(0, 1),
        english_steps=2,
    ),
    "quick": Profile(
        "three layers of SmolLM2-135M against the same network from random weights; minutes on two cores",
        _QUICK,
        {"pre-trained": Method(), "scratch": Method(_RANDOM, {"lr": 3e-4})},
    ),
    "ablation": Profile(
        "quick with twice the steps: rates, LoRA, more layers, a small Transformer",
        replace(_QUICK, train=replace(_QUICK.train, steps=100)),
        {
            "pre-trained": Method(),
            "pre-trained, high rate": Method(train={"lr": 1e-3}),
            "scratch": Method(_RANDOM, {"lr": 3e-4}),
            "scratch, high rate": Method(_RANDOM, {"lr": 1e-3}),
            "LoRA": Method({"lora_rank": 16}, {"lr": 3e-3}),
            "6 layers": Method({"layers": 6}),
            "Transformer": Method(
                {"name": "characters", "layers": 4, **_RANDOM},
                {"window": 512, "lr": 1e-3},
                {"max_new_tokens": BYTES_OF_MEASURE * 4},
            ),
        },
    ),
    "h100": Profile(
        "the whole SmolLM2-135M: fine-tuned, with LoRA, and from random weights; one GPU",
        RunConfig(),
        {
            "pre-trained": Method(),
            "LoRA": _LORA,
            "scratch": _SCRATCH,
            "scratch, low rate": Method(_RANDOM, {**_SCRATCH.train, "lr": 3e-4}),
            "Transformer": _TRANSFORMER,
        },
        splits=("dev", "test"),
        checkpoint_seconds=60.0,
    ),
    "groove-gpt2-xl": _paper("gpt2-xl", 2e-5),
    "groove-llama-3.2-1b": _paper("meta-llama/Llama-3.2-1B", 2e-5),
    "groove-pythia-1.4b": _paper("EleutherAI/pythia-1.4b", 2e-5),
}
