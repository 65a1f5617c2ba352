"""The verbs of ``tenfold-benchmarks`` that print: compare, verify, export, reproduce."""

from __future__ import annotations

import csv
import io
import json
import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tenfold.benchmarks import cli
from tenfold.shared.runs import config_hash


def call(capsys, *arguments):
    """Exit status, standard output, standard error."""
    with pytest.raises(SystemExit) as ended:
        cli.main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return ended.value.code, captured.out, captured.err


@pytest.fixture
def honest(workspace, record):
    """A workspace whose ``run`` writes records with the hash of their configuration."""

    def run(**changes):
        config = changes.pop("config", record(method=changes.get("method", "GFKD"))["config"])
        return workspace.run(**({"config": config, "config_hash": config_hash(config)} | changes))

    workspace.package()
    return run


# -- compare -------------------------------------------------------------------------------------------


def test_compare_shows_metrics_with_their_difference_and_what_differs(workspace, honest, capsys):
    honest(metrics={"accuracy": 80.0, "loss": None})
    honest(name="kd", method="KD", metrics={"accuracy": 91.5, "f1": 0.5})
    status, out, _ = call(capsys, "compare", "gfkd-seed0", "kd-seed0", *workspace.arguments())
    assert status == 0
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in out.splitlines() if "│" in line]
    assert ["accuracy", "80", "91.5", "+11.5"] in rows
    assert ["f1", "–", "0.5", "–"] in rows
    assert ["optimiser.lr", "0.01", "0.02"] in rows
    assert "the same environment" in out
    assert "epochs" not in out


def test_compare_takes_paths_and_any_number_of_runs(workspace, honest, capsys):
    directories = [honest(seed=seed) for seed in range(3)]
    status, out, _ = call(capsys, "compare", *directories, *workspace.arguments())
    assert status == 0
    assert "the same configuration" in out
    assert all(f"gfkd-seed{seed}" in out for seed in range(3))


def test_two_runs_of_the_same_name_are_told_apart_by_their_source(workspace, honest, capsys):
    honest()
    honest(hardware="h100", metrics={"accuracy": 90.0})
    status, _, err = call(capsys, "compare", "gfkd-seed0", "gfkd-seed0", *workspace.arguments())
    assert status == 2
    assert "2 runs are named gfkd-seed0" in err
    assert "h100/gfkd/quick/gfkd-seed0" in err
    keys = ["local runs/gfkd/quick/gfkd-seed0", "h100/gfkd/quick/gfkd-seed0"]
    status, out, _ = call(capsys, "compare", *keys, *workspace.arguments())
    assert status == 0
    assert "+10" in out


@pytest.mark.parametrize(
    ("names", "sentence"),
    [
        (["gfkd-seed0"], "comparing takes two or more runs"),
        (["gfkd-seed0", "gfkd-seed0"], "mean one and the same run"),
        (["gfkd-seed0", "gfdk-seed0"], "did you mean gfkd-seed0"),
        (["gfkd-seed0", "coca-seed0"], "runs of coca and gfkd do not compare"),
    ],
)
def test_runs_that_do_not_compare_are_refused_in_one_sentence(workspace, honest, capsys, names, sentence):
    honest()
    honest(paper="coca", name="coca")
    status, out, err = call(capsys, "compare", *names, *workspace.arguments())
    assert (status, out) == (2, "")
    assert sentence in " ".join(err.split())


def test_a_corrupt_record_named_by_its_path_says_why(workspace, honest, tmp_path, capsys):
    kept = honest()
    broken = tmp_path / "gfkd" / "quick" / "x-seed0"
    broken.mkdir(parents=True)
    (broken / "result.json").write_text("{")
    status, _, err = call(capsys, "compare", kept, broken, *workspace.arguments())
    assert status == 2
    assert "cannot be compared: is not JSON" in " ".join(err.split())


# -- verify --------------------------------------------------------------------------------------------


def verify(workspace, capsys):
    status, out, err = call(capsys, "verify", *workspace.arguments())
    return status, out.splitlines(), err


def test_verify_succeeds_where_all_is_well(workspace, honest, capsys):
    honest()
    status, lines, err = verify(workspace, capsys)
    assert (status, lines) == (0, [])
    assert "1 valid record; 0 claims held, 0 failed, 0 not judged; 0 failures" in err


