"""An eleventh paper begun from the template: the workspace takes it in, and it is whole as it is generated."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAPER, MODULE = "eleventh-paper", "eleventh_paper"
PACKAGE = f"packages/{PAPER}"
EDITED = ("CITATION.cff", "Makefile", "README.md", "pyproject.toml", "uv.lock")
LEFT_OUT = re.compile(r"benchmarks/results/|packages/[\w-]+/tests/")
"""Results and other papers' tests: large, and no business of a new paper."""

_spec = importlib.util.spec_from_file_location("new_paper", ROOT / "template" / "new_paper.py")
assert _spec is not None and _spec.loader is not None
new_paper = importlib.util.module_from_spec(_spec)
sys.modules["new_paper"] = new_paper
_spec.loader.exec_module(new_paper)


def run(command: list[str], folder: Path) -> str:
    """Runs a command in a copy of the workspace, with this environment's packages and the new one; no network."""
    outside = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    tools = [str(Path(sys.executable).parent), str(ROOT / ".tools" / "uv" / "bin")]
    environment = {
        **outside,
        "OMP_NUM_THREADS": "1",
        "PATH": os.pathsep.join([*tools, outside["PATH"]]),
        "PYTHONPATH": str(folder / PACKAGE / "src"),
        "UV_OFFLINE": "1",
        "UV_PROJECT_ENVIRONMENT": sys.prefix,
    }
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=400
    )
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@dataclass(frozen=True)
class Generated:
    """A copy of the workspace with the new paper in it, and what the copy held before."""

    folder: Path
    before: dict[str, bytes] = field(repr=False)


def workspace_files() -> list[str]:
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\0")
    return [name for name in names if name and not LEFT_OUT.match(name) and (ROOT / name).is_file()]


def content(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and ".git" not in path.parts
    }


@pytest.fixture(scope="module")
def generated(tmp_path_factory: pytest.TempPathFactory) -> Generated:
    folder = tmp_path_factory.mktemp("workspace")
    for name in workspace_files():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    before = content(folder)
    run(["make", "new-paper", f"PAPER={PAPER}", "TITLE=An Eleventh Paper"], folder)
    run(["git", "init", "--quiet"], folder)
    run(["git", "add", "--all"], folder)
    return Generated(folder, before)


def test_only_the_lists_of_papers_change_and_everything_else_stays_byte_for_byte(
    generated: Generated,
) -> None:
    before, after = generated.before, content(generated.folder)
    assert sorted(name for name in before if before[name] != after[name]) == sorted(EDITED)
    added = after.keys() - before.keys()
    assert added and all(name.startswith(PACKAGE) or name == suite_of(PAPER) for name in added)
    for name in ("README.md", "pyproject.toml"):
        lines = after[name].splitlines(keepends=True)
        kept = [line for line in lines if PAPER.encode() not in line and MODULE.encode() not in line]
        assert b"".join(kept) == before[name]
    assert after["CITATION.cff"].startswith(before["CITATION.cff"])
    assert after["Makefile"].replace(f" {PAPER}".encode(), b"") == before["Makefile"]


def test_no_placeholder_is_left(generated: Generated) -> None:
    folder = generated.folder
    for path in [*(folder / PACKAGE).rglob("*"), folder / suite_of(PAPER)]:
        text = path.read_bytes() if path.is_file() else b""
        assert not re.search(rb"new[-_]paper|New Paper", text + path.name.encode()), path
    readme = (folder / "README.md").read_text(encoding="utf-8")
    assert "| [An Eleventh Paper](" in readme


def test_style_and_import_contracts_are_clean(generated: Generated) -> None:
    folder = generated.folder
    run(["ruff", "check", "--no-cache", PACKAGE, suite_of(PAPER)], folder)
    run(["ruff", "format", "--no-cache", "--check", PACKAGE, suite_of(PAPER)], folder)
    run(["lint-imports", "--no-cache"], folder)


def test_types_are_clean(generated: Generated) -> None:
    folder = generated.folder
    run(["mypy", "--cache-dir", str(ROOT / ".mypy_cache"), f"{PACKAGE}/src"], folder)


