"""simulate: equal to a slow loop, labelled as asked, undisturbing; and the laws that its runs obey."""

from __future__ import annotations

import logging
import math
import re
import resource
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from itertools import count, product
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import xarray as xr
from sklearn.linear_model import Lasso

import nonsmooth as ns
from nonsmooth import progress as pace
from nonsmooth.objectives import (
    Absolute,
    Hinge,
    Huber,
    LeastSquares,
    LogCosh,
    Logistic,
    MaxLinear,
    MaxQuadratic,
    PseudoHuber,
    Quadratic,
    breast_cancer,
    diabetes,
    random_least_squares,
    subgradient_hard_instance,
    subgradient_last_iterate_instance,
)
from nonsmooth.penalties import L1, MCP, ElasticNet, GroupLasso, Penalty, SquaredL2
from nonsmooth.rules import (
    FISTA,
    Adagrad,
    Adam,
    AdamW,
    Averaging,
    Cosine,
    Gradient,
    HeavyBall,
    InverseSqrt,
    InverseTime,
    Nesterov,
    Polyak,
    RMSProp,
    StepDecay,
)
from nonsmooth.simulation import MEASURES, minimise, orbit_curvature, simulate
from zoo import over

rejected = pytest.raises(AssertionError)


def array(values, *dims, **coords):
    return xr.DataArray(values, dims=dims, coords=coords)


# ── the slow twin ───────────────────────────────────────────────────────────────────────────────────────────────────


def order_of_rows(n, seed, epoch):
    with jax.enable_x64(True):
        return np.asarray(jax.random.permutation(jax.random.fold_in(jax.random.key(seed), epoch), n))


def twin(f, rule, penalty=None, penalty_by="autograd", *, steps, x0=None, batch_size=None, seed=0, f_star=np.nan):
    """One run, one step after the other, in NumPy, every measure by its definition."""
    x0 = np.random.default_rng(seed).standard_normal(f.shape) if x0 is None else np.asarray(x0, float)
    by_autograd, by_prox = (penalty is not None and penalty_by == how for how in ("autograd", "prox"))

    def batch(t):
        if batch_size is None:
            return f
        epoch, i = divmod(t - 1, f.n // batch_size)
        return f.rows(order_of_rows(f.n, seed, epoch)[i * batch_size :][:batch_size])

    def told(f, g, x):
        return f.grad(x) + g.grad(x) if by_autograd else f.grad(x)

    rows = []
    z, state = x0, rule.at(1).init(x0)
    x = rule.at(1).iterate(z, state)
    for t in range(1, steps + 1):
        now, g = rule.at(t), None if penalty is None else penalty.at(t)
        value = batch(t).value(z) + (g.value(z) if by_autograd else 0)
        moved, state = now.step(z, told(batch(t), g, z), state, *([value] if now.needs_value else []))
        if by_prox:
            moved = g.prox(moved, now.effective_step(state))
        z, state = now.finish(z, moved, state)
        before, x = x, now.iterate(z, state)
        step, change = x - before, told(f, g, x) - told(f, g, before)
        landed = x - f.grad(x)
        rows.append(
            {
                "value": f.value(x) + (0 if g is None else g.value(x)),
                "loss": f.value(x),
                "gap": f.value(x) + (0 if g is None else g.value(x)) - f_star,
                "l1_norm": np.sum(np.abs(x)),
                "zeros": np.sum(x == 0),
                "sign_changes": np.sum(np.sign(x) * np.sign(before) == -1),
                "grad_norm": np.linalg.norm(told(f, g, x)),
                "kappa": np.dot(change, step) / np.dot(step, step) if step.any() else np.nan,
                "grad_change_sq": np.dot(change, change),
                "grad_change_dot_step": np.dot(change, step),
                "grad_dot_x": np.dot(told(f, g, x), x),
                "prox_residual": np.linalg.norm(x - (landed if g is None else g.prox(landed, 1.0))),
                "x": x,
            }
        )
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}


TALL, WIDE = random_least_squares(24, 6, seed=1), random_least_squares(8, 12, seed=2)
CLASSES = Logistic(TALL.X, np.sign(TALL.y))
EDGES = Hinge(TALL.X, np.sign(TALL.y))


def planes(seed, k=7, p=4):
    """A maximum of linear functions that is bounded below: 0 is a mean of its slopes."""
    A = np.random.default_rng(seed).standard_normal((k, p))
    return MaxLinear(np.vstack([A, -A.mean(axis=0)]), np.linspace(-1, 1, k + 1))


PLANES = planes(4)

