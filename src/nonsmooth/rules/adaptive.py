"""Adagrad, RMSProp and Adadelta: a step divided by the size of the gradients so far; and such a rule held still."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from array_api_compat import array_namespace

from nonsmooth.hyperparameters import Array, Fraction, NonNegative, Positive, like
from nonsmooth.rules.rule import Rule, zero

__all__ = ["Adadelta", "Adagrad", "Frozen", "RMSProp"]


class Adaptive(Rule):
    """A rule in two halves, so that its second moment can be held: first `accumulate`, then `move`."""

    def accumulate(self, g: Any, state: Any) -> Any:
        """The memory with g in the second moment and the clock a step on."""
        raise TypeError(f"{type(self).__name__} accumulates nothing.")

    def move(self, x: Any, g: Any, state: Any) -> tuple[Any, Any]:
        """The next point by the second moment as it stands, and the memory with g in the first moment."""
        raise TypeError(f"{type(self).__name__} does not move.")

    def held(self, v: Any) -> Any:
        """The memory as t → ∞ in which v is the second moment and the first is 0."""
        raise TypeError(f"{type(self).__name__} has no second moment to hold.")

    def step(self, x: Any, g: Any, state: Any) -> tuple[Any, Any]:
        return self.move(x, g, self.accumulate(g, state))


@dataclass(frozen=True)
class Adagrad(Adaptive):
    """s⁺ = s + g², x⁺ = x − η_t g/(√s⁺ + ε), η_t = η/(1 + (t − 1) decay); s starts at `initial` (Duchi et al. 2011).

    >>> Adagrad(lr=1.0, eps=0.0).step(np.zeros(1), np.array([3.0]), (np.zeros(1), 0))[0].tolist()
    [-1.0]
    """

    lr: Positive = 1e-2
    lr_decay: NonNegative = 0.0
    initial: NonNegative = 0.0
    eps: NonNegative = 1e-10

    def init(self, x: Any) -> Any:
        return array_namespace(x).zeros_like(x) + self.initial, zero(x)

    def accumulate(self, g: Any, state: Any) -> Any:
        s, t = state
        return s + g * g, t + 1

    def move(self, x: Any, g: Any, state: Any) -> tuple[Any, Any]:
        return x - self.effective_step(state) * g, state

    def held(self, v: Any) -> Any:
        """With η_t = η: the decay is left out."""
        return v, zero(v) + 1

    def effective_step(self, state: Any) -> Any:
        s, t = state
        return self.lr / (1 + (t - 1) * self.lr_decay) / (array_namespace(s).sqrt(s) + self.eps)


@dataclass(frozen=True)
class RMSProp(Adaptive):
    """v⁺ = α v + (1 − α) g², x⁺ = x − η b⁺ with b⁺ = m b + g/(√v⁺ + ε) (torch RMSprop; Tieleman & Hinton 2012).

    With `centered`, ḡ⁺ = α ḡ + (1 − α) g and √(v⁺ − ḡ⁺²) replaces √v⁺: under a constant gradient that difference
    goes to 0 and rounding can make it negative, where torch, and so this rule, gives NaN.
    τ = η c/(√v + ε) with c⁺ = m c + 1.

    >>> rule, x = RMSProp(lr=1.0, alpha=0.0, eps=0.0), np.zeros(1)
    >>> rule.step(x, np.array([5.0]), rule.init(x))[0].tolist()
    [-1.0]
    """

    lr: Positive = 1e-2
    alpha: Fraction = 0.99
    eps: NonNegative = 1e-8
    momentum: Fraction = 0.0
    centered: bool = False

    def init(self, x: Any) -> Any:
        zeros = array_namespace(x).zeros_like(x)
        return zeros, zeros, zeros, zero(x)

    def accumulate(self, g: Any, state: Any) -> Any:
        v, mean, b, c = state
        v = self.alpha * v + (1 - self.alpha) * g * g
        if self.centered:
            mean = self.alpha * mean + (1 - self.alpha) * g
        return v, mean, b, c

    def move(self, x: Any, g: Any, state: Any) -> tuple[Any, Any]:
        v, mean, b, c = state
        b = self.momentum * b + g / self._scale(v, mean)
        return x - self.lr * b, (v, mean, b, self.momentum * c + 1)

    def held(self, v: Any) -> Any:
        """Centred, v is what is left when ḡ² is taken off."""
        _, *rest = self.init(v)
        return v, *rest

    def _scale(self, v: Any, mean: Any) -> Any:
        variance = v - mean * mean if self.centered else v
        return array_namespace(v).sqrt(variance) + self.eps

    def effective_step(self, state: Any) -> Any:
        v, mean, _, c = state
        return self.lr * c / self._scale(v, mean)


@dataclass(frozen=True)
class Adadelta(Rule):
    """v⁺ = ρ v + (1 − ρ) g², Δ = √(a + ε)/√(v⁺ + ε) g, a⁺ = ρ a + (1 − ρ) Δ², x⁺ = x − η Δ (Zeiler 2012).

    τ = η √(a + ε)/√(v⁺ + ε), with the a from before the step. Under a constant gradient a → g², so τ → η, but its
    distance to g² shrinks by no more than the factor 1 − (1 − ρ)ε/(g² + ε) a step.

    >>> rule, x = Adadelta(lr=1.0, rho=0.0, eps=9.0), np.zeros(1)
    >>> rule.step(x, np.array([4.0]), rule.init(x))[0].round(12).tolist()  # √(9/(16 + 9))·4
    [-2.4]
    """

    lr: Positive = 1.0
    rho: Fraction = 0.9
    eps: Positive = 1e-6

    def init(self, x: Any) -> Any:
        zeros = array_namespace(x).zeros_like(x)
        return zeros, zeros, zeros

    def step(self, x: Any, g: Any, state: Any) -> tuple[Any, Any]:
        xp = array_namespace(x)
        v, a, _ = state
        v = self.rho * v + (1 - self.rho) * g * g
        scale = xp.sqrt(a + self.eps) / xp.sqrt(v + self.eps)
        delta = scale * g
        a = self.rho * a + (1 - self.rho) * delta * delta
        return x - self.lr * delta, (v, a, scale)

    def effective_step(self, state: Any) -> Any:
        return self.lr * state[2]


@dataclass(frozen=True)
class Frozen(Rule):
    """An adaptive rule as t → ∞ whose second moment is `v` (of x's shape, >= 0) for good: for stability analysis.

    On ½⟨x, Hx⟩ the rule is then linear with preconditioner P = √v + ε (Adamax: P = v) and diverges once
    η λ₁(P^{-1/2} H P^{-1/2}) exceeds 2 (Adagrad, RMSProp), 2(1 + m) (RMSProp with momentum m), 2(1 + β₁)/(1 − β₁)
    (Adam, RAdam, Adamax), 2(1 + β₁)/((1 − β₁)(1 + 2β₁)) (NAdam; with momentum_decay 0, 2(1 + β₁)/(1 + β₁ − β₁²)).
    Adagrad's lr_decay is left out. τ is that of a full momentum buffer, but RMSProp's follows the buffer.
    Source: Cohen et al. 2022, section 2.

    >>> rule, x = Frozen(RMSProp(lr=1.0, eps=0.0), v=[4.0, 16.0]), np.zeros(2)
    >>> rule.step(x, np.ones(2), rule.init(x))[0].tolist()
    [-0.5, -0.25]
    """

    rule: Rule
    v: Array

    def validate(self) -> None:
        if not isinstance(self.rule, Adaptive):
            raise ValueError(
                f"Frozen: rule must be Adagrad, RMSProp, Adam, AdamW, NAdam, RAdam or Adamax, which have one second "
                f"moment to hold, not {type(self.rule).__name__}."
            )
        if np.any(np.asarray(self.v) < 0):
            raise ValueError("Frozen: v must be 0 or above; it stands for a mean of squares.")

    def init(self, x: Any) -> Any:
        if tuple(self.v.shape) != tuple(x.shape):
            raise ValueError(
                f"Frozen: v of shape {tuple(self.v.shape)} does not fit a point of shape {tuple(x.shape)}."
            )
        return self.rule.held(like(self.v, x))  # type: ignore[attr-defined]

    def step(self, x: Any, g: Any, state: Any) -> tuple[Any, Any]:
        return self.rule.move(x, g, state)  # type: ignore[attr-defined]

    def effective_step(self, state: Any) -> Any:
        return self.rule.effective_step(state)
