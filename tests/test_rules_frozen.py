"""Frozen rules: linear on a quadratic, and they diverge where linear stability analysis says."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from nonsmooth.rules import Adagrad, Adam, Adamax, AdamW, Frozen, NAdam, RAdam, RMSProp, Rule
from zoo import over

B1 = 0.9
V = np.array([0.25, 1.0, 4.0, 9.0, 100.0])
THRESHOLDS: dict[str, tuple[Rule, float]] = {
    "adagrad": (Adagrad(), 2),
    "rmsprop": (RMSProp(), 2),
    "rmsprop-centered": (RMSProp(centered=True), 2),
    "rmsprop-momentum": (RMSProp(momentum=0.75), 2 * (1 + 0.75)),
    "adam": (Adam(beta1=B1), 2 * (1 + B1) / (1 - B1)),
    "amsgrad": (Adam(beta1=0.5, amsgrad=True), 2 * (1 + 0.5) / (1 - 0.5)),
    "adamw": (AdamW(beta1=B1, weight_decay=0), 2 * (1 + B1) / (1 - B1)),
    "nadam": (NAdam(beta1=B1), 2 * (1 + B1) / ((1 - B1) * (1 + 2 * B1))),
    "nadam-half": (NAdam(beta1=0.5), 2 * (1 + 0.5) / ((1 - 0.5) * (1 + 2 * 0.5))),
    "nadam-constant": (NAdam(beta1=B1, momentum_decay=0), 2 * (1 + B1) / (1 + B1 - B1**2)),
    "radam": (RAdam(beta1=B1), 2 * (1 + B1) / (1 - B1)),
    "adamax": (Adamax(beta1=B1), 2 * (1 + B1) / (1 - B1)),
}


def hessian() -> np.ndarray:
    """A dense one, so that H and P do not commute, with its least eigenvalue at 0.1."""
    Q = np.random.default_rng(0).standard_normal((5, 5))
    return Q @ Q.T + 0.1 * np.eye(5)


def sharpness(rule: Rule, H: np.ndarray) -> float:
    """λ₁(P^{-1/2} H P^{-1/2})."""
    root = np.sqrt(V if isinstance(rule, Adamax) else np.sqrt(V) + rule.eps)  # type: ignore[attr-defined]
    return float(np.linalg.eigvalsh(H / np.outer(root, root))[-1])


def diverges(rule: Any, step: float, H: np.ndarray, steps: int = 4000) -> bool:
    """Whether a run of the frozen rule at ηλ₁ = `step` is longer after `steps` than it was half-way."""
    frozen: Any = Frozen(rule.replaced(lr=step / sharpness(rule, H)), V)
    x, half = np.ones(5), np.inf
    state = frozen.init(x)
    for t in range(steps):
        x, state = frozen.step(x, H @ x, state)
        half = np.linalg.norm(x) if t == steps // 2 else half
        if np.linalg.norm(x) > 1e12:
            return True
    return bool(np.linalg.norm(x) > half)


def threshold(rule: Rule, H: np.ndarray) -> float:
    """The ηλ₁ at which a run begins to diverge, by bisection to a part in a thousand."""
    low, high = 0.1, 100.0
    while high > 1.001 * low:
        middle = (low * high) ** 0.5
        low, high = (low, middle) if diverges(rule, middle, H) else (middle, high)
    return (low * high) ** 0.5


def threshold_law(rule: Rule, predicted: float) -> None:
    """The frozen rule converges up to 1 % below the threshold and diverges from 1 % above it."""
    assert threshold(rule, hessian()) == pytest.approx(predicted, rel=0.01)


@pytest.mark.parametrize(("rule", "predicted"), over(THRESHOLDS))
def test_frozen_rules_diverge_at_their_threshold(rule, predicted):
    threshold_law(rule, predicted)


class ForgetsItsMomentum(RMSProp):
    def move(self, x, g, state):
        return x - self.lr * g / np.sqrt(state[0]), state


class MixesInMore(NAdam):
    def _mu(self, t):
        return super()._mu(t) * 1.02


@pytest.mark.parametrize(
    ("mutant", "twin"),
    [(ForgetsItsMomentum(momentum=0.75), "rmsprop-momentum"), (MixesInMore(beta1=B1), "nadam"), (Adam(), "nadam")],
)
def test_threshold_law_rejects(mutant, twin):
    with pytest.raises(AssertionError):
        threshold_law(mutant, THRESHOLDS[twin][1])


def settled(rule: Any, steps: int = 20_000) -> tuple[Any, Any]:
    """Point and memory after many steps under the gradient √V, whose second moment is V."""
    x, g = np.zeros(5), np.sqrt(V)
    state = rule.init(x)
    for _ in range(steps):
        x, state = rule.step(x, g, state)
    return x, state


LATE: dict[str, Rule] = {
    "rmsprop": RMSProp(momentum=0.75),
    "adam": Adam(),
    "amsgrad": Adam(amsgrad=True),
    "adamw": AdamW(weight_decay=0.1),
    "nadam": NAdam(momentum_decay=0.1, weight_decay=0.1),
    "radam": RAdam(weight_decay=0.1),
    "adamax": Adamax(beta2=0.9),
}


@pytest.mark.parametrize("rule", over(LATE))
def test_a_frozen_rule_is_the_rule_late_in_a_run(rule):
    """Once the second moment has settled, step and τ are those of the rule itself, under the gradient that it knows."""
    x, state = settled(rule)
    frozen = Frozen(rule, state[1] if isinstance(rule, Adamax) else V)
    held = settled(frozen, 1000)[1]
    assert len(held) == len(state)
    expected, after = rule.step(x, np.sqrt(V), state)
    moved, held = frozen.step(x, np.sqrt(V), held)
    np.testing.assert_allclose(moved - x, expected - x, rtol=1e-6)
    np.testing.assert_allclose(frozen.effective_step(held), rule.effective_step(after), rtol=1e-6)


@pytest.mark.parametrize("rule", [row[0] for row in THRESHOLDS.values()], ids=list(THRESHOLDS))
def test_a_frozen_rule_is_linear(rule):
    """Twice the gradients, twice the way: no second moment has moved."""
    gradients = np.random.default_rng(1).standard_normal((20, 5))
    ends = []
    for scale in (1.0, 2.0):
        frozen = Frozen(rule, V)
        x = np.zeros(5)
        state = frozen.init(x)
        for g in gradients:
            x, state = frozen.step(x, scale * g, state)
        ends.append(x)
    np.testing.assert_allclose(ends[1], 2 * ends[0], rtol=1e-12)
