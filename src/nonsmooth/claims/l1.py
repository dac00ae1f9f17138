"""Sentence 2: what an L1 penalty does when autograd takes its gradient."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from nonsmooth.claims.problems import PAPER, MakeRule, lasso_path, least_squares_draws, tail_mean
from nonsmooth.ledger import Evidence, at_least, claim, equals, where
from nonsmooth.objectives import LeastSquares, diabetes
from nonsmooth.penalties import L1
from nonsmooth.plots import Axis, Heat, Line, Plot
from nonsmooth.rules import Adagrad, Adam, Cosine, Gradient, HeavyBall, InverseSqrt, Nesterov, RMSProp, Rule
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
        holds_when=where("steps averaged", lengths, worst < 0.005)
        + f"; the deviation falls as 1/T, to {worst[-1]:.0e}",
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
    says="Below the critical λ, too, each weight that is zero in the solution chatters at ηλ(1 + r²)/2, "
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


def predicted_norm(f: LeastSquares, lams: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """‖w*(λ)‖₁, and the chatter law's addition over η, for each λ."""
    solution = lasso_path(f, lams)
    gradients = np.stack([f.grad(w) for w in solution])
    chatter = 0.5 * lams[:, None] * (1 + (gradients / lams[:, None]) ** 2) * (solution == 0)
    return np.abs(solution).sum(axis=1), chatter.sum(axis=1)


@claim(
    "l1/larger-penalty-larger-norm",
    says="On the diabetes data, beyond the critical λ a ten times larger penalty gives a larger L1 norm: the paradox.",
    source=PAPER.format(2),
    sentence=2,
    relation=at_least(),
    mutants={"the proximal map in place of autograd's gradient": {"penalty_by": "prox"}},
    full={"starts": 100},
)
def paradox(
    penalty_by: Any = "autograd",
    multiples: Sequence[float] = (1.0, 3.0, 10.0),
    lr: float = 0.01,
    starts: int = 10,
    master: int = 0,
) -> Evidence:
    f = diabetes()
    critical = f.critical_lam
    lams = np.geomspace(0.01, 300, 46) * critical
    seeds = [1000 * master + i for i in range(starts)]

    def norms(lam: Any, by: str) -> np.ndarray:
        run = simulate(f, Gradient(lr=lr), penalty=L1(lam), penalty_by=by, steps=4000, tail=1000, seeds=seeds)  # type: ignore[arg-type]
        return tail_mean(run.l1_norm)

    low, high = (
        norms(np.asarray(multiples) * critical, penalty_by),
        norms(10 * np.asarray(multiples) * critical, penalty_by),
    )
    curve, cured = norms(lams, penalty_by).mean(axis=1), norms(lams, "prox").mean(axis=1)
    turn = lams[np.argmin(curve)] / critical
    solution, chatter = predicted_norm(f, lams)
    exceeds = lams[(curve > curve[0]) & (lams > turn * critical)]
    beyond = (
        f"; from {exceeds[0] / critical:.3g} critical λ on it exceeds the norm at 0.01 critical λ"
        if exceeds.size
        else ""
    )
    return Evidence(
        "norm at 10λ over norm at λ",
        np.divide(high, low, out=np.zeros_like(high), where=low > 0),
        1.0,
        [f"λ = {m:g} critical λ" for m in multiples],
        holds_when=f"λ ≥ {turn:.3g} critical λ, where the norm is smallest (η = {lr:g}){beyond}",
        plots=[
            Plot(
                Axis("λ over the critical λ", log=True),
                Axis("‖w‖₁", log=True),
                [
                    Line("SGD with autograd's gradient", lams / critical, curve, "markers"),
                    Line("‖w*‖₁ + chatter law", lams / critical, solution + lr * chatter, "dash"),
                    Line("SGD with the proximal map", lams / critical, np.where(cured > 0, cured, np.nan), "line"),
                ],
                says="The exact norm falls to zero at the critical λ; what autograd returns turns and rises.",
            )
        ],
    )


PHASE_RULES: dict[str, tuple[MakeRule, float | None]] = {
    "SGD": (Gradient, 1.0),
    "heavy ball 0.9": (HeavyBall, 2.45),
    "RMSProp": (RMSProp, None),
    "Adam": (Adam, None),
    "Adagrad": (Adagrad, None),
}
"""The rules of the phase diagram; the factor on SGD's chatter law where the rule's floor grows with λ."""