def test_a_configuration_that_was_changed_afterwards_is_found(workspace, honest, capsys):
    directory = honest()
    content = json.loads((directory / "result.json").read_text())
    content["config"]["epochs"] = 300
    (directory / "result.json").write_text(json.dumps(content))
    status, lines, _ = verify(workspace, capsys)
    assert status == 1
    assert lines == [
        "local runs/gfkd/quick/gfkd-seed0: the configuration was changed after the run: it does not give "
        "config_hash; repeat the run"
    ]


def test_a_claim_that_does_not_hold_is_a_failure_and_one_without_runs_a_note(
    workspace, reported, make_claim, record, capsys
):
    claims = (
        make_claim("a", margin=50.0)
        + make_claim("b", margin=5.0)
        + make_claim("c").replace("RandG", "DeepInvG")
    )
    workspace.package(reported=reported(claims=claims))
    for method, accuracy in (("GFKD", 80.0), ("RandG", 60.0)):
        config = record(method=method)["config"]
        workspace.run(
            name=method.lower(),
            method=method,
            metrics={"accuracy": accuracy},
            config=config,
            config_hash=config_hash(config),
        )
    status, lines, err = verify(workspace, capsys)
    assert status == 1
    assert lines == [
        "local runs/gfkd/quick: claim a does not hold: accuracy of GFKD and RandG differ by +20, needed 50",
        "note: local runs/gfkd/quick: claim c is not judged: no finished run of DeepInvG",
    ]
    assert "1 claim held, 1 failed, 1 not judged; 1 failure" in err


def test_a_lost_figure_and_a_lost_reference_result_are_failures(workspace, honest, capsys):
    honest(figures=[{"file": "figures/a.png", "caption": "A"}])
    (workspace.results / "h100" / "gfkd" / "quick" / "gfkd-seed3" / "figures").mkdir(parents=True)
    status, lines, _ = verify(workspace, capsys)
    assert status == 1
    assert lines == [
        "results/h100/gfkd/quick/gfkd-seed3/result.json: is missing: copy it from the run, or remove its directory",
        "local runs/gfkd/quick/gfkd-seed0: the figure figures/a.png is missing",
    ]


def test_an_interrupted_run_is_a_note_and_is_shown_on_the_page(workspace, honest, capsys):
    directory = honest()
    (directory / "result.json").rename(directory / "config.json")
    (directory / "checkpoint.pt").write_bytes(b"state")
    status, lines, _ = verify(workspace, capsys)
    assert status == 0
    assert lines == ["note: gfkd/quick/gfkd-seed0: has no result yet; the command that began it goes on"]
    html = " ".join(workspace.html().split())
    assert "1 run without a result, interrupted or still running, not counted:" in html
    assert "<code>quick/gfkd-seed0</code> (has a checkpoint)" in html


# -- export --------------------------------------------------------------------------------------------


@pytest.fixture
def measured(workspace, reported):
    """Printed numbers that were reproduced, with characters that mean something in every format."""
    workspace.package(reported=reported().replace("GCN-3-32", "a|b_50%"))
    workspace.seeds("GFKD", [79.0, 81.0], dataset="MUTAG", profile="mutag", setting="a|b_50%")
    workspace.seeds("GFKD", [80.0, 84.0, 85.0])
    workspace.seeds("RandG", [60.0, 61.0, 61.0])
    return workspace


def test_csv_has_a_column_for_every_number(measured, capsys):
    status, out, _ = call(capsys, "export", "gfkd", *measured.arguments())
    (row,) = csv.DictReader(io.StringIO(out))
    assert status == 0
    assert (row["method"], row["setting"], row["paper"], row["reproduced"], row["n"]) == (
        "GFKD",
        "a|b_50%",
        "80.0",
        "80.0",
        "2",
    )
    assert float(row["reproduced_std"]) == pytest.approx(2**0.5)


def test_rows_that_were_not_reproduced_are_exported_on_request(measured, capsys):
    _, out, _ = call(capsys, "export", "gfkd", "--with-missing", *measured.arguments())
    assert [row["reproduced"] for row in csv.DictReader(io.StringIO(out))] == ["80.0", "", ""]


def test_markdown_shows_mean_and_deviation_and_keeps_its_columns(measured, capsys):
    _, out, _ = call(capsys, "export", "gfkd", "--format", "markdown", *measured.arguments())
    lines = out.splitlines()
    assert "80.0 ± 1.4" in lines[2]
    assert "a\\|b_50%" in lines[2]
    assert {line.replace("\\|", "").count("|") for line in lines} == {lines[0].count("|")}


