"""Sentence 4: the edge of stability where there is no curvature, and what is left of its threshold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy.optimize import brentq

from nonsmooth.claims.problems import PAPER, MakeRule, least_squares_draws, start_draws
from nonsmooth.ledger import Evidence, at_least, claim, equals, where
from nonsmooth.objectives import (
    Absolute,
    Huber,
    LogCosh,
    Logistic,
    Objective,
    PseudoHuber,
    Quadratic,
    breast_cancer,
)
from nonsmooth.penalties import L1
from nonsmooth.plots import Axis, Line, Plot, Table
from nonsmooth.rules import Gradient, HeavyBall, Nesterov
from nonsmooth.simulation import Moment, minimise, orbit_curvature, simulate

ORBIT = ("grad_change_sq", "grad_change_dot_step", "kappa", "value")


NAMES = {PseudoHuber: "pseudo-Huber", LogCosh: "log cosh"}


def top_eigenvalue(f: Logistic, w: np.ndarray) -> float:
    """λ₁ of the Hessian of the logistic loss at w."""
    s = 1 / (1 + np.exp(-f.y * (f.X @ w)))
    return float(np.linalg.eigvalsh((f.X * (s * (1 - s))[:, None]).T @ f.X / f.n)[-1])


@claim(
    "edge/orbit-curvature",
    says="Wherever full-batch GD stays bounded without converging, smooth or not, its orbit curvature κ̄ is 2/η, also "
    "where every Hessian on the way is 0.",
    source="our statement, an identity: ‖g‖² telescopes, so that only a run that converges can fail it; "
    + PAPER.format(4),
    sentence=4,
    relation=equals(within=0.01),
    mutants={"heavy ball, whose orbits have another factor": {"rule": HeavyBall, "starts": 4}},
    full={"starts": 50},
)
def edge_law(
    rule: MakeRule = Gradient, starts: int = 10, steps: int = 20_000, tail: int = 10_000, master: int = 0
) -> Evidence:
    seeds = [1000 * master + i for i in range(starts)]
    lasso = least_squares_draws(1, master)[0]
    cancer = breast_cancer(features=10)
    edge = 2 / top_eigenvalue(cancer, minimise(cancer).minimiser.values)
    line = start_draws(starts, master, 1.0, 8.0).rename(start="seed").assign_coords(seed=seeds)
    cases: list[tuple[str, Objective, Any, float, dict[str, Any]]] = [
        ("|x|, η = 0.1, Hessian 0", Absolute(), None, 0.1, {"x0": line}),
        ("Huber, η = 4, Hessian 0 on the orbit", Huber(), None, 4.0, {"x0": line}),
        ("log cosh, η = 4", LogCosh(), None, 4.0, {"x0": line}),
        ("Lasso, ηL = 0.1", lasso, L1(lasso.critical_lam / 2), 0.1 / lasso.constants.L, {}),
        ("logistic, breast cancer, 1.5 × 2/λ₁", cancer, None, 1.5 * edge, {}),
    ]
    samples, traces, smallest = [], [], []
    for name, f, penalty, lr, extra in cases:
        run = simulate(f, rule(lr=lr), penalty=penalty, steps=steps, tail=tail, record=ORBIT, seeds=seeds, **extra)
        samples.append(lr * orbit_curvature(run).values.ravel())
        window = run.isel(seed=0, step=slice(0, 40))
        traces.append(Line(name, np.arange(1, 41), lr * window.kappa))
        sums = run.isel(seed=0)[["grad_change_sq", "grad_change_dot_step"]].cumsum("step")
        off = np.abs(lr * (sums.grad_change_sq / sums.grad_change_dot_step).values / 2 - 1)
        smallest.append(int(np.max(np.nonzero(off > 0.01)[0], initial=0)) + 2)
    return Evidence(
        "η κ̄ over the tail",
        samples,
        2.0,
        [name for name, *_ in cases],
        holds_when=f"the run stays bounded, does not converge, and at least {max(smallest)} steps are summed (for 1 %)",
        plots=[
            Plot(
                Axis("late step"),
                Axis("η κ"),
                [*traces, Line("2", [1, 40], [2, 2], "dash")],
                says="κ of single steps wanders on the Lasso and is 2/η on orbits of period 2; κ̄ is 2/η on all.",
            )
        ],
    )


@claim(
    "edge/absolute-value-has-no-threshold",
    says="On |x| every step size is at the edge: ηκ is 2 on average over the flips, from the smallest step to the "
    "largest, while the Hessian is 0 wherever it exists.",
    source=PAPER.format(4),
    sentence=4,
    relation=equals(within=0.01),
    mutants={"the Huber function (L = 1) in place of |x|": {"objective": Huber()}},
    full={"starts": 200},
)
def no_threshold(
    objective: Objective = Absolute(),
    lrs: Sequence[float] = (1e-3, 1e-2, 0.1, 0.5, 1.5),
    starts: int = 20,
    steps: int = 6000,
    master: int = 0,
) -> Evidence:
    x0 = start_draws(starts, master, 0.5, 1.5)
    run = simulate(objective, Gradient(lr=lrs), x0=x0, steps=steps, tail=1000, record=("kappa", "x"))
    return Evidence(
        "mean η κ over the last 1000 steps",
        (run.kappa.fillna(0).mean("step") * run.lr).values,
        2.0,
        [f"η = {lr:g}" for lr in lrs],
        holds_when=where("η", lrs, np.abs((run.kappa.fillna(0).mean("step") * run.lr).values - 2).max(axis=1) < 0.02),
        data=run[["kappa"]],
    )


@claim(
    "edge/huber-orbits",
    says="On the Huber function (L = 1, Lipschitz, convex) GD beyond η = 2 neither converges nor diverges: it ends on "
    "an orbit of period 2 and width η, at whose points the Hessian is 0.",
    source=PAPER.format(4),
    sentence=4,
    relation=equals(within=0.01),
    mutants={"half of the steps, two of them below 2/L": {"scale": 0.45}},
    full={"starts": 200},
)
def huber_orbits(
    lrs: Sequence[float] = (2.01, 2.5, 4.0, 10.0),
    scale: float = 1.0,
    starts: int = 20,
    steps: int = 4000,
    master: int = 0,
) -> Evidence:
    x0 = start_draws(starts, master, 5.0, 9.0)
    eta = scale * np.asarray(lrs)
    run = simulate(Huber(), Gradient(lr=eta), x0=x0, steps=steps, tail=100, record=("x",))
    x = run.x.isel(coordinate=0)
    width = (x.max("step") - x.min("step")).values
    scan = np.round(np.linspace(1.5, 2.5, 21), 3)
    swept = simulate(Huber(), Gradient(lr=scan), x0=7.3, steps=steps, tail=100, record=("x",)).x
    widths = (swept.max("step") - swept.min("step")).values[:, 0]
    path = simulate(Huber(), Gradient(lr=[1.9, 2.5, 4.0]), x0=7.3, steps=40, record=("x",)).x
    return Evidence(
        "width of the orbit over η",
        width / eta[:, None],
        1.0,
        [f"η = {lr:g}" for lr in eta],
        holds_when=where("η", scan, np.abs(widths / scan - 1) < 0.01) + ", L = 1",
        plots=[
            Plot(
                Axis("step"),
                Axis("x"),
                [Line(f"η = {lr:g}", path.step, path.sel(lr=lr)[:, 0]) for lr in path.lr.values],
                says="Below 2/L the run converges; above it the width of the bounce is the step.",
            )
        ],
        data=run,
    )


@claim(
    "edge/smooth-lipschitz-orbits",
    says="On smooth, Lipschitz, convex functions with a minimiser, GD beyond 2/L stays bounded: it ends near ±a, where "
    "the secant curvature f'(a)/a is 2/η.",
    source=PAPER.format(4),
    sentence=4,
    relation=equals(within=0.01),
    mutants={"a quadratic, smooth but not Lipschitz": {"functions": (Quadratic([1.0]),)}},
    full={"starts": 100},
)
def smooth_lipschitz_orbits(
    functions: Sequence[Objective] = (PseudoHuber(), LogCosh()),
    lrs: Sequence[float] = (2.5, 4.0, 10.0),
    starts: int = 10,
    steps: int = 20_000,
    master: int = 0,
) -> Evidence:
    x0 = start_draws(starts, master, 0.5, 5.0)
    scan = np.round(np.linspace(1.6, 3.0, 15), 2)
    samples, predicted, cases, lines, region = [], [], [], [], []
    for f in functions:
        name = NAMES.get(type(f), type(f).__name__)
        run = simulate(f, Gradient(lr=lrs), x0=x0, steps=steps, tail=1000, record=("l1_norm",))
        size = run.l1_norm.mean("step").where(run.diverged_at.isnull(), np.inf)
        samples.extend(size.values)
        amplitudes = [amplitude(f, lr) for lr in scan]
        predicted += [amplitude(f, lr) for lr in lrs]
        cases += [f"{name}, η = {lr:g}" for lr in lrs]
        swept = simulate(f, Gradient(lr=scan), x0=3.0, steps=steps, tail=1000).l1_norm.mean("step").values
        region.append(f"{name}: " + where("η", scan, np.abs(swept - amplitudes) < 0.01 * np.maximum(amplitudes, 0.01)))
        lines += [
            Line(f"{name}, measured", scan, swept, "markers"),
            Line(f"{name}, f'(a)/a = 2/η", scan, amplitudes, "dash"),
        ]
    return Evidence(
        "tail mean |x|",
        samples,
        predicted,
        cases,
        holds_when="; ".join(region) + "; below 2 the orbit is the minimiser itself",
        plots=[
            Plot(
                Axis("step size η (L = 1)"),
                Axis("tail mean |x|"),
                lines,
                says="The orbit opens at 2/L and stays bounded.",
            )
        ],
    )


def amplitude(f: Objective, lr: float) -> float:
    """a > 0 with f'(a)/a = 2/η, or 0 where there is none."""
    secant = lambda a: float(f.grad(np.array([a]))[0]) / a - 2 / lr  # noqa: E731
    return float(brentq(secant, 1e-6, 1e4)) if secant(1e-6) > 0 > secant(1e4) else 0.0


