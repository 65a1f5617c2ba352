"""The written site: what its pages say, that it is safe, and how it is put in place."""

import json
import socket
import threading
import urllib.request
from pathlib import Path

import pytest

from tenfold.benchmarks.cli import main
from tenfold.benchmarks.embedding import script
from tenfold.benchmarks.server import open_server
from tenfold.benchmarks.site import MARKER, replaced
from tenfold.shared.logging import TenfoldError

HOSTILE = "</script><img src=x onerror=alert(1)>\"'&\u2028"


def test_a_corrupt_record_is_shown_on_its_papers_page(workspace):
    workspace.package()
    directory = workspace.run()
    (directory / "result.json").write_text("{")
    html = workspace.html()
    assert "<li><code>runs/gfkd/quick/gfkd-seed0/result.json</code>: is not JSON" in html


def test_a_record_of_a_paper_without_package_still_has_a_page(workspace):
    workspace.run(paper="stray")
    assert "gfkd-seed0" in workspace.html("stray")


def test_a_record_below_an_unusable_name_is_shown_on_the_overview(workspace):
    workspace.package()
    directory = workspace.runs / "Bad<Name>" / "quick" / "x-seed0"
    directory.mkdir(parents=True)
    (directory / "result.json").write_text("{}")
    index = (workspace.build() / "index.html").read_text()
    assert "<li><code>runs/Bad&lt;Name&gt;/quick/x-seed0/result.json</code>" in index


def test_the_printed_numbers_stand_beside_the_reproduced(workspace, reported):
    workspace.package(reported=reported())
    workspace.seeds("GFKD", [79.0, 81.0], dataset="MUTAG", profile="mutag")
    html = workspace.html()
    assert "80.0 ± 1.4%" in html
    assert html.count("paper value unavailable: the scan is illegible") == 1
    assert ">unavailable</td>" in html
    assert "not run" in html


def test_hostile_text_stays_text_everywhere(workspace, reported):
    workspace.package(reported=reported(title=HOSTILE))
    workspace.run(
        method=HOSTILE,
        dataset=HOSTILE,
        metrics={HOSTILE: 1.0},
        config={HOSTILE: HOSTILE},
        figures=[{"file": HOSTILE, "caption": HOSTILE}],
        curves={HOSTILE: {"x": [1], "y": [1], "x_label": HOSTILE}},
    )
    for path in workspace.build().rglob("*"):
        if path.suffix in (".html", ".js") and path.name != "plotly-basic.min.js":
            text = path.read_text(encoding="utf-8")
            assert "<img src=x" not in text, path
            assert "\u2028" not in text or path.suffix == ".html", path


def test_a_link_that_is_no_web_address_is_not_a_link(workspace, reported):
    workspace.package(reported=reported().replace("https://example.org/paper", "javascript:alert(1)"))
    assert 'href="javascript' not in workspace.html()


def test_embedded_data_survives_its_escaping():
    data = {"__proto__": "</script>", "quote": "\"'\\\u2028&"}
    text = script("gfkd", "runs", data)
    literal = text[text.index("JSON.parse(") + len("JSON.parse(") : text.rindex(")")]
    assert json.loads(json.loads(literal)) == data
    assert "<" not in text


def test_figures_are_copied_and_described(workspace, pixel):
    workspace.package()
    directory = workspace.run(figures=[{"file": "figures/a.png", "caption": "Graphs"}])
    (directory / "figures").mkdir()
    (directory / "figures" / "a.png").write_bytes(pixel)
    html = workspace.html()
    (copied,) = (workspace.site / "media").iterdir()
    assert copied.read_bytes() == pixel
    assert f'src="../media/{copied.name}" alt="Graphs" loading="lazy"' in html


@pytest.mark.parametrize(
    ("file", "note"),
    [
        ("lost.png", "is missing"),
        ("../../../../secret.png", "lies outside the run directory"),
        ("link.png", "lies outside the run directory"),
        ("page.html", "is of a kind that is not shown"),
        ("null\0.png", "is not a usable path"),
        ("", "is of a kind that is not shown"),
    ],
)
def test_a_figure_that_cannot_be_shown_is_noted_and_never_copied(workspace, pixel, file, note):
    workspace.package()
    (workspace.root / "secret.png").write_bytes(pixel)
    directory = workspace.run(figures=[{"file": file, "caption": "A figure"}])
    (directory / "link.png").symlink_to(workspace.root / "secret.png")
    (directory / "page.html").write_text("<script>alert(1)</script>")
    assert note in workspace.html()
    assert list((workspace.site / "media").iterdir()) == []


