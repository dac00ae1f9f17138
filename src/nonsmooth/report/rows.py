"""What a row must hold before it is shown; each fault is one sentence."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NoReturn

from nonsmooth.ledger import ABSTRACT, Verdict, short
from nonsmooth.pages.figures import is_number

__all__ = ["check_rows"]

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
    if not all(is_number(value) for column in columns for value in row[column]):
        _fail(name, "has a measured, noise or predicted that is neither a finite number nor null")
    if not all(
        isinstance(m, dict) and isinstance(m.get("what"), str) and m.get("verdict") in list(Verdict)
        for m in row["mutants"]
    ):
        _fail(name, "has a mutant without 'what' and 'verdict'")
    if not all(isinstance(value, str) for value in row["versions"].values()):
        _fail(name, "has a version that is not text")


def _fail(name: str, fault: str) -> NoReturn:
    raise ValueError(f"{short(name)} {short(fault)}; run the claim again.")
