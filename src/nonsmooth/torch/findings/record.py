"""The stored record of a run, as the findings read it: rows by kind, the optimiser, the trials."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from nonsmooth.torch.findings.numbers import finite, last_third, mapping, number, percent, say, sequence

__all__ = ["Record", "Trial"]

Row = Mapping[str, Any]

TRIAL_MARGIN = 0.01
"""A trial helped, or harmed, where its loss is off that of the run as it is by more than this part of it: a trial is
run once, and what is smaller may be the noise of its last tenth."""


@dataclass(frozen=True)
class Trial:
    """One row of `what_if` beside the run as it is: `verdict` is "helped", "harmed", "no difference" or "unclear".

    frozen: other optimisers step in the script, and their weights stood still in the trial. edited: the script writes
    to weights outside of the optimiser's step, which the trial did not repeat.

    >>> Trial({"loss_after": 0.3, "steps": 50, "loss_before": 0.5}, {"loss_after": 0.4}).verdict
    'helped'
    """

    row: Row
    base: Row
    frozen: bool = False
    edited: bool = False

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
        long = f" for {steps:g} steps" if steps else ""
        head = f"Tried once from the end of the run{long}{self.batches}: {change} "
        others = " What the other optimisers train stood still." if self.frozen else ""
        if self.row.get("diverged") is True:
            return f"{head}diverged.{others}"
        if after is None:
            return f"{head}gave no loss that could be read.{others}"
        moved = f"took the loss from {say(before)} to {say(after)}" if before is not None else f"ended at {say(after)}"
        base = finite(self.base, "loss_after")
        unchanged = (
            "with the optimiser's steps as they are, without the script's own writes," if self.edited else "unchanged"
        )
        beside = f"; {unchanged} it went to {say(base)}" if base is not None else ""
        if base is None and self.base.get("diverged") is True:
            beside = f"; {unchanged} it diverged"
        return f"{head}{moved}{beside}.{others}"

    @property
    def batches(self) -> str:
        """On how many cached batches, as the trial's note has it: " on 3 cached batches", or ""."""
        found = CACHED.search(str(self.row.get("note") or ""))
        if found is None:
            return ""
        count = int(found["count"]) if found["count"] else len(found["steps"].split(","))
        return f" on {count} cached batch{'' if count == 1 else 'es'}"


