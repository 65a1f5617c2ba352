"""The record of a run: complete, readable after anything, resumable, and free of private data."""

from __future__ import annotations

import getpass
import json
import logging
import os
import random
import re
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jsonschema  # type: ignore[import-untyped]
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tenfold.shared import _provenance
from tenfold.shared._privacy import cut_paths, cut_paths_in_argument
from tenfold.shared._provenance import command_line
from tenfold.shared.logging import TenfoldError, get_logger
from tenfold.shared.runs import (
    Run,
    RunKey,
    config_hash,
    find_results,
    load_checkpoint,
    plain,
    read_json,
    save_atomically,
)

SCHEMA = Path(__file__).parents[2] / "benchmarks/src/tenfold/benchmarks/schemas/result.schema.json"
InProcess = Callable[..., Any]

# A training of 4 epochs × 6 batches with an order from epoch_order and dropout from the global RNG.
TRAINING = """
import os, signal, sys
from pathlib import Path
import torch
from tenfold.shared.logging import errors_in_one_line
from tenfold.shared.runs import Run, RunKey
from tenfold.shared.seeding import epoch_order, seed_everything

key = RunKey("coca", "quick", "mnist-coca", 3, "MNIST", "small", "CoCa")

def train(stop=None, how=signal.SIGKILL, root=Path("runs")):
    seed_everything(3)
    inputs = torch.randn(48, 5)
    targets = inputs.sum(dim=1, keepdim=True)
    model = torch.nn.Sequential(torch.nn.Linear(5, 8), torch.nn.Dropout(0.5), torch.nn.Linear(8, 1))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    run = Run(root, key, {"lr": 0.05, "epochs": 4})
    with run:
        state = run.resume() or {"epoch": 0, "batch": 0, "loss_sum": 0.0}
        if "model" in state:
            model.load_state_dict(state["model"])
            optimizer.load_state_dict(state["optimizer"])
        for epoch in range(state["epoch"], 4):
            begun = state if epoch == state["epoch"] else {"batch": 0, "loss_sum": 0.0}
            loss_sum = begun["loss_sum"]
            for batch, indices in enumerate(epoch_order(48, 3, epoch).split(8)):
                if batch < begun["batch"]:
                    continue
                if batch == 3:
                    position = {"epoch": epoch, "batch": batch, "loss_sum": loss_sum}
                    weights = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
                    run.save_checkpoint(epoch, {**position, **weights})
                if (epoch, batch) == stop:
                    os.kill(os.getpid(), how)
                loss = (model(inputs[indices]) - targets[indices]).square().mean()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                loss_sum += loss.item()
            run.log(epoch + 1, loss=loss_sum / 6)
        run.finish({"loss": loss_sum / 6})
"""


def partial_files(folder: Path) -> list[Path]:
    return list(folder.rglob("*.partial.*"))


def files_of(run: Run) -> set[str]:
    return {path.name for path in run.directory.iterdir()}


def scalars(directory: Path) -> dict[str, list[tuple[int, float]]]:
    from tensorboard.backend.event_processing import event_accumulator  # type: ignore[import-untyped]

    events = event_accumulator.EventAccumulator(str(directory)).Reload()
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def finish(run: Run, **metrics: float) -> dict[str, Any]:
    with run:
        run.log(1, loss=0.5)
        return run.finish(metrics or {"accuracy": 90.0})


