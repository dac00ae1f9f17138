"""Sentence 2: the norm at which each rule settles when autograd takes the gradient of an L1 penalty."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from nonsmooth.claims.problems import (
    PAPER,
    MakeRule,
    lasso_path,
    least_squares_draws,
    start_draws,
    tail_mean,
)
from nonsmooth.ledger import Evidence, claim, equals, where
from nonsmooth.objectives import LeastSquares, MaxLinear, Objective, Quadratic
from nonsmooth.penalties import L1
from nonsmooth.plots import Axis, Line, Plot
from nonsmooth.rules import Gradient, HeavyBall, RMSProp
from nonsmooth.simulation import Moment, simulate


def data_gradient_dot_x(m: Moment) -> Any:
    """⟨∇f(x), x⟩, without the penalty."""
    return (m.objective.grad(m.x) * m.x).sum()


def size(m: Moment) -> Any:
    """|x|, coordinate by coordinate."""
    return abs(m.x)


@claim(
    "l1/balance-law",
    says="The norm at which constant-step SGD settles on the Lasso is set by the size of its own gradients: "
    "λ·mean‖w‖₁ = (η/2)·mean‖g‖² − mean⟨∇f, w⟩, exactly, up to O(1/(ηT)).",
    source="our statement: average ‖x⁺‖² − ‖x‖² over the run",
    sentence=2,
    relation=equals(within=0.005),
    mutants={"heavy ball, whose balance has another factor": {"rule": HeavyBall, "problems": 4}},
    full={"problems": 40},
)
def balance_law(
    rule: MakeRule = Gradient,
    multiples: Sequence[float] = (0.1, 1.0, 10.0),
    problems: int = 10,
    tail: int = 20_000,
    master: int = 0,
) -> Evidence:
    record = ("l1_norm", "grad_norm", data_gradient_dot_x)
    ratios, deviations = [], []
    lengths = np.geomspace(100, tail, 10).astype(int)
    for f in least_squares_draws(problems, master):
        lr, lam = 0.1 / f.constants.L, np.asarray(multiples) * f.critical_lam
        run = simulate(
            f, rule(lr=lr), penalty=L1(lam), steps=2000 + tail, tail=tail, record=record, seeds=[master]
        ).isel(seed=0)
        norm = run.l1_norm.cumsum("step")
        law = ((lr / 2 * run.grad_norm**2 - run.data_gradient_dot_x) / run.lam).cumsum("step")
        ratio = (norm / law).values
        ratios.append(ratio[:, -1])
        deviations.append(np.abs(ratio[:, lengths - 1] - 1).max(axis=0))
    worst = np.max(deviations, axis=0)
    return Evidence(
        "mean ‖w‖₁ over what the law predicts",
        np.transpose(ratios),
        1.0,
        [f"λ = {m:g} critical λ" for m in multiples],
        holds_when=where("T", lengths, worst < 0.005) + f"; the deviation falls as 1/T, to {worst[-1]:.0e}",
        plots=[
            Plot(
                Axis("steps averaged T", log=True),
                Axis("largest relative deviation", log=True),
                [
                    Line("measured, worst of all problems and λ", lengths, worst, "markers"),
                    Line("proportional to 1/T", lengths, worst[0] * lengths[0] / lengths, "dash"),
                ],
                says="The law is exact: what is left is the 1/T of its boundary terms.",
            )
        ],
        data=run,
    )


def floor_law(f: LeastSquares, lr: Any, lam: Any) -> np.ndarray:
    """Σᵢ η(λ² + cᵢ²)/(λ(2 − ηhᵢ)), c the data's gradient at 0, h their curvature: ηλP/2 to first order in c and ηh."""
    lr, lam = (np.asarray(a, dtype=float)[..., None] for a in (lr, lam))
    c, h = f.grad(np.zeros(f.shape)), 2 * (f.X**2).sum(axis=0) / f.n
    return (lr * (lam**2 + c**2) / (lam * (2 - lr * h))).sum(axis=-1)


