"""The training loop: it learns, can be repeated, killed and resumed, and does the same on two processes."""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tenfold.new_paper.config import TrainingConfig
from tenfold.new_paper.evaluation import accuracy, predict
from tenfold.new_paper.model import DigitClassifier
from tenfold.new_paper.training import distillation_objective, fit, label_objective, process_share
from tenfold.shared.logging import TenfoldError
from tenfold.shared.runs import Run, load_checkpoint

# Dropout draws random numbers in every step, so a run that resumes must put the generator back.
CONFIG = TrainingConfig(hidden_dim=16, dropout=0.2, epochs=4, batch_size=250)


class Killed(BaseException):
    """As a signal would, it passes every ``except Exception``."""


def killing_after(steps: int, objective: Callable[[Tensor, Tensor], Tensor]) -> Callable[..., Tensor]:
    """The objective, until it was asked for ``steps`` times."""
    calls = 0

    def killing_objective(logits: Tensor, indices: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        if calls > steps:
            raise Killed
        return objective(logits, indices)

    return killing_objective


@pytest.fixture
def train_on_labels(digits, cpu) -> Callable[..., DigitClassifier]:
    """Trains with CONFIG; ``steps`` kills it after so many."""

    def train(run: Run, seed: int = 0, steps: int | None = None) -> DigitClassifier:
        objective = label_objective(digits[0].labels)
        if steps is not None:
            objective = killing_after(steps, objective)
        with run:
            return fit(digits[0], objective, digits[1], CONFIG, seed, cpu, run)

    return train


def same_weights(first: DigitClassifier, second: DigitClassifier) -> bool:
    weights = second.state_dict()
    return all(torch.equal(value, weights[name]) for name, value in first.state_dict().items())


def test_the_seed_decides_the_network(train_on_labels, make_run) -> None:
    runs = [make_run(name) for name in ("first", "again", "other")]
    first, again = train_on_labels(runs[0]), train_on_labels(runs[1])
    other = train_on_labels(runs[2], seed=1)
    assert same_weights(first, again) and not same_weights(first, other)
    assert runs[0].history() == runs[1].history() != runs[2].history()


@pytest.mark.parametrize("steps", [0, 4, 9, 15])
def test_a_killed_run_goes_on_as_if_nothing_had_happened(train_on_labels, make_run, steps: int) -> None:
    undisturbed, disturbed = make_run("undisturbed"), make_run("disturbed")
    expected = train_on_labels(undisturbed)
    with pytest.raises(Killed):
        train_on_labels(disturbed, steps=steps)
    outcome = train_on_labels(make_run("disturbed"))
    assert same_weights(outcome, expected)
    assert disturbed.history() == undisturbed.history()


def test_a_network_learns_the_digits_and_the_curve_ends_with_its_accuracy(digits, cpu, make_run) -> None:
    train, test = digits
    config = TrainingConfig(epochs=6)
    with make_run("labels") as run:
        network = fit(train, label_objective(train.labels), test, config, 0, cpu, run)
    value = accuracy(predict(network, test.images), test.labels)
    assert value > 85
    assert run.history()[-1]["test_accuracy"] == value


def test_a_student_learns_from_a_teacher_without_labels(digits, cpu, make_run) -> None:
    train, test = digits
    config = TrainingConfig(epochs=6, label_weight=0.0)
    with make_run("teacher") as run:
        teacher = fit(train, label_objective(train.labels), test, config, 0, cpu, run)
    with make_run("student") as run:
        objective = distillation_objective(teacher, train, config)
        student = fit(train, objective, test, config, 1, cpu, run)
    agreement = accuracy(predict(student, test.images), predict(teacher, test.images).argmax(dim=1))
    assert agreement > 90


@pytest.mark.parametrize("size", [1, 2, 7])
def test_the_mean_over_processes_is_the_mean_over_the_batch(size: int) -> None:
    values = torch.arange(1.0, 11.0)
    batch = torch.arange(10)[-size:]
    shares = [process_share(batch, rank, world_size=2) for rank in range(2)]
    mean = sum(weight * float(values[share].mean()) for share, weight in shares) / 2
    assert mean == pytest.approx(float(values[batch].mean()))


def test_two_processes_end_with_the_weights_of_one(tmp_path: Path, cpu, make_run) -> None:
    script = Path(__file__).with_name("distributed_fit.py")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(script), str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    double = load_checkpoint(tmp_path / "new-paper" / "test" / "two-processes-seed0" / "weights.pt")
    single = runpy.run_path(str(script))["train"](cpu, make_run("one-process")).state_dict()
    torch.testing.assert_close(double, dict(single), rtol=1e-4, atol=1e-5)


def test_impossible_hyperparameters_are_refused() -> None:
    for changes in ({"epochs": 0}, {"temperature": 0.0}, {"dropout": 1.0}, {"label_weight": 1.5}):
        with pytest.raises(TenfoldError, match=r"at least|above|below"):
            TrainingConfig(**changes)
