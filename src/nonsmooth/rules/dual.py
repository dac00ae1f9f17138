"""Rules whose memory lies in the dual space: the prox makes each point anew out of a sum of gradients.

Both are meant for `penalty_by="prox"`: the step τ belongs to that map and is no response to a gradient.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from array_api_compat import array_namespace

from nonsmooth.hyperparameters import Positive
from nonsmooth.rules.rule import Rule, zero

__all__ = ["RDA", "LinearisedBregman"]


@dataclass(frozen=True)
class RDA(Rule):
    """x⁺ = argmin_x ⟨ḡ, x⟩ + g(x) + (γ/√t)·½‖x − x₀‖², ḡ the mean of the t gradients so far.

    That is prox_{τg}(x₀ − τ ḡ) with τ = √t/γ. Zeros stay under minibatch noise, for the penalty meets the mean of
    the gradients, not the last one. Without a penalty it is dual averaging. Where x₀ minimises g, and f is convex
    with gradients no longer than G, the mean x̄ of x₀ … x_{N−1} obeys (f + g)(x̄) − (f + g)(x) ≤
    (γ‖x − x₀‖²/2 + G²/γ)/√N for every x. Source: Xiao 2010, algorithm 1, section 3 and theorem 1; Nesterov 2009.

    >>> rule, x = RDA(gamma=0.5), np.ones(1)
    >>> rule.step(x, np.array([3.0]), rule.init(x))[0].tolist()
    [-5.0]
    """

    gamma: Positive

    def init(self, x: Any) -> Any:
        return x, array_namespace(x).zeros_like(x), zero(x)

    def step(self, x: Any, g: Any, state: Any) -> tuple[Any, Any]:
        start, mean, t = state
        t = t + 1
        state = start, mean + (g - mean) / t, t
        return start - self.effective_step(state) * state[1], state

    def effective_step(self, state: Any) -> Any:
        return state[2] ** 0.5 / self.gamma


@dataclass(frozen=True)
class LinearisedBregman(Rule):
    """v⁺ = v − η ∇f(x), x⁺ = prox_{δg}(δ v⁺), v₀ = x₀/δ. τ = δ; stable for ηδL < 2.

    It does not minimise f + g. It goes down f along an inverse scale space path: from x₀ = 0, coordinates enter one
    after another as |v| passes λ, the longest first, and where f reaches its minimum on a plane it ends, of that
    plane, at argmin g(x) + ‖x‖²/(2δ). Stop early for a sparse point, and start from 0: elsewhere v₀ − x₀/δ = 0 is
    no subgradient of g. Source: Yin, Osher, Goldfarb & Darbon 2008; Bungert et al. 2022.

    >>> rule, x = LinearisedBregman(lr=0.5, delta=2.0), np.ones(1)
    >>> rule.step(x, np.array([3.0]), rule.init(x))[0].tolist()
    [-2.0]
    """

    lr: Positive
    delta: Positive = 1.0

    def init(self, x: Any) -> Any:
        return x / self.delta

    def step(self, x: Any, g: Any, state: Any) -> tuple[Any, Any]:
        v = state - self.lr * g
        return self.delta * v, v

    def effective_step(self, state: Any) -> Any:
        return self.delta
