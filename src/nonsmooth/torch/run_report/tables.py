"""The tables of a watched run: the census of its operations, and what was tried from its checkpoint."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from nonsmooth.pages import drawn_table
from nonsmooth.pages.numbers import show
from nonsmooth.torch.run_report.folder import number, text

__all__ = ["census_tables", "tried_table"]

KINKED = ("discontinuous", "C⁰", "C¹")

TRIED = {
    "loss_before": "loss before",
    "loss_after": "loss after",
    "lr": "lr",
    "steps": "steps",
    "lowest": "lowest",
    "raising": "steps that raised it, %",
    "orbit_curvature": "κ̄",
    "norm": "‖w‖₁",
    "zeros": "exact zeros",
}
ALIKE = ("loss_before", "steps", "zeros")
"""Columns that are worth a place only where the trials differ in them."""


def tried_table(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """What was tried as a table, None for nothing; a column without a number is left out.

    What is the same of all, in the columns and in the notes, is said once.

    >>> tried_table([{"change": "half the lr", "loss_after": 0.25, "norm": None}])["raw"]["rows"]
    [['half the lr', 0.25]]
    """
    if not rows:
        return None
    held = [key for key in TRIED if any(not math.isnan(number(row.get(key))) for row in rows)]
    alike = [key for key in held if key in ALIKE and len(rows) > 1 and len({_outcome(row, key) for row in rows}) == 1]
    held = [key for key in held if key not in alike]
    parts = [text(row.get("note")).split("; ") for row in rows]
    common = [part for part in parts[0] if part and all(part in other for other in parts)]
    notes = [
        (text(row.get("change")), "; ".join(part for part in said if part not in common))
        for row, said in zip(rows, parts, strict=True)
    ]
    same = [*common, *(f"{TRIED[key]} {_shown(_outcome(rows[0], key))}" for key in alike)]
    said = (
        "Each began at the same checkpoint, on a copy: the run itself went on as it was. The loss after is the mean of "
    )
    table = {
        "columns": ["change", *(TRIED[key] for key in held)],
        "rows": [[text(row.get("change")), *(_outcome(row, key) for key in held)] for row in rows],
        "title": "",
        "says": said + "the last tenth." + (f" All of it: {'; '.join(same)}." if same else ""),
    }
    return drawn_table(table, "what-if", 0) | {"notes": [note for note in notes if note[1]]}


def _shown(value: str | float) -> str:
    return value if isinstance(value, str) else show(value)


def _outcome(row: Mapping[str, Any], key: str) -> str | float:
    value = number(row.get(key)) * (100 if key == "raising" else 1)
    if key == "loss_after" and row.get("diverged"):
        return "diverged"
    if not math.isfinite(value):
        return "—"
    return int(value) if key in ("steps", "zeros") else value


COLUMNS = ("operation", "class", "in module", "at", "calls", "numbers", "kinks each", "where", "on a kink", "returned")


KINKS_SAY = "What has kinks, in the calls of one pass. “On a kink” counts the numbers that lay exactly on one."


def census_tables(census: Mapping[str, Any] | None) -> dict[str, Any]:
    """The operations with kinks as one table, the smooth ones as another, and what is hidden; None for an empty one.

    >>> found = census_tables({"operations": [{"name": "relu", "smoothness": "C⁰"}, {"name": "sum"}], "hidden": []})
    >>> found["sharp"], found["all"], found["hidden"] is None
    (1, 2, True)
    """
    given = census or {}
    rows, hidden = list(given.get("operations") or []), list(given.get("hidden") or [])
    kinked = [row for row in rows if row.get("smoothness") in KINKED]
    kinked.sort(key=lambda row: KINKED.index(row["smoothness"]))
    smooth = [row for row in rows if row.get("smoothness") not in KINKED]
    calls: list[list[Any]] = [[text(row.get(key)) for key in ("kind", "what", "module", "place")] for row in hidden]
    for line, row in zip(calls, hidden, strict=True):
        line.append(_whole(row))
    return {
        "made": census is not None,
        "all": len(rows),
        "sharp": sum(row["smoothness"] != "C¹" for row in kinked),
        "kinked": _table(COLUMNS, [_operation(row) for row in kinked], "census-kinks", KINKS_SAY),
        "smooth": _table(COLUMNS[:6], [_operation(row)[:6] for row in smooth], "census-smooth", "What has none."),
        "hidden": _table(("kind", "what", "in module", "at", "calls"), calls, "census-hidden", "What may hide more."),
    }


def _table(columns: Sequence[str], rows: list[list[Any]], stem: str, says: str) -> dict[str, Any] | None:
    table = {"columns": list(columns), "rows": rows, "title": "", "says": says}
    return drawn_table(table, stem, 0) if rows else None


def _whole(row: Mapping[str, Any], key: str = "calls") -> str | int:
    value = number(row.get(key))
    return int(value) if math.isfinite(value) else "—"


def _operation(row: Mapping[str, Any]) -> list[Any]:
    each = number(row.get("each"))
    kinks = "∞" if math.isinf(each) else "—" if math.isnan(each) else each
    returned = "no gradient passes" if row.get("differentiated") is False else _returned(row.get("returned"))
    texts = [text(row.get(key)) or "—" for key in ("name", "smoothness", "module", "place")]
    return [*texts, _whole(row), _whole(row, "numbers"), kinks, text(row.get("where")) or "—", _whole(row, "exact"),
            returned or "—"]  # fmt: skip


def _returned(pairs: Any) -> str:
    """The derivatives at the kinks in words."""
    if not isinstance(pairs, list):
        return ""
    said = []
    for pair in pairs:
        if isinstance(pair, (list, tuple)) and len(pair) == 2 and isinstance(pair[1], (list, tuple)):
            values = [show(number(v)) for v in pair[1][:4]] + ["…"] * (len(pair[1]) > 4)
            said.append(f"{values[0] if len(values) == 1 else '(' + ', '.join(values) + ')'} at {text(pair[0])}")
    return ", ".join(said)
