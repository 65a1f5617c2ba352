"""Fine-tuned networks as files: weights, architecture and tokenizer, so that nothing else is needed to use them."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from tenfold.drum_gpt.config import RunConfig
from tenfold.drum_gpt.language_models import LanguageModel
from tenfold.drum_gpt.vocabulary import Vocabulary
from tenfold.shared.logging import TenfoldError
from tenfold.shared.runs import load_checkpoint, plain

KIND = "tenfold drum-gpt language model"


def artifact(model: LanguageModel, config: RunConfig) -> dict[str, Any]:
    """Everything of a network, as tensors and plain values; LoRA's matrices are added to the weights."""
    network: Any = model.network
    if config.model.lora_rank:
        network = copy.deepcopy(network).merge_and_unload()  # the one at hand may go on learning
    tokenizer: Any = model.vocabulary.tokenizer
    return {
        "kind": KIND,
        "config": plain(config),
        "architecture": json.dumps(network.config.to_dict(), default=str),
        "weights": {name: weight.detach().cpu() for name, weight in network.state_dict().items()},
        "tokenizer": tokenizer.backend_tokenizer.to_str(),
        "end": str(tokenizer.eos_token),
        "kept": None if model.vocabulary.kept is None else list(model.vocabulary.kept),
    }


def load_artifact(path: Path) -> tuple[LanguageModel, RunConfig]:
    """A network and the settings of its run.

    Raises:
        TenfoldError: the file is missing, damaged, or something else.
    """
    content = load_checkpoint(path)
    if content.get("kind") != KIND:
        raise TenfoldError(f"{path} is no language model of drum-gpt; give model.pt of one of its runs")
    config = RunConfig.from_plain(content["config"])
    architecture = json.loads(content["architecture"])
    settings = AutoConfig.for_model(architecture.pop("model_type"), **architecture)
    network: Any = AutoModelForCausalLM.from_config(settings, dtype=torch.float32)
    network.load_state_dict(content["weights"])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(content["tokenizer"]),
        eos_token=content["end"],
        pad_token=content["end"],
    )
    return LanguageModel(network.eval(), Vocabulary(tokenizer, content["kept"])), config
