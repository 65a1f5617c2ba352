"""The record a run leaves behind: one directory, written so that a kill at any moment leaves it readable.

``<root>/<paper>/<profile>/<name>-seed<k>/`` holds

====================  =====================================================================
``config.json``       every hyperparameter, and the hash that identifies them
``metrics.jsonl``     one line per logged step; a line cut off by a kill is dropped on reading
``events.out.*``      the same for TensorBoard
``checkpoint.pt``     everything needed to go on, while the run is unfinished
``result.json``       the outcome (schema version 1), written last; its presence means *finished*
``figures/``, ``*.pt``  pictures and artifacts that ``result.json`` or later runs refer to
====================  =====================================================================
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import json
import math
import os
import pickle
import platform
import re
import shlex
import shutil
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path, PurePath
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import torch

from tenfold.shared.logging import TenfoldError, get_logger, log_to_file
from tenfold.shared.seeding import restore_rng_state, rng_state

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

SCHEMA_VERSION = 1

logger = get_logger("runs")


@dataclasses.dataclass(frozen=True)
class RunKey:
    """What a run is. ``dataset``, ``setting`` and ``method`` join it with the paper's reported numbers."""

    paper: str
    profile: str
    name: str
    seed: int
    dataset: str
    setting: str
    method: str

    @property
    def path(self) -> Path:
        """Where the run lives below the root of all runs."""
        return Path(self.paper, self.profile, f"{self.name}-seed{self.seed}")


