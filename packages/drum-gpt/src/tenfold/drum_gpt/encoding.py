"""Drum performances as text, and back: MIDI <-> drumroll.

A drumroll has one line for each sixteenth note and one character for each of six drums, ``o`` for a hit and ``-`` for
none. Velocity, articulation and everything between two sixteenths are lost.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import mido
from mido.midifiles.meta import KeySignatureError

from tenfold.shared.logging import TenfoldError

MEASURE = 16
"""Lines of a measure, whatever the time signature."""
HIT, REST = "o", "-"
TICKS_PER_QUARTER = 480
DRUM_CHANNEL = 9
"""General MIDI's channel 10."""


@dataclass(frozen=True)
class Drum:
    """One column of a drumroll."""

    name: str
    notes: tuple[int, ...]
    """MIDI notes that are merged into the column; the first is written back."""


DRUMS = (
    Drum("crash", (49, 57, 55, 52)),
    Drum("ride", (51, 59, 53)),
    Drum("snare", (38, 40, 37)),
    Drum("kick", (36,)),
    Drum("hi-hat", (42, 46, 22, 26)),
    Drum("toms", (50, 48, 47, 45, 43, 58)),
)
COLUMN_OF_NOTE = {note: column for column, drum in enumerate(DRUMS) for note in drum.notes}
DROPPED_NOTES = frozenset({44, 54, 56, 39})
"""Hi-hat pedal, tambourine, cowbell, clap: left out, as in the authors' code."""
EMPTY_LINE = REST * len(DRUMS)


@dataclass(frozen=True)
class Hit:
    """One hit as it was played."""

    tick: int
    column: int
    velocity: int


@dataclass(frozen=True)
class Performance:
    """What of a MIDI file concerns drums."""

    hits: tuple[Hit, ...]
    """In the file's order."""
    ticks_per_quarter: int
    beats: int
    """Numerator of the last time signature."""
    beat_unit: int
    """Its denominator."""
    bpm: float

    @property
    def steps(self) -> int:
        """Sixteenth notes of sixteen measures."""
        return MEASURE * self.beats * 4

    def step_of(self, tick: int) -> int:
        """The nearest sixteenth note; halfway between two, the later one."""
        quarter, eighth = self.ticks_per_quarter // 4, self.ticks_per_quarter // 8
        return 0 if tick < eighth else (tick - (quarter - eighth)) // quarter + 1


def read_midi(source: Path | str | bytes, keep_unknown: bool = False) -> Performance:
    """Read the drums of a MIDI file.

    The drums are the notes of the first track, as in the authors' code, which is all there is in Groove; those on
    channel 10 alone where there are some. Where that track has no note (it often holds the tempo alone), they are what
    is played on channel 10 in any track, or else the notes of the only track that has some.

    Args:
        source: a file, or its bytes.
        keep_unknown: pass by notes that are none of the six drums instead of refusing the file.

    Raises:
        TenfoldError: the file is missing or is no MIDI file, has no drum track, or a note is no drum that we know.
    """
    name = "the MIDI data" if isinstance(source, bytes) else str(source)
    try:
        file = mido.MidiFile(file=io.BytesIO(source)) if isinstance(source, bytes) else mido.MidiFile(source)
    except FileNotFoundError:
        raise TenfoldError(f"there is no file {name}") from None
    except IsADirectoryError:
        raise TenfoldError(f"{name} is a folder; give a MIDI file") from None
    except (OSError, ValueError, EOFError, IndexError, KeyError, TypeError, KeySignatureError) as error:
        raise TenfoldError(f"{name} is no complete MIDI file ({error or type(error).__name__})") from error
    if not file.tracks or file.ticks_per_beat < 8:
        raise TenfoldError(f"{name} has no track, or too coarse a clock for sixteenth notes")
    beats, beat_unit, tempo = 4, 4, 500_000
    for message in file.tracks[0]:
        if message.type == "time_signature":
            beats, beat_unit = message.numerator, message.denominator
        elif message.type == "set_tempo":
            tempo = message.tempo
    if tempo == 0:
        raise TenfoldError(f"{name} has a tempo of no time; give a MIDI file with another")
    found = Performance((), file.ticks_per_beat, beats, beat_unit, mido.tempo2bpm(tempo))
    hits = []
    for tick, note, velocity in _drum_notes(file, name):
        if note in COLUMN_OF_NOTE:
            hits.append(Hit(tick, COLUMN_OF_NOTE[note], velocity))
            continue
        is_asked = beat_unit == 4 and found.step_of(tick) < found.steps  # what a drumroll would show
        if is_asked and not keep_unknown and note not in DROPPED_NOTES:
            raise TenfoldError(
                f"{name}: note {note} is none of the six drums; is it a drum track? (--skip-unknown passes it by)"
            )
    return replace(found, hits=tuple(hits))


