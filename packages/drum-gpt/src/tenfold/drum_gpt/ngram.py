"""A back-off model over lines: what came after the same last lines before."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from tenfold.drum_gpt.encoding import DRUMS, HIT, MEASURE, is_well_formed
from tenfold.drum_gpt.prompts import END, SEPARATOR, lines_of, without_silent_beginning
from tenfold.shared.logging import TenfoldError

LINES = 2 ** len(DRUMS)
_START = chr(LINES)
"""Stands before the first line of a piece."""


class LineNgram:
    """Interpolated Witten-Bell smoothing over contexts of up to ``order`` lines.

    p_k(x | c) = (n(c x) + t(c) p_{k-1}(x | c')) / (n(c) + t(c)), where n counts, t(c) is the number of different lines
    that followed the context c, and c' lacks its oldest line; p_{-1} is uniform over the 64 lines.

    Args:
        texts: drumrolls to learn from.
        order: lines of the longest context.
    """

    def __init__(self, texts: Iterable[str], order: int = 2 * MEASURE) -> None:
        self.order = order
        seen: list[tuple[str, int]] = []
        for text in texts:
            symbols = _symbols(text.splitlines())
            padded = _START * order + symbols
            # The latest line first: contexts with the same last lines then stand together.
            seen += [
                (padded[place : place + order][::-1], ord(symbol)) for place, symbol in enumerate(symbols)
            ]
        if not seen:
            raise TenfoldError("there is no line to learn from")
        seen.sort()
        self._contexts = [context for context, _ in seen]
        self._next = np.array([line for _, line in seen])

    def probabilities(self, context: Sequence[str]) -> NDArray[np.float64]:
        """Of each of the 64 lines [64] after some lines, the latest last; fewer than ``order`` begin a piece."""
        return self._after(_START * self.order + _symbols(context))

    def log_likelihood(self, lines: Sequence[str], given: int = 0) -> float:
        """Log p of the lines of a piece but the first ``given``, in nats."""
        symbols = _START * self.order + _symbols(lines)
        places = range(self.order + given, len(symbols))
        return float(
            sum(
                np.log(self._after(symbols[place - self.order : place])[ord(symbols[place])])
                for place in places
            )
        )

    def continue_piece(self, lines: Sequence[str], count: int, generator: np.random.Generator) -> list[str]:
        """Draw so many further lines."""
        symbols = _START * self.order + _symbols(lines)
        for _ in range(count):
            chances = self._after(symbols[-self.order :])
            symbols += chr(generator.choice(LINES, p=chances))
        return [_line(ord(symbol)) for symbol in symbols[len(symbols) - count :]]

    def _after(self, symbols: str) -> NDArray[np.float64]:
        recent = symbols[-self.order :][::-1] if self.order else ""
        chances = np.full(LINES, 1 / LINES)
        low, high = 0, len(self._contexts)
        for length in range(self.order + 1):
            if length:
                prefix = recent[:length]
                low = bisect_left(self._contexts, prefix, low, high)
                high = bisect_right(self._contexts, prefix + chr(LINES + 1), low, high)
            if low == high:
                break
            counts = np.bincount(self._next[low:high], minlength=LINES)
            kinds = np.count_nonzero(counts)
            chances = (counts + kinds * chances) / (high - low + kinds)
        return chances


def music_of(prompt: str, completion: str) -> tuple[list[str], int]:
    """Lines of prompt and completion, and how many are the prompt's."""
    given = lines_of(prompt)
    return given + lines_of(completion), len(given)


def as_completion(lines: Sequence[str]) -> str:
    """Lines of whole measures as a network would write them."""
    measures = [
        "".join(f"{line}\n" for line in lines[at : at + MEASURE]) for at in range(0, len(lines), MEASURE)
    ]
    return f"{SEPARATOR}\n".join(measures) + END


def training_texts(texts: Iterable[str]) -> list[str]:
    """Drumrolls without the silence that they begin with, as prompts have them."""
    return ["".join(f"{line}\n" for line in without_silent_beginning(text.splitlines())) for text in texts]


def _symbols(lines: Iterable[str]) -> str:
    """One character for each line."""
    return "".join(chr(_number(line)) for line in lines)


def _number(line: str) -> int:
    if not is_well_formed(line):
        raise TenfoldError(f"{line!r} is not six characters of hit and rest")
    return sum(1 << column for column, character in enumerate(line) if character == HIT)


def _line(number: int) -> str:
    return "".join(HIT if number >> column & 1 else "-" for column in range(len(DRUMS)))