class TestRecord:
    def test_result_of_a_finished_run_is_valid_by_the_schema(self, run: Run) -> None:
        with run:
            for epoch in (1, 2):
                run.log(epoch, loss=1 / epoch, accuracy=50.0 * epoch)
            with run.figure("curve.svg", "the loss") as path:
                path.write_text("<svg/>")
            run.finish({"accuracy": 100.0}, throughput=12.5, throughput_unit="images/s")
        result = read_json(run.directory / "result.json")
        assert result is not None
        jsonschema.validate(result, json.loads(SCHEMA.read_text()))
        assert result["status"] == "finished"
        assert result["curves"]["loss"] == {"x": [1, 2], "y": [1.0, 0.5], "x_label": "epoch"}
        assert result["figures"] == [{"file": "figures/curve.svg", "caption": "the loss"}]
        assert (run.directory / "figures/curve.svg").read_text() == "<svg/>"

    def test_a_finished_directory_holds_the_documented_files_and_no_checkpoint(self, run: Run) -> None:
        with run:
            run.log(1, loss=1.0)
            run.save_checkpoint(1, {})
            run.save_artifact("model.pt", {"weight": torch.ones(2)})
            get_logger("coca").warning("the disk is slow")
            run.finish({"accuracy": 1.0})
        files = {re.sub(r"tfevents\..*", "tfevents", name) for name in files_of(run)}
        assert files == {
            "config.json",
            "metrics.jsonl",
            "events.out.tfevents",
            "result.json",
            "log.txt",
            "model.pt",
        }
        assert "the disk is slow" in (run.directory / "log.txt").read_text()
        assert load_checkpoint(run.directory / "model.pt")["weight"].tolist() == [1.0, 1.0]

    def test_tensorboard_reads_what_was_logged(self, run: Run) -> None:
        with run:
            for step in range(1, 6):
                run.log(step, loss=1.0 / step, accuracy=step)
            live = scalars(run.directory)  # before the run has ended
        expected = {
            "loss": [(step, pytest.approx(1.0 / step)) for step in range(1, 6)],
            "accuracy": [(step, float(step)) for step in range(1, 6)],
        }
        assert live == expected
        assert scalars(run.directory) == expected

    def test_nan_and_infinity_become_null(self, run: Run) -> None:
        with run:
            run.log(1, loss=float("nan"), accuracy=float("inf"))
            run.finish({"accuracy": float("-inf"), "loss": float("nan")})
        text = (run.directory / "metrics.jsonl").read_text() + (run.directory / "result.json").read_text()
        assert "NaN" not in text
        assert "Infinity" not in text
        assert run.result is not None
        assert run.result["metrics"] == {"accuracy": None, "loss": None}
        assert run.result["curves"]["loss"]["y"] == [None]

    def test_numbers_of_torch_and_numpy_are_logged_as_numbers(self, run: Run) -> None:
        with run:
            run.log(1, loss=torch.tensor(0.5), accuracy=np.float32(2.0))  # type: ignore[arg-type]
        assert run.history() == [{"step": 1, "loss": 0.5, "accuracy": 2.0}]

    def test_infinite_hyperparameters_can_be_recorded(self, tmp_path: Path, key: RunKey) -> None:
        run = Run(tmp_path, key, {"max_norm": float("inf")})
        finish(run)
        assert run.is_finished

    def test_a_figure_that_failed_is_not_in_the_record(self, run: Run) -> None:
        with run:
            with pytest.raises(ZeroDivisionError), run.figure("curve.svg", "a loss") as path:  # noqa: PT012
                path.write_text("<svg")
                raise ZeroDivisionError
            result = run.finish({})
        assert result["figures"] == []
        assert not any((run.directory / "figures").iterdir())

    def test_a_missing_file_inside_a_figure_is_the_one_that_is_named(self, run: Run) -> None:
        with run, pytest.raises(FileNotFoundError, match="no-such-picture"), run.figure("a.svg", ""):
            Path("no-such-picture").read_text()

    @pytest.mark.parametrize("name", ["../up", "a/b", "", ".hidden", "a b"])
    def test_a_name_that_is_no_directory_name_is_refused(self, key: RunKey, name: str) -> None:
        with pytest.raises(TenfoldError, match="letters, digits"):
            replace(key, name=name)

    def test_found_results_are_the_readable_ones_of_the_profile(self, tmp_path: Path, key: RunKey) -> None:
        for seed in (2, 1):
            finish(Run(tmp_path, replace(key, seed=seed), {}))
        finish(Run(tmp_path, replace(key, profile="smoke"), {}))
        for name, text in (("cut-seed0", '{"schema'), ("foreign-seed0", "{}"), ("list-seed0", "[]")):
            (tmp_path / "coca/quick" / name).mkdir()
            (tmp_path / "coca/quick" / name / "result.json").write_text(text)
        assert [result["seed"] for result in find_results(tmp_path, "coca", "quick")] == [1, 2]


