"""Command line: ``tenfold-drum-gpt reproduce | train | evaluate | generate | encode | decode | analyse``."""

from __future__ import annotations

import csv
import importlib.util
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated

import mido
import numpy as np
import tyro
from lightning_fabric import Fabric
from rich.console import Console
from rich.table import Table

from tenfold.drum_gpt.annotations import count_annotations, read_annotations
from tenfold.drum_gpt.checkpoints import artifact, load_artifact
from tenfold.drum_gpt.config import ModelConfig, RunConfig, SampleConfig, TrainConfig
from tenfold.drum_gpt.continuations import let_drum, training_drumrolls
from tenfold.drum_gpt.corpus import Split, bundled_pieces, pieces_of
from tenfold.drum_gpt.encoding import (
    MEASURE,
    drumroll_to_midi,
    files_in,
    midi_files_to_drumrolls,
    performance_to_drumroll,
    read_midi,
)
from tenfold.drum_gpt.experiments import (
    DATASET,
    MAIN_METRICS,
    PAPER,
    Suite,
    fine_tune,
    finish,
    identity,
    judge,
    official_metrics,
    reproduce,
    with_weights_at_hand,
)
from tenfold.drum_gpt.figures import draw_piano_rolls
from tenfold.drum_gpt.generation import complete
from tenfold.drum_gpt.ngram import LineNgram, as_completion
from tenfold.drum_gpt.performance import Feel, humanise
from tenfold.drum_gpt.profiles import PROFILES, Profile
from tenfold.drum_gpt.prompts import (
    PROMPT_LINES,
    Example,
    condition,
    infilling,
    lines_of,
    prompt_of,
    to_drumroll,
    without_silent_beginning,
    without_silent_end,
)
from tenfold.drum_gpt.rendering import find_sound_font, render, write_wav
from tenfold.drum_gpt.structure import measure_stability, structural_summary
from tenfold.shared.accelerator import AcceleratorConfig, launch_fabric
from tenfold.shared.comparison import load_reported, print_comparison
from tenfold.shared.logging import TenfoldError, errors_in_one_line, get_logger, set_quiet
from tenfold.shared.runs import Run, RunKey, config_hash, replaced

logger = get_logger("drum-gpt")

Quiet = Annotated[bool, tyro.conf.arg(aliases=["-q"])]
Accelerator = Annotated[AcceleratorConfig, tyro.conf.arg(name="")]  # --device, not --accelerator.device
TEXTS = (".txt",)
NGRAM_ORDER = 32
"""Lines that the n-gram model of `generate` looks back on: more than predict best, but it keeps to its groove."""
QUICK_NETWORK = Path("runs", PAPER, "quick", "pre-trained-seed0", "model.pt")


@dataclass(frozen=True)
class Reproduce:
    """Run a profile's suite, compare it with printed numbers, and fail if a claim does not hold."""

    profile: str = "quick"
    """Which suite; `--profile list` prints them."""
    seeds: tuple[int, ...] | None = None
    """Seeds instead of the profile's."""
    methods: tuple[str, ...] | None = None
    """Some of the profile's methods, by name."""
    output: Path = Path("runs")
    """Directory of all runs."""
    download: bool = False
    """Fetch what is missing and can be fetched: models of the hub."""
    force: bool = False
    """Repeat runs that are finished."""
    workers: int | None = None
    """Processes that share the runs; by default one for each CPU core, four at the most, and one on a GPU."""
    accelerator: Accelerator = field(default_factory=AcceleratorConfig)
    checkpoint_seconds: float | None = None
    """Time between two checkpoints of a run, by default the profile's; they follow a look at the development set."""
    quiet: Quiet = False
    """Only warnings, errors and the final tables."""

    def run(self) -> int:
        profile = with_weights_at_hand(_profile(self.profile))
        if self.seeds is not None:
            if not self.seeds or len(set(self.seeds)) < len(self.seeds):
                raise TenfoldError("give --seeds at least one number, each once")
            profile = replace(profile, seeds=self.seeds)
        if self.methods is not None:
            unknown = [method for method in self.methods if method not in profile.methods]
            if unknown or not self.methods:
                raise TenfoldError(f"--methods takes some of {', '.join(profile.methods)}")
            profile = replace(profile, methods={name: profile.methods[name] for name in self.methods})
        suite = Suite(
            self.profile,
            profile,
            self.output,
            self.download,
            self.force,
            profile.checkpoint_seconds if self.checkpoint_seconds is None else self.checkpoint_seconds,
            self.accelerator,
        )
        results = reproduce(suite, self.workers, self.quiet)
        if not suite.fabric.is_global_zero:
            return 0
        verdicts = print_comparison(load_reported("tenfold.drum_gpt"), results, self.profile, MAIN_METRICS)
        failed = [verdict.claim.id for verdict in verdicts if verdict.holds is False]
        if failed:
            logger.error("claims that do not hold: %s", ", ".join(failed))
        return 1 if failed else 0


