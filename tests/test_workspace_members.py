"""The papers, the shared utilities and the benchmarks as a workspace."""

from __future__ import annotations

import re
import shutil
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAPERS = sorted(path.parent.name for path in ROOT.glob("packages/*/pyproject.toml"))
MEMBERS = {f"tenfold-{paper}": ROOT / "packages" / paper for paper in PAPERS} | {
    "tenfold-shared": ROOT / "shared",
    "tenfold-benchmarks": ROOT / "benchmarks",
}


def project(folder: Path) -> dict[str, Any]:
    return tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def built_papers() -> list[str]:
    match = re.search(r"^BUILT := (.*)$", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    assert match is not None
    return match[1].split()


def settings() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]


def test_every_folder_below_packages_is_a_paper_and_every_built_paper_has_one() -> None:
    assert sorted(folder.name for folder in (ROOT / "packages").iterdir() if folder.is_dir()) == PAPERS
    assert set(built_papers()) <= set(PAPERS)
    assert len(built_papers()) == len(set(built_papers())) >= 10


@pytest.mark.parametrize("paper", PAPERS)
def test_types_and_import_contracts_cover_a_paper(paper: str) -> None:
    module = f"tenfold.{paper.replace('-', '_')}"
    assert f"packages/{paper}/src" in settings()["mypy"]["mypy_path"]
    contracts = settings()["importlinter"]
    assert module in contracts["root_packages"]
    independence, shared = contracts["contracts"]
    assert module in independence["modules"] and module in shared["forbidden_modules"]


@pytest.mark.parametrize("paper", PAPERS)
def test_the_readme_has_one_row_for_a_paper_as_wide_as_the_table(paper: str) -> None:
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    (header,) = [line for line in lines if line.startswith("| paper |")]
    (row,) = [line for line in lines if line.startswith("|") and f"](packages/{paper})" in line]
    assert row.count("|") == header.count("|")
    assert ("| built |" in row) == (paper in built_papers())


@pytest.mark.parametrize("paper", built_papers())
def test_a_built_paper_has_a_speed_suite(paper: str) -> None:
    assert (ROOT / "benchmarks" / "speed" / f"test_speed_{paper.replace('-', '_')}.py").is_file()


@pytest.mark.parametrize("name", MEMBERS)
def test_a_member_has_its_name_licence_python_range_and_readme(name: str) -> None:
    metadata = project(MEMBERS[name])
    assert metadata["name"] == name
    assert metadata["license"] == "MIT"
    assert metadata["requires-python"] == ">=3.11,<3.14"
    assert (MEMBERS[name] / metadata["readme"]).read_text(encoding="utf-8").startswith(f"# {name}")


@pytest.mark.parametrize("name", MEMBERS)
def test_a_member_leaves_the_namespace_open(name: str) -> None:
    assert not (MEMBERS[name] / "src" / "tenfold" / "__init__.py").exists()
    assert [folder.name for folder in (MEMBERS[name] / "src" / "tenfold").iterdir() if folder.is_dir()] == [
        name.removeprefix("tenfold-").replace("-", "_")
    ]


@pytest.mark.parametrize("paper", PAPERS)
def test_only_built_papers_have_a_command_and_the_others_say_so(paper: str) -> None:
    scripts = project(MEMBERS[f"tenfold-{paper}"]).get("scripts", {})
    readme = (ROOT / "packages" / paper / "README.md").read_text(encoding="utf-8")
    if paper in built_papers():
        assert scripts == {f"tenfold-{paper}": f"tenfold.{paper.replace('-', '_')}.cli:main"}
        assert "Not built yet" not in readme
    else:
        assert scripts == {}
        assert "Not built yet" in readme


@pytest.mark.parametrize("paper", PAPERS)
def test_a_paper_depends_on_the_shared_utilities_and_on_no_other_paper(paper: str) -> None:
    dependencies = [
        re.split(r"[^a-z0-9-]", entry)[0] for entry in project(ROOT / "packages" / paper)["dependencies"]
    ]
    assert [name for name in dependencies if name.startswith("tenfold-")] == ["tenfold-shared"]


def test_the_lock_is_up_to_date() -> None:
    done = subprocess.run(
        [uv(), "lock", "--check", "--offline"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_no_package_index_is_named_outside_the_lock() -> None:
    tracked = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split("\0")
    pattern = re.compile(r"https?://[\w.-]*(pypi|pythonhosted|simple/)", re.IGNORECASE)
    files = [
        ROOT / name for name in tracked if name and name not in ("uv.lock", "tests/test_workspace_members.py")
    ]
    naming = [
        file.name
        for file in files
        if file.suffix in {".md", ".toml", ".py", ".yml", ".sh", ".json", ""}
        and file.is_file()
        and pattern.search(file.read_text(encoding="utf-8", errors="ignore"))
    ]
    assert naming == []


def uv() -> str:
    return shutil.which("uv") or str(ROOT / ".tools" / "uv" / "bin" / "uv")
