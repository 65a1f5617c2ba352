"""What a network plays: continuations of a split's prompts, described beside the drummers' own, drawn and heard."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import torch
from lightning_fabric import Fabric

from tenfold.drum_gpt.config import RunConfig
from tenfold.drum_gpt.corpus import Piece, Split, pieces_of
from tenfold.drum_gpt.encoding import MEASURE, drumroll_to_midi
from tenfold.drum_gpt.evaluation import describe_completions, describe_grooves
from tenfold.drum_gpt.examples import example_of
from tenfold.drum_gpt.figures import draw_piano_rolls
from tenfold.drum_gpt.generation import complete
from tenfold.drum_gpt.language_models import LanguageModel
from tenfold.drum_gpt.ngram import training_texts
from tenfold.drum_gpt.prompts import PROMPT_LINES, Example, to_drumroll
from tenfold.drum_gpt.rendering import render, write_wav
from tenfold.shared.runs import Run

HEARD_MEASURES, SAMPLE_RATE = 6, 22_050
"""Of the sound in a record, which is kept small."""


def let_drum(
    model: LanguageModel, config: RunConfig, seed: int, split: Split, fabric: Fabric, run: Run | None
) -> dict[str, float]:
    """Continue the prompts of a split, freely and within the grammar, and describe what comes out.

    Args:
        model: fine-tuned.
        config: of its run; with its grammar the music that is described was drawn within it.
        seed: of the draws.
        split: whose prompts.
        fabric: on a GPU a copy in its precision draws.
        run: gets pictures and sound of the first groove; by default none.
    """
    pieces = pieces_of(split)[: config.test_pieces]
    prompts = [example_of(piece, config.train).prompt for piece in pieces]
    network = sampling_copy(model, fabric)
    drawn = complete(network, prompts, replace(config.sample, grammar=False), seed)
    found = {f"free_{name}": value for name, value in describe_completions(drawn).items()}
    if config.sample.grammar:
        drawn = complete(network, prompts, config.sample, seed)
        found |= describe_completions(drawn)
    return found | describe_music(pieces, drawn, split, run)


def describe_music(
    pieces: Sequence[Piece], completions: Sequence[str], split: Split, run: Run | None
) -> dict[str, float]:
    """What continuations are like beside the drummers' own, which are cut to their lengths; and show the first."""
    given = [to_drumroll(plain_example(piece).prompt, "") for piece in pieces]
    grooves = [
        to_drumroll(plain_example(piece).prompt, text)
        for piece, text in zip(pieces, completions, strict=True)
    ]
    human = [
        "".join(to_drumroll(*plain_example(piece)).splitlines(keepends=True)[: len(groove.splitlines())])
        for piece, groove in zip(pieces, grooves, strict=True)
    ]
    if run is not None:
        show(run, split, pieces, grooves, human)
    return describe_grooves(grooves, human, given, training_drumrolls())


def show(
    run: Run, split: Split, pieces: Sequence[Piece], grooves: Sequence[str], human: Sequence[str]
) -> None:
    """Rolls of three grooves beside the drummers', and the sound of the first."""
    chosen = range(min(3, len(pieces)))
    with run.figure(
        f"{split}_rolls.png", "Two measures are given; what follows, and what the drummer played"
    ) as path:
        rolls = {}
        for number in chosen:
            rolls[f"{pieces[number].name}: {run.key.method}"] = grooves[number]
            rolls[f"{pieces[number].name}: human"] = human[number]
        draw_piano_rolls(rolls, PROMPT_LINES, path)
    sounds = {"groove": (grooves, run.key.method), "human": (human, "human")}
    for name, (texts, who) in sounds.items():
        lines = texts[0].splitlines(keepends=True)[: HEARD_MEASURES * MEASURE]
        midi = drumroll_to_midi("".join(lines), bpm=pieces[0].bpm, beats=4)
        caption = f"{pieces[0].name}: two given measures, then {who}"
        with run.figure(f"{split}_{name}.wav", caption) as path:
            write_wav(path, render(midi, sample_rate=SAMPLE_RATE).mean(axis=1), SAMPLE_RATE)


def sampling_copy(model: LanguageModel, fabric: Fabric) -> LanguageModel:
    """The network itself; on a GPU with mixed precision a copy in that precision, which reads half as much."""
    precision = str(fabric.strategy.precision.precision)
    if fabric.device.type != "cuda" or precision not in ("bf16-mixed", "16-mixed"):
        return model
    dtype = torch.bfloat16 if precision == "bf16-mixed" else torch.float16
    smaller: Any = copy.deepcopy(model.network)
    return LanguageModel(smaller.to(dtype), model.vocabulary)


@cache
def training_drumrolls() -> list[str]:
    """The pieces that are learned from, as prompts and completions show them."""
    return training_texts(piece.text for piece in pieces_of("train"))


def plain_example(piece: Piece) -> Example:
    """Prompt and completion of a piece that is long enough for them."""
    assert piece.example is not None
    return piece.example
