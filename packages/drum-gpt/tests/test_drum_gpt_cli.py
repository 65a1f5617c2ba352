"""Commands as a user calls them, and what they say when something cannot be."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mido
import pytest
import torch

from tenfold.drum_gpt.checkpoints import artifact
from tenfold.drum_gpt.cli import main
from tenfold.drum_gpt.config import RunConfig, TrainConfig
from tenfold.drum_gpt.corpus import bundled_midi, pieces_of
from tenfold.drum_gpt.encoding import midi_to_drumroll
from tenfold.drum_gpt.structure import measures_of
from tenfold.shared.runs import save_atomically

Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def call(
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> Call:
    """Runs a command in an empty folder; exit status, what was printed, what was said."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: object) -> tuple[int, str, str]:
        caplog.clear()
        with pytest.raises(SystemExit) as ended:
            main([str(argument) for argument in arguments])
        code = ended.value.code
        printed = capsys.readouterr()
        return (
            (code if isinstance(code, int) else int(code is not None)),
            printed.out,
            printed.err + caplog.text,
        )

    return run


@pytest.fixture
def groove(tmp_path: Path) -> Path:
    """A test piece as MIDI."""
    path = tmp_path / "groove.mid"
    path.write_bytes(bundled_midi()["7_53_rock_135_beat_4-4"])
    return path


@pytest.fixture
def checkpoint(tmp_path: Path, make_model: Any) -> Callable[..., Path]:
    """Stores a network with random weights, as if it had been trained so."""

    def store(**training: Any) -> Path:
        config = RunConfig(train=TrainConfig(max_length=3000, **training), test_pieces=2)
        return save_and_name(tmp_path / "model.pt", artifact(make_model(), config))

    return store


def save_and_name(path: Path, content: Any) -> Path:
    save_atomically(path, content)
    return path


def test_a_groove_is_continued_out_of_the_box(call: Call, groove: Path, tmp_path: Path) -> None:
    status, _, said = call(
        "generate", "--prompt", groove, "--output", "out", "--count", 2, "--sample.measures", 3
    )
    assert status == 0
    assert "n-gram model" in said
    out = tmp_path / "out"
    assert {path.name for path in out.iterdir()} == {
        "groove.png",
        *(f"groove-{number}.{kind}" for number in (1, 2) for kind in ("mid", "txt", "wav")),
    }
    played = midi_to_drumroll(groove)
    assert played is not None
    for number in (1, 2):
        text = (out / f"groove-{number}.txt").read_text()
        assert len(text.splitlines()) == 5 * 16
        assert text[: 32 * 7] == played[: 32 * 7]
        again = midi_to_drumroll(out / f"groove-{number}.mid")
        assert again is not None
        assert again.startswith(text)
    assert (out / "groove-1.txt").read_text() != (out / "groove-2.txt").read_text()


