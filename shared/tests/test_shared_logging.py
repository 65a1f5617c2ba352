"""What a person sees: log lines, progress bars on terminals only, errors in one line."""

from __future__ import annotations

import errno
import logging
import os
import pty
import re
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from tenfold.shared.logging import (
    TenfoldError,
    errors_in_one_line,
    get_logger,
    log_to_file,
    progress,
    set_quiet,
)

LOOP = """
import sys
from tenfold.shared.logging import get_logger, progress, set_quiet
set_quiet("quiet" in sys.argv)
for item in progress(range(5), "reading"):
    get_logger("coca").info("item %d", item)
    for _ in progress(range(3), "inner"):
        pass
get_logger("coca").warning("done")
"""


@pytest.fixture(autouse=True)
def _level_as_before() -> Iterator[None]:
    yield
    set_quiet(False)


def run_loop(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", LOOP, *arguments],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, **environment},
    )


def run_on_terminal(program: str, *arguments: str) -> str:
    """What a program draws on a pseudo-terminal."""
    parent, child = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(program), *arguments],
        stdin=child,
        stdout=child,
        stderr=child,
        env={**os.environ, "TERM": "xterm-256color", "COLUMNS": "100"},
    )
    os.close(child)
    drawn = b""
    while True:
        try:
            part = os.read(parent, 65536)
        except OSError:  # how Linux reports the end
            break
        if not part:
            break
        drawn += part
    os.close(parent)
    assert process.wait() == 0, drawn.decode()
    return drawn.decode()


class TestProgress:
    def test_passes_every_item_on(self) -> None:
        assert list(progress(iter("abc"), "letters")) == ["a", "b", "c"]

    @pytest.mark.parametrize("variables", [{}, {"FORCE_COLOR": "1"}, {"TTY_COMPATIBLE": "1"}])
    def test_off_a_terminal_nothing_is_drawn_and_lines_are_plain(self, variables: dict[str, str]) -> None:
        ended = run_loop(**variables)
        assert ended.stdout == ""
        assert "\x1b" not in ended.stderr
        assert "reading" not in ended.stderr
        assert [line.split(" ", 1)[1] for line in ended.stderr.splitlines()] == [
            *(f"item {i}" for i in range(5)),
            "done",
        ]

    def test_on_a_terminal_the_bar_is_drawn_and_vanishes(self) -> None:
        drawn = run_on_terminal(LOOP)
        assert "reading" in drawn
        assert "5/5" in drawn
        assert "item 4" in re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", drawn)
        assert "\x1b[2K" in drawn[drawn.rindex("5/5") :]  # the line is erased afterwards

    def test_quiet_draws_no_bar_and_says_warnings_only(self) -> None:
        drawn = run_on_terminal(LOOP, "quiet")
        assert "reading" not in drawn
        assert "item" not in drawn
        assert "done" in drawn
        assert [line[9:] for line in run_loop("quiet").stderr.splitlines()] == ["done"]

    def test_the_cursor_comes_back_after_an_error_in_the_loop(self) -> None:
        drawn = run_on_terminal("""
            from tenfold.shared.logging import progress
            try:
                for item in progress(range(5), "reading"):
                    raise KeyboardInterrupt
            except KeyboardInterrupt:
                pass
        """)
        assert drawn.rindex("\x1b[?25h") > drawn.rindex("\x1b[?25l")


class TestLogger:
    def test_names_are_below_tenfold(self) -> None:
        assert get_logger("coca").name == "tenfold.coca"
        assert get_logger("tenfold.coca") is get_logger("coca")

    def test_asking_twice_does_not_say_things_twice(self) -> None:
        handlers = list(get_logger("coca").parent.handlers)  # type: ignore[union-attr]
        get_logger("coca")
        get_logger("emo")
        assert logging.getLogger("tenfold").handlers == handlers

    def test_quiet_reaches_fabrics_announcements(self) -> None:
        set_quiet(True)
        assert not logging.getLogger("lightning_fabric").isEnabledFor(logging.INFO)
        set_quiet(False)
        assert get_logger("coca").isEnabledFor(logging.INFO)

    def test_lines_go_to_the_file_until_stopped(self, tmp_path: Path) -> None:
        stop = log_to_file(tmp_path / "log.txt")
        get_logger("coca").info("one [bold]%s[/]", "é")
        stop()
        get_logger("coca").info("two")
        (line,) = (tmp_path / "log.txt").read_text(encoding="utf-8").splitlines()
        assert line.endswith("INFO one [bold]é[/]")