@dataclass(frozen=True)
class Train:
    """Fine-tune one language model on Groove, with every hyperparameter."""

    model: ModelConfig = field(default_factory=ModelConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    sample: SampleConfig = field(default_factory=SampleConfig)
    test_pieces: int | None = None
    """Only so many test pieces are continued in the end; by default all."""
    seed: int = 0
    """Seed of random weights, the order, the windows, and the draws."""
    output: Path = Path("runs")
    """Directory of all runs."""
    download: bool = False
    """Fetch what is missing and can be fetched: a model of the hub."""
    accelerator: Accelerator = field(default_factory=AcceleratorConfig)
    checkpoint_seconds: float = 15.0
    """Time between two checkpoints; they are written after a look at the development set."""
    quiet: Quiet = False
    """Only warnings and errors."""

    def run(self) -> int:
        config = RunConfig(self.model, self.train, self.sample, self.test_pieces)
        fabric = launch_fabric(self.accelerator)
        record = {**identity(config), "seed": self.seed}
        method = (
            "LoRA" if self.model.lora_rank else {"random": "scratch"}.get(self.model.start, "pre-trained")
        )
        name = f"{Path(self.model.name).name}-{config_hash(record)[:8]}"
        key = RunKey(PAPER, "single", name, self.seed, DATASET, "single", method)
        run = Run(self.output, key, record, "step", self.checkpoint_seconds, fabric.is_global_zero)
        if run.is_finished:
            logger.info("this run is done already: %s", run.directory / "model.pt")
            return 0
        with run:
            model, metrics, throughput = fine_tune(
                config, self.seed, fabric, run, self.accelerator.compile, self.download
            )
            if fabric.is_global_zero:
                metrics |= let_drum(model, config, self.seed, "test", fabric, run)
            path = run.save_artifact("model.pt", artifact(model, config))
            finish(run, metrics, throughput)
        logger.info("network in %s", path)
        return 0


@dataclass(frozen=True)
class Evaluate:
    """Judge a fine-tuned network on pieces that it never saw: likelihood, form and music of its continuations."""

    checkpoint: Path
    """model.pt of a run."""
    split: Split = "test"
    """Which pieces."""
    pieces: int | None = None
    """Only so many of them are continued."""
    seed: int = 0
    """Seed of the draws."""
    accelerator: Accelerator = field(default_factory=AcceleratorConfig)

    def run(self) -> int:
        fabric = _one_process(self.accelerator)
        model, config = load_artifact(self.checkpoint)
        if self.pieces is not None:
            config = replace(config, test_pieces=self.pieces)
        model.network.to(fabric.device)  # type: ignore[arg-type]
        metrics = judge(model, pieces_of(self.split), config.train, fabric).metrics(self.split)
        metrics |= let_drum(model, config, self.seed, self.split, fabric, None)
        _print_table(f"{self.checkpoint}: {self.split}", {"value": metrics})
        return 0


@dataclass(frozen=True)
class Generate:
    """Continue a drum performance: MIDI, WAV, a piano roll and the text, of one or several continuations."""

    prompt: Path
    """MIDI file, or a drumroll (.txt); its first two measures that are not silent are the prompt."""
    output: Path
    """Folder to write to."""
    checkpoint: Path | None = None
    """model.pt of a run; by default that of the quick profile in runs/, else an n-gram model of the bundled pieces."""
    count: int = 1
    """Continuations, drawn together."""
    sample: SampleConfig = field(default_factory=SampleConfig)
    infill: int | None = None
    """Write this measure of the piece anew, from 1, instead of a continuation; for networks trained with infilling."""
    style: str | None = None
    """For networks trained with conditions (funk, jazz, ...); also the feel of --humanise."""
    bpm: float | None = None
    """Tempo; by default the prompt's."""
    humanise: bool = False
    """Velocities and timing of drummers instead of a machine's."""
    strength: float = 1.0
    """How far --humanise goes: 0 is on the grid."""
    sound_font: Path | None = None
    """General MIDI sound font (.sf2, .sf3) to play with; by default one that is found in the usual places."""
    synthesis: bool = False
    """The built-in synthesis, even where a sound font is found."""
    skip_unknown: bool = False
    """Pass by notes that are none of the six drums."""
    seed: int = 0
    """Seed of the draws."""
    accelerator: Accelerator = field(default_factory=AcceleratorConfig)
    quiet: Quiet = False
    """Only warnings and errors."""

    def run(self) -> int:
        if self.count < 1 or self.seed < 0:
            raise TenfoldError("--count is at least 1, --seed at least 0")
        if self.bpm is not None and not 4 <= self.bpm <= 1000:
            raise TenfoldError(f"--bpm is from 4 to 1000, not {self.bpm:g}")
        font = self._sound_font()
        text, tempo, beats = _read_drumroll(self.prompt, self.skip_unknown)
        bpm = tempo if self.bpm is None else self.bpm
        feel = Feel.load(self.style) if self.humanise else None
        example = self._example(text)
        completions = self._complete(example, bpm)
        self.output.mkdir(parents=True, exist_ok=True)
        rolls = {}
        for number, completion in enumerate(completions, start=1):
            groove = self._groove(text, example, completion)
            name = self.prompt.stem if self.count == 1 else f"{self.prompt.stem}-{number}"
            hits = humanise(groove, feel, self.seed + number, self.strength) if feel else None
            midi = drumroll_to_midi(groove, bpm=bpm, hits=hits, beats=beats)
            self._write(name, groove, midi, font)
            rolls[name] = groove
        rest = without_silent_beginning(text.splitlines())
        if len(rest) > PROMPT_LINES and self.infill is None:
            rolls[f"{self.prompt.stem}, as it was played"] = "".join(f"{line}\n" for line in rest)
        given = PROMPT_LINES if self.infill is None else 0
        with replaced(self.output / f"{self.prompt.stem}.png") as temporary:
            draw_piano_rolls(rolls, given, temporary)
        logger.info("%d grooves in %s", len(completions), self.output)
        return 0

    def _example(self, text: str) -> Example:
        if self.infill is None:
            return Example(prompt_of(text, str(self.prompt)), "")
        measures = len(text.splitlines()) // MEASURE
        if not 1 <= self.infill <= measures:
            raise TenfoldError(f"--infill is a measure from 1 to {measures}, not {self.infill}")
        return infilling(text, self.infill - 1)

    def _complete(self, example: Example, bpm: float) -> list[str]:
        only_feel = self.humanise or self.style is None
        checkpoint = self.checkpoint or (QUICK_NETWORK if QUICK_NETWORK.is_file() else None)
        if checkpoint is None:
            if self.infill is not None or not only_feel:
                raise TenfoldError("--infill and --style need a network that learned them: give --checkpoint")
            logger.warning(
                "no --checkpoint: an n-gram model of the bundled pieces drums; `tenfold-drum-gpt reproduce` leaves a "
                "language model in %s",
                QUICK_NETWORK,
            )
            # Pieces are filled up with silence, which a model of a few lines never leaves again.
            model = LineNgram(map(without_silent_end, training_drumrolls()), order=NGRAM_ORDER)
            generator = np.random.default_rng(self.seed)
            given, lines = lines_of(example.prompt), self.sample.measures * MEASURE
            return [as_completion(model.continue_piece(given, lines, generator)) for _ in range(self.count)]
        network, config = load_artifact(checkpoint)
        learned = config.train
        if self.infill is not None and not learned.infill_rate:
            raise TenfoldError(
                f"{checkpoint} never learned to fill in measures; train with --train.infill-rate 0.5"
            )
        if learned.condition and self.style is None:
            raise TenfoldError(f"{checkpoint} was trained with conditions: give --style")
        if not learned.condition and not only_feel:
            raise TenfoldError(
                f"{checkpoint} knows no styles: leave out --style, or train with --train.condition"
            )
        prompt = example.prompt
        if learned.condition and self.infill is None:
            prompt = condition(str(self.style), round(bpm)) + prompt
        network.network.to(_one_process(self.accelerator).device)  # type: ignore[arg-type]
        sample = self.sample if self.infill is None else replace(self.sample, measures=1)
        return complete(network, [prompt] * self.count, sample, self.seed)

    def _groove(self, text: str, example: Example, completion: str) -> str:
        if self.infill is None:
            return to_drumroll(example.prompt, completion)
        lines = text.splitlines()
        start = (self.infill - 1) * MEASURE
        lines[start : start + MEASURE] = lines_of(completion)
        return "".join(f"{line}\n" for line in lines)

    def _sound_font(self) -> Path | None:
        """What plays; None is the built-in synthesis."""
        if self.synthesis:
            return None
        font = self.sound_font or find_sound_font()
        if font is not None and self.sound_font is None and importlib.util.find_spec("fluidsynth") is None:
            logger.info(
                'the built-in synthesis plays; pip install "tenfold-drum-gpt[soundfont]" to hear %s', font
            )
            return None
        if font is not None:
            render(
                drumroll_to_midi("o-----\n"), font
            )  # what is wrong with it is said before anything is drawn
        return font

    def _write(self, name: str, groove: str, midi: mido.MidiFile, font: Path | None) -> None:
        with replaced(self.output / f"{name}.txt") as temporary:
            temporary.write_text(groove, encoding="utf-8")
        with replaced(self.output / f"{name}.mid") as temporary:
            midi.save(temporary)
        write_wav(self.output / f"{name}.wav", render(midi, font))
        logger.info("%s: stability %s", name, " ".join(map(str, measure_stability(groove))))


@dataclass(frozen=True)
class Encode:
    """Write MIDI files as drumrolls, one after the other; a file that cannot be read is named and left out."""

    source: Annotated[Path, tyro.conf.Positional]
    """MIDI file, or a folder of them."""
    output: Path
    """Folder to write to."""
    skip_unknown: bool = False
    """Pass by notes that are none of the six drums."""
    quiet: Quiet = False
    """Only warnings and errors."""

    def run(self) -> int:
        written, skipped, broken = 0, 0, 0
        base = self.source if self.source.is_dir() else self.source.parent
        for path, outcome in midi_files_to_drumrolls(self.source, self.skip_unknown):
            if isinstance(outcome, TenfoldError):
                logger.error("left out: %s", outcome)
                broken += 1
            elif outcome is None:
                logger.warning("skipped: in %s a beat is not a quarter note", path)
                skipped += 1
            else:
                target = (self.output / path.relative_to(base)).with_suffix(".txt")
                target.parent.mkdir(parents=True, exist_ok=True)
                with replaced(target) as temporary:
                    temporary.write_text(outcome, encoding="ascii")
                written += 1
        logger.info(
            "%d drumrolls in %s, %d files skipped, %d left out", written, self.output, skipped, broken
        )
        return 1 if broken or not written else 0


@dataclass(frozen=True)
class Decode:
    """Write drumrolls as MIDI files."""

    source: Annotated[Path, tyro.conf.Positional]
    """Drumroll (.txt), or a folder of them."""
    output: Path
    """Folder to write to."""
    bpm: float = 120.0
    """Tempo."""
    official: bool = False
    """As the authors' code: 120 bpm, 4/4, a piano's channel, no note's end."""
    humanise: bool = False
    """Velocities and timing of drummers instead of a machine's."""
    seed: int = 0
    """Seed of --humanise."""
    quiet: Quiet = False
    """Only warnings and errors."""

    def run(self) -> int:
        if self.official and (self.humanise or self.bpm != 120.0):
            raise TenfoldError("--official has 120 bpm and no feel; leave out --bpm and --humanise")
        feel = Feel.load() if self.humanise else None
        base = self.source if self.source.is_dir() else self.source.parent
        paths = files_in(self.source, TEXTS, "drumroll")
        for path in paths:
            text = _text_of(path)
            hits = humanise(text, feel, self.seed) if feel else None
            target = (self.output / path.relative_to(base)).with_suffix(".mid")
            target.parent.mkdir(parents=True, exist_ok=True)
            with replaced(target) as temporary:
                drumroll_to_midi(text, self.official, self.bpm, hits).save(temporary)
        logger.info("%d MIDI files in %s", len(paths), self.output)
        return 0


@dataclass(frozen=True)
class Analyse:
    """The paper's structural evaluation of a folder of drumrolls, one column for each folder."""

    folders: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Folders of drumrolls (.txt): of drummers and of a model, for instance."""
    reference: Path | None = None
    """Folder that duplicates are counted in; by default the training pieces."""
    annotations: Path | None = None
    """Table of annotations by hand to count as well, see the README for its columns."""
    csv: Path | None = None
    """File to write the numbers of every piece to."""

    def run(self) -> int:
        if not self.folders:
            raise TenfoldError("give at least one folder of drumrolls")
        reference = (
            [piece.text for piece in bundled_pieces() if piece.split == "train"]
            if self.reference is None
            else [_text_of(path) for path in files_in(self.reference, TEXTS, "drumroll")]
        )
        columns: dict[str, Mapping[str, float]] = {}
        rows: list[dict[str, str]] = []
        for folder in self.folders:
            paths = files_in(folder, TEXTS, "drumroll")
            texts = [_text_of(path) for path in paths]
            columns[str(folder)] = {"pieces": float(len(texts)), **official_metrics(texts, reference)}
            for path, text in zip(paths, texts, strict=True):
                found = structural_summary([text])
                measures = len(text.splitlines()) / MEASURE
                numbers = {name: f"{value:.6g}" for name, value in {"measures": measures, **found}.items()}
                rows.append({"folder": str(folder), "piece": path.stem, **numbers})
        _print_table("structural evaluation", columns)
        if self.annotations is not None:
            _print_table("annotations", {"grooves": count_annotations(read_annotations(self.annotations))})
        if self.csv is not None:
            self.csv.parent.mkdir(parents=True, exist_ok=True)
            with replaced(self.csv) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
                writer = csv.DictWriter(file, list(rows[0]))
                writer.writeheader()
                writer.writerows(rows)
        return 0


Command = (
    Annotated[Reproduce, tyro.conf.subcommand("reproduce")]
    | Annotated[Train, tyro.conf.subcommand("train")]
    | Annotated[Evaluate, tyro.conf.subcommand("evaluate")]
    | Annotated[Generate, tyro.conf.subcommand("generate")]
    | Annotated[Encode, tyro.conf.subcommand("encode")]
    | Annotated[Decode, tyro.conf.subcommand("decode")]
    | Annotated[Analyse, tyro.conf.subcommand("analyse")]
)


def main(arguments: list[str] | None = None) -> None:
    """Entry point of ``tenfold-drum-gpt``; ends the process with the command's exit status."""
    with errors_in_one_line():
        command = tyro.cli(
            Command,
            prog="tenfold-drum-gpt",
            description="Drum composition with language models (Zhang and Callison-Burch, 2023).",
            args=arguments,
        )
        set_quiet(getattr(command, "quiet", False))
        sys.exit(command.run())


def _profile(name: str) -> Profile:
    if name == "list":
        for known, profile in PROFILES.items():
            print(f"{known:20} {profile.description}")
        sys.exit(0)
    if name not in PROFILES:
        raise TenfoldError(f"unknown profile {name!r}; choose one of {', '.join(PROFILES)}")
    return PROFILES[name]


def _text_of(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise TenfoldError(f"there is no file {path}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise TenfoldError(f"{path} is no text that can be read; drumrolls are plain ASCII") from error


def _read_drumroll(path: Path, keep_unknown: bool) -> tuple[str, float, int]:
    """Text, tempo and beats of a MIDI file, or of a drumroll at 120 bpm in 4/4."""
    if path.suffix.lower() in TEXTS:
        return _text_of(path), 120.0, 4
    performance = read_midi(path, keep_unknown)
    text = performance_to_drumroll(performance)
    if text is None:
        raise TenfoldError(
            f"{path} is in {performance.beats}/{performance.beat_unit}; drumrolls count quarter notes: give a piece in "
            "4/4, 3/4 or the like"
        )
    return text, performance.bpm, performance.beats


def _one_process(config: AcceleratorConfig) -> Fabric:
    fabric = launch_fabric(config)
    if fabric.world_size > 1:
        raise TenfoldError("this command runs in one process; leave out --devices and torchrun")
    return fabric


def _print_table(title: str, columns: Mapping[str, Mapping[str, float]]) -> None:
    table = Table(title=title, title_justify="left")
    table.add_column("")
    for name in columns:
        table.add_column(name, justify="right")
    rows = list(dict.fromkeys(row for column in columns.values() for row in column))
    for row in rows:
        table.add_row(row, *(f"{column[row]:.4g}" if row in column else "" for column in columns.values()))
    Console(width=None if Console().is_terminal else 150).print(table)