class TestSkipping:
    def test_a_finished_run_of_the_same_configuration_is_skipped(self, run: Run) -> None:
        finish(run, accuracy=91.0)
        again = Run(run.directory.parents[2], run.key, {"epochs": 3, "lr": 0.1})
        assert again.is_finished
        assert again.result is not None
        assert again.result["metrics"] == {"accuracy": 91.0}

    def test_a_result_of_another_schema_is_made_again(self, run: Run) -> None:
        finish(run)
        path = run.directory / "result.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"schema_version": 0}))
        assert not run.is_finished
        finish(run)
        assert run.is_finished

    def test_another_configuration_clears_the_record(self, run: Run) -> None:
        with run:
            run.log(1, loss=1.0)
            run.save_artifact("model.pt", {})
            with run.figure("a.svg", "") as path:
                path.write_text("<svg/>")
            run.save_checkpoint(1, {})
        other = Run(run.directory.parents[2], run.key, {"lr": 0.2, "epochs": 3})
        assert not other.is_finished
        with other:
            assert other.resume() is None
            assert other.history() == []
            assert files_of(other) == {"config.json"}

    def test_a_record_under_other_labels_is_not_taken_for_this_run(self, run: Run) -> None:
        finish(run)
        other = Run(run.directory.parents[2], replace(run.key, setting="large"), run.config)
        assert not other.is_finished

    def test_a_finished_run_that_is_repeated_counts_as_unfinished_meanwhile(self, run: Run) -> None:
        finish(run)
        with run:
            assert not run.is_finished
            assert run.history() == []
            run.finish({})
        assert run.is_finished

    def test_clear_leaves_nothing_and_spares_what_links_point_to(self, run: Run, tmp_path: Path) -> None:
        finish(run)
        (tmp_path / "kept").mkdir()
        (run.directory / "link").symlink_to(tmp_path / "kept")
        (run.directory / "figures").mkdir()
        run.clear()
        assert files_of(run) == set()
        assert (tmp_path / "kept").is_dir()
        run.clear()

    def test_a_clearing_killed_at_its_start_leaves_no_finished_run(
        self, run: Run, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        finish(run)
        removed: list[str] = []

        def remove(path: Path, missing_ok: bool = False) -> None:
            if removed:
                raise KeyboardInterrupt
            removed.append(path.name)
            path.rename(path.parents[3] / "removed")

        monkeypatch.setattr(Path, "unlink", remove)
        with pytest.raises(KeyboardInterrupt):
            run.clear()
        assert not run.is_finished

    def test_hash_ignores_order_and_kind_of_sequence(self) -> None:
        assert config_hash({"a": 1, "b": (1, 2)}) == config_hash({"b": [1, 2], "a": 1})
        assert config_hash({"a": 1}) != config_hash({"a": 2})

    def test_a_dataclass_configuration_equals_its_mapping(self) -> None:
        @dataclass
        class Config:
            lr: float
            layers: tuple[int, ...]

        assert plain(Config(0.1, (3, 4))) == {"lr": 0.1, "layers": [3, 4]}

    def test_a_path_in_the_configuration_is_refused(self, tmp_path: Path, key: RunKey) -> None:
        with pytest.raises(TypeError, match="plain values"):
            Run(tmp_path, key, {"data": tmp_path})

    @given(
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
            lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
            max_leaves=10,
        )
    )
    def test_any_plain_configuration_survives_json_with_its_hash(self, value: Any) -> None:
        config = plain({"value": value})
        read_back = json.loads(json.dumps(config, allow_nan=False))
        assert config_hash(read_back) == config_hash(config)


class TestFailure:
    def test_a_failed_run_is_recorded_as_failed_and_goes_on_from_its_checkpoint(self, run: Run) -> None:
        with pytest.raises(ValueError, match="loss is"), run:  # noqa: PT012
            run.log(1, loss=1.0)
            run.save_checkpoint(1, {"epoch": 1})
            run.log(2, loss=9.0)
            raise ValueError("the loss is too large")
        result = read_json(run.directory / "result.json")
        assert result is not None
        jsonschema.validate(result, json.loads(SCHEMA.read_text()))
        assert (result["status"], result["error"]) == ("failed", "ValueError: the loss is too large")
        assert not run.is_finished
        with run:
            assert run.resume() == {"epoch": 1}
            assert run.history() == [{"step": 1, "loss": 1.0}]
            assert not (run.directory / "result.json").exists()
            run.finish({})
        assert run.is_finished

    def test_an_interrupted_run_is_not_recorded_as_failed(self, run: Run) -> None:
        with pytest.raises(KeyboardInterrupt), run:
            raise KeyboardInterrupt
        assert not (run.directory / "result.json").exists()

    def test_the_recorded_error_and_the_log_hold_no_absolute_path(self, run: Run, tmp_path: Path) -> None:
        missing = tmp_path / "some data" / "images.npz"
        with pytest.raises(FileNotFoundError), run:  # noqa: PT012
            get_logger("coca").warning("reading %s", missing)
            missing.read_bytes()
        result = (run.directory / "result.json").read_text()
        assert "images.npz" in result
        for text in (result, (run.directory / "log.txt").read_text()):
            assert str(tmp_path) not in text
            assert tmp_path.parent.name not in text

    def test_nothing_more_is_written_to_the_log_after_the_run(self, run: Run) -> None:
        with run:
            pass
        get_logger("coca").error("later")
        assert not (run.directory / "log.txt").exists()


