"""Nothing unusual: what was looked at, and in which numbers it is calm."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from nonsmooth.torch.findings.edge import EDGE, raising, ratios
from nonsmooth.torch.findings.finding import Finding
from nonsmooth.torch.findings.kinks import switched
from nonsmooth.torch.findings.numbers import mapping, percent, say, spread
from nonsmooth.torch.findings.record import Record, last
from nonsmooth.torch.findings.trials import tried

__all__ = ["calm"]

UNUSUAL = ("loss-raising", "sharpness-blind", "loss-not-falling", "learning-rate")
"""Notes beside which "nothing unusual" would be no true word."""
NEARLY_ALL = 0.9
"""From here on hardly anything of what the steps meet is what theory by second derivatives expects."""


def calm(record: Record, found: Sequence[Finding]) -> Iterator[Finding]:
    """One finding that says so, where something was measured and nothing of it is a problem.

    Not where all probes of a kind failed, where the script crashed, where the run is beyond the edge of stability, or
    where nearly all of the change is kinks.

    >>> steps = [{"kind": "step", "step": t, "loss": 1.0, "loss_after": 0.5} for t in (1, 2)]
    >>> [finding.title for finding in calm(Record({}, steps), [])]
    ['Nothing unusual in 2 measured steps.']
    """
    measured = record.measured
    unusual = any(f.level == "problem" or (f.level == "note" and f.id in UNUSUAL) for f in found)
    if not measured or unusual:
        return
    if record.facts.get("crashed") or any(
        record.of(kind, failed=True) and not record.of(kind) for kind in ("step", "stability")
    ):
        return
    share, ratio = spread(last(record.steps, "kink_share")), spread(ratios(record))
    if (share is not None and share.median >= NEARLY_ALL) or (ratio is not None and ratio.median > EDGE[1]):
        return
    seen = []
    if ratio is not None:
        seen.append(f"sharpness at {say(ratio.median)} of its threshold")
    if raised := raising(record.steps, record.rounding):
        seen.append(f"{sum(raised)} of {len(raised)} steps raised the loss")
    if share is not None:
        seen.append(f"kink share {percent(share.median)}")
    if (flipped := spread(flips for flips, _, _ in switched(record))) is not None:
        seen.append(f"{say(flipped.median)} unit outputs switch in a step")
    looked = [f"census of {len(record.operations)} operations"] if record.operations else []
    looked += ["the L1 penalty"] if mapping(record.facts.get("l1")) else []
    looked += [f"trials: {tried(record)}"] if tried(record) else []
    count, estimates = len(record.steps), len(record.stability)
    steps = f"{count} measured step{'' if count == 1 else 's'}"
    also = f" and {estimates} sharpness estimate{'' if estimates == 1 else 's'}" if estimates else ""
    title = f"Nothing unusual in{f' {steps}{also}' if count else also.removeprefix(' and')}{record.early(measured)}."
    evidence = f"Seen: {'; '.join(seen)}. " if seen else ""
    evidence += f"Looked at as well: {'; '.join(looked)}. " if looked else ""
    yield Finding(
        "nothing-unusual",
        "fine",
        title,
        evidence + record.data(measured),
        "No finding here is a problem"
        + ("; the notes say what is worth knowing." if any(finding.level == "note" for finding in found) else "."),
        number=float(len(measured)),
        unit="measurements",
    )