def test_latex_escapes_text_and_sets_numbers_in_mathematics(measured, capsys):
    _, out, _ = call(capsys, "export", "gfkd", "--format", "latex", *measured.arguments())
    assert r"a|b\_50\%" in out
    assert r"$80.0 \pm 1.4$" in out
    assert out.startswith(r"\begin{longtable}{llllllrrrrll}")


def test_claims_are_exported_with_their_interval_to_a_file(measured, tmp_path, capsys):
    file = tmp_path / "claims.csv"
    status, out, _ = call(
        capsys, "export", "gfkd", "--contents", "claims", "--output", file, *measured.arguments()
    )
    (row,) = csv.DictReader(file.open())
    assert (status, out, row["holds"]) == (0, "", "yes")
    assert float(row["interval_low"]) < float(row["paired"]) < float(row["interval_high"])
    assert (float(row["paired"]), row["pairs"]) == (pytest.approx(float(row["difference"])), "3")


def test_latex_writes_powers_of_ten_and_says_how_far_an_interval_goes(workspace, reported, capsys):
    workspace.package(reported=reported(title="A & B_1").replace("margin = 5.0", "margin = 0.00001"))
    workspace.seeds("GFKD", [80.0, 84.0])
    workspace.seeds("RandG", [60.0, 61.0])
    _, out, _ = call(
        capsys, "export", "gfkd", "--contents", "claims", "--format", "latex", *workspace.arguments()
    )
    assert r"$1 \cdot 10^{-5}$" in out
    assert r"intervals (95 \%) of the mean difference of pairs with the same seed, too narrow" in out


def test_smoke_runs_are_no_results_to_export(workspace, reported, capsys):
    workspace.package(reported=reported())
    workspace.seeds("GFKD", [79.0], dataset="MUTAG", profile="smoke")
    for contents in ("reported", "measured"):
        status, out, _ = call(capsys, "export", "gfkd", "--contents", contents, *workspace.arguments())
        assert (status, out) == (2, "")
    assert workspace.page().tables[0].reproduced == 0


def test_everything_measured_is_exported_with_one_row_for_each_profile(measured, capsys):
    _, out, _ = call(capsys, "export", "gfkd", "--contents", "measured", *measured.arguments())
    assert [(row["profile"], row["method"]) for row in csv.DictReader(io.StringIO(out))] == [
        ("quick", "GFKD"),
        ("quick", "RandG"),
        ("mutag", "GFKD"),
    ]


@pytest.mark.parametrize(
    ("paper", "sentence"), [("nope", "there is no paper 'nope'; choose one of coca"), ("coca", "nothing")]
)
def test_what_cannot_be_exported_is_said_in_one_sentence(workspace, capsys, paper, sentence):
    workspace.package("coca")
    status, out, err = call(capsys, "export", paper, *workspace.arguments())
    assert (status, out) == (2, "")
    assert sentence in err or "there are no printed and reproduced numbers of coca to export" in " ".join(
        err.split()
    )


# -- reproduce -----------------------------------------------------------------------------------------


@pytest.fixture
def commands(tmp_path, monkeypatch):
    """Stand-ins for the papers' commands, by paper and exit status, beside an interpreter of their own."""
    binaries = tmp_path / "bin"
    binaries.mkdir()
    monkeypatch.setattr(sys, "executable", str(binaries / "python"))

    def add(paper, status, leaves=None):
        """A command that notes its arguments, leaves a record if one is given, and ends with ``status``."""
        script = [
            f"#!{sys.prefix}/bin/python",
            "import json, pathlib, sys",
            f"with pathlib.Path({str(tmp_path / 'calls')!r}).open('a') as calls:",
            f"    calls.write(' '.join([{paper!r}, *sys.argv[1:]]) + '\\n')",
        ]
        if leaves is not None:
            script += [
                "runs = pathlib.Path(sys.argv[sys.argv.index('--output') + 1])",
                f"for record in {leaves!r}:",
                "    place = runs / record['paper'] / record['profile'] / f\"{record['name']}-seed{record['seed']}\"",
                "    place.mkdir(parents=True)",
                "    (place / 'result.json').write_text(json.dumps(record))",
            ]
        path = binaries / f"tenfold-{paper}"
        path.write_text("\n".join([*script, f"sys.exit({status})"]) + "\n")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)

    def calls():
        return (tmp_path / "calls").read_text().splitlines()

    add.calls = calls
    return add


