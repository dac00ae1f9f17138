"""Sentence 5: claims that stand for or against what influential texts say of kinks; `texts` says which texts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from nonsmooth.claims.problems import PAPER, lasso_path, least_squares_draws, start_draws
from nonsmooth.claims.worst_cases import random_maxima
from nonsmooth.ledger import Evidence, at_least, at_most, claim, equals
from nonsmooth.objectives import Absolute, Huber, Objective, TwoLayer, random_least_squares
from nonsmooth.penalties import L1, Penalty, SmoothedL1, SquaredL2
from nonsmooth.plots import Axis, Line, Plot
from nonsmooth.rules import Gradient
from nonsmooth.simulation import Moment, simulate


def crosses(m: Moment) -> Any:
    """1 where some kink of f + λ‖x‖₁ lies between the two ends of the step."""
    return 1.0 * ((m.x * m.x_before).min() < 0)


def flips(m: Moment) -> Any:
    """The share of f's kinks (pre-activations) that changed sign in the step."""
    return (m.objective.kinks(m.x) * m.objective.kinks(m.x_before) < 0).mean()


@claim(
    "literature/kinks-are-crossed-not-hit",
    says="That an iterate is hardly ever exactly on a kink is true, and beside the point: late in a run on the Lasso "
    "no step lands on a kink and nearly every step crosses one.",
    source="Goodfellow, Bengio & Courville 2016, section 6.3, says the first half",
    sentence=5,
    relation=equals(within=0.05, absolute=True),
    mutants={"a ridge in place of the L1 penalty": {"penalty": SquaredL2, "problems": 4}},
    full={"problems": 100},
)
def crossed_not_hit(
    penalty: Callable[[float], Penalty] = L1,
    multiple: float = 0.3,
    relative_lr: float = 0.1,
    problems: int = 20,
    steps: int = 6000,
    master: int = 0,
) -> Evidence:
    samples = []
    for f in least_squares_draws(problems, master):
        run = simulate(
            f,
            Gradient(lr=relative_lr / f.constants.L),
            penalty=penalty(multiple * f.critical_lam),
            steps=steps,
            tail=1000,
            record=("zeros", crosses),
            seeds=[master],
        )
        samples.append([float((run.zeros > 0).mean()), float(run.crosses.mean())])
    data = random_least_squares(n=100, p=5, seed=master)
    net = simulate(TwoLayer(data.X, data.y, hidden=16), Gradient(lr=0.02), steps=3000, record=(flips, "zeros"), seeds=5)
    early, late = (float((net.flips.isel(step=part) > 0).mean()) for part in (slice(0, 300), slice(-300, None)))
    shares = net.flips.mean("seed").values
    window = 50
    smooth = shares[: shares.size // window * window].reshape(-1, window).mean(axis=1)
    return Evidence(
        "share of the last 1000 steps",
        np.transpose(samples),
        [0.0, 1.0],
        ["steps that land on a kink", "steps that cross a kink"],
        holds_when=f"λ = {multiple:g} critical λ, ηL = {relative_lr:g}. In a two-layer ReLU network on random data "
        f"(η = 0.02) some unit flipped in {early:.0%} of the first 300 steps, in {late:.0%} of the last 300 of 3000",
        plots=[
            Plot(
                Axis("step"),
                Axis("share of pre-activations that flip in a step"),
                [
                    Line(
                        "two layers, ReLU, mean of 50 steps and five starts",
                        window * (np.arange(smooth.size) + 0.5),
                        smooth,
                    )
                ],
                title="A ReLU network, for comparison",
                says="Its kinks lie in pre-activations, not in small weights, and it crosses them while it learns.",
            )
        ],
    )


def needed(m: Moment) -> Any:
    """The smallest L for which F(x⁺) ≤ F(x) + ⟨g̃, D⟩ + (L/2)‖D‖² holds at this step."""
    before = m.objective.value(m.x_before) + (0.0 if m.penalty is None else m.penalty.value(m.x_before))
    length = (m.step**2).sum()
    excess = 2 * (m.value - before - (m.g_before * m.step).sum())
    moved = length > 1e-10  # below, both sides are rounding
    return excess * moved / (length + (1 - moved))


@claim(
    "literature/no-finite-l",
    says="On |x| and on the Lasso no constant L makes the descent lemma hold: the one that it would need, over the "
    "steps of a run, grows as 1/η. On the Huber function it stays where it is.",
    source="Bottou, Curtis & Nocedal 2018, assumption 4.1, assumes one; " + PAPER.format(5),
    sentence=5,
    relation=equals(within=0.1, absolute=True),
    mutants={"the Huber function in place of |x|": {"objective": Huber()}},
    full={"starts": 100},
)
def no_finite_l(
    objective: Objective = Absolute(),
    lrs: Sequence[float] = (1e-3, 3e-3, 1e-2, 3e-2, 0.1),
    starts: int = 10,
    steps: int = 4000,
    master: int = 0,
) -> Evidence:
    """The slope of log L against log η; on the Lasso η in units of 1/L of its smooth part."""
    x0 = start_draws(starts, master, 0.5, 1.5)
    line, huber = (
        simulate(f, Gradient(lr=lrs), x0=x0, steps=steps, record=(needed,)).needed.max("step").values.T
        for f in (objective, Huber())
    )
    rows = []
    for f in least_squares_draws(starts, master):
        lr = np.asarray(lrs) / f.constants.L
        lasso = simulate(
            f,
            Gradient(lr=lr),
            penalty=L1(0.3 * f.critical_lam),
            steps=steps,
            tail=2000,
            record=(needed,),
            seeds=[master],
        )
        rows.append(lasso.needed.max("step").values[:, 0] / f.constants.L)
    curves = {"|x|": line, "Lasso": np.array(rows), "Huber": huber}
    slopes = [[np.polyfit(np.log(lrs), np.log(c), 1)[0] for c in found] for found in curves.values()]
    return Evidence(
        "slope of log(needed L) against log η",
        slopes,
        [-1.0, -1.0, 0.0],
        ["|x|", "Lasso, λ = 0.3 critical λ", "Huber"],
        holds_when=f"every η tried, {lrs[0]:g} to {lrs[-1]:g} (Lasso: over L), runs long enough to reach the kink; on "
        f"Huber the L needed was {huber.min():.3f} to {huber.max():.3f}",
        plots=[
            Plot(
                Axis("step size η (Lasso: ηL)", log=True),
                Axis("L that the descent lemma needs (Lasso: over L)", log=True),
                [
                    *(Line(name, lrs, np.exp(np.log(c).mean(axis=0)), "markers") for name, c in curves.items()),
                    Line("4/η", lrs, 4 / np.asarray(lrs), "dash"),
                ],
                says="The smaller the step, the larger the L: no step is small enough for the lemma.",
            )
        ],
    )


@claim(
    "literature/hessian-bounds-miss-kinks",
    says="A bound on the Hessian wherever it exists says nothing across a kink: with the L of the active piece (0 on "
    "|x|) the descent that the lemma promises fails in most late steps.",
    source="Zhang et al. 2020, definition 1, bounds ‖∇²f‖ by L₀ + L₁‖∇f‖",
    sentence=5,
    relation=at_least(),
    mutants={"a ridge, and the Huber function": {"smooth": True, "problems": 4}},
    full={"problems": 100},
)
def hessian_bounds_miss_kinks(
    smooth: bool = False, relative_lr: float = 0.1, problems: int = 10, steps: int = 6000, master: int = 0
) -> Evidence:
    """The lemma must fail in at least half of the last 1000 steps."""
    x0 = start_draws(problems, master, 0.5, 1.5)
    one, bound = (Huber(), 1.0) if smooth else (Absolute(), 0.0)
    line = simulate(one, Gradient(lr=relative_lr), x0=x0, steps=steps, tail=1000, record=(needed,))
    shares = [(line.needed > bound + 1e-6).mean("step").values]
    row = []
    for f in least_squares_draws(problems, master):
        L, lam = f.constants.L, 0.3 * f.critical_lam
        penalty: Penalty = SquaredL2(lam) if smooth else L1(lam)
        L += 2 * lam if smooth else 0.0
        run = simulate(
            f,
            Gradient(lr=relative_lr / L),
            penalty=penalty,
            steps=steps,
            tail=1000,
            record=(needed,),
            seeds=[master],
        )
        row.append(float((run.needed > L * (1 + 1e-6)).mean()))
    shares.append(np.array(row))
    return Evidence(
        "share of the last 1000 steps at which the descent lemma fails",
        shares,
        0.5,
        ["|x|, with L = 0", "Lasso, λ = 0.3 critical λ, with L of the loss"],
        holds_when=f"some weight is zero in the solution; ηL = {relative_lr:g}",
    )


@claim(
    "literature/more-lambda-fewer-small-weights",
    says="Beyond the critical λ a larger L1 penalty leaves fewer weights below a fixed threshold, in proportion: ten "
    "times the λ, a tenth of the weights that count as small.",
    source="Han et al. 2015, section 3.1, expects more of them; our statement: a uniform density on the bounce",
    sentence=5,
    relation=equals(within=0.3),
    mutants={"the proximal map in place of autograd's gradient": {"penalty_by": "prox", "problems": 4}},
    full={"problems": 100},
)
def fewer_small_weights(
    penalty_by: Any = "autograd",
    multiple: float = 3.0,
    relative_lr: float = 0.01,
    problems: int = 20,
    steps: int = 10_000,
    master: int = 0,
) -> Evidence:
    """The threshold is the mean |w| at λ = 3 critical λ, half of the width of the bounce there."""
    scan = np.geomspace(0.01, 100, 17)
    ratios, curves = [], []
    for f in least_squares_draws(problems, master):
        lr, critical = relative_lr / f.constants.L, f.critical_lam
        threshold = lr * multiple * critical / 2
        lam = np.append(scan, [multiple, 10 * multiple]) * critical
        run = simulate(
            f,
            Gradient(lr=lr),
            penalty=L1(lam),
            penalty_by=penalty_by,
            steps=steps,
            tail=2000,
            record=("x",),
            seeds=[master],
        )
        share = (np.abs(run.x.values[:, 0]) < threshold).mean(axis=(1, 2))
        ratios.append(share[-1] / share[-2])
        curves.append(share[:-2])
    mean = np.mean(curves, axis=0)
    best = scan[int(np.argmax(mean))]
    return Evidence(
        "share of small weights at 10λ over that at λ",
        [ratios],
        0.1,
        [f"λ = {multiple:g} critical λ"],
        holds_when=f"the share is largest at {best:.2g} critical λ and falls beyond; below, a larger penalty leaves "
        "more small weights",
        plots=[
            Plot(
                Axis("λ over the critical λ", log=True),
                Axis("share of weights below the threshold"),
                [Line("SGD, autograd's gradient, mean over problems", scan, mean, "markers")],
                says="More penalty helps up to a point, and then undoes what it did.",
            )
        ],
    )


@claim(
    "literature/smooth-l1-gives-no-zeros",
    says="A smooth L1 (pseudo-Huber) in place of the L1 norm leaves no weight at exactly zero: a threshold still "
    "decides what is pruned.",
    source="Liu et al. 2017, section 3, names smooth L1 as an alternative",
    sentence=5,
    relation=equals(within=0.0, absolute=True),
    mutants={"the L1 norm by its proximal map": {"smoothed": False, "problems": 4}},
    full={"problems": 40},
)
def smooth_l1_gives_no_zeros(
    smoothed: bool = True,
    deltas: Sequence[float] = (1e-1, 1e-2, 1e-3),
    multiple: float = 0.3,
    problems: int = 10,
    steps: int = 10_000,
    master: int = 0,
) -> Evidence:
    samples, norms, sizes = [], [], []
    for f in least_squares_draws(problems, master):
        lam, L = multiple * f.critical_lam, f.constants.L
        dead = lasso_path(f, np.array([lam]))[0] == 0
        row = []
        for delta in deltas:
            penalty: Penalty = SmoothedL1(lam, delta) if smoothed else L1(lam)
            run = simulate(
                f,
                Gradient(lr=1 / (L + lam / delta)),
                penalty=penalty,
                penalty_by="autograd" if smoothed else "prox",
                steps=steps,
                tail=1,
                record=("zeros", "grad_norm"),
                seeds=[master],
            )
            row.append(float(run.zeros.max()))
            norms.append(float(run.grad_norm.max()))
            sizes.append(float(np.abs(run.x_final.values[0][dead]).max(initial=0.0) / delta))
        samples.append(row)
    return Evidence(
        "exact zeros at the end, of 20 weights",
        np.transpose(samples),
        0.0,
        [f"δ = {d:g}" for d in deltas],
        holds_when=f"λ = {multiple:g} critical λ; the largest gradient norm left was {max(norms):.0e}; weights that "
        f"should be zero ended at up to {max(sizes):.2g} δ",
    )


@claim(
    "literature/subgradient-texts-are-right",
    says="Not all texts misread: what notes and books on the subgradient method promise is what these runs do. "
    "The best gap stays below R²/(2ηN) + ηG²/2 for any constant step, and below MR/√(N+1) for the step made for N.",
    source="Boyd, Xiao & Mutapcic, Subgradient methods (notes), section 3; Nesterov 2004, section 3.2",
    sentence=5,
    relation=at_most(),
    bears="limits",
    mutants={"a bound that falls as 1/N, as for smooth functions": {"smooth": True}},
    full={"problems": 200},
)
def subgradient_texts_are_right(
    smooth: bool = False,
    relative_lrs: Sequence[float] = (0.003, 0.03, 0.3),
    n: int = 20,
    steps: int = 5000,
    problems: int = 40,
    master: int = 0,
) -> Evidence:
    samples = []
    for f, x_star, f_star in random_maxima(n, 3000 + master, problems):
        R = float(np.linalg.norm(x_star))
        lr = R * np.append(relative_lrs, 1 / np.sqrt(steps + 1))
        run = simulate(f, Gradient(lr=lr), x0=np.zeros(n), steps=steps, record=("value",))
        bounds = R**2 / (2 * lr * steps) + lr / 2
        bounds[-1] = R / np.sqrt(steps + 1)
        samples.append((run.value.values.min(axis=1) - f_star) / (R / (4 * steps + 2) if smooth else bounds))
    return Evidence(
        f"largest share of what the texts promise, of {len(samples)} problems",
        np.max(samples, axis=0),
        1.0,
        [*(f"η = {r:g} R/G, any N" for r in relative_lrs), "η = R/(M√(N+1))"],
        holds_when=f"f convex and Lipschitz (random maxima of {2 * n} linear functions), N = {steps}; the largest "
        f"share of a bound that was met is {np.max(samples):.2f}",
    )
