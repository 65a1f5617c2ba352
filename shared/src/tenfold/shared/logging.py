"""What a run says to the person who started it: log lines, progress bars, and errors in one sentence."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn, TypeVar

from rich.console import Console
from rich.logging import RichHandler
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

T = TypeVar("T")

_ROOT = "tenfold"


class TenfoldError(Exception):
    """Something the user can mend. The message is one sentence that says what to do."""


def get_logger(name: str) -> logging.Logger:
    """The logger ``tenfold.<name>``, written to standard error: coloured on a terminal, plain elsewhere."""
    root = logging.getLogger(_ROOT)
    if not root.handlers:
        root.addHandler(_console_handler())
        root.setLevel(logging.INFO)
        root.propagate = False
    return logging.getLogger(name if name.startswith(_ROOT) else f"{_ROOT}.{name}")


def log_to_file(path: Path) -> Callable[[], None]:
    """Also write every log line to ``path``, plain; returns the function that stops it."""
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    root = get_logger(_ROOT)
    root.addHandler(handler)

    def stop() -> None:
        root.removeHandler(handler)
        handler.close()

    return stop


def set_quiet(quiet: bool) -> None:
    """With ``quiet``, only warnings and errors are said, and progress bars stay away."""
    get_logger(_ROOT).setLevel(logging.WARNING if quiet else logging.INFO)


def progress(items: Iterable[T], description: str, total: int | None = None) -> Iterator[T]:
    """Iterate with a progress bar, which is drawn only on a terminal and vanishes when done."""
    console = Console(stderr=True)
    if not console.is_terminal or get_logger(_ROOT).level > logging.INFO:
        yield from items
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        yield from bar.track(items, total=total, description=description)


@contextmanager
def errors_in_one_line() -> Iterator[None]:
    """Turn what a user can mend into one sentence on standard error and a non-zero exit status.

    Exit status 2 for a :class:`TenfoldError` or a failing file operation (full disk, no permission), 130 for
    Ctrl-C. Anything else is a defect of ours and keeps its traceback. ``TENFOLD_DEBUG=1`` keeps every traceback.
    """
    if os.environ.get("TENFOLD_DEBUG") == "1":
        yield
        return
    try:
        yield
    except TenfoldError as error:
        _fail(str(error), status=2)
    except KeyboardInterrupt:
        _fail("interrupted; what was finished is kept, and the same command goes on from there", status=130)
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        _fail(f"{error.strerror or error}{where}; free the disk or choose another --output and run again", status=2)


def _fail(message: str, status: int) -> NoReturn:
    Console(stderr=True, soft_wrap=True, highlight=False).print(f"[bold red]error:[/] {_escape(message)}")
    sys.exit(status)


def _escape(message: str) -> str:
    return message.replace("[", r"\[")


def _console_handler() -> logging.Handler:
    console = Console(stderr=True)
    if console.is_terminal:
        return RichHandler(console=console, show_path=False, log_time_format="%X")
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", datefmt="%H:%M:%S"))
    return handler