def reproduce(workspace, capfd, *papers, **options):
    given = [f"--{name}={value}" for name, value in options.items()]
    roots = [f"--runs={workspace.runs}", f"--packages={workspace.packages}"]
    with pytest.raises(SystemExit) as ended:
        cli.main(["reproduce", *papers, *roots, *given])
    return ended.value.code, capfd.readouterr()


def test_a_paper_that_fails_keeps_no_other_from_running(workspace, commands, record, reported, capfd):
    workspace.package(reported=reported())
    runs = [
        record(name=method.lower(), method=method, metrics={"accuracy": accuracy})
        for method, accuracy in (("GFKD", 80.0), ("RandG", 60.0))
    ]
    commands("coca", 2)
    commands("gfkd", 0, runs)
    status, captured = reproduce(workspace, capfd, "coca", "gfkd")
    assert status == 1
    rows = [
        [cell.strip() for cell in line.split("│")[1:-1]] for line in captured.out.splitlines() if "│" in line
    ]
    assert [row[:3] + row[4:] for row in rows] == [
        ["coca", "–", "–", "exit status 2"],
        ["gfkd", "2", "1 of 1", "reproduced"],
        ["together", "", "", "1 of 2 reproduced"],
    ]


def test_a_claim_that_fails_is_named_as_such(workspace, commands, record, reported, capfd):
    workspace.package(reported=reported())
    runs = [record(name=method.lower(), method=method) for method in ("GFKD", "RandG")]
    commands("gfkd", 1, runs)
    status, captured = reproduce(workspace, capfd, "gfkd")
    assert status == 1
    assert "a claim fails" in captured.out


def test_a_paper_that_was_killed_is_not_taken_for_a_claim_that_fails(
    workspace, commands, record, reported, capfd
):
    workspace.package(reported=reported())
    commands(
        "gfkd",
        "-9 and __import__('os').kill(__import__('os').getpid(), 9)",
        [record(name=m, method=m) for m in ("GFKD", "RandG")],
    )
    status, captured = reproduce(workspace, capfd, "gfkd")
    assert status == 1
    assert "killed by signal 9" in captured.out


def restore_interrupts():
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def test_an_interrupt_from_the_keyboard_ends_with_the_table_so_far(workspace, commands, tmp_path):
    commands("gfkd", 0)
    commands("coca", "__import__('time').sleep(60)")
    roots = [f"--runs={workspace.runs}", f"--packages={workspace.packages}"]
    code = "import sys; sys.executable = sys.argv.pop(1); from tenfold.benchmarks.cli import main; main(sys.argv[1:])"
    process = subprocess.Popen(
        [
            Path(sys.prefix) / "bin" / "python",
            "-c",
            code,
            sys.executable,
            "reproduce",
            "gfkd",
            "coca",
            *roots,
        ],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=restore_interrupts,  # a shell's background jobs ignore them
    )
    deadline = time.monotonic() + 60
    while not (tmp_path / "calls").exists() or len(commands.calls()) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGINT)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "interrupted" in out
    assert "1 of 2 reproduced" in out


def test_profile_and_arguments_reach_every_paper(workspace, commands, capfd):
    commands("coca", 0)
    commands("gfkd", 0)
    status, _ = reproduce(
        workspace, capfd, "gfkd", "coca", profile="h100", arguments="--seeds 0 1 --data-root 'my data'"
    )
    assert status == 0
    expected = f"reproduce --profile h100 --output {workspace.runs} --seeds 0 1 --data-root my data"
    assert commands.calls() == [f"gfkd {expected}", f"coca {expected}"]


def test_an_interruption_ends_the_suite_with_the_table_so_far(workspace, commands, capfd):
    commands("gfkd", 130)
    commands("coca", 0)
    status, captured = reproduce(workspace, capfd, "gfkd", "coca")
    assert status == 130
    assert "interrupted" in captured.out
    assert [call.split()[0] for call in commands.calls()] == ["gfkd"]


def test_a_missing_command_is_said_before_anything_runs(workspace, commands, capfd):
    commands("gfkd", 0)
    status, captured = reproduce(workspace, capfd, "gfkd", "nope")
    assert status == 2
    assert "tenfold-nope not installed: run `make setup`" in captured.err
    assert "==>" not in captured.out
