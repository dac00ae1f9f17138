"""The page: what it says and what it refuses. How it behaves in a browser: test_report_browser.py."""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from markupsafe import escape

from nonsmooth.claims.texts import TEXTS, Text
from nonsmooth.ledger import (
    ABSTRACT,
    SUBJECTS,
    Claim,
    Evidence,
    at_least,
    at_most,
    equals,
    read_rows,
    sentence_verdict,
    subject,
    write_rows,
)
from nonsmooth.plots import Axis, Heat, Line, Plot, Table
from nonsmooth.report import render, write_report
from nonsmooth.report.cases import relation_of, table

HOSTILE = (
    "</script><img src=x onerror=\"window.pwned=1\"><svg onload='window.pwned=1'>"
    '<a href="javascript:window.pwned=1">%{x}&amp;\u2028'
)
LONG = "a very long condition that goes on over many words to see how the page wraps it on a narrow screen, " * 4


def noisy(mean, n=20, spread=0.01):
    mean = np.asarray(mean, dtype=float)
    return mean[:, None] * (1 + spread * np.random.default_rng(0).standard_normal((len(mean), n)))


def floor(factor: float = 1.0, lams: tuple = (3.0, 10.0, 30.0, 100.0)) -> Evidence:
    x, eta, steps = np.geomspace(0.3, 100, 16), np.geomspace(1e-4, 0.2, 9), np.arange(1, 61)
    step, lam, norm = (Axis(title, log=True) for title in ("step size η", "λ over the critical λ", "‖w‖₁ over ηλP/2"))
    measured = Line("measured, mean over problems", x, 1 + 3 / x**2, "markers", error=0.3 / x)
    bounce = np.where(steps < 4, 1 - 0.3 * steps, 0.1 * (1.5 + 0.5 * (-1.0) ** steps))
    runs = [Line("|x|, η = 0.3", steps, bounce), Line("Huber, η = 0.3", steps, 0.5 * 0.7**steps, "dash")]
    turn = Line("predicted turn: beyond it a larger λ raises the norm", eta, 3 * (1e-3 / eta) ** 0.4)
    z = [[None if e * k > 12 else np.log10(e * k + 0.02 / k) for e in eta] for k in x[::2]]
    plots = [
        Plot(lam, norm, [measured, Line("the law", x, x**0, "dash")], title="At ηL = 0.05", says="Then the law."),
        Plot(Axis("step"), Axis("f(x)"), runs, title="On |x| and on Huber", says="On |x| it bounces; on Huber not."),
        *(
            Plot(step, lam, [turn], Heat("log₁₀ ‖w‖₁", eta, x[::2], z), name, "Above it grows.")
            for name in ("SGD", "Adam")
        ),
    ]
    holds = "λ ≥ 3.1 critical λ (fails at 2.09 critical λ) at ηL = 0.05; ηL ≤ 0.2 (fails at 3e-05)"
    cases = [f"λ = {m:g} critical λ" for m in lams]
    return Evidence("tail mean ‖w‖₁ over ηλP/2", noisy(factor * np.ones(len(lams))), 1.0, cases, holds, plots)


def rates(power: float = 0.5) -> Evidence:
    n = np.array([1, 3, 10, 30, 100, 300])
    lines = [
        Line("measured on the hard instance", n, 1 / (n + 1) ** power, "markers"),
        Line("MR/√(N+1)", n, 1 / np.sqrt(n + 1), "dash"),
        Line("smooth GD's worst case, LR²/(4N+2)", n, 1 / (4 * n + 2)),
    ]
    plot = Plot(Axis("number of steps N", log=True), Axis("best gap, M = R = 1", log=True), lines, says="Attained.")
    cases = [f"N = {k}" for k in n]
    gaps = [["the hard instance, whose maximum takes the first of the winners", int(k), 1 / (k + 1) ** 0.5] for k in n]
    table = Table(["instance", "N", "gap"], [*gaps, ["=1+1", 3, float("nan")]], "The gaps", "Not all are numbers.")
    shown: list = [table, plot]
    return Evidence("best gap", 1 / (n + 1) ** power, 1 / np.sqrt(n + 1), cases, "every N tried, 1 to 300", shown)