def _drum_notes(file: mido.MidiFile, name: str) -> list[tuple[int, int, int]]:
    """(tick, note, velocity) of every hit of the drum track."""
    tracks = [list(_notes(track)) for track in file.tracks]
    if tracks[0]:
        on_drum_channel = [note[:3] for note in tracks[0] if note[3] == DRUM_CHANNEL]
        return on_drum_channel or [note[:3] for note in tracks[0]]
    drums = sorted(
        (note for track in tracks for note in track if note[3] == DRUM_CHANNEL), key=lambda note: note[0]
    )
    played = [track for track in tracks if track]
    if drums:
        return [note[:3] for note in drums]
    if len(played) == 1:
        return [note[:3] for note in played[0]]
    if not played:
        return []
    raise TenfoldError(
        f"{name} has no drum track: its first track has no note, and nothing is played on channel 10"
    )


def _notes(track: mido.MidiTrack) -> Iterator[tuple[int, int, int, int]]:
    tick = 0
    for message in track:
        tick += message.time
        if message.type == "note_on" and message.velocity > 0:
            yield tick, message.note, message.velocity, message.channel


def performance_to_drumroll(performance: Performance) -> str | None:
    """Sixteen measures as text; None where a beat is not a quarter note."""
    if performance.beat_unit != 4:
        return None
    lines = [bytearray(EMPTY_LINE, "ascii") for _ in range(performance.steps)]
    for hit in performance.hits:
        step = performance.step_of(hit.tick)
        if step >= len(lines):
            break
        lines[step][hit.column] = ord(HIT)
    return "".join(f"{line.decode()}\n" for line in lines)


def midi_to_drumroll(source: Path | str | bytes, keep_unknown: bool = False) -> str | None:
    """The drumroll of a MIDI file: always sixteen measures, of six characters and a newline for each sixteenth note.

    Args:
        source: a file, or its bytes.
        keep_unknown: pass by notes that are none of the six drums instead of refusing the file.

    Returns:
        The text; None where the denominator of the time signature is not 4, such files are skipped.

    Raises:
        TenfoldError: see :func:`read_midi`.
    """
    return performance_to_drumroll(read_midi(source, keep_unknown))


def midi_files_to_drumrolls(
    source: Path, keep_unknown: bool = False
) -> Iterator[tuple[Path, str | TenfoldError | None]]:
    """The drumroll of a MIDI file, or of every one in a folder and below it, one after the other, by their names.

    Yields:
        The file, and its drumroll; None where a beat is not a quarter note; or why it cannot be read.

    Raises:
        TenfoldError: there is no MIDI file at all.
    """
    for path in files_in(source, (".mid", ".midi"), "MIDI file"):
        try:
            yield path, midi_to_drumroll(path, keep_unknown)
        except TenfoldError as error:
            yield path, error


def files_in(source: Path, suffixes: tuple[str, ...], kind: str) -> list[Path]:
    """The file itself, or those of a folder and below it that end so, by their names.

    Raises:
        TenfoldError: there is none.
    """
    if source.is_file():
        return [source]
    if not source.is_dir():
        raise TenfoldError(f"there is no file or folder {source}")
    paths = sorted(path for path in source.rglob("*") if path.suffix.lower() in suffixes)
    if not paths:
        raise TenfoldError(f"there is no {kind} in {source}")
    return paths


def is_well_formed(line: str) -> bool:
    """Whether a line is six characters of hit and rest."""
    return len(line) == len(DRUMS) and not line.strip(HIT + REST)