TWINS: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "gd": (TALL, Gradient(0.05), {}),
    "gd-wide": (WIDE, Gradient(0.02), {}),
    "gd-l1": (TALL, Gradient(0.05), {"penalty": L1(1.3)}),
    "gd-l1-weighted": (WIDE, Gradient(0.02), {"penalty": L1(0.7, weights=np.linspace(0, 2, 12))}),
    "gd-groups": (TALL, Gradient(0.05), {"penalty": GroupLasso(0.9, groups=(0, 0, 1, 1, 1, 2))}),
    "gd-hinge": (EDGES, Gradient(0.3), {"penalty": SquaredL2(0.1)}),
    "heavy-ball-huber": (Huber(0.4, dim=3), HeavyBall(0.3, 0.8, 0.2), {}),
    "nesterov-max": (PLANES, Nesterov(0.1, 0.7), {}),
    "subgradient": (MaxQuadratic(5, 3, ties="average"), Gradient(InverseSqrt(0.5)), {"x0": np.zeros(5)}),
    "rmsprop-l1": (TALL, RMSProp(0.01, momentum=0.5), {"penalty": L1(3.0)}),
    "adam-logistic": (CLASSES, Adam(Cosine(0.1, 30), amsgrad=True), {"penalty": ElasticNet(0.1, 0.05)}),
    "adamw-logcosh": (LogCosh(dim=4), AdamW(0.1, weight_decay=0.2), {}),
    "adagrad-pseudo-huber": (PseudoHuber(0.7, dim=3), Adagrad(0.3, 0.1, 0.2), {}),
    "fista-prox": (TALL, FISTA(0.02), {"penalty": L1(1.3), "penalty_by": "prox"}),
    "fista-prox-no-restart": (WIDE, FISTA(0.05, restart=False), {"penalty": L1(0.5), "penalty_by": "prox"}),
    "heavy-ball-prox": (TALL, HeavyBall(0.01), {"penalty": L1(1.3), "penalty_by": "prox"}),
    "adam-prox": (TALL, Adam(StepDecay(0.1, 9)), {"penalty": GroupLasso(0.8, groups=(0, 1) * 3), "penalty_by": "prox"}),
    "averaging": (TALL, Averaging(HeavyBall(0.02)), {"penalty": L1(1.3)}),
    "averaging-skip": (PLANES, Averaging(Gradient(InverseTime(0.5)), skip=11), {}),
    "averaging-fista": (TALL, Averaging(FISTA(0.05), skip=3), {"penalty": L1(1.3), "penalty_by": "prox"}),
    "polyak": (PLANES, Polyak(PLANES.minimum), {}),
    "polyak-l1": (TALL, Polyak(1.2), {"penalty": L1(0.3)}),
    "scheduled-penalty": (TALL, Gradient(0.05), {"penalty": L1(InverseSqrt(2.0))}),
    "scheduled-penalty-prox": (TALL, Gradient(0.05), {"penalty": L1(InverseTime(9.0)), "penalty_by": "prox"}),
    "batches-l1": (TALL, RMSProp(0.02), {"batch_size": 5, "penalty": L1(0.9), "seeds": [3]}),
    "batches-prox": (EDGES, Nesterov(0.05, 0.5), {"batch_size": 24, "penalty": L1(0.1), "penalty_by": "prox"}),
    "batches-polyak": (CLASSES, Averaging(Polyak(0.0)), {"batch_size": 1, "seeds": [9]}),
}


@pytest.mark.parametrize(("f", "rule", "options"), over(TWINS))
def test_equals_the_slow_twin(f, rule, options):
    run = simulate(f, rule, steps=30, record=MEASURES, f_star=0.25, **options).squeeze()
    seed = options.get("seeds", [0])[0]
    slow = twin(f, rule, steps=30, f_star=0.25, seed=seed, **{k: v for k, v in options.items() if k != "seeds"})
    assert set(slow) == set(MEASURES) == set(run.data_vars) - {"x_final", "diverged_at"}
    for name, expected in slow.items():
        np.testing.assert_allclose(run[name], expected, rtol=1e-10, atol=1e-11, err_msg=name)
    np.testing.assert_array_equal(run.x_final, run.x.isel(step=-1))
    assert np.isnan(run.diverged_at)


DYADIC: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "gd": (Absolute(dim=5), Gradient(0.25), {}),
    "heavy-ball": (Absolute(dim=5), HeavyBall(0.25, 0.5), {}),
    "prox": (Absolute(dim=5), Nesterov(0.25, 0.5), {"penalty": L1(0.5), "penalty_by": "prox"}),
    "max": (MaxLinear(np.eye(5) * 2, np.zeros(5)), HeavyBall(0.125, 0.5), {}),
    "averaging": (Absolute(dim=5), Averaging(Gradient(0.25), skip=38), {}),
}


