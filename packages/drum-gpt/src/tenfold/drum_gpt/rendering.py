"""Drums that can be heard: MIDI to sound, through a sound font or a small synthesis of our own, and WAV files."""

from __future__ import annotations

import wave
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import mido
import numpy as np
from numpy.typing import NDArray
from scipy.signal import butter, sosfilt

from tenfold.drum_gpt.encoding import COLUMN_OF_NOTE, DRUM_CHANNEL, DRUMS
from tenfold.shared.logging import TenfoldError
from tenfold.shared.runs import replaced

Floats = NDArray[np.float64]
Samples = NDArray[np.float32]
SOUND_FONT_FOLDERS = (
    Path("/usr/share/sounds/sf2"),
    Path("/usr/share/sounds/sf3"),
    Path("/usr/share/soundfonts"),
    Path("/usr/local/share/soundfonts"),
    Path("/usr/local/share/sounds/sf2"),
    Path("/usr/local/share/fluid-synth/sf2"),
    Path("/opt/homebrew/share/soundfonts"),
    Path("/opt/homebrew/share/sounds/sf2"),
    Path("/opt/homebrew/share/fluid-synth/sf2"),
)
"""Of Linux distributions, then of Homebrew on Intel, then of Homebrew on Apple silicon."""
DRUM_BANK = 128
"""Of General MIDI sound fonts."""
GAIN = 0.5
"""Of FluidSynth."""
TAIL = 1.5
"""Seconds that ring on after the last hit."""
LOWEST_SAMPLE_RATE, HIGHEST_SAMPLE_RATE = 16_000, 96_000
"""In Hz; a hi-hat sounds above 7,000 Hz, and FluidSynth goes no higher."""


def find_sound_font(folders: Sequence[Path] = SOUND_FONT_FOLDERS) -> Path | None:
    """The first General MIDI sound font (.sf2, .sf3) in the usual places, by folder and then by name."""
    for folder in folders:
        fonts = sorted(folder.glob("*.sf[23]"))
        if fonts:
            return fonts[0]
    return None


def render(midi: mido.MidiFile | Path, sound_font: Path | None = None, sample_rate: int = 44_100) -> Samples:
    """The sound of the drums of a MIDI file, at the file's tempo.

    The loudest moment always comes out just below full scale; velocities tell how loud the hits are beside each other.

    Args:
        midi: a file, read or to be read.
        sound_font: General MIDI sound font to play it with; by default the built-in synthesis, which knows the six
            drums of a drumroll and passes over other notes.
        sample_rate: in Hz, 16,000 to 96,000.

    Returns:
        [samples, 2], left and right, from -1 to 1.

    Raises:
        TenfoldError: the MIDI file or the sound font cannot be read, the sample rate is out of range, or what plays
            sound fonts is missing.
    """
    if not LOWEST_SAMPLE_RATE <= sample_rate <= HIGHEST_SAMPLE_RATE:
        raise TenfoldError(
            f"a sample rate is {LOWEST_SAMPLE_RATE} to {HIGHEST_SAMPLE_RATE} Hz, not {sample_rate}"
        )
    if isinstance(midi, Path):
        midi = _read(midi)
    if midi.type == 2:
        raise TenfoldError(
            "a MIDI file of type 2 holds pieces that are not played together; give type 0 or 1"
        )
    sound = _synthesise(midi, sample_rate) if sound_font is None else _play(midi, sound_font, sample_rate)
    return _normalised(sound)


