"""Begins another paper: ``python template/new_paper.py my-paper --title "My Paper"``.

Writes ``packages/<paper>`` and its speed suite from the templates beside this file, and enters the paper wherever the
workspace lists its members. Every file is written aside first, and nothing is changed where one cannot be.
"""

from __future__ import annotations

import keyword
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from bisect import bisect
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from tenfold.shared.logging import TenfoldError, errors_in_one_line
from tenfold.shared.runs import replaced

TEMPLATE = Path(__file__).resolve().parent
LONGEST_ID, LONGEST_TITLE = 24, 80
"""In characters; longer ones would make lines of the template too long."""
CITATION = """\
  - type: conference-paper
    title: "{title}"
    authors:
      - family-names: Hinton
        given-names: Geoffrey
      - family-names: Vinyals
        given-names: Oriol
      - family-names: Dean
        given-names: Jeff
    conference:
      name: NIPS Deep Learning Workshop
    year: 2015
    url: https://arxiv.org/abs/1503.02531
    notes: tenfold-{paper}"""
"""What the template's ``reported.toml`` says, as an entry of ``CITATION.cff``."""


@dataclass(frozen=True)
class Arguments:
    """Begin another paper in this workspace."""

    paper: Annotated[str, tyro.conf.Positional]
    """Its id: the name of its folder, of its command `tenfold-<id>` and, with underscores, of its module."""
    title: str | None = None
    """Its title; by default the id in words."""
    root: Path = TEMPLATE.parent
    """The workspace."""


def main(arguments: list[str] | None = None) -> None:
    """Entry point; ends the process with status 2 and one sentence where the paper cannot begin."""
    with errors_in_one_line():
        given = tyro.cli(Arguments, prog="new_paper.py", args=arguments)
        title = given.title or given.paper.replace("-", " ").title()
        begin_paper(given.paper, title, given.root)
        print(
            f"packages/{given.paper} and its entries are written; next: uv lock, make setup, and the list in "
            "CONTRIBUTING.md of what to replace"
        )


def begin_paper(paper: str, title: str, root: Path) -> None:
    """Write the package and the entries.

    Raises:
        TenfoldError: the id or the title cannot be used, or ``root`` is not this workspace; nothing is written.
    """
    check_names(paper, title)
    check_free(paper, root)
    edited = entries(paper, title, root)
    version = tomllib.loads(read(root / "pyproject.toml"))["project"]["version"]
    names = {
        "new-paper": paper,
        "new_paper": module_of(paper),
        "New Paper": title,
        'version = "0.1.0"': f'version = "{version}"',
    }
    package, suite = root / "packages" / paper, root / suite_path(paper)
    with tempfile.TemporaryDirectory(prefix=".new-paper-", dir=root) as folder, ExitStack() as files:
        written = Path(folder, "package")
        copy_template(TEMPLATE / "paper", written, names)
        copy_template(TEMPLATE / "speed", Path(folder, "speed"), names)
        tidy(Path(folder), root)
        for path, content in edited.items():
            temporary = files.enter_context(replaced(path))
            shutil.copy(path, temporary)  # keeps the mode
            temporary.write_bytes(content.encode("utf-8"))
        Path(folder, "speed", suite.name).rename(suite)
        written.rename(package)


def check_names(paper: str, title: str) -> None:
    """Refuse an id that is no name of a folder, a module and a distribution, and a title that breaks a file."""
    if not re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", paper):
        raise TenfoldError(
            f"{paper!r} cannot be a paper's id: it is made of small letters, digits and single hyphens, begins "
            "with a letter and ends with a letter or digit"
        )
    if keyword.iskeyword(paper):
        raise TenfoldError(f"{paper!r} is a word of Python's and cannot be imported; choose another id")
    if len(paper) > LONGEST_ID:
        raise TenfoldError(f"{paper!r} has {len(paper)} characters; choose an id of at most {LONGEST_ID}")
    if not re.fullmatch(rf'[^"\\|\[\]`]{{1,{LONGEST_TITLE}}}', title) or not (
        title.isprintable() and title.strip()
    ):
        raise TenfoldError(
            f"{title!r} cannot be a title: it is one line of at most {LONGEST_TITLE} characters without any of "
            '" \\ | [ ] `'
        )


