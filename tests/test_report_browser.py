"""The page in a real browser: drawn at both widths and in both themes, by keyboard, on paper, under hostile words."""

from __future__ import annotations

import os
import shutil
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from nonsmooth.plots import Axis, Line, Plot
from nonsmooth.report import render
from test_report import SAYINGS, rows_and_figures, save

QUIET = ["no-sandbox", "disable-gpu", "no-first-run", "disable-background-networking", "disable-component-update"]


@pytest.fixture(scope="module")
def ledger():
    return rows_and_figures()


@pytest.fixture(scope="module")
def out(ledger, tmp_path_factory):
    """The folder of a run, with its report."""
    folder = tmp_path_factory.mktemp("out")
    save(folder, *ledger)
    (folder / "report.html").write_text(render(*ledger, SAYINGS), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def browser():
    program = shutil.which("chromium")
    if program is None:
        missing = "no chromium on PATH: the page was not opened in a browser"
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(missing)
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        running = playwright.chromium.launch(
            executable_path=program, args=[f"--{flag}" for flag in [*QUIET, "disable-sync"]]
        )
        yield running
        running.close()


class Visit:
    """The report opened at a width in a theme; what the browser asked for and complained of."""

    def __init__(self, browser, out, width=1440, scheme="light"):
        phone = width < 500
        self.context = browser.new_context(
            viewport={"width": width, "height": 844}, color_scheme=scheme, is_mobile=phone, has_touch=phone
        )
        self.page = self.context.new_page()
        self.asked, self.complaints = [], []
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.goto((out / "report.html").as_uri())

    def close(self):
        self.context.close()

    def scroll_through(self):
        """Down the page as a reader goes, until every figure is drawn."""
        for number in range(self.page.locator(".plot").count()):
            plot = f"document.querySelectorAll('.plot')[{number}]"
            self.page.evaluate(f"{plot}.scrollIntoView({{behavior: 'instant'}})")
            self.wait(f"{plot}.querySelector('.main-svg') !== null")
        self.wait("document.documentElement.dataset.drawn === document.documentElement.dataset.figures")

    def wait(self, condition):
        """Until it is true; the page's policy forbids the polling that Playwright would put into it."""
        for _ in range(500):
            if self.page.evaluate(condition):
                return
            self.page.wait_for_timeout(20)
        raise AssertionError(f"never came true: {condition}")


@pytest.fixture(scope="module")
def visit(browser, out):
    """A visit for the tests that leave the page as they found it."""
    with closing(Visit(browser, out)) as visit:
        yield visit


@pytest.mark.parametrize("width", [390, 1440])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_opens_in_chromium(browser, out, ledger, width, scheme):
    from axe_playwright_python.sync_playwright import Axe

    with closing(Visit(browser, out, width, scheme)) as visit:
        page = visit.page
        visit.scroll_through()
        figures = [plot for row in ledger[0] for plot in ledger[1][row["claim"]]]
        plots = [plot for plot in figures if "lines" in plot]
        tables = [plot for plot in figures if "columns" in plot]
        shown = page.locator(".tabled table").evaluate_all(
            "all => all.map(e => [e.tHead, e.tBodies[0]].map(r => r.innerText))"
        )
        assert len(shown) == len(tables) == 2
        for (head, body), table in zip(shown, tables, strict=True):
            assert all(said in head for said in map(str.strip, table["columns"]))
            assert len(body.splitlines()) >= len(table["rows"])
        assert page.locator(".plot").count() == len(plots)
        layers = page.locator(".plot").evaluate_all(
            "all => all.map(e => e.querySelectorAll('.main-svg .trace, .main-svg .hm image').length)"
        )
        assert all(layers)
        assert sum(layers) >= sum(len(plot["lines"]) + (plot["heat"] is not None) for plot in plots)
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        page.locator("summary").evaluate_all("all => all.forEach(e => { e.parentElement.open = true; })")
        found = Axe().run(page, options={"resultTypes": ["violations"]}).response["violations"]
        serious = [v for v in found if v["impact"] in ("serious", "critical")]
        assert not [(v["id"], [node["html"][:200] for node in v["nodes"]]) for v in serious]
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert page.evaluate("window.pwned") is None
        assert not visit.complaints
        assert visit.asked == [(out / "report.html").as_uri()]


def test_printing_draws_everything_and_the_theme_follows_system_button_and_printer(browser, out):
    with closing(Visit(browser, out)) as visit:
        page = visit.page
        visit.wait("Boolean(window.Plotly)")
        assert page.evaluate("document.documentElement.dataset.drawn") == "0"
        page.evaluate("dispatchEvent(new Event('beforeprint'))")
        assert page.evaluate("document.documentElement.dataset.drawn") == str(page.locator(".plot").count())
        page.evaluate("dispatchEvent(new Event('afterprint'))")
        ink = "getComputedStyle(document.querySelector('.plot .xtick text')).fill"
        light = page.evaluate(ink)
        page.emulate_media(color_scheme="dark")
        visit.wait(f"{ink} !== '{light}'")
        dark = page.evaluate(ink)
        page.evaluate("dispatchEvent(new Event('beforeprint'))")
        assert page.evaluate(ink) == light
        page.evaluate("dispatchEvent(new Event('afterprint'))")
        assert page.evaluate(ink) == dark
        page.get_by_role("button", name="Light mode").click()
        assert page.evaluate(ink) == light
        page.get_by_role("button", name="Dark mode").click()
        assert page.evaluate(ink) == dark


def test_the_keyboard_reaches_filter_claims_and_legend(browser, out):
    with closing(Visit(browser, out)) as visit:
        page = visit.page
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.className") == "skip"
        page.keyboard.press("Enter")
        assert page.evaluate("document.activeElement.id") == "main"
        for _ in range(90):
            page.keyboard.press("Tab")
            if page.evaluate("document.activeElement.dataset.verdict") == "refuted":
                break
        assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") != "none"
        page.keyboard.press("Space")
        shown = page.locator("article.claim:visible")
        assert [a.get_attribute("data-verdict") for a in shown.all()] == ["refuted"]
        assert page.get_by_role("status").first.text_content() == "1 of 7 claims"
        page.keyboard.press("Tab")
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.id") == "search"
        page.keyboard.type("no such words")
        assert shown.count() == 0
        page.keyboard.press("Escape")
        assert shown.count() == 1
        for _ in range(30):
            page.keyboard.press("Tab")
            if page.evaluate("document.activeElement.closest('.keys') !== null"):
                break
        visit.wait("document.querySelector('article:not([hidden]) .plot .trace') !== null")
        traces = page.locator("article.claim:visible .plot .scatterlayer .trace")
        before = traces.count()
        page.keyboard.press("Enter")
        visit.wait("document.activeElement.ariaPressed === 'false'")
        assert traces.count() == before - 1


def test_hostile_words_do_nothing_under_the_pointer(visit):
    page = visit.page
    figure = page.locator("figure.panel").last
    figure.scroll_into_view_if_needed()
    figure.locator(".plot .point").first.hover(force=True)
    assert page.locator(".hoverlayer .hovertext").text_content().startswith("</script><img src=x")
    assert page.locator("svg a, figure a, figure img").count() == 0
    figure.locator("summary").click()
    assert figure.locator("table").text_content().count("onerror=") >= 2
    assert page.evaluate("window.pwned") is None


def test_a_link_brings_back_a_claim_that_was_filtered_out(visit):
    page = visit.page
    page.locator("#filter [data-verdict=undecided]").click()
    page.locator("#sentence-2 summary").click()
    page.locator("#sentence-2 a.chip").click()
    visit.wait("!document.getElementById('claim-l1--sgd-floor').hidden")
    assert page.locator("article.claim:visible").count() == 7


def test_downloads(visit):
    page = visit.page
    claim = page.locator("#claim-convergence--worst-case")
    with page.expect_download() as saved:
        claim.get_by_role("button", name="CSV of convergence--worst-case-1").click()
    assert saved.value.suggested_filename == "convergence--worst-case-1.csv"
    head, first, *_, last = Path(saved.value.path()).read_text(encoding="utf-8").splitlines()
    assert head == "instance,N,gap"
    assert first == '"the hard instance, whose maximum takes the first of the winners",1,0.7071067811865475'
    assert last == "'=1+1,3,nan"
    with page.expect_download() as saved:
        claim.get_by_role("button", name="CSV of convergence--worst-case-2").click()
    assert saved.value.suggested_filename == "convergence--worst-case-2.csv"
    head, first, *_ = Path(saved.value.path()).read_text(encoding="utf-8").splitlines()
    assert head.startswith("number of steps N,measured on the hard instance,MR/√(N+1),")
    assert first.startswith("1,0.70710678,")
    with page.expect_download() as saved:
        claim.get_by_role("button", name="SVG").click()
    drawing = Path(saved.value.path()).read_text(encoding="utf-8")
    assert drawing.startswith("<svg")
    assert "best gap, M = R = 1" in drawing
    assert not visit.complaints


def test_the_section_on_texts_is_reached_from_sentence_5_and_leads_to_the_claims(browser, out):
    with closing(Visit(browser, out)) as visit:
        page = visit.page
        page.locator("#sentence-5 .see a").focus()
        page.keyboard.press("Enter")
        assert page.evaluate("location.hash") == "#texts"
        visit.wait("document.querySelector('.contents [aria-current]')?.hash === '#texts'")
        assert int(page.evaluate("document.documentElement.dataset.drawn")) <= 2  # not what was passed on the way
        links = page.locator("#texts a.chip")
        assert links.count() == 5
        for link in links.all():
            link.focus()
            page.keyboard.press("Enter")
            found = page.evaluate(
                "document.getElementById(decodeURIComponent(location.hash.slice(1)))?.className ?? ''"
            )
            assert found.startswith("claim ")
        assert page.locator("#texts .chip:not(a)").all_inner_texts() == ["l1/not-there\nnot run"] * 2
        assert not visit.complaints


def test_the_claims_of_a_sentence_unfold_by_keyboard_and_on_paper(browser, out):
    with closing(Visit(browser, out, 390)) as visit:
        page = visit.page
        chip = page.locator("#sentence-2 a.chip")
        assert not chip.is_visible()
        page.locator("#sentence-2 summary").focus()
        page.keyboard.press("Enter")
        assert chip.is_visible()
        other = page.locator("#sentence-3 a.chip").first
        assert not other.is_visible()
        visit.wait("Boolean(window.Plotly)")
        page.evaluate("dispatchEvent(new Event('beforeprint'))")
        assert other.is_visible()


def test_a_long_table_scrolls_in_its_own_box(browser, out):
    with closing(Visit(browser, out, 390)) as visit:
        box = visit.page.locator(".tabled .scroll").first
        assert box.evaluate("e => e.scrollWidth > e.clientWidth")
        box.focus()
        visit.page.keyboard.press("ArrowRight")
        visit.wait("document.querySelector('.tabled .scroll').scrollLeft > 0")
        assert visit.page.evaluate("document.documentElement.scrollWidth") <= 390


def test_points_of_two_series_in_one_place_are_both_seen_and_no_two_of_nine_series_look_alike(browser, tmp_path):
    row = rows_and_figures()[0][0]
    names = [f"way {k}" for k in range(9)]
    lines = [Line(name, [1.0, 2.0], [1.0, float(k)], "markers") for k, name in enumerate(names)]
    plot = Plot(Axis("x"), Axis("y"), lines, says="All meet at 1.").to_dict()
    (tmp_path / "report.html").write_text(render([row], {row["claim"]: [plot]}), encoding="utf-8")
    with closing(Visit(browser, tmp_path)) as visit:
        visit.scroll_through()
        sizes = visit.page.evaluate("document.querySelector('.plot').data.map(t => t.marker.size)")
        met = [size[0] for size in sizes]
        assert met == sorted(met, reverse=True) and len(set(met)) == 9
        assert {size[1] for k, size in enumerate(sizes) if k != 1} == {8}
        looks = visit.page.evaluate("document.querySelector('.plot').data.map(t => t.marker.symbol + t.marker.color)")
        assert len(set(looks)) == 9
        keys = visit.page.locator(".keys button svg").evaluate_all("all => all.map(e => e.innerHTML)")
        assert len(set(keys)) == 9
        assert not visit.complaints


def test_a_series_that_another_covers_is_larger_all_along(browser, tmp_path):
    row, x = rows_and_figures()[0][0], np.geomspace(1e-4, 10, 24)
    pair = [Line("below", x, x, "markers"), Line("above", x, 1.01 * x, "markers")]
    plot = Plot(Axis("x", log=True), Axis("y", log=True), pair, says="They are alike.").to_dict()
    (tmp_path / "report.html").write_text(render([row], {row["claim"]: [plot]}), encoding="utf-8")
    with closing(Visit(browser, tmp_path)) as visit:
        visit.scroll_through()
        sizes = visit.page.evaluate("document.querySelector('.plot').data.map(t => t.marker.size)")
        assert [set(size) for size in sizes] == [{12}, {8}]
