"""Pieces as tokens with a weight for each, in padded batches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tenfold.drum_gpt.config import TrainConfig
from tenfold.drum_gpt.corpus import Piece
from tenfold.drum_gpt.encoding import MEASURE
from tenfold.drum_gpt.prompts import END, SEPARATOR, Example, conditioned, infilling, lines_of
from tenfold.drum_gpt.vocabulary import Vocabulary
from tenfold.shared.logging import TenfoldError
from tenfold.shared.seeding import epoch_order, make_generator


@dataclass(frozen=True)
class TokenizedExample:
    """One text."""

    tokens: Tensor
    """[T] int64; prompt, completion, end."""
    prompt_tokens: int
    """How many of them are the prompt's."""
    measure_starts: Tensor
    """Places at which a measure begins."""
    lines: int
    """Whole lines of music in the completion's tokens."""


@dataclass(frozen=True)
class Batch:
    """Several texts, filled up on the right, where no token of a text sees it: no mask is needed."""

    tokens: Tensor
    """[B, T] int64."""
    weights: Tensor
    """[B, T] float, of each token as something to be predicted."""

    def to(self, device: torch.device) -> Batch:
        """The same on a device."""
        parts = (self.tokens, self.weights)
        if device.type == "cuda":
            parts = tuple(part.pin_memory() for part in parts)  # type: ignore[assignment]
        return Batch(*(part.to(device, non_blocking=True) for part in parts))


def tokenize(
    example: Example, vocabulary: Vocabulary, max_length: int | None = None, with_end: bool = True
) -> TokenizedExample:
    """An example as tokens.

    Args:
        example: prompt and completion; their border is one of tokens.
        vocabulary: of the network.
        max_length: what is longer is cut off.
        with_end: put the network's token for the end behind the completion.

    Raises:
        TenfoldError: the prompt alone is too long.
    """
    prompt, completion = vocabulary.encode(example.prompt), vocabulary.encode(example.completion)
    whole = torch.tensor([*prompt, *completion, *([vocabulary.end] if with_end else [])])
    tokens = whole[:max_length]
    if len(tokens) <= len(prompt):
        raise TenfoldError(f"a prompt has {len(prompt)} tokens; give more than that as --train.max-length")
    separator = vocabulary.encode(f"{SEPARATOR}\n")
    found = tokens.unfold(0, len(separator), 1) if len(tokens) >= len(separator) else tokens[:0, None]
    after = (found == torch.tensor(separator)).all(dim=1).nonzero().flatten() + len(separator)
    return TokenizedExample(
        tokens,
        len(prompt),
        torch.tensor([0, *after[after < len(tokens) - 1].tolist()]),
        len(
            lines_of(
                example.completion if len(tokens) == len(whole) else vocabulary.decode(tokens[len(prompt) :])
            )
        ),
    )


