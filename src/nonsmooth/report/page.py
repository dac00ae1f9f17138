"""The page: rows and figures, checked and put in order, then written by the template."""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from nonsmooth.ledger import ABSTRACT, Verdict, read_rows, sentence_verdict
from nonsmooth.report.cases import table
from nonsmooth.report.numbers import align, prose, readable, setting, show
from nonsmooth.report.rows import check_plots, check_rows, is_table

try:
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup
    from plotly.offline import get_plotlyjs

    from nonsmooth.claims.texts import TEXTS, Text
except ModuleNotFoundError as missing:
    raise ModuleNotFoundError(
        f"nonsmooth.report needs {missing.name}, which is not installed; run: pip install 'nonsmooth[lab]'"
    ) from missing

__all__ = ["render", "write_report"]

THEMES = {
    "convergence": "Convergence",
    "l1": "L1 penalties",
    "rmsprop": "RMSProp",
    "edge": "The edge of stability",
    "autodiff": "What automatic differentiation returns",
    "literature": "Assumptions in the literature",
    "networks": "Networks",
}
"""The themes in their order, by the prefix of a claim's id; others follow by name."""

COMBINED = {
    "holds": "supported",
    "holds, within limits": "supported",
    "holds, not all decided": "mixed",
    "holds within limits, not all decided": "mixed",
    "holds in part": "mixed",
    "does not hold as said": "refuted",
    "undecided": "undecided",
    "not tested yet": "untested",
}
"""The look of what `sentence_verdict` says."""

READING = 5
"""The sentence of the abstract that speaks of texts."""

AGREEMENT = {
    "agree": ("supported", "the claims agree"),
    "disagree": ("refuted", "the claims disagree"),
    "in part": ("mixed", "the claims agree in part"),
}
"""The look and the words of `Text.verdict`."""

UNSAFE = {ord("<"): "\\u003c", ord(">"): "\\u003e", ord("&"): "\\u0026", 0x2028: "\\u2028", 0x2029: "\\u2029"}


def write_report(out: Path) -> Path:
    """`out/verdicts.jsonl` and `out/figures/*.json` → `out/report.html`, whole or not at all.

    Raises ValueError, in one sentence, for a file that is broken or cannot be read or written.

    >>> write_report(Path("no-such-folder"))
    Traceback (most recent call last):
    ValueError: no-such-folder/verdicts.jsonl: there is no such file; run `nonsmooth reproduce` first.
    """
    out = Path(out)
    try:
        rows = read_rows(out / "verdicts.jsonl")
    except OSError as error:
        raise ValueError(f"{out / 'verdicts.jsonl'}: cannot be read ({error}); run the claims again.") from error
    figures = {
        row["claim"]: plots
        for row in rows
        if isinstance(row["claim"], str) and (plots := _plots(out, row["claim"])) is not None
    }
    html = render(rows, figures, TEXTS)
    target = out / "report.html"
    beside = out / f".report.html.{os.getpid()}"
    try:
        beside.write_text(html, encoding="utf-8")
        os.replace(beside, target)
    except OSError as error:
        raise ValueError(
            f"{target}: cannot be written ({error.strerror}); choose another folder with --out."
        ) from error
    finally:
        beside.unlink(missing_ok=True)
    return target


def _plots(out: Path, claim: str) -> list[dict[str, Any]] | None:
    path = out / "figures" / (claim.replace("/", "--") + ".json")
    try:
        if not path.is_file():
            return None
        plots = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: is not a file of figures ({error}); run the claim again.") from error
    check_plots(plots, str(path))
    return plots


