"""What the run is against its own threshold: sharpness, steps that raise the loss, and what L-smooth theory says."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from nonsmooth.torch.findings.bounds import descent_bounds, lipschitz
from nonsmooth.torch.findings.finding import Finding
from nonsmooth.torch.findings.numbers import Spread, finite, last_third, percent, say, spread
from nonsmooth.torch.findings.record import ROUNDING, Record, Row, last
from nonsmooth.torch.findings.trials import NEAR

__all__ = ["edge"]

CALM = 0.5
"""Below half of its threshold a learning rate could be doubled before a quadratic would diverge."""
EDGE = (0.8, 1.2)
"""A run at the edge of stability hovers about its threshold; a fifth is what sharpness is seen to swing about it."""
BLIND = 0.8
"""A step's curvature is at its threshold from here on, as for EDGE ..."""
BLIND_GAP = 0.25
"""... and sharpness is well below it where it is lower by this part of the threshold: more than it swings."""
CARRIED = 0.5
"""Kinks carry a difference of which they make at least half."""
MOST = 0.5
"""An eigenvector is of the weights in which most of it lies."""
RAISING_NOTE = 0.1
"""Below every tenth step it may be a bend of the path here and there, and says nothing of the learning rate."""
RAISING_PROBLEM = 0.4
"""In a steady oscillation about every second step raises the loss; from here on most steps undo one another."""
FEW = 3
"""With fewer estimates in the last third nothing is called a problem."""
FEW_STEPS = 10
"""With fewer steps no share of steps is called a problem: one step more or less would change it by a tenth."""


def edge(record: Record) -> Iterator[Finding]:
    """Edge of stability, what sharpness does not see, steps that raise the loss, the descent lemma.

    >>> row = {"kind": "stability", "step": 9, "converged": True, "sharpness": 1.0, "threshold": 4.0, "ratio": 0.25}
    >>> [(finding.id, finding.level, finding.number) for finding in edge(Record({}, [row]))]
    [('edge-of-stability', 'fine', 0.25)]
    """
    yield from _stability(record)
    yield from _blind(record)
    yield from _raising(record)
    yield from _lemma(record)


def ratios(record: Record) -> list[float]:
    """Sharpness over the optimiser's threshold, in the last third of the estimates that converged.

    >>> ratios(Record({}, [{"kind": "stability", "converged": True, "sharpness": 1.0, "threshold": 4.0}]))
    [0.25]
    """
    return [value for row in last_third(record.stability) if (value := _ratio(row)) is not None]


def reach(record: Record) -> list[float]:
    """The step curvature over the optimiser's threshold, in the last third of the measured steps.

    >>> reach(Record({}, [{"kind": "step", "curvature": 3.0, "threshold": 4.0}]))
    [0.75]
    """
    return [value for row in last_third(record.steps) if (value := _reach(row)) is not None]


def raising(rows: list[Row], rounding: float = ROUNDING) -> list[bool]:
    """Whether each step with two losses raised it, by more than rounding, which is a part of the loss.

    >>> raising([{"loss": 1.0, "loss_after": 1.5}, {"loss": 1.0, "loss_after": 1.0}, {}])
    [True, False]
    """
    pairs = ((finite(row, "loss"), finite(row, "loss_after")) for row in rows)
    return [b > a + rounding * max(abs(a), abs(b)) for a, b in pairs if a is not None and b is not None]


def _ratio(row: Row) -> float | None:
    found, (top, threshold) = finite(row, "ratio"), (finite(row, "sharpness"), finite(row, "threshold"))
    return found if found is not None or top is None or not threshold else top / threshold


def _reach(row: Row) -> float | None:
    found, (top, threshold) = finite(row, "step_ratio"), (finite(row, "curvature"), finite(row, "threshold"))
    return found if found is not None or top is None or not threshold else top / threshold


def _named(record: Record) -> str:
    return f"{record.optimizer}'s" if record.optimizer else "the optimiser's"


