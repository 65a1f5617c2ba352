"""What the tests of drum-GPT share: tiny networks, and runs below a temporary folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tenfold.drum_gpt.config import TrainConfig
from tenfold.drum_gpt.language_models import LanguageModel, byte_tokenizer
from tenfold.drum_gpt.vocabulary import Vocabulary
from tenfold.shared.runs import Run, RunKey


def tiny_model(seed: int = 0, layers: int = 1) -> LanguageModel:
    """A byte-level network of a few thousand weights."""
    tokenizer = byte_tokenizer()
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=True,
    )
    return LanguageModel(LlamaForCausalLM(config), Vocabulary(tokenizer))


def small_training(**changes: Any) -> TrainConfig:
    """Twelve steps on windows; changes go to the settings."""
    settings = {
        "steps": 12,
        "batch_size": 4,
        "lr": 3e-3,
        "warmup": 0.2,
        "window": 120,
        "eval_every": 4,
        "eval_pieces": 2,
        "eval_measures": 2,
        **changes,
    }
    return TrainConfig(**settings)


@pytest.fixture(scope="session")
def make_model() -> Callable[..., LanguageModel]:
    return tiny_model


@pytest.fixture(scope="session")
def make_training() -> Callable[..., TrainConfig]:
    return small_training


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., Run]:
    """Makes a run below the test's folder, by name; a checkpoint is due whenever one can be made."""

    def make(name: str, checkpoint_seconds: float = 0.0) -> Run:
        key = RunKey("drum-gpt", "test", name, 0, "groove", "test", "test")
        return Run(tmp_path, key, {}, "step", checkpoint_seconds=checkpoint_seconds)

    return make