def render(
    rows: Sequence[Mapping[str, Any]],
    figures: Mapping[str, Sequence[Mapping[str, Any]]],
    texts: Sequence[Text] = (),
) -> str:
    """The page as text. Same input, same page.

    `figures` maps a claim to the dicts of its `Plot`s and `Table`s; `texts` are set beside the claims that they name,
    if one of these was run.

    Raises ValueError, in one sentence, for a row or a figure that lacks something.

    >>> "not tested yet" in render([], {})
    True
    """
    check_rows(rows)
    for claim, plots in figures.items():
        check_plots(plots, f"the figures of {claim!r}")
    claims = _claims(rows, figures)
    style, script, plotly = _text("style.css"), _text("figures.js") + _text("page.js"), get_plotlyjs()
    return (
        _environment()
        .get_template("page.html")
        .render(
            style=Markup(style),
            script=Markup(script),
            plotly=Markup(_packed(plotly)),
            trusted=[_digest(script), _digest(plotly)],
            header=_header(rows, claims),
            sentences=[_sentence(number, rows, claims) for number in ABSTRACT],
            themes=_themes(claims),
            texts=_texts(texts, claims),
            reading=READING,
            plots=Markup(_json([plot for claim in claims for plot in claim["plots"] if plot["kind"] == "plot"])),
            tables=Markup(
                _json([plot["raw"] for claim in claims for plot in claim["plots"] if plot["kind"] == "table"])
            ),
        )
    )


def _claims(
    rows: Sequence[Mapping[str, Any]], figures: Mapping[str, Sequence[Mapping[str, Any]]]
) -> list[dict[str, Any]]:
    """What the template shows of each row, in the order of the themes."""
    order = list(THEMES)
    rank = lambda theme: (order.index(theme) if theme in THEMES else len(order), theme)  # noqa: E731
    claims, anchors = [], set()
    for row in sorted(rows, key=lambda row: rank(_theme(row["claim"]))):
        stem = anchor = re.sub(r"[^\w-]+", "-", row["claim"].replace("/", "--"))
        while anchor in anchors:
            anchor += "-again"
        anchors.add(anchor)
        cases, scale = table(row)
        plots = figures.get(row["claim"])
        missed = [mutant["what"] for mutant in row["mutants"] if mutant["verdict"] != Verdict.REFUTED]
        claims.append(
            dict(row)
            | {
                "anchor": f"claim-{anchor}",
                "name": row["claim"].partition("/")[2] or row["claim"],
                "theme": _theme(row["claim"]),
                "table": cases,
                "scale": scale,
                "noisy": any(case.noise for case in cases),
                "missed": missed,
                "drawn": plots is not None,
                "plots": [(_table if is_table(plot) else _plot)(plot, stem, i) for i, plot in enumerate(plots or [])],
                "panels": sum(not is_table(plot) for plot in plots or []),
                "settings": {name: setting(value) for name, value in row["parameters"].items()},
            }
        )
    return claims


def _plot(plot: Mapping[str, Any], stem: str, index: int) -> dict[str, Any]:
    """A figure as the script draws it: readable words, eight digits, a text alternative."""
    drawn = _rounded(plot)
    title, says = drawn["title"], drawn["says"]
    lines = ", ".join(line["name"] for line in drawn["lines"] if line["name"])
    axes = f"{drawn['y']['title']} against {drawn['x']['title']}" + (f", with {lines}" if lines else "")
    drawn["label"] = ". ".join(part.rstrip(".") for part in (title, says, axes) if part) + "."
    drawn["file"] = f"{stem}-{index + 1}"
    drawn["claim"] = stem
    drawn["kind"] = "plot"
    return drawn


def _table(table: Mapping[str, Any], stem: str, index: int) -> dict[str, Any]:
    """A table as the template writes it: numbers to four digits, their points in line; `raw` is what is saved."""
    file = f"{stem}-{index + 1}"
    columns = [[row[i] for row in table["rows"]] for i in range(len(table["columns"]))]
    numeric = [bool(column) and not any(isinstance(cell, str) for cell in column) for column in columns]
    texts = [
        align([show(cell) for cell in column]) if number else [c if isinstance(c, str) else show(c) for c in column]
        for column, number in zip(columns, numeric, strict=True)
    ]
    return {
        "kind": "table",
        "title": table["title"],
        "says": table["says"],
        "file": file,
        "head": list(zip(table["columns"], numeric, strict=True)),
        "rows": [list(zip(cells, numeric, strict=True)) for cells in zip(*texts, strict=True)],
        "raw": {"file": file, "head": table["columns"], "rows": table["rows"]},
    }


def _rounded(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _rounded(v) for key, v in value.items()}
    if isinstance(value, list):
        return [_rounded(v) for v in value]
    if isinstance(value, float):
        return float(f"{value:.8g}")
    return readable(value) if isinstance(value, str) else value


