"""Drums that can be heard: MIDI to sound, through a sound font or a small synthesis of our own, and WAV files."""

from __future__ import annotations

import wave
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import mido
import numpy as np
from numpy.typing import NDArray
from scipy.signal import butter, sosfilt

from tenfold.drum_gpt.encoding import COLUMN_OF_NOTE, DRUM_CHANNEL, DRUMS
from tenfold.shared.logging import TenfoldError
from tenfold.shared.runs import replaced

Samples = NDArray[np.float32]
SOUND_FONT_FOLDERS = (
    "/usr/share/sounds/sf2",
    "/usr/share/sounds/sf3",
    "/usr/share/soundfonts",
    "/usr/local/share/soundfonts",
    "/opt/homebrew/share/soundfonts",
    "/opt/homebrew/share/fluid-synth/sf2",
)
DRUM_BANK = 128
"""Of General MIDI sound fonts."""
TAIL = 1.5
"""Seconds that ring on after the last hit."""


def find_sound_font() -> Path | None:
    """The first sound font in the usual places, by folder and then by name."""
    for folder in map(Path, SOUND_FONT_FOLDERS):
        fonts = sorted(folder.glob("*.sf[23]")) if folder.is_dir() else []
        if fonts:
            return fonts[0]
    return None


def render(midi: mido.MidiFile, sound_font: Path | None = None, sample_rate: int = 44_100) -> Samples:
    """The sound of a MIDI file.

    Args:
        midi: of drums.
        sound_font: General MIDI sound font to play it with; by default the built-in synthesis.
        sample_rate: in Hz.

    Returns:
        [samples, 2], from -1 to 1.

    Raises:
        TenfoldError: the sound font cannot be read, or the package that plays it is missing.
    """
    if sound_font is None:
        return _normalised(_synthesise(midi, sample_rate))
    return _normalised(_play(midi, sound_font, sample_rate))


def write_wav(path: Path, samples: NDArray[np.floating[Any]], sample_rate: int = 44_100) -> None:
    """Write 16-bit PCM.

    Args:
        path: file to write.
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
    """(seconds, column, velocity) of every drum hit, at the file's tempo."""
    now = 0.0
    found = []
    for message in midi:
        now += message.time
        if message.type == "note_on" and message.velocity > 0 and message.note in COLUMN_OF_NOTE:
            found.append((now, COLUMN_OF_NOTE[message.note], message.velocity))
    return found


def drum_sound(column: int, sample_rate: int) -> NDArray[np.float64]:
    """One hit of a drum [samples], at full velocity; the same each time."""
    return _SOUNDS[DRUMS[column].name](sample_rate, np.random.default_rng(column))


def _play(midi: mido.MidiFile, sound_font: Path, sample_rate: int) -> Samples:
    """Through FluidSynth, on the drum kit of a sound font; a hit rings on, as drums do."""
    try:
        import fluidsynth
    except ImportError as error:
        raise TenfoldError(
            'a sound font is played by FluidSynth: pip install "tenfold-drum-gpt[soundfont]" and the system\'s '
            "libfluidsynth, or leave out --sound-font"
        ) from error
    with sound_font.open("rb") if sound_font.is_file() else nullcontext() as file:
        if file is None or file.read(4) != b"RIFF":
            raise TenfoldError(
                f"{sound_font} is no sound font; leave out --sound-font for the built-in synthesis"
            )
    player = fluidsynth.Synth(gain=0.5, samplerate=float(sample_rate))
    try:
        font = player.sfload(str(sound_font))
        if font < 0 or player.program_select(DRUM_CHANNEL, font, DRUM_BANK, 0) < 0:
            raise TenfoldError(f"{sound_font} has no drum kit that can be played; choose another sound font")
        parts, played = [], 0
        hits = hits_in_seconds(midi)
        for seconds, column, velocity in hits:
            until = round(seconds * sample_rate)
            if until > played:
                parts.append(player.get_samples(until - played))
                played = until
            player.noteon(DRUM_CHANNEL, DRUMS[column].notes[0], velocity)
        length = int((max(midi.length, hits[-1][0] if hits else 0.0) + TAIL) * sample_rate) + 1
        parts.append(player.get_samples(length - played))
    finally:
        player.delete()
    return np.concatenate(parts).reshape(-1, 2).astype(np.float32) / np.float32(32768)


