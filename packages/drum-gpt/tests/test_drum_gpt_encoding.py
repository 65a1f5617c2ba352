"""MIDI as text and back: the grid, the six drums, which notes of a file count, and what is no MIDI file."""

from __future__ import annotations

import csv
import math
import random
import zipfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path

import mido
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tenfold.drum_gpt.corpus import bundled_midi, bundled_pieces, encode_groove, groove_midi, pieces_of
from tenfold.drum_gpt.encoding import (
    Hit,
    drumroll_to_midi,
    midi_bytes,
    midi_files_to_drumrolls,
    midi_to_drumroll,
    performance_to_drumroll,
    read_midi,
)
from tenfold.shared.logging import TenfoldError

SNARE, KICK = 38, 36
COLUMNS = {
    **dict.fromkeys((49, 57, 55, 52), 0),
    **dict.fromkeys((51, 59, 53), 1),
    **dict.fromkeys((38, 40, 37), 2),
    36: 3,
    **dict.fromkeys((42, 46, 22, 26), 4),
    **dict.fromkeys((50, 48, 47, 45, 43, 58), 5),
}
"""The specification's table: MIDI note and column, from 0."""
DROPPED = (44, 54, 56, 39)

Notes = Sequence[tuple[int, int]]
"""(tick, note), in time's order."""


def track_of(notes: Notes, channel: int = 9, velocity: int = 90) -> mido.MidiTrack:
    track, now = mido.MidiTrack(), 0
    for tick, note in notes:
        track.append(mido.Message("note_on", channel=channel, note=note, velocity=velocity, time=tick - now))
        now = tick
    return track


def signature(beats: int, unit: int) -> mido.MetaMessage:
    return mido.MetaMessage("time_signature", numerator=beats, denominator=unit, time=0)


def file_of(*tracks: Iterable[mido.Message], tpq: int = 480) -> bytes:
    file = mido.MidiFile(type=1 if len(tracks) > 1 else 0, ticks_per_beat=tpq)
    file.tracks += [mido.MidiTrack(track) for track in tracks]
    return midi_bytes(file)


def midi_of(notes: Notes, tpq: int = 480, metres: Sequence[tuple[int, int]] = ()) -> bytes:
    """One track with some time signatures at its beginning, and notes."""
    return file_of([*(signature(*metre) for metre in metres), *track_of(notes)], tpq=tpq)


def encoded(source: bytes, keep_unknown: bool = False) -> str:
    text = midi_to_drumroll(source, keep_unknown)
    assert text is not None
    return text


def shortest_bundled(unit: str) -> bytes:
    """Of the bundled files whose names, and so their metres, end like this."""
    return min((content for name, content in bundled_midi().items() if name.endswith(unit)), key=len)


def hits_of(text: str) -> list[tuple[int, int]]:
    """(line, column) of every hit."""
    return [
        (number, column)
        for number, line in enumerate(text.splitlines())
        for column, character in enumerate(line)
        if character == "o"
    ]


# The grid


@pytest.mark.parametrize(
    ("tpq", "steps_of_ticks"),
    [
        (480, {0: 0, 59: 0, 60: 1, 119: 1, 120: 1, 179: 1, 180: 2, 299: 2, 300: 3, 30_540: 255}),
        (96, {11: 0, 12: 1, 24: 1, 35: 1, 36: 2}),
        (960, {119: 0, 120: 1, 359: 1, 360: 2}),
        (24, {2: 0, 3: 1, 8: 1, 9: 2}),
        (8, {0: 0, 1: 1, 2: 1, 3: 2}),
        # A sixteenth of an odd number of ticks has no middle: 55 ticks are cut 27 and 28, 25 ticks 12 and 13.
        (220, {27: 0, 28: 1, 82: 1, 83: 2}),
        (100, {12: 0, 13: 1, 37: 1, 38: 2}),
        # A quarter that four do not divide is rounded down: 10 ticks count as 8.
        (10, {0: 0, 1: 1, 2: 1, 3: 2, 5: 3}),
    ],
    ids=lambda value: str(value) if isinstance(value, int) else "",
)
def test_a_note_goes_to_the_nearest_sixteenth_and_halfway_to_the_later(
    tpq: int, steps_of_ticks: dict[int, int]
) -> None:
    for tick, step in steps_of_ticks.items():
        assert hits_of(encoded(midi_of([(tick, SNARE)], tpq))) == [(step, 2)], tick