@pytest.mark.parametrize(("f", "rule", "options"), over(DYADIC))
def test_equals_the_slow_twin_through_kinks_exactly(f, rule, options):
    start = np.array([0.375, 0.5, -1.25, 2.0, 0.0])
    run = simulate(f, rule, steps=40, record=("x", "zeros", "sign_changes", "value"), x0=start, **options)
    slow = twin(f, rule, steps=40, x0=start, **options)
    for name in ("x", "zeros", "sign_changes", "value"):
        np.testing.assert_array_equal(run[name], slow[name], err_msg=name)
    assert run.zeros.max() > 0


def test_the_twin_tells_another_rule_apart():
    run, slow = simulate(TALL, HeavyBall(0.05, 0.9), steps=40), twin(TALL, HeavyBall(0.05, 0.9 + 1e-8), steps=40)
    with rejected:
        np.testing.assert_allclose(run.value, slow["value"], rtol=1e-10)


# ── minibatches ─────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("n", "batch_size"), [(14, 3), (5, 5)])
def test_an_epoch_visits_each_row_once(n, batch_size):
    """With X = I a step moves the rows of its batch and no others, by −η times an unbiased gradient."""
    f, batches = LeastSquares(np.eye(n), np.arange(n) + 10.0), n // batch_size
    run = simulate(
        f, Gradient([1e-3, 2e-3]), x0=0.0, steps=4 * batches, batch_size=batch_size, seeds=[4, 5], record="x"
    )
    x = np.concatenate([np.zeros((2, 2, 1, n)), run.x.values], axis=2)
    moved = np.diff(x, axis=2)
    np.testing.assert_array_equal(moved[0] != 0, moved[1] != 0)  # the order depends on the seed alone
    epochs = (moved != 0).reshape(2, 2, 4, batches, n)
    np.testing.assert_array_equal(epochs.sum(axis=-1), batch_size)
    assert epochs.sum(axis=-2).max() == 1
    np.testing.assert_array_equal(epochs.any(axis=-2).sum(axis=-1), batches * batch_size)
    if batches > 1:
        assert (epochs[:, 0, 0] != epochs[:, 1, 0]).any()
        assert (epochs[:, :, 0] != epochs[:, :, 1]).any()
    batch_mean = -moved / run.lr.values[:, None, None, None] * batch_size / n
    full = 2 * (x[:, :, :-1] - f.y) / n
    np.testing.assert_allclose(batch_mean[moved != 0], full[moved != 0], rtol=1e-9)


# ── dimensions ──────────────────────────────────────────────────────────────────────────────────────────────────────

STARTS = array(np.linspace(-1, 1, 4).reshape(2, 2), "start", "point", start=["left", "right"])

DIMENSIONS: dict[str, tuple[Any, Any, dict[str, Any], dict[str, int]]] = {
    "none": (Huber(), Gradient(0.1), {}, {}),
    "list": (Huber(), Gradient([0.1, 0.2]), {}, {"lr": 2}),
    "all-in-order": (
        Huber([1.0, 2.0], dim=2),
        HeavyBall([0.1], [0.5, 0.6, 0.7]),
        {"penalty": L1([1.0, 2.0]), "x0": STARTS, "seeds": 3},
        {"delta": 2, "lr": 1, "beta": 3, "lam": 2, "start": 2, "seed": 3},
    ),
    "paired": (
        Huber(),
        Gradient(array([0.1, 0.2], "config")),
        {"penalty": L1(array([1.0, 2.0], "config"))},
        {"config": 2},
    ),
    "paired-with-starts": (
        Huber(dim=2),
        Gradient(array([0.1, 0.2], "start")),
        {"x0": STARTS},
        {"start": 2},
    ),
    "clash": (
        Huber(),
        Gradient([0.1, 0.2]),
        {"penalty": L1(InverseSqrt([1.0, 2.0, 3.0]))},
        {"rule_lr": 2, "penalty_lr": 3},
    ),
    "nested": (Huber(), Averaging(HeavyBall(Cosine([0.1, 0.2], steps=9))), {}, {"lr": 2}),
    "data": (TALL, Gradient(0.1), {"penalty": L1(1.0, weights=np.ones(6))}, {}),
    "labels": (Quadratic([1.0, 2.0]), Gradient(0.1), {"penalty": GroupLasso(1.0, groups=(1, 1))}, {}),
    "one-seed": (Huber(), Gradient(0.1), {"seeds": 1}, {"seed": 1}),
    "given-seeds": (Huber(), Gradient(0.1), {"seeds": [7, 3]}, {"seed": 2}),
    "seeds-of-batches": (TALL, Gradient(0.01), {"seeds": 2, "batch_size": 5, "x0": 0.0}, {"seed": 2}),
}


