"""Two watched runs side by side: what was set differently, and the first step, layer and kink at which they part."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
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


@dataclass(frozen=True)
class Comparison:
    """Where two runs part, by three signs, each None where it never shows or could not be compared.

    weights: the first common step after which a layer's checksum differs; `equal`: the last common step before it at
    which all were the same; `layer`: the first layer, in the model's order, that differs there. With `same_start` they
    differ from the first common step on, and the loss before it was the same to the bit. kink: the first common
    measured step before which other pieces were active, as (step, layer, operation) of the first that differs; with
    `same_weights` they were active at weights that were still equal, so that the data or the random numbers differ.
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
        if not self.compared[1]:
            return "Kinks: no common measured step says which pieces were active."
        if self.kink is None:
            return f"The same pieces were active before all {_steps(self.compared[1], 'common measured step')}."
        step, layer, operation = self.kink
        why = (
            " The weights were still equal there, so the data or the random numbers differ."
            if self.same_weights
            else ""
        )
        where = f"{operation} in layer {layer}" if layer else operation
        return f"The first kink at which they part is {where}, whose active pieces differ before step {step}.{why}"

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
    parted = (found.weights is not None, found.kink is not None, found.loss is not None)
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
    kink = next((k for step, x, y in selections if (k := _first_kink(step, x, y)) is not None), None)
    losses = _common(a, b, "trace", lambda row: row.get("loss")) or _common(a, b, "step", lambda row: row.get("loss"))
    loss = next(((s, x, y) for s, p, q in losses if _apart(x := number(p), y := number(q))), None)
    return Comparison(
        a.name,
        b.name,
        weights,
        equal,
        layer,
        kink,
        kink is not None and equal is not None and kink[0] <= equal + 1,
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


def _first_kink(step: int, x: Sequence[Sequence[Any]], y: Sequence[Sequence[Any]]) -> tuple[int, str, str] | None:
    """The first operation, in the order of the run, that is another or has another digest."""
    for mine, other in zip(x, y):
        if mine != other:
            return step, str(mine[0]), str(mine[1])
    if len(x) == len(y):
        return None
    extra = max(x, y, key=len)[min(len(x), len(y))]
    return step, str(extra[0]), str(extra[1])


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
