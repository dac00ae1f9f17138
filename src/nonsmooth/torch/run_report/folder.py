"""The folder of a watched run: rows.jsonl, a row a line, appended as they come; run.json, the facts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nonsmooth.ledger import from_json, short
from nonsmooth.pages.numbers import setting

__all__ = ["Run", "check_facts", "check_rows", "number", "read_run", "text"]

FACTS: dict[str, type] = {
    "command": list,
    "optimizer": dict,
    "model": dict,
    "made": dict,
    "skipped": dict,
    "missing": list,
    "census": dict,
    "what_if": list,
    "findings": list,
}
"""The facts that are not a number or a text."""

RECORDS = ("missing", "what_if", "findings")


@dataclass(frozen=True)
class Run:
    """What a folder holds: the facts, the rows in their order, and sentences on what is amiss with the files.

    >>> run = Run("a", {"steps": 2}, ({"step": 1, "kind": "trace"}, {"step": 2, "kind": "step", "error": "E"}), ())
    >>> len(run.of("trace")), len(run.of("step"))
    (1, 0)
    """

    name: str
    facts: dict[str, Any]
    rows: tuple[dict[str, Any], ...]
    remarks: tuple[str, ...]

    def of(self, kind: str) -> list[dict[str, Any]]:
        """The rows of one kind whose probe did not fail, by their step."""
        mine = (row for row in self.rows if row["kind"] == kind and "error" not in row)
        return sorted(mine, key=lambda row: row["step"])


def read_run(folder: str | Path) -> Run:
    """rows.jsonl and run.json of a folder. A last line that was cut off, or a file that is not there, is a remark.

    Raises ValueError, in one sentence, where neither file is there or one cannot be read or is not what it should be.

    >>> read_run("no-such-folder")
    Traceback (most recent call last):
    ValueError: no-such-folder: holds no watched run (neither rows.jsonl nor run.json); give the folder of a Monitor.
    """
    folder = Path(folder)
    rows_at, facts_at = folder / "rows.jsonl", folder / "run.json"
    remarks: list[str] = []
    if not rows_at.exists() and not facts_at.exists():
        raise ValueError(
            f"{folder}: holds no watched run (neither rows.jsonl nor run.json); give the folder of a Monitor."
        )
    facts: Any = {}
    if facts_at.exists():
        try:
            facts = from_json(_read(facts_at))
        except ValueError as error:
            raise ValueError(f"{facts_at}: is not JSON ({short(error)}); watch the run again.") from error
        check_facts(facts, str(facts_at))
    else:
        remarks.append("There is no run.json: the run was stopped before its facts were written.")
    rows: list[dict[str, Any]] = []
    if rows_at.exists():
        rows, cut = _rows(rows_at)
        rows = _once(rows)
        if cut:
            remarks.append("The last line of rows.jsonl was cut off, as when a run is killed; it is left out.")
    else:
        remarks.append("There is no rows.jsonl: no row was written.")
    return Run(folder.resolve().name, facts, tuple(rows), tuple(remarks))


def _read(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: cannot be read ({error}); give the folder of a watched run.") from error


def _rows(path: Path) -> tuple[list[dict[str, Any]], bool]:
    """The rows, and whether the last line was cut off: it is no JSON, and no line follows."""
    try:
        whole = path.read_bytes()
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror}); give the folder of a watched run.") from error
    lines = whole.split(b"\n")
    rows: list[Any] = []
    for i, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            rows.append(from_json(line.decode("utf-8")))
        except ValueError as error:
            if i == len(lines):
                return check_rows(rows, str(path)), True
            raise ValueError(f"{path}: line {i} is not JSON ({short(error)}); watch the run again.") from error
    return check_rows(rows, str(path)), False


def _once(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of a run that went on from a checkpoint: what stands twice since then counts as the second life has it.

    >>> [row["at"] for row in _once([{"step": s, "kind": "step", "at": at} for s, at in ((1, 0), (2, 1), (2, 2))])]
    [0, 2]
    """
    last = {(row["step"], row["kind"]): i for i, row in enumerate(rows)}
    return [row for i, row in enumerate(rows) if last[row["step"], row["kind"]] == i]


def check_rows(rows: Sequence[Any], name: str) -> list[dict[str, Any]]:
    """The rows, if each is an object with its step and kind; ValueError, in one sentence, for the first that is not.

    >>> check_rows([{"step": "1"}], "rows.jsonl")
    Traceback (most recent call last):
    ValueError: rows.jsonl: row 1 is not one of a watched run (no whole number 'step'); watch the run again.
    """
    for i, row in enumerate(rows, 1):
        fault = ""
        if not isinstance(row, dict):
            fault = "not an object"
        elif not isinstance(row.get("step"), int) or isinstance(row["step"], bool):
            fault = "no whole number 'step'"
        elif not isinstance(row.get("kind"), str):
            fault = "no text 'kind'"
        else:
            maps = ("kink_share_by_layer", "flips_by_layer", "weights" if row["kind"] == "trace" else "")
            wrong = [key for key in maps if not isinstance(row.get(key) or {}, dict)]
            selection = [] if row.get("selection") is None else row["selection"]
            if not isinstance(selection, list) or not all(isinstance(s, list) and len(s) == 3 for s in selection):
                wrong.append("selection")
            fault = f"{wrong[0]!r} of the wrong kind" if wrong else ""
        if fault:
            raise ValueError(f"{name}: row {i} is not one of a watched run ({fault}); watch the run again.")
    return list(rows)


def check_facts(facts: Any, name: str) -> None:
    """Raises ValueError, in one sentence, for facts that are not those of a watched run.

    >>> check_facts({"findings": "none"}, "run.json")
    Traceback (most recent call last):
    ValueError: run.json: 'findings' is of the wrong kind (str); watch the run again.
    """
    if not isinstance(facts, dict):
        raise ValueError(f"{name}: is not an object but a {type(facts).__name__}; watch the run again.")
    given = {key: facts[key] for key in FACTS if facts.get(key) is not None}
    for key, value in given.items():
        if not isinstance(value, FACTS[key]):
            raise ValueError(f"{name}: {key!r} is of the wrong kind ({type(value).__name__}); watch the run again.")
    census, optimizer = facts.get("census") or {}, facts.get("optimizer") or {}
    lists = {key: given.get(key) or [] for key in RECORDS}
    lists |= {f"census.{key}": census.get(key) or [] for key in ("operations", "hidden")}
    lists |= {"optimizer.groups": optimizer.get("groups") or []}
    for key, records in lists.items():
        if not isinstance(records, list) or not all(isinstance(record, dict) for record in records):
            raise ValueError(f"{name}: {key!r} is not a list of objects; watch the run again.")


def number(value: Any) -> float:
    """A number of a row, which writes what is not finite as text; nan for what is none.

    >>> number(2), number("-inf"), number(None), number("two")
    (2.0, -inf, nan, nan)
    """
    if isinstance(value, bool):
        return math.nan
    if isinstance(value, (int, float)):
        try:
            return float(value)
        except OverflowError:
            return math.inf if value > 0 else -math.inf
    return float(value) if value in ("nan", "inf", "-inf") else math.nan


def text(value: Any) -> str:
    """A fact as text; nothing for what is not there.

    >>> text(None), text("a"), text(0.5), text(True)
    ('', 'a', '0.5', 'yes')
    """
    return "" if value is None else value if isinstance(value, str) else setting(value)
