"""Sound: what each drum is like, where hits sound and how loud, sound fonts, and WAV files."""

from __future__ import annotations

import ctypes.util
import importlib.util
import wave
from pathlib import Path

import mido
import numpy as np
import pytest

from tenfold.drum_gpt.corpus import bundled_pieces
from tenfold.drum_gpt.encoding import DRUMS, Hit, drumroll_to_midi
from tenfold.drum_gpt.rendering import (
    drum_sound,
    find_sound_font,
    hits_in_seconds,
    render,
    write_wav,
)
from tenfold.shared.logging import TenfoldError

RATE = 22_050
SILENCE = "------\n"
COLUMN = {drum.name: column for column, drum in enumerate(DRUMS)}
plays_sound_fonts = pytest.mark.skipif(
    importlib.util.find_spec("fluidsynth") is None or ctypes.util.find_library("fluidsynth") is None,
    reason="needs the extra soundfont and libfluidsynth",
)
needs_sound_font = pytest.mark.skipif(find_sound_font() is None, reason="needs a General MIDI sound font")


def played(*hits: Hit, bpm: float = 120.0, lines: int = 16) -> mido.MidiFile:
    """A sixteenth is an eighth of a second at 120 bpm; 120 ticks."""
    return drumroll_to_midi(SILENCE * lines, bpm=bpm, hits=hits)


def centroid(sound: np.ndarray, rate: int = RATE) -> float:
    """Mean frequency of the power, in Hz."""
    power = np.abs(np.fft.rfft(sound)) ** 2
    return float(power @ np.fft.rfftfreq(len(sound), 1 / rate) / power.sum())


def seconds_to(sound: np.ndarray, part: float) -> float:
    """Until so much of the energy has been heard."""
    return float(np.searchsorted(np.cumsum(sound**2) / np.sum(sound**2), part)) / RATE


def onset(samples: np.ndarray) -> float:
    """Seconds to the first sample that can be heard."""
    return float(np.argmax(np.abs(samples).max(axis=1) > 0.01)) / RATE


@pytest.mark.parametrize("column", range(6))
def test_a_drum_begins_at_once_dies_away_and_ends_without_a_click(column: int) -> None:
    sound = drum_sound(column, RATE)
    half = len(sound) // 2
    assert 0.3 < np.abs(sound).max() <= 1
    assert np.abs(sound).argmax() < 0.02 * RATE
    assert np.abs(sound[half:]).max() < 0.3 * np.abs(sound).max()
    assert sound[-1] == 0


def test_kick_and_toms_are_low_the_snare_is_between_and_cymbals_are_high() -> None:
    found = {name: centroid(drum_sound(column, RATE)) for name, column in COLUMN.items()}
    assert found["kick"] < 120 < found["toms"] < 400 < found["snare"]
    assert found["snare"] < min(found["ride"], found["crash"]) and found["hi-hat"] > 7000


