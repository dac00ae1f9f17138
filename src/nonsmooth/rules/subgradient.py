"""Rules of the subgradient method: the length of the step is not the gradient's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from array_api_compat import array_namespace

from nonsmooth.hyperparameters import Positive, Real
from nonsmooth.penalties import ratio
from nonsmooth.rules.rule import Rule, zero

__all__ = ["NormalisedSubgradient", "Polyak", "Sign"]


@dataclass(frozen=True)
class Polyak(Rule):
    """x⁺ = x − η_t g with η_t = (f(x) − f*)/‖g‖², 0 where g is 0 (Polyak 1969; Boyd's subgradient notes, section 4).

    `f_star` is the minimum of what is being minimised, penalty included. τ = η_t.

    >>> Polyak(f_star=0.0).step(np.array([4.0]), np.array([2.0]), None, 4.0)[0].tolist()
    [2.0]
    """

    needs_value: ClassVar[bool] = True

    f_star: Real

    def init(self, x: Any) -> Any:
        return zero(x)

    def step(self, x: Any, g: Any, state: Any, value: Any = None) -> tuple[Any, Any]:
        step = ratio(value - self.f_star, array_namespace(x).sum(g * g))
        return x - step * g, step

    def effective_step(self, state: Any) -> Any:
        return state


@dataclass(frozen=True)
class Sign(Rule):
    """x⁺ = x − η sign(g), sign(0) = 0 (signSGD; Bernstein et al. 2018).

    τ = η/|g|, one value a coordinate, and η where g is 0: any step fits there, for the point is not moved.

    >>> rule, x = Sign(lr=0.5), np.zeros(2)
    >>> rule.step(x, np.array([7.0, 0.0]), rule.init(x))[0].tolist()
    [-0.5, 0.0]
    """

    lr: Positive

    def init(self, x: Any) -> Any:
        return array_namespace(x).zeros_like(x)

    def step(self, x: Any, g: Any, state: Any) -> tuple[Any, Any]:
        xp = array_namespace(x)
        return x - self.lr * xp.sign(g), self.lr / nonzero(xp.abs(g))

    def effective_step(self, state: Any) -> Any:
        return state


@dataclass(frozen=True)
class NormalisedSubgradient(Rule):
    """x⁺ = x − η g/‖g‖, x⁺ = x where g is 0 (Shor 1985; Boyd's subgradient notes, section 2, constant step length).

    τ = η/‖g‖, and η where g is 0.

    >>> rule, x = NormalisedSubgradient(lr=0.5), np.zeros(2)
    >>> rule.step(x, np.array([3.0, 4.0]), rule.init(x))[0].round(12).tolist()
    [-0.3, -0.4]
    """

    lr: Positive

    def init(self, x: Any) -> Any:
        return zero(x)

    def step(self, x: Any, g: Any, state: Any) -> tuple[Any, Any]:
        xp = array_namespace(x)
        step = self.lr / nonzero(xp.sqrt(xp.sum(g * g)))
        return x - step * g, step

    def effective_step(self, state: Any) -> Any:
        return state


def nonzero(a: Any) -> Any:
    """`a`, with 1 in place of 0."""
    xp = array_namespace(a)
    return xp.where(a == 0, xp.ones_like(a), a)
