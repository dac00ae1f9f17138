"""Penalty terms: what of λΣ|w| the optimiser sees, as plain data, and how to find it in `.grad`."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import torch

__all__ = ["PenaltyTerm", "SignInGrad", "find_sign_in_grad", "lam_by_name", "summed"]

Through = Literal["autograd", "grad", "proximal", "detached"]
MANY = 12
"""From so many weights on, a constant is told from rounding by being constant, however small it is."""

OUTLIERS = 0.005
"""The share of weights that may differ from the rest, such as those that were zero in another precision."""


@dataclass(frozen=True)
class PenaltyTerm:
    """λΣ|w| on one parameter, in the loss that the optimiser sees: a mean over n weights has λ/n here.

    through: "autograd", a term of the loss; "grad", λ sign(w) added to `.grad`; "proximal", by a `Proximal`;
    "detached", computed from `.data`, `.detach()` or `.item()`, and so without a gradient; its λ is 0 where that cannot
    be told. place: "file:line", or "".

    Raises ValueError for a λ that is negative or not finite, or another `through` or `reduction`.

    >>> PenaltyTerm("0.weight", 0.5, "autograd").acts
    True
    """

    name: str
    lam: float
    through: Through
    place: str = ""
    reduction: Literal["sum", "mean", ""] = ""

    def __post_init__(self) -> None:
        if isinstance(self.lam, bool) or not (isinstance(self.lam, (int, float)) and 0 <= self.lam < math.inf):
            raise ValueError(f"PenaltyTerm: lam must be a finite number, 0 or above, not {self.lam!r}.")
        if self.through not in get_args(Through):
            raise ValueError(f"PenaltyTerm: through must be one of {get_args(Through)}, not {self.through!r}.")
        if self.reduction not in ("sum", "mean", ""):
            raise ValueError(f"PenaltyTerm: reduction must be 'sum', 'mean' or '', not {self.reduction!r}.")

    @property
    def acts(self) -> bool:
        """Whether it moves the weights."""
        return self.through != "detached" and self.lam > 0

    @property
    def bounces(self) -> bool:
        """Whether it acts by a gradient, whose sign jumps at 0, and not by a prox."""
        return self.acts and self.through != "proximal"


def summed(terms: Iterable[PenaltyTerm]) -> tuple[PenaltyTerm, ...]:
    """One term for each parameter, way, place and reduction: of several, as of several backward calls, λ adds up.

    >>> term = PenaltyTerm("w", 0.25, "autograd", "train.py:7")
    >>> [found.lam for found in summed([term, term, PenaltyTerm("w", 0.25, "autograd", "train.py:8")])]
    [0.5, 0.25]
    """
    by: dict[tuple[str, ...], PenaltyTerm] = {}
    for term in terms:
        key = (term.name, term.through, term.place, term.reduction)
        by[key] = replace(term, lam=term.lam + (by[key].lam if key in by else 0.0))
    return tuple(by.values())


def lam_by_name(terms: Iterable[PenaltyTerm]) -> dict[str, float]:
    """λ of each parameter that a term acts on, all of its terms together.

    >>> lam_by_name([PenaltyTerm("w", 0.25, "autograd"), PenaltyTerm("w", 0.5, "grad")])
    {'w': 0.75}
    """
    found: dict[str, float] = {}
    for term in terms:
        if term.acts:
            found[term.name] = found.get(term.name, 0.0) + term.lam
    return found


@dataclass(frozen=True)
class SignInGrad:
    """What `.grad` holds beside the gradient of the loss: the terms found, one factor, and what has neither form.

    `clip_factor` multiplies the loss's gradient in all parameters: below 1 it was clipped, above 1 it is still scaled.
    `unknown` names the parameters whose `.grad` is neither of the two, nor both.

    >>> SignInGrad((), 0.5, ()).clip_factor
    0.5
    """

    terms: tuple[PenaltyTerm, ...]
    clip_factor: float
    unknown: tuple[str, ...]


@dataclass(frozen=True)
class _Row:
    """One parameter, flat and in float64, and the rounding to be expected in its `.grad`.

    alone: whether it can say nothing of its own: fewer than three weights, or all of one size, where λ sign(w) and
    weight decay are alike.
    """

    name: str
    alone: bool
    sign: torch.Tensor
    seen: torch.Tensor
    loss: torch.Tensor
    eps: float

    def fits(self, factor: float, lam: float) -> bool:
        """seen = factor · loss + λ sign(w), but for rounding: 8ε of both, and of their root mean square."""
        rest = (self.seen - factor * self.loss - lam * self.sign).abs()
        return float((rest > self.noise() + 1e-3 * abs(lam)).double().mean()) <= OUTLIERS

    def noise(self) -> torch.Tensor:
        return 8 * self.eps * (self.seen.abs() + self.loss.abs() + self.loss.square().mean().sqrt())

    def lam(self, factor: float) -> float:
        """The median of sign(w)·(seen − factor · loss), 0 where that is rounding."""
        there = self.sign != 0
        if not bool(there.any()):
            return 0.0
        each = ((self.seen - factor * self.loss) * self.sign)[there]
        found = float(each.median())
        constant = each.numel() >= MANY and float(((each - found).abs() > abs(found) / 2).double().mean()) <= OUTLIERS
        return found if constant or abs(found) > 4 * float(self.noise().median()) else 0.0

    def factor(self) -> float | None:
        """a of the least squares fit seen ≈ a · loss + b sign(w); None where the two directions are one."""
        both = torch.stack([self.loss, self.sign], 1)
        gram = both.T @ both
        scale = gram.diagonal().sqrt()
        if (
            self.sign.numel() < 3
            or not bool((scale > 0).all())
            or float(gram[0, 1].abs()) > 0.999 * float(scale.prod())
        ):
            return None
        return float(torch.linalg.solve(gram, both.T @ self.seen)[0])


def find_sign_in_grad(
    named: Iterable[tuple[str, torch.Tensor]],
    seen: Sequence[torch.Tensor | None],
    loss: Sequence[torch.Tensor | None],
) -> SignInGrad:
    """Whether `.grad`, as the optimiser saw it, is a · (the loss's gradient) + λ sign(w), and with which a and λ.

    named: (name, parameter) pairs at their values before the step; seen: their `.grad` before the step; loss: their
    gradients of the loss at the same values and data, in the same order; None counts as 0. λ is found for each
    parameter, a is one for all. Whether λ sign(w) was added before clipping or after it is not decided: λ is what the
    optimiser saw. Beside others, a parameter of fewer than three weights, or of weights all of one size (where weight
    decay looks the same), says nothing of its own, and counts only if its λ is one of theirs. `.grad` in other forms
    (clipped by value, or each parameter on its own) is `unknown`.

    Raises ValueError where the lists differ in length or the shapes do not fit.

    >>> w, g = torch.tensor([1.0, -2.0, 3.0, -0.5]), torch.tensor([0.25, 0.5, -0.5, 1.0])
    >>> found = find_sign_in_grad([("w", w)], [g + 0.5 * w.sign()], [g])
    >>> found.terms[0].lam, found.terms[0].through, found.clip_factor
    (0.5, 'grad', 1.0)
    >>> found = find_sign_in_grad([("w", w)], [0.5 * g], [g])
    >>> found.terms, round(found.clip_factor, 9)
    ((), 0.5)
    """
    rows = _rows(list(named), list(seen), list(loss))
    factors = sorted(f for f in (row.factor() for row in rows) if f is not None)
    middle = factors[len(factors) // 2] if factors else 1.0
    plain, scaled = (sum(row.fits(a, row.lam(a)) for row in rows) for a in (1.0, middle))
    a = middle if scaled > plain else 1.0
    lams = {row.name: row.lam(a) for row in rows}
    sure = [lams[row.name] for row in rows if not row.alone and row.fits(a, lams[row.name])]
    terms, unknown = [], []
    for row in rows:
        lam = lams[row.name]
        alone = row.alone and lam != 0 and not any(math.isclose(lam, other, rel_tol=1e-3) for other in sure)
        if lam < 0 or not row.fits(a, lam) or (alone and len(rows) > 1):
            unknown.append(row.name)
        elif lam > 0:
            terms.append(PenaltyTerm(row.name, lam, "grad"))
    return SignInGrad(tuple(terms), a, tuple(unknown))


def _rows(named: list[Any], seen: list[Any], loss: list[Any]) -> list[_Row]:
    if not len(named) == len(seen) == len(loss):
        raise ValueError(
            f"find_sign_in_grad: {len(named)} parameters need as many gradients, not {len(seen)} and {len(loss)}."
        )
    rows = []
    for (name, p), *pair in zip(named, seen, loss, strict=True):
        for g in pair:
            if g is not None and g.shape != p.shape:
                raise ValueError(f"find_sign_in_grad: a gradient of {name} has shape {tuple(g.shape)}, not its own.")
        if all(g is None for g in pair) or not p.numel():
            continue
        flat = [torch.zeros_like(p) if g is None else g.detach().to_dense() for g in pair]
        eps = max(torch.finfo(t.dtype).eps for t in (p, *flat))
        a, b = (g.reshape(-1).to(torch.float64) for g in flat)
        w = p.detach().reshape(-1).to(torch.float64)
        size = w.abs()[w != 0]
        alike = not size.numel() or float(size.max()) <= float(size.min()) * (1 + 1e-3)
        rows.append(_Row(name, alike or w.numel() < 3, w.sign(), a, b, eps))
    return rows
