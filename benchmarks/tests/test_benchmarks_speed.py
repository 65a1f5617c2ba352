"""Speed histories: what is stored of a suite, what is compared, what is said of it, and the page that shows it."""

import json
import subprocess
from pathlib import Path

import pytest
from playwright.sync_api import expect

from tenfold.benchmarks.records import Problem
from tenfold.benchmarks.speed import read_speed
from tenfold.benchmarks.speed_history import append_run, read_history, suite_run
from tenfold.benchmarks.speed_recording import RecordSpeed
from tenfold.shared.logging import TenfoldError

ROOT = Path(__file__).resolve().parents[2]
TODAY, EARLIER, LONG_AGO = (f"2025-11-{day}T10:00:00+00:00" for day in (20, 13, "06"))


@pytest.fixture
def measured(tmp_path):
    """Writes what pytest-benchmark writes of one suite."""

    def write(*entries, moment="2025-11-27T10:00:00.123456+00:00", cpu="Test CPU", paper="gfkd", **changes):
        machine = {"python": "3.11.9", "system": "Linux x86_64", "torch": "2.11.0", "threads": 1}
        content = {
            "machine_info": machine | {"cpu": cpu, "cpu_cores": 2, "gpus": []},
            "commit_info": {"id": "abc", "time": moment, "dirty": True, "branch": "main"},
            "benchmarks": [
                {"name": name, "stats": {"min": 1.0}, "options": {}, "extra_info": extra}
                for name, extra in entries or [("test_step", extra_info())]
            ],
            "datetime": moment,
            "version": "5.3.1",
        }
        folder = tmp_path / "measured"
        folder.mkdir(exist_ok=True)
        path = folder / f"{paper}.json"
        path.write_text(json.dumps(content | changes))
        return path

    return write


def extra_info(*ratios, **changes):
    ratio = {"ratio": list(ratios or (2.0, 3.0)), "reference": "DGL", "peer": "dgl", "unit": "steps"}
    return ratio | changes


def record(workspace, *files, strict=False):
    return RecordSpeed(files=files, hardware="h100", results=workspace.results, strict=strict)()


def said(capsys):
    """What was printed, without the table's line breaks."""
    return " ".join(capsys.readouterr().out.split())


def test_a_suite_becomes_one_line_with_its_machine_and_commit(workspace, measured):
    entry = ("test_step[64]", extra_info(2.0000004, 3, peer=None, graphs_per_second=12345.678, note="text"))
    assert record(workspace, measured(entry)) == 0
    (line,) = (workspace.results / "h100" / "speed" / "gfkd.jsonl").read_text().splitlines()
    assert json.loads(line) == {
        "schema_version": 1,
        "measured_at": "2025-11-27T10:00:00+00:00",
        "commit": "abc",
        "dirty": True,
        "machine": {
            "python": "3.11.9",
            "system": "Linux x86_64",
            "torch": "2.11.0",
            "threads": 1,
            "cpu": "Test CPU",
            "cpu_cores": 2,
            "gpus": [],
        },
        "benchmarks": [
            {
                "name": "test_step[64]",
                "ratios": [2.0, 3.0],
                "reference": "DGL",
                "peer": None,
                "unit": "steps",
                "numbers": {"graphs_per_second": 12346.0},
            }
        ],
    }


def test_a_second_run_is_added_and_the_first_stays_as_it_was(workspace, measured):
    record(workspace, measured())
    path = workspace.results / "h100" / "speed" / "gfkd.jsonl"
    first = path.read_text()
    record(workspace, measured(moment="2025-11-28T10:00:00+00:00"))
    assert path.read_text().startswith(first)
    assert [run.measured_at.day for run in read_history(path)[0]] == [27, 28]


def test_the_same_measurement_is_not_stored_twice(workspace, measured):
    record(workspace, measured())
    with pytest.raises(TenfoldError, match="says already: run the suite again"):
        record(workspace, measured())
    assert len((workspace.results / "h100" / "speed" / "gfkd.jsonl").read_text().splitlines()) == 1