def check_free(paper: str, root: Path) -> None:
    """Refuse a folder that is not this workspace, and a paper that is there already."""
    parts = ("CITATION.cff", "Makefile", "README.md", "pyproject.toml", "packages", "benchmarks/speed")
    if not all((root / part).exists() for part in parts):
        raise TenfoldError(f"{root} is not this workspace; give its folder with --root")
    taken = (root / "packages" / paper, root / suite_path(paper))
    if paper in ("shared", "benchmarks") or any(path.exists() for path in taken):
        raise TenfoldError(f"the workspace has a {paper!r} already; choose another id")


def suite_path(paper: str) -> Path:
    """Where `make bench` looks for a paper's speed suite."""
    return Path("benchmarks", "speed", f"test_speed_{module_of(paper)}.py")


def module_of(paper: str) -> str:
    """`my-paper` is imported as `tenfold.my_paper`."""
    return paper.replace("-", "_")


def entries(paper: str, title: str, root: Path) -> dict[Path, str]:
    """The files that list the papers, with this one entered."""
    citation, makefile = root / "CITATION.cff", root / "Makefile"
    project, readme = root / "pyproject.toml", root / "README.md"
    package, module = f'    "packages/{paper}/src",', f'    "tenfold.{module_of(paper)}",'
    settings = add_to_list(project, read(project), "mypy_path", package)
    for name in ("root_packages", "modules", "forbidden_modules"):
        settings = add_to_list(project, settings, name, module)
    row = (
        f"| [{title}](https://arxiv.org/abs/1503.02531) | a small network learns more from a large one's softened "
        f"answers than from the labels of few images | [`tenfold-{paper}`](packages/{paper}) | built | 0.5 minutes |"
    )
    return {
        citation: add_after(
            citation,
            read(citation),
            r"^    notes: tenfold-[\w-]+$",
            "\n" + CITATION.format(title=title, paper=paper),
        ),
        makefile: add_after(makefile, read(makefile), r"^BUILT := .*$", f" {paper}"),
        project: settings,
        readme: add_after(readme, read(readme), r"^\| .*\]\(packages/[\w-]+\).*\|$", f"\n{row}"),
    }


def read(path: Path) -> str:
    """A file's text, line ends as they are."""
    return path.read_bytes().decode("utf-8")


def add_after(path: Path, text: str, pattern: str, addition: str) -> str:
    """``text`` with an addition behind the last line that matches."""
    found = list(re.finditer(pattern, text, re.MULTILINE))
    if not found:
        raise TenfoldError(
            f"{path} lists no papers where it should; give this workspace's folder with --root"
        )
    end = found[-1].end()
    return text[:end] + addition + text[end:]


def add_to_list(path: Path, text: str, name: str, line: str) -> str:
    """``text`` with a line in alphabetical place among those of its kind in the TOML list ``name``."""
    match = re.search(rf"^{name} = \[\n(.*?)^\]$", text, re.MULTILINE | re.DOTALL)
    if match is None:
        raise TenfoldError(f"{path} has no list {name}; give this workspace's folder with --root")
    lines = match[1].splitlines()
    kind = line.split("/")[0].split(".")[0]
    first = next((index for index, known in enumerate(lines) if known.startswith(kind)), len(lines))
    lines.insert(bisect(lines, line, lo=first), line)
    return text[: match.start(1)] + "".join(f"{entry}\n" for entry in lines) + text[match.end(1) :]


def copy_template(source: Path, target: Path, names: dict[str, str]) -> None:
    """Copy a folder; the placeholders in its files and in their names become the paper's."""

    def named(text: str) -> str:
        for placeholder, name in names.items():
            text = text.replace(placeholder, name)
        return text

    for path in sorted(source.rglob("*")):
        if path.is_dir() or "__pycache__" in path.parts:
            continue
        copy = target / named(str(path.relative_to(source)))
        copy.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".npz":
            shutil.copy(path, copy)
        else:
            copy.write_text(named(path.read_text(encoding="utf-8")), encoding="utf-8")


def tidy(folder: Path, root: Path) -> None:
    """Sort imports and break lines as the new names need it."""
    options = ["--config", str(root / "pyproject.toml"), "--no-cache", "--quiet", str(folder)]
    first_party = ["--config", 'lint.isort.known-first-party=["tenfold"]']
    for command in (["check", "--select", "I", "--fix", *first_party], ["format"]):
        done = subprocess.run(
            [sys.executable, "-m", "ruff", *command, *options], capture_output=True, text=True, check=False
        )
        if done.returncode != 0:
            raise TenfoldError(f"ruff cannot format the new files: {done.stderr or done.stdout}")


if __name__ == "__main__":
    main()
