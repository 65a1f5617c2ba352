"""What the tests share: a run to record, and processes of their own that start fast."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tenfold.shared.runs import Run, RunKey

SERVER = """
import json, os, signal, sys, time, traceback
import tenfold.shared.runs, torch._dynamo, tensorboard.compat.proto.event_pb2
import tensorboard.summary.writer.record_writer

for line in sys.stdin:
    request = json.loads(line)
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            os.dup2(os.open(request["stdout"], os.O_WRONLY | os.O_CREAT), 1)
            os.dup2(os.open(request["stderr"], os.O_WRONLY | os.O_CREAT), 2)
            os.chdir(request["folder"])
            exec(compile(request["program"], "program", "exec"), {"__name__": "__main__"})
            status = 0
        except SystemExit as end:
            status = end.code or 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
    if request["kill_after"] is not None:
        time.sleep(request["kill_after"])
        os.kill(pid, signal.SIGKILL)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""


@dataclass(frozen=True)
class Ended:
    """How a process ended; ``status`` is minus the signal that killed it."""

    status: int
    stdout: str
    stderr: str


InProcess = Callable[..., Ended]


@pytest.fixture(scope="session")
def _server() -> Iterator[subprocess.Popen[str]]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    server = subprocess.Popen(
        [sys.executable, "-c", SERVER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    )
    yield server
    assert server.stdin is not None
    server.stdin.close()
    server.wait()


@pytest.fixture
def in_process(_server: subprocess.Popen[str], tmp_path: Path) -> InProcess:
    """Run a program in a process of its own (forked from one that has imported torch), in ``tmp_path``."""

    def start(program: str, kill_after: float | None = None) -> Ended:
        files = {name: tmp_path / f"{name}.txt" for name in ("stdout", "stderr")}
        for file in files.values():
            file.unlink(missing_ok=True)
        request = {
            "program": textwrap.dedent(program),
            "folder": str(tmp_path),
            "kill_after": kill_after,
            **{name: str(file) for name, file in files.items()},
        }
        assert _server.stdin is not None
        assert _server.stdout is not None
        _server.stdin.write(json.dumps(request) + "\n")
        _server.stdin.flush()
        status = int(_server.stdout.readline())
        texts = {name: file.read_text() if file.exists() else "" for name, file in files.items()}
        return Ended(status, **texts)

    return start


@pytest.fixture
def key() -> RunKey:
    return RunKey("coca", "quick", "mnist-coca", 3, "MNIST", "small", "CoCa")


@pytest.fixture
def run(tmp_path: Path, key: RunKey) -> Run:
    """A run that has not begun."""
    return Run(tmp_path / "runs", key, {"lr": 0.1, "epochs": 3})
