"""The L1 terms of a run: found at its first steps, and again in its last batch, for λ may have moved meanwhile."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping
from typing import Any

import torch

from nonsmooth.torch.batches import Batch
from nonsmooth.torch.l1_audit import PenaltyTerm, lam_by_name, summed
from nonsmooth.torch.penalty_terms import detached_terms, penalty_terms, proximal_terms
from nonsmooth.torch.selection import eagerly
from nonsmooth.torch.tape import Detached

__all__ = ["FoundTerms"]

WAYS = {
    "autograd": "in the loss",
    "grad": "not in the loss: its sign is added to .grad",
    "proximal": "not in the loss: taken by Proximal",
    "detached": "in the loss, with no gradient",
}
"""Where a penalty is, by the way it acts."""
CHANGED = 0.01
"""λ has changed where it is another by more than a hundredth: less is rounding."""


class FoundTerms:
    """What was found of a penalty, by the way it acts.

    >>> from nonsmooth.torch.program import Program
    >>> w = torch.nn.Parameter(torch.ones(2))
    >>> found, sgd = FoundTerms(), torch.optim.SGD([w], lr=0.1)
    >>> found.look(Batch([Program((), w)], 1), sgd, {"w": w})
    >>> found.words, found.of({"w": w}), found.changed({"w": w})
    ('none was found', [], None)
    """

    def __init__(self) -> None:
        self.by_way: dict[str, tuple[PenaltyTerm, ...]] = {}
        self._looked: dict[int, dict[str, float]] = {}  # λ by name, at each step that was looked at

    @property
    def words(self) -> str:
        """Where the penalty is."""
        return next((words for way, words in WAYS.items() if self.by_way.get(way)), "none was found")

    def of(self, named: Mapping[str, torch.Tensor]) -> list[PenaltyTerm]:
        """The terms on these parameters: what learns no longer has none."""
        return [term for terms in self.by_way.values() for term in terms if term.name in named]

    def detached(self, found: list[Detached], named: Mapping[str, torch.Tensor]) -> None:
        """Add what a tape saw of penalties that no gradient passes, one for each parameter."""
        known = self.by_way.get("detached", ())
        names = {term.name for term in known}
        self.by_way["detached"] = (*known, *(t for t in detached_terms(found, named) if t.name not in names))

    def look(
        self,
        batch: Batch,
        optimizer: Any,
        named: Mapping[str, torch.Tensor],
        more: Iterable[PenaltyTerm] = (),
        last: bool = False,
    ) -> None:
        """Take what is in the loss of a batch and in the optimiser, and `more`, in the place of what was found before.

        Where nothing is found by some way, what was found by it before stays; unless it is the `last` look.
        """
        with eagerly():
            terms = summed((*more, *penalty_terms(batch, named), *proximal_terms(optimizer, named)))
        found = {way: tuple(term for term in terms if term.through == way) for way in WAYS}
        gone = ("autograd", "proximal") if last else ()
        self.by_way |= {way: its for way, its in found.items() if its or way in gone}
        self._looked[batch.step] = lam_by_name(self.of(named))

    def look_again(self, batch: Batch, optimizer: Any, named: Mapping[str, torch.Tensor]) -> None:
        """The last look, where the weights are numbers still and the batch can be computed."""
        if all(bool(p.isfinite().all()) for p in named.values()):
            with contextlib.suppress(Exception), torch.enable_grad():
                self.look(batch, optimizer, named, last=True)

    def changed(self, named: Mapping[str, torch.Tensor]) -> dict[str, Any] | None:
        """Of the parameter whose λ moved most between the looks: its name, and λ at which two steps; None if none did.

        The first look at a run may come before a warm-up has begun: the second is what is compared with the last.
        """
        steps = sorted(self._looked)[-2:]
        if len(steps) < 2 or not named:
            return None
        first, last = (self._looked[step] for step in steps)
        off = {name: abs(last.get(name, 0.0) - first.get(name, 0.0)) for name in named}
        name = max(off, key=lambda name: off[name])
        lams = [first.get(name, 0.0), last.get(name, 0.0)]
        return {"name": name, "lam": lams, "steps": steps} if off[name] > CHANGED * max(lams) else None
