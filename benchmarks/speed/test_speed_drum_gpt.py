"""drum-GPT: grooves drawn together against one by one, what the grammar costs, encoding, and edit distances.

The references are the plain ways: a call of ``generate`` for each prompt; a walk over a list of time ranges for each
note, as the authors' encoder does; an edit distance in Python. The named peer is transformers with its own way of
keeping to a grammar. Both sides give the same, which is checked.
"""

from __future__ import annotations

import io
import time
from collections.abc import Callable
from itertools import pairwise
from typing import Any
from unittest.mock import patch

import mido
import pytest
import torch
from torch import Tensor
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    LogitsProcessor,
    PrefixConstrainedLogitsProcessor,
)

from tenfold.drum_gpt import generation
from tenfold.drum_gpt.config import SampleConfig, TrainConfig
from tenfold.drum_gpt.corpus import bundled_midi, pieces_of
from tenfold.drum_gpt.encoding import (
    COLUMN_OF_NOTE,
    DROPPED_NOTES,
    Performance,
    performance_to_drumroll,
    read_midi,
)
from tenfold.drum_gpt.examples import texts_to_know
from tenfold.drum_gpt.generation import complete, make_grammar
from tenfold.drum_gpt.grammar import Grammar, GrammarProcessor
from tenfold.drum_gpt.language_models import LanguageModel, byte_tokenizer
from tenfold.drum_gpt.structure import levenshtein, measures_of
from tenfold.drum_gpt.vocabulary import Vocabulary, tokens_of

GROOVES, MEASURES = 8, 1


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    """Three layers as wide as SmolLM2-135M's with random weights, for the characters of drumrolls."""
    tokenizer = byte_tokenizer()
    vocabulary = Vocabulary(tokenizer, tokens_of(tokenizer, texts_to_know(pieces_of("train"), TrainConfig())))
    torch.manual_seed(0)
    network = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(vocabulary.kept or ()),
            hidden_size=576,
            intermediate_size=1536,
            num_hidden_layers=3,
            num_attention_heads=9,
            num_key_value_heads=3,
            tie_word_embeddings=True,
        )
    )
    return LanguageModel(network.eval(), vocabulary)


@pytest.fixture(scope="module")
def prompts() -> list[str]:
    return [piece.example.prompt for piece in pieces_of("test")[:GROOVES] if piece.example is not None]


