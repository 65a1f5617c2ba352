"""Groove: drum performances of professional drummers, as texts and as MIDI.

The package carries the texts of all 457 pieces that the paper's code selects, and twenty of the MIDI files. All of them
are read from Magenta's archive, or from one archive for each split, below the data root.
"""

from __future__ import annotations

import csv
import io
import re
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, cached_property
from importlib import resources
from pathlib import Path, PurePosixPath
from typing import Literal, get_args

from tenfold.drum_gpt.encoding import EMPTY_LINE, midi_to_drumroll
from tenfold.drum_gpt.prompts import Example, drumroll_to_prompt
from tenfold.shared.logging import TenfoldError

Split = Literal["train", "dev", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)
SPLIT_OF_GROOVE: dict[str, Split] = {"train": "train", "validation": "dev", "test": "test"}
"""The data set's names of its splits, and the paper's."""


@dataclass(frozen=True)
class Piece:
    """One performance as text."""

    name: str
    """``<drummer>_<number>_<style>_<bpm>_beat_<metre>``."""
    split: Split
    text: str

    @cached_property
    def _parts(self) -> re.Match[str]:
        found = re.fullmatch(r"\d+_\d+_(?P<style>.+)_(?P<bpm>\d+)_beat_(?P<metre>\d+-\d+)", self.name)
        if found is None:
            raise TenfoldError(
                f"{self.name!r} is not named like a piece of Groove, which says style and tempo"
            )
        return found

    @property
    def style(self) -> str:
        """The style without its variant: ``jazz`` of ``jazz-swing``."""
        return self._parts["style"].split("-")[0]

    @property
    def bpm(self) -> int:
        return int(self._parts["bpm"])

    @property
    def metre(self) -> str:
        """``4-4``."""
        return self._parts["metre"]

    @property
    def example(self) -> Example | None:
        """Prompt and completion; None where the piece is too short."""
        return drumroll_to_prompt(self.text)

    @property
    def is_silent(self) -> bool:
        """Whether nothing is hit at all."""
        return set(self.text.split()) <= {EMPTY_LINE}


@cache
def bundled_pieces() -> tuple[Piece, ...]:
    """All pieces of the package, by split and name: 373 to train, 47 for development, 37 to test."""
    with _bundle() as archive:
        names = [PurePosixPath(name) for name in archive.namelist() if name.endswith(".txt")]
        return _in_order(
            Piece(name.stem, _split(name.parent.name), archive.read(str(name)).decode("ascii"))
            for name in names
        )


def bundled_midi() -> dict[str, bytes]:
    """The twenty MIDI files of the package, by the name of their piece."""
    with _bundle() as archive:
        names = sorted(name for name in archive.namelist() if name.endswith(".mid"))
        return {PurePosixPath(name).stem: archive.read(name) for name in names}


def pieces_of(split: Split, only_4_4: bool = False) -> list[Piece]:
    """The bundled pieces of a split that are long enough for a prompt and a completion.

    Args:
        split: train, dev or test.
        only_4_4: leave out other metres, which the paper's code cuts into measures of 16 lines as well.
    """
    return [
        piece
        for piece in bundled_pieces()
        if piece.split == split and piece.example is not None and not (only_4_4 and piece.metre != "4-4")
    ]


def groove_midi(folder: Path) -> Iterator[tuple[str, Split, bytes]]:
    """Name, split and bytes of every MIDI file that the paper's code selects, one after the other.

    Selected are beats that belong to no evaluation session.

    Args:
        folder: with ``midi_train.zip``, ``midi_dev.zip`` and ``midi_test.zip``; or Magenta's archive, unpacked, with
            its ``info.csv``.

    Raises:
        TenfoldError: neither is there, or a file of the index is missing.
    """
    archives = {split: folder / f"midi_{split}.zip" for split in SPLITS}
    if all(path.is_file() for path in archives.values()):
        for split, path in archives.items():
            with _open(path) as archive:
                for name in sorted(archive.namelist()):
                    if name.endswith(".mid"):
                        yield PurePosixPath(name).stem, split, archive.read(name)
        return
    index = folder / "info.csv"
    if not index.is_file():
        raise TenfoldError(
            f"Groove is not in {folder}: neither midi_train.zip, midi_dev.zip and midi_test.zip nor info.csv is there; "
            "unpack Magenta's groove-v1.0.0-midionly.zip there (the profiles need only the bundled texts)"
        )
    with index.open(newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["beat_type"] == "beat"]
    for row in sorted(rows, key=lambda row: row["midi_filename"]):
        if "eval_session" in row["midi_filename"]:
            continue
        path = folder / row["midi_filename"]
        if not path.is_file():
            raise TenfoldError(
                f"{index} lists {row['midi_filename']}, which is not there; unpack the archive again"
            )
        drummer = row["drummer"].removeprefix("drummer")
        yield f"{drummer}_{path.stem}", SPLIT_OF_GROOVE[row["split"]], path.read_bytes()


def encode_groove(folder: Path) -> tuple[Piece, ...]:
    """Every selected MIDI file as text, by split and name; those whose beat is not a quarter note are skipped."""
    return _in_order(
        Piece(name, split, text)
        for name, split, content in groove_midi(folder)
        if (text := midi_to_drumroll(content)) is not None
    )


def write_bundle(folder: Path, target: Path, midi_names: frozenset[str]) -> None:
    """Write the archive that the package carries, byte for byte the same each time.

    Args:
        folder: Groove, see :func:`groove_midi`.
        target: archive to write.
        midi_names: pieces whose MIDI file goes with it.
    """
    entries = {
        f"text/{piece.split}/{piece.name}.txt": piece.text.encode("ascii") for piece in encode_groove(folder)
    }
    entries |= {
        f"midi/{split}/{name}.mid": content
        for name, split, content in groove_midi(folder)
        if name in midi_names
    }
    with zipfile.ZipFile(target, "w") as archive:
        for name in sorted(entries):
            entry = zipfile.ZipInfo(name)
            entry.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(entry, entries[name], compresslevel=9)


def _in_order(pieces: Iterator[Piece]) -> tuple[Piece, ...]:
    return tuple(sorted(pieces, key=lambda piece: (SPLITS.index(piece.split), piece.name)))


def _split(name: str) -> Split:
    return SPLITS[SPLITS.index(name)]


def _bundle() -> zipfile.ZipFile:
    content = resources.files("tenfold.drum_gpt").joinpath("data", "groove.zip").read_bytes()
    return zipfile.ZipFile(io.BytesIO(content))


def _open(path: Path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(path)
    except zipfile.BadZipFile as error:
        raise TenfoldError(f"{path} is no complete archive; fetch it again") from error