def columns_hit(line: str) -> list[int]:
    """Columns that a line hits; what does not belong there counts as a rest, and a line too long is cut off."""
    return [column for column, character in enumerate(line[: len(DRUMS)]) if character == HIT]


def drumroll_to_midi(
    text: str,
    official: bool = False,
    bpm: float = 120.0,
    hits: Iterable[Hit] | None = None,
    beats: int | None = None,
) -> mido.MidiFile:
    """A drumroll as a MIDI file of type 1 with 480 ticks for each quarter note.

    Args:
        text: lines of a drumroll; one that is too long is cut off, one that is too short ends in rests.
        official: as the authors' code: always 120 bpm and 4/4, on channel 1 (a piano in most players), without a
            note's end, and a note of velocity 0 for every empty line. Ours writes channel 10, the metre, notes of half
            a step, and the tempo.
        bpm: quarter notes per minute.
        hits: when and how loud each hit is instead (ticks of this file), see :mod:`tenfold.drum_gpt.performance`.
        beats: of the metre; by default what sixteen measures of so many lines stand for (192 lines are 3/4).

    Raises:
        TenfoldError: there is no line, the tempo is out of MIDI's range; or ``official`` and a line is too long.
    """
    lines = text.splitlines()
    if not lines:
        raise TenfoldError("there is no line in this drumroll")
    if official:
        return _official_midi(lines)
    if not 4 <= bpm <= 1000:
        raise TenfoldError(f"a tempo is 4 to 1000 quarter notes per minute, not {bpm:g}")
    step = TICKS_PER_QUARTER // 4
    if hits is None:
        hits = [
            Hit(number * step, column, 100)
            for number, line in enumerate(lines)
            for column in columns_hit(line)
        ]
    file, track = _new_file(beats or _beats_of(len(lines)), mido.bpm2tempo(bpm))
    track.append(mido.Message("program_change", channel=DRUM_CHANNEL, program=0, time=0))
    events = []
    for hit in hits:
        note = DRUMS[hit.column].notes[0]
        events.append((hit.tick, 1, note, hit.velocity))
        events.append((hit.tick + step // 2, 0, note, 0))
    now = 0
    for tick, is_on, note, velocity in sorted(events):  # at one moment, ends come before beginnings
        kind = "note_on" if is_on else "note_off"
        track.append(mido.Message(kind, channel=DRUM_CHANNEL, note=note, velocity=velocity, time=tick - now))
        now = tick
    track.append(mido.MetaMessage("end_of_track", time=max(0, len(lines) * step - now)))
    return file


def _beats_of(lines: int) -> int:
    """Quarter notes of a measure where there are sixteen of them; 4 where the length stands for no metre."""
    beats, rest = divmod(lines, MEASURE * 4)
    return beats if 1 <= beats <= 255 and not rest else 4


def _official_midi(lines: list[str]) -> mido.MidiFile:
    file, track = _new_file(4, 500_000)
    track.append(mido.Message("program_change", channel=DRUM_CHANNEL, program=0, time=0))
    step = TICKS_PER_QUARTER // 4
    waited = 0
    for number, line in enumerate(lines):
        if HIT in line[len(DRUMS) :]:
            raise TenfoldError(
                f"line {number + 1} hits beyond column {len(DRUMS)}, which the authors' code refuses"
            )
        notes = [(DRUMS[column].notes[0], 100) for column in columns_hit(line)] or [(DRUMS[1].notes[0], 0)]
        for note, velocity in notes:
            track.append(mido.Message("note_on", note=note, velocity=velocity, time=waited))
            waited = 0
        waited = step
    return file


def _new_file(beats: int, tempo: int) -> tuple[mido.MidiFile, mido.MidiTrack]:
    file = mido.MidiFile(type=1, ticks_per_beat=TICKS_PER_QUARTER)
    meta, track = mido.MidiTrack(), mido.MidiTrack()
    meta.append(mido.MetaMessage("set_tempo", tempo=tempo, time=0))
    meta.append(mido.MetaMessage("time_signature", numerator=beats, denominator=4, time=0))
    file.tracks += [meta, track]
    return file, track


def midi_bytes(file: mido.MidiFile) -> bytes:
    """What is written to disk."""
    buffer = io.BytesIO()
    file.save(file=buffer)
    return buffer.getvalue()
