"""The make targets, what they say, and whether the README agrees."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
TARGETS = (
    "setup",
    "setup-mmdet3d",
    "lint",
    "test",
    "test-gpu",
    "test-mmdet3d",
    "wheels",
    "new-paper",
    "reproduce-gfkd",
    "reproduce-all",
    "dashboard",
    "verify",
    "serve",
    "bench",
)


def make(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["make", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)


def test_make_alone_prints_the_targets() -> None:
    done = make()
    assert done.returncode == 0
    printed = {line.split()[0] for line in done.stdout.splitlines() if line}
    assert {"reproduce-%" if target == "reproduce-gfkd" else target for target in TARGETS} <= printed


@pytest.mark.parametrize("target", TARGETS)
def test_a_target_can_be_planned(target: str) -> None:
    done = make("--dry-run", target)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


def test_every_target_the_readmes_name_exists() -> None:
    readmes = [*ROOT.glob("*.md"), *ROOT.glob("packages/*/README.md"), *ROOT.glob("*/README.md")]
    named = {
        match
        for readme in readmes
        for match in re.findall(r"\bmake ([a-z][a-z0-9-]*)", readme.read_text(encoding="utf-8"))
    }
    assert named >= {"setup", "test", "reproduce-gfkd", "dashboard"}
    papers = {f"reproduce-{path.parent.name}" for path in ROOT.glob("packages/*/pyproject.toml")}
    for target in named - papers - {"reproduce-all", "reproduce-my-paper", "new-paper"}:
        assert not target.startswith("reproduce-"), f"a README names `make {target}`"
        assert make("--dry-run", target).returncode == 0, f"a README names `make {target}`"


def test_variables_reach_the_command() -> None:
    done = make("--dry-run", "reproduce-gfkd", "PROFILE=smoke", "SEEDS=3 4", "ARGS=--device cpu")
    assert "tenfold-gfkd reproduce --profile smoke --seeds 3 4 --device cpu" in done.stdout


@pytest.mark.parametrize("arguments", ['--data-root "/my data"', "--note '$HOME'", ""])
def test_arguments_reach_all_papers_as_they_were_written(arguments: str, tmp_path: Path) -> None:
    stand_in = tmp_path / "run"
    stand_in.write_text('#!/bin/sh\nfor last; do :; done\necho "$last"\n')
    stand_in.chmod(0o755)
    done = make("--silent", "reproduce-all", f"RUN={stand_in}", f"ARGS={arguments.replace('$', '$$')}")
    assert done.stdout.strip() == f"--arguments= {arguments}".strip()


def test_variables_of_the_command_line_are_for_one_make_alone(tmp_path: Path) -> None:
    stand_in = tmp_path / "run"
    stand_in.write_text("#!/bin/sh\nmake --dry-run reproduce-gfkd\n")
    stand_in.chmod(0o755)
    done = make("--silent", "test", f"RUN={stand_in}", "ARGS=--durations 9", "PROFILE=smoke")
    assert "tenfold-gfkd reproduce --profile quick" in done.stdout
    assert "--durations" not in done.stdout.partition("tenfold-gfkd")[2]


def test_several_devices_go_with_one_paper() -> None:
    done = make("reproduce-all", "DEVICES=4")
    assert done.returncode != 0
    assert "DEVICES and NODES go with one paper" in done.stderr


def test_a_file_named_like_a_target_hides_nothing(tmp_path: Path) -> None:
    (tmp_path / "reproduce-gfkd").touch()
    done = subprocess.run(
        ["make", "--dry-run", "--file", ROOT / "Makefile", "reproduce-gfkd"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert "tenfold-gfkd reproduce" in done.stdout


def test_every_paper_below_packages_can_be_reproduced() -> None:
    papers = sorted(path.parent.name for path in ROOT.glob("packages/*/pyproject.toml"))
    done = make("--dry-run", *(f"reproduce-{paper}" for paper in papers))
    assert re.findall(r"tenfold-([a-z0-9-]+) reproduce", done.stdout) == papers


def test_a_new_paper_needs_a_name() -> None:
    done = make("new-paper")
    assert done.returncode != 0
    assert "make new-paper PAPER=my-paper" in done.stderr


def test_an_unknown_paper_is_refused_in_one_sentence() -> None:
    done = make("reproduce-nothing")
    assert done.returncode != 0
    assert "no paper 'nothing' here" in done.stderr
