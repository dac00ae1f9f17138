"""What a row and a figure must hold before they are shown; each fault is one sentence."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NoReturn

from nonsmooth.ledger import ABSTRACT, Verdict

__all__ = ["check_plots", "check_rows", "is_table"]

NUMBER = (int, float)
ROW: dict[str, Any] = {
    "claim": str,
    "says": str,
    "source": str,
    "sentence": int,
    "bears": str,
    "relation": str,
    "what": str,
    "cases": list,
    "measured": list,
    "noise": list,
    "predicted": list,
    "slack": (*NUMBER, type(None)),
    "verdict": str,
    "holds_when": str,
    "mutants": list,
    "seeds": int,
    "parameters": dict,
    "versions": dict,
    "seconds": NUMBER,
    "finished": str,
    "command": str,
}
TABLE: dict[str, Any] = {"columns": list, "rows": list, "title": str, "says": str}
PLOT: dict[str, Any] = {"x": dict, "y": dict, "lines": list, "heat": (dict, type(None)), "title": str, "says": str}
STYLES = ("line", "dash", "markers")


def check_rows(rows: Sequence[Any]) -> None:
    """Raises ValueError for the first row that is not one of the ledger's.

    >>> check_rows([{"claim": "l1/x"}])
    Traceback (most recent call last):
    ValueError: the row of 'l1/x' has no 'says'; run the claim again.
    """
    seen = set()
    for number, row in enumerate(rows, 1):
        name = f"the row of {row['claim']!r}" if isinstance(row, dict) and "claim" in row else f"row {number}"
        if not isinstance(row, dict):
            _fail(name, "is not an object")
        for field, kind in ROW.items():
            if field not in row:
                _fail(name, f"has no {field!r}")
            if not isinstance(row[field], kind) or isinstance(row[field], bool):
                _fail(name, f"has a {field!r} of the wrong kind ({type(row[field]).__name__})")
        if row["claim"] in seen:
            _fail(name, "stands there twice")
        seen.add(row["claim"])
        if row["verdict"] not in list(Verdict):
            _fail(name, f"has the verdict {row['verdict']!r}, which is none of {', '.join(Verdict)}")
        if row["sentence"] not in ABSTRACT:
            _fail(name, f"speaks of sentence {row['sentence']}, and the abstract has {len(ABSTRACT)}")
        if row["bears"] not in ("for", "limits"):
            _fail(name, f"bears {row['bears']!r} on its sentence, which is neither 'for' nor 'limits'")
        _check_cases(row, name)


def _check_cases(row: dict[str, Any], name: str) -> None:
    columns = ("measured", "noise", "predicted")
    if len({len(row[column]) for column in ("cases", *columns)}) != 1:
        _fail(name, "has cases, measured, noise and predicted of different lengths")
    if not all(isinstance(case, str) for case in row["cases"]):
        _fail(name, "has a case that is not text")
    if not all(_is_number(value) for column in columns for value in row[column]):
        _fail(name, "has a measured, noise or predicted that is neither a finite number nor null")
    if not all(
        isinstance(m, dict) and isinstance(m.get("what"), str) and isinstance(m.get("verdict"), str)
        for m in row["mutants"]
    ):
        _fail(name, "has a mutant without 'what' and 'verdict'")
    if not all(isinstance(value, str) for value in row["versions"].values()):
        _fail(name, "has a version that is not text")


def check_plots(plots: Any, name: str) -> None:
    """Raises ValueError for the first figure that is neither `Plot.to_dict()` nor `Table.to_dict()`.

    >>> check_plots([{}], "a.json")
    Traceback (most recent call last):
    ValueError: a.json: figure 1 is not one of nonsmooth.plots.Plot (no 'x'); run the claim again.
    """
    if not isinstance(plots, Sequence) or isinstance(plots, str):
        raise ValueError(f"{name}: is not a list of figures; run the claim again.")
    for number, plot in enumerate(plots, 1):
        kind, fault = ("Table", _table_fault(plot)) if is_table(plot) else ("Plot", _plot_fault(plot))
        if fault:
            raise ValueError(
                f"{name}: figure {number} is not one of nonsmooth.plots.{kind} ({fault}); run the claim again."
            )


def is_table(plot: Any) -> bool:
    """Whether it is the dict of a `Table`, and not that of a `Plot`; the first ones had no `kind`.

    >>> is_table({"kind": "table"}), is_table({"columns": [], "rows": []}), is_table({"x": {}, "y": {}})
    (True, True, False)
    """
    return isinstance(plot, dict) and (plot.get("kind") == "table" or "columns" in plot)


def _table_fault(table: dict[str, Any]) -> str:
    """What is wrong with a table, or nothing."""
    fault = _field_fault(table, TABLE)
    if fault:
        return fault
    if not table["columns"] or not all(isinstance(title, str) for title in table["columns"]):
        return "columns that are not titles"
    for number, row in enumerate(table["rows"], 1):
        if not isinstance(row, list) or len(row) != len(table["columns"]):
            return f"row {number} does not fit the columns"
        if not all(isinstance(cell, str) or _is_number(cell) for cell in row):
            return f"row {number} has a cell that is neither text nor a number"
    return ""


def _field_fault(figure: dict[str, Any], fields: dict[str, Any]) -> str:
    for field, kind in fields.items():
        if field not in figure:
            return f"no {field!r}"
        if not isinstance(figure[field], kind):
            return f"{field!r} of the wrong kind"
    return ""


def _plot_fault(plot: Any) -> str:
    """What is wrong with a figure, or nothing."""
    if not isinstance(plot, dict):
        return "not an object"
    fault = _field_fault(plot, PLOT)
    if fault:
        return fault
    for axis in ("x", "y"):
        if not isinstance(plot[axis].get("title"), str) or not isinstance(plot[axis].get("log"), bool):
            return f"axis {axis} without title and log"
    faults = [*map(_line_fault, plot["lines"]), _heat_fault(plot["heat"])]
    return next(filter(None, faults), "")


def _line_fault(line: Any) -> str:
    if not isinstance(line, dict) or not isinstance(line.get("name"), str) or line.get("style") not in STYLES:
        return "a line without name and style"
    columns: list[Any] = [line.get("x"), line.get("y")]
    if line.get("error") is not None:
        columns.append(line["error"])
    if not all(map(_are_numbers, columns)) or len({len(column) for column in columns}) != 1:
        return f"line {line['name']!r} whose x, y and error are not numbers of one length"
    return ""


def _heat_fault(heat: dict[str, Any] | None) -> str:
    if heat is None:
        return ""
    x, y, z = (heat.get(key) for key in "xyz")
    if not isinstance(heat.get("title"), str) or not isinstance(z, list) or not all(map(_are_numbers, (x, y, *z))):
        return "a heat map without title or with an x, y or z that is not numbers"
    if not x or not y or None in x or None in y or len(z) != len(y) or any(len(row) != len(x) for row in z):
        return "a heat map whose z does not fit x and y"
    return ""


def _are_numbers(column: Any) -> bool:
    return isinstance(column, list) and all(map(_is_number, column))


def _is_number(value: Any) -> bool:
    """A number that JSON and a float can hold, or null."""
    if value is None or isinstance(value, bool):
        return value is None
    return (isinstance(value, int) and abs(value) < 2**1000) or (isinstance(value, float) and math.isfinite(value))


def _fail(name: str, fault: str) -> NoReturn:
    raise ValueError(f"{name} {fault}; run the claim again.")