@claim(
    "edge/logistic-real-data",
    says="Full-batch GD on logistic regression of the breast cancer data (not separable) neither converges nor "
    "diverges beyond 2/λ₁ of its own minimiser: the classical threshold, on real data.",
    source=PAPER.format(4),
    sentence=4,
    relation=equals(within=0.05),
    mutants={"steps below the threshold": {"beyond": (0.5, 0.8), "starts": 4}},
    full={"starts": 50},
)
def logistic_real_data(
    beyond: Sequence[float] = (1.1, 1.5, 3.0), starts: int = 10, steps: int = 20_000, master: int = 0
) -> Evidence:
    f = breast_cancer(features=10)
    w = minimise(f).minimiser.values
    edge = 2 / top_eigenvalue(f, w)
    seeds = [1000 * master + i for i in range(starts)]
    run = simulate(
        f, Gradient(lr=edge * np.asarray(beyond)), steps=steps, tail=2000, record=(*ORBIT, "grad_norm"), seeds=seeds
    )
    alive = (run.grad_norm.mean("step") > 1e-6) & run.diverged_at.isnull()
    kappa = (orbit_curvature(run) * run.lr).where(alive, 0.0)
    scan = np.round(np.linspace(0.8, 1.2, 21), 2)
    swept = simulate(f, Gradient(lr=edge * scan), steps=steps, tail=2000, record=ORBIT)
    at_edge = np.abs(orbit_curvature(swept).values * edge * scan - 2) < 0.1
    loss = simulate(f, Gradient(lr=edge * np.array([0.9, 1.5])), steps=400, record=("gap",), seeds=[master]).gap
    return Evidence(
        "η κ̄ over the tail, 0 for a run that converged or diverged",
        kappa.values,
        2.0,
        [f"η = {b:g} × 2/λ₁" for b in beyond],
        holds_when=where("η", scan, at_edge, " × 2/λ₁") + f", λ₁ = {2 / edge:.3g} at the minimiser",
        plots=[
            Plot(
                Axis("step"),
                Axis("f(w) − f*", log=True),
                [Line(f"η = {b:g} × 2/λ₁", loss.step, loss[i, 0]) for i, b in enumerate((0.9, 1.5))],
                says="Below the threshold the loss falls to its minimum; above it the run goes on for ever.",
            )
        ],
    )