def _stability(record: Record) -> Iterator[Finding]:
    rows = [row for row in last_third(record.stability) if _ratio(row) is not None]
    seen = spread(ratios(record))
    if seen is None:
        return
    few, noisy, at = len(rows) < FEW, record.noisy(rows), seen.median
    top, bound = spread(last(rows, "sharpness")), spread(finite(row, "threshold") for row in rows)
    values = ""
    if top is not None and bound is not None:
        values = f" (sharpness {say(top.median)}, threshold {say(bound.median)})"
    evidence = f"Sharpness over threshold: {seen}{values}; the last third, {record.late(rows, 'converged estimates')}."
    evidence += f" {record.data(rows)}" + (" Too few to be sure." if few else "")
    evidence += record.clipped
    if noisy:
        evidence += " One batch's sharpness is above that of the whole data on average."
    kind = "Preconditioned sharpness" if record.preconditioned else "Sharpness"
    title = f"{kind} is at {say(at)} of {_named(record)} own threshold{record.early(rows)}"
    told: dict[str, Any] = {"evidence": evidence, "number": at, "unit": "of the threshold"}
    if at < EDGE[0]:
        met = spread(reach(record))
        if met is not None and met.median >= max(CALM, at + BLIND_GAP):
            title += f": {'far below it' if at < CALM else 'below it'}, but the steps meet {say(met.median)} of it"
        else:
            title += ": calm" if at < CALM else ": below it, and not far"
        why = "That is by the Hessian alone. It does not see kinks; the step curvature κ, which the steps meet, does."
        yield Finding("edge-of-stability", "fine", f"{title}.", why=why, **told)
        return
    if at <= EDGE[1]:
        why = (
            "Here the learning rate sets the sharpness. It is common, and training goes on, but the loss need not "
            "fall in each step, and a larger rate does not simply go faster."
        )
        do, lines = "Nothing by itself; a decay of the rate at the end, not tried here, lets the loss settle.", ""
        if record.several or record.faded:
            do = "Nothing by itself."
        trial = None if record.several or record.faded else record.trial("half-lr")
        if trial is not None:
            advice, lines = record.rate(rows)
            do = advice if trial.verdict == "helped" else f"Nothing by itself. {advice}"
        yield Finding(
            "edge-of-stability", "note", f"{title}: at the edge of stability.", why=why, do=do, lines=lines, **told
        )
        return
    asleep = spread(last(rows, "dormant"))
    if asleep is not None and asleep.median >= MOST:
        told["evidence"] += (
            f" {percent(asleep.median)} of the eigenvector is in weights whose effective step is above 100 times that "
            "of the median weight."
        )
        yield Finding(
            "edge-of-stability",
            "note",
            f"{title}, but in weights that have hardly had a gradient so far.",
            why="An adaptive optimiser's steps are long where the mean of g² is near 0, as behind units that were "
            "dead: the ratio is of these weights, and not of the others.",
            do="Judge the learning rate by the loss. A larger eps bounds such steps; that was not tried here.",
            **told,
        )
        return
    shares = raising(record.steps, record.rounding)
    sure = (
        not few
        and not record.clipped
        and (not noisy or (bool(shares) and sum(shares) / len(shares) >= RAISING_PROBLEM))
    )
    why = (
        "On a quadratic that would diverge. In training it means oscillation: steps overshoot and come back, and as "
        "long as that lasts the loss does not settle."
    )
    do, lines = record.rate(rows)
    yield Finding(
        "edge-of-stability",
        "problem" if sure else "note",
        f"{title}: beyond the edge of stability.",
        why=why,
        do=do,
        lines=lines,
        **told,
    )


