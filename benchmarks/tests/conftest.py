"""Records, packages and sites written to a temporary folder, and the browser that looks at them."""

from __future__ import annotations

import base64
import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, ConsoleMessage, Page, Request, expect, sync_playwright

from tenfold.benchmarks.records import Collection, collect
from tenfold.benchmarks.site import write_site
from tenfold.benchmarks.speed import read_speed
from tenfold.benchmarks.summary import PaperPage, summarise

PIXEL = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)
CHROMIUM_FLAGS = (
    "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
)


@dataclass(frozen=True)
class Workspace:
    """The three roots that the dashboards read, and the site they write."""

    root: Path

    @property
    def runs(self) -> Path:
        return self.root / "runs"

    @property
    def results(self) -> Path:
        return self.root / "results"

    @property
    def packages(self) -> Path:
        return self.root / "packages"

    @property
    def site(self) -> Path:
        return self.root / "site"

    def arguments(self) -> list[str]:
        """The roots as command line options."""
        return [f"--{name}={getattr(self, name)}" for name in ("runs", "results", "packages")]

    def package(self, paper: str = "gfkd", *, reported: str | None = None) -> Path:
        """A package with metadata and, if given, a reported.toml with the text ``reported``."""
        folder = self.packages / paper
        module = folder / "src" / "tenfold" / paper.replace("-", "_")
        module.mkdir(parents=True)
        (folder / "pyproject.toml").write_text(
            f'[project]\nname = "tenfold-{paper}"\ndescription = "{paper.upper()}: a method for graphs"\n'
        )
        (folder / "README.md").write_text(f"# tenfold-{paper}\n\n> Author. A Title. Venue 2021.\n\nText.\n")
        if reported is not None:
            (module / "reported.toml").write_text(reported)
        return folder

    def run(self, *, hardware: str | None = None, **changes: Any) -> Path:
        """Write a valid run record with ``changes`` where its fields say; return its directory."""
        content = run_record(**changes)
        root = self.results / hardware if hardware else self.runs
        directory = root / content["paper"] / content["profile"] / f"{content['name']}-seed{content['seed']}"
        directory.mkdir(parents=True)
        (directory / "result.json").write_text(json.dumps(content))
        return directory

    def seeds(self, method: str, accuracies: list[float], **changes: Any) -> None:
        """One finished run per value of accuracy."""
        for seed, accuracy in enumerate(accuracies):
            self.run(name=method.lower(), method=method, seed=seed, metrics={"accuracy": accuracy}, **changes)

    def speed(self, *lines: Mapping[str, Any], hardware: str = "h100", paper: str = "gfkd") -> Path:
        """Add lines to a speed history; return its file."""
        path = self.results / hardware / "speed" / f"{paper}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a") as file:
            file.writelines(json.dumps(line) + "\n" for line in lines)
        return path

    def collect(self) -> Collection:
        return collect(self.runs, self.results, self.packages)

    def page(self, paper: str = "gfkd") -> PaperPage:
        """What the paper's page shows."""
        return next(page for page in summarise(self.collect()) if page.paper.id == paper)

    def build(self) -> Path:
        write_site(self.collect(), read_speed(self.results)[0], self.site)
        return self.site

    def html(self, paper: str = "gfkd") -> str:
        """The built page of a paper."""
        return (self.build() / "papers" / f"{paper}.html").read_text(encoding="utf-8")


def run_record(**changes: Any) -> dict[str, Any]:
    """A valid result.json; ``changes`` replace whole fields."""
    method = changes.get("method", "GFKD")
    content: dict[str, Any] = {
        "schema_version": 1,
        "paper": "gfkd",
        "profile": "quick",
        "name": "gfkd",
        "dataset": "MUTAG-quick",
        "setting": "GCN-3-32",
        "method": method,
        "seed": 0,
        "status": "finished",
        "metrics": {"accuracy": 80.0},
        "curves": {"loss": {"x": [1, 2, 3], "y": [2.0, 1.0, 0.5], "x_label": "epoch"}},
        "figures": [],
        "config": {"optimiser": {"lr": 0.01 if method == "GFKD" else 0.02, "name": "adam"}, "epochs": 3},
        "config_hash": "0" * 64,
        "environment": {
            "command": "tenfold-gfkd reproduce --profile quick",
            "python": "3.11.9",
            "platform": "Linux",
            "packages": {"torch": "2.11.0"},
            "hardware": {"cpu": "Test CPU", "cpu_cores": 2, "gpus": []},
            "git": {"commit": "abcdef0123456789", "dirty": False},
        },
        "timing": {
            "started_at": "2025-11-20T10:00:00+00:00",
            "seconds": 12.5,
            "throughput": 100.0,
            "throughput_unit": "graphs/s",
            "peak_memory_bytes": 2**20,
        },
    }
    return content | changes


def speed_entry(**changes: Any) -> dict[str, Any]:
    """A valid benchmark of a speed history."""
    entry = {"name": "test_step", "ratios": [2.0], "reference": "DGL", "peer": "dgl", "unit": "steps"}
    return entry | {"numbers": {}} | changes


def speed_line(benchmarks: list[dict[str, Any]] | None = None, **changes: Any) -> dict[str, Any]:
    """A valid line of a speed history; ``changes`` replace whole fields."""
    content: dict[str, Any] = {
        "schema_version": 1,
        "measured_at": "2025-11-20T10:00:00+00:00",
        "commit": "abcdef0123456789",
        "dirty": False,
        "machine": {
            "python": "3.11.9",
            "system": "Linux x86_64",
            "torch": "2.11.0",
            "threads": 1,
            "cpu": "Test CPU",
            "cpu_cores": 2,
            "gpus": [],
        },
        "benchmarks": benchmarks or [speed_entry()],
    }
    return content | changes


