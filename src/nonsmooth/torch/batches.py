"""The batches that a script trained on, as losses that can be computed again, and whether they are what it computed."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.utils._pytree import tree_map

from nonsmooth.torch.l1_audit import PenaltyTerm, find_sign_in_grad
from nonsmooth.torch.program import Entry, Program
from nonsmooth.torch.selection import eagerly
from nonsmooth.torch.steps.evaluation import chunks, kept, put
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
    params, gap, offs = list(named.values()), 0.0, list[float]()
    total = [torch.zeros_like(p, dtype=torch.promote_types(p.dtype, torch.float32)) for p in params]
    with kept(params, [p.detach().clone() for p in params]):
        put(params, before)
        for program in reversed(programs):
            loss = _add_gradient(program, params, total)
            gap = max(gap, abs(loss - program.value) / max(abs(program.value), 1e-12))
            if gap > CLOSE and masks:
                raise ValueError(
                    f"computed again, it was {loss:.6g} and not {program.value:.6g}; something in it changes from call "
                    "to call, or the parameters changed before the step, as in LBFGS"
                )
            offs.append(_fit(seen, total)[1])
        count = len(offs)
        for fewer in range(count - 1, 0, -1):
            count = fewer if offs[fewer - 1] < 0.5 * offs[count - 1] else count
        if count < len(offs):  # that sum went on
            for a in total:
                a.zero_()
            for program in programs[-count:]:
                _add_gradient(program, params, total)
    clip, off = _fit(seen, total) if offs else (1.0, 0.0)
    if off <= CLOSE:
        return Agreement(count, gap, clip)
    if gap > CLOSE:
        return Agreement(count, gap, None)  # other masks: its gradient cannot be told from another
    had = [i for i, s in enumerate(seen) if s is not None]
    names = list(named)
    signs = find_sign_in_grad(
        [(names[i], before[i]) for i in had], [seen[i] for i in had], [total[i].to(params[i]) for i in had]
    )
    clip = signs.clip_factor if math.isfinite(signs.clip_factor) else 1.0
    return Agreement(count, gap, clip, signs.terms, signs.unknown)


def _add_gradient(program: Program, params: list[torch.Tensor], total: list[torch.Tensor]) -> float:
    """The loss of a backward call; its gradient is added to `total`, tensor by tensor."""
    with undisturbed(params), eagerly():
        loss = program()
        found = list(torch.autograd.grad(loss, params, allow_unused=True)) if loss.requires_grad else []
    value = float(loss.detach())
    del loss
    for into in total if found else ():
        g = found.pop(0)  # and is freed
        if g is not None:
            into += g.to_dense()
    return value


def _fit(seen: Sequence[torch.Tensor | None], g: Sequence[torch.Tensor]) -> tuple[float, float]:
    """c = ⟨G, g⟩/⟨g, g⟩ for what was seen, G, and ‖G − c g‖/‖G‖; 1 where g is 0, and 0 where G is."""

    def pairs() -> Iterator[tuple[torch.Tensor, ...]]:
        for G, own in zip(seen, g, strict=True):
            yield from chunks(torch.zeros_like(own) if G is None else G.detach().to_dense(), own)

    sums = [(float(G @ G), float(G @ own), float(own @ own)) for G, own in pairs()]
    size, both, square = (math.fsum(column) for column in zip(*sums, strict=True)) if sums else (0.0, 0.0, 0.0)
    c = both / square if square else 1.0
    return c, math.sqrt(math.fsum(float((G - c * own).square().sum()) for G, own in pairs()) / size) if size else 0.0
