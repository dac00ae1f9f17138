"""Adam and its kin: a mean of the gradients over their size, both corrected for their start at 0.

A decoupled weight decay, x ← (1 − η wd) x before the step, is no part of f: with a prox the fixed point solves
0 ∈ ∇f + (η/τ) wd x + ∂g, not the problem with a ridge.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from array_api_compat import array_namespace

from nonsmooth.hyperparameters import Fraction, NonNegative, Positive
from nonsmooth.rules.adaptive import Adaptive
from nonsmooth.rules.rule import zero

__all__ = ["Adam", "AdamW", "Adamax", "NAdam", "RAdam"]


@dataclass(frozen=True)
class Adam(Adaptive):
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
        return zeros, zeros, zeros, zero(x)

    def accumulate(self, g: Any, state: Any) -> Any:
        m, v, peak, t = state
        v = self.beta2 * v + (1 - self.beta2) * g * g
        peak = array_namespace(g).maximum(peak, v) if self.amsgrad else v
        return m, v, peak, t + 1

    def move(self, x: Any, g: Any, state: Any) -> tuple[Any, Any]:
        m, *rest, t = state
        m = self.beta1 * m + (1 - self.beta1) * g
        return x - self.effective_step(state) * m / (1 - self.beta1**t), (m, *rest, t)

    def held(self, v: Any) -> Any:
        m, *_, t = self.init(v)
        return m, v, v, t + float("inf")

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

    def move(self, x: Any, g: Any, state: Any) -> tuple[Any, Any]:
        return super().move(x * (1 - self.lr * self.weight_decay), g, state)


@dataclass(frozen=True)
class NAdam(Adaptive):
    """x⁺ = x − η ((1 − μ_t) g/(1 − Π_t) + μ_{t+1} m⁺/(1 − Π_{t+1}))/(√(v⁺/(1 − β₂ᵗ)) + ε), m⁺ and v⁺ as in Adam.

    μ_t = β₁(1 − ½·0.96^{ψt}) with ψ = `momentum_decay`, Π_t = μ₁ ⋯ μ_t; `weight_decay` is decoupled (torch NAdam
    with decoupled_weight_decay=True; Dozat 2016). μ_t → β₁, but where ψ = 0 it is β₁/2 for ever.
    τ = η c_t/(√(v⁺/(1 − β₂ᵗ)) + ε), c_t = (1 − μ_t)/(1 − Π_t) + μ_{t+1}(1 − β₁ᵗ)/(1 − Π_{t+1}): the numerator's
    response to a constant gradient 1, whose m is 1 − β₁ᵗ; c_t → 1.

    >>> rule, x = NAdam(lr=0.1, beta1=0.5, eps=0.0, momentum_decay=0.0), np.zeros(1)
    >>> rule.step(x, np.array([7.0]), rule.init(x))[0].round(12).tolist()  # 0.1 (1 + ¼·½/(1 − ¹⁄₁₆))
    [-0.113333333333]
    """

    lr: Positive = 2e-3
    beta1: Fraction = 0.9
    beta2: Fraction = 0.999
    eps: NonNegative = 1e-8
    momentum_decay: NonNegative = 4e-3
    weight_decay: NonNegative = 0.0

    def init(self, x: Any) -> Any:
        zeros = array_namespace(x).zeros_like(x)
        return zeros, zeros, zero(x) + 1, zero(x)

    def accumulate(self, g: Any, state: Any) -> Any:
        m, v, product, t = state
        t = t + 1
        return m, self.beta2 * v + (1 - self.beta2) * g * g, product * self._mu(t), t

    def move(self, x: Any, g: Any, state: Any) -> tuple[Any, Any]:
        m, *rest = state
        m = self.beta1 * m + (1 - self.beta1) * g
        of_g, of_m = self._weights(state)
        x = x * (1 - self.lr * self.weight_decay)
        return x - self.lr * (of_g * g + of_m * m) / self._scale(state), (m, *rest)

    def held(self, v: Any) -> Any:
        m, _, product, t = self.init(v)
        return m, v, 0 * product, t + float("inf")

    def _mu(self, t: Any) -> Any:
        return self.beta1 * (1 - 0.5 * (0.96**self.momentum_decay) ** t)

    def _weights(self, state: Any) -> tuple[Any, Any]:
        """Those of g and of m⁺."""
        _, _, product, t = state
        mu, mu_next = self._mu(t), self._mu(t + 1)
        return (1 - mu) / (1 - product), mu_next / (1 - product * mu_next)

    def _scale(self, state: Any) -> Any:
        _, v, _, t = state
        return array_namespace(v).sqrt(v / (1 - self.beta2**t)) + self.eps

    def effective_step(self, state: Any) -> Any:
        of_g, of_m = self._weights(state)
        return self.lr * (of_g + of_m * (1 - self.beta1 ** state[3])) / self._scale(state)


@dataclass(frozen=True)
class RAdam(Adaptive):
    """x⁺ = x − τ m⁺/(1 − β₁ᵗ), τ = η while ρ_t ≤ 5, then η r_t √(1 − β₂ᵗ)/(√v⁺ + ε), m⁺ and v⁺ as in Adam.

    r_t = √((ρ_t − 4)(ρ_t − 2)ρ_∞/((ρ_∞ − 4)(ρ_∞ − 2)ρ_t)), ρ_t = ρ_∞ − 2tβ₂ᵗ/(1 − β₂ᵗ), ρ_∞ = 2/(1 − β₂) − 1: for
    β₂ ≤ ⅔ it never adapts. `weight_decay` is decoupled (torch RAdam with decoupled_weight_decay=True; Liu et al. 2020).

    >>> rule, x = RAdam(lr=0.1), np.zeros(1)
    >>> rule.step(x, np.array([7.0]), rule.init(x))[0].round(12).tolist()
    [-0.7]
    """

    lr: Positive = 1e-3
    beta1: Fraction = 0.9
    beta2: Fraction = 0.999
    eps: NonNegative = 1e-8
    weight_decay: NonNegative = 0.0

    def init(self, x: Any) -> Any:
        zeros = array_namespace(x).zeros_like(x)
        return zeros, zeros, (zero(x), zero(x)), zero(x)

    def accumulate(self, g: Any, state: Any) -> Any:
        """Beside v, Σβ₂ⁱ and Σiβ₂ⁱ over i < t, whose ratio is (ρ_t − 1)/2: no digits cancel, as they would in ρ_t."""
        m, v, (total, moment), t = state
        v = self.beta2 * v + (1 - self.beta2) * g * g
        return m, v, (self.beta2 * total + 1, self.beta2 * (moment + total)), t + 1

    def move(self, x: Any, g: Any, state: Any) -> tuple[Any, Any]:
        m, *rest, t = state
        m = self.beta1 * m + (1 - self.beta1) * g
        x = x * (1 - self.lr * self.weight_decay)
        return x - self.effective_step(state) * m / (1 - self.beta1**t), (m, *rest, t)

    def held(self, v: Any) -> Any:
        m, _, (total, moment), t = self.init(v)
        total, moment = total + 1 / (1 - self.beta2), moment + self.beta2 / (1 - self.beta2) ** 2
        return m, v, (total, moment), t + float("inf")

    def effective_step(self, state: Any) -> Any:
        _, v, (total, moment), _ = state
        xp = array_namespace(v)
        rho = 1 + 2 * moment / total
        late = rho > 5
        rho = xp.where(late, rho, xp.zeros_like(rho) + 6)  # keeps the other branch free of 0/0
        rho_inf = xp.where(late, xp.zeros_like(rho) + (2 / (1 - self.beta2) - 1), rho)
        r = xp.sqrt((rho - 4) * (rho - 2) * rho_inf / ((rho_inf - 4) * (rho_inf - 2) * rho))
        adapted = r * xp.sqrt((1 - self.beta2) * total) / (xp.sqrt(v) + self.eps)
        return self.lr * xp.where(late, adapted, xp.ones_like(v))


@dataclass(frozen=True)
class Adamax(Adaptive):
    """m⁺ = β₁m + (1 − β₁)g, u⁺ = max(β₂u, |g| + ε), x⁺ = x − η (m⁺/(1 − β₁ᵗ))/u⁺. τ = η/u⁺ (Kingma & Ba 2015, §7.1).

    ε is inside u, as in torch.

    >>> rule, x = Adamax(lr=0.1, eps=0.0), np.zeros(1)
    >>> rule.step(x, np.array([7.0]), rule.init(x))[0].round(12).tolist()
    [-0.1]
    """

    lr: Positive = 2e-3
    beta1: Fraction = 0.9
    beta2: Fraction = 0.999
    eps: NonNegative = 1e-8

    def init(self, x: Any) -> Any:
        zeros = array_namespace(x).zeros_like(x)
        return zeros, zeros, zero(x)

    def accumulate(self, g: Any, state: Any) -> Any:
        m, u, t = state
        xp = array_namespace(g)
        return m, xp.maximum(self.beta2 * u, xp.abs(g) + self.eps), t + 1

    def move(self, x: Any, g: Any, state: Any) -> tuple[Any, Any]:
        m, u, t = state
        m = self.beta1 * m + (1 - self.beta1) * g
        return x - self.effective_step(state) * m / (1 - self.beta1**t), (m, u, t)

    def held(self, v: Any) -> Any:
        m, _, t = self.init(v)
        return m, v, t + float("inf")

    def effective_step(self, state: Any) -> Any:
        return self.lr / state[1]