class TrainingSet:
    """Draws the batches of every step; what it draws depends on seed and step alone.

    Args:
        pieces: to learn from.
        vocabulary: of the network.
        config: of the training.
        seed: of the order, the windows, and the measures to fill in.
    """

    def __init__(
        self, pieces: Sequence[Piece], vocabulary: Vocabulary, config: TrainConfig, seed: int
    ) -> None:
        self.vocabulary, self.config, self.seed = vocabulary, config, seed
        self.pieces = [piece for piece in pieces if piece.example is not None]
        if not self.pieces:
            raise TenfoldError("there is no piece to learn from that is longer than 128 lines")
        self.examples = [self._tokenized(piece, example_of(piece, config)) for piece in self.pieces]
        self.steps_per_epoch = -(-len(self.pieces) // config.batch_size)

    def batch(self, step: int, rank: int = 0, world: int = 1) -> Batch:
        """The batch of a step, from 0, or one process's part of it.

        Examples are dealt out to the processes in turn; where they do not go round, a weightless one fills up.
        """
        epoch, place = divmod(step, self.steps_per_epoch)
        size = self.config.batch_size
        chosen = epoch_order(len(self.pieces), self.seed, epoch)[place * size : (place + 1) * size].tolist()
        generator = make_generator((self.seed * 1_000_003 + step) * 2 + 1)
        drawn = [self._draw(index, generator) for index in chosen]
        weighted = [(example, 1.0) for example in drawn]
        weighted += [(drawn[0], 0.0)] * (-len(drawn) % world)
        mine = weighted[rank::world]
        return collate(
            [example for example, _ in mine],
            self.vocabulary.end,
            [weight for _, weight in mine],
            1.0 if self.config.window else self.config.prompt_loss_weight,
        )

    def _draw(self, index: int, generator: torch.Generator) -> TokenizedExample:
        """A piece as it is, a window of it, or one of its measures to be filled in."""
        example = self.examples[index]
        if self.config.window is not None:
            starts = example.measure_starts
            start = int(starts[torch.randint(len(starts), (), generator=generator)])
            window = example.tokens[start : start + self.config.window]
            return TokenizedExample(window, 0, starts[:0], 0)
        if self.config.infill_rate and torch.rand((), generator=generator) < self.config.infill_rate:
            piece = self.pieces[index]
            measures = len(piece.text.splitlines()) // MEASURE
            measure = int(torch.randint(measures, (), generator=generator))
            return self._tokenized(piece, infilling(piece.text, measure))
        return example

    def _tokenized(self, piece: Piece, example: Example) -> TokenizedExample:
        try:
            return tokenize(example, self.vocabulary, self.config.max_length)
        except TenfoldError as error:
            raise TenfoldError(f"{piece.name}: {error}") from None


def texts_to_know(pieces: Sequence[Piece], config: TrainConfig) -> list[str]:
    """Everything that a network reads or writes, for the choice of its tokens."""
    texts = [
        prompt + completion for prompt, completion in (example_of(p, config) for p in pieces if p.example)
    ]
    if config.infill_rate:
        texts += ["".join(infilling(piece.text, 1)) for piece in pieces]
    return texts


def examples_to_judge(
    pieces: Sequence[Piece], vocabulary: Vocabulary, config: TrainConfig
) -> list[TokenizedExample]:
    """What a network is judged by: completions given their prompts, or the first measures of each piece."""
    examples = [example_of(piece, config) for piece in pieces if piece.example is not None]
    if config.eval_measures is not None:
        examples = [first_measures(example, config.eval_measures) for example in examples]
    return [
        tokenize(example, vocabulary, config.max_length, with_end=config.eval_measures is None)
        for example in examples
    ]


def first_measures(example: Example, measures: int) -> Example:
    """The beginning of a text, without a prompt."""
    lines = (example.prompt + example.completion).splitlines(keepends=True)
    ends = [number for number, line in enumerate(lines, start=1) if line.strip() in (SEPARATOR, END)]
    return Example("", "".join(lines[: ends[:measures][-1]]))


def collate(
    examples: Sequence[TokenizedExample],
    end: int,
    weights: Sequence[float] | None = None,
    prompt_weight: float = 1.0,
) -> Batch:
    """Fill up on the right.

    Args:
        examples: at least one.
        end: token to fill up with.
        weights: of each example; by default 1.
        prompt_weight: of a prompt's tokens; a completion's is 1. The first token of a text is never predicted.
    """
    kept = [example.tokens for example in examples]
    longest = max(map(len, kept))
    batch = Batch(
        torch.full((len(kept), longest), end),
        torch.zeros(len(kept), longest),
    )
    for row, (example, found) in enumerate(zip(examples, kept, strict=True)):
        batch.tokens[row, : len(found)] = found
        weight = 1.0 if weights is None else weights[row]
        batch.weights[row, 1 : len(found)] = weight
        batch.weights[row, 1 : example.prompt_tokens] = weight * prompt_weight
    return batch


def example_of(piece: Piece, config: TrainConfig) -> Example:
    """A piece as a network of this training reads it, which must be long enough."""
    assert piece.example is not None
    return conditioned(piece.example, piece.style, piece.bpm) if config.condition else piece.example
