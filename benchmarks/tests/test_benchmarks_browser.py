"""The site in a real browser, opened as files: the system's Chromium through Playwright."""

import threading

import pytest
from playwright.sync_api import expect

from tenfold.benchmarks.server import open_server

PAGES = ["index.html", "papers/gfkd.html", "papers/coca.html", "compare.html", "speed.html"]


def column(page, table, index):
    return page.locator(f"{table} tbody tr:visible > *:nth-child({index})").all_inner_texts()


@pytest.mark.parametrize("name", PAGES)
def test_a_page_loads_without_complaint_and_never_scrolls_sideways_on_a_phone(
    browser_page, sample_site, name
):
    browser_page.set_viewport_size({"width": 390, "height": 844})
    browser_page.goto(f"file://{sample_site}/{name}")
    browser_page.evaluate(
        "document.querySelectorAll('details').forEach((details) => { details.open = true; })"
    )
    expect(browser_page.locator("h1")).to_be_visible()
    assert browser_page.evaluate("document.documentElement.scrollWidth") == 390


def test_the_site_also_loads_without_complaint_from_the_server(browser_page, sample_site):
    with open_server(sample_site, 0) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        for name in PAGES:
            browser_page.goto(f"http://127.0.0.1:{server.server_port}/{name}", wait_until="networkidle")
        server.shutdown()


@pytest.mark.parametrize("name", ["index.html", "compare.html", "speed.html", "papers/coca.html"])
def test_the_empty_state_loads_without_complaint(browser_page, empty_site, name):
    browser_page.goto(f"file://{empty_site}/{name}")
    expect(browser_page.locator(".callout, [class~=chip]").first).to_be_visible()


def test_learning_curves_are_drawn_with_a_line_and_a_band_per_method(browser_page, sample_site):
    browser_page.goto(f"file://{sample_site}/papers/gfkd.html")
    plot = browser_page.locator(".plot").first
    plot.scroll_into_view_if_needed()
    expect(plot.locator(".legendtext")).to_have_text(["GFKD", "RandG"])
    assert plot.evaluate("(element) => element.data.length") == 4


def test_the_curves_follow_the_colour_scheme(browser_page, sample_site):
    browser_page.emulate_media(color_scheme="light")
    browser_page.goto(f"file://{sample_site}/papers/gfkd.html")
    plot = browser_page.locator(".plot").first
    plot.scroll_into_view_if_needed()
    expect(plot.locator(".legendtext").first).to_be_visible()
    line = "(element) => element.data.at(-1).line.color"
    light = plot.evaluate(line)
    browser_page.emulate_media(color_scheme="dark")
    browser_page.wait_for_function(
        "(old) => document.querySelector('.plot').data.at(-1).line.color !== old", arg=light
    )


def test_pictures_have_alternative_texts_and_lost_ones_are_noted(browser_page, sample_site):
    browser_page.goto(f"file://{sample_site}/papers/gfkd.html")
    expect(browser_page.locator(".picture img")).to_have_count(2)
    assert browser_page.locator(".picture img").first.get_attribute("alt") == "Generated graphs"
    expect(browser_page.get_by_text("figures/graphs.png is missing")).to_be_visible()


def test_a_click_on_a_header_sorts_numbers_as_numbers_both_ways(browser_page, sample_site):
    browser_page.goto(f"file://{sample_site}/papers/gfkd.html")
    table = "#measured table >> nth=0"
    header = browser_page.locator(f"{table} >> th >> nth=4")
    header.get_by_role("button").click()
    assert header.get_attribute("aria-sort") == "ascending"
    methods = browser_page.locator(table).locator("tbody tr td:nth-child(3)")
    assert methods.all_inner_texts() == ["RandG", "GFKD"]
    header.get_by_role("button").click()
    assert header.get_attribute("aria-sort") == "descending"
    assert methods.all_inner_texts() == ["GFKD", "RandG"]


