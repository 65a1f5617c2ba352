"""Rendering the static site and putting it in place in one step."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib import resources
from pathlib import Path
from urllib.parse import urlsplit

import jinja2

from tenfold.benchmarks import formatting
from tenfold.benchmarks.embedding import compare_data, curve_data, script
from tenfold.benchmarks.evidence import paired_evidence
from tenfold.benchmarks.records import Collection
from tenfold.benchmarks.run_sets import hardware_name
from tenfold.benchmarks.speed import SpeedRatio
from tenfold.benchmarks.strip_plot import difference_plot, strip_plot
from tenfold.benchmarks.summary import PaperPage, summarise, totals
from tenfold.shared.logging import TenfoldError

MARKER = ".tenfold-site"
STATIC = ("site.css", "site.js", "compare.js", "icon.svg", "plotly-basic.min.js", "plotly-LICENSE.txt")
"""Ours, and Plotly's own build with lines and bars alone (npm's plotly.js-basic-dist-min 4.1.1, unchanged): the
script in its Python package has every kind of chart and is four times as large."""


def write_site(collection: Collection, speed: Iterable[SpeedRatio], output: Path) -> tuple[PaperPage, ...]:
    """Build the site and swap it into ``output``; return the pages' contents.

    Raises:
        TenfoldError: ``output`` is something other than an earlier site or an empty folder.
    """
    pages = summarise(collection)
    with replaced(output) as folder:
        _write_pages(pages, collection, tuple(speed), folder)
        _write_data(pages, folder)
        _write_static(folder)
        _copy_figures(pages, folder)
    return pages


@contextmanager
def replaced(output: Path) -> Iterator[Path]:
    """A fresh folder beside ``output`` that takes its place on success and vanishes on failure.

    Raises:
        TenfoldError: ``output`` is something other than an earlier site or an empty folder.
    """
    output = output.resolve()
    refuse_foreign(output)
    output.parent.mkdir(parents=True, exist_ok=True)
    fresh = Path(tempfile.mkdtemp(prefix=f".{output.name}-", dir=output.parent))
    old = fresh.with_name(f"{fresh.name}-old")
    try:
        fresh.chmod(0o755)
        yield fresh
        (fresh / MARKER).write_text(
            "Written by tenfold-benchmarks dashboard, which may replace this folder.\n"
        )
        if output.exists():
            output.rename(old)
        try:
            fresh.rename(output)
        except BaseException:
            if old.exists():
                old.rename(output)
            raise
    finally:
        for leftover in (fresh, old):
            shutil.rmtree(leftover, ignore_errors=True)


def refuse_foreign(output: Path) -> None:
    """Raise unless ``output`` is free, empty, or a site of ours."""
    if not output.exists():
        return
    if not output.is_dir() or (any(output.iterdir()) and not (output / MARKER).is_file()):
        raise TenfoldError(
            f"{output} is not a site that tenfold-benchmarks wrote and is left alone: choose another --output"
        )


def environment() -> jinja2.Environment:
    """Jinja with autoescaping, our filters, and an error for every name that a template misspells."""
    templates = jinja2.Environment(
        loader=jinja2.PackageLoader("tenfold.benchmarks"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    filters = ("number", "spread", "duration", "memory", "date", "plural")
    templates.filters |= {name: getattr(formatting, name) for name in filters}
    templates.filters |= {
        "strip_plot": strip_plot,
        "paired_evidence": paired_evidence,
        "difference_plot": difference_plot,
        "hardware_name": hardware_name,
    }
    templates.tests["web_link"] = _is_web_link
    return templates


def _write_pages(
    pages: tuple[PaperPage, ...], collection: Collection, speed: tuple[SpeedRatio, ...], folder: Path
) -> None:
    templates = environment()
    shared = {"pages": pages, "built_at": datetime.now(UTC)}

    def render(template: str, name: str, root: str = "", **values: object) -> None:
        text = templates.get_template(template).render(root=root, **shared, **values)
        (folder / name).write_text(text, encoding="utf-8")

    (folder / "papers").mkdir()
    known = {page.paper.id for page in pages}
    problems = [problem for problem in collection.problems if problem.paper not in known]
    render(
        "overview.html",
        "index.html",
        totals=totals(pages),
        problems=problems,
        all_problems=collection.problems,
    )
    render("compare.html", "compare.html")
    render("speed.html", "speed.html", ratios=speed, names={page.paper.id: page.paper.name for page in pages})
    for page in pages:
        ratios = [ratio for ratio in speed if ratio.paper == page.paper.id]
        render("paper.html", f"papers/{page.paper.id}.html", root="../", page=page, ratios=ratios)


def _write_data(pages: Iterable[PaperPage], folder: Path) -> None:
    (folder / "data" / "curves").mkdir(parents=True)
    for page in pages:
        if page.profiles:
            paper = page.paper.id
            files = {
                "runs": (f"{paper}.js", compare_data(page)),
                "curves": (f"curves/{paper}.js", curve_data(page)),
            }
            for kind, (name, data) in files.items():
                (folder / "data" / name).write_text(script(paper, kind, data), encoding="utf-8")


def _write_static(folder: Path) -> None:
    target = folder / "static"
    target.mkdir()
    source = resources.files("tenfold.benchmarks").joinpath("static")
    for name in STATIC:
        (target / name).write_bytes(source.joinpath(name).read_bytes())


def _copy_figures(pages: Iterable[PaperPage], folder: Path) -> None:
    media = folder / "media"
    media.mkdir()
    for page in pages:
        for run in page.runs:
            for figure in run.figures:
                if figure.path is not None and not (media / figure.media_name).exists():
                    shutil.copyfile(figure.path, media / figure.media_name)


def _is_web_link(link: str) -> bool:
    try:
        return urlsplit(link).scheme in ("http", "https")
    except ValueError:
        return False
