"""Sentence 2: a larger penalty and a larger norm, and where that begins."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from nonsmooth.claims.problems import PAPER, MakeRule, lasso_path, least_squares_draws, tail_mean
from nonsmooth.ledger import Evidence, at_least, claim, equals
from nonsmooth.objectives import LeastSquares, diabetes
from nonsmooth.penalties import L1
from nonsmooth.plots import Axis, Heat, Line, Plot
from nonsmooth.rules import Adagrad, Adam, Gradient, HeavyBall, RMSProp
from nonsmooth.simulation import simulate


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
    full={"problems": 100},
)
def turning_point(
    penalty_by: Any = "autograd",
    dimensions: Sequence[int] = (20, 60, 150),
    relative_lr: float = 0.2,
    problems: int = 24,
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


@claim(
    "l1/turn-comes-earlier-in-high-dimension",
    says="The more weights should be zero, the more chatter there is to add up: with ten true weights and the same ηL, "
    "the norm turns upwards at a smaller λ in dimension 400 than in dimension 20, far below the critical λ.",
    source="our statement: ‖w*(λ)‖₁ plus the chatter law",
    sentence=2,
    relation=at_least(),
    mutants={"the proximal map in place of autograd's gradient": {"penalty_by": "prox", "problems": 4}},
    full={"problems": 30},
)
def turn_in_high_dimension(
    penalty_by: Any = "autograd",
    low: int = 20,
    high: int = 400,
    relative_lr: float = 0.2,
    problems: int = 8,
    steps: int = 3000,
    master: int = 0,
) -> Evidence:
    grid = np.geomspace(0.05, 2, 20)
    turns: dict[int, list[float]] = {low: [], high: []}
    for p, found in turns.items():
        for f in least_squares_draws(problems, master + 200, n=100, p=p, support=10):
            lr, lams = relative_lr / f.constants.L, grid * f.critical_lam
            run = simulate(
                f, Gradient(lr=lr), penalty=L1(lams), penalty_by=penalty_by, steps=steps, tail=500, seeds=[master]
            )
            found.append(float(grid[np.argmin(tail_mean(run.l1_norm)[:, 0])]))
    dimensions = [20, 50, 100, 200, 400, 800]
    predicted = []
    for p in dimensions:
        f = least_squares_draws(1, master + 200, n=100, p=p, support=10)[0]
        solution, chatter = predicted_norm(f, grid * f.critical_lam)
        predicted.append(grid[np.argmin(solution + relative_lr / f.constants.L * chatter)])
    return Evidence(
        "λ at the turn over the critical λ, low dimension over high",
        [np.divide(turns[low], turns[high])],
        float(grid[1] / grid[0]),
        [f"P = {low} over P = {high}"],
        holds_when=f"ηL = {relative_lr:g}, N = 100; turns at {np.mean(turns[low]):.2g} critical λ for P = {low} "
        f"and {np.mean(turns[high]):.2g} for P = {high}; earlier by one point of the grid is asked",
        plots=[
            Plot(
                Axis("dimension P", log=True),
                Axis("λ at the turn over the critical λ", log=True),
                [
                    Line(
                        "measured",
                        np.repeat([low, high], problems),
                        np.concatenate([turns[low], turns[high]]),
                        "markers",
                    ),
                    Line("predicted, one problem each", dimensions, predicted, "dash"),
                ],
                says="In high dimension a larger penalty raises the norm long before the solution is zero.",
            )
        ],
    )