def test_a_network_continues_with_a_feel_and_from_a_text(
    call: Call, checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    (tmp_path / "mine.txt").write_text(pieces_of("test")[0].text)
    settings = ("--sample.measures", 2, "--humanise", "--style", "rock", "--bpm", 96)
    status, _, _ = call(
        "generate",
        "--prompt",
        "mine.txt",
        "--output",
        "out",
        "--checkpoint",
        checkpoint(),
        "--device",
        "cpu",
        *settings,
    )
    assert status == 0
    file = mido.MidiFile(tmp_path / "out" / "mine.mid")
    tempos = [mido.tempo2bpm(message.tempo) for message in file.tracks[0] if message.type == "set_tempo"]
    assert tempos == [pytest.approx(96, abs=0.01)]
    assert len({message.velocity for message in file.tracks[1] if message.type == "note_on"}) > 5


def test_a_measure_is_filled_in_and_the_others_stay(
    call: Call, checkpoint: Callable[..., Path], groove: Path, tmp_path: Path
) -> None:
    path = checkpoint(infill_rate=0.5)
    status, _, _ = call(
        "generate",
        "--prompt",
        groove,
        "--output",
        "out",
        "--checkpoint",
        path,
        "--infill",
        3,
        "--device",
        "cpu",
    )
    assert status == 0
    before = measures_of(midi_to_drumroll(groove) or "")
    after = measures_of((tmp_path / "out" / "groove.txt").read_text())
    assert [
        number for number, pair in enumerate(zip(before, after, strict=True), start=1) if pair[0] != pair[1]
    ] == [3]


def test_conditions_reach_networks_that_learned_them(
    call: Call, checkpoint: Callable[..., Path], groove: Path
) -> None:
    where = ("generate", "--prompt", groove, "--output", "out", "--sample.measures", 1, "--device", "cpu")
    conditioned = checkpoint(condition=True)
    assert call(*where, "--checkpoint", conditioned, "--style", "funk")[0] == 0
    status, _, said = call(*where, "--checkpoint", conditioned)
    assert (status, "was trained with conditions: give --style" in said) == (2, True)
    status, _, said = call(*where, "--checkpoint", checkpoint(), "--style", "funk")
    assert (status, "knows no styles" in said) == (2, True)


def test_midi_files_become_texts_and_texts_midi_files(call: Call, tmp_path: Path) -> None:
    folder = tmp_path / "midi" / "below"
    folder.mkdir(parents=True)
    names = list(bundled_midi())[:3]
    for name in names:
        (folder / f"{name}.mid").write_bytes(bundled_midi()[name])
    status, _, _ = call("encode", "midi", "--output", "texts")
    texts = sorted((tmp_path / "texts").rglob("*.txt"))
    expected = {name: midi_to_drumroll(bundled_midi()[name]) for name in names}
    assert {path.stem: path.read_text() for path in texts} == {
        name: text for name, text in expected.items() if text
    }
    assert status == 0
    for options in ((), ("--bpm", 90, "--humanise")):
        assert call("decode", "texts", "--output", "again", *options)[0] == 0
        for path in texts:
            assert midi_to_drumroll(tmp_path / "again" / "below" / f"{path.stem}.mid") == path.read_text()


def test_damaged_files_are_named_and_left_out(call: Call, tmp_path: Path, groove: Path) -> None:
    folder = tmp_path / "midi"
    folder.mkdir()
    (folder / "whole.mid").write_bytes(groove.read_bytes())
    (folder / "cut.mid").write_bytes(groove.read_bytes()[:500])
    status, _, said = call("encode", folder, "--output", "texts")
    assert status == 1
    assert "cut.mid is no complete MIDI file" in said
    assert [path.name for path in (tmp_path / "texts").iterdir()] == ["whole.txt"]


def test_folders_are_analysed_beside_each_other(call: Call, tmp_path: Path) -> None:
    for name, texts in (
        ("human", [piece.text for piece in pieces_of("test")]),
        ("rest", ["------\n" * 256]),
    ):
        (tmp_path / name).mkdir()
        for number, text in enumerate(texts):
            (tmp_path / name / f"{number:02}.txt").write_text(text)
    table = tmp_path / "labels.csv"
    table.write_text("name,pattern,fill,musical,unsteady,deviates,short\n00,Consistent,yes,yes,x,x,\n")
    status, printed, _ = call("analyse", "human", "rest", "--csv", "numbers.csv", "--annotations", table)
    assert status == 0
    assert "5.079" in printed
    assert "467" in printed
    assert "pattern: Consistent" in printed
    with (tmp_path / "numbers.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 38
    assert float(rows[-1]["mean_stability"]) == 0.0


def test_one_network_is_trained_judged_and_used(call: Call, tmp_path: Path) -> None:
    small = (
        "--model.name", "characters", "--model.start", "random", "--model.layers", 1, "--model.prune-vocabulary",
        "--train.steps", 2, "--train.batch-size", 2, "--train.window", 128, "--train.eval-pieces", 1,
        "--train.eval-measures", 1, "--sample.measures", 1, "--sample.max-new-tokens", 150, "--test-pieces", 2,
        "--device", "cpu",
    )  # fmt: skip
    status, _, said = call("train", *small)
    assert status == 0, said
    (path,) = (tmp_path / "runs").rglob("model.pt")
    assert call("train", *small)[0] == 0
    status, printed, _ = call("evaluate", "--checkpoint", path, "--device", "cpu")
    assert status == 0
    assert "test_nats_per_line" in printed
    assert "free_malformed_rate" in printed
    assert torch.load(path, weights_only=True)["kept"] is not None


def test_profiles_are_listed(call: Call) -> None:
    status, printed, _ = call("reproduce", "--profile", "list")
    assert status == 0
    assert {line.split()[0] for line in printed.splitlines()} >= {"smoke", "quick", "h100", "groove-gpt2-xl"}


def write_midi(path: Path, *tracks: list[mido.Message | mido.MetaMessage]) -> None:
    file = mido.MidiFile(type=1)
    file.tracks += [mido.MidiTrack(track) for track in tracks]
    file.save(path)


@pytest.fixture
def odd_files(tmp_path: Path) -> None:
    note = mido.Message("note_on", note=38, velocity=90, time=0)
    write_midi(tmp_path / "odd.mid", [mido.MetaMessage("time_signature", numerator=6, denominator=8), note])
    piano = [mido.Message("note_on", channel=channel, note=60, velocity=90) for channel in (0, 1)]
    write_midi(tmp_path / "piano.mid", [], [piano[0]], [piano[1]])
    write_midi(tmp_path / "silent.mid", [])
    write_midi(tmp_path / "melody.mid", [piano[0]])
    (tmp_path / "cut.mid").write_bytes(b"MThd\x00\x00")
    (tmp_path / "empty").mkdir()
    (tmp_path / "malformed.txt").write_text("o-o\n" * 64)


@pytest.mark.usefixtures("odd_files")
@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("reproduce", "--profile", "nope"), "unknown profile 'nope'; choose one of smoke"),
        (("reproduce", "--methods", "magic"), "--methods takes some of pre-trained"),
        (("reproduce", "--seeds", 1, 1), "each once"),
        (
            ("generate", "--prompt", "odd.mid", "--output", "x"),
            "odd.mid is in 6/8; drumrolls count quarter notes",
        ),
        (("generate", "--prompt", "piano.mid", "--output", "x"), "piano.mid has no drum track"),
        (("generate", "--prompt", "melody.mid", "--output", "x"), "note 60 is none of the six drums"),
        (("generate", "--prompt", "silent.mid", "--output", "x"), "silent.mid has no two measures of drums"),
        (("generate", "--prompt", "cut.mid", "--output", "x"), "cut.mid is no complete MIDI file"),
        (("generate", "--prompt", "absent.mid", "--output", "x"), "there is no file absent.mid"),
        (("generate", "--prompt", "malformed.txt", "--output", "x"), "is not six characters of o and -"),
        (("generate", "--prompt", "cut.mid", "--output", "x", "--count", 0), "--count is at least 1"),
        (("evaluate", "--checkpoint", "absent.pt"), "absent.pt"),
        (("encode", "empty", "--output", "x"), "there is no MIDI file in empty"),
        (("decode", "empty", "--output", "x"), "there is no drumroll in empty"),
        (("decode", "malformed.txt", "--output", "x", "--official", "--bpm", 90), "--official has 120 bpm"),
        (("analyse", "nowhere"), "there is no file or folder nowhere"),
        (("train", "--train.warmup", 2), "are shares from 0 to 1"),
        (("train", "--model.start", "random", "--model.lora-rank", 4), "LoRA changes a pre-trained network"),
        (("train", "--model.layers", 0), "--model.layers is at least 1"),
        (("train", "--sample.temperature", 0), "--sample.temperature is positive"),
    ],
)
def test_what_cannot_be_is_said_in_one_sentence(
    arguments: tuple[object, ...], sentence: str, call: Call, tmp_path: Path
) -> None:
    status, _, said = call(*arguments)
    assert status == 2
    assert sentence in said
    assert "Traceback" not in said
    assert not (tmp_path / "x").exists()


def test_infilling_needs_a_network_that_learned_it(
    call: Call, groove: Path, checkpoint: Callable[..., Path]
) -> None:
    where = ("generate", "--prompt", groove, "--output", "x", "--infill")
    assert "give --checkpoint" in call(*where, 2)[2]
    assert "never learned to fill in measures" in call(*where, 2, "--checkpoint", checkpoint())[2]
    assert "a measure from 1 to 16, not 17" in call(*where, 17)[2]