class TestResume:
    def test_lines_after_the_checkpoint_are_dropped_from_metrics_and_events(self, run: Run) -> None:
        with run:
            for step in range(1, 6):
                run.log(step, loss=float(step))
                if step == 3:
                    run.save_checkpoint(step, {"step": step})
        with run:
            assert run.resume() == {"step": 3}
            run.log(4, loss=40.0)
            run.log(5, loss=50.0)
        expected = [1.0, 2.0, 3.0, 40.0, 50.0]
        assert [row["loss"] for row in run.history()] == expected
        assert scalars(run.directory) == {"loss": list(enumerate(expected, start=1))}

    def test_without_a_checkpoint_the_metrics_begin_anew(self, run: Run) -> None:
        with run:
            run.log(1, loss=1.0)
        with run:
            run.log(1, loss=2.0)
        assert run.history() == [{"step": 1, "loss": 2.0}]
        assert scalars(run.directory) == {"loss": [(1, 2.0)]}

    def test_a_line_cut_in_its_middle_is_dropped(self, run: Run) -> None:
        with run:
            run.log(1, loss=1.0)
            run.log(2, loss=2.0)
            run.save_checkpoint(2, {})
        path = run.directory / "metrics.jsonl"
        path.write_bytes(path.read_bytes()[:-7])
        assert run.history() == [{"step": 1, "loss": 1.0}]
        with run:
            run.resume()
            run.log(2, loss=2.5)
        assert run.history() == [{"step": 1, "loss": 1.0}, {"step": 2, "loss": 2.5}]

    def test_a_line_of_garbage_is_dropped(self, run: Run) -> None:
        with run:
            run.log(1, loss=1.0)
        with (run.directory / "metrics.jsonl").open("ab") as file:
            file.write(b"\0\0\xff\n7\n")
        assert run.history() == [{"step": 1, "loss": 1.0}]

    def test_figures_drawn_before_the_checkpoint_stay_in_the_record(self, run: Run) -> None:
        with run:
            with run.figure("before.svg", "drawn before") as path:
                path.write_text("<svg/>")
            run.save_checkpoint(1, {})
        again = Run(run.directory.parents[2], run.key, run.config)
        with again:
            again.resume()
            result = again.finish({})
        assert [figure["file"] for figure in result["figures"]] == ["figures/before.svg"]

    def test_time_before_the_interruption_is_counted(self, run: Run) -> None:
        with run:
            time.sleep(0.2)
            run.save_checkpoint(1, {})
        with run:
            run.resume()
            result = run.finish({})
        assert result["timing"]["seconds"] >= 0.2

    def test_global_generators_go_on_where_the_checkpoint_left_them(self, run: Run) -> None:
        def draw() -> tuple[float, float, float]:
            return random.random(), float(np.random.rand()), float(torch.rand(()))

        with run:
            run.save_checkpoint(1, {})
            expected = draw()
        with run:
            run.resume()
            assert draw() == expected

    def test_a_checkpoint_is_due_after_the_given_time(self, tmp_path: Path, key: RunKey) -> None:
        with Run(tmp_path, key, {}, checkpoint_seconds=0.05) as run:
            due = [run.is_checkpoint_due]
            time.sleep(0.06)
            due.append(run.is_checkpoint_due)
            run.save_checkpoint(1, {})
            due.append(run.is_checkpoint_due)
        assert due == [False, True, False]

    def test_killed_in_the_middle_of_an_epoch_and_started_again_gives_identical_metrics(
        self, in_process: InProcess, tmp_path: Path
    ) -> None:
        assert in_process(TRAINING + "train(root=Path('undisturbed'))").status == 0
        for stop in ((1, 4), (2, 3), (3, 1)):  # after, right after, and before a checkpoint
            assert in_process(TRAINING + f"train(stop={stop})").status == -9
            assert not find_results(tmp_path / "runs", "coca", "quick")
        ended = in_process(TRAINING + "train()")
        assert ended.status == 0
        assert "mnist-coca-seed3 goes on from epoch 2" in ended.stderr
        (disturbed,) = find_results(tmp_path / "runs", "coca", "quick")
        (undisturbed,) = find_results(tmp_path / "undisturbed", "coca", "quick")
        assert disturbed["metrics"] == undisturbed["metrics"]
        assert disturbed["curves"] == undisturbed["curves"]
        lines = [
            (tmp_path / root / "coca/quick/mnist-coca-seed3/metrics.jsonl").read_bytes()
            for root in ("runs", "undisturbed")
        ]
        assert lines[0] == lines[1]


