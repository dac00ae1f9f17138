"""simulate: equal to a slow loop, labelled as asked, undisturbing; and the laws that its runs obey."""

from __future__ import annotations

import logging
import resource
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count, product
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import xarray as xr
from sklearn.linear_model import Lasso

import nonsmooth as ns
from nonsmooth import progress as pace
from nonsmooth.hyperparameters import Positive
from nonsmooth.objectives import (
    Absolute,
    Huber,
    LeastSquares,
    LogCosh,
    MaxLinear,
    MaxQuadratic,
    PseudoHuber,
    Quadratic,
    diabetes,
    random_least_squares,
)
from nonsmooth.penalties import L1, ElasticNet, GroupLasso, SquaredL2
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
from nonsmooth.simulation import MEASURES, minimise, simulate
from runs import CLASSES, EDGES, PLANES, TALL, WIDE, array
from zoo import over

rejected = pytest.raises(AssertionError)


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
    rates = Gradient([1e-300, 2e-300])
    ended = simulate(f, rates, x0=array(STARTS, "start", "point"), steps=1).x_final.sel(lr=1e-300)
    again = simulate(f, rates, x0=ended, steps=1).x_final  # over the rates of which one was selected
    assert again.dims == ("lr", "start", "coordinate")
    np.testing.assert_array_equal(again, [STARTS, STARTS])


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


@dataclass(frozen=True)
class Named(Gradient):
    """A rule with a field of L1's name."""

    lam: Positive = 1.0


def test_gap_where_the_rule_has_a_field_of_the_penaltys_name():
    f, lams = LeastSquares(np.eye(2), [3.0, 0.1]), np.array([0.5, 1.0, 2.0])
    run = simulate(f, Named(0.1, lam=[1.0, 2.0]), penalty=L1(lams), steps=2, record=("value", "gap"))
    best = run.value - run.gap
    assert best.dims == ("rule_lam", "penalty_lam", "step")
    known = 3 * lams - lams**2 / 2 + 0.1**2 / 2  # at (3 − λ, 0)
    np.testing.assert_allclose(best, np.broadcast_to(known[:, None], best.shape), rtol=1e-12)


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
