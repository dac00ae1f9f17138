"""The turn: the λ at which a larger penalty starts to raise the norm, by short continuations of the run itself.

A continuation takes N steps of a copy of the optimiser from where the run stands, and puts everything back, bit by bit.
The penalty is scaled without knowing its formula: its gradient is λ sign(w), so (m − 1)λ sign(w) is added.
"""

from __future__ import annotations

import contextlib
import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise
from typing import Any

import torch

from nonsmooth.penalties import L1
from nonsmooth.torch.effective import own_step, table_of, unwrapped
from nonsmooth.torch.l1_audit.laws import ROOTS, Closure, Penalised, bounce_of, gradient, lams_of, penalised_weights
from nonsmooth.torch.l1_audit.terms import PenaltyTerm
from nonsmooth.torch.proximal import Proximal
from nonsmooth.torch.undisturbed import undisturbed

__all__ = ["Turning", "TurningRow", "continued", "turning_lam"]

MULTIPLES = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
RISE = 0.005
"""By how much a norm must be above another to count as above it."""

DRIFT = 0.02
"""How far the norm may still move, between the third and the last quarter of the steps, and count as settled."""


@dataclass(frozen=True)
class TurningRow:
    """At a multiple of λ: the mean ‖w‖₁ over the last half of the steps, exact zeros at the end, and the drift.

    drift: the last quarter's mean over the third quarter's, less 1. `predicted`: ‖w*‖₁ + Σ τλ(1 + r²)/2 over the zeros
    of w*, w* being where as many proximal steps lead, `proximal` its norm and `proximal_zeros` its exact zeros; None
    where they were not run.

    >>> TurningRow(2.0, 10.0, 0, 0.0).settled
    True
    """

    multiple: float
    norm: float
    zeros: int
    drift: float
    predicted: float | None = None
    proximal: float | None = None
    proximal_zeros: int | None = None

    @property
    def settled(self) -> bool:
        return abs(self.drift) <= DRIFT


@dataclass(frozen=True)
class Turning:
    """‖w‖₁ against multiples of λ, after `steps` steps each on `data`, at the learning rate of now.

    >>> rows = tuple(TurningRow(m, norm, 0, 0.0) for m, norm in ((1.0, 5.0), (2.0, 4.0), (4.0, 6.0)))
    >>> Turning(rows, 200, "the last batch").turn
    2.0
    """

    rows: tuple[TurningRow, ...]
    steps: int
    data: str

    @property
    def turn(self) -> float | None:
        """The multiple of λ with the least norm, if all larger ones have norms above it; None if not.

        Above is by more than 0.5 %, and by more than both norms still drift.
        """
        return self._turn([row.norm for row in self.rows])

    @property
    def predicted(self) -> float | None:
        """The same by the law, with the drifts as measured; None if it foresees no turn here, or was not asked."""
        norms = [row.predicted for row in self.rows]
        return None if any(n is None for n in norms) else self._turn([float(n or 0.0) for n in norms])

    def _turn(self, norms: list[float]) -> float | None:
        least = norms.index(min(norms))
        larger = range(least + 1, len(norms))
        return self.rows[least].multiple if larger and all(self._above(norms, i, least) for i in larger) else None

    def _above(self, norms: list[float], i: int, j: int) -> bool:
        more = norms[i] - norms[j]
        drift = abs(self.rows[i].drift) * norms[i] + abs(self.rows[j].drift) * norms[j]
        return more > RISE * norms[j] and more > drift

    @property
    def falls(self) -> bool:
        """Whether the largest λ has the least norm, to 0.5 %, below that of the smallest, and none raised the norm.

        Where there is no turn either, these trials do not tell.
        """
        norms = [row.norm for row in self.rows]
        raised = any(self._above(norms, j, i) for i, j in combinations(range(len(norms)), 2))
        return self._above(norms, 0, -1) and norms[-1] <= min(norms) * (1 + RISE) and not raised

    @property
    def settled(self) -> bool:
        """Whether no norm drifts by more than 2 % any more; if one does, a longer continuation may say otherwise."""
        return all(row.settled for row in self.rows)

    def __str__(self) -> str:
        law = all(row.predicted is not None for row in self.rows)
        head = f"{'λ times':>9}  {'‖w‖₁':>10}  {'exact zeros':>11}"
        head += f"   {'law ‖w‖₁':>10}   {'Proximal ‖w‖₁':>13}  {'exact zeros':>11}" if law else ""
        lines = [f"the norm against λ, each after {self.steps} steps from here ({self.data or 'data not named'})", head]
        for row in self.rows:
            extra = f"   {row.predicted:10.4g}   {row.proximal:13.4g}  {row.proximal_zeros:11d}" if law else ""
            still = "" if row.settled else f"  (still moving, {row.drift:+.0%})"
            lines.append(f"{row.multiple:9.4g}  {row.norm:10.4g}  {row.zeros:11d}{extra}{still}")
        return "\n".join(lines)