@given(st.integers(2, 250).map(lambda quarter: 4 * quarter), st.integers(0, 100_000))
@settings(deadline=None, max_examples=60)
def test_a_step_is_that_of_exact_fractions_at_any_resolution(tpq: int, tick: int) -> None:
    nearest = math.floor(Fraction(4 * tick, tpq) + Fraction(1, 2))
    assert read_midi(midi_of([(tick, SNARE)], tpq)).step_of(tick) == nearest


@pytest.mark.parametrize(("beats", "last_tick"), [(4, 30_659), (3, 22_979), (5, 38_339)])
def test_notes_up_to_the_last_sixteenth_count_and_none_after(beats: int, last_tick: int) -> None:
    """Sixteen measures of four quarters are 30,720 ticks, and its last 60 belong to the step after them."""
    text = encoded(midi_of([(last_tick, SNARE), (last_tick + 1, KICK)], metres=[(beats, 4)]))
    assert hits_of(text) == [(64 * beats - 1, 2)]


def test_what_follows_the_first_note_past_the_end_is_not_read() -> None:
    """Not even to ask which drum it is."""
    assert hits_of(encoded(midi_of([(0, SNARE), (30_660, KICK), (30_700, 60)]))) == [(0, 2)]


def test_two_notes_of_one_drum_at_one_step_are_one_hit() -> None:
    assert hits_of(encoded(midi_of([(0, 38), (20, 40), (40, 37), (59, 36)]))) == [(0, 2), (0, 3)]


@pytest.mark.parametrize("beats", [1, 2, 3, 4, 5, 7])
def test_a_text_has_sixteen_measures_of_lines_with_six_characters(beats: int) -> None:
    text = encoded(midi_of([(0, SNARE)], metres=[(beats, 4)]))
    assert text == "--o---\n" + "------\n" * (64 * beats - 1)


def test_a_file_without_a_note_is_silence() -> None:
    assert encoded(midi_of([])) == "------\n" * 256


# The drums


@pytest.mark.parametrize("note", COLUMNS)
def test_notes_of_one_kind_share_a_column(note: int) -> None:
    assert hits_of(encoded(midi_of([(120, note)]))) == [(1, COLUMNS[note])]


@pytest.mark.parametrize("note", DROPPED)
def test_pedal_tambourine_cowbell_and_clap_are_left_out(note: int) -> None:
    assert hits_of(encoded(midi_of([(0, SNARE), (120, note)]))) == [(0, 2)]


@pytest.mark.parametrize("note", sorted(set(range(128)) - set(COLUMNS) - set(DROPPED)))
def test_any_other_note_is_refused_or_passed_by(note: int) -> None:
    source = midi_of([(0, SNARE), (120, note)])
    with pytest.raises(TenfoldError, match=rf"note {note} is none of the six drums"):
        midi_to_drumroll(source)
    assert hits_of(encoded(source, keep_unknown=True)) == [(0, 2)]


def test_a_note_of_velocity_0_and_a_note_s_end_are_no_hits() -> None:
    off = mido.Message("note_off", channel=9, note=KICK, velocity=64, time=120)
    assert hits_of(
        encoded(file_of([*track_of([(0, SNARE)]), *track_of([(120, KICK)], velocity=0), off]))
    ) == [(0, 2)]


# The time signature


@pytest.mark.parametrize(
    ("metres", "lines"),
    [
        ([], 256),
        ([(4, 4)], 256),
        ([(4, 4), (3, 4)], 192),
        ([(3, 4), (5, 4)], 320),
        ([(6, 8), (4, 4)], 256),
        ([(4, 4), (6, 8)], None),
        ([(6, 8)], None),
        ([(5, 8)], None),
        ([(2, 2)], None),
        ([(16, 16)], None),
        ([(4, 1)], None),
    ],
    ids=str,
)
def test_the_last_time_signature_counts_and_only_quarters_are_written(
    metres: list[tuple[int, int]], lines: int | None
) -> None:
    text = midi_to_drumroll(midi_of([(0, SNARE)], metres=metres))
    assert (None if text is None else len(text.splitlines())) == lines


