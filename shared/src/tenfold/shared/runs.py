"""The record a run leaves behind: one directory, written so that a kill at any moment leaves it readable.

``<root>/<paper>/<profile>/<name>-seed<k>/`` holds

====================  =====================================================================
``config.json``       every hyperparameter, and the hash that identifies them
``metrics.jsonl``     one line per logged step; a line cut off by a kill is dropped on reading
``events.out.*``      the same for TensorBoard
``checkpoint.pt``     everything needed to go on, while the run is unfinished
``result.json``       the outcome (schema version 1), written last; its ``status`` says finished or failed
``log.txt``           what was said while the run was done
``figures/``, ``*.pt``  pictures and artifacts that ``result.json`` or later runs refer to
====================  =====================================================================
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch

from tenfold.shared._events import append_scalars, remove_events
from tenfold.shared._files import (
    append_whole,
    lock,
    read_json,
    read_json_lines,
    remove_partial,
    replaced,
    write_json,
)
from tenfold.shared._privacy import cut_paths
from tenfold.shared._provenance import environment, peak_memory_bytes
from tenfold.shared.logging import TenfoldError, get_logger, log_to_file
from tenfold.shared.seeding import restore_rng_state, rng_state

__all__ = [
    "SCHEMA_VERSION",
    "Run",
    "RunKey",
    "config_hash",
    "environment",
    "find_results",
    "finite_or_none",
    "load_checkpoint",
    "peak_memory_bytes",
    "plain",
    "read_json",
    "replaced",
    "save_atomically",
    "write_json",
]

SCHEMA_VERSION = 1

logger = get_logger("runs")


@dataclasses.dataclass(frozen=True)
class RunKey:
    """What a run is. ``dataset``, ``setting`` and ``method`` join it with the paper's reported numbers.

    Raises:
        TenfoldError: paper, profile or name cannot be the name of a directory.
    """

    paper: str
    profile: str
    name: str
    seed: int
    dataset: str
    setting: str
    method: str

    def __post_init__(self) -> None:
        for field in ("paper", "profile", "name"):
            if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", getattr(self, field)):
                raise TenfoldError(
                    f"the {field} of a run is made of letters, digits, '.', '_' and '-' and begins with a letter "
                    f"or digit, unlike {getattr(self, field)!r}"
                )

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
        self._stop_log_file = lambda: None
        self._lock: int | None = None

    # -- state of the directory ------------------------------------------------------------------------

    @property
    def result(self) -> dict[str, Any] | None:
        """The finished result of exactly this configuration, or None; one of another schema is to be made again."""
        result = read_json(self.directory / "result.json")
        if result is None or not self._owns(result) or result.get("schema_version") != SCHEMA_VERSION:
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
                f"cannot create the run directory {self.directory} ({error.strerror}); "
                "choose another --output"
            ) from error
        try:
            self._lock = lock(self.directory)
        except BlockingIOError:
            raise TenfoldError(
                f"another process is writing {self.directory}; wait until it is done, or stop it"
            ) from None
        stored = read_json(self.directory / "config.json")
        if stored is None or not self._owns(stored):
            self.clear()
        (self.directory / "result.json").unlink(missing_ok=True)
        remove_partial(self.directory)
        write_json(
            self.directory / "config.json",
            {"config_hash": self.config_hash, **dataclasses.asdict(self.key), "config": self.config},
        )
        if not (self.directory / "checkpoint.pt").exists():
            self._keep_metrics([])
        self._stop_log_file = log_to_file(self.directory / "log.txt")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop_log_file()
        if self.is_writer and isinstance(error, Exception) and not self.is_finished:
            with suppress(OSError):  # a full disk must not hide the error that is on its way
                reason = cut_paths(f"{type(error).__name__}: {error}")
                self._write_result({}, "failed", None, None, error=reason)
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def clear(self) -> None:
        """Remove everything in the directory: the record of another configuration, or one to be repeated."""
        (self.directory / "result.json").unlink(missing_ok=True)  # first: without the rest it would mislead
        for path in sorted(self.directory.iterdir()) if self.directory.is_dir() else []:
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()

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
            "figures": self._figures,
            "state": dict(state),
        }
        save_atomically(self.directory / "checkpoint.pt", content)
        self._last_checkpoint = time.monotonic()

    @property
    def is_checkpoint_due(self) -> bool:
        return time.monotonic() - self._last_checkpoint >= self.checkpoint_seconds

    def resume(self) -> dict[str, Any] | None:
        """The state of the last checkpoint, with all global RNGs put back; None where there is none.

        Every process of a distributed run gets the state, and the RNG states of the one that wrote it.

        Raises:
            TenfoldError: the checkpoint is truncated, corrupt, or of another configuration.
        """
        path = self.directory / "checkpoint.pt"
        if not path.exists():
            return None
        content = load_checkpoint(path)
        if content.get("config_hash") != self.config_hash:
            if not self.is_writer:  # the writer is about to remove it
                return None
            raise TenfoldError(f"{path} belongs to another configuration; repeat the run with --force")
        self._keep_metrics([row for row in self.history() if row["step"] <= content["step"]])
        self._figures = content.get("figures", [])
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
        append_whole(self.directory / "metrics.jsonl", _line(row))
        append_scalars(self.directory, row)

    def history(self) -> list[dict[str, Any]]:
        """The complete lines of ``metrics.jsonl``, in order."""
        return read_json_lines(self.directory / "metrics.jsonl")

    def save_artifact(self, name: str, content: Mapping[str, Any]) -> Path:
        """Store tensors and plain values under ``name`` in the run directory; returns the path."""
        path = self.directory / name
        if self.is_writer:
            save_atomically(path, content)
        return path

    @contextmanager
    def figure(self, name: str, caption: str) -> Iterator[Path]:
        """Yield the path to draw a picture to; it appears in the record once it is complete."""
        if not self.is_writer:
            with tempfile.TemporaryDirectory() as discarded:
                yield Path(discarded, name)
            return
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
        """Write ``result.json``, which ends the run, and drop the checkpoint; returns the result.

        It is empty on a process that does not write.
        """
        if not self.is_writer:
            return {}
        result = self._write_result(metrics, "finished", throughput, throughput_unit)
        (self.directory / "checkpoint.pt").unlink(missing_ok=True)
        return result

    # -- inside ----------------------------------------------------------------------------------------

    def _owns(self, record: Mapping[str, Any]) -> bool:
        """Whether a ``config.json`` or ``result.json`` is of this key and configuration."""
        expected = {"config_hash": self.config_hash, **dataclasses.asdict(self.key)}
        return all(record.get(name) == value for name, value in expected.items())

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

    def _keep_metrics(self, rows: list[dict[str, Any]]) -> None:
        """Make ``rows`` all there is in ``metrics.jsonl`` and the TensorBoard events."""
        path = self.directory / "metrics.jsonl"
        if not self.is_writer or not path.exists():
            return
        with replaced(path) as temporary:
            temporary.write_bytes(b"".join(_line(row) for row in rows))
        remove_events(self.directory)
        for row in rows:
            append_scalars(self.directory, row)


def _line(row: Mapping[str, Any]) -> bytes:
    return json.dumps(row).encode() + b"\n"


# -- checkpoints and results --------------------------------------------------------------------------


def save_atomically(path: Path, content: Mapping[str, Any]) -> None:
    """``torch.save`` in one step.

    Raises:
        OSError: the disk is full, or the file cannot be written.
    """
    with replaced(path) as temporary, temporary.open("wb") as file:
        try:
            torch.save(content, file)
        except RuntimeError as error:  # torch's archive writer hides why a write failed
            reason = error.__context__
            if isinstance(reason, OSError):
                raise OSError(reason.errno, reason.strerror) from error
            raise


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read what :func:`save_atomically` wrote, as plain state on the CPU.

    Raises:
        TenfoldError: the file is missing, truncated, or holds anything but tensors and plain values.
        OSError: the file cannot be read.
    """
    try:
        file = path.open("rb")
    except FileNotFoundError as error:
        raise TenfoldError(f"no checkpoint at {path}; give the path of an existing file") from error
    try:
        with file:
            content = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file can make the reader raise anything
        raise TenfoldError(
            f"{path} is truncated, corrupt, or holds more than tensors and plain values; "
            "replace it, or repeat the run that wrote it with --force"
        ) from error
    if not isinstance(content, dict):
        raise TenfoldError(f"{path} does not hold a checkpoint of ours (a dictionary was expected)")
    return content


def find_results(root: Path, paper: str, profile: str) -> list[dict[str, Any]]:
    """All ``result.json`` of one profile that are of this schema, in order of their directories' names."""
    results = [read_json(path) for path in sorted((root / paper / profile).glob("*/result.json"))]
    return [result for result in results if result and result.get("schema_version") == SCHEMA_VERSION]


# -- configuration -------------------------------------------------------------------------------------


def plain(value: Any) -> Any:
    """A dataclass, mapping, sequence or scalar as what JSON can hold; inf and nan become their names."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
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
