"""Rules: their effective step is their response, and a prox at it ends at the minimum of f + g."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from nonsmooth.objectives import LeastSquares, Objective
from nonsmooth.penalties import L1
from nonsmooth.rules import (
    ASGD,
    FISTA,
    Adadelta,
    Adagrad,
    Adam,
    Adamax,
    AdamW,
    Averaging,
    Cosine,
    Frozen,
    Gradient,
    HeavyBall,
    NAdam,
    Nesterov,
    NormalisedSubgradient,
    RAdam,
    RMSProp,
    Rule,
    Sign,
)
from orbits import effective, last, learning_rate
from zoo import over

rejected = pytest.raises(AssertionError)


# ── the effective step ──────────────────────────────────────────────────────────────────────────────────────────────

G = np.array([0.5, -2.0, 3.0])


@dataclass(frozen=True)
class Slope(Objective):
    """f(x) = Σ Gᵢxᵢ: the same gradient everywhere."""

    @property
    def shape(self):
        return G.shape

    def grad(self, x):
        return G


EFFECTIVE: dict[str, tuple[Rule, Any]] = {
    "gradient": (Gradient(0.1), 0.1),
    "heavy-ball": (HeavyBall(0.1, 0.9), 0.1 / (1 - 0.9)),
    "dampened": (HeavyBall(0.1, 0.9, 0.5), 0.1 * (1 - 0.5) / (1 - 0.9)),
    "nesterov": (Nesterov(0.1, 0.9), 0.1 / (1 - 0.9)),
    "rmsprop": (RMSProp(0.1, 0.9, eps=0.5), 0.1 / (abs(G) + 0.5)),
    "adam": (Adam(0.1, eps=0.5), 0.1 / (abs(G) + 0.5)),
    "amsgrad": (Adam(0.1, eps=0.5, amsgrad=True), 0.1 / (abs(G) + 0.5)),
    "adamw": (AdamW(0.1, eps=0.5, weight_decay=0.0), 0.1 / (abs(G) + 0.5)),
    "adagrad": (Adagrad(0.1, 0.5, 2.0, eps=0.5), 0.1 / (1 + 599 * 0.5) / (np.sqrt(2 + 600 * G**2) + 0.5)),
    "nadam": (NAdam(0.1, eps=0.5, momentum_decay=0.0), 0.1 / (abs(G) + 0.5)),
    "nadam-decay": (NAdam(0.1, eps=0.5, momentum_decay=1.5), 0.1 / (abs(G) + 0.5)),
    "radam": (RAdam(0.1, beta2=0.9, eps=0.5), 0.1 / (abs(G) + 0.5)),
    "radam-never-adapts": (RAdam(0.1, beta2=0.5, eps=0.5), 0.1),
    "adamax": (Adamax(0.1, eps=0.5), 0.1 / (abs(G) + 0.5)),
    "adadelta": (Adadelta(0.1, eps=9.0), 0.1),
    "asgd": (ASGD(0.1, lambd=0.0), 0.1),
    "sign": (Sign(0.1), 0.1 / abs(G)),
    "normalised": (NormalisedSubgradient(0.1), 0.1 / np.linalg.norm(G)),
    "frozen": (Frozen(RMSProp(0.1, eps=0.5, momentum=0.5), [1.0, 4.0, 9.0]), 0.2 / np.array([1.5, 2.5, 3.5])),
    "fista": (FISTA(0.1), 0.1),
    "averaging": (Averaging(HeavyBall(0.1, 0.5)), 0.2),
}


def response_law(rule: Rule, tau: Any, steps: int = 600) -> None:
    """Under a constant gradient each step is −τ g, from the first on, and τ ends at its steady value."""
    x, state = np.zeros_like(G), rule.init(np.zeros_like(G))
    for _ in range(steps):
        moved, state = rule.step(x, G, state)
        np.testing.assert_allclose(moved - x, -rule.effective_step(state) * G, rtol=1e-9)
        x = moved
    np.testing.assert_allclose(rule.effective_step(state), tau, rtol=1e-12)


class SteadyFromTheStart(HeavyBall):
    def effective_step(self, state):
        return self.lr / (1 - self.beta)


class ForgetsItsMomentum(Nesterov):
    def effective_step(self, state):
        return self.lr


class ForgetsTheCorrection(Adam):
    def effective_step(self, state):
        return self.lr / (np.sqrt(state[2]) + self.eps)


class ForgetsTheDecay(Adagrad):
    def effective_step(self, state):
        return self.lr / (np.sqrt(state[0]) + self.eps)


class TakesNAdamForAdam(NAdam):
    def effective_step(self, state):
        return self.lr / self._scale(state)


class AdaptsFromTheStart(RAdam):
    def move(self, x, g, state):
        return RAdam(self.lr, self.beta1, self.beta2, self.eps).move(x, g, state)

    def effective_step(self, state):
        _, v, (total, _), _ = state
        return self.lr * np.sqrt((1 - self.beta2) * total) / (np.sqrt(v) + self.eps)


class TakesTheNextSize(Adadelta):
    """τ with the a from after the step."""

    def effective_step(self, state):
        v, a, _ = state
        return self.lr * np.sqrt(a + self.eps) / np.sqrt(v + self.eps)


class ForgetsTheSize(Sign):
    def effective_step(self, state):
        return self.lr


@pytest.mark.parametrize(("rule", "tau"), over({k: v for k, v in EFFECTIVE.items() if k != "fista"}))
def test_effective_step_is_the_response_to_a_constant_gradient(rule, tau):
    response_law(rule, tau)


@pytest.mark.parametrize(
    ("mutant", "tau"),
    [
        (SteadyFromTheStart(0.1, 0.9), 0.1 / (1 - 0.9)),
        (ForgetsItsMomentum(0.1, 0.9), 0.1),
        (ForgetsTheCorrection(0.1, eps=0.5), EFFECTIVE["adam"][1]),
        (TakesNAdamForAdam(0.1, eps=0.5, momentum_decay=0.0), EFFECTIVE["nadam"][1]),
        (AdaptsFromTheStart(0.1, beta2=0.9, eps=0.5), EFFECTIVE["radam"][1]),
        (TakesTheNextSize(0.1, eps=9.0), EFFECTIVE["adadelta"][1]),
        (ForgetsTheSize(0.1), EFFECTIVE["sign"][1]),
        (ForgetsTheDecay(0.1, 0.5, 2.0, eps=0.5), EFFECTIVE["adagrad"][1]),
    ],
)
def test_response_law_rejects(mutant, tau):
    with rejected:
        response_law(mutant, tau)


def test_rmsprop_effective_step_scales_its_momentums_response():
    rule = RMSProp(0.1, 0.9, eps=0.5, momentum=0.75)
    x, state = np.zeros_like(G), rule.init(G)
    for t in range(1, 600):
        x, state = rule.step(x, G, state)
        scale = abs(G) * math.sqrt(1 - 0.9**t) + 0.5
        np.testing.assert_allclose(rule.effective_step(state), 0.1 * (1 - 0.75**t) / 0.25 / scale, rtol=1e-9)
    np.testing.assert_allclose(rule.effective_step(state), 0.1 / ((abs(G) + 0.5) * 0.25), rtol=1e-9)


def test_centered_rmsprop_divides_by_the_spread():
    gradients = np.random.default_rng(0).standard_normal((50, 3))
    rule, x = RMSProp(0.1, 0.9, centered=True), np.zeros(3)
    state, v, mean = rule.init(x), np.zeros(3), np.zeros(3)
    for g in gradients:
        x, state = rule.step(x, g, state)
        v, mean = 0.9 * v + 0.1 * g**2, 0.9 * mean + 0.1 * g
    np.testing.assert_allclose(rule.effective_step(state), 0.1 / (np.sqrt(v - mean**2) + 1e-8), rtol=1e-9)


# ── proximal fixed points ───────────────────────────────────────────────────────────────────────────────────────────

TARGET = np.array([3.0, -1.0, 0.2])
BOWL = LeastSquares(math.sqrt(1.5) * np.eye(3), math.sqrt(1.5) * TARGET)
"""½‖x − TARGET‖², whose minimum with λ‖x‖₁ is TARGET shrunk by λ."""

PROXIMAL: dict[str, Rule] = {
    "gradient": Gradient(0.1),
    "gradient-scheduled": Gradient(Cosine(0.2, steps=3000)),
    "heavy-ball": HeavyBall(0.02, 0.9),
    "dampened": HeavyBall(0.02, 0.9, 0.5),
    "nesterov": Nesterov(0.02, 0.9),
    "rmsprop": RMSProp(0.01, 0.9),
    "rmsprop-momentum": RMSProp(0.01, 0.9, momentum=0.5),
    "adam": Adam(0.01),
    "amsgrad": Adam(0.02, beta2=0.99, amsgrad=True),
    "adagrad": Adagrad(0.5),
    "adagrad-decay": Adagrad(1.0, lr_decay=1e-4),
    "nadam": NAdam(0.01),
    "nadam-constant": NAdam(0.01, momentum_decay=0.0),
    "radam": RAdam(0.02, beta2=0.99),
    "adamax": Adamax(0.01),
    "adadelta": Adadelta(),
    "sign": Sign(0.01),
    "normalised": NormalisedSubgradient(0.1),
    "frozen": Frozen(NAdam(0.1), [1.0, 4.0, 9.0]),
    "fista": FISTA(0.5),
    "averaging": Averaging(Gradient(0.1), skip=2000),
}


def fixed_point_law(rule: Rule, tau: Callable[..., Any] = effective, lam: float = 0.5) -> None:
    """With the prox at τ the method ends at argmin f + g, zeros included."""
    end = last(rule, BOWL, np.ones(3), 3000, L1(lam), tau)
    np.testing.assert_allclose(end, np.sign(TARGET) * np.maximum(abs(TARGET) - lam, 0), atol=1e-9)
    assert end[2] == 0


@pytest.mark.parametrize("rule", over(PROXIMAL))
def test_proximal_steps_end_at_the_minimum_of_the_sum(rule):
    fixed_point_law(rule)


@pytest.mark.parametrize(
    "rule", over({k: v for k, v in PROXIMAL.items() if k.split("-")[0] not in ("gradient", "fista", "averaging")})
)
def test_fixed_point_law_rejects_a_prox_at_the_learning_rate(rule):
    with rejected:
        fixed_point_law(rule, learning_rate)


def ridge_law(rule: ASGD, tau: Callable[..., Any] = effective, lam: float = 0.5) -> None:
    """ASGD with the prox at τ ends at argmin f + ½λ‖x‖² + g, λ = `lambd`, and its mean comes there, too."""
    end = last(rule, BOWL, np.ones(3), 3000, L1(lam), tau)
    shrunk = np.sign(TARGET) * np.maximum(abs(TARGET) - lam, 0)
    np.testing.assert_allclose(end, shrunk / (1 + rule.lambd), atol=1e-9)
    assert end[2] == 0


def test_asgd_adds_a_ridge():
    rule = ASGD(0.5, lambd=0.1)
    ridge_law(rule)
    with rejected:
        ridge_law(rule, learning_rate)


def test_asgd_averages_the_points_after_the_prox():
    rule, penalty = ASGD(0.5, lambd=0.1, t0=5), L1(0.5)
    x, state, seen = np.ones(3), rule.init(np.ones(3)), []
    for t in range(1, 31):
        z, state = rule.step(x, BOWL.grad(x), state)
        x = penalty.prox(z, rule.effective_step(state))
        x, state = rule.finish(z, x, state)
        seen.append(x)
        np.testing.assert_allclose(state[0], np.mean(seen[min(6, t - 1) :], axis=0), rtol=1e-12, atol=1e-15)
    assert np.any(state[0] != x)


@pytest.mark.parametrize("rule", [Sign(0.25), NormalisedSubgradient(0.25)], ids=repr)
def test_a_coordinate_without_gradient_is_not_moved_but_by_the_prox(rule):
    start = np.array([1.0, -2.0])
    x, state = rule.step(start, np.zeros(2), rule.init(start))
    np.testing.assert_array_equal(x, start)
    np.testing.assert_array_equal(L1(1.0).prox(x, rule.effective_step(state)), [0.75, -1.75])


def test_prox_at_the_learning_rate_after_heavy_ball_solves_another_problem():
    """f/(1 − β) + g, whose minimum is 2.9 where that of f + g is 2."""
    rule, f = HeavyBall(0.02, 0.9), LeastSquares([[1.0], [0.0]], [3.0, 0.0])
    assert last(rule, f, np.zeros(1), 2000, L1(1.0)) == pytest.approx(2.0, abs=1e-9)
    assert last(rule, f, np.zeros(1), 2000, L1(1.0), learning_rate) == pytest.approx(2.9, abs=1e-9)


@dataclass(frozen=True)
class Product(Objective):
    """f(u, v) = ½(uv − 1)²."""

    def grad(self, x):
        return (x[0] * x[1] - 1) * x[::-1]


def test_a_filling_momentum_buffer_is_not_over_shrunk():
    """With the steady-state τ from the first step on, ½(uv − 1)² + .2(|u| + |v|) collapses to 0."""
    rule, start = HeavyBall(0.1, 0.9), np.array([0.9, 0.9])
    ends = [last(r, Product(), start, 2000, L1(0.2)) for r in (rule, SteadyFromTheStart(0.1, 0.9))]
    root = max(np.roots([1.0, 0.0, -1.0, 0.2]).real)
    np.testing.assert_allclose(ends[0], root, atol=1e-9)
    np.testing.assert_array_equal(ends[1], 0)


def test_adamw_solves_its_own_equation():
    """0 ∈ ∇f + wd (√v̂ + ε) x + ∂g, which is not the minimum of f + g + (wd/2)‖x‖²."""
    lam, decay = 0.5, 0.4
    rule = AdamW(0.005, beta2=0.99, weight_decay=decay)
    x = last(rule, BOWL, np.ones(3), 6000, L1(lam))
    gradient = x - TARGET

    def certificate(force: Any) -> Any:
        return L1(lam).subdiff_distance(x, -gradient - decay * force).max()

    assert certificate((abs(gradient) + rule.eps) * x) < 1e-5
    assert certificate(x) > 0.1
    assert certificate(0 * x) > 0.1