def _theme(claim: str) -> str:
    return claim.partition("/")[0] if "/" in claim else ""


def _themes(claims: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    groups: dict[str, list[dict[str, Any]]] = {}
    for claim in claims:
        groups.setdefault(claim["theme"], []).append(claim)
    return [
        {"title": THEMES.get(theme, theme.capitalize() or "Other claims"), "anchor": f"theme-{i}", "claims": mine}
        for i, (theme, mine) in enumerate(groups.items(), 1)
    ]


def _sentence(number: int, rows: Sequence[Mapping[str, Any]], claims: Sequence[dict[str, Any]]) -> dict[str, Any]:
    mine = [claim for claim in claims if claim["sentence"] == number]
    verdict = sentence_verdict(rows, number)
    return {
        "number": number,
        "text": ABSTRACT[number],
        "verdict": verdict,
        "look": COMBINED.get(verdict, "undecided"),
        "bearings": [
            {"words": words, "claims": bearing, "counts": _counts(bearing)}
            for *words, bears in (
                ("claim speaks for it", "claims speak for it", "for"),
                ("claim limits it", "claims limit it", "limits"),
            )
            if (bearing := [claim for claim in mine if claim["bears"] == bears])
        ],
    }


def _counts(rows: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    return {str(verdict): sum(row["verdict"] == verdict for row in rows) for verdict in Verdict}


def _texts(texts: Sequence[Text], claims: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Each text with the claims it names, run or not; nothing where none of them was run."""
    run = {claim["claim"]: claim for claim in claims}
    if not any(name in run for text in texts for name in text.evidence):
        return []
    shown = []
    for text in texts:
        found = [run[name] for name in text.evidence if name in run]
        unsupported = sum(claim["verdict"] != Verdict.SUPPORTED for claim in found)
        look, word = AGREEMENT[text.verdict]
        if not found:
            look, word = "untested", "not tested in this run"
        elif unsupported:
            look, word = "undecided", "left open by this run"
        shown.append(
            {
                "text": text,
                "look": look,
                "word": word,
                "evidence": [(name, run.get(name)) for name in text.evidence],
                "unsupported": unsupported,
                "would": AGREEMENT[text.verdict][1],
            }
        )
    return shown


def _header(rows: Sequence[Mapping[str, Any]], claims: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Counts, the date of the newest row, the versions (several where rows differ) and the command."""
    newest = max((row["finished"] for row in rows), default="")
    versions: dict[str, list[str]] = {}
    for row in rows:
        for package, number in row["versions"].items():
            if number not in versions.setdefault(package, []):
                versions[package].append(number)
    options = {row["command"].partition(f"--only '{row['claim']}'")[2] for row in rows}
    return {
        "claims": len(rows),
        "counts": _counts(rows),
        "date": _date(newest),
        "iso": newest,
        "versions": {package: " and ".join(numbers) for package, numbers in versions.items()},
        "seconds": sum(row["seconds"] for row in rows),
        "command": "nonsmooth reproduce" + (options.pop() if len(options) == 1 else ""),
        "missed": [claim for claim in claims if claim["missed"]],
    }


def _date(iso: str) -> str:
    try:
        when = datetime.fromisoformat(iso)
    except ValueError:
        return iso
    zone = " UTC" if when.tzinfo is not None and not when.utcoffset() else ""
    return f"{when.day} {when:%B %Y, %H:%M}{zone}"


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("nonsmooth.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"prose": prose, "seconds": _seconds}
    return environment


def _seconds(seconds: float) -> str:
    if seconds < 90:
        return f"{show(seconds, 2)} s"
    return f"{show(seconds / 60, 2)} min" if seconds < 5400 else f"{show(seconds / 3600, 2)} h"


def _text(name: str) -> str:
    return files("nonsmooth.report").joinpath("templates", name).read_text(encoding="utf-8")


def _json(value: Any) -> str:
    """JSON that no script element can be left by."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).translate(UNSAFE)


@cache
def _packed(script: str) -> str:
    return base64.b64encode(gzip.compress(script.encode(), mtime=0)).decode()


def _digest(script: str) -> str:
    """What the page's security policy knows a script by: nothing else runs."""
    return "sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