def turning_lam(
    optimizer: Any,
    terms: Sequence[PenaltyTerm],
    closure: Closure | Sequence[Closure],
    named: Mapping[str, torch.Tensor],
    *,
    steps: int = 200,
    multiples: Sequence[float] = MULTIPLES,
    law: bool = True,
    data: str = "",
) -> Turning:
    """Continue the run for `steps` steps at each multiple of λ, and read ‖w‖₁ of the penalised weights: a measurement.

    `closure` returns the loss as the script has it, the penalty in it where a term is "autograd"; several are taken in
    turn, as batches are. `named` holds the parameters by name. The learning rate stays as it is now, and nothing is
    clipped. With `law` there are as many proximal steps again, for what the law predicts. A continuation that has not
    settled says so by its drift: growth at a smaller λ is slow. It costs steps · len(multiples) gradients, twice that
    with the law.

    Everything is put back bit by bit: parameters, buffers, `.grad`, random numbers; the optimiser is a copy.

    Raises ValueError, in one sentence, for fewer than 16 steps, multiples that do not rise, or where no term acts.

    >>> w = torch.nn.Parameter(torch.full((1,), 0.025, dtype=torch.float64))
    >>> optimizer = torch.optim.SGD([w], lr=0.1)
    >>> found = turning_lam(optimizer, [PenaltyTerm("w", 0.5, "autograd")], lambda: 0.5 * w.abs().sum(), {"w": w},
    ...                     steps=16, multiples=(1.0, 4.0))
    >>> [round(row.norm, 12) for row in found.rows], found.turn  # λη/2 at each λ
    ([0.025, 0.1], 1.0)
    >>> w.item()
    0.025
    """
    if isinstance(steps, bool) or not (isinstance(steps, int) and steps >= 16):
        raise ValueError(f"turning_lam: steps must be a whole number, 16 or more, not {steps!r}.")
    rising = list(multiples)
    if not rising or rising[0] <= 0 or any(b <= a for a, b in pairwise(rising)):
        raise ValueError(f"turning_lam: multiples must be above 0 and rise, not {multiples!r}.")
    closures = [closure] if callable(closure) else list(closure)
    if not lams_of(terms):
        raise ValueError("turning_lam: no term acts on a parameter, so there is no λ to scale.")
    law = law and all(term.bounces for term in terms if term.acts)
    rows = []
    for m in rising:
        norms, zeros = continued(optimizer, terms, closures, named, steps, multiple=m)
        mean, drift = _tail(norms)
        foreseen = _predicted(optimizer, terms, closures, named, steps, m) if law else (None, None, None)
        rows.append(TurningRow(float(m), mean, zeros, drift, *foreseen))
    return Turning(tuple(rows), steps, data)


