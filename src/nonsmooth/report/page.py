"""The page: rows and figures, checked and put in order, then written by the template."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from nonsmooth.ledger import ABSTRACT, SUBJECTS, Verdict, from_json, read_rows, sentence_verdict, short, subject

try:
    from nonsmooth.claims.texts import TEXTS, Text
    from nonsmooth.pages import check_plots, date, document, drawn_plot, drawn_table, is_table, write_whole
    from nonsmooth.pages.numbers import setting
    from nonsmooth.report.cases import table
    from nonsmooth.report.rows import check_rows
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
    "only its limits are tested": "undecided",
    "not tested yet": "untested",
}
"""The look of what `sentence_verdict` says."""

READING = 5
"""The sentence of the abstract that speaks of texts."""

AGREEMENT = {
    "agree": ("supported", "the claims agree"),
    "disagree": ("refuted", "the claims disagree"),
    "in part": ("mixed", "the claims agree in part"),
    "open": ("undecided", "left open by this run"),
    "not tested": ("untested", "not tested in this run"),
}
"""The look and the words of what `Text.standing` says."""


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
    return write_whole(out / "report.html", html, "choose another folder with --out")


def _plots(out: Path, claim: str) -> list[dict[str, Any]] | None:
    path = out / "figures" / (claim.replace("/", "--") + ".json")
    try:
        if not path.is_file():
            return None
        plots = from_json(path.read_bytes())
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{short(path, 300)}: is not a file of figures ({short(error)}); run the claim again."
        ) from error
    check_plots(plots, short(path, 300))
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
    return document(
        "nonsmooth.report",
        "page.html",
        drawn=[plot for claim in claims for plot in claim["plots"]],
        scripts=["filter.js"],
        header=_header(rows, claims),
        sentences=[_sentence(number, rows, claims) for number in ABSTRACT],
        themes=_themes(claims),
        texts=_texts(texts, claims),
        reading=READING,
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
                "plots": [
                    (drawn_table if is_table(plot) else drawn_plot)(plot, stem, i) for i, plot in enumerate(plots or [])
                ],
                "panels": sum(not is_table(plot) for plot in plots or []),
                "settings": {name: setting(value) for name, value in row["parameters"].items()},
            }
        )
    return claims


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
    columns = []
    for of in SUBJECTS:
        verdict = sentence_verdict([row for row in rows if subject(row["claim"]) == of], number)
        mine = [claim for claim in claims if claim["sentence"] == number and subject(claim["claim"]) == of]
        columns.append(
            {
                "subject": of,
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
        )
    return {"number": number, "text": ABSTRACT[number], "columns": columns}


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
        look, word = AGREEMENT[text.standing({claim["claim"]: claim["verdict"] for claim in claims})]
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
        "date": date(newest),
        "iso": newest,
        "versions": {package: " and ".join(numbers) for package, numbers in versions.items()},
        "seconds": sum(row["seconds"] for row in rows),
        "command": "nonsmooth reproduce" + (options.pop() if len(options) == 1 else ""),
        "missed": [claim for claim in claims if claim["missed"]],
    }
