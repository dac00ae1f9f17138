"""Two watched runs side by side: what was set differently, and the first step, layer and kink at which they part."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

from nonsmooth.pages import document, write_whole
from nonsmooth.pages.numbers import show
from nonsmooth.torch.run_report.folder import Run, number, read_run
from nonsmooth.torch.run_report.overlay import overlaid
from nonsmooth.torch.run_report.page import findings_of, settings_of

__all__ = ["Comparison", "compare", "write_comparison"]

APART = 1e-3
"""The part of the loss by which two losses differ before it is said so."""
FEW = 10
"""The common measured steps below which the checksums are called in."""


@dataclass(frozen=True)
class Comparison:
    """Where two runs part, by three signs, each None where it never shows or could not be compared.

    weights: the first common step after which a layer's checksum differs; `equal`: the last common step before it at
    which all were the same; `layer`: the first layer, in the model's order, that differs there. With `same_start` they
    differ from the first common step on, and the loss before it was the same to the bit. kink: the first common
    measured step before which other pieces were active, as (step, layer, operation) of the first that differs.
    operations: in its place where not even the operations with kinks are the same there: (step, number of the first
    that is another, a's, b's), each (layer, operation), or None where that run has no more. kinks: how many each run
    has there. With `same_weights` the weights were still equal there, so that the data or the random numbers differ.
    loss: the first common step at which the losses differ by more than 10⁻³ of the larger, as (step, a's, b's).
    compared: common steps with checksums, with selections, with losses. settings: (name, a's, b's) of what was set
    differently. remarks: sentences on what could not be compared. As text, all of it in sentences.

    >>> print(Comparison("A", "B", weights=120, equal=119, layer="0", compared=(200, 0, 0)))
    A against B
      The weights part between step 119 and 120: layer 0 is the first that differs.
      Kinks: no common measured step says which pieces were active.
      Loss: no common step has the loss of both.
    """

    a: str
    b: str
    weights: int | None = None
    equal: int | None = None
    layer: str | None = None
    kink: tuple[int, str, str] | None = None
    operations: tuple[int, int, tuple[str, str] | None, tuple[str, str] | None] | None = None
    kinks: tuple[int, int] = (0, 0)
    same_weights: bool = False
    same_start: bool = False
    loss: tuple[int, float, float] | None = None
    compared: tuple[int, int, int] = (0, 0, 0)
    settings: tuple[tuple[str, str, str], ...] = ()
    remarks: tuple[str, ...] = ()

    @property
    def sentences(self) -> tuple[str, str, str]:
        """On the weights, the kinks and the loss."""
        return self._on_weights(), self._on_kinks(), self._on_loss()

    def _on_weights(self) -> str:
        if not self.compared[0]:
            return "Weights: no common step has the checksums of both."
        if self.weights is None:
            return f"The weights never part: they are equal, layer by layer, at all {_steps(self.compared[0])}."
        first = f"layer {self.layer or 'the model itself'} is the first that differs"
        if self.equal is None:
            return f"The weights differ from the first common step on, step {self.weights}: {first}. " + (
                "The loss before it is the same, so they seem to have begun alike."
                if self.same_start
                else "Whether they began alike is not in the rows."
            )
        return f"The weights part between step {self.equal} and {self.weights}: {first}."

    def _on_kinks(self) -> str:
        few = self._on_few()
        if not self.compared[1]:
            return "Kinks: no common measured step says which pieces were active."
        if self.operations is not None:
            return f"{self._on_operations()}{few}"
        if self.kink is None:
            return f"The same pieces were active before all {_steps(self.compared[1], 'common measured step')}.{few}"
        step, layer, operation = self.kink
        why = (
            " The weights were still equal there, so the data or the random numbers differ."
            if self.same_weights
            else ""
        )
        where = _place((layer, operation))
        return (
            f"The first kink at which they part is {where}, whose active pieces differ before step {step}, "
            f"of {_steps(self.compared[1], 'common measured step')}.{why}{few}"
        )

    def _on_operations(self) -> str:
        step, which, a, b = self.operations or (0, 0, None, None)
        for name, other, count, first in ((self.a, self.b, self.kinks[1], b), (self.b, self.a, self.kinks[0], a)):
            if first is not None and not self.kinks[name == self.b]:
                many = f"{count} operation{'s' * (count != 1)} with kinks"
                return f"{name} has no kinks at all before step {step}; {other} has {many}, first {_place(first)}."
        there = [f"{_place(one)} in {name}" if one else f"there is none in {name}"
                 for one, name in ((a, self.a), (b, self.b))]  # fmt: skip
        if a is None:
            there.reverse()
        return f"The runs have other operations: kink {which} is {' and '.join(there)}, before step {step}."

    def _on_few(self) -> str:
        """Where the checksums of trace rows say more than the few measured steps."""
        if not 0 < self.compared[1] < FEW or not self.compared[0]:
            return ""
        if self.weights is None:
            parts = "the weights never part"
        elif self.equal is None:
            parts = f"the weights differ from step {self.weights} on"
        else:
            parts = f"the weights part between step {self.equal} and {self.weights}"
        only = f" Only {_steps(self.compared[1], 'measured step')} in common;"
        return f"{only} by the checksums of {_steps(self.compared[0])} {parts}."

    def _on_loss(self) -> str:
        if not self.compared[2]:
            return "Loss: no common step has the loss of both."
        if self.loss is None:
            return f"The losses stay within 10⁻³ of each other at all {_steps(self.compared[2])}."
        step, a, b = self.loss
        return f"The losses differ by more than 10⁻³ of the larger from step {step} on: {show(a)} and {show(b)}."

    @property
    def text(self) -> str:
        """For the terminal."""
        lines = [f"{self.a} against {self.b}", *(f"  {said}" for said in self.sentences)]
        if self.settings:
            lines.append("  Set differently:")
            wide = max(len(name) for name, _, _ in self.settings)
            lines += [f"    {name:{wide}}  {a or '—'}  |  {b or '—'}" for name, a, b in self.settings]
        return "\n".join([*lines, *(f"  {remark}" for remark in self.remarks)])

    def __str__(self) -> str:
        return self.text


def _place(kink: tuple[str, str]) -> str:
    layer, operation = kink
    return f"{operation} in layer {layer}" if layer else operation


def _steps(n: int, word: str = "common step") -> str:
    return f"{n} {word}{'s' * (n != 1)}"


def compare(a: str | Path, b: str | Path) -> Comparison:
    """Two folders of watched runs. Checksums and losses are those of "trace" rows, selections those of "step" rows.

    Where no trace row has a loss the probes' losses are compared. A step counts as common where both runs have a row
    of it. Raises ValueError, in one sentence, where a folder is not that of a watched run.

    >>> compare("no-such-run", "another")
    Traceback (most recent call last):
    ValueError: no-such-run: holds no watched run (neither rows.jsonl nor run.json); give the folder of a Monitor.
    """
    return _compared(*_read(a, b))


def write_comparison(a: str | Path, b: str | Path, target: str | Path) -> Path:
    """The page of both runs: where they part, what was set differently, curves over each other, findings.

    Raises ValueError, in one sentence, for a folder that is not that of a watched run or a file that cannot be written.

    >>> write_comparison("no-such-run", "another", "comparison.html")
    Traceback (most recent call last):
    ValueError: no-such-run: holds no watched run (neither rows.jsonl nor run.json); give the folder of a Monitor.
    """
    runs = _read(a, b)
    found = _compared(*runs)
    sections = overlaid(*runs)
    parted = (found.weights is not None, (found.kink or found.operations) is not None, found.loss is not None)
    page = document(
        "nonsmooth.torch.run_report",
        "comparison.html",
        drawn=[plot for section in sections for plot in section.plots],
        styles=["run.css"],
        found=found,
        signs=list(zip(("Weights", "Kinks", "Loss"), map(_look, parted, found.compared), found.sentences, strict=True)),
        sections=sections,
        runs=[(run, findings_of(run.facts)) for run in runs],
    )
    return write_whole(Path(target), page, "choose another file")


def _look(parts: bool, compared: int) -> tuple[str, str]:
    """The look and the word of a sign."""
    if not compared:
        return "untested", "not compared"
    return ("mixed", "they part") if parts else ("supported", "alike")


def _read(a: str | Path, b: str | Path) -> tuple[Run, Run]:
    """Both runs, under names that differ."""
    first, second = read_run(a), read_run(b)
    if first.name != second.name:
        return first, second
    names = [f"{Path(p).resolve().parent.name}/{run.name}" for p, run in ((a, first), (b, second))]
    if names[0] == names[1]:
        names = [f"A: {first.name}", f"B: {second.name}"]
    return tuple(Run(name, r.facts, r.rows, r.remarks) for name, r in zip(names, (first, second), strict=True))  # type: ignore[return-value]


def _compared(a: Run, b: Run) -> Comparison:
    remarks = [f"{run.name}: {remark}" for run in (a, b) for remark in run.remarks]
    checksums = _common(a, b, "trace", lambda row: row.get("weights") or None)
    equal, weights, layer = _weights(checksums)
    for run, only in zip((a, b), _layers_of_one(checksums), strict=True):
        if only:
            remarks.append(f"Only {run.name} has the {'layer' if len(only) == 1 else 'layers'} {', '.join(only)}.")
    selections = _common(a, b, "step", lambda row: row.get("selection"))
    kink = operations = None
    kinks = (0, 0)
    for step, x, y in selections:
        operations, kinks = _other_operation(step, x, y), (len(x), len(y))
        kink = None if operations else _first_kink(step, x, y)
        if operations or kink:
            break
    parted = (kink or operations or (None,))[0]
    losses = _common(a, b, "trace", lambda row: row.get("loss")) or _common(a, b, "step", lambda row: row.get("loss"))
    loss = next(((s, x, y) for s, p, q in losses if _apart(x := number(p), y := number(q))), None)
    return Comparison(
        a.name,
        b.name,
        weights,
        equal,
        layer,
        kink,
        operations,
        kinks,
        parted is not None and equal is not None and parted <= equal + 1,
        equal is None and any(step == weights and x == y for step, x, y in losses),
        loss,
        (len(checksums), len(selections), len(losses)),
        tuple(_settings(a, b)),
        tuple(remarks),
    )


def _common(a: Run, b: Run, kind: str, value: Callable[[dict[str, Any]], Any]) -> list[tuple[int, Any, Any]]:
    """(step, a's value, b's value) at the steps where both have one."""
    left, right = ({row["step"]: v for row in run.of(kind) if (v := value(row)) is not None} for run in (a, b))
    return [(step, left[step], right[step]) for step in sorted(left.keys() & right.keys())]


def _weights(checksums: Sequence[tuple[int, Any, Any]]) -> tuple[int | None, int | None, str | None]:
    """The last step at which all are equal, the first at which one differs, and which."""
    equal = None
    for step, x, y in checksums:
        layer = next((name for name in [*x, *(n for n in y if n not in x)] if x.get(name) != y.get(name)), None)
        if layer is not None:
            return equal, step, layer
        equal = step
    return equal, None, None


def _layers_of_one(
    checksums: Sequence[tuple[int, Mapping[str, Any], Mapping[str, Any]]],
) -> tuple[list[str], list[str]]:
    _, x, y = checksums[0] if checksums else (0, {}, {})
    return [name for name in x if name not in y], [name for name in y if name not in x]


def _other_operation(
    step: int, x: Sequence[Sequence[Any]], y: Sequence[Sequence[Any]]
) -> tuple[int, int, tuple[str, str] | None, tuple[str, str] | None] | None:
    """The first operation, in the order of the run, that is another in the other run: its number, and both."""
    for which, (mine, other) in enumerate(zip_longest(x, y), 1):
        a, b = (None if one is None else (str(one[0]), str(one[1])) for one in (mine, other))
        if a != b:
            return step, which, a, b
    return None


def _first_kink(step: int, x: Sequence[Sequence[Any]], y: Sequence[Sequence[Any]]) -> tuple[int, str, str] | None:
    """The first operation, in the order of the run, that has another digest; the operations are the same."""
    return next(((step, str(p[0]), str(p[1])) for p, q in zip(x, y, strict=True) if p != q), None)


def _apart(x: float, y: float) -> bool:
    if math.isnan(x) or math.isnan(y) or math.isinf(x) or math.isinf(y):
        return not (x == y or (math.isnan(x) and math.isnan(y)))
    return abs(x - y) > APART * max(abs(x), abs(y))


def _settings(a: Run, b: Run) -> list[tuple[str, str, str]]:
    x, y = settings_of(a.facts), settings_of(b.facts)
    for facts, found in ((a.facts, x), (b.facts, y)):
        found |= {name: str(facts[name]) for name in ("torch", "python", "nonsmooth") if facts.get(name)}
        found |= {"command": " ".join(map(str, facts["command"]))} if facts.get("command") else {}
    names = dict.fromkeys([*x, *y])
    return [(name, x.get(name, ""), y.get(name, "")) for name in names if x.get(name, "") != y.get(name, "")]
