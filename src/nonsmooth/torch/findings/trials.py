"""What the trials from the end of the run say about the learning rate."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from nonsmooth.torch.findings.finding import Finding
from nonsmooth.torch.findings.numbers import finite, mapping, say, sequence
from nonsmooth.torch.findings.record import Record

__all__ = ["trials"]

STABLE = 0.1
"""The part of |f| by which a stable trial may end above where it began, as `what_if` has it."""
LIMIT = 1000
"""A rate that is so many times the present one is where a search gave up, and not where the run turns unstable."""
NEAR = 1.5
"""With less than half of itself to go a learning rate has little room for a restart, or for a change of the data."""


def trials(record: Record) -> Iterator[Finding]:
    """The largest stable learning rate against the present one, and half of the present one.

    >>> now = {"name": "as-it-is", "lr": 0.4, "diverged": True}
    >>> what_if = [now, {"name": "largest-stable-lr", "lr": 0.2, "steps": 50}]
    >>> [(finding.level, finding.title) for finding in trials(Record({"what_if": what_if}, []))]
    [('problem', 'The largest learning rate that stayed stable, 0.2, is below the present 0.4.')]
    """
    if record.faded:
        yield from _faded(record)
        return
    if not record.several:
        yield from _largest(record)
    yield from _halved(record)


def _present(record: Record) -> float | None:
    trial = record.trial("as-it-is")
    found = None if trial is None else finite(trial.row, "lr")
    return record.lr if found is None else found


def _largest(record: Record) -> Iterator[Finding]:
    trial = record.trial("largest-stable-lr")
    largest = None if trial is None else finite(trial.row, "lr")
    present = _present(record)
    if trial is None or largest is None or not present or present <= 0:
        return
    ratio, steps = largest / present, finite(trial.row, "steps")
    note = str(trial.row.get("note") or "").rstrip(".")
    if ratio >= LIMIT:
        return
    times = f"{say(ratio)} times the present"
    rate, now = (say(largest), f"the present {say(present)}") if record.one_rate else (times, "the present ones")
    tried = f"the learning rate {say(largest)}" if record.one_rate else f"learning rates {times} ones"
    evidence = f"{trial.told(tried)} "
    over = f"over {steps:g} steps" if steps else "over its steps"
    evidence += f"Stable: {over} the loss neither becomes non-finite nor ends more than a tenth of |f| above where it "
    evidence += f"began. {note[0].upper()}{note[1:]}. " if note else "began. "
    evidence += "Stable there is not stable everywhere: the curvature differs along the run."
    told: dict[str, Any] = {"number": ratio, "unit": "× the present learning rate"}
    if note.startswith("no stable lr") or trial.row.get("diverged") is True:
        yield Finding(
            "learning-rate",
            "note",
            f"No learning rate from {rate} to {now} was stable from the end of the run.",
            evidence,
            "Where the loss is at its floor a small rise is a tenth of it; else the run is at its edge.",
            "Look at the loss of the last steps: if it still falls, this says nothing.",
            **told,
        )
    elif ratio < 1:
        began, ended = finite(trial.base, "loss_before"), finite(trial.base, "loss_after")
        rose = began is not None and ended is not None and ended > began + STABLE * abs(began)
        sure = trial.base.get("diverged") is True or (record.full and rose)
        lower = sure and trial.verdict != "harmed"
        why = "At the present rate the loss ended more than a tenth higher: it oscillates, grows, or is at its floor."
        yield Finding(
            "learning-rate",
            "problem" if sure else "note",
            f"The largest learning rate that stayed stable, {rate}, is below {now}.",
            evidence,
            why if sure else f"{why} One trial on few batches is noisy: another may end otherwise.",
            "Lower the learning rate." if lower else "",
            record.setting(largest, ratio) if lower else "",
            **told,
        )
    elif ratio < NEAR:
        yield Finding(
            "learning-rate",
            "note",
            f"The present learning rate {say(present)} is near the largest that stayed stable, {rate}."
            if record.one_rate
            else f"The present learning rates are near the largest that stayed stable, {rate}.",
            evidence,
            "A restart, or other data, may be beyond it.",
            **told,
        )
    else:
        yield Finding(
            "learning-rate",
            "fine",
            f"The largest rate that stayed stable, {say(largest)}, is {say(ratio)} × the present {say(present)}."
            if record.one_rate
            else f"The learning rates stayed stable up to {times} ones.",
            evidence,
            "Stable is not the same as better: it is no advice to raise the rate.",
            **told,
        )


def _faded(record: Record) -> Iterator[Finding]:
    turning = mapping(mapping(record.facts.get("l1")).get("turning"))
    if not turning and not sequence(record.facts.get("what_if")):
        return
    at, highest = max(record.first_rates, key=lambda seen: seen[1], default=(0.0, 0.0))
    said = [f"at most {say(highest)}, at step {at:.0f}"]
    said += [f"{say(lr)} at step {at:.0f}, the last traced" for at, (lr, *_) in record.traced[-1:] if lr is not None]
    if len(record.rates) > len(record.traced):
        said.append(f"{say(record.lr)} as the script left it, after step {record.rates[-1][0]:.0f}")
    yield Finding(
        "schedule-ended",
        "note",
        f"The learning rate ended at {record.faded}: trials from there say nothing.",
        f"The first group's rate: {'; '.join(said)}. Trials take the last one, or parts of it, and it moves no weight.",
        "Whether another rate, or another λ, would have done better is not known from them.",
        "Watch a run that stops before its schedule does, to have them tried at a rate that moves the weights.",
    )


def _halved(record: Record) -> Iterator[Finding]:
    """Only where it helped: elsewhere the other findings say what was tried."""
    trial = record.trial("half-lr")
    present = _present(record)
    if trial is None or trial.verdict != "helped":
        return
    before, after = finite(trial.base, "loss_after"), finite(trial.row, "loss_after")
    lr = finite(trial.row, "lr") or (present / 2 if present else None)
    gain = None if before is None or after is None or not before else 1 - after / before
    yield Finding(
        "half-lr",
        "note",
        "Half the learning rate ended at a lower loss than the run as it is.",
        trial.told("half the learning rate"),
        "Where several optimisers play against one another, a loss with the others held still is not what the run does."
        if record.several
        else "At the end of a run that is what a decay gains; early on it may only be slower.",
        "" if record.several else "Decay the learning rate at the end, as a cosine schedule does.",
        record.setting(lr, 0.5) if lr and not record.several else "",
        gain,
        "of the loss",
    )


def tried(record: Record) -> str:
    """The trials that were made, by their words.

    >>> tried(Record({"what_if": [{"name": "half-lr", "change": "half the learning rate"}]}, []))
    'half the learning rate'
    """
    rows = (mapping(row) for row in sequence(record.facts.get("what_if")))
    return ", ".join(str(row.get("change") or row.get("name")) for row in rows if row)