class TestCheckpointFiles:
    @pytest.mark.parametrize("share", [0.0, 0.01, 0.3, 0.6, 0.9, 0.99, 0.999])
    def test_a_truncated_checkpoint_is_named_in_one_sentence(self, run: Run, share: float) -> None:
        with run:
            run.save_checkpoint(1, {"weight": torch.ones(1000)})
        path = run.directory / "checkpoint.pt"
        path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
        with (
            run,
            pytest.raises(TenfoldError, match=r"checkpoint\.pt is truncated, corrupt.*--force") as error,
        ):
            run.resume()
        assert "\n" not in str(error.value)

    def test_damage_is_either_harmless_or_named(self, tmp_path: Path) -> None:
        path = tmp_path / "a.pt"
        save_atomically(path, {"weight": torch.ones(3), "nested": {"x": [1, 2.5, "s"]}})
        whole = path.read_bytes()
        generator = random.Random(0)
        for _ in range(150):
            damaged = bytearray(whole)
            for _ in range(generator.choice((1, 8, 64))):
                damaged[generator.randrange(len(damaged))] = generator.randrange(256)
            path.write_bytes(damaged)
            try:
                load_checkpoint(path)
            except TenfoldError as error:
                assert str(path) in str(error)  # noqa: PT017

    def test_a_checkpoint_that_would_run_code_is_refused(self, tmp_path: Path) -> None:
        class Evil:
            def __reduce__(self) -> tuple[Any, ...]:
                return os.mkdir, (str(tmp_path / "broken-in"),)

        torch.save({"state": Evil()}, tmp_path / "evil.pt")
        with pytest.raises(TenfoldError, match="holds more than tensors"):
            load_checkpoint(tmp_path / "evil.pt")
        assert not (tmp_path / "broken-in").exists()

    def test_a_file_that_is_no_dictionary_is_refused(self, tmp_path: Path) -> None:
        torch.save(torch.ones(2), tmp_path / "tensor.pt")
        with pytest.raises(TenfoldError, match="does not hold a checkpoint of ours"):
            load_checkpoint(tmp_path / "tensor.pt")

    def test_a_missing_file_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(TenfoldError, match=r"no checkpoint at .*none\.pt"):
            load_checkpoint(tmp_path / "none.pt")

    def test_a_foreign_checkpoint_is_refused_with_the_way_out(self, run: Run) -> None:
        with run:
            torch.save({"layer.weight": torch.ones(2)}, run.directory / "checkpoint.pt")
            with pytest.raises(TenfoldError, match="another configuration; repeat the run with --force"):
                run.resume()

    def test_a_folder_that_is_missing_is_an_error_about_that_path(self, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError) as error:
            save_atomically(tmp_path / "none" / "graphs.pt", {})
        assert error.value.filename == str(tmp_path / "none" / "graphs.pt")


class TestOtherProcesses:
    """A run on a process that is not the writer."""

    @pytest.fixture
    def reader(self, run: Run) -> Run:
        return Run(run.directory.parents[2], run.key, run.config, is_writer=False)

    def test_it_writes_nothing(self, reader: Run) -> None:
        with reader:
            reader.log(1, loss=1.0)
            reader.save_checkpoint(1, {})
            reader.save_artifact("model.pt", {})
            with reader.figure("a.svg", "") as path:
                path.write_text("<svg/>")
            assert reader.finish({"accuracy": 1.0}) == {}
        assert not reader.directory.exists()

    def test_its_failure_is_not_recorded(self, reader: Run) -> None:
        with pytest.raises(ValueError, match="here"), reader:
            raise ValueError("here")
        assert not reader.directory.exists()

    def test_it_resumes_and_leaves_the_metrics_alone(self, run: Run, reader: Run) -> None:
        with run:
            run.save_checkpoint(1, {"epoch": 1})
            run.log(2, loss=1.0)
        with reader:
            assert reader.resume() == {"epoch": 1}
        assert len(run.history()) == 1

    def test_it_ignores_a_checkpoint_that_the_writer_is_about_to_remove(self, run: Run) -> None:
        with run:
            run.save_checkpoint(1, {"epoch": 1})
        other = Run(run.directory.parents[2], run.key, {"lr": 0.3}, is_writer=False)
        with other:
            assert other.resume() is None


LOOP = """
from pathlib import Path
import itertools, torch
from tenfold.shared.runs import Run, RunKey
key = RunKey("coca", "quick", "mnist-coca", 3, "MNIST", "small", "CoCa")
for lr in itertools.count():
    with Run(Path("runs"), key, {"lr": lr % 3}) as run:
        begin = (run.resume() or {"step": -1})["step"] + 1
        for step in range(begin, begin + 5):
            run.log(step, loss=step)
            run.save_checkpoint(step, {"step": step, "weight": torch.full((20000,), step)})
            run.save_artifact("model.pt", {"weight": torch.full((20000,), step)})
        run.finish({"loss": 1.0})
"""