def phase_diagrams(f: LeastSquares, steps: int) -> list[Plot]:
    """log₁₀ of the tail mean norm over (η, λ) for each rule, blank where it diverged, with the predicted boundaries."""
    lrs, lams = np.geomspace(1e-3, 0.3, 28), np.geomspace(0.03, 300, 33) * f.critical_lam
    ends = lams[[0, -1]] / f.critical_lam
    solution, chatter = predicted_norm(f, lams)
    plots = []
    for name, (rule, factor) in PHASE_RULES.items():
        run = simulate(f, rule(lr=lrs), penalty=L1(lams), steps=steps, tail=200, seeds=[0])
        norm = np.log10(np.maximum(tail_mean(run.l1_norm.where(run.diverged_at.isnull())), 1e-6))[..., 0]
        if factor is not None:
            edge = [lams[np.argmin(solution + factor * lr * chatter)] / f.critical_lam for lr in lrs]
            label = "predicted turn: beyond it a larger λ raises the norm"
        else:
            meets = [np.argmax(solution < lr * f.shape[0] / 2) for lr in lrs]
            edge = [lams[i] / f.critical_lam for i in meets]
            label = "where ηP/2 overtakes the exact norm"
        lines = [] if rule is Adagrad else [Line(label, lrs, edge)]
        if rule is Gradient:
            stable = lrs < 2 / f.constants.L
            lines = [Line(label, lrs[stable], np.asarray(edge)[stable])]
            lines.append(Line("ηL = 2: beyond it the run diverges", [2 / f.constants.L] * 2, ends, "dash"))
        plots.append(
            Plot(
                Axis("step size η", log=True),
                Axis("λ over the critical λ", log=True),
                lines,
                Heat("log₁₀ ‖w‖₁", lrs, lams / f.critical_lam, norm.T.tolist()),
                title=name,
                says={
                    "SGD": "Above the line the norm grows with λ, in proportion to η; right of ηL = 2 it diverges.",
                    "heavy ball 0.9": "As SGD with some 2.45 times its chatter (a measured mean, not a law).",
                    "RMSProp": "Above the line only the floor ηP/2 is left: it does not depend on λ.",
                    "Adam": "As RMSProp, whose floor bounds Adam's from above.",
                    "Adagrad": "No floor: what is left is distance not yet covered.",
                }[name],
            )
        )
    return plots


@claim(
    "l1/turning-point",
    says="Where a larger λ starts to raise the norm can be computed beforehand, from the exact path and the chatter "
    "law; it lies below the critical λ, further in higher dimension.",
    source="our statement: ‖w*(λ)‖₁ plus the chatter law",
    sentence=2,
    relation=equals(within=0.15),
    mutants={"the proximal map in place of autograd's gradient": {"penalty_by": "prox", "dimensions": (20,)}},
    full={"problems": 30},
)
def turning_point(
    penalty_by: Any = "autograd",
    dimensions: Sequence[int] = (20, 60, 150),
    relative_lr: float = 0.2,
    problems: int = 8,
    steps: int = 4000,
    phase_steps: int = 3000,
    master: int = 0,
) -> Evidence:
    grid = np.geomspace(0.1, 2, 60)
    samples, turns = [], []
    for p in dimensions:
        row, at = [], []
        for f in least_squares_draws(problems, master, n=100, p=p, support=10):
            lr, lams = relative_lr / f.constants.L, grid * f.critical_lam
            solution, chatter = predicted_norm(f, lams)
            run = simulate(
                f, Gradient(lr=lr), penalty=L1(lams), penalty_by=penalty_by, steps=steps, tail=1000, seeds=[master]
            )
            norm = tail_mean(run.l1_norm)[:, 0]
            measured, predicted = (grid[np.argmin(curve)] for curve in (norm, solution + lr * chatter))
            row.append(measured / predicted)
            at.append(measured)
        samples.append(row)
        turns.append(np.mean(at))
    listed = ", ".join(f"{t:.2g} at P = {p}" for t, p in zip(turns, dimensions, strict=True))
    return Evidence(
        "λ of the smallest norm, measured over predicted",
        samples,
        1.0,
        [f"P = {p}" for p in dimensions],
        holds_when=f"measured at ηL = {relative_lr:g}, N = 100, ten true weights; the turn came at {listed} critical λ",
        plots=[] if penalty_by == "prox" else phase_diagrams(diabetes(), phase_steps),
    )


def stepped(rule: Rule, dtype: Any, steps: int, lam: float = 10.0, weights: int = 2000) -> float:
    """The share of weights that λ‖w‖₁ alone leaves at exactly 0, in NumPy's arithmetic, which rounds every product.

    Compiled code may fuse a product into a sum and then meets 0 less often: this cannot be seen in `simulate`.
    """
    x = np.random.default_rng(0).standard_normal(weights).astype(dtype)
    state, penalty = rule.init(x), L1(lam)
    for t in range(1, steps + 1):
        x, state = rule.at(t).step(x, penalty.grad(x), state)
    return float(np.mean(x == 0))


