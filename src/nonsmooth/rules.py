"""Update rules and step-size schedules: pure functions of a point, a gradient and a memory.

A rule gives `init(x)`, the memory at the start, and `step(x, g, state)`, the next point and memory. It never
loops, stops, logs or plots; `simulate` does. `effective_step(state)` is the step τ of the proximal map that
belongs to the step just taken, a number or one value a coordinate: the response of the iterate to a constant
gradient, so that a prox at τ leaves the fixed points those of f + g while a momentum buffer fills, too.

Rules that torch has equal `torch.optim`, option for option. Any number may be a schedule; the loop resolves it
with `rule.at(t)` before it steps. Everything works on NumPy, JAX and torch arrays alike.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

from array_api_compat import array_namespace

from nonsmooth.hyperparameters import Fraction, Hyperparameters, NonNegative, Positive, Real, Schedule
from nonsmooth.penalties import ratio

__all__ = [
    "FISTA",
    "Adagrad",
    "Adam",
    "AdamW",
    "Averaging",
    "Constant",
    "Cosine",
    "Gradient",
    "HeavyBall",
    "InverseSqrt",
    "InverseTime",
    "Nesterov",
    "Polyak",
    "RMSProp",
    "Rule",
    "StepDecay",
]


class Rule(Hyperparameters):
    """What a rule must offer; `finish` and `iterate` have defaults."""

    needs_value: ClassVar[bool] = False
    """Whether `step` takes f(x) as a fourth argument."""

    def init(self, x: Any) -> Any:
        """The memory at the start."""
        return ()

    def step(self, x: Any, g: Any, state: Any) -> tuple[Any, Any]:
        """The next point and memory."""
        raise TypeError(f"{type(self).__name__} defines no step.")

    def effective_step(self, state: Any) -> Any:
        """τ of the step just taken."""
        raise TypeError(f"{type(self).__name__} has no effective step; use penalty_by='autograd'.")

    def finish(self, z: Any, x: Any, state: Any) -> tuple[Any, Any]:
        """What is left to do once the prox has made x of the point z: the next point, and the memory."""
        return x, state

    def iterate(self, z: Any, state: Any) -> Any:
        """The point that the method answers with, where that is not z, at which it takes the next gradient."""
        return z


def _zero(x: Any) -> Any:
    """A scalar 0 in x's library and precision."""
    xp = array_namespace(x)
    return xp.sum(xp.zeros_like(x[:0]))


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
        return array_namespace(x).zeros_like(x), _zero(x)

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
        return array_namespace(x).zeros_like(x), _zero(x)

    def step(self, x: Any, g: Any, state: Any) -> tuple[Any, Any]:
        v, c = state
        v = self.beta * v + g
        return x - self.lr * (g + self.beta * v), (v, self.beta * c + 1)

    def effective_step(self, state: Any) -> Any:
        return self.lr * (1 + self.beta * state[1])


@dataclass(frozen=True)
class Adagrad(Rule):
    """s⁺ = s + g², x⁺ = x − η_t g/(√s⁺ + ε), η_t = η/(1 + (t − 1) decay); s starts at `initial` (Duchi et al. 2011).

    >>> Adagrad(lr=1.0, eps=0.0).step(np.zeros(1), np.array([3.0]), (np.zeros(1), 0))[0].tolist()
    [-1.0]
    """

    lr: Positive = 1e-2
    lr_decay: NonNegative = 0.0
    initial: NonNegative = 0.0
    eps: NonNegative = 1e-10

    def init(self, x: Any) -> Any:
        return array_namespace(x).zeros_like(x) + self.initial, _zero(x)

    def step(self, x: Any, g: Any, state: Any) -> tuple[Any, Any]:
        s, t = state
        s, t = s + g * g, t + 1
        return x - self.effective_step((s, t)) * g, (s, t)

    def effective_step(self, state: Any) -> Any:
        s, t = state
        return self.lr / (1 + (t - 1) * self.lr_decay) / (array_namespace(s).sqrt(s) + self.eps)


@dataclass(frozen=True)
class RMSProp(Rule):
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
        return zeros, zeros, zeros, _zero(x)

    def step(self, x: Any, g: Any, state: Any) -> tuple[Any, Any]:
        v, mean, b, c = state
        v = self.alpha * v + (1 - self.alpha) * g * g
        if self.centered:
            mean = self.alpha * mean + (1 - self.alpha) * g
        b = self.momentum * b + g / self._scale(v, mean)
        return x - self.lr * b, (v, mean, b, self.momentum * c + 1)

    def _scale(self, v: Any, mean: Any) -> Any:
        variance = v - mean * mean if self.centered else v
        return array_namespace(v).sqrt(variance) + self.eps

    def effective_step(self, state: Any) -> Any:
        v, mean, _, c = state
        return self.lr * c / self._scale(v, mean)


