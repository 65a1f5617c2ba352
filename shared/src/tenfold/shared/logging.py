"""What a run says to the person who started it: log lines, progress bars, and errors in one sentence."""

from __future__ import annotations

import errno
import logging
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NoReturn, TypeVar

from rich.console import Console
from rich.logging import RichHandler
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

from tenfold.shared._files import append_whole
from tenfold.shared._privacy import cut_paths

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
    """Also write every log line to ``path``, plain and without absolute paths; returns what stops it."""
    handler = _FileHandler(path)
    root = get_logger(_ROOT)
    root.addHandler(handler)
    return lambda: root.removeHandler(handler)


class _FileHandler(logging.Handler):
    """Whole lines to a file that others may be shown. A full disk ends the run elsewhere, not here."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        self.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))

    def emit(self, record: logging.LogRecord) -> None:
        with suppress(OSError):
            append_whole(self.path, (cut_paths(self.format(record)) + "\n").encode())


def set_quiet(quiet: bool) -> None:
    """With ``quiet``, only warnings and errors are said, and progress bars stay away."""
    level = logging.WARNING if quiet else logging.INFO
    get_logger(_ROOT).setLevel(level)
    logging.getLogger("lightning_fabric").setLevel(level)  # announces its devices and processes


def progress(items: Iterable[T], description: str, total: int | None = None) -> Iterator[T]:
    """Iterate with a progress bar, which is drawn only on a terminal and vanishes when done."""
    if not sys.stderr.isatty() or get_logger(_ROOT).level > logging.INFO:
        yield from items
        return
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        yield from bar.track(items, total=total, description=description)


@contextmanager
def errors_in_one_line() -> Iterator[None]:
    """Turn what a user can mend into one sentence on standard error and a non-zero exit status.

    Exit status 2 for a :class:`TenfoldError` or a failing file operation (full disk, no permission), 130 for
    Ctrl-C, 1 where another process of a distributed run ended first (that one says why). Anything else is a
    defect of ours and keeps its traceback. ``TENFOLD_DEBUG=1`` keeps every traceback.
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
        _fail(f"{error.strerror or error}{where}{_advice(error)}", status=2)
    except RuntimeError as error:
        if "by peer" not in str(error):  # gloo's "Connection closed by peer" and its like
            raise
        _fail("another process of this run ended early; what it said before tells why", status=1)


def _advice(error: OSError) -> str:
    if error.errno in (errno.ENOSPC, errno.EFBIG, errno.EDQUOT):
        return "; free some space or choose another --output, and run again"
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR):
        return "; mend its permissions or choose another path, for results with --output"
    return ""


def _fail(message: str, status: int) -> NoReturn:
    line = " ".join(message.split())
    Console(stderr=True, soft_wrap=True).print(Text.assemble(("error:", "bold red"), f" {line}"))
    sys.exit(status)


def _console_handler() -> logging.Handler:
    if sys.stderr.isatty():
        return RichHandler(console=Console(stderr=True), show_path=False, log_time_format="%X")
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", datefmt="%H:%M:%S"))
    return handler
