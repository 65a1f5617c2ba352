"""Where a result comes from: versions, hardware, commit, command. No host name, user name or absolute path."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import shlex
import subprocess
import sys
from contextlib import suppress
from functools import cache
from pathlib import Path, PurePath
from typing import Any

import torch

from tenfold.shared._privacy import cut_paths_in_argument


def environment(paper: str) -> dict[str, Any]:
    """Versions, hardware, commit and command of this process; no host name, user name or absolute path."""
    return {
        "command": command_line(paper, sys.argv),
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "packages": _package_versions(paper),
        "hardware": {
            "cpu": _cpu_model(),
            "cpu_cores": _cpu_cores(),
            "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        },
        "git": dict(_git_commit()),
    }


def command_line(paper: str, arguments: list[str]) -> str:
    """The command that was typed, with absolute paths cut to their last part."""
    program = PurePath(arguments[0]).name if arguments else ""
    if program in ("__main__.py", "-c", "-m", ""):
        program = f"tenfold-{paper}"
    return " ".join([program, *(_quote(cut_paths_in_argument(argument)) for argument in arguments[1:])])


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


def _quote(argument: str) -> str:
    return argument if re.fullmatch(r"[\w@%+=:,./…-]+", argument) else shlex.quote(argument)


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


def _cpu_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@cache
def _git_commit() -> dict[str, Any]:
    """Commit of the checkout that this file is tracked in; nulls for an installed copy.

    Stored results decide no outcome: a tree with new ones alone is not dirty.
    """
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
    status = git(
        "status", "--porcelain", "--untracked-files=no", "--", ":/", ":(top,exclude)benchmarks/results"
    )
    return {"commit": git("rev-parse", "HEAD"), "dirty": None if status is None else status != ""}