def methods(scale: float = 1.0) -> Evidence:
    lam, lines = np.geomspace(1e-7, 1e3, 21), []
    for i, name in enumerate(("SGD", "RMSProp", "Adam")):
        lines.append(Line(f"{name}, measured", lam, 1e-5 * lam ** (0.3 * i), "markers"))
        lines.append(Line(f"{name}, predicted", lam, 1.02e-5 * lam ** (0.3 * i), "dash"))
    plot = Plot(Axis("λ", log=True), Axis("final ‖w‖₁", log=True), lines, says="Three rules, three slopes.")
    measured = noisy([2e-5 * scale, 3.1e-4 * scale])
    return Evidence("final ‖w‖₁", measured, [2e-5, 3e-4], ["λ = 1e-05", "λ = 0.001"], "", [plot])


def undecided() -> Evidence:
    lam = np.linspace(0, 5, 40)
    band = [Line("mean of the runs", lam, np.sin(lam), error=0.2 + 0 * lam)]
    plot = Plot(Axis("time"), Axis("share"), band, says="The shade is the interval.")
    return Evidence("share of runs", noisy([0.98, 1.03], n=4, spread=0.05), 1.0, ["small", "large"], LONG, [plot])


def hostile(low: float = 0.0) -> Evidence:
    lines = [
        Line(HOSTILE, [0.0, 1.0, 2.0], [0.0, 1.0, float("nan")], "markers"),
        Line("$x$ <b>not bold</b>", [0.0, 1.0], [1.0, 2.0]),
    ]
    plot = Plot(Axis(HOSTILE), Axis(HOSTILE, log=True), lines, title=HOSTILE, says=HOSTILE)
    shown: list = [Table([HOSTILE, "n"], [[HOSTILE, 1.0], ["$x$ <b>not bold</b>", HOSTILE]], HOSTILE, HOSTILE), plot]
    return Evidence(HOSTILE, [low, 2.0], [0.0, 0.0], [HOSTILE, "plain"], HOSTILE, shown)


SAYINGS = (
    Text("Alpha 2001, On floors", "section 1", "Floors grow.", "agree", ("l1/sgd-floor", "l1/not-there"), "They do."),
    Text("Beta 2002, On norms", "section 2", "They are alike.", "disagree", ("rmsprop/refuted",), "They are not."),
    Text(HOSTILE, HOSTILE, HOSTILE, "in part", ("convergence/worst-case", f"zoo/{HOSTILE}"), HOSTILE),
    Text("Gamma 2003, On nothing", "section 4", "Nothing.", "agree", ("l1/not-there",), "Nothing was run."),
    Text("Delta 2004, On decay", "section 5", "Floors fall.", "disagree", ("l1/sgd-floor",), "They do not."),
)
"""All judgements, a claim that is not there, one that is refuted, hostile words."""


def rows_and_figures():
    """Every verdict, every kind of figure, a blunt mutant, hostile and long words."""
    grows = "Well beyond the critical λ, where the solution is 0, SGD settles at ηλP/2: a larger λ, a larger norm."
    away, twice, faster = {HOSTILE: {"low": -9.0}}, {"twice it": {"scale": 2.0}}, {"a faster rate": {"power": 1.0}}
    prox, blunt = {"the proximal map in autograd's place": {"factor": 0.1}}, {"one per cent off": {"scale": 1.01}}
    claims = [
        ("l1/sgd-floor", grows, 2, equals(0.05), floor, prox),
        ("convergence/worst-case", "The best gap is exactly MR/√(N+1).", 1, equals(0.01), rates, faster),
        ("rmsprop/three-floors", "SGD, RMSProp and Adam differ.", 3, equals(0.1), methods, blunt, {}, "limits"),
        ("rmsprop/refuted", "RMSProp and SGD reach the same norm.", 3, at_most(), methods, twice),
        ("edge/undecided", "The share of runs is one. " + LONG, 4, equals(0.02), undecided, {}),
        ("networks/floor", "The floor of a trained network is ηλP/2.", 1, equals(0.05), floor, prox, {}, "limits"),
        (f"zoo/{HOSTILE}", f"Hostile {HOSTILE}", 4, at_least(0.5, absolute=True), hostile, away),
    ]
    rows, figures = [], {}
    for id, says, sentence, *rest in claims:
        row, evidence = Claim(id, says, f"our statement of {sentence}", sentence, *rest).run()
        rows.append(row)
        figures[id] = [plot.to_dict() for plot in evidence.plots]
    return rows, figures


def save(folder: Path, rows, figures):
    (folder / "figures").mkdir(exist_ok=True)
    write_rows(folder / "verdicts.jsonl", rows)
    for claim, plots in figures.items():
        (folder / "figures" / f"{claim.replace('/', '--')}.json").write_text(json.dumps(plots), encoding="utf-8")


@pytest.fixture(scope="module")
def ledger():
    return rows_and_figures()