def reported_toml(*, claims: str = "", rows: str = "", title: str = "A Title") -> str:
    """A valid reported.toml; ``claims`` and ``rows`` are TOML tables, by default one claim and three rows."""
    return (
        f"schema_version = 1\npaper = 'gfkd'\ntitle = {json.dumps(title)}\nauthors = 'A. Author'\n"
        "venue = 'Venue'\nyear = 2021\nlink = 'https://example.org/paper'\n"
        + (
            rows
            or "".join(
                row(method, value) for method, value in (("GFKD", 80.0), ("KD", 90.0), ("RandG", None))
            )
        )
        + (claims or claim())
    )


def row(method: str, value: float | None, *, dataset: str = "MUTAG") -> str:
    """A row of a reported table; no value makes it unavailable."""
    printed = "unavailable = 'the scan is illegible'" if value is None else f"value = {value}"
    return (
        f"[[rows]]\ntable = 'Table 2'\ndataset = '{dataset}'\nsetting = 'GCN-3-32'\nmethod = '{method}'\n"
        f"metric = 'accuracy'\n{printed}\nunit = '%'\nhigher_is_better = true\nsource = 'Table 2'\n"
    )


def claim(identifier: str = "beats", *, profile: str = "quick", margin: float = 5.0) -> str:
    """A claim that GFKD's accuracy is above RandG's."""
    return (
        f"[[claims]]\nid = '{identifier}'\ntext = 'GFKD beats RandG'\nprofile = '{profile}'\n"
        f"metric = 'accuracy'\nbetter = 'GFKD'\nworse = 'RandG'\nmargin = {margin}\nhigher_is_better = true\n"
    )


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    """An empty workspace with a packages folder."""
    made = Workspace(tmp_path)
    made.packages.mkdir()
    return made


@pytest.fixture
def reported() -> Callable[..., str]:
    """Builder of a reported.toml text."""
    return reported_toml


@pytest.fixture
def make_claim() -> Callable[..., str]:
    """Builder of a claim's TOML."""
    return claim


@pytest.fixture
def make_row() -> Callable[..., str]:
    """Builder of a reported row's TOML."""
    return row


@pytest.fixture
def record() -> Callable[..., Mapping[str, Any]]:
    """Builder of a result.json's content."""
    return run_record


@pytest.fixture
def timing() -> Callable[..., dict[str, Any]]:
    """Builder of a benchmark of a speed history."""
    return speed_entry


@pytest.fixture
def suite() -> Callable[..., dict[str, Any]]:
    """Builder of a line of a speed history."""
    return speed_line


@pytest.fixture
def pixel() -> bytes:
    """A PNG of one pixel."""
    return PIXEL


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """The system's Chromium, started once."""
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("Chromium is missing: apt-get install chromium")
    expect.set_options(timeout=30_000)  # milliseconds: a busy machine parses plotly's script slowly
    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=chromium, args=CHROMIUM_FLAGS.split())
        yield launched
        launched.close()


@pytest.fixture
def browser_page(browser: Browser) -> Iterator[Page]:
    """A page at desktop width. Any message on its console, and any error of a script, fails the test."""
    complaints: list[str] = []

    def note(message: ConsoleMessage) -> None:
        complaints.append(f"{message.type}: {message.text}")

    def note_lost(request: Request) -> None:
        if request.failure != "net::ERR_ABORTED":  # how Chromium ends the loading of audio it has enough of
            complaints.append(f"not found: {request.url}")

    page = browser.new_page(viewport={"width": 1280, "height": 900})
    page.on("console", note)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("requestfailed", note_lost)
    yield page
    page.close()
    assert complaints == []


@pytest.fixture(scope="session")
def sample_site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A paper that was run (one run failed, one record broken), speed ratios, and an unbuilt paper."""
    made = Workspace(tmp_path_factory.mktemp("sample"))
    made.packages.mkdir()
    made.package("gfkd", reported=reported_toml(claims=claim() + claim("paper", profile="mutag")))
    made.package("coca")
    figure = {"file": "figures/graphs.png", "caption": "Generated graphs"}
    made.seeds("GFKD", [80.0, 82.0, 84.0], figures=[figure])
    for directory in sorted(made.runs.glob("gfkd/quick/gfkd-seed*"))[:2]:
        (directory / "figures").mkdir()
        (directory / "figures" / "graphs.png").write_bytes(PIXEL)
    made.seeds("RandG", [60.0, 65.0, 61.0])
    made.seeds("KD", [89.5, 90.5, 90.0], dataset="MUTAG", profile="mutag", hardware="h100")
    made.run(name="crash", status="failed", metrics={}, curves={})
    broken = made.runs / "gfkd" / "quick" / "broken-seed0"
    broken.mkdir()
    (broken / "result.json").write_text("{")
    made.speed(speed_line([speed_entry(ratios=[4.5, 4.6])], measured_at="2025-11-13T10:00:00+00:00"))
    made.speed(
        speed_line(
            [
                speed_entry(ratios=[2.0, 4.0, 3.0]),
                speed_entry(name="test_loading[64-small]", ratios=[0.4, 0.5], peer=None, reference="a loop"),
            ]
        )
    )
    return made.build()


@pytest.fixture(scope="session")
def empty_site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A site of one unbuilt package without any runs."""
    made = Workspace(tmp_path_factory.mktemp("empty"))
    made.packages.mkdir()
    made.package("coca")
    return made.build()
