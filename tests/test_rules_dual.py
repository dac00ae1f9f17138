"""RDA and the linearised Bregman iteration: each point solves the problem that defines it, and where they lead."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from nonsmooth import simulate
from nonsmooth.objectives import LeastSquares, MaxLinear, Objective, random_least_squares
from nonsmooth.penalties import L1, GroupLasso, Penalty
from nonsmooth.rules import RDA, Gradient, InverseSqrt, LinearisedBregman, Rule
from orbits import SMOOTH, START, effective, iterates, last
from zoo import over

rejected = pytest.raises(AssertionError)


# ── RDA ─────────────────────────────────────────────────────────────────────────────────────────────────────────────

PENALTIES: dict[str, Penalty] = {"l1": L1(0.3), "groups": GroupLasso(0.3, groups=(0, 0, 1, 1, 1))}


def dual_averaging_law(rule: RDA, penalty: Penalty, tau: Callable[..., Any] = effective) -> None:
    """0 ∈ ḡ + ∂g(x⁺) + (γ/√t)(x⁺ − x₀) at each step, ḡ the mean of the gradients at all points before."""
    f, x, gradients = SMOOTH["logistic"], START, []
    for t, after in enumerate(iterates(rule, f, START, 50, penalty, tau), 1):
        gradients.append(f.grad(x))
        v = -np.mean(gradients, axis=0) - rule.gamma / np.sqrt(t) * (after - START)
        assert np.max(penalty.subdiff_distance(after, v)) < 1e-12
        x = after


class ForgetsTheRoot(RDA):
    def effective_step(self, state):
        return 1 / self.gamma


class LastGradient(RDA):
    def step(self, x, g, state):
        return super().step(x, g, (state[0], g, state[2]))


@pytest.mark.parametrize("penalty", over(PENALTIES))
def test_each_point_of_rda_solves_its_problem(penalty):
    dual_averaging_law(RDA(2.0), penalty)
    for mutant in (ForgetsTheRoot(2.0), LastGradient(2.0)):
        with rejected:
            dual_averaging_law(mutant, penalty)
    with rejected:
        dual_averaging_law(RDA(2.0), penalty, lambda rule, state: 1 / rule.gamma)


def regret_law(rule: RDA, f: MaxLinear, penalty: Penalty, steps: int = 400) -> None:
    """(f + g)(x̄) − (f + g)(x) ≤ (γ‖x − x₀‖²/2 + G²/γ)/√N at every N, for every x (Xiao 2010, theorem 1)."""
    start = np.zeros(f.shape)
    best = last(Gradient(InverseSqrt(0.3)), f, start, 4000, penalty)
    total = start.copy()
    for n, x in enumerate(iterates(rule, f, start, steps, penalty), 1):
        mean = total / n
        gap = f.value(mean) + penalty.value(mean) - f.value(best) - penalty.value(best)
        assert gap <= (rule.gamma * np.sum(best**2) / 2 + f.constants.G**2 / rule.gamma) / np.sqrt(n)
        total += x


DRAWS = np.random.default_rng(2).standard_normal((12, 6))
PLANES = MaxLinear(DRAWS[:, :5], DRAWS[:, 5])


class Climbs(RDA):
    def step(self, x, g, state):
        return super().step(x, -g, state)


@pytest.mark.parametrize("gamma", [0.5, 2.0, 8.0])
def test_rda_keeps_its_bound(gamma):
    regret_law(RDA(gamma), PLANES, L1(0.1))


def test_regret_law_rejects():
    with rejected:
        regret_law(Climbs(2.0), PLANES, L1(0.1))


def coordinates(moment: Any) -> Any:
    return moment.x


def restless(rule: Rule, f: LeastSquares, penalty: L1, zeros: np.ndarray) -> float:
    """The share of visits, late in a minibatch run, at which a weight that is 0 in the Lasso is not."""
    batches = {"batch_size": 6, "seeds": 2, "steps": 4000, "tail": 1000, "x0": 0.0}
    run = simulate(f, rule, penalty=penalty, penalty_by="prox", record=[coordinates], **batches)  # type: ignore[arg-type]
    return float((run.coordinates.values[..., zeros] != 0).mean())


def test_rda_keeps_zeros_that_flicker_under_proximal_sgd():
    f = random_least_squares(60, 20, seed=1, support=4)
    penalty = L1(0.3 * f.critical_lam)
    zeros = last(Gradient(1 / f.constants.L), f, np.zeros(20), 3000, penalty) == 0
    assert zeros.sum() >= 10
    assert restless(RDA(20.0), f, penalty, zeros) == 0
    assert restless(Gradient(0.5 / f.constants.L), f, penalty, zeros) > 0.05


# ── linearised Bregman ──────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Bowl(Objective):
    """f(x) = ½‖x − c‖², c = (3, −1, 0.2)."""

    @property
    def shape(self):
        return (3,)

    def grad(self, x):
        return x - np.array([3.0, -1.0, 0.2])


def entry_law(rule: Rule, lr: float, lam: float) -> None:
    """On ½‖x − c‖² coordinate i leaves 0 at the first step k with kη|c_i| > λ, the longest first."""
    c = np.array([3.0, -1.0, 0.2])
    run = np.stack(list(iterates(rule, Bowl(), np.zeros(3), 200, L1(lam))))
    entered = np.argmax(run != 0, axis=0) + 1
    np.testing.assert_array_equal(entered, np.floor(lam / (lr * abs(c))) + 1)
    np.testing.assert_allclose(run[-1], c, atol=1e-3)


class ShrinksByTheStep(LinearisedBregman):
    def effective_step(self, state):
        return self.lr


def test_bregman_lets_coordinates_in_one_after_another():
    entry_law(LinearisedBregman(0.11, 3.0), 0.11, 1.0)
    for mutant in (ShrinksByTheStep(0.11, 3.0), Gradient(0.33)):
        with rejected:
            entry_law(mutant, 0.11, 1.0)


def basis_pursuit_law(rule: LinearisedBregman, lam: float = 1.0) -> None:
    """It ends at argmin λ‖x‖₁ + ‖x‖²/(2δ) over Xx = y: y is met, and Xᵀu − x/δ ∈ ∂λ‖x‖₁ for some u."""
    f = random_least_squares(8, 20, seed=4, support=3, noise=0.0)
    x = last(rule, f, np.zeros(20), 60_000, L1(lam))
    np.testing.assert_allclose(f.X @ x, f.y, atol=1e-8)
    shrinks = x != 0
    wanted = lam * np.sign(x) + x / rule.delta
    u = np.linalg.lstsq(f.X[:, shrinks].T, wanted[shrinks], rcond=None)[0]
    assert np.max(L1(lam).subdiff_distance(x, f.X.T @ u - x / rule.delta)) < 1e-6


class ProximalGradient(LinearisedBregman):
    """Which minimises f + g."""

    def step(self, x, g, state):
        return x - self.delta * self.lr * g, state

    def effective_step(self, state):
        return self.delta * self.lr


def test_bregman_ends_on_the_plane_at_the_least_norm():
    basis_pursuit_law(LinearisedBregman(0.02, 5.0))
    for mutant in (ShrinksByTheStep(0.02, 5.0), ProximalGradient(0.02, 5.0)):
        with rejected:
            basis_pursuit_law(mutant)