def test_the_kick_falls_in_pitch() -> None:
    sound = drum_sound(COLUMN["kick"], RATE)
    part = RATE // 25
    assert centroid(sound[2 * part : 4 * part]) < 0.8 * centroid(sound[part // 4 : part])


def test_a_hi_hat_is_short_and_a_crash_rings() -> None:
    hi_hat, crash = (seconds_to(drum_sound(COLUMN[name], RATE), 0.9) for name in ("hi-hat", "crash"))
    assert hi_hat < 0.08 < 0.3 < crash


def test_hits_sound_when_the_tempo_says() -> None:
    for bpm in (60.0, 120.0, 240.0):
        samples = render(played(Hit(480, COLUMN["kick"], 100), bpm=bpm), sample_rate=RATE)
        assert onset(samples) == pytest.approx(60 / bpm, abs=0.002)


def test_a_change_of_tempo_within_the_file_is_followed() -> None:
    midi = played(Hit(960, COLUMN["kick"], 100))
    midi.tracks[0].append(mido.MetaMessage("set_tempo", tempo=1_000_000, time=480))
    assert hits_in_seconds(midi) == [(pytest.approx(1.5), COLUMN["kick"], 100)]


def test_a_louder_hit_is_heard_louder() -> None:
    hits = [Hit(number * 960, COLUMN["snare"], velocity) for number, velocity in enumerate((20, 60, 120))]
    samples = render(played(*hits, lines=32), sample_rate=RATE)
    peaks = [np.abs(samples[number * RATE : number * RATE + RATE // 2]).max() for number in range(3)]
    assert peaks[0] < 0.4 * peaks[1] < 0.4 * 0.8 * peaks[2]


def test_drums_are_spread_from_left_to_right() -> None:
    crash, ride = (render(played(Hit(0, COLUMN[name], 100)), sample_rate=RATE) for name in ("crash", "ride"))
    assert np.sum(crash[:, 0] ** 2) > 2 * np.sum(crash[:, 1] ** 2)
    assert np.sum(ride[:, 1] ** 2) > 2 * np.sum(ride[:, 0] ** 2)


def test_a_piece_fills_the_range_without_clipping_and_sounds_the_same_each_time() -> None:
    piece = next(piece for piece in bundled_pieces() if piece.style == "funk")
    midi = drumroll_to_midi("".join(piece.text.splitlines(keepends=True)[:64]), bpm=piece.bpm)
    samples = render(midi, sample_rate=RATE)
    assert samples.dtype == np.float32 and samples.shape[1] == 2
    assert len(samples) == pytest.approx((midi.length + 1.5) * RATE, abs=2)
    assert np.abs(samples).max() == pytest.approx(0.95, abs=1e-4)
    assert np.mean(np.abs(samples) > 0.94) < 1e-3
    assert 0.03 < np.sqrt(np.mean(samples**2)) < 0.4
    np.testing.assert_array_equal(render(midi, sample_rate=RATE), samples)


def test_all_drums_at_once_at_full_velocity_do_not_clip() -> None:
    hits = [Hit(step * 120, column, 127) for step in range(16) for column in range(6)]
    assert np.abs(render(played(*hits), sample_rate=RATE)).max() <= 1


def test_the_last_hit_rings_on() -> None:
    samples = render(played(Hit(1919, COLUMN["crash"], 100)), sample_rate=RATE)
    assert np.abs(samples[int(2.3 * RATE) :]).max() > 0.05


def test_a_melody_beside_the_drums_is_not_drummed() -> None:
    midi = played(Hit(0, COLUMN["kick"], 100))
    midi.tracks.append(mido.MidiTrack([mido.Message("note_on", channel=0, note=38, velocity=90, time=240)]))
    assert [column for _, column, _ in hits_in_seconds(midi)] == [COLUMN["kick"]]


def test_the_official_files_are_heard_though_they_are_written_for_a_piano() -> None:
    midi = drumroll_to_midi("---o--\n" + SILENCE * 3 + "--o---\n", official=True)
    assert [(seconds, column) for seconds, column, _ in hits_in_seconds(midi)] == [
        (0.0, COLUMN["kick"]),
        (pytest.approx(0.5), COLUMN["snare"]),
    ]


def test_a_piece_without_hits_is_silent() -> None:
    samples = render(drumroll_to_midi(SILENCE * 16), sample_rate=RATE)
    assert samples.shape[1] == 2 and samples.dtype == np.float32 and not samples.any()


def test_a_file_on_disk_sounds_like_the_file_in_memory(tmp_path: Path) -> None:
    midi = played(Hit(0, COLUMN["toms"], 90))
    midi.save(tmp_path / "tom.mid")
    np.testing.assert_array_equal(
        render(tmp_path / "tom.mid", sample_rate=RATE), render(midi, sample_rate=RATE)
    )


def test_a_file_that_is_missing_or_no_midi_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TenfoldError, match="there is no file"):
        render(tmp_path / "nothing.mid")
    (tmp_path / "text.mid").write_text("not drums", encoding="utf-8")
    with pytest.raises(TenfoldError, match="no complete MIDI file"):
        render(tmp_path / "text.mid")


def test_pieces_that_are_not_played_together_are_refused() -> None:
    with pytest.raises(TenfoldError, match="type 2"):
        render(mido.MidiFile(type=2))


@pytest.mark.parametrize("rate", [8_000, 192_000])
def test_a_sample_rate_out_of_range_is_refused(rate: int) -> None:
    with pytest.raises(TenfoldError, match="16000 to 96000 Hz"):
        render(played(Hit(0, 0, 100)), sample_rate=rate)


@plays_sound_fonts
@needs_sound_font
def test_a_sound_font_plays_drums_at_their_time() -> None:
    font = find_sound_font()
    kick = render(played(Hit(480, COLUMN["kick"], 100)), font, RATE)
    hi_hat = render(played(Hit(480, COLUMN["hi-hat"], 100)), font, RATE)
    assert kick.shape[1] == 2 and np.abs(kick).max() <= 1
    assert onset(kick) == pytest.approx(0.5, abs=0.03)
    assert centroid(kick.mean(axis=1)) < 500 < 3000 < centroid(hi_hat.mean(axis=1))


@plays_sound_fonts
def test_what_is_no_sound_font_is_refused(tmp_path: Path) -> None:
    text = tmp_path / "text.sf2"
    text.write_text("not a sound font", encoding="utf-8")
    for path in (text, tmp_path / "nothing.sf2", tmp_path):
        with pytest.raises(TenfoldError, match="no sound font"):
            render(played(Hit(0, 0, 100)), path)


@plays_sound_fonts
def test_a_damaged_sound_font_is_refused(tmp_path: Path) -> None:
    damaged = tmp_path / "damaged.sf2"
    damaged.write_bytes(b"RIFF\x10\x00\x00\x00sfbkLIST\x00\x00\x00\x00")
    with pytest.raises(TenfoldError, match="no drum kit that can be played"):
        render(played(Hit(0, 0, 100)), damaged)


def test_the_first_sound_font_is_taken_by_folder_and_then_by_name(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    for path in (first / "b.sf3", first / "c.sf2", first / "a.txt", second / "a.sf2"):
        path.parent.mkdir(exist_ok=True)
        path.touch()
    assert find_sound_font([tmp_path / "missing", first, second]) == first / "b.sf3"
    assert find_sound_font([second, first]) == second / "a.sf2"
    assert find_sound_font([tmp_path / "missing"]) is None


def test_a_wav_file_holds_the_samples_to_16_bits(tmp_path: Path) -> None:
    samples = np.array([[0.0, 0.5], [-1.0, 1.0], [0.25, -0.125]], dtype=np.float32)
    write_wav(tmp_path / "new" / "sound.wav", samples, RATE)
    with wave.open(str(tmp_path / "new" / "sound.wav")) as file:
        assert (file.getnchannels(), file.getsampwidth(), file.getframerate()) == (2, 2, RATE)
        read = np.frombuffer(file.readframes(file.getnframes()), "<i2").reshape(-1, 2)
    np.testing.assert_allclose(read / 32767, samples, atol=1 / 32767)


def test_a_wav_file_of_one_channel_cuts_off_what_is_too_loud(tmp_path: Path) -> None:
    write_wav(tmp_path / "sound.wav", np.array([2.0, -3.0]))
    with wave.open(str(tmp_path / "sound.wav")) as file:
        assert file.getnchannels() == 1
        assert np.frombuffer(file.readframes(2), "<i2").tolist() == [32767, -32767]


def test_a_wav_file_that_cannot_be_written_leaves_the_old_one(tmp_path: Path) -> None:
    target = tmp_path / "sound.wav"
    write_wav(target, np.zeros((4, 2)))
    before = target.read_bytes()
    with pytest.raises(wave.Error):
        write_wav(target, np.zeros((4, 0)))
    assert target.read_bytes() == before and list(tmp_path.iterdir()) == [target]