def _synthesise(midi: mido.MidiFile, sample_rate: int) -> NDArray[np.float64]:
    hits = hits_in_seconds(midi)
    length = max(midi.length, hits[-1][0] if hits else 0.0) + TAIL
    mixed = np.zeros((int(length * sample_rate) + 1, 2))
    sounds = {column: drum_sound(column, sample_rate) for column in {column for _, column, _ in hits}}
    for seconds, column, velocity in hits:
        start = round(seconds * sample_rate)
        sound = sounds[column][: len(mixed) - start] * (velocity / 127) ** 1.5
        mixed[start : start + len(sound)] += sound[:, None] * _PLACES[column]
    return mixed


def _normalised(sound: NDArray[Any]) -> Samples:
    """Loud peaks are rounded off softly, then the whole is brought to just below full scale."""
    peak = float(np.abs(sound).max(initial=0.0))
    if peak == 0:
        return sound.astype(np.float32)
    bent = np.tanh(1.5 * sound / peak)
    loud: Samples = (0.95 * bent / np.abs(bent).max()).astype(np.float32)
    return loud


def _times(seconds: float, sample_rate: int) -> NDArray[np.float64]:
    return np.arange(int(seconds * sample_rate)) / sample_rate


def _noise(
    times: NDArray[np.float64], lowest: float, sample_rate: int, rng: np.random.Generator
) -> NDArray[np.float64]:
    """White noise above a frequency in Hz."""
    highpass = butter(4, min(lowest, 0.45 * sample_rate), "highpass", fs=sample_rate, output="sos")
    filtered: NDArray[np.float64] = sosfilt(highpass, rng.standard_normal(len(times)))
    filtered /= np.abs(filtered).max()
    return filtered


def _gliding(times: NDArray[np.float64], start: float, end: float, seconds: float) -> NDArray[np.float64]:
    """A sine whose frequency falls exponentially from one to another, in Hz."""
    phase = end * times + (start - end) * seconds * (1 - np.exp(-times / seconds))
    return np.sin(2 * np.pi * phase)


def _kick(sample_rate: int, rng: np.random.Generator) -> NDArray[np.float64]:
    times = _times(0.5, sample_rate)
    click = _noise(times, 2000, sample_rate, rng) * np.exp(-times / 0.004)
    return _gliding(times, 160, 48, 0.03) * np.exp(-times / 0.12) + 0.2 * click


def _snare(sample_rate: int, rng: np.random.Generator) -> NDArray[np.float64]:
    times = _times(0.4, sample_rate)
    tone = _gliding(times, 260, 185, 0.02) * np.exp(-times / 0.06)
    return 0.45 * tone + 0.55 * _noise(times, 1500, sample_rate, rng) * np.exp(-times / 0.09)


def _toms(sample_rate: int, rng: np.random.Generator) -> NDArray[np.float64]:
    times = _times(0.6, sample_rate)
    skin = _noise(times, 800, sample_rate, rng) * np.exp(-times / 0.01)
    return 0.8 * _gliding(times, 210, 120, 0.05) * np.exp(-times / 0.16) + 0.1 * skin


def _hi_hat(sample_rate: int, rng: np.random.Generator) -> NDArray[np.float64]:
    times = _times(0.2, sample_rate)
    return 0.4 * _noise(times, 7000, sample_rate, rng) * np.exp(-times / 0.035)


def _ride(sample_rate: int, rng: np.random.Generator) -> NDArray[np.float64]:
    times = _times(1.2, sample_rate)
    partials = (410.0, 611.0, 1013.0, 1597.0, 2731.0, 4409.0)  # of no common fundamental, as in metal
    bell = sum(np.sin(2 * np.pi * partial * times) for partial in partials) / len(partials)
    return (0.15 * bell + 0.25 * _noise(times, 6000, sample_rate, rng)) * np.exp(-times / 0.3)


def _crash(sample_rate: int, rng: np.random.Generator) -> NDArray[np.float64]:
    times = _times(1.5, sample_rate)
    return 0.5 * _noise(times, 4000, sample_rate, rng) * np.exp(-times / 0.45)


_SOUNDS: dict[str, Callable[[int, np.random.Generator], NDArray[np.float64]]] = {
    "crash": _crash,
    "ride": _ride,
    "snare": _snare,
    "kick": _kick,
    "hi-hat": _hi_hat,
    "toms": _toms,
}
_PAN = {"crash": 0.3, "ride": 0.7, "snare": 0.5, "kick": 0.5, "hi-hat": 0.35, "toms": 0.6}
_PLACES = [
    np.array([np.cos(_PAN[drum.name] * np.pi / 2), np.sin(_PAN[drum.name] * np.pi / 2)]) for drum in DRUMS
]
"""Loudness left and right of each drum."""
