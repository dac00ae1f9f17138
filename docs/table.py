"""Write the README's table of claims from the rows of the last run: `python docs/table.py [OUT]`."""

from __future__ import annotations

import re
import sys
from pathlib import Path

from nonsmooth.ledger import ABSTRACT, read_rows, sentence_verdict

README = Path(__file__).parent.parent / "README.md"


def table(rows: list[dict]) -> str:
    lines = []
    for number, text in ABSTRACT.items():
        lines += ["", f"**{number}. {text}** — {sentence_verdict(rows, number)}", ""]
        mine = [row for row in rows if row["sentence"] == number]
        if mine:
            lines += ["| claim | verdict | holds when |", "|---|---|---|"]
        lines += [f"| `{row['claim']}` | {row['verdict']} | {row['holds_when'].replace('|', '∣')} |" for row in mine]
    return "\n".join(lines)


if __name__ == "__main__":
    found = table(read_rows(Path(sys.argv[1] if len(sys.argv) > 1 else "out") / "verdicts.jsonl"))
    text = README.read_text(encoding="utf-8")
    between = re.compile(r"(<!-- claims -->).*(<!-- /claims -->)", re.DOTALL)
    README.write_text(between.sub(lambda m: f"{m[1]}{found}\n\n{m[2]}", text), encoding="utf-8")
