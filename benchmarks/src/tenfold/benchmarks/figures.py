"""The files that a run shows as its figures: found safely, told apart by kind."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tenfold.benchmarks.records import RunRecord

Kind = Literal["image", "audio", "video", "download"]

KINDS: dict[str, Kind] = {
    **dict.fromkeys((".png", ".jpg", ".jpeg", ".gif", ".webp", ".svg"), "image"),
    **dict.fromkeys((".wav", ".mp3", ".ogg", ".flac"), "audio"),
    **dict.fromkeys((".mp4", ".webm"), "video"),
    **dict.fromkeys((".mid", ".midi", ".json", ".csv", ".txt", ".pdf", ".npz"), "download"),
}


@dataclass(frozen=True)
class Figure:
    """A figure of a run. ``path`` is None where it cannot be shown, and ``note`` says why.

    ``media_name`` is its name within the site, derived from the content, so that equal files are stored once.
    """

    caption: str
    file: str
    kind: Kind = "image"
    path: Path | None = None
    media_name: str = ""
    note: str = ""


def figures_of(record: RunRecord) -> list[Figure]:
    """The figures named in a record, in its order."""
    return [_figure(record.directory, entry) for entry in record.content["figures"]]


def _figure(directory: Path, entry: Mapping[str, str]) -> Figure:
    file, caption = entry["file"], entry["caption"] or entry["file"]
    kind = KINDS.get(Path(file).suffix.lower())
    try:
        path = (directory / file).resolve()
        inside = path.is_relative_to(directory.resolve())
        readable = inside and path.is_file()
    except (OSError, ValueError, RuntimeError):
        return Figure(caption, file, note="is not a usable path")
    if not inside:
        return Figure(caption, file, note="lies outside the run directory and is not shown")
    if kind is None:
        return Figure(caption, file, note="is of a kind that is not shown")
    if not readable:
        return Figure(caption, file, note="is missing")
    try:
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError:
        return Figure(caption, file, note="cannot be read")
    return Figure(caption, file, kind, path, media_name=digest[:24] + path.suffix.lower())