def test_outside_a_git_checkout_the_commit_is_unknown(workspace, measured):
    record(workspace, measured(commit_info={"id": "unversioned", "error": "no git", "dirty": False}))
    (run,) = read_history(workspace.results / "h100" / "speed" / "gfkd.jsonl")[0]
    assert (run.commit, run.dirty) == (None, None)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"benchmarks": []}, "holds no benchmark"),
        ({"benchmarks": None}, "no list 'benchmarks'"),
        ({"benchmarks": [3]}, "lacks one of ratio, reference, peer, unit"),
        ({"benchmarks": [{"name": "step", "extra_info": {"ratio": 2.0}}]}, "'step' lacks one of ratio"),
        ({"benchmarks": [{"name": "s", "extra_info": extra_info(0)}]}, r"ratios\[0\]: 0.0 is less than"),
        ({"benchmarks": [{"name": "s", "extra_info": extra_info("fast")}]}, "is not of type 'number'"),
        ({"datetime": None}, "Invalid isoformat string"),
        ({"machine_info": {}}, "machine: "),
    ],
)
def test_a_file_that_is_no_measurement_is_refused_and_nothing_is_stored(workspace, measured, changes, reason):
    good = measured(paper="coca")
    with pytest.raises(TenfoldError, match=reason):
        record(workspace, good, measured(**changes))
    assert not workspace.results.exists()


@pytest.mark.parametrize("hardware", ["", "..", "../h100", "a/b", ".hidden"])
def test_hardware_that_cannot_name_a_folder_is_refused(workspace, measured, hardware):
    with pytest.raises(TenfoldError, match="choose another --hardware"):
        RecordSpeed((measured(),), hardware, workspace.results)()


def test_a_missing_file_or_none_at_all_is_said_in_one_sentence(workspace):
    with pytest.raises(TenfoldError, match="No such file"):
        record(workspace, workspace.root / "gfkd.json")
    with pytest.raises(TenfoldError, match="name at least one file"):
        record(workspace)


def test_a_full_disk_leaves_the_history_as_it_was(workspace, suite, monkeypatch):
    path = workspace.speed(suite())
    before = path.read_bytes()
    opened = Path.open

    def small_disk(self, *arguments, **options):
        file = opened(self, *arguments, **options)
        if self == path and arguments == ("ab",):
            return SmallDisk(file)
        return file

    monkeypatch.setattr(Path, "open", small_disk)
    with pytest.raises(OSError, match="No space left"):
        append_run(path, suite_run(suite(measured_at=LONG_AGO)))
    assert path.read_bytes() == before


class SmallDisk:
    """A file that takes ten bytes and then no more."""

    def __init__(self, file):
        self.file, self.room = file, 10

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.file.close()

    def __getattr__(self, name):
        return getattr(self.file, name)

    def write(self, content):
        if not self.room:
            raise OSError(28, "No space left on device")
        written, self.room = self.file.write(content[: self.room]), 0
        return written


def test_a_line_that_is_cut_off_is_named_and_the_next_one_stands_by_itself(workspace, measured, suite):
    path = workspace.speed(suite(measured_at=EARLIER))
    path.write_text(path.read_text() + json.dumps(suite())[:100])
    record(workspace, measured())
    runs, reasons = read_history(path)
    assert [run.measured_at.day for run in runs] == [13, 27]
    (reason,) = reasons
    assert reason.startswith("line 2: is not JSON, perhaps cut off")


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"{", "is not JSON"),
        (b"\xff", "is not UTF-8"),
        (b"[" * 100_000, "is nested too deeply"),
        (b"null", "None is not of type 'object'"),
        (b'{"schema_version": 2}', "has the newer schema version 2, this is 1"),
        (b'{"schema_version": 0}', "has the older schema version 0, this is 1"),
        (b'{"schema_version": 1}', "'measured_at' is a required property"),
    ],
)
def test_a_line_that_cannot_be_used_is_a_problem_with_its_number_and_hides_no_other(
    workspace, suite, line, reason
):
    path = workspace.speed(suite(measured_at=EARLIER))
    path.write_bytes(path.read_bytes() + line + b"\n" + json.dumps(suite()).encode() + b"\n")
    ratios, (problem,) = read_speed(workspace.results)
    assert (problem.path, problem.paper) == ("results/h100/speed/gfkd.jsonl", "gfkd")
    assert problem.reason.startswith("line 2: ")
    assert reason in problem.reason
    assert len(ratios) == len(ratios[0].earlier) == 1


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"measured_at": "2025-11-20T10:00:00"}, "has no time zone"),
        ({"measured_at": "yesterday"}, "measured_at: 'yesterday' is not a 'date-time'"),
        ({"benchmarks": []}, r"benchmarks: \[\] should be non-empty"),
        ({"more": 1}, "Additional properties"),
    ],
)
def test_content_that_breaks_the_schema_is_refused(suite, changes, reason):
    with pytest.raises(ValueError, match=reason):
        suite_run(suite() | changes)