@pytest.mark.parametrize(("f", "rule", "options", "sizes"), over(DIMENSIONS))
def test_dimensions(f, rule, options, sizes):
    run = simulate(f, rule, steps=3, record=("value", "x"), **options)
    assert list(zip(run.value.dims, run.value.shape)) == [*sizes.items(), ("step", 3)]
    assert run.x.dims == (*run.value.dims, "coordinate")
    assert run.x_final.dims == (*sizes, "coordinate")
    assert run.diverged_at.dims == tuple(sizes)
    assert run.step.values.tolist() == [1, 2, 3]


def test_coordinates_are_the_values_swept():
    f, rule, options, _ = DIMENSIONS["all-in-order"]
    run = simulate(f, rule, steps=2, **options)
    for name, values in {
        "delta": [1, 2],
        "beta": [0.5, 0.6, 0.7],
        "start": ["left", "right"],
        "seed": [0, 1, 2],
    }.items():
        assert run[name].values.tolist() == values
    run = simulate(Huber(), DIMENSIONS["paired"][1], steps=2, **DIMENSIONS["paired"][2])
    assert run.lr.dims == run.lam.dims == ("config",)
    assert simulate(Huber(), Gradient(0.1), steps=2, seeds=[7, 3]).seed.values.tolist() == [7, 3]


def test_each_run_of_a_sweep_is_the_run_alone():
    f, penalty = Huber(array([0.5, 2.0], "config"), dim=3), L1([0.1, 0.4])
    rule = HeavyBall(InverseSqrt([0.1, 0.3]), array([0.5, 0.9], "config"))
    run = simulate(f, rule, penalty=penalty, steps=20, seeds=[3, 8], record="x")
    assert run.x.dims == ("config", "lr", "lam", "seed", "step", "coordinate")
    for c, i, j, seed in product(range(2), range(2), range(2), [3, 8]):
        alone = twin(
            Huber(float(f.delta[c]), dim=3),
            HeavyBall(InverseSqrt(rule.lr.lr[i]), float(rule.beta[c])),
            L1(penalty.lam[j]),
            steps=20,
            seed=seed,
        )
        np.testing.assert_allclose(run.x.sel(seed=seed)[c, i, j], alone["x"], rtol=1e-12)


def test_starts():
    def first(f, **options):
        """The start, from a step that hardly moves."""
        return simulate(f, Gradient(1e-300), steps=1, **options).x_final

    f = Huber(dim=2)
    default = np.random.default_rng
    np.testing.assert_array_equal(first(f), default(0).standard_normal(2))
    np.testing.assert_array_equal(first(f, seeds=[5, 2]), [default(s).standard_normal(2) for s in (5, 2)])
    np.testing.assert_array_equal(first(f, seeds=[5]), [default(5).standard_normal(2)])
    np.testing.assert_array_equal(first(f, x0=2, seeds=2), np.full((2, 2), 2.0))
    np.testing.assert_array_equal(first(f, x0=[1, 2]), [1.0, 2.0])
    np.testing.assert_array_equal(first(f, x0=STARTS), STARTS)
    np.testing.assert_array_equal(first(f, x0=array(3.0)), [3.0, 3.0])
    onwards = first(f, x0=first(f, x0=STARTS).transpose("coordinate", "start"))  # one run starts where another ended
    np.testing.assert_array_equal(onwards, STARTS)
    assert onwards.dims == ("start", "coordinate")


# ── what is kept ────────────────────────────────────────────────────────────────────────────────────────────────────

FULL = {"steps": 23, "penalty": L1([0.5, 1.5]), "record": ("value", "kappa", "sign_changes", "x")}


@pytest.mark.parametrize(
    ("steps", "every", "tail"),
    [(23, 1, 4), (23, 5, None), (23, 5, 2), (23, 5, 9), (23, 23, None), (17, 4, 2), (20, 1, None)],
)
def test_thinned_runs_are_slices_of_the_full_run(steps, every, tail):
    rule = HeavyBall([0.01, 0.05])
    full = simulate(TALL, rule, **FULL)
    kept = simulate(TALL, rule, **FULL | {"steps": steps, "every": every, "tail": tail})
    expected = np.arange(every, steps + 1, every)[-(tail or steps) :]
    assert kept.step.values.tolist() == expected.tolist()
    for name in FULL["record"]:
        xr.testing.assert_equal(kept[name], full[name].sel(step=expected))
    np.testing.assert_array_equal(kept.x_final, full.x.sel(step=steps))


def test_a_tails_memory_does_not_grow_with_the_steps():
    """400,000 steps of 128 numbers would fill 400 MB; ru_maxrss counts kilobytes."""
    run = {"x0": 0.3, "record": "x", "tail": 10, "progress": False}
    simulate(Absolute(dim=128), Gradient(0.1), steps=1_000, **run)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    kept = simulate(Absolute(dim=128), Gradient(0.1), steps=400_000, **run)
    assert kept.x.shape == (10, 128)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000


