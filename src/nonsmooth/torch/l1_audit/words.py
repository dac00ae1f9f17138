"""The audit of an L1 penalty in words: the sentence that matters first, then the numbers, the lints, the lines."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nonsmooth.torch.l1_audit.audit import L1Audit

__all__: list[str] = []

WIDTH = 110
LITTLE = 0.05
"""A floor below this part of the norm spoils zeros and not the norm."""


def words(audit: L1Audit) -> str:
    """A block for a terminal, of lines of 110 characters, code and tables apart."""
    lines = [_headline(audit)]
    if any(term.acts for term in audit.terms):
        lines += _numbers(audit)
    if audit.turning is not None:
        lines += ["", *_turning(audit)]
    for lint in audit.lints:
        lines += ["", _wrap(f"! {lint.id}: ", lint.says)]
        lines += [_wrap("    seen: ", lint.evidence), _wrap("    do:   ", lint.do)]
        if lint.lines and lint.lines != audit.lines:
            lines += [f"          {line}" for line in lint.lines.splitlines()]
    if audit.lines:
        lines += ["", "to mend it:", *(f"    {line}".rstrip() for line in audit.lines.splitlines())]
    return "\n".join(lines)


def _wrap(head: str, text: str) -> str:
    return textwrap.fill(text, WIDTH, initial_indent=head, subsequent_indent=" " * len(head))


def _headline(audit: L1Audit) -> str:
    if not audit.terms:
        return "L1: no penalty was found."
    if not any(term.acts for term in audit.terms):
        return "L1: the penalty does nothing: no weight feels it."
    if audit.fine:
        return (
            f"L1: fine: {audit.zeros} of {audit.weights} weights are exactly zero, and the penalty makes none bounce."
        )
    missing = audit.kkt_zeros - audit.kkt_exact
    if missing:
        bounce = f"; {audit.chattering} bounce about 0 instead of resting there." if audit.chattering else "."
        rises = audit.turning is not None and audit.turning.turn is not None and audit.turning.turn <= 1
        more = " A larger λ would RAISE the norm." if rises else ""
        return f"L1: {missing} of {audit.weights} weights should be zero and are not{bounce}{more}"
    look = f"; {len(audit.lints)} {'thing' if len(audit.lints) == 1 else 'things'} to look at" if audit.lints else ""
    bounce = f", {audit.chattering} bounce about 0" if audit.chattering else ""
    return f"L1: {audit.zeros} of {audit.weights} weights are exactly zero{bounce}{look}."


def _numbers(audit: L1Audit) -> list[str]:
    lams = sorted({layer.lam for layer in audit.layers})
    lam = f"{lams[0]:.4g}" if len(lams) == 1 else f"{lams[0]:.4g} to {lams[-1]:.4g}"
    ways = ", ".join(dict.fromkeys(term.through for term in audit.terms if term.acts))
    lr = ", ".join(f"{lr:.4g}" for lr in dict.fromkeys(audit.lr))
    on = f"; gradient on {audit.data}" if audit.data else ""
    rows = {
        "penalty": f"λΣ|w|, λ = {lam}, through {ways}, on {audit.weights} weights; {audit.optimizer}, lr {lr}",
        "norm": f"‖w‖₁ = {audit.norm:.4g}; the largest tenth of the weights holds {audit.largest_share:.0%} of it",
        "zeros": f"{audit.zeros} exact; {audit.kkt_zeros} should be zero (|∂f| < λ and within a bounce of 0{on}), "
        f"and {audit.kkt_exact} of those are",
        "chatter": _chatter(audit),
    }
    if audit.by_penalty and audit.amplitude_law is not None and audit.floor is not None:
        share = audit.floor_measured / audit.norm if audit.norm else 0.0
        rows["bounce"] = f"mean |w| = {audit.amplitude:.3g} measured; the law says {audit.amplitude_law}"
        rows["floor"] = (
            f"together {audit.floor_measured:.3g} measured, {100 * share:.2g} % of the norm"
            f"{': the bounce costs you zeros, not norm' if share < LITTLE else ''}; the law says {audit.floor}"
        )
    rows["the law"] = audit.law
    return [_wrap(f"  {name:9} ", text) for name, text in rows.items()]


def _chatter(audit: L1Audit) -> str:
    flicker = f"; {audit.flickering} leave 0 and come back" if audit.flickering else ""
    if not audit.chattering:
        return f"none of {audit.followed} weights in {audit.window} steps" + flicker
    share = audit.chattering / max(1, audit.followed)
    said = f"{audit.chattering} of {audit.followed} weights ({share:.0%}) change sign again and again"
    noisy = audit.chattering - audit.by_penalty
    by = f": {audit.by_penalty} by the penalty, {noisy} by gradients of the data larger than λ" if noisy else ""
    return f"{said} in {audit.window} steps{by}{flicker}"


def _turning(audit: L1Audit) -> list[str]:
    turning = audit.turning
    if turning is None:
        return []
    turn, first, last = turning.turn, turning.rows[0].multiple, turning.rows[-1].multiple
    lams = {layer.lam for layer in audit.layers}

    def times(multiple: float) -> str:
        return f"{multiple:g} times this λ" + (f" ({multiple * next(iter(lams)):.4g})" if len(lams) == 1 else "")

    if turn is None and not turning.falls:
        says = "Whether a larger λ raises the norm cannot be told from these"
    elif turn is None:
        says = f"A larger λ still lowers the norm, up to {times(last)}"
    elif turn == first:
        says = f"A larger λ RAISES the norm, from {times(turn)} or less on"
    else:
        says = f"From {times(turn)} on, a larger λ RAISES the norm"
    if all(row.predicted is not None for row in turning.rows):
        law = turning.predicted
        says += f"; the law foresaw {'no turn' if law is None else f'the turn at {law:g} times'}"
    says += "." if turning.settled else ". Some norms still move: more steps may say otherwise."
    here = next((row for row in turning.rows if row.multiple == 1.0 and row.proximal_zeros is not None), None)
    if here is not None:
        says += (
            f" Proximal steps from here, at the same λ: {here.proximal_zeros} exact zeros in place of {here.zeros}, "
            f"and ‖w‖₁ = {here.proximal:.4g} in place of {here.norm:.4g}."
        )
    return [_wrap("  ", says), *("    " + line for line in str(turning).splitlines())]
