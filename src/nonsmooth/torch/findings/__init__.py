"""Findings: what a watched run shows, in plain words with its numbers, why it matters and what to do.

From what the run stored, facts and rows, to words; nothing is measured here. Each threshold stands as a constant with
its reason in the module that judges by it. Advice that a trial contradicts is not given.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from nonsmooth.torch.findings.calm import calm
from nonsmooth.torch.findings.edge import edge
from nonsmooth.torch.findings.failures import failures
from nonsmooth.torch.findings.finding import LEVELS, Finding, summary, text
from nonsmooth.torch.findings.kinks import kinks
from nonsmooth.torch.findings.penalty import penalty
from nonsmooth.torch.findings.record import Record
from nonsmooth.torch.findings.trials import trials

__all__ = ["Finding", "findings", "summary", "text"]

ORDER = (
    "nothing-unusual",
    "crashed",
    "interrupted",
    "loss-not-finite",
    "dead-layers",
    "silent-units",
    "learning-rate",
    "schedule-ended",
    "loss-raising",
    "edge-of-stability",
    "sharpness-blind",
    "l1-",
    "loss-not-falling",
    "no-kinks",
    "kink-share",
    "half-lr",
    "edited",
    "exit-code",
    "lsmooth-fails",
    "hidden-kinks",
    "undefined",
    "flips",
    "no-flips",
    "ties",
    "not-found",
    "nothing-measured",
    "probes-failed-",
    "sharpness-unsure",
    "few-probes",
    "over-budget",
)
"""Within a level the most important first; an entry that ends in a hyphen stands for all that begin with it."""


def findings(facts: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> tuple[Finding, ...]:
    """The findings of a run, problems first, then notes, then what is fine.

    `facts` and `rows` are run.json and rows.jsonl as read; any part may be missing, broken or nan, and is passed over.

    >>> step = {"kind": "step", "data": "all of it", "loss": 1.0, "loss_after": 0.9, "kink_share": 0.98}
    >>> found = findings({"steps": 10}, [{"step": t, **step} for t in range(1, 11)])
    >>> print(summary(found))
    findings: nothing that is a problem; 2 notes. First: 98 % of the change of the gradient over a step comes
    from kinks, not from curvature: the Hessian does not see it.
    """
    record = Record(facts if isinstance(facts, Mapping) else {}, [row for row in rows if isinstance(row, Mapping)])
    found = [finding for look in (failures, trials, edge, penalty, kinks) for finding in look(record)]
    found += calm(record, found)
    return tuple(sorted(found, key=_place))


def _place(finding: Finding) -> tuple[int, int]:
    names = (i for i, n in enumerate(ORDER) if finding.id == n or (n.endswith("-") and finding.id.startswith(n)))
    return LEVELS.index(finding.level), next(names, len(ORDER))