def test_a_time_signature_behind_the_notes_counts_as_well() -> None:
    assert len(encoded(file_of([signature(4, 4), *track_of([(0, SNARE)]), signature(3, 4)]))) == 192 * 7


def test_a_file_whose_beat_is_no_quarter_is_skipped_whatever_it_plays() -> None:
    assert midi_to_drumroll(midi_of([(0, 60)], metres=[(6, 8)])) is None


def test_tempo_metre_and_hits_of_a_file_are_read_as_they_were_played() -> None:
    tempo = mido.MetaMessage("set_tempo", tempo=400_000, time=0)
    notes = [*track_of([(5, SNARE)], velocity=33), *track_of([(100, 42)], velocity=127)]
    found = read_midi(file_of([tempo, signature(3, 4), *notes], tpq=96))
    assert (found.beats, found.beat_unit, found.ticks_per_quarter, found.steps) == (3, 4, 96, 192)
    assert found.bpm == pytest.approx(150)
    assert found.hits == (Hit(5, 2, 33), Hit(105, 4, 127))
    assert hits_of(str(performance_to_drumroll(found))) == [(0, 2), (4, 4)]


# Tracks


def test_only_the_first_track_is_read_where_it_has_a_note() -> None:
    text = encoded(file_of(track_of([(0, SNARE)], channel=0), track_of([(120, KICK)])))
    assert hits_of(text) == [(0, 2)]


def test_after_a_track_of_tempo_alone_what_is_on_channel_10_counts_from_any_track() -> None:
    piano, drums = track_of([(0, 60), (240, 36)], channel=0), track_of([(120, SNARE)])
    more = track_of([(0, KICK), (360, 42)])
    text = encoded(file_of([signature(3, 4)], piano, drums, more))
    assert hits_of(text) == [(0, 3), (1, 2), (3, 4)]
    assert len(text.splitlines()) == 192


def test_after_a_track_of_tempo_alone_the_only_track_with_notes_counts() -> None:
    assert hits_of(encoded(file_of([signature(4, 4)], [], track_of([(120, SNARE)], channel=3)))) == [(1, 2)]


def test_several_tracks_without_channel_10_are_no_drums() -> None:
    source = file_of([], track_of([(0, 36)], channel=0), track_of([(0, 38)], channel=1))
    with pytest.raises(TenfoldError, match="has no drum track"):
        midi_to_drumroll(source)


def test_tracks_without_a_note_are_silence() -> None:
    assert encoded(file_of([signature(3, 4)], [], [])) == "------\n" * 192


# A slow reader of bytes


def variable(content: bytes, place: int) -> tuple[int, int]:
    value = 0
    while True:
        value = value * 128 + content[place] % 128
        place += 1
        if content[place - 1] < 128:
            return value, place


def events_of(content: bytes) -> Iterator[tuple[int, int, bytes]]:
    """Tick, status (0xFF00 and its type for meta events) and data of the first track."""
    assert content[14:18] == b"MTrk"
    place, end, tick, status = 22, 22 + int.from_bytes(content[18:22], "big"), 0, 0
    while place < end:
        wait, place = variable(content, place)
        tick += wait
        if content[place] >= 0x80:
            status, place = content[place], place + 1
        if status in (0xFF, 0xF0, 0xF7):
            kind = status
            if status == 0xFF:
                kind, place = 0xFF00 + content[place], place + 1
            size, place = variable(content, place)
        else:
            kind, size = status, 1 if status >> 4 in (0xC, 0xD) else 2
        yield tick, kind, content[place : place + size]
        place += size


