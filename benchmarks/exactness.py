"""How near each method ends to the minimum of f + g, and whether its zeros are the right ones.

    python benchmarks/exactness.py            # the table that benchmarks/README.md keeps
    python benchmarks/exactness.py 0          # on other draws

Full batch, float64, from normal numbers, f scaled to smoothness 1, the learning rate falling to 0 as a cosine; RDA and
linearised Bregman from 0, and they and FTRL at a constant rate, for they decay by themselves. References: scikit-learn,
with skglm as second judge. Steps and rates were fixed on draw 0 and on the two data sets; the table is of other draws.
"""

from __future__ import annotations

import math
import platform
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any, NamedTuple

import numpy as np
import torch
from skglm import GeneralizedLinearEstimator
from skglm.datafits import Logistic, Quadratic
from skglm.penalties import L1_plus_L2
from skglm.solvers import AndersonCD
from sklearn.datasets import load_breast_cancer, load_diabetes
from sklearn.linear_model import ElasticNet as SklearnElasticNet
from sklearn.linear_model import LogisticRegression, MultiTaskElasticNet
from sklearn.preprocessing import scale
from torch import Tensor, optim
from torch.nn.functional import softplus

from nonsmooth.penalties import L1, ElasticNet, GroupLasso, Penalty
from nonsmooth.rules import RDA, LinearisedBregman, Rule
from nonsmooth.torch import Proximal, decay_residual
from nonsmooth.torch.alternatives import FromRule, penalised, remove_spred, spred

SEEDS = (401, 402, 403)
WEAK = 0.99
"""The largest |∂ᵢf|/λ off the support of a problem that counts: strict complementarity."""
DECAY, DECOUPLED = 0.02, 0.2
STEPS, LONG = 2000, 3000
"""Steps; and those on breast cancer, where the Hessian on the support has a condition number of 600, and of AdamW's
decay."""


# ── problems, and their solutions by others ─────────────────────────────────────────────────────────────────────────


class Problem(NamedTuple):
    """f and its gradient, the penalty g, and argmin f + ½ decay ‖w‖² + g by scikit-learn and, or None, by skglm."""

    name: str
    f: Callable[[Tensor], Tensor]
    grad: Callable[[Tensor], Tensor]
    penalty: Penalty
    decay: float
    best: Tensor
    second: Tensor | None = None

    def total(self, w: Tensor) -> float:
        return float(self.f(w) + self.penalty.value(w) + 0.5 * self.decay * (w * w).sum())

    def complementarity(self) -> float:
        """The largest |∂ᵢf|/λ off the support, of groups where g has them."""
        v, size = self.grad(self.best) + self.decay * self.best, self.best.abs()
        if isinstance(self.penalty, GroupLasso):
            v, size = v.norm(dim=1), size.norm(dim=1)
        return float(v[size == 0].abs().max() / self.penalty.lam)


def least_squares(X: np.ndarray, y: np.ndarray) -> tuple[float, Any, Any]:
    """f(w) = ‖Xw − y‖²/(2nL), L = λ₁(XᵀX/n)."""
    n, L = len(y), float(np.linalg.norm(X, 2) ** 2 / len(y))
    A, b = torch.tensor(X), torch.tensor(y)
    return L, lambda w: ((A @ w - b) ** 2).sum() / (2 * n * L), lambda w: A.T @ (A @ w - b) / (n * L)


def logistic(X: np.ndarray, s: np.ndarray) -> tuple[float, Any, Any]:
    """f(w) = mean log(1 + exp(−sᵢ⟨xᵢ, w⟩))/L, L = λ₁(XᵀX/(4n))."""
    n, L = len(s), float(np.linalg.norm(X, 2) ** 2 / (4 * len(s)))
    A = torch.tensor(s[:, None] * X)
    return L, lambda w: softplus(-(A @ w)).mean() / L, lambda w: -(A.T @ torch.sigmoid(-(A @ w))) / (n * L)


