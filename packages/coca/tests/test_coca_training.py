"""The loop over a stream: interruptions, repeatability, several processes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning_fabric import Fabric

from tenfold.coca import training
from tenfold.coca.config import LearnerConfig, NetworkConfig, StreamConfig, TrainConfig
from tenfold.coca.learner import launch_fabric
from tenfold.coca.streams import Stream, make_stream
from tenfold.coca.training import Learned, learn_stream, measure_accuracies, stream_metrics
from tenfold.shared.accelerator import AcceleratorConfig
from tenfold.shared.logging import TenfoldError
from tenfold.shared.runs import Run

MakeRun = Callable[..., Run]


class Killed(BaseException):
    """What ends a process from outside; nothing catches it."""


def config_of(method: str, **stream: Any) -> TrainConfig:
    settings = {"batch_size": 10, "epochs": 2, "batches_per_epoch": 4, **stream}
    learner = LearnerConfig(
        method,  # type: ignore[arg-type]
        lr=0.1,
        alpha=0.3,
        beta=1.0,
        memory_size=0 if method in ("SGD", "JOINT") else 30,
        memory_batch_size=10,
    )
    return TrainConfig(
        learner, StreamConfig("s-digits", **settings), NetworkConfig("mlp", hidden=32, projection_dim=8)
    )


def learn(digits: Stream, method: str, fabric: Fabric, run: Run, seed: int = 0) -> Learned:
    with run:
        learned = learn_stream(digits, config_of(method), seed, fabric, run)
        run.finish(stream_metrics(learned, digits))
    return learned


@pytest.mark.parametrize("method", ["CoCa", "A-GEM", "iCaRL", "OCD-Net", "JOINT"])
@pytest.mark.parametrize("checkpoint", [1, 7, 24])
def test_a_killed_run_goes_on_to_the_same_result(
    method: str,
    checkpoint: int,
    digits: Stream,
    cpu: Fabric,
    make_run: MakeRun,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if method == "JOINT":
        checkpoint = min(checkpoint, 5)
    whole = learn(digits, method, cpu, make_run("whole", checkpoint_seconds=3600))
    expected = make_run("whole", checkpoint_seconds=3600)
    killed = make_run("killed")
    saved = 0

    def save(run: Run, step: int, state: Any, original: Any = Run.save_checkpoint) -> None:
        nonlocal saved
        original(run, step, state)
        saved += 1
        if saved == checkpoint:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(Run, "save_checkpoint", save)
        with pytest.raises(Killed), killed:
            learn_stream(digits, config_of(method), 0, cpu, killed)
    assert not killed.is_finished
    again = make_run("killed", checkpoint_seconds=3600)
    resumed = learn(digits, method, cpu, again)
    assert resumed.images_here < whole.images_here
    assert resumed.rows == whole.rows
    assert again.result is not None and expected.result is not None
    assert again.result["metrics"] == expected.result["metrics"]
    assert again.result["curves"] == expected.result["curves"]
    ours, theirs = resumed.learner.network.state_dict(), whole.learner.network.state_dict()
    for name, value in theirs.items():
        assert torch.equal(ours[name], value), name
    assert resumed.learner.memory_report() == whole.learner.memory_report()


def test_the_same_seed_gives_the_same_rows_and_another_seed_others(
    digits: Stream, cpu: Fabric, make_run: MakeRun
) -> None:
    first, second, other = (
        learn(digits, "CoCa", cpu, make_run(name), seed).rows
        for name, seed in (("first", 3), ("second", 3), ("other", 4))
    )
    assert first == second
    assert first != other


def test_methods_of_one_seed_meet_the_same_order(
    digits: Stream, cpu: Fabric, make_run: MakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    orders: dict[str, list[Any]] = {}
    for method in ("SGD", "CoCa"):
        served: list[Any] = []
        monkeypatch.setattr(
            training.Learner,
            "learn",
            lambda self, images, labels, served=served: served.append(images.clone()),
        )
        with make_run(method) as run:
            learn_stream(digits, config_of(method), 0, cpu, run)
        orders[method] = served
    assert len(orders["SGD"]) == len(orders["CoCa"]) == 40
    assert all(torch.equal(*pair) for pair in zip(*orders.values(), strict=True))


def test_every_task_is_tested_after_every_task(digits: Stream, cpu: Fabric, make_run: MakeRun) -> None:
    learned = learn(digits, "ER", cpu, make_run("rows"))
    for kind in ("class_il", "task_il"):
        assert [len(row) for row in learned.rows[kind]] == [5] * 5
        assert len(learned.untrained[kind]) == 5
    for class_row, task_row in zip(learned.rows["class_il"], learned.rows["task_il"], strict=True):
        assert all(task >= whole for whole, task in zip(class_row, task_row, strict=True))


def test_joint_learns_all_tasks_at_once(digits: Stream, cpu: Fabric, make_run: MakeRun) -> None:
    run = make_run("joint", checkpoint_seconds=3600)
    with run:
        config = config_of("JOINT", epochs=3, batches_per_epoch=None)
        learned = learn_stream(digits, config, 0, cpu, run)
    metrics = stream_metrics(learned, digits)
    assert metrics["class_il"] > 85
    assert set(metrics) == {"class_il", "task_il"}


def test_metrics_of_a_stream_are_all_there(digits: Stream, cpu: Fabric, make_run: MakeRun) -> None:
    metrics = stream_metrics(learn(digits, "CoCa", cpu, make_run("metrics")), digits)
    names = ("incremental", "forgetting", "forgetting_official", "backward_transfer", "forward_transfer")
    assert set(metrics) == {
        kind + suffix for kind in ("class_il", "task_il") for suffix in ("", *(f"_{name}" for name in names))
    }
    assert metrics["class_il_forgetting_official"] >= metrics["class_il_forgetting"]


def test_further_test_sets_are_measured_under_their_names(
    digits: Stream, cpu: Fabric, make_run: MakeRun
) -> None:
    stream = replace(digits, further_tests={"noisy": digits.tests})
    learned = learn(stream, "SGD", cpu, make_run("further"))
    metrics = stream_metrics(learned, stream)
    assert metrics["noisy_class_il"] == metrics["class_il"]
    assert "noisy_class_il_forgetting" not in metrics


@pytest.mark.parametrize("method", ["GEM", "iCaRL"])
def test_methods_with_boundaries_refuse_a_stream_without(method: str, cpu: Fabric, make_run: MakeRun) -> None:
    blurry = make_stream(StreamConfig("blurry-digits"))
    with pytest.raises(TenfoldError, match="does not say; choose a method without"), make_run("told") as run:
        learn_stream(blurry, config_of(method), 0, cpu, run)


def test_batches_that_would_all_pass_by_are_refused(digits: Stream, cpu: Fabric, make_run: MakeRun) -> None:
    with pytest.raises(TenfoldError, match="batches of at least 2 images, not 1"), make_run("single") as run:
        learn_stream(digits, config_of("CoCa", batch_size=1), 0, cpu, run)


def test_a_blurry_stream_is_learned_without_boundaries(cpu: Fabric, make_run: MakeRun) -> None:
    blurry = make_stream(StreamConfig("blurry-digits"))
    config = config_of("CoCa", epochs=1, batches_per_epoch=None)
    with make_run("blurry", checkpoint_seconds=3600) as run:
        learned = learn_stream(blurry, config, 0, cpu, run)
    assert stream_metrics(learned, blurry)["class_il"] > 40


def test_accuracies_are_those_of_the_predictions(digits: Stream, cpu: Fabric, make_run: MakeRun) -> None:
    learner = learn(digits, "ER", cpu, make_run("accuracies")).learner
    found = measure_accuracies(learner, digits)
    for task, (test, classes) in enumerate(zip(digits.tests, digits.test_classes, strict=True)):
        scores = learner.predict(test.images)
        hits = (scores.argmax(dim=1) == test.labels).float().mean()
        among = torch.tensor(classes)[scores[:, list(classes)].argmax(dim=1)]
        assert found["class_il"][task] == pytest.approx(100 * float(hits), abs=1e-4)
        assert found["task_il"][task] == pytest.approx(
            100 * float((among == test.labels).float().mean()), abs=1e-4
        )


def test_two_processes_learn_what_one_does(start: Any, tmp_path: Path) -> None:
    script = Path(__file__).parent / "distributed_observe.py"
    for process in [start(script, devices, tmp_path, cwd=tmp_path) for devices in (1, 2)]:
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors
    alone, first, second = (
        torch.load(tmp_path / name, weights_only=True)
        for name in ("on1-rank0.pt", "on2-rank0.pt", "on2-rank1.pt")
    )
    for method, expected in alone.items():
        for part, value in first[method].items():
            assert torch.equal(value, second[method][part]), (method, part)
        if method.endswith("with batch norm"):  # each process normalises by its own half
            continue
        assert torch.equal(first[method]["memory"], expected["memory"]), method
        assert torch.equal(first[method]["steps"], expected["steps"])
        torch.testing.assert_close(
            first[method]["weights"],
            expected["weights"],
            rtol=1e-3,
            atol=1e-5,
            msg=lambda m, n=method: f"{n}: {m}",
        )


@pytest.mark.gpu
@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("method", ["ER", "A-GEM-R", "GEM", "iCaRL", "FDR", "DER++", "CoCa", "OCD-Net"])
def test_every_kind_of_method_runs_on_a_gpu(
    method: str, compiled: bool, digits: Stream, make_run: MakeRun
) -> None:
    fabric = launch_fabric(AcceleratorConfig(device="cuda"))
    with make_run("gpu") as run:
        learned = learn_stream(digits, config_of(method), 0, fabric, run, compiled)
    assert all(torch.isfinite(value).all() for value in learned.learner.network.state_dict().values())
    assert stream_metrics(learned, digits)["class_il"] > 0


@pytest.mark.gpu
def test_a_step_on_a_gpu_never_waits_for_it(digits: Stream) -> None:
    fabric = launch_fabric(AcceleratorConfig(device="cuda"))
    config = config_of("CoCa")
    learner = training.Learner(
        config.learner, 10, (1, 8, 8), digits.preprocessing, NetworkConfig("resnet18", width=8), 0, fabric
    )
    images, labels = (
        values.cuda() for values in (digits.segments[0].train.images, digits.segments[0].train.labels)
    )
    for start in range(0, 40, 10):
        learner.learn(images[start : start + 10], labels[start : start + 10])
    torch.cuda.set_sync_debug_mode("error")
    try:
        learner.learn(images[40:50], labels[40:50])
    finally:
        torch.cuda.set_sync_debug_mode("default")