class TestInterruption:
    def test_a_kill_at_any_moment_leaves_a_readable_directory(
        self, in_process: InProcess, tmp_path: Path, key: RunKey
    ) -> None:
        generator = random.Random(1)
        directory = tmp_path / "runs" / key.path
        for _ in range(15):
            assert in_process(LOOP, kill_after=generator.uniform(0.02, 0.25)).status == -9
            for name in ("checkpoint.pt", "model.pt"):
                if (directory / name).exists():
                    weight = load_checkpoint(directory / name).get("weight", torch.zeros(1))
                    assert (weight == weight[0]).all()
            for name in ("config.json", "result.json"):
                if (directory / name).exists():
                    content = json.loads((directory / name).read_text())
                    assert content["config_hash"] == config_hash(content["config"])
            steps = [row["step"] for row in Run(tmp_path / "runs", key, {}).history()]
            assert steps == list(range(len(steps)))
        run = Run(tmp_path / "runs", key, {"lr": "last"})
        finish(run)
        assert run.is_finished
        assert partial_files(tmp_path) == []

    def test_a_kill_between_writing_and_replacing_keeps_the_old_file(
        self, in_process: InProcess, run: Run
    ) -> None:
        with run:
            run.save_checkpoint(1, {"epoch": 1})
        path = run.directory / "checkpoint.pt"
        program = f"""
            import os
            from pathlib import Path
            from tenfold.shared.runs import replaced
            with replaced(Path({str(path)!r})) as temporary:
                temporary.write_bytes(b"half")
                os.kill(os.getpid(), 9)
        """
        assert in_process(program).status == -9
        assert len(partial_files(run.directory)) == 1
        with run:
            assert run.resume() == {"epoch": 1}
            assert partial_files(run.directory) == []

    def test_ctrl_c_says_one_line_exits_with_130_and_leaves_a_resumable_run(
        self, in_process: InProcess, tmp_path: Path, key: RunKey
    ) -> None:
        ended = in_process(
            TRAINING + "with errors_in_one_line():\n    train(stop=(2, 4), how=signal.SIGINT)\n"
        )
        assert ended.status == 130
        assert len(ended.stderr.splitlines()) == 1
        assert ended.stderr.startswith("error: interrupted")
        directory = tmp_path / "runs" / key.path
        assert not (directory / "result.json").exists()
        assert load_checkpoint(directory / "checkpoint.pt")["state"]["epoch"] == 2
        assert partial_files(tmp_path) == []
        assert in_process(TRAINING + "train()").status == 0
        assert len(find_results(tmp_path / "runs", "coca", "quick")) == 1


FULL_DISK = """
import resource
from pathlib import Path
import torch
from tenfold.shared.logging import errors_in_one_line, get_logger
from tenfold.shared.runs import Run, RunKey, save_atomically
resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, 40_000))
key = RunKey("coca", "quick", "mnist-coca", 3, "MNIST", "small", "CoCa")
big = torch.zeros(100_000)
nulls = {name: float("nan") for name in "abcdefgh"}
"""
WITHIN_RUN = """
with errors_in_one_line(), Run(Path("runs"), key, {"lr": 0.1}) as run:
    run.log(1, loss=1.0)
    run.save_checkpoint(1, {"epoch": 1})
"""


class TestFullDisk:
    """A limit on the size of files gives the same kind of OSError as a full disk, from the same system call."""

    @pytest.mark.parametrize(
        ("blamed", "program"),
        [
            ("config.json", 'with errors_in_one_line(), Run(Path("runs"), key, {"x": "y" * 50_000}): pass'),
            ("checkpoint.pt", WITHIN_RUN + '    run.save_checkpoint(2, {"weight": big})'),
            ("model.pt", WITHIN_RUN + '    run.save_artifact("model.pt", {"weight": big})'),
            (
                "metrics.jsonl",
                WITHIN_RUN + "    for step in range(2, 4000): run.log(step, loss=1.0, **nulls)",
            ),
            ("events.out", WITHIN_RUN + "    for step in range(2, 4000): run.log(step, a=1, b=1, c=1)"),
            ("result.json", WITHIN_RUN + "    run.finish({str(i): 1.0 for i in range(4000)})"),
            (
                "a.svg",
                WITHIN_RUN + '    with run.figure("a.svg", "") as path: path.write_bytes(bytes(50_000))',
            ),
            ("graphs.pt", 'with errors_in_one_line(): save_atomically(Path("graphs.pt"), {"weight": big})'),
        ],
        ids=lambda value: value if len(value) < 20 else "",
    )
    def test_one_line_status_2_and_nothing_half_written(
        self, in_process: InProcess, tmp_path: Path, key: RunKey, blamed: str, program: str
    ) -> None:
        ended = in_process(FULL_DISK + program)
        assert ended.status == 2
        assert len(ended.stderr.splitlines()) == 1, ended.stderr
        assert re.match(rf"error: File too large \(.*{re.escape(blamed)}.*\); free some space", ended.stderr)
        assert partial_files(tmp_path) == []
        directory = tmp_path / "runs" / key.path
        if WITHIN_RUN in program:
            assert (directory / "metrics.jsonl").read_bytes().endswith(b"}\n")
            assert load_checkpoint(directory / "checkpoint.pt")["state"] == {"epoch": 1}
            result = read_json(directory / "result.json")
            assert result is None or result["status"] == "failed"
            assert scalars(directory)["loss" if "a=1" not in program else "a"]
        else:
            assert not list(tmp_path.rglob(f"{blamed}*"))

    def test_a_full_disk_does_not_make_the_log_file_talk(self, in_process: InProcess, tmp_path: Path) -> None:
        said = "    for _ in range(600): get_logger('coca').debug('x' * 100)\n    run.finish({})"
        ended = in_process(FULL_DISK + "get_logger('tenfold').setLevel(10)\n" + WITHIN_RUN + said)
        assert "Traceback" not in ended.stderr
        assert "Logging error" not in ended.stderr
        log = next(tmp_path.rglob("log.txt")).read_text()
        assert log.endswith("x\n")


