"""What the L1 penalty does: zeros that are not there, weights that bounce, the norm, wrong spellings."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from nonsmooth.torch.findings.finding import Finding
from nonsmooth.torch.findings.numbers import finite, last_third, listed, mapping, percent, say, sequence, spread
from nonsmooth.torch.findings.record import Record

__all__ = ["penalty"]

LOST = 0.5
"""A penalty has failed its purpose where less than half of the weights that should be zero are exactly zero."""
FLOOR_NOTE = 0.1
"""A tenth of the norm: as much as a change of λ by some per cent makes of it, and so easily taken for its effect."""
FLOOR_PROBLEM = 0.5
"""Above a half the norm tells more of the learning rate than of the weights."""
WITHIN = 0.1
"""The law is met where the measured value is within a tenth of its range: it leaves out curvature."""
NOTHING_LOST = 0.01
"""A hundredth of the weights: fewer than that come and go by noise at any time."""
UNEXPLAINED = 0.1
"""Weights near 0 change sign by minibatch noise alone; a tenth of all of them is more than that."""
STILL = 0.01
"""Norms that lie within a hundredth of one another did not move: the noise of a trial is as large."""
SERIOUS = ("detached", "moves-nothing", "several", "weight-decay", "second-moment", "lr-too-large")
"""Lints by which the penalty does something else than was meant; the others cost little."""
WHY = {
    "detached": "Only what has a gradient, or a step of its own, moves a weight.",
    "biases-and-norms": "A bias or a scale at 0 makes a network hardly smaller, and the fit has to do without it.",
    "several": "What a weight feels is the sum of all λ, and none of the numbers in the script.",
    "weight-decay": "A decay shrinks weights in proportion and never to 0: the zeros that λ is for do not come.",
    "moves-nothing": "Zeros come where λ outweighs |∂f|, and here it does so almost nowhere.",
    "mean-not-sum": "The λ of the script is then not comparable with one of another model, or of another layer.",
    "second-moment": "An adaptive division takes the size of λ out of the step: λ no longer sets the strength.",
    "lr-too-large": "The size of small weights is then set by the learning rate, and not by the data.",
    "half-precision": "Zeros by rounding and zeros by the penalty look alike.",
}
"""Why each lint matters."""


def penalty(record: Record) -> Iterator[Finding]:
    """Zeros against KKT, chatter against its law, floor against norm, the turn of λ, lints; or that all is well.

    >>> l1 = {"terms": [{"through": "autograd", "lam": 1.0}], "weights": 9, "zeros": 0, "kkt_zeros": 6, "kkt_exact": 0}
    >>> [(finding.id, finding.title) for finding in penalty(Record({"l1": l1}, []))]
    [('l1-no-zeros', 'The L1 penalty left 0 of 9 weights exactly zero, and 6 should be.')]
    """
    l1 = mapping(record.facts.get("l1"))
    yield from _changed(l1)
    if not sequence(l1.get("terms")) or l1.get("audited") is False:
        yield from _unaudited(record, l1)
        return
    yield from _zeros(record, l1)
    yield from _chatter(record, l1)
    mostly = _floor_share(l1) >= FLOOR_PROBLEM
    yield from _floor(record, l1)
    if not record.faded:
        yield from _turn(record, l1)
    yield from _lints(l1, {"lr-too-large"} if mostly else set())
    yield from _fine(record, l1)


def _through(l1: Mapping[str, Any]) -> set[str]:
    return {str(mapping(term).get("through")) for term in sequence(l1.get("terms"))}


def _unless(record: Record, advice: str) -> str:
    """Advice to take proximal steps, under a condition where the script may take them already."""
    if not record.edited:
        return advice
    return f"If what the script itself writes to weights is no proximal step: {advice[0].lower()}{advice[1:]}"


def _watched(record: Record, l1: Mapping[str, Any]) -> str:
    """Over which steps signs were watched, as a sentence and a space; "" where that is not stored."""
    window, watched = finite(l1, "window"), l1.get("watched")
    if not window:
        return ""
    if watched == "continuation":
        return f"Signs watched over a continuation of {window:.0f} steps from the end of the run. "
    rows = [row for row in record.chatter if finite(row, "step") is not None]
    if watched == "run" and rows:
        return f"Signs watched over steps {_window(rows[-1], window)} of the run. "
    return f"Signs watched over {window:.0f} steps{' of the run, its last' if watched == 'run' else ''}. "


def _window(row: Mapping[str, Any], window: float) -> str:
    """The steps of a window that ended with a row.

    >>> _window({"step": 120}, 100)
    '21 to 120'
    """
    end = finite(row, "step") or 0.0
    return f"{max(1.0, end - window + 1):.0f} to {end:.0f}"


def _data(record: Record, l1: Mapping[str, Any]) -> str:
    data = l1.get("data")
    noisy = isinstance(data, str) and "batch" in data and "full" not in data and not record.full
    said = f" The data's gradient is that of {data}." if data else ""
    return said + (" One batch's gradient is noisy, and the count with it." if noisy else "")


def _zeros(record: Record, l1: Mapping[str, Any]) -> Iterator[Finding]:
    weights, zeros = finite(l1, "weights"), finite(l1, "zeros")
    due, exact = finite(l1, "kkt_zeros"), finite(l1, "kkt_exact")
    if not due or exact is None or zeros is None or exact >= LOST * due:
        return
    of = f" of {weights:.0f}" if weights is not None else ""
    evidence = f"By the optimality conditions (|∂f| < λ, and within a bounce of 0) {due:.0f} weights should be zero; "
    evidence += f"{exact:.0f} of them exactly are.{_data(record, l1)}"
    do, lines = _proximal(record, l1, zeros)
    alone = _through(l1) == {"proximal"}
    why = (
        "Weights that should be zero have a size that the learning rate sets: pruning by a threshold cuts by that, "
        "not by the data. A larger λ does not shrink them."
    )
    if alone:
        why = "Under proximal steps zeros come with time: the run may be short of where it would end."
    yield Finding(
        "l1-no-zeros",
        "note" if alone else "problem",
        f"The L1 penalty left {zeros:.0f}{of} weights exactly zero, and {due:.0f} should be.",
        evidence,
        why,
        "Train on, or decay the learning rate later." if alone else do,
        "" if alone else lines,
        zeros,
        "exact zeros",
    )


def _proximal(record: Record, l1: Mapping[str, Any], zeros: float) -> tuple[str, str]:
    """The advice to take proximal steps, as far as the trial bears it, and the mending lines."""
    lines = l1.get("lines")
    lines = lines if isinstance(lines, str) else ""
    trial = record.trial("proximal")
    if trial is None:
        said = "Take the penalty by proximal steps, which make exact zeros. That was not tried here."
        return _unless(record, said), lines
    found = finite(trial.row, "zeros")
    told = trial.told("proximal steps")
    counted = "" if found is None else f" They gave {found:.0f} exact zeros, from {zeros:.0f}."
    if trial.row.get("diverged") is True or (found is not None and found <= zeros):
        return f"Proximal steps are no advice as they were tried. {told}{counted}", ""
    return _unless(record, f"Take the penalty by proximal steps.{counted} {told}"), lines


def _span(value: Any) -> tuple[float, float, float] | None:
    span = mapping(value)
    low, mean, high = (finite(span, key) for key in ("low", "mean", "high"))
    return None if low is None or mean is None or high is None else (low, mean, high)


def _law(measured: float, value: Any) -> tuple[str, str]:
    """What the law gives, one number or a range, and a sentence with a space where the measured number is outside."""
    span = _span(value)
    if span is None:
        return "no law is known for it here", ""
    low, mean, high = span
    law = f"{say(mean)} by the law" + ("" if low == high else f" ({say(low)} to {say(high)} by the start)")
    if low * (1 - WITHIN) <= measured <= high * (1 + WITHIN):
        return law, ""
    return law, "Outside of the law: something else moves them too, or they are not settled. "


def _chatter(record: Record, l1: Mapping[str, Any]) -> Iterator[Finding]:
    count, followed, over = finite(l1, "chattering"), finite(l1, "followed"), _watched(record, l1)
    amplitude, caused = finite(l1, "amplitude"), finite(l1, "by_penalty")
    noisy = (count or 0.0) - (caused if caused is not None else count or 0.0)
    count = caused if caused is not None else count
    by = "the data's own gradient" if record.full else "the noise of the batches"
    if count and amplitude is not None:
        of = f" of {followed:.0f}" if followed else ""
        law, (met, off) = l1.get("law"), _law(amplitude, l1.get("amplitude_law"))
        yield Finding(
            "l1-chatter",
            "note",
            f"{count:.0f}{of} weights bounce about 0 at a mean |w| of {say(amplitude)}: {met}.",
            f"{over}{off}{f'The law: {law}. ' if law else ''}Mean over these weights; the law's range is no error bar."
            + (f" {noisy:.0f} more change sign by {by}, which outweighs λ there." if noisy else ""),
            "λ sign(w) is as large for a small weight, so that steps carry it past 0. The bounce follows the "
            "learning rate: decay shrinks it, and makes no zero.",
            _unless(record, "Take proximal steps: they have zeros, and no bounce."),
            number=amplitude,
            unit="mean |w|",
        )
    flickering = finite(l1, "flickering")
    if flickering and followed and flickering / followed >= NOTHING_LOST:
        yield Finding(
            "l1-flicker",
            "note",
            f"{flickering:.0f} of {followed:.0f} weights leave 0 and come back.",
            over.strip() or "Over how many steps is not stored.",
            "Gradients that swing about λ lift weights off 0 and proximal steps put them back: at the full batch that "
            "is an oscillation of the steps."
            if record.full
            else "Minibatch noise lifts weights off 0 and proximal steps put them back: which are zero at the end is "
            "in part chance.",
            "Take zeros over several last steps; shorter steps swing less, which was not tried here."
            if record.full
            else "Take zeros over several last steps, or average gradients (`FromRule` with dual averaging); a decay "
            "of the learning rate does not stop it.",
            number=flickering,
            unit="weights",
        )


def _floor_share(l1: Mapping[str, Any]) -> float:
    held, norm = finite(l1, "floor_measured"), finite(l1, "norm")
    return held / norm if held is not None and norm else 0.0


def _floor(record: Record, l1: Mapping[str, Any]) -> Iterator[Finding]:
    share, held = _floor_share(l1), finite(l1, "floor_measured")
    if share < FLOOR_NOTE or held is None:
        return
    windows, (law, off) = last_third(record.chatter), _law(held, l1.get("floor"))
    late = None if record.early(windows) else spread(finite(row, "norm") for row in windows)
    also = f"‖w‖₁ in {record.where(windows, 'windows of signs')}: {late}." if late is not None else ""
    yield Finding(
        "l1-floor",
        "problem" if share >= FLOOR_PROBLEM else "note",
        f"{percent(min(share, 1.0))} of the L1 norm is the bounce of weights about 0, and not what the data ask for.",
        f"They hold {say(held)} of ‖w‖₁ = {say(finite(l1, 'norm'))}; {law}. {off}{also}".strip(),
        "That part grows with the learning rate and, but under RMSprop and Adam, with λ: the norm does not measure "
        "sparsity, and a larger λ may raise it.",
        "Judge sparsity by exact zeros of proximal steps, not by the norm.",
        number=share,
        unit="of the L1 norm",
    )


def _turn(record: Record, l1: Mapping[str, Any]) -> Iterator[Finding]:
    turning = mapping(l1.get("turning"))
    rows = [mapping(row) for row in sequence(turning.get("rows"))]
    norms = [
        (m, n) for row in rows if (m := finite(row, "multiple")) is not None and (n := finite(row, "norm")) is not None
    ]
    if len(norms) < 2:
        return
    turn, settled, steps = finite(turning, "turn"), turning.get("settled") is True, finite(turning, "steps")
    evidence = "‖w‖₁ at " + ", ".join(f"{m:g} λ: {say(n)}" for m, n in norms)
    evidence += f"; each after {steps:g} steps from here, once." if steps else "; each once."
    foreseen = finite(turning, "predicted")
    evidence += f" The law puts the turn at {foreseen:g} λ." if foreseen is not None else ""
    evidence += "" if settled else " Some norms were still moving: a longer trial may say otherwise."
    why = "Beyond the turn the bounces of weights that should be 0 gain more than the penalty takes off the others."
    top, low = max(n for _, n in norms), min(n for _, n in norms)
    if top - low < STILL * top:
        yield Finding(
            "l1-turning",
            "note",
            f"The trials of λ moved nothing: ‖w‖₁ is the same to 1 % at {norms[0][0]:g} and {norms[-1][0]:g} times it.",
            evidence,
            _still(l1, norms[-1][0], steps),
            "Longer trials would tell; whether λ does its work is not known from these.",
        )
        return
    told: dict[str, Any] = {"number": turn, "unit": "times the present λ"}
    if turn is None and turning.get("falls") is False:
        yield Finding(
            "l1-turning",
            "note",
            "Whether a larger λ raises the L1 norm cannot be told from these trials.",
            evidence,
            "It is told where all λ above that of the least norm leave larger norms, by more than these still drift.",
            "Longer trials may tell.",
        )
        return
    if turn is None:
        title = f"A larger λ still lowers the norm, up to {norms[-1][0]:g} times the present one."
        yield Finding("l1-turning", "fine", title, evidence, "λ still does what it is meant to do to the norm.", **told)
        return
    do = _unless(record, "Take proximal steps before you raise λ for more sparsity: under them the norm falls with λ.")
    if turn <= 1:
        at = "the present λ" if turn == 1 else f"{turn:g} times the present λ"
        title = f"A larger λ raises the L1 norm here, already from {at} on."
        yield Finding("l1-turning", "problem" if settled else "note", title, evidence, why, do, **told)
        return
    title = f"From {turn:g} times the present λ on, a larger λ raises the L1 norm."
    yield Finding("l1-turning", "note", title, evidence, why, do, **told)


def _still(l1: Mapping[str, Any], multiple: float, steps: float | None) -> str:
    """Why the norm did not move, where the learning rate says it."""
    rates = [rate for lr in sequence(l1.get("lr")) if (rate := finite({"lr": lr}, "lr")) is not None]
    lams: dict[str, float] = {}
    for term in map(mapping, sequence(l1.get("terms"))):
        lams[str(term.get("name"))] = lams.get(str(term.get("name")), 0.0) + (finite(term, "lam") or 0.0)
    norm, weights = finite(l1, "norm"), finite(l1, "weights")
    if l1.get("optimizer") == "SGD" and rates and lams and steps and norm and weights:
        reach = max(rates) * max(lams.values()) * multiple * steps
        if reach < STILL * norm / weights:
            return (
                f"At the learning rate {say(max(rates))} all of a trial's steps of λ move a weight by {say(reach)} at "
                f"most, but for momentum; the mean |w| is {say(norm / weights)}."
            )
    return "So few steps, at this learning rate, move the weights by too little for a larger λ to show."


def _lints(l1: Mapping[str, Any], told: set[str]) -> Iterator[Finding]:
    seen = set(told)
    for lint in map(mapping, sequence(l1.get("lints"))):
        name, says = str(lint.get("id") or "unnamed"), str(lint.get("says") or "")
        if not says or name in seen:
            continue
        seen.add(name)
        evidence = str(lint.get("evidence") or "how often is not stored").rstrip(".")
        lines = lint.get("lines")
        yield Finding(
            f"l1-lint-{name}",
            "problem" if name in SERIOUS else "note",
            says,
            f"{evidence[0].upper()}{evidence[1:]}.",
            WHY.get(name, "The penalty then does something else than its λ says."),
            str(lint.get("do") or ""),
            lines if isinstance(lines, str) else "",
        )


def _fine(record: Record, l1: Mapping[str, Any]) -> Iterator[Finding]:
    weights, zeros = finite(l1, "weights"), finite(l1, "zeros")
    if l1.get("fine") is not True or weights is None or zeros is None:
        return
    due, exact = finite(l1, "kkt_zeros"), finite(l1, "kkt_exact")
    how = "Proximal is in use" if "proximal" in _through(l1) else "The L1 penalty acts"
    kkt = (
        f"{exact:.0f} of the {due:.0f} weights that should be zero are. "
        if due is not None and exact is not None
        else ""
    )
    yield Finding(
        "l1-fine",
        "fine",
        f"{how}: {zeros:.0f} of {weights:.0f} weights are exactly zero, and none bounces about 0.",
        f"{kkt}No lint fires; {say(finite(l1, 'followed'))} weights followed over {say(finite(l1, 'window'))} steps."
        + _data(record, l1),
        "These zeros need no threshold: `compress` can take them out." if zeros else "",
        number=zeros,
        unit="exact zeros",
    )


def _changed(l1: Mapping[str, Any]) -> Iterator[Finding]:
    changed = mapping(l1.get("changed"))
    seen = [finite({"at": value}, "at") for key in ("lam", "steps") for value in sequence(changed.get(key))]
    if len(seen) != 4 or any(value is None for value in seen):
        return
    before, after, first, last = seen
    yield Finding(
        "l1-lam-changed",
        "note",
        f"λ changed while the run went on: {say(before)} at step {say(first)}, {say(after)} at step {say(last)}.",
        f"That of {changed.get('name')}, as the optimiser saw it in these two steps; not looked at between them.",
        "What is told of the penalty is of its last λ, and the weights may still be on their way to where that leads."
        if after
        else "What the penalty did to the weights before it left the loss is not audited.",
        number=after,
        unit="λ",
    )


def _unaudited(record: Record, l1: Mapping[str, Any]) -> Iterator[Finding]:
    """Weights that bounce, where there is no audit: for want of a penalty, or because it could not be made."""
    rows = [row for row in record.chatter if finite(row, "chattering") is not None and finite(row, "weights")]
    if not rows or (not record.bouncing and (sequence(l1.get("terms")) or l1.get("changed"))):
        return
    count, followed = finite(rows[-1], "chattering") or 0.0, finite(rows[-1], "weights") or 1.0
    if count / followed < UNEXPLAINED:
        return
    window = finite(rows[-1], "window")
    over = f" (steps {_window(rows[-1], window)})" if window and finite(rows[-1], "step") is not None else ""
    evidence = f"In the last of {record.where(rows, 'windows')}{over}; mean |w| {say(finite(rows[-1], 'amplitude'))}."
    head, told = f"{count:.0f} of {followed:.0f} weights bounce about 0", (count / followed, "of the weights followed")
    if not record.bouncing:
        yield Finding(
            "l1-unexplained",
            "note",
            f"{head}, and no L1 penalty was found.",
            evidence,
            f"{'An oscillation of the steps' if record.full else 'Minibatch noise'} does that to weights near 0; "
            "so does a penalty that is added where it was not looked for.",
            _unless(record, "If there is a penalty, take it by Proximal; then its weights rest at 0."),
            "",
            *told,
        )
        return
    terms = [mapping(term) for term in sequence(l1.get("terms"))]
    found = [f"λ = {say(finite(term, 'lam'))} ({term.get('place') or term.get('name')})" for term in terms]
    yield Finding(
        "l1-unaudited",
        "note",
        f"{head}; an L1 penalty was found, and could not be audited.",
        f"{evidence} The penalty: {listed(dict.fromkeys(found))}.",
        "λ sign(w) is as large for a small weight, so that steps carry it past 0; so does noise. What is of which is "
        "not known here.",
        _unless(record, "Take proximal steps: under them weights rest at 0. That was not tried here."),
        str(l1.get("lines") or ""),
        *told,
    )
