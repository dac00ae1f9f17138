"""One finding: what was seen in a run, by which evidence, why it matters and what to do about it."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

__all__ = ["Finding", "summary", "text"]

LEVELS = ("problem", "note", "fine")
WIDTH = 100
LONGEST = {"evidence": 4, "why": 2, "do": 3}
"""How many lines of a terminal each part may take, so that a finding is read at a glance; `to_dict` has it all."""


@dataclass(frozen=True)
class Finding:
    """`level`: "problem", "note" or "fine". `title` says the thing with its number; `evidence` how often it was seen,
    on which data and how surely; `lines` is code to add, or ""; `number` is the title's, in `unit`, or None.

    >>> print(Finding("flips", "note", "12 units switch.", "One step.", "It matters.", "Look.", number=12.0))
    NOTE     12 units switch.
             Evidence: One step.
             Why: It matters.
             Do: Look.
    """

    id: str
    level: str
    title: str
    evidence: str
    why: str = ""
    do: str = ""
    lines: str = ""
    number: float | None = None
    unit: str = ""

    def __post_init__(self) -> None:
        if self.level not in LEVELS:
            raise ValueError(f"Finding: level must be one of {', '.join(LEVELS)}, not {self.level!r}.")
        if self.number is not None and not math.isfinite(self.number):
            object.__setattr__(self, "number", None)

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it, the fields by name.

        >>> Finding("flips", "note", "12 units switch.", "One step.").to_dict()["level"]
        'note'
        """
        return asdict(self)

    def __str__(self) -> str:
        indent = " " * 9
        lines = _wrapped(self.title, f"{self.level.upper():<9}", indent)
        for part, longest in LONGEST.items():
            said = getattr(self, part)
            if said:
                lines += _wrapped(f"{part.capitalize()}: {said}", indent, indent, longest)
        return "\n".join([*lines, *(f"{indent}    {line}".rstrip() for line in self.lines.splitlines())])


def _wrapped(said: str, first: str, indent: str, longest: int | None = None) -> list[str]:
    """Lines of WIDTH, a number and its % on one."""
    held = said.replace(" %", "\u00a0%")
    lines = textwrap.wrap(held, WIDTH, initial_indent=first, subsequent_indent=indent, max_lines=longest)
    return [line.replace("\u00a0", " ") for line in lines]


def text(found: Sequence[Finding]) -> str:
    """All findings for a terminal, under the line that sums them up.

    >>> print(text([Finding("ties", "fine", "No ties.", "None of 8 numbers.")]))
    findings: nothing that is a problem; 1 fine. First: No ties.
    <BLANKLINE>
    FINE     No ties.
             Evidence: None of 8 numbers.
    """
    return "\n\n".join([summary(found), *(str(finding) for finding in found)])


def summary(found: Sequence[Finding]) -> str:
    """One line for a log: how many of each level, and the first.

    >>> summary([Finding("crashed", "problem", "It crashed.", "…"), Finding("ties", "note", "2 ties.", "…")])
    'findings: 1 problem, 1 note. First: It crashed.'
    """
    if not found:
        return "findings: none, for nothing was measured."
    counts = {level: sum(finding.level == level for finding in found) for level in LEVELS}
    names = {"problem": "problem", "note": "note", "fine": "fine"}
    said = [f"{n} {names[k]}{'s' if n > 1 and k != 'fine' else ''}" for k, n in counts.items() if n]
    calm = "" if counts["problem"] else "nothing that is a problem; "
    return f"findings: {calm}{', '.join(said)}. First: {found[0].title}"
