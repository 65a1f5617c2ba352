"""Code in READMEs: every command line parses, every block is of a known language, Python of the workspace runs.

Python in the READMEs of the papers runs in `test_workspace_install.py`, with only what a paper declares. A comment
`<!-- not run: reason -->` before a block keeps it from running.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import tyro

ROOT = Path(__file__).resolve().parents[1]
READMES = sorted(
    path
    for pattern in ("*.md", "packages/*/*.md", "shared/*.md", "benchmarks/*.md")
    for path in ROOT.glob(pattern)
)
PAPERS = sorted(path.parent.name for path in ROOT.glob("packages/*/README.md"))
WORKSPACE = [ROOT / "shared" / "README.md", ROOT / "benchmarks" / "README.md"]
SHELL = "sh"
LANGUAGES = {SHELL, "python", "json", "toml", "text"}
OTHER_COMMANDS = {"apt-get", "cd", "git", "uv"}
"""Programs of others in shell blocks, whose arguments nothing here can check."""
FENCE = re.compile(r"^ {0,3}```")


@dataclass(frozen=True)
class Block:
    """A fenced block of a README."""

    readme: Path
    line: int
    """Of its opening fence, from 1."""
    language: str
    code: str
    not_run: str | None
    """Why it cannot be run, from the comment before it."""

    def __str__(self) -> str:
        return f"{self.readme.relative_to(ROOT)}:{self.line}"


def blocks_of(readme: Path) -> Iterator[Block]:
    lines = readme.read_text(encoding="utf-8").splitlines()
    start: int | None = None
    for number, line in enumerate(lines):
        if not FENCE.match(line):
            continue
        if start is None:
            start = number
            continue
        before = next((text for text in reversed(lines[:start]) if text.strip()), "")
        mark = re.fullmatch(r"<!-- not run: (.+) -->", before.strip())
        code = "\n".join(lines[start + 1 : number]) + "\n"
        language = lines[start].strip().removeprefix("```")
        yield Block(readme, start + 1, language, code, mark[1] if mark else None)
        start = None
    assert start is None, f"{readme.relative_to(ROOT)}:{start}: a block without end"


BLOCKS = {readme: list(blocks_of(readme)) for readme in READMES}
ALL_BLOCKS = [block for blocks in BLOCKS.values() for block in blocks]
BLOCKS_NOT_RUN = [block for block in ALL_BLOCKS if block.not_run]


def named(readme: Path) -> str:
    return str(readme.relative_to(ROOT))


class Parsed(BaseException):
    """Carries what a command line made of its arguments, before anything is done. No command catches it."""

    def __init__(self, command: Any) -> None:
        super().__init__()
        self.command = command


@pytest.fixture
def parse(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[[str, list[str]], str]:
    """Lets the command line of `tenfold-<name>` read arguments; returns "" or what is wrong with them."""
    read = tyro.cli

    def read_only(*arguments: Any, **options: Any) -> Any:
        raise Parsed(read(*arguments, **options))

    def attempt(name: str, arguments: list[str]) -> str:
        module = name.replace("-", "_")
        if importlib.util.find_spec(f"tenfold.{module}") is None:
            return f"there is no command tenfold-{name}"
        main = importlib.import_module(f"tenfold.{module}.cli").main
        with monkeypatch.context() as patch:
            patch.setattr(tyro, "cli", read_only)
            try:
                main(arguments)
            except Parsed as parsed:
                profile = getattr(parsed.command, "profile", None)
                names = profiles_of(main)
                known = profile is None or not names or profile in names
                return "" if known else f"there is no profile {profile}"
            except SystemExit as end:
                printed = capsys.readouterr()
                return "" if end.code in (0, None) else printed.err + printed.out
        raise AssertionError("the command line read its arguments without tyro.cli")

    @cache
    def profiles_of(main: Callable[[list[str]], None]) -> frozenset[str]:
        """Names that `reproduce --profile list` prints, and `list`; none for a command line without profiles."""
        if main.__module__ == "tenfold.benchmarks.cli":
            return frozenset()
        capsys.readouterr()
        with monkeypatch.context() as patch, suppress(SystemExit):
            patch.setattr(tyro, "cli", read)
            main(["reproduce", "--profile", "list"])
        printed = capsys.readouterr().out
        names = {line.split()[0] for line in printed.splitlines() if line.strip()}
        assert {"smoke", "quick"} <= names
        return frozenset(names | {"list"})

    return attempt


def commands_of(code: str) -> Iterator[list[str]]:
    """Words of every simple command of a shell block, without comments and assignments."""
    for line in code.replace("\\\n", " ").splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars="();<>|&")
        lexer.whitespace_split = True
        words: list[str] = []
        for word in [*lexer, ";"]:
            if word not in ("&&", "||", ";", "|", "&"):
                words.append(word)
                continue
            while words and re.match(r"[A-Z_]+=", words[0]):
                del words[0]
            if words:
                yield words
            words = []


def wrong_with(words: list[str], parse: Callable[[str, list[str]], str]) -> str:
    """What is wrong with a command of a shell block; "" if nothing is."""
    program, arguments = Path(words[0]).name, words[1:]
    if program.startswith("tenfold-"):
        return parse(program.removeprefix("tenfold-"), arguments)
    if program in ("torchrun", "srun", "python", "python3"):
        return _wrong_with_module(words, parse)
    if program == "make":
        return _wrong_with_target(arguments, parse)
    if program == "sbatch":
        return "" if any((ROOT / word).is_file() for word in arguments) else "there is no such script"
    if program in ("pip", "pip3"):
        return _wrong_with_installation(arguments)
    if program == "pytest":
        paths = [word.split("::")[0] for word in arguments if "/" in word and not word.startswith("-")]
        return " ".join(f"there is no {path}" for path in paths if not (ROOT / path).exists())
    return "" if program in OTHER_COMMANDS else f"{program} is not known here"


def _wrong_with_target(arguments: list[str], parse: Callable[[str, list[str]], str]) -> str:
    """`make ...`: the target exists, and the command of ours that it would give can be given."""
    done = subprocess.run(
        ["make", "--dry-run", *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if done.returncode:
        return done.stderr
    ours = re.findall(r" run --no-sync ((?:torchrun|tenfold-).*)$", done.stdout, re.MULTILINE)
    return "".join(wrong_with(shlex.split(line), parse) for line in ours)


def _wrong_with_module(words: list[str], parse: Callable[[str, list[str]], str]) -> str:
    """`python -m module ...` and the same behind launchers of many processes."""
    if "-m" not in words:
        program = next((word for word in words[1:] if "tenfold-" in word), None)
        if program is None:
            return "neither a module (-m) nor a command of a paper is started"
        return wrong_with(words[words.index(program) :], parse)
    module, arguments = words[words.index("-m") + 1], words[words.index("-m") + 2 :]
    if module.startswith("tenfold."):
        return parse(module.removeprefix("tenfold.").replace("_", "-"), arguments)
    if module in ("pip", "pytest"):
        return wrong_with([module, *arguments], parse)
    if module == "torch.distributed.run":
        return wrong_with(["torchrun", *arguments], parse)
    return "" if importlib.util.find_spec(module) else f"there is no module {module}"


def _wrong_with_installation(arguments: list[str]) -> str:
    """`pip install` of packages of ours: they exist and have the extras that are asked for."""
    if arguments[:1] != ["install"]:
        return "only pip install is checked"
    for argument in arguments[1:]:
        match = re.fullmatch(r"(\./[\w./-]+|tenfold-[\w-]+)(?:\[([\w,-]+)\])?", argument)
        if match is None:
            continue
        folder = ROOT / match[1]
        if not match[1].startswith("."):
            name = match[1].removeprefix("tenfold-")
            folder = ROOT / name if name in ("shared", "benchmarks") else ROOT / "packages" / name
        if not (folder / "pyproject.toml").is_file():
            return f"there is no package {match[1]}"
        project = tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        extras = project.get("optional-dependencies", {})
        for extra in match[2].split(",") if match[2] else ():
            if extra not in extras:
                return f"{match[1]} has no extra {extra}"
    return ""


@pytest.mark.parametrize("readme", READMES, ids=named)
def test_every_command_of_a_readme_can_be_given(readme: Path, parse: Callable[[str, list[str]], str]) -> None:
    text = readme.read_text(encoding="utf-8")
    # `make new-paper PAPER=name` makes the target that a line below it starts.
    begun = [
        ["make", f"reproduce-{name}"]
        for name in re.findall(r"^make new-paper PAPER=(\S+)", text, re.MULTILINE)
    ]
    wrong = [
        f"{block}: {shlex.join(words)}\n{reason}"
        for block in BLOCKS[readme]
        if block.language == SHELL
        for words in commands_of(block.code)
        if words[:2] not in begun and (reason := wrong_with(words, parse))
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("readme", READMES, ids=named)
def test_every_command_in_a_sentence_of_a_readme_exists(
    readme: Path, parse: Callable[[str, list[str]], str]
) -> None:
    """Sentences leave out arguments, so only the command and the verb are looked up."""
    prose = re.sub(r"^```.*?^```", "", readme.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    verbs = set(re.findall(r"`tenfold-([a-z-]+) ([a-z][a-z-]*)\b[^`]*`", prose))
    wrong = [
        f"tenfold-{name} {verb}: {reason}"
        for name, verb in verbs
        if (reason := parse(name, [verb, "--help"]))
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("readme", READMES, ids=named)
def test_every_block_of_a_readme_says_its_language_and_keeps_to_it(readme: Path) -> None:
    for block in BLOCKS[readme]:
        assert block.language in LANGUAGES, f"{block}: a block in {block.language or 'no language'}"
        if block.language == "python":
            compile(block.code, str(block), "exec")
        elif block.language == "json":
            json.loads(block.code)
        elif block.language == "toml":
            tomllib.loads(block.code)


@pytest.mark.parametrize("paper", PAPERS)
def test_the_readme_of_a_paper_says_how_to_install_and_to_run_it(paper: str) -> None:
    commands = [
        words
        for block in BLOCKS[ROOT / "packages" / paper / "README.md"]
        if block.language == SHELL
        for words in commands_of(block.code)
    ]
    assert ["pip", "install", "./shared", f"./packages/{paper}"] in commands
    assert ["make", f"reproduce-{paper}"] in commands
    assert [f"tenfold-{paper}", "reproduce", "--profile", "list"] in commands


@pytest.mark.parametrize("readme", WORKSPACE, ids=named)
def test_python_in_the_readmes_of_the_workspace_runs(readme: Path, tmp_path: Path) -> None:
    """Blocks of one README follow each other in one folder, which is empty at first; each has its own process."""
    for block in BLOCKS[readme]:
        if block.language != "python" or block.not_run:
            continue
        done = subprocess.run(
            [sys.executable, "-c", block.code], cwd=tmp_path, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{block}\n{done.stderr}"
        stated = re.findall(r"  # prints (.*)$", block.code, re.MULTILINE)
        assert [line for line in done.stdout.splitlines() if line in stated] == stated, (
            f"{block}\n{done.stdout}"
        )


@pytest.mark.parametrize("block", BLOCKS_NOT_RUN, ids=str)
def test_a_block_that_is_not_run_says_why(block: Block) -> None:
    assert block.language == "python"
    pytest.skip(f"{block}: {block.not_run}")


@pytest.mark.parametrize("readme", READMES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_link_into_the_repository_leads_somewhere(readme: Path) -> None:
    text = re.sub(r"```.*?```", "", readme.read_text(encoding="utf-8"), flags=re.DOTALL)
    for target in re.findall(r"\]\((?!https?:|mailto:)([^)\s]+)\)", text):
        name, _, anchor = target.partition("#")
        path = (readme.parent / name).resolve() if name else readme
        assert path.exists(), f"{target} leads nowhere"
        if anchor:
            headings = re.findall(r"^#+ (.*)$", path.read_text(encoding="utf-8"), re.MULTILINE)
            slugs = {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}
            assert anchor in slugs, f"{target}: no such heading"