@claim(
    "l1/sgd-floor-grows-with-lambda",
    says="Well beyond the critical λ, where the solution is 0, constant-step SGD settles at an L1 norm of about ηλP/2 "
    "(with the known corrections for curvature and data): a larger penalty gives a larger norm.",
    source=PAPER.format(2),
    sentence=2,
    relation=equals(within=0.05),
    mutants={"the proximal map in place of autograd's gradient": {"penalty_by": "prox", "problems": 4}},
    full={"problems": 100},
)
def sgd_floor(
    penalty_by: Any = "autograd",
    multiples: Sequence[float] = (3.0, 10.0, 30.0, 100.0),
    relative_lr: float = 0.2,
    problems: int = 20,
    steps: int = 6000,
    master: int = 0,
) -> Evidence:
    scan, relative = np.geomspace(0.3, 100, 16), np.geomspace(0.01, 1.9, 14)
    samples, over_lam, over_lr, plain = [], [], [], []
    for f in least_squares_draws(problems, master):
        L, critical = f.constants.L, f.critical_lam

        def over_law(lr: Any, lam: Any, f: LeastSquares = f) -> np.ndarray:
            options: Any = {"penalty_by": penalty_by, "steps": steps, "tail": 1000, "seeds": [master]}
            return tail_mean(simulate(f, Gradient(lr=lr), penalty=L1(lam), **options).l1_norm)[..., 0] / floor_law(
                f, lr, lam
            )

        samples.append(over_law(relative_lr / L, np.asarray(multiples) * critical))
        over_lam.append(over_law(relative_lr / L, scan * critical))
        over_lr.append(over_law(relative / L, 10 * critical))
        plain.append(
            over_lr[-1] * floor_law(f, relative / L, 10 * critical) / (relative / L * 10 * critical * f.shape[0] / 2)
        )
    off_lam, off_lr, off_plain = (np.mean(s, axis=0) for s in (over_lam, over_lr, plain))
    within = lambda off: np.abs(off - 1) < 0.05  # noqa: E731
    return Evidence(
        "tail mean ‖w‖₁ over the law",
        np.transpose(samples),
        1.0,
        [f"λ = {m:g} critical λ" for m in multiples],
        holds_when=f"{where('λ', scan, within(off_lam), ' critical λ')} at ηL = {relative_lr:g}; "
        f"{where('ηL', relative, within(off_lr))} at ten times the critical λ; plain ηλP/2 there: "
        f"{where('ηL', relative, within(off_plain))} (means over problems within 5 %)",
        plots=[
            Plot(
                Axis("λ over the critical λ", log=True),
                Axis("tail mean ‖w‖₁ over the law", log=True),
                [
                    Line("measured, mean over problems", scan, off_lam, "markers"),
                    Line("the law", scan, scan**0, "dash"),
                ],
                title=f"At ηL = {relative_lr:g}",
                says="Below the critical λ the solution itself has a norm; beyond it only the chatter is left.",
            ),
            Plot(
                Axis("ηL", log=True),
                Axis("tail mean ‖w‖₁ over the law"),
                [
                    Line("over the law", relative, off_lr, "markers"),
                    Line("over plain ηλP/2", relative, off_plain, "markers"),
                    Line("the law", relative, relative**0, "dash"),
                ],
                title="At ten times the critical λ",
                says="The curvature's correction carries the law further; beyond that the start comes in.",
            ),
        ],
    )


@claim(
    "l1/chatter-adds-to-the-solution",
    says="Below the critical λ, too, the weights that are zero in the solution chatter, by ηλ(1 + r²)/2 each in sum, "
    "r = |∂f(w*)|/λ, on top of the solution's own norm.",
    source="our statement: one weight under a constant gradient ±λ + c",
    sentence=2,
    relation=equals(within=0.03),
    mutants={"RMSProp, whose chatter does not know λ": {"rule": RMSProp, "problems": 4}},
    full={"problems": 40},
)
def additive_chatter(
    rule: MakeRule = Gradient,
    multiples: Sequence[float] = (0.2, 0.5, 0.9),
    smaller: Sequence[float] = (0.03, 0.05, 0.1),
    problems: int = 10,
    steps: int = 60_000,
    master: int = 0,
) -> Evidence:
    """The cases are `multiples`; `smaller` ones, where few weights are zero, look for the law's end."""
    scan = np.array([*smaller, *multiples])
    relative = np.array([0.05, 0.1, 0.2, 0.4, 0.8, 1.2, 1.6])
    samples, over_lr = [], []
    for f in least_squares_draws(problems, master, n=100, p=40, support=10):
        lam, half = scan * f.critical_lam, list(scan).index(0.5)
        lr = 0.05 / f.constants.L
        solution = lasso_path(f, lam)
        gradients = np.stack([f.grad(w) for w in solution])
        dead = solution == 0
        law = 0.5 * lam[:, None] * (1 + (gradients / lam[:, None]) ** 2) * dead  # over η
        run = simulate(f, rule(lr=lr), penalty=L1(lam), steps=steps, tail=4000, record=(size,), seeds=[master])
        mean = tail_mean(run["size"])[:, 0]
        samples.append((mean * dead).sum(axis=1) / np.maximum(lr * law.sum(axis=1), 1e-300))
        run = simulate(
            f,
            rule(lr=relative / f.constants.L),
            penalty=L1(float(lam[half])),
            steps=8000,
            tail=4000,
            record=(size,),
            seeds=[master],
        )
        chatter = (tail_mean(run["size"])[:, 0] * dead[half]).sum(axis=1)
        over_lr.append(chatter / (relative / f.constants.L * law[half].sum()))
    off, worst = np.mean(over_lr, axis=0), np.max(np.abs(np.array(samples) - 1), axis=0)
    return Evidence(
        "summed tail mean |wᵢ| over the law, zero weights only",
        np.transpose(samples)[len(smaller) :],
        1.0,
        [f"λ = {m:g} critical λ" for m in multiples],
        holds_when=where("λ", scan, worst < 0.03, " critical λ")
        + f" for every single problem at ηL = 0.05; {where('ηL', relative, np.abs(off - 1) < 0.03)} at half the "
        "critical λ for their mean (within 3 %)",
        plots=[
            Plot(
                Axis("ηL", log=True),
                Axis("summed chatter over the law"),
                [
                    Line("measured, mean over problems", relative, off, "markers"),
                    Line("the law", relative, relative**0, "dash"),
                ],
                says="The chatter of the weights that should be zero is predicted from the exact solution alone.",
            )
        ],
    )


