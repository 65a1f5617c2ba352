"""What a release needs: one version everywhere, its changelog, and citations that agree with the packages."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
PROJECTS = sorted(
    [*ROOT.glob("packages/*/pyproject.toml"), *ROOT.glob("*/pyproject.toml"), ROOT / "pyproject.toml"]
)
REPORTED = sorted(ROOT.glob("packages/*/src/tenfold/*/reported.toml"))
CITATION: dict[str, Any] = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))


def version_of(project: Path) -> str:
    version: str = tomllib.loads(project.read_text(encoding="utf-8"))["project"]["version"]
    return version


def test_all_members_carry_one_version_which_the_changelog_and_the_citation_name() -> None:
    versions = {version_of(project) for project in PROJECTS}
    newest = re.search(r"^## (\S+) ", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert newest is not None
    assert versions == {newest[1]} == {CITATION["version"]}


def test_the_citation_has_the_fields_that_its_format_asks_for() -> None:
    assert CITATION["cff-version"] == "1.2.0"
    assert {"message", "title", "authors", "license", "date-released"} <= CITATION.keys()
    for reference in CITATION["references"]:
        assert {"type", "title", "authors", "year", "url"} <= reference.keys()
        assert all({"family-names", "given-names"} == author.keys() for author in reference["authors"])


@pytest.mark.parametrize("path", REPORTED, ids=lambda path: path.parts[-5])
def test_every_paper_is_cited_as_its_package_names_it(path: Path) -> None:
    reported = tomllib.loads(path.read_text(encoding="utf-8"))
    (cited,) = (entry for entry in CITATION["references"] if entry["notes"] == f"tenfold-{reported['paper']}")
    names = ", ".join(f"{author['given-names']} {author['family-names']}" for author in cited["authors"])
    assert (cited["title"], names) == (reported["title"], reported["authors"])
    assert (cited["year"], cited["url"]) == (reported["year"], reported["link"])
