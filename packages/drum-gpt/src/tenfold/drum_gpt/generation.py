"""Grooves drawn from a network: many prompts at once, with cached keys and values, within the grammar or freely."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import GenerationConfig, LogitsProcessorList

from tenfold.drum_gpt.config import SampleConfig
from tenfold.drum_gpt.grammar import Grammar, GrammarProcessor
from tenfold.drum_gpt.language_models import LanguageModel
from tenfold.drum_gpt.prompts import END
from tenfold.shared.logging import TenfoldError


@torch.no_grad()
def complete(
    model: LanguageModel,
    prompts: Sequence[str],
    config: SampleConfig,
    seed: int,
    grammar: Grammar | None = None,
) -> list[str]:
    """Continue prompts.

    Args:
        model: on any device.
        prompts: texts that end with a measure.
        config: temperature, lengths, and whether the grammar holds.
        seed: of the draws; the same prompts in the same batches are continued alike.
        grammar: where it is made already; otherwise as the configuration says.

    Returns:
        Completions up to ``END``, their last line; without it where they were cut off by their length.
    """
    if config.grammar and grammar is None:
        grammar = make_grammar(model, config.measures)
    completions: list[str] = []
    was_training = model.network.training
    model.network.eval()
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for start in range(0, len(prompts), config.batch_size):
            completions += _complete_batch(model, prompts[start : start + config.batch_size], config, grammar)
    model.network.train(was_training)
    return completions


def make_grammar(model: LanguageModel, measures: int) -> Grammar:
    """The grammar of completions in a network's tokens."""
    return Grammar(model.vocabulary.strings, model.vocabulary.end, measures)


def cut_at_end(text: str) -> str:
    """A completion up to its line ``END``."""
    lines = text.split("\n")
    return "\n".join(lines[: lines.index(END) + 1]) if END in lines else text


def _complete_batch(
    model: LanguageModel, prompts: Sequence[str], config: SampleConfig, grammar: Grammar | None
) -> list[str]:
    device = next(model.network.parameters()).device
    end = model.vocabulary.end
    encoded = [model.vocabulary.encode(prompt) for prompt in prompts]
    longest = max(map(len, encoded))
    room = model.positions - longest
    if room < 1:
        raise TenfoldError(
            f"a prompt of {longest} tokens fills all {model.positions} that this network can read"
        )
    tokens = torch.full((len(encoded), longest), end)
    mask = torch.zeros_like(tokens)
    for row, found in enumerate(encoded):  # on the left: what is drawn follows the prompt at once
        tokens[row, longest - len(found) :] = torch.tensor(found)
        mask[row, longest - len(found) :] = 1
    processors = [GrammarProcessor(grammar, device)] if config.grammar and grammar is not None else []
    network: Any = model.network
    drawn = network.generate(
        input_ids=tokens.to(device),
        attention_mask=mask.to(device),
        generation_config=GenerationConfig(
            do_sample=True,
            temperature=config.temperature,
            top_p=config.top_p,
            top_k=0,
            max_new_tokens=min(config.max_new_tokens, room),
            eos_token_id=end,
            pad_token_id=end,
        ),
        logits_processor=LogitsProcessorList(processors),
    )
    return [cut_at_end(model.vocabulary.decode(row)) for row in drawn[:, longest:].tolist()]
