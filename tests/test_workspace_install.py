"""Wheels of every member, and built papers installed with plain pip into an environment of their own.

Nothing is downloaded: third-party packages come from uv's cache, which the set-up has filled.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
MEMBERS = 12
CAPPED = {"cmt": "nuscenes-devkit 1.2.0 has requirement numpy<2.0.0"}
"""What pip finds wrong with the lock's own choice: this library works with numpy 2, which the lock makes it take."""
BUILT = re.findall(r"^BUILT := (.*)$", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)[
    0
].split()


def run(command: Sequence[str | Path], **environment: str) -> subprocess.CompletedProcess[str]:
    # Bytecode is kept, whatever the surroundings say: an environment is started from many times.
    outside = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    done = subprocess.run(
        [str(part) for part in command],
        cwd=ROOT,
        env={**outside, "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{' '.join(map(str, command))}\n{done.stdout}\n{done.stderr}"
    return done


@pytest.fixture(scope="module")
def uv() -> str:
    return shutil.which("uv") or str(ROOT / ".tools" / "uv" / "bin" / "uv")


@pytest.fixture(scope="module")
def wheels(uv: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    run([uv, "build", "--offline", "--all-packages", "--wheel", "--out-dir", folder])
    return folder


def test_every_member_builds_a_wheel(wheels: Path) -> None:
    built = sorted(path.name for path in wheels.glob("*.whl"))
    assert len(built) == MEMBERS
    assert all(re.fullmatch(r"tenfold_\w+-0\.1\.0-py3-none-any\.whl", name) for name in built)


@pytest.fixture(scope="module", params=BUILT)
def installed(
    request: pytest.FixtureRequest, uv: str, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Path]:
    """(paper, folder of an environment with only what the paper declares), installed with plain pip."""
    paper: str = request.param
    folder = tmp_path_factory.mktemp(f"install-{paper}")
    environment, tools = folder / "environment", folder / "tools"
    run([sys.executable, "-m", "venv", environment])
    sync = [uv, "sync", "--offline", "--frozen", "--quiet"]
    declared = ["--package", f"tenfold-{paper}", "--no-dev", "--no-install-workspace", "--inexact"]
    run([*sync, *declared], UV_PROJECT_ENVIRONMENT=str(environment))
    run([*sync, "--only-group", "build"], UV_PROJECT_ENVIRONMENT=str(tools))
    (backend,) = tools.glob("lib/python*/site-packages")
    pip = [environment / "bin" / "python", "-m", "pip", "install", "--no-index", "--no-build-isolation"]
    as_it_is = ["--no-deps"] if paper in CAPPED else []
    run([*pip, *as_it_is, "./shared", f"./packages/{paper}"], PYTHONPATH=str(backend))
    return paper, environment / "bin"


def test_pip_finds_every_requirement_met(installed: tuple[str, Path]) -> None:
    paper, binaries = installed
    check = [str(binaries / "python"), "-m", "pip", "check"]
    found = subprocess.run(check, capture_output=True, text=True, check=False).stdout.strip()
    expected = CAPPED.get(paper, "No broken requirements found.")
    assert found.startswith(expected)
    assert len(found.splitlines()) == 1


def test_an_installed_paper_imports_without_the_others(installed: tuple[str, Path], tmp_path: Path) -> None:
    paper, binaries = installed
    module = paper.replace("-", "_")
    code = f"import os, tenfold.{module}, tenfold; print(sorted(n for p in tenfold.__path__ for n in os.listdir(p)))"
    assert run([binaries / "python", "-c", code]).stdout.strip() == str(sorted([module, "shared"]))


def test_an_installed_paper_answers_help(installed: tuple[str, Path]) -> None:
    paper, binaries = installed
    assert "reproduce" in run([binaries / f"tenfold-{paper}", "--help"]).stdout
    assert (
        "reproduce" in run([binaries / "python", "-m", f"tenfold.{paper.replace('-', '_')}", "--help"]).stdout
    )


def test_an_installed_paper_runs_its_smoke_profile(installed: tuple[str, Path], tmp_path: Path) -> None:
    paper, binaries = installed
    run([binaries / f"tenfold-{paper}", "reproduce", "--profile", "smoke", "--output", tmp_path])
    assert list((tmp_path / paper / "smoke").glob("*/result.json"))


def test_an_installed_paper_runs_from_wheels(wheels: Path, installed: tuple[str, Path]) -> None:
    paper, binaries = installed
    pip = [binaries / "python", "-m", "pip", "install", "--no-index", "--force-reinstall", "--no-deps"]
    run([*pip, "--find-links", wheels, f"tenfold-{paper}", "tenfold-shared"])
    run([binaries / f"tenfold-{paper}", "--help"])