def slow_encoding(content: bytes) -> str | None:
    """The specification's rules, with a walk along the boundaries of the steps."""
    tpq = int.from_bytes(content[12:14], "big")
    events = list(events_of(content))
    metre = [data for _, kind, data in events if kind == 0xFF58][-1]
    if metre[1] != 2:  # the denominator is a power of two
        return None
    lines = [["-"] * 6 for _ in range(16 * metre[0] * 4)]
    for tick, kind, data in events:
        if kind >> 4 != 0x9 or not data[1] or data[0] in DROPPED:
            continue
        step, border = 0, tpq // 8
        while tick >= border:
            step, border = step + 1, border + tpq // 4
        if step >= len(lines):
            break
        lines[step][COLUMNS[data[0]]] = "o"
    return "".join("".join(line) + "\n" for line in lines)


@pytest.mark.parametrize("name", bundled_midi())
def test_a_bundled_file_is_encoded_as_a_slow_reader_of_its_bytes_does(name: str) -> None:
    content = bundled_midi()[name]
    assert midi_to_drumroll(content) == slow_encoding(content)


def test_bundled_files_give_the_bundled_texts_and_eighths_give_none() -> None:
    texts = {piece.name: piece.text for piece in bundled_pieces()}
    files = bundled_midi()
    assert len(files) == 20
    for name, content in files.items():
        assert midi_to_drumroll(content) == texts.get(name), name
    assert {name for name in files if name not in texts} == {name for name in files if name.endswith("-8")}


def test_a_path_and_its_bytes_are_read_alike(tmp_path: Path) -> None:
    content = shortest_bundled("-4")
    path = tmp_path / "groove.mid"
    path.write_bytes(content)
    assert midi_to_drumroll(path) == midi_to_drumroll(str(path)) == encoded(content)


# What is no MIDI file


def refused(source: Path | bytes) -> str:
    with pytest.raises(TenfoldError) as caught:
        midi_to_drumroll(source)
    message = str(caught.value)
    assert message and "\n" not in message
    return message


def test_a_file_that_ends_too_early_is_refused_wherever_it_ends() -> None:
    content = shortest_bundled("-4")
    assert midi_to_drumroll(content) is not None
    for length in range(len(content)):
        assert "no complete MIDI file" in refused(content[:length]), length


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\n",
        b"MThd",
        b"o-----\n------\n" * 64,
        b"RIFF" + b"\0" * 100,
        bytes(range(256)) * 4,
        b"MThd\0\0\0\6\0\1\0\0\1\xe0",  # no track
        b"MThd\0\0\0\6\0\0\0\1\0\4MTrk\0\0\0\4\0\xff\x2f\0",  # four ticks a quarter note
        b"MThd\0\0\0\6\0\0\0\1\xe7\x28MTrk\0\0\0\4\0\xff\x2f\0",  # film frames instead of quarter notes
    ],
    ids=["empty", "newline", "four letters", "drumroll", "wave", "bytes", "no track", "coarse", "frames"],
)
def test_what_is_no_midi_file_with_sixteenths_is_refused_in_one_line(content: bytes, tmp_path: Path) -> None:
    assert "MIDI data" in refused(content)
    path = tmp_path / "some name.mid"
    path.write_bytes(content)
    assert str(path) in refused(path)


def test_a_missing_file_and_a_folder_are_named(tmp_path: Path) -> None:
    assert refused(tmp_path / "none.mid") == f"there is no file {tmp_path / 'none.mid'}"
    assert refused(tmp_path).startswith(f"{tmp_path} is a folder")


def read_or_refused(source: bytes) -> str | None:
    try:
        return midi_to_drumroll(source)
    except TenfoldError as error:
        message = str(error)
    assert message and "\n" not in message
    return None


def small_midi() -> bytes:
    return midi_bytes(drumroll_to_midi("o-----\n--o-o-\n" * 4))


def test_a_tempo_of_no_time_is_refused_in_one_line() -> None:
    broken = small_midi().replace(b"\xff\x51\x03\x07\xa1\x20", b"\xff\x51\x03\0\0\0")
    assert broken != small_midi()
    refused(broken)


def test_a_key_that_does_not_exist_is_passed_by_or_refused_in_one_line() -> None:
    """Nine sharps, which say nothing of the drums."""
    key = mido.MetaMessage("key_signature", key="F#m", time=0)
    content = file_of([key, *track_of([(0, SNARE)])])
    broken = content.replace(b"\xff\x59\x02\x03\x01", b"\xff\x59\x02\x09\x01")
    assert broken != content
    assert read_or_refused(broken) in (None, encoded(content))


