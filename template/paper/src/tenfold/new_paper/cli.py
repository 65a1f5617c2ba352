"""Command line: ``tenfold-new-paper reproduce | train | evaluate``."""

from __future__ import annotations

import hashlib
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated

import tyro

from tenfold.new_paper.checkpoints import artifact, load_network
from tenfold.new_paper.config import TrainingConfig
from tenfold.new_paper.data import NUM_TRAINING_IMAGES, draw_images, load_digits_split
from tenfold.new_paper.evaluation import accuracy, predict
from tenfold.new_paper.experiments import PAPER, Suite, reproduce
from tenfold.new_paper.profiles import PROFILES, Profile
from tenfold.new_paper.training import distillation_objective, fit, label_objective
from tenfold.shared.accelerator import AcceleratorConfig, make_fabric
from tenfold.shared.comparison import load_reported, print_comparison
from tenfold.shared.logging import TenfoldError, errors_in_one_line, get_logger, set_quiet
from tenfold.shared.runs import Run, RunKey, plain

logger = get_logger("new-paper")

Quiet = Annotated[bool, tyro.conf.arg(aliases=["-q"])]


@dataclass(frozen=True)
class Reproduce:
    """Run a profile's suite, compare it with the paper, and fail if a claim does not hold."""

    profile: str = "quick"
    """Which suite; `--profile list` prints them."""
    seeds: tuple[int, ...] | None = None
    """Seeds instead of the profile's."""
    output: Path = Path("runs")
    """Directory of all runs."""
    force: bool = False
    """Repeat runs that are finished."""
    accelerator: AcceleratorConfig = field(default_factory=AcceleratorConfig)
    checkpoint_seconds: float = 15.0
    """Time between two checkpoints of a run."""
    quiet: Quiet = False
    """Only warnings, errors and the final tables."""

    def run(self) -> int:
        profile = _profile(self.profile)
        if self.seeds is not None:
            if not self.seeds or len(set(self.seeds)) < len(self.seeds):
                raise TenfoldError("give --seeds at least one number, each once")
            profile = replace(profile, seeds=self.seeds)
        suite = Suite(
            self.profile, profile, self.output, self.force, self.checkpoint_seconds, self.accelerator
        )
        results = reproduce(suite)
        if not suite.fabric.is_global_zero:
            return 0
        reported = load_reported("tenfold.new_paper")
        verdicts = print_comparison(reported, results, self.profile, ("test_accuracy",))
        failed = [verdict.claim.id for verdict in verdicts if verdict.holds is False]
        if failed:
            logger.error("claims that do not hold: %s", ", ".join(failed))
        return 1 if failed else 0


@dataclass(frozen=True)
class Train:
    """Train one network on labels, or on a teacher's answers."""

    teacher: Path | None = None
    """model.pt of a run to learn from; by default the labels alone."""
    num_images: int = NUM_TRAINING_IMAGES
    """Training images, drawn by the seed."""
    training: TrainingConfig = field(default_factory=TrainingConfig)
    seed: int = 0
    """Seed of images, weights, dropout and order."""
    output: Path = Path("runs")
    """Directory of all runs."""
    accelerator: AcceleratorConfig = field(default_factory=AcceleratorConfig)
    quiet: Quiet = False
    """Only warnings and errors."""

    def run(self) -> int:
        teacher = None if self.teacher is None else load_network(self.teacher)
        fabric = make_fabric(self.accelerator)
        fabric.launch()
        full, test = (images.to(fabric.device) for images in load_digits_split())
        images = draw_images(full, self.num_images, self.seed)
        objective = label_objective(images.labels)
        if teacher is not None:
            objective = distillation_objective(teacher.to(fabric.device), images, self.training)
        with self._record(fabric.is_global_zero) as run:
            compiled = self.accelerator.compile
            network = fit(images, objective, test, self.training, self.seed, fabric, run, compiled)
            path = run.save_artifact("model.pt", artifact(network))
            test_accuracy = accuracy(predict(network, test.images), test.labels)
            run.finish({"test_accuracy": test_accuracy})
        logger.info("test accuracy %.2f %%, network in %s", test_accuracy, path)
        return 0

    def _record(self, is_writer: bool) -> Run:
        method = "Labels" if self.teacher is None else "KD"
        config = {
            "teacher_sha256": self.teacher and hashlib.sha256(self.teacher.read_bytes()).hexdigest(),
            "num_images": self.num_images,
            "training": plain(self.training),
            "seed": self.seed,
        }
        setting = f"{self.num_images} images single"
        key = RunKey(PAPER, "single", f"digits-{method.lower()}", self.seed, "digits", setting, method)
        return Run(self.output, key, config, is_writer=is_writer)


@dataclass(frozen=True)
class Evaluate:
    """Test accuracy of a saved network."""

    checkpoint: Path
    """model.pt of a run."""

    def run(self) -> int:
        network = load_network(self.checkpoint)
        _, test = load_digits_split()
        value = accuracy(predict(network, test.images), test.labels)
        print(f"test accuracy {value:.2f} % on {len(test)} digits")
        return 0


Command = (
    Annotated[Reproduce, tyro.conf.subcommand("reproduce")]
    | Annotated[Train, tyro.conf.subcommand("train")]
    | Annotated[Evaluate, tyro.conf.subcommand("evaluate")]
)


def main(arguments: list[str] | None = None) -> None:
    """Entry point of ``tenfold-new-paper``; ends the process with the command's exit status."""
    with errors_in_one_line():
        command = tyro.cli(
            Command,
            prog="tenfold-new-paper",
            description="New Paper.",
            args=arguments,
            config=(tyro.conf.OmitArgPrefixes,),
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