def _blind(record: Record) -> Iterator[Finding]:
    met, seen = spread(reach(record)), spread(ratios(record))
    if met is None or seen is None or met.median < BLIND or met.median - seen.median < BLIND_GAP:
        return
    rows = [row for row in last_third(record.steps) if _reach(row) is not None]
    part = spread(_part(row) for row in rows)
    kappa = spread(last(record.steps, "curvature"))
    kink = spread(last(record.steps, "kink"))
    gap = met.median - seen.median
    carried = part is not None and part.median >= CARRIED * gap
    where = record.late(rows)
    evidence = f"Step curvature over the threshold: {met}; the last third, {where}. Sharpness over it: {seen}. "
    if kappa is not None and kink is not None:
        evidence += f"κ {say(kappa.median)}, of which κ_kink {say(kink.median)} (medians, frozen split). "
    evidence += record.data(rows) + record.clipped
    told: dict[str, Any] = {"number": gap, "unit": "of the threshold"}
    both = f"Steps meet {say(met.median)} of the threshold where sharpness shows {say(seen.median)}{record.early(rows)}"
    if record.bouncing:
        yield Finding(
            "sharpness-blind",
            "note",
            f"{both}: in part that is the chatter of penalised weights, true at any learning rate.",
            evidence,
            "Weights that the gradient of |w| carries to and fro across 0 meet 2/η along their steps whatever η is: "
            "by this alone the rate is neither too large nor right.",
            "Judge the learning rate by the loss, or by a trial, and not by this.",
            **told,
        )
        return
    if carried and part is not None:
        few = len(ratios(record)) < FEW or len(rows) < FEW or bool(record.clipped)
        room = _room(record)
        why = "A sharpness plot shows room for a larger learning rate, where the steps are at the threshold already."
        if room:
            why = f"{say(room)} × the rate was tried and stayed stable: across kinks steps may meet the threshold at "
            why += "any rate, and neither ratio says where the run turns unstable."
        yield Finding(
            "sharpness-blind",
            "note" if few or room else "problem",
            f"{both}: kinks carry {say(part.median)} of it, and the Hessian does not see them.",
            evidence,
            why,
            "Judge the learning rate by the step curvature κ (`measure_step`), or by a trial, not by sharpness.",
            **told,
        )
        return
    unknown = "whether kinks carry it was not measured" if part is None else f"kinks carry only {say(part.median)}"
    yield Finding(
        "sharpness-blind",
        "note",
        f"{both}; {unknown}.",
        evidence,
        f"Curvature that grows along the step{'' if record.full else ', or another batch,'} makes such a difference "
        "too: sharpness is of a point, not of a step.",
        "Judge the learning rate by the step curvature κ (`measure_step`), or by a trial, not by sharpness alone.",
        **told,
    )


def _room(record: Record) -> float | None:
    """How many times the present learning rate was tried and stayed stable, where that is well above it."""
    largest, now = record.trial("largest-stable-lr"), record.trial("as-it-is")
    if largest is None or now is None or largest.verdict == "unclear" or record.several or record.faded:
        return None
    rate, present = finite(largest.row, "lr"), finite(now.row, "lr")
    ratio = rate / present if rate and present and largest.row.get("diverged") is not True else 0.0
    return ratio if ratio >= NEAR else None


def _part(row: Row) -> float | None:
    """The kinks' part of a step's curvature over the threshold: both splits of ⟨g⁺ − g, D⟩ are over one denominator."""
    met, kappa, kink = _reach(row), finite(row, "curvature"), finite(row, "kink")
    return None if met is None or not kappa or kink is None else met * kink / kappa


def orbit(record: Record) -> float | None:
    """κ̄ over the threshold, from the last step that has it, for gradient descent without momentum.

    >>> orbit(Record({"optimizer": {"name": "SGD"}}, [{"kind": "step", "orbit_curvature": 4.0, "threshold": 4.0}]))
    1.0
    """
    if not record.plain:
        return None
    for row in reversed(record.steps):
        bar, threshold = finite(row, "orbit_curvature"), finite(row, "threshold")
        if bar is not None and threshold:
            return bar / threshold
    return None


