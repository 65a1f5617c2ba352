"""The site of the repository's own reference results in a real browser: each page's weight, figures, audio."""

from __future__ import annotations

from pathlib import Path

import pytest
from playwright.sync_api import expect

from tenfold.benchmarks.records import collect
from tenfold.benchmarks.site import write_site
from tenfold.benchmarks.speed import read_speed
from tenfold.benchmarks.verifying import verify

ROOT = Path(__file__).resolve().parents[2]
RESULTS, PACKAGES = ROOT / "benchmarks" / "results", ROOT / "packages"
PAPERS = sorted({path.parts[-4] for path in RESULTS.glob("*/*/*/*/result.json")})
PAGES = ["index.html", "compare.html", "speed.html", *(f"papers/{paper}.html" for paper in PAPERS)]


@pytest.fixture(scope="module")
def collection(tmp_path_factory):
    return collect(tmp_path_factory.mktemp("runs"), RESULTS, PACKAGES)


@pytest.fixture(scope="module")
def site(collection, tmp_path_factory):
    output = tmp_path_factory.mktemp("reference") / "site"
    write_site(collection, read_speed(RESULTS)[0], output)
    return output


def test_every_reference_result_passes_verification(collection):
    found = verify(collection)
    assert found.failures == ()
    assert found.records > 0


def test_every_paper_with_reference_results_has_those_of_its_quick_profile_with_three_seeds(collection):
    assert len(PAPERS) >= 10
    seeds = {paper: set() for paper in PAPERS}
    for record in collection.records:
        if record.profile == "quick" and record.finished:
            seeds[record.paper].add(record.content["seed"])
    assert {paper for paper, found in seeds.items() if len(found) < 3} == set()


def test_a_page_with_all_that_it_loads_but_pictures_and_sounds_is_light(browser_page, site):
    loaded = set()
    browser_page.on(
        "request", lambda request: loaded.add(Path(request.url.removeprefix("file://").split("?")[0]))
    )
    weights = {}
    for name in PAGES:
        loaded.clear()
        browser_page.goto(f"file://{site}/{name}")
        charts = browser_page.locator(".plot")
        if charts.count():
            charts.first.scroll_into_view_if_needed()
            expect(browser_page.locator(".plot .main-svg").first).to_be_visible()
            assert site / "static" / "plotly-basic.min.js" in loaded
        files = {file for file in loaded if site / "media" not in file.parents}
        assert {site / name, site / "static" / "site.js"} <= files
        weights[name] = sum(file.stat().st_size for file in files)
    assert max(weights.values()) < 3_000_000, weights


@pytest.mark.parametrize("paper", PAPERS)
def test_comparing_runs_of_a_paper_loads_little(site, paper):
    files = (
        "compare.html",
        "static/site.css",
        "static/site.js",
        "static/compare.js",
        "static/plotly-basic.min.js",
    )
    assert sum((site / file).stat().st_size for file in (*files, f"data/{paper}.js")) < 3_000_000


@pytest.mark.parametrize("name", PAGES)
def test_a_page_paints_within_a_second(browser_page, site, name):
    times = []
    for _ in range(3):
        browser_page.goto(f"file://{site}/{name}")
        painted = "performance.getEntriesByName('first-contentful-paint')[0]?.startTime"
        times.append(browser_page.wait_for_function(painted).json_value())
        if times[-1] < 1000:
            return
    pytest.fail(f"first paint took {times} milliseconds")


@pytest.mark.parametrize("name", PAGES)
def test_a_page_fits_a_phone_without_complaint_also_in_the_dark(browser_page, site, name):
    browser_page.set_viewport_size({"width": 390, "height": 844})
    browser_page.emulate_media(color_scheme="dark")
    browser_page.goto(f"file://{site}/{name}")
    browser_page.evaluate("document.querySelectorAll('details').forEach((part) => { part.open = true; })")
    expect(browser_page.locator("h1")).to_be_visible()
    assert browser_page.evaluate("document.documentElement.scrollWidth") == 390


@pytest.mark.parametrize("paper", PAPERS)
def test_every_figure_of_a_paper_is_there_and_every_picture_loads(browser_page, site, paper):
    browser_page.goto(f"file://{site}/papers/{paper}.html")
    assert browser_page.locator(".picture .missing").count() == 0
    pictures = browser_page.locator(".picture img")
    assert pictures.count() > 0
    broken = pictures.evaluate_all(
        "(images) => Promise.all(images.map(async (image) => {"
        "  image.loading = 'eager'; await image.decode().catch(() => {});"
        "  return image.naturalWidth > 0 && image.alt ? null : image.src; }))"
    )
    assert [source for source in broken if source] == []


def test_the_grooves_of_drum_gpt_can_be_played(browser_page, site):
    browser_page.goto(f"file://{site}/papers/drum-gpt.html")
    players = browser_page.locator("audio")
    assert players.count() > 0
    assert all(players.nth(index).get_attribute("aria-label") for index in range(players.count()))
    seconds = players.first.evaluate(
        "(audio) => new Promise((resolve, reject) => { audio.preload = 'metadata'; audio.onerror = reject;"
        "  audio.onloadedmetadata = () => resolve(audio.duration); audio.load(); })"
    )
    assert seconds > 1


def test_long_tables_begin_folded_and_open_for_a_match(browser_page, site):
    browser_page.goto(f"file://{site}/papers/cmt.html")
    folded = browser_page.locator("#reported details.fold:not([open])")
    before = folded.count()
    assert before > 0
    browser_page.get_by_label("Filter reported numbers").fill("TransFusion")
    expect(browser_page.locator("#reported tbody tr:visible").first).to_be_visible()
    browser_page.get_by_label("Filter reported numbers").fill("")
    expect(folded).to_have_count(before)


def test_navigation_leads_from_the_overview_to_a_paper_and_to_its_comparison(browser_page, site):
    browser_page.goto(f"file://{site}/index.html")
    browser_page.get_by_role("link", name="EMO", exact=True).click()
    expect(browser_page.locator("h1")).to_contain_text("Rethinking Mobile Block")
    browser_page.get_by_role("link", name="Compare runs").click()
    assert browser_page.get_by_label("Paper").input_value() == "emo"
    browser_page.get_by_role("link", name="Speed").click()
    expect(browser_page.locator("h1")).to_have_text("Speed")
