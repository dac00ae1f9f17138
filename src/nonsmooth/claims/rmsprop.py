"""Sentence 3: RMSProp with and without a kink."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from nonsmooth.claims.problems import PAPER, MakeRule, lasso_path, least_squares_draws, tail_mean
from nonsmooth.ledger import Evidence, at_least, claim, equals, where
from nonsmooth.objectives import LeastSquares
from nonsmooth.penalties import L1, Penalty, SquaredL2
from nonsmooth.plots import Axis, Line, Plot
from nonsmooth.rules import Gradient, RMSProp, Rule
from nonsmooth.simulation import simulate


@claim(
    "rmsprop/floor-independent-of-lambda",
    says="Beyond the critical λ, constant-step RMSProp settles at an L1 norm of about ηP/2, whatever λ is: the step "
    "sets the norm and the penalty does not.",
    source=PAPER.format(3),
    sentence=3,
    relation=equals(within=0.05),
    mutants={"SGD, whose floor is proportional to λ": {"rule": Gradient, "problems": 4}},
    full={"problems": 100},
)
def floor_independent_of_lambda(
    rule: MakeRule = RMSProp,
    multiples: Sequence[float] = (3.0, 10.0, 100.0, 1000.0),
    lr: float = 1e-3,
    problems: int = 20,
    steps: int = 8000,
    master: int = 0,
) -> Evidence:
    scan = np.geomspace(0.3, 1000, 20)
    samples, curves, sgd = [], [], []
    for f in least_squares_draws(problems, master):
        half = lr * f.shape[0] / 2

        def norm(rule: Rule, lam: np.ndarray, f: Any = f) -> np.ndarray:
            run = simulate(f, rule, penalty=L1(lam * f.critical_lam), steps=steps, tail=1000, seeds=[master])
            return tail_mean(run.l1_norm)[:, 0]

        samples.append(norm(rule(lr=lr), np.asarray(multiples)) / half)
        curves.append(norm(RMSProp(lr=lr), scan) / half)
        sgd.append(norm(Gradient(lr=lr), scan) / half)
    mean, other = np.mean(curves, axis=0), np.mean(sgd, axis=0)
    return Evidence(
        "tail mean ‖w‖₁ over ηP/2",
        np.transpose(samples),
        1.0,
        [f"λ = {m:g} critical λ" for m in multiples],
        holds_when=where("λ", scan, np.abs(mean - 1) < 0.05, " critical λ")
        + f" (mean over problems within 5 %, η = {lr:g})",
        plots=[
            Plot(
                Axis("λ over the critical λ", log=True),
                Axis("tail mean ‖w‖₁ over ηP/2", log=True),
                [
                    Line("RMSProp", scan, mean, "markers"),
                    Line("SGD, the same step", scan, other, "markers"),
                    Line("RMSProp's law", scan, scan**0, "dash"),
                ],
                says="RMSProp's norm stops moving with λ; SGD's grows with it.",
            )
        ],
    )


def ridge_solutions(f: LeastSquares, lams: np.ndarray) -> np.ndarray:
    """argmin ‖y − Xw‖²/N + λ‖w‖² for each λ, shape (len(lams), P)."""
    gram, moment = f.X.T @ f.X / f.n, f.X.T @ f.y / f.n
    return np.stack([np.linalg.solve(gram + lam * np.eye(f.shape[0]), moment) for lam in lams])


@claim(
    "rmsprop/misses-the-ridge-solution",
    says="On ridge regression, which is smooth, constant-step SGD reaches the solution and constant-step RMSProp does "
    "not: it stays off by about ηP/2 in L1 norm, the same distance as under an L1 penalty.",
    source=PAPER.format(3),
    sentence=3,
    relation=equals(within=0.15),
    mutants={"SGD in its place": {"rule": Gradient, "problems": 4}},
    full={"problems": 100},
)
def misses_the_ridge_solution(
    rule: MakeRule = RMSProp,
    lams: Sequence[float] = (0.1, 1.0, 5.0),
    lr: float = 1e-3,
    problems: int = 20,
    steps: int = 30_000,
    master: int = 0,
) -> Evidence:
    scan = np.geomspace(1e-4, 1e-1, 10)
    samples, curves = [], []
    for f in least_squares_draws(problems, master):
        P = f.shape[0]
        exact = ridge_solutions(f, np.asarray(lams))
        run = simulate(f, rule(lr=lr), penalty=SquaredL2(lams), steps=steps, tail=1000, record=("x",), seeds=[master])
        samples.append(np.abs(run.x.values[:, 0] - exact[:, None]).sum(axis=-1).mean(axis=-1) / (lr * P / 2))
        run = simulate(
            f,
            RMSProp(lr=scan),
            penalty=SquaredL2(float(lams[1])),
            steps=steps,
            tail=1000,
            record=("x",),
            seeds=[master],
        )
        curves.append(np.abs(run.x.values[:, 0] - exact[1]).sum(axis=-1).mean(axis=-1) / (scan * P / 2))
    mean = np.mean(curves, axis=0)
    return Evidence(
        "tail mean ‖w − w*‖₁ over ηP/2",
        np.transpose(samples),
        1.0,
        [f"ridge λ = {lam:g}" for lam in lams],
        holds_when=where("η", scan, np.abs(mean - 1) < 0.15) + f" at λ = {lams[1]:g} (mean over problems within 15 %)",
        plots=[
            Plot(
                Axis("step size η", log=True),
                Axis("tail mean ‖w − w*‖₁", log=True),
                [
                    Line("RMSProp on ridge", scan, mean * scan * 10, "markers"),
                    Line("ηP/2", scan, scan * 10, "dash"),
                ],
                says="RMSProp's distance to the smooth solution is set by its step.",
            )
        ],
    )


@claim(
    "rmsprop/ranking-reverses",
    says="At the same step, SGD ends nearer to the minimum than RMSProp on a smooth penalty, and farther from it on an "
    "L1 penalty beyond the critical λ: the ranking reverses.",
    source=PAPER.format(3),
    sentence=3,
    relation=at_least(),
    mutants={"the proximal map in place of autograd's gradient": {"penalty_by": "prox", "problems": 4}},
    full={"problems": 100},
)
def ranking_reverses(
    penalty_by: Any = "autograd", lr: float = 1e-3, problems: int = 20, steps: int = 20_000, master: int = 0
) -> Evidence:
    scan = np.geomspace(0.01, 100, 17)
    samples, crossings = [], []

    def distances(f: Any, rule: Rule, penalty: Penalty, exact: np.ndarray) -> np.ndarray:
        options: Any = {"steps": steps, "tail": 1000, "record": ("x",), "seeds": [master]}
        run = simulate(f, rule, penalty=penalty, penalty_by=penalty_by, **options)
        return np.abs(run.x.values[:, 0] - exact[:, None]).sum(axis=-1).mean(axis=-1)

    for f in least_squares_draws(problems, master):
        ridge, lams = np.array([1.0]), np.append(scan, 3.0 * f.critical_lam)
        rules = (Gradient(lr=lr), RMSProp(lr=lr))
        smooth = [distances(f, rule, SquaredL2(ridge), ridge_solutions(f, ridge)) for rule in rules]
        kinked = [distances(f, rule, L1(lams), lasso_path(f, lams)) for rule in rules]
        (smooth_sgd, smooth_rms), (sgd, rms) = np.log10(np.maximum(smooth, 1e-12)), np.log10(np.maximum(kinked, 1e-12))
        samples.append([smooth_rms[0] - smooth_sgd[0], sgd[-1] - rms[-1]])
        crossings.append(10 ** (sgd - rms)[:-1])
    ratio = np.exp(np.mean(np.log(crossings), axis=0))
    cross = float(np.exp(np.interp(0.0, np.log(ratio), np.log(scan))))
    return Evidence(
        "decades by which the ranking is as said",
        np.transpose(samples),
        0.3,
        ["ridge, λ = 1: RMSProp's distance over SGD's", "L1, λ = 3 critical λ: SGD's distance over RMSProp's"],
        holds_when=f"λ ≥ {cross:.2g} under an L1 penalty, where the two cross (predicted: where ηλ/2 = η/2, λ = 1); "
        "0.3 decades, a factor of two, are asked of each side",
        plots=[
            Plot(
                Axis("λ of the L1 penalty", log=True),
                Axis("SGD's distance to the solution over RMSProp's", log=True),
                [
                    Line("measured, geometric mean over problems", scan, ratio, "markers"),
                    Line("equal", scan, scan**0, "dash"),
                ],
                says="Left of the crossing SGD is better, right of it RMSProp: λ against 1 decides.",
            )
        ],
    )
