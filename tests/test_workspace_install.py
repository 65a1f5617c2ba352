"""Wheels of every member, and built papers installed with plain pip into an environment of their own.

The environment stays the same and holds, for one paper after another, only what that paper declares: what is
common to two papers is compiled to bytecode once. Nothing is downloaded: third-party packages come from uv's cache,
which the set-up has filled.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Sequence
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
MEMBERS = len([*ROOT.glob("*/pyproject.toml"), *ROOT.glob("packages/*/pyproject.toml")])
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
CAPPED = {"cmt": "nuscenes-devkit 1.2.0 has requirement numpy<2.0.0"}
"""What pip finds wrong with the lock's own choice: this library works with numpy 2, which the lock makes it take."""
BUILT = re.findall(r"^BUILT := (.*)$", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)[
    0
].split()
PYTHON_BLOCK = re.compile(r"(<!-- not run: [^>]*-->\n+)?^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
LONGEST_SECONDS = 120
"""For a block of a README: several times what the slowest takes, as the machine may have other work."""


def run(
    command: Sequence[str | Path], cwd: Path = ROOT, timeout: float | None = None, **environment: str
) -> subprocess.CompletedProcess[str]:
    # Bytecode is kept, whatever the surroundings say: the environment is started from many times.
    outside = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env={**outside, "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=timeout,
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
    assert all(re.fullmatch(rf"tenfold_\w+-{re.escape(VERSION)}-py3-none-any\.whl", name) for name in built)


@pytest.fixture(scope="module")
def backend(uv: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with what builds a package, kept apart from what it needs to run."""
    tools = tmp_path_factory.mktemp("tools") / "environment"
    sync = [uv, "sync", "--offline", "--frozen", "--quiet", "--only-group", "build"]
    run(sync, UV_PROJECT_ENVIRONMENT=str(tools))
    (packages,) = tools.glob("lib/python*/site-packages")
    return packages


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("install") / "environment"
    run([sys.executable, "-m", "venv", folder])
    return folder


@pytest.fixture(scope="module", params=BUILT)
def installed(request: pytest.FixtureRequest, uv: str, backend: Path, environment: Path) -> tuple[str, Path]:
    """(paper, commands of the environment with only what the paper declares), installed with plain pip."""
    paper: str = request.param
    # Exact: what the paper before had, itself included, is taken out.
    sync = [uv, "sync", "--offline", "--frozen", "--quiet", "--exact", "--no-dev", "--no-install-workspace"]
    run([*sync, "--package", f"tenfold-{paper}"], UV_PROJECT_ENVIRONMENT=str(environment))
    pip = [environment / "bin" / "python", "-m", "pip", "install", "--no-index", "--no-build-isolation"]
    as_it_is = ["--no-deps"] if paper in CAPPED else []
    run([*pip, *as_it_is, "./shared", f"./packages/{paper}"], PYTHONPATH=str(backend))
    return paper, environment / "bin"


def check_requirements(paper: str, binaries: Path) -> None:
    """Assert that pip finds every requirement of what is installed met, or only what is expected of a paper."""
    check = [str(binaries / "python"), "-m", "pip", "check"]
    found = subprocess.run(check, capture_output=True, text=True, check=False).stdout.strip()
    expected = CAPPED.get(paper, "No broken requirements found.")
    assert found.startswith(expected)
    assert len(found.splitlines()) == 1


def test_pip_finds_every_requirement_met(installed: tuple[str, Path]) -> None:
    check_requirements(*installed)


def test_a_paper_is_installed_without_the_others(installed: tuple[str, Path]) -> None:
    paper, binaries = installed
    code = "import os, tenfold; print(sorted(n for p in tenfold.__path__ for n in os.listdir(p)))"
    expected = sorted([paper.replace("-", "_"), "shared"])
    assert run([binaries / "python", "-c", code]).stdout.strip() == str(expected)


def test_an_installed_paper_runs_its_smoke_profile_as_a_module(
    installed: tuple[str, Path], tmp_path: Path
) -> None:
    paper, binaries = installed
    module = [binaries / "python", "-m", f"tenfold.{paper.replace('-', '_')}"]
    run(
        [*module, "reproduce", "--profile", "smoke", "--seeds", "0", "--workers", "1", "--output", tmp_path],
        cwd=tmp_path,
    )
    assert list((tmp_path / paper / "smoke").glob("*/result.json"))


@pytest.fixture(scope="module")
def installed_from_wheels(wheels: Path, installed: tuple[str, Path]) -> tuple[str, Path]:
    """The same, installed again from the wheels."""
    paper, binaries = installed
    pip = [binaries / "python", "-m", "pip", "install", "--no-index", "--force-reinstall", "--no-deps"]
    run([*pip, "--find-links", wheels, f"tenfold-{paper}", "tenfold-shared"])
    return paper, binaries


def test_a_paper_from_wheels_answers_help(installed_from_wheels: tuple[str, Path], tmp_path: Path) -> None:
    paper, binaries = installed_from_wheels
    check_requirements(paper, binaries)
    assert "reproduce" in run([binaries / f"tenfold-{paper}", "--help"], cwd=tmp_path).stdout


def test_python_in_the_readme_of_a_paper_runs_and_prints_what_it_says(
    installed_from_wheels: tuple[str, Path], tmp_path: Path
) -> None:
    """Blocks of one README follow each other in one folder, which is empty at first; each has its own process."""
    paper, binaries = installed_from_wheels
    readme = (ROOT / "packages" / paper / "README.md").read_text(encoding="utf-8")
    blocks = [code for mark, code in PYTHON_BLOCK.findall(readme) if not mark]
    assert blocks, "the README shows no use from Python"
    for code in blocks:
        done = run([binaries / "python", "-c", code], cwd=tmp_path, timeout=LONGEST_SECONDS)
        printed = done.stdout.splitlines()
        stated = re.findall(r"  # prints (.*)$", code, re.MULTILINE)
        assert [line for line in printed if line in stated] == stated, f"{code}\nprinted\n{done.stdout}"


def test_the_dashboards_from_wheels_build_a_site(uv: str, wheels: Path, tmp_path: Path) -> None:
    environment = tmp_path / "environment"
    run([sys.executable, "-m", "venv", environment])
    sync = [uv, "sync", "--offline", "--frozen", "--quiet", "--no-dev", "--no-install-workspace", "--inexact"]
    run([*sync, "--package", "tenfold-benchmarks"], UV_PROJECT_ENVIRONMENT=str(environment))
    pip = [environment / "bin" / "python", "-m", "pip", "install", "--no-index", "--find-links", wheels]
    run([*pip, "tenfold-benchmarks"])
    check_requirements("benchmarks", environment / "bin")
    command = environment / "bin" / "tenfold-benchmarks"
    roots = [f"--results={ROOT / 'benchmarks' / 'results'}", f"--packages={ROOT / 'packages'}"]
    run([command, "dashboard", *roots], cwd=tmp_path)
    assert (tmp_path / "site" / "static" / "site.js").is_file()
    assert (tmp_path / "site" / "papers" / "gfkd.html").is_file()