@pytest.mark.parametrize("ratio", ["NaN", "Infinity", "1e999", "-1", "true"])
def test_a_ratio_that_is_no_positive_number_is_refused(workspace, suite, ratio):
    path = workspace.speed()
    path.write_text(json.dumps(suite()).replace("[2.0]", f"[{ratio}]") + "\n")
    runs, reasons = read_history(path)
    assert runs == []
    assert len(reasons) == 1


def test_two_benchmarks_of_one_name_are_refused(suite, timing):
    with pytest.raises(ValueError, match="two benchmarks named 'test_step'"):
        suite_run(suite([timing(), timing()]))


def test_a_file_of_an_older_release_or_of_no_paper_is_a_problem(workspace, suite):
    folder = workspace.speed(suite()).parent
    (folder / "coca.json").write_text("{}")
    (folder / "No Paper.jsonl").write_text("")
    assert read_speed(workspace.results)[1] == [
        Problem("results/h100/speed/No Paper.jsonl", "is not named after a paper"),
        Problem(
            "results/h100/speed/coca.json",
            "is of an older release and not read: remove it and run make bench",
            "coca",
        ),
    ]


def test_the_newest_run_is_shown_with_those_before_it_the_newest_first(workspace, suite, timing):
    runs = {TODAY: 3.0, LONG_AGO: 1.0, EARLIER: 2.0}  # in a file that two branches wrote
    workspace.speed(*(suite([timing(ratios=[ratio])], measured_at=when) for when, ratio in runs.items()))
    ((ratio,), _) = read_speed(workspace.results)
    assert ratio.median == 3.0
    assert [earlier.median for earlier in ratio.earlier] == [2.0, 1.0]
    assert ratio.change == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("ratios", "verdict"),
    [([1.1, 2.0], "faster"), ([0.5, 0.9], "slower"), ([0.9, 1.1], "no clear difference"), ([1.0], None)],
)
def test_faster_and_slower_are_said_only_where_every_repetition_agrees(
    workspace, suite, timing, ratios, verdict
):
    workspace.speed(suite([timing(ratios=ratios)]))
    ((ratio,), _) = read_speed(workspace.results)
    assert ratio.verdict == (verdict or "no clear difference")


@pytest.mark.parametrize(("now", "is_regression"), [(1.61, False), (1.59, True), (5.0, False)])
def test_a_ratio_more_than_a_fifth_lower_is_a_regression(
    workspace, suite, timing, measured, capsys, now, is_regression
):
    workspace.speed(suite([timing(ratios=[2.0])]))
    status = record(workspace, measured(("test_step", extra_info(now))), strict=True)
    ((ratio,), _) = read_speed(workspace.results)
    assert ratio.is_regression is is_regression
    assert status == int(is_regression)
    line = "slower than stored: step: 1.59 ×, was 2 × on 20 Nov 2025 (−20 %)"
    assert (line in said(capsys)) is is_regression


def test_a_regression_alone_is_no_failure(workspace, suite, timing, measured, capsys):
    workspace.speed(suite([timing(ratios=[9.0])]))
    assert record(workspace, measured()) == 0
    assert "slower than stored" in said(capsys)


def test_another_processor_is_said_and_not_compared(workspace, suite, timing, measured, capsys):
    workspace.speed(suite([timing(ratios=[9.0])]))
    assert record(workspace, measured(cpu="Slow CPU"), strict=True) == 0
    assert "not compared, stored on another processor (Test CPU, 2 cores): step" in said(capsys)
    ((ratio,), _) = read_speed(workspace.results)
    assert (ratio.change, ratio.other_processor) == (None, "Test CPU, 2 cores")


