"""A profile's suite: for each seed a teacher, a student on labels, and a student of that teacher."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lightning_fabric import Fabric

from tenfold.new_paper.checkpoints import artifact, load_network
from tenfold.new_paper.data import draw_images, load_digits_split
from tenfold.new_paper.evaluation import accuracy, predict
from tenfold.new_paper.figures import draw_answers
from tenfold.new_paper.model import DigitClassifier
from tenfold.new_paper.profiles import Method, Profile
from tenfold.new_paper.training import distillation_objective, fit, label_objective
from tenfold.shared.accelerator import AcceleratorConfig, launch_fabric
from tenfold.shared.logging import get_logger, progress
from tenfold.shared.runs import Run, RunKey, plain

logger = get_logger("new-paper")

PAPER = "new-paper"


@dataclass(frozen=True)
class Suite:
    """A profile, and where and how its runs are done; only the profile decides what comes out."""

    name: str
    profile: Profile
    output: Path
    force: bool = False
    checkpoint_seconds: float = 15.0
    accelerator: AcceleratorConfig = field(default_factory=AcceleratorConfig)

    @property
    def fabric(self) -> Fabric:
        """The Fabric of this process, launched."""
        return launch_fabric(self.accelerator)

    def run(self, method: Method, seed: int) -> Run:
        """The record of one training; its configuration holds all that decides the outcome."""
        profile = self.profile
        config: dict[str, Any] = {"method": method, "seed": seed, "teacher": plain(profile.teacher)}
        setting = "all images"
        if method != "Teacher":
            config |= {"student": plain(profile.student), "num_images": profile.num_images}
            setting = f"{profile.num_images} images"
        key = RunKey(PAPER, self.name, f"digits-{method.lower()}", seed, "digits", setting, method)
        writer = self.fabric.is_global_zero
        return Run(self.output, key, config, checkpoint_seconds=self.checkpoint_seconds, is_writer=writer)


def reproduce(suite: Suite) -> list[dict[str, Any]]:
    """Do every run of the suite that is not finished yet.

    Returns:
        The results of all runs, finished before or now; empty ones on a process that does not write.
    """
    jobs = [(method, seed) for seed in suite.profile.seeds for method in suite.profile.methods]
    results = []
    for method, seed in progress(jobs, f"{PAPER} {suite.name}"):
        run = suite.run(method, seed)
        if suite.force and suite.fabric.is_global_zero:
            run.clear()
        suite.fabric.barrier()
        finished = run.result
        suite.fabric.barrier()  # no process may write before all have looked
        results.append(finished or train(suite, run, method, seed))
    return results


def train(suite: Suite, run: Run, method: Method, seed: int) -> dict[str, Any]:
    """Do one run of the suite; returns its result."""
    profile, device = suite.profile, suite.fabric.device
    full, test = (images.to(device) for images in load_digits_split())
    few = draw_images(full, profile.num_images, seed)
    images, config = (full, profile.teacher) if method == "Teacher" else (few, profile.student)
    teacher: DigitClassifier | None = None
    objective = label_objective(images.labels)
    if method == "KD":
        teacher = load_network(suite.run("Teacher", seed).directory / "model.pt").to(device)
        objective = distillation_objective(teacher, images, config)
    started = time.monotonic()
    with run:
        compiled = suite.accelerator.compile
        network = fit(images, objective, test, config, seed, suite.fabric, run, compiled)
        seconds = time.monotonic() - started
        logits = predict(network, test.images)
        test_accuracy = accuracy(logits, test.labels)
        if teacher is not None:
            shown = test.images[:8]
            with run.figure("answers.png", "Eight test images, and what teacher and student answer") as path:
                draw_answers(shown, predict(teacher, shown).softmax(1), logits[:8].softmax(1), path)
        run.save_artifact("model.pt", artifact(network))
        logger.info("%s: test accuracy %.2f %% (%.1f s)", run.directory.name, test_accuracy, seconds)
        return run.finish({"test_accuracy": test_accuracy}, config.epochs * len(images) / seconds, "images/s")