class TestErrors:
    def said(self, error: BaseException, capsys: pytest.CaptureFixture[str]) -> tuple[int | str | None, str]:
        with pytest.raises(SystemExit) as end, errors_in_one_line():
            raise error
        captured = capsys.readouterr()
        assert captured.out == ""
        return end.value.code, captured.err

    def test_what_the_user_can_mend_is_one_sentence_and_status_2(
        self, capsys: pytest.CaptureFixture[str]
    ) -> None:
        status, text = self.said(TenfoldError("no data here; use --download"), capsys)
        assert (status, text) == (2, "error: no data here; use --download\n")

    def test_markup_emoji_and_long_lines_arrive_as_they_are(self, capsys: pytest.CaptureFixture[str]) -> None:
        message = "[red]a[/] [/x] :smile: \\[b] " + "long " * 100 + "end"
        assert self.said(TenfoldError(message), capsys)[1] == f"error: {message}\n"

    def test_a_message_of_several_lines_becomes_one(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert self.said(TenfoldError("one\n  two\n"), capsys)[1] == "error: one two\n"

    def test_ctrl_c_is_status_130(self, capsys: pytest.CaptureFixture[str]) -> None:
        status, text = self.said(KeyboardInterrupt(), capsys)
        assert status == 130
        assert text.startswith("error: interrupted; ")
        assert text.count("\n") == 1

    @pytest.mark.parametrize(
        ("number", "advice"),
        [
            (errno.ENOSPC, "free some space or choose another --output"),
            (errno.EDQUOT, "free some space or choose another --output"),
            (errno.EACCES, "mend its permissions or choose another path"),
            (errno.EROFS, "mend its permissions or choose another path"),
        ],
    )
    def test_a_file_that_cannot_be_written_is_named_with_advice(
        self, capsys: pytest.CaptureFixture[str], number: int, advice: str
    ) -> None:
        status, text = self.said(OSError(number, os.strerror(number), "runs/a.json"), capsys)
        assert status == 2
        assert text.startswith(f"error: {os.strerror(number)} (runs/a.json); {advice}")

    def test_a_missing_file_brings_no_advice_about_disks(self, capsys: pytest.CaptureFixture[str]) -> None:
        error = FileNotFoundError(errno.ENOENT, "No such file or directory", "model.pt")
        assert self.said(error, capsys) == (2, "error: No such file or directory (model.pt)\n")

    def test_an_error_without_number_says_what_it_has(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert self.said(OSError("the server hung up"), capsys) == (2, "error: the server hung up\n")

    def test_the_end_of_another_process_is_one_line(self, capsys: pytest.CaptureFixture[str]) -> None:
        error = RuntimeError("[pair.cc:547] Connection closed by peer [127.0.0.1]:22727")
        status, text = self.said(error, capsys)
        assert status == 1
        assert text.startswith("error: another process of this run ended early")
        with pytest.raises(RuntimeError, match="shape"), errors_in_one_line():
            raise RuntimeError("shape mismatch")

    def test_a_defect_of_ours_keeps_its_traceback(self) -> None:
        with pytest.raises(ZeroDivisionError), errors_in_one_line():
            _ = 1 / 0

    def test_debugging_keeps_every_traceback(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("TENFOLD_DEBUG", "1")
        with pytest.raises(TenfoldError), errors_in_one_line():
            raise TenfoldError("no data here")

    def test_success_and_exits_pass_through(self) -> None:
        with errors_in_one_line():
            pass
        with pytest.raises(SystemExit) as end, errors_in_one_line():
            sys.exit(3)
        assert end.value.code == 3