def test_a_diverging_run_is_marked_and_harms_no_other():
    """x_t = (1 − η)ᵗ passes 10¹⁰⁰ first at t = 333 for η = 3, at t = 34 for η = 1001."""
    run = simulate(Quadratic([1.0]), Gradient([0.5, 3.0, 1001.0]), x0=1.0, steps=500, record=("value", "x"))
    np.testing.assert_array_equal(run.diverged_at, [np.nan, 333, 34])
    assert not np.isfinite(run.value.isel(lr=2, step=-1))
    np.testing.assert_array_equal(run.x.isel(lr=0, step=slice(None, 50)).squeeze(), 0.5 ** np.arange(1, 51))


def test_a_function_may_be_recorded():
    def largest(m):
        return abs(m.x).max()

    def told(m):
        return m.g

    run = simulate(Huber(dim=3), Gradient([0.1, 0.2]), steps=5, record=("x", largest, told))
    np.testing.assert_array_equal(run.largest, abs(run.x).max("coordinate"))
    assert run.told.dims == ("lr", "step", "told_0")
    np.testing.assert_array_equal(run.told, np.clip(run.x, -1, 1))


# ── minima ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "f", [Absolute(), Huber([0.5, 2.0]), PLANES, MaxQuadratic(4, 2), TALL, CLASSES, Quadratic([1.0, 2.0])], ids=repr
)
def test_gap_of_a_known_or_computed_minimum(f):
    run = simulate(f, Gradient(0.05), steps=30, record=("value", "gap"))
    known = f.minimum if f is not CLASSES and not isinstance(f, Huber) else 0.0
    if f is CLASSES:
        known = float(minimise(f).minimum)
        assert np.linalg.norm(f.grad(minimise(f).minimiser.values)) < 1e-9
    np.testing.assert_allclose(run.gap, run.value - known, atol=1e-14)
    assert run.gap.min() > -1e-9


def test_gap_of_the_lasso_over_lambda_is_scikit_learns():
    f = diabetes()
    lams = f.critical_lam * np.array([0.9, 0.3, 0.01])
    run = simulate(f, Gradient(0.1), penalty=L1(lams), steps=300, record=("value", "gap"), penalty_by="prox")
    for lam in lams:
        w = Lasso(alpha=lam / 2, fit_intercept=False, tol=1e-14, max_iter=100_000).fit(f.X, f.y).coef_
        known = f.value(w) + L1(lam).value(w)
        one = run.sel(lam=lam)
        np.testing.assert_allclose(one.value - one.gap, known, rtol=1e-12)
        np.testing.assert_allclose(minimise(f, L1(lam)).minimiser, w, atol=1e-8)
    given = simulate(f, Gradient(0.1), penalty=L1(lams), steps=9, record=("value", "gap"), f_star=0.125)
    np.testing.assert_array_equal(given.gap, given.value - 0.125)


def test_minimise_states_its_residual_and_says_when_it_fails():
    solved = minimise(TALL, ElasticNet(lam=[0.1, 1.0], ridge=0.2))
    assert solved.minimiser.dims == ("lam", "coordinate")
    for i, lam in enumerate([0.1, 1.0]):
        x, g = solved.minimiser.values[i], ElasticNet(lam, 0.2)
        residual = np.linalg.norm(x - g.prox(x - TALL.grad(x), 1.0))
        assert residual == pytest.approx(float(solved.residual[i]), abs=1e-12)
        assert residual < 1e-9
    steep = LeastSquares(np.diag(np.geomspace(1e-4, 1, 30)), np.ones(30))
    with pytest.raises(
        ArithmeticError, match=r"^minimise: the residual is \S+ after 2000 steps, not 1\.0e-10; pass f_star="
    ):
        minimise(steep, max_steps=2000)


# ── what a call leaves alone ────────────────────────────────────────────────────────────────────────────────────────


@contextmanager
def compilations():
    """A list that fills with the names of what JAX compiles."""
    seen = []
    handler = logging.Handler()
    handler.emit = lambda record: seen.append(record.getMessage()) if "Compiling" in record.getMessage() else None
    logger = logging.getLogger("jax")
    logger.addHandler(handler)
    try:
        with jax.log_compiles(True):
            yield seen
    finally:
        logger.removeHandler(handler)


def test_other_numbers_compile_nothing():
    def run(scale, seed):
        f = random_least_squares(11, 3, seed=seed)
        rule = Averaging(HeavyBall(InverseSqrt(0.1 * scale), [0.5 * scale, 0.7]), skip=5)
        options = {"steps": 30 + seed, "every": 3, "tail": 2, "seeds": [seed, 2], "batch_size": 4}
        return simulate(f, rule, penalty=L1([scale, 2 * scale], weights=[1.0, scale, 2.0]), **options)

    with compilations() as first:
        run(1.0, 0)
    with compilations() as second:
        run(0.5, 9)
    assert any("record" in name for name in first)
    assert second == []


