"""The training loop: repeatable, resumable, the same on several processes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from tenfold.gfkd.config import TrainingConfig
from tenfold.gfkd.evaluation import accuracy, agreement, predict
from tenfold.gfkd.models import GraphClassifier, build_model
from tenfold.gfkd.training import Fitted, fit, labels_and_loss, teacher_and_loss
from tenfold.shared.accelerator import maybe_compile
from tenfold.shared.runs import Run, load_checkpoint


@pytest.fixture
def train(mutag, cpu) -> Callable[..., tuple[GraphClassifier, Fitted]]:
    def train_on(run: Run, loss: Any = None, targets: Tensor | None = None, seed: int = 0, **changes: Any):
        config = TrainingConfig(**{"epochs": 4, "batch_size": 40, **changes})
        targets = mutag.train.labels if targets is None else targets
        build = lambda: build_model("gcn2_32", 7, 2)  # noqa: E731
        with run:
            outcome = fit(
                build, mutag.train, targets, loss or cross_entropy, mutag.test, config, seed, cpu, run
            )
            run.finish({"test_accuracy": outcome[1].last_accuracy})
        return outcome

    return train_on


class Killed(BaseException):
    """As a signal would, it passes every ``except Exception``."""


def killing_after(steps: int, loss: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
    """The loss, until it was asked for ``steps`` times."""
    calls = 0

    def killing_loss(logits: Tensor, targets: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        if calls > steps:
            raise Killed
        return loss(logits, targets)

    return killing_loss


def equal_weights(first: GraphClassifier, second: GraphClassifier) -> bool:
    weights = second.state_dict()
    return all(torch.equal(value, weights[name]) for name, value in first.state_dict().items())


def test_the_same_seed_gives_the_same_network_and_another_seed_another(train, make_run) -> None:
    first, second, other = (make_run(name) for name in "abc")
    one, two, three = train(first)[0], train(second)[0], train(other, seed=1)[0]
    assert equal_weights(one, two) and not equal_weights(one, three)
    assert first.history() == second.history() != other.history()


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("steps", [0, 1, 6, 8, 15])
def test_a_killed_run_goes_on_as_if_nothing_had_happened(train, make_run, shuffle: bool, steps: int) -> None:
    undisturbed, disturbed = make_run("undisturbed"), make_run("disturbed")
    expected = train(undisturbed, shuffle=shuffle)
    with pytest.raises(Killed):
        train(disturbed, killing_after(steps, cross_entropy), shuffle=shuffle)
    again = make_run("disturbed")
    outcome = train(again, shuffle=shuffle)
    assert equal_weights(outcome[0], expected[0])
    assert outcome[1].best_accuracy == expected[1].best_accuracy
    assert again.history() == undisturbed.history()
    assert again.result["metrics"] == undisturbed.result["metrics"]


def test_learning_rate_falls_linearly_to_zero_epoch_by_epoch(train, make_run, monkeypatch) -> None:
    rates = []
    step = torch.optim.Adam.step
    monkeypatch.setattr(
        torch.optim.Adam,
        "step",
        lambda self, *a: (rates.append(self.param_groups[0]["lr"]), step(self, *a))[1],
    )
    train(make_run("rates"), lr=0.01, epochs=4)
    expected = [0.01 * factor for factor in (1.0, 0.75, 0.5, 0.25) for _ in range(4)]
    assert rates == pytest.approx(expected)


def test_without_shuffling_every_epoch_sees_the_graphs_in_their_order(train, make_run, mutag) -> None:
    seen: list[Tensor] = []

    def watch(logits: Tensor, targets: Tensor) -> Tensor:
        seen.append(targets)
        return cross_entropy(logits, targets)

    train(make_run("ordered"), watch, epochs=2)
    assert torch.equal(torch.cat(seen), mutag.train.labels.repeat(2))
    seen.clear()
    train(make_run("shuffled"), watch, epochs=2, shuffle=True)
    first, second = torch.cat(seen).view(2, -1)
    assert not torch.equal(first, mutag.train.labels) and not torch.equal(first, second)
    assert torch.equal(first.sort().values, mutag.train.labels.sort().values)


def test_distillation_learns_from_the_teachers_logits_and_never_from_labels(
    train, make_run, mutag, teacher
) -> None:
    targets, loss = teacher_and_loss(teacher, mutag.train, 2.0, "pyg")
    torch.testing.assert_close(targets, predict(teacher, mutag.train))
    _, fitted = train(make_run("student"), loss, targets, epochs=20)
    assert fitted.last_accuracy > 68.4  # the majority class


def test_last_and_best_accuracy_are_those_of_the_curve(train, make_run) -> None:
    run = make_run("curve")
    _, fitted = train(run, epochs=6)
    curve = [row["test_accuracy"] for row in run.history()]
    assert (fitted.last_accuracy, fitted.best_accuracy) == (curve[-1], max(curve))


def test_the_kept_best_weights_have_the_best_accuracy(train, make_run, mutag) -> None:
    network, fitted = train(make_run("best"), epochs=6)
    network.load_state_dict(fitted.best_state)
    assert accuracy(predict(network, mutag.test), mutag.test.labels) == fitted.best_accuracy


def test_accuracy_and_agreement_count_graphs() -> None:
    logits = torch.tensor([[2.0, 1.0], [0.0, 1.0], [3.0, 1.0], [0.0, 4.0]])
    assert accuracy(logits, torch.tensor([0, 1, 1, 1])) == 75
    assert agreement(logits, logits[:, [1, 0]]) == 0
    assert agreement(logits, 3 * logits) == 100


def test_prediction_leaves_the_mode_and_the_statistics_alone(mutag) -> None:
    model = build_model("gin2_32", 7, 2).train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    predict(model, mutag.test)
    assert model.training
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


def test_label_targets_are_the_graphs_own(mutag) -> None:
    targets, loss = labels_and_loss(mutag.train)
    assert torch.equal(targets, mutag.train.labels) and loss is cross_entropy


def test_two_processes_end_with_the_weights_of_one(start, tmp_path: Path) -> None:
    script = Path(__file__).with_name("distributed_fit.py")
    processes = [start(script, devices, tmp_path, cwd=tmp_path) for devices in (1, 2)]
    for process in processes:
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors
    folders = [tmp_path / "gfkd" / "test" / f"on{devices}-seed0" for devices in (1, 2)]
    single, double = (load_checkpoint(folder / "weights.pt") for folder in folders)
    torch.testing.assert_close(double, single, rtol=1e-4, atol=1e-5)
    curves = [
        [json.loads(line)["loss"] for line in (folder / "metrics.jsonl").read_text().splitlines()]
        for folder in folders
    ]
    assert curves[1] == pytest.approx(curves[0], rel=1e-4)


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on the CPU")
def test_a_compiled_network_gives_the_same_logits_and_gradients(mutag) -> None:
    graphs = mutag.train.select(range(8))
    torch.manual_seed(0)
    network = build_model("gcn3_32", graphs.num_features, graphs.num_classes)
    network.dropout.p = 0.0  # compiled dropout draws other numbers
    compiled = maybe_compile(network, enabled=True)
    outcomes = []
    for model in (network, compiled):
        network.zero_grad()
        logits = model(graphs.features(), graphs.topology("pyg"))
        cross_entropy(logits, graphs.labels).backward()
        outcomes.append([logits.detach(), *(parameter.grad.clone() for parameter in network.parameters())])
    for eager, fast in zip(*outcomes, strict=True):
        # A bias before a batch norm has no gradient but rounding: sums of logits in the hundreds leave up to 1e-4.
        torch.testing.assert_close(fast, eager, rtol=1e-4, atol=1e-4)