class TestUnwritableDirectory:
    PROGRAM = """
        from pathlib import Path
        from tenfold.shared.logging import errors_in_one_line
        from tenfold.shared.runs import Run, RunKey
        key = RunKey("coca", "quick", "mnist-coca", 3, "MNIST", "small", "CoCa")
        with errors_in_one_line(), Run(Path("runs"), key, {}) as run:
            run.log(1, loss=1.0)
    """

    @pytest.mark.parametrize("place", ["runs", "runs/coca", "runs/coca/quick/mnist-coca-seed3"])
    def test_a_file_in_place_of_the_directory(
        self, in_process: InProcess, tmp_path: Path, place: str
    ) -> None:
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / place).write_text("a file")
        ended = in_process(self.PROGRAM)
        assert ended.status == 2
        assert len(ended.stderr.splitlines()) == 1
        assert "cannot create the run directory runs/coca/quick/mnist-coca-seed3" in ended.stderr
        assert "choose another --output" in ended.stderr
        assert (tmp_path / place).read_text() == "a file"

    @pytest.mark.parametrize("place", ["runs", "runs/coca/quick/mnist-coca-seed3"])
    def test_a_directory_without_permission(self, in_process: InProcess, tmp_path: Path, place: str) -> None:
        (tmp_path / place).mkdir(parents=True)
        (tmp_path / place).chmod(0o555)
        tmp_path.chmod(0o755)
        nobody = "import os\nif os.geteuid() == 0: os.seteuid(65534)\n"  # root may write anywhere
        ended = in_process(nobody + textwrap.dedent(self.PROGRAM))
        (tmp_path / place).chmod(0o755)
        assert ended.status == 2
        assert len(ended.stderr.splitlines()) == 1
        assert "Permission denied" in ended.stderr
        assert "--output" in ended.stderr
        assert not [path for path in (tmp_path / "runs").rglob("*") if path.is_file()]


ABSOLUTE = [
    "/home/alice/data",
    "/home/alice/",
    "//home/alice/data",
    "~/data",
    "~alice/data",
    "--data-root=/home/alice/data",
    "--data-root=~/alice/data",
    "-o/home/alice/data",
    "/home/alice smith/my data",
    "--paths=/srv/alice/a,/srv/alice/b",
    "--map=a:/srv/alice/a",
    '{"root": "/home/alice/data", "x": 1}',
    "[/home/alice/data]",
    "file:///home/alice/data",
    r"C:\Users\alice\data",
    "D:/alice/data",
    r"\\server\alice\data",
    "--note=see /home/alice/data",
]