def test_the_newest_run_on_the_same_processor_is_what_is_compared(workspace, suite, timing, measured):
    other = suite()["machine"] | {"gpus": ["NVIDIA H100"]}
    workspace.speed(
        suite([timing(ratios=[4.0])], measured_at=EARLIER),
        suite([timing(ratios=[100.0])], machine=other),
    )
    record(workspace, measured(("test_step", extra_info(5.0))))
    ((ratio,), _) = read_speed(workspace.results)
    assert ratio.change == pytest.approx(0.25)


def test_other_hardware_is_never_compared(workspace, suite, measured):
    workspace.speed(suite(), hardware="cpu-2-cores")
    record(workspace, measured())
    assert [ratio.earlier for ratio in read_speed(workspace.results)[0]] == [(), ()]


def test_a_benchmark_that_vanished_is_mentioned(workspace, suite, timing, measured, capsys):
    workspace.speed(suite([timing(), timing(name="test_gone")]))
    record(workspace, measured())
    assert "no longer measured: test_gone" in said(capsys)


def test_the_table_shows_median_spread_stored_and_change(workspace, suite, timing, measured, capsys):
    workspace.speed(suite([timing(ratios=[2.0])]))
    record(workspace, measured(("test_step[64-small]", extra_info(1, 2, 9)), ("test_step", extra_info(3.0))))
    rows = [line.split() for line in capsys.readouterr().out.replace("│", " ").splitlines()]
    assert ["step", "(64,", "small)", "DGL", "(dgl)", "2", "×", "1", "to", "9", "–", "–"] in rows
    assert ["step", "DGL", "(dgl)", "3", "×", "3", "to", "3", "2", "×", "+50", "%"] in rows


def test_the_page_says_kind_change_and_verdict_of_every_benchmark(sample_site):
    html = (sample_site / "speed.html").read_text()
    assert 'regression: was <span class="num">4.55 ×</span> on <span class="num">13 Nov 2025</span>' in html
    assert "−34 %" in html
    assert "<code>dgl</code>" in html
    assert "reference way" in html
    assert ">slower<" in html


def test_the_page_sorts_by_ratio_and_filters_by_kind(browser_page, sample_site):
    browser_page.goto(f"file://{sample_site}/speed.html")
    medians = browser_page.locator("#speed td.num strong")
    browser_page.get_by_role("button", name="Ratio").click()
    expect(medians).to_have_text(["0.45 ×", "3 ×"])
    browser_page.get_by_label("Filter benchmarks").fill("named peer")
    expect(browser_page.locator("#speed tbody tr:visible")).to_have_count(1)
    expect(browser_page.locator("#speed tbody tr:visible")).to_contain_text("dgl")


def test_a_suite_that_fails_keeps_no_other_from_running_and_is_named_at_the_end(tmp_path):
    log, run = tmp_path / "log", tmp_path / "run"
    run.write_text(f'#!/bin/sh\necho "$@" >> {log}\ncase "$*" in *test_speed_coca.py*) exit 1;; esac\n')
    run.chmod(0o755)
    made = subprocess.run(
        ["make", "bench", "BUILT=coca pmt-iqa", f"RUN={run}", "RESULTS=kept", "HARDWARE=h100", "STRICT=1"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert made.returncode != 0
    assert "failed: coca\n" in made.stderr
    coca, pmt_iqa, recorded = log.read_text().splitlines()
    assert coca.startswith("pytest benchmarks/speed/test_speed_coca.py --benchmark-only")
    assert pmt_iqa.startswith("pytest benchmarks/speed/test_speed_pmt_iqa.py --benchmark-only")
    timings = recorded.removeprefix("tenfold-benchmarks record-speed ").split(" ")[0]
    assert recorded.endswith("/pmt-iqa.json --results kept --hardware h100 --strict")
    assert f"--benchmark-json {timings}" in pmt_iqa
    assert not Path(timings).parent.exists()


def test_every_paper_is_compared_with_a_named_peer_and_with_the_reference_way():
    ratios, problems = read_speed(ROOT / "benchmarks" / "results")
    assert problems == []
    papers = {path.parent.name for path in ROOT.glob("packages/*/pyproject.toml")}
    with_peer = {ratio.paper for ratio in ratios if ratio.peer is not None}
    with_reference = {ratio.paper for ratio in ratios if ratio.peer is None}
    assert (papers - with_peer, papers - with_reference) == (set(), set())