def regression(name: str, X: np.ndarray, y: np.ndarray, lam: float, decay: float, ridge: float = 0.0) -> Problem:
    """Lasso, elastic net, and where y has columns, the group lasso whose groups are the rows of w."""
    L, f, grad = least_squares(X, y)
    smooth = decay + 2 * ridge
    kind, penalty = SklearnElasticNet, ElasticNet(lam, ridge) if ridge else L1(lam)
    if y.ndim == 2:
        kind, penalty = MultiTaskElasticNet, GroupLasso(lam)
    share = lam / (lam + smooth)
    model = kind(alpha=(lam + smooth) * L, l1_ratio=share, fit_intercept=False, tol=1e-14, max_iter=10**6)
    best = torch.tensor(model.fit(X, y).coef_.T.copy())
    second = None if y.ndim == 2 else by_skglm(Quadratic(), X, y, (lam + smooth) * L, share)
    return Problem(name, f, grad, penalty, decay, best, second)


def classification(name: str, X: np.ndarray, s: np.ndarray, lam: float, decay: float) -> Problem:
    L, f, grad = logistic(X, s)
    share = lam / (lam + decay)
    model = LogisticRegression(
        l1_ratio=share,
        C=1 / (len(s) * (lam + decay) * L),
        solver="saga" if decay else "liblinear",
        fit_intercept=False,
        tol=1e-12,
        max_iter=10**6,
        random_state=0,
    )
    best = torch.tensor(model.fit(X, s).coef_[0])
    return Problem(name, f, grad, L1(lam), decay, best, by_skglm(Logistic(), X, s, (lam + decay) * L, share))


