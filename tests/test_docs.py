"""The pages: they show the source as it is, the verdicts of one run, and links that lead somewhere."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest

import nonsmooth.claims  # noqa: F401
from nonsmooth.claims.texts import TEXTS, Text
from nonsmooth.ledger import CLAIMS

ROOT = Path(__file__).parents[1]
PAGES = {str(path.relative_to(ROOT)): path for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))}


def script(name: str) -> ModuleType:
    """A script of the docs, as a module."""
    spec = importlib.util.spec_from_file_location(f"docs_{name}", ROOT / "docs" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


include, table = script("include"), script("table")


def text_of(page: str) -> str:
    return PAGES[page].read_text(encoding="utf-8")


# ── included source ─────────────────────────────────────────────────────────────────────────────────────────────────


def fresh(page: str) -> None:
    """What a page shows of the source is what stands there: `python docs/include.py` would change nothing."""
    assert include.included(page) == page


@pytest.mark.parametrize("page", PAGES)
def test_included_source_is_the_source(page):
    fresh(text_of(page))


ADD = [page for page in PAGES if "/add-a" in page]


@pytest.mark.parametrize("page", ADD)
def test_a_changed_block_is_rejected(page):
    """So is a block that has gone; each of them in turn."""
    text = text_of(page)
    blocks = [found[0] for found in include.BLOCK.finditer(text)]
    assert len(blocks) >= 3 and any("src/nonsmooth/" in block for block in blocks)
    for block in blocks:
        marker, code = block.split("\n", 1)
        for changed in (code.replace("(", "( ", 1), code.replace("\n```\n", "\n# more\n```\n"), ""):
            assert changed != code
            with pytest.raises(AssertionError):
                fresh(text.replace(block, f"{marker}\n{changed}"))


def test_there_is_a_page_for_each_part():
    assert set(ADD) == {f"docs/add-{part}.md" for part in ("a-claim", "a-penalty", "a-rule", "an-objective")}


SOURCE = '''import functools
a: int = 1
b = c = 2


@functools.cache
@other
def f():
    """Three."""
    return 3


ZOO: dict = {
    "one": 1,
    Two: (
        2,
        2,
    ),
}
'''


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("a", "a: int = 1"),
        ("f", '@functools.cache\n@other\ndef f():\n    """Three."""\n    return 3'),
        ("ZOO['one']", '"one": 1,'),
        ("ZOO[Two]", "Two: (\n    2,\n    2,\n),"),
    ],
)
def test_source_is_found_by_name(name, code):
    assert include.source_of(SOURCE, name) == code


@pytest.mark.parametrize("name", ["g", "ZOO['three']", "f['one']", "a['one']"])
def test_a_name_that_is_not_there_is_said(name, tmp_path):
    (tmp_path / "part.py").write_text(SOURCE, encoding="utf-8")
    with pytest.raises(
        LookupError, match=rf"^<!-- include: part\.py {re.escape(name)} -->: there is no {re.escape(name)}$"
    ):
        include.included(f"<!-- include: part.py {name} -->\n", tmp_path)


def test_a_file_that_is_not_there_is_said():
    with pytest.raises(LookupError, match=r"^<!-- include: src/none\.py a -->: .*No such file"):
        include.included("<!-- include: src/none.py a -->\n")


def test_a_marker_gets_its_block_once(tmp_path):
    (tmp_path / "part.py").write_text(SOURCE, encoding="utf-8")
    written = include.included("Before.\n\n<!-- include: part.py a -->\n\nAfter.\n", tmp_path)
    assert written == "Before.\n\n<!-- include: part.py a -->\n```py\na: int = 1\n```\n\nAfter.\n"
    assert include.included(written, tmp_path) == written


# ── verdicts ────────────────────────────────────────────────────────────────────────────────────────────────────────

VERDICTS = {
    "README.md": r"^\| `([a-z0-9/-]+)` \| (\w+) \|",
    "docs/claims.md": r"^### `([a-z0-9/-]+)`\n(?:.*\n)*?- Verdict: \*\*(\w+)\*\*",
    "docs/objections.md": r"^- \[`([a-z0-9/-]+)`\]\(claims\.md#[a-z0-9-]+\), \*\*(\w+)\*\*\.",
}


def verdicts(page: str) -> dict[str, str]:
    return dict(re.findall(VERDICTS[page], text_of(page), re.MULTILINE))


def test_every_claim_is_listed_with_the_verdict_of_one_run():
    """`test_claims.py` holds the README's verdicts to those that come out; the other pages must have the same."""
    shown = verdicts("README.md")
    assert list(shown) == sorted(CLAIMS, key=lambda name: CLAIMS[name].sentence)
    assert verdicts("docs/claims.md") == shown
    assert verdicts("docs/objections.md").items() <= shown.items()