def one_weight(c: float, h: float) -> Objective:
    """cx + ½hx², one of the two being 0."""
    return Quadratic([h]) if h else MaxLinear([[c]], [0.0])


@claim(
    "l1/one-weight-laws",
    says="One weight under λ|w| and a constant data gradient c bounces at mean |w| = η(λ² + c²)/(2λ) and changes sign "
    "in a share 1 − |c|/λ of its steps; with a curvature h instead of c, at ηλ/(2 − ηh).",
    source="our statement: a uniform density on [−η(λ + c), η(λ − c)], and an orbit of period 2",
    sentence=2,
    relation=equals(within=0.02),
    mutants={"the proximal map in place of autograd's gradient": {"penalty_by": "prox", "starts": 4}},
    full={"starts": 200},
)
def one_weight_laws(
    penalty_by: Any = "autograd",
    slopes: Sequence[float] = (90**-0.5, 5**-0.5, 0.8**0.5),
    curvatures: Sequence[float] = (1.0, 10.0),
    lr: float = 0.05,
    starts: int = 20,
    steps: int = 20_000,
    master: int = 0,
) -> Evidence:
    x0 = start_draws(starts, master, 0.5, 1.5)
    samples, predicted, cases = [], [], []
    for c, h in [*((c, 0.0) for c in slopes), *((0.0, h) for h in curvatures)]:
        run = simulate(
            one_weight(c, h),
            Gradient(lr=lr),
            penalty=L1(1.0),
            penalty_by=penalty_by,
            x0=x0,
            steps=steps,
            tail=10_000,
            record=("l1_norm", "sign_changes"),
        ).mean("step")
        samples.append(run.l1_norm.values)
        predicted.append(lr / (2 - lr * h) if h else lr * (1 + c * c) / 2)
        cases.append(f"mean |w|, h = {h:g}" if h else f"mean |w|, c = {c:g} λ")
        if c:
            samples.append(run.sign_changes.values)
            predicted.append(1 - c)
            cases.append(f"sign changes a step, c = {c:g} λ")
    scan = np.append(np.linspace(0.05, 0.98, 14) + 1e-3 * 2**0.5, 0.5)  # and one fraction, whose orbits are finite
    spread, curve = [], []
    for c in scan:
        run = simulate(one_weight(c, 0.0), Gradient(lr=lr), penalty=L1(1.0), x0=x0, steps=6000, tail=4000)
        mean = run.l1_norm.mean("step").values / (lr * (1 + c * c) / 2)
        curve.append(mean.mean())
        spread.append(np.abs(mean - 1).max())
    law = (1 + scan**2) / 2
    return Evidence(
        "tail means over 10,000 steps (λ = 1)",
        samples,
        predicted,
        cases,
        holds_when="for every start: " + where("|c|/λ", scan[:-1], np.array(spread)[:-1] < 0.02) + ", unless c/λ is a "
        f"simple fraction: at c = λ/2 the orbit has four points, and single starts are up to {spread[-1]:.0%} off",
        plots=[
            Plot(
                Axis("|c|/λ"),
                Axis("mean |w| over ηλ"),
                [
                    Line("measured, mean over starts", scan, curve * law, "markers"),
                    Line("(1 + c²/λ²)/2", scan[:-1], law[:-1], "dash"),
                ],
                says="A weight that the data hold less firmly at zero bounces wider.",
            )
        ],
    )