@dataclass(frozen=True)
class Adam(Rule):
    """m⁺ = β₁m + (1 − β₁)g, v⁺ = β₂v + (1 − β₂)g², x⁺ = x − η (m⁺/(1 − β₁ᵗ))/(√(v⁺/(1 − β₂ᵗ)) + ε).

    With `amsgrad` the largest v⁺ so far stands for v⁺. τ = η/(√(v⁺/(1 − β₂ᵗ)) + ε): bias correction makes the
    response of m to a constant gradient 1 from the first step on. Source: Kingma & Ba 2015; Reddi et al. 2018.

    >>> Adam(lr=0.1, eps=0.0).step(np.zeros(1), np.array([7.0]), Adam().init(np.zeros(1)))[0].round(12).tolist()
    [-0.1]
    """

    lr: Positive = 1e-3
    beta1: Fraction = 0.9
    beta2: Fraction = 0.999
    eps: NonNegative = 1e-8
    amsgrad: bool = False

    def init(self, x: Any) -> Any:
        zeros = array_namespace(x).zeros_like(x)
        return zeros, zeros, zeros, _zero(x)

    def step(self, x: Any, g: Any, state: Any) -> tuple[Any, Any]:
        m, v, peak, t = state
        m = self.beta1 * m + (1 - self.beta1) * g
        v = self.beta2 * v + (1 - self.beta2) * g * g
        peak = array_namespace(x).maximum(peak, v) if self.amsgrad else v
        state = (m, v, peak, t + 1)
        return x - self.effective_step(state) * m / (1 - self.beta1 ** (t + 1)), state

    def effective_step(self, state: Any) -> Any:
        _, _, peak, t = state
        return self.lr / (array_namespace(peak).sqrt(peak / (1 - self.beta2**t)) + self.eps)


@dataclass(frozen=True)
class AdamW(Adam):
    """Adam after x ← (1 − η wd) x: a decay that is not part of f (Loshchilov & Hutter 2019).

    With a prox the fixed point solves 0 ∈ ∇f + wd (√v̂ + ε) x + ∂g, not the problem with a ridge.

    >>> AdamW(lr=0.1, weight_decay=1.0).step(np.ones(1), np.zeros(1), Adam().init(np.ones(1)))[0].tolist()
    [0.9]
    """

    weight_decay: NonNegative = 1e-2

    def step(self, x: Any, g: Any, state: Any) -> tuple[Any, Any]:
        return super().step(x * (1 - self.lr * self.weight_decay), g, state)


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
        return _zero(x)

    def step(self, x: Any, g: Any, state: Any, value: Any = None) -> tuple[Any, Any]:
        step = ratio(value - self.f_star, array_namespace(x).sum(g * g))
        return x - step * g, step

    def effective_step(self, state: Any) -> Any:
        return state


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
        return x, _zero(x) + 1

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


@dataclass(frozen=True)
class Averaging(Rule):
    """Any rule, answering with the mean of its iterates x₁ … x_t (Polyak & Juditsky 1992), those after step `skip`.

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
        return self.rule.init(x), x, _zero(x) - self.skip

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
class Constant(Schedule):
    """η_t = η.

    >>> Constant(0.1).at(7)
    0.1
    """

    lr: Positive

    def at(self, t: Any) -> Any:
        return self.lr


@dataclass(frozen=True)
class InverseSqrt(Schedule):
    """η_t = η/√t.

    >>> InverseSqrt(1.0).at(4)
    0.5
    """

    lr: Positive

    def at(self, t: Any) -> Any:
        return self.lr / t**0.5


@dataclass(frozen=True)
class InverseTime(Schedule):
    """η_t = η/t.

    >>> InverseTime(1.0).at(4)
    0.25
    """

    lr: Positive

    def at(self, t: Any) -> Any:
        return self.lr / t


@dataclass(frozen=True)
class Cosine(Schedule):
    """η_t = η_min + ½(η − η_min)(1 + cos(π(t − 1)/T)), T = `steps`, η_min after it (torch CosineAnnealingLR).

    >>> round(Cosine(1.0, steps=10).at(6), 12)
    0.5
    """

    lr: Positive
    steps: int
    floor: NonNegative = 0.0

    def validate(self) -> None:
        if self.steps < 1:
            raise ValueError(f"Cosine: steps must be 1 or above, not {self.steps}.")

    def at(self, t: Any) -> Any:
        xp = math if isinstance(t, (int, float)) else array_namespace(t)
        progress = min(t - 1, self.steps) if xp is math else xp.clip(t - 1, max=self.steps)
        return self.floor + 0.5 * (self.lr - self.floor) * (1 + xp.cos(math.pi * progress / self.steps))


@dataclass(frozen=True)
class StepDecay(Schedule):
    """η_t = η γ^⌊(t − 1)/every⌋ (torch StepLR).

    >>> StepDecay(1.0, every=10, gamma=0.5).at(21)
    0.25
    """

    lr: Positive
    every: int
    gamma: Fraction = 0.1

    def validate(self) -> None:
        if self.every < 1:
            raise ValueError(f"StepDecay: every must be 1 or above, not {self.every}.")

    def at(self, t: Any) -> Any:
        return self.lr * self.gamma ** ((t - 1) // self.every)