ORBITS: dict[str, tuple[MakeRule, dict[str, float], float]] = {
    "heavy ball 0.3": (HeavyBall, {"beta": 0.3}, 2.6),
    "heavy ball 0.5": (HeavyBall, {"beta": 0.5}, 3.0),
    "EMA 0.5": (HeavyBall, {"beta": 0.5, "dampening": 0.5}, 6.0),
    "Nesterov 0.5": (Nesterov, {"beta": 0.5}, 1.5),
    "Nesterov 0.9": (Nesterov, {"beta": 0.9}, 3.8 / 2.8),
    "heavy ball 0.9": (HeavyBall, {"beta": 0.9}, 3.8),
}
"""Rules with momentum and the ηκ of their orbits of period 2: 2(1+β), 2(1+β)/(1−d) and (2+2β)/(1+2β)."""


@claim(
    "edge/momentum-orbits",
    says="Where a rule with momentum ends on an orbit of period 2, its step curvature κ is its own linear threshold "
    "over η: 2(1+β)/η for heavy ball, 2(1+β)/((1−β)η) for an EMA, (2+2β)/((1+2β)η) for Nesterov's.",
    source="our statement: Δg and D of an orbit ±a, with the memory alternating",
    sentence=4,
    relation=equals(within=0.01),
    mutants={"gradient descent's 2/η for all": {"own": False}},
    full={"starts": 50},
)
def momentum_orbits(
    own: bool = True, beyond: float = 1.3, starts: int = 10, steps: int = 20_000, master: int = 0
) -> Evidence:
    """log cosh at 1.3 times each threshold; the first `starts` of four times as many that end on such an orbit."""
    x0 = start_draws(4 * starts, master, 0.5, 5.0)
    samples, predicted, cases, ends = [], [], [], []
    for name, (rule, options, threshold) in ORBITS.items():
        made = rule(lr=beyond * threshold, **options)
        run = simulate(LogCosh(), made, x0=x0, steps=steps, tail=1000, record=("kappa", "x"))
        x = run.x.values[:, :, 0]
        on_orbit = np.abs(x[:, 2:] - x[:, :-2]).max(axis=1) < 1e-6
        enough = on_orbit.sum() >= starts
        ends.append([name, threshold, beyond * threshold, 100 * on_orbit.mean(), "yes" if enough else "no"])
        if enough:
            samples.append(beyond * threshold * run.kappa.mean("step").values[on_orbit][:starts])
            predicted.append(threshold if own else 2.0)
            cases.append(name)
    return Evidence(
        "mean η κ over the last 1000 steps, on orbits of period 2",
        samples,
        predicted,
        cases,
        holds_when=f"the run ends on an orbit of period 2: tried on log cosh at {beyond:g} times the threshold",
        plots=[
            Table(
                ["rule", "threshold of ηL", "η tried (L = 1)", "starts that end on an orbit of period 2, %", "tested"],
                ends,
                title="Which rules end on an orbit of period 2",
                says=f"Of {4 * starts} starts each; a rule is tested where {starts} of them do.",
            )
        ],
    )


