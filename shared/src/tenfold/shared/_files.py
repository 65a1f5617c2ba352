"""Files written whole or not at all: a kill, an error or a full disk leaves what was there before."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any


@contextmanager
def replaced(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; on success it takes the place of ``path`` in one step.

    Raises:
        OSError: writing failed; its ``filename`` is ``path``, unless another file is to blame.
    """
    temporary = path.with_name(f".{os.getpid()}.partial.{path.name}")
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        if error.filename in (None, str(temporary)):
            raise OSError(error.errno, error.strerror or str(error), str(path)) from error
        raise
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def lock(directory: Path, patience: float = 5.0) -> int | None:
    """Take a directory's lock; it lasts until the returned descriptor is closed or the process ends, however it does.

    None where the system or the file system has no such locks.

    Raises:
        BlockingIOError: another process holds it for longer than ``patience`` seconds.
    """
    try:
        import fcntl
    except ImportError:  # not on Windows
        return None
    descriptor = os.open(directory, os.O_RDONLY)
    deadline = time.monotonic() + patience
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return descriptor
        except BlockingIOError:
            if time.monotonic() > deadline:
                os.close(descriptor)
                raise
            time.sleep(0.1)
        except OSError:
            os.close(descriptor)
            return None


def remove_partial(directory: Path) -> None:
    """Remove the temporary files that a process killed inside :func:`replaced` left below ``directory``."""
    for leftover in directory.rglob(".*.partial.*"):
        leftover.unlink(missing_ok=True)


def append_whole(path: Path, content: bytes) -> None:
    """Append all of ``content`` to a file, which is created where there is none.

    Raises:
        OSError: there was no room, and the file is as long as before.
    """
    with path.open("ab", buffering=0) as file:
        size_before = file.seek(0, os.SEEK_END)
        try:
            while content:
                content = content[file.write(content) :]
        except OSError as error:
            file.truncate(size_before)
            raise OSError(error.errno, error.strerror, str(path)) from error


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


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a file with one on each line; a line that a kill cut off is left out."""
    if not path.exists():
        return []
    text = path.read_text(encoding="utf-8", errors="replace")
    rows = []
    for line in text[: text.rfind("\n") + 1].splitlines():
        with suppress(json.JSONDecodeError):
            rows.append(json.loads(line))
    return [row for row in rows if isinstance(row, dict)]
