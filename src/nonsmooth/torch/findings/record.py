"""The stored record of a run, as the findings read it: rows by kind, the optimiser, the trials."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from nonsmooth.torch.findings.numbers import finite, last_third, mapping, say, sequence

__all__ = ["Record", "Trial"]

Row = Mapping[str, Any]

TRIAL_MARGIN = 0.01
"""A trial helped, or harmed, where its loss is off that of the run as it is by more than this part of it: a trial is
run once, and what is smaller may be the noise of its last tenth."""


@dataclass(frozen=True)
class Trial:
    """One row of `what_if` beside the run as it is: `verdict` is "helped", "harmed", "no difference" or "unclear".

    >>> Trial({"loss_after": 0.3, "steps": 50, "loss_before": 0.5}, {"loss_after": 0.4}).verdict
    'helped'
    """

    row: Row
    base: Row

    @property
    def verdict(self) -> str:
        if self.row.get("diverged") is True:
            return "harmed"
        after, base = finite(self.row, "loss_after"), finite(self.base, "loss_after")
        if base is None and self.base.get("diverged") is not True:
            base = finite(self.row, "loss_before")
        if after is None:
            return "unclear"
        if base is None:
            return "helped" if self.base.get("diverged") is True else "unclear"
        margin = TRIAL_MARGIN * abs(base)
        return "helped" if after < base - margin else "harmed" if after > base + margin else "no difference"

    def told(self, change: str) -> str:
        """The trial in one sentence; `change` says what was changed."""
        before, after = finite(self.row, "loss_before"), finite(self.row, "loss_after")
        steps = finite(self.row, "steps")
        head = f"Tried once from the end of the run{f' for {steps:g} steps' if steps else ''}: {change} "
        if self.row.get("diverged") is True:
            return head + "diverged."
        if after is None:
            return head + "gave no loss that could be read."
        moved = f"took the loss from {say(before)} to {say(after)}" if before is not None else f"ended at {say(after)}"
        base = finite(self.base, "loss_after")
        beside = f"; unchanged it went to {say(base)}" if base is not None else ""
        if base is None and self.base.get("diverged") is True:
            beside = "; unchanged it diverged"
        return f"{head}{moved}{beside}."


AT = re.compile(r" (of|at) step [0-9]+")
"""Which step a batch was of: in each row, not in words about many."""


@dataclass(frozen=True, eq=False)
class Record:
    """Facts and rows, with what is broken or missing left out.

    >>> record = Record({"optimizer": {"name": "SGD", "groups": [{"lr": 0.5}]}}, [{"kind": "step", "step": 3}])
    >>> record.optimizer, record.lr, record.plain, len(record.steps)
    ('SGD', 0.5, True, 1)
    """

    facts: Mapping[str, Any]
    rows: Sequence[Row]

    def of(self, kind: str, failed: bool = False) -> list[Row]:
        """The rows of a kind in their order: those that hold a measurement, or those that failed."""
        found = (row for row in self.rows if isinstance(row, Mapping) and row.get("kind") == kind)
        return [row for row in found if bool(row.get("error")) is failed]

    @cached_property
    def steps(self) -> list[Row]:
        return self.of("step")

    @cached_property
    def stability(self) -> list[Row]:
        """The sharpness rows whose estimate converged; the others say nothing."""
        return [row for row in self.of("stability") if row.get("converged") is True]

    @cached_property
    def measured(self) -> list[Row]:
        """Steps and converged sharpness, in the order in which they were measured."""
        kept = {id(row) for row in (*self.steps, *self.stability)}
        return [row for row in self.rows if id(row) in kept]

    @cached_property
    def traces(self) -> list[Row]:
        return self.of("trace")

    # --- the optimiser -----------------------------------------------------------------------------------------------

    @property
    def optimizer(self) -> str:
        name = mapping(self.facts.get("optimizer")).get("name")
        return name if isinstance(name, str) else ""

    @property
    def groups(self) -> list[Row]:
        return [mapping(group) for group in sequence(mapping(self.facts.get("optimizer")).get("groups"))]

    @property
    def wrapped(self) -> str:
        name = mapping(self.facts.get("optimizer")).get("wrapped")
        return name if isinstance(name, str) else ""

    @property
    def descent(self) -> bool:
        """SGD with one learning rate: its steps and its sharpness are in the units of the loss itself."""
        return self.optimizer == "SGD" and len({group.get("lr") for group in self.groups}) <= 1

    @property
    def plain(self) -> bool:
        """That, without momentum: gradient descent, if of a minibatch."""
        return self.descent and all(not finite(group, "momentum") for group in self.groups)

    @property
    def lr(self) -> float | None:
        """The last learning rate that is known, of the first group."""
        for row in reversed(self.traces):
            rates = sequence(row.get("lr"))
            value = finite({"lr": rates[0]}, "lr") if rates else None
            if value is not None:
                return value
        return finite(self.groups[0], "lr") if self.groups else None

    @property
    def highest_lr(self) -> float | None:
        """The largest learning rate that was seen."""
        seen = [finite(group, "lr") for group in self.groups]
        seen += [finite({"lr": rate}, "lr") for row in self.traces for rate in sequence(row.get("lr"))]
        return max((lr for lr in seen if lr is not None), default=None)

    # --- on what it was measured -------------------------------------------------------------------------------------

    def data(self, rows: Sequence[Row]) -> str:
        """On which data the rows were measured, and what that means for them, as a sentence."""
        kinds = list(dict.fromkeys(AT.sub("", str(row["data"])) for row in rows if row.get("data")))
        if not kinds:
            return "On which data is not known."
        said = f"Data: {'; '.join(kinds[:2])}."
        return said + (
            " One batch a time: single values are noisy, unless it is all the data." if self.noisy(rows) else ""
        )

    def noisy(self, rows: Sequence[Row]) -> bool:
        """Whether probes are of single minibatches: the data's words say "batch", and not "full batch"."""
        words = " ".join(str(row.get("data", "")) for row in rows).lower()
        return "batch" in words.replace("full batch", "").replace("full-batch", "").replace("whole batch", "")

    def where(self, rows: Sequence[Row], what: str = "measured steps") -> str:
        """How many rows, and of which steps: "12 measured steps, steps 3 to 90"."""
        at = [step for row in rows if (step := finite(row, "step")) is not None]
        what = what.replace("steps", "step").replace("estimates", "estimate") if len(rows) == 1 else what
        between = "" if not at else f", step {at[0]:.0f}" if len(at) == 1 else f", steps {min(at):.0f} to {max(at):.0f}"
        return f"{len(rows)} {what}{between}"

    # --- what it has -------------------------------------------------------------------------------------------------

    @cached_property
    def operations(self) -> list[Row]:
        return [mapping(row) for row in sequence(mapping(self.facts.get("census")).get("operations"))]

    @cached_property
    def kinks(self) -> list[Row]:
        """The operations of the census with kinks that a gradient passes."""
        kinds = ("C⁰", "discontinuous")
        return [r for r in self.operations if r.get("smoothness") in kinds and r.get("differentiated") is not False]

    @property
    def kink_names(self) -> str:
        """What the kinks are: "relu", "kinks (relu, max_pool2d)", or "kinks"."""
        names = list(dict.fromkeys(str(row.get("name")) for row in self.kinks if row.get("name")))
        if not names:
            chosen = [sequence(choice) for row in self.steps[-1:] for choice in sequence(row.get("selection"))]
            names = list(dict.fromkeys(str(choice[1]) for choice in chosen if len(choice) > 1))
        spelled = ["ReLU" if name in ("relu", "relu_") else name for name in names]
        return "kinks" if not spelled else f"{spelled[0]} switching" if len(spelled) == 1 else _kinks(spelled)

    def trial(self, name: str) -> Trial | None:
        """The trial of that name, beside the run as it is."""
        rows = [mapping(row) for row in sequence(self.facts.get("what_if"))]
        of = {str(row.get("name")): row for row in rows if row}
        return Trial(of[name], of.get("as-it-is", {})) if name in of else None

    def rate(self) -> tuple[str, str]:
        """What to do about a learning rate that is too large: the advice as far as the trial bears it, and its lines.

        >>> half = {"name": "half-lr", "loss_before": 1.0, "loss_after": 2.0, "steps": 50}
        >>> Record({"what_if": [half]}, []).rate()[0].startswith("Half the learning rate is no advice here")
        True
        """
        trial = self.trial("half-lr")
        if trial is None:
            return "Try half the learning rate, or a decay at the end; that was not tried here.", self._halved()
        told = trial.told("half the learning rate")
        if trial.verdict == "helped":
            return f"Halve the learning rate, or decay it at the end. {told}", self._halved()
        if trial.verdict == "unclear":
            return told, ""
        return f"Half the learning rate is no advice here. {told}", ""

    def _halved(self) -> str:
        return "" if not self.lr else f"for group in optimizer.param_groups:\n    group['lr'] = {self.lr / 2:.4g}"


def _kinks(names: list[str]) -> str:
    return f"kinks ({', '.join(names[:3])}{' and others' if len(names) > 3 else ''})"


def last(rows: Sequence[Row], key: str) -> list[float]:
    """The finite values under a key in the last third of the rows.

    >>> last([{"ratio": 1.0}, {"ratio": 2.0}, {"ratio": 3.0}], "ratio")
    [3.0]
    """
    return [value for row in last_third(rows) if (value := finite(row, key)) is not None]
