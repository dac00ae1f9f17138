"""Sentence 1: gradient methods on non-smooth functions do not converge as gradient descent on smooth ones does."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import xarray as xr
from scipy.optimize import linprog

from nonsmooth.claims.problems import PAPER, lasso_minimum, lasso_path, least_squares_draws, start_draws
from nonsmooth.ledger import Evidence, at_least, claim, equals, where
from nonsmooth.objectives import (
    Absolute,
    Huber,
    LogCosh,
    Objective,
    ReLURegression,
    TwoLayer,
    random_least_squares,
)
from nonsmooth.objectives.separable import Separable
from nonsmooth.penalties import L1, SmoothedL1
from nonsmooth.plots import Axis, Line, Plot, Style
from nonsmooth.rules import Gradient, InverseSqrt
from nonsmooth.simulation import simulate


@claim(
    "convergence/constant-step-raises-f",
    says="On |x|, a constant step of any size ends up raising f in every second step; on the smooth Huber function "
    "the same steps never do.",
    source=PAPER.format(1),
    sentence=1,
    relation=equals(within=0.01),
    mutants={"the Huber function (L = 1) in place of |x|": {"objective": Huber()}},
    full={"starts": 200},
)
def constant_step_raises_f(
    objective: Objective = Absolute(),
    lrs: Sequence[float] = (1e-3, 1e-2, 0.1, 0.3, 1.0),
    starts: int = 20,
    steps: int = 4000,
    master: int = 0,
) -> Evidence:
    x0 = start_draws(starts, master, 0.5, 1.5)
    run = simulate(objective, Gradient(lr=lrs), x0=x0, steps=steps, tail=1001, record=("value",))
    raised = (run.value.diff("step") > 0).mean("step")

    sixteenths = np.arange(16) / 16  # x₀ mod η, in units of η, in exactly representable numbers
    placed = xr.DataArray((1 + sixteenths / 16)[:, None], dims=("start", "coordinate"))
    exact = simulate(objective, Gradient(lr=1 / 16), x0=placed, steps=200, tail=101, record=("value",))
    never = sixteenths[((exact.value.diff("step") > 0).mean("step") == 0).values]

    path = simulate(Absolute(), Gradient(lr=[0.03, 0.3]), x0=1.0, steps=60, record=("value",))
    smooth = simulate(Huber(), Gradient(lr=[0.03, 0.3]), x0=1.0, steps=60, record=("value",))
    drawn: list[tuple[str, Any, Style]] = [("|x|", path, "line"), ("Huber", smooth, "dash")]
    lines = [
        Line(f"{name}, η = {lr:g}", r.step, r.value.sel(lr=lr), style) for name, r, style in drawn for lr in (0.03, 0.3)
    ]
    return Evidence(
        "share of late steps that raise f",
        raised.values,
        0.5,
        [f"η = {lr:g}" for lr in lrs],
        holds_when=f"x₀ mod η is not {' or '.join(f'{v:g} η' if v else '0' for v in never)} (16 places tried)",
        plots=[
            Plot(
                Axis("step"),
                Axis("f(x)"),
                lines,
                title="The same steps on |x| and on Huber",
                says="On |x| the run falls to the height of its step and bounces there; on Huber it goes to 0.",
            )
        ],
        data=run,
    )


@claim(
    "convergence/floor-proportional-to-step",
    says="On the Lasso with autograd's gradient, the gap that a constant step leaves is proportional to the step: "
    "halving η halves it, and no number of steps removes it.",
    source=PAPER.format(1),
    sentence=1,
    relation=equals(within=0.1),
    mutants={"the proximal map in place of autograd's gradient": {"penalty_by": "prox"}},
    full={"problems": 40},
)
def floor_proportional_to_step(
    penalty_by: Any = "autograd",
    relative_lrs: Sequence[float] = (0.02, 0.04, 0.08, 0.16),
    problems: int = 10,
    steps: int = 20_000,
    master: int = 0,
) -> Evidence:
    scan = np.geomspace(0.02, 1.9, 14)
    slopes, curves = [], []
    for f in least_squares_draws(problems, master):
        L, lam = f.constants.L, 0.3 * f.critical_lam
        best = lasso_minimum(f, lam)
        lr = np.concatenate([relative_lrs, scan]) / L
        run = simulate(
            f,
            Gradient(lr=lr),
            penalty=L1(lam),
            penalty_by=penalty_by,
            steps=steps,
            tail=1000,
            record=("gap",),
            seeds=[master],
            f_star=best,
        )
        gap = np.maximum(run.gap.mean("step").values[:, 0], 1e-16)
        slopes.append(np.polyfit(np.log(relative_lrs), np.log(gap[: len(relative_lrs)]), 1)[0])
        curves.append(gap[len(relative_lrs) :])
    mean = np.exp(np.mean(np.log(curves), axis=0))
    local = np.gradient(np.log(mean), np.log(scan))
    return Evidence(
        "slope of log(tail mean gap) against log η",
        [slopes],
        1.0,
        ["λ = 0.3 critical λ"],
        holds_when=where("ηL", scan, np.abs(local - 1) < 0.2) + ", by the local slope within 0.2 of 1",
        plots=[
            Plot(
                Axis("ηL, step size over 1/L", log=True),
                Axis("tail mean of F(w) − F*", log=True),
                [
                    Line("measured, geometric mean over problems", scan, mean, "markers"),
                    Line("proportional to η", scan, mean[0] * scan / scan[0], "dash"),
                ],
                says="The gap that is left follows the step, down to the smallest.",
            )
        ],
        data=run,
    )


@claim(
    "convergence/gradient-norm-does-not-vanish",
    says="On the Lasso the norm of autograd's gradient never falls below √Σ(λ − |∂f|)², over the weights that are zero "
    "in the solution, though a decaying step makes the gap small: a rule that stops by the gradient norm never stops.",
    source=PAPER.format(1),
    sentence=1,
    relation=at_least(slack=0.05),
    mutants={"the L1 term smoothed (pseudo-Huber, δ = 0.01), with a step below 2/L": {"delta": 0.01, "problems": 4}},
    full={"problems": 40},
)
def gradient_norm_does_not_vanish(
    delta: float | None = None,
    multiples: Sequence[float] = (0.1, 0.3, 0.9),
    problems: int = 10,
    steps: int = 20_000,
    master: int = 0,
) -> Evidence:
    samples, curves = [], []
    for f in least_squares_draws(problems, master):
        L, lams = f.constants.L, np.asarray(multiples) * f.critical_lam
        exact = lasso_path(f, lams)
        inside = np.stack([lam - np.abs(f.grad(w)) for lam, w in zip(lams, exact, strict=True)]) * (exact == 0)
        floor = np.sqrt((inside**2).sum(axis=1))
        penalty = L1(lams) if delta is None else SmoothedL1(lams, delta)
        steepest = L if delta is None else L + lams[-1] / delta
        rule = Gradient(lr=InverseSqrt(0.1 / L)) if delta is None else Gradient(lr=1 / steepest)
        run = simulate(
            f, rule, penalty=penalty, steps=steps, tail=1000, record=("grad_norm", "value"), seeds=[master]
        ).isel(seed=0)
        samples.append(run.grad_norm.min("step").values / floor)
        best = np.array([lasso_minimum(f, float(lam)) for lam in lams])
        curves.append([run.grad_norm.mean("step").values / floor, run.value.mean("step").values - best])
    norms, gaps = np.mean(curves, axis=0)
    return Evidence(
        f"smallest ‖g̃‖ of the last 1000 steps and of {problems} problems, over √Σ(λ − |∂f|)²",
        np.min(samples, axis=0),
        1.0,
        [f"λ = {m:g} critical λ" for m in multiples],
        holds_when="some weight is zero in the solution; the mean gaps left by the decaying step were "
        + ", ".join(f"{g:.1e}" for g in gaps),
        plots=[
            Plot(
                Axis("λ over the critical λ", log=True),
                Axis("mean over the last 1000 steps", log=True),
                [
                    Line("‖g̃‖ over its bound", multiples, norms, "markers"),
                    Line("gap F(w) − F*", multiples, gaps, "markers"),
                    Line("the bound", multiples, np.ones(len(multiples)), "dash"),
                ],
                says="The gap is nearly gone and the gradient is not.",
            )
        ],
    )


def gradient_variation(f: Objective, points: np.ndarray, scales: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """ω(δ) = E‖g̃(x + δu) − g̃(x)‖ over the points and one random unit direction at each, for each scale δ."""

    def gradients(x: np.ndarray) -> np.ndarray:
        return f.grad(x) if isinstance(f, Separable) else np.stack([f.grad(row) for row in x])

    directions = rng.standard_normal(points.shape)
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    there = gradients(points)
    changes = (gradients(points + s * directions) - there for s in scales)
    return np.array([np.linalg.norm(change, axis=1).mean() for change in changes])


def local_slope(scales: np.ndarray, omega: np.ndarray) -> float:
    """d log ω / d log δ, by least squares over the given scales."""
    return float(np.polyfit(np.log(scales), np.log(np.maximum(omega, 1e-300)), 1)[0])


@claim(
    "convergence/holder-slope",
    says="How a gradient varies with distance δ tells the two worlds apart: as δ¹ where it is Lipschitz, as δ⁰ at a "
    "kink, and, averaged over generic points of a function with many kinks, as δ¹ while single kinks are met and "
    "as δ^½ where many are: a slope of 1 at one scale is no proof of L-smoothness.",
    source=PAPER.format(1) + "; our statement: k crossed kinks add up as √k",
    sentence=1,
    relation=equals(within=0.1, absolute=True),
    mutants={"log cosh in place of Σ|x|": {"kinked": LogCosh}},
    full={"samples": 100},
)
def holder_slope(
    kinked: Callable[..., Objective] = Absolute,
    dim: int = 200,
    points: int = 10_000,
    samples: int = 20,
    master: int = 0,
) -> Evidence:
    """Cases: log cosh; Σ|xᵢ| at 0; Σ|xᵢ| at Gaussian points, where δ crosses 0.32 δ√P kinks, ≪ 1 or many."""
    tiny, large = np.geomspace(2e-3, 2e-2, 5), np.geomspace(1.0, 5.0, 5)
    smooth, bent = LogCosh(dim=dim), kinked(dim=dim)
    found = []
    for i in range(samples):
        rng = np.random.default_rng([master, i])
        x = rng.standard_normal((points, dim))
        cases = (
            (smooth, x[:200], tiny),
            (bent, np.zeros((1, dim)), tiny),
            (bent, x, tiny),
            (bent, x[:1000], large),
        )
        found.append([local_slope(scales, gradient_variation(f, at, scales, rng)) for f, at, scales in cases])
    scales = np.geomspace(1e-4, 1e1, 16)
    data = random_least_squares(n=50, p=5, seed=master)
    lines = []
    for name, f in {
        "Σ|xᵢ|, P = 50": Absolute(dim=50),
        "log cosh, P = 50": LogCosh(dim=50),
        "two layers, ReLU": TwoLayer(data.X, data.y, hidden=8),
        "two layers, tanh": TwoLayer(data.X, data.y, hidden=8, activation="tanh"),
    }.items():
        rng = np.random.default_rng(master)
        omega = gradient_variation(f, rng.standard_normal((200, *f.shape)), scales, rng)
        lines.append(Line(name, scales, np.where(omega > 0, omega / omega.max(), np.nan), "markers"))
    return Evidence(
        "slope of log ω(δ) against log δ",
        np.transpose(found),
        [1.0, 0.0, 1.0, 0.5],
        ["log cosh, δ ≤ 0.02", "Σ|x|, at the kink", f"Σ|x|, P = {dim}, δ ≤ 0.02", f"Σ|x|, P = {dim}, δ from 1 to 5"],
        holds_when=f"Gaussian points in dimension {dim}: a distance δ crosses 0.32 δ√P kinks on average, one at "
        f"δ = {3.1 * dim**-0.5:.2g}; around it the slope drifts from 1 to ½",
        plots=[
            Plot(
                Axis("distance δ", log=True),
                Axis("ω(δ), over its largest value", log=True),
                [*lines, Line("slope 1", scales[:6], scales[:6] * 10, "dash")],
                says="Averaged over points the ReLU network looks smooth: each point alone sees 0, or a jump.",
            )
        ],
    )


def cover(n: int, p: int) -> float:
    """The probability that n random half-spaces through 0 in dimension p meet: 2^(1−n) Σ_{k<p} C(n − 1, k)."""
    return sum(math.comb(n - 1, k) for k in range(p)) / 2 ** (n - 1)


def has_cone(X: np.ndarray) -> bool:
    """Whether there is a w with Xw < 0 in every row, by a linear programme.

    >>> has_cone(np.array([[1.0, 0.0], [0.0, 1.0]])), has_cone(np.array([[1.0, 0.0], [-1.0, 0.0]]))
    (True, False)
    """
    return bool(linprog(np.zeros(X.shape[1]), A_ub=X, b_ub=-np.ones(len(X)), bounds=(None, None)).status == 0)


@claim(
    "convergence/one-layer-relu",
    says="On one ReLU unit with negative targets, gradient descent reaches the minimum exactly, after finitely many "
    "steps, where there is a cone Xw < 0 to end in, and only there; 3000 steps are enough for all but the narrowest "
    "cones. The kinks make it faster than the smooth problem with targets 0, which only approaches.",
    source="arXiv 2401.08426, first version: rates on one ReLU layer with non-positive targets; Cover 1965",
    sentence=1,
    relation=equals(within=0.12, absolute=True),
    mutants={"targets of 0, where f is C¹": {"target": 0.0, "problems": 40}},
    full={"problems": 1000},
)
def one_layer_relu(
    target: float = -1.0,
    p: int = 10,
    rows: Sequence[int] = (15, 20, 25),
    problems: int = 200,
    steps: int = 3000,
    master: int = 0,
) -> Evidence:
    reached, meant = np.zeros((2, len(rows), problems))
    for k, n in enumerate(rows):
        for i in range(problems):
            X = np.random.default_rng([master, n, i]).standard_normal((n, p))
            f = ReLURegression(X, np.full(n, target))
            lr = n / (2 * f.spectral_norm**2)  # 1/L of the problem with targets 0
            run = simulate(f, Gradient(lr=lr), steps=steps, tail=1, record=("value",), seeds=[i])
            reached[k, i] = run.value.values[0, 0] == target**2
            meant[k, i] = has_cone(X)
    scan = np.arange(p, 4 * p + 1)
    X = np.random.default_rng(master).standard_normal((15, p))
    curves = []
    for y in (target, 0.0):
        f = ReLURegression(X, np.full(15, y))
        run = simulate(f, Gradient(lr=15 / (2 * f.spectral_norm**2)), steps=200, record=("gap",), seeds=[0])
        curves.append(run.gap.where(run.gap > 0).values[0])
    steps_shown = np.arange(1, 201)
    return Evidence(
        f"share of problems whose minimum {steps} steps reached exactly without a cone, or did not with one",
        reached != meant,
        0.0,
        [f"N = {n}, P = {p}" for n in rows],
        holds_when=f"there is a w with Xw < 0, as of {problems} problems with N random rows there is in "
        + ", ".join(
            f"{int(found.sum())} (N = {n}; by Cover's formula {problems * cover(n, p):.0f})"
            for n, found in zip(rows, meant, strict=True)
        )
        + f"; {int((meant > reached).sum())} of these took more than {steps} steps, and "
        f"{int((reached > meant).sum())} of the others were reached",
        plots=[
            Plot(
                Axis("rows N, in dimension P = 10"),
                Axis("probability of an exact end"),
                [
                    Line("measured", rows, reached.mean(axis=1), "markers"),
                    Line("Cover's formula", scan, [cover(int(n), p) for n in scan], "dash"),
                ],
                title="How often",
                says="Few rows leave a cone of minimisers, and the run falls into it.",
            ),
            Plot(
                Axis("step"),
                Axis("f(w) − f*", log=True),
                [
                    Line(f"targets {y:g}".replace("-", "−"), steps_shown, g)
                    for y, g in zip((target, 0.0), curves, strict=True)
                ],
                title="How fast, on one problem (N = 15)",
                says="With a kink the gap ends at 0 exactly, where its curve stops; without one it falls for ever.",
            ),
        ],
    )