def test_an_absolute_figure_path_is_refused(workspace, pixel):
    workspace.package()
    secret = workspace.root / "secret.png"
    secret.write_bytes(pixel)
    workspace.run(figures=[{"file": str(secret), "caption": "A figure"}])
    assert "lies outside the run directory" in workspace.html()


def test_without_runs_every_page_is_a_proper_empty_state(empty_site):
    assert "No runs recorded yet" in (empty_site / "index.html").read_text()
    assert "No runs to compare" in (empty_site / "compare.html").read_text()
    assert "make bench" in (empty_site / "speed.html").read_text()
    assert "Not built yet" in (empty_site / "papers" / "coca.html").read_text()
    assert "chip-good" not in (empty_site / "index.html").read_text().split("What the statuses mean")[0]


def test_pages_are_light_and_need_no_network(sample_site):
    for path in sample_site.rglob("*.html"):
        text = path.read_text()
        assert len(text) < 3_000_000
        assert 'src="http' not in text
        assert '<link rel="stylesheet" href="http' not in text


def test_speed_ratios_are_shown_as_median_with_their_reference(sample_site):
    html = (sample_site / "speed.html").read_text()
    assert "3 ×" in html
    assert "2 to 4" in html
    assert "DGL" in html


def test_rebuilding_replaces_the_site_and_leaves_nothing_beside_it(workspace):
    workspace.package("coca")
    workspace.build()
    (workspace.site / "stale.html").write_text("old")
    workspace.build()
    assert not (workspace.site / "stale.html").exists()
    assert {path.name for path in workspace.root.iterdir()} == {"packages", "site"}


def test_a_build_that_fails_leaves_the_old_site_in_place(workspace):
    workspace.package("coca")
    before = (workspace.build() / "index.html").read_bytes()

    def fail_halfway():
        with replaced(workspace.site) as folder:
            (folder / "index.html").write_text("half")
            raise RuntimeError("halfway")

    with pytest.raises(RuntimeError, match="halfway"):
        fail_halfway()
    assert (workspace.site / "index.html").read_bytes() == before
    assert {path.name for path in workspace.root.iterdir()} == {"packages", "site"}


def test_a_swap_that_fails_puts_the_old_site_back(workspace, monkeypatch):
    workspace.package("coca")
    before = (workspace.build() / "index.html").read_bytes()
    rename = Path.rename

    def refuse_the_new_site(path, target):
        if path.name.startswith(".site-") and not path.name.endswith("-old"):
            raise OSError(28, "No space left on device")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", refuse_the_new_site)
    with pytest.raises(OSError, match="No space left"):
        workspace.build()
    assert (workspace.site / "index.html").read_bytes() == before
    assert {path.name for path in workspace.root.iterdir()} == {"packages", "site"}


def test_a_folder_that_is_no_site_of_ours_is_left_alone(workspace, capsys):
    workspace.package("coca")
    workspace.site.mkdir()
    (workspace.site / "thesis.tex").write_text("years of work")
    with pytest.raises(SystemExit, match="2"):
        main(["dashboard", *workspace.arguments(), f"--output={workspace.site}"])
    assert "choose another --output" in capsys.readouterr().err
    assert (workspace.site / "thesis.tex").read_text() == "years of work"


def test_the_command_writes_the_site_and_says_where(workspace, capsys):
    workspace.package("coca")
    workspace.run(paper="coca")
    with pytest.raises(SystemExit, match="0"):
        main(["dashboard", *workspace.arguments(), f"--output={workspace.site}"])
    assert "1 paper, 1 run, 0 problems" in capsys.readouterr().out
    assert (workspace.site / MARKER).is_file()


def test_the_server_serves_the_site_on_the_loopback_address(empty_site):
    with open_server(empty_site, 0) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{server.server_port}/") as answer:
                assert b"No runs recorded yet" in answer.read()
        finally:
            server.shutdown()


def test_a_used_port_and_a_missing_site_are_said_in_one_sentence(empty_site, tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(TenfoldError, match="is used by another program: choose another with --port"):
            open_server(empty_site, taken.getsockname()[1])
    with pytest.raises(TenfoldError, match="there is no site"):
        open_server(tmp_path, 0)
