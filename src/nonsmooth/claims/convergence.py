"""Sentence 1: gradient methods on non-smooth functions do not converge as gradient descent on smooth ones does."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr

from nonsmooth.claims.problems import PAPER, lasso_path, least_squares_draws, start_draws
from nonsmooth.ledger import Evidence, claim, equals, where
from nonsmooth.objectives import Absolute, Huber, LeastSquares, MaxLinear, Objective, subgradient_hard_instance
from nonsmooth.penalties import L1
from nonsmooth.plots import Axis, Line, Plot, Style
from nonsmooth.rules import Gradient, InverseSqrt, Rule
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
        holds_when=f"x₀ mod η is none of {{{', '.join(f'{v:g}η' for v in never)}}} (16 places tried)",
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
    mutants={"the proximal map in place of autograd's gradient": {"penalty_by": "prox", "problems": 4}},
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


def lasso_minimum(f: LeastSquares, lam: float) -> float:
    """F* of the Lasso, from the exact path."""
    w = lasso_path(f, np.array([lam]))[0]
    return float(f.value(w) + L1(lam).value(w))


def best_gaps(f: MaxLinear, rule: Rule, steps: int, x0: Any, f_star: float) -> np.ndarray:
    """The smallest gap up to each step, the start included."""
    run = simulate(f, rule, x0=x0, steps=steps, record=("value",))
    values = np.append(f.value(np.asarray(x0)), run.value.values)
    return np.minimum.accumulate(values) - f_star


@claim(
    "convergence/subgradient-worst-case",
    says="On the hard instance the subgradient method's best gap after N steps of R/(M√(N+1)) is exactly MR/√(N+1): "
    "the rate is N^(-1/2), and a hundred times the accuracy costs ten thousand times the steps.",
    source=PAPER.format(1) + "; Drori & Teboulle 2016",
    sentence=1,
    relation=equals(within=0.01),
    mutants={"ties shared among the winners, as by amax": {"ties": "average"}},
)
def subgradient_worst_case(ns: Sequence[int] = (3, 6, 12, 20), ties: Any = "first", master: int = 0) -> Evidence:
    predicted = [1 / np.sqrt(n + 1) for n in ns]
    measured = []
    for n, bound in zip(ns, predicted, strict=True):
        f = subgradient_hard_instance(n, ties=ties)
        measured.append(best_gaps(f, Gradient(lr=bound), n, np.zeros(n + 1), -bound)[-1])
    share = typical_shares(n=ns[-1], master=master)
    return Evidence(
        "best gap after N steps (M = R = 1)",
        measured,
        predicted,
        [f"N = {n}" for n in ns],
        holds_when=f"the instance is the hard one: on 20 random maxima of linear functions the best gap was "
        f"{share.min():.2f} to {share.max():.2f} of the bound, never above it",
        plots=[
            Plot(
                Axis("number of steps N", log=True),
                Axis("best gap, M = R = 1", log=True),
                [
                    Line("measured on the hard instance", ns, measured, "markers"),
                    Line("MR/√(N+1)", ns, predicted, "dash"),
                    Line("smooth GD's worst case, LR²/(4N+2)", ns, [1 / (4 * n + 2) for n in ns], "line"),
                ],
                says="The non-smooth worst case lies on its bound, far above the smooth one.",
            )
        ],
    )


def typical_shares(n: int, master: int, count: int = 20) -> np.ndarray:
    """Best gap over MR/√(n+1) for random maxima of n+1 unit vectors' linear functions, R the distance to x*."""
    rng = np.random.default_rng(master)
    shares = []
    for _ in range(count):
        A = rng.standard_normal((2 * n, n))
        f = MaxLinear(A / np.linalg.norm(A, axis=1, keepdims=True), 0.1 * rng.standard_normal(2 * n))
        best = f.minimiser
        if best is None:
            continue
        R = float(np.linalg.norm(best))
        gaps = best_gaps(f, Gradient(lr=R / np.sqrt(n + 1)), n, np.zeros(n), float(f.value(best)))
        shares.append(gaps[-1] / (R / np.sqrt(n + 1)))
    return np.array(shares)


