"""Absolute paths cut out of what a run records: they name people and machines, and mean nothing elsewhere."""

from __future__ import annotations

import getpass
import os
import re
from pathlib import Path

_URL = r"(?P<url>\b(?!file:)[A-Za-z][\w+.-]+://[^\s\"']*)"
# Where an absolute path may begin: not inside a relative one or a fraction, but right after a short option.
_START = r"(?:\bfile://|(?:(?<=^-\w)|(?<![\w.~…/\\]))(?:~[\w.-]*(?=[/\\]|$)|[A-Za-z]:(?=[/\\])|(?=/+[\w.~@…-]|\\\\)))"
_IN_ARGUMENT = re.compile(rf"{_URL}|{_START}[^,;:\"'\[\]{{}}()]*")
_IN_TEXT = re.compile(rf"{_URL}|{_START}(?:(?<=')[^'\n]*|(?<=\")[^\"\n]*|[^\s,;:\"'\[\]{{}}()]*)")


def cut_paths_in_argument(argument: str) -> str:
    """One argument of a command with every absolute path cut to ``…/`` and its last part."""
    return _without_user_name(_IN_ARGUMENT.sub(_last_part, argument))


def cut_paths(text: str) -> str:
    """A message with every absolute path cut to ``…/`` and its last part."""
    for known in (os.environ.get("PWD", ""), str(Path.home())):  # their spaces would end a path in a message
        if len(known) > 1:
            text = re.sub(rf"{re.escape(known)}(?![\w.-])", "/…", text)
    return _without_user_name(_IN_TEXT.sub(_last_part, text))


def _last_part(found: re.Match[str]) -> str:
    if found["url"] is not None:
        return found["url"]
    path = found[0].rstrip("/\\ ")
    last = re.split(r"[/\\]", path)[-1]
    is_home = last == _user_name() or last.startswith("~") or path == str(Path.home())
    return "…" if is_home or last in ("", "…") or last.endswith(":") else f"…/{last}"


def _without_user_name(text: str) -> str:
    """Relative paths with the user's name as one of their parts lose that part."""
    name = re.escape(_user_name())
    return re.sub(rf"(?<![\w.-]){name}(?=[/\\])|(?<=[/\\]){name}(?![\w.-])", "…", text) if name else text


def _user_name() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError, ImportError):  # an account without a name, as some containers have
        return os.path.basename(Path.home())  # noqa: PTH119
