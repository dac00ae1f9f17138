"""The batches that a script trained on, as losses that can be computed again, and whether they are what it computed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.utils._pytree import tree_map

from nonsmooth.torch.l1_audit import PenaltyTerm, find_sign_in_grad
from nonsmooth.torch.program import Entry, Program
from nonsmooth.torch.selection import eagerly
from nonsmooth.torch.steps.evaluation import dot, flat, kept, norm, put
from nonsmooth.torch.undisturbed import undisturbed

__all__ = ["CLOSE", "Agreement", "Batch", "agreement"]

CLOSE = 1e-3
"""How near a loss or gradient that is computed again must come to the script's, as a share of it, to be the same."""
LARGEST = 2**26
"""The bytes up to which a batch is copied."""


@dataclass(eq=False)
class Batch:
    """The loss of the batch of one step, or of several where gradients were accumulated: a closure for the probes.

    >>> w = torch.nn.Parameter(torch.tensor([2.0]))
    >>> Batch([Program((), w), Program((), w)])().item()
    4.0
    """

    programs: Sequence[Program]
    step: int = 0

    def __call__(self) -> torch.Tensor:
        losses = [program() for program in self.programs]
        total = losses[0]
        for loss in losses[1:]:
            total = total + loss
        return total

    @property
    def value(self) -> float:
        """The loss that the script had."""
        return sum(program.value for program in self.programs)

    @property
    def identity(self) -> tuple[tuple[int, tuple[int, ...], int], ...]:
        """The tensors that it holds of the script's, by their memory: of a full batch they are the same each time."""
        return tuple((t.data_ptr(), tuple(t.shape), t._version) for p in self.programs for t, _ in p.constants)

    @property
    def stale(self) -> bool:
        """Whether the script has written into the batch since."""
        return any(program.stale for program in self.programs)

    def copied(self) -> Batch:
        """The same with copies of the script's tensors, for one that writes its next batch into them; if not too large.

        >>> x, add = torch.ones(2), lambda x: 2 * x
        >>> entry = Entry(add, (x,), {}, [1], set(), "", None, ())
        >>> from nonsmooth.torch.program import Slot
        >>> one = Batch([Program([entry], Slot(1), constants=[(x, x._version)])])
        >>> two = one.copied()
        >>> _ = x.zero_()
        >>> one.stale, one().item(), two.stale, two().item()
        (True, 0.0, False, 4.0)
        """
        own = {id(t): t for program in self.programs for t, _ in program.constants}
        if sum(t.numel() * t.element_size() for t in own.values()) > LARGEST:
            return self
        new = {key: t.detach().clone() for key, t in own.items()}

        def swap(leaf: Any) -> Any:
            return new.get(id(leaf), leaf) if isinstance(leaf, torch.Tensor) else leaf

        def entries(program: Program) -> list[Entry]:
            return [replace(e, args=tree_map(swap, e.args), kwargs=tree_map(swap, e.kwargs)) for e in program.entries]

        return Batch([replace(program, entries=entries(program), constants=[]) for program in self.programs], self.step)


@dataclass(frozen=True)
class Agreement:
    """How a script's backward calls, computed again, fit the `.grad` that its optimiser saw.

    count: how many of the last calls make it up; gap: the largest relative difference of a loss; clip: .grad over their
    gradient, where it is one factor (None: it cannot be told); terms: penalties whose sign was added to .grad; unknown:
    parameters of whose .grad a part was not recognised.

    >>> Agreement(1, 0.0, 0.5).clipped
    True
    """

    count: int
    gap: float
    clip: float | None
    terms: tuple[PenaltyTerm, ...] = ()
    unknown: tuple[str, ...] = ()

    @property
    def clipped(self) -> bool | None:
        """Whether the gradient was scaled on its way; None where it cannot be told."""
        return None if self.clip is None else abs(self.clip - 1) > CLOSE


def agreement(
    programs: Sequence[Program],
    named: Mapping[str, torch.Tensor],
    before: Sequence[torch.Tensor],
    seen: Sequence[torch.Tensor | None],
    masks: bool = True,
) -> Agreement:
    """Compute the losses and gradients of backward calls again at the parameters `before`, and compare.

    named: the parameters; seen: what was in their `.grad`. masks: whether random masks come out as the script drew
    them, which a compiled model's, run eagerly, do not. All is left as it was, bit by bit. Raises ValueError, in words,
    where a loss comes out as another.

    >>> w = torch.nn.Parameter(torch.tensor([2.0]))
    >>> loss = Program((), w)
    >>> loss.value = 2.0
    >>> agreement([loss], {"w": w}, [torch.tensor([2.0])], [torch.tensor([0.5])]).clip
    0.5
    """
    params = list(named.values())
    now = [p.detach().clone() for p in params]
    gap, grads = 0.0, []
    with kept(params, now):
        put(params, before)
        for program in programs:
            with undisturbed(params), eagerly():
                loss = program()
                live = loss.requires_grad
                found = torch.autograd.grad(loss, params, allow_unused=True) if live else (None,) * len(params)
            gap = max(gap, abs(float(loss.detach()) - program.value) / max(abs(program.value), 1e-12))
            if gap > CLOSE and masks:
                raise ValueError(
                    f"computed again, it was {float(loss.detach()):.6g} and not {program.value:.6g}; something in it "
                    "changes from call to call, or the parameters changed before the step, as in LBFGS"
                )
            grads.append(_flat(params, found))
    G = _flat(params, seen)
    best: tuple[float, int, torch.Tensor] = (float("inf"), len(grads), G)
    for count in range(len(grads), 0, -1):
        g = torch.stack(grads[-count:]).sum(0)
        off = _distance(G, _factor(G, g) * g)
        if off < 0.5 * best[0]:
            best = off, count, g
    off, count, g = best
    if off <= CLOSE:
        return Agreement(count, gap, _factor(G, g))
    if gap > CLOSE:
        return Agreement(count, gap, None)  # other masks: its gradient cannot be told from another
    sizes = [p.numel() for p in params]
    parts = [a.reshape(p.shape) for a, p in zip(g.split(sizes), params, strict=True)]
    had = [i for i, s in enumerate(seen) if s is not None]
    names = list(named)
    signs = find_sign_in_grad(
        [(names[i], before[i]) for i in had], [seen[i] for i in had], [parts[i].to(params[i]) for i in had]
    )
    return Agreement(count, gap, signs.clip_factor, signs.terms, signs.unknown)


def _flat(params: Sequence[torch.Tensor], values: Sequence[torch.Tensor | None]) -> torch.Tensor:
    return flat([torch.zeros_like(p) if v is None else v for p, v in zip(params, values, strict=True)])


def _factor(G: torch.Tensor, g: torch.Tensor) -> float:
    square = dot(g, g)
    return dot(G, g) / square if square else 1.0


def _distance(G: torch.Tensor, g: torch.Tensor) -> float:
    size = norm(G)
    return norm(G - g) / size if size else 0.0