def test_float64_is_a_context():
    before = jax.config.jax_enable_x64
    run = simulate(Huber(), Gradient(0.1), steps=2)
    assert run.value.dtype == np.float64
    assert jax.config.jax_enable_x64 == before is False
    assert jnp.ones(2).dtype == jnp.asarray(np.ones(2)).dtype == np.float32


def test_a_call_changes_nothing_it_was_given():
    X, starts = np.eye(2), STARTS.copy(deep=True)
    np.random.seed(0)
    state = np.random.get_state()[1].copy()
    simulate(LeastSquares(X, [1.0, 2.0]), Gradient([0.1, 0.2]), x0=starts, steps=5, seeds=2)
    np.testing.assert_array_equal(np.random.get_state()[1], state)
    np.testing.assert_array_equal(X, np.eye(2))
    xr.testing.assert_identical(starts, STARTS)


def python(code: str) -> str:
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


LIGHT = "import nonsmooth, nonsmooth.rules, nonsmooth.objectives, nonsmooth.penalties, nonsmooth.hyperparameters"


@pytest.mark.parametrize(
    ("imports", "absent"),
    [
        (LIGHT, {"jax", "xarray", "torch", "sklearn", "scipy"}),
        ("import nonsmooth.simulation, nonsmooth.axes", {"jax", "torch", "sklearn", "scipy.optimize"}),
    ],
)
def test_imports_are_light(imports, absent):
    assert python(f"{imports}; import sys; print(sorted({absent} & set(sys.modules)))") == "[]"


def test_a_missing_extra_is_named_with_its_cure():
    code = (
        "import sys; sys.modules['xarray'] = None; import nonsmooth as ns\ntry: ns.simulate\nexcept ImportError as e: "
    )
    assert (
        python(f"{code} print(e)")
        == "nonsmooth.simulate needs xarray, which is not installed; run: pip install 'nonsmooth[lab]'"
    )
    with pytest.raises(AttributeError, match="has no attribute 'simulated'"):
        ns.simulated  # noqa: B018


def test_a_thread_that_is_told_to_stop_ends_its_simulation():
    stop = threading.Event()

    def stops(m):
        stop.set()  # while the program is being compiled: the simulation has begun
        return m.value

    def run():
        pace.STOP.set(stop)
        simulate(Huber(), Gradient(0.1), steps=10**9, tail=1, record=stops)

    with ThreadPoolExecutor(1) as pool:
        ended = pool.submit(run).exception(timeout=60)
    assert isinstance(ended, KeyboardInterrupt)
    simulate(Huber(), Gradient(0.1), steps=1)  # and no other thread's


def test_memory_is_asked_for_where_linux_does_not_say(monkeypatch):
    monkeypatch.setattr(pace, "Path", lambda _: Path("no-such-file"))
    pace.need_memory(2**30, "1 run", "take fewer")
    monkeypatch.delattr(pace.os, "sysconf")
    pace.need_memory(2**62, "1 run", "take fewer")


def test_long_work_shows_its_progress(capsys, monkeypatch):
    clock = count(step=3)
    monkeypatch.setattr(pace.time, "perf_counter", lambda: float(next(clock)))
    simulate(Huber(), Gradient(0.1), steps=5)
    assert capsys.readouterr().err == ""
    for name, value in {"FORCE_COLOR": "1", "TERM": "xterm"}.items():  # what a terminal looks like to Rich
        monkeypatch.setenv(name, value)
    for progress, shown in ((None, True), (True, True), (False, False)):
        simulate(Huber(), Gradient(0.1), steps=5, progress=progress)
        assert ("simulating" in capsys.readouterr().err) == shown


# ── bad input ───────────────────────────────────────────────────────────────────────────────────────────────────────


class ProxOnly(Penalty):
    def value(self, x):
        return 0.0 * x.sum()

    def prox(self, x, t):
        return x


def call(**changes):
    given = {"objective": TALL, "rule": Gradient(0.1), "steps": 10} | changes
    return lambda: simulate(given.pop("objective"), given.pop("rule"), **given)


def named(name):
    """A measure called so."""

    def measure(m):
        return m.value

    measure.__name__ = name
    return measure


