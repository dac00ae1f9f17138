"""What went wrong in the run or in watching it: crashes, losses that are not finite, probes that failed."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping

from nonsmooth.torch.findings.finding import Finding
from nonsmooth.torch.findings.numbers import brief, finite, listed, mapping, number, percent, say, sequence
from nonsmooth.torch.findings.record import Record

__all__ = ["failures"]

FEW_PROBES = 10
"""Below ten measurements of a kind its last third holds three or fewer: a glance, and no interval."""
GROWN = 2
"""A loss that has doubled since its lowest was growing before it broke."""
OVERSPENT = 0.02
"""Over the budget by more than two points of the wall clock is told."""


TRACED = 50
"""The losses from which on a tenth of them is a mean, and not a single batch."""
FALLEN = 0.02
"""A loss that fell by less than a fiftieth of itself over a whole run did not fall."""
RISEN = 2
"""A learning rate that has more than doubled is another setting, and no step of a warm-up so late ..."""
SHORTLY = 2 / 3
"""... as in the last third of the steps before the loss broke, in which a linear warm-up rises by a half at most."""

UNDEFINED = {
    "checkpoint": "Turn activation checkpoints off for a run that is watched, where memory allows it.",
    **dict.fromkeys(
        ("finite", "√"),
        "Where it is a √, a norm or a division at 0, add a small ε inside of it: x.norm() becomes √(‖x‖² + ε).",
    ),
}
"""What to do where kinks and curvature could not be told apart, by a word of the reason."""
FAILED = {
    "not finite": "See first why it is not finite: the learning rate is too large, or it is an operation that "
    "`torch.autograd.set_detect_anomaly(True)` names.",
    **dict.fromkeys(
        ("closure", "computed again", "graph", "require grad"),
        "A closure must return the same loss each time it is called, with its graph.",
    ),
}
"""What to do where a probe failed, by a word of its error."""


def failures(record: Record) -> Iterator[Finding]:
    """A crash, a loss that is not finite, steps without a split, probes that failed or were too dear, what is missing.

    >>> [(f.id, f.title) for f in failures(Record({"crashed": "ValueError: no data"}, []))][0]
    ('crashed', 'The script crashed: ValueError: no data.')
    """
    told: set[str] = set()
    yield from _crashed(record)
    yield from _edited(record)
    yield from _not_finite(record)
    yield from _learns_nothing(record)
    yield from _undefined(record)
    yield from _missing(record, told)
    yield from _probes(record, told)


def _crashed(record: Record) -> Iterator[Finding]:
    crashed, code = record.facts.get("crashed"), number(record.facts.get("exit_code"))
    if not crashed and not code:
        return
    steps = finite(record.facts, "steps")
    after = "" if steps is None else f" after {steps:.0f} optimiser steps"
    why = "What is said here is of the run before that; its last third is not the end of a training."
    if record.facts.get("interrupted") is True or str(crashed or "").startswith("KeyboardInterrupt"):
        yield Finding(
            "interrupted", "note", f"The run was interrupted{after}.", f"It ended{after}, by hand or by SIGTERM.", why
        )
        return
    if crashed:
        told = brief(crashed)
        do = "Mend the script; the watching passes its error through unchanged."
        yield Finding("crashed", "problem", f"The script crashed: {told}.", f"It ended{after}.", why, do)
        return
    yield Finding(
        "exit-code",
        "note",
        f"The script left with exit code {code:.0f}.",
        f"It ended{after}, without an exception.",
        "That may be its way to end. If it broke the training off, the last third is not the end of one.",
        "See what the script itself printed.",
        number=code,
        unit="exit code",
    )


def _edited(record: Record) -> Iterator[Finding]:
    if record.edited:
        yield Finding(
            "edited",
            "note",
            "The script writes to weights outside of the optimiser's step.",
            "Weights changed between steps: a clamp, a proximal step, averages that are swapped in, another optimiser.",
            "Trials do not repeat that: what they call unchanged is the optimiser's steps alone, and not the script.",
            "Take what a trial says with that in mind, or try the change in the script itself.",
        )


def _again(why: str, told: set[str]) -> str:
    """A reason the first time that it is told; after that, that it was."""
    said = brief(why)
    if said in told:
        return "the same reason as told above"
    told.add(said)
    return said


def _advice(by: Mapping[str, str], reasons: Iterable[str]) -> str:
    """The advice for those reasons that hold its word."""
    return " ".join(dict.fromkeys(do for word, do in by.items() if any(word in why for why in reasons)))


def _broken(value: object) -> bool:
    found = number(value)
    return found is not None and not math.isfinite(found)


def _not_finite(record: Record) -> Iterator[Finding]:
    keys = ("loss", "loss_after")
    rows = [row for row in record.rows if isinstance(row, Mapping) and row.get("kind") in ("trace", "step")]
    rows = [row for row in rows if any(number(row.get(key)) is not None for key in keys)]
    bad = [row for row in rows if any(_broken(row.get(key)) for key in keys)]
    if not bad:
        return
    first = finite(bad[0], "step")
    before = [loss for row in rows[: rows.index(bad[0])] if (loss := finite(row, "loss")) is not None]
    title = "The loss is not a finite number"
    if first is not None:
        title += f" at step {first:.0f}" + (" for the first time" if len(bad) > 1 else "")
    whole = [row for row in rows[: rows.index(bad[0])] if finite(row, "loss") is not None]
    since = finite(whole[-1], "step") if whole else None
    if first is not None and since is not None and since < first - 1:
        title = f"The loss ceased to be finite between step {since:.0f} (the last finite one seen) and step {first:.0f}"
    evidence = f"Not finite in {len(bad)} of {len(rows)} rows with a loss"
    evidence += f"; the last finite one before was {say(before[-1])}" if before else "; none before it was finite"
    evidence += f", grown from {say(min(before))}." if before and before[-1] > GROWN * min(before) else "."
    scaled = record.facts.get("scaled") is True
    risen = "" if first is None else _risen(record, first)
    evidence += risen
    do = "Look at the first such step: a loss that grew before it points to the learning rate, one that did not to an "
    do += "operation (log or √ of 0, a division by 0), which `torch.autograd.set_detect_anomaly(True)` names."
    if risen:
        do = "Try without that rise, or with a smaller one. If the loss breaks all the same, "
        do += "`torch.autograd.set_detect_anomaly(True)` names the operation."
    if scaled:
        do += " A GradScaler skips steps whose gradient is not finite; a loss that is not finite it does not mend."
    yield Finding(
        "loss-not-finite",
        "problem",
        f"{title}.",
        evidence,
        "A weight that became nan stays nan; what is measured after it says nothing.",
        do,
        "torch.autograd.set_detect_anomaly(True)  # slow: only to find the operation",
        first,
        "step",
    )


def _risen(record: Record, first: float) -> str:
    """How the learning rate rose shortly before a step, as a sentence; "" where it did not.

    >>> traces = [{"kind": "trace", "step": t, "lr": [lr]} for t, lr in ((8, 0.02), (9, 5.0))]
    >>> _risen(Record({}, traces), 9.0)
    ' The learning rate had risen from 0.02 at step 8 to 5 at step 9.'
    """
    before = [(at, lr) for at, lr in record.first_rates if at < first]
    seen = [(at, lr) for at, lr in before if at >= SHORTLY * first] or before[-1:]
    seen += [(at, lr) for at, lr in record.first_rates if at >= first][:1]
    end, high = max(seen, key=lambda pair: pair[1], default=(0.0, 0.0))
    low, since = min(((lr, -at) for at, lr in seen if at < end), default=(high, 0.0))
    if high <= RISEN * low:
        return ""
    return f" The learning rate had risen from {say(low)} at step {-since:.0f} to {say(high)} at step {end:.0f}."


def _learns_nothing(record: Record) -> Iterator[Finding]:
    losses = [loss for row in record.traces if (loss := finite(row, "loss")) is not None]
    if len(losses) < TRACED or not any(losses) or record.broken is not None:
        return
    few = max(1, len(losses) // 10)
    first, late = sum(losses[:few]) / few, sum(losses[-few:]) / few
    if late < first - FALLEN * abs(first):
        return
    rose = late > first + FALLEN * abs(first)
    yield Finding(
        "loss-not-falling",
        "note",
        f"The loss {'rose' if rose else 'did not fall'}: {say(first)} at the start, {say(late)} at the end.",
        f"Means over the first and the last tenth of {len(losses)} losses that the script called backward on; the "
        f"lowest was {say(min(losses))}.",
        "What is measured of steps that lead nowhere says little of steps that would. A loss that need not fall, as of "
        "a game or of a policy, is another matter.",
        "See whether gradients reach all layers"
        + ("." if record.several else ", and whether the learning rate is too large or next to nothing."),
        number=late,
        unit="at the end",
    )


def _undefined(record: Record) -> Iterator[Finding]:
    reasons: Counter[str] = Counter()
    count = 0
    for row in record.steps:
        said = [str(why) for why in sequence(row.get("undefined"))]
        broken = any(_broken(row.get(key)) for key in ("curvature", "kink_share", "kink", "smooth"))
        count += bool(said or broken)
        reasons.update(said or (["no reason given"] if broken else []))
    if not count:
        return
    yield Finding(
        "undefined",
        "note",
        f"At {count} of {record.where(record.steps)} kinks and curvature could not be told apart.",
        f"Reasons: {listed(f'{why} (×{n})' for why, n in reasons.most_common())}. {record.data(record.steps)}",
        "Those steps are left out of the medians here; if they are those with most kinks, the rest looks too smooth.",
        _advice(UNDEFINED, reasons),
        number=float(count),
        unit="steps",
    )


def _probes(record: Record, told: set[str]) -> Iterator[Finding]:
    failed = {kind: rows for kind in ("step", "stability") if (rows := record.of(kind, failed=True))}
    for kind, rows in failed.items():
        reasons = Counter(brief(row.get("error")) for row in rows)
        held = len(record.of(kind))
        yield Finding(
            f"probes-failed-{kind}",
            "note",
            f"{len(rows)} of {len(rows) + held} probes of kind {kind!r} failed.",
            f"{listed(f'{_again(why, told)} (×{n})' for why, n in reasons.most_common())}.",
            "What they would have measured is missing here; the run itself was not touched.",
            _advice(FAILED, reasons) or "The reason says what to mend.",
            number=float(len(rows)),
            unit="probes",
        )
    rows = record.of("stability")
    unsure = sum(row.get("converged") is not True for row in rows)
    if unsure:
        yield Finding(
            "sharpness-unsure",
            "note",
            f"{unsure} of {len(rows)} sharpness estimates did not converge, and are left out.",
            f"{record.where(rows, 'estimates')}. {record.data(rows)}",
            "An estimate that did not converge may be far too low: it would look calm where it is not.",
            "Allow more Hessian products"
            + ("." if record.full else ", or a larger probe batch: noise of a small one hides the largest eigenvalue."),
            number=float(unsure),
            unit="estimates",
        )
    steps, budget = finite(record.facts, "steps"), finite(record.facts, "budget")
    made = {kind: len(record.of(kind)) for kind in ("step", "stability")}
    if steps == 0:
        yield Finding(
            "nothing-measured",
            "note",
            "The optimiser took no step.",
            "0 steps.",
            "There was nothing to measure.",
            number=0.0,
        )
        return
    few = {k: n for k, n in made.items() if n < FEW_PROBES and (steps is None or steps > 2 * n) and k not in failed}
    if few and (record.rows or steps):
        said = ", ".join(f"{n} of kind {kind!r}" for kind, n in few.items())
        spent, share = finite(record.facts, "spent"), finite(record.facts, "share")
        evidence = f"Of {steps:.0f} steps. " if steps is not None else ""
        if budget is not None:
            evidence += f"Budget {percent(budget)} of the wall clock"
            evidence += "" if share is None else f", used {percent(share)}"
            evidence += "" if spent is None else f" ({say(spent)} s)"
            evidence += ". "
        lines = "" if budget is None else f"budget={min(1.0, 4 * budget):g}  # of the Monitor; --budget of the command"
        yield Finding(
            "few-probes" if any(made.values()) else "nothing-measured",
            "note",
            f"Few measurements: {said}." if any(made.values()) else "Nothing was measured: no probe was made.",
            (evidence or "No budget is stored. ").strip(),
            "The last third of so few says little, and no interval can be given.",
            "Let the run be longer, or raise the budget: the time goes to the probes alone.",
            lines,
            float(sum(few.values())),
            "probes",
        )
    used = finite(record.facts, "share")
    allowed = (finite(record.facts, "allowance") or 0.0) / (finite(record.facts, "seconds") or math.inf)
    if used is not None and budget is not None and used > budget + allowed + OVERSPENT:
        yield Finding(
            "over-budget",
            "note",
            f"Watching took {percent(used)} of the wall clock, above its budget of {percent(budget)}.",
            f"{say(finite(record.facts, 'spent'))} of {say(finite(record.facts, 'seconds'))} s.",
            "The first probe of a step is made whatever it costs; in a short run that is most of it.",
            "Watch a longer run; the share falls to the budget.",
            number=used,
            unit="of the wall clock",
        )


def _missing(record: Record, told: set[str]) -> Iterator[Finding]:
    rows = [row for row in map(mapping, sequence(record.facts.get("missing"))) if row]
    if not rows:
        return
    lines = "\n".join(dict.fromkeys(str(row["line"]) for row in rows if row.get("line")))
    by: dict[str, list[str]] = {}
    for row in rows:
        by.setdefault(brief(row.get("why", "no reason given")), []).append(str(row.get("what", "something")))
    said = "; ".join(f"{', '.join(names)}: {_again(why, told)}" for why, names in by.items())
    commands = [line for line in lines.splitlines() if line.startswith("nonsmooth ")]
    ways = ["add the line to the script"] if len(commands) < len(lines.splitlines()) else []
    ways += ["run the command in a shell"] if commands else []
    do = ", or ".join([*ways, "use a Monitor, to which all is given."]) if ways else ""
    yield Finding(
        "not-found",
        "note",
        f"Missing from this audit: {listed(row.get('what', 'something') for row in rows)}.",
        f"{said}.",
        "What depends on it was not measured, and its silence here says nothing.",
        do[:1].upper() + do[1:],
        lines,
        float(len(rows)),
        "things",
    )
