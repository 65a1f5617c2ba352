"""The authors' scheme for annotating grooves by hand, and the counts of a table of annotations."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from tenfold.shared.logging import TenfoldError

Pattern = Literal["Repetitive", "Consistent", "Chaotic", "None"]
"""Identical measures; measures that belong together; measures that do not; no groove at all."""
PATTERNS: tuple[Pattern, ...] = get_args(Pattern)
FLAGS = ("fill", "musical", "unsteady", "deviates")
"""There is a fill, or several; they are musical; the backbeat is unsteady or not 4/4; it leaves the prompt's idea."""
YES, NO, UNJUDGED = "yes", "x", "-"


@dataclass(frozen=True)
class Annotation:
    """What a listener wrote about one groove; None where it was not judged."""

    name: str
    pattern: Pattern | None
    fill: bool | None
    musical: bool | None
    unsteady: bool | None
    deviates: bool | None
    short: int | None
    """Measures before the groove stops, where it stops early."""


def read_annotations(path: Path) -> list[Annotation]:
    """Read a table with the columns name, pattern, fill, musical, unsteady, deviates, short.

    Patterns are the four words; flags are ``yes`` or ``x``; ``-`` is not judged; short is a number or empty.

    Raises:
        TenfoldError: the file is missing, a column is missing, or a cell is something else; the line is named.
    """
    if not path.is_file():
        raise TenfoldError(f"there is no file {path}")
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise TenfoldError(f"{path} is not written in UTF-8; save it so") from error
    reader = csv.DictReader(io.StringIO(text, newline=""))
    missing = {"name", "pattern", *FLAGS, "short"} - set(reader.fieldnames or ())
    if missing:
        raise TenfoldError(f"{path} lacks the columns {', '.join(sorted(missing))}")
    return [_annotation(row, f"{path}, line {reader.line_num}") for row in reader]


def count_annotations(annotations: Iterable[Annotation]) -> dict[str, int]:
    """How many grooves have each pattern and each flag, how many were not judged, how many are short."""
    annotations = list(annotations)
    patterns = Counter(annotation.pattern for annotation in annotations)
    counts = {f"pattern: {pattern}": patterns[pattern] for pattern in PATTERNS}
    counts["pattern: not judged"] = patterns[None]
    for flag in FLAGS:
        counts[flag] = sum(getattr(annotation, flag) is True for annotation in annotations)
    counts["short"] = sum(annotation.short is not None for annotation in annotations)
    return counts


def _annotation(row: dict[str, str], where: str) -> Annotation:
    pattern = next((known for known in PATTERNS if known == row["pattern"]), None)
    if pattern is None and row["pattern"] != UNJUDGED:
        raise TenfoldError(
            f"{where}: a pattern is {', '.join(PATTERNS)} or {UNJUDGED}, not {row['pattern']!r}"
        )
    flags: dict[str, bool | None] = {}
    for flag in FLAGS:
        if row[flag] not in (YES, NO, UNJUDGED):
            raise TenfoldError(f"{where}: {flag} is {YES}, {NO} or {UNJUDGED}, not {row[flag]!r}")
        flags[flag] = None if row[flag] == UNJUDGED else row[flag] == YES
    if row["short"] and not (row["short"].isascii() and row["short"].isdigit()):
        raise TenfoldError(f"{where}: short is a number of measures or empty, not {row['short']!r}")
    short = int(row["short"]) if row["short"] else None
    return Annotation(row["name"], pattern, short=short, **flags)
