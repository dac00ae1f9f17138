"""FISTA, averages and the subgradient rules: they converge as fast as they promise."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from sklearn.linear_model import Lasso

from nonsmooth.objectives import Absolute, LeastSquares, MaxLinear, Objective, Quadratic, random_least_squares
from nonsmooth.penalties import L1
from nonsmooth.rules import (
    FISTA,
    Adam,
    Averaging,
    Gradient,
    HeavyBall,
    InverseSqrt,
    Polyak,
    Rule,
)
from orbits import SMOOTH, START, effective, iterates, last

rejected = pytest.raises(AssertionError)


# ── FISTA, averaging, Polyak ────────────────────────────────────────────────────────────────────────────────────────


def lasso_law(rule: Rule, f: LeastSquares, tau: Callable[..., Any] = effective) -> None:
    """The end is the Lasso's solution by coordinate descent, with the same zeros."""
    lam = 0.3 * f.critical_lam
    known = Lasso(alpha=lam / 2, fit_intercept=False, tol=1e-15, max_iter=100_000).fit(f.X, f.y).coef_
    end = last(rule, f, np.zeros(f.shape), 3000, L1(lam), tau)
    np.testing.assert_allclose(end, known, rtol=0, atol=1e-8)
    np.testing.assert_array_equal(end == 0, known == 0)
    assert 0 < np.sum(end == 0) < end.size


@pytest.mark.parametrize("size", [(50, 20), (30, 60)])
@pytest.mark.parametrize("restart", [True, False])
def test_fista_reaches_the_lasso(size, restart):
    f = random_least_squares(*size, seed=5, support=8)
    rule = FISTA(1 / f.constants.L, restart)
    lasso_law(rule, f)
    with rejected:
        lasso_law(rule, f, lambda rule, state: 2 * rule.lr)


class NoMomentum(FISTA):
    def finish(self, z, x, state):
        return x, (x, state[1])


def accelerated_law(rule: Rule, f: Quadratic, steps: int = 300) -> None:
    """f(x_N) − f* ≤ 2L‖x₀ − x*‖²/(N + 1)² at every N (Beck & Teboulle 2009, theorem 4.4)."""
    x0 = np.ones(f.shape)
    for n, x in enumerate(iterates(rule, f, x0, steps), 1):
        assert f.value(x) <= 2 * f.constants.L * np.sum(x0**2) / (n + 1) ** 2


def test_fista_is_accelerated():
    f = Quadratic(np.geomspace(1e-6, 1.0, 60))
    accelerated_law(FISTA(1.0, restart=False), f)
    with rejected:
        accelerated_law(NoMomentum(1.0, restart=False), f)


def test_restart_keeps_a_strongly_convex_run_from_rippling():
    f = Quadratic(np.geomspace(1e-3, 1.0, 20))
    ends = [f.value(last(FISTA(1.0, restart), f, np.ones(20), 1500)) for restart in (True, False)]
    assert ends[0] < 1e-12 * ends[1]


class ForgetsToSkip(Averaging):
    def init(self, x):
        return self.rule.init(x), x, 0.0


def averaging_law(rule: Averaging, f: Objective) -> None:
    """The answer after step t is the mean of the wrapped rule's answers after `skip`, or the last up to there."""
    inner = np.stack(list(iterates(rule.rule, f, START, 30)))
    for t, answer in enumerate(iterates(rule, f, START, 30), 1):
        np.testing.assert_allclose(answer, inner[min(rule.skip, t - 1) : t].mean(axis=0), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("skip", [0, 1, 7])
@pytest.mark.parametrize("rule", [HeavyBall(InverseSqrt(0.1)), FISTA(0.2), Adam(0.1), Polyak(0.0)], ids=repr)
def test_averaging_averages(rule, skip):
    averaging_law(Averaging(rule, skip), SMOOTH["quadratic"])


def test_averaging_law_rejects():
    with rejected:
        averaging_law(ForgetsToSkip(Gradient(0.1), 7), SMOOTH["quadratic"])


class TwiceTooFar(Polyak):
    def step(self, x, g, state, value=None):
        end, step = super().step(x, g, state, value)
        return x + 2.5 * (end - x), step


def polyak_law(rule: Rule, f: Objective) -> None:
    """No step leads away from the minimiser (Fejér), and the best gap after N steps is at most G R/√N."""
    x, values = START, []
    for near in iterates(rule, f, START, 200):
        assert np.linalg.norm(near - f.minimiser) <= np.linalg.norm(x - f.minimiser) * (1 + 1e-12)
        x = near
        values.append(f.value(x) - f.minimum)
    assert min(values) <= f.constants.G * np.linalg.norm(START - f.minimiser) / math.sqrt(200)


def test_polyak():
    assert next(iterates(Polyak(0.0), Absolute(), np.array([-7.3]), 1)).tolist() == [0.0]
    assert last(Polyak(0.0), Absolute(), np.array([-7.3]), 5).tolist() == [0.0]  # stays where g = 0
    rng = np.random.default_rng(1)
    f = MaxLinear(rng.standard_normal((12, 5)), rng.standard_normal(12))
    polyak_law(Polyak(f.minimum), f)
    with rejected:
        polyak_law(TwiceTooFar(f.minimum), f)