CACHED = re.compile(r"(?P<count>[0-9]{1,9}) cached batch|the batch(es)? of steps? (?P<steps>[0-9]+(, [0-9]+)*)")
"""How a trial's note names its batches."""
FADED = 0.01
"""A learning rate below a hundredth of its highest: the steps of a trial at it are next to none."""
EARLY = 0.6
"""A last third that ends before three fifths of a run is none of its end."""
EPS = {"float64": 2.0**-52, "float32": 2.0**-23, "float16": 2.0**-10, "bfloat16": 2.0**-7}
ROUNDING = 1e-6
"""Of the loss, where its precision is not known: eight units in the last place of float32."""
ULPS = 4
"""Where it is known, so many of its units: what is less is no rise of the loss, and no failure of a bound."""

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
    def broken(self) -> float | None:
        """The step from which on no loss was finite; None where the last loss is."""
        bad: float | None = None
        for row in self.rows:
            if isinstance(row, Mapping) and row.get("kind") in ("trace", "step") and not row.get("error"):
                seen = [value for key in ("loss", "loss_after") if (value := number(row.get(key))) is not None]
                if seen:
                    bad = None if all(map(math.isfinite, seen)) else finite(row, "step") if bad is None else bad
        return bad

    def _before(self, rows: list[Row]) -> list[Row]:
        """Those of before the loss ceased to be finite: what is measured after it says nothing."""
        end = self.broken
        return rows if end is None else [row for row in rows if (at := finite(row, "step")) is None or at < end]

    @cached_property
    def steps(self) -> list[Row]:
        """The measured steps, up to where the loss ceased to be finite."""
        return self._before(self.of("step"))

    @cached_property
    def stability(self) -> list[Row]:
        """The sharpness rows whose estimate converged; the others say nothing."""
        return self._before([row for row in self.of("stability") if row.get("converged") is True])

    @cached_property
    def chatter(self) -> list[Row]:
        return self._before(self.of("chatter"))

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
    def one_rate(self) -> bool:
        """Whether all groups have one learning rate: only then can it be set for all of them."""
        return len({finite(group, "lr") for group in self.groups}) <= 1

    @property
    def descent(self) -> bool:
        """SGD with the same settings for all: its steps and its sharpness are in the units of the loss itself."""
        keys = ("lr", "momentum", "dampening", "nesterov")
        return self.optimizer == "SGD" and len({str([group.get(key) for key in keys]) for group in self.groups}) <= 1

    @cached_property
    def preconditioned(self) -> bool:
        """Whether sharpness and threshold are in the optimiser's own metric, not in the unit of κ.

        They are not where each step has one threshold on κ. An optimiser without a name, and without steps, may be any.

        >>> row = {"kind": "stability", "ratio": 0.5}
        >>> Record({"optimizer": {"name": "Adam"}}, [row]).preconditioned, Record({}, [row]).preconditioned
        (True, False)
        """
        steps = self.of("step")
        if self.descent or not any("ratio" in row for row in self.of("stability")):
            return False
        return any(row.get("threshold") is None for row in steps) if steps else bool(self.optimizer)

    @property
    def plain(self) -> bool:
        """That, without momentum: gradient descent, if of a minibatch."""
        return self.descent and all(not finite(group, "momentum") for group in self.groups)

    @cached_property
    def traced(self) -> list[tuple[float, list[float | None]]]:
        """The traced steps, and the learning rates of the groups at each."""
        rows = [
            (finite(row, "step"), [finite({"lr": lr}, "lr") for lr in sequence(row.get("lr"))]) for row in self.traces
        ]
        return [(at, rates) for at, rates in rows if at is not None and any(lr is not None for lr in rates)]

    @cached_property
    def rates(self) -> list[tuple[float, list[float | None]]]:
        """As `traced`; then the rates that the optimiser was left with, after the last step.

        They are not added where the facts do not say how many steps there were, unless no step was traced.

        >>> facts = {"steps": 9, "optimizer": {"groups": [{"lr": 0.1}]}}
        >>> Record(facts, [{"kind": "trace", "step": 8, "lr": [0.2]}]).rates
        [(8.0, [0.2]), (9.0, [0.1])]
        """
        left, steps = [finite(group, "lr") for group in self.groups], finite(self.facts, "steps")
        later = not self.traced or (steps is not None and steps >= self.traced[-1][0])
        return [*self.traced, (steps or 0.0, left)] if later and any(lr is not None for lr in left) else self.traced

    @cached_property
    def first_rates(self) -> list[tuple[float, float]]:
        """`rates` of the first group."""
        return [(at, rates[0]) for at, rates in self.rates if rates and rates[0] is not None]

    @property
    def lr(self) -> float | None:
        """The last learning rate that is known, of the first group."""
        return self.first_rates[-1][1] if self.first_rates else None

    def lr_of(self, rows: Sequence[Row]) -> float | None:
        """The last learning rate, or the highest while the rows were measured, where that is lower.

        >>> traces = [{"kind": "trace", "step": t, "lr": [lr]} for t, lr in ((1, 0.02), (9, 5.0))]
        >>> Record({}, traces).lr_of([{"step": 2}, {"step": 8}]), Record({}, traces).lr_of([{"step": 9}])
        (0.02, 5.0)
        """
        at = [step for row in rows if (step := finite(row, "step")) is not None]
        seen = [(step, lr) for step, lr in self.first_rates if at and step <= max(at)]
        during = [lr for step, lr in seen if step >= min(at)] or [lr for _, lr in seen[-1:]]
        return self.lr if not during or self.lr is None else min(self.lr, max(during))

    @property
    def highest_lr(self) -> float | None:
        """The largest learning rate that was seen."""
        seen = [finite(group, "lr") for group in self.groups]
        seen += [lr for _, rates in self.traced for lr in rates]
        return max((lr for lr in seen if lr is not None), default=None)

    @cached_property
    def faded(self) -> str:
        """In words, a schedule that ended near 0: "1e-06, under 0.1 % of its highest"; "" where none did."""
        tracks: dict[int, list[float]] = {}
        for _, seen in self.rates:
            for i, lr in enumerate(seen):
                if lr is not None:
                    tracks.setdefault(i, []).append(lr)
        rates = [(track[-1], max(track)) for track in tracks.values() if max(track) > 0]
        if not rates or any(now >= FADED * top for now, top in rates):
            return ""
        now, top = rates[0]
        return f"{say(now)}, {percent(max(0.0, now / top))} of its highest"

    @property
    def several(self) -> bool:
        """Whether optimisers take turns, each on parameters of its own, as in a GAN."""
        return (finite(self.facts, "optimizers") or 0) > 1

    @property
    def edited(self) -> bool:
        """Whether the script writes to weights outside of the optimiser's step."""
        return self.facts.get("edited") is True

    @property
    def clipped(self) -> str:
        """What a clipped gradient does to a threshold, as a sentence; "" where it is not clipped."""
        if self.facts.get("clipped") is not True:
            return ""
        clip = finite(self.facts, "clip")
        by = f" (.grad was {say(clip)} of it when compared)" if clip is not None and 0 < clip < 1 else ""
        return (
            f" The gradient is clipped{by}: steps are shorter than the learning rate says, and the threshold is then "
            "larger than told here."
        )

    @property
    def rounding(self) -> float:
        """The part of a loss below which a difference is rounding.

        >>> Record({"model": {"dtype": "torch.bfloat16"}}, []).rounding, Record({}, []).rounding
        (0.03125, 1e-06)
        """
        dtype = str(mapping(self.facts.get("model")).get("dtype") or "").removeprefix("torch.")
        known = [EPS[name] for name in (dtype, "float16" if self.facts.get("scaled") is True else "") if name in EPS]
        return ULPS * max(known) if known else ROUNDING

    @property
    def bouncing(self) -> bool:
        """Whether an L1 penalty acts by its gradient, so that its weights bounce about 0."""
        terms = sequence(mapping(self.facts.get("l1")).get("terms"))
        return any(mapping(term).get("through") in ("autograd", "grad") for term in terms)

    # --- on what it was measured -------------------------------------------------------------------------------------

    def data(self, rows: Sequence[Row]) -> str:
        """On which data the rows were measured, and what that means for them, as a sentence."""
        kinds = list(dict.fromkeys(AT.sub("", words) for words in _data(rows)))
        if not kinds:
            return "On which data is not known."
        said = f"Data: {'; '.join(kinds[:2])}."
        return said + (
            " One batch a time: single values are noisy, unless it is all the data." if self.noisy(rows) else ""
        )

    def noisy(self, rows: Sequence[Row]) -> bool:
        """Whether probes are of single minibatches: the data's words say "batch", and not "full batch"."""
        words = " ".join(_data(rows)).lower()
        return "batch" in words.replace("full batch", "").replace("full-batch", "").replace("whole batch", "")

    @cached_property
    def full(self) -> bool:
        """Whether the same full batch came at each step: then nothing is the noise of minibatches."""
        rows = [*self.steps, *self.stability]
        return any("full batch" in str(row.get("data", "")).lower() for row in rows) and not self.noisy(rows)

    def early(self, rows: Sequence[Row]) -> str:
        """How much of the run the rows are of, for a title; "" where they come near to its end.

        >>> Record({"steps": 100}, []).early([{"step": 2}]), Record({"steps": 100}, []).early([{"step": 60}])
        (', in the first 2 % of the run', '')
        """
        at = max((step for row in rows if (step := finite(row, "step")) is not None), default=None)
        steps = finite(self.facts, "steps")
        if at is None or not steps or at >= EARLY * steps:
            return ""
        return f", in the first {math.ceil(max(1.0, 100 * at / steps))} % of the run"

    def late(self, rows: Sequence[Row], what: str = "measured steps") -> str:
        """As `where`, of rows that end with the last: with where in the run that was, if it was not its end.

        >>> Record({"steps": 100}, []).late([{"step": 58}, {"step": 59}])
        '2 measured steps, steps 58 to 59 (the last was at step 59 of 100)'
        """
        said, notes = self.where(rows, what), []
        if self.early(rows):
            at = max(step for row in rows if (step := finite(row, "step")) is not None)
            notes.append(f"the last was at step {at:.0f} of {finite(self.facts, 'steps'):.0f}")
        if self.broken is not None:
            notes.append(f"they speak up to step {self.broken - 1:.0f}: from then on the loss is not finite")
        return f"{said} ({'; '.join(notes)})" if notes else said

    def where(self, rows: Sequence[Row], what: str = "measured steps") -> str:
        """How many rows, and of which steps: "12 measured steps, steps 3 to 90"."""
        at = [step for row in rows if (step := finite(row, "step")) is not None]
        what = re.sub(r"\b(step|estimate|window)s\b", r"\1", what) if len(rows) == 1 else what
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
        return Trial(of[name], of.get("as-it-is", {}), self.several, self.edited) if name in of else None

    def rate(self, rows: Sequence[Row] = ()) -> tuple[str, str]:
        """What to do about a learning rate that was too large in the rows: as far as the trial bears it, and its lines.

        >>> half = {"name": "half-lr", "loss_before": 1.0, "loss_after": 2.0, "steps": 50}
        >>> Record({"what_if": [half]}, []).rate()[0].startswith("Half the learning rate is no advice here")
        True
        """
        if self.several:
            return "Several optimisers step, and trials hold all but one still: no advice on the learning rate.", ""
        if self.faded:
            return f"The learning rate ended at {self.faded}: trials from there say nothing of it.", ""
        trial = self.trial("half-lr")
        if trial is None:
            return "Try half the learning rate, or a decay at the end; that was not tried here.", self._halved(rows)
        told = trial.told("half the learning rate")
        if trial.verdict == "helped":
            return f"Halve the learning rate, or decay it at the end. {told}", self._halved(rows)
        if trial.verdict == "unclear":
            return f"No advice on the learning rate. {told}", ""
        return f"Half the learning rate is no advice here. {told}", ""

    def _halved(self, rows: Sequence[Row]) -> str:
        lr = self.lr_of(rows)
        return self.setting(lr / 2, 0.5) if lr else ""

    def setting(self, lr: float, ratio: float) -> str:
        """The lines that set all groups to a learning rate: where theirs differ, to so many times what each has.

        >>> Record({"optimizer": {"groups": [{"lr": 0.001}, {"lr": 3.0}]}}, []).setting(0.0005, 0.5).splitlines()[1]
        "    group['lr'] *= 0.5"
        """
        change = f"= {lr:.4g}" if self.one_rate else f"*= {ratio:.4g}"
        return f"for group in optimizer.param_groups:\n    group['lr'] {change}"


def _data(rows: Sequence[Row]) -> list[str]:
    """What the rows say of their data, without the first where the next says "full batch": it was none but that."""
    words = [str(row["data"]) for row in rows if row.get("data")]
    return words[1:] if "full batch" in "".join(words[1:2]).lower() else words


def _kinks(names: list[str]) -> str:
    return f"kinks ({', '.join(names[:3])}{' and others' if len(names) > 3 else ''})"


def last(rows: Sequence[Row], key: str) -> list[float]:
    """The finite values under a key in the last third of the rows.

    >>> last([{"ratio": 1.0}, {"ratio": 2.0}, {"ratio": 3.0}], "ratio")
    [3.0]
    """
    return [value for row in last_third(rows) if (value := finite(row, key)) is not None]
