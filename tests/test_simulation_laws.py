"""Laws that every run obeys, linear thresholds, and worst cases attained and never exceeded."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr

from nonsmooth.objectives import (
    Absolute,
    Huber,
    LogCosh,
    Quadratic,
    random_least_squares,
    subgradient_hard_instance,
)
from nonsmooth.penalties import L1, SquaredL2
from nonsmooth.rules import (
    Gradient,
    HeavyBall,
    Nesterov,
)
from nonsmooth.simulation import minimise, orbit_curvature, simulate
from runs import CLASSES, EDGES, PLANES, array, planes
from zoo import over

rejected = pytest.raises(AssertionError)


# ── laws of runs ────────────────────────────────────────────────────────────────────────────────────────────────────


def step_sq(m):
    return (m.step**2).sum()


def balance_law(beta: float, factor: float, lam: float = 30.0, tail: int = 2000) -> None:
    """mean⟨g̃, x⟩ = (1 + β)(η/2) mean‖v⁺‖² on the tail of a bounded run, x⁺ = x − ηv⁺, up to O(1/(ηT))."""
    lrs = np.array([1e-3, 4e-3])
    run = simulate(
        random_least_squares(50, 20, seed=7),
        HeavyBall(lrs, beta) if beta else Gradient(lrs),
        penalty=L1([0.3 * lam, lam]),
        steps=2000 + tail,
        seeds=2,
        tail=tail,
        record=("grad_dot_x", step_sq, "x"),
    )
    left = run.grad_dot_x.mean("step")
    right = factor * run.step_sq.mean("step") / (2 * run.lr)
    size = (run.x**2).sum("coordinate").max("step")
    assert (abs(left - right) <= 2 * size / (run.lr * (1 - beta) * tail)).all()
    assert (abs(left - right) <= 2 / tail * abs(left)).all()


@pytest.mark.parametrize("tail", [1000, 8000])
@pytest.mark.parametrize("beta", [0.0, 0.5, 0.9])
def test_balance_law(beta, tail):
    balance_law(beta, 1 + beta, tail=tail)
    with rejected:
        balance_law(beta, 1 + beta + 0.1, tail=tail)


CHANGES = ("grad_change_sq", "grad_change_dot_step", "grad_norm")


def edge_law(f, rule, **options) -> None:
    """η κ̄ → 2 on the tail of a bounded full-batch run that does not converge; the rest telescopes in ‖g‖²."""
    run = simulate(f, rule, steps=8000, tail=4000, record=CHANGES, seeds=2, **options)
    assert run.diverged_at.isnull().all()
    rest = rule.lr * (run.grad_norm**2).max("step") / run.grad_change_dot_step.sum("step")
    off = abs(xr.DataArray(rule.lr) * orbit_curvature(run) - 2)
    assert (off <= rest + 1e-12).all()
    assert (off <= 0.01).all()


EDGES_OF_STABILITY: dict[str, tuple[Any, float, dict[str, Any]]] = {
    "absolute": (Absolute(dim=3), 0.3, {}),
    "max": (PLANES, 0.1, {}),
    "lasso": (random_least_squares(50, 20), 1e-2, {"penalty": L1([3.0, 30.0])}),
    "lasso-wide": (random_least_squares(30, 60), 1e-2, {"penalty": L1([0.5, 5.0])}),
    "hinge": (EDGES, 0.5, {"penalty": SquaredL2(0.1)}),
    "huber": (Huber(), 2.5, {"x0": 7.3}),
    "log-cosh": (LogCosh(), 3.0, {}),
    "logistic": (CLASSES, 6 / CLASSES.constants.L, {"penalty": SquaredL2(0.1 * CLASSES.constants.L)}),
}


@pytest.mark.parametrize(("f", "lr", "options"), over(EDGES_OF_STABILITY))
def test_edge_law(f, lr, options):
    edge_law(f, Gradient(lr), **options)


def test_edge_law_rejects():
    f = random_least_squares(50, 20)
    with rejected:  # another rule has another edge
        edge_law(f, HeavyBall(1e-2, 0.5), penalty=L1(30.0))
    with rejected:  # a run that converges need not be at it
        edge_law(Huber(), Gradient(0.05))


def test_on_a_period_two_orbit_the_edge_is_exact():
    run = simulate(Absolute(), Gradient(0.5), x0=0.125, steps=64, record=(*CHANGES, "kappa"))
    assert float(orbit_curvature(run)) == 2 / 0.5
    assert (run.kappa == 2 / 0.5).all()


# ── thresholds and tight constants ──────────────────────────────────────────────────────────────────────────────────

THRESHOLDS = {
    "gradient": (Gradient(1.0), 2.0, {}),
    "heavy-ball-.5": (HeavyBall(1.0, 0.5), 3.0, {"momentum": 0.5}),
    "heavy-ball-.9": (HeavyBall(1.0, 0.9), 3.8, {"momentum": 0.9}),
    "dampened": (HeavyBall(1.0, 0.8, 0.5), 2 * 1.8 / 0.5, {"momentum": 0.8, "dampening": 0.5}),
    "ema": (HeavyBall(1.0, 0.9, 0.9), 38.0, {"momentum": 0.9, "dampening": 0.9}),
    "nesterov-.5": (Nesterov(1.0, 0.5), 1.5, {"momentum": 0.5, "nesterov": True}),
    "nesterov-.9": (Nesterov(1.0, 0.9), 3.8 / 2.8, {"momentum": 0.9, "nesterov": True}),
}


@pytest.mark.parametrize(("rule", "threshold", "options"), over(THRESHOLDS))
def test_linear_threshold(rule, threshold, options):
    low, high = 0.1, 100.0
    for _ in range(2):
        lrs = np.geomspace(low, high, 33)
        run = simulate(Quadratic([1.0, 0.3]), replace(rule, lr=lrs), x0=1.0, steps=2000, tail=1, record="l1_norm")
        first = int(np.argmax(~(run.l1_norm.values[:, 0] < 1.0)))
        low, high = lrs[first - 1], lrs[first]
    assert high / low < 1.01
    assert low == pytest.approx(threshold, rel=0.01)
    assert high == pytest.approx(threshold, rel=0.01)
    for side, bounded in ((0.99, True), (1.01, False)):
        p = torch.ones(1, dtype=torch.float64)
        optimiser = torch.optim.SGD([p], lr=side * threshold, **options)
        for _ in range(2000):
            p.grad = p.clone()
            optimiser.step()
        assert (abs(p.item()) < 1.0) == bounded


@pytest.mark.parametrize(("L", "R"), [(1.0, 1.0), (4.0, 3.0)])
def test_gradient_descents_worst_case_is_attained(L, R):
    """f(x_N) − f* ≤ LR²/(4N + 2), by the Huber function of knee R/(2N + 1)."""
    lengths = np.array([3, 6, 12, 20])
    x0 = R * math.sqrt(L)  # curvature L by scaling the point: f(x) = h(√L x)
    run = simulate(
        Huber(array(x0 / (2 * lengths + 1), "N", N=lengths)), Gradient(1.0), x0=x0, steps=20, record=("gap", "x")
    )
    for n in lengths:
        assert float(run.gap.sel(N=n, step=n)) == pytest.approx(L * R**2 / (4 * n + 2), rel=1e-12)


def never_exceeds(gap, bound) -> None:
    assert (gap <= bound * (1 + 1e-12)).all()


SMOOTH = {
    "least-squares": random_least_squares(30, 8, seed=11),
    "least-squares-wide": random_least_squares(8, 30, seed=12),
    "logistic": CLASSES,
    "huber": Huber(0.3, dim=4),
    "log-cosh": LogCosh(dim=4),
}


@pytest.mark.parametrize("f", over(SMOOTH))
def test_gradient_descents_bound_is_never_exceeded(f):
    L, best = f.constants.L, f.minimiser if f.minimiser is not None else minimise(f).minimiser.values
    starts = np.random.default_rng(13).standard_normal((30, *f.shape)) * 5
    run = simulate(f, Gradient(1 / L), x0=array(starts, "start", "point"), steps=30, record="gap")
    R = array(np.linalg.norm(starts - best, axis=1), "start")
    never_exceeds(run.gap, L * R**2 / (4 * run.step + 2) + 1e-12)
    with rejected:
        never_exceeds(run.gap, L * R**2 / (4 * run.step + 2) / 100)


@pytest.mark.parametrize(("M", "R"), [(1.0, 1.0), (3.0, 0.5)])
@pytest.mark.parametrize("n", [3, 6, 12, 20])
def test_subgradient_methods_worst_case_is_attained(n, M, R):
    f = subgradient_hard_instance(n, M, R)
    run = simulate(f, Gradient(R / (M * math.sqrt(n + 1))), x0=0.0, steps=n, record="gap")
    best = min(float(run.gap.min()), f.value(np.zeros(n + 1)) - f.minimum)
    assert best == pytest.approx(M * R / math.sqrt(n + 1), rel=1e-7)


def test_subgradient_methods_bound_is_never_exceeded():
    rng = np.random.default_rng(17)
    for seed in range(8):
        f = planes(seed, k=9)
        best = f.minimiser
        starts = best + 3 * rng.standard_normal((20, 4))
        R, M, n = np.linalg.norm(starts - best, axis=1), f.constants.G, 15
        rule = Gradient(array(R / (M * math.sqrt(n + 1)), "start"))
        run = simulate(f, rule, x0=array(starts, "start", "point"), steps=n, record="gap")
        first = np.array([f.value(x) for x in starts]) - f.minimum
        never_exceeds(np.minimum(run.gap.min("step"), first), M * R / math.sqrt(n + 1) + 1e-6)


def test_pepit_agrees_with_the_tight_constants():
    examples = pytest.importorskip("PEPit.examples.unconstrained_convex_minimization")
    gd, _ = examples.wc_gradient_descent(L=1.0, gamma=1.0, n=3, verbose=0)
    subgradient, _ = examples.wc_subgradient_method(M=1.0, n=3, gamma=0.5, verbose=0)
    assert gd == pytest.approx(1 / 14, abs=1e-4)
    assert subgradient == pytest.approx(1 / 2, abs=1e-4)
