"""What is seen of a step: gradients before it, after it, and of the frozen piece after it; by one process or all.

Over ranks each process looks at its own samples alone, waiting for none; what they saw is then brought together.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.utils.checkpoint import CheckpointError

from nonsmooth.torch.hessian import WIDE
from nonsmooth.torch.outside import copies
from nonsmooth.torch.ranks import MeanOverRanks
from nonsmooth.torch.selection import Flip, Selection, eagerly, flips, record, replay
from nonsmooth.torch.selection.runs import CHECKPOINTED
from nonsmooth.torch.steps.evaluation import Closure, Pieces, SameRandomNumbers, gradient_of, put
from nonsmooth.torch.undisturbed import undisturbed

WHO = "measure_step"


@dataclass(frozen=True, eq=False)
class Seen:
    """f and g before the step, f⁺, g⁺ and the `frozen` g_F after it (nan where undefined); what flipped or hides."""

    f: float
    g: Sequence[torch.Tensor]
    f_next: float
    g_next: Pieces
    frozen: Pieces
    before: Selection
    flips: tuple[Flip, ...]
    undefined: tuple[str, ...]
    unseen: tuple[str, ...]


def seen(closure: Closure, ps: list[torch.Tensor], step: Any, again: SameRandomNumbers) -> Seen:
    """Look before and after the step, which stays taken; over all ranks where the closure is their mean."""
    if not isinstance(closure, MeanOverRanks):
        return _seen(closure, ps, step, again, WIDE)
    with closure.ranks.together(WHO):
        own = _seen(closure.own, ps, step, again, sys.maxsize)  # none of them depends on its disk
    return _together(own, closure, ps)


def _seen(closure: Closure, ps: list[torch.Tensor], step: Any, again: SameRandomNumbers, few: int) -> Seen:
    undefined: list[str] = []
    try:
        with undisturbed(ps), again():
            loss, before = record(closure)
            f, g = loss.item(), gradient_of(WHO, loss, ps)
            del loss
    except CheckpointError:  # recorded once, run anew without the record
        undefined.append(CHECKPOINTED)
        before = Selection(())
        f, g = _plain(closure, ps, again)
    waiting = copies(g, few, own=True)
    g = []
    if callable(step):
        step()
    else:
        put(ps, _checked(ps, step))
    if undefined:
        f_next, g_next = _plain(closure, ps, again)
    else:
        with undisturbed(ps), again():
            loss, after = record(closure)
            f_next, g_next = loss.item(), gradient_of(WHO, loss, ps)
            del loss
    g_F = _nowhere(ps)
    flipped: tuple[Flip, ...] = ()
    try:
        if not undefined:
            with undisturbed(ps), again():
                g_F = gradient_of(WHO, replay(closure, before), ps, unused=True)
            flipped = flips(before, after)
    except (ValueError, CheckpointError) as error:
        g_F = _nowhere(ps)
        undefined.append(CHECKPOINTED if isinstance(error, CheckpointError) else str(error))
    return Seen(f, waiting, f_next, g_next, g_F, before, flipped, tuple(undefined), before.unseen)


def _together(own: Seen, closure: MeanOverRanks, ps: list[torch.Tensor]) -> Seen:
    """The means of losses and gradients, and all ranks' flips as if of one run; `before` is this rank's."""
    ranks, weight = closure.ranks, closure.weight
    losses = torch.tensor([own.f, own.f_next], dtype=torch.float64, device=ps[0].device)
    f, f_next = ranks.mean([losses], weight)[0].tolist()
    g, g_next, g_F = (ranks.mean(pieces, weight) for pieces in (own.g, own.g_next, own.frozen))
    rows = ranks.every((own.flips, own.undefined, own.unseen))
    merged: dict[Any, Flip] = {}
    for flipped, _, _ in rows:
        for i, b in enumerate(flipped):
            a = merged.setdefault((i, b.layer, b.operation, b.whole), Flip(b.layer, b.operation, 0, 0, 0, b.whole))
            counts = {name: getattr(a, name) + getattr(b, name) for name in ("units", "flipped", "ties")}
            merged[i, b.layer, b.operation, b.whole] = replace(a, **counts)
    undefined, unseen = (tuple(dict.fromkeys(why for row in rows for why in row[k])) for k in (1, 2))
    return Seen(f, g, f_next, g_next, g_F, own.before, tuple(merged.values()), undefined, unseen)


def _nowhere(ps: list[torch.Tensor]) -> Pieces:
    """nan in the shapes of the parameters, and in no memory."""
    return [p.new_full((), math.nan).expand(p.shape) for p in ps]


def _plain(closure: Closure, ps: list[torch.Tensor], again: SameRandomNumbers) -> tuple[float, Pieces]:
    """The loss and its gradient with no record taken."""
    with undisturbed(ps), again(), eagerly():
        loss = closure()
        return loss.item(), gradient_of(WHO, loss, ps)


def _checked(ps: list[torch.Tensor], step: Iterable[Any]) -> Sequence[torch.Tensor]:
    values = [v[1] if isinstance(v, tuple) else v for v in step]
    if [tuple(v.shape) for v in values] != [tuple(p.shape) for p in ps]:
        raise ValueError("measure_step: the parameters after the step must have the shapes of those before it.")
    return values