@given(
    st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), min_size=1, max_size=4),
    st.integers(1, 10_000),
)
@settings(deadline=None, max_examples=150, derandomize=True)
def test_damaged_bytes_are_read_or_refused_in_one_line(changes: list[tuple[int, int]], length: int) -> None:
    damaged = bytearray(small_midi())
    for place, value in changes:
        damaged[place % len(damaged)] = value
    text = read_or_refused(bytes(damaged[:length]))
    assert text is None or set(text) <= set("o-\n")


# Folders


def test_a_folder_is_encoded_by_names_and_a_damaged_file_stops_nothing(tmp_path: Path) -> None:
    whole, eighths = shortest_bundled("-4"), shortest_bundled("-8")
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "deep.MID").write_bytes(whole)
    (tmp_path / "a.mid").write_bytes(whole[:-9])
    (tmp_path / "c.midi").write_bytes(eighths)
    (tmp_path / "d.mid").write_bytes(midi_of([(0, 60)]))
    (tmp_path / "notes.txt").write_text("not one of them")
    found = dict(midi_files_to_drumrolls(tmp_path))
    assert [path.name for path in found] == ["a.mid", "deep.MID", "c.midi", "d.mid"]
    damaged, text, skipped, piano = found.values()
    assert isinstance(damaged, TenfoldError) and "a.mid" in str(damaged)
    assert text == encoded(whole)
    assert skipped is None
    assert isinstance(piano, TenfoldError) and "note 60" in str(piano)


def test_unknown_notes_of_a_folder_may_be_passed_by(tmp_path: Path) -> None:
    (tmp_path / "d.mid").write_bytes(midi_of([(0, 60), (120, KICK)]))
    ((_, text),) = midi_files_to_drumrolls(tmp_path, keep_unknown=True)
    assert hits_of(str(text)) == [(1, 3)]


def test_a_single_file_is_a_folder_of_one(tmp_path: Path) -> None:
    path = tmp_path / "groove"
    path.write_bytes(midi_of([(0, KICK)]))
    ((found, text),) = midi_files_to_drumrolls(path)
    assert found == path and hits_of(str(text)) == [(0, 3)]


def test_a_folder_without_midi_files_and_no_folder_are_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("nothing else")
    with pytest.raises(TenfoldError, match=r"^there is no MIDI file in "):
        list(midi_files_to_drumrolls(tmp_path))
    with pytest.raises(TenfoldError, match=r"^there is no file or folder "):
        list(midi_files_to_drumrolls(tmp_path / "none"))


# Text to MIDI as the authors write it


def messages(track: mido.MidiTrack) -> list[tuple[int, str, int, int, int]]:
    """Wait, type, channel, note and velocity of what is played."""
    return [
        (message.time, message.type, message.channel, message.note, message.velocity)
        for message in track
        if message.type in ("note_on", "note_off")
    ]


def metre_and_tempo(file: mido.MidiFile) -> tuple[int, int, int]:
    (metre,) = [message for message in file.tracks[0] if message.type == "time_signature"]
    (tempo,) = [message for message in file.tracks[0] if message.type == "set_tempo"]
    return metre.numerator, metre.denominator, tempo.tempo


def test_the_authors_midi_is_their_sequence_of_notes() -> None:
    file = drumroll_to_midi("o-o---\n------\n------\n-o-ooo\n", official=True)
    assert (file.type, file.ticks_per_beat, len(file.tracks)) == (1, 480, 2)
    assert metre_and_tempo(file) == (4, 4, 500_000)
    program = file.tracks[1][0]
    assert (program.type, program.channel, program.time) == ("program_change", 9, 0)
    assert messages(file.tracks[1]) == [
        (0, "note_on", 0, 49, 100),
        (0, "note_on", 0, 38, 100),
        (120, "note_on", 0, 51, 0),
        (120, "note_on", 0, 51, 0),
        (120, "note_on", 0, 51, 100),
        (0, "note_on", 0, 36, 100),
        (0, "note_on", 0, 42, 100),
        (0, "note_on", 0, 50, 100),
    ]