def by_skglm(datafit: Any, X: np.ndarray, y: np.ndarray, alpha: float, share: float) -> Tensor:
    solver = AndersonCD(tol=1e-14, max_iter=1000, max_epochs=10**6, fit_intercept=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns where rounding keeps it above 1e-14; its answer is compared below
        model = GeneralizedLinearEstimator(datafit, L1_plus_L2(alpha, share), solver).fit(np.asfortranarray(X), y)
    return torch.tensor(np.ravel(model.coef_))


def drawn(seed: int, n: int, p: int, used: int, tasks: int = 1, noise: float = 0.5) -> tuple[np.ndarray, np.ndarray]:
    """Standardised data: y = Xw + noise with `used` rows of w that are not 0."""
    rng = np.random.default_rng(seed)
    X, w = scale(rng.standard_normal((n, p))), np.zeros((p, tasks))
    w[:used] = rng.standard_normal((used, tasks))
    y = X @ w + noise * rng.standard_normal((n, tasks))
    y = (y - y.mean(0)) / y.std()
    return X, y if tasks > 1 else y[:, 0]


def fresh(seed: int, decay: float) -> list[Problem]:
    X, y = drawn(seed + 3000, 200, 10, 6, noise=2.0)
    return [
        regression("Lasso", *drawn(seed, 60, 20, 6), 0.05, decay),
        regression("elastic net", *drawn(seed + 1000, 60, 20, 6), 0.05, decay, ridge=0.05),
        classification("logistic", X, np.sign(y), 0.05, decay),
        regression("group Lasso", *drawn(seed + 2000, 60, 10, 3, tasks=3), 0.06, decay),
    ]


def data_sets(decay: float) -> list[Problem]:
    X, y = load_diabetes(return_X_y=True)
    Z, s = load_breast_cancer(return_X_y=True)
    return [
        regression("diabetes", scale(X), scale(y), 0.03, decay),
        classification("breast cancer", scale(Z), 2.0 * s - 1, 0.08 if decay else 0.045, decay),
    ]


# ── methods: the parameters of some problems, from 0 to where they end ──────────────────────────────────────────────

Method = Callable[[Sequence[Problem], int, float], list[Tensor] | None]


def cosine(progress: float) -> float:
    return 0.5 * (1 + math.cos(math.pi * progress))


def starts(tasks: Sequence[Problem], size: float = 1.0) -> list[torch.nn.Parameter]:
    """Where all begin: the same normal numbers for every method, or 0."""
    normal = [np.random.default_rng(7).standard_normal(task.best.shape) for task in tasks]
    return [torch.nn.Parameter(size * torch.tensor(numbers)) for numbers in normal]


def proximal(kind: type[optim.Optimizer], keep: list[Any] | None = None, floor: float = 0.0, **options: Any) -> Method:
    """Proximal around one of torch's, which is kept for those who want to look at it."""

    def run(tasks: Sequence[Problem], steps: int, more: float) -> list[Tensor]:
        params = starts(tasks)
        optimizer = Proximal(kind(params, **options), [(task.penalty, [p]) for task, p in zip(tasks, params)])
        sign = -1.0 if options.get("maximize") else 1.0
        for t in range(steps):
            optimizer.param_groups[0]["lr"] = more * options["lr"] * max(cosine(t / steps), floor)
            for task, p in zip(tasks, params):
                p.grad = sign * task.grad(p.detach())
            optimizer.step()
        if keep is not None:
            keep.append((optimizer, params))
        return [p.detach() for p in params]

    return run


def autograd(kind: type[optim.Optimizer], **options: Any) -> Method:
    """f + g in the loss, and backward."""

    def run(tasks: Sequence[Problem], steps: int, more: float) -> list[Tensor]:
        params = starts(tasks)
        optimizer = kind(params, **options)
        for t in range(steps):
            optimizer.param_groups[0]["lr"] = more * options["lr"] * cosine(t / steps)
            optimizer.zero_grad()
            sum(penalised(task.f(p), task.penalty, [p]) for task, p in zip(tasks, params)).backward()
            optimizer.step()
        return [p.detach() for p in params]

    return run


def at_the_rate(kind: type[optim.Optimizer], **options: Any) -> Method:
    """prox_{lr g} after the step of an optimiser whose effective step is another."""

    def run(tasks: Sequence[Problem], steps: int, more: float) -> list[Tensor]:
        params = starts(tasks)
        optimizer = kind(params, **options)
        for t in range(steps):
            lr = optimizer.param_groups[0]["lr"] = more * options["lr"] * cosine(t / steps)
            for task, p in zip(tasks, params):
                p.grad = task.grad(p.detach())
            optimizer.step()
            for task, p in zip(tasks, params):
                p.data.copy_(task.penalty.prox(p.detach(), lr))
        return [p.detach() for p in params]

    return run


def averaged(lr: float, beta1: float = 0.9, beta2: float = 0.999, eps: float = 1e-8) -> Method:
    """w⁺ = w + η/(1 − β₁ᵗ) (prox_{g/d}(w − m⁺/d) − w), d = √v̂ + ε: a mean of w and a proximal point of step 1."""

    def run(tasks: Sequence[Problem], steps: int, more: float) -> list[Tensor]:
        found = []
        for task in tasks:
            w = starts([task])[0].detach()
            m, v = torch.zeros_like(w), torch.zeros_like(w)
            for t in range(1, steps + 1):
                g = task.grad(w)
                m, v = beta1 * m + (1 - beta1) * g, beta2 * v + (1 - beta2) * g * g
                d = (v / (1 - beta2**t)).sqrt() + eps
                eta = more * lr * cosine((t - 1) / steps) / (1 - beta1**t)
                w = w + eta * (task.penalty.prox(w - m / d, 1 / d) - w)
            found.append(w)
        return found

    return run


def by_products(kind: type[optim.Optimizer], threshold: float = 0.0, **options: Any) -> Method:
    """spred: w = u ⊙ v, f(w) with any ridge of g in the loss, and λ as the coupled weight decay of u and v."""

    def run(tasks: Sequence[Problem], steps: int, more: float) -> list[Tensor] | None:
        if any(isinstance(task.penalty, GroupLasso) for task in tasks):
            return None
        found = []
        for task in tasks:
            model = torch.nn.Module()
            model.register_parameter("w", starts([task])[0])
            optimizer = kind(spred(model, [model.w]), **options, weight_decay=task.penalty.lam)
            for t in range(steps):
                optimizer.param_groups[0]["lr"] = more * options["lr"] * cosine(t / steps)
                optimizer.zero_grad()
                w = model.w
                (task.f(w) + getattr(task.penalty, "ridge", 0.0) * (w * w).sum()).backward()
                optimizer.step()
            found.append(remove_spred(model, threshold)[0].detach())
        return found

    return run


def rule(one: Rule, stop: bool = False) -> Method:
    """A rule of the lab from 0, as its authors have it; with `stop`, the point of its path at which f + g was least."""

    def run(tasks: Sequence[Problem], steps: int, more: float) -> list[Tensor]:
        found = []
        for task in tasks:
            (p,) = starts([task], 0.0)
            optimizer = FromRule([p], one, task.penalty)
            best, least = p.detach().clone(), math.inf
            for _ in range(steps):
                p.grad = task.grad(p.detach())
                optimizer.step()
                if stop and (total := task.total(p.detach())) < least:
                    best, least = p.detach().clone(), total
            found.append(best if stop else p.detach())
        return found

    return run


def ftrl(lr: float, grows: bool) -> Method:
    """pytorch_optimizer's FTRL, whose L1 is charged once for the sum of all gradients: λ₁ = tλ at step t is f + λ‖w‖₁.

    w⁺ = argmin ⟨Σg, w⟩ + ½Σσₛ‖w − wₛ‖² + λ₁‖w‖₁ by its source: with λ₁ = λ the penalty per step is λ/t.
    """

    def run(tasks: Sequence[Problem], steps: int, more: float) -> list[Tensor] | None:
        from pytorch_optimizer import FTRL

        if any(isinstance(task.penalty, GroupLasso) for task in tasks):
            return None
        found = []
        for task in tasks:
            (p,) = starts([task])
            lam, ridge = task.penalty.lam, getattr(task.penalty, "ridge", 0.0)
            optimizer = FTRL([p], lr=more * lr, lambda_1=lam, foreach=False)
            for t in range(1, steps + 1):
                w = p.detach()
                optimizer.param_groups[0]["lambda_1"] = lam * t if grows else lam
                p.grad = task.grad(w) + 2 * ridge * w
                optimizer.step()
            found.append(p.detach())
        return found

    return run


class Row(NamedTuple):
    """A method, how much larger its step may be on breast cancer, and whether a coupled decay is an option of it."""

    label: str
    kind: Any
    options: dict[str, Any]
    more: float = 100.0
    decays: bool = True


OURS = [
    Row("SGD", optim.SGD, {"lr": 1.0}, 10),
    Row("SGD, momentum 0.9", optim.SGD, {"lr": 0.2, "momentum": 0.9}, 30),
    Row("… and dampening 0.5", optim.SGD, {"lr": 0.4, "momentum": 0.9, "dampening": 0.5}, 30),
    Row("… and Nesterov", optim.SGD, {"lr": 0.2, "momentum": 0.9, "nesterov": True}, 30),
    Row("… and maximize", optim.SGD, {"lr": 0.2, "momentum": 0.9, "maximize": True}, 30),
    Row("… and fused", optim.SGD, {"lr": 0.2, "momentum": 0.9, "fused": True}, 30),
    Row("Adam", optim.Adam, {"lr": 0.02}),
    Row("Adam, fused", optim.Adam, {"lr": 0.02, "fused": True}),
    Row("Adam, amsgrad", optim.Adam, {"lr": 0.02, "amsgrad": True}),
    Row("AdamW, no decay", optim.AdamW, {"lr": 0.02, "weight_decay": 0.0}, decays=False),
    Row("NAdam", optim.NAdam, {"lr": 0.03}, 20),
    Row("RAdam", optim.RAdam, {"lr": 0.1}, 40),
    Row("Adamax", optim.Adamax, {"lr": 0.04}, 50),
    Row("Adagrad", optim.Adagrad, {"lr": 1.0}, 10),
    Row("Adagrad, lr_decay 1e-4", optim.Adagrad, {"lr": 1.0, "lr_decay": 1e-4}, 10),
    Row("Adadelta", optim.Adadelta, {"lr": 5.0}, 60),
    Row("RMSprop", optim.RMSprop, {"lr": 0.02}, 30),
    Row("RMSprop, momentum 0.9", optim.RMSprop, {"lr": 0.004, "momentum": 0.9}, 30),
    Row("RMSprop, centred, ε 0.1", optim.RMSprop, {"lr": 0.05, "centered": True, "eps": 0.1}, 40),
    Row("ASGD, lambd 0", optim.ASGD, {"lr": 1.0, "lambd": 0.0}, 10),
]

OTHERS: list[tuple[str, Method, float]] = [
    ("autograd, SGD", autograd(optim.SGD, lr=1.0), 10),
    ("autograd, Adam", autograd(optim.Adam, lr=0.02), 100),
    ("autograd, RMSprop", autograd(optim.RMSprop, lr=0.02), 30),
    ("SGD, momentum 0.9, prox at lr", at_the_rate(optim.SGD, lr=0.2, momentum=0.9), 30),
    ("Adam, prox at lr", at_the_rate(optim.Adam, lr=0.02), 100),
    ("ProxGen's averaged step (ours, by its formula)", averaged(0.2), 4),
    ("spred, SGD, momentum 0.9", by_products(optim.SGD, lr=0.3, momentum=0.9), 10),
    ("… \\|w\\| ≤ 1e-3 set to 0", by_products(optim.SGD, 1e-3, lr=0.3, momentum=0.9), 10),
    ("spred, Adam", by_products(optim.Adam, lr=0.05), 10),
    ("RDA, γ = 0.1", rule(RDA(0.1)), 1),
    ("linearised Bregman, at its end", rule(LinearisedBregman(0.01, 10.0)), 1),
    ("… where f + g was least on its path", rule(LinearisedBregman(0.01, 10.0), stop=True), 1),
    ("FTRL (pytorch_optimizer), λ₁ = λ", ftrl(3.0, grows=False), 10),
    ("FTRL (pytorch_optimizer), λ₁ = tλ at step t", ftrl(3.0, grows=True), 10),
]


# ── AdamW: another problem, and its own solution ────────────────────────────────────────────────────────────────────


def own_problem(task: Problem, decay: float) -> Problem:
    """What AdamW + prox minimises without noise, v̂ being g² then: f + Σ h(|wᵢ|), h′(s) = (λ + 2ρs)/(1 − wd s).

    Solved by FISTA with restart: λ|w| + ρw² by its prox, and the rest, whose derivative is wd s h′(s), by its gradient.
    """
    lam, ridge = task.penalty.lam, getattr(task.penalty, "ridge", 0.0)

    def rest(w: Tensor) -> Tensor:
        s = w.abs()
        log = torch.log1p(-decay * s)
        h = -lam * log / decay - 2 * ridge * (s / decay + log / decay**2)
        return (h - lam * s - ridge * s * s).sum()

    def slope(w: Tensor) -> Tensor:
        s = w.abs()
        return decay * w * (lam + 2 * ridge * s) / (1 - decay * s)

    step = 1 / (1 + 10 * decay * lam)
    x = z = torch.zeros_like(task.best)
    k = 1.0
    for _ in range(20_000):
        after = task.penalty.prox(z - step * (task.grad(z) + slope(z)), step)
        if float(((z - after) * (after - x)).sum()) > 0:
            k = 1.0
        ahead = (1 + math.sqrt(1 + 4 * k * k)) / 2
        if torch.equal(after, x):
            break
        z, x, k = after + (k - 1) / ahead * (after - x), after, ahead
    return task._replace(f=lambda w: task.f(w) + rest(w), grad=lambda w: task.grad(w) + slope(w), best=x)


NOTES = f"""\
A cell is the largest |F(w) − F*|/F* over the draws; (+a −d) counts the weights that are not 0 and should be, and those
that are 0 and should not; without it every support is identical. {STEPS} steps, {LONG} on breast cancer and for
AdamW with decay. Draws that are not strictly complementary, |∂ᵢf| > {WEAK} λ somewhere off the support, are left out.

- autograd: `penalised`. Its weights end as small as the last steps, none of them 0.
- prox at lr: the optimiser of torch, then prox at lr in place of its effective step.
- ProxGen's averaged step: w⁺ = w + η (prox_{{g/d}}(w − m/d) − w), d = √v̂ + ε, re-implemented from its formula. Zeros,
  if any, are what (1 − η)ᵗ leaves below the smallest number. Its Adam, prox at lr/d after the step, is the map of
  Proximal(Adam).
- spred: `spred`, λ as coupled weight decay of both factors, the elastic net's ridge in the loss; L1 only.
- RDA and linearised Bregman: `FromRule`, from 0. The latter goes down f along a path and does not minimise f + g.
- FTRL: its λ₁ is charged once for the sum of all gradients, so that λ₁ = λ, as one would write, is a penalty λ/t, and
  λ₁ = tλ must be set before each step t to solve f + λ‖w‖₁. The elastic net's ridge in the loss; L1 only."""


# ── the table ───────────────────────────────────────────────────────────────────────────────────────────────────────

NAMES = ("Lasso", "elastic net", "logistic", "group Lasso", "diabetes", "breast cancer")


class Cell(NamedTuple):
    gap: float
    alive: int
    dead: int


def judged(task: Problem, w: Tensor) -> Cell:
    gap = abs(task.total(w) - task.total(task.best)) / task.total(task.best)
    at, there = w != 0, task.best != 0
    return Cell(gap, int((at & ~there).sum()), int((~at & there).sum()))


def said(cells: Sequence[Cell]) -> str:
    """The largest gap, and where a support is not identical, how many are not zero and should be, and the reverse."""
    if not cells:
        return "–"
    alive, dead = sum(c.alive for c in cells), sum(c.dead for c in cells)
    wrong = "" if not alive + dead else f" (+{alive} −{dead})"
    return f"{max(c.gap for c in cells):.0e}{wrong}"


def line(
    label: str, method: Method, more: float, tasks: Sequence[Problem], target: Any = None, short: int = STEPS
) -> str:
    """One row: easy problems in one run, breast cancer in a longer one, with larger steps."""
    cells: dict[str, list[Cell]] = {name: [] for name in NAMES}
    hard = [task for task in tasks if task.name == "breast cancer"]
    flat = [task for task in tasks if task.name not in ("breast cancer", "group Lasso")]
    groups = [task for task in tasks if task.name == "group Lasso"]
    for some, steps, factor in ((flat, short, 1.0), (groups, short, 1.0), (hard, LONG, more)):
        answers = method(some, steps, factor) if some else None
        for task, w in zip(some, answers or ()):
            judge = task if target is None else target(task)
            if judge is not None:
                cells[task.name].append(judged(judge, w))
    return f"| {label} | " + " | ".join(said(cells[name]) for name in NAMES) + " |"


def problem_lines(tasks: Sequence[Problem]) -> list[str]:
    lines = []
    for name in NAMES:
        some = [task for task in tasks if task.name == name]
        if not some:
            continue
        used = ", ".join(f"{int((t.best != 0).sum())} of {t.best.numel()}" for t in some)
        weak = ", ".join(f"{t.complementarity():.3f}" for t in some)
        apart = [judged(t, t.second) for t in some if t.second is not None]
        lines.append(f"| {name} | {used} | {weak} | {said(apart)} |")
    return lines


def problems(seeds: Sequence[int], decay: float) -> list[Problem]:
    """The strictly complementary problems among those of the seeds, and the two data sets."""
    found = [task for seed in seeds for task in fresh(seed, decay)] + data_sets(decay)
    return [task for task in found if task.complementarity() <= WEAK]


def installed(name: str) -> str:
    try:
        return f"{name} {version(name)}"
    except PackageNotFoundError:
        return f"no {name}"


def main(seeds: Sequence[int]) -> None:
    began = time.perf_counter()
    torch.set_default_dtype(torch.float64)
    packages = ("torch", "numpy", "scikit-learn", "skglm", "pytorch_optimizer")
    print(f"Python {platform.python_version()}, {', '.join(map(installed, packages))}\n")
    head = "| " + " | ".join(("", *NAMES)) + " |\n|" + "---|" * (len(NAMES) + 1)
    for decay in (0.0, DECAY):
        tasks = problems(seeds, decay)
        print(f"Problems, draws {', '.join(map(str, seeds))}" + (f", with ½·{decay}‖w‖² in f:\n" if decay else ":\n"))
        print("| problem | weights not 0 | largest \\|∂ᵢf\\|/λ off the support | skglm from scikit-learn |")
        print("|---|---|---|---|")
        print("\n".join(problem_lines(tasks)), "\n", sep="")
        title = f"Proximal, weight_decay={decay}" if decay else "Proximal"
        print(head.replace("|  |", f"| {title} |", 1))
        for row in OURS:
            options = row.options | ({"weight_decay": decay} if decay else {})
            if row.decays or not decay:
                print(line(row.label, proximal(row.kind, **options), row.more, tasks), flush=True)
        if decay:
            options = {"lr": 1.0, "lambd": decay}
            print(line(f"ASGD, lambd {decay}", proximal(optim.ASGD, **options), 10, tasks), flush=True)
        print()
        if not decay:
            plain = tasks
    decoupled(plain, head)
    print(head.replace("|  |", "| others |", 1))
    for label, method, more in OTHERS:
        if "pytorch_optimizer" in label and installed("pytorch_optimizer").startswith("no "):
            continue
        print(line(label, method, more, plain), flush=True)
    print(f"\n{NOTES}\n\n{time.perf_counter() - began:.0f} s on {torch.get_num_threads()} thread(s).")


def decoupled(tasks: Sequence[Problem], head: str) -> None:
    """AdamW by its own equation: against the solution of its own problem, and by its certificate."""
    kept: list[Any] = []
    options = {"lr": 0.02, "betas": (0.9, 0.99), "weight_decay": DECOUPLED}
    method = proximal(optim.AdamW, kept, 1e-3, **options)
    flat = [task for task in tasks if not isinstance(task.penalty, GroupLasso)]
    own = {id(task): own_problem(task, DECOUPLED) for task in flat}
    print(head.replace("|  |", f"| Proximal, decoupled weight_decay={DECOUPLED} |", 1))
    print(line("AdamW, to its own minimum", method, 20.0, tasks, lambda task: own.get(id(task)), LONG), flush=True)
    cells: dict[str, float] = {}
    order = (
        [task for task in flat if task.name != "breast cancer"],
        [task for task in tasks if isinstance(task.penalty, GroupLasso)],
        [task for task in flat if task.name == "breast cancer"],
    )
    for some, (optimizer, params) in zip([s for s in order if s], kept):
        closure = lambda some=some, params=params: sum(task.f(p) for task, p in zip(some, params))  # noqa: E731
        for task, (_, distance) in zip(some, decay_residual(optimizer, closure).by_parameter):
            cells[task.name] = max(cells.get(task.name, 0.0), distance / task.penalty.lam)
    print("| … distance from 0 to ∇f + wd(√v̂ + ε)w + ∂g, over λ | ", end="")
    print(" | ".join(f"{cells[name]:.0e}" if name in cells else "–" for name in NAMES), "|\n")


if __name__ == "__main__":
    main([int(seed) for seed in sys.argv[1:]] or SEEDS)