@pytest.fixture(scope="module")
def page_text(ledger):
    return render(*ledger, SAYINGS)


class Seen(HTMLParser):
    """Tags with their attributes."""

    def __init__(self, html):
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))


def test_the_page_shows_each_row(ledger, page_text):
    for row in ledger[0]:
        assert all(escape(row[field]) in page_text for field in ("says", "command", "source"))
    themes = re.findall(r'<h2 id="theme-\d">(.*?)</h2>', page_text)
    assert themes == ["Convergence", "L1 penalties", "RMSProp", "The edge of stability", "Networks", "Zoo"]
    assert "the proximal map in autograd&#39;s place</strong>: refuted, as it must be." in page_text
    assert "one per cent off</strong>: supported. It should be refuted" in page_text
    assert "Weak tests." in page_text
    assert "ηL ≤\u00a00.2 (fails at 3\u00a0×\u00a010⁻⁵)" in page_text
    assert "e-05" not in re.sub(r"<script.*?</script>", "", page_text, flags=re.S)


def test_the_abstract_at_a_glance(ledger, page_text):
    glance = page_text[page_text.index('id="abstract"') : page_text.index('id="filter"')]
    for number, said in ABSTRACT.items():
        part = glance[glance.index(f'id="sentence-{number}"') :].partition("</li>\n    <li")[0]
        assert escape(said) in part
        columns = part.split('<div class="subject ')[1:]
        for of, column in zip(SUBJECTS, columns, strict=True):
            mine = [row for row in ledger[0] if subject(row["claim"]) == of]
            assert f'data-subject="{of}"' in column and "#icon-" in column
            assert sentence_verdict(mine, number) in column
            assert ("networks/floor" in column) == (of == "networks" and number == 1)
    assert "not tested yet" in glance
    third = glance[glance.index('id="sentence-3"') :]
    limits = third[third.index("1 claim limits it") :]
    assert "rmsprop/three-floors" in limits.partition("</ul>")[0]
    counts = re.sub(r"<[^>]*>|\s+", " ", third)
    assert re.search(r" 1 claim speaks for it +1 refuted .* 1 claim limits it +1 supported ", counts)


def parts_of_texts(page_text):
    found = page_text[page_text.index('id="texts"') :].partition("</section>")[0]
    return [" ".join(re.sub(r"<[^>]*>", " ", part).split()) for part in found.split('<li class="text-entry">')[1:]]


def test_what_the_literature_says_with_sign_word_and_claims(page_text):
    alpha, beta, strange, gamma, delta = parts_of_texts(page_text)
    assert alpha.startswith("Alpha 2001, On floors, section 1 the claims agree It says: Floors grow. They do.")
    assert "l1/sgd-floor , supported" in alpha and alpha.endswith("l1/not-there not run")
    assert beta.startswith("Beta 2002, On norms, section 2 left open by this run It says:")
    assert "1 of these claims was not supported in this run. If all were, our reading would be that the claims" in beta
    assert "the claims agree in part" in strange and "zoo/&lt;/script&gt;" in strange
    assert "not tested in this run" in gamma and "agree" not in gamma
    assert "the claims disagree" in delta and "not supported" not in delta
    section = page_text[page_text.index('id="texts"') :].partition("</section>")[0]
    signs = re.findall(r'<span class="badge (\w+)"><svg[^>]*><use href="#icon-(\w+)"', section)
    assert signs == [(look, look) for look in ("supported", "undecided", "mixed", "untested", "refuted")]


def test_every_link_of_the_page_has_its_place(page_text):
    seen = Seen(page_text)
    places = [attrs["id"] for _, attrs in seen.tags if "id" in attrs]
    assert len(places) == len(set(places))
    assert {a["href"][1:] for _, a in seen.tags if a.get("href", "").startswith("#")} <= set(places)
    assert page_text.count('href="#texts"') == 2  # from sentence 5 and from the contents


def test_the_section_on_texts_needs_one_claim_of_theirs(ledger, page_text):
    rows, figures = ledger
    others = [row for row in rows if row["claim"].startswith("edge/")]
    for page in (render(rows, figures), render(others, figures, SAYINGS), render([], {}, TEXTS)):
        assert 'href="#texts"' not in page and 'id="texts"' not in page


def test_a_table_is_a_table_with_its_numbers_to_four_digits(ledger, page_text):
    found = page_text[page_text.index('<figure class="tabled">') :].partition("</figure>")[0]
    assert (
        '<th scope="col">instance</th><th scope="col" class="num">N</th><th scope="col" class="num">gap</th>' in found
    )
    assert "0.7071" in found and "not finite" in found
    assert found.count("<tr>") == 1 + 7
    assert render(ledger[0], {"convergence/worst-case": []}).count("<figure") == 0