def test_the_claims_page_has_the_ledgers_words():
    page = text_of("docs/claims.md")
    stale = [
        name
        for name, claim in CLAIMS.items()
        for words in (claim.says, claim.source, str(claim.relation), *claim.mutants)
        if table.escaped(words) not in page
    ]
    assert not stale, "run `nonsmooth reproduce` and `python docs/table.py`"
    rows = [{"claim": name, "verdict": verdict} for name, verdict in verdicts("docs/claims.md").items()]
    for text in TEXTS:
        assert table.literature([text], rows).splitlines()[-2] in page


def test_what_the_objections_page_concludes_rests_on_supported_claims():
    """Its conclusions are written by hand: where a verdict changes, they are to be read again."""
    shown = verdicts("docs/objections.md")
    assert len(shown) >= 20 and set(shown.values()) == {"supported"}
    assert text_of("docs/objections.md").count("\nOpen: ") == 4


ROW = {
    "claim": "l1/balance-law",
    "says": "|w*| < 1.",
    "source": "-",
    "sentence": 2,
    "bears": "for",
    "relation": "is at most the prediction",
    "what": "norm",
    "cases": ["a", "b"],
    "verdict": "undecided",
    "holds_when": "λ of " + "many kinds, " * 30,
    "mutants": [{"what": "SGD", "verdict": "refuted"}],
    "seeds": 3,
    "command": "nonsmooth reproduce",
}


def test_long_conditions_are_cut_and_linked():
    (line,) = [line for line in table.short_table([ROW]).splitlines() if "l1/" in line]
    assert line.startswith("| `l1/balance-law` | undecided | λ of many kinds,")
    assert line.endswith("many … [more](docs/claims.md#l1balance-law) |") or line.endswith(
        "kinds, … [more](docs/claims.md#l1balance-law) |"
    )
    assert len(line) < 260
    assert table.shortened("short") == "short"


def test_the_full_list_says_everything_of_a_claim():
    full = table.full_list([ROW])
    for part in (
        "### `l1/balance-law`\n\n\\|w\\*\\| &lt; 1.",
        "- Verdict: **undecided**\n",
        "- Tested: norm is at most the prediction (2 cases, 3 samples each)",
        "- Mutant: SGD (refuted)",
        "- Command: `nonsmooth reproduce`",
    ):
        assert part in full
    assert "it limits the sentence" in table.full_list([ROW | {"bears": "limits"}])
    assert "(2 cases, one number each)" in table.full_list([ROW | {"seeds": 1}])


def test_the_claims_stand_to_a_text_as_their_verdicts_say():
    """As in the report: what is typed is the reading where all of them are supported."""
    text = Text("Alpha 2001", "1", "It is so.", "agree", ("l1/balance-law", "l1/other"), "It is.")
    row = {"claim": "l1/balance-law", "verdict": "supported"}
    of = lambda *rows: table.literature([text], rows).splitlines()[-2].split(" | ")[3]  # noqa: E731
    assert of(row) == "agree" and of(row, {"claim": "l1/other", "verdict": "supported"}) == "agree"
    assert of(row, {"claim": "l1/other", "verdict": "undecided"}) == of(row | {"verdict": "refuted"}) == "open"
    assert of() == "not tested"


def test_an_objection_that_names_no_claim_is_said():
    page = "<!-- claims: l1/balance-law -->\nstale\n<!-- /claims -->\n"
    once = table.answered(page, [ROW])
    assert "stale" not in once and "**undecided**. \\|w\\*\\| &lt; 1.\n" in once
    assert table.answered(once, [ROW]) == once
    with pytest.raises(LookupError, match=r"^there is no row of l1/none; run the whole ledger, or mend the name$"):
        table.answered(page.replace("balance-law", "none"), [ROW])


# ── links ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def anchors(text: str) -> set[str]:
    """The ids that GitHub gives to headings."""
    return {
        re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
        for heading in re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    }


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    for path, place in re.findall(r"\]\(([^)#:]*)(?:#([^)]+))?\)", text_of(page)):
        target = (PAGES[page].parent / path).resolve() if path else PAGES[page]
        assert target.is_file(), path
        assert not place or place in anchors(target.read_text(encoding="utf-8")), place


def test_the_index_lists_every_page():
    index = text_of("docs/README.md")
    missing = [path.name for path in PAGES.values() if path.parent.name == "docs" and f"]({path.name})" not in index]
    assert missing == ["README.md"]


