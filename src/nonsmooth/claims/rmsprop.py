"""Sentence 3: RMSProp with and without a kink."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from nonsmooth.claims.problems import PAPER, MakeRule, lasso_path, least_squares_draws, start_draws, tail_mean
from nonsmooth.ledger import Evidence, at_least, claim, equals, where
from nonsmooth.objectives import LeastSquares, MaxLinear, Quadratic
from nonsmooth.penalties import L1, Penalty, SquaredL2
from nonsmooth.plots import Axis, Line, Plot
from nonsmooth.rules import Adagrad, Adam, Gradient, RMSProp, Rule
from nonsmooth.simulation import Moment, simulate


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
    "not: it stays off by more than half of ηP/2 in L1 norm, at every λ.",
    source=PAPER.format(3),
    sentence=3,
    relation=at_least(),
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
        0.5,
        [f"ridge λ = {lam:g}" for lam in lams],
        holds_when=where("η", scan, mean > 0.5)
        + f" at λ = {lams[1]:g}; there the mean over problems was {mean.min():.2f} to "
        f"{mean.max():.2f} of ηP/2",
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


@claim(
    "rmsprop/one-weight-law",
    says="One weight under λ|w| and a constant data gradient c bounces under RMSProp at mean |w| = (η/2)(1 + c²/λ²)/"
    "√(1 − c²/λ²): λ enters only through c/λ.",
    source="our statement: √v settles at √(λ² − c²)",
    sentence=3,
    relation=equals(within=0.05),
    mutants={"SGD, whose law has λ in it": {"rule": Gradient, "starts": 4}},
    full={"starts": 200},
)
def one_weight_law(
    rule: MakeRule = RMSProp,
    slopes: Sequence[float] = (90**-0.5, 5**-0.5, 0.8**0.5),
    lams: Sequence[float] = (10.0, 1000.0),
    lr: float = 1e-3,
    starts: int = 20,
    steps: int = 20_000,
    master: int = 0,
) -> Evidence:
    x0 = start_draws(starts, master, -0.1, 0.1)

    def norms(r: float) -> Any:
        """For each λ and start, under a data gradient c = rλ."""
        runs = [
            simulate(MaxLinear([[r * lam]], [0.0]), rule(lr=lr), penalty=L1(lam), x0=x0, steps=steps, tail=10_000)
            for lam in lams
        ]
        return np.stack([tail_mean(run.l1_norm) for run in runs])

    law = lambda r: lr / 2 * (1 + r * r) / np.sqrt(1 - r * r)  # noqa: E731
    scan = np.linspace(0.05, 0.95, 10) + 1e-3 * 2**0.5
    curve = np.array([norms(float(r)).mean(axis=1) for r in scan])
    return Evidence(
        "tail mean |w|",
        np.concatenate([norms(r) for r in slopes]),
        np.repeat([law(r) for r in slopes], len(lams)),
        [f"c = {r:.3g} λ, λ = {lam:g}" for r in slopes for lam in lams],
        holds_when=where("|c|/λ", scan, (np.abs(curve / law(scan)[:, None] - 1) < 0.05).all(axis=1)) + f", η = {lr:g}",
        plots=[
            Plot(
                Axis("|c|/λ"),
                Axis("mean |w| over η"),
                [
                    *(Line(f"measured, λ = {lam:g}", scan, curve[:, i] / lr, "markers") for i, lam in enumerate(lams)),
                    Line("the law", scan, law(scan) / lr, "dash"),
                ],
                says="A hundred times the λ, the same bounce.",
            )
        ],
    )


@claim(
    "rmsprop/adam-floor-independent-of-lambda",
    says="Adam's norm beyond the critical λ hardly depends on λ (some sixth over a hundredfold λ) and is proportional "
    "to η, at some fraction of ηP/2.",
    source=PAPER.format(3) + "; our statement for Adam",
    sentence=3,
    relation=equals(within=0.25),
    mutants={"SGD, whose norm is proportional to λ": {"rule": Gradient, "problems": 4}},
    full={"problems": 100},
)
def adam_floor(
    rule: MakeRule = Adam,
    multiples: Sequence[float] = (10.0, 100.0, 1000.0),
    lrs: Sequence[float] = (1e-4, 1e-3),
    problems: int = 20,
    steps: int = 20_000,
    master: int = 0,
) -> Evidence:
    """Starts at 0.1 of the default size, so that the smaller step has reached its bounce."""
    samples, sizes = [], []
    for i, f in enumerate(least_squares_draws(problems, master)):
        x0 = 0.1 * np.random.default_rng([master, i]).standard_normal(f.shape)
        run = simulate(
            f, rule(lr=lrs), penalty=L1(np.asarray(multiples) * f.critical_lam), x0=x0, steps=steps, tail=2000
        )
        share = tail_mean(run.l1_norm) / (np.asarray(lrs)[:, None] * f.shape[0] / 2)
        samples.append([share[1, -1] / share[1, 0], share[1, 1] / share[0, 1]])
        sizes.append(share[1])
    shares = np.array(sizes)
    return Evidence(
        "ratio of two floors, each over ηP/2",
        np.transpose(samples),
        1.0,
        [f"λ = {multiples[-1]:g} over {multiples[0]:g} critical λ", f"η = {lrs[1]:g} over η = {lrs[0]:g}"],
        holds_when=f"λ ≥ {multiples[0]:g} critical λ; over problems and starts the floor was {shares.min():.2f} to "
        f"{shares.max():.2f} of ηP/2",
        plots=[
            Plot(
                Axis("λ over the critical λ", log=True),
                Axis("tail mean ‖w‖₁ over ηP/2", log=True),
                [
                    Line("Adam, one point a problem", np.repeat(multiples, problems), shares.T.ravel(), "markers"),
                    Line("RMSProp's law", multiples, np.ones(len(multiples)), "dash"),
                ],
                says="A hundred times the λ moves it by a sixth.",
            )
        ],
    )


@claim(
    "rmsprop/scale-invariance",
    says="RMSProp, Adam and Adagrad follow the same path when loss and penalty are multiplied by any number: what sets "
    "their floor is the ratio of the data's gradient to λ, never λ itself. SGD's path changes.",
    source="Kingma & Ba 2015, section 2.1 (invariance to rescaling of the gradients)",
    sentence=3,
    relation=equals(within=0.0, absolute=True),
    mutants={"SGD": {"names": ("SGD",)}},
)
def scale_invariance(
    names: Sequence[str] = ("RMSProp", "Adam", "Adagrad"),
    factor: float = 2.0**20,
    problems: int = 5,
    steps: int = 1000,
    master: int = 0,
) -> Evidence:
    """ε = 0 and a power of two, so that no rounding differs: the difference must be exactly 0."""
    rules: dict[str, Rule] = {
        "RMSProp": RMSProp(lr=1e-2, eps=0.0),
        "Adam": Adam(lr=1e-2, eps=0.0),
        "Adagrad": Adagrad(lr=1e-1, eps=0.0),
        "SGD": Gradient(lr=1e-9),
    }
    samples = []
    for name in names:
        row = []
        for f in least_squares_draws(problems, master):
            large = LeastSquares(f.X * factor**0.5, f.y * factor**0.5)
            lam = 0.5 * f.critical_lam
            ends = [
                simulate(g, rules[name], penalty=L1(strength), steps=steps, tail=1, seeds=[master]).x_final.values
                for g, strength in ((f, lam), (large, lam * factor))
            ]
            row.append(np.abs(ends[0] - ends[1]).max())
        samples.append(row)
    return Evidence(
        f"largest difference between weights after {steps} steps",
        samples,
        0.0,
        list(names),
        holds_when=f"ε = 0; loss and penalty times {factor:.3g}. With the default ε = 1e-8, as long as √v ≫ 1e-8",
    )


def own_step(m: Moment) -> Any:
    """|D|/|g|: the step size that an adaptive rule took, on the line."""
    return (abs(m.step) / abs(m.g_before)).sum()


@claim(
    "rmsprop/tunes-itself-to-the-edge",
    says="On a quadratic of any curvature h, RMSProp's own step η/√v grows as the gradients shrink until h times it is "
    "2, the threshold of plain gradient descent, and stays there.",
    source="Cohen et al. 2022 (adaptive edge of stability); our statement for one weight",
    sentence=3,
    relation=equals(within=0.05),
    mutants={"SGD, whose step stays what it is": {"rule": Gradient}},
    full={"starts": 100},
)
def tunes_itself(
    rule: MakeRule = RMSProp,
    curvatures: Sequence[float] = (0.1, 1.0, 1e3, 1e6),
    lr: float = 1e-3,
    starts: int = 10,
    steps: int = 20_000,
    master: int = 0,
) -> Evidence:
    x0 = start_draws(starts, master, 0.05, 0.5)
    samples, paths = [], []
    for h in curvatures:
        run = simulate(Quadratic([h]), rule(lr=lr), x0=x0, steps=steps, record=(own_step,))
        samples.append(h * run.own_step.isel(step=slice(-2000, None)).mean("step").values)
        paths.append(h * run.own_step.isel(start=0).values[::20])
    shown = np.arange(1, steps + 1, 20)
    return Evidence(
        "curvature times the step taken, tail mean",
        samples,
        2.0,
        [f"h = {h:g}" for h in curvatures],
        holds_when=f"h from {min(curvatures):g} to {max(curvatures):g}, η = {lr:g}, one weight",
        plots=[
            Plot(
                Axis("step"),
                Axis("h |D|/|g|"),
                [
                    *(Line(f"h = {h:g}", shown, p) for h, p in zip(curvatures, paths, strict=True)),
                    Line("2", [1, steps], [2, 2], "dash"),
                ],
                says="Whatever the curvature, the step finds the edge by itself.",
            )
        ],
    )