def test_rows_of_a_table_fit_its_columns():
    with pytest.raises(ValueError, match=r"Table: row 2 has 1 cells for 2 columns\."):
        Table(["a", "b"], [["x", 1], ["y"]])
    stored = Table(["a"], [[np.float64(1.5)], [np.inf]]).to_dict()
    assert (stored["kind"], stored["rows"]) == ("table", [[1.5], [None]])


def test_figures_written_earlier_are_drawn_still(ledger, page_text):
    """A `Plot`'s dict has no `kind`, and the first tables had none."""
    rows, figures = ledger
    earlier = {
        name: [{k: v for k, v in plot.items() if k != "kind"} for plot in mine] for name, mine in figures.items()
    }
    assert render(rows, earlier, SAYINGS) == page_text
    assert all(set(plot) == {"x", "y", "lines", "heat", "title", "says"} for plot in figures["l1/sgd-floor"])


def test_same_rows_same_page_and_order_of_rows_does_not_matter_between_themes(ledger, page_text):
    rows, figures = ledger
    assert render(rows, figures, SAYINGS) == page_text
    assert render(sorted(rows, key=lambda row: row["claim"][0] == "c"), figures, SAYINGS) == page_text


def test_a_claim_without_a_stored_figure_says_so(ledger):
    row = ledger[0][0]
    assert render([row], {}).count("No figure is stored") == 1
    assert "No figure is stored" not in render([row], {row["claim"]: []})


def test_nothing_is_loaded_and_nothing_hostile_is_markup(ledger, page_text):
    seen = Seen(page_text)
    assert not [tag for tag, _ in seen.tags if tag in ("img", "iframe", "object", "embed", "base")]
    assert not [attr for _, attrs in seen.tags for attr in attrs if attr.startswith("on") or attr == "src"]
    links = [attrs["href"] for _, attrs in seen.tags if "href" in attrs]
    assert all(link.startswith("#") or link == "data:," for link in links)
    kinds = [attrs.get("type") for tag, attrs in seen.tags if tag == "script"]
    assert kinds == ["application/json", "application/json", "text/plain", None]
    plots, tables, plotly, script = re.findall(r"<script[^>]*>(.*?)</script>", page_text, flags=re.S)
    assert not set("<>&\u2028") & set(plots + tables)
    drawn = json.loads(plots)
    assert [plot["title"] for plot in drawn][-1] == HOSTILE
    assert len(drawn) + len(json.loads(tables)) == sum(map(len, ledger[1].values()))
    assert json.loads(tables)[-1]["rows"][0] == [HOSTILE, 1.0]
    assert b"plotly.js" in gzip.decompress(base64.b64decode(plotly))[:40]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in page_text


@pytest.mark.parametrize(
    "relation",
    [equals(0.05), equals(0.01, absolute=True), at_most(), at_most(0.2), at_least(1), at_least(strict=True)],
)
def test_the_margins_are_the_ledgers(relation):
    evidence = Evidence("x", noisy([1.0, 0.0, -2.0, 5e4]), [1.01, 0.0, -2.1, 3e4], list("abcd"))
    row, _ = Claim("a/b", "", "", 1, relation, lambda: evidence, {}).run()
    assert relation_of(row) == relation
    cases, scale = table(row)
    lows = [low for low, _ in evidence.margins(relation)]
    assert [case.holds for case in cases] == [relation.holds(low) for low in lows]
    assert scale is not None
    assert scale.low <= 0 <= scale.high
    for case, low in zip(cases, lows, strict=True):
        shown = float(case.margin.replace("−", "-").replace("\u00a0", "").rstrip("%").replace("×10⁴", "e4"))
        assert shown / (100 if "%" in case.margin else 1) == pytest.approx(low, rel=5e-3)


def test_a_relation_in_other_words_leaves_the_margin_out(ledger):
    row = ledger[0][0] | {"relation": "looks like the prediction"}
    assert {case.margin for case in table(row)[0]} == {"—"}
    assert relation_of(ledger[0][0] | {"slack": 0.7}) is None
    assert "looks like the prediction" in render([row], {})


def test_numbers_that_are_not_finite_are_said(ledger):
    first = table(ledger[0][0] | {"measured": [None, 1.0, 1.0, 1.0], "slack": None})[0][0]
    assert (first.measured, first.margin, first.strip) == ("not finite", "—", None)