@claim(
    "edge/no-minimiser-no-orbit",
    says="Where the logistic loss has no minimiser (separable data) there is nothing to orbit: beyond 2/L the loss may "
    "rise for a while, and then falls for good, on the breast cancer data with an intercept.",
    source="theory: log(1 + e⁻ˣ) has no orbit; Wu, Braverman & Lee 2023 (large steps on separable data)",
    sentence=4,
    relation=equals(within=0.0, absolute=True),
    bears="limits",
    mutants={"ten columns and no intercept, which do not separate": {"features": 10}},
    full={"steps": 100_000},
)
def no_minimiser_no_orbit(
    features: int = 30, beyond: Sequence[float] = (2.0, 10.0, 50.0), steps: int = 20_000, master: int = 0
) -> Evidence:
    f = breast_cancer(features=features)
    if features == 30:
        f = Logistic(np.c_[f.X, np.ones(f.n)], f.y)
    lr = 2 / f.constants.L * np.asarray(beyond)
    run = simulate(f, Gradient(lr=lr), x0=0.0, steps=steps, record=("value",))
    raised = run.value.diff("step") > 0
    late = raised.isel(step=slice(-steps // 4, None)).mean("step").values
    last = [int(np.max(np.nonzero(row)[0], initial=-2)) + 2 for row in raised.values]
    shown = np.unique(np.geomspace(1, steps, 200).astype(int))
    return Evidence(
        "share of the last quarter's steps that raise the loss",
        late,
        0.0,
        [f"η = {b:g} × 2/L" for b in beyond],
        holds_when="the data are separable; the loss "
        + ", ".join(
            f"rose last at step {t} (η = {b:g} × 2/L)" if t else f"never rose (η = {b:g} × 2/L)"
            for t, b in zip(last, beyond, strict=True)
        ),
        plots=[
            Plot(
                Axis("step", log=True),
                Axis("f(w)", log=True),
                [Line(f"η = {b:g} × 2/L", shown, v[shown - 1]) for b, v in zip(beyond, run.value.values, strict=True)],
                says="The largest step is rough for a while; then all descend, whatever their size.",
            )
        ],
    )


def own_curvature(m: Moment) -> Any:
    """λ₁ of the Hessian at x for the separable functions: the largest f'', by central differences."""
    grad = m.objective.grad
    return ((grad(m.x + 1e-4) - grad(m.x - 1e-4)) / 2e-4).max()


@claim(
    "edge/sharpness-misses-the-threshold",
    says="Beyond the edge on Lipschitz functions κ̄ is at 2/η, and the sharpness λ₁ of the points visited is "
    "not: it is 0 on the Huber function, a sixth or a quarter of 2/η on log cosh and pseudo-Huber, and swings about a "
    "mean some per cent above 2/η on the breast cancer data.",
    source="our statement; " + PAPER.format(4),
    sentence=4,
    relation=at_least(),
    bears="limits",
    mutants={"a quadratic at exactly its threshold": {"functions": {"quadratic": (Quadratic([0.5]), 4.0)}, "real": ()}},
    full={"starts": 50},
)
def sharpness_misses(
    functions: Mapping[str, tuple[Objective, float]] | None = None,
    real: Sequence[float] = (1.1, 1.5, 3.0),
    starts: int = 10,
    steps: int = 20_000,
    master: int = 0,
) -> Evidence:
    """Mean |ηλ₁ − 2| over the tail, of which at least 0.1 is asked; `real`: steps in units of 2/λ₁ of the minimiser."""
    chosen = functions or {"Huber": (Huber(), 4.0), "pseudo-Huber": (PseudoHuber(), 4.0), "log cosh": (LogCosh(), 4.0)}
    x0 = start_draws(starts, master, 1.0, 5.0)
    samples, cases, tops, bars = [], [], [], []
    for name, (f, lr) in chosen.items():
        run = simulate(f, Gradient(lr=lr), x0=x0, steps=steps, tail=1000, record=(own_curvature, *ORBIT))
        sharpness = lr * run.own_curvature.values
        samples.append(np.abs(sharpness - 2).mean(axis=1))
        tops.append(sharpness.mean())
        bars.append(lr * float(orbit_curvature(run).mean()))
        cases.append(f"{name}, η = {lr:g}")
    cancer = breast_cancer(features=10)
    edge = 2 / top_eigenvalue(cancer, minimise(cancer).minimiser.values) if real else 0.0
    for b in real:
        seeds = [1000 * master + i for i in range(starts)]
        run = simulate(cancer, Gradient(lr=b * edge), steps=steps, tail=100, record=("x", *ORBIT), seeds=seeds)
        sharpness = b * edge * np.array([[top_eigenvalue(cancer, w) for w in path] for path in run.x.values])
        samples.append(np.abs(sharpness - 2).mean(axis=1))
        tops.append(sharpness.mean())
        bars.append(b * edge * float(orbit_curvature(run).mean()))
        cases.append(f"logistic, breast cancer, η = {b:g} × 2/λ₁")
    steps_tried = [f"η = {lr:g} on {name} (L = {f.constants.L:g})" for name, (f, lr) in chosen.items()]
    if real:
        steps_tried.append(f"η from {min(real):g} to {max(real):g} times 2/λ₁ of the minimiser on real data")
    return Evidence(
        "mean distance of η λ₁ from 2",
        samples,
        0.1,
        cases,
        holds_when="the step is beyond the edge: " + ", ".join(steps_tried),
        plots=[
            Table(
                ["case", "mean η λ₁", "mean η κ̄"],
                list(zip(cases, map(float, tops), bars, strict=True)),
                title="Sharpness and orbit curvature, each times η",
                says="One of the two is at 2 everywhere, and it is not the Hessian's; means over tail and starts.",
            )
        ],
    )
