"""Fill docs/findings.md with what runs of the claims on networks found: `docs/findings.py OUT FULL`.

OUT is the folder of a run, FULL that of one with --full; without it the block `<!-- full -->` stays as it is.


A page asks by markers, and what lies between is rewritten: `<!-- claims: NAME … -->` the verdicts, as docs/table.py
writes them; `<!-- measured: NAME -->` a claim's cases; `<!-- table: NAME -->` the tables among its figures;
`<!-- figure: NAME N TITLE -->` its Nth plot, drawn into docs/figures; `<!-- outcome -->` what held and what did not;
`<!-- rerun -->` the commands; `<!-- full -->` where the verdicts of both runs differ. Each ends with the same word and
a stroke before it.
"""

from __future__ import annotations

import json
import re
import sys
import textwrap
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from nonsmooth.claims.reproduce import file_name
from nonsmooth.ledger import Verdict, read_rows, subject
from nonsmooth.report.cases import relation_of

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "docs"))

from table import anchor, answered, escaped  # noqa: E402

Row = Mapping[str, Any]
COLOURS = ("#17407d", "#d1495b", "#0d6e62", "#b4540a", "#7b4ea3", "#5b6470", "#a0781c", "#2f8fb3")


def number(value: float | None) -> str:
    """Four digits; a stroke for what is not finite.

    >>> number(3.98765), number(None), number(120000.0)
    ('3.988', '–', '1.2e+05')
    """
    return "–" if value is None else f"{value:.4g}"


def measured(row: Row) -> str:
    """Each case: the mean with its interval, and the prediction."""
    lines = [f"*{escaped(row['what'])}*, {row['seeds']} seeds; it {escaped(row['relation'])}.", ""]
    lines += ["| case | measured, 95 % | predicted |", "|---|---|---|"]
    for case, mean, noise, predicted in zip(row["cases"], row["measured"], row["noise"], row["predicted"], strict=True):
        lines.append(f"| {escaped(case)} | {number(mean)} ± {number(noise)} | {number(predicted)} |")
    return "\n".join(["", *lines, "", ""])


def tables(plots: list[dict[str, Any]]) -> str:
    """The tables among a claim's figures."""
    lines: list[str] = []
    for plot in plots:
        if plot.get("kind") == "table":
            lines += ["", f"**{escaped(plot['title'])}**" if plot["title"] else "", ""]
            lines += ["| " + " | ".join(map(escaped, plot["columns"])) + " |", "|" + "---|" * len(plot["columns"])]
            for cells in plot["rows"]:
                shown = (escaped(c) if isinstance(c, str) else number(c) for c in cells)
                lines.append("| " + " | ".join(shown) + " |")
            lines += ["", escaped(plot["says"])] if plot["says"] else []
    if not lines:
        raise LookupError("a claim has no table among its figures")
    return "\n".join([*lines, "", ""])


