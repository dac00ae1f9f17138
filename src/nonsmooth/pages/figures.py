"""Figures and tables as plain data: what they must hold, and how the pages' script and templates take them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from nonsmooth.pages.numbers import align, readable, show

__all__ = ["check_plots", "drawn_plot", "drawn_table", "is_number", "is_table"]

TABLE: dict[str, Any] = {"columns": list, "rows": list, "title": str, "says": str}
PLOT: dict[str, Any] = {"x": dict, "y": dict, "lines": list, "heat": (dict, type(None)), "title": str, "says": str}
STANDING = ("—", "∞", "diverged")
"""The words that stand for a number in a column of numbers."""

STYLES = ("line", "dash", "markers")


def drawn_plot(plot: Mapping[str, Any], stem: str, index: int) -> dict[str, Any]:
    """A figure as the script draws it: readable words, eight digits, a text alternative.

    Figures of one `stem` share the colours of their series; `index` counts them from 0.

    >>> from nonsmooth.plots import Axis, Line, Plot
    >>> plot = Plot(Axis("step"), Axis("loss"), [Line("SGD", [1], [2.0])], title="A run").to_dict()
    >>> drawn = drawn_plot(plot, "run", 0)
    >>> drawn["label"], drawn["file"]
    ('A run. loss against step, with SGD.', 'run-1')
    """
    drawn = _rounded(plot)
    title, says = drawn["title"], drawn["says"]
    lines = ", ".join(line["name"] for line in drawn["lines"] if line["name"])
    axes = f"{drawn['y']['title']} against {drawn['x']['title']}" + (f", with {lines}" if lines else "")
    drawn["label"] = ". ".join(part.rstrip(".") for part in (title, says, axes) if part) + "."
    drawn["file"] = f"{stem}-{index + 1}"
    drawn["claim"] = stem
    drawn["kind"] = "plot"
    return drawn


def drawn_table(table: Mapping[str, Any], stem: str, index: int) -> dict[str, Any]:
    """A table as the template writes it: numbers to four digits, their points in line; `raw` is what is saved.

    >>> drawn_table({"columns": ["rule", "gap"], "rows": [["SGD", 0.123456]], "title": "", "says": ""}, "a", 0)["rows"]
    [[('SGD', False), ('0.1235', True)]]
    """
    file = f"{stem}-{index + 1}"
    columns = [[row[i] for row in table["rows"]] for i in range(len(table["columns"]))]
    numeric = [_is_numeric(column) for column in columns]
    texts = [
        align([c if isinstance(c, str) else show(c) for c in column])
        if number
        else [c if isinstance(c, str) else show(c) for c in column]
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


def _is_numeric(column: Sequence[Any]) -> bool:
    texts = {cell for cell in column if isinstance(cell, str)}
    return texts <= set(STANDING) and any(not isinstance(cell, str) for cell in column)


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
        if not all(isinstance(cell, str) or is_number(cell) for cell in row):
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
    return isinstance(column, list) and all(map(is_number, column))


def is_number(value: Any) -> bool:
    """A number that JSON and a float can hold, or null.

    >>> is_number(1.5), is_number(None), is_number(float("nan")), is_number(True)
    (True, True, False, False)
    """
    if value is None or isinstance(value, bool):
        return value is None
    return (isinstance(value, int) and abs(value) < 2**1000) or (isinstance(value, float) and math.isfinite(value))
