"""drum-GPT: grooves drawn together against one by one, what the grammar costs, encoding, and edit distances.

The references are the plain ways: a call of ``generate`` for each prompt; a walk over a list of time ranges for each
note, as the authors' encoder does; an edit distance in Python. Both sides give the same, which is checked.
"""

from __future__ import annotations

import io
import time
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import mido
import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from transformers import LlamaConfig, LlamaForCausalLM

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
from tenfold.drum_gpt.grammar import GrammarProcessor
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


def measure(
    benchmark: BenchmarkFixture,
    ours: Callable[[], Any],
    theirs: Callable[[], Any],
    rounds: int,
    **info: Any,
) -> float:
    """Time both in turn; returns the median ratio."""
    ratios = [seconds_of(theirs) / seconds_of(ours) for _ in range(rounds)]
    benchmark.pedantic(ours, rounds=3, iterations=1)
    benchmark.extra_info.update(ratio=ratios, **info)
    return sorted(ratios)[len(ratios) // 2]


def test_grooves_in_one_batch_against_one_by_one(
    benchmark: BenchmarkFixture, model: LanguageModel, prompts: list[str]
) -> None:
    torch.set_num_threads(1)
    config = SampleConfig(measures=MEASURES, max_new_tokens=300)
    grammar = make_grammar(model, MEASURES)

    def together() -> list[str]:
        return complete(model, prompts, config, 0, grammar)

    def one_by_one() -> list[str]:
        return [complete(model, [prompt], config, 0, grammar)[0] for prompt in prompts]

    assert all(text.endswith("END") for text in together() + one_by_one()[:2])
    ratio = measure(
        benchmark,
        together,
        one_by_one,
        3,
        reference=f"{GROOVES} grooves drawn one by one",
        unit=f"batches of {GROOVES} grooves, one measure each, three layers of SmolLM2-135M's width",
    )
    assert ratio > 2


def test_the_grammar_against_the_network(
    benchmark: BenchmarkFixture, model: LanguageModel, prompts: list[str]
) -> None:
    """Free sampling is no reference: a network with random weights ends it at once."""
    torch.set_num_threads(1)
    grammar, steps = make_grammar(model, MEASURES), 100
    config = SampleConfig(measures=MEASURES, max_new_tokens=steps)
    start = torch.full((GROOVES, 1), int(grammar.tokens[0]))

    def look_up() -> None:
        processor, tokens = GrammarProcessor(grammar, torch.device("cpu")), start
        for _ in range(steps):
            scores = processor(tokens, torch.zeros(GROOVES, len(model.vocabulary.strings)))
            tokens = scores.argmax(dim=1, keepdim=True)

    ratio = measure(
        benchmark,
        look_up,
        lambda: complete(model, prompts, config, 0, grammar),
        5,
        reference="drawing them with the network, grammar included: how small a part of it the grammar is",
        unit=f"batches of {GROOVES} times {steps} tokens through the grammar",
    )
    assert ratio > 5


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


def test_encoding_against_a_walk_over_ranges(benchmark: BenchmarkFixture) -> None:
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
    ratios = [seconds_of(theirs) / seconds_of(ours) for _ in range(9)]
    benchmark.pedantic(ours, rounds=5, iterations=1)
    benchmark.extra_info.update(
        ratio=ratios,
        reference="a walk over a list of time ranges for each note, as the authors' encoder does",
        unit=f"sets of {len(parsed)} performances",
        seconds_to_read_the_files=reading,
    )
    assert sorted(ratios)[len(ratios) // 2] > 2


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


def test_edit_distances_against_python(benchmark: BenchmarkFixture) -> None:
    measures = ["\n".join(measure) for piece in pieces_of("test")[:3] for measure in measures_of(piece.text)]
    pairs = list(pairwise(measures))

    def ours() -> list[int]:
        return [levenshtein(*pair) for pair in pairs]

    def theirs() -> list[int]:
        return [distance_in_python(*pair) for pair in pairs]

    assert ours() == theirs()
    ratio = measure(
        benchmark,
        ours,
        theirs,
        3,
        reference="a dynamic programme in Python",
        unit=f"sets of {len(pairs)} pairs of measures",
    )
    assert ratio > 20