@claim(
    "convergence/gradient-descent-worst-case",
    says="On the smooth hard instance gradient descent with step 1/L has a gap of exactly LR²/(4N+2) after N steps: "
    "the rate is 1/N.",
    source=PAPER.format(1) + "; Drori & Teboulle 2014",
    sentence=1,
    relation=equals(within=0.01),
    mutants={"half of that step": {"lr": 0.5}},
)
def gradient_descent_worst_case(ns: Sequence[int] = (3, 6, 12, 20), lr: float = 1.0, master: int = 0) -> Evidence:
    predicted = np.array([1 / (4 * n + 2) for n in ns])
    knees = np.array([1 / (2 * n + 1) for n in ns])
    run = simulate(Huber(delta=knees), Gradient(lr=lr), x0=1.0, steps=max(ns), record=("value",))
    measured = np.array([run.value.sel(step=n).values[i] for i, n in enumerate(ns)])
    shown = run.value.where(run.value > 1e-15)  # below that lies rounding
    ratios = []
    for f in least_squares_draws(20, master):
        f_star, best = f.minimum, f.minimiser
        assert f_star is not None
        L, R = f.constants.L, np.linalg.norm(best)
        typical = simulate(f, Gradient(lr=1 / L), x0=0.0, steps=max(ns), tail=1, record=("value",))
        ratios.append((float(typical.value[-1]) - f_star) / (L * R**2 / (4 * max(ns) + 2)))
    return Evidence(
        "gap after N steps (L = R = 1)",
        measured,
        predicted,
        [f"N = {n}" for n in ns],
        holds_when=f"the instance is the hard one: on 20 random least-squares problems the gap was "
        f"{min(ratios):.1e} to {max(ratios):.1e} of the bound",
        plots=[
            Plot(
                Axis("step", log=True),
                Axis("f(x) − f*", log=True),
                [Line(f"Huber for N = {n}", run.step, shown[i]) for i, n in enumerate(ns)]
                + [Line("LR²/(4N+2) at N", ns, predicted, "markers")],
                says="Each curve meets the bound at its own N, where its hard instance was made to.",
            )
        ],
        data=run,
    )


@claim(
    "convergence/decay-removes-the-floor",
    says="The floor is the constant step's: with η/√t the gap on the same Lasso keeps falling, by the same factor "
    "as the step.",
    source="a reviewers' objection to an early version of the paper",
    sentence=1,
    relation=equals(within=0.3),
    bears="limits",
    mutants={"a constant step": {"decaying": False, "problems": 4}},
    full={"problems": 40},
)
def decay_removes_the_floor(
    decaying: bool = True, problems: int = 10, steps: int = 40_000, master: int = 0
) -> Evidence:
    early = steps // 16
    falls = []
    for f in least_squares_draws(problems, master):
        lr = 0.2 / f.constants.L
        rule = Gradient(lr=InverseSqrt(lr)) if decaying else Gradient(lr=lr)
        lam = 0.3 * f.critical_lam
        best = lasso_minimum(f, lam)
        run = simulate(f, rule, penalty=L1(lam), steps=steps, record=("gap",), every=2, seeds=[master], f_star=best)
        late = [float(run.gap.sel(step=slice(t - t // 16, t)).mean()) for t in (early, steps)]
        falls.append(np.log(late[1] / late[0]) / np.log(steps / early))
    # a decaying gap c·t^s has slope s; the step's own slope is −½
    thin = run.gap.isel(seed=0, step=np.unique(np.geomspace(1, run.sizes["step"], 200).astype(int)) - 1)
    return Evidence(
        "slope of log(gap) against log t, between t = T/16 and T",
        [falls],
        -0.5,
        ["λ = 0.3 critical λ"],
        holds_when=f"measured for T = {steps} and η₁L = 0.2; nothing was tried beyond",
        plots=[
            Plot(
                Axis("step t", log=True),
                Axis("F(w) − F*", log=True),
                [
                    Line("one problem", thin.step, thin),
                    Line("proportional to 1/√t", thin.step, float(thin[-1]) * np.sqrt(steps / thin.step), "dash"),
                ],
                says="No floor: the gap follows the step down.",
            )
        ],
        data=run,
    )