def _tail(norms: list[float]) -> tuple[float, float]:
    """The mean of the last half, and by how much its second half is above its first; all of them even in number."""
    quarter = max(2, len(norms) // 4 // 2 * 2)
    third, last = sum(norms[-2 * quarter : -quarter]), sum(norms[-quarter:])
    return (third + last) / (2 * quarter), last / third - 1 if third else (0.0 if last == third else math.inf)


def continued(
    optimizer: Any,
    terms: Sequence[PenaltyTerm],
    closures: Sequence[Closure],
    named: Mapping[str, torch.Tensor],
    steps: int,
    *,
    multiple: float = 1.0,
    watch: Callable[[], None] | None = None,
) -> tuple[list[float], int]:
    """‖w‖₁ of the penalised weights after each of `steps` steps as the script makes them, and exact zeros at the end.

    `watch` is called after each step, with the parameters at their new values.

    >>> w = torch.nn.Parameter(torch.tensor([3.0]))
    >>> optimizer = torch.optim.SGD([w], lr=0.5)
    >>> continued(optimizer, [PenaltyTerm("w", 1.0, "grad")], [lambda: 0 * w.sum()], {"w": w}, 3)
    ([2.5, 2.0, 1.5], 0)
    """
    lams = lams_of(terms)
    penalised = [named[name] for name in lams]
    norms = []
    with _here(optimizer) as run:
        run.scale(multiple)
        more = {id(named[name]): by["grad"] * multiple + by["autograd"] * (multiple - 1) for name, by in lams.items()}
        for t in range(steps):
            run.step(closures[t % len(closures)], more)
            if watch is not None:
                watch()
            norms.append(_norm(penalised))
        return norms, sum(int((p.detach() == 0).sum()) for p in penalised)


def _predicted(
    optimizer: Any,
    terms: Sequence[PenaltyTerm],
    closures: Sequence[Closure],
    named: Mapping[str, torch.Tensor],
    steps: int,
    multiple: float,
) -> tuple[float | None, float | None, int | None]:
    """(‖w*‖₁ + what chatter adds, ‖w*‖₁, exact zeros), w* by proximal steps at multiple · λ; None without τ."""
    lams = lams_of(terms)
    try:
        table_of(unwrapped(optimizer))
    except TypeError:
        return None, None, None
    whole = {name: by["autograd"] + by["grad"] for name, by in lams.items()}
    with _here(optimizer) as run:
        run.optimizer = Proximal(
            run.optimizer, [(L1(multiple * lam), [run.shadow(named[name])]) for name, lam in whole.items()]
        )
        less = {id(named[name]): -by["autograd"] for name, by in lams.items()}
        for t in range(steps):
            run.step(closures[t % len(closures)], less)
        parts = penalised_weights(optimizer, terms, named, closures)
        total, floor, zeros = 0.0, 0.0, 0
        for part in parts:
            zero = part.size == 0
            total += float(part.size.sum())
            zeros += int(zero.sum())
            floor += float(part.law(multiple * part.bouncing, _tau_at(optimizer, part, multiple))[zero].sum())
    floor *= bounce_of(optimizer).mean
    return (None if math.isnan(floor) else total + floor), total, zeros


def _tau_at(optimizer: Any, part: Penalised, multiple: float) -> torch.Tensor | None:
    """τ under multiple · λ sign(w): that of now; where it divides by the root of a mean of g², lr/√(λ² − c² + …)."""
    inner = unwrapped(optimizer)
    if table_of(inner).uniform:
        return part.tau
    if not isinstance(inner, ROOTS):
        return None
    group = next(g for g in inner.param_groups if any(q is part.p for q in g["params"]))
    lam = multiple * part.bouncing
    v = (lam**2 - part.slope**2).clamp(min=0) + (part.square - part.slope**2).clamp(min=0)
    return float(group["lr"]) / (1 - float(group.get("momentum", 0.0))) / (v.sqrt() + group["eps"])


class _Run:
    """A copy of an optimiser that steps copies of its parameters, and writes their values where the closure reads."""

    def __init__(self, optimizer: Any) -> None:
        self.params = [p for group in optimizer.param_groups for p in group["params"]]
        self.shadows = {id(p): torch.nn.Parameter(p.detach().clone(), p.requires_grad) for p in self.params}
        self.optimizer = _copied(optimizer, dict(self.shadows))

    def shadow(self, p: torch.Tensor) -> torch.Tensor:
        return self.shadows[id(p)]

    def scale(self, multiple: float) -> None:
        """Scale the penalties of a Proximal."""
        if isinstance(self.optimizer, Proximal):
            for _, entry in self.optimizer.entries():
                if entry["lam"] is not None:
                    entry["lam"] *= multiple

    def step(self, closure: Closure, more: Mapping[int, float]) -> None:
        """One step, with more[p] · sign(p) added to the gradient of the closure's loss."""
        trained = [p for p in self.params if p.requires_grad]
        with torch.no_grad():
            for p, g in zip(trained, gradient(closure, trained), strict=True):
                if lam := more.get(id(p), 0.0):
                    g = lam * p.sign() if g is None else g + lam * p.sign()
                self.shadow(p).grad = g
            own_step(type(self.optimizer))(self.optimizer)
            for p in trained:
                p.data.copy_(self.shadow(p))


@contextlib.contextmanager
def _here(optimizer: Any) -> Iterator[_Run]:
    """A run from where the optimiser stands; at the end all is as it was."""
    stepping = unwrapped(optimizer, Proximal)
    params = [p for group in stepping.param_groups for p in group["params"]]
    kept = [p.detach().clone() for p in params]
    try:
        with undisturbed(params):
            yield _Run(stepping)
    finally:
        for p, value in zip(params, kept, strict=True):
            p.data.copy_(value)


def _copied(optimizer: Any, shadows: dict[int, Any]) -> Any:
    """The optimiser with other parameters and a state of its own; its hooks, a scheduler's included, are not called."""
    new = object.__new__(type(optimizer))
    new.__dict__.update(optimizer.__dict__)
    if isinstance(optimizer, Proximal):
        new.__dict__["optimizer"] = _copied(optimizer.optimizer, shadows)
        return new
    new.__dict__["state"] = copy.deepcopy(optimizer.state, dict(shadows))
    new.__dict__["param_groups"] = copy.deepcopy(optimizer.param_groups, dict(shadows))
    return new


def _norm(params: Sequence[torch.Tensor]) -> float:
    return sum(float(p.detach().abs().sum(dtype=torch.float64)) for p in params)