def test_the_keyboard_reaches_the_skip_link_and_the_sort_buttons(browser_page, sample_site):
    browser_page.goto(f"file://{sample_site}/index.html")
    browser_page.keyboard.press("Tab")
    assert browser_page.evaluate("document.activeElement.textContent") == "Skip to content"
    for _ in range(30):
        browser_page.keyboard.press("Tab")
        if browser_page.evaluate("document.activeElement.matches('th button')"):
            break
    browser_page.keyboard.press("Enter")
    header = browser_page.locator(".overview thead th").first
    assert header.get_attribute("aria-sort") == "ascending"
    assert browser_page.locator(".overview .paper-link").all_inner_texts() == ["COCA", "GFKD"]
    browser_page.keyboard.press("Space")
    assert header.get_attribute("aria-sort") == "descending"
    assert browser_page.locator(".overview .paper-link").all_inner_texts() == ["GFKD", "COCA"]


def test_the_filter_keeps_matching_rows_and_says_how_many(browser_page, sample_site):
    browser_page.goto(f"file://{sample_site}/index.html")
    browser_page.get_by_label("Filter papers").fill("gf")
    expect(browser_page.locator(".overview tbody tr:visible")).to_have_count(1)
    expect(browser_page.locator(".filter output")).to_have_text("1 of 2 rows")
    browser_page.get_by_label("Filter papers").fill("")
    expect(browser_page.locator(".overview tbody tr:visible")).to_have_count(2)


def test_the_filter_of_a_section_hides_tables_without_a_match(browser_page, sample_site):
    browser_page.goto(f"file://{sample_site}/papers/gfkd.html")
    browser_page.get_by_label("Filter measured results").fill("KD MUTAG-quick")
    expect(browser_page.locator("#measured table:visible")).to_have_count(1)


def test_compare_diffs_the_configuration_and_overlays_the_curves(browser_page, sample_site):
    browser_page.goto(f"file://{sample_site}/papers/gfkd.html")
    browser_page.get_by_role("link", name="Compare runs").click()
    expect(browser_page.get_by_text("Choose two or more runs to compare.")).to_be_visible()
    browser_page.get_by_role("checkbox", name="gfkd-seed0").check()
    browser_page.get_by_role("checkbox", name="randg-seed0").check()
    assert browser_page.locator("#compare-config tbody tr").all_inner_texts() == ["optimiser.lr\t0.01\t0.02"]
    assert browser_page.locator("#compare-metrics tbody tr").all_inner_texts() == ["accuracy\t80\t60"]
    plot = browser_page.locator("#compare-curves .plot")
    plot.scroll_into_view_if_needed()
    expect(plot.locator(".legendtext")).to_have_count(2)
    browser_page.reload()
    expect(browser_page.get_by_role("checkbox", name="gfkd-seed0")).to_be_checked()
    browser_page.get_by_role("button", name="Clear").click()
    expect(browser_page.get_by_text("Choose two or more runs to compare.")).to_be_visible()


def test_hostile_names_run_no_script_in_the_compare_page_and_the_charts(browser_page, workspace):
    hostile = "<img src=x onerror=window.hacked=1><b>bold</b>"
    workspace.package()
    for seed in (0, 1):
        curves = {hostile: {"x": [1, 2], "y": [1, 2], "x_label": hostile}}
        config = {"__proto__": f"{hostile}{seed}"}
        workspace.run(seed=seed, method=hostile, dataset=hostile, curves=curves, config=config)
    site = workspace.build()
    browser_page.goto(f"file://{site}/papers/gfkd.html")
    browser_page.locator(".plot").scroll_into_view_if_needed()
    expect(browser_page.locator(".legendtext")).to_have_text(hostile)
    browser_page.goto(f"file://{site}/compare.html")
    browser_page.get_by_role("checkbox").nth(0).check()
    browser_page.get_by_role("checkbox").nth(1).check()
    expect(browser_page.locator("#compare-config tbody tr")).to_have_count(1)
    expect(browser_page.locator("#compare-config tbody td").first).to_have_text(f"{hostile}0")
    assert browser_page.evaluate("window.hacked") is None