def test_the_workspace_tests_pass_with_the_new_paper(generated: Generated) -> None:
    folder = generated.folder
    suites = [f"tests/test_workspace_{suite}.py" for suite in ("members", "make", "records", "release")]
    output = run([sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--verbose", *suites], folder)
    assert f"[{PAPER}] PASSED" in output and f"[tenfold-{PAPER}] PASSED" in output


def test_its_own_tests_and_those_of_its_readme_pass(generated: Generated) -> None:
    tests = [PACKAGE, "tests/test_workspace_readmes.py", "-k", "eleventh"]
    output = run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--verbose", *tests], generated.folder
    )
    assert "test_eleventh_paper_parity.py" in output and f"[{PACKAGE}/README.md] PASSED" in output
    assert "SKIPPED" not in output


def test_its_smoke_profile_runs(generated: Generated, tmp_path: Path) -> None:
    folder = generated.folder
    command = ["-m", f"tenfold.{MODULE}", "reproduce", "--profile", "smoke", "--output", str(tmp_path)]
    output = run([sys.executable, *command], folder)
    assert f"{PAPER}: smoke" in output
    assert len(list((tmp_path / PAPER / "smoke").glob("*/result.json"))) == 6


def suite_of(paper: str) -> str:
    return f"benchmarks/speed/test_speed_{paper.replace('-', '_')}.py"


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """As much of the workspace as the generator reads."""
    for name in ("CITATION.cff", "Makefile", "README.md", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path / name)
    for name in ("packages/gfkd", "benchmarks/speed", "shared"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "shared" / "src").symlink_to(ROOT / "shared" / "src")  # where ruff looks for our own modules
    return tmp_path


@pytest.mark.parametrize("paper", ["a", "zzz", "a-paper-of-24-characters"])
def test_names_of_any_length_and_place_in_the_alphabet_are_formatted(small: Path, paper: str) -> None:
    new_paper.begin_paper(paper, "A" * 80, small)
    made = [f"packages/{paper}", suite_of(paper)]
    run(["ruff", "check", "--no-cache", *made], small)
    run(["ruff", "format", "--no-cache", "--check", *made], small)
    project = (small / "pyproject.toml").read_text(encoding="utf-8")
    for name in ("mypy_path", "root_packages", "modules", "forbidden_modules"):
        block = re.search(rf"^{name} = \[\n(.*?)^\]", project, re.MULTILINE | re.DOTALL)
        assert block is not None
        papers = [line for line in block[1].splitlines() if "packages/" in line or "tenfold." in line]
        assert papers == sorted(papers) and any(
            paper.replace("-", "_") in line.replace("-", "_") for line in papers
        )


def test_the_package_takes_the_version_of_the_workspace(small: Path) -> None:
    project = small / "pyproject.toml"
    text = project.read_text(encoding="utf-8")
    project.write_text(re.sub(r'^version = ".*"', 'version = "7.8.9"', text, count=1, flags=re.MULTILINE))
    new_paper.begin_paper("my-paper", "My Paper", small)
    made = tomllib.loads((small / "packages/my-paper/pyproject.toml").read_text(encoding="utf-8"))
    assert made["project"]["version"] == "7.8.9"


def test_the_edited_files_keep_their_mode(small: Path) -> None:
    (small / "Makefile").chmod(0o640)
    new_paper.begin_paper("my-paper", "My Paper", small)
    assert (small / "Makefile").stat().st_mode & 0o777 == 0o640


@pytest.fixture
def refused(small: Path, capfd: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Calls the generator, which must say one sentence and leave every file as it was; returns the sentence."""

    def call(*arguments: str) -> str:
        before = content(small), sorted(small.rglob("*"))
        with pytest.raises(SystemExit) as ended:
            new_paper.main([*arguments, "--root", str(small)])
        errors = capfd.readouterr().err
        assert ended.value.code == 2
        assert errors.startswith("error: ") and errors.count("\n") == 1, errors
        assert (content(small), sorted(small.rglob("*"))) == before
        return errors

    return call


@pytest.mark.parametrize(
    "paper", ["My-paper", "my_paper", "1paper", "", "my paper", "../up", "my-", "my--paper"]
)
def test_what_cannot_be_an_id_is_refused(refused: Callable[..., str], paper: str) -> None:
    assert "cannot be a paper's id" in refused(paper)


def test_ids_that_cannot_be_imported_or_are_too_long_are_refused(refused: Callable[..., str]) -> None:
    assert "word of Python's" in refused("lambda")
    assert "at most 24" in refused("a" * 25)


@pytest.mark.parametrize("paper", ["gfkd", "shared", "benchmarks"])
def test_a_name_that_is_taken_is_refused(refused: Callable[..., str], paper: str) -> None:
    assert f"has a '{paper}' already" in refused(paper)


def test_a_speed_suite_of_that_name_is_not_overwritten(refused: Callable[..., str], small: Path) -> None:
    (small / suite_of("my-paper")).write_text("mine", encoding="utf-8")
    assert "already" in refused("my-paper")


@pytest.mark.parametrize("title", ['Say "yes"', "a|b", "two\nlines", "back\\slash", " ", "A" * 81])
def test_a_title_that_would_break_a_file_is_refused(refused: Callable[..., str], title: str) -> None:
    assert "cannot be a title" in refused("my-paper", "--title", title)


@pytest.mark.parametrize(
    "name", ["CITATION.cff", "Makefile", "pyproject.toml", "README.md", "packages", "benchmarks/speed"]
)
def test_a_root_that_is_not_this_workspace_is_refused(
    refused: Callable[..., str], small: Path, name: str
) -> None:
    path = small / name
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert "is not this workspace" in refused("my-paper")


@pytest.mark.parametrize("name", ["CITATION.cff", "Makefile", "pyproject.toml", "README.md"])
def test_a_file_that_lists_no_papers_is_refused(refused: Callable[..., str], small: Path, name: str) -> None:
    (small / name).write_text("nothing\n", encoding="utf-8")
    assert "this workspace's folder" in refused("my-paper")