BAD: dict[str, tuple[Any, str]] = {
    "variable": (call(record="valeu"), "record: there is no variable 'valeu'; choose from value, loss, gap, "),
    "variable-number": (call(record=3), "record: there is no variable 3; choose from "),
    "variable-list": (call(record=[["x"]]), "record: there is no variable ['x']; choose from "),
    "lambda": (lambda: L1(-1.0), "L1: lam must be a finite number, 0 or above, not -1."),
    "step-size": (lambda: Gradient(0.0), "Gradient: lr must be a finite number above 0, not 0."),
    "empty": (lambda: Gradient([]), "Gradient: lr is empty; give at least one value."),
    "nan": (
        lambda: LeastSquares([[np.nan]], [1.0]),
        "LeastSquares: X holds 1 value(s) that are NaN or infinite; drop or fill them first.",
    ),
    "start-shape": (
        call(x0=np.zeros(5)),
        "simulate: x0 has shape (5,) but points (6,); name further axes in a DataArray.",
    ),
    "start-plane": (
        call(x0=np.zeros((2, 6))),
        "simulate: x0 has shape (2, 6) but points (6,); name further axes in a DataArray.",
    ),
    "start-labelled": (
        call(x0=array(np.zeros((6, 2)), "start", "point")),
        "simulate: x0 has shape (6, 2) but points (6,); name further axes in a DataArray.",
    ),
    "start-step": (
        call(x0=array(np.zeros((2, 6)), "step", "point")),
        "x0 has a dimension called 'step', which every run has already; rename it.",
    ),
    "start-nan": (call(x0=np.nan), "simulate: x0 holds NaN or infinite values; start from finite ones."),
    "weights": (
        call(penalty=L1(1.0, weights=[1.0, 2.0])),
        "L1: weights of shape (2,) do not fit a point of shape (6,).",
    ),
    "weights-prox": (
        call(penalty=L1(1.0, weights=[[1.0] * 6]), penalty_by="prox"),
        "L1: weights of shape (1, 6) do not fit a point of shape (6,).",
    ),
    "groups": (
        call(penalty=GroupLasso(1.0, groups=(0, 1))),
        "GroupLasso: 2 group labels do not fit a point of shape (6,).",
    ),
    "no-gradient": (call(penalty=ProxOnly()), "ProxOnly has no gradient; use penalty_by='prox'."),
    "rows": (
        call(objective=Huber(), batch_size=2),
        "simulate: Huber has no rows, so batch_size means nothing; leave it out.",
    ),
    "batch": (call(batch_size=25), "simulate: batch_size=25 exceeds the 24 rows of data."),
    "batch-zero": (call(batch_size=0), "simulate: batch_size must be a whole number, 1 or above, not 0."),
    "steps": (call(steps=0), "simulate: steps must be a whole number, 1 or above, not 0."),
    "steps-half": (call(steps=2.5), "simulate: steps must be a whole number, 1 or above, not 2.5."),
    "every": (call(every=11), "simulate: every=11 keeps nothing of 10 steps; take every <= steps."),
    "tail": (call(tail=0), "simulate: tail must be a whole number, 1 or above, not 0."),
    "no-seeds": (
        call(seeds=0),
        "simulate: seeds must be a count above 0 or a list of whole numbers from 0 to 2**53, not 0.",
    ),
    "seeds": (
        call(seeds=-2),
        "simulate: seeds must be a count above 0 or a list of whole numbers from 0 to 2**53, not -2.",
    ),
    "seed": (
        call(seeds=[1, -1]),
        "simulate: seeds must be a count above 0 or a list of whole numbers from 0 to 2**53, not [1, -1].",
    ),
    "seed-word": (
        call(seeds="a"),
        "simulate: seeds must be a count above 0 or a list of whole numbers from 0 to 2**53, not 'a'.",
    ),
    "seed-large": (
        call(seeds=[2**53 + 1]),
        "simulate: seeds must be a count above 0 or a list of whole numbers from 0 to 2**53, not [9007199254740993].",
    ),
    "seed-twice": (call(seeds=[1, 2, 1]), "simulate: seeds holds 1 more than once; give each once."),
    "seeds-many": (call(seeds=10**14), "simulate: the starts of 100000000000000 seeds need 4800000 GB of memory, more"),
    "steps-many": (call(steps=2**60), f"simulate: steps must be a whole number, 1 or above, not {2**60}."),
    "records": (
        call(steps=10**13),
        "simulate: the records of 10000000000000 steps need 160000 GB of memory, more than is free; keep fewer steps "
        "by tail= or every=.",
    ),
    "grid": (
        call(rule=Gradient(np.full(10**6, 0.1)), penalty=L1(np.ones(10**6))),
        "simulate: 1000000000000 runs from 6 coordinates need 208000 GB of memory, more than is free; take fewer",
    ),
    "start-word": (call(x0="a"), "simulate: x0 must hold real numbers, not 'a'."),
    "start-complex": (call(x0=1j), "simulate: x0 must hold real numbers, not 1j."),
    "start-labelled-complex": (
        call(x0=array(np.full(6, 1j), "point")),
        "simulate: x0 must hold real numbers, not an array of shape (6,).",
    ),
    "minimum-nan": (call(f_star=np.nan), "simulate: f_star must be a finite number, not nan."),
    "minimum-plane": (
        call(f_star=np.zeros(2)),
        "simulate: f_star must be a finite number, not an array of shape (2,).",
    ),
    "minimum-word": (call(f_star="a"), "simulate: f_star must be a finite number, not 'a'."),
    "lambdas": (
        call(record=[lambda m: m.value, lambda m: m.loss]),
        "record: two functions are called '<lambda>'; give each its own name by def.",
    ),
    **{
        f"name-{name}": (
            call(rule=Gradient([0.1, 0.2]), record=named(name)),
            f"record: {name!r} is what every run or a field of this one is called; rename it.",
        )
        for name in ("x_final", "diverged_at", "step", "coordinate", "lr")
    },
    "curvature": (
        lambda: orbit_curvature(simulate(TALL, Gradient(0.1), steps=1)),
        'orbit_curvature: simulate with record=("grad_change_sq", "grad_change_dot_step").',
    ),
    "flag": (lambda: RMSProp(centered="no"), "RMSProp: centered must be True or False, not 'no'."),
    "flags": (lambda: Adam(amsgrad=[True, False]), "Adam: amsgrad must be True or False, not [True, False]."),
    "half-steps": (lambda: Cosine(1.0, 10.5), "Cosine: steps must be a whole number, not 10.5."),
    "step-word": (lambda: Cosine(1.0, "a"), "Cosine: steps must be a whole number, not 'a'."),
    "half-decay": (lambda: StepDecay(1.0, every=1.5), "StepDecay: every must be a whole number, not 1.5."),
    "complex-data": (
        lambda: LeastSquares(np.array([[1j]]), [1.0]),
        "LeastSquares: X must be an array of finite numbers, not [[1j]].",
    ),
    "features": (
        lambda: breast_cancer(features=100),
        "breast_cancer: features must be a whole number, from 1 to 30, not 100.",
    ),
    "features-negative": (
        lambda: breast_cancer(features=-5),
        "breast_cancer: features must be a whole number, from 1 to 30, not -5.",
    ),
    "loss-word": (
        lambda: breast_cancer("Foo"),
        "breast_cancer: loss must be a class, Logistic or Hinge, not 'Foo'.",
    ),
    "worst-0": (
        lambda: subgradient_last_iterate_instance(0),
        "subgradient_last_iterate_instance: n must be a whole number, from 1 to 80, not 0.",
    ),
    "worst-100": (
        lambda: subgradient_last_iterate_instance(100),
        "subgradient_last_iterate_instance: n must be a whole number, from 1 to 80, not 100.",
    ),
    "rows-list": (
        lambda: random_least_squares(n=[10, 20]),
        "random_least_squares: n must be a whole number, 1 or above, not [10, 20].",
    ),
    "gap-nonconvex": (
        call(penalty=MCP(1.0, gamma=3.0), record="gap"),
        "MCP is not convex, so its minimum is not computed; pass f_star=.",
    ),
    "penalty-by": (call(penalty_by="porx"), "simulate: penalty_by must be 'autograd' or 'prox', not 'porx'."),
    "objective": (call(objective="lasso"), "simulate: objective must be one of nonsmooth's, not str."),
    "rule": (call(rule=0.1), "simulate: rule must be one of nonsmooth's, not float."),
    "penalty": (call(penalty=0.1), "simulate: penalty must be one of nonsmooth's, not float."),
    "plane": (
        call(rule=Gradient([[0.1, 0.2]])),
        "rule: lr has shape (1, 2); give a flat list, or a DataArray that names its dimensions.",
    ),
    "gap": (
        call(objective=EDGES, record="gap"),
        "Hinge has no Lipschitz gradient, so its minimum is not computed; pass f_star=.",
    ),
    "gap-penalty": (
        call(objective=Absolute(), penalty=L1(1.0), record="gap"),
        "Absolute has no Lipschitz gradient, so its minimum is not computed; pass f_star=.",
    ),
    "gap-saddle": (
        call(objective=Quadratic([-1.0, 1.0]), record="gap"),
        "Quadratic is not convex, so its minimum is not computed; pass f_star=.",
    ),
    "gap-sweep": (
        call(objective=Huber([1.0, 2.0]), penalty=L1(1.0), record="gap"),
        "simulate: 'gap' over a swept objective needs f_star=, or no penalty and plain lists.",
    ),
}


@pytest.mark.parametrize(("make", "sentence"), over(BAD))
def test_bad_input_gives_one_sentence(make, sentence):
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}") as error:
        make()
    assert str(error.value).count("\n") == 0
    assert str(error.value).endswith(".")


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