def write_wav(path: Path, samples: NDArray[np.floating[Any]], sample_rate: int = 44_100) -> None:
    """Write 16-bit PCM, all of the file or nothing.

    Args:
        path: file to write; its folder is made.
        samples: [samples] or [samples, channels], from -1 to 1; what is beyond is cut off.
        sample_rate: in Hz.
    """
    channels = 1 if samples.ndim == 1 else samples.shape[1]
    whole = np.round(np.clip(samples, -1, 1) * 32767).astype("<i2")
    path.parent.mkdir(parents=True, exist_ok=True)
    with replaced(path) as temporary, wave.open(str(temporary), "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(2)
        file.setframerate(sample_rate)
        file.writeframes(whole.tobytes())


def hits_in_seconds(midi: mido.MidiFile) -> list[tuple[float, int, int]]:
    """(seconds, column, velocity) of every drum hit, at the file's tempo.

    Drums are what is played on channel 10; without any, the notes of all channels, as the authors' code writes them.
    """
    now = 0.0
    found = []
    for message in midi:
        now += message.time
        if message.type == "note_on" and message.velocity > 0 and message.note in COLUMN_OF_NOTE:
            hit = now, COLUMN_OF_NOTE[message.note], message.velocity
            found.append((message.channel == DRUM_CHANNEL, hit))
    only_drums = any(is_drum for is_drum, _ in found)
    return [hit for is_drum, hit in found if is_drum or not only_drums]


def drum_sound(column: int, sample_rate: int) -> Floats:
    """One hit of a drum [samples], at full velocity; the same each time."""
    voice = _VOICES[DRUMS[column].name]
    sound = voice.sound(sample_rate, np.random.default_rng(column))
    fade = min(len(sound), sample_rate // 50)
    sound[-fade:] *= np.linspace(1, 0, fade)  # else the end of what still rings would click
    scaled: Floats = voice.level * sound / np.abs(sound).max()
    return scaled


def _read(path: Path) -> mido.MidiFile:
    try:
        return mido.MidiFile(path)
    except FileNotFoundError:
        raise TenfoldError(f"there is no file {path}") from None
    except (OSError, ValueError, EOFError, IndexError, KeyError, TypeError) as error:
        raise TenfoldError(f"{path} is no complete MIDI file ({error or type(error).__name__})") from error


def _synthesise(midi: mido.MidiFile, sample_rate: int) -> Floats:
    hits = hits_in_seconds(midi)
    mixed = np.zeros((int((midi.length + TAIL) * sample_rate) + 1, 2))
    sounds: dict[int, Floats] = {}
    for seconds, column, velocity in hits:
        if column not in sounds:
            pan = _VOICES[DRUMS[column].name].pan * np.pi / 2
            sounds[column] = drum_sound(column, sample_rate)[:, None] * [np.cos(pan), np.sin(pan)]
        start = round(seconds * sample_rate)
        sound = sounds[column][: len(mixed) - start]
        mixed[start : start + len(sound)] += sound * (velocity / 127) ** 1.5
    return mixed


def _play(midi: mido.MidiFile, sound_font: Path, sample_rate: int) -> Samples:
    """Through FluidSynth, on the drum kit of a sound font; a hit rings on, as drums do."""
    try:
        import fluidsynth
    except ImportError as error:
        raise TenfoldError(
            'a sound font is played by FluidSynth: pip install "tenfold-drum-gpt[soundfont]" and the system\'s '
            "libfluidsynth, or leave the sound font out"
        ) from error
    if not _is_sound_font(sound_font):
        raise TenfoldError(f"{sound_font} is no sound font; leave it out for the built-in synthesis")
    player = fluidsynth.Synth(gain=GAIN, samplerate=float(sample_rate))
    try:
        font = player.sfload(str(sound_font))
        if font < 0 or player.program_select(DRUM_CHANNEL, font, DRUM_BANK, 0) < 0:
            raise TenfoldError(f"{sound_font} has no drum kit that can be played; choose another sound font")
        parts, played = [], 0
        for seconds, column, velocity in hits_in_seconds(midi):
            until = round(seconds * sample_rate)
            if until > played:
                parts.append(player.get_samples(until - played))
                played = until
            player.noteon(DRUM_CHANNEL, DRUMS[column].notes[0], velocity)
        parts.append(player.get_samples(int((midi.length + TAIL) * sample_rate) + 1 - played))
    finally:
        player.delete()
    return np.concatenate(parts).reshape(-1, 2).astype(np.float32) / np.float32(32768)


def _is_sound_font(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(4) == b"RIFF"
    except OSError:
        return False


def _normalised(sound: NDArray[Any]) -> Samples:
    """Loud peaks are rounded off softly, then the whole is brought to just below full scale."""
    peak = float(np.abs(sound).max(initial=0.0))
    if peak == 0:
        return sound.astype(np.float32)
    bent = np.tanh(1.5 * sound / peak)
    scaled: Samples = (0.95 * bent / np.abs(bent).max()).astype(np.float32)
    return scaled


def _times(seconds: float, sample_rate: int) -> Floats:
    return np.arange(int(seconds * sample_rate)) / sample_rate


def _noise(times: Floats, lowest: float, sample_rate: int, rng: np.random.Generator) -> Floats:
    """White noise above a frequency in Hz, at most 1."""
    high_pass = butter(4, lowest, "highpass", fs=sample_rate, output="sos")
    filtered: Floats = sosfilt(high_pass, rng.standard_normal(len(times)))
    filtered /= np.abs(filtered).max()
    return filtered


def _gliding(times: Floats, start: float, end: float, seconds: float) -> Floats:
    """A sine whose frequency falls exponentially from one to another, in Hz."""
    phase = end * times + (start - end) * seconds * (1 - np.exp(-times / seconds))
    sine: Floats = np.sin(2 * np.pi * phase)
    return sine


def _metal(times: Floats, partials: Sequence[float], rng: np.random.Generator) -> Floats:
    """Sines of no common fundamental, as metal rings; partials in Hz."""
    phases = rng.uniform(0, 2 * np.pi, len(partials))
    ringing: Floats = np.sin(2 * np.pi * np.outer(times, partials) + phases).mean(axis=1)
    return ringing


def _kick(sample_rate: int, rng: np.random.Generator) -> Floats:
    times = _times(0.6, sample_rate)
    click = _noise(times, 2000, sample_rate, rng) * np.exp(-times / 0.004)
    return _gliding(times, 160, 48, 0.03) * np.exp(-times / 0.12) + 0.2 * click


def _snare(sample_rate: int, rng: np.random.Generator) -> Floats:
    times = _times(0.45, sample_rate)
    tone = _gliding(times, 260, 185, 0.02) * np.exp(-times / 0.06)
    return 0.45 * tone + 0.75 * _noise(times, 700, sample_rate, rng) * np.exp(-times / 0.09)


def _toms(sample_rate: int, rng: np.random.Generator) -> Floats:
    times = _times(0.8, sample_rate)
    skin = _noise(times, 800, sample_rate, rng) * np.exp(-times / 0.01)
    return _gliding(times, 210, 120, 0.05) * np.exp(-times / 0.16) + 0.15 * skin


def _hi_hat(sample_rate: int, rng: np.random.Generator) -> Floats:
    times = _times(0.2, sample_rate)
    return _noise(times, 7000, sample_rate, rng) * np.exp(-times / 0.035)


def _ride(sample_rate: int, rng: np.random.Generator) -> Floats:
    times = _times(1.4, sample_rate)
    stick = _noise(times, 6000, sample_rate, rng) * np.exp(-times / 0.05)
    shimmer = _noise(times, 5000, sample_rate, rng) * np.exp(-times / 0.3)
    bell = _metal(times, (611, 1013, 1597, 2731, 4409, 6143), rng) * np.exp(-times / 0.35)
    return 0.6 * stick + 0.4 * shimmer + 0.35 * bell


def _crash(sample_rate: int, rng: np.random.Generator) -> Floats:
    times = _times(1.5, sample_rate)
    wash = _noise(times, 3000, sample_rate, rng) * np.exp(-times / 0.4)
    bell = _metal(times, (419, 733, 1181, 1879, 2971, 4703), rng) * np.exp(-times / 0.3)
    return wash + 0.3 * bell


class _Voice(NamedTuple):
    sound: Callable[[int, np.random.Generator], Floats]
    level: float
    """Its highest sample at full velocity."""
    pan: float
    """0 is left, 1 is right."""


_VOICES = {
    "crash": _Voice(_crash, 0.6, 0.3),
    "ride": _Voice(_ride, 0.4, 0.7),
    "snare": _Voice(_snare, 0.9, 0.5),
    "kick": _Voice(_kick, 1.0, 0.5),
    "hi-hat": _Voice(_hi_hat, 0.4, 0.35),
    "toms": _Voice(_toms, 0.8, 0.6),
}
