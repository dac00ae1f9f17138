"""The pages of one and of two watched runs in a real browser: both widths, both themes, under hostile words."""

from __future__ import annotations

import json
from contextlib import closing
from pathlib import Path

import pytest
import torch

from nonsmooth.torch.comparison import write_comparison
from nonsmooth.torch.run_report import render_run, write_run_report
from test_report_browser import Visit, browser  # noqa: F401 (a fixture)
from test_run_report import FINDINGS, hostile_run, watch


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """Folders with a report.html each: a run by SGD, one by Adam with many layers, both, and hostile words."""
    root = tmp_path_factory.mktemp("runs")
    sgd = watch(
        root / "sgd",
        lr=0.3,
        steps=60,
        missing=[{"what": "the loader", "why": "there is none", "line": "watch(loader)"}],
    )
    adam = watch(root / "adam", lr=0.02, rule=torch.optim.Adam, depth=8, steps=30)
    with (adam / "rows.jsonl").open("a") as rows:
        for t in range(10, 31, 10):
            more = {"window": 10, "weights": 50, "chattering": 60 - t // 3, "amplitude": 1 / t, "norm": 30 / t}
            rows.write(json.dumps({"step": t, "kind": "chatter", **more}) + "\n")
    for name in ("both", "hostile", "empty"):
        (root / name).mkdir()
    for folder in (sgd, adam):
        write_run_report(folder, folder / "report.html")
    write_comparison(sgd, adam, root / "both" / "report.html")
    (root / "hostile" / "report.html").write_text(render_run(*hostile_run()), encoding="utf-8")
    (root / "empty" / "report.html").write_text(render_run({}, []), encoding="utf-8")
    return root


@pytest.mark.parametrize(
    ("name", "figures", "width", "scheme"),
    [
        ("sgd", 5, 390, "light"),
        ("sgd", 5, 1440, "dark"),
        ("adam", 11, 390, "dark"),
        ("adam", 11, 1440, "light"),
        ("both", 7, 390, "light"),
        ("both", 7, 1440, "dark"),
        ("hostile", 6, 390, "light"),
        ("empty", 0, 1440, "dark"),
    ],
)
def test_opens_in_chromium(browser, pages, name, figures, width, scheme):  # noqa: F811
    from axe_playwright_python.sync_playwright import Axe

    with closing(Visit(browser, pages / name, width, scheme)) as visit:
        page = visit.page
        assert page.locator(".plot").count() == figures
        visit.scroll_through()
        layers = page.locator(".plot").evaluate_all(
            "all => all.map(e => e.querySelectorAll('.main-svg .trace, .main-svg .hm image').length)"
        )
        assert all(layers)
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        page.locator("summary").evaluate_all("all => all.forEach(e => { e.parentElement.open = true; })")
        found = Axe().run(page, options={"resultTypes": ["violations"]}).response["violations"]
        serious = [v for v in found if v["impact"] in ("serious", "critical")]
        assert not [(v["id"], [node["html"][:200] for node in v["nodes"]]) for v in serious]
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert page.evaluate("window.pwned") is None
        assert not visit.complaints
        assert visit.asked == [(pages / name / "report.html").as_uri()]


def test_code_is_copied_whole_and_the_keyboard_reaches_it(browser, pages):  # noqa: F811
    with closing(Visit(browser, pages / "sgd")) as visit:
        page = visit.page
        visit.context.grant_permissions(["clipboard-read", "clipboard-write"])
        button = page.locator("#finding-2 .copy")
        button.focus()
        page.keyboard.press("Enter")
        visit.wait("document.getElementById('told').textContent === 'Copied'")
        assert page.evaluate("navigator.clipboard.readText()") == FINDINGS[1]["lines"]
        page.locator('.contents a[href="#kink-share"]').click()
        visit.wait("document.querySelector('.contents [aria-current]')?.hash === '#kink-share'")
        assert not visit.complaints


def test_layers_have_their_names_on_the_axis_under_the_pointer_and_in_the_file(browser, pages):  # noqa: F811
    with closing(Visit(browser, pages / "adam")) as visit:
        page = visit.page
        figure = page.locator("#kink-share figure.panel").nth(1)
        figure.scroll_into_view_if_needed()
        visit.wait("document.querySelector('#kink-share .hm image') !== null")
        names = [str(k) for k in range(0, 17, 2)]
        assert figure.locator(".ytick text").all_text_contents() == names[::-1]
        assert figure.locator(".axis-title.y").inner_text() == "↓ layer"
        top = figure.locator(".ytick").last.bounding_box()["y"]
        assert top < figure.locator(".ytick").first.bounding_box()["y"]  # the first layer stands above the last
        figure.locator(".plot").scroll_into_view_if_needed()
        box = figure.locator(".plot .hm image").bounding_box()
        page.mouse.move(box["x"] + 5, box["y"] + 5)
        visit.wait("document.querySelector('#kink-share .hoverlayer .hovertext') !== null")
        assert "layer: 0" in figure.locator(".hoverlayer").text_content()
        with page.expect_download() as saved:
            figure.get_by_role("button", name="CSV").click()
        rows = Path(saved.value.path()).read_text(encoding="utf-8").splitlines()
        assert [row.partition(",")[0] for row in rows[1:]] == names[::-1]
        assert not visit.complaints


def test_hostile_layers_do_nothing_under_the_pointer(browser, pages):  # noqa: F811
    with closing(Visit(browser, pages / "hostile")) as visit:
        page = visit.page
        page.locator("#kink-share .plot").last.scroll_into_view_if_needed()
        visit.wait("document.querySelector('#kink-share .hm image') !== null")
        box = page.locator("#kink-share .plot .hm image").bounding_box()
        page.mouse.move(box["x"] + 5, box["y"] + 5)
        visit.wait("document.querySelector('#kink-share .hoverlayer .hovertext') !== null")
        assert "</script><img src=x" in page.locator("#kink-share .hoverlayer").last.text_content()
        assert page.locator("svg a, figure a, figure img").count() == 0
        assert page.evaluate("window.pwned") is None