def test_the_authors_midi_knows_one_tempo_and_one_metre() -> None:
    file = drumroll_to_midi("--o---\n" * 192, official=True, bpm=93)
    assert metre_and_tempo(file) == (4, 4, 500_000)


def test_the_authors_midi_takes_no_hit_beyond_the_sixth_column() -> None:
    with pytest.raises(TenfoldError, match=r"^line 2 hits beyond column 6"):
        drumroll_to_midi("------\n------o\n", official=True)
    file = drumroll_to_midi("o------\n--\n\n", official=True)
    assert [event[3:] for event in messages(file.tracks[1])] == [(49, 100), (51, 0), (51, 0)]


def test_the_authors_midi_reads_back_where_a_piece_is_in_four_quarters() -> None:
    for piece in pieces_of("test"):
        assert encoded(midi_bytes(drumroll_to_midi(piece.text, official=True))) == piece.text, piece.name


def test_the_authors_midi_of_other_metres_is_filled_up_or_cut_to_256_lines() -> None:
    """It says 4/4, whatever was read."""
    texts = {piece.metre: piece.text for piece in bundled_pieces() if piece.metre != "4-4"}
    assert set(texts) == {"3-4", "5-4"}
    for text in texts.values():
        wanted = (text + "------\n" * 64)[: 256 * 7]
        assert encoded(midi_bytes(drumroll_to_midi(text, official=True))) == wanted


# Text to MIDI as we write it


def test_our_midi_plays_on_channel_10_with_notes_of_half_a_step() -> None:
    file = drumroll_to_midi("o-o---\n------\n-o----\n------\n", bpm=100)
    assert (file.type, file.ticks_per_beat, len(file.tracks)) == (1, 480, 2)
    assert metre_and_tempo(file)[2] == 600_000
    found = messages(file.tracks[1])
    assert sorted(found[:2]) == [(0, "note_on", 9, 38, 100), (0, "note_on", 9, 49, 100)]
    assert sorted(event[1:4] for event in found[2:4]) == [("note_off", 9, 38), ("note_off", 9, 49)]
    assert [event[0] for event in found] == [0, 0, 60, 0, 180, 60]
    assert [event[1:4] for event in found[4:]] == [("note_on", 9, 51), ("note_off", 9, 51)]
    program = file.tracks[1][0]
    assert (program.type, program.channel) == ("program_change", 9)


@pytest.mark.parametrize("text", ["o-----\n" * 40, "------\n" * 40])
def test_our_midi_lasts_as_long_as_its_lines(text: str) -> None:
    assert sum(message.time for message in drumroll_to_midi(text).tracks[1]) == 40 * 120
    assert drumroll_to_midi(text, bpm=60).length == pytest.approx(10)


@pytest.mark.parametrize(("lines", "beats"), [(192, 3), (256, 4), (320, 5), (224, 4), (32, 4), (1, 4)])
def test_our_midi_is_in_the_metre_that_its_length_stands_for(lines: int, beats: int) -> None:
    assert metre_and_tempo(drumroll_to_midi("--o---\n" * lines))[:2] == (beats, 4)


def test_a_roll_longer_than_any_metre_is_in_four_quarters() -> None:
    """256 beats a measure cannot be said in a MIDI file."""
    assert metre_and_tempo(drumroll_to_midi("------\n" * 64 * 256))[:2] == (4, 4)


def test_our_midi_cuts_lines_that_are_too_long_and_fills_up_short_ones() -> None:
    file = drumroll_to_midi("o-----o\n--\n\n  o\n-x-oS\nooooooooo\n")
    assert hits_of(encoded(midi_bytes(file))) == [
        (0, 0),
        (3, 2),
        (4, 3),
        *((5, column) for column in range(6)),
    ]


def test_our_midi_plays_given_hits_when_and_as_loud_as_they_say() -> None:
    hits = [Hit(130, 3, 5), Hit(7, 2, 127)]
    found = messages(drumroll_to_midi("--o---\n---o--\n", hits=hits).tracks[1])
    assert found == [
        (7, "note_on", 9, 38, 127),
        (60, "note_off", 9, 38, 0),
        (63, "note_on", 9, 36, 5),
        (60, "note_off", 9, 36, 0),
    ]