@claim(
    "l1/no-exact-zeros",
    says="With autograd's gradient and a constant step no weight ever becomes exactly zero, whatever λ and rule.",
    source=PAPER.format(2),
    sentence=2,
    relation=equals(within=0.0, absolute=True),
    mutants={"the proximal map in place of autograd's gradient": {"penalty_by": "prox", "problems": 4}},
    full={"problems": 40},
)
def no_exact_zeros(
    penalty_by: Any = "autograd",
    multiples: Sequence[float] = (0.1, 1.0, 10.0, 100.0),
    problems: int = 10,
    steps: int = 4000,
    master: int = 0,
) -> Evidence:
    rules = {
        "SGD": Gradient(lr=1e-2),
        "heavy ball": HeavyBall(lr=1e-3),
        "RMSProp": RMSProp(lr=1e-3),
        "Adam": Adam(lr=1e-2),
    }
    counts: dict[str, list[float]] = {name: [] for name in rules}
    for f in least_squares_draws(problems, master):
        for name, rule in rules.items():
            lam = np.asarray(multiples) * f.critical_lam
            run = simulate(
                f,
                rule,
                penalty=L1(lam),
                penalty_by=penalty_by,
                steps=steps,
                tail=1000,
                record=("zeros",),
                seeds=[master],
            )
            counts[name].append(float(run.zeros.max()))
    alone = stepped(RMSProp(lr=1e-2), np.float64, steps)
    cosine = [stepped(Gradient(lr=Cosine(lr=1e-2, steps=steps)), dtype, steps) for dtype in (np.float32, np.float16)]
    return Evidence(
        "most exact zeros in the last 1000 steps, of 20 weights",
        [counts[name] for name in rules],
        0.0,
        list(rules),
        holds_when="the data's gradient on each weight is not 0 and the arithmetic is fine; accidental zeros on "
        f"λ‖w‖₁ alone, stepped in NumPy: RMSProp in float64 {alone:.0%}, SGD with cosine decay {cosine[0]:.0%} in "
        f"float32 and {cosine[1]:.0%} in float16",
    )


@claim(
    "l1/prox-finds-the-exact-support",
    says="The same rules with the proximal map at their own effective step find exactly the zeros of the "
    "exact solution (scikit-learn's LARS).",
    source="Parikh & Boyd 2014; Yun, Lozano & Yang 2021",
    sentence=2,
    relation=equals(within=0.0, absolute=True),
    bears="limits",
    mutants={"autograd's gradient in place of the proximal map": {"penalty_by": "autograd", "problems": 4}},
    full={"problems": 40},
)
def exact_support(
    penalty_by: Any = "prox",
    multiples: Sequence[float] = (0.05, 0.2, 0.6),
    problems: int = 10,
    steps: int = 20_000,
    master: int = 0,
) -> Evidence:
    names = {"SGD": Gradient, "heavy ball": HeavyBall, "Nesterov": Nesterov, "RMSProp": RMSProp, "Adam": Adam}
    wrong: dict[str, list[float]] = {name: [] for name in names}
    gaps = []
    for f in [*least_squares_draws(problems - 1, master), diabetes()]:
        lams = np.asarray(multiples) * f.critical_lam
        exact = lasso_path(f, lams)
        slack = np.stack([1 - np.abs(f.grad(w)) / lam for w, lam in zip(exact, lams, strict=True)])
        decided = (exact != 0) | (slack > 0.01)  # strict complementarity
        best = [f.value(w) + L1(lam).value(w) for w, lam in zip(exact, lams, strict=True)]
        for name, rule in names.items():
            lr: Any = InverseSqrt(lr=0.1) if name in ("RMSProp", "Adam") else 0.1 / f.constants.L
            run = simulate(f, rule(lr=lr), penalty=L1(lams), penalty_by=penalty_by, steps=steps, tail=1, seeds=[master])
            found = run.x_final.values[:, 0]
            wrong[name].append(float((((found == 0) != (exact == 0)) & decided).sum()))
            gaps.append(float((run.value[:, 0, 0] - best).max()))
    return Evidence(
        "weights on the wrong side of zero, over three λ",
        [wrong[name] for name in names],
        0.0,
        list(names),
        holds_when="strict complementarity (weights with |∂f| within 1 % of λ are left out) and, for RMSProp and Adam, "
        f"a step that falls as 1/√t; the largest gap was {max(gaps):.0e}",
    )
