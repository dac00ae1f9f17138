"""FISTA: accelerated proximal gradient."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from array_api_compat import array_namespace

from nonsmooth.hyperparameters import Positive
from nonsmooth.rules.rule import Rule, zero

__all__ = ["FISTA"]


@dataclass(frozen=True)
class FISTA(Rule):
    """x⁺ = prox_{ηg}(z − η∇f(z)), z⁺ = x⁺ + ((k − 1)/k⁺)(x⁺ − x), k⁺ = (1 + √(1 + 4k²))/2.

    With `restart`, k⁺ = 1 and z⁺ = x⁺ whenever (z − x⁺)·(x⁺ − x) > 0. Converges for η ≤ 1/L.
    Source: Beck & Teboulle 2009; O'Donoghue & Candès 2015 (gradient scheme).

    >>> FISTA(lr=1.0).finish(np.array([1.0]), np.array([0.0]), (np.array([1.0]), 1.0))[0].tolist()
    [0.0]
    """

    lr: Positive
    restart: bool = True

    def init(self, x: Any) -> Any:
        return x, zero(x) + 1

    def step(self, x: Any, g: Any, state: Any) -> tuple[Any, Any]:
        return x - self.lr * g, state

    def effective_step(self, state: Any) -> Any:
        return self.lr

    def finish(self, z: Any, x: Any, state: Any) -> tuple[Any, Any]:
        xp = array_namespace(x)
        before, k = state
        k_next = (1 + (1 + 4 * k * k) ** 0.5) / 2
        momentum = (k - 1) / k_next
        if self.restart:
            turned = xp.sum((z - x) * (x - before)) > 0
            momentum = xp.where(turned, xp.zeros_like(x), xp.zeros_like(x) + momentum)
            k_next = xp.where(turned, xp.sum(xp.ones_like(x[:1])), k_next)
        return x + momentum * (x - before), (x, k_next)

    def iterate(self, z: Any, state: Any) -> Any:
        return state[0]