@pytest.mark.parametrize("official", [False, True])
def test_a_text_without_a_line_is_no_music(official: bool) -> None:
    with pytest.raises(TenfoldError, match="no line"):
        drumroll_to_midi("", official)


@pytest.mark.parametrize("bpm", [0, -10, 3.9, 1001, math.nan, math.inf])
def test_a_tempo_that_midi_cannot_say_is_refused(bpm: float) -> None:
    with pytest.raises(TenfoldError, match=r"^a tempo is 4 to 1000"):
        drumroll_to_midi("------\n", bpm=bpm)


@pytest.mark.parametrize("bpm", [4, 87.5, 290, 1000])
def test_a_tempo_comes_back(bpm: float) -> None:
    assert read_midi(midi_bytes(drumroll_to_midi("o-----\n", bpm=bpm))).bpm == pytest.approx(bpm, rel=1e-4)


# There and back


def test_every_bundled_piece_comes_back_from_midi_as_it_was() -> None:
    for piece in bundled_pieces():
        assert encoded(midi_bytes(drumroll_to_midi(piece.text, bpm=piece.bpm))) == piece.text, piece.name


@st.composite
def drumrolls(draw: st.DrawFn) -> str:
    beats, seed = draw(st.sampled_from([2, 3, 4, 5, 7])), draw(st.integers(0, 1000))
    chance, rng = draw(st.floats(0, 1)), random.Random(seed)
    return "".join(
        "".join("o" if rng.random() < chance else "-" for _ in range(6)) + "\n" for _ in range(64 * beats)
    )


@given(drumrolls())
@settings(deadline=None, max_examples=15, suppress_health_check=[HealthCheck.too_slow])
def test_any_drumroll_of_sixteen_measures_comes_back_from_midi_as_it_was(text: str) -> None:
    assert encoded(midi_bytes(drumroll_to_midi(text))) == text


# All of Groove


@pytest.fixture(scope="module")
def groove(data_root: Path) -> Path:
    """Magenta's index, and the archives of the three splits."""
    return data_root / "groove"


@pytest.fixture(scope="module")
def magenta(groove: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that Magenta's archive unpacks to, with the files that the splits hold."""
    folder = tmp_path_factory.mktemp("groove")
    (folder / "info.csv").write_bytes((groove / "info.csv").read_bytes())
    files = {}
    for split in ("train", "dev", "test"):
        with zipfile.ZipFile(groove / f"midi_{split}.zip") as archive:
            files |= {name: archive.read(name) for name in archive.namelist()}
    with (folder / "info.csv").open(newline="", encoding="utf-8") as index:
        for row in csv.DictReader(index):
            path = Path(row["midi_filename"])
            content = files.get(f"{row['drummer'].removeprefix('drummer')}_{path.name}")
            if content is not None and "eval_session" not in path.parts:
                (folder / path).parent.mkdir(parents=True, exist_ok=True)
                (folder / path).write_bytes(content)
    return folder


def test_all_files_of_magentas_archive_give_exactly_the_bundled_pieces(magenta: Path) -> None:
    found = encode_groove(magenta)
    assert Counter(piece.split for piece in found) == {"train": 373, "dev": 47, "test": 37}
    assert found == bundled_pieces()


def test_archives_by_split_and_magentas_archive_are_the_same_files(groove: Path, magenta: Path) -> None:
    by_split, by_index = sorted(groove_midi(groove)), sorted(groove_midi(magenta))
    assert Counter(split for _, split, _ in by_split) == {"train": 378, "dev": 48, "test": 37}
    assert by_split == by_index


def test_a_file_of_the_index_that_is_missing_is_named(magenta: Path, tmp_path: Path) -> None:
    (tmp_path / "info.csv").write_bytes((magenta / "info.csv").read_bytes())
    with pytest.raises(TenfoldError, match=r"lists drummer1/session1/\S+\.mid, which is not there"):
        list(groove_midi(tmp_path))


def test_a_folder_without_groove_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TenfoldError, match=r"^Groove is not in "):
        encode_groove(tmp_path)