class TestPrivacy:
    @pytest.mark.parametrize("argument", ABSOLUTE)
    def test_an_absolute_path_in_an_argument_is_cut_to_its_last_part(self, argument: str) -> None:
        command = command_line("coca", ["/opt/alice/bin/tenfold-coca", argument])
        assert command.startswith("tenfold-coca ")
        for part in ("home", "alice/", "alice ", "alice\\", "srv", "Users", "server", "opt", "smith"):
            assert part not in command

    @pytest.mark.parametrize(
        ("argument", "shown"),
        [
            ("/home/alice/data", "…/data"),
            ("--data-root=/home/alice/data", "--data-root=…/data"),
            ("--lr=1/2", "--lr=1/2"),
            ("runs/one", "runs/one"),
            ("../runs/one", "../runs/one"),
            ("./runs", "./runs"),
            ("--name=a b", "'--name=a b'"),
            ("--pattern=\\d+", "'--pattern=\\d+'"),
            ("https://example.org/files/data", "https://example.org/files/data"),
            ("/", "/"),
        ],
    )
    def test_what_the_record_shows_of_an_argument(self, argument: str, shown: str) -> None:
        assert command_line("coca", ["tenfold-coca", argument]) == f"tenfold-coca {shown}"

    def test_the_users_name_is_no_part_of_a_shown_path(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(getpass, "getuser", lambda: "alice")
        for argument in ("/home/alice", "/data/alice/", "../alice/data", "--o=x/alice", "file:///home/alice"):
            assert "alice" not in cut_paths_in_argument(argument)
            assert "alice" not in cut_paths(f"cannot read {argument}; look there")
        assert cut_paths("alice-blue malice/x") == "alice-blue malice/x"

    def test_a_module_that_was_started_is_shown_as_its_command(self) -> None:
        assert command_line("pmt-iqa", ["/x/pmt_iqa/__main__.py", "train"]) == "tenfold-pmt-iqa train"
        assert command_line("coca", ["-c"]) == "tenfold-coca"
        assert command_line("coca", []) == "tenfold-coca"

    @pytest.mark.parametrize(
        ("message", "cut"),
        [
            ("no checkpoint at /home/al/x.pt; give another", "no checkpoint at …/x.pt; give another"),
            ("[Errno 2] No such file: '/home/a l/b c.npz'", "[Errno 2] No such file: '…/b c.npz'"),
            ("loss 1/2, paper / reproduced and/or", "loss 1/2, paper / reproduced and/or"),
            ("(/a/b) and /c/d/e.", "(…/b) and …/e."),
        ],
    )
    def test_messages_lose_absolute_paths_and_nothing_else(self, message: str, cut: str) -> None:
        assert cut_paths(message) == cut

    def test_a_record_holds_nothing_of_this_machine_and_its_user(
        self, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        here, home = Path.cwd(), Path.home()
        arguments = [str(tmp_path / "bin/tenfold-coca"), "reproduce", "--output", str(tmp_path / "runs")]
        arguments += [f"--data-root={home}/data", f"--cache={home}", f"-o{here}/x", f"{here},{home / 'x'}"]
        arguments += [json.dumps({"data": str(home / "data")}), f"file://{here}/x", str(here / "a b" / "c")]
        monkeypatch.setattr(sys, "argv", arguments)
        with run:
            run.log(1, loss=1.0)
            run.save_artifact("model.pt", {"weight": torch.ones(1)})
            run.save_checkpoint(1, {})
            get_logger("coca").warning("data in %s and %s", home / "data", here)
            run.finish({})
        private = [str(tmp_path), str(here) + "/", socket.gethostname()]
        private += [str(home) + "/"] if str(home) != "/" else []
        for path in run.directory.rglob("*"):
            content = path.name.encode() + path.read_bytes()
            assert not [text for text in private if text.encode() in content], path.name
        environment = json.dumps((run.result or {})["environment"], ensure_ascii=False)
        assert not re.search(r"""(?:^|[\s="':,])/\w""", environment)
        assert not re.search(rf"(?<![\w-]){re.escape(getpass.getuser())}(?![\w-])", environment)

    def test_the_record_says_what_computed_it(self, run: Run) -> None:
        environment = finish(run)["environment"]
        assert torch.__version__.startswith(environment["packages"]["torch"])
        assert environment["python"] == sys.version.split()[0]
        assert environment["hardware"]["cpu_cores"] >= 1
        assert environment["git"]["commit"] is None or re.fullmatch(
            "[0-9a-f]{40}", environment["git"]["commit"]
        )

    @pytest.mark.parametrize(
        ("changed", "dirty"), [("benchmarks/results/new.json", False), ("code.py", True)]
    )
    def test_a_checkout_with_new_stored_results_alone_is_not_dirty(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changed: str, dirty: bool
    ) -> None:
        module = tmp_path / "shared" / "provenance.py"
        for path in (module, tmp_path / "code.py", tmp_path / "benchmarks" / "results" / "new.json"):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("1")
        git = ["git", "-c", "user.name=N", "-c", "user.email=e@example.org", "-C", str(tmp_path)]
        for arguments in (["init", "--quiet"], ["add", "--all"], ["commit", "--quiet", "--message", "all"]):
            subprocess.run([*git, *arguments], check=True, timeout=60)
        monkeypatch.setattr(_provenance, "__file__", str(module))
        original = _provenance._git_commit.__wrapped__
        assert original()["dirty"] is False
        (tmp_path / changed).write_text("2")
        assert original()["dirty"] is dirty

    def test_peak_memory_is_plausible(self, run: Run) -> None:
        assert finish(run)["timing"]["peak_memory_bytes"] > 50_000_000

    @pytest.mark.gpu
    def test_peak_memory_is_the_gpus_where_it_was_used(self, run: Run) -> None:
        torch.cuda.reset_peak_memory_stats()
        torch.ones(1_000_000, device="cuda")
        assert finish(run)["timing"]["peak_memory_bytes"] == torch.cuda.max_memory_allocated()


@pytest.fixture(autouse=True)
def _logging_as_before() -> Any:
    level = logging.getLogger("tenfold").level
    yield
    logging.getLogger("tenfold").setLevel(level)


def test_the_example_of_the_readme_runs_and_is_skipped_the_second_time(
    in_process: InProcess, tmp_path: Path
) -> None:
    readme = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    example = readme.split("```python\n")[1].split("```")[0]
    first, second = in_process(example), in_process(example)
    assert (first.status, second.status) == (0, 0), first.stderr
    assert "{'loss': 1.9" in first.stdout
    assert second.stdout == first.stdout
    (result,) = find_results(tmp_path / "runs", "coca", "quick")
    assert len(result["curves"]["loss"]["x"]) == 20


def test_two_processes_cannot_write_one_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    key = RunKey("coca", "quick", "mnist-coca", 3, "MNIST", "small", "CoCa")
    now = iter(range(0, 1000, 10))
    monkeypatch.setattr("tenfold.shared._files.time.monotonic", lambda: next(now))
    # The lock belongs to the open directory, so a second run in this process will do.
    with (
        Run(tmp_path, key, {}),
        pytest.raises(TenfoldError, match="another process is writing"),
        Run(tmp_path, key, {}),
    ):
        pass
    with Run(tmp_path, key, {}) as run:
        run.finish({})