def drawn(plot: Mapping[str, Any], path: Path) -> None:
    """The plot as an SVG file, the same bytes for the same plot."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    look = {"svg.hashsalt": "nonsmooth", "svg.fonttype": "none", "font.size": 11, "font.family": "sans-serif"}
    with matplotlib.rc_context(look):
        figure, axes = pyplot.subplots(figsize=(7.2, 4.0), layout="constrained")
        for line, colour in zip(plot["lines"], COLOURS * 9, strict=False):
            x, y = ([float("nan") if v is None else v for v in line[of]] for of in ("x", "y"))
            marks = {"line": "-", "dash": "--", "markers": "o"}[line["style"]]
            axes.plot(x, y, marks, color=colour, label=line["name"], ms=4.5, lw=1.7)
            if line["error"] is not None:
                errors = [0.0 if e is None else e for e in line["error"]]
                low, high = ([a + s * e for a, e in zip(y, errors, strict=True)] for s in (-1, 1))
                if line["style"] == "markers":
                    axes.errorbar(x, y, errors, fmt="none", ecolor=colour, lw=1, capsize=2)
                else:
                    axes.fill_between(x, low, high, color=colour, alpha=0.15, lw=0)
        for name in ("x", "y"):
            getattr(axes, f"set_{name}label")(textwrap.fill(plot[name]["title"], 40))
            if plot[name]["log"]:
                getattr(axes, f"set_{name}scale")("log")
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
        if len(plot["lines"]) > 1:
            axes.legend(fontsize=9, frameon=False)
        figure.savefig(path, metadata={"Date": None})
        pyplot.close(figure)


def outcome(rows: list[Row]) -> str:
    """The claims on networks by their verdict."""
    lines = [""]
    for verdict in Verdict:
        mine = [row for row in rows if row["verdict"] == verdict]
        lines += [f"**{str(verdict).capitalize()}** ({len(mine)})", ""]
        lines += [
            f"- [`{row['claim']}`](claims.md#{anchor(row['claim'])}) (sentence {row['sentence']}"
            f"{', a limit' * (row['bears'] == 'limits')}): {escaped(row['says'])}"
            for row in mine
        ] or ["- none"]
        lines += [""]
    return "\n".join([*lines, ""])


def rerun(rows: list[Row]) -> str:
    lines = ["", "| claim | seeds | command |", "|---|---|---|"]
    lines += [f"| `{row['claim']}` | {row['seeds']} | `{row['command']}` |" for row in rows]
    return "\n".join([*lines, "", ""])


def both(rows: list[Row], full: list[Row]) -> str:
    """The claims whose verdict is another with --full, and how many have the same; LookupError for one not run."""
    found = {row["claim"]: row for row in full}
    if lacking := [row["claim"] for row in rows if row["claim"] not in found]:
        raise LookupError(f"the full run has no row of {lacking[0]}")
    other = [row for row in rows if found[row["claim"]]["verdict"] != row["verdict"]]
    lines = ["", f"{len(rows) - len(other)} of the {len(rows)} verdicts are the same with `--full`. The others:", ""]
    lines += ["| claim | quick | full | the case that is farthest out, measured (predicted) |", "|---|---|---|---|"]
    for row in other:
        more = found[row["claim"]]
        lines.append(f"| `{row['claim']}` | {row['verdict']} | {more['verdict']} | {farthest(more)} |")
    return "\n".join([*lines, "", ""])


def farthest(row: Row) -> str:
    """The case with the least margin, at the end of its interval that the verdict is by; one without a number, where
    these leave the claim open."""
    relation, end = relation_of(row), int(row["verdict"] == Verdict.REFUTED)
    numbers = list(zip(row["cases"], row["measured"], row["noise"], row["predicted"], strict=True))
    finite = [n for n in numbers if None not in n[1:]]
    if relation is None or not finite or (len(finite) < len(numbers) and row["verdict"] == Verdict.UNDECIDED):
        return escaped(next((n[0] for n in numbers if None in n[1:]), numbers[0][0])) + ": no number"
    case, mean, noise, predicted = min(finite, key=lambda n: relation.margins(n[1] - n[2], n[1] + n[2], n[3])[end])
    return f"{escaped(case)}: {number(mean)} ± {number(noise)} ({number(predicted)})"


def filled(
    page: str,
    rows: list[Row],
    plots: Callable[[str], list[dict[str, Any]]],
    figures: Path | None = None,
    full: list[Row] | None = None,
) -> str:
    """The page with every block as the rows have it; figures are drawn where a folder is given.

    Raises LookupError for a claim that has no row.
    """
    found = {row["claim"]: row for row in rows}
    networks = [row for row in rows if subject(row["claim"]) == "networks"]

    def row_of(name: str) -> Row:
        if name not in found:
            raise LookupError(f"there is no row of {name}; run the claims on networks, or mend the name")
        return found[name]

    def figure(name: str, which: str, title: str) -> str:
        plot = [p for p in plots(row_of(name)["claim"]) if p.get("kind") != "table"][int(which) - 1]
        file = f"{file_name(name)}-{which}.svg"
        if figures is not None:
            drawn(plot, figures / file)
        return f"\n![{title}](figures/{file})\n\n{escaped(plot['says'])}\n\n"

    blocks: dict[str, Callable[..., str]] = {
        r"measured: (\S+)": lambda name: measured(row_of(name)),
        r"table: (\S+)": lambda name: tables(plots(row_of(name)["claim"])),
        r"figure: (\S+) (\d+) ([^\n]+?)": figure,
        "outcome": lambda: outcome(networks),
        "rerun": lambda: rerun(networks),
    }
    if full is not None:
        blocks["full"] = lambda: both(networks, full)
    for marker, write in blocks.items():
        word = marker.partition(":")[0]
        block = re.compile(rf"(<!-- {marker} -->\n).*?(<!-- /{word} -->)", re.DOTALL)
        page = block.sub(lambda m, write=write: m[1] + write(*m.groups()[1:-1]) + m.groups()[-1], page)  # type: ignore[misc]
    return answered(page, rows)


def main(out: Path, full: Path | None = None) -> None:
    page = ROOT / "docs" / "findings.md"

    def plots(claim: str) -> list[dict[str, Any]]:
        return json.loads((out / "figures" / f"{file_name(claim)}.json").read_text(encoding="utf-8"))

    more = None if full is None else read_rows(full / "verdicts.jsonl")
    rows = read_rows(out / "verdicts.jsonl")
    text = filled(page.read_text(encoding="utf-8"), rows, plots, ROOT / "docs" / "figures", more)
    page.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:] or ["out"]))
