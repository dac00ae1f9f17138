"""Sentence 1: worst cases, the bounds that they attain, and what typical problems do beside them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from nonsmooth.claims.performance import TIGHT, tight_constant
from nonsmooth.claims.problems import PAPER, least_squares_draws
from nonsmooth.ledger import Evidence, at_most, claim, equals
from nonsmooth.objectives import Huber, MaxLinear, subgradient_hard_instance, subgradient_last_iterate_instance
from nonsmooth.plots import Axis, Line, Plot
from nonsmooth.rules import Gradient, Rule
from nonsmooth.simulation import simulate


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


def random_maxima(n: int, master: int, count: int = 20) -> list[tuple[MaxLinear, np.ndarray, float]]:
    """Maxima of 2n linear functions with unit slopes in dimension n, x*, and f*: the first that have a minimiser x*."""
    rng = np.random.default_rng(master)
    found: list[tuple[MaxLinear, np.ndarray, float]] = []
    while len(found) < count:  # half of them have one, in any dimension (Wendel 1962)
        A = rng.standard_normal((2 * n, n))
        f = MaxLinear(A / np.linalg.norm(A, axis=1, keepdims=True), 0.1 * rng.standard_normal(2 * n))
        best = f.minimiser
        if best is not None:
            found.append((f, best, float(f.value(best))))
    return found


def typical_shares(n: int, master: int) -> np.ndarray:
    """Best gap after n steps of R/√(n+1) over R/√(n+1), for random maxima, R the distance to x*."""
    shares = []
    for f, best, f_star in random_maxima(n, master):
        bound = float(np.linalg.norm(best)) / np.sqrt(n + 1)
        shares.append(best_gaps(f, Gradient(lr=bound), n, np.zeros(n), f_star)[-1] / bound)
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
    "convergence/last-iterate-worst-case",
    says="The last iterate of the subgradient method can be much worse than its best, which must be kept: on its own "
    "hard instance it ends at its tight constant, .721 MR at N = 3 and .408 MR at N = 20, where the best iterate's is "
    ".500 and .218.",
    source=PAPER.format(1) + "; constants by PEPit (Goujaud et al. 2024), instance our own",
    sentence=1,
    relation=equals(within=0.01),
    mutants={"a step of half that size": {"step": 0.5}},
    full={"live": True},
)
def last_iterate_worst_case(
    ns: Sequence[int] = (3, 6, 12, 20), step: float = 1.0, live: bool = False, master: int = 0
) -> Evidence:
    """`live` has PEPit compute the constants (the `theory` extra); the table of its values serves without."""
    last, best = "subgradient, last iterate", "subgradient, best iterate"
    tight = [tight_constant(last, n) if live else TIGHT[last][n] for n in ns]
    ends, typical = [], []
    for n in ns:
        h = 1 / np.sqrt(n + 1)
        f = subgradient_last_iterate_instance(n)
        run = simulate(f, Gradient(lr=step * h), x0=np.zeros(n + 1), steps=n, record=("value",))
        ends.append(float(run.value[-1]) - float(f.b[-1]))
        shares = []
        for g, x_star, f_star in random_maxima(n, master):
            R = float(np.linalg.norm(x_star))
            run = simulate(g, Gradient(lr=R * h), x0=np.zeros(n), steps=n, tail=1, record=("value",))
            shares.append((float(run.value[-1]) - f_star) / R)
        typical.append(max(shares))
    return Evidence(
        "gap of the last iterate (M = R = 1)",
        ends,
        tight,
        [f"N = {n}" for n in ns],
        holds_when="the instance is the hard one and the first winner is selected; of 20 random maxima the worst was "
        + ", ".join(f"{t:.2f} (N = {n})" for n, t in zip(ns, typical, strict=True)),
        plots=[
            Plot(
                Axis("number of steps N", log=True),
                Axis("gap, M = R = 1", log=True),
                [
                    Line("last iterate on its hard instance", ns, ends, "markers"),
                    Line("last iterate, worst of 20 random maxima", ns, typical, "markers"),
                    Line("last iterate, tight constant", ns, tight, "dash"),
                    Line("best iterate, MR/√(N+1)", ns, [TIGHT[best][n] for n in ns], "dash"),
                ],
                says="The last iterate's worst case is attained, and lies well above the best iterate's.",
            )
        ],
    )


@claim(
    "convergence/constant-step-bound",
    says="With a constant step η the best gap after N steps is at most R²/(2ηN) + ηG²/2: the second term does not "
    "fall with N, and a smooth theory that has only the first is wrong on random maxima of linear functions.",
    source="Boyd, Xiao & Mutapcic, Subgradient methods (notes), section 3.1; theory for |x|",
    sentence=1,
    relation=at_most(),
    mutants={"the first term alone": {"with_floor": False}},
    full={"problems": 100},
)
def constant_step_bound(
    with_floor: bool = True,
    relative_lrs: Sequence[float] = (0.01, 0.1, 1.0),
    n: int = 10,
    steps: int = 20_000,
    problems: int = 20,
    master: int = 0,
) -> Evidence:
    scan = np.unique(np.geomspace(1, steps, 40).astype(int))
    samples, curves = [], []
    for f, x_star, f_star in random_maxima(n, master, problems):
        R = float(np.linalg.norm(x_star))
        lr = R * np.asarray(relative_lrs)
        run = simulate(f, Gradient(lr=lr), x0=np.zeros(n), steps=steps, record=("value",))
        best = np.minimum.accumulate(run.value.values, axis=1) - f_star
        floor = lr[:, None] / 2 * with_floor
        samples.append(best[:, -1] / (R**2 / (2 * lr * steps) + floor[:, 0]))
        curves.append(best[:, scan - 1] / (R**2 / (2 * lr[:, None] * scan) + lr[:, None] / 2))
    mean = np.max(curves, axis=0)
    return Evidence(
        f"largest share of the bound, of {len(samples)} problems",
        np.max(samples, axis=0),
        1.0,
        [f"η = {r:g} R/G" for r in relative_lrs],
        holds_when="f is convex and G-Lipschitz; over all numbers of steps up to that, the largest share of the bound "
        f"was {mean.max():.2f}",
        plots=[
            Plot(
                Axis("number of steps N", log=True),
                Axis("best gap over the bound, worst problem"),
                [Line(f"η = {r:g} R/G", scan, curve) for r, curve in zip(relative_lrs, mean, strict=True)]
                + [Line("the bound", scan, scan**0, "dash")],
                says="The bound is of the right size all along, floor included.",
            )
        ],
    )


@claim(
    "convergence/typical-problems-are-faster",
    says="A worst case proves nothing about speed: on random maxima of linear functions steps R/(M√(N+1)) have "
    "a best gap that falls faster than the N^(-1/2) of their bound.",
    source="a reviewers' objection to an early version of the paper: upper bounds prove nothing about speed",
    sentence=1,
    relation=at_most(),
    bears="limits",
    mutants={"the hard instance of each N": {"hard": True}},
    full={"problems": 100},
)
def typical_problems_are_faster(
    hard: bool = False, n: int = 10, problems: int = 20, steeper_by: float = 0.05, master: int = 0
) -> Evidence:
    """The slope must lie `steeper_by` below −½ to count as faster. The hard instance has N + 1 dimensions: fewer N."""
    ns = np.array([10, 20, 50, 100, 200] if hard else [100, 300, 1000, 3000, 10_000])
    bound = 1 / np.sqrt(ns + 1)
    curves: list[Any] = []
    smooth: list[Any] = []
    if hard:
        instances = [subgradient_hard_instance(int(k)) for k in ns]
        runs = zip(instances, bound, ns, strict=True)
        curves.append([best_gaps(f, Gradient(lr=b), int(k), np.zeros(k + 1), -b)[-1] for f, b, k in runs])
    for f, x_star, f_star in random_maxima(n, 1000 + master, 0 if hard else problems):
        R = float(np.linalg.norm(x_star))
        run = simulate(f, Gradient(lr=R * bound), x0=np.zeros(n), steps=int(ns[-1]), record=("value",))
        curves.append(np.array([run.value.values[i, :k].min() - f_star for i, k in enumerate(ns)]) / R)
    for g in least_squares_draws(0 if hard else problems, master, n=20, p=n):
        run = simulate(g, Gradient(lr=1 / g.constants.L), x0=0.0, steps=int(ns[-1]), record=("gap",))
        smooth.append(np.maximum(run.gap.values[ns - 1] / run.gap.values[0], 1e-14))
    slopes = [np.polyfit(np.log(ns), np.log(gaps), 1)[0] for gaps in curves]
    gap = np.exp(np.mean(np.log(curves), axis=0))
    shares = gap / bound
    lines = [Line("typical non-smooth", ns, gap, "markers"), Line("its worst case, MR/√(N+1)", ns, bound, "dash")]
    if smooth:
        lines += [
            Line("typical smooth (least squares), over its first gap", ns, np.exp(np.mean(np.log(smooth), axis=0))),
            Line("smooth worst case, LR²/(4N+2)", ns, 1 / (4 * ns + 2), "dash"),
        ]
    return Evidence(
        "slope of log(best gap) against log N",
        [slopes],
        -0.5 - steeper_by,
        [f"maxima of {2 * n} linear functions in dimension {n}"],
        holds_when=f"N from {ns[0]} to {ns[-1]}; the gap fell from {shares[0]:.2f} to {shares[-1]:.2f} of its bound",
        plots=[
            Plot(
                Axis("number of steps N", log=True),
                Axis("gap, geometric mean, M = R = 1", log=True),
                lines,
                says="Typical kinked problems leave their bound slowly, typical smooth ones at once.",
            )
        ],
    )
