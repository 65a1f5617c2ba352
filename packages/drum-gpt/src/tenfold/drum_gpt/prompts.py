"""What a language model reads and writes: prompts, completions, and their way back to drumrolls."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from tenfold.drum_gpt.encoding import EMPTY_LINE, MEASURE, is_well_formed
from tenfold.shared.logging import TenfoldError

SEPARATOR = "SEP"
"""Line after every complete measure."""
END = "END"
"""Last line of a completion."""
FILL = "FILL"
"""Line that stands for the measure to be written, in prompts for infilling."""
PROMPT_LINES = 2 * MEASURE
SHORTEST = 128
"""A piece of so many lines, after its silent beginning, or fewer is left out."""


class Example(NamedTuple):
    """One piece as fine-tuning sees it."""

    prompt: str
    completion: str


def drumroll_to_prompt(text: str) -> Example | None:
    """The first two measures as prompt, the rest as completion, as in the authors' code.

    Measures at the beginning are dropped while their first *four* lines are empty. A separator follows every complete
    measure; at both ends of the completion the letters of the separator and newlines are cut off.

    Args:
        text: a drumroll.

    Returns:
        Prompt and completion; None where at most 128 lines are left.
    """
    lines = without_silent_beginning(text.splitlines())
    if len(lines) <= SHORTEST:
        return None
    completion = _with_separators(lines[PROMPT_LINES:]).strip(SEPARATOR + "\n")
    return Example(_with_separators(lines[:PROMPT_LINES]), f"{completion}\n{END}")


def prompt_of(text: str, name: str = "the drumroll") -> str:
    """The first two measures that are not silent, as a prompt.

    Raises:
        TenfoldError: there are none.
    """
    lines = without_silent_beginning(text.splitlines())[:PROMPT_LINES]
    if len(lines) < PROMPT_LINES or all(line == EMPTY_LINE for line in lines):
        raise TenfoldError(f"{name} has no two measures of drums to go on from")
    for number, line in enumerate(lines, start=1):
        if not is_well_formed(line):
            raise TenfoldError(
                f"{name}: {line!r}, line {number} of the prompt, is not six characters of o and -"
            )
    return _with_separators(lines)


def without_silent_beginning(lines: Sequence[str]) -> list[str]:
    """Lines from the first measure on whose first four lines are not all empty."""
    lines = list(lines)
    while lines and all(line == EMPTY_LINE for line in lines[:4]):
        lines = lines[MEASURE:]
    return lines


def without_silent_end(text: str) -> str:
    """A drumroll up to its last measure in which something is hit."""
    lines = text.splitlines()
    while len(lines) >= MEASURE and all(line == EMPTY_LINE for line in lines[-MEASURE:]):
        lines = lines[:-MEASURE]
    return "".join(f"{line}\n" for line in lines)


def lines_of(text: str) -> list[str]:
    """Lines of music in a prompt or completion.

    Separators and what follows the end are left out, and so is a last line that was cut off.
    """
    found = text.splitlines()
    if found and not text.endswith(("\n", END)) and len(found[-1]) < len(EMPTY_LINE):
        found.pop()
    lines: list[str] = []
    for line in found:
        if line == END:
            break
        if line != SEPARATOR:
            lines.append(line)
    return lines


def to_drumroll(prompt: str, completion: str) -> str:
    """Prompt and completion as one drumroll."""
    return "".join(f"{line}\n" for line in lines_of(prompt) + lines_of(completion))


def conditioned(example: Example, style: str, bpm: int) -> Example:
    """The prompt behind a line that says style and tempo in English."""
    return Example(condition(style, bpm) + example.prompt, example.completion)


def condition(style: str, bpm: int) -> str:
    """``style: funk, bpm: 96``, with its newline."""
    return f"style: {style}, bpm: {bpm}\n"


def infilling(text: str, measure: int) -> Example:
    """Write one measure, knowing what is around it.

    The prompt is the whole piece with ``FILL`` in the measure's place, and a last ``FILL`` after which it is to be
    written; the completion is the measure.

    Args:
        text: a drumroll.
        measure: from 0.

    Raises:
        IndexError: there is no such measure.
    """
    lines = text.splitlines()
    start = measure * MEASURE
    if not 0 <= start < len(lines):
        raise IndexError(f"there is no measure {measure} in {len(lines)} lines")
    before = _with_separators(lines[:start])
    after = _with_separators(lines[start + MEASURE :])
    after = after if not after or after.endswith(f"{SEPARATOR}\n") else f"{after}{SEPARATOR}\n"
    wanted = "".join(f"{line}\n" for line in lines[start : start + MEASURE])
    return Example(f"{before}{FILL}\n{SEPARATOR}\n{after}{FILL}\n", f"{wanted}{END}")


def _with_separators(lines: Sequence[str]) -> str:
    """Every line with its newline, and a separator after every complete measure."""
    return "".join(
        f"{line}\n{SEPARATOR}\n" if number % MEASURE == 0 else f"{line}\n"
        for number, line in enumerate(lines, start=1)
    )
