"""Gradient descent, heavy ball and Nesterov: a fixed step along a weighted sum of gradients."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from array_api_compat import array_namespace

from nonsmooth.hyperparameters import Fraction, Positive
from nonsmooth.rules.rule import Rule, zero

__all__ = ["Gradient", "HeavyBall", "Nesterov"]


@dataclass(frozen=True)
class Gradient(Rule):
    """x⁺ = x − η g (torch SGD). τ = η.

    >>> Gradient(lr=0.5).step(np.array([1.0]), np.array([2.0]), ())[0].tolist()
    [0.0]
    """

    lr: Positive

    def step(self, x: Any, g: Any, state: Any) -> tuple[Any, Any]:
        return x - self.lr * g, state

    def effective_step(self, state: Any) -> Any:
        return self.lr


@dataclass(frozen=True)
class HeavyBall(Rule):
    """v⁺ = β v + (1 − d) g, x⁺ = x − η v⁺; at the first step v⁺ = g (torch SGD with momentum β and dampening d).

    τ = η c with c⁺ = β c + (1 − d), c = 1 at the first step; c → (1 − d)/(1 − β).

    >>> HeavyBall(lr=0.1, beta=0.9).effective_step((np.zeros(1), 10.0))
    1.0
    """

    lr: Positive
    beta: Fraction = 0.9
    dampening: Fraction = 0.0

    def init(self, x: Any) -> Any:
        return array_namespace(x).zeros_like(x), zero(x)

    def step(self, x: Any, g: Any, state: Any) -> tuple[Any, Any]:
        xp = array_namespace(x)
        v, c = state
        first = c == 0
        v = xp.where(first, g, self.beta * v + (1 - self.dampening) * g)
        c = xp.where(first, xp.ones_like(c), self.beta * c + (1 - self.dampening))
        return x - self.lr * v, (v, c)

    def effective_step(self, state: Any) -> Any:
        return self.lr * state[1]


@dataclass(frozen=True)
class Nesterov(Rule):
    """v⁺ = β v + g, x⁺ = x − η (g + β v⁺) (torch SGD with nesterov=True). τ = η (1 + β c), c⁺ = β c + 1.

    >>> Nesterov(lr=0.1, beta=0.5).step(np.zeros(1), np.ones(1), (np.zeros(1), np.asarray(0.0)))[0].round(12).tolist()
    [-0.15]
    """

    lr: Positive
    beta: Fraction = 0.9

    def init(self, x: Any) -> Any:
        return array_namespace(x).zeros_like(x), zero(x)

    def step(self, x: Any, g: Any, state: Any) -> tuple[Any, Any]:
        v, c = state
        v = self.beta * v + g
        return x - self.lr * (g + self.beta * v), (v, self.beta * c + 1)

    def effective_step(self, state: Any) -> Any:
        return self.lr * (1 + self.beta * state[1])