def damaged(field, *value):
    def damage(folder):
        first, *others = read_rows(folder / "verdicts.jsonl")
        del first[field]
        write_rows(folder / "verdicts.jsonl", [first | dict(zip([field], value)), *others])

    return damage


def figure(text):
    return lambda folder: (folder / "figures" / "l1--sgd-floor.json").write_bytes(text)


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda folder: (folder / "verdicts.jsonl").unlink(), "there is no such file"),
        (lambda folder: (folder / "verdicts.jsonl").write_text("{"), "line 1 is not JSON"),
        (lambda folder: (folder / "verdicts.jsonl").write_bytes(b"\xff\n"), "line 1 is not JSON"),
        (damaged("says"), "has no 'says'"),
        (damaged("source", 7), "wrong kind (int)"),
        (damaged("seeds", True), "wrong kind (bool)"),
        (damaged("verdict", "proved"), "verdict 'proved', which is none of supported, refuted, undecided"),
        (damaged("sentence", 9), "speaks of sentence 9"),
        (damaged("bears", "against"), "neither 'for' nor 'limits'"),
        (damaged("noise", [0.1]), "of different lengths"),
        (damaged("measured", ["x", 1, 1, 1]), "neither a finite number nor null"),
        (damaged("cases", [1, 2, 3, 4]), "a case that is not text"),
        (damaged("mutants", [{}]), "a mutant without"),
        (damaged("versions", {"numpy": 2}), "a version that is not text"),
        (damaged("claim", "rmsprop/refuted"), "stands there twice"),
        (figure(b"[{"), "is not a file of figures"),
        (figure(b"\xff"), "is not a file of figures"),
        (figure(b"{}"), "is not a list of figures"),
        (figure(b"[1]"), "figure 1 is not one of nonsmooth.plots.Plot (not an object)"),
        (figure(b'[{"x": 1}]'), "'x' of the wrong kind"),
        (figure(b'[{"columns": 1}]'), "figure 1 is not one of nonsmooth.plots.Table ('columns' of the wrong kind)"),
    ],
)
def test_a_broken_file_is_one_sentence_and_the_earlier_report_stays(damage, says, ledger, tmp_path):
    save(tmp_path, *ledger)
    (tmp_path / "report.html").write_text("earlier")
    damage(tmp_path)
    with pytest.raises(ValueError, match=re.escape(says)) as error:
        write_report(tmp_path)
    assert "\n" not in str(error.value)
    assert (tmp_path / "report.html").read_text() == "earlier"
    assert not list(tmp_path.glob(".report*"))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"x": {"title": "x"}}, "axis x without title and log"),
        ({"lines": [{"name": "a"}]}, "a line without name and style"),
        ({"lines": [{"name": "a", "style": "dash", "x": [1], "y": [1, 2]}]}, "line 'a' whose x, y and error"),
        ({"lines": [{"name": "a", "style": "dash", "x": [1], "y": [float("inf")]}]}, "line 'a' whose x, y and error"),
        ({"heat": {"title": "z"}}, "a heat map without title"),
        ({"heat": {"title": "z", "x": [1], "y": [1], "z": [[1, 2]]}}, "z does not fit"),
    ],
)
def test_a_broken_figure_is_one_sentence(change, says):
    with pytest.raises(ValueError, match=re.escape(says)):
        render([], {"a/b": [Plot(Axis("x"), Axis("y")).to_dict() | change]})


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"columns": []}, "columns that are not titles"),
        ({"columns": ["a", 1]}, "columns that are not titles"),
        ({"rows": [["x", 1.0], ["y"]]}, "row 2 does not fit the columns"),
        ({"rows": ["xy"]}, "row 1 does not fit the columns"),
        ({"rows": [["x", True]]}, "row 1 has a cell that is neither text nor a number"),
        ({"rows": [["x", float("inf")]]}, "row 1 has a cell that is neither text nor a number"),
        ({"says": None}, "'says' of the wrong kind"),
    ],
)
def test_a_broken_table_is_one_sentence(change, says):
    with pytest.raises(ValueError, match=re.escape(f"nonsmooth.plots.Table ({says})")):
        render([], {"a/b": [Table(["a", "b"], [["x", 1.0]]).to_dict() | change]})


def test_a_report_that_cannot_be_written_is_one_sentence(ledger, tmp_path):
    save(tmp_path, *ledger)
    (tmp_path / "report.html").mkdir()
    with pytest.raises(ValueError, match=r"report\.html: cannot be written"):
        write_report(tmp_path)
    assert not list(tmp_path.glob(".report*"))
