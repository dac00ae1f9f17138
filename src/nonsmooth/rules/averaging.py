"""Means of iterates: that of any rule, and torch's ASGD, which keeps one beside its point."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from array_api_compat import array_namespace

from nonsmooth.hyperparameters import NonNegative, Positive
from nonsmooth.rules.rule import Rule, zero

__all__ = ["ASGD", "Averaging"]


@dataclass(frozen=True)
class Averaging(Rule):
    """Any rule, answering with the mean of its iterates x₁ … x_t (Polyak & Juditsky 1992), those after step `skip`.

    >>> from nonsmooth.rules import Gradient
    >>> Averaging(Gradient(lr=1.0)).iterate(np.zeros(1), ((), np.array([2.0]), 4.0)).tolist()
    [2.0]
    """

    rule: Rule
    skip: int = 0

    def validate(self) -> None:
        if not isinstance(self.rule, Rule):
            raise ValueError(f"Averaging: rule must be one of nonsmooth's, not {type(self.rule).__name__}.")
        if self.skip < 0:
            raise ValueError(f"Averaging: skip must be 0 or above, not {self.skip}.")

    @property
    def needs_value(self) -> bool:  # type: ignore[override]
        return self.rule.needs_value

    def init(self, x: Any) -> Any:
        return self.rule.init(x), x, zero(x) - self.skip

    def step(self, x: Any, g: Any, state: Any, *value: Any) -> tuple[Any, Any]:
        x, inner = self.rule.step(x, g, state[0], *value)
        return x, (inner, *state[1:])

    def effective_step(self, state: Any) -> Any:
        return self.rule.effective_step(state[0])

    def finish(self, z: Any, x: Any, state: Any) -> tuple[Any, Any]:
        xp = array_namespace(x)
        inner, mean, count = state
        z, inner = self.rule.finish(z, x, inner)
        answer = self.rule.iterate(z, inner)
        count = count + 1
        mean = xp.where(count <= 1, answer, mean + (answer - mean) / xp.where(count < 1, xp.ones_like(count), count))
        return z, (inner, mean, count)

    def iterate(self, z: Any, state: Any) -> Any:
        return state[1]


@dataclass(frozen=True)
class ASGD(Rule):
    """x⁺ = (1 − λη_t)x − η_t g, η_t = η/(1 + λη(t − 1))^α (torch ASGD; Polyak & Juditsky 1992). τ = η_t.

    λ = `lambd` adds ½λ‖x‖² to f. The point is torch's parameter; torch's `ax`, the mean of the points after step
    t0 + 1 (before, the last one), is the first entry of the memory. Under a schedule η_t is torch's too: computed at
    the step before, from that step's η.

    >>> rule, x = ASGD(lr=0.5, lambd=1.0), np.ones(1)
    >>> rule.step(x, np.zeros(1), rule.init(x))[0].tolist()
    [0.5]
    """

    lr: Positive = 1e-2
    lambd: NonNegative = 1e-4
    alpha: NonNegative = 0.75
    t0: NonNegative = 1e6

    def init(self, x: Any) -> Any:
        return x, zero(x), zero(x), zero(x)

    def step(self, x: Any, g: Any, state: Any) -> tuple[Any, Any]:
        xp = array_namespace(x)
        ax, _, eta, t = state
        eta = xp.where(t == 0, zero(x) + self.lr, eta)
        t = t + 1
        eta_next = zero(x) + self.lr / (1 + self.lambd * self.lr * t) ** self.alpha
        return (1 - self.lambd * eta) * x - eta * g, (ax, eta, eta_next, t)

    def effective_step(self, state: Any) -> Any:
        return state[1]

    def finish(self, z: Any, x: Any, state: Any) -> tuple[Any, Any]:
        xp = array_namespace(x)
        ax, *rest, t = state
        count = xp.maximum(t - 1 - self.t0, xp.ones_like(t))
        return x, (xp.where(count == 1, x, ax + (x - ax) / count), *rest, t)
