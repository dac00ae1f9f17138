"""Write what a run of the claims found into README.md, docs/claims.md and docs/objections.md: `docs/table.py [OUT]`."""

from __future__ import annotations

import re
import sys
import textwrap
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from nonsmooth.claims.texts import TEXTS, Text
from nonsmooth.ledger import ABSTRACT, SUBJECTS, read_rows, sentence_verdict, subject

ROOT = Path(__file__).parent.parent
SHORT = 160
Row = Mapping[str, Any]


def escaped(text: str) -> str:
    """Text that Markdown shows as it stands, in a table too.

    >>> escaped("|w*| < 1")
    '\\\\|w\\\\*\\\\| &lt; 1'
    """
    return re.sub(r"([\\*|`])", r"\\\1", text).replace("<", "&lt;")


def anchor(claim: str) -> str:
    """The id of a claim's heading on docs/claims.md.

    >>> anchor("l1/balance-law")
    'l1balance-law'
    """
    return claim.replace("/", "")


def shortened(text: str, limit: int = SHORT) -> str:
    """The text, or as many of its words as fit and an ellipsis.

    >>> shortened("λ above 1 and below 2", 12)
    'λ above 1 …'
    """
    return text if len(text) <= limit else textwrap.shorten(text, limit, placeholder=" …")


def together(rows: Iterable[Row], number: int) -> str:
    """What the claims say together of a sentence, on functions and on networks."""
    of = {name: [row for row in rows if subject(row["claim"]) == name] for name in SUBJECTS}
    return "; ".join(f"{name}: **{sentence_verdict(mine, number)}**" for name, mine in of.items())


def short_table(rows: Iterable[Row]) -> str:
    """What the README shows: for each sentence its claims, verdicts and conditions, these in short."""
    lines = []
    for number, text in ABSTRACT.items():
        lines += ["", f"**{number}. {text}**", "", f"On {together(rows, number)}.", ""]
        lines += ["| claim | verdict | holds when |", "|---|---|---|"]
        for row in (row for row in rows if row["sentence"] == number):
            holds = escaped(short := shortened(row["holds_when"]))
            more = f" [more](docs/claims.md#{anchor(row['claim'])})" if short != row["holds_when"] else ""
            lines.append(f"| `{row['claim']}` | {row['verdict']} | {holds}{more} |")
    return "\n".join([*lines, "", ""])


def full_list(rows: Iterable[Row]) -> str:
    """Each claim in full, by sentence."""
    lines = []
    for number, text in ABSTRACT.items():
        lines += ["", f"## Sentence {number}", "", escaped(text), ""]
        lines += [f"On {together(rows, number)}."]
        for row in (row for row in rows if row["sentence"] == number):
            cases, samples = len(row["cases"]), row["seeds"]
            size = f"{cases} case{'s' * (cases > 1)}, {f'{samples} samples' if samples > 1 else 'one number'} each"
            lines += ["", f"### `{row['claim']}`", "", escaped(row["says"]), ""]
            lines += [f"- Verdict: **{row['verdict']}**" + "; it limits the sentence" * (row["bears"] == "limits")]
            lines += [f"- Holds when: {escaped(row['holds_when'])}"]
            lines += [f"- Tested: {escaped(row['what'])} {escaped(row['relation'])} ({size})"]
            lines += [f"- Mutant: {escaped(m['what'])} ({m['verdict']})" for m in row["mutants"]]
            lines += [f"- Source: {escaped(row['source'])}", f"- Command: `{row['command']}`"]
    return "\n".join([*lines, "", ""])


def literature(texts: Iterable[Text], rows: Iterable[Row]) -> str:
    """What texts say, and how the claims that were run stand to each."""
    verdicts = {row["claim"]: row["verdict"] for row in rows}
    lines = ["", "| text | section | it says | the claims | by | remark |", "|---|---|---|---|---|---|"]
    for text in texts:
        by = ", ".join(f"[`{claim}`](#{anchor(claim)})" for claim in text.evidence)
        cells = (text.citation, text.section, text.says)
        lines.append(
            f"| {' | '.join(map(escaped, cells))} | {text.standing(verdicts)} | {by} | {escaped(text.remark)} |"
        )
    return "\n".join([*lines, "", ""])


def answers(rows: Iterable[Row], names: Iterable[str]) -> str:
    """The claims that answer an objection: verdict, words and condition of each; LookupError where one has no row."""
    found = {row["claim"]: row for row in rows}
    lines = [""]
    for name in names:
        if name not in found:
            raise LookupError(f"there is no row of {name}; run the whole ledger, or mend the name")
        row = found[name]
        lines.append(f"- [`{name}`](claims.md#{anchor(name)}), **{row['verdict']}**. {escaped(row['says'])}")
        lines.append(f"  Holds when: {escaped(row['holds_when']).removesuffix('.')}.")
    return "\n".join([*lines, "", ""])


def between(page: str, marker: str, text: str) -> str:
    """The page with the text between <!-- marker --> and <!-- /marker -->.

    >>> between("<!-- a -->old<!-- /a -->", "a", "new")
    '<!-- a -->new<!-- /a -->'
    """
    parts = re.compile(rf"(<!-- {marker} -->).*(<!-- /{marker} -->)", re.DOTALL)
    return parts.sub(lambda found: f"{found[1]}{text}{found[2]}", page)


def answered(page: str, rows: Iterable[Row]) -> str:
    """The page with every <!-- claims: NAME … --> followed by what came out, up to <!-- /claims -->."""
    block = re.compile(r"(<!-- claims: ([^\n]*?) -->\n).*?(<!-- /claims -->)", re.DOTALL)
    return block.sub(lambda found: f"{found[1]}{answers(rows, found[2].split())}{found[3]}", page)


def pages(rows: Iterable[Row], root: Path = ROOT) -> dict[Path, str]:
    """What each page that shows verdicts should be."""
    readme, claims, objections = (root / name for name in ("README.md", "docs/claims.md", "docs/objections.md"))
    found = {file: file.read_text(encoding="utf-8") for file in (readme, claims, objections)}
    found[readme] = between(found[readme], "claims", short_table(rows))
    found[claims] = between(found[claims], "claims", full_list(rows))
    found[claims] = between(found[claims], "literature", literature(TEXTS, rows))
    found[objections] = answered(found[objections], rows)
    return found


if __name__ == "__main__":
    for file, text in pages(read_rows(Path(sys.argv[1] if len(sys.argv) > 1 else "out") / "verdicts.jsonl")).items():
        file.write_text(text, encoding="utf-8")