class Run:
    """One run and its directory.

    Use it as a context manager around the work::

        run = Run(Path("runs"), key, config)
        if not run.is_finished:
            with run:
                state = run.resume()          # None on a fresh start
                ...
                run.log(step, loss=loss)
                run.save_checkpoint(step, {"model": model.state_dict()})
                ...
                run.finish({"test_accuracy": accuracy})

    Args:
        root: directory of all runs.
        key: identity of the run.
        config: a dataclass or mapping of plain values that determine the outcome. Paths and device choices
            do not belong in it: they would change the hash and end up in the record.
        x_label: what a logged step counts ("epoch", "iteration"), the x axis of the curves.
        checkpoint_seconds: how long after one checkpoint the next is due.
        is_writer: False on all but one process of a distributed run; such a run reads but never writes.
    """

    def __init__(
        self,
        root: Path,
        key: RunKey,
        config: Any,
        x_label: str = "epoch",
        checkpoint_seconds: float = 15.0,
        is_writer: bool = True,
    ) -> None:
        self.key = key
        self.directory = root / key.path
        self.config = plain(config)
        self.config_hash = config_hash(self.config)
        self.x_label = x_label
        self.is_writer = is_writer
        self.checkpoint_seconds = checkpoint_seconds
        self._started = self._last_checkpoint = time.monotonic()
        self._started_at = datetime.now(UTC)
        self._elapsed_before = 0.0
        self._figures: list[dict[str, str]] = []
        self._tensorboard: SummaryWriter | None = None
        self._stop_log_file = lambda: None

    # -- state of the directory ------------------------------------------------------------------------

    @property
    def result(self) -> dict[str, Any] | None:
        """The finished result of exactly this configuration, or None."""
        result = read_json(self.directory / "result.json")
        if result is None or result.get("config_hash") != self.config_hash:
            return None
        return result if result.get("status") == "finished" else None

    @property
    def is_finished(self) -> bool:
        return self.result is not None

    def __enter__(self) -> Self:
        self._started = self._last_checkpoint = time.monotonic()
        self._started_at = datetime.now(UTC)
        if not self.is_writer:
            return self
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise TenfoldError(
                f"cannot create the run directory {self.directory} ({error.strerror}); choose another --output"
            ) from error
        stored = read_json(self.directory / "config.json")
        if stored is None or stored.get("config_hash") != self.config_hash:
            self.clear()
        write_json(
            self.directory / "config.json",
            {"config_hash": self.config_hash, **dataclasses.asdict(self.key), "config": self.config},
        )
        self._stop_log_file = log_to_file(self.directory / "log.txt")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._tensorboard is not None:
            with suppress(OSError):
                self._tensorboard.close()
            self._tensorboard = None
        self._stop_log_file()
        if self.is_writer and isinstance(error, Exception):
            with suppress(OSError):  # a full disk must not hide the error that is on its way
                self._write_result({}, "failed", None, None, error=f"{kind.__name__ if kind else ''}: {error}")

    def clear(self) -> None:
        """Remove everything in the directory: the record of another configuration, or one to be repeated."""
        for path in sorted(self.directory.iterdir()) if self.directory.is_dir() else []:
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    # -- checkpoints -----------------------------------------------------------------------------------

    def save_checkpoint(self, step: int, state: Mapping[str, Any]) -> None:
        """Store ``state`` (tensors and plain values), the step, and the state of every global RNG.

        Lines of ``metrics.jsonl`` up to ``step`` belong to the checkpoint; later ones are dropped on resume.
        """
        if not self.is_writer:
            return
        content = {
            "config_hash": self.config_hash,
            "step": step,
            "elapsed": self._elapsed(),
            "rng": rng_state(),
            "state": dict(state),
        }
        save_atomically(self.directory / "checkpoint.pt", content)
        self._last_checkpoint = time.monotonic()

    @property
    def is_checkpoint_due(self) -> bool:
        return time.monotonic() - self._last_checkpoint >= self.checkpoint_seconds

    def resume(self) -> dict[str, Any] | None:
        """The state of the last checkpoint, with all global RNGs put back; None where there is none.

        Raises:
            TenfoldError: the checkpoint is truncated or corrupt.
        """
        path = self.directory / "checkpoint.pt"
        if not path.exists():
            self._truncate_metrics(after_step=None)
            return None
        content = load_checkpoint(path)
        if content.get("config_hash") != self.config_hash:
            raise TenfoldError(f"{path} belongs to another configuration; repeat the run with --force")
        self._truncate_metrics(after_step=content["step"])
        self._elapsed_before = content["elapsed"]
        self._started = time.monotonic()
        restore_rng_state(content["rng"])
        logger.info("%s goes on from %s %d", self.directory.name, self.x_label, content["step"])
        state: dict[str, Any] = content["state"]
        return state

    # -- metrics, artifacts, figures -------------------------------------------------------------------

    def log(self, step: int, **values: float) -> None:
        """Append one line to ``metrics.jsonl`` and the same scalars to TensorBoard."""
        if not self.is_writer:
            return
        row = {"step": step, **{name: finite_or_none(value) for name, value in values.items()}}
        with (self.directory / "metrics.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        for name, value in values.items():
            self._events().add_scalar(name, value, step)

    def history(self) -> list[dict[str, Any]]:
        """The complete lines of ``metrics.jsonl``, in order."""
        path = self.directory / "metrics.jsonl"
        return [json.loads(line) for line in _complete_lines(path)] if path.exists() else []

    def save_artifact(self, name: str, content: Mapping[str, Any]) -> Path:
        """Store tensors and plain values under ``name`` in the run directory; returns the path."""
        path = self.directory / name
        if self.is_writer:
            save_atomically(path, content)
        return path

    @contextmanager
    def figure(self, name: str, caption: str) -> Iterator[Path]:
        """Yield the path to draw a picture to; it appears in the record once it is complete."""
        target = self.directory / "figures" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        with replaced(target) as temporary:
            yield temporary
        entry = {"file": f"figures/{name}", "caption": caption}
        self._figures = [figure for figure in self._figures if figure["file"] != entry["file"]] + [entry]

    def finish(
        self,
        metrics: Mapping[str, float],
        throughput: float | None = None,
        throughput_unit: str | None = None,
    ) -> dict[str, Any]:
        """Write ``result.json``, which ends the run, and drop the checkpoint; returns the result."""
        if not self.is_writer:
            return {}
        result = self._write_result(metrics, "finished", throughput, throughput_unit)
        (self.directory / "checkpoint.pt").unlink(missing_ok=True)
        return result

    # -- inside ----------------------------------------------------------------------------------------

    def _write_result(
        self,
        metrics: Mapping[str, float],
        status: str,
        throughput: float | None,
        throughput_unit: str | None,
        error: str | None = None,
    ) -> dict[str, Any]:
        result = {
            "schema_version": SCHEMA_VERSION,
            **dataclasses.asdict(self.key),
            "status": status,
            **({"error": error} if error is not None else {}),
            "metrics": {name: finite_or_none(value) for name, value in metrics.items()},
            "curves": self._curves(),
            "figures": self._figures,
            "config": self.config,
            "config_hash": self.config_hash,
            "environment": environment(self.key.paper),
            "timing": {
                "started_at": self._started_at.isoformat(timespec="seconds"),
                "seconds": round(self._elapsed(), 3),
                "throughput": throughput,
                "throughput_unit": throughput_unit,
                "peak_memory_bytes": peak_memory_bytes(),
            },
        }
        write_json(self.directory / "result.json", result)
        return result

    def _curves(self) -> dict[str, Any]:
        curves: dict[str, Any] = {}
        for row in self.history():
            for name, value in row.items():
                if name != "step":
                    curve = curves.setdefault(name, {"x": [], "y": [], "x_label": self.x_label})
                    curve["x"].append(row["step"])
                    curve["y"].append(value)
        return curves

    def _elapsed(self) -> float:
        return self._elapsed_before + time.monotonic() - self._started

    def _events(self) -> SummaryWriter:
        if self._tensorboard is None:
            from torch.utils.tensorboard import SummaryWriter  # importing it takes a second

            self._tensorboard = SummaryWriter(str(self.directory))
        return self._tensorboard

    def _truncate_metrics(self, after_step: int | None) -> None:
        """Drop the lines after the checkpoint, all of them where there is none."""
        path = self.directory / "metrics.jsonl"
        if not self.is_writer or not path.exists():
            return
        keep = [] if after_step is None else [
            line for line in _complete_lines(path) if json.loads(line)["step"] <= after_step
        ]
        with replaced(path) as temporary:
            temporary.write_text("".join(line + "\n" for line in keep), encoding="utf-8")
        for events in self.directory.glob("events.out.*"):
            events.unlink()
        for line in keep:
            row = json.loads(line)
            for name, value in row.items():
                if name != "step" and value is not None:
                    self._events().add_scalar(name, value, row["step"])


# -- files ---------------------------------------------------------------------------------------------


@contextmanager
def replaced(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; on success it takes the place of ``path`` in one step."""
    temporary = path.with_name(f".{os.getpid()}.partial.{path.name}")
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise OSError(error.errno, error.strerror or str(error), str(path)) from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write JSON (no NaN) in one step."""
    with replaced(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n", encoding="utf-8")


def read_json(path: Path) -> dict[str, Any] | None:
    """The object stored at ``path``; None where there is no file or it is not a JSON object."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError, json.JSONDecodeError, UnicodeDecodeError):
        return None
    return content if isinstance(content, dict) else None


def save_atomically(path: Path, content: Mapping[str, Any]) -> None:
    """``torch.save`` in one step."""
    with replaced(path) as temporary:
        try:
            torch.save(content, temporary)
        except RuntimeError as error:  # how torch's zip writer reports a full disk
            raise OSError(None, f"writing failed: {str(error).splitlines()[0]}", str(path)) from error


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read what :func:`save_atomically` wrote, as plain state on the CPU.

    Raises:
        TenfoldError: the file is missing, truncated, or holds anything but tensors and plain values.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise TenfoldError(f"no checkpoint at {path}; give the path of an existing file") from error
    except (RuntimeError, EOFError, pickle.UnpicklingError, zipfile.BadZipFile, ValueError, KeyError) as error:
        raise TenfoldError(
            f"{path} is truncated or corrupt; delete it (or repeat the run with --force) and run again"
        ) from error
    if not isinstance(content, dict):
        raise TenfoldError(f"{path} does not hold a checkpoint of ours (a dictionary was expected)")
    return content


def find_results(root: Path, paper: str, profile: str) -> list[dict[str, Any]]:
    """All readable ``result.json`` of one profile, in order of their directories' names."""
    paths = sorted((root / paper / profile).glob("*/result.json"))
    return [result for path in paths if (result := read_json(path)) is not None]


def _complete_lines(path: Path) -> list[str]:
    text = path.read_text(encoding="utf-8", errors="replace")
    return text[: text.rfind("\n") + 1].splitlines()


# -- configuration and provenance ----------------------------------------------------------------------


def plain(value: Any) -> Any:
    """A dataclass, mapping, sequence or scalar as what JSON can hold."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"a configuration holds plain values only, not {type(value).__name__}")


def config_hash(config: Mapping[str, Any]) -> str:
    """SHA-256 of the configuration in canonical JSON."""
    canonical = json.dumps(plain(config), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


def finite_or_none(value: float) -> float | None:
    """JSON has no NaN and no infinity: they become null."""
    return float(value) if math.isfinite(value) else None


def environment(paper: str) -> dict[str, Any]:
    """Versions, hardware, commit and command of this process; no host name, user name or absolute path."""
    return {
        "command": command_line(paper, sys.argv),
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "packages": _package_versions(paper),
        "hardware": {
            "cpu": _cpu_model(),
            "cpu_cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
            "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        },
        "git": _git_commit(),
    }


def command_line(paper: str, arguments: list[str]) -> str:
    """The command that was typed, with absolute paths cut to their last part."""
    program = PurePath(arguments[0]).name if arguments else ""
    if program in ("__main__.py", "-c", "-m", ""):
        program = f"tenfold-{paper}"
    shortened = [re.sub(r"(^|=)(~|/|[A-Za-z]:\\)\S*[/\\]", r"\1…/", argument) for argument in arguments[1:]]
    return " ".join([program, *(a if a.startswith("…") else shlex.quote(a) for a in shortened)])


def peak_memory_bytes() -> int | None:
    """Peak memory: on the GPU where CUDA was used, else of this process."""
    if torch.cuda.is_available() and torch.cuda.max_memory_allocated() > 0:
        return int(torch.cuda.max_memory_allocated())
    try:
        import resource
    except ImportError:  # not on Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak if sys.platform == "darwin" else peak * 1024)


def _package_versions(paper: str) -> dict[str, str]:
    names = {"tenfold-shared", f"tenfold-{paper}", "torch"}
    with suppress(importlib.metadata.PackageNotFoundError):
        for requirement in importlib.metadata.requires(f"tenfold-{paper}") or []:
            names.add(re.split(r"[ <>=!~;\[]", requirement, maxsplit=1)[0])
    versions = {}
    for name in sorted(names):
        with suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return versions


def _cpu_model() -> str:
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _git_commit() -> dict[str, Any]:
    """Commit of the checkout that this file is tracked in; nulls for an installed copy."""
    here = Path(__file__)

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(
                ["git", *arguments], cwd=here.parent, capture_output=True, text=True, timeout=10, check=True
            )
        except (OSError, subprocess.SubprocessError):
            return None
        return done.stdout.strip()

    if git("ls-files", "--error-unmatch", here.name) is None:
        return {"commit": None, "dirty": None}
    status = git("status", "--porcelain", "--untracked-files=no")
    return {"commit": git("rev-parse", "HEAD"), "dirty": None if status is None else status != ""}