def _raising(record: Record) -> Iterator[Finding]:
    raised = raising(record.steps, record.rounding)
    if not raised or (share := sum(raised) / len(raised)) < RAISING_NOTE:
        return
    seen: Spread | None = spread([float(up) for up in raised])
    interval = ""
    if seen is not None and seen.half:
        interval = f", ± {percent(min(seen.half, 1.0))} (95 %, by batch means)"
    late = raising(list(last_third(record.steps)), record.rounding)
    enough = len(raised) >= FEW_STEPS
    evidence = "" if enough else "Too few to be sure. "
    evidence += f"The loss after each step on the same data as before it: higher at {sum(raised)} of "
    evidence += f"{record.late(record.steps)}{interval}"
    evidence += f"; in the last third at {sum(late)} of {len(late)}. " if late else ". "
    bar = orbit(record)
    if bar is not None and enough:
        where = "an oscillation that stays bounded" if EDGE[0] <= bar <= EDGE[1] else "not the steady oscillation of 1"
        evidence += f"Orbit curvature κ̄ over the threshold: {say(bar)}, {where}. "
    evidence += record.data(record.steps)
    if any("not in" in str(row.get("penalty", "")) for row in record.steps):
        evidence += " The penalty is not in that loss, and a step that lowers both together may raise it."
    do, lines = record.rate(record.steps)
    yield Finding(
        "loss-raising",
        "problem" if share >= RAISING_PROBLEM and enough else "note",
        f"{percent(share) if enough else sum(raised)} of the {'' if enough else f'{len(raised)} '}measured steps raise "
        f"the loss that they were taken to lower{record.early(record.steps)}.",
        evidence,
        "Such a step is too long for what it meets, or momentum carries it past. Bounds by which each step lowers "
        "the loss do not hold here.",
        do,
        lines,
        share,
        "of the measured steps",
    )


def _lemma(record: Record) -> Iterator[Finding]:
    if not record.descent:
        return
    largest = lipschitz(record)
    bound = next((bound for bound in descent_bounds(record) if bound.kind == "largest"), None)
    rows, above = ([], []) if bound is None else (bound.rows, bound.exceeded)
    tested, failed = len(rows), len(above)
    kinked = sum((finite(row, "kink_share") or 0.0) >= CARRIED for row in above)
    rate = record.highest_lr if record.plain else None
    beyond = bool(rate and largest and rate > 2 / largest)
    if largest is None or not (tested or beyond):
        return
    evidence = "f⁺ ≤ f + ⟨g, D⟩ + L/2 ‖D‖² with L the largest sharpness or ‖g⁺ − g‖/‖D‖ of earlier rows: "
    evidence += f"broken at {failed} of {record.where(rows)}"
    evidence += f", {kinked} of them with a kink share above {percent(CARRIED)}. " if failed else ". "
    if rate:
        sign = "below" if beyond else "not below"
        evidence += (
            f"Largest L seen {say(largest)}: 2/L = {say(2 / largest) if largest else 'inf'}, {sign} the learning "
        )
        evidence += f"rate {say(rate)}. "
    evidence += record.data(rows)
    if record.noisy(rows):
        evidence += " Each batch is a function of its own, and L is taken over them."
    if not (failed or beyond):
        title = f"The descent lemma held at all {tested} steps where it was tested."
        why = (
            "With the L seen so far, L-smooth theory describes these steps. It proves nothing about steps not measured."
        )
        yield Finding("lsmooth-fails", "fine", title, evidence, why, number=0.0, unit="of the tested steps")
        return
    batches = " of these batches' losses" if record.noisy(rows or record.measured) else ""
    beyond_says = f"No L{batches} that fits what was seen allows this rate."
    said = []
    if failed:
        said.append(f"the descent lemma of L-smooth theory fails at {failed} of {tested} steps")
    if beyond:
        said.append(f"the learning rate {say(rate)} is above 2/L = {say(2 / largest)}")
    title = " and ".join(said)
    yield Finding(
        "lsmooth-fails",
        "note",
        f"{title[0].upper()}{title[1:]}{'' if failed else ': L-smooth theory does not cover this run'}.",
        evidence,
        "Bounds for L-smooth losses need one L for the whole run, and, without momentum, a rate below 2/L. "
        + (beyond_says if beyond else "The L seen before does not bound what came."),
        "Do not choose the learning rate by 1/L or 2/L. Judge it by the step curvature κ, or by a trial.",
        number=failed / tested if tested else rate,
        unit="of the tested steps" if tested else "learning rate",
    )