# ── the findings page ───────────────────────────────────────────────────────────────────────────────────────────────

findings = script("findings")


def network_row(name: str, verdict: str, **more: object) -> dict[str, object]:
    row = {"claim": f"networks/{name}", "verdict": verdict, "sentence": 4, "bears": "for", "says": f"It is {name}."}
    row |= {
        "what": "norm",
        "relation": "equals the prediction within 5 %",
        "seeds": 5,
        "cases": ["a|b"],
        "holds_when": "",
    }
    row |= {"measured": [1.23456], "noise": [None], "predicted": [1.0], "command": f"nonsmooth {name}", "slack": None}
    return row | more


ROWS = [network_row("x", "supported"), network_row("y", "refuted", bears="limits"), network_row("z", "undecided")]
ASKED = """<!-- outcome -->
old
<!-- /outcome -->
<!-- measured: networks/x -->
<!-- /measured -->
<!-- table: networks/x -->
<!-- /table -->
<!-- figure: networks/x 1 The norm -->
<!-- /figure -->
<!-- rerun -->
<!-- /rerun -->
<!-- full -->
kept
<!-- /full -->
"""
LINE = {"name": "norm", "x": [1, 2], "y": [1.0, None], "style": "line", "error": [0.1, 0.1]}
SHOWN = [
    {
        "kind": "table",
        "columns": ["net", "κ"],
        "rows": [["relu", 1.5], ["gelu", None]],
        "title": "Table",
        "says": "So.",
    },
    {
        "x": {"title": "λ", "log": True},
        "y": {"title": "norm " * 12, "log": False},
        "lines": [LINE],
        "says": "It grows.",
    },
]


def test_the_findings_page_is_filled_from_rows(tmp_path):
    page = findings.filled(ASKED, ROWS, lambda claim: SHOWN, tmp_path)
    assert "old" not in page and "kept" in page
    assert page.index("**Supported** (1)") < page.index("networks/x") < page.index("**Refuted** (1)")
    assert "| a\\|b | 1.235 ± – | 1 |" in page and "| gelu | – |" in page and "`nonsmooth z`" in page
    assert "(sentence 4, a limit): It is y." in page
    assert "![The norm](figures/networks--x-1.svg)\n\nIt grows." in page
    drawn = (tmp_path / "networks--x-1.svg").read_bytes()
    assert findings.filled(page, ROWS, lambda claim: SHOWN, tmp_path) == page
    assert (tmp_path / "networks--x-1.svg").read_bytes() == drawn
    cases = {"cases": ["in", "out"], "measured": [1.0, 2.0], "noise": [0.1, 0.1], "predicted": [1.0, 1.0]}
    other = [ROWS[0], ROWS[1] | cases | {"verdict": "supported", "slack": 0.05 - 1.1}, ROWS[2]]
    page = findings.filled(ASKED, ROWS, lambda claim: SHOWN, None, other)
    assert "| `networks/y` | refuted | supported | out: 2 ± 0.1 (1) |" in page


@pytest.mark.parametrize("block", ["measured: networks/none", "table: networks/x", "full"])
def test_a_finding_without_a_row_is_named(block):
    word = block.partition(":")[0]
    with pytest.raises(LookupError, match=r"networks/none|has no table|no row of networks/y"):
        findings.filled(f"<!-- {block} -->\n<!-- /{word} -->\n", ROWS, lambda claim: [], None, ROWS[:1])


def test_the_findings_are_those_of_the_claims_page():
    page, claims = text_of("docs/findings.md"), text_of("docs/claims.md")
    told = page[page.index("<!-- outcome -->") : page.index("<!-- /outcome -->")]
    of_verdict = re.split(r"\*\*(Supported|Refuted|Undecided)\*\* \(\d+\)", told)
    verdicts = {
        name: verdict.lower()
        for verdict, part in zip(of_verdict[1::2], of_verdict[2::2], strict=True)
        for name in re.findall(r"`(networks/[\w-]+)`", part)
    }
    assert verdicts.keys() == {name for name in CLAIMS if name.startswith("networks/")}
    for name, verdict in verdicts.items():
        found = re.search(rf"### `{name}`\n.*?- Verdict: \*\*(\w+)\*\*", claims, re.DOTALL)
        assert found is not None and found[1] == verdict, name
    assert set(re.findall(r"networks/[\w-]+", page)) <= CLAIMS.keys()
    for file in re.findall(r"\]\((figures/[^)]+)\)", page):
        assert (ROOT / "docs" / file).is_file()
