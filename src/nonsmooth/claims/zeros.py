"""Sentence 2: which weights become exactly zero, and by what."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from nonsmooth.claims.problems import PAPER, lasso_minimum, lasso_path, least_squares_draws
from nonsmooth.ledger import Evidence, at_least, at_most, claim, equals
from nonsmooth.objectives import LeastSquares, Spred, diabetes
from nonsmooth.penalties import L1, SmoothedL1, SquaredL2
from nonsmooth.plots import Axis, Line, Plot, Table
from nonsmooth.rules import (
    FISTA,
    RDA,
    Adam,
    Cosine,
    Gradient,
    HeavyBall,
    InverseSqrt,
    LinearisedBregman,
    Nesterov,
    RMSProp,
    Rule,
)
from nonsmooth.simulation import simulate


def stepped(rule: Rule, dtype: Any, steps: int, c: float = 0.0, lam: float = 10.0, master: int = 0) -> float:
    """The share of 2000 weights that λ‖w‖₁ + cΣw leaves at exactly 0 in NumPy, which rounds each product.

    Compiled code may fuse a product into a sum and then meets 0 less often: this cannot be seen in `simulate`.
    """
    x = np.random.default_rng(master).standard_normal(2000).astype(dtype)
    state, penalty = rule.init(x), L1(lam)
    for t in range(1, steps + 1):
        x, state = rule.at(t).step(x, penalty.grad(x) + dtype(c), state)
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
    return Evidence(
        "most exact zeros in the last 1000 steps, of 20 weights",
        [counts[name] for name in rules],
        0.0,
        list(rules),
        holds_when="the data's gradient on each weight is not 0, the step constant, the arithmetic float64 (otherwise: "
        "l1/accidental-zeros); 4 rules, λ from 0.1 to 100 critical λ",
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


ACCIDENTS: dict[str, tuple[Rule, Any]] = {
    "RMSProp, float64": (RMSProp(lr=1e-2), np.float64),
    "SGD with cosine decay, float32": (Gradient(lr=Cosine(lr=1e-2, steps=4000)), np.float32),
    "SGD with cosine decay, float16": (Gradient(lr=Cosine(lr=1e-2, steps=4000)), np.float16),
    "SGD with cosine decay, float64": (Gradient(lr=Cosine(lr=1e-2, steps=4000)), np.float64),
}


@claim(
    "l1/accidental-zeros",
    says="A weight on which the data have no say (dead, padded, masked) can land on exactly 0, where sign(0) = 0 keeps "
    "it: such zeros come of rounding, with RMSProp or a decaying step in coarse floats, and tell nothing.",
    source="our statement; theory for λ‖w‖₁ alone",
    sentence=2,
    relation=at_least(),
    bears="limits",
    mutants={"a data gradient of 0.3 λ on each weight": {"c": 3.0}},
)
def accidental_zeros(
    names: Sequence[str] = tuple(ACCIDENTS)[:3], c: float = 0.0, steps: int = 4000, least: float = 0.01, master: int = 0
) -> Evidence:
    """At least 1 % of 2000 weights must be zero, each way."""
    shares = [stepped(*ACCIDENTS[name], steps, c, master=master) for name in names]
    fine = stepped(*ACCIDENTS["SGD with cosine decay, float64"], steps, c, master=master)
    return Evidence(
        f"share of 2000 random weights that are exactly 0 after {steps} steps on λ‖w‖₁ alone",
        shares,
        least,
        list(names),
        holds_when=f"the data's gradient is exactly 0, λ = 10; SGD with cosine decay in float64 left {fine:.1%}",
    )


CURES = (
    "prox SGD",
    "prox Adam, 1/√t",
    "FISTA",
    "RDA",
    "linearised Bregman",
    "autograd SGD",
    "autograd SGD, |w| < 0.001 cut",
    "pseudo-Huber, δ = 0.001",
    "spred",
)
EXACT, NEAR = CURES[:3], CURES[3:4]


def cured(f: LeastSquares, lam: float, steps: int, master: int, names: Sequence[str]) -> dict[str, np.ndarray]:
    """The weights that each of these ways returns after the same number of gradients."""
    L, P, g = f.constants.L, f.shape[0], L1(lam)
    options: Any = {"steps": steps, "tail": 1, "seeds": [master], "record": ("loss",)}
    plain = np.zeros(P)

    def weights(rule: Rule, penalty: Any = g, by: Any = "prox", objective: Any = f, **more: Any) -> np.ndarray:
        return simulate(objective, rule, penalty=penalty, penalty_by=by, **options | more).x_final.values[0]

    def autograd() -> np.ndarray:
        return weights(Gradient(lr=0.1 / L), by="autograd")

    pair = Spred(f)
    ways: dict[str, Callable[[], np.ndarray]] = {
        "prox SGD": lambda: weights(Gradient(lr=1 / L)),
        "prox Adam, 1/√t": lambda: weights(Adam(lr=InverseSqrt(lr=0.1))),
        "FISTA": lambda: weights(FISTA(lr=1 / L)),
        "RDA": lambda: weights(RDA(gamma=10 * L), x0=plain),
        "linearised Bregman": lambda: weights(LinearisedBregman(lr=1 / (10 * L), delta=10.0), x0=plain),
        "autograd SGD": autograd,
        "autograd SGD, |w| < 0.001 cut": lambda: np.where(np.abs(w := autograd()) < 1e-3, 0.0, w),
        "pseudo-Huber, δ = 0.001": lambda: weights(
            Gradient(lr=1 / (L + lam / 1e-3)), SmoothedL1(lam, 1e-3), "autograd"
        ),
        "spred": lambda: pair.product(weights(Gradient(lr=0.1 / L), SquaredL2(lam / 2), "autograd", pair)),
    }
    return {name: ways[name]() for name in names}


@claim(
    "l1/cures-compared",
    says="Of nine ways to treat an L1 penalty, each with as many gradients, the proximal map at the rule's own step "
    "(SGD, Adam, FISTA) has exactly the zeros of the solution. Dual averaging is nearly there and slow; autograd, "
    "smoothing and spred have none, Bregman's path runs past them, and a threshold cuts others.",
    source="Parikh & Boyd 2014; Xiao 2010 (RDA); Bungert et al. 2022 (Bregman); Liu Ziyin & Wang 2023 (spred)",
    sentence=2,
    relation=equals(within=0.0, absolute=True),
    bears="limits",
    mutants={name: {"names": (name,), "shown": (), "problems": 4} for name in CURES if name not in (*EXACT, *NEAR)},
    full={"problems": 40},
)
def cures_compared(
    names: Sequence[str] = EXACT,
    shown: Sequence[str] = CURES[3:],
    multiple: float = 0.3,
    problems: int = 10,
    steps: int = 10_000,
    master: int = 0,
) -> Evidence:
    """`shown`: ways that stand in the table beside those that are tested."""
    ways = (*names, *shown)
    wrong: dict[str, list[float]] = {name: [] for name in ways}
    gaps: dict[str, list[float]] = {name: [] for name in ways}
    zeros: dict[str, list[int]] = {name: [] for name in ways}
    sought = []
    for f in least_squares_draws(problems, master, n=100, p=40, support=10):
        lam = multiple * f.critical_lam
        exact, best = lasso_path(f, np.array([lam]))[0], lasso_minimum(f, lam)
        decided = (exact != 0) | (np.abs(f.grad(exact)) < 0.99 * lam)  # strict complementarity
        sought.append(int((exact == 0).sum()))
        for name, w in cured(f, lam, steps, master, ways).items():
            wrong[name].append(float((((w == 0) != (exact == 0)) & decided).sum()))
            gaps[name].append(max(float(f.value(w) + L1(lam).value(w)) - best, 1e-16))
            zeros[name].append(int((w == 0).sum()))
    table: list[list[str | float]] = [
        [name, float(np.exp(np.mean(np.log(gaps[name])))), float(np.mean(zeros[name])), float(np.mean(wrong[name]))]
        for name in ways
    ]
    return Evidence(
        "weights on the wrong side of zero",
        [wrong[name] for name in names],
        0.0,
        list(names),
        holds_when=f"λ = {multiple:g} critical λ, P = 40, {steps} gradients each, strict complementarity",
        plots=[
            Table(
                ["way", "F(w) − F*, geometric mean", "weights at 0", "on the wrong side of zero"],
                table,
                title="Each way after as many gradients",
                says=f"Means over {problems} problems, whose solutions have {np.mean(sought):.3g} of 40 weights at 0. "
                "A gap below 1e-16 counts as that.",
            ),
            Plot(
                Axis("F(w) − F*", log=True),
                Axis("weights on the wrong side of zero, of 40"),
                [Line(name, gaps[name], wrong[name], "markers") for name in ways],
                says="One point a problem. Left is nearer to the minimum, low the right support; these are two things.",
            ),
        ],
    )


@claim(
    "l1/minibatch-zeros-flicker",
    says="Under minibatches the proximal map's zeros flicker: a weight that is zero in the solution leaves 0 when a "
    "batch's gradient exceeds λ, at any step size, so that a decaying step does not help. Dual averaging (RDA), whose "
    "gradient is a mean over all batches, all but ends it.",
    source="Xiao 2010 (RDA); theory: the cure",
    sentence=2,
    relation=at_most(),
    bears="limits",
    mutants={"prox SGD with a step of 1/√t": {"name": "prox SGD, 1/√t", "problems": 4}},
    full={"problems": 40},
)
def zeros_flicker(
    name: str = "RDA",
    multiple: float = 0.3,
    batch: int = 10,
    problems: int = 10,
    steps: int = 20_000,
    most: float = 0.1,
    master: int = 0,
) -> Evidence:
    """Over the last 2000 steps, a weight that is zero (strictly) may be off zero a tenth as often as under prox SGD."""
    shares: dict[str, list[float]] = {"RDA": [], "prox SGD": [], "prox SGD, 1/√t": []}
    for f in least_squares_draws(problems, master):
        L, lam = f.constants.L, multiple * f.critical_lam
        exact = lasso_path(f, np.array([lam]))[0]
        dead = (exact == 0) & (np.abs(f.grad(exact)) < 0.9 * lam)
        rules: dict[str, Rule] = {
            "RDA": RDA(gamma=10 * L),
            "prox SGD": Gradient(lr=0.1 / L),
            "prox SGD, 1/√t": Gradient(lr=InverseSqrt(lr=0.1 / L)),
        }
        for kind, rule in rules.items():
            run = simulate(
                f,
                rule,
                penalty=L1(lam),
                penalty_by="prox",
                batch_size=batch,
                steps=steps,
                tail=2000,
                record=("x",),
                x0=0.0,
                seeds=[master],
            )
            shares[kind].append(float((run.x.values[0][:, dead] != 0).mean()))
    return Evidence(
        "late steps off zero, over those of prox SGD with a constant step",
        [np.divide(shares[name], shares["prox SGD"])],
        most,
        [name],
        holds_when=f"λ = {multiple:g} critical λ, batches of {batch} of 50, |∂f| < 0.9 λ: "
        + ", ".join(f"{kind} {np.mean(found):.1%}" for kind, found in shares.items()),
    )