def seconds_of(work: Callable[[], Any]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def test_grooves_in_one_batch_against_one_by_one(
    measure_ratio: Callable[..., Any], model: LanguageModel, prompts: list[str]
) -> None:
    torch.set_num_threads(1)
    config = SampleConfig(measures=MEASURES, max_new_tokens=300)
    grammar = make_grammar(model, MEASURES)

    def together() -> list[str]:
        return complete(model, prompts, config, 0, grammar)

    def one_by_one() -> list[str]:
        return [complete(model, [prompt], config, 0, grammar)[0] for prompt in prompts]

    assert all(text.endswith("END") for text in together() + one_by_one()[:2])
    measured = measure_ratio(
        together,
        one_by_one,
        rounds=3,
        reference=f"{GROOVES} grooves drawn one by one",
        unit=f"batches of {GROOVES} grooves, one measure each, three layers of SmolLM2-135M's width",
    )
    assert measured.median > 2


def walk(processor: LogitsProcessor, grammar: Grammar, vocabulary: int, steps: int) -> Tensor:
    """[B, steps], the first token that may come at every step, without a network."""
    tokens, found = torch.full((GROOVES, 1), int(grammar.tokens[0])), []
    for _ in range(steps):
        tokens = processor(tokens, torch.zeros(GROOVES, vocabulary)).argmax(dim=1, keepdim=True)
        found.append(tokens)
    return torch.cat(found, dim=1)


def test_the_grammar_against_the_network(
    measure_ratio: Callable[..., Any], model: LanguageModel, prompts: list[str]
) -> None:
    """Free sampling is no reference: a network with random weights ends it at once."""
    torch.set_num_threads(1)
    grammar, steps = make_grammar(model, MEASURES), 100
    config = SampleConfig(measures=MEASURES, max_new_tokens=steps)
    measured = measure_ratio(
        lambda: walk(
            GrammarProcessor(grammar, torch.device("cpu")), grammar, len(model.vocabulary.strings), steps
        ),
        lambda: complete(model, prompts, config, 0, grammar),
        reference="drawing them with the network, grammar included: how small a part of it the grammar is",
        unit=f"batches of {GROOVES} times {steps} tokens through the grammar",
    )
    assert measured.median > 5


def followers(grammar: Grammar) -> list[dict[int, int]]:
    """For each state, the tokens that may come and the state after each."""
    return [
        {token: state for token, state in zip(grammar.tokens.tolist(), states, strict=True) if state >= 0}
        for states in grammar.table.tolist()
    ]


def row_by_row(following: list[dict[int, int]]) -> PrefixConstrainedLogitsProcessor:
    """The grammar as ``generate(prefix_allowed_tokens_fn=...)`` has it: each row asks which tokens may follow.

    The function remembers where every row is, so that it never reads a text again from its beginning.
    """
    state_of: dict[int, int] = {}

    def may_follow(row: int, seen: Tensor) -> list[int]:
        state_of[row] = following[state_of[row]][int(seen[-1])] if row in state_of else 0
        return list(following[state_of[row]])

    return PrefixConstrainedLogitsProcessor(may_follow, num_beams=1)


def test_the_grammar_against_transformers_row_by_row(
    measure_ratio: Callable[..., Any], model: LanguageModel
) -> None:
    grammar, steps, vocabulary = make_grammar(model, MEASURES), 100, len(model.vocabulary.strings)
    device, following = torch.device("cpu"), followers(grammar)

    def ours() -> Tensor:
        return walk(GrammarProcessor(grammar, device), grammar, vocabulary, steps)

    def theirs() -> Tensor:
        return walk(row_by_row(following), grammar, vocabulary, steps)

    assert torch.equal(ours(), theirs())
    measured = measure_ratio(
        ours,
        theirs,
        rounds=9,
        reference="transformers' processor for allowed tokens, which asks a function for each row",
        peer="transformers",
        unit=f"batches of {GROOVES} times {steps} tokens through the grammar",
    )
    assert measured.median > 1


def test_drawing_within_the_grammar_against_transformers_row_by_row(
    measure_ratio: Callable[..., Any], model: LanguageModel, prompts: list[str]
) -> None:
    """The network is the same on both sides and takes most of the time."""
    config = SampleConfig(measures=MEASURES, max_new_tokens=300)
    grammar = make_grammar(model, MEASURES)
    following = followers(grammar)

    def ours() -> list[str]:
        return complete(model, prompts, config, 0, grammar)

    def theirs() -> list[str]:
        with patch.object(generation, "GrammarProcessor", lambda *_: row_by_row(following)):
            return complete(model, prompts, config, 0, grammar)

    assert ours() == theirs()
    measure_ratio(
        ours,
        theirs,
        reference="the same drawing with transformers' processor for allowed tokens",
        peer="transformers",
        unit=f"batches of {GROOVES} grooves, one measure each, three layers of SmolLM2-135M's width",
    )


def walk_over_ranges(file: mido.MidiFile, performance: Performance) -> str:
    """A list of ranges, walked through from its beginning for each note."""
    quarter, eighth = performance.ticks_per_quarter // 4, performance.ticks_per_quarter // 8
    ranges = [range(eighth)] + [
        range(eighth + step * quarter, eighth + (step + 1) * quarter) for step in range(performance.steps - 1)
    ]
    rows = [["-"] * 6 for _ in ranges]
    tick = 0
    for message in file.tracks[0]:
        tick += message.time
        if message.type != "note_on" or message.velocity == 0 or message.note in DROPPED_NOTES:
            continue
        step = next((number for number, found in enumerate(ranges) if tick in found), None)
        if step is None:
            break
        rows[step][COLUMN_OF_NOTE[message.note]] = "o"
    return "".join("".join(row) + "\n" for row in rows)


def test_encoding_against_a_walk_over_ranges(measure_ratio: Callable[..., Any]) -> None:
    """Reading the file, which is mido's on both sides, is left out of ours and theirs."""
    contents = [content for content in bundled_midi().values() if read_midi(content).beat_unit == 4]
    performances = [read_midi(content) for content in contents]
    parsed = [mido.MidiFile(file=io.BytesIO(content)) for content in contents]
    reading = min(seconds_of(lambda: [read_midi(content) for content in contents]) for _ in range(3))

    def ours() -> list[str | None]:
        return [performance_to_drumroll(performance) for performance in performances]

    def theirs() -> list[str]:
        return [walk_over_ranges(*pair) for pair in zip(parsed, performances, strict=True)]

    assert ours() == theirs()
    measured = measure_ratio(
        ours,
        theirs,
        rounds=9,
        reference="a walk over a list of time ranges for each note, as the authors' encoder does",
        unit=f"sets of {len(parsed)} performances",
        seconds_to_read_the_files=reading,
    )
    assert measured.median > 2


def distance_in_python(a: str, b: str) -> int:
    row = list(range(len(b) + 1))
    for number, first in enumerate(a, start=1):
        before, row[0] = row[0], number
        for place, second in enumerate(b, start=1):
            before, row[place] = (
                row[place],
                min(row[place] + 1, row[place - 1] + 1, before + (first != second)),
            )
    return row[-1]


def test_edit_distances_against_python(measure_ratio: Callable[..., Any]) -> None:
    measures = ["\n".join(measure) for piece in pieces_of("test")[:3] for measure in measures_of(piece.text)]
    pairs = list(pairwise(measures))

    def ours() -> list[int]:
        return [levenshtein(*pair) for pair in pairs]

    def theirs() -> list[int]:
        return [distance_in_python(*pair) for pair in pairs]

    assert ours() == theirs()
    measured = measure_ratio(
        ours,
        theirs,
        rounds=3,
        reference="a dynamic programme in Python",
        unit=f"sets of {len(pairs)} pairs of measures",
    )
    assert measured.median > 20
